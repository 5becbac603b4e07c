"""Networks that turn a spectrum and its observables into scaled labels.

Each preset is one small frozen configuration class that knows how to build its own network and
which loss trains it. `PRESETS` lists them; to add one, subclass `NetworkConfig` and decorate it
with `preset`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from maury.io.config_files import at_most
from maury.model.networks.base import (
    PRESETS,
    Filters,
    Kernel,
    NetworkConfig,
    NetworkOutput,
    ScalingRule,
    Units,
    build,
    linear,
    network_config,
    network_config_of,
    parse_settings,
    preset,
)
from maury.model.networks.default import DefaultConfig, DefaultNetwork
from maury.model.networks.student import StudentConfig, StudentNetwork

__all__ = [
    "PRESETS",
    "AstroNN",
    "DefaultConfig",
    "DefaultNetwork",
    "Guiglion2020",
    "NetworkConfig",
    "NetworkOutput",
    "PassDropout",
    "ScalingRule",
    "StarNet",
    "StudentConfig",
    "StudentNetwork",
    "TwoBranch",
    "build",
    "network_config",
    "network_config_of",
    "parse_settings",
    "preset",
    "thinned",
]


class Convolution(nn.Conv1d):
    """Valid convolution of (n, channel, pixel), with the channels innermost in memory.

    With few channels this takes half the time of `torch.nn.Conv1d` on a processor; the weights and
    the output are the same.
    """

    def forward(self, signal: Tensor) -> Tensor:
        """Return (n, out channel, pixel - kernel + 1)."""
        image = signal.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        kernel = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        return functional.conv2d(image, kernel, self.bias).squeeze(2)


class ChannelsLast(nn.Module):
    """Flatten (n, channel, pixel) pixel by pixel, as Keras does."""

    def forward(self, signal: Tensor) -> Tensor:
        """Return (n, pixel x channel)."""
        return signal.transpose(1, 2).flatten(1)


class PassDropout(nn.Dropout):
    """Dropout that can also be frozen into one thinned network.

    With `mask_seed` set, every star sees the same mask, so that a prediction depends neither on
    the size of its batch nor on the stars beside it.
    """

    mask_seed: int | None = None

    def forward(self, signal: Tensor) -> Tensor:
        """Drop features; none in evaluation unless `mask_seed` is set."""
        if self.training or self.mask_seed is None:
            return functional.dropout(signal, self.p, self.training)
        # On the processor wherever the network is: a GPU draws other numbers from the same seed.
        generator = torch.Generator().manual_seed(self.mask_seed)
        drawn = torch.rand(signal.shape[1:], generator=generator, dtype=torch.float32)
        kept = drawn.to(signal.device) >= self.p
        return signal * kept / (1.0 - self.p)


@contextmanager
def thinned(network: nn.Module, seed: int) -> Iterator[None]:
    """Freeze the dropout masks of `network` from `seed` while inside."""
    layers = [layer for layer in network.modules() if isinstance(layer, PassDropout)]
    try:
        for index, layer in enumerate(layers):
            # Layers of one network must not share a mask; torch takes seeds of 64 bits.
            layer.mask_seed = (seed * 1_000_003 + index) % 2**63
        yield
    finally:
        for layer in layers:
            layer.mask_seed = None


class Centre(nn.Module):
    """Spectra less the mean of the training spectra, pixel by pixel."""

    mean: Tensor

    def __init__(self, n_pixel: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(n_pixel, dtype=torch.float32))

    def forward(self, signal: Tensor) -> Tensor:
        """Return the difference, (n, channel, pixel)."""
        return signal - self.mean


class TwoBranch(nn.Module):
    """A spectrum branch and an optional photometry branch, joined in a head."""

    def __init__(self, spectrum: nn.Module, photometry: nn.Module | None, head: nn.Module) -> None:
        super().__init__()
        self.spectrum = spectrum
        self.photometry = photometry
        self.head = head

    def forward(self, flux: Tensor, observables: Tensor) -> Tensor:
        """Return the head's output for flux (n, n_pixel) and observables (n, n_observable)."""
        features = self.spectrum(flux.unsqueeze(1))
        if self.photometry is not None:
            features = torch.cat([features, self.photometry(observables)], dim=1)
        output: Tensor = self.head(features)
        return output


