"""Stars to train on, simulated as a survey would see them.

A few thousand labelled spectra are too few to train a network: it learns their noise. Here they
enter as (1) a calibration of the emulator, so that simulated spectra look like those of the survey
and not like theory, and (2) a smooth density of labels and observables. Networks then see only
simulated spectra, each with noise of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from typing import Any, Self

import numpy as np

from maury.errors import ConfigError, ModelFileError
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.model.directory import Model
from maury.simulation.companions import BandLayout, add_companions
from maury.simulation.disturbances import Disturbances
from maury.simulation.drawing import DEFAULT_DRAW, DrawConfig, draw_around
from maury.simulation.emulator import Emulator
from maury.simulation.learnt_theory import LearntTheory, Synthetic, moved
from maury.simulation.observing import ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.simulation.rest_frame import RestFrameTheory
from maury.simulation.simulated_pool import BatchNoise, SimulatedPool
from maury.simulation.theory_calibration import TheoryCalibration
from maury.spectra.observable_map import ObservableMap
from maury.spectra.operators import vacuum_to_air
from maury.spectra.pixels import FLUX_FLOOR

__all__ = [
    "TrainingStarSimulator",
]

logger = logging.getLogger(__name__)

_BLOCK = 2048
"""Stars at a time: the emulator's grid is some ten times as long as the survey's."""
ADVICE = "train another network with --preset guiglion2020, starnet or astronn"


_NOISE = BatchNoise()
_CLEAN = Disturbances.none()
_NO_OBSERVABLES = ObservableMap.empty()
_NO_MODES = np.zeros((0, 0), dtype=np.float32)
_MARGIN = 0.01
"""Share of the wavelength by which the grid of a spectrograph reaches beyond the pixels."""


@dataclass(frozen=True, eq=False)
class TrainingStarSimulator:
    """Theory, spectrograph and labelled stars, to simulate stars to train on.

    Theory is the shipped emulator, calibrated on the labelled stars, or learnt from them alone.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Pixels of the prepared spectra, angstrom in air.
    labels : (n, n_label) float64
        Labels of the stars that it was made from.
    observables : (n, n_observable) float64
        Theirs; NaN where missing.
    snr : (n,) float64
        S/N per pixel of their spectra.
    calibration : TheoryCalibration
    observing : ObservingModel
    mapping : ObservableMap
        How the observables follow from bands, parallax and A_V.
    names : tuple of str
        Of the labels; the emulator knows those of `maury.labels.definitions.LABELS`.
    learnt : LearntTheory, optional
        In place of the emulator.
    hidden : (n, n_hidden) float64
        What labels do not tell of the spectra of the stars, as the learnt theory needs it.

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
    mapping: ObservableMap = _NO_OBSERVABLES
    names: tuple[str, ...] = LABEL_NAMES
    learnt: LearntTheory | None = None
    hidden: Float64Array = field(default_factory=lambda: np.zeros((0, 0)))

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
        mapping: ObservableMap = _NO_OBSERVABLES,
        medium: str = "air",
        source: TrainingStarSimulator | None = None,
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
        mapping : ObservableMap
            Of the observables (`maury.spectra.preparation.Preparation.observable_map`).
        medium : {"air", "vacuum"}
            Of `wave_aa`.
        source : TrainingStarSimulator, optional
            Of another survey: what its theory lacks is the prior of the calibration.
        """
        wave = _in_air(wave_aa, medium)
        snr = _snr(flux, ivar)
        spectrograph = _spectrograph(wave, observing)
        full = _emulator().clip(Population.load().complete(labels))
        theory = _theory(spectrograph, full, None)
        calibration = TheoryCalibration.fit(
            wave,
            theory,
            flux,
            ivar=ivar,
            labels=labels,
            noise_correlation=observing.correlation,
            prior=None if source is None else source.calibration.at(source.wave_aa, wave),
        )
        return cls(wave, labels, observables, snr, calibration, observing, mapping)

    @classmethod
    def learn(
        cls,
        wave_aa: Float64Array,
        flux: Float32Array,
        ivar: Float32Array,
        *,
        labels: Float64Array,
        names: Sequence[str],
        observables: Float64Array,
        observing: ObservingModel,
        mapping: ObservableMap = _NO_OBSERVABLES,
        medium: str = "air",
        synthetic: Synthetic | None = None,
    ) -> Self:
        """Learn a theory from labelled spectra alone (`maury.simulation.learnt_theory`).

        Parameters
        ----------
        wave_aa : (n_pixel,) float64
        flux, ivar : (n, n_pixel) float32
            Prepared spectra of labelled stars.
        labels : (n, n_label) float64
            Finite.
        names : sequence of str
            Of the labels.
        observables : (n, n_observable) float64
        observing : ObservingModel
        mapping : ObservableMap
            Of the observables (`maury.spectra.preparation.Preparation.observable_map`).
        medium : {"air", "vacuum"}
            Of `wave_aa`.
        synthetic : Synthetic, optional
            A theory of the user, which the labelled spectra then correct.
        """
        learnt, hidden = LearntTheory.fit(
            flux,
            ivar,
            labels=labels,
            names=names,
            noise_correlation=observing.correlation,
            synthetic=synthetic,
        )
        return cls(
            _in_air(wave_aa, medium),
            labels,
            observables,
            _snr(flux, ivar),
            TheoryCalibration.none(wave_aa.size, labels),
            observing,
            mapping,
            names=tuple(names),
            learnt=learnt,
            hidden=hidden,
        )

    def of(
        self,
        labels: Float64Array,
        observables: Float64Array,
        flux: Float32Array | None = None,
        ivar: Float32Array | None = None,
    ) -> Self:
        """Return the same theory and spectrograph with other stars to simulate.

        Parameters
        ----------
        labels : (n, n_label) float64
            Finite.
        observables : (n, n_observable) float64
            NaN where missing.
        flux, ivar : (n, n_pixel) float32, optional
            Their spectra, which tell a learnt theory what their labels do not; without them, all
            are as usual.
        """
        hidden = self.hidden
        if self.learnt is not None:
            hidden = np.repeat(np.median(hidden, axis=0, keepdims=True), len(labels), axis=0)
            if flux is not None and ivar is not None:
                hidden = self.learnt.hidden(labels, flux, ivar)
        return replace(self, labels=labels, observables=observables, hidden=hidden)

    @property
    def columns(self) -> Float64Array:
        """Labels and hidden properties (n, n_label + n_hidden) of the stars."""
        return np.hstack([self.labels, self.hidden]) if self.hidden.size else self.labels

    def drawn(
        self, n_star: int, rng: np.random.Generator, *, draw: DrawConfig = DEFAULT_DRAW
    ) -> tuple[Float64Array, Float64Array]:
        """Labels and hidden properties, and observables, of stars drawn around the labelled ones.

        Returns
        -------
        (n_star, n_label + n_hidden), (n_star, n_observable) float64
        """
        sparse = np.flatnonzero(self.mapping.further | self.mapping.is_error)
        return draw_around(
            self.columns,
            self.observables,
            n_star,
            rng,
            config=draw,
            sparse=sparse.tolist(),
            names=self.names,
        )

    @staticmethod
    def require_grid(wave_aa: Float64Array, medium: str, observing: ObservingModel) -> None:
        """Raise `ConfigError` unless the emulator reaches over these pixels."""
        _spectrograph(_in_air(wave_aa, medium), observing)

    @cached_property
    def spectrograph(self) -> Spectrograph:
        """The emulator's flux to the survey's pixels; the reduction alone of a learnt theory."""
        if self.learnt is None:
            return _spectrograph(self.wave_aa, self.observing)
        # A learnt theory stands on the pixels as they are: this grid only has to reach over them.
        first, last = self.wave_aa[0] * (1.0 - _MARGIN), self.wave_aa[-1] * (1.0 + _MARGIN)
        power = self.observing.resolving_power
        return Spectrograph(np.geomspace(first, last, 1024), self.wave_aa, power, self.observing)

    def pool(
        self,
        n_star: int,
        rng: np.random.Generator,
        *,
        draw: DrawConfig = DEFAULT_DRAW,
        noise: BatchNoise = _NOISE,
        disturbances: Disturbances = _CLEAN,
    ) -> SimulatedPool:
        """Draw stars around the labelled ones and simulate their spectra.

        Parameters
        ----------
        n_star : int
        rng : numpy Generator
        draw, noise, disturbances
            Settings.
        """
        labels, observables = self.drawn(n_star, rng, draw=draw)
        # Microturbulence and abundances that are no labels are drawn, so that they are learnt to be
        # unknown.
        full = self.complete(labels, rng)
        # What theory was clipped to is the truth of the simulated spectrum.
        labels = full[:, : len(self.names)]
        flux = self.spectra(full, rng, disturbances=disturbances)
        self._pair(flux, labels, observables, disturbances, rng)
        return self.pool_of(flux, labels, observables, noise=noise, disturbances=disturbances)

    def pool_of(
        self,
        flux: Float32Array,
        labels: Float64Array,
        observables: Float64Array,
        *,
        noise: BatchNoise = _NOISE,
        disturbances: Disturbances = _CLEAN,
    ) -> SimulatedPool:
        """Return a pool of spectra that `spectra` simulated (n_star, n_pixel), to be observed."""
        # A labelled star without a good pixel has none.
        snr = self.snr[np.isfinite(self.snr)]
        return SimulatedPool(
            flux,
            labels,
            observables,
            self.calibration,
            snr,
            self.spectrograph,
            self.mapping,
            noise,
            disturbances,
            _NO_MODES if self.learnt is None else self.learnt.modes,
        )

    def complete(
        self, columns: Float64Array, rng: np.random.Generator | None = None
    ) -> Float64Array:
        """All that a spectrum depends on, moved to where theory reaches.

        Parameters
        ----------
        columns : (n_star, n_label + n_hidden) float64
            Labels and hidden properties, as of `columns`.
        rng : numpy Generator, optional
            Draws what the emulator needs besides labels; else it is typical of such stars.

        Returns
        -------
        (n_star, n) float64
            The labels come first.
        """
        if self.learnt is not None:
            return self.learnt.clip(columns)
        return _emulator().clip(Population.load().complete(columns, rng))

    def _pair(
        self,
        flux: Float32Array,
        labels: Float64Array,
        observables: Float64Array,
        disturbances: Disturbances,
        rng: np.random.Generator,
    ) -> None:
        """Give some stars of a new pool the light of a companion, in `flux` and `observables`."""
        chosen = np.flatnonzero(rng.random(len(flux)) < disturbances.paired)
        if not (chosen.size and self.mapping.names):
            return
        pairs = add_companions(
            flux,
            labels,
            observables,
            wave_aa=self.wave_aa,
            layout=BandLayout.of(self.mapping),
            chosen=chosen,
            rng=rng,
            names=self.names,
        )
        flux[pairs.primary], observables[pairs.primary] = pairs.flux, pairs.observables

    def spectra(
        self,
        full: Float64Array,
        rng: np.random.Generator,
        *,
        disturbances: Disturbances = _CLEAN,
    ) -> Float32Array:
        """Calibrated flux (n_star, n_pixel) without noise, each star with a broadening of its own.

        Parameters
        ----------
        full : (n_star, n) float64
            Labels in the order of `maury.simulation.population.ALL_NAMES`, within the emulator's
            bounds; of a learnt theory, labels and hidden properties.
        rng : numpy Generator
            Draws resolving power, rotation, macroturbulence and velocity.
        disturbances : Disturbances
            Some stars rotate or move unlike the others.
        """
        flux = np.empty((len(full), self.wave_aa.size), dtype=np.float32)
        for start in range(0, len(full), _BLOCK):
            rows = slice(start, start + _BLOCK)
            if self.learnt is None:
                theory = _theory(self.spectrograph, full[rows], rng, disturbances)
            else:
                motion = _motion(len(full[rows]), disturbances, rng)
                theory = moved(self.learnt.flux(full[rows]), self.wave_aa, **motion)
            labels = full[rows, : len(self.names)]
            flux[rows] = self.calibration.apply(theory, labels)
        return flux

    def theory(self, labels: Float64Array) -> Float32Array:
        """Noise-free calibrated flux (n_star, n_pixel) of `labels` (n_star, n_label).

        Microturbulence, abundance offsets and broadening are those typical of such stars. Rows
        whose labels are not all finite are NaN.
        """
        if self.learnt is not None:
            return self.calibration.apply(self.learnt.typical(labels), labels)
        full = _emulator().clip(Population.load().complete(labels))
        return self.calibration.apply(self._rest_frame.flux(full), labels)

    def seen(self, labels: Float64Array, flux: Float32Array, ivar: Float32Array) -> Float32Array:
        """Noise-free flux (n_star, n_pixel) of stars of such labels, nearest to observed spectra.

        The emulator knows one spectrum for such labels, as `theory` gives it; a learnt theory fits
        what its labels leave open.

        Parameters
        ----------
        labels : (n_star, n_label) float64
        flux, ivar : (n_star, n_pixel) float32
        """
        if self.learnt is None:
            return self.theory(labels)
        return self.calibration.apply(self.learnt.seen(labels, flux, ivar), labels)

    @cached_property
    def _rest_frame(self) -> RestFrameTheory:
        return RestFrameTheory.prepare(_emulator(), self.spectrograph)

    def to_arrays(self) -> tuple[dict[str, AnyArray], dict[str, Any]]:
        """Return arrays and plain JSON from which `from_arrays` makes an equal one."""
        own = {name: getattr(self, name) for name in _OWN_ARRAYS}
        own |= {f"calibration.{f.name}": getattr(self.calibration, f.name) for f in _CALIBRATION}
        about: dict[str, Any] = {
            "observing": self.observing.model_dump(mode="json"),
            "sources": list(self.mapping.names),
        }
        if self.learnt is None:
            about["emulator"] = _emulator().spec.checksum
        else:
            about["labels"] = list(self.names)
            own |= {f"learnt.{name}": array for name, array in self.learnt.to_arrays().items()}
            own["hidden"] = self.hidden
        own |= {f"mapping.{name}": getattr(self.mapping, name) for name in _MAPPING}
        return own, about

    @classmethod
    def of_model(cls, model: Model) -> Self:
        """Read the simulator that a model was trained with, from its attachment "sky".

        Raises
        ------
        ModelFileError
            If the attachment is damaged, or was calibrated for another emulator.
        """
        found = cls.from_arrays(model.arrays("sky"), model.attachments["sky"].metadata)
        # Models of before do not say it; a network without photometry has none.
        if not found.mapping.names and found.observables.shape[1]:
            return replace(found, mapping=model.preparation.observable_map)
        return found

    @staticmethod
    def learnt_by(model: Model) -> bool:
        """Whether a model simulates stars by a theory that it learnt from its labelled stars."""
        return "labels" in getattr(model.attachments.get("sky"), "metadata", {})

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
            own: dict[str, Any] = {name: arrays[name] for name in _OWN_ARRAYS}
            observing = ObservingModel.model_validate(about["observing"])
            theory: dict[str, Any] = {}
            if "labels" in about:
                parts = [item.name for item in fields(LearntTheory)]
                # Theories of before have no bend: their labels were not bent.
                if "learnt.bend" not in arrays:
                    parts.remove("bend")
                known = {part: arrays[f"learnt.{part}"] for part in parts}
                theory["learnt"] = LearntTheory.checked(known, n_label=len(about["labels"]))
                theory["names"] = tuple(map(str, about["labels"]))
                theory["hidden"] = arrays["hidden"]
                if theory["learnt"].coefficients.shape[1] != own["wave_aa"].size:
                    raise ValueError("it has other pixels than the model")
            else:
                emulator = str(about["emulator"])
            mapping = _NO_OBSERVABLES
            if "sources" in about:
                names = tuple(map(str, about["sources"]))
                mapping = ObservableMap(names, **{n: arrays[f"mapping.{n}"] for n in _MAPPING})
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"the calibrated theory is damaged: {error}") from error
        if not theory and emulator != _emulator().spec.checksum:
            raise ModelFileError(
                "the calibrated theory is for another emulator than that of this maury; "
                "train the model again"
            )
        return cls(**own, calibration=calibration, observing=observing, mapping=mapping, **theory)


def _snr(flux: Float32Array, ivar: Float32Array) -> Float64Array:
    """S/N (n,) per pixel at the continuum; NaN without a good pixel."""
    out = np.empty(len(flux))
    for start in range(0, len(flux), _BLOCK):
        rows = slice(start, start + _BLOCK)
        # At the continuum: noise goes with the root of the flux.
        signal = np.sqrt(ivar[rows] * np.maximum(flux[rows], np.float32(FLUX_FLOOR)))
        out[rows] = np.nanmedian(np.where(ivar[rows] > 0, signal, np.nan), axis=1)
    return out


_OWN_ARRAYS = ("wave_aa", "labels", "observables", "snr")
_CALIBRATION = fields(TheoryCalibration)
_MAPPING = ("depends", "responses", "error_columns", "further")


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
    spectrograph: Spectrograph,
    labels: Float64Array,
    rng: np.random.Generator | None,
    disturbances: Disturbances = _CLEAN,
) -> Float32Array:
    """Emulated flux at the pixels, block by block, as the emulator's is ten times as large."""
    flux = np.empty((len(labels), spectrograph.wave_out_aa.size), dtype=np.float32)
    for start in range(0, len(labels), _BLOCK):
        rows = slice(start, start + _BLOCK)
        source = _emulator().flux(labels[rows])
        motion = {} if rng is None else _motion(len(source), disturbances, rng)
        flux[rows] = spectrograph.disperse(source, labels[rows], rng, **motion).flux
    return flux


def _motion(
    n_star: int, disturbances: Disturbances, rng: np.random.Generator
) -> dict[str, Float64Array]:
    """Rotation and velocity (n_star,) of stars unlike their kind; NaN for the others."""
    low, high = np.log(disturbances.rotation_kms)
    rotation = np.exp(rng.uniform(low, high, n_star))
    rotation[rng.random(n_star) >= disturbances.rotating] = np.nan
    velocity = disturbances.velocity_kms * rng.standard_normal(n_star)
    velocity[rng.random(n_star) >= disturbances.moving] = np.nan
    return {"rotation_kms": rotation, "rv_kms": velocity}
