"""What the spectra of a whole survey have in common that theory, as a model knows it, has not.

The residuals of many stars against their reconstruction are fitted together: common changes of line
strength, line width, velocity, Ca II cores and continuum, beside what differs from star to star,
which is marginalised: labels, continuum, cores. Labels are left free, so that a change which looks
like other labels has an error as large as it must. The same fit of the training stars, kept with
the model, is taken off. What is left of the residuals is a pattern of single lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.labels.statistics import MAD_TO_SIGMA, robust_scale
from maury.simulation.emulator import Emulator
from maury.simulation.mismatch import CALCIUM_AA, FWHM_PER_SIGMA
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = ["TERMS", "CommonResiduals", "taken_in"]

TERMS = (
    "strength",
    "tilt",
    "calcium",
    "cores",
    "width",
    "velocity",
    *(f"continuum {order}" for order in range(6)),
)
"""Common changes: of the depth of all lines, its slope from end to end, that of the Ca II lines
besides, relative deepening of their cores, variance of the line profile (angstrom^2), velocity
(km/s), and Legendre orders of the continuum."""
_N_CONTINUUM = 6
"""Orders of the continuum that all spectra may have in common; as many as coverage looks at."""
_CALCIUM_HALF_WIDTH_AA = 15.0
"""To where the wings of the Ca II lines reach; chosen."""
_CORE_SIGMA_AA = 0.8
"""Width of the core of a Ca II line, as `maury.simulation.mismatch.TheoryMismatch` has it."""
_FLOOR = 0.01
"""Error of theory in a pixel: no star of high S/N rules the rest; chosen, not measured."""
_MOST_MODES = 10
"""Modes of a learnt theory that are fitted to each star: the largest, as each costs memory."""
_STEPS = 0.05
"""Step of a slope, in units of the scatter of a label: 30 K, and .02 dex."""
_BLOCK = 128
"""Stars at a time: 34 curves of 912 pixels each are 16 MB."""
_LEAST_VARIANCE = 0.25
"""Of the line profile, as a share of that in training: twice the resolving power, and no more."""
_MOST_POWER = 0.95
"""Of the emulator's resolving power, above which nothing can be simulated."""
_WILD = 3.0
"""Stars that fit this many times worse than the median are left out of what is common."""


