"""Selections by expression, such as ``m_h < -1 & snr > 40``: a small language of its own.

What a user writes is never run as code: it is parsed here, and only arithmetic and comparisons of
columns are computed. A value that is missing makes a comparison unknown, which neither it nor its
opposite passes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from maury.errors import MauryError, suggestion
from maury.io.arrays import AnyArray, BoolArray
from maury.labels.flags import Flag

MOST_CHARACTERS = 500
"""Of an expression: it travels in an address."""
# Brackets and signs within one another: deeper than anyone reads, far from Python's own limit.
_DEEPEST = 30
_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<name>[A-Za-z_]\w*)"
    r"|(?P<sign><=|>=|==|!=|&&|\|\||[-+*/()<>=&|!~]))",
    re.ASCII,
)
_WORDS = {"and": "&", "or": "|", "not": "!", "&&": "&", "||": "|", "~": "!", "=": "=="}
_COMPARISONS: Mapping[str, Callable[..., Any]] = {
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
    "==": np.equal,
    "!=": np.not_equal,
}
_ARITHMETIC: Mapping[str, Callable[..., Any]] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
}
Columns = Mapping[str, AnyArray]


class ExpressionError(MauryError):
    """A selection cannot be read: correct it where the message points to."""


class Truth(NamedTuple):
    """Rows that pass a condition, and rows that pass its opposite; others are unknown."""

    yes: BoolArray
    no: BoolArray


@dataclass(frozen=True)
class _Node:
    """A part of an expression: a number or a truth of each row."""

    is_truth: bool
    of: Callable[[Columns], Any]
    """Of columns: an array of float64, or a `Truth`."""


@dataclass(frozen=True)
class Expression:
    """A condition on the columns of a catalogue.

    Attributes
    ----------
    text : str
    names : tuple of str
        Columns that it needs; ``flags`` where it names a flag.
    """

    text: str
    names: tuple[str, ...]
    _root: _Node

    def passes(self, columns: Columns) -> BoolArray:
        """Return which rows pass, (n,), of columns of n numbers or truth values each."""
        with np.errstate(all="ignore"):
            found: Truth = self._root.of(columns)
        n_row = len(next(iter(columns.values())))
        return np.broadcast_to(found.yes, n_row).copy()


def parse(text: str, *, numbers: Mapping[str, str], flags: Mapping[str, int]) -> Expression:
    """Read a selection.

    Parameters
    ----------
    text : str
        Columns, numbers, ``+ - * /``, comparisons (also ``0 < x < 1``), ``&`` ``|`` ``!``, the same
        in words (and, or, not), brackets; a flag by its name.
    numbers : mapping of str to str
        Columns that may be used, with their kind; those of kind ``"bool"`` are conditions.
    flags : mapping of str to int
        Bit mask of each flag.

    Raises
    ------
    ExpressionError
        Saying what is wrong, and where.
    """
    if len(text) > MOST_CHARACTERS:
        raise ExpressionError(
            f"a selection has {MOST_CHARACTERS} characters at most, got {len(text)}; shorten it"
        )
    parser = _Parser(text, numbers, flags)
    root = parser.either()
    parser.end()
    if not root.is_truth:
        raise ExpressionError(
            f"{text!r} is a number, not a condition; compare it, as in 'snr > 40'"
        )
    if not parser.used:
        raise ExpressionError(f"{text!r} names no column; name one, as in 'snr > 40'")
    return Expression(text, tuple(parser.used), root)


def parse_selection(text: str, kinds: Mapping[str, str]) -> Expression:
    """Read a selection of rows of a catalogue, by its columns of numbers and its flags.

    Parameters
    ----------
    text : str
        As of `parse`.
    kinds : mapping of str to str
        Kind of each column (`maury.labels.columns.Column.kind`); texts and lists take no part, and
        flags go by their names.

    Raises
    ------
    ExpressionError
        Saying what is wrong, and where.
    """
    numbers = {
        name: kind
        for name, kind in kinds.items()
        if kind not in ("str", "other") and name != "flags"
    }
    return parse(text, numbers=numbers, flags={str(flag.name): flag.value for flag in Flag})


class _Parser:
    """Recursive descent: a method for each rank of operators, the weakest first."""

    def __init__(self, text: str, numbers: Mapping[str, str], flags: Mapping[str, int]) -> None:
        self._text, self._numbers, self._flags = text, numbers, flags
        self._tokens = list(_tokens(text))
        self._place = 0
        self._depth = 0
        self.used: dict[str, None] = {}

    def either(self) -> _Node:
        """Read conditions joined by ``|``."""
        left = self._both()
        while self._take("|"):
            left = self._join(left, self._both(), "|")
        return left

    def end(self) -> None:
        """Refuse what follows a whole expression."""
        if self._place < len(self._tokens):
            raise self._wrong("is not understood here; join conditions by & or |")

    def _both(self) -> _Node:
        left = self._opposite()
        while self._take("&"):
            left = self._join(left, self._opposite(), "&")
        return left

    def _opposite(self) -> _Node:
        if not self._take("!"):
            return self._comparison()
        with_depth = self._deeper(self._opposite)
        inner = self._truth(with_depth, "!").of
        return _Node(True, lambda columns: Truth(*reversed(inner(columns))))

    def _comparison(self) -> _Node:
        left = self._sum()
        found: _Node | None = None
        while (sign := self._peek()) in _COMPARISONS:
            self._place += 1
            right = self._sum()
            pair = self._number(left, sign), self._number(right, sign)
            one = _compared(_COMPARISONS[sign], *pair)
            found, left = one if found is None else self._join(found, one, "&"), right
        return found or left

    def _sum(self) -> _Node:
        return self._chain(self._product, ("+", "-"))

    def _product(self) -> _Node:
        return self._chain(self._signed, ("*", "/"))

    def _chain(self, part: Callable[[], _Node], signs: tuple[str, str]) -> _Node:
        left = part()
        while (sign := self._peek()) in signs:
            self._place += 1
            right = part()
            pair = self._number(left, sign), self._number(right, sign)
            left = _computed(_ARITHMETIC[sign], *pair)
        return left

    def _signed(self) -> _Node:
        if self._take("+"):
            return self._number(self._deeper(self._signed), "+")
        if not self._take("-"):
            return self._atom()
        inner = self._number(self._deeper(self._signed), "-").of
        return _Node(False, lambda columns: -inner(columns))

    def _atom(self) -> _Node:
        if self._take("("):
            inner = self._deeper(self.either)
            if not self._take(")"):
                raise self._wrong("stands where ) is missing")
            return inner
        if self._place == len(self._tokens):
            raise self._wrong("")
        kind, word, _ = self._tokens[self._place]
        if kind == "number":
            self._place += 1
            value = np.float64(word)
            return _Node(False, lambda columns: value)
        if kind != "name" or word in _WORDS:
            raise self._wrong("stands where a column or a number is missing")
        return self._named(word)

    def _named(self, name: str) -> _Node:
        if name in self._flags:
            self._place += 1
            self.used["flags"] = None
            mask = self._flags[name]
            return _Node(True, lambda columns: _known((columns["flags"] & mask) != 0))
        if name not in self._numbers:
            known = [*self._numbers, *self._flags]
            raise self._wrong(f"is no column of numbers and no flag{suggestion(name, known)}")
        self._place += 1
        self.used[name] = None
        if self._numbers[name] == "bool":
            return _Node(True, lambda columns: _known(columns[name].astype(np.bool_)))
        return _Node(False, lambda columns: columns[name].astype(np.float64))

    def _join(self, left: _Node, right: _Node, sign: str) -> _Node:
        one, other = self._truth(left, sign).of, self._truth(right, sign).of
        join = _and if sign == "&" else _or
        return _Node(True, lambda columns: join(one(columns), other(columns)))

    def _deeper(self, read: Callable[[], _Node]) -> _Node:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise ExpressionError(
                f"more than {_DEEPEST} brackets within one another; write it flat"
            )
        found = read()
        self._depth -= 1
        return found

    def _truth(self, node: _Node, sign: str) -> _Node:
        if not node.is_truth:
            raise self._wrong(f"follows a number where {sign} needs a condition, as in 'snr > 40'")
        return node

    def _number(self, node: _Node, sign: str) -> _Node:
        if node.is_truth:
            raise self._wrong(f"follows a condition where {sign} needs a number")
        return node

    def _peek(self) -> str:
        if self._place == len(self._tokens):
            return ""
        word = self._tokens[self._place][1]
        return _WORDS.get(word, word)

    def _take(self, sign: str) -> bool:
        found = self._peek() == sign
        self._place += found
        return found

    def _wrong(self, why: str) -> ExpressionError:
        if self._place >= len(self._tokens):
            why = why.removeprefix("stands ").removeprefix("follows ") or "something is missing"
            return ExpressionError(f"the selection ends too early: {why}")
        _, word, place = self._tokens[self._place]
        return ExpressionError(f"{word!r} at character {place + 1} {why}")


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield kind, text and place of each word, number and sign."""
    place, end = 0, len(text.rstrip())
    while place < end:
        found = _TOKEN.match(text, place)
        if found is None:
            wrong = place + len(text[place:]) - len(text[place:].lstrip())
            raise ExpressionError(
                f"{text[wrong]!r} at character {wrong + 1} is no part of a selection; it has "
                "columns, numbers, + - * / < <= > >= == != & | ! and brackets"
            )
        kind = str(found.lastgroup)
        yield kind, found[kind], found.start(kind)
        place = found.end()


def _compared(compare: Callable[..., Any], left: _Node, right: _Node) -> _Node:
    def of(columns: Columns) -> Truth:
        one, other = left.of(columns), right.of(columns)
        known = np.isfinite(one) & np.isfinite(other)
        found = compare(one, other)
        return Truth(found & known, ~found & known)

    return _Node(True, of)


def _computed(compute: Callable[..., Any], left: _Node, right: _Node) -> _Node:
    return _Node(False, lambda columns: compute(left.of(columns), right.of(columns)))


def _known(yes: BoolArray) -> Truth:
    return Truth(yes, ~yes)


def _and(left: Truth, right: Truth) -> Truth:
    return Truth(left.yes & right.yes, left.no | right.no)


def _or(left: Truth, right: Truth) -> Truth:
    return Truth(left.yes | right.yes, left.no & right.no)
