"""The command line as a whole: every command by name, and the options of all."""

import logging
from typing import Annotated

import typer

from maury.cli import (
    archives,
    build,
    catalogue,
    crossmatch,
    drift,
    fetch,
    first,
    joint,
    model,
    publish,
    quality,
    survey,
    terminal,
    transfer,
)

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
app.add_typer(joint.app, name="joint", no_args_is_help=True)
app.command("import-keras")(model.import_keras)
for command in (
    # In the order of `maury --help`: a survey, a model, its quality, a catalogue, its publication.
    *(
        model.demo,
        first.init,
        first.check,
        archives.surveys,
        fetch.fetch,
        crossmatch.crossmatch,
        build.build,
    ),
    *(survey.simulate, survey.simulate_xp, model.train, model.methods),
    *(transfer.transfer, transfer.adapt),
    *(model.distil, model.info),
    *(quality.validate, quality.audit, quality.coverage, quality.suspects, quality.compare),
    *(drift.drift, catalogue.predict, catalogue.explore, quality.report),
    *(publish.convert, publish.footprint, publish.card, publish.cite),
):
    app.command()(command)


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
    modules: Annotated[
        list[str] | None,
        typer.Option(
            "--import", metavar="MODULE", help="A module with networks, methods or readers."
        ),
    ] = None,
) -> None:
    if modules:
        from maury.io.own_parts import name_modules

        name_modules(modules)
    level = logging.INFO if verbose else logging.WARNING
    before = list(logging.getLogger().handlers)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
    for handler in logging.getLogger().handlers:
        # A handler of whoever runs the commands in its own process is not ours to change.
        if handler not in before:
            handler.addFilter(terminal.Once())
