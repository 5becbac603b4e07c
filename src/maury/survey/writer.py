"""Survey stores in the making: written in chunks, by one process or many, resumable."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import (
    ColumnError,
    IdentifierError,
    LengthMismatch,
    ResumeMismatch,
    suggestion,
)
from maury.io.arrays import Float32Array, Float64Array
from maury.io.files import (
    Settled,
    discard,
    explaining,
    making,
    publish,
    read_stamp,
    refuse_existing,
    require_ours,
    settle,
)
from maury.io.limits import VARIABLE, current
from maury.io.migrations import SURVEY
from maury.io.workers import one_thread
from maury.labels import columns as columns_module
from maury.labels.columns import Column, unknown_column
from maury.labels.definitions import LABELS, Label
from maury.spectra.noise import check_correlation
from maury.spectra.noise_measurement import LEAST_SPECTRA, MOST_SPECTRA, measure_noise
from maury.spectra.spectra import Medium, check_wavelengths
from maury.survey.manifest import MANIFEST, write_manifest
from maury.survey.plausibility import check_range_of_wavelengths, tell_of_labels

logger = logging.getLogger(__name__)

CHUNK_STARS = 2048
"""Stars per chunk of a store: 7.5 MB of flux at 912 pixels."""
COLUMN_CHUNK_STARS = 16384
"""Stars per chunk of a column."""


class SurveyWriter(AbstractContextManager["SurveyWriter"]):
    """Write a survey store in chunks; it appears under its name only when it is complete.

    Until then it lies in ``<path>.part``. With a `resume_key`, a run that was killed goes on after
    the last row that is safely written (`done`), if the key is the same.

    Parameters
    ----------
    path : path-like
        The store to write, conventionally ``*.zarr``.
    n_star : int
        Number of rows.
    wave_aa : (n_pixel,) array_like
        Wavelengths in angstrom.
    medium : {"air", "vacuum"}
        Medium of the wavelengths.
    columns : sequence of str or Column
        Columns to write besides flux and ivar; ``id`` and ``star_id`` are always written. A
        `Column` may be given for one that `maury.labels.columns` does not define.
    simulated : bool
        Whether the spectra are simulated.
    labels : sequence of Label
        Definitions of the labels.
    provenance : mapping
        Where the data come from; must be JSON.
    chunk : int
        Stars per chunk. Blocks given to `write` should start at its multiples.
    overwrite : bool
        Replace an existing store (only once the new one is complete).
    resume_key : str, optional
        Fingerprint of everything that determines the content.
    resolving_power : float, optional
        lambda / FWHM of the spectra, if it is known.
    noise_correlation : sequence of float, optional
        Autocorrelation of the noise at lags of 1, 2, ... pixels, if it is known.
    at_rest : bool, optional
        Whether the spectra are in the rest frame of their stars, if it is known.

    Raises
    ------
    CorrelationError
        If no noise has that correlation.
    OutputExists
        If `path` exists and `overwrite` is false.
    ResumeMismatch
        If a partial store of another run is in the way.
    OutputBusy
        If another run writes the store.
    OutputError
        If the disk is full, or cannot be written.
    """

    def __init__(
        self,
        path: Path | str,
        *,
        n_star: int,
        wave_aa: ArrayLike,
        medium: Medium,
        columns: Sequence[str | Column] = (),
        simulated: bool,
        labels: Sequence[Label] = LABELS,
        provenance: Mapping[str, Any] | None = None,
        chunk: int = CHUNK_STARS,
        overwrite: bool = False,
        resume_key: str | None = None,
        resolving_power: float | None = None,
        noise_correlation: Sequence[float] | None = None,
        at_rest: bool | None = None,
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(self.path.name + ".part")
        self._rows: list[tuple[int, int]] = []
        self._settled: list[tuple[int, int]] = []
        self._on_disk: Settled = set()
        self._overwrite = overwrite
        self.n_star = n_star
        self._key = resume_key
        self._labels = tuple(labels)
        self._columns = _resolve_columns(columns, labels)
        refuse_existing(self.path, overwrite=overwrite)
        wave = check_wavelengths(wave_aa)
        check_range_of_wavelengths(wave, what=str(self.path))
        header = _head(medium, labels, simulated=simulated, provenance=provenance)
        header |= _observing(resolving_power, noise_correlation, at_rest)
        with ExitStack() as stack:
            stack.enter_context(making(self.path))
            if not self._resume():
                self._create(wave, header, chunk)
            self._held = stack.pop_all()

    @property
    def done(self) -> int:
        """Rows written from the first on, without a gap."""
        return self._rows[0][1] if self._rows and self._rows[0][0] == 0 else 0

    @property
    def n_written(self) -> int:
        """Rows written."""
        return sum(last - first for first, last in self._rows)

    @property
    def stretch(self) -> int:
        """Rows that a process may write while others write their own, a chunk of a column."""
        ids: Any = self._group["id"]
        return int(ids.chunks[0])

    @property
    def missing(self) -> list[tuple[int, int]]:
        """First row and row after the last of each stretch that is not wholly written."""
        starts = range(0, self.n_star, self.stretch)
        stretches = [(start, min(start + self.stretch, self.n_star)) for start in starts]
        return [
            (start, stop)
            for start, stop in stretches
            if not any(first <= start and stop <= last for first, last in self._rows)
        ]

    def note(self, start: int, stop: int) -> None:
        """Take down that rows `start` to before `stop` are written, here or by `put_rows`."""
        merged: list[tuple[int, int]] = []
        for first, last in sorted([*self._rows, (start, stop)]):
            if merged and first <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], last))
            else:
                merged.append((first, last))
        self._rows = merged
        with explaining(self.path):
            new = self.n_written - sum(last - first for first, last in self._settled)
            # Not after every chunk, as waiting for the disk takes time: this bounds what may be
            # lost.
            if new >= self.stretch:
                settle(self.partial, self._on_disk)
                self._settled = merged
            self._note_progress()

    def write(self, start: int, flux: ArrayLike, ivar: ArrayLike, **columns: ArrayLike) -> None:
        """Write consecutive rows.

        Parameters
        ----------
        start : int
            Number of the first row.
        flux, ivar : (n, n_pixel) array_like
            Written as float32.
        **columns : (n,) array_like
            One value per row for every declared column; one not given is missing in these rows.

        Raises
        ------
        ColumnError
            If a column was not declared.
        LengthMismatch
            If the lengths differ, or rows lie beyond the declared number.
        """
        flux = np.asarray(flux, dtype=np.float32)
        for name in columns:
            if name not in self._columns:
                raise unknown_column(name, self._columns, f"the declaration of {self.path}")
        arrays = {"flux": flux, "ivar": ivar, **columns}
        for name, values in arrays.items():
            n = np.shape(values)[0]
            if n != flux.shape[0]:
                raise LengthMismatch(f"{name!r} has {n} rows, flux {flux.shape[0]}")
        with explaining(self.path):
            _put(self._group, start, arrays)
        self.note(start, start + flux.shape[0])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Publish the store if every row was written, else keep (resumable) or remove it."""
        with self._held, explaining(self.path):
            if kind is None:
                self._publish()
            elif self._key is None:
                discard(self.partial, self.path)

    def _publish(self) -> None:
        if self._rows != [(0, self.n_star)]:
            raise LengthMismatch(
                f"{self.path}: {self.n_written} rows written of {self.n_star} declared"
            )
        # Only now: of a run that was resumed, or shared by processes, none has seen all rows.
        self._check_ids()
        self._tell_of_labels()
        self._measure_noise()
        for torn in self.partial.rglob("*.partial"):  # Zarr's own, of writers that were killed.
            torn.unlink(missing_ok=True)
        # It lists all files, so that no more may come; the stamp, by which a run that was killed is
        # known, goes last.
        write_manifest(self.partial)
        (self.partial / _PROGRESS).unlink()
        publish(self.partial, self.path, overwrite=self._overwrite, settled=self._on_disk)

    def _resume(self) -> bool:
        import zarr

        if not (self.partial.exists() or self.partial.is_symlink()):
            return False
        require_ours(self.partial, _PROGRESS, f"{MANIFEST}/zarr.json")
        state = read_stamp(self.partial / _PROGRESS)
        if self._key is not None and state.get("key") == self._key:
            self._group = zarr.open_group(str(self.partial), mode="r+")
            # What a machine wrote just before it lost its power may be gone.
            safe = "rows" if state.get("boot") == _boot() else "settled"
            rows = [(int(first), int(last)) for first, last in state.get(safe, state["rows"])]
            self._rows = self._settled = rows
            logger.info("resuming %s after row %d", self.path, self.done)
            return True
        if self._key is not None and state.get("key") and not self._overwrite:
            raise ResumeMismatch(
                f"{self.partial} holds a partial store made with other settings; "
                "finish that run, or pass --overwrite to discard it"
            )
        discard(self.partial, self.path)
        return False

    def _create(self, wave: Float64Array, header: dict[str, Any], chunk: int) -> None:
        import zarr

        self.partial.mkdir(parents=True)
        # First of all: a folder without this stamp is not taken for ours, and never removed.
        self._put_progress({})
        self._group = zarr.create_group(str(self.partial), zarr_format=3)
        self._group.attrs["maury"] = header
        n_star, n_pixel = self.n_star, wave.size
        # A chunk of long spectra must not be larger than what is read.
        rows = min(chunk, max(n_star, 1), max(1, current().chunk_bytes // (4 * n_pixel)))
        for name, ucd in (
            ("flux", "phot.flux.density;em.wl"),
            ("ivar", "stat.weight;phot.flux.density"),
        ):
            array = self._group.create_array(
                name,
                shape=(n_star, n_pixel),
                chunks=(rows, n_pixel),
                dtype="float32",
                # Rows that are not written yet read as bad pixels.
                fill_value=float("nan") if name == "flux" else 0.0,
                dimension_names=("star", "pixel"),
                compressors=_codecs(),
            )
            array.attrs.update({"units": "", "ucd": ucd})
        wave_array = self._group.create_array(
            "wave",
            shape=(n_pixel,),
            chunks=(n_pixel,),
            dtype="float64",
            dimension_names=("pixel",),
            compressors=_codecs(),
        )
        wave_array[:] = wave
        wave_array.attrs.update({"units": "Angstrom", "ucd": "em.wl", "medium": header["medium"]})
        for column in self._columns.values():
            # Whole chunks of flux in each: stretches that processes write apart share no file.
            self._create_column(column, max(rows, COLUMN_CHUNK_STARS // rows * rows))
        self._note_progress()

    def _create_column(self, column: Column, rows: int) -> None:
        text = column.kind == "str"
        integer = column.kind.startswith(("int", "bool"))
        array = self._group.create_array(
            column.name,
            shape=(self.n_star,),
            chunks=(max(1, min(rows, self.n_star)),),
            dtype="str" if text else column.kind,
            fill_value="" if text else (0 if integer else float("nan")),
            dimension_names=("star",),
            compressors=_codecs(),
        )
        array.attrs.update(
            {"units": column.unit, "ucd": column.ucd, "description": column.description}
        )

    def _note_progress(self) -> None:
        self._put_progress(
            {"key": self._key, "rows": self._rows, "settled": self._settled, "boot": _boot()}
        )

    def _put_progress(self, state: Mapping[str, Any]) -> None:
        temporary = (self.partial / _PROGRESS).with_name(".progress.tmp")
        temporary.parent.mkdir(exist_ok=True)
        temporary.write_text(json.dumps(state), "utf-8")
        # In one step: a torn stamp would lose what is known to be written.
        temporary.replace(self.partial / _PROGRESS)

    def _tell_of_labels(self) -> None:
        """Warn of labels that no star has; they are read again, as a resumed run wrote a part."""
        names = [label.name for label in self._labels if label.name in self._columns]
        arrays: Any = self._group
        columns = {name: np.asarray(arrays[name][:]) for name in names}
        tell_of_labels(columns, self._labels, what=str(self.path))

    def _measure_noise(self) -> None:
        """Record what neighbouring pixels share, if nobody says it and the spectra tell."""
        arrays: Any = self._group
        header = dict(arrays.attrs["maury"])
        if "noise_correlation" in header or self.n_star < LEAST_SPECTRA:
            return
        flux, ivar = (_spread(arrays[name], MOST_SPECTRA) for name in ("flux", "ivar"))
        with one_thread():
            found = measure_noise(flux, ivar)
        if found is None:
            logger.warning(
                "%s: what the noise of neighbouring pixels has in common is not stated and cannot "
                "be measured (spectra of one signal-to-noise, or without errors); that of RAVE "
                "will be taken, unless noise_correlation says otherwise",
                self.path,
            )
            return
        header["noise_correlation"] = list(found.correlation)
        header["noise_measured"] = asdict(found)
        arrays.attrs["maury"] = header
        logger.info(
            "%s: noise of neighbouring pixels, measured on %d spectra: correlation %s +- %.3f; "
            "its scatter is %.2f times the quoted errors",
            self.path,
            found.n_spectra,
            list(found.correlation) or "none",
            found.error,
            found.scale,
        )
        if not _LEAST_SCALE < found.scale < 1 / _LEAST_SCALE:
            logger.warning(
                "%s: spectra scatter by %.2f times their quoted errors, beyond what their "
                "lines and continua explain; look at the column of errors and its unit",
                self.path,
                found.scale,
            )

    def _check_ids(self) -> None:
        array: Any = self._group["id"]

        def texts() -> Iterator[list[str]]:
            for start in range(0, self.n_star, self.stretch):
                yield np.asarray(array[start : start + self.stretch], dtype=object).tolist()

        # Eight bytes a row tell which could be equal; only those are compared as texts.
        found = [np.array([hash(one) for one in some], dtype=np.int64) for some in texts()]
        values, counts = np.unique(
            np.concatenate([np.zeros(0, np.int64), *found]), return_counts=True
        )
        doubtful = {*values[counts > 1].tolist(), hash("")}
        if len(doubtful) > 1 or hash("") in values:
            suspects = [one for some in texts() for one in some if hash(one) in doubtful]
            require_unique(suspects, what=str(self.path))


def _head(
    medium: Medium,
    labels: Sequence[Label],
    *,
    simulated: bool,
    provenance: Mapping[str, Any] | None,
) -> dict[str, Any]:
    return {
        "format": SURVEY.name,
        "format_version": SURVEY.version,
        "medium": medium,
        "simulated": bool(simulated),
        "labels": [label.model_dump(mode="json") for label in labels],
        "provenance": dict(provenance or {}),
    }


def _observing(
    resolving_power: float | None,
    noise_correlation: Sequence[float] | None,
    at_rest: bool | None,
) -> dict[str, Any]:
    """Return what is known of how the spectra were taken; what is not has no entry."""
    known: dict[str, Any] = {}
    if resolving_power is not None:
        known["resolving_power"] = float(resolving_power)
    if noise_correlation is not None:
        known["noise_correlation"] = list(check_correlation(noise_correlation))
    if at_rest is not None:
        known["at_rest"] = bool(at_rest)
    return known


_PROGRESS = f"{MANIFEST}/progress.json"
_LEAST_SCALE = 0.7
"""Errors wrong by more make S/N, and so the errors of labels, wrong by a factor that the networks
do not meet in training; what components and weights leave uncertain is a few percent."""


def _codecs() -> list[Any]:
    """Return what compresses a chunk, and the checksum of what comes out."""
    from zarr.codecs import Crc32cCodec, ZstdCodec

    # The checksum is of the bytes on disk: damage is found before anything is unpacked.
    return [ZstdCodec(level=0), Crc32cCodec()]


def _spread(array: Any, n: int) -> Float32Array:
    """Return some `n` rows of a stored array, evenly chosen from few chunks all over it.

    Single rows would each unpack a chunk.
    """
    rows = array.chunks[0]
    wanted = max(_N_CHUNK, -(-n // rows))
    chunks = np.unique(np.linspace(0, (array.shape[0] - 1) // rows, wanted).astype(int))
    each = -(-n // chunks.size)
    parts = [array[at * rows : (at + 1) * rows] for at in chunks]
    return np.concatenate([part[:: max(1, -(-len(part) // each))] for part in parts])


_N_CHUNK = 4
"""At least: enough to meet early and late observations without reading the whole store."""


def _boot() -> str | None:
    """Identity of this run of this machine, where the system tells it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return None


def put_rows(store: Path | str, start: int, arrays: Mapping[str, ArrayLike]) -> None:
    """Write rows into the partial store of a `SurveyWriter` of another process.

    Processes may write at the same time, each its own stretches (`SurveyWriter.stretch`).

    Parameters
    ----------
    store : path-like
        ``partial`` of the writer.
    start : int
        Number of the first row.
    arrays : mapping of str to (n, ...) array_like
        Flux, ivar and columns, or some of them.
    """
    import zarr

    _put(zarr.open_group(str(store), mode="r+"), start, arrays)


def _put(group: Any, start: int, arrays: Mapping[str, ArrayLike]) -> None:
    for name, values in arrays.items():
        data = np.asarray(values)
        stop, n_row = start + data.shape[0], group[name].shape[0]
        # Zarr takes a negative start as one from the end, and would write there.
        if start < 0 or stop > n_row:
            raise LengthMismatch(
                f"{name!r}: rows {start} to before {stop} are beyond the {n_row} declared"
            )
        if data.dtype.kind in "UTSO":
            data = data.astype(object)
            longest = max(map(len, data), default=0)
            if longest > current().text_characters:
                raise IdentifierError(
                    f"{name!r}: a text of {longest} characters, more than the "
                    f"{current().text_characters} that are read again; shorten it, or raise "
                    f"{VARIABLE}='text_characters=...'"
                )
        group[name][start:stop] = data


def require_unique(ids: ArrayLike, *, what: str) -> None:
    """Raise `IdentifierError` if an identifier is empty or stands twice.

    Parameters
    ----------
    ids : (n,) array_like of str
        Identifiers.
    what : str
        File or store that they come from, for the message.
    """
    values, counts = np.unique(np.asarray(ids).astype(str), return_counts=True)
    if values.size and values[0] == "":
        raise IdentifierError(f"{what}: {counts[0]} rows have no identifier; give each one")
    if np.any(counts > 1):
        twice = values[counts > 1]
        raise IdentifierError(
            f"{what}: {twice.size} identifiers stand more than once, for example {str(twice[0])!r} "
            f"({counts[counts > 1][0]} times); give each spectrum one of its own, and say in "
            "'star_id' which spectra are of one star"
        )


def _resolve_columns(columns: Sequence[str | Column], labels: Sequence[Label]) -> dict[str, Column]:
    known = columns_module.known(labels)
    table = {"id": known["id"], "star_id": known["star_id"]}
    for column in columns:
        if isinstance(column, str):
            if column not in known:
                raise ColumnError(
                    f"unknown column {column!r}{suggestion(column, known)} "
                    f"(known: {', '.join(known)}); "
                    "give a maury.labels.columns.Column to define another"
                )
            column = known[column]
        table[column.name] = column
    return table
