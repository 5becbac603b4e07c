"""One pass over simulated stars of several surveys, for one network with a stage for each.

Batches take turns: stars that one survey saw, survey by survey, and stars that a set of them saw.
All teach the body; a stage learns from its own survey and from the sets that have it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from maury.io.arrays import Float32Array, Float64Array
from maury.io.workers import one_thread
from maury.model.directory import Scaling
from maury.model.networks.default import DefaultConfig
from maury.model.networks.joint import JointNetwork, once
from maury.simulation.dropping import Dropping, drop_inputs, drop_pixels
from maury.simulation.joint_stars import JointPool, JointStars
from maury.simulation.simulated_pool import SimulatedPool
from maury.simulation.training_stars import TrainingStarSimulator
from maury.training.member import EpochCallback, TrainedMember, epoch_seed, run_to_the_end
from maury.training.simulated import (
    SimulatedTraining,
    SteppedRun,
    generator,
    scaled,
    set_flux_scale,
)

__all__ = ["JointSettings", "JointTask", "sets_of", "train_joint_network"]

_LARGEST_POOL = 2**27
"""Pixels of the stars of a pool, of four bytes each: half a gigabyte, as there is one for each
survey and each set of them."""
_LEAST_POOL = 10_000
"""Stars of a pool however many pixels they have, as of a single survey."""
_MOST_TOGETHER = 3
"""Most surveys whose spectra of one star are met together: more are rare, and their sets many."""


def sets_of(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Return the sets of surveys that a network meets: each by itself, then two, then three."""
    sizes = range(1, min(len(names), _MOST_TOGETHER) + 1)
    return [found for size in sizes for found in combinations(names, size)]


class JointSettings(BaseModel):
    """How the networks of a joint model are trained.

    Attributes
    ----------
    labels : tuple of str
        Of all surveys together, in the order of the outputs.
    training : mapping of str to SimulatedTraining
        Settings of each survey; steps and rates are those of the first.
    sets : tuple of tuple of str
        Which surveys see the stars of a batch, in turn.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...]
    training: dict[str, SimulatedTraining]
    sets: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class JointTask:
    """What one network is trained on.

    Attributes
    ----------
    simulators : mapping of str to TrainingStarSimulator
        Of each survey.
    stars : JointStars
        The labelled stars of all of them.
    scaling : Scaling
        Of the observables, and of the labels of all surveys.
    frozen : mapping of str to float32 array
        Weights that stay as they are, by the names of `JointNetwork`; all others are learnt.
    settings : JointSettings
    """

    simulators: Mapping[str, TrainingStarSimulator]
    stars: JointStars
    scaling: Scaling
    frozen: Mapping[str, Float32Array]
    settings: JointSettings

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the surveys, in order."""
        return tuple(self.simulators)

    @property
    def config(self) -> SimulatedTraining:
        """Settings of the optimiser."""
        return self.settings.training[self.names[0]]


