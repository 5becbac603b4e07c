"""Leaderboards: several surveys and seeds on one page, bounds, silent failures, resumption."""

import json
from dataclasses import replace

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from builders.training_survey import write_survey
from maury.cli.app import app
from maury.errors import ConfigError
from maury.evaluation.leaderboard import Leaderboard, SurveyRuns
from maury.evaluation.ranking import GIVEN, SPECTRUM, MethodPredictions, Ranking, View
from maury.labels import definitions as labels_module
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_sigma
from maury.report.figures import leaderboard_figure
from maury.simulation.bound import cramer_rao
from maury.survey.store import Survey
from maury.training.comparison import BOTH, divided_rows
from maury.training.leaderboard import bounds_as_given, leaderboard

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

QUICK = {"athos": {"method": {"ratios": 5, "widths": (3,), "reach_aa": 12.0}}}
NAMES = ("cannon", "athos")


@pytest.fixture(scope="module")
def surveys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("surveys")
    return [write_survey(folder / f"{n}.zarr", n=360, seed=k) for k, n in enumerate("ab")]


@pytest.fixture(scope="module")
def board(surveys, tmp_path_factory):
    out = tmp_path_factory.mktemp("board") / "out"
    return leaderboard(surveys, out, methods=NAMES, seeds=(0, 1), config=QUICK), out


def made(name, scale, *, seed=0, warned=0.0, inputs=SPECTRUM, n=2000):
    """Residuals of `scale` times the bound, with stated errors equal to the bound."""
    rng = np.random.default_rng(seed)
    truth = np.column_stack([rng.uniform(4000, 6000, n), rng.uniform(1, 5, n)])
    bound = np.tile([50.0, 0.1], (n, 1))
    mean = truth + scale * bound * rng.standard_normal((n, 2))
    own = MethodPredictions(name, inputs, mean, bound, rng.random(n) < warned, ms=1.0, train_s=5.0)
    view = View(GIVEN, truth, np.full(n, 50.0), (own,), {SPECTRUM: bound, BOTH: bound})
    labels = labels_module.select(("teff", "logg"))
    return Ranking(labels, (view,), {}, "s.zarr", True, 1, seed)


def test_scatter_is_told_over_the_bound_and_shares_are_those_of_a_normal_distribution():
    board = Leaderboard((SurveyRuns((made("x", 1.5, seed=0), made("x", 1.5, seed=1))),))
    one = board.of("s", "x")
    assert one.over_bound == pytest.approx(1.5, rel=0.05)
    assert one.over_bound_error < 0.05
    assert one.n_seed == 2
    assert one.n_spectrum == 4000
    # Errors are too small by 1.5: erf(1 / 1.5 / sqrt 2), and two labels may lie beyond 3 / 1.5.
    assert one.within == pytest.approx(0.495, abs=0.02)
    assert one.silent == pytest.approx(1 - 0.9545**2, abs=0.015)
    assert one.silent_error == pytest.approx(np.sqrt(one.silent * (1 - one.silent) / 4000))
    assert one.slope == pytest.approx(1.0, abs=0.02)
    assert one.scatter["teff"] == pytest.approx(75.0, rel=0.05)


def test_a_warning_is_not_silent():
    quiet, loud = (
        Leaderboard((SurveyRuns((made("x", 2.0, warned=share),)),)).of("s", "x")
        for share in (0.0, 1.0)
    )
    assert quiet.silent > 0.2
    assert loud.silent == 0.0
    assert loud.warned == 1.0


def test_a_missing_answer_is_counted_and_not_silently_wrong():
    ranking = made("x", 1.0)
    view = ranking.views[0]
    mean = view.predictions[0].mean.copy()
    mean[:500] = np.nan
    own = replace(view.predictions[0], mean=mean)
    ranking = replace(ranking, views=(replace(view, predictions=(own,)),))
    one = Leaderboard((SurveyRuns((ranking,)),)).of("s", "x")
    assert one.unanswered == pytest.approx(0.25)
    assert one.silent < 0.01


def test_the_best_comes_first_and_what_sees_photometry_apart():
    first, second = made("worse", 2.0), made("better", 1.0)
    helped = made("helped", 0.5, inputs=BOTH)
    views = [one.views[0] for one in (first, second, helped)]
    # All on the truth of the first: residuals are what is ranked.
    truth = views[0].truth
    moved = [replace(v.predictions[0], mean=v.predictions[0].mean - v.truth + truth) for v in views]
    view = replace(views[0], predictions=tuple(moved))
    board = Leaderboard((SurveyRuns((replace(first, views=(view,)),)),))
    assert [one.method for one in board.entries] == ["helped", "better", "worse"]
    assert board.methods == ("better", "worse", "helped")
    page = board.to_markdown()
    assert "**Simulated** spectra" in page
    assert page.index("| helped |") < page.index("| better |") < page.index("| worse |")


def test_without_a_bound_a_method_is_still_listed():
    ranking = made("x", 1.0)
    ranking = replace(ranking, views=(replace(ranking.views[0], bounds={}),))
    board = Leaderboard((SurveyRuns((ranking,)),))
    assert np.isnan(board.entries[0].over_bound)
    assert json.loads(board.to_json())["entries"][0]["over_bound"] is None
    assert "| x | spectrum | - |" in board.to_markdown()


