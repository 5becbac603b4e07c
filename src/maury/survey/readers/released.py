"""The layout in which the authors of the RAVE CNN released their data.

Guiglion et al. (2020, A&A 644, A168): an image of spectra, pixel by star, and CSV tables of the
same stars in the same order.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import (
    ColumnError,
    GridMismatch,
    IdentifierError,
    InputFileError,
    LengthMismatch,
    WavelengthError,
)
from maury.io.arrays import AnyArray, Float64Array, IndexArray, StrArray
from maury.io.cluster import Cluster
from maury.io.fits_values import ImageValues
from maury.io.opening import find_hdu, open_fits, reading, says_simulated
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.labels import columns as columns_module
from maury.spectra.spectra import Medium
from maury.survey.readers.grids import Gridder, header_grid, header_medium, linear_grid
from maury.survey.readers.pipeline import (
    Piece,
    check_rows,
    complete_ids,
    describe_files,
    fingerprint,
    provenance,
    with_stars,
)
from maury.survey.readers.values import without_missing
from maury.survey.readers.writing import Opened, Progress, Reopening, Target, write_survey
from maury.survey.store import RAVE_RESOLVING_POWER, Survey, require_unique

logger = logging.getLogger(__name__)

N_PIXEL = 912
"""Pixels of every released spectrum (Guiglion et al. 2020)."""
START_AA, STEP_AA = 8420.0, 0.4

_PARTS: Mapping[str, str] = {
    "spectra": "*_spectra.fits",
    "parameters": "*_parameters.csv",
    "labels": "*_labels.csv",
    "extra": "*_extra.csv",
}
_REQUIRED = ("spectra", "parameters")
_ID_NAMES = ("rave_obs_id", "id")
_ALIASES: Mapping[str, tuple[str, ...]] = {
    "m_h": ("mh",),
    "fe_h": ("feh",),
    "alpha_m": ("alpham",),
    "si_fe": ("sife",),
    "al_fe": ("alfe",),
    "mg_fe": ("mgfe",),
    "ni_fe": ("nife",),
    "phot_g_mean_mag": ("gmag", "g"),
    "phot_bp_mean_mag": ("bpmag", "bp"),
    "phot_rp_mean_mag": ("rpmag", "rp"),
    "j_m": ("jmag_2mass", "jmag"),
    "h_m": ("hmag_2mass", "hmag"),
    "ks_m": ("kmag_2mass", "ksmag_2mass", "kmag", "ksmag"),
    "w1mpro": ("wise1", "w1mag", "w1"),
    "w2mpro": ("wise2", "w2mag", "w2"),
    "a_v": ("av50", "av"),
    "ra": ("ra_icrs", "raj2000", "radeg"),
    "dec": ("de_icrs", "dej2000", "dedeg"),
    "snr": ("snr_med", "s2n"),
    "radial_velocity": ("rv", "hrv"),
}


def ingest_released(
    directory: Path | str,
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
    cluster: Cluster | None = None,
) -> Survey:
    """Read a directory in the layout of the released RAVE CNN data into a new store.

    ``*_spectra.fits`` (912 pixels by stars) and ``*_parameters.csv`` must be there;
    ``*_labels.csv`` and ``*_extra.csv`` may be. All describe the same stars in the same order.
    Wavelengths are 8420.0 + 0.4 k angstrom in air unless the header says otherwise. S/N comes from
    the column ``snr``, else it is estimated from the spectrum; ivar follows from it. Spectra are of
    one star if parallax and magnitudes are equal. The header card ``SIMULATE = T`` marks the survey
    as simulated.

    Parameters
    ----------
    directory : Path or str
        Directory of the files.
    out : Path or str
        Store to make.
    overwrite : bool
        Replace an existing store.
    progress : callable, optional
        Called with the number of rows done, and of all.
    cluster : Cluster, optional
        Workers to read on (`maury.io.cluster.connect`), which must see the files.

    Returns
    -------
    survey : Survey

    Raises
    ------
    InputFileError
        If a file is missing, ambiguous or damaged.
    ColumnError
        If a table lacks any known column, or holds text in place of a number.
    IdentifierError
        If identifiers stand twice or disagree between files.
    LengthMismatch
        If files differ in length.
    WavelengthError, GridMismatch
        If the spectra have no 912 pixels, or their header gives no increasing grid.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    place = Path(directory).absolute()
    files = _find(Path(directory))
    with ExitStack() as stack:
        with reading(files["spectra"]):
            source, medium = _open_spectra(files["spectra"], stack)
        tables = {
            part: open_table(path, stack) for part, path in files.items() if part != "spectra"
        }
        _check_lengths(source, tables)
        ids, order = _identify(source, tables)
        columns = _columns(tables, order)
        columns = with_stars({**columns, "id": ids}, ids, files["spectra"])
        target = Target(
            out,
            source.simulated,
            provenance("released", describe_files(files.values()), {"medium": medium}),
            fingerprint(files.values(), "released"),
            overwrite=overwrite,
            resolving_power=RAVE_RESOLVING_POWER,
        )
        gridder = Gridder(source.wave_aa, resample=False, medium=medium)
        return write_survey(
            source,
            columns,
            target,
            gridder=gridder,
            medium=medium,
            progress=progress,
            cluster=cluster,
            reopening=Reopening(_open_again, str(place), place),
        )


