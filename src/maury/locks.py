"""One run per output: others are told who makes it."""

import errno
import functools
import inspect
import json
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import ParamSpec, TypeVar

from maury.errors import OutputBusy
from maury.files import explaining, is_alive, tidy

P = ParamSpec("P")
R = TypeVar("R")

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:
    fcntl = None

_TRIES = 100
_UNLOCKABLE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def making(out: Path | str) -> Iterator[None]:
    """Hold an output while it is made.

    A file beside it names the process and its machine. The system lets go of it when the process
    dies, however that may be; where it cannot lock files, the file of a dead process of this
    machine counts as none.

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
        path = out.with_name(f".{out.name}.lock")
        number = _hold(path, out)
        try:
            tidy(out)
            yield
        finally:
            _release(path, number)


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


def _hold(path: Path, out: Path) -> int:
    """Return the open lock file, which is this process's alone."""
    for _ in range(_TRIES):
        number = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            _require_free(number, path, out)
            # Whoever held it may have removed the file that was opened here.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(number), path.stat()):
                    _sign(number)
                    return number
        except BaseException:
            os.close(number)
            raise
        os.close(number)
    raise OutputBusy(f"{out} is made by other runs that begin and end; wait until they are done")


def _sign(number: int) -> None:
    text = json.dumps({"process": os.getpid(), "machine": platform.node()})
    # On a full disk the output will tell.
    with suppress(OSError):
        os.ftruncate(number, 0)
        os.write(number, text.encode())


def _release(path: Path, number: int) -> None:
    # Where locks are the system's, the name goes first: whoever waits finds another file.
    if fcntl is None:
        os.close(number)
    with suppress(OSError):
        path.unlink()
    if fcntl is not None:
        os.close(number)


def _require_free(number: int, path: Path, out: Path) -> None:
    locked = False
    if fcntl is not None:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except OSError as error:
            if error.errno not in _UNLOCKABLE:
                if error.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
                    raise
                raise _busy(path, out) from None
    if not locked and not _is_stale(path):
        raise _busy(path, out)


def _holder(path: Path) -> tuple[int, str]:
    try:
        found = json.loads(path.read_text("utf-8"))
        return int(found["process"]), str(found["machine"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0, ""


def _is_stale(path: Path) -> bool:
    process, machine = _holder(path)
    return not process or (machine == platform.node() and not is_alive(process))


def _busy(path: Path, out: Path) -> OutputBusy:
    process, machine = _holder(path)
    who = f"process {process} on {machine}" if process else "another process"
    return OutputBusy(
        f"{out} is being made by {who}; wait until it ends, or choose another name (if no such "
        f"process runs, remove {path})"
    )
