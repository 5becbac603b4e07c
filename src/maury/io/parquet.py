"""Parquet files: tables to and from pyarrow, and the footer, read here before the library reads it.

A footer is the only place that says how many values a column unfolds to. Asked for that, pyarrow
ends the process on some damaged footers where it should raise an error: `RowGroupMetaData.column`
throws through code that catches nothing (7 of 3000 random damages with pyarrow 26.0.1, 6 of 3000
with 20.0.0), while reading a column raises as it should. The footer is a structure of Thrift's
compact protocol.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from maury.errors import InputFileError
from maury.io.limits import check_unfolded, current, exceeded

if TYPE_CHECKING:
    import pyarrow as pa

_MAGIC = b"PAR1"
_BUFFER = 2**16
"""Bytes of a column that are read ahead; without, pyarrow reads a row group of it at once."""
_MOST_DEPTH = 24
"""Levels of structures, so that none ends the recursion. The format needs six: footer, element of
the schema, logical type, timestamp, its unit, its kind."""
# Types of values in the compact protocol, then numbers of the fields that are read.
_TRUE, _FALSE, _BYTE, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = 1, 2, 3, 7, 8, 9, 10, 11, 12
_ROW_GROUPS, _COLUMNS, _META, _PATH, _N_VALUES, _UNPACKED = 4, 1, 3, 3, 5, 6
_PACKED, _FIRST_DATA, _DICTIONARY = 7, 9, 11
_PAGE_UNPACKED, _PAGE_PACKED, _PAGE_HEADS = 2, 3, (5, 7, 8)
_PAGE_HEAD_BYTES = 2**16
"""Bytes in which the header of a page must end; it holds two values of the column for statistics,
which writers cut to some hundred bytes."""


# pyarrow encodes a path as UTF-8, and fails on one that the locale could not decode: it gets open
# files instead.


def read_table(path: Path, columns: list[str] | None = None) -> "pa.Table":
    """Read a file, or some of its columns, comparing the checksums of its pages.

    Raises
    ------
    OSError, ValueError
        If it is damaged.
    """
    from pyarrow import parquet

    with path.open("rb") as file:
        # Not `parquet.read_table`, which imports pyarrow.dataset, and that pandas.
        return parquet.ParquetFile(file, page_checksum_verification=True).read(columns)


def read_blocks(path: Path, columns: list[str], n_row: int, start: int = 0) -> "Iterator[pa.Table]":
    """Yield so many rows of some columns at a time, comparing the checksums of their pages.

    Row groups before that of row `start` are passed over.

    Memory holds a block and a page of each column, however large the row groups are, and however
    many. A block may have fewer rows where a row group ends.

    Raises
    ------
    InputFileError
        As of `check_pages`.
    OSError, ValueError
        If it is damaged.
    """
    import pyarrow as pa
    from pyarrow import parquet

    with (
        path.open("rb") as file,
        parquet.ParquetFile(file, page_checksum_verification=True, buffer_size=_BUFFER) as whole,
    ):
        about = whole.metadata
        sizes = [about.row_group(k).num_rows for k in range(about.num_row_groups)]
        ends = list(accumulate(sizes))
        first = bisect_right(ends, start)
        start -= ends[first - 1] if first else 0
        for groups in _runs(sizes, first, n_row):
            check_pages(path, columns, groups)
            # One run at a time: an iterator of pyarrow keeps some 200 kB of each column of each row
            # group that it has passed until its end (26.0.1).
            for batch in whole.iter_batches(n_row, columns=columns, row_groups=groups):
                if start < len(batch):
                    yield pa.Table.from_batches([batch[start:]])
                start = max(0, start - len(batch))


def _runs(sizes: Sequence[int], first: int, n_row: int) -> Iterator[list[int]]:
    """Yield consecutive row groups from the first on, as few as hold so many rows together."""
    run: list[int] = []
    for group in range(first, len(sizes)):
        run.append(group)
        if sum(sizes[k] for k in run) >= n_row:
            yield run
            run = []
    if run:
        yield run


def write_table(path: Path, table: "pa.Table") -> None:
    """Write a file, each page with its checksum."""
    from pyarrow import parquet

    with path.open("wb") as file:
        parquet.write_table(table, file, write_page_checksum=True)


def n_rows(path: Path) -> int:
    """Return how many rows a file has, by its footer."""
    from pyarrow import parquet

    with path.open("rb") as file:
        return int(parquet.read_metadata(file).num_rows)


@dataclass(frozen=True)
class ColumnSize:
    """How much a column holds, over all row groups.

    Attributes
    ----------
    n_value : int
        Values, those of its lists apart.
    n_byte : int
        Bytes of its pages, unpacked.
    """

    n_value: int
    n_byte: int


def column_sizes(path: Path) -> dict[str, ColumnSize]:
    """Return the size of each column of a Parquet file, by the first part of its name.

    Raises
    ------
    InputFileError
        If the file has no footer, or one that is damaged or absurdly large.
    """
    found: dict[str, ColumnSize] = {}
    for chunk in _chunks(path, _stamp(path)):
        before = found.get(chunk.name, ColumnSize(0, 0))
        found[chunk.name] = ColumnSize(before.n_value + chunk.n_value, before.n_byte + chunk.n_byte)
    return found


def check_pages(path: Path, names: Collection[str], groups: Collection[int] | None = None) -> None:
    """Compare what the headers of pages promise with the footer and the limits, before any is read.

    The library makes room for what a header says, up to 2 GiB for each.

    Parameters
    ----------
    path : Path
        File whose footer `column_sizes` takes.
    names : collection of str
        Columns, by the first part of their names.
    groups : collection of int, optional
        Row groups, all by default.

    Raises
    ------
    InputFileError
        If a page has a damaged header, reaches beyond its column, holds more values than the footer
        says, or the pages of a column unfold to absurdly many bytes.
    """
    wanted = set(names)
    unpacked: dict[str, int] = {}
    with path.open("rb") as stream:
        for chunk in _chunks(path, _stamp(path)):
            if chunk.name in wanted and (groups is None or chunk.group in groups):
                try:
                    n_byte = _pages(stream, chunk)
                except (ValueError, KeyError, IndexError, TypeError) as error:
                    raise InputFileError(
                        f"{path}, column {chunk.name!r:.90}: a page has a damaged header ({error})"
                    ) from error
                unpacked[chunk.name] = unpacked.get(chunk.name, 0) + n_byte
                check_unfolded(unpacked[chunk.name], path)


@dataclass(frozen=True)
class _Chunk:
    """A column in one row group: its values, its bytes unpacked, and where its pages lie."""

    name: str
    group: int
    n_value: int
    n_byte: int
    start: int
    packed: int


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_mtime_ns, about.st_size


# Rows are read in runs, and the footer of a large file takes seconds.
@lru_cache(maxsize=2)
def _chunks(path: Path, stamp: tuple[int, int]) -> tuple[_Chunk, ...]:
    del stamp
    content = _footer(path)
    try:
        root = _Reader(content).struct()
        groups = [_checked(group, dict) for group in _checked(root.get(_ROW_GROUPS, []), list)]
        return tuple(
            _chunk(_checked(_checked(chunk, dict)[_META], dict), number)
            for number, group in enumerate(groups)
            for chunk in _checked(group.get(_COLUMNS, []), list)
        )
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise InputFileError(
            f"{path} has a damaged footer ({error!r}); it is cut short or not of its format"
        ) from error


def _chunk(meta: dict[int, Any], group: int) -> _Chunk:
    name = _checked(meta[_PATH][0], bytes).decode("utf-8")
    keys = (_N_VALUES, _UNPACKED, _FIRST_DATA, _PACKED)
    values, size, first, packed = (_checked(meta[key], int) for key in keys)
    words = _checked(meta.get(_DICTIONARY, 0), int)
    if min(values, size, first, words, packed) < 0:
        raise ValueError("a negative size")
    # Writers give 0 as the place of a dictionary, or of values, that there are not.
    start = min(first or words, words or first)
    return _Chunk(name, group, values, size, start, packed)


def _pages(stream: IO[bytes], chunk: _Chunk) -> int:
    """Return the bytes that the pages of a chunk unfold to, by their headers."""
    place, end = chunk.start, chunk.start + chunk.packed
    n_byte = n_value = 0
    while place < end:
        stream.seek(place)
        # Most headers take some tens of bytes.
        for length in (256, _PAGE_HEAD_BYTES):
            head = stream.read(length)
            reader = _Reader(head)
            try:
                fields = reader.struct()
                break
            except (IndexError, ValueError):
                if length == _PAGE_HEAD_BYTES:
                    raise
                stream.seek(place)
        packed, unpacked = (_checked(fields[k], int) for k in (_PAGE_PACKED, _PAGE_UNPACKED))
        place += reader.place + packed
        if packed < 0 or unpacked < 0 or place > end:
            raise ValueError("a size that its column does not have")
        for kind in _PAGE_HEADS:
            if kind in fields:
                count = _checked(_checked(fields[kind], dict)[1], int)
                n_value += count
                # The values of a dictionary are no rows, and not more than these.
                if not 0 <= count <= chunk.n_value or n_value > 2 * chunk.n_value:
                    raise ValueError(f"{count} values where its column has {chunk.n_value}")
        n_byte += unpacked
    return n_byte


def _footer(path: Path) -> bytes:
    limit = 16 * current().head_bytes
    with path.open("rb") as stream:
        end = stream.seek(0, 2)
        stream.seek(max(end - 8, 0))
        tail = stream.read(8)
        length = int.from_bytes(tail[:4], "little")
        if tail[4:] != _MAGIC or not 0 < length <= end - 12:
            raise InputFileError(f"{path} is no Parquet file, or is cut short")
        if length > limit:
            raise exceeded(path, f"has a footer of {length} bytes, sixteen times", "head_bytes")
        stream.seek(end - 8 - length)
        return stream.read(length)


def _checked(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise ValueError(f"{kind.__name__} expected")
    return value


class _Reader:
    """Reads Thrift's compact protocol into numbers, bytes, lists, and mappings by field."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.place = 0
        self._depth = 0

    def struct(self) -> dict[int, Any]:
        """Read the fields of a structure."""
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise ValueError("too deep")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step, kind = head >> 4, head & 15
            number = number + step if step else self._signed()
            fields[number] = kind == _TRUE if kind in (_TRUE, _FALSE) else self._value(kind)
        self._depth -= 1
        return fields

    def _value(self, kind: int) -> Any:
        if kind in (_TRUE, _FALSE, _BYTE):
            return self._byte()
        if _BYTE < kind < _DOUBLE:
            return self._signed()
        if kind == _DOUBLE:
            return self._bytes(8)
        if kind == _BINARY:
            return self._bytes(self._unsigned())
        if kind in (_LIST, _SET):
            head = self._byte()
            count = head >> 4
            return self._many(self._unsigned() if count == 15 else count, head & 15)
        if kind == _STRUCT:
            return self.struct()
        raise ValueError(f"a field of type {kind}")

    def _many(self, count: int, kind: int) -> list[Any]:
        # Each element takes a byte at least.
        if count > len(self._content) - self.place:
            raise ValueError("a list that is longer than the footer")
        return [self._value(kind) for _ in range(count)]

    def _byte(self) -> int:
        value = self._content[self.place]
        self.place += 1
        return value

    def _bytes(self, count: int) -> bytes:
        value = self._content[self.place : self.place + count]
        if len(value) != count:
            raise ValueError("a text that is longer than the footer")
        self.place += count
        return value

    def _unsigned(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
        raise ValueError("a number that does not end")

    def _signed(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)
