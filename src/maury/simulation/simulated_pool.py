"""Simulated spectra to draw batches from, each observed anew: scatter, reduction, noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from maury.io.arrays import Float32Array, Float64Array, IndexArray
from maury.simulation.disturbances import Disturbances, disturb_flux, disturb_observables
from maury.simulation.learnt_theory import drawn_modes
from maury.simulation.observing import Spectrograph
from maury.simulation.theory_calibration import TheoryCalibration
from maury.spectra.observable_map import ObservableMap

__all__ = ["BatchNoise", "SimulatedPool"]

_LOW_SNR = (10.0, 100.0)
"""Where labels depend on S/N most, and surveys have few labelled stars."""


@dataclass(frozen=True, eq=False)
class SimulatedPool:
    """Simulated spectra before reduction and noise, observed anew in every batch.

    Attributes
    ----------
    flux : (n_star, n_pixel) float32
        Calibrated, broadened and shifted.
    labels, observables : (n_star, n_label), (n_star, n_observable) float64
    calibration : TheoryCalibration
        Its modes of cores and continuum are drawn for each spectrum.
    survey_snr : (n,) float64
        S/N of the labelled stars, from which that of a simulated one is drawn.
    spectrograph : Spectrograph
    mapping : ObservableMap
        How the observables follow from bands, parallax and A_V.
    noise : BatchNoise
    disturbances : Disturbances
    modes : (n_mode, n_pixel) float32
        Along which stars scatter about a learnt theory, drawn for each spectrum.
    """

    flux: Float32Array
    labels: Float64Array
    observables: Float64Array
    calibration: TheoryCalibration
    survey_snr: Float64Array
    spectrograph: Spectrograph
    mapping: ObservableMap
    noise: BatchNoise
    disturbances: Disturbances
    modes: Float32Array

    def batch(
        self, n_star: int, rng: np.random.Generator
    ) -> tuple[Float32Array, Float32Array, Float64Array, Float64Array]:
        """Observe stars drawn at random.

        Returns
        -------
        flux, ivar : (n_star, n_pixel) float32
        observables : (n_star, n_observable) float64
        labels : (n_star, n_label) float64
        """
        # With replacement: the same star with other noise is another example.
        return self.observe(rng.integers(0, len(self.flux), n_star), rng)

    def observe(
        self, row: IndexArray, rng: np.random.Generator, *, snr: Float64Array | None = None
    ) -> tuple[Float32Array, Float32Array, Float64Array, Float64Array]:
        """Observe the stars of some rows (n_star,); returns what `batch` does.

        With an S/N (n_star,) for each, or with one drawn as the survey has them.
        """
        n_star, disturbances = len(row), self.disturbances
        cores, continuum = (
            rng.standard_normal((n_star, len(modes)), dtype=np.float32) @ modes
            for modes in (self.calibration.core_modes, self.calibration.continuum_modes)
        )
        lively = np.flatnonzero(rng.random(n_star) < disturbances.cores)
        cores[lively] *= rng.uniform(1.0, disturbances.core_factor, (lively.size, 1))
        # Cores add flux of the chromosphere; the continuum divides all of it.
        sharp = (self.flux[row] + cores) * (np.float32(1.0) + continuum)
        if len(self.modes):
            sharp += drawn_modes(self.modes, n_star, rng)
        sharp = disturb_flux(sharp, self.spectrograph.wave_out_aa, disturbances, rng)
        flux, ivar = self.spectrograph.degrade(
            sharp, self._snr(n_star, rng) if snr is None else snr, rng
        )
        observables = disturb_observables(self.observables[row], self.mapping, disturbances, rng)
        return flux, ivar, observables, self.labels[row]

    def _snr(self, n_star: int, rng: np.random.Generator) -> Float64Array:
        # A tenth around real values, as a bootstrap would repeat them.
        drawn = rng.choice(self.survey_snr, n_star) * np.exp(0.1 * rng.standard_normal(n_star))
        low = rng.random(n_star) < self.noise.low_snr_share
        lowest, highest = np.log(_LOW_SNR)
        drawn[low] = np.exp(rng.uniform(lowest, highest, int(low.sum())))
        return np.asarray(drawn)


class BatchNoise(BaseModel):
    """Which S/N a batch has.

    Attributes
    ----------
    low_snr_share : float
        Share of stars whose S/N is uniform in its logarithm over 10 to 100, not as the survey's.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    low_snr_share: float = Field(default=0.2, ge=0.0, le=1.0)

    @model_validator(mode="before")
    @classmethod
    def _without_moved(cls, values: Any) -> Any:
        # Models of before dropped pixels and disturbed observables here; only whoever simulates
        # stars for them reads these settings.
        moved = {"mask_share", "magnitude_rms", "quiet"}
        return {k: v for k, v in values.items() if k not in moved} if values else values
