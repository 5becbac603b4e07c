"""What computes the networks of an ensemble: PyTorch, or vector code compiled for them.

Both give the same outputs but for rounding. PyTorch is the reference and runs every preset, on a
GPU if there is one; the compiled engine (`maury.model.engines.machine`) is the faster one for the
published convolutions on a processor.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state

from maury.errors import check_known
from maury.io.arrays import Float32Array, Float64Array
from maury.model.engines.llvm import available
from maury.model.engines.lowering import NotLowered, lower
from maury.model.engines.machine import Machine
from maury.model.networks.base import NetworkConfig, NetworkOutput
from maury.model.networks.layers import thinned

logger = logging.getLogger(__name__)


ENGINES = ("auto", "torch", "compiled")
"""Names that `make_engine` takes."""
# Rows of a rest take another way, and would have other bits than the same rows elsewhere: products
# of matrices (MKL) take 6 rows at a time (AVX2) or up to 48 (AVX-512), functions up to 64 numbers.
BLOCK_ROWS = 192
"""Stars that torch computes together: near the fastest of 32 to 512 (docs, engines)."""


@dataclass(frozen=True)
class EnsembleOutput:
    """Outputs of the members of an ensemble for some stars, in scaled units.

    Attributes
    ----------
    mean : (n_member, n_star, n_label) float64
    variance : (n_member, n_star, n_label) float64 or None
        Predicted variances, if the networks have them.
    covariance : (n_member, n_star, n_label, n_label) float64 or None
        Predicted covariances.
    features : (n_star, width) float32 or None
        What the last layer of the first member sees.
    """

    mean: Float64Array
    variance: Float64Array | None = None
    covariance: Float64Array | None = None
    features: Float32Array | None = None

    def member(self, member: int) -> EnsembleOutput:
        """Return the output of one member."""
        one = slice(member, member + 1)
        return EnsembleOutput(
            self.mean[one],
            None if self.variance is None else self.variance[one],
            None if self.covariance is None else self.covariance[one],
            self.features,
        )


class Engine(ABC):
    """The networks of an ensemble, ready to predict."""

    name: ClassVar[str]

    @abstractmethod
    def predict(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> EnsembleOutput:
        """Apply all members.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float32
            Prepared; ivar 0 marks a bad pixel.
        observables : (n_star, n_observable) float32
            Scaled; NaN where missing.
        """


class TorchEngine(Engine):
    """The reference: PyTorch, on a GPU if there is one.

    Stars are computed in blocks of one length, the last of which is filled up with zeros: on a
    processor the bits of a star's output depend neither on its block nor on its place in it.

    Parameters
    ----------
    config : NetworkConfig
        The preset.
    networks : sequence of Module
        Its members, in evaluation mode.
    device : str, optional
        Device of torch; ``cuda`` if there is one, else ``cpu``.
    """

    name = "torch"

    def __init__(
        self, config: NetworkConfig, networks: Sequence[nn.Module], *, device: str | None = None
    ) -> None:
        if device is None:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(device)
        self._config = config
        self._networks = [network.to(self.device) for network in networks]
        stacks = config.stacks and len(networks) > 1
        self._members = _stacked(config, self._networks) if stacks else self._one_by_one

    def predict(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> EnsembleOutput:
        """See `Engine.predict`."""
        arrays = (flux, ivar, observables)
        # One block of zeros where there is no star: its output has the shapes.
        starts = range(0, max(len(flux), 1), BLOCK_ROWS)
        with torch.inference_mode():
            return _joined([self._block(*(x[k : k + BLOCK_ROWS] for x in arrays)) for k in starts])

    def _block(self, *arrays: Float32Array) -> EnsembleOutput:
        tensors = [torch.from_numpy(_filled_up(array)).to(self.device) for array in arrays]
        return _to_numpy(self._members(*tensors), len(arrays[0]))

    def _one_by_one(self, *block: Tensor) -> NetworkOutput:
        outputs = [self._member(k, net, block) for k, net in enumerate(self._networks)]
        return NetworkOutput(
            torch.stack([one.mean for one in outputs]),
            _all_of([one.variance for one in outputs]),
            _all_of([one.covariance for one in outputs]),
            outputs[0].features,
        )

    def _member(self, number: int, network: nn.Module, tensors: Sequence[Tensor]) -> NetworkOutput:
        """Output of one network; dropout passes are joined by the law of total variance."""
        n_passes = self._config.n_passes
        if not n_passes:
            return self._config.predict(network, *tensors)
        passes = []
        for index in range(n_passes):
            # Another mask for each member and pass: there are at most a thousand passes.
            with thinned(network, number * 100_003 + index):
                passes.append(self._config.predict(network, *tensors))
        # Passes differ little: their variance in float32 would be rounding errors where they all
        # but agree.
        means = torch.stack([one.mean for one in passes]).double()
        variance = means.var(dim=0, correction=0)
        predicted = [one.variance for one in passes if one.variance is not None]
        if predicted:
            variance = variance + torch.stack(predicted).double().mean(dim=0)
        return NetworkOutput(means.mean(dim=0), variance)


class CompiledEngine(Engine):
    """All members as one function in vector code, made for this processor; see `machine`.

    Parameters
    ----------
    config, networks
        The preset, and its members in evaluation mode.
    n_pixel, n_observable : int
        Columns of their inputs.
    n_thread : int, optional
        Threads; as many as torch uses by default.

    Raises
    ------
    NotLowered
        If the networks have a part that it lacks.
    MissingExtra
        If `llvmlite` is not installed.
    """

    name = "compiled"

    def __init__(
        self,
        config: NetworkConfig,
        networks: Sequence[nn.Module],
        *,
        n_pixel: int,
        n_observable: int,
        n_thread: int | None = None,
    ) -> None:
        self._lowered = lower(config, networks, n_pixel, n_observable)
        n_thread = torch.get_num_threads() if n_thread is None else n_thread
        self._machine = Machine(self._lowered.graphs, n_thread=n_thread)

    def predict(
        self, flux: Float32Array, ivar: Float32Array, observables: Float32Array
    ) -> EnsembleOutput:
        """See `Engine.predict`."""
        with torch.inference_mode():
            rows = self._machine(*self._lowered.inputs(flux, ivar, observables))
            output = self._lowered.unpack(torch.from_numpy(rows))
            return _to_numpy(output, len(flux))


def make_engine(
    name: str,
    config: NetworkConfig,
    networks: Sequence[nn.Module],
    *,
    n_pixel: int,
    n_observable: int,
) -> Engine:
    """Choose what computes some networks.

    Parameters
    ----------
    name : {"auto", "torch", "compiled"}
        ``auto`` is torch for networks whose members it stacks, where it finds a GPU, or where
        the compiled engine is not installed; else compiled. Networks with a part that the compiled
        engine lacks run on torch, and the log says why.
    config, networks, n_pixel, n_observable
        The preset, its members in evaluation mode, and the columns of their inputs.

    Raises
    ------
    UnknownName
        If there is no such engine.
    MissingExtra
        If ``compiled`` is asked for and not installed.
    """
    check_known("engine", name, ENGINES)
    if name == "auto":
        lacking = config.stacks or torch.cuda.is_available() or not available()
        name = "torch" if lacking else "compiled"
    if name == "compiled":
        try:
            return CompiledEngine(config, networks, n_pixel=n_pixel, n_observable=n_observable)
        # Not an error, though it was asked for: the labels are the same, they only take longer.
        except NotLowered as reason:
            logger.info("the compiled engine cannot run the networks: %s; torch does", reason)
    return TorchEngine(config, networks)


class _Predicting(nn.Module):
    """A network whose forward gives the parts of a `NetworkOutput` that its preset predicts."""

    def __init__(self, config: NetworkConfig, network: nn.Module) -> None:
        super().__init__()
        self._config, self.network = config, network

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        """Return the parts by name."""
        output = self._config.predict(self.network, *inputs)
        parts = {field.name: getattr(output, field.name) for field in fields(output)}
        return {name: part for name, part in parts.items() if part is not None}


def _stacked(config: NetworkConfig, networks: Sequence[nn.Module]) -> Callable[..., NetworkOutput]:
    """Return what computes all members at once, as one network of stacked weights."""
    members = [_Predicting(config, network) for network in networks]
    weights, buffers = stack_module_state(members)
    # Left as one: what follows from the inputs and from it is then computed once for all members.
    common = {name: stack[0] for name, stack in buffers.items() if torch.all(stack == stack[0])}
    apart = {**weights, **{name: buffers[name] for name in buffers.keys() - common.keys()}}

    def member(state: dict[str, Tensor], *block: Tensor) -> dict[str, Tensor]:
        parts: dict[str, Tensor] = functional_call(members[0], {**common, **state}, block)
        return parts

    at_once = torch.vmap(member, in_dims=(0, None, None, None))

    def predict(*block: Tensor) -> NetworkOutput:
        parts = at_once(apart, *block)
        features = parts.pop("features", None)
        return NetworkOutput(**parts, features=None if features is None else features[0])

    return predict


def _filled_up(array: Float32Array) -> Float32Array:
    """Return `array` with rows of zeros up to a whole block."""
    if len(array) == BLOCK_ROWS and array.flags.writeable:
        return np.ascontiguousarray(array, dtype=np.float32)
    whole = np.zeros((BLOCK_ROWS, array.shape[1]), dtype=np.float32)
    whole[: len(array)] = array
    return whole


def _joined(blocks: Sequence[EnsembleOutput]) -> EnsembleOutput:
    def whole(name: str, axis: int) -> Any:
        parts = [getattr(block, name) for block in blocks]
        # All blocks have a part or none: the preset decides that.
        return None if parts[0] is None else np.concatenate(parts, axis)

    return EnsembleOutput(
        whole("mean", 1), whole("variance", 1), whole("covariance", 1), whole("features", 0)
    )


def _all_of(parts: Sequence[Tensor | None]) -> Tensor | None:
    """All parts in one tensor; None if a network does not predict them."""
    known = [part for part in parts if part is not None]
    # All or none: a mean over the members that have a variance would be that of another ensemble.
    return torch.stack(known) if len(known) == len(parts) else None


def _to_numpy(output: NetworkOutput, n: int) -> EnsembleOutput:
    """Return the first `n` stars of an output."""

    def double(tensor: Tensor | None) -> Float64Array | None:
        return None if tensor is None else tensor[:, :n].double().cpu().numpy()

    mean = double(output.mean)
    assert mean is not None
    features = output.features
    return EnsembleOutput(
        mean,
        double(output.variance),
        double(output.covariance),
        None if features is None else features[:n].float().cpu().numpy(),
    )
