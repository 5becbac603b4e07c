"""Unknown noise stays known as such through all steps, and correlated noise is quoted rightly."""

import numpy as np
import pytest

from maury.errors import ConfigError, LengthMismatch, WavelengthError
from maury.labels.flags import Flag
from maury.spectra.batch import Batch
from maury.spectra.noise import (
    RAVE_CORRELATION,
    check_correlation,
    known_noise,
    noise_kernel,
    resampled_correlation,
)
from maury.spectra.operators import Resampler, estimate_snr, to_rest_frame
from maury.spectra.pixels import continuum_level
from maury.spectra.preparation import Preparation
from maury.spectra.spectra import Spectra

WAVE = 8420.0 + 0.4 * np.arange(400)
SPEED_KMS = 299792.458


def correlated(shape, correlation, rng):
    """Noise of variance 1 whose pixels are a moving average of white noise."""
    kernel = noise_kernel(correlation)
    white = rng.normal(size=(shape[0], shape[1] + kernel.size - 1))
    return np.stack([np.convolve(row, kernel, mode="valid") for row in white])


# correlations


@pytest.mark.parametrize("impossible", [[0.6], [-0.51], [0.44, 0.4, 0.9], [np.nan], [1.0]])
def test_a_correlation_of_no_noise_is_refused(impossible):
    with pytest.raises(ConfigError, match="noise_correlation"):
        check_correlation(impossible)
    with pytest.raises(ConfigError, match="noise_correlation"):
        Preparation.from_json({"noise_correlation": impossible})
    with pytest.raises(ConfigError, match="noise_correlation"):
        Spectra.from_arrays(WAVE, np.ones((1, 400)), noise_correlation=impossible)
    with pytest.raises(ConfigError, match="noise_correlation"):
        Resampler(WAVE, WAVE, noise_correlation=impossible)


@pytest.mark.parametrize("possible", [(), (0.5,), (-0.5,), RAVE_CORRELATION, (0.7, 0.3, 0.05)])
def test_kernels_have_their_correlation(possible):
    assert check_correlation(possible) == possible
    kernel = noise_kernel(possible)
    got = np.correlate(kernel, kernel, mode="full")[kernel.size - 1 :]
    np.testing.assert_allclose(got, [1.0, *possible], atol=2e-3)


@pytest.mark.parametrize("correlation", [(), RAVE_CORRELATION, (-0.3,)])
@pytest.mark.parametrize("ratio", [0.4, 1.0, 2.3])
def test_correlation_after_resampling_is_that_of_simulated_noise(correlation, ratio):
    rng = np.random.default_rng(3)
    covariance = np.zeros(4)
    for phase in (np.arange(20) + rng.random(20)) / 20:
        wave = WAVE[5] + 0.4 * (phase + ratio * np.arange(int(380 / ratio)))
        noise = correlated((100, 400), correlation, rng)
        got, _ = Resampler(WAVE, wave)(noise, np.ones_like(noise))
        covariance += [np.mean(got[:, : got.shape[1] - k] * got[:, k:]) for k in range(4)]
    expected = np.r_[resampled_correlation(correlation, ratio), np.zeros(4)][:3]
    # One phase of each twentieth of a pixel, 40 000 correlated pixels of each: .01.
    np.testing.assert_allclose(covariance[1:] / covariance[0], expected, atol=0.02)
    check_correlation(resampled_correlation(correlation, ratio))


# resampling


@pytest.mark.parametrize("correlation", [(), RAVE_CORRELATION, (0.3, -0.1), (-0.4,)])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.7, 4.0])
@pytest.mark.parametrize("masked", [0.0, 0.15])
def test_quoted_noise_is_the_scatter_at_every_phase(correlation, ratio, masked):
    rng = np.random.default_rng(11)
    n_star = 3000
    sigma = rng.uniform(0.5, 2.0, 60)
    noise = correlated((n_star, 60), correlation, rng) * sigma
    ivar = np.broadcast_to(sigma**-2.0, noise.shape) * (rng.random(60) >= masked)
    for phase in (0.0, 0.13, 0.25, 0.5, 0.77):
        wave = WAVE[3] + 0.4 * (phase + ratio * np.arange(int(50 / ratio)))
        moved = Resampler(WAVE[:60], wave, noise_correlation=correlation)(noise, ivar)
        rv_kms = np.full(n_star, SPEED_KMS * 0.4 * phase / 8430.0)
        shifted = to_rest_frame(
            noise,
            ivar,
            rv_kms,
            wave_in_aa=WAVE[:60],
            wave_out_aa=WAVE[3] + 0.4 * ratio * np.arange(int(50 / ratio)),
            noise_correlation=correlation,
        )
        for flux, quoted in (moved, shifted):
            used = quoted[0] > 0
            ratio_of_noise = flux[:, used].std(axis=0) * np.sqrt(quoted[0, used])
            # A standard deviation of 3000 values scatters by 1.3 %.
            assert np.abs(ratio_of_noise - 1).max() < 0.06
            assert abs(ratio_of_noise.mean() - 1) < 0.015


