"""The program, also ``python -m maury``: what it says when a command fails or is stopped."""

import gc
import io
import os
import signal
import sys
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
"""Ctrl-C, and what batch systems, services and ``kill`` send."""
_SIGNALLED = 128
"""Exit codes of processes that a signal ends are its number above this, as shells have it."""
_COLLECTED = 20_000
"""New objects after which Python looks for cycles of garbage, for 700: libraries make 10^5 objects
that stay when they are imported, and are gone through again and again. Data is in few objects."""
_STOPPED = "stopped; run the same command again, it goes on where it can"


def main() -> None:
    """Run the command line.

    An error that `maury` raises on purpose is one line, exit code 1. After Ctrl-C or SIGTERM what
    was begun is tidied up, one line says how to go on, and the exit code is 130 or 143.
    """
    asked: list[int] = []

    def stop(number: int, _frame: Any) -> None:
        asked.append(number)
        # One kind of interruption, which all that works knows how to end by.
        raise KeyboardInterrupt

    gc.set_threshold(_COLLECTED)
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        # What whoever started this had it ignore (nohup, a shell's background) stays ignored.
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        _run()
    # Whatever comes after a signal comes of it: libraries make errors of their own of a Ctrl-C
    # during their import, and typer an exit.
    except BaseException as ended:
        # A command that Ctrl-C ends, such as the explorer, ended well.
        if not asked or (isinstance(ended, SystemExit) and not ended.code):
            raise
        sys.stderr.write(f"{_STOPPED}\n")
        sys.exit(_SIGNALLED + asked[0])
    finally:
        # The end of the process frees all memory; to go through all objects first takes .8 s of CPU
        # after torch was imported.
        gc.freeze()
        # The interpreter's own end has no more to tidy up, and would show a traceback.
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if asked else handler)


def _run() -> None:
    # All imports stand here: Ctrl-C during one of them is a stop like any other.
    from maury.errors import MauryError
    from maury.io.printing import clean_streams

    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe in ASCII shows a name in other letters as escapes, and no traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Later versions of Python colour tracebacks, by codes that would be written out.
    os.environ.setdefault("PYTHON_COLORS", "0")
    clean_streams()
    try:
        from maury.cli.app import app

        app()
    # Only these: a traceback of anything else shows a fault of maury itself.
    except MauryError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
