"""What an input may not do, watched while it is read: run, ask outside, open, write elsewhere."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

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
