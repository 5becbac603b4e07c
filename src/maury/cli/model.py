"""Commands that train, import and show models."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from maury.cli import terminal
from maury.cli.common import (
    ModelPath,
    Overwrite,
    Processes,
    Scheduler,
    Seed,
    Settings,
    SurveyPath,
    Workers,
    number,
)

if TYPE_CHECKING:
    from maury.labels.definitions import Label
    from maury.model.directory import Model
    from maury.prediction.stored import StoredCatalogue


def train(
    survey: SurveyPath,
    model: ModelPath,
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset", help="maury (the default), guiglion2020, starnet, ... (see maury methods)."
        ),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option("--method", help="cannon, payne, ferre, ... or a preset (see maury methods)."),
    ] = None,
    members: Annotated[
        int | None,
        number("--members", least=1, most="members", help="Networks in the ensemble (default 4)."),
    ] = None,
    config: Settings = None,
    leave_out: Annotated[
        Path | None,
        typer.Option(
            "--leave-out", metavar="FILE", help="Table of ids not to learn from (maury suspects)."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", help="star (the default) or published (no independent test)."),
    ] = None,
    theory_only: Annotated[
        bool,
        typer.Option(
            "--theory-only",
            help="Learn from simulated stars alone, on the pixels of SURVEY: it needs no labels.",
        ),
    ] = False,
    seed: Seed = 0,
    processes: Processes = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Train an ensemble, or another method, on the labelled spectra of a survey.

    A run that was killed goes on when the same command is given again.
    """
    from maury.training.runs import train
    from maury.training.theory_only import train_on_theory

    if theory_only:
        if any((preset, method, leave_out, split)):
            raise typer.BadParameter(
                "--theory-only goes without --preset, --method, --leave-out and --split"
            )
        learn = train_on_theory
    else:
        learn = partial(train, preset=preset, method=method, leave_out=leave_out, split=split)
    with (
        terminal.cluster(scheduler, workers) as cluster,
        terminal.member_bars() as (progress, stage),
    ):
        result = learn(
            survey,
            model,
            members=members,
            seed=seed,
            config=config,
            n_processes=processes or workers,
            cluster=cluster,
            progress=progress,
            stage=stage,
            overwrite=overwrite,
        )
    terminal.say(result)
    # Held-out stars of the sky are there for a model that learnt from such alone.
    if theory_only:
        terminal.say(f"next: maury predict {model} {survey} labels.fits")
    else:
        terminal.say(f"next: maury validate {model} {survey}")


def methods() -> None:
    """List the methods and presets, with their papers."""
    from maury.methods.registry import METHODS, method_class
    from maury.model.networks.published import PRESETS

    for name in METHODS:
        terminal.say(f"{name:12} {method_class(name).paper}")
    for name, network in PRESETS.items():
        terminal.say(f"{name:12} {network.paper}")


