"""Self-check stars: a model that answers otherwise than when it was made is refused."""

from dataclasses import replace

import numpy as np
import pytest

from builders.faulty_stages import QUICK
from builders.training_survey import write_survey
from maury.errors import ModelFileError, SelfCheckFailed
from maury.methods.cannon import Cannon
from maury.model.directory import Model
from maury.model.engines.engine import TorchEngine
from maury.model.inference import EnsembleNetwork
from maury.prediction.catalogue import Catalogue
from maury.prediction.predictor import Predictor
from maury.prediction.self_check import N_STAR, SELF_CHECK, TOLERANCE, SelfCheck, with_self_check
from maury.prediction.streaming import predict
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey
from maury.training import runs as learning


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "s.zarr", n=240)


@pytest.fixture(scope="module")
def model(tmp_path_factory, survey):
    path = tmp_path_factory.mktemp("model") / "m"
    return learning.train(survey, path, config=QUICK, n_processes=1)


def test_networks_without_theory_carry_validation_stars(model, survey):
    check = SelfCheck.load(model)
    assert len(check.inputs) == N_STAR
    assert np.isfinite(check.mean).all()
    rows = np.flatnonzero(model.split.contains("validation", survey.star_id))[:N_STAR]
    prepared = model.preparation.apply(survey.rows(rows))
    np.testing.assert_array_equal(check.inputs.flux, prepared.flux)
    assert set(model.arrays(SELF_CHECK)).isdisjoint({"id", "star_id"})


def test_the_default_model_carries_simulated_stars(default_model, default_survey):
    model = Model.open(default_model)
    check, survey = SelfCheck.load(model), Survey.open(default_survey)
    assert len(check.inputs) == N_STAR
    flux = survey.batch(0, len(survey)).spectra.flux
    apart = np.abs(flux[:, None, :8] - check.inputs.flux[None, :, :8]).max(axis=2)
    assert apart.min() > 1e-5
    assert not np.allclose(check.error, check.sigma)  # Calibrated, and bare.


@pytest.mark.parametrize("engine", ["torch", "compiled"])
def test_both_engines_pass_with_room_to_spare(model, engine):
    predictor = Predictor(model, engine=engine)
    check = SelfCheck.load(model)
    now = SelfCheck.record(check.inputs, predictor.labeller)
    assert check.moved(now, model).max() < TOLERANCE / 20


def perturbed(answers, by):
    return replace(answers, mean=answers.mean + by)


@pytest.mark.parametrize(("share", "refused"), [(0.3, False), (3.0, True)])
def test_an_engine_that_moves_labels_is_refused(model, monkeypatch, share, refused):
    """Moved by a share of the tolerance, in the unit of the quoted error."""
    check = SelfCheck.load(model)
    span = model.scaling.labels.maximum - model.scaling.labels.minimum
    error = np.fmax(check.sigma, 1e-3 * span).min(axis=0)
    by = share * TOLERANCE * error / model.scaling.labels.scale
    answer = TorchEngine.predict
    monkeypatch.setattr(TorchEngine, "predict", lambda *a: perturbed(answer(*a), by))
    if not refused:
        Predictor(model, engine="torch")
        return
    with pytest.raises(SelfCheckFailed, match=r"moved by 0\.0.*--engine torch.*torch [0-9]"):
        Predictor(model, engine="torch")


def test_an_engine_that_loses_stars_is_refused(model, monkeypatch):
    answer = TorchEngine.predict
    monkeypatch.setattr(TorchEngine, "predict", lambda *a: perturbed(answer(*a), np.nan))
    with pytest.raises(SelfCheckFailed, match="is lost"):
        Predictor(model, engine="torch")


def test_predict_refuses_other_weights_before_any_work(model, survey, tmp_path):
    """Weights with a fitting checksum, as a wrong converter might write them."""
    weights = [dict(model.weights(member)) for member in model.members]
    for one in weights:
        name = next(name for name, array in one.items() if array.ndim > 1)
        one[name] = one[name] * np.float32(1.05)
    other = model.save(tmp_path / "other", weights=weights)
    with pytest.raises(SelfCheckFailed):
        predict(other, survey, tmp_path / "labels.fits")
    assert [one.name for one in tmp_path.iterdir()] == ["other"]


