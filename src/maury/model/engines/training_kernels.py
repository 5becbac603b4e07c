"""The convolutions of the published network in vector code, forwards and backwards, for training.

PyTorch lays channels along the lanes of a vector register and wastes most of them; here the lanes
hold stars. The published recipe stays as it is: batches of 16, the same loss and optimiser, and the
same weights, which remain those of the PyTorch module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maury.errors import ConfigError
from maury.io.arrays import Float32Array
from maury.model.engines.kernels import Correlate, Gate, Graph
from maury.model.engines.llvm import Activation, require_installed
from maury.model.engines.machine import Machine
from maury.model.networks.base import NetworkConfig
from maury.model.networks.layers import TwoBranch
from maury.model.networks.published import Guiglion2020

Forward = Callable[[Tensor, Tensor], Tensor]
"""Flux (n, n_pixel) and observables (n, n_observable) to the output of the network."""


def require_trainable(config: NetworkConfig) -> None:
    """Raise unless the compiled engine is installed and trains such networks.

    Raises
    ------
    ConfigError
        If the network has other layers, or more filters than a register tile holds.
    MissingExtra
        If `llvmlite` is not installed.
    """
    if not isinstance(config, Guiglion2020) or max(config.filters) > _MOST_FILTERS:
        raise ConfigError(
            "the compiled engine trains the preset 'guiglion2020' with at most "
            f"{_MOST_FILTERS} filters a layer, got the preset '{config.name}'; set engine = "
            '"torch" in [training]'
        )
    require_installed()


def compiled_forward(config: NetworkConfig, network: nn.Module, n_pixel: int) -> Forward:
    """Return a faster forward pass of a network that can be differentiated.

    It draws other dropout masks than `network` does from the same seed.

    Parameters
    ----------
    config : NetworkConfig
    network : Module
        What `config` assembled; its weights stay its own.
    n_pixel : int
        Columns of the flux.

    Raises
    ------
    ConfigError, MissingExtra
        See `require_trainable`.
    """
    require_trainable(config)
    assert isinstance(config, Guiglion2020)
    assert isinstance(network, TwoBranch)
    stack = _Stack(config, n_pixel)
    layers = dict(network.spectrum.named_children())
    weights: list[Tensor] = []
    for index in range(1, len(config.filters) + 1):
        layer = layers[f"conv{index}"]
        assert isinstance(layer, nn.Conv1d)
        assert layer.bias is not None
        weights += [layer.weight, layer.bias]

    def forward(flux: Tensor, observables: Tensor) -> Tensor:
        signal: Tensor = _Convolutions.apply(stack, flux, *weights)  # type: ignore[no-untyped-call]
        if network.training and config.dropout:
            # Before the dense layer, as the dropout of the PyTorch module; that one is passed by
            # here.
            signal = signal * _mask(signal.shape, config.dropout)
        features = layers["act"](layers["dense"](signal))
        if network.photometry is not None:
            features = torch.cat([features, network.photometry(observables)], dim=1)
        output: Tensor = network.head(features)
        return output

    return forward


_MOST_FILTERS = 16
"""Larger layers fill the lanes of PyTorch, too; up to here the kernels were tested and timed."""


def _mask(shape: Sequence[int], share: float) -> Tensor:
    """Draw what dropout multiplies by, seeded by torch, by a generator ten times as fast."""
    # Seeded by torch's generator, so that the seed of a training still decides all.
    rng = np.random.Generator(np.random.SFC64(int(torch.randint(2**62, (1,)))))
    # 16 bits are enough for a share: it is met to 1 in 65 536.
    drawn = rng.integers(0, 2**16, size=tuple(shape), dtype=np.uint16)
    kept = (drawn >= round(share * 2**16)).astype(np.float32)
    kept *= np.float32(1.0 / (1.0 - share))
    return torch.from_numpy(kept)


class _Convolutions(torch.autograd.Function):
    """All convolutions, with their activations, as one function."""

    @staticmethod
    def forward(ctx: Any, stack: _Stack, flux: Tensor, *weights: Tensor) -> Tensor:
        ctx.stack = stack
        ctx.save_for_backward(flux, *weights)
        return stack.forward(flux, weights)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        flux, *weights = ctx.saved_tensors
        # Neither the stack nor the flux is learnt.
        return (None, None, *ctx.stack.backward(flux, weights, gradients[0]))


@dataclass(frozen=True)
class _Shape:
    """One convolution: its sizes, the rows of its result, and of the gradient of that."""

    n_in: int
    n_out: int
    n_position: int


class _Stack:
    """Two machines: one gives the last activations, one the gradients of all weights."""

    def __init__(self, config: Guiglion2020, n_pixel: int) -> None:
        self._slope = config.negative_slope
        self._n_tap = config.kernel
        self._n_pixel = n_pixel
        self._shapes: list[_Shape] = []
        n_in, n_position = 1, n_pixel
        for n_out in config.filters:
            n_position -= config.kernel - 1
            self._shapes.append(_Shape(n_in, n_out, n_position))
            n_in = n_out
        blank = [
            np.zeros(size, dtype=np.float32)
            for shape in self._shapes
            for size in ((shape.n_out, shape.n_in, config.kernel), (shape.n_out,))
        ]
        # Compiled once: the code depends on the sizes alone, and each step only puts other numbers
        # in.
        self._forward = Machine([self._forward_graph(blank)])
        self._backward = Machine([self._backward_graph(blank)])

    def forward(self, flux: Tensor, weights: Sequence[Tensor]) -> Tensor:
        """Return the last activations (n, pixel x channel), pixel by pixel."""
        self._forward.set_numbers(0, self._forward_graph(_arrays(weights)))
        return torch.from_numpy(np.ascontiguousarray(self._forward(flux.numpy())[0]))

    def backward(self, flux: Tensor, weights: Sequence[Tensor], gradient: Tensor) -> list[Tensor]:
        """Gradients of `weights`, from that of the last activations."""
        self._backward.set_numbers(0, self._backward_graph(_arrays(weights)))
        shares = self._backward(flux.numpy(), gradient.numpy())[0]
        total = torch.from_numpy(shares.sum(axis=0))
        found, place = [], 0
        for shape in self._shapes:
            n = shape.n_in * self._n_tap * shape.n_out
            kernel = total[place : place + n].reshape(shape.n_in, self._n_tap, shape.n_out)
            found += [kernel.permute(2, 0, 1), total[place + n : place + n + shape.n_out]]
            place += n + shape.n_out
        return found

    def _forward_graph(self, weights: Sequence[Float32Array]) -> Graph:
        graph = Graph()
        rows = self._values(graph, weights)
        last = self._shapes[-1]
        graph.store(rows[-1], last.n_position * last.n_out)
        return graph

    def _values(self, graph: Graph, weights: Sequence[Float32Array]) -> list[int]:
        """First rows of the spectrum and of the activations of each convolution."""
        rows = [graph.load(self._n_pixel)]
        for number, shape in enumerate(self._shapes):
            kernel, bias = weights[2 * number : 2 * number + 2]
            leaky = Activation("leaky", self._slope)
            n_position = shape.n_position
            rows.append(
                graph.convolve(rows[-1], kernel, bias, n_position=n_position, activation=leaky)
            )
        return rows

    def _backward_graph(self, weights: Sequence[Float32Array]) -> Graph:
        graph = Graph()
        values = self._values(graph, weights)
        # The gradient before a convolution is that after it, padded with zeros, convolved with the
        # kernel turned round. Nothing writes to the margins, so that they stay 0.
        margin = self._n_tap - 1
        padded = [
            graph.rows((shape.n_position + 2 * margin) * shape.n_out) for shape in self._shapes
        ]
        inner = [
            row + margin * shape.n_out for row, shape in zip(padded, self._shapes, strict=True)
        ]
        last = self._shapes[-1]
        graph.load(last.n_position * last.n_out, target=inner[-1])
        targets = []
        for number in reversed(range(len(self._shapes))):
            shape = self._shapes[number]
            size = shape.n_position * shape.n_out
            graph.steps.append(Gate(values[number + 1], inner[number], size, self._slope))
            n_weight = (shape.n_in * self._n_tap + 1) * shape.n_out
            target = graph.rows(n_weight)
            targets.append((target, n_weight))
            sizes = (shape.n_in, self._n_tap, shape.n_position, shape.n_out)
            graph.steps.append(Correlate(values[number], inner[number], target, *sizes))
            # Nobody asks for the gradient of the spectrum itself.
            if number:
                turned = weights[2 * number].transpose(1, 0, 2)[:, :, ::-1]
                none = np.zeros(shape.n_in, dtype=np.float32)
                n_position = shape.n_position + margin
                graph.convolve(
                    padded[number], turned, none, n_position=n_position, target=inner[number - 1]
                )
        for target, n in reversed(targets):
            graph.store(target, n)
        return graph


def _arrays(weights: Sequence[Tensor]) -> list[Float32Array]:
    return [weight.detach().numpy() for weight in weights]
