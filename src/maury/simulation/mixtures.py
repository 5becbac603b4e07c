"""Conditional Gaussian mixtures, and the warp that gives their tails."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maury.io.arrays import Float64Array, IndexArray


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture of (given, drawn) columns, standardised; `given` may be empty.

    Attributes
    ----------
    n_given : int
        The first columns are given, the others drawn.
    weights : (n_component,)
    means : (n_component, n_column)
    covariances : (n_component, n_column, n_column)
    centre, scale : (n_column,)
        Real columns are ``centre + scale * standardised``.
    """

    n_given: int
    weights: Float64Array
    means: Float64Array
    covariances: Float64Array
    centre: Float64Array
    scale: Float64Array

    def sample(
        self, given: Float64Array, rng: np.random.Generator, *, spread: Float64Array | float = 1.0
    ) -> Float64Array:
        """Draw the other columns (n, n_column - n_given) of stars with `given` (n, n_given).

        With `spread` (a number, or one per star), standard deviations are that much larger.
        """
        n, split = given.shape[0], self.n_given
        known = (given - self.centre[:split]) / self.scale[:split]
        component = self._choose(known, rng)
        noise = rng.standard_normal((n, self.means.shape[1] - split))
        noise = noise * np.broadcast_to(spread, n)[:, None]
        out = np.empty_like(noise)
        for k in np.unique(component):
            rows = component == k
            slope, root = self._conditional(int(k))
            shift = (known[rows] - self.means[k, :split]) @ slope.T
            out[rows] = self.means[k, split:] + shift + noise[rows] @ root.T
        return np.asarray(out * self.scale[split:] + self.centre[split:])

    def _conditional(self, k: int) -> tuple[Float64Array, Float64Array]:
        split, covariance = self.n_given, self.covariances[k]
        slope = np.linalg.solve(covariance[:split, :split], covariance[:split, split:]).T
        rest = covariance[split:, split:] - slope @ covariance[:split, split:]
        return slope, np.linalg.cholesky(0.5 * (rest + rest.T))

    def _choose(self, known: Float64Array, rng: np.random.Generator) -> IndexArray:
        log_density = np.tile(np.log(self.weights), (known.shape[0], 1))
        for k in range(self.weights.size):
            if self.n_given:
                root = np.linalg.cholesky(self.covariances[k, : self.n_given, : self.n_given])
                white = np.linalg.solve(root, (known - self.means[k, : self.n_given]).T)
                log_density[:, k] -= 0.5 * (white**2).sum(axis=0) + np.log(np.diag(root)).sum()
        weight = np.exp(log_density - log_density.max(axis=1, keepdims=True))
        cumulative = weight.cumsum(axis=1)
        u = rng.random((known.shape[0], 1)) * cumulative[:, -1:]
        return np.asarray((cumulative < u).sum(axis=1))


@dataclass(frozen=True)
class Warp:
    """Residual = centre + scale sinh(tail w) / tail, for each of (n_column,) columns."""

    centre: Float64Array
    scale: Float64Array
    tail: Float64Array

    def unwarp(self, warped: Float64Array) -> Float64Array:
        """Return residuals (n, n_column) of warped ones."""
        return self.centre + self.scale * np.sinh(self.tail * warped) / self.tail

    def warp(self, residual: Float64Array) -> Float64Array:
        """Return warped residuals (n, n_column)."""
        return np.arcsinh(self.tail * (residual - self.centre) / self.scale) / self.tail
