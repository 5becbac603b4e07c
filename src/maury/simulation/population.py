"""Simulated stars: labels, photometry, parallax and extinction, correlated as in real surveys.

The density was fitted to the RAVE x APOGEE sample (Guiglion et al. 2020, A&A 644, A168) by
``scripts/fit_population.py``; ``data/population.safetensors`` holds its parameters, no star. It is
a chain of Gaussian mixtures, each conditional on what was drawn before:

1. the core: 5040 K / Teff, log g, [M/H], [alpha/M];
2. log parallax and extinction;
3. the residual of M_Ks from a polynomial in core and extinction;
4. the residuals of seven colours from such polynomials;
5. the residuals of [Fe/H] - [M/H], [X/M] and [Ni/Fe] from polynomials in the core.

Residuals are asinh-warped, as real ones have long tails, and kept within the range of real ones.
Microturbulence and the abundance offsets of six further elements scatter normally about
polynomials or zero.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from maury.io.arrays import AnyArray, Float64Array, IndexArray
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.catalogues import (
    magnitudes_from_colours,
    simulate_magnitude_errors,
    simulate_parallax_errors,
    simulate_positions,
)
from maury.simulation.galaxy import N_DIRECTIONS, Discs, galactocentric
from maury.simulation.mixtures import Mixture, Warp

NUISANCE_NAMES: tuple[str, ...] = ("vmic", "d_c", "d_n", "d_ca", "d_ti", "d_o", "d_cr")
"""Microturbulence (km/s), and offsets (dex) of elements from the pattern that the labels imply."""
ALL_NAMES: tuple[str, ...] = LABEL_NAMES + NUISANCE_NAMES
CORE = ("theta", "logg", "m_h", "alpha_m")
ABUNDANCES = ("fe_h-m_h", "si_fe-alpha_m", "al_fe-alpha_m", "mg_fe-alpha_m", "ni_fe")
_THETA_K = 5040.0
"""theta = 5040 K / Teff is the exponent of excitation per eV, which spectra follow."""
_A_V_SCALE_MAG = 0.1
"""Below it extinction counts linearly, above in its logarithm: chosen, not measured."""
_MAX_REDRAWS = 20
"""Hardly any star is outside twenty times running; such a one is put to the limit."""


class Selection(BaseModel):
    """How a survey's stars differ from the training sample.

    Attributes
    ----------
    weight_exponent : float
        The core's mixture weights are raised to this power: below 1, rare kinds become commoner.
    spread_fraction, spread : float
        That fraction of stars is drawn with the core's standard deviations times `spread`.
    fainter_mag, fainter_scatter_mag : float
        Mean and standard deviation of a shift in distance modulus. A parallax so reduced gets
        additional noise of its quoted error, as its noise does not shrink with distance.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight_exponent: float = Field(default=1.0, gt=0.0, le=2.0)
    spread_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    spread: float = Field(default=1.5, ge=1.0, le=3.0)
    fainter_mag: float = Field(default=0.0, ge=-5.0, le=5.0)
    fainter_scatter_mag: float = Field(default=0.0, ge=0.0, le=2.0)


TRAINING = Selection()
OBSERVED = Selection(
    weight_exponent=0.4,
    spread_fraction=0.4,
    spread=2.3,
    fainter_mag=0.7,
    fainter_scatter_mag=0.4,
)


@dataclass(frozen=True)
class Stars:
    """Simulated stars.

    Attributes
    ----------
    labels : (n_star, 16) float64
        In the order of `ALL_NAMES`: K, dex, km/s.
    magnitudes, magnitude_errors : (n_star, 8) float64
        Apparent, in the order of `maury.labels.columns.BANDS`.
    parallax_mas, parallax_error_mas, a_v, a_v_error : (n_star,) float64
    ra_deg, dec_deg : (n_star,) float64
    distance_kpc : (n_star,) float64 or None
        True distance, of stars that were placed in discs.
    disc : (n_star,) int or None
        Number of the disc.
    """

    labels: Float64Array
    magnitudes: Float64Array
    magnitude_errors: Float64Array
    parallax_mas: Float64Array
    parallax_error_mas: Float64Array
    a_v: Float64Array
    a_v_error: Float64Array
    ra_deg: Float64Array
    dec_deg: Float64Array
    distance_kpc: Float64Array | None = None
    disc: IndexArray | None = None

    def __len__(self) -> int:
        return int(self.labels.shape[0])


def a_v_from_latent(latent: Float64Array) -> Float64Array:
    """Extinction A_V (mag) of its latent variable; negative ones are the stars at exactly zero."""
    return np.asarray(_A_V_SCALE_MAG * np.expm1(np.maximum(latent, 0.0)))


