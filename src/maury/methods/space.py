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

from maury.errors import TrainingError
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array
from maury.labels.columns import Column
from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.chain import Chain, Continuum, Modes, Operator, Shift
from maury.methods.fitting.contours import confidence_limits
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import LabelKnowledge, Prior, Start, with_external
from maury.methods.fitting.pixel_width import PixelWidth
from maury.methods.fitting.residuals import (
    MODE_STARS,
    RESIDUAL_STARS,
    residual_modes,
    residual_variance,
)
from maury.methods.fitting.starting import RidgeStart
from maury.methods.fitting.survey_theory import SurveyTheory, TheoryKind
from maury.methods.fitting.theory import (
    finite_rows,
    known_power,
    nuisance_sigmas,
    require_emulator,
    smooth_patterns,
)
from maury.methods.lines import LineModel, find_lines, groups_of
from maury.methods.protocols import (
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
from maury.spectra.preparation import Inputs

__all__ = ["Space", "SpaceSettings"]


# Synthetic spectra: some sixteen for each of 35 + 6 x 35 coefficients.
_LIBRARY = 4000
# Typical stars at which lines are looked for; derivatives are averaged over them.
_FINDING = 80
# Chosen: the line model leaves more of a spectrum than a grid does.
_MODES = 10
_STAGE_1 = ("teff", "logg", "m_h", "alpha_m")
# As Boeche & Grebel (2016, A&A 587, A2).
_REJECT_SIGMA = 4.0
_SPREAD: Mapping[str, float] = {"teff": 100.0, "si_fe": 0.15, "al_fe": 0.2, "mg_fe": 0.15}
"""Scatter that spectra of the library have beyond that of the stars, as far as stars scatter."""
_OTHER_SPREAD = 0.1
"""The same of other labels, dex: of iron, and of elements that scatter little among stars."""
_WIDTH_SIGMA = 0.1
"""Prior of the logarithm of the line width: three scatters of the resolving power of RAVE, as
rotation and macroturbulence add to it."""
_WIDTH_LIMIT = 0.25
"""Of the same, beyond which two terms in it err by a sixth of the change."""
_MEASURED_SIGMA = 1.0
"""Depth over the noise of a pixel from which a line counts as measured; chosen: a line covers three
pixels or so, and is then seen at two sigma."""


class SpaceSettings(MethodSettings):
    """Settings of SP_Ace.

    Attributes
    ----------
    theory : {"auto", "emulator", "learnt"}
        What the line library is learnt from (`maury.methods.fitting.survey_theory`).
    synthetic : str
        Synthetic spectra of the user, with which a learnt theory begins; "" for none.
    calibrate : bool
        Whether the emulator is calibrated on the training stars.
    rounds : int
        Turns of the two stages.
    width : bool
        Whether the width of the lines is fitted; where theory is not calibrated this moves Teff by
        more than its sampling error, so that it is not by default.
    limits : bool
        Whether confidence limits of each label are given, from the contour of chi-square.
    external : tuple of str
        Labels that are taken from columns of the survey, such as a seismic ``logg``.
    rv_error_kms : float
        Standard deviation of the velocity left in the spectra.
    """

    theory: TheoryKind = "auto"
    synthetic: str = ""
    calibrate: bool = True
    rounds: int = Field(default=2, ge=1, le=10)
    width: bool = False
    limits: bool = True
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
        Checksum of the emulator with which it was trained, "" for a learnt theory.
    fits_width, gives_further : bool
        Whether the width of the lines is fitted, and columns besides labels are given; neither in
        models of earlier versions.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "space"
    paper: ClassVar[str] = "Boeche & Grebel (2016, A&A 587, A2)"
    bibtex_key: ClassVar[str] = "2016A&A...587A...2B"
    settings_class: ClassVar[type[MethodSettings]] = SpaceSettings
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "all"

    lines: LineModel
    patterns: Float32Array | None
    knowledge: LabelKnowledge = field(metadata=stored("known"))
    start: RidgeStart
    noise_correlation: tuple[float, ...]
    emulator: str
    fits_width: bool
    gives_further: bool

    def __post_init__(self) -> None:
        if self.emulator:
            require_emulator(self.emulator)

    @property
    def calibrated_by(self) -> UnseenStars:
        """All stars as they are where the emulator gives labels; see `Method`."""
        return self.unseen if self.emulator else "folds"

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: SpaceSettings, seed: int
    ) -> Self:
        """Learn the line library from the theory of the survey; see `Method`."""
        del validation
        power = known_power(training)
        theory = SurveyTheory.lay(
            training,
            wanted=settings.theory,
            synthetic=settings.synthetic,
            calibrated=settings.calibrate,
            seed=seed,
        )
        method = cls(
            settings,
            tuple(name for name in theory.names if name in training.label_names),
            _library(theory, settings, power, seed),
            None,
            LabelKnowledge.learn(theory.names, theory.truth, np.zeros((len(theory.truth), 0))),
            theory.start(settings.rv_error_kms, seed),
            training.noise_correlation,
            theory.checksum,
            settings.width,
            True,
            # Before residuals are measured, as the width is relative to it.
            resolving_power=power,
        )
        return method._with_residuals(theory.stars) if len(theory.stars) else method

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
        place[:, : self._n] = stars.truth
        frozen = np.arange(place.shape[1]) < self._n
        flux, ivar = stars.inputs.flux, stars.inputs.ivar
        fitted = self.fitter.fit(flux, ivar, place, prior=self._prior(len(stars)), frozen=frozen)
        assert fitted.flux is not None, "a fit has a best spectrum"
        return fitted.flux

    @property
    def _n(self) -> int:
        """Labels of the lines, which come first of all that is fitted."""
        return len(self.lines.label_names)

    @cached_property
    def chain(self) -> Chain:
        """The lines, broadened, shifted, times a smooth continuum, with further patterns."""
        wave = self.lines.wave
        smooth = Continuum(smooth_patterns(wave, TRAINING_CONDITIONS.continuum_rms))
        operators: tuple[Operator, ...] = (Shift(wave), smooth)
        if self.fits_width:
            assert self.resolving_power is not None, "training refuses an unknown resolving power"
            width = PixelWidth(wave, self.resolving_power, _WIDTH_LIMIT, terms=2)
            operators = (width, *operators)
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
        place[:, : self._n] = self.start.regress(inputs.flux, inputs.ivar)
        none = np.zeros(place.shape, dtype=np.bool_)
        place, prior, known = with_external(Start(place, prior, none), names, external)
        ivar = inputs.ivar
        first = self._first_stage
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
        further = self._counted(inputs, place)
        if self.gives_further and self.settings.limits:
            limits = confidence_limits(
                whole, inputs.flux, ivar, joint, prior=prior, free=~known, count=self._n
            )
            # About the labels that are given, which the joint fit moves a little.
            limits += (place - joint.labels)[:, : self._n, None]
            for k, name in enumerate(self.lines.label_names):
                further |= {f"{name}_lower": limits[:, k, 0], f"{name}_upper": limits[:, k, 1]}
        own = {column.name: further[column.name] for column in self.further_columns}
        return replace(result.select(self.label_names), further=own)

    @cached_property
    def _first_stage(self) -> BoolArray:
        """What the first stage fits: the atmosphere, or all labels where there is none."""
        labels = self.lines.label_names
        core = [*_STAGE_1, *(("fe_h",) if "m_h" not in labels else ())]
        if not set(core) & set(labels):
            core = [*labels]
        return np.array([n in core or n not in labels for n in self.chain.label_names])

    def _counted(self, inputs: Inputs, place: Float64Array) -> dict[str, Float64Array]:
        """Lines measured (n_star,) of each element; NaN for a star without labels."""
        good = finite_rows(place)
        counted = self.lines.measured(
            place[good, : self._n], inputs.ivar[good], sigma=_MEASURED_SIGMA
        )
        out = {}
        for name, number in counted.items():
            whole = np.full(len(place), np.nan)
            whole[good] = number
            out[f"n_lines_{name}"] = whole
        return out

    @property
    def further_columns(self) -> tuple[Column, ...]:
        """Confidence limits of each label, and lines measured of each element."""
        if not self.gives_further:
            return ()
        limits = [
            Column(
                f"{name}_{side}",
                "K" if name == "teff" else "",
                "stat.error",
                f"{side.capitalize()} limit of {name}, where chi-square rises by 1",
            )
            for name in self.label_names
            for side in ("lower", "upper")
            if self.settings.limits
        ]
        counts = [
            Column(f"n_lines_{name}", "", "meta.number", f"Lines of {name} above the noise")
            for name in groups_of(self.lines.label_names)
        ]
        return (*limits, *counts)

    def _prior(self, n_star: int) -> Prior:
        names = self.chain.label_names
        sigmas = nuisance_sigmas(names[self._n :], self.settings.rv_error_kms)
        if self.fits_width:
            sigmas["ln_width"] = (0.0, _WIDTH_SIGMA)
        return Prior.of(names, n_star, sigmas)

    def _label_prior(self, n_star: int) -> Prior:
        n, labels = self._n, self.lines.label_names
        known = self.knowledge.prior("wide", labels, n_star, np.zeros((n_star, 0)))
        prior = Prior.flat(n_star, len(self.chain.label_names))
        prior.precision[:, :n, :n] = known.precision
        prior.pull[:, :n] = known.pull
        return prior

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        return arrays, {**about, "line_labels": list(self.lines.label_names)}

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: SpaceSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        del arrays, settings
        # Earlier versions knew the labels of the emulator alone, and fitted no width.
        names = tuple(about.get("line_labels", LABEL_NAMES))
        return {
            "start": {"label_names": names},
            "lines": {"label_names": names},
            "fits_width": bool(about.get("fits_width", False)),
            "gives_further": bool(about.get("gives_further", False)),
        }


