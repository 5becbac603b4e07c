"""What the page shows of a catalogue: columns as the browser takes them, panels, flags."""

import gzip
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from maury.io.arrays import AnyArray, BoolArray, Float64Array
from maury.labels.columns import OBSERVED, QUANTILES
from maury.labels.definitions import LABELS
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.prediction.catalogue import Catalogue
from maury.prediction.stored import BLOCK_ROWS, StoredCatalogue, values_of
from maury.report.cartography.places import galactic, galactocentric, median_distance_kpc
from maury.report.explorer.expression import parse_selection
from maury.report.explorer.photometry import ColourMagnitude, plane_of, with_magnitudes
from maury.report.explorer.plain import KNOWN_BITS, plain
from maury.survey.store import Survey
from maury.version import __version__

_SYMBOLS = {label.name: label.symbol for label in LABELS}
_REVERSED = ("teff", "logg", "absolute_magnitude")
# Shares of stars that may lie beyond an axis as it opens, so that single wild ones do not fill it;
# chosen by eye.
_ODD, _FAR, _FAINT = 0.0005, 0.005, 0.02
_FORMAL = "_formal_error"
_HIDDEN_SUFFIXES = (*(f"_{suffix}" for suffix, _ in QUANTILES), "_corr")
PACKED_ROWS = 2**16
"""Rows whose bytes are sent plane by plane: some 250 kB, which compress as well as all at once."""
_SAMPLE = 2**20
"""Rows of which the range of an axis is found: of one in two thousand, left out, they hold 500."""
_PIECES = 64
"""Pieces of them where a catalogue has more: it may be sorted by place or time."""
_AT_ONCE = 8
"""Columns whose ranges are found at a time: 67 MB of a sample."""
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

    Memory does not grow with its rows: columns are packed in blocks into files, once each.

    Parameters
    ----------
    catalogue : Catalogue or StoredCatalogue
        Any catalogue that maury wrote; labels, positions or flags may be missing. Rows are read
        often and anywhere, which Parquet and tables in memory are good for.
    name : str
        Name of its file.
    folder : Path
        Existing private directory of the packed columns.
    survey : Survey, optional
        Whose magnitudes are shown where the catalogue has none.
    symbols : mapping of str to str, optional
        Of labels that `maury.labels.definitions` does not define.

    Raises
    ------
    ColumnError
        If its flags are no whole numbers.
    """

    def __init__(
        self,
        catalogue: Catalogue | StoredCatalogue,
        *,
        name: str,
        folder: Path,
        survey: Survey | None = None,
        symbols: Mapping[str, str] | None = None,
    ) -> None:
        self.own = plain(catalogue, name)
        """The catalogue itself, as selections of it are written."""
        self.catalogue = with_magnitudes(self.own, survey)
        self.name = name
        self._symbols = _SYMBOLS | _stated_symbols(self.own.metadata) | dict(symbols or {})
        self._folder = folder
        self._packed: dict[str, Path] = {}
        self._lock = Lock()
        self._last: tuple[int, dict[str, Any]] = (-1, {})
        self._kinds = {column.name: column.kind for column in self.catalogue.columns}

    def __len__(self) -> int:
        return len(self.catalogue)

    @cached_property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels: columns that have an error and that no survey measures."""
        # A magnitude has an error, too; what a survey measures is no label.
        observed = {column.name for column in OBSERVED}
        names = dict.fromkeys(self._numeric).keys()
        return tuple(n for n in names if n not in observed and not names.isdisjoint(_errors_of(n)))

    @cached_property
    def _numeric(self) -> list[str]:
        """Names of the columns of numbers."""
        kinds = ("float64", "int32", "int64")
        return [column.name for column in self.catalogue.columns if column.kind in kinds]

    @cached_property
    def columns(self) -> dict[str, Shown]:
        """Columns of numbers by name, those computed here last."""
        return {shown.name: shown for shown in self._shown()}

    @cached_property
    def flag_counts(self) -> dict[Flag, int]:
        """Rows that have each flag, all of them counted."""
        counts = dict.fromkeys(Flag, 0)
        for values in self._values(("flags",)):
            for flag in Flag:
                counts[flag] += int(np.count_nonzero(values["flags"] & flag.value))
        return counts

    def where(self, text: str) -> BoolArray:
        """Return which rows, (n_row,), a selection by expression passes.

        Raises
        ------
        ExpressionError
            If it cannot be read.
        """
        kinds = self._kinds | dict.fromkeys(self._place_names, "float64")
        wanted = parse_selection(text, kinds)
        return np.concatenate([wanted.passes(some) for some in self._values(wanted.names)])

    def row(self, row: int) -> dict[str, Any]:
        """Return the values of a row by column name."""
        known, values = self._last
        if known != row:
            # What is told of a star asks for it again and again.
            values = next(self.catalogue.blocks(start=row))[:1].to_pylist()[0]
            self._last = (row, values)
        return values

    def id_of(self, row: int) -> str:
        """Return the identifier of a row."""
        return str(self.row(row)["id"]) if "id" in self._kinds else f"row {row}"

    def first_rows(self, column: str, texts: Collection[str]) -> dict[str, int]:
        """Return the first row of each of these texts that a column has."""
        import pyarrow as pa
        import pyarrow.compute as pc

        found: dict[str, int] = {}
        if column not in self._kinds:
            return found
        wanted, start = pa.array(list(texts), pa.string()), 0
        for block in self.catalogue.blocks([column]):
            words = block[column].cast(pa.string())
            for place in np.flatnonzero(pc.is_in(words, wanted).to_numpy()).tolist():
                found.setdefault(words[place].as_py(), start + place)
            start += len(block)
            if len(found) == len(wanted):
                break
        return found

    def packed(self, name: str) -> Path:
        """Return the file of a column as the browser takes it: float32, gzip.

        Of each `PACKED_ROWS` rows, the lowest bytes of all come first, then the next: so the bytes
        of the exponents lie together and compress. Of ``flags``, which have more bits than
        JavaScript combines, the low 32 of these rows come before the high ones.
        """
        # Threads of several requests; two that want one column should not both pack it.
        with self._lock:
            if name not in self._packed:
                # Places are worked out together.
                self._pack(self._place_names if name in self._place_names else (name,))
            return self._packed[name]

    def pack_first_view(self) -> None:
        """Pack the columns of the first view in one passage over the rows."""
        with self._lock:
            self._pack(self.first_view())

    def _pack(self, names: Sequence[str]) -> None:
        with ExitStack() as stack:
            files = {}
            for number, name in enumerate(names, len(self._packed)):
                path = self._folder / f"column-{number}.gz"
                files[name] = stack.enter_context(gzip.open(path, "wb", compresslevel=_FAST))
                self._packed[name] = path
            for block in _regrouped(self._values(names), PACKED_ROWS):
                for name, values in block.items():
                    files[name].write(_planes(name, values))

    def _values(self, names: Sequence[str]) -> Iterator[dict[str, AnyArray]]:
        """Yield columns of consecutive rows: flags as such, others as float64, NaN if missing."""
        places = [name for name in names if name in self._place_names]
        stored = [name for name in names if name in self._kinds]
        wanted = dict.fromkeys([*stored, *(self._place_inputs if places else ())])
        if not wanted:
            # Flags that the catalogue lacks.
            for start in range(0, len(self), BLOCK_ROWS):
                n_row = min(BLOCK_ROWS, len(self) - start)
                yield {name: np.zeros(n_row, FLAG_DTYPE) for name in names}
            return
        for block in self.catalogue.blocks(wanted):
            columns = {name: values_of(block[name]) for name in wanted}
            found = _places(columns, self._plane) if places else {}
            numbers = {name: columns[name].astype(np.float64) for name in stored if name != "flags"}
            # Bits that nobody knows here have no name to be shown by.
            flags = columns.get("flags", np.zeros(len(block), FLAG_DTYPE)) & KNOWN_BITS
            all_of: dict[str, AnyArray] = {**numbers, **found, "flags": flags}
            yield {name: all_of[name] for name in names}

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
            "cmd": self._pair("colour_index", "absolute_magnitude"),
            "histogram": self._pair(shown, shown) if (shown := self._most_telling()) else None,
        }

    def _most_telling(self) -> str:
        """Return the column whose histogram is shown first: metallicity, or else what there is."""
        wanted = ("m_h", "fe_h", *self.label_names, "snr", *self.columns)
        return next((name for name in wanted if name in self.columns), "")

    def about(self) -> dict[str, Any]:
        """Return what the page must know before it asks for columns, as plain JSON."""
        metadata = self.catalogue.metadata
        model = metadata.get("model")
        return {
            "name": self.name,
            "rows": len(self),
            "packed_rows": PACKED_ROWS,
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

    def _flag_list(self) -> list[dict[str, Any]]:
        return [
            {
                "name": str(flag.name),
                "bit": flag.value.bit_length() - 1,
                "warns": flag.warns,
                "text": flag.text,
                "count": self.flag_counts[flag],
            }
            for flag in Flag
        ]

    def _shown(self) -> Iterator[Shown]:
        about = {}
        for column in self.catalogue.columns:
            if column.name not in self._numeric or column.name == "flags":
                continue
            if column.name.endswith(_HIDDEN_SUFFIXES):
                continue
            group = "label" if column.name in self.label_names else "other"
            if column.name.endswith("_error"):
                group = "error" if _without_error(column.name) in self.label_names else group
            about[column.name] = (column.unit, column.description, group)
        about |= {name: (*self._possible[name][:2], "place") for name in self._place_names}
        names = list(about)
        for some in (names[k : k + _AT_ONCE] for k in range(0, len(names), _AT_ONCE)):
            values = self._sample(some)
            for name in some:
                yield self._describe(name, *about[name], values[name])

    def _sample(self, names: Sequence[str]) -> dict[str, Float64Array]:
        """Return columns whole, or of pieces spread evenly if they have too many rows."""
        if len(self) <= _SAMPLE:
            blocks = list(self._values(names))
        else:
            step = len(self) // _PIECES
            some = replace(
                self.catalogue,
                n_row=_PIECES * (_SAMPLE // _PIECES),
                read=lambda wanted, start: (
                    self.catalogue.rows(wanted, k * step, _SAMPLE // _PIECES)
                    for k in range(_PIECES)
                ),
            )
            blocks = list(Content(some, name=self.name, folder=self._folder)._values(names))
        return {name: np.concatenate([block[name] for block in blocks]) for name in names}

    def _describe(
        self, name: str, unit: str, description: str, group: str, values: Float64Array
    ) -> Shown:
        values = _drawable(values)
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
        label = _without_error(name)
        place = self._possible.get(name)
        symbol = place[2] if place else self._symbols.get(label, _NAMES.get(name, label))
        if name.endswith("_error"):
            formal = "formal " if name.endswith(_FORMAL) else ""
            symbol = f"{formal}error of {symbol}"
        return Shown(name, symbol, unit, description, group, *ranges, name in _REVERSED)

    @property
    def _place_inputs(self) -> list[str]:
        names = ("ra", "dec", "parallax", "parallax_error")
        magnitudes = () if self._plane is None else self._plane.columns
        return [name for name in (*names, *magnitudes) if name in self._numeric]

    @cached_property
    def _plane(self) -> ColourMagnitude | None:
        return plane_of(self._numeric)

    @cached_property
    def _possible(self) -> dict[str, tuple[str, str, str]]:
        """Unit, description and symbol of the places that may be computed."""
        if not {"ra", "dec"} <= set(self._numeric):
            return {}
        known = dict(tuple(_PLACES.items())[: 4 if "parallax" in self._numeric else 2])
        return known | ({} if self._plane is None else self._plane.shown)

    @cached_property
    def _place_names(self) -> tuple[str, ...]:
        """Places that any row has: a panel of nothing is worse than none."""
        possible = tuple(self._possible)
        found: set[str] = set()
        if not possible:
            return ()
        for block in self.catalogue.blocks(self._place_inputs):
            columns = {name: values_of(block[name]) for name in block.column_names}
            places = _places(columns, self._plane)
            found |= {n for n in possible if len(self) == 0 or np.isfinite(places[n]).any()}
            if len(found) == len(possible):
                break
        return tuple(name for name in possible if name in found)


def _places(
    columns: Mapping[str, AnyArray], plane: ColourMagnitude | None
) -> dict[str, Float64Array]:
    """Return Galactic and Galactocentric places of some rows, and in the colour-magnitude plane."""
    longitude, latitude = galactic(columns["ra"], columns["dec"])
    places = {"glon": longitude, "glat": latitude}
    if "parallax" in columns:
        ra, dec, parallax = (columns[name] for name in ("ra", "dec", "parallax"))
        error = columns.get("parallax_error")
        distance = median_distance_kpc(ra, dec, parallax, error_mas=error)
        radius, height = galactocentric(ra, dec, distance)
        places |= {"r_kpc": radius, "z_kpc": height}
        places |= {} if plane is None else plane.place(columns, distance)
    return places


def _regrouped(
    blocks: Iterable[Mapping[str, AnyArray]], n_row: int
) -> Iterator[dict[str, AnyArray]]:
    """Yield the same rows, so many at a time."""
    held: dict[str, AnyArray] = {}
    for block in blocks:
        held = {n: np.concatenate([held[n], v]) if n in held else v for n, v in block.items()}
        while held and len(next(iter(held.values()))) >= n_row:
            yield {name: values[:n_row] for name, values in held.items()}
            held = {name: values[n_row:] for name, values in held.items()}
    yield held


def _planes(name: str, values: AnyArray) -> bytes:
    if name == "flags":
        words = values.astype("<i8").view("<i4").reshape(-1, 2)
        return b"".join(_by_byte(np.ascontiguousarray(half)) for half in words.T)
    return _by_byte(_drawable(values).astype("<f4"))


def _drawable(values: Float64Array) -> Float64Array:
    """Return values that the page can draw: NaN for what single precision cannot hold."""
    # JavaScript has one NaN to test for; infinity would stretch an axis without end.
    return np.where(np.abs(values) <= np.finfo(np.float32).max, values, np.nan)


_PLACES = {
    "glon": ("deg", "Galactic longitude", "l"),
    "glat": ("deg", "Galactic latitude", "b"),
    "r_kpc": ("kpc", "Galactocentric radius, of the median distance by the parallax", "R"),
    "z_kpc": (
        "kpc",
        "Height above the Galactic plane, of the median distance by the parallax",
        "Z",
    ),
}
_NAMES = {"snr": "S/N"}


def _stated_symbols(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return the symbols of labels that the catalogue states, as far as they are texts."""
    stated = metadata.get("symbols")
    if not isinstance(stated, Mapping):
        return {}
    # Of a stranger, maybe: longer ones would push the page out of shape.
    return {str(n): s for n, s in stated.items() if isinstance(s, str) and 0 < len(s) <= 40}


def _by_byte(words: AnyArray) -> bytes:
    """Return the lowest bytes of all words of four, then the next."""
    return np.ascontiguousarray(words.view(np.uint8).reshape(-1, 4).T).tobytes()


def _errors_of(label: str) -> tuple[str, str]:
    """Return names that the column of a label's error may have: calibrated, and not."""
    return f"{label}_error", f"{label}{_FORMAL}"


def _without_error(name: str) -> str:
    return name.removesuffix(_FORMAL).removesuffix("_error")
