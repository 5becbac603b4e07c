"""DD-Payne: a network of observed spectra whose derivatives follow theory, inverted by fits.

Xiang et al. (2019, ApJS 245, 34), after Ting et al. (2017, ApJ 849, L9). Labels that go together
among stars, such as abundances, move the pixels that theory says they move; where they do not,
a flag warns.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError, check_known
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag, set_where
from maury.methods.cannon_model import scatter_of
from maury.methods.fitting.chain import Broadening, Calibrated, Chain, Operator, PixelShift
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import Prior
from maury.methods.fitting.spectral_network import SpectralNetwork
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.survey_theory import LearntSource, SurveyTheory, TheoryKind
from maury.methods.fitting.theory import (
    EmulatorSource,
    calibrate,
    conditions_of,
    shipped_emulator,
)
from maury.methods.fitting.trained_payne import TrainedPayne
from maury.methods.matisse import Matisse, MatisseSettings
from maury.methods.protocols import (
    MOST_STARS,
    NO_EXTERNAL,
    Evaluation,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
    UnseenStars,
)
from maury.methods.storage import Arrays, stored
from maury.simulation.learnt_theory import LearntTheory
from maury.simulation.observing import TRAINING_CONDITIONS, ObservingModel, Spectrograph
from maury.simulation.theory_calibration import TheoryCalibration
from maury.spectra.operators import vacuum_to_air
from maury.spectra.preparation import Inputs

__all__ = ["DDPayne", "DDPayneSettings", "gradient_correlation"]

logger = logging.getLogger(__name__)

# Stars whose derivatives lie in memory together: 128 x 9 x 1000 floats are 5 MB.
_BLOCK = 128
# About one RAVE pixel, as far as the Taylor series of `PixelShift` carries.
_RV_BOUND_KMS = 15.0
_METALS = ("m_h", "fe_h")
# Least scatter of [M/H] - [Fe/H], dex: keeps the prior finite where both are one column.
_LEAST_TIE = 0.005


class DDPayneSettings(MethodSettings):
    """Settings of DD-Payne.

    Attributes
    ----------
    penalty : float
        Weight of |derivative - that of theory|; 0 is the plain Payne on observed spectra.
    scales : mapping of str to float
        D_scale of single labels, by which their differences count; 1 for the others.
    theory : {"auto", "emulator", "learnt"}
        What guides (`maury.methods.fitting.survey_theory`): the emulator where it knows the labels
        and reaches over the pixels, else a theory that is learnt from the labelled stars.
    synthetic : str
        Theory of the user, with which the learnt one begins; "" for none.
    calibrate : bool
        Whether the emulator is calibrated on the stars first, where these have all nine labels.
    hidden, steps, batch_size, guide_size : int
        Width of the hidden layers; steps; stars, and points with theory, per step.
    learning_rate : float
    warm : float
        Share of the steps in which theory also teaches the flux, before the data do.
    guides : int
        Points with theory: training labels, each moved at random.
    guide_step : float
        By how much, in units of the range of each label.
    rv_sigma_kms : float
        Prior standard deviation of the velocity that is left in spectra at rest.
    tie_metals : bool
        Whether [M/H] - [Fe/H] has the mean and scatter of the training stars as its prior: lines
        of iron and of all metals can hardly be told apart.
    least_correlation : float
        Correlation of the derivatives of network and theory below which a label is flagged.
    """

    penalty: float = Field(default=1.0, ge=0.0, allow_inf_nan=False)
    scales: dict[str, Annotated[float, Field(ge=0.0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    theory: TheoryKind = "auto"
    synthetic: str = ""
    calibrate: bool = True
    hidden: int = Field(default=200, ge=4, le=2000)
    steps: int = Field(default=3000, ge=1, le=MOST_STARS)
    batch_size: int = Field(default=128, ge=1, le=MOST_STARS)
    guide_size: int = Field(default=32, ge=1, le=MOST_STARS)
    learning_rate: float = Field(default=3e-3, gt=0.0, allow_inf_nan=False)
    warm: float = Field(default=0.3, ge=0.0, lt=1.0)
    guides: int = Field(default=2500, ge=1, le=MOST_STARS)
    guide_step: float = Field(default=0.08, ge=0.0, le=1.0)
    rv_sigma_kms: float = Field(default=3.0, gt=0.0, allow_inf_nan=False)
    tie_metals: bool = True
    least_correlation: float = Field(default=0.5, ge=-1.0, le=1.0)


@dataclass(frozen=True, eq=False)
class _Forward:
    """The network as a forward model, with the scatter of the training spectra about it."""

    network: SpectralNetwork
    label_names: tuple[str, ...]
    wave_aa: Float64Array
    scatter: Float64Array

    @property
    def bounds(self) -> Float64Array:
        return np.stack([self.network.lowest, self.network.highest], axis=1)

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        return self.network.evaluate(labels, jacobian=jacobian)

    def variance(self, labels: Float64Array) -> Float32Array:
        del labels
        return (self.scatter**2).astype(np.float32)


@dataclass(frozen=True, eq=False)
class DDPayne(Method[DDPayneSettings]):
    """DD-Payne, trained.

    Attributes
    ----------
    network : SpectralNetwork
    scatter : (n_pixel,) float64
        Of training spectra about the network, beyond their noise.
    starter : Matisse
        Gives the labels from which fits start.
    wave_aa : (n_pixel,) float64
    medium : {"air", "vacuum"}
    noise_correlation : tuple of float
    tie : (float, float)
        Mean and scatter of [M/H] - [Fe/H] among the training stars.
    calibration : TheoryCalibration or None
        Of the emulator that guided.
    learnt : LearntTheory or None
        What guided in place of the emulator.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "dd-payne"
    paper: ClassVar[str] = "Xiang et al. (2019, ApJS 245, 34); Ting et al. (2017, ApJ 849, L9)"
    bibtex_key: ClassVar[str] = "2019ApJS..245...34X"
    settings_class: ClassVar[type[MethodSettings]] = DDPayneSettings
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "validation"

    network: SpectralNetwork = field(metadata=stored(""))
    scatter: Float64Array
    starter: Matisse
    wave_aa: Float64Array
    medium: str
    noise_correlation: tuple[float, ...]
    tie: tuple[float, float] = (0.0, 1.0)
    calibration: TheoryCalibration | None = None
    learnt: LearntTheory | None = None

    def __post_init__(self) -> None:
        if self.network.lowest.size != len(self.label_names):
            raise ValueError(f"the network has {self.network.lowest.size} labels")
        if self.learnt is not None:
            # Its powers are loops, of which a file may not ask for many.
            LearntTheory.checked(self.learnt.to_arrays(), n_label=len(self.label_names))

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: DDPayneSettings, seed: int
    ) -> Self:
        """Train the network, and a starter of its fits.

        Raises
        ------
        ConfigError
            If the emulator is asked for, and lacks a label or some pixels; if `scales` names a
            label that is not learnt.
        TrainingError
            If too few stars have all labels, or the loss diverges.
        """
        from maury.methods import dd_payne_training as learning

        stars = complete_stars(training, settings.labels)
        names, truth, flux = stars.label_names, stars.truth, stars.inputs.flux
        ivar = stars.inputs.ivar
        for name in settings.scales:
            check_known("label", name, names)
        theory = _guiding(training, stars, settings, seed)
        rng = np.random.default_rng(seed)
        points = theory.points(truth, settings.guides, settings.guide_step, rng)
        noise = float(np.median(1.0 / np.sqrt(ivar[ivar > 0])))
        guide_flux, slopes = theory.evaluate(points)
        assert slopes is not None, "derivatives were asked for"
        known = {one.name for one in fields(learning.NetworkTraining)} - {"scales"}
        config = learning.NetworkTraining(
            **{key: getattr(settings, key) for key in known},
            scales=tuple(settings.scales.get(name, 1.0) for name in names),
        )
        network = learning.train_spectral_network(
            truth,
            flux,
            # A quarter of the typical noise keeps the brightest stars from ruling the loss.
            ivar / (1.0 + ivar * np.float32(0.25 * noise**2)),
            guide=learning.Guide(points, guide_flux, slopes, noise),
            config=config,
            seed=seed,
        )
        residual = flux - network.evaluate(truth, jacobian=False).flux
        # It has only to lie in the right valley of chi-square: a coarse one is enough.
        quick = MatisseSettings(labels=names, nodes=12, snr_classes=(40.0,))
        return cls(
            settings=settings,
            label_names=names,
            network=network,
            scatter=scatter_of(residual.astype(np.float64), ivar.astype(np.float64)),
            starter=Matisse.train(training, validation, settings=quick, seed=seed),
            wave_aa=training.wave_aa,
            medium=training.medium,
            noise_correlation=tuple(training.noise_correlation),
            resolving_power=training.resolving_power,
            tie=_tie(truth, names),
            calibration=theory.calibration if isinstance(theory, _Theory) else None,
            learnt=theory.learnt if isinstance(theory, _LearntGuide) else None,
        )

    @cached_property
    def _fitter(self) -> Fitter:
        forward = _Forward(self.network, self.label_names, self.wave_aa, self.scatter)
        shift = PixelShift(self.wave_aa, _RV_BOUND_KMS)
        chain = Chain(forward, (shift,), self.wave_aa, forward.variance(np.zeros(0)))
        return Fitter(chain, noise_correlation=self.noise_correlation, reuse=2)

    @cached_property
    def _theory(self) -> _Theory | _LearntGuide:
        if self.learnt is not None:
            return _LearntGuide(self.learnt, self.label_names, self.wave_aa)
        assert self.resolving_power is not None, "theory is not seen at an unknown one"
        observing = TRAINING_CONDITIONS.at_power(self.resolving_power)
        return _Theory(
            self.wave_aa, self.medium, self.label_names, observing, calibration=self.calibration
        )

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit spectra; see `maury.methods.protocols.Method.apply`."""
        start = self.starter.apply(inputs).labels
        start = np.clip(start, self.network.lowest, self.network.highest)
        # The velocity, last in the chain: spectra are at rest but for its error.
        start = np.concatenate([start, np.zeros((len(start), 1))], axis=1)
        names = self._fitter.model.label_names
        prior = Prior.of(names, len(inputs), {"rv_kms": (0.0, self.settings.rv_sigma_kms)})
        if self.settings.tie_metals and set(_METALS) <= set(names):
            tie = np.array([1.0 if n == "m_h" else -1.0 if n == "fe_h" else 0.0 for n in names])
            prior = prior + Prior.relation(tie, *self.tie, n_star=len(inputs))
        fitter = self._fitter.seen_with(inputs.noise_correlation)
        found = fitter.fit(inputs.flux, inputs.ivar, start, prior=prior)
        return self._checked(found.select(self.label_names))

    def _checked(self, found: FitResult) -> FitResult:
        """Flag stars with a label whose derivative is not that of theory."""
        known = np.isfinite(found.labels).all(axis=1)
        unlike = np.zeros(len(found), dtype=np.bool_)
        rows = np.flatnonzero(known)
        for start in range(0, rows.size, _BLOCK):
            block = rows[start : start + _BLOCK]
            agreement = self.agreement(found.labels[block])
            unlike[block] = (agreement < self.settings.least_correlation).any(axis=1)
        return replace(found, flags=set_where(found.flags, Flag.GRADIENT_UNLIKE, unlike))

    def agreement(self, labels: Float64Array) -> Float64Array:
        """Correlation over pixels of the derivatives of network and theory, (n_star, n_label)."""
        own = self.network.evaluate(labels).jacobian
        theirs = self._theory.evaluate(labels).jacobian
        assert own is not None, "derivatives were asked for"
        assert theirs is not None, "derivatives were asked for"
        return gradient_correlation(own, theirs)

    def as_theory(self) -> TrainedPayne:
        """Return the network as a source of spectra."""
        power = self.resolving_power or np.inf
        wave = self.wave_aa if self.medium == "air" else vacuum_to_air(self.wave_aa)
        bounds = np.stack([self.network.lowest, self.network.highest], axis=1)

        def spectra(labels: Float64Array) -> Float32Array:
            return self.network.evaluate(labels, jacobian=False).flux

        return TrainedPayne(self.label_names, bounds, np.asarray(wave), power, spectra)

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        # The starter is a method of its own, with settings of its own.
        return arrays, about | {
            "starter": {"settings": self.starter.settings.model_dump(mode="json")}
        }

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: DDPayneSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        quick = MatisseSettings.model_validate(about["starter"]["settings"])
        starter = {"settings": quick, "label_names": quick.labels, "resolving_power": None}
        return {"starter": starter}


def _tie(truth: Float64Array, names: tuple[str, ...]) -> tuple[float, float]:
    if not set(_METALS) <= set(names):
        return 0.0, 1.0
    difference = truth[:, names.index("m_h")] - truth[:, names.index("fe_h")]
    return float(np.median(difference)), max(float(difference.std()), _LEAST_TIE)


def gradient_correlation(first: Float32Array, second: Float32Array) -> Float64Array:
    """Pearson correlation over the last axis, (n_star, n_label); 0 where one does not vary."""
    one, two = (a.astype(np.float64) - a.mean(axis=2, keepdims=True) for a in (first, second))
    power = np.sqrt((one**2).sum(axis=2) * (two**2).sum(axis=2))
    product = (one * two).sum(axis=2)
    return np.asarray(np.divide(product, power, out=np.zeros_like(power), where=power > 0))


def _guiding(
    training: Sample, stars: Sample, settings: DDPayneSettings, seed: int
) -> _Theory | _LearntGuide:
    """Return the theory whose derivatives guide; `ConfigError` if the emulator cannot and must."""
    if settings.theory != "learnt" and not settings.synthetic:
        try:
            observing = conditions_of(training)
            plain = _Theory(training.wave_aa, training.medium, stars.label_names, observing)
        except ConfigError as error:
            if settings.theory == "emulator":
                raise
            logger.info("theory: learnt, as %s", error)
        else:
            if not settings.calibrate:
                return plain
            nine = complete_stars(training, LABEL_NAMES, least=0)
            return _Theory(
                training.wave_aa,
                training.medium,
                stars.label_names,
                observing,
                calibration=calibrate(nine, observing),
            )
    laid = SurveyTheory.lay(stars, wanted="learnt", synthetic=settings.synthetic, seed=seed)
    assert laid.learnt is not None, "it was asked for"
    return _LearntGuide(laid.learnt, stars.label_names, training.wave_aa)


class _LearntGuide:
    """A theory that was learnt from the stars, or begun at spectra of the user."""

    def __init__(self, learnt: LearntTheory, names: tuple[str, ...], wave_aa: Float64Array) -> None:
        self.learnt = learnt
        self._model = LearntSource(learnt, names, wave_aa)

    def points(
        self, truth: Float64Array, count: int, step: float, rng: np.random.Generator
    ) -> Float64Array:
        """Training labels, each moved by itself, within the range of the stars."""
        return _moved(truth, count, step, rng, self._model.bounds)

    def evaluate(self, labels: Float64Array) -> Evaluation:
        """Flux and derivatives."""
        parts = [
            self._model.evaluate(labels[k : k + _BLOCK]) for k in range(0, len(labels), _BLOCK)
        ]
        slopes = [part.jacobian for part in parts if part.jacobian is not None]
        return Evaluation(np.concatenate([p.flux for p in parts]), np.concatenate(slopes))


def _moved(
    truth: Float64Array, count: int, step: float, rng: np.random.Generator, bounds: Float64Array
) -> Float64Array:
    base = truth[rng.integers(0, len(truth), count)]
    moved = base + step * np.ptp(truth, axis=0) * rng.standard_normal(base.shape)
    return np.asarray(np.clip(moved, *bounds.T))


class _Theory:
    """The shipped emulator at the pixels of a survey, by some of its nine labels."""

    def __init__(
        self,
        wave_aa: Float64Array,
        medium: str,
        names: tuple[str, ...],
        observing: ObservingModel,
        calibration: TheoryCalibration | None = None,
    ) -> None:
        self.calibration = calibration
        unknown = [name for name in names if name not in LABEL_NAMES]
        if unknown:
            raise ConfigError(
                f"theory has no label {', '.join(unknown)}; it has {', '.join(LABEL_NAMES)}"
            )
        emulator = shipped_emulator()
        wave = wave_aa if medium == "air" else vacuum_to_air(wave_aa)
        try:
            instrument = Spectrograph(
                emulator.wave_aa, wave, emulator.spec.resolving_power, observing
            )
        except ValueError as error:
            raise ConfigError(f"theory lacks pixels of these spectra: {error}") from error
        self._index = [LABEL_NAMES.index(name) for name in names]
        none = np.zeros(wave.size, dtype=np.float32)
        operators: list[Operator] = [Broadening(instrument)]
        if calibration is not None:
            operators.append(Calibrated(calibration, LABEL_NAMES))
        self._chain = Chain(EmulatorSource(), tuple(operators), wave, none)
        self._bounds = emulator.bounds[: len(LABEL_NAMES)]

    def points(
        self, truth: Float64Array, count: int, step: float, rng: np.random.Generator
    ) -> Float64Array:
        """Training labels, each moved by itself, within the emulator's bounds."""
        return _moved(truth, count, step, rng, self._bounds[self._index])

    def evaluate(self, labels: Float64Array) -> Evaluation:
        """Flux and derivatives by the chosen labels."""
        full = self._complete(labels)
        parts = [self._chain.evaluate(full[k : k + _BLOCK]) for k in range(0, len(full), _BLOCK)]
        slopes = [p.jacobian[:, self._index] for p in parts if p.jacobian is not None]
        return Evaluation(np.concatenate([p.flux for p in parts]), np.concatenate(slopes))

    def _complete(self, labels: Float64Array) -> Float64Array:
        """All labels of the chain: those not chosen as of a star of solar composition."""
        out = np.zeros((len(labels), len(self._chain.label_names)))
        out[:, self._index] = labels
        # Iron follows the metals of a star of solar pattern; left at 0 it would contradict them.
        for name, other in (_METALS, _METALS[::-1]):
            here, there = LABEL_NAMES.index(name), LABEL_NAMES.index(other)
            if here not in self._index and there in self._index:
                out[:, here] = out[:, there]
        low, high = self._bounds.T
        out[:, : len(LABEL_NAMES)] = np.clip(out[:, : len(LABEL_NAMES)], low, high)
        return out
