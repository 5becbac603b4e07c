"""The common course of all readers: source of spectra, columns, noise, store."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from maury.errors import (
    ClusterError,
    GridMismatch,
    InputFileError,
    LengthMismatch,
    MauryError,
    OutputError,
    WavelengthError,
    WorkerLost,
)
from maury.io.arrays import AnyArray, Float32Array, Float64Array, StrArray
from maury.io.cluster import Cluster
from maury.io.files import discard, explaining
from maury.io.limits import current, exceeded
from maury.io.opening import reading
from maury.labels.columns import STAR_ID_FROM, Column
from maury.labels.definitions import LABEL_NAMES, LABELS, Label
from maury.spectra.operators import estimate_snr, ivar_from_snr
from maury.spectra.pixels import continuum_level
from maury.spectra.stars import SPECTRUM, StarMarks, group_stars
from maury.survey.readers.grids import Gridder, ascending
from maury.survey.store import Survey
from maury.survey.writer import CHUNK_STARS, SurveyWriter, put_rows, require_unique
from maury.version import __version__

logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
Columns = Mapping[str, AnyArray]
_LARGEST_HASHED = 64 * 2**20
_REPEATED_LABELS = 2
"""Labels that two spectra must share exactly to be suspected to be of one star: one label alone may
be a node of a grid, or a constant."""


@dataclass(frozen=True)
class Piece:
    """Consecutive spectra on one grid, as their file has them.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Wavelengths in angstrom.
    flux : (n, n_pixel) float32
        Flux.
    ivar : (n, n_pixel) float32 or None
        Inverse variance; None where the file gives none.
    what : str
        Where they come from, for messages.
    unread : (n,) str, optional
        Why a spectrum could not be read, empty where it was.
    """

    wave_aa: Float64Array
    flux: Float32Array
    ivar: Float32Array | None
    what: str
    unread: StrArray | None = None

    @classmethod
    def lost(cls, n: int, why: str) -> Self:
        """Return `n` spectra that could not be read, without any pixel."""
        none = np.empty((n, 0), dtype=np.float32)
        return cls(np.empty(0), none, none, why, np.full(n, why))


class Source(Protocol):
    """Spectra in files."""

    @property
    def n_star(self) -> int:
        """Number of spectra."""

    @property
    def ids(self) -> StrArray | None:
        """Identifiers of the spectra, shape (n_star,), if the source knows them."""

    @property
    def simulated(self) -> bool:
        """Whether the files say that their spectra are simulated."""

    @property
    def skip_bad(self) -> bool:
        """Whether a spectrum that cannot be read is a row of bad pixels instead of an error."""

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, in order."""


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


def check_rows(n_star: int, what: Path) -> None:
    """Raise `InputFileError` if a source has no spectra, or absurdly many."""
    if n_star == 0:
        raise InputFileError(f"{what} holds no spectra; give at least one")
    if n_star > current().rows:
        raise InputFileError(
            f"{what} promises {n_star} spectra; it is damaged, or transposed "
            f"(at most {current().rows})"
        )


def check_pixels(n_pixel: int, what: Path) -> None:
    """Raise `InputFileError` if spectra are absurdly long."""
    if n_pixel > current().pixels:
        raise exceeded(what, f"holds spectra of {n_pixel} pixels", "pixels")


def complete_ids(ids: StrArray | None, n_star: int, what: Path) -> StrArray:
    """Return identifiers, checked, or row numbers (from 0) if there are none.

    Raises
    ------
    IdentifierError
        If one is empty or stands twice.
    LengthMismatch
        If there is not one per spectrum.
    """
    if ids is None:
        logger.info("%s: no identifiers; spectra are numbered from 0", what)
        return np.arange(n_star).astype(np.str_)
    if ids.size != n_star:
        raise LengthMismatch(f"{what} holds {n_star} spectra, but {ids.size} identifiers")
    require_unique(ids, what=str(what))
    return ids


