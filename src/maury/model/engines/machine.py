"""All members of an ensemble as one function, compiled when a model is loaded.

It works through blocks of stars that stay in the cache. The compiler is `llvmlite`.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from maury.io.arrays import Float32Array
from maury.model.engines.kernels import Graph, Load
from maury.model.engines.llvm import Code, Processor

_CACHE_BYTES = 800 * 1024
"""Largest arena of a block of more than one vector; a level-2 cache of today holds 1 MiB."""
_MOST_VECTORS = 4
"""Vectors of stars in a block: enough to hide the latency of a chain of sums; chosen."""
# The code says of every row that it is aligned so, and would crash on one that is not.
_ALIGNMENT = 64
"""Bytes of a cache line, and of the widest vector register (AVX-512)."""


class Machine:
    """Members compiled into one function for the processor at hand.

    Parameters
    ----------
    members : sequence of Graph
        Alike in everything but their numbers.
    n_thread : int
        Threads that share the stars of a call.
    lanes : int, optional
        Stars in a vector register; as the processor has it by default.

    Raises
    ------
    MissingExtra
        If `llvmlite` is not installed.
    """

    def __init__(
        self, members: Sequence[Graph], *, n_thread: int = 1, lanes: int | None = None
    ) -> None:
        first = members[0]
        # One function serves all members, with a pointer to other numbers: a step that one has and
        # another lacks cannot be told to it.
        for one, other in pairwise(members):
            assert (one.shared, one.steps) == (other.shared, other.steps), "members are alike"
        self._inputs, self._n_out = tuple(first.inputs), first.n_out
        self._n_member, self._n_thread = len(members), n_thread
        self._weights = _aligned(np.stack([np.concatenate(one.numbers) for one in members]))
        # Threads share weights and inputs, which are read only; in one arena they would overwrite
        # each other's rows.
        self._local = threading.local()
        target = Processor(lanes)
        self._lanes = target.lanes
        bytes_per_vector = 4 * target.lanes * first.n_row
        self._n_vector = int(np.clip(_CACHE_BYTES // bytes_per_vector, 1, _MOST_VECTORS))
        self._n_arena = self._n_vector * target.lanes * first.n_row
        code = Code(target, n_row=first.n_row, n_out=first.n_out, n_vector=self._n_vector)
        _write_program(code, first, self._weights.shape)
        # Kept as an attribute, for the address below points into its memory.
        self._engine = target.compile(code.text())
        self._run = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4, ctypes.c_int64, ctypes.c_int64)(
            self._engine.get_function_address("run")
        )

    @property
    def block(self) -> int:
        """Stars computed at a time."""
        return self._lanes * self._n_vector

    def set_numbers(self, number: int, graph: Graph) -> None:
        """Give member `number` the numbers of `graph`, which is alike otherwise."""
        np.concatenate(graph.numbers, out=self._weights[number])

    def __call__(self, *inputs: Float32Array) -> Float32Array:
        """Run all members on the same stars.

        Parameters
        ----------
        *inputs : (n_star, n_column) float32
            As loaded by the graph, in order.

        Returns
        -------
        (n_member, n_star, n_out) float32
            A view of what the members stored.
        """
        n = len(inputs[0])
        n_block = -(-n // self.block)
        # The last block is computed whole. Stars are independent, so those made of zeros disturb
        # none, and are cut off in the end.
        padded = [self._padded(array, n_block * self.block) for array in inputs]
        out = _aligned(
            # Lanes last, so that the generated code stores a row by one instruction; numpy puts the
            # stars in order when all is done.
            np.zeros((self._n_member, n_block * self._n_vector, self._n_out, self._lanes), "f4")
        )
        bounds = np.linspace(0, n_block, min(self._n_thread, max(n_block, 1)) + 1).astype(int)
        parts = [(int(a), int(b)) for a, b in pairwise(bounds) if b > a]
        # A foreign function runs without the lock of the interpreter, so that threads do gain.
        if len(parts) > 1:
            with ThreadPoolExecutor(len(parts)) as pool:
                list(pool.map(lambda part: self._part(padded, out, part), parts))
        else:
            for part in parts:
                self._part(padded, out, part)
        return out.transpose(0, 1, 3, 2).reshape(self._n_member, -1, self._n_out)[:, :n]

    def _padded(self, array: Float32Array, n: int) -> Float32Array:
        array = np.ascontiguousarray(array, dtype=np.float32)
        if len(array) == n:
            return array
        whole = np.zeros((n, array.shape[1]), dtype=np.float32)
        whole[: len(array)] = array
        return whole

    def _part(self, inputs: list[Float32Array], out: Float32Array, part: tuple[int, int]) -> None:
        """Run the blocks of one thread, with an arena of its own."""
        start, stop = part
        arena = getattr(self._local, "arena", None)
        if arena is None:
            arena = self._local.arena = _aligned(np.zeros(self._n_arena, dtype=np.float32))
        pointers = (ctypes.c_void_p * len(inputs))(
            *(array[start * self.block :].ctypes.data for array in inputs)
        )
        self._run(
            ctypes.addressof(pointers),
            self._weights.ctypes.data,
            out[:, start * self._n_vector :].ctypes.data,
            arena.ctypes.data,
            stop - start,
            out[0].size,
        )


def _aligned(array: Float32Array) -> Float32Array:
    """Copy of an array that starts on a cache line."""
    room = np.empty(array.size + _ALIGNMENT // 4, dtype=np.float32)
    skip = -room.ctypes.data % _ALIGNMENT // 4
    copy = room[skip : skip + array.size].reshape(array.shape)
    copy[...] = array
    return copy


def _write_program(code: Code, graph: Graph, weights: tuple[int, ...]) -> None:
    """Write one function for each step, and one that runs them block by block."""
    steps = [*graph.shared, *graph.steps]
    for number, step in enumerate(steps):
        code.function(
            f"step{number}",
            "ptr noalias %arena, ptr noalias readonly %w, ptr noalias %io",
            # Bound as a default, or every function would emit the last step of the loop.
            lambda step=step: step.emit(code),  # type: ignore[misc]
        )
    n_member, n_number = weights
    n_star = code.lanes * code.n_vector

    def call(number: int, weight: str, io: str) -> None:
        code.do(f"call void @step{number}(ptr %arena, ptr {weight}, ptr {io})")

    def block(index: str) -> None:
        for number, step in enumerate(graph.shared):
            # Steps other than Load neither read nor write it; the pointer must only be valid.
            io = "%arena"
            if isinstance(step, Load):
                place = code.op(f"getelementptr ptr, ptr %inputs, i64 {step.number}")
                base = code.op(f"load ptr, ptr {place}")
                io = code.at(base, code.op(f"mul i64 {index}, {n_star * step.n_column}"))
            # Shared steps hold no numbers of a member, so that those of the first serve.
            call(number, "%weights", io)
        start = code.op(f"mul i64 {index}, {n_star * graph.n_out}")

        def member(which: str) -> None:
            weight = code.at("%weights", code.op(f"mul i64 {which}, {n_number}"))
            skip = code.op(f"mul i64 {which}, %per_member")
            out = code.at("%out", code.op(f"add i64 {skip}, {start}"))
            for number in range(len(graph.shared), len(steps)):
                call(number, weight, out)

        code.loop(n_member, member)

    code.function(
        "run",
        "ptr %inputs, ptr %weights, ptr %out, ptr %arena, i64 %n_block, i64 %per_member",
        lambda: code.loop("%n_block", block),
    )
