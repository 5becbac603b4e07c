"""What is known of stars once their labels are predicted, and how it scores: the containers.

`maury.prediction.coverage` makes scores of evidence.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, IndexArray, Int64Array
from maury.labels.statistics import robust_scale

_ROBUST_CLIP = 4.0
"""In sigma: beyond, a value is an outlier that may not widen the covariance."""
_BLOCK = 256
"""Points whose distances are in memory together, so that they stay in the processor's cache."""
_MOST_FEATURES = 2048
"""Of 8575 pixels all eigenvectors take minutes, of which two dozen are asked for. Chosen."""
_FAR = 1e30
"""Squared distance of references that fill up a group: beyond any, as points are clipped to 1e6,
and finite, as BLAS multiplies lanes that it does not use, where infinity times 0 is invalid."""


def robust_whitening(values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Median (k,), and inverse root (k, k) of the covariance, of values (n, k) clipped at 4 sigma.

    (values - median) @ root has unit covariance but for the outliers. Rows with NaN are left out.
    """
    centre, scale = robust_scale(values)
    known = values[np.isfinite(values).all(axis=1)]
    # Clipped and not left out: a row with one wild value still tells of the others.
    clipped = np.clip((known - centre) / scale, -_ROBUST_CLIP, _ROBUST_CLIP)
    strength, axes = np.linalg.eigh(np.cov(clipped, rowvar=False))
    # An axis along which nothing varies would otherwise turn rounding into a large distance.
    root = axes / np.sqrt(np.maximum(strength, 1e-6 * strength[-1]))
    return centre, root / scale[:, None]


def whitening(features: Float64Array, n_dimension: int) -> tuple[Float64Array, Float64Array]:
    """Mean (k,) of features (n, k), and projection (k, at most `n_dimension`).

    On the strongest principal components, each scaled to unit variance.
    """
    centre = features.mean(axis=0)
    if few_of_many(features.shape, n_dimension):
        strength, axes = leading_axes((features - centre) / np.sqrt(len(features) - 1), n_dimension)
    else:
        strength, axes = np.linalg.eigh(np.cov(features, rowvar=False).reshape(centre.size, -1))
    chosen = np.argsort(strength)[::-1][:n_dimension]
    # Components of no variance, as of pixels that are constant, have no unit to be scaled to.
    chosen = chosen[strength[chosen] > 1e-9 * max(float(strength.max()), 1e-30)]
    return centre, axes[:, chosen] / np.sqrt(strength[chosen])


def few_of_many(shape: tuple[int, ...], count: int) -> bool:
    """Whether `leading_axes` is worth while for values of a shape (n, k)."""
    return shape[1] > _MOST_FEATURES and min(shape) > count


def leading_axes(values: AnyArray, count: int) -> tuple[Float64Array, Float64Array]:
    """Strongest eigenvalues (count,) and eigenvectors (k, count) of values.T @ values, (n, k).

    The few that are asked for, without a matrix of all pixels by all pixels; the strongest last.
    """
    from scipy.sparse.linalg import svds

    # A start of its own would be another one each time.
    _, size, vectors = svds(values, count, v0=np.ones(min(values.shape)))
    order = np.argsort(size)
    return np.asarray(size[order], np.float64) ** 2, np.asarray(vectors[order].T, np.float64)


def nearest(
    points: Float64Array,
    reference: Float32Array,
    rank: int,
    *,
    own: tuple[IndexArray, IndexArray] | None = None,
) -> Float64Array:
    """Distance of points to the `rank`-th nearest of a reference.

    Over the root of k, so that it is of order 1 in any number of whitened dimensions.

    Parameters
    ----------
    points : (n, k) float64
    reference : (m, k) float32
    rank : int
    own : (rows of points, rows of the reference), optional
        Pairs, in the order of the points, that are of one star and do not count.

    Returns
    -------
    (n,) float64
        NaN for a point with NaN, and where fewer than `rank` of the reference count.
    """
    n_dimension = max(reference.shape[1], 1)
    rank = min(rank, len(reference))
    size = _group_size(rank, len(reference))
    grouped = _grouped(reference, size)
    known = np.asarray(np.isfinite(points).all(axis=1))
    safe = np.clip(np.where(known[:, None], points, 0.0), -1e6, 1e6).astype(np.float32)
    out = np.empty(len(points))
    for start in range(0, len(points), _BLOCK):
        part = safe[start : start + _BLOCK]
        # |p - r|^2 = |p|^2 - 2 p r + |r|^2: one product of matrices in place of all differences.
        apart = np.hstack([np.float32(-2.0) * part, np.ones((len(part), 1), np.float32)])
        product = apart @ grouped
        if own is not None:
            first, last = np.searchsorted(own[0], [start, start + _BLOCK])
            product[own[0][first:last] - start, own[1][first:last]] = _FAR
        smallest = _ranked(product.reshape(len(part), size, -1), rank)
        out[start : start + _BLOCK] = smallest + np.square(part).sum(axis=1)
    # Rounding of the three terms may leave a squared distance just below 0.
    distance = np.sqrt(np.maximum(out, 0.0) / n_dimension)
    return np.asarray(np.where(known & (out < 0.5 * _FAR), distance, np.nan))


def _group_size(rank: int, n_reference: int) -> int:
    """Members of a group for which `_ranked` looks at the fewest numbers."""
    return max(1, round(float(np.sqrt(n_reference / rank))))


def _grouped(reference: Float32Array, size: int) -> Float32Array:
    """Columns (k + 1, m) whose product with (-2 point, 1) is the squared distance less |point|^2.

    Filled up to whole groups of `size` with references so far off that none of them is near.
    """
    missing = -len(reference) % size
    square = np.pad(np.square(reference).sum(axis=1), (0, missing), constant_values=_FAR)
    return np.vstack([np.pad(reference, ((0, missing), (0, 0))).T, square])


def _ranked(values: Float32Array, rank: int) -> Float32Array:
    """Return the `rank`-th smallest (n,) of values (n, member, group).

    It lies in one of the `rank` groups with the smallest minima, as each of these has a value
    that is no larger than any value of another group.
    """
    if rank < values.shape[2]:
        least = values.min(axis=1)
        chosen = np.argpartition(least, rank - 1, axis=1)[:, None, :rank]
        values = np.take_along_axis(values, chosen, axis=2)
    flat = values.reshape(len(values), -1)
    return np.asarray(np.partition(flat, rank - 1, axis=1)[:, rank - 1])


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
    star : (n_star,) int64, optional
        A number for each star, equal for all its spectra; 0 where unknown. By default all are.
    observables : (n_star, n_observable) float, optional
        What was measured besides the spectrum; NaN where missing.

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
    star: ArrayLike | None = None
    observables: ArrayLike | None = None

    def __post_init__(self) -> None:
        shape = np.shape(self.flux)
        n_label = (np.shape(self.labels) or (0,))[-1]
        expected: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
            "ivar": (np.shape(self.ivar), shape),
            "reconstruction": (np.shape(self.reconstruction), shape),
            "snr": (np.shape(self.snr), shape[:1]),
            "labels": (np.shape(self.labels), (*shape[:1], n_label)),
        }
        if self.star is not None:
            expected["star"] = (np.shape(self.star), shape[:1])
        if self.observables is not None:
            expected["observables"] = (np.shape(self.observables)[:1], shape[:1])
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
    def stars(self) -> Int64Array:
        """Number of each star (n_star,), 0 where unknown."""
        return np.asarray(np.zeros(len(self)) if self.star is None else self.star, dtype=np.int64)

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

    def rows(self, chosen: AnyArray) -> Evidence:
        """Return the evidence of some stars, by mask or row numbers."""
        views = None if self.views is None else TwoViews(**_picked(self.views, chosen))
        return Evidence(**_picked(self, chosen), views=views)


def _picked(container: TwoViews | Evidence, chosen: AnyArray) -> dict[str, Any]:
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
        Excess in the Ca II cores, and extra absorption in Paschen lines: drop in chi-square, or, of
        models of earlier versions, in robust standard deviations of the training stars.
    sb2 : array
        Drop in squared residual by a second set of lines, over what is left.
    continuum : array
        Smooth part of the residual: drop in chi-square, or, of models of earlier versions, squared
        Mahalanobis distance.
    rotation, zero_level, titanium_oxide, fringes : array
        Drop in chi-square by each of these causes (`maury.prediction.causes`).
    second_lines, shifted_lines : array
        Drop in chi-square by a second set of lines, and by the shift of stars that are shifted.
    broadened : array
        As `sb2`, by rotation instead of a second set of lines, for stars whose `sb2` is high.
    companion : array
        Logarithm of the odds of two stars (`maury.prediction.companion_test`).
    observables : array
        Squared distance from the observables of training stars (`ObservableSpace`).
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
    rotation: Float64Array
    zero_level: Float64Array
    titanium_oxide: Float64Array
    fringes: Float64Array
    second_lines: Float64Array
    shifted_lines: Float64Array
    broadened: Float64Array
    companion: Float64Array
    observables: Float64Array


def same_star(first: Int64Array, second: Int64Array) -> tuple[IndexArray, IndexArray]:
    """Pairs (row of `first`, row of `second`) of equal numbers but 0, in the order of `first`."""
    order = np.argsort(second, kind="stable")
    low = np.searchsorted(second[order], first, side="left")
    high = np.searchsorted(second[order], first, side="right")
    count = np.where(first != 0, high - low, 0)
    row = np.repeat(np.arange(first.size), count)
    # Number of each pair among those of its row, counted from 0.
    turn = np.arange(row.size) - np.repeat(np.cumsum(count) - count, count)
    return row, order[low[row] + turn]
