"""A survey whose spectra stay in their files: read row by row, as the store would hold them."""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from maury import columns as columns_module
from maury.columns import Column
from maury.labels import Label
from maury.readers.grids import Gridder
from maury.readers.pipeline import Columns, Source, read_rows
from maury.spectra import Medium, Spectra
from maury.survey import Batch


class FileSurvey:
    """Spectra in files and their columns, to be read like a `maury.survey.Survey`.

    Make one with `maury.readers.open_toml`. Files stay open until it is closed or forgotten.

    Attributes
    ----------
    path : Path
        The TOML file.
    source : Source
        Spectra.
    columns : mapping of str to (n_star,) array
        Columns but for ``snr``, which may follow from the spectra.
    gridder : Gridder
        To the common grid.
    medium : {"air", "vacuum"}
    labels : sequence of Label
        Labels that the survey knows.
    further : sequence of Column
        Definitions of columns that `maury.columns` does not have.
    simulated : bool
    resolving_power : float, optional
        lambda / FWHM of the spectra, if it is known.
    provenance : mapping
    fingerprint : str
        Of everything that determines the content.
    """

    def __init__(
        self,
        path: Path,
        source: Source,
        columns: Columns,
        *,
        gridder: Gridder,
        medium: Medium,
        labels: Sequence[Label],
        further: Sequence[Column] = (),
        simulated: bool,
        resolving_power: float | None = None,
        provenance: Mapping[str, Any],
        fingerprint: str,
        stack: ExitStack,
    ) -> None:
        self.path = path
        self.source = source
        self.columns = columns
        self.gridder = gridder
        self.medium: Medium = medium
        self.labels = tuple(labels)
        self.simulated = simulated
        self.resolving_power = resolving_power
        self.provenance = dict(provenance)
        self.fingerprint = fingerprint
        self.further = tuple(further)
        known = columns_module.known(labels) | {column.name: column for column in further}
        self._kinds = {name: column.kind for name, column in known.items()}
        self._close = weakref.finalize(self, stack.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def __len__(self) -> int:
        return self.source.n_star

    @property
    def wave_aa(self) -> NDArray[np.float64]:
        """Wavelengths in angstrom, shape ``(n_pixel,)``."""
        return self.gridder.wave_aa

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, labels included."""
        return tuple(dict.fromkeys([*self.columns, "snr"]))

    def batch(self, start: int, stop: int) -> Batch:
        """Read rows `start` to before `stop`.

        Raises
        ------
        InputFileError
            If a file cannot be read.
        GridMismatch
            If a spectrum stands on another grid and `resample` was not asked for.
        """
        known = self.columns.get("snr", np.full(len(self), np.nan))[start:stop]
        flux, ivar, snr = read_rows(self.source, self.gridder, start, known)
        rows = {name: values[start:stop] for name, values in self.columns.items()} | {"snr": snr}
        return Batch(
            Spectra.from_arrays(self.wave_aa, flux, ivar, medium=self.medium),
            MappingProxyType({name: self._stored(name, v) for name, v in rows.items()}),
            start,
        )

    def _stored(self, name: str, values: NDArray[Any]) -> NDArray[Any]:
        """Values of the type that a store gives them."""
        kind = self._kinds[name]
        return values.astype(np.str_ if kind == "str" else kind)
