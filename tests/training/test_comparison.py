"""Comparisons of methods: folds, consensus, kinds of star, losses, resumption, figures."""

import json

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from builders.surveys import copy_survey
from builders.training_survey import write_survey
from maury.cli.app import app
from maury.errors import ConfigError, ResumeMismatch, UnknownName
from maury.evaluation.consensus import Combination
from maury.evaluation.ranking import CONSENSUS, GIVEN, MethodPredictions, Ranking, View
from maury.labels import definitions as labels_module
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_sigma
from maury.methods.registry import METHODS
from maury.model.networks.published import PRESETS
from maury.report.figures.comparison import draw
from maury.simulation.bound import cramer_rao
from maury.survey.store import Survey
from maury.training.comparison import COMPETITORS, Competitor, compare, pairs_of
from maury.training.runs import train
from maury.training.simulated_snr import fit_star_simulator, resimulate

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

QUICK = {
    "matisse": {"method": {"nodes": 2, "neighbours": 60}},
    "athos": {"method": {"ratios": 5, "widths": (3,), "reach_aa": 12.0}},
}
NAMES = ("cannon", "matisse", "athos")


@pytest.fixture(scope="module")
def survey(tmp_path_factory) -> Survey:
    return write_survey(tmp_path_factory.mktemp("survey") / "made.zarr", n=360)


