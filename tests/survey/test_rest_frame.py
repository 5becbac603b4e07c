"""Whether spectra are at rest: said by recipes and TOML files, kept by stores, acted on."""

import logging

import numpy as np
import pytest

from maury import Survey
from maury.errors import ColumnError
from maury.labels.columns import known
from maury.labels.flags import Flag
from maury.spectra import preparation as preparing
from maury.spectra.operators import doppler_factor
from maury.spectra.preparation import Preparation
from maury.survey.archives import load, names
from maury.survey.readers import ingest_toml
from maury.survey.readers.formats import FORMATS
from maury.survey.readers.values import converted

WAVE = np.linspace(8500.0, 8560.0, 301)
VELOCITY = np.array([150.0, -80.0, np.nan])
REST = Preparation.from_json({"steps": [{"step": "rest_frame"}], "observables": []})
TOML = (
    '[spectra]\nfile = "s.npz"\nivar = "ivar"\norientation = "rows"\n'
    '[wavelength]\nmedium = "vacuum"\nvalues = "wave"\n'
)
TABLE = '[[table]]\nfile = "v.csv"\n[columns]\nradial_velocity = "rv"\n'


def line_at(velocity):
    centre = 8530.0 * doppler_factor(np.nan_to_num(velocity))[:, None]
    return 1.0 - 0.6 * np.exp(-0.5 * ((WAVE - centre) / 1.5) ** 2)


def make(folder, text, name="o"):
    np.savez(folder / "s.npz", flux=line_at(VELOCITY), ivar=np.full((3, 301), 1e4), wave=WAVE)
    with (folder / "v.csv").open("w") as stream:
        stream.write("rv,k\n")
        stream.writelines(f"{'' if np.isnan(v) else v},{k}\n" for k, v in enumerate(VELOCITY))
    (folder / f"{name}.toml").write_text(text)
    return ingest_toml(folder / f"{name}.toml", folder / f"{name}.zarr")


def core(inputs):
    return WAVE[np.argmin(inputs.flux, axis=1)]


def test_a_survey_that_moves_is_shifted_by_its_velocities(tmp_path):
    survey = make(tmp_path, "at_rest = false\n" + TOML + TABLE)
    assert survey.at_rest is False
    assert Survey.open(survey.path).at_rest is False
    inputs = REST.apply(survey.batch(0, 3))
    np.testing.assert_allclose(core(inputs)[:2], 8530.0, atol=0.2)
    flagged = (inputs.flags & Flag.NO_RADIAL_VELOCITY) != 0
    assert flagged.tolist() == [False, False, True]


def test_a_survey_that_moves_without_velocities_is_refused(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        survey = make(tmp_path, "at_rest = false\n" + TOML)
    assert sum("not at rest" in record.message for record in caplog.records) == 1
    with pytest.raises(ColumnError, match="radial_velocity"):
        REST.apply(survey.batch(0, 3))
    for part in (survey.rows([0, 2]), survey.batch(0, 3)[1:]):
        with pytest.raises(ColumnError, match="not at rest"):
            REST.apply(part)


def test_a_survey_at_rest_is_not_shifted_again(tmp_path):
    survey = make(tmp_path, "at_rest = true\n" + TOML + TABLE)
    inputs = REST.apply(survey.batch(0, 3))
    np.testing.assert_array_equal(inputs.flux, survey.batch(0, 3).spectra.flux)
    assert not np.any(inputs.flags & Flag.NO_RADIAL_VELOCITY)


def test_a_survey_without_a_word_is_as_before(tmp_path):
    survey = make(tmp_path, TOML)
    assert survey.at_rest is None
    np.testing.assert_array_equal(
        REST.apply(survey.batch(0, 3)).flux, survey.batch(0, 3).spectra.flux
    )


def test_a_preparation_that_leaves_motion_in_is_told_once(tmp_path, caplog):
    survey = make(tmp_path, "at_rest = false\n" + TOML + TABLE)
    preparing._tell_of_motion.cache_clear()
    plain = Preparation.from_json({"steps": [], "observables": []})
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            plain.apply(survey.batch(0, 3))
    assert sum("rest_frame" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize("unit", ["redshift", "z"])
def test_redshifts_become_the_velocities_of_the_doppler_formula(unit):
    redshift = np.array([3.402e-05, -9.073e-05, 0.01, np.nan])
    found = converted(redshift, known()["radial_velocity"], unit, what="Z")
    np.testing.assert_allclose(doppler_factor(found)[:3], 1.0 + redshift[:3], rtol=1e-14)
    np.testing.assert_allclose(found[:2], [10.199, -27.201], atol=1e-3)
    assert np.isnan(found[3])


@pytest.mark.parametrize("name", names())
def test_every_recipe_of_spectra_says_whether_they_are_at_rest(name):
    spectra = load(name).spectra
    if spectra is None:
        return
    # The normalised spectra of GALAH DR4 are not documented to be in either frame.
    assert (spectra.at_rest is None) == (name == "galah-dr4")
    arms = spectra.arm or (None,)
    for arm in arms:
        moving = (spectra.at_rest if arm is None or arm.at_rest is None else arm.at_rest) is False
        columns = spectra.columns | (arm.columns if arm else {})
        if "radial_velocity" in columns:
            assert moving, "spectra at rest would be shifted again"
        elif moving:
            assert any(word in spectra.note.lower() for word in ("velocity", "rv_"))
        assert (arm.reader if arm and arm.reader else spectra.reader) in FORMATS
