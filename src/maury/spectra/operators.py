"""Operators on spectra: wavelength scales, velocities, resampling, continuum, noise.

Everything here is a pure function (or a frozen operator) of bare numpy arrays, batched over
stars, and knows nothing of surveys. Preparation, simulation and fits share these operators, so
that model and data pass through the same code.

``flux`` and ``ivar`` are always (n_star, n_pixel); ``ivar`` is the inverse variance of the flux,
and zero (or a value that is not finite) marks a bad pixel.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy.sparse
from numpy.typing import ArrayLike

from maury.io.arrays import BoolArray, Float64Array, FloatArray, IndexArray
from maury.spectra.continuum import CONTINUUM_METHODS, chebyshev_continuum, normalise_continuum
from maury.spectra.noise import check_correlation
from maury.spectra.pixels import (
    LEAST_IVAR,
    estimate_snr,
    fill_bad_pixels,
    good_pixels,
    ivar_from_snr,
    mask_cosmics,
)

__all__ = [
    "CONTINUUM_METHODS",
    "FWHM_PER_SIGMA",
    "SPEED_OF_LIGHT_KMS",
    "Resampler",
    "air_to_vacuum",
    "bin_edges",
    "broadening",
    "chebyshev_continuum",
    "doppler_factor",
    "estimate_snr",
    "fill_bad_pixels",
    "good_pixels",
    "ivar_from_snr",
    "mask_cosmics",
    "normalise_continuum",
    "refractive_index",
    "shift_to_rest",
    "to_rest_frame",
    "vacuum_to_air",
]


SPEED_OF_LIGHT_KMS = 299792.458
"""Exact, by the definition of the metre."""
# 64 stars of a thousand pixels, with their transposed copies, stay in the second-level cache.
_BLOCK = 64
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))
"""Full width at half maximum of a Gaussian of unit standard deviation."""
_REACH_SIGMA = 4.0
"""Beyond four standard deviations a Gaussian has 6e-5 of its area."""
_EDGE_TOLERANCE = 1e-6
"""Share of a pixel by which rounding may move an edge of a grid of thousands of angstrom."""


def refractive_index(vacuum_wave_aa: ArrayLike) -> Float64Array:
    """Refractive index of standard air (15 C, 101 325 Pa, 450 ppm CO2).

    Ciddor (1996, Applied Optics 35, 1566), eq. 1, as used by VALD and the SDSS.

    Parameters
    ----------
    vacuum_wave_aa : array_like
        Vacuum wavelength in angstrom, above 2000.

    Returns
    -------
    float64, same shape.
    """
    wavenumber2 = (1e4 / np.asarray(vacuum_wave_aa, dtype=np.float64)) ** 2
    return np.asarray(
        1.0 + 0.05792105 / (238.0185 - wavenumber2) + 0.00167917 / (57.362 - wavenumber2)
    )


def vacuum_to_air(wave_aa: ArrayLike) -> Float64Array:
    """Air wavelength in angstrom of a vacuum wavelength in angstrom (Ciddor 1996)."""
    wave = np.asarray(wave_aa, dtype=np.float64)
    return np.asarray(wave / refractive_index(wave))


def air_to_vacuum(wave_aa: ArrayLike) -> Float64Array:
    """Vacuum wavelength in angstrom of an air wavelength in angstrom.

    The inverse of `vacuum_to_air`, by fixed-point iteration: the index changes by some 1e-8 per
    angstrom, so that three rounds reach the rounding of float64.
    """
    air = np.asarray(wave_aa, dtype=np.float64)
    vacuum = air
    # One round more than rounding needs.
    for _ in range(4):
        vacuum = air * refractive_index(vacuum)
    return np.asarray(vacuum)


def doppler_factor(rv_kms: ArrayLike) -> Float64Array:
    """Observed over rest wavelength, sqrt((1 + v/c) / (1 - v/c)), for radial velocity `rv_kms`.

    NaN where the velocity is missing or not below the speed of light.
    """
    beta = np.asarray(rv_kms, dtype=np.float64) / SPEED_OF_LIGHT_KMS
    # Placeholders such as 1e20 and sentinels are no velocities.
    beta = np.where(np.abs(beta) < 1.0, beta, np.nan)
    return np.asarray(np.sqrt((1.0 + beta) / (1.0 - beta)))


def shift_to_rest(wave_aa: ArrayLike, rv_kms: ArrayLike) -> Float64Array:
    """Rest wavelengths of observed ones; the two arguments broadcast."""
    return np.asarray(np.asarray(wave_aa, dtype=np.float64) / doppler_factor(rv_kms))


def bin_edges(wave_aa: ArrayLike) -> Float64Array:
    """Edges (n_pixel + 1,) of the pixels centred on increasing wavelengths (n_pixel,).

    An inner edge lies midway between two centres; the outer ones lie as far beyond the first and
    last centre as the next edge lies within.

    Raises
    ------
    ValueError
        If there are fewer than two wavelengths or they do not increase.
    """
    wave = np.asarray(wave_aa, dtype=np.float64)
    if wave.ndim != 1 or wave.size < 2 or not np.all(np.diff(wave) > 0):
        raise ValueError("wavelengths must be one increasing array of at least two values")
    middle = 0.5 * (wave[1:] + wave[:-1])
    first = wave[0] - 0.5 * (wave[1] - wave[0])
    last = wave[-1] + 0.5 * (wave[-1] - wave[-2])
    return np.concatenate([[first], middle, [last]])


def broadening(wave_aa: ArrayLike, resolving_power: float, to: float) -> scipy.sparse.csr_matrix:
    """Matrix (n_pixel, n_pixel) that lowers the resolving power of spectra.

    A Gaussian line of full width lambda / R at half maximum becomes one of lambda / R' under a
    Gaussian of lambda sqrt(R'^-2 - R^-2), here cut off at four standard deviations. Each row sums
    to 1; pixels beyond the ends, or in gaps between arms, have no part.

    Parameters
    ----------
    wave_aa : (n_pixel,) array_like
        Pixel centres, increasing.
    resolving_power, to : float
        R and R'.

    Raises
    ------
    ValueError
        If R' is not lower than R.
    """
    if not 0 < to < resolving_power:
        raise ValueError(f"a resolving power of {resolving_power} is not lowered to {to}")
    wave = np.asarray(wave_aa, dtype=np.float64)
    sigma = wave * np.sqrt(to**-2 - resolving_power**-2) / FWHM_PER_SIGMA
    first = np.searchsorted(wave, wave - _REACH_SIGMA * sigma)
    last = np.searchsorted(wave, wave + _REACH_SIGMA * sigma, side="right")
    counts = last - first
    row = np.repeat(np.arange(wave.size), counts)
    column = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + first[row]
    width = np.diff(bin_edges(wave))
    weight = width[column] * np.exp(-0.5 * ((wave[column] - wave[row]) / sigma[row]) ** 2)
    total = np.bincount(row, weight, minlength=wave.size)
    return scipy.sparse.csr_matrix(
        (weight / total[row], (row, column)), shape=(wave.size, wave.size)
    )


def _working_dtype(flux: FloatArray) -> type[np.floating[Any]]:
    return np.float32 if flux.dtype == np.float32 else np.float64


def _overlaps(
    edges_in: Float64Array, lower: Float64Array, upper: Float64Array
) -> tuple[IndexArray, Float64Array]:
    """Input pixels that each output bin overlaps, and the lengths of the overlaps.

    Parameters
    ----------
    edges_in : (n_in + 1,)
    lower, upper : (n_bin,) edges of the output bins.

    Returns
    -------
    index : (width, n_bin) int
    overlap : (width, n_bin) float64, angstrom; zero where `index` was clipped to the grid.
    """
    n_in = edges_in.size - 1
    start = np.searchsorted(edges_in, lower, side="right") - 1
    stop = np.searchsorted(edges_in, upper, side="left")
    start, stop = np.clip(start, 0, n_in - 1), np.clip(stop, 1, n_in)
    # All output pixels take the widest stencil, so that the whole is one array.
    width = max(int((stop - start).max(initial=1)), 1)
    raw = start + np.arange(width)[:, None]
    index = np.minimum(raw, n_in - 1)
    overlap = np.minimum(edges_in[index + 1], upper) - np.maximum(edges_in[index], lower)
    return index, np.where(raw < n_in, np.maximum(overlap, 0.0), 0.0)


def _covered(edges_in: Float64Array, lower: Float64Array, upper: Float64Array) -> BoolArray:
    """Whether bins lie within the input grid, up to the rounding of the grids themselves."""
    # The same grid written twice differs by rounding, and must not lose its ends.
    slack = _EDGE_TOLERANCE * (upper - lower)
    return np.asarray((lower >= edges_in[0] - slack) & (upper <= edges_in[-1] + slack))


@dataclass(frozen=True)
class Resampler:
    """Flux-conserving resampling from one wavelength grid to another, as one sparse product.

    Flux is constant within an input pixel and averaged over an output pixel (SpectRes, Carnall
    2017, arXiv 1705.05165, eqs. 3 and 4): with overlaps o_jk and mask m_k,

    f_j = sum_k o_jk m_k f_k / sum_k o_jk m_k,
    var_j = sum_kl o_jk m_k o_jl m_l rho(k - l) sigma_k sigma_l / (sum_k o_jk m_k)^2,

    the diagonal of the propagated covariance; eq. 4 is its case of white noise, rho(0) = 1 alone.
    A pixel half way between two others thus has (1 + rho(1)) / 2 of their variance. What output
    pixels share is `maury.spectra.noise.resampled_correlation`.

    Parameters
    ----------
    wave_in_aa, wave_out_aa : (n_in,), (n_out,) increasing, in one medium and one frame.
    min_coverage : float
        Least fraction of an output pixel that good input pixels must cover. An output pixel that
        reaches beyond the input grid is always bad.
    noise_correlation : sequence of float
        Autocorrelation rho of the noise at lags of 1, 2, ... input pixels; empty if these are
        independent.

    Raises
    ------
    ValueError
        If a grid does not increase, or `min_coverage` lies outside (0, 1].
    CorrelationError
        If no noise has that correlation.

    Examples
    --------
    >>> resampler = Resampler([1.0, 2.0, 3.0, 4.0], [1.5, 3.5])
    >>> flux, ivar = resampler([[1.0, 3.0, 5.0, 7.0]], [[1.0, 1.0, 1.0, 1.0]])
    >>> flux.tolist(), ivar.tolist()
    ([[2.0, 6.0]], [[2.0, 2.0]])
    """

    wave_in_aa: ArrayLike
    wave_out_aa: ArrayLike
    min_coverage: float = field(default=0.5, kw_only=True)
    noise_correlation: Sequence[float] = field(default=(), kw_only=True)
    _weights: dict[str, tuple[Any, Any, tuple[Any, ...]]] = field(
        init=False, repr=False, compare=False
    )
    _inside: BoolArray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 < self.min_coverage <= 1.0:
            raise ValueError(f"min_coverage must lie in (0, 1], got {self.min_coverage}")
        edges_in, edges_out = bin_edges(self.wave_in_aa), bin_edges(self.wave_out_aa)
        lower, upper = edges_out[:-1], edges_out[1:]
        index, overlap = _overlaps(edges_in, lower, upper)
        inside = _covered(edges_in, lower, upper)
        total = overlap.sum(axis=0)
        fraction = np.where(inside, overlap / np.where(total > 0, total, 1.0), 0.0)
        shape = (lower.size, edges_in.size - 1)
        pointer = np.arange(0, index.size + 1, index.shape[0])
        weights = scipy.sparse.csr_array(
            (fraction.T.ravel(), index.T.ravel(), pointer), shape=shape
        )
        # Most stencils are narrower than the widest.
        weights.eliminate_zeros()
        squared = weights.multiply(weights).tocsr()
        lagged = tuple(
            2.0 * rho * weights[:, :-lag].multiply(weights[:, lag:]).tocsr()
            for lag, rho in enumerate(check_correlation(self.noise_correlation), start=1)
            if rho != 0.0 and lag < shape[1]
        )
        by_dtype = {
            name: (
                weights.astype(name),
                squared.astype(name),
                tuple(matrix.astype(name) for matrix in lagged),
            )
            for name in ("float32", "float64")
        }
        object.__setattr__(self, "_weights", by_dtype)
        object.__setattr__(self, "_inside", inside)

    def __call__(self, flux: ArrayLike, ivar: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Resample a batch.

        Parameters
        ----------
        flux, ivar : (n_star, n_in)
            float32 is worked in float32, everything else in float64.

        Returns
        -------
        flux, ivar : (n_star, n_out), both zero in bad pixels.

        Raises
        ------
        ValueError
            If the shapes do not fit each other or the grid.
        """
        flux_in, ivar_in = np.asarray(flux), np.asarray(ivar)
        n_out, n_in = self._weights["float64"][0].shape
        if flux_in.ndim != 2 or flux_in.shape[1] != n_in or ivar_in.shape != flux_in.shape:
            raise ValueError(
                f"resampler expects flux and ivar of shape (n_star, {n_in}), "
                f"got {flux_in.shape} and {ivar_in.shape}"
            )
        dtype = _working_dtype(flux_in)
        flux_out = np.zeros((flux_in.shape[0], n_out), dtype)
        ivar_out = np.zeros_like(flux_out)
        # Block by block, so that transposed copies stay small.
        for start in range(0, flux_in.shape[0], _BLOCK):
            rows = slice(start, start + _BLOCK)
            self._block(
                flux_in[rows].astype(dtype, copy=False),
                ivar_in[rows].astype(dtype, copy=False),
                (flux_out[rows], ivar_out[rows]),
            )
        return flux_out, ivar_out

    def _block(
        self, flux: FloatArray, ivar: FloatArray, out: tuple[FloatArray, FloatArray]
    ) -> None:
        weights = self._weights[flux.dtype.name][0]
        if _all_good(flux, ivar):
            out[0][...] = (weights @ np.ascontiguousarray(flux.T)).T
            variance = self._variance(np.reciprocal(ivar.T, order="C"))
            # Of infinite variance, hence ivar 0.
            variance[~self._inside] = np.inf
            np.reciprocal(variance.T, out=out[1])
            return
        good = good_pixels(flux, ivar)
        mean = weights @ np.where(good, flux, 0).T
        variance = self._variance(np.reciprocal(np.where(good, ivar, np.inf)).T)
        # What good pixels cover is what the weights must be renormalised by.
        cover = weights @ np.ascontiguousarray(good.T, dtype=flux.dtype)
        usable = cover >= self.min_coverage - _EDGE_TOLERANCE
        np.divide(mean.T, cover.T, out=out[0], where=usable.T)
        np.divide((cover * cover).T, variance.T, out=out[1], where=usable.T)

    def _variance(self, variance: FloatArray) -> FloatArray:
        """Variance (n_out, n_star) of sum_k o_jk m_k f_k, from that of pixels (n_in, n_star)."""
        _, squared, lagged = self._weights[variance.dtype.name]
        total = squared @ variance
        if lagged:
            sigma = np.sqrt(variance)
            for matrix in lagged:
                lag = sigma.shape[0] - matrix.shape[1]
                total += matrix @ (sigma[:-lag] * sigma[lag:])
        return np.asarray(total)


def _all_good(flux: FloatArray, ivar: FloatArray) -> bool:
    """Whether every pixel is good, by three reductions and no temporary array."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(flux.sum()) and ivar.min() > LEAST_IVAR and np.isfinite(ivar.max()))


def to_rest_frame(
    flux: ArrayLike,
    ivar: ArrayLike,
    rv_kms: ArrayLike,
    *,
    wave_in_aa: ArrayLike,
    wave_out_aa: ArrayLike,
    min_coverage: float = 0.5,
    noise_correlation: Sequence[float] = (),
) -> tuple[FloatArray, FloatArray]:
    """Move every star from its own radial velocity onto a common rest-frame grid.

    Flux-conserving, with the formulae of `Resampler`, to which it is equal at zero velocity. The
    flux counts as a continuum-normalised one: it is averaged, not divided by the Doppler factor.
    Overlaps are summed pixel by pixel rather than as differences of cumulative sums, so that one
    wild pixel cannot cost its neighbours their precision.

    Parameters
    ----------
    flux, ivar : (n_star, n_in)
    rv_kms : (n_star,)
        Positive when receding. NaN makes the whole row bad.
    wave_in_aa : (n_in,) observed grid.
    wave_out_aa : (n_out,) rest-frame grid, same medium.
    min_coverage : float
        Least fraction of an output pixel that good input pixels must cover.
    noise_correlation : sequence of float
        Autocorrelation of the noise at lags of 1, 2, ... observed pixels; empty if these are
        independent.

    Returns
    -------
    flux, ivar : (n_star, n_out), both zero in bad pixels.

    Raises
    ------
    ValueError
        If the shapes do not fit, or a grid does not increase.
    CorrelationError
        If no noise has that correlation.
    """
    correlation = check_correlation(noise_correlation)
    flux_in, ivar_in = np.asarray(flux), np.asarray(ivar)
    edges_in, edges_out = bin_edges(wave_in_aa), bin_edges(wave_out_aa)
    factor = doppler_factor(rv_kms)
    n_star = flux_in.shape[0]
    if flux_in.shape != (n_star, edges_in.size - 1) or ivar_in.shape != flux_in.shape:
        raise ValueError(
            f"flux and ivar must be (n_star, {edges_in.size - 1}), "
            f"got {flux_in.shape} and {ivar_in.shape}"
        )
    if factor.shape != (n_star,):
        raise ValueError(f"rv_kms must be ({n_star},), got {factor.shape}")
    dtype = _working_dtype(flux_in)
    flux_out = np.zeros((n_star, edges_out.size - 1), dtype)
    ivar_out = np.zeros_like(flux_out)
    # A row of unknown velocity keeps its zeros: no usable pixel.
    known = np.flatnonzero(np.isfinite(factor))
    for start in range(0, known.size, _BLOCK):
        rows = known[start : start + _BLOCK]
        flux_out[rows], ivar_out[rows] = _rest_block(
            flux_in[rows].astype(dtype, copy=False),
            ivar_in[rows].astype(dtype, copy=False),
            # Output edges go to the observed frame, which is one grid for all stars.
            factor[rows, None] * edges_out,
            edges_in,
            (min_coverage, correlation),
        )
    return flux_out, ivar_out


def _rest_block(
    flux: FloatArray,
    ivar: FloatArray,
    bounds: Float64Array,
    edges_in: Float64Array,
    options: tuple[float, tuple[float, ...]],
) -> tuple[FloatArray, FloatArray]:
    min_coverage, correlation = options
    n_row, n_out = bounds.shape[0], bounds.shape[1] - 1
    lower, upper = bounds[:, :-1].ravel(), bounds[:, 1:].ravel()
    index, overlap = _overlaps(edges_in, lower, upper)
    inside = _covered(edges_in, lower, upper)
    good = good_pixels(flux, ivar)
    flux = np.where(good, flux, 0)
    sigma = np.sqrt(np.reciprocal(np.where(good, ivar, np.inf)))
    offset = np.repeat(np.arange(n_row) * flux.shape[1], n_out)
    total, cover, mean, spread = np.zeros((4, n_row * n_out))
    # Pixels of one output pixel are neighbours, so that these are its terms at lags 1, 2, ...
    before: deque[FloatArray] = deque(maxlen=len(correlation))
    for pixel, length in zip(index, overlap, strict=True):
        flat = offset + pixel
        kept = length * good.take(flat)
        total += length
        cover += kept
        mean += kept * flux.take(flat)
        noise = kept * sigma.take(flat)
        spread += noise * noise
        for rho, earlier in zip(correlation, before, strict=False):
            spread += 2.0 * rho * noise * earlier
        before.appendleft(noise)
    usable = inside & (cover >= (min_coverage - _EDGE_TOLERANCE) * total) & (cover > 0)
    mean = np.divide(mean, cover, out=np.zeros_like(mean), where=usable)
    precision = np.divide(cover * cover, spread, out=np.zeros_like(mean), where=usable)
    dtype = flux.dtype
    return mean.reshape(n_row, n_out).astype(dtype), precision.reshape(n_row, n_out).astype(dtype)
