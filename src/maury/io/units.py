"""Units as files write them: one parser for FITS cards, VOTables, TOML keys and columns of tables.

Surveys write ``Angstroms``, ``ANGSTROM``, ``A``, ``microns`` or ``degrees``; standards know none of
them. What is wanted decides: ``A`` is the angstrom where a length is asked for, and ``h`` the hour
of right ascension where an angle is.
"""

import math
import re
import warnings
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from maury.io.arrays import Float64Array

# Words in lower case; what astropy knows already is not repeated.
_WORDS = {
    "Angstrom": "angstrom angstroms ang angs aa angstroem angstroems ångström ångströms ångstrom",
    "nm": "nm nanometer nanometers nanometre nanometres nanom",
    "um": "um micron microns micrometer micrometers micrometre micrometres mu",
    "m": "meter meters metre metres",
    "cm": "cm centimeter centimeters centimetre centimetres",
    "km": "km kms kilometer kilometers kilometre kilometres",
    "pc": "pc parsec parsecs",
    "kpc": "kpc kiloparsec kiloparsecs",
    "K": "k kelvin kelvins degk",
    "deg_C": "celsius degc",
    "deg": "deg degs degree degrees",
    "rad": "rad rads radian radians",
    "arcmin": "arcmin arcmins arcminute arcminutes",
    "arcsec": "arcsec arcsecs arcsecond arcseconds asec",
    "mas": "mas milliarcsec milliarcsecs milliarcsecond milliarcseconds",
    "uas": "uas microarcsec microarcsecs microarcsecond microarcseconds muas µas",
    "hourangle": "hourangle hourangles",
    "s": "s sec secs second seconds",
    "d": "d day days",
    "yr": "yr yrs year years",
    "mag": "mag mags magnitude magnitudes",
    "dex": "dex",
}
_SPELLED = {word: unit for unit, words in _WORDS.items() for word in words.split()}
# A word that means another unit elsewhere: amperes, hours of time, Siemens.
_IN_PLACE = {
    "Angstrom": {"a": "Angstrom"},
    "deg": dict.fromkeys(("h", "hr", "hour", "hours"), "hourangle"),
}
_PURE_NUMBERS = ("", "-", "[-]", "none", "dimensionless")
_DEGREES_KELVIN = re.compile(r"deg(?:rees?|s)?[ ._]*k(?:elvins?)?", re.IGNORECASE)
_LOGARITHM = re.compile(r"(?:dex|log(?:10)?)?\s*[\[(](.*)[\])]", re.IGNORECASE)
_LONGEST = 100
"""Characters of a unit; the longest of FITS standards and archives have some thirty."""
_LARGEST_POWER = 10**7
"""Product of all numbers of a unit, and so of powers of powers: ten to this is made in .1 s."""
_TENTH_NM, _DEX = "0.1nm", " (dex)"
_SAME = frozenset(("K", "mag", "deg", "mas", "yr", "Angstrom"))
"""Units that standards write as astropy does: a catalogue of them is written without astropy's
units, which take .15 s to import."""


def to_unit(given: ArrayLike, text: str, target: str) -> Float64Array:
    """Return values of a unit as a file writes it in another.

    Parameters
    ----------
    given : array-like
        In the unit of `text`.
    text : str
        The unit, in any common spelling.
    target : str
        The unit wanted, as astropy writes it; empty for a pure number. Logarithms are in ``dex``:
        of an acceleration they come out as of cm/s2, whatever `text` says in brackets.

    Returns
    -------
    values : float64, of the same shape

    Raises
    ------
    ValueError
        If the unit is not known, or is none of the kind of `target`.
    """
    values: Float64Array = np.asarray(given, dtype=np.float64)
    if text.strip() == target or (target == "" and text.strip().lower() in _PURE_NUMBERS):
        return values
    if target == "dex" and (shift := _logarithm(text)) is not None:
        return np.asarray(values + shift)
    from astropy import units

    wanted = units.Unit(target)
    return np.asarray(_unit(text, target).to(wanted, values, equivalencies=units.temperature()))


def check_unit(text: str) -> None:
    """Raise `ValueError` if a unit is too long to be one, or has powers that take long to work out.

    Of ``10**999999999`` every digit would be made.
    """
    if not _is_quick(text):
        raise ValueError(f"unit {text[:_LONGEST]!r:.70} is too long, or has numbers too large")


