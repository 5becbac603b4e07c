"""Tables of many formats, by one interface: column names, numbers, texts."""

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maury.errors import ColumnError, IdentifierError, InputFileError
from maury.limits import check_columns, check_unfolded, current, exceeded
from maury.naming import suggestion
from maury.readers.footers import ColumnSize, column_sizes
from maury.readers.guards import check_ecsv, header_lines
from maury.readers.opening import check_votable, find_hdu, open_fits, reading

TABLE_SUFFIXES: Mapping[str, str] = {
    ".fits": "fits",
    ".fit": "fits",
    ".fits.gz": "fits",
    ".vot": "votable",
    ".xml": "votable",
    ".votable": "votable",
    ".ecsv": "ecsv",
    ".csv": "csv",
    ".csv.gz": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
}
_MISSING_TEXT = ("", "NA", "N/A", "null", "NULL", "None", "--", "-", "masked")
_NO_ARRAY = (*_MISSING_TEXT, "NaN", "nan", "[]", "()")
_LARGEST_EXACT = 2.0**53


@dataclass(frozen=True)
class SourceTable:
    """An open table; columns are read when they are asked for.

    Attributes
    ----------
    path : Path
        Its file.
    names : tuple of str
        Column names.
    n_row : int
        Number of rows, at least 1.
    units : mapping of str to str
        Units that the file states.
    raw : callable
        ``raw(name)`` is the column as its format gives it.
    """

    path: Path
    names: tuple[str, ...]
    n_row: int
    units: Mapping[str, str]
    raw: Callable[[str], Any]

    def check(self, name: str) -> str:
        """Return `name` if the table has such a column.

        Raises
        ------
        ColumnError
            With the nearest name.
        """
        if name not in self.names:
            raise ColumnError(
                f"{self.path} has no column {name!r}{suggestion(name, self.names)} "
                f"(it has {', '.join(self.names[:40])})"
            )
        return name

    @classmethod
    def of_arrays(cls, path: Path, arrays: Mapping[str, Any]) -> Self:
        """Wrap arrays in memory, of one length; `path` names them in messages."""
        n_row = len(next(iter(arrays.values())))
        return cls(path, tuple(arrays), n_row, {}, lambda name: np.ma.asanyarray(arrays[name]))

    def floats(self, name: str, *, index: int | None = None) -> NDArray[np.float64]:
        """Return a column of numbers, shape (n_row,) float64, NaN where missing.

        Parameters
        ----------
        name : str
            The column.
        index : int, optional
            Which element (from 0) of a column that holds a vector a row.

        Raises
        ------
        ColumnError
            If it does not exist, or holds something else than one number a row.
        """
        with reading(self.path):
            values = self._element(self.raw(self.check(name)), name, index)
            what = f"{self.path}, column {name!r}"
            return _arrow_floats(values, what) if _is_arrow(values) else _floats(values, what)

    def vectors(self, name: str, size: int) -> NDArray[np.float64]:
        """Return a column of arrays, shape (n_row, size) float64, NaN where missing.

        In a text table an array is written ``[0.1,0.2]`` or ``(0.1,0.2)``.

        Raises
        ------
        ColumnError
            If it does not exist, or an array has neither `size` values nor none.
        """
        with reading(self.path):
            values = self.raw(self.check(name))
            return _vectors(values, size, f"{self.path}, column {name!r}")

    def plain(self, name: str, *, index: int | None = None) -> Any:
        """Return a column as a masked array of numbers, truth values or texts, shape (n_row,).

        Integers stay integers; texts are free of blanks around them. A text table, which has no
        types, gives numbers where every value is one.

        Raises
        ------
        ColumnError
            As of `floats`.
        """
        with reading(self.path):
            values = self._element(self.raw(self.check(name)), name, index)
            what = f"{self.path}, column {name!r}"
            return _plain(values, what)

    def _element(self, values: Any, name: str, index: int | None) -> Any:
        if index is None:
            return values
        if _is_arrow(values):
            import pyarrow as pa
            from pyarrow import compute

            kind = values.type
            if pa.types.is_dictionary(kind) or not hasattr(kind, "value_type"):
                raise ColumnError(
                    f"{self.path}, column {name!r} holds one value a row; leave out 'index'"
                )
            lengths = compute.min(compute.list_value_length(values)).as_py()
            if index >= (lengths or 0):
                raise ColumnError(
                    f"{self.path}, column {name!r} has no element {index} in each row"
                )
            return compute.list_element(values, index)
        if values.ndim != 2 or index >= values.shape[1]:
            raise ColumnError(
                f"{self.path}, column {name!r} has shape {values.shape[1:]} a row, which has no "
                f"element {index}; correct 'index'"
            )
        return values[:, index]

    def texts(self, name: str) -> NDArray[np.str_]:
        """Return a column as text without blanks around it, shape (n_row,), empty where missing.

        Raises
        ------
        ColumnError
            If it does not exist, or holds something else than one value a row.
        IdentifierError
            If it holds numbers with fractions, or too large to be exact.
        """
        with reading(self.path):
            values = self.raw(self.check(name))
            what = f"{self.path}, column {name!r}"
            return _arrow_texts(values, what) if _is_arrow(values) else _texts(values, what)


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
    """Open a FITS, VOTable, ECSV, CSV, TSV or Parquet table until `stack` closes.

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
        elif kind == "csv":
            table = _commented_csv(path) if _has_comments(path) else _csv_table(path)
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
    check_unfolded(8 * table.n_row, path)
    if table.n_row == 0:
        raise InputFileError(f"{path} has no rows; give a table with at least one")
    return table


def fits_table(hdu: Any, path: Path) -> SourceTable:
    """Wrap a FITS binary table."""
    # A column without a name (TTYPE) cannot be asked for.
    columns = [column for column in hdu.columns if column.name]
    nulls = {c.name: c.null for c in columns if c.null is not None}

    def raw(name: str) -> Any:
        values = np.asarray(hdu.data[name])
        if name in nulls:
            return np.ma.masked_array(values, mask=values == nulls[name])
        return values

    units = {c.name: str(c.unit) for c in columns if c.unit}
    n_row = int(hdu.header["NAXIS2"])
    return SourceTable(path, tuple(str(c.name) for c in columns), n_row, units, raw)


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


def read_votable(path: Path) -> Any:
    """Read the first table of a VOTable into an astropy table."""
    from astropy.io import votable

    check_votable(path)
    with reading(path):
        parsed = votable.parse(str(path), verify="ignore").get_first_table()
        return parsed.to_table(use_names_over_ids=True)


def _ecsv(path: Path) -> Any:
    from astropy.table import Table

    check_ecsv(path)
    return Table.read(str(path), format="ascii.ecsv")


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
        return lean.read([name])[name]

    return SourceTable(path, names, file.metadata.num_rows, units, raw)


def open_parquet(path: Path, stack: ExitStack, *, dictionaries: Any = None) -> Any:
    """Open a Parquet file until `stack` closes; its metadata may hold so many columns at most."""
    from pyarrow import parquet

    return stack.enter_context(
        parquet.ParquetFile(
            path,
            read_dictionary=dictionaries,
            thrift_container_size_limit=64 * current().columns,
            thrift_string_size_limit=16 * current().head_bytes,
        )
    )


def check_parquet_column(sizes: Mapping[str, ColumnSize], name: str, path: Path) -> None:
    """Refuse a column that unfolds to absurdly many bytes in memory."""
    size = sizes.get(name, ColumnSize(0, 0))
    check_unfolded(max(8 * size.n_value, size.n_byte), path)


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _csv_table(path: Path) -> SourceTable:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", newline="") as stream:
        header = next(csv.reader(header_lines(stream, path), delimiter=delimiter, strict=True), [])
    names = tuple(name.strip() for name in header)
    check_columns(names, path)
    # Everything is read as text: identifiers keep their leading zeros, and blanks are stripped
    # before numbers are parsed.
    table = arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            skip_rows=1, column_names=[str(k) for k in range(len(names))]
        ),
        parse_options=arrow_csv.ParseOptions(delimiter=delimiter),
        convert_options=arrow_csv.ConvertOptions(
            column_types={str(k): pa.string() for k in range(len(names))}
        ),
    )
    return SourceTable(
        path, names, table.num_rows, {}, lambda name: table.column(names.index(name))
    )


def _has_comments(path: Path) -> bool:
    """Whether a CSV file is packed, or begins with comments, as those of the Gaia archive."""
    with path.open("rb") as stream:
        head = stream.read(2)
    return head == b"\x1f\x8b" or head[:1] == b"#"


def _commented_csv(path: Path) -> SourceTable:
    from maury.readers.textarrays import ArrayCsv

    return ArrayCsv(path, ()).table


def _is_arrow(values: Any) -> bool:
    return type(values).__module__.startswith("pyarrow")


def _arrow_floats(values: Any, what: str) -> NDArray[np.float64]:
    import pyarrow as pa
    from pyarrow import compute

    values = _short(values, what)
    kind = values.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind):
        text = compute.utf8_trim_whitespace(values.cast(pa.string()))
        missing = compute.is_in(text, pa.array(_MISSING_TEXT))
        values = compute.if_else(missing, None, text)
    elif not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_boolean(kind)
    ):
        raise ColumnError(f"{what} must hold one number a row, got {kind}")
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    try:
        # An unsafe cast rounds integers beyond 2^53, as every other format does.
        numbers = values.cast(pa.float64(), safe=False)
    except pa.ArrowInvalid as error:
        raise ColumnError(f"{what} must hold numbers: {error}; correct the file") from error
    return np.array(numbers.to_numpy(), dtype=np.float64)


def _arrow_texts(values: Any, what: str) -> NDArray[np.str_]:
    import pyarrow as pa
    from pyarrow import compute

    values = _short(values, what)
    kind = values.type
    if pa.types.is_floating(kind):
        return _texts(values.to_numpy(), what)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ColumnError(f"{what} must hold one text a row, got {kind}")
    text = compute.utf8_trim_whitespace(compute.fill_null(values.cast(pa.string()), ""))
    return np.array(text.to_numpy(), dtype=np.str_)


def _short(values: Any, what: str) -> Any:
    """Return arrow values without dictionary, if no text is too long for an identifier.

    Columns of text become as wide as their longest one.
    """
    import pyarrow as pa

    kind = values.type
    encoded = pa.types.is_dictionary(kind)
    if not (encoded or _is_text(kind)):
        return values
    check_text_width(values, what)
    return values.cast(kind.value_type) if encoded else values


def check_text_width(values: Any, what: str) -> None:
    """Refuse an arrow column that holds a text too long for a name or an identifier."""
    from pyarrow import compute

    for chunk in getattr(values, "chunks", [values]):
        words = getattr(chunk, "dictionary", chunk)
        if _is_text(words.type):
            _check_width(compute.max(compute.binary_length(words)).as_py() or 0, what)


def _check_width(longest: int, what: str) -> None:
    if longest > current().text_characters:
        raise exceeded(what, f"holds a text of {longest} bytes", "text_characters")


def _floats(values: Any, what: str) -> NDArray[np.float64]:
    import pyarrow as pa

    _one_a_row(values, what)
    if values.dtype.kind in "SUO":
        return _arrow_floats(pa.chunked_array([pa.array(_texts(values, what))]), what)
    if values.dtype.kind not in "fiub":
        raise ColumnError(f"{what} must hold numbers, got {values.dtype}")
    mask = np.ma.getmaskarray(values)
    return np.where(mask, np.nan, np.ma.getdata(values).astype(np.float64))


def _texts(values: Any, what: str) -> NDArray[np.str_]:
    _one_a_row(values, what)
    mask = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    kind = data.dtype.kind
    if kind == "f":
        known = np.isfinite(data) & ~mask
        exact = np.where(known, data, 0.0)
        if np.any(exact != np.floor(exact)) or np.any(np.abs(exact) >= _LARGEST_EXACT):
            raise IdentifierError(
                f"{what}: identifiers are stored as floating-point numbers and have lost digits; "
                "store them as integers or text"
            )
        data, mask = exact.astype(np.int64), ~known
    elif kind == "O" and not all(isinstance(value, str | bytes) for value in data[~mask]):
        raise ColumnError(f"{what} holds objects, which are refused; store text or numbers")
    elif kind not in "SUOiu":
        raise ColumnError(f"{what} must hold text or whole numbers, got {data.dtype}")
    if kind in "SU":
        _check_width(data.dtype.itemsize // (4 if kind == "U" else 1), what)
    elif kind == "O":
        _check_width(max(map(len, data[~mask]), default=0), what)
    text = np.array([_decoded(v) for v in data], np.str_) if kind in "OS" else data.astype(np.str_)
    return np.char.strip(np.where(mask, "", text))


def _vectors(values: Any, size: int, what: str) -> NDArray[np.float64]:
    rows = values.to_pylist() if _is_arrow(values) else values
    out = np.full((len(rows), size), np.nan)
    for number, row in enumerate(rows):
        array = _one_vector(row, what)
        if array.size not in (0, size):
            raise ColumnError(
                f"{what} has {array.size} values in row {number}, expected {size}; correct 'size'"
            )
        if array.size:
            out[number] = array
    return out


def _one_vector(row: Any, what: str) -> NDArray[np.float64]:
    if row is None or row is np.ma.masked:
        return np.empty(0)
    if isinstance(row, str | bytes):
        return parse_array(_decoded(row), what)
    if isinstance(row, list):
        row = [np.nan if value is None else value for value in row]
    array = np.ma.asanyarray(row)
    if array.ndim != 1 or array.dtype.kind not in "fiub":
        raise ColumnError(f"{what} must hold an array of numbers a row, got {array.dtype}")
    return np.asarray(np.ma.filled(array.astype(np.float64), np.nan))


def parse_array(text: str, what: str) -> NDArray[np.float64]:
    """Read an array written ``[0.1,0.2]`` or ``(0.1,0.2)``; a missing text has no values.

    Raises
    ------
    ColumnError
        If it is written otherwise; `what` names it.
    """
    text = text.strip()
    if text in _NO_ARRAY:
        return np.empty(0)
    if (text[0], text[-1]) not in (("[", "]"), ("(", ")")):
        raise ColumnError(f"{what}: expected arrays such as [0.1,0.2], got {text[:30]!r}")
    body = text[1:-1]
    values = _numbers_in(body.replace("null", "nan"))
    if values.size == body.count(",") + 1:
        return values
    words = [word.strip() for word in body.split(",")]
    try:
        return np.array(["nan" if w in _NO_ARRAY else w for w in words], dtype=np.float64)
    except ValueError as error:
        raise ColumnError(f"{what} must hold arrays of numbers: {error}") from error


def _numbers_in(text: str) -> NDArray[np.float64]:
    """Return numbers with commas between them, or fewer if one of them is none."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            return np.fromstring(text, dtype=np.float64, sep=",")
        except ValueError:
            return np.empty(0)


