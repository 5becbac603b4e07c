import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maury.errors import ColumnError, RowError
from maury.spectra.batch import Batch
from maury.spectra.rows import row_numbers, row_range
from maury.spectra.spectra import Spectra

N = 7
VALUES = np.arange(100, 100 + N)


@given(st.lists(st.integers(-N, N - 1)))
def test_numbers_are_those_of_numpy(index):
    here = row_numbers(index, N, what="it")
    assert VALUES[here].tolist() == VALUES[np.array(index, dtype=int)].tolist()
    assert here.dtype == np.int64
    assert (here >= 0).all()


@given(st.lists(st.booleans(), min_size=N, max_size=N))
def test_a_mask_is_a_mask(mask):
    assert VALUES[row_numbers(mask, N, what="it")].tolist() == VALUES[np.array(mask)].tolist()


@given(st.slices(N))
def test_slices_are_those_of_numpy(rows):
    assert VALUES[row_numbers(rows, N, what="it")].tolist() == VALUES[rows].tolist()


def test_one_number_is_one_row():
    assert row_numbers(-2, N, what="it").tolist() == [N - 2]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([0, N], "row 7 of it, which has 7 rows"),
        ([-N - 1], "row -8 of it"),
        (np.uint64(2**63), "row 9223372036854775808"),
        ([True, False], "a mask of 2 values for 7 rows"),
        ([0.0, 1.0], "whole numbers, a mask or a slice, got float64"),
        (["0"], "whole numbers"),
        ([[0]], "of shape"),
    ],
)
def test_rows_that_are_not_there_are_one_clear_error(rows, message):
    with pytest.raises(RowError, match=message):
        row_numbers(rows, N, what="it")
    with pytest.raises(IndexError):
        row_numbers(rows, N, what="it")


def test_nothing_has_no_rows():
    assert row_numbers([], 0, what="it").size == 0
    with pytest.raises(RowError, match="which has no rows"):
        row_numbers([0], 0, what="it")


@given(st.integers(-2 * N, 2 * N), st.integers(-2 * N, 2 * N))
def test_a_range_is_inside_or_refused(start, stop):
    first, last = (row + N if row < 0 else row for row in (start, stop))
    if 0 <= first <= last <= N:
        assert row_range(start, stop, N, what="it") == (first, last)
    else:
        with pytest.raises(RowError, match="give a range inside"):
            row_range(start, stop, N, what="it")


@pytest.fixture
def batch():
    flux = np.arange(N * 3, dtype=np.float32).reshape(N, 3)
    columns = {"id": VALUES.astype(str), "my_index": VALUES * 1.0}
    return Batch(Spectra.from_arrays([1000.0, 1001.0, 1002.0], flux), columns, 20)


@pytest.mark.parametrize("rows", [slice(2, 5), [3, -1, 3], VALUES > 103, 4, slice(None, None, 3)])
def test_rows_of_a_batch(batch, rows):
    some, expected = batch[rows], np.atleast_1d(np.arange(N)[rows])
    assert some.spectra.flux[:, 0].tolist() == (expected * 3.0).tolist()
    assert some.column("id").tolist() == VALUES[expected].astype(str).tolist()
    assert some.start == 20 + expected[0]


def test_rows_of_a_batch_that_are_not_there(batch):
    with pytest.raises(RowError, match="row 7 of the batch"):
        batch[[0, N]]
    with pytest.raises(RowError, match="mask of 8"):
        batch[np.ones(N + 1, dtype=bool)]


def test_columns_of_a_batch_by_name(batch):
    assert np.isnan(batch.column("parallax")).all()
    assert batch.column("my_index").tolist() == VALUES.tolist()
    assert np.isnan(batch.get("My_Index")).all()
    with pytest.raises(ColumnError, match="no column 'My_Index'; did you mean 'my_index'"):
        batch.column("My_Index")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([True, 2], "truth values among numbers"),
        ((np.True_, 0, 1), "truth values among numbers"),
        (np.ma.array([0, 1], mask=[False, True]), "masked rows"),
    ],
)
def test_rows_that_numpy_would_misread_are_refused(rows, said):
    with pytest.raises(RowError, match=said):
        row_numbers(rows, N, what="the batch")


@pytest.mark.parametrize("ends", [(None, 4), (0, None), (0.5, 4), ("0", 4)])
def test_ranges_without_whole_ends_are_refused(ends):
    with pytest.raises(RowError, match="from one whole number to another"):
        row_range(*ends, N, what="the batch")
