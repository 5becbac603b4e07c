"""The observing model: from emulated flux to spectra as a fibre spectrograph sees them.

Defaults are those of RAVE (Steinmetz et al. 2020, AJ 160, 82): 912 pixels of 0.4 angstrom,
resolving power near 7500 and different from fibre to fibre. Line spread, macroturbulence,
rotation and radial velocity are one product in Fourier space, as the emulator's grid is uniform
in ln(lambda). Spectra made here are simulated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy.special import ndtr, ndtri

from maury.io.arrays import Float32Array, Float64Array
from maury.simulation.broadening import interpolation, transfer
from maury.simulation.mismatch import TheoryMismatch
from maury.spectra.noise import (
    Correlation,
    noise_kernel,
    same_correlation,
    side_weight_correlation,
)
from maury.spectra.operators import FWHM_PER_SIGMA, SPEED_OF_LIGHT_KMS, ivar_from_snr
from maury.spectra.pixels import FLUX_FLOOR

RAVE_WAVE_AA: Float64Array = np.asarray(8420.0 + 0.4 * np.arange(912), dtype=np.float64)
"""Air wavelengths of RAVE-like pixels, angstrom."""
RAVE_WAVE_AA.setflags(write=False)

# Beyond this exponent a broadened spectrum holds nothing that float32 noise would not hide.
_NEGLIGIBLE = 14.0
# Stars at a time, whose Fourier transforms of thousands of points stay in the cache.
_BLOCK = 64


class ObservingModel(BaseModel):
    """Instrument, star-to-star broadening, reduction faults and noise.

    Attributes
    ----------
    resolving_power, resolving_power_scatter : float
        Mean and standard deviation from fibre to fibre of lambda / FWHM, pixels included.
    resolving_power_range : (float, float)
        Limits of its truncated normal distribution.
    rotation_kms, rotation_scatter : float
        Median v sin i of stars cooler than 6000 K, and its lognormal scatter; the median doubles
        every 350 K above (a rough Kraft break).
    macroturbulence_kms : float
        Of the Sun; it changes by 1 km/s in 650 K (Valenti & Fischer 2005, ApJS 159, 141, eq. 1),
        within 2 to 8 km/s. Profile exp(-v^2 / macroturbulence^2).
    rv_error_kms : float
        Standard deviation of the radial velocity left after the shift to rest.
    continuum_rms : float
        Rms of the smooth residual of continuum normalisation, mean over stars.
    continuum_level : float
        Standard deviation, over stars, of the level of the continuum itself.
    fringe_rms : float
        Rms of fringes of one period per star, of 8 to 40 angstrom.
    snr_median, snr_scatter : float
        Median and lognormal scatter of the S/N per pixel at the continuum.
    snr_range : (float, float)
        Its limits.
    noise_side_weight : float
        Noise is white noise convolved with (w, 1, w), normalised: 0.247 gives correlations of 0.44
        and 0.05 between pixels one and two apart.
    noise_correlation : tuple of float, optional
        Autocorrelation of the noise at lags of 1, 2, ... pixels, in place of that weight.
    spike_fraction : float
        Fraction of stars with one to three unflagged spikes of one pixel.
    spike_height : (float, float)
        Range of their uniform heights, continuum = 1.
    theory_mismatch : TheoryMismatch
        Differences between stars and theory; none by default.

    Examples
    --------
    >>> ObservingModel(snr_median=40).rv_error_kms
    1.3
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    resolving_power: float = Field(default=7500.0, gt=0.0)
    resolving_power_scatter: float = Field(default=400.0, gt=0.0)
    resolving_power_range: tuple[float, float] = (6500.0, 8500.0)
    rotation_kms: float = Field(default=3.0, ge=0.0)
    rotation_scatter: float = Field(default=0.5, ge=0.0)
    macroturbulence_kms: float = Field(default=3.98, ge=0.0)
    rv_error_kms: float = Field(default=1.3, ge=0.0)
    continuum_rms: float = Field(default=0.004, ge=0.0)
    continuum_level: float = Field(default=0.0, ge=0.0)
    fringe_rms: float = Field(default=0.0015, ge=0.0)
    snr_median: float = Field(default=54.6, gt=0.0)
    snr_scatter: float = Field(default=0.395, gt=0.0)
    snr_range: tuple[float, float] = (20.0, 150.0)
    noise_side_weight: float = Field(default=0.247, ge=0.0, le=0.5)
    noise_correlation: Correlation | None = None
    spike_fraction: float = Field(default=0.03, ge=0.0, le=1.0)
    spike_height: tuple[float, float] = (0.1, 0.4)
    theory_mismatch: TheoryMismatch = TheoryMismatch()

    @property
    def correlation(self) -> tuple[float, ...]:
        """Autocorrelation of the noise at lags of 1, 2, ... pixels."""
        if self.noise_correlation is not None:
            return self.noise_correlation
        return side_weight_correlation(self.noise_side_weight)

    def at_power(self, resolving_power: float) -> ObservingModel:
        """Return the same conditions at another resolving power; scatter and range go with it."""
        ratio = resolving_power / self.resolving_power
        low, high = self.resolving_power_range
        return self.model_copy(
            update={
                "resolving_power": float(resolving_power),
                "resolving_power_scatter": ratio * self.resolving_power_scatter,
                "resolving_power_range": (ratio * low, ratio * high),
            }
        )

    def with_noise(self, correlation: Sequence[float]) -> ObservingModel:
        """Return the same conditions with noise of this correlation, unless it is theirs."""
        if same_correlation(self.correlation, correlation):
            return self
        return self.model_copy(update={"noise_correlation": tuple(correlation)})

    @model_validator(mode="after")
    def _ranges_increase(self) -> ObservingModel:
        for name in ("resolving_power_range", "snr_range", "spike_height"):
            low, high = getattr(self, name)
            if not 0.0 < low < high:
                raise ValueError(f"{name} must be positive and increase, got ({low}, {high})")
        return self


