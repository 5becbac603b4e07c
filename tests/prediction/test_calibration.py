from dataclasses import replace
from math import log, tanh

import numpy as np
import pytest
from scipy.stats import norm

from maury.errors import TrainingError
from maury.prediction.calibration import (
    LEAST_STARS,
    Calibration,
    HeldOutResiduals,
    Regime,
    repeat_scatter,
)
from maury.prediction.completeness import N_COMPLETENESS, N_FURTHER


def regime(n, rng):
    return Regime(
        np.exp(rng.normal(np.log(50), 0.4, n)), rng.uniform(0, 5, n), rng.normal(-0.2, 0.4, n)
    )


def normal(error, rng):
    return error * rng.normal(size=error.shape)


def inside(residual, error, sigma=1.0):
    return np.mean(np.abs(residual) <= sigma * error, axis=0)


def test_the_terms_of_the_factor():
    snr = [50.0, 100.0, 1.0, 1e4, np.nan]
    logg = [3.5, 4.3, 2.0, np.nan, 9.0]
    m_h = [-0.2, 0.2, -1.2, 2.0, np.nan]
    got = Regime(np.array(snr), np.array(logg), np.array(m_h)).design()
    depths = [0.0, log(2), log(0.1), log(4), 0.0]
    dwarfs = [0.0, tanh(2.0), tanh(-3.75), 0.0, 1.0]
    poor = [0.0, -0.4, 1.0, -0.5, 0.0]
    columns = zip(depths, dwarfs, poor, strict=True)
    expected = [[1.0, d, d**2, g, p, g * p, d * g, d * p, d * g * p, p**2] for d, g, p in columns]
    np.testing.assert_allclose(got, expected, atol=1e-9)
    assert Regime(*np.array([[50.0], [3.5], [-9.0]])).design()[0, 4] == 1.5


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_few_stars_are_drawn_towards_the_others(factor, monkeypatch):
    """The global scale is that of the posterior whose prior and information are stated."""
    # What wild stars add to all labels alike is no part of it.
    monkeypatch.setattr("maury.prediction.calibration.widening", lambda score: 1.0)
    rng = np.random.default_rng(14)
    error = np.ones((40, 3))
    residual = normal(error, rng)
    odd = replace_column(residual, 2, factor * residual[:, 2])
    found = Calibration.fit(odd, error, regime(40, rng))
    # 2 units of information per star and a prior of 0.04: 40 stars weigh 80 against 625.
    alone = Calibration.fit(odd[:, 2:], error[:, 2:], regime(40, rng)).global_scale[0]
    centre = np.median(
        [
            Calibration.fit(odd[:, k : k + 1], error[:, :1], regime(40, rng)).global_scale[0]
            for k in range(3)
        ]
    )
    share = (found.global_scale[2] - centre) / (alone - centre)
    assert 0.05 < share < 0.25, "80 / 705 in the normal approximation"


def replace_column(values, k, column):
    out = values.copy()
    out[:, k] = column
    return out


def test_stars_and_labels_without_errors_do_not_count():
    rng = np.random.default_rng(15)
    error = np.ones((400, 2))
    residual = normal(error, rng)
    where = regime(400, rng)
    plain = Calibration.fit(residual, error, where, simulated=(residual, error, where))
    dark = error.copy()
    dark[:50] = 0.0
    wild = residual.copy()
    wild[:50] = 1e6
    kept = Regime(where.snr[50:], where.logg[50:], where.m_h[50:])
    expected = Calibration.fit(
        residual[50:], error[50:], kept, simulated=(residual[50:], error[50:], kept)
    )
    got = Calibration.fit(wild, dark, where, simulated=(wild, dark, where))
    for name in ("global_scale", "regime_coefficients", "tails"):
        np.testing.assert_allclose(getattr(got, name), getattr(expected, name), rtol=1e-6)
    exact = residual.copy()
    exact[0] = 0.0
    assert np.isfinite(Calibration.fit(exact, error, where).global_scale).all()
    assert (plain.n_real, plain.n_simulated) == (400, 400)
    assert Calibration.fit(residual, error, where).n_simulated == 0


