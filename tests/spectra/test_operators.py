from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.polynomial import chebyshev
from spectres import spectres

from maury.errors import ConfigError, UnknownName
from maury.spectra.continuum import running_quantile_continuum
from maury.spectra.operators import (
    CONTINUUM_METHODS,
    SPEED_OF_LIGHT_KMS,
    Resampler,
    air_to_vacuum,
    bin_edges,
    chebyshev_continuum,
    doppler_factor,
    estimate_snr,
    fill_bad_pixels,
    good_pixels,
    ivar_from_snr,
    mask_cosmics,
    normalise_continuum,
    refractive_index,
    shift_to_rest,
    to_rest_frame,
    vacuum_to_air,
)

RAVE = 8420.0 + 0.4 * np.arange(912)
IRREGULAR = 8400.0 + np.cumsum(0.3 + 0.2 * np.random.default_rng(3).random(1100))


def made_up(n_star=12, n_pixel=912, *, seed=0, snr=60.0, depth=0.5):
    rng = np.random.default_rng(seed)
    pixel = np.arange(n_pixel)
    centre, strength = rng.uniform(0, n_pixel, 40), rng.uniform(0, depth, (n_star, 40))
    lines = np.exp(-strength @ np.exp(-0.5 * ((pixel - centre[:, None]) / 1.3) ** 2))
    sigma = np.sqrt(lines) / snr
    return lines + sigma * rng.normal(size=lines.shape), sigma**-2


# wavelength scales and velocities


def test_index_of_refraction_agrees_with_another_dispersion_formula():
    wave = np.linspace(3000, 25000, 500)
    s2 = (1e4 / wave) ** 2
    birch_downs = 1 + 8.34254e-5 + 2.406147e-2 / (130 - s2) + 1.5998e-4 / (38.9 - s2)
    np.testing.assert_allclose(refractive_index(wave), birch_downs, rtol=0, atol=1e-8)


def test_calcium_triplet_in_vacuum():
    # NIST ASD, Ritz wavelengths of Ca II in air and in vacuum.
    air, vacuum = [8498.018, 8542.089, 8662.140], [8500.353, 8544.436, 8664.520]
    np.testing.assert_allclose(air_to_vacuum(air), vacuum, atol=2e-3)


@given(st.floats(2000, 30000))
def test_air_and_vacuum_are_inverse(wave):
    assert abs(float(vacuum_to_air(air_to_vacuum(wave))) - wave) < 1e-8
    assert abs(float(air_to_vacuum(vacuum_to_air(wave))) - wave) < 1e-8


def test_doppler_factor_is_relativistic():
    beta = np.array([-0.5, -1e-3, 0.0, 1e-3, 0.5])
    expected = np.sqrt((1 + beta) / (1 - beta))
    np.testing.assert_allclose(doppler_factor(beta * SPEED_OF_LIGHT_KMS), expected, rtol=1e-14)
    assert np.isnan(doppler_factor([np.nan, np.inf, 4e5])).all()


@given(st.floats(-1000, 1000))
def test_rest_shift_undoes_the_doppler_factor(rv_kms):
    np.testing.assert_allclose(shift_to_rest(RAVE * doppler_factor(rv_kms), rv_kms), RAVE)


# resampling


@pytest.mark.parametrize(
    ("wave_in", "wave_out"),
    [
        (RAVE, RAVE[3:-3] + 0.13),
        (IRREGULAR, 8420.0 + 0.4 * np.arange(800)),
        (RAVE, np.geomspace(8430, 8770, 200)),
        (RAVE, np.arange(8450, 8500, 0.1)),
        (RAVE, RAVE + 20.0),
    ],
)
def test_resampler_equals_spectres(wave_in, wave_out):
    flux, ivar = made_up(70, wave_in.size)
    expected, error = spectres(
        wave_out, wave_in, flux, spec_errs=ivar**-0.5, fill=np.nan, verbose=False
    )
    covered = np.isfinite(expected)
    got, got_ivar = Resampler(wave_in, wave_out)(flux, ivar)
    np.testing.assert_allclose(got[covered], expected[covered], rtol=1e-12)
    np.testing.assert_allclose(got_ivar[covered], error[covered] ** -2, rtol=1e-11)
    assert not got[~covered].any()
    assert not got_ivar[~covered].any()


