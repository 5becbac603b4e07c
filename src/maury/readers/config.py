"""The TOML file that describes spectra and tables of any survey."""

import tomllib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from maury import columns as columns_module
from maury import labels as labels_module
from maury.errors import ConfigError
from maury.labels import LABELS, Label
from maury.naming import suggestion
from maury.spectra import Medium

Key = Annotated[int, Field(ge=0, strict=True)] | str
Format = Literal["fits-image", "fits-table", "votable", "parquet", "npz", "npy", "ascii"]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArrayRef(_Strict):
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
        if isinstance(given, int) and not isinstance(given, bool):
            return {"hdu": given}
        return given


class SpectraConfig(_Strict):
    """``[spectra]``: one file, or a folder with one file per star."""

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
        return self


class WavelengthConfig(_Strict):
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


class ResampleConfig(_Strict):
    """``resample``: the linear grid, in angstrom, that every spectrum is put on."""

    start: Annotated[float, Field(gt=0)]
    step: Annotated[float, Field(gt=0)]
    n: Annotated[int, Field(ge=2, le=10_000_000)]


class TableConfig(_Strict):
    """``[[table]]``: a table joined to the spectra by `id`, or row by row without it."""

    file: Path
    name: str | None = None
    hdu: Key | None = None
    id: str | None = None

    @property
    def title(self) -> str:
        """How ``columns.<name>.table`` calls it."""
        return self.name or self.file.name


class ColumnConfig(_Strict):
    """One entry of ``[columns]``: the source column; a text alone is its name."""

    name: str
    unit: str | None = None
    missing: tuple[float, ...] | None = None
    table: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _short(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @field_validator("missing", mode="before")
    @classmethod
    def _one_number(cls, given: Any) -> Any:
        return [given] if isinstance(given, int | float) else given


class IngestConfig(_Strict):
    """The whole file.

    Attributes
    ----------
    spectra, wavelength, resample, table, columns
        See their classes.
    simulated : bool
        Whether the spectra are simulated; a header card ``SIMULATE = T`` says so too.
    missing : tuple of float, optional
        Numbers that mean "missing" in every column that does not say otherwise.
    label : tuple of mapping
        Definitions of further labels, as in `maury.labels`.
    """

    spectra: SpectraConfig
    wavelength: WavelengthConfig
    resample: ResampleConfig | None = None
    table: tuple[TableConfig, ...] = ()
    columns: dict[str, ColumnConfig] = {}
    simulated: bool = False
    missing: tuple[float, ...] | None = None
    label: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="after")
    def _known_tables(self) -> Self:
        titles = [table.title for table in self.table]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"two tables are called {twice[0]!r}; give one a 'name'")
        for name, column in self.columns.items():
            if column.table is not None and column.table not in [*titles, "spectra"]:
                hint = suggestion(column.table, [*titles, "spectra"])
                raise ValueError(f"columns.{name}: no table is called {column.table!r}{hint}")
        return self


def load_config(path: Path) -> tuple[IngestConfig, tuple[Label, ...]]:
    """Read a configuration and the labels that its survey knows.

    Raises
    ------
    ConfigError
        If the file is not TOML; or naming everything that is wrong in it, at once.
    """
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"cannot read the configuration {path}: {error}") from error
    problems: list[str] = []
    labels = LABELS
    try:
        rows = document.get("label", [])
        if isinstance(rows, list) and all(isinstance(row, dict) for row in rows):
            labels = labels_module.extend(labels_module.parse(rows))
    except ConfigError as error:
        problems.append(str(error))
    config = None
    try:
        config = IngestConfig.model_validate(document)
    except ValidationError as error:
        problems += [_in_words(e) for e in error.errors()]
    problems += _unknown_columns(document.get("columns"), labels)
    if problems or config is None:
        raise ConfigError(f"{path} is wrong: " + "; ".join(problems))
    return config, labels


def _unknown_columns(given: Any, labels: Sequence[Label]) -> list[str]:
    known = columns_module.known(labels)
    names = given if isinstance(given, Mapping) else ()
    return [
        f"columns.{name}: unknown column{suggestion(name, known)}; a further label needs a "
        "[[label]] definition"
        for name in names
        if name not in known
    ]


def _in_words(error: Any) -> str:
    place = ".".join(map(str, error["loc"])) or "file"
    if error["type"] == "extra_forbidden":
        fields = _fields_at(error["loc"][:-1])
        hint = suggestion(str(error["loc"][-1]), fields)
        return f"{place}: unknown key{hint} (known: {', '.join(fields)})"
    if error["type"] == "missing":
        return f"{place}: must be given"
    return f"{place}: {error['msg'].removeprefix('Value error, ')}, got {error['input']!r:.60}"


def _fields_at(location: Sequence[int | str]) -> list[str]:
    model: type[BaseModel] = IngestConfig
    for key in location:
        if isinstance(key, str) and key in model.model_fields:
            model = _model_in(model.model_fields[key].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    parts = typing.get_args(annotation)
    if not parts and isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for found in map(_model_in, parts) if found is not None), None)
