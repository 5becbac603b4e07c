"""Calibration of a theory of spectra on the labelled stars of a survey."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from scipy.interpolate import BSpline

from maury.io.arrays import Float32Array, Float64Array
from maury.labels.statistics import MAD_TO_SIGMA, robust_scale

_FLUX_FLOOR = 0.05
_CLIP_SIGMA = 3.0
_BEND_SIGMA = 2.0
_SPLINE_DEGREE = 3
_KNOT_SPACING_AA = 8.3
_STRENGTH_RIDGE = 1e-3
_PIXEL_RIDGE = 3000.0
_PRIOR_STARS = 10_000.0
_N_LINEAR = 4
_CALCIUM_AA = (8498.02, 8542.09, 8662.14)
_CORE_HALF_WIDTH_AA = 3.0
_N_MODE = 5
_CONTINUUM_DEGREE = 7
_LEAST_CONTINUUM = 0.001


@dataclass(frozen=True, eq=False)
class TheoryCalibration:
    """From theoretical to observed flux.

    A change of line strength, smooth in wavelength and linear in the first three labels, then a
    small correction per pixel: constant, linear in all labels, quadratic in the first three.

    Attributes
    ----------
    centre, scale : (n_label,) float64
        Of the labels.
    strength : (4, n_pixel) float64
        Relative change of line depth: constant, then per scaled label.
    pixel : (n_term, n_pixel) float64
        Flux added, per term.
    core_modes : (n_mode, n_pixel) float32
        Star-to-star scatter of the Ca II cores beyond noise: modes, one standard deviation each.
    continuum_modes : (n_order, n_pixel) float32
        The same of the continuum, relative to the flux: Legendre polynomials.
    """

    centre: Float64Array
    scale: Float64Array
    strength: Float64Array
    pixel: Float64Array
    core_modes: Float32Array
    continuum_modes: Float32Array

    @classmethod
    def fit(
        cls,
        wave_aa: Float64Array,
        theory: Float32Array,
        flux: Float32Array,
        *,
        ivar: Float32Array,
        labels: Float64Array,
        noise_side_weight: float = 0.247,
        prior: TheoryCalibration | None = None,
    ) -> Self:
        """Fit to labelled stars.

        Parameters
        ----------
        wave_aa : (n_pixel,) float64
        theory, flux, ivar : (n_star, n_pixel) float32
            Emulated and observed flux at the same pixels; ivar 0 marks a bad pixel.
        labels : (n_star, n_label) float64
        noise_side_weight : float
            Correlation of the noise, as in `maury.simulation.observing.ObservingModel`.
        prior : TheoryCalibration, optional
            At the same pixels. What is fitted is then the difference to it, held down the more
            the fewer stars there are; its own modes do not count.
        """
        known = prior or cls.none(wave_aa.size, labels)
        centre, scale = known.centre, known.scale
        scaled = _clipped(labels, centre, scale)
        weight = np.median(ivar, axis=1).astype(np.float64)
        weight = np.clip(weight / max(float(np.median(weight)), 1e-30), 0.1, 4.0)
        observed = np.where(ivar > 0, flux, theory).astype(np.float64)
        ridge = _STRENGTH_RIDGE * (1.0 if prior is None else 1.0 + _PRIOR_STARS / weight.size)
        missing = observed - known.apply(theory, labels)
        strength = known.strength + _fit_strength(wave_aa, theory, missing, scaled, weight, ridge)
        half_way = replace(known, strength=strength)
        missing = observed - half_way.apply(theory, labels)
        terms = _terms(scaled)
        weighted = (terms * weight[:, None]).T
        normal = weighted @ terms
        normal[np.diag_indices(len(normal))] *= 1.0 + _PIXEL_RIDGE / weight.size
        # A term that no star has would leave the system singular.
        normal[np.diag_indices(len(normal))] += 1e-9 * np.trace(normal)
        added = np.asarray(np.linalg.solve(normal, weighted @ missing), dtype=np.float64)
        missing -= terms @ added
        pixel = known.pixel + added
        cores = _core_modes(wave_aa, missing, ivar, noise_side_weight)
        continuum = _continuum_modes(wave_aa, missing, observed, ivar, noise_side_weight)
        return cls(centre, scale, strength, pixel, cores, continuum)

    @classmethod
    def none(cls, n_pixel: int, labels: Float64Array) -> Self:
        """Return one that leaves theory as it is; labels (n_star, n_label) give its scale."""
        centre, scale = robust_scale(labels)
        n_term = _terms(np.zeros((1, centre.size))).shape[1]
        mode = np.zeros((0, n_pixel), dtype=np.float32)
        zero = np.zeros((n_term, n_pixel))
        return cls(centre, scale, zero[:_N_LINEAR], zero, mode, mode)

    def at(self, wave_aa: Float64Array, new_wave_aa: Float64Array) -> Self:
        """Interpolate from the pixels at `wave_aa` to others, without modes; 0 beyond its own."""

        def moved(values: Float64Array) -> Float64Array:
            rows = [np.interp(new_wave_aa, wave_aa, row, left=0.0, right=0.0) for row in values]
            return np.array(rows)

        none = np.zeros((0, new_wave_aa.size), dtype=np.float32)
        return replace(
            self,
            strength=moved(self.strength),
            pixel=moved(self.pixel),
            core_modes=none,
            continuum_modes=none,
        )

    def apply(self, theory: Float32Array, labels: Float64Array) -> Float32Array:
        """Calibrated flux (n_star, n_pixel) of `theory` with `labels` (n_star, n_label)."""
        change, added = self.change(labels)
        return np.asarray(theory - (np.float32(1.0) - theory) * change + added)

    def change(
        self, labels: Float64Array, *, smooth: bool = False
    ) -> tuple[Float32Array, Float32Array]:
        """Relative change of line depth, and flux added, both (n_star, n_pixel).

        Far from the labelled stars they are constant; if `smooth`, they bend towards that instead
        of breaking off, which a fit would be caught by.
        """
        scaled = _clipped(labels, self.centre, self.scale)
        if smooth:
            scaled, _ = _bent(labels, self.centre, self.scale)
        terms = _terms(scaled)[:, : self.pixel.shape[0]]
        single = np.float32
        change = _linear(scaled).astype(single) @ self.strength.astype(single)
        return change, terms.astype(single) @ self.pixel.astype(single)

    def change_slopes(self, labels: Float64Array) -> tuple[Float32Array, Float32Array]:
        """Return derivatives by each label of `change`, if `smooth`: (n_star, n_label, n_pixel)."""
        scaled, rise = _bent(labels, self.centre, self.scale)
        n_star, n_label = scaled.shape
        per_label = rise / self.scale
        linear = np.zeros((n_star, n_label, 1 + 3))
        linear[:, range(3), range(1, 4)] = 1.0
        first, second = np.triu_indices(3)
        terms = np.zeros((n_star, n_label, 1 + n_label + first.size))
        terms[:, range(n_label), range(1, 1 + n_label)] = 1.0
        for column, (i, j) in enumerate(zip(first, second, strict=True), start=1 + n_label):
            terms[:, i, column] += scaled[:, j]
            terms[:, j, column] += scaled[:, i]
        terms = terms[:, :, : self.pixel.shape[0]]
        by_label = (linear * per_label[:, :, None]).astype(np.float32) @ self.strength.astype(
            np.float32
        )
        added = (terms * per_label[:, :, None]).astype(np.float32) @ self.pixel.astype(np.float32)
        return by_label, added


def _clipped(labels: Float64Array, centre: Float64Array, scale: Float64Array) -> Float64Array:
    return np.asarray(np.clip((labels - centre) / scale, -_CLIP_SIGMA, _CLIP_SIGMA))


def _bent(
    labels: Float64Array, centre: Float64Array, scale: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Scaled labels that bend from `_BEND_SIGMA` on towards `_CLIP_SIGMA`, and their slopes."""
    scaled = (labels - centre) / scale
    width = _CLIP_SIGMA - _BEND_SIGMA
    turned = np.tanh((np.abs(scaled) - _BEND_SIGMA) / width)
    far = turned > 0
    bent = np.where(far, np.sign(scaled) * (_BEND_SIGMA + width * turned), scaled)
    return bent, np.where(far, 1.0 - turned**2, 1.0)


