"""Operators between a model's flux and the pixels of a survey, with their derivatives.

Each takes spectra and passes on their derivatives, to which it adds those by its own parameters:
line spread, rotation and radial velocity (`Broadening`), a calibration of theory (`Calibrated`),
additive and multiplicative modes (`Modes`, `Continuum`). `Chain` makes a forward model of a source
and some of them. Windows of pixels are weights, and belong to the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
import scipy.fft
from numpy.typing import NDArray
from scipy.special import j0, j1

from maury.io.arrays import Float32Array, Float64Array
from maury.methods.protocols import Evaluation, ForwardModel
from maury.simulation.broadening import rotation_transfer
from maury.simulation.observing import Spectrograph
from maury.simulation.theory_calibration import TheoryCalibration
from maury.spectra.operators import FWHM_PER_SIGMA, SPEED_OF_LIGHT_KMS

__all__ = [
    "Broadening",
    "Calibrated",
    "Chain",
    "Continuum",
    "Modes",
    "Operator",
    "PixelShift",
    "Shift",
    "pixel_derivative",
]


@dataclass(frozen=True, eq=False)
class PixelShift:
    """Shift of spectra by less than about a pixel, by their derivatives (Taylor, third order).

    Derivatives by labels are shifted to first order, which is enough for the steps of a fit.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Equidistant, or nearly so.
    largest_kms : float
        Bound of the velocity.
    """

    wave_aa: Float64Array
    largest_kms: float

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """The radial velocity, km/s."""
        return {"rv_kms": (-self.largest_kms, self.largest_kms)}

    @cached_property
    def _per_kms(self) -> Float32Array:
        """Pixels per km/s."""
        step = np.gradient(self.wave_aa)
        return (self.wave_aa / SPEED_OF_LIGHT_KMS / step).astype(np.float32)

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Shift; see `maury.methods.fitting.chain.Operator`."""
        moved = values.astype(np.float32) * self._per_kms
        first = pixel_derivative(rows[:, 0])
        second = pixel_derivative(first)
        third = pixel_derivative(second)
        out = rows.copy()
        out[:, 0] += moved * (-first + moved * (second / 2 - moved * third / 6))
        if rows.shape[1] > 1:
            out[:, 1:] -= moved[:, None] * pixel_derivative(rows[:, 1:])
        if not slopes:
            return out, None
        by_velocity = -self._per_kms * (first - moved * (second - moved * third / 2))
        return out, np.asarray(by_velocity[:, None], dtype=np.float32)


def pixel_derivative(flux: Float32Array) -> Float32Array:
    """By pixel, from six neighbours; one-sided differences are crude, but few."""
    out = np.gradient(flux, axis=-1)
    a, b, c = np.float32(45 / 60), np.float32(-9 / 60), np.float32(1 / 60)
    middle = a * (flux[..., 4:-2] - flux[..., 2:-4])
    middle += b * (flux[..., 5:-1] - flux[..., 1:-5])
    middle += c * (flux[..., 6:] - flux[..., :-6])
    out[..., 3:-3] = middle
    return np.asarray(out, dtype=np.float32)


# As in `maury.simulation.observing.rotation_transfer`, whose derivative is taken here.
_LIMB_DARKENING = 0.6
# Beyond this exponent a broadened spectrum holds nothing that float32 noise would not hide.
_NEGLIGIBLE = 14.0
# Below this argument the series to fourth order is exact to float32.
_SMALL = 0.3
# Typical widths are smooth in Teff: any step well below 100 K gives their derivative.
_TEFF_STEP_K = 0.5
# Strengths have unit scatter: six sigma are no star.
_MODE_LIMIT = 6.0


class Operator(Protocol):
    """One link of a chain."""

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Names and bounds of its parameters; one that the chain already has keeps its bounds."""

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Apply to the flux, the first of `rows`, and to derivatives, the others.

        Parameters
        ----------
        rows : (n_star, n_row, n_pixel_in) float32
        values : (n_star, n_parameter) float64
            Of its own parameters, in order.
        slopes : bool
            Whether derivatives by them are wanted.

        Returns
        -------
        rows : (n_star, n_row, n_pixel_out) float32
        slopes : (n_star, n_parameter, n_pixel_out) float32 or None
        """


