"""Compare a joint model with models of each survey alone, on the same held-out stars.

Models of one survey are trained with the split of the joint model where they are not there yet::

    python scripts/check_joint.py both.joint rave=rave.zarr galah=galah.zarr --own own \
        --members 2 --seed 1 --steps rave=6000 --steps galah=3000

Printed are, label by label, the rms residual of the joint model's answer over that of the survey's
own model, with a sampling error by bootstrap over stars; then what the surveys say together over
the better of the two own models, and `maury joint validate` of the same stars.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from maury.cli import terminal
from maury.evaluation.joint_validation import validate_joint
from maury.io.arrays import Float64Array, Int64Array
from maury.model.directory import Model
from maury.model.joint_model import JointModel
from maury.prediction.joint_predictor import JointLabels, answers_alone, best_rows
from maury.prediction.streaming import predict_rows
from maury.survey.common_stars import CommonStars
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.joint import division
from maury.training.runs import Completion
from maury.training.settings import resolve

N_BOOTSTRAP = 1000
"""Resamplings: a sampling error is then known to 2 %."""


def own_model(name: str, common: CommonStars, folder: Path, options: argparse.Namespace) -> Model:
    """Read the model of one survey, or train it with the split of the joint model."""
    path = folder / f"{name}.model"
    if path.is_dir():
        return Model.open(path)
    steps = dict(text.split("=") for text in options.steps)
    training = {"training": {"steps": int(steps[name])}} if name in steps else {}
    settings = resolve(training, preset="maury", members=options.members, split=None)
    completion = Completion()
    return ensemble.train(
        common.surveys[name],
        path,
        seed=options.seed,
        config=settings,
        n_processes=1,
        complete=completion,
        finish=completion.describe,
        divide=division(common, settings, options.seed)[name],
    )


def ratio(ours: Float64Array, theirs: Float64Array, rng: np.random.Generator) -> str:
    """Ratio of two rms residuals of the same stars, with its sampling error."""
    good = np.isfinite(ours) & np.isfinite(theirs)
    if good.sum() < 20:
        return "-"
    a, b = ours[good] ** 2, theirs[good] ** 2
    drawn = rng.integers(0, a.size, (N_BOOTSTRAP, a.size))
    scatter = np.sqrt(a[drawn].mean(axis=1) / b[drawn].mean(axis=1)).std()
    return f"{np.sqrt(a.mean() / b.mean()):.3f} +- {scatter:.3f}"


def main() -> None:
    """Read the options, train what is missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("joint", type=Path)
    parser.add_argument("surveys", nargs="+", metavar="NAME=SURVEY")
    parser.add_argument("--own", type=Path, required=True, help="folder of the models alone")
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", action="append", default=[], metavar="NAME=STEPS")
    options = parser.parse_args()
    model = JointModel.open(options.joint)
    opened = {n: Survey.open(p) for n, p in (text.split("=") for text in options.surveys)}
    common = CommonStars.of(opened)
    own = {name: own_model(name, common, options.own, options) for name in opened}
    rng = np.random.default_rng(0)
    best: dict[str, tuple[Int64Array, Int64Array]] = {}
    joint_residual, own_residual, truth = {}, {}, {}
    for name, survey in common.surveys.items():
        tested = model.models[name].split.contains("test", survey.star_id)
        assert np.array_equal(tested, own[name].split.contains("test", survey.star_id))
        nothing = np.zeros(len(survey), dtype=np.bool_)
        best[name] = best_rows(common.star[name], tested, nothing, survey.column("snr"))
        rows = best[name][1]
        has = [k for k, n in enumerate(model.label_names) if n in own[name].label_names]
        truth[name] = np.full((rows.size, len(model.labels)), np.nan)
        truth[name][:, has] = survey.labels([model.label_names[k] for k in has])[rows]
        joint_residual[name] = answers_alone(model, name, survey.rows(rows)).mean - truth[name]
        found = predict_rows(own[name], survey, rows)
        mean = np.full(truth[name].shape, np.nan)
        for k in has:
            mean[:, k] = found[model.label_names[k]]
        own_residual[name] = mean - truth[name]
    star = np.intersect1d(*(best[name][0] for name in list(opened)[:2]))
    place = {name: np.searchsorted(best[name][0], star) for name in list(opened)[:2]}
    inputs = {
        name: model.models[name].preparation.apply(
            common.surveys[name].rows(best[name][1][place[name]])
        )
        for name in place
    }
    known = np.full((star.size, len(model.labels)), np.nan)
    for name in place:
        known = np.where(np.isnan(known), truth[name][place[name]], known)
    together = JointLabels(model).predict(inputs).mean - known
    better = None
    for name in place:
        mine = own_residual[name][place[name]]
        # No spectrum of a survey tells the labels that it lacks.
        n = np.isfinite(mine).sum(axis=0)
        rms = np.sqrt(np.where(n > 0, np.nansum(mine**2, axis=0) / np.maximum(n, 1), np.inf))
        if better is None:
            better = mine, rms
        else:
            better = (
                np.where(rms < better[1], mine, better[0]),
                np.minimum(rms, better[1]),
            )
    assert better is not None, "there are two surveys"
    header = ("label", *(f"{name}: joint / own" for name in opened), "together / better own")
    table = [header]
    for k, label in enumerate(model.label_names):
        ratios = [ratio(joint_residual[n][:, k], own_residual[n][:, k], rng) for n in opened]
        table.append((label, *ratios, ratio(together[:, k], better[0][:, k], rng)))
    terminal.show_values(table)
    terminal.show_joint(validate_joint(model, opened))


if __name__ == "__main__":
    main()