TRAINING_CONDITIONS = ObservingModel()
SURVEY_CONDITIONS = ObservingModel(snr_median=40.0, snr_scatter=0.45, snr_range=(10.0, 150.0))


@dataclass(frozen=True)
class Observation:
    """Simulated spectra, and what was drawn to make them.

    Attributes
    ----------
    flux, ivar : (n_star, n_pixel) float32
        As in a survey: `ivar` follows from the S/N and the noisy flux.
    snr : (n_star,) float64
        Per pixel at the continuum.
    clean_flux : (n_star, n_pixel) float32
        Without noise and spikes.
    resolving_power, rotation_kms, macroturbulence_kms, rv_kms : (n_star,) float64
    """

    flux: Float32Array
    ivar: Float32Array
    snr: Float64Array
    clean_flux: Float32Array
    resolving_power: Float64Array
    rotation_kms: Float64Array
    macroturbulence_kms: Float64Array
    rv_kms: Float64Array


class Dispersed(NamedTuple):
    """Spectra as `Spectrograph.disperse` makes them, and what was drawn for them.

    Attributes
    ----------
    flux : (n_star, n_pixel) float32
    resolving_power, rotation_kms, macroturbulence_kms, rv_kms : (n_star,) float64
    """

    flux: Float32Array
    resolving_power: Float64Array
    rotation_kms: Float64Array
    macroturbulence_kms: Float64Array
    rv_kms: Float64Array


