"""Validation: the right stars, compared rightly, in an honest report."""

import dataclasses
import json

import numpy as np
import pytest

from builders.training_survey import write_survey
from maury.errors import ColumnError, ConfigError, UnknownName
from maury.evaluation import validation
from maury.evaluation.validation import HEADER, STARS, ValidationReport, held_out_rows, validate
from maury.labels.definitions import LABELS, select
from maury.labels.statistics import residual_statistics
from maury.model.directory import Model
from maury.model.split import SplitConfig, SplitRecord, split_published, split_rows
from maury.prediction.streaming import Predictor
from maury.survey.store import Survey, SurveyWriter
from maury.training.ensemble import train

N = 60
TWO = select(["teff", "m_h"])


def make_survey(path, *, labelled=True, simulated=True, prefix="star", place=False) -> Survey:
    """60 spectra of 40 stars; teff = 5000 + 10 * row, m_h missing in every fourth row."""
    names = ["teff", "m_h"] if labelled else []
    names += ["ra", "dec"] if place else []
    with SurveyWriter(
        path, n_star=N, wave_aa=[8420.0, 8420.4], medium="air", columns=names, simulated=simulated
    ) as writer:
        row = np.arange(N)
        values = {"teff": 5000.0 + 10 * row, "m_h": np.where(row % 4, -0.5 + 0.01 * row, np.nan)}
        values |= {"ra": 8.0 * (row % 40), "dec": row % 40 - 20.0}
        writer.write(
            0,
            np.ones((N, 2)),
            np.ones((N, 2)),
            id=[f"spectrum{k}" for k in row],
            star_id=[f"{prefix}{k % 40}" for k in row],
            **{name: values[name] for name in names},
        )
    return Survey.open(path)


class StubModel(Model):
    """A model whose answers are known: only what validation asks of a model."""

    def __init__(self, record: SplitRecord) -> None:
        known = {"labels": TWO, "split": record, "path": None, "checksum": "0" * 64}
        known["attachments"] = {}
        for name, value in known.items():
            # The checksum is a cached property: a value in its place is what it gives.
            self.__dict__[name] = value


@pytest.fixture
def survey(tmp_path) -> Survey:
    return make_survey(tmp_path / "s.zarr")


@pytest.fixture
def model(survey, known_answers) -> StubModel:
    split = split_rows(
        survey.star_id, config=SplitConfig(train=0.6, validation=0.1, test=0.3), seed=4
    )
    return StubModel(SplitRecord.of(split, survey.star_id))


@pytest.fixture
def known_answers(monkeypatch) -> list[np.ndarray]:
    """Predict teff 30 K too high and m_h 0.1 dex too low, in rows whose numbers are recorded."""
    asked: list[np.ndarray] = []

    def predict_rows(model, survey, rows):
        asked.append(rows)
        n = len(rows)
        return {
            "teff": 5030.0 + 10 * rows,
            "teff_error": np.full(n, 20.0),
            "m_h": -0.6 + 0.01 * rows,
            "m_h_error": np.full(n, np.nan),
            "warn": rows % 3 == 0,
        }

    monkeypatch.setattr(validation, "predict_rows", predict_rows)
    return asked


def test_only_held_out_stars_are_measured(model, survey, known_answers) -> None:
    report = validate(model, survey)
    (rows,) = known_answers
    test = model.split.contains("test", survey.star_id)
    assert np.array_equal(rows, np.flatnonzero(test))
    assert not model.split.took_part(survey.star_id)[rows].any()
    assert (report.n_row, report.n_star) == (rows.size, len(set(survey.star_id[rows])))
    assert report.n_star < report.n_row, "the sample holds a star with two spectra"
    assert report.stars == "held-out test stars"
    assert (report.warning, report.survey) == ("", "s.zarr")
    assert report.n_warn == np.count_nonzero(rows % 3 == 0)


@pytest.mark.parametrize("old", [False, True])
def test_stars_under_other_names_are_known_by_their_positions(tmp_path, known_answers, old) -> None:
    survey = make_survey(tmp_path / "s.zarr", place=True)
    split = split_rows(survey.star_id, config=SplitConfig(), seed=4)
    record = SplitRecord.of(split, survey.stars)
    record = dataclasses.replace(record, marks={}) if old else record
    other = make_survey(tmp_path / "o.zarr", prefix="other", place=True)
    rows = held_out_rows(StubModel(record), other, split="unseen")
    assert rows.tolist() == (list(range(N)) if old else split.test.tolist())
    flagged = record.took_part(other.batch(10, 50).stars)
    expected = ~np.isin(np.arange(10, 50), split.test)
    assert np.array_equal(flagged, np.zeros(40, bool) if old else expected)


