"""From a store to a catalogue: cost per star and stage, whole over network compute, peak memory.

Simulates surveys, predicts them with MODEL in a process of its own (`maury predict`), and then a
part of the first one in this process, where each stage is timed. CPU seconds count all processes
and threads. Peak memory is the proportional set size of the whole tree of processes (Linux).

Usage: OMP_NUM_THREADS=1 python benchmarks/streaming.py MODEL [--stars 10000 100000] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from maury.model.inference import EnsembleNetwork
from maury.prediction import predictor
from maury.prediction import streaming as prediction
from maury.prediction.coverage import CoverageModel
from maury.prediction.uncertainty import UncertaintyModel
from maury.simulation.surveys import simulate_survey
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.preparation import Preparation

POLL_S = 0.5


class Clock:
    """CPU time of each stage in this thread, without that of the stages inside it."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def wrap(self, owner: Any, name: str, stage: str) -> None:
        """Time the attribute `name` of a class or module as `stage`."""
        work: Callable[..., Any] = getattr(owner, name)

        @wraps(work)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inside.append(0.0)
            start = time.thread_time()
            try:
                return work(*args, **kwargs)
            finally:
                spent = time.thread_time() - start
                self.seconds[stage] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        setattr(owner, name, timed)


STAGES = (
    (Preparation, "apply", "preparation"),
    (EnsembleNetwork, "predict", "networks (three times)"),
    (TrainingStarSimulator, "theory", "theory of the labels"),
    (CoverageModel, "score", "coverage scores"),
    (UncertaintyModel, "assess", "calibration, evidence"),
    (predictor.Predictor, "_predict", "flags, columns"),
    (prediction, "write_part", "part"),
)


def stages(model: str, survey: Path, directory: Path) -> None:
    """Predict one part twice, in this process, and print the second time by stage."""
    clock = Clock()
    for owner, name, stage in STAGES:
        clock.wrap(owner, name, stage)
    plan = prediction.plan(model, survey, directory / "stages.fits", overwrite=True)
    part = plan.parts[0]
    prediction.predict_part(part)
    Path(part.path).unlink()
    clock.seconds.clear()
    start = time.process_time()
    prediction.predict_part(part)
    total = time.process_time() - start
    rest = total - sum(clock.seconds.values())
    clock.seconds["reading, all else"] = rest
    network = sum(value for name, value in clock.seconds.items() if name.startswith("networks"))
    for name, seconds in clock.seconds.items():
        print(f"{name:32s}{1e6 * seconds / len(part):8.1f} us per star{seconds / total:8.1%}")
    print(f"{'whole':32s}{1e6 * total / len(part):8.1f} us per star")
    print(f"whole over networks: {total / network:.2f}")


def memory_kb(process: int) -> int:
    """Proportional set size of a process and its descendants."""
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split()
        lines = Path(f"/proc/{process}/smaps_rollup").read_text("ascii").splitlines()
    except OSError:
        return 0
    own = next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
    return own + sum(memory_kb(int(child)) for child in children)


def whole(model: str, survey: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Wall seconds, CPU seconds and peak memory (MB) of one command."""
    command = [sys.executable, "-m", "maury", "predict", model, str(survey), str(out)]
    command += ["--workers", str(workers), "--overwrite"]
    before, start, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as running:
        while running.poll() is None:
            peak = max(peak, memory_kb(running.pid))
            time.sleep(POLL_S)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if running.returncode:
        sys.exit("maury predict failed")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - start, cpu, peak / 1024


def main() -> None:
    """Print the figures of `docs/explanation/scaling.md`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model directory")
    parser.add_argument("--stars", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--suffix", default=".fits", help="format of the catalogue")
    parser.add_argument("--directory", type=Path, help="keep the surveys here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        directory = arguments.directory or Path(temporary)
        out = directory / f"benchmark{arguments.suffix}"
        surveys = []
        for n_star in [1, *arguments.stars]:
            path = directory / f"simulated-{n_star}.zarr"
            if not path.exists():
                simulate_survey(path, n_star=n_star, seed=1, observed=True)
            surveys.append((n_star, path))
        _, start_up, _ = whole(arguments.model, surveys[0][1], out, 1)
        print(f"start of one process: {start_up:.1f} CPU s")
        for n_star, path in surveys[1:]:
            wall, cpu, peak = whole(arguments.model, path, out, arguments.workers)
            print(
                f"{n_star:8d} stars: wall {wall:.0f} s, CPU {cpu:.1f} s, "
                f"{1e6 * cpu / n_star:.0f} us per star, peak {peak:.0f} MB"
            )
        stages(arguments.model, surveys[1][1], directory)


if __name__ == "__main__":
    main()