def test_exactly_the_least_number_of_stars_is_enough():
    rng = np.random.default_rng(16)
    error = np.ones((LEAST_STARS, 1))
    residual = normal(error, rng)
    where = regime(LEAST_STARS, rng)
    assert Calibration.fit(residual, error, where).n_real == LEAST_STARS
    with pytest.raises(TrainingError, match=r"29 held-out stars .* \[split\] train = 0.6"):
        Calibration.fit(residual[1:], error[1:], regime(LEAST_STARS - 1, rng))
    stars = np.repeat(np.arange(LEAST_STARS).astype(str), 2)
    values = np.repeat(residual, 2, axis=0)
    values[1::2] += 1.0
    found = repeat_scatter(values, stars, least_pairs=LEAST_STARS)
    assert found[0] == pytest.approx(1.4826 / np.sqrt(2), rel=1e-4)
    assert repeat_scatter(values, stars, least_pairs=LEAST_STARS + 1)[0] == 0.0
    nameless = np.full(stars.size, "")
    assert repeat_scatter(values, nameless, least_pairs=1)[0] == 0.0


def evaluated(n, times, rng):
    """Give residuals that are `times` their errors, the errors, and a regime."""
    error = np.exp(rng.normal(size=(n, 2)))
    return np.asarray(times) * normal(error, rng), error, regime(n, rng)


def held_out_stars(n_star, factor, rng):
    """Give stars of which single networks err by 1.3 times their errors, and by `factor` more."""
    real = evaluated(n_star, 1.3 * np.asarray(factor), rng)
    # Simulated spectra of a network's own sample would err less than those of stars unseen.
    return HeldOutResiduals(*real, evaluated(12_000, 1.3, rng), evaluated(12_000, 1.3 * 0.9, rng))


def test_held_out_stars_of_one_network_count_as_stars_of_the_ensemble():
    rng = np.random.default_rng(21)
    factor = np.array([1.2, 0.8])
    few = evaluated(40, factor, rng)
    alone = Calibration.fit(*few)
    helped = Calibration.fit(
        *few, simulated=evaluated(12_000, 0.9, rng), held_out=held_out_stars(4000, factor, rng)
    )
    np.testing.assert_allclose(helped.errors(*few[1:]), factor * few[1], rtol=0.2)
    np.testing.assert_allclose(np.median(helped.factor(few[2]), axis=0), factor, rtol=0.05)
    assert np.exp(alone.global_scale[0] - alone.global_scale[1]) < 1.25, (
        "40 stars leave the labels much alike"
    )
    assert (helped.n_real, helped.n_simulated) == (4040, 12_000)


def test_held_out_stars_need_simulated_ones():
    rng = np.random.default_rng(24)
    with pytest.raises(ValueError, match="need simulated ones"):
        Calibration.fit(*evaluated(40, 1.0, rng), held_out=held_out_stars(100, [1.0, 1.0], rng))


def test_the_coefficients_are_those_of_the_held_out_stars_reobserved():
    rng = np.random.default_rng(25)

    def bent(n, slope):
        residual, error, where = evaluated(n, 1.0, rng)
        return residual * np.exp(slope * where.design()[:, 3:4]), error, where

    flat = bent(12_000, 0.0)
    held_out = HeldOutResiduals(*bent(2000, 0.3), bent(12_000, 0.3), flat)
    found = Calibration.fit(*bent(300, 0.3), simulated=flat, held_out=held_out)
    np.testing.assert_allclose(found.regime_coefficients[:, 3], 0.3, atol=0.04)
    alone = Calibration.fit(*bent(300, 0.3), simulated=flat)
    np.testing.assert_allclose(alone.regime_coefficients[:, 3], 0.0, atol=0.04)


def test_held_out_stars_without_a_label_do_not_count():
    rng = np.random.default_rng(22)
    error = np.ones((300, 2))
    few = (normal(error, rng), error, regime(300, rng))
    drawn, held_out = evaluated(12_000, 1.0, rng), held_out_stars(600, [1.0, 1.0], rng)
    expected = Calibration.fit(*few, simulated=drawn, held_out=held_out).global_scale
    blank = np.full((50, 2), np.nan)
    longer = HeldOutResiduals(
        np.concatenate([held_out.residual, blank]),
        np.concatenate([held_out.error, np.ones((50, 2))]),
        Regime(*(np.r_[getattr(held_out.regime, f), np.ones(50)] for f in ("snr", "logg", "m_h"))),
        held_out.reobserved,
        held_out.control,
    )
    again = Calibration.fit(*few, simulated=drawn, held_out=longer)
    np.testing.assert_allclose(again.global_scale, expected, rtol=1e-6)


