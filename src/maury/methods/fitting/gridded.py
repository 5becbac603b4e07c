"""Grids of the calibrated emulator, and what methods that fit them have in common."""

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
from maury.methods.fitting.grid import Grid, Interpolation
from maury.methods.fitting.knowledge import Prior, Start, with_external
from maury.methods.fitting.polynomials import bounded_terms
from maury.methods.fitting.residuals import (
    MODE_STARS,
    RESIDUAL_STARS,
    residual_modes,
    residual_variance,
)
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.theory import (
    LEAST_STARS,
    TYPICAL_STARS,
    at_rest,
    calibrate,
    conditions_of,
    finite_rows,
    in_air,
    nuisance_sigmas,
    observed_chain,
    require_emulator,
    smooth_patterns,
    typical_labels,
)
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
    "alpha_m": 0.14,
    "si_fe": 0.2,
    "al_fe": 0.25,
    "mg_fe": 0.2,
    "ni_fe": 0.2,
}
"""Greatest step of each axis of a grid."""
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
    axes : tuple of str
        Labels of the grid; the others follow them as among the training stars.
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

    axes: tuple[str, ...] = ("teff", "logg", "m_h", "alpha_m")
    interpolation: Interpolation = "cubic"
    components: int = Field(default=80, ge=0, le=400)
    calibrate: bool = True
    nuisances: bool = True
    external: tuple[str, ...] = ()
    rv_error_kms: float = Field(default=1.3, gt=0.0, le=10.0)
    starts: int = Field(default=1, ge=1, le=8)

    @model_validator(mode="after")
    def _known_axes(self) -> Self:
        unknown = [name for name in self.axes if name not in STEPS]
        if unknown or not self.axes or len(set(self.axes)) < len(self.axes):
            raise ValueError(f"axes must be some of {', '.join(STEPS)}, got {self.axes}")
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
        count = int(np.ceil((high - low) / STEPS[name])) + 1
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
    """How the nine labels follow some of them, among labelled stars: quadratic polynomials.

    Attributes
    ----------
    core : tuple of str
        The labels that the others follow.
    centre, scale : (n_core,) float64
    polynomial : (n_term, 9) float64
    scatter : (9,) float64
        1 sigma about it; zero for the core.
    """

    core: tuple[str, ...] = field(metadata=stored(None))
    centre: Float64Array
    scale: Float64Array
    polynomial: Float64Array
    scatter: Float64Array

    @classmethod
    def learn(cls, core: tuple[str, ...], truth: Float64Array) -> Self:
        """Learn from nine labels (n_star, 9)."""
        index = [LABEL_NAMES.index(name) for name in core]
        centre, scale = robust_scale(truth[:, index])
        terms = bounded_terms((truth[:, index] - centre) / scale, _CLIP)
        normal = terms.T @ terms + _RIDGE * len(truth) * np.eye(terms.shape[1])
        polynomial = np.linalg.solve(normal, terms.T @ truth)
        error = truth - terms @ polynomial
        scatter = np.array([robust_sigma(column) for column in error.T])
        scatter[index] = 0.0
        return cls(core, centre, scale, np.asarray(polynomial, dtype=np.float64), scatter)

    def complete(self, core: Float64Array) -> Float64Array:
        """Nine labels (n_star, 9) of a core (n_star, n_core)."""
        out = bounded_terms((core - self.centre) / self.scale, _CLIP) @ self.polynomial
        if "m_h" in self.core and "fe_h" not in self.core:
            # Beyond the labelled stars, iron still follows all metals.
            metals = LABEL_NAMES.index("m_h")
            given = core[:, self.core.index("m_h")]
            out[:, LABEL_NAMES.index("fe_h")] += given - out[:, metals]
        out[:, [LABEL_NAMES.index(name) for name in self.core]] = core
        return np.asarray(out)

    def slopes(self, core: Float64Array) -> Float64Array:
        """Return derivatives (n_star, 9, n_core) of `complete`."""
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
    ) -> FitResult:
        """Fit spectra; with `truth` (n_star, n_axis), only the nuisances.

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
        return fitter.fit(flux, ivar, places, prior=known[0].prior, frozen=known[0].frozen)

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
_N = len(LABEL_NAMES)


@dataclass(frozen=True, eq=False)
class Foundation:
    """What a grid method is trained on.

    Attributes
    ----------
    theory : Chain
        The calibrated emulator as the survey sees it.
    truth : (n_star, 9) float64
        Labels of training stars, or of typical ones if there are too few.
    core : GridFit
    pattern : Pattern
    """

    theory: Chain
    truth: Float64Array
    core: GridFit
    pattern: Pattern

    @classmethod
    def lay(cls, training: Sample, settings: GridSettings, seed: int) -> Foundation:
        """Calibrate theory, build the grid, and measure what it leaves of training spectra."""
        stars = complete_stars(training, LABEL_NAMES, least=0)
        few = len(stars) < LEAST_STARS
        observing = conditions_of(training)
        calibration = calibrate(stars, observing) if settings.calibrate else None
        wave = in_air(training)
        none = np.zeros(wave.size, dtype=np.float32)
        theory = observed_chain(wave, calibration, none, observing=observing)
        truth = typical_labels(TYPICAL_STARS, seed) if few else stars.truth
        pattern = Pattern.learn(settings.axes, truth)
        index = [LABEL_NAMES.index(name) for name in settings.axes]
        ends = np.array([truth[:, index].min(axis=0), truth[:, index].max(axis=0)]).T
        ends += _MARGIN * np.ptp(ends, axis=1, keepdims=True) * np.array([-1.0, 1.0])
        limits = theory.bounds[index]
        grid = Grid.build(
            axes_around(settings.axes, np.clip(ends, limits[:, :1], limits[:, 1:])),
            lambda core: at_rest(theory, pattern.complete(core)),
            wave,
            interpolation=settings.interpolation,
            components=settings.components,
        )
        continuum = None
        if settings.nuisances:
            continuum = smooth_patterns(wave, observing.continuum_rms)
            continuum = continuum if calibration is None else calibration.continuum_modes
        core = GridFit(
            grid, continuum, training.noise_correlation, settings.rv_error_kms, settings.starts
        )
        if not few and settings.nuisances:
            core = _with_modes(core, stars, index)
        if not few:
            core = _with_variance(core, stars, index)
        return cls(theory, truth, core, pattern)


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
        Checksum of the emulator with which it was trained; it matters where there is a pattern.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    settings_class: ClassVar[type[MethodSettings]] = GridSettings
    known_labels: ClassVar[tuple[str, ...] | None] = LABEL_NAMES
    earlier_power: ClassVar[float | None] = TRAINING_CONDITIONS.resolving_power
    unseen: ClassVar[UnseenStars] = "all"

    core: GridFit = field(metadata=stored(""))
    pattern: Pattern | None
    emulator: str

    def __post_init__(self) -> None:
        if self.pattern is not None:
            require_emulator(self.emulator)

    def nine(self, fitted: FitResult) -> FitResult:
        """Nine labels of a fitted core: the axes, and what follows them, with its scatter."""
        assert self.pattern is not None, "only the emulator's grids have a pattern"
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
        return replace(axes, label_names=LABEL_NAMES, labels=labels, covariance=covariance)

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        arrays |= self.core.grid.axis_arrays("grid")
        more = {"axes": list(self.core.grid.label_names), "pattern": self.pattern is not None}
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
        given = {"core": core, "pattern": {"core": tuple(about["axes"])}}
        if about["pattern"] or "resolving_power" in about:
            return given
        # A grid of other origin was never convolved to a survey's resolving power.
        return {**given, "resolving_power": None}