def test_a_board_is_the_mean_of_its_comparisons(board):
    found, out = board
    assert {one.method for one in found.entries} == {*NAMES, "consensus"}
    for runs in found.surveys:
        over, within = [], []
        for ranking in runs.rankings:
            view = ranking.views[0]
            own = view.of("cannon")
            ratio = (own.mean - view.truth) / view.bounds[SPECTRUM]
            over.append(np.exp(np.mean([np.log(robust_sigma(ratio[:, k])) for k in range(2)])))
            within.append(np.mean(np.abs(own.mean - view.truth) <= own.sigma))
        one = found.of(runs.name, "cannon")
        assert one.over_bound == pytest.approx(np.mean(over))
        assert one.within == pytest.approx(np.mean(within), abs=0.01)
        assert one.ms > 0
        assert one.train_s > 0
    table = Table.read(out / "leaderboard.ecsv", format="ascii.ecsv")
    assert len(table) == 6
    document = json.loads((out / "leaderboard.json").read_text("utf-8"))
    assert document["seeds"] == [0, 1]
    assert document["settings"]["athos"]["method"]["ratios"] == 5
    page = (out / "leaderboard.md").read_text("utf-8")
    assert "`athos`: ratios = 5" in page
    others = Leaderboard(found.surveys, {**QUICK, "gaufre": {"method": {"reuse": 2}}})
    assert "gaufre" not in others.to_markdown()


def test_a_board_that_was_broken_off_goes_on(board, surveys):
    found, out = board
    models = {p: p.stat().st_mtime_ns for p in out.rglob("model.json")}
    # One answer, and one bound, as if the run had been killed before them.
    for name in ("answers/athos-*test*.npz", "answers/bounds.npz"):
        for path in (out / "a-1").glob(name):
            path.unlink()
    again = leaderboard(surveys, out, methods=NAMES, seeds=(0, 1), config=QUICK)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("model.json")} == models
    for one, same in zip(found.entries, again.entries, strict=True):
        assert one.over_bound == pytest.approx(same.over_bound)
        assert one.silent == same.silent


def test_no_two_surveys_have_one_name(surveys, tmp_path):
    with pytest.raises(ConfigError, match="must differ"):
        leaderboard([surveys[0], surveys[0].path], tmp_path, methods=("cannon",))
    with pytest.raises(ConfigError, match="must differ"):
        leaderboard(surveys, tmp_path, methods=("cannon",), seeds=(0, 0))
    with pytest.raises(ConfigError, match="a survey and a seed"):
        leaderboard([], tmp_path)


def test_the_bound_of_spectra_as_given_is_that_of_the_emulator_where_it_reaches(tiny_survey):
    survey = Survey.open(tiny_survey)
    labelled, split = divided_rows(survey, 0)
    tested = labelled[split.test]
    bounds = bounds_as_given(survey, labelled[split.train], tested)
    assert set(bounds) == {SPECTRUM, BOTH}
    names = list(survey.label_names)
    truth = survey.labels(LABEL_NAMES)[tested]
    typical = cramer_rao(truth, survey.column("snr")[tested])
    for k, name in enumerate(LABEL_NAMES):
        alone = bounds[SPECTRUM][:, names.index(name)]
        # What is known of the sample cannot make a label less well known, but for the continuum,
        # which is measured.
        assert np.median(alone / typical[:, k]) < 1.4
    assert np.isfinite(bounds[BOTH]).all()


def test_where_the_emulator_does_not_reach_the_bound_is_learnt(surveys):
    survey = surveys[0]
    labelled, split = divided_rows(survey, 0)
    bounds = bounds_as_given(survey, labelled[split.train], labelled[split.test])
    # Depths of .6 u and .6 v at S/N 100 over some seven pixels: 3000 K and 3 dex of range.
    assert np.all(bounds[SPECTRUM] < [60.0, 0.06])
    assert np.all(bounds[SPECTRUM] > [5.0, 0.005])
    assert np.all(bounds[BOTH] <= bounds[SPECTRUM] * (1 + 1e-9))


def test_too_few_stars_have_no_bound_and_a_board_all_the_same(tmp_path):
    survey = write_survey(tmp_path / "few.zarr", n=90)
    labelled, split = divided_rows(survey, 0)
    with pytest.raises(ConfigError, match="100 training stars"):
        bounds_as_given(survey, labelled[split.train], labelled[split.test])
    found = leaderboard([survey], tmp_path / "out", methods=("cannon",), seeds=(0,))
    assert np.isnan(found.entries[0].over_bound)
    assert found.entries[0].silent >= 0


def test_the_figure_shows_every_method_and_survey(board):
    found, _ = board
    figure = leaderboard_figure(found)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert tuple(names) == found.methods
    for ax, quantity in zip(figure.axes, ("over_bound", "within", "silent", "ms"), strict=True):
        factor = 100.0 if quantity in ("within", "silent") else 1.0
        for runs in found.surveys:
            for row, name in enumerate(found.methods):
                value = factor * getattr(found.of(runs.name, name), quantity)
                drawn = [line for line in ax.lines if line.get_marker() not in ("None", "")]
                here = [
                    line.get_xdata()[0]
                    for line in drawn
                    if len(line.get_xdata()) and abs(line.get_ydata()[0] - row) < 0.4
                ]
                assert np.isnan(value) or np.isclose(here, value).any()


def test_the_command_writes_page_and_figure(surveys, tmp_path):
    out = tmp_path / "out"
    paths = [str(survey.path) for survey in surveys]
    given = ["compare", *paths, "--leaderboard", "--methods", "cannon", "--out", str(out)]
    done = CliRunner().invoke(app, [*given, "--seeds", "1"])
    assert done.exit_code == 0, done.output
    assert (out / "leaderboard.png").stat().st_size > 10_000
    assert "cannon" in (out / "leaderboard.md").read_text("utf-8")
    several = CliRunner().invoke(app, ["compare", *paths, "--methods", "cannon"])
    assert isinstance(several.exception, ConfigError)
    folds = CliRunner().invoke(app, [*given, "--folds", "3"])
    assert isinstance(folds.exception, ConfigError)
