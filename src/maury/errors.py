"""What can go wrong, and what to do about it.

Every error that a user can cause derives from :class:`MauryError`; the docstring of each class is
its remedy, and its message says what was expected, what was got, and what to do.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import islice


class MauryError(Exception):
    """Base of every error that `maury` raises on purpose: read the message, it says what to do."""

    def __str__(self) -> str:
        # Messages quote names of strangers, and reach notebooks and logs without the command line.
        return printable(super().__str__())


class ConfigError(MauryError):
    """A configuration is wrong: correct the keys that the message lists."""


class UnknownName(ConfigError):
    """A name is not known: take one of the listed names; the nearest is suggested."""


class RowError(ConfigError, IndexError):
    """Rows are asked for that do not exist: give numbers in range, or a mask of equal length."""


class CorrelationError(ConfigError, ValueError):
    """No noise is correlated like that: give its autocorrelation at lags of 1, 2, ... pixels."""


class SurveyFileError(MauryError):
    """A survey store cannot be read: make it anew with `maury ingest` or `maury simulate`."""


class InputFileError(MauryError):
    """A file of spectra or a table cannot be read: missing, cut short, or not of its format."""


class ColumnError(InputFileError):
    """A column is missing, has the wrong type or unit: correct the file or the mapping."""


class IdentifierError(InputFileError):
    """Identifiers are missing or stand twice: give every spectrum one identifier of its own."""


class LengthMismatch(InputFileError):
    """Files that should describe the same stars differ in length: take them from one release."""


class WavelengthError(InputFileError):
    """A wavelength grid is unsorted, overlapping or not finite: give it in increasing order."""


class GridMismatch(MauryError):
    """Spectra are not on the expected grid: resample them, or use the model made for them."""


class ModelFileError(MauryError):
    """A model directory is damaged, of another format, or no model: train or copy it again."""


class SelfCheckFailed(MauryError):
    """A model no longer predicts its self-check stars as before: try another engine or version."""


class OutputExists(MauryError):
    """The output exists and is never overwritten silently: choose another name or `--overwrite`."""


class OutputError(MauryError):
    """An output cannot be written: free some space, or choose a place where you may write."""


class OutputBusy(MauryError):
    """Another run makes the same output: wait until it ends, or choose another name."""


class FetchError(MauryError):
    """A download failed: run it again, it goes on where it stopped; or correct the recipe."""


class ResumeMismatch(MauryError):
    """A partial result of another run is in the way: finish it, or remove it by `--overwrite`."""


class TrainingError(MauryError):
    """The survey cannot train a model: too few stars with labels or inputs (counted)."""


class MissingExtra(MauryError):
    """An optional package is needed: install the extra that the message names."""


class WorkerLost(MauryError):
    """Worker processes are killed again and again: give them more memory, or start fewer."""


class ClusterError(MauryError):
    """Dask workers cannot be reached or used: the message says which, and how to start them."""


_LONGEST, _MOST = 64, 2000


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, or an empty string."""
    # The comparison takes the product of lengths for each name, and names may come from files.
    if len(name) > _LONGEST:
        return ""
    names = {other.casefold(): other for other in islice(known, _MOST) if len(other) <= _LONGEST}
    close = get_close_matches(name.casefold(), names, n=1, cutoff=0.6)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def printable(text: str) -> str:
    r"""Return a text in which what could steer a terminal is written out; lines stay lines.

    Names of columns and files may come from anywhere.

    Examples
    --------
    >>> printable("a\x1b[31m b")
    'a\\x1b[31m b'
    """
    return "".join(
        char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode()
        for char in text
    )


def check_known(what: str, name: str, known: Iterable[str]) -> str:
    """Return `name` if it is one of `known`.

    Raises
    ------
    UnknownName
        With the list of known names and the nearest of them.
    """
    known = list(known)
    if name not in known:
        raise UnknownName(
            f"unknown {what} {name!r}{suggestion(name, known)} (known: {', '.join(known)})"
        )
    return name
