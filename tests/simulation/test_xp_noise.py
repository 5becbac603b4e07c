"""Noise of XP coefficients of simulated stars is as large as it is told to be."""

import numpy as np

from maury.simulation.disturbances import Disturbances, disturb_observables
from maury.simulation.xp_noise import blur_xp, relevant_bases
from maury.spectra.observable_groups import xp_error
from maury.spectra.preparation import Preparation

XP = Preparation.from_json(
    {"observables": [{"observable": "a_v"}, {"observable": "xp", "noise": True}]}
)
MAP = XP.observable_map
TOLD = XP.observable_names.index("xp_noise")


def stars(n=4000, told=0.2):
    out = np.zeros((n, len(XP.observable_names)))
    out[:, 1:111] = 0.1 * np.exp(-(np.arange(110) % 55) / 3.0)
    out[:, TOLD] = told
    return out


def test_noise_is_added_and_told():
    before = stars()
    after = before.copy()
    blur_xp(after, MAP, share=1.0, factors=(10.0, 10.0), rng=np.random.default_rng(1))
    np.testing.assert_allclose(after[:, TOLD], 1.2)
    # In all, noise is ten times what it was; the tenth that it was is in the coefficients already.
    expected = xp_error(np.array(1.2)) * np.sqrt(1.0 - 0.01)
    for column in (1, 56):
        spread = np.std(after[:, column] - before[:, column])
        assert abs(spread / expected - 1.0) < 0.1
    # The last coefficients are noise: of half of the stars they are cut, as the archive does it.
    cut = (after[:, 108:111] == 0).all(axis=1)
    assert abs(cut.mean() - 0.5) < 0.05
    np.testing.assert_array_equal(after[:, 0], before[:, 0])


def test_stars_whose_noise_is_unknown_stay_as_they_are():
    before = stars(50, told=np.nan)
    after = before.copy()
    after[:25, 1:111] = np.nan
    blur_xp(after, MAP, share=1.0, factors=(5.0, 5.0), rng=np.random.default_rng(1))
    assert np.isnan(after[:, TOLD]).all()
    assert np.isnan(after[:25, 1:111]).all()
    np.testing.assert_array_equal(after[25:], before[25:])


def test_a_clean_pool_blurs_nothing_and_the_usual_one_some():
    before = stars()
    clean = disturb_observables(before, MAP, Disturbances.none(), np.random.default_rng(2))
    np.testing.assert_array_equal(clean[:, 1:], before[:, 1:])
    usual = disturb_observables(before, MAP, Disturbances(), np.random.default_rng(2))
    changed = usual[:, TOLD] != before[:, TOLD]
    assert abs(changed.mean() - Disturbances().blurred) < 0.03
    np.testing.assert_array_equal(usual[~changed, 1:111], before[~changed, 1:111])


def test_relevant_coefficients_are_those_before_the_noise():
    values = np.tile(np.where(np.arange(55) < 7, 50.0, 0.5), (3, 1))
    values[2] = np.nan
    np.testing.assert_array_equal(relevant_bases(values, np.ones((3, 55))), [7, 7, np.nan])
