"""Quadratic spectral model of The Cannon: training by sufficient statistics, and its likelihood.

Ness et al. (2015, ApJ 808, 16), with the sparse and censored form of Casey et al. (2016,
arXiv 1603.03040). A polynomial of degree two in the labels has products of degree four, so that
everything that many stars have to say of a pixel, and many pixels of a star, is a few hundred sums.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Self

import numpy as np

from maury.errors import TrainingError
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    IndexArray,
    Int64Array,
)
from maury.methods.fitting.polynomials import n_term, terms, terms_slope

__all__ = ["QuadraticModel", "scatter_of"]

logger = logging.getLogger(__name__)


# Relative to a unit diagonal: above rounding of doubles (2e-16), below any real curvature.
_RIDGE = 1e-12
# Bisection alone reaches 1e-18 in 60 steps; Newton ends far sooner.
_ROOT_STEPS = 60
# Relative; scatter is not known to better than a percent from thousands of stars.
_ROOT_TOLERANCE = 1e-6
# Scatter of a pixel is at most the whole continuum.
_LARGEST_SCATTER = 1.0
# Turns of coefficients and scatter at most; chosen, not measured.
_ROUNDS = 12
# Relative change of the scatter at which a pixel is done, far below its error.
_TOLERANCE = 1e-4
# Sweeps of coordinate descent at most; chosen: correlated terms make it slow.
_SWEEPS = 400
# Change of a coefficient, in flux, at which descent ends: far below any noise.
_SPARSE_TOLERANCE = 1e-9
# Smallest eigenvalue of the unit-diagonal normal matrix that is no rounding of label errors.
_LEAST_INFORMATION = 1e-9
# Share of the stars that is left beyond the coefficients, at least; chosen.
_LEAST_LEFT = 0.1
# Pixels whose normal matrices lie in memory: 128 x 55 x 55 doubles are 3 MB.
_PIXEL_BLOCK = 128


@dataclass(frozen=True, eq=False)
class QuadraticModel:
    """Flux of every pixel as a quadratic polynomial of scaled labels, with intrinsic scatter.

    Attributes
    ----------
    pivot, scale : (n_label,) float64
        Median of the training labels, and their 2.5-97.5 % range: x = (label - pivot) / scale.
    theta : (n_pixel, n_term) float64
        Coefficients, in the order of `terms`.
    scatter : (n_pixel,) float64
        Intrinsic scatter s (a standard deviation, not a variance).
    lowest, highest : (n_label,) float64
        Range of the training labels.
    """

    pivot: Float64Array
    scale: Float64Array
    theta: Float64Array
    scatter: Float64Array
    lowest: Float64Array
    highest: Float64Array

    def __post_init__(self) -> None:
        if self.theta.shape != (self.scatter.size, n_term(self.n_label)):
            raise ValueError(
                f"coefficients are {self.theta.shape} for {self.scatter.size} pixels and "
                f"{self.n_label} labels"
            )

    @classmethod
    def fit(
        cls,
        flux: AnyArray,
        ivar: AnyArray,
        labels: Float64Array,
        *,
        sparsity: float = 0.0,
        uses: BoolArray | None = None,
        label_errors: Float64Array | None = None,
    ) -> Self:
        """Learn coefficients and scatter by maximum likelihood.

        Weights w = ivar / (1 + ivar s^2); theta minimises sum w (f - v theta)^2 + Lambda sum
        |theta_d| over d >= 1 (Casey et al. 2016, eq. 3); s^2 is the root of sum (r^2 w^2 - w) = 0
        in s^2 (the derivative of the likelihood), and 0 if there is none. The two are
        alternated until s stands. Residuals r of n stars from p coefficients that these stars
        themselves gave are too small, and those of other stars larger by the errors of the
        coefficients: r^2 is taken (n + p) / (n - p) times, as the variance of a prediction is.

        Errors of the labels make lines look weaker than they are (regression dilution). Sums over
        stars are therefore of Hermite polynomials of the labels in place of their powers, whose
        expectation over the errors is the power of the true label (corrected scores of Nakamura
        1990, Biometrika 77, 127; Cheng & Schneeweiss 1998, J. R. Stat. Soc. B 60, 189), and what
        errors of labels add to the residuals is no scatter.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float
            ivar 0 marks a bad pixel.
        labels : (n_star, n_label) float64
            Finite.
        sparsity : float
            Lambda of the L1 term.
        uses : (n_pixel, n_label) bool, optional
            Which labels a pixel may depend on (censoring); all by default.
        label_errors : (n_star, n_label) float64, optional
            1 sigma, independent of one another; 0 or NaN for a label that is exact.

        Raises
        ------
        TrainingError
            If there are fewer stars than coefficients, or errors of labels are so large that
            nothing of their scatter is left to learn from.
        """
        size = n_term(labels.shape[1])
        if len(labels) < size:
            raise TrainingError(
                f"a quadratic model of {labels.shape[1]} labels has {size} coefficients per pixel, "
                f"got {len(labels)} stars; give more stars, or fewer labels"
            )
        low, pivot, high = np.percentile(labels, [2.5, 50.0, 97.5], axis=0)
        scale = np.where(high > low, high - low, 1.0)
        errors = np.zeros(labels.shape) if label_errors is None else np.nan_to_num(label_errors)
        theta, scatter = _alternate(
            np.asarray(flux, np.float64),
            np.asarray(ivar, np.float64),
            _Regressors.of((labels - pivot) / scale, errors / scale),
            allowed=_allowed_terms(uses, labels.shape[1], flux.shape[1]),
            sparsity=sparsity,
        )
        return cls(pivot, scale, theta, scatter, labels.min(axis=0), labels.max(axis=0))

    @property
    def n_label(self) -> int:
        """Number of labels."""
        return self.pivot.size

    def scaled(self, labels: Float64Array) -> Float64Array:
        """Scaled labels (n_star, n_label)."""
        return np.asarray((labels - self.pivot) / self.scale)

    def physical(self, scaled: Float64Array) -> Float64Array:
        """Labels (n_star, n_label) in their units."""
        return np.asarray(scaled * self.scale + self.pivot)

    def flux(self, labels: Float64Array) -> Float64Array:
        """Model flux (n_star, n_pixel)."""
        return np.asarray(terms(self.scaled(labels)) @ self.theta.T)

    def flux32(self, labels: Float64Array) -> Float32Array:
        """`flux` in single precision, as large batches take it."""
        return np.asarray(terms(self.scaled(labels)).astype(np.float32) @ self._theta32)

    def jacobian(self, labels: Float64Array) -> Float64Array:
        """Differentiate the flux per unit of each label: (n_star, n_label, n_pixel)."""
        one = np.ones((len(labels), 1))
        slopes = np.concatenate([one, self.scaled(labels)], axis=1) @ self._slopes
        jacobian = slopes.reshape(len(labels), self.n_label, self.scatter.size)
        return np.asarray(jacobian / self.scale[:, None])

    def scaled_slopes(self, labels: Float64Array) -> Float32Array:
        """Differentiate by scaled labels in single precision: (n_star, n_label, n_pixel)."""
        one = np.ones((len(labels), 1))
        linear = np.concatenate([one, self.scaled(labels)], axis=1).astype(np.float32)
        return (linear @ self._slopes32).reshape(len(labels), self.n_label, self.scatter.size)

    @cached_property
    def _theta32(self) -> Float32Array:
        return np.ascontiguousarray(self.theta.T, dtype=np.float32)

    @cached_property
    def _slopes32(self) -> Float32Array:
        return self._slopes.astype(np.float32)

    @cached_property
    def _slopes(self) -> Float64Array:
        """Derivatives by scaled labels are linear in them: (1 + n_label, n_label * n_pixel)."""
        k = self.n_label
        first, second = np.triu_indices(k)
        square = np.zeros((k, k, self.scatter.size))
        square[first, second] += self.theta[:, 1 + k :].T
        square[second, first] += self.theta[:, 1 + k :].T
        linear = self.theta[:, 1 : 1 + k].T[None]
        return np.concatenate([linear, square]).reshape(1 + k, -1)


def scatter_of(residual: Float64Array, ivar: Float64Array) -> Float64Array:
    """Maximum-likelihood intrinsic scatter of each pixel, (n_pixel,).

    The root in s^2 of sum_n (r^2 w^2 - w), w = ivar / (1 + ivar s^2), by safeguarded Newton
    steps in all pixels at once; 0 where noise alone explains the residuals.

    Parameters
    ----------
    residual, ivar : (n_star, n_pixel) float64
    """
    square = residual**2
    largest = np.minimum(square.max(axis=0, initial=0.0), _LARGEST_SCATTER**2)
    high = np.where(ivar.max(axis=0, initial=0.0) > 0, largest, 0.0)
    low = np.zeros_like(high)
    none = _slope(square, ivar, low)[0] <= 0
    variance = np.clip(square.mean(axis=0) - _noise(ivar), 0.0, high)
    for _ in range(_ROOT_STEPS):
        value, curve = _slope(square, ivar, variance)
        low, high = np.where(value > 0, variance, low), np.where(value > 0, high, variance)
        with np.errstate(divide="ignore", invalid="ignore"):
            newton = variance - value / curve
        inside = (newton > low) & (newton < high) & (curve < 0)
        best = np.where(inside, newton, 0.5 * (low + high))
        moved = np.abs(best - variance) > _ROOT_TOLERANCE * np.abs(best)
        variance = best
        if not (moved & ~none).any():
            break
    return np.asarray(np.sqrt(np.where(none, 0.0, variance)))


def _noise(ivar: Float64Array) -> Float64Array:
    """Typical noise variance of each pixel."""
    level = np.median(ivar, axis=0)
    return np.asarray(1.0 / np.where(level > 0, level, np.inf))


def _slope(
    square: Float64Array, ivar: Float64Array, variance: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Likelihood equation in s^2, and its derivative."""
    weight = ivar / (1.0 + ivar * variance)
    second = square * weight
    second *= weight
    value = second.sum(axis=0) - weight.sum(axis=0)
    curve = np.einsum("np,np->p", weight, weight) - 2.0 * np.einsum("np,np->p", second, weight)
    return value, curve


