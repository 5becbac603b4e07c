"""Where stars are in the Galaxy, and discs of a stated structure and chemistry.

The frame is astropy's Galactocentric one: the Sun lies at x = -8.122 kpc (GRAVITY Collaboration
2018, A&A 615, L15) and z = 20.8 pc (Bennett & Bovy 2019, MNRAS 482, 1417). It is an affine map of
ICRS, taken from astropy once, so that millions of places cost one matrix product.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from maury.io.arrays import Float64Array, IndexArray

R_SUN_KPC = 8.122
"""GRAVITY Collaboration (2018), as in astropy's Galactocentric frame."""
Z_SUN_KPC = 0.0208
"""Bennett & Bovy (2019), as in the same frame."""

N_DIRECTIONS = 16
"""Directions among which each star is placed."""
_STEPS = 48
"""Steps in distance; each is drawn anew within its stretch, so that no star sees a grid."""
_FURTHEST_KPC = 12.0
"""Chosen, not measured: beyond, discs of a few kpc hold hardly any star."""


def galactocentric(ra_deg: ArrayLike, dec_deg: ArrayLike, distance_kpc: ArrayLike) -> Float64Array:
    """Galactocentric x, y, z in kpc, shape (..., 3); the Sun is at x = -8.122.

    Parameters
    ----------
    ra_deg, dec_deg, distance_kpc : (...) float
        ICRS, in degrees and kpc; broadcast against each other.
    """
    rotation, offset = _affine()
    direction = unit_vectors(ra_deg, dec_deg) @ rotation.T
    return np.asarray(offset + np.asarray(distance_kpc, np.float64)[..., None] * direction)


