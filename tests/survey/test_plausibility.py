"""Values that no star has are told when a store is written, with the key that mends them."""

import logging

import numpy as np
import pytest
from astropy.io import fits

from maury.errors import MauryError, WavelengthError
from maury.labels.definitions import LABELS, Label
from maury.methods.training import collect
from maury.model.split import SplitConfig
from maury.spectra.preparation import Preparation
from maury.spectra.spectra import check_wavelengths
from maury.survey.plausibility import (
    check_range_of_wavelengths,
    possible_range,
    tell_of_labels,
)
from maury.survey.readers import ingest_released, ingest_toml
from maury.survey.readers.grids import header_medium
from maury.survey.store import Survey, SurveyWriter

WAVE = 8480.0 + 0.4 * np.arange(300)
RNG = np.random.default_rng(8)


def told(caplog):
    return [r.message for r in caplog.records if r.name == "maury.survey.plausibility"]


def write(folder, *, wave=WAVE, labels=(), n=40, **columns):
    known = (*LABELS, *labels)
    with SurveyWriter(
        folder / "o.zarr", n_star=n, wave_aa=wave, medium="air", columns=list(columns),
        simulated=True, labels=known, overwrite=True,
    ) as writer:  # fmt: skip
        ids = [f"s{k}" for k in range(n)]
        flux = np.tile(1.0 + 0.1 * np.sin(wave), (n, 1))
        writer.write(0, flux, np.ones_like(flux), id=ids, star_id=ids, **columns)


def normal(n=40):
    return {
        "teff": RNG.uniform(4200, 6500, n),
        "logg": RNG.uniform(1.0, 4.8, n),
        "m_h": RNG.uniform(-1.5, 0.3, n),
    }


def test_labels_of_stars_pass_without_a_word(tmp_path, caplog):
    write(tmp_path, **normal())
    # Hot stars, white dwarfs, and the poorest star known are stars.
    write(
        tmp_path,
        teff=np.array([2400.0, 8000.0, 45000.0, 120000.0]),
        logg=np.array([-0.5, 9.3, 4.0, np.nan]),
        fe_h=np.array([-6.2, 0.5, 0.0, np.nan]),
        n=4,
    )
    assert told(caplog) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("teff", -99.9), ("teff", 99999.0), ("teff", 1e20), ("teff", 0.0), ("teff", -9.9),
        ("logg", 9.99), ("logg", -99.0), ("logg", 1e20), ("logg", 99.9),
        ("m_h", -99.9), ("m_h", 9.99), ("fe_h", -9.99), ("mg_fe", 99.0), ("mg_fe", -9.99),
    ],
)  # fmt: skip
def test_a_sentinel_is_counted_and_named_with_its_key(tmp_path, caplog, name, value):
    labels = normal() | {name: normal().get(name, RNG.uniform(-0.2, 0.3, 40))}
    labels[name][[3, 7]] = value
    write(tmp_path, **labels)
    (message,) = told(caplog)
    assert f"2 of 40 values of {name}" in message
    assert f"missing = [{value:.6g}]" in message


def test_one_warning_for_all_labels(tmp_path, caplog):
    labels = normal()
    labels["teff"][0], labels["logg"][1:4], labels["m_h"][:] = -99.0, 99.0, -0.1
    write(tmp_path, **labels)
    (message,) = told(caplog)
    assert "1 of 40 values of teff" in message
    assert "3 of 40 values of logg" in message
    assert "m_h has one value only (-0.1 in 40 rows)" in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c | {"teff": np.log10(c["teff"])}, 'unit = "dex(K)"'),
        (lambda c: c | {"teff": c["teff"] / 1000}, 'unit = "kK"'),
        (lambda c: c | {"logg": 10.0 ** c["logg"]}, "log10 of logg"),
        (
            lambda c: c | {"teff": RNG.uniform(5600, 6700, 40), "logg": RNG.normal(2.3, 0.2, 40)},
            'unit = "log(m/s2)"',
        ),
    ],
)
def test_another_scale_is_recognised(tmp_path, caplog, change, words):
    write(tmp_path, **change(normal()))
    (message,) = told(caplog)
    assert words in message


