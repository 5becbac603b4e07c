"""Tables of many formats, by one interface: column names, numbers, texts."""

import csv
import io
import logging
from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, InputFileError
from maury.io.ecsv_guard import check_ecsv, parse_ecsv
from maury.io.fits_values import column
from maury.io.limits import check_columns, check_unfolded, current, exceeded
from maury.io.opening import (
    encoding_of,
    find_hdu,
    header_lines,
    open_fits,
    open_unpacked,
    reading,
)
from maury.io.parquet import ColumnSize, check_pages, column_sizes
from maury.io.source_table import SourceTable, _is_text
from maury.io.text_tables import PARTED, first_lines, read_spaced
from maury.io.votable_guard import check_votable

logger = logging.getLogger(__name__)

TABLE_SUFFIXES: Mapping[str, str] = {
    ".fits": "fits",
    ".fit": "fits",
    ".fits.gz": "fits",
    ".fit.gz": "fits",
    ".fits.fz": "fits",
    ".vot": "votable",
    ".xml": "votable",
    ".votable": "votable",
    ".ecsv": "ecsv",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".tab": "text",
    ".dat": "text",
    ".txt": "text",
    ".asc": "text",
    ".parquet": "parquet",
    ".pq": "parquet",
}


def table_format(path: Path) -> str:
    """Return the format that the suffix of `path` tells.

    Raises
    ------
    InputFileError
        If the suffix is of no known table format.
    """
    name = path.name.lower()
    for suffix in sorted(TABLE_SUFFIXES, key=len, reverse=True):
        if name.endswith(suffix):
            return TABLE_SUFFIXES[suffix]
    raise InputFileError(
        f"{path} has no suffix of a known table format ({', '.join(TABLE_SUFFIXES)}); rename it"
    )


def open_table(path: Path, stack: ExitStack, *, hdu: int | str | None = None) -> SourceTable:
    """Open a FITS, VOTable, ECSV, CSV, TSV, Parquet or text table until `stack` closes.

    Texts (``.dat``, ``.txt``, ``.tab``, ``.asc``) have a line of names, and cells with blanks, or
    with what parts CSV files, between them.

    Parameters
    ----------
    path : Path
        Its suffix tells the format.
    stack : ExitStack
        Closes the file.
    hdu : int or str, optional
        Which HDU of a FITS file; the first table by default.

    Raises
    ------
    InputFileError
        If the file is missing or damaged, or has no rows.
    ColumnError
        If two columns have one name.
    """
    kind = table_format(path)
    with reading(path):
        if kind == "fits":
            table = fits_table(
                find_hdu(open_fits(path, stack, memmap=True), hdu, path, image=False), path
            )
        elif kind == "csv" or (kind == "text" and _is_parted(path)):
            table = _csv_table(path, stack)
        elif kind == "text":
            table = _spaced_table(path)
        elif kind == "parquet":
            table = _parquet_table(path, stack)
        else:
            table = astropy_table(read_votable(path) if kind == "votable" else _ecsv(path), path)
    check_columns(table.names, path)
    twice = sorted(name for name, count in Counter(table.names).items() if count > 1)
    if twice:
        raise ColumnError(f"{path} has more than one column named {twice[0]!r:.90}; rename one")
    if max(map(len, table.names), default=0) > current().text_characters:
        raise exceeded(path, "has a column with a name that is too long", "text_characters")
    if table.n_row > current().rows:
        raise exceeded(path, f"promises {table.n_row} rows", "rows")
    # A column of numbers takes 8 bytes a row, whatever the few bytes of a packed file say.
    check_unfolded(8 * table.n_row, path)
    if table.n_row == 0:
        raise InputFileError(f"{path} has no rows; give a table with at least one")
    return table


def fits_table(hdu: Any, path: Path) -> SourceTable:
    """Wrap a FITS binary table."""
    # A column without a name (TTYPE) cannot be asked for.
    columns = [column for column in hdu.columns if column.name]
    units = {c.name: str(c.unit) for c in columns if c.unit}
    n_row = int(hdu.header["NAXIS2"])
    return SourceTable(
        path, tuple(str(c.name) for c in columns), n_row, units, partial(column, hdu)
    )


def astropy_table(table: Any, path: Path) -> SourceTable:
    """Wrap an astropy table in memory."""
    from astropy.table import Column

    def raw(name: str) -> Any:
        column = table[name]
        if not isinstance(column, Column):
            raise ColumnError(f"{path}, column {name!r}: {type(column).__name__} is not supported")
        return np.ma.asanyarray(column)

    units = {
        name: str(table[name].unit) for name in table.colnames if getattr(table[name], "unit", None)
    }
    return SourceTable(path, tuple(table.colnames), len(table), units, raw)


def parse_votable(path: Path) -> list[Any]:
    """Return the tables of a VOTable, as `astropy.io.votable` has them.

    Raises
    ------
    InputFileError
        As of `maury.io.votable_guard.check_votable`, or if it is damaged.
    """
    from astropy.io import votable

    check_votable(path)
    # An open file, for astropy asks another machine for a name that looks like an address.
    with reading(path), path.open("rb") as stream:
        return list(votable.parse(stream, verify="ignore").iter_tables())


def read_votable(path: Path) -> Any:
    """Read the first table of a VOTable into an astropy table."""
    tables = parse_votable(path)
    if not tables:
        raise InputFileError(f"{path} holds no table; state the right file")
    if len(tables) > 1:
        logger.warning("%s holds %d tables; the first is read", path, len(tables))
    with reading(path):
        return tables[0].to_table(use_names_over_ids=True)


