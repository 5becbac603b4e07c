"""Resolving power and noise correlation of a survey: kept by the store, and taken by all."""

import numpy as np
import pytest

from maury.errors import ConfigError
from maury.simulation.bound import compare_with_bound, cramer_rao
from maury.simulation.conditions import survey_conditions
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.simulation.surveys import simulate_survey
from maury.spectra.noise import resampled_correlation
from maury.spectra.preparation import Preparation
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


def test_stores_of_before_that_are_simulated_or_of_released_files_state_it_too(tmp_path):
    told = {"observing": {"resolving_power": 9000.0, "noise_side_weight": 0.1}}
    survey = write(tmp_path / "a.zarr", provenance={"simulation": told})
    assert survey.resolving_power == 9000.0
    assert survey.noise_correlation == pytest.approx((0.2 / 1.02, 0.01 / 1.02))
    assert write(tmp_path / "b.zarr", provenance={"reader": "released"}).resolving_power == 7500.0
    other = write(tmp_path / "c.zarr", provenance={"reader": "toml", "simulation": 3})
    assert (other.resolving_power, other.noise_correlation) == (None, None)


def test_training_stars_are_simulated_at_it_unless_the_settings_say_otherwise(tmp_path):
    known = write(tmp_path / "a.zarr", resolving_power=11500)
    default = EnsembleConfig.model_validate({})
    seen = default.seen_in(known)
    assert seen.training.observing == default.training.observing.at_power(11500.0)
    same = write(tmp_path / "b.zarr", resolving_power=7500)
    told = default.seen_in(same).to_json()
    assert told["training"].pop("theory") == "emulator"
    plain = default.to_json()
    assert plain["training"].pop("theory") == "auto"
    assert told == plain
    own = {"training": {"observing": {"resolving_power": 9000}}}
    stated = EnsembleConfig.model_validate(own)
    assert stated.seen_in(known).training.observing == stated.training.observing
    other = EnsembleConfig.model_validate({"network": {"preset": "starnet"}})
    assert other.seen_in(known).to_json() == other.to_json()


def test_no_star_is_simulated_at_an_unknown_power(tmp_path):
    unknown = write(tmp_path / "a.zarr")
    with pytest.raises(ConfigError, match=r"resolving_power = .*TOML.*\[training.observing\]"):
        EnsembleConfig.model_validate({}).seen_in(unknown)
    with pytest.raises(ConfigError, match="resolving_power"):
        survey_conditions(TRAINING_CONDITIONS, unknown, Preparation())
    other = EnsembleConfig.model_validate({"network": {"preset": "starnet"}})
    assert other.seen_in(unknown).to_json() == other.to_json()


def test_noise_of_the_survey_is_what_all_take(tmp_path):
    survey = write(tmp_path / "a.zarr", resolving_power=7500, noise_correlation=[0.2])
    assert survey.noise_correlation == (0.2,)
    assert survey.batch(0, 1).spectra.noise_correlation == (0.2,)
    assert survey.rows([0]).spectra.noise_correlation == (0.2,)
    seen = EnsembleConfig.model_validate({}).seen_in(survey)
    assert seen.preparation.noise_correlation == (0.2,)
    assert seen.training.observing.correlation == (0.2,)
    stated = EnsembleConfig.model_validate({"preparation": {"noise_correlation": [0.3]}})
    assert stated.seen_in(survey).preparation.noise_correlation == (0.3,)
    moved = {"step": "resample", "grid": {"start_aa": 5000.1, "step_aa": 1.0, "n_pixel": 2}}
    resampled = EnsembleConfig.model_validate({"preparation": {"steps": [moved]}}).seen_in(survey)
    assert resampled.training.observing.correlation == resampled_correlation((0.2,), 1.0)
    with pytest.raises(ConfigError, match="noise_correlation"):
        write(tmp_path / "b.zarr", noise_correlation=[0.6])


def test_noise_is_a_key_of_the_file_that_ingests(tmp_path):
    rng = np.random.default_rng(0)
    wave = 8420.0 + 0.4 * np.arange(300)
    white = rng.normal(size=(40, 301))
    flux = 1 + (white[:, 1:] + white[:, :-1]) / np.sqrt(2) / 50
    np.savez(tmp_path / "s.npz", flux=flux, wave=wave, ivar=np.full(flux.shape, 2500.0))
    text = "noise_correlation = {}\n{}[spectra]\nfile = 's.npz'\nflux = 'flux'\nivar = 'ivar'\n"
    text += "orientation = 'rows'\n[wavelength]\nvalues = 'wave'\nmedium = 'air'\n"
    half = "resample = {start = 8424.2, step = 0.4, n = 280}\n"
    for number, (extra, snr, correlation) in enumerate(
        [("", 50.0, (0.5,)), (half, 50 / np.sqrt(0.75), resampled_correlation((0.5,), 1.0))]
    ):
        (tmp_path / "s.toml").write_text(text.format("[0.5]", extra))
        survey = ingest_toml(tmp_path / "s.toml", tmp_path / f"{number}.zarr")
        assert survey.noise_correlation == pytest.approx(correlation)
        spectra = survey.rows(np.arange(40)).spectra
        assert np.median(np.sqrt(spectra.ivar)) == pytest.approx(snr, rel=1e-4)
        # 40 rows of 280 pixels that are alike: 1.5 %.
        assert 1 / spectra.flux.std() == pytest.approx(snr, rel=0.05)
    (tmp_path / "s.toml").write_text(text.format("[0.6]", ""))
    with pytest.raises(ConfigError, match="no correlation of any noise"):
        open_toml(tmp_path / "s.toml")


def test_conditions_at_another_power_keep_their_relative_scatter():
    observing = TRAINING_CONDITIONS.at_power(15000.0)
    assert (observing.resolving_power, observing.resolving_power_scatter) == (15000.0, 800.0)
    assert observing.resolving_power_range == (13000.0, 17000.0)
    assert observing.continuum_rms == TRAINING_CONDITIONS.continuum_rms
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