def unit_vectors(ra_deg: ArrayLike, dec_deg: ArrayLike) -> Float64Array:
    """ICRS unit vectors, shape (..., 3), of directions in degrees."""
    ra, dec = np.radians(np.asarray(ra_deg, np.float64)), np.radians(np.asarray(dec_deg))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def cylindrical(place_kpc: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Galactocentric radius R and height Z in kpc, both (...), of places (..., 3)."""
    return np.hypot(place_kpc[..., 0], place_kpc[..., 1]), place_kpc[..., 2]


@cache
def _affine() -> tuple[Float64Array, Float64Array]:
    """Rotation (3, 3) and offset (3,) from ICRS to Galactocentric kpc."""
    from astropy import units
    from astropy.coordinates import ICRS, CartesianRepresentation

    corners = np.vstack([np.zeros(3), np.eye(3)]).T * units.kpc
    there = ICRS(CartesianRepresentation(corners)).transform_to(astropy_frame()).cartesian
    places = np.asarray(there.xyz.to_value(units.kpc)).T
    return np.asarray((places[1:] - places[0]).T), np.asarray(places[0])


def astropy_frame() -> object:
    """Return the frame as an `astropy.coordinates.Galactocentric`.

    The Sun's velocity is astropy's of 2018: (12.9, 245.6, 7.78) km/s (Drimmel & Poggio 2018, RNAAS
    2, 210).
    """
    from astropy import units
    from astropy.coordinates import CartesianDifferential, Galactocentric

    velocity = CartesianDifferential([12.9, 245.6, 7.78] * (units.km / units.s))
    return Galactocentric(
        galcen_distance=R_SUN_KPC * units.kpc, z_sun=Z_SUN_KPC * units.kpc, galcen_v_sun=velocity
    )


class Disc(BaseModel):
    """A disc: double exponential density, metallicity linear in R and abs(Z).

    Attributes
    ----------
    scale_length_kpc, scale_height_kpc : float
    local_share : float
        Density in the plane at the Sun's radius, relative to the other discs.
    m_h, m_h_scatter : float
        Mean [M/H] there, and its standard deviation anywhere, in dex.
    radial_gradient, vertical_gradient : float
        Of the mean [M/H], in dex per kpc of R and of abs(Z).
    alpha, alpha_slope, alpha_scatter : float
        Mean [alpha/M] at [M/H] = 0, its change per dex of [M/H], and its standard deviation.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    scale_length_kpc: float = Field(gt=0.0)
    scale_height_kpc: float = Field(gt=0.0)
    local_share: float = Field(gt=0.0)
    m_h: float
    m_h_scatter: float = Field(ge=0.0)
    radial_gradient: float
    vertical_gradient: float
    alpha: float
    alpha_slope: float
    alpha_scatter: float = Field(ge=0.0)


THIN_DISC = Disc(
    scale_length_kpc=2.6,
    scale_height_kpc=0.3,
    local_share=1.0,
    m_h=0.0,
    m_h_scatter=0.17,
    radial_gradient=-0.06,
    vertical_gradient=-0.11,
    alpha=0.03,
    alpha_slope=-0.12,
    alpha_scatter=0.025,
)
THICK_DISC = Disc(
    scale_length_kpc=2.0,
    scale_height_kpc=0.9,
    local_share=0.04,
    m_h=-0.45,
    m_h_scatter=0.22,
    radial_gradient=0.0,
    vertical_gradient=-0.05,
    alpha=0.18,
    alpha_slope=-0.12,
    alpha_scatter=0.03,
)


class Discs(BaseModel):
    """Two discs, and the magnitudes between which a survey sees their stars.

    Scale lengths, heights and the local share are those of Bland-Hawthorn & Gerhard (2016, ARA&A
    54, 529, section 5.1). The radial gradient of the thin disc is that of Cepheids (Genovali et al.
    2014, A&A 566, A37); the thick disc has none, after the flatter gradients of high-alpha stars
    (Hayden et al. 2014, AJ 147, 116). Vertical gradients are of the size of those of RAVE giants
    (Boeche et al. 2014, A&A 568, A71). The two sequences of [alpha/M] are of the shape that APOGEE
    sees (Hayden et al. 2015, ApJ 808, 132).

    Attributes
    ----------
    discs : tuple of Disc
    bright_mag, faint_mag : float
        Apparent G between which stars are seen. Stars are placed by the brightness that they had
        with the metallicity first drawn, so the limits are soft by some tenths of a magnitude, but
        bias no metallicity.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    discs: tuple[Disc, ...] = (THIN_DISC, THICK_DISC)
    bright_mag: float = 9.0
    faint_mag: float = 13.0

    def density(self, radius_kpc: ArrayLike, height_kpc: ArrayLike) -> Float64Array:
        """Density of each disc, shape (n_disc, ...); the local shares in the plane at the Sun."""
        radius, height = np.asarray(radius_kpc, np.float64), np.abs(np.asarray(height_kpc))
        return np.stack(
            [
                one.local_share
                * np.exp(
                    -(radius - R_SUN_KPC) / one.scale_length_kpc - height / one.scale_height_kpc
                )
                for one in self.discs
            ]
        )

    def place(
        self, absolute_g: Float64Array, sky: Float64Array, rng: np.random.Generator
    ) -> tuple[IndexArray, Float64Array, IndexArray]:
        """Draw where each star is, among given directions, and of which disc it is.

        Parameters
        ----------
        absolute_g : (n,) float64
            Absolute G magnitudes.
        sky : (n, n_direction, 2) float64
            Right ascension and declination of directions, uniform over the survey's part of the
            sky.
        rng : numpy Generator

        Returns
        -------
        direction : (n,) int
            Number of the direction.
        distance_kpc : (n,) float64
            Between the survey's magnitudes; density times distance squared, on a grid of 48 steps.
        disc : (n,) int
        """
        near, far = (
            np.minimum(10.0 ** (0.2 * (limit - absolute_g) - 2.0), _FURTHEST_KPC)
            for limit in (self.bright_mag, self.faint_mag)
        )
        # A star too bright for the survey everywhere still gets a place.
        near = np.minimum(near, 0.5 * far)
        u = (np.arange(_STEPS) + rng.random(_STEPS)) / _STEPS
        distance = near[:, None] * (far / near)[:, None] ** u
        place = galactocentric(sky[:, :, None, 0], sky[:, :, None, 1], distance[:, None, :])
        density = self.density(*cylindrical(place))
        # Steps are equal in the logarithm of the distance, hence the third power.
        weight = density.sum(axis=0) * distance[:, None, :] ** 3
        cell = _draw(weight.reshape(len(distance), -1), rng)
        direction, step = np.divmod(cell, _STEPS)
        row = np.arange(len(distance))
        disc = _draw(density[:, row, direction, step].T, rng)
        return direction, distance[row, step], disc

    def chemistry(
        self, place_kpc: Float64Array, disc: IndexArray, rng: np.random.Generator
    ) -> Float64Array:
        """Draw [M/H] and [alpha/M], shape (n, 2), of stars at places (n, 3) in discs (n,)."""
        radius, height = cylindrical(place_kpc)
        names = ["m_h", "m_h_scatter", "radial_gradient", "vertical_gradient"]
        names += ["alpha", "alpha_slope", "alpha_scatter"]
        table = np.array([[getattr(one, name) for name in names] for one in self.discs])[disc].T
        m_h, m_h_scatter, radial, vertical, alpha, slope, alpha_scatter = table
        first, second = rng.standard_normal((2, len(disc)))
        metals = m_h + radial * (radius - R_SUN_KPC) + vertical * np.abs(height)
        metals = metals + m_h_scatter * first
        return np.column_stack([metals, alpha + slope * metals + alpha_scatter * second])


def _draw(weight: Float64Array, rng: np.random.Generator) -> IndexArray:
    """Draw a column (n,) of each row by weights (n, m)."""
    cumulative = weight.cumsum(axis=1)
    u = rng.random((len(weight), 1)) * cumulative[:, -1:]
    return np.asarray((cumulative < u).sum(axis=1))
