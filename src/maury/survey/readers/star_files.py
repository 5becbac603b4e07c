"""Files of one spectrum each: what reads them, and what their headers say."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import InputFileError, LengthMismatch
from maury.io.arrays import AnyArray, Float64Array, StrArray
from maury.io.fits_values import image
from maury.io.opening import open_fits, reading, says_simulated
from maury.io.source_table import SourceTable
from maury.spectra.spectra import Medium, check_wavelengths
from maury.survey.readers.grids import ascending, header_medium, require_medium, same_grid
from maury.survey.readers.pipeline import Piece, check_rows, complete_ids
from maury.survey.readers.sources import (
    UNREADABLE,
    Cards,
    Facts,
    header_facts,
    list_files,
    stem,
    tolerating,
)


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
            # Alike spectra go on together, so that weights of resampling are computed once.
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


def _alike(one: StarSpectrum, other: StarSpectrum) -> bool:
    noisy = (one.ivar is None) == (other.ivar is None)
    return noisy and same_grid(one.wave_aa, other.wave_aa)


def _piece(stars: Sequence[StarSpectrum], what: str) -> Piece:
    noisy = [star.ivar for star in stars if star.ivar is not None]
    flux, ivar = np.array([star.flux for star in stars]), np.array(noisy) if noisy else None
    return Piece(stars[0].wave_aa, flux, ivar, what)


ReadStar = Callable[[Any, Path], StarSpectrum]
"""``read(hdus, path)`` gives the spectrum of an open file."""


TellFacts = Callable[[Any, Path], dict[str, Any]]
"""``facts(hdus, path)`` gives the facts of an open file."""


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
    # Where the flux is zero its relative error says nothing.
    good = np.isfinite(sigma) & (sigma > 0)
    with np.errstate(over="ignore"):
        ivar = np.where(good, np.where(good, sigma, 1.0) ** -2.0, 0.0)
    return np.where(np.isfinite(ivar), ivar, 0.0)


def without_bits(ivar: Float64Array, mask: AnyArray, bits: Sequence[int]) -> Float64Array:
    """Return ivar with 0 where any of these bits of `mask` is set."""
    bad = np.uint64(sum(1 << bit for bit in bits))
    # Bit 63 is the sign of a signed integer: as unsigned it is a bit like all others.
    flagged = (np.asarray(mask).astype(np.int64).view(np.uint64) & bad) != 0
    return np.where(flagged, 0.0, ivar)


@dataclass(frozen=True)
class StarFormat:
    """A published format of one spectrum a file; it opens a file, or a folder of such files.

    Attributes
    ----------
    read : callable
        Spectrum of an open file.
    medium : {"air", "vacuum"} or callable
        What tells it from the facts and the paths of all files that could be read.
    facts : callable
        Facts of an open file; the cards of the primary header by default.
    identify : callable
        ``identify(facts, paths)`` names all spectra; by their files by default.
    pattern : str
        Which files below a folder are spectra.
    units : mapping
        Units of facts.
    """

    read: ReadStar
    medium: Medium | Callable[[Sequence[Cards], Sequence[Path]], Medium | None]
    facts: TellFacts = primary_facts
    identify: Callable[[Sequence[Cards], Sequence[Path]], Sequence[str]] = by_name
    pattern: str = "*"
    units: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, path: Path, stack: ExitStack, /, *, skip_bad: bool = False) -> StarFiles:
        """Open files; headers are read at once.

        Parameters
        ----------
        path : Path
            A file, or a folder with files at any depth.
        stack : ExitStack
            Not needed: files are opened one at a time.
        skip_bad : bool
            Keep a file that cannot be read, as a row of bad pixels without facts.

        Raises
        ------
        InputFileError
            If there is no file, or one is damaged or of another layout, unless such are skipped;
            if all are.
        IdentifierError
            If an identifier stands twice.
        """
        del stack
        paths = list_files(path, pattern=self.pattern)
        check_rows(len(paths), path)
        gathered, lost = Facts(), dict[Path, str]()
        # One simulated spectrum marks all of them: the mark must never get lost.
        simulated = False
        for item in paths:
            # A lost file keeps its row, without facts: rows out = files in.
            cards: Cards = {}
            with tolerating(item, lost, skip=skip_bad), reading(item), ExitStack() as opened:
                hdus = open_fits(item, opened)
                cards = self.facts(hdus, item)
                simulated |= says_simulated(hdus)
                if not callable(self.medium):
                    require_medium(header_medium(cards), self.medium, item)
            gathered.add(cards)
        # A few bad files may be skipped; where all are bad, folder or reader are the wrong ones.
        if len(lost) == len(paths):
            raise InputFileError(f"none of the {len(paths)} files can be read: {lost[paths[0]]}")
        names = np.array(self.identify(gathered.rows, paths), dtype=np.str_)
        ids = complete_ids(names, len(paths), path)
        medium = self.medium
        if callable(medium):
            told = [k for k, item in enumerate(paths) if item not in lost]
            known = medium([gathered.rows[k] for k in told], [paths[k] for k in told])
        else:
            known = medium
        table = gathered.table(path, self.units)
        return StarFiles(paths, self._opened, ids, table, known, simulated, skip_bad, lost)

    def _opened(self, path: Path) -> StarSpectrum:
        with reading(path), ExitStack() as stack:
            return self.read(open_fits(path, stack), path)
