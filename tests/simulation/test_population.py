"""The population: correlated as the real sample, reproducible, within its bounds."""

from importlib import resources

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from safetensors import safe_open
from scipy.stats import ks_2samp, spearmanr

from maury.simulation import catalogues
from maury.simulation import population as pop
from maury.simulation.quantities import EMULATOR_LABELS

N = 4000


@pytest.fixture(scope="module")
def stars():
    return pop.Population.load().sample(N, np.random.default_rng(11))


@pytest.fixture(scope="module")
def observed():
    rng = np.random.default_rng(12)
    return pop.Population.load().sample(N, rng, selection=pop.OBSERVED)


@pytest.fixture(scope="module")
def real(shared):
    pandas = pytest.importorskip("pandas")
    labels = pandas.read_csv(shared / "data/rave_like/training_sample_labels.csv")
    table = pandas.read_csv(shared / "data/rave_like/training_sample_parameters.csv")
    first = ~table.iloc[:, :9].duplicated().to_numpy()
    values = table[first].to_numpy(float)
    return labels[first].iloc[:, 1:].to_numpy(float), values[:, 1:9], values[:, 0], values[:, 9]


def columns_of(labels, magnitudes, parallax_mas, a_v):
    """Labels, absolute Ks, colours, parallax and extinction, (n, 19)."""
    log_parallax = np.log10(parallax_mas)
    absolute = magnitudes[:, 5] + 5.0 * (log_parallax - 2.0)
    colours = catalogues.colours_from_magnitudes(magnitudes)
    return np.column_stack([labels[:, :9], absolute, colours, log_parallax, a_v])


def simulated_columns(stars):
    return columns_of(stars.labels, stars.magnitudes, stars.parallax_mas, stars.a_v)


def test_labels_are_those_of_the_emulator():
    assert tuple(EMULATOR_LABELS) == pop.ALL_NAMES


def test_the_file_is_small_and_holds_no_stars():
    path = resources.files("maury.simulation") / "data/population.safetensors"
    with resources.as_file(path) as file, safe_open(file, framework="numpy") as handle:
        shapes = [handle.get_slice(name).get_shape() for name in handle.keys()]  # noqa: SIM118
        assert int(handle.metadata()["n_star"]) == 3352
        assert file.stat().st_size < 500_000
    assert max(max(shape, default=1) for shape in shapes) < 100


def test_marginals_are_those_of_the_real_sample(stars, real):
    for a, b in zip(columns_of(*real).T, simulated_columns(stars).T, strict=True):
        assert ks_2samp(a, b).statistic < 0.05


def test_rank_correlations_are_those_of_the_real_sample(stars, real):
    a, b = spearmanr(columns_of(*real)), spearmanr(simulated_columns(stars))
    assert np.abs(a.statistic - b.statistic).max() < 0.12


@pytest.mark.slow
def test_trees_hardly_tell_simulated_stars_from_real_ones(stars, real):
    ensemble = pytest.importorskip("sklearn.ensemble")
    selection = pytest.importorskip("sklearn.model_selection")
    metrics = pytest.importorskip("sklearn.metrics")
    a, b = columns_of(*real), simulated_columns(stars)[: len(real[3])]
    truth = np.repeat([0, 1], [len(a), len(b)])
    trees = ensemble.HistGradientBoostingClassifier(max_iter=60, random_state=0)
    folds = selection.KFold(3, shuffle=True, random_state=0)
    values = np.concatenate([a, b])
    for stop, limit in ((9, 0.63), (None, 0.73)):
        score = selection.cross_val_predict(
            trees, values[:, :stop], truth, cv=folds, method="predict_proba"
        )
        assert metrics.roc_auc_score(truth, score[:, 1]) < limit


def test_kiel_diagram_has_its_branches(stars):
    teff, logg = stars.labels[:, 0], stars.labels[:, 1]
    clump = (np.abs(logg - 2.45) < 0.12).mean()
    below = (np.abs(logg - 2.9) < 0.12).mean()
    assert clump > 1.3 * below
    assert not np.any((teff > 6200) & (logg < 2.5))
    assert not np.any((teff < 4500) & (logg > 3.4) & (logg < 4.0))


def test_alpha_is_bimodal_at_low_metallicity(stars):
    m_h, alpha = stars.labels[:, 2], stars.labels[:, 4]
    poor = alpha[(m_h > -0.6) & (m_h < -0.3)]
    low, gap, high = (((poor > a) & (poor < a + 0.04)).sum() for a in (0.04, 0.125, 0.19))
    assert gap < low
    assert gap < high


def test_observed_stars_are_fainter_and_fill_the_edges(stars, observed):
    assert np.median(observed.magnitudes[:, 0] - stars.magnitudes[:, 0]) > 0.4
    for column, tail in ((0, 99), (2, 1), (2, 99), (1, 99)):
        sign = 1 if tail == 99 else -1
        edge = np.percentile(stars.labels[:, column], tail)
        beyond = (sign * (observed.labels[:, column] - edge) > 0).mean()
        assert beyond > 0.013


def test_labels_stay_within_bounds(stars, observed):
    population = pop.Population.load()
    low, high = population._tensors["label_bounds"]
    for labels in (stars.labels, observed.labels):
        assert np.all((labels >= low - 1e-9) & (labels <= high + 1e-9))


