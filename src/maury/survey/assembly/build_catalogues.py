"""Catalogues of a build: opened, cut, and read, each row on record."""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from maury.errors import ColumnError, ConfigError, InputFileError, check_known
from maury.io.arrays import AnyArray, BoolArray, Float64Array, IndexArray, StrArray
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.survey.archives import Cut, SurveyRecipe, apply_cuts, load
from maury.survey.archives.recipe import EpochFacts
from maury.survey.assembly.build_file import CatalogueEntry
from maury.survey.assembly.flow import Flow
from maury.survey.crossmatch import Positions
from maury.survey.readers.values import converted, stands_for_missing, without_missing

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class CutCatalogue:
    """A catalogue after its cuts.

    Attributes
    ----------
    entry : CatalogueEntry
    recipe : SurveyRecipe
    table : SourceTable
    rows : (n,) int
        Rows of the table that passed every cut.
    """

    entry: CatalogueEntry
    recipe: SurveyRecipe
    table: SourceTable
    rows: IndexArray

    @property
    def title(self) -> str:
        """How the flow table calls it."""
        return self.entry.title

    def __len__(self) -> int:
        return int(self.rows.size)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Labels that the recipe maps and the file has."""
        known = {label.name for label in self.recipe.labels}
        return tuple(name for name in self._held if name in known)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Columns that the recipe maps and the file has, but for labels and identifiers."""
        labels = {label.name for label in self.recipe.labels}
        labels |= {f"{name}_error" for name in labels} | {"id", "star_id"}
        return tuple(
            column.name
            for name in self._held
            if name not in labels
            for column in self.recipe.parts(name)
        )

    @property
    def _held(self) -> list[str]:
        """Columns of the recipe that the file has."""
        return [n for n, c in self.recipe.columns.items() if c.name in self.table.names]

    def values(self, name: str) -> AnyArray:
        """Return a column of ``maury``, shape (n,); floats are NaN where missing."""
        known = self.recipe.definitions[name]
        entry, place, size = self._origin(name)
        source = self.recipe.columns[entry]
        if known.kind == "str":
            return self.table.texts(source.name)[self.rows]
        what = f"{self.table.path}, column {source.name!r}"
        missing = self.recipe.table.missing if source.missing is None else source.missing
        if size == 1:
            raw = self.table.floats(source.name, index=source.index)[self.rows]
        else:
            raw = self._arrays(source.name, size)[self.rows, place]
        unit = self.table.units.get(source.name) if source.unit is None else source.unit
        values = without_missing(raw, known, missing)
        return converted(values, known, unit, what=what) + source.offset

    def _origin(self, name: str) -> tuple[str, int, int]:
        """Entry of the recipe that fills a column, which of its parts that is, and of how many."""
        for entry in self._held:
            parts = [column.name for column in self.recipe.parts(entry)]
            if name in parts:
                return entry, parts.index(name), len(parts)
        raise AssertionError(f"{name} is no column of {self.title}")

    @cached_property
    def _arrays(self) -> Callable[[str, int], Float64Array]:
        # A column of arrays fills many columns, and is unpacked once for all of them.
        return cache(self.table.vectors)

    def floats(self, name: str, *, unit: str | None = None) -> Float64Array:
        """Return a column of the catalogue as numbers, shape (n,), in its unit or the one given."""
        values = self.table.floats(name)[self.rows]
        bad = stands_for_missing(values, self.recipe.table.missing)
        # Before units are converted, after which -9999 is a number that nobody recognises.
        known = np.where(bad, np.nan, values)
        return known if unit is None else self.table.converted(known, name, unit)

    def labels(self, names: Sequence[str]) -> tuple[Float64Array, Float64Array]:
        """Return labels and their errors, each (n, n_label), NaN where missing or unknown."""
        values, errors = np.full((2, len(self), len(names)), np.nan)
        for k, name in enumerate(names):
            values[:, k] = self.values(name)
            if f"{name}_error" in self._held:
                errors[:, k] = self.values(f"{name}_error")
        return values, errors

    def identifiers(self, kind: str) -> StrArray:
        """Return identifiers, shape (n,), empty where missing.

        Parameters
        ----------
        kind : str
            ``id``, ``star``, ``spectrum``, a name of ``[id.other]``, or a column of the table.
        """
        facts = self.recipe.id
        assert facts is not None, "a catalogue has identifiers"
        ways = {"id": facts.column, **facts.other, "star": facts.star or facts.column}
        if facts.spectrum is not None:
            ways["spectrum"] = facts.spectrum
        if kind not in ways:
            check_known(f"identifier of {self.title}", kind, [*ways, *self.table.names])
        texts = self.table.texts(ways.get(kind, kind))[self.rows]
        # Surveys write 0 or -1 where a star has no counterpart in another one.
        return np.where(np.isin(texts, ["0", "-1", "-9999"]), "", texts)

    def positions(self, epoch_yr: float) -> Positions:
        """Return positions; `epoch_yr` is theirs where the recipe does not say.

        Raises
        ------
        ConfigError
            If the recipe tells no positions.
        """
        facts = self.recipe.position
        if facts is None:
            raise ConfigError(f'the recipe of {self.title} has no [position]; match it by = "id"')
        epoch: Float64Array | float = epoch_yr
        if isinstance(facts.epoch, str):
            epoch = self.floats(facts.epoch)
        elif isinstance(facts.epoch, EpochFacts):
            epoch = self._epochs(facts.epoch, epoch_yr)
        elif facts.epoch is not None:
            epoch = facts.epoch
        ra, dec = self.floats(facts.ra, unit="deg"), self.floats(facts.dec, unit="deg")
        if facts.pmra is None or facts.pmdec is None:
            return Positions(ra, dec, epoch)
        pmra = self.floats(facts.pmra, unit="mas/yr")
        return Positions(ra, dec, epoch, pmra, self.floats(facts.pmdec, unit="mas/yr"))

    def _epochs(self, facts: EpochFacts, epoch_yr: float) -> Float64Array | float:
        if facts.column in self.table.names:
            return facts.years(self.floats(facts.column))
        epoch = epoch_yr if facts.otherwise is None else facts.otherwise
        logger.warning("%s has no %r: positions count as of %g", self.title, facts.column, epoch)
        return epoch

    def only(self, keep: BoolArray) -> "CutCatalogue":
        """Return the catalogue with some of its rows."""
        return CutCatalogue(self.entry, self.recipe, self.table, self.rows[keep])


