"""Files of many spectra each, one after another."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from maury.errors import InputFileError
from maury.io.arrays import AnyArray, Float64Array, StrArray
from maury.io.opening import reading
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium
from maury.survey.readers.pipeline import Piece, complete_ids
from maury.survey.readers.sources import stem, tolerating

RowReader = Callable[[int, int], tuple[AnyArray, AnyArray | None]]
"""``read(start, stop)`` is flux and ivar of these rows, both (n, n_pixel); ivar may be None."""


@dataclass(frozen=True)
class Block:
    """Consecutive spectra of one file, on one grid.

    Attributes
    ----------
    ids : (n,) str
    table : SourceTable
        Facts of each.
    read : callable
        See `RowReader`.
    wave_aa : (n_pixel,) float64
    path : Path
    unread : str
        Why the file could not be read, if it could not.
    simulated : bool
        Whether the file says that its spectra are simulated.
    """

    ids: StrArray
    table: SourceTable
    read: RowReader
    wave_aa: Float64Array
    path: Path
    unread: str = ""
    simulated: bool = False

    @classmethod
    def lost(cls, path: Path, why: str) -> Self:
        """Return the one row that stands for a file that could not be read."""
        ids = np.array([stem(path)], dtype=np.str_)
        none = np.empty((1, 0), dtype=np.float32)
        table = SourceTable.of_arrays(path, {"FILE": ids})
        return cls(ids, table, lambda _start, _stop: (none, none), np.empty(0), path, why)


@dataclass(frozen=True)
class BlockFiles:
    """Files of many spectra each, one after another.

    Attributes
    ----------
    paths : sequence of Path
    blocks : sequence of Block
    ids : (n_star,) str
    table : SourceTable
        Facts of all; those of several files are text.
    medium : {"air", "vacuum"} or None
    skip_bad : bool
        Whether a file that cannot be read is one row of bad pixels instead of an error.
    """

    paths: Sequence[Path]
    blocks: Sequence[Block]
    ids: StrArray
    table: SourceTable
    medium: Medium | None
    skip_bad: bool = False
    simulated: bool = False

    @classmethod
    def of(
        cls,
        path: Path,
        paths: Sequence[Path],
        blocks: Sequence[Block],
        *,
        medium: Medium | None,
        skip_bad: bool = False,
    ) -> Self:
        """Join blocks.

        Raises
        ------
        IdentifierError
            If an identifier is empty or stands twice.
        InputFileError
            If no file could be read.
        """
        if all(block.unread for block in blocks):
            raise InputFileError(f"none of the files can be read: {blocks[0].unread}")
        ids = np.concatenate([block.ids for block in blocks])
        table = _joined([block.table for block in blocks], path)
        simulated = any(block.simulated for block in blocks)
        ids = complete_ids(ids, ids.size, path)
        return cls(paths, blocks, ids, table, medium, skip_bad, simulated)

    @property
    def n_star(self) -> int:
        """Number of spectra."""
        return int(self.ids.size)

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum, in angstrom."""
        return next(block.wave_aa for block in self.blocks if not block.unread)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, file by file."""
        first = 0
        for block in self.blocks:
            a, b = max(start - first, 0), min(stop - first, block.ids.size)
            first += block.ids.size
            if a < b:
                yield self._piece(block, a, b)

    def _piece(self, block: Block, start: int, stop: int) -> Piece:
        # Damage may show only when rows are read, long after the header was.
        lost = {block.path: block.unread} if block.unread else {}
        piece = None
        if not lost:
            with tolerating(block.path, lost, skip=self.skip_bad), reading(block.path):
                flux, ivar = block.read(start, stop)
                piece = Piece(block.wave_aa, np.asarray(flux), ivar, str(block.path))
        return piece or Piece.lost(stop - start, lost[block.path])


def _joined(tables: Sequence[SourceTable], path: Path) -> SourceTable:
    # Columns of one file keep their types; those of many may differ between files.
    if len(tables) == 1:
        return tables[0]
    names = tuple(dict.fromkeys(name for table in tables for name in table.names))
    units = {name: unit for table in tables for name, unit in table.units.items()}

    def raw(name: str) -> StrArray:
        parts = [
            table.texts(name) if name in table.names else np.full(table.n_row, "")
            for table in map(_as_text, tables)
        ]
        return np.concatenate(parts)

    return SourceTable(path, names, sum(table.n_row for table in tables), units, raw)


def _as_text(table: SourceTable) -> SourceTable:
    """Return a table whose numbers are text, so that those of many files go together."""

    def raw(name: str) -> Any:
        values = np.ma.asanyarray(table.raw(name))
        if values.ndim != 1 or values.dtype.kind not in "fb":
            return values
        data = np.ma.getdata(values).astype(np.float64)
        texts = np.array([repr(float(value)) for value in data], dtype=np.str_)
        return np.where(np.ma.getmaskarray(values) | ~np.isfinite(data), "", texts)

    return SourceTable(table.path, table.names, table.n_row, table.units, raw)
