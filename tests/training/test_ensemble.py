import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from builders.training_survey import write_survey
from maury.errors import (
    ConfigError,
    ModelFileError,
    OutputExists,
    ResumeMismatch,
    TrainingError,
)
from maury.model import inference
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.ensemble import ChoiceConfig, EnsembleConfig, choose, train
from maury.training.settings import resolve

torch.set_num_threads(1)

CONFIG = {
    "network": {"preset": "guiglion2020", "kernel": 6, "filters": [4]},
    "training": {"epochs": 12, "learning_rate": 5e-3},
    "ensemble": {"members": 3},
}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "s.zarr")


@pytest.fixture(scope="module")
def model(tmp_path_factory, survey):
    return train(survey, tmp_path_factory.mktemp("model") / "m", config=CONFIG, n_processes=1)


def inputs_of(model, survey, start=0, stop=None):
    return model.preparation.apply(survey.batch(start, len(survey) if stop is None else stop))


def quick(survey, path, **options):
    return train(survey, path, **{"config": CONFIG, "n_processes": 1, **options})


def test_it_learns_and_says_so_on_held_out_stars(model, survey):
    test = model.split.contains("test", survey.star_id)
    answer = EnsembleNetwork(model).predict(inputs_of(model, survey))
    mean, error = answer.mean, answer.sigma
    assert answer.covariance is None
    assert answer.features is None
    truth = survey.labels()
    scatter = np.std((mean - truth)[test], axis=0)
    assert np.all(scatter < 0.35 * np.std(truth, axis=0))
    assert np.all(error > 0)
    assert model.simulated
    assert model.split.rule == "star"
    assert sum(model.split.n_rows.values()) == len(survey)


