"""The colour-magnitude plane: of magnitudes that the catalogue has, or the survey beside it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maury.io.arrays import AnyArray, Float64Array
from maury.labels.columns import BANDS, OBSERVED
from maury.prediction.stored import StoredCatalogue
from maury.survey.store import Survey

if TYPE_CHECKING:
    import pyarrow as pa

_COLUMN = {band.name: band.column for band in BANDS}
# Blue band, red band, magnitude: the widest colour of the most precise photometry first.
_PLANES = (("BP", "RP", "G"), ("J", "Ks", "Ks"), ("W1", "W2", "W1"))


@dataclass(frozen=True)
class ColourMagnitude:
    """Bands of a plane: the colour is `blue` less `red`."""

    blue: str
    red: str
    magnitude: str

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of apparent magnitudes that it is made of."""
        return tuple(dict.fromkeys(_COLUMN[one] for one in (self.blue, self.red, self.magnitude)))

    @property
    def shown(self) -> dict[str, tuple[str, str, str]]:
        """Unit, description and symbol of its two axes, by name."""
        colour, magnitude = f"{self.blue}\N{MINUS SIGN}{self.red}", f"M({self.magnitude})"
        reddened = "not corrected for extinction"
        return {
            "colour_index": ("mag", f"Colour {colour}, {reddened}", colour),
            "absolute_magnitude": (
                "mag",
                f"Absolute magnitude in {self.magnitude} at the median distance by the parallax, "
                f"{reddened}",
                magnitude,
            ),
        }

    def place(
        self, columns: Mapping[str, AnyArray], distance_kpc: Float64Array
    ) -> dict[str, Float64Array]:
        """Return colour and absolute magnitude of some rows, NaN where unknown."""
        blue, red, apparent = (
            np.asarray(columns[_COLUMN[one]], np.float64)
            for one in (self.blue, self.red, self.magnitude)
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            # 10 pc is 0.01 kpc.
            absolute = apparent - 5.0 * np.log10(distance_kpc / 0.01)
        return {"colour_index": blue - red, "absolute_magnitude": absolute}


def plane_of(names: Collection[str]) -> ColourMagnitude | None:
    """Return the first plane that these columns allow, None if there is none."""
    if "parallax" not in names:
        return None
    planes = (ColourMagnitude(*bands) for bands in _PLANES)
    return next((one for one in planes if set(one.columns) <= set(names)), None)


def with_magnitudes(catalogue: StoredCatalogue, survey: Survey | None) -> StoredCatalogue:
    """Return a catalogue with the magnitudes of the survey, if it lacks them.

    It is left as it is where the survey does not hold the same spectra in the same order.
    """
    if survey is None or plane_of(catalogue.names) is not None:
        return catalogue
    extra = set(_COLUMN.values()) & set(survey.column_names) - set(catalogue.names)
    if not extra or not _same_rows(catalogue, survey):
        return catalogue

    def read(names: list[str], start: int) -> Iterator[pa.Table]:
        import pyarrow as pa

        # One column at least, which tells how many rows a block has.
        own = [name for name in names if name not in extra] or catalogue.names[:1]
        for block in catalogue.read(own, start):
            stop = start + len(block)
            columns = {name: block[name] for name in own}
            columns |= {n: pa.array(survey.numbers(n, start, stop)) for n in names if n in extra}
            yield pa.table({name: columns[name] for name in names})
            start = stop

    defined = {column.name: column for column in OBSERVED}
    columns = (*catalogue.columns, *(defined[name] for name in sorted(extra)))
    return replace(catalogue, columns=columns, read=read)


def _same_rows(catalogue: StoredCatalogue, survey: Survey) -> bool:
    if "id" not in catalogue.names or len(catalogue) != survey.n_star:
        return False
    place = 0
    for block in catalogue.blocks(["id"]):
        stop = place + len(block)
        if block["id"].to_pylist() != survey.texts("id", place, stop):
            return False
        place = stop
    return True
