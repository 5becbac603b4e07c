"""Chemical cartography: where stars are in the Galaxy, and how their labels change with place.

Distances come from parallaxes, with the zero point taken off and the prior of an exponentially
decreasing space density, r^2 exp(-r / L) (Bailer-Jones 2015, PASP 127, 994, equation 17). They
are sampled, so that their errors reach everything that is made of them.

Gradients are least-squares slopes on the *mean* place of each star. A star's true place scatters
about that mean (Berkson errors), which leaves a slope unbiased; on single samples, or on inverted
parallaxes, a slope would come out too flat.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch, MissingExtra, check_known
from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int64Array
from maury.simulation.galaxy import R_SUN_KPC, astropy_frame, cylindrical
from maury.simulation.galaxy import galactocentric as galactocentric_kpc

ZERO_POINT_MAS: Mapping[str, float] = MappingProxyType({"none": 0.0, "DR2": -0.029, "EDR3": -0.017})
"""Parallax of quasars, which is taken off: none (of simulated parallaxes); Gaia DR2, Lindegren et
al. (2018, A&A 616, A2); Gaia EDR3 and DR3, Lindegren et al. (2021, A&A 649, A4)."""
LENGTH_KPC = 1.35
"""Length scale of the prior: Astraatmadja & Bailer-Jones (2016, ApJ 833, 119), all-sky."""
# Inside, two bins about the Sun where the stars of nearby surveys are, outside.
R_EDGES_KPC = (3.0, 7.0, 8.0, 9.0, 13.0)
Z_EDGES_KPC = (0.0, 0.5, 1.0, 2.0)
"""Bins of R and abs(Z) in which labels are shown."""
# A slope in R with two other coefficients needs about ten stars for each.
LEAST_STARS = 30
_GRID, _ROWS = 240, 4096
"""Steps of an integral over distance, some 13 a sigma: quantiles agree with adaptive quadrature to
2e-3 (`test_cartography`); and stars integrated at once, which bounds the memory."""
_WITHIN_SIGMA = 5.0
"""Half-width of the integral in sigma: 6e-7 of a normal distribution lies outside."""
# Median and one sigma of a normal distribution.
_QUANTILES = (0.16, 0.5, 0.84)
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
    return _at_levels(parallax, np.asarray(error_mas, np.float64), levels, length_kpc)


def _at_levels(
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


@dataclass(frozen=True)
class Places:
    """Places of stars in the Galaxy, with samples of their uncertainty.

    Attributes
    ----------
    xyz_kpc : (n_star, 3) float64
        Mean Galactocentric place; the Sun is at x = -8.122 kpc.
    radius_kpc, height_kpc : (n_star,) float64
        Means of R and abs(Z).
    radius_samples, height_samples : (n_sample, n_star) float64
        R and abs(Z) of single samples.
    distance_kpc : (3, n_star) float64
        16, 50 and 84 % quantiles of the distance.
    zero_point_mas, length_kpc : float
        What was taken off the parallaxes, and the length of the prior.
    """

    xyz_kpc: Float64Array
    radius_kpc: Float64Array
    height_kpc: Float64Array
    radius_samples: Float64Array
    height_samples: Float64Array
    distance_kpc: Float64Array
    zero_point_mas: float
    length_kpc: float

    def __len__(self) -> int:
        return len(self.radius_kpc)

    def rows(self, chosen: AnyArray) -> Places:
        """Return the places of some stars, by mask or row numbers."""
        return Places(
            self.xyz_kpc[chosen],
            self.radius_kpc[chosen],
            self.height_kpc[chosen],
            self.radius_samples[:, chosen],
            self.height_samples[:, chosen],
            self.distance_kpc[:, chosen],
            self.zero_point_mas,
            self.length_kpc,
        )


def place_stars(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    parallax: tuple[ArrayLike, ArrayLike],
    *,
    rng: np.random.Generator,
    gaia: str = "DR2",
    length_kpc: float = LENGTH_KPC,
    n_sample: int = 16,
) -> Places:
    """Find where stars are, from position and parallax.

    Parameters
    ----------
    ra_deg, dec_deg : (n_star,) float
        ICRS.
    parallax : (parallax, error), each (n_star,) float
        In mas.
    rng : numpy Generator
    gaia : {"DR2", "EDR3", "none"}
        Whose zero point to take off, see `ZERO_POINT_MAS`.
    length_kpc : float
        Of the distance prior.
    n_sample : int

    Returns
    -------
    Places
        NaN for stars without parallax or error.

    Raises
    ------
    UnknownName
        If there is no such release.
    LengthMismatch
        If the shapes differ.
    """
    zero_point = ZERO_POINT_MAS[check_known("Gaia release", gaia, ZERO_POINT_MAS)]
    ra, dec = np.asarray(ra_deg, np.float64), np.asarray(dec_deg, np.float64)
    value, error = (np.asarray(one, np.float64) for one in parallax)
    levels = rng.random((n_sample + len(_QUANTILES), value.size))
    levels[n_sample:] = np.array(_QUANTILES)[:, None]
    distance = _at_levels(value - zero_point, error, levels, length_kpc)
    if ra.shape != distance.shape[1:] or dec.shape != ra.shape:
        raise LengthMismatch(
            f"{ra.size} and {dec.size} coordinates, {distance.shape[1]} parallaxes"
        )
    sampled = galactocentric_kpc(ra, dec, distance[:n_sample])
    radius, height = cylindrical(sampled)
    height = np.abs(height)
    return Places(
        xyz_kpc=sampled.mean(axis=0),
        radius_kpc=radius.mean(axis=0),
        height_kpc=height.mean(axis=0),
        radius_samples=radius,
        height_samples=height,
        distance_kpc=distance[n_sample:],
        zero_point_mas=zero_point,
        length_kpc=length_kpc,
    )


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


def velocities(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    distance_kpc: ArrayLike,
    *,
    pm_masyr: tuple[ArrayLike, ArrayLike],
    rv_kms: ArrayLike,
) -> Float64Array:
    """Galactocentric cylindrical velocities (v_R, v_phi, v_Z) in km/s, shape (n_star, 3).

    Parameters
    ----------
    ra_deg, dec_deg, distance_kpc : (n_star,) float
    pm_masyr : (pm_ra cos dec, pm_dec), each (n_star,) float
        In mas/yr.
    rv_kms : (n_star,) float
        Heliocentric.

    Returns
    -------
    (n_star, 3) float64
        v_phi is positive in the direction of the rotation; NaN where an input is missing.
    """
    from astropy import units

    there = _galactocentric(ra_deg, dec_deg, distance_kpc, pm_masyr, rv_kms)
    xyz = there.cartesian.xyz.to_value(units.kpc)
    v_x, v_y, v_z = there.velocity.d_xyz.to_value(units.km / units.s)
    radius = np.hypot(xyz[0], xyz[1])
    v_r = (xyz[0] * v_x + xyz[1] * v_y) / radius
    # The frame is right-handed, and the Galaxy turns clockwise in it.
    v_phi = (xyz[1] * v_x - xyz[0] * v_y) / radius
    return np.stack([v_r, v_phi, v_z], axis=1)


def _galactocentric(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    distance_kpc: ArrayLike,
    pm_masyr: tuple[ArrayLike, ArrayLike],
    rv_kms: ArrayLike,
) -> Any:
    from astropy import units
    from astropy.coordinates import SkyCoord

    pm = units.mas / units.yr
    stars = SkyCoord(
        ra=np.asarray(ra_deg) * units.deg,
        dec=np.asarray(dec_deg) * units.deg,
        distance=np.asarray(distance_kpc) * units.kpc,
        pm_ra_cosdec=np.asarray(pm_masyr[0]) * pm,
        pm_dec=np.asarray(pm_masyr[1]) * pm,
        radial_velocity=np.asarray(rv_kms) * units.km / units.s,
    )
    return stars.transform_to(astropy_frame())


def orbits(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    distance_kpc: ArrayLike,
    *,
    pm_masyr: tuple[ArrayLike, ArrayLike],
    rv_kms: ArrayLike,
) -> dict[str, Float64Array]:
    """Shapes of orbits in the potential MWPotential2014 (Bovy 2015, ApJS 216, 29), by galpy.

    The Stäckel approximation of Mackereth & Bovy (2018, PASP 130, 114501) needs no integration.

    Parameters
    ----------
    ra_deg, dec_deg, distance_kpc, pm_masyr, rv_kms
        As of `velocities`.

    Returns
    -------
    dict of str to (n_star,) float64
        ``eccentricity``, ``z_max`` (kpc), ``r_peri`` and ``r_apo`` (kpc); NaN where an input is
        missing.

    Raises
    ------
    MissingExtra
        If galpy is not installed.
    """
    orbit_of, potential = _galpy()
    from astropy import units

    there = _galactocentric(ra_deg, dec_deg, distance_kpc, pm_masyr, rv_kms)
    speed = velocities(ra_deg, dec_deg, distance_kpc, pm_masyr=pm_masyr, rv_kms=rv_kms)
    xyz = there.cartesian.xyz.to_value(units.kpc).T
    radius, height = cylindrical(xyz)
    known = np.isfinite(np.column_stack([xyz, speed])).all(axis=1)
    phi = np.arctan2(xyz[:, 1], -xyz[:, 0])
    state = np.column_stack([radius, speed[:, 0], speed[:, 1], height, speed[:, 2], phi])[known]
    scale = np.array([R_SUN_KPC, _V_KMS, _V_KMS, R_SUN_KPC, _V_KMS, 1.0])
    found = _shapes(orbit_of, potential, state / scale)
    out = {name: np.full(len(xyz), np.nan) for name in found}
    for name, values in found.items():
        out[name][known] = values
    return out


def _shapes(orbit_of: Any, potential: Any, state: Float64Array) -> dict[str, Float64Array]:
    how = {"analytic": True, "type": "staeckel", "delta": 0.4, "pot": potential}
    with warnings.catch_warnings():
        # galpy warns where its compiled parts are missing; it does without them.
        warnings.simplefilter("ignore")
        orbit = orbit_of(state, ro=R_SUN_KPC, vo=_V_KMS)
        return {
            "eccentricity": orbit.e(**how),
            "z_max": orbit.zmax(**how, use_physical=True),
            "r_peri": orbit.rperi(**how, use_physical=True),
            "r_apo": orbit.rap(**how, use_physical=True),
        }


def _galpy() -> tuple[Any, Any]:
    """Return galpy's `Orbit` and its potential."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from galpy.orbit import Orbit
            from galpy.potential import MWPotential2014
    except ImportError as error:
        raise MissingExtra(
            "orbits need galpy, which is not installed; pip install 'maury[orbits]'"
        ) from error
    return Orbit, MWPotential2014


