"""The report: every figure with its data and caption, on one page that needs nothing outside."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import matplotlib
import numpy as np
import pytest
from astropy.table import Table
from threadpoolctl import threadpool_info, threadpool_limits

from builders.catalogues import QUANTILE_ENDS, catalogue_rows, write_catalogue
from builders.untrained_model import untrained
from maury import simulate_survey
from maury.errors import ColumnError, ConfigError, InputFileError, OutputExists
from maury.labels.definitions import LABEL_NAMES, LABELS, select
from maury.labels.statistics import residual_statistics
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.report.cartography.bimodality import bimodality
from maury.report.figures import checks, planes
from maury.report.figures.style import SIMULATED
from maury.report.page import assemble
from maury.report.page import material as material_module
from maury.report.page.assemble import sections, write_report
from maury.report.page.material import gather, kiel_labels, match, read_table
from maury.report.page.places import places_section
from maury.report.page.plates import MOST_ROWS, Plate
from maury.report.page.quality import (
    calibration_section,
    coverage_section,
    long_table,
    overview,
    tails,
)
from maury.report.page.science import abundances_section, checks_section, methods_section

FIGURES = {
    *("one_to_one_test", "one_to_one_training", "trends", "residuals_snr"),
    *("coverage_curves", "z", "coverage_regimes", "coverage_map", "audit"),
    *("kiel_samples", "kiel_snr", "kiel_m_h", "elements", "alpha_slices", "bimodality"),
    *("alpha_by_place", "gradients", "maps", "distributions", "losses", "magnitudes"),
    *("external_logg", "clusters", "methods"),
}


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory, default_model) -> Path:
    """Catalogue of 300 simulated stars in discs."""
    folder = tmp_path_factory.mktemp("observed")
    survey = simulate_survey(
        folder / "observed.zarr", n_star=300, seed=4, observed=True, galaxy=True
    )
    predict(default_model, survey, folder / "labels.parquet")
    return folder / "labels.parquet"


@pytest.fixture(scope="module")
def tables(tmp_path_factory, catalogue) -> dict[str, Path]:
    """Further tables: external log g, members of two clusters, a comparison."""
    folder = tmp_path_factory.mktemp("tables")
    stars = Catalogue.read(catalogue).table
    logg = Table({"star_id": stars["star_id"][:80], "logg": np.asarray(stars["logg"][:80]) + 0.1})
    members = Table(
        {
            "star_id": stars["star_id"][:40],
            "cluster": ["M 67"] * 20 + ["<NGC 1>"] * 20,
            "probability": np.r_[np.ones(39), 0.1],
        }
    )
    methods = Table(
        {
            "method": np.repeat(["maury", "cannon"], 9),
            "label": [*LABEL_NAMES, *LABEL_NAMES],
            "scatter": np.r_[np.full(9, 1.0), np.full(9, 2.0)],
        }
    )
    paths = {
        "logg": folder / "logg.csv",
        "clusters": folder / "c.ecsv",
        "compare": folder / "p.csv",
    }
    logg.write(paths["logg"], format="ascii.csv")
    members.write(paths["clusters"], format="ascii.ecsv")
    methods.write(paths["compare"], format="ascii.csv")
    return paths


@pytest.fixture(scope="module")
def whole(default_model, default_survey, catalogue, tables):
    """All that a report can be drawn from."""
    return gather(default_model, default_survey, catalogue, tables=tables)


@pytest.fixture(scope="module")
def drawn(whole):
    """All sections; the map's plane is a stand-in, as t-SNE takes long and has its own tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("maury.evaluation.adviser.embed", lambda points: points[:, :2].astype(float))
        return list(sections(whole))


def plates(drawn) -> dict[str, Plate]:
    return {plate.name: plate for section in drawn for plate in section.plates}


def test_every_figure_is_drawn_with_caption_and_data(drawn) -> None:
    found = plates(drawn)
    assert set(found) >= FIGURES
    for name, plate in found.items():
        assert len(plate.caption) > 60, name
        assert plate.caption.startswith("Simulated spectra."), name
        lengths = {len(np.asarray(values)) for values in plate.data.values()}
        assert len(lengths) == 1, name
        assert lengths.pop() > 0, name


@pytest.mark.slow
def test_every_figure_of_simulated_spectra_says_so(drawn) -> None:
    for name, plate in plates(drawn).items():
        texts = [t.get_text() for t in plate.figure.findobj(matplotlib.text.Text)]
        assert SIMULATED in texts, name


