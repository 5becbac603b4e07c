"""Draws from posteriors: margins, correlations, tails, and files of them."""

from itertools import combinations

import numpy as np
import pytest
from pyarrow import parquet
from scipy.stats import chi2, f, norm

import maury.prediction.draws as draws_module
import maury.prediction.streaming
from builders.catalogues import catalogue_rows, write_catalogue
from maury.errors import ColumnError, ConfigError, InputFileError, OutputExists
from maury.labels.columns import QUANTILES
from maury.labels.definitions import LABEL_NAMES
from maury.prediction.catalogue import Catalogue
from maury.prediction.draws import (
    Draws,
    degrees_of_freedom,
    draw,
    draws_path,
    normal_scores,
    write_draws,
)
from maury.prediction.streaming import Options, plan, predict
from maury.prediction.streaming import write_catalogue as write_predicted

LEVELS = np.array([percent for _, percent in QUANTILES]) / 100
SKEW = np.array([-3.0, -1.0, 0.2, 1.0, 1.8])


def rows_of(n, correlation, labels=("a", "b")):
    """Stars with skewed quantiles, the errors of whose labels have one correlation."""
    rows = {}
    for k, label in enumerate(labels):
        centre, error = 10.0 * k + np.arange(n), np.linspace(0.5, 2.0, n)
        rows |= {f"{label}_error": error}
        for (suffix, _), knot in zip(QUANTILES, SKEW, strict=True):
            rows[f"{label}_{suffix}"] = centre + knot * error
    for pair in combinations(labels, 2):
        rows["_".join(pair) + "_corr"] = np.full(n, correlation)
    return rows


def joint(inner, outer, n_label=9):
    labels = list(LABEL_NAMES[:n_label])
    return {"joint": {"labels": labels, "mahalanobis2": {"68.3 %": inner, "95.4 %": outer}}}


@pytest.mark.parametrize("freedom", [None, 4.0])
def test_margins_are_the_quantiles_and_scores_have_the_correlation(freedom):
    rows, n_draw = rows_of(3, 0.8), 40_000
    found = draw(rows, ["a", "b"], n_draw, np.random.default_rng(1), freedom=freedom)
    scores = []
    for label in ("a", "b"):
        assert found[label].shape == (3, n_draw)
        knots = np.stack([rows[f"{label}_{suffix}"] for suffix, _ in QUANTILES])
        below = (found[label][None] < knots[:, :, None]).mean(axis=2)
        # Four standard errors of a share among 40 000 draws.
        np.testing.assert_allclose(below, np.repeat(LEVELS[:, None], 3, axis=1), atol=0.01)
        scores.append(normal_scores(found[label][1], np.repeat(knots[:, 1:2], n_draw, axis=1)))
    # Kendall's tau of any elliptical copula: 2 / pi arcsin(rho); of normal scores of the Gaussian
    # one the correlation itself.
    expected = 0.8 if freedom is None else pytest.approx(0.8, abs=0.05)
    assert np.corrcoef(scores)[0, 1] == pytest.approx(expected, abs=0.02)


def test_few_degrees_of_freedom_put_the_tails_of_labels_together():
    n_draw, corners = 100_000, {}
    for freedom in (None, 3.0):
        found = draw(rows_of(1, 0.0), ["a", "b"], n_draw, np.random.default_rng(2), freedom=freedom)
        ranks = [np.argsort(np.argsort(found[label][0])) / n_draw for label in ("a", "b")]
        corners[freedom] = np.mean((ranks[0] > 0.99) & (ranks[1] > 0.99))
    assert corners[None] == pytest.approx(1e-4, abs=1e-4)
    assert corners[3.0] > 5e-4


def test_degrees_of_freedom_are_those_of_the_joint_regions():
    inner, outer = (9 * f.ppf(level, 9, 6.0) for level in (0.683, 0.954))
    assert degrees_of_freedom(joint(inner, outer)) == pytest.approx(6.0, rel=1e-6)
    # Scaled regions have wrong errors, not heavier tails.
    assert degrees_of_freedom(joint(2 * inner, 2 * outer)) == pytest.approx(6.0, rel=1e-6)
    normal = [chi2.ppf(level, 9) for level in (0.683, 0.954)]
    assert degrees_of_freedom(joint(*normal)) is None
    assert degrees_of_freedom(joint(1.0, 100.0)) == 3.0
    assert degrees_of_freedom(joint(inner, outer, n_label=1)) is None
    assert degrees_of_freedom({}) is None


