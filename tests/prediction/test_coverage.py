"""Coverage: who is like the training sample, who is not, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from scipy.spatial import cKDTree

from maury.errors import LengthMismatch, ModelFileError, TrainingError
from maury.labels.flags import Flag
from maury.prediction import evidence as evidence_module
from maury.prediction import peculiar_spectra as anomaly
from maury.prediction.coverage import CoverageModel
from maury.prediction.detectors import DETECTORS, LEAST_STARS, OFTENER
from maury.prediction.evidence import (
    CoverageScores,
    Evidence,
    TwoViews,
    nearest,
    robust_whitening,
    same_star,
    whitening,
)
from maury.prediction.peculiar_spectra import CALCIUM_AA, VelocityTest
from maury.simulation.broadening import broadened
from maury.simulation.emulator import Emulator
from maury.simulation.observing import RAVE_WAVE_AA, ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

NAMES = ("teff", "logg", "m_h", "fe_h", "alpha_m", "si_fe", "al_fe", "mg_fe", "ni_fe")
SPECTRUM_ERROR = np.array([80.0, 0.15, 0.07, 0.07, 0.05, 0.05, 0.07, 0.08, 0.04])
PHOTOMETRY_ERROR = np.array([90.0, 0.12, 0.2, 0.2, 0.07, 0.07, 0.1, 0.1, 0.05])
WAVE = RAVE_WAVE_AA
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Sky:
    """Simulated stars and how they are reconstructed from imperfect labels."""

    spectrograph: Spectrograph
    emulator: Emulator

    def stars(self, n_star: int, seed: int, change: Change | None = None) -> Evidence:
        rng = np.random.default_rng(seed)
        truth = Population.load().sample(n_star, rng).labels
        seen = self.spectrograph.observe(self.emulator.flux(truth), truth, rng)
        flux = seen.flux if change is None else change(seen.flux, rng)
        views, labels = two_views(truth[:, :9], rng)
        full = truth.copy()
        full[:, :9] = labels
        full[:, 9:] = np.median(truth[:, 9:], axis=0)
        return Evidence(flux, seen.ivar, seen.snr, labels, self.reconstruct(full), views=views)

    def reconstruct(self, labels: np.ndarray) -> np.ndarray:
        return self.spectrograph.broaden(
            self.emulator.flux(self.emulator.clip(labels)),
            resolving_power=7500.0,
            rotation_kms=3.0,
            macroturbulence_kms=4.0,
            rv_kms=0.0,
        )


def two_views(truth: np.ndarray, rng: np.random.Generator) -> tuple[TwoViews, np.ndarray]:
    errors = [np.broadcast_to(e, truth.shape) for e in (SPECTRUM_ERROR, PHOTOMETRY_ERROR)]
    labels = [truth + e * rng.standard_normal(truth.shape) for e in errors]
    covariance = [np.eye(9) * e[:, None, :] ** 2 for e in errors]
    weight = [e**-2.0 for e in errors]
    joint = (labels[0] * weight[0] + labels[1] * weight[1]) / (weight[0] + weight[1])
    return TwoViews(labels[0], covariance[0], labels[1], covariance[1]), joint


def shifted(flux: np.ndarray, rv_kms: np.ndarray) -> np.ndarray:
    moved = [
        np.interp(WAVE / (1 + v / SPEED_OF_LIGHT_KMS), WAVE, row)
        for row, v in zip(flux, rv_kms, strict=True)
    ]
    return np.array(moved, dtype=np.float32)


def wrong_velocity(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return shifted(flux, rng.uniform(50, 300, len(flux)) * rng.choice([-1, 1], len(flux)))


def emission(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Gaussians of sigma 0.65 angstrom whose equivalent widths add up to 0.4-1.5 angstrom."""
    shares = zip((0.25, 0.41, 0.34), CALCIUM_AA, strict=True)
    profile = sum(s * np.exp(-0.5 * ((WAVE - line) / 0.65) ** 2) for s, line in shares)
    width = rng.uniform(0.4, 1.5, (len(flux), 1))
    return (flux + width * profile / (0.65 * np.sqrt(2 * np.pi))).astype(np.float32)