def _sequence(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))


def _initialise(network: nn.Module, weights: Callable[[Tensor], Tensor]) -> nn.Module:
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            weights(layer.weight)
            assert layer.bias is not None
            # As Keras does, in which these networks were published; PyTorch would draw biases.
            nn.init.zeros_(layer.bias)
    return network


def _he_normal(weight: Tensor) -> Tensor:
    # As of `draw_normal`.
    return weight if weight.is_meta else nn.init.kaiming_normal_(weight, nonlinearity="relu")


@preset
class Guiglion2020(NetworkConfig):
    """The RAVE network of Guiglion et al. (2020, A&A 644, A168): three convolutions, one head."""

    name: ClassVar[str] = "guiglion2020"
    paper: ClassVar[str] = "Guiglion et al. 2020, A&A 644, A168"
    bibtex_key: ClassVar[str] = "2020A&A...644A.168G"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "learning_rate": 1e-3,
        "epochs": 1000,
        "patience": 40,
    }

    filters: Annotated[tuple[Filters, ...], Field(min_length=1), at_most("layers")] = (8, 4, 2)
    kernel: Kernel = 10
    negative_slope: float = Field(default=0.3, ge=0.0, lt=1.0)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    spectrum_units: Units = 32
    photometry_units: Units = 27
    head_units: Units = 16

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        layers: list[tuple[str, nn.Module]] = []
        n_channel = 1
        for index, n_filter in enumerate(self.filters, start=1):
            layers += [
                (
                    f"conv{index}",
                    Convolution(n_channel, n_filter, self.kernel, dtype=torch.float32),
                ),
                (f"act{index}", self._activation()),
            ]
            n_channel = n_filter
        n_flat = n_channel * _positive(n_pixel - len(self.filters) * (self.kernel - 1))
        spectrum = _sequence(
            *layers,
            ("dropout", PassDropout(self.dropout)),
            ("flatten", ChannelsLast()),
            ("dense", linear(n_flat, self.spectrum_units)),
            ("act", self._activation()),
        )
        photometry, n_photometry = None, 0
        if self.photometry:
            n_photometry = self.photometry_units
            dense = linear(n_observable, n_photometry)
            photometry = _sequence(("dense", dense), ("act", self._activation()))
        head = _sequence(
            ("hidden", linear(self.spectrum_units + n_photometry, self.head_units)),
            ("act", self._activation()),
            ("out", linear(self.head_units, n_label)),
        )
        # The default of Keras, named after Glorot there.
        return _initialise(TwoBranch(spectrum, photometry, head), nn.init.xavier_uniform_)

    def _activation(self) -> nn.Module:
        return nn.LeakyReLU(self.negative_slope)


class _Pooled(NetworkConfig):
    """Two convolutions, max-pooling and two dense layers; observables join before the second."""

    photometry: bool = False
    kernel: Kernel = 8
    pool: Kernel = 4
    photometry_units: Units = 32

    def _branches(
        self, n_pixel: int, n_observable: int, filters: tuple[int, int], units: int, dropout: float
    ) -> tuple[nn.Module, nn.Module | None, int]:
        """Spectrum branch, photometry branch and the number of features that both give."""
        n_flat = filters[1] * _positive((n_pixel - 2 * (self.kernel - 1)) // self.pool)
        spectrum = _sequence(
            ("conv1", Convolution(1, filters[0], self.kernel, dtype=torch.float32)),
            ("act1", nn.ReLU()),
            ("dropout1", PassDropout(dropout)),
            ("conv2", Convolution(filters[0], filters[1], self.kernel, dtype=torch.float32)),
            ("act2", nn.ReLU()),
            ("pool", nn.MaxPool1d(self.pool)),
            ("dropout2", PassDropout(dropout)),
            ("flatten", nn.Flatten()),
            ("dense", linear(n_flat, units)),
            ("act", nn.ReLU()),
            ("dropout3", PassDropout(dropout)),
        )
        if not self.photometry:
            return spectrum, None, units
        dense = linear(n_observable, self.photometry_units)
        photometry = _sequence(("dense", dense), ("act", nn.ReLU()))
        return spectrum, photometry, units + self.photometry_units


@preset
class StarNet(_Pooled):
    """StarNet of Fabbro et al. (2018, MNRAS 475, 2978), with valid convolutions."""

    name: ClassVar[str] = "starnet"
    paper: ClassVar[str] = "Fabbro et al. 2018, MNRAS 475, 2978"
    bibtex_key: ClassVar[str] = "2018MNRAS.475.2978F"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 7e-4,
        "epochs": 100,
        "patience": 10,
    }

    filters: tuple[Filters, Filters] = (4, 16)
    units: tuple[Units, Units] = (256, 128)

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        spectrum, photometry, n_feature = self._branches(
            n_pixel, n_observable, self.filters, self.units[0], 0.0
        )
        head = _sequence(
            ("hidden", linear(n_feature, self.units[1])),
            ("act", nn.ReLU()),
            ("out", linear(self.units[1], n_label)),
        )
        return _initialise(TwoBranch(spectrum, photometry, head), _he_normal)