def test_normal_scores_are_those_of_the_quantiles():
    knots = SKEW[:, None] * np.ones(7)
    value = np.array([*SKEW, 2.6, -5.0])
    expected = norm.ppf(LEVELS)
    np.testing.assert_allclose(normal_scores(value, knots)[:5], expected, rtol=1e-12)
    beyond = normal_scores(value, knots)[5:]
    slope = (expected[4] - expected[3]) / 0.8
    np.testing.assert_allclose(beyond[0], expected[4] + 0.8 * slope, rtol=1e-12)
    assert beyond[1] < expected[0]


def test_a_label_without_error_is_constant_and_one_without_quantiles_missing():
    rows = rows_of(2, np.nan)
    for suffix, _ in QUANTILES:
        rows[f"a_{suffix}"] = np.array([5.0, np.nan])
    found = draw(rows, ["a", "b"], 50, np.random.default_rng(3))
    assert np.all(found["a"][0] == 5.0)
    assert np.isnan(found["a"][1]).all()
    assert np.isfinite(found["b"]).all()
    assert found["b"].std(axis=1).min() > 0.1


def catalogue(tmp_path, n=700, **metadata):
    """Catalogue of simulated rows whose errors all have correlations of one half."""
    rows = catalogue_rows(n)
    lost = np.isnan(rows["teff"])
    path = tmp_path / "c.parquet"
    if not path.exists():
        for pair in combinations(LABEL_NAMES, 2):
            rows["_".join(pair) + "_corr"] = np.where(lost, np.nan, 0.5)
        write_with_correlations(path, rows, metadata)
    return Catalogue.open(path)


def write_with_correlations(path, rows, metadata):
    from maury.labels.definitions import LABELS
    from maury.prediction.catalogue import CatalogueSpec, assemble, write_part

    spec = CatalogueSpec.for_labels(
        LABELS,
        survey_columns=["star_id"],
        metadata={"simulated": True, **metadata},
        quantiles=True,
        correlations=True,
        coverage=True,
    )
    part = path.with_name("part.parquet")
    write_part(part, spec, rows)
    assemble([part], path, spec=spec)


def test_a_file_has_a_row_for_each_star_and_nan_where_there_is_a_warning(tmp_path):
    stored, path = catalogue(tmp_path), tmp_path / "d.parquet"
    write_draws(stored, path, n_draw=40, seed=7)
    draws, table = Draws.open(path), stored.table()
    assert (len(draws), draws.n_draw, draws.labels) == (700, 40, LABEL_NAMES)
    assert draws.simulated
    start = 0
    for place, rows in draws.blocks(["logg"]):
        assert place.start == start
        start = place.stop
        assert rows["id"].tolist() == list(table["id"][place])
        assert rows["flags"].tolist() == list(table["flags"][place])
        warned = np.asarray(table["warn"][place])
        assert np.isnan(rows["logg"][warned]).all()
        assert np.isfinite(rows["logg"][~warned]).all()
        assert warned.any()
        pull = (rows["logg"].mean(axis=1) - table["logg"][place]) / table["logg_error"][place]
        assert np.nanstd(pull) == pytest.approx(1 / np.sqrt(40), rel=0.2)
    assert start == 700
    with pytest.raises(ColumnError, match="logg"):
        next(draws.blocks(["loggg"]))
    with pytest.raises(OutputExists):
        write_draws(stored, path, n_draw=40)


def test_draws_of_a_star_depend_on_seed_and_row_alone(tmp_path, monkeypatch):
    stored = catalogue(tmp_path)
    for name, seed, group in (("one", 1, 2**24), ("two", 1, 1), ("three", 2, 1)):
        monkeypatch.setattr(draws_module, "_GROUP_BYTES", group)
        write_draws(stored, tmp_path / f"{name}.parquet", n_draw=9, seed=seed)
    one, two, three = (
        np.concatenate(
            [rows["teff"] for _, rows in Draws.open(tmp_path / f"{name}.parquet").blocks()]
        )
        for name in ("one", "two", "three")
    )
    np.testing.assert_array_equal(one, two)
    assert np.nanmax(np.abs(one - three)) > 100
    # Three streams of 256, 256 and 188 rows.
    assert parquet.ParquetFile(tmp_path / "two.parquet").num_row_groups == 3


