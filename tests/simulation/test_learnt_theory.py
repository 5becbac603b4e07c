"""A theory learnt from labelled stars: lines and not noise, modes and not noise, what is hidden."""

from types import SimpleNamespace

import numpy as np
import pytest

from maury.simulation.learnt_bound import learnt_covariance, learnt_weights
from maury.simulation.learnt_theory import LearntTheory, drawn_modes, moved
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

N_STAR, N_PIXEL, SNR = 600, 500, 40.0
NAMES = ("teff", "logg", "m_h", "al_fe")


def lines(places, width=1.8):
    x = np.arange(N_PIXEL)
    return np.exp(-0.5 * ((x - np.asarray(places)[:, None]) / width) ** 2).sum(axis=0)


COMMON = lines(np.arange(30, N_PIXEL, 47))
METAL = lines(np.arange(20, N_PIXEL, 31))
ALUMINIUM = lines([143.0, 305.0])
TILT = np.linspace(-1, 1, N_PIXEL)


def truth(labels):
    t, g, m, a = ((labels - (5000, 3.0, -0.2, 0.1)) / (500, 0.8, 0.3, 0.12)).T
    depth = np.outer(0.25 - 0.05 * t + 0.01 * t * t, COMMON)
    depth += np.outer(0.12 + 0.05 * m - 0.02 * t * m + 0.01 * g, METAL)
    return 1 - depth - np.outer(0.006 * a, ALUMINIUM)


@pytest.fixture(scope="module")
def stars():
    rng = np.random.default_rng(3)
    labels = rng.normal((5000, 3.0, -0.2, 0.1), (500, 0.8, 0.3, 0.12), (N_STAR, 4))
    tilt = rng.normal(0, 0.01, N_STAR)
    clean = truth(labels) + np.outer(tilt, TILT)
    flux = clean + rng.normal(0, 1 / SNR, clean.shape)
    ivar = np.full(clean.shape, SNR**2)
    return labels, flux.astype(np.float32), ivar.astype(np.float32), clean


def learnt(stars, names=NAMES, columns=slice(None), rows=slice(None)):
    labels, flux, ivar, _ = stars
    return LearntTheory.fit(
        flux[rows], ivar[rows], labels=labels[rows][:, columns], names=names, noise_correlation=()
    )


def test_weak_lines_are_told_from_noise(stars):
    labels, flux, *_ = stars
    theory, hidden = learnt(stars)
    assert hidden.shape == (N_STAR, 0)
    typical = np.median(labels, axis=0)
    step = np.array([0, 0, 0, 0.12])
    more, less = typical + step, typical - step
    slope = np.diff(theory.flux(np.array([less, more])), axis=0)[0]
    true = np.diff(truth(np.array([less, more])), axis=0)[0]
    design = np.column_stack([np.ones(N_STAR), (labels - typical) / (500, 0.8, 0.3, 0.12)])
    plain = 2 * np.linalg.lstsq(design, flux, rcond=None)[0][4]
    far = ALUMINIUM < 1e-3
    assert np.std((slope - true)[far]) < 0.35 * np.std((plain - true)[far]), "noise is left out"
    at = np.abs(true) > 0.5 * np.abs(true).max()
    assert slope[at].mean() == pytest.approx(true[at].mean(), rel=0.15), "lines are not"


def test_flux_of_new_stars_is_right_to_a_part_of_their_noise(stars):
    theory, _ = learnt(stars)
    rng = np.random.default_rng(4)
    labels = rng.normal((5000, 3.0, -0.2, 0.1), (400, 0.6, 0.25, 0.1), (200, 4))
    error = theory.flux(labels) - truth(labels)
    assert np.sqrt(np.mean(error**2)) < 0.15 / SNR
    np.testing.assert_allclose(theory.typical(labels), theory.flux(labels), rtol=1e-6)


