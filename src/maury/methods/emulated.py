"""The shipped emulator as a source of forward models: nine labels, and what a fit leaves open."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from maury.emulator import EMULATOR_LABELS, Emulator
from maury.labels import LABEL_NAMES
from maury.methods.protocols import Evaluation
from maury.population import NUISANCE_NAMES, Population

__all__ = ["OFFSETS", "EmulatorSource", "shipped_emulator"]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]

OFFSETS: tuple[str, ...] = tuple(f"off_{name.removeprefix('d_')}" for name in NUISANCE_NAMES)
"""Microturbulence (km/s) and abundances (dex) less what is typical of a star of its labels."""

_N = len(LABEL_NAMES)
_STEPS = np.array([1.0, 0.01, 0.01, 0.0, 0.01, 0.0, 0.0, 0.0, 0.0])


@cache
def shipped_emulator() -> Emulator:
    """Return the emulator that ships with the package, read once."""
    return Emulator.load()


@dataclass(frozen=True, eq=False)
class EmulatorSource:
    """Emulated flux on the emulator's own grid, by the nine labels and offsets of the others.

    Attributes
    ----------
    offsets : tuple of str
        Of `OFFSETS`: parameters beside the nine labels. The others are zero: such a label is
        typical of the population (`maury.population.Population.complete`).
    """

    offsets: tuple[str, ...] = ()
    _emulator: Emulator = field(default_factory=shipped_emulator, repr=False)

    @property
    def label_names(self) -> tuple[str, ...]:
        """The nine labels, then the offsets."""
        return LABEL_NAMES + self.offsets

    @cached_property
    def bounds(self) -> Float64Array:
        """Those of the emulator; offsets may be half as large as its whole range."""
        ends = self._emulator.bounds
        width = np.ptp(ends[self._open], axis=1)[:, None] * np.array([-0.5, 0.5])
        return np.concatenate([ends[:_N], width])

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,), uniform in their logarithm."""
        return self._emulator.wave_aa

    @cached_property
    def _open(self) -> NDArray[np.int64]:
        return np.array([_N + OFFSETS.index(name) for name in self.offsets], dtype=np.int64)

    def complete(self, labels: Float64Array) -> Float64Array:
        """All labels (n_star, 16) of the emulator."""
        full = Population.load().complete(labels[:, :_N])
        full[:, self._open] += labels[:, _N:]
        return full

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        full = self.complete(labels)
        flux = self._emulator.flux(full)
        slopes = self._emulator.slopes(full, self._directions(labels)) if jacobian else None
        return Evaluation(flux, slopes)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Mean squared error of the emulator (n_pixel,) against synthesis, at full resolution."""
        del labels
        return np.asarray(self._emulator.error**2)

    def _directions(self, labels: Float64Array) -> Float64Array:
        """Return what the emulator's labels gain per unit of ours, (n_star, n_label, 16)."""
        nine = labels[:, :_N]
        out = np.zeros((len(nine), _N + self._open.size, len(EMULATOR_LABELS)))
        out[:, range(_N), range(_N)] = 1.0
        out[:, range(_N, out.shape[1]), self._open] = 1.0
        moved = np.flatnonzero(_STEPS)
        steps = np.diag(_STEPS)[moved]
        ends = np.stack([nine + step for step in (*steps, *-steps)]).reshape(-1, _N)
        typical = Population.load().complete(ends)[:, _N:].reshape(2, moved.size, len(nine), -1)
        rise = (typical[0] - typical[1]) / (2 * _STEPS[moved, None, None])
        out[:, moved, _N:] = rise.transpose(1, 0, 2)
        return out
