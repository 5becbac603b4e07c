"""Calibrated theory at rest, for many stars at once, without a random generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.linalg import qr

from maury.io.arrays import Float32Array, Float64Array, on_finite_rows
from maury.simulation.emulator import Emulator
from maury.simulation.observing import Spectrograph

__all__ = ["RestFrameTheory"]

_STEP_KELVIN = 10.0
"""The broadening changes by km/s in hundreds of kelvin, so that between nodes it is linear."""
_TOLERANCE = 3e-4
"""Of the largest profile: the emulator errs by more."""
_PROBES = 3
"""Neighbouring input pixels fall differently on output pixels; three sample the profile finely."""


@dataclass(frozen=True, eq=False)
class RestFrameTheory:
    """What `Spectrograph.disperse` makes of emulated flux without a random generator.

    Make one with `RestingStars.prepare`.

    Attributes
    ----------
    emulator : Emulator
    teff_kelvin : (n_node,) float64
        Temperatures at which the weights are known.
    weights : (n_node, n_term) float64
    basis : (n_term (n_coefficient + 1), n_pixel) float32
        Of each term: the broadened components, and the broadened mean less 1.
    """

    emulator: Emulator
    teff_kelvin: Float64Array
    weights: Float64Array
    basis: Float32Array

    @classmethod
    def prepare(cls, emulator: Emulator, spectrograph: Spectrograph) -> Self:
        """Find temperatures whose broadenings make up all others, and broaden at these.

        To three parts in 10 000 of the broadening profile; the emulator itself errs by more.
        """
        low, high = emulator.bounds[0]
        teff = np.linspace(low, high, max(2, round((high - low) / _STEP_KELVIN) + 1))
        profiles = _profiles(spectrograph, teff)
        # Pivoted QR picks the temperatures whose profiles span the others best.
        size, order = qr(profiles.T, mode="r", pivoting=True)
        decline = np.abs(np.diag(size)) / abs(size[0, 0])
        chosen = order[: max(1, int((decline > _TOLERANCE).sum()))]
        weights = np.linalg.lstsq(profiles[chosen].T, profiles.T, rcond=None)[0].T
        deviations = np.vstack([emulator.tensors.basis, emulator.tensors.mean - np.float32(1.0)])
        basis = np.vstack([_dispersed(spectrograph, deviations, teff[k]) for k in chosen])
        return cls(emulator, teff, weights, basis)

    def flux(self, labels: Float64Array) -> Float32Array:
        """Flux (n_star, n_pixel) of labels (n_star, 16) within the bounds of the emulator.

        NaN throughout a row whose labels are not all finite.
        """
        coefficients = self.emulator.coefficients(labels)
        one = np.ones((len(coefficients), 1), dtype=np.float32)
        extended = np.hstack([coefficients, one])
        teff = np.asarray(labels, dtype=np.float64)[:, 0]
        mixed = np.hstack(
            [
                extended * np.interp(teff, self.teff_kelvin, weight)[:, None].astype(np.float32)
                for weight in self.weights.T
            ]
        )
        flux: Float32Array = on_finite_rows(lambda known: known @ self.basis, mixed)
        # Broadening keeps a constant, so that 1 was taken off before.
        flux += np.float32(1.0)
        return flux


def _profiles(spectrograph: Spectrograph, teff_kelvin: Float64Array) -> Float64Array:
    """Broadened needles (n_teff, n) at neighbouring input pixels, which sample the profile."""
    middle = spectrograph.wave_in_aa.size // 2
    probes = []
    for pixel in range(middle, middle + _PROBES):
        needle = np.zeros((teff_kelvin.size, spectrograph.wave_in_aa.size), dtype=np.float32)
        needle[:, pixel] = 1.0
        probes.append(_dispersed(spectrograph, needle, teff_kelvin))
    return np.concatenate(probes, axis=1).astype(np.float64)


def _dispersed(
    spectrograph: Spectrograph, deviations: Float32Array, teff_kelvin: Float64Array | float
) -> Float32Array:
    """Deviations from 1 (n, n_in) broadened and at the pixels (n, n_pixel)."""
    labels = np.broadcast_to(teff_kelvin, len(deviations))[:, None]
    flux = spectrograph.disperse(deviations + np.float32(1.0), labels).flux
    return np.asarray(flux - np.float32(1.0))
