import numpy as np
import pyarrow as pa
import pytest

from maury.io.arrays import arrow_array, numpy_array, on_finite_rows


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


@pytest.mark.parametrize(
    "values",
    [
        np.array([1.5, np.nan, -np.inf]),
        np.arange(7, dtype=np.int32)[::2],
        np.array([2**40, -1]),
        np.random.default_rng(1).random(19) > 0.5,
        np.array(["", "a", "longer", "\u00fc\u2014"]),
        np.array([], dtype=np.float64),
        np.array([], dtype=np.str_),
    ],
)
def test_arrow_and_back_as_pyarrow_does(values):
    arrow = arrow_array(values)
    assert arrow.equals(pa.array(values)) or np.isnan(values.astype(float)).any()
    np.testing.assert_array_equal(numpy_array(arrow), values)
    halves = pa.chunked_array([arrow[:1], arrow[1:]], type=arrow.type)
    np.testing.assert_array_equal(numpy_array(halves), values)
    np.testing.assert_array_equal(numpy_array(arrow[1:]), values[1:])


@pytest.mark.parametrize("values", [pa.array([1, None]), pa.array([[1], [2, 3]])])
def test_nulls_and_lists_are_no_plain_column(values):
    with pytest.raises(TypeError, match="no plain column"):
        numpy_array(values)
