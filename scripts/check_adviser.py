"""Compare suggested with random additions to a small training sample of simulated stars.

Usage: python scripts/check_adviser.py [--first 10] [--seeds 5] [--added 200]

Per seed, some 400 labelled stars of the narrow training selection train a small default model. Half
of an observed survey, whose selection has fuller edges, is the pool: the labels of 200 of its
stars are added, suggested or random ones, and the model is trained anew. The other half is for the
test: the fifth of its stars farthest, in true labels, from the training sample. The figure is
their rms error, over labels, in units of the median absolute error of all test stars by the first
model. Random stars are drawn among those that the adviser considers, so that it is not merely the
exclusion of bad spectra that counts. The exit status is 1 unless suggestions beat random additions
in most seeds and on average. Seeds 0 and 1 chose the power of the errors in the criterion.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.spatial import cKDTree

from maury.evaluation import adviser
from maury.evaluation.census import Census
from maury.labels.definitions import LABELS
from maury.model.directory import Model
from maury.prediction import uncertainty
from maury.prediction.streaming import predict_rows
from maury.simulation.surveys import simulate_survey
from maury.survey.store import Survey, SurveyWriter
from maury.training.ensemble import train as train_networks
from maury.training.runs import train

NAMES = [label.name for label in LABELS]
N_LABELLED = 500
N_OBSERVED = 4000
POOR_SHARE = 0.2
_NEIGHBOUR = 10


@dataclass(frozen=True)
class Size:
    """How long the models are trained, all alike."""

    steps: int = 700
    stars: int = 6000
    members: int = 2

    @property
    def config(self) -> dict[str, dict[str, float]]:
        """Settings of `maury.training.runs.train`."""
        return {
            "network": {"stem": 96, "width": 128, "depth": 1},
            "training": {"steps": self.steps, "stars": self.stars, "batch_size": 96},
            "split": {"train": 0.8, "validation": 0.1, "test": 0.1},
            "ensemble": {"members": self.members},
        }


@dataclass(frozen=True)
class Outcome:
    """Rms error in the poorly covered region, in units of the typical error."""

    base: float
    random: float
    suggested: float


def true_labels(survey: Survey) -> np.ndarray:
    """Return true labels (n_star, 9)."""
    return np.stack([survey.column(f"true_{name}") for name in NAMES], axis=1)


def poor_rows(truth: np.ndarray, training: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Of some rows, those whose true labels are farthest from the training sample."""
    low, centre, high = np.percentile(training, [16, 50, 84], axis=0)
    scaled = [(x - centre) / (0.5 * (high - low)) for x in (training, truth[rows])]
    distance = cKDTree(scaled[0]).query(scaled[1], k=_NEIGHBOUR)[0][:, -1]
    return rows[distance >= np.quantile(distance, 1.0 - POOR_SHARE)]


def joined(labelled: Survey, observed: Survey, rows: np.ndarray, path: Path) -> Path:
    """Write the labelled stars and some observed ones, these with their true labels."""
    parts = [labelled.rows(np.arange(len(labelled))), observed.rows(rows)]
    columns = {}
    for name in parts[0].columns:
        source = f"true_{name}" if name in NAMES else name
        given = (parts[0].columns[name], parts[1].column(source))
        columns[name] = np.concatenate(given)
    with SurveyWriter(
        path,
        n_star=len(labelled) + len(rows),
        wave_aa=labelled.wave_aa,
        medium=labelled.medium,
        columns=[name for name in columns if name not in ("id", "star_id")],
        simulated=True,
        resolving_power=labelled.resolving_power,
        overwrite=True,
    ) as writer:
        flux, ivar = (
            np.concatenate([getattr(part.spectra, name) for part in parts])
            for name in ("flux", "ivar")
        )
        writer.write(0, flux, ivar, **columns)
    return path


def errors(model: Model, survey: Survey, rows: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Predicted less true labels (n_row, 9)."""
    table = predict_rows(model, survey, rows)
    return np.stack([table[name] for name in NAMES], axis=1) - truth[rows]


def run_seed(seed: int, n_added: int, *, size: Size, work: Path) -> Outcome:
    """Train the three models of one seed, and measure them on the same stars."""
    labelled = simulate_survey(work / "l.zarr", n_star=N_LABELLED, seed=100 + seed, overwrite=True)
    observed = simulate_survey(
        work / "o.zarr", n_star=N_OBSERVED, seed=200 + seed, observed=True, overwrite=True
    )
    rng = np.random.default_rng(seed)
    order = rng.permutation(N_OBSERVED)
    pool, test = np.sort(order[: N_OBSERVED // 2]), np.sort(order[N_OBSERVED // 2 :])
    base = train(labelled, work / "base", config=size.config, seed=seed, overwrite=True)
    census = Census.take(base, observed).rows(pool)
    useless = census.useless().values()
    useful = np.flatnonzero(~np.logical_or.reduce(list(useless)))
    added = {
        "random": pool[rng.choice(useful, n_added, replace=False)],
        "suggested": pool[adviser.suggest_from(census, n_added).row],
    }
    truth = true_labels(observed)
    trained = true_labels(labelled)[base.split.contains("train", labelled.star_id)]
    poor = poor_rows(truth, trained, test)
    unit = np.nanmedian(np.abs(errors(base, observed, test, truth)), axis=0)
    found = {"base": _rms(errors(base, observed, poor, truth) / unit)}
    for name, rows in added.items():
        survey = joined(labelled, observed, rows, work / f"{name}.zarr")
        model = train_networks(survey, work / name, config=size.config, seed=seed, overwrite=True)
        found[name] = _rms(errors(model, observed, poor, truth) / unit)
    return Outcome(**found)


def _rms(scaled: np.ndarray) -> float:
    return float(np.sqrt(np.nanmean(np.square(scaled))))


def main() -> int:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--first", type=int, default=10)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--added", type=int, default=200)
    options = parser.parse_args()
    torch.set_num_threads(1)
    uncertainty.N_SIMULATED = 2000
    print("SIMULATED stars; rms error in the poorly covered region, in typical errors")
    print(f"{'seed':>4} {'base':>7} {'random':>7} {'suggested':>9} {'difference':>10}", flush=True)
    outcomes = []
    with tempfile.TemporaryDirectory() as work:
        for seed in range(options.first, options.first + options.seeds):
            one = run_seed(seed, options.added, size=Size(), work=Path(work))
            outcomes.append(one)
            print(
                f"{seed:>4} {one.base:>7.3f} {one.random:>7.3f} {one.suggested:>9.3f} "
                f"{one.suggested - one.random:>+10.3f}",
                flush=True,
            )
    difference = np.array([one.suggested - one.random for one in outcomes])
    scatter = difference.std(ddof=1) / np.sqrt(difference.size) if difference.size > 1 else np.nan
    print(f"mean difference {difference.mean():+.3f} +- {scatter:.3f}")
    spent = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"{sum(use.ru_utime + use.ru_stime for use in spent):.0f} CPU seconds")
    won = (difference < 0).sum() > difference.size // 2 and difference.mean() < 0
    return 0 if won else 1


if __name__ == "__main__":
    sys.exit(main())