def latent_from_a_v(a_v: Float64Array) -> Float64Array:
    """Latent variable of A_V > 0 (mag)."""
    return np.asarray(np.log1p(a_v / _A_V_SCALE_MAG))


def core_features(core: Float64Array, limits: Float64Array) -> Float64Array:
    """Monomials of the core, total degree <= 4.

    Parameters
    ----------
    core : (n, 4)
    limits : (2, 4)
        Lowest and highest value of each core column; beyond them the polynomials stay constant.

    Returns
    -------
    (n, n_feature) float64
    """
    scaled = 2.0 * (np.clip(core, limits[0], limits[1]) - limits[0]) / (limits[1] - limits[0]) - 1.0
    theta, logg, metals, alpha = scaled.T
    powers = [
        theta**i * logg**j * metals**k
        for i in range(5)
        for j in range(5 - i)
        for k in range(min(3, 5 - i - j))
    ]
    return np.column_stack([*powers, alpha, alpha * theta])


def photometry_features(features: Float64Array, a_v: Float64Array) -> Float64Array:
    """Core features (n, n_feature), then A_V (n,) and its products with two of them."""
    extinction = a_v[:, None] * features[:, [0, 1, _first_theta_column()]]
    return np.column_stack([features, extinction])


@cache
def _first_theta_column() -> int:
    """Column of the monomial theta: after all those without it."""
    return sum(min(3, 5 - j) for j in range(5))


