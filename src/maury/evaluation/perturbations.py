"""Real spectra and photometry changed as the sky, the instrument or a catalogue may change them.

Pure functions of a `Batch`, before its preparation: rows out = rows in. What changes the light is
computed on a clean spectrum of the star (`maury.evaluation.library.Library.clean`, continuum = 1)
and the difference is added to the observed one, so that its noise stays what it is said to be.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike

from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array
from maury.labels.columns import BANDS
from maury.simulation.broadening import transfer
from maury.simulation.mismatch import CALCIUM_AA
from maury.spectra.batch import Batch
from maury.spectra.noise import noise_kernel
from maury.spectra.observable_groups import column
from maury.spectra.observables import band, band_extinction
from maury.spectra.operators import FWHM_PER_SIGMA, SPEED_OF_LIGHT_KMS
from maury.spectra.pixels import FLUX_FLOOR, continuum_level, good_pixels, ivar_from_snr
from maury.spectra.spectra import arm_slices

INFRARED = ("J", "H", "Ks", "W1", "W2")
"""Bands of 2MASS and WISE, whose point spread is wider than Gaia's."""
_EMISSION = (0.25, 0.41, 0.34)
"""Share of each line of the triplet in the equivalent width of emission: as their depths are."""
_EMISSION_SIGMA_AA = 0.65
"""Of an emission core, some 50 km/s wide with the line spread at a resolving power of 7500."""
_CORE_SIGMA_AA = 0.8
"""Of the part of a Ca II line that forms in the chromosphere, as of `TheoryMismatch`."""
_KNOT_AA = 2.0
"""Apart are the knots of a field of line strengths: a line at R = 7500 is 1.2 angstrom wide, so
that each line has a strength of its own."""
_CALCIUM_AA = (6.0, 3.0)
"""Around a Ca II line strengths stay, and then rise: its wings would turn into a bad continuum."""
_N_FIELD = 8
"""Fields of line strengths: one alone may happen to look like metals, or not at all."""
_PAD = 64
"""Pixels beyond each end of an arm, so that the two ends do not meet in a Fourier transform."""


def with_flux(batch: Batch, flux: AnyArray) -> Batch:
    """Return the same stars with another flux (n_star, n_pixel)."""
    return replace(batch, spectra=batch.spectra.replace(flux=flux.astype(np.float32)))


def with_columns(batch: Batch, columns: Mapping[str, AnyArray]) -> Batch:
    """Return the same spectra with other values of some columns."""
    return replace(batch, columns=MappingProxyType({**batch.columns, **columns}))


def without_pixels(batch: Batch, lost: BoolArray) -> Batch:
    """Return the same stars without some pixels, (n_pixel,) or (n_star, n_pixel)."""
    ivar = np.where(lost, np.float32(0.0), batch.spectra.ivar)
    return replace(batch, spectra=batch.spectra.replace(ivar=ivar))


def without_ends(batch: Batch, blue: float, red: float) -> Batch:
    """Lose a share of the pixels at the blue end, and one at the red end."""
    place = (np.arange(batch.spectra.n_pixel) + 0.5) / batch.spectra.n_pixel
    return without_pixels(batch, np.asarray((place < blue) | (place > 1.0 - red)))


def without_all_but(batch: Batch, low_aa: float, high_aa: float) -> Batch:
    """Keep the pixels between two wavelengths, in angstrom."""
    wave = batch.spectra.wave_aa
    return without_pixels(batch, (wave < low_aa) | (wave > high_aa))


def without_random(batch: Batch, rng: np.random.Generator, share: float) -> Batch:
    """Lose a share of the pixels, each by itself, others in each star."""
    return without_pixels(batch, rng.random(batch.spectra.flux.shape) < share)


def without_gaps(batch: Batch, rng: np.random.Generator, number: int, pixels: int) -> Batch:
    """Lose some runs of so many pixels, elsewhere in each star; they may overlap."""
    n_pixel = batch.spectra.n_pixel
    first = rng.integers(0, max(n_pixel - pixels, 1), (len(batch), number))
    apart = np.arange(n_pixel) - first[:, :, None]
    return without_pixels(batch, np.any((apart >= 0) & (apart < pixels), axis=1))


