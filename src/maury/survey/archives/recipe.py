"""The TOML file that describes a public survey."""

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from maury.errors import ConfigError, check_known, suggestion
from maury.io.arrays import Float64Array
from maury.io.config_files import parse_toml, read_toml, validated
from maury.labels import columns as columns_module
from maury.labels import definitions as labels_module
from maury.labels.abundances import Convention
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.spectra.spectra import Medium
from maury.survey.archives.cuts import Cut
from maury.survey.readers.config import (
    ColumnConfig,
    Key,
    ObservableConfig,
    ResampleConfig,
    Strict,
    labels_of,
    unknown_columns,
)
from maury.survey.readers.formats import FORMATS

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
Address = Annotated[str, Field(pattern=r"^https?://\S+$")]


def _known_reader(name: str) -> str:
    if name not in FORMATS:
        raise ValueError(f"no such reader{suggestion(name, FORMATS)} (known: {', '.join(FORMATS)})")
    return name


ReaderName = Annotated[str, AfterValidator(_known_reader)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class FileEntry(Strict):
    """``[[file]]``: a public file, as ``maury fetch`` downloads it.

    Attributes
    ----------
    name : str
        Name of the file on disk.
    url : str
    bytes : int, optional
        Published size.
    sha256 : str, optional
        Published checksum.
    checksums : str, optional
        Address of the archive's list of checksums, as ``md5sum`` and its kin write them.
    note : str
        What it holds.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]
    url: Address
    bytes: Annotated[int, Field(ge=0)] | None = None
    sha256: Checksum | None = None
    checksums: Address | None = None
    note: str = ""


class UploadFacts(Strict):
    """``[query.upload]``: a table of the user's that the query joins.

    Attributes
    ----------
    table : str
        The query calls it ``TAP_UPLOAD.table``.
    columns : tuple of str
        Its columns.
    """

    table: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")]
    columns: Annotated[tuple[str, ...], Field(min_length=1)]


class QueryFacts(Strict):
    """``[query]``: what ``maury fetch`` asks an archive, instead of whole files.

    Attributes
    ----------
    name : str
        Name of the answer on disk, a VOTable.
    service : str
        Address of a TAP service.
    adql : str
    upload : UploadFacts, optional
    note : str
        What it holds.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*\.vot$")]
    service: Address
    adql: Annotated[str, Field(min_length=1)]
    upload: UploadFacts | None = None
    note: str = ""


class TableFacts(Strict):
    """``[table]``: where the catalogue is in its file.

    Attributes
    ----------
    hdu : int or str, optional
        HDU of a FITS file; else its first table.
    missing : tuple of float, optional
        Numbers that mean "missing" in every column that does not say otherwise.
    """

    hdu: Key | None = None
    missing: tuple[float, ...] | None = None


class IdFacts(Strict):
    """``[id]``: identifiers.

    Attributes
    ----------
    column : str
        Column of the survey's own identifier of the row.
    star : str, optional
        Column of the identifier of the star, where a star has several rows.
    spectrum : str, optional
        Column that names the spectrum (the ``id`` of the spectra of this recipe).
    other : mapping of str to str
        Identifiers in other surveys: the survey (``gaia_dr3``, ``tmass``, ...) and the column.
    """

    column: str
    star: str | None = None
    spectrum: str | None = None
    other: dict[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], str] = Field(default={})


class EpochFacts(Strict):
    """``epoch`` of ``[position]``, where a column gives it otherwise than as Julian years.

    Attributes
    ----------
    column : str
    unit : {"yr", "jd", "mjd"}
        Julian year, Julian date, or modified Julian date.
    otherwise : float, optional
        Julian year where a file lacks the column.
    """

    column: str
    unit: Literal["yr", "jd", "mjd"] = "yr"
    otherwise: float | None = None

    def years(self, values: Float64Array) -> Float64Array:
        """Return epochs (n,) as Julian years; the year 2000.0 is JD 2451545.0, by definition."""
        start = {"yr": None, "jd": 2451545.0, "mjd": 51544.5}[self.unit]
        return values if start is None else 2000.0 + (values - start) / 365.25

    def __str__(self) -> str:
        return self.column


class PositionFacts(Strict):
    """``[position]``: columns of position and proper motion.

    Attributes
    ----------
    ra, dec : str
        Columns, in degrees.
    pmra, pmdec : str, optional
        Columns, in mas/yr; pmra includes cos(dec).
    epoch : float, str or EpochFacts, optional
        Julian year of the positions, or the column that gives it; not given: unknown.
    system : {"icrs"}
    """

    ra: str
    dec: str
    pmra: str | None = None
    pmdec: str | None = None
    epoch: float | str | EpochFacts | None = None
    system: Literal["icrs"] = "icrs"

    @model_validator(mode="after")
    def _both(self) -> Self:
        # A star that is moved along one axis alone ends at a wrong place.
        if (self.pmra is None) != (self.pmdec is None):
            raise ValueError("'pmra' and 'pmdec' go together")
        return self


