"""Continuum normalisation, batched over stars; methods are chosen by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import ArrayLike, NDArray

from maury.errors import check_known
from maury.io.arrays import BoolArray, Float64Array, FloatArray, on_finite_rows
from maury.spectra.pixels import fill_bad_pixels, good_pixels

# 64 stars of a thousand pixels, with their scratch arrays, stay in the second-level cache.
_BLOCK = 64
# Scatter below 1e-7 of the flux is rounding: it must not make pixels of a perfect fit outliers.
_ROUNDING = 1e-14


def chebyshev_continuum(
    flux: ArrayLike,
    ivar: ArrayLike,
    *,
    degree: int = 4,
    low: float = 1.25,
    high: float = 3.0,
    iterations: int = 10,
) -> Float64Array:
    """Continuum by Chebyshev polynomials, fitted to what lies near the upper envelope.

    Least squares weighted by `ivar`. After each fit, pixels more than `low` standard deviations
    (weighted likewise) of the kept residuals below the curve, or `high` above it, are dropped for
    good; the last fit is returned. A row stops when no pixel is dropped any more, or when dropping
    would leave fewer than three pixels per coefficient.

    The normal equations of all stars come from one matrix product, since T_i T_j =
    (T_{i+j} + T_|i-j|) / 2 needs only the first 2 `degree` + 1 polynomials.

    Parameters
    ----------
    flux, ivar : (n_star, n_pixel)
    degree : int
        Degree of the polynomial in pixel number.
    low, high : float
        Clipping limits in standard deviations; inf switches one off.
    iterations : int
        Most clipping rounds.

    Returns
    -------
    continuum : (n_star, n_pixel) float64; NaN in rows with too few good pixels.
    """
    values, weight = np.asarray(flux), np.asarray(ivar)
    pixel = np.linspace(-1.0, 1.0, values.shape[1])
    basis = np.asarray(chebyshev.chebvander(pixel, 2 * degree), dtype=np.float64)
    out = np.empty(values.shape)
    for start in range(0, values.shape[0], _BLOCK):
        rows = slice(start, start + _BLOCK)
        good = good_pixels(values[rows], weight[rows])
        out[rows] = _clipped_fits(
            np.where(good, values[rows], 0.0).astype(np.float64, copy=False),
            np.where(good, weight[rows], 0.0).astype(np.float64, copy=False),
            good,
            basis=basis,
            limits=(low, high),
            iterations=iterations,
        )
    return out


def _clipped_fits(
    flux: Float64Array,
    weight: Float64Array,
    keep: BoolArray,
    *,
    basis: Float64Array,
    limits: tuple[float, float],
    iterations: int,
) -> Float64Array:
    n_coef = (basis.shape[1] + 1) // 2
    least = 3 * n_coef
    # Products along rows run through memory in order.
    curves = np.ascontiguousarray(basis[:, :n_coef].T)
    coefficients = np.full((flux.shape[0], n_coef), np.nan)
    alive = np.flatnonzero(_count(keep) >= least)
    flux, keep, count = flux[alive], keep[alive], _count(keep)[alive]
    # Of mean 1, so that sums do not depend on the unit of the flux.
    weight = weight[alive] / weight[alive].mean(axis=1, keepdims=True)
    scratch = np.empty_like(flux)
    for step in range(iterations + 1):
        scratch = scratch[: alive.size]
        coefficients[alive], sigma = _solve(weight, flux, basis=basis, scratch=scratch)
        if step == iterations or alive.size == 0:
            break
        residual = np.matmul(coefficients[alive], curves, out=scratch)
        np.subtract(flux, residual, out=residual)
        kept = residual > -limits[0] * sigma
        kept &= residual < limits[1] * sigma
        kept &= keep
        left = _count(kept)
        # Most rows are done after a few rounds; only the others go on.
        going = (left < count) & (left >= least)
        if not going.all():
            alive, flux, weight = alive[going], flux[going], weight[going]
            kept, left = kept[going], left[going]
        keep, count = kept, left
        weight *= keep
    continuum: Float64Array = on_finite_rows(lambda known: known @ curves, coefficients)
    return continuum


def _count(mask: BoolArray) -> NDArray[np.integer[Any]]:
    # Summing bytes takes half the time of count_nonzero along an axis.
    return np.asarray(mask.view(np.uint8).sum(axis=1, dtype=np.uint32)).astype(np.intp)


def _solve(
    weight: Float64Array, flux: Float64Array, *, basis: Float64Array, scratch: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Coefficients (n_star, n_coef) and weighted standard deviation (n_star, 1) of the fits."""
    n_coef = (basis.shape[1] + 1) // 2
    product = np.multiply(weight, flux, out=scratch)
    moments, right = weight @ basis, product @ basis[:, :n_coef]
    order = np.arange(n_coef)
    total, gap = order[:, None] + order, np.abs(order[:, None] - order)
    normal = 0.5 * (moments[:, total] + moments[:, gap])
    # Pixels crowded into a corner make the matrix singular; this touches the 13th digit only.
    ridge = 1e-13 * moments[:, :1, None] * np.eye(n_coef)
    solution = np.asarray(np.linalg.solve(normal + ridge, right[:, :, None])[:, :, 0], np.float64)
    # At the minimum sum w r^2 = sum w f^2 - c.b, which spares another pass over the residuals.
    square = np.einsum("ij,ij->i", product, flux)
    left = square - np.einsum("ij,ij->i", solution, right)
    sigma = np.sqrt(np.maximum(left, _ROUNDING * square) / moments[:, 0])
    return solution, sigma[:, None]


