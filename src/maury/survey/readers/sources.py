"""What readers of published formats share: spectra, and the facts of each."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from maury.errors import GridMismatch, InputFileError
from maury.io.arrays import AnyArray, Float64Array
from maury.io.opening import files_of
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium
from maury.survey.readers.pipeline import Source

UNREADABLE = (InputFileError, GridMismatch)
"""What `skip_bad` skips; a wrong configuration or a full disk is an error all the same."""


class FormatSource(Source, Protocol):
    """Spectra of a published format, which tells all but the columns' names."""

    @property
    def medium(self) -> Medium | None:
        """Medium of the wavelengths, if the format or its files say it."""

    @property
    def table(self) -> SourceTable | None:
        """Facts of each spectrum: header cards or columns, by their own names."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files."""

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum, in angstrom."""


@contextmanager
def tolerating(path: Path, lost: dict[Path, str], *, skip: bool) -> Iterator[None]:
    """Take down in `lost` why a file cannot be read, if such are skipped, and go on."""
    try:
        yield
    except UNREADABLE as error:
        if not skip:
            raise
        lost[path] = str(error)


FITS_SUFFIXES: tuple[str, ...] = tuple(
    f"{suffix}{packed}" for suffix in (".fits", ".fit") for packed in ("", ".gz", ".fz")
)


def list_files(
    path: Path, suffixes: Sequence[str] = FITS_SUFFIXES, *, pattern: str = "*"
) -> list[Path]:
    """Return a file, or those of a folder, at any depth, with one of these suffixes, by name.

    Raises
    ------
    InputFileError
        If there are none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputFileError(f"{path} does not exist; correct its name")
    found = [
        item
        for item in files_of(path, pattern, deep=True)
        if item.name.lower().endswith(tuple(suffixes))
    ]
    if not found:
        raise InputFileError(
            f"{path} has no file {pattern!r} with the suffix {' or '.join(suffixes)}, at any "
            "depth; correct the folder, or the recipe"
        )
    # By name first, so that a move between folders does not change the order of rows.
    return sorted(found, key=lambda item: (item.name, str(item)))


def stem(path: Path) -> str:
    """Return the name of a file without its suffixes."""
    # A packed file is the same spectrum as the plain one, under the same name.
    name = path.name.removesuffix(".gz").removesuffix(".fz")
    return name.rsplit(".", 1)[0] if "." in name else name


@dataclass
class Facts:
    """Facts of many spectra, gathered one after another, to become a table."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Take down the facts of the next spectrum."""
        self.rows.append(facts)

    def table(self, path: Path, units: Mapping[str, str] | None = None) -> SourceTable:
        """Return the table of all facts; one that a spectrum lacks is missing."""
        names = tuple(dict.fromkeys(name for row in self.rows for name in row))
        return SourceTable(path, names, len(self.rows), dict(units or {}), self._column)

    def _column(self, name: str) -> AnyArray:
        values = [row.get(name) for row in self.rows]
        # Whole numbers stay so: a float64 does not hold the 19 digits of an identifier of Gaia.
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            return np.array(values)
        if all(v is None or isinstance(v, int | float) for v in values):
            return np.array([np.nan if v is None else float(v) for v in values])
        return np.array(["" if v is None else str(v) for v in values], dtype=np.str_)


def header_facts(*headers: Any) -> dict[str, Any]:
    """Return the plain cards of FITS headers; of equal names the first counts."""
    facts: dict[str, Any] = {}
    for header in headers:
        for card in header.cards:
            name = str(card.keyword)
            plain = isinstance(card.value, str | int | float | bool)
            if plain and name not in ("", "COMMENT", "HISTORY", "CONTINUE"):
                value = card.value.strip() if isinstance(card.value, str) else card.value
                facts.setdefault(name, value)
    return facts


Cards = Mapping[str, Any]
