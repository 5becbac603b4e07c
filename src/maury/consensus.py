"""One answer of many methods whose errors are correlated: best linear unbiased combination.

Methods that see the same noise err together. With the covariance C of their errors, the weights
C^-1 1 / (1^T C^-1 1) give the unbiased combination of least variance, 1 / (1^T C^-1 1) (Aitken
1935; Lyons, Gibaut & Clifford 1988, NIM A 270, 110). C is learnt from stars of known labels that
trained none of the methods, in units of the errors that each method quotes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from maury.statistics import robust_sigma

__all__ = ["Combination"]

Float64Array = NDArray[np.float64]

_CLIP = 4.0
_SHRINK = 0.1
_LEAST_STARS = 20
_LEAST_EIGENVALUE = 1e-3
_FOLDS = 5
_LARGEST_INFLATION = 3.0


@dataclass(frozen=True, eq=False)
class Combination:
    """How the answers of M methods for one label are combined.

    Attributes
    ----------
    bias : (M,) float64
        Median residual of each method.
    typical : (M,) float64
        Error of a method where it quotes none.
    covariance : (M, M) float64
        Of residuals over quoted errors.
    inflation : float
        By which the errors of combinations of left-out stars were too small.
    """

    bias: Float64Array
    typical: Float64Array
    covariance: Float64Array
    inflation: float = 1.0

    @classmethod
    def learn(cls, residual: Float64Array, sigma: Float64Array) -> Self | None:
        """Learn from stars whose labels are known.

        Parameters
        ----------
        residual, sigma : (n_star, M) float64
            Answer minus truth, and quoted errors; NaN where missing. A method without enough
            answers gets no weight.

        Returns
        -------
        Combination or None
            None where fewer than twenty stars have an answer of any method.
        """
        if (np.isfinite(residual).sum(axis=0) >= _LEAST_STARS).sum() == 0:
            return None
        whole = cls._plain(residual, sigma)
        pulls = []
        for fold in range(_FOLDS):
            out = np.arange(len(residual)) % _FOLDS == fold
            part = cls._plain(residual[~out], sigma[~out])
            value, error = part.combine(residual[out], sigma[out])
            pulls.append(value / error)
        spread = robust_sigma(np.concatenate(pulls))
        if not np.isfinite(spread):
            return whole
        inflation = float(np.clip(spread, 1.0, _LARGEST_INFLATION))
        return cls(whole.bias, whole.typical, whole.covariance, inflation)

    @classmethod
    def _plain(cls, residual: Float64Array, sigma: Float64Array) -> Self:
        enough = np.isfinite(residual).sum(axis=0) >= _LEAST_STARS
        count = residual.shape[1]
        bias, typical = np.full(count, np.nan), np.full(count, np.nan)
        for k in np.flatnonzero(enough):
            bias[k] = np.nanmedian(residual[:, k])
            typical[k] = max(robust_sigma(residual[:, k]), 1e-12)
        quoted = _quoted(sigma, typical)
        pull = np.clip((residual - bias) / quoted, -_CLIP, _CLIP)
        known = np.isfinite(pull)
        filled = np.where(known, pull, 0.0)
        both = np.maximum(known.astype(np.float64).T @ known, 1.0)
        covariance = filled.T @ filled / both
        shrunk = (1.0 - _SHRINK) * covariance + _SHRINK * np.diag(np.diag(covariance))
        value, vector = np.linalg.eigh(shrunk)
        floor = _LEAST_EIGENVALUE * max(float(value.max()), 1e-12)
        positive = (vector * np.maximum(value, floor)) @ vector.T
        return cls(bias, typical, positive)

    def combine(
        self, values: Float64Array, sigma: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Combine the answers to some stars.

        Parameters
        ----------
        values, sigma : (n_star, M) float64
            NaN where missing.

        Returns
        -------
        value, error : (n_star,) float64
            NaN where no method answers.
        """
        weight, variance = self.weights(values, sigma)
        unbiased = np.where(weight != 0, values - self.bias, 0.0)
        value = np.where(np.isfinite(variance), (weight * unbiased).sum(axis=1), np.nan)
        return value, self.inflation * np.sqrt(variance)

    def weights(
        self, values: Float64Array, sigma: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Weights (n_star, M), which add up to 1, and the variance (n_star,) before inflation."""
        quoted = _quoted(sigma, self.typical)
        known = np.isfinite(values) & np.isfinite(self.bias) & np.isfinite(quoted)
        scale = np.where(known, quoted, 1.0)
        matrix = self.covariance * scale[:, :, None] * scale[:, None]
        pair = known[:, :, None] & known[:, None]
        unit = np.eye(self.bias.size)
        matrix = np.where(pair, matrix, unit)
        # In units of each star's own errors, so that kelvins and dex are solved alike.
        size = np.sqrt(np.einsum("nii->ni", matrix))
        scaled = matrix / size[:, :, None] / size[:, None]
        ones = known / size
        solved = np.linalg.solve(scaled, ones[:, :, None])[:, :, 0] / size
        total = np.where(known, solved, 0.0).sum(axis=1)
        some = total > 0
        safe = np.where(some, total, 1.0)
        weight = np.where(known & some[:, None], solved / safe[:, None], 0.0)
        return weight, np.where(some, 1.0 / safe, np.nan)


def _quoted(sigma: Float64Array, typical: Float64Array) -> Float64Array:
    """Quoted errors, or the typical one; neither is trusted to a tenth or tenfold of the other."""
    known = np.where(np.isfinite(sigma) & (sigma > 0), sigma, typical)
    return np.asarray(np.clip(known, 0.1 * typical, 10.0 * typical))
