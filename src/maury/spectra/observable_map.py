"""How observables follow from what is measured of a star: bands, parallax, extinction, columns."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.labels.columns import BANDS

__all__ = ["ObservableMap"]

_EXTINCTION = {band.name: band.extinction for band in BANDS}


@dataclass(frozen=True, eq=False)
class ObservableMap:
    """Sources of the observables of a preparation, and how these change with them.

    Attributes
    ----------
    names : tuple of str
        Sources: bands, ``parallax``, ``a_v``, groups of further columns.
    depends : (n_source, n_observable) bool
        Which observable is made of which source.
    responses : (n_source, n_observable) float64
        Change of each observable by one magnitude more in a source; for the parallax, in the
        absolute magnitude. 0 where it is no sum of magnitudes.
    error_columns : (n_source,) int64
        Number of the observable that is the error of a source; -1 where there is none.
    further : (n_observable,) bool
        Which observables are further columns.
    """

    names: tuple[str, ...]
    depends: BoolArray
    responses: Float64Array
    error_columns: Int64Array
    further: BoolArray

    @classmethod
    def empty(cls) -> ObservableMap:
        """Return that of a preparation without observables."""
        none = np.zeros((0, 0))
        return cls((), none.astype(np.bool_), none, np.zeros(0, np.int64), np.zeros(0, np.bool_))

    @cached_property
    def extinction(self) -> Float64Array:
        """Change (n_source,) of each source by one magnitude more of A_V before the star."""
        return np.array([1.0 if n == "a_v" else _EXTINCTION.get(n, 0.0) for n in self.names])

    @cached_property
    def bands(self) -> Int64Array:
        """Numbers of the sources that are bands, in the order of their wavelength."""
        order = {band.name: band.effective_wavelength_um for band in BANDS}
        found = [k for k, name in enumerate(self.names) if name in order]
        return np.array(sorted(found, key=lambda k: order[self.names[k]]), dtype=np.int64)

    def number(self, name: str) -> int | None:
        """Return the number of a source; None if there is none of that name."""
        return self.names.index(name) if name in self.names else None

    @property
    def groups(self) -> Int64Array | None:
        """Which sources (n_source,) come from one catalogue, by number.

        Bands and A_V, the parallax, each group of further columns: surveys have all of one or
        nothing. None where there are no further columns, of which losses of single sources and
        subsets of them tell enough.
        """
        if not self.further.any():
            return None
        own = [(self.depends[k] & self.further).any() for k in range(len(self.names))]
        numbers = np.where(np.array(self.names) == "parallax", 1, 0)
        return np.asarray(np.where(own, 1 + np.cumsum(own), numbers), dtype=np.int64)

    @property
    def is_error(self) -> BoolArray:
        """Which observables (n_observable,) are errors."""
        out = np.zeros(self.depends.shape[1], dtype=np.bool_)
        out[self.error_columns[self.error_columns >= 0]] = True
        return out
