"""Calibration of a theory of spectra on the labelled stars of a survey."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from maury.io.arrays import BoolArray, Float32Array, Float64Array, on_finite_rows
from maury.labels.statistics import MAD_TO_SIGMA, robust_scale
from maury.simulation.mismatch import CALCIUM_AA
from maury.spectra.noise import RAVE_CORRELATION
from maury.spectra.pixels import FLUX_FLOOR

_CLIP_SIGMA = 3.0
"""Scaled labels beyond are taken to be there: a quadratic runs away where no star holds it."""
_BEND_SIGMA = 2.0
"""From here on a fit, which needs slopes, is led to that limit smoothly."""
_SPLINE_DEGREE = 3
"""Cubic: the least degree without kinks in the slope."""
_KNOT_SPACING_AA = 8.3
"""Several lines to a knot, so that a knot knows line strength from one line's error: chosen."""
_STRENGTH_RIDGE = 1e-3
"""Of the mean diagonal: it holds knots without lines and touches no other."""
_PIXEL_RIDGE = 3000.0
"""In units of stars: with as many, half of a difference in a pixel is believed. Chosen."""
_PRIOR_STARS = 10_000.0
"""What another survey knows counts as so many stars; 30 000 were better in one case of two only."""
_N_STRUCTURAL = 3
"""Teff, log g and [M/H], on which all lines depend, come first; fewer labels are all such."""
_CORE_HALF_WIDTH_AA = 3.0
"""The chromosphere fills the cores; the wings are photospheric. Chosen, not measured."""
_N_MODE = 5
"""Three cores that vary together and apart, and two for their shapes: chosen."""
_CONTINUUM_DEGREE = 7
"""The seven orders of the observing model, and a constant."""
_LEAST_CONTINUUM = 0.001
"""No normalisation is better; a network must not trust the continuum blindly. Chosen."""
_LEAST_STARS = 10
"""Stars whose covariance in two pixels says more than noise: chosen, not measured."""
_STAR_WEIGHTS = (0.1, 4.0)
"""Bounds of a star's weight, so that no star rules and none is lost: chosen, not measured."""


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
        noise_correlation: Sequence[float] = RAVE_CORRELATION,
        prior: TheoryCalibration | None = None,
    ) -> Self:
        """Fit to labelled stars, of each only its good pixels.

        Parameters
        ----------
        wave_aa : (n_pixel,) float64
        theory, flux, ivar : (n_star, n_pixel) float32
            Emulated and observed flux at the same pixels; ivar 0 marks a bad pixel.
        labels : (n_star, n_label) float64
        noise_correlation : sequence of float
            Autocorrelation of the noise at lags of 1, 2, ... pixels.
        prior : TheoryCalibration, optional
            At the same pixels. What is fitted is then the difference to it, held down the more
            the fewer stars there are; its own modes do not count.
        """
        known = prior or cls.none(wave_aa.size, labels)
        centre, scale = known.centre, known.scale
        scaled = _clipped(labels, centre, scale)
        good = ivar > 0
        quality = _typical(ivar, good)
        # Relative to the survey: good spectra count more, within bounds.
        weight = np.clip(quality / max(float(np.median(quality)), 1e-30), *_STAR_WEIGHTS)
        observed = np.where(good, flux, theory).astype(np.float64)
        ridge = _STRENGTH_RIDGE * (1.0 if prior is None else 1.0 + _PRIOR_STARS / weight.size)
        # A bad pixel is left out, not set to theory: else it would count as agreeing with it.
        missing = np.where(good, observed - known.apply(theory, labels), 0.0)
        lines = _Lines(np.where(good, 1.0 - theory.astype(np.float64), 0.0), weight)
        # Strength first, smooth over many lines; pixels may only explain what it cannot.
        strength = known.strength + _fit_strength(wave_aa, lines, missing, scaled, ridge)
        half_way = replace(known, strength=strength)
        missing = np.where(good, observed - half_way.apply(theory, labels), 0.0)
        terms = _terms(scaled)
        added = _fit_pixels(terms, weight, missing, good)
        residual = np.where(good, missing - terms @ added, 0.0)
        noise = _Noise(ivar, quality, tuple(noise_correlation))
        cores = _core_modes(wave_aa, residual, noise)
        continuum = _continuum_modes(wave_aa, residual, observed, noise)
        return cls(centre, scale, strength, known.pixel + added, cores, continuum)

    @classmethod
    def none(cls, n_pixel: int, labels: Float64Array) -> Self:
        """Return one that leaves theory as it is; labels (n_star, n_label) give its scale."""
        centre, scale = robust_scale(labels)
        n_term = _terms(np.zeros((1, centre.size))).shape[1]
        mode = np.zeros((0, n_pixel), dtype=np.float32)
        zero = np.zeros((n_term, n_pixel))
        n_linear = 1 + min(_N_STRUCTURAL, centre.size)
        return cls(centre, scale, zero[:n_linear], zero, mode, mode)

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

    def changed(self, depth: Float64Array, added: Float64Array) -> Self:
        """Return one that deepens all lines besides, and adds flux.

        Parameters
        ----------
        depth, added : (n_pixel,) float64
            Calibrated flux f becomes f - depth (1 - f) + added.
        """
        strength, pixel = self.strength * (1.0 + depth), self.pixel * (1.0 + depth)
        strength[0] += depth
        pixel[0] += added
        return replace(self, strength=strength, pixel=pixel)

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
        strength, pixel = self.strength.astype(single), self.pixel.astype(single)
        change = on_finite_rows(lambda known: known @ strength, _linear(scaled).astype(single))
        return change, on_finite_rows(lambda known: known @ pixel, terms.astype(single))

    def change_slopes(self, labels: Float64Array) -> tuple[Float32Array, Float32Array]:
        """Return derivatives by each label of `change`, if `smooth`: (n_star, n_label, n_pixel)."""
        scaled, rise = _bent(labels, self.centre, self.scale)
        n_star, n_label = scaled.shape
        per_label = rise / self.scale
        n_first = min(_N_STRUCTURAL, n_label)
        linear = np.zeros((n_star, n_label, 1 + n_first))
        linear[:, range(n_first), range(1, 1 + n_first)] = 1.0
        first, second = np.triu_indices(n_first)
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
    # Slope 1 where it begins, 0 where it ends: no step in a derivative.
    turned = np.tanh((np.abs(scaled) - _BEND_SIGMA) / width)
    far = turned > 0
    bent = np.where(far, np.sign(scaled) * (_BEND_SIGMA + width * turned), scaled)
    return bent, np.where(far, 1.0 - turned**2, 1.0)


