"""Spectra and columns of some stars in memory, and what can hand them out in batches."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike

from maury.io import addresses
from maury.io.arrays import AnyArray, Float64Array
from maury.labels.columns import known as known_columns
from maury.labels.columns import unknown_column
from maury.spectra.rows import row_numbers
from maury.spectra.spectra import Medium, Spectra
from maury.spectra.star_identity import StarMarks


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
    at_rest : bool, optional
        Whether the spectra are in the rest frame of their stars; None where that is unknown.
    simulated : bool
        Whether the survey says that its spectra are simulated.
    """

    spectra: Spectra
    columns: Mapping[str, AnyArray]
    start: int = 0
    at_rest: bool | None = None
    simulated: bool = False

    def __len__(self) -> int:
        return len(self.spectra)

    def __getitem__(self, rows: ArrayLike | slice) -> "Batch":
        """Return some rows; those of a slice share memory with these.

        Parameters
        ----------
        rows : slice, int, (n,) int or (n_star,) bool array_like
            Row numbers of this batch (negative ones count from the end), or a mask.

        Raises
        ------
        RowError
            If there is no such row, or a mask has another length.
        """
        numbers = row_numbers(rows, len(self), what="the batch")
        # A slice shares memory, row numbers copy.
        chosen = rows if isinstance(rows, slice) else numbers
        spectra = self.spectra.take(chosen)
        columns = MappingProxyType({name: v[chosen] for name, v in self.columns.items()})
        first = int(numbers[0]) if numbers.size else 0
        return Batch(spectra, columns, self.start + first, self.at_rest, self.simulated)

    def plot(self, ax: Any = None) -> Any:
        """Draw the spectra with their 1 sigma errors, one colour each, and return the axes.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default new axes of pyplot.
        """
        if ax is None:
            from matplotlib import pyplot

            ax = pyplot.figure(figsize=(9.0, 3.0), layout="constrained").subplots()
        spectra, names = self.spectra, self.get("id")
        for row, name in enumerate(names):
            good = spectra.ivar[row] > 0
            flux = np.where(good, spectra.flux[row], np.nan)
            error = np.where(good, spectra.ivar[row], np.nan) ** -0.5
            (line,) = ax.plot(spectra.wave_aa, flux, lw=0.8, label=str(name))
            colour = line.get_color()
            ax.fill_between(
                spectra.wave_aa, flux - error, flux + error, color=colour, alpha=0.3, lw=0
            )
        ax.set_xlabel(f"wavelength [angstrom, {spectra.medium}]")
        ax.set_ylabel("flux")
        ax.legend(frameon=False)
        if self.simulated:
            ax.set_title("SIMULATED", loc="left")
        return ax

    def column(self, name: str) -> AnyArray:
        """Return a column; NaN for every row if the survey does not have it.

        Raises
        ------
        ColumnError
            If it is neither a column of the survey nor one that `maury.labels.columns` defines.
        """
        if name not in self.columns and name not in known_columns():
            raise unknown_column(name, self.columns, "the batch")
        return self.get(name)

    @property
    def stars(self) -> StarMarks:
        """What the stars of the rows are known by."""
        return StarMarks.of(self.columns, len(self))

    def get(self, name: str) -> AnyArray:
        """Return a column of whatever name; NaN for every row if the survey does not have it."""
        if name in self.columns:
            return self.columns[name]
        return np.full(len(self), np.nan)


class Readable(Protocol):
    """What can be predicted: a `Survey`, or spectra that are in other files."""

    @property
    def path(self) -> Path | addresses.Address:
        """Where it is."""

    @property
    def wave_aa(self) -> Float64Array:
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
    def resolving_power(self) -> float | None:
        """Typical lambda / FWHM of the spectra; None if it is not known."""

    @property
    def noise_correlation(self) -> tuple[float, ...] | None:
        """Autocorrelation of the noise at lags of 1, 2, ... pixels; None if it is not known."""

    @property
    def fingerprint(self) -> str:
        """Equal if the content is."""

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns."""

    def __len__(self) -> int: ...

    def batch(self, start: int, stop: int) -> Batch:
        """Read rows `start` to before `stop`."""
