"""The training-sample adviser: criterion, exclusions, lists, and that its advice is good."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from builders.surveys import copy_survey
from maury.cli import app as cli
from maury.errors import ConfigError, LengthMismatch, MissingExtra, OutputExists
from maury.evaluation import adviser
from maury.evaluation.adviser import (
    NEIGHBOURS,
    density_ratio,
    error_ratio,
    suggest_from,
)
from maury.evaluation.census import USELESS, Census
from maury.evaluation.embedding import Kind
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.prediction import uncertainty
from maury.report.figures import coverage_map
from maury.survey.store import Survey

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_adviser.py"


def census(place, training, **changes):
    """Take a census of made-up stars: one label or more, equal errors, nothing wrong."""
    place = np.atleast_2d(np.asarray(place, float).T).T
    n = len(place)
    values = {
        "id": np.array([f"s{k}" for k in range(n)]),
        "star_id": np.array([f"star{k}" for k in range(n)]),
        "place": place,
        "error": np.ones_like(place),
        "snr": np.full(n, 50.0),
        "flags": np.zeros(n, np.int32),
        "labelled": np.zeros(n, bool),
        "training": np.atleast_2d(np.asarray(training, np.float32).T).T,
        "simulated": True,
    }
    return Census(**(values | changes))


def test_density_ratio_is_that_of_the_densities():
    training = np.linspace(0, 1, 2001)
    observed = np.concatenate([np.linspace(0, 0.5, 3000), np.linspace(0.5, 1, 1000)])
    at = np.array([[0.2], [0.8]], np.float32)
    reach = adviser._reach(at, training[:, None].astype(np.float32))
    ratio = density_ratio(at, observed[:, None].astype(np.float32), reach, n_training=len(training))
    # Densities 1.5 and 0.5; a ball of ten training stars is known to one or two stars.
    np.testing.assert_allclose(ratio, [1.5, 0.5], rtol=0.25)


def test_density_ratio_of_equal_samples_is_one_in_many_dimensions():
    rng = np.random.default_rng(0)
    training, observed = rng.normal(size=(2, 3000, 5)).astype(np.float32)
    reach = adviser._reach(observed, training)
    ratio = density_ratio(observed, observed, reach, n_training=len(training))
    assert np.median(ratio) == pytest.approx(1.0, abs=0.15)


def test_density_is_measured_on_a_part_of_a_large_survey(monkeypatch):
    rng = np.random.default_rng(1)
    training, observed = rng.normal(size=(2, 3000, 2)).astype(np.float32)
    reach = adviser._reach(observed, training)
    whole = density_ratio(observed, observed, reach, n_training=3000)
    monkeypatch.setattr(adviser, "MOST_OBSERVED", 1500)
    part = density_ratio(observed, observed, reach, n_training=3000)
    assert np.median(part / whole) == pytest.approx(1.0, abs=0.1)


def test_error_ratio_is_relative_to_stars_of_the_same_signal_to_noise():
    snr = np.repeat([20.0, 80.0], 200)
    error = np.repeat([[4.0, 8.0], [1.0, 2.0]], 200, axis=0)
    error[5] *= 3.0
    ratio = error_ratio(error, snr, np.zeros(400, np.int32))
    assert ratio[5] == pytest.approx(3.0)
    assert np.delete(ratio, 5) == pytest.approx(np.ones(399))


def test_missing_inputs_are_no_reason_to_label_a_star():
    rng = np.random.default_rng(11)
    stars = census(rng.random(400), rng.random(400))
    stars.error[:40] = 5.0
    stars.flags[:40] = Flag.NO_PARALLAX
    np.testing.assert_array_equal(suggest_from(stars, 400).error_ratio, 1.0)


def test_a_region_without_training_stars_comes_first():
    rng = np.random.default_rng(2)
    empty = rng.normal(4.0, 0.1, 60)
    found = suggest_from(
        census(np.concatenate([rng.normal(0, 1, 600), empty]), rng.normal(0, 1, 400)), 20
    )
    assert np.mean(found.row[:10] >= 600) > 0.8
    assert found.density_ratio[0] > 3.0


def test_larger_errors_come_first_where_densities_are_equal():
    rng = np.random.default_rng(3)
    stars = census(rng.random(400), rng.random(400))
    stars.error[37] = 4.0
    found = suggest_from(stars, 1)
    assert found.row[0] == 37
    assert found.error_ratio[0] == pytest.approx(4.0)


def test_two_regions_in_equal_need_are_served_alike():
    rng = np.random.default_rng(4)
    training = rng.normal(0, 0.3, 400)
    left, right = rng.normal(-3, 0.1, 120), rng.normal(3, 0.1, 100)
    found = suggest_from(census(np.concatenate([left, right]), training), 40)
    assert 15 <= np.sum(found.row < 120) <= 28


def test_each_choice_lowers_the_gain_of_its_neighbours():
    place = np.zeros(5)
    place[4] = 50.0
    found = suggest_from(census(place, np.linspace(10, 20, 100)), 3)
    factor = NEIGHBOURS / (NEIGHBOURS + np.arange(3))
    np.testing.assert_allclose(found.diversity, factor)
    np.testing.assert_allclose(
        found.gain, found.density_ratio * found.error_ratio**2 * found.diversity
    )
    assert np.all(np.diff(found.gain) <= 0)


def test_suggestions_are_distinct_repeatable_and_as_many_as_there_are():
    rng = np.random.default_rng(5)
    stars = census(rng.normal(size=(80, 3)), rng.normal(size=(50, 3)))
    found, again = suggest_from(stars, 30), suggest_from(stars, 30)
    np.testing.assert_array_equal(found.row, again.row)
    np.testing.assert_array_equal(found.row, suggest_from(stars, 80).row[:30])
    assert np.unique(suggest_from(stars, 500).row).size == 80


def test_no_stars_and_no_use():
    rng = np.random.default_rng(6)
    stars = census(rng.normal(size=12), rng.normal(size=40), labelled=np.ones(12, bool))
    found = suggest_from(stars, 5)
    assert len(found) == 0
    assert sum(found.excluded.values()) == 12
    assert len(found.table()) == 0
    assert len(suggest_from(stars.rows(np.arange(0)), 5)) == 0
    with pytest.raises(ConfigError, match="at least 1"):
        suggest_from(stars, 0)


@pytest.mark.parametrize("flag", USELESS)
def test_useless_stars_are_never_suggested(flag):
    rng = np.random.default_rng(7)
    flags = np.zeros(60, np.int32)
    flags[:5] = flag
    found = suggest_from(census(rng.normal(size=60), rng.normal(size=40), flags=flags), 60)
    assert set(found.row) == set(range(5, 60))
    assert found.excluded == {flag.text: 5}


def test_stars_outside_the_training_sample_are_not_useless():
    outside = (Flag.LABELS_UNLIKE, Flag.SPECTRUM_UNLIKE, Flag.LABEL_OUTSIDE, Flag.HOT_STAR)
    assert not set(outside) & set(USELESS)


def test_one_spectrum_of_each_star_the_best_is_suggested():
    star = np.array(["a", "a", "b", "b", "", ""])
    snr = np.array([30.0, 60.0, 70.0, np.nan, 40.0, 40.0])
    found = suggest_from(census(np.arange(6.0), np.arange(40.0), star_id=star, snr=snr), 6)
    assert set(found.row) == {1, 2, 4, 5}


def test_stars_without_answer_are_left_out():
    place = np.arange(6.0)
    place[2] = np.nan
    found = suggest_from(census(place, np.arange(40.0)), 6)
    assert set(found.row) == {0, 1, 3, 4, 5}
    assert found.excluded == {"no predicted labels": 1}


def test_shares_count_each_flag():
    flags = np.array([0, Flag.LOW_SNR, Flag.LOW_SNR | Flag.EMISSION, Flag.A_V_MISSING], np.int32)
    stars = census(np.arange(4.0), np.arange(40.0), flags=flags)
    assert stars.shares() == {"LOW_SNR": 0.5, "A_V_MISSING": 0.25, "EMISSION": 0.25}
    assert stars.warned == 0.5


@pytest.mark.parametrize("suffix", adviser.SUFFIXES)
def test_lists_are_read_back(tmp_path, suffix):
    rng = np.random.default_rng(8)
    flags = np.full(30, Flag.LABELS_UNLIKE, np.int32)
    found = suggest_from(census(rng.normal(size=30), rng.normal(size=40), flags=flags), 7)
    path = found.write(tmp_path / f"next{suffix}")
    table = Table.read(path, format="parquet" if suffix == ".parquet" else None)
    assert list(table["rank"]) == list(range(1, 8))
    assert [str(name) for name in table["id"]] == list(found.id)
    np.testing.assert_allclose(table["gain"], found.gain)
    assert "LABELS_UNLIKE" in str(table["reason"][0])
    assert np.all(np.asarray(table["simulated"]).astype(str) == "True")
    with pytest.raises(OutputExists):
        found.write(path)


def test_other_formats_are_refused():
    with pytest.raises(ConfigError, match=r"\.csv"):
        adviser.check_suffix("next.xlsx")


def test_plane_places_training_and_observed_stars(monkeypatch):
    pytest.importorskip("openTSNE")
    rng = np.random.default_rng(9)
    flags = np.where(np.arange(70) < 9, Flag.LABELS_UNLIKE, 0).astype(np.int32)
    place = np.concatenate([rng.normal(9, 0.1, (9, 3)), rng.normal(0, 0.1, (61, 3))])
    stars = census(place, rng.normal(0, 0.1, (50, 3)), flags=flags)
    where, kind, ringed = adviser.plane(stars, suggest_from(stars, 5))
    assert where.shape == (120, 2)
    assert np.bincount(kind).tolist() == [61, 9, 50]
    assert ringed.sum() == 5
    assert not ringed[:50].any()
    unlike, others = where[kind == 1], where[kind != 1]
    nearest = np.sqrt(np.square(unlike[:, None] - unlike).sum(-1))
    np.fill_diagonal(nearest, np.inf)
    apart = np.sqrt(np.square(unlike[:, None] - others).sum(-1)).min(axis=1)
    assert np.mean(nearest.min(axis=1) < apart) > 0.8
    with pytest.raises(ConfigError, match="at least"):
        adviser.plane(census(np.arange(3.0), np.arange(4.0)))


def test_map_shows_every_star_and_its_kind():
    place = np.random.default_rng(10).normal(size=(60, 2))
    kind = np.repeat([0, 1, 2], 20)
    ringed = np.arange(60) % 20 == 0
    figure = coverage_map(place, kind, suggested=ringed, simulated=True)
    (ax,) = figure.axes
    drawn = {artist.get_label(): artist.get_offsets() for artist in ax.collections}
    for text, there in (
        ("observed (20)", kind == Kind.OBSERVED),
        ("observed, flagged as unlike (20)", kind == Kind.UNLIKE),
        ("training (20)", kind == Kind.TRAINING),
        ("suggested (3)", ringed),
    ):
        np.testing.assert_allclose(drawn[text], place[there])
    assert [text.get_text() for text in ax.texts] == ["SIMULATED"]
    assert not coverage_map(place, kind).axes[0].texts
    with pytest.raises(LengthMismatch, match="59"):
        coverage_map(place[1:], kind)


def test_map_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openTSNE", None)
    with pytest.raises(MissingExtra, match=r"maury\[map\]"):
        adviser.plane(census(np.arange(30.0), np.arange(40.0)))


def test_models_without_coverage_are_refused(tiny_model, observed_survey):
    with pytest.raises(ConfigError, match="preset maury"):
        adviser.suggest(tiny_model, observed_survey, 5)


def test_stars_that_the_model_knows_are_not_suggested(default_model, default_survey):
    assert Census.take(default_model, default_survey).labelled.all()


def test_labelled_stars_are_known_by_any_of_their_spectra(default_model, observed_survey, tmp_path):
    truth = {
        name: np.where(
            np.arange(90) < 10, Survey.open(observed_survey).column(f"true_{name}"), np.nan
        )
        for name in Model.open(default_model).label_names
    }
    star = np.array([f"star{k % 45}" for k in range(90)])
    path = copy_survey(observed_survey, tmp_path / "o.zarr", star_id=star, **truth)
    labelled = Census.take(default_model, path).labelled
    assert set(np.flatnonzero(labelled)) == {*range(10), *range(45, 55)}


def test_command_line(default_model, observed_survey, tmp_path):
    out = tmp_path / "next.csv"
    arguments = ["coverage", str(default_model), str(observed_survey), "--out", str(out)]
    done = CliRunner().invoke(cli.app, [*arguments, "--suggest", "12"])
    assert done.exit_code == 0, done.output
    assert "90 SIMULATED spectra" in done.output
    assert "12 stars to label next" in done.output
    found = adviser.suggest(default_model, observed_survey, 12)
    assert list(Table.read(out)["id"]) == list(found.id)
    again = CliRunner().invoke(cli.app, arguments)
    assert isinstance(again.exception, OutputExists)


def test_command_line_draws_the_map(default_model, observed_survey, tmp_path):
    pytest.importorskip("openTSNE")
    path = tmp_path / "map.png"
    arguments = ["coverage", str(default_model), str(observed_survey), "--map", str(path)]
    done = CliRunner().invoke(cli.app, arguments)
    assert done.exit_code == 0, done.output
    assert "stars to label next" not in done.output
    assert path.read_bytes().startswith(b"\x89PNG")


def test_suggestions_lower_the_error_where_coverage_is_poor(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("check_adviser", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "check_adviser", script)
    spec.loader.exec_module(script)
    monkeypatch.setattr(uncertainty, "N_SIMULATED", 1000)
    size = script.Size(steps=300, stars=3000, members=2)
    found = script.run_seed(20, 200, size=size, work=tmp_path)
    assert found.suggested < found.base
    assert found.suggested < found.random
