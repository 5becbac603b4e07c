"""Networks that turn a spectrum and its observables into scaled labels.

Each preset is one small frozen configuration class that knows how to build its own network and
which loss trains it. `PRESETS` lists them; to add one, subclass `NetworkConfig` and decorate it
with `preset`.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

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
from maury.model.networks.hybrid import Guiglion2024, Nepal2023
from maury.model.networks.invertible import Candebat2024
from maury.model.networks.layers import (
    Centre,
    ChannelsLast,
    Convolution,
    PassDropout,
    TwoBranch,
    gaussian_loss,
    he_normal,
    initialise,
    log_variance_moments,
    positive,
    sequence,
    thinned,
)
from maury.model.networks.pooled import Pooled, narrow
from maury.model.networks.probabilistic import Bialek2020, Leung2019
from maury.model.networks.student import StudentConfig, StudentNetwork

__all__ = [
    "PRESETS",
    "AstroNN",
    "Bialek2020",
    "Candebat2024",
    "DefaultConfig",
    "DefaultNetwork",
    "Guiglion2020",
    "Guiglion2024",
    "Leung2019",
    "Nepal2023",
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
        n_flat = n_channel * positive(n_pixel - len(self.filters) * (self.kernel - 1))
        spectrum = sequence(
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
            photometry = sequence(("dense", dense), ("act", self._activation()))
        head = sequence(
            ("hidden", linear(self.spectrum_units + n_photometry, self.head_units)),
            ("act", self._activation()),
            ("out", linear(self.head_units, n_label)),
        )
        # The default of Keras, named after Glorot there.
        return initialise(TwoBranch(spectrum, photometry, head), nn.init.xavier_uniform_)

    def _activation(self) -> nn.Module:
        return nn.LeakyReLU(self.negative_slope)


@preset
class StarNet(Pooled):
    """StarNet of Fabbro et al. (2018, MNRAS 475, 2978).

    Layers, initial weights and training are those of the authors' notebook: padded convolutions,
    Adam at 7e-4 in batches of 64, at most 30 epochs; the rate is halved, down to 8e-5, where the
    training loss has not gained 9e-4 for two epochs, and training ends where the validation loss
    has not gained 1e-4 for four. Labels have zero mean and unit scatter.
    """

    name: ClassVar[str] = "starnet"
    paper: ClassVar[str] = "Fabbro et al. 2018, MNRAS 475, 2978"
    bibtex_key: ClassVar[str] = "2018MNRAS.475.2978F"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 7e-4,
        "epochs": 30,
        "patience": 4,
        "least_gain": 1e-4,
        "plateau": 2,
        "plateau_of": "training",
        "plateau_gain": 9e-4,
        "least_rate": 8e-5,
    }
    scaling: ClassVar[ScalingRule] = "standard"
    before: ClassVar[Mapping[str, Any]] = {"padding": "valid"}

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        spectrum = sequence(*self.spectrum_layers(n_pixel, 0.0))
        photometry, n_feature = self.observable_layers(n_observable)
        head = sequence(
            ("hidden", linear(n_feature, self.units[1])),
            ("act", nn.ReLU()),
            ("out", linear(self.units[1], n_label)),
        )
        return initialise(TwoBranch(spectrum, photometry, head), he_normal)


@preset
class AstroNN(Pooled):
    """Bayesian network of Leung & Bovy (2019, MNRAS 483, 3255): labels and their variances.

    `mc_passes` thinned networks (dropout masks) are averaged at prediction; their scatter adds to
    the predicted variance. With 0 passes dropout is off at prediction. There are three dropouts,
    as in the authors' code (astroNN, `ApogeeBCNN`): after the first convolution, before the first
    dense layer and after it. `head_dropout` adds one after the second, as networks of earlier
    models have it.
    """

    name: ClassVar[str] = "astronn"
    before: ClassVar[Mapping[str, Any]] = {"head_dropout": True, "padding": "valid"}
    paper: ClassVar[str] = "Leung & Bovy 2019, MNRAS 483, 3255"
    bibtex_key: ClassVar[str] = "2019MNRAS.483.3255L"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 5e-4,
        "epochs": 100,
        "patience": 20,
        "plateau": 2,
        "plateau_gain": 5e-5,
        "least_rate": 1e-8,
        "l2": 5e-9,
    }
    scaling: ClassVar[ScalingRule] = "standard"

    filters: tuple[Filters, Filters] = (2, 4)
    units: tuple[Units, Units] = (192, 96)
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    head_dropout: bool = False
    mc_passes: Annotated[int, Field(ge=0), at_most("passes")] = 100

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        # Among the layers, so that the mean spectrum is saved with the weights.
        spectrum = sequence(
            ("centre", Centre(n_pixel)), *self.spectrum_layers(n_pixel, self.dropout)
        )
        photometry, n_feature = self.observable_layers(n_observable)
        # The authors have no dropout here; a model that was trained with one needs it for its
        # passes.
        last = self.dropout if self.head_dropout else 0.0
        head = sequence(
            ("hidden", linear(n_feature, self.units[1])),
            ("act", nn.ReLU()),
            ("dropout", PassDropout(last)),
            ("out", linear(self.units[1], 2 * n_label)),
        )
        return initialise(TwoBranch(spectrum, photometry, head), narrow)

    def settle(self, network: nn.Module, flux: Tensor) -> None:
        """Centre spectra on the mean training spectrum; around 1 they would starve the ReLUs."""
        for layer in network.modules():
            if isinstance(layer, Centre):
                layer.mean.copy_(flux.mean(dim=0))

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Gaussian negative log-likelihood, zero where the label is missing.

        Leung & Bovy (2019): 0.5 [(y - yhat)^2 / V + log V], V = e^s + sigma_label^2.
        """
        return gaussian_loss(*log_variance_moments(output), target, target_variance)

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and predicted variance, each (n, n_label), in scaled units."""
        return log_variance_moments(output)

    @property
    def n_passes(self) -> int:
        """Number of thinned networks averaged at prediction."""
        return self.mc_passes