@pytest.mark.slow
def test_every_figure_has_the_width_of_a_column_or_a_page(drawn) -> None:
    for name, plate in plates(drawn).items():
        width = 25.4 * plate.figure.get_size_inches()[0]
        assert width == pytest.approx(88.0) or width == pytest.approx(180.0), name


@pytest.mark.slow
def test_texts_of_all_figures_are_as_large_as_journals_ask_and_of_three_sizes(drawn) -> None:
    sizes, families = set(), set()
    for name, plate in plates(drawn).items():
        for text in plate.figure.findobj(matplotlib.text.Text):
            if text.get_text().strip() and text.get_visible():
                assert text.get_fontsize() >= 6.0, (name, text.get_text())
                sizes.add(text.get_fontsize())
                families.add(text.get_fontname())
    assert sizes <= {6.5, 7.0, 8.0}
    assert len(families) == 1


@pytest.mark.slow
def test_figures_of_stars_say_how_many_are_drawn(whole, drawn) -> None:
    found = plates(drawn)
    for name in ("kiel_samples", "alpha_slices", "bimodality", "maps", "residuals_snr", "elements"):
        shown = [ax for ax in found[name].figure.axes if ax.axison]
        titled = [ax for ax in shown if "n = " in ax.get_title()]
        # Bars of colours have no stars.
        bars = [ax for ax in shown if ax.get_label() == "<colorbar>"]
        assert len(titled) == len(shown) - len(bars), name
    names = [t.get_text() for t in found["coverage_curves"].figure.legends[0].get_texts()]
    assert f"95 % of right errors, n = {len(whole.samples['test'])}" in names


def test_captions_of_coverage_say_why_two_errors_hold_too_few(whole) -> None:
    few = replace(whole.statistics[0], coverage_1sigma=0.683, coverage_2sigma=0.931)
    # That of 400 stars.
    few = replace(few, coverage_2sigma_error=0.011)
    right = replace(few, coverage_2sigma=0.96)
    material = replace(whole, statistics=(few, right))
    text = tails(material)
    assert "1 of 2 labels (at least 93.1 %; within one, 68.3 %" in text
    assert "q02 to q98" in text
    assert tails(replace(whole, statistics=(right,))) == ""
    # Of thirty stars 93.1 % are no fewer than chance has them.
    chance = replace(few, coverage_2sigma_error=0.046)
    assert tails(replace(whole, statistics=(chance,))) == ""


@pytest.mark.slow
def test_what_was_not_drawn_is_told_with_the_reason(drawn) -> None:
    told = {one.title: one.reason for section in drawn for one in section.omitted}
    assert "Isochrones" in told
    assert all(told.values())


@pytest.mark.slow
def test_data_behind_a_figure_are_what_the_figure_shows(whole, drawn) -> None:
    found = plates(drawn)
    test = whole.samples["test"]
    data = found["one_to_one_test"].data
    np.testing.assert_array_equal(data["teff"], whole.column(test, "teff"))
    np.testing.assert_array_equal(data["reference_teff"], whole.column(test, "teff", truth=True))
    external = found["external_logg"].data
    np.testing.assert_allclose(external["external_logg"] - external["logg"], 0.1, atol=1e-6)
    assert set(found["clusters"].data["cluster"]) == {"M 67", "<NGC 1>"}
    assert len(found["clusters"].data["id"]) == 39


@pytest.mark.slow
def test_gradients_show_what_the_simulation_put_in(whole, drawn) -> None:
    discs = whole.put_in["discs"]
    assert [one["radial_gradient"] for one in discs] == [-0.06, 0.0]
    texts = [t.get_text() for t in plates(drawn)["gradients"].figure.findobj(matplotlib.text.Text)]
    assert "put in, low-alpha" in texts


def test_simulated_parallaxes_have_no_zero_point_and_others_that_of_the_release(
    whole, catalogue, default_model
) -> None:
    assert whole.gaia == "none"
    assert whole.places.zero_point_mas == 0.0
    other = gather(default_model, None, catalogue, gaia="EDR3")
    assert other.places.zero_point_mas == -0.017


class Reader(HTMLParser):
    """Collects what a page refers to, and checks that tags are closed."""

    VOID = ("meta", "img", "br", "link", "input")

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.refers: list[str] = []
        self.images = 0

    def handle_starttag(self, tag, attrs) -> None:
        if tag not in self.VOID:
            self.stack.append(tag)
        self.images += tag == "img"
        self.refers += [value for name, value in attrs if name in ("src", "href", "action")]

    def handle_endtag(self, tag) -> None:
        assert self.stack.pop() == tag


