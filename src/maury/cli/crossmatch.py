"""`maury crossmatch`: which row of one table is which of another."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maury.cli import terminal
from maury.cli.common import MOST_FLOAT, Overwrite, number

# For the checker of types alone: at run time they would bring astropy into every command.
if TYPE_CHECKING:
    from maury.survey.crossmatch import Match
    from maury.survey.crossmatch.tables import Side

logger = logging.getLogger(__name__)


def crossmatch(
    left: Annotated[Path, typer.Argument(metavar="LEFT", help="Table of the stars to find.")],
    right: Annotated[str, typer.Argument(metavar="RIGHT", help="Table to find them in.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table to write: .parquet, .fits, .ecsv or .vot.")
    ],
    left_columns: Annotated[
        str,
        typer.Option(
            "--left",
            metavar="KEY=COLUMN,...",
            help="Columns of LEFT: id, ra, dec, pmra, pmdec, mag; epoch is a column or a year. "
            "A unit that the file does not state follows a colon: ra=RA:hourangle.",
        ),
    ] = "ra=ra,dec=dec",
    right_columns: Annotated[
        str, typer.Option("--right", metavar="KEY=COLUMN,...", help="The same of RIGHT.")
    ] = "ra=ra,dec=dec,pmra=pmra,pmdec=pmdec,epoch=ref_epoch",
    radius: Annotated[
        float, number("--radius", least=0.0, most=MOST_FLOAT, help="In arcseconds.")
    ] = 2.0,
    ambiguous: Annotated[
        str, typer.Option("--ambiguous", help="Several candidates: flag, drop or nearest.")
    ] = "flag",
    duplicates: Annotated[
        str, typer.Option("--duplicates", help="Rows with one partner: flag, drop or nearest.")
    ] = "flag",
    lead: Annotated[
        float | None,
        number(
            "--lead",
            least=0.0,
            most=MOST_FLOAT,
            help="Nearer by this (arcsec) is clearly the nearest.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        number("--magnitudes", least=0.0, most=MOST_FLOAT, help="Agree within this (mag)."),
    ] = None,
    take: Annotated[
        str | None,
        typer.Option("--take", metavar="COLUMN,...", help="Columns of RIGHT in OUT (default all)."),
    ] = None,
    hats: Annotated[
        bool,
        typer.Option(
            "--hats",
            help="RIGHT is a folder or address of a HATS catalogue (extra allsky).",
        ),
    ] = False,
    overwrite: Overwrite = False,
) -> None:
    """Match two tables by identifier, where both name one, and by position and proper motion.

    OUT has a row for each of LEFT: the columns of both tables, the row of RIGHT (-1: none), the
    separation, the number of candidates, and flags.
    """
    from contextlib import ExitStack

    from maury.io.files import refuse_existing
    from maury.io.tables import open_table
    from maury.survey.crossmatch import tables

    # What is wrong with the output is said before the matching, not after it.
    tables.check_format(out)
    refuse_existing(out, overwrite=overwrite)
    keys = tables.parse_keys(left_columns), tables.parse_keys(right_columns)
    policy: dict[str, Any] = {"ambiguous": ambiguous, "duplicates": duplicates}
    wanted = None if take is None else [name.strip() for name in take.split(",")]
    # Tables are read column by column, so that their files stay open until the result is written.
    with ExitStack() as stack:
        a = tables.Side.of(open_table(left, stack), keys[0])
        if hats:
            from maury.survey.crossmatch.allsky import match_side

            # A catalogue of the whole sky is partitioned by place, and cannot be searched by
            # identifier.
            by_place = {"lead_arcsec": lead, "magnitude_tolerance": tolerance, **policy}
            match, b = match_side(a, right, radius, keys=keys[1], take=wanted, **by_place)
        else:
            b = tables.Side.of(open_table(Path(right), stack), keys[1])
            match = _match(a, b, radius, lead, tolerance, policy)
        tables.write_match(match, a, b, out, take=wanted, overwrite=overwrite)
        report = match.report()
        # No match may be true, but a wrong unit, epoch or column looks the same.
        if not report.n_matched:
            logger.warning("%s", tables.why_none(match, a, b))
    terminal.show_match(report)
    terminal.say(out)


def _match(
    a: "Side",
    b: "Side",
    radius: float,
    lead: float | None,
    tolerance: float | None,
    policy: dict[str, Any],
) -> "Match":
    from maury.errors import ConfigError
    from maury.survey.crossmatch import match_identifiers, match_positions

    if a.ids is not None and b.ids is not None:
        # They would be ignored, and the user would think that they were applied.
        if lead is not None or tolerance is not None:
            raise ConfigError("--lead and --magnitudes are for matches by position; name no 'id'")
        positions = None
        if a.positions is not None and b.positions is not None:
            # Identifiers decide; positions settle equal ones, and a radius flags pairs too far
            # apart.
            positions, policy = (a.positions, b.positions), {**policy, "radius_arcsec": radius}
        return match_identifiers(a.ids, b.ids, positions=positions, **policy)
    if a.positions is None or b.positions is None:
        raise ConfigError("name 'id', or 'ra' and 'dec', of both tables by --left and --right")
    return match_positions(
        a.positions,
        b.positions,
        radius,
        lead_arcsec=lead,
        magnitude_tolerance=tolerance,
        **policy,
    )
