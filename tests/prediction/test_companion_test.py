"""Two stars seen as one, and combinations of observables that no training star has."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from maury.prediction.companion_test import CompanionTest, terms
from maury.prediction.coverage import CoverageModel
from maury.prediction.observable_space import ObservableSpace
from maury.simulation.broadening import broadened, rotation_transfer
from maury.simulation.observing import RAVE_WAVE_AA

BANDS = 8
SLOPES = np.array([0.7, 1.0, 0.5, 0.1, -0.2, -0.3, -0.3, -0.3])
EXTINCTION = np.array([0.86, 1.1, 0.62, 0.27, 0.17, 0.11, 0.05, 0.03])


def photometry(n: int, seed: int, colours: bool = False) -> np.ndarray:
    """Magnitudes along a curve of colour, at any brightness and extinction, errors of .02 mag."""
    rng = np.random.default_rng(seed)
    hue, bright = rng.normal(0, 0.5, n), rng.normal(2, 2, n)
    a_v = rng.exponential(0.3, n)
    metals = rng.normal(0, 1, n)
    bend = np.sin(np.arange(BANDS))
    made = bright[:, None] + hue[:, None] * SLOPES + hue[:, None] ** 2 * 0.3 * bend
    made += metals[:, None] * 0.05 * np.cos(np.arange(BANDS)) + a_v[:, None] * EXTINCTION
    made += rng.normal(0, 0.02, made.shape)
    parts = [made]
    if colours:
        parts += [made[:, [0]] - made[:, 1:], made[:, [1]] - made[:, 2:]]
    return np.column_stack([*parts, a_v + rng.normal(0, 0.02, n)])


@pytest.fixture(scope="module", params=[False, True], ids=["magnitudes", "magnitudes, colours"])
def space(request: pytest.FixtureRequest) -> tuple[ObservableSpace, bool]:
    found = ObservableSpace.fit(photometry(2000, 1, request.param))
    assert found is not None
    return found, request.param


def test_clean_stars_lie_on_the_surface(space) -> None:
    score, components = space[0].off(photometry(1000, 2, space[1]))
    # Whitened: a squared distance is as many as its components, on average.
    assert np.median(score) == pytest.approx(components.shape[1], rel=0.3)
    assert (score > 30).mean() < 0.02


def test_a_blend_is_off_the_surface_though_each_value_is_usual(space) -> None:
    clean = photometry(500, 3)
    blended = clean.copy()
    blended[:, 3:8] -= 0.4
    limit = np.quantile(space[0].off(photometry(1000, 2, space[1]))[0], 0.99)
    if space[1]:
        mags = blended[:, :8]
        blended = np.column_stack(
            [mags, mags[:, [0]] - mags[:, 1:], mags[:, [1]] - mags[:, 2:], blended[:, 8]]
        )
    assert (space[0].off(blended)[0] > limit).mean() > 0.9


def test_missing_observables_accuse_nobody(space) -> None:
    clean = photometry(500, 4, space[1])
    # Of a star without parallax colours are left.
    lost = np.arange(8) if space[1] else [2, 6]
    clean[:, lost] = np.nan
    limit = np.quantile(space[0].off(photometry(1000, 2, space[1]))[0], 0.99)
    assert (space[0].off(clean)[0] > limit).mean() < 0.05
    clean[:, 4:] = np.nan
    assert np.isnan(space[0].off(clean)[0]).all()


def test_too_few_stars_or_observables_have_no_surface() -> None:
    assert ObservableSpace.fit(photometry(100, 5)) is None
    assert ObservableSpace.fit(photometry(2000, 5)[:, :4]) is None


def test_a_regression_tells_luminous_stars_and_not_broad_ones() -> None:
    rng = np.random.default_rng(1)

    def stars(n: int, bright: float, broad: float) -> np.ndarray:
        labels, signs = rng.normal(size=(n, 3)), rng.normal(size=(n, 2))
        return terms(labels, signs + np.array([bright, broad]))

    single = np.vstack([stars(3000, 0, 0), stars(3000, 0, 3)])
    test = CompanionTest.fit(single, stars(3000, 2, 1))
    assert test is not None
    plain, broad, double = (test.score(stars(1000, *s)) for s in ((0, 0), (0, 3), (2, 1)))
    assert np.median(double) > 0 > max(np.median(plain), np.median(broad))
    limit = np.quantile(plain, 0.99)
    assert (double > limit).mean() > 0.3
    assert (broad > limit).mean() < 0.1
    assert np.isnan(test.score(np.full((1, single.shape[1]), np.nan))).all()
    assert CompanionTest.fit(single[:5], single) is None


def test_a_star_that_lacks_an_observable_is_no_suspect() -> None:
    test = CompanionTest(np.zeros(3), np.ones(3), np.ones(3))
    model = SimpleNamespace(companion=test, _companion_terms=lambda evidence, signs: signs)
    evidence = SimpleNamespace(observables=np.array([[1.0, 2.0], [np.nan, 2.0]]))
    score = CoverageModel._companion_score(model, evidence, np.ones((2, 3)))
    np.testing.assert_array_equal(score, [3.0, np.nan])


def test_broadening_by_rotation_is_that_of_its_transform() -> None:
    """A line far wider than a pixel, whose transform is known."""
    wave = np.geomspace(RAVE_WAVE_AA[0], RAVE_WAVE_AA[-1], 912)
    step = 299792.458 * np.log(wave[-1] / wave[0]) / 911
    speed = step * (np.arange(912) - 456)
    sigma, rotation = 30.0, 60.0
    flux = 1 - 0.5 * np.exp(-0.5 * (speed / sigma) ** 2)
    found = broadened(flux[None], [rotation], wave)[0]
    frequency = np.linspace(0, 0.4, 4000)
    spectrum = np.exp(-0.5 * (sigma * frequency) ** 2) * rotation_transfer(frequency * rotation)
    profile = np.cos(np.outer(speed, frequency)) @ spectrum * (frequency[1] - frequency[0])
    profile *= 0.5 * sigma / np.sqrt(np.pi / 2)
    np.testing.assert_allclose(found, 1 - profile, atol=1e-3)
