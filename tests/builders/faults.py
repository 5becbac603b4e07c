"""Kills and full disks at every step of a stage that changes files, in processes of their own.

`sweep` starts one interpreter with the library of `faults.c` before the C library. It runs a stage
once without a fault, which counts its steps, and then once per fault, each in a forked child and an
own directory, and once more without, as a user would. What it says of each is an `Outcome`.
"""

import ctypes
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KILL, FULL, FULL_ONCE, READ_ONLY = 1, 2, 3, 4
MODES = {"kill": KILL, "full": FULL, "full once": FULL_ONCE, "read-only": READ_ONLY}

FAILED, TOLD, FINISHED = 4, 3, 0
# Imported once, before the children are forked.
_NEEDED = (
    "google_crc32c",
    "maury.training.distillation",
    "maury.survey.readers",
    "maury.report.page.assemble",
    "pyarrow.compute",
    "pyarrow.parquet",
    "astropy.io.votable",
    "astropy.table",
    "xarray.backends.zarr",
    "zarr.codecs",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a run with a fault, and of the same run again.

    `first` is ``killed``, ``told`` (a `MauryError`), ``finished`` or the traceback of anything
    else; `between` says whether the final name was ``absent``, ``old`` or ``new`` then, or ``half``
    written; `again` is ``same``, ``other`` (bytes), or why the run failed; `left` is what lies
    about after all.
    """

    fault: str
    step: int
    first: str
    message: str
    between: str
    again: str
    left: list[str]

    @property
    def good(self) -> bool:
        """Whether nothing was lost and nothing is wrong."""
        return (
            self.first in ("killed", "told", "finished")
            and self.between in ("absent", "old", "new")
            and self.again == "same"
            and not self.left
        )


def compiled(folder: Path) -> Path | None:
    """Compile the library; None where that cannot be done."""
    library = folder / "libfaults.so"
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        return None
    command = [compiler, "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "faults.c")]
    done = subprocess.run([*command, "-ldl"], capture_output=True, check=False)
    return library if done.returncode == 0 else None


def sweep(
    stage: str,
    folder: Path,
    *,
    library: Path,
    modes: tuple[str, ...] = ("kill", "full"),
    most: int = 0,
    exists: bool = False,
    **settings: Any,
) -> list[Outcome]:
    """Run a stage with faults.

    `most` limits the number of faults of each mode, spread evenly over the steps (0: every step);
    with `exists`, an older output is in the way and may be replaced; `settings` go to the stage.
    """
    plan = {"stage": stage, "modes": modes, "most": most, "exists": exists, **settings}
    text = json.dumps({**plan, "folder": str(folder), "library": str(library)})
    path = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "agg"}
    done = subprocess.run(
        [sys.executable, str(HERE / "faults.py"), text],
        env={**os.environ, **one, "PYTHONPATH": path, "LD_PRELOAD": str(library)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AssertionError(f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return [Outcome(**line) for line in json.loads((folder / "outcomes.json").read_text())]


def digest(path: Path) -> str:
    """SHA-256 of a file, or of all files of a directory with their names."""
    total = hashlib.sha256()
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    for file in files:
        total.update(file.relative_to(path).as_posix().encode() + b"\0")
        if file.is_file():
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _forked(work: Callable[[], object], report: Path) -> tuple[str, str]:
    """Run something in a child; say how it ended, and with which words."""
    report.unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        os._exit(_child(work, report))
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return "killed", f"signal {os.WTERMSIG(status)}"
    words = report.read_text() if report.exists() else ""
    ends = {FINISHED: "finished", TOLD: "told"}
    return ends.get(os.WEXITSTATUS(status), words or "failed"), words


def _child(work: Callable[[], object], report: Path) -> int:
    from maury.errors import MauryError

    try:
        work()
    except MauryError as error:
        _disarm()
        report.write_text(f"{type(error).__name__}: {error}")
        return TOLD
    except BaseException:
        _disarm()
        report.write_text(traceback.format_exc())
        return FAILED
    return FINISHED


def _disarm() -> None:
    ctypes.CDLL(None).fault_arm(b"", 0, 0)


def _sweep(plan: dict[str, Any]) -> Iterator[Outcome]:
    from builders import faulty_stages

    for name in _NEEDED:
        importlib.import_module(name)
    folder = Path(plan["folder"]).resolve()
    stage = faulty_stages.STAGES[plan["stage"]](folder / "inputs", plan)
    library, notes = ctypes.CDLL(None), folder / "notes.txt"

    def run(place: Path, number: int = 0, how: int = 0) -> tuple[str, str]:
        def work() -> None:
            library.fault_arm(os.fsencode(place), number, how)
            stage.run(place / stage.output)
            (folder / "steps.txt").write_text(str(library.fault_steps()))

        return _forked(work, notes)

    whole = folder / "whole"
    whole.mkdir()
    old = folder / "old"
    if plan["exists"]:
        old.mkdir()
        assert run(old) == ("finished", ""), notes.read_text()
        stage.change()
        shutil.copytree(old / stage.output, whole / stage.output) if (
            old / stage.output
        ).is_dir() else shutil.copy(old / stage.output, whole / stage.output)
    assert run(whole) == ("finished", ""), notes.read_text()
    n_steps = int((folder / "steps.txt").read_text())
    expected = digest(whole / stage.output)
    before = digest(old / stage.output) if plan["exists"] else None
    assert before != expected
    for mode in plan["modes"]:
        stride = max(1, n_steps // plan["most"]) if plan["most"] else 1
        for step in range(1 if stride == 1 else 1 + stride // 2, n_steps + 1, stride):
            place = folder / "now"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(old, place) if plan["exists"] else place.mkdir()
            first, message = run(place, step, MODES[mode])
            out = place / stage.output
            found = digest(out) if out.exists() else None
            states = {before: "old", expected: "new", None: "absent"}
            between = states.get(found, "half")
            again = "same"
            if found != expected or any(one != out for one in place.iterdir()):
                ended, words = run(place)
                done = ended == "told" and words.startswith("OutputExists") and found == expected
                if ended == "finished" or done:
                    again = "same" if digest(out) == expected else "other"
                else:
                    again = words or ended
            # Whoever finds the output complete does not touch the lock of the dead.
            known = {out.name, f".{out.name}.lock"}
            left = sorted(one.name for one in place.iterdir() if one.name not in known)
            yield Outcome(mode, step, first, message, between, again, left)


def main() -> None:
    """Do what `sweep` asks."""
    plan = json.loads(sys.argv[1])
    outcomes = [asdict(outcome) for outcome in _sweep(plan)]
    (Path(plan["folder"]) / "outcomes.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
