"""The Cannon: coefficients, scatter, sparsity, censoring, fits and their errors."""

import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq, least_squares

from builders.method_samples import draw_labels, inputs_of, sample_of
from maury.errors import ConfigError, TrainingError, UnknownName
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.cannon import Cannon, CannonSettings
from maury.methods.cannon_fit import QuadraticFit
from maury.methods.cannon_model import QuadraticModel, scatter_of
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.polynomials import n_term, terms, terms_slope
from maury.methods.protocols import ForwardModel

PEER = Path(os.environ.get("MAURY_THECANNON", "none"))
"""Interpreter of an environment with thecannon, numpy and matplotlib."""


def made(n, seed, *, n_pixel=80, n_label=3, snr=60.0, scatter=0.01):
    """Spectra of a known quadratic model; returns truth, flux, ivar and the noise-free flux."""
    rng = np.random.default_rng(seed)
    _, truth = draw_labels(n, rng, ("teff", "logg", "m_h")[:n_label])
    rule = np.random.default_rng(99)
    theta = rule.normal(0, 0.03, (n_pixel, n_term(n_label)))
    theta[:, 1 + n_label :] *= 0.3
    theta[:, 0] = 0.8
    scaled = (truth - np.array([5000.0, 3.0, -0.3])[:n_label]) / np.array([800.0, 1.0, 0.5])[
        :n_label
    ]
    clean = terms(scaled) @ theta.T
    ivar = rng.uniform(0.5, 1.5, (n, n_pixel)) * snr**2
    noise = np.sqrt(1 / ivar + scatter**2) * rng.standard_normal((n, n_pixel))
    return truth, clean + noise, ivar, clean


@pytest.fixture(scope="module")
def trained() -> Cannon:
    truth, flux, ivar, _ = made(800, 1)
    sample = sample_of(truth, flux, ivar)
    return Cannon.train(sample, sample, settings=CannonSettings(), seed=0)


