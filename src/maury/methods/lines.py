"""A spectrum as a sum of Voigt lines whose equivalent widths are polynomials in the labels.

The model of SP_Ace (Boeche & Grebel 2016, A&A 587, A2): F = 1 - sum_i EW_i V_i. The widths of each
line are polynomials of total degree four in Teff, log g, [M/H] and the abundance of its element
relative to [M/H], learnt from synthetic spectra.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Self

import numpy as np
from scipy.special import voigt_profile

from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.protocols import Evaluation, ForwardModel
from maury.spectra.operators import FWHM_PER_SIGMA

__all__ = ["GROUPS", "LineModel", "find_lines"]


GROUPS: dict[str, dict[str, float]] = {
    "fe": {"fe_h": 1.0, "m_h": -1.0},
    "si": {"fe_h": 1.0, "si_fe": 1.0, "m_h": -1.0},
    "al": {"fe_h": 1.0, "al_fe": 1.0, "m_h": -1.0},
    "mg": {"fe_h": 1.0, "mg_fe": 1.0, "m_h": -1.0},
    "ni": {"fe_h": 1.0, "ni_fe": 1.0, "m_h": -1.0},
    "alpha": {"alpha_m": 1.0},
}
"""[X/M] of each group of lines, as sums of labels; ``alpha`` holds calcium, titanium and oxygen."""

# Total degree of the polynomials, as of Boeche & Grebel (2016, A&A 587, A2).
_DEGREE = 4
# Teff, log g, [M/H] and [X/M].
_VARIABLES = 4
_EXPONENTS = np.array(
    [
        np.bincount(np.array(chosen, dtype=np.int64), minlength=_VARIABLES)
        for degree in range(_DEGREE + 1)
        for chosen in combinations_with_replacement(range(_VARIABLES), degree)
    ]
)
_SHARED = _EXPONENTS[:, 3] == 0
_SCALE = np.array([1000.0, 1.2, 0.8, 0.3])
_CENTRE = np.array([5200.0, 3.0, -0.4, 0.0])
# Nearer lines of one group are one line at this sampling.
_APART_PIXELS = 2
# Least flux per dex of a line; chosen, a tenth of the noise at S/N 50.
_WEAKEST = 0.002
# Mean depth above which wings matter; meant for the Ca II triplet.
_STRONG = 0.45
# Wings of strong lines as a sum of widths; chosen to span core to wing in steps of three.
_LORENTZ_AA = (0.05, 0.35, 1.2, 4.0)
# Relative to the number of spectra, against collinear monomials.
_RIDGE = 1e-5
# Relative to the mean square of profiles, against blended lines.
_WIDTH_RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class LineModel:
    """A `ForwardModel` of the nine labels, made of lines.

    Attributes
    ----------
    centres_aa : (n_line,) float64
        Wavelengths of the lines; a strong line stands there once for each Lorentzian width.
    group : (n_line,) int64
        Position in `GROUPS`.
    polynomials : (n_line, 70) float64
        Equivalent widths, angstrom, by the monomials of the scaled variables.
    profiles : (n_line, n_pixel) float32
        Voigt profiles of unit area, per angstrom.
    limits : (9, 2) float64
        Bounds of the labels.
    wave : (n_pixel,) float64
    own_variance : (n_pixel,) float32
    """

    centres_aa: Float64Array
    group: Int64Array
    polynomials: Float64Array
    profiles: Float32Array
    limits: Float64Array
    wave: Float64Array
    own_variance: Float32Array

    label_names = LABEL_NAMES

    @classmethod
    def learn(
        cls,
        lines: tuple[Float64Array, Int64Array, BoolArray],
        labels: Float64Array,
        flux: Float32Array,
        *,
        wave: Float64Array,
        resolving_power: float,
        limits: Float64Array,
    ) -> Self:
        """Measure the lines in synthetic spectra, and fit their widths.

        Parameters
        ----------
        lines : tuple of (n,) arrays
            Centres, groups, and which are strong; from `find_lines`.
        labels, flux : (n_star, 9), (n_star, n_pixel)
            Synthetic spectra, at rest.
        wave : (n_pixel,) float64
        resolving_power : float
        limits : (9, 2) float64
        """
        centres, group, profiles = _profiles(*lines, wave, resolving_power)
        response = _response(labels, 1.0 - flux.astype(np.float64))
        polynomials = np.zeros((centres.size, len(_EXPONENTS)))
        polynomials[:, _SHARED] = _widths(response[0], profiles).T
        for number in range(len(GROUPS)):
            chosen = group == number
            if chosen.any():
                own = _widths(response[1 + number], profiles[chosen])
                polynomials[np.ix_(chosen, ~_SHARED)] = own.T
        none = np.zeros(wave.size, dtype=np.float32)
        model = cls(centres, group, polynomials, profiles.astype(np.float32), limits, wave, none)
        left = flux - model.evaluate(labels, jacobian=False).flux
        own = np.mean(left.astype(np.float64) ** 2, axis=0).astype(np.float32)
        return replace(model, own_variance=own)

    @property
    def bounds(self) -> Float64Array:
        """Bounds (9, 2) of the labels."""
        return self.limits

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.wave

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        n, k = labels.shape
        widths = np.empty((n, 1 + k if jacobian else 1, self.centres_aa.size))
        for number, parts in enumerate(GROUPS.values()):
            chosen = self.group == number
            terms, slopes = _monomials(_variables(labels, number))
            polynomials = self.polynomials[chosen].T
            widths[:, 0, chosen] = terms @ polynomials
            if not jacobian:
                continue
            mixing = _mixing(parts) / _SCALE[:, None]
            widths[:, 1:, chosen] = (mixing.T @ slopes) @ polynomials
        rows = -(widths.astype(np.float32) @ self.profiles)
        rows[:, 0] += np.float32(1.0)
        return Evaluation(rows[:, 0], rows[:, 1:] if jacobian else None)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Mean squared error (n_pixel,) against the synthetic spectra."""
        del labels
        return self.own_variance


