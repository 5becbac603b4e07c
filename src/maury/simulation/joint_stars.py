"""Stars seen by several surveys at once, simulated with the theory of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.spatial import cKDTree

from maury.io.arrays import AnyArray, Float32Array, Float64Array, Int64Array
from maury.labels.statistics import robust_scale
from maury.simulation.disturbances import Disturbances
from maury.simulation.drawing import DrawConfig, draw_around
from maury.simulation.simulated_pool import BatchNoise, SimulatedPool
from maury.simulation.training_stars import TrainingStarSimulator

__all__ = ["JointPool", "JointStars"]

_BLOCK = 2048
"""Stars simulated at a time, as the simulators do, so that a block has one rotation a star."""
_CLIP_TOLERANCE = 1e-9
"""Relative difference of labels above which two theories moved a star to different places."""
_HIDDEN = "hidden."


@dataclass(frozen=True, eq=False)
class JointPool:
    """Simulated stars, each with a spectrum of every survey of a set.

    Attributes
    ----------
    pools : mapping of str to SimulatedPool
        Of each survey; the same stars in the same rows.
    labels : (n_star, n_label) float64
        Of all surveys together.
    """

    pools: Mapping[str, SimulatedPool]
    labels: Float64Array

    def batch(
        self, n_star: int, rng: np.random.Generator
    ) -> tuple[dict[str, tuple[Float32Array, Float32Array]], Float64Array, Float64Array]:
        """Observe stars drawn at random, with each survey's own S/N, reduction and noise.

        Returns
        -------
        spectra : mapping of str to (flux, ivar)
            Each (n_star, n_pixel) float32.
        observables : (n_star, n_observable) float64
        labels : (n_star, n_label) float64
        """
        row = rng.integers(0, len(self.labels), n_star)
        spectra, observables = {}, None
        for name, pool in self.pools.items():
            flux, ivar, seen, _ = pool.observe(row, rng)
            spectra[name] = flux, ivar
            # A star has one set of magnitudes, however many spectrographs saw it.
            observables = seen if observables is None else observables
        assert observables is not None, "a set of surveys is not empty"
        return spectra, observables, self.labels[row]


@dataclass(frozen=True, eq=False)
class JointStars:
    """Labelled stars with all that the theories of several surveys need of them.

    A star that only some of the surveys have labelled takes what the others need from their
    star of the nearest labels.

    Attributes
    ----------
    names : tuple of str
        Of the labels, those of all surveys together.
    labels : (n, n_label) float64
    observables : (n, n_observable) float64
        NaN where missing.
    hidden : mapping of str to (n, n_hidden) float64
        Hidden properties of each survey's learnt theory.
    """

    names: tuple[str, ...]
    labels: Float64Array
    observables: Float64Array
    hidden: Mapping[str, Float64Array]

    @classmethod
    def of(
        cls,
        simulators: Mapping[str, TrainingStarSimulator],
        star: Mapping[str, Int64Array],
        names: Sequence[str],
        *,
        base: Sequence[str] = (),
    ) -> Self:
        """Join the stars of several simulators.

        Parameters
        ----------
        simulators : mapping of str to TrainingStarSimulator
            With the same observables.
        star : mapping of str to (n,) int64
            Number of the star of each row of a simulator; one star has one number in all.
        names : sequence of str
            Labels in the order wanted, those of all simulators.
        base : sequence of str
            Surveys whose stars are taken; by default those of all.
        """
        number = np.unique(np.concatenate([star[name] for name in base or simulators]))
        labels = np.full((number.size, len(names)), np.nan)
        observables = np.full(
            (number.size, next(iter(simulators.values())).observables.shape[1]), np.nan
        )
        # Its own values first, from every survey that has the star.
        rows = {name: _rows_of(star[name], number) for name in simulators}
        for name, simulator in simulators.items():
            has = np.flatnonzero(rows[name] >= 0)
            own = rows[name][has]
            _fill(labels, has, _columns(names, simulator), simulator.labels[own])
            seen = observables[has]
            observables[has] = np.where(np.isnan(seen), simulator.observables[own], seen)
        hidden = {}
        for name, simulator in simulators.items():
            near = rows[name].copy()
            lacks = np.flatnonzero(near < 0)
            place = _columns(names, simulator)
            near[lacks] = _nearest(labels[lacks][:, place], simulator.labels)
            _fill(labels, lacks, place, simulator.labels[near[lacks]])
            hidden[name] = simulator.columns[near, len(simulator.names) :]
        return cls(tuple(names), labels, observables, hidden)

    def pool(
        self,
        simulators: Mapping[str, TrainingStarSimulator],
        n_star: int,
        rng: np.random.Generator,
        *,
        draw: DrawConfig,
        noise: Mapping[str, BatchNoise],
        disturbances: Disturbances,
    ) -> JointPool:
        """Draw stars around these, and simulate their spectra in every survey.

        Parameters
        ----------
        simulators : mapping of str to TrainingStarSimulator
            Some of those that the stars were joined of.
        n_star : int
            Stars to draw; those that two theories move to different labels are left out.
        rng : numpy Generator
        draw, noise, disturbances
            Settings; noise of each survey.
        """
        names = list(simulators)
        hidden = [self.hidden[name] for name in names]
        mapping = simulators[names[0]].mapping
        sparse = np.flatnonzero(mapping.further | mapping.is_error)
        columns, observables = draw_around(
            np.hstack([self.labels, *hidden]),
            self.observables,
            n_star,
            rng,
            config=draw,
            sparse=sparse.tolist(),
            names=self.names,
        )
        n_label = len(self.names)
        labels = columns[:, :n_label].copy()
        own = dict(zip(names, _parts(columns[:, n_label:], hidden), strict=True))
        for name in names:
            labels[:, self._place(simulators[name])] = self._full(
                simulators[name], labels, own[name], None
            )[0]
        # What theory was moved to is the truth; where a later one moved it on, it is none.
        agrees = np.ones(len(labels), dtype=np.bool_)
        for name in names:
            there, _ = self._full(simulators[name], labels, own[name], None)
            apart = np.abs(there - labels[:, self._place(simulators[name])])
            agrees &= (apart <= _CLIP_TOLERANCE * np.maximum(1.0, np.abs(there))).all(axis=1)
        labels, observables = labels[agrees], observables[agrees]
        seeds = rng.integers(2**32, size=-(-max(len(labels), 1) // _BLOCK))
        pools = {}
        for name in names:
            simulator = simulators[name]
            flux = np.empty((len(labels), simulator.wave_aa.size), dtype=np.float32)
            for number, start in enumerate(range(0, len(labels), _BLOCK)):
                rows = slice(start, start + _BLOCK)
                # One seed for all surveys: a star rotates alike in all of its spectra.
                same = np.random.default_rng(int(seeds[number]))
                _, full = self._full(simulator, labels[rows], own[name][agrees][rows], same)
                flux[rows] = simulator.spectra(full, same, disturbances=disturbances)
            pools[name] = simulator.pool_of(
                flux,
                labels[:, self._place(simulator)],
                observables,
                noise=noise[name],
                disturbances=disturbances,
            )
        return JointPool(pools, labels)

    def _place(self, simulator: TrainingStarSimulator) -> Int64Array:
        return _columns(self.names, simulator)

    def _full(
        self,
        simulator: TrainingStarSimulator,
        labels: Float64Array,
        hidden: Float64Array,
        rng: np.random.Generator | None,
    ) -> tuple[Float64Array, Float64Array]:
        """Labels of a survey, as its theory moves them, and all that its spectra depend on."""
        full = simulator.complete(np.hstack([labels[:, self._place(simulator)], hidden]), rng)
        return full[:, : len(simulator.names)], full

    def to_arrays(self) -> dict[str, AnyArray]:
        """Return arrays from which, with the names, `from_arrays` makes an equal one."""
        hidden = {f"{_HIDDEN}{name}": values for name, values in self.hidden.items()}
        return {"labels": self.labels, "observables": self.observables, **hidden}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray], names: Sequence[str]) -> Self:
        """Read what `to_arrays` gave."""
        hidden = {
            name.removeprefix(_HIDDEN): values
            for name, values in arrays.items()
            if name.startswith(_HIDDEN)
        }
        return cls(tuple(names), arrays["labels"], arrays["observables"], hidden)


def _columns(names: Sequence[str], simulator: TrainingStarSimulator) -> Int64Array:
    """Columns of a simulator's labels among those of all surveys."""
    order = list(names)
    return np.array([order.index(label) for label in simulator.names], dtype=np.int64)


