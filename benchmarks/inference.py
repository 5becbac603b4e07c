"""The ten released networks of Guiglion et al. (2020): maury against Keras, in CPU time.

Keras needs a virtual environment of its own:

    python3 -m venv keras-env
    keras-env/bin/pip install tensorflow-cpu
    python benchmarks/inference.py NETWORKS --keras keras-env/bin/python

NETWORKS is the directory of the released .h5 files. All contenders take turns on one thread, on
the same simulated spectra, and so does a matrix product, whose rate is what the processor can
do; medians over the rounds are shown. `--model MODEL` adds a model of any preset, without Keras.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import torch

from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.model.keras import import_keras
from maury.simulation.surveys import simulate_survey
from maury.spectra.preparation import Inputs
from maury.survey.store import Survey
from peer import Peer

KERAS_BATCHES = (32, 128, 256, 512, 1024)
PRODUCT = 1024


def main() -> None:
    """Measure and print."""
    arguments = _arguments()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.survey is None:
            simulate_survey(work / "s.zarr", n_star=arguments.stars, seed=1)
        survey = Survey.open(arguments.survey or work / "s.zarr")
        model = import_keras(arguments.networks, work / "model")
        inputs = model.preparation.apply(survey.batch(0, min(arguments.stars, len(survey))))
        networks = {n: EnsembleNetwork(model, engine=n) for n in ("torch", "compiled")}
        contenders: dict[str, Callable[[], float]] = {
            name: _timed(partial(network.predict, inputs)) for name, network in networks.items()
        }
        product = _product()
        contenders["product"] = _timed(product)
        if arguments.keras is None:
            seconds = _rounds(contenders, arguments.rounds)
            _show(seconds, len(inputs), _operations(model))
        else:
            with Peer(arguments.keras) as peer:
                contenders |= _keras(peer, arguments.networks, model, inputs, work)
                seconds = _rounds(contenders, arguments.rounds)
                _show(seconds, len(inputs), _operations(model))
                _compare(peer, networks["compiled"], model, inputs, work)
        if arguments.model is not None:
            _own(Model.open(arguments.model), survey, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("networks", type=Path, help="directory of the released networks")
    parser.add_argument("--keras", type=Path, help="python of an environment with TensorFlow")
    parser.add_argument("--survey", type=Path, help="spectra to use instead of simulated ones")
    parser.add_argument("--model", type=Path, help="another model, by maury alone")
    parser.add_argument("--stars", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def _timed(task: Callable[[], Any]) -> Callable[[], float]:
    def run() -> float:
        start = time.process_time()
        task()
        return time.process_time() - start

    return run


def _product() -> Callable[[], Any]:
    left, right = torch.randn(2, PRODUCT, PRODUCT)
    return lambda: [left @ right for _ in range(10)]


def _keras(
    peer: Peer, networks: Path, model: Model, inputs: Inputs, work: Path
) -> dict[str, Callable[[], float]]:
    observables = model.scaling.observables.forward(inputs.observables).astype(np.float32)
    np.savez(work / "stars.npz", flux=inputs.flux, observables=observables)
    print(peer("load", directory=str(networks), stars=str(work / "stars.npz")))

    def asked(task: str, batch: int) -> float:
        return float(peer(task, batch=batch)["seconds"])

    return {
        f"{task} {batch}": partial(asked, task, batch)
        for task in ("predict", "function")
        for batch in KERAS_BATCHES
    }


def _rounds(contenders: dict[str, Callable[[], float]], n_round: int) -> dict[str, float]:
    """Median seconds of each contender; all take turns, after one turn that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(n_round + 1):
        for name, run in contenders.items():
            value = run()
            if number:
                seconds[name].append(value)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _operations(model: Model) -> float:
    """Multiplications and additions of all members for one star, of convolutions and layers."""
    total, n_position, shapes = 0, model.n_pixel, model.tensors
    for name, shape in shapes.items():
        if not name.endswith("weight"):
            continue
        n_place = 1
        if len(shape) == 3:
            n_position -= shape[2] - 1
            n_place = n_position
        total += 2 * n_place * int(np.prod(shape))
    return float(total * len(model.kept))


def _show(seconds: dict[str, float], n_star: int, operations: float) -> None:
    peak = 20.0 * PRODUCT**3 / seconds.pop("product")
    print(f"matrix product: {peak / 1e9:.1f} billion operations a second")
    print(f"{operations / 1e6:.2f} million operations a star")
    for name, value in seconds.items():
        share = operations * n_star / value / peak
        print(f"{name:>14}: {1e6 * value / n_star:8.1f} us a star, {share:6.1%} of the product")
    ours = seconds["compiled"]
    for task in ("predict", "function"):
        found = {name: value for name, value in seconds.items() if name.startswith(task)}
        if found:
            best = min(found, key=lambda name: found[name])
            ratio = found[best] / ours
            print(f"compiled is {ratio:.2f} times as fast as Keras {best}, its best batch size")
    if "predict 32" in seconds:
        ratio = seconds["predict 32"] / ours
        print(f"compiled is {ratio:.2f} times as fast as Keras predict 32, its default")


def _compare(
    peer: Peer, network: EnsembleNetwork, model: Model, inputs: Inputs, work: Path
) -> None:
    peer("predict", batch=256)
    peer("save", file=str(work / "keras.npy"))
    labels = model.scaling.labels
    expected = np.load(work / "keras.npy").astype(np.float64).mean(axis=0)
    away = np.abs(network.predict(inputs).mean - labels.inverse(expected))
    largest = np.max(away / (labels.maximum - labels.minimum))
    print(f"largest difference from Keras: {largest:.1e} of a label's range")


def _own(model: Model, survey: Survey, arguments: argparse.Namespace) -> None:
    inputs = model.preparation.apply(survey.batch(0, min(arguments.stars, len(survey))))
    network = EnsembleNetwork(model)
    contenders = {"networks": _timed(partial(network.predict, inputs))}
    contenders["product"] = _timed(_product())
    print(f"{model.network['name']}, {len(model.kept)} members")
    _show(_rounds(contenders, arguments.rounds), len(inputs), _operations(model))


if __name__ == "__main__":
    main()
