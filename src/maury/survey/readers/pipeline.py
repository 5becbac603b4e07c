"""The common course of all readers: source of spectra, columns, noise, store."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import (
    ClusterError,
    InputFileError,
    LengthMismatch,
    MauryError,
    OutputError,
    WorkerLost,
)
from maury.io.arrays import AnyArray, Float32Array, Float64Array, StrArray
from maury.io.cluster import Cluster
from maury.io.files import discard, explaining
from maury.io.limits import current, exceeded
from maury.io.opening import reading
from maury.labels.columns import BANDS, Column
from maury.labels.definitions import LABELS, Label
from maury.spectra.operators import estimate_snr, ivar_from_snr
from maury.spectra.pixels import continuum_level
from maury.survey.readers.grids import Gridder
from maury.survey.store import Survey
from maury.survey.writer import CHUNK_STARS, SurveyWriter, put_rows, require_unique
from maury.version import __version__


def star_ids(ids: ArrayLike, parallax: ArrayLike, magnitudes: ArrayLike) -> StrArray:
    """Give every spectrum the identifier of its star, found by equal astrometry and photometry.

    Rows of equal parallax and equal magnitudes (the same ones finite) are one star, named by the
    identifier of its first row. A row without parallax, or with fewer than two magnitudes, is a
    star of its own.

    Parameters
    ----------
    ids : (n_star,) array_like of str
        Identifiers of the spectra.
    parallax : (n_star,) array_like
        Parallax; NaN where missing.
    magnitudes : (n_star, n_band) array_like
        Apparent magnitudes; NaN where missing.

    Returns
    -------
    star_ids : (n_star,) str

    Examples
    --------
    >>> star_ids(["a", "b"], [1.5, 1.5], [[9.0, 8.1], [9.0, 8.1]]).tolist()
    ['a', 'a']
    """
    names = np.asarray(ids).astype(np.str_)
    distance = np.asarray(parallax, dtype=np.float64)
    bands = np.asarray(magnitudes, dtype=np.float64).reshape(names.size, -1)
    known = np.flatnonzero(np.isfinite(distance) & (np.isfinite(bands).sum(axis=1) >= 2))
    out = names.copy()
    if known.size:
        key: AnyArray = np.column_stack([distance[known], bands[known]])
        # Adding 0 makes -0.0 equal to 0.0 byte by byte, as the comparison below sees them.
        key = np.where(np.isfinite(key), key, np.inf) + 0.0
        rows = np.ascontiguousarray(key).view(f"V{key.itemsize * key.shape[1]}").ravel()
        _, first, member = np.unique(rows, return_index=True, return_inverse=True)
        out[known] = names[known[first[member]]]
    return out


logger = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
Columns = Mapping[str, AnyArray]
_LARGEST_HASHED = 64 * 2**20


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
    """

    wave_aa: Float64Array
    flux: Float32Array
    ivar: Float32Array | None
    what: str


class Source(Protocol):
    """Spectra in files."""

    @property
    def n_star(self) -> int:
        """Number of spectra."""

    @property
    def ids(self) -> StrArray | None:
        """Identifiers of the spectra, shape (n_star,), if the source knows them."""

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, in order."""


@dataclass(frozen=True)
class Opened:
    """A source that was opened again, its grid, and what keeps its files open."""

    source: Source
    gridder: Gridder
    keeper: object


Opener = Callable[[str], Opened]


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


def group_stars(columns: Columns, ids: StrArray) -> StrArray:
    """Return the star of every spectrum: as the column says, else by equal photometry."""
    if "star_id" in columns:
        given = columns["star_id"]
        return np.where(given == "", ids, given)
    missing = np.full(ids.size, np.nan)
    magnitudes = np.column_stack([columns.get(band.column, missing) for band in BANDS])
    return star_ids(ids, columns.get("parallax", missing), magnitudes)


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


def write_survey(
    source: Source,
    columns: Columns,
    target: Target,
    *,
    gridder: Gridder,
    medium: Any,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
    opener: tuple[Opener, str] | None = None,
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
        Workers to read on; with `opener`.
    opener : (callable, str), optional
        A function of an importable module that opens the source again, and its argument.
    """
    n_star = source.n_star
    further = {column.name: column for column in target.further}
    writer = SurveyWriter(
        target.out,
        n_star=n_star,
        wave_aa=gridder.wave_aa,
        medium=medium,
        columns=[*(further.get(name, name) for name in columns), "snr"],
        simulated=target.simulated,
        labels=target.labels,
        provenance=target.provenance,
        overwrite=target.overwrite,
        resume_key=target.resume_key,
        resolving_power=target.resolving_power,
    )
    with writer:
        try:
            if cluster is not None and opener is not None:
                again = (*opener, target.resume_key)
                _read_on(cluster, again, columns, writer, progress=progress)
            _write_chunks(source, columns, writer, gridder=gridder, progress=progress)
        except (ClusterError, WorkerLost, OutputError):
            raise
        except MauryError:
            # Once the input is corrected it is another run, which this part must not obstruct.
            with explaining(writer.path):
                discard(writer.partial, writer.path)
            raise
    return Survey.open(target.out)


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
        flux, ivar, snr = read_rows(source, gridder, start, known_snr[start:stop])
        rows = {name: values[start:stop] for name, values in columns.items()}
        writer.write(start, flux, ivar, **{**rows, "snr": snr})
        if progress is not None:
            progress(stop, n_star)


