"""Which stars to label next, and what share of a survey the training sample covers.

A network is as good as its training sample is complete. `suggest` ranks the observed stars whose
labels would help most, by a criterion that is the product of three numbers:

1. *density ratio*: how much commoner such stars are in the survey than in the training sample.
   Around each star a ball is drawn that reaches its `NEIGHBOURS`-th nearest training star, in
   predicted labels; the ratio is the share of observed stars in the ball, over that of training
   stars.
2. *error ratio*, squared: the calibrated errors, root mean square over labels, over those typical
   of the survey at the same S/N, with the same inputs missing. They contain the spread of the
   ensemble, which grows where no training star is near.
3. *diversity*: stars are chosen one by one, and each counts as a training star in every ball that
   holds it, so that the next is sought elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ConfigError
from maury.evaluation.census import Census
from maury.evaluation.embedding import LEAST_POINTS, Kind, embed
from maury.io.arrays import (
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    StrArray,
)
from maury.io.files import writing
from maury.labels.flags import Flag, names
from maury.model.directory import Model
from maury.prediction.evidence import nearest
from maury.survey.store import Survey

if TYPE_CHECKING:
    from astropy.table import Table


NEIGHBOURS = 10
"""Training stars that the ball around a star holds."""
MOST_OBSERVED = 8192
"""Observed stars used at most to measure densities, evenly chosen."""

MOST_ON_MAP = 1000
"""Training stars on a map at most."""

SUFFIXES = MappingProxyType(
    {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".parquet": "parquet", ".fits": "fits"}
)
"""Formats of a list of stars, and what astropy calls them."""
_LACKING = (Flag.NO_PARALLAX | Flag.MAGNITUDE_MISSING | Flag.A_V_MISSING).value
_UNLIKE = (
    Flag.SPECTRUM_UNLIKE
    | Flag.LABELS_UNLIKE
    | Flag.RECONSTRUCTION_POOR
    | Flag.HOT_STAR
    | Flag.LABEL_OUTSIDE
    | Flag.OBSERVABLE_OUTSIDE
)
_BLOCK = 512
"""Rows of distances computed at a time: 512 x `MOST_OBSERVED` float32 are 17 MB."""
_SNR_GROUP = 200
"""Stars of like S/N among which an error is typical: their median is then known to some 10 % of the
spread of errors."""


@dataclass(frozen=True, eq=False)
class Suggestions:
    """Stars whose labels would help most, the best first.

    Attributes
    ----------
    row : (n,) int64
        Row numbers in the survey.
    id : (n,) str
    gain : (n,) float64
        The criterion when the star was chosen: density ratio, squared error ratio and diversity,
        multiplied.
    density_ratio, error_ratio, diversity : (n,) float64
        See `maury.evaluation.adviser`; diversity is 1 where no star near was chosen before.
    flags : (n,) int64
        Bits of `maury.labels.flags.Flag`.
    excluded : mapping of str to int
        Stars that were not considered, by reason.
    simulated : bool
        Whether the spectra are simulated.
    """

    row: Int64Array
    id: StrArray
    gain: Float64Array
    density_ratio: Float64Array
    error_ratio: Float64Array
    diversity: Float64Array
    flags: Int64Array
    excluded: Mapping[str, int]
    simulated: bool

    def __len__(self) -> int:
        return len(self.row)

    @property
    def rank(self) -> Int64Array:
        """1, 2, ... (n,)."""
        return np.arange(1, len(self) + 1)

    @property
    def reasons(self) -> list[str]:
        """Why each star, in words."""
        return [
            f"{ratio:.2g} times as common as among training stars, errors {error:.2g} of typical"
            + (f"; {', '.join(doubts)}" if (doubts := _doubts(int(mask))) else "")
            for ratio, error, mask in zip(
                self.density_ratio, self.error_ratio, self.flags, strict=True
            )
        ]

    def table(self) -> Table:
        """Return one row per star, for people and for observing queues."""
        from astropy.table import Table

        parts = ("gain", "density_ratio", "error_ratio", "diversity", "flags")
        columns: dict[str, Any] = {"rank": self.rank, "id": self.id, "row": self.row}
        columns |= {name: getattr(self, name) for name in parts}
        columns["reason"] = np.array(self.reasons, dtype=np.str_)
        columns["simulated"] = np.full(len(self), self.simulated)
        return Table(columns)

    def write(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the table as CSV, ECSV, Parquet or FITS, as the suffix says.

        Raises
        ------
        ConfigError
            If the suffix is none of these.
        OutputExists
            If `path` exists and `overwrite` is false.
        """
        return write_table(self.table(), path, overwrite=overwrite)


