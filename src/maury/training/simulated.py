"""Recipe of the default network: one pass over ever-new simulated spectra.

No star is seen twice with the same noise, so there is nothing to stop early for, and no validation
star steers anything. Like `maury.training.member`, a run that is killed and started again ends with
the same bits: every step draws from a generator of (member seed, step).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from maury.errors import TrainingError
from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.io.workers import one_thread
from maury.labels.statistics import robust_scale
from maury.model.networks.published import NetworkConfig, build
from maury.simulation.drawing import DrawConfig
from maury.simulation.observing import ObservingModel
from maury.simulation.training_stars import BatchNoise, SimulatedPool, TrainingStarSimulator
from maury.training.member import (
    EpochCallback,
    Run,
    TrainedMember,
    adam_tensors,
    copy_weights,
    epoch_seed,
    read_tensors,
    restore_adam,
    run_to_the_end,
    split_names,
    write_tensors,
)

STEPS_PER_EPOCH = 100
"""Steps between two checkpoints or reports."""
PIXEL_WEIGHTS = "project.weight"
"""Name of the weights (stem, n_pixel) on the scaled pixels."""
FLUX_BUFFERS = ("flux_centre", "flux_scale")
"""Names of the centre and scale of each pixel."""
_LEAST_FLUX_SCALE = 0.02
"""Least scale of a pixel: one that hardly varies would blow its noise up; chosen."""
_STATISTICS_ROWS = 8192
"""Stars that give centre and scale of each pixel, to 1 %; chosen."""


class Dropping(BaseModel):
    """Shares of stars that lose a part of their inputs in training.

    Attributes
    ----------
    spectrum, observables : float
        All of the spectrum, or all of the observables; never both.
    sources : float
        Each source of observables (a band, the parallax, the extinction) by itself.
    all_but_one : float
        All sources but one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spectrum: float = Field(default=0.06, ge=0.0, le=0.5)
    observables: float = Field(default=0.12, ge=0.0, le=0.5)
    sources: float = Field(default=0.04, ge=0.0, le=1.0)
    all_but_one: float = Field(default=0.03, ge=0.0, le=1.0)


class SimulatedTraining(BaseModel):
    """How a member is trained on simulated stars; section ``[training]`` of the preset ``maury``.

    Attributes
    ----------
    batch_size, steps : int
        Stars per step, and steps.
    learning_rate : float
        Largest step size of AdamW; it rises linearly over the share `rise` of the steps, and falls
        by half a cosine.
    weight_decay : float
        Decoupled weight decay.
    averaging : float
        Decay per step of the running mean of the weights, which is what is kept.
    gradient_norm : float
        To which longer gradients are cut.
    stars : int
        Simulated stars that a member draws its batches from.
    dropping, draw, noise, observing
        Missing inputs; choice of the stars; what a batch adds; the instrument. The scatter of the
        continuum is measured on the labelled stars, and `observing.continuum_rms` adds to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=128, ge=1)
    steps: int = Field(default=12_000, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0.0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.05, ge=0.0, allow_inf_nan=False)
    rise: float = Field(default=0.15, gt=0.0, lt=1.0)
    averaging: float = Field(default=0.998, ge=0.0, lt=1.0)
    gradient_norm: float = Field(default=5.0, gt=0.0)
    stars: int = Field(default=100_000, ge=1)
    dropping: Dropping = Dropping()
    draw: DrawConfig = DrawConfig()
    noise: BatchNoise = BatchNoise()
    observing: ObservingModel = ObservingModel(
        resolving_power_scatter=450.0, continuum_rms=0.0, spike_fraction=0.05
    )

    @property
    def epochs(self) -> int:
        """Reports of a whole run, one for each `STEPS_PER_EPOCH`."""
        return -(-self.steps // STEPS_PER_EPOCH)

    def rate(self, progress: float) -> float:
        """Step size when a fraction `progress` (0 to 1) of the steps is done."""
        if progress < self.rise:
            return self.learning_rate * (0.04 + 0.96 * progress / self.rise)
        fall = (progress - self.rise) / (1.0 - self.rise)
        # Not down to 0, where the last steps would change nothing.
        return self.learning_rate * max(0.5 * (1.0 + math.cos(math.pi * fall)), 4e-4)


@dataclass(frozen=True)
class Start:
    """Where a member starts that does not start at random.

    Attributes
    ----------
    weights : mapping of str to float32 array
        Of all layers; those on the pixels are per unit of flux.
    label_centre, label_scale : (n_label,) float64
        Scaling of the labels that the weights are for.
    observable_centre, observable_scale : (n_observable,) float64
    """

    weights: Mapping[str, Float32Array]
    label_centre: Float64Array
    label_scale: Float64Array
    observable_centre: Float64Array
    observable_scale: Float64Array


def train_on_simulated_stars(
    star_simulator: TrainingStarSimulator,
    network: NetworkConfig,
    *,
    sources: BoolArray,
    config: SimulatedTraining,
    seed: int,
    start: Start | None = None,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    on_epoch: EpochCallback | None = None,
) -> TrainedMember:
    """Train one network on simulated stars, on one thread.

    Parameters
    ----------
    star_simulator : TrainingStarSimulator
        Simulates the survey.
    network : DefaultConfig
        Architecture.
    sources : (n_source, n_observable) bool
        Which observables are made of which source
        (`maury.spectra.preparation.Preparation.sources`).
    config : SimulatedTraining
    seed : int
        Seed of the member: initial weights, stars, noise, missing inputs.
    start : Start, optional
        Weights and scalings to begin with, instead of random ones and those of the simulator.
    checkpoint : Path, optional
        File that keeps the state; training goes on from it if it exists.
    checkpoint_seconds : float
        Least time between two checkpoints.
    on_epoch : callable, optional
        Told about every epoch of `STEPS_PER_EPOCH` steps that is run now.

    Raises
    ------
    TrainingError
        If the loss is no longer finite.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        run = run_to_the_end(
            lambda: _Run(star_simulator, network, sources, config, seed, start),
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
        )
        return TrainedMember(run.averaged_weights(), None, run.epoch, run.epoch)


