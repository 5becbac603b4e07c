"""Tasks for workers of a cluster, importable there."""

import os
import threading
from pathlib import Path


def hang_once(task, tell):
    """Hang the first time, and write the process that did not."""
    started, output = map(Path, task)
    if not started.exists():
        started.write_text("")
        tell(os.getpid())
        threading.Event().wait()
    output.write_text(str(os.getpid()))
    return os.getpid()


def write_nothing(task, tell):
    return task


def fail(task, tell):
    raise ZeroDivisionError("as a bug would")


def die(task, tell):
    os.kill(os.getpid(), 9)