def _linear(scaled: Float64Array) -> Float64Array:
    return np.column_stack([np.ones(len(scaled)), scaled[:, :3]])


def _terms(scaled: Float64Array) -> Float64Array:
    first, second = np.triu_indices(3)
    products = scaled[:, first] * scaled[:, second]
    return np.column_stack([np.ones(len(scaled)), scaled, products])


def _fit_strength(
    wave_aa: Float64Array,
    theory: Float32Array,
    missing: Float64Array,
    scaled: Float64Array,
    weight: Float64Array,
    ridge: float,
) -> Float64Array:
    """Change of line strength (4, n_pixel) that adds the missing flux (n_star, n_pixel)."""
    n_knot = max(4, round((wave_aa[-1] - wave_aa[0]) / _KNOT_SPACING_AA) + 1)
    inner = np.linspace(wave_aa[0], wave_aa[-1], n_knot)
    ends = _SPLINE_DEGREE
    padded = np.r_[[inner[0]] * ends, inner, [inner[-1]] * ends]
    spline = BSpline.design_matrix(wave_aa, padded, _SPLINE_DEGREE).toarray()
    linear, depth = _linear(scaled), 1.0 - theory.astype(np.float64)
    n_term, n_spline = linear.shape[1], spline.shape[1]
    matrix = np.empty((n_term, n_spline, n_term, n_spline))
    squared, product = depth * depth, -depth * missing
    for i in range(n_term):
        for j in range(n_term):
            per_pixel = (weight * linear[:, i] * linear[:, j]) @ squared
            matrix[i, :, j] = spline.T @ (per_pixel[:, None] * spline)
    size = n_term * n_spline
    normal = matrix.reshape(size, size)
    normal[np.diag_indices(size)] += ridge * np.trace(normal) / size + 1e-12
    right = ((weight[:, None] * linear).T @ product) @ spline
    solution = np.linalg.solve(normal, right.reshape(size))
    return np.asarray(solution.reshape(n_term, n_spline) @ spline.T)


