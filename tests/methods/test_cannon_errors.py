"""The Cannon at its limits: errors of labels, misfit in common, velocity and line width."""

from dataclasses import replace

import numpy as np
import pytest

from builders.method_samples import draw_labels, inputs_of, sample_of
from maury.errors import ConfigError
from maury.labels.statistics import robust_sigma
from maury.methods.cannon import Cannon, CannonSettings
from maury.methods.cannon_model import QuadraticModel
from maury.methods.fitting.chain import Chain
from maury.methods.fitting.pixel_width import PixelWidth
from maury.methods.fitting.polynomials import n_term, terms
from maury.methods.protocols import Evaluation
from maury.spectra.operators import FWHM_PER_SIGMA, SPEED_OF_LIGHT_KMS

WAVE = 8420.0 + 0.4 * np.arange(120)
POWER = 7500.0
CENTRES = np.linspace(8426.0, 8462.0, 9)


def lined(scaled, *, rv_kms=0.0, width=1.0, wide=0.0):
    """Nine lines whose depths are quadratic in three labels; `wide` is a second kind of star."""
    rule = np.random.default_rng(5)
    weight = rule.normal(0, 0.05, (9, n_term(3)))
    weight[:, 4:] *= 0.3
    depth = 0.35 + terms(scaled)[:, 1:] @ weight[:, 1:].T
    sigma = WAVE.mean() / POWER / FWHM_PER_SIGMA * np.broadcast_to(width, len(scaled))
    moved = 1 + np.broadcast_to(rv_kms, len(scaled)) / SPEED_OF_LIGHT_KMS
    at = CENTRES[None] * moved[:, None]
    profile = np.exp(-0.5 * ((WAVE - at[:, :, None]) / sigma[:, None, None]) ** 2)
    profile *= (1.0 / np.broadcast_to(width, len(scaled)))[:, None, None]
    strength = 1.0 + wide * np.sign(scaled[:, 1])
    return 1.0 - np.einsum("nk,nkp->np", depth * strength[:, None], profile)


def observed(n, seed, *, snr=100.0, **changes):
    rng = np.random.default_rng(seed)
    scaled, truth = draw_labels(n, rng)
    for name, value in changes.items():
        changes[name] = value(rng, n) if callable(value) else value
    clean = lined(scaled, **changes)
    ivar = np.full(clean.shape, snr**2)
    return truth, clean + rng.standard_normal(clean.shape) / snr, ivar, scaled


def trained(truth, flux, ivar, **settings):
    sample = sample_of(truth, flux, ivar)
    return Cannon.train(sample, sample, settings=CannonSettings(**settings), seed=0)


def test_errors_of_labels_do_not_weaken_the_lines_that_are_learnt():
    """A quarter of the scatter: powers of labels alone would lose 6 % of slopes, more of curves."""
    rng = np.random.default_rng(1)
    scaled, truth = draw_labels(20_000, rng)
    rule = np.random.default_rng(2)
    theta = rule.normal(0, 0.05, (6, n_term(3)))
    flux = terms(scaled) @ theta.T + 0.01 * rng.standard_normal((20_000, 6))
    ivar = np.full(flux.shape, 1e4)
    size = 0.15 * np.array([800.0, 1.0, 0.5]) / np.sqrt(1 / 3) * np.sqrt(1 / 3)
    seen = truth + size * rng.standard_normal(truth.shape)
    plain = QuadraticModel.fit(flux, ivar, seen)
    known = QuadraticModel.fit(flux, ivar, seen, label_errors=np.tile(size, (20_000, 1)))
    _, probe = draw_labels(500, np.random.default_rng(3))
    exact = terms((probe - [5000.0, 3.0, -0.3]) / [800.0, 1.0, 0.5]) @ theta.T
    off = [np.sqrt(np.mean((model.flux(probe) - exact) ** 2)) for model in (plain, known)]
    assert off[1] < 0.4 * off[0]
    # What the errors of labels add to the residuals is no scatter of the pixel.
    assert plain.scatter.mean() > 0.008
    assert known.scatter.mean() < 0.4 * plain.scatter.mean()


