"""Stars to train on, simulated as a survey would see them.

A few thousand labelled spectra are too few to train a network: it learns their noise. Here they
enter as (1) a calibration of the emulator, so that simulated spectra look like those of the survey
and not like theory, and (2) a smooth density of labels and observables. Networks then see only
simulated spectra, each with noise of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache, cached_property
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.linalg import qr
from scipy.spatial import cKDTree

from maury.errors import ConfigError, ModelFileError
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_scale
from maury.simulation.emulator import Emulator
from maury.simulation.observing import ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.simulation.theory import (
    _FLUX_FLOOR,
    TheoryCalibration,
)
from maury.spectra.operators import vacuum_to_air

__all__ = ["BatchNoise", "DrawConfig", "RestingStars", "SimulatedPool", "Sky", "draw_around"]

_STEP_KELVIN = 10.0
_TOLERANCE = 3e-4
_PROBES = 3


@dataclass(frozen=True, eq=False)
class RestingStars:
    """What `Spectrograph.disperse` makes of emulated flux without a random generator.

    Make one with `RestingStars.prepare`.

    Attributes
    ----------
    emulator : Emulator
    teff_kelvin : (n_node,) float64
        Temperatures at which the weights are known.
    weights : (n_node, n_term) float64
    basis : (n_term (n_coefficient + 1), n_pixel) float32
        Of each term: the broadened components, and the broadened mean less 1.
    """

    emulator: Emulator
    teff_kelvin: Float64Array
    weights: Float64Array
    basis: Float32Array

    @classmethod
    def prepare(cls, emulator: Emulator, spectrograph: Spectrograph) -> Self:
        """Find temperatures whose broadenings make up all others, and broaden at these.

        To three parts in 10 000 of the broadening profile; the emulator itself errs by more.
        """
        low, high = emulator.bounds[0]
        teff = np.linspace(low, high, max(2, round((high - low) / _STEP_KELVIN) + 1))
        profiles = _profiles(spectrograph, teff)
        size, order = qr(profiles.T, mode="r", pivoting=True)
        decline = np.abs(np.diag(size)) / abs(size[0, 0])
        chosen = order[: max(1, int((decline > _TOLERANCE).sum()))]
        weights = np.linalg.lstsq(profiles[chosen].T, profiles.T, rcond=None)[0].T
        deviations = np.vstack([emulator.tensors.basis, emulator.tensors.mean - np.float32(1.0)])
        basis = np.vstack([_dispersed(spectrograph, deviations, teff[k]) for k in chosen])
        return cls(emulator, teff, weights, basis)

    def flux(self, labels: Float64Array) -> Float32Array:
        """Flux (n_star, n_pixel) of labels (n_star, 16) within the bounds of the emulator.

        NaN throughout a row whose labels are not all finite.
        """
        coefficients = self.emulator.coefficients(labels)
        one = np.ones((len(coefficients), 1), dtype=np.float32)
        extended = np.hstack([coefficients, one])
        teff = np.asarray(labels, dtype=np.float64)[:, 0]
        mixed = np.hstack(
            [
                extended * np.interp(teff, self.teff_kelvin, weight)[:, None].astype(np.float32)
                for weight in self.weights.T
            ]
        )
        flux = mixed @ self.basis
        flux += np.float32(1.0)
        return flux


def _profiles(spectrograph: Spectrograph, teff_kelvin: Float64Array) -> Float64Array:
    """Broadened needles (n_teff, n) at neighbouring input pixels, which sample the profile."""
    middle = spectrograph.wave_in_aa.size // 2
    probes = []
    for pixel in range(middle, middle + _PROBES):
        needle = np.zeros((teff_kelvin.size, spectrograph.wave_in_aa.size), dtype=np.float32)
        needle[:, pixel] = 1.0
        probes.append(_dispersed(spectrograph, needle, teff_kelvin))
    return np.concatenate(probes, axis=1).astype(np.float64)


def _dispersed(
    spectrograph: Spectrograph, deviations: Float32Array, teff_kelvin: Float64Array | float
) -> Float32Array:
    """Deviations from 1 (n, n_in) broadened and at the pixels (n, n_pixel)."""
    labels = np.broadcast_to(teff_kelvin, len(deviations))[:, None]
    flux = spectrograph.disperse(deviations + np.float32(1.0), labels).flux
    return np.asarray(flux - np.float32(1.0))


_METRIC = np.array([1.5, 1.5, 1.5, 0.0, 0.7, 0.3, 0.3, 0.5, 0.3])
"""Weight of each label in the distance between stars; [Fe/H] counts as [M/H]."""
_N_STRUCTURAL = 4
"""Teff, log g, [M/H] and [Fe/H], which structure the atmosphere, come before the abundances."""
_BLOCK = 2048
_LARGEST_STEP = 0.8
_LOW_SNR = (10.0, 100.0)
ADVICE = "train another network with --preset guiglion2020, starnet or astronn"


class DrawConfig(BaseModel):
    """How stars are drawn around the labelled ones.

    Attributes
    ----------
    neighbours : int
        Among which the differences are taken.
    step : float
        A drawn star is a labelled one plus `step` times the difference of two of its neighbours,
        labels and observables alike, so that their relation is kept.
    widen : float
        `step` grows with (distance to the neighbours) ** widen, up to 0.8, where that is above its
        median: lone stars would else be learnt by heart.
    tail : float
        Stars are chosen in proportion to (distance to the neighbours) ** tail: rare stars oftener.
    free_share, free_width : float
        Share of stars whose abundances, [alpha/M] and those after it, also vary independently of
        one another, and by how much in units of their scatter (times a lognormal factor): each is
        then learnt from its own lines, and stars unlike all labelled ones are met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours: int = Field(default=24, ge=2)
    step: float = Field(default=0.2, ge=0.0, le=_LARGEST_STEP)
    widen: float = Field(default=1.0, ge=0.0, le=5.0)
    tail: float = Field(default=1.0, ge=0.0, le=5.0)
    free_share: float = Field(default=0.0, ge=0.0, le=1.0)
    free_width: float = Field(default=0.8, ge=0.0, le=5.0)


