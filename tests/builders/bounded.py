"""Reading of hostile files in a process of its own, whose memory and time the kernel limits.

``python -m builders.bounded`` takes one JSON list of ``[reader, path]`` on its standard input, and
writes a JSON line for each: what came of it, CPU time, and growth of the resident memory.
"""

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MIB = 2**20
ADDRESS_MIB = 2048
"""What reading may map at once, beside what is mapped: four times the limit of what a file unfolds
to, since a table is held as read and as numbers."""
CPU_SECONDS = 20
"""CPU time of one reading: a refusal takes below one."""


@dataclass(frozen=True)
class Outcome:
    """What came of one reading.

    Attributes
    ----------
    said : str
        The error's text; empty if the file was read.
    kind : str
        Its class; ``ended`` if the process died.
    starved : bool
        Whether the process asked for more memory than it may have.
    cpu : float
        Seconds.
    grown : int
        MiB by which the largest resident memory exceeds that before.
    """

    said: str
    kind: str
    starved: bool = False
    cpu: float = 0.0
    grown: int = 0


def read_bounded(cases: Iterable[tuple[str, Path]], **environment: str) -> list[Outcome]:
    """Read files, each by its reader of `READERS`, in one process of limited memory and time."""
    left = [(reader, str(path)) for reader, path in cases]
    places = [str(Path(__file__).resolve().parents[1]), *filter(None, sys.path)]
    found: list[Outcome] = []
    # A process that is ended by one file leaves the files after it to another process.
    while left:
        done = subprocess.run(
            [sys.executable, "-m", "builders.bounded"],
            input=json.dumps(left),
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(places)},
        )
        told = [Outcome(**json.loads(line)) for line in done.stdout.splitlines()]
        if len(told) < len(left):
            told.append(Outcome(f"ended with {done.returncode}: {done.stderr[-2000:]}", "ended"))
        found += told
        left = left[len(told) :]
    return found


def _table(path: Path) -> Any:
    from maury.io.tables import open_table

    with ExitStack() as stack:
        table = open_table(path, stack)
        return [read(name) for name in table.names[:4] for read in (table.texts, table.plain)]


def _spectra(path: Path) -> Any:
    from maury.survey.readers import open_toml

    with open_toml(path) as survey:
        return survey.batch(0, min(len(survey), 512))


def _catalogue(path: Path) -> Any:
    from maury.prediction.catalogue import Catalogue

    return Catalogue.read(path)


def _report_table(path: Path) -> Any:
    from maury.report.page.material import read_table

    return read_table(path)


def _survey(path: Path) -> Any:
    from maury.survey.store import Survey

    survey = Survey.open(path)
    return [survey.id, next(survey.batches())]


def _model(path: Path) -> Any:
    from maury.model.directory import Model
    from maury.model.inference import EnsembleNetwork

    return EnsembleNetwork(Model.open(path), engine="torch")


def _method(path: Path) -> Any:
    from maury.methods.registry import MethodNetwork
    from maury.model.directory import Model

    return MethodNetwork(Model.open(path))


def _grid(path: Path) -> Any:
    import numpy as np

    from maury.methods.fitting.grid_files import read_ferre_grid, read_synspec_grid

    wave = 8420.0 + 0.4 * np.arange(6)
    return (read_synspec_grid if path.is_dir() else read_ferre_grid)(path, wave_aa=wave)


def _keras(path: Path) -> Any:
    from maury.model.keras import read_keras

    return read_keras(path)


READERS: dict[str, Callable[[Path], Any]] = {
    "table": _table,
    "spectra": _spectra,
    "catalogue": _catalogue,
    "report": _report_table,
    "survey": _survey,
    "model": _model,
    "method": _method,
    "grid": _grid,
    "keras": _keras,
}


def starved(error: BaseException | None) -> bool:
    """Whether an error, or one that it came of, is want of memory."""
    while error is not None:
        if isinstance(error, MemoryError) or "alloc" in str(error) or "out of memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def status_mib(name: str) -> int:
    """MiB of an entry of this process's status, such as ``VmHWM``."""
    text = Path("/proc/self/status").read_text("ascii", "replace")
    found = re.search(rf"{name}:\s+(\d+)", text)
    return int(found[1]) // 1024 if found else 0


def _one(reader: str, path: Path) -> Outcome:
    # 5 makes the largest resident memory begin anew (Linux, proc(5)).
    Path("/proc/self/clear_refs").write_text("5")
    before, began = status_mib("VmRSS"), time.process_time()
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = (status_mib("VmSize") + ADDRESS_MIB) * MIB
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CPU, (int(began) + CPU_SECONDS, resource.RLIM_INFINITY))
    said, kind, hungry = "", "read", False
    try:
        READERS[reader](path)
    except Exception as error:
        said, kind, hungry = str(error)[:500], type(error).__name__, starved(error)
    resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    grown = status_mib("VmHWM") - before
    return Outcome(said, kind, hungry, time.process_time() - began, grown)


def _main() -> None:
    import warnings

    warnings.simplefilter("ignore")
    # Before any limit: what libraries map at their start is no file's doing.
    import astropy.io.votable
    import pyarrow.parquet
    import torch

    import maury.prediction.catalogue  # noqa: F401

    del astropy, pyarrow
    torch.set_num_threads(1)
    for reader, path in json.load(sys.stdin):
        sys.stdout.write(json.dumps(vars(_one(reader, Path(path)))) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main()