@pytest.fixture(scope="module")
def written(tmp_path_factory, default_model, catalogue, tables):
    """A report of a catalogue alone, as written: some of the sections, as saving takes long."""
    out = tmp_path_factory.mktemp("report") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "maury.report.page.assemble._SECTIONS",
            (coverage_section, places_section, checks_section),
        )
        return write_report(default_model, out, observed=catalogue, clusters=tables["clusters"])


def test_the_page_needs_nothing_from_outside(written) -> None:
    page = written.page.read_text("utf-8")
    reader = Reader()
    reader.feed(page)
    assert reader.stack == []
    assert reader.images == len(written.figures)
    for target in reader.refers:
        if target.startswith("figures/"):
            assert (written.directory / target).is_file()
        else:
            assert target.startswith(("#", "data:image/png;base64,")), target
    assert not re.search(r"https?://", page)
    for anchor in re.findall(r'href="#([\w-]+)"', page):
        assert f'id="{anchor}"' in page


def test_the_first_screen_answers_the_three_questions(written) -> None:
    page = written.page.read_text("utf-8")
    start = page.index('<section id="summary">')
    first = page[start : page.index("</section>", start)]
    for question in ("How precise?", "How well calibrated?", "How much of the survey is covered?"):
        assert question in first
    assert "of 300 observed spectra bear no warning" in first
    assert "SIMULATED spectra." in page[:start]


def test_each_figure_is_written_thrice(written) -> None:
    folder = written.directory / "figures"
    for name in written.figures:
        for suffix in ("png", "pdf", "ecsv"):
            assert (folder / f"{name}.{suffix}").stat().st_size > 500, name
        table = Table.read(folder / f"{name}.ecsv", format="ascii.ecsv")
        assert table.meta["maury"]["simulated"] is True
        assert table.meta["maury"]["caption"] in (folder / "captions.txt").read_text("utf-8")


def test_an_existing_report_is_not_overwritten_silently(written, catalogue, default_model) -> None:
    before = written.page.read_bytes()
    with pytest.raises(OutputExists):
        write_report(default_model, written.directory, observed=catalogue)
    assert written.page.read_bytes() == before


def test_nothing_is_left_of_a_report_that_fails(tmp_path, tiny_model, monkeypatch, catalogue):
    def fail(*args, **kwargs):
        raise RuntimeError("in the middle")

    monkeypatch.setattr("maury.report.page.assemble.render", fail)
    monkeypatch.setattr("maury.report.page.assemble._SECTIONS", ())
    with pytest.raises(RuntimeError):
        write_report(tiny_model, tmp_path / "out", observed=catalogue)
    assert list(tmp_path.iterdir()) == []


def test_a_report_is_computed_on_one_thread(tmp_path, monkeypatch) -> None:
    threads = {}

    def counted(name):
        def count(*_, **__):
            threads[name] = {pool["num_threads"] for pool in threadpool_info()}
            return SimpleNamespace(simulated=True)

        return count

    def stop(*_, **__):
        raise ConfigError("enough")

    monkeypatch.setattr(assemble, "gather", counted("gather"))
    monkeypatch.setattr(assemble, "_SECTIONS", (counted("section"),))
    monkeypatch.setattr(assemble, "_write_page", stop)
    with threadpool_limits(2), pytest.raises(ConfigError, match="enough"):
        write_report(tmp_path / "any.model", tmp_path / "report")
    assert threads == {"gather": {1}, "section": {1}}


@pytest.mark.slow
def test_a_model_without_calibration_and_audit_has_a_report_too(tiny_model, tiny_survey) -> None:
    found = gather(tiny_model, tiny_survey)
    names = plates(sections(found))
    assert {"one_to_one_test", "kiel_samples", "losses", "z"} <= set(names)
    assert "alpha_by_place" not in names


def test_losses_of_every_member_are_recorded(tiny_model) -> None:
    model = Model.open(tiny_model)
    arrays = model.arrays("losses")
    assert sorted(arrays) == ["member_000", "member_001"]
    for member in model.members:
        table = arrays[f"member_{member.file[8:11]}"]
        assert table.shape == (member.n_epochs, 2)
        assert np.nanmin(table[:, 1]) == pytest.approx(member.validation_loss)


