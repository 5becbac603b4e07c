"""What a packed chunk says that it unfolds to, read from its first bytes."""

from pathlib import Path

_ZSTD = b"\x28\xb5\x2f\xfd"
_LONGEST_HEAD = 18


def unpacked_bytes(file: Path) -> int | None:
    """Return the bytes that a file in Zstandard frames unfolds to, by the header of the first.

    Nothing else of the file is read. RFC 8878, section 3.1.1.1.

    Parameters
    ----------
    file : Path

    Returns
    -------
    int or None
        None if it is no such file, or the header does not say.
    """
    with file.open("rb") as stream:
        head = stream.read(_LONGEST_HEAD)
    if len(head) < 6 or not head.startswith(_ZSTD):
        return None
    flags = head[4]
    single = flags >> 5 & 1
    place = 5 + (1 - single) + (0, 1, 2, 4)[flags & 3]
    width = (single, 2, 4, 8)[flags >> 6]
    if not width or len(head) < place + width:
        return None
    size = int.from_bytes(head[place : place + width], "little")
    return size + 256 if width == 2 else size