def _is_quick(text: str) -> bool:
    numbers = [int(n) or 1 for n in re.findall(r"\d{1,18}", text[: _LONGEST + 1])]
    return len(text) <= _LONGEST and math.prod(numbers) <= _LARGEST_POWER


# Astropy looks for a similar name of each unit that a standard lacks: 15 ms, for each label in dex.
@lru_cache(maxsize=1024)
def written(unit: str, standard: Literal["fits", "vounit"]) -> tuple[str, str]:
    """Return a unit as a standard writes it, and what the description then has to say.

    Parameters
    ----------
    unit : str
        As astropy writes it; empty for a pure number.
    standard : str
        That of FITS, or VOUnit of VOTables.

    Returns
    -------
    unit, note : str
        The unit is empty where the standard has no word for it, as for dex; the note is then one
        such as `` (dex)``, which `described` reads.
    """
    if not unit:
        return "", ""
    # VOUnit 1.1 deprecates the angstrom, and astropy warns every reader of it.
    if standard == "vounit" and unit == "Angstrom":
        return _TENTH_NM, ""
    if unit in _SAME:
        return unit, ""
    if unit == "dex":
        return "", _DEX
    from astropy import units

    with warnings.catch_warnings():
        warnings.simplefilter("error", units.UnitsWarning)
        try:
            return str(units.Unit(unit).to_string(standard)), ""
        except (ValueError, units.UnitsWarning):
            return "", f" ({unit})"


def described(unit: str | None, description: str) -> tuple[str | None, str]:
    """Return the unit and the description that `written` made a file's unit and description of.

    Raises
    ------
    ValueError
        As of `check_unit`.
    """
    check_unit(unit or "")
    if unit and unit.replace(" ", "") == _TENTH_NM:
        return "Angstrom", description
    if not unit and description.endswith(_DEX):
        return "dex", description.removesuffix(_DEX)
    return unit, description


@lru_cache(maxsize=256)
def _unit(text: str, target: str) -> Any:
    """Return a unit that can be converted to `target`."""
    from astropy import units

    wanted, known = units.Unit(target), ""
    if _is_quick(text):
        for spelling in _spellings(text, target):
            unit = _parsed(spelling)
            if unit is None:
                continue
            if unit.is_equivalent(wanted, units.temperature()):
                return unit
            known = f" (read as {unit})"
    kind = "a pure number" if not target else f"a unit like {target!r}"
    raise ValueError(f"unit {text[:_LONGEST]!r}{known} is not {kind}")


def _spellings(text: str, target: str) -> Iterator[str]:
    text = text.strip().strip("'\"").strip()
    # As it stands first: where a standard knows the word, and its kind is right, it means that.
    yield text
    words = _SPELLED | _IN_PLACE.get(target, {})
    plain = _DEGREES_KELVIN.sub("K", text) if target == "K" else text
    plain = re.sub(r"[^\W\d_]+", lambda found: words.get(found[0].lower(), found[0]), plain)
    # In tables of the CDS, brackets stand for a logarithm, never for brackets.
    logarithm = _LOGARITHM.fullmatch(plain) if _says_logarithm(text) else None
    yield f"dex({logarithm[1]})" if logarithm else plain.strip("()")


def _parsed(text: str) -> Any:
    from astropy import units

    with warnings.catch_warnings():
        # Deprecated spellings are understood; whoever reads a file can do nothing about them.
        warnings.simplefilter("ignore")
        for style in (None, "cds"):
            try:
                return units.Unit(text, format=style, parse_strict="raise")
            except (ValueError, TypeError):
                continue
    return None


def _logarithm(text: str) -> float | None:
    """Return what to add to a logarithm of this unit, or None if the text says of none."""
    plain = text.strip()
    if plain.lower() in _PURE_NUMBERS:
        return 0.0
    if not _says_logarithm(plain):
        return None
    inner = _LOGARITHM.fullmatch(plain)
    try:
        return math.log10(to_unit(1.0, inner[1], "cm / s2")) if inner else 0.0
    except ValueError:
        # Other logarithms, as of abundances relative to the Sun, have no unit to convert.
        return 0.0


def _says_logarithm(text: str) -> bool:
    return text.strip().lower().startswith(("dex", "log", "["))