_DRAW = DrawConfig()


def draw_around(
    labels: Float64Array,
    observables: Float64Array,
    n_star: int,
    rng: np.random.Generator,
    *,
    config: DrawConfig = _DRAW,
    sparse: Sequence[int] = (),
) -> tuple[Float64Array, Float64Array]:
    """Draw labels and observables of simulated stars: a local, smoothed bootstrap.

    Parameters
    ----------
    labels : (n, 9) float64
        Of labelled stars, in the order of `maury.labels.definitions.LABELS`.
    observables : (n, n_observable) float64
        NaN where missing.
    n_star : int
    rng : numpy Generator
    config : DrawConfig
    sparse : sequence of int
        Numbers of observables that few stars may have. A star that has one, but whose chosen
        neighbours do not, is drawn as it is, so that the observable stays as frequent as it was.

    Returns
    -------
    (n_star, 9), (n_star, n_observable) float64
        Any other observable that any of the three stars lacks is missing, unless `step` is 0, which
        gives the labelled stars themselves. One that is never negative among the labelled stars
        stays so.
    """
    centre, scale = robust_scale(labels)
    place = np.clip((labels - centre) / scale, -8.0, 8.0) * _METRIC
    count = min(config.neighbours, len(labels) - 1)
    distance, near = cKDTree(place).query(place, k=count + 1)
    reach = distance[:, -1] / max(float(np.median(distance[:, -1])), 1e-12)
    chance = np.clip(reach, 0.3, 6.0) ** config.tail
    base = rng.choice(len(labels), size=n_star, p=chance / chance.sum())
    plus, minus = near[base, rng.integers(1, count + 1, (2, n_star))]
    step = config.step * np.maximum(reach[base, None], 1.0) ** config.widen
    step = np.minimum(step, _LARGEST_STEP)
    has = np.isfinite(observables[:, list(sparse)])
    alone = (has[base] & ~(has[plus] & has[minus])).any(axis=1, keepdims=True) | (step == 0)
    drawn = [
        np.where(alone, x[base], x[base] + step * (x[plus] - x[minus]))
        for x in (labels, observables)
    ]
    free = np.flatnonzero(rng.random(n_star) < config.free_share)
    width = config.free_width * scale[_N_STRUCTURAL:]
    strength = np.exp(0.5 * rng.standard_normal((free.size, 1)))
    drawn[0][free, _N_STRUCTURAL:] += (
        strength * width * rng.standard_normal((free.size, width.size))
    )
    positive = ~(np.where(np.isfinite(observables), observables, 0.0) < 0).any(axis=0)
    return drawn[0], np.where(positive, np.maximum(drawn[1], 0.0), drawn[1])


