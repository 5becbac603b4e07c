"""Training of a spectral network on observed spectra, with theory's derivatives as a guide."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maury.errors import TrainingError
from maury.io.arrays import Float32Array, Float64Array
from maury.io.workers import one_thread
from maury.methods.fitting.spectral_network import SpectralNetwork

__all__ = ["Guide", "NetworkTraining", "train_on_spectra", "train_spectral_network"]


# Adam's second moment over 50 steps instead of 1000: training is a few thousand steps in all.
_BETAS = (0.9, 0.98)
# Chosen, not measured: guards against single bad batches.
_GRADIENT_NORM = 5.0


@dataclass(frozen=True)
class NetworkTraining:
    """How a spectral network is trained.

    Attributes
    ----------
    hidden : int
        Width of both hidden layers.
    steps, batch_size, guide_size : int
        Steps, and stars and guides per step.
    learning_rate : float
        Largest step size of Adam; it falls by a cosine.
    penalty : float
        Weight of the differences of derivatives.
    warm : float
        Share of the steps, at the start, in which the flux is learnt from theory too.
    scales : tuple of float
        D_scale of each label, by which its differences count; empty for 1 each.
    """

    hidden: int
    steps: int
    batch_size: int
    guide_size: int
    learning_rate: float
    penalty: float
    warm: float
    scales: tuple[float, ...] = ()


@dataclass(frozen=True)
class Guide:
    """Theory at some labels.

    Attributes
    ----------
    labels : (n, n_label) float64
    flux : (n, n_pixel) float32
    slopes : (n, n_label, n_pixel) float32
        Per unit of each label.
    noise : float
        Flux differences below which are of no account.
    """

    labels: Float64Array
    flux: Float32Array
    slopes: Float32Array
    noise: float


def train_spectral_network(
    labels: Float64Array,
    flux: Float32Array,
    weight: Float32Array,
    *,
    guide: Guide,
    config: NetworkTraining,
    seed: int,
) -> SpectralNetwork:
    """Minimise chi-square plus `penalty` times |derivative - that of theory|, on one thread.

    Xiang et al. (2019, ApJS 245, 34), eq. 3: the data say how strong lines are, theory which label
    moves which pixel, so that labels correlated among stars are not taken for one another.

    Parameters
    ----------
    labels : (n_star, n_label) float64
    flux, weight : (n_star, n_pixel) float32
        Weight is the inverse variance, 0 in a bad pixel.
    guide : Guide
    config : NetworkTraining
    seed : int

    Raises
    ------
    TrainingError
        If the loss is no longer finite.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _train(labels, flux, weight, guide, config, seed)


def _train(
    labels: Float64Array,
    flux: Float32Array,
    weight: Float32Array,
    guide: Guide,
    config: NetworkTraining,
    seed: int,
) -> SpectralNetwork:
    low = np.minimum(labels.min(axis=0), guide.labels.min(axis=0))
    high = np.maximum(labels.max(axis=0), guide.labels.max(axis=0))
    width = np.where(high > low, high - low, 1.0)
    mean = np.where(weight > 0, flux, np.nan)
    # The last bias begins as the mean spectrum, so that only differences are to be learnt; a pixel
    # that is bad in all stars begins at the continuum.
    start = np.nan_to_num(np.nanmean(mean, axis=0), nan=1.0).astype(np.float32)
    layers = _initial(labels.shape[1], config.hidden, start)
    stars, theory = _tensors((labels, flux, weight), guide, low, width)
    optimizer = torch.optim.Adam(layers, lr=config.learning_rate, betas=_BETAS, fused=True)
    rng = np.random.default_rng(seed)
    for step in range(config.steps):
        progress = step / config.steps
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
        near = rng.integers(0, len(guide.labels), config.guide_size)
        loss = _guide_loss(layers, [a[near] for a in theory], guide.noise, config, progress)
        if progress >= config.warm:
            rows = rng.integers(0, len(labels), config.batch_size)
            x, seen, precision = (a[rows] for a in stars)
            loss = loss + (precision * (_forward(layers, x) - seen) ** 2).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(layers, _GRADIENT_NORM)
        optimizer.step()
        if step % 100 == 0 and not math.isfinite(float(loss.detach())):
            raise TrainingError(f"the loss is no longer finite at step {step}; lower learning_rate")
    return _network(low, low + width, layers)


