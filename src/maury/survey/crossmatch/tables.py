"""Two tables side by side: positions out of columns in any unit, and the columns of both joined."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from maury.errors import ColumnError, ConfigError, check_known
from maury.io.arrays import AnyArray, Float64Array, StrArray
from maury.io.files import writing
from maury.io.parquet import write_table
from maury.io.source_table import SourceTable
from maury.io.units import written
from maury.spectra.positions import Positions
from maury.survey.crossmatch.matches import Match
from maury.survey.readers.values import stands_for_missing

logger = logging.getLogger(__name__)

KEYS: Mapping[str, str] = {
    "id": "",
    "ra": "deg",
    "dec": "deg",
    "pmra": "mas/yr",
    "pmdec": "mas/yr",
    "epoch": "yr",
    "mag": "",
}
"""What a side of a match has, and the unit that it is compared in."""
FORMATS: Mapping[str, str] = {
    ".fits": "fits",
    ".parquet": "",
    ".ecsv": "ascii.ecsv",
    ".vot": "votable",
}
"""Tables that are written, by suffix, and astropy's name of the format; Parquet is Arrow's."""
_MJD_2000 = 51544.5
"""Modified Julian date of J2000.0, by definition."""
_DAYS_PER_YEAR = 365.25
"""Of a Julian year, by definition."""
_LEAST_JULIAN_DATE = 1e6
"""Days above are Julian dates, below modified ones: those of this millennium are 2.4e6 and 5e4."""


@dataclass(frozen=True, eq=False)
class Side:
    """One of two tables that are matched.

    Attributes
    ----------
    table : SourceTable
    keys : mapping of str to str
        Columns by their meaning, one of `KEYS`; ``epoch`` may be a year. A unit may follow a colon.
    ids : (n,) str, optional
    positions : Positions, optional
    """

    table: SourceTable
    keys: Mapping[str, str]
    ids: StrArray | None
    positions: Positions | None

    @classmethod
    def of(cls, table: SourceTable, keys: Mapping[str, str]) -> Self:
        """Read identifiers and positions.

        Raises
        ------
        ColumnError
            If a column is missing, or its unit is none of its kind.
        IdentifierError
            If identifiers are numbers that have lost digits.
        """
        ids = table.texts(keys["id"]) if "id" in keys else None
        positions = table_positions(table, keys) if "ra" in keys and "dec" in keys else None
        return cls(table, keys, ids, positions)


def parse_keys(text: str) -> dict[str, str]:
    """Read ``KEY=COLUMN,...``.

    Raises
    ------
    ConfigError
        If it is written otherwise, or a key is not one of `KEYS`.
    """
    keys = {}
    for part in filter(None, text.split(",")):
        key, found, column = part.partition("=")
        if not found or not column:
            raise ConfigError(f"{part!r} is not of the form KEY=COLUMN, such as ra=RA_ICRS")
        keys[check_known("key", key.strip(), KEYS)] = column.strip()
    return keys


def table_positions(table: SourceTable, keys: Mapping[str, str]) -> Positions:
    """Return the positions of a table; those of exactly (0, 0) are missing.

    Units are those that the file states, or that follow the name of a column (``ra=RA:hourangle``);
    without either, those of `KEYS`. An epoch in days is a Julian date, or a modified one.

    Raises
    ------
    ColumnError
        If a column is missing, or its unit is none of its kind.
    """

    def column(key: str) -> Float64Array | None:
        return _in_unit(table, keys[key], KEYS[key]) if key in keys else None

    try:
        epoch: Any = float(keys.get("epoch", "nan"))
    except ValueError:
        epoch = _epochs(table, keys["epoch"])
    ra, dec = _in_unit(table, keys["ra"], "deg"), _in_unit(table, keys["dec"], "deg")
    # Tables write 0, 0 for want of a position; all such rows would be candidates of each other.
    nowhere = (ra == 0.0) & (dec == 0.0)
    if nowhere.any():
        logger.warning(
            "%s: %d rows at right ascension 0, declination 0 have no position, and are left out",
            table.path,
            int(nowhere.sum()),
        )
    place = Positions(
        np.where(nowhere, np.nan, ra), dec, epoch, column("pmra"), column("pmdec"), column("mag")
    )
    if not place.usable.any():
        logger.warning("%s: no row has a usable position", table.path)
    return place


def _named_unit(table: SourceTable, text: str) -> tuple[str, str | None]:
    name, colon, unit = text.rpartition(":")
    # A column whose own name has a colon in it is taken as it is called.
    return (name, unit) if colon and text not in table.names else (text, table.units.get(text))


def _in_unit(table: SourceTable, text: str, target: str) -> Float64Array:
    name, unit = _named_unit(table, text)
    values = table.floats(name)
    known = np.where(stands_for_missing(values, None), np.nan, values)
    return known if target == "" else table.converted(known, name, target, unit=unit)


def _epochs(table: SourceTable, text: str) -> Float64Array:
    name, unit = _named_unit(table, text)
    if unit is None or unit.strip().lower() not in ("d", "day", "days"):
        return _in_unit(table, text, KEYS["epoch"])
    days = table.floats(name)
    days = np.where(days > _LEAST_JULIAN_DATE, days - 2400000.5, days)
    return np.asarray(2000.0 + (days - _MJD_2000) / _DAYS_PER_YEAR)


def why_none(match: Match, left: Side, right: Side) -> str:
    """Return what may be wrong if nothing is matched."""
    said = f"none of {len(match)} rows of {left.table.path} is matched to {right.table.path}"
    if match.settings["method"] == "identifier":
        assert left.ids is not None
        assert right.ids is not None
        examples = [repr(str(ids[ids != ""][:1])[2:-2]) for ids in (left.ids, right.ids)]
        return (
            f"{said}: identifiers on the left are such as {examples[0]}, on the right such as "
            f"{examples[1]}; name columns of one kind of identifier (numbers of Gaia DR2 are not "
            "those of DR3)"
        )
    hints = []
    for side in (left, right):
        assert side.positions is not None
        ra = np.abs(side.positions.ra_deg[side.positions.usable])
        dec = np.abs(side.positions.dec_deg[side.positions.usable])
        stated = _named_unit(side.table, side.keys["ra"])[1]
        if not ra.size:
            hints.append(f"{side.table.path} has no usable position")
        elif stated is None and ra.max() <= 2 * np.pi and dec.max() <= np.pi / 2:
            hints.append(
                f"are positions of {side.table.path} in radians (ra={side.keys['ra']}:rad)?"
            )
        elif stated is None and ra.max() <= 24.0:
            hints.append(
                f"are right ascensions of {side.table.path} in hours "
                f"(ra={side.keys['ra']}:hourangle)?"
            )
    hints.append("is the epoch right (epoch=YEAR), and is one of the two in Galactic coordinates?")
    return f"{said} within {match.settings['radius_arcsec']:g} arcsec: " + "; ".join(hints)


def joined_columns(
    match: Match, left: Mapping[str, Any], right: Mapping[str, Any], own: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the columns of both tables in left order, and those of the match.

    Parameters
    ----------
    match : Match
    left, right : mapping of str to (n_left,) and (n_right,) masked array
        A column of the right table that has the name of another one is called ``right_<name>``, one
        of the left table with the name of one of the match ``left_<name>``.
    own : mapping of str to (n_left,) array
        What the match says.

    Returns
    -------
    columns : dict of str to (n_left,) array
        Masked where a right row is missing.
    """
    out: dict[str, Any] = {}
    # FITS knows no difference between small and capital letters.
    taken = {name.lower() for name in own}

    def free(name: str, prefix: str) -> str:
        while name.lower() in taken:
            name = f"{prefix}_{name}"
        taken.add(name.lower())
        return name

    for name, values in left.items():
        out[free(name, "left")] = np.ma.asanyarray(values)
    # Integers and truth values have no NaN, so that what is missing is masked.
    lost = ~match.matched
    for name, values in right.items():
        column = np.ma.asanyarray(values)
        there = np.ma.getdata(column)[np.maximum(match.index, 0)]
        mask = np.ma.getmaskarray(column)[np.maximum(match.index, 0)] | lost
        out[free(name, "right")] = np.ma.masked_array(there, mask=mask)
    return out | dict(own)


