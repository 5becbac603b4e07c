"""Commands that make a catalogue and look at it."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer

from maury.cli import terminal
from maury.cli.common import (
    MOST_PROCESSES,
    ModelPath,
    Overwrite,
    Scheduler,
    Seed,
    SurveyOrToml,
    number,
)


def predict(
    model: ModelPath,
    survey: SurveyOrToml,
    out: Annotated[
        Path,
        typer.Argument(metavar="OUT", help="Catalogue: .fits, .parquet, .vot, .ecsv or .dataset."),
    ],
    without: Annotated[
        list[str] | None,
        typer.Option(
            "--without",
            metavar="INPUT",
            help="Count as missing (repeatable): spectrum, photometry, parallax, a_v or a band.",
        ),
    ] = None,
    correlations: Annotated[
        bool, typer.Option("--correlations", help="Add the correlations of the labels' errors.")
    ] = False,
    given: Annotated[
        str,
        typer.Option(
            "--given",
            metavar="LABEL",
            help="Weigh in this label of the survey, with its error: an asteroseismic logg, say.",
        ),
    ] = "",
    workers: Annotated[
        int | None,
        number(
            "--workers",
            least=1,
            most=MOST_PROCESSES,
            help="Processes on this machine (default: its cores).",
        ),
    ] = None,
    scheduler: Scheduler = None,
    engine: Annotated[
        str, typer.Option("--engine", help="What computes the networks: auto, torch or compiled.")
    ] = "auto",
    by_star: Annotated[
        bool,
        typer.Option("--by-star", help="One row a star: its spectra combined, with honest errors."),
    ] = False,
    samples: Annotated[
        int,
        number(
            "--samples",
            least=0,
            # `maury.prediction.draws`: a star's stream of nine labels then takes 2 GB.
            most=100_000,
            metavar="N",
            help="Write N draws of the labels of each star, to NAME_draws.parquet.",
        ),
    ] = 0,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Write the catalogue of labels of a survey: a row for each spectrum, in order.

    With --by-star a row for each star, in the order in which they first appear. A run that was
    killed goes on when the same command is given again.
    """
    # Not the default of the option: a help text would then differ from machine to machine.
    from maury.io.workers import n_cores
    from maury.prediction.draws import draws_path
    from maury.prediction.streaming import Options, write_catalogue

    with (
        terminal.cluster(scheduler, workers) as cluster,
        terminal.bar("predicting") as progress,
    ):
        written = write_catalogue(
            model,
            survey,
            out,
            options=Options(
                tuple(without or ()),
                correlations,
                engine=engine,
                given=given,
                by_star=by_star,
                samples=samples,
                seed=seed,
            ),
            overwrite=overwrite,
            workers=workers or n_cores(),
            cluster=cluster,
            progress=progress,
        )
    # Nobody may take made-up stars for observed ones, in a log read a year later either.
    mark = " SIMULATED" if written.simulated else ""
    terminal.say(
        f"{written.n_star}{mark} rows in {out}, {written.n_warned} of them with a warning flag"
    )
    terminal.show_commonest_flags(written.flags, written.n_star)
    if samples:
        terminal.say(f"{samples} draws of each in {draws_path(out)}")


def explore(
    catalogue: Annotated[Path, typer.Argument(metavar="CATALOGUE", help="Catalogue to show.")],
    survey: Annotated[
        Path | None, typer.Option("--survey", metavar="SURVEY", help="Show its spectra.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="MODEL", help="Show its fit and sensitivity.")
    ] = None,
    port: Annotated[
        int, number("--port", least=0, most=65535, help="Port on 127.0.0.1; 0: any free one.")
    ] = 0,
    no_browser: Annotated[
        bool, typer.Option("--no-browser", help="Print the link, and open no browser.")
    ] = False,
) -> None:
    """Walk through a catalogue in the browser: linked panels, filters, every star's spectrum.

    The page is served to this machine only, until Ctrl-C.
    """
    from maury.report.explorer import explore

    progress = ExitStack()

    # Called once the port is known, which may be any free one.
    def ready(explorer: Any) -> None:
        progress.close()
        mark = "SIMULATED " if explorer.content.catalogue.simulated else ""
        terminal.say(
            f"{len(explorer.content)} {mark}rows of {catalogue} at {explorer.link}", flush=True
        )
        # Flushed: the server does not return, and a pipe would keep the link to itself.
        terminal.say("Ctrl-C ends it", flush=True)

    with progress:
        stage = progress.enter_context(terminal.stages())
        given: dict[str, Any] = {"survey": survey, "model": model, "port": port}
        explore(catalogue, **given, browser=not no_browser, ready=ready, stage=stage)