def _open_again(directory: str) -> Opened:
    """Open the spectra alone: their columns are known."""
    path, stack = _find(Path(directory))["spectra"], ExitStack()
    with reading(path):
        source, medium = _open_spectra(path, stack)
    return Opened(source, Gridder(source.wave_aa, resample=False, medium=medium), stack)


@dataclass(frozen=True)
class _ImageSource:
    path: Path
    wave_aa: Float64Array
    section: Any
    pixel_first: bool
    n_star: int
    simulated: bool
    ids: None = None
    skip_bad: bool = False

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        with reading(self.path):
            part = (
                self.section[:, start:stop].T if self.pixel_first else self.section[start:stop, :]
            )
            flux = np.ascontiguousarray(part, dtype=np.float32)
        yield Piece(self.wave_aa, flux, None, str(self.path))


def _find(directory: Path) -> dict[str, Path]:
    if not directory.is_dir():
        raise InputFileError(f"{directory} is no directory; give the one that holds the files")
    found: dict[str, Path] = {}
    for part, pattern in _PARTS.items():
        paths = sorted(directory.glob(pattern))
        if len(paths) > 1:
            listed = ", ".join(path.name for path in paths)
            raise InputFileError(
                f"{directory} has {len(paths)} files {pattern}: {listed}; leave one of them, or "
                "put each sample into a directory of its own"
            )
        if paths:
            found[part] = paths[0]
        elif part in _REQUIRED:
            raise InputFileError(
                f"{directory} has no file {pattern}; the released layout needs "
                f"{' and '.join(_PARTS[p] for p in _REQUIRED)}"
            )
    return found


def _open_spectra(path: Path, stack: ExitStack) -> tuple[_ImageSource, Medium]:
    hdus = open_fits(path, stack)
    hdu = find_hdu(hdus, 0, path, image=True)
    shape = tuple(hdu.shape or ())
    if len(shape) != 2 or N_PIXEL not in shape:
        raise GridMismatch(
            f"{path}: the primary image must be {N_PIXEL} pixels by stars, got {shape or 'none'}; "
            "describe other spectra in a TOML file and ingest that"
        )
    # A square image of 912 spectra is read as the authors wrote theirs, pixel first.
    pixel_first = shape[0] == N_PIXEL
    n_star = shape[1] if pixel_first else shape[0]
    check_rows(n_star, path)
    # numpy's first axis is FITS's second.
    axis = 2 if pixel_first else 1
    wave_aa = header_grid(hdu.header, axis, N_PIXEL)
    if wave_aa is None:
        wave_aa = linear_grid(START_AA, STEP_AA, N_PIXEL)
    simulated = says_simulated(hdus)
    source = _ImageSource(path, wave_aa, ImageValues(hdu), pixel_first, n_star, simulated)
    return source, _medium(hdu.header, axis, path)


def _medium(header: Mapping[str, Any], axis: int, path: Path) -> Medium:
    found = header_medium(header, axis)
    if found is None and "WAVEMED" in header:
        raise WavelengthError(
            f"{path}: WAVEMED must be 'air' or 'vacuum', got {header['WAVEMED']!r}"
        )
    return found or "air"


