"""The TOML file that describes spectra and tables of any survey."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    field_validator,
    model_validator,
)

from maury.errors import ConfigError, suggestion
from maury.io.config_files import read_toml, validated
from maury.labels import columns as columns_module
from maury.labels import definitions as labels_module
from maury.labels.columns import Column
from maury.labels.definitions import LABELS, Label
from maury.spectra.noise import Correlation
from maury.spectra.spectra import Medium

Key = Annotated[int, Field(ge=0, strict=True)] | str
Format = Literal["fits-image", "fits-table", "votable", "parquet", "npz", "npy", "ascii"]


class Strict(BaseModel):
    """A part of a document: unknown keys are mistakes."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ArrayRef(Strict):
    """Where an array is: a column or array `name`, an `hdu`, another `file`.

    A text alone is a name, a number alone an HDU.
    """

    name: str | None = None
    hdu: Key | None = None
    file: Path | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        if isinstance(given, str):
            return {"name": given}
        # `true` is a whole number in Python, and would be HDU 1.
        if isinstance(given, int) and not isinstance(given, bool):
            return {"hdu": given}
        return given


class SpectraConfig(Strict):
    """``[spectra]``: one file, or a folder with one file per star.

    A `reader` is the name of a published format (`maury.survey.readers.formats`), which says the
    rest.
    """

    reader: str | None = None
    file: Path | None = None
    folder: Path | None = None
    pattern: str = "*"
    format: Format | None = None
    hdu: Key | None = None
    flux: str = "flux"
    ivar: ArrayRef | None = None
    error: ArrayRef | None = None
    orientation: Literal["rows", "columns"] | None = None
    id: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.file is None) == (self.folder is None):
            raise ValueError("give either 'file' or 'folder'")
        if self.ivar is not None and self.error is not None:
            raise ValueError("give either 'ivar' or 'error'")
        # A key that the format settles would be ignored without a word.
        settled = sorted(self.model_fields_set - {"reader", "file", "folder", "pattern"})
        if self.reader is not None and settled:
            raise ValueError(f"'reader' settles the format: leave out {', '.join(settled)}")
        return self


class WavelengthConfig(Strict):
    """``[wavelength]``: medium, and the grid unless the files hold it."""

    medium: Medium
    unit: str | None = None
    values: ArrayRef | None = None
    start: float | None = None
    step: float | None = None
    n: Annotated[int, Field(ge=2)] | None = None
    log: bool | None = None

    @model_validator(mode="after")
    def _one_grid(self) -> Self:
        if (self.start is None) != (self.step is None):
            raise ValueError("'start' and 'step' go together")
        if self.start is not None and self.values is not None:
            raise ValueError("give either 'start' and 'step', or 'values'")
        if self.step is not None and not self.step > 0:
            raise ValueError(f"'step' must be positive, got {self.step}")
        return self


class ResampleConfig(Strict):
    """``resample``: the grid that every spectrum is put on.

    It is ``start + step k`` angstrom for k = 0 to n - 1, or ten to that power if `log`.
    """

    start: Annotated[float, Field(gt=0)]
    step: Annotated[float, Field(gt=0)]
    n: Annotated[int, Field(ge=2, le=10_000_000)]
    log: bool = False


Window = tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class ArmConfig(Strict):
    """``[[arm]]``: spectra of the same stars in another stretch of wavelengths.

    Attributes
    ----------
    name : str
        For messages.
    spectra, wavelength, resample
        The files of the arm, their wavelengths, and the grid that they are put on.
    window : (float, float), optional
        First and last wavelength that are kept, in angstrom.
    """

    name: str
    spectra: SpectraConfig
    wavelength: WavelengthConfig | None = None
    resample: ResampleConfig | None = None
    window: Window | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        _require_wavelength(self.spectra, self.wavelength)
        if self.window is not None:
            _check_windows([self.window])
        return self


class ExposuresConfig(Strict):
    """``[exposures]``: what becomes of several spectra of one star.

    Attributes
    ----------
    mode : {"repeats", "coadd"}
        Keep each as a row of its own, or add them up, weighted by inverse variance.
    velocity : str, optional
        Column by which each is shifted to rest before, as ``radial_velocity``; without, they are
        added as they stand.
    """

    mode: Literal["repeats", "coadd"]
    velocity: str | None = None

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.mode == "repeats" and self.velocity is not None:
            raise ValueError("'velocity' is for mode = \"coadd\"; leave it out")
        return self


