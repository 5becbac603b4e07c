"""The resolving power of a survey: kept by the store, used by bounds."""

import numpy as np
import pytest

from maury.errors import ConfigError
from maury.simulation.bound import compare_with_bound, cramer_rao
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.simulation.surveys import simulate_survey
from maury.survey.readers import ingest_toml, open_toml
from maury.survey.store import Survey, SurveyWriter
from maury.training.settings import EnsembleConfig

SUN = np.array([[5772.0, 4.44, 0, 0, 0, 0, 0, 0, 0]])


def write(path, **options):
    with SurveyWriter(
        path, n_star=2, wave_aa=np.arange(3) + 5000.0, medium="air", simulated=False, **options
    ) as writer:
        writer.write(0, np.ones((2, 3)), np.ones((2, 3)), id=["a", "b"], star_id=["a", "b"])
    return Survey.open(path)


def test_a_store_keeps_it_and_knows_when_it_is_unknown(tmp_path):
    assert write(tmp_path / "a.zarr", resolving_power=11500).resolving_power == 11500.0
    assert write(tmp_path / "b.zarr").resolving_power is None


def test_a_toml_file_states_it(tmp_path):
    np.savez(tmp_path / "s.npz", flux=np.ones((3, 5)))
    text = 'resolving_power = {}\n[spectra]\nfile = "s.npz"\norientation = "rows"\n'
    text += '[wavelength]\nmedium = "air"\nstart = 8420\nstep = 0.4\n[columns]\n'
    (tmp_path / "s.toml").write_text(text.format(5000), "utf-8")
    with open_toml(tmp_path / "s.toml") as files:
        assert files.resolving_power == 5000
    assert ingest_toml(tmp_path / "s.toml", tmp_path / "s.zarr").resolving_power == 5000
    (tmp_path / "s.toml").write_text(text.format(-1), "utf-8")
    with pytest.raises(ConfigError, match="resolving_power"):
        open_toml(tmp_path / "s.toml")


def test_simulated_surveys_state_their_resolving_power(tmp_path):
    survey = simulate_survey(tmp_path / "s.zarr", n_star=3, seed=1)
    assert survey.resolving_power == TRAINING_CONDITIONS.resolving_power


def test_training_stars_are_simulated_at_it_unless_the_settings_say_otherwise():
    default = EnsembleConfig.model_validate({})
    seen = default.seen_at(11500.0)
    assert seen.training.observing == default.training.observing.at_power(11500.0)
    assert default.seen_at(7500.0).to_json() == default.to_json()
    assert default.seen_at(None) is default
    stated = EnsembleConfig.model_validate({"training": {"observing": {"resolving_power": 9000}}})
    assert stated.seen_at(11500.0) is stated
    other = EnsembleConfig.model_validate({"network": {"preset": "starnet"}})
    assert other.seen_at(11500.0) is other


def test_conditions_at_another_power_keep_their_relative_scatter():
    observing = TRAINING_CONDITIONS.at_power(15000.0)
    assert (observing.resolving_power, observing.resolving_power_scatter) == (15000.0, 800.0)
    assert observing.resolving_power_range == (13000.0, 17000.0)
    assert observing.continuum_rms == TRAINING_CONDITIONS.continuum_rms
    assert TRAINING_CONDITIONS.at_power(None) is TRAINING_CONDITIONS
    assert TRAINING_CONDITIONS.at_power(7500.0) == TRAINING_CONDITIONS


def test_bounds_fall_as_the_resolving_power_rises():
    bounds = [
        cramer_rao(SUN, 50, observing=TRAINING_CONDITIONS.at_power(power))[0]
        for power in (4000, 7500, 11500)
    ]
    metal = [bound[3] for bound in bounds]
    assert metal[0] > 1.1 * metal[1] > 1.1 * metal[2]
    seen = compare_with_bound(
        np.repeat(SUN, 3, axis=0),
        np.repeat(SUN, 3, axis=0),
        np.full(3, 50.0),
        observing=TRAINING_CONDITIONS.at_power(4000),
    )
    np.testing.assert_allclose(seen[3].overall.spectrum_alone, metal[0], rtol=1e-6)
