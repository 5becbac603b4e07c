"""Any survey: which theory its stars are simulated with, and a model without the emulator."""

import json

import numpy as np
import pytest

from builders.training_survey import write_survey
from maury.errors import ConfigError
from maury.evaluation.audit import audit
from maury.evaluation.validation import validate
from maury.labels.definitions import LABEL_NAMES
from maury.model.directory import Model
from maury.prediction.streaming import predict
from maury.simulation.missing_labels import fill_from_spectra
from maury.simulation.surveys import simulate_survey
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey, SurveyWriter
from maury.training.runs import train
from maury.training.settings import EnsembleConfig, resolve
from maury.training.theory_choice import choose_theory

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

CONFIG = {
    "network": {"stem": 24, "width": 32, "depth": 1, "blocks": 4},
    "training": {"steps": 300, "stars": 3000, "batch_size": 64},
}


def test_the_emulator_is_taken_where_it_reaches_and_the_reason_is_told(tmp_path):
    known = simulate_survey(tmp_path / "s.zarr", n_star=3, seed=1)
    with SurveyWriter(
        tmp_path / "o.zarr", n_star=1, wave_aa=5000.0 + np.arange(9), medium="air", simulated=False
    ) as writer:
        writer.write(0, np.ones((1, 9)), np.ones((1, 9)), id=["a"], star_id=["a"])
    other = Survey.open(tmp_path / "o.zarr")

    def chosen(survey, names=LABEL_NAMES, wanted="auto"):
        return choose_theory(wanted, survey, Preparation(), names)

    assert chosen(known).name == "emulator"
    assert chosen(known, wanted="learnt").name == "learnt"
    fewer, more = chosen(known, LABEL_NAMES[:2]), chosen(known, (*LABEL_NAMES, "ca_fe"))
    assert (fewer.name, more.name) == ("learnt", "learnt")
    assert "needs m_h" in fewer.reason
    assert "ca_fe" in more.reason
    elsewhere = chosen(other)
    assert elsewhere.name == "learnt"
    assert "angstrom" in elsewhere.reason
    unknown = choose_theory("auto", known, Preparation(), LABEL_NAMES, power_known=False)
    assert unknown.name == "learnt"
    assert "resolving power" in unknown.reason
    with pytest.raises(ConfigError, match=r"ca_fe; write theory = \"learnt\""):
        chosen(known, (*LABEL_NAMES, "ca_fe"), "emulator")


def test_settings_of_a_file_leave_to_the_survey_what_they_do_not_state(tmp_path):
    survey = write_survey(tmp_path / "o.zarr", n=10, resolving_power=28_000)
    (tmp_path / "c.toml").write_text("[training]\nsteps = 50\n", "utf-8")
    as_file = resolve(tmp_path / "c.toml", preset=None, members=2, split=None).seen_in(survey)
    read = EnsembleConfig.read(tmp_path / "c.toml")
    as_object = resolve(read, preset=None, members=2, split=None).seen_in(survey)
    assert as_file == as_object
    assert as_file.training.observing.resolving_power == 28_000
    assert (as_file.training.steps, as_file.ensemble.members) == (50, 2)
    default = EnsembleConfig.model_validate({})
    assert default.training.steps == 14_000
    assert default.seen_in(survey).training.steps == 7000, "as its theory is learnt"


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    path = tmp_path_factory.mktemp("learnt") / "s.zarr"
    return write_survey(path, n=400, resolving_power=None)


@pytest.fixture(scope="module")
def model(survey, tmp_path_factory):
    path = tmp_path_factory.mktemp("learnt-model") / "m"
    return train(survey, path, members=2, config=CONFIG, seed=1, n_processes=1)


