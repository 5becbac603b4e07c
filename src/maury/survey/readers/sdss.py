"""SDSS spectra of stars: apStar, aspcapStar and apVisit of APOGEE, mwmStar of SDSS-V, spec of SDSS.

All are in vacuum. Combined spectra of APOGEE and SDSS-V are at rest, single visits and the spectra
of the optical surveys are not.

Data models: https://data.sdss.org/datamodel/files/APOGEE_REDUX/APRED_VERS/stars/TELESCOPE/FIELD/apStar.html,
https://data.sdss.org/datamodel/files/APOGEE_ASPCAP/APRED_VERS/ASPCAP_VERS/TELESCOPE/FIELD/aspcapStar.html
and, for SDSS-V, ``mwmStar`` of Astra (https://sdss-astra.readthedocs.io): HDUs ``BOSS/APO``,
``BOSS/LCO``, ``APOGEE/APO``, ``APOGEE/LCO``, each a table with a row of arrays per combined
spectrum.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, InputFileError, WavelengthError
from maury.io.arrays import Float64Array
from maury.io.fits_values import column, column_floats, image
from maury.io.opening import find_hdu
from maury.survey.readers.grids import ascending, header_grid, join_grids, linear_grid
from maury.survey.readers.sources import Cards, header_facts, stem
from maury.survey.readers.star_files import (
    StarFormat,
    StarSpectrum,
    by_card,
    line,
    primary_facts,
    without_bits,
)

APOGEE_BAD_BITS: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 7, 12, 14)
"""Bits of APOGEE_PIXMASK by which a pixel is bad.

