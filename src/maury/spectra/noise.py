"""Noise that neighbouring pixels share: which correlations exist, and what resampling does to them.

A correlation is a tuple of the autocorrelation of the noise at lags of 1, 2, ... pixels; further
apart pixels are independent, and the empty tuple is white noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

import numpy as np
from pydantic import AfterValidator

from maury.errors import CorrelationError
from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.io.limits import current

__all__ = [
    "RAVE_CORRELATION",
    "Correlation",
    "check_correlation",
    "known_noise",
    "nearest_correlation",
    "noise_kernel",
    "noise_seen",
    "resampled_correlation",
    "same_correlation",
    "side_weight_correlation",
]

RAVE_CORRELATION = (0.44, 0.05)
"""Autocorrelation of the noise of the RAVE-like reference spectra, measured on them."""
_N_FREQUENCY = 2048
"""Enough to see a dip of the power spectrum of a hundred lags; exact for one and two lags."""
_SAME_CORRELATION = 0.01
"""Correlations that differ by less are one: .44 rounded is .4403, that of the default weight."""
_NEGATIVE_POWER = 1e-6
"""Power below zero by less is rounding of a correlation written with six digits."""
_NEGLIGIBLE = 0.005
"""Correlations this small change the noise of a sum of pixels by less than a percent."""
_N_PHASE = 16
"""Sub-pixel phases to average over: 400 change no correlation by more than .002."""


def check_correlation(
    correlation: Sequence[float], *, name: str = "noise_correlation"
) -> tuple[float, ...]:
    """Return an autocorrelation as a tuple of floats, once it is sure that some noise has it.

    The matrix of a stationary correlation is positive semidefinite for any number of pixels if
    and only if its power spectrum 1 + 2 sum_k rho_k cos(k omega) is nowhere negative (Herglotz;
    Brockwell & Davis 1991, *Time Series: Theory and Methods*, corollary 4.3.1).

    Parameters
    ----------
    correlation : sequence of float
        At lags of 1, 2, ... pixels.
    name : str
        How the message calls it.

    Raises
    ------
    CorrelationError
        If a value is not finite, or no noise has such a correlation.
    """
    if len(correlation) > current().lags:
        raise CorrelationError(f"{name} has {len(correlation)} lags, at most {current().lags}")
    values = tuple(float(value) for value in correlation)
    if not all(np.isfinite(values)):
        raise CorrelationError(f"{name} must be finite numbers, got {list(values)}")
    least = _least_power(values)
    if least < -_NEGATIVE_POWER:
        raise CorrelationError(
            f"{name} = {list(values)} is no correlation of any noise: its matrix is not positive "
            f"definite, with a power of {least:.3g} at some frequency (a single value is at most "
            "0.5); give the autocorrelation of the noise at lags of 1, 2, ... pixels, or [] for "
            "independent pixels"
        )
    return values


def _least_power(correlation: Sequence[float]) -> float:
    omega = np.linspace(0.0, np.pi, _N_FREQUENCY + 1)
    lags = np.arange(1, len(correlation) + 1)
    return float((1.0 + 2.0 * np.cos(np.outer(omega, lags)) @ np.asarray(correlation)).min())


Correlation = Annotated[tuple[float, ...], AfterValidator(check_correlation)]
"""Autocorrelation of noise at lags of 1, 2, ... pixels, refused where no noise has it."""


def known_noise(ivar: Float32Array) -> BoolArray:
    """Which spectra (n_star,) come with noise: not those of ivar = 1 in every usable pixel.

    A file that must hold an ivar says so that there is none.
    """
    # The largest value tells most rows apart, without comparing every pixel.
    top = np.max(ivar, axis=1, initial=0.0)
    known = np.asarray(top != 1.0)
    rows = np.flatnonzero(~known)
    known[rows] = ~((ivar[rows] == 1.0) | (ivar[rows] == 0.0)).all(axis=1)
    return known


def side_weight_correlation(side_weight: float) -> tuple[float, ...]:
    """Autocorrelation of white noise after a convolution with (w, 1, w), w the side weight."""
    if side_weight == 0.0:
        return ()
    norm = 1.0 + 2.0 * side_weight**2
    return (2.0 * side_weight / norm, side_weight**2 / norm)


def nearest_correlation(found: Float64Array, least: float = _NEGLIGIBLE) -> tuple[float, ...]:
    """Cut lags off where a computed or measured correlation falls below `least`, and keep it one.

    Parameters
    ----------
    found : (n_lag,) float64
        At lags of 1, 2, ... pixels.
    least : float

    Returns
    -------
    tuple of float
        Shrunk as a whole where the rest would be a correlation of no noise.
    """
    last = np.flatnonzero(np.abs(found) >= least)
    kept = found[: last[-1] + 1 if last.size else 0]
    # What is cut off can leave a power of -.01 where there was none.
    shrink = min(1.0, 1.0 / max(1.0 - _least_power(kept.tolist()), 1e-9))
    return tuple((shrink * kept).tolist())


def same_correlation(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two autocorrelations, at lags of 1, 2, ... pixels, are one but for rounding."""
    lags = max(len(one), len(other))
    first, second = (np.pad(np.array(x, np.float64), (0, lags - len(x))) for x in (one, other))
    return bool(np.all(np.abs(first - second) < _SAME_CORRELATION))