@dataclass(frozen=True, eq=False)
class Chain:
    """A forward model seen through operators.

    Attributes
    ----------
    source : ForwardModel
    operators : tuple of Operator
        In the order in which light meets them.
    wave_out_aa : (n_pixel,) float64
        Wavelengths after the last of them, angstrom.
    own_variance : (n_pixel,) float32
        Variance of the flux of the whole model.
    """

    source: ForwardModel
    operators: tuple[Operator, ...]
    wave_out_aa: Float64Array
    own_variance: Float32Array

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Labels of the source, then new parameters of each operator."""
        names = list(self.source.label_names)
        for operator in self.operators:
            names += [name for name in operator.parameters if name not in names]
        return tuple(names)

    @cached_property
    def bounds(self) -> Float64Array:
        """Bounds (n_label, 2)."""
        known = dict.fromkeys(self.label_names, (-np.inf, np.inf))
        # Backwards, so that of operators that share a parameter the first one sets the bounds.
        for operator in reversed(self.operators):
            known |= operator.parameters
        ends = np.asarray(self.source.bounds)
        known |= {
            name: (float(low), float(high))
            for name, (low, high) in zip(self.source.label_names, ends, strict=True)
        }
        return np.array([known[name] for name in self.label_names])

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.wave_out_aa

    @cached_property
    def _places(self) -> list[list[int]]:
        return [[self.label_names.index(p) for p in one.parameters] for one in self.operators]

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        count = len(self.source.label_names)
        flux, by_label = self.source.evaluate(labels[:, :count], jacobian=jacobian)
        rows = flux[:, None]
        if by_label is not None:
            rows = np.concatenate([rows, by_label], axis=1)
        for operator, places in zip(self.operators, self._places, strict=True):
            rows, slopes = operator.apply(rows, labels[:, places], slopes=jacobian)
            if slopes is not None:
                old = rows.shape[1] - 1
                for position, place in enumerate(places):
                    # A label that the chain already has, as Teff: the ways in which it acts add up.
                    if place < old:
                        rows[:, 1 + place] += slopes[:, position]
                fresh = [position for position, place in enumerate(places) if place >= old]
                rows = np.concatenate([rows, slopes[:, fresh]], axis=1)
        return Evaluation(rows[:, 0], rows[:, 1:] if jacobian else None)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Variance of the model's flux."""
        del labels
        return self.own_variance


