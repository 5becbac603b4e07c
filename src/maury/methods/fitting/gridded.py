"""Grids of the theory of a survey, and what methods that fit them have in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
from pydantic import Field, model_validator

from maury.errors import ConfigError, TrainingError
from maury.io.arrays import AnyArray, Float32Array, Float64Array, on_finite_rows
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_scale, robust_sigma
from maury.methods.fitting.chain import Chain, Continuum, Modes, Operator, Shift
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.grid import MOST_AXES, Grid, Interpolation
from maury.methods.fitting.knowledge import Prior, Start, with_external
from maury.methods.fitting.polynomials import bounded_terms
from maury.methods.fitting.residuals import (
    MODE_STARS,
    RESIDUAL_STARS,
    residual_modes,
    residual_variance,
)
from maury.methods.fitting.sampling import sampled
from maury.methods.fitting.survey_theory import SurveyTheory, TheoryKind
from maury.methods.fitting.theory import finite_rows, nuisance_sigmas, require_emulator
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

__all__ = ["Foundation", "GridFit", "GridMethod", "GridSettings", "Pattern", "axes_around"]

STEPS: dict[str, float] = {
    "teff": 250.0,
    "logg": 0.5,
    "m_h": 0.25,
    "fe_h": 0.25,
    "alpha_m": 0.14,
    "si_fe": 0.2,
    "al_fe": 0.25,
    "mg_fe": 0.2,
    "ni_fe": 0.2,
}
"""Greatest step of each axis of a grid."""
_NODES = 6
"""Nodes of an axis without a step of its own; chosen: cubics need four."""
# Scaled labels are kept within so many scatters, beyond which few training stars hold the
# polynomial.
_CLIP = 2.5
# Relative to the number of stars: a thousandth of unit variance, against collinear terms.
_RIDGE = 1e-3
# 60 000 spectra of 1000 floats are 240 MB.
_MOST_NODES = 60_000
# Share of a scatter: the polynomial is smooth, and doubles resolve the difference.
_STEP_SHARE = 1e-3


class GridSettings(MethodSettings):
    """Settings of a method that fits a grid.

    Attributes
    ----------
    theory : {"auto", "emulator", "learnt"}
        What the grid is made of (`maury.methods.fitting.survey_theory`).
    synthetic : str
        Synthetic spectra of the user, with which a learnt theory begins; "" for none.
    axes : tuple of str
        Labels of the grid; the others follow them as among the training stars. By default those of
        the four that theory knows.
    interpolation : {"linear", "quadratic", "cubic"}
        See `maury.methods.fitting.grid`.
    components : int
        Principal components of the grid; 0 keeps its pixels.
    calibrate : bool
        Whether theory is calibrated on the training stars.
    nuisances : bool
        Whether a velocity and a continuum residual are fitted with the labels.
    external : tuple of str
        Axes that are taken from columns of the survey, such as a seismic ``logg``.
    rv_error_kms : float
        Standard deviation of the velocity left in the spectra.
    starts : int
        Fits per star, from the best of so many parts of the grid.
    """

    theory: TheoryKind = "auto"
    synthetic: str = ""
    axes: tuple[str, ...] = Field(default=("teff", "logg", "m_h", "alpha_m"), max_length=MOST_AXES)
    interpolation: Interpolation = "cubic"
    components: int = Field(default=80, ge=0, le=400)
    calibrate: bool = True
    nuisances: bool = True
    external: tuple[str, ...] = ()
    rv_error_kms: float = Field(default=1.3, gt=0.0, le=10.0)
    starts: int = Field(default=1, ge=1, le=8)

    @model_validator(mode="after")
    def _known_axes(self) -> Self:
        if not self.axes or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes must be different labels, at least one, got {self.axes}")
        outside = [name for name in self.external if name not in self.axes]
        if outside:
            raise ValueError(f"external labels must be axes, got {', '.join(outside)}")
        return self


def axes_around(names: tuple[str, ...], bounds: Float64Array) -> dict[str, Float64Array]:
    """Node values by label, equally spaced within `bounds` (n_axis, 2).

    Raises
    ------
    ConfigError
        If the grid would be too large.
    """
    axes = {}
    for name, (low, high) in zip(names, bounds, strict=True):
        count = int(np.ceil((high - low) / STEPS[name])) + 1 if name in STEPS else _NODES
        axes[name] = np.linspace(low, high, max(count, 2))
    size = int(np.prod([axis.size for axis in axes.values()]))
    if size > _MOST_NODES:
        raise ConfigError(
            f"a grid of {', '.join(names)} would have {size} nodes, more than {_MOST_NODES}; "
            "take fewer axes"
        )
    return axes


@dataclass(frozen=True, eq=False)
class Pattern:
    """How all labels follow some of them, among labelled stars: quadratic polynomials.

    Attributes
    ----------
    core : tuple of str
        The labels that the others follow.
    names : tuple of str
        All labels.
    centre, scale : (n_core,) float64
    polynomial : (n_term, n_label) float64
    scatter : (n_label,) float64
        1 sigma about it; zero for the core.
    """

    core: tuple[str, ...] = field(metadata=stored(None))
    names: tuple[str, ...] = field(metadata=stored(None))
    centre: Float64Array
    scale: Float64Array
    polynomial: Float64Array
    scatter: Float64Array

    @classmethod
    def learn(cls, core: tuple[str, ...], names: tuple[str, ...], truth: Float64Array) -> Self:
        """Learn from the labels `names` (n_star, n_label)."""
        index = [names.index(name) for name in core]
        centre, scale = robust_scale(truth[:, index])
        terms = bounded_terms((truth[:, index] - centre) / scale, _CLIP)
        normal = terms.T @ terms + _RIDGE * len(truth) * np.eye(terms.shape[1])
        polynomial = np.linalg.solve(normal, terms.T @ truth)
        error = truth - terms @ polynomial
        scatter = np.array([robust_sigma(column) for column in error.T])
        scatter[index] = 0.0
        smooth: Float64Array = np.asarray(polynomial, dtype=np.float64)
        return cls(core, names, centre, scale, smooth, scatter)

    def complete(self, core: Float64Array) -> Float64Array:
        """All labels (n_star, n_label) of a core (n_star, n_core)."""
        out = bounded_terms((core - self.centre) / self.scale, _CLIP) @ self.polynomial
        for given, follows in (("m_h", "fe_h"), ("fe_h", "m_h")):
            if (
                given in self.core
                and follows not in self.core
                and {given, follows} <= {*self.names}
            ):
                # Beyond the labelled stars, iron and all metals still follow each other.
                beyond = core[:, self.core.index(given)] - out[:, self.names.index(given)]
                out[:, self.names.index(follows)] += beyond
        out[:, [self.names.index(name) for name in self.core]] = core
        return np.asarray(out)

    def slopes(self, core: Float64Array) -> Float64Array:
        """Return derivatives (n_star, n_label, n_core) of `complete`."""
        steps = _STEP_SHARE * self.scale
        ends = [
            self.complete(core + sign * step) for step in np.diag(steps) for sign in (1.0, -1.0)
        ]
        rise = np.stack(ends).reshape(len(steps), 2, *ends[0].shape)
        slopes = (rise[:, 0] - rise[:, 1]) / (2 * steps[:, None, None])
        return np.asarray(slopes.transpose(1, 2, 0))


@dataclass(frozen=True, eq=False)
class GridFit:
    """The fit of a grid, with a velocity and a smooth continuum as nuisances.

    Attributes
    ----------
    grid : Grid
    continuum : (n_mode, n_pixel) float32 or None
        Patterns of the continuum residual, one standard deviation each; None leaves velocity and
        continuum out.
    noise_correlation : tuple of float
    rv_error_kms : float
    starts : int
    residual : (n_mode, n_pixel) float32 or None
        Further patterns, added to the flux, in which stars differ from the grid.
    """

    grid: Grid
    continuum: Float32Array | None
    noise_correlation: tuple[float, ...]
    rv_error_kms: float = field(metadata=stored(None))
    starts: int = field(default=1, metadata=stored(None))
    residual: Float32Array | None = None

    @cached_property
    def chain(self) -> Chain:
        """The grid, shifted, times the continuum, with further patterns."""
        operators: tuple[Operator, ...] = ()
        if self.continuum is not None:
            operators = (Shift(self.grid.wave), Continuum(self.continuum))
        if self.residual is not None:
            operators = (*operators, Modes(self.residual, "residual"))
        return Chain(self.grid, operators, self.grid.wave, self.grid.own_variance)

    @cached_property
    def fitter(self) -> Fitter:
        """Its fitter."""
        block = 256 if len(self.chain.label_names) < 8 else 64
        return Fitter(
            self.chain, noise_correlation=self.noise_correlation, block=block, tolerance=0.05
        )

    def with_variance(self, own: Float32Array) -> Self:
        """Return the fit with that variance of the model, besides that of its components."""
        return replace(self, grid=replace(self.grid, own_variance=self.grid.own_variance + own))

    def fit(
        self,
        inputs: Inputs,
        *,
        external: Mapping[str, External] = NO_EXTERNAL,
        truth: Float64Array | None = None,
        chain: int = 0,
    ) -> FitResult:
        """Fit spectra; with `truth` (n_star, n_axis), only the nuisances.

        With `chain` steps of a Markov chain give the covariance.

        Returns
        -------
        FitResult
            Of the axes, then the nuisances.
        """
        flux, ivar, n = inputs.flux, inputs.ivar, len(inputs)
        names, count = self.chain.label_names, len(self.grid.label_names)
        sigmas = nuisance_sigmas(names[count:], self.rv_error_kms)
        prior = Prior.of(names, n, sigmas)
        frozen = np.zeros((n, len(names)), dtype=np.bool_)
        frozen[:, :count] = truth is not None
        places = np.zeros((self.starts, n, len(names)))
        places[:, :, :count] = self._starts(flux, ivar) if truth is None else truth
        known = [with_external(Start(one, prior, frozen), names, external) for one in places]
        places = np.stack([one.place for one in known])
        fitter = self.fitter.seen_with(inputs.noise_correlation)
        known_prior, held = known[0].prior, known[0].frozen
        found = fitter.fit(flux, ivar, places, prior=known_prior, frozen=held)
        if not chain:
            return found
        return sampled(fitter, flux, ivar, found, prior=known_prior, frozen=held, steps=chain)

    def _starts(self, flux: Float32Array, ivar: Float32Array) -> Float64Array:
        """Labels (n_start, n_star, n_axis) of good nodes."""
        best = self.grid.nearest(flux, ivar)
        if self.starts == 1:
            return best[None]
        middle, width = self.grid.bounds.mean(axis=1), np.ptp(self.grid.bounds, axis=1)
        other = [best]
        for number in range(1, self.starts):
            # Directions to the corners of the grid, one after the other.
            sign = 1.0 - 2.0 * (((number >> np.arange(middle.size)) & 1) > 0)
            other.append(0.5 * (best + middle + 0.3 * sign * width))
        return np.stack(other)


# Chosen: velocity and continuum are fitted besides, and few patterns stand out of the noise.
_MODES = 8
# Share of the range of each label added at its ends, so that training stars are inside.
_MARGIN = 0.02
_COMPONENT_PLACES = 2000
"""Spectra of a learnt theory of which components are computed: 25 for each of eighty."""
_NEAR = 0.35
"""Of the difference of two stars: as of draws about stars elsewhere
(`maury.methods.fitting.trained_payne`)."""
_OTHER_STEP = 0.3
"""Coarse step of an axis, dex; elements scatter by a tenth of it to one half."""


@dataclass(frozen=True, eq=False)
class Foundation:
    """What a grid method is trained on.

    Attributes
    ----------
    theory : SurveyTheory
    core : GridFit
    pattern : Pattern
    """

    theory: SurveyTheory
    core: GridFit
    pattern: Pattern

    @classmethod
    def lay(cls, training: Sample, settings: GridSettings, seed: int) -> Foundation:
        """Calibrate or learn theory, build the grid, and measure what it leaves of spectra."""
        theory = SurveyTheory.lay(
            training,
            wanted=settings.theory,
            synthetic=settings.synthetic,
            calibrated=settings.calibrate,
            seed=seed,
        )
        axes, truth = _axes_of(settings, theory.names), theory.truth
        pattern = Pattern.learn(axes, theory.names, truth)
        index = [theory.names.index(name) for name in axes]
        ends = np.array([truth[:, index].min(axis=0), truth[:, index].max(axis=0)]).T
        ends += _MARGIN * np.ptp(ends, axis=1, keepdims=True) * np.array([-1.0, 1.0])
        limits = theory.bounds[index]
        grid = Grid.build(
            axes_around(axes, np.clip(ends, limits[:, :1], limits[:, 1:])),
            lambda core: theory.at_rest(pattern.complete(core)),
            theory.wave,
            interpolation=settings.interpolation,
            components=0 if theory.learnt is not None else settings.components,
        )
        if theory.learnt is not None and settings.components:
            # Far from all stars a polynomial is wild, and would take all components for itself.
            like = theory.at_rest(pattern.complete(_about(truth[:, index], grid.bounds, seed)))
            grid = grid.compressed(settings.components, like=like)
        core = GridFit(
            grid,
            theory.continuum if settings.nuisances else None,
            training.noise_correlation,
            settings.rv_error_kms,
            settings.starts,
        )
        if len(theory.stars) and settings.nuisances:
            core = _with_modes(core, theory.stars, index)
        if len(theory.stars):
            core = _with_variance(core, theory.stars, index)
        return cls(theory, core, pattern)

    def label_names(self, training: Sample) -> tuple[str, ...]:
        """Labels of the survey that theory knows."""
        return tuple(name for name in self.theory.names if name in training.label_names)

    def nodes_between(self, steps: Mapping[str, float]) -> dict[str, Float64Array]:
        """Coarser nodes of the axes, three at least, at most `steps` apart."""
        axes = {}
        for name, nodes in zip(self.core.grid.label_names, self.core.grid.axes, strict=True):
            step = steps.get(name, _OTHER_STEP)
            count = max(int(np.ceil((nodes[-1] - nodes[0]) / step)) + 1, 3)
            axes[name] = np.linspace(nodes[0], nodes[-1], count)
        return axes


def _about(core: Float64Array, bounds: Float64Array, seed: int) -> Float64Array:
    """Places (n, n_axis) like those of stars (n_star, n_axis), a node's distance around them."""
    rng = np.random.default_rng(seed)
    some = core[rng.integers(0, len(core), _COMPONENT_PLACES)]
    one, two = core[rng.integers(0, len(core), (2, _COMPONENT_PLACES))]
    # A difference of two stars keeps what goes together, as log g and Teff do.
    return np.asarray(np.clip(some + _NEAR * (one - two), *bounds.T))