def _library(theory: SurveyTheory, settings: SpaceSettings, power: float, seed: int) -> LineModel:
    """Find the lines, and measure their widths in spectra of stars like the training stars."""
    rng, truth, names = np.random.default_rng(seed), theory.truth, theory.names
    some = truth[rng.choice(len(truth), _FINDING)]
    typical = theory.drawn(some, settings.rv_error_kms, rng)
    found = find_lines(theory.model, typical, names, metals_with_iron=theory.learnt is not None)
    if not found[0].size:
        raise TrainingError(
            "no line of any label is found in these spectra; train a method that takes pixels as "
            "they are, such as cannon"
        )
    labels = truth[rng.choice(len(truth), _LIBRARY)]
    spread = np.array([_SPREAD.get(name, _OTHER_SPREAD) for name in names])
    labels = labels + spread * rng.standard_normal(labels.shape)
    labels = np.clip(labels, *theory.bounds.T)
    blocks = [theory.at_rest(labels[k : k + 128]) for k in range(0, _LIBRARY, 128)]
    return LineModel.learn(
        found,
        labels,
        np.concatenate(blocks),
        names=names,
        wave=theory.wave,
        resolving_power=power,
        limits=theory.bounds,
    )


def _reweighed(inputs: Inputs, fitted: FitResult) -> Float32Array:
    """Inverse variances by the noise that the fit finds, without pixels four sigma off."""
    assert fitted.flux is not None, "a fit has a best spectrum"
    scale = np.clip(fitted.chi2_reduced, 0.5, 4.0)
    scale = np.where(np.isfinite(scale), scale, 1.0)[:, None]
    ivar = inputs.ivar / scale
    far = np.abs(inputs.flux - fitted.flux) * np.sqrt(ivar) > _REJECT_SIGMA
    return np.where(far, 0.0, ivar).astype(np.float32)
