"""The main job on a simulated survey, in minutes: simulate, train, predict, validate, report."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maury.evaluation.validation import ValidationReport, validate
from maury.io.files import (
    one_at_a_time,
    publish,
    read_stamp,
    refuse_existing,
    remove,
    require_ours,
    writing,
)
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.report import figures
from maury.report.page.assemble import write_report
from maury.simulation.surveys import simulate_survey
from maury.survey.store import Survey
from maury.training.runs import train
from maury.version import __version__

Stage = Callable[[str], AbstractContextManager[Any]]
"""Called with the text of a stage; its context yields that stage's progress callback."""

REDUCED: dict[str, dict[str, Any]] = {
    # Minutes on a laptop: it shows how the program is used, and claims no precision. Chosen.
    "training": {"steps": 3000, "stars": 30_000},
    "ensemble": {"members": 2},
}
"""Settings of the demonstration: fewer networks and steps than by default."""


@dataclass(frozen=True)
class DemoResult:
    """What the demonstration left.

    Attributes
    ----------
    directory : Path
        Where everything lies.
    report : ValidationReport
        Residuals of the held-out stars.
    summary : str
        What was made, and what to do next.
    """

    directory: Path
    report: ValidationReport
    summary: str


def _silent(text: str) -> AbstractContextManager[None]:
    del text
    return nullcontext()


@one_at_a_time("out")
def run_demo(
    out: Path | str = "maury-demo",
    *,
    n_star: int = 3000,
    n_observed: int = 10_000,
    seed: int = 0,
    n_processes: int = 1,
    overwrite: bool = False,
    stage: Stage = _silent,
) -> DemoResult:
    """Run the whole journey on simulated spectra.

    Parameters
    ----------
    out : path-like
        Directory to write; it appears under its name when everything is done.
    n_star, n_observed : int
        Labelled and observed stars to simulate.
    seed : int
        Seed of the simulation, the split and the networks.
    n_processes : int
        Processes that write the figures of the report; with more than one, a script of your own
        needs a main guard.
    overwrite : bool
        Replace an existing directory.
    stage : callable
        Announces each stage and yields its progress callback.

    Raises
    ------
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    # A stopped run goes on only with these equal: pieces of two runs must not end in one report.
    settings = {"version": __version__, "stars": [n_star, n_observed], "seed": seed}
    work = _work_directory(out, settings)
    with stage(f"simulating {n_star} labelled stars") as progress:
        labelled = _survey(work / "labelled.zarr", n_star, seed, False, progress)
    with stage(f"simulating {n_observed} observed stars in the discs of the Galaxy") as progress:
        # Another seed, or the observed stars would be the labelled ones again.
        observed = _survey(work / "observed.zarr", n_observed, seed + 1, True, progress)
    with stage("training the ensemble") as progress:
        # The training is the long part and is kept; what follows is made anew.
        path = work / "model"
        model = (
            Model.open(path)
            if path.exists()
            else train(labelled, path, seed=seed, config=REDUCED, progress=progress)
        )
    with stage("predicting the observed stars") as progress:
        path = work / "catalogue.fits"
        catalogue = predict(model, observed, path, overwrite=True, progress=progress)
    with stage("validating on held-out stars, and drawing the report"):
        report = validate(model, labelled)
        (work / "validation.json").write_text(report.to_json(), "utf-8")
        _draw(work, catalogue, report)
        write_report(
            model,
            work / "report",
            survey=labelled,
            observed=work / "catalogue.fits",
            seed=seed,
            n_processes=n_processes,
            overwrite=True,
        )
    # Under its name only when all is there: a half-made directory is never taken for a result.
    publish(work, out, overwrite=overwrite)
    return DemoResult(out, report, _summary(out, catalogue, seed))


def _work_directory(out: Path, settings: dict[str, Any]) -> Path:
    """Return the directory of unfinished work: that of a killed run with the same settings."""
    work = out.with_name(out.name + ".part")
    stamp = work / "demo.json"
    if work.exists() or work.is_symlink():
        # It is about to be removed: a directory that somebody else named so stays.
        require_ours(work, stamp.name)
        if read_stamp(stamp) == settings:
            return work
        remove(work)
    work.mkdir(parents=True)
    with writing(stamp, overwrite=True) as partial:
        partial.write_text(json.dumps(settings), "utf-8")
    return work


def _survey(path: Path, n_star: int, seed: int, observed: bool, progress: Any) -> Survey:
    if path.exists():
        return Survey.open(path)
    return simulate_survey(
        path, n_star=n_star, seed=seed, observed=observed, galaxy=observed, progress=progress
    )


def _draw(work: Path, catalogue: Catalogue, report: ValidationReport) -> None:
    labels = Model.open(work / "model").labels
    # As a user should: rows with a warning are no measurements.
    table = catalogue.table[~catalogue.table["warn"]]
    values = np.column_stack([table[label.name] for label in labels])
    overview = figures.demo_banner(values, report.statistics, labels=labels, simulated=True)
    figures.save(overview, work / "overview", overwrite=True)


def _summary(out: Path, catalogue: Catalogue, seed: int) -> str:
    warned = int(np.sum(catalogue.table["warn"]))
    return f"""
{out}/catalogue.fits   labels of {len(catalogue)} SIMULATED stars, {warned} with a warning flag
{out}/report/index.html  open it: how precise, how well calibrated, how much covered; all figures
{out}/overview.png     Kiel diagram, abundances, and how often the quoted errors hold
{out}/model            a reduced ensemble (seed {seed}); 'maury info {out}/model' describes it

These spectra are simulated: the figures above say how the method works, not how well it does on
the sky. Next, your own spectra:
  maury ingest released DIR my.zarr       files as the RAVE CNN authors released them
  maury ingest toml SURVEY.toml my.zarr   any other survey; see docs/guides/ingest.md
  maury train my.zarr my-model
  maury validate my-model my.zarr
  maury predict my-model my.zarr labels.fits"""
