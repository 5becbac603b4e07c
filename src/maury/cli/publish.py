"""`maury convert`, `footprint`, `cite` and `card`: out to other programs, readers and authors."""

from pathlib import Path
from typing import Annotated

import typer

from maury.cli import terminal
from maury.cli.common import ModelPath, Overwrite, number


def convert(
    catalogue: Annotated[Path, typer.Argument(metavar="CATALOGUE", help="Catalogue to convert.")],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="Name that ends in .fits, .vot, .parquet, .ecsv, .dataset or .cds."
        ),
    ],
    title: Annotated[
        str | None, typer.Option("--title", help="Title in the ReadMe of a .cds directory.")
    ] = None,
    authors: Annotated[
        list[str] | None,
        typer.Option("--author", metavar="NAME", help="Author in the ReadMe (repeatable)."),
    ] = None,
    bibcode: Annotated[str, typer.Option("--bibcode", help="Of the paper, for the ReadMe.")] = "",
    where: Annotated[
        str,
        typer.Option(
            "--where",
            metavar="EXPRESSION",
            help="Rows to write, by columns and flags: 'snr > 40 & not TRAINING_STAR'.",
        ),
    ] = "",
    overwrite: Overwrite = False,
) -> None:
    """Write a catalogue, or some of its rows, in another format, also as the CDS takes it."""
    from maury.report.publish.cds import Heading
    from maury.report.publish.convert import convert

    heading = None
    if title or authors or bibcode:
        plain = Heading()
        heading = Heading(
            title=title or plain.title,
            authors=tuple(authors or plain.authors),
            bibcode=bibcode,
        )
    n_row = convert(catalogue, out, heading=heading, where=where, overwrite=overwrite)
    terminal.say(f"{n_row} rows in {out}")


def footprint(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Catalogue or survey store with positions.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Map to write: .fits or .json.")],
    order: Annotated[
        int | None,
        number("--order", least=0, most=29, help="Order of the cells (default: by density)."),
    ] = None,
    resolution: Annotated[
        float | None,
        number(
            "--resolution",
            metavar="DEG",
            least=0.0,
            most=360.0,
            help="Largest side of a cell, in degrees.",
        ),
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write where on the sky the stars are, as a multi-order coverage map (MOC)."""
    from maury.io.files import refuse_existing
    from maury.report.publish.footprint import Footprint, check_suffix

    check_suffix(out)
    refuse_existing(out, overwrite=overwrite)
    found = Footprint.of(source, order=order, resolution_deg=resolution)
    found.write(out, overwrite=overwrite)
    terminal.say(found)


def cite(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[WHAT]", help="Model, catalogue, survey store, method, preset or recipe."
        ),
    ] = None,
) -> None:
    """Print BibTeX of all that was used: maury, methods, surveys, libraries."""
    from maury.report.publish.citing import cite, to_bibtex

    terminal.say(to_bibtex(cite(what)), end="")


def card(
    model: ModelPath,
    survey: Annotated[
        Path | None,
        typer.Option("--survey", metavar="SURVEY", help="Measure its validation stars anew."),
    ] = None,
    reports: Annotated[
        list[Path] | None,
        typer.Option(
            "--report", metavar="FILE", help="Add figures of 'maury validate --json' (repeatable)."
        ),
    ] = None,
    json_wanted: Annotated[bool, typer.Option("--json", help="Print JSON, not text.")] = False,
    write: Annotated[
        bool, typer.Option("--write", help="Write the card into the model directory.")
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Print a model's card: data, split, figures of merit, limits, licence, citation."""
    from maury.evaluation.card import card_of, write_card

    found = card_of(model, survey=survey, reports=reports or ())
    if write:
        write_card(found, model, overwrite=overwrite)
    terminal.say(found.to_json() if json_wanted else found.to_markdown(), end="")
