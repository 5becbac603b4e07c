"""`maury build`: from spectra and public catalogues to a labelled survey."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import Overwrite


def build(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE.toml", help="What to build, of which files.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT.zarr", help="Survey store to write.")],
    overwrite: Overwrite = False,
) -> None:
    """Match spectra with catalogues, cut, convert labels to one scale, and write a survey.

    Every cut is in the flow table, printed, kept in the store, and written beside it. A run that
    was killed goes on when the same command is given again.
    """
    from maury.survey.assembly import build_survey

    with terminal.bar("building") as progress:
        built = build_survey(recipe, out, overwrite=overwrite, progress=progress)
    # Always shown: a cut that takes most stars away must not go by unseen.
    terminal.show_flow(built.flow)
    for offsets in built.offsets.values():
        terminal.show_offsets(offsets)
    terminal.say(built.survey)
    terminal.say(f"the flow table is in {built.flow_path}")
