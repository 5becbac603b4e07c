"""The forward emulator: stellar labels to a noise-free spectrum, with analytic derivatives.

A small ensemble of perceptrons maps sixteen labels to the coefficients of a basis of spectra, in
the manner of The Payne (Ting et al. 2019, ApJ 879, 69). It was trained on synthetic spectra, so
that whatever it returns is simulated. It knows nothing of surveys: resolving power, rotation,
radial velocity, pixels and noise are the business of the operators applied to its flux.

The wavelength grid is uniform in ln(lambda): one pixel is the same velocity everywhere, and line
spread, rotation and radial velocity are products in Fourier space.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from maury.errors import ModelFileError
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    Int32Array,
    on_finite_rows,
)
from maury.io.files import writing
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = [
    "DISSOCIATION",
    "EMULATOR_LABELS",
    "QUANTITIES",
    "Accuracy",
    "Emulator",
    "EmulatorSpec",
    "quantities",
]


EMULATOR_LABELS: dict[str, str] = {
    "teff": "K",
    "logg": "dex",
    "m_h": "dex",
    "fe_h": "dex",
    "alpha_m": "dex",
    "si_fe": "dex",
    "al_fe": "dex",
    "mg_fe": "dex",
    "ni_fe": "dex",
    "vmic": "km/s",
    "d_c": "dex",
    "d_n": "dex",
    "d_ca": "dex",
    "d_ti": "dex",
    "d_o": "dex",
    "d_cr": "dex",
}
"""Names and units of the sixteen labels, in order."""

QUANTITIES: dict[str, tuple[str, ...]] = {
    "theta": ("teff",),
    "logg": ("logg",),
    "vmic": ("vmic",),
    "fe": ("fe_h",),
    "mg": ("fe_h", "mg_fe"),
    "si": ("fe_h", "si_fe"),
    "al": ("fe_h", "al_fe"),
    "ni": ("fe_h", "ni_fe"),
    "cr": ("fe_h", "d_cr"),
    "ca": ("m_h", "alpha_m", "d_ca"),
    "ti": ("m_h", "alpha_m", "d_ti"),
    "o": ("m_h", "alpha_m", "d_o"),
    "s": ("m_h", "alpha_m"),
    "c": ("m_h", "d_c"),
    "n": ("m_h", "d_n"),
    "rest": ("m_h",),
}
"""What the network sees: each quantity is the sum of these labels, but theta = 5040 K / teff.

Abundances are thus those of the synthesis, relative to the Sun, one input per element, so that a
network need not learn that a magnesium line follows [Fe/H] + [Mg/Fe]. Mixing in evolved giants is
added to carbon and nitrogen. Three more inputs follow: the logarithm of the carbon that carbon
monoxide leaves free, in three layers (`DISSOCIATION`).
"""

DISSOCIATION = (
    (-2.88, -8.27, -0.53, 0.12),
    (-1.92, -8.32, -0.64, 0.15),
    (-0.91, -8.54, -0.13, -0.08),
)
"""Dissociation constant of CO per oxygen atom, in three layers: coefficients of its logarithm.

