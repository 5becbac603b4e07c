"""The flow table: how many stars each step took in and let through, and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from maury.errors import SurveyFileError
from maury.io.files import writing
from maury.io.tables import write_ecsv
from maury.survey.store import Survey

KEY = "flow"
"""Where the provenance of a survey has its flow table."""


@dataclass(frozen=True)
class FlowStep:
    """One line.

    Attributes
    ----------
    of : str
        What is counted: ``spectra``, or rows of a catalogue by its name.
    step : str
        Short name.
    n_in, n_out : int
        Rows before and after.
    why : str
        What the step does, or why rows left.
    source : str
        Who recommends it: a bibliography key, a web page, or the recipe.
    """

    of: str
    step: str
    n_in: int
    n_out: int
    why: str
    source: str = ""

    @property
    def n_removed(self) -> int:
        """Rows that left here; 0 where a step adds nothing and removes nothing."""
        return self.n_in - self.n_out


@dataclass
class Flow:
    """Steps in the order in which they were taken."""

    steps: list[FlowStep] = field(default_factory=list)

    def add(self, of: str, step: str, n_in: int, n_out: int, *, why: str, source: str = "") -> None:
        """Take down a step; what comes out of one must go into the next of the same kind."""
        # Counts come as numpy's integers, which JSON does not write.
        self.steps.append(FlowStep(of, step, int(n_in), int(n_out), why, source))

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[FlowStep]:
        return iter(self.steps)

    def of(self, what: str) -> list[FlowStep]:
        """Return the steps that count one thing."""
        return [step for step in self.steps if step.of == what]

    def rows(self) -> list[tuple[str, ...]]:
        """Return the table in words, with a header."""
        rows: list[tuple[str, ...]] = [("of", "step", "in", "out", "removed", "why", "source")]
        return rows + [
            (s.of, s.step, str(s.n_in), str(s.n_out), str(s.n_removed), s.why, s.source)
            for s in self.steps
        ]

    def to_list(self) -> list[dict[str, Any]]:
        """Return it as JSON."""
        return [asdict(step) for step in self.steps]

    @classmethod
    def from_list(cls, rows: Sequence[Mapping[str, Any]]) -> "Flow":
        """Return what `to_list` wrote."""
        return cls([FlowStep(**row) for row in rows])

    @classmethod
    def of_survey(cls, survey: Survey) -> "Flow":
        """Return the flow table of a survey that `maury build` made.

        Raises
        ------
        SurveyFileError
            If it has none.
        """
        rows = survey.provenance.get(KEY)
        if rows is None:
            raise SurveyFileError(f"{survey.path} has no flow table: 'maury build' did not make it")
        return cls.from_list(rows)

    def write(self, path: Path | str, *, title: str = "", overwrite: bool = False) -> None:
        """Write it as ECSV.

        Raises
        ------
        OutputExists
            If `path` exists and `overwrite` is false.
        """
        from astropy.table import Table

        names = ("of", "step", "n_in", "n_out", "n_removed", "why", "source")
        columns = [[getattr(step, name) for step in self.steps] for name in names]
        table = Table(columns, names=names, meta={"title": title})
        with writing(Path(path), overwrite=overwrite) as partial:
            write_ecsv(partial, table, delimiter=",")
