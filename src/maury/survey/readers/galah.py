"""GALAH DR3 and DR4 spectra: a FITS file per observation and camera.

``<sobject_id><camera>.fits``, cameras 1 (blue) to 4 (infrared), wavelengths in air with linear
cards. DR3 (https://docs.datacentral.org.au/galah/dr3/galah-dr3-spectra/): extensions 0
flux, 1 relative error, 2 and 3 without sky subtraction, 4 normalised flux, with wavelength cards of
its own: the flux is barycentric, the normalised flux at rest. DR4
(https://www.galah-survey.org/dr4/the_spectra/): ``normalized`` and ``relative_error`` by name, and
others.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import InputFileError, LengthMismatch, WavelengthError
from maury.survey.readers.grids import header_grid
from maury.survey.readers.sources import Cards, header_facts, stem
from maury.survey.readers.star_files import (
    StarFormat,
    StarSpectrum,
    line,
    relative_ivar,
)

_NORMALISED = (
    *("normalized", "normalised", "normalized_spectrum", "normalised_spectrum"),
    *("normalized spectra", "normalised spectra"),
)
_RELATIVE_ERROR = ("relative_error", "input_sigma")
_DR3_NORMALISED, _DR3_ERROR = 4, 1


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
    if flux.size > error.size:
        raise LengthMismatch(
            f"{path} has {flux.size} normalised pixels, but {error.size} errors; it is cut short "
            "or damaged"
        )
    wave = _wavelengths(hdus, normalised, flux.size, path)
    # The telluric blue end of camera 4 is left out of its normalised spectrum: both end in the
    # same red pixel (the survey's own tutorial for DR3 reads them so).
    ivar = relative_ivar(flux, error[error.size - flux.size :])
    return StarSpectrum(wave, flux, ivar, {}, "air")


def _extension(
    hdus: Any, names: Sequence[str], number: int, path: Path, *, needed: bool = True
) -> Any:
    for hdu in hdus:
        if str(hdu.name).strip().lower() in names:
            return hdu
    # Some files of DR3 lack an extension before the normalised one, which is the last and unnamed.
    for place in (number, len(hdus) - 1):
        if len(hdus) - 1 >= place >= number - 1 and not str(hdus[place].name).strip():
            return hdus[place]
    if not needed:
        return None
    raise InputFileError(
        f"{path} has no extension {' or '.join(names)} (it has "
        f"{', '.join(str(hdu.name) for hdu in hdus)}); it is no spectrum of GALAH DR3 or DR4"
    )


def _wavelengths(hdus: Any, hdu: Any, n_pixel: int, path: Path) -> Any:
    # An extension without cards of its own shares those of the primary header.
    for header in (hdu.header, hdus[0].header):
        cards = header_facts(header)
        # Some files call the first pixel 0, which FITS counts as 1.
        wave = header_grid({**cards, "CRPIX1": cards.get("CRPIX1") or 1.0}, 1, n_pixel)
        if wave is not None:
            return wave
    raise WavelengthError(f"{path} has no wavelength cards (CRVAL1, CDELT1)")


def galah(camera: int) -> StarFormat:
    """Return the format of GALAH spectra of one camera; identifiers are ``sobject_id``.

    Spectra that the release could not normalise are kept, all pixels bad.

    Parameters
    ----------
    camera : int
        1, 2, 3 or 4.
    """

    def identify(facts: Sequence[Cards], paths: Sequence[Path]) -> list[str]:
        del facts
        return [_sobject_id(item, camera) for item in paths]

    return StarFormat(_read, "air", identify=identify, pattern=f"*[0-9]{camera}.fits*")
