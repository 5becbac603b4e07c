"""`maury transfer` and `maury adapt`: move a model to another survey, with and without labels."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import (
    ModelPath,
    Overwrite,
    Processes,
    Seed,
    Settings,
    SurveyOrToml,
    number,
)


def transfer(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Source model, of the preset maury.")
    ],
    survey: Annotated[
        Path, typer.Argument(metavar="SURVEY", help="New survey, some of its stars with labels.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model directory to write.")],
    # A wrong one would be learnt as broader or narrower lines, so that it is never guessed.
    resolving_power: Annotated[
        float | None,
        number(
            "--resolving-power",
            least=1.0,
            most=1e7,
            help="Of the new survey, if it does not say.",
        ),
    ] = None,
    members: Annotated[
        int | None,
        number(
            "--members",
            least=1,
            most="members",
            help="Networks (default: as the source model has).",
        ),
    ] = None,
    config: Settings = None,
    seed: Seed = 0,
    processes: Processes = None,
    overwrite: Overwrite = False,
) -> None:
    """Fine-tune a model on a few hundred labelled stars of a survey with another spectrograph.

    A run that was killed goes on when the same command is given again.
    """
    from maury.training.transfer import transfer

    with terminal.member_bars() as (progress, stage):
        target = transfer(
            model,
            survey,
            out,
            resolving_power=resolving_power,
            members=members,
            seed=seed,
            config=config,
            n_processes=processes,
            progress=progress,
            stage=stage,
            overwrite=overwrite,
        )
    terminal.say(target)


def adapt(
    model: ModelPath,
    survey: SurveyOrToml,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Model directory to write.")],
    config: Settings = None,
    seed: Seed = 0,
    processes: Processes = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a model again for a survey without labels, whose lines or bands differ from its own.

    What all stars of the survey have in common ('maury drift' tells it) is taken into the theory.
    A run that was killed goes on when the same command is given again.
    """
    from maury.training.adaptation import adapt

    with terminal.member_bars() as (progress, stage):
        adapted = adapt(
            model,
            survey,
            out,
            seed=seed,
            config=config,
            n_processes=processes,
            progress=progress,
            stage=stage,
            overwrite=overwrite,
        )
    terminal.say(adapted)
    for line in adapted.provenance["adapted"]["found"]:
        terminal.say(f"  {line}")