def test_a_report_of_nothing_and_of_wrong_tables_is_refused(tmp_path, tiny_model, catalogue):
    with pytest.raises(ConfigError, match="--survey"):
        write_report(tiny_model, tmp_path / "out")
    bad = tmp_path / "bad.csv"
    bad.write_text("star_id,gravity\na,2\n", "utf-8")
    with pytest.raises(ColumnError, match="logg"):
        write_report(tiny_model, tmp_path / "out", observed=catalogue, external_logg=bad)
    with pytest.raises(InputFileError, match="suffix"):
        read_table(tmp_path / "bad.txt")
    with pytest.raises(InputFileError, match="does not exist"):
        read_table(tmp_path / "absent.csv")


def test_stars_are_matched_by_name(whole) -> None:
    sample = whole.samples["observed"]
    table = Table({"star_id": [sample.star_id[5], "stranger", sample.star_id[2]]})
    rows, others = match(sample, table)
    assert rows.tolist() == [2, 5]
    assert others.tolist() == [2, 0]


@pytest.mark.slow
def test_data_of_many_stars_are_thinned_and_say_so(drawn) -> None:
    figure = plates(drawn)["z"].figure
    plate = Plate("x", "X", "A caption.", figure, {"a": np.arange(3 * MOST_ROWS)})
    table = plate.table(simulated=False)
    assert len(table) == MOST_ROWS
    assert "every 3th" in json.dumps(table.meta)


def test_coverage_curves_are_those_of_a_normal_distribution() -> None:
    z = np.random.default_rng(0).standard_normal(40_000)
    found = checks.coverage_curve(z)
    np.testing.assert_allclose(found, checks.LEVELS, atol=0.01)
    assert checks.coverage_curve(2.0 * z)[33] < checks.LEVELS[33] - 0.2
    assert np.isnan(checks.coverage_curve([np.nan])).all()


def test_regimes_divide_the_stars() -> None:
    rng = np.random.default_rng(1)
    snr, logg, m_h = 100 * rng.random(500), 5 * rng.random(500), rng.normal(-0.3, 0.4, 500)
    parts = checks.regimes(snr, logg, m_h)
    assert sum(one.rows.sum() for one in parts) == 4 * 500
    share, count = checks.regime_coverage(rng.standard_normal((500, 2)), parts)
    assert count[0].tolist() == [500, 500]
    assert share[0] == pytest.approx(0.68, abs=0.08)


def test_trends_find_a_label_that_is_drawn_towards_the_mean() -> None:
    rng = np.random.default_rng(2)
    true = rng.standard_normal(2000)
    residual = (-0.3 * true + 0.1 * rng.standard_normal(2000))[:, None]
    strip = checks.trend_strips(residual, true[:, None])[0, 0]
    assert np.all(np.diff(strip) < 0)
    assert strip[0] > 0.5


def test_the_noise_of_trends_is_what_medians_of_noise_scatter_by() -> None:
    rng = np.random.default_rng(2)
    residual, against = rng.standard_normal((4000, 12)), rng.standard_normal((4000, 5))
    measured = np.std(checks.trend_strips(residual, against))
    told = checks.trend_noise(residual, against)
    assert told == pytest.approx(np.full((12, 5), measured), rel=0.12)
    residual[200:, 0] = np.nan
    assert np.isfinite(checks.trend_noise(residual, against)).sum(axis=1).tolist() == [5] * 12
    residual[150:, 0] = np.nan
    assert np.isnan(checks.trend_noise(residual, against)[0]).all()


def test_density_planes_hold_every_star_once() -> None:
    from maury.report.figures.style import new_figure

    rng = np.random.default_rng(3)
    x, y = rng.normal(0, 1, (2, 3000))
    ax = new_figure().add_subplot()
    ranges = ((-6.0, 6.0), (-6.0, 6.0))
    mesh = planes.density_plane(ax, x, y, ranges=ranges)
    lone = sum(len(c.get_offsets()) for c in ax.collections if c is not mesh)
    assert lone + np.ma.filled(mesh.get_array(), 0).sum() == 3000
    assert lone > 0


@pytest.mark.slow
def test_bimodality_figures_take_any_number_of_parts() -> None:
    from maury.report import figures

    rng = np.random.default_rng(4)
    x = rng.normal(0.0, 0.05, 300)
    found = bimodality(x, np.zeros(300), rng=rng, n_bootstrap=2)
    for n in (1, 2, 4):
        figure = figures.bimodality_figure([("all", x, found)] * n, simulated=True)
        assert sum(ax.get_visible() and ax.axison for ax in figure.axes) == n


