"""Catalogues as the CDS takes them: aligned ASCII, and a ReadMe that tells it byte by byte.

The ReadMe is made by ``cdspyreadme`` (extra ``maury[cds]``); see "Standard description for
astronomical catalogues", CDS, version 2.0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ConfigError, MissingExtra
from maury.io.arrays import AnyArray, BoolArray

if TYPE_CHECKING:
    from astropy.table import Column, MaskedColumn, Table

TABLE_FILE = "labels.dat"
README_FILE = "ReadMe"
DECIMALS = {"K": 2, "deg": 8, "Angstrom": 3}
"""Decimals by unit; others have `OTHER_DECIMALS`."""
# Finer than any error of an abundance, log g or magnitude.
OTHER_DECIMALS = 4
_NAMES = {"ra": "RAdeg", "dec": "DEdeg", "parallax": "plx"}
# Rows formatted at once: 20 MB of text where a row has 1000 characters.
_BLOCK = 20_000


@dataclass(frozen=True)
class Heading:
    """What a ReadMe says of the work as a whole.

    Attributes
    ----------
    title : str
        Title of the catalogue.
    authors : tuple of str
        ``Newton I.`` and so on; the first is the first author.
    date : str
        Year of publication; this year if empty.
    bibcode : str
        Of the paper; empty if there is none yet.
    """

    title: str = "Stellar labels"
    authors: tuple[str, ...] = ("maury",)
    date: str = ""
    bibcode: str = ""


def write_cds(
    folder: Path, table: Table, metadata: Mapping[str, Any], heading: Heading | None = None
) -> None:
    """Write ``labels.dat`` and ``ReadMe`` into a folder.

    Numbers are rounded to the `DECIMALS` of their unit, missing ones are blank; true and false are
    1 and 0. What is not ASCII is a backslash escape.

    Parameters
    ----------
    folder : Path
        Existing directory.
    table : astropy.table.Table
        At least one row; its columns have units and descriptions.
    metadata : mapping
        Of the catalogue.
    heading : Heading, optional
        Title and authors.

    Raises
    ------
    MissingExtra
        If ``cdspyreadme`` is not installed.
    ConfigError
        If the table is empty, or two columns would get the same name.
    """
    try:
        from cdspyreadme import CDSTablesMaker
    except ImportError as error:
        raise MissingExtra(
            "a ReadMe of the CDS needs cdspyreadme: pip install 'maury[cds]'"
        ) from error
    if len(table) == 0:
        raise ConfigError("the catalogue has no rows, and the CDS takes no empty tables")
    columns = [_CdsColumn.of(table[name]) for name in table.colnames]
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"more than one column of the CDS table would be {', '.join(twice)}")
    with (folder / TABLE_FILE).open("w", encoding="ascii", newline="\n") as file:
        file.writelines(_lines(columns, len(table)))
    maker = CDSTablesMaker(outfolder=str(folder), license=str(_model(metadata).get("licence", "")))
    described = maker.addTable(_extremes(columns), name=TABLE_FILE, description=_kind(metadata))
    described.nlines = len(table)
    described.notes = _notes(metadata)
    for column in columns:
        column.describe(described.get_column(column.name))
    _set_heading(maker, metadata, heading or Heading())
    maker.makeReadMe()


@dataclass(frozen=True)
class _CdsColumn:
    """A column as it is written: its name, width and decimals, and which values are missing."""

    name: str
    unit: str
    description: str
    values: AnyArray
    missing: BoolArray
    decimals: int | None
    width: int

    @classmethod
    def of(cls, column: Column) -> _CdsColumn:
        values = np.asarray(column)
        name = _name(str(column.name))
        about = (name, str(column.unit or ""), _ascii(str(column.description or name)))
        if values.dtype.kind == "f":
            missing = ~np.isfinite(values)
            decimals = DECIMALS.get(about[1], OTHER_DECIMALS)
            ends = [f"{value:.{decimals}f}" for value in _ends(values[~missing])]
            width = max(map(len, [*ends, f"{0:.{decimals}f}"]))
            return cls(*about, values, missing, decimals, width)
        if values.dtype.kind in "biu":
            values = values.astype(np.int64)
            width = max(len(str(value)) for value in _ends(values))
            return cls(*about, values, np.zeros(len(values), dtype=np.bool_), None, width)
        text = np.char.encode(values.astype(np.str_), "unicode_escape").astype(np.str_)
        width = max(1, int(np.char.str_len(text).max()))
        return cls(*about, text, text == "", None, width)

    @property
    def is_text(self) -> bool:
        return self.values.dtype.kind == "U"

    @property
    def layout(self) -> str:
        """Format of the operator ``%``."""
        if self.is_text:
            return f"%-{self.width}s"
        return f"%{self.width}d" if self.decimals is None else f"%{self.width}.{self.decimals}f"

    def extremes(self) -> MaskedColumn:
        """Return the least and the largest value, and one that is missing if any is."""
        from astropy.table import MaskedColumn

        present = self.values[~self.missing]
        if present.size == 0:
            ends = np.zeros(2, dtype=self.values.dtype)
        else:
            ends = present[:2] if self.is_text else np.array([present.min(), present.max()])
        ends = np.resize(ends, 3).astype(f"U{self.width}" if self.is_text else ends.dtype)
        hidden = [present.size == 0, present.size == 0, bool(self.missing.any())]
        return MaskedColumn(ends, mask=hidden, name=self.name, description=self.description)

    def describe(self, entry: Any) -> None:
        """Tell cdspyreadme how the column is written."""
        entry.unit = _unit(self.unit)
        if self.decimals is not None:
            entry.set_format(f"F{self.width}.{self.decimals}")
        entry.parse()
        present = self.values[~self.missing]
        if self.decimals is not None and present.size:
            entry.min, entry.max = (round(float(v), self.decimals) for v in _ends(present))


def _ends(values: AnyArray) -> list[Any]:
    return [values.min(), values.max()] if values.size else []


def _name(name: str) -> str:
    """Return the name of a column in the manner of the CDS: ``e_teff`` is the error of teff."""
    if name in _NAMES:
        return _NAMES[name]
    if name.endswith("_error"):
        return f"e_{_name(name.removesuffix('_error'))}"
    return name


def _unit(unit: str) -> str:
    """Return a unit as the CDS writes it; what is a logarithm stands in brackets."""
    from astropy import units

    if unit in ("", "dex"):
        return "[-]" if unit else "---"
    try:
        return str(units.Unit(unit).to_string("cds"))
    except ValueError:
        return _ascii(unit)


def _lines(columns: Sequence[_CdsColumn], n_row: int) -> Iterator[str]:
    """Yield the lines of the table; texts are marked, so that only numbers are blanked."""
    layout = " ".join(column.layout for column in columns) + "\n"
    for start in range(0, n_row, _BLOCK):
        block: list[list[Any]] = []
        for column in columns:
            values = column.values[start : start + _BLOCK]
            if column.is_text:
                block.append([text.replace("nan", "n\0n") for text in values.tolist()])
            elif column.decimals is None:
                block.append(values.tolist())
            else:
                lost = column.missing[start : start + _BLOCK]
                block.append(np.where(lost, np.nan, values).tolist())
        for row in zip(*block, strict=True):
            yield (layout % row).replace("nan", "   ").replace("n\0n", "nan")


def _extremes(columns: Sequence[_CdsColumn]) -> Table:
    """Return three rows that tell of each column all that the ReadMe says."""
    from astropy.table import Table

    return Table([column.extremes() for column in columns])


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")


def _model(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    model = metadata.get("model")
    return model if isinstance(model, Mapping) else {}


def _kind(metadata: Mapping[str, Any]) -> str:
    return f"Labels from {'SIMULATED ' if metadata.get('simulated') else ''}spectra"


def _notes(metadata: Mapping[str, Any]) -> list[str]:
    """Explain the bits of the flags."""
    flags = metadata.get("flags", {})
    notes = ["Note on flags: sum of"] if flags else []
    for name, about in flags.items():
        text = f"{2 ** about['bit']:>10} = {name}: {_ascii(about['text'])}"
        notes += wrap(text, width=78, initial_indent="  ", subsequent_indent=" " * 15)
    return notes


def _set_heading(maker: Any, metadata: Mapping[str, Any], heading: Heading) -> None:
    """Fill in the upper part of the ReadMe."""
    model, survey = _model(metadata), metadata.get("survey")
    origin = str(survey.get("name", "")) if isinstance(survey, Mapping) else str(survey or "")
    sentences = [f"{_kind(metadata)}, one row per spectrum."]
    if metadata.get("simulated"):
        sentences.append("The spectra are SIMULATED: these are no observations.")
    if origin:
        sentences.append(f"Survey: {origin}.")
    if model:
        made_by = (f"{key} {model[key]}" for key in ("preset", "checksum") if key in model)
        sentences.append(f"Model: {', '.join(made_by)}; cite {model.get('citation', '')}.")
    sentences.append("Angles are in the ICRS. A blank is a missing value.")
    maker.title = _ascii(heading.title)
    maker.author = _ascii(heading.authors[0])
    maker.authors = _ascii(", ".join(heading.authors))
    maker.date = heading.date or str(datetime.now(UTC).year)
    maker.keywords = "stars: fundamental parameters ; stars: abundances ; techniques: spectroscopic"
    maker.more_description = _ascii(" ".join(sentences))
    bibcode = f"={heading.bibcode}" if heading.bibcode else ""
    with resources.as_file(
        resources.files("maury.report.publish") / "cds_readme.template"
    ) as template:
        maker.setReadmeTemplate(str(template), {"bibcode": bibcode})
