"""Unresolved companions: the light of a second star in spectrum, magnitudes and colours.

Two stars seen as one. Light adds, band by band and pixel by pixel; what is to be learnt, or told,
is the primary, the brighter of the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import scipy.ndimage
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, IndexArray
from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES
from maury.spectra.observable_map import ObservableMap
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = ["BandLayout", "Pairs", "add_companions", "shifted", "with_light"]

_LEAST_RATIO = 0.02
"""Of the light at the spectrum: a fainter companion is lost in the noise of any survey."""
_LARGEST_SPEED_KMS = 40.0
"""Difference of the velocities: from there on two sets of lines are seen as two."""
_CANDIDATES = 16
"""Nearest stars looked at for each companion, among which some are cool enough; chosen."""
_METRIC = (1.0, 5.0, 2.0)
"""Weight of brightness (mag), [M/H] (dex) and A_V (mag) in the search for a companion: two stars
of one cloud agree in the last two, and a tenth of a dex is what they are measured to."""
_HOTTER_KELVIN, _EVOLVED_DEX = 50.0, 1.0
"""A fainter star of one age is cooler, but for the scatter of labels; beside a star whose gravity
is a dex lower, thus a giant, it need not be."""
_BLOCK = 2048
"""Spectra shifted together, which bounds the memory; chosen."""
_EDGE = 4
"""Pixels by which spectra are continued: as far as a cubic spline reaches."""
_EXTINCTION = {band.name: band.extinction for band in BANDS}
_NEEDED = (("teff",), ("logg",), ("m_h", "fe_h"))
"""Labels that tell which star may be beside another; of the last two, one."""


@dataclass(frozen=True, eq=False)
class BandLayout:
    """Which observable is made of which band, and with which sign.

    Attributes
    ----------
    bands : tuple of str
        Names of bands, as in `maury.labels.columns.BANDS`.
    signs : (n_observable, n_band) float64
        A change of the magnitudes m changes the observables by ``signs @ m``.
    is_absolute : (n_observable,) bool
        Which observables are absolute magnitudes.
    a_v : int or None
        Number of the observable that is the extinction.
    reddened : bool
        Whether magnitudes contain the extinction.
    """

    bands: tuple[str, ...]
    signs: Float64Array
    is_absolute: BoolArray
    a_v: int | None
    reddened: bool

    @classmethod
    def of(cls, mapping: ObservableMap) -> Self:
        """Read the layout of a preparation's `observable_map`."""
        responses = dict(zip(mapping.names, mapping.responses, strict=True))
        bands = tuple(band.name for band in BANDS if band.name in responses)
        nothing = np.zeros(mapping.depends.shape[1])
        signs = np.stack([nothing, *(responses[name] for name in bands)], axis=1)[:, 1:]
        reddening = responses.get("a_v", nothing)
        columns = np.flatnonzero((reddening == 1.0) & (signs == 0).all(axis=1))
        return cls(
            bands,
            signs,
            responses.get("parallax", nothing) != 0,
            int(columns[0]) if columns.size else None,
            not (reddening[(signs != 0).any(axis=1)] != 0).any(),
        )

    def magnitudes(self, observables: Float64Array) -> Float64Array:
        """Absolute magnitudes (n_star, n_band), through colours where need be; NaN if unknown."""
        found = np.full((len(observables), len(self.bands)), np.nan)
        for row in np.flatnonzero(self.is_absolute):
            found[:, np.argmax(self.signs[row])] = observables[:, row]
        colours = np.flatnonzero((self.signs < 0).any(axis=1))
        # A band may hang on another through several colours, at most as many as there are bands.
        for _ in self.bands[1:]:
            for row in colours:
                blue, red = np.argmax(self.signs[row]), np.argmin(self.signs[row])
                for band, value in (
                    (blue, found[:, red] + observables[:, row]),
                    (red, found[:, blue] - observables[:, row]),
                ):
                    found[:, band] = np.where(np.isnan(found[:, band]), value, found[:, band])
        return found

    def at(self, wave_aa: Float64Array) -> Float64Array:
        """Weights (n_band,) that interpolate magnitudes to the middle of a spectrum."""
        known = {band.name: 1e4 * band.effective_wavelength_um for band in BANDS}
        places = np.array([known[name] for name in self.bands])
        order = np.argsort(places)
        weights = np.zeros(len(self.bands))
        for k, unit in enumerate(np.eye(len(self.bands))):
            weights[k] = np.interp(np.mean(wave_aa), places[order], unit[order])
        return weights