def test_a_wrong_calibration_is_refused(default_model, tmp_path):
    model = Model.open(default_model)
    arrays = {name: array.copy() for name, array in model.arrays("calibration").items()}
    for name in arrays:
        if arrays[name].dtype.kind == "f":
            arrays[name] = arrays[name] * 1.2 + 0.1
    wrong = model.with_arrays("calibration", arrays).save(tmp_path / "m")
    with pytest.raises(SelfCheckFailed):
        Predictor(wrong)


def test_models_without_self_check_work_and_say_so(model, survey, tmp_path, caplog):
    older = replace(
        model, attachments={k: a for k, a in model.attachments.items() if k != SELF_CHECK}
    )
    older = older.save(tmp_path / "older")
    with caplog.at_level("INFO"):
        catalogue = predict(older, survey, tmp_path / "labels.fits")
    assert isinstance(catalogue, Catalogue)
    assert "has no self-check stars" in caplog.text


def test_a_method_carries_a_self_check_of_its_revision(survey, tmp_path, monkeypatch, caplog):
    trained = learning.train(survey, tmp_path / "m", method="cannon")
    assert SELF_CHECK in trained.attachments
    Predictor(trained)
    arrays = {name: np.array(array) for name, array in trained.arrays("method").items()}
    for name, array in arrays.items():
        if array.dtype.kind == "f":
            arrays[name] = array * 1.03
    wrong = trained.with_arrays(
        "method", arrays, metadata=trained.attachments["method"].metadata
    ).save(tmp_path / "wrong")
    with pytest.raises(SelfCheckFailed):
        Predictor(wrong)
    # A method that was mended since cannot be held to what it said before.
    monkeypatch.setattr(Cannon, "revision", Cannon.revision + 1)
    Predictor(wrong)
    assert f"was made by revision {Cannon.revision - 1} of cannon" in caplog.text


@pytest.mark.parametrize("change", ["drop", "shorten", "type"])
def test_a_damaged_self_check_is_one_error(model, tmp_path, change):
    arrays = dict(model.arrays(SELF_CHECK))
    if change == "drop":
        del arrays["sigma"]
    elif change == "shorten":
        arrays["flux"] = arrays["flux"][:3]
    else:
        arrays["mean"] = arrays["mean"][:, :1]
    broken = model.with_arrays(SELF_CHECK, arrays).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="self-check is damaged"):
        Predictor(broken)


def sample_of(model, survey):
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    return LabelledSample.read(survey, model.preparation, np.arange(len(survey)))


def test_the_same_training_gives_the_same_self_check(model, survey):
    again = with_self_check(model, sample_of(model, survey)).arrays(SELF_CHECK)
    for name, array in model.arrays(SELF_CHECK).items():
        np.testing.assert_array_equal(again[name], array)


class Wavering(EnsembleNetwork):
    """Networks that answer some stars by the last digits of their flux."""

    stars = 0

    def predict(self, inputs, **options):
        answer = super().predict(inputs, **options)
        mean = answer.mean.copy()
        digits = (inputs.flux.sum(axis=1, dtype=np.float64) * 1e6) % 2
        mean[: self.stars] += digits[: self.stars, None] * answer.sigma[: self.stars]
        return replace(answer, mean=mean)


@pytest.mark.parametrize(("wavering", "kept"), [(0, 16), (5, 11), (16, None)])
def test_stars_whose_answer_hangs_on_rounding_are_not_taken(
    model, survey, monkeypatch, caplog, wavering, kept
):
    monkeypatch.setattr(Wavering, "stars", wavering)
    monkeypatch.setattr("maury.model.inference.EnsembleNetwork", Wavering)
    made = with_self_check(model, sample_of(model, survey))
    if kept is None:
        assert "rounding of the flux" in caplog.text
    else:
        assert len(SelfCheck.load(made).inputs) == kept
