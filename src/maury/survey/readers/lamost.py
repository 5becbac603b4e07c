"""LAMOST spectra: a FITS file per star, in vacuum, in the heliocentric frame.

Low resolution up to DR6: an image of five rows, flux, ivar, (wavelength), and-mask, or-mask, with
``COEFF0`` and ``COEFF1`` (https://www.lamost.org/public/dr/algorithms/ff); from DR7 a table
``COADD`` with a row of arrays (https://www.lamost.org/dr8/v2.0/doc/lr-data-production-description).
Medium resolution: tables ``COADD_B`` and ``COADD_R`` beside those of single exposures
(https://www.lamost.org/dr9/v1.0/doc/mr-data-production-description).
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, InputFileError, WavelengthError
from maury.io.arrays import Float64Array
from maury.io.fits_values import column_floats
from maury.io.opening import find_hdu
from maury.survey.readers.grids import header_grid
from maury.survey.readers.star_files import (
    StarFormat,
    StarSpectrum,
    by_card,
    line,
)

_COADD = "COADD"
_MASKS = ("ANDMASK", "PIXMASK")


def _read_lrs(hdus: Any, path: Path) -> StarSpectrum:
    # Releases of both layouts may lie in one folder.
    if any(str(hdu.name).upper() == _COADD for hdu in hdus):
        return _table(find_hdu(hdus, _COADD, path, image=False), path)
    image = hdus[0]
    flux, ivar = line(image, path, 0), line(image, path, 1)
    wave = header_grid(image.header, 1, flux.size)
    if wave is None:
        raise WavelengthError(
            f"{path} has no wavelength cards (COEFF0, COEFF1), and no table {_COADD}; it is no "
            "low-resolution spectrum of LAMOST"
        )
    return StarSpectrum(wave, flux, np.where(line(image, path, 3) != 0, 0.0, ivar), {}, "vacuum")


def _read_mrs(hdus: Any, path: Path, *, arm: str) -> StarSpectrum:
    name = f"{_COADD}_{arm}"
    names = [str(hdu.name).upper() for hdu in hdus]
    if name in names:
        return _table(hdus[names.index(name)], path)
    if not any(known == f"{_COADD}_{other}" for known in names for other in "BR"):
        raise InputFileError(
            f"{path} has no table {name} (it has {', '.join(names)}); it is no medium-resolution "
            "spectrum of LAMOST, or holds single exposures only"
        )
    # Two pixels over the range of the arm: any grid can be resampled from them, all bad.
    low, high = (4950.0, 5350.0) if arm == "B" else (6300.0, 6800.0)
    wave = np.linspace(low, high, 2)
    return StarSpectrum(wave, np.full(2, np.nan), np.zeros(2), {}, "vacuum")


def _table(hdu: Any, path: Path) -> StarSpectrum:
    columns = {str(name).upper(): name for name in hdu.columns.names}

    def array(*names: str) -> Float64Array | None:
        for name in names:
            if name in columns:
                return column_floats(hdu, columns[name]).ravel()
        return None

    flux, ivar = array("FLUX"), array("IVAR")
    wave, log_wave = array("WAVELENGTH"), array("LOGLAM")
    if flux is None or ivar is None or (wave is None and log_wave is None):
        raise ColumnError(
            f"{path}: the table {hdu.name} needs FLUX, IVAR, and WAVELENGTH or LOGLAM; it has "
            f"{', '.join(hdu.columns.names)}"
        )
    # Releases call the mask differently; a pixel bad in every exposure is bad.
    mask = array(*_MASKS)
    ivar = ivar if mask is None else np.where(mask != 0, 0.0, ivar)
    if wave is None:
        assert log_wave is not None, "one of them was required"
        wave = np.asarray(10.0**log_wave)
    return StarSpectrum(wave, flux, ivar, {}, "vacuum")


_DEGREES = {"RA": "deg", "DEC": "deg"}

open_lrs = StarFormat(_read_lrs, "vacuum", identify=by_card("OBSID"), units=_DEGREES)
"""Low-resolution spectra, of either layout; identifiers are ``OBSID``.

A pixel that is masked in every exposure (``ANDMASK``) is bad.
"""


def mrs(arm: str) -> StarFormat:
    """Return the format of coadded medium-resolution spectra of one arm.

    A star without a coadded spectrum in this arm is kept, all pixels bad. Identifiers are
    ``OBSID``.

    Parameters
    ----------
    arm : {"B", "R"}
    """
    return StarFormat(
        partial(_read_mrs, arm=arm), "vacuum", identify=by_card("OBSID"), units=_DEGREES
    )
