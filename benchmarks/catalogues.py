"""Peak memory and CPU time of what reads and writes whole catalogues, by their rows.

Makes catalogues like those of the default preset (all its columns; the rows of one simulated part,
again and again), and runs each command in a process of its own. ``--before`` is the ``src`` of an
earlier version, which runs the same, in turn::

    python benchmarks/catalogues.py --rows 65536 196608 --before ../earlier/src

The peak is that of the resident memory of the process (``VmHWM``, Linux).
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from maury.labels.columns import IN_CATALOGUE
from maury.labels.definitions import LABELS
from maury.prediction.catalogue import CatalogueSpec, assemble, write_part

PART = 16384
"""Rows of a part: those that `maury predict` writes."""
CHILD = """
import re, resource, sys
from pathlib import Path
from maury.report.publish.convert import convert
kind, source, out = sys.argv[1:]
if kind == "convert":
    convert(source, out)
else:
    from maury.cli.model import info
    info(Path(source))
used = resource.getrusage(resource.RUSAGE_SELF)
peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
print(f"{int(peak) / 1024:.0f} {used.ru_utime + used.ru_stime:.2f}", file=sys.stderr)
"""


def make(folder: Path, rows: int) -> Path:
    """Write a catalogue of simulated rows as Parquet."""
    rng = np.random.default_rng(1)
    spec = CatalogueSpec.for_labels(
        LABELS,
        survey_columns=IN_CATALOGUE,
        metadata={"simulated": True, "model": {}},
        quantiles=True,
        coverage=True,
        error_parts=True,
    )
    values = {}
    for column in spec.columns:
        if column.kind == "str":
            values[column.name] = np.array(
                [f"20061119_0212m{k:05d}_{k % 150}" for k in range(PART)]
            )
        elif column.kind.startswith("int"):
            values[column.name] = rng.integers(0, 2**20, PART)
        elif column.kind == "bool":
            values[column.name] = rng.random(PART) < 0.2
        else:
            values[column.name] = rng.normal(size=PART)
    part, path = folder / "part.parquet", folder / f"rows{rows}.parquet"
    write_part(part, spec, values)
    assemble([part] * (rows // PART), path, spec=spec)
    print(f"{len(spec.columns)} columns, {rows} rows", flush=True)
    return path


def measure(source: str, kind: str, path: Path, out: Path) -> tuple[str, str]:
    """Run one command with a version of maury; return its peak in MB and its CPU seconds."""
    ran = subprocess.run(
        [sys.executable, "-c", CHILD, kind, str(path), str(out)],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        check=True,
    )
    peak, cpu = ran.stderr.split()[-2:]
    return peak, cpu


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[65_536, 196_608])
    parser.add_argument("--before", help="src of an earlier version")
    parser.add_argument("--formats", nargs="+", default=["parquet", "fits", "vot", "ecsv"])
    options = parser.parse_args()
    versions = {"now": str(Path(__file__).resolve().parents[1] / "src")}
    if options.before:
        versions["before"] = options.before
    with TemporaryDirectory() as name:
        folder = Path(name)
        for rows in options.rows:
            first = make(folder, rows)
            jobs = [("to", first, folder / f"c{rows}.{suffix}") for suffix in options.formats]
            jobs += [
                ("from", folder / f"c{rows}.{suffix}", folder / "back.parquet")
                for suffix in options.formats
            ]
            for way, path, out in jobs:
                for version, source in versions.items():
                    out.unlink(missing_ok=True)
                    peak, cpu = measure(source, "convert", path, out)
                    suffix = (out if way == "to" else path).suffix
                    print(
                        f"{rows:>8} {way:<4} {suffix:<9} {version:<7} {peak:>6} MB {cpu:>7} s",
                        flush=True,
                    )
            for version, source in versions.items():
                peak, cpu = measure(source, "info", first, first)
                print(f"{rows:>8} info           {version:<7} {peak:>6} MB {cpu:>7} s", flush=True)


if __name__ == "__main__":
    main()
