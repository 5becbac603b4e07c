"""RAVE DR6 spectra: one FITS file per observation.

Steinmetz et al. (2020, AJ 160, 82): spectra normalised to the continuum, at rest, in air, with
error spectra. Files are named ``RAVE_<rave_obs_id>.fits``; the primary header has the observation
in ``ROI``; the image ``SPECTRUM`` holds the flux, with linear wavelength cards, ``ERROR`` its
relative error.
"""

from pathlib import Path
from typing import Any

from maury.errors import WavelengthError
from maury.io.opening import find_hdu
from maury.survey.readers.grids import header_grid
from maury.survey.readers.star_files import (
    StarFormat,
    StarSpectrum,
    by_card,
    line,
    relative_ivar,
)


def _read(hdus: Any, path: Path) -> StarSpectrum:
    spectrum = find_hdu(hdus, "SPECTRUM", path, image=True)
    flux = line(spectrum, path)
    wave = header_grid(spectrum.header, 1, flux.size)
    if wave is None:
        raise WavelengthError(f"{path}: SPECTRUM has no wavelength cards (CRVAL1, CDELT1)")
    error = line(find_hdu(hdus, "ERROR", path, image=True), path)
    # An error of another length is told by what checks all spectra.
    ivar = relative_ivar(flux, error) if error.shape == flux.shape else error
    return StarSpectrum(wave, flux, ivar, {}, "air")


open_rave = StarFormat(_read, "air", identify=by_card("ROI"))
"""RAVE DR6 spectra; identifiers are those of the observations."""
