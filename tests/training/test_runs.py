"""A training from a survey to a whole model: what is read, prepared and built, and how often."""

import numpy as np
import pytest

import maury
from builders.training_survey import write_survey
from maury.evaluation.audit import audit
from maury.evaluation.card import read_card
from maury.evaluation.validation import held_out_rows, validate
from maury.model import inference
from maury.model.directory import Model
from maury.prediction import uncertainty
from maury.prediction.streaming import predict, predict_rows
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey

QUICK = {"training": {"steps": 40, "stars": 400}, "ensemble": {"members": 2}}


class Trace:
    """Counts spectra read and prepared, and ensembles built."""

    def __init__(self, patch):
        self.read, self.prepared, self.built = [], [], 0
        read = Survey._read
        load, spectral = inference.load_members, Preparation._spectra

        def counted(survey, name, rows):
            if name == "flux":
                self.read += range(*rows.indices(survey.n_star))
            return read(survey, name, rows)

        def prepare(preparation, batch):
            # With no step there is nothing to prepare: observables are measured again.
            if preparation.steps:
                self.prepared += batch.column("id").tolist()
            return spectral(preparation, batch)

        def build(model):
            self.built += 1
            return load(model)

        patch.setattr(Survey, "_read", counted)
        patch.setattr(Preparation, "_spectra", prepare)
        patch.setattr(inference, "load_members", build)


@pytest.fixture(scope="module")
def traced(tmp_path_factory, default_survey):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", 1000)
        trace = Trace(patch)
        path = tmp_path_factory.mktemp("traced") / "model"
        maury.train(default_survey, path, config=QUICK, seed=5, n_processes=1)
    return trace, path


@pytest.mark.slow
def test_labelled_spectra_are_read_once_and_prepared_once(traced, default_survey):
    trace, _ = traced
    survey = Survey.open(default_survey)
    labelled = np.flatnonzero(np.isfinite(survey.labels()).any(axis=1))
    assert len(trace.read) == len(set(trace.read))
    assert set(labelled) <= set(trace.read)
    assert len(trace.prepared) == len(set(trace.prepared))
    assert set(survey.column("id")[labelled]) <= set(trace.prepared)


@pytest.mark.slow
def test_the_ensemble_is_built_once(traced):
    assert traced[0].built == 1


@pytest.mark.slow
def test_a_shared_sample_gives_what_each_stage_finds_alone(traced, default_survey):
    model = Model.open(traced[1])
    alone = audit(model, default_survey).to_arrays()
    for name, values in model.arrays("audit").items():
        np.testing.assert_allclose(values, alone[name], rtol=1e-5, atol=1e-6, err_msg=name)
    found = validate(model, default_survey, split="validation", with_bounds=False).to_dict()
    (measured,) = read_card(model).metrics
    for one, other in zip(measured["statistics"], found["statistics"], strict=True):
        numbers = {name: value for name, value in other.items() if isinstance(value, float)}
        assert "rms" in numbers
        assert {name: one[name] for name in numbers} == pytest.approx(numbers, rel=1e-5, abs=1e-6)
    assert measured["n_warn"] == found["n_warn"]


@pytest.mark.slow
def test_a_method_reads_and_prepares_once_too(tmp_path, tiny_survey):
    with pytest.MonkeyPatch.context() as patch:
        trace = Trace(patch)
        model = maury.train(tiny_survey, tmp_path / "m", method="cannon")
    assert trace.read
    assert len(trace.read) == len(set(trace.read))
    assert len(trace.prepared) == len(set(trace.prepared))
    found = validate(model, tiny_survey, split="validation", with_bounds=False).to_dict()
    (measured,) = read_card(model).metrics
    assert measured["n_row"] == found["n_row"]
    assert [one["rms"] for one in measured["statistics"]] == pytest.approx(
        [one["rms"] for one in found["statistics"]], rel=1e-5
    )


STARNET = {"training": {"epochs": 2}, "ensemble": {"members": 1}}


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("small") / "s.zarr", n=900)


def test_networks_without_theory_are_calibrated_on_their_validation_stars(tmp_path, small):
    """One network has no spread: its errors are those that the residuals have."""
    model = maury.train(
        small, tmp_path / "m", preset="starnet", config=STARNET, seed=4, n_processes=1
    )
    assert model.errors_calibrated
    rows = held_out_rows(model, small, split="test")
    table = predict_rows(model, small, rows)
    truth = small.labels(model.labels)[rows]
    for k, name in enumerate(model.label_names):
        apart = np.abs(table[name] - truth[:, k])
        # Of 45 test stars, calibrated on 36: the sampling error of the share is 10 %.
        assert 0.4 < np.mean(apart < table[f"{name}_error"]) < 0.95
        assert (table[f"{name}_q02"] < table[f"{name}_q98"]).all()
    about = model.attachments["residual_calibration"].metadata
    held_out = model.split.contains("validation", small.star_id)
    assert about["n_star"] == held_out.sum()
    again = predict(Model.open(tmp_path / "m"), small, tmp_path / "c.fits")
    assert "validation stars" in again.metadata["errors"]
    assert "chi2_reduced" not in again.table.colnames


def test_the_published_split_has_no_stars_to_calibrate_errors_on(tmp_path, small, caplog):
    model = maury.train(
        small,
        tmp_path / "m",
        preset="starnet",
        config=STARNET,
        split="published",
        seed=4,
        n_processes=1,
    )
    assert not model.errors_calibrated
    assert "not calibrated" in caplog.text
    assert "teff_formal_error" in predict_rows(model, small, np.arange(3))
