"""The survey store: arrays in Zarr v3, written in chunks and read lazily.

Dimensions are ``star`` (one row per spectrum) and ``pixel``. Variables are ``flux`` and ``ivar``
(star, pixel), ``wave`` (pixel), and one variable per column (star); `maury.labels.columns` and
`maury.labels.definitions` say which. The store opens with plain ``xarray.open_zarr``.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import (
    ConfigError,
    LengthMismatch,
    RowError,
    SurveyFileError,
    check_known,
    suggestion,
)
from maury.io import addresses
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array, StrArray
from maury.io.limits import check_text
from maury.io.migrations import SURVEY
from maury.labels import definitions as labels_module
from maury.labels.columns import unknown_column
from maury.labels.definitions import Label
from maury.spectra.batch import Batch
from maury.spectra.noise import check_correlation, side_weight_correlation
from maury.spectra.noise_measurement import NoiseMeasurement
from maury.spectra.rows import row_numbers, row_range
from maury.spectra.spectra import Medium, Spectra, check_wavelengths, describe_grid
from maury.spectra.star_identity import StarMarks
from maury.survey.manifest import check_manifest, manifest_digest
from maury.survey.store_files import HEADER_FILE, axes_of, check_chunks, check_files, check_sizes
from maury.survey.writer import CHUNK_STARS as CHUNK_STARS
from maury.survey.writer import COLUMN_CHUNK_STARS
from maury.survey.writer import SurveyWriter as SurveyWriter
from maury.survey.writer import require_unique as require_unique

if TYPE_CHECKING:
    import xarray as xr
    import zarr

logger = logging.getLogger(__name__)
RAVE_RESOLVING_POWER = 7500.0
"""Of RAVE (Steinmetz et al. 2020, AJ 160, 82); early stores of its released files do not say it."""


class Survey:
    """A survey on disk, read lazily.

    Examples
    --------
    >>> survey = Survey.open("rave.zarr")  # doctest: +SKIP
    >>> for batch in survey.batches():  # doctest: +SKIP
    ...     batch.spectra.flux.mean()
    """

    def __init__(self, group: "zarr.Group", path: Path | addresses.Address) -> None:
        self.path = path
        self._arrays: dict[str, zarr.Array[Any]] = dict(group.arrays())
        self._sizes = check_sizes(self._arrays, path)
        self._header = _header(group.attrs.get("maury"), self._arrays, path)
        self._block: dict[str, AnyArray] = {}
        self._block_rows = (-1, -1)
        self._given: dict[str, AnyArray] = {}

    @classmethod
    def open(cls, path: Path | str) -> Self:
        """Open a store; nothing but its metadata is read.

        Metadata, and the lengths of all chunks, are compared with those that were written; the
        checksum of a chunk is compared when it is read. Stores of older versions have neither.

        Parameters
        ----------
        path : path-like
            Directory of the store, or an address that fsspec knows, such as
            ``s3://bucket/survey.zarr``.

        Raises
        ------
        SurveyFileError
            If there is no store at `path`, or it is damaged, or of a newer format.
        MissingExtra
            If an address needs a package that is not installed.
        """
        place = addresses.parse(path)
        if isinstance(place, addresses.Address):
            place.fingerprint(HEADER_FILE)
        elif not (place / HEADER_FILE).is_file():
            raise SurveyFileError(
                f"{path} is not a survey store; make one with 'maury ingest' or 'maury simulate'"
            )
        else:
            check_files(place)
            check_manifest(place)
        import zarr
        from zarr.storage import LocalStore

        try:
            # A name would be taken for an address by what stands before its first colon.
            store = str(place) if isinstance(place, addresses.Address) else LocalStore(place)
            return cls(zarr.open_group(store, mode="r", use_consolidated=False), place)
        except SurveyFileError:
            raise
        except Exception as error:
            # Damage shows as whatever zarr or a codec raises; users are told one thing.
            raise SurveyFileError(f"cannot open the survey store {place}: {error}") from error

    @cached_property
    def dataset(self) -> "xr.Dataset":
        """The store as an xarray dataset, which is read lazily.

        Nothing here reads by it: with pandas, it takes as long to import as 1500 spectra to label.
        """
        import xarray as xr

        # Attributes of a stranger name no times to be decoded, and no arrays to be loaded.
        opened: xr.Dataset = xr.open_zarr(
            str(self.path),
            consolidated=False,
            chunks=None,
            decode_times=False,
            decode_timedelta=False,
            decode_coords=False,
        )
        return opened

    def __len__(self) -> int:
        return self.n_star

    def __repr__(self) -> str:
        mark = "SIMULATED " if self.simulated else ""
        grid = describe_grid(self.wave_aa, self.medium)
        names = ", ".join(self.label_names) or "none"
        return f"<{mark}Survey {self.path}: {self.n_star} spectra, {grid}; labels: {names}>"

    def _repr_html_(self) -> str:
        """Show rows, grid, and each label with its range and missing values, in a notebook."""
        from maury.io.notebook import as_html
        from maury.survey.summary import summarize

        found = summarize(self)
        return as_html(found.lines, found.rows)

    def __getitem__(self, rows: "str | ArrayLike | slice") -> Batch:
        """Read some rows: a number, a slice, a mask, numbers, or one or several identifiers.

        Raises
        ------
        RowError
            If there is no such row or identifier, or a mask has another length.
        """
        names = np.asarray(rows) if not isinstance(rows, slice) else np.empty(0)
        if names.dtype.kind != "U":
            return self.rows(rows if isinstance(rows, slice) else names)
        wanted = np.atleast_1d(names)
        order = np.argsort(self.id, kind="stable")
        place = np.minimum(np.searchsorted(self.id, wanted, sorter=order), self.n_star - 1)
        found = order[place]
        absent = wanted[self.id[found] != wanted]
        if absent.size:
            raise RowError(
                f"{self.path} has no spectrum {str(absent[0])!r}{suggestion(absent[0], self.id)}"
            )
        return self.rows(found)

    @property
    def n_star(self) -> int:
        """Number of rows (spectra)."""
        return self._sizes["star"]

    @property
    def n_pixel(self) -> int:
        """Number of pixels."""
        return self._sizes["pixel"]

    @cached_property
    def wave_aa(self) -> Float64Array:
        """Wavelengths in angstrom, shape ``(n_pixel,)``."""
        try:
            if isinstance(self.path, Path):
                check_chunks(self._arrays["wave"], self.path, slice(None))
            wave = np.asarray(self._arrays["wave"][:])
        except Exception as error:
            raise SurveyFileError(
                f"{self.path}/wave/c/0 is damaged ({error}); copy it from a backup, or make the "
                "store anew"
            ) from error
        return check_wavelengths(wave, name=f"wavelengths of {self.path}")

    @property
    def medium(self) -> Medium:
        """Medium of the wavelengths, air or vacuum."""
        medium: Medium = self._header["medium"]
        return medium

    @property
    def simulated(self) -> bool:
        """Whether the spectra are simulated; the mark survives into every product."""
        return bool(self._header["simulated"])

    @property
    def resolving_power(self) -> float | None:
        """Typical lambda / FWHM of the spectra; None if it is not known."""
        value = self._header.get("resolving_power", self._simulated_with("resolving_power"))
        if value is None and self.provenance.get("reader") == "released":
            return RAVE_RESOLVING_POWER
        return None if value is None else float(value)

    @property
    def noise_correlation(self) -> tuple[float, ...] | None:
        """Autocorrelation of the noise at lags of 1, 2, ... pixels; None if it is not known."""
        if "noise_correlation" in self._header:
            return check_correlation(self._header["noise_correlation"])
        side_weight = self._simulated_with("noise_side_weight")
        return None if side_weight is None else side_weight_correlation(float(side_weight))

    @property
    def noise_measured(self) -> NoiseMeasurement | None:
        """What the spectra say of their noise, if nothing stated `noise_correlation`."""
        found = self._header.get("noise_measured")
        return None if found is None else NoiseMeasurement.from_dict(found)

    def _simulated_with(self, name: str) -> Any:
        """Look up what stores of earlier versions say only among the settings of a simulation."""
        simulation = self._header["provenance"].get("simulation")
        observing = simulation.get("observing") if isinstance(simulation, dict) else None
        return observing.get(name) if isinstance(observing, dict) else None

    @property
    def at_rest(self) -> bool | None:
        """Whether the spectra are in the rest frame of their stars; None if it is not known."""
        value = self._header.get("at_rest")
        return None if value is None else bool(value)

    @property
    def provenance(self) -> dict[str, Any]:
        """Source, software versions and settings by which the survey was made."""
        return dict(self._header["provenance"])

    @property
    def fingerprint(self) -> str:
        """Place and content of the store; its date, where it has no manifest."""
        if isinstance(self.path, addresses.Address):
            return f"{self.path} {self.n_star} {self.path.fingerprint(HEADER_FILE)}"
        stamp = manifest_digest(self.path) or (self.path / HEADER_FILE).stat().st_mtime_ns
        return f"{self.path.resolve()} {self.n_star} {stamp}"

    @property
    def label_definitions(self) -> tuple[Label, ...]:
        """Definitions of all labels that the survey knows of, with values or not."""
        return labels_module.parse(self._header["labels"])

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels that the survey has values of."""
        has = set(self.column_names)
        return tuple(d.name for d in self.label_definitions if d.name in has)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of all columns, labels included."""
        stored = {n for n, v in self._arrays.items() if axes_of(v) == ("star",)}
        return tuple(sorted(stored | set(self._given)))

    def with_columns(self, columns: Mapping[str, ArrayLike]) -> Self:
        """Return the same survey with columns (n_star,) added or replaced; nothing is written.

        Raises
        ------
        LengthMismatch
            If a column has another number of rows.
        """
        given = {name: np.asarray(values) for name, values in columns.items()}
        for name, values in given.items():
            if values.shape != (self.n_star,):
                raise LengthMismatch(
                    f"column {name!r} of {self.path} must have {self.n_star} rows, got "
                    f"{values.shape}"
                )
        other = copy(self)
        other._given = {**self._given, **given}
        other._block, other._block_rows = {}, (-1, -1)
        for name in ("id", "star_id", "stars"):
            other.__dict__.pop(name, None)
        return other

    def column(self, name: str) -> AnyArray:
        """Read one column whole, shape ``(n_star,)``.

        Raises
        ------
        ColumnError
            If the survey has no such column.
        """
        if name not in self.column_names:
            raise unknown_column(name, self.column_names, str(self.path))
        return self._plain(name, slice(None))

    def texts(self, name: str, start: int, stop: int) -> list[str]:
        """Read some rows of a column of texts, which take no more memory than they are long."""
        start, stop = row_range(start, stop, self.n_star, what=str(self.path))
        values: list[str] = self._read(name, slice(start, stop)).astype(object).tolist()
        return values

    def numbers(self, name: str, start: int, stop: int) -> Float64Array:
        """Read some rows of a column of numbers as float64."""
        start, stop = row_range(start, stop, self.n_star, what=str(self.path))
        return self._read(name, slice(start, stop)).astype(np.float64)

    @cached_property
    def id(self) -> StrArray:
        """Identifiers of the spectra, shape ``(n_star,)``."""
        return self.column("id")

    @cached_property
    def star_id(self) -> StrArray:
        """Identifiers of the stars, shape ``(n_star,)``, equal for all spectra of one star."""
        return self.column("star_id")

    @cached_property
    def stars(self) -> StarMarks:
        """What the stars are known by: identifiers, positions, photometry."""
        names = [name for name in StarMarks.COLUMNS if name in self.column_names]
        return StarMarks.of({name: self.column(name) for name in names}, self.n_star)

    def labels(self, names: Sequence[str | Label] | None = None) -> Float64Array:
        """Return labels, shape ``(n_star, n_label)``, NaN where missing or an upper limit.

        Parameters
        ----------
        names : sequence of str or Label, optional
            Which labels, in which order; all that have values by default. A `Label`, such as one
            of a model, is missing throughout if the survey does not know it.

        Raises
        ------
        UnknownName
            If the survey knows no label of a name.
        """
        chosen = self._label_names(names)
        return np.where(self._is_limit(chosen), np.nan, self._table(chosen))

    def upper_limits(self, names: Sequence[str | Label] | None = None) -> Float64Array:
        """Return upper limits of labels, shape ``(n_star, n_label)``, NaN where there is none.

        A value is an upper limit where the column ``<label>_upper_limit`` is not 0; NaN is no
        limit.

        Parameters
        ----------
        names : sequence of str or Label, optional
            The same choice that `labels` offers.

        Raises
        ------
        UnknownName
            If the survey knows no label of a name.
        """
        chosen = self._label_names(names)
        return np.where(self._is_limit(chosen), self._table(chosen), np.nan)

    def _is_limit(self, names: Sequence[str]) -> BoolArray:
        marks = self._table([f"{name}_upper_limit" for name in names])
        return np.asarray(np.isfinite(marks) & (marks != 0))

    def label_errors(self, names: Sequence[str | Label] | None = None) -> Float64Array:
        """Return 1 sigma label errors, shape ``(n_star, n_label)``, NaN where unknown.

        Parameters
        ----------
        names : sequence of str or Label, optional
            The same choice that `labels` offers.

        Raises
        ------
        UnknownName
            If the survey knows no label of a name.
        """
        return self._table([f"{name}_error" for name in self._label_names(names)])

    def _label_names(self, chosen: Sequence[str | Label] | None) -> list[str]:
        if chosen is None:
            return list(self.label_names)
        given = [chosen] if isinstance(chosen, str) else chosen
        known = [label.name for label in self.label_definitions]
        return [
            one.name if isinstance(one, Label) else check_known("label", one, known)
            for one in given
        ]

    def batches(
        self, size: int = CHUNK_STARS, *, start: int = 0, stop: int | None = None
    ) -> Iterator[Batch]:
        """Yield consecutive batches of at most `size` rows, from `start` to before `stop`.

        Parameters
        ----------
        size : int
            At least 1.
        start, stop : int
            Bounds of a slice: negative ones count from the end, those beyond the end are the end.

        Raises
        ------
        ConfigError
            If `size` is not at least 1.
        """
        if size < 1:
            raise ConfigError(f"a batch has at least 1 row, got size = {size}")
        start, stop, _ = slice(start, stop).indices(self.n_star)
        for first in range(start, stop, size):
            yield self.batch(first, min(first + size, stop))

    def batch(self, start: int, stop: int) -> Batch:
        """Read rows `start` to before `stop`; negative numbers count from the end.

        Raises
        ------
        RowError
            If some of the rows do not exist.
        SurveyFileError
            If a chunk of the store cannot be read.
        """
        start, stop = row_range(start, stop, self.n_star, what=str(self.path))
        rows = slice(start, stop)
        spectra = Spectra.from_arrays(
            self.wave_aa,
            self._read("flux", rows),
            self._read("ivar", rows),
            medium=self.medium,
            noise_correlation=self.noise_correlation,
        )
        columns = MappingProxyType(self._columns_of(start, stop))
        return Batch(spectra, columns, start, self.at_rest, self.simulated)

    def rows(self, index: ArrayLike | slice) -> Batch:
        """Read some rows, in the order given.

        Parameters
        ----------
        index : slice, int, (n,) int or (n_star,) bool array_like
            Row numbers in any order, of which negative ones count from the end, or a mask.

        Raises
        ------
        RowError
            If there is no such row, or a mask has another length.
        SurveyFileError
            If a chunk of the store cannot be read.
        """
        index = row_numbers(index, self.n_star, what=str(self.path))
        spectra = Spectra.from_arrays(
            self.wave_aa,
            self._gather("flux", index),
            self._gather("ivar", index),
            medium=self.medium,
            noise_correlation=self.noise_correlation,
        )
        values = {name: self.column(name)[index] for name in self.column_names}
        known = MappingProxyType(values)
        return Batch(spectra, known, at_rest=self.at_rest, simulated=self.simulated)

    def _gather(self, name: str, index: Int64Array) -> Float32Array:
        out = np.empty((index.size, self.n_pixel), dtype=np.float32)
        # Chunk by chunk: rows in any order would unpack a chunk once for each of its rows.
        for first in range(0, self.n_star, CHUNK_STARS):
            here = (index >= first) & (index < first + CHUNK_STARS)
            if here.any():
                out[here] = self._read(name, slice(first, first + CHUNK_STARS))[index[here] - first]
        return out

    def _columns_of(self, start: int, stop: int) -> dict[str, AnyArray]:
        """Return all columns of some rows, out of one block that serves many batches."""
        # Small batches would unpack the same chunk of every column again and again.
        first = start // COLUMN_CHUNK_STARS * COLUMN_CHUNK_STARS
        last = max(stop, min(first + COLUMN_CHUNK_STARS, self.n_star))
        if (first, last) != self._block_rows:
            rows = slice(first, last)
            self._block = {name: self._plain(name, rows) for name in self.column_names}
            self._block_rows = (first, last)
        return {name: values[start - first : stop - first] for name, values in self._block.items()}

    def _table(self, names: list[str]) -> Float64Array:
        out = np.full((self.n_star, len(names)), np.nan)
        for position, name in enumerate(names):
            if name in self.column_names:
                out[:, position] = self.column(name)
        return out

    def _read(self, name: str, rows: slice) -> AnyArray:
        if name in self._given:
            return self._given[name][rows]
        try:
            if isinstance(self.path, Path):
                check_chunks(self._arrays[name], self.path, rows)
            return np.asarray(self._arrays[name][rows])
        except Exception as error:
            # Which chunk it is, is looked for only now: it takes a second reading of each.
            raise SurveyFileError(self._damage(name, rows) or str(error)) from error

    def _plain(self, name: str, rows: slice) -> AnyArray:
        """Read rows of a column, texts as fixed-width ones, which every library takes."""
        values = self._read(name, rows)
        if values.dtype.kind not in "TO":
            return values
        texts = values.astype(object)
        lengths = [len(text) for text in texts]
        # A fixed width is that of the longest: one long text would be paid for in every row.
        longest, what = max(lengths, default=0), f"{self.path}, column {name!r},"
        check_text(longest, sum(lengths), len(texts), what)
        return texts.astype(np.str_)

    def _damage(self, name: str, rows: slice) -> str:
        """Say which chunk of some rows cannot be read."""
        first, stop, _ = rows.indices(self.n_star)
        step = self._arrays[name].chunks[0]
        for start in range(first // step * step, stop, step):
            end = min(start + step, self.n_star)
            try:
                if isinstance(self.path, Path):
                    check_chunks(self._arrays[name], self.path, slice(start, end))
                self._arrays[name][start:end]
            except Exception as error:
                inner = "" if self._arrays[name].ndim == 1 else "/0"
                chunk = f"{self.path}/{name}/c/{start // step}{inner}"
                return (
                    f"{self.path}: rows {start} to {end - 1} of {name!r} cannot be read, their "
                    f"chunk {chunk} is damaged ({error}); copy it from a backup, or make the store "
                    "anew; all other chunks are whole unless they are named as well"
                )
        return f"cannot read {name!r} of {self.path}"


def _header(
    header: Any, arrays: Mapping[str, "zarr.Array[Any]"], path: Path | addresses.Address
) -> dict[str, Any]:
    if not isinstance(header, dict) or header.get("format") != SURVEY.name:
        raise SurveyFileError(f"{path} is a Zarr store, but not one of maury's surveys")
    known: dict[str, Any] = SURVEY.upgrade(header, str(path), SurveyFileError)
    for name in ("flux", "ivar", "wave", "id", "star_id"):
        if name not in arrays:
            raise SurveyFileError(f"{path} lacks {name!r}; the store is damaged, make it anew")
    return known
