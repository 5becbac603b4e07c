"""Synspec: fits of a grid that it has synthesised, or that it synthesises when trained.

Hubeny & Lanz (2017, arXiv 1706.01859). The grid is a directory of its spectra with an index, or
what a command around it writes for each node.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from maury.errors import ConfigError
from maury.io.arrays import Float32Array, Float64Array
from maury.methods.fitting.grid import Grid
from maury.methods.fitting.grid_files import read_synspec_grid
from maury.methods.fitting.gridded import GridFit, GridMethod, GridSettings, axes_around
from maury.methods.fitting.synthesis import CommandSynthesiser, SynthesiserModel
from maury.methods.fitting.theory import (
    finite_rows,
    in_air,
    known_power,
    shipped_emulator,
    smooth_patterns,
)
from maury.methods.protocols import NO_EXTERNAL, External, FitResult, MethodSettings, Sample
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.spectra.preparation import Inputs

__all__ = ["Synspec", "SynspecSettings"]


class SynspecSettings(GridSettings):
    """Settings of Synspec; one of the first two is needed.

    Attributes
    ----------
    directory : str
        Spectra and ``index.csv``; see `maury.methods.fitting.grid_files.read_synspec_grid`.
    command : str
        See `maury.methods.fitting.synthesis.CommandSynthesiser`; run at each node of `axes`.
    resolving_power : float or None
        To which the spectra of the directory are broadened; None takes that of the training
        survey, and 0 leaves them as they are. A command broadens its spectra itself.
    """

    axes: tuple[str, ...] = ("teff", "logg", "m_h")
    directory: str = ""
    command: str = ""
    resolving_power: float | None = None


@dataclass(frozen=True, eq=False)
class Synspec(GridMethod[SynspecSettings]):
    """A grid of Synspec's spectra, fitted."""

    name: ClassVar[str] = "synspec"
    paper: ClassVar[str] = "Hubeny & Lanz (2017, arXiv 1706.01859)"
    bibtex_key: ClassVar[str] = "2017arXiv170601859H"
    settings_class: ClassVar[type[MethodSettings]] = SynspecSettings
    # The axes are whatever the user's grid has.
    known_labels: ClassVar[tuple[str, ...] | None] = None

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: SynspecSettings, seed: int
    ) -> Self:
        """Read the grid, or synthesise it; see `Method`."""
        del validation, seed
        wave = in_air(training)
        power = settings.resolving_power
        if settings.directory:
            grid = read_synspec_grid(
                Path(settings.directory),
                wave_aa=wave,
                resolving_power=known_power(training) if power is None else power,
                interpolation=settings.interpolation,
                components=settings.components,
            )
        else:
            grid = _synthesised(training, settings, wave)
        names = tuple(name for name in grid.label_names if name in training.label_names)
        if not names:
            axes = ", ".join(grid.label_names)
            raise ConfigError(f"the grid has {axes}, none of which is a label of the survey")
        core = GridFit(
            grid,
            smooth_patterns(wave, TRAINING_CONDITIONS.continuum_rms)
            if settings.nuisances
            else None,
            training.noise_correlation,
            settings.rv_error_kms,
            settings.starts,
        )
        return cls(settings, names, core, None, shipped_emulator().spec.checksum)

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit the grid; see `Method`."""
        return self.core.fit(inputs, external=external).select(self.label_names)


def _synthesised(training: Sample, settings: SynspecSettings, wave: Float64Array) -> Grid:
    """Build a grid over the range of the training stars with a command."""
    if not settings.command:
        raise ConfigError(
            "the method synspec needs spectra: give directory = '<path>' or command = '...' in "
            "[method]"
        )
    # Without the closing brace, as a format may follow the name: {teff:.0f}.
    unused = [name for name in settings.axes if f"{{{name}" not in settings.command]
    if unused:
        raise ConfigError(
            f"the command {settings.command!r} does not take {', '.join(unused)}: "
            f"name each axis as {{{unused[0]}}}, or leave it out of axes"
        )
    missing = [name for name in settings.axes if name not in training.label_names]
    if missing:
        raise ConfigError(f"the training stars have no {', '.join(missing)}")
    truth = training.truth[:, [training.label_names.index(name) for name in settings.axes]]
    # A missing label would make the ends of its axis NaN.
    truth = truth[finite_rows(truth)]
    ends = np.array([truth.min(axis=0), truth.max(axis=0)]).T
    model = SynthesiserModel(CommandSynthesiser(settings.command), settings.axes, ends, wave)

    def synthesise(labels: Float64Array) -> Float32Array:
        return model.evaluate(labels, jacobian=False).flux

    return Grid.build(
        axes_around(settings.axes, ends),
        synthesise,
        wave,
        interpolation=settings.interpolation,
        components=min(settings.components, wave.size),
    )
