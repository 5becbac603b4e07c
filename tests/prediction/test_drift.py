"""Drift: a survey beside the training sample, in plain numbers and words."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.faulty_stages import QUICK
from builders.training_survey import write_survey
from maury.cli.app import app
from maury.errors import ModelFileError
from maury.model.directory import Model
from maury.prediction.drift import SAMPLE, drift
from maury.prediction.streaming import predict
from maury.training import runs as learning

N = 400


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "s.zarr", n=N)


@pytest.fixture(scope="module")
def model(tmp_path_factory, survey):
    path = tmp_path_factory.mktemp("model") / "m"
    return learning.train(survey, path, config=QUICK, n_processes=1)


def quantity(found, name):
    return next(one for one in found.quantities if one.name == name)


def test_a_survey_of_the_same_kind_does_not_drift(model, tmp_path):
    found = drift(model, write_survey(tmp_path / "s.zarr", n=N, seed=9))
    assert found.findings == ()
    assert "look like the training sample" in found.summary
    assert found.n_training == pytest.approx(0.8 * N, abs=0.1 * N)
    for one in found.quantities:
        assert one.outside < 0.04, one
        assert one.median == pytest.approx(one.median_training, abs=one.scatter_training + 1e-9)


def test_a_lower_snr_is_found_where_it_is(model, tmp_path):
    found = drift(model, write_survey(tmp_path / "s.zarr", n=N, seed=9, snr=np.full(N, 20.0)))
    assert quantity(found, "S/N").median == 20.0
    assert quantity(found, "S/N").outside == 1.0
    assert found.findings[0].startswith("S/N: lower (median 20, in training 100), 100% outside")
    assert len(found.findings) == 1


def test_a_band_that_is_shifted_or_missing_is_named(model, tmp_path, survey):
    other = write_survey(tmp_path / "a.zarr", n=N, seed=9)
    band = survey.column("phot_g_mean_mag" if "phot_g_mean_mag" in survey.column_names else "j_m")
    del band
    names = [q.name for q in drift(model, other).quantities]
    assert set(model.preparation.observable_names) < set(names)
    missing = write_survey(tmp_path / "b.zarr", n=N, seed=9, parallax=np.full(N, np.nan))
    found = drift(model, missing)
    assert quantity(found, model.preparation.observable_names[0]).missing == 1.0
    assert any("missing for 100%" in line for line in found.findings)


def test_another_flux_scale_is_found_in_the_spectra(model, tmp_path, survey):
    flux = survey.batch(0, N).spectra.flux.copy()
    flux[:, 30:34] += 0.2
    found = drift(model, write_survey(tmp_path / "s.zarr", n=N, flux=flux))
    assert any(line.startswith("flux beyond components") for line in found.findings)
    assert not any(line.startswith("S/N") for line in found.findings)


def test_shares_of_flags_are_compared(model, tmp_path):
    ivar = np.full((N, 64), 1e4)
    ivar[: N // 2] = 0.0
    found = drift(model, write_survey(tmp_path / "s.zarr", n=N, seed=9, ivar=ivar))
    assert found.flags["NO_SPECTRUM"] == (0.5, 0.0)
    assert any("NO_SPECTRUM: 50% of the stars" in line for line in found.findings)


def test_quantiles_are_those_of_numpy_and_order_changes_nothing(model, survey, tmp_path):
    found = drift(model, survey)
    snr = survey.column("snr")
    assert quantity(found, "S/N").median == np.median(snr)
    order = np.random.default_rng(0).permutation(N)
    from builders.surveys import copy_survey

    shuffled = copy_survey(survey.path, tmp_path / "s.zarr", rows=order)
    from maury.survey.store import Survey

    other = drift(model, Survey.open(shuffled))
    for one, two in zip(found.quantities, other.quantities, strict=True):
        assert one.median == pytest.approx(two.median, rel=1e-6, abs=1e-9)
        assert one.outside == pytest.approx(two.outside, abs=0.005)


def test_predict_tells_and_records_it(model, tmp_path, caplog):
    odd = write_survey(tmp_path / "s.zarr", n=N, seed=9, snr=np.full(N, 20.0))
    catalogue = predict(model, odd, tmp_path / "labels.dataset")
    assert "differs from the training sample: S/N: lower" in caplog.text
    assert catalogue.metadata["drift"]["stars"] == N
    assert catalogue.metadata["drift"]["findings"][0].startswith("S/N: lower")


def test_models_without_a_sample_know_the_range_of_observables(model, survey, tmp_path):
    from dataclasses import replace

    older = replace(model, attachments={k: a for k, a in model.attachments.items() if k != SAMPLE})
    older = older.save(tmp_path / "older")
    found = drift(older, survey)
    assert [q.name for q in found.quantities] == list(model.preparation.observable_names)
    assert found.n_training == 0
    assert found.findings == ()


def test_a_damaged_sample_is_one_error(model, survey, tmp_path):
    arrays = {**model.arrays(SAMPLE), "missing": np.zeros(2)}
    about = model.attachments[SAMPLE].metadata
    broken = model.with_arrays(SAMPLE, arrays, metadata=about).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="sample is damaged"):
        drift(Model.open(broken.path), survey)


def test_the_command_prints_words_and_writes_numbers(model, survey, tmp_path):
    target = tmp_path / "drift.json"
    command = ["drift", str(model.path), str(survey.path), "--json", str(target)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert f"{N} spectra beside" in done.output
    assert "nothing differs" in done.output
    written = json.loads(target.read_text())
    assert written["n_star"] == N
    assert written["findings"] == []
