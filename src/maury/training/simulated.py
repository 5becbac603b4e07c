"""Recipe of the default network: one pass over ever-new simulated spectra.

No star is seen twice with the same noise, so there is nothing to stop early for, and no validation
star steers anything. Like `maury.training.member`, a run that is killed and started again ends with
the same bits: every step draws from a generator of (member seed, step).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from maury.errors import TrainingError
from maury.io.arrays import Float32Array, Float64Array
from maury.io.workers import one_thread
from maury.model.directory import Scaling
from maury.model.networks.published import NetworkConfig, build
from maury.simulation.disturbances import Disturbances
from maury.simulation.drawing import DrawConfig
from maury.simulation.dropping import Dropping, drop_inputs
from maury.simulation.observing import ObservingModel
from maury.simulation.simulated_pool import BatchNoise, SimulatedPool
from maury.simulation.training_stars import TrainingStarSimulator
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
LEARNT_STEPS = 7000
"""Steps with a learnt theory: on a simulated survey of 4096 pixels scatters were 5 % below those of
3000. More were not tried, as four networks take a quarter of an hour on two cores."""
_LARGEST_POOL = 2**28
"""Pixels of all stars of a pool, of four bytes each: one gigabyte a process, as several networks
are trained at a time on one machine."""
_LEAST_POOL = 10_000
"""Stars of a pool however many pixels they have, three or more for each labelled one; chosen."""
_STATISTICS_ROWS = 8192
"""Stars that give centre and scale of each pixel, to 1 %; chosen."""


class SimulatedTraining(BaseModel):
    """How a member is trained on simulated stars; section ``[training]`` of the preset ``maury``.

    Attributes
    ----------
    batch_size : int
        Stars per step.
    steps : int
        Steps of a training; 7000 by default where the theory is learnt (`LEARNT_STEPS`).
    learning_rate : float
        Largest step size of AdamW; it rises linearly over the share `rise` of the steps, and falls
        by half a cosine.
    rise : float
        That share.
    weight_decay : float
        Decoupled weight decay.
    averaging : float
        Decay per step of the running mean of the weights, which is what is kept.
    gradient_norm : float
        To which longer gradients are cut.
    stars : int
        Simulated stars that a member draws its batches from.
    theory : {"auto", "emulator", "learnt"}
        What the stars are simulated with: the emulator that ships, calibrated on the labelled
        stars; a theory that is learnt from these alone; or whichever the survey asks for.
    synthetic : str, optional
        Name of a theory (`maury.methods.fitting.synthetic_library.THEORIES`), path of synthetic
        spectra (`maury.methods.fitting.synthetic_library.SyntheticLibrary`), or of a network that
        gives them (`maury.methods.fitting.trained_payne.TrainedPayne`): the learnt theory begins
        at them.
    dropping : Dropping
        Which inputs of the stars are missing, and how often.
    draw : DrawConfig
        Which stars are simulated, and how much wider than the labelled sample.
    noise : BatchNoise
        Their S/N.
    disturbances : Disturbances
        What real surveys have besides: companions, dust, fringes, a zero level.
    observing : ObservingModel
        The instrument. The scatter of the continuum is measured on the labelled stars, and
        `observing.continuum_rms` adds to it.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=128, ge=1)
    steps: int = Field(default=14_000, ge=1)
    learning_rate: float = Field(default=3e-3, gt=0.0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.05, ge=0.0, allow_inf_nan=False)
    rise: float = Field(default=0.15, gt=0.0, lt=1.0)
    averaging: float = Field(default=0.998, ge=0.0, lt=1.0)
    gradient_norm: float = Field(default=5.0, gt=0.0)
    stars: int = Field(default=100_000, ge=1)
    theory: Literal["auto", "emulator", "learnt"] = "auto"
    synthetic: str | None = None

    @model_validator(mode="after")
    def _one_theory(self) -> SimulatedTraining:
        if self.synthetic is not None and self.theory == "emulator":
            raise ValueError("synthetic: a theory of your own takes the place of the emulator")
        return self

    dropping: Dropping = Dropping()
    draw: DrawConfig = DrawConfig()
    noise: BatchNoise = BatchNoise()
    disturbances: Disturbances = Disturbances()
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


def train_on_simulated_stars(
    star_simulator: TrainingStarSimulator,
    network: NetworkConfig,
    *,
    scaling: Scaling,
    config: SimulatedTraining,
    seed: int,
    start: Mapping[str, Float32Array] | None = None,
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
    scaling : Scaling
        Of labels and observables, that of the model which the network will be of.
    config : SimulatedTraining
    seed : int
        Seed of the member: initial weights, stars, noise, missing inputs.
    start : mapping of str to float32 array, optional
        Weights of all layers to begin with, those on the pixels per unit of flux.
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
            lambda: _Run(star_simulator, network, scaling, config, seed, start),
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
        )
        return TrainedMember(run.averaged_weights(), None, run.epoch, run.epoch)