def test_without_errors_of_labels_nothing_changes():
    truth, flux, ivar, _ = observed(300, 4)
    plain = QuadraticModel.fit(flux, ivar, truth)
    for none in (np.zeros(truth.shape), np.full(truth.shape, np.nan)):
        same = QuadraticModel.fit(flux, ivar, truth, label_errors=none)
        np.testing.assert_array_equal(plain.theta, same.theta)
        np.testing.assert_array_equal(plain.scatter, same.scatter)


def test_a_survey_with_errors_of_labels_has_them_taken_out_unless_told_not_to():
    truth, flux, ivar, _ = observed(600, 5)
    error = np.tile([120.0, 0.15, 0.08], (600, 1))
    seen = truth + error * np.random.default_rng(6).standard_normal(truth.shape)
    sample = replace(sample_of(seen, flux, ivar), truth_error=error)
    with_errors, without = (
        Cannon.train(sample, sample, settings=CannonSettings(label_errors=on), seed=0)
        for on in (True, False)
    )
    np.testing.assert_array_equal(
        without.model.theta, QuadraticModel.fit(sample.inputs.flux, sample.inputs.ivar, seen).theta
    )
    _, test_flux, test_ivar, _ = observed(600, 7, snr=200.0)
    _, probe = draw_labels(600, np.random.default_rng(7))
    slopes = []
    for method in (with_errors, without):
        found = method.apply(inputs_of(test_flux, test_ivar)).labels
        slopes.append([np.polyfit(probe[:, k], found[:, k], 1)[0] for k in range(3)])
    # Weak lines make labels look large: without, slopes are above one.
    assert np.abs(np.array(slopes[0]) - 1).max() < np.abs(np.array(slopes[1]) - 1).max()


def test_errors_as_large_as_the_scatter_are_told_and_taken_for_none(caplog):
    truth, flux, ivar, _ = observed(400, 8)
    errors = np.tile([900.0, 0.0, 0.0], (400, 1))
    found = QuadraticModel.fit(flux, ivar, truth, label_errors=errors)
    assert "as large as the labels scatter" in caplog.text
    without = QuadraticModel.fit(flux, ivar, truth)
    assert np.array_equal(found.theta, without.theta)


def test_errors_know_of_a_misfit_that_is_alike_in_many_pixels():
    """Lines of two kinds of stars, which one quadratic cannot span."""
    truth, flux, ivar, _ = observed(1500, 9, wide=0.12)
    test_truth, test_flux, test_ivar, _ = observed(1500, 10, wide=0.12)
    spread = []
    for count in (0, 20):
        method = trained(truth, flux, ivar, misfit=count)
        found = method.apply(inputs_of(test_flux, test_ivar))
        z = (found.labels - test_truth) / found.sigma
        spread.append([robust_sigma(column) for column in z.T])
    assert max(spread[0]) > 1.8
    assert max(spread[1]) < 1.35
    assert min(spread[1]) > 0.7


def test_a_model_that_fits_has_no_misfit():
    truth, flux, ivar, _ = observed(1500, 11)
    assert trained(truth, flux, ivar).misfit is None


def test_more_pixels_than_stars_have_the_same_patterns():
    from maury.methods.fitting.residuals import residual_modes

    rng = np.random.default_rng(12)
    pattern = np.sin(np.arange(300) / 20)
    ivar = np.full((200, 300), 1e4, np.float32)
    flux = 0.05 * rng.standard_normal((200, 1)) * pattern + 0.01 * rng.standard_normal((200, 300))
    found = residual_modes(flux.astype(np.float32), ivar, np.zeros((200, 300), np.float32), count=5)
    # The largest of pure noise scatters about the limit of many pixels.
    assert 1 <= len(found) <= 2
    assert abs(np.corrcoef(found[0], pattern)[0, 1]) > 0.99
    assert np.sqrt(np.mean(found[0] ** 2)) == pytest.approx(
        0.05 * np.sqrt(np.mean(pattern**2)), rel=0.15
    )


