"""Readers of published formats, by the name that ``[spectra] reader`` or a recipe gives."""

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Protocol

from maury.errors import check_known
from maury.io.own_parts import Parts
from maury.survey.readers.eso import open_phase3
from maury.survey.readers.gaia import open_rvs
from maury.survey.readers.galah import galah
from maury.survey.readers.lamost import mrs, open_lrs
from maury.survey.readers.rave import open_rave
from maury.survey.readers.sdss import (
    mwmstar,
    open_apstar,
    open_apvisit,
    open_aspcapstar,
    open_spec,
)
from maury.survey.readers.sources import FormatSource
from maury.survey.readers.weave import open_weave


class FormatReader(Protocol):
    """What opens files of one published format."""

    def __call__(self, path: Path, stack: ExitStack, /, *, skip_bad: bool = False) -> FormatSource:
        """Open a file, or a folder of files, until `stack` closes."""


FORMATS: Parts[FormatReader] = Parts(
    "maury.readers",
    {
        "apstar": open_apstar,
        "apvisit": open_apvisit,
        "aspcapstar": open_aspcapstar,
        "eso-phase3": open_phase3,
        "gaia-rvs": open_rvs,
        "galah-ccd1": galah(1),
        "galah-ccd2": galah(2),
        "galah-ccd3": galah(3),
        "galah-ccd4": galah(4),
        "lamost-lrs": open_lrs,
        "lamost-mrs-b": mrs("B"),
        "lamost-mrs-r": mrs("R"),
        "mwmstar-apogee": mwmstar("APOGEE"),
        "mwmstar-boss": mwmstar("BOSS"),
        "rave-dr6": open_rave,
        "sdss-spec": open_spec,
        "weave-l1": open_weave,
        "weave-l1-blue": partial(open_weave, arm="blue"),
        "weave-l1-green": partial(open_weave, arm="green"),
        "weave-l1-red": partial(open_weave, arm="red"),
    },
)
"""Reader of each format, by its name, those of installed packages and named modules among them."""


def open_format(name: str, path: Path, stack: ExitStack, *, skip_bad: bool = False) -> FormatSource:
    """Open spectra of a published format.

    Raises
    ------
    UnknownName
        If there is no such reader; the nearest is suggested.
    InputFileError
        If the files are missing, damaged or of another format; its subclasses say more.
    """
    return FORMATS[check_known("reader", name, FORMATS)](path, stack, skip_bad=skip_bad)
