"""The Cramer-Rao bound: against dense algebra, fits of simulated spectra, and its limits."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import HistGradientBoostingRegressor

from maury.evaluation.validation import validate
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.bound import (
    SNR_EDGES,
    ObservedModes,
    compare_with_bound,
    covers,
    cramer_rao,
    cramer_rao_covariance,
)
from maury.simulation.catalogues import colours_from_magnitudes
from maury.simulation.emulator import Emulator
from maury.simulation.observing import (
    RAVE_WAVE_AA,
    TRAINING_CONDITIONS,
    ObservingModel,
    Spectrograph,
)
from maury.simulation.population import ALL_NAMES, Population
from maury.simulation.prior import TIED, population_prior
from maury.simulation.quantities import EMULATOR_LABELS
from maury.spectra.observables import absolute_magnitude

SUN = np.array([5772.0, 4.44, 0, 0, 0, 0, 0, 0, 0])
GIANT = np.array([4600.0, 2.3, -0.35, -0.35, 0.12, 0.1, 0.15, 0.15, 0.02])
STARS = np.array([SUN, GIANT])
QUIET = ObservingModel(
    resolving_power_scatter=1e-3,
    resolving_power_range=(7499.0, 7501.0),
    rotation_scatter=0.0,
    rv_error_kms=0.0,
    continuum_rms=0.0,
    fringe_rms=0.0,
    spike_fraction=0.0,
)


@pytest.fixture(scope="module")
def drawn():
    return Population.load().sample(3000, np.random.default_rng(77))


def dense_noise(n: int, correlation: tuple[float, ...]) -> np.ndarray:
    matrix = np.eye(n)
    for lag, value in enumerate(correlation, start=1):
        matrix += value * (np.eye(n, k=lag) + np.eye(n, k=-lag))
    return matrix


class LinearEmulator:
    """Flux linear in sixteen labels: random lines for each."""

    def __init__(self, seed: int = 3) -> None:
        rng = np.random.default_rng(seed)
        self.wave_aa = np.geomspace(8404.0, 8800.0, 2048)
        self.spec = SimpleNamespace(resolving_power=20_000.0)
        self.slopes = np.zeros((16, 2048), dtype=np.float32)
        for row, size in zip(self.slopes, [2e-4, 0.1, *[0.3] * 14], strict=True):
            for centre, depth in zip(
                rng.uniform(8425, 8780, 12), rng.uniform(0, 1, 12), strict=True
            ):
                row -= size * depth * np.exp(-0.5 * ((self.wave_aa - centre) / 0.5) ** 2)

    def flux(self, labels):
        centre = np.array([5772.0, 4.44, *[0.0] * 14])
        return (1.0 + (np.asarray(labels) - centre) @ self.slopes).astype(np.float32)

    def jacobian(self, labels):
        return np.repeat(self.slopes.T[None], len(labels), axis=0)


def test_bound_is_the_scatter_of_fits_to_simulated_spectra() -> None:
    emulator = LinearEmulator()
    labels = np.array([[5772.0, 4.44, *[0.0] * 14]])
    spectrograph = Spectrograph(emulator.wave_aa, RAVE_WAVE_AA, 20_000.0, QUIET)
    n = 1500
    stars = np.repeat(labels, n, axis=0)
    seen = spectrograph.observe(
        emulator.flux(stars), stars, np.random.default_rng(8), snr=np.full(n, 40)
    )
    fixed = {name: getattr(seen, name)[0] for name in ("rotation_kms", "macroturbulence_kms")}
    slopes = spectrograph.broaden(
        1 + emulator.slopes * 0.1, resolving_power=7500, rv_kms=0, **fixed
    ).astype(float)
    design = (slopes - 1).T / 0.1
    side = QUIET.noise_side_weight
    correlation = tuple(np.array([2 * side, side**2]) / (1 + 2 * side**2))
    weight = np.linalg.inv(dense_noise(912, correlation)) * 40**2
    gain = np.linalg.solve(design.T @ weight @ design, design.T @ weight)
    fitted = (seen.flux - seen.clean_flux[:1]).astype(float) @ gain.T

    wide = np.diag(np.array([3e3, *[10.0] * 15]) ** 2)
    got = cramer_rao_covariance(
        labels, 40, prior=wide, observing=QUIET, noise_correlation=correlation, emulator=emulator
    )[0]
    sigma = np.sqrt(np.diag(got))
    assert fitted.std(axis=0) / sigma == pytest.approx(np.ones(16), abs=4 / np.sqrt(2 * n))
    expected = got / np.outer(sigma, sigma)
    assert np.corrcoef(fitted.T) == pytest.approx(expected, abs=4.5 / np.sqrt(n))


def test_information_is_the_curvature_of_a_dense_chi_square() -> None:
    """All parameters, by finite differences of the whole forward model, and dense matrices."""
    emulator, snr, observing = Emulator.load(), 60.0, TRAINING_CONDITIONS
    star = np.array([*GIANT, 1.5, 0, 0, 0, 0, 0, 0])
    spectrograph = Spectrograph(emulator.wave_aa, RAVE_WAVE_AA, 20_000.0, observing)
    x = (RAVE_WAVE_AA - RAVE_WAVE_AA.mean()) / np.ptp(RAVE_WAVE_AA) * 2
    orders = [np.polynomial.Legendre.basis(k)(x) for k in range(1, 8)]
    sizes = [k**-0.5 / np.sqrt(np.mean(p**2)) for k, p in enumerate(orders, start=1)]
    norm = observing.continuum_rms / np.sqrt(sum(1 / k for k in range(1, 8)))
    macroturbulence = 3.98 + (4600 - 5770) / 650

    def model(shift):
        labels, (rv, power, rotation), smooth = shift[:16], shift[16:19], shift[19:]
        seen = spectrograph.broaden(
            emulator.flux([star + labels]),
            resolving_power=7500 * np.exp(power * 400 / 7500),
            rotation_kms=3.0 * np.exp(0.5 * rotation),
            macroturbulence_kms=macroturbulence,
            rv_kms=1.3 * rv,
        )[0].astype(float)
        pattern = sum(c * s * p for c, s, p in zip(smooth, sizes, orders, strict=True))
        return seen * (1 + norm * pattern)

    steps = np.array([10.0, 0.03, *[0.02] * 7, 0.03, *[0.02] * 6, 0.3, 0.5, 0.3, *[1.0] * 7])
    slopes = np.array([(model(s) - model(-s)) / 2 / s.max() for s in np.diag(steps)])
    clean = model(np.zeros(26))
    root = np.sqrt(clean) / snr
    covariance = dense_noise(912, (0.3, 0.1)) * np.outer(root, root)
    fisher = slopes @ np.linalg.solve(covariance, slopes.T)
    prior = np.diag(np.array([100.0, 0.3, *[0.15] * 14]) ** 2)
    fisher[:16, :16] += np.linalg.inv(prior)
    fisher[16:, 16:] += np.eye(10)
    expected = np.sqrt(np.diag(np.linalg.inv(fisher)))[:16]
    got = cramer_rao([star], snr, prior=prior, noise_correlation=(0.3, 0.1))[0]
    assert got == pytest.approx(expected, rel=0.01)


def test_bound_falls_as_noise_where_only_labels_are_unknown() -> None:
    weak = np.diag([1e6**2, *[1e4**2] * 15])
    star = [[*SUN, 1.0, 0, 0, 0, 0, 0, 0]]
    low, high = (cramer_rao(star, snr, prior=weak, observing=QUIET) for snr in (50, 200))
    assert low / high == pytest.approx(np.full((1, 16), 4.0), rel=1e-3)
    nuisances = cramer_rao(star, 50, prior=weak)
    assert np.all(nuisances > low)


def test_spectra_without_information_leave_the_prior() -> None:
    prior = np.diag(np.linspace(0.1, 0.2, 16) ** 2)
    got = cramer_rao([[*GIANT, 1.5, 0, 0, 0, 0, 0, 0]], 1e-4, prior=prior)
    assert got[0] == pytest.approx(np.linspace(0.1, 0.2, 16), rel=1e-6)


@settings(max_examples=15, deadline=None)
@given(
    scale=st.lists(st.floats(0.05, 1.0), min_size=16, max_size=16),
    snr=st.floats(5, 300),
    better=st.floats(1.0, 5.0),
)
def test_knowing_more_never_makes_it_worse(scale, snr, better) -> None:
    star = [[*GIANT, 1.5, 0, 0, 0, 0, 0, 0]]
    prior = np.diag(np.array([2000.0, 3.0, *[1.0] * 14]) ** 2)
    tighter = prior * np.outer(scale, scale)
    sigma = cramer_rao(star, snr, prior=prior)
    slack = 1 + 1e-6
    assert np.all(sigma <= np.sqrt(np.diag(prior)) * slack)
    assert np.all(cramer_rao(star, snr, prior=tighter) <= sigma * slack)
    assert np.all(cramer_rao(star, snr * better, prior=prior) <= sigma * slack)


@pytest.mark.slow
def test_photometry_never_makes_it_worse(drawn) -> None:
    labels = drawn.labels[:150, :9]
    alone, both = cramer_rao(labels, 45), cramer_rao(labels, 45, prior="photometry")
    assert np.all(both < 1.05 * alone)
    assert np.all(np.median(both / alone, axis=0) < [0.75, 0.6, 0.9, 0.9, 0.8, 0.6, 0.6, 0.6, 0.5])


def test_m_h_follows_fe_h() -> None:
    covariance = cramer_rao_covariance(STARS, 50)
    difference = covariance[:, 2, 2] + covariance[:, 3, 3] - 2 * covariance[:, 2, 3]
    assert np.all((difference > 0.004**2) & (difference < 0.02**2))
    assert np.all(covariance[:, 3, 3] > 0.03**2)


@pytest.mark.parametrize("prior", [None, "photometry"])
def test_unusable_rows_are_nan_and_others_unmoved(prior) -> None:
    labels = np.array([SUN, SUN, GIANT, GIANT, GIANT, GIANT])
    labels[1, 4] = np.nan
    labels[4, 0] = -5000.0
    got = cramer_rao(labels, [50, 50, np.nan, 0, 50, 50], prior=prior)
    assert got.shape == (6, 9)
    assert np.array_equal(np.isnan(got).all(axis=1), [False, True, True, True, True, False])
    alone = cramer_rao(STARS, 50, prior=prior)
    assert got[[0, 5]] == pytest.approx(alone, rel=1e-3)
    assert cramer_rao(np.empty((0, 9)), np.empty(0), prior=prior).shape == (0, 9)


def test_sixteen_labels_extend_the_nine() -> None:
    full = Population.load().complete(STARS)
    assert np.array_equal(full[:, :9], STARS)
    sixteen = cramer_rao(full, 50)
    assert sixteen.shape == (2, 16)
    assert sixteen[:, :9] == pytest.approx(cramer_rao(STARS, 50), rel=1e-9)


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match=r"labels must be \(n_star, 9\)"):
        cramer_rao(STARS[:, :5], 50)
    with pytest.raises(ValueError, match="'photometry' or a covariance, got 'phot'"):
        cramer_rao(STARS, 50, prior="phot")
    with pytest.raises(ValueError, match=r"got \(9, 9\)"):
        cramer_rao(STARS, 50, prior=np.eye(9))
    with pytest.raises(ValueError, match="reach beyond"):
        cramer_rao(STARS, 50, wave_aa=np.linspace(8300, 8600, 100))
    with pytest.raises(ValueError, match="not positive definite"):
        cramer_rao(STARS, 50, noise_correlation=(0.9, 0.0))
    assert covers(RAVE_WAVE_AA)
    assert not covers(np.linspace(8300, 8600, 100))
    assert not covers(np.linspace(8500, 8900, 100))


def test_prior_of_tied_labels_holds_on_other_stars(drawn) -> None:
    labels = drawn.labels
    prior = population_prior()
    relation, covariance = prior.ties(labels)
    means = Population.load().complete(labels[:, :9])
    residual = (relation @ (labels - means)[:, :, None])[:, :, 0]
    expected = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2).mean(axis=0))
    assert residual[:, 1:].std(axis=0) == pytest.approx(expected[1:], rel=0.08)
    for k, step in ((0, 100.0), (1, 0.2)):
        moved = labels[:, :9].copy()
        moved[:, k] += step
        change = Population.load().complete(moved)[:, 9] - means[:, 9]
        assert -relation[:, 1, k] * step - change == pytest.approx(np.zeros(len(labels)), abs=0.2)
        assert np.std(-relation[:, 1, k] * step - change) < 0.04
        assert np.mean(-relation[:, 1, k] * step) == pytest.approx(np.mean(change), abs=0.02)
    assert TIED[0] == "m_h"
    assert relation[:, 0, 2] == pytest.approx(np.ones(len(labels)))


@pytest.mark.slow
def test_scatter_given_photometry_is_little_less_than_trees_leave(drawn) -> None:
    def seen(stars):
        magnitudes = absolute_magnitude(stars.magnitudes, stars.parallax_mas[:, None])
        colours = colours_from_magnitudes(stars.magnitudes)
        return np.column_stack([magnitudes[:, 5], colours, stars.a_v])

    training = Population.load().sample(9000, np.random.default_rng(5))
    prior = population_prior().given_photometry(drawn.labels)
    for k in (0, 1, 3, 7):
        trees = HistGradientBoostingRegressor(max_iter=120, random_state=0)
        trees.fit(seen(training), training.labels[:, k])
        left = np.std(drawn.labels[:, k] - trees.predict(seen(drawn)))
        assert 0.78 < np.sqrt(prior[:, k, k].mean()) / left < 1.02, k


def test_bounds_of_real_labels_agree_with_an_independent_estimate(shared) -> None:
    """Approximate bounds at S/N 55 with photometry: quadratic derivatives, trees' residuals."""
    with open(shared / "data/rave_like/training_sample_labels.csv") as file:
        rows = [row[1:10] for row in list(csv.reader(file))[1:]]
    labels = np.array(rows, dtype=float)[::20]
    got = np.sqrt(np.mean(cramer_rao(labels, 55, prior="photometry") ** 2, axis=0))
    expected = [49, 0.088, 0.044, 0.033, 0.042, 0.057, 0.051, 0.037]
    assert np.delete(got, 2) == pytest.approx(expected, rel=0.15)


