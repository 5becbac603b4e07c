"""Which columns of joined tables mean what: names, units, stand-ins for missing values, labels."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from maury.errors import MauryError
from maury.io.arrays import BoolArray, Float64Array
from maury.labels.columns import OBSERVED
from maury.labels.columns import known as columns_of
from maury.labels.definitions import LABELS, Label
from maury.survey.guessing import naming
from maury.survey.guessing.document import Entry, Section
from maury.survey.guessing.linking import Linked
from maury.survey.plausibility import possible_range
from maury.survey.readers.values import MISSING, MISSING_MAGNITUDES, stands_for_missing

_NINES = re.compile(r"-?9{2,}(?:\.9+)?|-?9\.9{2,}")
_MAGNITUDES = (-5.0, 40.0)
"""Brighter than any star but the Sun, fainter than any telescope sees."""
_MOST_STAND_INS = 4
"""Different numbers that one column has for "missing"; more are a wrong unit, or no numbers."""
_STARS = ("sourceid", "gaiasourceid", "gaiaid", "starid", "apogeeid", "gaiadr3sourceid", "star")
_STRUCTURE = re.compile(
    r"(?:SIMPLE|BITPIX|NAXIS\d*|EXTEND|XTENSION|EXTNAME|[PG]COUNT|TFIELDS|T(?:TYPE|FORM|UNIT)\d+"
    r"|CHECKSUM|DATASUM|BZERO|BSCALE)"
)
"""Cards that FITS itself needs, and that say nothing of a star."""
_NAMED_TABLES = 40
"""Columns left out that a comment names."""


@dataclass(frozen=True)
class Mapped:
    """What the columns of all tables become.

    Attributes
    ----------
    columns : Section
        ``[columns]``.
    labels : list of Section
        ``[[label]]`` of labels that maury does not know by itself.
    """

    columns: Section
    labels: list[Section] = field(default_factory=list)


@dataclass(frozen=True)
class _Candidate:
    linked: Linked
    name: str
    doubtful: bool
    values: Float64Array


def map_columns(joined: Sequence[Linked], first: Sequence[Entry] = ()) -> Mapped:
    """Guess what columns of joined tables mean.

    Parameters
    ----------
    joined : sequence of Linked
        Tables; where two have the same, the earlier one counts.
    first : sequence of Entry
        Entries of ``[columns]`` that are known already.
    """
    found: dict[str, list[_Candidate]] = {}
    left: list[str] = []
    for linked in joined:
        for name in linked.table.names:
            target, doubtful = naming.column_of(name)
            values = None if target in (None, "star_id") else _numbers(linked, name)
            if target is None or values is None:
                left.append(name)
            else:
                found.setdefault(target, []).append(_Candidate(linked, name, doubtful, values))
    for entry in first:
        # What is known needs no guess, and is written once.
        left += [one.name for one in found.pop(entry.key, []) if one.name != _source(entry)]
    labels = _own_labels(found)
    known = {label.name: label for label in (*LABELS, *labels)}
    # An error without its value, or of a label that nobody defined, has no place.
    possible = columns_of(known.values())
    for target in [t for t in found if t.endswith("_error")]:
        if target[:-6] in found and target in possible:
            continue
        left += [one.name for one in found.pop(target)]
    counts = _counts(joined)
    entries = [*first, *_star(joined, counts, first)]
    ordered = sorted(found, key=lambda target: _place(target, known))
    entries += [_entry(one, found[one], counts, known.get(one)) for one in ordered]
    entries += _left_out(left, [e.value for e in entries])
    return Mapped(Section("[columns]", tuple(entries)), [_definition(one) for one in labels])


def _source(entry: Entry) -> object:
    """Return the name of the column that an entry takes."""
    return entry.value["name"] if isinstance(entry.value, Mapping) else entry.value


def _numbers(linked: Linked, name: str) -> Float64Array | None:
    """Return a column in the order of the spectra, None if it holds no numbers."""
    try:
        values: Float64Array = linked.take(linked.table.floats(name), np.nan)
    except MauryError:
        return None
    return values if np.isfinite(values).any() else None


def _counts(joined: Sequence[Linked]) -> Mapping[str, int]:
    names = [name for linked in joined for name in linked.table.names]
    return {name: names.count(name) for name in names}


def _place(target: str, known: Mapping[str, Label]) -> tuple[int, bool]:
    """Return what sorts columns: labels first, each with its error behind it."""
    places = [*known, *(column.name for column in OBSERVED)]
    value = target.removesuffix("_error")
    return (places.index(value) if value in places else len(places)), target != value


def _own_labels(found: Mapping[str, Sequence[_Candidate]]) -> list[Label]:
    """Return definitions of abundances that are not among maury's own labels."""
    standard = {label.name for label in LABELS} | {column.name for column in OBSERVED}
    return [
        Label(
            name=name,
            symbol=naming.symbol_of(name),
            unit="dex",
            description=f"Abundance {naming.symbol_of(name)}",
            range=_range(found[name][0].values),
        )
        for name in found
        if name not in standard and not name.endswith("_error")
    ]


def _range(values: Float64Array) -> tuple[float, float]:
    """Return a plotting range in tenths that holds nearly all values."""
    usual = values[np.isfinite(values) & (np.abs(values) < 9.0)]
    low, high = np.percentile(usual, (0.5, 99.5)) if usual.size else (-0.5, 0.5)
    return float(np.floor(10 * low) / 10), float(np.ceil(10 * high + 1e-9) / 10 + 0.1)


def _definition(label: Label) -> Section:
    why = f"{label.name} is none of maury's own labels; range holds 99 % of the values."
    return Section(
        "[[label]]",
        (
            Entry("name", label.name, why),
            Entry("symbol", label.symbol),
            Entry("unit", label.unit),
            Entry("description", label.description),
            Entry("range", [round(edge, 1) for edge in label.range]),
        ),
    )


