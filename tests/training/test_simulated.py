import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest
import torch

from builders.surveys import copy_survey
from builders.training_survey import write_survey
from maury.errors import ConfigError, ResumeMismatch, TrainingError
from maury.evaluation.validation import held_out_rows
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork, load_members
from maury.model.networks.published import network_config
from maury.prediction.streaming import hide, predict, predict_rows
from maury.simulation.training_stars import TrainingStarSimulator
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.ensemble import EnsembleConfig, train
from maury.training.member import read_tensors
from maury.training.processes import MemberJob, WorkFolder, run_job, train_members
from maury.training.settings import resolve
from maury.training.simulated import (
    SimulatedTraining,
    train_on_simulated_stars,
)

torch.set_num_threads(1)

NETWORK = {"stem": 12, "width": 24, "depth": 1}
CONFIG = {
    "network": NETWORK,
    "training": {"steps": 300, "stars": 200, "batch_size": 16},
    "ensemble": {"members": 2},
}


@pytest.fixture(scope="module")
def survey(tiny_survey):
    return Survey.open(tiny_survey)


@pytest.fixture(scope="module")
def model(tmp_path_factory, survey):
    return train(survey, tmp_path_factory.mktemp("model") / "m", config=CONFIG, n_processes=1)


@pytest.fixture(scope="module")
def star_simulator(model):
    return TrainingStarSimulator.of_model(model)


def inputs_of(model, survey, without=()):
    return model.preparation.apply(hide(survey.batch(0, len(survey)), without))


def same(first, second):
    return all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def run(model, star_simulator, *, seed=1, steps=500, **options):
    return train_on_simulated_stars(
        star_simulator,
        network_config("maury", NETWORK),
        scaling=model.scaling,
        config=SimulatedTraining(steps=steps, stars=60, batch_size=8),
        seed=seed,
        **options,
    )


def test_the_preset_is_the_default_and_keeps_all_members(model, survey):
    assert model.network["name"] == "maury"
    assert len(model.kept) == len(model.members) == 2
    assert [m.validation_loss for m in model.members] == [None, None]
    assert model.label_names == LABEL_NAMES
    assert len(model.preparation.observable_names) == 47
    assert model.training["dropped"]["incomplete labels"] == 0
    assert model.training["settings"]["training"]["steps"] == 300


def test_it_learns_from_simulated_stars(model, survey):
    test = ~model.split.is_known(survey.star_id)
    answer = EnsembleNetwork(model).predict(inputs_of(model, survey))
    residual = (answer.mean - survey.labels())[test]
    assert residual[:, 0].std() < 0.7 * survey.labels()[test, 0].std()
    assert residual[:, 1].std() < 0.7 * survey.labels()[test, 1].std()


def test_validation_stars_steer_nothing_and_are_set_aside(model, survey):
    held = model.split.contains("validation", survey.star_id)
    assert held.any()
    assert not model.split.took_part(survey.star_id)[held].any()
    assert model.split.is_known(survey.star_id)[held].all()
    assert Model.open(model.path).split.validation_use == "calibration"
    unseen = held_out_rows(model, survey, split="unseen")
    assert not held[unseen].any()
    assert len(model.arrays("sky")["labels"]) == model.split.n_rows["train"]


@pytest.mark.slow
def test_other_validation_and_test_spectra_give_the_same_networks(tmp_path, model, survey):
    others = ~model.split.contains("train", survey.star_id)

    def spoil(flux):
        flux[others] = flux[others][::-1] * 0.9
        return flux

    copy = copy_survey(survey.path, tmp_path / "s.zarr", flux=spoil)
    again = train(copy, tmp_path / "m", config=CONFIG, n_processes=1)
    assert [m.sha256 for m in again.members] == [m.sha256 for m in model.members]


@pytest.mark.slow
def test_processes_give_the_same_bits_as_one(tmp_path, model, survey):
    again = train(survey, tmp_path / "m", config=CONFIG, n_processes=2)
    assert [m.sha256 for m in again.members] == [m.sha256 for m in model.members]
    assert again.checksum == model.checksum