def _linear(scaled: Float64Array) -> Float64Array:
    return np.column_stack([np.ones(len(scaled)), scaled[:, :_N_STRUCTURAL]])


def _terms(scaled: Float64Array) -> Float64Array:
    first, second = np.triu_indices(min(_N_STRUCTURAL, scaled.shape[1]))
    products = scaled[:, first] * scaled[:, second]
    return np.column_stack([np.ones(len(scaled)), scaled, products])


def _typical(ivar: Float32Array, good: BoolArray) -> Float64Array:
    """Median ivar of the good pixels of each star, (n_star,); 0 where it has none."""
    out = np.zeros(len(ivar))
    whole = good.all(axis=1)
    out[whole] = np.median(ivar[whole], axis=1)
    for row in np.flatnonzero(~whole & good.any(axis=1)):
        out[row] = np.median(ivar[row, good[row]])
    return out


class _Lines(NamedTuple):
    """Depth of the theoretical lines (n_star, n_pixel), 0 in bad pixels; weight of each star."""

    depth: Float64Array
    weight: Float64Array


def _fit_strength(
    wave_aa: Float64Array,
    lines: _Lines,
    missing: Float64Array,
    scaled: Float64Array,
    ridge: float,
) -> Float64Array:
    """Change of line strength (4, n_pixel) that adds the missing flux (n_star, n_pixel)."""
    from scipy.interpolate import BSpline

    n_knot = max(4, round((wave_aa[-1] - wave_aa[0]) / _KNOT_SPACING_AA) + 1)
    inner = np.linspace(wave_aa[0], wave_aa[-1], n_knot)
    ends = _SPLINE_DEGREE
    padded = np.r_[[inner[0]] * ends, inner, [inner[-1]] * ends]
    spline = BSpline.design_matrix(wave_aa, padded, _SPLINE_DEGREE).toarray()
    linear, (depth, weight) = _linear(scaled), lines
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


def _fit_pixels(
    terms: Float64Array, weight: Float64Array, missing: Float64Array, good: BoolArray
) -> Float64Array:
    """Flux to add per term, (n_term, n_pixel): weighted least squares over good pixels."""
    n_star, n_term = terms.shape
    diagonal = np.arange(n_term)
    weighted = (terms * weight[:, None]).T
    right = weighted @ missing
    whole = weighted @ terms
    # A term that no star has would leave the system singular.
    least = 1e-9 * np.trace(whole)
    whole[diagonal, diagonal] *= 1.0 + _PIXEL_RIDGE / n_star
    whole[diagonal, diagonal] += least
    added = np.linalg.solve(whole, right)
    some = np.flatnonzero(~good.all(axis=0))
    if some.size:
        # Where stars are missing each pixel has a matrix of its own, of those that it has.
        seen = good[:, some]
        products = (weighted.T[:, :, None] * terms[:, None, :]).reshape(n_star, -1)
        normal = (seen.T.astype(np.float64) @ products).reshape(some.size, n_term, n_term)
        count = np.maximum(seen.sum(axis=0), 1)[:, None]
        normal[:, diagonal, diagonal] *= 1.0 + _PIXEL_RIDGE / count
        normal[:, diagonal, diagonal] += least
        added[:, some] = np.linalg.solve(normal, right[:, some].T[:, :, None])[:, :, 0].T
    return np.asarray(added, dtype=np.float64)


