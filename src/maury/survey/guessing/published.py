"""Files of published formats: told by trying each reader on them."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path

from maury.errors import InputFileError, MauryError
from maury.io.arrays import Float64Array
from maury.io.opening import open_fits, reading
from maury.survey.guessing.document import Entry
from maury.survey.guessing.recipes import known_of
from maury.survey.guessing.seen import Seen
from maury.survey.readers.formats import FORMATS, open_format
from maury.survey.readers.sources import FITS_SUFFIXES, FormatSource

_TRIED = 3
"""Files of a folder that the readers are tried on."""
_MOST_MIXED = 200
"""Files of a folder of several kinds that are looked at one by one."""
_GRIDS = 5
"""Spectra whose wavelengths are compared; chosen."""
_HEAD_BYTES = 28800
"""Of a FITS file, in which the survey may name itself: ten blocks of header."""


def look_at_published(paths: Sequence[Path]) -> Seen | None:
    """Return files of one folder as spectra of a published format, if a reader takes them all."""
    names = readers_of(paths[0])
    for path in paths[1:_TRIED] if names else ():
        names = [name for name in names if _opens(name, path)]
    return _published(paths, names) if names else None


def published_among(paths: Sequence[Path]) -> tuple[list[Seen], list[Path]]:
    """Return those files of a mixed folder that readers of published formats open, and the rest.

    Files of several arms of one survey, which stand side by side in wavelength, become one.
    """
    if len(paths) > _MOST_MIXED:
        return [], list(paths)
    alike: dict[tuple[object, ...], list[Path]] = {}
    for path in paths:
        alike.setdefault(_outline(path), []).append(path)
    kinds: dict[tuple[str, ...], list[Path]] = {}
    for group in alike.values():
        kinds.setdefault(tuple(readers_of(group[0])), []).extend(group)
    rest = kinds.pop((), [])
    return _with_arms([_published(group, names) for names, group in kinds.items()]), rest


def _outline(path: Path) -> tuple[object, ...]:
    """Return what files of one kind share: names that formats ask for, and HDUs or columns.

    Trying all readers on one file takes .3 s, the outline a fiftieth of that.
    """
    fits_like = path.name.lower().endswith(FITS_SUFFIXES)
    named = [n for n in FORMATS if fnmatch(path.name, getattr(FORMATS[n], "pattern", ""))]
    try:
        with reading(path), ExitStack() as stack:
            if not fits_like:
                with path.open("rb") as stream:
                    return (*named, stream.readline(_HEAD_BYTES))
            hdus = open_fits(path, stack)
            return (
                *named,
                *((type(hdu).__name__, hdu.name, hdu.header.get("NAXIS")) for hdu in hdus),
            )
    # What cannot be opened is of no kind but its own; the readers say so.
    except MauryError:
        return (path,)


def _published(paths: Sequence[Path], names: Sequence[str]) -> Seen:
    """Return files as spectra of the likeliest of some readers."""
    named = {name: _says(paths[0], name.split("-")[0]) for name in names}
    chosen = max(names, key=lambda name: named[name])
    others = [name for name in names if name != chosen]
    # One reader whose survey the file names is no guess among others whose it does not.
    sure = named[chosen] and not any(named[name] for name in others)
    also = f" So does {', '.join(others)}." if others else ""
    what = paths[0].name if len(paths) == 1 else f"{min(len(paths), _TRIED)} of {len(paths)} files"
    why = f"A published format: this reader opens {what} and settles the rest.{also}"
    place = paths[0] if len(paths) == 1 else paths[0].parent
    try:
        with ExitStack() as stack:
            source = open_format(chosen, place, stack)
            n_star, medium, grids = source.n_star, source.medium, _grids(source)
            is_table = source.table is not None
            if 1 < len(paths) <= _MOST_MIXED and n_star != _spectra_in(paths, chosen):
                # The pattern of the format matches other files of the folder as well.
                raise InputFileError("other files of the folder would be read with them")
    except MauryError as error:
        more = f"and {len(paths) - 1} more of the format {chosen}: put these into a folder of "
        return Seen(paths[0], "other", why=f"{more}their own ({error})")
    return Seen(
        place,
        "spectra",
        n_star,
        spectra=(Entry("reader", chosen, why, doubtful=bool(others) and not sure),),
        reader=chosen,
        known=known_of(chosen),
        grids=grids,
        paths=() if len(paths) == 1 else tuple(paths),
        medium=medium,
        is_table=is_table,
    )


def _spectra_in(paths: Sequence[Path], reader: str) -> int:
    """Return the number of spectra in some files, each opened by itself."""
    total = 0
    for path in paths:
        with ExitStack() as stack:
            total += open_format(reader, path, stack).n_star
    return total


def _grids(source: FormatSource) -> tuple[Float64Array, ...]:
    """Return the wavelengths of the first spectra, as far as they can be read."""
    found = []
    for row in range(min(source.n_star, _GRIDS)):
        try:
            wave = next(iter(source.pieces(row, row + 1))).wave_aa
        except MauryError:
            continue
        found += [wave] if wave.size else []
    return tuple(found)


def _with_arms(found: Sequence[Seen]) -> list[Seen]:
    """Put files of one recipe whose wavelengths do not overlap together, as arms of one survey."""
    ordered = sorted(found, key=lambda one: float(one.grids[0].min()) if one.grids else 0.0)
    families: dict[tuple[str, ...], list[Seen]] = {}
    for one in ordered:
        if one.grids and one.known is not None and one.known.arm is not None:
            families.setdefault(one.known.recipes, []).append(one)
    joined, taken = [], []
    for arms in families.values():
        apart = all(a.grids[0].max() < b.grids[0].min() for a, b in pairwise(arms))
        if len(arms) > 1 and apart:
            joined.append(replace(arms[0], arms=tuple(arms)))
            taken += arms
    return [*joined, *(one for one in found if not any(one is arm for arm in taken))]


def readers_of(path: Path) -> list[str]:
    """Return the readers that open a file and find a spectrum in it."""
    return [name for name in FORMATS if _opens(name, path)]


def _opens(name: str, path: Path) -> bool:
    try:
        with ExitStack() as stack:
            source: FormatSource = open_format(name, path, stack)
            source.first_grid()
            next(iter(source.pieces(0, 1)))
    except MauryError:
        return False
    return True


def _says(path: Path, word: str) -> bool:
    with path.open("rb") as stream:
        return word.encode() in stream.read(_HEAD_BYTES).lower()
