"""Drift: a survey beside the training sample, in plain numbers and words."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.faulty_stages import QUICK
from builders.surveys import changed
from builders.training_survey import write_survey
from maury import import_keras, ingest_released, simulate_survey
from maury.cli.app import app
from maury.errors import ModelFileError
from maury.labels.columns import BANDS
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.prediction.drift import (
    SAMPLE,
    Drift,
    Likeness,
    Quantity,
    drift,
    never_had,
    unjudged,
    without_unexpected,
)
from maury.prediction.predictor import Predictor
from maury.prediction.streaming import predict
from maury.spectra.batch import Batch
from maury.spectra.operators import SPEED_OF_LIGHT_KMS
from maury.spectra.preparation import Preparation
from maury.spectra.spectra import Spectra
from maury.survey.store import Survey
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


@pytest.mark.slow
def test_the_survey_that_trained_a_model_is_no_news(tmp_path):
    """No warning that spectra may be unlike the training sample which they are."""
    store = simulate_survey(tmp_path / "s.zarr", n_star=60, seed=3)
    other = simulate_survey(tmp_path / "other.zarr", n_star=60, seed=4)
    model = learning.train(store, tmp_path / "m", config=QUICK, n_processes=1)
    assert unjudged(model)
    for survey, own in ((store, True), (other, False)):
        found = replace(drift(model, survey), quantities=(), flags={})
        assert (found.own, found.blind) == (own, not own)
        assert ("cannot tell" in found.summary) != own
        assert ("survey that trained the model" in found.summary) == own


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
    assert found.findings[-1].startswith("missing: ")
    assert "for 100% (in training 0%)" in found.findings[-1]
    # One line for all inputs that are missing, and no flag that says it again.
    assert not any("NO_PARALLAX" in line for line in found.findings)


def test_what_is_missing_does_not_bury_what_is_wrong():
    gone = [Quantity(f"M_{k}", None, 1.0, None, 1.0, 0.0, 1.0, 0.0) for k in range(8)]
    off = [Quantity("S/N", 20.0, 100.0, 1.0, 1.0, 1.0, 0.0, 0.0)]
    flags = {"MAGNITUDE_MISSING": (1.0, 0.0), "SPIKES": (0.9, 0.1), "CONTINUUM_BAD": (0.5, 0.0)}
    found = Drift(100, 100, (*gone, *off), flags)
    names = [line.split(":")[0] for line in found.findings]
    assert names == ["CONTINUUM_BAD", "S/N", "SPIKES", "missing"]
    derived = [replace(gone[0], name=name) for name in ("0-1", "0_error", "1_error")]
    again = Drift(100, 100, (*gone, *derived), {})
    # What follows from bands that are named is not named again.
    assert again.findings[-1].startswith(f"missing: {', '.join(q.name for q in gone)} for 100%")
    many = [replace(off[0], name=f"q{k}") for k in range(5)]
    summary = Drift(100, 100, (*gone, *many), flags).summary.splitlines()
    assert summary[1].strip().startswith("CONTINUUM_BAD")
    assert summary[-2].strip().startswith("missing: M_0, M_1")
    assert summary[-1].strip() == "and 4 more, which 'maury drift' lists"


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
    assert "differs from the training sample:\n  S/N: lower" in caplog.text
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
    assert "the training sample is not known" in found.summary
    assert "look like" not in found.summary


@pytest.fixture(scope="module")
def imported(shared, tmp_path_factory):
    """The published networks, of which no training sample is known."""
    path = tmp_path_factory.mktemp("published") / "m"
    return import_keras(shared / "data" / "published_networks", path)


def spoilt(flux, wave_aa):
    shift = 1 + 100 / SPEED_OF_LIGHT_KMS
    return {
        "as they are": flux,
        "100 km/s off": np.array([np.interp(wave_aa, wave_aa * shift, one) for one in flux]),
        "twice the flux": 2 * flux,
        "lines in emission": 2 - flux,
    }


def test_simulated_spectra_tell_what_is_no_star_of_the_rave_window(tmp_path):
    """Networks of unknown training stars: all of 40 shifted spectra, and none as they are."""
    store = simulate_survey(tmp_path / "s.zarr", n_star=40, seed=3)
    batch, prepare = store.batch(0, 40), Preparation.published().apply
    likeness = Likeness.simulated(batch.spectra.wave_aa)
    found = {
        name: likeness.unlike(prepare(changed(batch, flux=flux.astype(np.float32)))).sum()
        for name, flux in spoilt(batch.spectra.flux, batch.spectra.wave_aa).items()
    }
    assert found.pop("as they are") <= 1
    assert min(found.values()) == 40
    assert Likeness.simulated(batch.spectra.wave_aa[:-1]) is None
    assert Likeness.simulated(batch.spectra.wave_aa + 1.0) is None


@pytest.mark.slow
def test_imported_networks_flag_what_they_can_and_say_what_they_cannot(
    imported, tmp_path, monkeypatch
):
    store = simulate_survey(tmp_path / "s.zarr", n_star=40, seed=3)
    batch, predictor = store.batch(0, 40), Predictor(imported)
    for name, flux in spoilt(batch.spectra.flux, batch.spectra.wave_aa).items():
        rows = predictor.predict(changed(batch, flux=flux.astype(np.float32)))
        unlike = (rows["flags"] & Flag.SPECTRUM_UNLIKE.value) != 0
        assert unlike.sum() <= 1 if name == "as they are" else unlike.all()
    blind = unjudged(imported)
    # Two detectors set CONTINUUM_BAD.
    assert len(set(blind)) == len(blind)
    assert {"RADIAL_VELOCITY_WRONG", "LABELS_UNLIKE", "TRAINING_STAR"} <= set(blind)
    assert "SPECTRUM_UNLIKE" not in blind
    catalogue = predict(imported, store, tmp_path / "c.fits")
    assert catalogue.metadata["unjudged"] == list(blind)
    assert "cannot tell" in drift(imported, store).summary
    shifted = spoilt(batch.spectra.flux, batch.spectra.wave_aa)["100 km/s off"]
    assert drift(imported, store).findings == ()
    off = changed(batch, flux=shifted.astype(np.float32))
    monkeypatch.setattr(Survey, "batch", lambda *_: off)
    assert "SPECTRUM_UNLIKE: 100% of the stars" in drift(imported, store).summary


@pytest.mark.slow
def test_an_import_says_what_the_model_cannot_judge(shared, tmp_path, caplog):
    import_keras(shared / "data" / "published_networks", tmp_path / "m")
    assert "cannot judge" in caplog.text


@pytest.mark.slow
def test_real_spectra_of_rave_are_like_the_simulated_ones(shared, tmp_path):
    """At most 2 % of them are not (1.1 % measured), and 9 of 10 at a velocity of 100 km/s are."""
    store = ingest_released(shared / "data" / "rave_like", tmp_path / "s.zarr")
    batch, prepare = store.batch(0, 500), Preparation.published().apply
    likeness = Likeness.simulated(store.wave_aa)
    flux = spoilt(batch.spectra.flux, store.wave_aa)["100 km/s off"]
    assert likeness.unlike(prepare(batch)).mean() < 0.02
    assert likeness.unlike(prepare(changed(batch, flux=flux.astype(np.float32)))).mean() > 0.9


def test_models_with_coverage_judge_everything(default_model):
    assert unjudged(Model.open(default_model)) == ()


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


def test_an_input_that_no_training_star_had_is_missed_in_none(model, tmp_path):
    names = list(model.preparation.source_names)
    arrays = dict(model.arrays(SAMPLE))
    about = model.attachments[SAMPLE].metadata
    gone = [name in ("M_W1", "M_W2", "a_v") for name in about["names"]]
    arrays["missing"] = np.where(gone, 1.0, arrays["missing"])
    less = model.with_arrays(SAMPLE, arrays, metadata=about)
    assert never_had(model) == ()
    assert never_had(less) == tuple(name for name in names if name in ("W1", "W2", "a_v"))
    flux = np.ones((3, 5), dtype=np.float32)
    bands = {band.column: np.array([1.0, 2.0, 3.0]) for band in BANDS if band.name in names}
    bands |= {"w1mpro": np.full(3, np.nan), "a_v": np.full(3, np.nan)}
    bands["j_m"] = np.array([1.0, np.nan, 3.0])
    batch = Batch(Spectra(8500.0 + np.arange(5.0), flux, flux), bands)
    given = np.full(3, (Flag.MAGNITUDE_MISSING | Flag.A_V_MISSING | Flag.LOW_SNR).value)
    found = without_unexpected(given, batch, names, never_had(less))
    # Of those that others have, the second star lacks J.
    only = Flag.LOW_SNR.value
    assert found.tolist() == [only, only | Flag.MAGNITUDE_MISSING.value, only]
    assert without_unexpected(given, batch, names, ()).tolist() == given.tolist()