class Population:
    """A sampler of simulated stars.

    Parameters
    ----------
    tensors : mapping of str to array
        As written by ``scripts/fit_population.py``.
    metadata : mapping of str to str
        ``citation``, ``n_star`` and the names of the columns.

    Attributes
    ----------
    metadata : dict of str to str
    checksum : str
        SHA-256 of the tensors.

    Examples
    --------
    >>> stars = Population.load().sample(5, np.random.default_rng(1))
    >>> stars.labels.shape, stars.magnitudes.shape
    ((5, 16), (5, 8))
    """

    def __init__(self, tensors: Mapping[str, AnyArray], metadata: Mapping[str, str]) -> None:
        self._tensors = {name: np.asarray(a, np.float64) for name, a in tensors.items()}
        self.metadata = dict(metadata)
        digest = hashlib.sha256()
        # Sorted, as the order of tensors in a file is not defined.
        for name, array in sorted(self._tensors.items()):
            digest.update(name.encode() + array.tobytes())
        self.checksum = digest.hexdigest()
        self._core = self._mixture("core", 0)
        self._extinction = self._mixture("extinction", 4)
        self._absolute_ks = self._mixture("absolute_ks", 6)
        self._colours = self._mixture("colours", 6)
        self._abundances = self._mixture("abundances", 4)

    @classmethod
    def load(cls) -> Population:
        """Return the population that ships with the package."""
        return _packaged()

    def _mixture(self, name: str, n_given: int) -> Mixture:
        part = {
            key: self._tensors[f"{name}.{key}"]
            for key in Mixture.__annotations__
            if key != "n_given"
        }
        return Mixture(n_given=n_given, **part)

    def sample(
        self,
        n_star: int,
        rng: np.random.Generator,
        *,
        selection: Selection = TRAINING,
        discs: Discs | None = None,
    ) -> Stars:
        """Draw stars.

        Parameters
        ----------
        n_star : int
        rng : numpy Generator
        selection : Selection
            How they differ from the training sample.
        discs : Discs, optional
            Places stars in the Galaxy, which decides their [M/H] and [alpha/M]; their
            surface gravities come from `selection`, whose shift in distance is not used.

        Returns
        -------
        Stars
        """
        core = self._draw_core(n_star, rng, selection)
        if discs is not None:
            return self._sample_in_discs(core, rng, discs)
        extinction = self._extinction.sample(core, rng)
        # Mixtures have tails beyond any real star.
        extinction = np.clip(extinction, *self._tensors["extinction.limits"])
        absolute_ks, colours = self._brightness(core, extinction, rng)
        features = core_features(core, self._tensors["core_limits"])
        labels = self._labels(core, features, rng)
        log_parallax, a_v = extinction[:, 0], a_v_from_latent(extinction[:, 1])
        apparent_ks = absolute_ks - 5.0 * (log_parallax - 2.0)
        return self._observe(labels, apparent_ks, colours, log_parallax, a_v, rng, selection)

    def _brightness(
        self, core: Float64Array, extinction: Float64Array, rng: np.random.Generator
    ) -> tuple[Float64Array, Float64Array]:
        """Draw M_Ks (n,) and colours (n, 7), both as seen through the dust."""
        features = core_features(core, self._tensors["core_limits"])
        photometry = photometry_features(features, a_v_from_latent(extinction[:, 1]))
        given = np.column_stack([core, extinction])
        brightness = self._residuals("absolute_ks", self._absolute_ks, given, rng)
        absolute_ks = photometry @ self._tensors["absolute_ks.polynomial"] + brightness
        given = np.column_stack([core, extinction[:, 1], brightness])
        colours = photometry @ self._tensors["colours.polynomial"]
        colours = colours + self._residuals("colours", self._colours, given, rng)
        return absolute_ks[:, 0], colours

    def _sample_in_discs(self, core: Float64Array, rng: np.random.Generator, discs: Discs) -> Stars:
        """Give stars of a core (n, 4) a place in the Galaxy, and the chemistry of that place."""
        n, limits = len(core), self._tensors["extinction.limits"]
        extinction = np.clip(self._extinction.sample(core, rng), *limits)
        absolute_ks, colours = self._brightness(core, extinction, rng)
        ra, dec = simulate_positions(n * N_DIRECTIONS, rng)
        sky = np.stack([ra, dec], axis=1).reshape(n, N_DIRECTIONS, 2)
        # The brightness that decides where a star is seen is that of its first metallicity; it is
        # drawn again below with the metallicity that its place implies.
        direction, distance, disc = discs.place(absolute_ks + colours[:, 0], sky, rng)
        ra, dec = sky[np.arange(n), direction].T
        core = core.copy()
        core[:, 2:] = discs.chemistry(galactocentric(ra, dec, distance), disc, rng)
        core = np.clip(core, *self._tensors["core_bounds"])
        # Temperature goes with metallicity on a giant branch, so it cannot stay as it was.
        core[:, 0] = self._redraw_theta(core, rng)
        log_parallax = -np.log10(distance)
        known = np.column_stack([core, np.clip(log_parallax, *limits[:, 0])])
        # Distance is known now, so extinction is drawn given it.
        a_v_latent = replace(self._extinction, n_given=5).sample(known, rng)
        extinction = np.clip(np.column_stack([known[:, 4], a_v_latent]), *limits)
        absolute_ks, colours = self._brightness(core, extinction, rng)
        features = core_features(core, self._tensors["core_limits"])
        labels = self._labels(core, features, rng)
        a_v = a_v_from_latent(extinction[:, 1])
        magnitudes = magnitudes_from_colours(absolute_ks - 5.0 * (log_parallax - 2.0), colours)
        # Distances are true here; elsewhere the mixture is of measured parallaxes, noise and all.
        error = simulate_parallax_errors(magnitudes[:, 0], rng)
        parallax = 1.0 / distance + error * rng.standard_normal(n)
        stars = _stars(labels, magnitudes, (parallax, error), a_v, (ra, dec), rng)
        return replace(stars, distance_kpc=distance, disc=disc)

    def _redraw_theta(self, core: Float64Array, rng: np.random.Generator) -> Float64Array:
        """Draw 5040 K / Teff (n,) of stars whose log g, [M/H] and [alpha/M] are given."""
        order = np.array([1, 2, 3, 0])
        mixture = Mixture(
            3,
            self._core.weights,
            self._core.means[:, order],
            # A mixture is conditional on its first columns, so theta goes last.
            self._core.covariances[:, order][:, :, order],
            self._core.centre[order],
            self._core.scale[order],
        )
        theta = mixture.sample(core[:, 1:], rng)[:, 0]
        return np.asarray(np.clip(theta, *self._tensors["core_limits"][:, 0]))

    def _residuals(
        self, name: str, mixture: Mixture, given: Float64Array, rng: np.random.Generator
    ) -> Float64Array:
        warp = Warp(*(self._tensors[f"{name}.warp_{key}"] for key in Warp.__annotations__))
        residuals = warp.unwarp(mixture.sample(given, rng))
        return np.asarray(np.clip(residuals, *self._tensors[f"{name}.limits"]))

    def _draw_core(
        self, n_star: int, rng: np.random.Generator, selection: Selection
    ) -> Float64Array:
        """Draw the core within the limits, drawing again what falls outside."""
        tensors = self._tensors
        limits = (
            tensors["core_limits"] if selection.spread_fraction == 0 else tensors["core_bounds"]
        )
        # An exponent below 1 makes rare kinds of stars more frequent.
        weights = self._core.weights**selection.weight_exponent
        mixture = Mixture(
            0, weights / weights.sum(), *(getattr(self._core, key) for key in _AFTER_WEIGHTS)
        )
        core = np.empty((n_star, len(CORE)))
        missing = np.arange(n_star)
        for _ in range(_MAX_REDRAWS):
            wide = rng.random(missing.size) < selection.spread_fraction
            spread = np.where(wide, selection.spread, 1.0)
            core[missing] = mixture.sample(np.empty((missing.size, 0)), rng, spread=spread)
            drawn = core[missing]
            missing = missing[((drawn < limits[0]) | (drawn > limits[1])).any(axis=1)]
        return np.clip(core, limits[0], limits[1])

    def _labels(
        self, core: Float64Array, features: Float64Array, rng: np.random.Generator
    ) -> Float64Array:
        tensors = self._tensors
        pattern = features @ tensors["abundances.polynomial"]
        pattern = pattern + self._residuals("abundances", self._abundances, core, rng)
        theta, logg, m_h, alpha = core.T
        iron, silicon, aluminium, magnesium, nickel = pattern.T
        nuisance = self._nuisances(features, rng)
        nine = (_THETA_K / theta, logg, m_h, m_h + iron, alpha)
        elements = (alpha + silicon, alpha + aluminium, alpha + magnesium, nickel)
        labels = np.column_stack([*nine, *elements, nuisance])
        lower, upper = tensors["label_bounds"]
        return np.asarray(np.clip(labels, lower, upper))

    def complete(self, labels: ArrayLike, rng: np.random.Generator | None = None) -> Float64Array:
        """Add microturbulence and abundance offsets to the nine labels of stars.

        Parameters
        ----------
        labels : (n_star, 9) array_like
            In the order of `maury.labels.definitions.LABELS`.
        rng : numpy Generator, optional
            Draws the scatter; without it every star has the mean of its kind.

        Returns
        -------
        (n_star, 16) float64
            In the order of `ALL_NAMES`, not kept within any range.
        """
        nine = np.asarray(labels, dtype=np.float64)
        core = np.column_stack([_THETA_K / nine[:, 0], nine[:, [1, 2, 4]]])
        features = core_features(core, self._tensors["core_limits"])
        return np.column_stack([nine, self._nuisances(features, rng)])

    def _nuisances(self, features: Float64Array, rng: np.random.Generator | None) -> Float64Array:
        """Columns of `NUISANCE_NAMES`, (n_star, 7)."""
        tensors, n = self._tensors, len(features)
        vmic = features @ tensors["vmic.polynomial"][:, 0]
        offsets = np.tile(tensors["offsets.mean"], (n, 1))
        if rng is not None:
            vmic = vmic + tensors["vmic.sigma"] * rng.standard_normal(n)
            scatter = rng.standard_normal(offsets.shape)
            offsets = offsets + tensors["offsets.sigma"] * scatter
        return np.column_stack([vmic, offsets])

    def _observe(
        self,
        labels: Float64Array,
        apparent_ks: Float64Array,
        colours: Float64Array,
        log_parallax: Float64Array,
        a_v: Float64Array,
        rng: np.random.Generator,
        selection: Selection,
    ) -> Stars:
        n = apparent_ks.size
        shift = selection.fainter_mag + selection.fainter_scatter_mag * rng.standard_normal(n)
        magnitudes = magnitudes_from_colours(apparent_ks + shift, colours)
        parallax_error = simulate_parallax_errors(magnitudes[:, 0], rng)
        parallax = 10.0 ** (log_parallax - 0.2 * shift)
        extra = np.sqrt(np.clip(1.0 - 10.0 ** (-0.4 * shift), 0.0, None))
        parallax = parallax + extra * parallax_error * rng.standard_normal(n)
        place = simulate_positions(n, rng)
        return _stars(labels, magnitudes, (parallax, parallax_error), a_v, place, rng)


def _stars(
    labels: Float64Array,
    magnitudes: Float64Array,
    parallax_mas: tuple[Float64Array, Float64Array],
    a_v: Float64Array,
    place_deg: tuple[Float64Array, Float64Array],
    rng: np.random.Generator,
) -> Stars:
    """Return stars with the errors of their magnitudes and extinctions."""
    return Stars(
        labels=labels,
        magnitudes=magnitudes,
        magnitude_errors=simulate_magnitude_errors(magnitudes, rng),
        parallax_mas=parallax_mas[0],
        parallax_error_mas=parallax_mas[1],
        a_v=a_v,
        a_v_error=0.2 * np.exp(0.25 * rng.standard_normal(len(labels))),
        ra_deg=place_deg[0],
        dec_deg=place_deg[1],
    )


_AFTER_WEIGHTS = ("means", "covariances", "centre", "scale")


@cache
def _packaged() -> Population:
    from safetensors.numpy import load

    raw = resources.files("maury.simulation").joinpath("data/population.safetensors").read_bytes()
    length = int.from_bytes(raw[:8], "little")
    metadata = json.loads(raw[8 : 8 + length]).get("__metadata__", {})
    return Population(load(raw), metadata)
