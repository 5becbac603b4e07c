"""FERRE: chi-square fits of a grid of spectra, abundances in windows of their own.

Allende Prieto et al. (2006, ApJ 636, 804), with Bezier interpolation (Meszaros et al. 2012) and
principal components. Model and data pass through the same preparation. Then, with the atmosphere
frozen, each abundance is measured in windows where its element has lines, on the axis that these
follow (Garcia Perez et al. 2016, AJ 151, 144).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError
from maury.io.arrays import Float64Array
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.grid_files import read_ferre_grid
from maury.methods.fitting.gridded import Foundation, GridFit, GridMethod, GridSettings
from maury.methods.fitting.theory import finite_rows, in_air, shipped_emulator
from maury.methods.fitting.windows import WINDOW_STARS, element_windows, elements_of
from maury.methods.protocols import NO_EXTERNAL, External, FitResult, MethodSettings, Sample
from maury.methods.storage import stored
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs

__all__ = ["Ferre", "FerreSettings"]


_MOST_CHAIN = 1_000_000
"""Steps of a chain that a setting may ask for: a thousand give an error to some 5 %."""


class FerreSettings(GridSettings):
    """Settings of FERRE.

    Attributes
    ----------
    grid : str
        Path of a grid in FERRE's format (`maury.methods.fitting.grid_files`) in place of one that
        theory makes; then only its axes are labels.
    resolving_power : float
        To which that grid is broadened; 0 leaves it as it is.
    windows : bool
        Whether abundances are measured in windows.
    chain : int
        Steps of a Markov chain that gives the errors of the parameters, as FERRE's ALGOR = 5; 0
        takes the covariance at the best fit.
    """

    grid: str = ""
    resolving_power: float = 0.0
    windows: bool = True
    chain: int = Field(default=0, ge=0, le=_MOST_CHAIN)


@dataclass(frozen=True, eq=False)
class Ferre(GridMethod[FerreSettings]):
    """A grid of spectra, fitted; abundances in windows.

    Attributes
    ----------
    windows : mapping of str to (n_pixel,) float64
        Weights of the pixels of each element.
    """

    name: ClassVar[str] = "ferre"
    paper: ClassVar[str] = "Allende Prieto et al. (2006, ApJ 636, 804)"
    bibtex_key: ClassVar[str] = "2006ApJ...636..804A"
    settings_class: ClassVar[type[MethodSettings]] = FerreSettings

    windows: Mapping[str, Float64Array] = field(metadata=stored("window"))

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: FerreSettings, seed: int
    ) -> Self:
        """Build the grid, or read one, and find the windows; see `Method`."""
        del validation
        if settings.grid:
            return cls._of_file(training, settings)
        base = Foundation.lay(training, settings, seed)
        theory, rng = base.theory, np.random.default_rng(seed)
        chosen = theory.truth[rng.choice(len(theory.truth), WINDOW_STARS)]
        typical = theory.drawn(chosen, settings.rv_error_kms, rng)
        elements = elements_of(theory.names, base.core.grid.label_names)
        windows = element_windows(theory.model, typical, [*elements]) if settings.windows else {}
        names = base.label_names(training)
        return cls(settings, names, base.core, base.pattern, theory.checksum, windows)

    @classmethod
    def _of_file(cls, training: Sample, settings: FerreSettings) -> Self:
        grid = read_ferre_grid(
            Path(settings.grid),
            wave_aa=in_air(training),
            resolving_power=settings.resolving_power,
            interpolation=settings.interpolation,
            components=settings.components,
        )
        names = tuple(name for name in grid.label_names if name in training.label_names)
        if not names:
            raise ConfigError(
                f"the axes of {settings.grid} are {', '.join(grid.label_names)}, none of which is "
                f"a label of the survey ({', '.join(training.label_names)})"
            )
        core = GridFit(
            grid, None, training.noise_correlation, settings.rv_error_kms, settings.starts
        )
        return cls(settings, names, core, None, shipped_emulator().spec.checksum, {})

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit the grid, then each abundance in its window; see `Method`."""
        fitted = self.core.fit(inputs, external=external, chain=self.settings.chain)
        if self.pattern is None:
            return fitted.select(self.label_names)
        out = self.whole(fitted)
        axes = elements_of(out.label_names, self.core.grid.label_names)
        labels, covariance = out.labels.copy(), out.covariance.copy()
        for name, window in self.windows.items():
            if name in self.label_names:
                column = out.label_names.index(name)
                change, variance = self._in_window(inputs, fitted, axes[name], window)
                # No good pixel in the window: nothing is measured.
                labels[:, column] += np.where(np.isfinite(variance), change, np.nan)
                covariance[:, column] = covariance[:, :, column] = 0.0
                covariance[:, column, column] = variance
        return replace(out, labels=labels, covariance=covariance).select(self.label_names)

    def _in_window(
        self, inputs: Inputs, fitted: FitResult, axis: str, window: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Change of one axis in a window, all else frozen, and its variance, (n_star,) each.

        The variance has that of the frozen atmosphere, by what the change follows of it.
        """
        chain = self.core.chain
        column = chain.label_names.index(axis)
        free = np.arange(len(chain.label_names)) == column
        noise = noise_seen(self.core.noise_correlation, inputs.noise_correlation)
        fitter = Fitter(chain, window=window, noise_correlation=noise, tolerance=0.05)
        found = fitter.fit(inputs.flux, inputs.ivar, fitted.labels, frozen=~free)
        change = found.labels[:, column] - fitted.labels[:, column]
        follows = self._follows(inputs, fitted, column, window)
        frozen = np.einsum("ni,nij,nj->n", follows, fitted.covariance, follows)
        return change, found.covariance[:, column, column] + frozen

    def _follows(
        self, inputs: Inputs, fitted: FitResult, column: int, window: Float64Array
    ) -> Float64Array:
        """Return derivatives (n_star, n_label) of the axis in the window by the frozen labels."""
        good = finite_rows(fitted.labels)
        out = np.full(fitted.labels.shape, np.nan)
        for start in range(0, len(out), 256):
            rows = np.flatnonzero(good[start : start + 256]) + start
            slopes = self.core.chain.evaluate(fitted.labels[rows]).jacobian
            assert slopes is not None, "derivatives were asked for"
            weighted = slopes[:, column] * inputs.ivar[rows] * window.astype(np.float32)
            cross = np.einsum("nkp,np->nk", slopes, weighted).astype(np.float64)
            # A window without a good pixel has no slope at all.
            own = np.maximum(cross[:, column], 1e-30)
            # At the least chi-square s_axis . residual = 0; moving a frozen label k moves the axis
            # by -(s_axis . s_k) / (s_axis . s_axis), products over pixels with their weights.
            out[rows] = -cross / own[:, None]
        return out