def write_table(table: Table, path: Path | str, *, overwrite: bool) -> Path:
    """Write a list of stars as the suffix of `path` says, see `Suggestions.write`."""
    path = check_suffix(path)
    with writing(path, overwrite=overwrite) as partial:
        table.write(partial, format=SUFFIXES[path.suffix.lower()])
    return path


def check_suffix(path: Path | str) -> Path:
    """Return the path; raise `ConfigError` unless its suffix is one of `SUFFIXES`."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"lists of stars are written as {', '.join(SUFFIXES)}, got {path.name!r}; "
            "choose one of these suffixes"
        )
    return path


def suggest(model: Model | Path | str, survey: Survey | Path | str, n: int) -> Suggestions:
    """Rank the observed stars whose labels would help most.

    Parameters
    ----------
    model : Model or path-like
        Of the preset ``maury``, with its coverage.
    survey : Survey or path-like
        Observed stars.
    n : int
        How many to suggest; fewer if fewer are of use.

    Returns
    -------
    Suggestions
        The same for the same model and survey.

    Raises
    ------
    ConfigError
        If `n` is not positive, or the model has no coverage.
    GridMismatch
        If the spectra are not on the grid that the model's preparation takes.
    """
    return suggest_from(Census.take(model, survey), n)


def suggest_from(census: Census, n: int) -> Suggestions:
    """Rank the stars of a census, as `suggest`."""
    if n < 1:
        raise ConfigError(f"the number of stars to suggest must be at least 1, got {n}")
    useless = census.useless()
    left = ~np.logical_or.reduce([np.zeros(len(census), np.bool_), *useless.values()])
    candidate = np.flatnonzero(left)
    place = census.place[candidate].astype(np.float32)
    reach = _reach(place, census.training)
    density = density_ratio(place, place, reach, n_training=len(census.training))
    lacking = census.flags[candidate] & _LACKING
    error = error_ratio(census.error[candidate], census.snr[candidate], lacking)
    # Errors count squared: the variance that a label can take away is what a survey gains.
    score = density * np.square(error)
    chosen, diversity = _choose(place, reach, score, n)
    row = candidate[chosen]
    return Suggestions(
        row=row,
        id=census.id[row],
        gain=score[chosen] * diversity,
        density_ratio=density[chosen],
        error_ratio=error[chosen],
        diversity=diversity,
        flags=census.flags[row],
        excluded=MappingProxyType({reason: int(there.sum()) for reason, there in useless.items()}),
        simulated=census.simulated,
    )


def plane(
    census: Census, suggestions: Suggestions | None = None
) -> tuple[Float64Array, Int64Array, BoolArray]:
    """Place training and observed stars in a plane, for `maury.report.figures.coverage_map`.

    Of many stars some are drawn, evenly chosen: at most `MOST_ON_MAP` of the training sample, twice
    as many observed ones, and all suggestions.

    Returns
    -------
    place : (n, 2) float64
    kind : (n,) int64
        Values of `maury.evaluation.embedding.Kind`.
    suggested : (n,) bool

    Raises
    ------
    ConfigError
        If there are too few stars.
    MissingExtra
        If openTSNE is not installed.
    """
    # t-SNE takes time that grows with its points, and a map of more than some thousand is a blot.
    known = np.flatnonzero(np.isfinite(census.place).all(axis=1))
    suggested = np.empty(0, np.int64) if suggestions is None else suggestions.row
    shown = np.union1d(known[_evenly(known.size, 2 * MOST_ON_MAP)], suggested)
    training = census.training[_evenly(len(census.training), MOST_ON_MAP)]
    kind = np.where(census.flags[shown] & _UNLIKE, Kind.UNLIKE, Kind.OBSERVED)
    kinds = np.concatenate([np.full(len(training), Kind.TRAINING), kind]).astype(np.int64)
    ringed = np.concatenate([np.zeros(len(training), np.bool_), np.isin(shown, suggested)])
    if kinds.size < LEAST_POINTS:
        raise ConfigError(f"a map needs at least {LEAST_POINTS} stars, got {kinds.size}")
    return embed(np.concatenate([training, census.place[shown]])), kinds, ringed


def density_ratio(
    place: Float32Array, observed: Float32Array, reach: Float64Array, *, n_training: int
) -> Float64Array:
    """How much commoner stars are among the observed than in the training sample.

    Parameters
    ----------
    place : (n, k) float32
        Where.
    observed : (m, k) float32
        All observed stars, of which `MOST_OBSERVED` are counted.
    reach : (n,) float64
        Distance to the `NEIGHBOURS`-th nearest training star.
    n_training : int

    Returns
    -------
    (n,) float64
        Share of observed stars in reach, over the share of training stars.
    """
    observed = observed[_evenly(len(observed), MOST_OBSERVED)]
    count = np.empty(len(place))
    for start in range(0, len(place), _BLOCK):
        rows = slice(start, start + _BLOCK)
        count[rows] = (_distance(place[rows], observed) <= reach[rows, None]).sum(axis=1)
    # A star that was not sampled is there all the same.
    share = np.maximum(count, 1.0) / max(len(observed), 1)
    return np.asarray(share / (min(NEIGHBOURS, n_training) / n_training))


def error_ratio(error: Float64Array, snr: Float64Array, lacking: Int64Array) -> Float64Array:
    """Errors over those typical of stars with the same inputs at the same S/N.

    Parameters
    ----------
    error : (n, n_label) float64
    snr : (n,) float64
    lacking : (n,) int64
        Equal for stars that lack the same inputs: their errors are larger for that alone.

    Returns
    -------
    (n,) float64
        Root mean square over labels.
    """
    ratio = np.empty_like(error)
    # Without photometry errors are larger for all: compared with the whole survey, all such stars
    # would be suggested, though nothing but their inputs is unusual.
    for kind in np.unique(lacking):
        rows = np.flatnonzero(lacking == kind)
        # Unknown S/N sorts as the lowest, so that the groups of known S/N stay pure.
        order = rows[np.argsort(np.nan_to_num(snr[rows]), kind="stable")]
        for group in np.array_split(order, max(1, len(order) // _SNR_GROUP)):
            typical = np.median(error[group], axis=0)
            ratio[group] = error[group] / np.where(typical > 0, typical, 1.0)
    return np.asarray(np.sqrt(np.square(ratio).mean(axis=1)))


def _choose(
    place: Float32Array, reach: Float64Array, score: Float64Array, n: int
) -> tuple[Int64Array, Float64Array]:
    """Candidates in the order of choice, and the diversity of each when it was chosen."""
    n = min(n, len(place))
    chosen, diversity = np.empty(n, dtype=np.int64), np.empty(n)
    crowd = np.zeros(len(place))
    free = np.ones(len(place), dtype=np.bool_)
    # Greedy choice of a monotone submodular gain is within 1 - 1/e of the best set (Nemhauser,
    # Wolsey & Fisher 1978, Math. Program. 14, 265).
    for k in range(n):
        factor = NEIGHBOURS / (NEIGHBOURS + crowd)
        best = int(np.argmax(np.where(free, score * factor, -np.inf)))
        chosen[k], diversity[k], free[best] = best, factor[best], False
        crowd += _distance(place, place[best : best + 1])[:, 0] <= reach
    return chosen, diversity


def _evenly(n: int, most: int) -> Int64Array:
    """At most so many of the numbers below n."""
    return np.linspace(0, n - 1, min(n, most)).astype(np.int64)


def _reach(place: Float32Array, training: Float32Array) -> Float64Array:
    return nearest(place.astype(np.float64), training, NEIGHBOURS)


def _distance(points: Float32Array, others: Float32Array) -> Float64Array:
    """Distances (n, m) over the root of the number of dimensions, as in `evidence.nearest`."""
    # Expanded, the distances are one matrix product; rounding can leave a small negative square.
    squared = np.square(points).sum(axis=1)[:, None] + np.square(others).sum(axis=1)
    squared = squared - np.float32(2.0) * (points @ others.T)
    return np.asarray(np.sqrt(np.maximum(squared, 0.0) / max(points.shape[1], 1)))


def _doubts(mask: int) -> list[str]:
    return [name for name in names(mask) if Flag[name].warns]