def test_derived_quantities_have_errors_that_hold(tmp_path):
    """Truths that are drawn as the catalogue says lie in the intervals as often as they should."""
    stored, path = catalogue(tmp_path, **joint(10.0, 20.0)), tmp_path / "d.parquet"
    write_draws(stored, path, n_draw=400, warned=True)
    table = {name: np.asarray(stored.column(name)) for name in stored.names}
    truth = draw(
        table,
        list(LABEL_NAMES),
        1,
        np.random.default_rng(5),
        freedom=degrees_of_freedom(joint(10.0, 20.0)),
    )

    def luminosity(of, rows):
        del rows
        return 4 * np.log10(of["teff"] / 5772) - of["logg"] + 0.3 * of["m_h"] * of["alpha_m"]

    found = Draws.open(path).summarise(luminosity, ["teff", "logg", "m_h", "alpha_m"])
    true = luminosity(truth, slice(None))[:, 0]
    known = np.isfinite(true)
    assert known.sum() == 630
    for low, high, share in (("q16", "q84", 0.68), ("q02", "q98", 0.954)):
        inside = (true > found[low]) & (true < found[high])
        # Three standard errors of a share among 630 stars.
        error = 3 * np.sqrt(share * (1 - share) / known.sum())
        assert inside[known].mean() == pytest.approx(share, abs=error)
    assert np.isnan(found["mean"][~known]).all()
    assert np.all(found["known"] == known)
    np.testing.assert_allclose(found["error"], 0.5 * (found["q84"] - found["q16"]))


def test_a_function_may_lack_a_value_for_some_draws(tmp_path):
    stored, path = catalogue(tmp_path), tmp_path / "d.parquet"
    write_draws(stored, path, n_draw=40)
    offset = np.arange(700) % 2

    def half(of, rows):
        return np.where(np.arange(40) < 20 + 20 * offset[rows][:, None], of["teff"], np.nan)

    found = Draws.open(path).summarise(half, ["teff"])
    told = np.isfinite(found["mean"])
    assert set(found["known"][told & (offset == 0)]) == {0.5}
    assert set(found["known"][told & (offset == 1)]) == {1.0}


def test_what_cannot_be_drawn_is_one_clear_error(tmp_path):
    bare = write_catalogue(tmp_path / "p.parquet").stored()
    with pytest.raises(ConfigError, match="correlations"):
        write_draws(bare, tmp_path / "d.parquet", n_draw=5)
    few = {k: v for k, v in catalogue_rows(60).items() if not k.endswith(("_q02", "_corr"))}
    plain = write_catalogue(tmp_path / "q.parquet", rows=few).stored()
    with pytest.raises(ConfigError, match="quantiles"):
        write_draws(plain, tmp_path / "d.parquet", n_draw=5)
    for n_draw in (0, 10**6):
        with pytest.raises(ConfigError, match="1 to"):
            write_draws(catalogue(tmp_path), tmp_path / "d.parquet", n_draw=n_draw)
    assert not (tmp_path / "d.parquet").exists()
    with pytest.raises(InputFileError, match="no file of draws"):
        Draws.open(tmp_path / "p.parquet")


@pytest.mark.slow
def test_predict_writes_draws_beside_the_catalogue(tmp_path, default_model, default_survey):
    out = tmp_path / "labels.fits"
    found = predict(default_model, default_survey, out, samples=8, seed=3)
    draws = Draws.open(draws_path(out))
    assert draws_path(out).name == "labels_draws.parquet"
    assert len(draws) == len(found) == 500
    assert "teff_logg_corr" in found.table.colnames
    assert draws.metadata["model"]["checksum"] == found.metadata["model"]["checksum"]
    assert draws.metadata["draws"]["degrees_of_freedom"] == degrees_of_freedom(found.metadata)
    summary = draws.summarise(lambda of, rows: of["teff"], ["teff"])
    warned = np.asarray(found.table["warn"])
    assert np.array_equal(np.isnan(summary["mean"]), warned)
    pull = (summary["mean"] - found.table["teff"]) / found.table["teff_error"]
    assert np.nanmax(np.abs(pull)) < 2.5


@pytest.mark.slow
def test_a_killed_run_goes_on_and_no_draws_are_overwritten(
    tmp_path, monkeypatch, default_model, default_survey
):
    out, options = tmp_path / "labels.parquet", Options(samples=4)

    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        # After the draws, before the catalogue.
        patch.setattr(maury.prediction.streaming, "assemble", killed)
        with pytest.raises(KeyboardInterrupt):
            write_predicted(default_model, default_survey, out, options=options)
    path = draws_path(out)
    assert path.exists()
    assert not out.exists()
    before = path.stat().st_mtime_ns
    with pytest.raises(OutputExists, match="labels_draws"):
        plan(default_model, default_survey, out, options=Options(samples=5))
    write_predicted(default_model, default_survey, out, options=options)
    assert out.exists()
    assert path.stat().st_mtime_ns == before
    out.unlink()
    path.write_bytes(b"mine")
    with pytest.raises(OutputExists, match="labels_draws"):
        plan(default_model, default_survey, out, options=options)
    assert path.read_bytes() == b"mine"


def test_draws_need_a_calibrated_model(tmp_path, tiny_model, observed_survey):
    with pytest.raises(ConfigError, match="calibrated"):
        predict(tiny_model, observed_survey, tmp_path / "c.fits", samples=3)
    assert list(tmp_path.iterdir()) == []
