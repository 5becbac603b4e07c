"""The kinds of numpy arrays that signatures name: one name a dtype, the same in every package.

A signature says the dtype; the shape and the unit stand in the docstring. `on_finite_rows` keeps
numbers that are none out of matrix products.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

AnyArray = NDArray[Any]
BoolArray = NDArray[np.bool_]
StrArray = NDArray[np.str_]
Float32Array = NDArray[np.float32]
Float64Array = NDArray[np.float64]
FloatArray = NDArray[np.floating[Any]]
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]
IndexArray = NDArray[np.intp]
"""Row or pixel numbers as numpy's own functions return them (`np.flatnonzero`, `np.argsort`)."""


def on_finite_rows(function: Callable[[AnyArray], AnyArray], rows: AnyArray) -> AnyArray:
    """Return ``function(rows)``, with rows that hold NaN or infinity kept out of it.

    BLAS multiplies lanes that it does not use, and 0 x inf is invalid: whether that shows depends
    on the processor, so no such number may enter a matrix product.

    Parameters
    ----------
    function : callable
        Maps (n, ...) to (n, ...), each row by itself.
    rows : (n, ...) array

    Returns
    -------
    (n, ...) array
        NaN throughout the rows that were kept out.
    """
    finite = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
    if finite.all():
        return function(rows)
    # Zeros in place of these rows, and no fewer rows: BLAS gives the others the same bits.
    kept = np.where(np.expand_dims(finite, tuple(range(1, rows.ndim))), rows, rows.dtype.type(0))
    out = function(kept)
    out[~finite] = np.nan
    return out