@dataclass(frozen=True, eq=False)
class SimulatedPool:
    """Simulated spectra before reduction and noise, observed anew in every batch.

    Attributes
    ----------
    flux : (n_star, n_pixel) float32
        Calibrated, broadened and shifted.
    labels, observables : (n_star, n_label), (n_star, n_observable) float64
    calibration : TheoryCalibration
        Its modes of cores and continuum are drawn for each spectrum.
    survey_snr : (n,) float64
        S/N of the labelled stars, from which that of a simulated one is drawn.
    spectrograph : Spectrograph
    noise : BatchNoise
    """

    flux: Float32Array
    labels: Float64Array
    observables: Float64Array
    calibration: TheoryCalibration
    survey_snr: Float64Array
    spectrograph: Spectrograph
    noise: BatchNoise

    def batch(
        self, n_star: int, rng: np.random.Generator
    ) -> tuple[Float32Array, Float32Array, Float64Array, Float64Array]:
        """Observe stars drawn at random.

        Returns
        -------
        flux, ivar : (n_star, n_pixel) float32
        observables : (n_star, n_observable) float64
        labels : (n_star, n_label) float64
        """
        row = rng.integers(0, len(self.flux), n_star)
        cores, continuum = (
            rng.standard_normal((n_star, len(modes)), dtype=np.float32) @ modes
            for modes in (self.calibration.core_modes, self.calibration.continuum_modes)
        )
        sharp = (self.flux[row] + cores) * (np.float32(1.0) + continuum)
        flux, ivar = self.spectrograph.degrade(sharp, self._snr(n_star, rng), rng)
        self._drop_pixels(ivar, rng)
        jitter = rng.standard_normal((n_star, self.observables.shape[1]))
        jitter[:, [k for k in self.noise.quiet if k < jitter.shape[1]]] = 0.0
        observables = self.observables[row] + self.noise.magnitude_rms * jitter
        return flux, ivar, observables, self.labels[row]

    def _snr(self, n_star: int, rng: np.random.Generator) -> Float64Array:
        drawn = rng.choice(self.survey_snr, n_star) * np.exp(0.1 * rng.standard_normal(n_star))
        low = rng.random(n_star) < self.noise.low_snr_share
        lowest, highest = np.log(_LOW_SNR)
        drawn[low] = np.exp(rng.uniform(lowest, highest, int(low.sum())))
        return np.asarray(drawn)

    def _drop_pixels(self, ivar: Float32Array, rng: np.random.Generator) -> None:
        """Put gaps into `ivar`, an array that `batch` has just made."""
        n_star, n_pixel = ivar.shape
        for star in np.flatnonzero(rng.random(n_star) < self.noise.mask_share):
            for first in rng.integers(0, n_pixel, rng.integers(1, 5)):
                ivar[star, first : first + rng.integers(1, 1 + max(1, n_pixel // 23))] = 0.0


class BatchNoise(BaseModel):
    """What a batch adds to the observing model.

    Attributes
    ----------
    low_snr_share : float
        Share of stars whose S/N is uniform in its logarithm over 10 to 100, not as the survey's.
    mask_share : float
        Share of stars with one to four gaps of dropped pixels.
    magnitude_rms : float
        Noise added to every observable, in its own unit.
    quiet : tuple of int
        Numbers of the observables that get none, as their units may be anything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_snr_share: float = Field(default=0.2, ge=0.0, le=1.0)
    mask_share: float = Field(default=0.1, ge=0.0, le=1.0)
    magnitude_rms: float = Field(default=0.01, ge=0.0)
    quiet: tuple[Annotated[int, Field(ge=0)], ...] = ()


_NOISE = BatchNoise()


@dataclass(frozen=True, eq=False)
class Sky:
    """All that simulates the stars of one survey.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Pixels of the prepared spectra, angstrom in air.
    labels : (n, 9) float64
        Labels of the stars that it was made from, in the order of
        `maury.labels.definitions.LABELS`.
    observables : (n, n_observable) float64
        Theirs; NaN where missing.
    snr : (n,) float64
        S/N per pixel of their spectra.
    calibration : TheoryCalibration
    observing : ObservingModel

    Raises
    ------
    ConfigError
        If the emulator does not reach over the pixels.
    """

    wave_aa: Float64Array
    labels: Float64Array
    observables: Float64Array
    snr: Float64Array
    calibration: TheoryCalibration
    observing: ObservingModel

    @classmethod
    def fit(
        cls,
        wave_aa: Float64Array,
        flux: Float32Array,
        ivar: Float32Array,
        *,
        labels: Float64Array,
        observables: Float64Array,
        observing: ObservingModel,
        medium: str = "air",
        parent: Sky | None = None,
    ) -> Self:
        """Calibrate theory on labelled spectra.

        Parameters
        ----------
        wave_aa : (n_pixel,) float64
        flux, ivar : (n, n_pixel) float32
            Prepared spectra of labelled stars.
        labels : (n, 9) float64
            Finite.
        observables : (n, n_observable) float64
        observing : ObservingModel
        medium : {"air", "vacuum"}
            Of `wave_aa`.
        parent : Sky, optional
            Of another survey: what its theory lacks is the prior of the calibration.
        """
        wave = _in_air(wave_aa, medium)
        signal = np.sqrt(ivar * np.maximum(flux, np.float32(_FLUX_FLOOR)))
        snr = np.nanmedian(np.where(ivar > 0, signal, np.nan), axis=1).astype(np.float64)
        spectrograph = _spectrograph(wave, observing)
        full = _emulator().clip(Population.load().complete(labels))
        theory = _theory(spectrograph, full, None)
        calibration = TheoryCalibration.fit(
            wave,
            theory,
            flux,
            ivar=ivar,
            labels=labels,
            noise_side_weight=observing.noise_side_weight,
            prior=None if parent is None else parent.calibration.at(parent.wave_aa, wave),
        )
        return cls(wave, labels, observables, snr, calibration, observing)

    def of(self, labels: Float64Array, observables: Float64Array) -> Self:
        """Return the same theory and spectrograph with other stars to simulate.

        Parameters
        ----------
        labels : (n, 9) float64
            Finite.
        observables : (n, n_observable) float64
            NaN where missing.
        """
        return replace(self, labels=labels, observables=observables)

    @staticmethod
    def require_grid(wave_aa: Float64Array, medium: str, observing: ObservingModel) -> None:
        """Raise `ConfigError` unless the emulator reaches over these pixels."""
        _spectrograph(_in_air(wave_aa, medium), observing)

    @cached_property
    def spectrograph(self) -> Spectrograph:
        """The emulator's flux to the survey's pixels."""
        return _spectrograph(self.wave_aa, self.observing)

    def pool(
        self,
        n_star: int,
        rng: np.random.Generator,
        *,
        draw: DrawConfig = _DRAW,
        noise: BatchNoise = _NOISE,
    ) -> SimulatedPool:
        """Draw stars around the labelled ones and simulate their spectra.

        Parameters
        ----------
        n_star : int
        rng : numpy Generator
        draw, noise
            Settings.
        """
        labels, observables = draw_around(
            self.labels, self.observables, n_star, rng, config=draw, sparse=self._sparse(noise)
        )
        full = _emulator().clip(Population.load().complete(labels, rng))
        labels = full[:, : len(LABEL_NAMES)]
        flux = self.spectra(full, rng)
        return SimulatedPool(
            flux, labels, observables, self.calibration, self.snr, self.spectrograph, noise
        )

    def spectra(self, full: Float64Array, rng: np.random.Generator) -> Float32Array:
        """Calibrated flux (n_star, n_pixel) without noise, each star with a broadening of its own.

        Parameters
        ----------
        full : (n_star, 16) float64
            Labels in the order of `maury.simulation.population.ALL_NAMES`, within the emulator's
            bounds.
        rng : numpy Generator
            Draws resolving power, rotation, macroturbulence and velocity.
        """
        flux = np.empty((len(full), self.wave_aa.size), dtype=np.float32)
        for start in range(0, len(full), _BLOCK):
            rows = slice(start, start + _BLOCK)
            theory = _theory(self.spectrograph, full[rows], rng)
            labels = full[rows, : len(LABEL_NAMES)]
            flux[rows] = self.calibration.apply(theory, labels)
        return flux

    def _sparse(self, noise: BatchNoise) -> tuple[int, ...]:
        """Numbers of the further columns; a sky without observables has none."""
        return tuple(k for k in noise.quiet if k < self.observables.shape[1])

    def theory(self, labels: Float64Array) -> Float32Array:
        """Noise-free calibrated flux (n_star, n_pixel) of the nine `labels` (n_star, 9).

        Microturbulence, abundance offsets and broadening are those typical of such stars. Rows
        whose labels are not all finite are NaN.
        """
        full = _emulator().clip(Population.load().complete(labels))
        return self.calibration.apply(self._resting.flux(full), labels)

    @cached_property
    def _resting(self) -> RestingStars:
        return RestingStars.prepare(_emulator(), self.spectrograph)

    def to_arrays(self) -> tuple[dict[str, AnyArray], dict[str, Any]]:
        """Return arrays and plain JSON from which `from_arrays` makes an equal one."""
        own = {name: getattr(self, name) for name in _OWN_ARRAYS}
        own |= {f"calibration.{f.name}": getattr(self.calibration, f.name) for f in _CALIBRATION}
        about = {
            "observing": self.observing.model_dump(mode="json"),
            "emulator": _emulator().spec.checksum,
        }
        return own, about

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any]) -> Self:
        """Read what `to_arrays` gave.

        Raises
        ------
        ModelFileError
            If something is missing, or it was calibrated for another emulator.
        """
        try:
            calibration = TheoryCalibration(
                **{f.name: arrays[f"calibration.{f.name}"] for f in _CALIBRATION}
            )
            own = {name: arrays[name] for name in _OWN_ARRAYS}
            observing = ObservingModel.model_validate(about["observing"])
            emulator = str(about["emulator"])
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"the calibrated theory is damaged: {error}") from error
        if emulator != _emulator().spec.checksum:
            raise ModelFileError(
                "the calibrated theory is for another emulator than that of this maury; "
                "train the model again"
            )
        return cls(**own, calibration=calibration, observing=observing)


_OWN_ARRAYS = ("wave_aa", "labels", "observables", "snr")
_CALIBRATION = fields(TheoryCalibration)


@cache
def _emulator() -> Emulator:
    return Emulator.load()


def _in_air(wave_aa: Float64Array, medium: str) -> Float64Array:
    return wave_aa if medium == "air" else np.asarray(vacuum_to_air(wave_aa))


def _spectrograph(wave_aa: Float64Array, observing: ObservingModel) -> Spectrograph:
    emulator = _emulator()
    try:
        return Spectrograph(emulator.wave_aa, wave_aa, emulator.spec.resolving_power, observing)
    except ValueError as error:
        raise ConfigError(
            f"the emulator cannot simulate these spectra: {error}; cut them to that range in the "
            f"preparation, or {ADVICE}"
        ) from error


def _theory(
    spectrograph: Spectrograph, labels: Float64Array, rng: np.random.Generator | None
) -> Float32Array:
    """Emulated flux at the pixels, block by block, as the emulator's is ten times as large."""
    flux = np.empty((len(labels), spectrograph.wave_out_aa.size), dtype=np.float32)
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        source = _emulator().flux(labels[rows])
        flux[rows] = spectrograph.disperse(source, labels[rows], rng).flux
    return flux
