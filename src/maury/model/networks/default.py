"""The default network: spectrum and observables, any of which may be missing, to a posterior."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from maury.io.arrays import Float32Array, Int64Array
from maury.io.config_files import at_most
from maury.labels.columns import BANDS
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

# The numbers below are not in the files of models: another one would change what models answer that
# were trained with it.
_LEAST_VARIANCE = 1e-4
"""Least variance of a scaled label: a predicted error of zero would end the likelihood."""
LARGEST_DEVIATION = 8.0
"""Pixels are cut off at this many scales, so that a cosmic ray does not rule; chosen."""
OBSERVABLE_KNEE = 3.0
"""Scaled observables beyond this grow by their logarithm only; chosen."""
NOISY_PIXEL = 0.25
"""Pixels of less than this share of the typical inverse variance are scaled down; chosen."""
_TYPICAL_SNR = 55.0
"""Unit of the S/N that the network takes, so that it is near 1 for RAVE-like spectra; chosen."""
_NEIGHBOURS = (1.0, 0.35, 0.1)
"""Weights of the pixels one, two, three beside a bad one that tell it, at the sampling of RAVE,
whose lines are three pixels wide; chosen."""
_NOT_KNOWN = 0.3
"""Weight of the mean spectrum beside theirs: without good neighbours it is all there is; chosen."""
N_QUALITY = 3
"""Columns of `noise_quality`: two measures of the noise, and whether there is any."""


@preset
class DefaultConfig(NetworkConfig):
    """Projections of the spectrum joined with observables in residual blocks, with a covariance.

    It is trained on simulated stars alone (`maury.training.simulated`), and predicts from whatever
    is there: spectrum, photometry, or both.

    Attributes
    ----------
    stem : int
        Projections of the spectrum.
    width, depth : int
        Features, and residual blocks after the join.
    rank : int
        Of the low-rank part of the label covariance.
    blocks : int
        Stretches of the spectrum whose share of good pixels is an input; 0 leaves that out, and
        the filling of lone bad pixels, as in models of before.
    """

    name: ClassVar[str] = "maury"
    paper: ClassVar[str] = "maury (CITATION.cff)"
    bibtex_key: ClassVar[str] = "maury"
    training_defaults: ClassVar[Mapping[str, Any]] = {}
    preparation_defaults: ClassVar[Mapping[str, Any]] = {
        "steps": [{"step": "noise"}],
        "observables": [
            # Colours follow from magnitudes, yet are given: the parallax error cancels in them, and
            # they stay where the parallax is missing.
            {"observable": "absolute_magnitudes"},
            {
                "observable": "colours",
                "pairs": [list(pair) for pair in combinations([b.name for b in BANDS], 2)],
            },
            {"observable": "a_v"},
            {"observable": "errors"},
        ],
    }
    # All members: choosing by the validation stars would spend them, and they are to calibrate
    # errors.
    ensemble_defaults: ClassVar[Mapping[str, Any]] = {"percentile": 100.0}
    before: ClassVar[Mapping[str, Any]] = {"blocks": 0}
    scaling: ClassVar[ScalingRule] = "robust"
    simulates: ClassVar[bool] = True
    takes_missing: ClassVar[bool] = True
    needs_spectrum: ClassVar[bool] = False
    stacks: ClassVar[bool] = True

    stem: Units = 192
    width: Units = 256
    depth: Layers = 2
    rank: Rank = 3
    blocks: Annotated[int, Field(ge=0), at_most("units")] = 48

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> DefaultNetwork:
        """Build the network, see `base.build`; its flux scale is still 0 and 1."""
        return DefaultNetwork(self, n_pixel, n_observable, n_label)

    def predict(
        self, network: nn.Module, flux: Tensor, ivar: Tensor, observables: Tensor
    ) -> NetworkOutput:
        """Apply a network, see `maury.model.networks.base.NetworkConfig.predict`."""
        assert isinstance(network, DefaultNetwork)
        features = network.embed(flux, ivar, observables)
        posterior = network.posterior(features)
        covariance = posterior.covariance()
        variance = torch.diagonal(covariance, dim1=1, dim2=2)
        return NetworkOutput(posterior.mean, variance, covariance, features)


@dataclass(frozen=True)
class LabelPosterior:
    """Gaussian over scaled labels: covariance = diag(variance) + factor factor^T.

    Attributes
    ----------
    mean, variance : (n, n_label) tensor
    factor : (n, n_label, rank) tensor
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor

    def covariance(self) -> Tensor:
        """Covariance (n, n_label, n_label)."""
        return torch.diag_embed(self.variance) + self.factor @ self.factor.transpose(1, 2)

    def negative_log_likelihood(self, target: Tensor, target_variance: Tensor) -> Tensor:
        """Mean over stars, over the labels that are present (NaN means missing), less constants.

        By the matrix determinant lemma and the Woodbury identity, at the cost of a Cholesky
        decomposition of rank x rank.

        Parameters
        ----------
        target, target_variance : Tensor
            Shapes (n, n_label); scaled labels and the variance of their errors.
        """
        present = torch.isfinite(target)
        # Residual 0, variance 1 and factor 0 make a missing label a factor of one in the
        # likelihood.
        residual = torch.where(present, target - self.mean, 0.0)
        variance = torch.where(present, self.variance + target_variance, 1.0)
        factor = self.factor * present.unsqueeze(-1)
        weighted = factor / variance.unsqueeze(-1)
        identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
        # The identity is added, so that it is positive definite whatever the network says.
        root = torch.linalg.cholesky(identity + factor.transpose(1, 2) @ weighted)
        pull = weighted.transpose(1, 2) @ residual.unsqueeze(-1)
        explained = torch.linalg.solve_triangular(root, pull, upper=False).square().sum((1, 2))
        distance = (residual.square() / variance).sum(dim=1) - explained
        log_determinant = variance.log().sum(dim=1)
        log_determinant = log_determinant + 2.0 * torch.diagonal(root, dim1=1, dim2=2).log().sum(1)
        loss: Tensor = 0.5 * (distance + log_determinant).mean()
        return loss


