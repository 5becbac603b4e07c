"""Errors of fitted labels where the noise of neighbouring pixels is correlated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["sandwich", "weighted_variance"]

Float64Array = NDArray[np.float64]

_RCOND = 1e-13


def sandwich(
    jacobian: NDArray[np.floating],
    noise: NDArray[np.floating],
    fisher: Float64Array,
    *,
    correlation: Sequence[float],
) -> Float64Array:
    """Covariance of weighted least squares, (n_star, n_label, n_label).

    With weights W as if pixels were independent, and the true covariance S of the noise, the
    estimate has the covariance F^-1 (J^T W S W J) F^-1, F = J^T W J. The diagonal of S, noise and
    model scatter, is taken to be 1 / W; only the noise is correlated.

    Parameters
    ----------
    jacobian : (n_star, n_label, n_pixel) float
        By labels of similar size.
    noise : (n_star, n_pixel) float
        Weight times 1 sigma noise; 0 in a bad pixel.
    fisher : (n_star, n_label, n_label) float64
        F.
    correlation : sequence of float
        Of the noise of pixels 1, 2, ... apart.
    """
    inverse = np.linalg.pinv(fisher, hermitian=True, rcond=_RCOND)
    if not any(correlation):
        return np.asarray(inverse)
    noisy = jacobian * noise[:, None]
    later = np.zeros_like(noisy)
    for lag, rho in enumerate(correlation, start=1):
        later[:, :, :-lag] += noisy.dtype.type(rho) * noisy[:, :, lag:]
    one_side = (noisy @ later.transpose(0, 2, 1)).astype(np.float64)
    spread = fisher + one_side + one_side.transpose(0, 2, 1)
    return np.asarray(inverse @ spread @ inverse)


def weighted_variance(
    coefficients: NDArray[np.floating],
    sigma: NDArray[np.floating],
    *,
    correlation: Sequence[float],
) -> Float64Array:
    """Noise variance (n_star, n_label) of labels that are weighted sums of pixels.

    Parameters
    ----------
    coefficients : (n_pixel, n_label) float
    sigma : (n_star, n_pixel) float
        1 sigma noise.
    correlation : sequence of float
        As of `sandwich`.
    """
    out = sigma**2 @ coefficients**2
    for lag, rho in enumerate(correlation, start=1):
        both = sigma[:, :-lag] * sigma[:, lag:]
        out = out + 2.0 * rho * (both @ (coefficients[:-lag] * coefficients[lag:]))
    return np.asarray(np.maximum(out, 0.0), dtype=np.float64)
