"""The Cannon: a quadratic model of the spectrum, learnt from labelled spectra and inverted by fits.

Ness et al. (2015, ApJ 808, 16); the sparse and censored form is that of Casey et al. (2016, arXiv
1603.03040).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError, check_known
from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.labels.flags import FLAG_DTYPE, Flag, set_where
from maury.labels.statistics import robust_sigma
from maury.methods.cannon_fit import QuadraticFit
from maury.methods.cannon_model import QuadraticModel
from maury.methods.fitting.chain import Chain, Modes, Operator, PixelShift
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import Prior
from maury.methods.fitting.noise import sandwich
from maury.methods.fitting.pixel_width import PixelWidth
from maury.methods.fitting.residuals import MODE_STARS, residual_modes
from maury.methods.fitting.stars import complete_stars, spread_stars
from maury.methods.fitting.survey_theory import filled_stars
from maury.methods.fitting.theory import finite_rows
from maury.methods.protocols import (
    NO_EXTERNAL,
    Evaluation,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
)
from maury.methods.storage import stored
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs

__all__ = ["Cannon", "CannonForward", "CannonSettings"]


# Stars fitted together, whose best fits and slopes lie in memory: 256 x 9 x 1000 floats are 9 MB.
_BLOCK = 256
# Training labels to start from, spread among them; more cost little, as they are one matrix
# product.
_N_START = 64
# Patterns of the misfit: twenty hold nearly all of it on simulated surveys, more cost memory.
_MOST_PATTERNS = 100
# How far beyond the training labels a fit may go, in their ranges, as `cannon_fit` has it.
_REACH = 0.5
# Share of the known values of an incomplete label that are hidden, to see how well it is estimated:
# hundreds of some thousand stars, and most of them stay to learn from.
_HIDDEN = 0.2
# In standard deviations: bounds of what is left of velocity and width.
_LIMIT_SIGMA = 5.0
# Of the logarithm of the width: beyond, a Taylor series of first order does not hold.
_MOST_WIDTH = 0.4


class CannonSettings(MethodSettings):
    """Settings of The Cannon.

    Attributes
    ----------
    sparsity : float
        Weight Lambda of the L1 term on all coefficients but the constant.
    censor : mapping of str to sequence of (float, float)
        Windows in angstrom, by label: pixels outside all windows of a label do not depend on it.
    runs : int
        Fits per spectrum, from the training labels whose spectra are most like it; the best
        counts. One fit ends in a wrong minimum for some stars, and converges there.
    label_errors : bool
        Whether the errors that the survey has of its labels are taken out of what is learnt.
    fill_labels : bool
        Whether missing labels of training stars are estimated from their spectra and other labels,
        with an error (taken out of what is learnt if `label_errors`); otherwise such stars are left
        out.
    misfit : int
        Patterns, at most, in which training spectra differ from the model at their own labels: a
        misfit that is alike in many pixels, which the errors of labels then know of.
    rv_sigma_kms : float
        Standard deviation of the velocity left in spectra to predict, which is then fitted with
        the labels; 0 for spectra at rest, as those that the model learnt from.
    width_scatter : float
        Standard deviation of the logarithm of their line width relative to that of the training
        spectra, which is then fitted, too; 0 for the same width.
    """

    sparsity: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    censor: dict[str, tuple[tuple[float, float], ...]] = Field(default_factory=dict)
    runs: int = Field(default=8, ge=1, le=16)
    label_errors: bool = True
    fill_labels: bool = True
    misfit: int = Field(default=20, ge=0, le=_MOST_PATTERNS)
    rv_sigma_kms: float = Field(default=0.0, ge=0.0, le=30.0)
    width_scatter: float = Field(default=0.0, ge=0.0, le=0.3)


@dataclass(frozen=True, eq=False)
class CannonForward:
    """The quadratic model as a forward model (`maury.methods.protocols.ForwardModel`).

    Attributes
    ----------
    model : QuadraticModel
    label_names : tuple of str
    wave_aa : (n_pixel,) float64
    reach : float
        How far labels may lie beyond the training labels, in their ranges.
    """

    model: QuadraticModel
    label_names: tuple[str, ...]
    wave_aa: Float64Array
    reach: float = 0.0

    @property
    def bounds(self) -> Float64Array:
        """Range (n_label, 2) of the training labels, widened by `reach`."""
        beyond = self.reach * (self.model.highest - self.model.lowest)
        return np.stack([self.model.lowest - beyond, self.model.highest + beyond], axis=1)

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives at `labels` (n_star, n_label)."""
        slopes = self.model.jacobian(labels).astype(np.float32) if jacobian else None
        return Evaluation(self.model.flux(labels).astype(np.float32), slopes)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Intrinsic scatter squared, (n_pixel,)."""
        return (self.model.scatter**2).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Cannon(Method[CannonSettings]):
    """The Cannon, trained.

    Attributes
    ----------
    model : QuadraticModel
    starts : (n_start, n_label) float64
        Training labels from which fits start.
    wave_aa : (n_pixel,) float64
    noise_correlation : tuple of float
        Of the noise of pixels 1, 2, ... apart; errors account for it.
    misfit : (n_pattern, n_pixel) float32 or None
        Patterns in which training spectra differ from the model at their own labels, one standard
        deviation each; none in models that were written before there were any.
    """

    name: ClassVar[str] = "cannon"
    paper: ClassVar[str] = "Ness et al. (2015, ApJ 808, 16); Casey et al. (2016, arXiv 1603.03040)"
    bibtex_key: ClassVar[str] = "2015ApJ...808...16N"
    settings_class: ClassVar[type[MethodSettings]] = CannonSettings

    model: QuadraticModel = field(metadata=stored(""))
    starts: Float64Array
    wave_aa: Float64Array
    noise_correlation: tuple[float, ...]
    misfit: Float32Array | None = None

    def __post_init__(self) -> None:
        if self.misfit is not None and self.misfit.shape[1:] != self.wave_aa.shape:
            raise ValueError(f"patterns are {self.misfit.shape} for {self.wave_aa.size} pixels")
        if self.model.n_label != len(self.label_names):
            raise ValueError(
                f"the model has {self.model.n_label} labels, not {len(self.label_names)}"
            )

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: CannonSettings, seed: int
    ) -> Self:
        """Learn the coefficients from stars of which all labels are known.

        Raises
        ------
        ConfigError
            If a label is not known, or `censor` names another.
        TrainingError
            If there are fewer such stars than coefficients per pixel, or errors of the labels leave
            nothing to learn.
        """
        if settings.width_scatter and training.resolving_power is None:
            raise ConfigError(
                "width_scatter needs the line width of the training spectra: write "
                "'resolving_power = ...' at the top of the TOML file that the survey is ingested "
                "with"
            )
        if settings.fill_labels and not np.isfinite(training.truth).all():
            training = _filled(training, seed)
        stars = complete_stars(training, settings.labels)
        names, truth = stars.label_names, stars.truth
        model = QuadraticModel.fit(
            stars.inputs.flux,
            stars.inputs.ivar,
            truth,
            sparsity=settings.sparsity,
            uses=_windows(training.wave_aa, names, settings.censor),
            label_errors=stars.truth_error if settings.label_errors else None,
        )
        near = np.clip(model.scaled(truth), -1.0, 1.0)
        return cls(
            settings=settings,
            label_names=names,
            model=model,
            starts=model.physical(near[spread_stars(near, _N_START)]),
            wave_aa=training.wave_aa,
            noise_correlation=tuple(training.noise_correlation),
            misfit=_misfit(model, stars, settings.misfit),
            resolving_power=training.resolving_power,
        )

    @property
    def forward(self) -> CannonForward:
        """The model, for `maury.methods.fitting.fitter`."""
        return CannonForward(self.model, self.label_names, self.wave_aa)

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit spectra; see `maury.methods.protocols.Method.apply`."""
        blocks = [slice(k, k + _BLOCK) for k in range(0, max(len(inputs), 1), _BLOCK)]
        noise = noise_seen(self.noise_correlation, inputs.noise_correlation)
        seen = [self._block(inputs.flux[k], inputs.ivar[k], noise) for k in blocks]
        if self._open:
            fitter = self._fitter.seen_with(inputs.noise_correlation)
            seen = [
                self._reopened(fitter, part, inputs.flux[k], inputs.ivar[k])
                for part, k in zip(seen, blocks, strict=True)
            ]
        return FitResult.join(seen)

    @cached_property
    def _open(self) -> dict[str, float]:
        """Prior standard deviations of what is fitted besides the labels."""
        settings = self.settings
        known = {"rv_kms": settings.rv_sigma_kms, "ln_width": settings.width_scatter}
        return {name: sigma for name, sigma in known.items() if sigma > 0}

    @cached_property
    def _fitter(self) -> Fitter:
        """The fit of labels, velocity, line width and misfit at once."""
        operators: list[Operator] = []
        if "rv_kms" in self._open:
            limit = _LIMIT_SIGMA * self.settings.rv_sigma_kms
            operators.append(PixelShift(self.wave_aa, limit))
        if "ln_width" in self._open:
            assert self.resolving_power is not None, "training refuses an unknown one"
            limit = min(_LIMIT_SIGMA * self.settings.width_scatter, _MOST_WIDTH)
            operators.append(PixelWidth(self.wave_aa, self.resolving_power, limit))
        if self.misfit is not None:
            operators.append(Modes(self.misfit, "misfit"))
        forward = CannonForward(self.model, self.label_names, self.wave_aa, _REACH)
        chain = Chain(forward, tuple(operators), self.wave_aa, forward.variance(np.zeros(0)))
        return Fitter(chain, noise_correlation=self.noise_correlation)

    def _reopened(
        self, fitter: Fitter, found: FitResult, flux: Float32Array, ivar: Float32Array
    ) -> FitResult:
        """Fit again, from the labels of spectra at rest and as wide as those that were learnt."""
        names = fitter.model.label_names
        start = np.zeros((len(found), len(names)))
        start[:, : len(self.label_names)] = np.where(
            np.isfinite(found.labels), found.labels, self.model.pivot
        )
        # Patterns of the misfit have unit scatter.
        sigmas = {name: (0.0, self._open.get(name, 1.0)) for name in names[len(self.label_names) :]}
        prior = Prior.of(names, len(found), sigmas)
        whole = fitter.fit(flux, ivar, start, prior=prior)
        again = whole.select(self.label_names)
        lost = ~finite_rows(found.labels)
        return replace(
            again,
            labels=np.where(lost[:, None], np.nan, again.labels),
            covariance=np.where(lost[:, None, None], np.nan, again.covariance),
        )

    def _block(
        self, flux: Float32Array, ivar: Float32Array, noise_correlation: tuple[float, ...]
    ) -> FitResult:
        # Chi-square is that of independent pixels (Ness et al. 2015); errors know the correlation.
        found = self._fit.fit(flux, ivar, runs=self.settings.runs)
        n_freedom = (ivar > 0).sum(axis=1) - len(self.label_names)
        answered = n_freedom > 0
        labels = np.where(answered[:, None], found.labels, np.nan)
        flags = np.zeros(len(flux), FLAG_DTYPE)
        flags = set_where(flags, Flag.NOT_CONVERGED, answered & ~found.converged)
        flags = set_where(flags, Flag.AT_BOUND, answered & found.at_bound)
        covariance = np.full(found.fisher.shape, np.nan)
        rows = np.flatnonzero(answered)
        covariance[rows] = self._covariance(
            found.labels[rows], found.fisher[rows], ivar[rows], noise_correlation
        )
        best = self.model.flux32(found.labels)
        best[~answered] = np.nan
        return FitResult(
            self.label_names,
            labels,
            covariance,
            np.where(answered, found.chi2, np.nan),
            np.where(answered, n_freedom, 0),
            flags,
            best,
        )

    @cached_property
    def _fit(self) -> QuadraticFit:
        return QuadraticFit(self.model, self.starts)

    def _covariance(
        self,
        labels: Float64Array,
        fisher: Float64Array,
        ivar: Float32Array,
        noise_correlation: tuple[float, ...],
    ) -> Float64Array:
        # By scaled labels, so that kelvins and dex are of one size.
        scale = self.model.scale
        square = np.outer(scale, scale)
        slopes, noise = np.zeros((0, 0, 0), np.float32), ivar
        if any(noise_correlation) or self.misfit is not None:
            slopes = self.model.scaled_slopes(labels)
            noise = np.sqrt(ivar) / (1.0 + ivar * (self.model.scatter**2).astype(np.float32))
        own = fisher * square
        total = sandwich(slopes, noise, own, correlation=noise_correlation)
        if self.misfit is not None:
            # What a pattern of unit strength moves the labels by, all of its pixels at once.
            weight = noise * np.sqrt(ivar)
            pulled = (slopes * weight[:, None]) @ self.misfit.T
            moved = np.linalg.pinv(own, hermitian=True) @ pulled.astype(np.float64)
            total = total + moved @ moved.transpose(0, 2, 1)
        return square * total


