"""Which stars calibrate the errors of a method: none that it learnt from, and no test star."""

from itertools import pairwise

import numpy as np
import pytest

import maury
from builders.training_survey import write_survey
from maury.methods import training
from maury.methods.cannon import Cannon
from maury.methods.registry import METHODS, method_class
from maury.methods.training import MethodConfig, collect, fit_method, unseen_stars
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.predictor import Predictor
from maury.prediction.streaming import predict, predict_rows
from maury.survey.store import Survey


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "s.zarr", n=800)


def collected(survey, settings):
    return collect(
        survey,
        survey.label_names,
        preparation=settings.preparation,
        split=settings.split,
        seed=2,
    )


@pytest.fixture
def learnt(monkeypatch):
    """Stars that each training of The Cannon learnt from."""
    seen, train = [], Cannon.train.__func__

    def traced(cls, sample, validation, *, settings, seed):
        seen.append(set(sample.star_id.tolist()))
        return train(cls, sample, validation, settings=settings, seed=seed)

    monkeypatch.setattr(Cannon, "train", classmethod(traced))
    return seen


def test_each_star_is_answered_by_a_method_that_did_not_learn_from_it(survey, learnt, monkeypatch):
    settings = MethodConfig.resolve("cannon")
    stars = collected(survey, settings)
    trained = fit_method(settings, stars, seed=2)
    answered, apply = [], Cannon.apply
    monkeypatch.setattr(
        Cannon, "apply", lambda self, inputs: answered.append(len(inputs)) or apply(self, inputs)
    )
    unseen = unseen_stars(trained, settings, stars, seed=2)
    names = {part: set(stars.part(part).star_id.tolist()) for part in ("train", "test")}
    assert len(learnt) == 1 + training.N_FOLD
    assert learnt[0] == names["train"]
    assert not names["test"] & set(unseen.star_id.tolist())
    # The parts lie one behind the other: validation stars, then fold by fold.
    ends = np.cumsum([0, *answered])
    assert ends[-1] == len(unseen.truth)
    for (start, stop), known in zip(pairwise(ends), learnt, strict=True):
        assert not known & set(unseen.star_id[start:stop].tolist())
    out_of_fold = set(unseen.star_id[ends[1] :].tolist())
    assert out_of_fold == names["train"]


def test_too_few_stars_for_folds_leave_the_validation_stars(survey, monkeypatch, caplog):
    from maury.errors import TrainingError

    settings = MethodConfig.resolve("cannon")
    stars = collected(survey, settings)
    trained = fit_method(settings, stars, seed=2)

    def refuse(*args, **kwargs):
        raise TrainingError("too few stars")

    monkeypatch.setattr(Cannon, "train", refuse)
    unseen = unseen_stars(trained, settings, stars, seed=2)
    assert set(unseen.star_id) == set(stars.part("validation").star_id)
    assert "validation stars alone" in caplog.text


def test_of_the_published_split_no_test_row_calibrates(survey):
    settings = MethodConfig.resolve("cannon", split="published")
    stars = collected(survey, settings)
    trained = fit_method(settings, stars, seed=2)
    unseen = unseen_stars(trained, settings, stars, seed=2)
    assert len(unseen.truth) == len(stars.part("train"))


def test_every_method_says_whose_residuals_calibrate_it():
    kinds = {name: method_class(name).unseen for name in METHODS}
    assert set(kinds.values()) <= {"folds", "all", "validation"}
    assert [kinds[name] for name in ("cannon", "matisse", "athos")] == ["folds"] * 3
    theories = ("payne", "ferre", "space", "gauguin", "synspec", "sme")
    assert [kinds[name] for name in theories] == ["all"] * 6
    assert kinds["dd-payne"] == "validation"