def correlated_noise(
    variance: AnyArray, correlation: Sequence[float], rng: np.random.Generator
) -> Float64Array:
    """Noise (n_star, n_pixel) of a variance, with a correlation at lags of 1, 2, ... pixels."""
    kernel = noise_kernel(correlation)
    n_star, n_pixel = variance.shape
    white = rng.standard_normal((n_star, n_pixel + kernel.size - 1))
    noise = sum(share * white[:, lag : lag + n_pixel] for lag, share in enumerate(kernel))
    return np.asarray(noise * np.sqrt(variance))


def level(batch: Batch) -> Float64Array:
    """Level of the continuum of each spectrum, (n_star, 1)."""
    return continuum_level(batch.spectra.flux, batch.spectra.ivar)[:, None]


def variance(batch: Batch, clean: Float32Array) -> Float64Array:
    """Variance (n_star, n_pixel) of the noise, in units of the continuum, as the S/N says."""
    ratio = column(batch, "snr")[:, None]
    if np.isnan(ratio).all():
        weight = batch.spectra.ivar.astype(np.float64) * level(batch) ** 2
        return np.where(weight > 0, 1.0 / np.where(weight > 0, weight, 1.0), 0.0)
    ratio = np.where(ratio > 0, ratio, np.inf)
    return np.asarray(np.maximum(clean, FLUX_FLOOR) / ratio**2)


def at_snr(
    batch: Batch,
    rng: np.random.Generator,
    clean: Float32Array,
    *,
    snr: Float64Array,
    correlation: Sequence[float],
) -> Batch:
    """Add noise down to an S/N per pixel (n_star,), and say so; less noise than there is stays."""
    target = np.maximum(clean, FLUX_FLOOR) / snr[:, None] ** 2
    more = np.maximum(target - variance(batch, clean), 0.0)
    scale = level(batch)
    noisy = with_flux(batch, batch.spectra.flux + scale * correlated_noise(more, correlation, rng))
    return _told_snr(noisy, np.minimum(snr, np.where(snr > 0, column(batch, "snr"), snr)))


def overstated_snr(batch: Batch, factor: float) -> Batch:
    """Say that the S/N is so many times what it is."""
    told = with_columns(batch, {"snr": column(batch, "snr") * factor})
    ivar = batch.spectra.ivar * np.float32(factor**2)
    return replace(told, spectra=batch.spectra.replace(ivar=ivar))


def _told_snr(batch: Batch, snr: Float64Array) -> Batch:
    """Set the S/N, and ivar as a pipeline would that knows no other noise."""
    scale, spectra = level(batch), batch.spectra
    modelled = ivar_from_snr(spectra.flux / scale, snr) / scale**2
    ivar = np.where(good_pixels(spectra.flux, spectra.ivar), modelled, 0.0).astype(np.float32)
    return with_columns(replace(batch, spectra=spectra.replace(ivar=ivar)), {"snr": snr})


def changed_light(batch: Batch, clean: Float32Array, changed: AnyArray) -> Batch:
    """Add what a clean spectrum (n_star, n_pixel) became by a change to the observed one."""
    return with_flux(batch, batch.spectra.flux + level(batch) * (changed - clean))


def broadened(
    wave_aa: Float64Array,
    flux: AnyArray,
    *,
    rotation_kms: ArrayLike = 0.0,
    sigma_kms: ArrayLike = 0.0,
    rv_kms: ArrayLike = 0.0,
) -> Float64Array:
    """Broaden clean spectra by rotation and a Gaussian, and shift them by a velocity.

    Each arm by itself, at the velocity per pixel of its middle: widths are off by 2 % at the ends
    of RAVE's range, whose pixels are equal in wavelength.

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
    flux : (n_star, n_pixel) float
        Continuum = 1.
    rotation_kms, sigma_kms, rv_kms : float or (n_star,) array_like
        v sin i, standard deviation of the Gaussian, and velocity, positive when receding.

    Returns
    -------
    (n_star, n_pixel) float64
    """
    rotation, sigma, rv = (
        np.broadcast_to(np.asarray(x, dtype=np.float64), len(flux))
        for x in (rotation_kms, sigma_kms, rv_kms)
    )
    out = np.array(flux, dtype=np.float64)
    for arm in arm_slices(wave_aa):
        wave = wave_aa[arm]
        step_kms = SPEED_OF_LIGHT_KMS * np.median(np.diff(wave)) / np.median(wave)
        padded = np.pad(out[:, arm] - 1.0, ((0, 0), (_PAD, _PAD)), mode="edge")
        frequency = 2.0 * np.pi * scipy.fft.rfftfreq(padded.shape[1], step_kms)
        spectrum = scipy.fft.rfft(padded, axis=1)
        spectrum *= transfer(frequency.astype(np.float32), sigma**2, rotation, rv)
        out[:, arm] = 1.0 + scipy.fft.irfft(spectrum, padded.shape[1], axis=1)[:, _PAD:-_PAD]
    return out


