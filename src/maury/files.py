"""Output paths: never overwritten silently, never half written under their final name."""

import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from maury.errors import OutputExists, ResumeMismatch

logger = logging.getLogger(__name__)

STAMP = "run.json"
"""Says in a work folder which run it is of."""


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raise `OutputExists` if `path` exists and may not be replaced."""
    if not overwrite and (path.exists() or path.is_symlink()):
        raise OutputExists(f"{path} exists; choose another name, or pass --overwrite to replace it")


def remove(path: Path) -> None:
    """Remove a file or a directory tree; a symbolic link is removed, never followed."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def publish(partial: Path, path: Path, *, overwrite: bool) -> None:
    """Move a finished `partial` file or directory to its final `path` in one step.

    Raises
    ------
    OutputExists
        If `path` exists and `overwrite` is false; `partial` is then left as it is.
    """
    refuse_existing(path, overwrite=overwrite)
    if path.is_dir() and not path.is_symlink():
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        os.replace(path, old)
        os.replace(partial, path)
        remove(old)
    else:
        os.replace(partial, path)


@contextmanager
def writing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file beside `path`, moved to `path` when the block ends without error."""
    refuse_existing(path, overwrite=overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes on several machines that write to one directory may have equal numbers.
    maker = f"{platform.node()}-{os.getpid()}"
    partial = path.with_name(f".{path.stem}.{maker}.tmp{path.suffix}")
    try:
        yield partial
        publish(partial, path, overwrite=overwrite)
    finally:
        if partial.exists():
            remove(partial)


def work_folder(
    out: Path, key: str, *, holds: str, overwrite: bool, notes: dict[str, Any] | None = None
) -> Path:
    """Return the folder of unfinished work on `out`, beside it: that of a killed run, or a new one.

    Parameters
    ----------
    out : Path
        What is made.
    key : str
        Identity of all that determines it; a folder of another is never taken up.
    holds : str
        What a folder of another run holds, in words.
    overwrite : bool
        Discard a folder of another run.
    notes : dict, optional
        Kept with the key, as JSON, in a new folder.

    Raises
    ------
    ResumeMismatch
        If the folder is of another run and `overwrite` is false.
    """
    work = out.with_name(out.name + ".part")
    stamp = work / STAMP
    if work.exists():
        found = json.loads(stamp.read_text("utf-8")).get("key") if stamp.is_file() else None
        if found == key:
            logger.info("resuming %s", out)
            return work
        if found is not None and not overwrite:
            raise ResumeMismatch(
                f"{work} holds {holds}; finish that run, or pass --overwrite to discard it"
            )
        remove(work)
    work.mkdir(parents=True)
    with writing(stamp, overwrite=True) as partial:
        partial.write_text(json.dumps({"key": key, **(notes or {})}), "utf-8")
    return work
