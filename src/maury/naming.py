"""Names that users type: look one up, or say which was meant."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice

from maury.errors import UnknownName

_LONGEST, _MOST = 64, 2000


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    # The comparison takes the product of lengths for each name, and names may come from files.
    if len(name) > _LONGEST:
        return ""
    names = [other for other in islice(known, _MOST) if len(other) <= _LONGEST]
    close = get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def printable(text: str) -> str:
    r"""Return a text in which what could steer a terminal is written out; lines stay lines.

    Names of columns and files may come from anywhere.

    Examples
    --------
    >>> printable("a\x1b[31m b")
    'a\\x1b[31m b'
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def check_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`.

    Raises
    ------
    UnknownName
        With the list of known names and the nearest of them.
    """
    known = list(known)
    if name not in known:
        raise UnknownName(
            f"unknown {what} {name!r}{suggestion(name, known)} (known: {', '.join(known)})"
        )
    return name
