"""Spectra that stay in their files, read like a store."""

import weakref
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import numpy as np

from maury.io.arrays import AnyArray, Float64Array
from maury.labels import columns as columns_module
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.spectra.batch import Batch
from maury.spectra.rows import row_range
from maury.spectra.spectra import Medium, Spectra
from maury.survey.readers.grids import Gridder
from maury.survey.readers.joining import TableJoin
from maury.survey.readers.pipeline import Columns, Source, read_rows


class FileSurvey:
    """Spectra in files and their columns, to be read like a `maury.survey.store.Survey`.

    Make one with `maury.survey.readers.open_toml`. Files stay open until it is closed or forgotten.

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
        Definitions of columns that `maury.labels.columns` does not have.
    simulated : bool
    resolving_power : float, optional
        lambda / FWHM of the spectra, if it is known.
    noise_correlation : tuple of float, optional
        Autocorrelation of the noise at lags of 1, 2, ... pixels of the grid, if it is known.
    at_rest : bool, optional
        Whether the spectra are in the rest frame of their stars, if it is known.
    joins : tuple of TableJoin
        How each table was joined to the spectra.
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
        noise_correlation: tuple[float, ...] | None = None,
        at_rest: bool | None = None,
        joins: Sequence[TableJoin] = (),
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
        self.noise_correlation = noise_correlation
        self.at_rest = at_rest
        self.joins = tuple(joins)
        self.provenance = dict(provenance)
        self.fingerprint = fingerprint
        self.further = tuple(further)
        known = columns_module.known(labels) | {column.name: column for column in further}
        self._kinds = {name: column.kind for name, column in known.items()}
        # Files close when the survey is forgotten: a caller of predict never holds it.
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
    def wave_aa(self) -> Float64Array:
        """Wavelengths in angstrom, shape ``(n_pixel,)``."""
        return self.gridder.wave_aa

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, labels included."""
        return tuple(dict.fromkeys([*self.columns, "snr", *self._unread]))

    @property
    def _unread(self) -> tuple[str, ...]:
        return ("unread",) if self.source.skip_bad else ()

    def batch(self, start: int, stop: int) -> Batch:
        """Read rows `start` to before `stop`; negative numbers count from the end.

        Raises
        ------
        RowError
            If some of the rows do not exist.
        InputFileError
            If a file cannot be read.
        GridMismatch
            If a spectrum stands on another grid and `resample` was not asked for.
        """
        start, stop = row_range(start, stop, len(self), what=str(self.path))
        known = self.columns.get("snr", np.full(len(self), np.nan))[start:stop]
        read = read_rows(self.source, self.gridder, start, known)
        rows = {name: values[start:stop] for name, values in self.columns.items()}
        rows |= {"snr": read.snr} | dict.fromkeys(self._unread, read.unread)
        return Batch(
            Spectra.from_arrays(
                self.wave_aa,
                read.flux,
                read.ivar,
                medium=self.medium,
                noise_correlation=self.noise_correlation,
            ),
            MappingProxyType({name: self._stored(name, v) for name, v in rows.items()}),
            start,
            self.at_rest,
            simulated=self.simulated,
        )

    def _stored(self, name: str, values: AnyArray) -> AnyArray:
        """Values of the type that a store gives them."""
        kind = self._kinds[name]
        # A model must answer alike whether spectra are read from files or from a store of them.
        return values.astype(np.str_ if kind == "str" else kind)
