"""Files of a survey store that may be anybody's: looked at before Zarr follows what they say."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maury.errors import SurveyFileError
from maury.io import addresses
from maury.io.config_files import parse_json
from maury.io.limits import VARIABLE, check_columns, current, exceeded, unpacked_bytes
from maury.survey.manifest import MANIFEST

if TYPE_CHECKING:
    import zarr

HEADER_FILE = "zarr.json"
"""Metadata of a store, and of each of its arrays."""
_CODECS = {"bytes", "vlen-utf8", "zstd", "crc32c"}
"""Those that `maury.survey.writer` writes."""
_MOST_AXES = 3
"""Of an array: star, pixel, and one more that a later version may have; more is damage."""
_ITEM_BYTES = 8
"""Of a number or of what stands for a text; wider types state their length."""


def check_files(store: Path) -> None:
    """Look at the files of a store before Zarr does.

    Raises
    ------
    SurveyFileError
        If there are links among metadata and folders (the store itself may be one), which could
        name any file of this machine, or metadata are damaged or beyond the limits.
    """
    inner = [path for path in store.iterdir() if path.is_dir() or path.is_symlink()]
    check_columns(inner, store)
    for path in [store / HEADER_FILE, *inner]:
        for part in (path, path / HEADER_FILE, path / "c"):
            if part.is_symlink():
                raise SurveyFileError(
                    f"{part} is a link, and a survey store may hold none; copy the store whole"
                )
    heads = [path / HEADER_FILE for path in inner if path.name != MANIFEST]
    for head in filter(Path.is_file, heads):
        try:
            _check_metadata(head)
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise SurveyFileError(
                f"{head} is damaged ({error}); copy it from a backup, or make the store anew"
            ) from error


def check_chunks(array: "zarr.Array[Any]", store: Path, rows: slice) -> None:
    """Refuse chunks of some rows that unfold to absurdly many bytes.

    Only Zstandard, which a store is written with, says so in its first bytes.
    """
    limit = current().chunk_bytes
    # From the file: what libraries say of codecs differs from version to version.
    head = parse_json((store / array.basename / HEADER_FILE).read_text("utf-8"))
    kinds = [str(codec["name"]) for codec in head["codecs"]]
    packed = kinds.count("zstd")
    # Of other codecs, or of one inside another, no header tells how much they unfold to.
    if packed > 1 or not set(kinds) <= _CODECS:
        raise ValueError(f"it is packed by {', '.join(kinds)}, which no survey store is")
    first, stop, _ = rows.indices(array.shape[0])
    step = array.chunks[0]
    for number in range(first // step, -(-stop // step)):
        place = store / array.basename / "c" / str(number)
        # Of two axes a chunk is a file in a folder, c/0/0; of one axis it is c/0 itself.
        for file in place.iterdir() if place.is_dir() else [place]:
            if file.is_symlink() or place.is_symlink():
                raise ValueError(f"{file} is a link, and a survey store may hold none")
            # A chunk that holds nothing but the fill value is not written.
            if not file.is_file():
                continue
            size = unpacked_bytes(file) if packed else file.stat().st_size
            if size is None or size > limit:
                raise ValueError(f"its chunk {file} unfolds to {size or 'unknown'} bytes")
            if array.dtype.kind in "TO":
                _check_texts(file, size, kinds)


def _check_texts(file: Path, size: int, kinds: Sequence[str]) -> None:
    """Refuse a chunk of texts that promises more of them than it has bytes for.

    It begins with their number, and each with its length, of four bytes both (codec vlen-utf8).
    """
    import pyarrow as pa

    data = file.read_bytes()
    # The checksum, also of four bytes, is the last of the codecs.
    data = data[:-4] if "crc32c" in kinds else data
    if "zstd" in kinds:
        data = pa.decompress(data, decompressed_size=size, codec="zstd", asbytes=True)
    count = int.from_bytes(data[:4], "little")
    if 4 * count > size:
        raise ValueError(f"its chunk {file} promises {count} texts in {size} bytes")


def _check_metadata(head: Path) -> None:
    """Refuse metadata of an array that ask for more than a survey has, before Zarr follows them.

    A variable with the name of its dimension would be an index, which is read whole on opening.
    """
    limits = current()
    if head.stat().st_size > limits.head_bytes:
        raise exceeded(head, f"has {head.stat().st_size} bytes", "head_bytes")
    content = parse_json(head.read_bytes())
    if head.parent.name in ("star", "pixel") or [head.parent.name] == content["dimension_names"]:
        raise ValueError(f"{head.parent.name!r} is the name of a dimension")
    kind = content["data_type"]
    item = kind["configuration"]["length_bytes"] if isinstance(kind, dict) else _ITEM_BYTES
    chunks = content["chunk_grid"]["configuration"]["chunk_shape"]
    _check_shape(head, content["dimension_names"], tuple(content["shape"]), chunks, item)


def _check_shape(
    what: Path | str, axes: Sequence[str], shape: tuple[int, ...], chunks: Sequence[int], item: int
) -> None:
    """Refuse an array of absurd shape, and chunks that no reading of some rows should unfold."""
    limits = current()
    sizes = dict(zip(axes, shape, strict=True))
    rows, pixels = sizes.pop("star", 0), sizes.pop("pixel", 0)
    if rows > limits.rows or math.prod(sizes.values()) > limits.pixels or len(shape) > _MOST_AXES:
        raise SurveyFileError(f"{what} has shape {shape}; the store is damaged")
    if pixels > limits.grid_pixels:
        raise exceeded(what, f"has spectra of {pixels} pixels", "grid_pixels")
    chunk = item * math.prod(chunks)
    if min(chunks, default=1) < 1 or chunk > limits.chunk_bytes:
        raise SurveyFileError(
            f"{what} has chunks of {chunk} bytes; the store is damaged; if it is right, raise "
            f"{VARIABLE}='chunk_bytes=...'"
        )


def check_sizes(
    arrays: Mapping[str, "zarr.Array[Any]"], path: Path | addresses.Address
) -> dict[str, int]:
    """Return the length of each dimension of a store, by name.

    Raises
    ------
    SurveyFileError
        If an array has an absurd shape or chunks, also in stores whose files were not looked at, or
        two arrays do not agree.
    """
    sizes: dict[str, int] = {}
    for name, array in sorted(arrays.items()):
        axes = axes_of(array)
        what = f"{path}: {name!r}"
        _check_shape(what, axes, array.shape, array.chunks, array.dtype.itemsize)
        for axis, size in zip(axes, array.shape, strict=True):
            if sizes.setdefault(axis, size) != size:
                raise SurveyFileError(
                    f"{what} has {size} values along {axis!r}, where others have {sizes[axis]}; "
                    "the store is damaged, make it anew"
                )
    return sizes


def axes_of(array: "zarr.Array[Any]") -> tuple[str, ...]:
    """Return the names of the dimensions of an array."""
    return tuple(str(axis) for axis in getattr(array.metadata, "dimension_names", None) or ())