log10 K = a + b (theta - 1.1) + c (logg - 2.5) + d [O/H]. CN bands of cool stars rise steeply as
C/O nears one, which a network given C and O alone would have to learn from the few stars that are
there. The coefficients and the solar C/O were fitted together with a network to the training stars;
0.538 is that of Grevesse, Asplund & Sauval (2007, Space Sci. Rev. 130, 105).
"""

_MIXING = np.array(
    [[float(name in parts) for name in EMULATOR_LABELS] for parts in QUANTITIES.values()]
)
_MIXING.setflags(write=False)
_C, _N, _O = (list(QUANTITIES).index(name) for name in ("c", "n", "o"))
_DREDGED_C, _DREDGED_N = -0.15, 0.25
_SOLAR_C_TO_O = 0.538
"""Carbon over oxygen atoms in the Sun: 8.39 and 8.66 dex (Grevesse et al. 2007) give .537."""
_N_INPUT = len(QUANTITIES) + len(DISSOCIATION)
_SHIPPED = "data/emulator.safetensors"
# A block's hidden layers and flux stay in the second-level cache.
_BLOCK = 128


def quantities(labels: ArrayLike) -> Float64Array:
    """Physical quantities (n_star, 19) behind `labels` (n_star, 16).

    The sixteen of `QUANTITIES`, then free carbon for each of `DISSOCIATION`.
    """
    values = np.asarray(labels, dtype=np.float64)
    mixed = values @ _MIXING.T
    mixed[:, 0] = 5040.0 / values[:, 0]
    dredged = _dredge_up(values[:, 1])[0]
    mixed[:, _C] += _DREDGED_C * dredged
    mixed[:, _N] += _DREDGED_N * dredged
    ratio = mixed[:, _C] - mixed[:, _O]
    free = [_free_carbon(ratio, _log_constant(mixed, layer))[0] for layer in DISSOCIATION]
    return np.column_stack([mixed, *free])


def _quantity_slopes(values: Float64Array) -> Float64Array:
    """Differentiate `quantities`: (n_star, 16 labels, 19 quantities)."""
    slopes = np.repeat(_MIXING.T[None], len(values), axis=0)
    slopes[:, 0, 0] = -5040.0 / values[:, 0] ** 2
    rise = _dredge_up(values[:, 1])[1]
    slopes[:, 1, _C] += _DREDGED_C * rise
    slopes[:, 1, _N] += _DREDGED_N * rise
    mixed = quantities(values)
    ratio = mixed[:, _C] - mixed[:, _O]
    ratio_slope = slopes[:, :, _C] - slopes[:, :, _O]
    free = []
    for layer in DISSOCIATION:
        _, by_ratio, by_constant = _free_carbon(ratio, _log_constant(mixed, layer))
        constant_slope = slopes[:, :, [0, 1, _O]] @ np.array(layer[1:])
        free.append(by_ratio[:, None] * ratio_slope + by_constant[:, None] * constant_slope)
    return np.concatenate([slopes, np.stack(free, axis=2)], axis=2)


def _dredge_up(logg: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Smooth rise from 0 at logg 3.4 to 1 at logg 2.6, and its derivative."""
    u = np.clip((3.4 - logg) / 0.8, 0.0, 1.0)
    return u**2 * (3 - 2 * u), -6 * u * (1 - u) / 0.8


def _log_constant(mixed: Float64Array, layer: tuple[float, ...]) -> Float64Array:
    at_zero, by_theta, by_logg, by_oxygen = layer
    theta, logg, oxygen = mixed[:, 0], mixed[:, 1], mixed[:, _O]
    return at_zero + by_theta * (theta - 1.1) + by_logg * (logg - 2.5) + by_oxygen * oxygen


