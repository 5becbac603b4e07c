"""Quadratic polynomials of labels or observables: the terms that several methods regress on."""

from __future__ import annotations

import numpy as np

from maury.io.arrays import Float64Array

__all__ = ["bounded_terms", "n_term", "terms", "terms_slope"]


def n_term(n_label: int) -> int:
    """Terms of a quadratic polynomial in `n_label` labels: (K + 1) (K + 2) / 2."""
    return (n_label + 1) * (n_label + 2) // 2


def terms(scaled: Float64Array) -> Float64Array:
    """Vectorise scaled labels (n_star, K): v = [1, x_i, x_i x_j (i <= j)], (n_star, n_term)."""
    first, second = np.triu_indices(scaled.shape[1])
    one = np.ones((len(scaled), 1))
    return np.concatenate([one, scaled, scaled[:, first] * scaled[:, second]], axis=1)


def bounded_terms(scaled: Float64Array, bound: float) -> Float64Array:
    """`terms` of values kept within +-`bound`, beyond which a quadratic says nothing."""
    return terms(np.clip(scaled, -bound, bound))


def terms_slope(scaled: Float64Array) -> Float64Array:
    """Differentiate `terms` by each scaled label: (n_star, n_term, K)."""
    n, k = scaled.shape
    first, second = np.triu_indices(k)
    out = np.zeros((n, n_term(k), k))
    out[:, 1 + np.arange(k), np.arange(k)] = 1.0
    pair = 1 + k + np.arange(first.size)
    out[:, pair, first] += scaled[:, second]
    # Added, not set: where both are one label, the slope of x^2 is 2 x.
    out[:, pair, second] += scaled[:, first]
    return out
