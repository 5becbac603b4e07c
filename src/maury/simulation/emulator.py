"""The forward emulator: stellar labels to a noise-free spectrum, with analytic derivatives.

A small ensemble of perceptrons maps sixteen labels to the coefficients of a basis of spectra, in
the manner of The Payne (Ting et al. 2019, ApJ 879, 69). It was trained on synthetic spectra, so
that whatever it returns is simulated. It knows nothing of surveys: resolving power, rotation,
radial velocity, pixels and noise are the business of the operators applied to its flux.

The wavelength grid is uniform in ln(lambda): one pixel is the same velocity everywhere, and line
spread, rotation and radial velocity are products in Fourier space.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, fields
from importlib import resources
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import ArrayLike
from safetensors.numpy import save_file

from maury.errors import ModelFileError
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    on_finite_rows,
)
from maury.io.files import writing
from maury.simulation.emulator_file import EmulatorSpec, EmulatorTensors, parse_spec, read_emulator
from maury.simulation.quantities import EMULATOR_LABELS, quantities, quantity_slopes
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = ["Emulator"]


_SHIPPED = "data/emulator.safetensors"
# A block's hidden layers and flux stay in the second-level cache.
_BLOCK = 128


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
    tensors: EmulatorTensors = field(repr=False)
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
        names = {item.name for item in fields(EmulatorTensors)}
        if names != set(tensors):
            wrong = ", ".join(sorted(names.symmetric_difference(tensors)))
            raise ModelFileError(f"tensors missing or unknown: {wrong}")
        # safetensors would write the memory of a transposed array as it lies.
        ordered = {name: np.array(value, order="C") for name, value in tensors.items()}
        return cls(spec, EmulatorTensors(**ordered))

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
                text, tensors = read_emulator(file)
                emulator = cls.build(parse_spec(text), tensors)
                # Models record this checksum: theory calibrated for other weights must not pass for
                # this one.
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
                # x sigmoid(x), smooth everywhere, gives derivatives without kinks.
                x *= _sigmoid(x)
            # The mean of the networks errs less than any one of them.
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
        # Derivatives are sixteen times as large as the flux.
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
        # Any finite labels will do for rows that become NaN: one NaN would spoil no other row, but
        # warn.
        return np.where(good[:, None], values, self.bounds.mean(axis=1)), good

    def _inputs(self, values: Float64Array) -> Float32Array:
        x = (quantities(values) - self.tensors.centre) / self.tensors.scale
        # Beyond any star, and within float32: what is extrapolated so far has no meaning.
        return np.clip(x, -1e6, 1e6).astype(np.float32)

    def _coefficient_slopes(
        self, values: Float64Array, directions: Float64Array | None
    ) -> Float32Array:
        """Carry derivatives (n_star, n_direction, n_coefficient) forward through the layers."""
        first = quantity_slopes(values) / self.tensors.scale
        slope = (first if directions is None else directions @ first).astype(np.float32)[None]
        x = self._inputs(values)
        for weight, bias in self.tensors.hidden_layers():
            x = x @ weight
            x += bias
            gate = _sigmoid(x)
            slope = slope @ weight[:, None]
            # d/dx of x sigmoid(x). Forward mode: there are fewer labels than coefficients.
            slope *= (gate * (1 + x * (1 - gate)))[:, :, None]
            x *= gate
        return np.asarray((slope @ self.tensors.weight_out[:, None]).mean(axis=0))