@dataclass(frozen=True, eq=False)
class Pairs:
    """Stars that were given a companion.

    Attributes
    ----------
    primary, companion : (n_pair,) int
        Rows of the two in the sample.
    ratio : (n_pair,) float64
        Light of the companion over that of the primary, at the spectrum.
    speed_kms : (n_pair,) float64
        Velocity of the companion less that of the primary.
    flux : (n_pair, n_pixel) float32
        Spectra of both together.
    observables : (n_pair, n_observable) float64
        Observables of both together.
    """

    primary: IndexArray
    companion: IndexArray
    ratio: Float64Array
    speed_kms: Float64Array
    flux: Float32Array
    observables: Float64Array


def add_companions(
    flux: Float32Array,
    labels: Float64Array,
    observables: Float64Array,
    *,
    wave_aa: Float64Array,
    layout: BandLayout,
    chosen: ArrayLike,
    rng: np.random.Generator,
    ratio: tuple[float, float] = (_LEAST_RATIO, 1.0),
    speed_kms: tuple[float, float] = (0.0, _LARGEST_SPEED_KMS),
    names: Sequence[str] = LABEL_NAMES,
) -> Pairs:
    """Give stars a companion from among their like, and add its light to theirs.

    A companion is fainter, of a similar [M/H] and A_V, and cooler, unless the primary is a giant.
    It is brought to the extinction of its primary. Light ratios are drawn uniform in their
    logarithm, speeds uniform. The spectrum stays at the mean velocity of the light, to which a
    pipeline puts it.

    Parameters
    ----------
    flux : (n_star, n_pixel) float32
        Spectra without noise, continuum = 1.
    labels : (n_star, n_label) float64
    observables : (n_star, n_observable) float64
        NaN where missing.
    wave_aa : (n_pixel,) float64
    layout : BandLayout
        Of the observables.
    chosen : (n,) int
        Rows that shall have a companion.
    rng : numpy Generator
    ratio : (float, float)
        Range of the light ratio at the spectrum.
    speed_kms : (float, float)
        Range of the difference of velocities, of either sign.
    names : sequence of str
        Of the labels, by default those of `maury.labels.definitions.LABELS`. Without Teff, log g
        and [M/H] or [Fe/H] among them nobody knows which star may be beside which.

    Returns
    -------
    Pairs
        Without those of `chosen` that lack absolute magnitudes, or have no companion among the
        stars.
    """
    place = [next((list(names).index(n) for n in kind if n in names), None) for kind in _NEEDED]
    columns = [column for column in place if column is not None]
    if len(columns) < len(_NEEDED):
        chosen = np.zeros(0, dtype=np.int64)
        columns = [0] * len(_NEEDED)
    labels = labels[:, columns]
    magnitudes = layout.magnitudes(observables)
    a_v = np.zeros(len(labels)) if layout.a_v is None else observables[:, layout.a_v]
    if layout.reddened and np.isfinite(a_v).any():
        # A star of unknown extinction counts as one of the usual.
        known = np.where(np.isfinite(a_v), a_v, np.nanmedian(a_v))
        magnitudes = magnitudes - known[:, None] * [_EXTINCTION[name] for name in layout.bands]
    weights = layout.at(wave_aa) if layout.bands else np.zeros(0)
    # Bands far from the spectrum may be missing: only those that give the light ratio may not.
    near = weights > 0
    bright = magnitudes[:, near] @ weights[near] if near.any() else np.full(len(labels), np.nan)
    least, most = np.log(ratio)
    wanted = np.exp(rng.uniform(least, most, np.size(chosen)))
    primary, companion = _pair_up(
        np.asarray(chosen, dtype=np.int64), wanted, labels, bright=bright, a_v=a_v, limits=ratio
    )
    difference = magnitudes[companion] - magnitudes[primary]
    light = 10.0 ** (-0.4 * (difference[:, near] @ weights[near]))
    speed = rng.choice([-1.0, 1.0], primary.size) * rng.uniform(*speed_kms, primary.size)
    return Pairs(
        primary,
        companion,
        light,
        speed,
        _spectra(flux, primary, companion, light, speed, wave_aa),
        with_light(observables[primary], difference, layout),
    )


