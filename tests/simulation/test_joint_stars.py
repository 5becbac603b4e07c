"""Stars of several surveys: what each theory needs of them, and one star in every survey."""

import numpy as np
import pytest

from maury.simulation.disturbances import Disturbances
from maury.simulation.drawing import DEFAULT_DRAW
from maury.simulation.joint_stars import JointStars
from maury.simulation.observing import ObservingModel
from maury.simulation.simulated_pool import BatchNoise
from maury.simulation.training_stars import TrainingStarSimulator

N = 260


def simulator(seed, labels, names, wave, snr):
    """Theory learnt from lines whose depths go with the labels."""
    rng = np.random.default_rng(seed)
    pixel = np.arange(wave.size)
    scaled = (labels - labels.mean(axis=0)) / labels.std(axis=0)
    flux = np.ones((len(labels), wave.size))
    for k, one in enumerate(scaled.T):
        line = np.exp(-0.5 * ((pixel - 12 - 11 * k) / 2.5) ** 2)
        flux -= 0.1 * (2.5 + one[:, None]) * line
    flux = (flux + rng.normal(0, 1 / snr, flux.shape)).astype(np.float32)
    return TrainingStarSimulator.learn(
        wave,
        flux,
        np.full(flux.shape, float(snr) ** 2, dtype=np.float32),
        labels=labels,
        names=names,
        observables=np.column_stack([labels[:, 0] / 1e3, np.full(len(labels), np.nan)]),
        observing=ObservingModel(continuum_rms=0.0),
    )


@pytest.fixture(scope="module")
def surveys():
    rng = np.random.default_rng(4)
    labels = np.column_stack([rng.uniform(4000, 6500, N), rng.uniform(1, 5, N)])
    third = 0.3 * rng.standard_normal(N)
    # The first survey lacks the last sixty stars, the second the first sixty, and one label more.
    one = simulator(1, labels[:200], ("teff", "logg"), 8420.0 + 0.4 * np.arange(40), 100.0)
    two = simulator(
        2,
        np.column_stack([labels, third])[60:],
        ("teff", "logg", "li"),
        6480.0 + 0.2 * np.arange(56),
        60.0,
    )
    star = {"one": np.arange(200), "two": np.arange(60, N)}
    return {"one": one, "two": two}, star, np.column_stack([labels, third])


NAMES = ("teff", "logg", "li")


def test_a_star_takes_its_own_labels_and_lacking_ones_from_its_like(surveys):
    simulators, star, truth = surveys
    stars = JointStars.of(simulators, star, NAMES)
    assert stars.labels.shape == (N, 3)
    assert np.allclose(stars.labels[:, :2], truth[:, :2])
    assert np.allclose(stars.labels[60:, 2], truth[60:, 2])
    # A star without lithium has that of its nearest neighbour that has one.
    place = (truth[:, :2] - truth[60:, :2].mean(axis=0)) / truth[60:, :2].std(axis=0)
    distance = ((place[:60, None] - place[None, 60:]) ** 2).sum(axis=2)
    # Scales are robust ones, by which a neighbour of another order may be the nearest.
    near = np.sort(distance, axis=1)[:, 4]
    taken = np.array([np.flatnonzero(truth[60:, 2] == x)[0] for x in stars.labels[:60, 2]])
    assert (distance[np.arange(60), taken] <= near).all()
    assert np.isfinite(stars.observables[:, 0]).all()


def test_stars_of_some_surveys_alone(surveys):
    simulators, star, truth = surveys
    stars = JointStars.of(simulators, star, NAMES, base=("two",))
    assert np.allclose(stars.labels, truth[60:])


def test_each_star_has_a_spectrum_of_every_survey(surveys):
    simulators, star, _ = surveys
    stars = JointStars.of(simulators, star, NAMES)
    noise = dict.fromkeys(simulators, BatchNoise(low_snr_share=0.0))
    pool = stars.pool(
        simulators,
        3000,
        np.random.default_rng(1),
        draw=DEFAULT_DRAW,
        noise=noise,
        disturbances=Disturbances.none(),
    )
    assert len(pool.labels) > 2700
    spectra, observables, labels = pool.batch(64, np.random.default_rng(2))
    assert spectra["one"][0].shape == (64, 40)
    assert spectra["two"][0].shape == (64, 56)
    assert np.allclose(observables[:, 0], labels[:, 0] / 1e3, rtol=0.05)
    # The first line tells Teff in both surveys, of the same star.
    depth = {name: 1 - spectra[name][0][:, 10:15].mean(axis=1) for name in spectra}
    for name in spectra:
        assert np.corrcoef(depth[name], labels[:, 0])[0, 1] > 0.9
    # Noise is each survey's own, and not that of the other.
    rest = {
        name: depth[name] - np.polyval(np.polyfit(labels[:, 0], depth[name], 3), labels[:, 0])
        for name in spectra
    }
    assert abs(np.corrcoef(rest["one"], rest["two"])[0, 1]) < 0.6
    assert np.median(1 / np.sqrt(spectra["two"][1])) > np.median(1 / np.sqrt(spectra["one"][1]))


def test_arrays_there_and_back(surveys):
    simulators, star, _ = surveys
    stars = JointStars.of(simulators, star, NAMES)
    again = JointStars.from_arrays(stars.to_arrays(), NAMES)
    assert np.array_equal(again.labels, stars.labels)
    assert set(again.hidden) == set(simulators)
