"""Labelled stars whose labels are doubted, and training without them."""

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from builders.faulty_stages import QUICK
from builders.surveys import copy_survey
from maury.cli.app import app
from maury.errors import ConfigError, InputFileError, TrainingError
from maury.evaluation import suspects
from maury.evaluation.suspects import find_suspects
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.model.output import Prediction
from maury.model.split import Split, held_out_fold, kept_rows
from maury.prediction.uncertainty import UncertaintyModel
from maury.spectra.preparation import Inputs
from maury.survey.labelled_sample import listed_rows
from maury.survey.store import Survey
from maury.training.runs import train


@pytest.fixture(scope="module")
def mismatched(default_survey, tmp_path_factory):
    """The labelled survey with the labels of three pairs of unlike stars exchanged."""
    survey = Survey.open(default_survey)
    order = np.argsort(survey.column("teff"))
    rows = np.array([*order[:3], *order[-3:]])
    columns = {}
    for name in survey.label_names:
        columns[name] = survey.column(name).copy()
        columns[name][rows] = survey.column(name)[rows[::-1]]
    path = tmp_path_factory.mktemp("suspects") / "mismatched.zarr"
    return copy_survey(default_survey, path, **columns), rows


def test_exchanged_labels_are_found_and_a_clean_survey_has_few(
    default_model, default_survey, mismatched
):
    path, rows = mismatched
    found = find_suspects(default_model, path)
    survey = Survey.open(path)
    assert set(rows) <= set(found.row)
    assert len(found) <= len(rows) + 0.02 * len(survey)
    assert (np.diff(found.n_sigma) <= 0).all()
    assert (found.n_sigma > 5).all()
    expected = (found.given - found.predicted) / found.error
    np.testing.assert_allclose(found.off, expected)
    given = [survey.column(name)[row] for name, row in zip(found.label, found.row, strict=True)]
    np.testing.assert_array_equal(found.given, given)
    assert found.id.tolist() == survey.id[found.row].tolist()
    assert len(find_suspects(default_model, default_survey)) <= 0.02 * len(survey)


def test_training_stars_are_predicted_by_the_network_that_held_them_out(
    default_model, default_survey, monkeypatch
):
    model, survey = Model.open(default_model), Survey.open(default_survey)
    asked = []
    predict = EnsembleNetwork.predict

    def noted(self, inputs, *, only=None):
        asked.append((only, len(inputs)))
        return predict(self, inputs, only=only)

    monkeypatch.setattr(EnsembleNetwork, "predict", noted)
    find_suspects(model, survey)
    training = model.split.contains("train", survey.star_id)
    fold = held_out_fold(survey.star_id, n_fold=model.training["shares"], seed=model.seed)
    for member in range(2):
        assert (member, int((training & (fold == member)).sum())) in asked


def test_reasons_follow_from_which_half_of_the_inputs_agrees(default_model, monkeypatch):
    """Spectrum and photometry of five stars, each of which agrees with the labels or does not."""
    labeller = suspects._calibrated(Model.open(default_model))
    n_label = len(labeller.network.model.labels)
    inputs = _inputs(5, len(labeller.network.model.preparation.observable_names))
    spectrum_agrees = np.array([False, False, True, False, False])
    photometry_agrees = np.array([False, False, False, True, True])

    def calibrate(self, given, prediction):
        dark = not (given.ivar > 0).any()
        good = photometry_agrees if dark else spectrum_agrees
        mean = np.where(good[:, None], 0.0, 10.0) * np.ones(n_label)
        return Prediction(mean, np.ones_like(mean))

    monkeypatch.setattr(UncertaintyModel, "calibrate", calibrate)
    monkeypatch.setattr(UncertaintyModel, "predict", lambda *_: None)
    apart = Flag.PHOTOMETRY_DISAGREES.value
    flags = np.array([0, 0, apart, apart, Flag.RADIAL_VELOCITY_WRONG.value], np.int32)
    size = np.full((5, n_label), 6.0)
    size[1, 1:] = 0.0
    reasons = suspects._reasons(labeller, inputs, np.zeros((5, n_label)), flags, size)
    starts = ("wrong cross-match", "a wrong value", "photometry of another", "spectrum of another")
    for reason, start in zip(reasons, (*starts, "the spectrum is at fault"), strict=True):
        assert reason.startswith(start)


def _inputs(n_star, n_observable):
    flux = np.ones((n_star, 4), np.float32)
    observables = np.ones((n_star, n_observable), np.float32)
    flags, snr = np.zeros(n_star, np.int32), np.full(n_star, 50.0)
    return Inputs(flux, flux, observables, observables, flags, snr, np.arange(4.0), "air")


def test_errors_are_widened_to_the_scatter_of_all_stars():
    rng = np.random.default_rng(0)
    truth = np.zeros((400, 2))
    covariance = np.tile(np.eye(2), (400, 1, 1))
    found = Prediction(rng.normal(0, (3.0, 0.5), (400, 2)), np.ones((400, 2)), covariance)
    number = np.r_[np.full(380, -1), np.zeros(20, int)]
    wide = suspects._widened(found, truth, number)
    assert wide.sigma[0] == pytest.approx([3.0, 1.0], rel=0.15)
    np.testing.assert_allclose(np.diagonal(wide.covariance[0]), wide.sigma[0] ** 2)
    # Of twenty stars the scatter says too little.
    assert wide.sigma[-1].tolist() == [1.0, 1.0]


