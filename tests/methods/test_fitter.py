"""The common fit: minimum, covariance, bounds, priors, ties, windows, correlated noise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.optimize import least_squares

from maury.errors import UnknownName
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.fitting.contours import confidence_limits
from maury.methods.fitting.fitter import Fitter, Tie
from maury.methods.fitting.knowledge import Prior
from maury.methods.fitting.noise import Whitening
from maury.methods.protocols import Evaluation, FitResult, ForwardModel

T = np.linspace(0, 1, 300)
CORRELATION = (0.44, 0.05)


class Curves:
    """A smooth, mildly non-linear model of three labels."""

    label_names = ("a", "b", "c")
    bounds = np.array([[-0.8, 0.8], [-2.0, 2.0], [0.2, 3.0]])
    wave_aa = 8420.0 + 100 * T

    def evaluate(self, labels, *, jacobian=True):
        a, b, c = labels.T[:, :, None]
        flux = np.sin(3 * T * (1 + 0.4 * a)) + b * T**2 + np.exp(-c * T)
        slopes = None
        if jacobian:
            by_a = 1.2 * T * np.cos(3 * T * (1 + 0.4 * a))
            by_b = np.broadcast_to(T**2, flux.shape)
            slopes = np.stack([by_a, by_b, -T * np.exp(-c * T)], axis=1).astype(np.float32)
        return Evaluation(flux.astype(np.float32), slopes)

    def variance(self, labels):
        return np.zeros(T.size, dtype=np.float32)


MODEL = Curves()
MIDDLE = np.array([0.0, 0.0, 1.0])


def correlated(rng, shape):
    """Noise of unit variance with the correlation of (w, 1, w) convolved with itself."""
    white = rng.normal(size=(shape[0], shape[1] + 2))
    side = 0.247
    return (white[:, 1:-1] + side * (white[:, 2:] + white[:, :-2])) / np.sqrt(1 + 2 * side**2)


def spectra(n, seed, *, sigma=0.02, noise=None):
    rng = np.random.default_rng(seed)
    truth = np.column_stack(
        [rng.uniform(-0.5, 0.5, n), rng.uniform(-1.2, 1.2, n), rng.uniform(0.6, 2.0, n)]
    )
    flux = MODEL.evaluate(truth, jacobian=False).flux
    unit = rng.normal(size=flux.shape) if noise is None else noise(rng, flux.shape)
    flux = (flux + sigma * unit).astype(np.float32)
    return truth, flux, np.full(flux.shape, sigma**-2, dtype=np.float32)


def start(n):
    return np.tile(MIDDLE, (n, 1))


def test_the_model_is_a_forward_model():
    assert isinstance(MODEL, ForwardModel)


@pytest.mark.parametrize("reuse", [0, 3])
def test_fits_agree_with_a_general_optimiser(reuse):
    _, flux, ivar = spectra(12, 1)
    found = Fitter(MODEL, reuse=reuse, tolerance=1e-4).fit(flux, ivar, start(12))
    for row in range(12):
        best = least_squares(
            lambda x, row=row: (MODEL.evaluate(x[None]).flux[0] - flux[row]) / 0.02,
            MIDDLE,
            bounds=MODEL.bounds.T,
            xtol=1e-10,
        )
        assert found.labels[row] == pytest.approx(best.x, abs=0.03 * found.sigma[row].max())
        assert found.chi2[row] == pytest.approx(2 * best.cost, rel=1e-3)


def test_covariance_is_that_of_a_brute_force_hessian():
    # Without noise, the curvature of the model itself does not enter.
    truth, _, ivar = spectra(1, 2)
    flux = MODEL.evaluate(truth).flux
    found = Fitter(MODEL, noise_correlation=CORRELATION, tolerance=1e-4).fit(flux, ivar, start(1))
    inverse = np.linalg.inv(toeplitz([1, *CORRELATION, *np.zeros(T.size - 3)]))

    def chi2(x):
        apart = (flux[0].astype(float) - MODEL.evaluate(x[None], jacobian=False).flux[0]) / 0.02
        return apart @ inverse @ apart

    x, step = found.labels[0], 0.008 * np.eye(3)
    hessian = np.array(
        [
            [chi2(x + u + v) - chi2(x + u - v) - chi2(x - u + v) + chi2(x - u - v) for v in step]
            for u in step
        ]
    )
    expected = np.linalg.inv(0.5 * hessian / (4 * 0.008**2))
    assert found.covariance[0] == pytest.approx(expected, rel=0.05, abs=1e-7)


@pytest.mark.parametrize("noise", [None, correlated])
def test_quoted_errors_hold(noise):
    truth, flux, ivar = spectra(600, 3, noise=noise)
    fitter = Fitter(MODEL, noise_correlation=CORRELATION if noise else ())
    found = fitter.fit(flux, ivar, start(600))
    for z in ((found.labels - truth) / found.sigma).T:
        assert 0.9 < robust_sigma(z) < 1.1
    assert np.median(found.chi2_reduced) == pytest.approx(1.0, abs=0.03)


def test_correlated_noise_taken_as_white_is_noticed():
    truth, flux, ivar = spectra(600, 3, noise=correlated)
    found = Fitter(MODEL).fit(flux, ivar, start(600))
    assert robust_sigma((found.labels - truth)[:, 1] / found.sigma[:, 1]) > 1.2


@given(st.lists(st.floats(-0.25, 0.25), min_size=1, max_size=2), st.integers(0, 2**31))
@settings(max_examples=25, deadline=None)
def test_whitening_is_the_inverse_root_of_the_correlation_of_the_good_pixels(correlation, seed):
    whiten = Whitening(tuple(correlation))
    rng = np.random.default_rng(seed)
    good = np.stack([rng.random(80) > 0.3, np.ones(80, dtype=bool)])
    rows = (rng.normal(size=(2, 3, 80)) * good[:, None]).astype(np.float32)
    matrix = toeplitz([1, *correlation, *np.zeros(79 - len(correlation))])
    white = whiten.of(good)(rows)
    for star in range(2):
        part = np.ix_(good[star], good[star])
        expected = np.linalg.solve(np.linalg.cholesky(matrix[part]), rows[star][:, good[star]].T)
        assert white[star][:, good[star]] == pytest.approx(expected.T, abs=1e-4)
        assert (white[star][:, ~good[star]] == 0).all()
    assert whiten.undo(white[1]) == pytest.approx(rows[1], abs=1e-4)


def masks(rng, kind, shape):
    """Pixels that are masked: a share of them at random, or a gap of 17 in the middle."""
    if kind == "gap":
        return np.broadcast_to(np.abs(np.arange(shape[1]) - 150) <= 8, shape)
    return rng.random(shape) < kind


MASKS = (0.0, 0.02, 0.1, 0.3, "gap")


@pytest.mark.parametrize("reuse", [0, 3])
@pytest.mark.parametrize("kind", MASKS)
def test_masked_pixels_leave_the_fit_as_dense_least_squares_does(kind, reuse):
    _, flux, ivar = spectra(6, 15, noise=correlated)
    ivar = np.where(masks(np.random.default_rng(16), kind, ivar.shape), 0, ivar).astype("f4")
    flux = np.where(ivar > 0, flux, 7.0).astype(np.float32)
    fitter = Fitter(MODEL, noise_correlation=CORRELATION, reuse=reuse, tolerance=1e-5)
    found = fitter.fit(flux, ivar, start(6))
    whole = toeplitz([1, *CORRELATION, *np.zeros(T.size - 3)])
    for row in range(6):
        good = ivar[row] > 0
        root = np.linalg.inv(np.linalg.cholesky(whole[np.ix_(good, good)])) / 0.02

        def apart(x, row=row, good=good, root=root):
            return root @ (MODEL.evaluate(x[None]).flux[0] - flux[row])[good]

        def slope(x, good=good, root=root):
            return root @ MODEL.evaluate(x[None]).jacobian[0][:, good].T

        best = least_squares(apart, MIDDLE, slope, bounds=MODEL.bounds.T, xtol=1e-10)
        slopes = slope(best.x)
        expected = np.sqrt(np.diag(np.linalg.inv(slopes.T @ slopes)))
        assert found.sigma[row] == pytest.approx(expected, rel=0.01)
        assert found.labels[row] == pytest.approx(best.x, abs=0.03 * expected.max())
        assert found.chi2[row] == pytest.approx(2 * best.cost, rel=1e-3)
        assert found.n_freedom[row] == good.sum() - 3


@pytest.mark.slow
@pytest.mark.parametrize("kind", MASKS)
def test_quoted_errors_hold_and_grow_under_masks(kind):
    truth, flux, ivar = spectra(1500, 30, sigma=0.01, noise=correlated)
    masked = np.where(masks(np.random.default_rng(18), kind, ivar.shape), 0, ivar).astype("f4")
    fitter = Fitter(MODEL, noise_correlation=CORRELATION)
    whole, found = (fitter.fit(flux, one, start(1500)) for one in (ivar, masked))
    for z in ((found.labels - truth) / found.sigma).T:
        assert 0.92 < robust_sigma(z) < 1.08
        assert abs(np.median(z)) < 0.15
    assert np.median(found.chi2_reduced) == pytest.approx(1.0, abs=0.02)
    growth = np.median(found.sigma / whole.sigma, axis=0)
    assert (growth > (1.0 if kind else 0.999)).all()


def test_a_correlation_of_no_noise_is_refused():
    with pytest.raises(ValueError, match="positive definite"):
        Whitening((0.9, -0.9))


def test_a_prior_enters_as_one_more_measurement():
    truth, flux, ivar = spectra(40, 4)
    alone = Fitter(MODEL, tolerance=1e-4).fit(flux, ivar, start(40))
    mean, sigma = truth[:, 1] + 0.01, 0.01
    prior = Prior.of(MODEL.label_names, 40, {"b": (mean, sigma)})
    both = Fitter(MODEL, tolerance=1e-4).fit(flux, ivar, start(40), prior=prior)
    expected = 1 / (1 / alone.sigma[:, 1] ** 2 + 1 / sigma**2)
    assert both.sigma[:, 1] ** 2 == pytest.approx(expected, rel=0.05)
    pulled = expected * (alone.labels[:, 1] / alone.sigma[:, 1] ** 2 + mean / sigma**2)
    assert both.labels[:, 1] == pytest.approx(pulled, abs=2e-3)


def test_an_unknown_mean_is_no_prior():
    prior = Prior.of(("a", "b"), 3, {"a": ([0.0, np.nan, 0.0], [1.0, 1.0, np.inf])})
    assert prior.precision[:, 0, 0].tolist() == [1.0, 0.0, 0.0]


def test_priors_of_relations_and_joint_ones_agree():
    row, value = np.array([1.0, -1.0]), 0.3
    relation = Prior.relation(row, value, 0.1, n_star=1) + Prior.of(("a", "b"), 1, {"b": (0, 1)})
    covariance = np.array([[1 + 0.01, 1.0], [1.0, 1.0]])
    joint = Prior.joint(np.array([[0.3, 0.0]]), covariance)
    assert relation.precision == pytest.approx(joint.precision)
    assert relation.pull == pytest.approx(joint.pull)


def test_frozen_labels_stay_and_have_no_error():
    truth, flux, ivar = spectra(30, 5)
    place = start(30)
    place[:, 0] = truth[:, 0]
    found = Fitter(MODEL).fit(flux, ivar, place, frozen=[True, False, False])
    assert found.labels[:, 0] == pytest.approx(truth[:, 0])
    assert (found.sigma[:, 0] == 0).all()
    z = (found.labels - truth)[:, 1:] / found.sigma[:, 1:]
    assert robust_sigma(z.ravel()) == pytest.approx(1.0, abs=0.3)


def test_a_tied_label_follows():
    _, flux, ivar = spectra(20, 6)
    fitter = Fitter(MODEL, tied={"c": Tie({"b": 0.5}, 1.2)})
    found = fitter.fit(flux, ivar, start(20))
    assert found.labels[:, 2] == pytest.approx(1.2 + 0.5 * found.labels[:, 1])
    assert found.sigma[:, 2] == pytest.approx(0.5 * found.sigma[:, 1])


def test_a_tie_to_nothing_is_refused():
    with pytest.raises(UnknownName):
        Fitter(MODEL, tied={"c": Tie({"z": 1.0})})


def test_labels_stop_at_their_bounds_and_are_flagged():
    _, flux, ivar = spectra(4, 7)
    beyond = MODEL.evaluate(np.array([[0.0, 3.0, 1.0]] * 4)).flux
    found = Fitter(MODEL).fit(beyond, ivar, start(4))
    assert found.labels[:, 1] == pytest.approx(2.0)
    assert ((found.flags & Flag.AT_BOUND.value) != 0).all()
    assert (Fitter(MODEL).fit(flux, ivar, start(4)).flags == 0).all()


def test_too_few_steps_are_flagged():
    _, flux, ivar = spectra(4, 8)
    found = Fitter(MODEL, max_steps=1, tolerance=1e-6).fit(flux, ivar, start(4))
    assert ((found.flags & Flag.NOT_CONVERGED.value) != 0).all()


def test_bad_pixels_and_windows_are_alike():
    _, flux, ivar = spectra(5, 9)
    window = np.where(T < 0.6, 1.0, 0.0)
    spoilt = np.where(window > 0, flux, np.nan).astype(np.float32)
    masked = Fitter(MODEL).fit(spoilt, ivar, start(5))
    windowed = Fitter(MODEL, window=window).fit(flux, ivar, start(5))
    assert masked.labels == pytest.approx(windowed.labels)
    assert masked.n_freedom.tolist() == windowed.n_freedom.tolist()


def test_rows_that_cannot_be_fitted_are_nan_and_harm_no_other():
    _, flux, ivar = spectra(6, 10)
    alone = Fitter(MODEL).fit(flux, ivar, start(6))
    ivar = ivar.copy()
    ivar[2] = 0
    place = start(6)
    place[4, 1] = np.nan
    found = Fitter(MODEL).fit(flux, ivar, place)
    assert np.isnan(found.labels[[2, 4]]).all()
    assert np.isnan(found.chi2[[2, 4]]).all()
    kept = [0, 1, 3, 5]
    assert found.labels[kept] == pytest.approx(alone.labels[kept], abs=1e-5)


def test_the_best_of_several_starts_is_kept():
    _, flux, ivar = spectra(8, 11)
    poor = np.tile([0.8, -2.0, 3.0], (8, 1))
    few = Fitter(MODEL, max_steps=1)
    both = few.fit(flux, ivar, np.stack([poor, start(8)]))
    ends = [few.fit(flux, ivar, one).chi2 for one in (poor, start(8))]
    assert both.chi2 == pytest.approx(np.minimum(*ends))


def test_the_variance_of_the_model_widens_the_errors():
    class Uncertain(Curves):
        def variance(self, labels):
            return np.full(T.size, 0.02**2, dtype=np.float32)

    _, flux, ivar = spectra(5, 12)
    plain, wide = (Fitter(m).fit(flux, ivar, start(5)) for m in (MODEL, Uncertain()))
    assert wide.sigma == pytest.approx(np.sqrt(2) * plain.sigma, rel=0.05)


def test_the_best_fit_is_the_model_at_the_labels():
    _, flux, ivar = spectra(5, 13)
    found = Fitter(MODEL).fit(flux, ivar, start(5))
    assert found.flux == pytest.approx(MODEL.evaluate(found.labels).flux, abs=1e-3)


def test_results_are_selected_and_joined():
    _, flux, ivar = spectra(4, 14)
    found = Fitter(MODEL).fit(flux, ivar, start(4))
    two = found.select(["c", "a"])
    assert two.labels == pytest.approx(found.labels[:, [2, 0]])
    assert two.covariance[:, 0, 1] == pytest.approx(found.covariance[:, 2, 0])
    assert len(FitResult.join([two, two])) == 8
    with pytest.raises(UnknownName):
        found.select(["d"])


class Curved:
    """One bent label, and one that the first trades off against."""

    label_names = ("a", "b")
    bounds = np.array([[-3.0, 3.0], [-5.0, 5.0]])
    wave_aa = 8420.0 + 100 * T

    def evaluate(self, labels, *, jacobian=True):
        a, b = labels.T[:, :, None]
        flux = np.exp(0.8 * a) * T + b * T**2
        slopes = np.stack([0.8 * np.exp(0.8 * a) * T, np.broadcast_to(T**2, flux.shape)], axis=1)
        return Evaluation(flux.astype(np.float32), slopes.astype(np.float32))

    def variance(self, labels):
        return np.zeros(T.size, dtype=np.float32)


def test_confidence_limits_are_where_the_profile_of_chi_square_has_risen_by_one():
    fitter, rng = Fitter(Curved(), tolerance=1e-6), np.random.default_rng(3)
    truth = np.column_stack([rng.uniform(-0.5, 0.5, 12), rng.uniform(-1, 1, 12)])
    clean = Curved().evaluate(truth).flux
    flux = (clean + 0.3 * rng.normal(size=clean.shape)).astype(np.float32)
    ivar = np.full(flux.shape, 0.3**-2.0, dtype=np.float32)
    flat, free = Prior.flat(12, 2), np.ones((12, 2), dtype=bool)
    found = fitter.fit(flux, ivar, np.zeros((12, 2)))
    limits = confidence_limits(fitter, flux, ivar, found, prior=flat, free=free, count=2)

    def profile(row, a):
        shape = T**2
        rest = flux[row] - np.exp(0.8 * a) * T
        b = (rest @ shape) / (shape @ shape)
        return np.sum((rest - b * shape) ** 2) * 0.3**-2.0

    skew = []
    for row in range(12):
        rise = [
            profile(row, limits[row, 0, k]) - profile(row, found.labels[row, 0]) for k in (0, 1)
        ]
        # Limits are found along a straight valley, which this one is not quite.
        assert rise == pytest.approx([1.0, 1.0], abs=0.3)
        skew.append((limits[row, 0] - found.labels[row, 0]) / found.sigma[row, 0])
    below, above = np.median(np.abs(skew), axis=0)
    assert below > 1.02 > 0.98 > above
    frozen = free & np.array([False, True])
    none = confidence_limits(fitter, flux, ivar, found, prior=flat, free=frozen, count=2)
    assert np.isnan(none[:, 0]).all()
    assert (none[:, 1, 0] < none[:, 1, 1]).all()


def test_the_objective_is_chi_square_and_prior():
    truth, flux, ivar = spectra(5, 4)
    prior = Prior.of(("a", "b", "c"), 5, {"b": (0.1, 0.2)})
    fitter = Fitter(MODEL, noise_correlation=CORRELATION, block=2)
    one, two = (fitter.objective(flux, ivar, truth + d, prior=prior) for d in (0.0, 0.05))
    whiten = np.linalg.inv(toeplitz([1, *CORRELATION, *np.zeros(T.size - 3)]))
    for row in range(5):
        rise = []
        for d in (0.0, 0.05):
            apart = (flux[row] - MODEL.evaluate(truth[[row]] + d).flux[0]) * np.sqrt(ivar[row])
            rise.append(apart @ whiten @ apart + ((truth[row, 1] + d - 0.1) / 0.2) ** 2)
        assert two[row] - one[row] == pytest.approx(rise[1] - rise[0], rel=1e-3)
    gone = fitter.objective(flux, ivar, np.full((5, 3), np.nan), prior=prior)
    assert np.isnan(gone).all()
