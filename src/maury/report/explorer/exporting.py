"""Selections: what the browser sends of them, and files that hold exactly their rows."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from maury.errors import OutputError
from maury.io.arrays import BoolArray
from maury.prediction.catalogue import write_stored
from maury.prediction.stored import StoredCatalogue

FORMATS: Mapping[str, tuple[str, str]] = {
    "fits": (".fits", "application/fits"),
    "votable": (".vot", "application/x-votable+xml"),
    "parquet": (".parquet", "application/vnd.apache.parquet"),
}
"""Suffix and media type of the formats of a download."""


def selected_rows(bits: bytes, n_row: int) -> BoolArray:
    """Return which rows, (n_row,), are selected.

    Parameters
    ----------
    bits : bytes
        One bit per row, the first row in the lowest bit of the first byte.
    n_row : int
        Rows of the catalogue.

    Raises
    ------
    ValueError
        If the length is not that of the catalogue, or a bit past its end is set.
    """
    expected = (n_row + 7) // 8
    if len(bits) != expected:
        raise ValueError(f"a selection of {n_row} rows has {expected} bytes, got {len(bits)}")
    chosen = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little").astype(np.bool_)
    # Bits past the end tell that the page shows another catalogue than the server holds.
    if chosen[n_row:].any():
        raise ValueError("the selection has rows past the end of the catalogue")
    return chosen[:n_row]


def write_rows(catalogue: StoredCatalogue, chosen: BoolArray, path: Path) -> None:
    """Write some rows of a catalogue, all columns and metadata, as a catalogue of its own.

    Parameters
    ----------
    catalogue : StoredCatalogue
    chosen : (n_row,) bool
        Rows that are written.
    path : Path
        Its suffix names the format; replaced if it exists.

    Raises
    ------
    OutputError
        If the format cannot hold a name or a value.
    """
    try:
        # The catalogue's own writer, so that a selection has its units, descriptions and UCDs.
        write_stored(catalogue.selected(chosen), path, overwrite=True)
    except (ValueError, TypeError) as error:
        raise OutputError(
            f"a selection cannot be written as {path.suffix}: {error}; choose another format"
        ) from error