class ResidualBlock(nn.Module):
    """x + W2 silu(W1 norm(x)), starting as the identity."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, dtype=torch.float32)
        self.inner = linear(width, width)
        self.outer = linear(width, width)
        nn.init.zeros_(self.outer.weight)

    def forward(self, features: Tensor) -> Tensor:
        """Return (n, width)."""
        step: Tensor = self.outer(functional.silu(self.inner(self.norm(features))))
        return features + step


class DefaultNetwork(nn.Module):
    """Spectrum and observables to a `LabelPosterior`.

    The scale of the flux is a buffer, so that the weights file is complete. A pixel with ivar 0
    carries nothing; one far noisier than the others is scaled down. A spectrum without a good
    pixel, or an observable that is NaN, is replaced by a presence bit.

    Parameters
    ----------
    config : DefaultConfig
    n_pixel, n_observable, n_label : int
    """

    flux_centre: Tensor
    flux_scale: Tensor

    def __init__(
        self, config: DefaultConfig, n_pixel: int, n_observable: int, n_label: int
    ) -> None:
        super().__init__()
        self.n_label = n_label
        self.rank = config.rank
        width = config.width
        self.register_buffer("flux_centre", torch.zeros(n_pixel, dtype=torch.float32))
        self.register_buffer("flux_scale", torch.ones(n_pixel, dtype=torch.float32))
        self.project = linear(n_pixel, config.stem)
        self.join = linear(config.stem, width)
        self.bend = linear(config.stem, width)
        self.quality = linear(N_QUALITY, width)
        self.n_block = config.blocks
        if config.blocks:
            self.presence = linear(config.blocks, width)
            # Where pixels are missing, what the others say counts for more or less.
            self.gate = linear(config.blocks, config.stem)
            nn.init.zeros_(self.gate.weight)
            nn.init.zeros_(self.gate.bias)
        self.observables: nn.Linear | None = None
        if n_observable:
            self.observables = linear(2 * n_observable, width)
        self.body = nn.Sequential(*(ResidualBlock(width) for _ in range(config.depth)))
        self.norm = nn.LayerNorm(width, dtype=torch.float32)
        self.out = linear(width, n_label * (2 + config.rank))
        nn.init.zeros_(self.out.weight)
        # Not zero: the gradient of F F^T vanishes at F = 0, and correlations would never be learnt.
        draw_normal(self.out.bias, 0.02)

    def embed(self, flux: Tensor, ivar: Tensor, observables: Tensor) -> Tensor:
        """Features (n, width) before the last layer; arguments as of `forward`."""
        return self.join_observables(self.of_spectrum(flux, ivar), observables)

    def of_spectrum(self, flux: Tensor, ivar: Tensor) -> Tensor:
        """Return what a spectrum adds to the features (n, width) that enter the blocks."""
        pixels, quality, presence = self._spectrum(flux, ivar)
        projected = self.project(pixels)
        if self.n_block:
            projected = projected * (1.0 + self.gate(presence))
        # The straight way spares a label that is linear in the flux the bend.
        features: Tensor = self.join(projected) + self.bend(functional.silu(projected))
        features = features + self.quality(quality)
        if self.n_block:
            features = features + self.presence(presence)
        return features

    def join_observables(self, features: Tensor, observables: Tensor) -> Tensor:
        """Features (n, width) before the last layer, from those of spectra and the observables."""
        if self.observables is not None:
            features = features + self.observables(with_presence(observables))
        embedded: Tensor = functional.silu(self.norm(self.body(features)))
        return embedded

    def posterior(self, features: Tensor) -> LabelPosterior:
        """Posterior of scaled labels, from what `embed` gave."""
        return self.split_output(self.out(features))

    def split_output(self, output: Tensor) -> LabelPosterior:
        """Posterior of scaled labels, from what the last layer gave."""
        sizes = [self.n_label, self.n_label, self.n_label * self.rank]
        mean, raw, factor = torch.split(output, sizes, dim=1)
        # softplus(-2) = 0.13: training starts with errors of a third of a label's scatter.
        variance = _LEAST_VARIANCE + functional.softplus(raw - 2.0)
        factor = 0.3 * factor.reshape(len(output), self.n_label, self.rank)
        return LabelPosterior(mean, variance, factor)

    def forward(self, flux: Tensor, ivar: Tensor, observables: Tensor) -> LabelPosterior:
        """Return the posterior of scaled labels.

        Parameters
        ----------
        flux, ivar : Tensor
            Shapes (n, n_pixel); ivar 0 marks a bad pixel.
        observables : Tensor
            Shape (n, n_observable), scaled, NaN where missing.
        """
        return self.posterior(self.embed(flux, ivar, observables))

    def _spectrum(self, flux: Tensor, ivar: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled pixels, quality, and what share of each block is lost, 0 for a whole one."""
        typical, present = lower_median(ivar)
        # What holds for all members of an ensemble first: they are then computed once.
        pixel_weight = (ivar / (NOISY_PIXEL * typical)).clamp(max=1.0)
        lost = 1.0 - functional.adaptive_avg_pool1d(pixel_weight, max(self.n_block, 1))
        flux = torch.where(ivar > 0, flux, 0.0)
        per_scale = 1.0 / self.flux_scale
        deviation = torch.addcmul(-self.flux_centre * per_scale, flux, per_scale)
        pixels = deviation.clamp(-LARGEST_DEVIATION, LARGEST_DEVIATION) * pixel_weight
        # Nothing is added to a whole spectrum, so that one without gaps may skip it.
        if self.n_block and bool((pixel_weight < 1.0).any()):
            pixels = pixels + _from_neighbours(pixels, pixel_weight)
        return pixels, noise_quality(typical, present), lost


