"""Values that no star has: told once, when a store is written, with the key that mends them.

A file says -99.9 for "missing", a column is log10 of what it is called, wavelengths are in another
unit: all of it can be stored and learned from without an error. Every way into a store passes
here (`maury.survey.writer.SurveyWriter`), so that ingest, build and simulation are checked alike.
"""

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from maury.errors import WavelengthError
from maury.io.arrays import AnyArray, BoolArray, Float64Array
from maury.labels.definitions import Label

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plausible:
    """Where spectra and labels of stars lie; what is far outside is an error of the file.

    Attributes
    ----------
    possible_aa : (float, float)
        Soft X-rays to a tenth of a millimetre: beyond, stars have no spectra but by a wrong unit.
    usual_aa : (float, float)
        From the Lyman limit, below which interstellar hydrogen takes the light of nearly all
        stars, to the red end of the M band and of NIRSpec.
    wanted_aa : (float, float)
        Where wavelengths lie once the right unit is found, for the hint: spectrographs on the
        ground, and STIS.
    teff_k : (float, float)
        Below the coolest brown dwarfs, above the hottest white dwarfs.
    logg_dex : (float, float)
        Beyond the largest supergiants, and the heaviest white dwarfs.
    metals_dex, ratio_dex : float
        How far [X/H] and other logarithms may lie outside the range of their definition: beyond
        the poorest stars ([Fe/H] = -6.2, Nordlander et al. 2019) and their [C/Fe] of 4 to 5.
    widths : float
        The same for any other label, in widths of its range; chosen, not measured.
    least_rows : int
        Rows from which one value alone is suspicious; chosen, not measured.
    warm_k : (float, float)
        Stars of which next to none is a giant: log g of a sample of them tells its unit.
    warm_logg_dex : float
        Below it lie their log g per SI unit (2.0 to 2.7), above it those in cgs (3.5 to 4.7).
    """

    possible_aa: tuple[float, float] = (50.0, 1e6)
    usual_aa: tuple[float, float] = (911.0, 55000.0)
    wanted_aa: tuple[float, float] = (1100.0, 55000.0)
    teff_k: tuple[float, float] = (200.0, 300_000.0)
    logg_dex: tuple[float, float] = (-2.0, 9.7)
    metals_dex: float = 5.5
    ratio_dex: float = 5.0
    widths: float = 5.0
    least_rows: int = 5
    warm_k: tuple[float, float] = (5500.0, 6800.0)
    warm_logg_dex: float = 3.1


PLAUSIBLE = Plausible()
_NINES = re.compile(r"-?9*\.?9+")
_LISTED = 5
"""Outlying values that a message lists; their number is always given."""


def check_range_of_wavelengths(wave_aa: Float64Array, *, what: str) -> None:
    """Refuse a grid where stars have no spectra, and warn of one where next to none is taken.

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
        In angstrom.
    what : str
        Whose grid, for the message.

    Raises
    ------
    WavelengthError
        If it lies outside of `Plausible.possible_aa`.
    """
    first, last = float(wave_aa[0]), float(wave_aa[-1])
    if _inside((first, last), PLAUSIBLE.usual_aa):
        return
    text = f"{what}: wavelengths run from {first:.6g} to {last:.6g} angstrom, where "
    hint = _other_units(first, last)
    if not _inside((first, last), PLAUSIBLE.possible_aa):
        raise WavelengthError(f"{text}no star has a spectrum; {hint}")
    logger.warning("%snext to no spectra of stars are taken; %s", text, hint)


def _other_units(first: float, last: float) -> str:
    """Return which keys would bring a grid to where spectra are taken."""
    # Ten to the power of a wavelength overflows: that reading then just does not fit.
    with np.errstate(over="ignore"):
        readings = {
            "log = true": np.power(10.0, [first, last]),
            'unit = "nm"': np.array([first, last]) * 10.0,
            'unit = "um"': np.array([first, last]) * 1e4,
            'unit = "m"': np.array([first, last]) * 1e10,
            # Where "nm" was stated of angstrom.
            "no unit": np.array([first, last]) / 10.0,
        }
    fitting = [
        f"{key} ({low:.5g} to {high:.5g})"
        for key, (low, high) in readings.items()
        if _inside((low, high), PLAUSIBLE.wanted_aa)
    ]
    if not fitting:
        return "correct 'unit' or 'log' in [wavelength]"
    return f"if they are not in angstrom, write in [wavelength] {' or '.join(fitting)}"


def _inside(pair: tuple[float, float], limits: tuple[float, float]) -> bool:
    return limits[0] <= pair[0] and pair[1] <= limits[1]


def tell_of_labels(
    columns: Mapping[str, AnyArray], labels: Sequence[Label], *, what: str
) -> list[str]:
    """Warn once of labels that no star has, or that are the same in every row.

    Parameters
    ----------
    columns : mapping of str to (n_star,) array
        NaN where missing.
    labels : sequence of Label
        Those that may be among the columns.
    what : str
        Whose labels, for the message.

    Returns
    -------
    found : list of str
        What the warning says of each label.
    """
    names = [label.name for label in labels if label.name in columns]
    known = {name: np.asarray(columns[name], dtype=np.float64) for name in names}
    found: list[str] = []
    for label in labels:
        if label.name in known:
            values = known[label.name]
            values = values[~np.isnan(values)]
            found += filter(None, (_outliers(label, values), _constant(label.name, values)))
    if "teff" in known and "logg" in known:
        found += filter(None, [_logg_per_si(known["teff"], known["logg"])])
    if found:
        logger.warning("%s: %s", what, "; ".join(found))
    return found


