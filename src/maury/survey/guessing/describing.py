"""A folder described by a TOML file: what `maury init` writes."""

import tomllib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from maury.errors import InputFileError, MauryError
from maury.io.arrays import Float64Array, StrArray
from maury.io.files import refuse_existing, writing
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.spectra.noise import RAVE_CORRELATION
from maury.survey.guessing.columns import Mapped, map_columns
from maury.survey.guessing.document import Entry, Section, written
from maury.survey.guessing.linking import Links, link
from maury.survey.guessing.looking import Look, look
from maury.survey.guessing.seen import Seen
from maury.survey.guessing.wavelengths import Told, medium_of, unit_of
from maury.survey.readers.config import parse_config
from maury.survey.readers.file_survey import FileSurvey
from maury.survey.readers.formats import open_format
from maury.survey.readers.general import open_config, rooted
from maury.survey.readers.grids import same_grid
from maury.survey.readers.sources import stem

_SPECTRA_FOR_MEDIUM = 40
"""Spectra whose median line tells air from vacuum: velocities of 50 km/s average to 8; chosen."""
_NAMED = 20
"""Files left out that the file names."""


@dataclass(frozen=True)
class Description:
    """A guessed description of a folder.

    Attributes
    ----------
    text : str
        The TOML file.
    path : Path
        Where it is to stand; paths in it are relative to that.
    """

    text: str
    path: Path

    @property
    def n_check(self) -> int:
        """Number of guesses that are marked as doubtful."""
        return self.text.count("# check: ")


def init_survey(
    folder: Path | str, out: Path | str | None = None, *, overwrite: bool = False
) -> Description:
    """Look at a folder, and write a TOML file for `ingest_toml` that describes it.

    Each guess has a comment that says why; doubtful ones begin with ``# check:``.

    Parameters
    ----------
    folder : Path or str
        Files of spectra and tables.
    out : Path or str, optional
        The file to write; ``survey.toml`` in the folder by default.
    overwrite : bool
        Replace an existing file.

    Raises
    ------
    InputFileError
        If the folder holds no spectra; it names the files that it does hold.
    OutputExists
        If the file exists and `overwrite` is false.
    """
    target = Path(folder) / "survey.toml" if out is None else Path(out)
    refuse_existing(target, overwrite=overwrite)
    found = describe_folder(folder, target)
    with writing(target, overwrite=overwrite) as temporary:
        temporary.write_text(found.text, "utf-8")
    return found


def describe_folder(folder: Path | str, out: Path | str) -> Description:
    """Look at a folder, and return its description for a file at `out`, which is not written.

    Raises
    ------
    InputFileError
        If the folder holds no spectra.
    """
    # Messages name the file as it was given; paths in it are relative to where it stands.
    folder, out = Path(folder).absolute(), Path(out)
    base = out.absolute().parent
    seen = look(folder)
    if not seen.spectra:
        raise InputFileError(
            f"{folder} holds no spectra that maury can tell: {_names(seen)}; describe it by hand "
            "(docs/guides/ingest.md)"
        )
    chosen = seen.spectra[0]
    told = None if chosen.wave is None else unit_of(chosen.wave, chosen.unit)
    with ExitStack() as stack:
        links = _links(seen, chosen, base, stack)
        mapped = map_columns(links.joined, _known_columns(chosen, links))
        parts = _Parts(seen, chosen, told, links, mapped, base)
        # The medium needs spectra, and reading them needs a description: air stands in for it.
        provisional = parts.text(Entry("medium", chosen.medium or "air"))
        wave, flux = _sample(provisional, out)
    medium = medium_of(chosen.medium, wave, flux, f"{chosen.names} {chosen.path.name}")
    return Description(parts.text(medium), out)


