"""How good a model is on stars that took no part in making it."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from maury.statistics import LabelStatistics


@dataclass(frozen=True)
class ValidationReport:
    """Statistics of a model on stars whose labels are known.

    Attributes
    ----------
    statistics : tuple of LabelStatistics
        One per label of the model.
    simulated : bool
        Whether the spectra are simulated; then these figures say nothing about real spectra.
    n_row, n_star : int
        Spectra measured, and the stars that they are of.
    stars : str
        Which stars: in words.
    model, survey : str
        Names of the model and the survey.
    warning : str
        Why the stars are not an independent test; empty if they are.
    """

    statistics: tuple[LabelStatistics, ...]
    simulated: bool
    n_row: int
    n_star: int
    stars: str
    model: str = ""
    survey: str = ""
    warning: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a plain mapping, ready for JSON: NaN becomes None."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "statistics"}
        return {**plain, "statistics": [one.to_json() for one in self.statistics]}

    def title(self) -> str:
        """Return one line that says what was measured, with the mark of simulated spectra."""
        mark = "SIMULATED spectra: " if self.simulated else ""
        return f"{mark}{self.n_row} spectra of {self.n_star} stars ({self.stars})"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return a header and one row of text per label, for a terminal or a page."""
        return TABLE_HEADER, [_table_row(one) for one in self.statistics]


TABLE_HEADER = (
    "label",
    "unit",
    "n",
    "bias",
    "median",
    "sigma",
    "robust sigma",
    "rms",
    "slope",
    "corr.",
    "in 1 sigma",
    "in 2 sigma",
    "robust z",
    "rank corr.",
)


def _table_row(s: LabelStatistics) -> tuple[str, ...]:
    digits = 1 if s.unit == "K" else 3

    def number(value: float, places: int = 2) -> str:
        return f"{value:.{places}f}" if np.isfinite(value) else "-"

    def fraction(value: float, error: float) -> str:
        return f"{value:.2f} +- {error:.2f}" if np.isfinite(value) else "-"

    sizes = (s.bias, s.bias_robust, s.scatter, s.scatter_robust, s.rms)
    return (
        s.symbol,
        s.unit,
        str(s.n),
        *(number(value, digits) for value in sizes),
        number(s.slope),
        number(s.correlation),
        fraction(s.coverage_1sigma, s.coverage_1sigma_error),
        fraction(s.coverage_2sigma, s.coverage_2sigma_error),
        number(s.z_scatter_robust),
        number(s.error_rank_correlation),
    )
