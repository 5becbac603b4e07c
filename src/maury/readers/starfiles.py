"""What readers of one FITS file per star share: finding the files, their identifiers and facts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from maury.errors import InputFileError
from maury.readers.guards import files_of
from maury.readers.opening import open_fits, reading
from maury.readers.pipeline import check_rows, complete_ids
from maury.readers.sources import Facts, StarFiles, StarSpectrum, header_facts, stem
from maury.spectra import Medium

logger = logging.getLogger(__name__)

FITS_SUFFIXES: tuple[str, ...] = (".fits", ".fit", ".fits.gz", ".fit.gz")

Cards = Mapping[str, Any]
ReadStar = Callable[[Any, Path], StarSpectrum]
"""``read(hdus, path)`` gives the spectrum of an open file."""
TellFacts = Callable[[Any, Path], dict[str, Any]]
"""``facts(hdus, path)`` gives the facts of an open file."""


def find_files(path: Path, pattern: str) -> list[Path]:
    """Return a file, or all FITS files below a folder that match a pattern, sorted by name.

    Raises
    ------
    InputFileError
        If there are none.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise InputFileError(f"{path} does not exist; correct its name")
    found = [
        item
        for item in files_of(path, pattern, deep=True)
        if item.name.lower().endswith(FITS_SUFFIXES)
    ]
    if not found:
        raise InputFileError(
            f"{path} has no FITS file {pattern!r}, at any depth; correct the folder, or the recipe"
        )
    return sorted(found, key=lambda item: (item.name, str(item)))


def open_star_files(
    path: Path,
    pattern: str,
    *,
    read: ReadStar,
    facts: TellFacts,
    identify: Callable[[Sequence[Cards], Sequence[Path]], Sequence[str]],
    medium: Medium,
    units: Mapping[str, str] | None = None,
) -> StarFiles:
    """Open a file of one spectrum, or a folder of such files; headers are read at once.

    Parameters
    ----------
    path : Path
    pattern : str
        Which files below a folder are spectra.
    read, facts : callable
        Of an open file.
    identify : callable
        ``identify(facts, paths)`` names all spectra.
    medium : {"air", "vacuum"}
    units : mapping, optional
        Units of facts.

    Raises
    ------
    InputFileError
        If there is no file, or one is damaged.
    IdentifierError
        If an identifier stands twice.
    """
    paths = find_files(path, pattern)
    check_rows(len(paths), path)
    gathered = Facts()
    for item in paths:
        with reading(item), ExitStack() as stack:
            gathered.add(facts(open_fits(item, stack), item))
    names = np.array(identify(gathered.rows, paths), dtype=np.str_)
    ids = complete_ids(names, len(paths), path)
    simulated = any(row.get("SIMULATE") is True for row in gathered.rows)

    def opened(item: Path) -> StarSpectrum:
        with reading(item), ExitStack() as stack:
            return read(open_fits(item, stack), item)

    return StarFiles(paths, opened, ids, gathered.table(path, units), medium, simulated)


def primary_facts(hdus: Any, path: Path) -> dict[str, Any]:
    """Return the cards of the primary header."""
    del path
    return header_facts(hdus[0].header)


def by_card(key: str) -> Callable[[Sequence[Cards], Sequence[Path]], list[str]]:
    """Return a function that names spectra by a header card, else by the file."""

    def names(facts: Sequence[Cards], paths: Sequence[Path]) -> list[str]:
        return [
            str(row.get(key, "")).strip() or stem(path)
            for row, path in zip(facts, paths, strict=True)
        ]

    return names


def line(hdu: Any, path: Path, row: int = 0) -> NDArray[np.float64]:
    """Return a spectrum of an image HDU, or one row of an image of several."""
    if hdu.data is None or not getattr(hdu, "is_image", False):
        raise InputFileError(
            f"{path}: HDU {hdu.name!r} holds no image; the file is not of this format"
        )
    values = np.atleast_2d(np.asarray(hdu.data, dtype=np.float64))
    if values.ndim != 2 or row >= values.shape[0]:
        raise InputFileError(
            f"{path}: HDU {hdu.name!r} has shape {np.shape(hdu.data)}, without row {row}; the file "
            "is not of this format"
        )
    return np.asarray(values[row])


def relative_ivar(
    flux: NDArray[np.float64], relative_error: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return ivar from flux and its relative error, 0 where there is no positive error."""
    sigma = np.abs(flux) * relative_error
    good = np.isfinite(sigma) & (sigma > 0)
    with np.errstate(over="ignore"):
        ivar = np.where(good, np.where(good, sigma, 1.0) ** -2.0, 0.0)
    return np.where(np.isfinite(ivar), ivar, 0.0)


def without_bits(
    ivar: NDArray[np.float64], mask: NDArray[Any], bits: Sequence[int]
) -> NDArray[np.float64]:
    """Return ivar with 0 where any of these bits of `mask` is set."""
    bad = np.uint64(sum(1 << bit for bit in bits))
    flagged = (np.asarray(mask).astype(np.int64).view(np.uint64) & bad) != 0
    return np.where(flagged, 0.0, ivar)
