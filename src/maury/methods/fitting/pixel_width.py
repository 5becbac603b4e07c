"""Line width of spectra relative to those that a model was made on, by their second derivative."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maury.io.arrays import Float32Array, Float64Array
from maury.methods.fitting.chain import pixel_derivative
from maury.spectra.operators import FWHM_PER_SIGMA

__all__ = ["PixelWidth"]


@dataclass(frozen=True, eq=False)
class PixelWidth:
    """Spectra somewhat wider or narrower than those that a model was made on.

    A Gaussian of variance s^2 that is widened by d(s^2) changes the flux by d(s^2) / 2 times its
    second derivative, to first order; lines are then as wide as of a resolving power that is
    smaller by the same factor.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Equidistant, or nearly so.
    resolving_power : float
        Of the spectra that the model was made on.
    largest : float
        Bound of the logarithm of the relative width.
    terms : {1, 2}
        With 2 the next term, d(s^2)^2 / 8 times the fourth derivative, is added.
    """

    wave_aa: Float64Array
    resolving_power: float
    largest: float
    terms: int = 1

    @property
    def parameters(self) -> dict[str, tuple[float, float]]:
        """Logarithm of the line width over that of the model."""
        return {"ln_width": (-self.largest, self.largest)}

    @cached_property
    def _variance(self) -> Float32Array:
        """Variance of the line spread, in squared pixels."""
        sigma = self.wave_aa / self.resolving_power / FWHM_PER_SIGMA / np.gradient(self.wave_aa)
        return np.asarray(sigma**2, dtype=np.float32)

    def apply(
        self, rows: Float32Array, values: Float64Array, *, slopes: bool
    ) -> tuple[Float32Array, Float32Array | None]:
        """Widen; see `maury.methods.fitting.chain.Operator`."""
        curve = self._variance * pixel_derivative(pixel_derivative(rows))
        ln_width = values[:, 0].astype(np.float32)[:, None, None]
        # The variance goes as the square of the width: (exp(2 x) - 1) / 2, whose slope is exp(2 x).
        growth = np.expm1(2.0 * ln_width)
        out = rows + np.float32(0.5) * growth * curve
        rise = curve[:, :1]
        if self.terms > 1:
            next_curve = self._variance * pixel_derivative(pixel_derivative(curve))
            out += np.float32(0.125) * growth**2 * next_curve
            rise = rise + np.float32(0.5) * growth * next_curve[:, :1]
        return out, np.exp(2.0 * ln_width) * rise if slopes else None
