"""A small radial velocity as an operator on pixels, where a model has no finer grid."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from maury.operators import SPEED_OF_LIGHT_KMS

__all__ = ["PixelShift"]

Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]


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
        """Shift; see `maury.methods.chain.Operator`."""
        moved = values.astype(np.float32) * self._per_kms
        first = _derivative(rows[:, 0])
        second = _derivative(first)
        third = _derivative(second)
        out = rows.copy()
        out[:, 0] += moved * (-first + moved * (second / 2 - moved * third / 6))
        if rows.shape[1] > 1:
            out[:, 1:] -= moved[:, None] * _derivative(rows[:, 1:])
        if not slopes:
            return out, None
        by_velocity = -self._per_kms * (first - moved * (second - moved * third / 2))
        return out, np.asarray(by_velocity[:, None], dtype=np.float32)


def _derivative(flux: Float32Array) -> Float32Array:
    """By pixel, from six neighbours; one-sided differences are crude, but few."""
    out = np.gradient(flux, axis=-1)
    a, b, c = np.float32(45 / 60), np.float32(-9 / 60), np.float32(1 / 60)
    middle = a * (flux[..., 4:-2] - flux[..., 2:-4])
    middle += b * (flux[..., 5:-1] - flux[..., 1:-5])
    middle += c * (flux[..., 6:] - flux[..., :-6])
    out[..., 3:-3] = middle
    return np.asarray(out, dtype=np.float32)
