"""Several exposures of one star, added up."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maury.io.arrays import AnyArray, BoolArray, Float64Array, IndexArray, StrArray
from maury.spectra.noise import resampled_correlation
from maury.spectra.operators import to_rest_frame
from maury.survey.readers.arms import read_scattered
from maury.survey.readers.grids import Gridder
from maury.survey.readers.pipeline import Piece, Source

logger = logging.getLogger(__name__)

N_EXPOSURES = "n_exposures"


@dataclass(frozen=True)
class CoaddedSource:
    """Stars of which all exposures are added up, weighted by inverse variance.

    Each exposure is shifted to rest, if velocities are known, and scaled to the level of the first.

    Attributes
    ----------
    source : Source
        The exposures.
    gridder : Gridder
        To their common grid.
    groups : sequence of (n,) int
        Rows of each star's exposures.
    velocity_kms : (n_exposure,) float64, optional
        An exposure without a velocity counts for nothing.
    """

    source: Source
    gridder: Gridder
    groups: Sequence[IndexArray]
    velocity_kms: Float64Array | None = None
    ids: None = None

    @property
    def n_star(self) -> int:
        """Number of stars."""
        return len(self.groups)

    @property
    def moves(self) -> bool:
        """Whether exposures are shifted to rest."""
        return self.velocity_kms is not None

    @property
    def skip_bad(self) -> bool:
        """Whether an exposure that cannot be read is left out of the sum."""
        return self.source.skip_bad

    @property
    def simulated(self) -> bool:
        """Whether the files say that they are simulated."""
        return self.source.simulated

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the stars of rows `start` to before `stop`."""
        n_pixel = self.gridder.wave_aa.size
        flux = np.empty((stop - start, n_pixel), dtype=np.float32)
        ivar = np.empty_like(flux)
        unread = []
        for row, group in enumerate(self.groups[start:stop]):
            read = read_scattered(self.source, self.gridder, group)
            flux[row], ivar[row] = coadd(*self._at_rest(read.flux, read.ivar, group))
            unread.append("; ".join(filter(None, read.unread)))
        what = "co-added spectra"
        yield Piece(self.gridder.wave_aa, flux, ivar, what, np.array(unread, np.str_))

    def _at_rest(
        self, flux: AnyArray, ivar: AnyArray, group: IndexArray
    ) -> tuple[AnyArray, AnyArray]:
        if self.velocity_kms is None:
            return flux, ivar
        wave, correlation = self.gridder.wave_aa, self.gridder.noise_correlation
        if self.gridder.resamples:
            correlation = resampled_correlation(correlation, 1.0)
        return to_rest_frame(
            flux,
            ivar,
            self.velocity_kms[group],
            wave_in_aa=wave,
            wave_out_aa=wave,
            noise_correlation=correlation,
        )


def coadd(flux: AnyArray, ivar: AnyArray) -> tuple[AnyArray, AnyArray]:
    """Add up exposures of one star on one grid: f = sum w f / sum w, w = inverse variance.

    Before that each is scaled, so that its median flux, over the pixels that it shares with the
    exposure of the largest weight, is that of the latter.

    Parameters
    ----------
    flux, ivar : (n_exposure, n_pixel)
        ivar 0 marks a bad pixel.

    Returns
    -------
    flux, ivar : (n_pixel,) float64
        NaN and 0 where no exposure is good.
    """
    good = (ivar > 0) & np.isfinite(flux)
    weight = np.where(good, ivar, 0.0).astype(np.float64)
    values = np.where(good, flux, 0.0).astype(np.float64)
    scale = _levels(values, good, weight)[:, None]
    # Dividing flux by a factor multiplies its inverse variance by the square.
    values, weight = values / scale, weight * scale**2
    total = weight.sum(axis=0)
    known = total > 0
    mean = np.full(total.shape, np.nan)
    mean[known] = (weight * values).sum(axis=0)[known] / total[known]
    return mean, total


def _levels(values: Float64Array, good: BoolArray, weight: Float64Array) -> Float64Array:
    """Median flux of each exposure over that of the best one; 1 where it cannot be told."""
    levels = np.ones(len(values))
    # The exposure of the highest S/N sets the level, as the others divide by it.
    best = int(np.argmax((weight * values**2).sum(axis=1)))
    for row in range(len(values)):
        shared = good[row] & good[best]
        if row == best or not shared.any():
            continue
        here, there = np.median(values[row, shared]), np.median(values[best, shared])
        if here > 0 and there > 0:
            levels[row] = here / there
    return levels


def group_exposures(star_id: StrArray) -> list[IndexArray]:
    """Return the rows of each star, stars in the order of their first row."""
    _, first, member = np.unique(star_id, return_index=True, return_inverse=True)
    order = np.argsort(member, kind="stable")
    bounds = np.flatnonzero(np.diff(member[order])) + 1
    groups = np.split(order, bounds)
    # `np.unique` sorts by name; rows keep the order of the files.
    return [groups[k] for k in np.argsort(first)]


def collapse(
    columns: Mapping[str, AnyArray], groups: Sequence[IndexArray], *, at_rest: bool
) -> dict[str, AnyArray]:
    """Return columns of the stars from those of their exposures.

    Numbers are the mean of those that are known, text is that of the first exposure. S/N is left
    out, as it follows from the sum, and so is the radial velocity of spectra at rest.

    Parameters
    ----------
    columns : mapping of str to (n_exposure,) array
    groups : sequence of (n,) int
        Rows of each star.
    at_rest : bool
        Whether the sum is at rest.
    """
    dropped = {"snr", "radial_velocity"} if at_rest else {"snr"}
    counts = np.array([group.size for group in groups])
    out: dict[str, AnyArray] = {}
    order = np.concatenate(groups)
    member = np.repeat(np.arange(len(groups)), counts)
    first = np.array([group[0] for group in groups])
    for name, values in columns.items():
        if name in dropped:
            continue
        out[name] = values[first]
        if values.dtype.kind == "f":
            out[name] = _means(values[order], member, values[first])
    out[N_EXPOSURES] = counts.astype(np.float64)
    if len(groups) == order.size:
        logger.warning("no star has more than one exposure; is 'star_id' mapped in [columns]?")
    return out


def _means(values: AnyArray, member: IndexArray, first: AnyArray) -> Float64Array:
    """Mean of the finite values of each star; equal values are kept to the last bit."""
    known = np.isfinite(values)
    n_star = first.size
    count = np.bincount(member, known, minlength=n_star)
    total = np.bincount(member, np.where(known, values, 0.0), minlength=n_star)
    mean = np.full(n_star, np.nan)
    np.divide(total, count, out=mean, where=count > 0)
    low, high = np.full(n_star, np.inf), np.full(n_star, -np.inf)
    np.minimum.at(low, member[known], values[known])
    np.maximum.at(high, member[known], values[known])
    # A mean of equal numbers may differ from them in the last bit.
    return np.where(low == high, low, mean)