@dataclass(frozen=True, eq=False)
class Spectrograph:
    """Observes emulated flux with an `ObservingModel`.

    Parameters
    ----------
    wave_in_aa : (n_in,) float64
        Grid of the emulated flux, uniform in ln(lambda).
    wave_out_aa : (n_pixel,) float64
        Pixels, same medium, within `wave_in_aa`.
    resolving_power_in : float
        Of the emulated flux.
    model : ObservingModel

    Raises
    ------
    ValueError
        If the input grid is not uniform in ln(lambda), or does not cover the pixels.
    """

    wave_in_aa: Float64Array
    wave_out_aa: Float64Array
    resolving_power_in: float
    model: ObservingModel

    def __post_init__(self) -> None:
        step = np.diff(np.log(self.wave_in_aa))
        if np.ptp(step) > 1e-3 * step.mean() or step.mean() <= 0:
            raise ValueError("wave_in_aa must increase uniformly in ln(lambda)")
        inside = self.wave_out_aa[[0, -1]] - self.wave_in_aa[[2, -3]]
        if inside[0] < 0 or inside[1] > 0:
            raise ValueError(
                f"pixels {self.wave_out_aa[0]:.1f}-{self.wave_out_aa[-1]:.1f} reach beyond the "
                f"emulated {self.wave_in_aa[0]:.1f}-{self.wave_in_aa[-1]:.1f} angstrom"
            )

    @cached_property
    def step_kms(self) -> float:
        """Velocity of one input pixel."""
        ratio = np.log(self.wave_in_aa[-1] / self.wave_in_aa[0])
        return float(SPEED_OF_LIGHT_KMS * ratio / (self.wave_in_aa.size - 1))

    def observe(
        self,
        flux: ArrayLike,
        labels: ArrayLike,
        rng: np.random.Generator,
        *,
        snr: ArrayLike | None = None,
    ) -> Observation:
        """Observe a batch of stars.

        Parameters
        ----------
        flux : (n_star, n_in) array_like
            Emulated flux, continuum = 1.
        labels : (n_star, n_label) array_like
            The first column is Teff in kelvin.
        rng : numpy Generator
        snr : (n_star,) array_like, optional
            S/N per pixel at the continuum, instead of drawing it.

        Returns
        -------
        Observation
        """
        sharp = self.disperse(flux, labels, rng)
        clean = sharp.flux * self._continuum_residual(len(sharp.flux), rng)
        ratio = self.draw_snr(len(clean), rng) if snr is None else np.asarray(snr, np.float64)
        noisy, ivar = self._degraded(clean, ratio, rng)
        return Observation(
            flux=noisy,
            ivar=ivar,
            snr=ratio,
            clean_flux=clean,
            resolving_power=sharp.resolving_power,
            rotation_kms=sharp.rotation_kms,
            macroturbulence_kms=sharp.macroturbulence_kms,
            rv_kms=sharp.rv_kms,
        )

    def disperse(
        self,
        flux: ArrayLike,
        labels: ArrayLike,
        rng: np.random.Generator | None = None,
        *,
        rotation_kms: ArrayLike = np.nan,
        rv_kms: ArrayLike = np.nan,
    ) -> Dispersed:
        """Broaden and shift stars as their kind and fibre would, without reduction and noise.

        Parameters
        ----------
        flux : (n_star, n_in) array_like
            Emulated flux, continuum = 1.
        labels : (n_star, n_label) array_like
            The first column is Teff in kelvin.
        rng : numpy Generator, optional
            Without it, every star has the typical broadening of its kind and is at rest.
        rotation_kms, rv_kms : (n_star,) array_like
            In place of what is drawn, or typical; NaN leaves that.

        Returns
        -------
        Dispersed
        """
        source = np.asarray(flux, dtype=np.float32)
        n, model = source.shape[0], self.model
        teff = np.asarray(labels, dtype=np.float64)[:, 0]
        power, rv = np.full(n, model.resolving_power), np.zeros(n)
        if rng is not None:
            scatter, limits = model.resolving_power_scatter, model.resolving_power_range
            power = _truncated_normal(model.resolving_power, scatter, limits, rng.random(n))
        rotation, macroturbulence = self.typical_broadening(teff, rng)
        if rng is not None:
            rv = np.asarray(model.rv_error_kms * rng.standard_normal(n))
            if not model.theory_mismatch.absent:
                source = model.theory_mismatch.apply(source, self.wave_in_aa, rng)
        rotation, rv = (
            np.where(np.isnan(given), own, given)
            for given, own in ((np.asarray(rotation_kms), rotation), (np.asarray(rv_kms), rv))
        )
        sharp = self.broaden(
            source,
            resolving_power=power,
            rotation_kms=rotation,
            macroturbulence_kms=macroturbulence,
            rv_kms=rv,
        )
        return Dispersed(sharp, power, rotation, macroturbulence, rv)

    def degrade(
        self, sharp_flux: ArrayLike, snr: ArrayLike, rng: np.random.Generator
    ) -> tuple[Float32Array, Float32Array]:
        """Give spectra a continuum residual, noise and spikes, anew at each call.

        Parameters
        ----------
        sharp_flux : (n_star, n_pixel) array_like
            As from `disperse`.
        snr : (n_star,) array_like
            S/N per pixel at the continuum.
        rng : numpy Generator

        Returns
        -------
        flux, ivar : (n_star, n_pixel) float32
        """
        sharp = np.asarray(sharp_flux, dtype=np.float32)
        clean = sharp * self._continuum_residual(len(sharp), rng)
        return self._degraded(clean, np.asarray(snr, dtype=np.float64), rng)

    def _degraded(
        self, clean: Float32Array, snr: Float64Array, rng: np.random.Generator
    ) -> tuple[Float32Array, Float32Array]:
        noisy = clean + self._noise(clean, snr, rng)
        self._add_spikes(noisy, rng)
        # From the noisy flux, as a pipeline would that knows no other.
        return noisy, ivar_from_snr(noisy, snr).astype(np.float32, copy=False)

    def broaden(
        self,
        flux: ArrayLike,
        *,
        resolving_power: ArrayLike,
        rotation_kms: ArrayLike,
        macroturbulence_kms: ArrayLike,
        rv_kms: ArrayLike,
    ) -> Float32Array:
        """Broaden and shift flux (n_star, n_in), and interpolate it to the pixels.

        The line spread is Gaussian, narrower by the resolution that the flux already has.
        Rotation is that of Gray (2005, *The Observation and Analysis of Stellar Photospheres*,
        eq. 18.14) with limb darkening 0.6. All other arguments are (n_star,).

        Returns
        -------
        (n_star, n_pixel) float32
        """
        source = np.asarray(flux, dtype=np.float32)
        power, rotation, macroturbulence, rv = (
            np.broadcast_to(np.asarray(x, dtype=np.float64), source.shape[:1])
            for x in (resolving_power, rotation_kms, macroturbulence_kms, rv_kms)
        )
        # The emulator is broadened already, at its own resolving power: the rest is what is
        # missing.
        instrument = (SPEED_OF_LIGHT_KMS / FWHM_PER_SIGMA) ** 2 * np.clip(
            power**-2.0 - self.resolving_power_in**-2.0, 0.0, None
        )
        # Gaussians of line spread and macroturbulence are one: their variances add.
        variance = instrument + 0.5 * macroturbulence**2
        frequency = 2.0 * np.pi * scipy.fft.rfftfreq(source.shape[1], self.step_kms)
        least = max(float(variance.min(initial=np.inf)), 1e-9)
        # Sharp spectra are cut where even the sharpest of the batch has no power left.
        kept = int(np.searchsorted(0.5 * least * frequency**2, _NEGLIGIBLE))
        frequency = frequency[:kept].astype(np.float32)
        out = np.empty((source.shape[0], self.wave_out_aa.size), dtype=np.float32)
        for start in range(0, source.shape[0], _BLOCK):
            rows = slice(start, start + _BLOCK)
            # Less 1, so that the spectrum is near 0 at its ends, which the transform joins.
            transform = scipy.fft.rfft(source[rows] - np.float32(1.0), axis=1)
            transform[:, kept:] = 0
            transform[:, :kept] *= transfer(frequency, variance[rows], rotation[rows], rv[rows])
            broadened = scipy.fft.irfft(transform, source.shape[1], axis=1)
            out[rows] = (self.interpolator @ np.ascontiguousarray(broadened.T)).T
        out += np.float32(1.0)
        return out

    def draw_snr(self, n_star: int, rng: np.random.Generator) -> Float64Array:
        """Draw S/N (n_star,) from its truncated lognormal distribution."""
        model = self.model
        low, high = np.log(model.snr_range)
        drawn = _truncated_normal(
            float(np.log(model.snr_median)), model.snr_scatter, (low, high), rng.random(n_star)
        )
        return np.asarray(np.exp(drawn))

    @cached_property
    def interpolator(self) -> Any:
        """Sparse Lagrange interpolation (n_pixel, n_in) through the six nearest input pixels."""
        return interpolation(self.wave_in_aa, self.wave_out_aa)

    def typical_broadening(
        self, teff: Float64Array, rng: np.random.Generator | None = None
    ) -> tuple[Float64Array, Float64Array]:
        """V sin i and macroturbulence (n_star,) in km/s, drawn or typical."""
        model = self.model
        # At most four doublings, reached at 7400 K.
        doubling = np.clip((teff - 6000.0) / 350.0, 0.0, 4.0)
        rotation = model.rotation_kms * 2.0**doubling
        if rng is not None:
            # v sin i is positive and skewed, hence lognormal.
            rotation = rotation * np.exp(model.rotation_scatter * rng.standard_normal(teff.size))
        solar = model.macroturbulence_kms
        macroturbulence = np.clip(solar + (teff - 5770.0) / 650.0, min(2.0, solar), 8.0)
        return rotation, macroturbulence

    @cached_property
    def _continuum_basis(self) -> Float32Array:
        """Legendre polynomials of orders 1 to 7, (7, n_pixel), whose mean squares add up to 1."""
        wave = self.wave_out_aa
        x = 2.0 * (wave - wave[0]) / (wave[-1] - wave[0]) - 1.0
        basis = np.polynomial.legendre.legvander(x, 7)[:, 1:].T
        basis /= np.sqrt(np.mean(basis**2, axis=1, keepdims=True))
        # Red: low orders are what a continuum fit leaves most of.
        weight = np.arange(1, 8) ** -0.5
        weight /= np.sqrt(np.sum(weight**2))
        return np.asarray(weight[:, None] * basis, dtype=np.float32)

    def _continuum_residual(self, n: int, rng: np.random.Generator) -> Float32Array:
        """Factor (n_star, n_pixel) near 1: smooth residual, level and fringes."""
        model, basis = self.model, self._continuum_basis
        coefficients = rng.standard_normal((n, basis.shape[0]), dtype=np.float32)
        residual = np.float32(model.continuum_rms) * (coefficients @ basis)
        amplitude, phase, period = rng.random((3, n, 1), dtype=np.float32)
        wave = (self.wave_out_aa - self.wave_out_aa[0]).astype(np.float32)
        wavenumber = np.float32(2.0 * np.pi) / (8.0 + 32.0 * period)
        fringe = np.sin(wave * wavenumber + np.float32(2.0 * np.pi) * phase)
        # A uniform amplitude times a sine has rms amplitude_max / sqrt(6).
        fringe *= np.float32(model.fringe_rms * np.sqrt(6.0)) * amplitude
        residual += fringe
        residual += np.float32(1.0)
        # Nothing is drawn for no level, so that stars of earlier versions stay what they were.
        if model.continuum_level > 0.0:
            level = rng.standard_normal((n, 1), dtype=np.float32)
            residual += np.float32(model.continuum_level) * level
        return np.asarray(residual)

    def _noise(
        self, flux: Float32Array, snr: Float64Array, rng: np.random.Generator
    ) -> Float32Array:
        kernel = self._noise_kernel
        n_star, n_pixel = flux.shape
        white = rng.standard_normal((n_star, n_pixel + kernel.size - 1), dtype=np.float32)
        noise = kernel[0] * white[:, :n_pixel]
        # Shifted sums of whole arrays, for a kernel of a few pixels.
        for lag, share in enumerate(kernel[1:], start=1):
            noise += share * white[:, lag : lag + n_pixel]
        noise *= np.sqrt(np.maximum(flux, np.float32(FLUX_FLOOR)))
        noise *= (1.0 / snr)[:, None].astype(np.float32)
        return np.asarray(noise)

    @cached_property
    def _noise_kernel(self) -> Float32Array:
        side = self.model.noise_side_weight
        if self.model.noise_correlation is not None:
            return noise_kernel(self.model.noise_correlation).astype(np.float32)
        kernel = np.array([side, 1.0, side]) / np.sqrt(1.0 + 2.0 * side**2)
        return np.asarray(kernel, dtype=np.float32)

    def _add_spikes(self, flux: Float32Array, rng: np.random.Generator) -> None:
        """Add spikes to `flux`, an array that `observe` has just made."""
        star = np.flatnonzero(rng.random(flux.shape[0]) < self.model.spike_fraction)
        # One to three spikes each.
        star = np.repeat(star, rng.integers(1, 4, star.size))
        pixel = rng.integers(0, flux.shape[1], star.size)
        flux[star, pixel] += rng.uniform(*self.model.spike_height, star.size).astype(np.float32)


def _truncated_normal(
    mean: float, sigma: float, limits: tuple[float, float], u: ArrayLike
) -> Float64Array:
    """Return truncated normal deviates of uniform ones `u`."""
    low, high = (ndtr((limit - mean) / sigma) for limit in limits)
    return np.asarray(mean + sigma * ndtri(low + np.asarray(u) * (high - low)))
