"""Held-out stars whose lines are changed alike: what drift tells, and what `maury adapt` mends.

Usage: python scripts/check_adapt.py MODEL SURVEY [--adapt] [--steps N]

SURVEY is the labelled survey that trained MODEL; of its stars those that did not train it are
changed in several ways. Labels serve to measure the result alone.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import maury
from builders.surveys import copy_survey
from maury.model.directory import Model
from maury.prediction.drift import drift
from maury.prediction.labellers import open_labeller
from maury.prediction.streaming import predict_rows
from maury.simulation.mismatch import TheoryMismatch
from maury.survey.store import Survey

LABELS = ("teff", "logg", "m_h", "alpha_m")


def cases(wave_aa: np.ndarray) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Return changes of flux (n_star, n_pixel) by name."""

    def lines(seed: int, scale_aa: float) -> Callable[[np.ndarray], np.ndarray]:
        mismatch = TheoryMismatch(line_strength=0.15, scale_aa=scale_aa, seed=seed)
        return lambda flux: mismatch.apply(flux, wave_aa, np.random.default_rng(0))

    cores = TheoryMismatch(ca_core=0.1)
    return {
        "none": lambda flux: flux,
        "all lines 10 % stronger": lambda flux: 1.1 * flux - 0.1,
        "scattered light 6 %": lambda flux: (flux + 0.06) / 1.06,
        "lines 15 % rms off, smooth over 3 angstrom": lines(1, 3.0),
        "lines 15 % rms off, smooth over 25 angstrom": lines(2, 25.0),
        "Ca II cores 10 % deeper": lambda flux: cores.apply(
            flux, wave_aa, np.random.default_rng(0)
        ),
    }


def shown(model: Model, survey: Survey) -> str:
    """Return shares within one error, median residual of [M/H], and silently wrong stars."""
    rows = predict_rows(model, survey, np.arange(len(survey)))
    truth = survey.labels(model.labels)
    off = np.stack([rows[x.name] for x in model.labels], axis=1) - truth
    z = np.abs(off / np.stack([rows[x.error_name] for x in model.labels], axis=1))
    own = [model.label_names.index(name) for name in LABELS]
    within = " ".join(f"{100 * np.nanmean(z[:, k] < 1):.0f}" for k in own)
    silent = np.mean((z > 3).any(axis=1) & ~rows["warn"])
    bias = np.nanmedian(off[:, model.label_names.index("m_h")])
    return f"{within} | {bias:+.3f} | {100 * silent:.1f} | {100 * rows['warn'].mean():.0f}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("survey", type=Path)
    parser.add_argument("--adapt", action="store_true")
    parser.add_argument("--steps", type=int)
    given = parser.parse_args()
    model, survey = Model.open(given.model), Survey.open(given.survey)
    known = model.split.contains("train", survey.star_id)
    config = {"training": {"steps": given.steps}} if given.steps else None
    print("| change | found | Teff, log g, [M/H], [alpha/M] within one error, % | [M/H] off | ")
    print("silent, % | warned of one by one, % |\n|---|---|---|---|---|---|")
    for name, change in cases(survey.wave_aa).items():
        with TemporaryDirectory() as folder:
            path = Path(folder) / "s.zarr"
            copy_survey(
                given.survey,
                path,
                rows=np.flatnonzero(~known),
                flux=lambda flux, change=change: change(flux).astype(np.float32),
            )
            changed = Survey.open(path)
            found = drift(model, changed, labeller=open_labeller(model).with_theory).common
            told = "; ".join(str(one.words) for one in found.changes if one.found) or "nothing"
            mark = " (**SURVEY_UNLIKE**)" if found.unlike else ""
            print(f"| {name} | {told}{mark} | {shown(model, changed)} |", flush=True)
            if given.adapt and told != "nothing":
                target = Path(folder) / "m"
                adapted = maury.adapt(model, changed, target, config=config, n_processes=1)
                print(f"| adapted | | {shown(adapted, changed)} |", flush=True)


if __name__ == "__main__":
    main()
