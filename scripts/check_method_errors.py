"""Shares of held-out stars within the errors of a method, before and after their calibration.

    python scripts/check_method_errors.py SURVEY.zarr NAME [--config FILE.toml] [--members N]
        [--stars N] [--most N] [--seed N] [--model MODEL]

NAME is a method or a preset (`maury methods`). It is trained on the survey, unless MODEL exists,
and asked for its test stars. Printed is a row of the table in docs/methods/compare.md: shares
within one error, before and after, with the range of the labels; between the quantiles of 2.3 and
97.7 %; and of stars off by more than three errors in any label and not warned of, before and after.
*Before* are the errors that the method states, or the spread of its networks, and the flags without
the likeness of spectra. ``--stars`` trains on labelled stars taken at random, ``--most`` asks for
that many test stars at most: slow methods are so measured. The line after the row says the time.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
from astropy.table import Table

from maury.labels.columns import stated_error
from maury.model.directory import RESIDUAL_CALIBRATION, Model
from maury.prediction.spectrum_likeness import LIKENESS
from maury.prediction.streaming import predict_rows
from maury.survey.store import Survey
from maury.training.runs import train


def uncalibrated(model):
    """Return the model without what its residuals taught; its self-check knows of that too."""
    later = (RESIDUAL_CALIBRATION, LIKENESS, "canary")
    kept = {name: one for name, one in model.attachments.items() if name not in later}
    return replace(model, attachments=MappingProxyType(kept))


def shares(model, survey, rows):
    """Share within one error and between quantiles, (n_label,), and of silent stars."""
    found, truth = predict_rows(model, survey, rows), survey.labels(model.labels)[rows]
    names = model.label_names
    residual = np.stack([found[n] for n in names], axis=1) - truth
    error = np.stack([stated_error(found, n) for n in names], axis=1)
    ok = np.isfinite(residual) & np.isfinite(error)
    # Where no error is stated, as a single network states none, no share is known.
    n = np.where(ok.any(axis=0), ok.sum(axis=0), np.nan)
    within = np.sum((np.abs(residual) < error) & ok, axis=0) / n
    off = ((np.abs(residual) > 3 * error) & ok).any(axis=1)
    silent = np.mean(off & ~np.asarray(found["warn"])) if ok.any() else np.nan
    between = np.full(len(names), np.nan)
    if f"{names[0]}_q02" in found:
        low, high = (np.stack([found[f"{n}_{q}"] for n in names], axis=1) for q in ("q02", "q98"))
        between = np.sum((truth > low) & (truth < high) & ok, axis=0) / n
    return within, between, silent


def left_out(survey, count, seed, path):
    """Write the identifiers of all but `count` labelled stars, which are then not learnt from."""
    labelled = np.flatnonzero(np.isfinite(survey.labels(survey.label_names)).any(axis=1))
    order = np.random.default_rng(seed).permutation(labelled.size)
    Table({"id": survey.id[labelled[order[count:]]]}).write(path, overwrite=True)
    return path


def trained(arguments, survey, folder):
    """Train, or open the model that is there."""
    path = arguments.model or folder / "model"
    if path.exists():
        return Model.open(path)
    fewer = None
    if arguments.stars:
        fewer = left_out(survey, arguments.stars, arguments.seed, folder / "left_out.ecsv")
    return train(
        survey,
        path,
        method=arguments.name,
        members=arguments.members,
        seed=arguments.seed,
        config=arguments.config,
        leave_out=fewer,
        n_processes=1,
    )


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey")
    parser.add_argument("name")
    parser.add_argument("--config", type=Path)
    parser.add_argument("--members", type=int)
    parser.add_argument("--stars", type=int)
    parser.add_argument("--most", type=int)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    survey, start = Survey.open(arguments.survey), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        model = trained(arguments, survey, Path(folder))
        rows = np.flatnonzero(model.split.contains("test", survey.star_id))[: arguments.most]
        before, _, silent = shares(uncalibrated(model), survey, rows)
        after, between, quiet = shares(model, survey, rows)
    here = 100 * np.sqrt(quiet * (1 - quiet) / rows.size)
    ends = [f"{100 * a.min():.0f}-{100 * a.max():.0f}" for a in (after, between)]
    print(
        f"| {survey.path.stem} | {arguments.name} | {100 * before.mean():.1f} "
        f"| {100 * after.mean():.1f} | {ends[0]} | {100 * between.mean():.1f} | {ends[1]} "
        f"| {100 * silent:.1f} | {100 * quiet:.1f} +- {here:.1f} |"
    )
    about = model.attachments.get(RESIDUAL_CALIBRATION)
    told = "not calibrated" if about is None else f"{about.metadata['n_star']} spectra"
    print(
        f"  {rows.size} test spectra, {told}; {time.process_time() - start:.0f} s of CPU; "
        + ", ".join(
            f"{n} {100 * a:.0f}/{100 * b:.0f}"
            for n, a, b in zip(model.label_names, after, between, strict=True)
        )
    )


if __name__ == "__main__":
    main()