class ObservableConfig(Strict):
    """``[[observable]]``: a further number known of each star, and its 1 sigma error.

    Attributes
    ----------
    name : str
        Column of the survey; the error is ``<name>_error``.
    unit, ucd, description : str
        Unit as astropy writes it, IVOA's word for the kind, and a line of text.
    size : int, optional
        How many numbers a column of arrays gives; they become columns ``<name>_00``, ...
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    unit: str = ""
    ucd: str = ""
    description: str
    size: Annotated[int, Field(ge=1, le=1000)] | None = None

    @field_validator("name")
    @classmethod
    def _free(cls, name: str) -> str:
        # The ending marks the column of an error, which another observable may need.
        if name.endswith("_error"):
            raise ValueError("an observable's name may not end in '_error'")
        if name in columns_module.known():
            raise ValueError(f"{name!r} is a column already; map it in [columns]")
        return name

    def parts(self, mapped: str) -> tuple[Column, ...]:
        """Return the columns that the entry `mapped` of ``[columns]`` fills."""
        error = mapped == f"{self.name}_error"
        names = [self.name]
        if self.size is not None:
            names = list(columns_module.part_names(self.name, self.size))
        about = f"1 sigma error of {self.name}" if error else self.description
        ucd = ";".join(["stat.error", self.ucd]).rstrip(";") if error else self.ucd
        return tuple(
            Column(f"{name}_error" if error else name, self.unit, ucd, about) for name in names
        )


class ThroughConfig(Strict):
    """``through``: the column of another table that holds the identifiers of this one."""

    table: str
    column: str


class TableConfig(Strict):
    """``[[table]]``: a table joined to the spectra by `id`, or row by row without it.

    The values of `id` are identifiers of the spectra; or, if `through` names a column of another
    table, such as an observing log, what stands there for each spectrum.
    """

    file: Path
    name: str | None = None
    hdu: Key | None = None
    id: str | None = None
    through: ThroughConfig | None = None

    @model_validator(mode="after")
    def _joined_by_something(self) -> Self:
        if self.through is not None and self.id is None:
            raise ValueError("'through' needs 'id', the column of this table that it is found by")
        return self

    @property
    def title(self) -> str:
        """How ``columns.<name>.table`` calls it."""
        return self.name or self.file.name


class ColumnConfig(Strict):
    """One entry of ``[columns]``: the source column; a text alone is its name.

    Of a column that holds a vector a row, `index` is the element, from 0. An `optional` column
    that no table has is left out, with a warning. `offset` is added to values, in the unit of the
    survey: a zero point that is the same for all rows.
    """

    name: str
    index: Annotated[int, Field(ge=0, strict=True)] | None = None
    unit: str | None = None
    offset: float = 0.0
    missing: tuple[float, ...] | None = None
    table: str | None = None
    optional: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("missing", mode="before")
    @classmethod
    def _one_number(cls, given: Any) -> Any:
        return [given] if isinstance(given, int | float) else given


class IngestConfig(Strict):
    """The whole file.

    Attributes
    ----------
    spectra, wavelength, resample, table, columns, arm, exposures, observable
        See their classes. Spectra stand in ``[spectra]``, or in two ``[[arm]]`` or more.
    windows : tuple of (float, float), optional
        Stretches of wavelength that are kept, in angstrom.
    resolving_power : float, optional
        lambda / FWHM of the spectra.
    simulated : bool
        Whether the spectra are simulated; a header card ``SIMULATE = T`` says so too.
    missing : tuple of float, optional
        Numbers that mean "missing" in every column that does not say otherwise.
    skip_bad : bool
        Keep a file that cannot be read, as a row of bad pixels; its column ``unread`` says why.
    noise_correlation : tuple of float, optional
        Autocorrelation of the noise at lags of 1, 2, ... pixels of the files.
    at_rest : bool, optional
        Whether the spectra are in the rest frame of their stars; not given where it is unknown.
    label : tuple of mapping
        Definitions of further labels, as in `maury.labels.definitions`.
    """

    spectra: SpectraConfig | None = None
    wavelength: WavelengthConfig | None = None
    resample: ResampleConfig | None = None
    windows: tuple[Window, ...] = ()
    arm: tuple[ArmConfig, ...] = ()
    exposures: ExposuresConfig | None = None
    observable: tuple[ObservableConfig, ...] = ()
    table: tuple[TableConfig, ...] = ()
    columns: dict[str, ColumnConfig] = {}
    resolving_power: Annotated[float, Field(gt=0)] | None = None
    simulated: bool = False
    missing: tuple[float, ...] | None = None
    skip_bad: bool = False
    noise_correlation: Correlation | None = None
    at_rest: bool | None = None
    label: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _one_description(self) -> Self:
        if self.spectra is not None and not self.arm:
            _require_wavelength(self.spectra, self.wavelength)
            _check_windows(self.windows)
            return self
        if self.spectra is None and not self.arm:
            raise ValueError("spectra: must be given")
        # One meaning for each key: with arms, a key at the top would hold for which of them?
        whole = [name for name in ("spectra", "wavelength", "resample") if getattr(self, name)]
        if whole or self.windows:
            raise ValueError(
                f"with [[arm]], each arm says its own; leave out {', '.join(whole) or 'windows'}"
            )
        names = [arm.name for arm in self.arm]
        if len(names) < 2 or len(set(names)) < len(names):
            raise ValueError(f"give two [[arm]] or more, with different names, got {names}")
        return self

    @model_validator(mode="after")
    def _distinct_observables(self) -> Self:
        names = [c.name for entry in self.observable for c in entry.parts(entry.name)]
        # An array fills numbered columns, but `[columns]` calls it by this name, which must be free
        # too.
        names += [entry.name for entry in self.observable if entry.size is not None]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"observable {twice[0]!r} is defined twice")
        return self

    @property
    def arms(self) -> tuple[ArmConfig, ...]:
        """The arms; spectra without arms are the only one."""
        if self.spectra is None:
            return self.arm
        return (
            ArmConfig(
                name="spectra",
                spectra=self.spectra,
                wavelength=self.wavelength,
                resample=self.resample,
            ),
        )

    @property
    def further_columns(self) -> dict[str, tuple[Column, ...]]:
        """What each entry of ``[columns]`` that an observable allows fills."""
        return {
            name: entry.parts(name)
            for entry in self.observable
            for name in (entry.name, f"{entry.name}_error")
        }

    @model_validator(mode="after")
    def _known_tables(self) -> Self:
        titles = [table.title for table in self.table]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"two tables are called {twice[0]!r}; give one a 'name'")
        for number, table in enumerate(self.table):
            # Those above only: a table cannot be found by way of itself, nor in a circle.
            above = [*titles[:number], "spectra"]
            if table.through is not None and table.through.table not in above:
                raise ValueError(
                    f"table {table.title!r}: 'through' names {table.through.table!r}, which is no "
                    f"table above it{suggestion(table.through.table, above)} ({', '.join(above)})"
                )
        for name, column in self.columns.items():
            # The file of the spectra may be a table itself, and needs no [[table]] then.
            if column.table is not None and column.table not in [*titles, "spectra"]:
                hint = suggestion(column.table, [*titles, "spectra"])
                raise ValueError(f"columns.{name}: no table is called {column.table!r}{hint}")
        return self


def _require_wavelength(spectra: SpectraConfig, wavelength: WavelengthConfig | None) -> None:
    if wavelength is None and spectra.reader is None:
        raise ValueError("wavelength: must be given")
    settled = sorted(wavelength.model_fields_set - {"medium"}) if wavelength else []
    if spectra.reader is not None and settled:
        raise ValueError(
            f"wavelength: 'reader' settles the grid: leave out {', '.join(settled)} (medium may "
            "stay, for files that do not say it)"
        )


def _check_windows(windows: Sequence[Window]) -> None:
    edges = [edge for window in windows for edge in window]
    # All edges in one row: order within windows and between them is one condition.
    if any(one >= other for one, other in pairwise(edges)):
        raise ValueError(f"windows must increase and not overlap, got {[*windows]}")


def load_config(path: Path) -> tuple[IngestConfig, tuple[Label, ...]]:
    """Read a configuration and the labels that its survey knows.

    Raises
    ------
    ConfigError
        If the file is not TOML; or naming everything that is wrong in it, at once.
    """
    return parse_config(read_toml(path, what="the configuration"), path)


def parse_config(document: Mapping[str, Any], path: Path) -> tuple[IngestConfig, tuple[Label, ...]]:
    """Check a configuration in memory, as `load_config` does; `path` names it in messages.

    Raises
    ------
    ConfigError
        Naming everything that is wrong in it, at once.
    """
    problems: list[str] = []
    labels = labels_of(document, problems)
    config = validated(document, IngestConfig, problems)
    # Of the document, not the model, so that it is told even where that refuses something else.
    problems += unknown_columns(document, labels)
    if problems or config is None:
        raise ConfigError(f"{path} is wrong: " + "; ".join(problems))
    return config, labels


def labels_of(document: Mapping[str, Any], problems: list[str]) -> tuple[Label, ...]:
    """Return the labels known to a document with ``[[label]]`` tables; add its mistakes."""
    rows = document.get("label", [])
    # Tables of another kind are told of by the model of the whole document.
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        return LABELS
    try:
        return labels_module.extend(labels_module.parse(rows))
    except ConfigError as error:
        problems.append(str(error))
        return LABELS


def unknown_columns(document: Mapping[str, Any], labels: Sequence[Label]) -> list[str]:
    """Return what is wrong with the names in ``[columns]`` of a document."""
    given, observables = document.get("columns"), document.get("observable")
    known = list(columns_module.known(labels))
    for row in observables if isinstance(observables, list) else ():
        if isinstance(row, dict) and isinstance(row.get("name"), str):
            known += [row["name"], f"{row['name']}_error"]
    names = given if isinstance(given, Mapping) else ()
    return [
        f"columns.{name}: unknown column{suggestion(name, known)}; a further label needs a "
        "[[label]] definition, another number an [[observable]]"
        for name in names
        if name not in known
    ]