@pytest.mark.slow
def test_estimates_at_the_bound_have_ratio_one(drawn) -> None:
    labels = drawn.labels[:300, :9]
    rng = np.random.default_rng(6)
    snr = rng.uniform(20, 100, 300)
    snr[5] = np.nan
    sigma = cramer_rao(labels, snr, prior="photometry")
    predicted = labels + sigma * rng.standard_normal(labels.shape)
    predicted[7, 0] = np.nan
    compared = compare_with_bound(labels, predicted, snr)
    assert [one.name for one in compared] == list(LABEL_NAMES)
    for k, one in enumerate(compared):
        assert one.overall.n == (298 if k == 0 else 299) == sum(b.n for b in one.bins)
        assert one.overall.ratio_with_photometry == pytest.approx(1.0, abs=0.15)
        assert one.overall.ratio_spectrum_alone < one.overall.ratio_with_photometry
        assert one.overall.with_photometry == pytest.approx(np.nanmedian(sigma[:, k]), rel=0.01)
    assert [b.low for b in compared[0].bins] == list(SNR_EDGES[:-1])
    plain = compared[0].to_dict()
    assert plain["overall"]["high"] is None
    json.dumps(plain, allow_nan=False)


def test_what_a_survey_adds_raises_the_bound(drawn) -> None:
    """A level that scatters hides behind line depths; a mode of no size changes nothing."""
    labels, snr = drawn.labels[:40, :9], np.full(40, 60.0)
    predicted = labels + 0.05

    def bounds(continuum, added):
        modes = ObservedModes(np.asarray(continuum), np.asarray(added))
        return [
            one.overall.with_photometry
            for one in compare_with_bound(labels, predicted, snr, modes=modes)
        ]

    level, none = np.full((1, 912), 0.01), np.zeros((0, 912))
    quiet, absent = bounds(0.0 * level, none), bounds(none, none)
    assert quiet == pytest.approx(absent, rel=1e-6)
    rise = np.array(bounds(level, none)) / quiet
    assert rise.min() >= 1 - 1e-6
    assert rise[LABEL_NAMES.index("fe_h")] > 1.1
    added = np.array(bounds(none, level)) / quiet
    assert added.min() >= 1 - 1e-6
    assert added[LABEL_NAMES.index("fe_h")] > 1.1


