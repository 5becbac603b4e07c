"""ESO Phase 3 spectra: a FITS file per star, with a binary table of one row of arrays.

ESO Science Data Products Standard, chapter on 1-D spectra
(https://www.eso.org/sci/observing/phase3/p3sdpstd.pdf). Columns are known by their ``TUTYP``;
``TUCD1 = 'em.wl;obs.atmos'`` means wavelengths in air, ``'em.wl'`` in vacuum. Gaia-ESO, the
products of ESO's own pipelines and 4MOST spectra are published in this way.
"""

import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, InputFileError, WavelengthError
from maury.io.arrays import Float64Array
from maury.io.fits_values import column_floats
from maury.io.opening import find_hdu
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium
from maury.survey.readers.grids import to_angstrom
from maury.survey.readers.rows import to_ivar
from maury.survey.readers.sources import Cards, header_facts
from maury.survey.readers.star_files import StarFiles, StarFormat, StarSpectrum

logger = logging.getLogger(__name__)

_AXIS = "spectralaxis.value"
_FLUX = "fluxaxis.value"
# Both spellings are found in ESO's files.
_ERROR = ("fluxaxis.accuracy.staterror", "fluxaxis.accurancy.staterror")
_MEDIUM = "MEDIUM"
_COUNTS = ("adu", "ct", "count", "counts", "electron", "electrons")
_QUALITY = ("fluxaxis.accuracy.qualitystatus", "fluxaxis.accurancy.qualitystatus")
_NAMES = {
    "wave": ("WAVE", "LAMBDA", "WAVELENGTH"),
    "flux": ("FLUX", "FLUX_REDUCED"),
    "error": ("ERR", "ERR_FLUX", "ERR_REDUCED", "SIGMA"),
    "quality": ("QUAL", "QUALITY"),
}


@dataclass(frozen=True)
class _Column:
    name: str
    utype: str
    ucd: str
    unit: str | None

    @property
    def space(self) -> str:
        """Namespace of the utype: ``spec:``, ``Spectrum.``, ``eso:``."""
        return self.utype.partition("data.")[0]

    def ends(self, endings: Sequence[str]) -> bool:
        """Whether the utype ends in one of these."""
        return self.utype.endswith(tuple(endings))


def open_phase3(path: Path, stack: ExitStack, *, skip_bad: bool = False) -> StarFiles:
    """Open a Phase 3 spectrum, or a folder of them; headers are read at once.

    Identifiers are the names of the files without suffix. The table of facts holds the cards of the
    primary header and of the spectrum's (``OBJECT``, ``RA``, ``DEC``, ``MJD-OBS``, ``SNR``,
    ``SPEC_RES``, ``SPECSYS``, ...).

    Parameters
    ----------
    path : Path
    stack : ExitStack
        Not needed: files are opened one at a time.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels.

    Raises
    ------
    InputFileError
        If there is no file, or one holds no table of one row.
    ColumnError
        If the columns of wavelength and flux cannot be told.
    WavelengthError
        If files stand in different media.
    """
    phase3 = StarFormat(
        _read, partial(_one_medium, path), _facts, units={"RA": "deg", "DEC": "deg"}
    )
    files = phase3(path, stack, skip_bad=skip_bad)
    assert files.table is not None, "headers were read"
    _warn_of_frames(files.table, path)
    return files


def _one_medium(path: Path, facts: Sequence[Cards], paths: Sequence[Path]) -> Medium | None:
    media: dict[Medium | None, Path] = {}
    for row, item in zip(facts, paths, strict=True):
        media.setdefault(row[_MEDIUM], item)
    if len(media) > 1:
        listed = ", ".join(f"{medium or 'unknown'} ({item.name})" for medium, item in media.items())
        raise WavelengthError(
            f"{path} holds spectra in different media: {listed}; put each into a folder of its own"
        )
    return next(iter(media))


def _warn_of_frames(table: SourceTable, path: Path) -> None:
    if "SPECSYS" in table.names:
        frames = sorted(set(table.texts("SPECSYS").tolist()) - {"BARYCENT", "HELIOCEN", ""})
        if frames:
            logger.warning(
                "%s: wavelengths of some spectra stand in the frame %s, not the barycentric one; a "
                "radial_velocity that is mapped for them must be one of that frame",
                path,
                ", ".join(frames),
            )


def _facts(hdus: Any, path: Path) -> dict[str, Any]:
    hdu = _spectrum(hdus, path)
    medium = _medium(_find(_columns(hdu), "wave", path))
    return {**header_facts(hdus[0].header, hdu.header), _MEDIUM: medium}


