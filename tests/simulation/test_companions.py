"""Unresolved companions: what the sum of two stars must look like, worked out by hand."""

import numpy as np
import pytest

from maury.labels.columns import BANDS as COLUMNS
from maury.simulation.companions import BandLayout, add_companions, shifted, with_light
from maury.spectra.observable_groups import AV, AbsoluteMagnitudes, Colours, ParallaxSnr
from maury.spectra.operators import SPEED_OF_LIGHT_KMS
from maury.spectra.preparation import Preparation

WAVE = 8420.0 + 0.4 * np.arange(912)
BANDS = ("G", "RP", "J")
GROUPS = (
    AbsoluteMagnitudes(bands=BANDS),
    ParallaxSnr(),
    Colours(pairs=(("G", "RP"), ("RP", "J"))),
    AV(),
)
LAYOUT = BandLayout.of(Preparation(observables=GROUPS).observable_map)
TWIN_MAG = 2.5 * np.log10(2.0)


def lines(centre_aa, sigma_aa=0.7):
    return 1 - 0.6 * np.exp(-0.5 * ((WAVE - centre_aa) / sigma_aa) ** 2)


def main_sequence(n, rng):
    """Dwarfs along a line: the fainter the cooler and the redder; A_V and [M/H] as they come."""
    bright = rng.uniform(3.5, 7.0, n)
    teff, colour = 6500 - 500 * (bright - 3.5), 0.3 + 0.2 * bright
    labels = np.zeros((n, 9))
    labels[:, 0], labels[:, 1], labels[:, 2] = teff, 4.5, rng.normal(0, 0.2, n)
    g, j = bright + colour, bright - 0.7 * colour
    a_v = np.full(n, 0.3)
    return labels, np.column_stack([g, bright, j, np.full(n, 50.0), colour, bright - j, a_v])


@pytest.fixture
def pool():
    rng = np.random.default_rng(1)
    labels, observables = main_sequence(3000, rng)
    depth = (labels[:, :1] / 6500.0) * (1 - lines(8542.09, 2.0))
    return (1 - depth).astype(np.float32), labels, observables


def pairs(pool, n=400, **changes):
    given = {"wave_aa": WAVE, "layout": LAYOUT, "chosen": np.arange(n)} | changes
    return add_companions(*pool, rng=np.random.default_rng(2), **given)


def test_layout_reads_bands_and_signs_from_the_preparation():
    assert LAYOUT.bands == BANDS
    assert LAYOUT.signs.tolist() == [
        [1, 0, 0],
        [0, 1, 0],
        [0, 0, 1],
        [0, 0, 0],
        [1, -1, 0],
        [0, 1, -1],
        [0, 0, 0],
    ]
    assert LAYOUT.a_v == 6
    assert LAYOUT.reddened


def test_magnitudes_are_found_through_colours():
    groups = (AbsoluteMagnitudes(bands=("Ks",)), Colours(pairs=(("G", "J"), ("J", "Ks"))))
    layout = BandLayout.of(Preparation(observables=groups).observable_map)
    found = layout.magnitudes(np.array([[2.0, 1.5, 0.5], [2.0, 1.5, np.nan], [np.nan, 1.5, 0.5]]))
    assert layout.bands == ("G", "J", "Ks")
    np.testing.assert_allclose(found[0], [4.0, 2.5, 2.0])
    np.testing.assert_array_equal(found[1], [np.nan, np.nan, 2.0])
    assert np.isnan(found[2]).all()


def test_an_equal_twin_is_brighter_by_half_the_light_and_no_redder():
    one = np.array([[5.0, 4.5, 4.0, 50.0, 0.5, 0.5, 0.3]])
    both = with_light(one, np.zeros((1, 3)), LAYOUT)
    np.testing.assert_allclose(one[0, :3] - both[0, :3], TWIN_MAG)
    np.testing.assert_allclose(both[0, 3:], one[0, 3:])


def test_light_adds_band_by_band():
    one = np.array([[5.0, 4.5, 4.0, 50.0, 0.5, 0.5, 0.3]])
    two = np.array([[7.0, 6.0, 5.0]])
    both = with_light(one, two - one[:, :3], LAYOUT)
    total = -2.5 * np.log10(10 ** (-0.4 * one[:, :3]) + 10 ** (-0.4 * two))
    np.testing.assert_allclose(both[:, :3], total)
    np.testing.assert_allclose(both[0, 4], total[0, 0] - total[0, 1])
    assert 0.5 < both[0, 4] < 1.0, "between the colours of the two"