def _allowed_terms(uses: BoolArray | None, n_label: int, n_pixel: int) -> BoolArray | None:
    """Which terms each pixel may have, (n_pixel, n_term); None if all."""
    if uses is None or uses.all():
        return None
    first, second = np.triu_indices(n_label)
    one = np.ones((n_pixel, 1), dtype=np.bool_)
    return np.concatenate([one, uses, uses[:, first] & uses[:, second]], axis=1)


@cache
def _powers(n_label: int) -> Int64Array:
    """Exponents (n_term, n_label) of the labels in each term."""
    first, second = np.triu_indices(n_label)
    power = np.zeros((n_term(n_label), n_label), dtype=np.int64)
    power[1 + np.arange(n_label), np.arange(n_label)] = 1
    pair = 1 + n_label + np.arange(first.size)
    np.add.at(power, (pair, first), 1)
    np.add.at(power, (pair, second), 1)
    return power


@cache
def _products(n_label: int) -> tuple[IndexArray, IndexArray]:
    """Distinct products of two terms.

    Returns
    -------
    representative : (n_product, 2) int
        A pair of terms that makes each product.
    place : (n_term, n_term) int
        Which product each pair of terms is.
    """
    power = _powers(n_label)
    size = len(power)
    total = (power[:, None] + power[None]).reshape(size * size, n_label)
    _, where, place = np.unique(total, axis=0, return_index=True, return_inverse=True)
    return np.stack(np.unravel_index(where, (size, size)), axis=1), place.reshape(size, size)


