"""What the page shows of a catalogue: columns as the browser takes them, panels, flags."""

import gzip
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from threading import Lock
from typing import Any

import numpy as np

from maury.io.arrays import AnyArray, Float64Array, Int64Array
from maury.labels.columns import OBSERVED, QUANTILES
from maury.labels.definitions import LABELS
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.prediction.catalogue import Catalogue
from maury.report.cartography.places import galactic, galactocentric
from maury.report.explorer.plain import plain
from maury.version import __version__

_SYMBOLS = {label.name: label.symbol for label in LABELS}
_REVERSED = ("teff", "logg")
# Shares of stars that may lie beyond an axis as it opens, so that single wild ones do not fill it;
# chosen by eye.
_ODD, _FAR, _FAINT = 0.0005, 0.005, 0.02
_HIDDEN_SUFFIXES = (*(f"_{suffix}" for suffix, _ in QUANTILES), "_corr")
# Level of gzip: columns travel within one machine, so that packing must cost less than it saves.
_FAST = 1


@dataclass(frozen=True)
class Shown:
    """One column that the page can draw or filter.

    Attributes
    ----------
    name, symbol, unit, description : str
    group : str
        ``label``, ``error``, ``place`` or ``other``.
    low, high : float
        Range of all but one in a thousand of the values, or one in a hundred of the places.
    dark, bright : float
        Range of the middle 96 % of the values, for colours.
    reverse : bool
        Whether an axis runs the other way, as in a Kiel diagram.
    """

    name: str
    symbol: str
    unit: str
    description: str
    group: str
    low: float
    high: float
    dark: float
    bright: float
    reverse: bool = False


