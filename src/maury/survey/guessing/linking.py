"""How tables belong to spectra: by identifier, by way of another table, or row by row."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import MauryError
from maury.io.arrays import AnyArray, IndexArray, StrArray
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.survey.guessing import naming
from maury.survey.guessing.document import Entry, Section
from maury.survey.readers.sources import stem

_LEAST_SHARE = 0.02
"""Of the spectra that a table must know to be joined at all; chosen."""
_FEW_COLUMNS, _FEW_ROWS = 60, 200_000
"""Of a table whose columns are all compared, whatever their names: some seconds at most."""
_MOST_EACH = 50
"""Exposures of a star, in the mean of a log, above which a column is of a field or a night."""
_CHANCE_DIGITS = 6
"""Whole numbers of fewer digits, as of fibres or plates, may agree by chance."""


@dataclass
class Linked:
    """A table that belongs to the spectra.

    Attributes
    ----------
    title : str
        How the file calls it.
    table : SourceTable
    rows : (n_star,) int or None
        Its row for each spectrum, -1 where it has none; None if alike.
    section : Section or None
        What describes it; None for the table that the spectra are in.
    """

    title: str
    table: SourceTable
    rows: IndexArray | None
    section: Section | None = None

    def take(self, values: AnyArray, missing: Any) -> AnyArray:
        """Return values of a column in the order of the spectra."""
        if self.rows is None:
            return values
        return np.asarray(np.where(self.rows >= 0, values[np.maximum(self.rows, 0)], missing))


@dataclass
class Links:
    """All tables that were joined, and those that were not.

    Attributes
    ----------
    ids : (n_star,) str or None
        Identifiers of the spectra.
    id_entry : Entry or None
        The key ``id`` of ``[spectra]``.
    id_column : Entry or None
        The key ``id`` of ``[columns]``, where a table beside the spectra has the identifiers.
    joined : list of Linked
    apart : list of Section
        Comments on tables that were not joined.
    """

    ids: StrArray | None
    id_entry: Entry | None = None
    id_column: Entry | None = None
    joined: list[Linked] = field(default_factory=list)
    apart: list[Section] = field(default_factory=list)


@dataclass(frozen=True)
class _Option:
    """A way to join a table."""

    matched: int
    direct: bool
    named_alike: bool
    path: Path
    id: str
    through: tuple[str, str] | None
    rows: IndexArray
    chance: bool

    @property
    def rank(self) -> tuple[int, bool, bool]:
        return self.matched, self.direct, self.named_alike


def link(
    paths: Sequence[Path],
    n_star: int,
    stack: ExitStack,
    *,
    base: Path,
    ids: StrArray | None,
    own: SourceTable | None,
) -> Links:
    """Join tables to spectra, the surest first.

    Parameters
    ----------
    paths : sequence of Path
        Tables.
    n_star : int
        Number of spectra.
    stack : ExitStack
        Closes the tables.
    base : Path
        Folder that paths are written relative to.
    ids : (n_star,) str or None
        Identifiers of the spectra, where files say them.
    own : SourceTable or None
        The table that the spectra are in.
    """
    tables = {path: open_table(path, stack) for path in paths}
    words = {path: _identifiers(table) for path, table in tables.items()}
    links = Links(ids)
    if own is not None:
        links.joined.append(Linked("spectra", own, None))
        if ids is None:
            _own_id(links, own, words)
    elif ids is None:
        _row_by_row(links, tables, n_star, base)
    joined = {one.table.path for one in links.joined}
    pending = [path for path in paths if path not in joined]
    _join(links, pending, tables, words, base=base, n_star=n_star)
    # Whatever is left may go by a name that nobody thought of: by values alone, then.
    every = {path: _texts_of_few(tables[path]) for path in pending}
    _join(links, pending, tables, every, base=base, n_star=n_star, any_name=True)
    known = [one for one in (links.ids,) if one is not None]
    known += [one.take(t, "") for one in links.joined for t in _identifiers(one.table).values()]
    links.apart += [
        _apart(path, tables[path], base, _twice(words[path], known)) for path in pending
    ]
    return links


def _join(
    links: Links,
    pending: list[Path],
    tables: Mapping[Path, SourceTable],
    words: Mapping[Path, Mapping[str, StrArray]],
    *,
    base: Path,
    n_star: int,
    any_name: bool = False,
) -> None:
    """Join tables, the surest first, and take them out of `pending`, until no more can be."""
    while pending:
        best = max(
            (one for path in pending for one in _options(path, words[path], links, any_name)),
            key=lambda one: one.rank,
            default=None,
        )
        if best is None or best.matched < max(1.0, _LEAST_SHARE * n_star):
            return
        links.joined.append(_linked(best, tables[best.path], n_star, base))
        pending.remove(best.path)


def _texts_of_few(table: SourceTable) -> dict[str, StrArray]:
    """Return the columns of a small table that hold whole numbers or texts, as texts."""
    if len(table.names) > _FEW_COLUMNS or table.n_row > _FEW_ROWS:
        return {}
    found = {name: texts for name in table.names if (texts := _texts(table, name)) is not None}
    return {name: texts for name, texts in found.items() if _names_something(texts)}


def _names_something(texts: StrArray) -> bool:
    """Whether values look like identifiers: long whole numbers, or no numbers, of many stars."""
    given = texts[texts != ""]
    long = [not one.isdigit() or len(one) >= _CHANCE_DIGITS for one in given[:10].tolist()]
    numbers = [one.lstrip("+-").replace(".", "", 1).isdigit() and "." in one for one in given[:10]]
    # Most of them: one odd number, such as 0 for none, says nothing of the others.
    return bool(
        given.size
        and 2 * sum(long) > len(long)
        and not any(numbers)
        and _MOST_EACH * np.unique(given).size > given.size
    )


def _identifiers(table: SourceTable) -> dict[str, StrArray]:
    """Return the columns of a table that sound like identifiers, as texts."""
    found = {}
    for name in table.names:
        if naming.is_identifier(name) and (texts := _texts(table, name)) is not None:
            found[name] = texts
    return found


def _texts(table: SourceTable, name: str) -> StrArray | None:
    try:
        return table.texts(name)
    except MauryError:
        return None


def _unique(texts: StrArray) -> bool:
    return bool(np.all(texts != "")) and np.unique(texts).size == texts.size


def _own_id(links: Links, own: SourceTable, words: Mapping[Path, Mapping[str, StrArray]]) -> None:
    """Choose the identifiers in the table of the spectra: those that other tables know best."""
    unique = {name: texts for name, texts in _identifiers(own).items() if _unique(texts)}
    if not unique:
        return
    others = [texts for columns in words.values() for texts in columns.values()]
    known = {
        name: max((int(np.isin(texts, other).sum()) for other in others), default=0)
        for name, texts in unique.items()
    }
    best = max(known, key=lambda name: known[name])
    links.ids = unique[best]
    why = f"{unique[best].size} different values; other tables know {known[best]} of them."
    links.id_entry = Entry("id", best, why, doubtful=len(unique) > 1 and not known[best])


def _row_by_row(links: Links, tables: Mapping[Path, SourceTable], n_star: int, base: Path) -> None:
    """Join tables of as many rows as spectra, which have no identifiers, in the order they stand.

    One that has identifiers gives them to the spectra.
    """
    for path, table in tables.items():
        if table.n_row != n_star:
            continue
        named = {name: texts for name, texts in _identifiers(table).items() if _unique(texts)}
        if named and links.ids is not None:
            # It is joined by them then, which does not lean on the order.
            continue
        why = f"{n_star} rows, as many as spectra, which have no identifiers: taken in this order."
        entries = (Entry("file", _relative(path, base), why, doubtful=True),)
        title = path.name
        links.joined.append(Linked(title, table, None, Section("[[table]]", entries)))
        if named:
            name = next(iter(named))
            links.ids = named[name]
            value = {"name": name, "table": title}
            links.id_column = Entry("id", value, f"{n_star} different values.")


def _options(
    path: Path, words: Mapping[str, StrArray], links: Links, any_name: bool
) -> list[_Option]:
    """Return the ways in which a table may be joined, by each of its identifiers.

    With `any_name` each column of a small log may lead to it, else those that sound like one.
    """
    options = []
    for name, here in words.items():
        if links.ids is not None:
            option = _option(path, name, here, links.ids, None)
            # A log names files, as the folder has them, or with suffixes.
            stems = np.array([stem(Path(text)) for text in here.tolist()], dtype=np.str_)
            filed = _option(path, name, stems, links.ids, None)
            options += [one for one in (option, filed) if one is not None][:1]
        for log in links.joined:
            for column, texts in _leading(log.table, name, any_name).items():
                if texts.size:
                    keys = log.take(texts, "")
                    option = _option(path, name, here, keys, (log.title, column))
                    options += [option] if option is not None else []
    return options


def _leading(table: SourceTable, name: str, any_name: bool) -> dict[str, StrArray]:
    """Return columns of a joined table that may lead to the column `name` of another one."""
    if any_name and (few := _texts_of_few(table)):
        return few
    wanted = [one for one in table.names if naming.is_identifier(one) or one == name]
    return {one: texts for one in wanted if (texts := _texts(table, one)) is not None}


def _option(
    path: Path, name: str, here: StrArray, keys: StrArray, through: tuple[str, str] | None
) -> _Option | None:
    wanted = np.isin(here, keys) & (here != "")
    numbers = np.flatnonzero(wanted)
    # Identifiers that stand twice name nothing.
    if not numbers.size or np.unique(here[numbers]).size < numbers.size:
        return None
    numbers = numbers[np.argsort(here[numbers])]
    place = np.minimum(np.searchsorted(here[numbers], keys), numbers.size - 1)
    rows = np.where(here[numbers[place]] == keys, numbers[place], -1)
    short = [text.isdigit() and len(text) < _CHANCE_DIGITS for text in here[numbers[:10]].tolist()]
    alike = through is not None and naming.plain(through[1]) == naming.plain(name)
    matched = int((rows >= 0).sum())
    return _Option(
        matched, through is None, alike, path, name, through, rows, all(short) and not alike
    )


def _linked(option: _Option, table: SourceTable, n_star: int, base: Path) -> Linked:
    way = "identifiers of the spectra"
    if option.through is not None:
        way = f"the column {option.through[1]} of {option.through[0]}"
    why = f"{option.matched} of {n_star} spectra are found in it by {option.id} = {way}"
    why += ", short numbers that may agree by chance." if option.chance else "."
    doubtful = option.chance or 2 * option.matched < n_star
    entries = [
        Entry("file", _relative(option.path, base)),
        Entry("id", option.id, why, doubtful),
    ]
    if option.through is not None:
        title, column = option.through
        entries.append(Entry("through", {"table": title, "column": column}))
    return Linked(option.path.name, table, option.rows, Section("[[table]]", tuple(entries)))


def _twice(words: Mapping[str, StrArray], known: Sequence[StrArray]) -> str:
    """Return the column of a table that knows spectra, but some of them twice; else nothing."""
    for name, here in words.items():
        for keys in known:
            found = here[np.isin(here, keys) & (here != "")]
            if np.unique(found).size < found.size:
                values, counts = np.unique(found, return_counts=True)
                return f"{name} (such as {values[counts > 1][0]})"
    return ""


def _apart(path: Path, table: SourceTable, base: Path, twice: str) -> Section:
    entries = (Entry("file", _relative(path, base), off=True), Entry("id", "?", off=True))
    if twice:
        why = (
            f"{path.name} ({table.n_row} rows) has identifiers of the spectra twice in {twice}, "
            "and is left out: which row counts? Leave one row for each, and write its id here."
        )
        return Section("[[table]]", (Entry(why=why, doubtful=True), *entries), off=True)
    why = (
        f"{path.name} ({table.n_row} rows) has no column whose values are identifiers of the "
        f"spectra or stand in a table above, and is left out. Its columns: "
        f"{', '.join(table.names[:30])}."
    )
    return Section("[[table]]", (Entry(why=why, doubtful=True), *entries), off=True)


def _relative(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix()
    except ValueError:
        return path.as_posix()
