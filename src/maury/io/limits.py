"""What a file may ask for: limits that are compared before anything of that size is made.

Files come from anywhere, and a few bytes of them can ask for any amount of memory or time. The
defaults lie far above real surveys but for `Limits.unfolded_bytes`, and a machine with more memory
may raise each of them in the environment::

    MAURY_LIMITS="unfolded_bytes=8e9 columns=50000" maury ingest toml survey.toml my.zarr
"""

import os
import re
from collections.abc import Sized
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from maury.errors import ConfigError, InputFileError

_ZSTD = b"\x28\xb5\x2f\xfd"
_LONGEST_HEAD = 18
"""Bytes: magic number 4, descriptor 1, window 1, dictionary 4, size 8."""


def unpacked_bytes(file: Path) -> int | None:
    """Return the bytes that a file in Zstandard frames unfolds to, by the header of the first.

    Nothing else of the file is read. RFC 8878, section 3.1.1.1.

    Parameters
    ----------
    file : Path

    Returns
    -------
    int or None
        None if it is no such file, or the header does not say.
    """
    with file.open("rb") as stream:
        head = stream.read(_LONGEST_HEAD)
    if len(head) < 6 or not head.startswith(_ZSTD):
        return None
    flags = head[4]
    single = flags >> 5 & 1
    place = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    if not width or len(head) < place + width:
        return None
    size = int.from_bytes(head[place : place + width], "little")
    # Sizes in two bytes begin at 256, as smaller ones take one byte.
    return size + 256 if width == 2 else size


VARIABLE = "MAURY_LIMITS"
"""Environment variable that raises limits: ``name=number``, separated by blanks or commas."""
LARGEST_RATIO = 10
"""A file may always unfold to this many times its own size."""
_ADDRESS = re.compile(r"(https?|s?ftp|ssh|file):", re.IGNORECASE)
CHARACTER_BYTES = 4
"""Bytes of a character in an array of numpy."""


@dataclass(frozen=True)
class Limits:
    """Largest sizes of what is read.

    Attributes
    ----------
    unfolded_bytes : int
        Bytes in memory of what one compressed file, or one column of a table, unfolds to; also ten
        times the size of the file, if that is more.
    rows : int
        Rows of a table, or spectra of a survey.
    columns : int
        Columns of a table.
    pixels : int
        Values of a spectrum, or of any other array in a row, of a file.
    grid_pixels : int
        Pixels of the grid of a survey or a model: what is computed at a time, 2048 spectra with
        their noise, then takes 1.6 GB.
    text_characters : int
        Characters of a name or an identifier.
    head_bytes : int
        Bytes of the header of a text table, a VOTable before its data, or a FITS HDU.
    hdus : int
        HDUs of a FITS file.
    depth : int
        Levels of nested elements, lists or tables.
    elements : int
        XML elements beside those of rows.
    toml_bytes, json_bytes : int
        Bytes of a configuration, and of a document of a model.
    json_items : int
        Values of such a document.
    tensor_bytes : int
        Bytes of one file of a model's arrays.
    members, labels, observables, steps, lags : int
        Networks of a model, its labels, the observables that they take, the steps that prepare
        spectra for them, and the lags of the autocorrelation of their noise.
    surveys : int
        Surveys of a joint model.
    units, layers, rank, filters, kernel : int
        Sizes of a network: of a dense layer; layers or blocks; columns of a covariance factor; of a
        convolution, and of what is pooled. Some ten times the largest published network of stellar
        spectra or more; chosen.
    passes : int
        Passes of dropout that are averaged, over all networks of a model.
    chunk_bytes : int
        Bytes of one chunk of a survey store or an HDF5 file, unfolded.
    download_bytes : int
        Bytes of a file that is downloaded and of which nobody publishes the size.
    outside_links : int
        Whether a folder of spectra may hold links to files outside of it: 1 lets it.
    """

    unfolded_bytes: int = 2**29
    rows: int = 100_000_000
    columns: int = 10_000
    pixels: int = 10_000_000
    grid_pixels: int = 100_000
    text_characters: int = 4096
    head_bytes: int = 2**22
    hdus: int = 4096
    depth: int = 64
    elements: int = 100_000
    toml_bytes: int = 2**18
    json_bytes: int = 2**28
    json_items: int = 4_000_000
    tensor_bytes: int = 2**29
    members: int = 1000
    surveys: int = 16
    labels: int = 200
    observables: int = 10_000
    steps: int = 100
    lags: int = 1000
    units: int = 8192
    layers: int = 32
    rank: int = 64
    filters: int = 512
    kernel: int = 512
    passes: int = 10_000
    chunk_bytes: int = 2**28
    download_bytes: int = 2**37
    outside_links: int = 0