def test_resampler_keeps_float32_and_its_precision():
    flux, ivar = made_up(5)
    resampler = Resampler(RAVE, RAVE[3:-3] + 0.1)
    exact, exact_ivar = resampler(flux, ivar)
    single, single_ivar = resampler(flux.astype(np.float32), ivar.astype(np.float32))
    assert single.dtype == single_ivar.dtype == np.float32
    np.testing.assert_allclose(single, exact, rtol=1e-6)
    np.testing.assert_allclose(single_ivar, exact_ivar, rtol=1e-6)


def loop_resample(wave_in, wave_out, flux, ivar, min_coverage):
    """Resample one spectrum pixel by pixel, bad pixels left out, straight from the definition."""
    e_in, e_out = bin_edges(wave_in), bin_edges(wave_out)
    out, out_ivar = np.zeros(wave_out.size), np.zeros(wave_out.size)
    for j in range(wave_out.size):
        if e_out[j] < e_in[0] - 1e-9 or e_out[j + 1] > e_in[-1] + 1e-9:
            continue
        overlap = np.minimum(e_in[1:], e_out[j + 1]) - np.maximum(e_in[:-1], e_out[j])
        overlap = np.where(ivar > 0, np.maximum(overlap, 0), 0)
        if overlap.sum() >= min_coverage * (e_out[j + 1] - e_out[j]) * (1 - 1e-9):
            good = overlap > 0
            out[j] = (overlap[good] * flux[good]).sum() / overlap.sum()
            out_ivar[j] = overlap.sum() ** 2 / (overlap[good] ** 2 / ivar[good]).sum()
    return out, out_ivar