def test_covariance_is_that_within_and_between_members(model, survey):
    inputs = inputs_of(model, survey)
    answer = EnsembleNetwork(model, engine="torch").predict(inputs)
    config = network_config("maury", NETWORK)
    observables = model.scaling.observables.forward(inputs.observables)
    tensors = [torch.from_numpy(x) for x in (inputs.flux, inputs.ivar, observables)]
    with torch.no_grad():
        parts = [config.predict(network, *tensors) for network in load_members(model)]
    scale = model.scaling.labels.scale
    means = np.stack([part.mean.numpy() for part in parts]) * scale
    within = np.mean([part.covariance.numpy() for part in parts], axis=0) * np.outer(scale, scale)
    star = 17
    expected = within[star] + np.cov(means[:, star].T, ddof=1)
    np.testing.assert_allclose(answer.covariance[star], expected, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(
        answer.sigma, np.sqrt(np.diagonal(answer.covariance, axis1=1, axis2=2)), rtol=1e-6
    )
    np.testing.assert_allclose(
        answer.mean, means.mean(axis=0) + model.scaling.labels.offset, rtol=1e-5, atol=1e-6
    )
    assert answer.features.shape == (len(survey), NETWORK["width"])


def test_it_answers_with_what_there_is(model, survey):
    network = EnsembleNetwork(model)
    both = network.predict(inputs_of(model, survey))
    photometry = network.predict(inputs_of(model, survey, ["spectrum"]))
    spectrum = network.predict(inputs_of(model, survey, ["photometry"]))
    nothing = network.predict(inputs_of(model, survey, ["photometry", "spectrum"]))
    assert np.isfinite(photometry.mean).all()
    assert np.isfinite(spectrum.mean).all()
    assert np.isnan(nothing.mean).all()
    assert np.isnan(nothing.covariance).all()
    metals = LABEL_NAMES.index("m_h")
    assert np.median(photometry.sigma[:, metals]) > np.median(both.sigma[:, metals])
    assert not np.allclose(spectrum.mean, both.mean)


def test_a_constant_spectrum_is_none(model, survey):
    inputs = inputs_of(model, survey)
    flat = inputs.flux.copy()
    flat[:] = 0.7
    flagged = replace(inputs, flux=flat, flags=inputs.flags | Flag.NO_SPECTRUM.value)
    dark = inputs_of(model, survey, ["spectrum"])
    network = EnsembleNetwork(model)
    np.testing.assert_array_equal(network.predict(flagged).mean, network.predict(dark).mean)


def test_rows_without_spectrum_or_photometry_say_so(tmp_path, model, survey):
    def darken(ivar):
        ivar[:2] = 0.0
        return ivar

    names = [name for name in survey.column_names if name.endswith(("_mag", "_m", "mpro"))]
    magnitudes = {name: survey.column(name).copy() for name in names}
    for values in magnitudes.values():
        values[1:3] = np.nan
    copy = copy_survey(survey.path, tmp_path / "s.zarr", ivar=darken, **magnitudes)
    table = predict_rows(model, copy, [0, 1, 2, 3])
    flags = table["flags"]
    required = (flags & Flag.INPUT_REQUIRED.value) != 0
    assert required.tolist() == [False, True, False, False]
    assert ((flags & Flag.NO_SPECTRUM.value) != 0).tolist() == [True, True, False, False]
    assert np.isfinite(table["teff"]).tolist() == [True, False, True, True]
    assert table["warn"][:2].all()


def test_a_catalogue_without_some_inputs_says_so(tmp_path, model, survey):
    whole = predict(model, survey.path, tmp_path / "a.parquet")
    less = predict(model, survey.path, tmp_path / "b.parquet", without=["parallax", "Ks"])
    assert whole.metadata["without"] == []
    assert less.metadata["without"] == ["parallax", "Ks"]
    assert not np.allclose(less.table["logg"], whole.table["logg"])
    np.testing.assert_array_equal(less.table["parallax"], whole.table["parallax"])
    assert ((less.table["flags"] & Flag.MAGNITUDE_MISSING.value) != 0).all()
    assert ((less.table["flags"] & Flag.NO_PARALLAX.value) != 0).all()


@pytest.mark.slow
def test_a_network_that_needs_an_input_refuses_to_do_without(tiny_model, survey):
    for name in ("photometry", "Ks", "spectrum"):
        with pytest.raises(ConfigError, match=f"without {name}"):
            predict_rows(tiny_model, survey, [0], without=[name])
    with pytest.raises(ConfigError, match="did you mean 'parallax'"):
        predict_rows(tiny_model, survey, [0], without=["paralax"])


@pytest.mark.slow
def test_spectra_only(tmp_path, survey):
    config = {**CONFIG, "network": {**NETWORK, "photometry": False}}
    model = train(survey, tmp_path / "m", config=config, members=1, n_processes=1)
    answer = EnsembleNetwork(model).predict(inputs_of(model, survey, ["photometry"]))
    assert np.isfinite(answer.mean).all()
    dark = EnsembleNetwork(model).predict(inputs_of(model, survey, ["spectrum"]))
    assert np.isnan(dark.mean).all()


@pytest.mark.slow
@pytest.mark.two_threads
@pytest.mark.parametrize("stop_at", [1, 3])
def test_a_checkpoint_goes_on_with_the_same_bits(tmp_path, model, star_simulator, stop_at):
    whole = run(model, star_simulator)

    def stop(epoch, *losses):
        if epoch == stop_at:
            raise KeyboardInterrupt

    options = {"checkpoint": tmp_path / "c.safetensors", "checkpoint_seconds": 0.0}
    with pytest.raises(KeyboardInterrupt):
        run(model, star_simulator, on_epoch=stop, **options)
    seen = []
    resumed = run(
        model, star_simulator, on_epoch=lambda epoch, *losses: seen.append(epoch), **options
    )
    # It was told of this epoch, and had not taken it down.
    assert seen == list(range(stop_at, 6))
    assert same(whole, resumed)
    assert not same(whole, run(model, star_simulator, seed=2, steps=100))


@pytest.mark.slow
@pytest.mark.two_threads
def test_killed_at_any_moment_it_ends_with_the_same_bits(tmp_path, model, star_simulator):
    folder = WorkFolder(tmp_path)
    folder.put_star_simulator(star_simulator, model.scaling)
    job = MemberJob(
        folder=tmp_path,
        member=0,
        seed=10,
        preset="maury",
        network=NETWORK,
        training=SimulatedTraining(steps=1500, stars=60, batch_size=8),
        checkpoint_seconds=0.0,
    )
    code = "import sys; from maury.training.processes import run_job; run_job(sys.argv[1])"
    reached = [0]
    for wait in (0.0, 0.1):
        process = subprocess.Popen(
            [sys.executable, "-c", code, job.model_dump_json()],
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        process.stdout.readline()
        process.stdout.readline()
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        reached.append(read_tensors(folder.checkpoint(0))[1]["epoch"])
    assert 0 < reached[1] <= reached[2] < 15
    train_members([job], n_processes=1, progress=lambda event: None)
    resumed = folder.result(0)
    folder.result_file(0).unlink()
    assert run_job(job.model_dump_json()) == 0
    assert same(folder.result(0), resumed), f"killed after {reached}"


@pytest.mark.slow
def test_a_stopped_ensemble_goes_on_to_the_same_model(tmp_path, monkeypatch, model, survey):
    monkeypatch.setattr(ensemble, "CHECKPOINT_SECONDS", 0.0)
    seen = []

    def stop(event):
        seen.append(event)
        if len(seen) == 4:
            raise KeyboardInterrupt

    path = tmp_path / "m"
    with pytest.raises(KeyboardInterrupt):
        train(survey, path, config=CONFIG, n_processes=1, progress=stop)
    with pytest.raises(ResumeMismatch):
        train(survey, path, config=CONFIG, n_processes=1, seed=3)
    resumed = train(survey, path, config=CONFIG, n_processes=1, progress=seen.append)
    assert resumed.checksum == model.checksum
    # The epoch that it stopped at is told twice.
    assert [event.epoch for event in seen] == [1, 2, 3, 1, 1, 2, 3]
    assert {event.n_epochs for event in seen} == {3}
    assert {event.validation_loss for event in seen} == {None}
    assert seen[-1].training_loss < seen[-3].training_loss


def test_what_it_cannot_simulate_is_one_clear_error(tmp_path, survey):
    two = write_survey(tmp_path / "two.zarr", n=40)
    emulator = {"training": {"theory": "emulator"}}
    with pytest.raises(ConfigError, match=r"ni_fe, got teff, logg; .*--preset guiglion2020"):
        train(two, tmp_path / "m", n_processes=1, config=emulator)
    with pytest.raises(ConfigError, match="--preset guiglion2020"):
        train(survey, tmp_path / "m", config={**emulator, "ensemble": {"labels": ["teff"]}})
    shifted = {"steps": [{"step": "rest_frame", "grid": {"wave_aa": [8300.0, 8350.0, 8400.0]}}]}
    with pytest.raises(ConfigError, match=r"emulator cannot simulate .*--preset guiglion2020"):
        train(survey, tmp_path / "m", config={**emulator, "preparation": shifted})
    with pytest.raises(TrainingError, match=r"at least 100 training stars .*'learnt', got 32"):
        train(two, tmp_path / "m", n_processes=1)
    few = copy_survey(survey.path, tmp_path / "few.zarr", rows=np.arange(25))
    with pytest.raises(TrainingError, match=r"at least 30 training stars .*, got 21"):
        train(few, tmp_path / "m")
    assert not (tmp_path / "m.part").exists()


def test_stars_without_some_labels_train_and_those_without_teff_are_counted(tmp_path, survey):
    silicon, teff = survey.column("si_fe").copy(), survey.column("teff").copy()
    silicon[:15] = np.nan
    teff[20:23] = np.nan
    copy = copy_survey(survey.path, tmp_path / "s.zarr", si_fe=silicon, teff=teff)
    config = {**CONFIG, "training": {"steps": 2, "stars": 20, "batch_size": 4}}
    model = train(copy, tmp_path / "m", config=config, members=1, n_processes=1)
    assert model.training["dropped"]["incomplete labels"] == 3
    assert sum(model.split.n_rows.values()) == 157
    drawn = model.arrays("sky")["labels"]
    assert np.isfinite(drawn).all()
    assert len(drawn) == model.split.n_rows["train"]


def test_course_of_the_step_size():
    config = SimulatedTraining(learning_rate=2.0, rise=0.25)
    rates = [config.rate(p) for p in np.linspace(0, 1, 101)]
    assert max(rates) == pytest.approx(2.0)
    assert int(np.argmax(rates)) == 25
    assert 0 < rates[-1] < 0.01
    assert SimulatedTraining(steps=250).epochs == 3


def test_divergence_is_one_clear_error(model, star_simulator):
    with pytest.raises(TrainingError, match="lower learning_rate"):
        train_on_simulated_stars(
            star_simulator,
            network_config("maury", NETWORK),
            scaling=model.scaling,
            config=SimulatedTraining(steps=40, stars=20, batch_size=4, learning_rate=1e25),
            seed=0,
        )


def test_settings_of_the_preset_are_its_own():
    config = EnsembleConfig.model_validate({})
    assert isinstance(config.training, SimulatedTraining)
    assert config.ensemble.percentile == 100
    again = EnsembleConfig.model_validate(json.loads(json.dumps(config.to_json())))
    assert again == config
    with pytest.raises(ConfigError, match=r"\[training\] epochs: unknown key"):
        EnsembleConfig.model_validate({"training": {"epochs": 3}})
    other = resolve(config, preset="starnet", members=3, split=None)
    assert other.training.epochs == 30
    assert len(other.preparation.observable_names) == 9
    assert other.ensemble.members == 3
