"""Chemical cartography: how labels change with the place of stars in the Galaxy.

Gradients are least-squares slopes on the *mean* place of each star. A star's true place scatters
about that mean (Berkson errors), which leaves a slope unbiased; on single samples, or on inverted
parallaxes, a slope would come out too flat.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import check_known
from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.report.cartography.places import Places
from maury.simulation.galaxy import R_SUN_KPC

# Inside, two bins about the Sun where the stars of nearby surveys are, outside.
R_EDGES_KPC = (3.0, 7.0, 8.0, 9.0, 13.0)
Z_EDGES_KPC = (0.0, 0.5, 1.0, 2.0)
"""Bins of R and abs(Z) in which labels are shown."""
# A slope in R with two other coefficients needs about ten stars for each.
LEAST_STARS = 30


ALPHA_LINE = (0.105, -0.12)
"""[alpha/M] at [M/H] = 0, and change per dex, of the line between two sequences."""


def high_alpha(m_h: ArrayLike, alpha_m: ArrayLike, *, shift: float = 0.0) -> BoolArray:
    """Whether stars are above the line [alpha/M] = 0.105 - 0.12 [M/H] + `shift`."""
    metals, alpha = np.asarray(m_h, np.float64), np.asarray(alpha_m, np.float64)
    return np.asarray(alpha > ALPHA_LINE[0] + shift + ALPHA_LINE[1] * metals)


@dataclass(frozen=True)
class Gradient:
    """Slope of a label along one coordinate, in one bin of the other.

    Attributes
    ----------
    along : {"R", "|Z|"}
    low_kpc, high_kpc : float
        Edges of the bin of the other coordinate.
    n : int
        Stars.
    slope : float
        Per kpc, the other coordinate being held fixed.
    error : float
        Root of the two squares below.
    sampling_error, distance_error : float
        Bootstrap over stars; scatter between samples of the distances.
    intercept : float
        Value at the Sun's radius and in the plane.
    systematic_error : float
        What the choice of stars and the labels themselves may do to the slope, if that is known.
    """

    along: str
    low_kpc: float
    high_kpc: float
    n: int
    slope: float
    error: float
    sampling_error: float
    distance_error: float
    intercept: float
    systematic_error: float = 0.0

    @property
    def total_error(self) -> float:
        """Root of the squares of all errors."""
        return float(np.hypot(self.error, self.systematic_error))


def gradients(
    value: ArrayLike,
    places: Places,
    *,
    along: str,
    edges_kpc: tuple[float, ...],
    rng: np.random.Generator,
    n_bootstrap: int = 200,
) -> list[Gradient]:
    """Slopes of a label along R in bins of abs(Z), or the other way round.

    Parameters
    ----------
    value : (n_star,) float
        Label of each star; NaN is left out.
    places : Places
    along : {"R", "|Z|"}
    edges_kpc : tuple of float
        Edges of the bins of the other coordinate.
    rng : numpy Generator
        Of the bootstrap.
    n_bootstrap : int

    Returns
    -------
    list of Gradient
        One per bin; NaN where fewer than 30 stars are.
    """
    check_known("coordinate", along, ("R", "|Z|"))
    label = np.asarray(value, np.float64)
    other = places.height_kpc if along == "R" else places.radius_kpc
    out = []
    for low, high in pairwise(edges_kpc):
        inside = np.isfinite(label) & (other >= low) & (other < high)
        # By mean place, as said above: bins of sampled places would mix the stars of neighbouring
        # bins.
        fit = _slope(label[inside], places.rows(inside), along, rng, n_bootstrap)
        out.append(Gradient(along, low, high, int(inside.sum()), *fit))
    return out


def _slope(
    label: Float64Array, places: Places, along: str, rng: np.random.Generator, n_bootstrap: int
) -> tuple[float, float, float, float, float]:
    """Slope, its error and the two parts of it, and the intercept."""
    if label.size < LEAST_STARS:
        return (np.nan,) * 5
    column = 1 if along == "R" else 2
    design = _design(places.radius_kpc, places.height_kpc)
    best = np.linalg.lstsq(design, label, rcond=None)[0]
    drawn = _bootstrap(design, label, rng, n_bootstrap)[:, column]
    samples = zip(places.radius_samples, places.height_samples, strict=True)
    by_sample = [np.linalg.lstsq(_design(*one), label, rcond=None)[0][column] for one in samples]
    sampling = float(np.std(drawn)) if n_bootstrap else 0.0
    distance = float(np.std(by_sample))
    return (
        float(best[column]),
        float(np.hypot(sampling, distance)),
        sampling,
        distance,
        float(best[0]),
    )


def _design(radius: Float64Array, height: Float64Array) -> Float64Array:
    # Both coordinates at once: survey lines of sight correlate them, and each would take the
    # other's gradient.
    return np.column_stack([np.ones(radius.size), radius - R_SUN_KPC, height])


def _bootstrap(
    design: Float64Array, label: Float64Array, rng: np.random.Generator, n: int
) -> Float64Array:
    """Coefficients (n, 3) of resampled stars, each of which counts Poisson(1) times."""
    products = (design[:, :, None] * design[:, None, :]).reshape(len(design), -1)
    moments = np.hstack([products, design * label[:, None]])
    out = np.empty((n, design.shape[1]))
    for k in range(n):
        # Poisson(1) counts stand for drawing with replacement (Hanley & MacGibbon 2006, CMPB 83,
        # 57), and turn each resample into one product with the moments.
        sums = rng.poisson(1.0, len(design)) @ moments
        size = design.shape[1]
        out[k] = np.linalg.lstsq(sums[: size**2].reshape(size, size), sums[size**2 :])[0]
    return out


def mean_map(
    across: ArrayLike,
    up: ArrayLike,
    value: ArrayLike,
    *,
    edges: tuple[ArrayLike, ArrayLike],
    least: int = 5,
) -> tuple[Float64Array, Int64Array]:
    """Mean of a label in the cells of a map, and how many stars each holds.

    Parameters
    ----------
    across, up, value : (n_star,) float
        Coordinates and label; stars without one of them are left out.
    edges : (edges across, edges up)
        n + 1 and m + 1 of them, increasing.
    least : int
        Cells with fewer stars are NaN.

    Returns
    -------
    mean : (n, m) float64
    count : (n, m) int64
    """
    x, y, z = (np.asarray(a, np.float64) for a in (across, up, value))
    known = np.isfinite(x) & np.isfinite(y) & np.isfinite(z)
    bins = [np.asarray(one, np.float64) for one in edges]
    count = np.histogram2d(x[known], y[known], bins=bins)[0]
    total = np.histogram2d(x[known], y[known], bins=bins, weights=z[known])[0]
    mean = np.where(count >= least, total / np.maximum(count, 1), np.nan)
    return mean, count.astype(np.int64)
