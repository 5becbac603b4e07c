"""A method that fits a grid of the calibrated emulator, and goes on from there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from maury.errors import TrainingError
from maury.labels import LABEL_NAMES
from maury.methods.chain import Chain
from maury.methods.emulated import shipped_emulator
from maury.methods.grid import Grid
from maury.methods.gridded import PATTERN_FIELDS, GridFit, GridSettings, Pattern, axes_around
from maury.methods.protocols import FitResult, Method, MethodSettings, Sample
from maury.methods.theory import (
    LEAST_STARS,
    at_rest,
    calibrate,
    complete_stars,
    finite_rows,
    in_air,
    observed_chain,
    require_emulator,
    residual_modes,
    residual_variance,
    smooth_patterns,
    typical_labels,
)
from maury.observing import TRAINING_SKY

__all__ = ["Foundation", "GridMethod"]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

_RESIDUAL_STARS = 400
_MODE_STARS = 1500
_MODES = 8
_TYPICAL = 2000
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
        stars = complete_stars(training)
        few = len(stars) < LEAST_STARS
        calibration = calibrate(stars) if settings.calibrate else None
        wave = in_air(training)
        theory = observed_chain(wave, calibration, np.zeros(wave.size, dtype=np.float32))
        truth = typical_labels(_TYPICAL, seed) if few else stars.truth
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
        continuum = np.zeros((0, wave.size), dtype=np.float32)
        if settings.nuisances:
            continuum = smooth_patterns(wave, TRAINING_SKY.continuum_rms)
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
    some, fitted = _at_truth(core, stars.rows(np.argsort(-stars.inputs.snr)[:_MODE_STARS]), index)
    flux, ivar = some.inputs.flux, some.inputs.ivar
    return replace(
        core,
        residual=residual_modes(
            flux, ivar, fitted, count=_MODES, noise_correlation=core.noise_correlation
        ),
    )


def _with_variance(core: GridFit, stars: Sample, index: list[int]) -> GridFit:
    """Return the fit with the variance that is left then."""
    best = stars.rows(np.argsort(-stars.inputs.snr)[:_RESIDUAL_STARS])
    some, fitted = _at_truth(core, best, index)
    return core.with_variance(residual_variance(some.inputs.flux, some.inputs.ivar, fitted))


def _at_truth(core: GridFit, stars: Sample, index: list[int]) -> tuple[Sample, Float32Array]:
    fitted = core.fit(stars.inputs, truth=stars.truth[:, index])
    if fitted.flux is None or not np.isfinite(fitted.labels).any():
        raise TrainingError("no training star can be fitted at its own labels")
    return stars, fitted.flux


@dataclass(frozen=True, eq=False)
class GridMethod(Method):
    """A grid of spectra, fitted; what follows the fit is the method's own.

    Attributes
    ----------
    core : GridFit
    pattern : Pattern or None
        None for a grid of other origin, whose axes are all its labels.
    """

    settings_class: ClassVar[type[MethodSettings]] = GridSettings
    known_labels: ClassVar[tuple[str, ...] | None] = LABEL_NAMES

    core: GridFit
    pattern: Pattern | None

    @property
    def external_names(self) -> tuple[str, ...]:
        """Labels that the settings name."""
        assert isinstance(self.settings, GridSettings), "settings are of the method's class"
        return self.settings.external

    def nine(self, fitted: FitResult) -> FitResult:
        """Nine labels of a fitted core: the axes, and what follows them, with its scatter."""
        assert self.pattern is not None, "only the emulator's grids have a pattern"
        axes = fitted.select(self.core.grid.label_names)
        good = finite_rows(axes.labels)
        core = np.where(good[:, None], axes.labels, self.pattern.centre)
        slopes = self.pattern.slopes(core)
        covariance = slopes @ axes.covariance @ slopes.transpose(0, 2, 1)
        covariance += np.diag(self.pattern.scatter**2)
        labels = np.where(good[:, None], self.pattern.complete(core), np.nan)
        return replace(axes, label_names=LABEL_NAMES, labels=labels, covariance=covariance)

    def core_arrays(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return arrays and plain JSON from which `core_from` makes an equal core and pattern."""
        arrays = self.core.to_arrays()
        if self.pattern is not None:
            arrays |= {f"pattern.{name}": getattr(self.pattern, name) for name in PATTERN_FIELDS}
        about = {
            "axes": list(self.core.grid.label_names),
            "noise_correlation": list(self.core.noise_correlation),
            "emulator": shipped_emulator().spec.checksum,
            "pattern": self.pattern is not None,
        }
        return arrays, about

    @staticmethod
    def core_from(
        arrays: Mapping[str, NDArray[Any]], about: Mapping[str, Any], settings: MethodSettings
    ) -> tuple[GridFit, Pattern | None]:
        """Read what `core_arrays` gave."""
        assert isinstance(settings, GridSettings), "settings are of the method's class"
        core = GridFit.from_arrays(arrays, about, settings)
        if not about["pattern"]:
            return core, None
        require_emulator(about)
        parts = {name: arrays[f"pattern.{name}"] for name in PATTERN_FIELDS}
        return core, Pattern(tuple(about["axes"]), **parts)
