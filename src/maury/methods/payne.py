"""The Payne: full-spectrum fits with the shipped emulator, radial velocity included.

Ting et al. (2019, ApJ 879, 69): a network predicts the spectrum, and labels are fitted to all
pixels at once. Here the network is `maury.simulation.emulator`, whose derivatives are analytic; it
passes through line spread, rotation and velocity, and a calibration of theory on the training
stars. What the labels do not say of a spectrum is fitted with them, within priors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.chain import Chain
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import LabelKnowledge, Prior, PriorKind, Start, with_external
from maury.methods.fitting.residuals import RESIDUAL_STARS, residual_variance
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.starting import RidgeStart
from maury.methods.fitting.theory import (
    LEAST_STARS,
    TYPICAL_STARS,
    calibrate,
    conditions_of,
    in_air,
    learn_start,
    nuisance_sigmas,
    observed_chain,
    require_emulator,
    shipped_emulator,
    typical_labels,
)
from maury.methods.fitting.trained_payne import TrainedPayne
from maury.methods.protocols import (
    MOST_STEPS,
    NO_EXTERNAL,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
    UnseenStars,
)
from maury.methods.storage import Arrays, stored
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.simulation.theory_calibration import TheoryCalibration
from maury.spectra.preparation import Inputs

__all__ = ["Payne", "PaynePhotometry", "PaynePhotometrySettings", "PayneSettings"]


_N = len(LABEL_NAMES)
# Chi-square: a third of an error at most in one direction, and the tangent step takes most of it.
_TOLERANCE = 0.1


class PayneSettings(MethodSettings):
    """Settings of the Payne.

    Attributes
    ----------
    calibrate : bool
        Whether theory is calibrated on the training stars
        (`maury.simulation.theory_calibration.TheoryCalibration`).
    prior : {"wide", "sample", "photometry"}
        See `maury.methods.fitting.knowledge.LabelKnowledge`; the last needs observables in the
        preparation.
    external : tuple of str
        Labels that are taken from columns of the survey, such as a seismic ``logg``; where one has
        an error it is a prior, otherwise it is exact.
    rv_error_kms : float
        Standard deviation of the velocity left in the spectra.
    nuisances : bool
        Whether line widths, continuum, Ca II cores, and abundances of further elements are fitted
        too; without them a fit takes less time, and its errors are too small.
    max_steps, reuse : int
        Of `maury.methods.fitting.fitter.Fitter`.
    """

    calibrate: bool = True
    prior: PriorKind = "wide"
    external: tuple[str, ...] = ()
    rv_error_kms: float = Field(default=1.3, gt=0.0, le=30.0)
    nuisances: bool = True
    max_steps: int = Field(default=20, ge=1, le=MOST_STEPS)
    reuse: int = Field(default=3, ge=0, le=MOST_STEPS)


@dataclass(frozen=True, eq=False)
class Payne(Method[PayneSettings]):
    """The emulator, fitted to whole spectra.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Pixels, angstrom in air.
    own_variance : (n_pixel,) float32
        Variance that best fits leave beyond the noise.
    calibration : TheoryCalibration or None
    knowledge : LabelKnowledge
    start : RidgeStart
    noise_correlation : tuple of float
    emulator : str
        Checksum of the emulator with which it was trained.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "payne"
    paper: ClassVar[str] = "Ting, Conroy, Rix & Cargile (2019, ApJ 879, 69)"
    bibtex_key: ClassVar[str] = "2019ApJ...879...69T"
    settings_class: ClassVar[type[MethodSettings]] = PayneSettings
    known_labels: ClassVar[tuple[str, ...] | None] = LABEL_NAMES
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "all"

    wave_aa: Float64Array
    own_variance: Float32Array
    calibration: TheoryCalibration | None
    knowledge: LabelKnowledge = field(metadata=stored("known"))
    start: RidgeStart
    noise_correlation: tuple[float, ...]
    emulator: str

    def __post_init__(self) -> None:
        require_emulator(self.emulator)

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: PayneSettings, seed: int
    ) -> Self:
        """Calibrate theory, measure its residuals, and learn where to start; see `Method`."""
        del validation
        stars = complete_stars(training, LABEL_NAMES, least=0)
        observing = conditions_of(training)
        calibration = calibrate(stars, observing) if settings.calibrate else None
        wave = in_air(training)
        none = np.zeros(wave.size, dtype=np.float32)
        chain = observed_chain(
            wave, calibration, none, observing=observing, nuisances=settings.nuisances
        )
        # Theory is not calibrated by so few either: stars of the population stand in for them.
        few = len(stars) < LEAST_STARS
        truth = typical_labels(TYPICAL_STARS, seed) if few else stars.truth
        seen = np.zeros((TYPICAL_STARS, 0)) if few else stars.inputs.observables.astype(np.float64)
        method = cls(
            settings,
            tuple(name for name in LABEL_NAMES if name in training.label_names),
            wave,
            none,
            calibration,
            LabelKnowledge.learn(LABEL_NAMES, truth, seen),
            learn_start(chain, truth, settings.rv_error_kms, seed),
            training.noise_correlation,
            shipped_emulator().spec.checksum,
            resolving_power=observing.resolving_power,
        )
        return method if few else method._with_residuals(stars)

    def _with_residuals(self, stars: Sample) -> Self:
        """Return the method with the variance that its best fits leave at the true labels."""
        # Of the best spectra, where what the model lacks stands out of the noise.
        some = stars.rows(np.argsort(-stars.inputs.snr)[:RESIDUAL_STARS])
        fitted = self._fit(some.inputs, NO_EXTERNAL, some.truth)
        assert fitted.flux is not None, "a fit has a best spectrum"
        own = residual_variance(some.inputs.flux, some.inputs.ivar, fitted.flux)
        return replace(self, own_variance=own)

    @cached_property
    def chain(self) -> Chain:
        """The emulator as the survey sees it, with all that a fit leaves open."""
        assert self.resolving_power is not None, "theory is not seen at an unknown one"
        return observed_chain(
            self.wave_aa,
            self.calibration,
            self.own_variance,
            observing=TRAINING_CONDITIONS.at_power(self.resolving_power),
            nuisances=self.settings.nuisances,
        )

    @cached_property
    def fitter(self) -> Fitter:
        """The fit of one spectrum."""
        return Fitter(
            self.chain,
            noise_correlation=self.noise_correlation,
            max_steps=self.settings.max_steps,
            reuse=self.settings.reuse,
            tolerance=_TOLERANCE,
        )

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit whole spectra; see `Method`."""
        return self._fit(inputs, external, None).select(self.label_names)

    def _fit(
        self, inputs: Inputs, external: Mapping[str, External], truth: Float64Array | None
    ) -> FitResult:
        names = self.chain.label_names
        n = len(inputs)
        place = np.zeros((n, len(names)))
        place[:, :_N] = self.start.regress(inputs.flux, inputs.ivar) if truth is None else truth
        frozen = np.zeros(place.shape, dtype=np.bool_)
        frozen[:, :_N] = truth is not None
        known = Start(place, self._prior(inputs, truth is None), frozen)
        return self.fitter.fit_from(with_external(known, names, external), inputs)

    def _prior(self, inputs: Inputs, labels: bool) -> Prior:
        n, names = len(inputs), self.chain.label_names
        prior = Prior.of(names, n, nuisance_sigmas(names, self.settings.rv_error_kms))
        # Labels that are frozen at the truth need no prior.
        if labels:
            kind = self.settings.prior
            observables = np.asarray(inputs.observables, dtype=np.float64)
            known = self.knowledge.prior(kind, LABEL_NAMES, n, observables)
            prior.precision[:, :_N, :_N] += known.precision
            prior.pull[:, :_N] += known.pull
        return prior

    def as_theory(self) -> TrainedPayne:
        """Return the calibrated emulator as a source of spectra, of typical stars."""
        chain, power = self.chain, self.resolving_power
        assert power is not None, "training refuses an unknown one"
        nuisances = len(chain.label_names) - _N

        def spectra(labels: Float64Array) -> Float32Array:
            return chain.evaluate(np.pad(labels, [(0, 0), (0, nuisances)]), jacobian=False).flux

        return TrainedPayne(LABEL_NAMES, chain.bounds[:_N], self.wave_aa, power, spectra)

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        return arrays, about | {"calibrated": self.calibration is not None}

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: PayneSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        del arrays, about, settings
        return {"start": {"label_names": LABEL_NAMES}}


class PaynePhotometrySettings(PayneSettings):
    """Settings of the Payne with photometry: those of `PayneSettings`, with its prior."""

    prior: PriorKind = "photometry"


@dataclass(frozen=True, eq=False)
class PaynePhotometry(Payne):
    """The Payne with what photometry says of the labels as a prior."""

    name: ClassVar[str] = "payne-photometry"
    settings_class: ClassVar[type[MethodSettings]] = PaynePhotometrySettings
    preparation_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {
            "steps": ({"step": "noise"}, {"step": "mask_cosmics"}),
            "observables": ({"observable": "absolute_magnitudes"}, {"observable": "a_v"}),
        }
    )
