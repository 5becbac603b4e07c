"""MATISSE: projections, left-out residuals, nodes, errors."""

import json

import numpy as np
import pytest

from builders.method_samples import draw_labels, inputs_of, lines, sample_of
from maury.errors import TrainingError
from maury.labels.statistics import robust_sigma
from maury.methods.fitting.noise import sandwich, weighted_variance
from maury.methods.matisse import Matisse, MatisseSettings, _left_out, _spectrum


def made(n, seed, *, snr=60.0, curved=0.0):
    rng = np.random.default_rng(seed)
    scaled, truth = draw_labels(n, rng)
    clean = lines(scaled + curved * scaled**3)
    ivar = np.full(clean.shape, snr**2)
    return truth, clean + rng.standard_normal(clean.shape) / snr, ivar


@pytest.fixture(scope="module")
def trained() -> Matisse:
    sample = sample_of(*made(900, 1, curved=0.6))
    quick = MatisseSettings(nodes=10, neighbours=200)
    return Matisse.train(sample, sample, settings=quick, seed=0)


def test_one_node_is_ridge_regression():
    truth, flux, ivar = made(200, 2)
    one = MatisseSettings(nodes=1, neighbours=200, snr_classes=(1e6,))
    sample = sample_of(truth, flux, ivar)
    method = Matisse.train(sample, sample, settings=one, seed=0)
    seen = inputs_of(flux, ivar)
    flux = seen.flux.astype(float)
    apart, spread = flux - flux.mean(0), truth.std(0)
    target = (truth - truth.mean(0)) / spread
    losses = {}
    for factor in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        matrix = apart.T @ apart + 200 * factor / 3600.0 * np.eye(120)
        vector = np.linalg.solve(matrix, apart.T @ target) * spread
        left = []
        for star in range(0, 200, 10):
            rest = np.arange(200) != star
            some, mean = flux[rest], flux[rest].mean(0)
            centre = target[rest].mean(0)
            b = np.linalg.solve(
                (some - mean).T @ (some - mean) + 200 * factor / 3600.0 * np.eye(120),
                (some - mean).T @ (target[rest] - centre),
            )
            left.append(centre + (flux[star] - mean) @ b - target[star])
        losses[factor] = (np.mean(np.square(left)), vector)
    vectors = [vector for _, vector in losses.values()]
    distance = [np.abs(v - method.vectors[0, 0]).max() / np.abs(v).max() for v in vectors]
    assert min(distance) < 1e-3
    best = min(loss for loss, _ in losses.values())
    assert list(losses.values())[int(np.argmin(distance))][0] < 1.1 * best


def test_left_out_residuals_are_those_of_refits():
    rng = np.random.default_rng(3)
    rows, target = rng.normal(size=(30, 8)), rng.normal(size=(30, 2))
    rows -= rows.mean(0)
    target -= target.mean(0)
    value, left = _spectrum(rows)
    found = _left_out(value, left, target, 2.0)
    for star in range(0, 30, 7):
        rest = np.arange(30) != star
        # The mean is a column without a ridge.
        columns = np.column_stack([np.ones(29), rows[rest]])
        penalty = np.diag([0.0] + [2.0] * 8)
        solved = np.linalg.solve(columns.T @ columns + penalty, columns.T @ target[rest])
        expected = target[star] - np.concatenate([[1.0], rows[star]]) @ solved
        np.testing.assert_allclose(found[star], expected, rtol=1e-6)


def test_nodes_follow_what_one_projection_cannot(trained):
    truth, flux, ivar = made(600, 4, curved=0.6)
    local = trained.apply(inputs_of(flux, ivar)).labels
    kind = np.full(600, int(np.argmin(np.abs(trained.snr_classes - 60.0))))
    overall = trained._labels(flux.astype(np.float32), np.zeros(600, int), kind)
    for k in range(3):
        assert robust_sigma(local[:, k] - truth[:, k]) < 0.9 * robust_sigma(
            overall[:, k] - truth[:, k]
        )


def test_quoted_errors_hold(trained):
    for snr in (40.0, 60.0):
        truth, flux, ivar = made(1500, 5, snr=snr, curved=0.6)
        found = trained.apply(inputs_of(flux, ivar))
        z = (found.labels - truth) / found.sigma
        assert all(0.8 < robust_sigma(column) < 1.25 for column in z.T)


def test_variance_of_a_weighted_sum_knows_correlated_noise():
    rng = np.random.default_rng(6)
    coefficients, sigma = rng.normal(size=(12, 2)), rng.uniform(0.5, 2, (3, 12))
    rho = (0.4, 0.1)
    matrix = np.eye(12)
    for lag, value in enumerate(rho, start=1):
        matrix += value * (np.eye(12, k=lag) + np.eye(12, k=-lag))
    found = weighted_variance(coefficients, sigma, correlation=rho)
    for star in range(3):
        covariance = matrix * np.outer(sigma[star], sigma[star])
        expected = np.diag(coefficients.T @ covariance @ coefficients)
        np.testing.assert_allclose(found[star], expected)


def test_sandwich_is_the_covariance_of_weighted_least_squares():
    rng = np.random.default_rng(7)
    slopes, ivar = rng.normal(size=(1, 2, 10)), rng.uniform(1, 3, (1, 10))
    scatter2 = 0.2
    weight = ivar / (1 + ivar * scatter2)
    fisher = slopes * weight[:, None] @ slopes.transpose(0, 2, 1)
    correlation = (0.3,)
    sigma = 1 / np.sqrt(ivar[0])
    noise = np.diag(sigma**2 + scatter2)
    noise += 0.3 * (np.eye(10, k=1) + np.eye(10, k=-1)) * np.outer(sigma, sigma)
    project = np.linalg.inv(fisher[0]) @ (slopes[0] * weight[0])
    found = sandwich(slopes, weight / np.sqrt(ivar), fisher, correlation=correlation)
    np.testing.assert_allclose(found[0], project @ noise @ project.T)


def test_rows_without_pixels_are_nan(trained):
    _, flux, ivar = made(4, 8)
    ivar[1] = 0.0
    found = trained.apply(inputs_of(flux, ivar))
    assert np.isnan(found.labels[1]).all()
    assert np.isfinite(found.labels[[0, 2, 3]]).all()
    assert len(trained.apply(inputs_of(flux[:0], ivar[:0], snr=np.zeros(0)))) == 0


def test_an_unknown_snr_takes_the_middle_class(trained):
    _, flux, ivar = made(3, 9)
    unknown = trained.apply(inputs_of(flux, ivar, snr=np.full(3, np.nan)))
    middle = trained.apply(inputs_of(flux, ivar, snr=np.full(3, trained.snr_classes[1])))
    np.testing.assert_array_equal(unknown.labels, middle.labels)


def test_it_survives_saving(trained):
    arrays, about = trained.to_arrays()
    kept = {"settings": trained.settings, "label_names": trained.label_names}
    again = Matisse.from_arrays(arrays, json.loads(json.dumps(about)), **kept)
    _, flux, ivar = made(4, 10)
    seen = inputs_of(flux, ivar)
    np.testing.assert_array_equal(again.apply(seen).labels, trained.apply(seen).labels)


def test_few_stars_are_refused():
    sample = sample_of(*made(10, 11))
    with pytest.raises(TrainingError, match=r"at least 30 stars .* got 10 of 10"):
        Matisse.train(sample, sample, settings=MatisseSettings(), seed=0)
