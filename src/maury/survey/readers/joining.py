"""Tables joined to spectra: which column comes from where, in which unit."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from maury.errors import ColumnError, IdentifierError, LengthMismatch, suggestion
from maury.io.arrays import AnyArray, Float64Array, IndexArray, StrArray
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.labels import columns as columns_module
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.survey.readers.config import ColumnConfig, IngestConfig, TableConfig
from maury.survey.readers.pipeline import complete_ids
from maury.survey.readers.sources import stem
from maury.survey.readers.values import converted, without_missing
from maury.survey.store import require_unique

logger = logging.getLogger(__name__)

_SPECTRA = "spectra"


@dataclass(frozen=True)
class _Joined:
    """An open table, and its row for each spectrum: None if alike, -1 where it has none."""

    table: SourceTable
    id_name: str | None = None
    rows: IndexArray | None = None

    def take(self, values: AnyArray, missing: Any) -> AnyArray:
        """Return values in the order of the spectra."""
        if self.rows is None:
            return values
        return np.where(self.rows >= 0, values[np.maximum(self.rows, 0)], missing)


@dataclass(frozen=True)
class TableJoin:
    """How a table was joined to the spectra.

    Attributes
    ----------
    title, how : str
        The table, and what joined it, in words.
    n_spectra, n_row : int
        Of the survey, and of the table.
    n_matched : int
        Spectra that have a row.
    n_used : int
        Rows that a spectrum has.
    names, used : tuple of str
        All columns of the table, and those that are mapped or join tables.
    """

    title: str
    how: str
    n_spectra: int
    n_row: int
    n_matched: int
    n_used: int
    names: tuple[str, ...]
    used: tuple[str, ...]

    @classmethod
    def of(cls, entry: TableConfig, joined: _Joined, how: str, config: IngestConfig) -> Self:
        """Count what an open table gives."""
        table, rows, title = joined.table, joined.rows, entry.title
        n_spectra = table.n_row if rows is None else rows.size
        n_matched, n_used = n_spectra, n_spectra
        if rows is not None:
            n_matched, n_used = int((rows >= 0).sum()), np.unique(rows[rows >= 0]).size
        used = [one.name for one in config.columns.values() if one.table in (None, title)]
        used += [one.through.column for one in config.table if one.through is not None]
        kept = tuple(name for name in table.names if name in used or name == entry.id)
        return cls(title, how, n_spectra, table.n_row, n_matched, n_used, table.names, kept)


@dataclass(frozen=True)
class Spectrograph:
    """What joining must know of the spectra: path, number, identifiers, their own table."""

    path: Path
    n_star: int
    ids: StrArray | None
    table: SourceTable | None


def join(
    config: IngestConfig, spectra: Spectrograph, labels: Sequence[Label], stack: ExitStack
) -> tuple[dict[str, AnyArray], list[TableJoin]]:
    """Return every mapped column in the order of the spectra and their ``id``, and the joins.

    Parameters
    ----------
    config : IngestConfig
        With absolute paths.
    spectra : Spectrograph
        The spectra.
    labels : sequence of Label
        Labels that the survey knows.
    stack : ExitStack
        Closes the tables.

    Raises
    ------
    ColumnError
        If a column is missing, stands in several tables, or has a wrong type or unit.
    IdentifierError
        If identifiers are missing or stand twice, or a table has none of those of the spectra.
    LengthMismatch
        If a table without identifiers has another number of rows.
    """
    tables = _open(config, spectra, stack)
    ids = _ids(config, spectra, tables)
    joins = []
    for entry in config.table:
        # In the order of the file, as a table may be found by way of one above it.
        tables[entry.title], how = _joined(entry, tables, ids, spectra)
        joins.append(TableJoin.of(entry, tables[entry.title], how, config))
    return _columns(config, spectra, tables, ids, labels), joins


def _open(config: IngestConfig, spectra: Spectrograph, stack: ExitStack) -> dict[str, _Joined]:
    """Open all tables, not yet joined."""
    tables: dict[str, _Joined] = {}
    if spectra.table is not None:
        tables[_SPECTRA] = _Joined(spectra.table)
    for entry in config.table:
        table = open_table(entry.file, stack, hdu=entry.hdu)
        tables[entry.title] = _Joined(table, entry.id)
        if entry.id is None and table.n_row != spectra.n_star:
            raise LengthMismatch(
                f"{spectra.path} holds {spectra.n_star} spectra, {table.path} {table.n_row} rows; "
                "without 'id' they must be as many, in the same order"
            )
    return tables


def _columns(
    config: IngestConfig,
    spectra: Spectrograph,
    tables: Mapping[str, _Joined],
    ids: StrArray,
    labels: Sequence[Label],
) -> dict[str, AnyArray]:
    """Return every mapped column of joined tables in the order of the spectra."""
    known = columns_module.known(labels)
    further = config.further_columns
    columns: dict[str, AnyArray] = {"id": ids}
    for name, wanted in config.columns.items():
        if name == "id":
            continue
        if wanted.optional and not _found(wanted, tables):
            logger.warning("%s has no %r, so that %s is unknown", spectra.path, wanted.name, name)
            continue
        joined = _locate(name, wanted, tables)
        if name not in further and known[name].kind == "str":
            columns[name] = joined.take(joined.table.texts(wanted.name), "")
            continue
        parts = further.get(name, (known[name],) if name in known else ())
        missing = config.missing if wanted.missing is None else wanted.missing
        for column, values in zip(parts, _numbers(joined, wanted, len(parts)), strict=True):
            columns[column.name] = joined.take(
                _settled(joined, wanted, values, column, missing), np.nan
            )
    return columns


def _numbers(joined: _Joined, wanted: ColumnConfig, n_part: int) -> Iterable[Float64Array]:
    """Return the numbers of a column, one array a part; several come from a column of arrays."""
    if n_part == 1:
        return [joined.table.floats(wanted.name, index=wanted.index)]
    return joined.table.vectors(wanted.name, n_part).T


def _settled(
    joined: _Joined,
    wanted: ColumnConfig,
    values: Float64Array,
    column: Column,
    missing: Sequence[float] | None,
) -> Float64Array:
    """Return values without stand-ins for missing ones, in the unit of `column`."""
    what = f"{joined.table.path}, column {wanted.name!r}"
    unit = joined.table.units.get(wanted.name) if wanted.unit is None else wanted.unit
    known = without_missing(values, column, missing)
    return converted(known, column, unit, what=what) + wanted.offset


def _ids(config: IngestConfig, spectra: Spectrograph, tables: Mapping[str, _Joined]) -> StrArray:
    given = spectra.ids
    if "id" in config.columns:
        joined = _locate("id", config.columns["id"], tables)
        if joined.id_name is not None:
            raise IdentifierError(
                f"columns.id is taken from {joined.table.path}, which itself is joined by id; "
                "give 'id' in [spectra], or leave out 'id' of that table to join it row by row"
            )
        given = joined.table.texts(config.columns["id"].name)
    by_id = [
        tables[entry.title]
        for entry in config.table
        if entry.id is not None and entry.through is None
    ]
    if given is None and by_id:
        raise IdentifierError(
            f"{by_id[0].table.path} is joined by id, but the spectra of {spectra.path} have none; "
            "give 'id' in [spectra], or leave out 'id' of the table to join it row by row"
        )
    return complete_ids(given, spectra.n_star, spectra.path)


def _joined(
    entry: TableConfig, tables: Mapping[str, _Joined], ids: StrArray, spectra: Spectrograph
) -> tuple[_Joined, str]:
    """Return a table with its row for each spectrum, and in words how it was found."""
    joined = tables[entry.title]
    # Row by row: lengths were compared before.
    if joined.id_name is None:
        return joined, "row by row"
    keys, what, how = ids, str(spectra.path), f"{joined.id_name} = identifier of the spectrum"
    if entry.through is not None:
        if entry.through.table not in tables:
            raise ColumnError(
                f"table {entry.title!r}: the spectra's file is no table; name another one in "
                "'through'"
            )
        log = tables[entry.through.table]
        keys = log.take(log.table.texts(entry.through.column), "")
        what = f"column {entry.through.column!r} of {log.table.path}"
        how = f"{joined.id_name} = {entry.through.column} of {entry.through.table}"
    return _Joined(joined.table, joined.id_name, _rows_of(joined, keys, what)), how


def _rows_of(joined: _Joined, keys: StrArray, what: str) -> IndexArray:
    """Return the row of each key (n_star,), -1 where there is none; an empty key has none."""
    assert joined.id_name is not None, "tables without it are joined row by row"
    table, here = joined.table, joined.table.texts(joined.id_name)
    wanted = np.isin(here, keys) & (here != "")
    if not wanted.any():
        # Logs name files with folder and suffix, which identifiers of a folder of spectra lack.
        here = np.array([stem(Path(text)) for text in here.tolist()], dtype=np.str_)
        wanted = np.isin(here, keys) & (here != "")
    if not wanted.any():
        known = keys[keys != ""]
        example = repr(str(known[0])) if known.size else "nothing but empty ones"
        raise IdentifierError(
            f"{table.path} has none of the identifiers of {what} (for example "
            f"{str(here[0])!r} against {example}); correct 'id', or leave out the table and its "
            "columns"
        )
    # Only rows of these spectra need unique identifiers: catalogues repeat stars elsewhere.
    numbers = np.flatnonzero(wanted)
    require_unique(here[numbers], what=f"{table.path}, column {joined.id_name!r}")
    numbers = numbers[np.argsort(here[numbers])]
    place = np.minimum(np.searchsorted(here[numbers], keys), numbers.size - 1)
    found = here[numbers[place]] == keys
    absent = int(np.count_nonzero(~found))
    if absent:
        logger.warning("%d of %d spectra are not in %s", absent, keys.size, table.path)
    return np.where(found, numbers[place], -1)


def _found(wanted: ColumnConfig, tables: Mapping[str, _Joined]) -> bool:
    return any(wanted.name in joined.table.names for joined in tables.values())


def _locate(name: str, wanted: ColumnConfig, tables: Mapping[str, _Joined]) -> _Joined:
    if wanted.table is not None:
        if wanted.table not in tables:
            raise ColumnError(f"columns.{name}: the spectra's file is no table; name another one")
        tables[wanted.table].table.check(wanted.name)
        return tables[wanted.table]
    # Nothing is guessed where two tables have a column of that name.
    having = [title for title, joined in tables.items() if wanted.name in joined.table.names]
    if len(having) == 1:
        return tables[having[0]]
    if having:
        raise ColumnError(
            f"columns.{name}: {wanted.name!r} stands in {' and '.join(having)}; write which by "
            f"'table = \"{having[0]}\"'"
        )
    names = [n for joined in tables.values() for n in joined.table.names]
    listed = ", ".join(names[:40]) or "no tables are given"
    raise ColumnError(
        f"columns.{name}: no table has a column {wanted.name!r}{suggestion(wanted.name, names)} "
        f"(columns: {listed})"
    )
