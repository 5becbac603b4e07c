"""Clean spectra of a survey's own stars: what a star, or a companion of it, looks like unnoised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.spatial import cKDTree

from maury.errors import ColumnError, ConfigError
from maury.evaluation import perturbations as change
from maury.io.arrays import Float32Array, Float64Array, StrArray
from maury.labels.columns import BANDS
from maury.labels.statistics import robust_scale
from maury.spectra.batch import Batch
from maury.spectra.noise import RAVE_CORRELATION
from maury.spectra.observable_groups import column
from maury.spectra.observables import absolute_magnitude, band_extinction
from maury.spectra.pixels import continuum_level, fill_bad_pixels
from maury.survey.store import Survey

_LABELS = ("teff", "logg", "m_h", "alpha_m")
"""What a spectrum depends on most."""
_MOST_STARS = 8000
"""Labelled spectra to read: more change no mean, and these are 60 MB at 912 pixels."""
_NEAREST = 8
"""Spectra of which a mean is taken: a signal-to-noise of 150 from spectra of 54."""
_SEARCHED = 24
"""Neighbours among which are those: other spectra of the star itself, up to nine, do not count."""
_METALLICITY_DEX = 0.15
"""Two stars of a pair have one metallicity, up to three times its error."""


@dataclass(frozen=True, eq=False)
class Library:
    """Labelled spectra of a survey at rest, to take clean spectra and companions from.

    Attributes
    ----------
    batch : Batch
        Labelled rows.
    flux, weight : (n, n_pixel) float32
        Theirs, continuum = 1; bad pixels are filled, and weigh nothing.
    place : (n, n_label) float64
        Their labels, in robust units of the survey.
    centre, scale : (n_label,) float64
        Which these are.
    labels : tuple of str
    correlation : tuple of float
        Of the noise, at lags of 1, 2, ... pixels.
    resolving_power : float or None
        None if it is not known.
    """

    batch: Batch
    flux: Float32Array
    weight: Float32Array
    place: Float64Array
    centre: Float64Array
    scale: Float64Array
    labels: tuple[str, ...]
    correlation: tuple[float, ...]
    resolving_power: float | None

    @classmethod
    def of(cls, survey: Survey) -> Self:
        """Read the labelled spectra of a survey.

        Raises
        ------
        ColumnError
            If it has none of the labels Teff, log g, [M/H] and [alpha/M], or no star with all.
        ConfigError
            If its spectra are not at rest, where lines of two stars do not meet.
        """
        if survey.at_rest is False:
            raise ConfigError(
                f"the spectra of {survey.path} are not at rest, so that those of its stars cannot "
                "be averaged; ingest them in the rest frame"
            )
        names = tuple(name for name in _LABELS if name in survey.label_names)
        labels = survey.labels(names) if names else np.full((len(survey), 1), np.nan)
        rows = np.flatnonzero(np.isfinite(labels).all(axis=1))
        if rows.size == 0:
            raise ColumnError(
                f"{survey.path} has no star with Teff, log g and [M/H], of which clean spectra "
                "could be made; give a survey with labels"
            )
        rows = rows[:: -(-rows.size // _MOST_STARS)]
        batch = survey.rows(rows)
        flux, ivar = batch.spectra.flux, batch.spectra.ivar
        level = continuum_level(flux, ivar)[:, None].astype(np.float32)
        centre, scale = robust_scale(labels[rows])
        correlation = survey.noise_correlation
        return cls(
            batch,
            (fill_bad_pixels(flux, ivar) / level).astype(np.float32),
            ivar * level**2,
            (labels[rows] - centre) / scale,
            centre,
            scale,
            names,
            RAVE_CORRELATION if correlation is None else correlation,
            survey.resolving_power,
        )

    def clean(self, batch: Batch) -> Float32Array:
        """Mean spectra (n_star, n_pixel) of the eight other stars that are nearest in labels.

        A star without all labels gets its own spectrum, noise and all.
        """
        place = np.column_stack([column(batch, name) for name in self.labels])
        own = fill_bad_pixels(batch.spectra.flux, batch.spectra.ivar) / change.level(batch)
        out = np.asarray(own, dtype=np.float32)
        known = np.flatnonzero(np.isfinite(place).all(axis=1))
        unit = (place[known] - self.centre) / self.scale
        out[known] = self._mean(unit, star_names(batch)[known])
        return out

    def _mean(self, unit: Float64Array, star: StrArray) -> Float32Array:
        near = np.arange(1, min(_SEARCHED, len(self.place)) + 1)
        _, found = cKDTree(self.place).query(unit, k=near)
        # The star itself sorts last, and counts only where there is nobody else.
        same = star_names(self.batch)[found] == star[:, None]
        order = np.argsort(same, axis=1, kind="stable")[:, :_NEAREST]
        chosen = np.take_along_axis(found, order, axis=1)
        # A pixel that all have lost takes the mean of what filled it.
        weight = self.weight[chosen] + np.finfo(np.float32).tiny
        total = (weight * self.flux[chosen]).sum(axis=1)
        return np.asarray(total / weight.sum(axis=1))

    def paired(
        self,
        batch: Batch,
        rng: np.random.Generator,
        *,
        light: tuple[float, float],
        speed_kms: tuple[float, float],
    ) -> Batch:
        """Return those stars that have a companion among the labelled ones, with its light.

        A companion is cooler, of the same metallicity, and has, at the same distance, between
        `light` of the star's own light in the band nearest to the spectra. Its light is added in
        every band and in the spectrum, at a velocity between `speed_kms`, of either sign, from the
        star's.

        Raises
        ------
        ColumnError
            If the survey lacks that band, the parallax, Teff or [M/H].
        """
        absolute, own = self._absolute(self.batch), self._absolute(batch)
        middle = self.batch.spectra.wave_aa.mean() / 1e4
        near = int(np.argmin([abs(one.effective_wavelength_um - middle) for one in BANDS]))
        fainter = absolute[:, near] - own[:, near, None]
        brightest, faintest = -2.5 * np.log10(light[1]), -2.5 * np.log10(light[0])
        alike = (fainter > brightest) & (fainter < faintest)
        alike &= column(self.batch, "teff") < column(batch, "teff")[:, None]
        apart = column(self.batch, "m_h") - column(batch, "m_h")[:, None]
        alike &= np.abs(apart) < _METALLICITY_DEX
        rows = np.flatnonzero(alike.any(axis=1))
        if rows.size == 0:
            raise ColumnError(
                "no star has a companion, which takes parallax, magnitudes, Teff and [M/H]"
            )
        # Light ratios as uniform as there are stars for it, not as many faint ones as there are.
        apart = np.abs(10.0 ** (-0.4 * fainter[rows]) - rng.uniform(*light, rows.size)[:, None])
        partner = np.argmin(np.where(alike[rows], apart, np.inf), axis=1)
        ratio = 10.0 ** (-0.4 * fainter[rows, partner])
        speed = rng.uniform(*speed_kms, rows.size) * rng.choice([-1.0, 1.0], rows.size)
        single = self._with_light(batch[rows], absolute[partner] - own[rows])
        second = change.broadened(
            self.batch.spectra.wave_aa, self.clean(self.batch[partner]), rv_kms=speed
        )
        return change.blended(
            single, rng, self.clean(single), second, light=ratio, correlation=self.correlation
        )

    @staticmethod
    def _with_light(batch: Batch, fainter: Float64Array) -> Batch:
        """Add light that is so many magnitudes fainter in each band; none where it is unknown."""
        both = change.added_magnitude(np.zeros(fainter.shape), fainter)
        shift = {one.name: np.nan_to_num(both[:, k]) for k, one in enumerate(BANDS)}
        return change.shifted_bands(batch, shift)

    @staticmethod
    def _absolute(batch: Batch) -> Float64Array:
        """Absolute magnitudes (n_star, n_band) without extinction, where A_V is known."""
        names = [one.name for one in BANDS]
        red = band_extinction(np.nan_to_num(column(batch, "a_v")), names)
        apparent = np.column_stack([column(batch, one.column) for one in BANDS])
        return absolute_magnitude(apparent, column(batch, "parallax")[:, None]) - red


def star_names(batch: Batch) -> StrArray:
    """Names of the stars; of the spectrum where a star has none."""
    star, own = (np.asarray(batch.get(name)).astype(str) for name in ("star_id", "id"))
    return np.where((star == "") | (star == "nan"), own, star)
