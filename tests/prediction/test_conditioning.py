"""External measurements of one label: against weighted draws and the precision form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maury.errors import UnknownName
from maury.labels.definitions import LABEL_NAMES
from maury.prediction.calibration import condition

NAMES = ("teff", "logg", "m_h")


def posterior(seed: int, n_star: int = 1, n_label: int = 3):
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(n_star, n_label, n_label))
    covariance = factor @ factor.transpose(0, 2, 1) + 0.1 * np.eye(n_label)
    return rng.normal(size=(n_star, n_label)), covariance


def test_against_draws_weighted_by_the_likelihood() -> None:
    (mean,), (covariance,) = posterior(1)
    draws = np.random.default_rng(2).multivariate_normal(mean, covariance, 400_000)
    value, error = mean[1] + 0.7, 0.8
    weight = np.exp(-0.5 * ((draws[:, 1] - value) / error) ** 2)
    expected = np.average(draws, weights=weight, axis=0)
    spread = np.cov(draws.T, aweights=weight)
    (got,), (left,) = condition([mean], [covariance], value=[value], error=error, names=NAMES)
    assert got == pytest.approx(expected, abs=0.01)
    assert left == pytest.approx(spread, abs=0.02)


@given(st.integers(0, 10_000), st.integers(0, 2), st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_is_the_sum_of_two_precisions(seed, position, error, value) -> None:
    mean, covariance = posterior(seed, n_star=2)
    precision = np.linalg.inv(covariance)
    pull = np.einsum("nij,nj->ni", precision, mean)
    precision[:, position, position] += error**-2
    pull[:, position] += value * error**-2
    expected = np.linalg.inv(precision)
    got, left = condition(
        mean, covariance, label=NAMES[position], value=value, error=error, names=NAMES
    )
    assert left == pytest.approx(expected, rel=1e-6, abs=1e-7)
    assert got == pytest.approx(np.einsum("nij,nj->ni", expected, pull), rel=1e-5, abs=1e-5)
    assert np.array_equal(left, left.transpose(0, 2, 1)) or np.allclose(
        left, left.transpose(0, 2, 1), atol=1e-12
    )


def test_without_error_the_label_is_fixed() -> None:
    mean, covariance = posterior(3, n_star=4, n_label=9)
    value = np.arange(4.0)
    got, left = condition(mean, covariance, value=value)
    k = LABEL_NAMES.index("logg")
    assert got[:, k] == pytest.approx(value)
    assert np.abs(left[:, k]).max() < 1e-12
    others = [j for j in range(9) if j != k]
    schur = (
        covariance[:, others][:, :, others]
        - np.einsum("ni,nj->nij", covariance[:, others, k], covariance[:, others, k])
        / covariance[:, k, k, None, None]
    )
    assert left[:, others][:, :, others] == pytest.approx(schur)


def test_unknown_measurements_change_nothing_and_arguments_stay_as_they_are() -> None:
    mean, covariance = posterior(4, n_star=3)
    mean[2] = covariance[2] = np.nan
    kept = mean.copy(), covariance.copy()
    got, left = condition(
        mean, covariance, value=[np.nan, 1.0, 1.0], error=[0.1, np.nan, 0.1], names=NAMES
    )
    assert np.array_equal(got, kept[0], equal_nan=True)
    assert np.array_equal(left, kept[1], equal_nan=True)
    condition(mean, covariance, value=1.0, names=NAMES)
    assert np.array_equal(mean, kept[0], equal_nan=True)
    assert np.array_equal(covariance, kept[1], equal_nan=True)


def test_what_cannot_be_conditioned() -> None:
    mean, covariance = posterior(5)
    with pytest.raises(UnknownName, match="did you mean 'logg'"):
        condition(mean, covariance, label="log_g", value=1.0, names=NAMES)
    with pytest.raises(ValueError, match="negative"):
        condition(mean, covariance, value=1.0, error=-0.1, names=NAMES)
    with pytest.raises(ValueError, match="9 labels need"):
        condition(mean, covariance, value=1.0)
