"""Commands of a first day: describe a folder, and check a description before it is read."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import Overwrite


def init(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Spectra and tables.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="SURVEY.toml", help="File (default: FOLDER/survey.toml)."),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Look at a folder of spectra and tables, and write a TOML file that describes it.

    Each guess has a comment that says why; doubtful ones begin with '# check:'. A figure of five
    spectra is written beside the file, and a table shows what would be read.
    """
    from maury.errors import MauryError, OutputError
    from maury.io.files import refuse_existing
    from maury.survey.guessing import init_survey

    target = folder / "survey.toml" if out is None else out
    picture = target.with_suffix(".png")
    refuse_existing(picture, overwrite=overwrite)
    try:
        found = init_survey(folder, target, overwrite=overwrite)
    except OutputError as error:
        # Spectra often lie where only those who made them may write.
        hint = "" if out else "; or name a file elsewhere: --out survey.toml"
        raise OutputError(f"{error}{hint}") from error
    terminal.say(f"{target}: {found.n_check} guess{'es' * (found.n_check != 1)} to check")
    try:
        check(target)
        _draw(target, picture, overwrite)
        terminal.say(picture)
    # The file is there to be corrected: what is wrong with it is the next thing to know.
    except MauryError as error:
        terminal.say(f"as guessed it cannot be read yet: {error}")
    terminal.say(f"next: look at {target}, then 'maury check {target}'")


def check(
    config: Annotated[Path, typer.Argument(metavar="SURVEY.toml", help="As for maury ingest.")],
) -> None:
    """Tell what 'maury ingest toml' would read, before it is run; nothing is written.

    Rows, grid and medium, joins with matched counts, labels with their ranges, and what is left
    out and why. Some spectra are read, evenly through the survey.
    """
    from maury.survey.readers import check_toml

    found = check_toml(config)
    terminal.say(found)
    terminal.show_values(found.joins)
    terminal.show_values(found.values)
    if found.warnings:
        terminal.say(f"warnings: {len(found.warnings)}, see above")


def _draw(target: Path, picture: Path, overwrite: bool) -> None:
    from maury.io.files import writing
    from maury.report.figures.first_look import first_look
    from maury.survey.readers import open_toml

    with open_toml(target) as survey, writing(picture, overwrite=overwrite) as temporary:
        first_look(survey).savefig(temporary, format="png", dpi=150)