@dataclass(frozen=True)
class _Parts:
    """Everything that the file is written from, but for the medium."""

    seen: Look
    chosen: Seen
    told: Told | None
    links: Links
    mapped: Mapped
    base: Path

    def text(self, medium: Entry) -> str:
        """Return the file."""
        sections = [
            Section("", tuple(self._top())),
            *(self._arms() if self.chosen.arms else self._one(medium)),
            *(one.section for one in self.links.joined if one.section is not None),
            *self.links.apart,
            self.mapped.columns,
            *self.mapped.labels,
        ]
        return written(sections)

    def _top(self) -> list[Entry]:
        entries = [
            Entry(
                why="Guessed by 'maury init'. Look at each line marked 'check:' (and at the "
                "others), then: maury check FILE, and maury ingest toml FILE OUT.zarr. "
                "The keys are explained in the guide to ingest."
            ),
            self._power(),
            self._rest(),
            self._noise(),
        ]
        resample = None if self.chosen.arms else _resample(self.chosen, self.told)
        return [*entries, *([resample] if resample else []), *self._others()]

    def _power(self) -> Entry:
        known = self.chosen.known
        if known is not None and known.resolving_power is not None:
            return Entry("resolving_power", known.resolving_power, f"As {known.who} {known.says}.")
        why = (
            "lambda / FWHM of the spectrograph, which no file says. Without it errors are not "
            "compared with their bound, and the emulator (8404-8800 angstrom, all nine "
            "labels) simulates no stars; a theory that is learnt needs none."
        )
        return Entry("resolving_power", 10000, why, doubtful=True, off=True)

    def _rest(self) -> Entry:
        known = self.chosen.known
        if known is not None and known.at_rest is not None:
            return Entry("at_rest", known.at_rest, f"As {known.who} {known.says}.")
        why = (
            "Are the spectra shifted to the rest frame of their stars? If not, write false "
            "and map radial_velocity in [columns]."
        )
        return Entry("at_rest", True, why, doubtful=True, off=True)

    def _noise(self) -> Entry:
        why = (
            "Is the noise of neighbouring pixels correlated, as resampling leaves it? Write its "
            "autocorrelation at lags of 1, 2, ... pixels, [0.0] for none. Without the key "
            "'maury ingest' measures it, if there are a hundred spectra of different S/N, and "
            "says what it found."
        )
        return Entry("noise_correlation", [*RAVE_CORRELATION], why, off=True)

    def _others(self) -> list[Entry]:
        others = [f"{name} ({why})" for name, why in self.seen.others]
        others += [
            f"{_named(one, self.base)} ({_counted(one)}; an [[arm]]?)"
            for one in self.seen.spectra[1:]
        ]
        if not others:
            return []
        more = f", and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
        why = f"Files that are left out: {'; '.join(others[:_NAMED])}{more}."
        return [Entry(why=why, doubtful=len(self.seen.spectra) > 1)]

    def _one(self, medium: Entry) -> list[Section]:
        return [
            Section("[spectra]", tuple(self._spectra())),
            Section("[wavelength]", tuple(self._wavelength(medium))),
        ]

    def _arms(self) -> list[Section]:
        """Return the arms of one survey, which readers of published formats settle."""
        sections = []
        for one in self.chosen.arms:
            assert one.known is not None, "arms are those of a recipe"
            resample = _resample(one, None)
            name = Entry("name", one.known.arm, f"{_counted(one)}.")
            sections.append(Section("[[arm]]", (name, *([resample] if resample else []))))
            place = Entry(_key(one), _shown(one.path, self.base))
            sections.append(Section("[arm.spectra]", (place, *one.spectra)))
        return sections

    def _spectra(self) -> list[Entry]:
        why = f"{_counted(self.chosen)}."
        place = Entry(_key(self.chosen), _shown(self.chosen.path, self.base), why)
        ids = [self.links.id_entry] if self.links.id_entry else []
        noise = {"error", "ivar"} & {entry.key for entry in self.chosen.spectra}
        without = Entry(
            why="No error was found: S/N is estimated from the spectra, or taken from the column "
            "snr, and errors follow from it.",
            doubtful=True,
        )
        if self.chosen.reader is not None:
            return [place, *self.chosen.spectra]
        return [place, *self.chosen.spectra, *ids, *([] if noise else [without])]

    def _wavelength(self, medium: Entry) -> list[Entry]:
        if self.chosen.reader is not None and self.chosen.medium is not None:
            # The reader knows: the section may be left out.
            return []
        unit = [] if self.told is None else self.told.entries()
        return [medium, *self.chosen.wavelength, *unit]


def _counted(one: Seen) -> str:
    return "1 spectrum" if one.n_star == 1 else f"{one.n_star} spectra"


def _named(one: Seen, base: Path) -> str:
    """Return the file, or the folder with its pattern, of spectra that are left out."""
    pattern = next((str(entry.value) for entry in one.spectra if entry.key == "pattern"), "*")
    place = _shown(one.path, base)
    return place if not one.is_folder else pattern if place == "." else f"{place}/{pattern}"


