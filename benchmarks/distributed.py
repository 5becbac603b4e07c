"""What a Dask cluster costs and gains: one process, one worker, two workers, and one killed midway.

Wall time means something on idle cores only; CPU time of whole process trees does on any. A run's
CPU time is that of the command, the scheduler and its workers. The first run on a cluster loads
libraries and the model in each worker; the second finds them there, as a long one does.

Usage: OMP_NUM_THREADS=1 python benchmarks/distributed.py MODEL SURVEY.zarr
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
import psutil

from maury.prediction.catalogue import Catalogue

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
        process = psutil.Popen(
            [*command, "--scheduler-file", str(self.file)],
            env={**os.environ, **ONE_THREAD},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        self._processes.append(process)

    def cpu_s(self) -> float:
        """Return the CPU time of the processes since their start."""
        times = [process.cpu_times() for process in self._processes]
        return sum(one.user + one.system for one in times)

    def kill_worker(self) -> None:
        """Kill the first worker as `kill -9` does."""
        self._processes[1].kill()

    def stop(self) -> None:
        """End all processes, workers first."""
        for process in reversed(self._processes):
            process.terminate()
            process.wait()


def predict(arguments: argparse.Namespace, out: Path, *options: str) -> tuple[float, float]:
    """Run `maury predict` and return its wall and CPU time."""
    start, before = time.perf_counter(), children_cpu_s()
    command = [sys.executable, "-m", "maury", "predict", str(arguments.model)]
    subprocess.run(
        [*command, str(arguments.survey), str(out), *options],
        env={**os.environ, **ONE_THREAD},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - start, children_cpu_s() - before


def kill_midway(site: Site, out: Path) -> None:
    """Kill a worker once a part is written."""
    while not list(out.with_name(out.name + ".part").glob("part-*.parquet")):
        time.sleep(0.05)
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


def on_site(arguments: argparse.Namespace, folder: Path, plain: Path, workers: int) -> list[float]:
    """Predict twice on a cluster, then with a worker killed; return the wall times."""
    walls = []
    site = Site(folder, workers)
    options = ("--scheduler", str(site.file), "--workers", str(workers))
    passes = ["loading", "loaded", *(["one killed"] if workers > 1 else [])]
    for name in passes:
        out = folder / f"{workers}-{name.replace(' ', '-')}.dataset"
        before = site.cpu_s()
        if name == "one killed":
            threading.Thread(target=kill_midway, args=(site, out), daemon=True).start()
            predict(arguments, out, *options)
            figures = ""
        else:
            wall_s, cpu_s = predict(arguments, out, *options)
            walls.append(wall_s)
            there_s = site.cpu_s() - before
            figures = (
                f"{wall_s:7.1f} s wall {cpu_s + there_s:7.1f} s CPU ({cpu_s:.1f} of the command)"
            )
        equal = "identical" if same(plain, out) else "DIFFERENT"
        print(f"{workers} workers, {name:12s}{figures}  catalogue {equal}", flush=True)
    site.stop()
    return walls


def main() -> None:
    """Print wall and CPU times, and whether all catalogues are the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("survey", type=Path)
    arguments = parser.parse_args()
    print("load before:", " ".join(f"{load:.1f}" for load in os.getloadavg()))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.dataset"
        for _ in range(2):
            wall_s, cpu_s = predict(arguments, plain, "--workers", "1", "--overwrite")
            print(f"one process           {wall_s:7.1f} s wall {cpu_s:7.1f} s CPU", flush=True)
        walls = []
        for workers in (1, 2):
            place = Path(folder) / str(workers)
            place.mkdir()
            walls.append(on_site(arguments, place, plain, workers))
    print(f"two workers over one, loaded, wall: {walls[0][1] / walls[1][1]:.2f}")
    print("load after:", " ".join(f"{load:.1f}" for load in os.getloadavg()))


if __name__ == "__main__":
    main()
