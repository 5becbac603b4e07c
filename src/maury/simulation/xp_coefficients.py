"""SIMULATED coefficients of the mean BP and RP spectra of Gaia, in the basis of Gaia DR3.

For samples that have none: a simulated energy distribution (`maury.simulation.energy_distribution`)
behind a star's dust is seen through the response, dispersion and line spread of BP and RP, with as
many photo-electrons as its magnitudes say, and fitted with the 55 + 55 rotated Hermite functions of
Gaia DR3 (Carrasco et al. 2021, A&A 652, A86; De Angeli et al. 2023, A&A 674, A2; Montegriffo et al.
2023, A&A 674, A3). Coefficients are in photo-electrons a second, as published. Their noise is
correlated as the fit makes it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache, cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Self

import numpy as np

from maury.errors import ColumnError, ConfigError
from maury.io.arrays import AnyArray, Float64Array, Int64Array
from maury.labels.columns import Column, part_names
from maury.labels.columns import known as known_columns
from maury.simulation.energy_distribution import WAVE_NM, energy_distribution
from maury.simulation.xp_noise import relevant_bases
from maury.spectra.observables import extinction_law
from maury.survey.store import Survey
from maury.survey.writer import CHUNK_STARS, SurveyWriter

__all__ = ["Arm", "XpMeasurement", "add_simulated_xp", "measure_xp", "xp_columns"]

logger = logging.getLogger(__name__)

ZERO_POINTS_MAG = {"bp": 25.3385422158, "rp": 24.7478955012}
"""Magnitude of one photo-electron a second in DR3 (Riello et al. 2021, A&A 649, A3, table 5)."""
_MAGNITUDES = {"bp": "phot_bp_mean_mag", "rp": "phot_rp_mean_mag"}
_NEEDED = ("teff", "logg", "m_h")

_EXPOSURE_S = 4.42
"""Of one transit of one CCD (Gaia Collaboration, Prusti et al. 2016, A&A 595, A1)."""
_GATED_MAG = 11.5
"""Brighter stars are exposed for shorter, so that their pixels do not fill (De Angeli et al. 2023,
section 2)."""
_TRANSITS = {"bp": 30.0, "rp": 42.0}
"""Mean transits: 29 and 46 of the spectrum that `_BACKGROUND` was chosen by."""
_LEAST_TRANSITS = 15
"""Fewest of a published spectrum (De Angeli et al. 2023)."""
_BACKGROUND, _UNEVENNESS = 60.0, 0.004
"""Electrons a second and pixel that no star gave, and error of a sample in parts of the flux: with
these the errors of Gaia DR3 5937083312263887616 are met within 15 % to order 40."""
_OVERHANG = 2.0
"""Pixels by which samples reach beyond the ends of the range, as they do."""
_STEP = 0.25
"""Between the points at which a spectrum is fitted, in pixels."""
_FADE_ORDER, _FADE_POWER = 40.0, 8
"""Where coefficients fade out. The basis was rotated so that stars do not need its last functions
(De Angeli et al. 2023, section 3.4), where 55 functions are too few to tell the line spread: of the
published spectrum, sampled and projected again, they would hold up to 25 errors, and hold none.
Chosen."""
_BLOCK = 512
"""Stars at a time: their covariances take 12 MB."""


@dataclass(frozen=True, eq=False)
class XpMeasurement:
    """Coefficients of the mean spectra of some stars in one arm; NaN without a magnitude.

    Attributes
    ----------
    values, errors : (n_star, 55) float64
        Photo-electrons a second, and 1 sigma errors.
    relevant : (n_star,) float64
        Coefficients that are more than noise, as ``bp_n_relevant_bases``.
    """

    values: Float64Array
    errors: Float64Array
    relevant: Float64Array


@dataclass(frozen=True, eq=False)
class Arm:
    """BP or RP: from photons to coefficients.

    Attributes
    ----------
    name : str
        ``"bp"`` or ``"rp"``.
    response : (2, n) float64
        Wavelengths in nm, and electrons per photon.
    dispersion : (2, n) float64
        Wavelengths in nm, and the pixel (the pseudo-wavelength) that each falls on.
    ranges : (4,) float64
        Pixels of the first and last point of the basis, and the arguments of the Hermite functions
        there.
    inverse_bases : (55, 55) float64
        Of each Hermite function, what the line spread makes it of, in Hermite functions
        (Montegriffo et al. 2023, section 4).
    transformation : (55, 55) float64
        Rotates Hermite functions into basis functions.
    """

    name: str
    response: Float64Array
    dispersion: Float64Array
    ranges: Float64Array
    inverse_bases: Float64Array
    transformation: Float64Array

    @classmethod
    def load(cls, name: str) -> Self:
        """Return an arm of Gaia DR3, from the tables that ship with the package."""
        tensors = _instrument()
        own = [field.name for field in fields(cls)[1:]]
        return cls(name, *(tensors[f"{name}.{part}"].astype(np.float64) for part in own))

    @property
    def size(self) -> int:
        """Number of coefficients."""
        return len(self.transformation)

    @cached_property
    def points(self) -> Float64Array:
        """Pixels (n_point,) at which a spectrum is fitted."""
        first, last = self.ranges[0] - _OVERHANG, self.ranges[1] + _OVERHANG
        return np.arange(first, last + 0.5 * _STEP, _STEP)

    @cached_property
    def _hermite(self) -> Float64Array:
        """Hermite functions (n_coefficient, n_point)."""
        first, last, low, high = self.ranges
        argument = low + (self.points - first) * (high - low) / (last - first)
        return hermite_functions(argument, self.size)

    @cached_property
    def basis(self) -> Float64Array:
        """Basis functions (n_coefficient, n_point)."""
        return self.transformation @ self._hermite

    @cached_property
    def projection(self) -> Float64Array:
        """Coefficients (n_coefficient, n_wave) of flux density at each of `WAVE_NM`."""
        pixel, wave = self.dispersion[1], self.dispersion[0]
        order = np.argsort(pixel)
        at = np.interp(self.points, pixel[order], wave[order])
        # Linear between wavelengths; no light beyond the ends.
        parts = [np.interp(at, WAVE_NM, one, left=0, right=0) for one in np.eye(WAVE_NM.size)]
        sampled = np.stack(parts)
        # A photon of a longer wave has less energy: so much energy is more photons.
        electrons = (
            sampled.T
            * (at * np.interp(at, self.response[0], self.response[1], left=0, right=0))[:, None]
        )
        sharp = np.linalg.lstsq(self._hermite.T, electrons, rcond=None)[0]
        # What falls on the detector is a sum of sharp functions; each is seen as its broad one.
        broad = self.transformation @ np.linalg.solve(self.inverse_bases.T, sharp)
        fade = np.exp(-((np.arange(self.size) / _FADE_ORDER) ** _FADE_POWER))
        return np.asarray(broad * fade[:, None])

    @cached_property
    def electrons(self) -> Float64Array:
        """Electrons a second (n_wave,) in the whole spectrum of flux density at `WAVE_NM`."""
        return np.asarray(self.projection.T @ self.basis.sum(axis=1) * _STEP)

    def measure(
        self, energy: Float64Array, magnitude: Float64Array, rng: np.random.Generator
    ) -> XpMeasurement:
        """Observe stars.

        Parameters
        ----------
        energy : (n_star, n_wave) float64
            Flux density at `maury.simulation.energy_distribution.WAVE_NM`, in any unit.
        magnitude : (n_star,) float64
            G_BP or G_RP, which sets the flux.
        rng : numpy Generator
            Draws transits and noise.
        """
        flux = 10.0 ** (-0.4 * (magnitude - ZERO_POINTS_MAG[self.name]))
        true = (energy @ self.projection.T) * (flux / (energy @ self.electrons))[:, None]
        values, errors = np.full_like(true, np.nan), np.full_like(true, np.nan)
        known = np.flatnonzero(np.isfinite(true).all(axis=1))
        for start in range(0, known.size, _BLOCK):
            rows = known[start : start + _BLOCK]
            covariance = self._covariance(true[rows], magnitude[rows], rng)
            noise = rng.standard_normal((rows.size, self.size, 1))
            values[rows] = true[rows] + (np.linalg.cholesky(covariance) @ noise)[:, :, 0]
            errors[rows] = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
        return XpMeasurement(values, errors, relevant_bases(values, errors))

    def _covariance(
        self, true: Float64Array, magnitude: Float64Array, rng: np.random.Generator
    ) -> Float64Array:
        """Covariance (n_star, n_coefficient, n_coefficient) of the fit to the samples."""
        exposure = _EXPOSURE_S * np.minimum(1.0, 10.0 ** (0.4 * (magnitude - _GATED_MAG)))
        counts = np.maximum(rng.poisson(_TRANSITS[self.name], len(true)), _LEAST_TRANSITS)
        rate = np.maximum(true @ self.basis, 0.0)
        variance = (rate + _BACKGROUND) / exposure[:, None] + (_UNEVENNESS * rate) ** 2
        weight = counts[:, None] * _STEP / variance
        normal = np.einsum("kp,np,lp->nkl", self.basis, weight, self.basis, optimize=True)
        return np.asarray(np.linalg.inv(normal))


def hermite_functions(argument: Float64Array, count: int) -> Float64Array:
    """Hermite functions (count, n) of a unit norm, by their recurrence.

    Carrasco et al. 2021, A&A 652, A86, equation 5.
    """
    out = np.empty((count, argument.size))
    out[0] = np.pi**-0.25 * np.exp(-0.5 * argument**2)
    if count > 1:
        out[1] = np.sqrt(2.0) * argument * out[0]
    for n in range(2, count):
        out[n] = np.sqrt(2.0 / n) * argument * out[n - 1] - np.sqrt((n - 1) / n) * out[n - 2]
    return out


@cache
def _instrument() -> dict[str, AnyArray]:
    from safetensors.numpy import load

    file = resources.files("maury.simulation").joinpath("data/xp_instrument.safetensors")
    return load(file.read_bytes())


def measure_xp(
    stars: Mapping[str, Float64Array], rng: np.random.Generator
) -> dict[str, Float64Array]:
    """Simulate the XP coefficients of stars.

    Parameters
    ----------
    stars : mapping of str to (n_star,) float64
        ``teff``, ``logg``, ``m_h``, ``phot_bp_mean_mag``, ``phot_rp_mean_mag``; and ``alpha_m`` and
        ``a_v``, which are 0 where they are missing.
    rng : numpy Generator

    Returns
    -------
    dict of (n_star,) float64
        ``bp_00`` to ``bp_54`` and ``rp_00`` to ``rp_54`` in photo-electrons a second, their
        ``_error``, ``bp_n_relevant_bases`` and ``rp_n_relevant_bases``. NaN where a label or the
        magnitude of the arm is missing.

    Raises
    ------
    MissingExtra
        If the package of the extinction law is not installed.
    """
    labels = [np.asarray(stars[name], np.float64) for name in _NEEDED]
    alpha, a_v = (
        np.nan_to_num(np.asarray(stars.get(name, np.zeros(labels[0].size)), np.float64))
        for name in ("alpha_m", "a_v")
    )
    known = np.isfinite(labels).all(axis=0)
    energy = np.full((known.size, WAVE_NM.size), np.nan)
    if known.any():
        teff, logg, m_h = (label[known] for label in labels)
        bare = energy_distribution(teff, logg, m_h, alpha[known], rng=rng)
        dust = a_v[known, None] * extinction_law(WAVE_NM * 1e-3)
        energy[known] = bare * 10.0 ** (-0.4 * dust)
    columns: dict[str, Float64Array] = {}
    for name, magnitude in _MAGNITUDES.items():
        arm = Arm.load(name)
        found = arm.measure(energy, np.asarray(stars[magnitude], np.float64), rng)
        for k, part in enumerate(part_names(name, arm.size)):
            columns[part], columns[f"{part}_error"] = found.values[:, k], found.errors[:, k]
        columns[f"{name}_n_relevant_bases"] = found.relevant
    return columns


def xp_columns() -> tuple[Column, ...]:
    """Definitions of the columns that `measure_xp` gives."""
    out = []
    for name in _MAGNITUDES:
        what = f"of the {name.upper()} mean spectrum, SIMULATED"
        for part in part_names(name, Arm.load(name).size):
            out.append(Column(part, "s-1", "stat.fit.param", f"Coefficient {what}"))
            error = f"1 sigma error of the coefficient {what}"
            out.append(Column(f"{part}_error", "s-1", "stat.error;stat.fit.param", error))
        count = f"{name}_n_relevant_bases"
        out.append(Column(count, "", "meta.number", f"Coefficients above noise {what}"))
    return tuple(out)


def add_simulated_xp(
    survey: Survey, path: Path | str, *, seed: int = 0, overwrite: bool = False
) -> Survey:
    """Write a survey again with SIMULATED XP coefficients of its stars, marked as simulated.

    The energy distribution follows the labels of the survey (or, without labels, the truth that a
    simulated survey keeps), its dust from A_V, and the fluxes in BP and RP from the magnitudes.
    Spectra of one star have the same coefficients.

    Parameters
    ----------
    survey : Survey
    path : path-like
        Store to write.
    seed : int
        Of what labels do not tell, of transits and of noise.
    overwrite : bool
        Replace an existing store.

    Raises
    ------
    ColumnError
        If the survey has no Teff, log g, [M/H], G_BP or G_RP.
    ConfigError
        If it has XP coefficients already.
    MissingExtra
        If the package of the extinction law is not installed.
    OutputExists
        If `path` exists and `overwrite` is false.
    """
    added = xp_columns()
    _check(survey, {column.name for column in added})
    stars, star = _stars(survey)
    rng = np.random.default_rng(seed)
    simulated = {name: values[star] for name, values in measure_xp(stars, rng).items()}
    lacking = int(np.isnan(simulated["bp_00"]).sum())
    if lacking:
        logger.warning(
            "%d of %d spectra of %s get no XP coefficients: a label or a magnitude is missing",
            lacking,
            survey.n_star,
            survey.path,
        )
    return _rewritten(survey, path, added, simulated, seed=seed, overwrite=overwrite)


def _check(survey: Survey, added: set[str]) -> None:
    twice = added & set(survey.column_names)
    if twice:
        raise ConfigError(
            f"{survey.path} has XP coefficients already ({sorted(twice)[0]}, ...); simulate them "
            "for a survey that has none"
        )
    has = survey.column_names
    absent = [n for n in _NEEDED if n not in has and f"true_{n}" not in has]
    absent += [name for name in _MAGNITUDES.values() if name not in has]
    if absent:
        raise ColumnError(
            f"{survey.path} has no {', '.join(absent)}, of which XP coefficients are simulated; "
            "ingest them, or take another survey"
        )


def _stars(survey: Survey) -> tuple[dict[str, Float64Array], Int64Array]:
    """Return what is known of each star (by its first spectrum), and the star of each spectrum."""
    _, first, star = np.unique(survey.star_id, return_index=True, return_inverse=True)
    # In the order of the survey, so that the coefficients of a star do not depend on its name.
    order = np.argsort(np.argsort(first))
    first, star = np.sort(first), order[star]
    stars = {}
    for name in (*_NEEDED, "alpha_m", "a_v", *_MAGNITUDES.values()):
        chosen = f"true_{name}" if f"true_{name}" in survey.column_names else name
        if chosen in survey.column_names:
            stars[name] = survey.column(chosen)[first].astype(np.float64)
    return stars, star


def _rewritten(
    survey: Survey,
    path: Path | str,
    added: tuple[Column, ...],
    values: Mapping[str, Float64Array],
    *,
    seed: int,
    overwrite: bool,
) -> Survey:
    """Copy a survey with more columns."""
    from maury.version import __version__

    has = [name for name in survey.column_names if name not in ("id", "star_id")]
    defined = known_columns(survey.label_definitions)
    kept = [defined.get(name) or Column(name, "", "", "") for name in has]
    provenance: dict[str, Any] = {
        **survey.provenance,
        "xp_coefficients": {
            "origin": "simulated by maury",
            "maury_version": __version__,
            "seed": seed,
            "of": survey.provenance.get("origin", str(survey.path)),
            "simulated_spectra": survey.simulated,
        },
    }
    with SurveyWriter(
        path,
        n_star=survey.n_star,
        wave_aa=survey.wave_aa,
        medium=survey.medium,
        columns=[*kept, *added],
        simulated=True,
        labels=survey.label_definitions,
        provenance=provenance,
        overwrite=overwrite,
        resolving_power=survey.resolving_power,
        noise_correlation=survey.noise_correlation,
        at_rest=survey.at_rest,
    ) as writer:
        for batch in survey.batches(CHUNK_STARS):
            rows = slice(batch.start, batch.start + len(batch.spectra.flux))
            columns = {**batch.columns, **{name: one[rows] for name, one in values.items()}}
            writer.write(batch.start, batch.spectra.flux, batch.spectra.ivar, **columns)
    return Survey.open(path)
