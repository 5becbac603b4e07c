"""A folder with one file per star: FITS images, FITS tables, or text in two or three columns."""

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import InputFileError, LengthMismatch, WavelengthError
from maury.io.arrays import Float64Array, StrArray
from maury.io.limits import current, exceeded
from maury.io.opening import files_of, find_hdu, open_fits, reading
from maury.io.tables import fits_table
from maury.survey.readers.config import ArrayRef, SpectraConfig, WavelengthConfig
from maury.survey.readers.grids import (
    angstrom_per,
    header_grid,
    linear_grid,
    same_grid,
    to_angstrom,
)
from maury.survey.readers.pipeline import Piece, check_pixels
from maury.survey.readers.rows import to_ivar

logger = logging.getLogger(__name__)

_DEFAULT_WAVE = ArrayRef(name="wave")
_MOST_BYTES_PER_PIXEL = 10
_FITS_SUFFIXES = (".fits", ".fit", ".fits.gz")


@dataclass(frozen=True)
class _Star:
    wave_aa: Float64Array
    flux: Float64Array
    noise: Float64Array | None
    simulated: bool = False


@dataclass(frozen=True)
class FolderSource:
    """Spectra of one file each, in the order of their names.

    Attributes
    ----------
    paths : sequence of Path
        The files.
    spectra : SpectraConfig
        How to read them.
    wavelength : WavelengthConfig
        Where their wavelengths are.
    """

    paths: Sequence[Path]
    spectra: SpectraConfig
    wavelength: WavelengthConfig

    @property
    def n_star(self) -> int:
        """Number of spectra."""
        return len(self.paths)

    @cached_property
    def ids(self) -> StrArray:
        """Identifiers: the header card that ``id`` names, else names without suffix."""
        if self.spectra.id is None:
            return np.array([_stem(path) for path in self.paths], dtype=np.str_)
        return np.array([_card(path, self.spectra.id) for path in self.paths], dtype=np.str_)

    @cached_property
    def _first(self) -> _Star:
        return self._read(self.paths[0])

    @property
    def simulated(self) -> bool:
        """Whether the header of the first file says so."""
        return self._first.simulated

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum."""
        return self._first.wave_aa

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, those on one grid together."""
        held: list[_Star] = []
        what = ""
        for path in self.paths[start:stop]:
            star = self._read(path)
            if held and not same_grid(held[0].wave_aa, star.wave_aa):
                yield self._piece(held, what)
                held = []
            if not held:
                what = str(path)
            held.append(star)
        if held:
            yield self._piece(held, what)

    def _piece(self, stars: Sequence[_Star], what: str) -> Piece:
        flux = np.array([star.flux for star in stars], dtype=np.float32)
        noise = [star.noise for star in stars]
        ivar = (
            None
            if self.spectra.ivar is None and self.spectra.error is None
            else to_ivar(np.array(noise), is_error=self.spectra.error is not None)
        )
        return Piece(stars[0].wave_aa, flux, ivar, what)

    def _read(self, path: Path) -> _Star:
        with reading(path), ExitStack() as stack:
            if _is_fits(path, self.spectra):
                star = _fits_star(path, self.spectra, self.wavelength, stack)
            else:
                star = _ascii_star(path, self.spectra, self.wavelength)
        for array in (star.flux, star.noise):
            if array is not None and array.shape != star.wave_aa.shape:
                raise LengthMismatch(
                    f"{path} has {star.wave_aa.size} wavelengths, but {array.size} values of flux "
                    "or noise; they must be equally many"
                )
        return star


def open_folder(folder: Path, spectra: SpectraConfig, wavelength: WavelengthConfig) -> FolderSource:
    """List a folder of spectra.

    Raises
    ------
    InputFileError
        If it is no directory, or no file matches.
    """
    if not folder.is_dir():
        raise InputFileError(f"{folder} is no directory; correct 'folder' in [spectra]")
    paths = sorted(files_of(folder, spectra.pattern))
    if not paths:
        raise InputFileError(
            f"{folder} has no file {spectra.pattern!r}; correct 'folder' or 'pattern' in [spectra]"
        )
    return FolderSource(tuple(paths), spectra, wavelength)


def _stem(path: Path) -> str:
    name = path.name.removesuffix(".gz")
    return name.rsplit(".", 1)[0] if "." in name else name


def _is_fits(path: Path, spectra: SpectraConfig) -> bool:
    if spectra.format is not None:
        return spectra.format != "ascii"
    return path.name.lower().endswith(_FITS_SUFFIXES)


def _card(path: Path, key: str) -> str:
    with reading(path), ExitStack() as stack:
        for hdu in open_fits(path, stack):
            if key in hdu.header:
                return str(hdu.header[key]).strip()
    raise InputFileError(f"{path} has no header card {key!r}; correct 'id' in [spectra]")


