"""How rows of a survey, a batch or a match are addressed: as numpy does, or with a clear error."""

from operator import index

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import RowError
from maury.io.arrays import Int64Array


def row_numbers(rows: ArrayLike | slice, n_row: int, *, what: str) -> Int64Array:
    """Return the numbers, from 0, of the rows that are meant, shape ``(n,)``.

    Parameters
    ----------
    rows : slice, int, (n,) int or (n_row,) bool array_like
        A slice; one number or several, of which negative ones count from the end; or a mask, with
        one value a row. No numbers (an empty list) are no rows.
    n_row : int
        How many rows there are.
    what : str
        What has the rows, for the message.

    Raises
    ------
    RowError
        If a number is out of range, or no whole number, or a mask has another length.

    Examples
    --------
    >>> row_numbers([-1, 0], 5, what="the survey")
    array([4, 0])
    >>> row_numbers([True, False, True], 3, what="the survey")
    array([0, 2])
    """
    if isinstance(rows, slice):
        return np.arange(*rows.indices(n_row), dtype=np.int64)
    numbers = np.atleast_1d(np.asarray(rows))
    # numpy would take True among numbers for 1, and what a mask hides for a row like any other.
    mixed = (
        isinstance(rows, list | tuple) and len({isinstance(r, bool | np.bool_) for r in rows}) > 1
    )
    if mixed or np.ma.is_masked(rows):
        what_else = "truth values among numbers" if mixed else "masked rows"
        raise RowError(f"rows of {what} are whole numbers, a mask or a slice, got {what_else}")
    # An empty list has the type of floats in numpy.
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iub"):
        raise RowError(
            f"rows of {what} are whole numbers, a mask or a slice, got {numbers.dtype} of shape "
            f"{np.shape(rows)}"
        )
    if numbers.dtype.kind == "b":
        if numbers.size != n_row:
            raise RowError(
                f"a mask of {numbers.size} values for {n_row} rows of {what}; give one value a row"
            )
        return np.flatnonzero(numbers)
    outside = (numbers >= n_row) | (numbers < -n_row)
    if outside.any():
        raise RowError(
            f"row {numbers[outside][0]} of {what}, which has {n_row} rows: give numbers from 0 to "
            f"{n_row - 1}, or from -1 (the last) to {-n_row}"
            if n_row
            else f"row {numbers[outside][0]} of {what}, which has no rows"
        )
    whole = numbers.astype(np.int64)
    return np.where(whole < 0, whole + n_row, whole)


def row_range(start: int, stop: int, n_row: int, *, what: str) -> tuple[int, int]:
    """Return the first row of a range and the row after its last, both from 0 to `n_row`.

    Parameters
    ----------
    start, stop : int
        Negative numbers count from the end.
    n_row, what
        How many rows there are, and what has them, for the message.

    Raises
    ------
    RowError
        If the range is not inside the rows, or ends before it starts.
    """
    try:
        first, last = (n_row + row if row < 0 else row for row in (index(start), index(stop)))
    except TypeError:
        raise RowError(
            f"a range of {what} goes from one whole number to another, got {start!r} and {stop!r}"
        ) from None
    if not 0 <= first <= last <= n_row:
        raise RowError(
            f"rows {start} to before {stop} of {what}, which has {n_row} rows: give a range inside "
            "them; negative numbers count from the end"
        )
    return int(first), int(last)
