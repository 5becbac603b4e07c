"""The kinds of numpy arrays that signatures name: one name a dtype, the same in every package.

A signature says the dtype; the shape and the unit stand in the docstring.
"""

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
