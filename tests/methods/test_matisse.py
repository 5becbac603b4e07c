"""MATISSE: projections, left-out residuals, nodes, errors."""

import json
from dataclasses import replace

import numpy as np
import pytest

from builders.method_samples import draw_labels, inputs_of, lines, sample_of
from maury.errors import TrainingError
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.degas import Degas
from maury.methods.fitting.noise import sandwich, weighted_variance
from maury.methods.matisse import Matisse, MatisseSettings, _by_landweber, _left_out, _spectrum


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
    one = MatisseSettings(nodes=1, neighbours=200, snr_classes=(1e6,), solver="ridge")
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
    found = _left_out(left, target, value / (value + 2.0))
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


def test_landweber_is_the_iteration_stopped_where_left_out_stars_err_least():
    rng = np.random.default_rng(11)
    rows = rng.normal(size=(60, 40)) @ np.diag(0.9 ** np.arange(40))
    target = rows @ rng.normal(size=(40, 2)) + rng.normal(size=(60, 2))
    rows, target = rows - rows.mean(0), target - target.mean(0)
    vector, _ = _by_landweber(rows, target, np.zeros(40))
    gram = rows @ rows.T
    beta = 1.0 / np.linalg.eigvalsh(gram)[-1]
    for label in range(2):
        alpha, distance = np.zeros(60), []
        for count in range(1, 4097):
            alpha = alpha + beta * (target[:, label] - gram @ alpha)
            if count & (count - 1) == 0:
                wanted = vector[:, label]
                distance.append(np.abs(rows.T @ alpha - wanted).max() / np.abs(wanted).max())
        # One of the numbers of steps that are tried, and not all of them.
        assert min(distance) < 1e-6
        assert np.sum(np.array(distance) < 1e-3) < 4
    noisy, _ = _by_landweber(rows, target, np.full(40, 5.0))
    assert (np.linalg.norm(noisy, axis=0) < np.linalg.norm(vector, axis=0)).all()


def test_spectra_that_go_to_and_fro_are_flagged(trained):
    _, flux, ivar = made(200, 12)
    # Between two nodes, each of which says that the other is the nearest.
    seen = inputs_of(flux, ivar)
    assert ((trained.apply(seen).flags & Flag.NOT_CONVERGED.value) != 0).mean() < 0.1
    offset = trained.offset.copy()
    vectors = np.zeros_like(trained.vectors)
    offset[0] = trained.nodes[0]
    offset[1], offset[2] = trained.nodes[1], trained.nodes[0]
    restless = replace(trained, vectors=vectors, offset=offset)
    assert (restless.apply(seen).flags & Flag.NOT_CONVERGED.value).all()
    silent = replace(restless, tells_convergence=False)
    assert not silent.apply(seen).flags.any()


def test_a_tree_recognises_spectra_among_its_references():
    truth, flux, ivar = made(800, 13, snr=1000.0)
    degas = Degas.learn(flux.astype(np.float32), truth, seed=0)
    assert (np.abs(degas.paths) @ np.ones(len(degas.directions)) > 0).all()
    assert np.bincount(degas.leaf).max() <= 16
    same = degas.recognise(degas.flux, np.full(degas.flux.shape, 1e8, dtype=np.float32))
    assert same == pytest.approx(degas.labels, rel=1e-6)
    truth, flux, ivar = made(300, 14, snr=15.0)
    found = degas.recognise(flux.astype(np.float32), ivar.astype(np.float32))
    scatter = [robust_sigma(one) for one in (found - truth).T]
    assert (np.array(scatter) < 0.6 * truth.std(axis=0)).all()
    assert len(degas.recognise(flux[:0].astype("f4"), ivar[:0].astype("f4"))) == 0
    alike = Degas.learn(np.ones((30, 20), np.float32), np.ones((30, 1)), seed=0)
    assert alike.recognise(np.ones((2, 20), np.float32), np.ones((2, 20), np.float32)).tolist() == [
        [1.0],
        [1.0],
    ]


def test_spectra_of_low_snr_are_recognised_with_errors_that_hold(tmp_path):
    sample = sample_of(*made(900, 15))
    settings = MatisseSettings(nodes=4, snr_classes=(10.0, 20.0, 60.0), degas_below=25.0)
    method = Matisse.train(sample, sample, settings=settings, seed=0)
    truth, flux, ivar = made(400, 16, snr=20.0)
    found = method.apply(inputs_of(flux, ivar))
    bare = replace(method, degas=None, degas_sigma=None)
    assert not np.array_equal(found.labels, bare.apply(inputs_of(flux, ivar)).labels)
    z = (found.labels - truth) / found.sigma
    assert all(0.7 < robust_sigma(column) < 1.4 for column in z.T)
    sharp = inputs_of(*made(20, 17, snr=60.0)[1:])
    np.testing.assert_array_equal(method.apply(sharp).labels, bare.apply(sharp).labels)
    arrays, about = method.to_arrays()
    kept = {"settings": method.settings, "label_names": method.label_names}
    again = Matisse.from_arrays(arrays, json.loads(json.dumps(about)), **kept)
    seen = inputs_of(flux, ivar)
    np.testing.assert_array_equal(again.apply(seen).labels, found.labels)
