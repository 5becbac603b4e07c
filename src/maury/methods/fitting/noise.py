"""Errors of fitted labels where the noise of neighbouring pixels is correlated."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import cholesky_banded
from scipy.signal import lfilter

from maury.io.arrays import Float32Array, Float64Array, FloatArray

__all__ = ["Whitening", "sandwich", "weighted_variance"]


class Whitening:
    """Makes stationary correlated noise white, by the recursion of its Cholesky factor.

    Parameters
    ----------
    correlation : sequence of float
        Of the noise between pixels 1, 2, ... apart; empty leaves spectra as they are.

    Raises
    ------
    ValueError
        If no noise correlates so.
    """

    def __init__(self, correlation: tuple[float, ...]) -> None:
        self.correlation = correlation
        self._first, self._rest = 1.0, np.zeros(0)
        if any(correlation):
            n, lags = 400, len(correlation)
            bands = np.zeros((1 + lags, n))
            bands[0] = 1.0
            for lag, value in enumerate(correlation, start=1):
                bands[lag, : n - lag] = value
            try:
                factor = cholesky_banded(bands, lower=True)
            except np.linalg.LinAlgError as error:
                raise ValueError(
                    f"no noise has the correlation {correlation}: its matrix is not positive "
                    "definite"
                ) from error
            row = n - 1
            self._first = float(factor[0, row])
            self._rest = np.array([factor[lag, row - lag] for lag in range(1, lags + 1)])

    def __call__(self, rows: Float32Array) -> Float32Array:
        """Whiten rows (..., n_pixel) that were divided by the noise of each pixel."""
        if not self._rest.size:
            return rows
        ahead = np.array([1.0 / self._first], dtype=rows.dtype)
        back = np.concatenate([[1.0], self._rest / self._first]).astype(rows.dtype)
        return np.asarray(lfilter(ahead, back, rows, axis=-1), dtype=rows.dtype)

    def undo(self, white: Float32Array) -> Float32Array:
        """Rows (..., n_pixel) of which `__call__` makes these."""
        out = self._first * white
        for lag, value in enumerate(self._rest, start=1):
            out[..., lag:] += value * white[..., :-lag]
        return np.asarray(out, dtype=white.dtype)


_RCOND = 1e-13


def sandwich(
    jacobian: FloatArray,
    noise: FloatArray,
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
    coefficients: FloatArray,
    sigma: FloatArray,
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
