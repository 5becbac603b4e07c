"""Units as files write them."""

import warnings

import numpy as np
import pytest

from maury.errors import ColumnError, WavelengthError
from maury.io.units import _SAME, _SPELLED, to_unit, written
from maury.labels.columns import Column
from maury.survey.readers.grids import angstrom_per, header_grid
from maury.survey.readers.values import converted

SPELLINGS = {
    "Angstrom": (
        1.0,
        [
            "Angstrom",
            "Angstroms",
            "ANGSTROM",
            "ANGSTROMS",
            "angstrom",
            "ANG",
            "AA",
            "A",
            "Å",
            "Ångström",
        ],
    ),
    "nm": (10.0, ["nm", "NM", "nanometers", "Nanometer", "NANOMETRES"]),
    "um": (1e4, ["um", "µm", "μm", "micron", "microns", "MICRONS", "micrometers"]),
    "m": (1e10, ["m", "meter", "METERS", "metres"]),
}


@pytest.mark.parametrize(
    ("text", "factor"), [(text, f) for f, texts in SPELLINGS.values() for text in texts]
)
def test_lengths_in_the_spellings_of_surveys(text, factor):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for spelled in (text, f" {text} ", f"'{text}'", f"({text})"):
            assert angstrom_per(spelled) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "target", "factor"),
    [
        ("0.1nm", "Angstrom", 1.0),
        ("10-10m", "Angstrom", 1.0),
        ("10**-10 m", "Angstrom", 1.0),
        ("Kelvin", "K", 1.0),
        ("kelvin", "K", 1.0),
        ("KELVINS", "K", 1.0),
        ("deg K", "K", 1.0),
        ("degrees Kelvin", "K", 1.0),
        ("degrees", "deg", 1.0),
        ("DEGREE", "deg", 1.0),
        ("rad", "deg", 180 / np.pi),
        ("radians", "deg", 180 / np.pi),
        ("hourangle", "deg", 15.0),
        ("hours", "deg", 15.0),
        ("h", "deg", 15.0),
        ("arcsec/yr", "mas / yr", 1000.0),
        ("arcseconds/year", "mas / yr", 1000.0),
        ("MAS/YR", "mas / yr", 1.0),
        ("mas.yr-1", "mas / yr", 1.0),
        ("milliarcsec yr**-1", "mas / yr", 1.0),
        ("deg/day", "mas / yr", 3.6e6 * 365.25),
        ("km/sec", "km / s", 1.0),
        ("KM/S", "km / s", 1.0),
        ("m s-1", "km / s", 0.001),
        ("mags", "mag", 1.0),
        ("percent", "", 0.01),
        ("dimensionless", "", 1.0),
    ],
)
def test_other_kinds(text, target, factor):
    assert to_unit(np.array([2.0]), text, target) == pytest.approx(2.0 * factor, rel=1e-12)


@pytest.mark.slow
def test_every_word_means_the_unit_that_it_is_listed_under():
    for word, unit in _SPELLED.items():
        texts = (word, word.upper(), word.title()) if word.isascii() else (word,)
        for text in texts:
            assert to_unit(3.0, text, unit) == pytest.approx(3.0, rel=1e-12), text


@pytest.mark.parametrize(
    ("text", "shift"),
    [
        ("dex(cm/s2)", 0.0),
        ("[cm/s2]", 0.0),
        ("log(cm.s**-2)", 0.0),
        ("dex", 0.0),
        ("", 0.0),
        ("log10(m/s^2)", 2.0),
        ("dex(m / s2)", 2.0),
        ("[Sun]", 0.0),
    ],
)
def test_a_logarithm_of_an_acceleration_comes_out_as_of_cgs(text, shift):
    assert to_unit(np.array([2.5, np.nan]), text, "dex") == pytest.approx(
        [2.5 + shift, np.nan], nan_ok=True
    )


def test_logarithms_of_other_units_are_raised():
    assert to_unit([3.0, 4.0], "[K]", "K") == pytest.approx([1e3, 1e4])
    assert to_unit([3.0, 4.0], "log(Kelvin)", "K") == pytest.approx([1e3, 1e4])
    assert to_unit([-1.0], "log10(arcsec)", "mas") == pytest.approx([100.0])


def test_celsius_is_shifted():
    assert to_unit([0.0, 100.0], "Celsius", "K") == pytest.approx([273.15, 373.15])


@pytest.mark.parametrize(
    "text",
    ["K", "A/s", "[Angstrom]", "log(nm)", "Kelvinn", "furlongs", "x" * 5000, "A\x1b[31m", "(("],
)
def test_what_is_no_length_is_said(text):
    with pytest.raises(WavelengthError, match="no unit of length"):
        angstrom_per(text)


def test_columns_and_headers_take_the_same_spellings():
    teff = Column("teff", "K", "", "")
    values = np.array([5000.0, np.nan])
    assert converted(values, teff, "KELVIN", what="t.fits") == pytest.approx(values, nan_ok=True)
    with pytest.raises(ColumnError, match=r"t\.fits: unit 'magn' .* to K of 'teff'"):
        converted(values, teff, "magn", what="t.fits")
    header = {"CRVAL1": 0.85, "CDELT1": 1e-5, "CUNIT1": "Microns"}
    assert header_grid(header, 1, 3) == pytest.approx([8500.0, 8500.1, 8500.2])


def test_a_unit_is_looked_up_in_a_standard_once(monkeypatch):
    from astropy import units

    written.cache_clear()
    first = written("km/s", "fits")

    def refuse(*_):
        raise AssertionError("looked up again")

    monkeypatch.setattr(units, "Unit", refuse)
    assert written("km/s", "fits") == first == ("km s-1", "")


@pytest.mark.parametrize("unit", [*sorted(_SAME), "dex"])
@pytest.mark.parametrize("standard", ["fits", "vounit"])
def test_units_that_are_known_are_written_as_astropy_does(unit, standard):
    from astropy import units

    found, note = written(unit, standard)
    if unit == "dex":
        assert (found, note) == ("", " (dex)")
    elif (unit, standard) != ("Angstrom", "vounit"):
        assert found == units.Unit(unit).to_string(standard)
        assert note == ""