def resolution_sigma_kms(resolving_power: float, factor: float) -> float:
    """Gaussian sigma, km/s, that takes spectra of a resolving power to `factor` times it."""
    extra = (factor * resolving_power) ** -2.0 - resolving_power**-2.0
    return float(SPEED_OF_LIGHT_KMS / FWHM_PER_SIGMA * np.sqrt(extra))


def line_strengths(
    wave_aa: Float64Array, flux: AnyArray, rng: np.random.Generator, rms: float
) -> Float64Array:
    """Scale the depth of each line by a factor of its own, the same in an eighth of the stars.

    The factors are linear between independent normal deviates 2 angstrom apart; over the pixels
    they have mean 1 and standard deviation `rms`, but near the Ca II lines, which stay. Wavelengths
    are in air.
    """
    knots = np.arange(wave_aa[0], wave_aa[-1] + _KNOT_AA, _KNOT_AA)
    drawn = rng.standard_normal((_N_FIELD, knots.size))
    field = np.array([np.interp(wave_aa, knots, values) for values in drawn])
    field -= field.mean(axis=1, keepdims=True)
    field /= field.std(axis=1, keepdims=True)
    apart = np.abs(wave_aa[:, None] - np.array(CALCIUM_AA)).min(axis=1)
    field *= np.clip((apart - _CALCIUM_AA[0]) / _CALCIUM_AA[1], 0.0, 1.0)
    strength = 1.0 + rms * field[np.arange(len(flux)) % _N_FIELD]
    return np.asarray(1.0 - strength * (1.0 - flux))


def fringes(
    wave_aa: Float64Array, flux: AnyArray, rng: np.random.Generator, amplitude: float
) -> Float64Array:
    """Multiply by a sine of 8 to 40 angstrom, of another period and phase in each star."""
    period, phase = rng.uniform(8.0, 40.0, len(flux)), rng.random(len(flux))
    angle = (wave_aa - wave_aa[0]) / period[:, None] + phase[:, None]
    return np.asarray(flux * (1.0 + amplitude * np.sin(2.0 * np.pi * angle)))


def tilted(flux: AnyArray, rng: np.random.Generator, rms: Float64Array) -> Float64Array:
    """Multiply by a random curve of Legendre orders 1 to 5 with an rms (n_star,)."""
    x = np.linspace(-1.0, 1.0, flux.shape[1])
    shape = np.polynomial.legendre.legvander(x, 5)[:, 1:] @ rng.normal(size=(5, len(flux)))
    return np.asarray(flux * (1.0 + (shape / shape.std(axis=0)).T * rms[:, None]))


def calcium_cores(wave_aa: Float64Array, flux: AnyArray, depth: Float64Array) -> Float64Array:
    """Lower the flux in the middle of each Ca II line by a depth (n_star,); negative fills it."""
    apart = (wave_aa - np.array(CALCIUM_AA)[:, None]) / _CORE_SIGMA_AA
    return np.asarray(flux - depth[:, None] * np.exp(-0.5 * apart**2).sum(axis=0))


def emission(wave_aa: Float64Array, flux: AnyArray, width_aa: Float64Array) -> Float64Array:
    """Add emission of an equivalent width (n_star,), in angstrom, to the three Ca II lines."""
    apart = (wave_aa - np.array(CALCIUM_AA)[:, None]) / _EMISSION_SIGMA_AA
    area = _EMISSION_SIGMA_AA * np.sqrt(2.0 * np.pi)
    return np.asarray(flux + width_aa[:, None] * (_EMISSION @ np.exp(-0.5 * apart**2)) / area)


def scattered(flux: AnyArray, share: float) -> Float64Array:
    """Add light without lines, a share of the continuum, before the continuum is divided out."""
    return np.asarray((flux + share) / (1.0 + share))


def _magnitude(batch: Batch, name: str) -> Float64Array:
    return column(batch, band(name).column)


