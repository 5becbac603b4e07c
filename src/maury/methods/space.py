"""SP_Ace: labels from a library of equivalent widths, in two stages that take turns.

Boeche et al. (2011, AJ 142, 193) and Boeche & Grebel (2016, A&A 587, A2). The library is learnt
from the calibrated emulator. The first stage fits Teff, log g, [M/H] and [alpha/M] with velocity
and continuum, the second the abundances of single elements at fixed parameters; between them pixels
four sigma off are rejected, and the noise is measured anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from maury.io.arrays import AnyArray, Float32Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.chain import Chain, Continuum, Modes, Operator, Shift
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import LabelKnowledge, Prior, Start, with_external
from maury.methods.fitting.residuals import (
    MODE_STARS,
    RESIDUAL_STARS,
    residual_modes,
    residual_variance,
)
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.starting import RidgeStart
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
    require_emulator,
    shipped_emulator,
    smooth_patterns,
    typical_labels,
)
from maury.methods.lines import LineModel, find_lines
from maury.methods.protocols import (
    NO_EXTERNAL,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
    UnseenStars,
)
from maury.methods.storage import stored
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.spectra.preparation import Inputs

__all__ = ["Space", "SpaceSettings"]


_N = len(LABEL_NAMES)
# Synthetic spectra: some sixteen for each of 35 + 6 x 35 coefficients.
_LIBRARY = 4000
# Typical stars at which lines are looked for; derivatives are averaged over them.
_FINDING = 80
# Chosen: the line model leaves more of a spectrum than a grid does.
_MODES = 10
_STAGE_1 = ("teff", "logg", "m_h", "alpha_m")
# As Boeche & Grebel (2016, A&A 587, A2).
_REJECT_SIGMA = 4.0
_SPREAD = np.array([100.0, 0.1, 0.1, 0.1, 0.1, 0.15, 0.2, 0.15, 0.1])


class SpaceSettings(MethodSettings):
    """Settings of SP_Ace.

    Attributes
    ----------
    calibrate : bool
        Whether theory is calibrated on the training stars.
    rounds : int
        Turns of the two stages.
    external : tuple of str
        Labels that are taken from columns of the survey, such as a seismic ``logg``.
    rv_error_kms : float
        Standard deviation of the velocity left in the spectra.
    """

    calibrate: bool = True
    rounds: int = Field(default=2, ge=1, le=10)
    external: tuple[str, ...] = ()
    rv_error_kms: float = Field(default=1.3, gt=0.0, le=10.0)


@dataclass(frozen=True, eq=False)
class Space(Method[SpaceSettings]):
    """Voigt lines with polynomial equivalent widths, fitted in two stages.

    Attributes
    ----------
    lines : LineModel
    patterns : (n_mode, n_pixel) float32 or None
        In which stars differ from the lines, one standard deviation each.
    knowledge : LabelKnowledge
    start : RidgeStart
    noise_correlation : tuple of float
    emulator : str
        Checksum of the emulator with which it was trained.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "space"
    paper: ClassVar[str] = "Boeche & Grebel (2016, A&A 587, A2)"
    bibtex_key: ClassVar[str] = "2016A&A...587A...2B"
    settings_class: ClassVar[type[MethodSettings]] = SpaceSettings
    known_labels: ClassVar[tuple[str, ...] | None] = LABEL_NAMES
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "all"

    lines: LineModel
    patterns: Float32Array | None
    knowledge: LabelKnowledge = field(metadata=stored("known"))
    start: RidgeStart
    noise_correlation: tuple[float, ...]
    emulator: str

    def __post_init__(self) -> None:
        require_emulator(self.emulator)

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: SpaceSettings, seed: int
    ) -> Self:
        """Learn the line library from calibrated theory; see `Method`."""
        del validation
        stars = complete_stars(training, LABEL_NAMES, least=0)
        few = len(stars) < LEAST_STARS
        wave = in_air(training)
        observing = conditions_of(training)
        calibration = calibrate(stars, observing) if settings.calibrate else None
        none = np.zeros(wave.size, dtype=np.float32)
        theory = observed_chain(wave, calibration, none, observing=observing)
        truth = typical_labels(TYPICAL_STARS, seed) if few else stars.truth
        rng = np.random.default_rng(seed)
        some = truth[rng.choice(len(truth), _FINDING)]
        found = find_lines(theory, draw_nuisances(theory, some, settings.rv_error_kms, rng))
        labels = truth[rng.choice(len(truth), _LIBRARY)]
        labels = labels + _SPREAD * rng.standard_normal(labels.shape)
        labels = np.clip(labels, *theory.bounds[:_N].T)
        blocks = [at_rest(theory, labels[k : k + 128]) for k in range(0, _LIBRARY, 128)]
        lines = LineModel.learn(
            found,
            labels,
            np.concatenate(blocks),
            wave=wave,
            resolving_power=observing.resolving_power,
            limits=theory.bounds[:_N],
        )
        method = cls(
            settings,
            tuple(name for name in LABEL_NAMES if name in training.label_names),
            lines,
            None,
            LabelKnowledge.learn(LABEL_NAMES, truth, np.zeros((len(truth), 0))),
            learn_start(theory, truth, settings.rv_error_kms, seed),
            training.noise_correlation,
            shipped_emulator().spec.checksum,
        )
        return method if few else method._with_residuals(stars)

    def _with_residuals(self, stars: Sample) -> Self:
        """Return the method with the patterns and the variance that its fits leave at the truth."""
        many = stars.rows(np.argsort(-stars.inputs.snr)[:MODE_STARS])
        patterns = residual_modes(
            many.inputs.flux,
            many.inputs.ivar,
            self._at_truth(many),
            count=_MODES,
            noise_correlation=self.noise_correlation,
        )
        shaped = replace(self, patterns=patterns)
        best = many.rows(np.arange(min(len(many), RESIDUAL_STARS)))
        own = residual_variance(best.inputs.flux, best.inputs.ivar, shaped._at_truth(best))
        return replace(shaped, lines=replace(self.lines, own_variance=own))

    def _at_truth(self, stars: Sample) -> Float32Array:
        place = np.zeros((len(stars), len(self.chain.label_names)))
        place[:, :_N] = stars.truth
        frozen = np.arange(place.shape[1]) < _N
        flux, ivar = stars.inputs.flux, stars.inputs.ivar
        fitted = self.fitter.fit(flux, ivar, place, prior=self._prior(len(stars)), frozen=frozen)
        assert fitted.flux is not None, "a fit has a best spectrum"
        return fitted.flux

    @cached_property
    def chain(self) -> Chain:
        """The lines, shifted, times a smooth continuum, with further patterns."""
        wave = self.lines.wave
        smooth = Continuum(smooth_patterns(wave, TRAINING_CONDITIONS.continuum_rms))
        operators: tuple[Operator, ...] = (Shift(wave), smooth)
        if self.patterns is not None:
            operators = (*operators, Modes(self.patterns, "residual"))
        return Chain(self.lines, operators, wave, self.lines.own_variance)

    @cached_property
    def fitter(self) -> Fitter:
        """The fit of either stage."""
        return Fitter(self.chain, noise_correlation=self.noise_correlation, tolerance=0.05)

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit the two stages in turn; see `Method`."""
        names, n = self.chain.label_names, len(inputs)
        prior = self._prior(n) + self._label_prior(n)
        place = np.zeros((n, len(names)))
        place[:, :_N] = self.start.regress(inputs.flux, inputs.ivar)
        none = np.zeros(place.shape, dtype=np.bool_)
        place, prior, known = with_external(Start(place, prior, none), names, external)
        ivar = inputs.ivar
        first = np.array([name in _STAGE_1 or name not in LABEL_NAMES for name in names])
        fitter = self.fitter.seen_with(inputs.noise_correlation)
        for _ in range(self.settings.rounds):
            one = fitter.fit(inputs.flux, ivar, place, prior=prior, frozen=~first | known)
            elements = known | first
            two = fitter.fit(inputs.flux, ivar, one.labels, prior=prior, frozen=elements)
            ivar, place = _reweighed(inputs, two), two.labels
        # Two stages give labels but no joint errors: one fit of all labels from there does.
        whole = Fitter(self.chain, noise_correlation=fitter.noise_correlation, max_steps=2)
        joint = whole.fit(inputs.flux, ivar, place, prior=prior, frozen=known)
        result = FitResult(
            names, place, joint.covariance, two.chi2, two.n_freedom, one.flags | two.flags, two.flux
        )
        return result.select(self.label_names)

    def _prior(self, n_star: int) -> Prior:
        names = self.chain.label_names
        return Prior.of(names, n_star, nuisance_sigmas(names, self.settings.rv_error_kms))

    def _label_prior(self, n_star: int) -> Prior:
        known = self.knowledge.prior("wide", LABEL_NAMES, n_star, np.zeros((n_star, 0)))
        prior = Prior.flat(n_star, len(self.chain.label_names))
        prior.precision[:, :_N, :_N] = known.precision
        prior.pull[:, :_N] = known.pull
        return prior

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: SpaceSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        del arrays, about, settings
        return {"start": {"label_names": LABEL_NAMES}}


def _reweighed(inputs: Inputs, fitted: FitResult) -> Float32Array:
    """Inverse variances by the noise that the fit finds, without pixels four sigma off."""
    assert fitted.flux is not None, "a fit has a best spectrum"
    scale = np.clip(fitted.chi2_reduced, 0.5, 4.0)
    scale = np.where(np.isfinite(scale), scale, 1.0)[:, None]
    ivar = inputs.ivar / scale
    far = np.abs(inputs.flux - fitted.flux) * np.sqrt(ivar) > _REJECT_SIGMA
    return np.where(far, 0.0, ivar).astype(np.float32)
