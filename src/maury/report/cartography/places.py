"""Where stars are in the Galaxy, with samples of the uncertainty."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch, check_known
from maury.io.arrays import AnyArray, Float64Array
from maury.report.cartography.distances import LENGTH_KPC, ZERO_POINT_MAS, at_levels
from maury.simulation.galaxy import cylindrical
from maury.simulation.galaxy import galactocentric as galactocentric_kpc

# Median and one sigma of a normal distribution.
_QUANTILES = (0.16, 0.5, 0.84)


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
    distance = at_levels(value - zero_point, error, levels, length_kpc)
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
    ra_deg: ArrayLike, dec_deg: ArrayLike, distance_kpc: ArrayLike
) -> tuple[Float64Array, Float64Array]:
    """Return cylindrical Galactocentric radius and height, each (n_star,), in kpc.

    Parameters
    ----------
    ra_deg, dec_deg, distance_kpc : (n_star,) array_like
        Rows without a position or a distance give NaN.
    """
    ra, dec, distance = (np.asarray(one, np.float64) for one in (ra_deg, dec_deg, distance_kpc))
    return cylindrical(galactocentric_kpc(ra, dec, distance))


def median_distance_kpc(
    ra_deg: ArrayLike,
    dec_deg: ArrayLike,
    parallax_mas: ArrayLike,
    *,
    error_mas: ArrayLike | None = None,
) -> Float64Array:
    """Return distances, (n_star,), in kpc; NaN where unknown.

    With parallax errors they are the medians of `place_stars`, without a zero point, as a catalogue
    does not say whose parallaxes it has. Without, and for stars that lack an error, they are one
    over the parallax.

    Parameters
    ----------
    ra_deg, dec_deg, parallax_mas, error_mas : (n_star,) array_like
    """
    parallax = np.asarray(parallax_mas, dtype=np.float64)
    distance = 1.0 / np.where(parallax > 0, parallax, np.nan)
    if error_mas is None:
        return distance
    ra, dec, error = (np.asarray(one, dtype=np.float64) for one in (ra_deg, dec_deg, error_mas))
    rng = np.random.default_rng(0)
    placed = place_stars(ra, dec, (parallax, error), rng=rng, gaia="none", n_sample=1)
    return np.where(error > 0, placed.distance_kpc[1], distance)