def _ecsv(path: Path) -> Any:
    check_ecsv(path)
    return parse_ecsv(path.read_text("utf-8"))


def _parquet_table(path: Path, stack: ExitStack) -> SourceTable:
    sizes = column_sizes(path)
    file = open_parquet(path, stack)
    names = tuple(file.schema_arrow.names)
    texts = [field.name for field in file.schema_arrow if _is_text(field.type)]
    # As words of a dictionary, a text that stands in every row is in memory once.
    lean = open_parquet(path, stack, dictionaries=texts) if texts else file
    units = {
        field.name: field.metadata[b"unit"].decode()
        for field in file.schema_arrow
        if field.metadata and b"unit" in field.metadata
    }

    def raw(name: str) -> Any:
        check_parquet_column(sizes, name, path)
        check_pages(path, [name])
        return lean.read([name])[name]

    return SourceTable(path, names, file.metadata.num_rows, units, raw)


def write_ecsv(path: Path, table: Any, *, delimiter: str = " ") -> None:
    """Write an astropy table as ECSV, which is UTF-8 by its standard (APE 6), in any locale."""
    with path.open("w", encoding="utf-8", newline="") as file:
        table.write(file, format="ascii.ecsv", delimiter=delimiter)


def open_parquet(path: Path, stack: ExitStack, *, dictionaries: Any = None) -> Any:
    """Open a Parquet file until `stack` closes; its metadata may hold so many columns at most."""
    from pyarrow import parquet

    file = stack.enter_context(path.open("rb"))
    return stack.enter_context(
        parquet.ParquetFile(
            file,
            read_dictionary=dictionaries,
            thrift_container_size_limit=64 * current().columns,
            thrift_string_size_limit=16 * current().head_bytes,
        )
    )


def check_parquet_column(sizes: Mapping[str, ColumnSize], name: str, path: Path) -> None:
    """Refuse a column that unfolds to absurdly many bytes in memory."""
    size = sizes.get(name, ColumnSize(0, 0))
    check_unfolded(max(8 * size.n_value, size.n_byte), path)


def _csv_table(path: Path, stack: ExitStack) -> SourceTable:
    """Read a CSV file as text: identifiers keep their leading zeros, blanks go later.

    It may be gzipped, and begin with comments, as those of the Gaia archive do.
    """
    encoding = encoding_of(path)
    names, delimiter, n_head = _csv_header(path, encoding)
    check_columns(names, path)
    table = None
    # A comma at the end of each row is one more cell, without a name and empty.
    for extra in (0, 1):
        try:
            shape = (n_head, len(names) + extra)
            table = _arrow_csv(open_unpacked(path, stack), shape, delimiter, encoding)
            break
        except ValueError as error:
            if extra or f"Expected {len(names)} columns, got {len(names) + 1}" not in str(error):
                raise
    assert table is not None
    for number in [k for k, name in enumerate(names) if not name] + [len(names)]:
        if number < table.num_columns and _has_text(table.column(number)):
            raise InputFileError(
                f"{path}: column {number + 1} has values and no name in the header; name it"
            )
    place = {name: number for number, name in enumerate(names)}
    known = tuple(name for name in names if name)
    return SourceTable(path, known, table.num_rows, {}, lambda name: table.column(place[name]))


def _spaced_table(path: Path) -> SourceTable:
    import pyarrow as pa

    names, columns = read_spaced(path)
    # As texts, as CSV files are read: what numbers are is settled in one place.
    cells = {
        name: pa.array(column, pa.string()) for name, column in zip(names, columns, strict=False)
    }
    n_row = len(columns[0]) if columns else 0
    return SourceTable(path, names, n_row, {}, lambda name: pa.chunked_array([cells[name]]))


def _is_parted(path: Path) -> bool:
    """Whether commas and the like part the cells of a text."""
    _, first = first_lines(path)
    return any(letter in first for letter in PARTED)


def _csv_header(path: Path, encoding: str) -> tuple[tuple[str, ...], str, int]:
    """Return the names of a CSV file's columns, what stands between its cells, and lines so far."""
    with path.open("rb") as file:
        if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
            raise InputFileError(f"{path} is in UTF-16; save it in UTF-8")
    with ExitStack() as stack:
        stream = io.TextIOWrapper(open_unpacked(path, stack), encoding=encoding, newline="")
        head, lines = header_lines(stream, path), list[str]()
        n_head = 1
        for line in head:
            if line.startswith("#") or (n_head > 1 and not line.strip()):
                n_head += 1
                continue
            lines = [line]
            break
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        # Spreadsheets write what the country has for lists.
        if lines and delimiter not in lines[0]:
            delimiter = max(";\t|,", key=lines[0].count)
        rest = header_lines(stream, path)
        header = next(csv.reader(chain(lines, rest), delimiter=delimiter, strict=True), [])
    return tuple(name.strip() for name in header), delimiter, n_head


def _arrow_csv(stream: Any, shape: tuple[int, int], delimiter: str, encoding: str) -> Any:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    n_head, n_column = shape
    names = [str(k) for k in range(n_column)]
    return arrow_csv.read_csv(
        stream,
        read_options=arrow_csv.ReadOptions(
            skip_rows=n_head, column_names=names, encoding=encoding.removesuffix("-sig")
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=delimiter,
            invalid_row_handler=lambda row: "skip" if row.text.startswith("#") else "error",
        ),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string())),
    )


def _has_text(column: Any) -> bool:
    from pyarrow import compute

    return bool(compute.any(compute.not_equal(compute.utf8_trim_whitespace(column), "")).as_py())
