"""Numbers that no instrument gives: each is a flag with a reason, no silent label, no warning."""

import os
import re
import subprocess
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.method_samples import draw_labels, inputs_of, sample_of
from builders.surveys import changed
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import WARNING_MASK, Flag
from maury.methods.cannon import Cannon, CannonSettings
from maury.prediction import uncertainty
from maury.prediction.predictor import Predictor
from maury.simulation.surveys import simulate_survey
from maury.spectra.preparation import LARGEST_SNR
from maury.survey.store import Survey
from maury.training import runs as learning

GOLDEN = sorted((Path(__file__).parents[1] / "golden").iterdir())[-1]
MODELS = ("maury", "guiglion2020", "cannon")
NAN, INF, TINY = np.nan, np.inf, np.float32(1e-40)
ODD = (0.0, -1.0, NAN, INF, -INF, 1e-300, 1e300, 1e6, -1e6)

SPECTRA = {
    "not a number": lambda flux, ivar: (flux * NAN, ivar),
    "infinite": lambda flux, ivar: (flux + INF, ivar),
    "minus infinity": lambda flux, ivar: (flux - INF, ivar),
    "denormal": lambda flux, ivar: (flux * TINY, ivar),
    "all denormal": lambda flux, ivar: (flux * TINY, ivar * 0 + TINY),
    "constant": lambda flux, ivar: (flux * 0 + 1, ivar),
    "zero": lambda flux, ivar: (flux * 0, ivar),
    "negative": lambda flux, ivar: (-flux, ivar),
    "saturated": lambda flux, ivar: (np.minimum(flux, 0.7), ivar),
    "one pixel": lambda flux, ivar: (flux, np.where(np.arange(flux.size) == 300, ivar, 0)),
    "reversed": lambda flux, ivar: (flux[::-1], ivar[::-1]),
    "huge": lambda flux, ivar: (flux * 1e30, ivar),
    "as large as can be": lambda flux, ivar: (flux * 0 + 3e38, ivar * 0 + 3e38),
    "every other pixel infinite": lambda flux, ivar: (
        np.where(np.arange(flux.size) % 2, flux, INF),
        ivar,
    ),
    "nothing but noise": lambda flux, ivar: (
        np.random.default_rng(0).normal(0, 1e3, flux.size),
        ivar,
    ),
    "weights not a number": lambda flux, ivar: (flux, ivar * NAN),
    "weights infinite": lambda flux, ivar: (flux, ivar + INF),
    "weights negative": lambda flux, ivar: (flux, -ivar),
    "weights zero": lambda flux, ivar: (flux, ivar * 0),
    "weights denormal": lambda flux, ivar: (flux, ivar * 0 + TINY),
}


@cache
def predictor(name):
    return Predictor(GOLDEN / f"{name}.model")


@cache
def stars():
    """Golden stars of good S/N that nothing warns of but their place among the training stars."""
    survey = Survey.open(GOLDEN / "observed.zarr")
    return survey.rows(np.flatnonzero(survey.column("snr") > 35))