def train_joint_network(
    task: JointTask,
    network: DefaultConfig,
    *,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    on_epoch: EpochCallback | None = None,
) -> TrainedMember:
    """Train one network on simulated stars of several surveys, on one thread.

    Parameters
    ----------
    task : JointTask
    network : DefaultConfig
        Architecture.
    seed : int
        Seed of the member: initial weights, stars, noise, missing inputs.
    checkpoint : Path, optional
        File that keeps the state; training goes on from it if it exists.
    checkpoint_seconds : float
        Least time between two checkpoints.
    on_epoch : callable, optional
        Told about every epoch of `STEPS_PER_EPOCH` steps that is run now.

    Returns
    -------
    TrainedMember
        With the weights of a `JointNetwork`.

    Raises
    ------
    TrainingError
        If the loss is no longer finite.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        run = run_to_the_end(
            lambda: _JointRun(task, network, seed),
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
        )
        return TrainedMember(run.averaged_weights(), None, run.epoch, run.epoch)


class _JointRun(SteppedRun):
    """A run of several surveys, whose batches take turns."""

    def __init__(self, task: JointTask, network: DefaultConfig, seed: int) -> None:
        self._task = task
        rng = generator(seed, 0)
        self._pools = {chosen: _pool(task, chosen, rng) for chosen in task.settings.sets}
        torch.manual_seed(epoch_seed(seed, 0))
        n_pixel = {name: one.wave_aa.size for name, one in task.simulators.items()}
        n_observable = task.stars.observables.shape[1]
        self._joint = JointNetwork(network, n_pixel, n_observable, len(task.stars.names))
        for chosen, pool in self._pools.items():
            if isinstance(pool, SimulatedPool):
                set_flux_scale(self._joint.stage(chosen[0]), pool)
        kept = {name: torch.from_numpy(np.array(value)) for name, value in task.frozen.items()}
        self._joint.load_state_dict(kept, strict=False)
        for name, parameter in self._joint.named_parameters():
            parameter.requires_grad_(name not in kept)
        super().__init__(self._joint, task.config, seed)

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        """Negative log-likelihood of the labels of stars that one set of surveys saw."""
        chosen = self._task.settings.sets[step % len(self._task.settings.sets)]
        spectra, observables, target = self._batch(chosen, rng)
        posterior = self._joint(spectra, observables)
        found: Tensor = posterior.negative_log_likelihood(target, torch.zeros_like(target))
        return found

    def _batch(
        self, chosen: tuple[str, ...], rng: np.random.Generator
    ) -> tuple[dict[str, tuple[Tensor, Tensor]], Tensor, Tensor]:
        task, size, pool = self._task, self._config.batch_size, self._pools[chosen]
        if isinstance(pool, JointPool):
            spectra, observables, labels = pool.batch(size, rng)
        else:
            flux, ivar, observables, own = pool.batch(size, rng)
            spectra, labels = {chosen[0]: (flux, ivar)}, self._of_all(chosen[0], own)
        kept, observables = _dropped(spectra, observables, task, chosen, rng)
        tensors = {
            name: (torch.from_numpy(spectra[name][0]), torch.from_numpy(kept[name]))
            for name in chosen
        }
        target = torch.from_numpy(task.scaling.labels.forward(labels))
        return tensors, scaled(task.scaling, observables), target

    def _of_all(self, name: str, labels: Float64Array) -> Float64Array:
        """Labels of all surveys, those that one survey lacks being missing."""
        names = self._task.stars.names
        out = np.full((len(labels), len(names)), np.nan)
        out[:, [names.index(label) for label in self._task.simulators[name].names]] = labels
        return out

    def averaged_weights(self) -> Mapping[str, Tensor]:
        """Return the running mean of the weights, shared ones once."""
        return once(super().averaged_weights(), self._task.names[0])


def _pool(
    task: JointTask, chosen: tuple[str, ...], rng: np.random.Generator
) -> SimulatedPool | JointPool:
    """Simulate the stars that a set of surveys sees."""
    n_pixel = sum(task.simulators[name].wave_aa.size for name in chosen)
    size = min(task.config.stars, max(_LEAST_POOL, _LARGEST_POOL // n_pixel))
    own = task.settings.training[chosen[0]]
    if len(chosen) == 1:
        return task.simulators[chosen[0]].pool(
            size, rng, draw=own.draw, noise=own.noise, disturbances=own.disturbances
        )
    return task.stars.pool(
        {name: task.simulators[name] for name in chosen},
        size,
        rng,
        draw=own.draw,
        noise={name: task.settings.training[name].noise for name in chosen},
        disturbances=own.disturbances,
    )


def _dropped(
    spectra: Mapping[str, tuple[Float32Array, Float32Array]],
    observables: Float64Array,
    task: JointTask,
    chosen: tuple[str, ...],
    rng: np.random.Generator,
) -> tuple[dict[str, Float32Array], Float64Array]:
    """Take inputs away: of a star that several surveys saw, pixels of each and observables."""
    first = task.simulators[chosen[0]]
    dropping: Dropping = task.settings.training[chosen[0]].dropping
    if len(chosen) > 1:
        # A star without one of the spectra is one of another set.
        dropping = dropping.model_copy(update={"spectrum": 0.0})
    kept, observables = drop_inputs(
        spectra[chosen[0]][1],
        observables,
        first.mapping.depends,
        dropping=dropping,
        rng=rng,
        groups=first.mapping.groups,
    )
    ivar = {chosen[0]: kept}
    for name in chosen[1:]:
        own = spectra[name][1]
        share = task.settings.training[name].dropping.pixels
        lost = drop_pixels(len(own), own.shape[1], share, rng)
        ivar[name] = np.where(lost, np.float32(0), own)
    return ivar, observables
