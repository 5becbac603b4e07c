"""Measure how well a student stands for its teacher, and how much faster it is.

    python scripts/check_student.py SURVEY.zarr TEACHER STUDENT [--stars N]

Prints, for held-out stars of the survey and for simulated stars, with all inputs and without a
part of them: the 68th percentile of |student - teacher| over the teacher's error, the ratio of
their errors, and the share of stars within 1 and 2 errors of the truth. Then flags in common, and
CPU time per star on one thread of the networks and of the whole prediction, interleaved.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from maury.io.arrays import Float64Array, Int64Array

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from maury.evaluation.validation import held_out_rows
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.model.engines.engine import TorchEngine
from maury.model.inference import EnsembleNetwork, load_members
from maury.model.networks.published import network_config
from maury.prediction.streaming import Predictor
from maury.prediction.uncertainty import UncertaintyModel, simulated_stars
from maury.simulation.drawing import DrawConfig
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.preparation import Inputs
from maury.survey.store import Survey

BLOCK = 576
ROUNDS = 9


class Answerer:
    """A model with calibrated errors and without coverage."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.network = EnsembleNetwork(model)
        uncertainty = UncertaintyModel.load(model, self.network)
        assert uncertainty is not None, f"{model.path} is not calibrated"
        self._uncertainty = uncertainty

    def __call__(self, inputs: Inputs) -> tuple[Float64Array, Float64Array]:
        """Labels and errors."""
        starts = range(0, len(inputs), BLOCK)
        parts = [self._block(picked(inputs, slice(k, k + BLOCK))) for k in starts]
        mean, sigma = (np.concatenate(part) for part in zip(*parts, strict=True))
        return mean, sigma

    def _block(self, inputs: Inputs) -> tuple[Float64Array, Float64Array]:
        found = self._uncertainty.calibrate(inputs, self.network.predict(inputs))
        return found.mean, found.sigma


PER_STAR = ("flux", "ivar", "observables", "observable_errors", "flags", "snr")


def picked(inputs: Inputs, rows: slice) -> Inputs:
    """Return some rows of prepared inputs."""
    return replace(inputs, **{name: getattr(inputs, name)[rows] for name in PER_STAR})


def without(inputs: Inputs, what: str) -> Inputs:
    """Return prepared inputs of which a part is missing."""
    if what == "spectrum":
        nothing = np.full(len(inputs), np.nan)
        return replace(inputs, ivar=np.zeros_like(inputs.ivar), snr=nothing)
    if what == "photometry":
        return replace(inputs, observables=np.full_like(inputs.observables, np.nan))
    return inputs


def compare(
    names: tuple[str, ...],
    inputs: Inputs,
    truth: Float64Array,
    teacher: Answerer,
    student: Answerer,
) -> None:
    """Print the table of some stars."""
    (mean, sigma), (taught, error) = teacher(inputs), student(inputs)
    agreement = np.quantile(np.abs(taught - mean) / sigma, 0.68, axis=0)
    ratio = np.quantile(error / sigma, [0.16, 0.5, 0.84], axis=0)
    rows = {"|difference| / error, 68 %": agreement}
    rows |= {
        f"errors over the teacher's, {k} %": r for k, r in zip((16, 50, 84), ratio, strict=True)
    }
    for who, value, e in (("teacher", mean, sigma), ("student", taught, error)):
        z = np.abs(value - truth) / e
        known = np.isfinite(z)
        for n in (1, 2):
            inside = np.where(known, z < n, False).sum(axis=0) / known.sum(axis=0)
            rows[f"{who}, within {n} error{'s' * (n > 1)}"] = inside
    print(f"{'':32}" + "".join(f"{name:>9}" for name in names) + "     mean")
    for text, values in rows.items():
        print(f"{text:32}" + "".join(f"{v:9.3f}" for v in values) + f"{values.mean():9.3f}")