def labels(rows, model):
    names = model.label_names
    kind = "error" if f"{names[0]}_error" in rows else "formal_error"
    return (
        np.stack([rows[n] for n in names], axis=1),
        np.stack([rows[f"{n}_{kind}"] for n in names], axis=1),
    )


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("kind", SPECTRA)
def test_an_odd_spectrum_is_warned_of_and_harms_no_other(name, kind):
    batch, model = stars(), predictor(name).model
    flux, ivar = batch.spectra.flux.copy(), batch.spectra.ivar.copy()
    with np.errstate(all="ignore"):
        odd = SPECTRA[kind](flux[1], ivar[1])
    flux[1], ivar[1] = odd
    before = predictor(name).predict(batch)
    now = predictor(name).predict(changed(batch, flux=flux, ivar=ivar))
    mean, error = labels(now, model)
    expected, unit = labels(before, model)
    others = np.arange(len(batch)) != 1
    assert len(mean) == len(batch)
    assert np.abs((mean - expected) / unit)[others].max() < 1e-3
    assert np.array_equal(now["flags"][others], before["flags"][others])
    new = int(now["flags"][1]) & ~int(before["flags"][1])
    assert new & WARNING_MASK, "a reason, and one that it did not have before"
    assert np.array_equal(np.isfinite(mean[1]), np.isfinite(error[1]))
    known = np.isfinite(error[1])
    assert (error[1][known] > 0).all()
    if new & Flag.NO_SPECTRUM.value:
        assert known.all() == (name == "maury"), "which has the photometry left"


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "column", ["parallax", "parallax_error", "snr", "a_v", "phot_g_mean_mag", "j_m", "w1mpro"]
)
def test_an_odd_value_is_flagged_where_it_moves_a_label(name, column):
    """Of each value: labels that stay, or a flag that was not there."""
    batch, model = stars(), predictor(name).model
    one = batch[1:2]
    before = predictor(name).predict(one)
    expected, unit = labels(before, model)
    usual = {("a_v", 0.0), ("a_v", 1e-300)}
    for value in [value for value in ODD if (column, value) not in usual]:
        now = predictor(name).predict(changed(one, **{column: np.array([value])}))
        mean, error = labels(now, model)
        assert mean.shape == expected.shape
        assert np.array_equal(np.isfinite(mean), np.isfinite(error))
        same = np.isfinite(mean).all() and np.abs((mean - expected) / unit).max() < 0.5
        assert same or int(now["flags"][0]) & ~int(before["flags"][0]), (column, value)
        assert not now["snr"][0] > LARGEST_SNR


@pytest.mark.parametrize("value", [0.0, -5.0, NAN, INF, -INF, 1e6, 1e300])
def test_a_signal_to_noise_that_cannot_be_is_measured_instead(value):
    one = stars()[1:2]
    found = predictor("maury").predict(changed(one, snr=np.array([value])))["snr"]
    assert found == pytest.approx(one.column("snr"), rel=0.25)


@pytest.mark.parametrize("name", MODELS)
@given(st.permutations(range(6)))
@settings(max_examples=5, deadline=None)
def test_the_order_of_rows_changes_nothing(name, order):
    batch, model = stars()[:6], predictor(name).model
    order = list(order)
    moved = changed(batch, flux=batch.spectra.flux[order], ivar=batch.spectra.ivar[order])
    moved = changed(moved, **{k: np.asarray(v)[order] for k, v in batch.columns.items()})
    expected, now = predictor(name).predict(batch), predictor(name).predict(moved)
    mean, error = labels(expected, model)
    again, _ = labels(now, model)
    assert np.abs((again - mean[order]) / error[order]).max() < 1e-3
    assert now["flags"].tolist() == expected["flags"][order].tolist()
    assert now["id"].tolist() == expected["id"][order].tolist()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_size_of_a_batch_changes_nothing_beyond_rounding(name, size):
    batch, model = stars(), predictor(name).model
    mean, error = labels(predictor(name).predict(batch), model)
    parts = [
        labels(predictor(name).predict(batch[k : k + size]), model)[0]
        for k in range(0, len(batch), size)
    ]
    assert np.abs((np.concatenate(parts) - mean) / error).max() < 1e-3