def noise_seen(own: tuple[float, ...], seen: Sequence[float]) -> tuple[float, ...]:
    """Correlation of the noise of the spectra to predict: `seen`, or `own` of a method if the same.

    Those that differ by rounding alone are one, so that models of earlier versions give the labels
    that they gave.
    """
    return own if same_correlation(own, seen) else tuple(float(value) for value in seen)


@lru_cache(maxsize=32)
def resampled_correlation(correlation: tuple[float, ...], ratio: float) -> tuple[float, ...]:
    """Correlation of noise after resampling by mean flux over pixels `ratio` times as wide.

    Output pixel j is sum_k a_jk f_k, a_jk the share of pixel k in it, so that the covariance is
    A R A^T (Carnall 2017, arXiv:1705.05165, sec. 3, has its diagonal for white noise). It depends
    on where edges fall within pixels; here it is averaged over all such phases, as along a
    spectrum, or over stars of many velocities.

    Parameters
    ----------
    correlation : tuple of float
        Of the noise before, at lags of 1, 2, ... input pixels.
    ratio : float
        Width of an output pixel over that of an input pixel.

    Returns
    -------
    tuple of float
        At lags of 1, 2, ... output pixels; cut where it falls below .005.
    """
    reach = int(np.ceil((len(correlation) + 2) / ratio)) + 1
    n_in = int(np.ceil((reach + 1) * ratio)) + 2
    lags = np.abs(np.subtract.outer(np.arange(n_in), np.arange(n_in)))
    matrix = np.r_[1.0, correlation, np.zeros(n_in)][np.minimum(lags, len(correlation) + 1)]
    # In units of an input pixel.
    left = np.arange(reach + 1)[:, None] * ratio
    cover = np.zeros(reach + 1)
    for phase in (np.arange(_N_PHASE) + 0.5) / _N_PHASE:
        low, pixel = left + phase, np.arange(n_in)
        share = np.minimum(low + ratio, pixel + 1.0) - np.maximum(low, pixel)
        share = np.maximum(share, 0.0)
        cover += share[0] @ matrix @ share.T
    found = cover[1:] / cover[0]
    return nearest_correlation(found)


def filtered_noise(
    kernel: Float64Array, correlation: tuple[float, ...]
) -> tuple[float, tuple[float, ...]]:
    """Return what a filter makes of noise: its variance over that of white noise, correlation.

    Parameters
    ----------
    kernel : (n,) float64
        Weights of neighbouring pixels.
    correlation : tuple of float
        Of the noise before, at lags of 1, 2, ... pixels.

    Returns
    -------
    gain : float
    correlation : tuple of float
        At lags of 1, 2, ... pixels; cut where it falls below .005.
    """
    own = np.correlate(kernel, kernel, "full")
    whole = np.convolve(own, [*correlation[::-1], 1.0, *correlation])
    lags = whole[whole.size // 2 :]
    found = lags[1:] / lags[0]
    return float(lags[0] / own.max()), nearest_correlation(found)


def noise_kernel(correlation: Sequence[float]) -> Float64Array:
    """Kernel (n_lag + 1,) that makes noise of this correlation and variance 1 of white noise.

    The moving average of that autocorrelation which looks back only: the last row of the Cholesky
    factor of a long Toeplitz matrix tends to it (Bauer 1955).
    """
    from scipy.linalg import cholesky_banded

    n_lag = len(correlation)
    bands = np.zeros((n_lag + 1, _FACTOR_ROWS))
    for lag, value in enumerate((1.0, *correlation)):
        bands[lag, : _FACTOR_ROWS - lag] = value
    # A power of exactly zero, as of (0.5,), leaves the matrix singular to rounding.
    bands[0] *= 1.0 + _JITTER
    factor = cholesky_banded(bands, lower=True)
    # The last row of the factor, back from its diagonal.
    kernel = np.array([factor[lag, -1 - lag] for lag in range(n_lag + 1)])
    return np.asarray(kernel / np.sqrt(np.sum(kernel**2)))


_FACTOR_ROWS = 512
"""Rows after which the factor of (0.44, 0.05) has converged to rounding."""
_JITTER = 1e-9
"""Far below the precision of any measured correlation."""
