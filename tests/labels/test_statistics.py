"""Statistics of residuals, against other implementations and statistical truths."""

import dataclasses
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from maury.errors import LengthMismatch
from maury.labels.definitions import LABELS, select
from maury.labels.statistics import (
    MAD_TO_SIGMA,
    NOMINAL_1SIGMA,
    NOMINAL_2SIGMA,
    LabelStatistics,
    residual_statistics,
    robust_sigma,
)

TEFF = select(["teff"])
FLOATS = st.integers(-(10**9), 10**9).map(lambda k: k * 1e-5)


def one(truth, predicted, error=None) -> LabelStatistics:
    column = [None if a is None else np.asarray(a, float)[:, None] for a in (truth, predicted)]
    sigma = None if error is None else np.asarray(error, float)[:, None]
    (result,) = residual_statistics(column[0], column[1], sigma, labels=TEFF)
    return result


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def test_constants_are_those_of_the_normal_distribution() -> None:
    assert pytest.approx(1 / stats.norm.ppf(0.75), rel=1e-14) == MAD_TO_SIGMA
    assert pytest.approx(stats.norm.cdf(1) - stats.norm.cdf(-1), rel=1e-14) == NOMINAL_1SIGMA
    assert pytest.approx(stats.norm.cdf(2) - stats.norm.cdf(-2), rel=1e-14) == NOMINAL_2SIGMA


def test_every_statistic_against_another_implementation(rng: np.random.Generator) -> None:
    truth = rng.normal(5000, 500, 300)
    predicted = 5000 + 0.8 * (truth - 5000) + rng.standard_t(4, 300) * 60 + 20
    error = rng.uniform(20, 120, 300).round(-1)
    got = one(truth, predicted, error)
    residual = predicted - truth
    line = stats.linregress(truth, predicted)
    expected = {
        "bias": statistics.fmean(residual),
        "bias_robust": statistics.median(residual),
        "scatter": statistics.pstdev(residual),
        "scatter_robust": stats.median_abs_deviation(residual, scale="normal"),
        "rms": np.linalg.norm(residual) / np.sqrt(300),
        "slope": line.slope,
        "correlation": line.rvalue,
        "z_scatter_robust": stats.median_abs_deviation(residual / error, scale="normal"),
        "error_rank_correlation": stats.spearmanr(np.abs(residual), error).statistic,
        "coverage_1sigma": sum(abs(r) <= e for r, e in zip(residual, error, strict=True)) / 300,
        "coverage_2sigma": sum(abs(r) <= 2 * e for r, e in zip(residual, error, strict=True)) / 300,
    }
    for name, value in expected.items():
        assert getattr(got, name) == pytest.approx(value, rel=1e-12), name
    for k in (1, 2):
        inside = round(expected[f"coverage_{k}sigma"] * 300)
        posterior = stats.beta(inside + 0.5, 300 - inside + 0.5)
        assert getattr(got, f"coverage_{k}sigma_error") == pytest.approx(posterior.std())
    assert (got.n, got.n_missing, got.n_error) == (300, 0, 300)
    assert (got.name, got.symbol, got.unit) == ("teff", "Teff", "K")


def test_honest_errors_cover_what_they_say(rng: np.random.Generator) -> None:
    n = 40_000
    error = rng.uniform(0.5, 2.0, n)
    got = one(np.zeros(n), rng.normal(0, error), error)
    assert abs(got.coverage_1sigma - NOMINAL_1SIGMA) < 4 * got.coverage_1sigma_error
    assert abs(got.coverage_2sigma - NOMINAL_2SIGMA) < 4 * got.coverage_2sigma_error
    assert got.z_scatter_robust == pytest.approx(1.0, abs=0.03)
    assert got.error_rank_correlation > 0.2
    assert np.isnan(got.slope)
    assert np.isnan(got.correlation)


def test_errors_half_as_large_as_they_should_be_are_seen(rng: np.random.Generator) -> None:
    n = 20_000
    got = one(rng.normal(size=n) * 0, rng.normal(0, 1, n), np.full(n, 0.5))
    assert got.z_scatter_robust == pytest.approx(2.0, abs=0.06)
    assert got.coverage_1sigma == pytest.approx(2 * stats.norm.cdf(0.5) - 1, abs=0.015)
    assert np.isnan(got.error_rank_correlation), "equal errors rank nothing"


def test_sampling_error_of_the_coverage_is_the_scatter_of_repeats(
    rng: np.random.Generator,
) -> None:
    repeats = [one(np.zeros(100), rng.normal(size=100), np.ones(100)) for _ in range(400)]
    scatter = np.std([r.coverage_1sigma for r in repeats])
    assert np.mean([r.coverage_1sigma_error for r in repeats]) == pytest.approx(scatter, rel=0.12)