def tell_of_constants(values: Float64Array, names: Sequence[str], *, what: str) -> None:
    """Warn once of labels (n_star, n_label) that have one value only, before they are learned."""
    finite = [column[~np.isnan(column)] for column in values.T]
    told = [_constant(name, column) for name, column in zip(names, finite, strict=True)]
    if any(told):
        logger.warning("%s: %s", what, "; ".join(filter(None, told)))


def possible_range(label: Label) -> tuple[float, float]:
    """Return the least and the largest value that a star can have, in the unit of the label."""
    low, high = label.range
    if label.name == "teff" and label.unit == "K":
        return PLAUSIBLE.teff_k
    if label.name == "logg":
        return PLAUSIBLE.logg_dex
    if label.unit == "dex":
        # Metals may be rarer by any factor, but not more than all of the star.
        above = 2.0 if label.name.endswith("_h") else PLAUSIBLE.ratio_dex
        below = PLAUSIBLE.metals_dex if label.name.endswith("_h") else PLAUSIBLE.ratio_dex
        return low - below, high + above
    return low - PLAUSIBLE.widths * (high - low), high + PLAUSIBLE.widths * (high - low)


def _outliers(label: Label, values: Float64Array) -> str | None:
    low, high = possible_range(label)
    beyond = (values < low) | (values > high)
    outside = values[beyond | _stand_ins(values, label)]
    if not outside.size:
        return None
    distinct, counts = np.unique(outside, return_counts=True)
    # The most frequent ones: what stands for missing is one number, many times.
    order = np.argsort(-counts, kind="stable")[:_LISTED]
    listed = ", ".join(f"{distinct[k]:.6g}" for k in sorted(order))
    more = f" and {distinct.size - _LISTED} others" if distinct.size > _LISTED else ""
    text = (
        f"{outside.size} of {values.size} values of {label.name} lie outside of anything a star "
        f"has ({low:g} to {high:g} {label.unit}): {listed}{more}; "
    )
    # A wrong unit moves most values, a number that stands for missing ones only some.
    hint = _other_scale(label, outside) if 2 * outside.size > values.size else None
    return text + (hint or _as_missing(label.name, distinct[order]))


def _stand_ins(values: Float64Array, label: Label) -> BoolArray:
    """Whether values are written in nines, as 99999 and -99.9 are, and outside of the usual."""
    low, high = label.range
    far = (values < 2 * low - high) | (values > 2 * high - low)
    nines = np.zeros(values.size, dtype=np.bool_)
    nines[far] = [bool(_NINES.fullmatch(f"{value:.6g}")) for value in values[far]]
    return nines


def _as_missing(name: str, values: Float64Array) -> str:
    numbers = ", ".join(f"{value:.6g}" for value in np.sort(values))
    return (
        f"if they stand for missing ones, write {name} = {{ name = ..., missing = [{numbers}] }} "
        "in [columns]"
    )


def _other_scale(label: Label, outside: Float64Array) -> str | None:
    """Return which unit would bring outlying values into the range of the label, if one does."""
    low, high = possible_range(label)
    middle = np.median(outside)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        scales = {
            "teff": (("dex(K)", np.power(10.0, middle)), ("kK", 1000.0 * middle)),
            "logg": (("linear", np.log10(middle)),),
        }
    for unit, value in scales.get(label.name, ()):
        # Wide limits let a sentinel through (10^3.7 is a temperature, but so is 1000 x 9.99).
        wide = label.range[1] - label.range[0]
        if max(low, label.range[0] - wide) <= value <= min(high, label.range[1] + wide):
            if unit == "linear":
                return f"they look like g itself: give log10 of {label.name}"
            return f'they look like {unit}: write {label.name} = {{ name = ..., unit = "{unit}" }}'
    return None


def _constant(name: str, values: Float64Array) -> str | None:
    if values.size < PLAUSIBLE.least_rows or values.min() < values.max():
        return None
    return (
        f"{name} has one value only ({values[0]:.6g} in {values.size} rows), from which nothing "
        "can be learned; leave it out"
    )


def _logg_per_si(teff: Float64Array, logg: Float64Array) -> str | None:
    low, high = PLAUSIBLE.warm_k
    warm = logg[(teff > low) & (teff < high) & np.isfinite(logg)]
    if warm.size < PLAUSIBLE.least_rows or np.quantile(warm, 0.9) > PLAUSIBLE.warm_logg_dex:
        return None
    # In m/s2 log g is lower by 2, some 2.3 for such stars: values below 1 have another fault.
    if np.median(warm) < 1.0:
        return None
    return (
        f"the median logg of {warm.size} stars of {low:g} to {high:g} K is {np.median(warm):.2f}, "
        "and nearly all such stars have 3.5 to 4.7; if it is of m/s2, write "
        'logg = { name = ..., unit = "log(m/s2)" } in [columns]'
    )
