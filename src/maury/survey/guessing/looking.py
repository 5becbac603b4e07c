"""What the files of a folder are: spectra of many stars, of one star each, tables, or neither."""

import os
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from maury.errors import InputFileError, MauryError
from maury.io.opening import files_of
from maury.io.tables import TABLE_SUFFIXES, open_table
from maury.survey.guessing.document import Entry
from maury.survey.guessing.fits_files import look_at_fits
from maury.survey.guessing.published import look_at_published, published_among
from maury.survey.guessing.seen import Seen
from maury.survey.guessing.text_files import look_at_text
from maury.survey.readers.sources import FITS_SUFFIXES

_MOST_EACH = 200
"""Files of one suffix in one folder that are all opened; of more, `_SAMPLE` stand for all."""
_SAMPLE = 5
"""Files that stand for all others of their kind; chosen."""
_DOCUMENTS = (
    *(".md", ".rst", ".html", ".htm", ".pdf", ".ps", ".eps", ".png", ".jpg", ".jpeg", ".gif"),
    *(".json", ".toml", ".yaml", ".py", ".sh", ".md5", ".sha256", ".ipynb"),
)
_ARCHIVES = (".zip", ".tar", ".tgz", ".tar.gz", ".tar.bz2", ".tar.xz", ".7z", ".rar")
_UNREAD = (".h5", ".hdf5", ".asdf", ".sav", ".mat", ".pickle", ".pkl")
"""Containers that no reader opens: the first may hold anything, the last may run anything."""
_STORES = (".zarr", ".model")


@dataclass(frozen=True)
class Look:
    """What a folder holds.

    Attributes
    ----------
    spectra : tuple of Seen
        Candidates; the first has a grid, and holds most spectra.
    tables : tuple of Path
    others : tuple of (str, str)
        Names of other files, and why they are left out.
    """

    spectra: tuple[Seen, ...]
    tables: tuple[Path, ...]
    others: tuple[tuple[str, str], ...]


def look(folder: Path) -> Look:
    """Look at all files of a folder and of its folders; stores and models are left out.

    Raises
    ------
    InputFileError
        If it is no folder, or holds no file.
    """
    if not folder.is_dir():
        raise InputFileError(f"{folder} is no directory; give the folder of your survey")
    paths = sorted(
        path
        for path in files_of(folder, "*", deep=True)
        if not any(part.endswith(_STORES) for part in path.relative_to(folder).parts)
    )
    if not paths:
        raise InputFileError(f"{folder} holds no files; give the folder of your survey")
    groups: dict[tuple[Path, str], list[Path]] = defaultdict(list)
    for path in paths:
        groups[path.parent, _suffix(path)].append(path)
    found: list[Seen] = []
    for group in groups.values():
        found += _group(group)
    spectra = [one for one in found if one.kind == "spectra"]
    others = ((os.fspath(one.path.relative_to(folder)), one.why) for one in found)
    return Look(
        tuple(sorted(spectra, key=_preference)),
        tuple(one.path for one in found if one.kind == "table"),
        tuple(other for other, one in zip(others, found, strict=True) if one.kind == "other"),
    )


def _preference(one: Seen) -> tuple[bool, int, int]:
    """Return what sorts candidates: those whose grid is known, many spectra, much said of them."""
    keys = {entry.key for entry in one.spectra}
    return (
        one.wave is None and one.reader is None,
        -one.n_star,
        -len(keys & {"id", "error", "ivar", "reader"}) - one.is_folder,
    )


def _suffix(path: Path) -> str:
    name = path.name.lower()
    for suffix in sorted((*FITS_SUFFIXES, *TABLE_SUFFIXES), key=len, reverse=True):
        if name.endswith(suffix):
            return suffix
    return path.suffix.lower()


def _group(paths: Sequence[Path]) -> list[Seen]:
    """Return what files of one folder and suffix are; those of one star each become one."""
    if _suffix(paths[0]) in (*FITS_SUFFIXES, ".csv"):
        published = look_at_published(paths)
        if published is not None and published.kind == "spectra":
            return [published]
        among, rest = published_among(paths)
        if among:
            return [*among, *(_group_of_own(rest) if rest else [])]
    return _group_of_own(paths)


