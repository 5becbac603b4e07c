"""A spectrum as a sum of Voigt lines whose equivalent widths are polynomials in the labels.

The model of SP_Ace (Boeche & Grebel 2016, A&A 587, A2): F = 1 - sum_i EW_i V_i. The widths of each
line are polynomials of total degree four in Teff, log g, [M/H] and the abundance of its element
relative to [M/H], learnt from synthetic spectra.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import combinations_with_replacement
from typing import Self

import numpy as np
from scipy.sparse import csr_array
from scipy.special import voigt_profile

from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES
from maury.methods.protocols import Evaluation, ForwardModel
from maury.methods.storage import stored
from maury.spectra.operators import FWHM_PER_SIGMA

__all__ = ["LineModel", "find_lines", "groups_of"]


_ATMOSPHERE = ("teff", "logg")
_METALS = ("m_h", "fe_h")


def groups_of(names: Sequence[str]) -> dict[str, dict[str, float]]:
    """Return [X/M] of each group of lines, as sums of labels.

    ``fe`` holds iron and whatever has no label, ``alpha`` calcium, titanium, oxygen and the like
    where they have none; then a group for each ``<element>_fe``, and one for each other label, such
    as a rotation, which moves lines as an abundance does.

    Parameters
    ----------
    names : sequence of str
        Labels.
    """
    both = {"fe_h": 1.0, "m_h": -1.0} if set(_METALS) <= set(names) else {}
    groups = {"fe": both}
    for name in names:
        if name.endswith("_fe"):
            groups[name.removesuffix("_fe")] = {**both, name: 1.0}
    if "alpha_m" in names:
        groups["alpha"] = {"alpha_m": 1.0}
    used = {*_ATMOSPHERE, *_METALS, "alpha_m"}
    others = [name for name in names if name not in used and not name.endswith("_fe")]
    return groups | {name: {name: 1.0} for name in others}


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
_FAINT = 1e-3
"""Of its peak, below which a weak line ends: a tenth of the noise where it is one deep and S/N is
a hundred."""
_MOST_FILLED = 0.3
"""Share of the pixels of all lines from which on a full matrix is faster than a sparse one."""
# Nearer lines of one group are one line at this sampling.
_APART_PIXELS = 2
# Least flux per dex of a line; chosen, a tenth of the noise at S/N 50.
_WEAKEST = 0.002
# Mean depth above which wings matter; meant for the Ca II triplet.
_STRONG = 0.45
# Wings of strong lines as a sum of widths; chosen to span core to wing in steps of three.
_LORENTZ_AA = (0.05, 0.35, 1.2, 4.0)
_BLOCK = 256
"""Spectra whose residuals lie in memory together."""
# Relative to the number of spectra, against collinear monomials.
_RIDGE = 1e-5
# Relative to the mean square of profiles, against blended lines.
_WIDTH_RIDGE = 1e-4


@dataclass(frozen=True, eq=False)
class LineModel:
    """A `ForwardModel` made of lines.

    Attributes
    ----------
    centres_aa : (n_line,) float64
        Wavelengths of the lines; a strong line stands there once for each Lorentzian width.
    group : (n_line,) int64
        Position in `groups_of` the labels.
    polynomials : (n_line, 70) float64
        Equivalent widths, angstrom, by the monomials of the scaled variables.
    profiles : (n_line, n_pixel) float32
        Voigt profiles of unit area, per angstrom.
    limits : (n_label, 2) float64
        Bounds of the labels.
    wave : (n_pixel,) float64
    own_variance : (n_pixel,) float32
    label_names : tuple of str
    """

    centres_aa: Float64Array
    group: Int64Array
    polynomials: Float64Array
    profiles: Float32Array
    limits: Float64Array
    wave: Float64Array
    own_variance: Float32Array
    label_names: tuple[str, ...] = field(default=LABEL_NAMES, metadata=stored(None))

    @classmethod
    def learn(
        cls,
        lines: tuple[Float64Array, Int64Array, BoolArray],
        labels: Float64Array,
        flux: Float32Array,
        *,
        names: tuple[str, ...],
        wave: Float64Array,
        resolving_power: float,
        limits: Float64Array,
    ) -> Self:
        """Measure the lines in synthetic spectra, and fit their widths.

        Parameters
        ----------
        lines : tuple of (n,) arrays
            Centres, groups, and which are strong; from `find_lines`.
        labels, flux : (n_star, n_label), (n_star, n_pixel)
            Synthetic spectra, at rest.
        names : tuple of str
            Of the labels.
        wave : (n_pixel,) float64
        resolving_power : float
        limits : (n_label, 2) float64
        """
        centres, group, profiles = _profiles(*lines, wave, resolving_power)
        mixing = [_mixing(names, parts) for parts in groups_of(names).values()]
        response = _response(labels, mixing, 1.0 - flux.astype(np.float64))
        polynomials = np.zeros((centres.size, len(_EXPONENTS)))
        polynomials[:, _SHARED] = _widths(response[0], profiles).T
        for number in range(len(mixing)):
            chosen = group == number
            if chosen.any():
                own = _widths(response[1 + number], profiles[chosen])
                polynomials[np.ix_(chosen, ~_SHARED)] = own.T
        none = np.zeros(wave.size, dtype=np.float32)
        model = cls(
            centres, group, polynomials, profiles.astype(np.float32), limits, wave, none, names
        )
        left = [
            flux[k : k + _BLOCK] - model.evaluate(labels[k : k + _BLOCK], jacobian=False).flux
            for k in range(0, len(flux), _BLOCK)
        ]
        square = sum(np.sum(part.astype(np.float64) ** 2, axis=0) for part in left)
        return replace(model, own_variance=(square / len(flux)).astype(np.float32))

    @cached_property
    def _mixings(self) -> list[Float64Array]:
        return [_mixing(self.label_names, one) for one in groups_of(self.label_names).values()]

    @cached_property
    def _sparse(self) -> csr_array | None:
        """The profiles where few of their pixels hold anything."""
        filled = np.count_nonzero(self.profiles) < _MOST_FILLED * self.profiles.size
        return csr_array(self.profiles) if filled else None

    @property
    def bounds(self) -> Float64Array:
        """Bounds (n_label, 2) of the labels."""
        return self.limits

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.wave

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        widths = self.widths(labels, jacobian=jacobian).astype(np.float32)
        flat = widths.reshape(-1, widths.shape[2])
        product = flat @ (self.profiles if self._sparse is None else self._sparse)
        rows = -np.asarray(product, dtype=np.float32).reshape(*widths.shape[:2], -1)
        rows[:, 0] += np.float32(1.0)
        return Evaluation(rows[:, 0], rows[:, 1:] if jacobian else None)

    def widths(self, labels: Float64Array, *, jacobian: bool = False) -> Float64Array:
        """Equivalent widths (n_star, 1 + n_label, n_line) in angstrom, and their derivatives.

        Without `jacobian` (n_star, 1, n_line).
        """
        n, k = labels.shape
        widths = np.empty((n, 1 + k if jacobian else 1, self.centres_aa.size))
        for number, mixing in enumerate(self._mixings):
            chosen = self.group == number
            terms, slopes = _monomials(_variables(labels, mixing))
            polynomials = self.polynomials[chosen].T
            widths[:, 0, chosen] = terms @ polynomials
            if jacobian:
                scaled = mixing / _SCALE[:, None]
                widths[:, 1:, chosen] = (scaled.T @ slopes) @ polynomials
        return widths

    def measured(
        self, labels: Float64Array, ivar: Float32Array, *, sigma: float
    ) -> dict[str, Float64Array]:
        """Count the lines (n_star,) of each group that are deeper than the noise.

        Parameters
        ----------
        labels : (n_star, n_label) float64
            Finite.
        ivar : (n_star, n_pixel) float32
            0 marks a bad pixel, where no line is measured.
        sigma : float
            Least depth of a line, over the noise of the pixel at its centre.
        """
        # A strong line stands there once for each Lorentzian width, and is one line.
        place, which = np.unique(
            np.stack([self.centres_aa, self.group]), axis=1, return_inverse=True
        )
        depth = np.zeros((len(labels), place.shape[1]))
        # numpy 2.0 keeps the dimensions of what it makes unique.
        np.add.at(depth.T, which.ravel(), (self.widths(labels)[:, 0] * self.profiles.max(axis=1)).T)
        pixel = np.clip(np.searchsorted(self.wave, place[0]), 0, self.wave.size - 1)
        seen = depth * np.sqrt(ivar[:, pixel]) > sigma
        return {
            name: seen[:, place[1] == number].sum(axis=1).astype(np.float64)
            for number, name in enumerate(groups_of(self.label_names))
        }

    def variance(self, labels: Float64Array) -> Float32Array:
        """Mean squared error (n_pixel,) against the synthetic spectra."""
        del labels
        return self.own_variance


def _response(
    labels: Float64Array, mixings: Sequence[Float64Array], depth: Float64Array
) -> list[Float64Array]:
    """Coefficients (n_term, n_pixel) of the depth: of terms without [X/M], then of each group."""
    parts = [_monomials(_variables(labels, mixing))[0] for mixing in mixings]
    design = np.hstack([parts[0][:, _SHARED], *(part[:, ~_SHARED] for part in parts)])
    normal = design.T @ design + _RIDGE * len(labels) * np.eye(design.shape[1])
    whole = np.linalg.solve(normal, design.T @ depth)
    count = int(_SHARED.sum())
    others = np.split(whole[count:], len(mixings))
    return [whole[:count], *others]


def _widths(response: Float64Array, profiles: Float64Array) -> Float64Array:
    """Equivalent widths (n_term, n_line) whose profiles add up to a response (n_term, n_pixel)."""
    gram = profiles @ profiles.T
    # Blends share their width only through this ridge: they cannot be told apart.
    gram[np.diag_indices(len(gram))] += _WIDTH_RIDGE * np.trace(gram) / len(gram)
    return np.asarray(np.linalg.solve(gram, profiles @ response.T).T)


def find_lines(
    model: ForwardModel, labels: Float64Array, names: Sequence[str], *, metals_with_iron: bool
) -> tuple[Float64Array, Int64Array, BoolArray]:
    """Find lines in a theoretical model: peaks of the derivative by each group's abundance.

    Parameters
    ----------
    model : ForwardModel
    labels : (n_star, n) float64
        Of the model, of typical stars.
    names : sequence of str
        The first labels of the model.
    metals_with_iron : bool
        Whether the model cannot tell iron from all metals, as one that is learnt from stars.

    Returns
    -------
    centres_aa : (n,) float64
    group : (n,) int64
        Position in `groups_of`; lines of several groups may stand at one place.
    strong : (n,) bool
        Whether the line is so deep that its wings matter.
    """
    flux, slopes = model.evaluate(labels)
    assert slopes is not None, "derivatives were asked for"
    by_label = {name: slopes[:, k].astype(np.float64) for k, name in enumerate(names)}
    groups = groups_of(names)
    own = {group: by_label[[*parts][-1]] for group, parts in groups.items() if group != "fe"}
    iron = _of_iron(by_label, metals_with_iron)
    size = np.sqrt(np.mean(np.square([iron, *own.values()]), axis=1))
    depth = np.mean(1.0 - flux, axis=0)
    places, numbers = [], []
    for number, one in enumerate(size):
        peak = np.r_[False, (one[1:-1] >= one[:-2]) & (one[1:-1] > one[2:]), False]
        candidates = np.flatnonzero(peak & (one > _WEAKEST))
        kept: list[int] = []
        for pixel in candidates[np.argsort(-one[candidates])]:
            if all(abs(int(pixel) - other) >= _APART_PIXELS for other in kept):
                kept.append(int(pixel))
        places += kept
        numbers += [number] * len(kept)
    found = np.array(places, dtype=np.int64)
    group = np.array(numbers, dtype=np.int64)
    return model.wave_aa[found], group, depth[found] > _STRONG


def _of_iron(by_label: Mapping[str, Float64Array], metals: bool) -> Float64Array:
    """Return derivatives (n_star, n_pixel) by iron alone, other elements at what they are.

    Without iron or metals among the labels, by 1000 K of Teff, which all lines follow.
    """
    elements = [slope for name, slope in by_label.items() if name.endswith("_fe")]
    given = [name for name in ("fe_h", "m_h") if name in by_label]
    if not given:
        return by_label["teff"] * _SCALE[0] if "teff" in by_label else next(iter(by_label.values()))
    if not metals and len(given) == 2:
        return np.asarray(by_label["fe_h"] - sum(elements))
    total = sum(by_label[name] for name in given)
    return np.asarray(total - sum(elements) - by_label.get("alpha_m", 0.0))


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
    profiles = np.asarray(voigt_profile(apart, sigma[:, None], lorentz[:, None]))
    weak = ~np.repeat(strong, repeats)
    faint = profiles < _FAINT * profiles.max(axis=1, keepdims=True)
    return centres, group, np.where(weak[:, None] & faint, 0.0, profiles)


def _mixing(names: Sequence[str], parts: Mapping[str, float]) -> Float64Array:
    """Return what each variable of a group gains per unit of each label, (4, n_label)."""
    names = list(names)
    out = np.zeros((_VARIABLES, len(names)))
    metals = next((name for name in _METALS if name in names), "")
    for row, name in enumerate((*_ATMOSPHERE, metals)):
        if name in names:
            out[row, names.index(name)] = 1.0
    for name, factor in parts.items():
        out[3, names.index(name)] += factor
    return out


def _variables(labels: Float64Array, mixing: Float64Array) -> Float64Array:
    """Scaled Teff, log g, [M/H], [X/M] of a group, (n_star, 4); 0 where there is no such label."""
    values = labels @ mixing.T
    return np.asarray(np.where(mixing.any(axis=1), values - _CENTRE, 0.0) / _SCALE)


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
