"""What readers of published formats share: spectra, and the facts of each."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

from maury.errors import GridMismatch, InputFileError, LengthMismatch
from maury.io.arrays import AnyArray, Float32Array, Float64Array, StrArray
from maury.io.fits_values import image
from maury.io.opening import files_of, open_fits, reading
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium, check_wavelengths
from maury.survey.readers.grids import ascending, header_medium, require_medium, same_grid
from maury.survey.readers.pipeline import Piece, Source, check_rows, complete_ids

UNREADABLE = (InputFileError, GridMismatch)
"""What `skip_bad` skips; a wrong configuration or a full disk is an error all the same."""


class FormatSource(Source, Protocol):
    """Spectra of a published format, which tells all but the columns' names."""

    @property
    def medium(self) -> Medium | None:
        """Medium of the wavelengths, if the format or its files say it."""

    @property
    def table(self) -> SourceTable | None:
        """Facts of each spectrum: header cards or columns, by their own names."""

    @property
    def paths(self) -> Sequence[Path]:
        """The files."""

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum, in angstrom."""


@dataclass(frozen=True)
class StarSpectrum:
    """One spectrum and what its header says.

    Attributes
    ----------
    wave_aa, flux : (n_pixel,) float64
    ivar : (n_pixel,) float64 or None
        0 in bad pixels; None where the file gives no noise.
    facts : mapping
        Header cards.
    medium : {"air", "vacuum"} or None
        None where the file does not say.
    """

    wave_aa: Float64Array
    flux: Float64Array
    ivar: Float64Array | None
    facts: Mapping[str, Any]
    medium: Medium | None = None


@dataclass(frozen=True)
class StarFiles:
    """Files of one spectrum each, in the order of `paths`.

    Attributes
    ----------
    paths : sequence of Path
    read : callable
        ``read(path)`` gives the `StarSpectrum`.
    ids : (n_star,) str
    table : SourceTable, optional
        Facts of all files.
    medium : {"air", "vacuum"} or None
        Of all files.
    simulated : bool
    skip_bad : bool
        Whether a file that cannot be read is a row of bad pixels instead of an error.
    unread : mapping of Path to str
        Files whose header could not be read, and why.
    """

    paths: Sequence[Path]
    read: Callable[[Path], StarSpectrum]
    ids: StrArray
    table: SourceTable | None
    medium: Medium | None
    simulated: bool = False
    skip_bad: bool = False
    unread: Mapping[Path, str] = field(default_factory=dict)

    @property
    def n_star(self) -> int:
        """Number of spectra."""
        return len(self.paths)

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum that can be read, in angstrom.

        Raises
        ------
        InputFileError
            If none can, in the words for the first.
        """
        lost: dict[Path, str] = {}
        for path in self.paths:
            star = self._tried(path, lost)
            if star is not None:
                return star.wave_aa
        raise InputFileError(
            f"none of the {len(self.paths)} files can be read: {next(iter(lost.values()))}"
        )

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, alike ones together."""
        held: list[StarSpectrum] = []
        what = ""
        for path in self.paths[start:stop]:
            lost: dict[Path, str] = {}
            star = self._tried(path, lost)
            if held and (star is None or not _alike(held[0], star)):
                yield _piece(held, what)
                held = []
            if star is None:
                yield Piece.lost(1, lost[path])
                continue
            if not held:
                what = str(path)
            held.append(star)
        if held:
            yield _piece(held, what)

    def _tried(self, path: Path, lost: dict[Path, str]) -> StarSpectrum | None:
        """Read a spectrum; take down in `lost` why it could not be, if such are skipped."""
        if path in self.unread:
            lost[path] = self.unread[path]
            return None
        try:
            return self._checked(path)
        except UNREADABLE as error:
            if not self.skip_bad:
                raise
            lost[path] = str(error)
        return None

    def _checked(self, path: Path) -> StarSpectrum:
        star = self.read(path)
        for array in (star.flux, star.ivar):
            if array is not None and array.shape != star.wave_aa.shape:
                raise LengthMismatch(
                    f"{path} has {star.wave_aa.size} wavelengths, but {array.size} values of flux "
                    "or noise; they must be equally many"
                )
        check_wavelengths(ascending(star.wave_aa)[0], name=f"wavelengths of {path}")
        return star


@contextmanager
def tolerating(path: Path, lost: dict[Path, str], *, skip: bool) -> Iterator[None]:
    """Take down in `lost` why a file cannot be read, if such are skipped, and go on."""
    try:
        yield
    except UNREADABLE as error:
        if not skip:
            raise
        lost[path] = str(error)


def _alike(one: StarSpectrum, other: StarSpectrum) -> bool:
    noisy = (one.ivar is None) == (other.ivar is None)
    return noisy and same_grid(one.wave_aa, other.wave_aa)


def _piece(stars: Sequence[StarSpectrum], what: str) -> Piece:
    with np.errstate(over="ignore", invalid="ignore"):
        flux = np.array([star.flux for star in stars], dtype=np.float32)
        noisy = [star.ivar for star in stars if star.ivar is not None]
        ivar = np.array(noisy, dtype=np.float32) if noisy else None
    return Piece(stars[0].wave_aa, flux, ivar, what)


RowReader = Callable[[int, int], tuple[AnyArray, Float32Array | None]]
"""``read(start, stop)`` is flux and ivar of these rows, both (n, n_pixel); ivar may be None."""


@dataclass(frozen=True)
class Block:
    """Consecutive spectra of one file, on one grid.

    Attributes
    ----------
    ids : (n,) str
    table : SourceTable
        Facts of each.
    read : callable
        See `RowReader`.
    wave_aa : (n_pixel,) float64
    path : Path
    unread : str
        Why the file could not be read, if it could not.
    """

    ids: StrArray
    table: SourceTable
    read: RowReader
    wave_aa: Float64Array
    path: Path
    unread: str = ""

    @classmethod
    def lost(cls, path: Path, why: str) -> Self:
        """Return the one row that stands for a file that could not be read."""
        ids = np.array([stem(path)], dtype=np.str_)
        none = np.empty((1, 0), dtype=np.float32)
        table = SourceTable.of_arrays(path, {"FILE": ids})
        return cls(ids, table, lambda _start, _stop: (none, none), np.empty(0), path, why)


@dataclass(frozen=True)
class BlockFiles:
    """Files of many spectra each, one after another.

    Attributes
    ----------
    paths : sequence of Path
    blocks : sequence of Block
    ids : (n_star,) str
    table : SourceTable
        Facts of all; those of several files are text.
    medium : {"air", "vacuum"} or None
    skip_bad : bool
        Whether a file that cannot be read is one row of bad pixels instead of an error.
    """

    paths: Sequence[Path]
    blocks: Sequence[Block]
    ids: StrArray
    table: SourceTable
    medium: Medium | None
    skip_bad: bool = False
    simulated: bool = False

    @classmethod
    def of(
        cls,
        path: Path,
        paths: Sequence[Path],
        blocks: Sequence[Block],
        *,
        medium: Medium | None,
        skip_bad: bool = False,
    ) -> Self:
        """Join blocks.

        Raises
        ------
        IdentifierError
            If an identifier is empty or stands twice.
        InputFileError
            If no file could be read.
        """
        if all(block.unread for block in blocks):
            raise InputFileError(f"none of the files can be read: {blocks[0].unread}")
        ids = np.concatenate([block.ids for block in blocks])
        table = _joined([block.table for block in blocks], path)
        return cls(paths, blocks, complete_ids(ids, ids.size, path), table, medium, skip_bad)

    @property
    def n_star(self) -> int:
        """Number of spectra."""
        return int(self.ids.size)

    def first_grid(self) -> Float64Array:
        """Return the wavelengths of the first spectrum, in angstrom."""
        return next(block.wave_aa for block in self.blocks if not block.unread)

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """Yield the spectra of rows `start` to before `stop`, file by file."""
        first = 0
        for block in self.blocks:
            a, b = max(start - first, 0), min(stop - first, block.ids.size)
            first += block.ids.size
            if a < b:
                yield self._piece(block, a, b)

    def _piece(self, block: Block, start: int, stop: int) -> Piece:
        lost = {block.path: block.unread} if block.unread else {}
        piece = None
        if not lost:
            with tolerating(block.path, lost, skip=self.skip_bad), reading(block.path):
                with np.errstate(over="ignore", invalid="ignore"):
                    flux, ivar = block.read(start, stop)
                    single = np.asarray(flux, dtype=np.float32)
                piece = Piece(block.wave_aa, single, ivar, str(block.path))
        return piece or Piece.lost(stop - start, lost[block.path])


def _joined(tables: Sequence[SourceTable], path: Path) -> SourceTable:
    if len(tables) == 1:
        return tables[0]
    names = tuple(dict.fromkeys(name for table in tables for name in table.names))
    units = {name: unit for table in tables for name, unit in table.units.items()}

    def raw(name: str) -> StrArray:
        parts = [
            table.texts(name) if name in table.names else np.full(table.n_row, "")
            for table in map(_as_text, tables)
        ]
        return np.concatenate(parts)

    return SourceTable(path, names, sum(table.n_row for table in tables), units, raw)


def _as_text(table: SourceTable) -> SourceTable:
    """Return a table whose numbers are text, so that those of many files go together."""

    def raw(name: str) -> Any:
        values = np.ma.asanyarray(table.raw(name))
        if values.ndim != 1 or values.dtype.kind not in "fb":
            return values
        data = np.ma.getdata(values).astype(np.float64)
        texts = np.array([repr(float(value)) for value in data], dtype=np.str_)
        return np.where(np.ma.getmaskarray(values) | ~np.isfinite(data), "", texts)

    return SourceTable(table.path, table.names, table.n_row, table.units, raw)


FITS_SUFFIXES: tuple[str, ...] = tuple(
    f"{suffix}{packed}" for suffix in (".fits", ".fit") for packed in ("", ".gz", ".fz")
)


def list_files(
    path: Path, suffixes: Sequence[str] = FITS_SUFFIXES, *, pattern: str = "*"
) -> list[Path]:
    """Return a file, or those of a folder, at any depth, with one of these suffixes, by name.

    Raises
    ------
    InputFileError
        If there are none.
    """
    if path.is_file():
        return [path]
    if not path.exists():
        raise InputFileError(f"{path} does not exist; correct its name")
    found = [
        item
        for item in files_of(path, pattern, deep=True)
        if item.name.lower().endswith(tuple(suffixes))
    ]
    if not found:
        raise InputFileError(
            f"{path} has no file {pattern!r} with the suffix {' or '.join(suffixes)}, at any "
            "depth; correct the folder, or the recipe"
        )
    return sorted(found, key=lambda item: (item.name, str(item)))


def stem(path: Path) -> str:
    """Return the name of a file without its suffixes."""
    name = path.name.removesuffix(".gz").removesuffix(".fz")
    return name.rsplit(".", 1)[0] if "." in name else name


@dataclass
class Facts:
    """Facts of many spectra, gathered one after another, to become a table."""

    rows: list[Mapping[str, Any]] = field(default_factory=list)

    def add(self, facts: Mapping[str, Any]) -> None:
        """Take down the facts of the next spectrum."""
        self.rows.append(facts)

    def table(self, path: Path, units: Mapping[str, str] | None = None) -> SourceTable:
        """Return the table of all facts; one that a spectrum lacks is missing."""
        names = tuple(dict.fromkeys(name for row in self.rows for name in row))
        return SourceTable(path, names, len(self.rows), dict(units or {}), self._column)

    def _column(self, name: str) -> AnyArray:
        values = [row.get(name) for row in self.rows]
        if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
            return np.array(values)
        if all(v is None or isinstance(v, int | float) for v in values):
            return np.array([np.nan if v is None else float(v) for v in values])
        return np.array(["" if v is None else str(v) for v in values], dtype=np.str_)


def header_facts(*headers: Any) -> dict[str, Any]:
    """Return the plain cards of FITS headers; of equal names the first counts."""
    facts: dict[str, Any] = {}
    for header in headers:
        for card in header.cards:
            name = str(card.keyword)
            plain = isinstance(card.value, str | int | float | bool)
            if plain and name not in ("", "COMMENT", "HISTORY", "CONTINUE"):
                value = card.value.strip() if isinstance(card.value, str) else card.value
                facts.setdefault(name, value)
    return facts


Cards = Mapping[str, Any]
ReadStar = Callable[[Any, Path], StarSpectrum]
"""``read(hdus, path)`` gives the spectrum of an open file."""
TellFacts = Callable[[Any, Path], dict[str, Any]]
"""``facts(hdus, path)`` gives the facts of an open file."""


def open_star_files(
    path: Path,
    suffixes: Sequence[str] = FITS_SUFFIXES,
    *,
    pattern: str = "*",
    read: ReadStar,
    facts: TellFacts,
    identify: Callable[[Sequence[Cards], Sequence[Path]], Sequence[str]],
    medium: Medium | Callable[[Sequence[Cards], Sequence[Path]], Medium | None],
    units: Mapping[str, str] | None = None,
    skip_bad: bool = False,
) -> StarFiles:
    """Open a file of one spectrum, or a folder of such files; headers are read at once.

    Parameters
    ----------
    path : Path
    suffixes : sequence of str
    pattern : str
        Which files below a folder are spectra.
    read, facts : callable
        Of an open file.
    identify : callable
        ``identify(facts, paths)`` names all spectra.
    medium : {"air", "vacuum"} or callable
        What tells it from the facts and the paths of all files that could be read.
    units : mapping, optional
        Units of facts.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels without facts.

    Raises
    ------
    InputFileError
        If there is no file, or one is damaged, unless such are skipped; if all are.
    IdentifierError
        If an identifier stands twice.
    """
    paths = list_files(path, suffixes, pattern=pattern)
    check_rows(len(paths), path)
    gathered, lost = Facts(), dict[Path, str]()
    for item in paths:
        cards: Cards = {}
        with tolerating(item, lost, skip=skip_bad), reading(item), ExitStack() as stack:
            cards = facts(open_fits(item, stack), item)
            if not callable(medium):
                require_medium(header_medium(cards), medium, item)
        gathered.add(cards)
    if len(lost) == len(paths):
        raise InputFileError(f"none of the {len(paths)} files can be read: {lost[paths[0]]}")
    names = np.array(identify(gathered.rows, paths), dtype=np.str_)
    ids = complete_ids(names, len(paths), path)
    simulated = any(row.get("SIMULATE") is True for row in gathered.rows)
    if callable(medium):
        told = [k for k, item in enumerate(paths) if item not in lost]
        known = medium([gathered.rows[k] for k in told], [paths[k] for k in told])
    else:
        known = medium

    def opened(item: Path) -> StarSpectrum:
        with reading(item), ExitStack() as stack:
            return read(open_fits(item, stack), item)

    table = gathered.table(path, units)
    return StarFiles(paths, opened, ids, table, known, simulated, skip_bad, lost)


def primary_facts(hdus: Any, path: Path) -> dict[str, Any]:
    """Return the cards of the primary header."""
    del path
    return header_facts(hdus[0].header)


def by_card(key: str) -> Callable[[Sequence[Cards], Sequence[Path]], list[str]]:
    """Return a function that names spectra by a header card, else by the file."""

    def names(facts: Sequence[Cards], paths: Sequence[Path]) -> list[str]:
        return [
            str(row.get(key, "")).strip() or stem(path)
            for row, path in zip(facts, paths, strict=True)
        ]

    return names


def by_name(facts: Sequence[Cards], paths: Sequence[Path]) -> list[str]:
    """Name spectra by their files, without suffix."""
    del facts
    return [stem(path) for path in paths]


def line(hdu: Any, path: Path, row: int = 0) -> Float64Array:
    """Return a spectrum of an image HDU, or one row of an image of several."""
    if not getattr(hdu, "is_image", False) or not hdu.shape:
        raise InputFileError(
            f"{path}: HDU {hdu.name!r} holds no image; the file is not of this format"
        )
    values = np.atleast_2d(np.asarray(image(hdu), dtype=np.float64))
    if values.ndim != 2 or row >= values.shape[0]:
        raise InputFileError(
            f"{path}: HDU {hdu.name!r} has shape {hdu.shape}, without row {row}; the file "
            "is not of this format"
        )
    return np.asarray(values[row])


def relative_ivar(flux: Float64Array, relative_error: Float64Array) -> Float64Array:
    """Return ivar from flux and its relative error, 0 where there is no positive error."""
    sigma = np.abs(flux) * relative_error
    good = np.isfinite(sigma) & (sigma > 0)
    with np.errstate(over="ignore"):
        ivar = np.where(good, np.where(good, sigma, 1.0) ** -2.0, 0.0)
    return np.where(np.isfinite(ivar), ivar, 0.0)


def without_bits(ivar: Float64Array, mask: AnyArray, bits: Sequence[int]) -> Float64Array:
    """Return ivar with 0 where any of these bits of `mask` is set."""
    bad = np.uint64(sum(1 << bit for bit in bits))
    flagged = (np.asarray(mask).astype(np.int64).view(np.uint64) & bad) != 0
    return np.where(flagged, 0.0, ivar)
