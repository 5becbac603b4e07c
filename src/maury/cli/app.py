"""The command line: each command is one call of the library, with a progress bar and a summary."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer

from maury.cli import build as build_command
from maury.cli import crossmatch as crossmatch_command
from maury.cli import drift as drift_command
from maury.cli import fetch as fetch_command
from maury.cli import publish as publish_commands
from maury.cli import surveys as surveys_command
from maury.cli import terminal
from maury.cli import transfer as transfer_command
from maury.cli.common import (
    Overwrite,
    Seed,
    app,
    ingest_app,
)

app.add_typer(ingest_app, name="ingest", no_args_is_help=True)


def main() -> None:
    """Run the command line; an error that `maury` raises on purpose is one line, exit code 1."""
    from maury.errors import MauryError, printable

    try:
        app()
    except MauryError as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on where it can", file=sys.stderr)
        sys.exit(130)


def _version(wanted: bool) -> None:
    if wanted:
        from maury.version import __version__

        print(f"maury {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what goes on.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")


app.command()(transfer_command.transfer)
app.command()(surveys_command.surveys)
ingest_app.command("recipe")(surveys_command.ingest_recipe)
app.command()(build_command.build)
app.command()(fetch_command.fetch)
app.command()(crossmatch_command.crossmatch)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Directory to write.")] = Path(
        "maury-demo"
    ),
    stars: Annotated[int, typer.Option("--stars", min=100, help="Labelled stars.")] = 3000,
    observed: Annotated[int, typer.Option("--observed", min=1, help="Observed stars.")] = 10000,
    seed: Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Simulate a small survey, train, predict, validate, and draw: the main job in minutes."""
    from maury.cli.demo import run_demo
    from maury.io.workers import n_cores

    result = run_demo(
        out,
        n_star=stars,
        n_observed=observed,
        seed=seed,
        n_processes=n_cores(),
        overwrite=overwrite,
        stage=terminal.demo_stage,
    )
    terminal.show_report(result.report)
    print(result.summary)


for command in (
    drift_command.drift,
    publish_commands.convert,
    publish_commands.footprint,
    publish_commands.card,
    publish_commands.cite,
):
    app.command()(command)
