"""What fits or means leave of many spectra: patterns common to them, and variance beyond noise."""

from __future__ import annotations

import numpy as np

from maury.io.arrays import Float32Array, Float64Array
from maury.methods.fitting.noise import Whitening

__all__ = ["MODE_STARS", "RESIDUAL_STARS", "residual_modes", "residual_variance"]

RESIDUAL_STARS = 400
"""Best training spectra of which the variance is measured: its median is then known to 12 %."""
MODE_STARS = 1500
"""Best training spectra of which patterns are learnt; chosen to be more than the pixels of RAVE."""
_LEAST_VARIANCE = 1e-8
"""Least variance of a model: 1e-4 of the continuum, as small as no model of spectra errs."""
WILD = 8.0
"""Residuals beyond so many sigma are cut there: cosmic rays that were missed shape no pattern."""
_TINY = 1e-30
"""Replaces a variance of zero, which stands out of no noise."""
_MEDIAN_CHI2 = 0.4549
"""Median of the chi-square of one degree of freedom."""


def residual_variance(flux: Float32Array, ivar: Float32Array, fitted: Float32Array) -> Float32Array:
    """Variance (n_pixel,) that best fits leave beyond the noise, by the median over stars.

    The scatter s^2 of Ness et al. (2015, ApJ 808, 16, eq. 2), robustly.
    """
    used = (ivar > 0) & np.isfinite(fitted)
    square = np.where(used, (flux - fitted) ** 2, np.nan)
    noise = np.where(used, 1.0 / np.where(used, ivar, 1.0), np.nan)
    # Of a pixel that is bad in all spectra nothing is known.
    dead = ~used.any(axis=0)
    square, noise = np.where(dead, 0.0, square), np.where(dead, 0.0, noise)
    beyond = np.nanmedian(square, axis=0) / _MEDIAN_CHI2 - np.nanmedian(noise, axis=0)
    smooth = np.convolve(np.pad(beyond, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    return np.maximum(smooth, _LEAST_VARIANCE).astype(np.float32)


def residual_modes(
    flux: Float32Array,
    ivar: Float32Array,
    fitted: Float32Array,
    *,
    count: int,
    noise_correlation: tuple[float, ...] = (),
    wild: float = WILD,
) -> Float32Array:
    """Patterns (n_mode, n_pixel) in which best fits differ from spectra, beyond noise.

    Principal components of the residuals of many stars, one standard deviation each, once the
    variance of the noise is taken off. What the labels leave open is correlated between pixels,
    and would be mistaken for labels if it were fitted as noise.

    Parameters
    ----------
    flux, ivar, fitted : (n_star, n_pixel) float32
    count : int
        At most so many; fewer where no more stand out of the noise.
    noise_correlation : tuple of float
        Correlation of the noise between pixels 1, 2, ... apart.
    wild : float
        Residuals over their noise are cut there.
    """
    whiten = Whitening(noise_correlation)
    used = (ivar > 0) & np.isfinite(fitted)
    scaled = np.where(used, (flux - fitted) * np.sqrt(ivar), 0).astype(np.float32)
    white = whiten.of(used)(np.clip(scaled, -wild, wild)).astype(np.float64)
    value, vector = _components(white, count)
    # Noise alone reaches so far (Marchenko & Pastur 1967, Math. USSR Sb. 1, 457).
    kept = value > (1 + np.sqrt(white.shape[1] / len(white))) ** 2
    size = np.sqrt(np.maximum(value[kept] - 1.0, 0.0))
    patterns = whiten.undo((vector[:, kept] * size).T)
    # A pixel that is bad in all spectra has no noise, and no pattern.
    dead = ~used.any(axis=0)
    sigma = np.where(used, 1.0 / np.sqrt(np.where(used, ivar, 1.0)), np.nan)
    noise = np.nanmedian(np.where(dead, 0.0, sigma), axis=0)
    return np.asarray(patterns * noise, dtype=np.float32)


def _components(white: Float64Array, count: int) -> tuple[Float64Array, Float64Array]:
    """Largest variances (count,) of rows, and their directions (n_pixel, count)."""
    n_star, n_pixel = white.shape
    if n_star >= n_pixel:
        value, vector = np.linalg.eigh(white.T @ white / n_star)
        return value[::-1][:count], vector[:, ::-1][:, :count]
    # Of stars or pixels, the smaller matrix has the same eigenvalues.
    value, left = np.linalg.eigh(white @ white.T / n_star)
    value, left = value[::-1][:count], left[:, ::-1][:, :count]
    length = np.sqrt(np.maximum(value * n_star, _TINY))
    return value, np.asarray(white.T @ left / length)