def test_three_tails_are_read():
    rng = np.random.default_rng(26)
    found = Calibration.fit(*evaluated(100, 1.0, rng), simulated=evaluated(1000, 1.0, rng))
    old = found.to_arrays()
    old["tails"] = old["tails"][:, 1:4]
    again = Calibration.from_arrays(old)
    np.testing.assert_array_equal(again.tails[:, 1:4], found.tails[:, 1:4])
    np.testing.assert_allclose(again.tails[:, [0, 4]], [norm.ppf([0.023, 0.977])] * 2)


def test_coefficients_of_five_terms_are_read():
    rng = np.random.default_rng(23)
    error = np.ones((100, 2))
    stars = (normal(error, rng), error, regime(100, rng))
    found = Calibration.fit(*stars, simulated=stars)
    old = found.to_arrays()
    old["course"] = old["course"][:, :5]
    again = Calibration.from_arrays(old)
    np.testing.assert_array_equal(
        again.regime_coefficients[:, :5], found.regime_coefficients[:, :5]
    )
    np.testing.assert_array_equal(again.regime_coefficients[:, 5:], 0.0)


def test_lists_and_integers_are_taken():
    ones = [[1] for _ in range(LEAST_STARS)]
    where = Regime(*np.full((3, LEAST_STARS), 1.0))
    found = Calibration.fit(ones, ones, where, floor=[2])
    assert found.floor.dtype == found.centre.dtype == found.deshrinkage.dtype == np.float64
    np.testing.assert_array_equal(found.means([[3]]), [[3.0]])


def test_honest_errors_stay_as_they_are():
    rng = np.random.default_rng(1)
    error = np.exp(rng.normal(size=(4000, 3)))
    found = Calibration.fit(normal(error, rng), error, regime(4000, rng))
    np.testing.assert_allclose(np.exp(found.global_scale), 1.0, atol=0.03)


@pytest.mark.parametrize("factor", [0.4, 3.0])
def test_a_common_factor_is_found_on_few_stars(factor):
    rng = np.random.default_rng(2)
    error = np.exp(rng.normal(size=(270, 9)))
    found = Calibration.fit(normal(error, rng) * factor, error, regime(270, rng))
    np.testing.assert_allclose(np.exp(found.global_scale), factor, rtol=0.12)
    assert np.std(found.global_scale) < 0.06, "labels lend each other strength"


def test_coefficients_over_the_regimes_are_learnt_from_simulated_stars():
    rng = np.random.default_rng(3)

    def stars(n):
        where = regime(n, rng)
        truth = np.where(where.logg > 3.5, 1.5, 0.8) * (where.snr / 50.0) ** -0.4
        error = np.full((n, 2), 10.0)
        return normal(error * truth[:, None], rng), error, where

    residual, error, where = stars(300)
    found = Calibration.fit(residual, error, where, simulated=stars(12_000))
    residual, error, where = stars(60_000)
    calibrated = found.errors(error, where)
    for cell in (where.logg > 4, where.logg < 3, where.snr < 35, where.snr > 80):
        assert inside(residual[cell], calibrated[cell]) == pytest.approx(0.683, abs=0.05)
        assert inside(residual[cell], calibrated[cell], 2) == pytest.approx(0.954, abs=0.02)


def test_wild_stars_rule_nothing():
    rng = np.random.default_rng(4)
    error = np.ones((1000, 1))
    residual = normal(error, rng)
    residual[:20] *= 1e6
    found = Calibration.fit(residual, error, regime(1000, rng))
    assert np.exp(found.global_scale[0]) == pytest.approx(1.0, abs=0.08)


def test_size_agrees_with_conformal_prediction():
    crepes = pytest.importorskip("crepes")
    rng = np.random.default_rng(5)
    error = np.exp(rng.normal(size=4000))
    residual = normal(error, rng) * 1.7
    found = Calibration.fit(residual[:, None], error[:, None], regime(4000, rng))
    oracle = crepes.ConformalRegressor().fit(residual, sigmas=error)
    low, high = oracle.predict_int(np.zeros(4000), sigmas=error, confidence=0.683).T
    ours = found.errors(error[:, None], regime(4000, rng))[:, 0]
    np.testing.assert_allclose(ours, 0.5 * (high - low), rtol=0.04)


