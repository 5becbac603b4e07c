"""Old files, read by a newer version: one step for each change of a format.

A format has a number, which is raised when files of it can no longer be read as they were. Whoever
raises it adds the step that makes the new header of the old one, and keeps a file of the old format
among the golden files of the tests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from maury.errors import MauryError

__all__ = ["JOINT_MODEL", "MODEL", "SURVEY", "Format"]

Header = dict[str, Any]
Step = Callable[[Header], Header]


@dataclass(frozen=True)
class Format:
    """A kind of file, and how its older headers become those of today.

    Attributes
    ----------
    name : str
        Under the key ``format`` of each header.
    version : int
        Under ``format_version``, as it is written now.
    steps : mapping of int to function
        From a header of that version to one of the next.
    """

    name: str
    version: int
    steps: Mapping[int, Step] = field(default_factory=lambda: MappingProxyType({}))

    def upgrade(self, header: Mapping[str, Any], what: str, error: type[MauryError]) -> Header:
        """Return a header as this version of maury would have written it; raise `error` if none.

        Parameters
        ----------
        header : mapping
            As it was read; it is not changed.
        what : str
            The file, for the message.
        error : type of MauryError
        """
        found = header.get("format_version")
        # True is an int to Python, and would pass as version 1.
        if not isinstance(found, int) or isinstance(found, bool) or found < 0:
            raise error(f"{what} has no format version but {found!r}; the file is damaged")
        if found > self.version:
            raise error(
                f"{what} has format version {found}, this maury reads up to {self.version}: a "
                "newer one wrote it; update maury"
            )
        out = dict(header)
        for version in range(found, self.version):
            if version not in self.steps:
                raise error(
                    f"{what} has format version {found}, which this maury cannot read any more "
                    f"(it reads {min(self.steps, default=self.version)} to {self.version}); use "
                    "the maury that wrote it, or make the file anew"
                )
            out = {**self.steps[version](out), "format_version": version + 1}
        return out


MODEL = Format("maury model", 1)
SURVEY = Format("maury survey", 1)
JOINT_MODEL = Format("maury joint model", 1)
