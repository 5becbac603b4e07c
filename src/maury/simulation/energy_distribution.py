"""Simulated energy distributions of stars, 330 to 1050 nm, as a low-resolution spectrum sees them.

A grey atmosphere in hydrostatic and local thermodynamic equilibrium, with the continuous opacity of
H-, H, electrons and Rayleigh scattering, gives the continuum with its Balmer and Paschen jumps; its
electrons come from hydrogen and metals. What lines take away is no synthesis: strengths at the Sun
are scaled with temperature, gravity and abundance as such lines are (`LineGroup`). So labels leave
marks of the right places, signs and sizes, which is what a simulated input needs; no label of a
real star should be read off these.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import expn

from maury.io.arrays import Float64Array

__all__ = ["LINE_GROUPS", "WAVE_NM", "LineGroup", "energy_distribution"]

WAVE_NM: Float64Array = np.arange(330.0, 1051.0, 3.0)
"""Wavelengths in vacuum, nm: a third of the narrowest resolution element of XP."""
WAVE_NM.setflags(write=False)

_BLOCK = 256
"""Stars at a time: some 20 MB for each array of stars, depths and wavelengths."""
_TAU = np.geomspace(1e-4, 30.0, 36)
"""Optical depths at 500 nm: less absorbs nothing, and nothing is seen from below."""
# Where _TAU is measured, as in tables of model atmospheres.
_REFERENCE_ANGSTROM = 5000.0
_ATOMIC_MASS = 1.66053907e-24  # g (CODATA 2018)
_HC_OVER_K = 1.438776877  # cm K (CODATA 2018)
_SUN_K, _SUN_LOGG = 5772.0, 4.438

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


@dataclass(frozen=True)
class LineGroup:
    """Absorption by lines that change together.

    Attributes
    ----------
    name : str
    bands : tuple of (float, float, float)
        Centre and standard deviation in nm, and equivalent width in nm at the Sun.
    metals, alpha : float
        Powers of 10 by [M/H] and [alpha/M]: about .4 for strong lines, 1 for weak ones, 2 for
        molecules of two metals.
    heat : float
        Power of e by 5040 K / Teff less that of the Sun, negative for lines of highly excited
        levels.
    gravity : float
        Power of 10 by log g less that of the Sun.
    scatter : float
        1 sigma of ln(strength) from star to star that no label tells, such as of C and N.
    most : float
        Strength over the Sun's at which a group saturates.
    """

    name: str
    bands: tuple[tuple[float, float, float], ...]
    metals: float
    alpha: float
    heat: float
    gravity: float
    scatter: float
    most: float = 6.0

    def strength(
        self,
        teff_k: Float64Array,
        logg: Float64Array,
        m_h: Float64Array,
        alpha_m: Float64Array,
    ) -> Float64Array:
        """Strength over that of the Sun, (n_star,), saturated at `most`."""
        free = np.exp(self.heat * (5040.0 / teff_k - 5040.0 / _SUN_K)) * 10.0 ** (
            self.metals * m_h + self.alpha * alpha_m + self.gravity * (logg - _SUN_LOGG)
        )
        return np.asarray(free / (1.0 + free / self.most) * (1.0 + 1.0 / self.most))


LINE_GROUPS: tuple[LineGroup, ...] = (
    LineGroup(
        "H",
        ((656.5, 0.6, 0.38), (486.3, 0.6, 0.36), (434.2, 0.6, 0.30), (410.3, 0.6, 0.33)),
        0.0,
        0.0,
        -9.0,
        0.03,
        0.03,
    ),
    LineGroup("Ca II H and K", ((393.5, 0.8, 2.0), (397.0, 0.8, 1.5)), 0.4, 0.4, 1.0, 0.0, 0.05),
    LineGroup(
        "Ca II triplet",
        ((850.0, 0.4, 0.15), (854.4, 0.4, 0.37), (866.5, 0.4, 0.28)),
        0.35,
        0.35,
        -0.5,
        -0.12,
        0.05,
    ),
    LineGroup("Mg b and MgH", ((517.8, 2.0, 0.75), (510.5, 4.0, 0.2)), 0.45, 0.6, 5.0, 0.15, 0.06),
    LineGroup("Na D", ((589.4, 0.5, 0.14),), 0.5, 0.0, 5.0, 0.08, 0.08),
    LineGroup("CH", ((430.5, 1.5, 0.95),), 0.6, 0.1, 3.0, -0.05, 0.12, 2.5),
    LineGroup(
        "CN",
        ((387.5, 1.5, 0.8), (421.0, 1.2, 0.12), (797.0, 8.0, 0.3), (925.0, 9.0, 0.5)),
        1.2,
        0.0,
        4.0,
        -0.25,
        0.15,
    ),
    LineGroup(
        "Fe I",
        ((404.8, 1.0, 0.3), (438.5, 1.2, 0.35), (495.8, 1.2, 0.2), (527.1, 1.2, 0.25)),
        0.45,
        0.0,
        4.0,
        -0.03,
        0.03,
    ),
)
"""Strengths at the Sun as in its flux atlases, to some 20 %; powers by what the lines are (Gray
2005, The Observation and Analysis of Stellar Photospheres, chapters 13 to 16), chosen."""

_BLANKETING = (
    # nm, ln of continuum over flux of the Sun without the bands above.
    (330, 0.60),
    (350, 0.55),
    (370, 0.60),
    (380, 0.60),
    (390, 0.45),
    (400, 0.36),
    (420, 0.30),
    (430, 0.27),
    (440, 0.23),
    (450, 0.19),
    (470, 0.14),
    (500, 0.10),
    (530, 0.08),
    (560, 0.055),
    (600, 0.035),
    (650, 0.022),
    (700, 0.016),
    (800, 0.010),
    (1050, 0.006),
)
"""Weak lines as a smooth loss, of the size that Ardeberg & Virdefors (1979, A&AS 36, 317) find for
the Sun."""
_CROWD = LineGroup("blanketing", (), 0.45, 0.1, 3.2, -0.04, 0.03, 8.0)
# In air, as are their depths and widths to no better than a tenth.
_TIO_NM = (476.0, 495.5, 516.9, 545.0, 584.7, 615.9, 665.2, 705.4, 759.0, 820.5, 843.4, 886.0)
_TIO_DEPTH = (0.4, 0.6, 0.7, 0.6, 0.5, 0.9, 0.9, 1.2, 1.0, 0.5, 0.9, 0.7)
"""Heads of the bands of TiO, which are shaded to the red, and optical depths at 3500 K; chosen."""
_TIO_WIDTH_NM = 14.0  # over which a band fades to the red; chosen
_TIO_K, _TIO_STEP_K = 3500.0, 190.0
"""TiO grows by e in each of these steps: it shows from 4200 K down."""


def energy_distribution(
    teff_k: Float64Array,
    logg: Float64Array,
    m_h: Float64Array,
    alpha_m: Float64Array,
    *,
    rng: np.random.Generator | None = None,
) -> Float64Array:
    """Simulate the flux density of stars before any dust, in arbitrary units.

    Parameters
    ----------
    teff_k, logg, m_h, alpha_m : (n_star,) float64
        K and dex; all finite.
    rng : numpy Generator, optional
        Draws what labels do not tell (`LineGroup.scatter`); without it all stars are typical.

    Returns
    -------
    (n_star, n_wave) float64
        Energy a wavelength interval at `WAVE_NM`.
    """
    out = np.empty((teff_k.size, WAVE_NM.size))
    for start in range(0, teff_k.size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        labels = teff_k[rows], logg[rows], m_h[rows], alpha_m[rows]
        out[rows] = _continuum(*labels) * np.exp(-_lines(*labels, rng))
    return out


def _lines(
    teff_k: Float64Array,
    logg: Float64Array,
    m_h: Float64Array,
    alpha_m: Float64Array,
    rng: np.random.Generator | None,
) -> Float64Array:
    """Optical depth (n_star, n_wave) of all lines."""
    n = teff_k.size
    wave, depth = np.array(_BLANKETING).T
    shapes = [np.interp(WAVE_NM, wave, depth)]
    for group in LINE_GROUPS:
        centre, sigma, width = (np.array(part)[:, None] for part in zip(*group.bands, strict=True))
        # A band narrower than the grid keeps its width in nm.
        sigma = np.hypot(sigma, 0.5 * (WAVE_NM[1] - WAVE_NM[0]))
        profile = np.exp(-0.5 * ((WAVE_NM - centre) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
        shapes.append((width * profile).sum(axis=0))
    depth_of = np.zeros((n, WAVE_NM.size))
    for group, shape in zip((_CROWD, *LINE_GROUPS), shapes, strict=True):
        own = group.scatter * (np.zeros(n) if rng is None else rng.standard_normal(n))
        strength = group.strength(teff_k, logg, m_h, alpha_m) * np.exp(own)
        depth_of += strength[:, None] * shape
    behind = WAVE_NM - np.array(_TIO_NM)[:, None]
    bands = np.array(_TIO_DEPTH)[:, None] * np.exp(-np.maximum(behind, 0.0) / _TIO_WIDTH_NM)
    shape = np.where(behind >= 0, bands, 0.0).sum(axis=0)
    titanium = np.exp((_TIO_K - teff_k) / _TIO_STEP_K) * 10.0 ** (0.8 * m_h + 0.8 * alpha_m)
    return np.asarray(depth_of + (titanium / (1.0 + titanium / 3.0))[:, None] * shape)


def _continuum(
    teff_k: Float64Array, logg: Float64Array, m_h: Float64Array, alpha_m: Float64Array
) -> Float64Array:
    """Emergent continuum flux (n_star, n_wave): the integral of B E2(tau) over the depth."""
    # Hopf's function, within .3 % of the grey atmosphere (Mihalas 1978, Stellar Atmospheres, 3-2).
    hopf = 0.7104 - 0.1331 * np.exp(-3.4488 * _TAU)
    temperature = teff_k[:, None] * (0.75 * (_TAU + hopf)) ** 0.25
    donors = _donors(m_h, alpha_m)
    pressure = _pressure(temperature, 10.0**logg, donors)
    electrons = _electron_pressure(pressure, temperature, donors)
    reference = _opacity(np.array([_REFERENCE_ANGSTROM]), pressure, electrons, temperature)
    opacity = _opacity(10.0 * WAVE_NM, pressure, electrons, temperature) / reference
    tau = _integral(opacity, _TAU)
    wave_cm = WAVE_NM * 1e-7
    source = wave_cm**-5 / np.expm1(_HC_OVER_K / (wave_cm * temperature[:, :, None]))
    # In steps of E3, whose derivative is -E2: exact for a source function that is flat in a step.
    weight = -np.diff(expn(3, tau), axis=1)
    inner = (0.5 * (source[:, 1:] + source[:, :-1]) * weight).sum(axis=1)
    outer = source[:, 0] * (0.5 - expn(3, tau[:, 0]))
    return np.asarray(_over_mean(inner + outer + source[:, -1] * expn(3, tau[:, -1])))


def _over_mean(flux: Float64Array) -> Float64Array:
    """Return fluxes (n_star, n_wave) over the mean of each star."""
    return np.asarray(flux / flux.mean(axis=1, keepdims=True))


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


def _saha(temperature: Float64Array, energy_ev: float, ratio: float) -> Float64Array:
    """Ions per atom times the electron pressure in dyn/cm2 (Gray 2005, equation 1.20)."""
    return np.asarray(
        0.6665 * ratio * temperature**2.5 * 10.0 ** (-5040.0 * energy_ev / temperature)
    )


def _electron_pressure(
    pressure: Float64Array, temperature: Float64Array, donors: Float64Array
) -> Float64Array:
    """Electron pressure (n_star, n_depth), dyn/cm2, by bisection in its logarithm."""
    hydrogen = _saha(temperature, 13.598, 0.5)
    metals = [_saha(temperature, energy, ratio) for _, energy, ratio, _ in _DONORS]
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
    hydrogen = _saha(temperature, 13.598, 0.5)[:, :, None]
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