def test_a_velocity_that_is_left_is_fitted():
    truth, flux, ivar, _ = observed(1500, 13)
    rng = np.random.default_rng(14)
    rv = 4.0 * rng.standard_normal(400)
    test_truth, test_flux, test_ivar, _ = observed(400, 15, rv_kms=rv)
    rest, fitted = (
        trained(truth, flux, ivar, rv_sigma_kms=sigma).apply(inputs_of(test_flux, test_ivar))
        for sigma in (0.0, 4.0)
    )
    for k in range(3):
        off = [robust_sigma(found.labels[:, k] - test_truth[:, k]) for found in (rest, fitted)]
        assert off[1] < 0.8 * off[0]
        z = (fitted.labels - test_truth)[:, k] / fitted.sigma[:, k]
        assert robust_sigma(z) == pytest.approx(1.0, abs=0.2)


def test_another_line_width_is_fitted():
    truth, flux, ivar, _ = observed(1500, 16)
    test_truth, test_flux, test_ivar, _ = observed(400, 17, width=1.1)
    same, fitted = (
        trained(truth, flux, ivar, width_scatter=scatter).apply(inputs_of(test_flux, test_ivar))
        for scatter in (0.0, 0.1)
    )
    for k in range(3):
        error = np.median(fitted.sigma[:, k])
        off = [np.median(found.labels[:, k] - test_truth[:, k]) for found in (same, fitted)]
        assert abs(off[1]) < 0.4 * error
    assert (
        max(
            abs(np.median(same.labels[:, k] - test_truth[:, k])) / np.median(same.sigma[:, k])
            for k in range(3)
        )
        > 1.0
    )


def test_a_line_width_needs_a_resolving_power():
    truth, flux, ivar, _ = observed(100, 18)
    sample = sample_of(truth, flux, ivar, resolving_power=None)
    with pytest.raises(ConfigError, match="resolving_power"):
        Cannon.train(sample, sample, settings=CannonSettings(width_scatter=0.1), seed=0)


def test_a_gaussian_that_is_widened_is_a_wider_gaussian():
    sigma = WAVE.mean() / POWER / FWHM_PER_SIGMA
    centre = WAVE[60]

    class Line:
        label_names = ("depth",)
        bounds = np.array([[0.0, 1.0]])
        wave_aa = WAVE

        def evaluate(self, labels, *, jacobian=True):
            profile = np.exp(-0.5 * ((WAVE - centre) / sigma) ** 2).astype(np.float32)
            flux = (1 - labels * profile).astype(np.float32)
            slope = np.repeat(-profile[None, None], len(labels), axis=0)
            return Evaluation(flux, slope if jacobian else None)

        def variance(self, labels):
            return np.zeros(WAVE.size, np.float32)

    chain = Chain(Line(), (PixelWidth(WAVE, POWER, 0.4),), WAVE, np.zeros(WAVE.size, np.float32))
    assert chain.label_names == ("depth", "ln_width")
    for ln_width in (-0.05, 0.05, 0.1):
        wider = sigma * np.exp(ln_width)
        expected = 1 - 0.5 * sigma / wider * np.exp(-0.5 * ((WAVE - centre) / wider) ** 2)
        found = chain.evaluate(np.array([[0.5, ln_width]])).flux[0]
        # Lines of 1.2 pixels: derivatives by differences are too small by a fifth.
        np.testing.assert_allclose(found, expected, atol=6e-3)
        assert abs(found[60] - 0.5) > 0.6 * abs(expected[60] - 0.5)
    at, step = np.array([[0.5, 0.03]]), 1e-3
    analytic = chain.evaluate(at).jacobian[0]
    for k in range(2):
        change = np.zeros((1, 2))
        change[0, k] = step
        ends = [chain.evaluate(at + sign * change).flux[0].astype(float) for sign in (1, -1)]
        np.testing.assert_allclose(analytic[k], (ends[0] - ends[1]) / (2 * step), atol=2e-3)


