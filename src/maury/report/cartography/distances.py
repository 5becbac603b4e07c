"""Distances from parallaxes, with their whole uncertainty.

The prior is that of an exponentially decreasing space density, r^2 exp(-r / L) (Bailer-Jones 2015,
PASP 127, 994, equation 17). Distances are sampled, so that their errors reach everything that is
made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.io.arrays import Float64Array

ZERO_POINT_MAS: Mapping[str, float] = MappingProxyType({"none": 0.0, "DR2": -0.029, "EDR3": -0.017})
"""Parallax of quasars, which is taken off: none (of simulated parallaxes); Gaia DR2, Lindegren et
al. (2018, A&A 616, A2); Gaia EDR3 and DR3, Lindegren et al. (2021, A&A 649, A4)."""


LENGTH_KPC = 1.35
"""Length scale of the prior: Astraatmadja & Bailer-Jones (2016, ApJ 833, 119), all-sky."""


_GRID, _ROWS = 240, 4096
"""Steps of an integral over distance, some 24 a sigma: quantiles agree with adaptive quadrature to
3e-3 of the probability (`test_cartography`); and stars integrated at once, which bounds the
memory."""


_WITHIN_SIGMA = 5.0
"""Half-width of the integral in sigma: 6e-7 of a normal distribution lies outside."""


_NEAREST_LENGTHS, _PRIOR_LENGTHS = 1e-3, 40.0
"""Distances that the prior allows, in its lengths: 2e-10 and 4e-15 of it lie outside."""


def sample_distances(
    parallax_mas: ArrayLike,
    error_mas: ArrayLike,
    *,
    rng: np.random.Generator,
    zero_point_mas: float = 0.0,
    length_kpc: float = LENGTH_KPC,
    n_sample: int = 16,
) -> Float64Array:
    """Draw distances from their posterior.

    Parameters
    ----------
    parallax_mas, error_mas : (n_star,) float
        A star without one of them gets NaN; negative parallaxes are used as they are.
    rng : numpy Generator
    zero_point_mas : float
        Taken off the parallaxes, see `ZERO_POINT_MAS`.
    length_kpc : float
        L of the prior r^2 exp(-r / L).
    n_sample : int

    Returns
    -------
    (n_sample, n_star) float64
        kpc.

    Raises
    ------
    LengthMismatch
        If the shapes differ.
    """
    parallax = np.asarray(parallax_mas, np.float64) - zero_point_mas
    # Inverse transform: exact for any shape of the posterior, without rejected draws.
    levels = rng.random((n_sample, parallax.size))
    return at_levels(parallax, np.asarray(error_mas, np.float64), levels, length_kpc)


def at_levels(
    parallax: Float64Array, error: Float64Array, levels: Float64Array, length_kpc: float
) -> Float64Array:
    """Distances (k, n) at which the posterior's distribution function has levels (k, n)."""
    if parallax.shape != error.shape or parallax.ndim != 1:
        raise LengthMismatch(f"parallaxes and errors of {parallax.shape} and {error.shape} stars")
    out = np.full(levels.shape, np.nan)
    known = np.flatnonzero(np.isfinite(parallax) & (error > 0) & np.isfinite(error))
    for start in range(0, known.size, _ROWS):
        rows = known[start : start + _ROWS]
        out[:, rows] = _inverse(parallax[rows], error[rows], levels[:, rows], length_kpc)
    return out


def _inverse(
    parallax: Float64Array, error: Float64Array, u: Float64Array, length_kpc: float
) -> Float64Array:
    """Distances at which the posterior's distribution function is `u` (n_sample, n)."""

    def log_density(log_r: Float64Array) -> Float64Array:
        # Per step in log r, hence the third power.
        away = (np.exp(-log_r) - parallax[:, None]) / error[:, None]
        return np.asarray(3.0 * log_r - np.exp(log_r) / length_kpc - 0.5 * away**2)

    first, last = _support(_coarse(parallax, error, length_kpc), log_density)
    log_r = first[:, None] + (last - first)[:, None] * np.linspace(0.0, 1.0, _GRID)
    fine = log_density(log_r)
    density = np.exp(fine - fine.max(axis=1, keepdims=True))
    cumulative = np.zeros_like(density)
    cumulative[:, 1:] = np.cumsum(0.5 * (density[:, 1:] + density[:, :-1]), axis=1)
    cumulative /= cumulative[:, -1:]
    row = np.arange(len(log_r))
    out = np.empty_like(u)
    for k, level in enumerate(u):
        high = np.clip((cumulative < level[:, None]).sum(axis=1), 1, _GRID - 1)
        below, above = cumulative[row, high - 1], cumulative[row, high]
        part = (level - below) / np.maximum(above - below, 1e-300)
        out[k] = np.exp(log_r[row, high - 1] + part * (log_r[row, high] - log_r[row, high - 1]))
    return out


def _coarse(parallax: Float64Array, error: Float64Array, length_kpc: float) -> Float64Array:
    """Logarithms of distances (n, k), in order, that miss no maximum of the posterior.

    Evenly over all distances that the prior allows, and closer about the inverse parallax, where
    a precise one leaves a maximum narrower than the even steps.
    """
    # A maximum solves r^3 = 3 L r^2 - (L parallax / error^2) r + L / error^2, so that it is no
    # farther than twice the largest of the roots of the single terms (Lagrange's bound).
    pushed = np.sqrt(length_kpc * np.maximum(-parallax, 0.0)) / error
    farthest = _PRIOR_LENGTHS * length_kpc + 2.0 * (pushed + np.cbrt(length_kpc / error**2))
    # Beyond the last point that counts must lie another one as near, or its cell would be wide.
    reach = 1.5 * _WITHIN_SIGMA
    within = parallax[:, None] + error[:, None] * np.linspace(-reach, reach, _GRID)
    nearest = np.minimum(_NEAREST_LENGTHS * length_kpc, 1.0 / np.maximum(within[:, -1], 1e-300))
    step = np.log(farthest / nearest)[:, None] * np.linspace(0.0, 1.0, _GRID)
    likely = np.clip(within, 1.0 / farthest[:, None], 1.0 / nearest[:, None])
    return np.sort(np.hstack([np.log(nearest)[:, None] + step, -np.log(likely)]), axis=1)


def _support(
    log_r: Float64Array, log_density: Callable[[Float64Array], Float64Array]
) -> tuple[Float64Array, Float64Array]:
    """First and last (n,) of ordered distances beyond which the density is negligible."""
    value = log_density(log_r)
    counts = value > value.max(axis=1, keepdims=True) - 0.5 * _WITHIN_SIGMA**2
    row, last = np.arange(len(value)), value.shape[1] - 1
    first = np.maximum(counts.argmax(axis=1) - 1, 0)
    end = np.minimum(last - counts[:, ::-1].argmax(axis=1) + 1, last)
    return log_r[row, first], log_r[row, end]
