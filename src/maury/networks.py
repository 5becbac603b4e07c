"""Networks that turn a spectrum and its observables into scaled labels.

Each preset is one small frozen configuration class that knows how to build its own network and
which loss trains it. `PRESETS` lists them; to add one, subclass `NetworkConfig` and decorate it
with `preset`.
"""

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from maury.errors import ConfigError
from maury.naming import check_known, suggestion

ScalingRule = Literal["min-max", "standard", "robust"]
Settings = TypeVar("Settings", bound=BaseModel)
Config = TypeVar("Config", bound="type[NetworkConfig]")


def parse_settings(
    cls: type[Settings], options: Mapping[str, Any], section: str, problems: list[str]
) -> Settings | None:
    """Validate `options` as `cls`; add everything that is wrong to `problems`, or return them.

    Parameters
    ----------
    cls : type of pydantic model
        The configuration class.
    options : mapping
        Settings as read from TOML or given by keyword.
    section : str
        Section that the messages name.
    problems : list of str
        Appended to, one text per wrong key; the result is then None.
    """
    try:
        return cls.model_validate(dict(options))
    except ValidationError as error:
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                hint = suggestion(key, cls.model_fields)
                known = ", ".join(cls.model_fields)
                problems.append(f"[{section}] has no key {key!r}{hint} (known: {known})")
            else:
                problems.append(f"[{section}] {key}: {item['msg']}, got {item['input']!r}")
        return None


PRESETS: dict[str, type["NetworkConfig"]] = {}
"""Every architecture by name."""


def preset(cls: Config) -> Config:
    """Register a configuration class under its `name`."""
    PRESETS[cls.name] = cls
    return cls


@dataclass(frozen=True)
class Answer:
    """What one network says of a batch, in scaled units.

    Attributes
    ----------
    mean : (n, n_label) tensor
    variance : (n, n_label) tensor or None
        Predicted variance, if the network has one.
    covariance : (n, n_label, n_label) tensor or None
        Predicted covariance; its diagonal is `variance`.
    features : (n, width) tensor or None
        What the last layer sees.
    """

    mean: Tensor
    variance: Tensor | None = None
    covariance: Tensor | None = None
    features: Tensor | None = None


class NetworkConfig(BaseModel, ABC):
    """Settings of one architecture; every field is used, unknown keys are refused.

    Attributes
    ----------
    name, paper, bibtex_key, licence : str
        What the preset is, where it was published and under which terms it may be used.
    training_defaults, preparation_defaults, ensemble_defaults : mapping
        Settings of these sections, as published.
    scaling : {"min-max", "standard", "robust"}
        How observables and labels are scaled over the training stars, see `maury.model.Affine`.
    simulates : bool
        Whether it is trained on simulated stars, by `maury.recipe`; the labelled spectra then
        calibrate the simulation, and the validation stars steer nothing.
    takes_missing : bool
        Whether observables may be NaN; otherwise a star that lacks one is not answered.
    needs_spectrum : bool
        Whether a star without a spectrum is not answered.
    photometry : bool
        Whether the observables (magnitudes, extinction, ...) enter through a branch of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    paper: ClassVar[str]
    bibtex_key: ClassVar[str]
    licence: ClassVar[str] = "MIT"
    training_defaults: ClassVar[Mapping[str, Any]]
    preparation_defaults: ClassVar[Mapping[str, Any]] = {}
    ensemble_defaults: ClassVar[Mapping[str, Any]] = {}
    scaling: ClassVar[ScalingRule] = "min-max"
    simulates: ClassVar[bool] = False
    takes_missing: ClassVar[bool] = False
    needs_spectrum: ClassVar[bool] = True

    photometry: bool = True

    @abstractmethod
    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Network whose forward takes flux (n, n_pixel) and observables (n, n_observable)."""

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Mean squared error over the labels that are present (NaN means missing).

        Parameters
        ----------
        output, target, target_variance : Tensor
            Shapes (n, n_label), scaled units; the variance of each label, 0 where unknown.
        """
        present = torch.isfinite(target)
        residual = torch.where(present, output - target, 0.0)
        return residual.square().sum() / present.sum().clamp(min=1)

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean (n, n_label) and predicted variance, if the network has one, in scaled units."""
        return output, None

    def answer(self, network: nn.Module, flux: Tensor, ivar: Tensor, observables: Tensor) -> Answer:
        """Ask a network that `assemble` made.

        Parameters
        ----------
        network : Module
        flux, ivar : Tensor
            Shapes (n, n_pixel).
        observables : Tensor
            Shape (n, n_observable), scaled.
        """
        del ivar
        mean, variance = self.moments(network(flux, observables))
        return Answer(mean, variance)

    @property
    def n_passes(self) -> int:
        """Number of dropout passes averaged at prediction; 0 means one pass without dropout."""
        return 0