def _free_carbon(
    ratio: Float64Array, log_constant: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Log10 of carbon not bound in CO, per oxygen; its derivatives by [C/O] and by log10 K.

    With c = C/O and dissociation constant K, mass action and conservation give
    x^2 + (1 + K - c) x - K c = 0.
    """
    carbon = _SOLAR_C_TO_O * 10.0 ** np.clip(ratio, -3.0, 3.0)
    constant = 10.0 ** np.clip(log_constant, -8.0, 8.0)
    excess = carbon - 1 - constant
    root = np.hypot(excess, 2 * np.sqrt(carbon * constant))
    # The larger root, by whichever form adds numbers of one sign.
    free = np.where(
        excess > 0, (root + excess) / 2, 2 * carbon * constant / (root + np.abs(excess))
    )
    by_ratio = carbon / free * 0.5 * (1 + (excess + 2 * constant) / root)
    by_constant = constant / free * 0.5 * ((2 * carbon - excess) / root - 1)
    return np.log10(free), by_ratio, by_constant


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
class _Tensors:
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
        yield self.weight_0, self.bias_0
        yield self.weight_1, self.bias_1
        yield self.weight_2, self.bias_2

    def as_dict(self) -> dict[str, AnyArray]:
        return {item.name: getattr(self, item.name) for item in fields(self)}

    def checksum(self) -> str:
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
            "centre": (_N_INPUT,),
            "scale": (_N_INPUT,),
            "weight_0": (member, _N_INPUT, hidden),
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


def _read_safetensors(path: Path) -> tuple[str, dict[str, AnyArray]]:
    try:
        with safe_open(path, framework="numpy") as handle:
            text = (handle.metadata() or {}).get("emulator")
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ModelFileError(f"cannot read it ({error})") from error
    if text is None:
        raise ModelFileError("no 'emulator' metadata")
    return text, tensors


def _parse(text: str) -> EmulatorSpec:
    try:
        return EmulatorSpec.model_validate_json(text)
    except ValidationError as error:
        faults = (
            f"{'.'.join(map(str, e['loc'])) or 'metadata'}: {e['msg']}" for e in error.errors()
        )
        raise ModelFileError("; ".join(faults)) from error


def _sigmoid(x: Float32Array) -> Float32Array:
    """Logistic function; by tanh, which neither overflows nor warns."""
    half = np.multiply(x, np.float32(0.5))
    np.tanh(half, out=half)
    half *= np.float32(0.5)
    half += np.float32(0.5)
    return half


@dataclass(frozen=True, eq=False)
class Emulator:
    """Labels to continuum-normalised flux at high resolving power, with derivatives.

    Make one with `Emulator.load`. The object is immutable and may be shared between threads.

    Labels are always (n_star, 16), in the order of `label_names`: ``teff`` (K), ``logg``,
    ``m_h``, ``fe_h``, ``alpha_m``, ``si_fe``, ``al_fe``, ``mg_fe``, ``ni_fe`` (dex), ``vmic``
    (microturbulence, km/s), then offsets in dex of carbon and nitrogen from ``m_h``, of calcium,
    titanium and oxygen from ``m_h + alpha_m``, and of chromium from ``fe_h``.

    Attributes
    ----------
    spec : EmulatorSpec
        Labels, grid, accuracy, origin.
    wave_aa : (n_pixel,) float64
        Air wavelength in angstrom, uniform in ln(lambda).
    step_kms : float
        Velocity of one pixel, c times the step in ln(lambda).
    bounds : (16, 2) float64
        Lowest and highest value of each label among the spectra of the training grid.

    Examples
    --------
    >>> emulator = Emulator.load()
    >>> sun = [[5772, 4.44, 0, 0, 0, 0, 0, 0, 0, 1.0, 0, 0, 0, 0, 0, 0]]
    >>> emulator.flux(sun).shape
    (1, 2048)
    """

    spec: EmulatorSpec
    tensors: _Tensors = field(repr=False)
    wave_aa: Float64Array = field(init=False, repr=False)
    step_kms: float = field(init=False)
    bounds: Float64Array = field(init=False, repr=False)

    def __post_init__(self) -> None:
        problem = self.tensors.problem(self.spec.n_pixel)
        if problem:
            raise ModelFileError(f"the tensors are inconsistent: {problem}")
        wave = self.spec.wave_aa
        bounds = np.array(self.spec.label_bounds, dtype=np.float64)
        for array in (wave, bounds, *self.tensors.as_dict().values()):
            array.setflags(write=False)
        object.__setattr__(self, "wave_aa", wave)
        object.__setattr__(self, "bounds", bounds)
        step = np.log(self.spec.last_wave_aa / self.spec.first_wave_aa) / (wave.size - 1)
        object.__setattr__(self, "step_kms", float(SPEED_OF_LIGHT_KMS * step))

    @classmethod
    def build(cls, spec: EmulatorSpec, tensors: Mapping[str, AnyArray]) -> Self:
        """Assemble an emulator from its parts, as training does.

        Raises
        ------
        ModelFileError
            If a tensor is missing, unknown, of wrong shape or type, or not finite.
        """
        names = {item.name for item in fields(_Tensors)}
        if names != set(tensors):
            wrong = ", ".join(sorted(names.symmetric_difference(tensors)))
            raise ModelFileError(f"tensors missing or unknown: {wrong}")
        # safetensors would write the memory of a transposed array as it lies.
        ordered = {name: np.array(value, order="C") for name, value in tensors.items()}
        return cls(spec, _Tensors(**ordered))

    @classmethod
    def load(cls, path: Path | str | None = None) -> Self:
        """Read the weights shipped with the package, or those of `path`.

        Raises
        ------
        ModelFileError
            If the file is missing, damaged, of another format or version.
        """
        shipped = resources.as_file(resources.files("maury.simulation") / _SHIPPED)
        with nullcontext(Path(path)) if path is not None else shipped as file:
            try:
                text, tensors = _read_safetensors(file)
                emulator = cls.build(_parse(text), tensors)
                if emulator.tensors.checksum() != emulator.spec.checksum:
                    raise ModelFileError("damaged, the weights differ from their checksum")
            except ModelFileError as error:
                raise ModelFileError(
                    f"{file} is no usable emulator: {error}; take the weights shipped with maury, "
                    "or train them with scripts/train_emulator.py"
                ) from error
        return emulator

    def save(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write weights and description to one safetensors file, atomically.

        Raises
        ------
        OutputExists
            If `path` exists and `overwrite` is false.
        """
        spec = self.spec.model_copy(update={"checksum": self.tensors.checksum()})
        text = json.dumps(spec.model_dump(mode="json"))
        with writing(Path(path), overwrite=overwrite) as partial:
            save_file(self.tensors.as_dict(), partial, metadata={"emulator": text})

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the sixteen labels, in order."""
        return self.spec.label_names

    @property
    def error(self) -> Float32Array:
        """Rms of emulated minus synthetic flux per pixel (n_pixel,), at full resolving power.

        Measured on held-out stars, real and designed label sets having equal weight. It serves as
        a floor of the error of a fit (the s of Ness et al. 2015, ApJ 808, 16, eq. 2).
        """
        return self.tensors.error

    def flux(self, labels: ArrayLike) -> Float32Array:
        """Continuum-normalised flux at the resolving power of the training spectra.

        Parameters
        ----------
        labels : (n_star, 16) array_like
            Finite labels outside `bounds` are extrapolated without a warning: see `inside`.

        Returns
        -------
        (n_star, n_pixel) float32
            NaN throughout a row whose labels are not all finite, or whose ``teff`` is not
            positive.

        Raises
        ------
        ValueError
            If `labels` is not (n_star, 16).
        """
        coefficients = self.coefficients(labels)
        flux: Float32Array = on_finite_rows(lambda known: known @ self.tensors.basis, coefficients)
        flux += self.tensors.mean
        return flux

    def coefficients(self, labels: ArrayLike) -> Float32Array:
        """Coefficients of the principal components, of which the flux is made.

        Parameters
        ----------
        labels : (n_star, 16) array_like

        Returns
        -------
        (n_star, n_coefficient) float32
            NaN rows as in `flux`, which is ``coefficients @ tensors.basis + tensors.mean``.

        Raises
        ------
        ValueError
            If `labels` is not (n_star, 16).
        """
        values, good = self._usable(labels)
        out = np.empty((len(values), len(self.tensors.basis)), dtype=np.float32)
        for start in range(0, len(values), _BLOCK):
            rows = slice(start, start + _BLOCK)
            x = self._inputs(values[rows])
            for weight, bias in self.tensors.hidden_layers():
                x = x @ weight
                x += bias
                x *= _sigmoid(x)
            out[rows] = (x @ self.tensors.weight_out + self.tensors.bias_out).mean(axis=0)
        out[~good] = np.nan
        return out

    def jacobian(self, labels: ArrayLike) -> Float32Array:
        """Analytic derivatives of `flux` with respect to each label, per unit of the label.

        Parameters
        ----------
        labels : (n_star, 16) array_like

        Returns
        -------
        (n_star, n_pixel, 16) float32
            Per kelvin, dex or km/s; NaN rows as in `flux`. A star takes 131 kB.

        Raises
        ------
        ValueError
            If `labels` is not (n_star, 16).
        """
        return np.ascontiguousarray(self.slopes(labels).transpose(0, 2, 1))

    def slopes(self, labels: ArrayLike, directions: ArrayLike | None = None) -> Float32Array:
        """Return derivatives of `flux` along some directions in label space.

        Parameters
        ----------
        labels : (n_star, 16) array_like
        directions : (n_star, n_direction, 16) array_like, optional
            What the labels gain per unit of each direction; by default each label is one. Few
            directions cost less than all labels.

        Returns
        -------
        (n_star, n_direction, n_pixel) float32
            As `jacobian`, transposed.
        """
        values, good = self._usable(labels)
        n_star, n_label = values.shape
        along = None if directions is None else np.asarray(directions, dtype=np.float64)
        count = n_label if along is None else along.shape[1]
        slopes = np.empty((n_star, count, self.spec.n_pixel), dtype=np.float32)
        for start in range(0, n_star, _BLOCK // 4):
            rows = slice(start, start + _BLOCK // 4)
            part = None if along is None else along[rows]
            coefficients = self._coefficient_slopes(values[rows], part)
            np.matmul(coefficients, self.tensors.basis, out=slopes[rows])
        slopes[~good] = np.nan
        return slopes

    def inside(self, labels: ArrayLike) -> BoolArray:
        """Say which stars (n_star,) lie within `bounds` in every label; NaN is outside."""
        values = self._checked(labels)
        within = (values >= self.bounds[:, 0]) & (values <= self.bounds[:, 1])
        return np.asarray(within.all(axis=1))

    def clip(self, labels: ArrayLike) -> Float64Array:
        """Labels (n_star, 16) moved to the nearest value within `bounds`; NaN stays NaN."""
        return np.asarray(np.clip(self._checked(labels), self.bounds[:, 0], self.bounds[:, 1]))

    def _checked(self, labels: ArrayLike) -> Float64Array:
        values = np.asarray(labels, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != len(EMULATOR_LABELS):
            raise ValueError(
                f"labels must be (n_star, {len(EMULATOR_LABELS)}), got {values.shape}; "
                f"give {', '.join(EMULATOR_LABELS)}"
            )
        return values

    def _usable(self, labels: ArrayLike) -> tuple[Float64Array, BoolArray]:
        """Labels with unusable rows replaced by the middle of the bounds, and the usable rows."""
        values = self._checked(labels)
        good = np.isfinite(values).all(axis=1) & (values[:, 0] > 0)
        return np.where(good[:, None], values, self.bounds.mean(axis=1)), good

    def _inputs(self, values: Float64Array) -> Float32Array:
        x = (quantities(values) - self.tensors.centre) / self.tensors.scale
        # Beyond any star, and within float32: what is extrapolated so far has no meaning.
        return np.clip(x, -1e6, 1e6).astype(np.float32)

    def _coefficient_slopes(
        self, values: Float64Array, directions: Float64Array | None
    ) -> Float32Array:
        """Carry derivatives (n_star, n_direction, n_coefficient) forward through the layers."""
        first = _quantity_slopes(values) / self.tensors.scale
        slope = (first if directions is None else directions @ first).astype(np.float32)[None]
        x = self._inputs(values)
        for weight, bias in self.tensors.hidden_layers():
            x = x @ weight
            x += bias
            gate = _sigmoid(x)
            slope = slope @ weight[:, None]
            slope *= (gate * (1 + x * (1 - gate)))[:, :, None]
            x *= gate
        return np.asarray((slope @ self.tensors.weight_out[:, None]).mean(axis=0))