def test_half_a_pixel_of_rave_noise_quotes_its_scatter():
    rng = np.random.default_rng(1)
    noise = 1 + correlated((400, 400), RAVE_CORRELATION, rng) / 50
    batch = Batch(Spectra.from_arrays(WAVE, noise, np.full(noise.shape, 2500.0)), {})
    snr = {}
    for phase in (0.0, 0.5):
        grid = {"start_aa": 8424.0 + 0.4 * phase, "step_aa": 0.4, "n_pixel": 380}
        chain = Preparation.from_json({"steps": [{"step": "resample", "grid": grid}]})
        inputs = chain.apply(batch)
        snr[phase] = float(np.sqrt(np.median(inputs.ivar)))
        assert snr[phase] == pytest.approx(1 / inputs.flux.std(), rel=0.01)
    assert snr[0.0] == pytest.approx(50.0)
    # sigma^2 (1 + .44) / 2; white noise would have S/N 70.7.
    assert snr[0.5] == pytest.approx(50 / np.sqrt(0.72), rel=1e-5)


def test_correlation_goes_with_the_spectra():
    flux = np.ones((3, 400), np.float32)
    spectra = Spectra.from_arrays(WAVE, flux, 900 * flux, noise_correlation=(0.2,))
    batch = Batch(spectra, {"radial_velocity": np.array([0.0, 30.0, -80.0])})
    as_it_was = Preparation().apply(batch)
    assert as_it_was.noise_correlation == (0.2,)
    moved = Preparation.from_json({"steps": [{"step": "rest_frame"}]}).apply(batch)
    assert moved.noise_correlation == resampled_correlation((0.2,), 1.0)
    assert moved.noise_correlation[0] > 0.3
    assumed = Preparation(noise_correlation=(0.1,)).apply(Batch(Spectra(WAVE, flux, flux), {}))
    assert assumed.noise_correlation == (0.1,)


# unknown noise


def test_unknown_noise_is_state_and_not_a_value():
    flux = np.ones((4, 400), np.float32)
    ivar = np.array([[1.0], [1.0], [7.0], [0.0]]) * flux
    ivar[1, 5], ivar[0, :9] = 1.5, 0
    spectra = Spectra.from_arrays(WAVE, flux, ivar)
    assert spectra.noise_known.tolist() == [False, True, True, True]
    assert known_noise(spectra.ivar).tolist() == spectra.noise_known.tolist()
    assert not Spectra.from_arrays(WAVE, flux).noise_known.any()
    stated = Spectra.from_arrays(WAVE, flux, flux, noise_known=[True, False, True, False])
    assert stated.noise_known.tolist() == [True, False, True, False]
    assert stated.take(np.array([3, 0])).noise_known.tolist() == [False, True]
    assert Batch(stated, {})[1:3].spectra.noise_known.tolist() == [False, True]
    assert stated.replace(ivar=2 * flux).noise_known.tolist() == [True, False, True, False]
    with pytest.raises(LengthMismatch):
        Spectra.from_arrays(WAVE, flux, flux, noise_known=[True])