@given(st.integers(1, 5), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_slopes_of_terms_are_their_derivatives(n_label, seed):
    x = np.random.default_rng(seed).normal(size=(3, n_label))
    step = 1e-6
    for k in range(n_label):
        change = np.zeros(n_label)
        change[k] = step
        numeric = (terms(x + change) - terms(x - change)) / (2 * step)
        np.testing.assert_allclose(terms_slope(x)[:, :, k], numeric, atol=1e-8)


@given(st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_jacobian_is_the_derivative_of_the_flux(trained, seed):
    _, labels = draw_labels(4, np.random.default_rng(seed))
    analytic = trained.model.jacobian(labels)
    for k, step in enumerate((1.0, 1e-3, 1e-3)):
        change = np.zeros(3)
        change[k] = step
        numeric = trained.model.flux(labels + change) - trained.model.flux(labels - change)
        np.testing.assert_allclose(analytic[:, k], numeric / (2 * step), rtol=1e-6, atol=1e-9)


def test_coefficients_are_those_of_plain_least_squares():
    truth, flux, ivar, _ = made(200, 2, n_pixel=6)
    ivar[5, 3] = 0.0
    flux[5, 3] = np.nan
    model = QuadraticModel.fit(flux, ivar, truth)
    vector = terms(model.scaled(truth))
    for pixel in range(6):
        good = ivar[:, pixel] > 0
        root = np.sqrt(1 / (1 / ivar[good, pixel] + model.scatter[pixel] ** 2))
        expected = np.linalg.lstsq(vector[good] * root[:, None], flux[good, pixel] * root)[0]
        np.testing.assert_allclose(model.theta[pixel], expected, atol=1e-6)


def test_scatter_is_the_root_of_the_likelihood_equation():
    rng = np.random.default_rng(3)
    ivar = rng.uniform(500, 5000, (300, 5))
    residual = rng.standard_normal((300, 5)) * np.sqrt(1 / ivar + 0.02**2)
    residual[:, 4] *= 0.3

    def equation(variance, pixel):
        weight = ivar[:, pixel] / (1 + ivar[:, pixel] * variance)
        return np.sum(residual[:, pixel] ** 2 * weight**2 - weight)

    found = scatter_of(residual, ivar)
    for pixel in range(4):
        expected = np.sqrt(brentq(equation, 0, 1, args=(pixel,), xtol=1e-14))
        assert found[pixel] == pytest.approx(expected, rel=1e-4)
    assert found[4] == 0.0


def test_scatter_is_unbiased():
    truth, flux, ivar, _ = made(2000, 4, scatter=0.01)
    model = QuadraticModel.fit(flux, ivar, truth)
    # Of a prediction: ten coefficients err, and add half a percent of the variance.
    variance = 0.01**2 + (0.01**2 + 1.04 / 60**2) * 10 / 2000
    assert np.median(model.scatter) == pytest.approx(np.sqrt(variance), rel=0.02)


def test_sparse_coefficients_satisfy_the_conditions_of_the_lasso():
    truth, flux, ivar, _ = made(300, 5, n_pixel=8)
    strength = 300.0
    model = QuadraticModel.fit(flux, ivar, truth, sparsity=strength)
    vector = terms(model.scaled(truth))
    weight = ivar / (1 + ivar * model.scatter**2)
    gradient = 2 * (weight * (flux - vector @ model.theta.T)).T @ vector
    zero = model.theta == 0
    assert zero[:, 1:].any()
    np.testing.assert_allclose(gradient[:, 0], 0, atol=1e-3 * strength)
    assert np.all(np.abs(gradient[zero]) <= strength * 1.001)
    used = ~zero
    used[:, 0] = False
    np.testing.assert_allclose(
        gradient[used], strength * np.sign(model.theta[used]), rtol=2e-3, atol=2e-3 * strength
    )


def test_a_censored_label_moves_no_pixel_outside_its_windows():
    truth, flux, ivar, _ = made(300, 6)
    sample = sample_of(truth, flux, ivar)
    censored = CannonSettings(censor={"m_h": ((8424.0, 8426.0),)})
    model = Cannon.train(sample, sample, settings=censored, seed=0).model
    slope = model.jacobian(truth[:5])[:, 2]
    inside = (sample.wave_aa >= 8424.0) & (sample.wave_aa <= 8426.0)
    assert np.all(slope[:, ~inside] == 0)
    assert np.all(np.abs(slope[:, inside]).max(axis=0) > 0)


def test_fits_agree_with_a_general_optimiser(trained):
    truth, flux, ivar, _ = made(6, 7)
    found = trained.apply(inputs_of(flux, ivar))
    model = trained.model
    root = np.sqrt(ivar / (1 + ivar * model.scatter**2))
    for star in range(6):

        def miss(scaled, star=star):
            return (flux[star] - model.flux(model.physical(scaled[None]))[0]) * root[star]

        best = least_squares(miss, model.scaled(truth[star : star + 1])[0])
        np.testing.assert_allclose(
            model.scaled(found.labels[star : star + 1])[0], best.x, atol=2e-4
        )
        assert found.chi2[star] == pytest.approx(2 * best.cost, rel=1e-3)


def test_covariance_is_that_of_a_brute_force_hessian(trained):
    _, labels = draw_labels(1, np.random.default_rng(8))
    labels = 0.5 * labels + 0.5 * trained.model.pivot
    flux, ivar = trained.model.flux(labels), np.full((1, 80), 3600.0)
    found = trained.apply(inputs_of(flux, ivar))
    weight = ivar / (1 + ivar * trained.model.scatter**2)
    step = np.array([5.0, 5e-3, 5e-3])

    def chi2(change):
        model = trained.model.flux(found.labels + change * step)
        return float(np.sum((flux - model) ** 2 * weight))

    unit = np.eye(3)
    hessian = np.array(
        [[(chi2(a + b) - chi2(a - b) - chi2(b - a) + chi2(-a - b)) / 4 for b in unit] for a in unit]
    )
    expected = np.linalg.inv(0.5 * hessian) * np.outer(step, step)
    np.testing.assert_allclose(found.covariance[0], expected, rtol=0.02)


def test_quoted_errors_hold_on_spectra_of_the_model(trained):
    truth, flux, ivar, _ = made(1500, 9)
    found = trained.apply(inputs_of(flux, ivar))
    z = (found.labels - truth) / found.sigma
    for k in range(3):
        assert 0.93 < robust_sigma(z[:, k]) < 1.07
    assert np.median(found.chi2_reduced) == pytest.approx(1.0, abs=0.05)
    assert np.all(found.flags == 0)


def test_errors_account_for_correlated_noise():
    rng = np.random.default_rng(10)
    truth, _, ivar, clean = made(800, 11, scatter=0.0)
    kernel = np.array([0.247, 1.0, 0.247]) / np.sqrt(1 + 2 * 0.247**2)

    def observed(n_star, spectra):
        white = rng.standard_normal((n_star, 82))
        noise = np.stack([np.convolve(row, kernel, "valid") for row in white])
        return spectra + noise / 60.0

    same = np.full_like(ivar, 3600.0)
    correlation = (2 * 0.247 / (1 + 2 * 0.247**2), 0.247**2 / (1 + 2 * 0.247**2))
    sample = sample_of(truth, observed(800, clean), same, noise_correlation=correlation)
    method = Cannon.train(sample, sample, settings=CannonSettings(), seed=0)
    test_truth, _, _, test_clean = made(1500, 12)
    ivar = np.full(test_clean.shape, 3600.0)
    seen = inputs_of(observed(1500, test_clean), ivar, noise_correlation=correlation)
    found = method.apply(seen)
    z = (found.labels - test_truth) / found.sigma
    assert all(0.92 < robust_sigma(column) < 1.08 for column in z.T)


def test_the_common_fitter_finds_the_same_labels(trained):
    truth, flux, ivar, _ = made(20, 13)
    assert isinstance(trained.forward, ForwardModel)
    inner = 0.3 * truth + 0.7 * trained.model.pivot
    flux = trained.model.flux(inner) + (flux - trained.model.flux(truth)) * 0.3
    quick = trained.apply(inputs_of(flux, ivar))
    slow = Fitter(trained.forward, tolerance=1e-6).fit(
        flux.astype(np.float32), ivar.astype(np.float32), trained.model.pivot[None].repeat(20, 0)
    )
    np.testing.assert_allclose(
        trained.model.scaled(quick.labels), trained.model.scaled(slow.labels), atol=2e-3
    )
    np.testing.assert_allclose(quick.sigma, slow.sigma, rtol=0.02)


def test_rows_without_pixels_are_nan_and_rows_are_independent(trained):
    _, flux, ivar, _ = made(5, 14)
    ivar[2] = 0.0
    whole = trained.apply(inputs_of(flux, ivar))
    assert np.isnan(whole.labels[2]).all()
    assert np.isnan(whole.covariance[2]).all()
    assert whole.flags[2] == 0
    alone = trained.apply(inputs_of(flux[3:4], ivar[3:4]))
    np.testing.assert_allclose(alone.labels[0], whole.labels[3], rtol=1e-5)
    assert len(trained.apply(inputs_of(flux[:0], ivar[:0]))) == 0


@pytest.mark.slow
def test_several_starts_find_the_lowest_minimum_that_one_misses():
    """A model whose quadratic terms rule: two labels give much the same spectrum."""
    rule = np.random.default_rng(21)
    theta = rule.normal(0, 0.01, (60, n_term(4)))
    theta[:, 5:] *= 8.0
    theta[:, 0] = 0.8
    edge = np.full(4, 0.5)
    model = QuadraticModel(np.zeros(4), np.ones(4), theta, np.zeros(60), -edge, edge)
    truth = rule.uniform(-0.5, 0.5, (300, 4))
    flux = model.flux(truth) + rule.normal(0, 0.01, (300, 60))
    ivar = np.full(flux.shape, 1e4)
    fit = QuadraticFit(model, rule.uniform(-0.5, 0.5, (64, 4)))
    one, default, many = (
        fit.fit(flux, ivar, runs=runs).chi2 for runs in (1, CannonSettings().runs, 32)
    )
    assert np.mean(one > many + 1.0) > 0.02
    assert np.mean(default > many + 1.0) < 0.25 * np.mean(one > many + 1.0)


def test_labels_at_the_edge_of_the_fit_are_flagged(trained):
    far = trained.model.highest + 3.0 * (trained.model.highest - trained.model.lowest)
    flux = trained.model.flux(far[None])
    found = trained.apply(inputs_of(flux, np.full(flux.shape, 1e4)))
    assert found.flags[0] & Flag.AT_BOUND.value


def test_rounding_of_the_flux_moves_no_label_far_from_the_training_stars():
    """Sums in single precision lost several units of chi-square there."""
    truth, flux, ivar, _ = made(500, 31, n_pixel=900)
    sample = sample_of(truth, flux, ivar)
    cannon = Cannon.train(sample, sample, settings=CannonSettings(), seed=0)
    reach = cannon.model.highest - cannon.model.lowest
    far = cannon.model.highest + 0.45 * reach * np.array([[1, 1, 1], [1, 0.5, 1], [0.8, 1, 1]])
    clean = cannon.model.flux(far)
    rng = np.random.default_rng(32)
    ivar = np.full(clean.shape, 60.0**2, np.float32)
    flux = (clean + rng.normal(0, 1 / 60, clean.shape)).astype(np.float32)
    nudged = (flux * (1 + 1e-6 * rng.standard_normal(flux.shape))).astype(np.float32)
    fit = QuadraticFit(cannon.model, cannon.starts)
    first, second = fit.fit(flux, ivar, runs=1), fit.fit(nudged, ivar, runs=1)
    np.testing.assert_allclose(second.chi2, first.chi2, rtol=1e-4)
    error = np.sqrt(np.diagonal(np.linalg.inv(first.fisher), axis1=1, axis2=2))
    assert np.abs((second.labels - first.labels) / error).max() < 1e-3


def test_it_survives_saving(trained):
    arrays, about = trained.to_arrays()
    about = json.loads(json.dumps(about))
    again = Cannon.from_arrays(
        arrays, about, settings=trained.settings, label_names=trained.label_names
    )
    _, flux, ivar, _ = made(4, 15)
    seen = inputs_of(flux, ivar)
    np.testing.assert_array_equal(again.apply(seen).labels, trained.apply(seen).labels)
    with pytest.raises(ValueError, match="labels"):
        Cannon.from_arrays(arrays, about, settings=trained.settings, label_names=("teff",))


def test_mistakes_are_named():
    truth, flux, ivar, _ = made(8, 16)
    sample = sample_of(truth, flux, ivar)
    with pytest.raises(TrainingError, match="10 coefficients per pixel, got 8 stars"):
        Cannon.train(sample, sample, settings=CannonSettings(), seed=0)
    truth, flux, ivar, _ = made(50, 16)
    sample = sample_of(truth, flux, ivar)
    for censor, error in (
        ({"m_h": ((1.0, 2.0),)}, ConfigError),
        ({"mh": ((8424.0, 8426.0),)}, UnknownName),
    ):
        with pytest.raises(error):
            Cannon.train(sample, sample, settings=CannonSettings(censor=censor), seed=0)


@pytest.mark.peer
@pytest.mark.skipif(not PEER.exists(), reason="MAURY_THECANNON names no interpreter with thecannon")
def test_coefficients_and_labels_agree_with_those_of_thecannon(tmp_path):
    truth, flux, ivar, _ = made(400, 17, n_pixel=60)
    _, test_flux, test_ivar, _ = made(40, 18, n_pixel=60)
    np.savez(
        tmp_path / "data.npz",
        truth=truth,
        flux=flux,
        ivar=ivar,
        test_flux=test_flux,
        test_ivar=test_ivar,
    )
    script = Path(__file__).parents[1] / "builders" / "thecannon_oracle.py"
    subprocess.run([PEER, script, tmp_path], check=True, capture_output=True)
    with np.load(tmp_path / "peer.npz") as peer:
        theirs = {name: peer[name] for name in peer.files}
    model = QuadraticModel.fit(flux, ivar, truth)
    # They scale by a quarter of the range that we scale by.
    power = terms(np.full((1, 3), 4.0))[0]
    np.testing.assert_allclose(model.theta / power, theirs["coeffs"], atol=2e-4)
    # They look for the scatter of the residuals on a grid of 0.5 in its logarithm; ours is the
    # maximum itself, and a model's is that of a prediction, which is larger.
    residual = flux - terms((truth - model.pivot) / model.scale) @ model.theta.T
    own = scatter_of(residual, ivar)
    np.testing.assert_allclose(own, theirs["scatters"], rtol=0.3)
    assert (model.scatter >= own).all()
    same = replace(model, theta=theirs["coeffs"] * power, scatter=theirs["scatters"])
    ours = QuadraticFit(same, same.pivot[None]).fit(test_flux, test_ivar, runs=1)
    error = np.sqrt(np.einsum("nii->ni", np.linalg.inv(ours.fisher)))
    assert np.max(np.abs(ours.labels - theirs["labels"]) / error) < 0.01
    # Their errors are of scaled labels.
    np.testing.assert_allclose(error, theirs["errors"] * same.scale / 4.0, rtol=0.01)