def _fill(labels: Float64Array, rows: Int64Array, columns: Int64Array, own: Float64Array) -> None:
    """Fill what is missing in some rows and columns of labels."""
    place = np.ix_(rows, columns)
    labels[place] = np.where(np.isnan(labels[place]), own, labels[place])


def _rows_of(star: Int64Array, wanted: Int64Array) -> Int64Array:
    """First row of each star `wanted`, -1 where there is none."""
    known, first = np.unique(star, return_index=True)
    place = np.minimum(np.searchsorted(known, wanted), known.size - 1)
    return np.where(known[place] == wanted, first[place], -1).astype(np.int64)


def _nearest(labels: Float64Array, known: Float64Array) -> Int64Array:
    """Row of `known` (n, n_label) nearest to each of `labels`, by the labels that it has."""
    centre, scale = robust_scale(known)
    mine, theirs = (labels - centre) / scale, (known - centre) / scale
    out = np.zeros(len(labels), dtype=np.int64)
    # A missing label taken for a typical one would draw every star to typical ones.
    patterns, number = np.unique(np.isfinite(labels), axis=0, return_inverse=True)
    for k, pattern in enumerate(patterns):
        rows = number.reshape(-1) == k
        if pattern.any():
            out[rows] = cKDTree(theirs[:, pattern]).query(mine[rows][:, pattern])[1]
    return out


def _parts(columns: Float64Array, like: Sequence[Float64Array]) -> list[Float64Array]:
    edges = np.cumsum([part.shape[1] for part in like])[:-1]
    return np.split(columns, edges, axis=1)
