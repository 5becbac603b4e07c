"""Whether memory stays flat, and the cost of a star the same, as a survey grows.

Simulates stores of few pixels (the same spectra again, with identifiers of their own), each in a
process of its own, and predicts and converts them with the published network after three
epochs: no labels worth the name, but all of the way from a store to a catalogue. Prints the peak
resident memory (``VmHWM``, Linux) and the CPU time of each stage; that of a star is without the
start, which is what a tenth of a part takes. Other work on a machine makes CPU time longer, never
shorter: sizes are run in turns, and the least time of each counts.

Usage: OMP_NUM_THREADS=1 PYTHONPATH=src:tests python benchmarks/line.py --stars 131072 1048576
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from builders.training_survey import write_survey
from maury.training.ensemble import train

WARM = 1638
"""Stars of the run that is taken off as the start: a tenth of a part."""
AROUND = """
import re, resource, sys
from pathlib import Path
{code}
used = resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(int(peak) / 1024, used.ru_utime + used.ru_stime)
"""
STORE = """
import numpy as np
from maury.survey.store import Survey
from maury.survey.writer import SurveyWriter
first, n = Survey.open(sys.argv[1]), int(sys.argv[3])
batch = first.batch(0, len(first))
names = [name for name in first.column_names if name not in ("id", "star_id")]
about = dict(wave_aa=first.wave_aa, medium=first.medium, simulated=True, columns=names)
with SurveyWriter(sys.argv[2], n_star=n, resolving_power=first.resolving_power, **about) as writer:
    for start in range(0, n, 2048):
        rows = np.arange(start, min(start + 2048, n))
        pick = rows % len(first)
        ids = np.array([f"simulated {k}" for k in rows])
        columns = {name: first.column(name)[pick] for name in names}
        spectra = batch.spectra
        writer.write(start, spectra.flux[pick], spectra.ivar[pick], id=ids, star_id=ids, **columns)
"""
PREDICT = """
from maury.prediction.streaming import write_catalogue
write_catalogue(sys.argv[1], sys.argv[2], sys.argv[3])
"""
CONVERT = """
from maury.report.publish.convert import convert
convert(sys.argv[1], sys.argv[2])
"""


def measure(code: str, *arguments: object) -> tuple[float, float]:
    """Return peak memory in MB and CPU seconds of a piece of Python."""
    done = subprocess.run(
        [sys.executable, "-c", AROUND.format(code=code), *map(str, arguments)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    peak, cpu = done.stdout.split()[-2:]
    return float(peak), float(cpu)


def journey(folder: Path, first: Path, model: Path, n: int) -> dict[str, tuple[float, float]]:
    """Take so many stars from a store to a catalogue in two formats."""
    with TemporaryDirectory(dir=folder) as name:
        store, labels = Path(name) / f"{n}.zarr", Path(name) / f"{n}.parquet"
        return {
            "store": measure(STORE, first, store, n),
            "predict": measure(PREDICT, model, store, labels),
            "to .fits": measure(CONVERT, labels, Path(name) / f"{n}.fits"),
            "to .vot": measure(CONVERT, labels, Path(name) / f"{n}.vot"),
        }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stars", type=int, nargs="+", default=[131_072, 1_048_576])
    parser.add_argument("--repeat", type=int, default=2)
    options = parser.parse_args()
    sizes = [WARM, *options.stars]
    with TemporaryDirectory() as name:
        folder = Path(name)
        write_survey(folder / "first.zarr", n=200)
        config = {"training": {"batch_size": 32, "epochs": 3}, "ensemble": {"members": 2}}
        model = folder / "tiny.model"
        train(folder / "first.zarr", model, preset="guiglion2020", config=config, seed=5)
        runs = {n: [journey(folder, folder / "first.zarr", model, n)] for n in sizes}
        for _ in range(options.repeat - 1):
            for n in sizes:
                runs[n].append(journey(folder, folder / "first.zarr", model, n))
        least = {n: {k: min(run[k][1] for run in runs[n]) for k in runs[n][0]} for n in sizes}
        for n in options.stars:
            for stage, cpu in least[n].items():
                peak = max(run[stage][0] for run in runs[n])
                each = (cpu - least[WARM][stage]) / (n - WARM) * 1e6
                print(f"{n:>9} {stage:<9} {peak:6.0f} MB {cpu:7.1f} s {each:7.2f} us", flush=True)


if __name__ == "__main__":
    main()
