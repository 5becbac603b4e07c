"""Errors calibrated on residuals of stars that were not learnt from: do they hold on others."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from builders.method_samples import inputs_of
from builders.untrained_model import untrained
from maury.errors import ModelFileError, TrainingError
from maury.labels.statistics import NOMINAL_1SIGMA
from maury.model.directory import RESIDUAL_CALIBRATION, Model
from maury.model.output import Prediction, Unseen
from maury.prediction import residual_calibration
from maury.prediction.residual_calibration import ResidualCalibration, with_residual_calibration

NAMES = ("teff", "logg", "m_h")


def stars(n, seed, *, told=True):
    """Stars whose true errors are known: thrice those stated and a floor, less at high S/N."""
    rng = np.random.default_rng(seed)
    snr = rng.uniform(20, 100, n)
    truth = rng.normal((5000.0, 3.0, -0.3), (600.0, 1.0, 0.3), (n, 3))
    stated = rng.lognormal(0, 0.5, (n, 3)) * (10.0, 0.02, 0.01)
    true = np.hypot(3 * stated, (20.0, 0.05, 0.03)) * (snr[:, None] / 50) ** -0.4
    # Wilder than a normal distribution, as residuals are; of unit width at 68.3 %.
    mean = truth + true * rng.standard_t(5, (n, 3)) / stats.t.ppf(0.5 + NOMINAL_1SIGMA / 2, 5)
    covariance = 0.5 * stated[:, :, None] * stated[:, None, :]
    covariance[:, range(3), range(3)] = stated**2
    sigma = stated if told else np.full(mean.shape, np.nan)
    chi2 = rng.chisquare(60, n) / 60
    inputs = inputs_of(np.ones((n, 4)), np.ones((n, 4)), snr=snr)
    found = Prediction(mean, sigma, covariance=covariance if told else None, chi2_reduced=chi2)
    return Unseen(inputs, found, truth, np.array([f"s{k}" for k in range(n)]), "stars"), true


def shares(calibration, unseen):
    """Shares of stars within one error, and between the outer quantiles, (n_label,) each."""
    found = calibration.calibrate(unseen.inputs, unseen.prediction)
    low, high = found.quantiles[0], found.quantiles[-1]
    within = np.abs(found.mean - unseen.truth) < found.sigma
    return within.mean(axis=0), ((low < unseen.truth) & (unseen.truth < high)).mean(axis=0)


@pytest.fixture(scope="module")
def fitted():
    return ResidualCalibration.fit(stars(1500, 1)[0], NAMES)


def test_the_width_of_the_t_distribution_is_that_of_its_freedom():
    width = stats.t.ppf(0.5 + NOMINAL_1SIGMA / 2, residual_calibration._FREEDOM)
    assert pytest.approx(width, abs=1e-4) == residual_calibration._T_WITHIN


@pytest.mark.parametrize("told", [True, False])
def test_shares_hold_on_other_stars(told):
    fitted = ResidualCalibration.fit(stars(1500, 1, told=told)[0], NAMES)
    one, outer = shares(fitted, stars(4000, 2, told=told)[0])
    # Both samples scatter: sqrt(.22 (1 / 1500 + 1 / 4000)) is 1.4 %, of the quantiles .6 %.
    np.testing.assert_allclose(one, 0.683, atol=0.045)
    np.testing.assert_allclose(outer, 0.954, atol=0.02)


def test_errors_are_the_true_ones_star_by_star(fitted):
    unseen, true = stars(1000, 3)
    found = fitted.calibrate(unseen.inputs, unseen.prediction)
    ratio = found.sigma / true
    assert np.median(ratio) == pytest.approx(1.0, abs=0.08)
    assert np.percentile(ratio, 95) / np.percentile(ratio, 5) < 1.6
    assert np.percentile(unseen.prediction.sigma / true, 50) < 0.4


def test_shares_hold_where_the_s_n_is_low_as_where_it_is_high(fitted):
    unseen, _ = stars(6000, 4)
    found = fitted.calibrate(unseen.inputs, unseen.prediction)
    within = np.abs(found.mean - unseen.truth) < found.sigma
    for low, high in ((20, 40), (80, 100)):
        some = (unseen.inputs.snr > low) & (unseen.inputs.snr < high)
        np.testing.assert_allclose(within[some].mean(axis=0), 0.683, atol=0.06)


def test_errors_never_grow_with_s_n_and_follow_the_stated_ones(fitted):
    mean = np.tile([5000.0, 3.0, -0.3], (50, 1))
    stated = np.tile([10.0, 0.02, 0.01], (50, 1))
    along = fitted.errors(stated, np.linspace(5, 400, 50), mean)
    assert (np.diff(along, axis=0) <= 0).all()
    more = fitted.errors(stated * np.linspace(0.1, 9, 50)[:, None], np.full(50, 50.0), mean)
    assert (np.diff(more, axis=0) > 0).all()
    nothing = fitted.errors(np.full((1, 3), np.nan), np.full(1, 50.0), mean[:1])
    assert np.isnan(nothing).all()
    assert np.isfinite(fitted.errors(stated, np.full(50, np.nan), mean)).all()


def test_correlations_stay_and_variances_are_the_calibrated_ones(fitted):
    unseen, _ = stars(20, 5)
    found = fitted.calibrate(unseen.inputs, unseen.prediction)
    np.testing.assert_allclose(np.sqrt(np.einsum("nii->ni", found.covariance)), found.sigma)
    correlation = found.covariance / (found.sigma[:, :, None] * found.sigma[:, None, :])
    np.testing.assert_allclose(correlation[:, 0, 1], 0.5)
    np.testing.assert_array_equal(found.mean, unseen.prediction.mean)


def test_a_bias_is_in_the_quantiles_and_labels_are_not_moved():
    unseen, true = stars(1500, 6)
    moved = replace(unseen.prediction, mean=unseen.prediction.mean + true)
    fitted = ResidualCalibration.fit(replace(unseen, prediction=moved), NAMES)
    found = fitted.calibrate(unseen.inputs, moved)
    np.testing.assert_array_equal(found.mean, moved.mean)
    assert (np.median(found.quantiles[2] - found.mean, axis=0) < 0).all()
    below = (unseen.truth < found.quantiles[2]).mean(axis=0)
    np.testing.assert_allclose(below, 0.5, atol=0.04)


def test_a_label_that_few_stars_have_gets_no_error_and_too_few_stars_none_at_all(caplog, tmp_path):
    unseen, _ = stars(200, 7)
    truth = unseen.truth.copy()
    truth[20:, 1] = np.nan
    model = untrained(tmp_path, NAMES)
    found = with_residual_calibration(model, replace(unseen, truth=truth))
    assert "logg" in caplog.text
    assert found.errors_calibrated
    fitted = ResidualCalibration.from_arrays(found.arrays(RESIDUAL_CALIBRATION), 3)
    sigma = fitted.calibrate(unseen.inputs, unseen.prediction).sigma
    assert np.isnan(sigma).all(axis=0).tolist() == [False, True, False]
    assert np.isfinite(sigma[:, [0, 2]]).all()
    few = stars(12, 8)[0]
    with pytest.raises(TrainingError, match="at least 30"):
        ResidualCalibration.fit(few, NAMES)
    assert not with_residual_calibration(model, few).errors_calibrated
    assert with_residual_calibration(model, None) is model


def test_spectra_of_a_star_are_in_one_fold_and_unnamed_ones_are_stars():
    names = np.array(["b", "a", "b", "", "", "", "", "", "a"])
    fold = residual_calibration._folds(names)
    assert fold[0] == fold[2]
    assert fold[1] == fold[8]
    assert len(set(fold[3:8])) == 5


def test_a_poor_fit_is_one_in_four_hundred_of_the_stars_it_was_learnt_from():
    unseen, _ = stars(4000, 9)
    fitted = ResidualCalibration.fit(unseen, NAMES)
    chi2 = unseen.prediction.chi2_reduced
    assert 0 < fitted.poor(unseen.inputs, chi2).sum() <= 10
    assert fitted.poor(unseen.inputs, 3 * chi2).mean() > 0.99
    assert not fitted.poor(unseen.inputs, np.full(4000, np.nan)).any()


def test_what_is_written_is_read_and_damage_is_one_clear_error(tmp_path, fitted):
    model = untrained(tmp_path, NAMES)
    written = model.with_arrays(RESIDUAL_CALIBRATION, fitted.to_arrays())
    weights = [{"a.weight": np.ones((2, 3), "f4")}]
    read = ResidualCalibration.load(written.save(tmp_path / "b", weights=weights))
    unseen, _ = stars(30, 10)
    for name in ("sigma", "quantiles"):
        ours, theirs = (
            getattr(c.calibrate(unseen.inputs, unseen.prediction), name) for c in (read, fitted)
        )
        np.testing.assert_array_equal(ours, theirs)
    assert ResidualCalibration.load(model) is None
    bad = {**fitted.to_arrays(), "tails": np.zeros((3, 4))}
    damaged = model.with_arrays(RESIDUAL_CALIBRATION, bad).save(tmp_path / "c", weights=weights)
    with pytest.raises(ModelFileError, match=r"damaged.*tails"):
        ResidualCalibration.load(Model.open(damaged.path))
