"""What recipes of public surveys say of the files that a reader opens."""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from maury.survey.archives.ingest import chosen_reader
from maury.survey.archives.recipe import ArmFacts, SpectraFacts, load, names
from maury.survey.guessing.document import Entry
from maury.survey.readers.config import ColumnConfig, ResampleConfig

_T = TypeVar("_T")


@dataclass(frozen=True)
class Known:
    """Facts on which all recipes of a reader agree; None where they do not, or say nothing.

    Attributes
    ----------
    recipes : tuple of str
        Their names.
    arm : str or None
        What they call the arm of this reader.
    at_rest : bool or None
    resolving_power : float or None
    grid : ResampleConfig or None
        Grid that the spectra are put on.
    columns : mapping of str to ColumnConfig
    """

    recipes: tuple[str, ...]
    arm: str | None
    at_rest: bool | None
    resolving_power: float | None
    grid: ResampleConfig | None
    columns: Mapping[str, ColumnConfig]

    @property
    def who(self) -> str:
        """Return whose word this is, for comments."""
        return f"the recipe{'s' * (len(self.recipes) > 1)} {', '.join(self.recipes)}"

    @property
    def says(self) -> str:
        """Return the verb that belongs to `who`."""
        return "says" if len(self.recipes) == 1 else "say"

    def entries(self, names: Sequence[str], ambiguous: Container[str] = ()) -> list[Entry]:
        """Return entries of ``[columns]`` for facts of the spectra.

        Parameters
        ----------
        names : sequence of str
            What the spectra have.
        ambiguous : container of str
            Names that other tables have as well.
        """
        why = f"As {self.who} {self.says}."
        return [
            Entry(target, _written(column, own=column.name in ambiguous), why)
            for target, column in self.columns.items()
            if column.name in names
        ]


def _written(column: ColumnConfig, *, own: bool) -> object:
    more = column.model_dump(exclude_defaults=True, exclude={"optional"})
    more |= {"table": "spectra"} if own else {}
    return more if len(more) > 1 else column.name


@cache
def known_of(reader: str) -> Known | None:
    """Return what the recipes that ship say of the files of a reader, None if none names it."""
    found: list[tuple[str, SpectraFacts, ArmFacts | None]] = []
    for name in names():
        spectra = load(name).spectra
        if spectra is None:
            continue
        # With arms, what stands above them holds for each.
        arms: Sequence[ArmFacts | None] = spectra.arm or (None,)
        found += [(name, spectra, arm) for arm in arms if chosen_reader(spectra, arm) == reader]
    if not found:
        return None
    whole = [spectra for _, spectra, _ in found]
    arms = [arm for _, _, arm in found]
    columns = [
        {**spectra.columns, **(arm.columns if arm is not None else {})} for _, spectra, arm in found
    ]
    return Known(
        tuple(name for name, _, _ in found),
        _agreed([None if arm is None else arm.name for arm in arms]),
        _agreed([_own(arm, "at_rest", one.at_rest) for arm, one in zip(arms, whole, strict=True)]),
        _agreed(
            [
                _own(arm, "resolving_power", one.resolving_power)
                for arm, one in zip(arms, whole, strict=True)
            ]
        ),
        _agreed([_own(arm, "grid", one.grid) for arm, one in zip(arms, whole, strict=True)]),
        {
            target: column
            for target, column in columns[0].items()
            if all(other.get(target) == column for other in columns)
        },
    )


def _own(arm: ArmFacts | None, name: str, otherwise: _T) -> _T:
    value: _T | None = None if arm is None else getattr(arm, name)
    return otherwise if value is None else value


def _agreed(values: Sequence[_T | None]) -> _T | None:
    return values[0] if all(value == values[0] for value in values) else None
