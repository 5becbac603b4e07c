"""Gaia DR3 mean spectra of the Radial Velocity Spectrometer.

As the archive serves them by DataLink, in FITS, VOTable, ECSV or CSV, and as the bulk download has
them (``RvsMeanSpectrum_*.csv.gz``). Data model: Gaia DR3 documentation, section 20.12.1
(``rvs_mean_spectrum``): flux normalised to the continuum, in the rest frame, at 2401 wavelengths in
vacuum, 846 to 870 nm in steps of 0.01 nm. Structures: ``RAW`` is a row of arrays per source,
``INDIVIDUAL`` a table per source with a row per wavelength, ``COMBINED`` those of many sources, one
table after another or in one table with their ``source_id``.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, GridMismatch, IdentifierError, InputFileError
from maury.io.array_csv import ArrayCsv
from maury.io.arrays import AnyArray, Float64Array, IndexArray, StrArray
from maury.io.fits_values import column
from maury.io.opening import open_fits, reading, says_simulated
from maury.io.source_table import SourceTable
from maury.io.tables import astropy_table, fits_table, parse_votable
from maury.survey.readers.block_files import Block, BlockFiles, RowReader
from maury.survey.readers.grids import same_grid, to_angstrom
from maury.survey.readers.planes import Plane, column_plane
from maury.survey.readers.rows import to_ivar
from maury.survey.readers.sources import FITS_SUFFIXES, header_facts, list_files, tolerating

N_PIXEL = 2401
"""846 to 870 nm in steps of .01 nm, as the data model says."""
WAVE_AA: Float64Array = 8460.0 + 0.1 * np.arange(N_PIXEL, dtype=np.float64)
"""The grid of RVS mean spectra, in vacuum."""

_VOTABLE = (".vot", ".xml", ".votable")
_SUFFIXES = (*FITS_SUFFIXES, *_VOTABLE, ".ecsv", ".csv", ".csv.gz")
_ARRAYS = ("flux", "flux_error")
_ID = "source_id"
_ID_CARDS = ("SOURCE_ID", "SOURCEID", "SOURCE_I", "source_id")
_ID_IN_NAME = re.compile(r"(?:DR3|EDR3|_|-|\s|^)(\d{6,19})(?=\D|$)")
_UNIT = "nm"


def open_rvs(path: Path, stack: ExitStack, *, skip_bad: bool = False) -> BlockFiles:
    """Open a file of RVS spectra, or a folder of such files, until `stack` closes.

    With `skip_bad` a file that cannot be read is one row of bad pixels instead of an error.

    Raises
    ------
    InputFileError
        If there is none, or one is damaged or of another kind.
    IdentifierError
        If a ``source_id`` is missing or stands twice.
    GridMismatch
        If spectra have other than 2401 pixels.
    """
    paths = list_files(path, _SUFFIXES)
    blocks: list[Block] = []
    for item in paths:
        lost: dict[Path, str] = {}
        with tolerating(item, lost, skip=skip_bad):
            blocks += _blocks(item, stack)
        blocks += [Block.lost(item, why) for why in lost.values()]
    return BlockFiles.of(path, paths, blocks, medium="vacuum", skip_bad=skip_bad)


def _reader(flux: Plane, error: Plane | None) -> RowReader:
    def read(start: int, stop: int) -> tuple[AnyArray, Float64Array | None]:
        ivar = None
        if error is not None:
            ivar = to_ivar(_wide(error.rows(start, stop)), is_error=True)
        return _wide(flux.rows(start, stop)), ivar

    return read


def _wide(values: AnyArray) -> Float64Array:
    """Arrays of rows, NaN throughout if all of them are empty."""
    # Sources without a spectrum have empty arrays in the archive.
    wide = np.asarray(values, dtype=np.float64)
    return wide if wide.shape[1] else np.full((len(wide), N_PIXEL), np.nan)


def _blocks(path: Path, stack: ExitStack) -> list[Block]:
    name = path.name.lower()
    with reading(path):
        if name.endswith(FITS_SUFFIXES):
            return _fits_blocks(path, stack)
        if name.endswith(_VOTABLE):
            return _votable_blocks(path)
        return _text_blocks(path)


def _fits_blocks(path: Path, stack: ExitStack) -> list[Block]:
    hdus = open_fits(path, stack, memmap=True)
    simulated = says_simulated(hdus)
    blocks = []
    for hdu in hdus:
        if not hasattr(hdu, "columns"):
            continue
        facts = header_facts(hdu.header, hdus[0].header)
        block = _block(fits_table(hdu, path), _fits_rows(hdu), facts)
        blocks.append(replace(block, simulated=simulated))
    return _some(blocks, path)


def _fits_rows(hdu: Any) -> Callable[[str], Any]:
    return lambda name: lambda a, b: column(hdu, name, slice(a, b))


def _votable_blocks(path: Path) -> list[Block]:
    blocks = []
    for table in parse_votable(path):
        parsed = table.to_table(use_names_over_ids=True)
        facts = {str(p.name or p.ID): _plain(p.value) for p in table.params}
        blocks.append(_block(astropy_table(parsed, path), _memory_rows(parsed), facts))
    return _some(blocks, path)


def _memory_rows(parsed: Any) -> Callable[[str], Any]:
    return lambda name: lambda a, b: np.ma.asanyarray(parsed[name])[a:b]


def _text_blocks(path: Path) -> list[Block]:
    content = ArrayCsv(path, _ARRAYS)
    # A row per wavelength, and not an array per source.
    if "flux" in content.names and not content.has_arrays("flux"):
        content = ArrayCsv(path, ())
        return [_block(content.table, _memory_rows({}), {})]
    _require(("flux",), content.names, path)
    if content.n_row == 0:
        raise InputFileError(f"{path} has no rows; give a file with at least one")

    def plane(name: str) -> Plane:
        n_pixel = content.length(name) or N_PIXEL
        return Plane(content.n_row, n_pixel, lambda a, b: content.rows(name, a, b))

    error = plane("flux_error") if "flux_error" in content.names else None
    _require((_ID,), content.table.names, path)
    return [_raw(content.table, plane("flux"), error)]


def _some(blocks: list[Block], path: Path) -> list[Block]:
    if not blocks:
        raise InputFileError(f"{path} holds no table; give RVS spectra as Gaia's archive has them")
    return blocks


def _block(table: SourceTable, rows: Callable[[str], Any], facts: Mapping[str, Any]) -> Block:
    """Block of a table of any structure; ``rows(name)(a, b)`` gives rows of a column of arrays."""
    path = table.path
    _require(("flux",), table.names, path)
    if table.n_row == 0:
        raise InputFileError(f"{path} has no rows; give a file with at least one")
    if "wavelength" in table.names:
        return _sampled(table, facts)
    _require((_ID,), table.names, path)
    planes = [
        column_plane(rows(name), table, name) if name in table.names else None for name in _ARRAYS
    ]
    assert planes[0] is not None, "flux was required"
    return _raw(table, planes[0], planes[1])


def _raw(table: SourceTable, flux: Plane, error: Plane | None) -> Block:
    for plane in (flux, error):
        if plane is not None and plane.n_pixel not in (0, N_PIXEL):
            raise GridMismatch(
                f"{table.path} has arrays of {plane.n_pixel} values, RVS mean spectra have "
                f"{N_PIXEL}; is it another product?"
            )
    names = tuple(name for name in table.names if name not in _ARRAYS)
    scalars = SourceTable(table.path, names, table.n_row, table.units, table.raw)
    return Block(table.texts(_ID), scalars, _reader(flux, error), WAVE_AA, table.path)


def _sampled(table: SourceTable, facts: Mapping[str, Any]) -> Block:
    """Block of a table with a row per wavelength, of one source or of many."""
    path = table.path
    if _ID in table.names:
        owners, first = _runs(table.texts(_ID))
    else:
        owners, first = np.array([_source_id(facts, path)], dtype=np.str_), np.array([0])
    of_source = _first_rows(table, first)
    # A source cut short must not borrow pixels from the next.
    sizes = np.diff([*first, table.n_row])
    if np.any(sizes != sizes[0]):
        raise GridMismatch(
            f"{path}: sources have {sizes.min()} to {sizes.max()} wavelengths, and must have as "
            "many; the file is cut short or damaged"
        )
    shape = (owners.size, int(sizes[0]))
    waves = to_angstrom(table.floats("wavelength"), table.units.get("wavelength", _UNIT))
    waves = waves.reshape(shape)
    if not all(same_grid(waves[0], wave) for wave in waves[1:]):
        raise GridMismatch(f"{path}: sources stand on different wavelengths")

    def plane(name: str) -> Plane:
        values = table.floats(name).reshape(shape)
        return Plane(*shape, lambda a, b: values[a:b])

    error = plane("flux_error") if "flux_error" in table.names else None
    read = _reader(plane("flux"), error)
    return Block(owners, _facts_table(facts, owners, of_source), read, waves[0], path)


def _runs(ids: StrArray) -> tuple[StrArray, IndexArray]:
    """Return identifiers of consecutive rows, each once, and the first row of each."""
    first = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]])
    return ids[first], first


def _source_id(facts: Mapping[str, Any], path: Path) -> str:
    for key in _ID_CARDS:
        if facts.get(key) not in (None, ""):
            return str(facts[key])
    # A file of one source may tell its identifier in its name alone.
    found = _ID_IN_NAME.findall(path.name)
    if len(found) == 1:
        return str(found[0])
    raise IdentifierError(
        f"{path} says its source_id neither inside nor in its name; call it as the archive does, "
        "for example 'RVS-Gaia DR3 5853498713190525696.fits'"
    )


def _first_rows(table: SourceTable, first: IndexArray) -> SourceTable:
    """Return what a table with a row per wavelength says of its sources: one row each."""
    names = tuple(name for name in table.names if name not in ("wavelength", *_ARRAYS))

    def raw(name: str) -> Any:
        values = table.raw(name)
        return values.take(first) if hasattr(values, "take") else values[first]

    return SourceTable(table.path, names, first.size, table.units, raw)


def _facts_table(facts: Mapping[str, Any], owners: StrArray, of_source: SourceTable) -> SourceTable:
    """Columns of the sources, and the facts of a file where it is of one source."""
    known: dict[str, AnyArray] = {} if _ID in of_source.names else {_ID: owners}
    if owners.size == 1:
        own = {*of_source.names, *_ID_CARDS}
        known |= {name: np.array([v]) for name, v in facts.items() if name not in own}

    def raw(name: str) -> Any:
        return known[name] if name in known else of_source.raw(name)

    names = (*of_source.names, *known)
    return SourceTable(of_source.path, names, owners.size, of_source.units, raw)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | bool) else str(value)


def _require(names: Sequence[str], having: Sequence[str], path: Path) -> None:
    absent = [name for name in names if name not in having]
    if absent:
        raise ColumnError(
            f"{path} has no column {absent[0]!r}, which RVS mean spectra have (it has "
            f"{', '.join(having[:40])})"
        )
