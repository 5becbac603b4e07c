"""Gather what simulated XP coefficients need of the instrument from the files that DPAC publishes.

    python scripts/make_xp_instrument.py GAIAXPY OUT.safetensors

GAIAXPY is the folder of the unpacked package GaiaXPy (2.1.5; BSD 3-Clause, (c) DPAC, CU5, DPCI).
Its ``config`` holds basis functions, line spread, dispersions and responses of Gaia DR3 as tables.
"""

import argparse
import ast
import csv
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

FILES = {"bp": "bpC03_v375wi", "rp": "rpC03_v142r"}
"""Versions of the external calibration of DR3."""


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("gaiaxpy", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    # A basis is one cell of a table of one row.
    csv.field_size_limit(10**8)
    tensors = {}
    for name, stem in FILES.items():
        folder = arguments.gaiaxpy / "config"
        with (folder / f"{stem}_bases.csv").open() as file:
            bases = next(csv.DictReader(file))
        n = int(bases["nBases"])
        for kind, column in (
            ("transformation", "transformationMatrix"),
            ("inverse_bases", "inverseBasesCoefficients"),
        ):
            matrix = np.array(ast.literal_eval(bases[column])).reshape(n, n)
            tensors[f"{name}.{kind}"] = matrix.astype(np.float32)
        ends = [
            bases[key] for key in ("pwlRangeMin", "pwlRangeMax", "normRangeMin", "normRangeMax")
        ]
        tensors[f"{name}.ranges"] = np.array(ends, dtype=np.float64)
        tensors[f"{name}.dispersion"] = np.genfromtxt(
            folder / f"{stem}_dispersion.csv", delimiter=","
        ).astype(np.float32)
        # Every other half nanometre is as smooth.
        response = np.genfromtxt(folder / f"{stem}_response.csv", delimiter=",")[:, ::2]
        tensors[f"{name}.response"] = np.ascontiguousarray(response.astype(np.float32))
    source = "Gaia DR3, as in the configuration of GaiaXPy 2.1.5, (c) DPAC, CU5, DPCI, BSD 3-Clause"
    save_file(tensors, arguments.out, metadata={"source": source})


if __name__ == "__main__":
    main()