def drop_inputs(
    ivar: Float32Array,
    observables: Float64Array,
    sources: BoolArray,
    *,
    dropping: Dropping,
    rng: np.random.Generator,
) -> tuple[Float32Array, Float64Array]:
    """Return copies with inputs taken away at random.

    Parameters
    ----------
    ivar : (n_star, n_pixel) float32
        0 throughout where the spectrum is taken away.
    observables : (n_star, n_observable) float64
        NaN where taken away.
    sources : (n_source, n_observable) bool
        Which observables are made of which source.
    dropping : Dropping
    rng : numpy Generator
    """
    n_star, n_source = len(ivar), len(sources)
    if n_source == 0:
        return ivar.copy(), observables.copy()
    lost = rng.random((n_star, n_source)) < dropping.sources
    single = np.flatnonzero(rng.random(n_star) < dropping.all_but_one)
    lost[single] = True
    lost[single, rng.integers(0, n_source, single.size)] = False
    choice = rng.random(n_star)
    lost[choice < dropping.observables] = True
    # From the other end of the same number, so that these two losses never meet in one star.
    blind = choice > 1.0 - dropping.spectrum
    # Half of what a star without a spectrum would lose besides stays with it, as nothing else is
    # left to learn from.
    lost[blind] &= rng.random((int(blind.sum()), n_source)) < 0.5
    gone = lost.astype(np.float32) @ sources.astype(np.float32) > 0
    dark = np.where(blind[:, None], np.float32(0), ivar)
    return dark, np.where(gone, np.nan, observables)


