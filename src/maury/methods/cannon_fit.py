"""The test step of The Cannon: Levenberg-Marquardt on sums over pixels, all stars at once.

Chi-square of a quadratic model is c - 2 b v + v^T G v, with v the terms of the labels, and G, b
and c sums over pixels that one matrix product gives for many stars. A step then costs the same
whatever the number of pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from maury.io.arrays import AnyArray, BoolArray, Float64Array, FloatArray, IndexArray
from maury.methods.cannon_model import QuadraticModel
from maury.methods.fitting.polynomials import terms, terms_slope

__all__ = ["Inversion", "QuadraticFit"]


# Stars whose sums lie in memory: 54 x 54 doubles each for nine labels, 3 MB in all.
_BLOCK = 128
# Newton steps at most; chosen: a fit that has not converged by then is flagged.
_STEPS = 40
# Chi-square that a last step may still change: a thousandth of an error, squared.
_CONVERGED = 1e-6
_FIRST_DAMPING, _LEAST_DAMPING, _MOST_DAMPING = 1e-4, 1e-10, 1e8
# How far beyond the training labels a fit may go, in their ranges: chosen; a quadratic is no guide
# beyond.
_MARGIN = 0.5
# Distance to a bound, in ranges of the labels, that is rounding.
_AT_BOUND = 1e-6


class Inversion(NamedTuple):
    """Labels of some spectra by least chi-square.

    Attributes
    ----------
    labels : (n_star, n_label) float64
        Physical.
    chi2 : (n_star,) float64
    fisher : (n_star, n_label, n_label) float64
        J^T W J at the labels, per unit of them.
    converged, at_bound : (n_star,) bool
    """

    labels: Float64Array
    chi2: Float64Array
    fisher: Float64Array
    converged: BoolArray
    at_bound: BoolArray


@dataclass(frozen=True, eq=False)
class QuadraticFit:
    """Fits a quadratic model to spectra.

    Parameters
    ----------
    model : QuadraticModel
    starts : (n_start, n_label) float64
        Physical labels to start from.
    """

    model: QuadraticModel
    starts: Float64Array

    def fit(self, flux: FloatArray, ivar: FloatArray, *, runs: int) -> Inversion:
        """Find the labels of least chi-square, within half a range beyond the training labels.

        Each run starts from another of the `starts`, those of least chi-square first, and from
        the step that a linear model would take from there.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float
            Finite; ivar 0 marks a bad pixel.
        runs : int
            Of which the best counts.
        """
        blocks = range(0, max(len(flux), 1), _BLOCK)
        parts = [self._block(flux[k : k + _BLOCK], ivar[k : k + _BLOCK], runs) for k in blocks]
        return Inversion(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _block(self, flux: FloatArray, ivar: FloatArray, runs: int) -> Inversion:
        sums = self._sums(flux, ivar)
        # Chi-square at all starts costs one product, and puts the right valley first.
        order = np.argsort(self._chi2_of_starts(sums), axis=1)[:, :runs]
        best = _descend(sums, self._scaled_starts[order[:, 0]], *self._box)
        for run in range(1, order.shape[1]):
            other = _descend(sums, self._scaled_starts[order[:, run]], *self._box)
            better = other.chi2 < best.chi2
            best = _Descent(*(_where(better, a, b) for a, b in zip(other, best, strict=True)))
        low, high = self._box
        beyond = (best.scaled <= low + _AT_BOUND) | (best.scaled >= high - _AT_BOUND)
        scale = self.model.scale
        return Inversion(
            self.model.physical(best.scaled),
            np.maximum(best.chi2, 0.0),
            best.fisher / (scale[:, None] * scale),
            best.converged,
            np.asarray(beyond.any(axis=1), dtype=np.bool_),
        )

    @cached_property
    def _box(self) -> tuple[Float64Array, Float64Array]:
        model = self.model
        low, high = (model.scaled(edge) for edge in (model.lowest, model.highest))
        reach = _MARGIN * (high - low)
        return low - reach, high + reach

    @cached_property
    def _scaled_starts(self) -> Float64Array:
        return self.model.scaled(self.starts)

    @cached_property
    def _pairs(self) -> tuple[IndexArray, IndexArray]:
        return np.triu_indices(self.model.theta.shape[1] - 1)

    @cached_property
    def _products(self) -> Float64Array:
        """Products of coefficients (n_pixel, n_pair), the constant left out."""
        first, second = self._pairs
        theta = self.model.theta[:, 1:]
        return np.asarray(theta[:, first] * theta[:, second])

    @cached_property
    def _unfold(self) -> IndexArray:
        first, second = self._pairs
        size = self.model.theta.shape[1] - 1
        place = np.empty((size, size), dtype=np.intp)
        place[first, second] = place[second, first] = np.arange(first.size)
        return place

    @cached_property
    def _start_products(self) -> Float64Array:
        """Weights of the pairs in v^T G v at each start, (n_pair, n_start)."""
        first, second = self._pairs
        vector = terms(self._scaled_starts)[:, 1:]
        both = vector[:, first] * vector[:, second]
        return np.asarray((both * np.where(first == second, 1.0, 2.0)).T)

    def _sums(self, flux: FloatArray, ivar: FloatArray) -> _Sums:
        # In double precision: far from the training labels the terms are large and cancel.
        weight = ivar / (1.0 + ivar * self.model.scatter**2)
        residual = flux - self.model.theta[:, 0]
        weighted = weight * residual
        right = weighted @ self.model.theta[:, 1:]
        constant = np.einsum("np,np->n", weighted, residual)
        folded = weight @ self._products
        return _Sums(constant, right, folded, folded[:, self._unfold])

    def _chi2_of_starts(self, sums: _Sums) -> Float64Array:
        vector = terms(self._scaled_starts)[:, 1:]
        quadratic = sums.folded @ self._start_products
        return np.asarray(sums.constant[:, None] - 2.0 * sums.right @ vector.T + quadratic)


class _Sums(NamedTuple):
    """Sums over pixels of some stars: c, b, G folded and G."""

    constant: Float64Array
    right: Float64Array
    folded: Float64Array
    matrix: Float64Array

    def rows(self, index: IndexArray) -> _Sums:
        return _Sums(
            self.constant[index], self.right[index], self.folded[index], self.matrix[index]
        )


class _Descent(NamedTuple):
    scaled: Float64Array
    chi2: Float64Array
    fisher: Float64Array
    converged: BoolArray


class _Point(NamedTuple):
    """Chi-square, minus half its gradient, J^T W J, and half its second derivatives."""

    chi2: Float64Array
    gradient: Float64Array
    fisher: Float64Array
    curve: Float64Array

    def rows(self, index: IndexArray) -> _Point:
        return _Point(*(array[index] for array in self))

    def replaced(self, better: BoolArray, other: _Point) -> _Point:
        """Take stars from `other` where it is better."""
        return _Point(*(_where(better, a, b) for a, b in zip(other, self, strict=True)))


def _where(chosen: BoolArray, yes: AnyArray, no: AnyArray) -> AnyArray:
    """Rows of one array, and the others of another."""
    return np.where(chosen.reshape(-1, *[1] * (yes.ndim - 1)), yes, no)


def _evaluate(sums: _Sums, scaled: Float64Array) -> _Point:
    vector = terms(scaled)[:, 1:]
    slope = terms_slope(scaled)[:, 1:]
    both = np.concatenate([vector[:, :, None], slope], axis=2)
    product = sums.matrix @ both
    by_vector = product[:, :, 0]
    chi2 = sums.constant + np.einsum("nt,nt->n", vector, by_vector - 2.0 * sums.right)
    left = sums.right - by_vector
    gradient = (slope.transpose(0, 2, 1) @ left[:, :, None])[:, :, 0]
    fisher = slope.transpose(0, 2, 1) @ product[:, :, 1:]
    first, second = np.triu_indices(scaled.shape[1])
    curve = fisher.copy()
    curve[:, first, second] -= left[:, scaled.shape[1] :]
    curve[:, second, first] -= left[:, scaled.shape[1] :]
    return _Point(chi2, gradient, fisher, curve)


def _descend(sums: _Sums, start: Float64Array, low: Float64Array, high: Float64Array) -> _Descent:
    """Damped Newton steps within a box; stars that have converged are left behind.

    Half-determined combinations of labels make Gauss-Newton steps slow, and the second derivatives
    of a quadratic model cost nothing.
    """
    scaled = np.clip(start, low, high)
    point = _evaluate(sums, scaled)
    final = point
    converged = np.zeros(len(scaled), dtype=np.bool_)
    active = np.arange(len(scaled))
    damping = np.full(len(scaled), _FIRST_DAMPING)
    here, place = sums, scaled.copy()
    for _ in range(_STEPS):
        blocked = ((place <= low) & (point.gradient < 0)) | ((place >= high) & (point.gradient > 0))
        new = np.clip(place + _step(point, damping, blocked), low, high)
        moved = new - place
        small = np.einsum("ni,nij,nj->n", moved, point.fisher, moved) < _CONVERGED
        trial = _evaluate(here, new)
        better = trial.chi2 <= point.chi2
        point, place = point.replaced(better, trial), np.where(better[:, None], new, place)
        damping = np.maximum(damping * np.where(better, 0.1, 10.0), _LEAST_DAMPING)
        going = np.flatnonzero(~small & (damping < _MOST_DAMPING))
        if going.size < active.size:
            done = np.setdiff1d(np.arange(active.size), going)
            converged[active[done]] = small[done]
            scaled[active[done]] = place[done]
            final = _put(final, active[done], point.rows(done))
            active, damping, place = active[going], damping[going], place[going]
            point, here = point.rows(going), here.rows(going)
        if active.size == 0:
            break
    scaled[active] = place
    final = _put(final, active, point)
    return _Descent(scaled, final.chi2, final.fisher, converged)


def _put(target: _Point, index: IndexArray, rows: _Point) -> _Point:
    """Return `target` with some of its stars replaced."""
    out = _Point(*(array.copy() for array in target))
    for whole, part in zip(out, rows, strict=True):
        whole[index] = part
    return out


def _step(point: _Point, damping: Float64Array, blocked: BoolArray) -> Float64Array:
    """Solve (H + damping diag F) step = gradient for the labels that no bound blocks.

    H is J^T W J where the second derivatives would lead uphill.
    """
    free = ~blocked
    pair = free[:, :, None] & free[:, None]
    diagonal = np.einsum("nii->ni", point.fisher)
    # Keeps the matrix regular where a star has no pixel of some label.
    least = 1e-12 * np.maximum(diagonal.max(axis=1, keepdims=True), 1e-30)
    index = np.arange(free.shape[1])
    right = (point.gradient * free)[:, :, None]
    added = np.where(free, damping[:, None] * diagonal + least, 1.0)
    both = []
    for matrix in (point.curve, point.fisher):
        damped = np.where(pair, matrix, 0.0)
        damped[:, index, index] += added
        both.append(np.linalg.solve(damped, right)[:, :, 0])
    downhill = np.einsum("ni,ni->n", both[0], point.gradient) > 0
    return np.where(downhill[:, None], both[0], both[1])