def _pair_up(
    chosen: IndexArray,
    wanted: Float64Array,
    labels: Float64Array,
    *,
    bright: Float64Array,
    a_v: Float64Array,
    limits: tuple[float, float],
) -> tuple[IndexArray, IndexArray]:
    """Rows of primaries and of their companions, near the light ratio `wanted` of each.

    The labels are Teff, log g and [M/H].
    """
    place = np.column_stack([bright, labels[:, 2], np.nan_to_num(a_v)]) * _METRIC
    there = np.flatnonzero(np.isfinite(place).all(axis=1))
    usable = np.isin(chosen, there)
    primary, target = chosen[usable], place[chosen[usable]]
    if not primary.size:
        return primary, primary
    target[:, 0] -= 2.5 * np.log10(wanted[usable])
    n_near = min(_CANDIDATES, there.size)
    near = cKDTree(place[there]).query(target, k=n_near)[1].reshape(-1, n_near)
    near = there[near]
    own = primary[:, None]
    light = 10.0 ** (0.4 * (bright[own] - bright[near]))
    cooler = labels[near, 0] <= labels[own, 0] + _HOTTER_KELVIN
    evolved = labels[near, 1] > labels[own, 1] + _EVOLVED_DEX
    fits = (light >= limits[0]) & (light <= limits[1]) & (cooler | evolved) & (near != own)
    found = fits.any(axis=1)
    first = near[np.arange(primary.size), np.argmax(fits, axis=1)]
    return primary[found], first[found]


def with_light(
    observables: Float64Array, difference: Float64Array, layout: BandLayout
) -> Float64Array:
    """Observables (n_star, n_observable) of stars with the light of a second one added.

    Parameters
    ----------
    observables : (n_star, n_observable) float64
    difference : (n_star, n_band) float64
        Magnitude of the second star less that of the first. NaN makes what is made of the band
        missing.
    layout : BandLayout
    """
    brighter = -2.5 * np.log10(1.0 + 10.0 ** (-0.4 * difference))
    # Bands that an observable is not made of may be unknown.
    change = np.nan_to_num(brighter) @ layout.signs.T
    unknown = np.isnan(brighter).astype(np.float64) @ np.abs(layout.signs.T) > 0
    return np.where(unknown, np.nan, observables + change)


def _spectra(
    flux: Float32Array,
    primary: IndexArray,
    companion: IndexArray,
    light: Float64Array,
    speed_kms: Float64Array,
    wave_aa: Float64Array,
) -> Float32Array:
    """Spectra of both stars, each weighted by its share of the light, (n_pair, n_pixel)."""
    out = np.empty((primary.size, flux.shape[1]), dtype=np.float32)
    share = light / (1.0 + light)
    for start in range(0, primary.size, _BLOCK):
        rows = slice(start, start + _BLOCK)
        second, speed = share[rows], speed_kms[rows]
        first = shifted(flux[primary[rows]], -second * speed, wave_aa)
        other = shifted(flux[companion[rows]], (1.0 - second) * speed, wave_aa)
        out[rows] = first + second[:, None].astype(np.float32) * (other - first)
    return out


def shifted(flux: AnyArray, speed_kms: ArrayLike, wave_aa: Float64Array) -> Float32Array:
    """Shift spectra (n_star, n_pixel) by velocities (n_star,), positive away from the observer.

    By cubic splines through the pixels; the spectrum goes on as its end pixels are.
    """
    n_star, n_pixel = np.shape(flux)
    padded = np.pad(np.asarray(flux, np.float32), ((0, 0), (_EDGE, _EDGE)), mode="edge")
    spline = scipy.ndimage.spline_filter1d(padded, axis=1, output=np.float32, mode="nearest")
    # To first order in v / c: the next term is a hundredth of a pixel at a thousand km/s.
    beta = np.asarray(speed_kms, dtype=np.float64) / SPEED_OF_LIGHT_KMS
    slope = wave_aa / np.gradient(wave_aa)
    place = np.arange(n_pixel) - beta[:, None] * slope
    place = np.clip(place, 0, n_pixel - 1) + _EDGE + padded.shape[1] * np.arange(n_star)[:, None]
    out = scipy.ndimage.map_coordinates(
        spline.ravel(), place.reshape(1, -1), output=np.float32, order=3, prefilter=False
    )
    return np.asarray(out.reshape(n_star, n_pixel))
