"""The table of what labels do when stars are changed in one thing at a time."""

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zarr

from builders.surveys import copy_survey
from builders.training_survey import write_survey
from maury.errors import ColumnError, ConfigError
from maury.evaluation import stress as stress_module
from maury.evaluation.pool import Pool
from maury.evaluation.stress import StressReport, measure, reasons, stress, table
from maury.evaluation.stress_lines import FURTHER_LINES, LINES, Scene
from maury.evaluation.validation import held_out_rows
from maury.labels.definitions import select
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.survey.store import Survey

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_trust.py"
TWO = select(["teff", "logg"])


def pool(residual, error, star):
    n = len(residual)
    residual = np.asarray(residual, dtype=float)[:, None]
    held = np.zeros((n, 1), bool)
    return Pool(residual, np.full((n, 1), error), held, residual, np.ones(n), np.array(star))


def test_spectra_of_one_star_are_one_draw():
    apart = pool([0, 0, 9, 9], 1.0, ["a", "b", "c", "d"])
    twice = pool([0, 0, 9, 9], 1.0, ["a", "a", "c", "c"])
    for one, error in ((apart, 0.25), (twice, np.sqrt(0.125))):
        share, found = one.share(one.inside(1.0))
        assert share == pytest.approx([0.5])
        assert found == pytest.approx([error])


def test_a_share_counts_what_is_among_alone():
    one = pool([0, 9, 0, 9], 1.0, list("abcd"))
    among = np.array([[True], [True], [True], [False]])
    assert one.share(one.inside(1.0), among)[0] == pytest.approx([2 / 3])
    assert np.isnan(one.share(one.inside(1.0), ~among & among)[0]).all()


class Known:
    """A predictor whose answers are known."""

    def __init__(self, table):
        self.table = table
        self.model = SimpleNamespace(
            label_names=("teff", "logg"), labels=TWO, attachments={}, checksum=""
        )

    def predict(self, batch):
        return self.table


def test_silent_is_far_off_in_any_label_and_not_warned_of(tmp_path):
    survey = write_survey(tmp_path / "s.zarr", n=8)
    batch = survey.batch(0, 8)
    off = np.array([0.0, 0.5, 3.5, 3.5, 0.0, 2.5, np.nan, 0.0])
    flags = np.zeros(8, dtype=np.int32)
    flags[3] = Flag.SPECTRUM_UNLIKE.value
    flags[5] = Flag.NO_PARALLAX.value
    found = measure(
        "a line",
        Known(
            {
                "teff": batch.columns["teff"] + 10.0 * off,
                "teff_error": np.full(8, 10.0),
                "logg": batch.columns["logg"] + np.r_[np.zeros(7), 0.4],
                "logg_error": np.full(8, 0.1),
                "flags": flags,
                "snr": np.full(8, 50.0),
            }
        ),
        batch,
    )
    assert found.silent.share == pytest.approx(2 / 8)
    assert found.wrong.share == pytest.approx(3 / 8)
    assert found.warned.share == pytest.approx(1 / 8)
    assert found.unlabelled.share == pytest.approx(1 / 8)
    assert found.within["teff"].share == pytest.approx(4 / 7)
    assert found.within["logg"].share == pytest.approx(7 / 8)
    assert found.within_unwarned["teff"].share == pytest.approx(4 / 6)
    assert found.missing["logg"].share == 0.0
    assert found.rms["logg"] == pytest.approx(np.sqrt(0.16 / 8))
    assert found.flags == {"NO_PARALLAX": 1, "SPECTRUM_UNLIKE": 1}
    assert (found.n_row, found.n_star, found.joint.share) == (8, 4, None)


@pytest.fixture(scope="module")
def report(tiny_model, tiny_survey) -> StressReport:
    return stress(tiny_model, tiny_survey)


def test_every_line_is_measured_on_the_held_out_stars(report, tiny_model, tiny_survey):
    n = held_out_rows(Model.open(tiny_model), Survey.open(tiny_survey)).size
    names = [line.name for line in report.lines]
    assert [line.name for line in LINES if line.name not in report.omitted] == names
    whole = [line for line in report.lines if not line.name.startswith("unresolved")]
    assert {line.n_row for line in whole} == {n}
    assert set(report.omitted) <= {name.name for name in LINES if "unresolved" in name.name}
    first, alone = (
        next(x for x in report.lines if x.name == n) for n in ("nothing", "photometry alone")
    )
    # The published network takes a spectrum, and gives none of its labels without.
    assert (first.unlabelled.share, alone.unlabelled.share) == (0.0, 1.0)
    assert alone.within["teff"].share is None