def flags_in_common(survey: Survey, rows: Int64Array, paths: tuple[Path, Path]) -> None:
    """Print how often both set each flag."""
    first, second = (Predictor(path).predict(survey.rows(rows))["flags"] for path in paths)
    print(f"{'flag':24}{'teacher':>9}{'student':>9}{'both':>7}")
    for flag in Flag:
        a, b = ((mask & flag.value) != 0 for mask in (first, second))
        if a.any() or b.any():
            print(f"{flag.name:24}{a.sum():9d}{b.sum():9d}{(a & b).sum():7d}")


def seconds(work: dict[str, Callable[[], object]], n_star: int) -> dict[str, float]:
    """CPU microseconds per star of each piece of work, interleaved, median."""
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(ROUNDS):
        for name, run in work.items():
            start = time.process_time()
            run()
            taken[name].append(1e6 * (time.process_time() - start) / n_star)
    return {name: float(np.median(values)) for name, values in taken.items()}


def speeds(survey: Survey, paths: tuple[Path, Path]) -> None:
    """Print CPU time per star on the same rows."""
    batch = survey.batch(0, min(4 * BLOCK, len(survey)))
    work: dict[str, Callable[[], object]] = {}
    for who, path in zip(("teacher", "student"), paths, strict=True):
        model = Model.open(path)
        predictor, network = Predictor(model), EnsembleNetwork(model)
        inputs = model.preparation.apply(batch)
        blocks = [picked(inputs, slice(k, k + BLOCK)) for k in range(0, len(batch), BLOCK)]
        work[f"{who}, networks"] = networks_alone(model, blocks)
        work[f"{who}, labels"] = lambda n=network, b=blocks: [n.predict(one) for one in b]
        work[f"{who}, all but reading"] = lambda p=predictor: p.predict(batch)
    found = seconds(work, len(batch))
    print("microseconds per star, one thread")
    for part in ("networks", "labels", "all but reading"):
        slow, fast = found[f"teacher, {part}"], found[f"student, {part}"]
        print(f"  {part:20}{slow:9.1f}{fast:9.1f}   ratio {slow / fast:.1f}")


def networks_alone(model: Model, blocks: list[Inputs]) -> Callable[[], object]:
    """Return what asks the networks alone about some blocks."""
    options = dict(model.network)
    config = network_config(str(options.pop("name")), options)
    engine = TorchEngine(config, load_members(model))
    scaling = model.scaling.observables
    n_observable = len(model.preparation.observable_names) if config.photometry else 0
    ready = [
        (block.flux, block.ivar, scaling.forward(block.observables)[:, :n_observable])
        for block in blocks
    ]
    return lambda: [engine.predict(*arrays) for arrays in ready]


def main() -> None:
    """Print all tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("survey", type=Path)
    parser.add_argument("teacher", type=Path)
    parser.add_argument("student", type=Path)
    parser.add_argument("--stars", type=int, default=8000, help="simulated stars")
    options = parser.parse_args()
    torch.set_num_threads(1)
    survey = Survey.open(options.survey)
    models = [Model.open(path) for path in (options.teacher, options.student)]
    teacher, student = (Answerer(model) for model in models)
    names = models[0].label_names
    rows = held_out_rows(models[0], survey)
    inputs, truth = models[0].preparation.apply(survey.rows(rows)), survey.labels(names)[rows]
    star_simulator = TrainingStarSimulator.of_model(models[0])
    drawn, known = simulated_stars(models[0], star_simulator, options.stars, seed=20_000)
    broad = simulated_stars(
        models[0], star_simulator, options.stars, seed=20_001, draw=DrawConfig()
    )
    samples = {
        f"{len(rows)} held-out spectra": (inputs, truth),
        f"{options.stars} simulated stars, as observed": (drawn, known),
        f"{options.stars} simulated stars, rare ones oftener": broad,
    }
    for title, (seen, true) in samples.items():
        for what in ("", "photometry", "spectrum"):
            print(f"\n{title}, {f'without {what}' if what else 'all inputs'}")
            compare(names, without(seen, what), true, teacher, student)
    paths = (options.teacher, options.student)
    print()
    flags_in_common(survey, rows, paths)
    print()
    speeds(survey, paths)


if __name__ == "__main__":
    main()
