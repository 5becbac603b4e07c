"""Sphinx directive ``maury-command NAME``: a command as the command line itself describes it."""

from typing import Any

import typer
from docutils import nodes
from docutils.parsers.rst import Directive
from maury_tables import code, table

from maury.cli.app import app as commands


def command_of(name: str) -> Any:
    """Return the command of a name such as ``ingest toml``."""
    node: Any = typer.main.get_command(commands)
    for word in name.split():
        node = node.commands[word]
    return node


def names(node: Any = None, before: str = "") -> list[str]:
    """Return the names of all commands, groups left out."""
    node = typer.main.get_command(commands) if node is None else node
    inner = getattr(node, "commands", None)
    if not inner:
        return [before]
    return [name for key, one in inner.items() for name in names(one, f"{before} {key}".strip())]


def spelt(parameter: Any) -> str:
    """Return an option or argument as it is typed."""
    word = str(parameter.metavar or str(parameter.name).upper()).strip("{}[]")
    if parameter.param_type_name == "argument":
        return word if parameter.required else f"[{word}]"
    return ", ".join(parameter.opts) + ("" if parameter.is_flag else f" {word}")


def default_of(parameter: Any) -> str:
    """Return the default of an option in words; empty where there is none."""
    value = parameter.default
    if parameter.required or value is None or callable(value) or value in (False, "", ()):
        return ""
    return str(value)


class Command(Directive):
    """Usage, text and options of one command."""

    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the paragraphs and the table."""
        name = self.arguments[0]
        found = command_of(name)
        arguments = [one for one in found.params if one.param_type_name == "argument"]
        usage = " ".join(["maury", name, *map(spelt, arguments), "[OPTIONS]"])
        out: list[nodes.Node] = [nodes.literal_block(usage, usage, language="text")]
        out += [nodes.paragraph("", part) for part in (found.help or "").split("\n\n") if part]
        rows = [
            (code(spelt(one)), getattr(one, "help", None) or "", default_of(one))
            for one in found.params
            if not getattr(one, "hidden", False)
        ]
        return [*out, table(("", "what it is", "default"), rows, (34, 54, 12))]


def setup(app: Any) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("maury-command", Command)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
