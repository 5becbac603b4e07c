"""Open files that cannot be trusted: one clear error for each way in which they are broken."""

import codecs
import gzip
import logging
import math
import re
import warnings
from collections.abc import Iterator, Mapping
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
_BLOCK, _CARD, _KEYWORD = 2880, 80, 8
"""Bytes of a block of FITS, of a card of its header, and of the keyword in it (FITS 4.0, sections
3.1, 3.3 and 4.1.2.1)."""
# astropy takes a keyword in any case, and one behind HIERARCH, for the keyword itself.
_SIZES = re.compile(rb"BITPIX|[PG]COUNT|TFIELDS|Z?NAXIS[0-9]{0,3}|ZTILE[0-9]{1,3}")
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
        return stack.enter_context(fits.open(stream, memmap=memmap and not packed))


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
        _check_tiles(values, path, number)
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
    """Return what a header says of sizes: whole numbers, each said once, as the standard has it."""
    values: dict[str, int] = {}
    for card in _cards(header):
        if card.startswith(b"END") and not card[3:4].isalnum():
            if card.rstrip() != b"END":
                raise _wrong_sizes(path, number, "an END that does not end it")
            break
        before, _, text = card.partition(b"=")
        name = before.upper().removeprefix(b"HIERARCH").strip()
        if not _SIZES.fullmatch(name):
            continue
        key = name.decode()
        plain = before == name.ljust(_KEYWORD) and _WHOLE.fullmatch(text)
        if not plain or key in values:
            raise _wrong_sizes(
                path, number, f"{key} twice, or no whole number as the standard writes it"
            )
        values[key] = int(text.split(b"/")[0])
    return values


def _check_tiles(values: Mapping[str, int], path: Path, number: int) -> None:
    """Refuse a tiled image with another number of tiles than rows, or of absurd ones.

    A tile is unfolded whole (FITS 4.0, section 10.1).
    """
    axes = range(1, values.get("ZNAXIS", 0) + 1)
    lengths = [values.get(f"ZNAXIS{k}", 0) for k in axes]
    if not lengths:
        return
    # By default a tile is a row of the image.
    tile = [values.get(f"ZTILE{k}", lengths[0] if k == 1 else 1) for k in axes]
    if min(tile) < 1 or 8 * math.prod(tile) > max(current().chunk_bytes, 8 * math.prod(lengths)):
        raise _wrong_sizes(path, number, "tiles that no image can have")
    count = math.prod(-(-n // t) for n, t in zip(lengths, tile, strict=True))
    if count != values.get("NAXIS2", 0):
        raise _wrong_sizes(path, number, f"{count} tiles, but {values.get('NAXIS2', 0)} rows")
    check_unfolded(8 * math.prod(map(min, tile, lengths)), path)


def says_simulated(hdus: Any) -> bool:
    """Whether a header of a FITS file has the card ``SIMULATE = T``, whichever HDU it belongs to.

    Files keep what holds for all of their spectra in the primary header, or with the spectra.
    """
    return any(hdu.header.get("SIMULATE", False) is True for hdu in hdus)


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
    upper = [name.upper() for name in names]
    if isinstance(key, str) and key.upper() in upper:
        return hdus[upper.index(key.upper())]
    if isinstance(key, int) and 0 <= key < len(names):
        return hdus[key]
    listed = ", ".join(f"{k} {name!r}" for k, name in enumerate(names))
    hint = suggestion(key.upper(), upper) if isinstance(key, str) else ""
    raise InputFileError(f"{path} has no HDU {key!r}{hint} (it has {listed})")


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


def open_unpacked(path: Path, stack: ExitStack) -> Any:
    """Open the bytes of a text until `stack` closes; a gzipped one unfolds within the limits."""
    stream: Any = stack.enter_context(path.open("rb"))
    packed = stream.peek(2).startswith(_GZIP)
    return stack.enter_context(Gunzipped(stream, path)) if packed else stream


def encoding_of(path: Path) -> str:
    """Return the encoding of a text, plain or gzipped: UTF-8, or Latin-1 if it cannot be that."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with ExitStack() as stack:
        file = open_unpacked(path, stack)
        try:
            while block := file.read(_TEXT_BLOCK):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            logger.warning("%s is not in UTF-8, and is read as Latin-1", path)
            return "latin-1"
    return "utf-8-sig"
