"""The application, and the options that its commands share."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import surveys as surveys_command

app = typer.Typer(
    name="maury",
    help="Stellar labels that can be trusted, from spectra, photometry and astrometry.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
ingest_app = typer.Typer(
    cls=surveys_command.IngestGroup,
    help="Read files of spectra and tables into a survey store.",
    epilog="For a public survey give its name: maury ingest rave-dr6 PATH OUT.zarr.",
)
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at the output.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of everything random.")]
SurveyPath = Annotated[Path, typer.Argument(metavar="SURVEY", help="Survey store (.zarr).")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=1, help="Processes on this machine, or workers to wait for."),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        "--scheduler",
        metavar="ADDRESS",
        help="Work on a Dask cluster: address or file of its scheduler, or 'local'.",
    ),
]
StorePath = Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Survey store to write.")]
