"""CPU time per spectrum of the quick methods, and of thecannon on the same data where it is there.

Run with one thread: ``OMP_NUM_THREADS=1 python benchmarks/methods.py [PEER]``. PEER is the
interpreter of an environment with thecannon. Spectra are simulated: a quadratic model plus noise.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from maury.labels import definitions as labels_module
from maury.labels.flags import FLAG_DTYPE
from maury.methods.athos import Athos, AthosSettings
from maury.methods.cannon import Cannon, CannonSettings
from maury.methods.cannon_model import n_term, terms
from maury.methods.matisse import Matisse, MatisseSettings
from maury.methods.protocols import Sample
from maury.spectra.preparation import Inputs

N_TRAIN, N_TEST, N_PEER, N_PIXEL, REPEATS = 4000, 4000, 200, 1000, 5

PEER = """
import sys, time, types
import numpy as np, matplotlib
matplotlib.use("Agg")
from TheCannon.infer_labels import _infer_labels
from TheCannon.train_model import _train_model
data = np.load(sys.argv[1])
stars = types.SimpleNamespace(
    tr_label=data["truth"], wl=np.arange(data["flux"].shape[1], dtype=float),
    tr_flux=data["flux"].astype(float), tr_ivar=data["ivar"].astype(float),
    test_flux=data["test_flux"].astype(float), test_ivar=data["test_ivar"].astype(float),
    get_plotting_labels=lambda: ["a"] * data["truth"].shape[1],
    set_test_label_vals=lambda values: None)
begin = time.process_time()
coeffs, scatters, _, pivots, scales = _train_model(stars)
middle = time.process_time()
model = types.SimpleNamespace(coeffs=coeffs, scatters=scatters, scales=scales, pivots=pivots)
_infer_labels(model, stars, starting_guess=np.zeros(len(pivots)))
end = time.process_time()
print("PEER", middle - begin, 1e3 * (end - middle) / len(data["test_flux"]))
"""


def made(n_label: int, n: int, seed: int) -> Sample:
    """Spectra of a quadratic model at S/N 60."""
    rule, rng = np.random.default_rng(n_label), np.random.default_rng(seed)
    theta = rule.normal(0, 0.02, (N_PIXEL, n_term(n_label)))
    theta[:, 0] = 0.8
    truth = rng.normal(0, 0.3, (n, n_label))
    flux = terms(truth) @ theta.T + rng.normal(0, 1 / 60, (n, N_PIXEL))
    none = np.zeros((n, 0), dtype=np.float32)
    inputs = Inputs(
        flux.astype(np.float32),
        np.full(flux.shape, 3600.0, dtype=np.float32),
        none,
        none,
        np.zeros(n, FLAG_DTYPE),
        np.full(n, 60.0),
        8420.0 + 0.4 * np.arange(N_PIXEL),
        "air",
    )
    names = labels_module.LABEL_NAMES[:n_label]
    ids = np.array([str(k) for k in range(n)])
    return Sample(labels_module.select(names), truth, np.full(truth.shape, np.nan), inputs, ids)


def measure(kind, settings, training: Sample, test: Sample) -> str:
    """Seconds of training, and median milliseconds per spectrum."""
    begin = time.process_time()
    method = kind.train(training, training, settings=settings, seed=0)
    train_s = time.process_time() - begin
    method.apply(test.rows(np.arange(10)).inputs)
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        method.apply(test.inputs)
        times.append(1e3 * (time.process_time() - begin) / len(test))
    return f"train {train_s:6.2f} s, {np.median(times):.4f} ms per spectrum"


def peer(interpreter: str, training: Sample, test: Sample) -> str:
    """Run thecannon on the same data."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "data.npz"
        np.savez(
            path,
            truth=training.truth,
            flux=training.inputs.flux,
            ivar=training.inputs.ivar,
            test_flux=test.inputs.flux[:N_PEER],
            test_ivar=test.inputs.ivar[:N_PEER],
        )
        command = [interpreter, "-c", PEER, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(line for line in done.stdout.splitlines() if line.startswith("PEER"))
    _, train_s, ms = line.split()
    return f"train {float(train_s):6.2f} s, {float(ms):.4f} ms per spectrum"


def main() -> None:
    """Print one line per method and number of labels."""
    for n_label in (3, 9):
        training, test = made(n_label, N_TRAIN, 1), made(n_label, N_TEST, 2)
        for kind, settings in (
            (Cannon, CannonSettings()),
            (Matisse, MatisseSettings()),
            (Athos, AthosSettings()),
        ):
            print(f"K={n_label} {kind.name:10}", measure(kind, settings, training, test))
        if len(sys.argv) > 1:
            print(f"K={n_label} thecannon ", peer(sys.argv[1], training, test))


if __name__ == "__main__":
    main()
