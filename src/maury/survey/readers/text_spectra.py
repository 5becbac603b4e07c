"""Spectra in text files: rows of numbers, in columns that may have names."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maury.errors import InputFileError
from maury.io.arrays import Float64Array
from maury.io.limits import current, exceeded
from maury.survey.readers.config import SpectraConfig, WavelengthConfig

_MOST_BYTES_PER_PIXEL = 10
"""Of text, times the limit of pixels: what is far beyond any spectrum is refused unread."""
_WAVE = "wave"


def text_lines(lines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the names of the columns of a text, if it has such, and its rows, blanks between.

    Names stand in the last line before the rows, with or without a ``#``, and are as many as the
    columns. Blanks, commas, semicolons and tabs part columns alike, as files of one survey mix
    them.
    """
    above: list[str] = []
    rows: list[str] = []
    for line in lines:
        parted = _parted(line)
        if not parted:
            continue
        if parted.startswith("#") or (not rows and not numeric(parted)):
            above = above if rows else [*above, parted.lstrip("# ")]
        else:
            rows.append(parted)
    names = above[-1].split() if above else []
    return (names if rows and len(names) == len(rows[0].split()) else []), rows


def _parted(line: str) -> str:
    """Return a line with blanks between its cells; an empty cell between commas is missing."""
    if "," not in line:
        return line.replace(";", " ").strip()
    # A comma at the end of each row is no further cell.
    cells = line.strip().rstrip(",").split(",")
    return " ".join(cell.strip() or "nan" for cell in cells)


def numeric(line: str) -> bool:
    """Whether a line holds nothing but numbers."""
    try:
        [float(word) for word in line.split()]
    except ValueError:
        return False
    return True


def read_text(
    path: Path, spectra: SpectraConfig, wavelength: WavelengthConfig
) -> tuple[Float64Array, Float64Array, Float64Array | None]:
    """Return wavelengths, fluxes and noise of a text, as it has them, shape (n_pixel,) each.

    Columns are found by the names that the configuration gives, where the text has names and the
    flux and the wavelengths are among them; else they are wavelength, flux, and a third one if
    ``ivar`` or ``error`` is given.

    Raises
    ------
    InputFileError
        If the text is too long, has no rows, or other columns.
    """
    # Text is read whole: its size is looked at first.
    if path.stat().st_size > _MOST_BYTES_PER_PIXEL * current().pixels:
        raise exceeded(path, f"has {path.stat().st_size} bytes of text", "pixels")
    names, rows = text_lines(path.read_text("utf-8").splitlines())
    if not rows:
        raise InputFileError(f"{path} has no rows; give wavelength and flux, a pixel a row")
    table = np.loadtxt(rows, dtype=np.float64, ndmin=2)
    noise = spectra.ivar or spectra.error
    wave = wavelength.values.name if wavelength.values is not None else _WAVE
    if spectra.flux in names and wave in names:
        wanted = [wave, spectra.flux, *([] if noise is None else [noise.name or ""])]
        absent = [name for name in wanted if name not in names]
        if absent:
            raise InputFileError(f"{path} has no column {absent[0]!r} (it has {', '.join(names)})")
        places = [names.index(name) for name in wanted]
    else:
        places = [0, 1] if noise is None else [0, 1, 2]
        _check_width(path, table.shape[1], len(places), names)
    columns = [table[:, place] for place in places]
    return columns[0], columns[1], columns[2] if noise is not None else None


def _check_width(path: Path, got: int, wanted: int, names: Sequence[str]) -> None:
    if got == wanted:
        return
    named = f"; or name them as 'flux' and 'values' ({', '.join(names)})" if names else ""
    raise InputFileError(
        f"{path} has {got} columns, expected {wanted}: wavelength, flux, and a "
        f"third one if 'ivar' or 'error' in [spectra] names it{named}"
    )