def _axes_of(settings: GridSettings, names: tuple[str, ...]) -> tuple[str, ...]:
    """Axes of the grid: as the settings have them, or what theory knows of the usual ones."""
    missing = [name for name in settings.axes if name not in names]
    if "axes" in settings.model_fields_set and missing:
        raise ConfigError(
            f"axes has {', '.join(missing)}, which theory does not know for this survey: it has "
            f"{', '.join(names)}"
        )
    usual = ["fe_h" if n == "m_h" and n not in names else n for n in settings.axes]
    found = tuple(name for name in usual if name in names)
    # None of the usual labels: whatever there is, as many as a grid has by default.
    return found or names[: len(settings.axes)]


def _with_modes(core: GridFit, stars: Sample, index: list[int]) -> GridFit:
    """Return the fit with the patterns in which stars differ from the grid at their own labels."""
    some, fitted = _at_truth(core, stars.rows(np.argsort(-stars.inputs.snr)[:MODE_STARS]), index)
    flux, ivar = some.inputs.flux, some.inputs.ivar
    return replace(
        core,
        residual=residual_modes(
            flux, ivar, fitted, count=_MODES, noise_correlation=core.noise_correlation
        ),
    )


def _with_variance(core: GridFit, stars: Sample, index: list[int]) -> GridFit:
    """Return the fit with the variance that is left then."""
    best = stars.rows(np.argsort(-stars.inputs.snr)[:RESIDUAL_STARS])
    some, fitted = _at_truth(core, best, index)
    return core.with_variance(residual_variance(some.inputs.flux, some.inputs.ivar, fitted))