@pytest.mark.parametrize("unit", ["dex(K)", "kK", "log(m/s2)"])
def test_the_key_that_is_named_mends_it(tmp_path, caplog, unit):
    teff, logg = np.linspace(5600.0, 6700.0, 20), np.linspace(3.9, 4.6, 20)
    given = {
        "dex(K)": (np.log10(teff), logg), "kK": (teff / 1000, logg), "log(m/s2)": (teff, logg - 2),
    }[unit]  # fmt: skip
    np.savez(tmp_path / "s.npz", flux=np.ones((20, 300)), ivar=np.ones((20, 300)), wave=WAVE)
    rows = "\n".join(f"{t!r},{g!r}" for t, g in np.transpose(given).tolist())
    (tmp_path / "l.csv").write_text(f"T,G\n{rows}\n")
    keys = {"teff": '"T"', "logg": '"G"'}
    text = (
        '[spectra]\nfile = "s.npz"\nivar = "ivar"\norientation = "rows"\n'
        '[wavelength]\nmedium = "air"\nvalues = "wave"\n[[table]]\nfile = "l.csv"\n[columns]\n'
    )
    (tmp_path / "s.toml").write_text(text + "".join(f"{k} = {v}\n" for k, v in keys.items()))
    ingest_toml(tmp_path / "s.toml", tmp_path / "a.zarr")
    assert unit in told(caplog)[0]
    caplog.clear()
    name, column = ("logg", "G") if "s2" in unit else ("teff", "T")
    keys[name] = f'{{ name = "{column}", unit = "{unit}" }}'
    (tmp_path / "s.toml").write_text(text + "".join(f"{k} = {v}\n" for k, v in keys.items()))
    survey = ingest_toml(tmp_path / "s.toml", tmp_path / "b.zarr")
    assert told(caplog) == []
    np.testing.assert_allclose(survey.column("teff"), teff)
    np.testing.assert_allclose(survey.column("logg"), logg)


def test_giants_are_not_taken_for_another_unit(tmp_path, caplog):
    write(tmp_path, teff=RNG.uniform(4000, 5300, 40), logg=RNG.uniform(1.5, 2.8, 40))
    assert told(caplog) == []


def test_labels_of_a_user_have_limits_of_their_range():
    age = Label(name="age", symbol="age", unit="Gyr", description="Age", range=(0.0, 14.0))
    assert possible_range(age) == (-70.0, 84.0)
    assert tell_of_labels({"age": np.array([5.0, -99.0])}, [age], what="s")
    assert not tell_of_labels({"age": np.array([5.0, np.nan])}, [age], what="s")


@pytest.mark.parametrize(
    ("scale", "key"),
    [
        (lambda w: np.log10(w), "log = true"),
        (lambda w: w / 1e4, 'unit = "um"'),
        (lambda w: w / 1e10, 'unit = "m"'),
        (lambda w: w / 10, 'unit = "nm"'),
    ],
)
def test_wavelengths_in_another_unit(caplog, scale, key):
    wave = check_wavelengths(scale(WAVE))
    try:
        check_range_of_wavelengths(wave, what="s")
    except WavelengthError as error:
        message = str(error)
    else:
        (message,) = told(caplog)
    assert key in message
    assert "8480 to 8599.6" in message


@pytest.mark.parametrize("wave", [(1150.0, 3100.0), (3700.0, 9100.0), (1.5e4, 1.7e4), (9e3, 5e4)])
def test_wavelengths_of_spectrographs_pass(caplog, wave):
    check_range_of_wavelengths(np.linspace(*wave, 100), what="s")
    assert told(caplog) == []


