"""Catalogues of any origin, made plain: columns of numbers, truth values and texts, one per row."""

import logging
from dataclasses import replace
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ColumnError
from maury.io.arrays import AnyArray, Int64Array
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.prediction.catalogue import Catalogue, with_stated_flags
from maury.prediction.stored import StoredCatalogue

if TYPE_CHECKING:
    from astropy.table import Table

logger = logging.getLogger(__name__)
KNOWN_BITS = reduce(or_, (flag.value for flag in Flag))
_LARGEST_MASK = 2.0**63
"""Floating-point numbers from here on are no signed integer of 64 bits."""


def plain(catalogue: Catalogue | StoredCatalogue, name: str) -> StoredCatalogue:
    """Return a catalogue whose columns can all be shown and written.

    Parameters
    ----------
    catalogue : Catalogue or StoredCatalogue
        Of any origin.
    name : str
        What messages call it.

    Returns
    -------
    StoredCatalogue
        Masked values are NaN, or an empty text; ``flags`` are whole numbers.
        Columns that hold lists, complex numbers or objects are left out, and named in a warning.

    Raises
    ------
    ColumnError
        If the flags are no whole numbers.
    """
    left_out: list[str] = []
    if isinstance(catalogue, Catalogue):
        catalogue = _plain_table(catalogue, name, left_out).stored(name)
    columns = tuple(column for column in catalogue.columns if column.kind != "other")
    left_out += [column.name for column in catalogue.columns if column.kind == "other"]
    for column in catalogue.columns:
        if column.name == "flags" and column.kind not in ("int32", "int64"):
            raise _no_mask(name, column.kind)
    if left_out:
        logger.warning(
            "%s: columns that are no numbers or texts are not shown: %s", name, ", ".join(left_out)
        )
    metadata = with_stated_flags(catalogue.metadata, name)
    return replace(catalogue, columns=columns, metadata=metadata)


def _plain_table(catalogue: Catalogue, name: str, left_out: list[str]) -> Catalogue:
    from astropy.table import Table

    table = Table()
    for column in catalogue.table.itercols():
        if column.name == "flags":
            values: AnyArray | None = _flags(column, name)
        else:
            values = _values(column)
        if values is None:
            left_out.append(str(column.name))
        else:
            _add(table, column, values)
    return replace(catalogue, table=table)


def _no_mask(name: str, what: str) -> ColumnError:
    return ColumnError(
        f"the flags of {name} must be one whole number a row, a bit mask, and are {what}; rename "
        "the column, or correct it"
    )


def _add(table: "Table", column: Any, values: AnyArray) -> None:
    table[column.name] = values
    table[column.name].unit = column.unit
    table[column.name].description = column.description
    table[column.name].meta.update(column.meta or {})


def _values(column: Any) -> AnyArray | None:
    """Return the values of a column, None if they are nothing plain."""
    if column.ndim != 1:
        return None
    values, mask = np.asarray(column), np.ma.getmaskarray(column)
    kind = values.dtype.kind
    if kind == "O" and all(value is None or isinstance(value, str) for value in values):
        values = np.array(["" if value is None else value for value in values], dtype=np.str_)
    elif kind == "S":
        values = np.char.decode(values, "utf-8", "backslashreplace")
    elif (kind == "f" and values.dtype.itemsize > 8) or _is_beyond_int64(values):
        values = values.astype(np.float64)
    if values.dtype.kind not in "biufU":
        return None
    if not mask.any():
        return values
    if values.dtype.kind in "iuf":
        return np.where(mask, np.nan, values.astype(np.float64))
    return np.where(mask, np.zeros(1, values.dtype), values)


def _is_beyond_int64(values: AnyArray) -> bool:
    """Whether unsigned numbers are too large for the integers that catalogues hold."""
    return values.dtype.kind == "u" and bool(np.any(values > np.uint64(np.iinfo(np.int64).max)))


def _flags(column: Any, name: str) -> Int64Array:
    values, mask = np.asarray(column), np.ma.getmaskarray(column)
    whole = column.ndim == 1 and values.dtype.kind in "biuf"
    if whole and values.dtype.kind == "f":
        mask = mask | np.isnan(values)
        known = values[~mask]
        whole = bool(np.all((np.abs(known) < _LARGEST_MASK) & (np.trunc(known) == known)))
    if not whole:
        raise _no_mask(name, f"{values.dtype} of shape {values.shape}")
    bits = np.where(mask, 0, values).astype(np.uint64 if values.dtype.kind == "u" else np.int64)
    # Bits that nobody knows here have no name to be shown by.
    return (bits & bits.dtype.type(KNOWN_BITS)).astype(FLAG_DTYPE)