def test_quantiles_hold_for_skewed_residuals():
    rng = np.random.default_rng(6)
    n = 40_000
    error = np.ones((n, 1))
    residual = rng.gamma(4.0, 0.5, (n, 1)) - 2.0
    where = regime(n, rng)
    found = Calibration.fit(residual, error, where, simulated=(residual, error, where))
    truth = -residual
    least, low, middle, high, most = found.quantiles(np.zeros((n, 1)), found.errors(error, where))
    assert np.mean(truth < least) == pytest.approx(0.023, abs=0.01)
    assert np.mean(truth < most) == pytest.approx(0.977, abs=0.01)
    assert np.mean(truth < low) == pytest.approx(0.16, abs=0.02)
    assert np.mean(truth < middle) == pytest.approx(0.5, abs=0.02)
    assert np.mean(truth < high) == pytest.approx(0.84, abs=0.02)


def test_normal_quantiles_without_calibration():
    none = Calibration.none(2)
    quantiles = none.quantiles(np.array([[1.0, 2.0]]), np.array([[1.0, 3.0]]))
    levels = [0.023, 0.16, 0.5, 0.84, 0.977]
    np.testing.assert_allclose(quantiles[:, 0, 1], 2 + 3 * norm.ppf(levels))


def test_floor_missing_values_and_units():
    rng = np.random.default_rng(7)
    error = np.exp(rng.normal(size=(500, 2)))
    residual = normal(error, rng)
    residual[::7, 0] = np.nan
    where = regime(500, rng)
    found = Calibration.fit(residual, error, where, floor=[0.5, 0.0])
    calibrated = found.errors(error, where)
    assert calibrated[:, 0].min() >= 0.5
    kelvin = Calibration.fit(residual * [1, 1000], error * [1, 1000], where)
    np.testing.assert_allclose(kelvin.global_scale, found.global_scale, atol=1e-3)
    blind = Regime(*(np.full(1, np.nan) for _ in range(3)))
    assert np.isfinite(found.factor(blind)).all()
    assert np.isnan(found.errors(np.full((1, 2), np.nan), blind)).all()


def test_round_trip_and_refusals():
    rng = np.random.default_rng(8)
    error = np.ones((100, 2))
    found = Calibration.fit(normal(error, rng), error, regime(100, rng))
    again = Calibration.from_arrays(found.to_arrays())
    np.testing.assert_array_equal(again.global_scale, found.global_scale)
    assert (again.n_real, again.n_simulated) == (100, 0)
    broken = found.to_arrays() | {"course": np.zeros((2, 4))}
    with pytest.raises(ValueError, match="course"):
        Calibration.from_arrays(broken)
    with pytest.raises(TrainingError, match=f"at least {LEAST_STARS}"):
        Calibration.fit(error[:10], error[:10], regime(10, rng))


def test_repeats_give_the_scatter_of_one_spectrum():
    rng = np.random.default_rng(9)
    star = np.repeat([f"s{i}" for i in range(400)], 3)
    values = np.repeat(rng.normal(0, 50, (400, 2)), 3, axis=0) + rng.normal(0, [2, 7], (1200, 2))
    shuffled = rng.permutation(1200)
    found = repeat_scatter(values[shuffled], star[shuffled])
    np.testing.assert_allclose(found, [2, 7], rtol=0.1)
    assert repeat_scatter(values[:10], [f"x{i}" for i in range(10)]).tolist() == [0.0, 0.0]
    assert repeat_scatter(values[:10], [""] * 10).tolist() == [0.0, 0.0]