@dataclass(frozen=True, eq=False)
class Broadening:
    """Line spread, rotation and radial velocity, from a grid uniform in ln(lambda) to pixels.

    As `maury.simulation.observing.Spectrograph.broaden`, with analytic derivatives: all three are
    factors in Fourier space. Widths are relative to those typical of a star of its Teff.

    Attributes
    ----------
    spectrograph : Spectrograph
        Pixels, and the typical broadening.
    widths : bool
        Whether resolving power and rotation are parameters; otherwise they are typical.
    """

    spectrograph: Spectrograph
    widths: bool = True

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Teff (through the typical widths), velocity, and logarithms of relative widths."""
        known = {
            "teff": (-np.inf, np.inf),
            "rv_kms": (-100.0, 100.0),
            "ln_resolving_power": (-0.3, 0.3),
            "ln_rotation": (-2.5, 2.5),
        }
        return known if self.widths else {name: known[name] for name in ("teff", "rv_kms")}

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Broaden; see `Operator`."""
        count = values.shape[1]
        padded = np.pad(values, [(0, 0), (0, 4 - count)])
        teff, velocity, ln_power, ln_rotation = padded.T
        rotation, macroturbulence = self.spectrograph.typical_broadening(teff)
        rotation = rotation * np.exp(ln_rotation)
        conditions = self.spectrograph.model
        power = conditions.resolving_power * np.exp(ln_power)
        per_power = (SPEED_OF_LIGHT_KMS / FWHM_PER_SIGMA) ** 2 * power**-2.0
        own = (SPEED_OF_LIGHT_KMS / FWHM_PER_SIGMA / self.spectrograph.resolving_power_in) ** 2
        variance = np.maximum(per_power - own, 0.0) + 0.5 * macroturbulence**2
        n_in = rows.shape[2]
        frequency = 2.0 * np.pi * scipy.fft.rfftfreq(n_in, self.spectrograph.step_kms)
        least = max(float(variance.min(initial=np.inf)), 1e-9)
        kept = int(np.searchsorted(0.5 * least * frequency**2, _NEGLIGIBLE))
        # Frequencies that broadening has erased are not transformed back.
        frequency = frequency[:kept].astype(np.float32)
        scale = frequency * rotation[:, None].astype(np.float32)
        gauss = np.exp(-0.5 * variance[:, None].astype(np.float32) * frequency**2)
        phase = frequency * velocity[:, None].astype(np.float32)
        shifted = (gauss * np.exp(-1j * phase)).astype(np.complex64)
        transfer = shifted * rotation_transfer(scale)
        rows = rows.copy()
        # Depths, not flux: float32 then rounds lines, and not the continuum.
        rows[:, 0] -= np.float32(1.0)
        transform = scipy.fft.rfft(rows, axis=2)[:, :, :kept]
        out = transform * transfer[:, None]
        if not slopes:
            return self._to_pixels(out, n_in), None
        source = transform[:, 0]
        by_velocity = source * transfer * (-1j * frequency)
        by_variance = source * transfer * (-0.5 * frequency**2)
        by_rotation = source * shifted * _rotation_slope(scale)
        extra = np.stack([by_velocity, by_variance, by_rotation], axis=1).astype(np.complex64)
        seen = self._to_pixels(np.concatenate([out, extra], axis=1), n_in)
        broadened, moved = seen[:, :-3], seen[:, -3:]
        return broadened, self._mixing(teff, per_power)[:, :count] @ moved

    def _mixing(self, teff: Float64Array, per_power: Float64Array) -> Float32Array:
        """Return what each parameter changes (n_star, 4, 3): velocity, variance, ln of rotation."""
        typical = self.spectrograph.typical_broadening
        ends = [typical(teff + sign * _TEFF_STEP_K) for sign in (1.0, -1.0)]
        ln_rise = np.log(ends[0][0] / ends[1][0]) / (2 * _TEFF_STEP_K)
        # Half the square of macroturbulence is variance: hence 4 steps, not 2.
        macro_rise = (ends[0][1] ** 2 - ends[1][1] ** 2) / (4 * _TEFF_STEP_K)
        mixing = np.zeros((len(teff), 4, 3), dtype=np.float32)
        mixing[:, 0, 1], mixing[:, 0, 2] = macro_rise, ln_rise
        mixing[:, 1, 0] = mixing[:, 3, 2] = 1.0
        # The variance goes as R^-2, so that its derivative by ln R is -2 times itself.
        mixing[:, 2, 1] = -2.0 * per_power
        return mixing

    def _to_pixels(self, transform: NDArray[np.complex64], n_in: int) -> Float32Array:
        """Spectra (n_star, n_row, n_pixel) of their transforms, the first plus one."""
        n, m, kept = transform.shape
        full = np.zeros((n * m, n_in // 2 + 1), dtype=np.complex64)
        full[:, :kept] = transform.reshape(n * m, kept)
        sharp = scipy.fft.irfft(full, n_in, axis=1)
        seen = self.spectrograph.interpolator @ np.ascontiguousarray(sharp.T)
        out = np.ascontiguousarray(seen.T).reshape(n, m, -1)
        out[:, 0] += np.float32(1.0)
        return out


def _rotation_slope(x: Float32Array) -> Float32Array:
    """Return the derivative by ln x of `maury.simulation.broadening.rotation_transfer`."""
    small = x < _SMALL
    safe = np.where(small, 1.0, x)
    e = _LIMB_DARKENING
    disc = -2.0 * (1.0 - e) * (2.0 * j1(safe) / safe - j0(safe))
    darkened = 2.0 * e * (safe**2 * np.sin(safe) - 3 * (np.sin(safe) - safe * np.cos(safe)))
    full = (disc + darkened / safe**3) / (1.0 - e / 3.0)
    second = ((1.0 - e) / 8.0 + e / 15.0) / (1.0 - e / 3.0)
    fourth = ((1.0 - e) / 192.0 + e / 420.0) / (1.0 - e / 3.0)
    series = -2.0 * second * x**2 + 4.0 * fourth * x**4
    return np.asarray(np.where(small, series, full), dtype=np.float32)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Theory made like the spectra of a survey; see `TheoryCalibration.apply`.

    Attributes
    ----------
    calibration : TheoryCalibration
    label_names : tuple of str
        Of its labels, in order.
    """

    calibration: TheoryCalibration
    label_names: tuple[str, ...]

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Its labels, all of which the source has."""
        return dict.fromkeys(self.label_names, (-np.inf, np.inf))

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Calibrate; see `Operator`."""
        change, added = self.calibration.change(values, smooth=True)
        depth = np.float32(1.0) - rows[:, 0]
        out = rows * (np.float32(1.0) + change)[:, None]
        out[:, 0] = rows[:, 0] - depth * change + added
        if not slopes:
            return out, None
        by_label, more = self.calibration.change_slopes(values)
        return out, more - depth[:, None] * by_label


@dataclass(frozen=True, eq=False)
class Modes:
    """Known patterns (n_mode, n_pixel) added to the flux, each with a strength of its own."""

    patterns: Float32Array
    name: str

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Strengths ``<name>_1``, ``<name>_2``, ..."""
        limits = (-_MODE_LIMIT, _MODE_LIMIT)
        return {f"{self.name}_{k + 1}": limits for k in range(len(self.patterns))}

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Add; see `Operator`."""
        out = rows.copy()
        out[:, 0] += values.astype(np.float32) @ self.patterns
        return out, np.repeat(self.patterns[None], len(rows), axis=0) if slopes else None


@dataclass(frozen=True, eq=False)
class Continuum:
    """A continuum residual: the flux times 1 plus patterns (n_mode, n_pixel) of some strengths."""

    patterns: Float32Array
    name: str = "continuum"

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Strengths ``<name>_1``, ``<name>_2``, ..."""
        limits = (-_MODE_LIMIT, _MODE_LIMIT)
        return {f"{self.name}_{k + 1}": limits for k in range(len(self.patterns))}

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Multiply; see `Operator`."""
        factor = np.float32(1.0) + values.astype(np.float32) @ self.patterns
        out = rows * factor[:, None]
        return out, rows[:, :1] * self.patterns if slopes else None


@dataclass(frozen=True, eq=False)
class Shift:
    """A small velocity, to second order in it, on the pixels themselves.

    For models that are made on the pixels of the survey, such as grids. Derivatives along the
    wavelength are differences of fourth order, so that velocities must be small against the
    line width.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
    limit_kms : float
        Largest velocity.
    """

    wave_aa: Float64Array
    limit_kms: float = 15.0

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """The velocity."""
        return {"rv_kms": (-self.limit_kms, self.limit_kms)}

    @cached_property
    def _slope(self) -> Float32Array:
        """Banded matrix whose product with flux is its change per km/s, as (5, n_pixel) bands."""
        spacing = np.gradient(np.log(self.wave_aa)) * SPEED_OF_LIGHT_KMS
        bands = np.array([1.0, -8.0, 0.0, 8.0, -1.0])[:, None] / (12.0 * spacing)
        return np.asarray(-bands, dtype=np.float32)

    def _differentiate(self, rows: Float32Array) -> Float32Array:
        padded = np.pad(rows, [(0, 0)] * (rows.ndim - 1) + [(2, 2)], mode="edge")
        n = rows.shape[-1]
        out = self._slope[0] * padded[..., :n]
        for k in (1, 3, 4):
            out = out + self._slope[k] * padded[..., k : k + n]
        return np.asarray(out)

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Shift; see `Operator`."""
        velocity = values[:, 0, None, None].astype(np.float32)
        first = self._differentiate(rows)
        second = self._differentiate(first)
        out = rows + velocity * (first + np.float32(0.5) * velocity * second)
        if not slopes:
            return out, None
        return out, (first + velocity * second)[:, :1]