def _group_of_own(paths: Sequence[Path]) -> list[Seen]:
    """Return what files of one folder and suffix are, none of them of a published format."""
    if len(paths) > _MOST_EACH:
        sample = [look_at(path) for path in paths[:_SAMPLE]]
        alike = {one.kind for one in sample} == {"spectrum"}
        return [_folder(sample, paths)] if alike else [*sample, _unlooked(paths[_SAMPLE:])]
    each = [look_at(path) for path in paths]
    single = [one for one in each if one.kind == "spectrum"]
    rest = [one for one in each if one.kind != "spectrum"]
    return [*rest, _folder(single, [one.path for one in single])] if single else rest


def _unlooked(paths: Sequence[Path]) -> Seen:
    return Seen(paths[0], "other", why=f"and {len(paths) - 1} more of its kind: not looked at")


def _folder(single: Sequence[Seen], paths: Sequence[Path]) -> Seen:
    """Return files of one star each as the spectra of a folder."""
    first = single[0]
    pattern, certain = _pattern(paths)
    why = f"{len(paths)} files, one star each; identifiers are their names without suffix."
    entry = Entry("pattern", pattern, why if certain else f"{why} It also matches other files.")
    return replace(
        first,
        kind="spectra",
        path=first.path.parent,
        paths=tuple(paths),
        n_star=len(paths),
        grids=tuple(one.wave for one in single if one.wave is not None),
        spectra=(replace(entry, doubtful=not certain), *first.spectra),
    )


def _pattern(paths: Sequence[Path]) -> tuple[str, bool]:
    """Return a pattern of names, and whether it matches these files of their folder alone."""
    folder, wanted = paths[0].parent, set(paths)
    if len(paths) == 1:
        return paths[0].name, True
    suffix = _suffix(paths[0])
    start = _common_start(paths[0].name, paths[-1].name)
    for pattern in (f"*{suffix}", f"{start}*{suffix}"):
        # Brackets and the like in names would be parts of the pattern.
        if not set(pattern) & set("[]?") and wanted == set(folder.glob(pattern)):
            return pattern, True
    return f"*{suffix}", False


def _common_start(first: str, last: str) -> str:
    """Return the beginning that two names share, and so all names sorted between them."""
    same = takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return "".join(letter for letter, _ in same)


def look_at(path: Path) -> Seen:
    """Look at one file; one that cannot be read is another one, with the reason."""
    suffix = _suffix(path)
    if suffix in _DOCUMENTS:
        return Seen(path, "other", why="a document")
    if path.name.lower().endswith(_ARCHIVES):
        return Seen(path, "other", why="an archive: unpack it, and look again")
    if suffix in _UNREAD:
        return Seen(path, "other", why="no format that is read: export it as FITS, Parquet or NPZ")
    try:
        if suffix in FITS_SUFFIXES:
            return look_at_fits(path)
        if suffix in (".npz", ".npy"):
            from maury.survey.guessing.array_files import look_at_arrays

            return look_at_arrays(path)
        kind = TABLE_SUFFIXES.get(suffix)
        if kind in (None, "csv", "text"):
            return look_at_text(path, is_table=kind == "csv" or _is_text_table(path, kind))
        return _look_at_table(path, parquet=kind == "parquet")
    except (MauryError, OSError) as error:
        return Seen(path, "other", why=f"it cannot be read: {error}")


def _is_text_table(path: Path, kind: str | None) -> bool:
    """Whether a text opens as a table; a README does not, nor a list of one column."""
    if kind is None:
        return False
    try:
        with ExitStack() as stack:
            table = open_table(path, stack)
            return len(table.names) > 1
    except MauryError:
        return False


def _look_at_table(path: Path, *, parquet: bool) -> Seen:
    """Look at a VOTable, ECSV or Parquet file: spectra a row, one spectrum, or a table."""
    from maury.survey.guessing.array_files import vectors_of

    with ExitStack() as stack:
        table = open_table(path, stack)
        if vectors := vectors_of(table):
            return vectors
    return Seen(path, "table", n_star=table.n_row)
