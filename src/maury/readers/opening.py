"""Open files that cannot be trusted: one clear error for each way in which they are broken."""

import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from maury.errors import InputFileError, MauryError
from maury.naming import suggestion

_COMPRESSED = (b"\x1f\x8b", b"BZ", b"PK", b"\xfd7zXZ")
_HEAD = 65536
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_VOTABLE_ROOT = re.compile(rb"<(?:[\w.-]+:)?VOTABLE\b")
_DECLARATION = re.compile(rb"<!(?:DOCTYPE|ENTITY)")
_REMOTE_STREAM = re.compile(rb"<(?:[\w.-]+:)?STREAM\b[^>]*\bhref\b")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever a parser raises over `path` into one `InputFileError`; hush its warnings.

    Parsers of damaged files raise errors of nearly every class, so that every class is caught.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
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
        stream = stack.enter_context(path.open("rb"))
        compressed = stream.peek(5).startswith(_COMPRESSED)
        # astropy leaves a file open that it opened itself and could not read.
        hdus = stack.enter_context(fits.open(stream, memmap=memmap))
        size = path.stat().st_size
        for number, hdu in enumerate(hdus):
            place = hdu.fileinfo()
            tiled = isinstance(hdu, fits.CompImageHDU)
            length = max(place["datSpan"] - 2879, 0) if tiled else hdu.size
            if not compressed and place["datLoc"] + length > size:
                raise InputFileError(
                    f"{path}: the header of HDU {number} promises {length} bytes of data, the "
                    f"file has {max(size - place['datLoc'], 0)}; it is cut short or damaged, "
                    "fetch it again"
                )
    return hdus


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
        for hdu in hdus:
            tiled = isinstance(hdu, fits.CompImageHDU)
            if isinstance(hdu, wanted) and tiled <= image and (not image or hdu.shape):
                return hdu
        raise InputFileError(f"{path} has no {kind}; state the right file")
    names = [str(hdu.name) for hdu in hdus]
    if isinstance(key, str) and key.upper() in names:
        return hdus[names.index(key.upper())]
    if isinstance(key, int) and 0 <= key < len(names):
        return hdus[key]
    listed = ", ".join(f"{k} {name!r}" for k, name in enumerate(names))
    hint = suggestion(key.upper(), names) if isinstance(key, str) else ""
    raise InputFileError(f"{path} has no HDU {key!r}{hint} (it has {listed})")


def check_votable(path: Path) -> None:
    """Refuse a VOTable that declares entities, or whose data lie at another address.

    Raises
    ------
    InputFileError
        If so, or if it is no VOTable in an encoding of ASCII's kin.
    """
    import mmap

    with reading(path), path.open("rb") as stream:
        head = _COMMENT.sub(b"", stream.read(_HEAD))
        root = _VOTABLE_ROOT.search(head)
        if _DECLARATION.search(head):
            raise InputFileError(
                f"{path} declares a document type or entities, which a VOTable does not need and "
                "which can be made to fill the memory; remove the declaration"
            )
        if root is None:
            raise InputFileError(f"{path} is no VOTable: no VOTABLE element near its beginning")
        with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            if _REMOTE_STREAM.search(content):
                raise InputFileError(
                    f"{path} keeps its data at another address (STREAM href), which is never "
                    "followed; save the table with its data inside"
                )