@pytest.mark.slow
def test_noise_that_is_correlated_is_left_out_as_well(stars):
    labels, _, ivar, clean = stars
    rng = np.random.default_rng(6)
    white = rng.normal(0, 1, (N_STAR, N_PIXEL + 1))
    # Of a mean of two neighbours the correlation is .5 at one pixel, and 0 beyond.
    noise = (white[:, 1:] + white[:, :-1]) / np.sqrt(2) / SNR
    seen = (clean + noise).astype(np.float32)
    new = rng.normal((5000, 3.0, -0.2, 0.1), (400, 0.6, 0.25, 0.1), (200, 4))
    error = {}
    for correlation in ((), (0.5,)):
        theory, _ = LearntTheory.fit(
            seen, ivar, labels=labels, names=NAMES, noise_correlation=correlation
        )
        error[correlation] = np.sqrt(np.mean((theory.flux(new) - truth(new)) ** 2))
    assert error[(0.5,)] < 0.9 * error[()], error


@pytest.mark.slow
def test_scatter_that_labels_do_not_tell_becomes_modes_without_the_noise(stars):
    theory, _ = learnt(stars)
    drawn = drawn_modes(theory.modes, 4000, np.random.default_rng(1))
    tilt = drawn @ TILT / np.sum(TILT**2)
    assert np.std(tilt) == pytest.approx(0.01, rel=0.2)
    rest = drawn - np.outer(tilt, TILT)
    assert np.sqrt(np.mean(rest**2)) < 0.1 / SNR
    labels, flux, ivar, clean = stars
    still = LearntTheory.fit(
        (truth(labels) + (flux - clean)).astype(np.float32),
        ivar,
        labels=labels,
        names=NAMES,
        noise_correlation=(),
    )[0]
    assert np.sqrt(np.mean(still.modes**2, axis=1)).sum() < 0.1 / SNR, "noise alone has none"


def test_what_one_label_leaves_open_is_found_in_the_spectra(stars):
    labels, flux, ivar, clean = stars
    theory, hidden = learnt(stars, names=("al_fe",), columns=[3])
    assert 1 <= hidden.shape[1] <= 4
    open_ = np.linalg.lstsq(
        np.column_stack([np.ones(N_STAR), hidden, hidden**2]), labels[:, 0], rcond=None
    )[0]
    told = np.column_stack([np.ones(N_STAR), hidden, hidden**2]) @ open_
    assert np.corrcoef(told, labels[:, 0])[0, 1] > 0.95, "Teff is what it hides"
    seen = theory.seen(labels[:, [3]], flux, ivar)
    assert np.sqrt(np.mean((seen - clean) ** 2)) < 0.6 / SNR
    np.testing.assert_allclose(theory.hidden(labels[:, [3]], flux, ivar), hidden, atol=1e-3)


def test_spectra_come_near_to_observed_ones_but_not_to_their_noise(stars):
    labels, flux, ivar, clean = stars
    theory, _ = learnt(stars, rows=slice(0, 500))
    new = slice(500, None)
    seen = theory.seen(labels[new], flux[new], ivar[new])
    chi2 = np.mean((flux[new] - seen) ** 2 * ivar[new], axis=1)
    assert np.median(chi2) == pytest.approx(1.0, abs=0.06)
    assert np.sqrt(np.mean((seen - clean[new]) ** 2)) < 0.35 / SNR


@pytest.mark.slow
def test_bad_pixels_spikes_and_stars_without_a_spectrum_take_no_part(stars):
    labels, flux, ivar, _ = stars
    rng = np.random.default_rng(8)
    wrong, none = flux.copy(), ivar.copy()
    bad = rng.random(flux.shape) < 0.03
    wrong[bad], none[bad] = 1e6, 0.0
    none[:10] = 0.0
    wrong[20:40, 100] += 3.0
    theory, _ = LearntTheory.fit(wrong, none, labels=labels, names=NAMES, noise_correlation=())
    whole, _ = learnt(stars)
    difference = theory.flux(labels) - whole.flux(labels)
    assert np.sqrt(np.mean(np.delete(difference, 100, axis=1) ** 2)) < 0.2 / SNR
    assert np.isfinite(theory.seen(labels, wrong, none)).all()
    unknown = labels.copy()
    unknown[0, 1] = np.nan
    assert np.isnan(theory.seen(unknown, flux, ivar)[0]).all()
    assert np.isfinite(theory.seen(unknown, flux, ivar)[1:]).all()