def running_quantile_continuum(
    flux: ArrayLike,
    ivar: ArrayLike,
    *,
    quantile: float = 0.9,
    window: int = 101,
) -> Float64Array:
    """Continuum by a quantile of the flux in a moving window, linear between nodes.

    The nodes stand a quarter of a window apart; windows at the ends are shifted inwards, and bad
    pixels are interpolated over first.

    Parameters
    ----------
    flux, ivar : (n_star, n_pixel)
    quantile : float
    window : int
        Pixels; at most the whole spectrum is used.

    Returns
    -------
    continuum : (n_star, n_pixel) float64; NaN in rows without a good pixel.
    """
    filled = fill_bad_pixels(flux, ivar, empty=np.nan)
    n_star, n_pixel = filled.shape
    window = min(window, n_pixel)
    n_node = max(2, int(np.ceil(4 * (n_pixel - window) / window)) + 1)
    start = np.unique(np.round(np.linspace(0, n_pixel - window, n_node)).astype(np.intp))
    node = start + 0.5 * (window - 1)
    out = np.empty((n_star, n_pixel))
    # Hat functions of the nodes, so that interpolation is one matrix product.
    hats = np.stack([np.interp(np.arange(n_pixel), node, unit) for unit in np.eye(node.size)])
    for first in range(0, n_star, _BLOCK):
        rows = slice(first, first + _BLOCK)
        parts = np.lib.stride_tricks.sliding_window_view(filled[rows], window, axis=1)[:, start]
        levels = np.quantile(parts, quantile, axis=-1)
        out[rows] = on_finite_rows(lambda known: known @ hats, levels)
    return out


def unit_continuum(flux: ArrayLike, ivar: ArrayLike) -> Float64Array:
    """Continuum of spectra that are normalised already: one, whatever the flux."""
    return np.ones(np.shape(flux))


ContinuumMethod = Callable[..., Float64Array]

CONTINUUM_METHODS: Mapping[str, ContinuumMethod] = MappingProxyType(
    {
        "chebyshev": chebyshev_continuum,
        "running_quantile": running_quantile_continuum,
        "none": unit_continuum,
    }
)
"""Continuum by name: each takes ``(flux, ivar, **options)`` and returns (n_star, n_pixel)."""


def normalise_continuum(
    flux: ArrayLike, ivar: ArrayLike, method: str = "chebyshev", **options: Any
) -> tuple[FloatArray, FloatArray]:
    """Divide spectra by their continuum, and scale the inverse variance by its square.

    Parameters
    ----------
    flux, ivar : (n_star, n_pixel)
    method : str
        A name in `CONTINUUM_METHODS`.
    **options
        Keywords of that method.

    Returns
    -------
    flux, ivar : (n_star, n_pixel), the dtype of `flux`; both zero where the continuum is not
        positive and finite. A row that could not be fitted has ivar = 0 throughout.

    Raises
    ------
    UnknownName
        If the method is not known.
    """
    check_known("continuum method", method, CONTINUUM_METHODS)
    values, weight = np.asarray(flux), np.asarray(ivar)
    continuum = CONTINUUM_METHODS[method](values, weight, **options)
    usable = np.isfinite(continuum) & (continuum > 0) & good_pixels(values, weight)
    level = np.where(usable, continuum, 1.0)
    scaled = weight * level * level
    dtype = values.dtype if values.dtype == np.float32 else np.dtype(np.float64)
    # Fluxes in physical units are tiny, and their ivar times a huge continuum overflows.
    usable &= scaled < np.finfo(dtype).max
    normal = np.where(usable, values / level, 0.0).astype(dtype)
    return normal, np.where(usable, scaled, 0.0).astype(dtype)
