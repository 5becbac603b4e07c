"""Sphinx directives of the reference of the Python interface.

``public-names PACKAGE`` documents, by autodoc, every name that the stub of a package lists, where
it is defined; ``module-names MODULE NAME ...`` those of a module that no stub lists. Both belong
into ``eval-rst``, as autodoc writes reStructuredText.
"""

import importlib
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.statemachine import StringList

import maury

ROOT = Path(maury.__file__).parent
LISTED = re.compile(r"^from (\.[\w.]*) import (\w+) as \w+$", re.MULTILINE)


def stubs() -> dict[str, list[tuple[str, str]]]:
    """Return, of every package with a stub, module and name of what it lists."""
    found = {}
    for path in sorted(ROOT.rglob("__init__.pyi")):
        package = ".".join(("maury", *path.parent.relative_to(ROOT).parts))
        listed = LISTED.findall(path.read_text("utf-8"))
        found[package] = [(importlib.util.resolve_name(m, package), n) for m, n in listed]
    return found


def kind_of(item: Any) -> str:
    """Return the directive of autodoc for an object."""
    if isinstance(item, type):
        return "autoexception" if issubclass(item, BaseException) else "autoclass"
    return "autofunction" if callable(item) else "autodata"


def directive_of(module: str, name: str, shown: str) -> list[str]:
    """Return the lines that document one name; `shown` is by which package it is public."""
    kind = kind_of(getattr(importlib.import_module(module), name))
    lines = [f".. rubric:: {shown}.{name}", "", f".. {kind}:: {module}.{name}"]
    if kind == "autoclass":
        lines += ["   :members:", "   :exclude-members: model_config, model_post_init"]
    if kind == "autodata":
        lines += ["   :no-value:"]
    return [*lines, ""]


class Names(Directive):
    """Write the directives of autodoc for some names, and let Sphinx read them."""

    required_arguments = 1
    optional_arguments = 1
    final_argument_whitespace = True

    def names(self) -> list[tuple[str, str]]:
        """Return module and name of what is documented."""
        module, wanted = self.arguments[0], self.arguments[1].split()
        return [(module, name) for name in wanted]

    def run(self) -> list[nodes.Node]:
        """Return what autodoc makes of them."""
        lines = [line for m, n in self.names() for line in directive_of(m, n, self.arguments[0])]
        inside = nodes.container()
        self.state.nested_parse(StringList(lines, source="maury"), self.content_offset, inside)
        return list(inside.children)


class PublicNames(Names):
    """The names of a package's stub; those that packages within it list too stand there."""

    def names(self) -> list[tuple[str, str]]:
        """Return each name once: a name of two headings would have two targets of links."""
        package, listed = self.arguments[0], stubs()
        inner = [names for other, names in listed.items() if other.startswith(f"{package}.")]
        seen = {item for names in inner for item in names}
        return [one for one in listed[package] if one not in seen and one[1] != "__version__"]


def setup(app: Any) -> dict[str, bool]:
    """Register the directives."""
    app.add_directive("public-names", PublicNames)
    app.add_directive("module-names", Names)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
