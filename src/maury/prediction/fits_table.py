"""FITS tables of catalogues: written and read in blocks."""

import io
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from maury.errors import InputFileError, printable
from maury.io.arrays import AnyArray, numpy_array
from maury.io.opening import open_fits
from maury.io.units import described, written
from maury.labels.columns import Column
from maury.prediction import votable
from maury.prediction.stored import BLOCK_ROWS, StoredCatalogue, arrow_table, kind_of_values

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 2880
"""Bytes of a block of a FITS file (FITS standard 4.0, section 3.1)."""
_CODES = {"float64": "D", "int32": "J", "int64": "K", "bool": "L"}
# FITS is big-endian, and a logical is the letter T or F in one byte (standard 4.0, section 7.3).
_FORMS = {"float64": ">f8", "int32": ">i4", "int64": ">i8", "bool": "S1"}


def write_fits(path: Path, catalogue: StoredCatalogue) -> None:
    """Write a binary table block by block: only one is in memory."""
    widths = _string_widths(catalogue)
    forms = [_FORMS.get(c.kind) or f"S{widths[c.name]}" for c in catalogue.columns]
    record = np.dtype([(c.name, form) for c, form in zip(catalogue.columns, forms, strict=True)])
    with path.open("wb") as file:
        file.write(_primary_header(catalogue))
        file.write(_table_header(catalogue, record))
        for data in catalogue.blocks():
            rows = np.empty(len(data), dtype=record)
            for column in catalogue.columns:
                rows[column.name] = _fits_values(data[column.name], column.kind)
            file.write(rows.tobytes())
        # A data unit is filled up to whole blocks, else readers call the file truncated.
        file.write(b"\0" * (-len(catalogue) * record.itemsize % _BLOCK))


def open_catalogue(path: Path) -> StoredCatalogue:
    """Open a catalogue in FITS; its rows are read in blocks."""
    with ExitStack() as stack:
        hdus = open_fits(path, stack)
        lines = [str(line) for line in hdus[0].header.get("HISTORY", [])]
        text = "".join(line[6:].removesuffix("|") for line in lines if line.startswith("maury:"))
        if not text or len(hdus) < 2:
            raise InputFileError(f"{path} is a FITS file, but not a catalogue written by maury")
        header = hdus[1].header.copy()
        first = _rows(hdus[1], header, 0, 0)
        columns = tuple(
            _column(header, number, first[name], path)
            for number, name in enumerate(first.columns.names, start=1)
        )
    n_row = int(header["NAXIS2"])

    def read(names: list[str], start: int) -> "Iterator[pa.Table]":
        with ExitStack() as stack:
            hdu = open_fits(path, stack)[1]
            for place in range(start, n_row, BLOCK_ROWS):
                rows = _rows(hdu, header, place, min(place + BLOCK_ROWS, n_row))
                yield arrow_table({name: _text(rows[name]) for name in names})

    return StoredCatalogue(path, columns, json.loads(text), n_row, read)


def _rows(hdu: Any, header: Any, start: int, stop: int) -> Any:
    """Return some rows of a table, as astropy reads a file that has no others."""
    from astropy.io import fits

    # Mapped into memory, a column would take that of the whole file, whose rows lie together.
    place, width = hdu.fileinfo(), int(header["NAXIS1"])
    place["file"].seek(place["datLoc"] + start * width)
    data = place["file"].read((stop - start) * width)
    head = header.copy()
    head["NAXIS2"] = stop - start
    # Arrays of variable length lie behind the rows; a catalogue has none.
    head["PCOUNT"] = 0
    primary = fits.PrimaryHDU().header.tostring()
    whole = (primary + head.tostring()).encode("ascii") + data + b"\0" * (-len(data) % _BLOCK)
    return fits.open(io.BytesIO(whole))[1].data


def _column(header: Any, number: int, values: AnyArray, path: Path) -> Column:
    name = str(header[f"TTYPE{number}"])
    if str(header[f"TFORM{number}"]).lstrip("0123456789")[:1] in ("P", "Q"):
        raise InputFileError(
            f"{path}, column {name!r} holds lists of any length, which are not read in a "
            "catalogue; take it out"
        )
    unit, words = described(header.get(f"TUNIT{number}"), header.get(f"TCOMM{number}", ""))
    ucd = str(header.get(f"TUCD{number}", ""))
    return Column(name, _unit(unit), ucd, words, kind_of_values(np.asarray(values)))


def _unit(text: str | None) -> str:
    from astropy import units

    return str(units.Unit(text, parse_strict="silent")) if text else ""


def _text(values: AnyArray) -> AnyArray:
    """Return a column as it was before it was written; numbers as they are."""
    if values.dtype.kind not in "SU":
        return np.asarray(values)
    escaped = np.char.encode(np.asarray(values).astype(np.str_), "ascii")
    return np.char.decode(escaped, "unicode_escape")