@dataclass(frozen=True, eq=False)
class _Regressors:
    """What the sums over stars are made of, freed of the errors of the labels.

    Attributes
    ----------
    seen : (n_star, n_term) float64
        Terms of the labels as they are.
    vector : (n_star, n_term), products : (n_star, n_product) float64
        Terms and products of terms, of expectation as of the true labels.
    scaled, errors : (n_star, n_label) float64
    """

    seen: Float64Array
    vector: Float64Array
    products: Float64Array
    scaled: Float64Array
    errors: Float64Array

    @classmethod
    def of(cls, scaled: Float64Array, errors: Float64Array) -> Self:
        seen = terms(scaled)
        one, two = _products(scaled.shape[1])[0].T
        if not errors.any():
            return cls(seen, seen, seen[:, one] * seen[:, two], scaled, errors)
        power = _powers(scaled.shape[1])
        vector, products = (_unbiased(scaled, errors, p) for p in (power, power[one] + power[two]))
        normal = products.sum(axis=0)[_products(scaled.shape[1])[1]]
        root = np.sqrt(np.maximum(np.diagonal(normal), 1e-300))
        if np.linalg.eigvalsh(normal / np.outer(root, root))[0] <= _LEAST_INFORMATION:
            # Of so few stars, or labels so uncertain, the correction would leave nothing.
            logger.warning(
                "the errors of some labels are as large as the labels scatter, and are taken for "
                "none: derivatives by these labels are then too small; name fewer labels, or give "
                "more stars"
            )
            return cls.of(scaled, np.zeros_like(errors))
        return cls(seen, vector, products, scaled, errors)

    def label_noise(self, theta: Float64Array) -> Float64Array:
        """Variance (n_star, n_pixel) of the flux by the errors of the labels, to first order."""
        slope = terms_slope(self.scaled) * self.errors[:, None]
        total = np.zeros((len(self.scaled), len(theta)))
        for k in range(self.scaled.shape[1]):
            total += (slope[:, :, k] @ theta.T) ** 2
        return total


def _unbiased(scaled: Float64Array, errors: Float64Array, power: Int64Array) -> Float64Array:
    """Monomials (n_star, n_monomial), unbiased for those of the labels without their errors."""
    x, square = scaled, errors**2
    # Hermite polynomials: their mean over a Gaussian error of x is the power of the true x.
    known = [np.ones_like(x), x, x**2 - square, x**3 - 3.0 * x * square]
    known.append(x**4 - 6.0 * x**2 * square + 3.0 * square**2)
    table = np.stack(known)
    out = np.ones((len(x), len(power)))
    for k in range(x.shape[1]):
        out *= table[power[:, k], :, k].T
    return out