def test_three_labels_count_together_and_others_alone(default_model):
    """Errors of 1, correlated by .8: (3, -3) is sqrt(90) off, (3, 3) is sqrt(10)."""
    model = Model.open(default_model)
    covariance = np.tile(np.eye(9), (5, 1, 1))
    covariance[:, 0, 1] = covariance[:, 1, 0] = 0.8
    mean = np.zeros((5, 9))
    truth = np.zeros((5, 9))
    truth[0, :2] = 3, -3
    truth[1, :2] = 3, 3
    truth[2, 6] = 6
    truth[3] = np.nan
    covariance[4] = np.nan
    size = np.where(np.isfinite(truth), np.abs(truth), 0.0)
    far = suspects._doubt(model, Prediction(mean, np.ones((5, 9)), covariance), truth, size)
    np.testing.assert_allclose(far, [np.sqrt(90), np.sqrt(10), 5, 0, 0])


def test_models_without_calibrated_errors_and_surveys_without_labels_are_refused(
    tiny_model, default_model, observed_survey, tiny_survey
):
    with pytest.raises(ConfigError, match="no calibrated errors"):
        find_suspects(tiny_model, tiny_survey)
    with pytest.raises(TrainingError, match="no labels"):
        find_suspects(default_model, observed_survey)
    with pytest.raises(ConfigError, match="above 0"):
        find_suspects(default_model, tiny_survey, n_sigma=0)


@pytest.mark.slow
def test_the_command_lists_and_training_leaves_out(default_model, mismatched, tmp_path):
    path, rows = mismatched
    out = tmp_path / "suspects.csv"
    done = CliRunner().invoke(app, ["suspects", str(default_model), str(path), "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert "suspects among 500 SIMULATED labelled rows" in done.output
    listed = Table.read(out, format="ascii.csv")
    survey = Survey.open(path)
    assert set(survey.id[rows]) <= set(listed["id"])
    whole = train(path, tmp_path / "whole", config=QUICK, seed=3, n_processes=1)
    model = train(path, tmp_path / "m", config=QUICK, seed=3, n_processes=1, leave_out=out)
    left = np.isin(survey.id, listed["id"]) & ~whole.split.contains("test", survey.star_id)
    assert left.sum() > 0
    for part in ("train", "validation"):
        before, after = (one.split.contains(part, survey.star_id) for one in (whole, model))
        np.testing.assert_array_equal(after, before & ~left)
    tested = (one.split.contains("test", survey.star_id) for one in (whole, model))
    np.testing.assert_array_equal(*tested)
    assert model.training["dropped"]["left out by name"] == left.sum()
    assert "left out by name" not in whole.training["dropped"]


@pytest.mark.slow
def test_a_method_leaves_them_out_as_well(mismatched, tmp_path):
    path, rows = mismatched
    survey = Survey.open(path)
    Table({"id": survey.id[rows]}).write(tmp_path / "list.ecsv")
    model = train(path, tmp_path / "m", method="cannon", leave_out=tmp_path / "list.ecsv")
    assert not model.split.contains("train", survey.star_id[rows]).any()


def test_a_list_names_stars_by_any_spectrum_and_must_be_of_this_survey(tiny_survey, tmp_path):
    survey = Survey.open(tiny_survey)
    star_id = survey.star_id[[0, 0, *range(2, len(survey))]]
    twice = copy_survey(tiny_survey, tmp_path / "s.zarr", star_id=star_id)
    Table({"id": survey.id[[1, 7]]}).write(tmp_path / "list.csv")
    listed = listed_rows(Survey.open(twice), tmp_path / "list.csv")
    assert np.flatnonzero(listed).tolist() == [0, 1, 7]
    assert not listed_rows(survey, None).any()
    Table({"id": ["nobody"]}).write(tmp_path / "other.csv")
    with pytest.raises(InputFileError, match=r"lists 1 spectra .* such as 'nobody'"):
        listed_rows(survey, tmp_path / "other.csv")


def test_test_rows_are_never_left_out_but_those_of_the_published_split_are():
    rows = [np.array(k) for k in ([0, 1], [2], [3])]
    dropped = {}
    kept = kept_rows(Split("star", *rows), np.array([True, False, True, True]), dropped)
    assert kept.tolist() == [False, True, False, True]
    assert dropped == {"left out by name": 2}
    kept = kept_rows(Split("published", *rows), np.array([True, False, True, True]), dropped)
    assert kept.tolist() == [False, True, False, False]


def test_without_suspects_no_list_is_written(default_model, default_survey, tmp_path):
    out = tmp_path / "none.csv"
    command = ["suspects", str(default_model), str(default_survey), "--out", str(out)]
    done = CliRunner().invoke(app, [*command, "--errors", "1e6"])
    assert done.exit_code == 0, done.output
    assert "0 suspects" in done.output
    assert "is not written" in done.output
    assert not out.exists()
