"""The bibliography: BibTeX entries of all that `maury` builds on, and what each is of use for."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType

from maury.errors import ConfigError, check_known

BIBLIOGRAPHY = Path(__file__).with_name("references.bib")

_OPENING = re.compile(r"@(\w+)\{([^\s,{}]+),")
_FIELD = re.compile(r"  (\w+) = \{(.*)\},")


@dataclass(frozen=True)
class Entry:
    """One entry of the bibliography.

    Attributes
    ----------
    kind : str
        ``article``, ``book``, ``software``, ...
    key : str
        Its name, mostly the bibcode of ADS.
    fields : mapping of str to str
        As written: LaTeX, without the outer braces.
    """

    kind: str
    key: str
    fields: Mapping[str, str]

    @property
    def topics(self) -> frozenset[str]:
        """What it is cited for, such as ``method:cannon``, ``library:scipy`` or ``simulator``."""
        return frozenset(filter(None, re.split(r"\s*,\s*", self.fields.get("keywords", ""))))

    def to_bibtex(self) -> str:
        """Return the entry as BibTeX, without what is of use to `maury` alone."""
        lines = [
            f"  {name} = {{{value}}},"
            for name, value in self.fields.items()
            if name not in ("keywords", "note")
        ]
        return "\n".join([f"@{self.kind}{{{self.key},", *lines, "}"]) + "\n"


def parse(text: str, *, name: str = "bibliography") -> tuple[Entry, ...]:
    """Read entries of one ``field = {value},`` a line, which is all of BibTeX that is used here.

    Raises
    ------
    ConfigError
        If a line is of another form, or a key stands twice.
    """
    entries: list[Entry] = []
    fields: dict[str, str] | None = None
    for number, line in enumerate(text.splitlines(), start=1):
        opening, field = _OPENING.fullmatch(line), _FIELD.fullmatch(line)
        if fields is None and opening:
            fields = {}
            entries.append(Entry(opening[1].lower(), opening[2], MappingProxyType(fields)))
        # One unbalanced brace would make BibTeX swallow the entries that follow.
        elif fields is not None and field and field[1] not in fields and balanced(field[2]):
            fields[field[1]] = field[2]
        elif fields is not None and line == "}":
            fields = None
        elif line.strip() or fields is not None:
            raise ConfigError(
                f"{name}: cannot read line {number}, {line!r}; write '@kind{{key,', then one "
                "'  field = {value},' a line, then '}'"
            )
    if fields is not None:
        raise ConfigError(f"{name}: the last entry is not closed by '}}'")
    keys = [entry.key for entry in entries]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ConfigError(f"{name}: more than one entry has the key {', '.join(twice)}")
    return tuple(entries)


def balanced(value: str) -> bool:
    """Whether every brace of a value has its partner."""
    depth = 0
    # An escaped brace is a sign of the text.
    for brace in re.findall(r"(?<!\\)[{}]", value):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


@cache
def entries() -> Mapping[str, Entry]:
    """Return the bibliography that ships with `maury`, by key."""
    found = parse(BIBLIOGRAPHY.read_text("utf-8"), name=BIBLIOGRAPHY.name)
    return MappingProxyType({entry.key: entry for entry in found})


def select(keys: Iterable[str]) -> tuple[Entry, ...]:
    """Return the entries of these keys, each once, in the order of their first mention.

    Raises
    ------
    UnknownName
        If there is no such entry.
    """
    known = entries()
    return tuple(known[check_known("bibliography key", key, known)] for key in dict.fromkeys(keys))


def keys_about(topic: str) -> tuple[str, ...]:
    """Return the keys of the entries about a topic."""
    return tuple(key for key, entry in entries().items() if topic in entry.topics)


_ACCENTS = {"'": "\u0301", "`": "\u0300", '"': "\u0308", "^": "\u0302", "~": "\u0303"}


def plain(text: str) -> str:
    r"""Turn the LaTeX of a field into text: accents, escaped signs, braces.

    Examples
    --------
    >>> plain(r"Sch{\"o}nrich, R.")
    'Schönrich, R.'
    """
    import unicodedata

    def accented(match: re.Match[str]) -> str:
        # LaTeX puts accents on an i without dot; a composed letter has lost its dot already.
        letter = "i" if match[2] == r"\i" else match[2]
        return unicodedata.normalize("NFC", letter + _ACCENTS[match[1]])

    text = re.sub(r"\{?\\(['`\"^~])\{?(\\i|\w)\}?\}?", accented, text)
    return re.sub(r"[{}]", "", re.sub(r"\\([&%_#$])", r"\1", text))