def test_few_stars_hold_few_terms(stars):
    few, _ = learnt(stars, rows=slice(0, 60))
    many, _ = learnt(stars)
    assert len(few.powers) * 8 <= 60 < len(many.powers) * 8
    labels = stars[0][60:]
    error = few.flux(labels) - truth(labels)
    assert np.sqrt(np.mean(error**2)) < 2.0 / SNR


def test_nothing_is_extrapolated(stars):
    theory, _ = learnt(stars)
    labels = stars[0]
    beyond = np.array([[1e6, -50.0, 9.0, 3.0]])
    np.testing.assert_array_equal(theory.flux(beyond), theory.flux(theory.clip(beyond)))
    assert (theory.clip(beyond) <= labels.max(axis=0)).all()


def test_lone_stars_far_from_all_others_do_not_bend_the_polynomial_of_these(stars):
    labels, _, ivar, _ = stars
    rng = np.random.default_rng(9)
    far = labels.copy()
    far[:6, 2] = rng.uniform(-3.2, -2.6, 6)

    def flux(labels):
        # Lines of metals fade out, where a straight line would have them in emission.
        depth = np.outer(0.12 * np.exp(1.6 * np.minimum(labels[:, 2], 1.0)), METAL)
        return 1 - depth - np.outer(0.1 - 0.03 * (labels[:, 0] - 5000) / 500, COMMON)

    seen = (flux(far) + rng.normal(0, 1 / SNR, (N_STAR, N_PIXEL))).astype(np.float32)
    theory, _ = LearntTheory.fit(seen, ivar, labels=far, names=NAMES, noise_correlation=())
    # Labels of high degrees bend, and none else.
    np.testing.assert_array_equal(np.isfinite(theory.bend), [True, True, True, False])
    new = rng.normal((5000, 3.0, -0.2, 0.1), (400, 0.6, 0.25, 0.1), (200, 4))
    assert np.sqrt(np.mean((theory.flux(new) - flux(new)) ** 2)) < 0.15 / SNR
    poor = new[:20].copy()
    poor[:, 2] = -2.9
    assert np.sqrt(np.mean((theory.flux(poor) - flux(poor)) ** 2)) < 0.5 / SNR


def test_a_theory_of_before_bends_no_label(stars):
    theory, _ = learnt(stars)
    arrays = theory.to_arrays()
    before = {name: array for name, array in arrays.items() if name != "bend"}
    old = LearntTheory.checked(before, n_label=4)
    assert np.isinf(old.bend).all()
    some = stars[0][:50]
    z = np.clip((some - theory.centre) / theory.scale, -6.0, 6.0)
    terms = np.prod(z[:, None, :] ** theory.powers[None], axis=2)
    expected = terms @ theory.coefficients
    np.testing.assert_allclose(old.flux(old.clip(some)), expected, atol=2e-4)
    assert np.abs(old.flux(some) - theory.flux(some)).max() > 1e-2


def test_arrays_of_a_file_must_fit_each_other(stars):
    theory, _ = learnt(stars)
    arrays = theory.to_arrays()
    again = LearntTheory.checked(arrays, n_label=4)
    np.testing.assert_array_equal(again.flux(stars[0][:5]), theory.flux(stars[0][:5]))
    with pytest.raises(ValueError, match="base"):
        LearntTheory.checked(arrays | {"base": theory.base[:, 1:]}, n_label=4)
    with pytest.raises(ValueError, match="bend"):
        LearntTheory.checked(arrays | {"bend": theory.bend[1:]}, n_label=4)
    with pytest.raises(ValueError, match="do not fit"):
        LearntTheory.checked(arrays, n_label=3)
    with pytest.raises(ValueError, match="powers"):
        LearntTheory.checked(arrays | {"powers": theory.powers * 1e9}, n_label=4)