def _response(labels: Float64Array, depth: Float64Array) -> list[Float64Array]:
    """Coefficients (n_term, n_pixel) of the depth: of terms without [X/M], then of each group."""
    parts = [_monomials(_variables(labels, number))[0] for number in range(len(GROUPS))]
    design = np.hstack([parts[0][:, _SHARED], *(part[:, ~_SHARED] for part in parts)])
    normal = design.T @ design + _RIDGE * len(labels) * np.eye(design.shape[1])
    whole = np.linalg.solve(normal, design.T @ depth)
    count = int(_SHARED.sum())
    others = np.split(whole[count:], len(GROUPS))
    return [whole[:count], *others]


def _widths(response: Float64Array, profiles: Float64Array) -> Float64Array:
    """Equivalent widths (n_term, n_line) whose profiles add up to a response (n_term, n_pixel)."""
    gram = profiles @ profiles.T
    # Blends share their width only through this ridge: they cannot be told apart.
    gram[np.diag_indices(len(gram))] += _WIDTH_RIDGE * np.trace(gram) / len(gram)
    return np.asarray(np.linalg.solve(gram, profiles @ response.T).T)


def find_lines(
    model: ForwardModel, labels: Float64Array
) -> tuple[Float64Array, Int64Array, BoolArray]:
    """Find lines in a theoretical model: peaks of the derivative by each group's abundance.

    Parameters
    ----------
    model : ForwardModel
        Its first labels are the nine.
    labels : (n_star, n_label) float64
        Typical stars.

    Returns
    -------
    centres_aa : (n,) float64
    group : (n,) int64
        Position in `GROUPS`; lines of several groups may stand at one place.
    strong : (n,) bool
        Whether the line is so deep that its wings matter.
    """
    flux, slopes = model.evaluate(labels)
    assert slopes is not None, "derivatives were asked for"
    by_label = {name: slopes[:, k].astype(np.float64) for k, name in enumerate(LABEL_NAMES)}
    elements = [by_label[name] for name in ("si_fe", "al_fe", "mg_fe", "ni_fe")]
    by_group = [by_label["fe_h"] - sum(elements), *elements, by_label["alpha_m"]]
    size = np.sqrt(np.mean(np.square(by_group), axis=1))
    depth = np.mean(1.0 - flux, axis=0)
    places, groups = [], []
    for number, one in enumerate(size):
        peak = np.r_[False, (one[1:-1] >= one[:-2]) & (one[1:-1] > one[2:]), False]
        candidates = np.flatnonzero(peak & (one > _WEAKEST))
        kept: list[int] = []
        for pixel in candidates[np.argsort(-one[candidates])]:
            if all(abs(int(pixel) - other) >= _APART_PIXELS for other in kept):
                kept.append(int(pixel))
        places += kept
        groups += [number] * len(kept)
    found = np.array(places, dtype=np.int64)
    group = np.array(groups, dtype=np.int64)
    return model.wave_aa[found], group, depth[found] > _STRONG


def _profiles(
    centres: Float64Array,
    group: Int64Array,
    strong: BoolArray,
    wave: Float64Array,
    resolving_power: float,
) -> tuple[Float64Array, Int64Array, Float64Array]:
    """Profiles of all lines, several for each strong one."""
    repeats = np.where(strong, len(_LORENTZ_AA), 1)
    lorentz = np.concatenate([_LORENTZ_AA[:count] for count in repeats])
    centres, group = np.repeat(centres, repeats), np.repeat(group, repeats)
    sigma = centres / resolving_power / FWHM_PER_SIGMA
    apart = wave - centres[:, None]
    return centres, group, np.asarray(voigt_profile(apart, sigma[:, None], lorentz[:, None]))


def _mixing(parts: Mapping[str, float]) -> Float64Array:
    """Return what each variable of a group gains per unit of each label, (4, 9)."""
    out = np.zeros((_VARIABLES, len(LABEL_NAMES)))
    for row, name in enumerate(("teff", "logg", "m_h")):
        out[row, LABEL_NAMES.index(name)] = 1.0
    for name, factor in parts.items():
        out[3, LABEL_NAMES.index(name)] += factor
    return out


def _variables(labels: Float64Array, number: int) -> Float64Array:
    """Scaled Teff, log g, [M/H], [X/M] of a group, (n_star, 4)."""
    values = labels @ _mixing(list(GROUPS.values())[number]).T
    return np.asarray((values - _CENTRE) / _SCALE)


def _monomials(scaled: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Monomials (n_star, 70) of total degree up to four, and derivatives (n_star, 4, 70)."""
    powers = np.ones((_DEGREE + 1, *scaled.shape))
    for degree in range(_DEGREE):
        powers[degree + 1] = powers[degree] * scaled
    index = np.arange(_VARIABLES)
    factors = powers[_EXPONENTS, :, index].transpose(2, 0, 1)
    terms = factors.prod(axis=2)
    slopes = np.empty((len(scaled), _VARIABLES, len(_EXPONENTS)))
    for k in index:
        others = np.delete(factors, k, axis=2).prod(axis=2)
        exponent = _EXPONENTS[:, k]
        slopes[:, k] = others * exponent * powers[np.maximum(exponent - 1, 0), :, k].T
    return terms, slopes
