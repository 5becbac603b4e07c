"""The main job on a simulated survey, in minutes: simulate, train, predict, validate, draw."""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import maury
from maury import figures
from maury.catalogue import Catalogue
from maury.files import publish, refuse_existing, remove
from maury.learning import train
from maury.model import Model
from maury.prediction import predict, predict_rows
from maury.simulate import simulate_survey
from maury.survey import Survey
from maury.validation import ValidationReport, held_out_rows, validate

Stage = Callable[[str], AbstractContextManager[Any]]
"""Called with the text of a stage; its context yields that stage's progress callback."""

REDUCED: dict[str, dict[str, Any]] = {
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


def run_demo(
    out: Path | str = "maury-demo",
    *,
    n_star: int = 3000,
    n_observed: int = 10_000,
    seed: int = 0,
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
    settings = {"version": maury.__version__, "stars": [n_star, n_observed], "seed": seed}
    work = _work_directory(out, settings)
    with stage(f"simulating {n_star} labelled stars") as progress:
        labelled = _survey(work / "labelled.zarr", n_star, seed, False, progress)
    with stage(f"simulating {n_observed} observed stars") as progress:
        observed = _survey(work / "observed.zarr", n_observed, seed + 1, True, progress)
    with stage("training the ensemble") as progress:
        path = work / "model"
        model = (
            Model.open(path)
            if path.exists()
            else train(labelled, path, seed=seed, config=REDUCED, progress=progress)
        )
    with stage("predicting the observed stars") as progress:
        path = work / "catalogue.fits"
        catalogue = predict(model, observed, path, overwrite=True, progress=progress)
    with stage("validating on held-out stars and drawing"):
        report = validate(model, labelled)
        (work / "validation.json").write_text(report.to_json(), "utf-8")
        _draw(work, labelled, catalogue, report)
    publish(work, out, overwrite=overwrite)
    return DemoResult(out, report, _summary(out, catalogue, seed))


def _work_directory(out: Path, settings: dict[str, Any]) -> Path:
    """Return the directory of unfinished work: that of a killed run with the same settings."""
    work = out.with_name(out.name + ".part")
    stamp = work / "demo.json"
    text = json.dumps(settings)
    if stamp.is_file() and stamp.read_text("utf-8") == text:
        return work
    if work.exists():
        remove(work)
    work.mkdir(parents=True)
    stamp.write_text(text, "utf-8")
    return work


def _survey(path: Path, n_star: int, seed: int, observed: bool, progress: Any) -> Survey:
    if path.exists():
        return Survey.open(path)
    return simulate_survey(path, n_star=n_star, seed=seed, observed=observed, progress=progress)


def _draw(work: Path, labelled: Survey, catalogue: Catalogue, report: ValidationReport) -> None:
    model = Model.open(work / "model")
    names = list(model.label_names)
    rows = held_out_rows(model, labelled)
    predicted = predict_rows(model, labelled, rows)
    residuals = figures.residual_figure(
        labelled.labels(names)[rows],
        np.column_stack([predicted[name] for name in names]),
        model.labels,
        error=np.column_stack([predicted[f"{name}_error"] for name in names]),
        simulated=True,
    )
    table = catalogue.table[~catalogue.table["warn"]]
    values = np.column_stack([table[name] for name in names])
    kiel = figures.kiel_figure(table["teff"], table["logg"], table["m_h"], simulated=True)
    overview = figures.demo_banner(values, report.statistics, labels=model.labels, simulated=True)
    for name, figure in (("residuals", residuals), ("kiel", kiel), ("overview", overview)):
        figures.save(figure, work / name, overwrite=True)


def _summary(out: Path, catalogue: Catalogue, seed: int) -> str:
    warned = int(np.sum(catalogue.table["warn"]))
    return f"""
{out}/catalogue.fits   labels of {len(catalogue)} SIMULATED stars, {warned} with a warning flag
{out}/kiel.png         Kiel diagram of the stars without a warning, coloured by [M/H]
{out}/residuals.png    held-out stars: residuals with bias and scatter
{out}/overview.png     Kiel diagram, abundances, and how often the quoted errors hold
{out}/model            a reduced ensemble (seed {seed}); 'maury info {out}/model' describes it

These spectra are simulated: the figures above say how the method works, not how well it does on
the sky. Next, your own spectra:
  maury ingest released DIR my.zarr       files as the RAVE CNN authors released them
  maury ingest toml SURVEY.toml my.zarr   any other survey; see docs/ingest.md
  maury train my.zarr my-model
  maury validate my-model my.zarr
  maury predict my-model my.zarr labels.fits"""
