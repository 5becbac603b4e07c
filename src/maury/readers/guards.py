"""Checks before a parser sees a file: links out of a folder, packed files, tricky headers."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maury.errors import InputFileError
from maury.limits import VARIABLE, current, exceeded
from maury.readers.opening import reading


def files_of(folder: Path, pattern: str, *, deep: bool = False) -> list[Path]:
    """Return the files of a folder that match a pattern, at any depth if `deep`, unsorted.

    Hidden files are left out, and so is what is no regular file.

    Raises
    ------
    InputFileError
        If the pattern leads out of the folder, or a link does.
    """
    if ".." in Path(pattern).parts or Path(pattern).is_absolute() or "\0" in pattern:
        raise InputFileError(
            f"the pattern {pattern!r} leads out of {folder}; give the folder meant"
        )
    try:
        found = [
            path
            for path in (folder.rglob if deep else folder.glob)(pattern)
            if path.is_file() and not path.name.startswith(".")
        ]
    except (ValueError, NotImplementedError, RecursionError, OSError) as error:
        raise InputFileError(f"{pattern!r} is no pattern of file names: {error}") from error
    if not current().outside_links:
        home = folder.resolve()
        for path in found:
            if path.is_symlink() and not path.resolve().is_relative_to(home):
                raise InputFileError(
                    f"{path} is a link out of its folder, to {path.resolve()}; copy the file, or "
                    f"allow such links by {VARIABLE}='outside_links=1'"
                )
    return found


def header_lines(stream: Any, path: Path) -> Iterator[str]:
    """Yield lines for a header, which are refused if they are too long for one."""
    left = current().head_bytes
    while line := stream.readline(left + 1):
        left -= len(line)
        if left < 0:
            raise exceeded(path, "has a header that does not end", "head_bytes")
        yield line


def check_ecsv(path: Path) -> None:
    """Refuse an ECSV file that is packed, or whose header is no short one without references.

    The header is YAML, which takes long to parse, and can refer to itself.

    Raises
    ------
    InputFileError
        If so.
    """
    limit = current().head_bytes // 8
    with reading(path), path.open("rb") as stream:
        if stream.peek(9)[:9].startswith(_PACKED):
            raise InputFileError(f"{path} is packed; unpack it first")
        header = b"".join(_commented(stream, limit))
    if len(header) >= limit:
        raise exceeded(path, f"has a header of more than {limit} bytes, an eighth", "head_bytes")
    if _REFERENCE.search(_QUOTED.sub(b"", header)):
        raise InputFileError(f"{path} has a header with anchors of YAML; write it without")


_REFERENCE = re.compile(rb"(?:[:,\[{?-]\s*|^#\s*)[&*][\w-]", re.MULTILINE)
_PACKED = (b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x1f\x9d")
_QUOTED = re.compile(rb"'[^'\n]*'|\"[^\"\n]*\"")


def _commented(stream: Any, limit: int) -> Iterator[bytes]:
    """Yield the lines of a header, in all little more bytes than `limit`."""
    total = 0
    while total < limit and (line := stream.readline(limit)).startswith(b"#"):
        total += len(line)
        yield line