def _string_widths(catalogue: StoredCatalogue) -> dict[str, int]:
    """Longest string of each column of strings, at least 1, as FITS encodes it."""
    names = [column.name for column in catalogue.columns if column.kind == "str"]
    widths = dict.fromkeys(names, 1)
    for data in catalogue.blocks(names) if names else ():
        for name in names:
            widths[name] = max(widths[name], _fits_text(data[name]).itemsize)
    return widths


def _fits_values(values: Any, kind: str) -> AnyArray:
    """Return an arrow column as FITS has it, but for the order of bytes."""
    if kind == "str":
        return _fits_text(values)
    if kind == "bool":
        return np.where(numpy_array(values), b"T", b"F")
    return numpy_array(values)


def _fits_text(values: Any) -> NDArray[np.bytes_]:
    """Encode an arrow column of strings for FITS: what is not ASCII is a backslash escape."""
    import pyarrow.compute as pc

    text = numpy_array(values)
    plain = pc.all(pc.string_is_ascii(values)).as_py()
    # A backslash in plain text would be taken for an escape when it is read, so that it is escaped
    # as well.
    if plain is not False and not pc.any(pc.match_substring(values, "\\")).as_py():
        return np.asarray(text.astype(np.bytes_))
    return np.asarray(np.char.encode(text, "unicode_escape"))


def _table_header(catalogue: StoredCatalogue, record: np.dtype[Any]) -> bytes:
    """Return the header of the binary table of rows of the type `record`."""
    from astropy.io import fits

    # Card by card, as section 7.3 of the standard has them: astropy's tables take .2 s to import.
    header = fits.Header(
        [
            ("XTENSION", "BINTABLE", "binary table extension"),
            ("BITPIX", 8, "array data type"),
            ("NAXIS", 2, "number of array dimensions"),
            ("NAXIS1", record.itemsize, "length of dimension 1"),
            ("NAXIS2", len(catalogue), "length of dimension 2"),
            ("PCOUNT", 0, "number of group parameters"),
            ("GCOUNT", 1, "number of groups"),
            ("TFIELDS", len(catalogue.columns), "number of table fields"),
        ]
    )
    for number, column in enumerate(catalogue.columns, start=1):
        header[f"TTYPE{number}"] = column.name
        width = record[column.name].itemsize
        header[f"TFORM{number}"] = _CODES.get(column.kind) or f"{width}A"
        if column.kind in votable.NULLS:
            header[f"TNULL{number}"] = votable.NULLS[column.kind]
        if unit := written(column.unit, "fits")[0]:
            header[f"TUNIT{number}"] = unit
    header["EXTNAME"] = ("LABELS", "extension name")
    header["SIMULATE"] = _simulated_card(catalogue)
    for number, column in enumerate(catalogue.columns, start=1):
        header[f"TUCD{number}"] = column.ucd
        header[f"TCOMM{number}"] = column.description + written(column.unit, "fits")[1]
    for line in _told_to_astropy(catalogue):
        header.add_comment(line)
    return bytes(header.tostring().encode("ascii"))


def _told_to_astropy(catalogue: StoredCatalogue) -> Iterator[str]:
    """Yield comments from which `astropy.table.Table.read` takes descriptions, not from TCOMM."""
    about = [{"name": one.name, "description": one.description} for one in catalogue.columns]
    # JSON is YAML, which astropy expects: no more than this of it is needed.
    # Older versions of astropy do not go without the empty list of columns of other classes.
    meta: dict[str, Any] = {"__serialized_columns__": {}}
    text = json.dumps({"datatype": about, "meta": meta}, ensure_ascii=True)
    yield "--BEGIN-ASTROPY-SERIALIZED-COLUMNS--"
    for first in range(0, len(text), 70):
        rest = text[first:]
        # Lines of 70 characters; a backslash behind them says that the text goes on.
        yield rest[:70] + ("\\" if len(rest) > 70 else "")
    yield "--END-ASTROPY-SERIALIZED-COLUMNS--"


def _primary_header(catalogue: StoredCatalogue) -> bytes:
    from astropy.io import fits

    header = fits.PrimaryHDU().header
    header["ORIGIN"] = ("maury", "program that wrote this file")
    header["SIMULATE"] = _simulated_card(catalogue)
    for name, about in catalogue.metadata.get("flags", {}).items():
        kind = "warns" if about["warns"] else "informs"
        comment = f"flags bit {about['bit']} ({kind}) {name}: {about['text']}"
        # A card holds printable ASCII, without the end of a line.
        comment = printable(" ".join(comment.split()))
        header.add_comment(comment.encode("ascii", "backslashreplace").decode("ascii"))
    text = json.dumps(dict(catalogue.metadata), ensure_ascii=True)
    # A HISTORY card holds 72 characters, of which trailing blanks are lost: hence the bar at its
    # end.
    for first in range(0, len(text), 60):
        header.add_history("maury:" + text[first : first + 60] + "|")
    return bytes(header.tostring().encode("ascii"))


def _simulated_card(catalogue: StoredCatalogue) -> tuple[bool, str]:
    return catalogue.simulated, "whether the spectra are simulated"