def test_a_line_by_itself_is_what_it_is_among_others(report, tiny_model, tiny_survey):
    name = "20 % of the pixels missing at random"
    alone = stress(tiny_model, tiny_survey, only=["20 % of the pixels"])
    assert alone.lines == tuple(line for line in report.lines if line.name == name)
    with pytest.raises(ConfigError, match="no line is named bananas; there are: 20 %"):
        stress(tiny_model, tiny_survey, only=["bananas"])


def test_reports_stand_side_by_side(report):
    plain = json.loads(report.to_json())
    header, *rows = table({"before": plain, "after": plain | {"lines": plain["lines"][1:]}})
    assert header[1:3] == tuple(f"within: teff logg m_h alpha_m {n}" for n in ("before", "after"))
    assert rows[0][0] == "nothing"
    assert rows[0][2] == "-"
    assert rows[1][1] == rows[1][2]
    assert len(rows) == len(report.lines)


def test_reasons_are_shares_of_the_spectra(report):
    header, *rows = reasons(json.loads(report.to_json()))
    line = next(x for x in report.lines if x.name == "photometry alone")
    shown = dict(zip(header, next(row for row in rows if row[0] == line.name), strict=True))
    assert (shown["none"], shown["NO_SPECTRUM"]) == ("0", "100")
    assert "NO_PARALLAX" not in header, "it informs"


def test_the_script_sets_files_side_by_side(report, tmp_path):
    for name in ("before", "after"):
        (tmp_path / f"{name}.json").write_text(json.dumps({"a": json.loads(report.to_json())}))
    named = [f"old={tmp_path / 'before.json'}", str(tmp_path / "after.json")]
    done = subprocess.run(
        [sys.executable, SCRIPT, "--compare", *named, "--reasons"],
        capture_output=True,
        text=True,
        check=True,
    )
    first, *_, last = done.stdout.splitlines()
    assert "| silent old | silent after |" in first
    assert last.startswith("| photometry of another star |")


def test_many_spectra_are_thinned_over_the_survey(tiny_model, tiny_survey, monkeypatch):
    monkeypatch.setattr(stress_module, "MOST_SPECTRA", 10)
    (line,) = stress(tiny_model, tiny_survey, only=["nothing"]).lines
    assert 5 <= line.n_row <= 10


def test_a_survey_that_is_not_at_rest_has_lines_without_spectra_of_others(
    tiny_model, tiny_survey, tmp_path, monkeypatch
):
    moving = Survey.open(copy_survey(tiny_survey, tmp_path / "s.zarr"))
    monkeypatch.setattr(type(moving), "at_rest", False)
    found = stress(tiny_model, moving, only=["rotation of 30", "no parallax"])
    assert [line.name for line in found.lines] == ["no parallax"]
    assert "not at rest" in found.omitted["rotation of 30 km/s"]


def test_a_window_without_the_calcium_triplet_has_no_lines_on_it(tiny_model, tiny_survey, tmp_path):
    elsewhere = zarr.open_group(copy_survey(tiny_survey, tmp_path / "s.zarr"), mode="r+")
    elsewhere["wave"][:] = elsewhere["wave"][:] - 2000.0
    batch = Survey.open(tmp_path / "s.zarr").rows(np.arange(3))
    tried = [line for line in (*LINES, *FURTHER_LINES) if re.search(r"Ca II|Gaia RVS", line.name)]
    assert len(tried) >= 4
    flat = SimpleNamespace(clean=lambda batch: np.ones(batch.spectra.flux.shape, np.float32))
    for line in tried:
        with pytest.raises(ColumnError, match="do not reach over"):
            line.change(batch, Scene(lambda: flat, np.random.default_rng(0)))


def test_further_lines_are_measured_after_the_unchanged_stars(tiny_model, tiny_survey):
    found = stress(tiny_model, tiny_survey, further=True)
    names = [line.name for line in found.lines]
    assert names[0] == "nothing"
    assert names[1:] == [line.name for line in FURTHER_LINES if line.name not in found.omitted]
    assert not {line.name for line in FURTHER_LINES} & {line.name for line in LINES}


def test_progress_is_told(tiny_model, tiny_survey):
    told = []
    stress_module.stress(
        tiny_model, tiny_survey, only=["no G", "no H"], progress=lambda *now: told.append(now)
    )
    assert told == [(1, 2), (2, 2)]