def build(config: NetworkConfig, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
    """Build a network with freshly drawn weights (from torch's global generator).

    Its forward takes flux (n, n_pixel) and scaled observables (n, n_observable), float32, and
    gives (n, n_label) scaled labels; (n, 2 n_label), labels then log variances, for `astronn`.

    Raises
    ------
    ConfigError
        If the photometry branch has nothing to take, or the spectrum is too short.
    """
    if config.photometry and n_observable == 0:
        raise ConfigError(
            f"the network '{config.name}' expects observables in its photometry branch, got none; "
            "add observables to the preparation, or set photometry = false in [network]"
        )
    try:
        return config.assemble(n_pixel, n_observable, n_label)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the network '{config.name}' does not fit spectra of {n_pixel} pixels ({error}); "
            "use longer spectra or fewer and smaller convolutions"
        ) from error


def network_config(name: str, options: Mapping[str, Any] | None = None) -> NetworkConfig:
    """Return the configuration of the preset `name`, with `options` instead of published values.

    Raises
    ------
    UnknownName
        If there is no such preset.
    ConfigError
        If an option is unknown or a value out of range; all of them are listed.
    """
    problems: list[str] = []
    cls = PRESETS[check_known("preset", name, PRESETS)]
    config = parse_settings(cls, options or {}, "network", problems)
    if config is None:
        raise ConfigError("the network is not configured rightly:\n" + "\n".join(problems))
    return config


