import numpy as np
import pytest

from maury.io.arrays import on_finite_rows


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_without_numbers_are_kept_out_and_harm_no_other(dtype):
    rng = np.random.default_rng(3)
    rows, matrix = rng.normal(size=(37, 19)).astype(dtype), rng.normal(size=(19, 23)).astype(dtype)
    odd = rows.copy()
    odd[4, 7], odd[11, 0], odd[30, 18] = np.nan, np.inf, -np.inf
    seen = []

    def product(known):
        seen.append(np.isfinite(known).all())
        return known @ matrix

    out = on_finite_rows(product, odd)
    assert seen == [True]
    assert out.dtype == dtype
    bad = np.isin(np.arange(37), [4, 11, 30])
    assert np.isnan(out[bad]).all()
    np.testing.assert_array_equal(out[~bad], on_finite_rows(product, rows)[~bad])


def test_matrices_of_rows_and_no_rows():
    covariance = np.stack([np.eye(3), np.full((3, 3), np.nan)])
    out = on_finite_rows(lambda known: 2.0 * known @ np.eye(3), covariance)
    np.testing.assert_array_equal(out[0], 2.0 * np.eye(3))
    assert np.isnan(out[1]).all()
    assert on_finite_rows(lambda known: known @ np.ones((3, 2)), np.zeros((0, 3))).shape == (0, 2)