def _plain(values: Any, what: str) -> Any:
    if _is_arrow(values):
        import pyarrow as pa

        values = _short(values, what)
        kind = values.type
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind):
            null = np.array(values.is_null().to_numpy(zero_copy_only=False), dtype=np.bool_)
            filled = values.fill_null(False if pa.types.is_boolean(kind) else 0)
            return np.ma.masked_array(np.array(filled.to_numpy(zero_copy_only=False)), mask=null)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            text = _arrow_texts(values, what)
            return _numbers_of(np.ma.masked_array(text, mask=np.isin(text, _MISSING_TEXT)))
        return np.ma.masked_invalid(_arrow_floats(values, what))
    _one_a_row(values, what)
    if values.dtype.kind in "SUO":
        text = _texts(values, what)
        return np.ma.masked_array(text, mask=text == "")
    if values.dtype.kind not in "fiub":
        raise ColumnError(f"{what} must hold numbers or text, got {values.dtype}")
    data = values.astype(values.dtype.newbyteorder("="))
    return np.ma.masked_array(np.ma.getdata(data), mask=np.ma.getmaskarray(values))


def _numbers_of(text: Any) -> Any:
    """Turn texts that are all numbers into such; a masked array."""
    mask = np.ma.getmaskarray(text)
    words = np.char.lower(np.ma.getdata(text)[~mask])
    if words.size and np.isin(words, ("true", "false")).all():
        return np.ma.masked_array(np.char.lower(np.ma.getdata(text)) == "true", mask=mask)
    if any(len(word) > 1 and word.isdigit() and word[0] == "0" for word in np.unique(words)):
        # A code such as 000 is none of the numbers that it looks like.
        return text
    filled = np.where(mask, "0", np.ma.getdata(text))
    for kind in (np.int64, np.float64):
        try:
            return np.ma.masked_array(filled.astype(kind), mask=mask)
        except (ValueError, OverflowError):
            continue
    return text


def _decoded(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _one_a_row(values: Any, what: str) -> None:
    if values.ndim != 1:
        raise ColumnError(f"{what} must hold one value a row, got an array of {values.shape[1:]}")
