"""A folder with one file per star: FITS images, FITS tables, or text in two or three columns."""

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import InputFileError, WavelengthError
from maury.io.arrays import Float64Array
from maury.io.fits_values import column_floats, image
from maury.io.opening import files_of, find_hdu, open_fits, reading, says_simulated
from maury.io.tables import fits_table
from maury.spectra.spectra import Medium
from maury.survey.readers.config import ArrayRef, SpectraConfig, WavelengthConfig
from maury.survey.readers.grids import (
    angstrom_per,
    header_grid,
    header_medium,
    linear_grid,
    require_medium,
    to_angstrom,
)
from maury.survey.readers.pipeline import check_pixels
from maury.survey.readers.rows import to_ivar
from maury.survey.readers.sources import FITS_SUFFIXES, stem, tolerating
from maury.survey.readers.star_files import StarFiles, StarSpectrum
from maury.survey.readers.text_spectra import numeric, read_text

logger = logging.getLogger(__name__)

_DEFAULT_WAVE = ArrayRef(name="wave")
_HEAD_BYTES = 8192
"""Of a text, in which a row of numbers is sought: longer than any header of a spectrum seen."""
_DOCUMENTS = (
    *(".md", ".rst", ".html", ".htm", ".pdf", ".ps", ".eps", ".png", ".jpg", ".jpeg", ".gif"),
    *(".json", ".toml", ".yaml", ".py", ".sh", ".md5", ".sha256"),
)
_NAMED = 5
"""Files left out that the warning names."""


def open_folder(
    folder: Path, spectra: SpectraConfig, wavelength: WavelengthConfig, *, skip_bad: bool = False
) -> StarFiles:
    """List a folder of spectra, and name them: by a header card if ``id`` says one, else by file.

    Raises
    ------
    InputFileError
        If it is no directory, or no file matches.
    """
    if not folder.is_dir():
        raise InputFileError(f"{folder} is no directory; correct 'folder' in [spectra]")
    found = sorted(files_of(folder, spectra.pattern))
    paths = _spectra_among(found, spectra, folder)
    if not paths:
        raise InputFileError(
            f"{folder} has no file {spectra.pattern!r}; correct 'folder' or 'pattern' in [spectra]"
        )
    lost: dict[Path, str] = {}
    names = []
    for path in paths:
        name = stem(path)
        if spectra.id is not None:
            with tolerating(path, lost, skip=skip_bad):
                name = _card(path, spectra.id)
        names.append(name)

    def read(path: Path) -> StarSpectrum:
        with reading(path), ExitStack() as stack:
            if _is_fits(path, spectra):
                return _fits_star(path, spectra, wavelength, stack)
            return _ascii_star(path, spectra, wavelength)

    ids = np.array(names, dtype=np.str_)
    # The first tells for all: a folder may hold a million files, which would all be opened for it.
    # One simulated spectrum marks all of them: the mark must never get lost.
    simulated = any(_simulated(item, spectra) for item in paths)
    return StarFiles(paths, read, ids, None, wavelength.medium, simulated, skip_bad, lost)


def _spectra_among(paths: Sequence[Path], spectra: SpectraConfig, folder: Path) -> list[Path]:
    """Return the files that can be spectra, and tell which are left out.

    Archives put a README, a list or pictures beside their files; a text without any row of numbers
    is no spectrum. What is empty or cannot be read as text stays, so that a damaged one is told.
    """
    chosen = [path for path in paths if _is_fits(path, spectra) or not _is_prose(path)]
    left = [path.name for path in paths if path not in set(chosen)]
    if left and chosen:
        logger.warning(
            "%s: %d files are no spectra and are left out: %s%s",
            folder,
            len(left),
            ", ".join(left[:_NAMED]),
            ", ..." if len(left) > _NAMED else "",
        )
    return chosen


def _is_prose(path: Path) -> bool:
    """Whether a file is a document: by its suffix, or a text without a row of numbers."""
    if path.suffix.lower() in _DOCUMENTS:
        return True
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    try:
        rows = head.decode("utf-8").splitlines()
    # In doubt it is a spectrum: its reader tells what is wrong, whereas one left out is missed.
    except UnicodeDecodeError:
        return False
    rows = [row for row in rows if row.strip() and not row.lstrip().startswith("#")]
    return bool(rows) and not any(numeric(row.replace(",", " ")) for row in rows)


def _simulated(path: Path, spectra: SpectraConfig) -> bool:
    """Whether the headers of a file say so; a file that cannot be read says nothing."""
    if not _is_fits(path, spectra):
        return False
    try:
        with reading(path), ExitStack() as stack:
            return says_simulated(open_fits(path, stack))
    except InputFileError:
        return False


def _is_fits(path: Path, spectra: SpectraConfig) -> bool:
    if spectra.format is not None:
        return spectra.format != "ascii"
    return path.name.lower().endswith(FITS_SUFFIXES)


