"""A theory of spectra that is learnt from the labelled stars themselves.

Where no synthetic spectra reach, the labelled spectra are all there is to tell what labels do to a
spectrum. Flux is a polynomial of the labels, pixel by pixel (Ness et al. 2015, ApJ 808, 16, eq. 4,
has a quadratic one), and stars scatter about it along a few modes. A polynomial of some eighty
terms, fitted to two thousand noisy spectra, holds noise in each of its coefficients, which a
network would take for lines. Some things are known of coefficients that noise is not: they are as
broad as the line spread, they are large where lines are and next to nothing elsewhere, and a few
spectra tell nearly all of them. So they are made orthogonal to one another, and shrunk by what they
have in common (`maury.simulation.coefficient_shrinkage`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, lru_cache
from itertools import combinations_with_replacement
from typing import Self

import numpy as np

from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array
from maury.io.workers import one_thread
from maury.labels.statistics import MAD_TO_SIGMA, robust_scale
from maury.simulation.broadening import broadened
from maury.simulation.coefficient_shrinkage import (
    Scatter,
    noise_spectra,
    principal_components,
    shrunk,
)
from maury.simulation.companions import shifted

__all__ = ["LearntTheory", "Synthetic"]

_STRUCTURAL = (("teff",), ("logg",), ("m_h", "fe_h"))
"""Labels that shape all lines together, of which the polynomial has the high degrees."""
_STARS_PER_TERM = 8
"""Least stars a term of the polynomial: with fewer, terms are left out. Chosen, not measured."""
_SPECTRA_PER_TERM = 2
"""Least synthetic spectra a term, which have no noise; chosen."""
_DEGREES = (4, 3, 2, 1)
"""Degrees of the structural labels that are tried, the highest that the stars allow."""
_BEND_SIGMA = 1.0
"""Scaled labels beyond count in their logarithm, so that a few lone stars do not bend a polynomial
of all: on a simulated survey errors of the flux fell by a tenth."""
_CLIP_SIGMA = 6.0
"""Scaled and bent labels beyond are taken to be there: a polynomial runs away where no star holds
it."""
_STAR_WEIGHTS = (0.1, 4.0)
"""Bounds of a star's weight, so that no star rules and none is lost: chosen, not measured."""
_MOST_STARS = 2500
"""Stars whose residuals give the modes: more would add seconds and hardly a mode."""
_MOST_MODES = 100
"""Modes kept: fits with 50, 100 and 200 had scatters within one percent on a simulated survey."""
_BLOCK = 2048
"""Spectra that are changed at a time, which bounds the memory; chosen."""
_SPIKE_SIGMA = 6.0
"""Residuals of a pixel beyond are cosmic rays or lost lines, and no scatter of stars; chosen."""
_HIDDEN_POWER = 25.0
"""Variance, over that of the noise, of what labels leave open from which on it counts as a further
label: a Gaussian mode would not do, as it is known for each star to a fifth. Chosen."""
_CONTINUUM_DEGREE = 7
"""As of the observing model, whose continuum residuals are like those of surveys."""
_MOST_HIDDEN = 6
"""As many properties structure a spectrum; chosen."""
_TAIL = 0.3
"""Scatter of the logarithm of a star's amplitude in all its modes: some stars are odder than
others by as much; chosen."""


