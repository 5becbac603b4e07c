"""Write the golden files of this version: a survey, models, and what they predict.

    python scripts/make_golden.py tests/golden/VERSION

Each released version keeps its own; every later one must open them and predict the same
(`tests/whole/test_golden.py`). All spectra in them are simulated.
"""

import argparse
import shutil
import tempfile
from pathlib import Path

import maury
from maury.prediction.streaming import predict
from maury.simulation.surveys import simulate_survey
from maury.survey.store import Survey

NETWORKS = {
    "guiglion2020": {
        "network": {"filters": [4, 2], "spectrum_units": 4},
        "training": {"epochs": 3, "batch_size": 32},
    },
    "maury": {"network": {"width": 32, "stem": 24}, "training": {"steps": 60, "stars": 500}},
}
METHODS = ("cannon",)
N_TRAINING, N_STAR = 420, 12


def make(folder: Path) -> None:
    """Write the golden files into a folder that does not exist."""
    folder.mkdir(parents=True)
    observed = folder / "observed.zarr"
    simulate_survey(observed, n_star=N_STAR, seed=2, observed=True)
    with tempfile.TemporaryDirectory() as temporary:
        labelled = Path(temporary) / "labelled.zarr"
        simulate_survey(labelled, n_star=N_TRAINING, seed=1)
        survey = Survey.open(labelled)
        for preset, config in NETWORKS.items():
            config = {**config, "ensemble": {"members": 2 if preset == "guiglion2020" else 1}}
            maury.train(
                survey, folder / f"{preset}.model", preset=preset, config=config, n_processes=1
            )
        for method in METHODS:
            maury.train(survey, folder / f"{method}.model", method=method)
    for model in sorted(folder.glob("*.model")):
        out = Path(temporary).with_suffix(".ecsv")
        predict(maury.Model.open(model), Survey.open(observed), out, overwrite=True)
        shutil.move(out, folder / f"{model.stem}.ecsv")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    make(parser.parse_args().folder)