def write_match(
    match: Match,
    left: Side,
    right: Side,
    out: Path,
    *,
    take: Sequence[str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write a row for each left one: the columns of both tables, and those of the match.

    Parameters
    ----------
    match : Match
    left, right : Side
    out : Path
        Its suffix is one of `FORMATS`.
    take : sequence of str, optional
        Columns of the right table; all by default.
    overwrite : bool

    Raises
    ------
    ConfigError
        If the suffix is of no such format.
    ColumnError
        If a column to take does not exist.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    check_format(out)
    own: dict[str, AnyArray] = {}
    if left.ids is not None:
        own["left_id"] = left.ids
    if right.ids is not None:
        own["right_id"] = match.take(right.ids, "")
    own |= {
        "right_row": match.index,
        "separation": match.separation_arcsec,
        "n_candidate": match.n_candidate.astype(np.int32),
        "next_separation": match.next_arcsec,
        "flags": match.flags,
        "certain": match.certain,
    }
    units = {"separation": "arcsec", "next_separation": "arcsec"}
    columns = joined_columns(match, _columns(left.table), _columns(right.table, take), own)
    for side, prefix in ((right, "right"), (left, "left")):
        for name, unit in side.table.units.items():
            known = f"{prefix}_{name}" if f"{prefix}_{name}" in columns else name
            units.setdefault(known, unit)
    meta = json.dumps(match.settings)
    with writing(out, overwrite=overwrite) as partial:
        (_write_parquet if out.suffix == ".parquet" else _write_astropy)(
            partial, columns, units, meta, FORMATS[out.suffix]
        )


def check_format(out: Path) -> None:
    """Raise `ConfigError` unless a match can be written under this name."""
    if out.suffix not in FORMATS:
        raise ConfigError(f"{out} must end in {', '.join(FORMATS)}")


def _columns(table: SourceTable, names: Sequence[str] | None = None) -> dict[str, Any]:
    """Columns with one value a row; others are named in a warning."""
    columns, left_out = {}, []
    for name in table.names if names is None else names:
        table.check(name)
        try:
            columns[name] = table.plain(name)
        except ColumnError:
            left_out.append(name)
    if left_out:
        logger.warning("%s: no single values, left out: %s", table.path, ", ".join(left_out[:20]))
    return columns


_STANDARDS: Mapping[str, Literal["fits", "vounit"]] = {"fits": "fits", "votable": "vounit"}


def _write_astropy(
    partial: Path, columns: Mapping[str, Any], units: Mapping[str, str], meta: str, kind: str
) -> None:
    from astropy.table import MaskedColumn, Table

    table = Table(meta={"MATCH": meta})
    for name, values in columns.items():
        table[name] = _filled(values)
        if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(table[name]):
            table[name] = MaskedColumn(table[name])
        unit = units.get(name)
        if unit is not None and kind in _STANDARDS:
            unit, note = written(unit, _STANDARDS[kind])
            table[name].description = note.strip() or None
        table[name].unit = _standard(unit or None)
    table.write(str(partial), format=kind)


def _filled(values: Any) -> Any:
    """Return floats and texts with NaN and blanks where they are missing; the rest stays masked."""
    if values.dtype.kind == "f":
        return np.ma.filled(values, np.nan)
    return np.ma.filled(values, "") if values.dtype.kind == "U" else values


def _standard(unit: str | None) -> Any:
    """Return a unit that astropy knows, or none."""
    from astropy import units

    # A unit that astropy does not know is kept as the catalogue writes it.
    return None if unit is None else units.Unit(unit, parse_strict="silent")


def _write_parquet(
    partial: Path, columns: Mapping[str, Any], units: Mapping[str, str], meta: str, kind: str
) -> None:
    import pyarrow as pa

    del kind
    arrays, fields, about = [], [], {"MATCH": meta}
    for name, values in columns.items():
        data = _filled(values)
        array = pa.array(np.ma.getdata(data), mask=np.ma.getmaskarray(data))
        arrays.append(array)
        unit = {"unit": units[name]} if name in units else None
        if data.dtype.kind == "U":
            # astropy reads the widths of strings here.
            about[f"table::len::{name}"] = str(data.dtype.itemsize // 4)
        fields.append(pa.field(name, array.type, metadata=unit))
    schema = pa.schema(fields, metadata=about)
    write_table(partial, pa.Table.from_arrays(arrays, schema=schema))
