"""The card of a model as text in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maury.evaluation.card import ModelCard

FIGURES = (
    ("n", "n"),
    ("bias", "bias"),
    ("scatter", "sigma"),
    ("scatter_robust", "robust sigma"),
    ("slope", "slope"),
    ("coverage_1sigma", "in 1 sigma"),
    ("coverage_2sigma", "in 2 sigma"),
)
"""Statistics that the text shows, and their headings; the JSON has all."""


def markdown(card: ModelCard) -> str:
    """Return the card in Markdown."""
    mark = " (SIMULATED spectra)" if card.simulated else ""
    blocks = [
        f"# Model card: {_plain(card.name) or 'a model'}{mark}",
        _list(
            {
                "method": card.method,
                "checksum": f"`{card.checksum}`",
                "networks": f"{card.networks['kept']} kept of {card.networks['trained']}"
                if card.networks["trained"]
                else "none: a method",
                "licence": card.licence,
                "cite": card.citation,
                "BibTeX keys (`maury cite`)": ", ".join(card.bibtex_keys),
                "versions": ", ".join(f"{k} {v}" for k, v in card.versions.items()),
            }
        ),
        "## Labels",
        _table(
            ("label", "unit", "minimum", "maximum"),
            [
                (one["symbol"], one["unit"], _number(one["minimum"]), _number(one["maximum"]))
                for one in card.labels
            ],
        ),
        "Ranges are those of the training stars.",
        "## Inputs",
        _list({"spectrum": card.inputs["wavelengths"], "observables": _observables(card)}),
        *_data(card),
        "## Split",
        _split_text(card),
        "## Figures of merit",
        *_metrics(card),
        "## Errors",
        _errors(card),
        "## Limits",
        "\n".join(f"- {_plain(limit)}" for limit in card.limits),
    ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def _plain(text: Any) -> str:
    """Return text that cannot break a line, a table or the markup around it."""
    plain = " ".join(str(text).split())
    # Names of files and surveys come from strangers, and the card is shown by web pages.
    return plain.replace("|", "/").replace("<", "&lt;")


def _list(items: Mapping[str, Any]) -> str:
    return "\n".join(f"- {name}: {_plain(value)}" for name, value in items.items() if value != "")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(_plain, line)) + " |" for line in lines)


def _number(value: float | None, digits: int = 4) -> str:
    return "unknown" if value is None else f"{value:.{digits}g}"


def _observables(card: ModelCard) -> str:
    ranges = card.inputs["observables"]
    texts = [f"{name} ({_number(low)} to {_number(high)})" for name, (low, high) in ranges.items()]
    return ", ".join(texts) or "none"


def _data(card: ModelCard) -> list[str]:
    files = card.data.get("files")
    listed = files if isinstance(files, list) else []
    plain = {
        name: value for name, value in card.data.items() if isinstance(value, str | int | float)
    }
    rows = [
        (str(one.get("name", "")), str(one.get("bytes", "")), str(one.get("sha256") or ""))
        for one in listed
        if isinstance(one, Mapping)
    ]
    table = _table(("file", "bytes", "SHA-256"), rows) if rows else ""
    dropped = card.training.get("dropped")
    lost = [f"{n} {reason}" for reason, n in dropped.items() if n] if dropped else []
    left_out = f"Rows left out: {', '.join(lost) or 'none'}." if dropped else ""
    return ["## Data", _list(plain) or "Not recorded.", table, left_out]


def _split_text(card: ModelCard) -> str:
    parts = [
        (name, str(part["rows"]), str(part["stars"]), part["sha256"])
        for name, part in card.split.items()
        if isinstance(part, Mapping)
    ]
    use = {
        "choice": "early stopping and the choice of networks",
        "calibration": "the calibration of errors alone",
    }[card.split["validation_use"]]
    told = f"Rule: {card.split['rule']}. Validation stars serve {use}."
    return _table(("part", "rows", "stars", "SHA-256 of the stars"), parts) + f"\n\n{told}"


def _metrics(card: ModelCard) -> list[str]:
    if not card.metrics:
        return ["None measured; run `maury card MODEL --survey SURVEY`, or `maury validate`."]
    blocks = []
    for report in card.metrics:
        mark = "SIMULATED spectra: " if report["simulated"] else ""
        caution = f" Note: {report['warning']}." if report.get("warning") else ""
        blocks.append(
            f"{mark}{report['n_row']} spectra of {report['n_star']} stars of "
            f"{_plain(report['survey'])}: {_plain(report['stars'])}.{_plain(caution)}"
        )
        rows = [
            (one["symbol"], one["unit"], *(_figure(one.get(name)) for name, _ in FIGURES))
            for one in report["statistics"]
        ]
        blocks.append(_table(("label", "unit", *(text for _, text in FIGURES)), rows))
    return blocks


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.3g}"


def _errors(card: ModelCard) -> str:
    about = card.calibration
    stars = "SIMULATED" if card.simulated else "labelled"
    calibrated = (
        f"Quoted 1 sigma errors are calibrated on {stars} stars that trained no network."
        if about["errors_calibrated"]
        else "Quoted errors are not calibrated."
    )
    verdicts = ", ".join(f"{name} {verdict}" for name, verdict in about["verdicts"].items())
    on = _plain(about.get("verdicts_on", ""))
    return calibrated + (f" Audit ({on}): {_plain(verdicts)}." if verdicts else "")
