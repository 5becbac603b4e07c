"""Arms of one survey: spectra of the same stars in several stretches of wavelength, as one."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from maury.errors import IdentifierError, LengthMismatch, WavelengthError
from maury.io.arrays import AnyArray, Float64Array, IndexArray, StrArray
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium
from maury.survey.readers.grids import Gridder, join_grids
from maury.survey.readers.pipeline import Piece, ReadRows, Source, read_rows
from maury.survey.store import require_unique

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Arm:
    """Spectra of one arm and their grid.

    Attributes
    ----------
    name : str
        For messages.
    source : Source
    gridder : Gridder
        To the grid of the arm.
    medium : {"air", "vacuum"}
    first_aa : (n_in,) float64
        Wavelengths of its first spectrum.
    table : SourceTable, optional
        Facts of its spectra.
    """

    name: str
    source: Source
    gridder: Gridder
    medium: Medium
    first_aa: Float64Array
    table: SourceTable | None = None


@dataclass(frozen=True)
class ArmsSource:
    """Spectra of all arms side by side, a row per spectrum of the first arm.

    Attributes
    ----------
    arms : sequence of Arm
        In order of wavelength.
    rows : sequence of (n_star,) int
        Row of each arm for each row here; -1 where it has none.
    ids : (n_star,) str, optional
    wave_aa : (n_pixel,) float64
        Grids of all arms, with guards between them.
    take : (n_pixel,) int
        Pixels counted through all arms; -1 for a guard.
    """

    arms: Sequence[Arm]
    rows: Sequence[IndexArray]
    ids: StrArray | None
    wave_aa: Float64Array
    take: IndexArray

    @property
    def n_star(self) -> int:
        """Number of spectra."""
        return int(self.rows[0].size)

    @property
    def simulated(self) -> bool:
        """Whether the files of any arm say so."""
        return any(arm.source.simulated for arm in self.arms)

    @property
    def skip_bad(self) -> bool:
        """Whether a spectrum that cannot be read is bad in its arm instead of an error."""
        return any(arm.source.skip_bad for arm in self.arms)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, arms side by side."""
        parts = [
            read_scattered(arm.source, arm.gridder, rows[start:stop])
            for arm, rows in zip(self.arms, self.rows, strict=True)
        ]
        flux, ivar = (np.hstack([part[k] for part in parts]) for k in (0, 1))
        guard = self.take < 0
        yield Piece(
            self.wave_aa,
            np.where(guard, np.float32(np.nan), flux[:, self.take]),
            np.where(guard, np.float32(0), ivar[:, self.take]),
            " and ".join(arm.name for arm in self.arms),
            joined_reasons([part.unread for part in parts]),
        )


def join_arms(arms: Sequence[Arm]) -> ArmsSource:
    """Put arms side by side, by identifier, or row by row where none has identifiers.

    A spectrum of the first arm that another arm lacks has no good pixel there; spectra that the
    first arm lacks are left out, and counted in a warning.

    Raises
    ------
    IdentifierError
        If only some arms have identifiers, one stands twice, or an arm shares none with the first.
    LengthMismatch
        If arms without identifiers differ in length.
    WavelengthError
        If arms overlap or stand in different media.
    """
    media = {arm.medium for arm in arms}
    if len(media) > 1:
        raise WavelengthError(
            "the arms "
            + ", ".join(f"{arm.name!r} ({arm.medium})" for arm in arms)
            + " stand in different media; bring their wavelengths to one first"
        )
    # Rows follow the first arm named, the grid the order of wavelengths.
    rows = [_rows_of(arm, arms[0]) for arm in arms]
    order = np.argsort([arm.gridder.wave_aa[0] for arm in arms])
    ordered = [arms[k] for k in order]
    names = " and ".join(repr(arm.name) for arm in ordered)
    wave_aa, take = join_grids([arm.gridder.wave_aa for arm in ordered], what=f"arms {names}")
    return ArmsSource(ordered, [rows[k] for k in order], arms[0].source.ids, wave_aa, take)


def _rows_of(arm: Arm, first: Arm) -> IndexArray:
    ids, wanted = arm.source.ids, first.source.ids
    if (ids is None) != (wanted is None):
        raise IdentifierError(
            f"of the arms {first.name!r} and {arm.name!r} only one has identifiers; give 'id' in "
            "both"
        )
    if ids is None or wanted is None:
        if arm.source.n_star != first.source.n_star:
            raise LengthMismatch(
                f"arm {first.name!r} holds {first.source.n_star} spectra, {arm.name!r} "
                f"{arm.source.n_star}; without 'id' they must be as many, in the same order"
            )
        return np.arange(arm.source.n_star)
    require_unique(ids, what=f"arm {arm.name!r}")
    sorting = np.argsort(ids)
    # The last place stands in for "behind all", and fails the comparison below.
    place = np.minimum(np.searchsorted(ids[sorting], wanted), ids.size - 1)
    found = ids[sorting][place] == wanted
    if not found.any():
        raise IdentifierError(
            f"arm {arm.name!r} has none of the identifiers of {first.name!r} (for example "
            f"{str(ids[0])!r} against {str(wanted[0])!r}); correct 'id'"
        )
    absent, left = int((~found).sum()), int(ids.size - found.sum())
    if absent or left:
        logger.warning(
            "arm %r lacks %d spectra of %r, and %d of its own are left out",
            arm.name,
            absent,
            first.name,
            left,
        )
    return np.where(found, sorting[place], -1)


def read_scattered(source: Source, gridder: Gridder, rows: IndexArray) -> ReadRows:
    """Read rows (n,) in any order, on the grid; a row of -1 is all bad."""
    none = np.full((rows.size, gridder.wave_aa.size), np.nan, dtype=np.float32)
    out = ReadRows(
        none, np.zeros_like(none), np.full(rows.size, np.nan), np.full(rows.size, "", dtype=object)
    )
    # Runs of consecutive rows are read in one go; -1 never continues a run.
    edges = np.flatnonzero((np.diff(rows) != 1) | (rows[:-1] < 0)) + 1
    for run in map(slice, [0, *edges], [*edges, rows.size]):
        if rows[run.start] < 0:
            continue
        unknown = np.full(run.stop - run.start, np.nan)
        read = read_rows(source, gridder, int(rows[run.start]), unknown)
        for name in ReadRows._fields:
            getattr(out, name)[run] = getattr(read, name)
    return out


def joined_reasons(parts: Sequence[AnyArray]) -> StrArray:
    """Join why the parts (n,) of each spectrum could not be read; empty where all could."""
    return np.array(["; ".join(filter(None, row)) for row in zip(*parts, strict=True)], np.str_)
