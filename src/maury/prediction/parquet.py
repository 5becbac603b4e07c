"""Parquet files of catalogues, and directories of them: written and read in blocks."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maury.errors import InputFileError
from maury.io.limits import check_columns
from maury.io.parquet import column_sizes, n_rows, read_blocks, write_table
from maury.io.tables import check_parquet_column, open_parquet
from maury.io.units import check_unit
from maury.labels.columns import Column
from maury.prediction import votable
from maury.prediction.stored import BLOCK_ROWS, StoredCatalogue, arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

GROUP_ROWS = 4 * BLOCK_ROWS
"""Rows of a row group: 57 MB of a default catalogue, and a footer of 1 kB for a million values."""


def schema(
    columns: Sequence[Column],
    metadata: Mapping[str, Any],
    kinds: Mapping[str, tuple[str, str]],
) -> "pa.Schema":
    """Return types and metadata; `kinds` are those of strings, of `maury.prediction.votable`."""
    import pyarrow as pa

    fields = [
        pa.field(
            column.name,
            arrow_type(column),
            metadata={"unit": column.unit, "ucd": column.ucd, "description": column.description},
        )
        for column in columns
    ]
    declared = votable.without_data(columns, metadata, kinds)
    return pa.schema(
        fields,
        metadata={
            "maury": json.dumps(dict(metadata)),
            # VOParquet 1.0: units and UCDs that Parquet has no place for travel as a VOTable
            # without rows.
            "IVOA.VOTable-Parquet.version": "1.0",
            "IVOA.VOTable-Parquet.content": declared,
            # astropy reads the widths of strings here.
            **{f"table::len::{name}": size for name, (_, size) in kinds.items()},
        },
    )


def write_parquet(path: Path, catalogue: StoredCatalogue) -> None:
    """Write one file; rows go to their groups whatever the blocks in which they come."""
    import pyarrow.parquet as pq

    wanted = schema(catalogue.columns, catalogue.metadata, votable.string_kinds(catalogue))
    with (
        path.open("wb") as file,
        pq.ParquetWriter(file, wanted, write_page_checksum=True) as writer,
    ):
        for group in _groups(catalogue.blocks(), GROUP_ROWS):
            writer.write_table(group.cast(wanted))


def write_dataset(path: Path, catalogue: StoredCatalogue) -> None:
    """Write a directory of Parquet files, whose names sort in the order of the rows."""
    path.mkdir()
    for number, part in enumerate(_groups(catalogue.blocks(), BLOCK_ROWS)):
        kinds = votable.kinds_of_blocks(catalogue.columns, [part])
        wanted = schema(catalogue.columns, catalogue.metadata, kinds)
        write_table(path / part_name(number), part.cast(wanted))


def part_name(number: int) -> str:
    """Return the name of a file of a dataset."""
    return f"part-{number:06d}.parquet"


def _groups(blocks: "Iterable[pa.Table]", n_row: int) -> "Iterator[pa.Table]":
    """Yield the same rows, so many at a time, at least once."""
    import pyarrow as pa

    held: list[pa.Table] = []
    for block in blocks:
        held.append(block)
        while sum(map(len, held)) > n_row:
            whole = pa.concat_tables(held)
            yield whole[:n_row]
            held = [whole[n_row:]]
    yield pa.concat_tables(held).combine_chunks()


def open_catalogue(path: Path) -> StoredCatalogue:
    """Open a Parquet file, or a directory of them, of a catalogue."""
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    for part in files:
        with ExitStack() as stack:
            sizes = column_sizes(part)
            check_columns(sizes, part)
            whole = open_parquet(part, stack).schema_arrow
            for name in whole.names:
                check_parquet_column(sizes, name, part)
    header = (whole.metadata or {}).get(b"maury") if files else None
    if header is None:
        raise InputFileError(f"{path} is a Parquet file, but not a catalogue written by maury")
    columns = tuple(_column(one) for one in whole)

    sizes_of = [n_rows(part) for part in files]

    def read(names: list[str], start: int) -> "Iterator[pa.Table]":
        for part, n_row in zip(files, sizes_of, strict=True):
            if start < n_row:
                yield from read_blocks(part, names, BLOCK_ROWS, start)
            start = max(0, start - n_row)

    return StoredCatalogue(path, columns, json.loads(header), sum(sizes_of), read)


def _column(one: "pa.Field") -> Column:
    import pyarrow as pa
    from astropy import units

    about = {k.decode(): v.decode() for k, v in (one.metadata or {}).items()}
    words = one.type.value_type if pa.types.is_dictionary(one.type) else one.type
    kind = next((kind for kind, holds in _kinds() if holds(words)), "other")
    unit = about.get("unit", "")
    check_unit(unit)
    # As a table in memory has it, in the spelling of astropy.
    unit = str(units.Unit(unit, parse_strict="silent")) if unit else ""
    return Column(one.name, unit, about.get("ucd", ""), about.get("description", ""), kind)


def _kinds() -> list[tuple[str, Any]]:
    import pyarrow as pa

    small = {pa.int8(), pa.int16(), pa.int32(), pa.uint8(), pa.uint16()}
    return [
        ("str", pa.types.is_string),
        ("str", pa.types.is_large_string),
        ("bool", pa.types.is_boolean),
        ("int32", small.__contains__),
        ("int64", pa.types.is_integer),
        ("float64", pa.types.is_floating),
    ]