def test_the_answer_is_mean_and_deviation_of_the_kept_networks(model, survey):
    inputs = inputs_of(model, survey, 0, 40)
    answer = EnsembleNetwork(model, engine="torch").predict(inputs)
    flux = torch.from_numpy(inputs.flux)
    observables = torch.from_numpy(model.scaling.observables.forward(inputs.observables))
    with torch.no_grad():
        scaled = [net(flux, observables).numpy() for net in inference.load_members(model)]
    low, high = model.scaling.labels.minimum, model.scaling.labels.maximum
    answers = np.array(scaled, dtype=np.float64) * (high - low) + low
    assert len(answers) == len(model.kept)
    np.testing.assert_allclose(answer.mean, answers.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(answer.sigma, answers.std(axis=0, ddof=1), rtol=1e-4)


def test_rows_out_are_rows_in_whatever_the_batch(model, survey):
    network = EnsembleNetwork(model)
    whole = network.predict(inputs_of(model, survey))
    parts = [network.predict(inputs_of(model, survey, k, k + 7)) for k in range(0, 70, 7)]
    for name in ("mean", "sigma"):
        pieces = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_allclose(pieces, getattr(whole, name)[:70], rtol=1e-4, atol=1e-5)


def test_a_row_that_lacks_an_input_is_nan(tmp_path, model):
    parallax = np.full(20, 1.5)
    parallax[3] = -1.0
    ivar = np.full((20, 64), 1e4)
    ivar[5] = 0.0
    odd = write_survey(tmp_path / "odd.zarr", n=20, parallax=parallax, ivar=ivar)
    answer = EnsembleNetwork(model).predict(inputs_of(model, odd))
    lost = np.isin(np.arange(20), [3, 5])
    assert np.isnan(answer.mean[lost]).all()
    assert np.isnan(answer.sigma[lost]).all()
    assert np.isfinite(answer.mean[~lost]).all()


@pytest.mark.slow
def test_same_seed_same_model_and_another_seed_another(tmp_path, model, survey):
    again = quick(survey, tmp_path / "again")
    assert again.checksum == model.checksum
    other = quick(survey, tmp_path / "other", seed=1)
    assert other.checksum != model.checksum
    more = quick(survey, tmp_path / "more", members=4)
    assert [m.sha256 for m in more.members[:3]] == [m.sha256 for m in model.members]


@pytest.mark.parametrize("preset", ["starnet", "astronn"])
def test_the_other_presets(tmp_path, survey, preset):
    options = {"mc_passes": 5} if preset == "astronn" else {}
    config = {"network": {"preset": preset, **options}, "training": {"epochs": 3}}
    result = train(survey, tmp_path / "m", config=config, members=1, n_processes=1)
    network = EnsembleNetwork(result)
    answer = network.predict(inputs_of(result, survey, 0, 30))
    again = network.predict(inputs_of(result, survey, 0, 30))
    np.testing.assert_array_equal(answer.mean, again.mean)
    assert np.isfinite(answer.mean).all()
    assert np.isnan(answer.sigma).all() == (preset == "starnet")
    assert result.training["settings"]["training"]["batch_size"] == 64


@pytest.mark.slow
def test_only_some_rows_and_labels_are_usable(tmp_path):
    base = write_survey(tmp_path / "base.zarr", n=200)
    teff, logg = base.labels().T.copy()
    teff[:10] = logg[:10] = np.nan
    teff[10:40] = np.nan
    parallax = base.column("parallax").copy()
    parallax[40:44] = np.nan
    ivar = np.full((200, 64), 1e4)
    ivar[44:47] = 0.0
    odd = write_survey(
        tmp_path / "odd.zarr", n=200, teff=teff, logg=logg, parallax=parallax, ivar=ivar
    )
    result = quick(odd, tmp_path / "m", members=1)
    dropped = result.training["dropped"]
    assert {reason: count for reason, count in dropped.items() if count} == {
        "no label": 10,
        "no usable pixel": 3,
        "missing observable": 4,
    }
    assert sum(result.split.n_rows.values()) == 183
    took = result.split.took_part(odd.star_id)
    assert not took[:10].any()
    alone = quick(
        odd,
        tmp_path / "alone",
        config={**CONFIG, "network": {**CONFIG["network"], "photometry": False}},
        members=1,
    )
    assert alone.training["dropped"]["missing observable"] == 0
    one = quick(odd, tmp_path / "one", config={**CONFIG, "ensemble": {"labels": ["logg"]}})
    assert one.label_names == ("logg",)


def test_published_split_is_recorded_aloud(tmp_path, survey, caplog):
    result = quick(survey, tmp_path / "m", split="published", members=1)
    assert "no independent test" in caplog.text
    assert "steer early stopping" in Model.open(result.path).split.warning
    assert result.split.checksums["test"] == result.split.checksums["validation"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [2, 17])
def test_a_run_that_stops_goes_on_to_the_same_model(
    tmp_path, monkeypatch, survey, model, stop_after
):
    monkeypatch.setattr(ensemble, "CHECKPOINT_SECONDS", 0.0)
    seen = []

    def stop(event):
        seen.append(event)
        if len(seen) == stop_after:
            raise KeyboardInterrupt

    path = tmp_path / "m"
    with pytest.raises(KeyboardInterrupt):
        quick(survey, path, progress=stop)
    assert not path.exists()
    resumed = quick(survey, path, progress=seen.append)
    assert resumed.checksum == model.checksum
    assert len(seen) == 3 * 12 + 1, "the epoch that it stopped at is told twice"
    assert os.listdir(tmp_path) == ["m"]


def test_another_run_does_not_resume(tmp_path, survey):
    def stop(event):
        raise KeyboardInterrupt

    path = tmp_path / "m"
    with pytest.raises(KeyboardInterrupt):
        quick(survey, path, progress=stop)
    for change in ({"seed": 5}, {"preset": "starnet"}):
        with pytest.raises(ResumeMismatch, match="other settings or data"):
            quick(survey, path, **change)
    other = write_survey(tmp_path / "o.zarr", seed=3)
    with pytest.raises(ResumeMismatch):
        quick(other, path)
    assert quick(survey, path, seed=5, members=1, overwrite=True).seed == 5
    with pytest.raises(OutputExists):
        quick(survey, path)


@pytest.mark.two_threads
@pytest.mark.slow
def test_processes_from_an_unguarded_script(tmp_path, survey, model):
    script = tmp_path / "script.py"
    config = json.dumps(CONFIG)
    script.write_text(
        "import json, sys, maury\n"
        f"config = json.loads('{config}')\n"
        "maury.train(sys.argv[1], sys.argv[2], config=config, n_processes=2)\n"
    )
    command = [sys.executable, str(script), str(survey.path), str(tmp_path / "m")]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert [m.sha256 for m in Model.open(tmp_path / "m").members] == [
        m.sha256 for m in model.members
    ]


def test_what_cannot_be_learnt(tmp_path, survey):
    none = np.full(20, np.nan)
    empty = write_survey(tmp_path / "empty.zarr", n=20, teff=none, logg=none)
    with pytest.raises(TrainingError, match="no labels to learn"):
        quick(empty, tmp_path / "m")
    dark = write_survey(tmp_path / "dark.zarr", n=20, ivar=np.zeros((20, 64)))
    with pytest.raises(TrainingError, match="20 no usable pixel"):
        quick(dark, tmp_path / "m")
    teff_only = write_survey(tmp_path / "teff.zarr", n=20, logg=none)
    with pytest.raises(TrainingError, match="value of logg"):
        quick(teff_only, tmp_path / "m")
    with pytest.raises(ConfigError, match="did you mean 'logg'"):
        quick(survey, tmp_path / "m", config={**CONFIG, "ensemble": {"labels": ["log_g"]}})
    assert not (tmp_path / "m.part").exists()


def test_weights_of_another_network_are_refused(tmp_path, model):
    file = model.save(tmp_path / "m").path / "model.json"
    document = json.loads(file.read_text())
    (file.parent / "SHA256SUMS").unlink()  # As whoever changes a model on purpose is told.
    document["network"]["head_units"] = 17
    file.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="do not fit"):
        EnsembleNetwork(Model.open(tmp_path / "m"))
    document["network"] = {"name": "tomorrow"}
    file.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="unknown preset"):
        EnsembleNetwork(Model.open(tmp_path / "m"))