def test_an_unknown_band_makes_missing_only_what_is_made_of_it():
    one = np.array([[5.0, 4.5, 4.0, 50.0, 0.5, 0.5, 0.3]])
    both = with_light(one, np.array([[1.0, 1.0, np.nan]]), LAYOUT)
    assert np.isnan(both[0]).tolist() == [False, False, True, False, False, True, False]


@pytest.mark.parametrize("speed", [-37.0, 0.0, 12.3])
def test_a_shift_is_that_of_the_doppler_formula(speed):
    expected = lines(8542.09 * (1 + speed / SPEED_OF_LIGHT_KMS))
    np.testing.assert_allclose(shifted(lines(8542.09)[None], [speed], WAVE)[0], expected, atol=2e-3)


def test_spectra_add_by_their_light_and_stay_at_its_mean_velocity(pool):
    made = pairs(pool, speed_kms=(20.0, 40.0))
    share = made.ratio / (1 + made.ratio)
    one, two = pool[0][made.primary], pool[0][made.companion]
    # Depths of lines of one width, moved by less than it, add up by the shares.
    total = ((1 - one).sum(axis=1)) * (1 - share) + (1 - two).sum(axis=1) * share
    np.testing.assert_allclose((1 - made.flux).sum(axis=1), total, rtol=1e-3)
    centre = ((1 - made.flux) @ WAVE) / (1 - made.flux).sum(axis=1)
    # The cooler star has weaker lines here, so that the middle of light and lines differ a little.
    np.testing.assert_allclose(centre, 8542.09, atol=0.06)
    twin = made.ratio > 0.98
    assert (np.abs(made.speed_kms) >= 20).all()
    assert (made.speed_kms < 0).any()
    assert (made.speed_kms > 0).any()
    assert twin.any()


def test_companions_are_fainter_cooler_and_of_a_like_metallicity(pool):
    _, labels, observables = pool
    made = pairs(pool)
    assert made.primary.size > 200
    assert (labels[made.companion, 0] <= labels[made.primary, 0] + 50).all()
    assert np.std(labels[made.companion, 2] - labels[made.primary, 2]) < 0.05
    assert ((made.ratio >= 0.02) & (made.ratio <= 1.0)).all()
    assert (made.observables[:, 0] < observables[made.primary, 0]).all()
    colour = made.observables[:, 4]
    assert (colour >= observables[made.primary, 4] - 1e-9).all()
    assert (colour <= observables[made.companion, 4] + 1e-9).all()
    np.testing.assert_array_equal(made.observables[:, [3, 6]], observables[made.primary][:, [3, 6]])


def test_stars_without_absolute_magnitudes_get_no_companion(pool):
    flux, labels, observables = pool
    observables = observables.copy()
    observables[:200, :3] = np.nan
    made = pairs((flux, labels, observables))
    assert made.primary.min() >= 200
    assert made.companion.min() >= 200
    nothing = BandLayout.of(Preparation(observables=(AV(),)).observable_map)
    assert pairs((flux, labels, observables[:, 6:]), layout=nothing).primary.size == 0


def test_a_companion_takes_the_extinction_of_its_primary(pool):
    flux, labels, observables = pool
    extinction = np.array([band.extinction for band in COLUMNS if band.name in BANDS])
    red = observables.copy()
    # Every other star is reddened: intrinsically nothing changes.
    a_v = np.where(np.arange(len(red)) % 2, 0.3, 1.0)
    red[:, :3] += (a_v - 0.3)[:, None] * extinction
    red[:, 4] = red[:, 0] - red[:, 1]
    red[:, 5] = red[:, 1] - red[:, 2]
    red[:, 6] = a_v
    made = pairs((flux, labels, red))
    apart = observables[made.companion, :3] - observables[made.primary, :3]
    expected = with_light(red[made.primary], apart, LAYOUT)
    np.testing.assert_allclose(made.observables, expected)
    assert (a_v[made.companion] == a_v[made.primary]).mean() > 0.9
