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

from maury.io.arrays import Float64Array
from maury.simulation.grey_atmosphere import GreyAtmosphere

__all__ = ["LINE_GROUPS", "WAVE_NM", "LineGroup", "energy_distribution"]

WAVE_NM: Float64Array = np.arange(330.0, 1051.0, 3.0)
"""Wavelengths in vacuum, nm: a third of the narrowest resolution element of XP."""
WAVE_NM.setflags(write=False)

_BLOCK = 256
"""Stars at a time: some 20 MB for each array of stars, depths and wavelengths."""
_SUN_K, _SUN_LOGG = 5772.0, 4.438


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
    """Emergent continuum flux (n_star, n_wave) over its mean."""
    atmosphere, wave = GreyAtmosphere.of(teff_k, logg, m_h, alpha_m), 10.0 * WAVE_NM
    flux = atmosphere.flux(wave, atmosphere.opacity(wave))
    return np.asarray(flux / flux.mean(axis=1, keepdims=True))