BADPIX, CRPIX, SATPIX, UNFIXABLE, BADDARK, BADFLAT, BADERR, NOSKY, SIG_SKYLINE, NOT_ENOUGH_PSF
(https://www.sdss4.org/dr17/irspec/apogee-bitmasks/).
"""

_GRIDS = {"BOSS": (3.5523, 1e-4, 4648), "APOGEE": (4.179, 6e-6, 8575)}
"""log10 of the first wavelength, step and number of pixels of combined spectra (data models)."""


def _apogee_ids(facts: Sequence[Cards], paths: Sequence[Path]) -> list[str]:
    # Combined by field: a star in two fields has two files and one name.
    stars = by_card("OBJID")(facts, paths)
    if len(set(stars)) == len(stars):
        return stars
    return [
        ".".join(str(part) for part in (row.get("TELESCOP", ""), row.get("FIELD", ""), star))
        for row, star in zip(facts, stars, strict=True)
    ]


def _read_apstar(hdus: Any, path: Path) -> StarSpectrum:
    if len(hdus) < 4:
        raise InputFileError(f"{path} has {len(hdus)} HDUs; an apStar file has flux, error, mask")
    flux, error = line(hdus[1], path), line(hdus[2], path)
    ivar = without_bits(_ivar(error), line(hdus[3], path).astype(np.int64), APOGEE_BAD_BITS)
    return StarSpectrum(_apogee_wave(hdus, flux.size, path), flux, ivar, {}, "vacuum")


def _read_aspcapstar(hdus: Any, path: Path) -> StarSpectrum:
    if len(hdus) < 3:
        raise InputFileError(f"{path} has {len(hdus)} HDUs; an aspcapStar file has flux and error")
    flux = line(hdus[1], path)
    ivar = _ivar(line(hdus[2], path))
    # Between the detectors ASPCAP writes zeros.
    ivar = np.where(flux == 0, 0.0, ivar)
    return StarSpectrum(_apogee_wave(hdus, flux.size, path), flux, ivar, {}, "vacuum")


def _read_apvisit(hdus: Any, path: Path) -> StarSpectrum:
    if len(hdus) < 5:
        raise InputFileError(
            f"{path} has {len(hdus)} HDUs; an apVisit file has flux, error, mask and wavelengths"
        )
    detectors = []
    for row in range(len(np.atleast_2d(image(hdus[4])))):
        flux, error, mask, wave = (line(hdus[k], path, row) for k in (1, 2, 3, 4))
        ivar = without_bits(_ivar(error), mask.astype(np.int64), APOGEE_BAD_BITS)
        detectors.append(ascending(wave, flux, ivar))
    # Red detector first in the file, each from red to blue.
    detectors.sort(key=lambda one: float(one[0][0]))
    wave, take = join_grids([one[0] for one in detectors], what=str(path))
    flux, ivar = (np.concatenate([one[k] for one in detectors]) for k in (1, 2))
    guard = take < 0
    return StarSpectrum(
        wave, np.where(guard, np.nan, flux[take]), np.where(guard, 0.0, ivar[take]), {}, "vacuum"
    )


def _spec_facts(hdus: Any, path: Path) -> dict[str, Any]:
    facts = primary_facts(hdus, path)
    for hdu in hdus[2:3]:
        names = hdu.columns.names if hasattr(hdu, "columns") and len(hdu.data) else ()
        for name in names:
            value = column(hdu, name, slice(1))[0]
            if np.ndim(value) == 0 and value is not np.ma.masked:
                facts[str(name)] = value.item() if hasattr(value, "item") else value
    return facts


def _read_spec(hdus: Any, path: Path) -> StarSpectrum:
    # By the data model the first table is the spectrum; those behind it are the fit and the lines.
    first = next((k for k, hdu in enumerate(hdus) if hasattr(hdu, "columns")), None)
    hdu = find_hdu(hdus, first, path, image=False)
    columns = {str(name).lower(): name for name in hdu.columns.names}
    lacking = [name for name in ("flux", "loglam", "ivar") if name not in columns]
    if lacking:
        raise ColumnError(f"{path}: {hdu.name} lacks the columns {', '.join(lacking)}")
    flux, loglam, ivar = (column_floats(hdu, columns[name]) for name in ("flux", "loglam", "ivar"))
    return StarSpectrum(np.asarray(10.0**loglam), flux, ivar, {}, "vacuum")


def _aspcap_facts(hdus: Any, path: Path) -> dict[str, Any]:
    facts = header_facts(hdus[0].header)
    if "OBJID" not in facts:
        # aspcapStar-<release>-<APOGEE_ID>.fits; releases have no '-', southern stars a '-' in it.
        facts["OBJID"] = stem(path).split("-", 2)[-1]
    return facts


def _apogee_wave(hdus: Any, n_pixel: int, path: Path) -> Float64Array:
    # Some files have the cards in the primary header alone.
    for header in (hdus[1].header, hdus[0].header):
        wave = header_grid(header, 1, n_pixel, log=True)
        if wave is not None:
            return wave
    raise WavelengthError(f"{path} has no wavelength cards (CRVAL1, CDELT1)")


def _ivar(error: Float64Array) -> Float64Array:
    good = np.isfinite(error) & (error > 0)
    with np.errstate(over="ignore"):
        return np.where(good, np.where(good, error, 1.0) ** -2.0, 0.0)


def _mwm_rows(hdus: Any, path: Path, instrument: str) -> list[tuple[float, Any, int]]:
    """S/N, HDU and row of every combined spectrum of an instrument, best first."""
    found = []
    known = [hdu for hdu in hdus if "/" in str(hdu.name)]
    if not known:
        raise InputFileError(
            f"{path} has no HDU such as APOGEE/APO (it has {', '.join(str(h.name) for h in hdus)}"
            "); it is no mwmStar file"
        )
    for hdu in known:
        if str(hdu.name).upper().startswith(f"{instrument}/") and hdu.data is not None:
            columns = {str(name).lower(): name for name in hdu.columns.names}
            n = len(hdu.data)
            snrs = column_floats(hdu, columns["snr"]) if "snr" in columns else np.zeros(n)
            for row in range(n):
                snr = float(snrs[row])
                found.append((snr if np.isfinite(snr) else -1.0, hdu, row))
    return sorted(found, key=lambda item: -item[0])


def _mwm_facts(hdus: Any, path: Path, *, instrument: str) -> dict[str, Any]:
    facts = header_facts(hdus[0].header)
    facts = {**facts, **{name.lower(): value for name, value in facts.items()}}
    for _, hdu, row in _mwm_rows(hdus, path, instrument)[:1]:
        for name in hdu.columns.names:
            value = column(hdu, name, slice(row, row + 1))[0]
            if np.ndim(value) == 0 and value is not np.ma.masked:
                facts[str(name).lower()] = value.item() if hasattr(value, "item") else value
    return facts


def _read_mwmstar(hdus: Any, path: Path, *, instrument: str) -> StarSpectrum:
    rows = _mwm_rows(hdus, path, instrument)
    # A star without this instrument keeps its row, all bad.
    if not rows:
        wave = linear_grid(*_GRIDS[instrument], log=True)
        return StarSpectrum(wave, np.full(wave.size, np.nan), np.zeros(wave.size), {}, "vacuum")
    _, hdu, row = rows[0]
    columns = {str(name).lower(): name for name in hdu.columns.names}
    lacking = [name for name in ("flux", "ivar") if name not in columns]
    if lacking:
        raise ColumnError(f"{path}: {hdu.name} lacks the columns {', '.join(lacking)}")

    def array(name: str) -> Float64Array:
        return column_floats(hdu, columns[name], slice(row, row + 1)).ravel()

    flux, ivar = array("flux"), array("ivar")
    if "pixel_flags" in columns and instrument == "APOGEE":
        ivar = without_bits(ivar, array("pixel_flags").astype(np.int64), APOGEE_BAD_BITS)
    wave = array("wavelength") if "wavelength" in columns else _mwm_wave(hdu, flux.size, instrument)
    return StarSpectrum(wave, flux, ivar, {}, "vacuum")


def _mwm_wave(hdu: Any, n_pixel: int, instrument: str) -> Float64Array:
    start, step, _ = _GRIDS[instrument]
    header = hdu.header
    return linear_grid(
        float(header.get("CRVAL", start)), float(header.get("CDELT", step)), n_pixel, log=True
    )


open_apstar = StarFormat(_read_apstar, "vacuum", identify=_apogee_ids, pattern="a[ps]Star-*")
"""apStar files: the combined spectrum (first row) of each, not normalised.

Identifiers are ``OBJID``; where a star was observed in several fields, with telescope and field
before it.
"""


open_aspcapstar = StarFormat(_read_aspcapstar, "vacuum", _aspcap_facts, _apogee_ids, "aspcapStar-*")
"""aspcapStar files: spectra as ASPCAP normalised them."""


open_apvisit = StarFormat(_read_apvisit, "vacuum", pattern="a[ps]Visit-*")
"""apVisit files: single visits, three detectors of descending wavelengths each.

Wavelengths are as observed: ``VRAD`` of the header is the velocity of the star on them, and
``VHELIO`` = ``VRAD`` + ``BC`` the heliocentric one.
"""


open_spec = StarFormat(_read_spec, "vacuum", _spec_facts, pattern="spec-*")
"""spec files of SDSS, SEGUE and BOSS: coadded spectra of single fibres, heliocentric.

Facts are the cards of the primary header, and the single values of the table behind the spectrum
(``Z``, ``CLASS``, ``ZWARNING``, ...).
"""


def mwmstar(instrument: str) -> StarFormat:
    """Return the format of mwmStar files: the combined spectrum of one instrument, not normalised.

    Where both observatories have one, that of higher S/N is taken. Identifiers are ``sdss_id``.

    Parameters
    ----------
    instrument : {"BOSS", "APOGEE"}
    """
    return StarFormat(
        partial(_read_mwmstar, instrument=instrument),
        "vacuum",
        partial(_mwm_facts, instrument=instrument),
        by_card("sdss_id"),
        "mwmStar-*",
    )
