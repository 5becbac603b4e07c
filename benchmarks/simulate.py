"""Stars simulated per CPU second: population, emulator, observing model, random numbers, writing.

Usage: OMP_NUM_THREADS=1 python benchmarks/simulate.py [--stars 8192] [--repeats 3]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import numpy as np

from maury.simulation.emulator import Emulator
from maury.simulation.population import Population
from maury.simulation.surveys import BLOCK_STARS, LABELLED_SURVEY, Simulator, simulate_survey


def cpu_seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median CPU time of `work`, after one warm-up."""
    work()
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return float(np.median(times))


def main() -> None:
    """Print the speed of the whole and of its parts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stars", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    emulator, population = Emulator.load(), Population.load()
    simulator = Simulator(1, LABELLED_SURVEY, emulator=emulator, population=population)
    rng = np.random.default_rng(0)
    stars = population.sample(BLOCK_STARS, rng)
    flux = emulator.flux(stars.labels)
    parts = {
        "population": lambda: population.sample(BLOCK_STARS, rng),
        "emulator": lambda: emulator.flux(stars.labels),
        "observing": lambda: simulator.spectrograph.observe(flux, stars.labels, rng),
        "block (all of these, columns)": lambda: simulator.block(0),
    }
    for name, work in parts.items():
        seconds = cpu_seconds(work, 9)
        print(f"{name:32s}{1e6 * seconds / BLOCK_STARS:8.1f} us per star")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "survey.zarr"
        seconds = cpu_seconds(
            lambda: simulate_survey(path, n_star=arguments.stars, seed=1, overwrite=True),
            arguments.repeats,
        )
    print(f"{'survey, written':32s}{1e6 * seconds / arguments.stars:8.1f} us per star")
    print(f"{arguments.stars / seconds:.0f} stars per CPU second")


if __name__ == "__main__":
    main()
