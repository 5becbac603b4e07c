"""Neutral iron lines near the calcium triplet, and the equilibrium of their abundances.

An iron abundance from each equivalent width should depend neither on the excitation of its line,
which fixes Teff, nor on the strength of it, which fixes microturbulence.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.grid import Grid
from maury.methods.fitting.gridded import Pattern
from maury.methods.fitting.noise import weighted_variance
from maury.methods.fitting.survey_theory import SurveyTheory

__all__ = ["Equilibrium", "IronLines"]


FE_1: tuple[tuple[float, float], ...] = (
    (8439.57, 4.55),
    (8471.74, 4.96),
    (8481.98, 4.19),
    (8514.07, 2.20),
    (8515.11, 3.02),
    (8526.67, 4.91),
    (8571.80, 5.01),
    (8582.26, 2.99),
    (8592.95, 4.96),
    (8598.83, 4.39),
    (8611.80, 2.85),
    (8613.94, 4.99),
    (8616.28, 4.91),
    (8621.60, 2.95),
    (8674.75, 2.83),
    (8688.62, 2.18),
    (8699.45, 4.96),
    (8710.39, 4.91),
    (8757.19, 2.84),
    (8763.97, 4.65),
)
"""Wavelength (angstrom, air) and excitation energy (eV) of the lines, as in the NIST database."""
# Nearly twice the sigma of a line at resolving power 7500 (.49 angstrom), where 93 % of it lie
# within.
_HALF_WIDTH_AA = 0.9
# Nodes of each label: curves of growth are smooth, and interpolated by cubics.
_AXES = {"teff": 6, "logg": 5, "m_h": 8}
_VMIC = np.array([-0.6, 0.0, 0.6])
_NEWTON, _ROUNDS = 4, 5
_TEFF_STEP, _VMIC_STEP = 40.0, 0.1
# Angstrom per dex: a line that does not change with abundance takes no Newton step.
_LEAST_SLOPE = 1e-4
_LEAST_LINES = 4
"""One more than what a regression on excitation and strength determines: no error without it."""
_STEP_LIMIT = np.array([250.0, 0.3])


class Equilibrium(NamedTuple):
    """Parameters at which iron abundances depend on neither excitation nor strength.

    Attributes
    ----------
    teff, metals : (n_star,) float64
    covariance : (n_star, 2, 2) float64
        Of the two.
    converged : (n_star,) bool
    enough : (n_star,) bool
        Whether there are lines enough to tell.
    """

    teff: Float64Array
    metals: Float64Array
    covariance: Float64Array
    converged: BoolArray
    enough: BoolArray


class _Regression(NamedTuple):
    """Mean abundance and its slopes with excitation and strength, and lines that count.

    Attributes
    ----------
    mean : (n_star, 3) float64
    covariance : (n_star, 3, 3) float64
    n_line : (n_star,) int64
    """

    mean: Float64Array
    covariance: Float64Array
    n_line: Int64Array


@dataclass(frozen=True, eq=False)
class IronLines:
    """Curves of growth of the iron lines, in windows of pixels.

    Attributes
    ----------
    windows : (n_line, n_pixel) float32
        Angstrom that each pixel counts for each line.
    excitation_ev : (n_line,) float64
    nodes : (n_node, n_line) float32
        Equivalent widths on a grid of Teff, log g, [M/H], and microturbulence less the typical.
    teff, logg, m_h : (n,) float64
        Axes of the grid.
    """

    windows: Float32Array
    excitation_ev: Float64Array
    nodes: Float32Array
    teff: Float64Array
    logg: Float64Array
    m_h: Float64Array

    @classmethod
    def learn(
        cls, survey: SurveyTheory, pattern: Pattern, bounds: Mapping[str, Float64Array]
    ) -> Self:
        """Measure the lines in theoretical spectra.

        Parameters
        ----------
        survey : SurveyTheory
            Of the emulator.
        pattern : Pattern
            Of the core, whose labels beyond Teff, log g and [M/H] are typical.
        bounds : mapping of str to (2,) float64
            Of the three labels.
        """
        theory = survey.model
        wave = theory.wave_aa
        known = [(w, e) for w, e in FE_1 if wave[0] + 2 < w < wave[-1] - 2]
        width = np.gradient(wave)
        inside = [np.abs(wave - w) < _HALF_WIDTH_AA for w, _ in known]
        windows = np.array(inside) * width
        axes = {k: np.linspace(bounds[k][0], bounds[k][1], n) for k, n in _AXES.items()}
        velocity = theory.label_names.index("off_vmic")

        def synthesise(places: Float64Array) -> Float32Array:
            core = np.tile(pattern.centre, (len(places), 1))
            for column, name in enumerate(_AXES):
                core[:, pattern.core.index(name)] = places[:, column]
            whole = np.zeros((len(places), len(theory.label_names)))
            whole[:, : len(LABEL_NAMES)] = pattern.complete(core)
            whole[:, velocity] = places[:, 3]
            whole = np.clip(whole, theory.bounds[:, 0], theory.bounds[:, 1])
            flux = theory.evaluate(whole, jacobian=False).flux
            return np.asarray((1.0 - flux) @ windows.T, dtype=np.float32)

        centres = np.array([w for w, _ in known])
        grid = Grid.build({**axes, "vmic": _VMIC}, synthesise, centres, interpolation="cubic")
        excitation = np.array([e for _, e in known])
        return cls(windows.astype(np.float32), excitation, grid.nodes, *grid.axes[:3])

    def grid(self) -> Grid:
        """Return the curves of growth as a grid whose pixels are the lines."""
        none = np.zeros(self.excitation_ev.size)
        zero = none.astype(np.float32)
        axes = (self.teff, self.logg, self.m_h, _VMIC)
        names = (*_AXES, "vmic")
        return Grid(names, axes, self.nodes, None, zero, none, zero, "cubic")

    def measure(
        self, flux: Float32Array, ivar: Float32Array, noise_correlation: Sequence[float]
    ) -> tuple[Float64Array, Float64Array]:
        """Equivalent widths (n_star, n_line) in angstrom, and their variances; NaN where masked."""
        bad = (ivar <= 0).astype(np.float32) @ (self.windows > 0).T.astype(np.float32) > 0
        sigma = np.where(ivar > 0, 1.0 / np.sqrt(np.where(ivar > 0, ivar, 1.0)), 0.0)
        widths = (1.0 - flux) @ self.windows.T
        noise = weighted_variance(self.windows.T, sigma, correlation=noise_correlation)
        return np.where(bad, np.nan, widths), np.where(bad, np.inf, noise)

    def balance(
        self,
        flux: Float32Array,
        ivar: Float32Array,
        start: Float64Array,
        *,
        noise_correlation: Sequence[float] = (),
    ) -> Equilibrium:
        """Find Teff, microturbulence and [M/H] at fixed log g.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float32
        start : (n_star, 3) float64
            Teff, log g and [M/H].
        noise_correlation : sequence of float
            Of the noise of pixels 1, 2, ... apart.
        """
        grid, measured = self.grid(), self.measure(flux, ivar, noise_correlation)
        logg, m_h = start[:, 1], start[:, 2]
        limits = np.array([self.teff[[0, -1]], _VMIC[[0, -1]]])
        place = np.clip(np.column_stack([start[:, 0], np.zeros(len(start))]), *limits.T)
        steps = np.diag([_TEFF_STEP, _VMIC_STEP])
        sizes = np.array([_TEFF_STEP, _VMIC_STEP])
        converged = np.zeros(len(start), dtype=np.bool_)
        for _ in range(_ROUNDS):
            here, *moved = (
                self._regress(grid, place + step, logg, m_h, measured).mean
                for step in (np.zeros(2), *steps)
            )
            rise = (np.stack(moved, axis=2) - here[:, :, None]) / sizes
            # Newton's step to where abundances depend on neither excitation nor strength.
            move = -np.einsum("nij,nj->ni", np.linalg.pinv(rise[:, 1:]), here[:, 1:])
            new = np.clip(place + np.clip(move, -_STEP_LIMIT, _STEP_LIMIT), *limits.T)
            converged = (np.abs(new - place) < _STEP_LIMIT * 0.1).all(axis=1)
            place = new
        last = self._regress(grid, place, logg, m_h, measured)
        rows = _by_regression(rise)
        return Equilibrium(
            place[:, 0],
            last.mean[:, 0],
            rows @ last.covariance @ rows.transpose(0, 2, 1),
            converged,
            last.n_line >= _LEAST_LINES,
        )

    def _regress(
        self,
        grid: Grid,
        place: Float64Array,
        logg: Float64Array,
        m_h: Float64Array,
        measured: tuple[Float64Array, Float64Array],
    ) -> _Regression:
        """Regress abundances on excitation and strength."""
        widths, variance = measured
        abundance, slope, strength = self._abundances(grid, place, logg, m_h, widths)
        weight = np.where(np.isfinite(abundance), slope**2 / variance, 0.0)
        abundance = np.where(weight > 0, abundance, 0.0)
        design = np.stack(
            [
                np.ones_like(abundance),
                np.broadcast_to(self.excitation_ev - self.excitation_ev.mean(), abundance.shape),
                strength,
            ],
            axis=2,
        )
        weighted = (design * weight[:, :, None]).transpose(0, 2, 1)
        spread = np.linalg.pinv(weighted @ design)
        mean = np.einsum("nij,njl,nl->ni", spread, weighted, abundance)
        return _Regression(mean, spread, (weight > 0).sum(axis=1))

    def _abundances(
        self,
        grid: Grid,
        place: Float64Array,
        logg: Float64Array,
        m_h: Float64Array,
        widths: Float64Array,
    ) -> tuple[Float64Array, Float64Array, Float64Array]:
        """[M/H] of each line (n_star, n_line), slope of its width, and its scaled log strength."""
        n, count = widths.shape
        line = np.tile(np.arange(count), n)
        fixed = np.repeat(np.column_stack([place[:, 0], logg]), count, axis=0)
        fixed = np.clip(fixed, grid.bounds[:2, 0], grid.bounds[:2, 1])
        velocity = np.repeat(place[:, 1], count)
        metals = np.repeat(np.clip(m_h, self.m_h[0], self.m_h[-1]), count)
        wanted = widths.ravel()
        rows = np.arange(n * count)
        for _ in range(_NEWTON):
            labels = np.column_stack([fixed, metals, np.clip(velocity, *_VMIC[[0, -1]])])
            flux, jacobian = grid.evaluate(labels)
            assert jacobian is not None, "derivatives were asked for"
            model, slope = flux[rows, line], np.maximum(jacobian[rows, 2, line], _LEAST_SLOPE)
            change = np.where(np.isfinite(wanted), (wanted - model) / slope, 0.0)
            metals = np.clip(metals + np.clip(change, -0.5, 0.5), self.m_h[0], self.m_h[-1])
        edge = (metals <= self.m_h[0]) | (metals >= self.m_h[-1]) | ~np.isfinite(wanted)
        abundance = np.where(edge, np.nan, metals).reshape(n, count)
        strength = np.log10(np.maximum(model, 1e-3)).reshape(n, count)
        centred = strength - strength.mean(axis=1, keepdims=True)
        return abundance, slope.reshape(n, count).astype(np.float64), centred


def _by_regression(rise: Float64Array) -> Float64Array:
    """Return derivatives (n_star, 2, 3) of Teff and [M/H] by mean abundance and its two slopes.

    [M/H] is the mean abundance, which moves with Teff and microturbulence.

    Parameters
    ----------
    rise : (n_star, 3, 2) float64
        Derivatives of these three by Teff and microturbulence.
    """
    inverse = np.linalg.pinv(rise[:, 1:])
    out = np.zeros((len(rise), 2, 3))
    out[:, 0, 1:] = -inverse[:, 0]
    out[:, 1, 0] = 1.0
    out[:, 1, 1:] = -(rise[:, :1] @ inverse)[:, 0]
    return out
