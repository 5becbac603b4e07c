"""Cuts of a catalogue: a small declarative grammar, applied row by row, with a reason each.

A condition names one column and what its value must be. A missing value (NaN, masked, an empty
text, or a number that the recipe counts as missing) fails every condition, unless the condition
says ``missing = "pass"``. Nothing in a cut is ever evaluated as code.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import (
    AfterValidator,
    Field,
    StrictBool,
    StrictFloat,
    StrictInt,
    StrictStr,
    field_validator,
)
from pydantic import model_validator as after

from maury.errors import ColumnError
from maury.io.arrays import AnyArray, BoolArray, StrArray
from maury.io.source_table import SourceTable
from maury.survey.archives.quantities import QUANTITIES, known_quantity
from maury.survey.readers.config import Strict
from maury.survey.readers.values import stands_for_missing

Value = StrictBool | StrictInt | StrictFloat | StrictStr
Bit = Annotated[int, Field(ge=0, le=63, strict=True)]

_TESTS = (
    *("min", "max", "above", "below", "equals", "not_equals", "one_of", "none_of"),
    *("bits_clear", "bits_set", "finite"),
)
_RANGE = {"min", "max", "above", "below"}


class Condition(Strict):
    """What one value of each row must be, or several conditions joined by `any` or `all`.

    Attributes
    ----------
    column : str
        Name of the column; with `index` the element (from 0) of a vector.
    quantity : str
        In place of a column, one of `maury.survey.archives.quantities.QUANTITIES`, which is made
        of several.
    min, max : float
        At least, at most (both may be given).
    above, below : float
        More than, less than.
    equals, not_equals : bool, number or str
    one_of, none_of : list of the same
    bits_clear, bits_set : list of int, or mapping of a bit's name to its number
        Bits (from 0) of an integer that must all be 0, or all be 1.
    finite : bool
        True: a finite number; false: a missing one.
    missing : {"fail", "pass"}
        What becomes of a row without a value. Not used by `finite`.
    any, all : list of Condition
    """

    column: str | None = None
    quantity: Annotated[str, AfterValidator(known_quantity)] | None = None
    index: Annotated[int, Field(ge=0, strict=True)] | None = None
    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None
    equals: Value | None = None
    not_equals: Value | None = None
    one_of: tuple[Value, ...] | None = None
    none_of: tuple[Value, ...] | None = None
    bits_clear: dict[str, Bit] | None = None
    bits_set: dict[str, Bit] | None = None
    finite: StrictBool | None = None
    missing: Literal["fail", "pass"] = "fail"
    any: tuple["Condition", ...] | None = None
    all: tuple["Condition", ...] | None = None

    @field_validator("bits_clear", "bits_set", mode="before")
    @classmethod
    def _named(cls, given: Any) -> Any:
        if isinstance(given, list | tuple):
            return {f"bit {number}": number for number in given}
        return given

    @after(mode="after")
    def _one_thing(self) -> Self:
        tests = {name for name in _TESTS if getattr(self, name) is not None}
        # One level joins in one way; nesting gives the rest, without rules of precedence.
        joined = [name for name in ("any", "all") if getattr(self, name) is not None]
        if joined:
            if len(joined) > 1 or tests or self.column or self.quantity:
                raise ValueError("give one of 'any', 'all', or a column with a condition")
            if not getattr(self, joined[0]):
                raise ValueError(f"'{joined[0]}' must list at least one condition")
        elif (self.column is None) == (self.quantity is None):
            raise ValueError("give a 'column' or a 'quantity', or conditions in 'any' or 'all'")
        elif not tests or (len(tests) > 1 and not tests <= _RANGE):
            raise ValueError(f"give one condition of {', '.join(_TESTS)} for {self._name!r}")
        return self

    @property
    def _name(self) -> str:
        return self.column or self.quantity or ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column that is looked at, each once."""
        inner = [name for part in (self.any or self.all or ()) for name in part.columns]
        if self.quantity is not None:
            return QUANTITIES[self.quantity].columns
        return tuple(dict.fromkeys([self.column] if self.column is not None else inner))

    def __str__(self) -> str:
        if self.any or self.all:
            word = " or " if self.any else " and "
            return word.join(f"({part})" for part in (self.any or self.all or ()))
        name = self._name if self.index is None else f"{self._name}[{self.index}]"
        return f"{name} {self._test_in_words()}"

    def _test_in_words(self) -> str:
        signs = {"min": ">=", "max": "<=", "above": ">", "below": "<"}
        parts = [
            f"{sign} {v:g}" for n, sign in signs.items() if (v := getattr(self, n)) is not None
        ]
        for name, sign in (("equals", "="), ("not_equals", "!=")):
            if (value := getattr(self, name)) is not None:
                parts.append(f"{sign} {value}")
        for name, word in (("one_of", "one of"), ("none_of", "none of")):
            if (values := getattr(self, name)) is not None:
                parts.append(f"{word} {', '.join(map(str, values))}")
        for name, word in (("bits_clear", "without"), ("bits_set", "with")):
            if (bits := getattr(self, name)) is not None:
                parts.append(f"{word} {', '.join(_bit_in_words(*item) for item in bits.items())}")
        if self.finite is not None:
            return "given" if self.finite else "not given"
        return " and ".join(parts) + (" or missing" if self.missing == "pass" else "")


