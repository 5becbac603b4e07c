"""Text files: a spectrum in columns, or a table."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maury.io.arrays import Float64Array
from maury.survey.guessing import naming
from maury.survey.guessing.document import Entry
from maury.survey.guessing.seen import LEAST_PIXELS, Seen
from maury.survey.readers.text_spectra import numeric, text_lines

_HEAD_BYTES = 4 * 2**20
"""Of a text that is looked at: more than any spectrum has; a long table is known by less."""
_LARGEST_STEP = 0.05
"""Of a wavelength, from one pixel to the next, which is a resolving power of 10: what jumps more is
no grid of a spectrum."""


def look_at_text(path: Path, *, is_table: bool) -> Seen:
    """Look at a text: a spectrum has rows of numbers alone, of which one column is a grid."""
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES + 1)
    # The last line of a longer text is cut in two.
    lines = head[:_HEAD_BYTES].decode("utf-8", errors="replace").splitlines()
    lines = lines[:-1] if len(head) > _HEAD_BYTES else lines
    names, rows = text_lines(lines)
    spectrum = _spectrum(path, names, rows)
    if spectrum is not None:
        return spectrum
    if is_table:
        first = next((line for line in lines if line.strip() and not line.startswith("#")), "")
        columns = next(csv.reader([first]), [])
        return Seen(path, "table", n_star=len(rows), names=" ".join(columns))
    return Seen(path, "other", why="a text that is neither a spectrum nor a table by its suffix")


def _spectrum(path: Path, names: Sequence[str], rows: Sequence[str]) -> Seen | None:
    if len(rows) < LEAST_PIXELS or not all(map(numeric, rows)):
        return None
    widths = {len(row.split()) for row in rows}
    if len(widths) != 1 or widths.pop() < 2:
        return None
    table = np.loadtxt(list(rows), dtype=np.float64, ndmin=2)
    named = naming.wave_among(names)
    if names and named is None:
        return None
    place = names.index(named) if named is not None else 0
    if not _is_grid(table[:, place]):
        return None
    entries, wave_key = _columns(names, named, table.shape[1])
    return Seen(
        path,
        "spectrum",
        spectra=entries,
        wavelength=wave_key,
        wave=table[:, place],
        names=" ".join(names),
    )


def _columns(
    names: Sequence[str], named: str | None, n_column: int
) -> tuple[tuple[Entry, ...], tuple[Entry, ...]]:
    """Return the keys of ``[spectra]`` and ``[wavelength]`` for columns with or without names."""
    form = Entry("format", "ascii", "Texts of columns, one pixel a row.")
    if named is None:
        if n_column == 2:
            return (form,), ()
        why = "Columns have no names: the third is taken for the 1 sigma error, not for ivar."
        return (form, Entry("error", "third", why, doubtful=True)), ()
    flux, doubtful = naming.flux_among([name for name in names if name != named])
    entries = [form, Entry("flux", flux, f"Columns are {', '.join(names)}.", doubtful)]
    noise = naming.noise_among([name for name in names if name not in (named, flux)])
    if noise is not None:
        entries.append(Entry(*noise, f"Its name sounds like {noise[0]}."))
    return tuple(entries), (Entry("values", named, "The column of the wavelengths."),)


def _is_grid(wave: Float64Array) -> bool:
    steps = np.diff(wave)
    one_way = bool(np.all(steps > 0) or np.all(steps < 0))
    small = np.abs(steps) < _LARGEST_STEP * np.abs(wave[:-1])
    return one_way and bool(np.all(wave > 0)) and bool(np.all(small))