def composite(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    ratio = rng.uniform(0.5, 1.0, (len(flux), 1))
    velocity = rng.uniform(60, 200, len(flux)) * rng.choice([-1, 1], len(flux))
    other = shifted(np.roll(flux, 1, axis=0), velocity)
    return ((flux + ratio * other) / (1 + ratio)).astype(np.float32)


def bad_continuum(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Legendre polynomials of orders 1-5, rms 2-8 %."""
    x = np.linspace(-1, 1, flux.shape[1])
    basis = np.polynomial.legendre.legvander(x, 5)[:, 1:] * np.sqrt(2 * np.arange(1, 6) + 1)
    terms = rng.standard_normal((len(flux), 5))
    terms /= np.linalg.norm(terms, axis=1, keepdims=True)
    rms = rng.uniform(0.02, 0.08, (len(flux), 1))
    return (flux * (1 + rms * (terms @ basis.T))).astype(np.float32)


def hot(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Deep, broad Paschen lines on what is left of the spectrum."""
    lines = np.array([8437.95, 8467.25, 8502.48, 8545.38, 8598.39, 8665.02, 8750.47])
    lorentz = 1 / (1 + ((WAVE - lines[:, None]) / 6.0) ** 2)
    depth = rng.uniform(0.15, 0.3, (len(flux), 1, 1))
    return (np.prod(1 - depth * lorentz, axis=1) * (0.8 + 0.2 * flux)).astype(np.float32)


def auc(clean: np.ndarray, odd: np.ndarray) -> float:
    """Share of pairs in which the odd one scores higher."""
    return float(np.mean(odd[:, None] > clean) + 0.5 * np.mean(odd[:, None] == clean))


def shares(mask: np.ndarray) -> dict[Flag, float]:
    return {flag: float(np.mean((mask & flag.value) != 0)) for flag in Flag}


def swapped(evidence: Evidence) -> Evidence:
    views = evidence.views
    assert views is not None
    moved = {
        k: np.roll(getattr(views, k), 1, axis=0) for k in ("photometry", "photometry_covariance")
    }
    return dataclasses.replace(evidence, views=dataclasses.replace(views, **moved))


@pytest.fixture(scope="module")
def sky() -> Sky:
    emulator = Emulator.load()
    wave, power = emulator.wave_aa, emulator.spec.resolving_power
    return Sky(Spectrograph(wave, WAVE, power, ObservingModel(spike_fraction=0.0)), emulator)


@pytest.fixture(scope="module")
def model(sky: Sky) -> CoverageModel:
    return CoverageModel.fit(sky.stars(1200, 1), wave_aa=WAVE, label_names=NAMES)


@pytest.fixture(scope="module")
def clean(sky: Sky) -> Evidence:
    return sky.stars(800, 2)


@pytest.fixture(scope="module")
def clean_scores(model: CoverageModel, clean: Evidence) -> CoverageScores:
    return model.score(clean)


def fast(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return broadened(flux, rng.uniform(40, 100, len(flux)), WAVE)


def scattered(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    light = rng.uniform(0.12, 0.25, (len(flux), 1))
    return ((flux + light) / (1 + light)).astype(np.float32)


def fringed(flux: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    period, phase = rng.uniform(8, 40, (len(flux), 1)), rng.random((len(flux), 1))
    return (flux * (1 + 0.03 * np.sin(2 * np.pi * (WAVE / period + phase)))).astype(np.float32)


CASES = {
    "rotation": (fast, Flag.FAST_ROTATION),
    "zero_level": (scattered, Flag.ZERO_LEVEL),
    "fringes": (fringed, Flag.CONTINUUM_BAD),
    "rv_shift_kms": (wrong_velocity, Flag.RADIAL_VELOCITY_WRONG),
    "emission": (emission, Flag.EMISSION),
    "sb2": (composite, Flag.DOUBLE_LINED),
    "continuum": (bad_continuum, Flag.CONTINUUM_BAD),
    "paschen": (hot, Flag.HOT_STAR),
}


@pytest.mark.parametrize("name", CASES)
def test_injected_fault_is_found_and_named(
    model: CoverageModel, sky: Sky, clean_scores: CoverageScores, name: str
) -> None:
    change, flag = CASES[name]
    scores = model.score(sky.stars(200, 3, change))
    assert auc(np.abs(getattr(clean_scores, name)), np.abs(getattr(scores, name))) >= 0.95
    found = shares(model.flags(scores))
    assert found[flag] >= 0.8
    rivals = [case[1] for case in CASES.values()]
    assert all(found[rival] <= 0.1 for rival in rivals if rival is not flag)


def test_photometry_of_another_star(
    model: CoverageModel, clean: Evidence, clean_scores: CoverageScores
) -> None:
    other = model.score(swapped(clean))
    assert auc(clean_scores.disagreement, other.disagreement) >= 0.93
    assert shares(model.flags(other))[Flag.PHOTOMETRY_DISAGREES] >= 0.6


def test_few_clean_stars_are_warned_of(model: CoverageModel, clean_scores: CoverageScores) -> None:
    found = shares(model.flags(clean_scores))
    assert np.mean(model.flags(clean_scores) != 0) <= 0.06
    assert all(found[flag] <= 0.02 for flag in DETECTORS.values())


@pytest.mark.slow
def test_false_alarms_are_what_is_asked_for(sky: Sky) -> None:
    training = sky.stars(700, 5)
    asked = 0.03
    model = CoverageModel.fit(training, wave_aa=WAVE, label_names=NAMES, false_alarm=asked)
    excess = model.excess(model.score(sky.stars(1000, 6)))
    for name in set(DETECTORS) - {"rv_shift_kms", "companion", "observables"}:
        share = asked * OFTENER.get(name, 1.0)
        # Noise of the quantile of 700 stars and of the count of 1000, four times over.
        assert abs(np.mean(excess[name] > 1) - share) < 4 * np.sqrt(share * (1 / 700 + 1 / 1000))


def test_labels_far_from_the_sample(model: CoverageModel, clean: Evidence) -> None:
    labels = np.array(clean.labels)[:3]
    labels[:, 2:4] = -3.5
    scores = model.score(dataclasses.replace(clean.rows(np.arange(3)), labels=labels, views=None))
    assert np.all(model.flags(scores) & Flag.LABELS_UNLIKE.value)
    assert np.isnan(scores.disagreement).all()


def test_hotter_than_all_training_stars(model: CoverageModel, clean: Evidence) -> None:
    labels = np.array(clean.labels)[:2]
    labels[0, 0] = model.teff_limit_kelvin[0] + 1
    labels[1, 0] = model.teff_limit_kelvin[0] - 1
    mask = model.flags(model.score(dataclasses.replace(clean.rows(np.arange(2)), labels=labels)))
    assert ((mask & Flag.HOT_STAR.value) != 0).tolist() == [True, False]


def test_worst_wavelength_is_that_of_the_fault(model: CoverageModel, clean: Evidence) -> None:
    flux = np.array(clean.flux)[:20]
    flux[:, 500:503] -= 0.4
    scores = model.score(dataclasses.replace(clean.rows(np.arange(20)), flux=flux))
    np.testing.assert_allclose(scores.worst_wavelength_aa, WAVE[501])


def test_features_given_or_not(sky: Sky, clean: Evidence) -> None:
    rng = np.random.default_rng(8)
    training = dataclasses.replace(sky.stars(300, 9), features=rng.standard_normal((300, 5)))
    model = CoverageModel.fit(training, wave_aa=WAVE, label_names=NAMES)
    features = rng.standard_normal((len(clean), 5))
    features[0] = 20.0
    scores = model.score(dataclasses.replace(clean, features=features))
    assert np.argmax(scores.feature_distance) == 0
    with pytest.raises(LengthMismatch, match="features"):
        model.score(clean)


def test_a_row_does_not_depend_on_others(
    model: CoverageModel, clean: Evidence, clean_scores: CoverageScores
) -> None:
    chosen = np.array([5, 3, 77])
    part = model.score(clean.rows(chosen))
    for item in dataclasses.fields(part):
        whole = getattr(clean_scores, item.name)[chosen]
        np.testing.assert_allclose(getattr(part, item.name), whole, rtol=1e-3, atol=1e-3)


def test_bad_rows_are_nan_and_not_flagged(model: CoverageModel, clean: Evidence) -> None:
    some = clean.rows(np.arange(4))
    ivar, labels = np.array(some.ivar), np.array(some.labels)
    model_flux, snr = np.array(some.reconstruction), np.array(some.snr)
    ivar[0] = 0.0
    labels[1], model_flux[1] = np.nan, np.nan
    ivar[2, :700] = 0.0
    snr[3] = np.nan
    changed = dataclasses.replace(
        some, ivar=ivar, labels=labels, reconstruction=model_flux, snr=snr, views=None
    )
    with np.errstate(all="raise"):
        scores = model.score(changed)
        mask = model.flags(scores)
    assert np.isnan(scores.chi2_reduced).tolist() == [True, True, False, False]
    assert np.isnan(scores.label_distance).tolist() == [False, True, False, False]
    assert np.isnan(scores.rv_shift_kms).tolist() == [True, True, False, False]
    assert mask[1] == 0
    assert len(mask) == 4


@pytest.mark.slow
def test_detectors_without_input_are_silent(clean: Evidence) -> None:
    blind = dataclasses.replace(clean, views=None)
    model = CoverageModel.fit(blind, wave_aa=WAVE + 1000, label_names=["a"] * 9)
    scores = CoverageModel.from_arrays(model.to_arrays()).score(clean)
    for name in ("emission", "paschen", "disagreement", "teff"):
        assert np.isnan(getattr(scores, name)).all()
    found = shares(model.flags(scores))
    silent = (Flag.EMISSION, Flag.HOT_STAR, Flag.PHOTOMETRY_DISAGREES)
    assert [found[flag] for flag in silent] == [0, 0, 0]
    assert found[Flag.RECONSTRUCTION_POOR] > 0


def test_no_stars(model: CoverageModel, clean: Evidence) -> None:
    scores = model.score(clean.rows(np.zeros(len(clean), dtype=bool)))
    assert model.flags(scores).shape == (0,)


def test_arguments_are_not_written_to(model: CoverageModel, clean: Evidence) -> None:
    some = clean.rows(np.arange(6))
    before = [np.array(x) for x in (some.flux, some.ivar, some.labels, some.reconstruction)]
    model.score(some)
    for old, new in zip(
        before, (some.flux, some.ivar, some.labels, some.reconstruction), strict=True
    ):
        np.testing.assert_array_equal(old, new)


def test_arrays_restore_the_model(model: CoverageModel, clean: Evidence) -> None:
    arrays = model.to_arrays()
    assert all(array.dtype.kind in "fi" for array in arrays.values())
    again = CoverageModel.from_arrays(arrays)
    some = clean.rows(np.arange(30))
    for item in dataclasses.fields(CoverageScores):
        np.testing.assert_array_equal(
            getattr(model.score(some), item.name), getattr(again.score(some), item.name)
        )


def test_models_of_earlier_versions_keep_their_filters(model: CoverageModel, sky: Sky) -> None:
    arrays = {k: v for k, v in model.to_arrays().items() if "." not in k}
    arrays |= {k: arrays[k][:9] for k in ("threshold", "snr_slope")}
    # In units of the filters' own scatter, not of chi-square.
    arrays["threshold"] = np.where(np.arange(9) == list(DETECTORS).index("emission"), 4.0, 1e9)
    older = CoverageModel.from_arrays(arrays)
    scores = older.score(sky.stars(50, 4, emission))
    assert np.isnan(scores.rotation).all()
    assert shares(older.flags(scores))[Flag.EMISSION] > 0.8


DAMAGED = ["floor", "threshold", "reference_labels", "label_columns", "causes.modes"]


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_arrays_are_refused(model: CoverageModel, name: str) -> None:
    arrays = model.to_arrays()
    with pytest.raises(ModelFileError, match=name):
        CoverageModel.from_arrays(arrays | {name: arrays[name][..., :-1]})
    with pytest.raises(ModelFileError, match=name):
        CoverageModel.from_arrays({k: v for k, v in arrays.items() if k != name})
    with pytest.raises(ModelFileError, match=name):
        CoverageModel.from_arrays(arrays | {name: np.full(arrays[name].shape, np.nan)})


def test_label_columns_outside_are_refused(model: CoverageModel) -> None:
    arrays = model.to_arrays() | {"label_columns": np.array([0, 1, 9])}
    with pytest.raises(ModelFileError, match="label_columns"):
        CoverageModel.from_arrays(arrays)


def test_too_few_stars(clean: Evidence) -> None:
    with pytest.raises(TrainingError, match=str(LEAST_STARS)):
        CoverageModel.fit(clean.rows(np.arange(50)), wave_aa=WAVE, label_names=NAMES)


@pytest.mark.parametrize("name", ["ivar", "snr", "labels", "reconstruction"])
def test_arrays_of_other_stars_are_refused(clean: Evidence, name: str) -> None:
    with pytest.raises(LengthMismatch, match=name):
        dataclasses.replace(clean, **{name: np.asarray(getattr(clean, name))[:-1]})


def test_other_pixels_are_refused(model: CoverageModel, clean: Evidence) -> None:
    fewer = {k: np.asarray(getattr(clean, k))[:, 1:] for k in ("flux", "ivar", "reconstruction")}
    with pytest.raises(LengthMismatch, match="912 pixels"):
        model.score(dataclasses.replace(clean, **fewer))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), lost=st.integers(0, 12))
def test_chi_square_against_the_dense_matrix(seed: int, lost: int) -> None:
    rng = np.random.default_rng(seed)
    scaled = rng.standard_normal((2, 20))
    good = np.ones((2, 20), dtype=bool)
    good[0, rng.permutation(20)[:lost]] = False
    got = anomaly.chi_square(scaled, good, noise_correlation=(0.44, 0.05))
    matrix = toeplitz(np.r_[1, 0.44, 0.05, np.zeros(17)])
    for row in range(2):
        r = scaled[row, good[row]]
        within = matrix[np.ix_(good[row], good[row])]
        assert got[row] == pytest.approx(r @ np.linalg.solve(within, r) / r.size, rel=1e-5)


def test_chi_square_of_correlated_noise_is_one() -> None:
    rng = np.random.default_rng(4)
    root = np.linalg.cholesky(toeplitz(np.r_[1, 0.44, 0.05, np.zeros(297)]))
    noise = rng.standard_normal((400, 300)) @ root.T
    value = anomaly.chi_square(noise, np.ones(noise.shape, bool), noise_correlation=(0.44, 0.05))
    assert abs(value.mean() - 1) < 4 * np.sqrt(2 / 300 / 400)
    assert value.std() == pytest.approx(np.sqrt(2 / 300), rel=0.15)


def test_matched_filter_is_the_height_over_its_error() -> None:
    rng = np.random.default_rng(5)
    profile = anomaly.line_profile(WAVE, CALCIUM_AA, sigma_aa=0.65)
    weight = np.full((2000, 912), 50.0**2)
    noise = rng.standard_normal(weight.shape) / 50.0
    height = 0.05
    got = anomaly.matched_filter(noise + height * profile, weight, profile)
    expected = height * 50.0 * np.sqrt(np.sum(profile**2))
    assert got.mean() == pytest.approx(expected, abs=4 / np.sqrt(2000))
    assert got.std() == pytest.approx(1.0, abs=0.07)


def test_continuum_terms_are_those_injected() -> None:
    terms = np.array([[0.01, -0.02, 0.03, 0.0, 0.01, -0.01]])
    basis = np.polynomial.legendre.legvander(np.linspace(-1, 1, 912), 5)
    weight = np.ones((1, 912))
    weight[0, 300:400] = 0
    got = anomaly.continuum_terms(terms @ basis.T, weight, degree=5)
    np.testing.assert_allclose(got, terms, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(rv_kms=st.floats(-450, 450))
def test_shift_is_measured(rv_kms: float) -> None:
    lines = np.array([*CALCIUM_AA, 8688.6, 8468.4])
    depth = np.array([0.4, 0.5, 0.45, 0.3, 0.25])[:, None]
    at = lines[:, None] * (1 + np.array([0.0, rv_kms])[:, None, None] / SPEED_OF_LIGHT_KMS)
    flux = 1 - (depth * np.exp(-0.5 * ((WAVE - at) / 1.5) ** 2)).sum(axis=1)
    template, moved = flux[:1].astype(np.float32), flux[1:].astype(np.float32)
    shift = VelocityTest(WAVE).measure(moved, template)[0]
    assert shift[0] == pytest.approx(rv_kms, abs=1.5)


def test_second_set_of_lines_raises_the_gain() -> None:
    lines = np.array(CALCIUM_AA)[:, None]

    def star(rv_kms: float) -> np.ndarray:
        at = lines * (1 + rv_kms / SPEED_OF_LIGHT_KMS)
        return 1 - 0.5 * np.exp(-0.5 * ((WAVE - at) / 1.2) ** 2).sum(axis=0)

    pair = [(star(0) + ratio * star(90)) / (1 + ratio) for ratio in (0.0, 0.2, 0.5, 1.0)]
    noise = 0.01 * np.random.default_rng(0).standard_normal(912)
    flux = (np.array(pair) + noise).astype(np.float32)
    template = np.repeat(star(0)[None], 4, axis=0).astype(np.float32)
    gain = VelocityTest(WAVE).measure(flux, template)[1]
    assert np.all(np.diff(gain) > 0)
    assert gain[0] < 0.02 < 1.0 < gain[2]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), k=st.integers(1, 8), rank=st.integers(1, 12))
def test_neighbours_against_a_tree(seed: int, k: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    reference = rng.standard_normal((60, k)).astype(np.float32)
    points = rng.standard_normal((9, k))
    expected = cKDTree(reference).query(points, k=[rank])[0][:, 0] / np.sqrt(k)
    np.testing.assert_allclose(nearest(points, reference, rank), expected, atol=2e-3)


def test_whitening_gives_unit_covariance() -> None:
    rng = np.random.default_rng(6)
    values = rng.standard_normal((3000, 4)) @ rng.standard_normal((4, 4)) + 7
    for centre, root in (whitening(values, 3), robust_whitening(values)):
        white = (values - centre) @ root
        np.testing.assert_allclose(np.cov(white.T), np.eye(root.shape[1]), atol=0.1)
    centre, root = whitening(np.column_stack([values, values[:, 0]]), 5)
    assert root.shape == (5, 4)


def test_outliers_do_not_widen_the_robust_covariance() -> None:
    rng = np.random.default_rng(7)
    values = rng.standard_normal((2000, 3))
    values[:20] = 1e4
    centre, root = robust_whitening(values)
    assert np.std((values[20:] - centre) @ root) == pytest.approx(1, abs=0.15)


def quadratic(values: np.ndarray, n_squared: int) -> np.ndarray:
    first, second = np.triu_indices(n_squared)
    return np.column_stack([np.ones(len(values)), values, values[:, first] * values[:, second]])


@dataclasses.dataclass(frozen=True)
class Regression:
    """Ridge regression on terms, and the covariance of what it leaves."""

    centre: np.ndarray
    scale: np.ndarray
    n_squared: int
    weights: np.ndarray
    covariance: np.ndarray

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, n_squared: int) -> Regression:
        centre, scale = x.mean(axis=0), x.std(axis=0)
        terms = quadratic((x - centre) / scale, n_squared)
        normal = terms.T @ terms + 3.0 * np.eye(terms.shape[1])
        weights = np.linalg.solve(normal, terms.T @ y)
        covariance = np.cov((y - terms @ weights).T) if y.shape[1] < 20 else np.zeros(0)
        return cls(centre, scale, n_squared, weights, covariance)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return quadratic((x - self.centre) / self.scale, self.n_squared) @ self.weights


@dataclasses.dataclass(frozen=True)
class RaveLike:
    """Stars of the reference data, and quick regressions in the place of a network."""

    sky: Sky
    flux: np.ndarray
    snr: np.ndarray
    labels: np.ndarray
    observables: np.ndarray
    offsets: np.ndarray
    axes: np.ndarray
    from_flux: Regression
    from_observables: Regression
    missing: Regression | None = None

    @classmethod
    def load(cls, folder: Path, sky: Sky, train: np.ndarray) -> RaveLike:
        flux = fits.getdata(folder / "training_sample_spectra.fits").T.astype(np.float32)
        table = {
            name: np.genfromtxt(
                folder / f"training_sample_{name}.csv", delimiter=",", skip_header=1
            )
            for name in ("labels", "parameters", "extra")
        }
        labels, given = table["labels"][:, 1:], table["parameters"]
        absolute = given[:, 1:9] + 5 * np.log10(given[:, :1]) - 10
        observables = np.column_stack([absolute[:, :1], -np.diff(absolute, axis=1), given[:, 9]])
        axes = np.linalg.svd(flux[train] - flux[train].mean(axis=0), full_matrices=False)[2][:30]
        offsets = np.median(Population.load().sample(2000, np.random.default_rng(0)).labels, axis=0)
        return cls(
            sky=sky,
            flux=flux,
            snr=table["extra"][:, 1],
            labels=labels,
            observables=observables,
            offsets=offsets[9:],
            axes=axes,
            from_flux=Regression.fit(flux[train] @ axes.T, labels[train], 8),
            from_observables=Regression.fit(observables[train], labels[train], 9),
        ).calibrated(train)

    def calibrated(self, train: np.ndarray) -> RaveLike:
        known = self.evidence(train)
        missing = np.asarray(known.flux) - known.reconstruction
        return dataclasses.replace(
            self, missing=Regression.fit(np.asarray(known.labels), missing, 5)
        )

    def evidence(
        self, rows: np.ndarray, change: Change | None = None, partner: np.ndarray | None = None
    ) -> Evidence:
        rng = np.random.default_rng(1)
        flux = self.flux[rows] if change is None else change(self.flux[rows], rng)
        ivar = self.snr[rows, None] ** 2 / np.clip(flux, 0.05, None)
        one = self.from_flux(flux @ self.axes.T)
        two = self.from_observables(self.observables[rows if partner is None else partner])
        sizes = [self.from_flux.covariance, self.from_observables.covariance]
        weight = np.linalg.solve(sizes[0] + sizes[1], sizes[0])
        labels = one + (two - one) @ weight
        offsets = np.broadcast_to(self.offsets, (len(rows), self.offsets.size))
        model = self.sky.reconstruct(np.column_stack([labels, offsets]))
        if self.missing is not None:
            model = model + self.missing(labels)
        both = [np.broadcast_to(c, (len(rows), 9, 9)) for c in sizes]
        views = TwoViews(one, both[0], two, both[1])
        return Evidence(flux, ivar, self.snr[rows], labels, model, views=views)


@pytest.mark.slow
def test_reference_stars_with_quick_labels(shared: Path, sky: Sky) -> None:
    rows = np.random.default_rng(0).permutation(3669)
    train, held_out = rows[:3000], rows[3000:]
    stars = RaveLike.load(shared / "data" / "rave_like", sky, train)
    model = CoverageModel.fit(stars.evidence(train), wave_aa=WAVE, label_names=NAMES)
    clean = model.score(stars.evidence(held_out))
    assert np.mean(model.flags(clean) != 0) <= 0.05
    for name in ("rv_shift_kms", "emission", "sb2", "continuum"):
        odd = model.score(stars.evidence(held_out, CASES[name][0]))
        assert auc(np.abs(getattr(clean, name)), np.abs(getattr(odd, name))) >= 0.95, name
    other = model.score(stars.evidence(held_out, partner=np.roll(held_out, 1)))
    assert auc(clean.disagreement, other.disagreement) >= 0.9


def test_neighbours_of_ones_own_star_do_not_count() -> None:
    rng = np.random.default_rng(41)
    reference = rng.normal(size=(300, 4)).astype(np.float32)
    star = rng.integers(1, 80, 300)
    points, mine = rng.normal(size=(520, 4)), rng.integers(0, 90, 520)
    points[:300] = reference
    mine[:300] = star
    found = nearest(points, reference, 7, own=same_star(mine, star))
    apart = np.sqrt(np.square(points[:, None] - reference[None]).mean(axis=2))
    apart[(mine[:, None] == star[None]) & (mine != 0)[:, None]] = np.inf
    np.testing.assert_allclose(found, np.sort(apart, axis=1)[:, 6], atol=2e-3)
    few = nearest(points[:2], reference[:9], 7, own=same_star(np.array([5, 6]), np.full(9, 5)))
    assert np.isnan(few).tolist() == [True, False]


@pytest.mark.slow
def test_a_training_star_is_as_far_from_the_sample_as_its_threshold_says(clean: Evidence) -> None:
    """With all its spectra left out of its neighbours, in training and in prediction alike."""
    n = len(clean)
    star = 1 + np.arange(n) // 4
    labels = np.asarray(clean.labels).copy()
    labels = labels[4 * (np.arange(n) // 4)] + 1e-6 * labels
    known = dataclasses.replace(clean, star=star, labels=labels)
    fitted = CoverageModel.fit(known, wave_aa=WAVE, label_names=NAMES)
    own = fitted.score(known).label_distance
    np.testing.assert_allclose(own, fitted._scored(known, left_out=True).label_distance)
    scaled = (labels - fitted.label_centre) / fitted.label_scale
    apart = np.sqrt(np.square(scaled[:, None] - fitted.reference_labels[None]).mean(axis=2))
    apart[star[:, None] == star[None]] = np.inf
    np.testing.assert_allclose(own, np.sort(apart, axis=1)[:, 9], atol=2e-3)
    stranger = fitted.score(dataclasses.replace(known, star=None)).label_distance
    assert np.mean(stranger) < 0.97 * np.mean(own)
    arrays = fitted.to_arrays()
    del arrays["reference_star"]
    older = CoverageModel.from_arrays(arrays)
    np.testing.assert_array_equal(older.score(known).label_distance, stranger)


def test_many_pixels_are_whitened_like_few(monkeypatch):
    rng = np.random.default_rng(3)
    features = rng.normal(size=(90, 5)) @ rng.normal(size=(5, 300)) * [[3.0]]
    features += 0.1 * rng.normal(size=features.shape)
    centre, plain = evidence_module.whitening(features, 4)
    monkeypatch.setattr(evidence_module, "_MOST_FEATURES", 100)
    again, found = evidence_module.whitening(features, 4)
    np.testing.assert_array_equal(again, centre)
    signs = np.sign(np.sum(plain * found, axis=0))
    np.testing.assert_allclose(found * signs, plain, atol=1e-6 * np.abs(plain).max())
    np.testing.assert_allclose(np.cov(((features - centre) @ found).T), np.eye(4), atol=1e-8)
    single = (features - centre).astype(np.float32)
    strength, axes = evidence_module.leading_axes(single, 3)
    expected, vectors = np.linalg.eigh(single.T @ single)
    np.testing.assert_allclose(strength, expected[-3:], rtol=1e-4)
    np.testing.assert_allclose(np.abs(np.sum(axes * vectors[:, -3:], axis=0)), 1.0, atol=1e-4)