class Convolution(nn.Conv1d):
    """Valid convolution of (n, channel, pixel), with the channels innermost in memory.

    With few channels this takes half the time of `torch.nn.Conv1d` on a processor; the weights and
    the answer are the same.
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
        generator = torch.Generator().manual_seed(self.mask_seed)
        kept = torch.rand(signal.shape[1:], generator=generator).to(signal.device) >= self.p
        return signal * kept / (1.0 - self.p)


@contextmanager
def thinned(network: nn.Module, seed: int) -> Iterator[None]:
    """Freeze the dropout masks of `network` from `seed` while inside."""
    layers = [layer for layer in network.modules() if isinstance(layer, PassDropout)]
    try:
        for index, layer in enumerate(layers):
            layer.mask_seed = (seed * 1_000_003 + index) % 2**63
        yield
    finally:
        for layer in layers:
            layer.mask_seed = None


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
            nn.init.zeros_(layer.bias)
    return network


def _he_normal(weight: Tensor) -> Tensor:
    return nn.init.kaiming_normal_(weight, nonlinearity="relu")


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

    filters: tuple[int, ...] = Field(default=(8, 4, 2), min_length=1)
    kernel: int = Field(default=10, ge=1)
    negative_slope: float = Field(default=0.3, ge=0.0, lt=1.0)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    spectrum_units: int = Field(default=32, ge=1)
    photometry_units: int = Field(default=27, ge=1)
    head_units: int = Field(default=16, ge=1)

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        layers: list[tuple[str, nn.Module]] = []
        n_channel = 1
        for index, n_filter in enumerate(self.filters, start=1):
            layers += [
                (f"conv{index}", Convolution(n_channel, n_filter, self.kernel)),
                (f"act{index}", self._activation()),
            ]
            n_channel = n_filter
        n_flat = n_channel * _positive(n_pixel - len(self.filters) * (self.kernel - 1))
        spectrum = _sequence(
            *layers,
            ("dropout", PassDropout(self.dropout)),
            ("flatten", ChannelsLast()),
            ("dense", nn.Linear(n_flat, self.spectrum_units)),
            ("act", self._activation()),
        )
        photometry, n_photometry = None, 0
        if self.photometry:
            n_photometry = self.photometry_units
            dense = nn.Linear(n_observable, n_photometry)
            photometry = _sequence(("dense", dense), ("act", self._activation()))
        head = _sequence(
            ("hidden", nn.Linear(self.spectrum_units + n_photometry, self.head_units)),
            ("act", self._activation()),
            ("out", nn.Linear(self.head_units, n_label)),
        )
        return _initialise(TwoBranch(spectrum, photometry, head), nn.init.xavier_uniform_)

    def _activation(self) -> nn.Module:
        return nn.LeakyReLU(self.negative_slope)


class _Pooled(NetworkConfig):
    """Two convolutions, max-pooling and two dense layers; observables join before the second."""

    photometry: bool = False
    kernel: int = Field(default=8, ge=1)
    pool: int = Field(default=4, ge=1)
    photometry_units: int = Field(default=32, ge=1)

    def _branches(
        self, n_pixel: int, n_observable: int, filters: tuple[int, int], units: int, dropout: float
    ) -> tuple[nn.Module, nn.Module | None, int]:
        """Spectrum branch, photometry branch and the number of features that both give."""
        n_flat = filters[1] * _positive((n_pixel - 2 * (self.kernel - 1)) // self.pool)
        spectrum = _sequence(
            ("conv1", Convolution(1, filters[0], self.kernel)),
            ("act1", nn.ReLU()),
            ("dropout1", PassDropout(dropout)),
            ("conv2", Convolution(filters[0], filters[1], self.kernel)),
            ("act2", nn.ReLU()),
            ("pool", nn.MaxPool1d(self.pool)),
            ("dropout2", PassDropout(dropout)),
            ("flatten", nn.Flatten()),
            ("dense", nn.Linear(n_flat, units)),
            ("act", nn.ReLU()),
            ("dropout3", PassDropout(dropout)),
        )
        if not self.photometry:
            return spectrum, None, units
        dense = nn.Linear(n_observable, self.photometry_units)
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

    filters: tuple[int, int] = (4, 16)
    units: tuple[int, int] = (256, 128)

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        spectrum, photometry, n_feature = self._branches(
            n_pixel, n_observable, self.filters, self.units[0], 0.0
        )
        head = _sequence(
            ("hidden", nn.Linear(n_feature, self.units[1])),
            ("act", nn.ReLU()),
            ("out", nn.Linear(self.units[1], n_label)),
        )
        return _initialise(TwoBranch(spectrum, photometry, head), _he_normal)


@preset
class AstroNN(_Pooled):
    """Bayesian network of Leung & Bovy (2019, MNRAS 483, 3255): labels and their variances.

    `mc_passes` thinned networks (dropout masks) are averaged at prediction; their scatter adds to
    the predicted variance. With 0 passes dropout is off at prediction.
    """

    name: ClassVar[str] = "astronn"
    paper: ClassVar[str] = "Leung & Bovy 2019, MNRAS 483, 3255"
    bibtex_key: ClassVar[str] = "2019MNRAS.483.3255L"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 1e-3,
        "epochs": 100,
        "patience": 20,
    }

    filters: tuple[int, int] = (2, 4)
    units: tuple[int, int] = (192, 96)
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    mc_passes: int = Field(default=100, ge=0)

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        spectrum, photometry, n_feature = self._branches(
            n_pixel, n_observable, self.filters, self.units[0], self.dropout
        )
        head = _sequence(
            ("hidden", nn.Linear(n_feature, self.units[1])),
            ("act", nn.ReLU()),
            ("dropout", PassDropout(self.dropout)),
            ("out", nn.Linear(self.units[1], 2 * n_label)),
        )
        return _initialise(TwoBranch(spectrum, photometry, head), _he_normal)

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Gaussian negative log-likelihood, zero where the label is missing.

        Leung & Bovy (2019): 0.5 [(y - yhat)^2 / V + log V], V = e^s + sigma_label^2.
        """
        mean, log_variance = output.chunk(2, dim=1)
        present = torch.isfinite(target)
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