def _at_truth(core: GridFit, stars: Sample, index: list[int]) -> tuple[Sample, Float32Array]:
    fitted = core.fit(stars.inputs, truth=stars.truth[:, index])
    if fitted.flux is None or not np.isfinite(fitted.labels).any():
        raise TrainingError("no training star can be fitted at its own labels")
    return stars, fitted.flux


GridSettingsT = TypeVar("GridSettingsT", bound=GridSettings)


@dataclass(frozen=True, eq=False)
class GridMethod(Method[GridSettingsT]):
    """A grid of spectra, fitted; what follows the fit is the method's own.

    Attributes
    ----------
    core : GridFit
    pattern : Pattern or None
        None for a grid of other origin, whose axes are all its labels.
    emulator : str
        Checksum of the emulator with which it was trained, "" for a learnt theory; it matters where
        there is a pattern.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    settings_class: ClassVar[type[MethodSettings]] = GridSettings
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "all"

    core: GridFit = field(metadata=stored(""))
    pattern: Pattern | None
    emulator: str

    def __post_init__(self) -> None:
        if self.pattern is not None and self.emulator:
            require_emulator(self.emulator)

    @property
    def calibrated_by(self) -> UnseenStars:
        """All stars as they are where the emulator gives labels; see `Method`."""
        learnt = self.pattern is not None and not self.emulator
        return "folds" if learnt else self.unseen

    def whole(self, fitted: FitResult) -> FitResult:
        """All labels of a fitted core: the axes, and what follows them, with its scatter."""
        assert self.pattern is not None, "grids of other origin have no pattern"
        axes = fitted.select(self.core.grid.label_names)
        good = finite_rows(axes.labels)
        core = np.where(good[:, None], axes.labels, self.pattern.centre)
        slopes = self.pattern.slopes(core)
        covariance = on_finite_rows(
            lambda known: slopes @ known @ slopes.transpose(0, 2, 1), axes.covariance
        )
        # Stars scatter about the pattern; without this the labels beyond the axes would look exact.
        covariance += np.diag(self.pattern.scatter**2)
        labels = np.where(good[:, None], self.pattern.complete(core), np.nan)
        return replace(axes, label_names=self.pattern.names, labels=labels, covariance=covariance)

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        arrays |= self.core.grid.axis_arrays("grid")
        more = {"axes": list(self.core.grid.label_names), "pattern": self.pattern is not None}
        if self.pattern is not None:
            more["followers"] = list(self.pattern.names)
        return arrays, about | more

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: GridSettingsT
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        grid = Grid.not_stored(
            arrays, "grid", label_names=about["axes"], interpolation=settings.interpolation
        )
        core = {"grid": grid, "rv_error_kms": settings.rv_error_kms, "starts": settings.starts}
        # Grids of earlier versions were the emulator's, and knew its labels alone.
        names = tuple(about.get("followers", LABEL_NAMES))
        given = {"core": core, "pattern": {"core": tuple(about["axes"]), "names": names}}
        if about["pattern"] or "resolving_power" in about:
            return given
        # A grid of other origin was never convolved to a survey's resolving power.
        return {**given, "resolving_power": None}
