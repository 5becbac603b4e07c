import numpy as np
import pytest

from maury.model.imputation import LEAST_STARS, Imputer

N_BAND = 4
PAIRS = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]


def stars(n, rng, noise=0.01):
    """Magnitudes of a two-parameter family, all colours, and an extinction."""
    level, colour = rng.normal(3, 2, n), rng.normal(0, 1, n)
    bands = [level + k * colour + 0.1 * k * colour**2 for k in (0.0, 0.5, 1.0, 1.4)]
    bands = np.stack(bands, axis=1) + noise * rng.normal(size=(n, N_BAND))
    colours = np.stack([bands[:, i] - bands[:, j] for i, j in PAIRS], axis=1)
    return np.column_stack([bands, colours, rng.random(n)])


DEPENDS = np.zeros((N_BAND, N_BAND + len(PAIRS) + 1), dtype=bool)
for band in range(N_BAND):
    DEPENDS[band, band] = True
    DEPENDS[band, N_BAND:-1] = [band in pair for pair in PAIRS]


@pytest.fixture(scope="module")
def imputer():
    return Imputer.fit(stars(3000, np.random.default_rng(1)), DEPENDS)


@pytest.mark.parametrize("band", range(N_BAND))
def test_a_missing_band_is_filled_to_its_noise(imputer, band):
    truth = stars(500, np.random.default_rng(2)).astype(np.float32)
    given = truth.copy()
    given[:, DEPENDS[band]] = np.nan
    filled = imputer.fill(given)
    assert np.isfinite(filled).all()
    np.testing.assert_array_equal(filled[:, ~DEPENDS[band]], truth[:, ~DEPENDS[band]])
    assert np.std(filled[:, band] - truth[:, band]) < 0.04
    assert np.isnan(given[:, band]).all(), "the argument stays as it is"


def test_colours_stay_differences_of_magnitudes(imputer):
    given = stars(200, np.random.default_rng(3)).astype(np.float32)
    given[:, DEPENDS[0]] = np.nan
    filled = imputer.fill(given)
    for position, (i, j) in enumerate(PAIRS, start=N_BAND):
        np.testing.assert_allclose(filled[:, position], filled[:, i] - filled[:, j], atol=0.02)


def test_other_gaps_are_left_alone(imputer):
    given = stars(3, np.random.default_rng(4)).astype(np.float32)
    given[0, DEPENDS[0] | DEPENDS[1]] = np.nan
    given[1, -1] = np.nan
    np.testing.assert_array_equal(imputer.fill(given), given)


def test_wild_training_stars_do_not_spoil_it():
    sample = stars(3000, np.random.default_rng(5))
    sample[:60, 3] += 5.0
    truth = stars(300, np.random.default_rng(6)).astype(np.float32)
    given = truth.copy()
    given[:, DEPENDS[0]] = np.nan
    filled = Imputer.fit(sample, DEPENDS).fill(given)
    assert np.std(filled[:, 0] - truth[:, 0]) < 0.1


def test_a_star_of_strange_colours_is_left_alone(imputer):
    given = stars(2, np.random.default_rng(9)).astype(np.float32)
    given[0, 3] += 5.0
    given[0, N_BAND:-1] = [given[0, i] - given[0, j] for i, j in PAIRS]
    given[:, DEPENDS[0]] = np.nan
    filled = imputer.fill(given)
    assert np.isnan(filled[0, 0])
    assert np.isfinite(filled[1]).all()


def test_too_few_stars_fill_nothing():
    sample = stars(LEAST_STARS - 1, np.random.default_rng(7))
    given = stars(5, np.random.default_rng(8)).astype(np.float32)
    given[:, DEPENDS[0]] = np.nan
    assert np.isnan(Imputer.fit(sample, DEPENDS).fill(given)[:, 0]).all()
