"""Spectra and columns of some stars in memory, and what can hand them out in batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from maury.io import addresses
from maury.spectra.spectra import Medium, Spectra


@dataclass(frozen=True)
class Batch:
    """Consecutive rows of a survey in memory.

    Attributes
    ----------
    spectra : Spectra
        Spectra of the rows.
    columns : mapping of str to (n_star,) array
        Every column of the survey; NaN or an empty string means missing.
    start : int
        Row number of the first row.
    """

    spectra: Spectra
    columns: Mapping[str, NDArray[Any]]
    start: int = 0

    def __len__(self) -> int:
        return len(self.spectra)

    def __getitem__(self, rows: slice) -> "Batch":
        """Return some consecutive rows, which share memory with these."""
        first, _, _ = rows.indices(len(self))
        spectra = self.spectra.replace(flux=self.spectra.flux[rows], ivar=self.spectra.ivar[rows])
        columns = {name: values[rows] for name, values in self.columns.items()}
        return Batch(spectra, MappingProxyType(columns), self.start + first)

    def column(self, name: str) -> NDArray[Any]:
        """Return a column, or NaN for every row if the survey does not have it."""
        if name in self.columns:
            return self.columns[name]
        return np.full(len(self), np.nan)


class Readable(Protocol):
    """What can be predicted: a `Survey`, or spectra that are in other files."""

    @property
    def path(self) -> Path | addresses.Address:
        """Where it is."""

    @property
    def wave_aa(self) -> NDArray[np.float64]:
        """Wavelengths in angstrom, shape ``(n_pixel,)``."""

    @property
    def medium(self) -> Medium:
        """Medium of the wavelengths, air or vacuum."""

    @property
    def simulated(self) -> bool:
        """Whether the spectra are simulated."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from."""

    @property
    def fingerprint(self) -> str:
        """Equal if the content is."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns."""

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Batch:
        """Read rows `start` to before `stop`."""