def _read(hdus: Any, path: Path) -> StarSpectrum:
    hdu = _spectrum(hdus, path)
    columns = _columns(hdu)
    wave, flux = (_find(columns, kind, path) for kind in ("wave", "flux"))
    error = _companion(columns, flux, "error")
    quality = _companion(columns, flux, "quality")
    values = _array(hdu, flux)
    ivar = None
    if error is not None:
        # Where a pipeline knows no errors, ESO's files have NaN in all of the column.
        errors = _array(hdu, error)
        ivar = None if np.isnan(errors).all() else to_ivar(errors, is_error=True)
    if quality is not None:
        # Any bit: collections define their own, and all mean trouble.
        bad = _array(hdu, quality) != 0
        values = np.where(bad, np.nan, values)
        ivar = None if ivar is None else np.where(bad, 0.0, ivar)
    wave_aa = to_angstrom(_array(hdu, wave), wave.unit)
    noise = None if ivar is None else np.asarray(ivar, dtype=np.float64)
    return StarSpectrum(wave_aa, values, noise, {}, _medium(wave))


def _spectrum(hdus: Any, path: Path) -> Any:
    hdu = find_hdu(hdus, None, path, image=False)
    # Echelle spectra with a row per order are no 1-D products, and would be cut to the first.
    if int(hdu.header["NAXIS2"]) != 1:
        raise InputFileError(
            f"{path}: a Phase 3 spectrum is a table of one row, got {hdu.header['NAXIS2']} rows; "
            "describe other files in a TOML file"
        )
    return hdu


def _columns(hdu: Any) -> list[_Column]:
    header = hdu.header
    return [
        _Column(
            column.name,
            str(header.get(f"TUTYP{k}", "")).strip().lower(),
            str(header.get(f"TUCD{k}", "")).strip().lower(),
            column.unit,
        )
        for k, column in enumerate(hdu.columns, start=1)
    ]


def _find(columns: Sequence[_Column], kind: str, path: Path) -> _Column:
    """Column of wavelength or flux: by utype, the calibrated and main one first, else by name."""
    ending = _AXIS if kind == "wave" else _FLUX
    found = sorted((c for c in columns if c.ends((ending,))), key=_rank)
    rivals = [c.name for c in found[1:] if _rank(c) == _rank(found[0])]
    if rivals:
        logger.warning(
            "%s: the columns %s have one TUTYP, and neither TUCD nor unit tells them apart; %s is "
            "read",
            path,
            ", ".join([found[0].name, *rivals]),
            found[0].name,
        )
    by_name = {c.name.upper(): c for c in columns}
    found += [by_name[name] for name in _NAMES[kind] if name in by_name]
    if not found:
        raise ColumnError(
            f"{path} has no column of {'wavelengths' if kind == 'wave' else 'flux'}: none has a "
            f"TUTYP that ends in {ending!r}, or a name such as {_NAMES[kind][0]} (it has "
            f"{', '.join(c.name for c in columns)})"
        )
    return found[0]


def _rank(column: _Column) -> tuple[bool, bool, bool]:
    """Order of columns of one role: calibrated, main, and of the standard's own namespace first.

    A pipeline's flux in counts stands beside the calibrated one, under the name space ``eso:`` and
    with ``stat.uncalib`` in its UCD (ESO Science Data Products Standard, table of 1-D spectra).
    """
    counts = "stat.uncalib" in column.ucd or str(column.unit).strip().lower() in _COUNTS
    return counts, "meta.main" not in column.ucd, column.space.startswith("eso:")


def _companion(columns: Sequence[_Column], flux: _Column, kind: str) -> _Column | None:
    """Column of errors or quality that belongs to the flux: of its namespace, else by name.

    An error in another unit belongs to another flux, and none is better than that one.
    """
    endings = _ERROR if kind == "error" else _QUALITY
    by_name = {c.name.upper(): c for c in columns}
    found = [c for c in columns if c.ends(endings)]
    found += [by_name[name] for name in _NAMES[kind] if name in by_name]
    if kind == "error" and flux.unit:
        found = [c for c in found if c.unit in (None, "", flux.unit)]
    # Sorting is stable, so that columns by utype stay before those by name alone.
    found.sort(key=lambda c: (c.space != flux.space, "meta.main" not in c.ucd))
    return found[0] if found else None


def _array(hdu: Any, column: _Column) -> Float64Array:
    return column_floats(hdu, column.name).ravel()


def _medium(wave: _Column) -> Medium | None:
    # Frequencies and energies are told by what converts units.
    if not wave.ucd.startswith("em.wl"):
        return None
    return "air" if "obs.atmos" in wave.ucd else "vacuum"