def _filled(training: Sample, seed: int) -> Sample:
    """Stars with missing labels estimated, and the errors of these estimates.

    The error is the scatter of what is estimated of known values that were hidden.
    """
    filled = filled_stars(training)
    known = np.isfinite(training.truth)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(5,)))
    hidden = known & (rng.random(known.shape) < _HIDDEN) & ~known.all(axis=0)
    tried = filled_stars(replace(training, truth=np.where(hidden, np.nan, training.truth))).truth
    # A star without any label left is not estimated at all.
    apart = np.where(hidden & np.isfinite(tried), tried - training.truth, np.nan)
    error = np.array([robust_sigma(column) for column in apart.T])
    own = np.where(known, training.truth_error, error)
    return replace(filled, truth_error=own)


def _misfit(model: QuadraticModel, stars: Sample, count: int) -> Float32Array | None:
    """Patterns in which training spectra differ from the model at their own labels."""
    if not count:
        return None
    # Of the best spectra, where what the model lacks stands out of the noise.
    some = stars.rows(np.argsort(-stars.inputs.snr)[:MODE_STARS])
    # Scatter of single pixels is known already: patterns are what is common to many.
    ivar = some.inputs.ivar / (1.0 + some.inputs.ivar * model.scatter**2)
    found = residual_modes(
        some.inputs.flux,
        ivar.astype(np.float32),
        model.flux32(some.truth),
        count=count,
        noise_correlation=tuple(stars.noise_correlation),
    )
    return found if len(found) else None


def _windows(
    wave_aa: Float64Array,
    names: Sequence[str],
    censor: Mapping[str, Sequence[tuple[float, float]]],
) -> BoolArray | None:
    """Which labels each pixel may depend on, (n_pixel, n_label)."""
    if not censor:
        return None
    uses = np.ones((wave_aa.size, len(names)), dtype=np.bool_)
    for name, windows in censor.items():
        column = list(names).index(check_known("censored label", name, names))
        inside = [(wave_aa >= low) & (wave_aa <= high) for low, high in windows]
        uses[:, column] = np.any(inside, axis=0) if inside else False
        if not uses[:, column].any():
            raise ConfigError(
                f"no pixel lies in the windows of {name!r}; the spectra reach from "
                f"{wave_aa[0]:.1f} to {wave_aa[-1]:.1f} angstrom"
            )
    return uses
