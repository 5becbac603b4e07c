"""What photometry and astrometry say of a star: absolute magnitudes, colours, extinction.

Bare arrays in, bare arrays out, float64; NaN means missing, and stays NaN. Units are in the names:
magnitudes are in mag, parallaxes in milliarcseconds. Two optional packages are used where asked
for: `zero_point` (extra ``maury[gaia]``) and `dust_extinction` (extra ``maury[dust]``).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import MissingExtra, check_known
from maury.io.arrays import Float64Array
from maury.labels.columns import BANDS, Band

_BAND_BY_NAME = {band.name: band for band in BANDS}
_MAG_PER_RELATIVE_PARALLAX = 5.0 / np.log(10.0)


def band(name: str) -> Band:
    """Return the band of that name, for example ``"Ks"``.

    Raises
    ------
    UnknownName
        If there is no such band; the nearest is suggested.
    """
    return _BAND_BY_NAME[check_known("band", name, _BAND_BY_NAME)]


def _finite(values: ArrayLike) -> Float64Array:
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, np.nan)


def usable_parallax(parallax_mas: ArrayLike) -> Float64Array:
    """Return parallaxes with NaN for those that are missing, infinite or not positive."""
    parallax = _finite(parallax_mas)
    return np.where(parallax > 0, parallax, np.nan)


def distance_modulus(parallax_mas: ArrayLike) -> Float64Array:
    """Distance modulus -5 (log10(parallax / 1000) + 1), in mag; NaN unless parallax > 0."""
    return np.asarray(-5.0 * (np.log10(usable_parallax(parallax_mas) / 1000.0) + 1.0))


def distance_modulus_error(parallax_mas: ArrayLike, parallax_error_mas: ArrayLike) -> Float64Array:
    """1 sigma error of the distance modulus, in mag, to first order: 5 / ln 10 * error / parallax.

    Good below some 20 % of relative error; beyond, the distribution is skewed. NaN unless the
    parallax is positive and its error known and not negative.
    """
    error = _finite(parallax_error_mas)
    # A negative error is a sentinel, not an error.
    error = np.where(error >= 0, error, np.nan)
    return np.asarray(_MAG_PER_RELATIVE_PARALLAX * error / usable_parallax(parallax_mas))


def absolute_magnitude(magnitude: ArrayLike, parallax_mas: ArrayLike) -> Float64Array:
    """Absolute magnitude M = m + 5 (log10(parallax / 1000) + 1), extinction left in.

    As in Guiglion et al. (2020, A&A 644, A168), section 2.

    Parameters
    ----------
    magnitude, parallax_mas : (n_star,)

    Returns
    -------
    (n_star,) float64; NaN where the magnitude is missing or the parallax not positive.
    """
    return np.asarray(_finite(magnitude) - distance_modulus(parallax_mas))


def absolute_magnitude_error(
    magnitude_error: ArrayLike, parallax_mas: ArrayLike, parallax_error_mas: ArrayLike
) -> Float64Array:
    """1 sigma error of an absolute magnitude, in mag: photometric and parallax error in quadrature.

    NaN where either is unknown. Errors of several bands of one star share the parallax part.
    """
    photometric = _finite(magnitude_error)
    photometric = np.where(photometric >= 0, photometric, np.nan)
    return np.asarray(
        np.hypot(photometric, distance_modulus_error(parallax_mas, parallax_error_mas))
    )


def colour(blue_magnitude: ArrayLike, red_magnitude: ArrayLike) -> Float64Array:
    """Colour index, blue minus red, in mag; NaN where either is missing."""
    return np.asarray(_finite(blue_magnitude) - _finite(red_magnitude))


def parallax_snr(parallax_mas: ArrayLike, parallax_error_mas: ArrayLike) -> Float64Array:
    """Parallax over its error, negative where the parallax is; NaN where either is missing."""
    error = _finite(parallax_error_mas)
    return np.asarray(_finite(parallax_mas) / np.where(error > 0, error, np.nan))


def parallax_zero_point(
    phot_g_mean_mag: ArrayLike,
    nu_eff_used_in_astrometry: ArrayLike,
    pseudocolour: ArrayLike,
    *,
    ecl_lat_deg: ArrayLike,
    astrometric_params_solved: ArrayLike,
) -> Float64Array:
    """Zero point of Gaia EDR3/DR3 parallaxes, to be subtracted from them, in mas.

    Lindegren et al. (2021, A&A 649, A4), through the package `zero_point` of the Gaia archive.
    G is held within 6 and 21, beyond which the recipe itself is constant.

    Parameters
    ----------
    phot_g_mean_mag, nu_eff_used_in_astrometry, pseudocolour : (n_star,) mag, 1/um, 1/um.
    ecl_lat_deg : (n_star,)
    astrometric_params_solved : (n_star,)
        31 (five parameters, which need nu_eff) or 95 (six, which need the pseudocolour).

    Returns
    -------
    (n_star,) float64; NaN where a needed value is missing or the colour is outside the range of
    the recipe (nu_eff 1.1 to 1.9, pseudocolour 1.24 to 1.72).

    Raises
    ------
    MissingExtra
        If the package is not installed.
    """
    # The package raises beyond its range, where the recipe goes on as a constant.
    magnitude = np.clip(_finite(phot_g_mean_mag), 6.0 + 1e-9, 21.0 - 1e-9)
    nu_eff, pseudo, latitude = (
        _finite(values) for values in (nu_eff_used_in_astrometry, pseudocolour, ecl_lat_deg)
    )
    solved = _finite(astrometric_params_solved)
    five = (solved == 31) & (nu_eff > 1.1) & (nu_eff < 1.9)
    six = (solved == 95) & (pseudo > 1.24) & (pseudo < 1.72)
    usable = (five | six) & np.isfinite(magnitude) & np.isfinite(latitude)
    zero_point = np.full(magnitude.shape, np.nan)
    recipe = _zero_point_recipe()
    if usable.any():
        zero_point[usable] = recipe.get_zpt(
            magnitude[usable], nu_eff[usable], pseudo[usable], latitude[usable], solved[usable]
        )
    return zero_point


@lru_cache(maxsize=1)
def _zero_point_recipe() -> Any:
    try:
        recipe = import_module("zero_point.zpt")
    except ImportError as error:
        raise MissingExtra(
            "the parallax zero point needs the package 'gaiadr3-zeropoint', which is not "
            "installed; run: pip install 'maury[gaia]'"
        ) from error
    recipe.load_tables()
    return recipe


def band_extinction(a_v: ArrayLike, bands: Sequence[str], *, r_v: float = 3.1) -> Float64Array:
    """Extinction in each band at its effective wavelength.

    Law of Gordon et al. (2023, ApJ 950, 86), through the package `dust_extinction`. Taken at one
    wavelength, so that the change of a broad band's extinction with colour and A_V is left out:
    some percent of A_V in G.

    Parameters
    ----------
    a_v : (n_star,)
        Extinction in V, mag.
    bands : sequence of str
        Names of bands, as in `maury.labels.columns.BANDS`.
    r_v : float
        A_V / E(B-V), 2.3 to 5.6.

    Returns
    -------
    (n_star, n_band) float64, mag.

    Raises
    ------
    MissingExtra
        If the package is not installed.
    UnknownName
        If a band is not known.
    """
    return np.asarray(_finite(a_v)[:, None] * np.array(_relative_extinction(tuple(bands), r_v)))


@lru_cache(maxsize=32)
def _relative_extinction(bands: tuple[str, ...], r_v: float) -> tuple[float, ...]:
    law = extinction_law([band(name).effective_wavelength_um for name in bands], r_v=r_v)
    return tuple(map(float, law))


def extinction_law(wavelength_um: ArrayLike, *, r_v: float = 3.1) -> Float64Array:
    """Extinction over A_V by wavelength: the law of Gordon et al. (2023, ApJ 950, 86).

    Parameters
    ----------
    wavelength_um : (n,) array_like
        Micrometres, .0912 to 32.
    r_v : float
        A_V / E(B-V), 2.3 to 5.6.

    Returns
    -------
    (n,) float64

    Raises
    ------
    MissingExtra
        If the package `dust_extinction` is not installed.
    """
    try:
        from dust_extinction.parameter_averages import G23
    except ImportError as error:
        raise MissingExtra(
            "de-reddening needs the package 'dust_extinction', which is not installed; "
            "run: pip install 'maury[dust]'"
        ) from error
    from astropy import units

    return np.asarray(G23(Rv=r_v)(np.asarray(wavelength_um, np.float64) * units.micron))
