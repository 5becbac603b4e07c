"""A model adapted to a survey without labels."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.surveys import copy_survey
from maury.cli.app import app
from maury.errors import ConfigError
from maury.evaluation.card import read_card
from maury.model.directory import Model
from maury.prediction import survey_check
from maury.prediction.calibration import Calibration, Regime
from maury.prediction.streaming import predict_rows
from maury.prediction.survey_check import CommonChange, SurveyCheck
from maury.survey.store import Survey
from maury.training import adaptation
from maury.training.adaptation import adapt

QUICK = {"training": {"steps": 20, "stars": 300}}
LABELS = ("teff", "logg", "m_h", "fe_h", "alpha_m", "si_fe", "al_fe", "mg_fe", "ni_fe")


@pytest.fixture(scope="module")
def stronger(default_survey, tmp_path_factory):
    """The survey with all lines 20 % stronger, and without labels."""
    path = tmp_path_factory.mktemp("adapt") / "s.zarr"
    drop = [name for label in LABELS for name in (label, f"{label}_error")]
    return copy_survey(default_survey, path, drop=drop, flux=lambda flux: 1.2 * flux - 0.2)


@pytest.fixture(scope="module")
def adapted(default_model, stronger, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapted") / "m"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptation, "_N_SIMULATED", 500)
        done = CliRunner().invoke(app, _command(default_model, stronger, path))
    assert done.exit_code == 0, done.output
    assert "stronger" in done.output
    assert "measuring what the stars of the survey have in common" in done.output
    assert "training 2 networks" in done.output
    return path


def _command(model, survey, path):
    config = path.with_name("adapt.toml")
    config.write_text("[training]\nsteps = 20\nstars = 300\n")
    command = ["adapt", str(model), str(survey), str(path), "--config", str(config)]
    return [*command, "--processes", "1"]


@pytest.mark.slow
def test_the_theory_has_the_lines_of_the_survey(adapted, default_model):
    model, source = Model.open(adapted), Model.open(default_model)
    depth = [1 - _theory(one, source.arrays("sky")["labels"][:50]) for one in (model, source)]
    lines = depth[1] > 0.1
    assert np.median((depth[0] / depth[1])[lines]) == pytest.approx(1.2, abs=0.05)
    np.testing.assert_array_equal(model.arrays("sky")["labels"], source.arrays("sky")["labels"])


def _theory(model, labels):
    from maury.simulation.training_stars import TrainingStarSimulator

    return TrainingStarSimulator.of_model(model).theory(labels)


@pytest.mark.slow
def test_it_is_a_whole_model_that_says_what_it_is(adapted, default_model, stronger):
    model, source = Model.open(adapted), Model.open(default_model)
    kept = {"sky", "losses", "calibration", "coverage", "sample", "common", "canary"}
    assert set(model.attachments) == kept
    assert model.provenance["adapted"]["from"] == source.checksum
    assert "shares" not in model.training
    assert read_card(model) is not None
    table = predict_rows(model, stronger, np.arange(30))
    assert np.isfinite(table["teff"]).all()
    before, after = (one.arrays("calibration")["size"] for one in (source, model))
    assert (after >= before).all()
    moved = model.arrays("coverage")["reference_features"]
    assert not np.allclose(moved, source.arrays("coverage")["reference_features"])


@pytest.mark.slow
def test_what_cannot_be_known_is_refused(
    default_model, default_survey, tiny_model, tiny_survey, stronger, adapted, tmp_path
):
    with pytest.raises(ConfigError, match="only models of the preset 'maury'"):
        adapt(tiny_model, tiny_survey, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"nothing that the stars of .* have in common differs"):
        adapt(default_model, default_survey, tmp_path / "m")
    few = copy_survey(stronger, tmp_path / "few.zarr", rows=np.arange(20))
    with pytest.raises(ConfigError, match="at least 30"):
        adapt(default_model, few, tmp_path / "m")
    with pytest.raises(ConfigError, match=r"takes the section .training. alone, got network"):
        adapt(default_model, stronger, tmp_path / "m", config={"network": {}})
    model = Model.open(default_model)
    attachments = {k: a for k, a in model.attachments.items() if k != survey_check.COMMON}
    older = replace(model, attachments=attachments).save(tmp_path / "older")
    with pytest.raises(ConfigError, match="train it again"):
        adapt(older, stronger, tmp_path / "m")
    assert not (tmp_path / "m").exists()


def change(name, value, *, grave=False):
    return CommonChange(name, value, 0.001, 0.03, grave, f"{name} {value}", "so")


def test_lines_too_far_from_theory_are_refused_and_what_is_left_is_told(
    default_model, stronger, caplog
):
    model, survey = Model.open(default_model), Survey.open(stronger)
    with pytest.raises(ConfigError, match="more than theory can be adapted by"):
        adaptation._refuse(SurveyCheck((change("strength", 0.4, grave=True),), 99), model, survey)
    with pytest.raises(ConfigError, match="nothing"):
        adaptation._refuse(SurveyCheck((change("velocity", 9.0),), 99), model, survey)
    assert "velocity 9.0 (+- 0.001): so; this is not taken in" in caplog.text


def test_zero_points_move_magnitudes_and_colours(default_model):
    model = Model.open(default_model)
    names = list(model.preparation.observable_names)
    check = SurveyCheck((change("zero point W2", 0.1), change("zero point G", 0.01)), 99)
    moved = adaptation._shifted(np.zeros((2, len(names))), model, check)[0]
    found = dict(zip(names, moved, strict=True))
    assert (found["M_W2"], found["M_G"], found["G-W2"], found["W1-W2"]) == (0.1, 0.0, -0.1, -0.1)
    assert found["J-H"] == 0.0


def test_errors_grow_as_simulated_residuals_do_and_never_shrink():
    rng = np.random.default_rng(0)
    error = np.ones((4000, 2))
    regime = Regime(np.full(4000, 50.0), np.full(4000, 3.0), np.zeros(4000))
    before = (rng.normal(size=(4000, 2)), error, regime)
    after = (rng.normal(size=(4000, 2)) * [1.3, 0.7], error, regime)
    scale = Calibration.none(2).widened(before, after).global_scale
    assert scale[0] == pytest.approx(np.log(1.3), abs=0.06)
    assert scale[1] == 0.0
