"""A grey model atmosphere with continuous opacities: what light of a star comes through.

Hydrostatic and local thermodynamic equilibrium; opacity of H-, H, electrons and Rayleigh
scattering; electrons of hydrogen and seven metals. It knows no lines: whoever adds their opacity
gets theirs. Good for a simulation whose marks are of the right places, signs and sizes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.special import expn

from maury.io.arrays import Float64Array

__all__ = ["GreyAtmosphere", "ionised"]

_TAU = np.geomspace(1e-4, 30.0, 36)
"""Optical depths at 500 nm: less absorbs nothing, and nothing is seen from below."""
# Where _TAU is measured, as in tables of model atmospheres.
_REFERENCE_ANGSTROM = 5000.0
_ATOMIC_MASS = 1.66053907e-24  # g (CODATA 2018)
_HC_OVER_K = 1.438776877  # cm K (CODATA 2018)
_SUN_LOGG = 4.438
"""Of the Sun, whose pressure begins the integration."""

_PARTICLES, _GRAMS = 1.085, 1.40
"""Atoms, and atomic masses, per hydrogen nucleus of solar helium."""
_DONORS = (
    # log abundance (Asplund et al. 2009, ARA&A 47, 481), ionisation energy in eV, partition
    # function of the ion over that of the atom near 5000 K (Gray 2005, appendix D), and whether it
    # is an alpha element.
    (7.60, 7.646, 2.0, True),
    (7.51, 8.152, 0.6, True),
    (7.50, 7.902, 1.55, False),
    (6.45, 5.986, 0.17, False),
    (6.34, 6.113, 2.0, True),
    (6.24, 5.139, 0.5, False),
    (5.03, 4.341, 0.5, False),
)
"""Mg, Si, Fe, Al, Ca, Na, K: what gives electrons where hydrogen does not."""


@dataclass(frozen=True, eq=False)
class GreyAtmosphere:
    """Atmospheres of some stars, by optical depth at 500 nm.

    Attributes
    ----------
    temperature, pressure, electrons : (n_star, n_depth) float64
        K, and dyn/cm2 of the gas and of its electrons.
    """

    temperature: Float64Array
    pressure: Float64Array
    electrons: Float64Array

    @classmethod
    def of(
        cls,
        teff_k: Float64Array,
        logg: Float64Array,
        m_h: Float64Array,
        alpha_m: Float64Array,
    ) -> Self:
        """Return the atmospheres of stars of these labels (n_star,), all finite."""
        # Hopf's function, within .3 % of the grey atmosphere (Mihalas 1978, Stellar Atmospheres,
        # 3-2).
        hopf = 0.7104 - 0.1331 * np.exp(-3.4488 * _TAU)
        temperature = teff_k[:, None] * (0.75 * (_TAU + hopf)) ** 0.25
        donors = _donors(m_h, alpha_m)
        pressure = _pressure(temperature, 10.0**logg, donors)
        return cls(temperature, pressure, _electron_pressure(pressure, temperature, donors))

    def opacity(self, wave_angstrom: Float64Array) -> Float64Array:
        """Continuous opacity (n_star, n_depth, n_wave), cm2/g, at wavelengths in vacuum."""
        return _opacity(wave_angstrom, self.pressure, self.electrons, self.temperature)

    @property
    def nuclei(self) -> float:
        """Hydrogen nuclei in a gram."""
        return 1.0 / (_GRAMS * _ATOMIC_MASS)

    def flux(self, wave_angstrom: Float64Array, opacity: Float64Array) -> Float64Array:
        """Emergent flux (n_star, n_wave), of unit 1 / cm5: the integral of B E2(tau) over depth.

        Parameters
        ----------
        wave_angstrom : (n_wave,) float64
        opacity : (n_star, n_depth, n_wave) float64
            All of it, cm2/g.
        """
        tau = _integral(opacity / self.opacity(np.array([_REFERENCE_ANGSTROM])), _TAU)
        wave_cm = wave_angstrom * 1e-8
        source = wave_cm**-5 / np.expm1(_HC_OVER_K / (wave_cm * self.temperature[:, :, None]))
        # In steps of E3, whose derivative is -E2: exact for a source that is flat in a step.
        weight = -np.diff(expn(3, tau), axis=1)
        inner = (0.5 * (source[:, 1:] + source[:, :-1]) * weight).sum(axis=1)
        outer = source[:, 0] * (0.5 - expn(3, tau[:, 0]))
        return np.asarray(inner + outer + source[:, -1] * expn(3, tau[:, -1]))


def _integral(values: Float64Array, at: Float64Array) -> Float64Array:
    """Integrate values (n_star, n_depth, n_wave) over depth, from nothing on."""
    step = np.diff(at)[:, None]
    inner = np.cumsum(0.5 * (values[:, 1:] + values[:, :-1]) * step, axis=1)
    first = values[:, :1] * at[0]
    return np.asarray(np.concatenate([first, first + inner], axis=1))


def _donors(m_h: Float64Array, alpha_m: Float64Array) -> Float64Array:
    """Atoms of each metal per hydrogen nucleus, (n_metal, n_star, 1)."""
    return np.array(
        [10.0 ** (log - 12.0 + m_h + (alpha_m if alpha else 0.0)) for log, _, _, alpha in _DONORS]
    )[:, :, None]


def _pressure(
    temperature: Float64Array, gravity: Float64Array, donors: Float64Array
) -> Float64Array:
    """Gas pressure (n_star, n_depth), dyn/cm2, of dP/dtau = g / opacity, in steps of ln tau."""
    out = np.empty_like(temperature)
    wave = np.array([_REFERENCE_ANGSTROM])
    step = np.diff(np.log(_TAU), prepend=np.log(_TAU[0]))
    # Where the opacity of H- goes as the pressure, P^2 = 2 g tau / (opacity / P); any start will do
    # that is forgotten a decade further in.
    value = np.full(temperature.shape[0], 1.0) * 100.0 * (gravity / 10.0**_SUN_LOGG) ** 0.6
    for k, tau in enumerate(_TAU):
        # Twice: with the opacity at the last pressure, and at the mean of both.
        last = value
        for _ in range(2):
            middle = np.sqrt(last * value)[:, None]
            heat = temperature[:, k : k + 1]
            electrons = _electron_pressure(middle, heat, donors)
            opacity = _opacity(wave, middle, electrons, heat)[:, 0, 0]
            value = last + gravity * tau / opacity * step[k]
        out[:, k] = value
    return out


def ionised(temperature: Float64Array, energy_ev: float, ratio: float) -> Float64Array:
    """Ions per atom times the electron pressure in dyn/cm2 (Gray 2005, equation 1.20)."""
    return np.asarray(
        0.6665 * ratio * temperature**2.5 * 10.0 ** (-5040.0 * energy_ev / temperature)
    )


def _electron_pressure(
    pressure: Float64Array, temperature: Float64Array, donors: Float64Array
) -> Float64Array:
    """Electron pressure (n_star, n_depth), dyn/cm2, by bisection in its logarithm."""
    hydrogen = ionised(temperature, 13.598, 0.5)
    metals = [ionised(temperature, energy, ratio) for _, energy, ratio, _ in _DONORS]
    low, high = np.log(pressure) - 25.0, np.log(0.5 * pressure)
    for _ in range(30):
        middle = 0.5 * (low + high)
        electrons = np.exp(middle)
        given = hydrogen / (hydrogen + electrons)
        for share, part in zip(donors, metals, strict=True):
            given = given + share * part / (part + electrons)
        # Electrons that the nuclei of this gas give, against those that were supposed.
        more = given * (pressure - electrons) / _PARTICLES > electrons
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return np.asarray(np.exp(0.5 * (low + high)))


def _opacity(
    wave_angstrom: Float64Array,
    pressure: Float64Array,
    electrons: Float64Array,
    temperature: Float64Array,
) -> Float64Array:
    """Continuous opacity (n_star, n_depth, n_wave), cm2/g."""
    heat, electron = temperature[:, :, None], electrons[:, :, None]
    hydrogen = ionised(temperature, 13.598, 0.5)[:, :, None]
    neutral = electron / (electron + hydrogen)
    stimulated = 1.0 - np.exp(-1e8 * _HC_OVER_K / (wave_angstrom * heat))
    per_atom = _negative_hydrogen(wave_angstrom, heat, stimulated) * electron
    per_atom = per_atom + _hydrogen(wave_angstrom, heat) * stimulated
    # Rayleigh scattering (Dalgarno 1962, in Kurucz 1970, SAO Special Report 309).
    per_atom = per_atom + (
        5.799e-13 / wave_angstrom**4 + 1.422e-6 / wave_angstrom**6 + 2.784 / wave_angstrom**8
    )
    nuclei = (pressure[:, :, None] - electron) / _PARTICLES
    scattered = 0.6652e-24 * electron / nuclei
    return np.asarray((per_atom * neutral + scattered) / (_GRAMS * _ATOMIC_MASS))


def _negative_hydrogen(
    wave_angstrom: Float64Array, temperature: Float64Array, stimulated: Float64Array
) -> Float64Array:
    """Opacity of H- per neutral atom and electron pressure, cm4/dyn.

    Bound-free as in John (1988, A&A 193, 189), equations 3 to 5, and free-free as in Gray (2005),
    equation 8.13.
    """
    micron, edge = wave_angstrom * 1e-4, 1.6419
    root = np.sqrt(np.maximum(1.0 / micron - 1.0 / edge, 0.0))
    terms = (152.519, 49.534, -118.858, 92.536, -34.194, 4.982)
    cross = 1e-18 * micron**3 * root**3 * sum(c * root**k for k, c in enumerate(terms))
    alpha = 1e4 * _HC_OVER_K
    bound = 0.750 * temperature**-2.5 * np.exp(alpha / (edge * temperature)) * stimulated * cross
    x, theta = np.log10(wave_angstrom), np.log10(5040.0 / temperature)
    f0 = -2.2763 - 1.6850 * x + 0.76661 * x**2 - 0.053346 * x**3
    f1 = 15.2827 - 9.2846 * x + 1.99381 * x**2 - 0.142631 * x**3
    f2 = -197.789 + 190.266 * x - 67.9775 * x**2 + 10.6913 * x**3 - 0.625151 * x**4
    return np.asarray(bound + 1e-26 * 10.0 ** (f0 + f1 * theta + f2 * theta**2))


def _hydrogen(wave_angstrom: Float64Array, temperature: Float64Array) -> Float64Array:
    """Opacity of neutral hydrogen per atom, cm2, without stimulated emission, Gaunt factors 1.

    Gray (2005), equations 8.8 to 8.10: bound-free of the levels that a photon can ionise, one by
    one to the eighth and the rest as an integral, and free-free.
    """
    theta = 5040.0 / temperature
    ionising = 13.598
    out = np.zeros(np.broadcast_shapes(wave_angstrom.shape, temperature.shape))
    for level in range(1, 9):
        excitation = ionising * (1.0 - 1.0 / level**2)
        reached = wave_angstrom < 911.75 * level**2
        out = out + np.where(reached, 10.0 ** (-theta * excitation) / level**3, 0.0)
    ln10 = np.log(10.0)
    last = ionising * (1.0 - 1.0 / 9.0**2)
    rest = (10.0 ** (-theta * last) - 10.0 ** (-theta * ionising)) / (2.0 * theta * ln10 * ionising)
    free = 10.0 ** (-theta * ionising) / (2.0 * theta * ln10 * ionising)
    return np.asarray(1.0449e-26 * wave_angstrom**3 * (out + rest + free))
