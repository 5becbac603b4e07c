"""What a survey store holds: spectra, stars, S/N and labels, in numbers."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from maury.io.arrays import AnyArray
from maury.labels.columns import STAR_ID_FROM
from maury.labels.definitions import Label
from maury.spectra.spectra import describe_grid
from maury.survey.store import Survey
from maury.survey.writer import COLUMN_CHUNK_STARS

_BEYOND = 0.5
"""Widths of its plotting range by which a label must lie outside it to be counted: values of
another unit or code for a missing one do, and no star does. Chosen, not measured."""


@dataclass(frozen=True)
class Values:
    """What a column holds.

    Attributes
    ----------
    n, n_missing : int
        Rows with a value, and without.
    quantiles : (5,) tuple of float
        Minimum, 16 %, median, 84 %, maximum; NaN without values.
    n_outlier : int
        Values outside the plotting range of a label by more than half its width.
    """

    n: int
    n_missing: int
    quantiles: tuple[float, ...]
    n_outlier: int = 0

    @classmethod
    def of(cls, values: AnyArray, range_: tuple[float, float] | None = None) -> "Values":
        """Count values, of a label with its plotting range."""
        numbers = np.asarray(values, dtype=np.float64)
        known = numbers[np.isfinite(numbers)]
        quantiles = np.percentile(known, (0, 16, 50, 84, 100)) if known.size else [np.nan] * 5
        outlier = 0
        if range_ is not None:
            low, high = range_
            margin = _BEYOND * (high - low)
            outlier = int(((known < low - margin) | (known > high + margin)).sum())
        return cls(known.size, numbers.size - known.size, tuple(map(float, quantiles)), outlier)

    @property
    def words(self) -> tuple[str, ...]:
        """Number of values, missing ones, the quantiles and the outliers, for a table."""
        counts = (str(self.n), str(self.n_missing or "-"))
        return (*counts, *map(_short, self.quantiles), str(self.n_outlier or "-"))


def _short(value: float) -> str:
    """Return a number in seven characters or so: what a label means to two decimals, or to 1 K."""
    decimals = 2 if abs(value) < 10.0 else 1 if abs(value) < 1000.0 else 0
    return f"{value:.{decimals}f}" if abs(value) < 1e6 else f"{value:.1e}"


HEADER = ("", "unit", "known", "missing", "lowest", "16 %", "median", "84 %", "highest", "outliers")


def label_rows(labels: Sequence[Label], values: Callable[[str], AnyArray]) -> list[tuple[str, ...]]:
    """Return a table with a row for each label, with a header.

    Parameters
    ----------
    labels : sequence of Label
    values : callable
        ``values(name)`` is the column of a label; they are asked for one by one.
    """
    rows = [
        (label.name, label.unit, *Values.of(values(label.name), label.range).words)
        for label in labels
    ]
    return [HEADER, *rows] if rows else []


@dataclass(frozen=True)
class SurveySummary:
    """What a survey holds; ``str()`` says it in lines, `rows` are a table of S/N and labels."""

    lines: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __str__(self) -> str:
        return "\n".join(self.lines)


def summarize(survey: Survey) -> SurveySummary:
    """Measure a survey; columns are read one at a time, identifiers a chunk at a time.

    Spectra are not read.
    """
    n_star, means = _stars(survey)
    known = ", ".join(f"{how} {n}" for how, n in means.most_common()) or "star_id as given"
    made, wave = survey.provenance, survey.wave_aa
    step = np.diff(wave)
    labels = [one for one in survey.label_definitions if one.name in survey.label_names]
    mark = "SIMULATED survey" if survey.simulated else "survey"
    lines = (
        f"{mark} {survey.path}",
        f"spectra: {survey.n_star}, of {n_star} stars (identified by: {known})",
        f"grid: {describe_grid(wave, survey.medium)}, steps {step.min():.4g} to {step.max():.4g}",
        f"resolving power: {_or_unknown(survey.resolving_power)}; at rest: "
        f"{_or_unknown(survey.at_rest)}; noise correlation of neighbouring pixels: "
        f"{_or_unknown(survey.noise_correlation)}{' (measured)' if survey.noise_measured else ''}",
        f"columns: {', '.join(survey.column_names)}",
        f"made by: {made.get('reader', made.get('origin', 'not recorded'))}, "
        f"maury {made.get('maury', made.get('maury_version', 'not recorded'))}",
    )
    rows = label_rows(labels, survey.column)
    if "snr" in survey.column_names:
        snr = ("snr", "", *Values.of(survey.column("snr")).words)
        rows = [HEADER, snr, *rows[1:]]
    return SurveySummary(lines, rows)


def _stars(survey: Survey) -> tuple[int, Counter[str]]:
    """Count stars, and spectra by what their star was identified by."""
    hashes, means = [], Counter[str]()
    has_means = STAR_ID_FROM.name in survey.column_names
    for start in range(0, survey.n_star, COLUMN_CHUNK_STARS):
        stop = min(start + COLUMN_CHUNK_STARS, survey.n_star)
        ids = survey.texts("star_id", start, stop)
        # Eight bytes a row hold what identifiers of any length would: whether two are equal. A
        # spectrum without one is a star of its own, as in splits.
        numbers = [hash(one or row) for row, one in enumerate(ids, start)]
        hashes.append(np.array(numbers, dtype=np.int64))
        if has_means:
            means.update(survey.texts(STAR_ID_FROM.name, start, stop))
    return np.unique(np.concatenate(hashes)).size if hashes else 0, means


def _or_unknown(value: object) -> str:
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Iterable):
        return ", ".join(f"{one:g}" for one in value) or "none"
    return f"{value:g}"
