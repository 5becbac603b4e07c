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
from maury.labels.columns import Column
from maury.prediction.stored import StoredCatalogue, values_of

if TYPE_CHECKING:
    import pyarrow as pa
    from astropy.table import MaskedColumn, Table

TABLE_FILE = "labels.dat"
README_FILE = "ReadMe"
DECIMALS = {"K": 2, "deg": 8, "Angstrom": 3}
"""Decimals by unit; others have `OTHER_DECIMALS`."""
# Finer than any error of an abundance, log g or magnitude.
OTHER_DECIMALS = 4
_NAMES = {"ra": "RAdeg", "dec": "DEdeg", "parallax": "plx"}


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


def write_cds(folder: Path, catalogue: StoredCatalogue, heading: Heading | None = None) -> None:
    """Write ``labels.dat`` and ``ReadMe`` into a folder.

    Numbers are rounded to the `DECIMALS` of their unit, missing ones are blank; true and false are
    1 and 0. What is not ASCII is a backslash escape.

    Parameters
    ----------
    folder : Path
        Existing directory.
    catalogue : StoredCatalogue
        At least one row; they are read twice, a block at a time.
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
    if len(catalogue) == 0:
        raise ConfigError("the catalogue has no rows, and the CDS takes no empty tables")
    metadata, columns = catalogue.metadata, [_CdsColumn.of(one) for one in catalogue.columns]
    names = [column.name for column in columns]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"more than one column of the CDS table would be {', '.join(twice)}")
    for block in catalogue.blocks():
        for column, values in zip(columns, block.columns, strict=True):
            column.see(values)
    with (folder / TABLE_FILE).open("w", encoding="ascii", newline="\n") as file:
        for block in catalogue.blocks():
            file.writelines(_lines(columns, block))
    maker = CDSTablesMaker(outfolder=str(folder), license=str(_model(metadata).get("licence", "")))
    described = maker.addTable(_extremes(columns), name=TABLE_FILE, description=_kind(metadata))
    described.nlines = len(catalogue)
    described.notes = _notes(metadata)
    for column in columns:
        column.describe(described.get_column(column.name))
    _set_heading(maker, metadata, heading or Heading())
    maker.makeReadMe()


@dataclass
class _CdsColumn:
    """A column as it is written, and what has been seen of its values.

    `ends` are the least and the largest value; of texts, the first two.
    """

    name: str
    unit: str
    description: str
    kind: str
    ends: list[Any]
    lost: bool = False
    longest: int = 1

    @classmethod
    def of(cls, column: Column) -> _CdsColumn:
        name = _name(column.name)
        kind = {"str": "text", "float64": "real"}.get(column.kind, "whole")
        return cls(name, column.unit, _ascii(column.description or name), kind, [])

    def values(self, column: Any) -> tuple[AnyArray, BoolArray]:
        """Return values of an arrow column as they are written, and which are missing."""
        values = values_of(column)
        if self.kind == "real":
            return values, ~np.isfinite(values)
        if self.kind == "whole":
            return values.astype(np.int64), np.zeros(len(values), dtype=np.bool_)
        text = np.char.encode(values, "unicode_escape").astype(np.str_)
        return text, text == ""

    def see(self, column: Any) -> None:
        """Take more rows into account."""
        values, missing = self.values(column)
        present = values[~missing]
        self.lost |= bool(missing.any())
        if self.kind == "text":
            self.longest = max(self.longest, int(np.char.str_len(values).max(initial=0)))
            self.ends = [*self.ends, *present[:2]][:2]
        elif present.size:
            known = [*self.ends, present.min(), present.max()]
            self.ends = [min(known), max(known)]

    @property
    def decimals(self) -> int | None:
        return DECIMALS.get(self.unit, OTHER_DECIMALS) if self.kind == "real" else None

    @property
    def width(self) -> int:
        if self.kind == "real":
            return max(len(f"{value:.{self.decimals}f}") for value in [*self.ends, 0.0])
        return self.longest if self.kind == "text" else max(len(str(v)) for v in self.ends)

    @property
    def layout(self) -> str:
        """Format of the operator ``%``."""
        if self.kind == "text":
            return f"%-{self.width}s"
        return f"%{self.width}d" if self.decimals is None else f"%{self.width}.{self.decimals}f"

    def extremes(self) -> MaskedColumn:
        """Return the least and the largest value, and one that is missing if any is."""
        from astropy.table import MaskedColumn

        kinds: dict[str, Any] = {"text": f"U{self.width}", "real": np.float64, "whole": np.int64}
        ends = np.resize(np.array(self.ends or [0], dtype=kinds[self.kind]), 3)
        hidden = [not self.ends, not self.ends, self.lost]
        return MaskedColumn(ends, mask=hidden, name=self.name, description=self.description)

    def describe(self, entry: Any) -> None:
        """Tell cdspyreadme how the column is written."""
        entry.unit = _unit(self.unit)
        if self.decimals is not None:
            entry.set_format(f"F{self.width}.{self.decimals}")
        entry.parse()
        if self.decimals is not None and self.ends:
            entry.min, entry.max = (round(float(v), self.decimals) for v in self.ends)


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


def _lines(columns: Sequence[_CdsColumn], rows: pa.Table) -> Iterator[str]:
    """Yield the lines of some rows; texts are marked, so that only numbers are blanked."""
    layout = " ".join(column.layout for column in columns) + "\n"
    block: list[list[Any]] = []
    for column, held in zip(columns, rows.columns, strict=True):
        values, missing = column.values(held)
        if column.kind == "text":
            block.append([text.replace("nan", "n\0n") for text in values.tolist()])
        else:
            block.append((np.where(missing, np.nan, values) if missing.any() else values).tolist())
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
