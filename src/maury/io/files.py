"""Output paths: never overwritten silently, never half written under their final name."""

import ctypes
import errno
import functools
import inspect
import json
import logging
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from maury.errors import OutputBusy, OutputError, OutputExists, ResumeMismatch

if TYPE_CHECKING:
    from filelock import BaseFileLock

logger = logging.getLogger(__name__)
STAMP = "run.json"
"""Says in a work folder which run it is of."""
_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "raise the limit on the size of files (ulimit -f)",
    errno.EROFS: "choose a place that is not read-only",
    errno.EACCES: "choose a place where you may write",
    errno.EPERM: "choose a place where you may write",
    errno.EIO: "look after the disk",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "choose a place inside a directory",
}
_EXCHANGE, _HERE = 2, -100
"""RENAME_EXCHANGE and AT_FDCWD of Linux's renameat2."""
P = ParamSpec("P")
R = TypeVar("R")


@contextmanager
def explaining(path: Path | str) -> Iterator[None]:
    """Turn the refusal of a disk, while `path` is made, into an `OutputError`."""
    try:
        yield
    except OSError as error:
        number = error.errno or _number_in_words(error)
        remedy = _REMEDIES.get(number)
        if remedy is None:
            raise
        where = f" ({error.filename})" if error.filename and error.filename != str(path) else ""
        raise OutputError(
            f"{path} cannot be written: {os.strerror(number)}{where}; {remedy}, and give "
            "the same command again"
        ) from error


def _number_in_words(error: OSError) -> int:
    """Return the error number that libraries tell in words alone, 0 if there is none."""
    # So numpy says that a disk took less than it was given.
    if "requested and" in str(error):
        return errno.ENOSPC
    # So libraries in Rust do.
    found = re.search(r"\(os error (\d{1,4})\)", str(error))
    return int(found[1]) if found else 0


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


def discard(work: Path, out: Path) -> None:
    """Remove the work folder of `out` so that no kill leaves a part of it under its name."""
    # A tree is removed file by file; under this name the next run knows what is left of it.
    aside = temporary(out)
    remove(aside)
    os.replace(work, aside)
    remove(aside)


Settled = set[tuple[int, int, int]]
"""Files that the disk keeps already: inode, time of the last change in ns, and length."""


def settle(path: Path, settled: Settled | None = None) -> None:
    """Have the disk keep a file, or a directory tree, even if the machine loses its power.

    Parameters
    ----------
    path : Path
    settled : set, optional
        Files of earlier calls, which are left out if they have not changed; this adds its own. So a
        tree that grows is written to the disk once, not again with each new file.
    """
    if path.is_dir() and not path.is_symlink():
        for entry in path.iterdir():
            settle(entry, settled)
    if path.is_symlink() or (path.is_dir() and os.name == "nt"):
        return
    if settled is not None:
        state = path.stat()
        mark = (state.st_ino, state.st_mtime_ns, state.st_size)
        if mark in settled:
            return
        settled.add(mark)
    # Windows flushes a file only through a handle that may write.
    number = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def publish(partial: Path, path: Path, *, overwrite: bool, settled: Settled | None = None) -> None:
    """Move a finished `partial` file or directory to its final `path` in one step.

    Parameters
    ----------
    partial, path : Path
    overwrite : bool
        Replace what is at `path`.
    settled : set, optional
        What `settle` has written to the disk already.

    Raises
    ------
    OutputExists
        If `path` exists and `overwrite` is false; `partial` is then left as it is.
    """
    refuse_existing(path, overwrite=overwrite)
    settle(partial, settled)
    in_the_way = path.exists() or path.is_symlink()
    if in_the_way and (partial.is_dir() or path.is_dir()):
        # What a kill leaves under this name the next run knows, and removes.
        if partial != (known := temporary(path)):
            remove(known)
            os.replace(partial, known)
            partial = known
        if not _exchanged(partial, path):
            os.replace(path, _set_aside(path))
            os.replace(partial, path)
            remove(_set_aside(path))
        if partial.exists() or partial.is_symlink():
            remove(partial)
    else:
        os.replace(partial, path)
    # Not every file system keeps a directory on demand; the files themselves are safe.
    with suppress(OSError):
        _settle_names(path.parent)


def _settle_names(directory: Path) -> None:
    number = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names in one step, where the system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = (os.fsencode(one.absolute()), os.fsencode(other.absolute()))
    return bool(rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0)


def _set_aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")


def temporary(path: Path) -> Path:
    """Return the name beside `path` under which this process writes it."""
    # Processes on several machines that write to one directory may have equal numbers.
    maker = f"{platform.node()}-{os.getpid()}"
    return path.with_name(f".{path.stem}.{maker}.tmp{path.suffix}")


def tidy(path: Path) -> None:
    """Remove what dead processes of this machine left beside `path`.

    An output that a kill caught between two names, on a system that cannot exchange these, is put
    back.
    """
    aside = _set_aside(path)
    if aside.exists():
        if path.exists():
            remove(aside)
        else:
            logger.warning("%s is put back, which a killed run was replacing", path)
            os.replace(aside, path)
    head, tail = f".{path.stem}.{platform.node()}-", f".tmp{path.suffix}"
    if not path.parent.is_dir():
        return
    for entry in list(os.scandir(path.parent)):
        if entry.name.startswith(head) and entry.name.endswith(tail):
            number = entry.name[len(head) : -len(tail)]
            if number.isdigit() and not is_alive(int(number)):
                remove(Path(entry.path))


