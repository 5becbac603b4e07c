import numpy as np
import pytest
from typer.testing import CliRunner

from maury.cli.app import app
from maury.survey.store import Survey, SurveyWriter
from maury.survey.summary import HEADER, Values, summarize

N = 40


def make(path, *, means=False):
    teff = np.linspace(4000.0, 7000.0, N)
    teff[:3], teff[3], teff[4:6] = np.nan, 3.7, 1e20
    columns = {"teff": teff, "m_h": np.zeros(N), "snr": np.full(N, 50.0)}
    if means:
        columns["star_id_from"] = np.array(["position"] * 30 + ["spectrum"] * 10)
    star_id = [f"s{k // 2}" if k < 30 else "" for k in range(N)]
    with SurveyWriter(
        path,
        n_star=N,
        wave_aa=[8420.0, 8420.4, 8421.0],
        medium="air",
        columns=[*columns],
        chunk=8,
        simulated=False,
        resolving_power=7500.0,
    ) as writer:
        flux = np.ones((N, 3))
        writer.write(0, flux, flux, id=np.arange(N).astype(str), star_id=star_id, **columns)
    return Survey.open(path)


def test_values_are_counted():
    found = Values.of(np.array([np.nan, 1.0, 2.0, 3.0, -9999.0, np.inf]), (0.0, 4.0))
    assert (found.n, found.n_missing, found.n_outlier) == (4, 2, 1)
    assert found.quantiles == (-9999.0, *np.percentile([1, 2, 3, -9999], (16, 50, 84)), 3.0)
    assert Values.of(np.array([-2.0, 6.0]), (0.0, 4.0)).n_outlier == 0, "half a width beyond"
    assert Values.of(np.array([-2.1, 6.1]), (0.0, 4.0)).n_outlier == 2
    none = Values.of(np.full(3, np.nan), (0.0, 4.0))
    assert (none.n, none.n_missing) == (0, 3)
    assert np.isnan(none.quantiles).all()


@pytest.mark.parametrize("means", [True, False])
def test_a_survey_says_what_it_holds(tmp_path, monkeypatch, means):
    monkeypatch.setattr("maury.survey.summary.COLUMN_CHUNK_STARS", 7)
    found = summarize(make(tmp_path / "s.zarr", means=means))
    text = str(found)
    assert "spectra: 40, of 25 stars" in text, "15 pairs, and 10 spectra of no named star"
    assert ("position 30, spectrum 10" if means else "star_id as given") in text
    assert "3 pixels, 8420.0-8421.0 angstrom (air), steps 0.4 to 0.6" in text
    assert "resolving power: 7500; at rest: not known" in text
    assert text.startswith("survey ")
    rows = {row[0]: row[1:] for row in found.rows[1:]}
    assert found.rows[0] == HEADER
    assert rows["teff"][:3] == ("K", "37", "3")
    assert (rows["teff"][3], rows["teff"][-2:]) == ("3.70", ("1.0e+20", "3"))
    assert rows["m_h"] == ("dex", "40", "-", "0.00", "0.00", "0.00", "0.00", "0.00", "-")
    assert rows["snr"][1:3] == ("40", "-")


def test_a_survey_without_labels_or_columns(tmp_path):
    with SurveyWriter(
        tmp_path / "s", n_star=1, wave_aa=[1000.0, 1001.0], medium="vacuum", simulated=True
    ) as writer:
        writer.write(0, np.ones((1, 2)), np.ones((1, 2)), id=["a"], star_id=["a"])
    found = summarize(Survey.open(tmp_path / "s"))
    assert found.rows == []
    assert str(found).startswith("SIMULATED survey")


def test_the_command_shows_stores(tmp_path):
    make(tmp_path / "s.zarr", means=True)
    done = CliRunner().invoke(app, ["info", str(tmp_path / "s.zarr")], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert "identified by: position 30, spectrum 10" in done.output
    assert "outliers" in done.output
