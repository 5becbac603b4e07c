"""Matching by position and by identifier."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import ConfigError, IdentifierError, LengthMismatch
from maury.io.arrays import Int64Array
from maury.spectra.positions import Positions as Positions
from maury.spectra.positions import common_epoch
from maury.spectra.star_identity import plain_identifiers
from maury.survey.crossmatch.candidates import MOST_CANDIDATES, Best, Pairing
from maury.survey.crossmatch.matches import Match, MatchFlag

Policy = Literal["flag", "drop", "nearest"]
_LARGEST_RADIUS_ARCSEC = 3600.0
"""A degree: catalogues never differ by more, and chords are still angles."""
_PAIRS_AT_ONCE = 1 << 20
"""Pairs of equal identifiers that are held at once (16 MB)."""


def match_positions(
    left: Positions,
    right: Positions,
    radius_arcsec: float = 2.0,
    *,
    epoch_yr: float | None = None,
    ambiguous: Policy = "flag",
    duplicates: Policy = "flag",
    lead_arcsec: float | None = None,
    magnitude_tolerance: float | None = None,
) -> Match:
    """Match stars that are within a radius of each other at one epoch.

    If one star of a pair has no proper motion, the other is moved to its epoch instead; if neither
    has, they are compared as measured, and flagged `NOT_MOVED` where the epochs differ.

    Parameters
    ----------
    left, right : Positions
    radius_arcsec : float
        Largest separation, in arcseconds, above 0 and at most 3600.
    epoch_yr : float, optional
        Common epoch, a Julian year; by default that of the stars that cannot be moved.
    ambiguous, duplicates : {"flag", "drop", "nearest"}
        What becomes of left rows with several candidates, and of left rows that share a partner.
        ``flag``: the nearest is given, and flagged. ``drop``: unmatched, and flagged. ``nearest``:
        the nearest candidate is taken as certain; the nearest left row keeps the partner, and the
        others are unmatched, and flagged.
    lead_arcsec : float, optional
        Candidates that are farther than the nearest by at least this make no row ambiguous; by
        default every second candidate does.
    magnitude_tolerance : float, optional
        Where some candidates agree in magnitude within this and others do not, the others are set
        aside, and the row is flagged `BY_MAGNITUDE`. A missing magnitude agrees with any.

    Raises
    ------
    ConfigError
        If a setting is out of its range.
    """
    _check_policies(ambiguous, duplicates)
    if not 0.0 < radius_arcsec <= _LARGEST_RADIUS_ARCSEC:
        raise ConfigError(
            f"the radius must be above 0 and at most {_LARGEST_RADIUS_ARCSEC:.0f} arcsec, "
            f"got {radius_arcsec}"
        )
    common = common_epoch(left, right) if epoch_yr is None else float(epoch_yr)
    pairing = Pairing.of(left, right, common)
    best = Best.empty(len(left))
    for i, j in pairing.near(radius_arcsec):
        separation = pairing.separation_arcsec(i, j)
        # The search was wider than the radius, by as much as stars may move.
        inside = separation <= radius_arcsec
        best.enter(i[inside], j[inside], separation[inside], pairing, magnitude_tolerance)
    settings = {
        "method": "position",
        "radius_arcsec": radius_arcsec,
        "epoch_yr": common,
        "ambiguous": ambiguous,
        "duplicates": duplicates,
        "lead_arcsec": lead_arcsec,
        "magnitude_tolerance": magnitude_tolerance,
    }
    flags = np.where(left.usable, 0, MatchFlag.NO_POSITION.value)
    flags[left.usable & (best.count == 0)] |= MatchFlag.NONE_FOUND.value
    return best.decide(flags, len(right), settings)


def match_identifiers(
    left: ArrayLike,
    right: ArrayLike,
    *,
    positions: tuple[Positions, Positions] | None = None,
    radius_arcsec: float | None = None,
    ambiguous: Policy = "flag",
    duplicates: Policy = "flag",
) -> Match:
    """Match rows of equal identifiers.

    Parameters
    ----------
    left, right : (n_left,) and (n_right,) str or int
        Compared as text without blanks around it, those of Gaia (E)DR3 by their number; empty where
        missing.
    positions : pair of Positions, optional
        Of the same rows: give the separations, and decide which of equal right rows is nearest.
    radius_arcsec : float, optional
        Pairs farther apart than this are flagged `FAR`.
    ambiguous, duplicates : {"flag", "drop", "nearest"}
        As in `match_positions`; ``flag`` gives the first of equal right rows if there are no
        positions, and ``nearest`` needs positions.

    Raises
    ------
    IdentifierError
        If identifiers are neither text nor whole numbers.
    LengthMismatch
        If positions and identifiers differ in length.
    ConfigError
        If a policy is not known, or needs positions.
    """
    _check_policies(ambiguous, duplicates)
    if positions is None and ("nearest" in (ambiguous, duplicates) or radius_arcsec is not None):
        raise ConfigError("'nearest' and a radius need positions; give them, or take 'flag'")
    codes, right_codes = _codes(left, right)
    best = Best.empty(codes.size)
    common = pairing = None
    if positions is not None:
        _check_lengths(codes, right_codes, positions)
        common = common_epoch(*positions)
        # Identifiers decide here: a row without a position stays, its separation unknown.
        pairing = Pairing.of(*positions, common, keep_all=True)
    # In blocks, as one identifier in very many rows makes very many pairs.
    for i, j in _equal(codes, right_codes):
        apart = np.full(i.size, np.nan) if pairing is None else pairing.separation_arcsec(i, j)
        best.enter(i, j, apart, pairing)
    flags = np.where(codes < 0, MatchFlag.NO_IDENTIFIER.value, 0)
    flags[(codes >= 0) & (best.count == 0)] |= MatchFlag.NONE_FOUND.value
    if radius_arcsec is not None:
        flags[best.first > radius_arcsec] |= MatchFlag.FAR.value
    settings = {
        "method": "identifier",
        "radius_arcsec": radius_arcsec,
        "epoch_yr": common,
        "ambiguous": ambiguous,
        "duplicates": duplicates,
        "lead_arcsec": None,
    }
    return best.decide(flags, right_codes.size, settings)


def _check_lengths(
    left: Int64Array, right: Int64Array, positions: tuple[Positions, Positions]
) -> None:
    n = [len(side) for side in positions]
    if n != [left.size, right.size]:
        raise LengthMismatch(
            f"{left.size} and {right.size} identifiers, but {n[0]} and {n[1]} positions; give them "
            "of the same rows"
        )


def _codes(left: ArrayLike, right: ArrayLike) -> tuple[Int64Array, Int64Array]:
    """Return whole numbers that are equal where identifiers are, -1 where missing."""
    import pyarrow as pa
    from pyarrow import compute

    texts = []
    for values in (left, right):
        array = np.asarray(values)
        if array.ndim != 1 or (array.size and array.dtype.kind not in "USOiu"):
            raise IdentifierError(
                f"identifiers must be text or whole numbers, one a row, got {array.dtype} of shape "
                f"{array.shape}; store them as integers or text"
            )
        if array.dtype.kind in "SO" or not array.size:
            array = np.array([_text(value) for value in array], dtype=np.str_)
        texts.append(pa.array(plain_identifiers(pa.array(array).cast(pa.string()))))
    # Both sides in one dictionary, so that equal texts are equal numbers, which sort faster.
    encoded = pa.concat_arrays(texts).dictionary_encode()
    codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
    empty = compute.index(encoded.dictionary, pa.scalar("")).as_py()
    codes[codes == empty] = -1 if empty >= 0 else codes[codes == empty]
    n_left = len(texts[0])
    return codes[:n_left], codes[n_left:]


def _text(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, str | int | np.integer):
        return str(value)
    raise IdentifierError(
        f"identifiers must be text or whole numbers, got {type(value).__name__}; "
        "store them as integers or text"
    )


def _equal(left: Int64Array, right: Int64Array) -> Iterator[tuple[Int64Array, Int64Array]]:
    """Yield pairs of rows with equal codes, all of a left row at once.

    An identifier that stands in very many rows, such as 0, is followed by its first rows only.
    """
    order = np.argsort(right, kind="stable")
    ranked = right[order]
    first = np.searchsorted(ranked, left, side="left")
    # -1 is "none" on both sides: missing identifiers must not match each other.
    count = np.where(left < 0, 0, np.searchsorted(ranked, left, side="right") - first)
    # What stands in thousands of rows identifies nothing, and makes pairs by its square.
    count = np.minimum(count, MOST_CANDIDATES)
    block = np.cumsum(count) // _PAIRS_AT_ONCE
    edges = np.flatnonzero(np.diff(block, prepend=0)).tolist()
    for start, stop in pairwise([0, *edges, left.size]):
        n = count[start:stop]
        i = np.repeat(np.arange(start, stop), n)
        offset = np.arange(i.size) - np.repeat(np.cumsum(n) - n, n)
        yield i, order[np.repeat(first[start:stop], n) + offset]


def _check_policies(*policies: str) -> None:
    for policy in policies:
        if policy not in get_args(Policy):
            raise ConfigError(
                f"unknown policy {policy!r}; take one of {', '.join(get_args(Policy))}"
            )
