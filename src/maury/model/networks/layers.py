"""Layers that networks of several papers share."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional


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


def sequence(*layers: tuple[str, nn.Module]) -> nn.Sequential:
    """Return layers by name, one after the other."""
    return nn.Sequential(OrderedDict(layers))


def initialise(network: nn.Module, weights: Callable[[Tensor], Tensor]) -> nn.Module:
    """Draw the weights of dense layers and convolutions; biases are zero."""
    for layer in network.modules():
        if isinstance(layer, nn.Linear | nn.Conv1d):
            weights(layer.weight)
            assert layer.bias is not None
            # As Keras does, in which these networks were published; PyTorch would draw biases.
            nn.init.zeros_(layer.bias)
    return network


def he_normal(weight: Tensor) -> Tensor:
    """Draw the initial weights of He et al. (2015), for ReLU."""
    # As of `draw_normal`.
    return weight if weight.is_meta else nn.init.kaiming_normal_(weight, nonlinearity="relu")


def positive(size: int) -> int:
    """Return a number of pixels.

    Raises
    ------
    ValueError
        If none is left.
    """
    if size < 1:
        raise ValueError("no pixel is left after the convolutions")
    return size


LARGEST_LOG_VARIANCE = 20.0
"""Bound of predicted log variances: exp(20) is far beyond any scaled label, and without one an
early step may overflow to NaN."""


def gaussian_loss(
    mean: Tensor, variance: Tensor, target: Tensor, target_variance: Tensor
) -> Tensor:
    """Gaussian negative log-likelihood less constants, per label that is present (NaN: missing).

    Parameters
    ----------
    mean, variance, target, target_variance : Tensor
        Shapes (n, n_label); the variance of each label adds to the predicted one.
    """
    present = torch.isfinite(target)
    total = variance + target_variance
    residual = torch.where(present, mean - target, 0.0)
    terms = 0.5 * (residual.square() / total + total.log())
    return torch.where(present, terms, 0.0).sum() / present.sum().clamp(min=1)


def log_variance_moments(output: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance, (n, n_label) each, of means and log variances (n, 2 n_label)."""
    mean, log_variance = output.chunk(2, dim=1)
    return mean, log_variance.clamp(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE).exp()
