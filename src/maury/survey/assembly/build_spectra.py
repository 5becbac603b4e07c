"""Spectra of a build: a store, or files that are read without one."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from maury.errors import check_known
from maury.io.arrays import AnyArray, Float32Array, Float64Array, IndexArray, StrArray
from maury.labels import columns as columns_module
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.survey.archives import load
from maury.survey.archives.ingest import open_recipe
from maury.survey.assembly.build_file import SpectraEntry
from maury.survey.crossmatch import Positions
from maury.survey.readers import FileSurvey, open_toml
from maury.survey.store import Survey
from maury.survey.writer import CHUNK_STARS

Columns = dict[str, AnyArray]


@dataclass(frozen=True)
class Chunk:
    """Flux and ivar (n, n_pixel) of some rows, and what is known of each once it is read, (n,)."""

    flux: Float32Array
    ivar: Float32Array
    snr: Float64Array
    unread: StrArray


@dataclass(frozen=True)
class SpectraSource:
    """Spectra, and everything known of each.

    Attributes
    ----------
    spectra : Survey or FileSurvey
    columns : dict of str to (n_star,) array
        With ``id`` and ``star_id``.
    labels : tuple of Label
        Labels that it knows.
    citation : tuple of str
        Keys of the bibliography, where a survey recipe names them.
    epoch_yr : float
        Of its positions.
    """

    spectra: Survey | FileSurvey
    columns: Columns
    labels: tuple[Label, ...]
    citation: tuple[str, ...]
    epoch_yr: float

    def __len__(self) -> int:
        return len(self.spectra)

    @property
    def further(self) -> tuple[Column, ...]:
        """Definitions of columns that `maury.labels.columns` does not have."""
        known = columns_module.known(self.labels)
        if isinstance(self.spectra, FileSurvey):
            return self.spectra.further
        found = []
        for name in self.spectra.column_names:
            if name not in known:
                variable = self.spectra.dataset[name]
                kind = "str" if self.columns[name].dtype.kind == "U" else str(variable.dtype)
                about = [str(variable.attrs.get(k, "")) for k in ("units", "ucd", "description")]
                found.append(Column(name, about[0], about[1], about[2], kind))
        return tuple(found)

    def texts(self, name: str) -> StrArray:
        """Return a column as text, for identifiers."""
        check_known("column of the spectra", name, self.columns)
        return self.columns[name].astype(np.str_)

    def positions(self) -> Positions:
        """Return positions, ``ra`` and ``dec``, at one epoch."""
        for name in ("ra", "dec"):
            check_known(
                "column of the spectra, needed for a match by position,", name, self.columns
            )
        ra, dec = self.columns["ra"], self.columns["dec"]
        return Positions(ra.astype(np.float64), dec.astype(np.float64), self.epoch_yr)

    def chunks(self, rows: IndexArray, start: int) -> Iterator[tuple[int, Chunk]]:
        """Yield the chosen rows from output row `start` on, a chunk of a store at a time."""
        # From the edge of a chunk: where a killed run left half of one, it is written again whole.
        for first in range(start // CHUNK_STARS * CHUNK_STARS, rows.size, CHUNK_STARS):
            chosen = rows[first : first + CHUNK_STARS]
            pieces = []
            # Rows ascend, so that each stretch is read once, and those between are not held.
            for low in range(int(chosen[0]), int(chosen[-1]) + 1, CHUNK_STARS):
                here = chosen[(chosen >= low) & (chosen < low + CHUNK_STARS)] - low
                if here.size:
                    batch = self.spectra.batch(low, min(low + CHUNK_STARS, len(self)))
                    unread = batch.columns.get("unread", np.full(len(batch), ""))
                    spectra, snr = batch.spectra, batch.column("snr")
                    parts = (spectra.flux, spectra.ivar, snr, unread)
                    pieces.append([part[here] for part in parts])
            flux, ivar, snr, unread = (np.concatenate(parts) for parts in zip(*pieces, strict=True))
            yield first, Chunk(flux, ivar, snr, unread)


def open_spectra(entry: SpectraEntry, stack: ExitStack) -> SpectraSource:
    """Open the spectra of a build.

    Raises
    ------
    ConfigError, InputFileError, SurveyFileError
        If the files, or what describes them, are wrong.
    """
    citation: Sequence[str] = ()
    epoch = entry.epoch
    if entry.store is not None:
        survey = Survey.open(entry.store)
        columns: Columns = {name: survey.column(name) for name in survey.column_names}
        return SpectraSource(survey, columns, survey.label_definitions, (), epoch)
    if entry.ingest is not None:
        files = open_toml(entry.ingest, skip_bad=entry.skip_bad)
    else:
        files, citation, epoch = _open_recipe(entry)
    stack.enter_context(files)
    # Known only once spectra are read, but a store must declare all its columns at the start.
    columns = {"snr": np.full(len(files), np.nan), **files.columns}
    if files.source.skip_bad:
        columns["unread"] = np.full(len(files), "")
    return SpectraSource(files, columns, files.labels, tuple(citation), epoch)


def _open_recipe(entry: SpectraEntry) -> tuple[FileSurvey, Sequence[str], float]:
    assert entry.recipe is not None
    assert entry.path is not None
    recipe = load(entry.recipe)
    files = open_recipe(entry.recipe, entry.path, arm=entry.arm, skip_bad=entry.skip_bad)
    stated = recipe.position.epoch if recipe.position is not None else None
    epoch = stated if isinstance(stated, float) else entry.epoch
    return files, recipe.citation, epoch
