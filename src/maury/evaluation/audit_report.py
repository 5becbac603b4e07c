"""What an audit found of the labels of a model: measured, or inferred from others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from maury.evaluation.sensitivity import Sensitivity
from maury.io.arrays import AnyArray

Verdict = Literal["measured", "inferred", "unknown"]

LEAST_GAIN = 0.10
"""A label whose scatter with all inputs is not this much below that without the spectrum is
inferred."""

ALL = "all inputs"
SPECTRUM = "spectrum alone"
PHOTOMETRY = "photometry alone"
NO_DISTANCE = "without parallax"
SHUFFLED = "shuffled spectra"
CONTROL = "spectra of like stars"

HEADER = ("label", "unit", "n", "all", "spectrum", "photometry", "gain", "verdict")
SWAP_HEADER = ("label", "unit", "like stars", "shuffled", "response")
MAGNITUDES_HEADER = ("label", "unit", "with", "colours only", "no photometry")


@dataclass(frozen=True)
class Case:
    """Scatter of one label in one case, over the same spectra in all cases.

    Attributes
    ----------
    name : str
        Which inputs there are.
    bias, scatter, scatter_error : float
        Mean and standard deviation of predicted minus true, and the sampling error of the latter
        by bootstrap over stars; in the unit of the label.
    """

    name: str
    bias: float
    scatter: float
    scatter_error: float


@dataclass(frozen=True)
class LabelAudit:
    """What a label is made of.

    Attributes
    ----------
    name, symbol, unit : str
        The label.
    n : int
        Spectra.
    cases : mapping of str to Case
        By name.
    basis : str
        Case with which `ALL` is compared.
    gain, gain_error : float
        1 - scatter / scatter in the case of `basis`, and its sampling error.
    verdict : {"measured", "inferred", "unknown"}
        Measured if the gain is at least `LEAST_GAIN`; unknown if nothing could be compared, or if
        the stars whose spectra are exchanged are too few to be alike, and the gain may be as large.
    response, response_error : float
        What an estimate moves by if the spectrum is that of a star with a label higher by one
        unit, the others being equal, by regression; and its error. 1 if the label is read from
        the spectrum alone, 0 if it follows from others.
    donor_spread, donor_mismatch : float
        Standard deviation of the label of the star whose spectrum was taken minus that of the star
        itself; and how unlike the two are in the other labels, root mean square over these, each
        in units of its scatter with all inputs.
    """

    name: str
    symbol: str
    unit: str
    n: int
    cases: Mapping[str, Case]
    basis: str
    gain: float
    gain_error: float
    verdict: Verdict
    response: float
    response_error: float
    donor_spread: float
    donor_mismatch: float

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping; what could not be measured is None."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "cases"}
        cases = {name: _plain(asdict(case)) for name, case in self.cases.items()}
        return _plain(plain) | {"cases": cases}


@dataclass(frozen=True)
class AuditReport:
    """Which labels of a model are measured.

    Attributes
    ----------
    labels : tuple of LabelAudit
        One per label of the model.
    sensitivities : tuple of Sensitivity
        At typical stars; empty where no theory knows the labels or the pixels.
    simulated : bool
        Whether the spectra are simulated; then the audit says nothing about real ones.
    n_row, n_star : int
        Spectra, and the stars that they are of.
    stars, model, survey : str
        Which stars, in words; names of the model and of the survey.
    warning : str
        Why the stars are not an independent test; empty if they are.
    note : str
        Why the verdict does not rest on photometry alone; empty if it does.
    inputs, absent : tuple of str
        What the stars had, and what the model takes and none of them had: ``spectrum``, bands,
        ``parallax``, ``a_v``, further columns.
    remarks : tuple of str
        What else a reader should know, in sentences.
    """

    labels: tuple[LabelAudit, ...]
    sensitivities: tuple[Sensitivity, ...]
    simulated: bool
    n_row: int
    n_star: int
    stars: str
    model: str = ""
    survey: str = ""
    warning: str = ""
    note: str = ""
    inputs: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()

    @property
    def grounds(self) -> str:
        """On which inputs the verdicts stand, and what the scatter was compared with."""
        basis = " and ".join(sorted({one.basis for one in self.labels}))
        return grounds(self.inputs, self.absent, basis)

    @property
    def title(self) -> str:
        """One line that says what was measured, with the mark of simulated spectra."""
        mark = "SIMULATED spectra: " if self.simulated else ""
        caution = f"; {self.warning}" if self.warning else ""
        return f"{mark}{self.n_row} spectra of {self.n_star} stars ({self.stars}){caution}"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping, without the sensitivity spectra."""
        parts = ("labels", "sensitivities")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in parts}
        several = {name: [one.to_dict() for one in getattr(self, name)] for name in parts}
        several["sensitivities"] = [_plain(one) for one in several["sensitivities"]]
        return plain | several

    def to_json(self) -> str:
        """Return strict JSON; what could not be measured is null."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def to_arrays(self) -> dict[str, AnyArray]:
        """Return the sensitivity spectra, and the gains, for `Model.with_arrays`.

        ``gain`` (n_label,) float64; for each type of star ``<type>_network`` and
        ``<type>_optimal``, both (n_label, n_pixel) float32.
        """
        arrays: dict[str, AnyArray] = {"gain": np.array([one.gain for one in self.labels])}
        for one in self.sensitivities:
            name = one.slug.replace("-", "_")
            arrays[f"{name}_network"] = one.network.astype(np.float32)
            arrays[f"{name}_optimal"] = one.optimal.astype(np.float32)
        return arrays

    def rows(self) -> list[tuple[str, ...]]:
        """Return the main table as text: the header, then one row per label."""
        return [
            HEADER,
            *(
                (
                    one.symbol,
                    one.unit,
                    str(one.n),
                    *(_scatter_text(one, name) for name in (ALL, SPECTRUM, PHOTOMETRY)),
                    _with_error(one.gain, one.gain_error, 2),
                    one.verdict,
                )
                for one in self.labels
            ),
        ]

    def swap_rows(self) -> list[tuple[str, ...]]:
        """Return as text what the spectra of other stars do: the header, one row per label."""
        return [
            SWAP_HEADER,
            *(
                (
                    one.symbol,
                    one.unit,
                    *(_scatter_text(one, name) for name in (CONTROL, SHUFFLED)),
                    _with_error(one.response, one.response_error, 2),
                )
                for one in self.labels
            ),
        ]

    def magnitude_rows(self) -> list[tuple[str, ...]]:
        """Return "to use or not to use absolute magnitudes" as text; no row if it cannot be said.

        Scatter with all inputs; without distance, so that colours are left; without photometry.
        """
        shown = (ALL, NO_DISTANCE, SPECTRUM)
        told = [one for one in self.labels if set(shown) <= one.cases.keys()]
        return [
            MAGNITUDES_HEADER,
            *(
                (one.symbol, one.unit, *(_scatter_text(one, name) for name in shown))
                for one in told
            ),
        ]

    def further_rows(self) -> list[tuple[str, ...]]:
        """Return as text what further columns tell: scatter with all, without each, by each alone.

        The header alone where the model takes none.
        """
        usual = {ALL, SPECTRUM, PHOTOMETRY, NO_DISTANCE, SHUFFLED, CONTROL}
        usual |= {f"without {name}" for name in ("A_V", "Gaia", "2MASS", "WISE")}
        found = {name: None for one in self.labels for name in one.cases if name not in usual}
        told = [one for one in self.labels if found and found.keys() <= one.cases.keys()]
        shown = (ALL, *found)
        return [
            ("label", "unit", *shown),
            *((one.symbol, one.unit, *(_scatter_text(one, n) for n in shown)) for one in told),
        ]

    def sensitivity_rows(self) -> list[tuple[str, ...]]:
        """Return a table as text: per label and type of star, correlation, and response of best.

        "0.88, 0.53 of 0.57" is a correlation of 0.88, and a response of 0.53 where the best linear
        estimator has 0.57.
        """
        symbols = {one.name: one.symbol for one in self.labels}
        names = self.sensitivities[0].label_names if self.sensitivities else ()
        return [
            ("label", *(one.star for one in self.sensitivities)),
            *(
                (symbols[name], *(one.summary(k) for one in self.sensitivities))
                for k, name in enumerate(names)
            ),
        ]


def grounds(inputs: Sequence[str], absent: Sequence[str], basis: str) -> str:
    """Say on which inputs verdicts stand, and what the scatter was compared with.

    Parameters
    ----------
    inputs, absent : sequence of str
        As of `AuditReport`.
    basis : str
        As of `LabelAudit`.
    """
    lacking = f", none of {', '.join(absent)}" if absent else ""
    had = ", ".join(inputs) or "inputs that were not recorded"
    return f"on {had}{lacking}; compared with {basis}"


def differences(report: AuditReport, earlier: Mapping[str, Any]) -> tuple[str, ...]:
    """Say where the verdicts of a report differ from those of an earlier audit, and why they may.

    Parameters
    ----------
    report : AuditReport
    earlier : mapping
        Of `audit_metadata`.

    Returns
    -------
    tuple of str
        A sentence, or none where no verdict differs.
    """
    known = earlier.get("labels")
    before = known if isinstance(known, Mapping) else {}
    said = {one.name: before.get(one.name) for one in report.labels}
    other = [
        f"{one.symbol} {found.get('verdict')}"
        for one in report.labels
        if isinstance(found := said[one.name], Mapping) and found.get("verdict") != one.verdict
    ]
    if not other:
        return ()
    on = metadata_grounds(earlier)
    return (
        f"the card of the model says otherwise: {', '.join(other)} ({on}; {earlier.get('stars')} "
        f"of {earlier.get('survey')}); each verdict holds for stars with such inputs",
    )


def metadata_grounds(earlier: Mapping[str, Any]) -> str:
    """Say of the content of `audit_metadata` what `AuditReport.grounds` says of a report."""
    labels = earlier.get("labels")
    every = labels.values() if isinstance(labels, Mapping) else ()
    basis = sorted({str(one.get("basis")) for one in every if isinstance(one, Mapping)})
    lists = (earlier.get(name) for name in ("inputs", "absent"))
    inputs, absent = (
        [str(x) for x in one] if isinstance(one, list | tuple) else [] for one in lists
    )
    return grounds(inputs, absent, " and ".join(basis))


def audit_metadata(report: AuditReport) -> dict[str, Any]:
    """Return what a catalogue says of its labels: verdict, gain, and what it rests on.

    Parameters
    ----------
    report : AuditReport

    Returns
    -------
    dict
        Plain JSON: ``labels`` (by name: verdict, gain, basis, response, errors), ``rule``,
        ``n_spectra``, ``stars``, ``survey``, ``simulated``, ``note``, ``inputs``, ``absent``.
    """
    names = ("verdict", "gain", "gain_error", "basis", "response", "response_error")
    return {
        "labels": {
            one.name: _plain({name: getattr(one, name) for name in names}) for one in report.labels
        },
        "rule": (
            f"measured: scatter with all inputs at least {100 * LEAST_GAIN:.0f} % below that of "
            "the basis; inferred: not so"
        ),
        "n_spectra": report.n_row,
        "stars": report.stars,
        "survey": report.survey,
        "simulated": report.simulated,
        "note": report.note,
        "inputs": list(report.inputs),
        "absent": list(report.absent),
    }


def _scatter_text(one: LabelAudit, name: str) -> str:
    case = one.cases.get(name)
    if case is None:
        return "-"
    return _with_error(case.scatter, case.scatter_error, 1 if one.unit == "K" else 3)


def _with_error(value: float, error: float, digits: int) -> str:
    if not np.isfinite(value):
        return "-"
    return f"{round(value, digits) + 0.0:.{digits}f} +- {error:.{digits}f}"


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: None if isinstance(value, float) and not np.isfinite(value) else value
        for name, value in values.items()
    }
