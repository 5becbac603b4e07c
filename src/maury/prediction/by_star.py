"""One row for each star: labels of several spectra of one star, combined.

Most of a calibrated error is what the model gets wrong about the star, which every spectrum of it
repeats. So spectra are weighted by the part of the error that is their own, and only that part is
averaged down: with own errors s_i and common errors c_i, weights w_i = s_i^-2 / sum s_j^-2, the
label is sum w_i x_i and its error sqrt(1 / sum s_j^-2 + (sum w_i c_i)^2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from maury.io.arrays import AnyArray, Float64Array, IndexArray, StrArray
from maury.labels.columns import (
    CHI2,
    ERROR_PARTS,
    N_SPECTRA,
    QUANTILES,
    WORST_WAVELENGTH,
    for_correlation,
)
from maury.labels.definitions import Label
from maury.labels.flags import FLAG_DTYPE, warn

_OWN, _COMMON = (suffix for suffix, *_ in ERROR_PARTS)
_LEAST_SHARE = 1e-3
"""Least own part of an error, in errors: one spectrum of an own part of 0 would outweigh all."""


@dataclass(frozen=True)
class _Groups:
    """Rows of a catalogue by star.

    Attributes
    ----------
    row : (n_used,) int
        Rows that count, star by star.
    star : (n_used,) int
        Number of the star of each.
    first, start : (n_star,) int
        First row of each star in the catalogue, and in `row`.
    """

    row: IndexArray
    star: IndexArray
    first: IndexArray
    start: IndexArray

    @property
    def size(self) -> IndexArray:
        """Spectra that count, (n_star,)."""
        return np.asarray(np.bincount(self.star, minlength=len(self.first)), dtype=np.intp)

    def total(self, values: Float64Array) -> Float64Array:
        """Sum (n_star,) of values (n_used,), without NaN."""
        return np.asarray(np.bincount(self.star, np.nan_to_num(values), minlength=len(self.first)))


def combine_stars(rows: Mapping[str, AnyArray], labels: Sequence[Label]) -> dict[str, AnyArray]:
    """Combine the rows of a catalogue that are of one star.

    Of a star with spectra that no flag warns of only these count, else all of them.

    Parameters
    ----------
    rows : mapping of str to (n_row,) array
        Columns of a catalogue with the two parts of each error, and ``star_id``. A row without
        a ``star_id`` is a star of its own.
    labels : sequence of Label

    Returns
    -------
    dict of str to (n_star,) array
        The same columns, and ``n_spectra``, in the order in which the stars first appear. ``id``
        is that of the first spectrum; ``flags`` are those of any spectrum that counts; the S/N is
        the root of the sum of squares; chi-square is the mean, and the wavelength that of the
        spectrum that fits worst; quantiles keep their distance from the label in errors.
    """
    groups = _grouped(rows)
    out: dict[str, AnyArray] = {
        name: np.asarray(values)[groups.first] for name, values in rows.items()
    }
    out[N_SPECTRA.name] = groups.size.astype(np.float64)
    for label in labels:
        out |= _combined(rows, label, groups)
    for pair in combinations(labels, 2):
        name = for_correlation(*pair).name
        if name in rows:
            out[name] = _mean(np.asarray(rows[name], np.float64)[groups.row], groups)
    snr = np.asarray(rows["snr"], np.float64)[groups.row]
    out["snr"] = np.where(groups.total(np.isfinite(snr)) > 0, np.sqrt(groups.total(snr**2)), np.nan)
    flags = np.zeros(len(groups.first), FLAG_DTYPE)
    # `flags[star] |= ...` would keep only the last spectrum of each star, as numpy buffers repeated
    # indices.
    np.bitwise_or.at(flags, groups.star, np.asarray(rows["flags"], FLAG_DTYPE)[groups.row])
    out |= {"flags": flags, "warn": warn(flags)}
    if CHI2.name in rows:
        chi2 = np.asarray(rows[CHI2.name], np.float64)[groups.row]
        out[CHI2.name] = _mean(chi2, groups)
        worst = np.asarray(rows[WORST_WAVELENGTH.name], np.float64)[groups.row]
        # Sorted by star and then by chi-square, the last row of each star is the one that fits
        # worst; unknown counts as best.
        order = np.lexsort((np.nan_to_num(chi2, nan=-1.0), groups.star))
        last = np.append(groups.start[1:], len(order)) - 1
        out[WORST_WAVELENGTH.name] = worst[order[last]]
    return out


def _grouped(rows: Mapping[str, AnyArray]) -> _Groups:
    names: StrArray = np.asarray(rows["star_id"]).astype(np.str_)
    # No identifier begins with a null character, so that no spectrum without a star joins one that
    # has a name.
    alone = np.array([f"\0{number}" for number in range(len(names))])
    _, first, star = np.unique(
        np.where(names == "", alone, names), return_index=True, return_inverse=True
    )
    # Stars in the order in which they first appear, not in that of their names.
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(order.size)
    first, star = first[order], rank[star]
    good = ~np.asarray(rows["warn"], dtype=np.bool_)
    some = np.bincount(star, good, minlength=first.size) > 0
    row = np.flatnonzero(good | ~some[star])
    row = row[np.argsort(star[row], kind="stable")]
    start = np.searchsorted(star[row], np.arange(first.size))
    return _Groups(row, star[row], first, start)


def _mean(values: Float64Array, groups: _Groups) -> Float64Array:
    """Mean of each star (n_star,), without NaN; NaN where nothing is known."""
    count = groups.total(np.isfinite(values).astype(np.float64))
    return np.where(count > 0, groups.total(values) / np.maximum(count, 1.0), np.nan)


def _combined(
    rows: Mapping[str, AnyArray], label: Label, groups: _Groups
) -> dict[str, Float64Array]:
    """Columns of one label of each star."""

    def column(name: str) -> Float64Array:
        return np.asarray(rows[name], np.float64)[groups.row]

    error_name = label.error_name
    value, error = column(label.name), column(error_name)
    common = column(f"{error_name}_{_COMMON}")
    own = np.maximum(column(f"{error_name}_{_OWN}"), _LEAST_SHARE * error)
    # Weights are those of the own errors alone: what all spectra of a star share no weights average
    # down.
    known = np.isfinite(value) & np.isfinite(own) & (own > 0)
    weight = np.where(known, 1.0 / np.where(known, own, 1.0) ** 2, 0.0)
    total = groups.total(weight)
    some = total > 0
    weight = weight / np.where(some, total, 1.0)[groups.star]

    def weighted(values: Float64Array) -> Float64Array:
        return np.where(some, groups.total(weight * values), np.nan)

    # Common errors are fully correlated, so that they are averaged as they are, not in squares.
    mean, shared = weighted(value), weighted(common)
    alone = np.where(some, 1.0 / np.sqrt(np.where(some, total, 1.0)), np.nan)
    whole = np.hypot(alone, shared)
    out = {label.name: mean, error_name: whole}
    out |= {f"{error_name}_{_OWN}": alone, f"{error_name}_{_COMMON}": shared}
    for suffix, _ in QUANTILES:
        name = f"{label.name}_{suffix}"
        if name in rows:
            # In units of the error, as the shape of the distribution is kept while its width
            # shrinks.
            out[name] = mean + whole * weighted((column(name) - value) / error)
    return out
