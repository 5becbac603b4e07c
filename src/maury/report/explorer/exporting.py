"""Selections: what the browser sends of them, and files that hold exactly their rows."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maury.errors import OutputError
from maury.io.arrays import AnyArray, Int64Array
from maury.labels.columns import Column, kind_of
from maury.prediction.catalogue import Catalogue, CatalogueSpec, assemble, write_part

FORMATS: Mapping[str, tuple[str, str]] = {
    "fits": (".fits", "application/fits"),
    "votable": (".vot", "application/x-votable+xml"),
    "parquet": (".parquet", "application/vnd.apache.parquet"),
}
"""Suffix and media type of the formats of a download."""


def selected_rows(bits: bytes, n_row: int) -> Int64Array:
    """Return the row numbers of a selection.

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
    chosen = np.unpackbits(np.frombuffer(bits, np.uint8), bitorder="little")
    # Bits past the end tell that the page shows another catalogue than the server holds.
    if chosen[n_row:].any():
        raise ValueError("the selection has rows past the end of the catalogue")
    return np.flatnonzero(chosen[:n_row])


def write_rows(catalogue: Catalogue, rows: Int64Array, path: Path) -> None:
    """Write some rows of a catalogue, all columns and metadata, as a catalogue of its own.

    Parameters
    ----------
    catalogue : Catalogue
    rows : (n,) int64
        In the order in which they are written.
    path : Path
        Its suffix names the format; replaced if it exists.

    Raises
    ------
    OutputError
        If the format cannot hold a name or a value.
    """
    table = catalogue.table
    metadata = {**catalogue.metadata, "selection": {"rows": len(rows), "of": len(catalogue)}}
    spec = CatalogueSpec(tuple(_column(table[name]) for name in table.colnames), metadata)
    values = {c.name: _native(np.asarray(table[c.name])[rows], c.kind) for c in spec.columns}
    # The catalogue's own writer, so that a selection has its units, descriptions and UCDs.
    with TemporaryDirectory(dir=path.parent) as directory:
        part = Path(directory) / "rows.parquet"
        try:
            write_part(part, spec, values)
            assemble([part], path, spec=spec, overwrite=True)
        except (ValueError, TypeError) as error:
            raise OutputError(
                f"a selection cannot be written as {path.suffix}: {error}; choose another format"
            ) from error


def _column(column: Any) -> Column:
    return Column(
        str(column.name),
        str(column.unit or ""),
        str(column.meta.get("ucd", "")),
        str(column.description or ""),
        kind_of(column.dtype),
    )


def _native(values: AnyArray, kind: str) -> AnyArray:
    """Return values in the byte order of this machine, which Arrow asks for."""
    if kind == "str":
        return values.astype(np.str_)
    return values.astype(values.dtype.newbyteorder("="), copy=False)
