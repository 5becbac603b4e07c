"""Disturbed photometry and spectra, against what each disturbance must do by definition."""

import numpy as np
import pytest

from maury.labels.columns import BANDS
from maury.simulation.disturbances import Disturbances, disturb_flux, disturb_observables
from maury.spectra.observable_groups import AV, AbsoluteMagnitudes, Colours, MeasurementErrors
from maury.spectra.preparation import Preparation

WAVE = 8420.0 + 0.4 * np.arange(912)
PREPARATION = Preparation(
    observables=(
        AbsoluteMagnitudes(bands=("G", "J", "Ks")),
        Colours(pairs=(("J", "Ks"), ("G", "J"))),
        AV(),
        MeasurementErrors(of=("G", "J", "Ks", "parallax", "a_v")),
    )
)
MAP = PREPARATION.observable_map
NAMES = PREPARATION.observable_names
STILL = Disturbances.none().model_copy(update={"magnitude_rms": 0.0})
EXTINCTION = {band.name: band.extinction for band in BANDS}


def stars(n=4000):
    values = np.full((n, len(NAMES)), np.nan)
    values[:, :3], values[:, 5] = (5.0, 4.0, 3.5), 0.6
    values[:, 3], values[:, 4] = 0.5, 1.0
    return values


def disturbed(seed=1, n=4000, **changes):
    settings = STILL.model_copy(update=changes)
    return disturb_observables(stars(n), MAP, settings, np.random.default_rng(seed))


def column(values, name):
    return values[:, NAMES.index(name)]


def test_without_disturbances_nothing_changes():
    np.testing.assert_array_equal(disturbed(), stars())


def test_colours_stay_differences_of_magnitudes():
    moved = disturbed(
        magnitude_rms=0.02, told=0.5, told_noisy=1.0, outlier=0.5, reddened=0.5, blended=0.5
    )
    known = np.isfinite(column(moved, "M_J"))
    for blue, red in (("J", "Ks"), ("G", "J")):
        difference = column(moved, f"M_{blue}") - column(moved, f"M_{red}")
        np.testing.assert_allclose(
            difference[known], column(moved, f"{blue}-{red}")[known], atol=1e-9
        )


def test_dust_follows_the_law_and_a_v_tells_of_it():
    change = disturbed(reddened=1.0) - stars()
    more = column(change, "a_v")
    assert more.min() >= -0.6
    assert (more > 0).mean() == pytest.approx(0.7, abs=0.05)
    np.testing.assert_allclose(column(change, "M_J"), EXTINCTION["J"] * more, atol=1e-12)
    law = EXTINCTION["J"] - EXTINCTION["Ks"]
    np.testing.assert_allclose(column(change, "J-Ks"), law * more, atol=1e-12)


def test_blends_brighten_neighbouring_bands_alike():
    change = disturbed(blended=1.0, blend_mag=0.4) - stars()
    bright = np.stack([column(change, f"M_{name}") for name in ("G", "J", "Ks")], axis=1)
    assert bright.min() >= -0.4
    assert (bright <= 0).all()
    # No band between two that are blended is spared.
    assert not ((bright[:, 0] < 0) & (bright[:, 1] == 0) & (bright[:, 2] < 0)).any()
    # All blended bands of a star by the same.
    np.testing.assert_allclose(
        bright[bright < 0], np.broadcast_to(bright.min(axis=1), (3, 4000)).T[bright < 0]
    )


def test_told_errors_are_those_of_the_noise():
    moved = disturbed(n=20_000, told=1.0, told_noisy=1.0, magnitude_rms=0.02)
    quoted = 0.03 * 10 ** column(moved, "G_error")
    # The noise of a colour has the noise of both bands, of a magnitude that of the parallax too.
    quoted_j = 0.03 * 10 ** column(moved, "J_error")
    pull = (column(moved, "G-J") - 1.0) / np.hypot(quoted, quoted_j)
    known = np.isfinite(pull)
    assert np.std(pull[known]) == pytest.approx(1.0, abs=0.05)
    assert np.ptp(column(moved, "G_error")[known]) > 1.0


def test_a_parallax_errs_by_a_normal_distribution_of_its_own():
    noise = (0.2, 0.200001)
    moved = disturbed(n=40_000, outlier=1.0, told=0.0, noise_parallax=noise, noise_mag=(1e-9, 2e-9))
    off = column(moved, "M_J") - 4.0
    off = off[np.isfinite(off) & (np.abs(off) > 1e-6)]
    ratio = 10 ** (off / 5)
    assert np.std(ratio) == pytest.approx(0.2, abs=0.01)
    assert np.mean(ratio) == pytest.approx(1.0, abs=0.01)


def test_errors_are_told_for_the_share_that_is_set_and_only_of_what_is_there():
    values = stars()
    values[:, 0] = values[:, 4] = np.nan
    settings = STILL.model_copy(update={"told": 0.3})
    moved = disturb_observables(values, MAP, settings, np.random.default_rng(4))
    assert np.isfinite(column(moved, "J_error")).mean() == pytest.approx(0.3, abs=0.03)
    assert np.isnan(column(moved, "G_error")).all()


def test_an_extinction_stays_positive():
    moved = disturbed(outlier=1.0, noise_a_v=(2.0, 3.0))
    assert column(moved, "a_v").min() == 0.0


def flux(n=400):
    depth = 0.6 * np.exp(-0.5 * ((WAVE - 8542.09) / 3.0) ** 2)
    return np.tile((1 - depth).astype(np.float32), (n, 1))


def test_scattered_light_fills_lines_and_leaves_the_continuum():
    settings = STILL.model_copy(update={"scattered": 1.0})
    moved = disturb_flux(flux(), WAVE, settings, np.random.default_rng(5))
    np.testing.assert_allclose(moved[:, 0], 1.0, atol=1e-6)
    depth = (1 - moved.min(axis=1)) / 0.6
    assert (depth < 1).mean() == pytest.approx(0.75, abs=0.07)
    assert np.mean(1 / depth[depth < 1] - 1) == pytest.approx(0.05, rel=0.2)


def test_fringes_have_the_rms_that_is_set():
    settings = STILL.model_copy(update={"fringed": 1.0, "fringe_rms": 0.03})
    moved = disturb_flux(np.ones((2000, 912), np.float32), WAVE, settings, np.random.default_rng(6))
    rms = moved.std(axis=1)
    assert rms.max() == pytest.approx(0.03, rel=0.1)
    assert rms.mean() == pytest.approx(0.015, rel=0.1)


def test_lines_are_stronger_and_weaker_and_the_continuum_stays():
    settings = STILL.model_copy(update={"lines": 1.0, "line_rms": 0.2})
    moved = disturb_flux(flux(2000), WAVE, settings, np.random.default_rng(7))
    np.testing.assert_allclose(moved[:, 0], 1.0, atol=1e-6)
    strength = np.log(moved[:, 305]) / np.log(flux(1)[0, 305]) - 1
    # Uniform sizes up to .2 have an rms of .2 / sqrt(3), less what lies between two knots.
    assert 0.07 < np.std(strength) < 0.2 / np.sqrt(3)
    assert abs(np.mean(strength)) < 0.02


def test_the_input_is_not_changed():
    before = flux()
    disturb_flux(before, WAVE, Disturbances(), np.random.default_rng(8))
    np.testing.assert_array_equal(before, flux())
