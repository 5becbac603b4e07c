"""The kinds of numpy arrays that signatures name: one name a dtype, the same in every package.

A signature says the dtype; the shape and the unit stand in the docstring. `on_finite_rows` keeps
numbers that are none out of matrix products.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa

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


def arrow_array(values: AnyArray) -> "pa.Array":
    """Return an array of numbers, truths or texts in arrow, which shares the memory of numbers.

    `pyarrow.array` looks whether it was given something of pandas, and imports it for that, where
    it is installed: .15 s, of 3 that a small survey takes.

    Parameters
    ----------
    values : (n,) array of int, float, bool or str; objects are texts
        NaN stays a number; there are no nulls.
    """
    import pyarrow as pa

    # Texts of one length each, or objects, as those of rows that were brought together.
    if values.dtype.kind in "UO":
        texts = [str(text).encode() for text in values.tolist()]
        ends = np.cumsum([0, *map(len, texts)], dtype=np.int64)
        buffers = [None, pa.py_buffer(ends), pa.py_buffer(b"".join(texts))]
        return pa.Array.from_buffers(pa.large_string(), len(texts), buffers).cast(pa.string())
    if values.dtype.kind == "b":
        bits = pa.py_buffer(np.packbits(values, bitorder="little"))
        return pa.Array.from_buffers(pa.bool_(), len(values), [None, bits])
    kind = pa.from_numpy_dtype(values.dtype)
    return pa.Array.from_buffers(
        kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))]
    )


def numpy_array(values: "pa.Array | pa.ChunkedArray") -> AnyArray:
    """Return numbers, truths or texts of arrow, without nulls, in numpy: without pandas, likewise.

    Raises
    ------
    TypeError
        If they are of another kind, or some are null.
    """
    import pyarrow as pa

    if values.null_count or pa.types.is_nested(values.type):
        raise TypeError(f"{values.type} with {values.null_count} nulls is no plain column")
    whole = values.combine_chunks() if isinstance(values, pa.ChunkedArray) else values
    if pa.types.is_string(whole.type) or pa.types.is_large_string(whole.type):
        return np.array(whole.to_pylist(), dtype=np.str_)
    data, first, n = whole.buffers()[1], whole.offset, len(whole)
    if pa.types.is_boolean(whole.type):
        bits = np.unpackbits(np.frombuffer(data, np.uint8), count=first + n, bitorder="little")
        return bits[first:].astype(np.bool_)
    return np.frombuffer(data, whole.type.to_pandas_dtype(), n, first * whole.type.byte_width)
