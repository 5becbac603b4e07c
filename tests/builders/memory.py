"""How much memory a piece of Python takes in a process of its own."""

import os
import subprocess
import sys

_AROUND = """
import re, sys
from pathlib import Path
def _memory(what):
    return int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
exec(sys.argv[1])
_before = _memory("VmRSS")
exec(sys.argv[2])
print(_memory("VmHWM") - _before, file=sys.stderr)
"""


def growth_mb(imports: str, code: str, *arguments: object) -> float:
    """Return by how many MB `code` made a process grow at its peak, beyond what it imported.

    `arguments` are ``sys.argv[3:]``. Not by ``getrusage``: the peak that it tells is at least that
    of the process by which this one was started.
    """
    done = subprocess.run(
        [sys.executable, "-c", _AROUND, imports, code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        # One thread: each has a pool of memory of its own.
        env={**os.environ, "OMP_NUM_THREADS": "1", "ARROW_DEFAULT_MEMORY_POOL": "system"},
    )
    assert done.returncode == 0, done.stderr
    return float(done.stderr.split()[-1])
