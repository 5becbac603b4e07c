"""Missing labels of stars to simulate, filled in from stars of such labels that have them."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree
from scipy.stats import norm

from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.labels.statistics import robust_scale

__all__ = ["fill_from_spectra", "fill_labels"]

_N_NEIGHBOUR = 64
"""Nearest stars that give a plane in nine labels: seven a coefficient; chosen, not measured."""
_N_COMPONENT = 60
"""Principal components that estimate a missing label: more would fit noise of a sample of
thousands, and where stars are few there are a tenth as many components. Chosen."""
_MOST_SPECTRA = 2000
"""Spectra that give the components, which more would hardly change; chosen."""
_LEAST_KNOWN = 30
"""Training stars with a label below which it is not estimated; chosen, not measured."""
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


def fill_from_spectra(
    labels: Float64Array,
    flux: Float32Array,
    ivar: Float32Array,
    observables: Float64Array,
    training: BoolArray,
    limits: Float64Array | None = None,
) -> Float64Array:
    """Return labels of any kind, missing ones filled in from spectra, observables, other labels.

    A linear estimate from the principal components of the spectra, learnt for each label from the
    training stars that have it. A label that too few training stars have stays missing. Where a
    label has an upper limit, the estimate is the mean of a normal distribution about it, with the
    scatter of the training stars, cut off at the limit (Tobin 1958, Econometrica 26, 24); such
    stars are learnt from, too, as lines too weak to be measured tell of low abundances.

    Parameters
    ----------
    labels : (n_star, n_label) float64
        NaN where missing. A star without any label stays so throughout.
    flux, ivar : (n_star, n_pixel) float32
        ivar 0 marks a bad pixel.
    observables : (n_star, n_observable) float64
        NaN where missing.
    training : (n_star,) bool
        Stars that may be learnt from.
    limits : (n_star, n_label) float64, optional
        Upper limits of labels that are missing; NaN where there is none.
    """
    known = np.isfinite(labels)
    limits = np.full(labels.shape, np.nan) if limits is None else limits
    lacking = known.any(axis=1) & ~known.all(axis=1)
    if not lacking.any():
        return labels.copy()
    spectra = _spectral_coordinates(flux, ivar, training)
    seen = _with_medians(observables, training)
    filled = _with_medians(labels, training)
    out = np.where(known.any(axis=1, keepdims=True), labels, np.nan)
    # Twice: the second time missing labels among the others are estimates, and no medians, and
    # stars with limits have values to learn from.
    for learnt in (known, known | np.isfinite(limits)):
        estimate = filled.copy()
        for k in np.flatnonzero(~known[lacking].all(axis=0)):
            rows = training & learnt[:, k]
            if (rows & known[:, k]).sum() < _LEAST_KNOWN:
                estimate[:, k] = np.nan
                continue
            others = np.delete(np.nan_to_num(filled), k, axis=1)
            design = _standardised(np.hstack([spectra, seen, others]), rows)
            normal = design[rows].T @ design[rows]
            normal[np.diag_indices(len(normal))] += np.r_[0.0, np.ones(len(normal) - 1)]
            slope = np.linalg.solve(normal, design[rows].T @ filled[rows, k])
            told = design @ slope
            scatter = np.sqrt(np.mean((told - filled[:, k])[rows & known[:, k]] ** 2))
            values = labels[rows & known[:, k], k]
            told = np.clip(told, values.min(), values.max())
            estimate[:, k] = _below(told, scatter, limits[:, k])
        filled = np.where(known, labels, estimate)
    out[lacking] = filled[lacking]
    return out


def _below(mean: Float64Array, scatter: float, limit: Float64Array) -> Float64Array:
    """Mean (n_star,) of normal distributions cut off at upper limits; NaN is no limit."""
    if scatter == 0:
        return np.fmin(mean, limit)
    reach = (limit - mean) / scatter
    # The inverse Mills ratio, by logarithms: both of its parts vanish far out.
    lower = scatter * np.exp(norm.logpdf(reach) - norm.logcdf(reach))
    return np.where(np.isfinite(limit), np.fmin(mean - lower, limit), mean)


def _spectral_coordinates(
    flux: Float32Array, ivar: Float32Array, training: BoolArray
) -> Float64Array:
    """Principal components (n_star, n) of spectra, bad pixels at their mean."""
    rows = np.flatnonzero(training & (ivar > 0).any(axis=1))
    rows = rows[:: max(1, -(-rows.size // _MOST_SPECTRA))]
    good = ivar > 0
    sums = np.where(good[rows], flux[rows], 0.0).sum(axis=0, dtype=np.float64)
    mean = (sums / np.maximum(good[rows].sum(axis=0), 1)).astype(np.float32)
    own = np.where(good[rows], flux[rows] - mean, np.float32(0))
    value, vector = np.linalg.eigh((own @ own.T).astype(np.float64))
    count = min(_N_COMPONENT, max(1, rows.size // 10))
    basis = vector[:, -count:].T.astype(np.float32) @ own
    basis /= np.sqrt(np.maximum(value[-count:], 1e-12))[:, None].astype(np.float32)
    return np.asarray(np.where(good, flux - mean, np.float32(0)) @ basis.T, dtype=np.float64)


def _with_medians(values: Float64Array, training: BoolArray) -> Float64Array:
    """Values with the median of the training stars where they are missing; 0 if these have none."""
    known = np.isfinite(values[training]).any(axis=0)
    middle = np.zeros(values.shape[1])
    middle[known] = np.nanmedian(values[training][:, known], axis=0)
    return np.where(np.isfinite(values), values, middle)


def _standardised(columns: Float64Array, rows: BoolArray) -> Float64Array:
    """Put a column of ones before columns less their mean, over their scatter, of some rows."""
    scale = columns[rows].std(axis=0)
    scaled = (columns - columns[rows].mean(axis=0)) / np.where(scale > 0, scale, 1.0)
    return np.column_stack([np.ones(len(columns)), np.clip(scaled, -8.0, 8.0)])


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
