"""Plates of a report: a figure with its caption and the data behind it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from maury.io.files import writing
from maury.io.tables import write_ecsv
from maury.report.figures import save

if TYPE_CHECKING:
    from astropy.table import Table

Rows = list[tuple[str, ...]]
"""A table as text: the header, then its rows."""
MOST_ROWS = 20_000
"""Rows of data behind a figure at most; of more stars, evenly chosen ones are written."""


@dataclass(frozen=True, eq=False)
class Plate:
    """One figure of a report.

    Attributes
    ----------
    name : str
        Of its files.
    title : str
    caption : str
        Plain text that can be pasted.
    figure : Figure
    data : mapping of str to (n,) array
        What is drawn, all of one length.
    notes : mapping
        What belongs to the data, as plain JSON.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    data: Mapping[str, ArrayLike]
    notes: Mapping[str, Any] = field(default_factory=dict)

    def table(self, *, simulated: bool) -> Table:
        """Return the data, evenly thinned to `MOST_ROWS`, with the caption as metadata."""
        from astropy.table import Table

        columns = {name: np.asarray(values) for name, values in self.data.items()}
        n = len(next(iter(columns.values()))) if columns else 0
        step = -(-max(n, 1) // MOST_ROWS)
        table = Table({name: values[::step] for name, values in columns.items()})
        about = {"title": self.title, "caption": self.caption, "simulated": simulated}
        if step > 1:
            about["thinned"] = f"every {step}th of {n} rows"
        table.meta = {"maury": about | dict(self.notes)}
        return table

    def write(self, folder: Path, *, simulated: bool) -> Path:
        """Write PNG, PDF and ECSV into a folder; return the PNG."""
        png, _ = save(self.figure, folder / self.name, overwrite=True)
        with writing(folder / f"{self.name}.ecsv", overwrite=True) as partial:
            write_ecsv(partial, self.table(simulated=simulated))
        return png


@dataclass(frozen=True)
class Omitted:
    """A figure that cannot be drawn, and why."""

    title: str
    reason: str


@dataclass(frozen=True, eq=False)
class Section:
    """A heading of a report with its plates, and tables of text."""

    name: str
    title: str
    plates: tuple[Plate, ...] = ()
    omitted: tuple[Omitted, ...] = ()
    text: str = ""
    tables: tuple[tuple[str, Rows], ...] = ()


def sort_out(found: list[Plate | Omitted]) -> tuple[tuple[Plate, ...], tuple[Omitted, ...]]:
    """Divide plates from what was omitted."""
    return (
        tuple(one for one in found if isinstance(one, Plate)),
        tuple(one for one in found if isinstance(one, Omitted)),
    )
