"""RAVE DR6 spectra: one FITS file per observation.

Steinmetz et al. (2020, AJ 160, 82): spectra normalised to the continuum, at rest, in air, with
error spectra. Files are named ``RAVE_<rave_obs_id>.fits``; the primary header has the observation
in ``ROI``; the image ``SPECTRUM`` holds the flux, with linear wavelength cards, ``ERROR`` its
relative error.
"""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from maury.errors import WavelengthError
from maury.io.opening import find_hdu
from maury.survey.readers.grids import header_grid
from maury.survey.readers.star_files import (
    StarFiles,
    StarSpectrum,
    by_card,
    line,
    open_star_files,
    primary_facts,
    relative_ivar,
)


def open_rave(path: Path, stack: ExitStack, *, skip_bad: bool = False) -> StarFiles:
    """Open RAVE DR6 spectra; identifiers are those of the observations.

    Parameters
    ----------
    path : Path
        A file, or a folder with files at any depth.
    stack : ExitStack
        Not needed: files are opened one at a time.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels.

    Raises
    ------
    InputFileError
        If there is no file, or one lacks ``SPECTRUM`` or ``ERROR``.
    """
    del stack
    return open_star_files(
        path,
        read=_read,
        facts=primary_facts,
        identify=by_card("ROI"),
        medium="air",
        skip_bad=skip_bad,
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
