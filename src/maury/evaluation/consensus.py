"""One answer of many methods whose errors are correlated: best linear unbiased combination.

Methods that see the same noise err together. With the covariance C of their errors, the weights
C^-1 1 / (1^T C^-1 1) give the unbiased combination of least variance, 1 / (1^T C^-1 1) (Lyons,
Gibaut & Clifford 1988, NIM A 270, 110). C is learnt from stars of known labels that trained none
of the methods. The errors that a method quotes count as far as they tell which of its answers are
worse.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from maury.io.arrays import Float64Array
from maury.labels.statistics import robust_sigma

__all__ = ["Combination"]


_CLIP = 4.0
"""Pulls beyond four sigma are failures of a method, not noise; unclipped, one of them would set its
covariances. Chosen, not measured."""
_SHRINK = 0.1
"""Share by which correlations are drawn to zero (Ledoit & Wolf 2004, JMVA 88, 365, in its simplest
form): weights stay finite where two methods hardly differ. Chosen, not measured."""
_LEAST_STARS = 20
"""Fewer residuals do not fix a robust scatter to a quarter of it."""
_LEAST_EIGENVALUE = 1e-3
"""Of the largest: keeps the matrix of errors invertible in float64 with a wide margin."""
_FOLDS = 5
"""Each combination is tested on a fifth of the stars that it was not learnt from."""
_LARGEST_INFLATION = 3.0
"""A combination that is worse off than that is broken, which larger errors would hide."""
_POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""From "quoted errors tell nothing" to "taken at their word"."""
_FACTOR = 10.0
"""Range of quoted errors around their median that is believed: beyond it they are failures of a
fit."""


@dataclass(frozen=True, eq=False)
class Combination:
    """How the answers of M methods for one label are combined.

    Attributes
    ----------
    bias : (M,) float64
        Median residual of each method.
    typical : (M,) float64
        Robust scatter of each method.
    quoted : (M,) float64
        Median of its quoted errors; NaN if it quotes none.
    power : (M,) float64
        A star's error is taken as typical (own quoted error / median)^power, within a factor of 10.
    covariance : (M, M) float64
        Of residuals over these errors.
    inflation : float
        By which the errors of combinations of left-out stars were too small.
    """

    bias: Float64Array
    typical: Float64Array
    quoted: Float64Array
    power: Float64Array
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
            # Every fifth star: labelled samples come sorted by star at most, never by residual.
            out = np.arange(len(residual)) % _FOLDS == fold
            part = cls._plain(residual[~out], sigma[~out])
            value, error = part.combine(residual[out], sigma[out])
            pulls.append(value / error)
        spread = robust_sigma(np.concatenate(pulls))
        if not np.isfinite(spread):
            return whole
        # Never below 1: that errors came out too large on some stars is no licence to shrink them.
        inflation = float(np.clip(spread, 1.0, _LARGEST_INFLATION))
        return replace(whole, inflation=inflation)

    @classmethod
    def _plain(cls, residual: Float64Array, sigma: Float64Array) -> Self:
        enough = np.isfinite(residual).sum(axis=0) >= _LEAST_STARS
        count = residual.shape[1]
        bias, typical, quoted = np.full((3, count), np.nan)
        power = np.zeros(count)
        for k in np.flatnonzero(enough):
            # Medians, since a rival that fails for one star in twenty would shift a mean by its
            # failures.
            bias[k] = np.nanmedian(residual[:, k])
            typical[k] = max(robust_sigma(residual[:, k]), 1e-12)
            positive = sigma[:, k] > 0
            if positive.any():
                quoted[k] = np.median(sigma[positive, k])
                power[k] = _best_power(residual[:, k] - bias[k], sigma[:, k], quoted[k])
        plain = cls(bias, typical, quoted, power, np.eye(count))
        pull = np.clip((residual - bias) / plain.errors(sigma), -_CLIP, _CLIP)
        known = np.isfinite(pull)
        filled = np.where(known, pull, 0.0)
        # Pairwise counts: methods answer for different stars, and few stars have an answer of all.
        both = np.maximum(known.astype(np.float64).T @ known, 1.0)
        covariance = filled.T @ filled / both
        shrunk = (1.0 - _SHRINK) * covariance + _SHRINK * np.diag(np.diag(covariance))
        # A covariance of pairs with different stars need not be positive definite; its negative
        # directions are lifted, else the "best" combination would have a negative variance.
        value, vector = np.linalg.eigh(shrunk)
        floor = _LEAST_EIGENVALUE * max(float(value.max()), 1e-12)
        return replace(plain, covariance=(vector * np.maximum(value, floor)) @ vector.T)

    def errors(self, sigma: Float64Array) -> Float64Array:
        """Errors (n_star, M) that count, of the quoted ones; NaN for a method without weight."""
        with np.errstate(invalid="ignore", divide="ignore"):
            ratio = np.clip(sigma / self.quoted, 1.0 / _FACTOR, _FACTOR)
        ratio = np.where(np.isfinite(ratio), ratio, 1.0)
        return np.asarray(self.typical * ratio**self.power)

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
        errors = self.errors(sigma)
        known = np.isfinite(values) & np.isfinite(self.bias) & np.isfinite(errors)
        scale = np.where(known, errors, 1.0)
        matrix = self.covariance * scale[:, :, None] * scale[:, None]
        pair = known[:, :, None] & known[:, None]
        unit = np.eye(self.bias.size)
        # A method that is silent for a star gets a row of the identity and a right-hand side of 0:
        # one batched solve serves stars with any set of answers.
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


def _best_power(residual: Float64Array, sigma: Float64Array, quoted: float) -> float:
    """Power of the quoted errors that makes residuals over errors likeliest (Laplace)."""
    # Laplace, not normal: outliers of rivals must not choose the power.
    known = np.isfinite(residual) & (sigma > 0)
    ratio = np.log(np.clip(sigma[known] / quoted, 1.0 / _FACTOR, _FACTOR))
    size = np.abs(residual[known])
    scores = [
        power * ratio.mean() + np.log(np.mean(size * np.exp(-power * ratio)) + 1e-300)
        for power in _POWERS
    ]
    return _POWERS[int(np.argmin(scores))]