def test_a_survey_without_theory_gets_labels_with_errors_flags_and_an_audit(
    model, survey, tmp_path
):
    assert model.label_names == ("teff", "logg")
    assert model.training["settings"]["training"]["theory"] == "learnt"
    assert {"calibration", "coverage", "audit", "sky"} <= set(model.attachments)
    found = validate(model, survey)
    by_name = {one.name: one for one in found.statistics}
    bounds = validate(model, survey, with_bounds=True).bounds
    assert [one.name for one in bounds] == ["teff", "logg"]
    assert all(0 < one.overall.spectrum_alone < np.inf for one in bounds)
    audited = audit(model, survey, n_bootstrap=20)
    assert json.loads(audited.to_json())["sensitivities"][0]["fe_h"] is None
    (typical,) = audited.sensitivities
    assert (typical.star, typical.label_names) == ("typical star", ("teff", "logg"))
    # Teff: photometry tells log g in this sample, so that its lines matter little.
    assert typical.correlation[0] > 0.5, "networks read a label from its own lines"
    assert 0.3 < typical.optimal_response[0] < typical.response[0] < 1.2
    assert by_name["teff"].scatter < 0.15 * np.std(survey.column("teff"))
    assert by_name["logg"].scatter < 0.15 * np.std(survey.column("logg"))
    catalogue = predict(model, survey, tmp_path / "labels.fits")
    assert len(catalogue.table) == len(survey)
    assert np.isfinite(catalogue.table["teff_error"]).all()
    again = Model.open(model.path)
    simulator = TrainingStarSimulator.of_model(again)
    assert simulator.names == ("teff", "logg")
    labels = simulator.labels[:7]
    np.testing.assert_array_equal(
        simulator.theory(labels), TrainingStarSimulator.of_model(model).theory(labels)
    )


def test_one_label_alone_is_a_model_too(survey, tmp_path):
    config = {**CONFIG, "ensemble": {"labels": ["logg"]}}
    one = train(survey, tmp_path / "m", members=2, config=config, seed=1, n_processes=1)
    assert one.label_names == ("logg",)
    assert {"calibration", "coverage", "audit"} <= set(one.attachments)
    assert TrainingStarSimulator.of_model(one).hidden.shape[1] >= 1, "Teff is no label"
    found = validate(one, survey).statistics[0]
    assert found.scatter < 0.2 * np.std(survey.column("logg"))


def test_a_spectrum_unlike_all_is_flagged_without_theory(model, survey, tmp_path):
    flux = survey.batch(0, len(survey)).spectra.flux.copy()
    flux[:60] -= 0.3 * np.exp(-0.5 * ((np.arange(64) - 32) / 2.0) ** 2).astype(np.float32)
    faulty = write_survey(tmp_path / "f.zarr", n=400, flux=flux)
    table = predict(model, faulty, tmp_path / "f.fits").table
    assert table["warn"][:60].mean() > 0.9
    assert table["warn"][60:].mean() < 0.1


def test_missing_labels_are_estimated_from_spectra():
    rng = np.random.default_rng(5)
    labels = rng.normal(size=(400, 3)) * (500, 0.5, 0.2) + (5000, 3, 0)
    directions = rng.normal(size=(3, 80))
    scaled = (labels - (5000, 3, 0)) / (500, 0.5, 0.2)
    flux = (1 + 0.02 * scaled @ directions + rng.normal(0, 0.01, (400, 80))).astype(np.float32)
    ivar = np.full_like(flux, 1e4)
    given = labels.copy()
    lost = rng.random(labels.shape) < 0.3
    given[lost] = np.nan
    given[0] = np.nan
    some = np.isfinite(given).any(axis=1)
    training = np.arange(400) < 300
    filled = fill_from_spectra(given, flux, ivar, np.zeros((400, 0)), training)
    assert np.isnan(filled[0]).all(), "a star without any label has none"
    known = np.isfinite(given)
    np.testing.assert_array_equal(filled[known], labels[known])
    error = (filled - labels)[some] / (500, 0.5, 0.2)
    assert np.sqrt(np.mean(error[~known[some]] ** 2)) < 0.2
    given[:, 2] = np.nan
    given[:20, 2] = labels[:20, 2]
    few = fill_from_spectra(given, flux, ivar, np.zeros((400, 0)), training)
    assert np.isnan(few[30:, 2]).all(), "too few stars tell of it"
