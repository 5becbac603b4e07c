"""Files of published formats: told by trying each reader on them."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from maury.errors import MauryError
from maury.survey.guessing.document import Entry
from maury.survey.guessing.seen import Seen
from maury.survey.readers.formats import FORMATS, open_format
from maury.survey.readers.sources import FormatSource

_TRIED = 3
"""Files of a folder that the readers are tried on."""
_HEAD_BYTES = 28800
"""Of a FITS file, in which the survey may name itself: ten blocks of header."""


def look_at_published(paths: Sequence[Path]) -> Seen | None:
    """Return files of one folder as spectra of a published format, if a reader takes them all."""
    names = readers_of(paths[0])
    for path in paths[1:_TRIED] if names else ():
        names = [name for name in names if _opens(name, path)]
    if not names:
        return None
    chosen = max(names, key=lambda name: _says(paths[0], name.split("-")[0]))
    others = [name for name in names if name != chosen]
    also = f" So does {', '.join(others)}." if others else ""
    what = paths[0].name if len(paths) == 1 else f"{min(len(paths), _TRIED)} of {len(paths)} files"
    why = f"A published format: this reader opens {what} and settles the rest.{also}"
    place = paths[0] if len(paths) == 1 else paths[0].parent
    with ExitStack() as stack:
        source = open_format(chosen, place, stack)
        n_star = source.n_star
    return Seen(
        place,
        "spectra",
        n_star,
        spectra=(Entry("reader", chosen, why, doubtful=bool(others)),),
        reader=chosen,
        paths=() if len(paths) == 1 else tuple(paths),
        medium=source.medium,
        is_table=source.table is not None,
    )


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