def shifted_bands(batch: Batch, shift_mag: Mapping[str, Any]) -> Batch:
    """Add to the magnitudes of some bands, by name; a band that the survey lacks stays missing."""
    return with_columns(
        batch,
        {band(name).column: _magnitude(batch, name) + shift for name, shift in shift_mag.items()},
    )


def noisier_bands(
    batch: Batch, rng: np.random.Generator, bands: Sequence[str], *, rms: float, told: bool
) -> Batch:
    """Add independent noise to the magnitudes of some bands, and to their errors if it is told."""
    noise = rms * rng.standard_normal((len(bands), len(batch)))
    noisy = shifted_bands(batch, dict(zip(bands, noise, strict=True)))
    if not told:
        return noisy
    names = [f"{band(name).column}_error" for name in bands]
    known = {name: np.nan_to_num(column(batch, name)) for name in names}
    return with_columns(noisy, {name: np.hypot(values, rms) for name, values in known.items()})


def noisier_parallax(
    batch: Batch, rng: np.random.Generator, *, relative: float, told: bool
) -> Batch:
    """Scatter parallaxes by a share of themselves, and state that error if it is told."""
    true = column(batch, "parallax")
    columns = {"parallax": true * (1.0 + relative * rng.standard_normal(len(batch)))}
    if told:
        columns["parallax_error"] = np.abs(relative * true)
    return with_columns(batch, columns)


def without_some(batch: Batch, rng: np.random.Generator, share: float) -> Batch:
    """Lose each magnitude, the parallax and A_V of a share of the stars, each by itself."""
    names = [*(one.column for one in BANDS), "parallax", "a_v"]
    lost = rng.random((len(names), len(batch))) < share
    return with_columns(
        batch,
        {n: np.where(gone, np.nan, column(batch, n)) for n, gone in zip(names, lost, strict=True)},
    )


def one_band_off(batch: Batch, rng: np.random.Generator, shift_mag: float) -> Batch:
    """Add to the magnitude of one band of each star, drawn at random."""
    chosen = rng.integers(0, len(BANDS), len(batch))
    shift = {one.name: shift_mag * (chosen == k) for k, one in enumerate(BANDS)}
    return shifted_bands(batch, shift)


def reddened(batch: Batch, a_v: float, *, told: bool) -> Batch:
    """Redden the photometry by the extinction law (`band_extinction`), and A_V if it is told.

    Raises
    ------
    MissingExtra
        If the package of the law is not installed.
    """
    names = [one.name for one in BANDS]
    law = band_extinction(np.array([a_v]), names)[0]
    red = shifted_bands(batch, dict(zip(names, law, strict=True)))
    return with_columns(red, {"a_v": column(batch, "a_v") + a_v}) if told else red


def swapped_photometry(batch: Batch, rng: np.random.Generator) -> Batch:
    """Give each star magnitudes, parallax and A_V of another one of the batch, at random."""
    partner = rng.permutation(len(batch))
    names = [*(one.column for one in BANDS), "parallax", "a_v"]
    names = [one for name in names for one in (name, f"{name}_error") if one in batch.columns]
    return with_columns(batch, {name: batch.columns[name][partner] for name in names})


def blended(
    batch: Batch,
    rng: np.random.Generator,
    clean: Float32Array,
    second: AnyArray,
    *,
    light: Float64Array,
    correlation: Sequence[float],
) -> Batch:
    """Add the light of another spectrum, and noise so that the S/N stays.

    Parameters
    ----------
    batch : Batch
    rng : numpy Generator
    clean : (n_star, n_pixel) float32
        Of the stars themselves.
    second : (n_star, n_pixel) float
        Of the other light, continuum = 1.
    light : (n_star,) float64
        Its continuum over that of the star.
    correlation : sequence of float
        Of the noise, at lags of 1, 2, ... pixels.
    """
    ratio, scale = light[:, None], level(batch)
    both = (batch.spectra.flux / scale + ratio * second) / (1.0 + ratio)
    # The star's own noise is diluted with its lines.
    lost = variance(batch, clean) * (1.0 - (1.0 + ratio) ** -2.0)
    return with_flux(batch, scale * (both + correlated_noise(lost, correlation, rng)))


def added_magnitude(first: AnyArray, second: AnyArray) -> Float64Array:
    """Magnitude of two sources together; NaN where either is missing."""
    return np.asarray(-2.5 * np.log10(10.0 ** (-0.4 * first) + 10.0 ** (-0.4 * second)))
