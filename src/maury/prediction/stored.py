"""Catalogues on disk, read in blocks of rows: any number of rows in little memory."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import InputFileError, MauryError
from maury.io.arrays import AnyArray, BoolArray
from maury.io.source_table import check_text_width
from maury.labels.columns import Column, kind_of, unknown_column

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import Table

BLOCK_ROWS = 16384
"""Rows of a block: those of a part of a prediction, 14 MB of a default catalogue."""


@dataclass(frozen=True)
class StoredCatalogue:
    """A catalogue that is read in blocks, as often as is asked for.

    Attributes
    ----------
    path : Path
        Where it lies, for messages.
    columns : tuple of Column
        Its columns in order; `Column.kind` is ``"float64"``, ``"int32"``, ``"int64"``, ``"bool"``,
        ``"str"``, or ``"other"`` for lists and the like, which can be read only.
    metadata : mapping
        Provenance, flags, and the mark of simulated data.
    n_row : int
        Its rows.
    read : callable
        ``read(names, start)`` yields some columns of consecutive rows as arrow tables, from row
        `start` on.

    Examples
    --------
    >>> for block in Catalogue.open("labels.fits").blocks(["teff"]):  # doctest: +SKIP
    ...     print(block["teff"].to_numpy().max())
    """

    path: Path
    columns: tuple[Column, ...]
    metadata: Mapping[str, Any]
    n_row: int
    read: Callable[[list[str], int], "Iterator[pa.Table]"] = field(repr=False)

    def __len__(self) -> int:
        return self.n_row

    def __str__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        # As wide as the longest, so that units and descriptions stand below each other.
        name, unit = (
            max((len(getattr(c, key)) for c in self.columns), default=0) for key in ("name", "unit")
        )
        lines = [f"  {c.name:<{name}} {c.unit:<{unit}} {c.description}" for c in self.columns]
        return "\n".join([f"{mark}catalogue of {len(self)} rows", *lines])

    @property
    def simulated(self) -> bool:
        """Whether the spectra were simulated."""
        return bool(self.metadata.get("simulated", False))

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return [column.name for column in self.columns]

    @property
    def schema(self) -> "pa.Schema":
        """Types of the columns of a block."""
        import pyarrow as pa

        return pa.schema([(column.name, arrow_type(column)) for column in self.columns])

    def blocks(self, names: Iterable[str] | None = None, *, start: int = 0) -> "Iterator[pa.Table]":
        """Yield consecutive rows as arrow tables, without nulls: one block at least, maybe empty.

        Parameters
        ----------
        names : iterable of str, optional
            Columns, all by default.
        start : int
            First row; a Parquet file is read from there on, text from its beginning.

        Raises
        ------
        ColumnError
            If there is no such column.
        InputFileError
            If the file cannot be read on.
        """
        wanted = self.names if names is None else list(names)
        for name in wanted:
            if name not in self.names:
                raise unknown_column(name, self.names, str(self.path))
        chosen = [self.columns[self.names.index(name)] for name in wanted]
        rows = self.read(wanted, start)
        n_row = min(start, self.n_row)
        while True:
            with explained(self.path):
                block = next(rows, None)
                if block is None:
                    break
                block = _plain(block, chosen, self.path)
            n_row += len(block)
            yield block
        if n_row != self.n_row:
            raise InputFileError(
                f"{self.path} has {n_row} rows where it promises {self.n_row}; it is cut short"
            )
        if n_row <= start:
            yield self.schema.empty_table().select(wanted)

    def rows(self, names: Iterable[str], start: int, n_row: int) -> "pa.Table":
        """Return some columns of consecutive rows in memory, fewer where the catalogue ends."""
        import pyarrow as pa

        found: list[pa.Table] = []
        for block in self.blocks(list(names), start=start):
            found.append(block[: n_row - sum(map(len, found))])
            if sum(map(len, found)) == n_row:
                break
        return pa.concat_tables(found)

    def column(self, name: str) -> AnyArray:
        """Return a column as (n_row,), which is in memory: 8 bytes a row, or a text."""
        return np.concatenate([values_of(block[name]) for block in self.blocks([name])])

    def only(self, chosen: BoolArray) -> "StoredCatalogue":
        """Return the rows where `chosen`, (n_row,), is true."""

        def read(names: list[str], start: int) -> "Iterator[pa.Table]":
            return after(start, rows(names))

        def rows(names: list[str]) -> "Iterator[pa.Table]":
            place = 0
            for block in self.blocks(names):
                yield block.filter(chosen[place : place + len(block)])
                place += len(block)

        return replace(self, n_row=int(np.count_nonzero(chosen)), read=read)

    def selected(self, chosen: BoolArray, **how: str) -> "StoredCatalogue":
        """Return rows as `only` does; the metadata say how many of how many (``selection``).

        Parameters
        ----------
        chosen : (n_row,) bool
        **how
            What else they say of the selection.
        """
        some = self.only(chosen)
        selection = {"rows": len(some), "of": len(self), **how}
        return replace(some, metadata={**self.metadata, "selection": selection})

    def table(self) -> "Table":
        """Return all rows as an astropy table, with units, UCDs and descriptions."""
        import pyarrow as pa

        return astropy_table(self.columns, pa.concat_tables(self.blocks()))


def after(start: int, blocks: "Iterator[pa.Table]") -> "Iterator[pa.Table]":
    """Yield what follows the first rows of a reader that has to pass them."""
    for block in blocks:
        if start < len(block):
            yield block[start:]
        start = max(0, start - len(block))


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what parsers raise over a catalogue, errors of nearly every class, into one."""
    try:
        yield
    except MauryError:
        raise
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputFileError(f"cannot read the catalogue {path}: {text}") from error