def distil(
    model: ModelPath,
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="[SURVEY] OUT", help="Spectra to learn from; directory to write."),
    ],
    config: Settings = None,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Train one small network on all that an ensemble predicts, for very large surveys.

    A run that was killed goes on when the same command is given again.
    """
    if len(paths) > 2:
        # The survey stands before the output as in all commands, though it may be left out: so one
        # list.
        raise typer.BadParameter("give a model, at most one survey, and the directory to write")
    from maury.training.distillation import distil

    survey = paths[0] if len(paths) == 2 else None
    with terminal.bar("distilling") as progress:
        student = distil(
            model,
            paths[-1],
            survey=survey,
            seed=seed,
            config=config,
            progress=progress,
            overwrite=overwrite,
        )
    terminal.say(student)


def import_keras(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of .h5 files.")],
    model: ModelPath,
    overwrite: Overwrite = False,
) -> None:
    """Turn the released Keras networks of Guiglion et al. (2020) into a model directory."""
    from maury.evaluation.card import add_card
    from maury.model.keras import import_keras

    imported = import_keras(directory, model, overwrite=overwrite)
    card = add_card(imported)
    terminal.say(imported)
    for limit in card.limits:
        terminal.say(f"- {limit}")
    terminal.say(f"licence: {card.licence}; cite: {card.citation}")


def info(
    path: Annotated[
        Path, typer.Argument(help="Survey store, model directory, joint model or catalogue.")
    ],
) -> None:
    """Say what a survey store, a model directory or a catalogue holds.

    Stars and how they were identified, grid, resolving power, whether it is simulated, and S/N and
    labels with their ranges, missing values and outliers: outside the plotting range by more than
    half its width.
    """
    from maury.errors import InputFileError
    from maury.model.directory import Model
    from maury.model.joint_model import JointModel, is_joint
    from maury.prediction.catalogue import Catalogue
    from maury.survey.store import Survey
    from maury.survey.summary import summarize

    if not path.exists():
        raise InputFileError(
            f"{path}: there is no such file or directory; give a survey store, a model "
            "directory, a joint model or a catalogue"
        )
    # Told by content: all three may be directories, of any name.
    if (path / "model.json").is_file():
        _show_model(Model.open(path))
    elif is_joint(path):
        joint = JointModel.open(path)
        terminal.say(joint)
        for name, model in joint.models.items():
            terminal.say(f"\n{name}:")
            _show_model(model)
    elif path.is_dir() and path.suffix.lower() != ".dataset":
        found = summarize(Survey.open(path))
        terminal.say(found)
        terminal.show_values(found.rows)
    else:
        _show_catalogue(Catalogue.open(path))


def _show_model(model: "Model") -> None:
    split, scaling = model.split, model.scaling.labels
    rows = ", ".join(f"{part} {n}" for part, n in split.n_rows.items())
    known = ", ".join(f"{how} {n}" for how, n in split.identified.items()) or "not recorded"
    terminal.say(model)
    terminal.say(f"split: by {split.rule}; spectra: {rows}; stars identified by: {known}")
    survey = model.provenance.get("survey", "not recorded")
    terminal.say(f"trained on: {survey.get('name') if isinstance(survey, dict) else survey}")
    if isinstance(theory := model.training.get("theory"), dict):
        told = f"{theory.get('name')}, as {theory.get('reason')}"
        terminal.say(f"theory of the simulated stars: {told}")
    terminal.say(f"attachments: {', '.join(model.attachments) or 'none'}")
    terminal.say(f"licence: {model.provenance.get('licence', 'not recorded')}")
    terminal.say(f"cite: {model.citation}")
    ranges = zip(model.labels, scaling.minimum, scaling.maximum, strict=True)
    table = [(one.name, one.unit, f"{low:.5g}", f"{high:.5g}") for one, low, high in ranges]
    terminal.show_values([("", "unit", "lowest in training", "highest"), *table])


def _show_catalogue(catalogue: "StoredCatalogue") -> None:
    import numpy as np

    from maury.survey.summary import label_rows

    terminal.say(catalogue)
    kinds = {"warn": ("bool",), "flags": ("int32", "int64")}
    told = [c.name for c in catalogue.columns if c.kind in kinds.get(c.name, ())]
    # Bits as the catalogue itself states them, which may be of another version.
    flags = catalogue.metadata.get("flags", {}) if "flags" in told else {}
    n_warned, counts = 0, dict.fromkeys(flags, 0)
    for block in catalogue.blocks(told) if told else ():
        n_warned += int(np.sum(block["warn"].to_numpy())) if "warn" in told else 0
        for name, about in flags.items():
            counts[name] += int(np.sum((block["flags"].to_numpy() & (1 << about["bit"])) != 0))
    if "warn" in told:
        terminal.say(f"with a warning: {n_warned} of {len(catalogue)}")
    for name, n in counts.items():
        if n:
            terminal.say(f"  {name:<24} {n:>9}  {flags[name]['text']}")
    terminal.show_values(label_rows(_labels_of(catalogue), catalogue.column))


def _labels_of(catalogue: "StoredCatalogue") -> list["Label"]:
    """Labels of a catalogue: columns of numbers that have an error, and are no observables."""
    import numpy as np

    from maury.labels.columns import OBSERVED
    from maury.labels.definitions import LABELS, Label

    names = {c.name for c in catalogue.columns}
    known = {label.name: label for label in LABELS}
    observed = {column.name for column in OBSERVED}
    found = []
    for c in catalogue.columns:
        if c.kind not in ("float64", "int32", "int64") or c.name in observed:
            continue
        if c.name in known:
            found.append(known[c.name])
        elif names & {f"{c.name}_error", f"{c.name}_formal_error"}:
            # Of its range a catalogue says nothing.
            everything = (-np.finfo(np.float64).max / 4, np.finfo(np.float64).max / 4)
            about = c.description or c.name
            unit = c.unit or "dex"
            one = Label(name=c.name, symbol=c.name, unit=unit, description=about, range=everything)
            found.append(one)
    return found


def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")] = Path(
        "maury-demo"
    ),
    stars: Annotated[int, number("--stars", least=100, most="rows", help="Labelled stars.")] = 3000,
    observed: Annotated[
        int, number("--observed", least=1, most="rows", help="Observed stars.")
    ] = 10000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a small survey, train, predict, validate, and draw: the main job in minutes."""
    # Before the libraries are loaded, which takes a busy machine some seconds.
    terminal.say("minutes; stopped, it goes on when the same command is given again", flush=True)
    from maury.cli.demo import Clock, run_demo
    from maury.io.workers import n_cores

    clock = Clock(announce=partial(terminal.say, flush=True))
    with terminal.whole(clock):
        result = run_demo(
            out,
            n_star=stars,
            n_observed=observed,
            seed=seed,
            n_processes=n_cores(),
            overwrite=overwrite,
            clock=clock,
        )
    terminal.show_report(result.report)
    terminal.say(result.summary)
