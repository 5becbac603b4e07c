"""What files a survey store consists of, so that a lost or torn one is noticed on opening.

The manifest is an empty Zarr group, ``manifest``, whose attributes hold the size of every chunk and
the SHA-256 of all metadata; what is in a chunk is guarded by its own checksum (CRC32C).
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from maury.errors import SurveyFileError
from maury.io.config_files import parse_json

MANIFEST = "manifest"
_FORMAT = {"format": "maury manifest", "format_version": 1}
_HEAD = "zarr.json"
_MOST_BYTES = 2**28
"""Of a manifest: at some 30 bytes a chunk of 2048 spectra, one of 5e9 spectra has half of it."""


def write_manifest(store: Path) -> None:
    """Write down the files of a complete store, in it."""
    content = {**_FORMAT, "metadata": _metadata(store), "chunks": _chunks(store)}
    (store / MANIFEST).mkdir(exist_ok=True)
    (store / MANIFEST / _HEAD).write_text(json.dumps(_group(content)), "utf-8")


def _group(content: dict[str, Any]) -> dict[str, Any]:
    # Sorted keys: equal contents are equal texts, whatever order they were collected in.
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    attributes = {"maury": content, "sha256": digest}
    return {"zarr_format": 3, "node_type": "group", "attributes": attributes}


def manifest_digest(store: Path) -> str | None:
    """Return the SHA-256 of the manifest, which differs if anything does; None without one."""
    try:
        return hashlib.sha256((store / MANIFEST / _HEAD).read_bytes()).hexdigest()
    except FileNotFoundError:
        return None


def check_manifest(store: Path) -> None:
    """Compare the files of a store with its manifest; one without is of an older version.

    Raises
    ------
    SurveyFileError
        If a file is missing, or has not the length or checksum that it was written with.
    """
    manifest = store / MANIFEST / _HEAD
    if not (store / MANIFEST).exists():
        return
    recorded = _read(manifest)
    for name, digest in recorded["metadata"].items():
        # A manifest of somebody else must not have files outside of the store opened.
        if not _is_inside(name):
            raise _damaged(manifest, f"names {name!r}")
        try:
            found = hashlib.sha256((store / name).read_bytes()).hexdigest()
        except OSError as error:
            raise _damaged(store / name, f"cannot be read: {error.strerror}") from error
        if found != digest:
            raise _damaged(
                store / name,
                "has changed since the store was written",
                f" (if it was changed on purpose, remove {store / MANIFEST})",
            )
    # Lengths alone, as every opening compares them; what is in a chunk is guarded when it is read.
    found_chunks = _chunks(store)
    for array, sizes in recorded["chunks"].items():
        here = found_chunks.get(array, {})
        for chunk, size in sizes.items():
            if here.get(chunk) != size:
                state = "is missing" if chunk not in here else f"has {here[chunk]} bytes"
                raise _damaged(store / array / chunk, f"{state}, {size} were written")


def _damaged(file: Path, why: str, remedy: str = "") -> SurveyFileError:
    return SurveyFileError(
        f"{file} {why}; copy it from a backup, or make the store anew with 'maury ingest' or "
        f"'maury simulate'{remedy}"
    )


def _read(manifest: Path) -> dict[str, Any]:
    try:
        if manifest.stat().st_size > _MOST_BYTES:
            raise ValueError("it is too large")
        group = parse_json(manifest.read_bytes())
        content: dict[str, Any] = group["attributes"]["maury"]
        known = {name: content[name] for name in _FORMAT} == _FORMAT
        for digest in content["metadata"].values():
            bytes.fromhex(digest)
        for sizes in content["chunks"].values():
            sum(sizes.values())
        if group != _group(content):
            raise ValueError("its checksum differs")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(manifest, f"cannot be read: {error}") from error
    if not known:
        raise _damaged(manifest, "is of another version")
    return content


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts and path.name == _HEAD


def _metadata(store: Path) -> dict[str, str]:
    heads = [store / _HEAD, *store.glob(f"*/{_HEAD}")]
    return {
        head.relative_to(store).as_posix(): hashlib.sha256(head.read_bytes()).hexdigest()
        for head in sorted(heads)
        if head.parent.name != MANIFEST
    }


def _chunks(store: Path) -> dict[str, dict[str, int]]:
    """Sizes of the chunk files of every array, by their paths inside the array."""
    return {array.name: _sizes(array, "c") for array in sorted(store.iterdir()) if array.is_dir()}


def _sizes(array: Path, inside: str) -> dict[str, int]:
    found: dict[str, int] = {}
    if not (array / inside).is_dir():
        return found
    with os.scandir(array / inside) as entries:
        for entry in sorted(entries, key=lambda one: one.name):
            name = f"{inside}/{entry.name}"
            if entry.is_dir():
                found |= _sizes(array, name)
            else:
                found[name] = entry.stat().st_size
    return found
