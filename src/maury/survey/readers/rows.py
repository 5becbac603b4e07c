"""Spectra of many stars in one file: images, arrays, and columns of arrays."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import (
    ColumnError,
    GridMismatch,
    InputFileError,
    LengthMismatch,
    WavelengthError,
)
from maury.io.arrays import AnyArray, Float64Array, StrArray
from maury.io.fits_values import ImageValues
from maury.io.fits_values import column as fits_column
from maury.io.limits import current, exceeded
from maury.io.opening import find_hdu, open_fits, reading, says_simulated
from maury.io.source_table import SourceTable
from maury.io.tables import (
    astropy_table,
    fits_table,
    open_table,
    read_votable,
    table_format,
)
from maury.survey.readers.config import ArrayRef, SpectraConfig, WavelengthConfig
from maury.survey.readers.grids import (
    angstrom_per,
    header_grid,
    header_medium,
    linear_grid,
    require_medium,
    to_angstrom,
)
from maury.survey.readers.pipeline import Piece, check_pixels, check_rows
from maury.survey.readers.planes import (
    ParquetCursor,
    Plane,
    as_spectra,
    column_plane,
    npz_array,
    numpy_plane,
    plane_of,
    turned,
)


@dataclass(frozen=True)
class RowsSource:
    """Spectra that stand in one file, row by row.

    Attributes
    ----------
    path : Path
        The file.
    flux, ivar : Plane
        What it holds; `ivar` may be a plane of errors, if `is_error`.
    wave : (n_pixel,) float64 or Plane
        One grid, in angstrom, or one per star.
    ids : (n_star,) str, optional
        Identifiers, if the file has them.
    table : SourceTable, optional
        The file as a table.
    simulated : bool
        Whether its headers say so.
    """

    path: Path
    flux: Plane
    wave: Float64Array | Plane
    ivar: Plane | None = None
    is_error: bool = False
    ids: StrArray | None = None
    table: SourceTable | None = None
    simulated: bool = False

    @property
    def skip_bad(self) -> bool:
        """False: there is one file, which can be read or not."""
        return False

    @property
    def n_star(self) -> int:
        """Number of spectra."""
        return self.flux.n_star

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum."""
        if isinstance(self.wave, Plane):
            with reading(self.path):
                return np.asarray(self.wave.rows(0, 1)[0], dtype=np.float64)
        return self.wave

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, in order."""
        with reading(self.path):
            flux = np.ascontiguousarray(self.flux.rows(start, stop))
            noise = None if self.ivar is None else self.ivar.rows(start, stop)
            ivar = None if noise is None else to_ivar(noise, is_error=self.is_error)
            waves = self.wave.rows(start, stop) if isinstance(self.wave, Plane) else None
        if waves is None:
            assert not isinstance(self.wave, Plane)
            yield Piece(self.wave, flux, ivar, str(self.path))
            return
        # Rows on one grid are placed together, which is most of the cost.
        bounds = np.flatnonzero(np.any(np.diff(waves, axis=0) != 0, axis=1)) + 1
        for rows in map(slice, [0, *bounds], [*bounds, len(flux)]):
            what = f"{self.path}, spectrum {start + rows.start}"
            wave = np.asarray(waves[rows.start], dtype=np.float64)
            yield Piece(wave, flux[rows], None if ivar is None else ivar[rows], what)


def to_ivar(values: AnyArray, *, is_error: bool) -> Float64Array:
    """Return inverse variance from itself or from 1 sigma errors; 0 where it means nothing."""
    # Errors of fluxes in physical units, 1e-20 or so, have squares that float32 does not hold.
    data = np.asarray(values, dtype=np.float64)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        ivar = 1.0 / (data * data) if is_error else data
    # Bad pixels have errors of 0, of NaN or below 0: none of these may weigh anything.
    return np.where((data > 0) & np.isfinite(ivar), ivar, 0.0)


def open_rows(
    path: Path, spectra: SpectraConfig, wavelength: WavelengthConfig, stack: ExitStack
) -> RowsSource:
    """Open a file of many spectra until `stack` closes.

    Raises
    ------
    InputFileError
        If it is missing, damaged, or lacks an array.
    ColumnError
        If it lacks a column, or a column holds no spectra.
    LengthMismatch, GridMismatch, WavelengthError
        If its arrays do not fit each other.
    """
    with reading(path):
        kind = spectra.format or _kind(path, spectra, stack)
        if kind == "ascii":
            raise InputFileError(f"{path}: text files hold one star each; give their 'folder'")
        return _assemble(path, _OPENERS[kind](path, spectra, stack), spectra, wavelength)


@dataclass(frozen=True)
class _File:
    """A file of arrays: `get` finds one, or raises; `base` is the flux, not yet oriented."""

    get: Callable[[ArrayRef], Plane]
    flux: Plane
    table: SourceTable | None = None
    texts: Callable[[str], StrArray] | None = None
    oriented: bool = True
    simulated: bool = False


def _assemble(
    path: Path, file: _File, spectra: SpectraConfig, wavelength: WavelengthConfig
) -> RowsSource:
    flux = file.flux
    wave = None if wavelength.values is None else file.get(wavelength.values)
    n_pixel = wave.n_pixel if wave is not None and wave.flat else wavelength.n
    ids = file.texts(spectra.id) if file.texts and spectra.id is not None else None
    if not file.oriented:
        known = (n_pixel, None if ids is None else ids.size)
        flux = _oriented(flux, spectra.orientation, known, path)
    # By the header, before anything is read: a damaged one may promise any size.
    check_rows(flux.n_star, path)
    # Spectra of many stars are read some thousand at a time.
    for limit in ("pixels", "grid_pixels")[: min(flux.n_star, 2)]:
        check_pixels(flux.n_pixel, path, limit=limit)
    noise = spectra.ivar or spectra.error
    ivar = None if noise is None else file.get(noise)
    if ivar is not None and not file.oriented:
        ivar = turned(ivar) if flux.pixel_axis == 0 else ivar
    if ivar is not None and (ivar.n_star, ivar.n_pixel) != (flux.n_star, flux.n_pixel):
        raise LengthMismatch(
            f"{path}: flux is {flux.n_star} spectra of {flux.n_pixel} pixels, its noise "
            f"{ivar.n_star} of {ivar.n_pixel}"
        )
    if wave is not None and not wave.flat and flux.pixel_axis == 0:
        wave = turned(wave)
    # A unit that the TOML file states overrules that of the column.
    if wavelength.unit is None and wavelength.values is not None and file.table is not None:
        unit = file.table.units.get(wavelength.values.name or "")
        wavelength = wavelength.model_copy(update={"unit": unit})
    return RowsSource(
        path,
        flux,
        _grid(path, flux, wave, wavelength),
        ivar,
        is_error=spectra.error is not None,
        ids=ids,
        table=file.table,
        simulated=file.simulated,
    )


def _oriented(
    flux: Plane, orientation: str | None, known: tuple[int | None, int | None], path: Path
) -> Plane:
    """Turn a plane to one spectrum a row: as stated, as its `known` sizes tell, or its header."""
    shape = (flux.n_star, flux.n_pixel)
    n_pixel, n_star = known
    check_rows(min(shape), path)
    # A number that both axes have tells nothing.
    if orientation is None and n_pixel is not None and shape.count(n_pixel) == 1:
        orientation = "rows" if shape[1] == n_pixel else "columns"
    if orientation is None and n_star is not None and shape.count(n_star) == 1:
        orientation = "rows" if shape[0] == n_star else "columns"
    if orientation is None and flux.header is not None:
        found = [header_grid(flux.header, axis, 2) is not None for axis in (1, 2)]
        spectral = [
            str(flux.header.get(f"CTYPE{axis}", "")).upper().startswith(("WAVE", "AWAV", "LAMBDA"))
            for axis in (1, 2)
        ]
        # CTYPE names the axis; wavelength cards may stand for the other one, too.
        for evidence in (spectral, found):
            if orientation is None and sum(evidence) == 1:
                orientation = "rows" if evidence[0] else "columns"
    if orientation is None:
        wanted = f" (none or both axes have {n_pixel} pixels)" if n_pixel is not None else ""
        raise GridMismatch(
            f"{path}: cannot tell which axis of {shape} is wavelength{wanted}; write "
            "'orientation = \"rows\"' (one spectrum a row) or '\"columns\"' in [spectra]"
        )
    return flux if orientation == "rows" else turned(flux)


def _grid(
    path: Path, flux: Plane, wave: Plane | None, config: WavelengthConfig
) -> Float64Array | Plane:
    if wave is not None:
        if wave.n_pixel != flux.n_pixel or not (wave.flat or wave.n_star == flux.n_star):
            raise WavelengthError(
                f"{path}: {wave.n_pixel} wavelengths for {flux.n_pixel} pixels; "
                "take the grid that belongs to these spectra, or state the 'orientation'"
            )
        if wave.flat:
            return to_angstrom(wave.rows(0, 1).ravel(), config.unit, log=config.log)
        source = wave.rows
        return replace(
            wave, rows=lambda a, b: to_angstrom(source(a, b), config.unit, log=config.log)
        )
    if config.start is not None and config.step is not None:
        if config.n is not None and config.n != flux.n_pixel:
            raise GridMismatch(
                f"{path}: spectra have {flux.n_pixel} pixels, [wavelength] says n = {config.n}"
            )
        grid = linear_grid(config.start, config.step, flux.n_pixel, log=bool(config.log))
        return grid * angstrom_per(config.unit)
    # FITS counts axes from the fastest: numpy's last one is its first.
    axis = 1 if flux.pixel_axis == 1 else 2
    require_medium(header_medium(flux.header or {}, axis), config.medium, path)
    grid_or_none = (
        None
        if flux.header is None
        else header_grid(flux.header, axis, flux.n_pixel, unit=config.unit, log=config.log)
    )
    if grid_or_none is None:
        raise WavelengthError(
            f"{path} does not say its wavelengths; write 'start' and 'step', or 'values', in "
            "[wavelength]"
        )
    return grid_or_none


def _open_image(path: Path, spectra: SpectraConfig, stack: ExitStack) -> _File:
    def get(ref: ArrayRef) -> Plane:
        place = path if ref.file is None else ref.file
        if place.suffix.lower() in (".npy", ".npz"):
            return numpy_plane(place, ref.name, "values")
        key = ref.hdu if ref.hdu is not None else ref.name
        hdu = find_hdu(open_fits(place, stack), key, place, image=True)
        if hdu.is_image and hdu.shape:
            return plane_of(ImageValues(hdu), hdu.shape, f"{place}, HDU {key!r}", hdu.header)
        if hasattr(hdu, "columns"):
            return _only_column(hdu, place, key)
        raise InputFileError(f"{place}: HDU {key!r} holds no image")

    flux = get(ArrayRef(hdu=spectra.hdu))
    if flux.flat:
        raise InputFileError(f"{path} holds one spectrum; give the 'folder' of such files")
    return _File(get, flux, oriented=False, simulated=says_simulated(open_fits(path, stack)))


def _open_numpy(path: Path, spectra: SpectraConfig, stack: ExitStack) -> _File:
    del stack
    archive = path.suffix.lower() == ".npz"

    def get(ref: ArrayRef) -> Plane:
        if not archive and ref.file is None:
            raise InputFileError(f"{path} holds one array; give the 'file' of the other ones")
        return numpy_plane(ref.file or path, ref.name, spectra.flux)

    def texts(name: str) -> StrArray:
        if not archive:
            raise ColumnError(f"{path} has no array {name!r} of identifiers")
        values = npz_array(path, name)
        if values.ndim != 1 or values.dtype.kind not in "SUiu":
            raise ColumnError(f"{path}: {name!r} must be one row of text or whole numbers")
        # numpy takes four bytes for each character of the longest text, in every row.
        if values.dtype.itemsize > 4 * current().text_characters:
            raise exceeded(path, f"has texts of {values.dtype.itemsize} bytes", "text_characters")
        return np.char.strip(values.astype(np.str_))

    flux = numpy_plane(path, spectra.flux, "flux")
    return _File(get, as_spectra(flux), texts=texts, oriented=flux.flat)


def _open_fits_table(path: Path, spectra: SpectraConfig, stack: ExitStack) -> _File:
    # Mapped, as a table of all spectra of a survey may be larger than memory.
    hdus = open_fits(path, stack, memmap=True)
    holding = [h for h in hdus if spectra.flux in getattr(getattr(h, "columns", None), "names", ())]
    hdu = holding[0] if holding and spectra.hdu is None else None
    hdu = hdu or find_hdu(hdus, spectra.hdu, path, image=False)
    table = fits_table(hdu, path)

    def column(name: str) -> Plane:
        table.check(name)
        return column_plane(lambda a, b: fits_column(hdu, name, slice(a, b)), table, name)

    def get(ref: ArrayRef) -> Plane:
        if ref.file is not None or ref.hdu is not None:
            place = ref.file or path
            return _elsewhere(ref, place, stack)
        return column(ref.name or "")

    flux, told = column(spectra.flux), says_simulated(hdus)
    return _File(get, flux, table, table.texts, simulated=told)


def _elsewhere(ref: ArrayRef, place: Path, stack: ExitStack) -> Plane:
    """Find a grid in another HDU or file: an image, a column with one value a row, or a .npy."""
    if place.suffix.lower() in (".npy", ".npz"):
        return numpy_plane(place, ref.name, "wave")
    hdu = find_hdu(open_fits(place, stack), ref.hdu, place, image=ref.name is None)
    if ref.name is None and hasattr(hdu, "columns"):
        return _only_column(hdu, place, ref.hdu)
    if ref.name is None:
        return plane_of(ImageValues(hdu), tuple(hdu.shape or (0,)), str(place), hdu.header)
    values = fits_table(hdu, place).floats(ref.name)
    return plane_of(values, values.shape, str(place))


def _only_column(hdu: Any, place: Path, key: int | str | None) -> Plane:
    """Find the one column of a table that was named as if it were an image."""
    names = hdu.columns.names
    if len(names) != 1:
        raise InputFileError(
            f"{place}: HDU {key!r} is a table of the columns {', '.join(names)[:400]}; say "
            f"which by {{ hdu = {key!r}, name = ... }}"
        )
    values = fits_table(hdu, place).floats(names[0])
    return plane_of(values, values.shape, str(place))


def _open_votable(path: Path, spectra: SpectraConfig, stack: ExitStack) -> _File:
    parsed = read_votable(path)
    table = astropy_table(parsed, path)

    def column(name: str) -> Plane:
        data = np.ma.asanyarray(parsed[table.check(name)])
        return column_plane(lambda a, b: data[a:b], table, name)

    def get(ref: ArrayRef) -> Plane:
        return column(ref.name or "") if ref.file is None else _elsewhere(ref, ref.file, stack)

    return _File(get, column(spectra.flux), table, table.texts)


def _open_parquet(path: Path, spectra: SpectraConfig, stack: ExitStack) -> _File:
    table = open_table(path, stack)
    cursor = ParquetCursor(path, stack)

    def column(name: str) -> Plane:
        table.check(name)
        return column_plane(lambda a, b: cursor.rows(name, a, b), table, name)

    def get(ref: ArrayRef) -> Plane:
        return column(ref.name or "") if ref.file is None else _elsewhere(ref, ref.file, stack)

    return _File(get, column(spectra.flux), table, table.texts)


_OPENERS: Mapping[str, Callable[[Path, SpectraConfig, ExitStack], _File]] = {
    "fits-image": _open_image,
    "fits-table": _open_fits_table,
    "votable": _open_votable,
    "parquet": _open_parquet,
    "npz": _open_numpy,
    "npy": _open_numpy,
}


def _kind(path: Path, spectra: SpectraConfig, stack: ExitStack) -> str:
    suffix = path.suffix.lower()
    if suffix in (".npz", ".npy"):
        return suffix[1:]
    kind = table_format(path)
    if kind == "fits":
        hdus = open_fits(path, stack)
        if spectra.hdu is not None:
            chosen = find_hdu(hdus, spectra.hdu, path, image=True)
            return "fits-image" if chosen.is_image else "fits-table"
        image = any(hdu.is_image and len(hdu.shape or ()) == 2 for hdu in hdus)
        # A picture may stand in front of a table of spectra, which the column of the flux tells.
        table = any(spectra.flux in hdu.columns.names for hdu in hdus if hasattr(hdu, "columns"))
        return "fits-image" if image and not table else "fits-table"
    if kind in ("votable", "parquet"):
        return kind
    raise InputFileError(
        f"{path}: spectra are read from FITS, VOTable, Parquet, NPZ or NPY, or a folder; "
        "not from a text table"
    )