@dataclass(frozen=True, eq=False)
class CommonResiduals:
    """What the residuals of some stars have in common.

    Attributes
    ----------
    change, covariance : (n_term,), (n_term, n_term) float64
        Of `TERMS`, and its covariance, from how the stars scatter.
    pattern, pattern_variance : (n_pixel,) float64
        Relative change of line depth in each pixel that is left, and its variance.
    depth2 : (n_pixel,) float64
        Mean square of the depth of the lines.
    noise : float
        Scatter of what is left, in units of the quoted noise (with 1 % for theory).
    n_star : int
        Stars that entered.
    """

    change: Float64Array
    covariance: Float64Array
    pattern: Float64Array
    pattern_variance: Float64Array
    depth2: Float64Array
    noise: float
    n_star: int

    @classmethod
    def measure(
        cls,
        simulator: TrainingStarSimulator,
        flux: Float32Array,
        ivar: Float32Array,
        labels: Float64Array,
    ) -> Self:
        """Fit some stars together.

        Parameters
        ----------
        simulator : TrainingStarSimulator
            Its theory, and its scatter of labels, continuum and cores.
        flux, ivar : (n_star, n_pixel) float32
            Prepared.
        labels : (n_star, 9) float64
            Predicted; stars without are left out.
        """
        good = np.isfinite(labels).all(axis=1) & (ivar > 0).any(axis=1)
        good &= np.isfinite(flux).all(axis=1)
        labels, flux, ivar = labels[good], flux[good], ivar[good]
        cuts = [slice(k, k + _BLOCK) for k in range(0, len(labels), _BLOCK)]
        parts = [_Block.of(simulator, flux[cut], ivar[cut], labels[cut]) for cut in cuts]
        if not parts:
            return cls._none(flux.shape[1])
        chi2 = np.concatenate([part.chi2 for part in parts])
        chosen = chi2 <= _WILD * np.median(chi2)
        matrix, right = (
            np.concatenate([getattr(part, name) for part in parts])[chosen]
            for name in ("matrix", "right")
        )
        total = matrix.sum(axis=0) + np.eye(len(TERMS)) * 1e-9
        change = np.linalg.solve(total, right.sum(axis=0))
        inverse = np.linalg.inv(total)
        # How the stars pull apart, not the quoted noise, says how well it is known (sandwich).
        pulls = right - matrix @ change
        spread = inverse @ (pulls.T @ pulls) @ inverse
        keep = [chosen[cut] for cut in cuts]
        left = [part.left(change)[own] for part, own in zip(parts, keep, strict=True)]
        depth, weight = (
            np.concatenate([getattr(p, name)[own] for p, own in zip(parts, keep, strict=True)])
            for name in ("depth", "weight")
        )
        return cls(change, spread, *_pattern(np.concatenate(left), depth, weight), len(right))

    @classmethod
    def _none(cls, n_pixel: int) -> Self:
        size, zero = len(TERMS), np.zeros(n_pixel)
        unknown = np.full(n_pixel, np.inf)
        return cls(np.zeros(size), np.diag(np.full(size, np.inf)), zero, unknown, zero, np.nan, 0)

    def beside(self, training: CommonResiduals) -> tuple[Float64Array, Float64Array]:
        """Return changes (n_term,) beside those of the training stars, and their 1 sigma errors."""
        variance = np.diagonal(self.covariance) + np.diagonal(training.covariance)
        return self.change - training.change, np.sqrt(variance)

    def pattern_beside(self, training: CommonResiduals) -> tuple[float, float]:
        """Rms difference of line by line from the training stars, and its 1 sigma error.

        Relative to the depth of the lines, deep ones counting more; noise is taken off.
        """
        variance = self.pattern_variance + training.pattern_variance
        known = np.isfinite(variance) & (self.depth2 > 0)
        weight = self.depth2[known]
        if weight.size == 0:
            return 0.0, np.inf
        apart = (self.pattern - training.pattern)[known]
        square = np.average(apart**2 - variance[known], weights=weight)
        # Neighbouring pixels share their noise, some two by two.
        error = np.sqrt(4.0 * np.sum((weight * variance[known]) ** 2)) / weight.sum()
        size = np.sqrt(max(square, 0.0))
        return float(size), float(error / (2.0 * max(size, np.sqrt(error))))

    def to_arrays(self) -> dict[str, AnyArray]:
        """Plain arrays for the model directory."""
        return {f.name: np.atleast_1d(getattr(self, f.name)) for f in fields(self)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> Self:
        """Read what `to_arrays` gave.

        Raises
        ------
        ModelFileError
            If something is missing, or of another size.
        """
        try:
            found: dict[str, Any] = {f.name: arrays[f.name] for f in fields(cls)}
            found |= {"noise": float(found["noise"].item()), "n_star": int(found["n_star"].item())}
            if found["change"].shape != (len(TERMS),):
                raise ValueError(f"{found['change'].size} changes in place of {len(TERMS)}")
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"the common residuals are damaged: {error}") from error
        return cls(**found)


