"""Commands that read or simulate a survey."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import (
    Overwrite,
    Scheduler,
    Seed,
    SkipBad,
    StorePath,
    SurveyPath,
    Workers,
    number,
)


def ingest_released(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Directory of the files.")],
    out: StorePath,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Read the layout in which the RAVE CNN authors released their data.

    DIR holds *_spectra.fits and *_parameters.csv; *_labels.csv and *_extra.csv are optional.
    """
    from maury.survey.readers import ingest_released

    with (
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("ingesting") as progress,
    ):
        survey = ingest_released(
            directory, out, overwrite=overwrite, progress=progress, cluster=cluster
        )
    terminal.say_survey(survey)


def ingest_toml(
    config: Annotated[Path, typer.Argument(metavar="SURVEY.toml", help="What to read, and how.")],
    out: StorePath,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
) -> None:
    """Read spectra and tables of any survey, as a short TOML file describes them."""
    from maury.survey.readers import ingest_toml

    with (
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("ingesting") as progress,
    ):
        survey = ingest_toml(
            config,
            out,
            overwrite=overwrite,
            skip_bad=skip_bad,
            progress=progress,
            cluster=cluster,
        )
    terminal.say_survey(survey)


def simulate(
    out: StorePath,
    stars: Annotated[int, number("--stars", least=1, most="rows", help="Number of stars.")] = 3000,
    seed: Seed = 0,
    observed: Annotated[
        bool, typer.Option("--observed", help="The observed population, without labels.")
    ] = False,
    galaxy: Annotated[
        bool,
        typer.Option("--galaxy", help="Place the stars in discs with metallicity gradients."),
    ] = False,
    like: Annotated[
        Path | None,
        typer.Option(
            "--like",
            metavar="SURVEY",
            help="On the pixels of this survey, at its resolving power, noise and S/N.",
        ),
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a RAVE-like survey with the emulator that ships with maury."""
    from maury.simulation.surveys import simulate_survey, simulation_like
    from maury.survey.store import Survey

    model = None if like is None else Survey.open(like)
    chosen = None
    if model is not None:
        if observed or galaxy or workers or scheduler:
            raise typer.BadParameter(
                "--like goes without --observed, --galaxy, --workers and --scheduler"
            )
        chosen = simulation_like(model)
    with (
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("simulating") as progress,
    ):
        survey = simulate_survey(
            out,
            n_star=stars,
            seed=seed,
            observed=observed,
            galaxy=galaxy,
            simulation=chosen,
            like=model,
            overwrite=overwrite,
            progress=progress,
            cluster=cluster,
        )
    terminal.say(survey)


def simulate_xp(
    survey: SurveyPath, out: StorePath, seed: Seed = 0, overwrite: Overwrite = False
) -> None:
    """Write a survey again with SIMULATED Gaia XP coefficients of its stars.

    They follow its labels, A_V and magnitudes. The new survey is marked as simulated.
    """
    from maury.simulation.xp_coefficients import add_simulated_xp
    from maury.survey.store import Survey

    terminal.say(add_simulated_xp(Survey.open(survey), out, seed=seed, overwrite=overwrite))