def test_extinction_is_zero_for_some_stars_and_never_negative(stars):
    assert stars.a_v.min() == 0.0
    assert (stars.a_v == 0).mean() == pytest.approx(0.16, abs=0.03)


def test_everything_is_finite_and_errors_are_positive(stars, observed):
    for sample in (stars, observed):
        for name, values in vars(sample).items():
            assert values is None or np.all(np.isfinite(values)), name
        for name in ("magnitude_errors", "parallax_error_mas", "a_v_error"):
            assert np.all(getattr(sample, name) > 0)


def test_parallax_errors_grow_as_those_of_gaia():
    rng = np.random.default_rng(1)
    medians = [
        np.median(catalogues.simulate_parallax_errors(np.full(4000, g), rng)) for g in (11, 17, 20)
    ]
    np.testing.assert_allclose(medians, [0.04, 0.1, 0.7], rtol=0.06)


def test_positions_are_southern_and_away_from_the_plane(stars):
    coordinates = pytest.importorskip("astropy.coordinates")
    sky = coordinates.SkyCoord(stars.ra_deg, stars.dec_deg, unit="deg")
    assert np.all(stars.dec_deg <= 0)
    assert np.abs(sky.galactic.b.deg).min() > 24.99
    assert 0 <= stars.ra_deg.min() < stars.ra_deg.max() < 360


def test_the_same_generator_gives_the_same_stars():
    a, b = (pop.Population.load().sample(50, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(a.labels, b.labels)
    np.testing.assert_array_equal(a.magnitudes, b.magnitudes)


def test_conditional_mixture_has_the_moments_of_rejection_sampling():
    rng = np.random.default_rng(5)
    root = rng.normal(size=(2, 3, 3))
    covariance = root @ root.transpose(0, 2, 1) + 0.3 * np.eye(3)
    means = np.array([[-1.0, 0.5, 2.0], [1.0, -0.5, -1.0]])
    weights = np.array([0.3, 0.7])
    centre, scale = np.array([1.0, 2.0, 3.0]), np.array([2.0, 0.5, 1.5])
    mixture = pop.Mixture(1, weights, means, covariance, centre, scale)
    n = 400_000
    component = rng.random(n) > weights[0]
    noise = rng.normal(size=(n, 3))
    joint = means[component.astype(int)] + np.einsum(
        "nij,nj->ni", np.linalg.cholesky(covariance)[component.astype(int)], noise
    )
    joint = centre + scale * joint
    near = joint[np.abs(joint[:, 0] - 1.4) < 0.05, 1:]
    drawn = mixture.sample(np.full((50_000, 1), 1.4), rng)
    np.testing.assert_allclose(drawn.mean(axis=0), near.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(near.T), atol=0.3)


def test_unconditional_mixture_has_its_own_moments():
    rng = np.random.default_rng(6)
    covariance = np.array([[[1.0, 0.6], [0.6, 2.0]]])
    mixture = pop.Mixture(0, np.ones(1), np.zeros((1, 2)), covariance, np.ones(2), np.ones(2))
    drawn = mixture.sample(np.empty((40_000, 0)), rng, spread=2.0)
    np.testing.assert_allclose(np.cov(drawn.T), 4.0 * covariance[0], atol=0.15)


@given(st.lists(st.floats(-50, 50), min_size=1, max_size=20), st.floats(0.01, 2.0))
def test_warp_is_undone(values, tail):
    warp = pop.Warp(np.array([0.3]), np.array([2.0]), np.array([tail]))
    residual = np.array(values)[:, None]
    np.testing.assert_allclose(warp.unwarp(warp.warp(residual)), residual, atol=1e-8)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_magnitudes_and_colours_are_inverse(seed):
    magnitudes = np.random.default_rng(seed).uniform(5, 15, (4, 8))
    colours = catalogues.colours_from_magnitudes(magnitudes)
    again = catalogues.magnitudes_from_colours(magnitudes[:, 5], colours)
    np.testing.assert_allclose(again, magnitudes, atol=1e-12)


@given(st.floats(1e-6, 5.0))
def test_latent_extinction_is_undone(a_v):
    values = np.array([a_v])
    assert pop.a_v_from_latent(pop.latent_from_a_v(values))[0] == pytest.approx(a_v)


def test_polynomials_stay_constant_beyond_the_sample():
    limits = np.array([[0.7, 0.0, -2.0, -0.2], [1.4, 5.0, 0.5, 0.4]])
    inside, beyond = (np.array([[x, 5.0, 0.5, 0.4]]) for x in (1.4, 3.0))
    np.testing.assert_array_equal(
        pop.core_features(inside, limits), pop.core_features(beyond, limits)
    )


def test_extinction_features_use_the_temperature():
    limits = np.array([[0.7, 0.0, -2.0, -0.2], [1.4, 5.0, 0.5, 0.4]])
    core = np.array([[0.7, 2.0, 0.0, 0.1], [1.4, 2.0, 0.0, 0.1]])
    features = pop.photometry_features(pop.core_features(core, limits), np.array([0.5, 0.5]))
    assert features[:, -3].tolist() == [0.5, 0.5]
    np.testing.assert_allclose(features[:, -1], [-0.5, 0.5])


def test_unknown_settings_are_refused():
    with pytest.raises(ValidationError):
        pop.Selection(fainter=1.0)
