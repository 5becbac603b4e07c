"""What a VOTable may not hold, found by parsing it before astropy does.

astropy opens the address of a ``STREAM`` and makes room for rows that are only announced. The pass
here sees each element as astropy will, since both parse with expat: what a pattern would miss (a
``>`` inside an attribute, any prefix of a namespace) is an attribute or a name to it.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from xml.parsers import expat

from maury.errors import InputFileError
from maury.io.limits import check_unfolded, current, exceeded, largest_unfolded
from maury.io.opening import reading
from maury.io.units import check_unit

_BLOCK = 65536
"""Bytes parsed at a time; the root element must begin in the first, and comments before it are rare
and short."""
_ENCODINGS = ("utf-8", "us-ascii", "ascii", "iso-8859-1")
# VOTable 1.4, section 6: bytes of a value in memory, where numpy has a byte for a bit, and four for
# each of the two of a unicodeChar.
_BYTES: Mapping[str, int] = {
    "boolean": 1, "bit": 1, "unsignedByte": 1, "short": 2, "int": 4, "long": 8, "char": 1,
    "unicodeChar": 4, "float": 4, "double": 8, "floatComplex": 8,
}  # fmt: skip
_WIDEST = 16
"""Bytes of a doubleComplex, and of what stands for an array of variable length."""

_DIGITS = 18
"""Digits that a number of rows or values may have; with one more it is beyond every limit."""


def check_votable(path: Path) -> None:
    """Refuse a VOTable that declares entities, whose data lie elsewhere, or that asks for too much.

    Raises
    ------
    InputFileError
        If so; if it is packed, or no VOTable in an encoding of ASCII's kin; or if its elements are
        nested, large, many, or announce rows, beyond the limits.
    """
    guard = _Guard(path)
    with reading(path), path.open("rb") as stream:
        head = stream.read(_BLOCK)
        # The parser takes UTF-16 by its first bytes.
        if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"<" or b"\0" in head[:64]:
            raise InputFileError(f"{path} is no VOTable: it is no XML, or packed")
        guard.feed(head)
        if not guard.begun:
            raise guard.no_votable()
        while block := stream.read(_BLOCK):
            guard.feed(block)
        guard.parser.Parse(b"", True)


class _Guard:
    """Listens to an XML parser, and refuses what a table of a stranger may not hold."""

    def __init__(self, path: Path) -> None:
        self.begun = False
        self._path = path
        self._limits = current()
        self._most = largest_unfolded(path)
        self._fed = self._depth = self._elements = self._fields = self._values = 0
        self._rows = self._unfolded = self._announced = 0
        # Bytes of a row of each table that is open: tables in tables are wrong, and may come.
        self._tables: list[int] = []
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.XmlDeclHandler = self._declaration
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def feed(self, block: bytes) -> None:
        """Parse a block; what does not end in so many bytes is refused before it is one piece."""
        self._fed += len(block)
        self.parser.Parse(block, False)
        if self._fed - self.parser.CurrentByteIndex > self._limits.head_bytes:
            raise exceeded(self._path, "has an element, or a comment, without end", "head_bytes")

    def no_votable(self) -> InputFileError:
        """Return the error that the file is something else."""
        return InputFileError(f"{self._path} is no VOTable: no VOTABLE element near its beginning")

    def _doctype(self, *_: object) -> None:
        raise InputFileError(
            f"{self._path} declares a document type or entities, which a VOTable does not need and "
            "which can be made to fill the memory; remove the declaration"
        )

    def _declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        del version, standalone
        if (encoding or "utf-8").lower() not in _ENCODINGS:
            raise InputFileError(f"{self._path} is in {encoding!r}; save it in UTF-8")

    def _start(self, name: str, attributes: Mapping[str, str]) -> None:
        self._depth += 1
        if self._depth > self._limits.depth:
            raise exceeded(self._path, f"has {self._depth} levels of elements", "depth")
        local = name.rpartition(":")[2]
        if local == "TD":
            return
        if local == "TR":
            self._add_rows(1)
            return
        if not self.begun and local != "VOTABLE":
            raise self.no_votable()
        self.begun = True
        self._elements += 1
        if self._elements > self._limits.elements:
            raise exceeded(self._path, f"has {self._elements} elements beside rows", "elements")
        self._refuse_elsewhere(local, attributes)
        if local == "TABLE":
            self._tables.append(0)
            self._announced = _number(attributes.get("nrows", "0"))
        elif local in ("FIELD", "PARAM"):
            self._add_field(attributes, in_rows=local == "FIELD")
        elif local in ("BINARY", "BINARY2") and not sum(self._tables):
            raise InputFileError(f"{self._path} has rows of no bytes, which never end")
        elif local == "DATA":
            # Room for all rows that a table announces is made before one is read.
            self._add_rows(self._announced)
            self._rows -= self._announced

    def _end(self, name: str) -> None:
        self._depth -= 1
        if name.rpartition(":")[2] == "TABLE":
            self._tables.pop()

    def _refuse_elsewhere(self, local: str, attributes: Mapping[str, str]) -> None:
        """Refuse data at an address, and data in another format, which need one."""
        linked = any(key.rpartition(":")[2].lower() == "href" for key in attributes)
        if local in ("FITS", "PARQUET") or (local == "STREAM" and linked):
            raise InputFileError(
                f"{self._path} keeps its data at another address ({local}), which is never "
                "followed; save the table with its data inside"
            )

    def _add_rows(self, count: int) -> None:
        self._rows += count
        if self._rows > self._limits.rows:
            raise exceeded(self._path, f"has {self._rows} rows", "rows")
        self._unfolded += count * max(sum(self._tables), _WIDEST)
        if self._unfolded > self._most:
            check_unfolded(self._unfolded, self._path)

    def _add_field(self, attributes: Mapping[str, str], *, in_rows: bool) -> None:
        self._fields += 1
        if self._fields > self._limits.columns:
            raise exceeded(self._path, f"has more than {self._limits.columns} fields", "columns")
        size = attributes.get("arraysize", "")
        count = math.prod(map(_number, re.findall(r"\d+", size)))
        self._values += count
        if self._values > self._limits.pixels:
            raise exceeded(self._path, f"has rows of {self._values} values", "pixels")
        try:
            check_unit(attributes.get("unit", ""))
        except ValueError as error:
            raise InputFileError(f"{self._path}: {error}; correct it") from error
        shown = [_number(attributes.get(key, "0")) for key in ("width", "precision")]
        if max(shown) > self._limits.text_characters:
            raise exceeded(self._path, f"has numbers of {max(shown)} digits", "text_characters")
        if in_rows and self._tables:
            # A byte more for what masks the value.
            width = 1 + _BYTES.get(attributes.get("datatype", ""), _WIDEST)
            self._tables[-1] += _WIDEST if "*" in size else count * width


def _number(text: str) -> int:
    """Return a whole number as astropy would read it, cut off above any that is allowed."""
    # A precision may say of what: F for decimals, E for all digits (VOTable 1.4, section 4.7).
    digits = text.strip().lstrip("FE")
    return int(digits) if digits.isdecimal() and len(digits) <= _DIGITS else 10**_DIGITS
