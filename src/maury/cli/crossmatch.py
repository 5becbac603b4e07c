"""`maury crossmatch`: which row of one table is which of another."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from maury.cli import terminal

if TYPE_CHECKING:
    from maury.survey.crossmatch import Match, Positions

_KEYS = ("id", "ra", "dec", "pmra", "pmdec", "epoch", "mag")
_SUFFIXES = {".fits": "fits", ".parquet": "parquet", ".ecsv": "ascii.ecsv", ".vot": "votable"}


def crossmatch(
    left: Annotated[Path, typer.Argument(metavar="LEFT", help="Table of the stars to find.")],
    right: Annotated[Path, typer.Argument(metavar="RIGHT", help="Table to find them in.")],
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="Table to write: .parquet, .fits, .ecsv or .vot.")
    ],
    left_columns: Annotated[
        str,
        typer.Option(
            "--left",
            metavar="KEY=COLUMN,...",
            help="Columns of LEFT: id, ra, dec, pmra, pmdec, mag; epoch is a column or a year.",
        ),
    ] = "ra=ra,dec=dec",
    right_columns: Annotated[
        str, typer.Option("--right", metavar="KEY=COLUMN,...", help="The same of RIGHT.")
    ] = "ra=ra,dec=dec,pmra=pmra,pmdec=pmdec,epoch=ref_epoch",
    radius: Annotated[float, typer.Option("--radius", min=0.0, help="In arcseconds.")] = 2.0,
    ambiguous: Annotated[
        str, typer.Option("--ambiguous", help="Several candidates: flag, drop or nearest.")
    ] = "flag",
    duplicates: Annotated[
        str, typer.Option("--duplicates", help="Rows with one partner: flag, drop or nearest.")
    ] = "flag",
    lead: Annotated[
        float | None,
        typer.Option("--lead", min=0.0, help="Nearer by this (arcsec) is clearly the nearest."),
    ] = None,
    tolerance: Annotated[
        float | None, typer.Option("--magnitudes", min=0.0, help="Agree within this (mag).")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what exists at the output.")
    ] = False,
) -> None:
    """Match two tables by identifier, where both name one, and by position and proper motion.

    OUT has a row for each of LEFT, with the row of RIGHT (-1: none), the separation, the number of
    candidates, and flags.
    """
    from maury.errors import ConfigError
    from maury.io.files import refuse_existing
    from maury.survey.crossmatch import match_identifiers, match_positions

    if out.suffix not in _SUFFIXES:
        raise ConfigError(f"{out} must end in {', '.join(_SUFFIXES)}")
    refuse_existing(out, overwrite=overwrite)
    a, b = _Side(left, _keys(left_columns)), _Side(right, _keys(right_columns))
    policy: dict[str, Any] = {"ambiguous": ambiguous, "duplicates": duplicates}
    if a.ids is not None and b.ids is not None:
        if lead is not None or tolerance is not None:
            raise ConfigError("--lead and --magnitudes are for matches by position; name no 'id'")
        positions = None
        if a.positions is not None and b.positions is not None:
            positions, policy["radius_arcsec"] = (a.positions, b.positions), radius
        match = match_identifiers(a.ids, b.ids, positions=positions, **policy)
    elif a.positions is not None and b.positions is not None:
        match = match_positions(
            a.positions,
            b.positions,
            radius,
            lead_arcsec=lead,
            magnitude_tolerance=tolerance,
            **policy,
        )
    else:
        raise ConfigError("name 'id', or 'ra' and 'dec', of both tables by --left and --right")
    _write(match, a, b, out, overwrite=overwrite)
    terminal.show_match(match.report())
    terminal.say(out)


class _Side:
    """Identifiers and positions of one table."""

    def __init__(self, path: Path, keys: dict[str, str]) -> None:
        from contextlib import ExitStack

        from maury.io.tables import open_table

        with ExitStack() as stack:
            table = open_table(path, stack)
            self.ids = table.texts(keys["id"]) if "id" in keys else None
            self.positions = _positions(table, keys) if "ra" in keys and "dec" in keys else None


def _keys(text: str) -> dict[str, str]:
    from maury.errors import ConfigError, check_known

    keys = {}
    for part in filter(None, text.split(",")):
        key, found, column = part.partition("=")
        if not found or not column:
            raise ConfigError(f"{part!r} is not of the form KEY=COLUMN, such as ra=RA_ICRS")
        keys[check_known("key", key.strip(), _KEYS)] = column.strip()
    return keys


def _positions(table: Any, keys: dict[str, str]) -> "Positions":
    from maury.survey.crossmatch import Positions

    def column(key: str) -> Any:
        return table.floats(keys[key]) if key in keys else None

    try:
        epoch: Any = float(keys.get("epoch", "nan"))
    except ValueError:
        epoch = column("epoch")
    return Positions(
        column("ra"), column("dec"), epoch, column("pmra"), column("pmdec"), column("mag")
    )


def _write(match: "Match", left: _Side, right: _Side, out: Path, *, overwrite: bool) -> None:
    import json

    import numpy as np
    from astropy.table import Table

    from maury.io.files import writing

    table = Table()
    if left.ids is not None:
        table["left_id"] = left.ids
    if right.ids is not None:
        table["right_id"] = match.take(right.ids, "")
    table["right_row"] = match.index
    table["separation"] = match.separation_arcsec
    table["n_candidate"] = match.n_candidate.astype(np.int32)
    table["next_separation"] = match.next_arcsec
    table["flags"] = match.flags
    table["certain"] = match.certain
    table["separation"].unit = table["next_separation"].unit = "arcsec"
    table.meta["MATCH"] = json.dumps(match.settings)
    with writing(out, overwrite=overwrite) as partial:
        table.write(str(partial), format=_SUFFIXES[out.suffix])
