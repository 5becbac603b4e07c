"""Correlated noise made white, so that a fit is an ordinary one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky_banded
from scipy.signal import lfilter

__all__ = ["Whitening"]

Float32Array = NDArray[np.float32]


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