@preset
class AstroNN(_Pooled):
    """Bayesian network of Leung & Bovy (2019, MNRAS 483, 3255): labels and their variances.

    `mc_passes` thinned networks (dropout masks) are averaged at prediction; their scatter adds to
    the predicted variance. With 0 passes dropout is off at prediction. There are three dropouts,
    as in the authors' code (astroNN, `ApogeeBCNN`): after the first convolution, before the first
    dense layer and after it. `head_dropout` adds one after the second, as networks of earlier
    models have it.
    """

    name: ClassVar[str] = "astronn"
    before: ClassVar[Mapping[str, Any]] = {"head_dropout": True}
    paper: ClassVar[str] = "Leung & Bovy 2019, MNRAS 483, 3255"
    bibtex_key: ClassVar[str] = "2019MNRAS.483.3255L"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 5e-4,
        "epochs": 100,
        "patience": 20,
    }

    filters: tuple[Filters, Filters] = (2, 4)
    units: tuple[Units, Units] = (192, 96)
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    head_dropout: bool = False
    mc_passes: Annotated[int, Field(ge=0), at_most("passes")] = 100

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        spectrum, photometry, n_feature = self._branches(
            n_pixel, n_observable, self.filters, self.units[0], self.dropout
        )
        # Among the layers, so that the mean spectrum is saved with the weights.
        spectrum = _sequence(("centre", Centre(n_pixel)), *spectrum.named_children())
        # The authors have no dropout here; a model that was trained with one needs it for its
        # passes.
        last = self.dropout if self.head_dropout else 0.0
        head = _sequence(
            ("hidden", linear(n_feature, self.units[1])),
            ("act", nn.ReLU()),
            ("dropout", PassDropout(last)),
            ("out", linear(self.units[1], 2 * n_label)),
        )
        return _initialise(TwoBranch(spectrum, photometry, head), _he_normal)

    def settle(self, network: nn.Module, flux: Tensor) -> None:
        """Centre spectra on the mean training spectrum; around 1 they would starve the ReLUs."""
        for layer in network.modules():
            if isinstance(layer, Centre):
                layer.mean.copy_(flux.mean(dim=0))

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Gaussian negative log-likelihood, zero where the label is missing.

        Leung & Bovy (2019): 0.5 [(y - yhat)^2 / V + log V], V = e^s + sigma_label^2.
        """
        mean, log_variance = output.chunk(2, dim=1)
        present = torch.isfinite(target)
        # exp(20) is far beyond any scaled label; without a bound an early step may overflow to NaN.
        variance = log_variance.clamp(-20.0, 20.0).exp() + target_variance
        residual = torch.where(present, mean - target, 0.0)
        terms = 0.5 * (residual.square() / variance + variance.log())
        return torch.where(present, terms, 0.0).sum() / present.sum().clamp(min=1)

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and predicted variance, each (n, n_label), in scaled units."""
        mean, log_variance = output.chunk(2, dim=1)
        return mean, log_variance.clamp(-20.0, 20.0).exp()

    @property
    def n_passes(self) -> int:
        """Number of thinned networks averaged at prediction."""
        return self.mc_passes


def _positive(size: int) -> int:
    if size < 1:
        raise ValueError("no pixel is left after the convolutions")
    return size