def test_the_released_layout_passes_the_same_check(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    fits.PrimaryHDU(np.ones((912, 6), "f4")).writeto(tmp_path / "in" / "a_spectra.fits")
    rows = "".join(f"{k},1.0,10,{-99.9 if k == 2 else 5000 + k}\n" for k in range(6))
    text = "rave_obs_id,parallax,gmag,Teff\n" + rows
    (tmp_path / "in" / "a_parameters.csv").write_text(text)
    ingest_released(tmp_path / "in", tmp_path / "o.zarr")
    assert "1 of 6 values of teff" in told(caplog)[0]


@pytest.mark.parametrize(
    ("cards", "medium"),
    [
        ({"CTYPE1": "AWAV"}, "air"),
        ({"CTYPE1": "AWAV-LOG"}, "air"),
        ({"CTYPE1": "WAVE"}, None),
        ({"VACUUM": True}, "vacuum"),
        ({"VACUUM": False}, "air"),
        ({"VACUUM": 1}, "vacuum"),
        ({"VACUUM": "0"}, "air"),
        ({"VACUUM": "T"}, "vacuum"),
        ({"WAVETYPE": "Vacuum"}, "vacuum"),
        ({"AIRORVAC": "vac"}, "vacuum"),
        ({"WAVEMED": "AIR"}, "air"),
        ({}, None),
    ],
)
def test_what_headers_say_of_the_medium(cards, medium):
    assert header_medium(cards) == medium


@pytest.mark.parametrize("kind", ["image", "table", "rows"])
@pytest.mark.parametrize("stated", ["air", "vacuum"])
def test_a_header_against_the_toml_file(tmp_path, kind, stated):
    (tmp_path / "in").mkdir()
    keys, extra = f'[wavelength]\nmedium = "{stated}"\n', ""
    if kind == "table":
        named = (("wave", WAVE), ("flux", np.ones(300)))
        hdu = fits.BinTableHDU.from_columns([fits.Column(n, "D", array=v) for n, v in named])
        hdu.header["TUCD1"] = "em.wl;obs.atmos"
    else:
        hdu = fits.PrimaryHDU(np.ones((4, 300) if kind == "rows" else 300))
        hdu.header.update({"CTYPE1": "AWAV", "CRVAL1": 8480.0, "CDELT1": 0.4})
    hdu.writeto(tmp_path / "in" / "s.fits")
    place = 'file = "in/s.fits"' if kind == "rows" else 'folder = "in"'
    (tmp_path / "s.toml").write_text(f"[spectra]\n{place}\n{extra}{keys}")
    if stated == "air":
        assert ingest_toml(tmp_path / "s.toml", tmp_path / "o.zarr").medium == "air"
        return
    with pytest.raises(WavelengthError, match=r"s\.fits.*83 km/s"):
        ingest_toml(tmp_path / "s.toml", tmp_path / "o.zarr")


CASES = {
    "label_sentinels/case": ("3 of 8 values of teff", "missing = [-99, 99999, 1e+20]"),
    "label_sentinels/log": ("8 of 8 values of teff", 'unit = "dex(K)"'),
    "wavelength_nonsense/text_log": ("3.9", "log = true"),
    "wavelength_nonsense/nm": ("848", 'unit = "nm"'),
    "header_medium_contradicts/case": ("air", "vacuum"),
}


@pytest.mark.parametrize("case", CASES)
def test_small_inputs_of_each_kind(shared, tmp_path, caplog, case):
    config = shared / "cases" / f"{case}.toml"
    if not config.is_file():
        pytest.skip("the small inputs are not beside the reference data")
    with caplog.at_level(logging.WARNING):
        try:
            ingest_toml(config, tmp_path / "o.zarr")
        except MauryError as error:
            message = str(error)
        else:
            (message,) = told(caplog)
    for words in CASES[case]:
        assert words in message


def test_a_label_of_one_value_is_told_before_it_is_learned(tmp_path, caplog):
    write(tmp_path, n=60, teff=RNG.uniform(4500, 6000, 60), m_h=np.full(60, -0.1))
    caplog.clear()
    preparation = Preparation.from_json({"steps": [], "observables": []})
    survey = Survey.open(tmp_path / "o.zarr")
    collect(survey, ("teff", "m_h"), preparation=preparation, split=SplitConfig(), seed=1)
    (message,) = told(caplog)
    assert "m_h has one value only" in message
    assert "teff" not in message