_V_KMS = 233.4
"""Circular speed at the Sun: 245.6 km/s, less the 12.24 km/s of its peculiar motion (Schönrich,
Binney & Dehnen 2010, MNRAS 403, 1829)."""


def galactic(ra_deg: ArrayLike, dec_deg: ArrayLike) -> tuple[Float64Array, Float64Array]:
    """Return Galactic longitude and latitude, each (n_star,), in degrees.

    Parameters
    ----------
    ra_deg, dec_deg : (n_star,) array_like
        ICRS. Rows that are no position give NaN.
    """
    from astropy import units
    from astropy.coordinates import SkyCoord

    ra, dec = (np.asarray(values, dtype=np.float64) for values in (ra_deg, dec_deg))
    known = np.isfinite(ra) & (np.abs(dec) <= 90.0)
    longitude, latitude = np.full(ra.shape, np.nan), np.full(ra.shape, np.nan)
    if known.any():
        place = SkyCoord(ra[known] * units.deg, dec[known] * units.deg).galactic
        longitude[known], latitude[known] = place.l.deg, place.b.deg
    return longitude, latitude


def galactocentric(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    parallax_mas: ArrayLike,
    *,
    error_mas: ArrayLike | None = None,
) -> tuple[Float64Array, Float64Array]:
    """Return cylindrical Galactocentric radius and height, each (n_star,), in kpc.

    With parallax errors, distances are the medians of
    `maury.report.galaxy.cartography.place_stars`, without a zero point, as a catalogue does not say
    whose parallaxes it has. Without, and for stars that lack an error, they are one over the
    parallax.

    Parameters
    ----------
    ra_deg, dec_deg, parallax_mas, error_mas : (n_star,) array_like
        Rows without a position or a distance give NaN.
    """
    ra, dec = (np.asarray(values, dtype=np.float64) for values in (ra_deg, dec_deg))
    parallax = np.asarray(parallax_mas, dtype=np.float64)
    distance = 1.0 / np.where(parallax > 0, parallax, np.nan)
    if error_mas is not None:
        error = np.asarray(error_mas, dtype=np.float64)
        rng = np.random.default_rng(0)
        placed = place_stars(ra, dec, (parallax, error), rng=rng, gaia="none", n_sample=1)
        distance = np.where(error > 0, placed.distance_kpc[1], distance)
    return cylindrical(galactocentric_kpc(ra, dec, distance))