def of_table(path: Path, table: "Table", metadata: Mapping[str, Any]) -> StoredCatalogue:
    """Return a catalogue in memory, of an astropy table, as one that is read in blocks."""
    columns = tuple(
        Column(
            name,
            str(table[name].unit or ""),
            str(table[name].meta.get("ucd", "")),
            str(table[name].description or ""),
            kind_of_values(np.asarray(table[name])),
        )
        for name in table.colnames
    )

    def read(names: list[str], start: int) -> "Iterator[pa.Table]":
        for place in range(start, len(table), BLOCK_ROWS):
            rows = slice(place, place + BLOCK_ROWS)
            yield arrow_table({name: np.asarray(table[name][rows]) for name in names})

    return StoredCatalogue(path, columns, metadata, len(table), read)


def kind_of_values(values: AnyArray) -> str:
    """Return the kind of a column of numpy; ``"other"`` if its rows hold several values."""
    return kind_of(values.dtype) if values.ndim == 1 and values.dtype.kind in "biufSUO" else "other"


def arrow_type(column: Column) -> "pa.DataType":
    """Return the type of a column in arrow."""
    import pyarrow as pa

    types = {"str": pa.string(), "bool": pa.bool_(), "int32": pa.int32(), "int64": pa.int64()}
    return types.get(column.kind, pa.float64())


def arrow_table(values: Mapping[str, AnyArray]) -> "pa.Table":
    """Return columns of numpy, in any order of bytes, as an arrow table."""
    import pyarrow as pa

    return pa.table({name: pa.array(_native(one)) for name, one in values.items()})


def _native(values: AnyArray) -> Any:
    if values.dtype.kind == "S" and values.ndim == 1:
        return np.char.decode(values, "utf-8", "replace")
    if values.dtype.kind == "O":
        return values.astype(np.str_)
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    return values if values.ndim == 1 else list(values)


def values_of(values: Any) -> AnyArray:
    """Return an arrow column without nulls as (n,) of numpy; of lists as (n, ...)."""
    import pyarrow as pa

    if pa.types.is_nested(values.type):
        return np.array(values.to_pylist())
    array: AnyArray = values.to_numpy()
    return array.astype(np.str_) if array.dtype.kind == "O" else array


def astropy_table(columns: Sequence[Column], data: "pa.Table") -> "Table":
    """Return arrow columns, whose memory is given back one by one, as an astropy table."""
    from astropy.table import Table

    table = Table()
    for column in columns:
        table[column.name] = values_of(data[column.name])
        data = data.drop_columns(column.name)
        table[column.name].description = column.description
        table[column.name].meta["ucd"] = column.ucd
        if column.unit:
            table[column.name].unit = column.unit
    return table


def _plain(block: "pa.Table", columns: Sequence[Column], path: Path) -> "pa.Table":
    """Return columns in their types, with NaN, no text, 0 or false where a value is missing."""
    import pyarrow as pa

    arrays = []
    for column in columns:
        values = block[column.name]
        if column.kind != "other":
            values = values.cast(arrow_type(column))
        if column.kind == "str":
            check_text_width(values, f"{path}, column {column.name!r}")
        if values.null_count and column.kind != "other":
            empty: Any = {"str": "", "float64": np.nan, "bool": False}.get(column.kind, 0)
            values = values.fill_null(empty)
        arrays.append(values)
    return pa.table(arrays, names=[column.name for column in columns])
