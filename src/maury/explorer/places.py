"""Where the stars are: Galactic longitude and latitude, and Galactocentric R and Z."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maury.cartography import place_stars
from maury.galaxy import cylindrical
from maury.galaxy import galactocentric as galactocentric_kpc

Float64Array = NDArray[np.float64]


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

    With parallax errors, distances are the medians of `maury.cartography.place_stars`, without a
    zero point, as a catalogue does not say whose parallaxes it has. Without, and for stars that
    lack an error, they are one over the parallax.

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
