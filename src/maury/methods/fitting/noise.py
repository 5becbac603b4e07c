"""Errors of fitted labels where the noise of neighbouring pixels is correlated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.linalg import cholesky_banded
from scipy.linalg.lapack import stbtrs

from maury.io.arrays import (
    BoolArray,
    Float32Array,
    Float64Array,
    FloatArray,
    IndexArray,
    Int64Array,
)

__all__ = ["PixelWhitening", "Whitening", "sandwich", "weighted_variance"]

_TRIED_PIXELS = 400
"""Pixels of the matrix that shows whether noise can correlate so: the smallest eigenvalue of a
banded matrix falls with its size, to within (lags / pixels)^2 of its limit here."""
_RCOND = 1e-13
"""Singular values, against the largest, below which a combination of labels is undetermined: a few
hundred roundings of float64."""


class Whitening:
    """Makes stationary correlated noise white, by Cholesky factors of its correlation matrix.

    Parameters
    ----------
    correlation : tuple of float
        Of the noise between pixels 1, 2, ... apart; empty leaves spectra as they are.

    Raises
    ------
    ValueError
        If no noise correlates so.
    """

    def __init__(self, correlation: tuple[float, ...]) -> None:
        self.correlation = correlation if any(correlation) else ()
        if self.correlation:
            self.factor(np.ones(_TRIED_PIXELS, dtype=np.bool_))

    def factor(self, good: BoolArray) -> Float32Array:
        """Lower factor (1 + n_lag, n_pixel), in bands, of the correlation of the good pixels.

        A bad pixel is cut off from the others, so that the factor is that of the smaller matrix
        without it: what is not known of it is integrated out.
        """
        bands = np.ones((1 + len(self.correlation), good.size))
        for lag, value in enumerate(self.correlation, start=1):
            bands[lag] = 0.0
            # The matrix of the good pixels alone has no more bands than that of all.
            bands[lag, :-lag] = value * (good[:-lag] & good[lag:])
        try:
            return np.asarray(cholesky_banded(bands, lower=True), dtype=np.float32)
        except np.linalg.LinAlgError as error:
            raise ValueError(
                f"no noise has the correlation {self.correlation}: its matrix is not positive "
                "definite"
            ) from error

    def of(self, good: BoolArray) -> PixelWhitening:
        """Return the whitening of stars whose good pixels are known, (n_star, n_pixel)."""
        if not self.correlation or not len(good):
            return PixelWhitening(None, np.zeros(len(good), dtype=np.intp))
        whole = good.all(axis=1)
        # Stars without a bad pixel, often most of them, share the first factor.
        factors = [self.factor(np.ones(good.shape[1], dtype=np.bool_))]
        factors += [self.factor(row) for row in good[~whole]]
        which = np.where(whole, 0, np.cumsum(~whole))
        return PixelWhitening(np.stack(factors), which)

    def undo(self, white: Float32Array) -> Float32Array:
        """Rows (n_row, n_pixel), all pixels good, that whitening makes into these."""
        if not self.correlation:
            return white
        factor = self.factor(np.ones(white.shape[-1], dtype=np.bool_))
        out = factor[0] * white
        for lag in range(1, len(factor)):
            out[..., lag:] += factor[lag, :-lag] * white[..., :-lag]
        return np.asarray(out, dtype=white.dtype)


@dataclass(frozen=True, eq=False)
class PixelWhitening:
    """The whitening of some stars, each with its own good pixels.

    Attributes
    ----------
    factors : (n_factor, 1 + n_lag, n_pixel) float32 or None
        Banded Cholesky factors; None where the noise is white.
    which : (n_star,) int
        The factor of each star.
    """

    factors: Float32Array | None
    which: IndexArray

    def rows(self, index: Int64Array) -> PixelWhitening:
        """Return that of some stars."""
        return PixelWhitening(self.factors, self.which[index])

    def __call__(self, rows: Float32Array) -> Float32Array:
        """Whiten rows (n_star, ..., n_pixel), over the noise of each pixel, 0 where it is bad."""
        if self.factors is None:
            return rows
        out = rows.astype(np.float32, order="C")
        for star, number in enumerate(self.which):
            # LAPACK takes columns, which are the rows of C's order.
            columns = np.atleast_2d(out[star]).T
            solved, _ = stbtrs(self.factors[number], columns, uplo="L", overwrite_b=1)
            out[star] = solved.T.reshape(out[star].shape)
        return out


def sandwich(
    jacobian: FloatArray,
    noise: FloatArray,
    fisher: Float64Array,
    *,
    correlation: Sequence[float],
) -> Float64Array:
    """Covariance of weighted least squares, (n_star, n_label, n_label).

    With weights W as if pixels were independent, and the true covariance S of the noise, the
    estimate has the covariance F^-1 (J^T W S W J) F^-1, F = J^T W J. The diagonal of S, noise and
    model scatter, is taken to be 1 / W; only the noise is correlated.

    Parameters
    ----------
    jacobian : (n_star, n_label, n_pixel) float
        By labels of similar size.
    noise : (n_star, n_pixel) float
        Weight times 1 sigma noise; 0 in a bad pixel.
    fisher : (n_star, n_label, n_label) float64
        F.
    correlation : sequence of float
        Of the noise of pixels 1, 2, ... apart.
    """
    inverse = np.linalg.pinv(fisher, hermitian=True, rcond=_RCOND)
    if not any(correlation):
        return np.asarray(inverse)
    noisy = jacobian * noise[:, None]
    later = np.zeros_like(noisy)
    for lag, rho in enumerate(correlation, start=1):
        later[:, :, :-lag] += noisy.dtype.type(rho) * noisy[:, :, lag:]
    one_side = (noisy @ later.transpose(0, 2, 1)).astype(np.float64)
    spread = fisher + one_side + one_side.transpose(0, 2, 1)
    return np.asarray(inverse @ spread @ inverse)


def weighted_variance(
    coefficients: FloatArray,
    sigma: FloatArray,
    *,
    correlation: Sequence[float],
) -> Float64Array:
    """Noise variance (n_star, n_label) of labels that are weighted sums of pixels.

    Parameters
    ----------
    coefficients : (n_pixel, n_label) or (n_star, n_pixel, n_label) float
    sigma : (n_star, n_pixel) float
        1 sigma noise.
    correlation : sequence of float
        As of `sandwich`.
    """
    one = sigma[:, None]
    out = one**2 @ coefficients**2
    for lag, rho in enumerate(correlation, start=1):
        both = one[..., :-lag] * one[..., lag:]
        product = coefficients[..., :-lag, :] * coefficients[..., lag:, :]
        out = out + 2.0 * rho * (both @ product)
    return np.asarray(np.maximum(out[:, 0], 0.0), dtype=np.float64)
