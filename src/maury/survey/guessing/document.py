"""The TOML file that is guessed: entries with a reason each, and how they are written."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

_WIDTH = 100
"""Characters of a line, comments included: as wide as an editor shows beside another window."""
_CHECK = "check: "


@dataclass(frozen=True)
class Entry:
    """One key of the file.

    Attributes
    ----------
    key : str
        Empty for a comment alone.
    value : object
        Text, number, truth value, list, or mapping (written in one line).
    why : str
        What the comment above it says.
    doubtful : bool
        Whether the comment begins with ``check:``.
    off : bool
        Whether the key is commented out: a hint, not a guess.
    """

    key: str = ""
    value: Any = None
    why: str = ""
    doubtful: bool = False
    off: bool = False

    def lines(self) -> list[str]:
        """Return the comment and the key as lines of TOML."""
        lines = comment((_CHECK if self.doubtful else "") + self.why) if self.why else []
        if self.key:
            lines.append(f"{'# ' if self.off else ''}{self.key} = {toml_value(self.value)}")
        return lines


def unknown_grid(place: str) -> tuple[Entry, ...]:
    """Return keys of ``[wavelength]`` where nothing tells the grid: a question, and no guess."""
    why = (
        f"Nothing in {place} gives the wavelengths. What are they? Write those of the first "
        "pixel and the step between pixels, in 'unit', or 'values', where they stand."
    )
    return (Entry("start", 8420.0, why, doubtful=True, off=True), Entry("step", 0.4, off=True))


@dataclass(frozen=True)
class Section:
    """A table of the file: its header, such as ``[spectra]`` or ``[[table]]``, and its entries."""

    header: str
    entries: Sequence[Entry] = field(default_factory=tuple)
    off: bool = False

    def lines(self) -> list[str]:
        """Return the section as lines of TOML; nothing without entries."""
        if not self.entries:
            return []
        body = [line for entry in self.entries for line in entry.lines()]
        lines = [self.header, *body] if self.header else body
        if self.off:
            lines = [line if line.startswith("#") else f"# {line}" for line in lines]
        return lines


def written(sections: Sequence[Section]) -> str:
    """Return sections as the text of a TOML file."""
    return "\n\n".join("\n".join(lines) for one in sections if (lines := one.lines())) + "\n"


def comment(text: str) -> list[str]:
    """Return a text as lines of comments."""
    # Names of files and columns come from strangers: a line break in one would end the comment.
    plain = "".join(letter if letter.isprintable() else "?" for letter in text)
    return textwrap.wrap(
        plain, _WIDTH, initial_indent="# ", subsequent_indent="#   ", break_on_hyphens=False
    )


def toml_value(value: Any) -> str:
    """Return a value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(str(key))} = {toml_value(one)}" for key, one in value.items())
        return f"{{ {inner} }}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    return _quoted(str(value))


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").isalnum() else _quoted(name)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    letters = (c if c.isprintable() else f"\\U{ord(c):08x}" for c in escaped)
    return '"' + "".join(letters) + '"'