def train_on_spectra(
    labels: Float64Array,
    flux: Float32Array,
    *,
    hidden: int,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> SpectralNetwork:
    """Train a network on noise-free spectra, by the mean absolute difference, on one thread.

    The first step of Ting et al. (2019, ApJ 879, 69, sect. 3.1); L1 loss and RAdam (Liu et al.
    2020) are those of the authors' code.

    Parameters
    ----------
    labels : (n_spectrum, n_label) float64
    flux : (n_spectrum, n_pixel) float32
        Finite.
    hidden : int
        Width of both hidden layers.
    steps, batch_size : int
    learning_rate : float
        Largest step size; it falls by a cosine.
    seed : int

    Raises
    ------
    TrainingError
        If the loss is no longer finite.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        low = labels.min(axis=0)
        width = np.where(np.ptp(labels, axis=0) > 0, np.ptp(labels, axis=0), 1.0)
        layers = _initial(labels.shape[1], hidden, flux.mean(axis=0))
        x = torch.from_numpy(((labels - low) / width - 0.5).astype(np.float32))
        seen = torch.from_numpy(np.ascontiguousarray(flux, dtype=np.float32))
        optimizer = torch.optim.RAdam(layers, lr=learning_rate, betas=_BETAS)
        rng = np.random.default_rng(seed)
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * 0.5 * (1.0 + math.cos(math.pi * step / steps))
            rows = rng.integers(0, len(labels), batch_size)
            loss = (_forward(layers, x[rows]) - seen[rows]).abs().mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            if step % 100 == 0 and not math.isfinite(float(loss.detach())):
                raise TrainingError(
                    f"the loss is no longer finite at step {step}; lower learning_rate"
                )
        return _network(low, low + width, layers)


def _network(lowest: Float64Array, highest: Float64Array, layers: list[Tensor]) -> SpectralNetwork:
    names = ("weight_0", "bias_0", "weight_1", "bias_1", "weight_2", "bias_2")
    arrays: dict[str, Any] = {n: a.detach().numpy() for n, a in zip(names, layers, strict=True)}
    return SpectralNetwork(lowest, highest, **arrays)


def _tensors(
    seen: tuple[Float64Array, Float32Array, Float32Array],
    guide: Guide,
    low: Float64Array,
    width: Float64Array,
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what is seen and what theory says, of labels scaled to -0.5 to 0.5."""
    labels, flux, weight = seen
    stars = [
        torch.from_numpy(a.astype(np.float32))
        # Flux of a bad pixel may be NaN, which a weight of 0 does not take out of a sum.
        for a in ((labels - low) / width - 0.5, np.where(weight > 0, flux, 0.0), weight)
    ]
    theory = [
        torch.from_numpy(np.ascontiguousarray(a, dtype=np.float32))
        for a in (
            (guide.labels - low) / width - 0.5,
            guide.flux,
            guide.slopes * width[:, None].astype(np.float32),
        )
    ]
    return stars, theory


def _initial(n_label: int, hidden: int, start: Float32Array) -> list[Tensor]:
    sizes = [(n_label, hidden), (hidden, hidden), (hidden, start.size)]
    layers = []
    for number, (n_in, n_out) in enumerate(sizes):
        # Small in the last layer: the network begins close to the mean spectrum.
        gain = 0.1 if number == 2 else 1.0
        drawn = torch.randn(n_in, n_out, dtype=torch.float32)
        layers.append(drawn * (gain * math.sqrt(2.0 / n_in)))
        layers.append(torch.zeros(n_out, dtype=torch.float32))
    # Spread, so that units bend at different labels and not all in the middle of the range.
    layers[1] = torch.rand(hidden, dtype=torch.float32) - 0.5
    layers[5] = torch.from_numpy(start.copy())
    return [layer.requires_grad_() for layer in layers]


def _forward(layers: list[Tensor], x: Tensor) -> Tensor:
    for weight, bias in ((layers[0], layers[1]), (layers[2], layers[3])):
        x = torch.nn.functional.silu(x @ weight + bias)
    return x @ layers[4] + layers[5]


def _with_slopes(layers: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Flux, and derivatives (n, n_label, n_pixel) carried forward through the layers."""
    slope = layers[0].expand(len(x), -1, -1)
    for number, (weight, bias) in enumerate(((layers[0], layers[1]), (layers[2], layers[3]))):
        if number:
            slope = slope @ weight
        x = x @ weight + bias
        gate = torch.sigmoid(x)
        slope = slope * (gate * (1.0 + x * (1.0 - gate)))[:, None]
        x = x * gate
    return x @ layers[4] + layers[5], slope @ layers[4]


def _guide_loss(
    layers: list[Tensor],
    theory: list[Tensor],
    noise: float,
    config: NetworkTraining,
    progress: float,
) -> Tensor:
    x, flux, slopes = theory
    found, found_slopes = _with_slopes(layers, x)
    apart = (found_slopes - slopes).abs()
    if config.scales:
        apart = apart * torch.tensor(config.scales, dtype=torch.float32)[:, None]
    loss = config.penalty * apart.mean() / noise
    if progress < config.warm:
        loss = loss + ((found - flux) ** 2).mean() / noise**2
    return loss