def test_errors_scale_with_the_units_of_labels():
    """Kelvin to kilokelvin, dex to units of 5 dex and 0.1 dex, of a method that is trained anew."""
    rng = np.random.default_rng(5)
    unit = np.array([1e-3, 5.0, 0.1])
    _, truth = draw_labels(400, rng, ("teff", "logg", "m_h"))
    slope = rng.normal(0, 0.03, (3, 60))
    scaled = (truth - [5000.0, 3.0, -0.3]) / [800.0, 1.0, 0.5]
    flux = 0.9 + scaled @ slope + 0.01 * rng.standard_normal((400, 60))
    ivar = np.full(flux.shape, 1e4)
    sample = sample_of(truth, flux, ivar)
    other = replace(sample, truth=truth * unit)
    answers = [
        Cannon.train(one, one, settings=CannonSettings(), seed=0).apply(inputs_of(flux, ivar))
        for one in (sample, other)
    ]
    np.testing.assert_allclose(answers[1].labels, answers[0].labels * unit, rtol=1e-5, atol=1e-6)
    sigma = [np.sqrt(np.diagonal(one.covariance, axis1=1, axis2=2)) for one in answers]
    np.testing.assert_allclose(sigma[1], sigma[0] * unit, rtol=1e-4)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    path = tmp_path_factory.mktemp("noise") / "bright.zarr"
    return Survey.open(simulate_survey(path, n_star=200, seed=77).path)


@pytest.mark.slow
def test_noise_never_lowers_the_quoted_error_on_average(
    many, tmp_path, default_survey, monkeypatch
):
    """Over 200 stars, whose spectra get twice and four times the noise, step by step."""
    monkeypatch.setattr(uncertainty, "N_SIMULATED", 2000)
    config = {
        "network": {"width": 64, "stem": 48},
        "training": {"steps": 2000, "stars": 16000},
        "ensemble": {"members": 1},
    }
    model = learning.train(default_survey, tmp_path / "m", config=config, n_processes=1)
    ask = Predictor(model)
    batch, rng = many.batch(0, 200), np.random.default_rng(3)
    flux, ivar = batch.spectra.flux, batch.spectra.ivar
    typical = []
    for factor in (1.0, 2.0, 4.0):
        added = np.sqrt((factor**2 - 1.0) / np.maximum(ivar, 1e-6)) * rng.normal(size=flux.shape)
        noisy = changed(batch, flux=flux + np.where(ivar > 0, added, 0), ivar=ivar / factor**2)
        noisy = changed(noisy, snr=batch.column("snr") / factor)
        typical.append(labels(ask.predict(noisy), model)[1].mean(axis=0))
    rise = np.diff(np.array(typical), axis=0) / typical[0]
    measured = [name != "ni_fe" for name in LABEL_NAMES]
    assert (rise[:, measured] > 0).all()
    # So small a network knows of nickel little more than how it scatters from star to star.
    assert (rise > -0.1).all()


def test_noise_never_lowers_the_quoted_error_of_a_fit():
    batch, model = stars(), predictor("cannon").model
    flux, ivar = batch.spectra.flux, batch.spectra.ivar
    typical = [
        labels(predictor("cannon").predict(changed(batch, flux=flux, ivar=ivar / f**2)), model)[1]
        for f in (1.0, 2.0, 4.0)
    ]
    assert (np.diff([t.mean(axis=0) for t in typical], axis=0) > 0).all()


_ODD_ROWS = {
    "prediction/test_coverage.py": "bad_rows or neighbours",
    "spectra/test_operators.py": "hopeless",
    "simulation/test_emulator.py": "bad_row",
    "simulation/test_rest_frame.py": "unknown",
    "methods/test_athos.py": "without_pixels",
    "methods/test_fits.py": "without_spectrum",
    "whole/test_numerics.py": "an_odd_spectrum or an_odd_value",
}
"""Tests that feed rows without numbers to everything that multiplies matrices."""


@pytest.mark.slow
def test_no_infinity_and_no_nan_enters_a_matrix_product():
    """Whether 0 x inf shows depends on the processor, so the operands are looked at."""
    tests = Path(__file__).parents[1]
    chosen = " or ".join(_ODD_ROWS.values())
    command = [sys.executable, "-m", "pytest", "-q", "-p", "builders.finite_products"]
    command += ["-p", "no:cacheprovider", "-k", chosen, *(str(tests / name) for name in _ODD_ROWS)]
    path = os.pathsep.join([str(tests), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) >= len(_ODD_ROWS)