def test_robust_statistics_ignore_a_few_wild_stars(rng: np.random.Generator) -> None:
    residual = rng.normal(3, 1, 10_000)
    residual[:300] = 1e4
    got = one(np.zeros(10_000), residual)
    assert got.bias_robust == pytest.approx(3, abs=0.1)
    assert got.scatter_robust == pytest.approx(1, abs=0.1)
    assert got.scatter > 1000


def test_missing_rows_are_left_out_and_counted(rng: np.random.Generator) -> None:
    truth, error = rng.normal(size=50), rng.uniform(1, 2, 50)
    predicted = truth + rng.normal(size=50)
    whole = one(truth, predicted, error)
    holes = [np.concatenate([a, a[:6]]) for a in (truth, predicted, error)]
    holes[0][50:52] = np.nan
    holes[1][52:55] = np.nan
    holes[1][55] = np.inf
    with_holes = one(*holes)
    assert with_holes == dataclasses.replace(whole, n_missing=6)


def test_rows_without_a_usable_error_count_for_the_residuals_alone() -> None:
    got = one([0, 0, 0, 0], [1, 1, 1, 1], [np.nan, 0.0, -1.0, 2.0])
    assert (got.n, got.n_error, got.coverage_1sigma) == (4, 1, 1.0)
    assert 0 < got.coverage_1sigma_error < 0.5, "one star in one does not prove 100 %"


def test_errors_unknown_altogether() -> None:
    assert one([0, 1], [1, 1], [np.nan, np.nan]).n_error == 0
    assert np.isnan(one([0, 1], [1, 1]).coverage_1sigma)


@pytest.mark.parametrize("n", [0, 1])
def test_too_few_rows_give_nan_not_a_warning(n: int) -> None:
    got = one(np.full(n, 2.0), np.full(n, 3.0), np.ones(n))
    assert got.n == n
    assert np.isnan(got.slope)
    assert np.isnan(got.bias) == (n == 0)
    assert got.to_dict()["slope"] is None


@given(
    hnp.arrays(float, st.tuples(st.integers(2, 30), st.just(3)), elements=FLOATS),
    st.integers(0, 2**32 - 1),
)
def test_identities_hold_for_any_numbers(table: np.ndarray, seed: int) -> None:
    truth, predicted, error = table.T
    error = np.abs(error)
    got = one(truth, predicted, error)
    scale = 1e-9 * (1 + np.abs(table).max() ** 2)
    assert got.rms**2 == pytest.approx(got.bias**2 + got.scatter**2, abs=scale)
    if got.n_error:
        assert 0 <= got.coverage_1sigma <= got.coverage_2sigma <= 1
    shuffled = np.random.default_rng(seed).permutation(len(table))
    again = one(truth[shuffled], predicted[shuffled], error[shuffled])
    assert again.bias_robust == got.bias_robust
    assert again.scatter_robust == got.scatter_robust
    assert again.coverage_1sigma == got.coverage_1sigma or got.n_error == 0
    mirrored = one(-truth, -predicted, error)
    assert mirrored.bias_robust == -got.bias_robust
    assert mirrored.rms == got.rms


@given(hnp.arrays(float, st.integers(2, 40), elements=st.integers(-5, 5).map(float)))
def test_rank_correlation_with_ties_is_that_of_scipy(values: np.ndarray) -> None:
    error = np.abs(values[::-1]) + 1
    got = one(np.zeros(values.size), values, error).error_rank_correlation
    if np.ptp(np.abs(values)) == 0:
        assert np.isnan(got)
    else:
        expected = stats.spearmanr(np.abs(values), error).statistic
        assert got == pytest.approx(expected, abs=1e-12)


def test_shapes_are_checked() -> None:
    with pytest.raises(LengthMismatch, match=r"predicted has shape \(3, 2\), expected \(4, 2\)"):
        residual_statistics(np.zeros((4, 2)), np.zeros((3, 2)), labels=LABELS[:2])
    with pytest.raises(LengthMismatch, match="one column per label"):
        residual_statistics(np.zeros((4, 2)), np.zeros((4, 2)), labels=LABELS[:3])


def test_inputs_are_not_written_to(rng: np.random.Generator) -> None:
    arrays = [rng.normal(size=(5, 9)) for _ in range(3)]
    for array in arrays:
        array.flags.writeable = False
    assert len(residual_statistics(*arrays, labels=LABELS)) == 9


def test_robust_sigma_of_nothing_is_nan() -> None:
    assert np.isnan(robust_sigma([]))
    assert np.isnan(robust_sigma([np.nan]))
    assert robust_sigma([1.0, np.nan, 1.0]) == 0.0
