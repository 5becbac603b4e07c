"""ATHOS: choice of ratios, chained relations, independence of the continuum."""

import json
from dataclasses import replace

import numpy as np
import pytest

from builders.method_samples import draw_labels, inputs_of, lines, sample_of
from maury.errors import ConfigError
from maury.labels.statistics import robust_sigma
from maury.methods.athos import Athos, AthosSettings, _candidates, _chain, _ratios


def made(n, seed, *, snr=80.0):
    rng = np.random.default_rng(seed)
    scaled, truth = draw_labels(n, rng)
    clean = lines(scaled)
    return truth, clean + rng.standard_normal(clean.shape) / snr, np.full(clean.shape, snr**2)


@pytest.fixture(scope="module")
def trained() -> Athos:
    sample = sample_of(*made(500, 1))
    settings = AthosSettings(ratios=8, widths=(3, 6), reach_aa=20.0)
    return Athos.train(sample, sample, settings=settings, seed=0)


def test_ratios_are_those_of_window_means():
    flux = np.random.default_rng(2).uniform(0.5, 1.5, (3, 30))
    found = _ratios(flux, np.array([[2, 5, 10, 17]]))
    np.testing.assert_allclose(found[:, 0], flux[:, 2:5].mean(1) / flux[:, 10:17].mean(1))


def test_candidates_are_apart_and_within_reach():
    found = _candidates(np.zeros(60, dtype=bool), AthosSettings(widths=(3, 6)), 20.0)
    assert np.all(found[:, 2] >= found[:, 1])
    assert np.all(found[:, [2, 3]].mean(1) - found[:, [0, 1]].mean(1) <= 20.0)
    assert np.all(found[:, 3] <= 60)
    assert len(np.unique(found, axis=0)) == len(found)


def test_labels_are_measured_in_order():
    order, given = _chain(("logg", "mg_fe", "fe_h", "teff"))
    assert [("logg", "mg_fe", "fe_h", "teff")[k] for k in order] == [
        "teff",
        "fe_h",
        "logg",
        "mg_fe",
    ]
    assert given[3] == []
    assert given[2] == [3]
    assert given[0] == [3, 2]
    assert given[1] == [3, 2, 0]


def test_labels_are_recovered(trained):
    truth, flux, ivar = made(600, 3)
    found = trained.apply(inputs_of(flux, ivar))
    for k in range(3):
        miss = found.labels[:, k] - truth[:, k]
        assert robust_sigma(miss) < 0.35 * truth[:, k].std()
        assert 0.75 < robust_sigma(miss / found.sigma[:, k]) < 1.3


def test_ratios_of_one_label_differ(trained):
    for windows in trained.windows:
        assert len(np.unique(windows, axis=0)) == len(windows)


def test_a_smooth_continuum_changes_little(trained):
    truth, flux, ivar = made(300, 4)
    slope = 1.0 + 0.02 * np.linspace(-1, 1, 120)
    level = trained.apply(inputs_of(3.0 * flux, ivar)).labels
    plain = trained.apply(inputs_of(flux, ivar)).labels
    np.testing.assert_allclose(level, plain, rtol=1e-4, atol=1e-4)
    tilted = trained.apply(inputs_of(slope * flux, ivar)).labels
    shift = np.abs(np.median(tilted - plain, axis=0)) / truth.std(axis=0)
    assert np.all(shift < 0.2)


def test_rows_without_pixels_are_nan(trained):
    _, flux, ivar = made(4, 5)
    ivar[1] = 0.0
    found = trained.apply(inputs_of(flux, ivar))
    assert np.isnan(found.labels[1]).all()
    assert np.isfinite(found.labels[[0, 2, 3]]).all()


def test_it_survives_saving(trained):
    arrays, about = trained.to_arrays()
    kept = {"settings": trained.settings, "label_names": trained.label_names}
    again = Athos.from_arrays(arrays, json.loads(json.dumps(about)), **kept)
    _, flux, ivar = made(4, 6)
    seen = inputs_of(flux, ivar)
    np.testing.assert_array_equal(again.apply(seen).labels, trained.apply(seen).labels)
    np.testing.assert_array_equal(again.apply(seen).sigma, trained.apply(seen).sigma)


def test_windows_that_do_not_fit_are_refused():
    sample = sample_of(*made(50, 7))
    with pytest.raises(ConfigError, match="no two windows"):
        Athos.train(sample, sample, settings=AthosSettings(widths=(90,)), seed=0)


def test_the_error_is_that_of_flux_and_coefficients_and_follows_the_noise():
    truth, flux, ivar = made(900, 21)
    sample = sample_of(truth, flux, ivar)
    settings = AthosSettings(ratios=8, widths=(3, 6), reach_aa=20.0)
    method = Athos.train(sample, sample, settings=settings, seed=0)
    assert method.errors_follow_noise
    rng = np.random.default_rng(22)
    truth, flux, ivar = made(400, 23)
    noisier = flux + 0.05 * rng.standard_normal(flux.shape)
    seen = [inputs_of(flux, ivar), inputs_of(noisier, 1.0 / (1.0 / ivar + 0.05**2))]
    few, many = (method.apply(one) for one in seen)
    assert (np.median(many.sigma / few.sigma, axis=0) > 1.5).all()
    z = (many.labels - truth) / many.sigma
    assert all(0.6 < robust_sigma(column) < 1.3 for column in z.T)
    smooth = method.apply(replace(seen[1], noise_correlation=(0.4,)))
    assert (np.median(smooth.sigma / many.sigma, axis=0) > 1.0).all()
    # Few stars hold the relations less well.
    small = Athos.train(sample.rows(np.arange(40)), sample, settings=settings, seed=0)
    parts = [np.median(np.trace(one.coefficients[0], axis1=1, axis2=2)) for one in (small, method)]
    assert parts[0] > 5 * parts[1]


def test_no_ratio_stands_in_telluric_bands_or_ranges_to_avoid():
    sample = sample_of(*made(300, 24))
    plain = Athos.train(sample, sample, settings=AthosSettings(widths=(3,), ratios=6), seed=0)
    wave = sample.wave_aa
    low, high = wave[plain.windows[0, 0, 0]] - 0.1, wave[plain.windows[0, 0, 1] - 1] + 0.1
    avoid = AthosSettings(widths=(3,), ratios=6, avoid=((low, high),))
    careful = Athos.train(sample, sample, settings=avoid, seed=0)
    for first, stop, other, end in careful.windows.reshape(-1, 4):
        for pixels in (wave[first:stop], wave[other:end]):
            assert not ((pixels >= low) & (pixels <= high)).any()
    earth = replace(sample, inputs=replace(sample.inputs, wave_aa=7595.0 + 0.4 * np.arange(120)))
    with pytest.raises(ConfigError, match="tellurics = false"):
        Athos.train(earth, earth, settings=AthosSettings(), seed=0)
    Athos.train(earth, earth, settings=AthosSettings(tellurics=False, ratios=4), seed=0)