def _bit_in_words(name: str, number: int) -> str:
    return name if name.startswith("bit ") else f"{name} (bit {number})"


class Cut(Condition):
    """A condition with a name, a reason, and where it is recommended.

    Attributes
    ----------
    name : str
        Short, for the flow table and for switching it off.
    why : str
        What it removes.
    source : str
        Bibliography key or web page that recommends it.
    default : bool
        Whether it is applied unless a user says otherwise.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    why: str
    source: str
    default: bool = True


@dataclass(frozen=True)
class CutResult:
    """What a condition says of each row.

    Attributes
    ----------
    passes : (n_row,) bool
    missing : (n_row,) bool
        Rows without a value that was looked at.
    """

    passes: BoolArray
    missing: BoolArray


@dataclass(frozen=True)
class Step:
    """One line of the flow table: stars in, stars out, why."""

    name: str
    why: str
    n_in: int
    n_out: int
    n_missing: int

    @property
    def n_removed(self) -> int:
        """Rows that this cut alone still removed after those before it."""
        return self.n_in - self.n_out


@dataclass(frozen=True)
class Selection:
    """Cuts applied to a table.

    Attributes
    ----------
    cuts : tuple of Cut
        In the order in which they were applied.
    results : tuple of CutResult
        Of each cut for all rows, whatever the other cuts say.
    n_row : int
    """

    cuts: tuple[Cut, ...]
    results: tuple[CutResult, ...]
    n_row: int

    @functools.cached_property
    def keep(self) -> BoolArray:
        """Rows that pass every cut, shape (n_row,) bool."""
        passed = [result.passes for result in self.results]
        return np.logical_and.reduce(passed, axis=0) if passed else np.ones(self.n_row, np.bool_)

    @functools.cached_property
    def reasons(self) -> StrArray:
        """Name of the first cut that removes each row, shape (n_row,); empty if it is kept."""
        # From the last cut to the first, so that the first one that removes a row names it.
        out = np.full(self.n_row, "", dtype=np.dtype("U64"))
        for cut, result in zip(reversed(self.cuts), reversed(self.results), strict=True):
            out[~result.passes] = cut.name
        return out

    def flow(self) -> list[Step]:
        """Return the flow table: one step per cut, in order."""
        left = np.ones(self.n_row, np.bool_)
        steps = []
        for cut, result in zip(self.cuts, self.results, strict=True):
            n_in, lost = int(left.sum()), left & result.missing & ~result.passes
            left = left & result.passes
            steps.append(Step(cut.name, cut.why, n_in, int(left.sum()), int(lost.sum())))
        return steps


def apply_cuts(
    cuts: Sequence[Cut], table: SourceTable, *, missing: Sequence[float] | None = None
) -> Selection:
    """Apply cuts to a table.

    Parameters
    ----------
    cuts : sequence of Cut
        In the order of the flow table.
    table : SourceTable
        An open table (`maury.io.tables.open_table`, or `SourceTable.of_arrays`).
    missing : sequence of float, optional
        Numbers that mean "missing" in every column; by default those of
        `maury.survey.readers.values.MISSING`.

    Raises
    ------
    ColumnError
        Naming every column that the table lacks, or one that holds values of another kind.
    """
    require_columns(cuts, table)
    # Each cut looks at all rows, whatever others removed: the reasons of a row are known all.
    results = tuple(judge(cut, table, missing=missing) for cut in cuts)
    return Selection(tuple(cuts), results, table.n_row)


def require_columns(cuts: Iterable[Cut], table: SourceTable) -> None:
    """Raise `ColumnError` naming every column that cuts need and the table lacks."""
    lacking: dict[str, list[str]] = {}
    for cut in cuts:
        for name in cut.columns:
            if name not in table.names:
                lacking.setdefault(name, []).append(cut.name)
    if lacking:
        listed = "; ".join(f"{name!r} (for {', '.join(of)})" for name, of in lacking.items())
        off = dict.fromkeys(cut for of in lacking.values() for cut in of)
        raise ColumnError(
            f"{table.path} lacks columns that cuts need: {listed}; take the table that the recipe "
            f"describes, or leave these cuts out, in a build by "
            f"without = [{', '.join(map(_quoted, off))}] in the [[catalogue]] (it has "
            f"{', '.join(table.names[:40])})"
        )


def _quoted(text: str) -> str:
    return f'"{text}"'


def judge(
    condition: Condition, table: SourceTable, *, missing: Sequence[float] | None = None
) -> CutResult:
    """Return what one condition says of each row.

    Raises
    ------
    ColumnError
        If the table lacks a column, or it holds values of another kind than the condition's.
    """
    parts = condition.any or condition.all
    if parts:
        results = [judge(part, table, missing=missing) for part in parts]
        join = np.logical_or if condition.any else np.logical_and
        return CutResult(
            join.reduce([result.passes for result in results], axis=0),
            np.logical_or.reduce([result.missing for result in results], axis=0),
        )
    kind = "column" if condition.quantity is None else "quantity"
    what = f"{table.path}, {kind} {condition._name!r}"
    values, known = _values(condition, table, missing)
    # Whether a value is given is the question here, so that a missing one does not fail.
    if condition.finite is not None:
        return CutResult(known == condition.finite, ~known)
    passes = np.full(values.size, condition.missing == "pass")
    try:
        passes[known] = _meets(condition, values[known])
    except (TypeError, np.exceptions.DTypePromotionError) as error:
        raise ColumnError(
            f"{what} holds {values.dtype}, which does not go with '{condition}'; correct the cut"
        ) from error
    return CutResult(passes, ~known)


def _values(
    condition: Condition, table: SourceTable, missing: Sequence[float] | None
) -> tuple[AnyArray, BoolArray]:
    """Return the values of a column or quantity, shape (n_row,), and which of them are given."""
    if condition.quantity is not None:
        quantity = QUANTITIES[condition.quantity]
        parts = [table.floats(name) for name in quantity.columns]
        made = quantity.of(
            *(np.where(stands_for_missing(part, missing), np.nan, part) for part in parts)
        )
        # A part that is missing leaves the whole quantity unknown.
        return made, np.isfinite(made)
    masked = table.plain(condition.column or "", index=condition.index)
    values, known = np.ma.getdata(masked), ~np.ma.getmaskarray(masked)
    if values.dtype.kind == "U":
        return values, known & (values != "")
    if values.dtype.kind == "f":
        known = known & np.isfinite(values)
    if values.dtype.kind in "fi":
        known = known & ~stands_for_missing(values, missing)
    return values, known


def _meets(condition: Condition, values: AnyArray) -> BoolArray:
    if condition.bits_clear is not None:
        return np.asarray((_integers(values) & _mask(condition.bits_clear)) == 0)
    if condition.bits_set is not None:
        mask = _mask(condition.bits_set)
        return np.asarray((_integers(values) & mask) == mask)
    for listed, wanted in (
        ((condition.equals,), True),
        (condition.one_of, True),
        ((condition.not_equals,), False),
        (condition.none_of, False),
    ):
        if listed is not None and listed[0:1] != (None,):
            found = np.zeros(values.size, np.bool_)
            for value in listed:
                found |= _equal(values, value)
            return np.asarray(found == wanted)
    return _in_range(condition, values)


def _in_range(condition: Condition, values: AnyArray) -> BoolArray:
    if values.dtype.kind not in "fiub":
        raise TypeError("not a number")
    inside = np.ones(values.size, np.bool_)
    for limit, compare in (
        (condition.min, np.greater_equal),
        (condition.max, np.less_equal),
        (condition.above, np.greater),
        (condition.below, np.less),
    ):
        if limit is not None:
            inside &= compare(values, limit)
    return inside


def _equal(values: AnyArray, value: Any) -> BoolArray:
    # "0" is not 0: a code of digits is text in one format and a number in another.
    if isinstance(value, str) != (values.dtype.kind == "U"):
        raise TypeError("text against number")
    return np.asarray(values == value)


def _integers(values: AnyArray) -> NDArray[np.uint64]:
    """Return whole numbers as their 64 bits, in two's complement."""
    # Tables without integers hold flags as floats, exact up to 2^53.
    if values.dtype.kind == "f":
        if np.any(values != np.floor(values)) or np.any(np.abs(values) >= 2.0**53):
            raise TypeError("not whole numbers")
        values = values.astype(np.int64)
    if values.dtype.kind not in "iub":
        raise TypeError("not whole numbers")
    return (
        values.astype(np.int64).view(np.uint64)
        if values.dtype.kind != "u"
        else values.astype(np.uint64)
    )


def _mask(bits: Mapping[str, int]) -> np.uint64:
    return np.uint64(sum({1 << number for number in bits.values()}))