def _alternate(
    flux: Float64Array,
    ivar: Float64Array,
    labels: _Regressors,
    *,
    allowed: BoolArray | None,
    sparsity: float,
) -> tuple[Float64Array, Float64Array]:
    """Solve for coefficients and scatter in turn, the pixels whose scatter still moves only."""
    n_pixel, size = flux.shape[1], labels.vector.shape[1]
    place = _products(labels.scaled.shape[1])[1]
    good = ivar > 0
    known = np.where(good, flux, 0.0)
    theta = np.zeros((n_pixel, size))
    level = np.median(np.where(good, ivar, 0.0), axis=0)
    scatter = np.where(level > 0, 0.3 / np.sqrt(np.where(level > 0, level, 1.0)), 0.0)
    moving = np.arange(n_pixel)
    for _ in range(_ROUNDS):
        still = []
        for start in range(0, moving.size, _PIXEL_BLOCK):
            pixel = moving[start : start + _PIXEL_BLOCK]
            f, i = known[:, pixel], ivar[:, pixel]
            weight = i / (1.0 + i * scatter[pixel] ** 2)
            normal = (weight.T @ labels.products)[:, place]
            right = (weight * f).T @ labels.vector
            may = None if allowed is None else allowed[pixel]
            allowed_terms = size if may is None else may.sum(axis=1)
            theta[pixel] = _solve(normal, right, may, sparsity, theta[pixel])
            if labels.errors.any():
                i = i / (1.0 + i * labels.label_noise(theta[pixel]))
            residual = (f - labels.seen @ theta[pixel].T) * np.sqrt(_predicted(i, allowed_terms))
            found = scatter_of(residual, i)
            change = np.abs(found - scatter[pixel])
            scatter[pixel] = found
            still.append(pixel[change > _TOLERANCE * np.maximum(found, 1e-4)])
        moving = np.concatenate(still)
        if moving.size == 0:
            break
    return theta, scatter


def _predicted(ivar: Float64Array, n_term: int | AnyArray) -> Float64Array:
    """Variance of a prediction over the mean square of residuals, (n_pixel,)."""
    n_star = (ivar > 0).sum(axis=0)
    # With hardly more stars than coefficients residuals tell nothing, and less than this bound.
    left = np.maximum(n_star - n_term, _LEAST_LEFT * np.maximum(n_star, 1))
    return np.asarray((n_star + n_term) / left, dtype=np.float64)


def _solve(
    normal: Float64Array,
    right: Float64Array,
    allowed: BoolArray | None,
    sparsity: float,
    start: Float64Array,
) -> Float64Array:
    """Coefficients (n_pixel, n_term) from normal matrices; 0 in a pixel without weight."""
    size = right.shape[1]
    diagonal = np.arange(size)
    if allowed is not None:
        normal = normal * (allowed[:, :, None] & allowed[:, None])
        right = right * allowed
    normal = np.array(normal)
    # Unit diagonal keeps the ridge small against every term, however rare or censored.
    root = np.sqrt(normal[:, diagonal, diagonal])
    root = np.where(root > 0, root, 1.0)
    scaled = normal / root[:, :, None] / root[:, None]
    empty = scaled[:, diagonal, diagonal] == 0
    scaled[:, diagonal, diagonal] += np.where(empty, 1.0, _RIDGE)
    if sparsity > 0:
        return _sparse(normal, right, sparsity, start)
    solved = np.linalg.solve(scaled, (right / root)[:, :, None])[:, :, 0]
    return np.asarray(solved / root)


def _sparse(
    normal: Float64Array, right: Float64Array, sparsity: float, start: Float64Array
) -> Float64Array:
    """Coordinate descent for the L1 term, in all pixels at once."""
    theta = start.copy()
    diagonal = np.einsum("ptt->pt", normal)
    divisor = np.where(diagonal > 0, diagonal, 1.0)
    size = right.shape[1]
    threshold = np.full(size, 0.5 * sparsity)
    threshold[0] = 0.0
    for _ in range(_SWEEPS):
        before = theta.copy()
        for term in range(size):
            rest = right[:, term] - np.einsum("pt,pt->p", normal[:, term], theta)
            rest += diagonal[:, term] * theta[:, term]
            kept = np.sign(rest) * np.maximum(np.abs(rest) - threshold[term], 0.0)
            theta[:, term] = np.where(diagonal[:, term] > 0, kept / divisor[:, term], 0.0)
        if np.max(np.abs(theta - before), initial=0.0) < _SPARSE_TOLERANCE:
            break
    return theta