class SteppedRun(Run):
    """The state of a run of ever-new stars, between two epochs.

    Parameters
    ----------
    module : Module
        Of which all parameters that ask for a gradient are learnt.
    config : SimulatedTraining
    seed : int
    """

    def __init__(self, module: nn.Module, config: SimulatedTraining, seed: int) -> None:
        self._config, self._seed, self._module = config, seed, module
        self.epoch = 0
        self._learnt: list[Tensor] = [p for p in module.parameters() if p.requires_grad]
        self._optimizer = torch.optim.AdamW(
            self._learnt,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            # A shorter memory of squared gradients than the usual 0.999, which lags behind in a run
            # of some thousand steps; chosen, not measured.
            betas=(0.9, 0.98),
            fused=True,
        )
        self._averaged = [p.detach().clone() for p in self._learnt]
        self._module.train()

    @abstractmethod
    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        """Loss of the stars of one step."""

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
        loss = self.loss(step, generator(self._seed, step + 1))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._learnt, self._config.gradient_norm)
        self._optimizer.step()
        # An early running mean would keep the initial weights for too long.
        decay = min(self._config.averaging, (1.0 + step) / (10.0 + step))
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, self._learnt, 1.0 - decay)
        return float(loss.detach())

    def averaged_weights(self) -> Mapping[str, Tensor]:
        """Return the running mean of the weights, and what is not learnt."""
        weights = copy_weights(self._module)
        names = [name for name, p in self._module.named_parameters() if p.requires_grad]
        return weights | dict(zip(names, self._averaged, strict=True))

    def save(self, path: Path) -> None:
        """Write the whole state to `path` in one step."""
        tensors = {f"weights/{k}": v for k, v in copy_weights(self._module).items()}
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


class _Run(SteppedRun):
    """A run of one survey."""

    def __init__(
        self,
        star_simulator: TrainingStarSimulator,
        network: NetworkConfig,
        scaling: Scaling,
        config: SimulatedTraining,
        seed: int,
        start: Mapping[str, Float32Array] | None = None,
    ) -> None:
        self._scaling = scaling
        rng = generator(seed, 0)
        self._pool = star_simulator.pool(
            min(config.stars, max(_LEAST_POOL, _LARGEST_POOL // star_simulator.wave_aa.size)),
            rng,
            draw=config.draw,
            noise=config.noise,
            disturbances=config.disturbances,
        )
        torch.manual_seed(epoch_seed(seed, 0))
        n_pixel, n_observable = star_simulator.wave_aa.size, star_simulator.observables.shape[1]
        module = build(network, n_pixel, n_observable, star_simulator.labels.shape[1])
        set_flux_scale(module, self._pool)
        if start is not None:
            _load(module, start)
        super().__init__(module, config, seed)

    def loss(self, step: int, rng: np.random.Generator) -> Tensor:
        """Negative log-likelihood of the labels of a batch."""
        del step
        inputs, target = self._batch(rng)
        found: Tensor = self._module(*inputs).negative_log_likelihood(
            target, torch.zeros_like(target)
        )
        return found

    def _batch(self, rng: np.random.Generator) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        flux, ivar, observables, labels = self._pool.batch(self._config.batch_size, rng)
        ivar, observables = drop_inputs(
            ivar,
            observables,
            self._pool.mapping.depends,
            dropping=self._config.dropping,
            rng=rng,
            groups=self._pool.mapping.groups,
        )
        inputs = (
            torch.from_numpy(flux),
            torch.from_numpy(ivar),
            scaled(self._scaling, observables),
        )
        return inputs, torch.from_numpy(self._scaling.labels.forward(labels))


def scaled(scaling: Scaling, observables: Float64Array) -> Tensor:
    """Scaled observables; a network without photometry has no columns, but its model a scaling."""
    values = observables.astype(np.float32)
    if observables.shape[1]:
        values = scaling.observables.forward(observables)
    return torch.from_numpy(values)


def set_flux_scale(module: nn.Module, pool: SimulatedPool) -> None:
    """Give a network centre and scale of each pixel, as the stars of a pool have them."""
    flux = pool.flux[:_STATISTICS_ROWS].astype(np.float64)
    # The pool is free of noise, which is part of the scatter of a pixel as the network meets it.
    noise = 1.0 / float(np.median(pool.survey_snr))
    scale = np.maximum(np.sqrt(flux.var(axis=0) + noise**2), _LEAST_FLUX_SCALE)
    state: dict[str, Any] = {"flux_centre": flux.mean(axis=0), "flux_scale": scale}
    for name, values in state.items():
        module.get_buffer(name).copy_(torch.from_numpy(values.astype(np.float32)))


def _load(module: nn.Module, start: Mapping[str, Float32Array]) -> None:
    """Take up all weights; those on the pixels come per unit of flux, and are scaled here."""
    weights = {name: torch.from_numpy(np.array(value)) for name, value in start.items()}
    # Per unit of flux they hold for any scaling; here the pixels have that of the new survey.
    weights[PIXEL_WEIGHTS] = weights[PIXEL_WEIGHTS] * module.get_buffer("flux_scale")
    kept = {name: module.get_buffer(name).clone() for name in FLUX_BUFFERS}
    module.load_state_dict(weights | kept)


def generator(seed: int, step: int) -> np.random.Generator:
    """Random numbers of one step of one member; step 0 draws its stars."""
    # A new generator for each step makes resuming exact; SFC64 is cheap to seed and fast.
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence([seed, step])))