def with_stars(columns: Columns, ids: StrArray, place: Path) -> dict[str, AnyArray]:
    """Return columns with the star of every spectrum, and by what it was identified.

    A ``star_id`` that the columns have stays; others are found by `maury.spectra.stars`.

    Parameters
    ----------
    columns : mapping of str to (n_star,) array
    ids : (n_star,) str
        Identifiers of the spectra.
    place : Path
        Where the spectra come from.
    """
    # Row numbers name a spectrum in this file only; in another file they are other stars.
    numbered = np.array_equal(ids, np.arange(ids.size).astype(np.str_))
    local = np.char.add(f"{place.name}:", ids) if numbered else ids
    known = {"star_id": np.full(ids.size, ""), **columns, "id": local}
    star_id, means = group_stars(StarMarks.of(known, ids.size))
    _warn_of_repeats(columns, star_id, means)
    return {**columns, "star_id": star_id, STAR_ID_FROM.name: means}


def _warn_of_repeats(columns: Columns, star_id: StrArray, means: StrArray) -> None:
    """Warn where labels repeat exactly, and nothing says whether the spectra are of one star."""
    labels = [columns[name] for name in LABEL_NAMES if name in columns]
    rows = np.flatnonzero(means == SPECTRUM)
    if len(labels) < _REPEATED_LABELS or not rows.size:
        return
    values = np.stack(labels, axis=1)[rows]
    values = values[np.isfinite(values).sum(axis=1) >= _REPEATED_LABELS]
    _, counts = np.unique(np.nan_to_num(values, nan=np.inf), axis=0, return_counts=True)
    repeated = int(counts[counts > 1].sum())
    if repeated:
        logger.warning(
            "%d spectra have labels that are equal to those of others, but no star_id, position or "
            "photometry by which to tell whether they are of one star: each counts as a star of "
            "its own, and may stand on both sides of a split; map 'star_id', or 'ra' and 'dec'",
            repeated,
        )


def with_noise(
    flux: Float32Array, ivar: Float32Array | None, snr: Float64Array
) -> tuple[Float32Array, Float64Array]:
    """Return ivar and S/N of spectra of which one or both are unknown.

    S/N is taken from `snr`, else from flux and ivar, else estimated from the spectrum. Spectra
    whose 90th percentile is not near 1 are scaled by it for the estimate.

    Parameters
    ----------
    flux : (n, n_pixel) float32
    ivar : (n, n_pixel) float32 or None
    snr : (n,) float64
        NaN where unknown.

    Returns
    -------
    ivar : (n, n_pixel) float32
        0 in pixels that are not finite, and in rows without any flux.
    snr : (n,) float64
        NaN where it cannot be measured.
    """
    good = np.isfinite(flux)
    good &= (good & (flux != 0)).any(axis=1, keepdims=True)
    if ivar is not None:
        usable = good & np.isfinite(ivar) & (ivar > 0)
        ivar = np.where(usable, ivar, 0).astype(np.float32)
        return ivar, np.where(np.isfinite(snr), snr, _measured_snr(flux, ivar))
    level = continuum_level(flux, good.astype(np.float32))[:, None].astype(np.float32)
    scaled = np.where(good, flux / level, np.float32(np.nan))
    unknown = ~(np.isfinite(snr) & (snr > 0))
    snr = snr.copy()
    if unknown.any():
        snr[unknown] = estimate_snr(scaled[unknown], good[unknown].astype(np.float32))
    return (ivar_from_snr(scaled, snr) / level**2).astype(np.float32), snr


