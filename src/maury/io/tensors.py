"""Reading tensor files that may be anything: checked before they are given to their library."""

import hashlib
import math
import operator
import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.numpy import load

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray
from maury.io.config_files import parse_json
from maury.io.limits import current

SUMS = "SHA256SUMS"
"""File of the checksums of all files of a model, as ``sha256sum -c`` takes it."""
_MAX_HEADER_BYTES = 2**20
"""A header takes some hundred bytes a tensor, and a network has hundreds of these at most."""
_MAX_SUMS_BYTES = 2**20
"""A line is 66 bytes and a name: room for ten thousand files, of which a model has some tens."""
_KINDS = frozenset({"F64", "F32", "I64", "I32", "I16", "I8", "U8", "BOOL"})


def damaged(file: Path, why: str) -> ModelFileError:
    """Return the error that a file of a model cannot be used."""
    return ModelFileError(f"{file} cannot be used: {why}; copy or train the model again")


def read_tensor_file(
    path: Path, *, sha256: str, shapes: Mapping[str, tuple[int, ...]] | None = None
) -> dict[str, AnyArray]:
    """Read a safetensors file whose checksum is known.

    Parameters
    ----------
    path : Path
        A file; a link, or a file in a linked directory, is refused.
    sha256 : str
        Checksum that it must have.
    shapes : mapping of str to tuple of int, optional
        Names and shapes of its tensors, which must then be float32.

    Raises
    ------
    ModelFileError
        If it is missing, too large, damaged, or not what it should be.
    """
    # A link could name any file of this machine, or change its aim after the check.
    if path.is_symlink() or path.parent.is_symlink():
        raise damaged(path, "it is a link, and a model directory may hold none")
    if not path.is_file():
        raise damaged(path, "it is missing")
    _check_size(path, shapes)
    # Read once: what is checked and what is loaded are the same bytes, whoever writes meanwhile.
    data = path.read_bytes()
    _check_header(path, data, shapes)
    digest = hashlib.sha256(data).hexdigest()
    if digest != sha256:
        raise damaged(path, f"its SHA-256 is {digest[:12]}..., not {sha256[:12]}...")
    try:
        arrays: dict[str, AnyArray] = load(data)
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError) as error:
        raise damaged(path, str(error)) from error
    return arrays


def write_sums(directory: Path) -> None:
    """Write the checksums of all files in a directory beside them."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(directory).as_posix()}"
        for path in files
    ]
    (directory / SUMS).write_text("\n".join(lines) + "\n", "utf-8")


def check_sum(path: Path) -> None:
    """Compare a file with its checksum; a directory without checksums is of an older version.

    Raises
    ------
    ModelFileError
        If they differ.
    """
    sums = path.with_name(SUMS)
    if sums.is_symlink():
        raise damaged(sums, "it is a link, and a model directory may hold none")
    if not sums.is_file():
        return
    if sums.stat().st_size > _MAX_SUMS_BYTES:
        raise damaged(sums, f"it is larger than {_MAX_SUMS_BYTES} bytes")
    lines = sums.read_bytes().decode("utf-8", errors="replace").splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if known.get(path.name) != digest:
        raise ModelFileError(
            f"{path} is not the file whose checksum {sums.name} holds; copy or train the model "
            f"again (if it was changed on purpose, remove {sums})"
        )


def _check_size(path: Path, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    size = path.stat().st_size
    largest = current().tensor_bytes
    if shapes is None:
        if size > largest:
            raise damaged(path, f"it is larger than {largest} bytes")
        return
    expected = 4 * sum(math.prod(shape) for shape in shapes.values())
    if expected > largest or size > expected + _MAX_HEADER_BYTES:
        raise damaged(path, f"it has {size} bytes where the weights take {expected}")


def _check_header(path: Path, data: bytes, shapes: Mapping[str, tuple[int, ...]] | None) -> None:
    """Check names, types, shapes and the length."""
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= length <= min(_MAX_HEADER_BYTES, len(data) - 8):
        raise damaged(path, "it is not a safetensors file, or it is cut short")
    try:
        header = parse_json(data[8 : 8 + length])
        header.pop("__metadata__", None)
        found = {name: tuple(entry["shape"]) for name, entry in header.items()}
        kinds = {entry["dtype"] for entry in header.values()}
        # `operator.index` refuses texts and fractions, which would compare wrongly.
        end = max((operator.index(e["data_offsets"][1]) for e in header.values()), default=0)
    except (ValueError, RecursionError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise damaged(path, "it is not a safetensors file") from error
    if not found or not kinds <= (_KINDS if shapes is None else {"F32"}):
        expected = "numbers" if shapes is None else "F32"
        raise damaged(path, f"its tensors are {', '.join(map(str, kinds))}, not {expected}")
    if shapes is not None and found != dict(shapes):
        odd = sorted(n for n in {*found, *shapes} if found.get(n) != shapes.get(n))
        raise damaged(
            path,
            f"the shape of {odd[0]!r} is {found.get(odd[0])} where model.json says "
            f"{shapes.get(odd[0])}",
        )
    # Bytes behind the tensors are none of the model's: a file may carry no stowaways.
    if 8 + length + end != len(data):
        raise damaged(path, f"it has {len(data)} bytes where its header says {8 + length + end}")