def test_bins_hold_the_spectra_of_their_snr() -> None:
    labels = np.repeat([GIANT], 5, axis=0)
    for one in compare_with_bound(labels, labels, [20, 30, 50, 70, 90]):
        assert [b.n for b in one.bins] == [1] * 5
        medians = [b.with_photometry for b in one.bins]
        assert medians == sorted(set(medians), reverse=True)
        assert one.overall.with_photometry == pytest.approx(medians[2])


def test_empty_bins_are_empty(drawn) -> None:
    compared = compare_with_bound(drawn.labels[:5, :9], drawn.labels[:5, :9] + 1, np.full(5, 50.0))
    assert [b.n for b in compared[3].bins] == [0, 0, 5, 0, 0]
    assert compared[3].to_dict()["bins"][0]["scatter"] is None


@pytest.mark.slow
def test_validation_compares_with_the_bound(tiny_model, tiny_survey) -> None:
    report = validate(tiny_model, tiny_survey)
    assert [one.name for one in report.bounds] == list(LABEL_NAMES)
    assert report.bounds[0].overall.n == report.statistics[0].n
    assert report.bounds[0].overall.scatter == pytest.approx(report.statistics[0].scatter)
    assert report.with_photometry
    assert report.bounds[0].overall.ratio_with_photometry > 1.5, "three epochs teach little"
    header, first, *_ = report.rows()
    ratio = report.bounds[0].overall.ratio_with_photometry
    assert dict(zip(header, first, strict=True))["sigma / bound"] == f"{ratio:.2f}"
    data = json.loads(report.to_json())
    assert [one["name"] for one in data["bounds"]] == list(LABEL_NAMES)
    alone = replace(report, with_photometry=False).rows()[1][-2]
    assert alone == f"{report.bounds[0].overall.ratio_spectrum_alone:.2f}"
    assert replace(report, bounds=()).rows()[1][-2:] == ("-", "-")
    seen = replace(report, bounds=(), bounds_as_observed=report.bounds)
    assert dict(zip(header, seen.rows()[1], strict=True))["as observed"] == f"{ratio:.2f}"
    assert json.loads(seen.to_json())["bounds_as_observed"] == data["bounds"]


def test_names_agree() -> None:
    assert tuple(EMULATOR_LABELS) == ALL_NAMES
