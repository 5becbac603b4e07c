"""Arrays of spectra in files, read a few rows at a time."""

import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, GridMismatch, InputFileError, suggestion
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.io.limits import check_unfolded, current, exceeded
from maury.io.opening import reading
from maury.io.parquet import check_pages, column_sizes
from maury.io.source_table import SourceTable
from maury.io.tables import open_parquet
from maury.survey.readers.pipeline import check_rows

_PEEK = 64
"""Rows that are read to learn the length of arrays; empty ones may come first."""
_AT_ONCE = 2**22
"""Values of a Parquet column in memory at a time: 32 MB as float64."""


Rows = Callable[[int, int], Float64Array | Float32Array]
"""``rows(start, stop)`` is the array of these stars, shape (n, n_pixel)."""


@dataclass(frozen=True)
class Plane:
    """An array (n_star, n_pixel) in a file; if `flat`, `rows` gives its only row, (n_pixel,)."""

    n_star: int
    n_pixel: int
    rows: Rows
    header: Mapping[str, Any] | None = None
    pixel_axis: int = 1
    flat: bool = False


@dataclass(frozen=True)
class ArrayRows:
    """Reads rows of a two-dimensional thing that can be sliced, either way round."""

    data: Any
    pixel_axis: int = 1

    def __call__(self, start: int, stop: int) -> AnyArray:
        """Return the array of these stars, shape (n, n_pixel)."""
        if self.pixel_axis == 0:
            return np.asarray(self.data[:, start:stop]).T
        return np.asarray(self.data[start:stop])


def plane_of(data: Any, shape: tuple[int, ...], what: str, header: Any = None) -> Plane:
    """Wrap anything of one or two axes that can be sliced.

    Raises
    ------
    InputFileError
        If it has other axes.
    """
    if len(shape) == 1:
        return Plane(1, int(shape[0]), lambda _start, _stop: np.asarray(data[:]), header, flat=True)
    if len(shape) != 2:
        raise InputFileError(f"{what} must have one or two axes, got shape {shape}")
    return Plane(int(shape[0]), int(shape[1]), ArrayRows(data), header)


def as_spectra(plane: Plane) -> Plane:
    """Return a one-dimensional plane as one spectrum."""
    if plane.flat:
        return replace(plane, rows=ArrayRows(plane.rows(0, 1)[None, :]), flat=False)
    return plane


def turned(plane: Plane) -> Plane:
    """Return a plane with its axes exchanged."""
    assert isinstance(plane.rows, ArrayRows), "only arrays have two axes to exchange"
    rows = replace(plane.rows, pixel_axis=0)
    return replace(plane, n_star=plane.n_pixel, n_pixel=plane.n_star, rows=rows, pixel_axis=0)


def numpy_plane(path: Path, name: str | None, default: str) -> Plane:
    """Open an array of a ``.npy`` or ``.npz`` file; object arrays (pickles) are refused.

    Raises
    ------
    InputFileError
        If the file is damaged, lacks the array, or it does not hold numbers.
    """
    with reading(path):
        if path.suffix.lower() == ".npz":
            return _npz_plane(path, name or default)
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    return _numeric_plane(data, str(path))


def _npz_plane(path: Path, name: str) -> Plane:
    data = npz_array(path, name)
    return _numeric_plane(data, f"{path}, array {name!r}")


def npz_array(path: Path, name: str) -> AnyArray:
    """Read an array of a ``.npz`` file whole; pickles, and arrays that unfold too far, are refused.

    Raises
    ------
    InputFileError
        If so, or if there is no such array.
    """
    with reading(path), np.load(path, allow_pickle=False) as archive:
        if name not in archive.files:
            raise InputFileError(
                f"{path} has no array {name!r}{suggestion(name, archive.files)} "
                f"(it has {', '.join(archive.files[:40]):.400})"
            )
        for entry in archive.zip.infolist():
            if entry.filename in (name, f"{name}.npy"):
                check_unfolded(entry.file_size, path)
                _check_promise(archive.zip, entry, path)
        return np.asarray(archive[name])


def _check_promise(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    """Refuse an array whose header promises more bytes than its entry has, before room is made."""
    with archive.open(entry) as stream:
        version = np.lib.format.read_magic(stream)
        # The third version differs in the encoding of names of fields, which no plain array has.
        first = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if first else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stream)
        promised = math.prod(shape) * dtype.itemsize
        if promised > entry.file_size:
            raise InputFileError(
                f"{path}: the array {entry.filename!r} promises {promised} bytes and has "
                f"{entry.file_size}; it is cut short or damaged, fetch it again"
            )


def _numeric_plane(data: Any, what: str) -> Plane:
    if data.dtype.kind not in "fiu":
        raise InputFileError(f"{what} must hold numbers, got {data.dtype}")
    return plane_of(data, data.shape, what)


