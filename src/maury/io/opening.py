"""Open files that cannot be trusted: one clear error for each way in which they are broken."""

import codecs
import gzip
import logging
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

from maury.errors import InputFileError, MauryError, suggestion
from maury.io.limits import (
    VARIABLE,
    check_regular,
    check_unfolded,
    current,
    exceeded,
    largest_unfolded,
)

logger = logging.getLogger(__name__)
_GZIP = b"\x1f\x8b"
_PACKED = {b"BZ": "bzip2", b"PK": "zip", b"\xfd7zXZ": "xz", b"\x1f\x9d": "compress"}
_VOTABLE_HEAD = 65536
"""Bytes in which the root element must begin; comments before it are rare and short."""
_BLOCK, _CARD = 2880, 80
"""Bytes of a block of FITS, and of a card of its header (FITS 4.0, sections 3.1 and 3.3)."""
_SIZES = re.compile(rb"(BITPIX|[PG]COUNT|TFIELDS|Z?NAXIS[0-9]{0,3}|ZTILE[0-9]{1,3}) *=(.*)")
_WHOLE = re.compile(rb" *[+-]?[0-9]{1,18} *(?:/.*)?")
_MOST_AXES = 32
"""FITS allows 999 axes; arrays of numpy had 32 until version 2, and data have five at most."""
_TEXT_BLOCK = 2**20
"""Bytes of a text decoded at a time: reading is then bound by the disk, and memory by nothing."""


