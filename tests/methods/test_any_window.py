"""Rivals in a window that no theory of ours reaches, with any number of labels, gaps, and masks."""

from dataclasses import replace

import numpy as np
import pytest

from builders.any_window import FIVE, FOURTEEN, N_PIXEL, SIZE, TWO, made
from builders.method_samples import lines
from maury.errors import ConfigError, TrainingError
from maury.labels.statistics import robust_sigma
from maury.methods.fitting.survey_theory import SurveyTheory, filled_stars
from maury.methods.registry import method_class, method_settings
from maury.spectra.operators import fill_bad_pixels

METHODS = ("athos", "cannon", "dd-payne", "ferre", "gaufre", "gauguin", "matisse", "payne")
OPTIONS = {
    "athos": {"widths": [3, 6], "reach_aa": 12.0},
    "dd-payne": {"hidden": 40, "steps": 600, "guides": 300, "learning_rate": 0.01},
    "matisse": {"nodes": 4},
    "payne": {"hidden": 48, "steps": 600, "spectra": 800, "learning_rate": 0.01},
}


def trained(name, sample, **options):
    settings = method_settings(name, OPTIONS.get(name, {}) | options)
    return method_class(name).train(sample, sample, settings=settings, seed=0)


def check(method, test, *, most=0.35, calibrated=2.0):
    """Labels follow the truth to `most` of its spread, and errors are not far too small."""
    found = method.apply(test.inputs)
    for name in ("teff", "logg"):
        column, own = test.label_names.index(name), found.label_names.index(name)
        error = found.labels[:, own] - test.truth[:, column]
        spread = test.truth[:, column].std()
        assert robust_sigma(error) < most * spread, name
        assert abs(np.median(error)) < 0.1 * spread, name
        assert robust_sigma(error / found.sigma[:, own]) < calibrated, name
    return found


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("names", [TWO, FIVE], ids=["2", "5"])
def test_any_labels_are_learnt_in_any_window(name, names):
    method = trained(name, made(names, 400, 1))
    found = check(method, made(names, 100, 2))
    assert set(found.label_names) == set(names)
    arrays, about = method.to_arrays()
    again = type(method).from_arrays(
        arrays, about, settings=method.settings, label_names=method.label_names
    )
    some = made(names, 5, 3).inputs
    np.testing.assert_array_equal(again.apply(some).labels, method.apply(some).labels)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_fourteen_labels_are_learnt(name):
    sample = made(FOURTEEN, 900, 1)
    found = check(trained(name, sample), made(FOURTEEN, 100, 2), most=0.6)
    assert set(found.label_names) == set(FOURTEEN)
    assert np.isfinite(found.labels).mean() > 0.99
    assert (found.sigma[np.isfinite(found.labels)] > 0).all()


@pytest.mark.parametrize("name", METHODS)
def test_missing_labels_are_estimated_and_no_star_is_lost(name):
    """Of five labels 30 % each are missing, so that 17 % of the stars have all of them."""
    sample = made(FIVE, 500, 1)
    whole = check(trained(name, sample), made(FIVE, 150, 2))
    gaps = np.random.default_rng(3).random(sample.truth.shape) < 0.3
    lacking = replace(sample, truth=np.where(gaps, np.nan, sample.truth))
    test = made(FIVE, 150, 2)
    found = check(trained(name, lacking), test)
    scatter = [robust_sigma(one.labels[:, 0] - test.truth[:, 0]) for one in (whole, found)]
    assert scatter[1] < 1.5 * scatter[0]


@pytest.mark.parametrize("name", METHODS)
def test_masked_pixels_are_missing_in_any_window(name):
    method, test = trained(name, made(FIVE, 500, 1)), made(FIVE, 150, 2)
    whole = method.apply(test.inputs)
    bad = np.random.default_rng(5).random(test.inputs.ivar.shape) < 0.15
    ivar = np.where(bad, 0, test.inputs.ivar).astype(np.float32)
    flux = fill_bad_pixels(np.where(bad, np.float32(1.5), test.inputs.flux), ivar)
    found = method.apply(replace(test.inputs, flux=flux, ivar=ivar))
    moved = (found.labels - whole.labels)[:, :2] / found.sigma[:, :2]
    assert (np.abs(np.median(moved, axis=0)) < 0.25).all()
    assert (np.median(found.sigma / whole.sigma, axis=0) > 0.9).all()
    blank = method.apply(replace(test.inputs, ivar=np.zeros_like(ivar)))
    assert np.isnan(blank.labels).all()


