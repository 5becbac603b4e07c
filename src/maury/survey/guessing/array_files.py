"""Spectra in NumPy archives, and in columns of arrays of Parquet files and VOTables."""

from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import MauryError
from maury.io.opening import reading
from maury.io.source_table import SourceTable
from maury.survey.guessing import naming
from maury.survey.guessing.document import Entry, unknown_grid
from maury.survey.guessing.seen import LEAST_PIXELS, Seen
from maury.survey.readers.planes import npz_array


def look_at_arrays(path: Path) -> Seen:
    """Look at a ``.npz`` file; a ``.npy`` holds one array, whose wavelengths nobody knows."""
    if path.suffix.lower() == ".npy":
        return Seen(path, "other", why="one array; name it as 'values' or 'file' by hand")
    with reading(path), np.load(path, allow_pickle=False) as archive:
        names = list(archive.files)
    arrays = {name: npz_array(path, name) for name in names}
    planes = [n for n, a in arrays.items() if a.ndim == 2 and min(a.shape) > 1]
    flux, doubtful = naming.flux_among(planes)
    if flux is None:
        return Seen(path, "other", why="it holds no array of two axes")
    shape = arrays[flux].shape
    named = naming.wave_among([n for n in names if arrays[n].ndim == 1])
    wave = None if named is None else np.asarray(arrays[named], dtype=np.float64)
    rows = wave is None or shape[1] == wave.size
    entries = [Entry("flux", flux, f"Arrays are {', '.join(names)}.", doubtful)]
    noise = naming.noise_among([n for n in planes if n != flux and arrays[n].shape == shape])
    if noise is not None:
        entries.append(Entry(*noise, f"Its name sounds like {noise[0]}."))
    n_star = shape[0] if rows else shape[1]
    ids = [n for n in names if arrays[n].shape == (n_star,) and arrays[n].dtype.kind in "USiu"]
    text = f"{n_star} texts or whole numbers."
    entries += [Entry("id", name, text, len(ids) > 1) for name in ids[:1]]
    keys = (
        unknown_grid(path.name)
        if named is None
        else (Entry("values", named, "The array of the wavelengths."),)
    )
    return Seen(path, "spectra", n_star, tuple(entries), keys, wave=wave, names=" ".join(names))


def vectors_of(table: SourceTable) -> Seen | None:
    """Return spectra in columns of arrays of an open table, if it has such."""
    first = {name: vector for name in table.names if (vector := _first(table, name)) is not None}
    flux, doubtful = naming.flux_among(list(first))
    if flux is None:
        return None
    n_pixel = first[flux].size
    same = [name for name in first if name != flux and first[name].size == n_pixel]
    entries = [Entry("flux", flux, f"Columns of arrays: {', '.join(first)}.", doubtful)]
    noise = naming.noise_among(same)
    if noise is not None:
        entries.append(Entry(*noise, f"Its name sounds like {noise[0]}."))
    named = naming.wave_among(same)
    keys = unknown_grid(table.path.name)
    if named is not None:
        keys = (Entry("values", named, "Wavelengths stand beside each flux."),)
    return Seen(
        table.path,
        "spectra",
        table.n_row,
        tuple(entries),
        keys,
        wave=None if named is None else first[named],
        unit=None if named is None else table.units.get(named),
        names=" ".join(table.names),
        is_table=True,
    )


def _first(table: SourceTable, name: str) -> Any:
    """Return the first vector of a column as float64, None if it holds one value a row."""
    try:
        with reading(table.path):
            values = table.raw(name)
            row = values[0]
            row = row.as_py() if hasattr(row, "as_py") else row
            vector = np.asarray(row)
    except (MauryError, IndexError):
        return None
    long = vector.ndim == 1 and vector.size >= LEAST_PIXELS and vector.dtype.kind in "fiu"
    return vector.astype(np.float64) if long else None
