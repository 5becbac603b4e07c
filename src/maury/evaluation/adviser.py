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
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ConfigError
from maury.evaluation.embedding import LEAST_POINTS, Kind, embed
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    Int32Array,
    Int64Array,
    StrArray,
)
from maury.io.files import writing
from maury.labels.flags import Flag, names
from maury.labels.flags import warn as warned
from maury.model.directory import Model
from maury.prediction.coverage import CoverageModel
from maury.prediction.evidence import nearest
from maury.prediction.streaming import Predictor, Progress
from maury.survey.store import Survey

if TYPE_CHECKING:
    from astropy.table import Table


NEIGHBOURS = 10
"""Training stars that the ball around a star holds."""
MOST_OBSERVED = 8192
"""Observed stars used at most to measure densities, evenly chosen."""

MOST_ON_MAP = 1000
"""Training stars on a map at most."""

USELESS = (
    Flag.NO_SPECTRUM,
    Flag.BAD_PIXELS,
    Flag.LOW_SNR,
    Flag.NO_RADIAL_VELOCITY,
    Flag.CONTINUUM_FAILED,
    Flag.INPUT_REQUIRED,
    Flag.RADIAL_VELOCITY_WRONG,
    Flag.EMISSION,
    Flag.DOUBLE_LINED,
    Flag.CONTINUUM_BAD,
    Flag.PHOTOMETRY_DISAGREES,
)
"""Flags of stars that are never suggested: their labels would teach faults of the data, or kinds of
stars that the labels do not describe."""
SUFFIXES = MappingProxyType(
    {".csv": "ascii.csv", ".ecsv": "ascii.ecsv", ".parquet": "parquet", ".fits": "fits"}
)
"""Formats of a list of suggestions, and what astropy calls them."""
_LACKING = (Flag.NO_PARALLAX | Flag.MAGNITUDE_MISSING | Flag.A_V_MISSING).value
_UNLIKE = (
    Flag.SPECTRUM_UNLIKE
    | Flag.LABELS_UNLIKE
    | Flag.RECONSTRUCTION_POOR
    | Flag.HOT_STAR
    | Flag.LABEL_OUTSIDE
    | Flag.OBSERVABLE_OUTSIDE
)
_LABELLED = "already labelled, or known to the model"
_TWICE = "another spectrum of the same star is better"
_BATCH = 512
"""Spectra predicted at a time: some ten MB of pixels, so that a census of any survey needs no more
memory than one of a small one."""
_BLOCK = 512
"""Rows of distances computed at a time: 512 x `MOST_OBSERVED` float32 are 17 MB."""
_SNR_GROUP = 200
"""Stars of like S/N among which an error is typical: their median is then known to some 10 % of the
spread of errors."""


