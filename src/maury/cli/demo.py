"""The main job on a simulated survey, in minutes: simulate, train, predict, validate, report."""

import json
import time
from collections.abc import Callable, Mapping
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
from maury.io.workers import one_thread
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.report import figures
from maury.report.figures.first_look import first_look
from maury.report.page.assemble import write_report
from maury.simulation.surveys import simulate_survey
from maury.survey.store import Survey
from maury.training.processes import MemberEvent
from maury.training.runs import train
from maury.version import __version__

_MEMBERS = 2
"""Networks of the demonstration: the fewest that have a spread."""
REDUCED: dict[str, dict[str, Any]] = {
    # Minutes on a laptop: it shows how the program is used, and claims no precision. Chosen.
    "training": {"steps": 2000, "stars": 20_000},
    "ensemble": {"members": _MEMBERS},
}
"""Settings of the demonstration: fewer networks and steps than by default."""
PLAN: dict[str, float] = {
    "labelled": 7.0,
    "observed": 3.0,
    "theory": 13.0,
    "networks": 90.0,
    "completing": 30.0,
    "predicting": 7.0,
    "report": 136.0,
}
"""Stages, and seconds that each took on two cores, with a dozen busy processes beside. Measured."""
_PACE = 1.0
"""Seconds that a second of the plan is taken to last until it is known better; chosen."""
_KNOWN_S = 5.0
"""Seconds of the plan after which what was met weighs as much as `_PACE`; chosen."""
_MOST_UNTOLD = 0.95
"""Share of a stage that tells nothing, however long it lasts: it has not ended; chosen."""