def taken_in(
    simulator: TrainingStarSimulator, here: CommonResiduals, training: CommonResiduals
) -> TrainingStarSimulator:
    """Return a simulator whose theory has what a survey has in common beside the training stars.

    All but a velocity, which belongs to the survey's wavelengths. Single lines are believed as far
    as they stand out of their noise.

    Parameters
    ----------
    simulator : TrainingStarSimulator
        That `here` was measured with.
    here, training : CommonResiduals
    """
    value = dict(zip(TERMS, here.beside(training)[0].tolist(), strict=True))
    wave_aa = simulator.wave_aa
    x, calcium, core = _curves_of(wave_aa)
    continuum = np.array([value[f"continuum {k}"] for k in range(_N_CONTINUUM)])
    factor = continuum @ _legendre(x, _N_CONTINUUM) - value["cores"] * core
    depth = value["strength"] + value["tilt"] * x + value["calcium"] * calcium + factor
    depth = depth + _believed(here, training)
    # A factor 1 + q of the flux deepens lines by q, and adds q of flux at the continuum.
    calibration = simulator.calibration.changed(depth, factor)
    observing = simulator.observing
    variance = (wave_aa.mean() / observing.resolving_power / FWHM_PER_SIGMA) ** 2
    ratio = np.sqrt(variance / max(variance + value["width"], _LEAST_VARIANCE * variance))
    most = _MOST_POWER * Emulator.load().spec.resolving_power
    observing = observing.at_power(float(min(ratio * observing.resolving_power, most)))
    return replace(simulator, calibration=calibration, observing=observing)


def _believed(here: CommonResiduals, training: CommonResiduals) -> Float64Array:
    """Change of single lines (n_pixel,), drawn to 0 where noise rules (a Wiener filter)."""
    size, _ = here.pattern_beside(training)
    variance = here.pattern_variance + training.pattern_variance
    known = np.isfinite(variance) & (size > 0)
    share = np.where(known, size**2 / (size**2 + np.where(known, variance, 1.0)), 0.0)
    return np.asarray(share * (here.pattern - training.pattern))


@dataclass(frozen=True, eq=False)
class _Block:
    """Normal equations of some stars for the common changes, what is of a star marginalised."""

    matrix: Float64Array
    right: Float64Array
    chi2: Float64Array
    depth: Float32Array
    weight: Float32Array
    residual: Float32Array
    common: Float32Array
    own: Float32Array
    gain: Float64Array

    @classmethod
    def of(
        cls,
        simulator: TrainingStarSimulator,
        flux: Float32Array,
        ivar: Float32Array,
        labels: Float64Array,
    ) -> Self:
        theory = simulator.theory(labels)
        weight = np.where(ivar > 0, 1.0 / (1.0 / np.where(ivar > 0, ivar, 1.0) + _FLOOR**2), 0.0)
        weight = weight.astype(np.float32)
        residual = flux - theory
        common = _changes(simulator.wave_aa, theory)
        own = _own(simulator, theory, labels)
        weighted = common * weight[:, None]
        own_weighted = own * weight[:, None]
        cross = (weighted @ own.transpose(0, 2, 1)).astype(np.float64)
        inner = (own_weighted @ own.transpose(0, 2, 1)).astype(np.float64)
        # Own coefficients have a scatter of 1, as their curves are in units of it.
        inner += np.eye(own.shape[1])
        gain = np.asarray(np.linalg.inv(inner), dtype=np.float64)
        ours = (weighted @ residual[:, :, None]).astype(np.float64)[:, :, 0]
        theirs = (own_weighted @ residual[:, :, None]).astype(np.float64)[:, :, 0]
        outer = (weighted @ common.transpose(0, 2, 1)).astype(np.float64)
        pull = cross @ gain
        matrix = outer - pull @ cross.transpose(0, 2, 1)
        right = ours - np.einsum("nij,nj->ni", pull, theirs)
        chi2 = (weight * residual**2).sum(axis=1) - np.einsum("ni,nij,nj->n", theirs, gain, theirs)
        count = np.maximum((weight > 0).sum(axis=1), 1)
        depth = np.float32(1.0) - theory
        return cls(matrix, right, chi2 / count, depth, weight, residual, common, own, gain)

    def left(self, change: Float64Array) -> Float32Array:
        """Return residuals (n_star, n_pixel) less common changes and own curves."""
        left = self.residual - np.einsum("k,nkp->np", change.astype(np.float32), self.common)
        theirs = np.einsum("nkp,np->nk", self.own, self.weight * left).astype(np.float64)
        own = np.einsum("nij,nj->ni", self.gain, theirs).astype(np.float32)
        return np.asarray(left - np.einsum("nk,nkp->np", own, self.own))


