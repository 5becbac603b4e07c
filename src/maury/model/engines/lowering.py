"""Published networks as graphs of `kernels`: which the compiled engine can run, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from maury.io.arrays import Float32Array
from maury.model.engines.kernels import Graph, Pool
from maury.model.engines.llvm import NONE, Activation
from maury.model.networks.base import NetworkConfig, NetworkOutput
from maury.model.networks.layers import Centre, ChannelsLast, TwoBranch


class NotLowered(Exception):
    """A network has a part that the compiled engine lacks; the text says which."""


class LoweredEnsemble:
    """How the compiled engine runs members that have branches and a head.

    Attributes
    ----------
    graphs : list of Graph
        The members.

    Raises
    ------
    NotLowered
        If one of them has a part that the compiled engine lacks.
    """

    def __init__(
        self,
        config: NetworkConfig,
        networks: Sequence[TwoBranch],
        n_pixel: int,
        n_observable: int,
    ) -> None:
        self._config = config
        self._photometry = networks[0].photometry is not None
        self._centre = _common_centre(networks)
        self.graphs = [_branched(network, n_pixel, n_observable) for network in networks]

    def inputs(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> tuple[Float32Array, ...]:
        """Return the inputs of the graphs, each (n, n_column); see `engine.Engine`."""
        del ivar
        if self._centre is not None:
            # Once for all members; a Centre layer is therefore left out of their chains.
            flux = flux - self._centre
        return (flux, observables) if self._photometry else (flux,)

    def unpack(self, output: Tensor) -> NetworkOutput:
        """Return what all members say, (n_member, n, ...), from what the graphs gave out."""
        mean, variance = self._config.moments(output.flatten(0, 1))
        shape = (*output.shape[:2], mean.shape[-1])
        return NetworkOutput(
            mean.reshape(shape), None if variance is None else variance.reshape(shape)
        )


def lower(
    config: NetworkConfig, networks: Sequence[nn.Module], n_pixel: int, n_observable: int
) -> LoweredEnsemble:
    """Return how to run `networks` on spectra of `n_pixel` and `n_observable` observables.

    Raises
    ------
    NotLowered
        If one of them has a part that the compiled engine lacks.
    """
    # Masks come from torch's generator, and the compiled engine would draw others.
    if config.n_passes:
        raise NotLowered("it draws dropout masks at prediction")
    branched = [network for network in networks if isinstance(network, TwoBranch)]
    if len(branched) != len(networks):
        raise NotLowered(f"the preset '{config.name}' is not known to it")
    return LoweredEnsemble(config, branched, n_pixel, n_observable)


def _common_centre(networks: Sequence[TwoBranch]) -> Float32Array | None:
    centres = [
        layer.mean.numpy()
        for network in networks
        for layer in network.modules()
        if isinstance(layer, Centre)
    ]
    if not centres:
        return None
    # Members trained on other stars have another mean spectrum.
    if len(centres) != len(networks) or any(np.any(one != centres[0]) for one in centres):
        raise NotLowered("its members centre spectra differently")
    return centres[0]


def _branched(network: TwoBranch, n_pixel: int, n_observable: int) -> Graph:
    graph = Graph()
    branches = [(network.spectrum, n_pixel)]
    if network.photometry is not None:
        branches.append((network.photometry, n_observable))
    widths = [_width(branch) for branch, _ in branches]
    # Branches write side by side into it, which spares the step that joins them.
    join = graph.rows(sum(widths))
    firsts = [graph.load(n) for _, n in branches]
    for number, (branch, n) in enumerate(branches):
        _Chain(graph, firsts[number], n, 1).run(branch, target=join + sum(widths[:number]))
    head = _Chain(graph, join, 1, sum(widths))
    head.run(network.head)
    graph.store(head.first, head.n_channel)
    return graph


def _width(branch: nn.Module) -> int:
    linear = [layer for layer in branch.modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise NotLowered("a branch has no dense layer")
    return linear[-1].out_features


@dataclass
class _Chain:
    """Layers one after the other, on rows (position, channel) of the arena."""

    graph: Graph
    first: int
    n_position: int
    n_channel: int
    by_channel: tuple[int, int] | None = None
    """Channels and positions that were flattened channel by channel."""

    def run(self, branch: nn.Module, *, target: int | None = None) -> None:
        """Add the layers of a branch; the last dense layer writes to `target`."""
        layers = [one for one in branch.modules() if not list(one.children())]
        layers = [one for one in layers if not isinstance(one, nn.Dropout | Centre)]
        last = max(k for k, one in enumerate(layers) if isinstance(one, nn.Linear))
        for number, layer in enumerate(layers):
            if isinstance(layer, nn.Linear | nn.Conv1d):
                following = layers[number + 1] if number + 1 < len(layers) else None
                activation = _activation(following) or NONE
                self._affine(layer, activation, target if number == last else None)
            elif _activation(layer) is None:
                self._reshape(layer)

    def _affine(
        self, layer: nn.Linear | nn.Conv1d, activation: Activation, target: int | None
    ) -> None:
        weight, bias = _numbers(layer.weight), _bias(layer)
        if isinstance(layer, nn.Linear):
            if self.by_channel is not None:
                # Torch flattens channel by channel, rows lie position by position: weights are put
                # in order once, not data for each star.
                weight = weight.reshape(len(weight), *self.by_channel).transpose(0, 2, 1)
                weight, self.by_channel = weight.reshape(len(weight), -1), None
            self.n_position, self.n_channel = 1, len(weight)
            self.first = self.graph.dense(
                self.first, weight, bias, activation=activation, target=target
            )
            return
        _require_plain(layer)
        self.n_position -= layer.kernel_size[0] - 1
        self.n_channel = layer.out_channels
        self.first = self.graph.convolve(
            self.first, weight, bias, n_position=self.n_position, activation=activation
        )

    def _reshape(self, layer: nn.Module) -> None:
        n = self.n_position * self.n_channel
        if isinstance(layer, nn.MaxPool1d):
            assert isinstance(layer.kernel_size, int)
            size = layer.kernel_size
            self.n_position //= size
            target = self.graph.rows(self.n_position * self.n_channel)
            self.graph.steps.append(Pool(self.first, target, self.n_channel, size, self.n_position))
            self.first = target
        elif isinstance(layer, nn.Flatten):
            self.by_channel = (self.n_channel, self.n_position)
            self.n_position, self.n_channel = 1, n
        elif isinstance(layer, ChannelsLast):
            self.n_position, self.n_channel = 1, n
        else:
            raise NotLowered(f"it has a layer {type(layer).__name__}")


def _require_plain(layer: nn.Conv1d) -> None:
    settings = (layer.stride, layer.padding, layer.dilation, layer.groups)
    # The kernels lack them; to ignore one would give wrong labels without a word.
    if settings != ((1,), (0,), (1,), 1):
        raise NotLowered("it has a convolution with a stride, padding, dilation or groups")


def _activation(layer: nn.Module | None) -> Activation | None:
    if isinstance(layer, nn.LeakyReLU) and 0.0 <= layer.negative_slope < 1.0:
        return Activation("leaky", layer.negative_slope)
    if isinstance(layer, nn.ReLU):
        return Activation("leaky", 0.0)
    return None


def _numbers(tensor: Tensor) -> Float32Array:
    array: Float32Array = tensor.detach().float().cpu().numpy()
    return array


def _bias(layer: nn.Linear | nn.Conv1d) -> Float32Array:
    if layer.bias is None:
        return np.zeros(len(layer.weight), dtype=np.float32)
    return _numbers(layer.bias)
