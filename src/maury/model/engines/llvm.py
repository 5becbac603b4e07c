"""Text of LLVM code for vectors of stars, and its compilation for the processor at hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np

from maury.errors import MissingExtra


@dataclass(frozen=True)
class Activation:
    """What follows a layer: nothing (``none``), or ``max(x, slope x)`` (``leaky``)."""

    kind: str = "none"
    slope: float = 0.0


NONE = Activation()


class Code:
    """Text of LLVM code, one function at a time, for a vector of `lanes` stars."""

    def __init__(self, target: Processor, *, n_row: int, n_out: int, n_vector: int) -> None:
        lanes = target.lanes
        self.lanes, self.n_sum = lanes, target.n_sum
        self.n_row, self.n_out = n_row, n_out
        self.n_vector = n_vector
        self.vector = f"<{lanes} x float>"
        self._lines: list[str] = []
        self._count = 0
        self._block = "entry"
        self._arena = "%arena"

    def function(self, name: str, arguments: str, body: Callable[[], Any]) -> None:
        """Write a function; its arguments are names of pointers, or typed."""
        # For some processors LLVM prefers vectors of half the width, and would split each operation
        # in two.
        bits, kind = 32 * self.lanes, "" if name == "run" else "internal "
        self._lines.append(
            f"define {kind}void @{name}({arguments}) noinline nounwind "
            f'"prefer-vector-width"="{bits}" "min-legal-vector-width"="{bits}" {{'
        )
        self._label("entry")
        body()
        self._lines += ["ret void", "}"]

    def text(self) -> str:
        """Return all that was written."""
        fma = f"declare {self.vector} @llvm.fmuladd.v{self.lanes}f32"
        fma += f"({', '.join([self.vector] * 3)})"
        return "\n".join([fma, "declare i64 @llvm.umin.i64(i64, i64)", *self._lines])

    def _name(self) -> str:
        self._count += 1
        return f"%t{self._count}"

    def _label(self, name: str) -> None:
        self._block = name
        self._lines.append(f"{name}:")

    def op(self, text: str) -> str:
        """Write an instruction; return the name of its value."""
        name = self._name()
        self._lines.append(f"{name} = {text}")
        return name

    def do(self, text: str) -> None:
        """Write an instruction without a value."""
        self._lines.append(text)

    def loop(
        self, n: int | str, body: Callable[..., Any], *, carried: Sequence[str] | None = None
    ) -> list[str]:
        """Repeat `body` (index[, carried values]); return the last of what it carries."""
        takes = () if carried is None else (list(carried),)
        # No loop: constants of the index then fold into the addresses.
        if n == 1:
            return body("0", *takes) or []
        entry, self._count = self._block, self._count + 1
        head = f"loop{self._count}"
        self.do(f"br label %{head}")
        self._label(head)
        index, names = self._name(), [self._name() for _ in carried or ()]
        # The first instructions of a loop name its last values, which are known only after its
        # body: they are put in there afterwards.
        here = len(self._lines)
        last = body(index, *(() if carried is None else (list(names),))) or []
        following = self.op(f"add nuw nsw i64 {index}, 1")
        phis = [f"{index} = phi i64 [0, %{entry}], [{following}, %{self._block}]"]
        phis += [
            f"{name} = phi {self.vector} [{first}, %{entry}], [{value}, %{self._block}]"
            for name, first, value in zip(names, carried or (), last, strict=True)
        ]
        self._lines[here:here] = phis
        done = self.op(f"icmp eq i64 {following}, {n}")
        self.do(f"br i1 {done}, label %{head}.end, label %{head}")
        self._label(f"{head}.end")
        return last

    def each_vector(self, body: Callable[[str], Any]) -> None:
        """Repeat `body` for each vector of stars in the block, with `row` meaning its rows."""

        def one(vector: str) -> None:
            offset = self.op(f"mul i64 {vector}, {self.n_row * self.lanes}")
            self._arena = self.at("%arena", offset)
            body(vector)

        self.loop(self.n_vector, one)

    def at(self, pointer: str, offset: str | int) -> str:
        """Pointer to the float at `offset`."""
        return self.op(f"getelementptr float, ptr {pointer}, i64 {offset}")

    def scaled(self, index: str, first: int) -> str:
        """Offset of row ``first + index`` in floats."""
        row = self.op(f"add i64 {index}, {first}")
        return self.op(f"mul i64 {row}, {self.lanes}")

    def row(self, first: int, index: str) -> str:
        """Pointer to row ``first + index`` of the present vector."""
        return self.at(self._arena, self.scaled(index, first))

    def bounded(self, index: str, step: int, largest: int) -> str:
        """``min(index step, largest)``."""
        product = self.op(f"mul i64 {index}, {step}")
        return self.op(f"call i64 @llvm.umin.i64(i64 {product}, i64 {largest})")

    def load(self, pointer: str) -> str:
        """Load a row."""
        return self.op(f"load {self.vector}, ptr {pointer}, align {4 * self.lanes}")

    def store(self, pointer: str, value: str) -> None:
        """Store a row."""
        self.do(f"store {self.vector} {value}, ptr {pointer}, align {4 * self.lanes}")

    def splat(self, pointer: str) -> str:
        """Load one number for all stars."""
        value = self.op(f"load float, ptr {pointer}, align 4")
        return self._broadcast(f"float {value}")

    def _broadcast(self, value: str) -> str:
        one = self.op(f"insertelement {self.vector} poison, {value}, i64 0")
        return self.op(
            f"shufflevector {self.vector} {one}, {self.vector} poison, "
            f"<{self.lanes} x i32> zeroinitializer"
        )

    def constant(self, value: float) -> str:
        """Return a constant for all stars."""
        # LLVM takes a float as the bits of a double, and refuses one that float32 does not hold
        # exactly.
        exact = struct.unpack("<Q", struct.pack("<d", float(np.float32(value))))[0]
        return f"<{', '.join([f'float 0x{exact:016X}'] * self.lanes)}>"

    def fma(self, a: str, b: str, c: str) -> str:
        """Return ``a b + c``."""
        # Fused where the processor can; `llvm.fma` would call a slow function where it cannot.
        arguments = ", ".join(f"{self.vector} {value}" for value in (a, b, c))
        return self.op(f"call {self.vector} @llvm.fmuladd.v{self.lanes}f32({arguments})")

    def most(self, a: str, b: str) -> str:
        """Larger of two."""
        # Not `llvm.maxnum`, whose rules for NaN cost instructions.
        wins = self.op(f"fcmp ogt {self.vector} {a}, {b}")
        return self.op(f"select <{self.lanes} x i1> {wins}, {self.vector} {a}, {self.vector} {b}")

    def where_positive(self, value: str, a: str, b: str) -> str:
        """Return `a` where `value` > 0, else `b`."""
        wins = self.op(f"fcmp ogt {self.vector} {value}, {self.constant(0.0)}")
        return self.op(f"select <{self.lanes} x i1> {wins}, {self.vector} {a}, {self.vector} {b}")

    def activate(self, value: str, activation: Activation) -> str:
        """Apply an activation."""
        if activation.kind == "none":
            return value
        slope = self.constant(activation.slope)
        return self.most(value, self.op(f"fmul {self.vector} {value}, {slope}"))


class Processor:
    """The processor at hand: its vectors, and a compiler for it.

    Attributes
    ----------
    lanes : int
        Stars in a vector register.
    n_sum : int
        Registers that hold sums; the others hold inputs and weights.
    """

    def __init__(self, lanes: int | None = None) -> None:
        require_installed()
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        self._llvm = llvm
        features = llvm.get_host_cpu_features()
        self._features = features.flatten()
        widest = 16 if features.get("avx512f") else 8 if features.get("avx") else 4
        self.lanes = widest if lanes is None else lanes
        # Half of the registers: AVX has 16, AVX-512 and ARM have 32.
        self.n_sum = 8 if widest == 8 else 16

    def compile(self, text: str) -> Any:
        """Compile code; the result holds its functions as long as it lives."""
        llvm = self._llvm
        machine = llvm.Target.from_default_triple().create_target_machine(
            cpu=llvm.get_host_cpu_name(), features=self._features, opt=2
        )
        module = llvm.parse_assembly(text)
        module.verify()
        options = llvm.create_pipeline_tuning_options(speed_level=2)
        # The code is vectors already and unrolled where that pays: these passes would cost time,
        # and registers.
        options.loop_vectorization = options.slp_vectorization = False
        options.loop_unrolling = False
        builder = llvm.create_pass_builder(machine, options)
        builder.getModulePassManager().run(module, builder)
        engine = llvm.create_mcjit_compiler(module, machine)
        engine.finalize_object()
        return engine


def available() -> bool:
    """Whether `llvmlite` is installed, which has no wheels for rare platforms."""
    return find_spec("llvmlite") is not None


def require_installed() -> None:
    """Raise `MissingExtra` unless `llvmlite` is installed."""
    if not available():
        raise MissingExtra(
            "the compiled engine needs llvmlite, which is not installed; run: pip install llvmlite"
        )
