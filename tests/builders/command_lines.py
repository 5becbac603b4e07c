"""Many command lines in one process, as `maury` runs each: importing torch takes seconds."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

_DRIVER = """
import json, logging, os, signal, sys
from maury.__main__ import main
commands, number, turn = json.loads(sys.argv[1])
left = []
def look(event, arguments):
    # What a command makes below this folder, but for the lock of its output.
    made = event == "os.mkdir" or (event == "open" and arguments[2] & os.O_CREAT)
    made = made and not isinstance(arguments[0], int)
    if left and made and os.path.abspath(os.fsdecode(arguments[0])).startswith(os.getcwd() + "/"):
        if not os.fsdecode(arguments[0]).endswith(".lock"):
            left[0] -= 1
            if not left[0]:
                left.clear()
                signal.raise_signal(number)
if number:
    sys.addaudithook(look)
for arguments in commands:
    sys.argv = ["maury", *arguments]
    logging.getLogger().handlers.clear()
    sys.stderr.write(f"=== {arguments[0]}\\n")
    left[:] = [turn]
    try:
        main()
    except SystemExit as ended:
        sys.stderr.write(f"=== ended with {ended.code}\\n")
    except BaseException:
        import traceback
        traceback.print_exc()
"""


def run_commands(
    commands: list[list[str]],
    folder: Path,
    *,
    terminal: bool = False,
    signal: int = 0,
    turn: int = 1,
) -> bytes:
    """What the commands write to standard output and standard error, in a pipe or a terminal.

    Each gets the signal when it makes a file or folder for the time that `turn` tells.
    """
    command = [sys.executable, "-c", _DRIVER, json.dumps([commands, signal, turn])]
    environment = {**os.environ, "COLUMNS": "100", "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    if not terminal:
        return subprocess.run(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        ).stdout
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = b""
    while True:
        try:
            piece = os.read(ours, 1 << 16)
        # So Linux says that nobody holds the other end any more.
        except OSError:
            break
        if not piece:
            break
        said += piece
    process.wait()
    os.close(ours)
    return said
