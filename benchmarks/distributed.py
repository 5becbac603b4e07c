"""What a Dask cluster costs and gains: one process, one worker, two workers, and one killed midway.

Wall time means something on idle cores only; CPU time of whole process trees does on any. A run's
CPU time is that of the client, the scheduler and its workers, their start included; the work alone
is what a second pass of the same length adds (`--stars` and twice as many).

Usage: OMP_NUM_THREADS=1 python benchmarks/distributed.py MODEL SURVEY.zarr [--repeats 1]
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

from maury.catalogue import Catalogue

ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def children_cpu_s() -> float:
    """Return the CPU time of all children that have ended, and of theirs."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


class Site:
    """A scheduler and workers as processes of their own."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.file = folder / "scheduler.json"
        self._processes = []
        self._run("scheduler", "--port", "0", "--host", "127.0.0.1")
        while not self.file.exists():
            time.sleep(0.1)
        options = ("--nthreads", "1", "--no-nanny", "--host", "127.0.0.1")
        for number in range(workers):
            self._run("worker", *options, "--name", f"w{number}")

    def _run(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "dask", *arguments, "--no-dashboard"]
        process = subprocess.Popen(
            [*command, "--scheduler-file", str(self.file)],
            env={**os.environ, **ONE_THREAD},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(process)

    def kill_worker(self) -> None:
        """Kill the first worker as `kill -9` does."""
        self._processes[1].kill()

    def stop(self) -> None:
        """End all processes, workers first, so that their CPU time is counted."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait()


def predict(arguments: argparse.Namespace, out: Path, *options: str) -> float:
    """Run `maury predict` and return its wall time."""
    start = time.perf_counter()
    command = [sys.executable, "-m", "maury", "predict", str(arguments.model)]
    subprocess.run(
        [*command, str(arguments.survey), str(out), *options],
        env={**os.environ, **ONE_THREAD},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def on_site(
    arguments: argparse.Namespace, out: Path, workers: int, *, kill: bool = False
) -> tuple[float, float]:
    """Predict on a cluster; return wall time of the command and CPU time of all processes."""
    before = children_cpu_s()
    with tempfile.TemporaryDirectory() as folder:
        site = Site(Path(folder), workers)
        if kill:
            threading.Thread(target=kill_midway, args=(site, out), daemon=True).start()
        options = ("--scheduler", str(site.file), "--workers", str(workers))
        wall_s = predict(arguments, out, *options)
        site.stop()
    return wall_s, children_cpu_s() - before


def kill_midway(site: Site, out: Path) -> None:
    """Kill a worker once a part is written."""
    while not list(out.with_name(out.name + ".part").glob("part-*.parquet")):
        time.sleep(0.1)
    site.kill_worker()


def same(first: Path, second: Path) -> bool:
    """Whether two catalogues hold the same."""
    one, other = Catalogue.read(first), Catalogue.read(second)
    columns = all(
        np.array_equal(
            one.table[name], other.table[name], equal_nan=one.table[name].dtype.kind == "f"
        )
        for name in one.table.colnames
    )
    return columns and one.metadata == other.metadata


def main() -> None:
    """Print wall and CPU times, their ratios, and whether all catalogues are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("survey", type=Path)
    parser.add_argument("--repeats", type=int, default=1)
    arguments = parser.parse_args()
    runs: dict[str, list[tuple[float, float]]] = {}
    print("load before:", " ".join(f"{load:.1f}" for load in os.getloadavg()))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.parquet"
        for repeat in range(arguments.repeats):
            before = children_cpu_s()
            wall_s = predict(arguments, plain, "--workers", "1", "--overwrite")
            runs.setdefault("plain", []).append((wall_s, children_cpu_s() - before))
            for name, workers, kill in (
                ("1 worker", 1, False),
                ("2 workers", 2, False),
                ("2 workers, one killed", 2, True),
            ):
                out = Path(folder) / f"{name.replace(' ', '-')}-{repeat}.dataset"
                runs.setdefault(name, []).append(on_site(arguments, out, workers, kill=kill))
                identical = "identical" if same(plain, out) else "DIFFERENT"
                print(f"{name:24s}catalogue {identical}", flush=True)
    median = {name: np.median(np.array(times), axis=0) for name, times in runs.items()}
    for name, (wall_s, cpu_s) in median.items():
        ratio = cpu_s / median["plain"][1]
        print(f"{name:24s}{wall_s:8.1f} s wall {cpu_s:8.1f} s CPU  {ratio:5.2f} of plain's CPU")
    speed_up = median["1 worker"][0] / median["2 workers"][0]
    print(f"two workers over one, wall: {speed_up:.2f}")


if __name__ == "__main__":
    main()
