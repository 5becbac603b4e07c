"""Time to the accuracy of the published recipe: maury against Keras, in CPU time.

Keras trains the network of Guiglion et al. (2020) as the authors did (batches of 16, Adam at a
constant rate, patience of 40), on the same training and validation stars; its least validation
loss is the goal. maury trains one member of `guiglion2020` by its own settings until it reaches
that loss, and one of the default preset, in runs of more and more steps, each with its whole
schedule and counted whole: preparation, calibration of theory, simulation of stars, training. All
use one thread, one after the other, for each seed. Two ratios are printed: to the goal, as if Keras
knew it and stopped there; and for whole runs, Keras' with the patience that tells it to stop, the
default preset's as long as its settings say. An environment for Keras is made as for
`inference.py`:

    python benchmarks/training.py SURVEY --keras keras-env/bin/python
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np

from maury.model.inference import EnsembleNetwork
from maury.survey.store import Survey
from maury.training.ensemble import train
from maury.training.labelled_stars import LabelledStars, collect_stars
from maury.training.member import Sample, TrainingConfig, train_member
from maury.training.settings import EnsembleConfig, resolve
from peer import Peer

PARTS = ("train", "validation")
ARRAYS = ("flux", "observables", "target", "variance")

Course = list[tuple[float, float]]
"""CPU seconds since the start, and validation loss, after each epoch."""

STEPS = (300, 400, 500, 600, 800)
"""Of the default preset, one run each, with as many simulated stars as fill half of the batches."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("survey", type=Path)
    parser.add_argument("--keras", type=Path, required=True)
    parser.add_argument("--config", type=Path, help="settings of maury, as of maury train")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1000)
    arguments = parser.parse_args()
    settings = resolve(arguments.config, preset="guiglion2020", members=1, split=None)
    survey = Survey.open(arguments.survey)
    stars = collect_stars(survey, settings, 0, None)
    samples = {part: stars.sample(part) for part in PARTS}
    ratios: dict[str, list[tuple[float, float]]] = {"guiglion2020": [], "default": []}
    with tempfile.TemporaryDirectory() as folder, Peer(arguments.keras) as peer:
        file = Path(folder) / "stars.npz"
        named = {
            f"{part}_{name}": np.asarray(array, dtype=np.float32)
            for part, arrays in samples.items()
            for name, array in zip(ARRAYS, arrays, strict=True)
        }
        np.savez(file, **named)  # type: ignore[arg-type]
        for seed in range(arguments.seeds):
            request: dict[str, Any] = {"seed": seed, "epochs": arguments.epochs}
            theirs = peer("train", stars=str(file), goal=0.0, patience=40, **request)["course"]
            goal = min(loss for _, loss in theirs)
            ours = _train(samples, settings, seed, arguments.epochs)
            print(f"seed {seed}: goal {goal:.6f}")
            for name, course in (("Keras", theirs), ("guiglion2020", ours)):
                print(f"  {name}: {_told(course, goal)}")
            runs: Course = []
            for steps in STEPS:
                runs.append(_train_default(survey, stars, steps, Path(folder) / f"{seed}-{steps}"))
                print(f"  default, {steps} steps: loss {runs[-1][1]:.6f} in {runs[-1][0]:.1f} s")
            known = _reached(theirs, goal) or 0.0
            for name, course in (("guiglion2020", ours), ("default", runs)):
                if (reached := _reached(course, goal)) is not None:
                    whole = reached if name == "default" else course[-1][0]
                    ratios[name].append((known / reached, theirs[-1][0] / whole))
    for name, found in ratios.items():
        print(f"{name}: {len(found)} of {arguments.seeds} reached the goal; Keras / maury, CPU,")
        print("  to the goal " + ", ".join(f"{ratio:.2f}" for ratio, _ in found))
        print("  whole runs  " + ", ".join(f"{ratio:.2f}" for _, ratio in found))


def _train(samples: Any, settings: EnsembleConfig, seed: int, epochs: int) -> Course:
    assert isinstance(settings.training, TrainingConfig)
    course: Course = []
    start = time.process_time()

    def watch(epoch: int, training: float, validation: float | None) -> None:
        del epoch, training
        assert validation is not None
        course.append((time.process_time() - start, validation))

    train, validation = (Sample.from_numpy(*samples[part]) for part in PARTS)
    train_member(
        train,
        validation,
        settings.network,
        config=settings.training.model_copy(
            update={"epochs": min(epochs, settings.training.epochs)}
        ),
        seed=seed,
        on_epoch=watch,
    )
    return course


def _train_default(
    survey: Survey, stars: LabelledStars, steps: int, out: Path
) -> tuple[float, float]:
    """CPU seconds of one member of the default preset, and its loss as Keras counts it.

    Its seed is that of the split, so that the weights are the same each time.
    """
    sizes = {"steps": steps, "stars": 64 * steps}
    start = time.process_time()
    model = train(
        survey,
        out,
        preset="maury",
        members=1,
        n_processes=1,
        config={"training": sizes},
    )
    spent = time.process_time() - start
    rows = stars.table.rows[stars.parts["validation"]]
    inputs = model.preparation.apply(survey.rows(rows))
    mean = EnsembleNetwork(model).predict(inputs).mean
    labels = stars.scaling.labels
    order = [model.label_names.index(label.name) for label in stars.labels]
    target = stars.truth[stars.parts["validation"]]
    error = labels.forward(mean[:, order]) - labels.forward(target)
    return spent, float(np.mean(error**2))


def _reached(course: Course, goal: float) -> float | None:
    return next((seconds for seconds, loss in course if loss <= goal), None)


def _told(course: Course, goal: float) -> str:
    reached = _reached(course, goal)
    when = "never at the goal" if reached is None else f"at the goal after {reached:.1f} s"
    least = min(loss for _, loss in course)
    total = course[-1][0]
    return (
        f"{when}, least loss {least:.6f}, {len(course)} epochs in {total:.1f} s "
        f"({total / len(course):.2f} s each)"
    )


if __name__ == "__main__":
    main()
