"""GALAH DR3 and DR4 spectra: a FITS file per observation and camera.

``<sobject_id><camera>.fits``, cameras 1 (blue) to 4 (infrared), wavelengths in air with linear
cards. DR3 (https://www.galah-survey.org/dr3/the_spectra/): extensions 0 flux, 1 relative error, 2
and 3 without sky subtraction, 4 normalised flux. DR4 (https://www.galah-survey.org/dr4/the_spectra/):
``normalized`` and ``relative_error`` by name, and others.
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import InputFileError, WavelengthError
from maury.survey.readers.grids import header_grid
from maury.survey.readers.sources import (
    Cards,
    StarFiles,
    StarSpectrum,
    line,
    open_star_files,
    primary_facts,
    relative_ivar,
    stem,
)

_NORMALISED = (
    *("normalized", "normalised", "normalized_spectrum", "normalised_spectrum"),
    *("normalized spectra", "normalised spectra"),
)
_RELATIVE_ERROR = ("relative_error", "input_sigma")
_DR3_NORMALISED, _DR3_ERROR = 4, 1


def open_galah(path: Path, stack: ExitStack, *, camera: int) -> StarFiles:
    """Open GALAH spectra of one camera; identifiers are ``sobject_id``.

    Spectra that the release could not normalise are kept, all pixels bad.

    Parameters
    ----------
    path : Path
        A file, or a folder with files at any depth.
    stack : ExitStack
        Not needed: files are opened one at a time.
    camera : int
        1, 2, 3 or 4.

    Raises
    ------
    InputFileError
        If there is no file of this camera, or one has no such extensions.
    """
    del stack

    def identify(facts: Sequence[Cards], paths: Sequence[Path]) -> list[str]:
        del facts
        return [_sobject_id(item, camera) for item in paths]

    return open_star_files(
        path,
        f"*[0-9]{camera}.fits*",
        read=_read,
        facts=primary_facts,
        identify=identify,
        medium="air",
    )


def _sobject_id(path: Path, camera: int) -> str:
    name = stem(path)
    if not name.isdigit() or not name.endswith(str(camera)):
        raise InputFileError(
            f"{path}: spectra of GALAH's camera {camera} are called <sobject_id>{camera}.fits; "
            "take other files out of the folder, or choose another arm"
        )
    return name[:-1]


def _read(hdus: Any, path: Path) -> StarSpectrum:
    error = line(_extension(hdus, _RELATIVE_ERROR, _DR3_ERROR, path), path)
    normalised = _extension(hdus, _NORMALISED, _DR3_NORMALISED, path, needed=False)
    if normalised is None:
        n_pixel = line(hdus[0], path).size
        wave = _wavelengths(hdus, hdus[0], n_pixel, path)
        return StarSpectrum(wave, np.full(n_pixel, np.nan), np.zeros(n_pixel), {}, "air")
    flux = line(normalised, path)
    wave = _wavelengths(hdus, normalised, flux.size, path)
    ivar = relative_ivar(flux, error) if error.shape == flux.shape else error
    return StarSpectrum(wave, flux, ivar, {}, "air")


def _extension(
    hdus: Any, names: Sequence[str], number: int, path: Path, *, needed: bool = True
) -> Any:
    for hdu in hdus:
        if str(hdu.name).strip().lower() in names:
            return hdu
    unnamed = len(hdus) > number and not str(hdus[number].name).strip()
    if unnamed:
        return hdus[number]
    if not needed:
        return None
    raise InputFileError(
        f"{path} has no extension {' or '.join(names)} (it has "
        f"{', '.join(str(hdu.name) for hdu in hdus)}); it is no spectrum of GALAH DR3 or DR4"
    )


def _wavelengths(hdus: Any, hdu: Any, n_pixel: int, path: Path) -> Any:
    for header in (hdu.header, hdus[0].header):
        wave = header_grid(header, 1, n_pixel)
        if wave is not None:
            return wave
    raise WavelengthError(f"{path} has no wavelength cards (CRVAL1, CDELT1)")