@dataclass(frozen=True)
class _Stretch:
    """Rows `start` to before `stop` of a store in the making: the work of a task."""

    store: str
    opener: Opener
    argument: str
    key: str
    start: int
    stop: int
    known_snr: Float64Array


def _read_on(
    cluster: Cluster,
    again: tuple[Opener, str, str],
    columns: Columns,
    writer: SurveyWriter,
    *,
    progress: Progress | None,
) -> None:
    """Have workers write the spectra; the columns, which are known, are written here."""
    store, missing = str(writer.partial.absolute()), writer.missing
    known = columns.get("snr", np.full(writer.n_star, np.nan))
    stretches = [_Stretch(store, *again, a, b, known[a:b]) for a, b in missing]
    if stretches:
        cluster.require_paths([store, again[1]])
    for number, snr in cluster.results(_read_there, stretches):
        start, stop = missing[number]
        rows = {name: values[start:stop] for name, values in columns.items()}
        put_rows(store, start, {**rows, "snr": snr})
        writer.note(start, stop)
        if progress is not None:
            progress(writer.n_written, writer.n_star)


def _read_there(stretch: _Stretch, tell: Callable[[Any], None]) -> Float64Array:
    """Read and write spectra on a worker, chunk by chunk; return their S/N."""
    opened = _opened(stretch.opener, stretch.argument, stretch.key)
    snr = np.empty(stretch.stop - stretch.start)
    for start in range(stretch.start, stretch.stop, CHUNK_STARS):
        stop = min(start + CHUNK_STARS, stretch.stop)
        rows = slice(start - stretch.start, stop - stretch.start)
        flux, ivar, snr[rows] = read_rows(
            opened.source, opened.gridder, start, stretch.known_snr[rows]
        )
        put_rows(stretch.store, start, {"flux": flux, "ivar": ivar})
    return snr


@lru_cache(maxsize=1)
def _opened(opener: Opener, argument: str, key: str) -> Opened:
    del key
    return opener(argument)


def read_rows(
    source: Source, gridder: Gridder, start: int, known_snr: Float64Array
) -> tuple[Float32Array, Float32Array, Float64Array]:
    """Read consecutive rows: flux and ivar (n, n_pixel) on the common grid, and S/N (n,).

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
    """
    n = known_snr.size
    flux = np.empty((n, gridder.wave_aa.size), dtype=np.float32)
    ivar, snr, first = np.empty_like(flux), np.empty(n), 0
    for piece in source.pieces(start, start + n):
        rows = slice(first, first + piece.flux.shape[0])
        # A wild pixel may overflow float32: it becomes infinite, which is a bad pixel.
        with np.errstate(over="ignore", invalid="ignore"):
            piece_ivar, snr[rows] = with_noise(piece.flux, piece.ivar, known_snr[rows])
            flux[rows], ivar[rows] = gridder.place(
                piece.wave_aa, (piece.flux, piece_ivar), what=piece.what
            )
        first = rows.stop
    assert first == n, "a source yielded another number of spectra than asked for"
    return flux, ivar, snr


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
