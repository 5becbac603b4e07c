"""Train one member: loss, schedule, early stopping on the validation part, resume after a kill.

A run that is killed at any moment and started again ends with the same bits as one that was not:
every epoch draws its order and its dropout from a seed of (member seed, epoch), and a checkpoint
holds the whole state at the end of an epoch.
"""

import hashlib
import json
import logging
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from maury.errors import TrainingError
from maury.io.arrays import Float32Array
from maury.io.workers import one_thread
from maury.model.engines.training_kernels import Forward, compiled_forward
from maury.model.networks.published import NetworkConfig, build

logger = logging.getLogger(__name__)

_KERAS_EPSILON = 1e-7
"""Epsilon of Adam in Keras, by which the published networks were trained; that of torch is 1e-8."""
_VALIDATION_ROWS = 1024
"""Validation stars in one pass: bounds the memory of activations; chosen, changes no result."""


class TrainingConfig(BaseModel):
    """How a member is trained.

    Attributes
    ----------
    batch_size : int
        Stars per step.
    learning_rate : float
        Peak step size of Adam (epsilon 1e-7, as in Keras).
    weight_decay : float
        Decoupled weight decay.
    epochs : int
        Largest number of passes over the training stars.
    patience : int
        Passes without a better validation loss after which training stops; the best weights are
        kept.
    least_gain : float
        By how much a validation loss must fall to count as better for `patience`.
    plateau : int
        Passes without a better loss after which the step size is halved, and again; 0 for never.
    plateau_of : {"validation", "training"}
        Whose loss that is.
    plateau_gain : float
        By how much it must fall to count as better.
    least_rate : float
        To which the step size is halved at most.
    l2 : float
        Penalty on the squares of all weights but biases, added to the loss of training.
    gradient_norm : float
        To which longer gradients are cut; 0 for never.
    schedule : {"constant", "cosine", "one_cycle"}
        Course of the step size over `epochs`: constant, half a cosine down to 0, or a linear rise
        over the first 30 % and half a cosine down.
    engine : {"torch", "compiled"}
        What computes the convolutions of the preset ``guiglion2020``: PyTorch, or code compiled for
        the processor, in half the time. The weights differ by rounding and by the order in which
        dropout is drawn, so that the choice is a setting and never follows from what is installed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    batch_size: int = Field(default=16, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0.0, allow_inf_nan=False)
    weight_decay: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    epochs: int = Field(default=1000, ge=1)
    patience: int = Field(default=40, ge=1)
    least_gain: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    plateau: int = Field(default=0, ge=0)
    plateau_of: Literal["validation", "training"] = "validation"
    plateau_gain: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    least_rate: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    l2: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    gradient_norm: float = Field(default=0.0, ge=0.0, allow_inf_nan=False)
    schedule: Literal["constant", "cosine", "one_cycle"] = "constant"
    engine: Literal["torch", "compiled"] = "torch"

    def rate(self, progress: float) -> float:
        """Step size when a fraction `progress` (0 to 1) of all steps is done."""
        if self.schedule == "cosine":
            return self.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        if self.schedule == "one_cycle":
            # The share of the one-cycle policy as torch.optim.lr_scheduler.OneCycleLR has it by
            # default.
            rise = 0.3
            if progress < rise:
                return self.learning_rate * (0.04 + 0.96 * progress / rise)
            fall = (progress - rise) / (1.0 - rise)
            return self.learning_rate * max(0.5 * (1.0 + math.cos(math.pi * fall)), 1e-4)
        return self.learning_rate


@dataclass(frozen=True)
class TrainingTensors:
    """Stars ready for a network.

    Attributes
    ----------
    flux : (n_star, n_pixel) float32 tensor
    observables : (n_star, n_observable) float32 tensor
        Scaled.
    target : (n_star, n_label) float32 tensor
        Scaled labels, NaN where missing.
    variance : (n_star, n_label) float32 tensor
        Variance of each scaled label, 0 where unknown.
    """

    flux: Tensor
    observables: Tensor
    target: Tensor
    variance: Tensor

    @classmethod
    def from_numpy(cls, *arrays: Float32Array) -> "TrainingTensors":
        """Wrap flux, observables, target and variance without a copy where possible."""
        return cls(*(torch.from_numpy(np.asarray(array, dtype=np.float32)) for array in arrays))

    def __len__(self) -> int:
        return int(self.flux.shape[0])

    def rows(self, index: Tensor | slice) -> "TrainingTensors":
        """Return the rows of `index`."""
        return TrainingTensors(
            self.flux[index], self.observables[index], self.target[index], self.variance[index]
        )


@dataclass(frozen=True)
class TrainedMember:
    """Result of `train_member`.

    Attributes
    ----------
    weights : mapping of str to float32 tensor
        Those of the epoch with the least validation loss, or their running mean.
    validation_loss : float or None
        Of these weights; None if no star validated them.
    best_epoch, n_epochs : int
        Number of the epoch they come from, and of epochs run.
    """

    weights: Mapping[str, Tensor]
    validation_loss: float | None
    best_epoch: int
    n_epochs: int


EpochCallback = Callable[[int, float, float | None], None]
"""Called after each epoch with its number (from 1), training loss and validation loss, if any."""


def train_member(
    train: TrainingTensors,
    validation: TrainingTensors,
    network: NetworkConfig,
    *,
    config: TrainingConfig,
    seed: int,
    checkpoint: Path | None = None,
    checkpoint_seconds: float = 20.0,
    on_epoch: EpochCallback | None = None,
) -> TrainedMember:
    """Train one network on one thread.

    Parameters
    ----------
    train, validation : TrainingTensors
        The validation stars steer early stopping; no other stars are seen.
    network : NetworkConfig
        Architecture and loss.
    config : TrainingConfig
        Settings.
    seed : int
        Seed of the member: initial weights, order of the stars, dropout.
    checkpoint : Path, optional
        File that keeps the state; training goes on from it if it exists.
    checkpoint_seconds : float
        Least time between two checkpoints.
    on_epoch : callable, optional
        Told about every epoch that is run now (not those before a resumed checkpoint).

    Raises
    ------
    TrainingError
        If a loss is no longer finite.
    """
    # Sums on several threads come in another order, and with them other bits; the caller's random
    # state is left alone.
    with one_thread(), torch.random.fork_rng(devices=[]):
        run = run_to_the_end(
            lambda: _Run(train, validation, network, config, seed),
            checkpoint=checkpoint,
            checkpoint_seconds=checkpoint_seconds,
            on_epoch=on_epoch,
        )
        return TrainedMember(run.best, run.best_loss, run.best_epoch, run.epoch)


class Run(ABC):
    """The state of one training run, between two epochs."""

    epoch: int

    @property
    @abstractmethod
    def finished(self) -> bool:
        """Whether no epoch is left to run."""

    @abstractmethod
    def advance(self) -> tuple[float, float | None]:
        """Run one epoch; return its training loss, and its validation loss if there is one."""

    @abstractmethod
    def save(self, path: Path) -> None:
        """Write the whole state to `path` in one step."""

    @abstractmethod
    def restore(self, path: Path) -> None:
        """Take up the state in `path`.

        Raises
        ------
        OSError, SafetensorError, RuntimeError, ValueError, KeyError
            If the file is damaged or belongs to another run; the state is then undefined.
        """


AnyRun = TypeVar("AnyRun", bound=Run)


def run_to_the_end(
    start: Callable[[], AnyRun],
    *,
    checkpoint: Path | None,
    checkpoint_seconds: float,
    on_epoch: EpochCallback | None,
) -> AnyRun:
    """Run all epochs, from the checkpoint if there is a good one; see `train_member`."""
    run = start()
    if checkpoint is not None and checkpoint.is_file():
        try:
            run.restore(checkpoint)
        except (OSError, SafetensorError, RuntimeError, ValueError, KeyError) as error:
            logger.warning("ignoring the checkpoint %s: %s", checkpoint, error)
            run = start()
    saved_at = time.monotonic()
    while not run.finished:
        train_loss, validation_loss = run.advance()
        # Told first: an epoch that is in the checkpoint is not run again.
        if on_epoch is not None:
            on_epoch(run.epoch, train_loss, validation_loss)
        due = time.monotonic() - saved_at >= checkpoint_seconds
        if checkpoint is not None and due and not run.finished:
            run.save(checkpoint)
            saved_at = time.monotonic()
    return run


@dataclass
class _Wait:
    """Epochs since a loss last fell by more than some gain."""

    best: float = math.inf
    since: int = 0

    def told(self, loss: float, gain: float) -> int:
        """Take the loss of an epoch; return how many have brought nothing by now."""
        if loss < self.best - gain:
            self.best, self.since = loss, 0
        else:
            self.since += 1
        return self.since


class _Run(Run):
    def __init__(
        self,
        train: TrainingTensors,
        validation: TrainingTensors,
        network: NetworkConfig,
        config: TrainingConfig,
        seed: int,
    ) -> None:
        self._train = train
        self._validation = validation
        self._network = network
        self._config = config
        self._seed = seed
        torch.manual_seed(epoch_seed(seed, 0))
        n_pixel, n_observable = train.flux.shape[1], train.observables.shape[1]
        self._module = build(network, n_pixel, n_observable, train.target.shape[1])
        network.settle(self._module, train.flux)
        self._forward: Forward = self._module
        if config.engine == "compiled":
            self._forward = compiled_forward(network, self._module, n_pixel)
        self._optimizer = torch.optim.AdamW(
            self._module.parameters(),
            lr=config.learning_rate,
            eps=_KERAS_EPSILON,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.epoch = 0
        self.best_epoch = 0
        self.best_loss = math.inf
        self.best = copy_weights(self._module)
        self._idle, self._flat, self._halved = _Wait(), _Wait(), 0

    @property
    def finished(self) -> bool:
        """Whether the epochs, or the patience, are at an end."""
        return self.epoch >= self._config.epochs or self._idle.since >= self._config.patience

    def advance(self) -> tuple[float, float | None]:
        """Run one epoch; return its training and validation loss."""
        epoch = self.epoch + 1
        torch.manual_seed(epoch_seed(self._seed, epoch))
        train_loss = self._pass()
        validation_loss = self._validate()
        if not (math.isfinite(train_loss) and math.isfinite(validation_loss)):
            raise TrainingError(
                f"the loss is no longer finite in epoch {epoch} (training {train_loss}, "
                f"validation {validation_loss}); lower learning_rate in [training]"
            )
        self.epoch = epoch
        if validation_loss < self.best_loss:
            self.best_loss, self.best_epoch = validation_loss, epoch
            self.best = copy_weights(self._module)
        self._idle.told(validation_loss, self._config.least_gain)
        self._watch(train_loss if self._config.plateau_of == "training" else validation_loss)
        return train_loss, validation_loss

    def _watch(self, loss: float) -> None:
        """Halve the step size where the loss no longer falls, as Keras does on a plateau."""
        if self._config.plateau and (
            self._flat.told(loss, self._config.plateau_gain) >= self._config.plateau
        ):
            self._halved += 1
            self._flat.since = 0

    def _rate(self, progress: float) -> float:
        planned = self._config.rate(progress)
        halved = planned * 0.5**self._halved
        # A plan that goes lower by itself is followed.
        return min(planned, max(halved, self._config.least_rate))

    def _pass(self) -> float:
        self._module.train()
        order = torch.randperm(len(self._train))
        batches = torch.split(order, self._config.batch_size)
        total = torch.zeros((), dtype=torch.float32)
        for number, index in enumerate(batches):
            done = (self.epoch + number / len(batches)) / self._config.epochs
            for group in self._optimizer.param_groups:
                group["lr"] = self._rate(done)
            stars = self._train.rows(index)
            self._optimizer.zero_grad(set_to_none=True)
            loss = self._loss(stars)
            whole = loss + self._penalty() if self._config.l2 else loss
            whole.backward()  # type: ignore[no-untyped-call]
            if self._config.gradient_norm:
                nn.utils.clip_grad_norm_(self._module.parameters(), self._config.gradient_norm)
            self._optimizer.step()
            # Weighted by stars, as the last batch is smaller than the others.
            total += loss.detach() * len(stars)
        return float(total) / len(self._train)

    def _penalty(self) -> Tensor:
        weights = [p for p in self._module.parameters() if p.ndim > 1]
        return self._config.l2 * torch.stack([w.square().sum() for w in weights]).sum()

    def _validate(self) -> float:
        self._module.eval()
        total = 0.0
        with torch.no_grad():
            for start in range(0, len(self._validation), _VALIDATION_ROWS):
                stars = self._validation.rows(slice(start, start + _VALIDATION_ROWS))
                total += float(self._loss(stars)) * len(stars)
        return total / len(self._validation)

    def _loss(self, stars: TrainingTensors) -> Tensor:
        output = self._forward(stars.flux, stars.observables)
        return self._network.loss(output, stars.target, stars.variance)

    def save(self, path: Path) -> None:
        """Write the whole state to `path` in one step."""
        tensors = {f"weights/{k}": v for k, v in self._module.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best.items()}
        tensors |= adam_tensors(self._optimizer)
        state = {
            "seed": self._seed,
            "epoch": self.epoch,
            "best_epoch": self.best_epoch,
            "best_loss": self.best_loss,
            "idle": [self._idle.best, self._idle.since],
            "flat": [self._flat.best, self._flat.since],
            "halved": self._halved,
        }
        write_tensors(path, tensors, state)

    def restore(self, path: Path) -> None:
        """Take up the state in `path`, see `Run.restore`."""
        tensors, state = read_tensors(path)
        if state["seed"] != self._seed:
            raise ValueError(f"it belongs to seed {state['seed']}")
        groups = split_names(tensors)
        self._module.load_state_dict(groups["weights"])
        restore_adam(self._optimizer, groups["adam"])
        self.best = groups["best"]
        self.epoch, self.best_epoch = int(state["epoch"]), int(state["best_epoch"])
        self.best_loss = float(state["best_loss"])
        # Checkpoints of before there was a choice know of the best epoch alone.
        idle = state.get("idle", [self.best_loss, self.epoch - self.best_epoch])
        self._idle, self._flat = _Wait(*idle), _Wait(*state.get("flat", []))
        self._halved = int(state.get("halved", 0))


def adam_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an optimizer as tensors named ``adam/<parameter>/<key>``."""
    states = optimizer.state_dict()["state"].items()
    return {f"adam/{index}/{k}": v for index, state in states for k, v in state.items()}


