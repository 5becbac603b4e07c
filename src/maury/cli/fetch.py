"""`maury fetch`: the public files of a survey, or the answer of an archive."""

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maury.cli import terminal
from maury.cli.common import number

if TYPE_CHECKING:
    from maury.survey.archives import SurveyRecipe
    from maury.survey.fetch import DownloadPlan

_ASK_ABOVE_MB = 100.0
"""Downloads above are confirmed first: some spectra come unasked, a survey does not. Chosen."""


def fetch(
    survey: Annotated[
        str, typer.Argument(metavar="SURVEY", help="A survey (see maury surveys), or a .toml.")
    ],
    to: Annotated[
        Path | None, typer.Option("--to", metavar="DIR", help="Folder; ./SURVEY by default.")
    ] = None,
    file: Annotated[
        list[str] | None, typer.Option("--file", metavar="NAME", help="Only this (repeatable).")
    ] = None,
    upload: Annotated[
        Path | None,
        typer.Option("--upload", metavar="TABLE", help="Table of stars that the query joins."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be downloaded, and stop.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, however much it is.")] = (
        False
    ),
    ask_above: Annotated[
        float,
        number("--ask-above", metavar="MB", least=0.0, most=math.inf, help="Ask above this size."),
    ] = _ASK_ABOVE_MB,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Download anew what differs.")
    ] = False,
) -> None:
    """Download the public files of a survey.

    The size is said before. A download that was stopped goes on when the same command is given
    again; what is there is compared with its checksum, and not downloaded twice.
    """
    from maury.errors import ConfigError
    from maury.survey.archives import load

    recipe = load(survey)
    # A folder of its own: files of two surveys may have the same name.
    folder = Path(recipe.name) if to is None else to
    if not recipe.file and recipe.query is None:
        raise ConfigError(
            f"{recipe.name} names no files to download; see {recipe.documentation}, or name them "
            "in a recipe of your own"
        )
    names = [one.name for one in recipe.file] + ([recipe.query.name] if recipe.query else [])
    # All names are checked before the first byte is downloaded.
    wanted = [_known(name, names) for name in file or names]
    if any(one.name in wanted for one in recipe.file):
        _files(recipe, folder, wanted, dry_run=dry_run, yes=yes, most=ask_above, new=overwrite)
    if recipe.query is not None and recipe.query.name in wanted:
        _query(recipe, folder, upload, dry_run=dry_run, overwrite=overwrite)


def _agreed() -> bool:
    from maury.errors import ConfigError

    try:
        return typer.confirm("download?")
    except typer.Abort:
        # Ctrl-C at the question stays one; at the end of a script's input there is nobody to
        # answer.
        if sys.stdin.isatty():
            raise
        raise ConfigError("nobody is there to ask; pass --yes to download that much") from None


def _known(name: str, names: list[str]) -> str:
    from maury.errors import check_known

    return check_known("file", name, names)


def _files(
    recipe: "SurveyRecipe",
    folder: Path,
    wanted: list[str],
    *,
    dry_run: bool,
    yes: bool,
    most: float,
    new: bool,
) -> None:
    from maury.survey import fetch as fetching

    only = [one.name for one in recipe.file if one.name in wanted]

    def confirm(plan: "DownloadPlan") -> bool:
        terminal.say(plan)
        # A file of unknown size may be any size, and is asked about.
        small = not plan.n_unknown and plan.to_come <= most * 1e6
        return yes or small or _agreed()

    if dry_run:
        plan = fetching.plan(recipe.file, folder, only=only, overwrite=new)
        terminal.show_plan(plan)
        return
    with terminal.bytes_bar() as progress:
        paths = fetching.fetch(
            recipe.file, folder, only=only, overwrite=new, confirm=confirm, progress=progress
        )
    for path in paths:
        terminal.say(path)
    # Whoever uses the files owes it; it is easily forgotten at the time of the paper.
    if paths and (recipe.acknowledgement or recipe.licence):
        terminal.say("\n".join(filter(None, (recipe.acknowledgement, recipe.licence))))


def _query(
    recipe: "SurveyRecipe", folder: Path, upload: Path | None, *, dry_run: bool, overwrite: bool
) -> None:
    from maury.errors import ConfigError
    from maury.survey.fetch.queries import run_query

    query = recipe.query
    assert query is not None
    if dry_run:
        terminal.say(
            f"asks {query.service}, answer to {folder / query.name}:\n{query.adql.strip()}"
        )
        return
    # Before the archive is asked: its own message would come late, and speak of ADQL.
    if (query.upload is None) != (upload is None):
        raise ConfigError(
            f"the query of {recipe.name} joins no table; leave --upload out"
            if query.upload is None
            else f"the query of {recipe.name} joins a table with {', '.join(query.upload.columns)}"
            "; give it by --upload"
        )
    uploads = {}
    if query.upload is not None and upload is not None:
        # Only the columns that are joined: the table may be large, and hold what is not to be
        # published.
        uploads = {query.upload.table: _columns(upload, query.upload.columns)}
    with terminal.stages() as told, terminal.bytes_bar() as progress:
        path = run_query(
            query, folder, uploads=uploads, overwrite=overwrite, told=told, progress=progress
        )
    terminal.say(path)


def _columns(path: Path, names: tuple[str, ...]) -> dict[str, Any]:
    """Columns to send: whole numbers where they are, else numbers with fractions, else texts."""
    from contextlib import ExitStack

    import numpy as np

    from maury.errors import MauryError
    from maury.io.tables import open_table

    columns: dict[str, Any] = {}
    with ExitStack() as stack:
        table = open_table(path, stack)
        for name in names:
            try:
                texts = table.texts(name)
            except MauryError:
                columns[name] = table.floats(name)
                continue
            try:
                # Gaia identifiers have 19 digits: as float64 they would lose the last three.
                columns[name] = texts.astype(np.int64)
            except ValueError:
                columns[name] = texts
    return columns
