"""Which spectra are of one star."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def star_ids(ids: ArrayLike, parallax: ArrayLike, magnitudes: ArrayLike) -> NDArray[np.str_]:
    """Give every spectrum the identifier of its star, found by equal astrometry and photometry.

    Rows of equal parallax and equal magnitudes (the same ones finite) are one star, named by the
    identifier of its first row. A row without parallax, or with fewer than two magnitudes, is a
    star of its own.

    Parameters
    ----------
    ids : (n_star,) array_like of str
        Identifiers of the spectra.
    parallax : (n_star,) array_like
        Parallax; NaN where missing.
    magnitudes : (n_star, n_band) array_like
        Apparent magnitudes; NaN where missing.

    Returns
    -------
    star_ids : (n_star,) str

    Examples
    --------
    >>> star_ids(["a", "b"], [1.5, 1.5], [[9.0, 8.1], [9.0, 8.1]]).tolist()
    ['a', 'a']
    """
    names = np.asarray(ids).astype(np.str_)
    distance = np.asarray(parallax, dtype=np.float64)
    bands = np.asarray(magnitudes, dtype=np.float64).reshape(names.size, -1)
    known = np.flatnonzero(np.isfinite(distance) & (np.isfinite(bands).sum(axis=1) >= 2))
    out = names.copy()
    if known.size:
        key: NDArray[Any] = np.column_stack([distance[known], bands[known]])
        # Adding 0 makes -0.0 equal to 0.0 byte by byte, as the comparison below sees them.
        key = np.where(np.isfinite(key), key, np.inf) + 0.0
        rows = np.ascontiguousarray(key).view(f"V{key.itemsize * key.shape[1]}").ravel()
        _, first, member = np.unique(rows, return_index=True, return_inverse=True)
        out[known] = names[known[first[member]]]
    return out
