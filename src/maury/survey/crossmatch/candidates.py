"""Which pairs of stars may be one, and which of them is nearest."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
from scipy.spatial import cKDTree

from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int32Array, Int64Array
from maury.spectra.positions import (
    ARCSEC,
    Positions,
    unit,
)
from maury.survey.crossmatch.matches import Match, MatchFlag, claims

logger = logging.getLogger(__name__)
_SAME_EPOCH_YR = 0.01
"""Four days: the fastest star known moves by .1 arcsec in it, which is no reason for a flag."""
_BLOCK = 1 << 17
"""Left rows whose candidates are held at a time: at one or two each, some 10 MB."""
_MOST_PAIRS = 1 << 22
"""Pairs that are held at once: 32 for each row of a block, some 500 MB with all that is computed of
them. More of them are a crowd at one place."""
_SAMPLE = 2048
"""Left rows by which pairs are estimated: a crowd of 3000 rows, 9 million pairs, has some 50."""
MOST_CANDIDATES = 100
"""Candidates of a row in a crowd, the nearest ones. Chosen, not measured: nobody tells one star of
a hundred by its position."""


@dataclass(frozen=True, eq=False)
class _Side:
    """Usable rows of a catalogue, at the common epoch."""

    rows: Int64Array
    at: Float64Array
    velocity: Float64Array
    moving: BoolArray
    years: Float64Array
    """From the common epoch to that of each row, 0 where unknown."""
    magnitude: Float64Array

    @classmethod
    def of(cls, positions: Positions, epoch_yr: float, *, keep_all: bool) -> Self:
        chosen = positions if keep_all else positions.take(positions.usable)
        rows = np.arange(len(positions)) if keep_all else np.flatnonzero(positions.usable)
        at, velocity = chosen.start()
        # A row of unknown epoch is compared as it was measured.
        years = np.nan_to_num(np.asarray(chosen.epoch_yr) - epoch_yr)
        at = unit(at - velocity * years[:, None])
        magnitude = np.asarray(chosen.magnitude)
        return cls(rows, at, velocity, chosen.moving, years, magnitude)

    def margin(self, other: _Side) -> Float64Array:
        """Angle by which a row may have to move on to meet one that cannot move, (n,)."""
        # A star that moves meets one that cannot at the epoch of that one, not at the common one.
        still = np.abs(other.years[~other.moving])
        return np.asarray(np.linalg.norm(self.velocity, axis=1) * still.max(initial=0.0))


@dataclass(frozen=True, eq=False)
class Pairing:
    """Two catalogues at one epoch; pairs are given by their usable rows."""

    left: _Side
    right: _Side

    @classmethod
    def of(
        cls, left: Positions, right: Positions, epoch_yr: float, *, keep_all: bool = False
    ) -> Self:
        """Move both to one epoch; rows without a position are left out, unless `keep_all`."""
        return cls(
            _Side.of(left, epoch_yr, keep_all=keep_all),
            _Side.of(right, epoch_yr, keep_all=keep_all),
        )

    def near(self, radius_arcsec: float) -> Iterator[tuple[Int64Array, Int64Array]]:
        """Yield pairs of usable rows that hold all within the radius, a block of left rows each."""
        radius = radius_arcsec * ARCSEC
        trees = [
            _Tree.of(self.right.at, part, wide)
            for part, wide in _by_margin(self.right.margin(self.left), radius)
        ]
        if not trees:
            return
        for part, wide in _by_margin(self.left.margin(self.right), radius):
            for start in range(0, part.size, _BLOCK):
                yield from _block_pairs(
                    self.left.at, part[start : start + _BLOCK], trees, radius + wide
                )

    def separation_arcsec(self, i: Int64Array, j: Int64Array) -> Float64Array:
        """Great-circle distance of pairs, where both can be compared, shape of `i`."""
        left, right = self.left, self.right
        a, b = left.at[i], right.at[j]
        on = left.moving[i] & ~right.moving[j]
        if on.any():
            a[on] = unit(a[on] + left.velocity[i[on]] * right.years[j[on], None])
        on = right.moving[j] & ~left.moving[i]
        if on.any():
            b[on] = unit(b[on] + right.velocity[j[on]] * left.years[i[on], None])
        chord = np.linalg.norm(a - b, axis=1)
        # By the chord, which keeps its digits at arcseconds, where cosines are 1 but for rounding.
        return np.asarray(2.0 * np.arcsin(np.minimum(chord / 2.0, 1.0)) / ARCSEC)

    def unmoved(self, i: Int64Array, j: Int64Array) -> BoolArray:
        """Whether the stars of pairs were compared at different epochs."""
        apart = np.abs(self.left.years[i] - self.right.years[j]) > _SAME_EPOCH_YR
        return np.asarray(apart & ~self.left.moving[i] & ~self.right.moving[j])

    def unlike(self, i: Int64Array, j: Int64Array, tolerance: float) -> BoolArray:
        """Whether the magnitudes of pairs are known and differ."""
        return np.asarray(
            np.abs(self.left.magnitude[i] - self.right.magnitude[j]) > tolerance, dtype=np.bool_
        )


@dataclass(frozen=True, eq=False)
class Best:
    """The two nearest candidates of each left row, filled in block by block."""

    index: Int64Array
    count: Int64Array
    first: Float64Array
    second: Float64Array
    flags: Int32Array

    @classmethod
    def empty(cls, n: int) -> Self:
        """Return the candidates of no pair, for `n` left rows."""
        return cls(
            np.full(n, -1),
            np.zeros(n, np.int64),
            np.full(n, np.nan),
            np.full(n, np.nan),
            np.zeros(n, np.int32),
        )

    def enter(
        self,
        i: Int64Array,
        j: Int64Array,
        separation: Float64Array,
        pairing: Pairing | None = None,
        tolerance: float | None = None,
    ) -> None:
        """Enter all candidates of some left rows, as pairs."""
        # At equal distance the lower row is first: the result must not depend on the order of
        # pairs.
        order = np.lexsort((j, separation, i))
        i, j, separation = i[order], j[order], separation[order]
        rows, right_rows = i, j
        if pairing is not None:
            rows, right_rows = pairing.left.rows[i], pairing.right.rows[j]
            if tolerance is not None:
                kept = self._kept(rows, pairing.unlike(i, j, tolerance))
                i, j, separation = i[kept], j[kept], separation[kept]
                rows, right_rows = rows[kept], right_rows[kept]
        starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]) if rows.size else rows
        counts = np.diff(np.r_[starts, rows.size])
        at = rows[starts]
        self.index[at] = right_rows[starts]
        self.count[at] = counts
        self.first[at] = separation[starts]
        several = counts > 1
        self.second[at[several]] = separation[starts[several] + 1]
        if pairing is not None:
            unmoved = pairing.unmoved(i[starts], j[starts])
            self.flags[at[unmoved]] |= MatchFlag.NOT_MOVED.value

    def _kept(self, rows: Int64Array, unlike: BoolArray) -> BoolArray:
        """Which pairs stay when those of another magnitude go, unless all of a row would."""
        alike = np.zeros(self.count.size, np.bool_)
        alike[rows[~unlike]] = True
        gone = unlike & alike[rows]
        self.flags[rows[gone]] |= MatchFlag.BY_MAGNITUDE.value
        return ~gone

    def decide(self, flags: AnyArray, n_right: int, settings: dict[str, Any]) -> Match:
        """Apply the policies."""
        index, flags = self.index.copy(), (flags | self.flags).astype(np.int32)
        crowded = int(np.count_nonzero(self.count >= MOST_CANDIDATES))
        if crowded:
            logger.warning(
                "%d rows have %d candidates or more at one place or of one identifier; in a crowd "
                "no more are looked at",
                crowded,
                MOST_CANDIDATES,
            )
        several = self.count > 1
        flags[several] |= MatchFlag.SEVERAL.value
        lead = settings["lead_arcsec"]
        # Not `<`: an unknown distance, NaN, must leave a match in doubt.
        doubtful = several if lead is None else several & ~(self.second - self.first >= lead)
        if settings["ambiguous"] != "nearest":
            flags[doubtful] |= MatchFlag.AMBIGUOUS.value
        dropped = doubtful & (settings["ambiguous"] == "drop")
        index[dropped] = -1
        claimed = claims(index, n_right) > 1
        flags[claimed] |= MatchFlag.CLAIMED.value
        lost = claimed & (settings["duplicates"] == "drop")
        if settings["duplicates"] == "nearest":
            winners = _nearest_claims(index, self.first, claimed)
            lost = claimed.copy()
            lost[winners] = False
            flags[winners] &= ~MatchFlag.CLAIMED.value
        index[lost] = -1
        flags[dropped | lost] |= MatchFlag.DROPPED.value
        matched = index >= 0
        return Match(
            index=index,
            separation_arcsec=np.where(matched, self.first, np.nan),
            n_candidate=self.count,
            next_arcsec=self.second,
            flags=flags,
            n_right=n_right,
            settings=settings,
        )


@dataclass(frozen=True, eq=False)
class _Tree:
    """Some rows of the right catalogue, and by how much their search is wider."""

    rows: Int64Array
    tree: cKDTree
    wider: float

    @classmethod
    def of(cls, at: Float64Array, rows: Int64Array, wider: float) -> Self:
        # Balancing takes longer than it saves in one search of the whole sky.
        return cls(rows, cKDTree(at[rows], compact_nodes=False, balanced_tree=False), wider)

    def chord(self, radius: float) -> float:
        # Rounding must not lose a pair at exactly the radius.
        return float(2.0 * np.sin(min(radius + self.wider, np.pi) / 2.0) + 1e-15)

    @cached_property
    def thinned(self) -> _Tree:
        """The same with at most `MOST_CANDIDATES` rows at one place.

        A tree cannot part rows that coincide, and would look at all of them in each search.
        """
        at = np.asarray(self.tree.data)
        order = np.lexsort(at.T)
        new = np.r_[True, np.any(np.diff(at[order], axis=0) != 0.0, axis=1)]
        starts = np.flatnonzero(new)
        rank = np.arange(order.size) - np.repeat(starts, np.diff(np.r_[starts, order.size]))
        kept = np.sort(order[rank < MOST_CANDIDATES])
        return _Tree(self.rows[kept], cKDTree(at[kept]), self.wider)


def _block_pairs(
    at: Float64Array, rows: Int64Array, trees: Sequence[_Tree], radius: float
) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield pairs of some left rows with the rows of trees within a radius.

    In a crowd they are pairs with the nearest of each tree, in as many blocks as memory asks for.
    """
    # To count all pairs takes half as long as to list them, so that a sample has to tell.
    sample = at[rows[:: max(1, rows.size // _SAMPLE)]]
    near = sum(
        one.tree.query_ball_point(sample, one.chord(radius), return_length=True).sum()
        for one in trees
    )
    if near * (rows.size / len(sample)) <= _MOST_PAIRS:
        tree = cKDTree(at[rows], compact_nodes=False, balanced_tree=False)
        found = []
        for one in trees:
            pairs = tree.sparse_distance_matrix(one.tree, one.chord(radius), output_type="ndarray")
            found.append((rows[pairs["i"]], one.rows[pairs["j"]]))
        yield np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])
        return
    for start in range(0, rows.size, _MOST_PAIRS // MOST_CANDIDATES):
        block = rows[start : start + _MOST_PAIRS // MOST_CANDIDATES]
        found = []
        for one in (some.thinned for some in trees):
            most = range(1, min(MOST_CANDIDATES, one.tree.n) + 1)
            near = one.tree.query(at[block], k=most, distance_upper_bound=one.chord(radius))[1]
            i, rank = np.nonzero(near < one.tree.n)
            found.append((block[i], one.rows[near[i, rank]]))
        yield np.concatenate([i for i, _ in found]), np.concatenate([j for _, j in found])


def _by_margin(margin: Float64Array, radius: float) -> Iterator[tuple[Int64Array, float]]:
    """Yield rows of like margins, and the largest of them: few fast stars widen no other search."""
    if margin.size == 0:
        return
    step = np.ceil(np.log(np.maximum(margin / (0.25 * radius), 1.0)) / np.log(4.0))
    for one in np.unique(step):
        part = np.flatnonzero(step == one)
        yield part, float(margin[part].max())


def _nearest_claims(index: Int64Array, first: Float64Array, claimed: BoolArray) -> Int64Array:
    """Left rows that are nearest to the partner they share."""
    rows = np.flatnonzero(claimed)
    rows = rows[np.lexsort((rows, first[rows], index[rows]))]
    shared = index[rows]
    return rows[np.r_[True, shared[1:] != shared[:-1]]] if rows.size else rows