def test_theory_is_chosen_by_the_protocol_of_the_default_network():
    sample = made(FIVE, 200, 1)
    theory = SurveyTheory.lay(sample, seed=0)
    assert theory.choice.name == "learnt"
    assert "needs fe_h" in theory.choice.reason
    assert theory.checksum == ""
    with pytest.raises(ConfigError, match="resolving_power"):
        SurveyTheory.lay(sample, wanted="emulator", seed=0)
    known = replace(sample, resolving_power=7500.0)
    with pytest.raises(ConfigError, match="reach beyond"):
        SurveyTheory.lay(known, wanted="emulator", seed=0)
    with pytest.raises(TrainingError, match="40 labelled stars are too few to learn"):
        SurveyTheory.lay(known.rows(np.arange(40)), seed=0)


def test_derivatives_of_a_learnt_theory_are_those_of_its_spectra():
    theory = SurveyTheory.lay(made(FIVE, 400, 1), seed=0)
    labels = made(FIVE, 6, 2).truth * 0.5 + np.median(theory.truth, axis=0) * 0.5
    slopes = theory.model.evaluate(theory.drawn(labels, 1.0, np.random.default_rng(0))).jacobian
    assert np.isfinite(slopes).all()
    exact = theory.learnt.typical_slopes(labels)
    for k in range(labels.shape[1]):
        step = 1e-2 * theory.learnt.scale[k] * np.eye(labels.shape[1])[k]
        ends = [theory.at_rest(labels + sign * step).astype(float) for sign in (1, -1)]
        numeric = (ends[0] - ends[1]) / (2 * step[k])
        assert exact[:, k] == pytest.approx(numeric, abs=0.01 * np.abs(numeric).max())


def test_synthetic_spectra_of_the_user_are_where_a_learnt_theory_begins(tmp_path):
    """From 80 stars: with a library of noise-free spectra theory errs less than without."""
    rng = np.random.default_rng(4)
    scaled = rng.uniform(-1, 1, (600, 5))
    centre, scale = np.array([SIZE.get(name, (0.0, 0.3)) for name in FIVE]).T
    wave = 6500.0 + 0.1 * np.arange(N_PIXEL)
    np.savez(
        tmp_path / "mine.npz",
        wave=wave,
        flux=lines(scaled, N_PIXEL),
        labels=scaled * scale + centre,
        label_names=np.array(FIVE),
    )
    few, test = made(FIVE, 80, 1), made(FIVE, 200, 2, snr=1e4)
    error = []
    for synthetic in ("", str(tmp_path / "mine.npz")):
        theory = SurveyTheory.lay(few, synthetic=synthetic, seed=0)
        error.append(np.std(theory.at_rest(test.truth) - test.inputs.flux))
    assert error[1] < 0.85 * error[0]


def test_a_label_that_no_star_has_is_told():
    sample = made(FIVE, 100, 1)
    truth = sample.truth.copy()
    truth[:, 4] = np.nan
    lacking = replace(sample, truth=truth)
    assert not np.isfinite(filled_stars(lacking).truth).all(axis=1).any()
    with pytest.raises(TrainingError, match="all of the labels"):
        trained("ferre", lacking)


def test_axes_that_theory_does_not_know_are_refused():
    sample = made(TWO, 120, 1)
    with pytest.raises(ConfigError, match="axes has m_h"):
        trained("ferre", sample, axes=["teff", "m_h"])
    assert trained("ferre", sample).core.grid.label_names == TWO
    iron = made(("teff", "fe_h"), 120, 1)
    assert trained("ferre", iron).core.grid.label_names == ("teff", "fe_h")
    alone = made(("mg_fe",), 120, 1)
    assert trained("ferre", alone).core.grid.label_names == ("mg_fe",)
