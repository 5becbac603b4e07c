"""What a match of two catalogues is, and what it says of itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntFlag
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array
from maury.spectra.rows import row_numbers


class MatchFlag(IntFlag):
    """One bit of why a left row is matched as it is; ``text`` says it in words."""

    text: str

    def __new__(cls, bit: int, text: str = "") -> Self:
        """Make the flag of bit number `bit`."""
        flag = int.__new__(cls, 1 << bit)
        flag._value_ = 1 << bit
        flag.text = text
        return flag

    NO_POSITION = 0, "no usable position"
    NO_IDENTIFIER = 1, "no identifier"
    NONE_FOUND = 2, "no candidate"
    SEVERAL = 3, "several candidates"
    AMBIGUOUS = 4, "several candidates, none of them clearly the nearest"
    CLAIMED = 5, "another row is matched to the same star"
    DROPPED = 6, "had candidates, and the policy leaves it unmatched"
    BY_MAGNITUDE = 7, "candidates of another magnitude were set aside"
    NOT_MOVED = 8, "epochs differ, and no proper motion is known"
    FAR = 9, "identifiers agree, positions do not"


DOUBTFUL = MatchFlag.AMBIGUOUS | MatchFlag.CLAIMED | MatchFlag.FAR
"""A match with one of these is not certain."""


@dataclass(frozen=True)
class MatchReport:
    """What a match did, in numbers.

    Attributes
    ----------
    settings : dict
        All that determined it: method, radius, epoch, policies.
    n_left, n_right, n_matched, n_certain : int
        Rows; certain are the matched ones without a doubt.
    counts : dict of str to int
        Left rows under each flag, by the name of `MatchFlag`.
    median_arcsec : float
        Median separation of the matched, NaN if none is known.
    """

    settings: dict[str, Any]
    n_left: int
    n_right: int
    n_matched: int
    n_certain: int
    counts: dict[str, int]
    median_arcsec: float

    def rows(self) -> list[tuple[str, str, str]]:
        """Return (what, how many, why) for a table, with a header."""
        head = [
            ("", "stars", "reason"),
            ("left", str(self.n_left), ""),
            ("right", str(self.n_right), ""),
            ("matched", str(self.n_matched), ""),
            ("certain", str(self.n_certain), "matched, one candidate or clearly the nearest"),
        ]
        flags = [(name, str(n), MatchFlag[name].text) for name, n in self.counts.items() if n]
        return head + flags

    def __str__(self) -> str:
        settings = ", ".join(f"{k}={v}" for k, v in self.settings.items() if v is not None)
        return (
            f"{self.n_matched} of {self.n_left} stars matched ({self.n_certain} certain) "
            f"to {self.n_right}: {settings}"
        )


@dataclass(frozen=True, eq=False)
class Match:
    """For each left row, the right one.

    Attributes
    ----------
    index : (n_left,) int64
        Row of the right catalogue, or -1.
    separation_arcsec : (n_left,) float64
        Great-circle distance to it at the common epoch; NaN where unmatched or unknown.
    n_candidate : (n_left,) int64
        How many right rows could have been it.
    next_arcsec : (n_left,) float64
        Distance to the second candidate; NaN if there is none or it is unknown.
    flags : (n_left,) int32
        Bit masks of `MatchFlag`.
    n_right : int
        Rows of the right catalogue.
    settings : dict
        All that determined the match.
    """

    index: Int64Array
    separation_arcsec: Float64Array
    n_candidate: Int64Array
    next_arcsec: Float64Array
    flags: Int32Array
    n_right: int
    settings: dict[str, Any]

    def __len__(self) -> int:
        return int(self.index.size)

    @property
    def matched(self) -> BoolArray:
        """Whether a row has a partner, shape (n_left,)."""
        return np.asarray(self.index >= 0)

    @property
    def certain(self) -> BoolArray:
        """Whether a row has a partner that no flag puts in doubt, shape (n_left,)."""
        return self.matched & ~self.has(DOUBTFUL)

    def has(self, flag: MatchFlag) -> BoolArray:
        """Whether any bit of `flag` is set, shape (n_left,)."""
        return np.asarray((self.flags & flag.value) != 0)

    def take(self, values: ArrayLike, missing: Any = np.nan) -> AnyArray:
        """Return a column (n_right,) of the right catalogue in left order, `missing` if none."""
        column = np.asarray(values)
        if len(column) != self.n_right:
            raise LengthMismatch(
                f"the column has {len(column)} rows, the right catalogue {self.n_right}; "
                "give a column of the right catalogue"
            )
        # There is no row 0 to stand in for a missing one.
        if self.n_right == 0:
            return np.full(len(self), missing)
        # Row 0 stands in where there is no partner, and is replaced.
        return np.where(self.matched, column[np.maximum(self.index, 0)], missing)

    def reasons(self, row: int) -> list[str]:
        """Return the reasons of one left row, in words; a negative one counts from the end."""
        flags = self.flags[row_numbers(row, len(self), what="the match")[0]]
        return [flag.text for flag in MatchFlag if flags & flag.value]

    def report(self) -> MatchReport:
        """Return what the match did, in numbers."""
        known = self.separation_arcsec[np.isfinite(self.separation_arcsec)]
        return MatchReport(
            settings=dict(self.settings),
            n_left=len(self),
            n_right=self.n_right,
            n_matched=int(np.count_nonzero(self.matched)),
            n_certain=int(np.count_nonzero(self.certain)),
            counts={str(f.name): int(np.count_nonzero(self.has(f))) for f in MatchFlag},
            median_arcsec=float(np.median(known)) if known.size else float("nan"),
        )


def fill(first: Match, second: Match) -> Match:
    """Return `first`, where rows without a candidate are those of `second`.

    Rows that then share a partner are flagged `CLAIMED`, whatever the policies were.

    Raises
    ------
    LengthMismatch
        If the two are not of the same catalogues.
    """
    if (len(first), first.n_right) != (len(second), second.n_right):
        raise LengthMismatch(
            f"matches of {len(first)} with {first.n_right} rows and of {len(second)} with "
            f"{second.n_right}; match the same catalogues"
        )
    names = ("index", "separation_arcsec", "n_candidate", "next_arcsec", "flags")
    # Not every row without a partner: what a policy dropped must not get another one.
    free = first.n_candidate == 0
    both = {name: np.where(free, getattr(second, name), getattr(first, name)) for name in names}
    # Each match looked at its own rows; together they may give one partner twice.
    claimed = claims(both["index"], first.n_right) > 1
    both["flags"] = np.where(claimed, both["flags"] | MatchFlag.CLAIMED.value, both["flags"])
    both["flags"] = both["flags"].astype(np.int32)
    settings = {"method": "fill", "first": first.settings, "second": second.settings}
    return replace(first, **both, settings=settings)


def claims(index: Int64Array, n_right: int) -> Int64Array:
    """Return how many left rows share the partner of each, 0 where there is none."""
    per_right = np.bincount(index[index >= 0], minlength=max(n_right, 1))
    return np.asarray(np.where(index >= 0, per_right[np.maximum(index, 0)], 0))
