"""Options and arguments that the commands share."""

from pathlib import Path
from typing import Annotated, Any

import typer


def number(
    flag: str, *, least: float, most: float | str, help: str, metavar: str | None = None
) -> Any:
    """Return an option that takes a number of a range only.

    Parameters
    ----------
    flag : str
        Its name, such as ``--stars``.
    least : float
        The smallest number.
    most : float or str
        The largest, or the name of the limit of `maury.io.limits` that it is. A number of any size
        would be believed by what makes room for so many.
    help, metavar : str
        As of `typer.Option`.
    """

    def check(value: float | None) -> float | None:
        from maury.io.limits import VARIABLE, current

        if value is None:
            return None
        largest = getattr(current(), most) if isinstance(most, str) else most
        # Not a number compares as false with both ends.
        if not least <= value <= largest:
            raised = f"; {VARIABLE}='{most}=...' raises it" if isinstance(most, str) else ""
            raise typer.BadParameter(f"it must be from {least} to {largest}{raised}")
        return value

    return typer.Option(flag, callback=check, help=help, metavar=metavar)


MOST_PROCESSES = 10_000
"""Processes of one run, some ten times the cores of the largest machines; chosen."""
MOST_FLOAT = 1e9
"""Of options such as a radius in arcseconds, in which nothing is nearly as large; chosen."""

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists at the output.")]
SkipBad = Annotated[
    bool,
    typer.Option(
        "--skip-bad", help="Keep a file that cannot be read as a row of bad pixels, and say why."
    ),
]
# Not negative: numpy's generators refuse such seeds, and torch takes 64 bits.
Seed = Annotated[int, number("--seed", least=0, most=2**63 - 1, help="Seed of everything random.")]
Processes = Annotated[
    int | None,
    number("--processes", least=1, most=MOST_PROCESSES, help="Members trained at a time."),
]
SurveyPath = Annotated[Path, typer.Argument(metavar="SURVEY", help="Survey store (.zarr).")]
ModelPath = Annotated[Path, typer.Argument(metavar="MODEL", help="Model directory.")]
Workers = Annotated[
    int | None,
    number(
        "--workers",
        least=1,
        most=MOST_PROCESSES,
        help="Processes on this machine, or workers to wait for.",
    ),
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