class Content:
    """A catalogue, ready to be sent to the browser column by column.

    Parameters
    ----------
    catalogue : Catalogue
        Any catalogue that maury wrote; labels, positions or flags may be missing.
    name : str
        Name of its file.
    """

    def __init__(self, catalogue: Catalogue, *, name: str) -> None:
        self.catalogue = plain(catalogue, name)
        self.name = name
        self._encoded: dict[str, bytes] = {}
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.catalogue)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels: columns that have an error and that no survey measures."""
        # A magnitude has an error, too; what a survey measures is no label.
        observed = {column.name for column in OBSERVED}
        return tuple(
            n for n in self._numeric if f"{n}_error" in self._numeric and n not in observed
        )

    @cached_property
    def _numeric(self) -> list[str]:
        """Names of the columns of numbers."""
        table = self.catalogue.table
        return [name for name in table.colnames if table[name].dtype.kind in "fiu"]

    @cached_property
    def columns(self) -> dict[str, Shown]:
        """Columns of numbers by name, those computed here last."""
        return {shown.name: shown for shown in self._shown()}

    @cached_property
    def flags(self) -> Int64Array:
        """Bit masks (n_star,); zero without such a column."""
        if "flags" not in self.catalogue.table.colnames:
            return np.zeros(len(self), FLAG_DTYPE)
        return np.asarray(self.catalogue.table["flags"])

    def values(self, name: str) -> Float64Array:
        """Return a column of `columns` as (n_star,) float64, NaN where missing."""
        if name in self._places:
            return self._places[name]
        return np.asarray(self.catalogue.table[name]).astype(np.float64)

    def encoded(self, name: str) -> bytes:
        """Return a column as the browser takes it: float32, gzip.

        Of ``flags``, which have more bits than JavaScript combines, the low 32 of all rows come
        before the high ones.

        The lowest bytes of all rows come first, then the next: so the bytes of the exponents lie
        together and compress.
        """
        # Threads of several requests; two that want one column should not both pack it.
        with self._lock:
            if name not in self._encoded:
                self._encoded[name] = gzip.compress(self._planes(name), _FAST)
            return self._encoded[name]

    def first_view(self) -> tuple[str, ...]:
        """Return the columns that the page asks for before it draws."""
        panels = self.panels()
        names = ["flags", "snr", *(n for pair in panels.values() for n in pair or ())]
        known = (n for n in names if n == "flags" or n in self.columns)
        return tuple(dict.fromkeys(known))

    def panels(self) -> dict[str, tuple[str, str] | None]:
        """Return the columns of each panel; None where the catalogue lacks one."""
        kiel = self._pair("teff", "logg")
        plane = self._pair("m_h", "alpha_m") or self._pair("fe_h", "mg_fe")
        if plane is None:
            left = [n for n in self.label_names if n not in ("teff", "logg")]
            spare = [*left, *(n for n in self.columns if n not in left)]
            plane = (spare[0], spare[1]) if len(spare) > 1 else None
        return {
            "kiel": kiel,
            "plane": plane,
            "sky": self._pair("glon", "glat"),
            "map": self._pair("r_kpc", "z_kpc"),
        }

    def about(self) -> dict[str, Any]:
        """Return what the page must know before it asks for columns, as plain JSON."""
        metadata = self.catalogue.metadata
        model = metadata.get("model")
        return {
            "name": self.name,
            "rows": len(self),
            "simulated": self.catalogue.simulated,
            "trained_on_simulated": bool(
                isinstance(model, Mapping) and model.get("trained_on_simulated_spectra")
            ),
            "errors": str(metadata.get("errors", "")),
            "version": __version__,
            "columns": [asdict(shown) for shown in self.columns.values()],
            "labels": list(self.label_names),
            "panels": self.panels(),
            "flags": self._flag_list(),
        }

    def _pair(self, first: str, second: str) -> tuple[str, str] | None:
        return (first, second) if {first, second} <= set(self.columns) else None

    def _planes(self, name: str) -> bytes:
        if name != "flags":
            return _by_byte(self._single(name))
        words = self.flags.astype("<i8").view("<i4").reshape(-1, 2)
        return b"".join(_by_byte(np.ascontiguousarray(half)) for half in words.T)

    def _single(self, name: str) -> AnyArray:
        return _drawable(self.values(name)).astype("<f4")

    def _flag_list(self) -> list[dict[str, Any]]:
        return [
            {
                "name": str(flag.name),
                "bit": flag.value.bit_length() - 1,
                "warns": flag.warns,
                "text": flag.text,
                "count": int(np.count_nonzero(self.flags & flag.value)),
            }
            for flag in Flag
        ]

    def _shown(self) -> Iterator[Shown]:
        table = self.catalogue.table
        for name in self._numeric:
            if name == "flags" or name.endswith(_HIDDEN_SUFFIXES):
                continue
            group = "label" if name in self.label_names else "other"
            if name.endswith("_error") and name.removesuffix("_error") in self.label_names:
                group = "error"
            unit = str(table[name].unit or "")
            yield self._describe(name, unit, str(table[name].description or ""), group)
        for name, (unit, text) in _PLACES.items():
            if name in self._places:
                yield self._describe(name, unit, text, "place")

    def _describe(self, name: str, unit: str, description: str, group: str) -> Shown:
        values = _drawable(self.values(name))
        known = values[np.isfinite(values)]
        odd = _FAR if group == "place" else _ODD
        ends = [odd, 1 - odd, _FAINT, 1 - _FAINT]
        low, high, dark, bright = np.quantile(known, ends) if known.size else (0.0, 1.0, 0.0, 1.0)
        # A constant column still has an axis that can be drawn.
        if not high > low:
            low, high = low - 0.5, high + 0.5
        if not bright > dark:
            dark, bright = low, high
        ranges = (float(low), float(high), float(dark), float(bright))
        label = name.removesuffix("_error")
        symbol = _SYMBOLS.get(label, _NAMES.get(name, label))
        if name.endswith("_error"):
            symbol = f"error of {symbol}"
        return Shown(name, symbol, unit, description, group, *ranges, name in _REVERSED)

    @cached_property
    def _places(self) -> dict[str, Float64Array]:
        table = self.catalogue.table
        if not {"ra", "dec"} <= set(self._numeric):
            return {}
        longitude, latitude = galactic(table["ra"], table["dec"])
        # A panel of nothing is worse than none.
        if not np.isfinite(longitude).any() and len(self):
            return {}
        places = {"glon": longitude, "glat": latitude}
        if "parallax" in self._numeric:
            ra, dec, parallax = (np.asarray(table[name]) for name in ("ra", "dec", "parallax"))
            error = table["parallax_error"] if "parallax_error" in self._numeric else None
            radius, height = galactocentric(ra, dec, parallax, error_mas=error)
            if np.isfinite(radius).any() or not len(self):
                places |= {"r_kpc": radius, "z_kpc": height}
        return places


def _drawable(values: Float64Array) -> Float64Array:
    """Return values that the page can draw: NaN for what single precision cannot hold."""
    # JavaScript has one NaN to test for; infinity would stretch an axis without end.
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


_PLACES = {
    "glon": ("deg", "Galactic longitude"),
    "glat": ("deg", "Galactic latitude"),
    "r_kpc": ("kpc", "Galactocentric radius, of the median distance by the parallax"),
    "z_kpc": ("kpc", "Height above the Galactic plane, of the median distance by the parallax"),
}
_NAMES = {"glon": "l", "glat": "b", "r_kpc": "R", "z_kpc": "Z", "snr": "S/N"}


def _by_byte(words: AnyArray) -> bytes:
    """Return the lowest bytes of all words of four, then the next."""
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, 4).T).tobytes()
