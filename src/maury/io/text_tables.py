"""Tables of words with blanks between them, as ``.dat`` and ``.txt`` files of many surveys are."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from maury.errors import InputFileError
from maury.io.limits import check_unfolded
from maury.io.opening import encoding_of, header_lines, open_unpacked

PARTED = ",;\t|"
"""What stands between the cells of other tables; blanks part them where none of it is there."""
_PYTHON_TEXT_BYTES = 60
"""Of one cell as a text of Python, at least (CPython, 64 bits)."""


def first_lines(path: Path) -> tuple[list[str], str]:
    """Return the comments above the first line of a text that is none, and that line."""
    comments: list[str] = []
    with ExitStack() as stack:
        stream = io.TextIOWrapper(open_unpacked(path, stack), encoding=encoding_of(path))
        for line in header_lines(stream, path):
            if line.startswith("#"):
                comments.append(line.lstrip("# ").strip())
            elif line.strip():
                return comments, line.strip()
    return comments, ""


def names_of(comments: Sequence[str], first: str) -> tuple[list[str], bool]:
    """Return names of columns, none where no line gives them, and whether `first` is that line.

    Parameters
    ----------
    comments : sequence of str
        Above the first line; the last one may be names, as many as words of that line.
    first : str
    """
    words = next(_rows([first]), [])
    above = comments[-1].split() if comments else []
    if any(map(_numeric, words)):
        return (above if len(above) == len(words) else []), False
    return (words, True) if len(words) > 1 else ([], False)


def read_spaced(path: Path) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return names of columns, and cells column by column, of a table with blanks between them.

    Raises
    ------
    InputFileError
        If no line names the columns, or a row has another number of cells.
    """
    comments, first = first_lines(path)
    names, heads = names_of(comments, first)
    if not names:
        raise InputFileError(
            f"{path} has no line of names above its {len(first.split())} columns; write one (as "
            "many words as columns), or export it as CSV, FITS or ECSV: a table of the CDS with "
            "its ReadMe in Python by 'astropy.table.Table.read(..., format=\"ascii.cds\")'"
        )
    with ExitStack() as stack:
        text = open_unpacked(path, stack).read().decode(encoding_of(path))
    check_unfolded(_PYTHON_TEXT_BYTES * len(text) // 2, path)
    rows = list(_rows(text.splitlines()))[int(heads) :]
    for number, row in enumerate(rows):
        if len(row) != len(names):
            raise InputFileError(
                f"{path}: row {number + 1} has {len(row)} cells, of {len(names)} columns; texts "
                "with blanks stand in quotation marks, and what is missing is written, as by nan"
            )
    return tuple(names), [list(cells) for cells in zip(*rows, strict=True)]


def _rows(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yield the cells of each line that is no comment; quotation marks hold blanks together."""
    stripped = (line.replace("\t", " ").strip() for line in lines)
    bare = (line for line in stripped if line and not line.startswith("#"))
    return csv.reader(bare, delimiter=" ", skipinitialspace=True)


def _numeric(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
