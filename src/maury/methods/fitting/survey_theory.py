"""The theory that a method fits: by the protocol of the default network, for labels and window.

The calibrated emulator where it knows the labels and reaches over the pixels; elsewhere a theory
that is learnt from the labelled stars (`maury.simulation.learnt_theory`), begun at synthetic
spectra of the user if there are such (`maury.simulation.theory_choice`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np

from maury.errors import ConfigError, TrainingError
from maury.io.arrays import Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.chain import Chain, Continuum, Shift
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.starting import RidgeStart
from maury.methods.fitting.synthetic_library import read_synthetic
from maury.methods.fitting.theory import (
    LEAST_STARS,
    TYPICAL_STARS,
    at_rest,
    calibrate,
    conditions_of,
    draw_nuisances,
    in_air,
    learn_start,
    nuisance_sigmas,
    observed_chain,
    shipped_emulator,
    smooth_patterns,
    typical_labels,
)
from maury.methods.protocols import Evaluation, ForwardModel, Sample
from maury.simulation.learnt_theory import LearntTheory
from maury.simulation.missing_labels import fill_from_spectra
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.simulation.theory_calibration import TheoryCalibration
from maury.simulation.theory_choice import TheoryChoice, choose

__all__ = ["LearntSource", "SurveyTheory", "TheoryKind", "choice_for", "filled_stars"]

logger = logging.getLogger(__name__)

TheoryKind = Literal["auto", "emulator", "learnt"]
"""What settings may ask for; "auto" leaves it to the labels and the window."""


@dataclass(frozen=True, eq=False)
class LearntSource:
    """A `ForwardModel` of a learnt theory: the flux that labels alone give.

    Attributes
    ----------
    theory : LearntTheory
    label_names : tuple of str
    wave : (n_pixel,) float64
    """

    theory: LearntTheory
    label_names: tuple[str, ...]
    wave: Float64Array

    @property
    def bounds(self) -> Float64Array:
        """Range (n_label, 2) of the stars that it was learnt from."""
        n_label = self.theory.n_label
        return np.stack([self.theory.lowest[:n_label], self.theory.highest[:n_label]], axis=1)

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.wave

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        slopes = self.theory.typical_slopes(labels) if jacobian else None
        return Evaluation(self.theory.typical(labels), slopes)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Return zero: methods measure what is left of their own fits."""
        del labels
        return np.zeros(self.wave.size, dtype=np.float32)


