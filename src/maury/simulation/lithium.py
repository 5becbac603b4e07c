"""The resonance doublet of lithium at 6708 angstrom, for simulated spectra that lack it.

Line and continuum are computed in a grey atmosphere (`maury.simulation.grey_atmosphere`), in local
thermodynamic equilibrium: equivalent widths grow with A(Li) as in the curves of growth of the
literature, but are larger than those of better atmospheres by what 0.2 to 0.4 dex more lithium
would give, as grey ones are cool far out, where neutral lithium is.
"""

from __future__ import annotations

import numpy as np

from maury.io.arrays import Float64Array
from maury.simulation.grey_atmosphere import GreyAtmosphere, ionised

__all__ = ["lithium_line"]

_DOUBLET = ((6707.76, -0.002), (6707.91, -0.303))
"""Wavelengths in air, angstrom, and log gf of 7Li, from the ground state (NIST)."""
_STATISTICAL_WEIGHT = 2.0  # of the ground state
_IONISATION_EV = 5.3917  # NIST
_PARTITION_RATIO = 1.0 / 2.1  # ion over atom, near 5000 K
_MASS_G = 6.94 * 1.66053907e-24  # of an atom
_CROSS_SECTION_CM = 8.8523e-13
"""pi e2 / (m c2): integrated cross-section of an oscillator, less lambda^2."""
_BOLTZMANN = 1.380649e-16  # erg / K (CODATA 2018)
_LIGHT_CM_S = 2.99792458e10  # CODATA 2018
_HC_OVER_K_ANGSTROM = 1.438776877e8  # K (CODATA 2018)
_MICROTURBULENCE_CM_S = 1.3e5  # of dwarfs; chosen


def lithium_line(
    wave_aa: Float64Array,
    *,
    teff_k: Float64Array,
    logg: Float64Array,
    m_h: Float64Array,
    a_li: Float64Array,
) -> Float64Array:
    """Flux over continuum (n_star, n_wave) of the doublet, without rotation or instrument.

    Parameters
    ----------
    wave_aa : (n_wave,) float64
        In air, in steps of .03 angstrom or less.
    teff_k, logg, m_h, a_li : (n_star,) float64
        All finite; A(Li) = log N(Li) / N(H) + 12.
    """
    atmosphere = GreyAtmosphere.of(teff_k, logg, m_h, np.zeros(teff_k.size))
    heat = atmosphere.temperature
    ions = ionised(heat, _IONISATION_EV, _PARTITION_RATIO)
    neutral = atmosphere.electrons / (atmosphere.electrons + ions)
    atoms = 10.0 ** (a_li[:, None] - 12.0) * neutral * atmosphere.nuclei
    speed = np.sqrt(2.0 * _BOLTZMANN * heat / _MASS_G + _MICROTURBULENCE_CM_S**2)
    line = np.zeros((*heat.shape, wave_aa.size))
    for centre, log_gf in _DOUBLET:
        width = (centre * speed / _LIGHT_CM_S)[:, :, None]
        profile = np.exp(-(((wave_aa - centre) / width) ** 2)) / (np.sqrt(np.pi) * width)
        stimulated = 1.0 - np.exp(-_HC_OVER_K_ANGSTROM / (centre * heat))
        # Of wavelengths in angstrom: cm2 times angstrom.
        whole = _CROSS_SECTION_CM * (centre * 1e-8) ** 2 * 1e8 * 10.0**log_gf / _STATISTICAL_WEIGHT
        line += (atoms * stimulated * whole)[:, :, None] * profile
    # One continuum for all: over some angstrom it does not change.
    here = np.array([_DOUBLET[0][0]])
    continuum = atmosphere.opacity(here)
    alone = atmosphere.flux(here, continuum)
    return np.asarray(atmosphere.flux(np.full(wave_aa.size, here[0]), continuum + line) / alone)
