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
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, InputFileError, WavelengthError
from maury.io.arrays import Float64Array
from maury.io.opening import find_hdu, open_fits, reading
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium
from maury.survey.readers.grids import to_angstrom
from maury.survey.readers.pipeline import complete_ids
from maury.survey.readers.rows import to_ivar
from maury.survey.readers.sources import (
    Facts,
    StarFiles,
    StarSpectrum,
    header_facts,
    list_files,
    stem,
)

logger = logging.getLogger(__name__)

_SUFFIXES = (".fits", ".fit", ".fits.gz")
_AXIS = "spectralaxis.value"
_FLUX = "fluxaxis.value"
# Both spellings are found in ESO's files.
_ERROR = ("fluxaxis.accuracy.staterror", "fluxaxis.accurancy.staterror")
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


def open_phase3(path: Path, stack: ExitStack) -> StarFiles:
    """Open a Phase 3 spectrum, or a folder of them; headers are read at once.

    Identifiers are the names of the files without suffix. The table of facts holds the cards of the
    primary header and of the spectrum's (``OBJECT``, ``RA``, ``DEC``, ``MJD-OBS``, ``SNR``,
    ``SPEC_RES``, ``SPECSYS``, ...).

    Parameters
    ----------
    path : Path
    stack : ExitStack
        Not needed: files are opened one at a time.

    Raises
    ------
    InputFileError
        If there is no file, or one holds no table of one row.
    ColumnError
        If the columns of wavelength and flux cannot be told.
    WavelengthError
        If files stand in different media.
    """
    del stack
    paths = list_files(path, _SUFFIXES)
    facts = Facts()
    media: dict[Medium | None, Path] = {}
    for item in paths:
        cards, medium = _facts(item)
        facts.add(cards)
        media.setdefault(medium, item)
    if len(media) > 1:
        listed = ", ".join(f"{medium or 'unknown'} ({item.name})" for medium, item in media.items())
        raise WavelengthError(
            f"{path} holds spectra in different media: {listed}; put each into a folder of its own"
        )
    ids = complete_ids(np.array([stem(item) for item in paths], dtype=np.str_), len(paths), path)
    table = facts.table(path, {"RA": "deg", "DEC": "deg"})
    _warn_of_frames(table, path)
    simulated = any(row.get("SIMULATE") is True for row in facts.rows)
    return StarFiles(paths, _read, ids, table, next(iter(media)), simulated)


def _warn_of_frames(table: SourceTable, path: Path) -> None:
    if "SPECSYS" in table.names:
        frames = sorted(set(table.texts("SPECSYS").tolist()) - {"BARYCENT", "HELIOCEN", ""})
        if frames:
            logger.warning(
                "%s: wavelengths of some spectra stand in the frame %s, not the barycentric one",
                path,
                ", ".join(frames),
            )


def _facts(path: Path) -> tuple[dict[str, Any], Medium | None]:
    with reading(path), ExitStack() as stack:
        hdus = open_fits(path, stack)
        hdu = _spectrum(hdus, path)
        facts = header_facts(hdus[0].header, hdu.header)
        return facts, _medium(_find(_columns(hdu), "wave", path))


def _read(path: Path) -> StarSpectrum:
    with reading(path), ExitStack() as stack:
        hdu = _spectrum(open_fits(path, stack), path)
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
            bad = _array(hdu, quality) != 0
            values = np.where(bad, np.nan, values)
            ivar = None if ivar is None else np.where(bad, 0.0, ivar)
        wave_aa = to_angstrom(_array(hdu, wave), wave.unit)
        noise = None if ivar is None else np.asarray(ivar, dtype=np.float64)
        return StarSpectrum(wave_aa, values, noise, {}, _medium(wave))


def _spectrum(hdus: Any, path: Path) -> Any:
    hdu = find_hdu(hdus, None, path, image=False)
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
    """Column of wavelength or flux: by utype, the main one first, else by name."""
    ending = _AXIS if kind == "wave" else _FLUX
    found = [c for c in columns if c.ends((ending,))]
    found.sort(key=lambda c: "meta.main" not in c.ucd)
    by_name = {c.name.upper(): c for c in columns}
    found += [by_name[name] for name in _NAMES[kind] if name in by_name]
    if not found:
        raise ColumnError(
            f"{path} has no column of {'wavelengths' if kind == 'wave' else 'flux'}: none has a "
            f"TUTYP that ends in {ending!r}, or a name such as {_NAMES[kind][0]} (it has "
            f"{', '.join(c.name for c in columns)})"
        )
    return found[0]


def _companion(columns: Sequence[_Column], flux: _Column, kind: str) -> _Column | None:
    """Column of errors or quality that belongs to the flux: of its namespace, else by name."""
    endings = _ERROR if kind == "error" else _QUALITY
    found = [c for c in columns if c.ends(endings)]
    found.sort(key=lambda c: (c.space != flux.space, "meta.main" not in c.ucd))
    by_name = {c.name.upper(): c for c in columns}
    found += [by_name[name] for name in _NAMES[kind] if name in by_name]
    return found[0] if found else None


def _array(hdu: Any, column: _Column) -> Float64Array:
    return np.asarray(hdu.data[column.name], dtype=np.float64).ravel()


def _medium(wave: _Column) -> Medium | None:
    if not wave.ucd.startswith("em.wl"):
        return None
    return "air" if "obs.atmos" in wave.ucd else "vacuum"