class MadeUp:
    """Synthesises the spectra of the survey, in place of PySME."""

    def synthesise(self, labels, wave_aa):
        u, v = (labels["teff"] - 4000) / 3000, (labels["logg"] - 1) / 3
        pixel = np.arange(wave_aa.size)
        depth = u * np.exp(-0.5 * ((pixel - 20) / 3.0) ** 2)
        depth += v * np.exp(-0.5 * ((pixel - 45) / 4.0) ** 2)
        return 1 - 0.6 * depth


def test_a_method_of_long_fits_is_calibrated_on_as_many_stars_as_asked(
    survey, monkeypatch, caplog, tmp_path
):
    from maury.methods.sme import Sme

    monkeypatch.setattr(Sme, "synthesiser", lambda self: MadeUp())
    monkeypatch.setattr(Sme, "checksum", lambda self: "lines")
    options = {"labels": ["teff", "logg"], "resolving_power": 7500.0}
    bare = maury.train(survey, tmp_path / "a", method="sme", seed=2, config={"method": options})
    assert not bare.errors_calibrated
    assert "give calibration_stars" in caplog.text
    config = {"method": options | {"calibration_stars": 60}}
    model = maury.train(survey, tmp_path / "b", method="sme", seed=2, config=config)
    assert 60 <= model.attachments["residual_calibration"].metadata["n_star"] <= 62
    rows = np.flatnonzero(model.split.contains("test", survey.star_id))
    found, truth = predict_rows(model, survey, rows), survey.labels(model.labels)[rows]
    within = [
        np.abs(found[name] - truth[:, k]) < found[f"{name}_error"]
        for k, name in enumerate(model.label_names)
    ]
    # Of 80 spectra by errors of 60: each is 5 to 6 %.
    assert 0.5 < np.mean(within) < 0.85


@pytest.fixture(scope="module")
def model(tmp_path_factory, survey):
    return maury.train(survey, tmp_path_factory.mktemp("m") / "m", method="cannon", seed=2)


def test_a_trained_method_quotes_errors_that_hold(survey, model, tmp_path):
    assert model.errors_calibrated
    out = predict(model, survey, tmp_path / "c.ecsv", correlations=True)
    assert out.metadata["errors_calibrated"]
    assert "residuals of training and validation stars" in out.metadata["errors"]
    assert {"teff_error", "teff_q02", "teff_q98", "teff_logg_corr", "chi2_reduced"} <= set(
        out.table.colnames
    )
    assert not [name for name in out.table.colnames if name.endswith("_formal_error")]
    rows = np.flatnonzero(model.split.contains("test", survey.star_id))
    truth = survey.labels(model.labels)[rows]
    for k, label in enumerate(model.label_names):
        apart = np.asarray(out.table[label])[rows] - truth[:, k]
        within = np.abs(apart) < np.asarray(out.table[f"{label}_error"])[rows]
        # Of 80 test spectra; the sampling error is 5 %.
        assert 0.5 < within.mean() < 0.85, label


def test_a_model_of_before_keeps_its_numbers_under_another_name(survey, model, tmp_path):
    from dataclasses import replace
    from types import MappingProxyType

    later = ("residual_calibration", "likeness", "canary")
    kept = {k: v for k, v in model.attachments.items() if k not in later}
    before = replace(model, attachments=MappingProxyType(kept))
    rows = predict_rows(before, survey, np.arange(9))
    bare = Predictor(before).bare(survey.rows(np.arange(9)))[1]
    np.testing.assert_array_equal(rows["teff_formal_error"], bare.sigma[:, 0])
    assert "teff_error" not in rows
    assert "teff_q16" not in rows
    catalogue = predict(before.save(tmp_path / "m"), survey, tmp_path / "c.fits")
    assert catalogue.metadata["errors_calibrated"] is False
    again = Catalogue.read(tmp_path / "c.fits").table
    assert "teff_formal_error" in again.colnames
    assert "not calibrated" in again["teff_formal_error"].description
    report = maury.validate(Model.open(tmp_path / "m"), Survey.open(survey.path))
    assert all(np.isfinite(one.coverage_1sigma) for one in report.statistics)