def test_blank_and_masked_rows_survive_the_second_fit():
    truth, flux, ivar, _ = observed(1500, 19)
    method = trained(truth, flux, ivar, rv_sigma_kms=3.0)
    _, test_flux, test_ivar, _ = observed(6, 20)
    test_ivar[2] = 0.0
    test_ivar[4, ::5] = 0.0
    whole = method.apply(inputs_of(test_flux, test_ivar))
    assert np.isnan(whole.labels[2]).all()
    assert np.isfinite(np.delete(whole.labels, 2, axis=0)).all()
    alone = method.apply(inputs_of(test_flux[4:5], test_ivar[4:5]))
    np.testing.assert_allclose(alone.labels[0], whole.labels[4], rtol=1e-4)


def test_models_with_and_without_misfit_survive_saving():
    truth, flux, ivar, _ = observed(600, 21, wide=0.12)
    for count in (0, 20):
        method = trained(truth, flux, ivar, misfit=count)
        arrays, about = method.to_arrays()
        assert ("misfit" in arrays) is (count > 0)
        again = Cannon.from_arrays(
            arrays, about, settings=method.settings, label_names=method.label_names
        )
        inputs = inputs_of(flux[:5], ivar[:5])
        np.testing.assert_array_equal(again.apply(inputs).sigma, method.apply(inputs).sigma)


def test_the_scatter_is_that_of_a_prediction_where_stars_are_few():
    """Eighty stars and ten coefficients: residuals alone would say an eighth less."""
    rng = np.random.default_rng(30)
    theta = rng.normal(0, 0.05, (400, n_term(3)))
    ivar = np.full((80, 400), 1e8)
    scaled, truth = draw_labels(80, rng)
    flux = terms(scaled) @ theta.T + 0.02 * rng.standard_normal((80, 400))
    model = QuadraticModel.fit(flux, ivar, truth)
    other, probe = draw_labels(500, rng)
    seen = terms(other) @ theta.T + 0.02 * rng.standard_normal((500, 400))
    actual = np.sqrt(np.mean((seen - model.flux(probe)) ** 2))
    assert np.sqrt(np.mean(model.scatter**2)) == pytest.approx(actual, rel=0.06)


def test_stars_that_lack_a_label_are_learnt_from():
    truth, flux, ivar, _ = observed(400, 31)
    gaps = np.random.default_rng(32).random(truth.shape) < 0.3
    sample = sample_of(np.where(gaps, np.nan, truth), flux, ivar)
    test_truth, test_flux, test_ivar, _ = observed(400, 33)
    spread = []
    for fill in (True, False):
        settings = CannonSettings(fill_labels=fill)
        method = Cannon.train(sample, sample, settings=settings, seed=0)
        found = method.apply(inputs_of(test_flux, test_ivar))
        spread.append([robust_sigma(column) for column in (found.labels - test_truth).T])
        z = (found.labels - test_truth) / found.sigma
        assert max(robust_sigma(column) for column in z.T) < 1.6
    # A third of the stars has all labels.
    assert np.mean(np.log(spread[0])) < np.mean(np.log(spread[1])) + 0.05


def test_a_pixel_that_is_bad_in_all_spectra_is_no_pattern():
    truth, flux, ivar, _ = observed(600, 34, wide=0.12)
    ivar[:, 40] = 0.0
    flux[:, 40] = 0.0
    method = trained(truth, flux, ivar)
    assert method.misfit is not None
    assert (method.misfit[:, 40] == 0).all()
    assert np.isfinite(method.apply(inputs_of(flux[:5], ivar[:5])).sigma).all()
