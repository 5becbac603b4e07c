"""Objects that show themselves: in a notebook, and as a first figure."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from builders.catalogues import write_catalogue
from maury import Model, Survey, validate
from maury.errors import ConfigError, RowError
from maury.io.notebook import as_html

GOLDEN = Path(__file__).parents[1] / "golden" / "0.1.0"


@pytest.fixture(scope="module")
def survey():
    return Survey.open(GOLDEN / "observed.zarr")


def test_rows_by_number_slice_mask_and_identifier(survey):
    ids = survey.id
    assert survey[3].column("id").tolist() == [ids[3]]
    assert survey[1:4].column("id").tolist() == ids[1:4].tolist()
    assert survey[ids == ids[2]].column("id").tolist() == [ids[2]]
    assert survey[str(ids[2])].column("id").tolist() == [ids[2]]
    assert survey[[ids[4], ids[0]]].column("id").tolist() == [ids[4], ids[0]]
    with pytest.raises(RowError, match="has no spectrum 'nobody'"):
        survey["nobody"]


def test_spectra_draw_themselves_with_gaps_where_pixels_are_bad(survey):
    ax = Figure().subplots()
    batch = survey[[0, 3]]
    assert batch.plot(ax) is ax
    assert ax.get_title(loc="left") == "SIMULATED"
    assert survey.rows([1, 2])[:1].simulated
    for row, line in enumerate(ax.lines):
        drawn = np.isfinite(line.get_ydata())
        np.testing.assert_array_equal(drawn, batch.spectra.ivar[row] > 0)
    assert "angstrom" in ax.get_xlabel()


def test_a_survey_and_a_model_in_a_notebook(survey):
    text = survey._repr_html_()
    assert f"spectra: {survey.n_star}, of " in text
    assert "missing" in text
    model = Model.open(GOLDEN / "cannon.model")
    text = model._repr_html_()
    assert all(label.symbol in text for label in model.labels)


def test_a_catalogue_shows_ranges_and_flags_and_draws_a_kiel_diagram(tmp_path):
    catalogue = write_catalogue(tmp_path / "labels.parquet")
    text = catalogue._repr_html_()
    warned = int(np.asarray(catalogue.table["warn"]).sum())
    assert f"{len(catalogue)} rows, {warned} with a warning" in text
    assert f"Catalogue: {len(catalogue)} rows, {warned} with a warning; labels: teff" in repr(
        catalogue
    )
    assert "\n" not in repr(catalogue)
    assert "<td>teff</td><td>K</td>" in text
    ax = Figure().subplots()
    catalogue.kiel(ax)
    assert len(ax.collections[0].get_offsets()) == len(catalogue) - warned
    assert ax.xaxis_inverted()
    assert ax.yaxis_inverted()
    bar = ax.figure.axes[-1]
    assert bar.get_ylabel() == "[M/H]"
    catalogue.table.remove_column("m_h")
    other = Figure().subplots()
    catalogue.kiel(other)
    assert other.figure.axes[-1].get_ylabel() == "[Fe/H]"


def test_a_model_measures_itself_beside_its_survey_and_draws_it(tmp_path, tiny_model, tiny_survey):
    alone = tmp_path / tiny_model.name
    alone.symlink_to(tiny_model)
    with pytest.raises(ConfigError, match=r"does not lie beside it; give a survey"):
        validate(alone)
    (tmp_path / tiny_survey.name).symlink_to(tiny_survey)
    report = validate(alone)
    assert report == validate(tiny_model, tiny_survey)
    ax = Figure().subplots()
    assert report.plot(ax) is ax
    drawn = [one.lines[0].get_xdata() for one in ax.containers]
    for number, shares in enumerate(drawn, start=1):
        expected = [getattr(one, f"coverage_{number}sigma") for one in report.statistics]
        np.testing.assert_array_equal(shares, expected)
    named = [text.get_text() for text in ax.get_yticklabels()]
    assert all(one.symbol in text for one, text in zip(report.statistics, named, strict=True))
    assert ax.get_title(loc="left").startswith(f"SIMULATED, {report.n_row} spectra")


def test_names_of_strangers_are_no_markup():
    text = as_html(["<script>"], [["a"], ["<b>"]])
    assert "<script>" not in text
    assert "<td>&lt;b&gt;</td>" in text