def _star(
    joined: Sequence[Linked], counts: Mapping[str, int], first: Sequence[Entry]
) -> list[Entry]:
    """Return the entry ``star_id``: spectra of one star must not be divided by a split."""
    taken = {str(_source(entry)) for entry in first}
    if any(entry.key == "star_id" for entry in first):
        return []
    for linked in joined:
        for name in linked.table.names:
            if naming.plain(name) in _STARS and name not in taken:
                why = "Spectra with one value of it are taken for spectra of one star."
                value = _value(name, linked, counts, {})
                return [Entry("star_id", value, why, doubtful=naming.plain(name) == "star")]
    return []


def _value(
    name: str, linked: Linked, counts: Mapping[str, int], more: Mapping[str, object]
) -> object:
    table = {"table": linked.title} if counts[name] > 1 else {}
    return {"name": name, **table, **more} if table or more else name


def _entry(
    target: str, candidates: Sequence[_Candidate], counts: Mapping[str, int], label: Label | None
) -> Entry:
    # Of spellings of one thing the surest, then the first.
    chosen = min(candidates, key=lambda one: one.doubtful)
    values = chosen.values[np.isfinite(chosen.values)]
    more, notes, doubtful = _corrections(target, values, label, chosen)
    kept = values[~stands_for_missing(values, _missing(target, more))]
    span = f"{kept.min():.6g} to {kept.max():.6g}" if kept.size else "no value left"
    why = f"{kept.size} of {chosen.values.size} spectra have it, {span}"
    others = [f"{one.name} of {one.linked.title}" for one in candidates if one is not chosen]
    if others:
        notes.append(f"also {', '.join(others)}")
    if chosen.doubtful:
        notes.append(f"the name {chosen.name} may mean something else")
    text = "; ".join([why, *notes]) + "."
    return Entry(
        target,
        _value(chosen.name, chosen.linked, counts, more),
        text,
        doubtful or chosen.doubtful or bool(others),
    )


def _missing(target: str, more: Mapping[str, object]) -> Sequence[float]:
    given = more.get("missing")
    if isinstance(given, list):
        return given
    return MISSING + (MISSING_MAGNITUDES if _limits(target, None) == _MAGNITUDES else ())


def _corrections(
    target: str, values: Float64Array, label: Label | None, chosen: _Candidate
) -> tuple[dict[str, object], list[str], bool]:
    """Return keys beside the name (unit, missing), notes on them, and whether they are doubtful."""
    standard = _missing(target, {})
    usual = values[~stands_for_missing(values, standard)]
    limits = _limits(target, label)
    stated = chosen.linked.table.units.get(chosen.name)
    outside = usual[(usual < limits[0]) | (usual > limits[1]) | _nines(usual, limits, label)]
    if stated is None and 2 * outside.size > usual.size:
        unit = _other_unit(target, float(np.median(outside)))
        if unit is not None:
            return {"unit": unit}, [f"the unit {unit} by their size"], True
    if outside.size and stated is None:
        distinct = np.unique(outside)
        if distinct.size > _MOST_STAND_INS:
            note = f"{outside.size} values are none that a star has: a wrong unit or column?"
            return {}, [note], True
        also = np.unique(values[stands_for_missing(values, standard)])
        numbers = [float(f"{one:.9g}") for one in (*distinct, *also)]
        words = ", ".join(f"{one:g} ({int(np.isclose(values, one).sum())})" for one in numbers)
        return {"missing": numbers}, [f"taken as missing (how often): {words}"], False
    n = int(stands_for_missing(values, standard).sum())
    return {}, ([f"{n} more are -9999, 99.99 or the like, which is missing"] if n else []), False


def _limits(target: str, label: Label | None) -> tuple[float, float]:
    if label is not None:
        return possible_range(label)
    units = {column.name: column.unit for column in OBSERVED}
    if units.get(target) == "mag":
        return _MAGNITUDES
    return -np.inf, np.inf


def _nines(values: Float64Array, limits: tuple[float, float], label: Label | None) -> BoolArray:
    """Whether values are written in nines alone, as -99.9 is, where no true one is so far off."""
    found = np.zeros(values.size, dtype=np.bool_)
    # A magnitude of 9.99 is one of many; those of 99 are missing by default.
    if label is None and np.isfinite(limits[0]):
        return found
    low, high = (-900.0, 900.0) if label is None else label.range
    far = (values < 2 * low - high) | (values > 2 * high - low) if label else np.abs(values) > high
    found[far] = [bool(_NINES.fullmatch(f"{value:.7g}")) for value in values[far]]
    return found


def _other_unit(target: str, middle: float) -> str | None:
    if target == "teff":
        # log10 of 3200 to 50 000 K, or thousands of kelvin.
        if 3.5 <= middle <= 4.7:
            return "dex(K)" if middle != round(middle, 1) else None
        if 4.7 < middle < 50.0 or 2.5 < middle < 3.5:
            return "kK"
    return None


def _left_out(names: Sequence[str], used: Sequence[object]) -> list[Entry]:
    taken = {one["name"] if isinstance(one, Mapping) else one for one in used}
    rest = [name for name in dict.fromkeys(names) if name not in taken]
    rest = [name for name in rest if not _STRUCTURE.fullmatch(name)]
    if not rest:
        return []
    more = f" and {len(rest) - _NAMED_TABLES} more" if len(rest) > _NAMED_TABLES else ""
    why = (
        f"Left out: {', '.join(rest[:_NAMED_TABLES])}{more}. A label of your own needs a [[label]] "
        "definition, another input an [[observable]], and a line above."
    )
    return [Entry(why=why)]
