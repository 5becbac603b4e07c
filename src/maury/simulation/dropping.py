"""Inputs that stars lack: pixels, bands, the parallax, whole spectra, drawn at random."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array

__all__ = ["Dropping", "drop_inputs", "drop_pixels"]

_LARGEST_LOSS = 0.6
"""Largest share of the pixels that a spectrum loses: with less than two fifths of the window it is
another survey. Chosen, not measured."""
_PARALLAX_GROUP = 1
"""Its number among the groups of sources."""
_LARGEST_GAP = 0.15
"""Largest share of the pixels in one gap: the gap between two detectors, or a band of telluric
lines. Chosen, not measured."""


class Dropping(BaseModel):
    """Shares of stars that lose a part of their inputs.

    Attributes
    ----------
    spectrum, observables : float
        All of the spectrum, or all of the observables; never both.
    sources : float
        Each source of observables (a band, the parallax, the extinction) by itself.
    all_but_one, subset : float
        All sources but one; each source with a probability of the star's own, so that any subset
        is met.
    groups : float
        The spectrum and each group of sources by itself with a probability of one half, so that any
        subset of these is met, but for none of them or the parallax alone. Only where there are
        further columns.
    pixels : float
        A third of these each: one to six gaps; the ends; pixels at random.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    spectrum: float = Field(default=0.06, ge=0.0, le=0.5)
    observables: float = Field(default=0.1, ge=0.0, le=0.5)
    sources: float = Field(default=0.04, ge=0.0, le=1.0)
    all_but_one: float = Field(default=0.02, ge=0.0, le=1.0)
    subset: float = Field(default=0.1, ge=0.0, le=1.0)
    groups: float = Field(default=0.3, ge=0.0, le=1.0)
    pixels: float = Field(default=0.3, ge=0.0, le=1.0)


def drop_inputs(
    ivar: Float32Array,
    observables: Float64Array,
    depends: BoolArray,
    *,
    dropping: Dropping,
    rng: np.random.Generator,
    groups: Int64Array | None = None,
) -> tuple[Float32Array, Float64Array]:
    """Return copies with inputs taken away at random.

    Parameters
    ----------
    ivar : (n_star, n_pixel) float32
        0 where a pixel is taken away, and throughout where the spectrum is.
    observables : (n_star, n_observable) float64
        NaN where taken away.
    depends : (n_source, n_observable) bool
        Which observables are made of which source.
    dropping : Dropping
    rng : numpy Generator
    groups : (n_source,) int64, optional
        Number of the group of each source (`maury.spectra.observable_map.ObservableMap.groups`).
    """
    n_star, n_source = len(ivar), len(depends)
    kept = np.where(drop_pixels(n_star, ivar.shape[1], dropping.pixels, rng), np.float32(0), ivar)
    if n_source == 0:
        return kept, observables.copy()
    lost = rng.random((n_star, n_source)) < dropping.sources
    some = rng.random(n_star) < dropping.subset
    lost[some] |= (rng.random((n_star, n_source)) > rng.random((n_star, 1)))[some]
    single = np.flatnonzero(rng.random(n_star) < dropping.all_but_one)
    lost[single] = True
    lost[single, rng.integers(0, n_source, single.size)] = False
    choice = rng.random(n_star)
    lost[choice < dropping.observables] = True
    # From the other end of the same number, so that these two losses never meet in one star.
    blind = choice > 1.0 - dropping.spectrum
    # Half of what a star without a spectrum would lose besides stays with it, as nothing else is
    # left to learn from.
    lost[blind] &= rng.random((int(blind.sum()), n_source)) < 0.5
    if groups is not None:
        chosen = np.flatnonzero(rng.random(n_star) < dropping.groups)
        blind[chosen], away = _drop_groups(chosen.size, groups, rng)
        lost[chosen] = away | (rng.random(away.shape) < dropping.sources)
    gone = lost.astype(np.float32) @ depends.astype(np.float32) > 0
    return np.where(blind[:, None], np.float32(0), kept), np.where(gone, np.nan, observables)


def _drop_groups(
    n_star: int, groups: Int64Array, rng: np.random.Generator
) -> tuple[BoolArray, BoolArray]:
    """Which stars (n_star,) lose their spectrum, and which sources (n_star, n_source) are lost."""
    # The spectrum goes as one more group, in front.
    kept = rng.random((n_star, 2 + groups.max())) < 0.5
    # A parallax alone tells of no star.
    alone = np.delete(np.arange(kept.shape[1]), 1 + _PARALLAX_GROUP)
    none = np.flatnonzero(~kept[:, alone].any(axis=1))
    kept[none, rng.choice(alone, none.size)] = True
    return ~kept[:, 0], ~kept[:, 1:][:, groups]


def drop_pixels(n_star: int, n_pixel: int, share: float, rng: np.random.Generator) -> BoolArray:
    """Which pixels (n_star, n_pixel) are lost: gaps, ends or random ones, up to .6 of a spectrum.

    Parameters
    ----------
    n_star, n_pixel : int
    share : float
        Of the stars that lose any.
    rng : numpy Generator
    """
    lost = np.zeros((n_star, n_pixel), dtype=np.bool_)
    kind = rng.random(n_star)
    place = np.arange(n_pixel) / n_pixel
    few, ends, single = (
        np.flatnonzero((kind >= low * share / 3) & (kind < (low + 1) * share / 3))
        for low in range(3)
    )
    # The square makes small losses, which are common, oftener than large ones.
    amount = _LARGEST_LOSS * rng.random((n_star, 1)) ** 2
    side = rng.random((n_star, 1))
    lost[ends] = (place < (side * amount)[ends]) | (place >= (1.0 - (1.0 - side) * amount)[ends])
    lost[single] = rng.random((single.size, n_pixel), dtype=np.float32) < amount[single]
    for star in few:
        lengths = n_pixel * _LARGEST_GAP * rng.random(rng.integers(1, 7)) ** 2
        # Six of the longest gaps would be more than a spectrum may lose.
        lengths *= min(1.0, _LARGEST_LOSS * n_pixel / lengths.sum())
        for length in np.maximum(lengths.astype(int), 1):
            first = rng.integers(1 - length, n_pixel)
            lost[star, max(first, 0) : first + length] = True
    return lost
