"""A ridge regression from spectra to labels, to start fits from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Self

import numpy as np

from maury.io.arrays import Float32Array, Float64Array
from maury.methods.fitting.polynomials import bounded_terms
from maury.methods.storage import stored

__all__ = ["RidgeStart"]


# Relative to the number of spectra, against collinear products.
_RIDGE = 1e-4
# Scaled labels are kept within so many scatters: a start need not be far out.
_CLIP = 3.0


@dataclass(frozen=True, eq=False)
class RidgeStart:
    """Labels linear in the flux, then a quadratic polynomial of these; a `Regressor`.

    Attributes
    ----------
    label_names : tuple of str
    mean_flux : (n_pixel,) float32
    weights : (n_pixel, n_label) float32
    centre, scale : (n_label,) float64
        Mean and standard deviation of the labels.
    bend : (n_term, n_label) float64
        Scaled labels from products of the linear ones.
    scatter : (n_label,) float64
        Rms error of each label on the spectra that it was learnt from.
    """

    label_names: tuple[str, ...] = field(metadata=stored(None))
    mean_flux: Float32Array
    weights: Float32Array
    centre: Float64Array
    scale: Float64Array
    bend: Float64Array
    scatter: Float64Array

    @classmethod
    def learn(
        cls,
        label_names: tuple[str, ...],
        flux: Float32Array,
        labels: Float64Array,
        *,
        noise: float = 0.02,
    ) -> Self:
        """Learn from spectra (n_star, n_pixel) and finite labels (n_star, n_label).

        Parameters
        ----------
        noise : float
            1 sigma noise per pixel to be robust against, beyond what the spectra have.
        """
        mean, centre = flux.mean(axis=0), labels.mean(axis=0)
        spread = labels.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        apart = (flux - mean).astype(np.float64)
        scaled = (labels - centre) / spread
        # Of stars or pixels, the smaller system gives the same weights.
        if len(flux) <= flux.shape[1]:
            gram = apart @ apart.T
            gram[np.diag_indices(len(gram))] += len(flux) * noise**2
            weights = apart.T @ np.linalg.solve(gram, scaled)
        else:
            gram = apart.T @ apart
            gram[np.diag_indices(len(gram))] += len(flux) * noise**2
            weights = np.linalg.solve(gram, apart.T @ scaled)
        terms = bounded_terms(apart @ weights, _CLIP)
        normal = terms.T @ terms + _RIDGE * len(flux) * np.eye(terms.shape[1])
        bend = np.linalg.solve(normal, terms.T @ scaled)
        error = (terms @ bend - scaled) * spread
        return cls(
            tuple(label_names),
            mean,
            weights.astype(np.float32),
            centre,
            spread,
            bend,
            np.sqrt(np.mean(error**2, axis=0)),
        )

    def regress(self, flux: Float32Array, ivar: Float32Array) -> Float64Array:
        """Labels (n_star, n_label) of spectra (n_star, n_pixel)."""
        apart = np.where(ivar > 0, flux - self.mean_flux, np.float32(0))
        linear = (apart @ self.weights).astype(np.float64)
        return np.asarray(bounded_terms(linear, _CLIP) @ self.bend * self.scale + self.centre)
