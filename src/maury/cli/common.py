"""Options and arguments that the commands share."""

from pathlib import Path
from typing import Annotated

import typer

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at the output.")]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Keep a file that cannot be read as a row of bad pixels, and say why."
    ),
]
# Not negative: numpy's generators refuse such seeds, and torch takes 64 bits.
Seed = Annotated[
    int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of everything random.")
]
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
Settings = Annotated[Path | None, typer.Option("--config", help="TOML file with all settings.")]
SurveyOrToml = Annotated[
    Path, typer.Argument(metavar="SURVEY", help="Survey store, or TOML file as for ingest.")
]