@dataclass(frozen=True, eq=False)
class SurveyTheory:
    """Noise-free spectra by labels, as a survey sees them, and the stars that it was fitted to.

    Attributes
    ----------
    choice : TheoryChoice
    names : tuple of str
        Labels: the nine of the emulator, or those that were learnt.
    model : ForwardModel
        Of the labels, then of nuisances.
    stars : Sample
        Training stars with all labels, missing ones filled in; none where they are too few for
        theory to be calibrated by.
    truth : (n_star, n_label) float64
        Their labels, or those of typical stars where they are too few.
    calibration : TheoryCalibration or None
    continuum : (n_mode, n_pixel) float32
        Patterns of the continuum residual, one standard deviation each.
    resolving_power : float or None
    learnt : LearntTheory or None
        None is the emulator.
    """

    choice: TheoryChoice
    names: tuple[str, ...]
    model: ForwardModel
    stars: Sample
    truth: Float64Array
    calibration: TheoryCalibration | None
    continuum: Float32Array
    resolving_power: float | None
    learnt: LearntTheory | None

    @classmethod
    def lay(
        cls,
        training: Sample,
        *,
        wanted: TheoryKind = "auto",
        synthetic: str = "",
        calibrated: bool = True,
        seed: int,
    ) -> Self:
        """Choose the theory for a sample, and calibrate or learn it.

        Parameters
        ----------
        training : Sample
        wanted : {"auto", "emulator", "learnt"}
        synthetic : str
            Theory of the user (`maury.methods.fitting.synthetic_library.read_synthetic`), with
            which the learnt one begins; "" for none.
        calibrated : bool
            Whether the emulator is calibrated on the stars.
        seed : int

        Raises
        ------
        ConfigError
            If the emulator is wanted, or there are too few stars to learn from, and it does not
            reach over the pixels or the resolving power.
        TrainingError
            If there are too few stars to learn from.
        """
        choice = choice_for(training, wanted, synthetic)
        logger.info("theory: %s, as %s", choice.name, choice.reason)
        if choice.name == "learnt":
            return cls._learn(training, choice, synthetic, seed)
        return cls._emulate(training, choice, calibrated, seed)

    @classmethod
    def _emulate(cls, training: Sample, choice: TheoryChoice, calibrated: bool, seed: int) -> Self:
        stars = complete_stars(filled_stars(training), LABEL_NAMES, least=0)
        few = len(stars) < LEAST_STARS
        observing, wave = conditions_of(training), in_air(training)
        calibration = calibrate(stars, observing) if calibrated else None
        none = np.zeros(wave.size, dtype=np.float32)
        model = observed_chain(wave, calibration, none, observing=observing)
        smooth = smooth_patterns(wave, observing.continuum_rms)
        return cls(
            choice=choice,
            names=LABEL_NAMES,
            model=model,
            stars=stars.rows(np.zeros(0, dtype=np.int64)) if few else stars,
            truth=typical_labels(TYPICAL_STARS, seed) if few else stars.truth,
            calibration=calibration,
            continuum=smooth if calibration is None else calibration.continuum_modes,
            resolving_power=observing.resolving_power,
            learnt=None,
        )

    @classmethod
    def _learn(cls, training: Sample, choice: TheoryChoice, synthetic: str, seed: int) -> Self:
        stars = complete_stars(filled_stars(training), least=LEAST_STARS)
        names, wave = stars.label_names, in_air(training)
        known = None
        if synthetic:
            known = read_synthetic(
                synthetic,
                names,
                stars.truth,
                wave_aa=wave,
                resolving_power=training.resolving_power,
                seed=seed,
            )
        learnt, _ = LearntTheory.fit(
            stars.inputs.flux,
            stars.inputs.ivar,
            labels=stars.truth,
            names=names,
            noise_correlation=training.noise_correlation,
            synthetic=known,
        )
        smooth = smooth_patterns(wave, TRAINING_CONDITIONS.continuum_rms)
        none = np.zeros(wave.size, dtype=np.float32)
        source = LearntSource(learnt, names, wave)
        return cls(
            choice=choice,
            names=names,
            model=Chain(source, (Shift(wave), Continuum(smooth)), wave, none),
            stars=stars,
            truth=stars.truth,
            calibration=None,
            continuum=smooth,
            resolving_power=training.resolving_power,
            learnt=learnt,
        )

    @property
    def wave(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom in air."""
        return self.model.wave_aa

    @cached_property
    def bounds(self) -> Float64Array:
        """Range (n_label, 2) of the labels."""
        return np.asarray(self.model.bounds)[: len(self.names)]

    @property
    def checksum(self) -> str:
        """Checksum of the emulator; "" for a learnt theory."""
        return shipped_emulator().spec.checksum if self.learnt is None else ""

    def at_rest(self, labels: Float64Array) -> Float32Array:
        """Flux (n_star, n_pixel) of labels (n_star, n_label), all nuisances zero."""
        if self.learnt is not None:
            return self.learnt.typical(labels)
        assert isinstance(self.model, Chain), "the emulator is seen through a chain"
        return at_rest(self.model, labels)

    def start(self, rv_error_kms: float, seed: int) -> RidgeStart:
        """Learn to start fits, from spectra of the emulator, or from those of the stars."""
        if self.learnt is None:
            return learn_start(self.model, self.truth, rv_error_kms, seed)
        inputs = self.stars.inputs
        typical = self.learnt.typical(self.truth)
        flux = np.where(inputs.ivar > 0, inputs.flux, typical)
        return RidgeStart.learn(self.names, flux, self.truth)

    def drawn(
        self, labels: Float64Array, rv_error_kms: float, rng: np.random.Generator
    ) -> Float64Array:
        """Labels of `model` (n_star, n), of labels (n_star, n_label) and drawn nuisances."""
        if self.learnt is None:
            return draw_nuisances(self.model, labels, rv_error_kms, rng)
        nuisances = self.model.label_names[len(self.names) :]
        sigma = np.array([s for _, s in nuisance_sigmas(nuisances, rv_error_kms).values()])
        drawn = rng.standard_normal((len(labels), sigma.size)) * sigma
        whole = np.column_stack([labels, drawn])
        return np.asarray(np.clip(whole, *np.asarray(self.model.bounds).T))


def filled_stars(sample: Sample) -> Sample:
    """Return the stars with missing labels estimated from spectra and the other labels.

    Stars without any label stay as they are, and so does a label that too few stars have.
    """
    if np.isfinite(sample.truth).all():
        return sample
    inputs = sample.inputs
    filled = fill_from_spectra(
        sample.truth,
        inputs.flux,
        inputs.ivar,
        inputs.observables.astype(np.float64),
        np.ones(len(sample), dtype=np.bool_),
    )
    return replace(sample, truth=filled)


def choice_for(training: Sample, wanted: TheoryKind, synthetic: str) -> TheoryChoice:
    """Choose a theory; the emulator, uncalibrated, where stars are too few to learn from.

    Raises
    ------
    ConfigError, TrainingError
        As of `SurveyTheory.lay`.
    """
    if wanted == "emulator" and synthetic:
        raise ConfigError("synthetic: a theory of your own takes the place of the emulator")
    if wanted == "emulator":
        # Labels that the survey lacks follow the others as among typical stars.
        return TheoryChoice("emulator", "the settings ask for it")
    power, limit = training.resolving_power, shipped_emulator().spec.resolving_power
    choice = choose(
        wanted,
        training.label_names,
        lambda: in_air(training),
        synthetic=synthetic or None,
        power_known=power is not None,
    )
    if choice.name == "emulator" and power is not None and power >= limit:
        reason = f"the emulator's resolving power of {limit:g} is not above that of the survey"
        choice = TheoryChoice("learnt", reason)
    enough = len(training) >= LEAST_STARS
    if choice.name == "emulator" or enough or wanted == "learnt" or synthetic:
        return choice
    try:
        conditions_of(training)
        observed_chain(in_air(training), None, np.zeros(0, dtype=np.float32))
    except ConfigError as error:
        raise TrainingError(
            f"{len(training)} labelled stars are too few to learn a theory from, which takes "
            f"{LEAST_STARS}, and {error}"
        ) from error
    return TheoryChoice("emulator", f"{len(training)} stars are too few to learn a theory from")