def _card(path: Path, key: str) -> str:
    with reading(path), ExitStack() as stack:
        for hdu in open_fits(path, stack):
            if key in hdu.header:
                return str(hdu.header[key]).strip()
    raise InputFileError(f"{path} has no header card {key!r}; correct 'id' in [spectra]")


def _fits_star(
    path: Path, spectra: SpectraConfig, wavelength: WavelengthConfig, stack: ExitStack
) -> StarSpectrum:
    hdus = open_fits(path, stack)
    hdu = _spectrum_hdu(hdus, spectra, path)
    noise = spectra.ivar or spectra.error
    # A stated grid replaces that of the header, whose medium is then of no account.
    if wavelength.start is None:
        for header in (hdu.header, hdus[0].header):
            require_medium(header_medium(header), wavelength.medium, path)
    if hdu.is_image:
        check_pixels(math.prod(hdu.shape), path)
        flux = _line(image(hdu), path)
        wave = _image_wave(hdus, hdu, wavelength, path)
        found = None if noise is None else _line(_small(_image(hdus, noise, path), path), path)
        return _star(wave, flux, found, spectra)

    def column(ref: ArrayRef) -> Float64Array:
        name = fits_table(hdu, path).check(ref.name or "")
        return column_floats(hdu, name).ravel()

    flux = column(ArrayRef(name=spectra.flux))
    if wavelength.start is not None and wavelength.step is not None:
        wave = _stated(wavelength, flux.size)
    else:
        ref = wavelength.values or _DEFAULT_WAVE
        require_medium(_ucd_medium(hdu, ref.name or ""), wavelength.medium, path)
        unit = wavelength.unit or fits_table(hdu, path).units.get(ref.name or "")
        wave = to_angstrom(column(ref), unit, log=wavelength.log)
    return _star(wave, flux, None if noise is None else column(noise), spectra)


def _ucd_medium(hdu: Any, name: str) -> Medium | None:
    """Whether the UCD of a column says that it holds wavelengths in air, as of the standards."""
    names = list(hdu.columns.names)
    ucd = hdu.header.get(f"TUCD{names.index(name) + 1}", "") if name in names else ""
    return "air" if "obs.atmos" in str(ucd).lower() else None


def _star(
    wave: Float64Array, flux: Float64Array, noise: Float64Array | None, spectra: SpectraConfig
) -> StarSpectrum:
    ivar = None if noise is None else to_ivar(noise, is_error=spectra.error is not None)
    return StarSpectrum(wave, flux, ivar, {})


def _spectrum_hdu(hdus: Any, spectra: SpectraConfig, path: Path) -> Any:
    """HDU of the spectrum: as stated, else the first that can be one.

    That is a table with the column of the flux, or an image of one line: a thumbnail in front of
    the table is neither.
    """
    if spectra.hdu is not None:
        return find_hdu(hdus, spectra.hdu, path, image=True)
    data = [hdu for hdu in hdus if (hdu.is_image and hdu.shape) or hasattr(hdu, "columns")]
    for hdu in data:
        if hdu.is_image:
            if sum(size > 1 for size in hdu.shape) <= 1:
                return hdu
        elif spectra.flux in hdu.columns.names:
            return hdu
    if len(data) == 1:
        return data[0]
    if not data:
        raise InputFileError(f"{path} holds no data; give a FITS image or table")
    held = ", ".join(f"{k} {hdu.name!r}" for k, hdu in enumerate(hdus) if hdu in data)
    raise InputFileError(
        f"{path}: of the HDUs with data ({held}) none is an image of one spectrum or a table with "
        f"a column {spectra.flux!r}; write 'hdu', or the column as 'flux', in [spectra]"
    )


def _image(hdus: Any, ref: ArrayRef, path: Path) -> Any:
    return find_hdu(hdus, ref.hdu if ref.hdu is not None else ref.name, path, image=True)


def _small(hdu: Any, path: Path) -> Any:
    """Return the data of an HDU that is an image of one spectrum."""
    if not hdu.is_image:
        raise InputFileError(f"{path}: HDU {hdu.name!r} is no image; name one, or a column")
    check_pixels(math.prod(hdu.shape or (0,)), path)
    return image(hdu)


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
    # An image of (1, 1, n) is one spectrum: IRAF writes such.
    values = np.squeeze(np.asarray(data, dtype=np.float64))
    if values.ndim != 1:
        raise InputFileError(
            f"{path} holds an image of shape {np.shape(data)}, not one spectrum; give it as 'file'"
        )
    return values


def _ascii_star(path: Path, spectra: SpectraConfig, wavelength: WavelengthConfig) -> StarSpectrum:
    wave, flux, noise = read_text(path, spectra, wavelength)
    return _star(to_angstrom(wave, wavelength.unit, log=wavelength.log), flux, noise, spectra)