class Clock:
    """What the demonstration does now, how much of it is done, and how long the rest takes.

    Parameters
    ----------
    plan : mapping of str to float
        Stages in their order, and seconds that each is taken to last.
    announce : callable
        Told the text of each stage when it begins, and of what may be looked at.
    now : callable
        Seconds, as `time.monotonic` has them.
    """

    def __init__(
        self,
        plan: Mapping[str, float] = PLAN,
        *,
        announce: Callable[[str], None] = lambda text: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._left, self.announce, self._now = dict(plan), announce, now
        self._start = self._began = now()
        self._done, self._expected = 0.0, 0.0
        self._stage, self.text, self._told = "", "", 0.0

    def begin(self, stage: str, text: str) -> None:
        """Begin a stage. The one before is done; those between were, in a run that was stopped."""
        self._done += self._left.get(self._stage, 0.0)
        order = list(self._left)
        for name in order[: order.index(stage)]:
            del self._left[name]
        self._stage, self.text, self._told = stage, text, 0.0
        self._began, self._expected = self._now(), self._pace() * self._left[stage]
        self.announce(text)

    def count(self, done: float, total: float) -> None:
        """Tell how much of the stage is done."""
        self._told = done / max(total, 1)

    @property
    def share(self) -> float:
        """Share of the whole that is done, 0 to 1."""
        rest = self._rest()
        whole = self._done + sum(self._left.values())
        return 1.0 - rest / whole

    @property
    def seconds_left(self) -> float:
        """Seconds that the rest takes, if all goes on as it went until now."""
        return self._pace() * self._rest()

    def _rest(self) -> float:
        """Seconds of the plan that are left."""
        expected = (self._now() - self._began) / self._expected if self._expected else 0.0
        within = self._told or min(expected, _MOST_UNTOLD)
        return sum(self._left.values()) - within * self._left.get(self._stage, 0.0)

    def _pace(self) -> float:
        """Seconds that a second of the plan takes here."""
        done = self._done + self._told * self._left.get(self._stage, 0.0)
        return (self._now() - self._start + _PACE * _KNOWN_S) / (done + _KNOWN_S)


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


@one_at_a_time("out")
# On a busy machine threads wait for one another: the report took three times the processor time.
@one_thread()
def run_demo(
    out: Path | str = "maury-demo",
    *,
    n_star: int = 3000,
    n_observed: int = 10_000,
    seed: int = 0,
    n_processes: int = 1,
    overwrite: bool = False,
    clock: Clock | None = None,
) -> DemoResult:
    """Run the whole journey on simulated spectra.

    A run that was stopped goes on from the surveys, networks and model that it has made.

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
    clock : Clock, optional
        Told each stage, and how far it is.

    Raises
    ------
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    out, clock = Path(out), clock or Clock()
    refuse_existing(out, overwrite=overwrite)
    # A stopped run goes on only with these equal: pieces of two runs must not end in one report.
    settings = {"version": __version__, "stars": [n_star, n_observed], "seed": seed}
    work = _work_directory(out, settings)
    labelled = _labelled(work, n_star, seed, clock)
    observed = _observed(work, n_observed, seed, clock)
    model = _trained(work, labelled, seed, clock)
    clock.begin("predicting", "predicting the observed stars")
    path = work / "catalogue.fits"
    catalogue = predict(model, observed, path, overwrite=True, progress=clock.count)
    clock.begin("report", "validating on held-out stars, and drawing the report")
    report = validate(model, labelled)
    (work / "validation.json").write_text(report.to_json(), "utf-8")
    _draw(work, catalogue, report)
    write_report(
        model,
        work / "report",
        survey=labelled,
        observed=path,
        seed=seed,
        n_processes=n_processes,
        overwrite=True,
    )
    # Under its name only when all is there: a half-made directory is never taken for a result.
    publish(work, out, overwrite=overwrite)
    return DemoResult(out, report, _summary(out, catalogue, seed))


def _labelled(work: Path, n_star: int, seed: int, clock: Clock) -> Survey:
    """Return the labelled survey; a first picture of it is drawn beside it."""
    path, picture = work / "labelled.zarr", work / "first-look.png"
    if path.exists():
        survey = Survey.open(path)
    else:
        clock.begin("labelled", f"simulating {n_star} labelled stars")
        survey = simulate_survey(path, n_star=n_star, seed=seed, progress=clock.count)
    if not picture.exists():
        with writing(picture, overwrite=True) as partial:
            first_look(survey).savefig(partial, format="png", dpi=150)
        clock.announce(f"the first picture, five of their spectra: {picture}")
    return survey


def _observed(work: Path, n_observed: int, seed: int, clock: Clock) -> Survey:
    path = work / "observed.zarr"
    if path.exists():
        return Survey.open(path)
    clock.begin("observed", f"simulating {n_observed} observed stars in the discs of the Galaxy")
    return simulate_survey(
        path,
        n_star=n_observed,
        # Another seed, or the observed stars would be the labelled ones again.
        seed=seed + 1,
        observed=True,
        galaxy=True,
        progress=clock.count,
    )


def _trained(work: Path, labelled: Survey, seed: int, clock: Clock) -> Model:
    """Return the model, which is the long part."""
    path = work / "model"
    if path.exists():
        return Model.open(path)
    share: dict[int, float] = {}

    def follow(event: MemberEvent) -> None:
        if not share:
            clock.begin("networks", f"training {_MEMBERS} networks")
        share[event.member] = event.epoch / event.n_epochs
        clock.count(sum(share.values()), _MEMBERS)
        if sum(share.values()) == _MEMBERS:
            clock.begin("completing", "calibrating their errors, and auditing their labels")

    clock.begin("theory", "calibrating theory on the labelled stars")
    return train(labelled, path, seed=seed, config=REDUCED, progress=follow)


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
  maury init DIR                          any other folder: guesses a description of it
  maury ingest toml SURVEY.toml my.zarr   as described; see docs/guides/ingest.md
  maury train my.zarr my-model
  maury validate my-model my.zarr
  maury predict my-model my.zarr labels.fits
and what the demonstration made, in the browser, star by star:
  maury explore {out}/catalogue.fits --survey {out}/observed.zarr --model {out}/model"""