@pytest.mark.slow
def test_training_spectra_are_thinned(default_model, default_survey, monkeypatch) -> None:
    monkeypatch.setattr(material_module, "MOST_TRAINING", 100)
    monkeypatch.setattr(material_module, "_audit", lambda *args: None)
    found = gather(default_model, default_survey)
    assert 50 < len(found.samples["training"]) <= 100
    assert found.statistics[0].name == LABELS[0].name
    assert select(["teff"])[0] == LABELS[0]


# Reports of what little there is: an untrained model, and a made-up catalogue


def little(folder, names, *, drop=(), tables=None, **columns):
    """All that there is of an untrained model and a catalogue of 60 stars."""
    rows = catalogue_rows(60) | columns
    rows = {name: values for name, values in rows.items() if name not in drop}
    write_catalogue(folder / "labels.parquet", rows=rows)
    return gather(untrained(folder, names), None, folder / "labels.parquet", tables=tables)


def told_of(section) -> dict[str, str]:
    return {one.title: one.reason for one in section.omitted}


def test_a_model_of_iron_has_kiel_diagrams_coloured_by_it(tmp_path) -> None:
    found = little(tmp_path, ["teff", "logg", "fe_h"])
    plates = {one.name: one for section in sections(found) for one in section.plates}
    assert {"kiel_samples", "kiel_snr", "kiel_fe_h"} <= set(plates)
    assert "coloured by [Fe/H]" in plates["kiel_fe_h"].caption
    assert "fe_h" in plates["kiel_samples"].data
    assert [label.name for label in kiel_labels(found.labels)] == ["teff", "logg", "fe_h"]
    assert "elements" not in plates


def test_a_model_of_iron_and_magnesium_shows_their_plane(tmp_path) -> None:
    found = little(tmp_path, ["teff", "logg", "fe_h", "mg_fe"])
    section = next(one for one in sections(found) if one.title == "Abundances")
    assert {"fe_h", "mg_fe"} <= set(section.plates[0].data)
    assert told_of(section) == {"Sequences of [alpha/M]": "the model lacks [M/H] or [alpha/M]"}


def test_a_report_of_a_catalogue_alone_says_what_it_cannot_show(tmp_path) -> None:
    found = little(tmp_path, ["teff"])
    told = {title: why for one in sections(found) for title, why in told_of(one).items()}
    for title, why in {
        "Kiel diagrams": "the model lacks Teff, log g, or both [M/H] and [Fe/H]",
        "Abundance planes": "the model lacks a metallicity or a further abundance",
        "Losses": "this model does not record the losses of its training",
        "One-to-one comparisons": "no labelled survey was given",
        "Audit and sensitivity": "no labelled survey was given",
        "Calibration": "no labelled survey was given",
        "log g against external log g": "no table was given (--logg)",
        "Clusters": "no membership table was given (--clusters)",
    }.items():
        assert told[title] == why
    assert overview(found) is None
    assert not np.isfinite(found.column(found.samples["observed"], "logg")).any()


def test_columns_of_stars_without_labels_name_no_reference(tmp_path) -> None:
    found = little(tmp_path, ["teff", "logg"])
    columns = long_table(found.samples["observed"], found)
    assert list(columns) == [
        "id",
        "snr",
        "flags",
        "teff",
        "teff_formal_error",
        "logg",
        "logg_formal_error",
    ]
    labelled = replace(found.samples["observed"], truth=found.samples["observed"].mean)
    assert "reference_logg" in long_table(labelled, found)


def test_abundances_of_observed_stars_alone_have_one_bimodality(tmp_path) -> None:
    found = little(tmp_path, ["teff", "logg", "m_h", "alpha_m"])
    assert len(abundances_section(found).tables) == 1


@pytest.mark.parametrize("stranger", [True, False])
def test_tables_of_strangers_and_without_probabilities(tmp_path, stranger) -> None:
    names = [f"stranger {k}" if stranger else f"star {k}" for k in range(40)]
    Table({"star_id": names, "logg": np.full(40, 3.0)}).write(tmp_path / "logg.fits")
    Table({"star_id": names, "cluster": ["M 67"] * 40}).write(tmp_path / "clusters.fits")
    tables = {"logg": tmp_path / "logg.fits", "clusters": tmp_path / "clusters.fits"}
    section = checks_section(little(tmp_path, ["teff", "logg", "m_h"], tables=tables))
    if stranger:
        why = "no star of the table is among the predicted ones"
        assert told_of(section) == {"log g against external log g": why, "Clusters": why}
    else:
        found = {plate.name: plate.data for plate in section.plates}
        assert found["external_logg"]["external_logg"].tolist() == [3.0] * 40
        assert set(found["clusters"]["cluster"]) == {"M 67"}
        assert len(found["clusters"]["id"]) == 40