class _Noise(NamedTuple):
    """Inverse variance (n_star, n_pixel), its typical value per star, and the correlation."""

    ivar: Float32Array
    quality: Float64Array
    correlation: tuple[float, ...]


def _core_modes(wave_aa: Float64Array, residual: Float64Array, noise: _Noise) -> Float32Array:
    """Principal components of the scatter in the Ca II cores, after the noise is taken off.

    Each element of the covariance is a mean over the stars that have both of its pixels; the
    expected mean of their noise is taken off.
    """
    distance = np.abs(wave_aa[:, None] - np.array(CALCIUM_AA)).min(axis=1)
    core = np.flatnonzero(distance < _CORE_HALF_WIDTH_AA)
    modes = np.zeros((min(_N_MODE, core.size), wave_aa.size), dtype=np.float32)
    if core.size == 0:
        return modes
    # Noisy stars would add more noise to take off than scatter to see.
    best = noise.quality >= np.percentile(noise.quality, 25.0)
    part, ivar = residual[np.ix_(best, core)], noise.ivar[np.ix_(best, core)].astype(np.float64)
    good = ivar > 0
    sigma = np.where(good, 1.0 / np.sqrt(np.where(good, ivar, 1.0)), 0.0)
    count = good.T.astype(np.float64) @ good
    by_lag = np.r_[1.0, noise.correlation, 0.0]
    lag = np.abs(np.subtract.outer(core, core))
    correlation = by_lag[np.minimum(lag, by_lag.size - 1)]
    total = part.T @ part - correlation * (sigma.T @ sigma)
    covariance = np.where(count >= _LEAST_STARS, total / np.maximum(count, 1.0), 0.0)
    value, vector = np.linalg.eigh(covariance)
    largest = slice(core.size - len(modes), core.size)
    # Where more noise was taken off than is there, an eigenvalue is negative: no scatter.
    modes[:, core] = (np.sqrt(np.clip(value[largest], 0, None)) * vector[:, largest]).T
    return modes


def _continuum_modes(
    wave_aa: Float64Array, residual: Float64Array, observed: Float64Array, noise: _Noise
) -> Float32Array:
    """Legendre polynomials as large as they scatter from star to star, noise taken off.

    Their coefficients in each star are least squares over its good pixels, c = G^-1 B r with
    G = B B^T, and their noise is the diagonal of G^-1 B V B^T G^-1.
    """
    x = 2.0 * (wave_aa - wave_aa[0]) / (wave_aa[-1] - wave_aa[0]) - 1.0
    basis = np.polynomial.legendre.legvander(x, _CONTINUUM_DEGREE).T
    basis /= np.sqrt(np.mean(basis**2, axis=1, keepdims=True))
    n_order = len(basis)
    good = noise.ivar > 0
    # With less than half of its pixels a star would be extrapolated.
    chosen = np.flatnonzero(good.sum(axis=1) >= 0.5 * max(good.sum(axis=1).max(), 1))
    good, flux = good[chosen], np.maximum(observed[chosen], FLUX_FLOOR)
    products = (basis[:, None] * basis[None]).reshape(n_order**2, -1).T
    gram = (good.astype(np.float64) @ products).reshape(-1, n_order, n_order)
    gram[:, range(n_order), range(n_order)] += 1e-9 * wave_aa.size
    right = np.where(good, residual[chosen] / flux, 0.0) @ basis.T
    coefficients = np.linalg.solve(gram, right[:, :, None])[:, :, 0]
    # Robust: a few stars have a wild continuum.
    scatter = (MAD_TO_SIGMA * np.median(np.abs(coefficients), axis=0)) ** 2
    # Polynomials are smooth, so that neighbours add up with their correlation.
    correlated = 1.0 + 2.0 * sum(noise.correlation)
    variance = np.where(good, correlated / (np.where(good, noise.ivar[chosen], 1.0) * flux**2), 0.0)
    spread = (variance @ products).reshape(-1, n_order, n_order)
    inverse = np.linalg.inv(gram)
    own = np.einsum("nij,njk,nik->ni", inverse, spread, inverse)
    expected = np.median(own, axis=0)
    rms = np.sqrt(np.clip(scatter - expected, _LEAST_CONTINUUM**2, None))
    return np.asarray(rms[:, None] * basis, dtype=np.float32)
