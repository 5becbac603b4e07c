"""Observables that lack one band, filled in from the others.

Magnitudes of a star in many bands are nearly redundant: one that is missing follows from the
others by a quadratic regression on the training stars. A network is then asked a question that it
knows. Stars that lack two bands or more, the parallax or the extinction, or whose other colours are
unlike the training stars', are left as they are: the network has learnt to do without them, and to
say how much is lost.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from maury.io.arrays import BoolArray, Float32Array, Float64Array

# Eight directions, as of seven bands and A_V, make 45 terms: four stars each.
LEAST_STARS = 200
"""Least training stars for a quadratic regression: several for each of its terms; chosen."""
_RIDGE = 1e-4
"""Holds coefficients of nearly dependent terms down, in scaled units; chosen, not measured."""
# A quadratic goes astray beyond its data, where a missing band does less harm than a wrong one.
_LARGEST_DEVIATION = 5.0
"""Nothing is filled in for stars beyond this many deviations from the training stars; chosen."""
_DEPENDENT = 1e-5
"""Relative size below which a direction is a rounding error: colours follow from magnitudes."""


@dataclass(frozen=True, eq=False)
class Imputer:
    """One regression per band.

    Attributes
    ----------
    centre, scale : (n_observable,) float64
        Of the training stars.
    regressions : tuple of Regression
        Empty where too few stars could fix them.
    """

    centre: Float64Array
    scale: Float64Array
    regressions: tuple["Regression", ...]

    @classmethod
    def fit(cls, observables: Float64Array, depends: BoolArray) -> Self:
        """Learn from training stars.

        Parameters
        ----------
        observables : (n_star, n_observable) float64
            NaN where missing.
        depends : (n_band, n_observable) bool
            Which observable is made of which band.
        """
        # The normal equations square what is small beside what is large; float32 has too few digits
        # for it.
        whole = observables[np.isfinite(observables).all(axis=1)].astype(np.float64)
        if len(whole) < LEAST_STARS:
            n_observable = depends.shape[1]
            return cls(np.zeros(n_observable), np.ones(n_observable), ())
        centre = np.median(whole, axis=0)
        scale = np.maximum(whole.std(axis=0), 1e-6)
        scaled = _scaled(whole, centre, scale)
        # A band on which all observables depend leaves nothing to predict it from.
        useful = [lost for lost in depends if lost.any() and not lost.all()]
        return cls(centre, scale, tuple(Regression.fit(scaled, lost) for lost in useful))

    def fill(self, observables: Float32Array) -> Float32Array:
        """Return observables with the stars that lack exactly one band filled in.

        Parameters
        ----------
        observables : (n_star, n_observable) float32
            NaN where missing.
        """
        missing = np.isnan(observables)
        filled = observables
        for one in self.regressions:
            # Equal, not just covered: a star that lacks two bands fits neither regression.
            rows = np.flatnonzero((missing == one.lost).all(axis=1))
            if rows.size == 0:
                continue
            scaled = _scaled(observables[rows].astype(np.float64), self.centre, self.scale)
            usual = one.inside(scaled)
            values = one.predict(scaled[usual]) * self.scale[one.lost] + self.centre[one.lost]
            # The caller's array stays as it is, and is not copied where no star lacks a band.
            filled = filled.copy() if filled is observables else filled
            filled[np.ix_(rows[usual], np.flatnonzero(one.lost))] = values.astype(np.float32)
        return filled


@dataclass(frozen=True, eq=False)
class Regression:
    """From the observables that are left to those that one band takes away.

    Attributes
    ----------
    lost : (n_observable,) bool
    projection : (n_kept, n_direction) float64
        To the independent directions of what is left, each of unit variance.
    weights : (n_term, n_lost) float64
    """

    lost: BoolArray
    projection: Float64Array
    weights: Float64Array

    @classmethod
    def fit(cls, scaled: Float64Array, lost: BoolArray) -> Self:
        """Learn from scaled observables (n_star, n_observable); wild stars are left out."""
        kept, target = scaled[:, ~lost], scaled[:, lost]
        _, size, direction = np.linalg.svd(kept / np.sqrt(len(kept)), full_matrices=False)
        # Colours are differences of the magnitudes beside them: dividing by their singular values
        # of zero would blow rounding errors up.
        real = size > _DEPENDENT * size[0]
        projection = direction[real].T / size[real]
        terms = _terms(kept @ projection)
        weights = _ridge(terms, target)
        residual = np.abs(target - terms @ weights).max(axis=1)
        # One variable star or wrong match bends a quadratic fit; so far out, hardly any of normal
        # errors is lost.
        sound = residual <= 6.0 * np.median(residual)
        return cls(lost, projection, _ridge(terms[sound], target[sound]))

    def inside(self, scaled: Float64Array) -> BoolArray:
        """Whether what is left of each star (n_star,) is like the training stars."""
        place = np.abs(scaled[:, ~self.lost] @ self.projection)
        return np.asarray((place < _LARGEST_DEVIATION).all(axis=1), dtype=np.bool_)

    def predict(self, scaled: Float64Array) -> Float64Array:
        """Scaled lost observables (n_star, n_lost)."""
        return _terms(scaled[:, ~self.lost] @ self.projection) @ self.weights


def _scaled(values: Float64Array, centre: Float64Array, scale: Float64Array) -> Float64Array:
    return np.clip((values - centre) / scale, -6.0, 6.0)


def _ridge(terms: Float64Array, target: Float64Array) -> Float64Array:
    normal = terms.T @ terms / len(terms)
    normal[np.diag_indices_from(normal)] += _RIDGE
    return np.asarray(np.linalg.solve(normal, terms.T @ target / len(terms)))


def _terms(values: Float64Array) -> Float64Array:
    """Constant, linear and quadratic terms of `values`."""
    first, second = np.triu_indices(values.shape[1])
    return np.column_stack([np.ones(len(values)), values, values[:, first] * values[:, second]])
