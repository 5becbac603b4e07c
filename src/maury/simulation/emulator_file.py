"""What a file of the emulator holds: tensors, and what is known of them; both checked."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray, Float32Array, Float64Array, Int32Array
from maury.simulation.quantities import DISSOCIATION, EMULATOR_LABELS, QUANTITIES

__all__ = ["Accuracy", "EmulatorSpec", "EmulatorTensors", "parse_spec", "read_emulator"]

N_INPUT = len(QUANTITIES) + len(DISSOCIATION)


class Accuracy(BaseModel):
    """Emulated minus synthetic flux on stars that no training saw.

    Attributes
    ----------
    n_star : int
        Stars measured.
    resolving_power : float
        To which both fluxes were broadened.
    rms, p99 : float
        Root mean square, and 99th percentile of the absolute difference, over stars and pixels.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    n_star: int
    resolving_power: float
    rms: float
    p99: float


class EmulatorSpec(BaseModel):
    """What a weights file says of itself: labels, grid, accuracy, origin.

    Attributes
    ----------
    label_names, label_units, label_bounds : tuple
        The sixteen labels, their units, and the (lowest, highest) value among the spectra.
    first_wave_aa, last_wave_aa, n_pixel : float, float, int
        The grid, uniform in ln(lambda), both ends included.
    medium : str
        Wavelengths are in air.
    resolving_power : float
        Of the emulated spectra.
    accuracy : dict of str to Accuracy
        Measured on held-out stars, by group.
    holdout_rule : str
        How the held-out stars were drawn; their rows are the tensor ``holdout_rows``.
    checksum : str
        SHA-256 of the tensors.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["maury-emulator"] = "maury-emulator"
    format_version: Literal[1] = 1
    label_names: tuple[str, ...] = tuple(EMULATOR_LABELS)
    label_units: tuple[str, ...] = tuple(EMULATOR_LABELS.values())
    label_bounds: tuple[tuple[float, float], ...]
    first_wave_aa: Annotated[float, Field(gt=0)]
    last_wave_aa: Annotated[float, Field(gt=0)]
    n_pixel: Annotated[int, Field(ge=2)]
    medium: Literal["air"] = "air"
    resolving_power: Annotated[float, Field(gt=0)]
    accuracy: dict[str, Accuracy] = {}
    holdout_rule: str = ""
    provenance: str = ""
    citation: str = ""
    licence: str = ""
    checksum: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> EmulatorSpec:
        if self.label_names != tuple(EMULATOR_LABELS):
            raise ValueError(f"label_names must be {', '.join(EMULATOR_LABELS)}")
        if len(self.label_bounds) != len(EMULATOR_LABELS):
            raise ValueError(f"label_bounds must hold {len(EMULATOR_LABELS)} pairs")
        if any(not low < high for low, high in self.label_bounds):
            raise ValueError("each of label_bounds must increase")
        if not self.first_wave_aa < self.last_wave_aa:
            raise ValueError("last_wave_aa must exceed first_wave_aa")
        return self

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom, uniform in ln(lambda)."""
        return np.geomspace(self.first_wave_aa, self.last_wave_aa, self.n_pixel)


@dataclass(frozen=True, eq=False)
class EmulatorTensors:
    """Weights of M members of equal shape, whose coefficients are averaged.

    ``weight_0`` (M, 19, H), ``weight_1`` and ``weight_2`` (M, H, H), ``bias_*`` (M, 1, H),
    ``weight_out`` (M, H, K), ``bias_out`` (M, 1, K), ``basis`` (K, n_pixel), ``mean`` and
    ``error`` (n_pixel,), ``centre`` and ``scale`` (19,): all float32 but the last two, float64.
    """

    centre: Float64Array
    scale: Float64Array
    weight_0: Float32Array
    bias_0: Float32Array
    weight_1: Float32Array
    bias_1: Float32Array
    weight_2: Float32Array
    bias_2: Float32Array
    weight_out: Float32Array
    bias_out: Float32Array
    basis: Float32Array
    mean: Float32Array
    error: Float32Array
    holdout_rows: Int32Array

    def hidden_layers(self) -> Iterator[tuple[Float32Array, Float32Array]]:
        """Yield weights and biases of the hidden layers, in order."""
        yield self.weight_0, self.bias_0
        yield self.weight_1, self.bias_1
        yield self.weight_2, self.bias_2

    def as_dict(self) -> dict[str, AnyArray]:
        """Return the tensors by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def checksum(self) -> str:
        """SHA-256 of names, dtypes, shapes and values."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.as_dict().items()):
            digest.update(f"{name}{tensor.dtype.str}{tensor.shape}".encode())
            digest.update(np.ascontiguousarray(tensor).tobytes())
        return digest.hexdigest()

    def problem(self, n_pixel: int) -> str | None:
        """Say what is wrong with the shapes or values, if anything."""
        if self.weight_out.ndim != 3 or self.basis.ndim != 2:
            return "weight_out must have three axes and basis two"
        member, hidden, coefficient = self.weight_out.shape
        expected: dict[str, tuple[int, ...]] = {
            "centre": (N_INPUT,),
            "scale": (N_INPUT,),
            "weight_0": (member, N_INPUT, hidden),
            "weight_1": (member, hidden, hidden),
            "weight_2": (member, hidden, hidden),
            "bias_0": (member, 1, hidden),
            "bias_1": (member, 1, hidden),
            "bias_2": (member, 1, hidden),
            "bias_out": (member, 1, coefficient),
            "basis": (coefficient, n_pixel),
            "mean": (n_pixel,),
            "error": (n_pixel,),
        }
        for name, shape in expected.items():
            tensor = getattr(self, name)
            kind = np.float64 if name in ("centre", "scale") else np.float32
            if tensor.shape != shape or tensor.dtype != kind:
                return f"{name} is {tensor.dtype} {tensor.shape}, expected {kind.__name__} {shape}"
            if not np.all(np.isfinite(tensor)):
                return f"{name} has values that are not finite"
        return None


def read_emulator(path: Path) -> tuple[str, dict[str, AnyArray]]:
    """Read the JSON text and the tensors of a file.

    Raises
    ------
    ModelFileError
        If it cannot be read, or is no emulator.
    """
    try:
        with safe_open(path, framework="numpy") as handle:
            text = (handle.metadata() or {}).get("emulator")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"cannot read it ({error})") from error
    if text is None:
        raise ModelFileError("no 'emulator' metadata")
    return text, tensors


def parse_spec(text: str) -> EmulatorSpec:
    """Read what a file says of itself.

    Raises
    ------
    ModelFileError
        With all that is wrong in it.
    """
    try:
        return EmulatorSpec.model_validate_json(text)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, e['loc'])) or 'metadata'}: {e['msg']}" for e in error.errors()
        )
        raise ModelFileError("; ".join(faults)) from error
