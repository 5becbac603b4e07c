"""The common course of all readers: source of spectra, columns, noise, store."""

import hashlib
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np

from maury.errors import (
    GridMismatch,
    InputFileError,
    LengthMismatch,
    MauryError,
    WavelengthError,
)
from maury.io.arrays import AnyArray, Float32Array, Float64Array, StrArray
from maury.io.limits import current, exceeded
from maury.io.opening import reading
from maury.labels.columns import STAR_ID_FROM
from maury.labels.definitions import LABEL_NAMES
from maury.spectra.operators import estimate_snr, ivar_from_snr
from maury.spectra.pixels import continuum_level
from maury.spectra.star_identity import SPECTRUM, StarMarks, group_stars
from maury.survey.readers.grids import Gridder, ascending
from maury.survey.writer import require_unique
from maury.version import __version__

logger = logging.getLogger(__name__)
_SCALE_FROM = 8
"""Spectra that tell the order of the fluxes: more than one, as the first may be all bad."""
_LARGEST = 1e34
"""Inverse variance of which float32 still holds ten thousand times as much (a pixel with a
hundredth of the usual error)."""
Columns = Mapping[str, AnyArray]
_LARGEST_HASHED = 64 * 2**20
"""Larger files are known by name and size alone: hashing them would take long; chosen."""
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
    flux : (n, n_pixel) float
        Flux, in the precision of the file.
    ivar : (n, n_pixel) float or None
        Inverse variance; None where the file gives none.
    what : str
        Where they come from, for messages.
    unread : (n,) str, optional
        Why a spectrum could not be read, empty where it was.
    """

    wave_aa: Float64Array
    flux: AnyArray
    ivar: AnyArray | None
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


def check_rows(n_star: int, what: Path) -> None:
    """Raise `InputFileError` if a source has no spectra, or absurdly many."""
    if n_star == 0:
        raise InputFileError(f"{what} holds no spectra; give at least one")
    if n_star > current().rows:
        raise InputFileError(
            f"{what} promises {n_star} spectra; it is damaged, or transposed "
            f"(at most {current().rows})"
        )


def check_pixels(n_pixel: int, what: Path, *, limit: str = "pixels") -> None:
    """Raise `InputFileError` if spectra are longer than the limit of this name."""
    if n_pixel > getattr(current(), limit):
        raise exceeded(what, f"holds spectra of {n_pixel} pixels", limit)


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

    A ``star_id`` that the columns have stays; others are found by `maury.spectra.star_identity`.

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
    # A row of zeros is how many files write "no spectrum".
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
    # In double precision, as flux and noise may be in any unit.
    ratio = np.where(ivar > 0, flux, 0).astype(np.float64) * np.sqrt(ivar)
    out = np.full(flux.shape[0], np.nan)
    for row in np.flatnonzero((ivar > 0).any(axis=1)):
        value = float(np.percentile(ratio[row, ivar[row] > 0], 75))
        out[row] = value if value > 0 else np.nan
    return out


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


def in_single_precision(
    flux: AnyArray, ivar: AnyArray | None, scale: float
) -> tuple[Float32Array, Float32Array | None]:
    """Return flux times a scale, and ivar over its square; a pixel that float32 cannot hold is bad.

    Parameters
    ----------
    flux, ivar : (n, n_pixel) float
        As the file has them; ivar may be None.
    scale : float
        As of `flux_scale`.
    """
    if scale != 1.0:
        flux = np.asarray(flux, dtype=np.float64) * scale
        ivar = None if ivar is None else np.asarray(ivar, dtype=np.float64) / scale**2
    flux = np.asarray(flux, dtype=np.float32)
    if ivar is None:
        return flux, None
    single = np.asarray(ivar, dtype=np.float32)
    return flux, np.where(np.isfinite(single), single, np.float32(0))


def flux_scale(source: Source, what: Path | str) -> float:
    """Return the power of ten that brings fluxes in physical units to about 1, or 1.

    A store is in single precision, which ends at 3e38: errors of 5e-20, as of fluxes in W/m2/nm,
    have larger inverse variances. The first few spectra decide for all, so that fluxes of a survey
    stay comparable.

    Parameters
    ----------
    source : Source
    what : path-like
        Whose spectra, for the log.
    """
    levels, inverse = [], []
    # Damaged numbers may be signalling NaN, which numpy would warn of.
    with suppress(MauryError), np.errstate(invalid="ignore"):
        for piece in source.pieces(0, min(_SCALE_FROM, source.n_star)):
            flux = np.abs(np.asarray(piece.flux, dtype=np.float64))
            levels.append(flux[np.isfinite(flux) & (flux > 0)])
            if piece.ivar is not None:
                ivar = np.asarray(piece.ivar, dtype=np.float64)
                inverse.append(ivar[np.isfinite(ivar) & (ivar > 0)])
    level = float(np.median(np.concatenate(levels))) if sum(map(len, levels)) else 1.0
    # Without errors, those of S/N 100.
    noise = np.concatenate(inverse) if sum(map(len, inverse)) else np.array([1e4 * level**-2.0])
    if 1.0 / _LARGEST < float(np.median(noise)) < _LARGEST:
        return 1.0
    exponent = -round(math.log10(level))
    logger.warning(
        "%s: fluxes are of order 1e%d, and are stored times 1e%d", what, -exponent, exponent
    )
    return float(10.0**exponent)


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
        # A spectrum that was lost has no grid to be placed from.
        if not piece.wave_aa.size:
            continue
        # A wild pixel may overflow float32: it becomes infinite, which is a bad pixel.
        with np.errstate(over="ignore", invalid="ignore"):
            single = in_single_precision(piece.flux, piece.ivar, gridder.flux_scale)
            wave_aa, values, given = ascending(piece.wave_aa, *single)
            noise, snr[rows] = with_noise(values, given, known_snr[rows])
            try:
                flux[rows], ivar[rows] = gridder.place(wave_aa, (values, noise), what=piece.what)
            except (GridMismatch, WavelengthError) as error:
                if not source.skip_bad:
                    raise
                unread[rows], snr[rows] = str(error), np.nan
    assert first == n, "a source yielded another number of spectra than asked for"
    return ReadRows(flux, ivar, snr, unread)


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
    # Another version may read the same files otherwise, so that a run is not resumed across it.
    digest = hashlib.sha256(json.dumps([__version__, options], sort_keys=True).encode())
    for path in paths:
        with reading(path):
            state = path.stat()
        digest.update(f"\n{path.resolve()}\t{state.st_size}\t{state.st_mtime_ns}".encode())
    return digest.hexdigest()


def provenance(reader: str, files: list[dict[str, Any]], options: Any) -> dict[str, Any]:
    """Return what a store records of its making."""
    return {"reader": reader, "maury": __version__, "files": files, "options": options}
