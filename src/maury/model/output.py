"""Predictions of a model, whatever kind of model it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np

from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    StrArray,
)
from maury.labels.flags import Flag
from maury.spectra.preparation import Inputs


@dataclass(frozen=True)
class Prediction:
    """Labels of some stars, in the unit of each label; NaN where there is no prediction.

    Attributes
    ----------
    mean, sigma : (n_star, n_label) float64
        Labels and their 1 sigma errors.
    covariance : (n_star, n_label, n_label) float64 or None
        Of the labels of each star; None if the networks predict none.
    features : (n_star, width) float32 or None
        What the last layer of the first network sees; None if it tells nothing of it.
    flags : (n_star,) int64 or None
        Bits of `maury.labels.flags.Flag` besides those of the preparation.
    chi2_reduced, worst_wavelength_aa : (n_star,) float64 or None
        Of the spectrum against its best fit, where a forward model was fitted.
    quantiles : (5, n_star, n_label) float64 or None
        Those of `maury.labels.columns.QUANTILES`, where errors are calibrated.
    own : (n_star, n_label) float64 or None
        Part of `sigma` that a spectrum does not have in common with others of its star.
    further : mapping of str to (n_star,) float64
        Columns of a method's own.
    """

    mean: Float64Array
    sigma: Float64Array
    covariance: Float64Array | None = None
    features: Float32Array | None = None
    flags: Int64Array | None = None
    chi2_reduced: Float64Array | None = None
    worst_wavelength_aa: Float64Array | None = None
    quantiles: Float64Array | None = None
    own: Float64Array | None = None
    further: Mapping[str, Float64Array] = field(default_factory=dict)

    def rows(self, chosen: AnyArray) -> Self:
        """Return mean, errors, covariance and quantiles of some stars, by mask or row numbers."""
        covariance = None if self.covariance is None else self.covariance[chosen]
        quantiles = None if self.quantiles is None else self.quantiles[:, chosen]
        return type(self)(self.mean[chosen], self.sigma[chosen], covariance, quantiles=quantiles)


@dataclass(frozen=True)
class Unseen:
    """Stars whose labels are known, predicted by what did not learn from them.

    Attributes
    ----------
    inputs : Inputs
        Prepared.
    prediction : Prediction
        Bare, as networks or a method give it.
    truth : (n_star, n_label) float64
        True labels, NaN where missing.
    star_id : (n_star,) str
        Star of each spectrum, empty where unknown.
    what : str
        Which stars these are, in words.
    """

    inputs: Inputs
    prediction: Prediction
    truth: Float64Array
    star_id: StrArray
    what: str


def has_spectrum(inputs: Inputs) -> BoolArray:
    """Return which stars (n_star,) have a spectrum that a network can take."""
    finite = np.asarray(np.isfinite(inputs.flux).all(axis=1), dtype=np.bool_)
    good = np.asarray((inputs.flags & Flag.NO_SPECTRUM.value) == 0, dtype=np.bool_)
    return finite & good