@dataclass(frozen=True, eq=False)
class Synthetic:
    """Noise-free spectra of a user's theory, at labels that it shares with the survey.

    Attributes
    ----------
    columns : tuple of int
        Numbers of these labels among those of the survey.
    labels : (n, n_shared) float64
    flux : (n, n_pixel) float32
        At the pixels and the resolving power of the survey.
    """

    columns: tuple[int, ...]
    labels: Float64Array
    flux: Float32Array

    def coefficients(
        self,
        powers: Float64Array,
        centre: Float64Array,
        scale: Float64Array,
        bend: Float64Array,
    ) -> Float64Array:
        """Coefficients (n_term, n_pixel) of terms of the shared labels alone; 0 of the others."""
        own = np.array(self.columns, dtype=np.int64)
        others = np.setdiff1d(np.arange(powers.shape[1]), own)
        chosen = np.flatnonzero((powers[:, others] == 0).all(axis=1))
        # Lower terms come first: as many as the spectra hold.
        chosen = chosen[: max(1, len(self.labels) // _SPECTRA_PER_TERM)]
        scaled = _scaled(self.labels, centre[own], scale[own], bend[own])
        terms = _terms(scaled, powers[np.ix_(chosen, own)])
        # Nothing is noise here: this much only holds terms that the spectra do not tell apart.
        normal = terms.T @ terms
        normal[np.diag_indices(len(normal))] += 1e-6 * np.trace(normal) / len(normal)
        found = np.zeros((len(powers), self.flux.shape[1]))
        found[chosen] = np.linalg.solve(normal, terms.T @ self.flux.astype(np.float64))
        return found


@dataclass(frozen=True, eq=False)
class LearntTheory:
    """Labels to continuum-normalised flux on the pixels of the survey that it was learnt from.

    Attributes
    ----------
    centre, scale : (n_column,) float64
        Of the labels, then of the hidden properties.
    lowest, highest : (n_column,) float64
        Their limits among the stars that it was learnt from.
    powers : (n_term, n_column) int64
        Exponents of each term of the polynomial in the scaled columns.
    coefficients : (n_term, n_pixel) float32
    modes : (n_mode, n_pixel) float32
        Scatter of the stars about the polynomial, one standard deviation each, noise taken off.
    hidden_basis : (n_hidden, n_pixel) float32
        What a hidden property adds to the flux that labels alone give.
    base : (n_term_of_labels, n_pixel) float32
        Coefficients of the polynomial of the labels alone; the same as `coefficients` where nothing
        is hidden.
    base_powers : (n_term_of_labels, n_label) int64
    bend : (n_column,) float64
        Scaled columns beyond count in their logarithm; infinite where none does.
    """

    centre: Float64Array
    scale: Float64Array
    lowest: Float64Array
    highest: Float64Array
    powers: Float64Array
    coefficients: Float32Array
    modes: Float32Array
    hidden_basis: Float32Array
    base: Float32Array
    base_powers: Float64Array
    bend: Float64Array

    @classmethod
    def fit(
        cls,
        flux: Float32Array,
        ivar: Float32Array,
        *,
        labels: Float64Array,
        names: Sequence[str],
        noise_correlation: Sequence[float],
        synthetic: Synthetic | None = None,
    ) -> tuple[Self, Float64Array]:
        """Learn from labelled stars, of each only its good pixels.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float32
            ivar 0 marks a bad pixel.
        labels : (n_star, n_label) float64
            Finite.
        names : sequence of str
            Of the labels.
        noise_correlation : sequence of float
            Autocorrelation of the noise at lags of 1, 2, ... pixels.
        synthetic : Synthetic, optional
            What a theory of the user knows: the stars then tell the difference to it alone, and
            where they tell nothing but noise it stays.

        Returns
        -------
        LearntTheory
        (n_star, n_hidden) float64
            Hidden properties of the stars; no column where labels tell enough.
        """
        with one_thread():
            stars = _Stars.of(flux, ivar, tuple(noise_correlation))
            return cls._fit(stars, labels, names, synthetic)

    @classmethod
    def _fit(
        cls,
        stars: _Stars,
        labels: Float64Array,
        names: Sequence[str],
        synthetic: Synthetic | None,
    ) -> tuple[Self, Float64Array]:
        centre, scale = robust_scale(labels)
        first = _structural(names)
        powers = _powers(labels.shape[1], first, len(labels))
        bend = _bend(labels.shape[1], first)
        known = None
        if synthetic is not None:
            known = synthetic.coefficients(powers, centre, scale, bend)
        terms = _Terms.of(_scaled(labels, centre, scale, bend), powers, first)
        base = _fit(terms, stars, known)
        white = stars.white(terms.values, base)
        basis = _hidden(white, stars)
        hidden = _coordinates(terms.values, base, stars, basis)
        columns, own = np.hstack([labels, hidden]), powers
        coefficients = base
        if hidden.shape[1]:
            centre, scale = robust_scale(columns)
            bend = _bend(columns.shape[1], first)
            whole = (*first, *range(labels.shape[1], columns.shape[1]))
            own = _powers(columns.shape[1], whole, len(labels))
            if synthetic is not None:
                known = synthetic.coefficients(own, centre, scale, bend)
            terms = _Terms.of(_scaled(columns, centre, scale, bend), own, whole)
            coefficients = _fit(terms, stars, known)
            white = stars.white(terms.values, coefficients)
        modes = _modes(white, stars)
        return cls(
            centre=centre,
            scale=scale,
            lowest=columns.min(axis=0),
            highest=columns.max(axis=0),
            powers=own,
            coefficients=coefficients.astype(np.float32),
            modes=modes,
            hidden_basis=basis.astype(np.float32),
            base=base.astype(np.float32),
            base_powers=powers,
            bend=bend,
        ), hidden

    @classmethod
    def checked(cls, arrays: Mapping[str, AnyArray], *, n_label: int) -> Self:
        """Put arrays of a file together; those of before have no `bend`.

        Raises
        ------
        ValueError
            If their shapes do not fit each other.
        """
        straight = np.full(np.shape(arrays["centre"]), np.inf)
        found = cls(**{"bend": straight, **arrays})
        n_term, n_column = found.powers.shape
        n_hidden, n_pixel = found.hidden_basis.shape
        shapes = {
            "centre": (n_column,),
            "scale": (n_column,),
            "lowest": (n_column,),
            "highest": (n_column,),
            "bend": (n_column,),
            "coefficients": (n_term, n_pixel),
            "modes": (len(found.modes), n_pixel),
            "base": (len(found.base_powers), n_pixel),
            "base_powers": (len(found.base_powers), n_label),
        }
        wrong = [name for name, shape in shapes.items() if getattr(found, name).shape != shape]
        if wrong or n_column != n_label + n_hidden:
            raise ValueError(f"the shapes of {', '.join(wrong) or 'labels'} do not fit the others")
        powers = np.concatenate([found.powers.ravel(), found.base_powers.ravel()])
        # Each power is a loop, so that a file may not ask for many.
        if not ((powers >= 0) & (powers <= max(_DEGREES))).all():
            raise ValueError(f"powers must lie between 0 and {max(_DEGREES)}")
        return found

    @property
    def n_label(self) -> int:
        """Labels; the other columns are hidden properties."""
        return int(self.base_powers.shape[1])

    def clip(self, columns: Float64Array) -> Float64Array:
        """Labels and hidden properties (n_star, n_column), moved into the range of the stars."""
        return np.clip(columns, self.lowest, self.highest)

    def flux(self, columns: Float64Array) -> Float32Array:
        """Noise-free flux (n_star, n_pixel) of labels and hidden properties (n_star, n_column)."""
        scaled = _scaled(self.clip(columns), self.centre, self.scale, self.bend)
        return _product(_terms(scaled, self.powers), self.coefficients)

    def typical(self, labels: Float64Array) -> Float32Array:
        """Flux (n_star, n_pixel) by the labels (n_star, n_label) alone; NaN if one is unknown."""
        scaled, _ = self._scaled_labels(labels)
        return _product(_terms(scaled, self.base_powers), self.base)

    def _scaled_labels(self, labels: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Labels (n_star, n_label) as the polynomial has them, and their rise per unit of each."""
        own = slice(self.n_label)
        inside = np.clip(labels, self.lowest[own], self.highest[own])
        centre, scale, bend = self.centre[own], self.scale[own], self.bend[own]
        # The slope of asinh(z / b) b; without a bend, which is then infinite, it is 1.
        rise = 1.0 / (scale * np.hypot(1.0, (inside - centre) / scale / bend))
        return _scaled(inside, centre, scale, bend), rise

    def typical_slopes(self, labels: Float64Array) -> Float32Array:
        """Return derivatives (n_star, n_label, n_pixel) of `typical` per unit of each label.

        Beyond the range of the stars they are those at its end.
        """
        scaled, rise = self._scaled_labels(labels)
        out = np.empty((*labels.shape, self.base.shape[1]), dtype=np.float32)
        for k in range(self.n_label):
            exponent, lowered = self.base_powers[:, k], self.base_powers.copy()
            lowered[:, k] = np.maximum(exponent - 1, 0)
            out[:, k] = _product(_terms(scaled, lowered) * exponent * rise[:, k, None], self.base)
        return out

    def seen(self, labels: Float64Array, flux: Float32Array, ivar: Float32Array) -> Float32Array:
        """Spectra (n_star, n_pixel) of such labels that come nearest to observed ones.

        What labels leave open is fitted: hidden properties freely, and modes as far as stars
        scatter along them. NaN where a label is unknown.

        Parameters
        ----------
        labels : (n_star, n_label) float64
        flux, ivar : (n_star, n_pixel) float32
            ivar 0 marks a bad pixel.
        """
        expected = self.typical(labels)
        level = _level(ivar)
        if len(self.hidden_basis):
            found = self.hidden(labels, flux, ivar)
            expected = self.flux(np.hstack([labels, found]))
        residual = np.where(ivar > 0, flux - expected, np.float32(0))
        residual = np.nan_to_num(np.clip(residual, -1.0, 1.0))
        value, vector = self._mode_system
        # Noise alike in all pixels, so that one decomposition serves all stars.
        pull = (residual @ self.modes.T) @ vector * level[:, None]
        amplitude = (pull / (1.0 + level[:, None] * value)) @ vector.T
        return np.asarray(expected + amplitude.astype(np.float32) @ self.modes)

    def hidden(self, labels: Float64Array, flux: Float32Array, ivar: Float32Array) -> Float64Array:
        """Hidden properties (n_star, n_hidden) of observed stars, within the range of the stars."""
        if not len(self.hidden_basis):
            return np.zeros((len(labels), 0))
        good = ivar > 0
        residual = np.where(good, flux - self.typical(labels), 0.0)
        found = _projected(np.nan_to_num(residual), good, self.hidden_basis)
        n_label = self.n_label
        return np.clip(found, self.lowest[n_label:], self.highest[n_label:])

    @cached_property
    def _mode_system(self) -> tuple[Float64Array, Float64Array]:
        gram = self.modes.astype(np.float64) @ self.modes.T.astype(np.float64)
        value, vector = np.linalg.eigh(gram)
        return np.clip(value, 0.0, None), vector

    def to_arrays(self) -> dict[str, Float64Array | Float32Array]:
        """Return all arrays by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


def moved(
    flux: Float32Array,
    wave_aa: Float64Array,
    rotation_kms: Float64Array,
    rv_kms: Float64Array,
) -> Float32Array:
    """Spectra (n_star, n_pixel) of stars that rotate and move besides; NaN is neither."""
    out = flux.copy()
    turning, moving = np.isfinite(rotation_kms), np.isfinite(rv_kms)
    if turning.any():
        out[turning] = broadened(flux[turning], rotation_kms[turning], wave_aa)
    if moving.any():
        out[moving] = shifted(out[moving], rv_kms[moving], wave_aa)
    return out


def drawn_modes(theory_modes: Float32Array, n_star: int, rng: np.random.Generator) -> Float32Array:
    """Flux (n_star, n_pixel) by which stars depart from the polynomial, drawn at random."""
    amplitude = rng.standard_normal((n_star, len(theory_modes)), dtype=np.float32)
    odd = np.exp(_TAIL * rng.standard_normal((n_star, 1), dtype=np.float32) - _TAIL**2)
    return np.asarray((amplitude * odd) @ theory_modes)


@dataclass(frozen=True, eq=False)
class _Stars:
    """Labelled spectra, bad pixels at the mean of the others, with their weights.

    Nothing here is made of all spectra at once but a copy of them: twenty thousand of 8575 pixels
    are 700 megabytes.
    """

    flux: Float32Array
    good: BoolArray
    weight: Float64Array
    sigma: Float64Array
    correlation: tuple[float, ...]

    @classmethod
    def of(cls, flux: Float32Array, ivar: Float32Array, correlation: tuple[float, ...]) -> Self:
        level = _level(ivar)
        typical = max(float(np.median(level[level > 0])), 1e-30) if (level > 0).any() else 1.0
        weight = np.where(level > 0, np.clip(level / typical, *_STAR_WEIGHTS), 0.0)
        good = ivar > 0
        count = np.maximum(good.sum(axis=0), 1)
        total, inverse = np.zeros((2, flux.shape[1]))
        for rows in _blocks(len(flux)):
            part, unit = good[rows], np.maximum(level[rows], 1e-30)[:, None].astype(np.float32)
            total += np.where(part, flux[rows], 0.0).sum(axis=0, dtype=np.float64)
            inverse += np.where(part, ivar[rows] / unit, 0.0).sum(axis=0, dtype=np.float64)
        # Noise of each pixel in a typical star; where no star has one, as elsewhere.
        relative = np.where(inverse > 0, inverse / count, 1.0)
        sigma = 1.0 / np.sqrt(typical * relative)
        filled = np.where(good, flux, (total / count).astype(np.float32))
        return cls(filled, good, weight, sigma, correlation)

    def less(self, terms: Float64Array, coefficients: Float64Array) -> Self:
        """Return the same stars with what is expected taken off their flux."""
        flux = np.empty_like(self.flux)
        for rows in _blocks(len(flux)):
            flux[rows] = self.difference(terms, coefficients, rows)
        return replace(self, flux=flux)

    def difference(
        self, terms: Float64Array, coefficients: Float64Array, rows: slice | Int64Array
    ) -> Float32Array:
        """Flux of some stars less what is expected (n, n_pixel); 0 in bad pixels."""
        expected = _product(terms[rows], coefficients)
        return np.asarray(np.where(self.good[rows], self.flux[rows] - expected, np.float32(0)))

    def white(self, terms: Float64Array, coefficients: Float64Array) -> Float32Array:
        """Residuals (n, n_pixel) in units of the noise, of a part of the stars, without wild ones.

        0 in bad pixels and spikes.
        """
        chosen = np.flatnonzero(self.weight > 0)
        if chosen.size > _MOST_STARS:
            # Evenly and not at random, so that the same survey gives the same theory.
            chosen = chosen[np.linspace(0, chosen.size - 1, _MOST_STARS).astype(int)]
        found = self.difference(terms, coefficients, chosen)
        found /= self.sigma.astype(np.float32)
        found *= np.asarray(np.sqrt(self.weight[chosen]), dtype=np.float32)[:, None]
        found[_lone(found)] = 0.0
        size = np.mean(found**2, axis=1)
        # A star that fits far worse than nearly all would be a mode of its own.
        return np.asarray(found[size <= 3.0 * np.percentile(size, 95.0)])


def _blocks(n_star: int) -> list[slice]:
    return [slice(k, k + _BLOCK) for k in range(0, n_star, _BLOCK)]


def _lone(white: Float32Array) -> BoolArray:
    """Which pixels stand out while their neighbours do not: spikes, and no lines."""
    out = np.abs(white) > _SPIKE_SIGMA
    beside = np.zeros_like(out)
    beside[:, 1:] |= out[:, :-1]
    beside[:, :-1] |= out[:, 1:]
    return np.asarray(out & ~beside)


def _level(ivar: Float32Array) -> Float64Array:
    """Median ivar of the good pixels of each star, (n_star,); 0 where it has none."""
    out = np.zeros(len(ivar))
    for rows in _blocks(len(ivar)):
        part = ivar[rows]
        good = part > 0
        whole, some = good.all(axis=1), good.any(axis=1)
        found = out[rows]
        # Without gaps, as most are, the median need not look for them.
        found[whole] = np.median(part[whole], axis=1)
        for row in np.flatnonzero(some & ~whole):
            found[row] = np.median(part[row, good[row]])
    return out


def _scaled(
    columns: Float64Array, centre: Float64Array, scale: Float64Array, bend: Float64Array
) -> Float64Array:
    scaled = (columns - centre) / scale
    bent = np.isfinite(bend)
    scaled[:, bent] = bend[bent] * np.arcsinh(scaled[:, bent] / bend[bent])
    return np.asarray(np.clip(scaled, -_CLIP_SIGMA, _CLIP_SIGMA))


def _structural(names: Sequence[str]) -> tuple[int, ...]:
    """Columns of the labels that shape all lines together, as far as there are such."""
    names = list(names)
    found = [next((names.index(n) for n in kind if n in names), None) for kind in _STRUCTURAL]
    return tuple(column for column in found if column is not None)


def _bend(n_column: int, first: Sequence[int]) -> Float64Array:
    """From where on each column counts in its logarithm: those alone that have high degrees."""
    out = np.full(n_column, np.inf)
    out[list(first)] = _BEND_SIGMA
    return out


def _powers(n_column: int, first: Sequence[int], n_star: int) -> Float64Array:
    """Exponents (n_term, n_column) of the richest polynomial that so many stars hold.

    All products of the columns `first` up to a degree; every other column by itself, squared, and
    times each of `first`. Terms that hold more come first.
    """
    others = [k for k in range(n_column) if k not in first]
    unit = np.eye(n_column)
    for degree in _DEGREES:
        for rich in (True, False):
            rows = [np.zeros(n_column)]
            for order in range(1, degree + 1):
                products = combinations_with_replacement(list(first)[:3], order)
                rows += [unit[list(product)].sum(axis=0) for product in products]
            for k in list(first)[3:]:
                rows += [unit[k], 2 * unit[k], *(unit[k] + unit[j] for j in list(first)[:3])]
            for k in others:
                rows.append(unit[k])
                if rich:
                    rows += [*(unit[k] + unit[j] for j in list(first)[:3]), 2 * unit[k]]
            if len(rows) * _STARS_PER_TERM <= n_star:
                return np.array(rows)
    return np.array([np.zeros(n_column), *unit])


def _terms(scaled: Float64Array, powers: Float64Array) -> Float64Array:
    """Products (n_star, n_term) of the scaled columns."""
    out = np.ones((len(scaled), len(powers)))
    for column in range(scaled.shape[1]):
        for exponent in range(1, int(powers[:, column].max(initial=0)) + 1):
            chosen = powers[:, column] >= exponent
            out[:, chosen] *= scaled[:, column, None]
    return out


def _product(terms: Float64Array, coefficients: Float64Array | Float32Array) -> Float32Array:
    # In single precision: twice as many stars fit into memory, and noise is far larger.
    return np.asarray(terms.astype(np.float32) @ coefficients.astype(np.float32))


@dataclass(frozen=True, eq=False)
class _Terms:
    """Terms of the polynomial for each star (n_star, n_term), and what they have in common.

    Those of one label share the places of its lines; those `together` are of labels that shape all
    lines. The first, which is the mean spectrum, is in no group.
    """

    values: Float64Array
    groups: tuple[Int64Array, ...]
    together: BoolArray

    @classmethod
    def of(cls, scaled: Float64Array, powers: Float64Array, whole: Sequence[int]) -> Self:
        """Terms of scaled columns (n_star, n_column), of which those of `whole` shape all lines."""
        single = [k for k in range(powers.shape[1]) if k not in whole]
        own = powers[1:]
        together = (own[:, single] == 0).all(axis=1)
        # Of labels that shape all lines, terms of one degree are alike.
        degree = np.where(together, own.sum(axis=1), 0)
        kind = np.column_stack([degree, own[:, single] > 0])
        number = np.unique(kind, axis=0, return_inverse=True)[1].ravel()
        groups = tuple(np.flatnonzero(number == k) for k in range(int(number.max(initial=-1)) + 1))
        return cls(_terms(scaled, powers), groups, together)


def _fit(terms: _Terms, stars: _Stars, known: Float64Array | None = None) -> Float64Array:
    """Coefficients (n_term, n_pixel), each shrunk as far as it may be noise.

    Towards 0, or towards those that are `known`.
    """
    if known is not None:
        return known + _fit(terms, stars.less(terms.values, known))
    root = np.sqrt(stars.weight)[:, None]
    orthogonal, triangle = np.linalg.qr(terms.values * root)
    # Terms that no star tells apart from earlier ones are left out, not divided by nothing.
    size = np.abs(np.diag(triangle))
    told = np.flatnonzero(size > 1e-6 * size.max())
    single = orthogonal.astype(np.float32)
    weights = root.astype(np.float32)
    raw = np.zeros((terms.values.shape[1], stars.flux.shape[1]))
    for rows in _blocks(len(single)):
        raw += single[rows].T @ (stars.flux[rows] * weights[rows])
    raw[np.setdiff1d(np.arange(len(raw)), told)] = 0.0

    def solved(values: Float64Array) -> Float64Array:
        out = np.zeros_like(raw)
        out[told] = np.linalg.solve(triangle[np.ix_(told, told)], values[told])
        return out

    white = stars.white(terms.values, solved(raw))
    # Least squares takes up a part of the noise, as many squares as there are terms.
    freedom = max(len(single) - len(raw), 1)
    white *= np.float32(np.sqrt(len(single) / freedom))
    variance, direction = _above_noise(white, stars)
    raw[1:] = stars.sigma * shrunk(
        raw[1:] / stars.sigma,
        Scatter(white, direction, variance),
        groups=terms.groups,
        together=terms.together,
        correlation=stars.correlation,
    )
    return solved(raw)


def _above_noise(white: Float32Array, stars: _Stars) -> tuple[Float64Array, Float32Array]:
    """Variances that exceed the largest of noise (Horn 1965, Psychometrika 30, 179), directions."""
    value, direction = principal_components(white, _MOST_MODES)
    chosen = value > _noise_variance(white.shape, stars.correlation)
    return value[chosen], direction[chosen]


@lru_cache(maxsize=8)
def _noise_variance(shape: tuple[int, int], correlation: tuple[float, ...]) -> float:
    """Largest variance that noise alone shows in a direction."""
    return float(principal_components(noise_spectra(shape, correlation), 1)[0][0])


def _hidden(white: Float32Array, stars: _Stars) -> Float64Array:
    """Directions in flux (n_hidden, n_pixel) along which stars of equal labels differ much."""
    # The continuum differs most of all, but is linear, so that modes will do for it.
    x = np.linspace(-1.0, 1.0, white.shape[1])
    smooth = np.polynomial.legendre.legvander(x, _CONTINUUM_DEGREE) / stars.sigma[:, None]
    level = np.linalg.qr(smooth)[0].astype(np.float32)
    lines = np.asarray(white - (white @ level) @ level.T, dtype=np.float32)
    value, direction = principal_components(lines, _MOST_HIDDEN)
    # Robust: a few odd stars are no property that all stars have.
    usual = (MAD_TO_SIGMA * np.median(np.abs(lines @ direction.T), axis=0)) ** 2
    noise = max(1.0, _noise_variance(white.shape, stars.correlation))
    several = np.minimum(value, usual) > _HIDDEN_POWER * noise
    return np.asarray(direction[several].astype(np.float64) * stars.sigma)


def _coordinates(
    terms: Float64Array, base: Float64Array, stars: _Stars, basis: Float64Array
) -> Float64Array:
    """Coordinates (n_star, n_hidden) of residuals in a basis, by the good pixels of each star."""
    out = np.zeros((len(terms), len(basis)))
    if len(basis):
        for rows in _blocks(len(terms)):
            residual = stars.difference(terms, base, rows)
            out[rows] = _projected(residual, stars.good[rows], basis)
    return out


def _projected(
    residual: Float32Array | Float64Array, good: BoolArray, basis: Float32Array | Float64Array
) -> Float64Array:
    wide = np.asarray(basis, dtype=np.float64)
    products = (wide[:, None] * wide[None]).reshape(len(wide) ** 2, -1).T
    gram = (good.astype(np.float64) @ products).reshape(-1, len(wide), len(wide))
    mean = np.trace(gram, axis1=1, axis2=2) / len(wide)
    gram[:, range(len(wide)), range(len(wide))] += 1e-6 * mean[:, None] + 1e-30
    right = residual.astype(np.float64) @ wide.T
    return np.asarray(np.linalg.solve(gram, right[:, :, None])[:, :, 0])


def _modes(white: Float32Array, stars: _Stars) -> Float32Array:
    """Modes (n_mode, n_pixel) of the scatter of stars, without that of the noise."""
    value, direction = _above_noise(white, stars)
    # Noise adds to the variance in the direction of a mode about as much as it shows at most.
    size = np.sqrt(np.clip(value - _noise_variance(white.shape, stars.correlation), 0.0, None))
    return np.asarray(size[:, None] * direction * stars.sigma, dtype=np.float32)
