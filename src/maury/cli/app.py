"""The command line as a whole: every command by name, and what a failed one says."""

import io
import logging
import sys
from typing import Annotated

import typer

from maury.cli import (
    archives,
    build,
    catalogue,
    crossmatch,
    drift,
    fetch,
    model,
    publish,
    quality,
    survey,
    terminal,
    transfer,
)

_INTERRUPTED = 130
"""Exit code of a process that Ctrl-C ends, as shells have it: 128 + SIGINT."""
app = typer.Typer(
    name="maury",
    help="Stellar labels that can be trusted, from spectra, photometry and astrometry.",
    no_args_is_help=True,
    add_completion=False,
    # A traceback that goes into a bug report is plain text, without the values of variables.
    pretty_exceptions_enable=False,
    # Markup would take words in brackets, such as [alpha/M], for styles, and drop them.
    rich_markup_mode=None,
)
ingest_app = typer.Typer(
    # So that `maury ingest rave-dr6` needs no word more than the name of the survey.
    cls=archives.IngestGroup,
    help="Read files of spectra and tables into a survey store.",
    epilog="For a public survey give its name: maury ingest rave-dr6 PATH OUT.zarr.",
)

ingest_app.command("released")(survey.ingest_released)
ingest_app.command("toml")(survey.ingest_toml)
ingest_app.command("recipe")(archives.ingest_recipe)
app.add_typer(ingest_app, name="ingest", no_args_is_help=True)
app.command("import-keras")(model.import_keras)
for command in (
    # In the order of `maury --help`: a survey, a model, its quality, a catalogue, its publication.
    *(model.demo, archives.surveys, fetch.fetch, crossmatch.crossmatch, build.build),
    *(survey.simulate, model.train, model.methods, transfer.transfer, model.distil, model.info),
    *(quality.validate, quality.audit, quality.coverage, quality.suspects, quality.compare),
    *(drift.drift, catalogue.predict, catalogue.explore, quality.report),
    *(publish.convert, publish.footprint, publish.card, publish.cite),
):
    app.command()(command)


def main() -> None:
    """Run the command line; an error that `maury` raises on purpose is one line, exit code 1."""
    # Imports stand in the functions throughout: a help text must not wait for torch and astropy.
    from maury.errors import MauryError

    for stream in (sys.stdout, sys.stderr):
        # A terminal or a pipe in ASCII shows a name in other letters as escapes, and no traceback.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        app()
    # Only these: a traceback of anything else shows a fault of maury itself.
    except MauryError as error:
        terminal.say(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as ended:
        # typer makes a silent exit of Ctrl-C.
        if isinstance(ended, SystemExit) and ended.code != _INTERRUPTED:
            raise
        terminal.say(
            "stopped; run the same command again, it goes on where it can", file=sys.stderr
        )
        sys.exit(_INTERRUPTED)


def _version(wanted: bool) -> None:
    if wanted:
        from maury.version import __version__

        terminal.say(f"maury {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what goes on.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    handler = logging.StreamHandler()
    # Messages quote file names and headers of strangers, which could steer a terminal.
    handler.setFormatter(terminal.PlainFormatter("%(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level, handlers=[handler])