class AbundanceScale(Strict):
    """Solar scale of abundances and the elements of the alpha abundance, checked as one.

    Attributes
    ----------
    solar_scale : str, optional
        Name of the solar composition, one of `maury.labels.solar`.
    alpha : tuple of str or mapping of str to float, optional
        Elements (and weights) of [alpha/.]; none if none are stated.
    """

    solar_scale: str | None = None
    alpha: tuple[str, ...] | dict[str, Positive] = ()

    @property
    def convention(self) -> Convention:
        """Solar scale and alpha elements, for conversion."""
        return Convention.of(self.solar_scale, self.alpha)

    @model_validator(mode="after")
    def _known(self) -> Self:
        try:
            _ = self.convention
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class AbundanceFacts(AbundanceScale):
    """``[abundances]``: conventions of the abundances.

    Attributes
    ----------
    solar_scale : str, optional
        Name of the solar composition, one of `maury.labels.solar`.
    ratio : {"x_h", "x_fe", "x_m"}, optional
        What the survey's catalogue gives for single elements.
    alpha : tuple of str
        Elements of its alpha abundance; none if it states none.
    note : str
    """

    alpha: tuple[str, ...] = ()
    ratio: Literal["x_h", "x_fe", "x_m"] | None = None
    note: str = ""


class ArmFacts(Strict):
    """``[[spectra.arm]]``: one of several wavelength ranges, each a store of its own.

    Attributes
    ----------
    name : str
        What ``--arm`` takes.
    reader : str
        Reader of this arm, in place of that of the spectra.
    grid, resolving_power, at_rest
        The same.
    columns : mapping of str to ColumnConfig
        Columns beside those of the spectra, or in place of them.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]
    reader: ReaderName | None = None
    grid: ResampleConfig | None = None
    resolving_power: Annotated[float, Field(gt=0)] | None = None
    at_rest: bool | None = None
    columns: dict[str, ColumnConfig] = Field(default={})


class SpectraFacts(Strict):
    """``[spectra]``: how the spectra are published.

    Attributes
    ----------
    reader : str
        Name of the published format (`maury.survey.readers.formats`).
    medium : {"air", "vacuum"}, optional
        Not given where the files say it.
    resolving_power : float, optional
        lambda / FWHM; not given where it is unknown.
    grid : ResampleConfig, optional
        Grid that the spectra are put on; without it all must stand on that of the first.
    at_rest : bool, optional
        Whether they are shifted to the rest frame; not given where that is not stated.
    normalised : bool
        Whether they are divided by the continuum.
    columns : mapping of str to ColumnConfig
        Columns of the survey, from the facts (header cards, or columns) of each spectrum.
    arm : tuple of ArmFacts
        The first is taken unless a user says otherwise.
    note : str
    """

    reader: ReaderName
    medium: Medium | None = None
    resolving_power: Annotated[float, Field(gt=0)] | None = None
    grid: ResampleConfig | None = None
    at_rest: bool | None = None
    normalised: bool = False
    columns: dict[str, ColumnConfig] = Field(default={})
    arm: tuple[ArmFacts, ...] = ()
    note: str = ""


class SurveyRecipe(Strict):
    """A public survey.

    Attributes
    ----------
    name, title, description : str
    kind : {"catalogue", "spectra", "both"}
    citation : tuple of str
        Keys of the bibliography.
    documentation : str
        Page of the data model.
    acknowledgement, licence : str
        As the survey asks for; empty if it does not say.
    file, query, table, id, position, columns, abundances, cut, spectra
        See their classes. `columns` maps columns of ``maury`` to those of the catalogue.
    label : tuple of mapping
        Definitions of further labels, as in `maury.labels.definitions`.
    observable : tuple of ObservableConfig
        Definitions of other columns, which may be arrays.
    """

    name: Name
    title: str
    kind: Literal["catalogue", "spectra", "both"]
    description: str
    citation: tuple[str, ...]
    documentation: Address
    acknowledgement: str = ""
    licence: str = ""
    file: tuple[FileEntry, ...] = ()
    query: QueryFacts | None = None
    table: TableFacts = TableFacts()
    id: IdFacts | None = None
    position: PositionFacts | None = None
    columns: dict[str, ColumnConfig] = Field(default={})
    abundances: AbundanceFacts | None = None
    cut: tuple[Cut, ...] = ()
    spectra: SpectraFacts | None = None
    label: tuple[dict[str, Any], ...] = ()
    observable: tuple[ObservableConfig, ...] = ()

    @field_validator("cut", "file")
    @classmethod
    def _once(cls, given: tuple[Any, ...]) -> tuple[Any, ...]:
        names = [item.name for item in given]
        # Cuts are switched by name: two of one name could not be told apart.
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(map(repr, twice))} stands twice; names must differ")
        return given

    @model_validator(mode="after")
    def _complete(self) -> Self:
        # Told when the recipe is read, and not after an hour of downloads.
        if self.kind != "catalogue" and self.spectra is None:
            raise ValueError(f"a recipe of kind {self.kind!r} needs [spectra]")
        if self.kind != "spectra" and (self.id is None or not self.columns):
            raise ValueError(f"a recipe of kind {self.kind!r} needs [id] and [columns]")
        return self

    @property
    def labels(self) -> tuple[Label, ...]:
        """Labels that surveys made with this recipe know, the default ones and its own."""
        return labels_module.extend(labels_module.parse(self.label))

    @property
    def definitions(self) -> dict[str, Column]:
        """Every column that a survey made with this recipe may have, by name."""
        return columns_module.known(self.labels) | {
            column.name: column for parts in self._further.values() for column in parts
        }

    def parts(self, name: str) -> tuple[Column, ...]:
        """Return the columns that an entry of `columns` fills: several, if it is of arrays."""
        further = self._further
        return further[name] if name in further else (self.definitions[name],)

    @property
    def _further(self) -> dict[str, tuple[Column, ...]]:
        return {
            name: entry.parts(name)
            for entry in self.observable
            for name in (entry.name, f"{entry.name}_error")
        }

    def cuts(self, *, without: tuple[str, ...] = (), also: tuple[str, ...] = ()) -> tuple[Cut, ...]:
        """Return the default cuts, without some of them, and with some that are off by default.

        Raises
        ------
        UnknownName
            If a name is not that of a cut.
        """
        known = [cut.name for cut in self.cut]
        for name in (*without, *also):
            check_known(f"cut of {self.name}", name, known)
        return tuple(
            cut for cut in self.cut if cut.name in also or (cut.default and cut.name not in without)
        )


def names() -> tuple[str, ...]:
    """Return the names of the recipes that ship with the package, sorted."""
    folder = resources.files("maury.survey.archives") / "recipes"
    return tuple(
        sorted(
            item.name.removesuffix(".toml")
            for item in folder.iterdir()
            if item.name.endswith(".toml")
        )
    )


def load(name_or_path: str | Path) -> SurveyRecipe:
    """Read a recipe by its name, or from a TOML file.

    Parameters
    ----------
    name_or_path : str or Path
        One of `names`, or the path of a file ending in ``.toml``.

    Raises
    ------
    UnknownName
        If it is neither.
    ConfigError
        Naming everything that is wrong in the file, at once.
    """
    if isinstance(name_or_path, Path) or name_or_path.endswith(".toml"):
        path = Path(name_or_path)
        return _recipe_of(read_toml(path, what="the recipe"), str(path))
    name = check_known("survey recipe", name_or_path, names())
    file = resources.files("maury.survey.archives") / "recipes" / f"{name}.toml"
    recipe = parse(file.read_text("utf-8"), what=f"the recipe {name}")
    # Provenance and the command line go by the name, files by their own.
    assert recipe.name == name, "a recipe's file is called by its name"
    return recipe


def parse(text: str, *, what: str) -> SurveyRecipe:
    """Read a recipe from TOML.

    Parameters
    ----------
    text : str
        The document.
    what : str
        Where it comes from, for the message.

    Raises
    ------
    ConfigError
        Naming everything that is wrong, at once.
    """
    return _recipe_of(parse_toml(text.encode(), what=what), what)


_LEAST = """\
name = "my-survey"
title = "My survey"
kind = "catalogue"
description = "Labels of my stars"
citation = []
documentation = "https://example.org"
[id]
column = "STAR"
[columns]
teff = "TEFF"
"""
"""The least recipe of a catalogue, as messages show it."""


def _lacking(document: Mapping[str, Any]) -> list[str]:
    """Return what a recipe lacks, in one text with an example; nothing if it is whole."""
    kind = document.get("kind")
    needed = [n for n, field in SurveyRecipe.model_fields.items() if field.is_required()]
    needed += [] if kind == "spectra" else ["id", "columns"]
    needed += [] if kind not in ("spectra", "both") else ["spectra"]
    absent = [name for name in needed if name not in document]
    if not absent:
        return []
    tables = ("id", "columns", "spectra")
    listed = ", ".join(f"[{name}]" if name in tables else name for name in absent)
    example = _LEAST if kind not in ("spectra", "both") else ""
    shown = f"; the least that a catalogue needs is:\n{example}" if example else ""
    return [f"it lacks {listed}, which must be given{shown}"]


def _tells_of_lacking(text: str) -> bool:
    place, _, why = text.partition(": ")
    return (why == "must be given" and "." not in place) or why.startswith("a recipe of kind ")


def _recipe_of(document: dict[str, Any], what: str) -> SurveyRecipe:
    problems = _lacking(document)
    labels = labels_of(document, problems)
    found: list[str] = []
    recipe = validated(document, SurveyRecipe, found)
    # What is lacking is told once, with an example, and not key by key.
    problems += [text for text in found if not (problems and _tells_of_lacking(text))]
    problems += unknown_columns(document, labels)
    spectra = document.get("spectra")
    if isinstance(spectra, Mapping):
        # Columns of spectra may fill observables, which stand at the top of the file.
        own = {**spectra, "observable": document.get("observable")}
        problems += [f"spectra.{p}" for p in unknown_columns(own, labels)]
    if problems or recipe is None:
        raise ConfigError(f"{what} is wrong: " + "; ".join(problems))
    return recipe