def _check_lengths(source: _ImageSource, tables: Mapping[str, SourceTable]) -> None:
    for table in tables.values():
        if table.n_row != source.n_star:
            raise LengthMismatch(
                f"{source.path} holds {source.n_star} spectra, {table.path} {table.n_row} rows; "
                "they must describe the same stars in the same order"
            )


def _identify(
    source: _ImageSource, tables: Mapping[str, SourceTable]
) -> tuple[StrArray, dict[str, IndexArray]]:
    """Return identifiers, and per table its rows in the order of the spectra where that differs.

    The order of the spectra is that of the first table that has identifiers.
    """
    # Identifiers of the first table that has them give the order; others are matched to it.
    ids: StrArray | None = None
    first: SourceTable | None = None
    order: dict[str, IndexArray] = {}
    for part, table in tables.items():
        name = _by_lower(table).get(next((n for n in _ID_NAMES if n in _by_lower(table)), ""))
        if name is None:
            continue
        here = table.texts(name)
        require_unique(here, what=str(table.path))
        if ids is None or first is None:
            ids, first = here, table
        elif not np.array_equal(here, ids):
            order[part] = _match(ids, here, (first.path, table.path))
    return complete_ids(ids, source.n_star, source.path), order


def _match(ids: StrArray, here: StrArray, paths: tuple[Path, Path]) -> IndexArray:
    sorting = np.argsort(here)
    # What is greater than all is placed beyond the end; the comparison finds that it is absent.
    place = np.minimum(np.searchsorted(here[sorting], ids), ids.size - 1)
    absent = here[sorting[place]] != ids
    if absent.any():
        raise IdentifierError(
            f"{paths[1]} lacks {int(absent.sum())} identifiers of {paths[0]}, for example "
            f"{str(ids[absent][0])!r}; take both from the same release"
        )
    logger.warning("%s is in another order than %s: joined by identifier", *paths[::-1])
    return np.asarray(sorting[place])


def _by_lower(table: SourceTable) -> dict[str, str]:
    return {name.lower(): name for name in table.names}


def _source_names() -> dict[str, str]:
    """Every name (lower case) under which a column may stand, and what it is here."""
    known = columns_module.known()
    names = {name: name for name in known if name not in ("id", "star_id", "star_id_from")}
    for column, aliases in _ALIASES.items():
        names.update(dict.fromkeys(aliases, column))
    # Releases write errors as e_x, x_err or x_error.
    for name, column in list(names.items()):
        error = f"{column}_error"
        if error in known:
            for alias in (f"{name}_error", f"{name}_err", f"e_{name}", f"err_{name}"):
                # A name that is a column already keeps its meaning.
                names.setdefault(alias, error)
    return names


def _columns(
    tables: Mapping[str, SourceTable], order: Mapping[str, IndexArray]
) -> dict[str, AnyArray]:
    meaning, known = _source_names(), columns_module.known()
    columns: dict[str, AnyArray] = {}
    origin: dict[str, str] = {}
    for part, table in tables.items():
        # Tables in the order of the spectra, which most are, are taken as they stand.
        rows = order.get(part, slice(None))
        used = ignored = 0
        for lower, name in _by_lower(table).items():
            column = meaning.get(lower)
            if lower in _ID_NAMES or lower == "star_id":
                used += 1
            elif column is None:
                ignored += 1
                logger.warning("%s: column %r is not known and is left out", table.path, name)
            elif column in columns:
                raise ColumnError(
                    f"{table.path}: column {name!r} gives {column} again, after {origin[column]}; "
                    "leave one of them"
                )
            else:
                columns[column] = without_missing(table.floats(name), known[column])[rows]
                origin[column] = f"{name!r} of {table.path}"
                used += 1
            if lower == "star_id":
                columns["star_id"] = table.texts(name)[rows]
        if ignored and not used:
            raise ColumnError(
                f"{table.path} has no known column (it has {', '.join(table.names)}); expected "
                "are names such as parallax, phot_g_mean_mag, Jmag_2MASS, wise1, av50, Teff, logg"
            )
    return columns
