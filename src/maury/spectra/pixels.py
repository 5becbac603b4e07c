"""Bad pixels, spikes and noise of spectra: batched, pure, without knowledge of surveys."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from maury.io.arrays import BoolArray, Float64Array, FloatArray
from maury.spectra.noise import check_correlation

# The reciprocal of any smaller ivar overflows in float32.
LEAST_IVAR = 4.0 * float(np.finfo(np.float32).tiny)
LARGEST_FLUX = 1e12
"""Flux, in whatever unit, beyond which a value is no measurement."""
FLUX_FLOOR = 0.05
"""Noise goes with the root of the flux down to this one: chosen, not measured, so that no pixel of
a saturated core is without noise and of infinite weight."""
_NORMALISED = (0.8, 1.25)
"""Between these a 90th percentile is that of a normalised spectrum: chosen, not measured, wide
enough for the crowded lines of cool stars, and far from fluxes in counts or physical units."""
_SPIKE_CURVATURE = 1.2
"""A fifth more than that of lines near by: the peak between two close lines hardly has it."""
_GAUSSIAN_QUARTILE = 0.6744897501960817
"""Median of |x| of normal deviates x of variance 1."""


def good_pixels(flux: ArrayLike, ivar: ArrayLike) -> BoolArray:
    """Pixels of usable flux and a positive, finite inverse variance, same shape.

    Flux is usable if it is finite, and no larger than `LARGEST_FLUX`, of which no square overflows.
    """
    values, weight = np.asarray(flux), np.asarray(ivar)
    usable = np.abs(values) <= LARGEST_FLUX
    return np.asarray(usable & (weight > LEAST_IVAR) & (weight < np.inf))


def fill_bad_pixels(flux: ArrayLike, ivar: ArrayLike, *, empty: float = 1.0) -> FloatArray:
    """Fill bad pixels by linear interpolation in pixel number between the nearest good ones.

    Beyond the first or last good pixel its value is repeated.

    Parameters
    ----------
    flux, ivar : (n_star, n_pixel)
    empty : float
        Value of rows without a single good pixel.

    Returns
    -------
    flux : (n_star, n_pixel), finite everywhere; good pixels are unchanged.
    """
    values = np.array(flux)
    good = good_pixels(values, ivar)
    rows = np.flatnonzero(~good.all(axis=1))
    if rows.size:
        values[rows] = _interpolated(values[rows], good[rows], empty)
    return values


def _interpolated(flux: FloatArray, good: BoolArray, empty: float) -> FloatArray:
    n_pixel = flux.shape[1]
    pixel = np.arange(n_pixel)
    before = np.maximum.accumulate(np.where(good, pixel, -1), axis=1)
    after = np.minimum.accumulate(np.where(good, pixel, n_pixel)[:, ::-1], axis=1)[:, ::-1]
    left = np.where(before < 0, np.minimum(after, n_pixel - 1), before)
    right = np.where(after == n_pixel, np.maximum(before, 0), after)
    # The same pixel on both sides is a good one, or beyond the last good one.
    share = (pixel - left) / np.maximum(right - left, 1)
    low = np.take_along_axis(flux, left, axis=1)
    high = np.take_along_axis(flux, right, axis=1)
    some = good.any(axis=1, keepdims=True)
    low, high = np.where(some, low, empty), np.where(some, high, empty)
    filled = (1.0 - np.clip(share, 0, 1)) * low + np.clip(share, 0, 1) * high
    return np.where(good, flux, filled.astype(flux.dtype))


def mask_cosmics(
    flux: ArrayLike,
    ivar: ArrayLike,
    *,
    n_sigma: float = 6.0,
    sharpness: float = 0.75,
    grow: int = 1,
) -> BoolArray:
    """Find cosmic rays: positive spikes of one or two pixels, narrower than any line.

    A pixel is a spike if it stands more than `n_sigma` above the running median of five pixels,
    and is too sharp for the LSF (2.5 pixels or more, full width at half maximum) by two tests.
    That excess must be at least `sharpness` of its height above the pixels two or three away: for
    a spike the ratio is one, for resolved emission, as in a core of the Ca II triplet, a third
    to 0.6. And its curvature must exceed that of the lines three to five pixels away by a fifth,
    which the peak between two close lines hardly ever does.

    Parameters
    ----------
    flux, ivar : (n_star, n_pixel)
    n_sigma, sharpness : float
    grow : int
        Pixels flagged on either side of a spike, as resampling spreads it.

    Returns
    -------
    spike : (n_star, n_pixel) bool
        Never set in a pixel that was bad already, but for `grow`.
    """
    good = good_pixels(flux, ivar)
    # Bad pixels must not pull the running median.
    filled = fill_bad_pixels(flux, ivar)
    excess = filled - _running_median5(filled)
    limit = n_sigma / np.sqrt(np.where(good, ivar, np.inf))
    spike = good & (excess > limit)
    row, pixel = np.nonzero(spike)
    if row.size:
        # Windows of spikes near an end reach beyond it.
        padded = np.pad(filled, ((0, 0), (6, 6)), mode="edge")
        around = padded[row[:, None], pixel[:, None] + np.arange(13)]
        sharp = excess[row, pixel] >= sharpness * _height(around)
        spike[row, pixel] = sharp & (_curvature_ratio(around) >= _SPIKE_CURVATURE)
    return _grown(spike, grow)


def _height(around: FloatArray) -> FloatArray:
    """Height of the central one of 13 pixels above those two or three away, (n,)."""
    foot = [0.5 * (around[:, 6 - k] + around[:, 6 + k]) for k in (2, 3)]
    return np.asarray(around[:, 6] - np.minimum(*foot))


def _curvature_ratio(around: FloatArray) -> FloatArray:
    """Downward curvature at the central one of 13 pixels over the largest 3 to 5 away, (n,)."""
    curvature = np.diff(around, n=2, axis=1)
    lines = np.abs(curvature[:, [0, 1, 2, 8, 9, 10]]).max(axis=1)
    return np.asarray(-curvature[:, 5] / np.maximum(lines, np.finfo(around.dtype).tiny))


def _running_median5(flux: FloatArray) -> FloatArray:
    """Take the running median of five pixels, by ten comparisons of whole arrays."""
    n_pixel = flux.shape[1]
    padded = np.pad(flux, ((0, 0), (2, 2)), mode="edge")
    a, b, c, d, e = (padded[:, k : k + n_pixel] for k in range(5))
    inner = np.maximum(np.minimum(a, b), np.minimum(c, d))
    outer = np.minimum(np.maximum(a, b), np.maximum(c, d))
    low, high = np.minimum(inner, outer), np.maximum(inner, outer)
    return np.maximum(low, np.minimum(high, e))


def _grown(mask: BoolArray, grow: int) -> BoolArray:
    wide = mask.copy()
    for step in range(1, grow + 1):
        wide[:, step:] |= mask[:, :-step]
        wide[:, :-step] |= mask[:, step:]
    return wide


def estimate_snr(
    flux: ArrayLike,
    ivar: ArrayLike | None = None,
    *,
    correlation: Sequence[float] = (0.44, 0.05),
    order: int = 6,
) -> Float64Array:
    """Signal-to-noise ratio per pixel at the continuum, from the spectrum itself.

    Differences of high order keep the noise near the Nyquist frequency, where a spectrum sampled
    at two pixels or more per resolution element holds hardly any signal. Each difference is
    divided by the square root of the local flux, and the noise follows from their median absolute
    value (Gaussian). With h the binomial weights of the difference and rho the autocorrelation of
    the noise, their variance is sigma^2 sum_ij h_i h_j rho(i - j): that factor is divided out, so
    that noise correlated between neighbours is not taken for less noise.

    Parameters
    ----------
    flux : (n_star, n_pixel)
        Normalised to continuum = 1.
    ivar : (n_star, n_pixel), optional
        Only its bad pixels are used.
    correlation : sequence of float
        Autocorrelation of the noise at lags 1, 2, ...; empty for independent pixels. The default
        is that of the RAVE-like reference spectra.
    order : int
        Order of the differences.

    Returns
    -------
    snr : (n_star,) float64
        NaN where fewer than 20 differences are usable, or all of them are zero.

    Raises
    ------
    CorrelationError
        If `correlation` is no autocorrelation of any noise.
    """
    values = np.asarray(flux)
    weight = np.ones_like(values) if ivar is None else np.asarray(ivar)
    kernel = np.array([1.0])
    # The n-th difference has binomial weights of alternating sign.
    for _ in range(order):
        kernel = np.convolve(kernel, [1.0, -1.0])
    # What white noise of the same variance would give, times what correlation leaves of it.
    factor = _variance_factor(kernel, check_correlation(correlation, name="correlation"))
    out = np.full(values.shape[0], np.nan)
    for start in range(0, values.shape[0], 256):
        rows = slice(start, start + 256)
        good = good_pixels(values[rows], weight[rows])
        out[rows] = _noise(np.where(good, values[rows], 0), good, kernel)
    return np.asarray(np.sqrt(factor) / np.where(out > 0, out, np.nan))


def _variance_factor(kernel: Float64Array, correlation: Sequence[float]) -> float:
    lags = np.correlate(kernel, kernel, mode="full")[kernel.size - 1 :]
    rho = np.zeros(kernel.size)
    rho[0] = 1.0
    known = np.asarray(correlation, dtype=np.float64)[: kernel.size - 1]
    rho[1 : 1 + known.size] = known
    return float(lags[0] + 2.0 * np.sum(lags[1:] * rho[1:]))


def _noise(flux: FloatArray, good: BoolArray, kernel: Float64Array) -> Float64Array:
    """Robust scale of the differences over the square root of the flux, (n_star,)."""
    n_out = max(flux.shape[1] - kernel.size + 1, 0)
    difference = np.zeros((flux.shape[0], n_out), flux.dtype)
    level = np.zeros_like(difference)
    usable = np.ones(difference.shape, dtype=bool)
    for k, weight in enumerate(kernel.astype(flux.dtype)):
        part = slice(k, k + n_out)
        difference += weight * flux[:, part]
        level += flux[:, part]
        usable &= good[:, part]
    level = np.maximum(level / kernel.size, FLUX_FLOOR)
    size = np.abs(difference) / np.sqrt(level)
    return _masked_median(size, usable) / _GAUSSIAN_QUARTILE


def _masked_median(values: FloatArray, usable: BoolArray) -> Float64Array:
    count = usable.sum(axis=1)
    out = np.full(count.size, np.nan)
    # Whole rows in one call; those with gaps are few.
    full = count == values.shape[1]
    if values.shape[1] >= 20 and full.any():
        out[full] = np.median(values[full], axis=1)
    for row in np.flatnonzero(~full & (count >= 20)):
        out[row] = np.median(values[row, usable[row]])
    return out


def continuum_level(flux: ArrayLike, ivar: ArrayLike) -> Float64Array:
    """Level of the continuum of each spectrum, (n_star,): 1 if it is normalised.

    Else the 90th percentile of the good pixels, which strong lines do not reach; 1 if there is no
    good pixel, or that percentile is not positive.

    Parameters
    ----------
    flux, ivar : (n_star, n_pixel)
    """
    values = np.asarray(flux)
    good = good_pixels(values, ivar)
    level = np.ones(values.shape[0])
    for row in np.flatnonzero(good.any(axis=1)):
        level[row] = np.percentile(values[row, good[row]], 90)
    normalised = (level > _NORMALISED[0]) & (level < _NORMALISED[1])
    return np.where(normalised | ~(level > 0), 1.0, level)


def ivar_from_snr(flux: ArrayLike, snr: ArrayLike) -> FloatArray:
    """Inverse variance of photon-limited spectra: sigma = sqrt(max(flux, 0.05)) / snr.

    Parameters
    ----------
    flux : (n_star, n_pixel)
        Normalised to continuum = 1.
    snr : (n_star,)
        Per pixel at the continuum.

    Returns
    -------
    ivar : (n_star, n_pixel), the dtype of `flux`; zero where the flux is not finite, or the S/N
        is not finite and positive.
    """
    values = np.asarray(flux)
    ratio = np.asarray(snr, dtype=np.float64)
    square = np.where(np.isfinite(ratio) & (ratio > 0), ratio, 0.0) ** 2
    finite = np.isfinite(values)
    ivar = square[:, None] / np.maximum(np.where(finite, values, 1.0), FLUX_FLOOR)
    return np.where(finite, ivar, 0.0).astype(values.dtype)
