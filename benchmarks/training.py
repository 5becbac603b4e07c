"""Time to the accuracy of the published recipe: maury's `guiglion2020` against Keras, in CPU time.

Keras trains the network of Guiglion et al. (2020) as the authors did (batches of 16, Adam at a
constant rate, patience of 40), on the same training and validation stars; its least validation
loss is the goal. maury trains one member by its own settings until it reaches that loss. Both use
one thread, one after the other, for each seed; an environment for Keras is made as for
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

from maury.ensemble import _collect
from maury.settings import EnsembleConfig, resolve
from maury.survey import Survey
from maury.training import Sample, TrainingConfig, train_member
from peer import Peer

PARTS = ("train", "validation")
ARRAYS = ("flux", "observables", "target", "variance")

Course = list[tuple[float, float]]
"""CPU seconds since the start, and validation loss, after each epoch."""


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
    stars = _collect(Survey.open(arguments.survey), settings, 0)
    samples = {part: stars.sample(part) for part in PARTS}
    ratios = []
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
            for name, course in (("Keras", theirs), ("maury", ours)):
                print(f"  {name}: {_told(course, goal)}")
            if (reached := _reached(ours, goal)) is not None:
                ratios.append((_reached(theirs, goal) or 0.0) / reached)
    print(f"{len(ratios)} of {arguments.seeds} reached the goal; Keras / maury, CPU seconds:")
    print("  " + ", ".join(f"{ratio:.2f}" for ratio in ratios))


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