def _core_modes(
    wave_aa: Float64Array, residual: Float64Array, ivar: Float32Array, side_weight: float
) -> Float32Array:
    """Principal components of the scatter in the Ca II cores, after the noise is taken off."""
    distance = np.abs(wave_aa[:, None] - np.array(_CALCIUM_AA)).min(axis=1)
    core = np.flatnonzero(distance < _CORE_HALF_WIDTH_AA)
    modes = np.zeros((min(_N_MODE, core.size), wave_aa.size), dtype=np.float32)
    if core.size == 0:
        return modes
    quality = np.median(ivar, axis=1)
    best = quality >= np.percentile(quality, 25.0)
    part = residual[np.ix_(best, core)]
    noise = np.sqrt(np.mean(1.0 / np.maximum(ivar[np.ix_(best, core)], 1e-6), axis=0))
    white = 1.0 + 2.0 * side_weight**2
    by_lag = np.array([1.0, 2.0 * side_weight / white, side_weight**2 / white, 0.0])
    correlation = by_lag[np.minimum(np.abs(np.subtract.outer(core, core)), 3)]
    covariance = part.T @ part / len(part) - correlation * np.outer(noise, noise)
    value, vector = np.linalg.eigh(covariance)
    largest = slice(core.size - len(modes), core.size)
    modes[:, core] = (np.sqrt(np.clip(value[largest], 0, None)) * vector[:, largest]).T
    return modes


def _continuum_modes(
    wave_aa: Float64Array,
    residual: Float64Array,
    observed: Float64Array,
    ivar: Float32Array,
    side_weight: float,
) -> Float32Array:
    """Legendre polynomials as large as they scatter from star to star, noise taken off."""
    x = 2.0 * (wave_aa - wave_aa[0]) / (wave_aa[-1] - wave_aa[0]) - 1.0
    basis = np.polynomial.legendre.legvander(x, _CONTINUUM_DEGREE).T
    basis /= np.sqrt(np.mean(basis**2, axis=1, keepdims=True))
    flux = np.maximum(observed, _FLUX_FLOOR)
    coefficients = (residual / flux) @ basis.T / wave_aa.size
    scatter = (MAD_TO_SIGMA * np.median(np.abs(coefficients), axis=0)) ** 2
    correlated = (1.0 + 2.0 * side_weight) ** 2 / (1.0 + 2.0 * side_weight**2)
    relative = np.where(ivar > 0, 1.0 / (np.maximum(ivar, 1e-30) * flux**2), 0.0)
    noise = correlated * np.median(relative.mean(axis=1)) / wave_aa.size
    rms = np.sqrt(np.clip(scatter - noise, _LEAST_CONTINUUM**2, None))
    return np.asarray(rms[:, None] * basis, dtype=np.float32)
