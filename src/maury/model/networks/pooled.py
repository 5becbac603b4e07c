"""What the networks of two convolutions, max-pooling and two dense layers share."""

from typing import Literal

import torch
from torch import Tensor, nn

from maury.model.networks.base import Filters, Kernel, NetworkConfig, Units, draw_normal, linear
from maury.model.networks.layers import Convolution, PassDropout, positive, sequence

__all__ = ["Pooled", "narrow"]


class Pooled(NetworkConfig):
    """Two convolutions, max-pooling, two dense layers; observables join before the second.

    Attributes
    ----------
    filters, kernel, pool, units : int
        Of the convolutions, of the pooling, of the two dense layers.
    padding : {"same", "valid"}
        Whether convolutions keep the number of pixels, by zeros around, as the authors of all
        these networks have it, or see whole kernels alone.
    photometry_units : int
        Of the dense layer of observables, which the papers do not have.
    """

    photometry: bool = False
    filters: tuple[Filters, Filters] = (4, 16)
    kernel: Kernel = 8
    pool: Kernel = 4
    padding: Literal["same", "valid"] = "same"
    units: tuple[Units, Units] = (256, 128)
    photometry_units: Units = 32

    def spectrum_layers(self, n_pixel: int, dropout: float) -> list[tuple[str, nn.Module]]:
        """Layers of the spectrum branch by name; `dropout` in three places."""
        layers: list[tuple[str, nn.Module]] = []
        n_in = 1
        for number, n_out in enumerate(self.filters, start=1):
            if self.padding == "same":
                layers.append((f"pad{number}", self._pad()))
            else:
                n_pixel -= self.kernel - 1
            convolution = Convolution(n_in, n_out, self.kernel, dtype=torch.float32)
            layers += [(f"conv{number}", convolution), (f"act{number}", nn.ReLU())]
            if number == 1:
                layers.append(("dropout1", PassDropout(dropout)))
            n_in = n_out
        n_flat = n_in * positive(n_pixel // self.pool)
        return [
            *layers,
            ("pool", nn.MaxPool1d(self.pool)),
            ("dropout2", PassDropout(dropout)),
            ("flatten", nn.Flatten()),
            ("dense", linear(n_flat, self.units[0])),
            ("act", nn.ReLU()),
            ("dropout3", PassDropout(dropout)),
        ]

    def _pad(self) -> nn.Module:
        before = (self.kernel - 1) // 2
        # More of an even kernel after the pixel, as Keras has it.
        return nn.ConstantPad1d((before, self.kernel - 1 - before), 0.0)

    def observable_layers(self, n_observable: int) -> tuple[nn.Module | None, int]:
        """Branch of the observables, and the features of both branches."""
        if not self.photometry:
            return None, self.units[0]
        dense = sequence(("dense", linear(n_observable, self.photometry_units)), ("act", nn.ReLU()))
        return dense, self.units[0] + self.photometry_units


def narrow(weight: Tensor) -> Tensor:
    """Draw initial weights as the authors of astroNN do, from a normal distribution of .05."""
    draw_normal(weight, 0.05)
    return weight
