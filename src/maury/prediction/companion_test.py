"""Is it two stars: what luminosity, colours and line widths say together.

An unresolved companion makes a star too bright and too red for its spectrum, and its lines a little
broader. None of this is much; a logistic regression on simulated companions of the training stars
weighs them against one another, so that a fast rotator, whose lines are broad alone, is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from maury.io.arrays import Float64Array

__all__ = ["CompanionTest"]

_CLIP = 6.0
"""Sigma beyond which a sign says no more than there: chosen, not measured."""
_RIDGE = 3.0
"""Precision of the coefficients, of signs of unit scatter: chosen, not measured."""
_ROUNDS, _STEEPEST = 12, 30.0
"""Newton steps, of which some six are needed, and the logit beyond which an exponential is 0."""


@dataclass(frozen=True, eq=False)
class CompanionTest:
    """Coefficients of a logistic regression.

    Attributes
    ----------
    centre, scale, coefficients : (n_term,) float64
        Of the terms of `terms`.
    """

    centre: Float64Array
    scale: Float64Array
    coefficients: Float64Array

    @classmethod
    def fit(cls, single: Float64Array, double: Float64Array) -> Self | None:
        """Learn from terms (n_star, n_term) of single and of double stars; None if too few."""
        single, double = (rows[np.isfinite(rows).all(axis=1)] for rows in (single, double))
        if min(len(single), len(double)) < single.shape[1]:
            return None
        both = np.vstack([single, double])
        centre, scale = both.mean(axis=0), both.std(axis=0)
        # The constant has no scatter to be divided by.
        centre[0], scale = 0.0, np.where(scale > 1e-9, scale, 1.0)
        scaled = (both - centre) / scale
        truth = np.arange(len(both)) >= len(single)
        coefficients = np.zeros(scaled.shape[1])
        for _ in range(_ROUNDS):
            chance = 1.0 / (1.0 + np.exp(-np.clip(scaled @ coefficients, -_STEEPEST, _STEEPEST)))
            weighted = scaled * (chance * (1.0 - chance))[:, None]
            bend = weighted.T @ scaled + _RIDGE * np.eye(len(coefficients))
            coefficients += np.linalg.solve(
                bend, scaled.T @ (truth - chance) - _RIDGE * coefficients
            )
        return cls(centre, scale, coefficients)

    def score(self, terms: Float64Array) -> Float64Array:
        """Logarithm of the odds (n_star,) of two stars; NaN where a term is."""
        return np.asarray(((terms - self.centre) / self.scale) @ self.coefficients)


def terms(labels: Float64Array, signs: Float64Array) -> Float64Array:
    """Terms (n_star, n_term) of the regression.

    Parameters
    ----------
    labels : (n_star, 3) float64
        Scaled Teff, log g and [M/H]: where a star is decides what a sign means.
    signs : (n_star, n_sign) float64
        In units of their scatter: views that differ, observables off their surface, line widths.
    """
    place, sign = np.clip(labels, -3.0, 3.0), np.clip(signs, -_CLIP, _CLIP)
    gravity = place[:, 1:2]
    parts = [np.ones((len(place), 1)), place, place**2, place[:, :1] * gravity, sign, sign**2 / 4.0]
    parts += [sign * place[:, [k]] for k in range(place.shape[1])]
    return np.hstack([*parts, sign * gravity**2])