def current() -> Limits:
    """Return the limits, with those that the environment raises.

    Raises
    ------
    ConfigError
        If ``MAURY_LIMITS`` holds anything but names of limits and positive numbers.
    """
    return _parsed(os.environ.get(VARIABLE, ""))


@lru_cache(maxsize=4)
def _parsed(text: str) -> Limits:
    names = [field.name for field in fields(Limits)]
    changed: dict[str, int] = {}
    # The variable comes from the environment, which may be anything as well.
    for word in re.split(r"[\s,;]+", text[:2000]):
        name, _, value = word.partition("=")
        if not word:
            continue
        if name not in names or not re.fullmatch(
            r"[0-9]{1,18}|[0-9]{1,9}(\.[0-9]{1,9})?e[0-9]{1,2}", value
        ):
            raise ConfigError(
                f"{VARIABLE} holds {word!r}; write name=number, with names out of "
                f"{', '.join(names)}"
            )
        changed[name] = int(float(value)) if "e" in value else int(value)
    return replace(Limits(), **changed)


def exceeded(path: Path | str, what: str, limit: str) -> InputFileError:
    """Return the error that a file asks for more than the limit of this name."""
    return InputFileError(
        f"{path} {what}, more than the {getattr(current(), limit)} that are read; it is damaged "
        f"or not what it seems; if it is right, raise the limit by {VARIABLE}='{limit}=...'"
    )


def check_unfolded(n_bytes: int, path: Path) -> None:
    """Raise `InputFileError` if a file unfolds to absurdly many bytes in memory."""
    if n_bytes > largest_unfolded(path):
        raise exceeded(path, f"would fill {n_bytes} bytes of memory", "unfolded_bytes")


def largest_unfolded(path: Path) -> int:
    """Return the bytes that a file may unfold to."""
    return max(current().unfolded_bytes, LARGEST_RATIO * path.stat().st_size)


def check_regular(path: Path) -> None:
    """Raise `InputFileError` if `path` is a pipe, a socket or a device, which may never end.

    So does a name that astropy takes for an address, and would ask another machine for.
    """
    if _ADDRESS.match(str(path)):
        raise InputFileError(f"{path} looks like an address, not a file; give its absolute path")
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise InputFileError(f"{path} is no regular file; save its content in one, and give that")


def check_text(longest: int, total: int, n_row: int, what: str) -> None:
    """Refuse texts, made as wide as the longest, that would fill absurdly many bytes of memory.

    Parameters
    ----------
    longest, total : int
        Characters of the longest, and of all.
    n_row : int
        How many texts.
    what : str
        What the message calls them.

    Raises
    ------
    InputFileError
        If the longest is no name or identifier, or most of the memory would be padding.
    """
    if longest > current().text_characters:
        raise exceeded(what, f"holds a text of {longest} characters", "text_characters")
    most = max(current().unfolded_bytes, LARGEST_RATIO * CHARACTER_BYTES * total)
    if CHARACTER_BYTES * longest * n_row > most:
        raise exceeded(
            what,
            f"would fill {CHARACTER_BYTES * longest * n_row} bytes with {n_row} texts as wide as "
            f"one of {longest} characters",
            "unfolded_bytes",
        )


def check_columns(names: Sized, path: Path) -> None:
    """Raise `InputFileError` if a table has absurdly many columns."""
    if len(names) > current().columns:
        raise exceeded(path, f"has {len(names)} columns", "columns")
