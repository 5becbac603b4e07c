"""The observing model: widths, shifts, noise and faults have the statistics that it promises."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from maury.simulation.broadening import rotation_transfer
from maury.simulation.mismatch import REALISTIC_MISMATCH, TheoryMismatch
from maury.simulation.observing import (
    RAVE_WAVE_AA,
    SURVEY_CONDITIONS,
    TRAINING_CONDITIONS,
    ObservingModel,
    Spectrograph,
)

C_KMS = 299792.458
WAVE_IN_AA = np.geomspace(8404.0, 8800.0, 2048)
SIGMA_IN_KMS = C_KMS / 20000.0 / 2.3548200450309493
LINE_AA = 8600.37
STILL = {"resolving_power": 7500.0, "rotation_kms": 0.0, "macroturbulence_kms": 0.0, "rv_kms": 0.0}


def spectrograph(**settings):
    return Spectrograph(WAVE_IN_AA, RAVE_WAVE_AA, 20000.0, ObservingModel(**settings))


def gaussian_line(wave_aa, sigma_kms, *, centre_aa=LINE_AA, area_kms=5.0):
    velocity = C_KMS * np.log(wave_aa / centre_aa)
    profile = np.exp(-0.5 * (velocity / sigma_kms) ** 2) / (np.sqrt(2 * np.pi) * sigma_kms)
    return 1.0 - area_kms * profile


def line_batch(n=1, **options):
    return np.tile(gaussian_line(WAVE_IN_AA, SIGMA_IN_KMS, **options), (n, 1))


def moments_kms(flux):
    """Centroid and standard deviation of a line in velocity."""
    velocity = C_KMS * np.log(RAVE_WAVE_AA / LINE_AA)
    depth = (1.0 - flux) / RAVE_WAVE_AA
    centroid = (depth * velocity).sum() / depth.sum()
    return centroid, np.sqrt((depth * (velocity - centroid) ** 2).sum() / depth.sum())


def labels(n, teff=5500.0):
    return np.full((n, 16), teff)


@pytest.mark.parametrize("power", [6500.0, 7500.0, 8500.0])
def test_lsf_makes_a_line_a_gaussian_of_the_stated_resolving_power(power):
    flux = spectrograph().broaden(line_batch(), **{**STILL, "resolving_power": power})
    expected = gaussian_line(RAVE_WAVE_AA, C_KMS / power / 2.3548200450309493)
    assert flux.dtype == np.float32
    np.testing.assert_allclose(flux[0], expected, atol=2e-5)


@pytest.mark.parametrize("rotation", [0.5, 5.0, 20.0, 60.0])
def test_rotation_equals_direct_convolution_with_grays_profile(rotation):
    e = 0.6
    fine = np.linspace(-1.0, 1.0, 20001)
    profile = 2 * (1 - e) * np.sqrt(1 - fine**2) + 0.5 * np.pi * e * (1 - fine**2)
    profile /= profile.sum()
    sigma = C_KMS / 7500.0 / 2.3548200450309493
    velocity = C_KMS * np.log(RAVE_WAVE_AA / LINE_AA)
    near = np.abs(velocity) < 200.0
    shifted = velocity[near, None] - rotation * fine
    kernel = np.exp(-0.5 * (shifted / sigma) ** 2) / (np.sqrt(2 * np.pi) * sigma)
    expected = 1.0 - 5.0 * kernel @ profile
    flux = spectrograph().broaden(line_batch(), **{**STILL, "rotation_kms": rotation})
    np.testing.assert_allclose(flux[0, near], expected, atol=3e-5)


def test_rotation_transfer_is_continuous_where_the_series_ends():
    below, above = rotation_transfer(np.array([0.3 - 1e-9, 0.3 + 1e-9]))
    assert below == pytest.approx(above, abs=1e-6)
    assert rotation_transfer(np.array([0.0]))[0] == 1.0


def test_macroturbulence_adds_half_its_square_to_the_variance():
    flux = spectrograph().broaden(line_batch(), **{**STILL, "macroturbulence_kms": 12.0})
    sigma = np.hypot(C_KMS / 7500.0 / 2.3548200450309493, 12.0 / np.sqrt(2.0))
    assert moments_kms(flux[0])[1] == pytest.approx(sigma, rel=1e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(-40.0, 40.0))
def test_radial_velocity_moves_the_line(rv):
    flux = spectrograph().broaden(line_batch(), **{**STILL, "rv_kms": rv})
    assert moments_kms(flux[0])[0] == pytest.approx(rv, abs=0.02)


def test_velocities_left_by_the_model_have_its_scatter():
    quiet = spectrograph(continuum_rms=0.0, fringe_rms=0.0, spike_fraction=0.0, rotation_kms=0.0)
    n = 600
    seen = quiet.observe(line_batch(n, area_kms=15.0), labels(n), np.random.default_rng(1))
    measured = np.array([moments_kms(flux)[0] for flux in seen.clean_flux])
    np.testing.assert_allclose(measured, seen.rv_kms, atol=0.03)
    assert measured.std() == pytest.approx(1.3, rel=4.0 / np.sqrt(2 * n))


def test_resolving_power_and_snr_follow_their_truncated_distributions():
    n = 4000
    model = TRAINING_CONDITIONS
    seen = spectrograph().observe(np.ones((n, 2048)), labels(n), np.random.default_rng(2))
    assert 6500.0 <= seen.resolving_power.min() < 6700.0
    assert 8300.0 < seen.resolving_power.max() <= 8500.0
    assert seen.resolving_power.mean() == pytest.approx(7500.0, abs=4 * 400 / np.sqrt(n))
    assert seen.snr.min() >= 20.0
    assert seen.snr.max() <= 150.0
    assert np.median(seen.snr) == pytest.approx(model.snr_median, rel=0.03)
    dim = Spectrograph(WAVE_IN_AA, RAVE_WAVE_AA, 20000.0, SURVEY_CONDITIONS)
    assert np.median(dim.draw_snr(n, np.random.default_rng(3))) == pytest.approx(40.0, rel=0.03)


def test_noise_has_the_stated_size_and_correlation():
    n = 400
    seen = spectrograph(spike_fraction=0.0).observe(
        line_batch(n, area_kms=25.0), labels(n), np.random.default_rng(4)
    )
    noise = (seen.flux - seen.clean_flux) * seen.snr[:, None] / np.sqrt(seen.clean_flux)
    assert noise.std() == pytest.approx(1.0, abs=0.01)
    correlation = [np.mean(noise[:, :-lag] * noise[:, lag:]) for lag in (1, 2, 3)]
    np.testing.assert_allclose(correlation, [0.44, 0.054, 0.0], atol=0.01)


def test_ivar_is_that_of_the_noise():
    n = 400
    seen = spectrograph(spike_fraction=0.0).observe(
        line_batch(n), labels(n), np.random.default_rng(5)
    )
    chi = (seen.flux - seen.clean_flux) * np.sqrt(seen.ivar)
    assert seen.ivar.dtype == np.float32
    assert np.mean(chi**2) == pytest.approx(1.0, abs=0.02)


def test_given_snr_replaces_the_drawn_one_and_nothing_else():
    given_snr = np.array([25.0, 100.0])
    a, b = (
        spectrograph().observe(line_batch(2), labels(2), np.random.default_rng(6), snr=snr)
        for snr in (None, given_snr)
    )
    np.testing.assert_array_equal(a.clean_flux, b.clean_flux)
    np.testing.assert_array_equal(b.snr, given_snr)


def test_three_stars_in_a_hundred_have_spikes():
    n = 4000
    flat = np.ones((n, 2048))
    seen = spectrograph(snr_median=1000.0, snr_range=(900.0, 1100.0)).observe(
        flat, labels(n), np.random.default_rng(7)
    )
    spikes = (seen.flux - seen.clean_flux) > 0.05
    spiked = spikes.any(axis=1)
    assert spiked.mean() == pytest.approx(0.03, abs=4 * np.sqrt(0.03 * 0.97 / n))
    assert spikes.sum(axis=1).max() <= 3


def test_the_level_of_the_continuum_scatters_as_told_and_draws_nothing_otherwise():
    quiet = {"continuum_rms": 0.0, "fringe_rms": 0.0}
    level = spectrograph(continuum_level=0.02, **quiet)._continuum_residual(
        4000, np.random.default_rng(0)
    )
    # One factor for all pixels of a star; 4000 stars fix its scatter to 1.1 %.
    np.testing.assert_allclose(level, np.broadcast_to(level[:, :1], level.shape), rtol=1e-6)
    assert level[:, 0].std() == pytest.approx(0.02, rel=0.05)
    rng, other = np.random.default_rng(1), np.random.default_rng(1)
    spectrograph()._continuum_residual(3, rng)
    other.standard_normal((3, 7), dtype=np.float32)
    other.random((3, 3, 1), dtype=np.float32)
    assert rng.random() == other.random()


def test_continuum_residuals_are_below_one_per_cent_and_smooth():
    n = 500
    quiet = {"snr_median": 1e6, "snr_range": (9e5, 1.1e6), "spike_fraction": 0.0}
    flat = np.ones((n, 2048))
    smooth, both = (
        spectrograph(fringe_rms=fringe, **quiet).observe(flat, labels(n), np.random.default_rng(8))
        for fringe in (0.0, 0.0015)
    )
    size = np.sqrt(np.mean((smooth.clean_flux - 1.0) ** 2))
    assert size == pytest.approx(0.004, rel=0.1)
    assert np.abs(np.diff(smooth.clean_flux, axis=1)).max() < 0.002
    fringes = both.clean_flux - smooth.clean_flux
    assert np.sqrt(np.mean(fringes**2)) == pytest.approx(0.0015, rel=0.1)


def test_hot_stars_rotate_faster():
    draw = spectrograph().observe
    flat = np.ones((300, 2048))
    cool = draw(flat, labels(300, 4500.0), np.random.default_rng(9))
    hot = draw(flat, labels(300, 6800.0), np.random.default_rng(9))
    assert np.median(hot.rotation_kms) > 4 * np.median(cool.rotation_kms)
    assert np.all(hot.macroturbulence_kms > cool.macroturbulence_kms)


def test_mismatch_with_theory_is_off_by_default_and_has_the_stated_size():
    assert TRAINING_CONDITIONS.theory_mismatch.absent
    assert not REALISTIC_MISMATCH.absent
    quiet = {"continuum_rms": 0.0, "fringe_rms": 0.0, "rv_error_kms": 0.0}
    flux = np.full((1, 2048), 0.7)
    mismatch = TheoryMismatch(line_strength=0.08, scale_aa=10.0, seed=3)
    seen = spectrograph(theory_mismatch=mismatch, **quiet).observe(
        flux, labels(1), np.random.default_rng(10)
    )
    strength = np.log(seen.clean_flux[0]) / np.log(0.7) - 1.0
    assert strength.std() == pytest.approx(0.08, rel=0.25)
    assert np.abs(np.diff(strength)).max() < 0.02


def test_mismatch_deepens_calcium_cores_differently_from_star_to_star():
    n = 400
    mismatch = TheoryMismatch(ca_core=0.1, ca_core_scatter=0.05)
    quiet = {"continuum_rms": 0.0, "fringe_rms": 0.0, "rv_error_kms": 0.0, "rotation_kms": 0.0}
    flux = np.full((n, 2048), 0.5)
    seen = spectrograph(theory_mismatch=mismatch, **quiet).observe(
        flux, labels(n), np.random.default_rng(11)
    )
    core = np.argmin(np.abs(RAVE_WAVE_AA - 8542.09))
    depth = 1.0 - seen.clean_flux[:, core] / 0.5
    assert 0.05 < depth.mean() < 0.1
    assert depth.std() / depth.mean() == pytest.approx(0.5, rel=0.2)
    elsewhere = np.argmin(np.abs(RAVE_WAVE_AA - 8600.0))
    np.testing.assert_allclose(seen.clean_flux[:, elsewhere], 0.5, atol=1e-5)


def test_the_same_stream_gives_the_same_bytes_and_arguments_stay():
    flux = line_batch(3).astype(np.float32)
    before = flux.copy()
    a, b = (
        spectrograph().observe(flux, labels(3), np.random.default_rng(12)).flux for _ in range(2)
    )
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(flux, before)


@pytest.mark.parametrize(
    "settings",
    [{"snr": 40}, {"snr_range": (50.0, 20.0)}, {"spike_fraction": 2.0}, {"rv_error_kms": -1.0}],
)
def test_wrong_settings_are_refused(settings):
    with pytest.raises(ValidationError):
        ObservingModel(**settings)


def test_grids_that_cannot_be_observed_are_refused():
    with pytest.raises(ValueError, match="uniformly"):
        Spectrograph(np.linspace(8000, 9000, 2048), RAVE_WAVE_AA, 2e4, TRAINING_CONDITIONS)
    with pytest.raises(ValueError, match="beyond"):
        Spectrograph(np.geomspace(8500, 8800, 2048), RAVE_WAVE_AA, 2e4, TRAINING_CONDITIONS)
