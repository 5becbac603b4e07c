"""What an ingest would read, told before it is run: `maury check`."""

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maury.errors import GridMismatch, InputFileError
from maury.labels import columns as columns_module
from maury.spectra.absent import absent_sources
from maury.spectra.batch import Batch
from maury.spectra.preparation import Preparation
from maury.spectra.spectra import describe_grid
from maury.survey.plausibility import check_range_of_wavelengths, tell_of_labels
from maury.survey.readers.file_survey import FileSurvey
from maury.survey.readers.general import open_toml
from maury.survey.summary import HEADER, Values

_SPECTRA = 20
"""Spectra that are read: evenly through the survey, so that another grid or a bad file shows."""
_NAMED = 12
"""Columns left out that a line names."""


@dataclass(frozen=True)
class SurveyCheck:
    """What an ingest would read.

    Attributes
    ----------
    lines : tuple of str
        Rows, grid, medium, noise, what is left out.
    values : list of tuple of str
        A table of columns with their ranges, its header first; empty without columns.
    joins : list of tuple of str
        A table of joined tables, its header first; empty without tables.
    warnings : tuple of str
        What was warned of meanwhile.
    """

    lines: tuple[str, ...]
    values: list[tuple[str, ...]]
    joins: list[tuple[str, ...]]
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines)


class _Collector(logging.Handler):
    """Warnings of this thread, which still go where they went before."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        """Take down a warning."""
        if record.thread == self._thread:
            self.messages.append(record.getMessage())


def check_toml(config_path: Path | str) -> SurveyCheck:
    """Open what a TOML file describes, and tell what `ingest_toml` would read; nothing is written.

    All tables are read and joined, and some spectra are read, evenly through the survey.

    Parameters
    ----------
    config_path : Path or str
        The TOML file.

    Raises
    ------
    ConfigError, InputFileError, GridMismatch
        As of `maury.survey.readers.open_toml`: what would end the ingest at once.
    """
    collector, log = _Collector(), logging.getLogger("maury")
    log.addHandler(collector)
    try:
        with open_toml(config_path) as survey:
            return _check(survey, collector)
    finally:
        log.removeHandler(collector)


def _check(survey: FileSurvey, collector: _Collector) -> SurveyCheck:
    check_range_of_wavelengths(survey.wave_aa, what=str(survey.path))
    tell_of_labels(survey.columns, survey.labels, what=str(survey.path))
    batches, problems = _some(survey)
    lines = [*_lines(survey), *_noise(batches), *problems, *_left_out(survey), *_absent(survey)]
    return SurveyCheck(
        tuple(lines),
        _values(survey, batches),
        _joins(survey),
        tuple(dict.fromkeys(collector.messages)),
    )


def _absent(survey: FileSurvey) -> list[str]:
    """Say once which inputs of the default network no star of the survey has."""
    known = {name: np.asarray(values) for name, values in survey.columns.items()}
    lacking = absent_sources(Preparation(), list(known), known.__getitem__)
    if not lacking:
        return []
    return [
        f"without {', '.join(lacking)}, which the default network takes where a survey has them; "
        "it does without, with larger errors"
    ]


def _some(survey: FileSurvey) -> tuple[list[Batch], list[str]]:
    """Read some spectra, one by one, and say which cannot be read."""
    rows = np.unique(np.linspace(0, len(survey) - 1, _SPECTRA).astype(int)).tolist()
    batches, problems = [], []
    for row in rows:
        try:
            batches.append(survey.batch(row, row + 1))
        except (InputFileError, GridMismatch) as error:
            problems.append(f"ingest would stop at row {row}: {error}")
    return batches, problems


def _lines(survey: FileSurvey) -> list[str]:
    mark = "SIMULATED spectra" if survey.simulated else "spectra"
    ids = survey.columns["id"]
    n_star = len(np.unique(survey.columns["star_id"]))
    resampled = ", onto which all are resampled" if survey.gridder.resamples else ""
    power = survey.resolving_power
    rest = {True: "at rest", False: "not at rest", None: "at rest, as nothing else is said"}
    if survey.at_rest is None and "radial_velocity" in survey.columns:
        rest[None] = "at rest or not is not said"
    such = ", ".join(dict.fromkeys((str(ids[0]), str(ids[-1]))))
    if len(survey) == 1:
        mark = mark.replace("spectra", "spectrum")
    return [
        f"{survey.path}: {len(survey)} {mark} of {n_star} star{'s' * (n_star > 1)}, ids such as "
        f"{such}",
        f"grid: {describe_grid(survey.wave_aa, survey.medium)}{resampled}; {rest[survey.at_rest]}",
        f"resolving power: {'not stated' if power is None else f'{power:g}'}",
    ]


def _noise(batches: Sequence[Batch]) -> list[str]:
    if not batches:
        return []
    good = np.array([float((one.spectra.ivar > 0).mean()) for one in batches])
    snr = np.array([float(one.columns["snr"][0]) for one in batches])
    known = snr[np.isfinite(snr)]
    span = f"S/N {known.min():.0f} to {known.max():.0f}" if known.size else "S/N unknown"
    empty = int((good == 0).sum())
    return [
        f"{len(batches)} spectra were read: {good.mean():.1%} of pixels are good, {span}"
        + (f"; {empty} of them have no good pixel" if empty else "")
    ]


def _left_out(survey: FileSurvey) -> list[str]:
    lines = []
    for join in survey.joins:
        rest = [name for name in join.names if name not in join.used]
        if rest:
            more = f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else ""
            lines.append(
                f"{join.title}: columns that [columns] does not map are left out: "
                f"{', '.join(rest[:_NAMED])}{more}"
            )
    absent = {join.title: join.n_spectra - join.n_matched for join in survey.joins}
    lines += [
        f"{n} spectra are not in {title}: what it gives is missing for them"
        for title, n in absent.items()
        if n
    ]
    lines += [
        f"{join.title}: {join.n_row - join.n_used} rows are of no spectrum here, and are left out"
        for join in survey.joins
        if join.n_row > join.n_used
    ]
    return lines


def _values(survey: FileSurvey, batches: Sequence[Batch]) -> list[tuple[str, ...]]:
    known = columns_module.known(survey.labels) | {one.name: one for one in survey.further}
    ranges = {label.name: label.range for label in survey.labels}
    rows = []
    for name, values in survey.columns.items():
        column = known.get(name)
        if column is None or column.kind == "str":
            continue
        rows.append((name, column.unit, *Values.of(values, ranges.get(name)).words))
    return [HEADER, *rows] if rows else []


def _joins(survey: FileSurvey) -> list[tuple[str, ...]]:
    header = ("table", "joined by", "rows", "spectra found", "rows used")
    rows = [
        (one.title, one.how, str(one.n_row), f"{one.n_matched} of {one.n_spectra}", str(one.n_used))
        for one in survey.joins
    ]
    return [header, *rows] if rows else []
