"""Small networks as steps on rows of stars, each written as vector code.

Libraries of neural networks lay the channels of a layer along the lanes of a vector register,
which wastes most of them when a layer has 2, 4 or 8 channels. Here the lanes hold *stars*: any
number of channels fills the registers, and every member of an ensemble reads the same spectra.

A member is a `Graph`: a list of steps over an arena of rows, one row for one value of each star
of a vector. `maury.model.engines.machine` makes a function of it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from maury.io.arrays import AnyArray, Float32Array
from maury.model.engines.llvm import NONE, Activation, Code

_ROW_MULTIPLE = 8
"""Buffers are padded to this many rows, so that a dense layer can be unrolled."""


class Operation(ABC):
    """One step of a graph; it reads and writes rows of the arena."""

    @abstractmethod
    def emit(self, code: Code) -> None:
        """Write the body of the function of this step."""


@dataclass
class Graph:
    """One member: what is done once for all members, what each does, and its numbers.

    Attributes
    ----------
    inputs : list of int
        Number of columns of each input.
    shared, steps : list of Operation
        Steps of all members together, and of each.
    n_row, n_out : int
        Rows of the arena, and of the output of a member.
    numbers : list of (n,) float32
        Weights, in the order of the steps.
    """

    inputs: list[int] = field(default_factory=list)
    shared: list[Operation] = field(default_factory=list)
    steps: list[Operation] = field(default_factory=list)
    n_row: int = 0
    n_out: int = 0
    numbers: list[Float32Array] = field(default_factory=list)

    def rows(self, n: int) -> int:
        """Reserve `n` rows of the arena; return the first."""
        first = self.n_row
        # Rows of padding are never written: they stay 0, and 0 times a weight of padding is no NaN.
        self.n_row += -(-n // _ROW_MULTIPLE) * _ROW_MULTIPLE
        return first

    def load(self, n_column: int, target: int | None = None) -> int:
        """Bring an input of `n_column` columns into the arena; return its first row."""
        target = self.rows(n_column) if target is None else target
        self.shared.append(Load(len(self.inputs), n_column, target))
        self.inputs.append(n_column)
        return target

    def put(self, *numbers: AnyArray) -> int:
        """Add numbers of the member; return the offset of the first."""
        offset = sum(part.size for part in self.numbers)
        self.numbers += [np.asarray(part, dtype=np.float32).ravel() for part in numbers]
        return offset

    def store(self, source: int, n: int) -> None:
        """Give `n` rows out, after those given before."""
        self.steps.append(Store(source, n, self.n_out))
        self.n_out += n

    def dense(
        self,
        source: int,
        weight: Float32Array,
        bias: Float32Array,
        *,
        target: int | None = None,
        activation: Activation = NONE,
    ) -> int:
        """Add ``activation(W x + b)``; `weight` is (out, in). Return its first row."""
        n_out, n_in = weight.shape
        # As a convolution of eight taps at one position, so that its inner loop is unrolled
        # eightfold.
        taps = min(_ROW_MULTIPLE, n_in)
        n_channel = -(-n_in // taps)
        padded = np.zeros((n_out, taps * n_channel), dtype=np.float32)
        padded[:, :n_in] = weight
        kernel = padded.reshape(n_out, taps, n_channel).transpose(0, 2, 1)
        return self.convolve(
            source, kernel, bias, n_position=1, target=target, activation=activation
        )

    def convolve(
        self,
        source: int,
        kernel: Float32Array,
        bias: Float32Array,
        *,
        n_position: int,
        target: int | None = None,
        activation: Activation = NONE,
    ) -> int:
        """Add a valid convolution with `kernel` (out, in, tap) over rows (position, channel).

        Gives rows (n_position, out); returns the first of them.
        """
        n_out, n_in, n_tap = kernel.shape
        target = self.rows(n_position * n_out) if target is None else target
        width = tile_width(n_out)
        # The last tile overlaps the one before: some outputs are computed twice, and no code is
        # needed for a rest.
        starts = [min(k, n_out - width) for k in range(0, n_out, width)]
        packed = [kernel[k : k + width].transpose(1, 2, 0) for k in starts]
        offset = self.put(*packed)
        bias_offset = self.put(bias)
        self.steps.append(
            Convolve(
                source,
                target,
                n_in,
                n_tap,
                n_position,
                n_out,
                offset,
                bias_offset,
                activation,
            )
        )
        return target


def tile_width(n_out: int, most: int = 24, least: int = 12) -> int:
    """Return how many outputs to compute at a time: the most of those that waste least."""
    if n_out <= most:
        return n_out
    # Wide first, as `min` takes the first of equals: a wide tile loads each input for more outputs.
    return min(range(most, least - 1, -1), key=lambda width: -(-n_out // width) * width)


@dataclass(frozen=True)
class Load(Operation):
    """Transpose a block of stars of input `number` into rows."""

    number: int
    n_column: int
    target: int

    def emit(self, code: Code) -> None:
        """See `Operation.emit`."""

        def column(star: str, index: str) -> None:
            # All lanes are written before any is read.
            vector = "poison"
            for lane in range(code.lanes):
                line = code.op(f"add i64 {star}, {lane * self.n_column}")
                place = code.op(f"add i64 {line}, {index}")
                value = code.op(f"load float, ptr {code.at('%io', place)}, align 4")
                vector = code.op(f"insertelement {code.vector} {vector}, float {value}, i64 {lane}")
            code.store(code.row(self.target, index), vector)

        def block(vector: str) -> None:
            star = code.op(f"mul i64 {vector}, {self.n_column * code.lanes}")
            code.loop(self.n_column, lambda index: column(star, index))

        code.each_vector(block)


@dataclass(frozen=True)
class Store(Operation):
    """Copy rows to the output."""

    source: int
    n: int
    offset: int

    def emit(self, code: Code) -> None:
        """See `Operation.emit`."""

        def block(vector: str) -> None:
            base = code.op(f"mul i64 {vector}, {code.n_out * code.lanes}")
            out = code.at("%io", base)

            def one(index: str) -> None:
                place = code.at(out, code.scaled(index, self.offset))
                code.store(place, code.load(code.row(self.source, index)))

            code.loop(self.n, one)

        code.each_vector(block)


@dataclass(frozen=True)
class Convolve(Operation):
    """Convolution or dense layer: a tile of outputs times positions stays in the registers."""

    source: int
    target: int
    n_in: int
    n_tap: int
    n_position: int
    n_out: int
    weight: int
    bias: int
    activation: Activation

    def emit(self, code: Code) -> None:
        """See `Operation.emit`."""
        width = tile_width(self.n_out)
        n_tile = -(-self.n_out // width)
        depth = max(1, min(code.n_sum // width, self.n_position))
        n_depth = -(-self.n_position // depth)

        def tile(number: str, position: str) -> None:
            first = code.bounded(number, width, self.n_out - width)
            start = code.bounded(position, depth, self.n_position - depth)
            self._tile(code, (number, first, start), width, depth)

        # A dense layer has many weights: each tile of them serves all vectors while it is in the
        # cache. A convolution has few, and its many positions stay in the cache instead.
        if self.n_position == 1:
            code.loop(n_tile, lambda number: code.each_vector(lambda _: tile(number, "0")))
        else:
            code.each_vector(
                lambda _: code.loop(
                    n_depth, lambda place: code.loop(n_tile, lambda number: tile(number, place))
                )
            )

    def _tile(self, code: Code, where: tuple[str, str, str], width: int, depth: int) -> None:
        number, first, start = where
        lanes, size = code.lanes, self.n_tap * width
        x = code.row(self.source, code.op(f"mul i64 {start}, {self.n_in}"))
        skip = code.op(f"mul i64 {number}, {self.n_in * size}")
        w = code.at("%w", code.op(f"add i64 {skip}, {self.weight}"))
        b = code.at("%w", code.op(f"add i64 {first}, {self.bias}"))
        bias = [code.splat(code.at(b, k)) for k in range(width)]

        def channel(index: str, sums: list[str]) -> list[str]:
            xs = code.at(x, code.op(f"mul i64 {index}, {lanes}"))
            ws = code.at(w, code.op(f"mul i64 {index}, {size}"))
            step = self.n_in * lanes
            # Neighbouring positions share all but one of their taps: each input is loaded once.
            seen = [code.load(code.at(xs, p * step)) for p in range(depth - 1)]
            for tap in range(self.n_tap):
                seen.append(code.load(code.at(xs, (depth - 1 + tap) * step)))
                for k in range(width):
                    weight = code.splat(code.at(ws, tap * width + k))
                    for p in range(depth):
                        place = p * width + k
                        sums[place] = code.fma(seen[p + tap], weight, sums[place])
            return sums

        sums = code.loop(self.n_in, channel, carried=bias * depth)
        place = code.op(f"mul i64 {start}, {self.n_out}")
        place = code.op(f"add i64 {place}, {first}")
        for p in range(depth):
            for k in range(width):
                value = code.activate(sums[p * width + k], self.activation)
                row = p * self.n_out + k
                code.store(code.at(code.row(self.target, place), row * lanes), value)


@dataclass(frozen=True)
class Pool(Operation):
    """Maximum over `size` positions of rows (position, channel)."""

    source: int
    target: int
    n_channel: int
    size: int
    n_position: int

    def emit(self, code: Code) -> None:
        """See `Operation.emit`."""

        def one(place: str, channel: str) -> None:
            first = code.op(f"mul i64 {place}, {self.size * self.n_channel}")
            source = code.row(self.source, code.op(f"add i64 {first}, {channel}"))
            step = self.n_channel * code.lanes
            most = code.load(source)
            for k in range(1, self.size):
                most = code.most(most, code.load(code.at(source, k * step)))
            row = code.op(f"mul i64 {place}, {self.n_channel}")
            code.store(code.row(self.target, code.op(f"add i64 {row}, {channel}")), most)

        code.each_vector(
            lambda _: code.loop(
                self.n_position,
                lambda place: code.loop(self.n_channel, lambda channel: one(place, channel)),
            )
        )


@dataclass(frozen=True)
class Gate(Operation):
    """Gradient before ``max(x, slope x)`` from that after it, in place; `value` is after it."""

    value: int
    gradient: int
    n: int
    slope: float

    def emit(self, code: Code) -> None:
        """See `Operation.emit`."""

        def one(index: str) -> None:
            place = code.row(self.gradient, index)
            gradient, value = code.load(place), code.load(code.row(self.value, index))
            lower = code.op(f"fmul {code.vector} {gradient}, {code.constant(self.slope)}")
            # The value after tells the side as well as that before, for the slope is not negative.
            code.store(place, code.where_positive(value, gradient, lower))

        code.each_vector(lambda _: code.loop(self.n, one))


@dataclass(frozen=True)
class Correlate(Operation):
    """Gradient of the weights of a convolution, a share of each star.

    Gives rows (in, tap, out), then those of the biases (out).
    """

    source: int
    gradient: int
    target: int
    n_in: int
    n_tap: int
    n_position: int
    n_out: int

    def emit(self, code: Code) -> None:
        """See `Operation.emit`."""
        # So many taps that the sums of all outputs fill the registers set aside for sums.
        depth = max(1, min(code.n_sum // self.n_out, self.n_tap))
        n_depth = -(-self.n_tap // depth)

        def tile(channel: str, number: str) -> None:
            tap = code.bounded(number, depth, self.n_tap - depth)
            first = code.op(f"mul i64 {tap}, {self.n_in}")
            first = code.op(f"add i64 {first}, {channel}")
            sums = self._sums(code, first, depth)
            row = code.op(f"mul i64 {channel}, {self.n_tap}")
            row = code.op(f"mul i64 {code.op(f'add i64 {row}, {tap}')}, {self.n_out}")
            place = code.row(self.target, row)
            for k, value in enumerate(sums):
                code.store(code.at(place, k * code.lanes), value)

        def bias(channel: str) -> None:
            def add(position: str, total: list[str]) -> list[str]:
                row = code.op(f"mul i64 {position}, {self.n_out}")
                value = code.load(code.row(self.gradient, code.op(f"add i64 {row}, {channel}")))
                return [code.op(f"fadd {code.vector} {total[0]}, {value}")]

            total = code.loop(self.n_position, add, carried=[code.constant(0.0)])
            code.store(
                code.row(self.target + self.n_in * self.n_tap * self.n_out, channel), total[0]
            )

        def block(_: str) -> None:
            code.loop(self.n_in, lambda c: code.loop(n_depth, lambda number: tile(c, number)))
            code.loop(self.n_out, bias)

        code.each_vector(block)

    def _sums(self, code: Code, first: str, depth: int) -> list[str]:
        def add(position: str, sums: list[str]) -> list[str]:
            row = code.op(f"mul i64 {position}, {self.n_in}")
            x = code.row(self.source, code.op(f"add i64 {row}, {first}"))
            g = code.row(self.gradient, code.op(f"mul i64 {position}, {self.n_out}"))
            gradients = [code.load(code.at(g, k * code.lanes)) for k in range(self.n_out)]
            for tap in range(depth):
                value = code.load(code.at(x, tap * self.n_in * code.lanes))
                for k, gradient in enumerate(gradients):
                    sums[tap * self.n_out + k] = code.fma(
                        value, gradient, sums[tap * self.n_out + k]
                    )
            return sums

        zero = code.constant(0.0)
        return code.loop(self.n_position, add, carried=[zero] * (depth * self.n_out))