def _changes(wave_aa: Float64Array, theory: Float32Array) -> Float32Array:
    """Flux (n_star, n_term, n_pixel) that each of `TERMS` adds."""
    x, calcium, core = _curves_of(wave_aa)
    slope = np.gradient(theory, wave_aa, axis=1)
    curvature = np.gradient(slope, wave_aa, axis=1)
    depth = np.float32(1.0) - theory
    curves = [-depth, -depth * x, -depth * calcium, -theory * core, 0.5 * curvature]
    curves.append(-slope * wave_aa / SPEED_OF_LIGHT_KMS)
    curves += [theory * one for one in _legendre(x, _N_CONTINUUM)]
    return np.stack(curves, axis=1).astype(np.float32)


def _curves_of(wave_aa: Float64Array) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Place from -1 to 1, whether near a Ca II line, and profile of the Ca II cores, (n_pixel,)."""
    x = 2.0 * (wave_aa - wave_aa[0]) / (wave_aa[-1] - wave_aa[0]) - 1.0
    distance = np.abs(wave_aa[:, None] - np.array(CALCIUM_AA))
    calcium = (distance.min(axis=1) < _CALCIUM_HALF_WIDTH_AA).astype(np.float64)
    core = np.exp(-0.5 * (distance / _CORE_SIGMA_AA) ** 2).sum(axis=1)
    return x, calcium, core


def _legendre(x: Float64Array, n_order: int) -> Float64Array:
    basis = np.polynomial.legendre.legvander(x, n_order - 1).T
    return np.asarray(basis / np.sqrt(np.mean(basis**2, axis=1, keepdims=True)))


def _own(
    simulator: TrainingStarSimulator, theory: Float32Array, labels: Float64Array
) -> Float32Array:
    """Curves (n_star, n_own, n_pixel) of what differs from star to star, one scatter each."""
    _, scale = robust_scale(simulator.labels)
    slopes = []
    for column, size in enumerate(scale):
        moved = labels.copy()
        moved[:, column] += _STEPS * size
        slopes.append((simulator.theory(moved) - theory) / np.float32(_STEPS))
    calibration = simulator.calibration
    modes = calibration.core_modes
    if simulator.learnt is not None:
        modes = np.concatenate([modes, simulator.learnt.modes[:_MOST_MODES]])
    cores = np.broadcast_to(modes, (len(theory), *modes.shape))
    continuum = theory[:, None] * calibration.continuum_modes
    return np.concatenate([np.stack(slopes, axis=1), cores, continuum], axis=1)


def _pattern(
    left: Float32Array, depth: Float32Array, weight: Float32Array
) -> tuple[Float64Array, Float64Array, Float64Array, float]:
    """Change of depth by pixel, its variance, mean square depth, and scatter over noise."""
    strength = (weight * depth**2).sum(axis=0, dtype=np.float64)
    known = strength > 0
    safe = np.where(known, strength, 1.0)
    pattern = -(weight * depth * left).sum(axis=0, dtype=np.float64) / safe
    apart = left + depth * pattern.astype(np.float32)
    variance = ((weight * depth * apart) ** 2).sum(axis=0, dtype=np.float64) / safe**2
    deviation = (apart * np.sqrt(weight))[weight > 0]
    noise = float(MAD_TO_SIGMA * np.median(np.abs(deviation))) if deviation.size else np.nan
    return (
        np.where(known, pattern, 0.0),
        np.where(known, variance, np.inf),
        (depth.astype(np.float64) ** 2).mean(axis=0),
        noise,
    )