def test_errors_of_stars_that_lack_inputs_get_a_factor_of_their_own():
    """True errors are 1.6 times the quoted ones without a parallax; the others stay as they are."""
    rng = np.random.default_rng(21)
    n = 6000
    there = np.zeros((n, N_COMPLETENESS))
    there[: n // 2, 7] = 1.0
    where = replace(regime(n, rng), completeness=there)
    error = rng.uniform(0.5, 2.0, (n, 2))
    residual = normal(error * np.where(there[:, 7:8] > 0, 1.6, 1.0), rng)
    found = Calibration.none(2).with_completeness(residual, error, where)
    factor = found.factor(where)
    np.testing.assert_allclose(factor[: n // 2], 1.6, rtol=0.05)
    np.testing.assert_allclose(factor[n // 2 :], 1.0, rtol=1e-12)
    again = Calibration.from_arrays(found.to_arrays())
    np.testing.assert_array_equal(again.factor(where), factor)


def test_calibrations_of_before_know_nothing_of_further_columns():
    rng = np.random.default_rng(3)
    n = 3000
    there = np.zeros((n, N_COMPLETENESS + N_FURTHER))
    there[: n // 2, N_COMPLETENESS] = 1.0
    where = replace(regime(n, rng), completeness=there)
    error = rng.uniform(0.5, 2.0, (n, 2))
    residual = normal(error * np.where(there[:, N_COMPLETENESS, None] > 0, 1.5, 1.0), rng)
    found = Calibration.none(2).with_completeness(residual, error, where)
    np.testing.assert_allclose(found.factor(where)[: n // 2], 1.5, rtol=0.06)
    again = Calibration.from_arrays(found.to_arrays())
    np.testing.assert_array_equal(again.factor(where), found.factor(where))
    before = replace(found, completeness_coefficients=np.zeros((2, N_COMPLETENESS)))
    np.testing.assert_array_equal(before.factor(where), 1.0)
    plain = replace(where, completeness=there[:, :N_COMPLETENESS])
    np.testing.assert_array_equal(found.factor(plain), 1.0)


def test_means_are_deshrunk_about_the_centre() -> None:
    calibration = replace(
        Calibration.none(2), centre=np.array([1.0, -2.0]), deshrinkage=np.array([1.1, 1.0])
    )
    means = calibration.means([[2.0, 0.0], [np.nan, -2.0]])
    assert means == pytest.approx(np.array([[2.1, 0.0], [np.nan, -2.0]]), nan_ok=True)
    again = Calibration.from_arrays(calibration.to_arrays())
    assert np.array_equal(again.means(means), calibration.means(means), equal_nan=True)


def test_quantiles_hold_where_real_stars_are_biased_and_simulated_ones_are_not():
    """A bias of half an error, which no simulation knows, would give P(truth < q50) = .69."""
    rng = np.random.default_rng(31)
    drawn, where = evaluated(12_000, 1.0, rng), regime(3000, rng)
    error = np.ones((3000, 2))
    found = Calibration.fit(normal(error, rng) + 0.5, error, where, simulated=drawn)
    truth = -(normal(np.ones((40_000, 2)), rng) + 0.5)
    there = Regime(*np.full((3, 40_000), [[50.0], [3.5], [-0.2]]))
    calibrated = found.errors(np.ones((40_000, 2)), there)
    below = (truth < found.quantiles(np.zeros((40_000, 2)), calibrated)).mean(axis=(1, 2))
    np.testing.assert_allclose(below, [0.023, 0.16, 0.5, 0.84, 0.977], atol=0.03)


def test_errors_are_told_apart_by_repeats():
    """Own parts of .3 of the error at S/N 100 and .6 at 25, the rest common to a star."""
    rng = np.random.default_rng(32)
    n = 4000
    error, where = np.full((n, 2), 10.0), regime(n, rng)
    share = 0.3 * np.sqrt(100.0 / where.snr)[:, None]
    honest = Calibration.fit(normal(error, rng), error, where)
    assert honest.own_errors(error, where) is None
    difference = normal(share * error, rng)
    found = honest.with_repeats(difference, honest.errors(error, where), where)
    calibrated = found.errors(error, where)
    ratio = found.own_errors(calibrated, where) / (share * error)
    assert np.percentile(np.abs(ratio - 1), 95) < 0.1
    wide = found.with_repeats(3 * calibrated, calibrated, where).own_errors(calibrated, where)
    np.testing.assert_array_equal(wide, calibrated)
    again = Calibration.from_arrays(found.to_arrays())
    np.testing.assert_array_equal(again.own_coefficients, found.own_coefficients)
    assert Calibration.from_arrays(honest.to_arrays()).own_coefficients is None


@pytest.mark.slow
def test_a_few_validation_stars_are_joined_by_those_that_single_networks_held_out():
    """A hundred labelled stars: eight to validate with, and forty that networks held out."""
    rng = np.random.default_rng(41)
    simulated = evaluated(12_000, 0.9, rng)
    scales = []
    for _ in range(40):
        held_out = held_out_stars(40, np.ones(2), rng)
        found = Calibration.fit(*evaluated(8, 1.0, rng), simulated=simulated, held_out=held_out)
        assert found.n_real == 48
        scales.append(np.median(found.factor(regime(200, rng)), axis=0))
    # Errors are right as they are. 48 stars fix a factor to 1 / sqrt(96) = 10 %, 40 samples their
    # mean to 1.6 %; widening for wild stars adds up to 4 %.
    np.testing.assert_allclose(np.mean(scales, axis=0), 1.02, atol=0.07)
    with pytest.raises(TrainingError, match="28 held-out stars"):
        Calibration.fit(
            *evaluated(8, 1.0, rng),
            simulated=simulated,
            held_out=held_out_stars(20, np.ones(2), rng),
        )
