"""Sphinx directive ``settings-tables``: every key of the settings of a training, by section."""

import inspect
import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from maury_tables import code, table
from pydantic import BaseModel

from maury.model.split import SplitConfig
from maury.training.member import TrainingConfig
from maury.training.settings import ChoiceConfig
from maury.training.simulated import SimulatedTraining

_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


def described(kind: type[BaseModel]) -> dict[str, str]:
    """Return what the docstrings of a model and its bases say of each attribute."""
    found: dict[str, str] = {}
    for one in reversed(inspect.getmro(kind)):
        text = inspect.cleandoc(one.__doc__ or "")
        _, _, body = text.partition("Attributes\n----------\n")
        names: list[str] = []
        for line in body.splitlines():
            head = re.match(r"([\w, ]+?)(?: : (.*))?$", line)
            if head and not line.startswith(" "):
                names = [name.strip() for name in head[1].split(",")]
                found |= dict.fromkeys(names, "")
            elif line.strip():
                found |= {name: f"{found[name]} {line.strip()}".strip() for name in names}
    return found


def limits(field: Any) -> str:
    """Return the limits of a field in words."""
    known = [
        f"{sign} {getattr(item, name):g}"
        for item in field.metadata
        for name, sign in _SIGNS.items()
        if hasattr(item, name)
    ]
    choices = (
        re.findall(r"'([^']+)'", str(field.annotation))
        if "Literal" in str(field.annotation)
        else []
    )
    return " or ".join(f'"{one}"' for one in choices) or ", ".join(known)


def default(field: Any) -> str:
    """Return a default as TOML writes it; a section of its own for nested settings."""
    value = field.default
    if isinstance(value, BaseModel):
        return "a section of its own"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if value is None:
        return "none"
    return str(list(value) if isinstance(value, tuple) else value)


def plain(text: str) -> str:
    """Return a text of a docstring without its marks."""
    return text.replace("`", "")


def literal(text: str) -> nodes.Node | str:
    """Return a value in code style, in which quotation marks stay as TOML has them."""
    return code(text) if text and not text.startswith("a section") else text


def section(kind: type[BaseModel]) -> nodes.table:
    """Return the table of one section."""
    words = described(kind)
    rows = [
        (
            code(name),
            literal(default(field)),
            literal(limits(field)),
            words.get(name, "").replace("`", ""),
        )
        for name, field in kind.model_fields.items()
    ]
    return table(("key", "default", "allowed", "meaning"), rows, (18, 18, 22, 60))


class SettingsTables(Directive):
    """Write a table for each section; keys of networks are those of the papers, in the guide."""

    def run(self) -> list[nodes.Node]:
        """Return the tables, each under its title."""
        sections: list[tuple[str, str, type[BaseModel]]] = [
            ("[split]", "Which stars train, validate and test.", SplitConfig),
            ("[ensemble]", "How many networks, and which labels.", ChoiceConfig),
            (
                "[training]",
                "Of the preset maury, which trains on simulated stars.",
                SimulatedTraining,
            ),
            ("[training]", "Of all other presets.", TrainingConfig),
        ]
        out: list[nodes.Node] = []
        for title, text, kind in sections:
            out += [nodes.rubric("", title), nodes.paragraph("", text), section(kind)]
        return out


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("settings-tables", SettingsTables)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
