"""One network for several surveys: an input stage for each spectrograph, and one body.

A survey's stage, all that takes its pixels, adds to the features that enter the body what its
spectrum tells more than no spectrum would:

    features = bias + sum_s [stage_s(flux_s, ivar_s) - stage_s(nothing)] + observables.

So a survey that did not see a star adds nothing, whichever surveys there are, and one that joins
later leaves the answers to the others as they were. With one survey it is a network of the preset
``maury``, into which `JointNetwork.alone` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from maury.errors import ModelFileError
from maury.io.arrays import Float32Array, Int64Array
from maury.model.networks.default import DefaultConfig, DefaultNetwork, LabelPosterior
from maury.model.networks.published import build

__all__ = ["SHARED", "JointNetwork", "output_rows"]

SHARED = ("observables", "body", "norm", "out")
"""Parts of a network of the preset ``maury`` that all surveys have in common."""


class JointNetwork(nn.Module):
    """Spectra of any of several surveys, and observables, to a posterior of all their labels.

    Parameters
    ----------
    config : DefaultConfig
    n_pixel : mapping of str to int
        Pixels of each survey.
    n_observable, n_label : int
    """

    def __init__(
        self, config: DefaultConfig, n_pixel: Mapping[str, int], n_observable: int, n_label: int
    ) -> None:
        super().__init__()
        self.names = tuple(n_pixel)
        self.stages = nn.ModuleDict()
        self.bias = nn.Parameter(torch.zeros(config.width, dtype=torch.float32))
        for name, n in n_pixel.items():
            network = build(config, n, n_observable, n_label)
            assert isinstance(network, DefaultNetwork), "the preset maury"
            if self.stages:
                # One body: the same modules, not equal ones.
                for part in SHARED:
                    setattr(network, part, getattr(self.first, part))
            self.stages[name] = network

    @property
    def first(self) -> DefaultNetwork:
        """Network of the first survey, whose body is that of all."""
        return self.stage(self.names[0])

    def stage(self, name: str) -> DefaultNetwork:
        """Network of one survey."""
        network = self.stages[name]
        assert isinstance(network, DefaultNetwork), "the preset maury"
        return network

    def forward(
        self, spectra: Mapping[str, tuple[Tensor, Tensor]], observables: Tensor
    ) -> LabelPosterior:
        """Return the posterior of scaled labels.

        Parameters
        ----------
        spectra : mapping of str to (flux, ivar)
            Of the surveys that saw these stars, each (n, n_pixel); ivar 0 marks a bad pixel.
        observables : (n, n_observable) tensor
            Scaled, NaN where missing.
        """
        features: Tensor = self.bias
        for name, (flux, ivar) in spectra.items():
            features = features + self.told(name, flux, ivar)
        return self.first.posterior(
            self.first.join_observables(features.expand(len(observables), -1), observables)
        )

    def told(self, name: str, flux: Tensor, ivar: Tensor) -> Tensor:
        """Return what spectra of a survey tell more than none would, (n, width)."""
        stage = self.stage(name)
        nothing = torch.zeros((1, flux.shape[1]), dtype=flux.dtype, device=flux.device)
        return stage.of_spectrum(flux, ivar) - stage.of_spectrum(nothing, nothing)

    def take_all(self, weights: Mapping[str, Tensor]) -> Self:
        """Take up all weights, shared ones standing `once`, and return itself.

        Raises
        ------
        ModelFileError
            If they do not fit.
        """
        try:
            found = self.load_state_dict(dict(weights), strict=False)
        except RuntimeError as error:
            raise ModelFileError(f"the weights of a joint network do not fit: {error}") from error
        wanted = once(self.state_dict(), self.names[0])
        if found.unexpected_keys or set(wanted) - set(weights):
            raise ModelFileError("these are weights of another joint network")
        return self

    @torch.no_grad()
    def alone(self, name: str, rows: Int64Array) -> dict[str, Tensor]:
        """Return the weights of a network of the preset ``maury`` for one survey.

        Parameters
        ----------
        name : str
        rows : (n,) int64
            Rows of the output for the survey's own labels (`output_rows`).
        """
        stage = self.stage(name)
        weights = {key: value.detach().clone() for key, value in stage.state_dict().items()}
        nothing = torch.zeros((1, len(stage.flux_centre)), dtype=torch.float32)
        constant = self.bias - stage.of_spectrum(nothing, nothing)[0]
        weights["quality.bias"] = weights["quality.bias"] + constant
        index = torch.from_numpy(rows)
        weights |= {key: weights[key][index] for key in ("out.weight", "out.bias")}
        return weights

    @torch.no_grad()
    def take_up(self, name: str, weights: Mapping[str, Float32Array]) -> None:
        """Take up the stage of a survey from what `alone` gave; shared parts stay as they are.

        Raises
        ------
        ModelFileError
            If they do not fit.
        """
        stage = self.stage(name)
        own = {k: torch.from_numpy(v.copy()) for k, v in weights.items() if not is_shared(k)}
        expected = {key for key in stage.state_dict() if not is_shared(key)}
        if set(own) != expected:
            raise ModelFileError(f"the stage of {name!r} has other weights than a joint network")
        try:
            stage.load_state_dict(own, strict=False)
        except RuntimeError as error:
            raise ModelFileError(f"the stage of {name!r} does not fit: {error}") from error

    @classmethod
    def assemble(
        cls,
        config: DefaultConfig,
        alone: Mapping[str, Mapping[str, Float32Array]],
        shared: Mapping[str, Float32Array],
        *,
        n_observable: int,
        n_label: int,
    ) -> Self:
        """Put a network together again from those of single surveys and what they share.

        Parameters
        ----------
        config : DefaultConfig
        alone : mapping of str to mapping of str to float32 array
            Weights of each survey's own network.
        shared : mapping of str to float32 array
            ``bias``, and the weights of the parts in `SHARED`.
        n_observable, n_label : int

        Raises
        ------
        ModelFileError
            If something is missing or has another shape.
        """
        try:
            n_pixel = {name: len(weights["flux_centre"]) for name, weights in alone.items()}
            found = cls(config, n_pixel, n_observable, n_label)
            common = {k: torch.from_numpy(v.copy()) for k, v in shared.items()}
            found.bias.data.copy_(common.pop("bias"))
            missing = found.first.load_state_dict(common, strict=False)
            if missing.unexpected_keys or any(map(is_shared, missing.missing_keys)):
                raise KeyError(*(missing.unexpected_keys or missing.missing_keys))
        except (KeyError, RuntimeError) as error:
            raise ModelFileError(
                f"the shared weights of a joint model do not fit: {error}"
            ) from error
        for name, weights in alone.items():
            found.take_up(name, weights)
        return found.eval()

    def shared_weights(self) -> dict[str, Tensor]:
        """Weights that all surveys have in common, with ``bias``."""
        state = self.first.state_dict()
        common = {key: value.detach().clone() for key, value in state.items() if is_shared(key)}
        return {"bias": self.bias.detach().clone(), **common}


def once(weights: Mapping[str, Tensor], first: str) -> dict[str, Tensor]:
    """Leave out of the weights of a `JointNetwork` what stands under its first survey as well."""

    def repeated(name: str) -> bool:
        survey, _, key = name.removeprefix("stages.").partition(".")
        return name.startswith("stages.") and survey != first and is_shared(key)

    return {name: value for name, value in weights.items() if not repeated(name)}


def is_shared(key: str) -> bool:
    """Whether a weight belongs to what all surveys have in common."""
    return key.partition(".")[0] in SHARED


def output_rows(labels: Sequence[str], own: Sequence[str], rank: int) -> Int64Array:
    """Rows of the last layer for all `labels` that give those of a survey's `own` labels.

    They are means, variances and, label by label, the `rank` columns of the factor
    (`DefaultNetwork.split_output`).
    """
    place = np.array([list(labels).index(name) for name in own], dtype=np.int64)
    n = len(labels)
    factor = 2 * n + (place[:, None] * rank + np.arange(rank)).reshape(-1)
    return np.concatenate([place, n + place, factor])
