"""Networks as graphs of `kernels`: which presets the compiled engine can run, and how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from maury.io.arrays import BoolArray, Float32Array
from maury.model.engines.kernels import Apply, Graph, Normalise, PixelWeight, Pool, Standardise
from maury.model.engines.llvm import NONE, SILU, Activation
from maury.model.networks.base import NetworkConfig, NetworkOutput
from maury.model.networks.default import (
    LARGEST_DEVIATION,
    NOISY_PIXEL,
    DefaultConfig,
    DefaultNetwork,
    ResidualBlock,
    noise_quality,
    with_presence,
)
from maury.model.networks.published import Centre, ChannelsLast, TwoBranch
from maury.model.networks.student import StudentConfig, StudentNetwork, posterior


class NotLowered(Exception):
    """A network has a part that the compiled engine lacks; the text says which."""


class LoweredEnsemble(ABC):
    """How the compiled engine runs members of one preset."""

    graphs: list[Graph]

    @abstractmethod
    def inputs(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> tuple[Float32Array, ...]:
        """Return the inputs of the graphs, each (n, n_column); see `engine.Engine`."""

    @abstractmethod
    def unpack(self, output: Tensor) -> NetworkOutput:
        """Return what all members say, (n_member, n, ...), from what the graphs gave out.

        The features are those of the first member, (n, width).
        """


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
    if isinstance(config, DefaultConfig):
        defaults = [network for network in networks if isinstance(network, DefaultNetwork)]
        return _DefaultEnsemble(defaults)
    if isinstance(config, StudentConfig):
        return _StudentEnsemble([one for one in networks if isinstance(one, StudentNetwork)])
    branched = [network for network in networks if isinstance(network, TwoBranch)]
    if len(branched) != len(networks):
        raise NotLowered(f"the preset '{config.name}' is not known to it")
    return _BranchedEnsemble(config, branched, n_pixel, n_observable)


class _BranchedEnsemble(LoweredEnsemble):
    """A spectrum branch, an optional photometry branch, and a head."""

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
        """See `LoweredEnsemble.inputs`."""
        del ivar
        if self._centre is not None:
            # Once for all members; a Centre layer is therefore left out of their chains.
            flux = flux - self._centre
        return (flux, observables) if self._photometry else (flux,)

    def unpack(self, output: Tensor) -> NetworkOutput:
        """See `LoweredEnsemble.unpack`."""
        mean, variance = self._config.moments(output.flatten(0, 1))
        shape = (*output.shape[:2], mean.shape[-1])
        return NetworkOutput(
            mean.reshape(shape), None if variance is None else variance.reshape(shape)
        )


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
    return SILU if isinstance(layer, nn.SiLU) else None


def _numbers(tensor: Tensor) -> Float32Array:
    array: Float32Array = tensor.detach().float().cpu().numpy()
    return array


def _bias(layer: nn.Linear | nn.Conv1d) -> Float32Array:
    if layer.bias is None:
        return np.zeros(len(layer.weight), dtype=np.float32)
    return _numbers(layer.bias)


class _DefaultEnsemble(LoweredEnsemble):
    """The default network; what is common to its members is computed once."""

    def __init__(self, networks: Sequence[DefaultNetwork]) -> None:
        self._network = networks[0]
        self._n_out = self._network.out.out_features
        self.graphs = [_default(network) for network in networks]

    def inputs(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> tuple[Float32Array, ...]:
        """See `LoweredEnsemble.inputs`."""
        # Medians are sorted by numpy: a sort has no vector code here, and is the same for all
        # members.
        typical, present = _typical(ivar)
        parts = [noise_quality(torch.from_numpy(typical), torch.from_numpy(present))]
        if self._network.observables is not None:
            parts.append(with_presence(torch.from_numpy(observables)))
        # One division a star; the kernel multiplies each pixel by it.
        pull = (1.0 / (NOISY_PIXEL * typical)).astype(np.float32)
        return flux, ivar, pull, torch.cat(parts, dim=1).numpy()

    def unpack(self, output: Tensor) -> NetworkOutput:
        """See `LoweredEnsemble.unpack`."""
        raw, features = output[..., : self._n_out], output[0, :, self._n_out :]
        posterior = self._network.split_output(raw.flatten(0, 1))
        covariance = posterior.covariance()
        variance = torch.diagonal(covariance, dim1=1, dim2=2)
        parts = (posterior.mean, variance, covariance)
        mean, variance, covariance = (x.reshape(*output.shape[:2], *x.shape[1:]) for x in parts)
        return NetworkOutput(mean, variance, covariance, features)


def _typical(ivar: Float32Array) -> tuple[Float32Array, BoolArray]:
    """Lower median of the inverse variances above 0, (n, 1), and whether there is any."""
    good = ivar > 0
    n_good = good.sum(axis=1)
    typical = np.ones((len(ivar), 1), dtype=np.float32)
    # Stars with equally many good pixels together: where most have all of them there are few
    # groups, and `partition` sorts no more than it must.
    for n in np.unique(n_good[n_good > 0]):
        rows = np.flatnonzero(n_good == n)
        values = ivar[rows]
        if n < ivar.shape[1]:
            values = np.where(good[rows], values, np.float32(np.inf))
        typical[rows, 0] = np.partition(values, (n - 1) // 2, axis=1)[:, (n - 1) // 2]
    return typical, (n_good > 0)[:, None]


def _default(network: DefaultNetwork) -> Graph:
    graph = Graph()
    n_pixel, stem = network.project.in_features, network.project.out_features
    layers: list[nn.Linear] = [network.quality]
    if network.observables is not None:
        layers.append(network.observables)
    n_other = sum(layer.in_features for layer in layers)
    layers += [network.join, network.bend]
    join = graph.rows(n_other + 2 * stem)
    flux, ivar, pull = graph.load(n_pixel), graph.load(n_pixel), graph.load(1)
    graph.load(n_other, target=join)
    graph.shared.append(PixelWeight(ivar, pull, ivar, n_pixel))
    pixels, projected = graph.rows(n_pixel), join + n_other
    numbers = graph.put(_numbers(network.flux_centre), 1.0 / _numbers(network.flux_scale))
    graph.steps.append(Standardise(flux, ivar, pixels, n_pixel, numbers, LARGEST_DEVIATION))
    graph.dense(pixels, _numbers(network.project.weight), _bias(network.project), target=projected)
    graph.steps.append(Apply(projected, projected + stem, stem, SILU))
    # A sum of layers is one layer of their joined inputs, with the sum of their biases.
    weight = np.concatenate([_numbers(layer.weight) for layer in layers], axis=1)
    bias = np.sum([_bias(layer) for layer in layers], axis=0)
    features = graph.dense(join, weight, bias)
    inner = graph.rows(network.norm.normalized_shape[0])
    for block in network.body:
        assert isinstance(block, ResidualBlock)
        _normalise(graph, block.norm, features, inner, NONE)
        hidden = graph.dense(
            inner, _numbers(block.inner.weight), _bias(block.inner), activation=SILU
        )
        features = graph.dense(
            hidden, _numbers(block.outer.weight), _bias(block.outer), plus=features
        )
    _normalise(graph, network.norm, features, inner, SILU)
    raw = graph.dense(inner, _numbers(network.out.weight), _bias(network.out))
    graph.store(raw, network.out.out_features)
    graph.store(inner, network.norm.normalized_shape[0])
    return graph


def _normalise(
    graph: Graph, norm: nn.LayerNorm, source: int, target: int, activation: Activation
) -> None:
    n = norm.normalized_shape[0]
    numbers = graph.put(_numbers(norm.weight), _numbers(norm.bias))
    graph.steps.append(Normalise(source, target, n, numbers, norm.eps, activation))


class _StudentEnsemble(LoweredEnsemble):
    """Students; those of an ensemble share what they see."""

    def __init__(self, networks: Sequence[StudentNetwork]) -> None:
        self._network = networks[0]
        self.graphs = [_student(network) for network in networks]

    def inputs(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> tuple[Float32Array, ...]:
        """See `LoweredEnsemble.inputs`."""
        typical, present = self._network.noise(torch.from_numpy(ivar))
        other = self._network.others(typical, present, torch.from_numpy(observables))
        return flux, ivar, (1.0 / (NOISY_PIXEL * typical)).numpy(), other.numpy()

    def unpack(self, output: Tensor) -> NetworkOutput:
        """See `LoweredEnsemble.unpack`."""
        found = posterior(*self._network.split_output(output.flatten(0, 1)))
        covariance = found.covariance()
        variance = torch.diagonal(covariance, dim1=1, dim2=2)
        parts = (found.mean, variance, covariance)
        return NetworkOutput(*(x.reshape(*output.shape[:2], *x.shape[1:]) for x in parts))


def _student(network: StudentNetwork) -> Graph:
    graph = Graph()
    n_pixel, stem = network.project.in_features, network.project.out_features
    n_other = network.join.in_features - 2 * stem
    join = graph.rows(2 * stem + n_other)
    flux, ivar, pull = graph.load(n_pixel), graph.load(n_pixel), graph.load(1)
    graph.load(n_other, target=join + 2 * stem)
    graph.shared.append(PixelWeight(ivar, pull, ivar, n_pixel))
    pixels = graph.rows(n_pixel)
    numbers = graph.put(_numbers(network.flux_centre), 1.0 / _numbers(network.flux_scale))
    graph.steps.append(Standardise(flux, ivar, pixels, n_pixel, numbers, LARGEST_DEVIATION))
    graph.dense(pixels, _numbers(network.project.weight), _bias(network.project), target=join)
    graph.steps.append(Apply(join, join + stem, stem, SILU))
    width = network.join.out_features
    features = graph.dense(join, _numbers(network.join.weight), _bias(network.join))
    bent = graph.rows(width)
    for layer in network.body:
        assert isinstance(layer, nn.Linear)
        graph.steps.append(Apply(features, bent, width, SILU))
        features = graph.dense(bent, _numbers(layer.weight), _bias(layer), plus=features)
    graph.steps.append(Apply(features, bent, width, SILU))
    raw = graph.dense(bent, _numbers(network.out.weight), _bias(network.out))
    graph.store(raw, network.out.out_features)
    return graph