@pytest.mark.parametrize("min_coverage", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("bad_value", [np.nan, np.inf, -1e30])
def test_bad_pixels_are_left_out_and_the_weights_renormalised(min_coverage, bad_value):
    flux, ivar = made_up(6, 100)
    bad = np.random.default_rng(1).random(flux.shape) < 0.3
    flux, ivar = np.where(bad, bad_value, flux), np.where(bad, 0, ivar)
    wave = RAVE[:100]
    for wave_out in (wave[2:-2] + 0.13, np.arange(wave[2], wave[-3], 1.3)):
        got, got_ivar = Resampler(wave, wave_out, min_coverage=min_coverage)(flux, ivar)
        for row in range(6):
            expected = loop_resample(wave, wave_out, flux[row], ivar[row], min_coverage)
            np.testing.assert_allclose(got[row], expected[0], rtol=1e-12, atol=1e-13)
            np.testing.assert_allclose(got_ivar[row], expected[1], rtol=1e-11)


def test_variance_is_that_of_resampled_noise():
    rng = np.random.default_rng(5)
    noise = rng.normal(0, 0.02, (4000, 60))
    got, ivar = Resampler(RAVE[:60], RAVE[5:40] * 1.0001)(noise, np.full_like(noise, 2500.0))
    ratio = got.std(axis=0) * np.sqrt(ivar[0])
    # The standard deviation of 4000 values scatters by 1.1 %.
    assert np.all(np.abs(ratio - 1) < 0.06)
    assert abs(ratio.mean() - 1) < 0.01


grids = st.builds(
    lambda start, steps: start + np.cumsum(steps),
    st.floats(5000, 5003),
    hnp.arrays(np.float64, st.integers(20, 60), elements=st.floats(0.2, 1.0)),
)


@given(grids, grids)
@settings(max_examples=60, deadline=None)
def test_flux_is_conserved_and_a_constant_stays_constant(wave_in, wave_out):
    rng = np.random.default_rng(0)
    flux, ivar = rng.random((3, wave_in.size)), np.ones((3, wave_in.size))
    resampler = Resampler(wave_in, wave_out)
    got, got_ivar = resampler(flux, ivar)
    inside = got_ivar[0] > 0
    np.testing.assert_allclose(resampler(np.full_like(flux, 0.7), ivar)[0][:, inside], 0.7)
    if inside.any():
        edges_in, edges_out = bin_edges(wave_in), bin_edges(wave_out)
        first, last = np.flatnonzero(inside)[[0, -1]]
        cumulative = np.concatenate([[0], np.cumsum(flux[0] * np.diff(edges_in))])
        limits = np.interp(edges_out[[first, last + 1]], edges_in, cumulative)
        total = (got[0] * np.diff(edges_out))[inside].sum()
        np.testing.assert_allclose(total, limits[1] - limits[0], rtol=1e-9)


@given(st.permutations(range(9)), st.floats(1e-3, 1e3))
@settings(max_examples=25, deadline=None)
def test_rows_are_independent_and_scale(order, factor):
    flux, ivar = made_up(9, 200)
    ivar[:, 50:53] = 0
    order = list(order)
    rv_kms = np.linspace(-100, 100, 9)
    wave = RAVE[:200]

    def shift(flux, ivar, rv_kms):
        return to_rest_frame(flux, ivar, rv_kms, wave_in_aa=wave, wave_out_aa=wave[5:-5])

    for operator, extra in (
        (lambda f, i, _: Resampler(wave, wave[3:-3] + 0.1)(f, i), rv_kms),
        (shift, rv_kms),
        (lambda f, i, _: normalise_continuum(f, i), rv_kms),
    ):
        plain, plain_ivar = operator(flux, ivar, extra)
        moved, moved_ivar = operator(flux[order], ivar[order], extra[order])
        np.testing.assert_allclose(moved, plain[order], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(moved_ivar, plain_ivar[order], rtol=1e-9)
    scaled, scaled_ivar = shift(factor * flux, ivar / factor**2, rv_kms)
    plain, plain_ivar = shift(flux, ivar, rv_kms)
    np.testing.assert_allclose(scaled, factor * plain, rtol=1e-9, atol=1e-9 * factor)
    np.testing.assert_allclose(scaled_ivar, plain_ivar / factor**2, rtol=1e-9)


def test_wild_values_of_one_row_leave_the_others_alone():
    flux, ivar = made_up(5, 120)
    expected = Resampler(RAVE[:120], RAVE[3:100] + 0.1)(flux, ivar)
    flux[1], flux[2, ::2], ivar[3] = np.nan, np.inf, 0
    got = Resampler(RAVE[:120], RAVE[3:100] + 0.1)(flux, ivar)
    for row in (0, 4):
        np.testing.assert_allclose(got[0][row], expected[0][row], rtol=1e-12)
        np.testing.assert_allclose(got[1][row], expected[1][row], rtol=1e-12)
    assert not got[1][[1, 3]].any()
    assert np.isfinite(got[0]).all()
    assert np.isfinite(got[1]).all()


def test_arguments_are_not_written_to():
    flux, ivar = made_up(4, 150)
    ivar[0, 3:6] = 0
    before = flux.copy(), ivar.copy()
    flux.setflags(write=False)
    ivar.setflags(write=False)
    Resampler(RAVE[:150], RAVE[3:120])(flux, ivar)
    normalise_continuum(flux, ivar)
    fill_bad_pixels(flux, ivar)
    mask_cosmics(flux, ivar)
    estimate_snr(flux, ivar)
    to_rest_frame(flux, ivar, np.ones(4), wave_in_aa=RAVE[:150], wave_out_aa=RAVE[:150])
    np.testing.assert_array_equal(flux, before[0])
    np.testing.assert_array_equal(ivar, before[1])


def test_resampler_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="increasing"):
        Resampler([2.0, 1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="min_coverage"):
        Resampler(RAVE, RAVE, min_coverage=0.0)
    with pytest.raises(ValueError, match="expects flux and ivar"):
        Resampler(RAVE, RAVE)(np.ones((2, 5)), np.ones((2, 5)))


# rest frame


def test_rest_frame_equals_resampler_at_zero_velocity():
    flux, ivar = made_up(70)
    ivar[:, 100:104] = 0
    for wave_out in (RAVE, RAVE[5:-5] + 0.17, np.arange(8430, 8760, 1.1)):
        expected = Resampler(RAVE, wave_out)(flux, ivar)
        got = to_rest_frame(flux, ivar, np.zeros(70), wave_in_aa=RAVE, wave_out_aa=wave_out)
        np.testing.assert_allclose(got[0], expected[0], rtol=1e-12)
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-11)


def test_rest_frame_equals_spectres_star_by_star():
    flux, ivar = made_up(8)
    rv_kms = np.array([-400.0, -150, -31, -2, 0.5, 44, 180, 390])
    wave_out = RAVE[40:-40]
    got, got_ivar = to_rest_frame(flux, ivar, rv_kms, wave_in_aa=RAVE, wave_out_aa=wave_out)
    for row, rv in enumerate(rv_kms):
        rest = RAVE / np.sqrt((1 + rv / 299792.458) / (1 - rv / 299792.458))
        expected, error = spectres(wave_out, rest, flux[row], spec_errs=ivar[row] ** -0.5)
        np.testing.assert_allclose(got[row], expected, rtol=1e-9)
        np.testing.assert_allclose(got_ivar[row], error**-2, rtol=1e-7)


def test_rest_frame_brings_a_line_home():
    rv_kms = np.array([-250.0, 0.0, 250.0])
    observed = 8542.09 * doppler_factor(rv_kms)
    flux = 1 - 0.6 * np.exp(-0.5 * ((RAVE - observed[:, None]) / 0.8) ** 2)
    got, _ = to_rest_frame(flux, np.ones_like(flux), rv_kms, wave_in_aa=RAVE, wave_out_aa=RAVE)
    window = slice(250, 360)
    centre = ((1 - got) * RAVE)[:, window].sum(axis=1) / (1 - got)[:, window].sum(axis=1)
    np.testing.assert_allclose(centre, 8542.09, atol=0.01)


def test_unknown_velocity_makes_the_row_bad():
    flux, ivar = made_up(3)
    got, got_ivar = to_rest_frame(
        flux, ivar, [np.nan, 10.0, np.inf], wave_in_aa=RAVE, wave_out_aa=RAVE
    )
    assert not got_ivar[[0, 2]].any()
    assert not got[[0, 2]].any()
    assert got_ivar[1].any()


# continuum


def loop_chebyshev(flux, ivar, *, degree, low=1.25, high=3.0, iterations=10):
    x = np.linspace(-1, 1, flux.shape[1])
    fits = np.full(flux.shape, np.nan)
    for row, (y, w) in enumerate(zip(flux, np.sqrt(ivar), strict=True)):
        keep = w > 0
        for step in range(iterations + 1):
            fits[row] = chebyshev.chebval(x, chebyshev.chebfit(x[keep], y[keep], degree, w=w[keep]))
            r = y - fits[row]
            sigma = np.sqrt(np.average(r[keep] ** 2, weights=w[keep] ** 2))
            kept = keep & (r > -low * sigma) & (r < high * sigma)
            if step == iterations or kept.sum() == keep.sum() or kept.sum() < 3 * (degree + 1):
                break
            keep = kept
    return fits


@pytest.mark.parametrize("degree", [0, 3, 4, 7])
def test_chebyshev_continuum_equals_a_loop_of_chebfit(degree):
    flux, ivar = made_up(80, 500)
    flux = flux * (1 + 0.1 * np.linspace(-1, 1, 500)) * np.linspace(0.5, 90, 80)[:, None]
    ivar[::7, 40:60] = 0
    got = chebyshev_continuum(flux, ivar, degree=degree)
    np.testing.assert_allclose(got, loop_chebyshev(flux, ivar, degree=degree), rtol=1e-9)


def test_chebyshev_rows_that_stop_early_agree_too():
    flux, ivar = made_up(40, 300)
    flux[::2] = 1 + 0.01 * np.random.default_rng(0).normal(size=(20, 300))
    got = chebyshev_continuum(flux, ivar, degree=2, low=3.0, iterations=30)
    expected = loop_chebyshev(flux, ivar, degree=2, low=3.0, iterations=30)
    np.testing.assert_allclose(got, expected, rtol=1e-9)


@pytest.mark.parametrize("method", ["chebyshev", "running_quantile"])
def test_continuum_of_a_smooth_curve_is_that_curve(method):
    curve = 3 + np.linspace(-1, 1, 912) * np.array([[0.0], [0.2], [-0.5]])
    flux, ivar = normalise_continuum(curve, np.full_like(curve, 4.0), method=method)
    np.testing.assert_allclose(flux, 1, atol=0.04 if method == "running_quantile" else 1e-7)
    np.testing.assert_allclose(ivar, 4 * (curve / flux) ** 2, rtol=1e-9)


def test_running_quantile_of_noise_is_its_quantile():
    flux = np.random.default_rng(2).normal(1, 0.05, (200, 912))
    got = running_quantile_continuum(flux, np.ones_like(flux), quantile=0.9, window=201)
    # 1.2816 is the 90th percentile of the normal distribution.
    assert abs(got.mean() - (1 + 1.2816 * 0.05)) < 0.002


def test_continuum_recovers_a_tilt_under_absorption():
    flux, ivar = made_up(30, snr=80)
    tilt = 1 + 0.2 * np.linspace(-1, 1, 912) * np.random.default_rng(0).normal(size=(30, 1))
    with_tilt, _ = normalise_continuum(flux * tilt, ivar / tilt**2)
    without, _ = normalise_continuum(flux, ivar)
    assert np.median(np.abs(with_tilt - without)) < 0.002


def test_continuum_none_changes_nothing_but_bad_pixels():
    flux, ivar = made_up(3)
    ivar[0, 4] = 0
    got, got_ivar = normalise_continuum(flux, ivar, method="none")
    good = good_pixels(flux, ivar)
    np.testing.assert_array_equal(got[good], flux[good])
    np.testing.assert_array_equal(got_ivar[good], ivar[good])
    assert not got_ivar[~good].any()


@pytest.mark.parametrize("method", list(CONTINUUM_METHODS))
def test_hopeless_rows_are_marked_and_never_raise(method):
    flux = np.ones((7, 300), dtype=np.float32)
    ivar = np.full_like(flux, 100)
    flux[1], flux[2], ivar[3], flux[4], ivar[5, 4:] = np.nan, -1, 0, 0, 0
    flux[6, ::2] = np.inf
    got, got_ivar = normalise_continuum(flux, ivar, method=method)
    assert got.dtype == got_ivar.dtype == np.float32
    assert np.isfinite(got).all()
    assert np.isfinite(got_ivar).all()
    assert not got_ivar[[1, 3]].any()
    if method != "none":
        assert not got_ivar[[2, 4]].any()
    np.testing.assert_allclose(got[0], 1, rtol=1e-6)


def test_unknown_continuum_method_gets_a_suggestion():
    with pytest.raises(UnknownName, match="did you mean 'chebyshev'"):
        normalise_continuum(np.ones((1, 50)), np.ones((1, 50)), method="chebishev")


# pixels


def test_filling_equals_numpy_interp():
    flux, ivar = made_up(20, 100)
    bad = np.random.default_rng(4).random(flux.shape) < 0.4
    flux, ivar = np.where(bad, np.nan, flux), np.where(bad, 0, ivar)
    got = fill_bad_pixels(flux, ivar)
    pixel = np.arange(100)
    for row in range(20):
        good = ~bad[row]
        np.testing.assert_allclose(got[row], np.interp(pixel, pixel[good], flux[row, good]))


def test_filling_an_empty_row_and_a_single_good_pixel():
    flux, ivar = np.full((2, 10), np.nan), np.zeros((2, 10))
    flux[1, 3], ivar[1, 3] = 0.4, 1
    np.testing.assert_array_equal(fill_bad_pixels(flux, ivar), [[1.0] * 10, [0.4] * 10])


@given(
    hnp.arrays(np.float32, (3, 12), elements=st.floats(width=32)),
    hnp.arrays(np.float32, (3, 12), elements=st.floats(width=32)),
)
@settings(max_examples=150, deadline=None)
def test_whatever_the_bits_every_operator_answers_with_finite_rows(flux, ivar):
    wave = np.arange(12.0) + 5000
    filled = fill_bad_pixels(flux, ivar)
    assert np.isfinite(filled).all()
    good = good_pixels(flux, ivar)
    np.testing.assert_array_equal(filled[good], flux[good])
    with np.errstate(over="ignore", invalid="ignore"):
        for got in (
            Resampler(wave, wave[2:-2] + 0.3)(flux, ivar),
            to_rest_frame(flux, ivar, np.full(3, 9.0), wave_in_aa=wave, wave_out_aa=wave),
        ):
            assert not np.isnan(got[1]).any()
            assert np.all(got[1] >= 0)
        assert mask_cosmics(flux, ivar).shape == flux.shape


def test_spikes_of_one_and_two_pixels_are_found():
    flux, ivar = made_up(300, snr=60, depth=0.2)
    clean = mask_cosmics(flux, ivar, grow=0)
    assert clean.mean() < 1e-4
    position = np.random.default_rng(3).integers(10, 900, 300)
    row = np.arange(300)
    for width in (1, 2):
        spiked = flux.copy()
        for k in range(width):
            spiked[row, position + k] += 0.4
        found = mask_cosmics(spiked, ivar, grow=0)
        assert found[row, position].mean() > 0.97
        assert mask_cosmics(spiked, ivar, grow=1)[row, position - 1].mean() > 0.97


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_calcium_triplet_and_its_emission_are_not_taken_for_spikes(sign):
    centre = np.array([8498.02, 8542.09, 8662.14])
    broad = 0.6 * np.exp(-0.5 * ((RAVE - centre[:, None]) / 2.0) ** 2).sum(axis=0)
    resolved = 0.3 * np.exp(-0.5 * ((RAVE - centre[:, None]) / 0.48) ** 2).sum(axis=0)
    flux = (1 - broad + sign * resolved)[None]
    noise = np.random.default_rng(0).normal(size=(200, 912)) * np.sqrt(flux) / 150
    assert mask_cosmics(flux + noise, ivar_from_snr(flux + noise, np.full(200, 150.0))).sum() == 0


def test_cosmics_ignore_bad_pixels():
    flux, ivar = made_up(2, 100, depth=0.1)
    flux[0, 50], ivar[0, 50] = 9.0, 0
    assert not mask_cosmics(flux, ivar)[0, 48:53].any()


# noise


def correlated(rng, shape):
    """Noise of unit variance with autocorrelation .44, .05 (a moving average of three values)."""
    roots = np.roots([0.05, 0.44, 1.0, 0.44, 0.05])
    kernel = np.real(np.poly(roots[np.argsort(np.abs(roots))[:2]]))
    kernel /= np.sqrt(np.sum(kernel**2))
    white = rng.normal(size=(shape[0], shape[1] + 2))
    return sum(kernel[k] * white[:, k : k + shape[1]] for k in range(3))


@pytest.mark.parametrize("snr", [15.0, 50.0, 150.0])
def test_snr_of_correlated_noise_is_not_overestimated(snr):
    rng = np.random.default_rng(1)
    lines, _ = made_up(1, snr=1e9, depth=0.15)
    level = np.repeat(lines, 300, axis=0)
    noise = correlated(rng, level.shape)
    lag = [np.mean(noise[:, k:] * noise[:, : noise.shape[1] - k]) for k in (0, 1, 2, 3)]
    np.testing.assert_allclose(lag, [1, 0.44, 0.05, 0], atol=0.01)
    ratio = estimate_snr(level + noise * np.sqrt(level) / snr) / snr
    assert abs(np.median(ratio) - 1) < 0.03
    assert ratio.std() < 0.08


def test_snr_of_white_noise_and_with_bad_pixels():
    rng = np.random.default_rng(1)
    flux = 1 + rng.normal(0, 1 / 40, (300, 912))
    ivar = np.where(rng.random(flux.shape) < 0.02, 0, 1.0)
    flux = np.where(ivar > 0, flux, 1e9)
    assert abs(np.median(estimate_snr(flux, ivar, correlation=())) / 40 - 1) < 0.02


def test_snr_that_cannot_be_measured_is_nan():
    flux = np.ones((3, 200))
    flux[1] = np.nan
    flux[2, 20:] = np.nan
    assert np.isnan(estimate_snr(flux)).all()
    assert np.isnan(estimate_snr(np.ones((2, 5)))).all()
    with pytest.raises(ConfigError, match="no correlation"):
        estimate_snr(np.ones((1, 100)), correlation=(0.9,))


def test_ivar_from_snr():
    flux = np.array([[1.0, 0.25, -3.0, np.nan]] * 3)
    ivar = ivar_from_snr(flux, [10.0, np.nan, -5.0])
    np.testing.assert_allclose(ivar[0], [100, 400, 2000, 0])
    assert not ivar[1:].any()


def test_snr_of_the_reference_spectra(shared):
    """The simulated RAVE-like spectra tell their true S/N."""
    fits = pytest.importorskip("astropy.io.fits")
    folder = shared / "data" / "rave_like"
    flux = fits.getdata(folder / "training_sample_spectra.fits").T.astype(np.float32)
    truth = np.genfromtxt(folder / "training_sample_extra.csv", delimiter=",", skip_header=1)[:, 1]
    labels = np.genfromtxt(
        folder / "training_sample_labels.csv", delimiter=",", skip_header=1, usecols=(1, 3)
    )
    ratio = estimate_snr(flux) / truth
    assert abs(np.median(ratio) - 1) < 0.03
    assert np.subtract(*np.percentile(ratio, [84, 16])) / 2 < 0.08
    for label in labels.T:
        quarters = np.percentile(label, [0, 25, 50, 75, 100])
        medians = [
            np.median(ratio[(label >= low) & (label <= high)]) for low, high in pairwise(quarters)
        ]
        assert np.ptp(medians) < 0.03