def restore_adam(optimizer: torch.optim.Optimizer, flat: Mapping[str, Tensor]) -> None:
    """Put back what `adam_tensors` gave, without its ``adam/``."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in flat.items():
        index, _, key = name.partition("/")
        state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def split_names(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group tensors by the part of their names before the first ``/``."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        groups.setdefault(kind, {})[key] = tensor
    return groups


def write_tensors(path: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write tensors and a JSON state into one safetensors file, in one step."""
    plain = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    noted = {"state": json.dumps(dict(state)), "sha256": _digest(plain)}
    data = save(plain, metadata=noted)
    # The process is part of the name: two that write the same file must not mix their bytes.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        # Without it a crash of the machine may leave the new name on a file that is not written
        # yet.
        os.fsync(file.fileno())
    os.replace(temporary, path)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Raises
    ------
    OSError, SafetensorError, KeyError, ValueError
        If the file cannot be read, or is not such a file.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        noted = file.metadata() or {}
    state = json.loads(noted["state"])
    # Files of before the checksum have none, and are taken as they are.
    if noted.get("sha256", digest := _digest(tensors)) != digest:
        raise ValueError(f"{path} is damaged: its checksum differs")
    return tensors, state


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    # A file may order tensors otherwise than the mapping that was written, and a checksum must not
    # depend on that.
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].cpu().numpy().tobytes())
    return digest.hexdigest()


def copy_weights(module: nn.Module) -> dict[str, Tensor]:
    """Weights and buffers of a module, as they are now."""
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def epoch_seed(seed: int, epoch: int) -> int:
    """Seed of one epoch of one member, for torch."""
    state = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    return int(state[0]) % 2**63