@pytest.mark.parametrize(
    ("losses", "kept"),
    [
        ([0.4, 0.1, 0.3, 0.2], [False, True, True, True]),
        ([0.2, 0.1], [True, True]),
        ([0.3], [True]),
        ([0.1] * 5, [True] * 5),
        (list(range(10)), [True] * 8 + [False] * 2),
    ],
)
def test_choice_of_members(losses, kept):
    assert choose(np.array(losses, dtype=float), ChoiceConfig()).tolist() == kept


def test_a_settings_file_reports_everything_at_once(tmp_path):
    file = tmp_path / "train.toml"
    file.write_text(
        """
        [network]
        preset = "guiglion2020"
        kernal = 8
        [training]
        epochs = 0
        batchsize = 4
        [split]
        train = 0.5
        [ensembel]
        members = 2
        [preparation]
        stepz = []
        """
    )
    with pytest.raises(ConfigError) as caught:
        EnsembleConfig.read(file)
    for text in (
        "did you mean 'kernel'",
        "[training] epochs",
        "did you mean 'batch_size'",
        "must be 1",
        "did you mean 'ensemble'",
        "stepz",
    ):
        assert text in str(caught.value)
    file.write_text("no toml [")
    with pytest.raises(ConfigError, match=r"train\.toml"):
        EnsembleConfig.read(file)


def test_options_that_name_no_preset_are_for_the_one_that_is_asked():
    given = {"network": {"filters": [4, 2]}}
    found = resolve(given, preset="guiglion2020", members=None, split=None)
    assert found.network.filters == (4, 2)
    with pytest.raises(ConfigError, match="filters"):
        resolve(given, preset="maury", members=None, split=None)
    other = {"network": {"preset": "guiglion2020", "filters": [4, 2]}}
    assert resolve(other, preset="starnet", members=None, split=None).network.filters == (4, 16)


def test_settings_round_trip_and_defaults_of_the_preset():
    for preset, batch_size in (("guiglion2020", 16), ("starnet", 64)):
        config = EnsembleConfig.model_validate({"network": {"preset": preset}})
        assert config.training.batch_size == batch_size
        assert EnsembleConfig.model_validate(config.to_json()) == config


def test_survey_may_be_given_by_its_path(tmp_path, survey):
    result = quick(str(survey.path), str(tmp_path / "m"), members=1)
    assert result.provenance["survey"]["name"] == Survey.open(survey.path).path.name
