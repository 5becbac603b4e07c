"""Cross-match with catalogues of the whole sky, of any size, in the HATS format.

HATS keeps a catalogue in files of one patch of sky each; LSDB reads them, on this machine or on
Dask workers (Caplar et al. 2025, arXiv:2501.02103). Each file is reduced to the stars that may be
one of ours, moved by their own proper motions, so that no star is lost at the border of a file.
What is left fits in memory, and `maury.survey.crossmatch` decides.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, ConfigError, InputFileError, MissingExtra, suggestion
from maury.io.source_table import SourceTable
from maury.spectra.positions import common_epoch
from maury.survey.crossmatch import Match, Policy, Positions, match_positions
from maury.survey.crossmatch.tables import Side

__all__ = ["HatsColumns", "candidates", "match_hats", "match_side"]

_ORDER = 6
"""HEALPix order (pixels of 0.9 degrees) by which files far from all our stars are left out."""


@dataclass(frozen=True)
class HatsColumns:
    """Columns of a HATS catalogue; those of Gaia DR3 by default.

    Attributes
    ----------
    ra, dec : str
        In degrees.
    pmra, pmdec : str, optional
        In mas/yr.
    epoch : str or float
        A column, or the Julian year of all.
    magnitude : str, optional
    """

    ra: str = "ra"
    dec: str = "dec"
    pmra: str | None = "pmra"
    pmdec: str | None = "pmdec"
    epoch: str | float = "ref_epoch"
    magnitude: str | None = None

    @property
    def names(self) -> list[str]:
        """All columns that are read."""
        given = (self.ra, self.dec, self.pmra, self.pmdec, self.epoch, self.magnitude)
        return [name for name in given if isinstance(name, str)]

    def positions(self, frame: Any) -> Positions:
        """Return the positions of the rows of a data frame."""

        def column(name: str | None) -> Any:
            return None if name is None else frame[name].to_numpy(np.float64, na_value=np.nan)

        epoch = column(self.epoch) if isinstance(self.epoch, str) else self.epoch
        return Positions(
            column(self.ra),
            column(self.dec),
            epoch,
            column(self.pmra),
            column(self.pmdec),
            column(self.magnitude),
        )


def match_hats(
    left: Positions,
    right: Path | str,
    radius_arcsec: float = 2.0,
    *,
    columns: HatsColumns | None = None,
    also: Sequence[str] | None = (),
    epoch_yr: float | None = None,
    ambiguous: Policy = "flag",
    duplicates: Policy = "flag",
    lead_arcsec: float | None = None,
    magnitude_tolerance: float | None = None,
) -> tuple[Match, Any]:
    """Match stars with a HATS catalogue, as `match_positions` does with arrays.

    The work is that of the current Dask client, if there is one, else of threads here.

    Parameters
    ----------
    left : Positions
    right : path-like
        Folder or address of a HATS catalogue.
    radius_arcsec, epoch_yr, ambiguous, duplicates, lead_arcsec, magnitude_tolerance
        As in `maury.survey.crossmatch.match_positions`; the common epoch is by default that of
        `left`.
    columns : HatsColumns, optional
    also : sequence of str, or None
        Further columns that are wanted, such as ``source_id``; None: all.

    Returns
    -------
    match : Match
        Its `index` is a row of `found`.
    found : pandas.DataFrame
        Right rows that are within the radius of a left one.

    Raises
    ------
    MissingExtra
        If LSDB is not installed.
    InputFileError
        If there is no such catalogue.
    ColumnError
        If it has no such column.
    ConfigError
        If a setting is out of its range.
    """
    columns = columns or HatsColumns()
    epoch = common_epoch(left, left) if epoch_yr is None else epoch_yr
    found = candidates(
        left, right, radius_arcsec, columns=columns, also=also, epoch_yr=epoch
    ).reset_index(drop=True)
    match = match_positions(
        left,
        columns.positions(found),
        radius_arcsec,
        epoch_yr=epoch,
        ambiguous=ambiguous,
        duplicates=duplicates,
        lead_arcsec=lead_arcsec,
        magnitude_tolerance=magnitude_tolerance,
    )
    return match, found


def match_side(
    left: Side,
    right: str,
    radius_arcsec: float,
    *,
    keys: Mapping[str, str],
    take: Sequence[str] | None = None,
    **options: Any,
) -> tuple[Match, Side]:
    """Match a table with a HATS catalogue, for `maury.survey.crossmatch.tables.write_match`.

    Parameters
    ----------
    left : Side
        With positions.
    right : str
        Folder or address of a HATS catalogue.
    radius_arcsec : float
    keys : mapping of str to str
        Columns of the catalogue by their meaning; in degrees and mas/yr.
    take : sequence of str, optional
        Columns that are wanted; all by default.
    **options
        Of `match_hats`.

    Raises
    ------
    ConfigError
        If there are no positions, or an identifier is named.
    MissingExtra, InputFileError, ColumnError
        For the reasons that `match_hats` has.
    """
    import pyarrow as pa

    if left.positions is None or "id" in keys or not {"ra", "dec"} <= set(keys):
        raise ConfigError(
            "a HATS catalogue is matched by position: name 'ra' and 'dec', and no 'id'"
        )
    named = {("magnitude" if key == "mag" else key): column for key, column in keys.items()}
    try:
        epoch: str | float = float(named.pop("epoch", "nan"))
    except ValueError:
        epoch = keys["epoch"]
    # Those of `HatsColumns` are Gaia's: what is not named is not guessed for another catalogue.
    defaults: dict[str, Any] = {"pmra": None, "pmdec": None, **named, "epoch": epoch}
    match, found = match_hats(
        left.positions, right, radius_arcsec, columns=HatsColumns(**defaults), also=take, **options
    )
    table = pa.Table.from_pandas(found, preserve_index=False)
    names = tuple(table.column_names)
    source = SourceTable(Path(right), names, table.num_rows, {}, lambda name: table[name])
    return match, Side(source, keys, None, HatsColumns(**defaults).positions(found))


def candidates(
    left: Positions,
    right: Path | str,
    radius_arcsec: float,
    *,
    columns: HatsColumns,
    also: Sequence[str] | None = (),
    epoch_yr: float,
) -> Any:
    """Return the rows of a HATS catalogue within a radius of any star, as a data frame.

    Parameters
    ----------
    left, right, radius_arcsec, columns, also, epoch_yr
        As in `match_hats`.

    Raises
    ------
    MissingExtra, InputFileError, ColumnError
        As `match_hats`.
    """
    try:
        import lsdb
        from mocpy import MOC
    except ImportError as error:
        raise MissingExtra(
            "catalogues of the whole sky need the package lsdb: pip install 'maury[allsky]'"
        ) from error
    usable = left.take(left.usable)
    try:
        # A catalogue may name fewer as its default ones, without what is wanted here.
        catalogue = lsdb.open_catalog(str(right), columns="all")
    except (OSError, ValueError) as error:
        raise InputFileError(f"{right} is no HATS catalogue: {error}") from error
    wanted = list(dict.fromkeys([*columns.names, *(catalogue.columns if also is None else also)]))
    missing = [name for name in wanted if name not in catalogue.columns]
    if missing:
        raise ColumnError(
            f"{right} has no column {missing[0]!r}{suggestion(missing[0], catalogue.columns)}"
        )
    catalogue = catalogue[wanted]
    if not len(usable):
        return catalogue.meta.iloc[:0]
    moc = MOC.from_lonlat(*_lonlat(usable), max_norder=_ORDER).add_neighbours()
    # Whole files alone are left out by it: rows are judged once they are moved to the epoch.
    near = catalogue.search(lsdb.MOCSearch(moc, fine=False))
    return near.map_partitions(
        _near, usable, radius_arcsec, columns, epoch_yr, meta=near.meta
    ).compute()


def _near(
    frame: Any, left: Positions, radius_arcsec: float, columns: HatsColumns, epoch_yr: float
) -> Any:
    """Rows of a data frame that are within the radius of a star."""
    if not len(frame):
        return frame
    # The other way round, as each row of the file is to say whether it is near one of ours.
    found = match_positions(columns.positions(frame), left, radius_arcsec, epoch_yr=epoch_yr)
    return frame[found.matched]


def _lonlat(positions: Positions) -> tuple[Any, Any]:
    from astropy import units as u

    return positions.ra_deg % 360.0 * u.deg, positions.dec_deg * u.deg