class Gunzipped(gzip.GzipFile):
    """A gzip file that unfolds to so many bytes at most, and none of it for nothing."""

    def __init__(self, stream: IO[bytes], path: Path) -> None:
        super().__init__(fileobj=stream, mode="rb")
        self._path = path
        self._largest = largest_unfolded(path)

    def read(self, size: int | None = -1) -> bytes:
        """Read, see `gzip.GzipFile`."""
        # One byte beyond the limit is asked for, so that a file of exactly the limit is read.
        left = self._largest - self.tell()
        wanted = left + 1 if size is None or size < 0 else size
        data = super().read(min(wanted, left + 1))
        if len(data) > left:
            raise self._too_much()
        return data

    def seek(self, offset: int, whence: int = 0) -> int:
        """Seek, see `gzip.GzipFile`."""
        if whence == 0 and offset > self._largest:
            raise self._too_much()
        return super().seek(offset, whence)

    def _too_much(self) -> InputFileError:
        return exceeded(self._path, "unfolds to more bytes than it may", "unfolded_bytes")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises over `path` into one `InputFileError`; hush its warnings.

    Parsers of damaged files raise errors of nearly every class, so that every class is caught. Of
    a thousand files the user must learn which one is wrong, so that every error names it.
    """
    try:
        check_regular(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except InputFileError as error:
        if path.name in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
    except MauryError:
        raise
    except FileNotFoundError as error:
        raise InputFileError(f"{path} does not exist; correct its name") from error
    except MemoryError as error:
        raise InputFileError(
            f"{path} promises more data than memory holds; it is damaged, or not of its format"
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise InputFileError(
            f"{path} cannot be read: {text}; it is cut short, damaged, or not of its format"
        ) from error


def open_fits(path: Path, stack: ExitStack, *, memmap: bool = False) -> Any:
    """Open a FITS file until `stack` closes.

    Parameters
    ----------
    path : Path
        The file.
    stack : ExitStack
        Closes it.
    memmap : bool
        Map it into memory, for tables; sections of an image are read without, even scaled ones.

    Returns
    -------
    hdus : astropy.io.fits.HDUList

    Raises
    ------
    InputFileError
        If it is no FITS file, or its headers promise more bytes than the file has.
    """
    from astropy.io import fits

    with reading(path):
        stream: Any = stack.enter_context(path.open("rb"))
        head = stream.peek(8)
        for magic, name in _PACKED.items():
            if head.startswith(magic):
                raise InputFileError(f"{path} is packed by {name}; unpack it first")
        packed = head.startswith(_GZIP)
        if packed:
            stream = stack.enter_context(Gunzipped(stream, path))
        _check_headers(stream, path, None if packed else path.stat().st_size)
        stream.seek(0)
        # astropy leaves a file open that it opened itself and could not read.
        hdus = stack.enter_context(fits.open(stream, memmap=memmap and not packed))
        for hdu in hdus:
            if isinstance(hdu, fits.CompImageHDU):
                _check_tiles(hdu, path)
    return hdus


def _check_headers(stream: Any, path: Path, size: int | None) -> None:
    """Walk the headers of a FITS file, and refuse sizes that its data cannot have.

    Parsers follow these numbers, backwards too, before they look at anything else.
    """
    limits, place = current(), 0
    for number in range(limits.hdus + 1):
        stream.seek(place)
        header = _header(stream, path, number)
        if not header:
            return
        values = _sizes(header, path, number)
        axes = values.get("NAXIS", 0)
        lengths = [values.get(f"NAXIS{k + 1}", 0) for k in range(min(max(axes, 0), _MOST_AXES))]
        further = (values.get("PCOUNT", 0), values.get("GCOUNT", 1))
        most = max(values.get("NAXIS", 0), values.get("ZNAXIS", 0))
        stated = (value for key, value in values.items() if key != "BITPIX")
        if most > _MOST_AXES or min(stated, default=0) < 0:
            raise _wrong_sizes(path, number, "axes that no data can have")
        if values.get("TFIELDS", 0) > limits.columns:
            raise exceeded(path, f"has {values['TFIELDS']} columns", "columns")
        # Random groups have NAXIS1 = 0, and their data all the same (FITS 4.0, section 6).
        grouped = bool(lengths) and lengths[0] == 0 and number == 0
        pixels = math.prod(lengths[1:] if grouped else lengths) if lengths else 0
        width = abs(values.get("BITPIX", 8)) // 8
        length = width * further[1] * (further[0] + pixels) if axes else 0
        place += len(header)
        if size is not None and place + length > size:
            raise InputFileError(
                f"{path}: the header of HDU {number} promises {length} bytes of data, the "
                f"file has {max(size - place, 0)}; it is cut short or damaged, fetch it again"
            )
        if size is None:
            check_unfolded(place + length, path)
        place += -(-length // _BLOCK) * _BLOCK
    raise exceeded(path, f"has more than {limits.hdus} HDUs", "hdus")


def _wrong_sizes(path: Path, number: int, what: str) -> InputFileError:
    return InputFileError(f"{path}: the header of HDU {number} gives {what}; it is damaged")


def _header(stream: Any, path: Path, number: int) -> bytes:
    """Return the header at the place of `stream`, to the end of its last block; empty if none."""
    limit = current().head_bytes
    parts: list[bytes] = []
    for _ in range(limit // _BLOCK):
        block = stream.read(_BLOCK)
        if not parts and not block.startswith((b"SIMPLE  ", b"XTENSION")):
            if number == 0:
                raise InputFileError(f"{path} cannot be read: it is not of its format, FITS")
            return b""
        parts.append(block)
        if any(card.rstrip() == b"END" for card in _cards(block)) or len(block) < _BLOCK:
            return b"".join(parts)
    raise exceeded(path, f"has a header without END in HDU {number}", "head_bytes")


def _cards(header: bytes) -> Iterator[bytes]:
    return (header[k : k + _CARD] for k in range(0, len(header), _CARD))


def _sizes(header: bytes, path: Path, number: int) -> dict[str, int]:
    """Return what a header says of sizes; each must be a whole number, and be said once."""
    values: dict[str, int] = {}
    for card in _cards(header):
        if card.rstrip() == b"END":
            break
        found = _SIZES.match(card)
        if found is None:
            continue
        key = found[1].decode()
        if not _WHOLE.fullmatch(found[2]) or key in values:
            raise _wrong_sizes(path, number, f"{key} that is no whole number, or twice")
        values[key] = int(found[2].split(b"/")[0])
    return values


def _check_tiles(hdu: Any, path: Path) -> None:
    """Refuse a tiled image of absurd tiles, one of which is unfolded whole."""
    tile = math.prod(int(hdu._header.get(f"ZTILE{k + 1}", 1)) for k in range(len(hdu.shape or ())))
    shape = [int(n) for n in hdu.shape or (0,)]
    if min(shape) < 0 or (tile * 8 > current().chunk_bytes and tile > math.prod(shape)):
        raise _wrong_sizes(path, 0, "tiles that no image can have")
    check_unfolded(min(tile, math.prod(shape)) * 8, path)


def find_hdu(hdus: Any, key: int | str | None, path: Path, *, image: bool) -> Any:
    """Return the HDU of number or name `key`, or the first image or table that holds data.

    Raises
    ------
    InputFileError
        If there is none.
    """
    from astropy.io import fits

    kind = "image" if image else "table"
    wanted = (fits.ImageHDU, fits.PrimaryHDU, fits.CompImageHDU) if image else fits.BinTableHDU
    if key is None:
        found = [
            k
            for k, hdu in enumerate(hdus)
            if isinstance(hdu, wanted)
            and isinstance(hdu, fits.CompImageHDU) <= image
            and (not image or hdu.shape)
        ]
        if not found:
            raise InputFileError(f"{path} has no {kind}; state the right file")
        # Images beside the flux are its errors and masks; a second table is another answer.
        if len(found) > 1 and not image:
            logger.warning(
                "%s holds %d tables; that of HDU %d is read, name another by 'hdu'",
                path,
                len(found),
                found[0],
            )
        return hdus[found[0]]
    names = [str(hdu.name) for hdu in hdus]
    if isinstance(key, str) and key.upper() in names:
        return hdus[names.index(key.upper())]
    if isinstance(key, int) and 0 <= key < len(names):
        return hdus[key]
    listed = ", ".join(f"{k} {name!r}" for k, name in enumerate(names))
    hint = suggestion(key.upper(), names) if isinstance(key, str) else ""
    raise InputFileError(f"{path} has no HDU {key!r}{hint} (it has {listed})")


class _Head:
    """Listens to an XML parser until the first element begins."""

    def __init__(self, path: Path) -> None:
        self.root = ""
        self._path = path

    def doctype(self, *_: Any) -> None:
        """Refuse a declaration of a document type, and with it all entities."""
        raise InputFileError(
            f"{self._path} declares a document type or entities, which a VOTable does not need and "
            "which can be made to fill the memory; remove the declaration"
        )

    def declaration(self, version: str, encoding: str | None, standalone: int) -> None:
        """Refuse encodings in which the text cannot be searched for bytes."""
        del version, standalone
        if (encoding or "utf-8").lower() not in ("utf-8", "us-ascii", "ascii", "iso-8859-1"):
            raise InputFileError(f"{self._path} is in {encoding!r}; save it in UTF-8")

    def element(self, name: str, attributes: Any) -> None:
        """Note the name of the first element."""
        del attributes
        self.root = self.root or name


def check_votable(path: Path) -> None:
    """Refuse a VOTable that declares entities, or whose data lie at another address.

    Raises
    ------
    InputFileError
        If so; if it is packed, or no VOTable in an encoding of ASCII's kin; or if its elements are
        nested, or its head is long, beyond the limits.
    """
    import mmap
    from xml.parsers import expat

    listener = _Head(path)
    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = listener.doctype
    parser.XmlDeclHandler = listener.declaration
    parser.StartElementHandler = listener.element
    with reading(path), path.open("rb") as stream:
        head = stream.read(_VOTABLE_HEAD)
        # The parser takes UTF-16 by its first bytes.
        if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] != b"<" or b"\0" in head[:64]:
            raise InputFileError(f"{path} is no VOTable: it is no XML, or packed")
        parser.Parse(head, len(head) < _VOTABLE_HEAD)
        if listener.root.rpartition(":")[2] != "VOTABLE":
            raise InputFileError(f"{path} is no VOTable: no VOTABLE element near its beginning")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if _REMOTE_STREAM.search(content):
                raise InputFileError(
                    f"{path} keeps its data at another address (STREAM href), which is never "
                    "followed; save the table with its data inside"
                )
            _check_fields(content, path)


_REMOTE_STREAM = re.compile(rb"<(?:[^\s<>:]{1,99}:)?STREAM\b[^>]*\bhref\b")
_FIELD = re.compile(rb"<(?:[^\s<>:]{1,99}:)?(?:FIELD|PARAM)\b")
_N_ROWS = re.compile(rb"\bnrows\s*=\s*[\"']\s*([0-9]{1,18})")
_ARRAY_SIZE = re.compile(rb"arraysize\s*=\s*[\"']\s*([0-9x\s]*)")


def _check_fields(content: Any, path: Path) -> None:
    """Refuse absurdly many fields, and fields of absurd sizes, which are made before any data."""
    limits, total = current(), 0
    for number, found in enumerate(_FIELD.finditer(content)):
        if number >= limits.columns:
            raise exceeded(path, f"has more than {limits.columns} fields", "columns")
        sizes = _ARRAY_SIZE.search(content, found.end(), found.end() + 4096)
        words = re.findall(rb"[0-9]{1,18}", sizes[1]) if sizes else []
        total += math.prod(map(int, words))
    if total > limits.pixels:
        raise exceeded(path, f"has rows of {total} values", "pixels")
    # The declared number of rows is made room for before one is read.
    for found in _N_ROWS.finditer(content):
        check_unfolded(8 * int(found[1]) * max(total, 1), path)


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
    # A folder that came from elsewhere could make files of this machine part of a survey.
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


def encoding_of(path: Path) -> str:
    """Return the encoding of a text, plain or gzipped: UTF-8, or Latin-1 if it cannot be that."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with ExitStack() as stack:
        file: Any = stack.enter_context(path.open("rb"))
        if path.name.lower().endswith(".gz"):
            file = stack.enter_context(Gunzipped(file, path))
        try:
            while block := file.read(_TEXT_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            logger.warning("%s is not in UTF-8, and is read as Latin-1", path)
            return "latin-1"
    return "utf-8-sig"


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
        if stream.peek(9)[:9].startswith(_PACKED_MAGIC):
            raise InputFileError(f"{path} is packed; unpack it first")
        header = b"".join(_commented(stream, limit))
    if len(header) >= limit:
        raise exceeded(path, f"has a header of more than {limit} bytes, an eighth", "head_bytes")
    if _REFERENCE.search(_QUOTED.sub(b"", header)):
        raise InputFileError(f"{path} has a header with anchors of YAML; write it without")


_REFERENCE = re.compile(rb"(?:[:,\[{?-]\s*|^#\s*)[&*][\w-]", re.MULTILINE)
_PACKED_MAGIC = (b"\x1f\x8b", b"BZh", b"PK\x03\x04", b"\xfd7zXZ", b"\x1f\x9d")
_QUOTED = re.compile(rb"'[^'\n]*'|\"[^\"\n]*\"")


def _commented(stream: Any, limit: int) -> Iterator[bytes]:
    """Yield the lines of a header, in all little more bytes than `limit`."""
    total = 0
    while total < limit and (line := stream.readline(limit)).startswith(b"#"):
        total += len(line)
        yield line
