"""Combinations of observables: does any training star have colours and magnitudes like these.

Each observable by itself may be usual, and all of them together like those of no star. Magnitudes
and extinction of stars lie near a curved surface of few dimensions: how far a star lies off it,
in units of the scatter of training stars, is its score.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from maury.io.arrays import BoolArray, Float64Array, IndexArray
from maury.labels.statistics import robust_scale

__all__ = ["ObservableSpace"]

LEAST_OBSERVABLES = 6
"""Observables with which there is a surface to lie off."""
_N_ALONG = 4
"""Temperature, luminosity, metallicity and extinction: dimensions of the surface."""
_DEGREE = 3
"""Of its polynomials: with 2, an infrared blend of .2 mag was seen in .72 of stars, not .99."""
_CLIP_ALONG, _CLIP = 4.0, 3.0
"""Sigma beyond which the surface goes on as a constant, and beyond which a star is an outlier
that may not bend it."""
_CLIP_FILLING = 5.0
"""Sigma beyond which an observable may not widen the covariance; chosen."""
_DEPENDENT = 1e-3
"""Scatter of an observable about a combination of those before it, in units of its own, below
which it says nothing more: rounding is far below, the errors of magnitudes above."""
_ROUNDS = 5
"""Of reweighting, after which the outliers no longer change."""
_LEAST_VARIANCE = 1e-5
"""Of a direction, in units of the observables' own: below, it is rounding, as of a colour beside
its two magnitudes."""


@dataclass(frozen=True, eq=False)
class ObservableSpace:
    """The surface near which training stars lie, and their scatter about it.

    Attributes
    ----------
    centre, scale : (n,) float64
    covariance : (n, n) float64
        Of the scaled observables, by which missing ones are filled.
    along, across : (n, 4), (n, n_across) float64
        Projections of scaled observables on the surface's dimensions and off them.
    surface : (n_term, n_across) float64
        Polynomial of the former that predicts the latter.
    root : (n_across, n_across) float64
        Whitens what is left.
    """

    centre: Float64Array
    scale: Float64Array
    covariance: Float64Array
    along: Float64Array
    across: Float64Array
    surface: Float64Array
    root: Float64Array

    @classmethod
    def fit(cls, observables: ArrayLike) -> Self | None:
        """Learn from training stars (n_star, n); None with too few stars or observables."""
        values = np.asarray(observables, dtype=np.float64)
        whole = values[np.isfinite(values).all(axis=1)]
        n_term = len(_powers())
        if values.shape[1] < LEAST_OBSERVABLES or len(whole) < 4 * n_term:
            return None
        centre, scale = robust_scale(whole)
        scaled = (whole - centre) / scale
        clipped = np.clip(scaled, -_CLIP_FILLING, _CLIP_FILLING)
        covariance = np.cov(clipped, rowvar=False)
        own = _independent(scaled)
        strength, axes = np.linalg.eigh(covariance[np.ix_(own, own)])
        strength, spread = strength[::-1], np.zeros((len(covariance), own.size))
        # What the others give already, as a colour its two magnitudes, would count twice.
        spread[own] = axes[:, ::-1]
        axes = spread
        along = axes[:, :_N_ALONG] / np.sqrt(np.maximum(strength[:_N_ALONG], _LEAST_VARIANCE))
        across = axes[:, _N_ALONG:][:, strength[_N_ALONG:] > _LEAST_VARIANCE]
        if not across.shape[1]:
            return None
        surface, root = _surface(_features(scaled @ along), scaled @ across)
        return cls(centre, scale, covariance, along, across, surface, root)

    def shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """Return the shape that each array should have, by its name behind that of the whole."""
        n, n_across = self.centre.size, self.root.shape[0]
        found: dict[str, tuple[int, ...]] = {
            "centre": (n,),
            "scale": (n,),
            "covariance": (n, n),
            "along": (n, _N_ALONG),
            "across": (n, n_across),
            "surface": (len(_powers()), n_across),
            "root": (n_across, n_across),
        }
        return {f"{name}.{key}": shape for key, shape in found.items()}

    def off(self, observables: ArrayLike) -> tuple[Float64Array, Float64Array]:
        """Whitened distances off the surface.

        Parameters
        ----------
        observables : (n_star, n) float
            NaN where missing: such are taken as the others let expect.

        Returns
        -------
        score : (n_star,) float64
            Squared distance; NaN with fewer than five observables.
        components : (n_star, n_across) float64
        """
        scaled = (np.asarray(observables, dtype=np.float64) - self.centre) / self.scale
        known = np.isfinite(scaled)
        components = np.full((len(scaled), self.root.shape[1]), np.nan)
        patterns, which = np.unique(known, axis=0, return_inverse=True)
        for number, pattern in enumerate(patterns):
            if pattern.sum() > _N_ALONG:
                rows = np.flatnonzero(which.reshape(-1) == number)
                components[rows] = self._components(scaled[rows], pattern)
        return np.square(components).sum(axis=1), components

    def _components(self, scaled: Float64Array, known: BoolArray) -> Float64Array:
        """Components of stars that have the same observables, which are `known` (n,)."""
        spread = np.eye(self.root.shape[1])
        if not known.all():
            own = self.covariance[np.ix_(known, known)]
            own = own + _LEAST_VARIANCE * np.eye(len(own))
            given = self.covariance[np.ix_(known, ~known)]
            weights = np.linalg.solve(own, given)
            scaled = scaled.copy()
            scaled[:, ~known] = scaled[:, known] @ weights
            # What the others leave open is added to the scatter, along the surface's mean slope.
            unsure = self.covariance[np.ix_(~known, ~known)] - given.T @ weights
            slope = self.across - self.along @ self.surface[1 : 1 + _N_ALONG]
            moved = (slope @ self.root)[~known]
            spread += moved.T @ unsure @ moved
        off = scaled @ self.across - _features(scaled @ self.along) @ self.surface
        return np.linalg.solve(np.linalg.cholesky(spread), (off @ self.root).T).T


def _independent(scaled: Float64Array) -> IndexArray:
    """Numbers of the observables that are no combination of those before them."""
    # An orthogonal column at a time; outliers obey the same combinations, so that none is clipped.
    basis = np.linalg.qr(scaled - scaled.mean(axis=0), mode="r")
    length = np.maximum(np.linalg.norm(basis, axis=0), 1e-30)
    return np.flatnonzero(np.abs(np.diag(basis)) > _DEPENDENT * length)


def _powers() -> list[tuple[int, ...]]:
    """Which dimensions each term multiplies."""
    dimensions = range(_N_ALONG)
    return [p for n in range(_DEGREE + 1) for p in combinations_with_replacement(dimensions, n)]


def _features(along: Float64Array) -> Float64Array:
    """Terms (n_star, n_term) of the polynomial."""
    clipped = np.clip(along, -_CLIP_ALONG, _CLIP_ALONG)
    return np.column_stack([clipped[:, list(p)].prod(axis=1) for p in _powers()])


def _surface(features: Float64Array, across: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Coefficients of the polynomial, and the root that whitens what it leaves."""
    weight = np.ones((len(features), 1))
    for _ in range(_ROUNDS):
        surface = np.linalg.lstsq(features * weight, across * weight, rcond=None)[0]
        left = across - features @ surface
        scale = robust_scale(left)[1]
        covariance = np.atleast_2d(np.cov(np.clip(left / scale, -_CLIP, _CLIP), rowvar=False))
        strength, axes = np.linalg.eigh(covariance)
        root = axes / np.sqrt(np.maximum(strength, 1e-6 * strength[-1])) / scale[:, None]
        squared = np.square(left @ root).sum(axis=1)
        # Three times what is expected: beyond, a star counts the less the further off it lies.
        most = _CLIP * across.shape[1]
        weight = np.sqrt(most / np.maximum(squared, most))[:, None]
    return np.asarray(surface, dtype=np.float64), np.asarray(root, dtype=np.float64)