@dataclass(frozen=True, eq=False)
class Census:
    """What a model says of every star of a survey.

    Attributes
    ----------
    id, star_id : (n_star,) str
    place : (n_star, n_label) float64
        Predicted labels, scaled as those of the training stars; NaN where there are none.
    error : (n_star, n_label) float64
        Calibrated errors, scaled alike.
    snr : (n_star,) float64
    flags : (n_star,) int32
        Bits of `maury.labels.flags.Flag`.
    labelled : (n_star,) bool
        Stars that have all labels already, or that the model's split knows.
    training : (n_reference, n_label) float32
        `place` of the training stars.
    simulated : bool
        Whether the spectra are simulated.
    """

    id: StrArray
    star_id: StrArray
    place: Float64Array
    error: Float64Array
    snr: Float64Array
    flags: Int32Array
    labelled: BoolArray
    training: Float32Array
    simulated: bool

    @classmethod
    def take(
        cls,
        model: Model | Path | str,
        survey: Survey | Path | str,
        *,
        progress: Progress | None = None,
    ) -> Census:
        """Predict every star of a survey.

        Parameters
        ----------
        model, survey
            The model and the survey, or their paths.
        progress : callable, optional
            Called with (rows done, rows in all).

        Raises
        ------
        ConfigError
            If the model has not learnt what its training sample covers.
        GridMismatch
            If the spectra are not on the grid that the model's preparation takes.
        """
        model = model if isinstance(model, Model) else Model.open(model)
        survey = survey if isinstance(survey, Survey) else Survey.open(survey)
        coverage = _coverage(model)
        predictor = Predictor(model)
        rows = _predict(predictor, survey, progress)
        mean = np.stack([rows[label.name] for label in model.labels], axis=1)
        error = np.stack([rows[label.error_name] for label in model.labels], axis=1)
        # A star with some labels only is worth observing for the others: it counts as labelled with
        # all.
        whole = np.isfinite(survey.labels(model.labels)).all(axis=1)
        star_id = survey.star_id
        # Repeats of a labelled star bring nothing new; rows without an identifier are stars of
        # their own.
        known = whole | np.isin(star_id, star_id[whole & (star_id != "")])
        return cls(
            id=rows["id"],
            star_id=star_id,
            place=(mean - coverage.label_centre) / coverage.label_scale,
            error=error / coverage.label_scale,
            snr=rows["snr"],
            flags=rows["flags"],
            labelled=known | model.split.is_known(survey.stars),
            training=coverage.reference_labels,
            simulated=survey.simulated,
        )

    def __len__(self) -> int:
        return len(self.id)

    def rows(self, chosen: AnyArray) -> Census:
        """Return the census of some stars, by mask or row numbers."""
        own = ("id", "star_id", "place", "error", "snr", "flags", "labelled")
        return replace(self, **{name: getattr(self, name)[chosen] for name in own})

    def shares(self) -> dict[str, float]:
        """Share of stars with each flag that occurs, by its name, largest first."""
        found = {str(flag.name): float(np.mean((self.flags & flag) != 0)) for flag in Flag}
        ranked = sorted(found.items(), key=lambda item: -item[1])
        return {name: share for name, share in ranked if share > 0}

    @property
    def warned(self) -> float:
        """Share of stars with any warning flag."""
        return float(warned(self.flags).mean())

    def useless(self) -> dict[str, BoolArray]:
        """Stars (n_star,) that are never suggested, by reason; each star has at most one."""
        reasons: dict[str, BoolArray] = {_LABELLED: self.labelled}
        reasons |= {flag.text: np.asarray((self.flags & flag) != 0) for flag in USELESS}
        predicted = np.isfinite(self.place + self.error).all(axis=1)
        reasons["no predicted labels"] = np.asarray(~predicted, dtype=np.bool_)
        left: BoolArray = np.ones(len(self), dtype=np.bool_)
        found: dict[str, BoolArray] = {}
        for reason, there in reasons.items():
            found[reason] = there & left
            left &= ~there
        # Last, since which spectrum of a star is best depends on which of them are of use at all.
        found[_TWICE] = left & ~_best_spectra(self.star_id, self.snr, left)
        return {reason: there for reason, there in found.items() if there.any()}


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
    flags : (n,) int32
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
    flags: Int32Array
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
        path = check_suffix(path)
        with writing(path, overwrite=overwrite) as partial:
            self.table().write(partial, format=SUFFIXES[path.suffix.lower()])
        return path


def check_suffix(path: Path | str) -> Path:
    """Return the path; raise `ConfigError` unless its suffix is one of `SUFFIXES`."""
    path = Path(path)
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(
            f"suggestions are written as {', '.join(SUFFIXES)}, got {path.name!r}; "
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


def error_ratio(error: Float64Array, snr: Float64Array, lacking: Int32Array) -> Float64Array:
    """Errors over those typical of stars with the same inputs at the same S/N.

    Parameters
    ----------
    error : (n, n_label) float64
    snr : (n,) float64
    lacking : (n,) int32
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


def _best_spectra(star_id: StrArray, snr: Float64Array, left: BoolArray) -> BoolArray:
    """Whether each row is, of the rows `left` of its star, the one with the highest S/N."""
    rows = np.flatnonzero(left)
    # Stable, so that of equal S/N the first row of the survey is taken, on any machine.
    ranked = rows[np.argsort(-np.nan_to_num(snr[rows], nan=-1.0), kind="stable")]
    _, first = np.unique(star_id[ranked], return_index=True)
    best = np.zeros(len(star_id), dtype=np.bool_)
    best[ranked[first]] = True
    return np.asarray(best | (star_id == ""))


def _predict(
    predictor: Predictor, survey: Survey, progress: Progress | None
) -> dict[str, AnyArray]:
    """Labels, errors, and what else a census needs of the catalogue of the whole survey."""
    pairs = ((label.name, label.error_name) for label in predictor.model.labels)
    needed = ("id", "snr", "flags", *chain.from_iterable(pairs))
    parts: list[dict[str, AnyArray]] = []
    for start in range(0, max(len(survey), 1), _BATCH):
        batch = survey.batch(start, min(start + _BATCH, len(survey)))
        rows = predictor.predict(batch)
        parts.append({name: rows[name] for name in needed})
        if progress is not None:
            progress(start + len(batch), len(survey))
    return {name: np.concatenate([part[name] for part in parts]) for name in needed}


def _doubts(mask: int) -> list[str]:
    return [name for name in names(mask) if Flag[name].warns]


def _coverage(model: Model) -> CoverageModel:
    if "coverage" not in model.attachments:
        raise ConfigError(
            f"{model.path} has not learnt what its training sample covers; train a model of the "
            "preset maury, on enough stars"
        )
    return CoverageModel.from_arrays(model.arrays("coverage"))
