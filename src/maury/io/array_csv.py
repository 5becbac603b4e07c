"""CSV and ECSV files whose cells hold arrays, as of the Gaia archive, read forward."""

import csv
import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO

import numpy as np

from maury.errors import ColumnError, InputFileError
from maury.io.arrays import Float64Array, StrArray
from maury.io.limits import check_columns, current
from maury.io.opening import Gunzipped, encoding_of, reading
from maury.io.source_table import SourceTable, parse_array

_LARGEST_LINE = 16 * 2**20
"""Characters of a line. A row of RVS spectra, 2401 fluxes and errors, takes some 60 000."""
_NULLS = ("", "null", "NULL", "--", "NaN", "nan")


class ArrayCsv:
    """A CSV or ECSV file, plain or gzipped: scalar columns at once, arrays as they are asked for.

    Parameters
    ----------
    path : Path
    arrays : sequence of str
        Columns of arrays, of which the file need not have all.

    Raises
    ------
    InputFileError
        If the file is damaged, or a row has another number of cells than the header.
    """

    def __init__(self, path: Path, arrays: tuple[str, ...]) -> None:
        self.path = path
        with reading(path):
            self._encoding = encoding_of(path)
            with self._text() as stream:
                self.names = tuple(next(_rows(stream), ()))
            if not self.names:
                raise InputFileError(f"{path} has no header line; it is empty or damaged")
            self.arrays = tuple(name for name in arrays if name in self.names)
            plain = [k for k, name in enumerate(self.names) if name not in arrays]
            check_columns(self.names, path)
            rows = [[cells[k] for k in plain] for cells in islice(self._body(), current().rows)]
        self.n_row = len(rows)
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(plain)
        self._plain = {self.names[k]: column for k, column in zip(plain, columns, strict=True)}
        self._streams: dict[str, tuple[int, Iterator[list[str]]]] = {}

    @property
    def table(self) -> SourceTable:
        """The scalar columns."""
        return SourceTable(self.path, tuple(self._plain), self.n_row, {}, self._texts)

    def rows(self, name: str, start: int, stop: int) -> Float64Array:
        """Return arrays of rows `start` to before `stop`, shape (n, n_value), NaN where empty.

        Raises
        ------
        ColumnError
            If a cell holds no array of numbers, or arrays differ in length.
        """
        # Text is read forward only: each column keeps a stream, which begins anew to go back.
        position, stream = self._streams.get(name, (0, None))
        with reading(self.path):
            if stream is None or start < position:
                position, stream = 0, self._body()
            place = self.names.index(name)
            for _ in range(start - position):
                next(stream)
            cells = [next(stream)[place] for _ in range(stop - start)]
            self._streams[name] = (stop, stream)
            return self._stacked(name, cells)

    def length(self, name: str) -> int:
        """Return how many values the first array of a column has; 0 if all are empty."""
        with reading(self.path):
            place = self.names.index(name)
            for cells in self._body():
                if cells[place].strip() not in _NULLS:
                    return self._parsed(name, cells[place]).size
        return 0

    def has_arrays(self, name: str) -> bool:
        """Whether the first cell of a column that is not empty is an array."""
        with reading(self.path):
            place = self.names.index(name)
            cells = (row[place].strip() for row in self._body())
            return next((cell for cell in cells if cell not in _NULLS), "[")[0] in "[("

    def _body(self) -> Iterator[list[str]]:
        with self._text() as stream:
            rows = _rows(stream)
            next(rows)
            # Checked row by row: a download that broke off ends amid a row, and zip would shorten
            # it silently.
            for number, cells in enumerate(rows, start=1):
                # A comma at the end of a row is an empty cell more.
                if len(cells) == len(self.names) + 1 and not cells[-1].strip():
                    cells.pop()
                if len(cells) != len(self.names):
                    raise InputFileError(
                        f"{self.path}: row {number} has {len(cells)} cells, the header "
                        f"{len(self.names)}; the file is cut short or damaged, fetch it again"
                    )
                yield cells

    def _text(self) -> IO[str]:
        if not self.path.name.lower().endswith(".gz"):
            return self.path.open("rt", encoding=self._encoding, newline="")
        # Not gzip.open: a small file may unfold to more than the memory holds.
        return _Unpacked(self.path, self._encoding)

    def _texts(self, name: str) -> StrArray:
        return np.array(
            ["" if cell.strip() in _NULLS else cell.strip() for cell in self._plain[name]],
            dtype=np.str_,
        )

    def _stacked(self, name: str, cells: list[str]) -> Float64Array:
        parts = [self._parsed(name, cell) for cell in cells]
        sizes = {part.size for part in parts} - {0}
        if len(sizes) > 1:
            raise ColumnError(
                f"{self.path}, column {name!r} has arrays of {min(sizes)} and {max(sizes)} values; "
                "they must be equally long"
            )
        empty = np.full(sizes.pop() if sizes else 0, np.nan)
        return np.array([part if part.size else empty for part in parts], dtype=np.float64)

    def _parsed(self, name: str, cell: str) -> Float64Array:
        return parse_array(cell, f"{self.path}, column {name!r}")


def _rows(stream: IO[str]) -> Iterator[list[str]]:
    """Cells of each line, the header first; comments, such as those of ECSV, are left out."""
    lines = (line for line in _lines(stream) if not line.startswith("#") and line.strip())
    # 131 072 characters of a cell by default, which ten thousand fluxes exceed.
    csv.field_size_limit(_LARGEST_LINE)
    return iter(csv.reader(lines, strict=True))


def _lines(stream: IO[str]) -> Iterator[str]:
    while line := stream.readline(_LARGEST_LINE):
        if len(line) == _LARGEST_LINE:
            raise ValueError(f"a line has {_LARGEST_LINE} characters or more")
        yield line


class _Unpacked(io.TextIOWrapper):
    """The text of a gzip file, which unfolds to so many bytes at most."""

    def __init__(self, path: Path, encoding: str) -> None:
        self._packed = path.open("rb")
        super().__init__(Gunzipped(self._packed, path), encoding=encoding, newline="")

    def close(self) -> None:
        """Close the file too, which `gzip` leaves open."""
        super().close()
        self._packed.close()
