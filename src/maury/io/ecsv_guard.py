"""What an ECSV file may not hold, looked at before astropy reads it.

Its header is YAML, which takes long to parse, can refer to itself, and names objects to be made.
Its texts become arrays as wide as the longest, its columns have the shape that the header says.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from maury.errors import InputFileError
from maury.io.limits import (
    CHARACTER_BYTES,
    check_unfolded,
    current,
    exceeded,
    largest_unfolded,
)
from maury.io.opening import reading
from maury.io.units import check_unit

_PACKED_MAGIC = (b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x1f\x9d")
_QUOTED = re.compile(rb"'[^'\n]*'|\"[^\"\n]*\"")
_REFERENCE = re.compile(rb"(?:[:,\[{?-]\s*|^#\s*)[&*][\w-]", re.MULTILINE)
_TAG = re.compile(rb"(?:[:,\[{?-]\s*|^#\s*)(![^\s,\]}]*)", re.MULTILINE)
_TAGS = (b"!!omap", b"!astropy.table.SerializedColumn", b"!astropy.units.Unit")
"""What a header may have made: mappings, columns in parts, and units, which are looked at."""
_UNIT = re.compile(r"\bunit: *([^,}\n]*)")
_SHAPE = re.compile(r"\bsubtype: *['\"]?\w+\[([^\]]*)\]")
_ITEM_BYTES = 16
"""Of the largest number in a column, a complex one; ECSV 1.0 has float128, which are as long."""


def check_ecsv(path: Path) -> None:
    """Refuse an ECSV file that is packed, whose header is no plain one, or that unfolds too far.

    Raises
    ------
    InputFileError
        If so.
    """
    limit = current().head_bytes // 8
    with reading(path), path.open("rb") as stream:
        if stream.peek(9)[:9].startswith(_PACKED_MAGIC):
            raise InputFileError(f"{path} is packed; unpack it first")
        header = b"".join(_commented(stream, limit))
        if len(header) >= limit:
            raise exceeded(
                path, f"has a header of more than {limit} bytes, an eighth", "head_bytes"
            )
        stream.seek(len(header))
        _check_header(header, path)
        longest, n_line = _lines(stream, path)
    most = largest_unfolded(path)
    if CHARACTER_BYTES * longest * n_line > most:
        raise exceeded(
            path, f"has {n_line} lines, to be as wide as one of {longest} bytes", "unfolded_bytes"
        )
    for found in _SHAPE.finditer(header.decode("utf-8", "replace")):
        lengths = [int(n) for n in re.findall(r"\d{1,18}", found[1])]
        check_unfolded(_ITEM_BYTES * n_line * math.prod(lengths), path)


def parse_ecsv(text: str) -> Any:
    """Return the astropy table of what `check_ecsv` has seen."""
    from astropy.io import ascii as astropy_ascii

    # Lines are content to astropy; a text or a name could be that of another file, or an address.
    return astropy_ascii.read(text.splitlines(), format="ecsv")


def _check_header(header: bytes, path: Path) -> None:
    plain = _QUOTED.sub(b"", header)
    if _REFERENCE.search(plain):
        raise InputFileError(f"{path} has a header with anchors of YAML; write it without")
    for tag in _TAG.findall(plain):
        if tag not in _TAGS:
            raise InputFileError(
                f"{path} has a header that asks for an object of YAML, {tag!r:.60}; "
                "write its columns as plain numbers and texts"
            )
    for unit in _UNIT.findall(header.decode("utf-8", "replace")):
        try:
            check_unit(unit)
        except ValueError as error:
            raise InputFileError(f"{path}: {error}; correct it") from error


def _lines(stream: Any, path: Path) -> tuple[int, int]:
    """Return the bytes of the longest line, and how many there are."""
    longest = count = 0
    limit = current().head_bytes
    while line := stream.readline(limit + 1):
        count += 1
        longest = max(longest, len(line))
        if longest > limit:
            raise exceeded(path, f"has a line of {longest} bytes or more", "head_bytes")
    return longest, count


def _commented(stream: Any, limit: int) -> Iterator[bytes]:
    """Yield the lines of a header, in all little more bytes than `limit`."""
    total = 0
    while total < limit and (line := stream.readline(limit)).startswith(b"#"):
        total += len(line)
        yield line
