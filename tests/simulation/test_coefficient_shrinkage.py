"""Coefficients of a polynomial without their noise: what they have in common is signal."""

import numpy as np
import pytest

from maury.simulation.coefficient_shrinkage import (
    Scatter,
    noise_spectra,
    principal_components,
    shrunk,
)

N_TERM, N_PIXEL, N_STAR = 24, 600, 800
RAVE = (0.44, 0.05)
APART = [np.array([k]) for k in range(N_TERM)]


def scatter_of(correlation, added=None):
    residual = noise_spectra((N_STAR, N_PIXEL), correlation, seed=5)
    direction, variance = np.zeros((0, N_PIXEL), np.float32), np.zeros(0)
    if added is not None:
        residual = residual + added.astype(np.float32)
        value, every = principal_components(residual, 1)
        direction, variance = every, value
    return Scatter(residual, direction, variance)


def lines(rng, n_line, width=1.5):
    x = np.arange(N_PIXEL)
    places = rng.uniform(0, N_PIXEL, n_line)
    depth = rng.exponential(1.0, n_line)
    return (depth[:, None] * np.exp(-0.5 * ((x - places[:, None]) / width) ** 2)).sum(axis=0)


def error(found, truth):
    return np.sqrt(np.mean((found - truth) ** 2))


@pytest.mark.parametrize("correlation", [(), RAVE])
@pytest.mark.parametrize("together", [False, True])
def test_noise_alone_leaves_next_to_nothing(correlation, together):
    noise = noise_spectra((N_TERM, N_PIXEL), correlation, seed=1).astype(np.float64)
    found = shrunk(
        noise,
        scatter_of(correlation),
        groups=APART,
        together=np.full(N_TERM, together),
        correlation=correlation,
    )
    assert error(found, 0) < 0.25


@pytest.mark.parametrize("correlation", [(), RAVE])
def test_large_coefficients_stay_as_they_are(correlation):
    rng = np.random.default_rng(2)
    truth = 300.0 * np.array([lines(rng, 30) for _ in range(N_TERM)])
    signal = truth + noise_spectra(truth.shape, correlation, seed=1)
    found = shrunk(
        signal,
        scatter_of(correlation),
        groups=APART,
        together=np.zeros(N_TERM, bool),
        correlation=correlation,
    )
    assert error(found, truth) < 1.02
    at = truth > 30
    assert np.median(found[at] / truth[at]) == pytest.approx(1.0, abs=0.005)


@pytest.mark.slow
@pytest.mark.parametrize("correlation", [(), RAVE])
def test_labels_that_shape_all_lines_change_a_spectrum_in_few_ways(correlation):
    rng = np.random.default_rng(3)
    ways = np.array([lines(rng, 60) for _ in range(2)])
    truth = rng.normal(0, 3.0, (N_TERM, 2)) @ ways
    signal = truth + noise_spectra(truth.shape, correlation, seed=1)
    apart, together = (
        shrunk(
            signal,
            scatter_of(correlation),
            groups=APART,
            together=np.full(N_TERM, low),
            correlation=correlation,
        )
        for low in (False, True)
    )
    # Of 24 spectra of noise that of 2 is left: a share of sqrt(2 / 24), and a little of the rest.
    assert error(together, truth) < 0.42 < 0.6 < error(apart, truth)


def test_terms_of_one_label_share_the_places_of_their_lines():
    rng = np.random.default_rng(4)
    profile = lines(rng, 12)
    truth = rng.normal(0, 1.2, (N_TERM, 1)) * profile
    signal = truth + noise_spectra(truth.shape, RAVE, seed=1)
    own, shared = (
        shrunk(
            signal,
            scatter_of(RAVE),
            groups=groups,
            together=np.zeros(N_TERM, bool),
            correlation=RAVE,
        )
        for groups in (APART, [np.arange(N_TERM)])
    )
    assert error(shared, truth) < 0.85 * error(own, truth)


@pytest.mark.slow
def test_where_stars_scatter_coefficients_are_known_worse():
    rng = np.random.default_rng(6)
    tilt = np.linspace(-1.0, 1.0, N_PIXEL)
    tilt /= np.sqrt(np.sum(tilt**2))
    scatter = scatter_of((), rng.normal(0, 12.0, (N_STAR, 1)) * tilt)

    def along(signal):
        none = np.zeros(N_TERM, bool)
        kept = shrunk(signal, scatter, groups=APART, together=none, correlation=())
        return kept @ tilt

    noise = noise_spectra((N_TERM, N_PIXEL), (), seed=1) + rng.normal(0, 12.0, (N_TERM, 1)) * tilt
    assert error(along(noise), 0) < 0.6 * error(noise @ tilt, 0)
    # Twelve times what is usual of noise alone would be nearly all signal.
    quiet = noise_spectra((N_TERM, N_PIXEL), (), seed=1) + 12.0 * tilt
    assert np.mean(np.abs(along(quiet))) < 6.0
    assert np.mean(along(noise + 400.0 * tilt)) == pytest.approx(400.0, rel=0.02)
