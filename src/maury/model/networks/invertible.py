"""A conditional invertible network: whole posteriors of labels (Candebat et al. 2024)."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from maury.io.config_files import at_most
from maury.model.networks.base import (
    Filters,
    Kernel,
    NetworkConfig,
    NetworkOutput,
    ScalingRule,
    Units,
    draw_normal,
    linear,
    preset,
)
from maury.model.networks.layers import PassDropout, positive, sequence

_ARCTAN = 2.0 / np.pi
"""Brings the arc tangent to -1 ... 1."""
_SPREAD = 0.01
"""Width of the initial weights of couplings (the authors' code): all blocks begin near identity."""
_LATENT_SEED = 2024
"""Seed of the latent draws that give the moments: the same for all stars, so that a prediction
depends neither on its batch nor on chance."""


class Coupling(nn.Module):
    """One GLOW block: labels permuted, each half scaled and shifted by the other and a condition.

    Kingma & Dhariwal (2018, NeurIPS 31), Dinh et al. (2017, arXiv:1605.08803, eqs. 7-8), both
    halves in turn; then a scale and shift of each (ActNorm), which begin as identity: labels are
    scaled to unit variance already.
    """

    order: Tensor
    back: Tensor

    def __init__(
        self, n_label: int, n_condition: int, hidden: int, clamp: float, seed: int
    ) -> None:
        super().__init__()
        self.n_first, self.clamp = n_label // 2, clamp
        n_second = n_label - self.n_first
        order = np.random.default_rng(seed).permutation(n_label)
        # Not with the weights: both follow from the number of the block.
        self.register_buffer("order", torch.from_numpy(order), persistent=False)
        self.register_buffer("back", torch.from_numpy(np.argsort(order)), persistent=False)
        self.second = _subnet(self.n_first + n_condition, hidden, 2 * n_second)
        self.first = _subnet(n_second + n_condition, hidden, 2 * self.n_first)
        self.scale = nn.Parameter(torch.zeros(n_label, dtype=torch.float32))
        self.shift = nn.Parameter(torch.zeros(n_label, dtype=torch.float32))

    def forward(self, labels: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return latent values (n, n_label), and the logarithm (n,) of the determinant."""
        one, two = self._halves(labels[:, self.order])
        grow_one, shift = self._affine(self.first, two, condition)
        one = one * grow_one.exp() + shift
        grow_two, shift = self._affine(self.second, one, condition)
        two = two * grow_two.exp() + shift
        whole = torch.cat([one, two], dim=1) * self.scale.exp() + self.shift
        return whole, grow_one.sum(dim=1) + grow_two.sum(dim=1) + self.scale.sum()

    def inverse(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Return the labels (n, n_label) of latent values."""
        one, two = self._halves((latent - self.shift) * (-self.scale).exp())
        grow, shift = self._affine(self.second, one, condition)
        two = (two - shift) * (-grow).exp()
        grow, shift = self._affine(self.first, two, condition)
        one = (one - shift) * (-grow).exp()
        return torch.cat([one, two], dim=1)[:, self.back]

    def _halves(self, values: Tensor) -> tuple[Tensor, Tensor]:
        return values[:, : self.n_first], values[:, self.n_first :]

    def _affine(self, subnet: nn.Module, half: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = subnet(torch.cat([half, condition], dim=1)).chunk(2, dim=1)
        # Bounded, or an early step might overflow the exponential.
        return self.clamp * _ARCTAN * torch.atan(raw), shift


def _subnet(n_in: int, hidden: int, n_out: int) -> nn.Module:
    network = sequence(
        ("hidden", linear(n_in, hidden)), ("act", nn.ReLU()), ("out", linear(hidden, n_out))
    )
    for parameter in network.parameters():
        draw_normal(parameter, _SPREAD)
    return network


class Conditions(nn.Module):
    """What the spectrum says, at four depths of a stack of convolutions, one for each block."""

    def __init__(self, config: "Candebat2024", n_pixel: int, n_observable: int) -> None:
        super().__init__()
        self.levels, self.heads = nn.ModuleList(), nn.ModuleList()
        pools, n_in, n = (1, config.pool, 1, 1), 1, n_pixel
        shapes = zip(config.filters, config.kernels, config.strides, pools, strict=True)
        sizes: list[tuple[nn.Sequential, int, int]] = []
        for number, (n_out, kernel, stride, pool) in enumerate(shapes):
            n = positive((positive(n // pool) - kernel) // stride + 1)
            convolution = nn.Conv1d(n_in, n_out, kernel, stride, dtype=torch.float32)
            before = (
                nn.Sequential() if number == 0 else nn.Sequential(nn.ReLU(), nn.MaxPool1d(pool))
            )
            sizes.append((nn.Sequential(*before, convolution), n_out, n))
            n_in = n_out
        # The first level is two convolutions deep.
        self.levels.append(nn.Sequential(*sizes[0][0], *sizes[1][0]))
        self.levels.extend([sizes[2][0], sizes[3][0]])
        for (_, n_out, n_left), pool, (middle, out) in zip(
            sizes[1:], (config.pool, 1, 1), config.condition_units, strict=False
        ):
            n_flat = n_out * positive(n_left // pool)
            head = (nn.ReLU(), nn.MaxPool1d(pool), nn.Flatten(), linear(n_flat, middle))
            self.heads.append(nn.Sequential(*head, nn.ReLU(), linear(middle, out)))
        deep: list[nn.Module] = [nn.Flatten()]
        widths = (sizes[3][1] * sizes[3][2], *config.deep_units)
        for left, right in pairwise(widths):
            deep += [linear(left, right), nn.ReLU(), PassDropout(config.dropout)]
        self.heads.append(nn.Sequential(*deep, linear(widths[-1], config.last_units)))
        self.observables: nn.Module | None = None
        if config.photometry:
            dense = linear(n_observable, config.photometry_units)
            self.observables = nn.Sequential(dense, nn.ReLU())

    def forward(self, flux: Tensor, observables: Tensor) -> list[Tensor]:
        """Return four conditions, (n, n_condition) each."""
        features, found = flux.unsqueeze(1), []
        for level, head in zip(self.levels, self.heads, strict=False):
            features = level(features)
            found.append(head(features))
        found.append(self.heads[-1](features))
        if self.observables is None:
            return found
        seen = self.observables(observables)
        return [torch.cat([one, seen], dim=1) for one in found]


class InvertibleNetwork(nn.Module):
    """A flow between labels and normal deviates, given a spectrum."""

    def __init__(self, config: "Candebat2024", n_pixel: int, n_observable: int, n_label: int):
        super().__init__()
        self.n_label = n_label
        self.conditions = Conditions(config, n_pixel, n_observable)
        more = config.photometry_units if config.photometry else 0
        widths = [*(out for _, out in config.condition_units), config.last_units]
        self.couplings = nn.ModuleList(
            Coupling(n_label, width + more, config.hidden, config.clamp, seed)
            for seed, width in enumerate(widths)
        )

    @property
    def blocks(self) -> list[Coupling]:
        """The couplings, from the labels to the normal deviates."""
        return [block for block in self.couplings if isinstance(block, Coupling)]

    def forward(self, flux: Tensor, observables: Tensor) -> "Flow":
        """Return the flow of labels of each star."""
        return Flow(self, self.conditions(flux, observables))


class Flow:
    """Posteriors of some stars: labels to normal deviates and back."""

    def __init__(self, network: InvertibleNetwork, conditions: list[Tensor]) -> None:
        self._network, self._conditions = network, conditions

    def __len__(self) -> int:
        return len(self._conditions[0])

    def log_density(self, labels: Tensor) -> Tensor:
        """Logarithm (n,) of the posterior density at scaled labels (n, n_label)."""
        values, total = labels, torch.zeros_like(labels[:, 0])
        for coupling, condition in zip(self._network.blocks, self._conditions, strict=True):
            values, grown = coupling(values, condition)
            total = total + grown
        constant = 0.5 * labels.shape[1] * float(np.log(2 * np.pi))
        density: Tensor = total - 0.5 * values.square().sum(dim=1) - constant
        return density

    def samples(self, latent: Tensor) -> Tensor:
        """Scaled labels (n, n_draw, n_label) of normal deviates (n_draw, n_label)."""
        n, n_draw = len(self), len(latent)
        values = latent.repeat(n, 1)
        pairs = zip(reversed(self._network.blocks), reversed(self._conditions), strict=True)
        for coupling, condition in pairs:
            values = coupling.inverse(values, condition.repeat_interleave(n_draw, dim=0))
        return values.reshape(n, n_draw, -1)


@preset
class Candebat2024(NetworkConfig):
    """Conditional invertible network of Candebat et al. (2024, A&A 692, A228): GIRAFFE HR10, HR21.

    Four GLOW blocks between labels and normal deviates, each conditioned on the spectrum at another
    depth of a stack of convolutions. The labels' mean and covariance are those of `draws` draws of
    the posterior; `maury.model.posterior.posterior_samples` gives the draws themselves. Layers,
    conditions, clamp, initial weights of couplings and weight decay are those of the authors' code
    (OssicoNN, built on FrEIA). They say that the other hyperparameters are to be had on demand, so
    that rate, batch and epochs could not be verified. A training star that lacks a label is left
    out of the loss; errors of labels are not used.

    Attributes
    ----------
    filters, kernels, strides : tuple of int
        Of the four convolutions; `pool` pixels are pooled after the first, and in the first head.
    condition_units : tuple of (int, int)
        Dense layers of the conditions of the first three blocks.
    deep_units, last_units : tuple of int, int
        Those of the last block, with `dropout` after each but the last.
    hidden : int
        Hidden units of the couplings.
    clamp : float
        Bound of the logarithm of a scale.
    draws : int
        Draws that give the moments: 512 fix an error to 3 % (1 / sqrt(2 n)).
    """

    name: ClassVar[str] = "candebat2024"
    paper: ClassVar[str] = "Candebat et al. 2024, A&A 692, A228"
    bibtex_key: ClassVar[str] = "2024A&A...692A.228C"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 1e-4,
        "epochs": 200,
        "patience": 20,
        "weight_decay": 1e-5,
    }
    ensemble_defaults: ClassVar[Mapping[str, Any]] = {"percentile": 100.0}
    scaling: ClassVar[ScalingRule] = "standard"

    photometry: bool = False
    filters: tuple[Filters, Filters, Filters, Filters] = (256, 256, 256, 16)
    kernels: tuple[Kernel, Kernel, Kernel, Kernel] = (64, 16, 128, 4)
    strides: tuple[Kernel, Kernel, Kernel, Kernel] = (2, 2, 1, 2)
    pool: Kernel = 4
    condition_units: tuple[tuple[Units, Units], tuple[Units, Units], tuple[Units, Units]] = (
        (256, 256),
        (16, 32),
        (512, 256),
    )
    deep_units: tuple[Units, Units, Units] = (64, 128, 256)
    last_units: Units = 32
    dropout: float = Field(default=0.33, ge=0.0, lt=1.0)
    hidden: Units = 512
    clamp: float = Field(default=1.9, gt=0.0, le=10.0)
    photometry_units: Units = 32
    draws: Annotated[int, Field(ge=2), at_most("units")] = 512

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        if n_label < 2:
            raise ValueError("an invertible network needs two labels at least")
        return InvertibleNetwork(self, n_pixel, n_observable, n_label)

    def loss(self, output: Any, target: Tensor, target_variance: Tensor) -> Tensor:
        """Negative logarithm of the density of the labels, per label, of stars that have all.

        Candebat et al. (2024), section 3; Ardizzone et al. (2019, arXiv:1907.02392, eq. 5).

        Parameters
        ----------
        output : Flow
        target, target_variance : Tensor
            Shape (n, n_label); a star without all labels has no weight.
        """
        del target_variance
        present = torch.isfinite(target).all(dim=1)
        density = output.log_density(torch.where(present[:, None], target, 0.0))
        total = torch.where(present, density, 0.0).sum()
        return -total / (present.sum().clamp(min=1) * target.shape[1])

    def predict(
        self, network: nn.Module, flux: Tensor, ivar: Tensor, observables: Tensor
    ) -> NetworkOutput:
        """Moments of the posterior, see `maury.model.networks.base.NetworkConfig.predict`."""
        del ivar
        assert isinstance(network, InvertibleNetwork), "of this preset"
        half = _latent(self.draws // 2, network.n_label, _LATENT_SEED)
        # In pairs of opposite sign, so that the mean of the deviates is exactly zero.
        latent = torch.cat([half, -half]).to(flux.device)
        samples = network(flux, observables).samples(latent)
        mean = samples.mean(dim=1)
        apart = samples - mean[:, None]
        covariance = apart.transpose(1, 2) @ apart / (samples.shape[1] - 1)
        return NetworkOutput(mean, torch.diagonal(covariance, dim1=1, dim2=2), covariance)


def _latent(n_draw: int, n_label: int, seed: int) -> Tensor:
    # On the processor wherever the network is: a GPU draws other numbers from the same seed.
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n_draw, n_label, generator=generator, dtype=torch.float32)