def test_rotation_and_velocity_of_arms_with_a_gap():
    blue, red = 4800 + 0.05 * np.arange(400), 7700 + 0.08 * np.arange(400)
    wave = np.concatenate([blue, red])
    centres = (blue[200], red[200])
    flux = np.ones((2, 800), np.float32)
    for centre in centres:
        flux -= 0.5 * np.exp(-0.5 * ((wave - centre) / 0.12) ** 2).astype(np.float32)
    out = moved(flux, wave, np.array([np.nan, 60.0]), np.array([20.0, np.nan]))
    for first, centre in zip((0, 400), centres, strict=True):
        part, own = out[:, first : first + 400], wave[first : first + 400]
        shift = np.sum(own * (1 - part[0])) / np.sum(1 - part[0]) / centre - 1
        assert shift * SPEED_OF_LIGHT_KMS == pytest.approx(20.0, abs=0.5)
        depth = 1 - part[1]
        assert depth.sum() == pytest.approx((1 - flux[1, first : first + 400]).sum(), rel=0.01)
        wide = own[depth > 0.5 * depth.max()]
        half = 0.5 * (wide[-1] - wide[0]) / centre * SPEED_OF_LIGHT_KMS
        # Gray's profile is at half its depth at .78 v sin i; a pixel is 3 km/s.
        assert half == pytest.approx(47.0, abs=5.0)


def test_bound_agrees_with_that_of_the_true_lines(stars):
    theory, _ = learnt(stars)
    labels = np.median(stars[0], axis=0)[None]
    prior = np.diag([500.0, 0.8, 0.3, 0.12]) ** 2
    covariance = learnt_covariance(
        theory, labels, np.array([SNR]), prior=prior, noise_correlation=()
    )[0]
    steps = 0.01 * np.diag([500, 0.8, 0.3, 0.12])
    slopes = np.array([(truth(labels + s) - truth(labels - s))[0] / (2 * s.sum()) for s in steps])
    noise = np.sqrt(truth(labels)[0]) / SNR
    rows = np.vstack([slopes, 0.01 * TILT]) / noise
    information = rows @ rows.T
    information[:4, :4] += np.linalg.inv(prior)
    information[4, 4] += 1
    best = np.linalg.inv(information)[:4, :4]
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), np.sqrt(np.diag(best)), rtol=0.2)
    worse = learnt_covariance(
        theory, labels, np.array([SNR / 4]), prior=prior, noise_correlation=()
    )[0]
    assert (np.diag(worse) > np.diag(covariance)).all()
    unknown = np.full((1, 4), np.nan)
    assert np.isnan(
        learnt_covariance(theory, unknown, np.ones(1), prior=prior, noise_correlation=())
    ).all()


@pytest.mark.slow
@pytest.mark.parametrize("photometry", [True, False])
def test_best_weights_gain_what_the_bound_leaves_to_the_spectrum(stars, photometry):
    """(F + P)^-1 F = 1 - (F + P)^-1 P, in which the bound is (F + P)^-1."""
    theory, hidden = learnt(stars)
    labels = stars[0]
    observables = labels[:, :1] / 1000 + 0.1 * np.sin(np.arange(N_STAR))[:, None]
    simulator = SimpleNamespace(
        learnt=theory, hidden=hidden, columns=labels, observables=observables
    )
    some, snr = labels[:3], np.array([SNR, SNR / 2, SNR / 4])
    weights, slopes = learnt_weights(
        simulator, some, snr, photometry=photometry, noise_correlation=(0.3,)
    )
    assert weights.shape == slopes.shape == (3, 4, theory.coefficients.shape[1])
    scatter = np.cov(labels.T)
    if photometry:
        flat = np.column_stack([np.ones(N_STAR), observables, observables**2])
        rest = labels - flat @ np.linalg.lstsq(flat, labels, rcond=None)[0]
        scatter = rest.T @ rest / (N_STAR - 3)
    bound = learnt_covariance(theory, some, snr, prior=scatter, noise_correlation=(0.3,))
    gain = np.einsum("nkp,nlp->nkl", weights, slopes)
    expected = np.eye(4) - bound @ np.linalg.inv(scatter)
    units = labels.std(axis=0)
    np.testing.assert_allclose(
        gain * units / units[:, None], expected * units / units[:, None], atol=0.02
    )
