"""Linear algebra of normal equations of many stars at once, in units of the labels' own errors."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["gain", "inverse", "solve"]

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

_TINY = 1e-300


def solve(
    curvature: Float64Array, descent: Float64Array, held: BoolArray, damping: Float64Array
) -> Float64Array:
    """Solve the damped normal equations with some labels held, in units of their own errors."""
    diagonal = np.einsum("nii->ni", curvature)
    held = held | (diagonal <= _TINY)
    unit = 1.0 / np.sqrt(np.where(held, 1.0, diagonal))
    both = unit[:, :, None] * unit[:, None, :]
    scaled = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature * both)
    n_free = descent.shape[1]
    scaled[:, np.arange(n_free), np.arange(n_free)] = 1.0 + 1e-12 + damping[:, None]
    right = np.where(held, 0.0, descent * unit)
    try:
        step = np.linalg.solve(scaled, right[:, :, None])[:, :, 0]
    except np.linalg.LinAlgError:
        step = (np.linalg.pinv(scaled, hermitian=True) @ right[:, :, None])[:, :, 0]
    return np.asarray(np.where(held, 0.0, step * unit))


def inverse(curvature: Float64Array, frozen: BoolArray) -> Float64Array:
    """Covariance (n_star, n_free, n_free); zero for frozen labels."""
    diagonal = np.einsum("nii->ni", curvature)
    loose = frozen | (diagonal <= _TINY)
    unit = 1.0 / np.sqrt(np.where(loose, 1.0, diagonal))
    both = unit[:, :, None] * unit[:, None, :]
    scaled = np.where(loose[:, :, None] | loose[:, None, :], 0.0, curvature * both)
    n_free = frozen.shape[1]
    scaled[:, np.arange(n_free), np.arange(n_free)] = 1.0
    inverse = np.linalg.pinv(scaled, hermitian=True) * both
    inverse = np.where(frozen[:, :, None] | frozen[:, None, :], 0.0, inverse)
    unknown = (diagonal <= _TINY) & ~frozen
    return np.where(unknown[:, :, None] | unknown[:, None, :], np.nan, inverse)


def gain(step: Float64Array, curvature: Float64Array, descent: Float64Array) -> Float64Array:
    """Return what a step gains in the objective where the model is its tangent."""
    bent = np.einsum("ni,nij,nj->n", step, curvature, step)
    return np.asarray(2 * np.einsum("ni,ni->n", step, descent) - bent)
