"""How a student is trained on the distillation set of its teacher.

The student starts from the directions of pixels that move the teacher's labels most, and sees its
inputs whitened; both are folded into its weights at the end. Its layers are trained by Muon
(Jordan et al. 2024, https://kellerjordan.github.io/posts/muon), which needs a fraction of the steps
of Adam here, the last one by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from maury.errors import TrainingError
from maury.model.networks.student import StudentNetwork
from maury.training.distillation_data import BATCH_STARS, DistillationBatch
from maury.training.member import (
    Run,
    adam_tensors,
    copy_weights,
    epoch_seed,
    read_tensors,
    restore_adam,
    split_names,
    write_tensors,
)

_SIGMA_WEIGHT = 1.0
"""Errors count in the loss as much as labels do; chosen, not measured."""
_CORRELATION_WEIGHT = 0.3
"""Correlations count less than labels and errors; chosen, not measured."""
_BALANCE = 0.75
"""Power of its own loss by which a label counts: near 1, so that the worst label leads; chosen."""
_PIXEL_RIDGE = 0.02
"""Keeps pixels of hardly any variance from being blown up to noise by whitening; chosen."""
_OTHER_RIDGE = 2e-4
"""The same for the other inputs, which are fewer and hold little noise; chosen."""
_STATISTICS_STARS = 30_000
"""Stars that give a covariance of some 900 pixels: thirty times as many; chosen."""


class DistilConfig(BaseModel):
    """How a student is trained; section ``[training]``.

    Attributes
    ----------
    stars : int
        Simulated stars of the distillation set, rounded up to whole batches of
        `maury.training.distillation_data.BATCH_STARS` if they are more.
    survey_share : float
        Of these, rows of the survey over simulated stars, where a survey is given.
    passes, batch_size : int
        Passes over these stars, and stars per step.
    inner_rate, outer_rate : float
        Largest step sizes: of all layers but the last by Muon, and of the last layer and the
        constants by AdamW. They rise over the share `rise` of the steps and fall by half a cosine.
    weight_decay : float
        Decoupled weight decay.
    averaging : float
        Decay per step of the running mean of the weights, which is what is kept.
    gradient_norm : float
        To which longer gradients are cut.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stars: int = Field(default=14 * BATCH_STARS, ge=1)
    survey_share: float = Field(default=0.1, ge=0.0, le=10.0)
    passes: int = Field(default=70, ge=1)
    batch_size: int = Field(default=1024, ge=1)
    inner_rate: float = Field(default=0.01, gt=0.0, allow_inf_nan=False)
    outer_rate: float = Field(default=4e-3, gt=0.0, allow_inf_nan=False)
    rise: float = Field(default=0.1, gt=0.0, lt=1.0)
    weight_decay: float = Field(default=0.01, ge=0.0, allow_inf_nan=False)
    averaging: float = Field(default=0.998, ge=0.0, lt=1.0)
    gradient_norm: float = Field(default=1.0, gt=0.0)

    @property
    def n_batch(self) -> int:
        """Batches of the distillation set."""
        return -(-self.stars // BATCH_STARS)

    def factor(self, progress: float) -> float:
        """Factor of the step sizes when a fraction `progress` (0 to 1) of the steps is done."""
        if progress < self.rise:
            # The rise starts at 4 %, as a first step of size 0 would be lost: chosen, not measured.
            return 0.04 + 0.96 * progress / self.rise
        fall = (progress - self.rise) / (1.0 - self.rise)
        return max(0.5 * (1.0 + math.cos(math.pi * fall)), 1e-3)


@dataclass(frozen=True)
class InputWhitening:
    """Linear map of some inputs to uncorrelated ones of about unit variance.

    Attributes
    ----------
    centre : (n,) float32 tensor
    matrix, inverse : (n, n) float32 tensor
        whitened = (value - centre) @ matrix.
    """

    centre: Tensor
    matrix: Tensor
    inverse: Tensor

    @classmethod
    def measure(cls, values: Tensor, *, ridge: float) -> InputWhitening:
        """Measure on values (n_star, n); `ridge`, in units of the mean variance, is added."""
        values = values[:_STATISTICS_STARS].float()
        centre = values.mean(dim=0)
        apart = values - centre
        # In double precision: neighbouring pixels are so alike that the least eigenvalues are below
        # the rounding of float32.
        covariance = (apart.T @ apart / len(apart)).double()
        strength, axes = torch.linalg.eigh(covariance)
        scale = (strength.clamp(min=0.0) + ridge * strength.mean() + 1e-12).sqrt()
        # Not rotated back: the layer behind is dense, so that any rotation of its inputs serves.
        return cls(centre, (axes / scale).float(), (axes * scale).T.float())

    def apply(self, values: Tensor) -> Tensor:
        """Whitened values (n_star, n), in the precision of `values`."""
        # Part by part, as float32 copies of the whole set would take twice its memory.
        parts = torch.split(values, BATCH_STARS)
        return torch.cat([((part.float() - self.centre) @ self.matrix).to(part) for part in parts])

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight and bias for values as they are, from those for whitened values."""
        folded = weight @ self.matrix.T
        return folded, bias - folded @ self.centre


class StudentTraining(Run):
    """The state of one student between two passes over the distillation set.

    Parameters
    ----------
    student : StudentNetwork
        With its flux scale set.
    stars : DistillationBatch
        The whole distillation set.
    slopes : (n, n_pixel) tensor
        Derivatives of the teacher's labels, in units of their errors, by the scaled pixels.
    config : DistilConfig
    """

    def __init__(
        self,
        student: StudentNetwork,
        stars: DistillationBatch,
        slopes: Tensor,
        config: DistilConfig,
    ) -> None:
        self._config = config
        self.epoch, self._step = 0, 0
        self._pixels = InputWhitening.measure(stars.pixels, ridge=_PIXEL_RIDGE)
        self._other = InputWhitening.measure(stars.other, ridge=_OTHER_RIDGE)
        self._stars = replace(
            stars,
            pixels=self._pixels.apply(stars.pixels),
            other=self._other.apply(stars.other),
        )
        self.student = student.train()
        _start_projection(student.project, slopes @ self._pixels.inverse.T)
        self._optimizers = _optimizers(student, config)
        self._averaged = [p.detach().clone() for p in student.parameters()]

    @property
    def finished(self) -> bool:
        """Whether all passes are done."""
        return self.epoch >= self._config.passes

    def advance(self) -> tuple[float, float | None]:
        """Pass over all stars once; return the mean loss."""
        # Of the number of the pass alone, so that a resumed run meets the stars in the same order.
        generator = torch.Generator().manual_seed(epoch_seed(0, self.epoch))
        order = torch.randperm(len(self._stars), generator=generator)
        batches = torch.split(order, self._config.batch_size)
        loss = sum(self._learn(batch, len(batches)) for batch in batches) / len(batches)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the loss is no longer finite in pass {self.epoch + 1}; lower inner_rate"
            )
        self.epoch += 1
        return loss, None

    def _learn(self, batch: Tensor, n_batch: int) -> float:
        factor = self._config.factor(self._step / (n_batch * self._config.passes))
        loss = distillation_loss(self.student, self._stars.rows(batch))
        self.student.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        # One star far from the teacher would otherwise move the layers that AdamW trains; Muon does
        # not see the size of a gradient.
        nn.utils.clip_grad_norm_(self.student.parameters(), self._config.gradient_norm)
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = factor * group["largest"]
            optimizer.step()
        # An early running mean would keep the initial weights for too long.
        decay = min(self._config.averaging, (1.0 + self._step) / (10.0 + self._step))
        self._step += 1
        with torch.no_grad():
            torch._foreach_lerp_(self._averaged, list(self.student.parameters()), 1.0 - decay)
        return float(loss.detach())

    def trained_weights(self) -> Mapping[str, Tensor]:
        """Return the running mean of the weights for inputs as they are, and the buffers."""
        names = [name for name, _ in self.student.named_parameters()]
        weights = copy_weights(self.student) | dict(zip(names, self._averaged, strict=True))
        weights["project.weight"], weights["project.bias"] = self._pixels.fold(
            weights["project.weight"], weights["project.bias"]
        )
        n_other = self._other.centre.numel()
        join = weights["join.weight"]
        other, bias = self._other.fold(join[:, -n_other:], weights["join.bias"])
        weights["join.weight"] = torch.cat([join[:, :-n_other], other], dim=1)
        weights["join.bias"] = bias
        return weights

    def save(self, path: Path) -> None:
        """Write the whole state to `path` in one step."""
        tensors = {f"weights/{k}": v for k, v in self.student.state_dict().items()}
        tensors |= {f"averaged/{k}": v for k, v in enumerate(self._averaged)}
        for name, optimizer in zip(_OPTIMIZERS, self._optimizers, strict=True):
            state = adam_tensors(optimizer).items()
            tensors |= {f"{name}/{key.removeprefix('adam/')}": v for key, v in state}
        write_tensors(path, tensors, {"epoch": self.epoch, "step": self._step})

    def restore(self, path: Path) -> None:
        """Take up the state in `path`, see `maury.training.member.Run`."""
        tensors, state = read_tensors(path)
        groups = split_names(tensors)
        self.student.load_state_dict(groups["weights"])
        self._averaged = [groups["averaged"][str(k)] for k in range(len(self._averaged))]
        for name, optimizer in zip(_OPTIMIZERS, self._optimizers, strict=True):
            restore_adam(optimizer, groups[name])
        self.epoch, self._step = int(state["epoch"]), int(state["step"])


_OPTIMIZERS = ("muon", "adam")


def _optimizers(student: StudentNetwork, config: DistilConfig) -> list[torch.optim.Optimizer]:
    inner = [layer.weight for layer in _inner_layers(student)]
    chosen = {id(weight) for weight in inner}
    # Muon is for matrices between hidden layers; outputs and constants are left to AdamW, as its
    # author advises.
    outer = [p for p in student.parameters() if id(p) not in chosen]
    decay = config.weight_decay
    muon = torch.optim.Muon(
        [{"params": inner, "largest": config.inner_rate}],
        weight_decay=decay,
        # Scales updates to the rms of those of AdamW, so that one weight decay serves both.
        adjust_lr_fn="match_rms_adamw",
    )
    groups = [{"params": outer, "largest": config.outer_rate}]
    return [muon, torch.optim.AdamW(groups, weight_decay=decay, betas=(0.9, 0.98), fused=True)]


def _inner_layers(student: StudentNetwork) -> Iterator[nn.Linear]:
    for layer in chain([student.project, student.join], student.body):
        assert isinstance(layer, nn.Linear)
        yield layer


def _start_projection(project: nn.Linear, slopes: Tensor) -> None:
    """Set the projection to the strongest directions of the slopes (n, n_pixel).

    The active subspace of Constantine, Dow & Wang (2014, SIAM J. Sci. Comput. 36, A1500), for
    whitened pixels.
    """
    n = min(project.out_features, project.in_features)
    axes = torch.linalg.eigh((slopes.T @ slopes).double())[1].flip(1)[:, :n]
    # The sign of an axis is arbitrary, and must not depend on the library.
    sign = torch.sign(axes.gather(0, axes.abs().argmax(dim=0, keepdim=True)))
    with torch.no_grad():
        project.weight[:n] = (axes * sign).T.float()
        project.bias.zero_()


def distillation_loss(student: StudentNetwork, stars: DistillationBatch) -> Tensor:
    """Mean squared difference to the teacher.

    Of labels in units of the teacher's error, of the logarithm of errors, and of correlations;
    labels learnt less well count more.

    Parameters
    ----------
    student : StudentNetwork
    stars : DistillationBatch
        With pixels in float32.
    """
    mean, sigma, factor = student.outputs(stars.pixels, stars.other)
    # In the teacher's errors: where it does not know a label, the student need not copy it to the
    # digit.
    label = ((mean - stars.mean) / stars.sigma).square().mean(dim=0)
    # The logarithm counts an error twice too large as much as one half as large.
    error = (sigma / stars.sigma).log().square().mean(dim=0)
    loss = _balanced(label) + _SIGMA_WEIGHT * _balanced(error)
    first, second = torch.triu_indices(student.n_label, student.n_label, 1)
    if first.numel() == 0:
        return loss
    correlation = (factor[:, first] * factor[:, second]).sum(dim=2)
    pairs = (correlation - stars.correlation).square().mean()
    return loss + _CORRELATION_WEIGHT * pairs


def _balanced(terms: Tensor) -> Tensor:
    """Mean of one term per label, the larger ones counting more."""
    # Detached, else the gradient would favour making the weight itself small.
    weight = terms.detach() ** _BALANCE
    return (terms * weight).mean() / weight.mean().clamp(min=1e-30)
