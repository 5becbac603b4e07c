"""A small network from labels to a spectrum, with analytic derivatives, in numpy alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from maury.io.arrays import Float32Array, Float64Array
from maury.methods.protocols import Evaluation
from maury.methods.storage import stored

__all__ = ["Activation", "NetworkModel", "SpectralNetwork"]

Activation = Literal["silu", "leaky_relu"]
_LEAK = np.float32(0.01)
"""Slope of the authors' leaky ReLU below 0 (The_Payne, `spectral_model.leaky_relu`)."""


@dataclass(frozen=True, eq=False)
class SpectralNetwork:
    """Labels, scaled to -0.5 to 0.5, through two hidden layers to the flux of all pixels.

    The network of Ting et al. (2019, ApJ 879, 69), sect. 3, with a smooth activation (SiLU) or
    that of the authors' code.

    Attributes
    ----------
    lowest, highest : (n_label,) float64
        Range of the training labels.
    weight_0, weight_1, weight_2 : (n_label, G), (G, H), (H, n_pixel) float32
    bias_0, bias_1, bias_2 : (G,), (H,), (n_pixel,) float32
    activation : {"silu", "leaky_relu"}
    """

    lowest: Float64Array
    highest: Float64Array
    weight_0: Float32Array
    bias_0: Float32Array
    weight_1: Float32Array
    bias_1: Float32Array
    weight_2: Float32Array
    bias_2: Float32Array
    # Those that methods store are of the first kind.
    activation: Activation = field(default="silu", metadata=stored(None))

    def __post_init__(self) -> None:
        if self.weight_0.ndim != 2 or self.activation not in get_args(Activation):
            raise ValueError(f"weight_0 is {self.weight_0.shape}, expected two axes")
        n_label, first = self.weight_0.shape
        second = self.bias_1.size
        expected = {
            "lowest": (n_label,),
            "highest": (n_label,),
            "bias_0": (first,),
            "weight_1": (first, second),
            "bias_1": (second,),
            "weight_2": (second, self.bias_2.size),
            "bias_2": (self.bias_2.size,),
        }
        for name, shape in expected.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} is {getattr(self, name).shape}, expected {shape}")

    def scaled(self, labels: Float64Array) -> Float32Array:
        """Scaled labels (n_star, n_label)."""
        return ((labels - self.lowest) / (self.highest - self.lowest) - 0.5).astype(np.float32)

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux (n_star, n_pixel), and derivatives (n_star, n_label, n_pixel) per unit of label."""
        n_label = self.lowest.size
        x = self.scaled(labels)
        bend = _silu if self.activation == "silu" else _leaky_relu
        first, gate_0 = bend(x @ self.weight_0 + self.bias_0, slope=jacobian)
        second, gate_1 = bend(first @ self.weight_1 + self.bias_1, slope=jacobian)
        flux = second @ self.weight_2 + self.bias_2
        if not jacobian:
            return Evaluation(flux, None)
        # Inputs are scaled: by the chain rule derivatives become those per kelvin and dex.
        per_unit = (1.0 / (self.highest - self.lowest)).astype(np.float32)
        slope = np.asarray((self.weight_0 * per_unit[:, None])[None] * gate_0[:, None], np.float32)
        slope = slope.reshape(-1, self.bias_0.size) @ self.weight_1
        slope = slope.reshape(-1, n_label, self.bias_1.size) * gate_1[:, None]
        out = slope.reshape(-1, self.bias_1.size) @ self.weight_2
        return Evaluation(flux, out.reshape(-1, n_label, self.bias_2.size))


@dataclass(frozen=True, eq=False)
class NetworkModel:
    """A network as a forward model (`maury.methods.protocols.ForwardModel`), exact in itself.

    Attributes
    ----------
    network : SpectralNetwork
    label_names : tuple of str
    wave : (n_pixel,) float64
    """

    network: SpectralNetwork
    label_names: tuple[str, ...]
    wave: Float64Array

    @property
    def bounds(self) -> Float64Array:
        """Range (n_label, 2) of the labels that it was trained with."""
        return np.stack([self.network.lowest, self.network.highest], axis=1)

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.wave

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        return self.network.evaluate(labels, jacobian=jacobian)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Return zero: methods measure what is left of their own fits."""
        del labels
        return np.zeros(self.wave.size, dtype=np.float32)


def _silu(x: Float32Array, *, slope: bool) -> tuple[Float32Array, Float32Array]:
    """X times its logistic function, and the derivative."""
    # The logistic function by tanh, as exp(-x) overflows where x is far below 0.
    gate = np.float32(0.5) * (np.float32(1.0) + np.tanh(np.float32(0.5) * x))
    out = x * gate
    return out, gate + out * (np.float32(1.0) - gate) if slope else gate


def _leaky_relu(x: Float32Array, *, slope: bool) -> tuple[Float32Array, Float32Array]:
    """X where it is positive, else a hundredth of it, and the derivative."""
    del slope
    gate = np.where(x > 0, np.float32(1.0), _LEAK)
    return x * gate, gate