def test_statistics_are_those_of_the_rows(model, survey, known_answers) -> None:
    teff, m_h = validate(model, survey).statistics
    (rows,) = known_answers
    assert (teff.name, m_h.name) == ("teff", "m_h")
    assert teff.bias == pytest.approx(30)
    assert (teff.n, teff.coverage_1sigma, teff.coverage_2sigma) == (rows.size, 0.0, 1.0)
    assert m_h.bias == pytest.approx(-0.1)
    assert m_h.n_missing == np.count_nonzero(rows % 4 == 0) > 0
    assert m_h.n_error == 0


def test_parts_of_the_split_are_disjoint_and_complete(model, survey) -> None:
    parts = [held_out_rows(model, survey, split=s) for s in ("train", "validation", "test")]
    assert sorted(np.concatenate(parts)) == list(range(N))
    assert np.array_equal(held_out_rows(model, survey, split="unseen"), parts[2])


def test_published_split_never_counts_a_training_star_and_says_why(survey, known_answers) -> None:
    split = split_published(survey.star_id)
    model = StubModel(SplitRecord.of(split, survey.star_id))
    rows = held_out_rows(model, survey)
    trained = set(survey.star_id[split.train])
    assert not trained & set(survey.star_id[rows])
    assert set(rows) <= set(split.test)
    assert "no independent test" in validate(model, survey).title


def test_stars_that_the_model_never_met(model, tmp_path) -> None:
    other = make_survey(tmp_path / "other.zarr", prefix="other", simulated=False)
    with pytest.raises(ConfigError, match=r"none of the 60 labelled spectra .* split='unseen'"):
        validate(model, other)
    report = validate(model, other, split="unseen")
    assert report.n_row == N
    assert not report.simulated


def test_survey_without_labels_is_one_clear_error(model, tmp_path) -> None:
    bare = make_survey(tmp_path / "bare.zarr", labelled=False)
    with pytest.raises(ColumnError, match=r"no values of teff, m_h"):
        validate(model, bare)


def test_unknown_part_is_an_error(model, survey) -> None:
    with pytest.raises(UnknownName, match="did you mean 'test'"):
        validate(model, survey, split="tests")


def test_a_trained_model_from_its_directory(tmp_path) -> None:
    survey = write_survey(tmp_path / "s.zarr", n=120)
    trained = train(
        survey,
        tmp_path / "m.model",
        config={
            "network": {"preset": "guiglion2020", "kernel": 6, "filters": [4]},
            "training": {"epochs": 3},
            "ensemble": {"members": 2},
        },
        n_processes=1,
    )
    report = validate(tmp_path / "m.model", tmp_path / "s.zarr")
    held_out = trained.split.contains("test", survey.star_id)
    whole = Predictor(trained).predict(survey.batch(0, len(survey)))
    for one in report.statistics:
        residual = (whole[one.name] - survey.column(one.name))[held_out]
        assert one.n == held_out.sum() == report.n_row
        assert one.bias == pytest.approx(residual.mean(), rel=1e-4, abs=1e-3)
        inside = np.abs(residual) <= whole[f"{one.name}_formal_error"][held_out]
        assert one.coverage_1sigma == pytest.approx(inside.mean(), abs=1e-9)
    assert (report.model, report.survey, report.simulated) == ("m.model", "s.zarr", True)


def make_report(**changes) -> ValidationReport:
    rng = np.random.default_rng(20)
    truth = rng.normal(size=(20, 9))
    truth[:, 8] = np.nan
    measured = residual_statistics(truth, truth + 0.1, np.ones((20, 9)), labels=LABELS)
    report = ValidationReport(tuple(measured), True, 20, 18, 0, STARS["test"], "m", "s")
    return dataclasses.replace(report, **changes)


def test_report_is_strict_json_and_keeps_the_simulated_mark() -> None:
    text = make_report().to_json()
    data = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["simulated"] is True
    assert (data["n_row"], data["n_star"], data["stars"]) == (20, 18, "held-out test stars")
    assert [s["name"] for s in data["statistics"]] == [label.name for label in LABELS]
    assert data["statistics"][0]["bias"] == pytest.approx(0.1)
    assert data["statistics"][8]["bias"] is None


def test_title_says_simulated_only_when_it_is() -> None:
    expected = "20 spectra of 18 stars (held-out test stars)"
    assert make_report().title == f"SIMULATED spectra: {expected}"
    assert make_report(simulated=False).title == expected
    assert "3 spectra with a warning flag" in make_report(n_warn=3).title


def test_table_has_a_full_row_per_label() -> None:
    header, *rows = make_report().rows()
    assert header == HEADER
    assert [len(row) for row in rows] == [len(header)] * 9
    assert rows[0][:4] == ("Teff", "K", "20", "0.1")
    assert rows[1][:4] == ("log g", "dex", "20", "0.100")
    assert rows[8][header.index("bias")] == "-"
    assert rows[0][header.index("in 1 sigma")] == "1.00 +- 0.03"
