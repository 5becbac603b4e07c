"""How stars move in the Galaxy: cylindrical velocities, and the shapes of orbits."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import MissingExtra
from maury.io.arrays import Float64Array
from maury.simulation.galaxy import R_SUN_KPC, astropy_frame, cylindrical


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