def column_plane(read: Callable[[int, int], Any], table: SourceTable, name: str) -> Plane:
    """Wrap a column of arrays; ``read(start, stop)`` gives its rows as the format has them.

    Raises
    ------
    ColumnError
        If it does not hold arrays of numbers.
    GridMismatch
        If their lengths differ (missing ones apart).
    """
    what = f"{table.path}, column {name!r}"

    def rows(start: int, stop: int) -> AnyArray:
        block = _stacked(read(start, stop), what)
        if block.shape[1] == 0:
            return np.full((block.shape[0], n_pixel), np.nan)
        if block.shape[1] != n_pixel:
            raise _ragged(what, [n_pixel, block.shape[1]])
        return block

    check_rows(table.n_row, table.path)
    # The first rows tell the length, as a column of variable arrays does not.
    with reading(table.path):
        n_pixel = _stacked(read(0, min(table.n_row, _PEEK)), what).shape[1]
    return Plane(table.n_row, n_pixel, rows)


def _stacked(values: Any, what: str) -> AnyArray:
    """Array (n, n_pixel) of a column; arrays of variable length must be equal in length."""
    if values.dtype.kind == "O":
        parts = [np.ma.asanyarray(value) for value in values]
        if any(part.dtype.kind not in "fiu" or part.ndim != 1 for part in parts):
            raise ColumnError(f"{what} must hold arrays of numbers, not objects")
        total = sum(part.size for part in parts)
        if (
            total > max(_PEEK, len(parts)) * current().pixels
            or 8 * total > current().chunk_bytes * 4
        ):
            raise exceeded(what, f"has rows of {total // max(len(parts), 1)} values", "pixels")
        flat = np.concatenate([np.ma.filled(part.astype(np.float64), np.nan) for part in parts])
        return _filled(np.array([part.size for part in parts]), flat, what)
    if values.ndim < 2 or values.dtype.kind not in "fiu":
        raise ColumnError(f"{what} must hold one array of numbers a row, got {values.dtype}")
    flat = values.reshape(values.shape[0], -1)
    if np.ma.isMaskedArray(flat):
        return np.asarray(np.ma.filled(flat.astype(np.float64), np.nan))
    return np.asarray(flat)


def _filled(lengths: AnyArray, flat: AnyArray, what: str) -> AnyArray:
    """Rows of equal length from a flat array, NaN in those of no length."""
    longest = int(lengths.max(initial=0))
    if np.any((lengths != longest) & (lengths != 0)):
        raise _ragged(what, sorted(set(lengths.tolist()) - {0}))
    # Nothing is missing: a view, without a copy.
    if flat.size == lengths.size * longest:
        return flat.reshape(lengths.size, longest)
    out = np.full((lengths.size, longest), np.nan)
    out[lengths > 0] = flat.reshape(-1, longest)
    return out


def _ragged(what: str, lengths: Sequence[int]) -> GridMismatch:
    return GridMismatch(
        f"{what} has spectra of {', '.join(map(str, lengths[:4]))} pixels; a column holds one "
        "length only, save spectra of different lengths as one file per star"
    )


class ParquetCursor:
    """Reads list columns forward, some thousand rows at a time, whatever the row groups are."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self._path = path
        self._stack = stack
        self._streams: dict[str, tuple[int, Any, list[Any]]] = {}

    def rows(self, name: str, start: int, stop: int) -> Any:
        """Return rows `start` to before `stop` of a column, shape (n, n_pixel)."""
        import pyarrow as pa

        position, stream, held = self._streams.get(name, (0, None, []))
        # Parquet is read forward only: to go back is to begin again.
        if stream is None or start < position:
            file = open_parquet(self._path, self._stack)
            for group in range(file.metadata.num_row_groups):
                check_pages(self._path, [name], [group])
            position, held = 0, []
            rows = _rows_at_once(self._path, name, file.metadata.num_rows)
            stream = file.iter_batches(batch_size=rows, columns=[name])
        while position + sum(map(len, held)) < stop:
            held.append(next(stream).column(0))
        # What lies behind is forgotten, so that memory does not grow with the file.
        while held and position + len(held[0]) <= start:
            position += len(held.pop(0))
        self._streams[name] = (position, stream, held)
        chunk = pa.chunked_array(held).slice(start - position, stop - start).combine_chunks()
        return _arrow_rows(chunk, f"{self._path}, column {name!r}")


def _rows_at_once(path: Path, name: str, n_row: int) -> int:
    """Rows to read at a time: 1024, fewer where they are long; arrays too long are refused.

    A few bytes may stand for any number of equal values.
    """
    size = column_sizes(path).get(name)
    length = 0 if size is None else size.n_value // max(n_row, 1)
    if length > current().pixels:
        raise exceeded(path, f"has rows of {length} values", "pixels")
    return max(1, min(1024, _AT_ONCE // max(1, length)))


def _arrow_rows(chunk: Any, what: str) -> AnyArray:
    import pyarrow as pa
    from pyarrow import compute

    kind = chunk.type
    nested = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if not (nested or pa.types.is_fixed_size_list(kind)):
        raise ColumnError(f"{what} must hold one list of numbers a row, got {kind}")
    element = kind.value_type
    if not (pa.types.is_floating(element) or pa.types.is_integer(element)):
        raise ColumnError(f"{what} must hold lists of numbers, got {kind}")
    # The length of a missing list of fixed size is missing too.
    lengths = np.asarray(compute.list_value_length(chunk).fill_null(0).to_numpy(False))
    values = chunk.flatten()
    exact = values if pa.types.is_float32(element) else values.cast(pa.float64(), safe=False)
    return _filled(lengths, np.asarray(exact.to_numpy(False)), what)