def test_a_grid_that_descends_is_turned_round():
    rng = np.random.default_rng(0)
    flux, ivar = rng.random((2, 3, 400))
    expected = Spectra.from_arrays(WAVE, flux, ivar)
    got = Spectra.from_arrays(WAVE[::-1], flux[:, ::-1], ivar[:, ::-1])
    for name in ("wave_aa", "flux", "ivar", "noise_known"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    with pytest.raises(WavelengthError, match="unsorted"):
        Spectra.from_arrays(np.roll(WAVE, 3), flux, ivar)


def made_up_batch(level, *, known, snr=50.0, n_star=60):
    rng = np.random.default_rng(7)
    lines = 1 - 0.3 * np.exp(-0.5 * ((WAVE - 8498.0) / 1.5) ** 2)
    noisy = lines + correlated((n_star, 400), RAVE_CORRELATION, rng) * np.sqrt(lines) / snr
    flux = (level * noisy).astype(np.float32)
    ivar = None if not known else np.broadcast_to(snr**2 / lines / level**2, flux.shape)
    columns = {"snr": np.full(n_star, snr), "radial_velocity": rng.normal(0, 60, n_star)}
    return Batch(Spectra.from_arrays(WAVE, flux, ivar), columns)


STEPS = {
    "rest_frame": {"step": "rest_frame"},
    "finer": {"step": "resample", "grid": {"start_aa": 8425.0, "step_aa": 0.17, "n_pixel": 850}},
    "coarser": {"step": "resample", "grid": {"start_aa": 8425.0, "step_aa": 1.1, "n_pixel": 130}},
    "continuum": {"step": "continuum", "method": "running_quantile", "quantile": 0.5},
}


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("level", [1.0, 3e4, 1e-5])
def test_noise_may_stand_anywhere(step, level):
    other, noise = STEPS[step], {"step": "noise"}
    batch = made_up_batch(level, known=False)
    before, after = (
        Preparation.from_json({"steps": steps}).apply(batch)
        for steps in ([noise, other], [other, noise])
    )
    truth = Preparation.from_json({"steps": [other]}).apply(made_up_batch(level, known=True))
    for inputs in (before, after):
        np.testing.assert_array_equal(inputs.ivar > 0, truth.ivar > 0)
        assert not (inputs.flags & Flag.NOISE_UNKNOWN.value).any()
        used = truth.ivar > 0
        ratio = np.sqrt(inputs.ivar[used] / truth.ivar[used])
        assert np.median(ratio) == pytest.approx(1.0, rel=0.02)
    alone = Preparation.from_json({"steps": [other]}).apply(batch)
    assert (alone.flags & Flag.NOISE_UNKNOWN.value).all()
    assert not (truth.flags & Flag.NOISE_UNKNOWN.value).any()


def test_known_noise_that_is_replaced_keeps_what_resampling_made_of_it():
    batch = made_up_batch(1.0, known=True)
    anew = {"step": "noise", "only_if_unknown": False}
    inputs = Preparation.from_json({"steps": [STEPS["coarser"], anew]}).apply(batch)
    truth = Preparation.from_json({"steps": [STEPS["coarser"]]}).apply(batch)
    assert np.median(np.sqrt(inputs.ivar / truth.ivar)) == pytest.approx(1.0, rel=0.03)


def test_spikes_are_found_wherever_noise_stands_before_them():
    batch = made_up_batch(3e4, known=False)
    flux = batch.spectra.flux.copy()
    flux[:30, 200] *= 1.8
    spiked = Batch(batch.spectra.replace(flux=flux), batch.columns)
    steps = [STEPS["continuum"], {"step": "noise"}, {"step": "mask_cosmics"}]
    flags = Preparation.from_json({"steps": steps}).apply(spiked).flags
    found = (flags & Flag.SPIKES.value) > 0
    assert found[:30].mean() > 0.9
    assert found[30:].mean() < 0.1
    blind = Preparation.from_json({"steps": steps[::2]}).apply(spiked).flags
    assert not (blind & Flag.SPIKES.value).any()


def test_levels_of_spectra():
    flux = np.ones((5, 50)) * np.array([[1.0], [0.9], [3e4], [2e-15], [-1.0]])
    ivar = np.ones_like(flux)
    np.testing.assert_allclose(continuum_level(flux, ivar), [1, 1, 3e4, 2e-15, 1])
    assert continuum_level(flux, 0 * ivar).tolist() == [1.0] * 5


def test_estimated_snr_takes_the_correlation_of_the_spectra():
    rng = np.random.default_rng(2)
    white = 1 + rng.normal(size=(200, 400)) / 40
    spectra = Spectra.from_arrays(WAVE, white, noise_correlation=())
    inputs = Preparation().apply(Batch(spectra, {}))
    assert np.median(inputs.snr) == pytest.approx(40, rel=0.05)
    with pytest.raises(ConfigError, match="no correlation"):
        estimate_snr(white, correlation=[0.9])