def _fits_star(
    path: Path, spectra: SpectraConfig, wavelength: WavelengthConfig, stack: ExitStack
) -> _Star:
    hdus = open_fits(path, stack)
    hdu = _spectrum_hdu(hdus, spectra, path)
    simulated = any(bool(h.header.get("SIMULATE", False)) for h in hdus)
    noise = spectra.ivar or spectra.error
    if hdu.is_image:
        check_pixels(math.prod(hdu.shape), path)
        flux = _line(hdu.data, path)
        wave = _image_wave(hdus, hdu, wavelength, path)
        found = None if noise is None else _line(_small(_image(hdus, noise, path), path), path)
        return _Star(wave, flux, found, simulated)

    def column(ref: ArrayRef) -> Float64Array:
        name = fits_table(hdu, path).check(ref.name or "")
        return np.asarray(hdu.data[name], dtype=np.float64).ravel()

    flux = column(ArrayRef(name=spectra.flux))
    if wavelength.start is not None and wavelength.step is not None:
        wave = _stated(wavelength, flux.size)
    else:
        ref = wavelength.values or _DEFAULT_WAVE
        unit = wavelength.unit or fits_table(hdu, path).units.get(ref.name or "")
        wave = to_angstrom(column(ref), unit, log=wavelength.log)
    return _Star(wave, flux, None if noise is None else column(noise), simulated)


def _spectrum_hdu(hdus: Any, spectra: SpectraConfig, path: Path) -> Any:
    if spectra.hdu is not None:
        return find_hdu(hdus, spectra.hdu, path, image=True)
    for hdu in hdus:
        if (hdu.is_image and hdu.shape) or hasattr(hdu, "columns"):
            return hdu
    raise InputFileError(f"{path} holds no data; give a FITS image or table")


def _image(hdus: Any, ref: ArrayRef, path: Path) -> Any:
    return find_hdu(hdus, ref.hdu if ref.hdu is not None else ref.name, path, image=True)


def _small(hdu: Any, path: Path) -> Any:
    """Return the data of an HDU that is an image of one spectrum."""
    if not hdu.is_image:
        raise InputFileError(f"{path}: HDU {hdu.name!r} is no image; name one, or a column")
    check_pixels(math.prod(hdu.shape or (0,)), path)
    return hdu.data


def _image_wave(hdus: Any, hdu: Any, wavelength: WavelengthConfig, path: Path) -> Float64Array:
    n_pixel = int(np.prod(hdu.shape))
    if wavelength.values is not None:
        values = _line(_small(_image(hdus, wavelength.values, path), path), path)
        return to_angstrom(values, wavelength.unit, log=wavelength.log)
    if wavelength.start is not None:
        return _stated(wavelength, n_pixel)
    grid = header_grid(hdu.header, 1, n_pixel, unit=wavelength.unit, log=wavelength.log)
    if grid is None:
        raise WavelengthError(
            f"{path} has no wavelength cards (CRVAL1, CDELT1); write 'start' and 'step', or "
            "'values', in [wavelength]"
        )
    return grid


def _stated(wavelength: WavelengthConfig, n_pixel: int) -> Float64Array:
    assert wavelength.start is not None
    assert wavelength.step is not None
    grid = linear_grid(wavelength.start, wavelength.step, n_pixel, log=bool(wavelength.log))
    return grid * angstrom_per(wavelength.unit)


def _line(data: Any, path: Path) -> Float64Array:
    values = np.squeeze(np.asarray(data, dtype=np.float64))
    if values.ndim != 1:
        raise InputFileError(
            f"{path} holds an image of shape {np.shape(data)}, not one spectrum; give it as 'file'"
        )
    return values


def _ascii_star(path: Path, spectra: SpectraConfig, wavelength: WavelengthConfig) -> _Star:
    if path.stat().st_size > _MOST_BYTES_PER_PIXEL * current().pixels:
        raise exceeded(path, f"has {path.stat().st_size} bytes of text", "pixels")
    lines = [line.replace(",", " ") for line in path.read_text("utf-8").splitlines()]
    lines = [line for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if lines and not _numeric(lines[0]):
        lines = lines[1:]
    if not lines:
        raise InputFileError(f"{path} has no rows; give wavelength and flux, a pixel a row")
    table = np.loadtxt(lines, dtype=np.float64, ndmin=2)
    noisy = spectra.ivar is not None or spectra.error is not None
    wanted = 3 if noisy else 2
    if table.shape[1] != wanted:
        raise InputFileError(
            f"{path} has {table.shape[1]} columns, expected {wanted}: wavelength, flux, and a "
            "third one if 'ivar' or 'error' in [spectra] names it"
        )
    wave = to_angstrom(table[:, 0], wavelength.unit, log=wavelength.log)
    noise = table[:, 2] if noisy else None
    return _Star(wave, table[:, 1], noise)


def _numeric(line: str) -> bool:
    try:
        [float(word) for word in line.split()]
    except ValueError:
        return False
    return True