def open_catalogue(entry: CatalogueEntry, flow: Flow, stack: ExitStack) -> CutCatalogue:
    """Open a catalogue, apply its cuts, and take them down.

    Raises
    ------
    ConfigError
        If the recipe is wrong, or describes no catalogue.
    InputFileError
        If the file cannot be read, or lacks a column.
    """
    recipe = load(entry.recipe)
    if recipe.id is None or not recipe.columns:
        raise ConfigError(f"the recipe {recipe.name} describes no catalogue; name another")
    table = open_table(Path(entry.file), stack, hdu=recipe.table.hdu)
    _tell_lacking(recipe, table)
    flow.add(
        entry.title,
        "read",
        table.n_row,
        table.n_row,
        why=f"rows of {table.path.name}",
        source=", ".join(recipe.citation),
    )
    recommended = recipe.cuts(without=entry.without, also=entry.also)
    if entry.role == "columns":
        recommended = _applicable(entry, recommended, table, flow)
    cuts = (*recommended, *entry.cut)
    selection = apply_cuts(cuts, table, missing=recipe.table.missing)
    for cut, step in zip(selection.cuts, selection.flow(), strict=True):
        lost = f" ({step.n_missing} without a value)" if step.n_missing else ""
        flow.add(
            entry.title,
            step.name,
            step.n_in,
            step.n_out,
            why=f"{step.why}: {cut}{lost}",
            source=cut.source,
        )
    opened = CutCatalogue(entry, recipe, table, np.flatnonzero(selection.keep))
    if not len(opened):
        steps = [f"{s.step}: {s.n_in} to {s.n_out}" for s in flow.of(entry.title) if s.n_removed]
        raise InputFileError(
            f"no row of {table.path} passes the cuts ({'; '.join(steps)}); relax them by 'without'"
        )
    return _preferred(opened, flow) if entry.match.prefer is not None else opened


def _applicable(
    entry: CatalogueEntry, cuts: Sequence[Cut], table: SourceTable, flow: Flow
) -> tuple[Cut, ...]:
    """Return recommended cuts whose columns a table has; the others are told, and taken down.

    Of a table that gives no labels alone: an excerpt of the Gaia archive has the columns that
    somebody asked for, and no bad label gets in.
    """
    kept = []
    for cut in cuts:
        lacking = [name for name in cut.columns if name not in table.names]
        if not lacking or cut.name in entry.also:
            kept.append(cut)
            continue
        why = f"not applied: {table.path.name} has no {', '.join(lacking)}"
        logger.warning("%s: the recommended cut %r is %s", entry.title, cut.name, why)
        flow.add(entry.title, cut.name, table.n_row, table.n_row, why=why, source=cut.source)
    return tuple(kept)


def _tell_lacking(recipe: SurveyRecipe, table: SourceTable) -> None:
    lacking = [c.name for c in recipe.columns.values() if c.name not in table.names]
    # Releases of a catalogue differ by some columns; a file with none of them is of another one.
    if len(lacking) == len(recipe.columns):
        raise ColumnError(
            f"{table.path} has none of the columns of {recipe.name} (it has "
            f"{', '.join(table.names[:20])}); name the file that belongs to the recipe"
        )
    if lacking:
        names = ", ".join(sorted(set(lacking)))
        logger.warning("%s has no %s: what comes of them is missing", table.path, names)


def _preferred(catalogue: CutCatalogue, flow: Flow) -> CutCatalogue:
    """Of rows with one identifier, keep that with the highest value; a missing one is lowest."""
    match = catalogue.entry.match
    assert match.prefer is not None
    ids = catalogue.identifiers(match.catalogue)
    rank = catalogue.floats(match.prefer)
    # NaN sorts last, and would win over every known value.
    order = np.lexsort((np.where(np.isfinite(rank), rank, -np.inf), ids))
    last = np.ones(order.size, dtype=np.bool_)
    last[:-1] = ids[order][1:] != ids[order][:-1]
    # Rows without an identifier are no copies of each other: all of them stay.
    keep = ids == ""
    keep[order[last]] = True
    flow.add(
        catalogue.title,
        "one-row-a-star",
        len(catalogue),
        int(keep.sum()),
        why=f"another row of the same {match.catalogue} has a higher {match.prefer}",
        source="recipe",
    )
    return catalogue.only(keep)
