"""Stellar labels, defined once: name, symbol, unit, UCD, description, plotting range.

Catalogue headers, documentation tables, plots and tests derive from these definitions. A survey or
a model carries the definitions of its own labels, so that users can add others in TOML::

    [[label]]
    name = "ca_fe"
    symbol = "[Ca/Fe]"
    unit = "dex"
    ucd = "phys.abund"
    description = "Calcium abundance relative to iron"
    range = [-0.4, 0.6]
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from maury.errors import ConfigError, check_known
from maury.io.config_files import mistakes, read_toml


class Label(BaseModel):
    """One stellar label.

    Attributes
    ----------
    name : str
        Column name, lower case, for example ``teff`` or ``mg_fe``.
    symbol : str
        How a figure or table names it, for example ``[Mg/Fe]``.
    unit : str
        ``K``, ``dex`` or any unit that astropy knows.
    ucd : str
        IVOA UCD1+ word.
    description : str
        One line of text.
    range : (float, float)
        Plotting range, in `unit`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,31}$")]
    symbol: str
    unit: str
    ucd: str = "phys.abund"
    description: str
    range: tuple[float, float]

    @field_validator("name")
    @classmethod
    def _free_suffix(cls, name: str) -> str:
        # Its column would be that of the error of another label.
        if name.endswith("_error"):
            raise ValueError("a label's name may not end in '_error'")
        return name

    @model_validator(mode="after")
    def _increasing_range(self) -> "Label":
        # Written so that NaN is refused too.
        if not self.range[0] < self.range[1]:
            raise ValueError(f"range must increase, got {self.range}")
        return self

    @property
    def error_name(self) -> str:
        """Name of the column that holds the 1 sigma error of this label."""
        return f"{self.name}_error"

    @property
    def formal_error_name(self) -> str:
        """Name of the column of what networks or a method state as error, uncalibrated."""
        return f"{self.name}_formal_error"

    @property
    def upper_limit_name(self) -> str:
        """Name of the column that says where the value of this label is an upper limit."""
        return f"{self.name}_upper_limit"

    @property
    def axis(self) -> str:
        """Axis text for figures: the symbol, and the unit in brackets."""
        return self.symbol if self.symbol.startswith("[") else f"{self.symbol} [{self.unit}]"


def _abundance(name: str, symbol: str, description: str, low: float, high: float) -> Label:
    ucd = "phys.abund.Fe" if name == "fe_h" else "phys.abund.Z" if name == "m_h" else "phys.abund"
    return Label(
        name=name, symbol=symbol, unit="dex", ucd=ucd, description=description, range=(low, high)
    )


LABELS: tuple[Label, ...] = (
    Label(
        name="teff",
        symbol="Teff",
        unit="K",
        ucd="phys.temperature.effective",
        description="Effective temperature",
        range=(3500.0, 7500.0),
    ),
    Label(
        name="logg",
        symbol="log g",
        unit="dex",
        ucd="phys.gravity",
        description="Logarithm of the surface gravity in cm/s2",
        range=(0.0, 5.0),
    ),
    _abundance("m_h", "[M/H]", "Overall metallicity relative to the Sun", -2.0, 0.6),
    _abundance("fe_h", "[Fe/H]", "Iron abundance relative to the Sun", -2.0, 0.6),
    _abundance("alpha_m", "[alpha/M]", "Alpha-element abundance relative to metals", -0.2, 0.5),
    _abundance("si_fe", "[Si/Fe]", "Silicon abundance relative to iron", -0.3, 0.6),
    _abundance("al_fe", "[Al/Fe]", "Aluminium abundance relative to iron", -0.6, 0.8),
    _abundance("mg_fe", "[Mg/Fe]", "Magnesium abundance relative to iron", -0.3, 0.6),
    _abundance("ni_fe", "[Ni/Fe]", "Nickel abundance relative to iron", -0.4, 0.3),
)
"""The nine labels of the RAVE and APOGEE case, in the order of the published network's output."""

LABEL_NAMES: tuple[str, ...] = tuple(label.name for label in LABELS)


def select(names: Iterable[str], known: Iterable[Label] = LABELS) -> tuple[Label, ...]:
    """Return the definitions of `names`, in that order.

    Raises
    ------
    UnknownName
        If a name is not defined in `known`.
    """
    table = {label.name: label for label in known}
    return tuple(table[check_known("label", name, table)] for name in names)


def parse(rows: Iterable[Mapping[str, object]]) -> tuple[Label, ...]:
    """Build labels from plain mappings, as read from TOML or JSON.

    Raises
    ------
    ConfigError
        Naming every wrong or unknown key of every label, and every name that stands twice.
    """
    labels: list[Label] = []
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            labels.append(Label.model_validate(row))
        except ValidationError as error:
            # All mistakes in one go, not one a run.
            problems += [f"label {number}, {mistake}" for mistake in mistakes(error, Label)]
    names = [label.name for label in labels]
    twice = sorted({name for name in names if names.count(name) > 1})
    problems += [f"label {name!r} is defined twice" for name in twice]
    if problems:
        raise ConfigError("label definitions are wrong: " + "; ".join(problems))
    return tuple(labels)


def extend(extra: Iterable[Label], known: Iterable[Label] = LABELS) -> tuple[Label, ...]:
    """Return `known` followed by `extra`; a label of the same name is replaced where it stands."""
    table = {label.name: label for label in known}
    table.update({label.name: label for label in extra})
    return tuple(table.values())


def load(path: Path | str) -> tuple[Label, ...]:
    """Read additional labels from a TOML file with ``[[label]]`` tables.

    Raises
    ------
    ConfigError
        If the file is not TOML, or a definition is wrong.
    """
    rows = read_toml(path, what="label definitions").get("label", [])
    if not isinstance(rows, list) or not rows:
        raise ConfigError(f"{path} has no [[label]] tables; write one per label")
    return parse(rows)