def is_alive(process: int) -> bool:
    """Whether a process of this machine lives, as far as can be told."""
    # There a signal of 0 would end the process.
    if os.name == "nt":
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        # A process of another user, or a number that no process of today has: leave it alone.
        return True
    return True


@contextmanager
def writing(path: Path, *, overwrite: bool) -> Iterator[Path]:
    """Yield a temporary file beside `path`, moved to `path` when the block ends without error.

    Raises
    ------
    OutputExists
        If `path` exists and `overwrite` is false.
    OutputError
        If the disk is full, or cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    with explaining(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tidy(path)
        partial = temporary(path)
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
        If the folder is of another run and `overwrite` is false, or was not made by `maury`.
    OutputError
        If the disk is full, or cannot be written.
    """
    work = out.with_name(out.name + ".part")
    stamp = work / STAMP
    if work.exists() or work.is_symlink():
        require_ours(work, STAMP)
        found = read_stamp(stamp).get("key")
        if found == key:
            logger.info("resuming %s", out)
            return work
        if found is not None and not overwrite:
            raise ResumeMismatch(
                f"{work} holds {holds}; finish that run, or pass --overwrite to discard it"
            )
        with explaining(out):
            discard(work, out)
    with explaining(out):
        work.mkdir(parents=True)
    with writing(stamp, overwrite=True) as partial:
        partial.write_text(json.dumps({"key": key, **(notes or {})}), "utf-8")
    return work


def read_stamp(stamp: Path) -> dict[str, Any]:
    """Read a stamp; nothing if there is none, or a failing machine has damaged it."""
    try:
        found = json.loads(stamp.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        logger.warning("%s cannot be read, so that its work is done again: %s", stamp, error)
        return {}
    return found if isinstance(found, dict) else {}


def require_ours(work: Path, *stamps: str) -> None:
    """Raise `ResumeMismatch` unless a folder in the way has one of these files, or is empty."""
    ours = work.is_dir() and not work.is_symlink()
    if ours and not any((work / stamp).exists() for stamp in stamps):
        head = f".{Path(stamps[0]).stem}."
        ours = all(one.is_dir() or one.name.startswith(head) for one in work.rglob("*"))
    if not ours:
        raise ResumeMismatch(
            f"{work} is in the way, and is not of maury's making; move it elsewhere, or choose "
            "another output"
        )


_UNLOCKABLE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)
_LOOKS = 4
"""One finds that the system cannot lock, one clears the file of a dead process away, one meets a
file whose name its holder has just removed; the last takes the lock."""


@contextmanager
def making(out: Path | str) -> Iterator[None]:
    """Hold an output while it is made.

    A lock file beside it names the process and its machine. The system lets go of the lock when
    the process dies, however that may be; where a file system cannot lock (some NFS), the lock file
    of a dead process of this machine counts as none, and one of another machine stands until it is
    removed by hand.

    Parameters
    ----------
    out : path-like
        What is made, a file or a folder.

    Raises
    ------
    OutputBusy
        If another run makes it.
    OutputError
        If the disk is full, or cannot be written.
    """
    out = Path(out).absolute()
    with explaining(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        lock = _hold(out.with_name(f".{out.name}.lock"), out)
        try:
            tidy(out)
            yield
        finally:
            _release(lock)


def one_at_a_time(output: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate what makes the output of this argument's name, so that it holds it (`making`)."""

    def decorate(make: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(make)

        @functools.wraps(make)
        def alone(*args: P.args, **kwargs: P.kwargs) -> R:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            with making(bound.arguments[output]):
                return make(*args, **kwargs)

        return alone

    return decorate


def _hold(path: Path, out: Path) -> "BaseFileLock":
    """Return the lock at `path`, which is this process's alone."""
    from filelock import FileLock, SoftFileLock, Timeout

    lock: BaseFileLock = FileLock(path)
    for _ in range(_LOOKS):
        try:
            lock.acquire(blocking=False)
            break
        except Timeout:
            continue
        except OSError as error:
            if error.errno not in _UNLOCKABLE:
                raise
            # An empty file is what the attempt left; that of a holder names its process.
            with suppress(OSError):
                if path.stat().st_size == 0:
                    path.unlink()
            lock = SoftFileLock(path)
    else:
        raise _busy(path, out)
    if not isinstance(lock, SoftFileLock):
        # On a full disk the output will tell.
        with suppress(OSError):
            path.write_text(f"{os.getpid()}\n{platform.node()}\n", "utf-8")
    return lock


def _release(lock: "BaseFileLock") -> None:
    from filelock import SoftFileLock

    # The name goes while the lock is held: whoever waits for it sees that its file has no name, and
    # makes another. Windows keeps the name of an open file.
    if os.name != "nt" and not isinstance(lock, SoftFileLock):
        with suppress(OSError):
            Path(lock.lock_file).unlink()
    lock.release()


def _busy(path: Path, out: Path) -> OutputBusy:
    who = "another process"
    with suppress(OSError, ValueError):
        process, machine = path.read_text("utf-8").split("\n")[:2]
        who = f"process {int(process)} on {machine}"
    return OutputBusy(
        f"{out} is being made by {who}; wait until it ends, or choose another name (if no such "
        f"process runs, remove {path})"
    )