def _measured_snr(flux: Float32Array, ivar: Float32Array) -> Float64Array:
    """Median of flux over noise in the upper half of the good pixels, where continuum is."""
    ratio = np.where(ivar > 0, flux, 0).astype(np.float64) * np.sqrt(ivar)
    out = np.full(flux.shape[0], np.nan)
    for row in np.flatnonzero((ivar > 0).any(axis=1)):
        value = float(np.percentile(ratio[row, ivar[row] > 0], 75))
        out[row] = value if value > 0 else np.nan
    return out


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
    medium: Any,
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
    n_star = source.n_star
    further = {column.name: column for column in target.further}
    writer = SurveyWriter(
        target.out,
        n_star=n_star,
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
    with writer:
        try:
            if cluster is not None and reopening is not None:
                again = (reopening, target.resume_key)
                _read_on(cluster, again, (source, columns), writer, progress=progress)
            _write_chunks(source, columns, writer, gridder=gridder, progress=progress)
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


class ReadRows(NamedTuple):
    """Consecutive rows as they were read.

    Attributes
    ----------
    flux, ivar : (n, n_pixel) float32
        On the common grid; NaN and 0 in a spectrum that could not be read.
    snr : (n,) float64
    unread : (n,) object
        Why a spectrum could not be read, empty where it was.
    """

    flux: Float32Array
    ivar: Float32Array
    snr: Float64Array
    unread: AnyArray


def read_rows(source: Source, gridder: Gridder, start: int, known_snr: Float64Array) -> ReadRows:
    """Read consecutive rows, and put them on the common grid.

    Parameters
    ----------
    source : Source
        Spectra.
    gridder : Gridder
        The common grid.
    start : int
        First row.
    known_snr : (n,) float64
        S/N of these rows, NaN where unknown.

    Raises
    ------
    InputFileError, GridMismatch
        If a spectrum cannot be read or stands on another grid, and the source does not skip it.
    """
    n = known_snr.size
    flux = np.full((n, gridder.wave_aa.size), np.nan, dtype=np.float32)
    ivar, snr, first = np.zeros_like(flux), np.full(n, np.nan), 0
    unread = np.full(n, "", dtype=object)
    for piece in source.pieces(start, start + n):
        rows = slice(first, first + piece.flux.shape[0])
        first = rows.stop
        if piece.unread is not None:
            unread[rows] = piece.unread
        if not piece.wave_aa.size:
            continue
        # A wild pixel may overflow float32: it becomes infinite, which is a bad pixel.
        with np.errstate(over="ignore", invalid="ignore"):
            wave_aa, values, given = ascending(piece.wave_aa, piece.flux, piece.ivar)
            noise, snr[rows] = with_noise(values, given, known_snr[rows])
            try:
                flux[rows], ivar[rows] = gridder.place(wave_aa, (values, noise), what=piece.what)
            except (GridMismatch, WavelengthError) as error:
                if not source.skip_bad:
                    raise
                unread[rows], snr[rows] = str(error), np.nan
    assert first == n, "a source yielded another number of spectra than asked for"
    return ReadRows(flux, ivar, snr, unread)


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


def describe_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """Return name, size and (below 64 MiB) SHA-256 of files, for provenance."""
    records: list[dict[str, Any]] = []
    for path in paths:
        with reading(path):
            size = path.stat().st_size
            record: dict[str, Any] = {"name": path.name, "bytes": size}
            if size <= _LARGEST_HASHED:
                with path.open("rb") as stream:
                    record["sha256"] = hashlib.file_digest(stream, "sha256").hexdigest()
        records.append(record)
    return records


def fingerprint(paths: Iterable[Path], options: Any) -> str:
    """Return a key of everything that determines a store: files, their times, the options."""
    digest = hashlib.sha256(json.dumps([__version__, options], sort_keys=True).encode())
    for path in paths:
        with reading(path):
            state = path.stat()
        digest.update(f"\n{path.resolve()}\t{state.st_size}\t{state.st_mtime_ns}".encode())
    return digest.hexdigest()


def provenance(reader: str, files: list[dict[str, Any]], options: Any) -> dict[str, Any]:
    """Return what a store records of its making."""
    return {"reader": reader, "maury": __version__, "files": files, "options": options}
