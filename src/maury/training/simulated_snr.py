"""Spectra of labelled stars re-simulated at an S/N of one's choice.

What methods reach at an S/N that the survey does not have can only be seen on simulated spectra.
They are those of the emulator, made like the spectra of the survey by
`maury.simulation.training_stars.TrainingStarSimulator`, with microturbulence, abundances beside the
labels, broadening, velocity, Ca II cores and continuum drawn anew for each star; labels and
photometry are the stars' own.
"""

from __future__ import annotations

from types import MappingProxyType

import numpy as np

from maury.errors import ConfigError
from maury.io.arrays import Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES, LABELS
from maury.simulation.conditions import survey_conditions
from maury.simulation.emulator import Emulator
from maury.simulation.population import Population
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.batch import Batch
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey
from maury.training.simulated import SimulatedTraining

__all__ = ["fit_star_simulator", "resimulate"]


_LEAST_STARS = 30
"""As many training stars as the default preset needs to calibrate theory."""
_BLOCK = 512
"""Stars simulated at a time: bounds the memory of theory on the fine grid; chosen."""


def fit_star_simulator(survey: Survey, rows: Int64Array) -> TrainingStarSimulator:
    """Calibrate theory on some labelled rows of a survey.

    Raises
    ------
    ConfigError
        If too few of them have all nine labels, or the emulator lacks some of their pixels, or the
        resolving power of the survey is not known.
    """
    truth = survey.labels(LABELS)[rows]
    whole = rows[np.isfinite(truth).all(axis=1)]
    if whole.size < _LEAST_STARS:
        raise ConfigError(
            f"simulated S/N needs at least {_LEAST_STARS} training stars with the labels "
            f"{', '.join(LABEL_NAMES)}, got {whole.size}; compare without --snr"
        )
    preparation = Preparation(observables=())
    observing = survey_conditions(SimulatedTraining().observing, survey, preparation)
    inputs = preparation.apply(survey.rows(whole))
    TrainingStarSimulator.require_grid(inputs.wave_aa, inputs.medium, observing)
    # A spectrum with most pixels missing says little of theory.
    good = (inputs.ivar > 0).mean(axis=1) > 0.5
    return TrainingStarSimulator.fit(
        inputs.wave_aa,
        inputs.flux[good],
        inputs.ivar[good],
        labels=survey.labels(LABELS)[whole[good]],
        observables=np.zeros((int(good.sum()), 0)),
        observing=observing,
        medium=inputs.medium,
    )


def resimulate(
    batch: Batch, star_simulator: TrainingStarSimulator, snr: float, *, rng: np.random.Generator
) -> tuple[Batch, Float64Array]:
    """Simulate the spectra of a batch at one S/N.

    Parameters
    ----------
    batch : Batch
        On the grid of `star_simulator`.
    star_simulator : TrainingStarSimulator
    snr : float
        Per pixel, at the continuum.
    rng : numpy Generator

    Returns
    -------
    batch : Batch
        With these spectra, and `snr`. A star that lacks a label has no good pixel.
    truth : (n_star, 9) float64
        Labels of the spectra: the stars' own, within the bounds of the emulator.
    """
    emulator, population = Emulator.load(), Population.load()
    truth = np.stack([batch.column(name) for name in LABEL_NAMES], axis=1).astype(np.float64)
    known = np.flatnonzero(np.isfinite(truth).all(axis=1))
    flux = np.ones(batch.spectra.flux.shape, dtype=np.float32)
    ivar = np.zeros_like(flux)
    out = np.full_like(truth, np.nan)
    for start in range(0, known.size, _BLOCK):
        rows = known[start : start + _BLOCK]
        full = emulator.clip(population.complete(truth[rows], rng))
        out[rows] = full[:, : len(LABEL_NAMES)]
        theory = star_simulator.spectrograph.disperse(emulator.flux(full), full, rng).flux
        sharp = star_simulator.calibration.apply(theory, out[rows])
        # Chromospheres add light in the cores of Ca II; an error of the continuum multiplies all of
        # it.
        for modes, relative in (
            (star_simulator.calibration.core_modes, False),
            (star_simulator.calibration.continuum_modes, True),
        ):
            drawn = rng.standard_normal((rows.size, len(modes)), dtype=np.float32) @ modes
            sharp = sharp * (np.float32(1.0) + drawn) if relative else sharp + drawn
        flux[rows], ivar[rows] = star_simulator.spectrograph.degrade(
            sharp, np.full(rows.size, snr), rng
        )
    columns = {**batch.columns, "snr": np.full(len(batch), snr)}
    spectra = batch.spectra.replace(flux=flux, ivar=ivar)
    # Theory is at rest, whatever velocity the star has that it stands for.
    return Batch(spectra, MappingProxyType(columns), batch.start, at_rest=True), out
