"""Reports of a validation."""

import dataclasses
import json

import numpy as np
import pytest

from maury.labels import LABELS
from maury.statistics import residual_statistics
from maury.validation import ValidationReport


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(20)


def make_report(rng: np.random.Generator, **changes) -> ValidationReport:
    truth = rng.normal(size=(20, 9))
    truth[:, 8] = np.nan
    measured = residual_statistics(truth, truth + 0.1, np.ones((20, 9)), labels=LABELS)
    report = ValidationReport(tuple(measured), True, 20, 18, "held-out test stars", "m", "s")
    return dataclasses.replace(report, **changes)


def test_report_is_strict_json_and_keeps_the_simulated_mark(rng: np.random.Generator) -> None:
    data = json.loads(json.dumps(make_report(rng).to_json(), allow_nan=False))
    assert data["simulated"] is True
    assert (data["n_row"], data["n_star"], data["stars"]) == (20, 18, "held-out test stars")
    assert [s["name"] for s in data["statistics"]] == [label.name for label in LABELS]
    assert data["statistics"][0]["bias"] == pytest.approx(0.1)
    assert data["statistics"][8]["bias"] is None


def test_report_title_says_simulated_only_when_it_is(rng: np.random.Generator) -> None:
    expected = "20 spectra of 18 stars (held-out test stars)"
    assert make_report(rng).title() == f"SIMULATED spectra: {expected}"
    assert make_report(rng, simulated=False).title() == expected


def test_table_has_a_full_row_per_label(rng: np.random.Generator) -> None:
    header, rows = make_report(rng).table()
    assert [len(row) for row in rows] == [len(header)] * 9
    assert rows[0][:4] == ("Teff", "K", "20", "0.1")
    assert rows[1][:4] == ("log g", "dex", "20", "0.100")
    assert rows[8][header.index("bias")] == "-"
    assert rows[0][header.index("in 1 sigma")] == "1.00 +- 0.03"
