"""Sources of spectra and their columns into a store, here or on workers."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from maury.errors import (
    ClusterError,
    MauryError,
    OutputError,
    WorkerLost,
)
from maury.io.arrays import AnyArray, Float64Array, StrArray
from maury.io.cluster import Cluster
from maury.io.files import discard, explaining
from maury.io.workers import one_thread
from maury.labels.columns import Column
from maury.labels.definitions import LABELS, Label
from maury.spectra.spectra import Medium
from maury.survey.readers.grids import Gridder
from maury.survey.readers.pipeline import Columns, Source, read_rows
from maury.survey.store import Survey
from maury.survey.writer import CHUNK_STARS, SurveyWriter, put_rows

logger = logging.getLogger(__name__)


Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Opened:
    """A source that was opened again, its grid, and what keeps its files open."""

    source: Source
    gridder: Gridder
    keeper: object


class Reopening(NamedTuple):
    """How a worker opens a source again: ``open(argument)``, of files at `place`.

    `open` is a function of an importable module, so that it can be sent by its name.
    """

    open: Callable[[str], Opened]
    argument: str
    place: Path


@dataclass(frozen=True)
class Target:
    """Where a survey goes and what is recorded with it."""

    out: Path | str
    simulated: bool
    provenance: Mapping[str, Any]
    resume_key: str
    labels: Sequence[Label] = LABELS
    overwrite: bool = False
    further: Sequence[Column] = ()
    resolving_power: float | None = None
    noise_correlation: tuple[float, ...] | None = None
    at_rest: bool | None = None


def write_survey(
    source: Source,
    columns: Columns,
    target: Target,
    *,
    gridder: Gridder,
    medium: Medium,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
    reopening: Reopening | None = None,
) -> Survey:
    """Stream a source into a new store, and open it.

    Parameters
    ----------
    source : Source
        Spectra.
    columns : mapping of str to (n_star,) array
        Everything known of each spectrum; with ``id`` and ``star_id``.
    target : Target
        Output and what is recorded.
    gridder : Gridder
        The common grid.
    medium : {"air", "vacuum"}
        Medium of its wavelengths.
    progress : callable, optional
        Called with the number of rows done, and of all.
    cluster : Cluster, optional
        Workers to read on; with `reopening`.
    reopening : Reopening, optional
        How they open the source again.
    """
    writer = _writer(source, columns, target, gridder, medium)
    with writer:
        try:
            if cluster is not None and reopening is not None:
                again = (reopening, target.resume_key)
                _read_on(cluster, again, (source, columns), writer, progress=progress)
            with one_thread():
                _write_chunks(source, columns, writer, gridder=gridder, progress=progress)
        # These say nothing against the input: the part that is written is resumed.
        except (ClusterError, WorkerLost, OutputError):
            raise
        except MauryError:
            # Once the input is corrected it is another run, which this part must not obstruct.
            with explaining(writer.path):
                discard(writer.partial, writer.path)
            raise
    survey = Survey.open(target.out)
    if source.skip_bad:
        report_unread(survey.id, survey.column("unread"), target.out)
    return survey


def _writer(
    source: Source, columns: Columns, target: Target, gridder: Gridder, medium: Medium
) -> SurveyWriter:
    further = {column.name: column for column in target.further}
    return SurveyWriter(
        target.out,
        n_star=source.n_star,
        wave_aa=gridder.wave_aa,
        medium=medium,
        columns=[
            *(further.get(name, name) for name in columns),
            *("snr", *(["unread"] if source.skip_bad else [])),
        ],
        simulated=target.simulated,
        labels=target.labels,
        provenance=target.provenance,
        overwrite=target.overwrite,
        resume_key=target.resume_key,
        resolving_power=target.resolving_power,
        noise_correlation=target.noise_correlation,
        at_rest=target.at_rest,
    )


def _write_chunks(
    source: Source,
    columns: Columns,
    writer: SurveyWriter,
    *,
    gridder: Gridder,
    progress: Progress | None,
) -> None:
    n_star = source.n_star
    known_snr = columns.get("snr", np.full(n_star, np.nan))
    # A resumed run begins where the last one was safe, which is a multiple of a chunk.
    for start in range(writer.done, n_star, CHUNK_STARS):
        stop = min(start + CHUNK_STARS, n_star)
        read = read_rows(source, gridder, start, known_snr[start:stop])
        rows = {name: values[start:stop] for name, values in columns.items()}
        found = _found(source, read.snr, read.unread)
        writer.write(start, read.flux, read.ivar, **{**rows, **found})
        if progress is not None:
            progress(stop, n_star)


def _found(source: Source, snr: AnyArray, unread: AnyArray) -> dict[str, AnyArray]:
    """Return the columns that are known only once the spectra are read."""
    return {"snr": snr} | ({"unread": unread} if source.skip_bad else {})


@dataclass(frozen=True)
class _Stretch:
    """Rows `start` to before `stop` of a store in the making: the work of a task."""

    store: str
    again: Reopening
    key: str
    start: int
    stop: int
    known_snr: Float64Array


def _read_on(
    cluster: Cluster,
    again: tuple[Reopening, str],
    known: tuple[Source, Columns],
    writer: SurveyWriter,
    *,
    progress: Progress | None,
) -> None:
    """Have workers write the spectra; the columns, which are known, are written here."""
    store, missing = str(writer.partial.absolute()), writer.missing
    source, columns = known
    known_snr = columns.get("snr", np.full(writer.n_star, np.nan))
    # Workers write flux and ivar themselves: only S/N and reasons come back over the wire.
    stretches = [_Stretch(store, *again, a, b, known_snr[a:b]) for a, b in missing]
    if stretches:
        cluster.require_paths([store, again[0].place])
    for number, (snr, unread) in cluster.results(_read_there, stretches):
        start, stop = missing[number]
        rows = {name: values[start:stop] for name, values in columns.items()}
        put_rows(store, start, {**rows, **_found(source, snr, unread)})
        writer.note(start, stop)
        if progress is not None:
            progress(writer.n_written, writer.n_star)


def _read_there(stretch: _Stretch, tell: Callable[[Any], None]) -> tuple[Float64Array, AnyArray]:
    """Read and write spectra on a worker, chunk by chunk; return S/N, and why some are lost."""
    opened = _opened(stretch.again, stretch.key)
    snr = np.empty(stretch.stop - stretch.start)
    unread = np.full(snr.size, "", dtype=object)
    for start in range(stretch.start, stretch.stop, CHUNK_STARS):
        stop = min(start + CHUNK_STARS, stretch.stop)
        rows = slice(start - stretch.start, stop - stretch.start)
        read = read_rows(opened.source, opened.gridder, start, stretch.known_snr[rows])
        snr[rows], unread[rows] = read.snr, read.unread
        put_rows(stretch.store, start, {"flux": read.flux, "ivar": read.ivar})
    return snr, unread


@lru_cache(maxsize=1)
def _opened(again: Reopening, key: str) -> Opened:
    # The key is that of the store: two runs over files that changed are not one.
    del key
    return again.open(again.argument)


_NAMED = 5
"""Skipped files that the report names; the column has them all."""


def report_unread(ids: StrArray, unread: StrArray, what: Path | str) -> None:
    """Warn once of all spectra that could not be read, and name the first few."""
    lost = np.flatnonzero(unread != "")
    if lost.size:
        named = "; ".join(f"{ids[row]}: {unread[row]}" for row in lost[:_NAMED])
        logger.warning(
            "%s: %d of %d spectra could not be read and are rows of bad pixels, as the column "
            "'unread' says: %s%s",
            what,
            lost.size,
            unread.size,
            named,
            "; ..." if lost.size > _NAMED else "",
        )
