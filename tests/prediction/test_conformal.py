"""Quantiles and joint regions of held-out scores hold on other stars."""

import numpy as np
import pytest
from scipy.stats import chi2, norm

from maury.prediction.conformal import (
    TAIL_PROBABILITIES,
    conformal_quantiles,
    joint_radii,
    mahalanobis2,
    widening,
)


def test_a_bias_of_real_stars_moves_the_quantiles():
    """Simulated stars, which are many, know nothing of it: P(truth < q50) would be .70."""
    rng = np.random.default_rng(1)
    score = 0.5 + rng.standard_normal((4000, 2))
    found = conformal_quantiles(score, rng.standard_normal((12_000, 2)))
    below = (rng.standard_normal(100_000)[:, None] + 0.5 < found[0]).mean(axis=0)
    np.testing.assert_allclose(below, TAIL_PROBABILITIES, atol=0.02)
    old = np.median(rng.standard_normal(12_000))
    assert np.mean(0.5 + rng.standard_normal(100_000) > old) == pytest.approx(0.69, abs=0.02)


def test_each_side_has_its_own_quantile():
    rng = np.random.default_rng(2)
    score, other = rng.gamma(2.0, 1.0, (2, 6000, 1)) - 2.0
    found = conformal_quantiles(score)[0]
    assert found[3] - found[2] > 1.3 * (found[2] - found[1])
    below = (other < found).mean(axis=0)
    np.testing.assert_allclose(below, TAIL_PROBABILITIES, atol=4 * 0.5 / np.sqrt(6000))


def test_coverage_is_exact_in_the_mean_over_small_samples():
    """Rank (n + 1) p: of 60 held-out stars, a new one is below each quantile with probability p."""
    rng = np.random.default_rng(3)
    quantiles = conformal_quantiles(rng.standard_normal((60, 4000)))
    below = norm.cdf(quantiles).mean(axis=0)
    np.testing.assert_allclose(below[1:4], TAIL_PROBABILITIES[1:4], atol=4 * 0.05 / np.sqrt(4000))


def test_few_held_out_stars_take_their_outer_tails_from_simulated_ones():
    rng = np.random.default_rng(4)
    heavy = rng.standard_t(3, (40_000, 1))
    score = 2.0 * rng.standard_t(3, (60, 1)) + 1.0
    found = conformal_quantiles(score, heavy)[0]
    shape = np.quantile(heavy, TAIL_PROBABILITIES)
    for outer, side in ((0, 1), (4, 3)):
        ratio = (found[outer] - found[2]) / (found[side] - found[2])
        assert ratio == pytest.approx(
            (shape[outer] - shape[2]) / (shape[side] - shape[2]), rel=0.02
        )


def test_labels_without_scores_get_those_of_simulated_stars_or_a_normal_distribution():
    blank = np.full((50, 1), np.nan)
    np.testing.assert_allclose(conformal_quantiles(blank)[0], norm.ppf(TAIL_PROBABILITIES))
    drawn = np.random.default_rng(5).normal(3.0, 1.0, (20_000, 1))
    assert conformal_quantiles(blank, drawn)[0, 2] == pytest.approx(3.0, abs=0.05)


def test_joint_regions_hold_though_residuals_have_tails():
    rng = np.random.default_rng(6)
    k = 9
    root = rng.normal(size=(k, k)) * np.geomspace(1e-2, 1e2, k)[:, None]
    covariance = np.broadcast_to(root @ root.T, (8000, k, k))

    def draw(n):
        return rng.standard_normal((n, k)) @ root.T * np.sqrt(6 / rng.chisquare(6, (n, 1)))

    distance2 = mahalanobis2(draw(8000), covariance)
    radii = joint_radii(distance2)
    again = mahalanobis2(draw(8000), covariance)
    assert np.mean(again < radii[1]) == pytest.approx(0.954, abs=0.01)
    assert np.mean(again < radii[0]) == pytest.approx(0.683, abs=0.025)
    assert np.mean(again < chi2.ppf(0.954, k)) < 0.9, "those of a normal distribution do not"


def test_unknown_residuals_do_not_count_and_few_stars_tell_nothing():
    residual = np.array([[1.0, np.nan], [3.0, 4.0]])
    found = mahalanobis2(residual, np.broadcast_to(np.eye(2), (2, 2, 2)))
    np.testing.assert_allclose(found, [np.nan, 25.0])
    assert joint_radii(np.ones(40)) is None


def test_errors_are_wider_where_many_stars_are_wild_but_not_by_much():
    rng = np.random.default_rng(4)
    normal = rng.standard_normal((4000, 9))
    assert widening(normal) == 1.0
    # Of nine labels with such tails, 7 % of the stars lie beyond three in one.
    wild = rng.standard_normal((40_000, 9)) * np.where(rng.random((40_000, 9)) < 0.02, 2.5, 1.0)
    share = (np.abs(wild) > 3).any(axis=1).mean()
    factor = widening(wild)
    assert 0.05 < share < 0.08
    assert 1.0 < factor <= 1.04
    after = (np.abs(wild) > 3 * factor).any(axis=1).mean()
    assert after == pytest.approx(0.05, abs=0.003) or factor == 1.04
    assert widening(100 * normal) == 1.04
    # Labels that are unknown count for nothing, and stars without any neither.
    missing = np.where(rng.random(normal.shape) < 0.5, np.nan, normal)
    missing[:2000] = np.nan
    missing[2000:2100, 0] = 3.06
    assert widening(missing) == pytest.approx(1.02, abs=1e-6)
    assert widening(np.full((5, 2), np.nan)) == 1.0
