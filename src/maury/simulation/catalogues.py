"""Magnitudes, errors and positions of simulated stars as catalogues give them."""

from __future__ import annotations

import numpy as np

from maury.io.arrays import Float64Array
from maury.labels.columns import BANDS

COLOURS = ("G-Ks", "BP-RP", "G-RP", "J-Ks", "H-Ks", "W1-Ks", "W2-W1")
_POLE_RA_DEG, _POLE_DEC_DEG = 192.85948, 27.12825


def magnitudes_from_colours(ks: Float64Array, colours: Float64Array) -> Float64Array:
    """Magnitudes (n, 8) in the order of `BANDS` from Ks (n,) and `COLOURS` (n, 7)."""
    g_ks, bp_rp, g_rp, j_ks, h_ks, w1_ks, w2_w1 = colours.T
    g, w1 = ks + g_ks, ks + w1_ks
    rp = g - g_rp
    return np.column_stack([g, rp + bp_rp, rp, ks + j_ks, ks + h_ks, ks, w1, w1 + w2_w1])


def colours_from_magnitudes(magnitudes: Float64Array) -> Float64Array:
    """`COLOURS` (n, 7) of magnitudes (n, 8) in the order of `BANDS`."""
    g, bp, rp, j, h, ks, w1, w2 = magnitudes.T
    return np.column_stack([g - ks, bp - rp, g - rp, j - ks, h - ks, w1 - ks, w2 - w1])


def simulate_parallax_errors(g_mag: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Parallax errors (mas) like those of Gaia DR2.

    The median is 0.04 mas for bright stars, 0.1 at G = 17 and 0.7 at G = 20 (Lindegren et al. 2018,
    A&A 616, A2, abstract), interpolated as the root of two squares; the scatter is lognormal, 0.2.
    """
    faint = 0.092 * 10.0 ** (0.29 * (g_mag - 17.0))
    return np.asarray(np.hypot(0.04, faint) * np.exp(0.2 * rng.standard_normal(g_mag.size)))


_BRIGHT_ERROR_MAG = np.array([0.001, 0.002, 0.002, 0.024, 0.027, 0.022, 0.023, 0.020])
_FAINT_LIMIT_MAG = np.array([21.0, 20.0, 20.0, 15.8, 15.1, 14.3, 16.5, 15.5])


def simulate_magnitude_errors(magnitudes: Float64Array, rng: np.random.Generator) -> Float64Array:
    """Errors (mag) of magnitudes (n, 8): typical bright ones, and 0.1 mag at each survey's limit.

    Medians of bright stars as in Gaia DR2 (Evans et al. 2018, A&A 616, A4), 2MASS (Skrutskie et al.
    2006, AJ 131, 1163) and WISE (Cutri et al. 2013); limits are those of S/N = 10. Lognormal
    scatter, 0.15.
    """
    assert len(BANDS) == magnitudes.shape[1]
    faint = 0.1 * 10.0 ** (0.4 * (magnitudes - _FAINT_LIMIT_MAG))
    scatter = np.exp(0.15 * rng.standard_normal(magnitudes.shape))
    return np.asarray(np.hypot(_BRIGHT_ERROR_MAG, faint) * scatter)


def simulate_positions(n: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Positions (ra, dec) in degrees, uniform over dec < 0 with galactic |b| > 25 degrees."""
    ra, dec = np.empty(n), np.empty(n)
    missing = np.arange(n)
    pole = np.radians(_POLE_DEC_DEG)
    while missing.size:
        ra[missing] = 360.0 * rng.random(missing.size)
        # Uniform on the sphere: sin(dec) is uniform, over the southern half.
        dec[missing] = -np.degrees(np.arcsin(rng.random(missing.size)))
        angle, height = np.radians(ra[missing] - _POLE_RA_DEG), np.radians(dec[missing])
        sin_b = np.sin(height) * np.sin(pole) + np.cos(height) * np.cos(pole) * np.cos(angle)
        missing = missing[np.abs(sin_b) < np.sin(np.radians(25.0))]
    return ra, dec
