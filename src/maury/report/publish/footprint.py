"""Where on the sky a survey or a catalogue has stars, as a multi-order coverage map (MOC).

MOC is a standard of the IVOA (version 2.0, 2022); ``mocpy`` (extra ``maury[moc]``) makes it.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import ColumnError, ConfigError, MissingExtra
from maury.io.files import writing
from maury.prediction.catalogue import Catalogue
from maury.prediction.stored import StoredCatalogue
from maury.survey.store import Survey

if TYPE_CHECKING:
    from mocpy import MOC

FORMATS = {".fits": "fits", ".json": "json"}
"""Format by suffix."""
MAX_ORDER = 12
"""Finest order that is made: cells of 0.9 arcminutes."""
# The finest order chosen without being asked, of 3.4 arcminutes: `_STARS_PER_CELL` are 3000 stars
# a square degree there.
_FINEST_CHOICE = 10
# With so many stars a cell of the footprint is empty by chance in 5e-5 of the cases.
_STARS_PER_CELL = 10.0
_CELL_DEG = float(np.degrees(np.sqrt(4 * np.pi / 12)))
"""Side of a cell of order 0, in degrees."""


@dataclass(frozen=True)
class Footprint:
    """Cells of the sky that hold at least one star.

    Attributes
    ----------
    moc : mocpy.MOC
        In the ICRS.
    order : int
        Order of the cells; their side is 58.6 degrees over 2 to this power.
    n_row, n_left_out : int
        Rows with a position, and rows without.
    simulated : bool
        Whether the spectra are simulated.
    """

    moc: "MOC"
    order: int
    n_row: int
    n_left_out: int = 0
    simulated: bool = False

    @classmethod
    def of(
        cls,
        source: Survey | Catalogue | Path | str,
        *,
        order: int | None = None,
        resolution_deg: float | None = None,
    ) -> "Footprint":
        """Return the footprint of a survey or a catalogue, or of what lies at its path.

        Parameters
        ----------
        source
            It has the columns ``ra`` and ``dec``.
        order : int, optional
            Order of the cells, 0 to `MAX_ORDER`.
        resolution_deg : float, optional
            Instead of the order: the largest side that a cell may have, in degrees.

        Raises
        ------
        ColumnError
            If there are no positions.
        ConfigError
            If order and resolution are both given, or out of range.
        MissingExtra
            If ``mocpy`` is not installed.
        """
        if not isinstance(source, Survey | Catalogue):
            path = Path(source)
            is_catalogue = path.is_file() or path.suffix.lower() == ".dataset"
            place: StoredCatalogue | Survey = (
                Catalogue.open(path) if is_catalogue else Survey.open(source)
            )
        else:
            place = source.stored() if isinstance(source, Catalogue) else source
        ra_deg, dec_deg = (place.column(name) for name in ("ra", "dec"))
        found = cls.of_positions(ra_deg, dec_deg, order=order, resolution_deg=resolution_deg)
        return cls(found.moc, found.order, found.n_row, found.n_left_out, place.simulated)

    @classmethod
    def of_positions(
        cls,
        ra_deg: ArrayLike,
        dec_deg: ArrayLike,
        *,
        order: int | None = None,
        resolution_deg: float | None = None,
    ) -> "Footprint":
        """Return the footprint of positions; without order and resolution, density sets the order.

        Then it is the finest, up to 10, at which occupied cells hold ten stars on average: coarser
        maps claim sky that was not observed, finer ones have holes.

        Parameters
        ----------
        ra_deg, dec_deg : (n,) float array_like
            ICRS; rows where one is missing or no angle are left out.
        order : int, optional
            Order of the cells, 0 to `MAX_ORDER`.
        resolution_deg : float, optional
            Instead of the order: the largest side that a cell may have, in degrees.

        Raises
        ------
        ColumnError
            If there are no positions.
        ConfigError
            If order and resolution are both given, or out of range.
        MissingExtra
            If ``mocpy`` is not installed.
        """
        moc = _mocpy()
        wanted = _order(order, resolution_deg)
        ra, dec = (np.asarray(a, dtype=np.float64) for a in (ra_deg, dec_deg))
        with np.errstate(invalid="ignore"):
            # Sentinels such as -9999 are no angles; they would wrap around to a place on the sky.
            valid = np.isfinite(ra) & (np.abs(dec) <= 90.0)
        if not valid.any():
            raise ColumnError(f"none of the {ra.size} rows has a position (ra, dec in degrees)")
        from astropy import units

        lon, lat = (ra[valid] % 360.0) * units.deg, dec[valid] * units.deg
        cells = moc.from_lonlat(lon, lat, max_norder=_FINEST_CHOICE if wanted is None else wanted)
        chosen = _by_density(cells, lon.size) if wanted is None else wanted
        return cls(_coarser(cells, chosen), chosen, int(valid.sum()), int((~valid).sum()))

    @property
    def area_deg2(self) -> float:
        """Area of all cells in square degrees."""
        return float(self.moc.sky_fraction * 4 * np.pi * np.degrees(1.0) ** 2)

    @property
    def resolution_deg(self) -> float:
        """Side of a cell in degrees."""
        return _CELL_DEG / float(2**self.order)

    def __str__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        without = f", {self.n_left_out} rows without a position" if self.n_left_out else ""
        return (
            f"footprint of {self.n_row} {mark}spectra: {self.area_deg2:.1f} square degrees in "
            f"cells of {self.resolution_deg:.3g} degrees (order {self.order}){without}"
        )

    def write(self, path: Path | str, *, overwrite: bool = False) -> None:
        """Write the map as FITS or JSON, as the suffix of `path` says.

        Raises
        ------
        ConfigError
            If the suffix is another.
        OutputExists
            If `path` exists and `overwrite` is false.
        """
        path = Path(path)
        check_suffix(path)
        with writing(path, overwrite=overwrite) as partial:
            form = FORMATS[path.suffix.lower()]
            keywords = {"SIMULATE": self.simulated} if form == "fits" else None
            self.moc.save(str(partial), format=form, fits_keywords=keywords)


def check_suffix(path: Path) -> None:
    """Raise `ConfigError` unless the suffix names a format of maps."""
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(
            f"a footprint is written as FITS or JSON, so its name must end in "
            f"{' or '.join(FORMATS)}, got {path.name!r}"
        )


def _mocpy() -> Any:
    try:
        from mocpy import MOC
    except ImportError as error:
        raise MissingExtra("a footprint needs mocpy: pip install 'maury[moc]'") from error
    return MOC


def _order(order: int | None, resolution_deg: float | None) -> int | None:
    if order is not None and resolution_deg is not None:
        raise ConfigError("give the order of a footprint or its resolution, not both")
    if resolution_deg is not None:
        finest = _CELL_DEG / 2**MAX_ORDER
        if not resolution_deg >= finest:
            raise ConfigError(
                f"the resolution of a footprint must be at least {finest:.4f} degrees, "
                f"got {resolution_deg}"
            )
        # The small number keeps a resolution that is a cell's side exactly at its own order.
        return max(0, int(np.ceil(np.log2(_CELL_DEG / resolution_deg) - 1e-9)))
    if order is not None and not 0 <= order <= MAX_ORDER:
        raise ConfigError(f"the order of a footprint must be 0 to {MAX_ORDER}, got {order}")
    return order


def _coarser(moc: "MOC", order: int) -> "MOC":
    return moc.degrade_to_order(order) if order < moc.max_order else moc


def _by_density(finest: "MOC", n_star: int) -> int:
    """Return the finest order at which occupied cells hold enough stars on average."""
    for order in range(_FINEST_CHOICE, 0, -1):
        occupied = _coarser(finest, order).sky_fraction * 12 * 4**order
        if n_star / occupied >= _STARS_PER_CELL:
            return order
    return 0