@pytest.fixture(scope="module")
def compared(survey, tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    return compare(survey, out, methods=NAMES, folds=3, config=QUICK), out


def correlated(n, covariance, seed):
    return np.random.default_rng(seed).multivariate_normal(np.zeros(len(covariance)), covariance, n)


def test_every_method_and_preset_can_be_compared():
    assert {one.method for one in COMPETITORS.values()} == {*METHODS, *PRESETS} - {"student"}
    assert COMPETITORS["maury"].model == COMPETITORS["maury-spectrum"].model
    assert COMPETITORS["payne"].inputs != COMPETITORS["payne-photometry"].inputs
    assert COMPETITORS["cannon"].inputs == "spectrum"
    assert "photometry" in COMPETITORS["maury"].inputs


def test_every_star_is_tested_once(survey, compared):
    found, _ = compared
    view = found.views[0]
    assert len(view.truth) == len(survey)
    expected = np.sort(survey.labels(("teff", "logg")), axis=0)
    np.testing.assert_array_equal(np.sort(view.truth, axis=0), expected)
    assert found.methods == (*NAMES, CONSENSUS)
    for one in view.predictions:
        assert np.isfinite(one.mean).mean() > 0.99


def test_answers_are_those_of_the_trained_models(survey, compared):
    from maury.model.split import SplitConfig, split_rows
    from maury.prediction.streaming import predict_rows

    found, out = compared
    split = split_rows(survey.star_id, config=SplitConfig(folds=3, fold=0), seed=0)
    table = predict_rows(out / "models" / "cannon" / "0", survey, split.test)
    answers = found.views[0].of("cannon")
    np.testing.assert_allclose(answers.mean[: split.test.size, 0], table["teff"])
    np.testing.assert_allclose(answers.sigma[: split.test.size, 1], table["logg_error"])


def test_test_stars_steer_nothing(survey, compared, tmp_path):
    """Wrong labels of the test stars of a fold change none of its answers."""
    from maury.model.split import SplitConfig, split_rows

    found, _ = compared
    split = split_rows(survey.star_id, config=SplitConfig(folds=3, fold=0), seed=0)
    teff = survey.column("teff").copy()
    teff[split.test] += np.random.default_rng(0).normal(0, 500, split.test.size)
    other = Survey.open(copy_survey(survey.path, tmp_path / "other.zarr", teff=teff))
    again = compare(other, tmp_path / "out", methods=NAMES, folds=3, config=QUICK)
    first = slice(0, split.test.size)
    for one, same in zip(found.views[0].predictions, again.views[0].predictions, strict=True):
        np.testing.assert_array_equal(one.mean[first], same.mean[first])
        np.testing.assert_array_equal(one.sigma[first], same.sigma[first])


def test_a_second_run_repeats_nothing_and_takes_more_methods(survey, compared):
    _, out = compared
    models = {p: p.stat().st_mtime_ns for p in out.rglob("model.json")}
    steps = []
    again = compare(
        survey,
        out,
        methods=("cannon", "athos"),
        folds=3,
        config=QUICK,
        progress=lambda *step: steps.append(step),
    )
    assert again.methods == ("cannon", "athos", CONSENSUS)
    assert {p: p.stat().st_mtime_ns for p in out.rglob("model.json")} == models
    assert [what for what, _, _ in steps] == ["cannon", "athos", "consensus"]
    with pytest.raises(ResumeMismatch, match="2 folds"):
        compare(survey, out, methods=("cannon",), folds=2)


def test_tables_hold_what_was_measured(compared):
    found, out = compared
    document = json.loads((out / "comparison.json").read_text("utf-8"))
    table = Table.read(out / "comparison.ecsv", format="ascii.ecsv")
    chosen = (table["method"] == "athos") & (table["stars"] == "all") & (table["name"] == "teff")
    assert chosen.sum() == 1
    expected = found.of("athos", "teff").statistics.scatter_robust
    assert table["scatter_robust"][chosen][0] == pytest.approx(expected)
    assert document["simulated"] is True
    assert len(document["standings"]) == len(table)
    assert document["speed"]["cannon"]["ms"] > 0
    assert document["speed"]["cannon"]["train_s"] > 0
    assert table.meta["maury"]["folds"] == 3


def test_kinds_of_star_add_up(compared):
    found, _ = compared
    view = found.views[0]
    kinds = found.subsets(view)
    assert kinds["giants"].sum() + kinds["dwarfs"].sum() == len(view.truth)
    by_snr = np.sum([v for k, v in kinds.items() if k.startswith("S/N")], axis=0)
    assert np.all(by_snr == 1)


def test_agreement_is_the_scatter_of_differences(compared):
    found, _ = compared
    matrix = found.agreement("logg")
    first, second = (found.views[0].of(name).mean[:, 1] for name in NAMES[:2])
    assert matrix[0, 1] == matrix[1, 0] == pytest.approx(robust_sigma(first - second))
    assert np.all(np.diag(matrix) == 0)


def test_figures_are_drawn(compared):
    found, out = compared
    drawn = draw(found, out)
    assert [path.name for path in drawn] == [
        "scatter.png",
        "calibration.png",
        "kinds.png",
        "speed.png",
        "agreement.png",
    ]
    assert all(path.stat().st_size > 10_000 for path in drawn)


def made_ranking(own, rival, *, rival_inputs="spectrum", own_inputs="spectrum", n=400):
    rng = np.random.default_rng(1)
    truth = np.column_stack([rng.uniform(4000, 6000, n), rng.uniform(1, 5, n)])
    none = np.zeros(n, dtype=bool)

    def answers(name, sizes, inputs):
        size = np.array(sizes)
        return MethodPredictions(
            name, inputs, truth + size * rng.standard_normal((n, 2)), np.tile(size, (n, 1)), none
        )

    both = (answers("maury", own, own_inputs), answers("cannon", rival, rival_inputs))
    view = View(GIVEN, truth, np.full(n, 50.0), both)
    labels = labels_module.select(("teff", "logg"))
    return Ranking(labels, (view,), {}, "s.zarr", True, 1, 0)


def test_losses_are_named_where_they_are():
    found = made_ranking((100.0, 0.1), (50.0, 0.2))
    losses = found.losses("maury")
    assert {loss.label for loss in losses} == {"Teff"}
    assert any(loss.stars == "all" for loss in losses)
    assert "maury loses to cannon in Teff (all, as given)" in str(losses[0])
    assert {loss.label for loss in found.losses("cannon")} == {"log g"}


def test_equal_methods_lose_little():
    found = made_ranking((100.0, 0.1), (100.0, 0.1))
    assert len(found.losses("maury")) <= 2


def test_a_method_with_more_inputs_is_no_rival_of_spectra_alone():
    found = made_ranking((100.0, 0.1), (50.0, 0.05), rival_inputs="spectrum, photometry")
    assert found.losses("maury") == []
    assert found.losses("cannon") == []


def test_consensus_weights_are_the_best_linear_unbiased_ones():
    covariance = np.array([[1.0, 0.8, 0.0], [0.8, 1.2, 0.1], [0.0, 0.1, 2.0]])
    combination = Combination(np.zeros(3), np.ones(3), np.ones(3), np.ones(3), covariance)
    weight, variance = combination.weights(np.zeros((1, 3)), np.ones((1, 3)))
    inverse = np.linalg.inv(covariance)
    np.testing.assert_allclose(weight[0], inverse.sum(axis=1) / inverse.sum())
    assert variance[0] == pytest.approx(1 / inverse.sum())
    values = np.array([[1.0, np.nan, 3.0]])
    weight, _ = combination.weights(values, np.ones((1, 3)))
    two = np.linalg.inv(covariance[np.ix_([0, 2], [0, 2])])
    np.testing.assert_allclose(weight[0, [0, 2]], two.sum(axis=1) / two.sum())
    assert weight[0, 1] == 0
    nothing = combination.combine(np.full((1, 3), np.nan), np.ones((1, 3)))
    assert np.isnan(nothing).all()


def test_consensus_is_better_than_each_and_its_errors_hold_though_all_err_together():
    covariance = np.array([[1.0, 0.6, 0.5], [0.6, 1.0, 0.5], [0.5, 0.5, 1.0]])
    learn = correlated(300, covariance, 2) + np.array([0.5, 0.0, -0.3])
    # Quoted errors are half as large as they should be.
    combination = Combination.learn(learn, np.full((300, 3), 0.5))
    test = correlated(20_000, covariance, 3) + np.array([0.5, 0.0, -0.3])
    value, error = combination.combine(test, np.full((20_000, 3), 0.5))
    best = np.sqrt(1 / np.linalg.inv(covariance).sum())
    assert value.std() < 1.05 * best
    assert abs(value.mean()) < 0.15
    assert 0.85 < robust_sigma(value / error) < 1.15
    independent = 1 / np.sqrt(3)
    assert np.median(error) > 1.2 * independent


def test_consensus_follows_the_errors_of_each_star():
    rng = np.random.default_rng(4)
    sigma = rng.choice([0.2, 2.0], (4000, 2))
    combination = Combination.learn(sigma[:500] * rng.standard_normal((500, 2)), sigma[:500])
    residual = sigma * rng.standard_normal((4000, 2))
    value, error = combination.combine(residual, sigma)
    plain = residual.mean(axis=1)
    assert value.std() < 0.8 * plain.std()
    assert 0.85 < robust_sigma(value / error) < 1.15


def test_quoted_errors_that_tell_nothing_do_not_count():
    rng = np.random.default_rng(6)
    sigma = np.exp(rng.normal(0, 1, (4000, 2)))
    residual = rng.standard_normal((4000, 2)) * np.array([1.0, 3.0])
    combination = Combination.learn(residual[:400], sigma[:400])
    assert np.all(combination.power <= 0.25)
    value, _ = combination.combine(residual, sigma)
    assert value.std() < 1.03 * np.sqrt(1 / (1 + 1 / 9))


def test_one_bad_method_does_not_spoil_the_consensus():
    """A method whose errors are far too small must not win by it."""
    rng = np.random.default_rng(7)
    residual = rng.standard_normal((2000, 2)) * np.array([1.0, 4.0])
    sigma = np.tile([1.0, 0.5], (2000, 1))
    combination = Combination.learn(residual[:300], sigma[:300])
    value, error = combination.combine(residual, sigma)
    assert value.std() < 1.02
    assert 0.85 < robust_sigma(value / error) < 1.15


def test_a_method_without_answers_has_no_weight():
    residual = correlated(100, np.eye(3), 5)
    residual[5:, 1] = np.nan
    combination = Combination.learn(residual, np.ones((100, 3)))
    weight, _ = combination.weights(np.zeros((2, 3)), np.ones((2, 3)))
    assert np.all(weight[:, 1] == 0)
    np.testing.assert_allclose(weight.sum(axis=1), 1)
    assert Combination.learn(np.full((100, 3), np.nan), np.ones((100, 3))) is None


def test_spectra_are_made_anew_at_the_stated_snr(tiny_survey):
    survey = Survey.open(tiny_survey)
    star_simulator = fit_star_simulator(survey, np.arange(120))
    batch = survey.batch(120, 160)
    made = {
        snr: resimulate(batch, star_simulator, snr, rng=np.random.default_rng(1))[0].spectra
        for snr in (20.0, 1e5)
    }
    noise = made[20.0].flux - made[1e5].flux
    assert np.std(noise / np.sqrt(made[1e5].flux)) == pytest.approx(1 / 20, rel=0.1)
    # Without noise they are nearer to the observed ones than these are noisy.
    apart = batch.spectra.flux - made[1e5].flux
    assert np.sqrt(np.mean(apart**2 * batch.spectra.ivar)) < 1.6
    resimulated, truth = resimulate(batch, star_simulator, 20.0, rng=np.random.default_rng(1))
    assert np.all(resimulated.column("snr") == 20.0)
    np.testing.assert_allclose(truth[:, 0], batch.column("teff"), rtol=0.1)
    np.testing.assert_array_equal(resimulated.column("parallax"), batch.column("parallax"))


def test_scatter_is_told_in_units_of_the_least_that_simulated_spectra_allow(tiny_survey, tmp_path):
    found = compare(
        tiny_survey, tmp_path / "out", methods=("matisse", "gaufre"), config=QUICK, snr=(100.0,)
    )
    given, view = found.views
    assert not given.bounds
    assert found.over_bound(given) == {}
    alone, helped = (view.bounds[kind] for kind in ("spectrum", "spectrum, photometry"))
    nine = [LABEL_NAMES.index(label.name) for label in found.labels]
    assert alone.shape == view.truth.shape
    assert np.all(helped <= alone * (1 + 1e-9))
    # A measured continuum may differ from the typical one, but not by much.
    typical = cramer_rao(view.truth[:, np.argsort(nine)], view.snr)[:, nine]
    assert 0.5 < np.median(alone[:, 0] / typical[:, 0]) < 2.0
    k = [label.name for label in found.labels].index("teff")
    answer = view.of("gaufre")
    ratio = robust_sigma((answer.mean[:, k] - view.truth[:, k]) / alone[:, k])
    assert found.over_bound(view)["gaufre"][k] == pytest.approx(ratio)
    assert ratio > 0.8
    header, *rows = found.bound_rows(view)
    assert [row[0] for row in rows] == ["matisse", "gaufre", CONSENSUS]
    assert len(header) == 10


def test_too_few_labels_for_simulated_snr_are_named(survey, tmp_path):
    with pytest.raises(ConfigError, match="without --snr"):
        compare(survey, tmp_path / "out", methods=("cannon",), snr=(20.0,))


def test_reused_models_may_not_have_met_a_test_star(survey, tmp_path):
    train(survey, tmp_path / "same", method="cannon", seed=0)
    train(survey, tmp_path / "other", method="cannon", seed=1)
    found = compare(
        survey, tmp_path / "a", methods=("cannon",), reuse={"cannon": tmp_path / "same"}
    )
    assert not (tmp_path / "a" / "models").exists()
    assert found.methods == ("cannon",)
    with pytest.raises(ConfigError, match="has met"):
        compare(survey, tmp_path / "b", methods=("cannon",), reuse={"cannon": tmp_path / "other"})
    with pytest.raises(ConfigError, match="one fold only"):
        compare(survey, tmp_path / "c", reuse={"cannon": tmp_path / "same"}, folds=2)


def test_a_method_that_cannot_run_is_named(survey, tmp_path):
    wide = {"athos": {"method": {"widths": (90,)}}}
    found = compare(survey, tmp_path / "out", methods=("athos", "cannon"), config=wide)
    assert found.methods == ("cannon",)
    assert "no two windows" in found.not_run["athos"]
    with pytest.raises(ConfigError, match="no method could be run: athos"):
        compare(survey, tmp_path / "out", methods=("athos",), config=wide)


def test_mistakes_are_named(survey, tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'cannon'"):
        compare(survey, tmp_path / "out", methods=("canon",))
    with pytest.raises(ConfigError, match="makes the split itself"):
        compare(survey, tmp_path / "out", methods=("cannon",), config={"cannon": {"split": {}}})
    with pytest.raises(ConfigError, match="METHOD=MODEL"):
        pairs_of(["cannon"])
    assert pairs_of(["maury=a=b"]) == {"maury": "a=b"}
    assert Competitor("a", "cannon").with_config({"method": {"runs": 2}}).model != "cannon"


def test_the_command_line(survey, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("maury.report.figures.comparison.draw", lambda *given: drawn.append(given))
    out = tmp_path / "out"
    command = ["compare", str(survey.path), "--methods", "cannon,athos", "--out", str(out)]
    (tmp_path / "c.toml").write_text("[athos.method]\nwidths = [3]\nreach_aa = 12.0\n", "utf-8")
    done = CliRunner().invoke(app, [*command, "--config", str(tmp_path / "c.toml")])
    assert done.exit_code == 0, done.output
    assert "SIMULATED" in done.output
    assert "robust scatter, as given" in done.output
    assert len(drawn) == 1
    assert (out / "comparison.ecsv").is_file()


def ranking_of(n_label, methods, *, simulated=False, bounds=False, not_run=()):
    """Made-up answers of some methods to 60 stars; of the last one none in the last label."""
    rng = np.random.default_rng(4)
    labels = labels_module.select(LABEL_NAMES[:n_label])
    low, high = np.array([label.range for label in labels]).T
    truth = rng.uniform(low, high, (60, n_label))
    views = []
    for name in (GIVEN, "S/N 100") if bounds else (GIVEN,):
        answers = []
        for k, method in enumerate(methods):
            size = 0.01 * (k + 1) * (high - low)
            mean = truth + size * rng.standard_normal(truth.shape)
            if k == len(methods) - 1:
                mean[:, -1] = np.nan
            inputs = "spectrum"
            warned = np.zeros(60, dtype=bool)
            answers.append(
                MethodPredictions(method, inputs, mean, np.tile(size, (60, 1)), warned, 2.0 + k)
            )
        least = {"spectrum": np.tile(0.005 * (high - low), (60, 1))} if name != GIVEN else {}
        views.append(View(name, truth, np.full(60, 50.0), tuple(answers), least))
    return Ranking(labels, tuple(views), dict(not_run), "s.zarr", simulated, 1, 0)


@pytest.mark.parametrize("simulated", [True, False])
def test_figures_of_a_comparison_bear_the_mark_only_if_simulated(simulated):
    from matplotlib.text import Text

    from maury.report.figures import comparison as figures
    from maury.report.figures.style import SIMULATED

    found = ranking_of(4, ("maury", "cannon", CONSENSUS), simulated=simulated)
    for draw_one in (
        figures.scatter_figure,
        figures.calibration_figure,
        figures.kinds_figure,
        figures.speed_figure,
        figures.agreement_figure,
    ):
        shown = [text.get_text() for text in draw_one(found).findobj(Text)]
        assert shown.count(SIMULATED) == simulated


def test_the_scatter_of_a_comparison_is_drawn_label_by_label():
    from maury.report.figures.comparison import scatter_figure
    from maury.report.figures.style import ACCENT

    found = ranking_of(4, ("maury", "cannon", "athos"), bounds=True)
    figure = scatter_figure(found)
    assert [ax.axison for ax in figure.axes] == [True] * 4 + [False] * 2
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [GIVEN, "S/N 100"]
    points = figure.axes[1].collections[0]
    wanted = [found.of(name, "logg").statistics.scatter_robust for name in found.methods]
    np.testing.assert_allclose(points.get_offsets()[:, 0], wanted)
    from matplotlib.colors import to_rgba

    assert tuple(points.get_edgecolors()[0]) == to_rgba(ACCENT)


def test_a_method_without_answers_is_left_out_of_the_figure_of_its_errors():
    from maury.report.figures.comparison import calibration_figure, speed_figure

    found = ranking_of(1, ("cannon", "athos"))
    left, _ = calibration_figure(found).axes
    medians = [line for line in left.lines if line.get_marker() == "o"]
    assert len(medians) == 1
    assert [text.get_text() for text in left.get_yticklabels()] == ["cannon", "athos"]
    (ax,) = speed_figure(found).axes
    assert [text.get_text() for text in ax.texts] == ["cannon"], "there is no consensus to compare"


def test_rankings_are_printed_with_bounds_losses_and_what_was_not_run(capsys):
    from maury.cli.terminal import show_ranking

    found = ranking_of(
        2, ("cannon", "maury-spectrum"), bounds=True, not_run={"sme": "no line list"}
    )
    show_ranking(found)
    said = capsys.readouterr().out
    assert "scatter over the Cramer-Rao bound of such spectra, S/N 100" in said
    assert "sme was not run: no line list" in said
    losses = found.losses("maury-spectrum")
    assert f"maury-spectrum: {len(losses)} losses" in said
    assert all(f"  {loss}" in said for loss in losses)
    show_ranking(ranking_of(2, ("maury", "cannon")))
    assert "maury loses nowhere" in capsys.readouterr().out
