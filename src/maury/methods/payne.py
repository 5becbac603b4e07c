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
from maury.methods.fitting.chain import Chain, Continuum, Modes, Operator, Shift
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import LabelKnowledge, Prior, PriorKind, Start, with_external
from maury.methods.fitting.residuals import (
    MODE_STARS,
    RESIDUAL_STARS,
    residual_modes,
    residual_variance,
)
from maury.methods.fitting.spectral_network import NetworkModel, SpectralNetwork
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.starting import RidgeStart
from maury.methods.fitting.survey_theory import (
    SurveyTheory,
    TheoryKind,
    choice_for,
    filled_stars,
)
from maury.methods.fitting.synthetic_library import read_synthetic
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
    smooth_patterns,
    typical_labels,
)
from maury.methods.fitting.trained_payne import TrainedPayne
from maury.methods.protocols import (
    MOST_STARS,
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


# Of the draws about the stars, in units of the difference of two of them: their scatter grows by a
# tenth, so that the network is held at its ends. As `trained_payne` has it.
_SPREAD = 0.35
# Chosen: continuum and velocity are fitted besides, and few patterns stand out of the noise.
_PATTERNS = 20
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
    theory : {"auto", "emulator", "learnt"}
        Whose spectra are fitted (`maury.methods.fitting.survey_theory`): those of the emulator, or
        of a network that is trained on a theory learnt from the labelled stars.
    synthetic : str
        Synthetic spectra of the user, or a network of The Payne
        (`maury.methods.fitting.synthetic_library.read_synthetic`), on which the network is trained;
        "" for none. With `calibrate` the labelled stars correct them, otherwise they are taken as
        they are, and labels that they do not have are not given.
    spectra : int
        Drawn of the theory, about the labelled stars, to train the network on.
    hidden, steps, batch_size, learning_rate
        Of that training.
    """

    calibrate: bool = True
    prior: PriorKind = "wide"
    external: tuple[str, ...] = ()
    rv_error_kms: float = Field(default=1.3, gt=0.0, le=30.0)
    nuisances: bool = True
    max_steps: int = Field(default=20, ge=1, le=MOST_STEPS)
    reuse: int = Field(default=3, ge=0, le=MOST_STEPS)
    theory: TheoryKind = "auto"
    synthetic: str = ""
    spectra: int = Field(default=3000, ge=20, le=MOST_STARS)
    hidden: int = Field(default=300, ge=4, le=2000)
    steps: int = Field(default=3000, ge=1, le=MOST_STARS)
    batch_size: int = Field(default=128, ge=1, le=MOST_STARS)
    learning_rate: float = Field(default=2e-3, gt=0.0, allow_inf_nan=False)


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
        Checksum of the emulator with which it was trained; "" where it has a network of its own.
    fitted : tuple of str
        Labels of the model that is fitted.
    network : SpectralNetwork or None
        In place of the emulator.
    patterns : (n_pattern, n_pixel) float32 or None
        In which stars differ from spectra of the network at their own labels.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "payne"
    paper: ClassVar[str] = "Ting, Conroy, Rix & Cargile (2019, ApJ 879, 69)"
    bibtex_key: ClassVar[str] = "2019ApJ...879...69T"
    settings_class: ClassVar[type[MethodSettings]] = PayneSettings
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "all"

    wave_aa: Float64Array
    own_variance: Float32Array
    calibration: TheoryCalibration | None
    knowledge: LabelKnowledge = field(metadata=stored("known"))
    start: RidgeStart
    noise_correlation: tuple[float, ...]
    emulator: str
    fitted: tuple[str, ...] = LABEL_NAMES
    network: SpectralNetwork | None = None
    patterns: Float32Array | None = None

    def __post_init__(self) -> None:
        if self.network is None:
            require_emulator(self.emulator)
        elif self.network.lowest.size != len(self.fitted):
            raise ValueError(
                f"the network has {self.network.lowest.size} labels, not {len(self.fitted)}"
            )

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: PayneSettings, seed: int
    ) -> Self:
        """Calibrate theory, measure its residuals, and learn where to start; see `Method`."""
        del validation
        choice = choice_for(training, settings.theory, settings.synthetic)
        if choice.name == "learnt":
            return cls._learn(training, settings, seed)
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

    @classmethod
    def _learn(cls, training: Sample, settings: PayneSettings, seed: int) -> Self:
        """Train a network on the spectra of a theory, and fit that one."""
        stars, names, labels, flux = _lessons(training, settings, seed)
        network = _trained(labels, flux, settings, seed)
        wave, none = in_air(training), np.zeros(flux.shape[1], dtype=np.float32)
        stars = complete_stars(stars, names, least=LEAST_STARS)
        return (
            cls(
                settings,
                names,
                wave,
                none,
                None,
                LabelKnowledge.learn(
                    names, stars.truth, stars.inputs.observables.astype(np.float64)
                ),
                RidgeStart.learn(names, flux, labels),
                tuple(training.noise_correlation),
                "",
                fitted=names,
                network=network,
                resolving_power=training.resolving_power,
            )
            ._with_patterns(stars)
            ._with_residuals(stars)
        )

    def _with_patterns(self, stars: Sample) -> Self:
        """Return the method with the patterns in which stars differ at their own labels."""
        if not self.settings.nuisances:
            return self
        some = stars.rows(np.argsort(-stars.inputs.snr)[:MODE_STARS])
        fitted = self._fit(some.inputs, NO_EXTERNAL, some.truth)
        assert fitted.flux is not None, "a fit has a best spectrum"
        found = residual_modes(
            some.inputs.flux,
            some.inputs.ivar,
            fitted.flux,
            count=_PATTERNS,
            noise_correlation=self.noise_correlation,
        )
        return replace(self, patterns=found if len(found) else None)

    @property
    def calibrated_by(self) -> UnseenStars:
        """Validation stars where a network was trained, which takes long; see `Method`."""
        return self.unseen if self.network is None else "validation"

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
        """The emulator as the survey sees it, or the network, with all that a fit leaves open."""
        if self.network is not None:
            return self._chain_of(self.network)
        assert self.resolving_power is not None, "theory is not seen at an unknown one"
        return observed_chain(
            self.wave_aa,
            self.calibration,
            self.own_variance,
            observing=TRAINING_CONDITIONS.at_power(self.resolving_power),
            nuisances=self.settings.nuisances,
        )

    def _chain_of(self, network: SpectralNetwork) -> Chain:
        source = NetworkModel(network, self.fitted, self.wave_aa)
        operators: list[Operator] = [Shift(self.wave_aa)]
        if self.settings.nuisances:
            rms = TRAINING_CONDITIONS.continuum_rms
            operators.append(Continuum(smooth_patterns(self.wave_aa, rms)))
        if self.patterns is not None:
            operators.append(Modes(self.patterns, "pattern"))
        return Chain(source, tuple(operators), self.wave_aa, self.own_variance)

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
        n, n_label = len(inputs), len(self.fitted)
        place = np.zeros((n, len(names)))
        first = self.start.regress(inputs.flux, inputs.ivar) if truth is None else truth
        place[:, :n_label] = first
        frozen = np.zeros(place.shape, dtype=np.bool_)
        frozen[:, :n_label] = truth is not None
        known = Start(place, self._prior(inputs, truth is None), frozen)
        return self.fitter.fit_from(with_external(known, names, external), inputs)

    def _prior(self, inputs: Inputs, labels: bool) -> Prior:
        n, names, n_label = len(inputs), self.chain.label_names, len(self.fitted)
        open_too = nuisance_sigmas(names[n_label:], self.settings.rv_error_kms)
        prior = Prior.of(names, n, open_too)
        # Labels that are frozen at the truth need no prior.
        if labels:
            kind = self.settings.prior
            observables = np.asarray(inputs.observables, dtype=np.float64)
            known = self.knowledge.prior(kind, self.fitted, n, observables)
            prior.precision[:, :n_label, :n_label] += known.precision
            prior.pull[:, :n_label] += known.pull
        return prior

    def as_theory(self) -> TrainedPayne:
        """Return the calibrated emulator, or the network, as a source of spectra."""
        chain, power, n_label = self.chain, self.resolving_power, len(self.fitted)
        nuisances = len(chain.label_names) - n_label

        def spectra(labels: Float64Array) -> Float32Array:
            return chain.evaluate(np.pad(labels, [(0, 0), (0, nuisances)]), jacobian=False).flux

        bounds = chain.bounds[:n_label]
        return TrainedPayne(self.fitted, bounds, self.wave_aa, power or np.inf, spectra)

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        return arrays, about | {"calibrated": self.calibration is not None}

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: PayneSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        del arrays, settings
        # Those that were written before there was a choice fit the nine labels of the emulator.
        fitted = tuple(about.get("fitted", LABEL_NAMES))
        return {"start": {"label_names": fitted}, "fitted": fitted}


def _lessons(
    training: Sample, settings: PayneSettings, seed: int
) -> tuple[Sample, tuple[str, ...], Float64Array, Float32Array]:
    """Stars with labels filled in; names, labels and noise-free spectra to train a network on."""
    if settings.synthetic and not settings.calibrate:
        stars = complete_stars(filled_stars(training), least=LEAST_STARS)
        known = read_synthetic(
            settings.synthetic,
            stars.label_names,
            stars.truth,
            wave_aa=in_air(training),
            resolving_power=training.resolving_power,
            seed=seed,
        )
        names = tuple(stars.label_names[k] for k in known.columns)
        return stars, names, known.labels, known.flux
    theory = SurveyTheory.lay(
        training, wanted=settings.theory, synthetic=settings.synthetic, seed=seed
    )
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(4,)))
    one, two, three = rng.integers(0, len(theory.truth), (3, settings.spectra))
    # A difference of two stars keeps what goes together among stars, as alpha and iron do.
    drawn = theory.truth[one] + _SPREAD * (theory.truth[two] - theory.truth[three])
    labels = np.clip(drawn, *theory.bounds.T)
    return theory.stars, theory.names, labels, theory.at_rest(labels)


def _trained(
    labels: Float64Array, flux: Float32Array, settings: PayneSettings, seed: int
) -> SpectralNetwork:
    # Not at import: torch takes a second, and most uses of the method need none.
    from maury.methods.dd_payne_training import train_on_spectra

    return train_on_spectra(
        labels,
        flux,
        hidden=settings.hidden,
        steps=settings.steps,
        batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        seed=seed,
    )


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
