"""What an input may not do, watched while it is read: run, ask outside, open, write elsewhere."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from builders.bounded import MIB, starved, status_mib

_FORBIDDEN = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty",
    "pty.spawn", "pickle.find_class", "socket.connect", "socket.getaddrinfo",
    "socket.gethostbyname", "socket.sendto", "urllib.Request", "ctypes.dlopen", "os.symlink",
    "os.link", "os.chmod", "os.chown", "webbrowser.open", "ftplib.connect", "http.client.connect",
)  # fmt: skip
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


class Escape(BaseException):
    """An input made the package do what no input may."""


class _Watch:
    active = threading.local()
    places: tuple[str, ...] = ()
    seen: ClassVar[list[str]] = []


def _hook(event: str, args: Any) -> None:
    if not getattr(_Watch.active, "on", False):
        return
    if event in _FORBIDDEN:
        _found(f"{event} {args!r:.200}")
    elif event == "open" and isinstance(args[0], str | bytes):
        path = os.path.realpath(os.fsdecode(args[0]))
        if not path.startswith(_Watch.places):
            # What Python itself reads (modules, time zones) is no input's doing.
            harmless = not (args[2] or 0) & _WRITING and path.startswith(_SYSTEM)
            if not harmless:
                _found(f"open {path} {args[1]!r}")
    elif event in ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        if isinstance(args[-1], int) and args[-1] >= 0 and event != "os.mkdir":
            # Relative to an open directory, which was opened by its path before.
            return
        path = os.path.realpath(os.fsdecode(args[0]))
        if not path.startswith(_Watch.places):
            _found(f"{event} {path}")


def _found(text: str) -> None:
    _Watch.seen.append(text)
    raise Escape(text)


_SYSTEM = tuple(
    {sys.prefix, sys.base_prefix, "/usr", "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/sys",
     "/dev/null", "/dev/urandom", "/etc/localtime", "/etc/timezone", "/etc/mime.types",
     str(Path(__file__).resolve().parents[1] / "src"), str(Path(__file__).resolve().parent)}
)  # fmt: skip


def install(*places: Path) -> None:
    """Watch this process; inputs may touch these places alone."""
    if not _Watch.places:
        sys.addaudithook(_hook)
    _Watch.places = tuple(os.path.realpath(place) for place in places)


MEMORY_MIB = 2048
"""What reading an input may map beside what is mapped: four times what a file may unfold to."""
CPU_SECONDS = 10


@contextmanager
def limited() -> Iterator[None]:
    """Limit the memory of this process while the block runs, and look at its CPU time after.

    Raises
    ------
    Escape
        If the block asked for more memory than that, also where it made a clear error of it, or
        took longer.
    """
    before, began = resource.getrlimit(resource.RLIMIT_AS), time.process_time()
    most = (status_mib("VmSize") + MEMORY_MIB) * MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, before[1]))
    try:
        yield
    except Exception as error:
        if starved(error):
            raise Escape(f"it asked for too much memory: {error!r:.200}") from error
        raise
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    if time.process_time() - began > CPU_SECONDS:
        raise Escape(f"it took {time.process_time() - began:.1f} s of CPU")


@contextmanager
def watched() -> Iterator[None]:
    """Watch while the block runs, in this thread.

    Raises
    ------
    Escape
        If it did what no input may, even if an error of that was caught on the way.
    """
    _Watch.seen.clear()
    _Watch.active.on = True
    try:
        yield
    finally:
        _Watch.active.on = False
    if _Watch.seen:
        raise Escape(_Watch.seen[0])
