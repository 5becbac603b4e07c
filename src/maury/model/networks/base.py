"""What a network is to the rest of `maury`: its configuration, and its output."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from maury.errors import ConfigError, check_known
from maury.io.config_files import Settings, at_most, validated
from maury.io.own_parts import Parts

ScalingRule = Literal["min-max", "standard", "robust"]
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
    found: list[str] = []
    settings = validated(options, cls, found)
    problems += [f"[{section}] {problem}" for problem in found]
    return settings


Filters = Annotated[int, Field(ge=1), at_most("filters")]
Kernel = Annotated[int, Field(ge=1), at_most("kernel")]
Units = Annotated[int, Field(ge=1), at_most("units")]
Layers = Annotated[int, Field(ge=0), at_most("layers")]
Rank = Annotated[int, Field(ge=0), at_most("rank")]


def linear(n_in: int, n_out: int) -> nn.Linear:
    """Return a dense layer in float32, whatever the default dtype of the user's process is."""
    # A process in float64 would make networks that no file of weights fits.
    return nn.Linear(n_in, n_out, dtype=torch.float32)


PRESETS: Parts[type["NetworkConfig"]] = Parts("maury.networks", {})
"""Every architecture by name, those of installed packages and named modules among them."""


def preset(cls: Config) -> Config:
    """Register a configuration class under its `name`."""
    PRESETS[cls.name] = cls
    return cls


@dataclass(frozen=True)
class NetworkOutput:
    """Output of one network for a batch, in scaled units.

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
        How observables and labels are scaled over the training stars, see
        `maury.model.directory.Affine`.
    simulates : bool
        Whether it is trained on simulated stars, by `maury.training.simulated`; the labelled
        spectra then calibrate the simulation, and the validation stars steer nothing.
    takes_missing : bool
        Whether observables may be NaN; otherwise a star that lacks one gets no prediction.
    needs_spectrum : bool
        Whether a star without a spectrum gets no prediction.
    stacks : bool
        Whether members are computed at once, as one network of stacked weights (`torch.vmap`):
        faster for dense layers, slower for convolutions.
    photometry : bool
        Whether the observables (magnitudes, extinction, ...) enter through a branch of their own.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: ClassVar[str]
    paper: ClassVar[str]
    bibtex_key: ClassVar[str]
    licence: ClassVar[str] = "MIT"
    before: ClassVar[Mapping[str, Any]] = {}
    """Values of settings in models that were written before there was a choice."""
    training_defaults: ClassVar[Mapping[str, Any]]
    preparation_defaults: ClassVar[Mapping[str, Any]] = {}
    ensemble_defaults: ClassVar[Mapping[str, Any]] = {}
    scaling: ClassVar[ScalingRule] = "min-max"
    simulates: ClassVar[bool] = False
    takes_missing: ClassVar[bool] = False
    needs_spectrum: ClassVar[bool] = True
    stacks: ClassVar[bool] = False

    photometry: bool = True

    @abstractmethod
    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Network whose forward takes flux (n, n_pixel) and observables (n, n_observable)."""

    def settle(self, network: nn.Module, flux: Tensor) -> None:
        """Give a fresh network what it takes from the training spectra, flux (n, n_pixel)."""

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Mean squared error over the labels that are present (NaN means missing).

        Parameters
        ----------
        output, target, target_variance : Tensor
            Shapes (n, n_label), scaled units; the variance of each label, 0 where unknown.
        """
        present = torch.isfinite(target)
        residual = torch.where(present, output - target, 0.0)
        # By the labels that are there, not by rows: a batch of half-labelled stars weighs less, not
        # wrong. A batch without any label has loss 0, not NaN.
        return residual.square().sum() / present.sum().clamp(min=1)

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean (n, n_label) and predicted variance, if the network has one, in scaled units."""
        return output, None

    def predict(
        self, network: nn.Module, flux: Tensor, ivar: Tensor, observables: Tensor
    ) -> NetworkOutput:
        """Apply a network that `assemble` made.

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
        return NetworkOutput(mean, variance)

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
    # Torch says which product of matrices failed; the user needs to know which setting to change.
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"the network '{config.name}' does not fit spectra of {n_pixel} pixels ({error}); "
            "use longer spectra or fewer and smaller convolutions"
        ) from error


def draw_normal(values: Tensor, scale: float) -> None:
    """Fill a parameter from a normal distribution, if it has values.

    Asked for the numbers of a parameter without (device ``meta``), torch imports its compiler: a
    second of CPU time (torch 2.13).
    """
    if not values.is_meta:
        nn.init.normal_(values, 0.0, scale)


def network_config_of(network: Mapping[str, Any]) -> NetworkConfig:
    """Return the configuration of a saved model's network: its ``name``, and its settings.

    Raises
    ------
    UnknownName
        If there is no such preset.
    ConfigError
        If a setting is unknown or a value out of range.
    """
    name = str(network["name"])
    options = {key: value for key, value in network.items() if key != "name"}
    cls = PRESETS[check_known("preset", name, PRESETS)]
    return network_config(name, {**cls.before, **options})


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
