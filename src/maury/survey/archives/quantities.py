"""Quantities that a cut may look at, made of several columns by a published formula."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from maury.errors import suggestion
from maury.io.arrays import Float64Array


@dataclass(frozen=True)
class Quantity:
    """A number of each row that no column holds.

    Attributes
    ----------
    columns : tuple of str
        What it is made of.
    of : callable
        ``of(*columns)`` gives the quantity, (n_row,) float64, NaN where it is not known.
    """

    columns: tuple[str, ...]
    of: Callable[..., Float64Array]


@dataclass(frozen=True)
class FluxExcess:
    """Flux excess of BP and RP over G of normal stars (Riello et al. 2021, A&A 649, A3).

    Attributes
    ----------
    edges : (float, float)
        Of BP - RP, between the polynomials (table 2).
    polynomials : tuple of tuple of float
        Excess against BP - RP, lowest power first (table 2).
    scatter : (float, float, float)
        a, b and m of the 1 sigma scatter a + b G^m of isolated stars (eq. 18).
    """

    edges: tuple[float, float] = (0.5, 4.0)
    polynomials: tuple[tuple[float, ...], ...] = (
        (1.154360, 0.033772, 0.032277),
        (1.162004, 0.011464, 0.049255, -0.005879),
        (1.057572, 0.140537),
    )
    scatter: tuple[float, float, float] = (0.0059898, 8.817481e-12, 7.618399)


def flux_excess_sigmas(
    excess: Float64Array, g_mag: Float64Array, bp_mag: Float64Array, rp_mag: Float64Array
) -> Float64Array:
    """Return by how many sigma the flux of BP and RP is off that of a normal star of its colour.

    C* = C - f(BP - RP), eq. 6 of Riello et al. (2021), over its scatter at this G, eq. 18. A
    neighbour in the aperture of BP and RP, a nebula or a variable star shows in it.

    Parameters
    ----------
    excess, g_mag, bp_mag, rp_mag : (n,) float64
        ``phot_bp_rp_excess_factor`` and the mean magnitudes of Gaia (E)DR3.

    Returns
    -------
    sigmas : (n,) float64, not negative
    """
    law, colour = FluxExcess(), bp_mag - rp_mag
    # All three at every star: cheaper than to sort stars by colour.
    pieces = [np.polynomial.polynomial.polyval(colour, p) for p in law.polynomials]
    expected = np.select([colour < law.edges[0], colour < law.edges[1]], pieces[:2], pieces[2])
    base, factor, power = law.scatter
    return np.asarray(np.abs(excess - expected) / (base + factor * g_mag**power))


QUANTITIES: Mapping[str, Quantity] = MappingProxyType(
    {
        "gaia_flux_excess_sigmas": Quantity(
            (
                *("phot_bp_rp_excess_factor", "phot_g_mean_mag"),
                *("phot_bp_mean_mag", "phot_rp_mean_mag"),
            ),
            flux_excess_sigmas,
        ),
    }
)


def known_quantity(name: str) -> str:
    """Return a name of `QUANTITIES`, or raise `ValueError` with the nearest."""
    if name not in QUANTITIES:
        known = ", ".join(QUANTITIES)
        raise ValueError(f"no such quantity{suggestion(name, QUANTITIES)} (known: {known})")
    return name