class _Run(Run):
    """The state of one training run, between two epochs."""

    def __init__(
        self,
        star_simulator: TrainingStarSimulator,
        network: NetworkConfig,
        sources: BoolArray,
        config: SimulatedTraining,
        seed: int,
        start: Start | None = None,
    ) -> None:
        self._config, self._seed, self._sources = config, seed, sources
        self.epoch = 0
        rng = _generator(seed, 0)
        self._pool = star_simulator.pool(config.stars, rng, draw=config.draw, noise=config.noise)
        self._labels = _Scale.measure(star_simulator.labels)
        self._observables = _Scale.measure(star_simulator.observables)
        torch.manual_seed(epoch_seed(seed, 0))
        n_pixel, n_observable = star_simulator.wave_aa.size, star_simulator.observables.shape[1]
        self._module = build(network, n_pixel, n_observable, star_simulator.labels.shape[1])
        _set_flux_scale(self._module, self._pool)
        if start is not None:
            self._labels = _Scale(start.label_centre, start.label_scale)
            self._observables = _Scale(start.observable_centre, start.observable_scale)
            _load(self._module, start)
        self._optimizer = torch.optim.AdamW(
            self._module.parameters(),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # A shorter memory of squared gradients than the usual 0.999, which lags behind in a run
            # of some thousand steps; chosen, not measured.
            betas=(0.9, 0.98),
            fused=True,
        )
        self._averaged = [p.detach().clone() for p in self._module.parameters()]
        self._module.train()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.epoch >= self._config.epochs

    def advance(self) -> tuple[float, float | None]:
        """Run the steps of one epoch; return their mean loss."""
        first = self.epoch * STEPS_PER_EPOCH
        last = min(first + STEPS_PER_EPOCH, self._config.steps)
        try:
            loss = sum(self._step(step) for step in range(first, last)) / (last - first)
        # A covariance that has become NaN fails in its factorisation, before any loss is returned.
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            loss = math.nan
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is no longer finite before step {last}; lower learning_rate"
            )
        self.epoch += 1
        return loss, None

    def _step(self, step: int) -> float:
        for group in self._optimizer.param_groups:
            group["lr"] = self._config.rate(step / self._config.steps)
        inputs, target = self._batch(_generator(self._seed, step + 1))
        loss = self._module(*inputs).negative_log_likelihood(target, torch.zeros_like(target))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self._module.parameters(), self._config.gradient_norm)
        self._optimizer.step()
        # An early running mean would keep the initial weights for too long.
        decay = min(self._config.averaging, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, list(self._module.parameters()), 1.0 - decay)
        return float(loss.detach())

    def _batch(self, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        flux, ivar, observables, labels = self._pool.batch(self._config.batch_size, rng)
        ivar, observables = drop_inputs(
            ivar, observables, self._sources, dropping=self._config.dropping, rng=rng
        )
        scaled = self._observables(observables)
        inputs = (torch.from_numpy(flux), torch.from_numpy(ivar), torch.from_numpy(scaled))
        return inputs, torch.from_numpy(self._labels(labels))

    def averaged_weights(self) -> Mapping[str, Tensor]:
        """Return the running mean of the weights, and the buffers."""
        weights = copy_weights(self._module)
        names = [name for name, _ in self._module.named_parameters()]
        return weights | dict(zip(names, self._averaged, strict=True))

    def save(self, path: Path) -> None:
        """Write the whole state to `path` in one step."""
        tensors = {f"weights/{k}": v for k, v in self._module.state_dict().items()}
        tensors |= {f"averaged/{k}": v for k, v in enumerate(self._averaged)}
        tensors |= adam_tensors(self._optimizer)
        write_tensors(path, tensors, {"seed": self._seed, "epoch": self.epoch})

    def restore(self, path: Path) -> None:
        """Take up the state in `path`, see `maury.training.member.Run`."""
        tensors, state = read_tensors(path)
        if state["seed"] != self._seed:
            raise ValueError(f"it belongs to seed {state['seed']}")
        groups = split_names(tensors)
        self._module.load_state_dict(groups["weights"])
        self._averaged = [groups["averaged"][str(k)] for k in range(len(self._averaged))]
        restore_adam(self._optimizer, groups["adam"])
        self.epoch = int(state["epoch"])


class _Scale:
    """Robust scaling to float32, as that of `maury.model.directory.Affine`."""

    def __init__(self, centre: Float64Array, scale: Float64Array) -> None:
        self._centre, self._scale = centre, scale

    @classmethod
    def measure(cls, values: Float64Array) -> _Scale:
        return cls(*robust_scale(values))

    def __call__(self, values: Float64Array) -> Float32Array:
        return ((values - self._centre) / self._scale).astype(np.float32)


def _set_flux_scale(module: nn.Module, pool: SimulatedPool) -> None:
    flux = pool.flux[:_STATISTICS_ROWS].astype(np.float64)
    # The pool is free of noise, which is part of the scatter of a pixel as the network meets it.
    noise = 1.0 / float(np.median(pool.survey_snr))
    scale = np.maximum(np.sqrt(flux.var(axis=0) + noise**2), _LEAST_FLUX_SCALE)
    state: dict[str, Any] = {"flux_centre": flux.mean(axis=0), "flux_scale": scale}
    for name, values in state.items():
        module.get_buffer(name).copy_(torch.from_numpy(values.astype(np.float32)))


def _load(module: nn.Module, start: Start) -> None:
    """Take up all weights; those on the pixels come per unit of flux, and are scaled here."""
    weights = {name: torch.from_numpy(np.array(value)) for name, value in start.weights.items()}
    # Per unit of flux they hold for any scaling; here the pixels have that of the new survey.
    weights[PIXEL_WEIGHTS] = weights[PIXEL_WEIGHTS] * module.get_buffer("flux_scale")
    kept = {name: module.get_buffer(name).clone() for name in FLUX_BUFFERS}
    module.load_state_dict(weights | kept)


def _generator(seed: int, step: int) -> np.random.Generator:
    # A new generator for each step makes resuming exact; SFC64 is cheap to seed and fast.
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, step])))
