"""Robust scales, whitening, and distances to neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

_ROBUST_CLIP = 4.0
_BLOCK = 256


def robust_scale(values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Median and half the 16-84 % range of each column of values (n, k).

    NaN values are left out. A column without spread gets the scale 1.
    """
    blank = ~np.isfinite(values).any(axis=0)
    low, centre, high = np.nanpercentile(np.where(blank, 0.0, values), [16.0, 50.0, 84.0], axis=0)
    half = 0.5 * (high - low)
    return np.asarray(centre), np.where(half > 0, half, 1.0)


def robust_whitening(values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Median (k,), and inverse root (k, k) of the covariance, of values (n, k) clipped at 4 sigma.

    (values - median) @ root has unit covariance but for the outliers. Rows with NaN are left out.
    """
    centre, scale = robust_scale(values)
    known = values[np.isfinite(values).all(axis=1)]
    clipped = np.clip((known - centre) / scale, -_ROBUST_CLIP, _ROBUST_CLIP)
    strength, axes = np.linalg.eigh(np.cov(clipped, rowvar=False))
    root = axes / np.sqrt(np.maximum(strength, 1e-6 * strength[-1]))
    return centre, root / scale[:, None]


def whitening(features: Float64Array, n_dimension: int) -> tuple[Float64Array, Float64Array]:
    """Mean (k,) of features (n, k), and projection (k, at most `n_dimension`).

    On the strongest principal components, each scaled to unit variance.
    """
    centre = features.mean(axis=0)
    strength, axes = np.linalg.eigh(np.cov(features, rowvar=False).reshape(centre.size, -1))
    chosen = np.argsort(strength)[::-1][:n_dimension]
    chosen = chosen[strength[chosen] > 1e-9 * max(float(strength[-1]), 1e-30)]
    return centre, axes[:, chosen] / np.sqrt(strength[chosen])


def nearest(points: Float64Array, reference: Float32Array, rank: int) -> Float64Array:
    """Distance of points (n, k) to the `rank`-th nearest of the reference (m, k).

    Over the root of k, so that it is of order 1 in any number of whitened dimensions. NaN for a
    point with NaN.
    """
    n_dimension = max(reference.shape[1], 1)
    rank = min(rank, len(reference))
    size = _group_size(rank, len(reference))
    grouped = _grouped(reference, size)
    known = np.asarray(np.isfinite(points).all(axis=1))
    safe = np.clip(np.where(known[:, None], points, 0.0), -1e6, 1e6).astype(np.float32)
    out = np.empty(len(points))
    for start in range(0, len(points), _BLOCK):
        part = safe[start : start + _BLOCK]
        apart = np.hstack([np.float32(-2.0) * part, np.ones((len(part), 1), np.float32)])
        squared = (apart @ grouped).reshape(len(part), size, -1)
        smallest = _ranked(squared, rank)
        out[start : start + _BLOCK] = smallest + np.square(part).sum(axis=1)
    distance = np.sqrt(np.maximum(out, 0.0) / n_dimension)
    return np.asarray(np.where(known, distance, np.nan))


def _group_size(rank: int, n_reference: int) -> int:
    """Members of a group for which `_ranked` looks at the fewest numbers."""
    return max(1, round(float(np.sqrt(n_reference / rank))))


def _grouped(reference: Float32Array, size: int) -> Float32Array:
    """Columns (k + 1, m) whose product with (-2 point, 1) is the squared distance less |point|^2.

    Filled up with references at infinity to whole groups of `size`.
    """
    missing = -len(reference) % size
    square = np.pad(np.square(reference).sum(axis=1), (0, missing), constant_values=np.inf)
    return np.vstack([np.pad(reference, ((0, missing), (0, 0))).T, square])


def _ranked(values: Float32Array, rank: int) -> Float32Array:
    """Return the `rank`-th smallest (n,) of values (n, member, group).

    It lies in one of the `rank` groups with the smallest minima, as each of these has a value
    that is no larger than any value of another group.
    """
    if rank < values.shape[2]:
        least = values.min(axis=1)
        chosen = np.argpartition(least, rank - 1, axis=1)[:, None, :rank]
        values = np.take_along_axis(values, chosen, axis=2)
    flat = values.reshape(len(values), -1)
    return np.asarray(np.partition(flat, rank - 1, axis=1)[:, rank - 1])
