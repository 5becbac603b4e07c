"""What is known of stars once their labels are predicted, and how it scores: the containers.

`maury.coverage` makes scores of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maury.errors import LengthMismatch

Float64Array = NDArray[np.float64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True)
class TwoViews:
    """Labels of the same stars from the spectrum alone and from the observables alone.

    Attributes
    ----------
    spectrum, photometry : (n_star, n_label) float
        Labels in their units; a row with NaN is not compared.
    spectrum_covariance, photometry_covariance : (n_star, n_label, n_label) float
        Their covariances.
    """

    spectrum: ArrayLike
    spectrum_covariance: ArrayLike
    photometry: ArrayLike
    photometry_covariance: ArrayLike


@dataclass(frozen=True)
class Evidence:
    """What is known of some stars once their labels are predicted.

    Attributes
    ----------
    flux, ivar : (n_star, n_pixel) float
        Prepared spectra; ivar 0 marks a bad pixel, whose flux is finite all the same.
    snr : (n_star,) float
        S/N per pixel; NaN where unknown.
    labels : (n_star, n_label) float
        Predicted labels, of training stars as well; NaN where missing.
    reconstruction : (n_star, n_pixel) float
        The spectrum that these labels should have.
    features : (n_star, n_feature) float, optional
        Where spectra are compared: the network's embedding. By default the flux.
    views : TwoViews, optional
        Labels from parts of the inputs.

    Raises
    ------
    LengthMismatch
        If the arrays do not describe the same stars and pixels.
    """

    flux: ArrayLike
    ivar: ArrayLike
    snr: ArrayLike
    labels: ArrayLike
    reconstruction: ArrayLike
    features: ArrayLike | None = None
    views: TwoViews | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.flux)
        n_label = (np.shape(self.labels) or (0,))[-1]
        expected: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "ivar": (np.shape(self.ivar), shape),
            "reconstruction": (np.shape(self.reconstruction), shape),
            "snr": (np.shape(self.snr), shape[:1]),
            "labels": (np.shape(self.labels), (*shape[:1], n_label)),
        }
        if self.features is not None:
            expected["features"] = (np.shape(self.features)[:1], shape[:1])
        if self.views is not None:
            for item in fields(self.views):
                size = (n_label,) * (2 if item.name.endswith("covariance") else 1)
                expected[item.name] = (np.shape(getattr(self.views, item.name)), shape[:1] + size)
        for name, (got, wanted) in expected.items():
            if got != wanted or len(shape) != 2:
                raise LengthMismatch(
                    f"{name} has shape {got}, expected {wanted} to go with flux of shape {shape}"
                )

    def __len__(self) -> int:
        return int(np.shape(self.flux)[0])

    @property
    def compared(self) -> Float64Array:
        """Features, or the flux in their place, (n_star, n_feature)."""
        chosen = self.flux if self.features is None else self.features
        return np.asarray(chosen, dtype=np.float64)

    def residual(self) -> tuple[Float64Array, Float64Array, BoolArray]:
        """Flux less reconstruction, variance of the noise, and usable pixels."""
        flux, ivar, model = (
            np.asarray(x, dtype=np.float64) for x in (self.flux, self.ivar, self.reconstruction)
        )
        residual = flux - model
        usable = (ivar > 0) & np.isfinite(ivar) & np.isfinite(residual)
        return residual, 1.0 / np.where(usable, ivar, 1.0), usable

    def complete(self) -> BoolArray:
        """Stars (n_star,) with a usable spectrum, all labels and all features."""
        labels = np.asarray(self.labels, dtype=np.float64)
        known = np.isfinite(labels).all(axis=1) & np.isfinite(self.compared).all(axis=1)
        return np.asarray(known & self.residual()[2].any(axis=1))

    def rows(self, chosen: NDArray[Any]) -> Evidence:
        """Return the evidence of some stars, by mask or row numbers."""
        views = None if self.views is None else TwoViews(**_picked(self.views, chosen))
        return Evidence(**_picked(self, chosen), views=views)


def _picked(container: TwoViews | Evidence, chosen: NDArray[Any]) -> dict[str, Any]:
    given = {item.name: getattr(container, item.name) for item in fields(container)}
    return {
        name: value if value is None else np.asarray(value)[chosen]
        for name, value in given.items()
        if name != "views"
    }


@dataclass(frozen=True)
class CoverageScores:
    """Scores of some stars, each (n_star,) float64, larger is worse; NaN where not measurable.

    Attributes
    ----------
    label_distance, feature_distance : array
        Distance to the tenth nearest training star, in scaled labels and in whitened features.
    chi2_reduced : array
        Chi-square per pixel of the reconstruction: noise and model error, both learnt.
    worst_wavelength_aa : array
        Where the reconstruction is worst.
    rv_shift_kms : array
        Shift of the spectrum against its reconstruction, positive away from the observer.
    emission, paschen : array
        Excess in the Ca II cores, and extra absorption in Paschen lines, in robust standard
        deviations of the training stars.
    sb2 : array
        Drop in squared residual by a second set of lines, over what is left.
    continuum : array
        Squared Mahalanobis distance of the smooth part of the residual.
    disagreement : array
        -2 ln of odds that spectrum and observables are of one star, up to a constant.
    snr, teff : array
        S/N per pixel and predicted Teff (K), which `CoverageModel.flags` needs.
    """

    label_distance: Float64Array
    feature_distance: Float64Array
    chi2_reduced: Float64Array
    worst_wavelength_aa: Float64Array
    rv_shift_kms: Float64Array
    emission: Float64Array
    paschen: Float64Array
    sb2: Float64Array
    continuum: Float64Array
    disagreement: Float64Array
    snr: Float64Array
    teff: Float64Array