def _from_neighbours(pixels: Tensor, pixel_weight: Tensor) -> Tensor:
    """Return what the neighbours tell of pixels of less weight, within the line spread."""
    reach, n_pixel = len(_NEIGHBOURS), pixels.shape[1]
    weight, told = torch.full_like(pixel_weight, _NOT_KNOWN), torch.zeros_like(pixels)
    padded, there = (functional.pad(x, (reach, reach)) for x in (pixels, pixel_weight))
    for distance, share in enumerate(_NEIGHBOURS, start=1):
        for first in (reach - distance, reach + distance):
            told = told + share * padded[:, first : first + n_pixel]
            weight = weight + share * there[:, first : first + n_pixel]
    return (1.0 - pixel_weight) / weight * told


def lower_median(ivar: Tensor) -> tuple[Tensor, Tensor]:
    """Lower median (n, 1) of what is above 0 in each row (1 if nothing is), and if anything is."""
    good = ivar > 0
    n_good = good.sum(dim=1, keepdim=True)
    if ivar.is_cuda:
        typical = torch.where(good, ivar, torch.nan).nanmedian(dim=1, keepdim=True).values
    else:
        typical = torch.from_numpy(_partitioned(ivar.numpy(), n_good[:, 0].numpy()))
    return torch.where(n_good > 0, typical, 1.0), n_good > 0


def _partitioned(ivar: Float32Array, n_good: Int64Array) -> Float32Array:
    """Lower median (n, 1) of the `n_good` values above 0 of each row; torch takes longer."""
    typical = np.ones((len(ivar), 1), dtype=np.float32)
    # Stars with equally many good pixels together: where most have all of them there are few
    # groups, and `partition` sorts no more than it must.
    for n in np.unique(n_good[n_good > 0]):
        rows = np.flatnonzero(n_good == n)
        values = ivar[rows]
        if n < ivar.shape[1]:
            values = np.where(values > 0, values, np.float32(np.inf))
        typical[rows, 0] = np.partition(values, (n - 1) // 2, axis=1)[:, (n - 1) // 2]
    return typical


def noise_quality(typical: Tensor, present: Tensor) -> Tensor:
    """Two measures of the noise and a presence bit (n, 3), from inverse variances (n, 1)."""
    # S/N 3 to 1100: whatever noise a survey quotes, no input is above 20.
    relative = (typical.sqrt() / _TYPICAL_SNR).clamp(0.05, 20.0)
    noise = torch.cat([relative.log(), 1.0 / relative - 1.0], dim=1)
    return torch.cat([torch.where(present, noise, 0.0), present.to(noise)], dim=1)


def with_presence(observables: Tensor) -> Tensor:
    """Bent observables, then their presence bits."""
    present = torch.isfinite(observables)
    # The median of the training stars; the bit beside it tells a missing value from a common one.
    scaled = torch.where(present, observables, 0.0)
    bent = OBSERVABLE_KNEE * torch.asinh(scaled / OBSERVABLE_KNEE)
    return torch.cat([bent, present.to(bent)], dim=1)
