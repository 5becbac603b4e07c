"""Readers of published formats, by the name that ``[spectra] reader`` or a recipe gives."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType

from maury.naming import check_known
from maury.readers.eso import open_phase3
from maury.readers.gaia import open_rvs
from maury.readers.sources import FormatSource

FormatReader = Callable[[Path, ExitStack], FormatSource]

FORMATS: Mapping[str, FormatReader] = MappingProxyType(
    {
        "eso-phase3": open_phase3,
        "gaia-rvs": open_rvs,
    }
)
"""``FORMATS[name](path, stack)`` opens a file, or a folder of files, until `stack` closes."""


def open_format(name: str, path: Path, stack: ExitStack) -> FormatSource:
    """Open spectra of a published format.

    Raises
    ------
    UnknownName
        If there is no such reader; the nearest is suggested.
    InputFileError
        If the files are missing, damaged or of another format; its subclasses say more.
    """
    return FORMATS[check_known("reader", name, FORMATS)](path, stack)