def test_methods_are_those_of_all_stars_as_they_were_given(tmp_path) -> None:
    table = Table(
        {
            "method": ["cannon", "cannon", "cannon"],
            "label": ["teff"] * 3,
            "scatter": [1.0, 2.0, 3.0],
            "view": ["as given", "as given", "S/N 100"],
            "stars": ["all", "giants", "all"],
        }
    )
    table.write(tmp_path / "methods.csv")
    section = methods_section(
        little(tmp_path, ["teff"], tables={"compare": tmp_path / "methods.csv"})
    )
    assert "1" in str(section.tables)
    assert not {"2", "3"} & {cell.strip("0.") for _, rows in section.tables for cell in rows[1]}
    Table({"method": ["cannon"], "what": [1]}).write(tmp_path / "other.csv")
    other = tmp_path / "more"
    other.mkdir()
    section = methods_section(little(other, ["teff"], tables={"compare": tmp_path / "other.csv"}))
    assert "the table has no columns method, label and scatter" in str(section.omitted)


def test_tables_that_name_no_stars_are_refused(tmp_path) -> None:
    Table({"name": ["a"], "logg": [1.0]}).write(tmp_path / "logg.csv")
    with pytest.raises(ColumnError, match="lacks 'id' or 'star_id'; it has name, logg"):
        little(tmp_path, ["teff", "logg"], tables={"logg": tmp_path / "logg.csv"})


def test_a_table_without_rows_matches_nobody(tmp_path) -> None:
    sample = little(tmp_path, ["teff"]).samples["observed"]
    rows, others = match(sample, Table({"id": np.empty(0, "U3")}))
    assert (rows.size, others.size) == (0, 0)


def test_a_catalogue_of_other_labels_is_refused(tmp_path) -> None:
    gone = [f"logg{end}" for end in ("", "_error", *QUANTILE_ENDS)]
    with pytest.raises(ColumnError, match="the catalogue lacks logg; give one that this model"):
        little(tmp_path, ["teff", "logg"], drop=gone)


@pytest.mark.parametrize("lost", ["column", "values"])
def test_stars_without_parallaxes_have_no_places(tmp_path, lost) -> None:
    if lost == "column":
        found = little(tmp_path, ["teff"], drop=("parallax_error",))
    else:
        found = little(tmp_path, ["teff"], parallax=np.full(60, np.nan))
    assert found.places is None
    assert all(not section.plates for section in [places_section(found)] if section)


def test_calibration_without_repeats_says_so(tmp_path) -> None:
    found = little(tmp_path, ["teff", "logg", "m_h"])
    stars = found.samples["observed"]
    truth = stars.mean + stars.error * np.random.default_rng(0).normal(size=stars.mean.shape)
    test = replace(stars, name="test", truth=truth)
    statistics = residual_statistics(truth, test.mean, test.error, labels=found.labels)
    labelled = replace(found, samples={"test": test}, statistics=tuple(statistics))
    section = calibration_section(labelled)
    assert told_of(section)["Repeated spectra"] == "fewer than 20 pairs of spectra of one star"
    assert {"coverage_curves", "z"} <= {plate.name for plate in section.plates}
    twice = replace(test, star_id=np.repeat([f"star {k}" for k in range(30)], 2))
    section = calibration_section(replace(labelled, samples={"test": twice}))
    assert "repeats" in {plate.name for plate in section.plates}


@pytest.mark.slow
def test_a_report_of_observed_spectra_bears_no_mark(tmp_path) -> None:
    write_catalogue(tmp_path / "labels.parquet", simulated=False, name="x")
    model = replace(untrained(tmp_path, ["teff"]), simulated=False)
    written = write_report(model, tmp_path / "out", observed=tmp_path / "labels.parquet")
    page = written.page.read_text("utf-8")
    assert "SIMULATED" not in page
    assert "overview" not in {path.stem for path in (tmp_path / "out").rglob("*.png")}
    assert "simulated discs" not in page
    with_mark = tmp_path / "marked"
    write_catalogue(tmp_path / "marked.parquet")
    written = write_report(model, with_mark, observed=tmp_path / "marked.parquet")
    assert "SIMULATED spectra." in written.page.read_text("utf-8")
