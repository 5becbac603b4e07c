"""The student network: small and cheap, trained on the predictions of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from maury.io.config_files import at_most
from maury.model.networks.base import (
    Layers,
    NetworkConfig,
    NetworkOutput,
    Rank,
    ScalingRule,
    Units,
    draw_normal,
    linear,
    preset,
)
from maury.model.networks.default import (
    LARGEST_DEVIATION,
    N_QUALITY,
    NOISY_PIXEL,
    OBSERVABLE_KNEE,
    DefaultConfig,
    LabelPosterior,
    noise_quality,
)

# Not in the files of models: another number would change what old students answer.
_SAMPLED_PIXELS = 32
"""Pixels whose median gives the noise: over all it would cost more than the network; chosen."""
_LARGEST_LOG_SIGMA = 8.0
"""Bound of the logarithm of a scaled error, far outside any, so that exp stays finite."""


@preset
class StudentConfig(NetworkConfig):
    """Few projections of the spectrum and narrow layers, with errors and a covariance.

    `maury.training.distillation` trains it on the calibrated predictions of an ensemble.
    Inputs and outputs are those of the preset ``maury``.

    Attributes
    ----------
    stem : int
        Projections of the spectrum.
    width, depth : int
        Features, and residual layers after the join.
    rank : int
        Of the low-rank part of the correlations.
    blocks : int
        Stretches of the spectrum whose share of lost pixels is an input; 0 in students of before.
    """

    name: ClassVar[str] = "student"
    paper: ClassVar[str] = DefaultConfig.paper
    bibtex_key: ClassVar[str] = DefaultConfig.bibtex_key
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    preparation_defaults: ClassVar[Mapping[str, Any]] = DefaultConfig.preparation_defaults
    ensemble_defaults: ClassVar[Mapping[str, Any]] = DefaultConfig.ensemble_defaults
    scaling: ClassVar[ScalingRule] = DefaultConfig.scaling
    simulates: ClassVar[bool] = True
    before: ClassVar[Mapping[str, Any]] = {"blocks": 0}
    takes_missing: ClassVar[bool] = True
    needs_spectrum: ClassVar[bool] = False
    stacks: ClassVar[bool] = True

    stem: Units = 48
    width: Units = 128
    depth: Layers = 2
    rank: Rank = Field(default=4, ge=1)
    blocks: Annotated[int, Field(ge=0), at_most("units")] = 24

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> StudentNetwork:
        """Build the network, see `base.build`; its flux scale is still 0 and 1."""
        return StudentNetwork(self, n_pixel, n_observable, n_label)

    def predict(
        self, network: nn.Module, flux: Tensor, ivar: Tensor, observables: Tensor
    ) -> NetworkOutput:
        """Apply a network, see `maury.model.networks.base.NetworkConfig.predict`."""
        posterior: LabelPosterior = network(flux, ivar, observables)
        covariance = posterior.covariance()
        variance = torch.diagonal(covariance, dim1=1, dim2=2)
        return NetworkOutput(posterior.mean, variance, covariance)


class StudentNetwork(nn.Module):
    """Spectrum and observables to a `maury.model.networks.default.LabelPosterior`.

    As the default network, it takes any part of its inputs: a pixel with ivar 0, a spectrum
    without a good pixel, and an observable that is NaN carry nothing. What it measures of the
    noise comes from every n-th pixel, as a median over all of them would cost more than the rest.

    Parameters
    ----------
    config : StudentConfig
    n_pixel, n_observable, n_label : int
    """

    flux_centre: Tensor
    flux_scale: Tensor

    def __init__(
        self, config: StudentConfig, n_pixel: int, n_observable: int, n_label: int
    ) -> None:
        super().__init__()
        self.n_label, self.n_observable, self.rank = n_label, n_observable, config.rank
        self.n_block = config.blocks
        self.stride = max(1, n_pixel // _SAMPLED_PIXELS)
        self.register_buffer("flux_centre", torch.zeros(n_pixel, dtype=torch.float32))
        self.register_buffer("flux_scale", torch.ones(n_pixel, dtype=torch.float32))
        n_other = N_QUALITY + 2 * n_observable + config.blocks
        self.project = linear(n_pixel, config.stem)
        self.join = linear(2 * config.stem + n_other, config.width)
        self.body = nn.ModuleList(linear(config.width, config.width) for _ in range(config.depth))
        self.out = linear(config.width, n_label * (2 + config.rank))
        draw_normal(self.out.weight, 0.02)
        draw_normal(self.out.bias, 0.02)

    def forward(self, flux: Tensor, ivar: Tensor, observables: Tensor) -> LabelPosterior:
        """Return the posterior of scaled labels; arguments as of the default network."""
        return posterior(*self.outputs(*self.network_inputs(flux, ivar, observables)))

    def network_inputs(
        self, flux: Tensor, ivar: Tensor, observables: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scaled pixels (n, n_pixel), and all other inputs (n, n_other); nothing is learnt here.

        Parameters
        ----------
        flux, ivar : Tensor
            Shapes (n, n_pixel); ivar 0 marks a bad pixel.
        observables : Tensor
            Shape (n, n_observable), scaled, NaN where missing.
        """
        typical, present = self.noise(ivar)
        # One division a star instead of one a pixel.
        pixel_weight = (ivar * (1.0 / (NOISY_PIXEL * typical))).clamp_(max=1.0)
        other = [self.others(typical, present, observables)]
        if self.n_block:
            other.append(1.0 - functional.adaptive_avg_pool1d(pixel_weight, self.n_block))
        per_scale = 1.0 / self.flux_scale
        pixels = torch.addcmul(-self.flux_centre * per_scale, flux, per_scale)
        # Only a row without a spectrum can hold NaN, and its pixel_weight is 0.
        pixels = (
            pixels.nan_to_num_().clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION).mul_(pixel_weight)
        )
        return pixels, torch.cat(other, dim=1)

    def noise(self, ivar: Tensor) -> tuple[Tensor, Tensor]:
        """Typical inverse variance of good pixels (n, 1), and whether there is any."""
        some = ivar[:, :: self.stride]
        typical = torch.where(some > 0, some, torch.nan).nanmedian(dim=1, keepdim=True).values
        # All pixels that were looked at may be bad in a spectrum that has good ones.
        typical = torch.where(typical > 0, typical, ivar.amax(dim=1, keepdim=True))
        present = typical > 0
        return torch.where(present, typical, 1.0), present

    def others(self, typical: Tensor, present: Tensor, observables: Tensor) -> Tensor:
        """Quality of the spectrum, observables and their presence bits."""
        quality = noise_quality(typical, present)
        present = torch.isfinite(observables)
        scaled = torch.where(present, observables, 0.0) / OBSERVABLE_KNEE
        size = scaled.abs()
        # asinh, in functions that are vectorised.
        bent = torch.copysign((size + (size.square() + 1.0).sqrt()).log(), scaled)
        return torch.cat([quality, OBSERVABLE_KNEE * bent, present.to(bent)], dim=1)

    def outputs(self, pixels: Tensor, other: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return scaled means and errors (n, n_label), and a factor (n, n_label, rank).

        The correlation of two labels is the product of their rows of the factor.
        """
        projected = self.project(pixels)
        features = self.join(torch.cat([projected, functional.silu(projected), other], dim=1))
        for layer in self.body:
            features = features + layer(functional.silu(features))
        return self.split_output(self.out(functional.silu(features)))

    def split_output(self, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split the output of the last layer (n, n_out) into means, errors and factor."""
        sizes = [self.n_label, self.n_label, self.n_label * self.rank]
        mean, log_sigma, raw = torch.split(output, sizes, dim=1)
        bound = _LARGEST_LOG_SIGMA
        # Smooth, for a clamp has no gradient beyond; -1 starts the errors at a third of a label's
        # scatter.
        sigma = (bound * torch.tanh((log_sigma - 1.0) / bound)).exp()
        raw = raw.reshape(-1, self.n_label, self.rank)
        # Rows shorter than one: what a label has on its own, 1 - |row|^2, stays positive.
        factor = raw / (1.01 + raw.square().sum(dim=2, keepdim=True)).sqrt()
        return mean, sigma, factor


def posterior(mean: Tensor, sigma: Tensor, factor: Tensor) -> LabelPosterior:
    """Return as a posterior what `StudentNetwork.outputs` gave."""
    own = (1.0 - factor.square().sum(dim=2)) * sigma.square()
    return LabelPosterior(mean, own, factor * sigma.unsqueeze(2))