def _key(one: Seen) -> str:
    return "folder" if one.is_folder else "file"


def _known_columns(chosen: Seen, links: Links) -> list[Entry]:
    """Return entries of ``[columns]`` that need no guess."""
    found = [links.id_column] if links.id_column else []
    own = [one.table for one in links.joined if one.section is None]
    if chosen.known is not None and own:
        others = {n for one in links.joined if one.section is not None for n in one.table.names}
        found += chosen.known.entries(own[0].names, others)
    return found


def _links(seen: Look, chosen: Seen, base: Path, stack: ExitStack) -> Links:
    own = _own_table(chosen, stack)
    ids: StrArray | None = None
    if chosen.reader is not None:
        ids = open_format(chosen.reader, chosen.path, stack).ids
    elif chosen.is_folder:
        ids = np.array([stem(path) for path in chosen.paths], dtype=np.str_)
    elif any(entry.key == "id" for entry in chosen.spectra):
        ids = _ids_of_arrays(chosen)
    return link(seen.tables, chosen.n_star, stack, base=base, ids=ids, own=own)


def _own_table(chosen: Seen, stack: ExitStack) -> SourceTable | None:
    """Return the table that the spectra stand in, if it has columns of one value a row."""
    if not chosen.is_table:
        return None
    if chosen.reader is not None:
        return open_format(chosen.reader, chosen.path, stack).table
    hdu = next((entry.value for entry in chosen.spectra if entry.key == "hdu"), None)
    return open_table(chosen.path, stack, hdu=hdu)


def _ids_of_arrays(chosen: Seen) -> StrArray:
    from maury.survey.readers.planes import npz_array

    name = next(entry.value for entry in chosen.spectra if entry.key == "id")
    return np.char.strip(npz_array(chosen.path, name).astype(np.str_))


def _sample(text: str, out: Path) -> tuple[Float64Array | None, Float64Array | None]:
    """Return wavelengths and fluxes of some spectra as a description reads them, if it does."""
    try:
        with open_text(text, out) as survey:
            spectra = survey.batch(0, min(_SPECTRA_FOR_MEDIUM, len(survey))).spectra
            flux = np.where(spectra.ivar > 0, spectra.flux, np.nan)
            return survey.wave_aa, np.asarray(flux, dtype=np.float64)
    # What is wrong is told by the check that follows, with the file in front of the user.
    except MauryError:
        return None, None


def open_text(text: str, path: Path) -> FileSurvey:
    """Open the survey that a description in memory describes, as for a file at `path`.

    Raises
    ------
    ConfigError, InputFileError, GridMismatch
        As of `maury.survey.readers.open_toml`.
    """
    config, labels = parse_config(tomllib.loads(text), path)
    return open_config(rooted(config, path.absolute().parent), path, labels=labels, options={})


def _resample(chosen: Seen, told: Told | None) -> Entry | None:
    """Return a common grid for spectra that do not share one."""
    if len(chosen.grids) < 2:
        return None
    raw = chosen.grids if told is None else [told.angstrom(grid) for grid in chosen.grids]
    grids = [np.sort(grid) for grid in raw]
    if all(same_grid(grids[0], grid) for grid in grids[1:]):
        return None
    which = f"The first {len(grids)} spectra stand on different grids"
    known = chosen.known
    if known is not None and known.grid is not None:
        value = known.grid.model_dump(exclude_defaults=True)
        return Entry("resample", value, f"{which}; this is that of {known.who}.")
    # Without a recipe: their overlap, in their usual step.
    step = float(f"{np.median([np.median(np.diff(grid)) for grid in grids]):.3g}")
    low, high = max(grid[0] for grid in grids), min(grid[-1] for grid in grids)
    start = float(np.ceil(low / step) * step)
    n = int((high - start) / step) + 1
    if n < 2:
        return Entry(why="Spectra stand on grids that do not overlap.", doubtful=True)
    value = {"start": round(start, 6), "step": step, "n": n}
    return Entry("resample", value, f"{which}; this is what they share.", doubtful=True)


def _shown(path: Path, base: Path) -> str:
    try:
        return path.relative_to(base).as_posix() or "."
    except ValueError:
        return path.as_posix()


def _names(seen: Look) -> str:
    words: Sequence[str] = [f"{name} ({why})" for name, why in seen.others]
    words = [*words, *(f"{path.name} (a table)" for path in seen.tables)]
    return "; ".join(words[:_NAMED])
