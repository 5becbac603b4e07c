"""Missing labels of stars to simulate, filled in from stars of such labels that have them."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from maury.io.arrays import BoolArray, Float64Array
from maury.labels.statistics import robust_scale

__all__ = ["fill_labels"]

_N_NEIGHBOUR = 64
"""Nearest stars that give a plane in nine labels: seven a coefficient; chosen, not measured."""
_RIDGE = 0.1
"""Holds the slopes of that plane down where the stars do not spread, in scaled labels; chosen."""


def fill_labels(
    labels: Float64Array, reference: Float64Array, rng: np.random.Generator | None = None
) -> Float64Array:
    """Return labels, missing ones filled in from reference stars of such labels.

    A star needs Teff, log g, and [M/H] or [Fe/H]; without, it is NaN throughout.

    Parameters
    ----------
    labels : (n_star, 9) float64
        In the order of `maury.labels.definitions.LABELS`; NaN where missing.
    reference : (n_reference, 9) float64
        Finite.
    rng : numpy Generator, optional
        With it a value is drawn as stars of such labels scatter about their mean; else it is that
        mean, which a whole sample of stars should not have.
    """
    known = np.isfinite(labels)
    # [M/H] and [Fe/H] hardly differ: one gives the other, and neither can be had from Teff and
    # log g.
    enough = known[:, 0] & known[:, 1] & (known[:, 2] | known[:, 3])
    filled = np.where(enough[:, None], labels, np.nan)
    lacking = enough & ~known.all(axis=1)
    centre, scale = robust_scale(reference)
    own = (reference - centre) / scale
    for pattern in np.unique(known[lacking], axis=0):
        rows = np.flatnonzero(lacking & (known == pattern).all(axis=1))
        target = ((labels[rows] - centre) / scale)[:, pattern]
        found = _local_values(own, pattern, target, rng)
        filled[np.ix_(rows, ~pattern)] = found * scale[~pattern] + centre[~pattern]
    return filled


def _local_values(
    own: Float64Array, pattern: BoolArray, target: Float64Array, rng: np.random.Generator | None
) -> Float64Array:
    """Labels without `pattern` at `target`, by a plane through the stars nearest in those with."""
    known, wanted = own[:, pattern], own[:, ~pattern]
    count = min(_N_NEIGHBOUR, len(known))
    near = cKDTree(known).query(target, k=count)[1].reshape(len(target), count)
    out = np.empty((len(target), wanted.shape[1]))
    for row, index in enumerate(near):
        design = np.column_stack([np.ones(count), known[index] - target[row]])
        # The constant is free: a ridge on it would draw the value to the centre of the sample.
        normal = design.T @ design + np.diag(np.r_[0.0, np.full(known.shape[1], _RIDGE)])
        plane = np.linalg.solve(normal, design.T @ wanted[index])
        out[row] = plane[0]
        if rng is not None:
            # All missing labels of one neighbour, so that they stay correlated.
            one = rng.integers(count)
            out[row] += wanted[index[one]] - design[one] @ plane
    return out
