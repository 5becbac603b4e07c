"""`maury surveys` and `maury ingest RECIPE`: public surveys, as recipes describe them."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from maury.cli import terminal
from maury.cli.common import Overwrite, Scheduler, SkipBad, StorePath, Workers


class IngestGroup(TyperGroup):
    """The command ``ingest``: what is none of its commands is the name of a recipe."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Return the command that the first word means, and the words after it."""
        # A recipe that has the name of a command, such as toml, needs the word 'recipe' before it.
        if args and not args[0].startswith("-") and args[0] not in self.commands:
            return "recipe", self.commands["recipe"], args
        return super().resolve_command(ctx, args)


def surveys(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[NAME]", help="A recipe, or the path of a TOML file of your own."),
    ] = None,
) -> None:
    """List the public surveys that maury has recipes of, or show what one says.

    A recipe gives files, columns, units, recommended cuts with their sources, conventions and
    citation.
    """
    from maury.survey.archives import describing, load, names

    if name is None:
        for known in names():
            recipe = load(known)
            terminal.say(f"{known:24} {describing.KINDS[recipe.kind]:20} {recipe.title}")
        return
    from maury.labels.references import entries

    recipe = load(name)
    terminal.say(f"{recipe.name}: {recipe.title}\n{recipe.description}\n")
    for key, value in describing.facts(recipe, entries()):
        terminal.say(f"{key + ':':16} {value}")
    for title, rows in (
        ("files", describing.files(recipe)),
        ("columns", describing.columns(recipe)),
    ):
        if rows:
            terminal.say(f"\n{title}")
            _show(rows)
    if recipe.cut:
        terminal.say("\ncuts")
    for cut, condition, default, why, source in describing.cuts(recipe):
        terminal.say(
            f"  {cut} ({default}): {condition}\n      against: {why}\n      source: {source}"
        )


def _show(rows: list[tuple[str, ...]]) -> None:
    """Print rows of text in columns; the last one is as long as it is."""
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    for row in rows:
        # The last column is not padded, so that a long text leaves no blanks at the end of other
        # lines.
        cells = (cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False))
        terminal.say(f"  {'  '.join(cells)}  {row[-1]}")


def ingest_recipe(
    recipe: Annotated[
        str, typer.Argument(metavar="RECIPE", help="Name of a survey, or a TOML file of your own.")
    ],
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="File of spectra, or folder of them.")
    ],
    out: StorePath,
    arm: Annotated[
        str | None, typer.Option("--arm", help="Which arm (see maury surveys NAME).")
    ] = None,
    workers: Workers = None,
    scheduler: Scheduler = None,
    overwrite: Overwrite = False,
    skip_bad: SkipBad = False,
) -> None:
    """Read spectra of a public survey as published; 'recipe' may be left out.

    maury ingest rave-dr6 PATH OUT.zarr, for example; 'maury surveys' lists the names.
    """
    from maury.survey.archives.ingest import ingest_recipe

    with (
        # Without --workers this process reads by itself: few files are read before others start.
        terminal.cluster(scheduler, workers, local=True) as cluster,
        terminal.bar("ingesting") as progress,
    ):
        survey = ingest_recipe(
            recipe,
            path,
            out,
            arm=arm,
            overwrite=overwrite,
            skip_bad=skip_bad,
            progress=progress,
            cluster=cluster,
        )
    terminal.say_survey(survey)
