"""What lines depend on, from the labels: temperature, gravity, elements, free carbon."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from maury.io.arrays import Float64Array

__all__ = ["DISSOCIATION", "EMULATOR_LABELS", "QUANTITIES", "quantities", "quantity_slopes"]

EMULATOR_LABELS: dict[str, str] = {
    "teff": "K",
    "logg": "dex",
    "m_h": "dex",
    "fe_h": "dex",
    "alpha_m": "dex",
    "si_fe": "dex",
    "al_fe": "dex",
    "mg_fe": "dex",
    "ni_fe": "dex",
    "vmic": "km/s",
    "d_c": "dex",
    "d_n": "dex",
    "d_ca": "dex",
    "d_ti": "dex",
    "d_o": "dex",
    "d_cr": "dex",
}
"""Names and units of the sixteen labels, in order."""

QUANTITIES: dict[str, tuple[str, ...]] = {
    "theta": ("teff",),
    "logg": ("logg",),
    "vmic": ("vmic",),
    "fe": ("fe_h",),
    "mg": ("fe_h", "mg_fe"),
    "si": ("fe_h", "si_fe"),
    "al": ("fe_h", "al_fe"),
    "ni": ("fe_h", "ni_fe"),
    "cr": ("fe_h", "d_cr"),
    "ca": ("m_h", "alpha_m", "d_ca"),
    "ti": ("m_h", "alpha_m", "d_ti"),
    "o": ("m_h", "alpha_m", "d_o"),
    "s": ("m_h", "alpha_m"),
    "c": ("m_h", "d_c"),
    "n": ("m_h", "d_n"),
    "rest": ("m_h",),
}
"""What the network sees: each quantity is the sum of these labels, but theta = 5040 K / teff.

Abundances are thus those of the synthesis, relative to the Sun, one input per element, so that a
network need not learn that a magnesium line follows [Fe/H] + [Mg/Fe]. Mixing in evolved giants is
added to carbon and nitrogen. Three more inputs follow: the logarithm of the carbon that carbon
monoxide leaves free, in three layers (`DISSOCIATION`).
"""

DISSOCIATION = (
    (-2.88, -8.27, -0.53, 0.12),
    (-1.92, -8.32, -0.64, 0.15),
    (-0.91, -8.54, -0.13, -0.08),
)
"""Dissociation constant of CO per oxygen atom, in three layers: coefficients of its logarithm.

log10 K = a + b (theta - 1.1) + c (logg - 2.5) + d [O/H]. CN bands of cool stars rise steeply as
C/O nears one, which a network given C and O alone would have to learn from the few stars that are
there. The coefficients and the solar C/O were fitted together with a network to the training stars;
0.538 is that of Grevesse, Asplund & Sauval (2007, Space Sci. Rev. 130, 105).
"""

_MIXING = np.array(
    [[float(name in parts) for name in EMULATOR_LABELS] for parts in QUANTITIES.values()]
)
_MIXING.setflags(write=False)
_C, _N, _O = (list(QUANTITIES).index(name) for name in ("c", "n", "o"))
_DREDGED_C, _DREDGED_N = -0.15, 0.25
_SOLAR_C_TO_O = 0.538
"""Carbon over oxygen atoms in the Sun: 8.39 and 8.66 dex (Grevesse et al. 2007) give .537."""


def quantities(labels: ArrayLike) -> Float64Array:
    """Physical quantities (n_star, 19) behind `labels` (n_star, 16).

    The sixteen of `QUANTITIES`, then free carbon for each of `DISSOCIATION`.
    """
    values = np.asarray(labels, dtype=np.float64)
    mixed = values @ _MIXING.T
    mixed[:, 0] = 5040.0 / values[:, 0]
    dredged = _dredge_up(values[:, 1])[0]
    # First dredge-up: giants bring carbon that became nitrogen to their surface.
    mixed[:, _C] += _DREDGED_C * dredged
    mixed[:, _N] += _DREDGED_N * dredged
    ratio = mixed[:, _C] - mixed[:, _O]
    free = [_free_carbon(ratio, _log_constant(mixed, layer))[0] for layer in DISSOCIATION]
    return np.column_stack([mixed, *free])


def quantity_slopes(values: Float64Array) -> Float64Array:
    """Differentiate `quantities`: (n_star, 16 labels, 19 quantities)."""
    slopes = np.repeat(_MIXING.T[None], len(values), axis=0)
    slopes[:, 0, 0] = -5040.0 / values[:, 0] ** 2
    rise = _dredge_up(values[:, 1])[1]
    slopes[:, 1, _C] += _DREDGED_C * rise
    slopes[:, 1, _N] += _DREDGED_N * rise
    mixed = quantities(values)
    ratio = mixed[:, _C] - mixed[:, _O]
    ratio_slope = slopes[:, :, _C] - slopes[:, :, _O]
    free = []
    for layer in DISSOCIATION:
        _, by_ratio, by_constant = _free_carbon(ratio, _log_constant(mixed, layer))
        constant_slope = slopes[:, :, [0, 1, _O]] @ np.array(layer[1:])
        free.append(by_ratio[:, None] * ratio_slope + by_constant[:, None] * constant_slope)
    return np.concatenate([slopes, np.stack(free, axis=2)], axis=2)


def _dredge_up(logg: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Smooth rise from 0 at logg 3.4 to 1 at logg 2.6, and its derivative."""
    # A smooth step, so that derivatives by log g have no jump.
    u = np.clip((3.4 - logg) / 0.8, 0.0, 1.0)
    return u**2 * (3 - 2 * u), -6 * u * (1 - u) / 0.8


def _log_constant(mixed: Float64Array, layer: tuple[float, ...]) -> Float64Array:
    at_zero, by_theta, by_logg, by_oxygen = layer
    theta, logg, oxygen = mixed[:, 0], mixed[:, 1], mixed[:, _O]
    return at_zero + by_theta * (theta - 1.1) + by_logg * (logg - 2.5) + by_oxygen * oxygen


def _free_carbon(
    ratio: Float64Array, log_constant: Float64Array
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Log10 of carbon not bound in CO, per oxygen; its derivatives by [C/O] and by log10 K.

    With c = C/O and dissociation constant K, mass action and conservation give
    x^2 + (1 + K - c) x - K c = 0.
    """
    carbon = _SOLAR_C_TO_O * 10.0 ** np.clip(ratio, -3.0, 3.0)
    # Beyond, all carbon is bound or all is free, and powers would overflow.
    constant = 10.0 ** np.clip(log_constant, -8.0, 8.0)
    excess = carbon - 1 - constant
    # As a hypotenuse the discriminant cannot turn negative by rounding.
    root = np.hypot(excess, 2 * np.sqrt(carbon * constant))
    # The larger root, by whichever form adds numbers of one sign.
    free = np.where(
        excess > 0, (root + excess) / 2, 2 * carbon * constant / (root + np.abs(excess))
    )
    by_ratio = carbon / free * 0.5 * (1 + (excess + 2 * constant) / root)
    by_constant = constant / free * 0.5 * ((2 * carbon - excess) / root - 1)
    return np.log10(free), by_ratio, by_constant
