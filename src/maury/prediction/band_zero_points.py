"""Zero points of photometric bands, against magnitudes that spectra alone predict.

From the training stars a model knows the absolute magnitude in each band as a quadratic of the
labels that their spectra alone give, and of the extinction. What the bands of a star have in common
is its distance; what is left of each, and alike in all stars of a survey, is its zero point.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray, Float64Array
from maury.labels.statistics import MAD_TO_SIGMA

__all__ = ["BandRelations"]

_LEAST_STARS = 30
"""Stars of which a quadratic in four quantities, 15 terms, is fitted at least: two a term."""
_LEAST_BANDS = 3
"""Bands of a star that tell its distance from the zero points: two cannot be told apart."""
_RIDGE = 1e-3
"""Relative; holds terms without spread down and touches no other."""
_MEDIAN_ERROR = 1.2533
"""Of a median of normal values, over that of their mean: the root of half pi."""


@dataclass(frozen=True, eq=False)
class BandRelations:
    """Absolute magnitudes of the training stars by what their spectra say.

    Attributes
    ----------
    centre, scale : (4,) float64
        Of Teff, log g, [M/H] and A_V.
    coefficients : (15, n_band) float64
    """

    centre: Float64Array
    scale: Float64Array
    coefficients: Float64Array

    @classmethod
    def fit(cls, labels: Float64Array, a_v: Float64Array, magnitudes: Float64Array) -> Self | None:
        """Fit to training stars; None where they are too few.

        Parameters
        ----------
        labels : (n_star, 3) float64
            Teff, log g and [M/H], predicted from the spectra alone; NaN where missing.
        a_v : (n_star,) float64
        magnitudes : (n_star, n_band) float64
            Absolute, NaN where missing.
        """
        known = np.column_stack([labels, a_v])
        whole = np.isfinite(known).all(axis=1) & np.isfinite(magnitudes).all(axis=1)
        if whole.sum() < _LEAST_STARS or magnitudes.shape[1] < _LEAST_BANDS:
            return None
        centre, scale = known[whole].mean(axis=0), np.maximum(known[whole].std(axis=0), 1e-6)
        terms = _terms((known[whole] - centre) / scale)
        normal = terms.T @ terms + _RIDGE * len(terms) * np.eye(terms.shape[1])
        return cls(centre, scale, np.asarray(np.linalg.solve(normal, terms.T @ magnitudes[whole])))

    def zero_points(
        self, labels: Float64Array, a_v: Float64Array, magnitudes: Float64Array
    ) -> tuple[Float64Array, Float64Array]:
        """Median offset (n_band,) of each band from the others, and its error.

        Parameters are those of `fit`. Positive is fainter than expected. NaN where less than 30
        stars tell.
        """
        terms = _terms((np.column_stack([labels, a_v]) - self.centre) / self.scale)
        apart = magnitudes - terms @ self.coefficients
        count = np.isfinite(apart).sum(axis=1)
        apart = apart[count >= _LEAST_BANDS]
        n_star = np.isfinite(apart).sum(axis=0)
        if not (n_star >= _LEAST_STARS).any():
            unknown = np.full(magnitudes.shape[1], np.nan)
            return unknown, unknown
        # The median of its bands, not the mean: one band that is off shall not move all others.
        apart = apart - np.nanmedian(apart, axis=1)[:, None]
        safe = np.where(n_star >= _LEAST_STARS, apart, 0.0)
        middle = np.nanmedian(safe, axis=0)
        scatter = MAD_TO_SIGMA * np.nanmedian(np.abs(safe - middle), axis=0)
        known = n_star >= _LEAST_STARS
        error = _MEDIAN_ERROR * scatter / np.sqrt(np.maximum(n_star, 1))
        return np.where(known, middle, np.nan), np.where(known, error, np.nan)

    def to_arrays(self) -> dict[str, AnyArray]:
        """Plain arrays for the model directory."""
        names = ("centre", "scale", "coefficients")
        return {f"bands.{name}": getattr(self, name) for name in names}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> Self | None:
        """Read what `to_arrays` gave; None if there is nothing.

        Raises
        ------
        ModelFileError
            If only a part is there.
        """
        found = {k.removeprefix("bands."): v for k, v in arrays.items() if k.startswith("bands.")}
        if not found:
            return None
        try:
            return cls(**found)
        except TypeError as error:
            raise ModelFileError(f"the relations of the bands are damaged: {error}") from error


def _terms(scaled: Float64Array) -> Float64Array:
    first, second = np.triu_indices(scaled.shape[1])
    return np.column_stack([np.ones(len(scaled)), scaled, scaled[:, first] * scaled[:, second]])
