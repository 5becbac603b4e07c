"""ECSV files of catalogues: written and read in blocks."""

import re
from collections.abc import Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import InputFileError
from maury.io.ecsv_guard import check_ecsv, parse_ecsv
from maury.prediction.stored import (
    StoredCatalogue,
    after,
    arrow_type,
    astropy_table,
    of_table,
    values_of,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import Table

_DELIMITER = re.compile(r"^# *delimiter: *(['\"]?)(.)\1 *$", re.MULTILINE)
_SPECIAL = re.compile('[ "\r\n]')
_BYTES = 2**20
"""Bytes of text that are parsed at a time: some 600 rows of a default catalogue."""


def write_ecsv(path: Path, catalogue: StoredCatalogue) -> None:
    """Write text block by block: the header by astropy, then lines as it would write them."""
    with path.open("w", encoding="utf-8") as file:
        empty = astropy_table(catalogue.columns, catalogue.schema.empty_table())
        empty.meta = {"maury": dict(catalogue.metadata)}
        empty.write(file, format="ascii.ecsv")
        for block in catalogue.blocks():
            # Astropy's own writer takes ten times as long.
            cells = (map(_cell, values_of(one).tolist()) for one in block.columns)
            file.writelines(" ".join(line) + "\n" for line in zip(*cells, strict=True))


def _cell(value: Any) -> str:
    if not isinstance(value, str):
        return str(value)
    quoted = not value or _SPECIAL.search(value)
    return '"' + value.replace('"', '""') + '"' if quoted else value


def open_catalogue(path: Path) -> StoredCatalogue:
    """Open a catalogue in ECSV: its header is read by astropy, its rows in blocks by pyarrow."""
    check_ecsv(path)
    with path.open(encoding="utf-8") as file:
        head = list(takewhile(lambda line: line.startswith("#"), file))
    with path.open(encoding="utf-8") as file:
        text = "".join(next(file) for _ in range(len(head) + 1))
    empty = filled(parse_ecsv(text))
    metadata = empty.meta.get("maury")
    if metadata is None:
        raise InputFileError(f"{path} is an ECSV file, but not a catalogue written by maury")
    about = of_table(path, empty, dict(metadata))
    if any(column.kind == "other" for column in about.columns):
        return of_table(path, filled(parse_ecsv(path.read_text("utf-8"))), dict(metadata))
    delimiter = _DELIMITER.search("".join(head))

    def read(names: list[str], start: int) -> "Iterator[pa.Table]":
        separator = delimiter[2] if delimiter else " "
        return after(start, _rows(path, about, names, len(head) + 1, separator))

    n_row = sum(len(block) for block in read(about.names[:1], 0))
    return StoredCatalogue(path, about.columns, about.metadata, n_row, read)


def _rows(
    path: Path, about: StoredCatalogue, names: Sequence[str], skip: int, delimiter: str
) -> "Iterator[pa.Table]":
    import pyarrow as pa
    from pyarrow import csv

    with path.open("rb") as file:
        if sum(bool(file.readline()) for _ in range(skip)) < skip or not file.peek(1):
            return
        reader = csv.open_csv(
            file,
            csv.ReadOptions(block_size=_BYTES, column_names=about.names),
            csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            csv.ConvertOptions(
                column_types={c.name: arrow_type(c) for c in about.columns},
                include_columns=list(names),
                null_values=[""],
                true_values=["True"],
                false_values=["False"],
                strings_can_be_null=False,
            ),
        )
        for batch in reader:
            yield pa.Table.from_batches([batch])


def filled(table: "Table") -> "Table":
    """Turn masked values into NaN or empty strings, which is how a catalogue says missing."""
    for name in table.colnames:
        if hasattr(table[name], "mask"):
            kind = table[name].dtype.kind
            empty: Any = np.nan if kind == "f" else "" if kind in "UO" else 0
            table[name] = table[name].filled(empty)
        if table[name].dtype.kind == "O":
            table[name] = np.asarray(table[name]).astype(np.str_)
    return table
