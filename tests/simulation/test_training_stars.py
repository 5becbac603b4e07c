import dataclasses

import numpy as np
import pytest

from maury.errors import ConfigError, ModelFileError
from maury.prediction.uncertainty import REOBSERVED
from maury.simulation.disturbances import Disturbances
from maury.simulation.drawing import DrawConfig, draw_around
from maury.simulation.emulator import Emulator
from maury.simulation.observing import RAVE_WAVE_AA, ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.simulation.simulated_pool import BatchNoise
from maury.simulation.theory_calibration import TheoryCalibration
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.noise import RAVE_CORRELATION, noise_kernel
from maury.spectra.operators import air_to_vacuum

WAVE = RAVE_WAVE_AA
PLAIN = ObservingModel(continuum_rms=0.0, fringe_rms=0.0, spike_fraction=0.0)
NO_NOISE = BatchNoise(low_snr_share=0.0)
STILL = Disturbances.none().model_copy(update={"magnitude_rms": 0.0})


def nine_labels(n, seed=0):
    return Population.load().sample(n, np.random.default_rng(seed)).labels[:, :9]


def lines(labels, rng):
    """Flux of a few lines that follow the first three labels."""
    scaled = (labels - labels.mean(axis=0)) / labels.std(axis=0)
    depth = np.zeros((len(labels), WAVE.size))
    for centre in np.linspace(WAVE[0] + 5, WAVE[-1] - 5, 60):
        profile = np.exp(-0.5 * ((WAVE - centre) / 0.9) ** 2)
        strength = 0.25 + 0.04 * scaled[:, :3] @ rng.normal(size=3)
        depth += np.clip(strength, 0.02, 0.8)[:, None] * profile
    return (1.0 - depth).astype(np.float32)


def rms(values):
    return float(np.sqrt(np.mean(np.square(values))))


@pytest.fixture(scope="module")
def stars():
    labels = nine_labels(700)
    return labels, lines(labels, np.random.default_rng(1))


def fit(theory, flux, labels, snr=200.0):
    ivar = np.full(flux.shape, snr**2, np.float32)
    return TheoryCalibration.fit(WAVE, theory, flux.astype(np.float32), ivar=ivar, labels=labels)


def test_calibration_undoes_a_smooth_change_of_line_strength(stars):
    labels, theory = stars
    rng = np.random.default_rng(2)
    metals = (labels[:, 2] - labels[:, 2].mean()) / labels[:, 2].std()
    curve = 0.1 * np.sin((WAVE - WAVE[0]) / 40.0) + 0.02 * metals[:, None]
    clean = theory - (1.0 - theory) * curve
    flux = clean + rng.normal(0, 0.005, clean.shape)
    calibration = fit(theory[:500], flux[:500], labels[:500])
    before, after = (
        rms((theory - clean)[500:]),
        rms(calibration.apply(theory, labels)[500:] - clean[500:]),
    )
    assert after < 0.12 * before
    np.testing.assert_allclose(
        calibration.strength[0], 0.1 * np.sin((WAVE - WAVE[0]) / 40.0), atol=0.03
    )


def test_calibration_of_true_theory_changes_little(stars):
    labels, theory = stars
    flux = theory + np.random.default_rng(3).normal(0, 0.01, theory.shape)
    calibration = fit(theory, flux, labels, snr=100.0)
    assert rms(calibration.apply(theory, labels) - theory) < 0.0015


def test_a_bad_pixel_takes_no_part(stars):
    labels, theory = stars
    wild = theory.copy()
    wild[:, 300] = 40.0
    ivar = np.full(theory.shape, 1e4, np.float32)
    ivar[:, 300] = 0.0
    clean = TheoryCalibration.fit(WAVE, theory, theory, ivar=ivar, labels=labels)
    spoilt = TheoryCalibration.fit(WAVE, theory, wild, ivar=ivar, labels=labels)
    np.testing.assert_allclose(spoilt.apply(theory, labels), clean.apply(theory, labels), atol=1e-6)


def test_scatter_of_cores_and_continuum_is_measured(stars):
    labels, theory = stars
    rng = np.random.default_rng(4)
    core = np.exp(-0.5 * ((WAVE - 8542.09) / 0.8) ** 2)
    x = np.linspace(-1, 1, WAVE.size)
    flux = theory - 0.03 * rng.normal(size=(700, 1)) * core
    flux = flux * (
        1 + 0.005 * rng.normal(size=(700, 1)) + 0.004 * np.sqrt(3) * rng.normal(size=(700, 1)) * x
    )
    white = rng.normal(size=(700, WAVE.size + 2))
    side = 0.247
    noise = (white[:, 1:-1] + side * (white[:, 2:] + white[:, :-2])) / np.sqrt(1 + 2 * side**2)
    flux = flux + noise / 100.0
    calibration = fit(theory, flux, labels, snr=100.0)
    pixel = np.argmin(abs(WAVE - 8542.09))
    scatter = np.sqrt((calibration.core_modes**2).sum(axis=0))
    assert scatter[pixel] == pytest.approx(0.03, rel=0.15)
    assert not scatter[np.abs(WAVE - 8600) < 20].any()
    size = np.sqrt(np.mean(calibration.continuum_modes**2, axis=1))
    assert size[:2] == pytest.approx([0.005, 0.004], rel=0.15)
    assert np.all(size[2:] < 0.002)


CORES = (8498.02, 8542.09, 8662.14)


def observed_with_cores(theory, rng, *, scatter=0.03, snr=100.0):
    """Noisy stars whose three Ca II cores are deeper or shallower, each by its own draw."""
    cores = np.stack([np.exp(-0.5 * ((WAVE - c) / 0.8) ** 2) for c in CORES])
    n = len(theory)
    flux = theory - scatter * rng.normal(size=(n, 3)) @ cores
    white, kernel = rng.normal(size=(n, WAVE.size + 2)), noise_kernel(RAVE_CORRELATION)
    noise = sum(k * white[:, j : j + WAVE.size] for j, k in enumerate(kernel))
    return (flux + noise / snr).astype(np.float32), np.full(flux.shape, snr**2, np.float32)


def masks(kind, shape, rng):
    """Good pixels (n_star, n_pixel) of a kind of mask."""
    good = np.ones(shape, dtype=bool)
    if kind == "spikes in one core":
        # As marking cosmic rays does: a few stars lose three pixels around a centre.
        pixel = int(np.argmin(np.abs(WAVE - CORES[0])))
        good[rng.random(shape[0]) < 0.03, pixel - 1 : pixel + 2] = False
    elif kind == "blocks":
        for row in np.flatnonzero(rng.random(shape[0]) < 0.5):
            for first in rng.integers(0, shape[1], 3):
                good[row, first : first + 40] = False
    else:
        good = rng.random(shape) >= float(kind)
    return good


@pytest.mark.parametrize("kind", ["0.005", "0.05", "0.2", "blocks", "spikes in one core"])
def test_bad_pixels_do_not_change_the_scatter_that_is_measured(stars, kind):
    labels, theory = stars
    rng = np.random.default_rng(12)
    flux, ivar = observed_with_cores(theory, rng)
    good = masks(kind, flux.shape, rng)
    whole = TheoryCalibration.fit(WAVE, theory, flux, ivar=ivar, labels=labels)
    cut = TheoryCalibration.fit(
        WAVE, theory, np.where(good, flux, -50.0), ivar=ivar * good, labels=labels
    )
    pixels = [int(np.argmin(np.abs(WAVE - centre))) for centre in CORES]
    expected, got = (
        np.sqrt((one.core_modes**2).sum(axis=0))[pixels].astype(float) for one in (whole, cut)
    )
    # The scatter of 525 stars is known to 3 %, that of four fifths of them differs by half of it.
    np.testing.assert_allclose(expected, 0.03, rtol=0.1)
    np.testing.assert_allclose(got, expected, rtol=0.05)
    sizes = [np.sqrt(np.mean(one.continuum_modes**2, axis=1)) for one in (whole, cut)]
    np.testing.assert_allclose(sizes[1], sizes[0], atol=4e-4)


@pytest.mark.parametrize("share", [0.05, 0.5])
def test_a_bad_pixel_does_not_count_as_agreeing_with_theory(stars, share):
    labels, theory = stars
    rng = np.random.default_rng(13)
    clean = theory - 0.15 * (1 - theory)
    good = rng.random(theory.shape) >= share
    good[:, 100:110] = rng.random((700, 10)) >= 0.9
    ivar = np.where(good, 1e4, 0).astype(np.float32)
    calibration = TheoryCalibration.fit(
        WAVE, theory, np.where(good, clean, np.nan).astype(np.float32), ivar=ivar, labels=labels
    )
    left = np.mean(calibration.apply(theory, labels) - clean, axis=0)
    before = np.mean(theory - clean, axis=0)
    assert rms(left) < 0.02 * rms(before)
    # Nine of ten stars lack these pixels: counted as agreeing, they would leave nearly all of it.
    assert rms(left[100:110]) < 0.05 * rms(before[100:110])


def test_stars_of_few_pixels_and_of_none_are_no_stars_of_low_noise(stars):
    labels, theory = stars
    rng = np.random.default_rng(14)
    flux, ivar = observed_with_cores(theory, rng)
    worst = np.zeros_like(ivar)
    worst[:, ::3] = ivar[:, ::3]
    worst[:600] = ivar[:600]
    worst[690:] = 0.0
    calibration = TheoryCalibration.fit(WAVE, theory, flux, ivar=worst, labels=labels)
    scatter = np.sqrt((calibration.core_modes**2).sum(axis=0))
    assert scatter[int(np.argmin(np.abs(WAVE - CORES[1])))] == pytest.approx(0.03, rel=0.1)
    assert np.isfinite(calibration.pixel).all()


def test_drawn_stars_keep_the_relations_of_the_labelled_ones():
    labels = nine_labels(300)
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(9, 4)) / labels.std(axis=0)[:, None]
    observables = labels @ matrix - 1e6
    drawn, seen = draw_around(labels, observables, 5000, rng)
    np.testing.assert_allclose(seen, drawn @ matrix - 1e6, rtol=1e-9)
    spread = drawn.std(axis=0) / labels.std(axis=0)
    assert np.all((spread > 0.9) & (spread < 1.8))


def test_rare_stars_are_drawn_oftener():
    labels = nine_labels(400)
    labels[0, 2] = labels[:, 2].min() - 1.0
    none = np.zeros((400, 0))
    shares = []
    for tail in (0.0, 1.0):
        config = DrawConfig(step=0.0, tail=tail)
        drawn, _ = draw_around(labels, none, 40_000, np.random.default_rng(6), config=config)
        shares.append(np.mean(drawn[:, 2] == labels[0, 2]))
    assert shares[0] == pytest.approx(1 / 400, rel=0.4)
    assert shares[1] > 2 * shares[0]


def test_lone_stars_are_spread_wider():
    labels = nine_labels(400)
    labels[0, 2] = labels[:, 2].min() - 1.0
    none = np.zeros((400, 0))
    spreads = []
    for widen in (0.0, 1.0):
        config = DrawConfig(step=0.1, widen=widen)
        drawn, _ = draw_around(labels, none, 40_000, np.random.default_rng(6), config=config)
        near = np.abs(drawn[:, 2] - labels[0, 2]) < 0.5
        spreads.append(drawn[near, 2].std())
    assert spreads[1] > 1.5 * spreads[0]


def test_free_abundances_vary_on_their_own():
    labels = nine_labels(300)
    none = np.zeros((300, 0))
    rngs = (np.random.default_rng(6), np.random.default_rng(6))
    tied, free = (
        draw_around(labels, none, 20_000, rng, config=DrawConfig(free_share=share))[0]
        for rng, share in zip(rngs, (0.0, 0.5), strict=True)
    )
    np.testing.assert_array_equal(free[:, :4], tied[:, :4])
    moved = free[:, 4:] - tied[:, 4:]
    some = (moved != 0).all(axis=1)
    assert some.mean() == pytest.approx(0.5, abs=0.02)
    assert (moved[~some] == 0).all()
    correlation = np.corrcoef(moved[some].T)[np.triu_indices(5, 1)]
    assert np.abs(correlation).max() < 0.06


def test_missing_observables_stay_missing_and_positive_ones_positive():
    labels = nine_labels(200)
    rng = np.random.default_rng(7)
    observables = np.column_stack(
        [np.full(200, np.nan), rng.exponential(0.1, 200), rng.normal(size=200)]
    )
    observables[::10, 2] = np.nan
    drawn, seen = draw_around(labels, observables, 2000, rng, config=DrawConfig(step=0.8))
    assert np.isnan(seen[:, 0]).all()
    assert (seen[:, 1] >= 0).all()
    assert 0.1 < np.isnan(seen[:, 2]).mean() < 0.45
    assert np.isfinite(drawn).all()


@pytest.fixture(scope="module")
def star_simulator():
    rng = np.random.default_rng(8)
    stars = Population.load().sample(240, rng)
    emulator = Emulator.load()
    labels = emulator.clip(stars.labels)
    instrument = Spectrograph(
        emulator.wave_aa, WAVE, emulator.spec.resolving_power, ObservingModel()
    )
    seen = instrument.observe(emulator.flux(labels), labels, rng)
    return TrainingStarSimulator.fit(
        WAVE,
        seen.flux,
        seen.ivar,
        labels=labels[:, :9],
        observables=stars.magnitudes,
        observing=PLAIN,
    )


def test_snr_of_the_labelled_stars_is_that_of_their_ivar(star_simulator):
    drawn = ObservingModel()
    assert np.median(star_simulator.snr) == pytest.approx(drawn.snr_median, rel=0.1)


def test_a_batch_has_the_noise_that_it_says(star_simulator):
    pool = star_simulator.pool(150, np.random.default_rng(9), noise=NO_NOISE, disturbances=STILL)
    still = dataclasses.replace(
        pool,
        calibration=dataclasses.replace(
            pool.calibration,
            core_modes=np.zeros((0, WAVE.size), np.float32),
            continuum_modes=np.zeros((0, WAVE.size), np.float32),
        ),
    )
    flux, ivar, observables, labels = still.batch(400, np.random.default_rng(10))
    row = [int(np.flatnonzero((pool.labels == one).all(axis=1))[0]) for one in labels]
    np.testing.assert_array_equal(observables, pool.observables[row])
    pull = (flux - pool.flux[row]) * np.sqrt(ivar)
    assert np.std(pull[:, 50:-50]) == pytest.approx(1.0, abs=0.02)
    assert np.mean(pull[:, :-1] * pull[:, 1:]) == pytest.approx(0.44, abs=0.03)
    lively = pool.batch(400, np.random.default_rng(10))[0]
    assert rms(lively - pool.flux[row]) > rms(flux - pool.flux[row])


def test_a_batch_has_low_snr_as_often_as_set(star_simulator):
    noise = BatchNoise(low_snr_share=0.5)
    pool = star_simulator.pool(50, np.random.default_rng(11), noise=noise)
    flux, ivar, _, _ = pool.batch(1500, np.random.default_rng(12))
    snr = np.sqrt(np.median(ivar, axis=1))
    assert np.mean(snr < 20) == pytest.approx(0.5 * np.log(2) / np.log(10), abs=0.05)
    assert np.isfinite(flux).all()


def test_pools_follow_their_seed(star_simulator):
    first, again, other = (star_simulator.pool(20, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(first.flux, again.flux)
    assert not np.array_equal(first.labels, other.labels)


def test_stars_observed_anew_keep_their_labels_and_observables(star_simulator):
    chosen = np.arange(100, 140)
    observables = star_simulator.observables[chosen].copy()
    observables[::3, 0] = np.nan
    few = star_simulator.of(star_simulator.labels[chosen], observables)
    np.testing.assert_array_equal(
        few.theory(star_simulator.labels[:5]), star_simulator.theory(star_simulator.labels[:5])
    )
    pool = few.pool(
        300, np.random.default_rng(14), draw=REOBSERVED, noise=NO_NOISE, disturbances=STILL
    )
    apart = np.abs(pool.labels[:, None] - few.labels).max(axis=2)
    parent = apart.argmin(axis=1)
    assert apart.min(axis=1).max() < 1e-9
    np.testing.assert_array_equal(pool.observables, few.observables[parent])
    assert np.unique(parent).size > 35
    first, second = np.flatnonzero(parent == np.bincount(parent).argmax())[:2]
    assert rms(pool.flux[first] - pool.flux[second]) > 1e-3, "their other abundances vary"


def test_calibrated_theory_is_near_the_pool(star_simulator):
    pool = star_simulator.pool(100, np.random.default_rng(13))
    assert rms(star_simulator.theory(pool.labels) - pool.flux) < 0.02
    broken = pool.labels[:2].copy()
    broken[0, 3] = np.nan
    assert np.isnan(star_simulator.theory(broken)).all(axis=1).tolist() == [True, False]


def test_a_simulator_goes_through_arrays(star_simulator):
    arrays, about = star_simulator.to_arrays()
    again = TrainingStarSimulator.from_arrays(arrays, about)
    np.testing.assert_array_equal(
        again.theory(star_simulator.labels[:5]), star_simulator.theory(star_simulator.labels[:5])
    )
    assert again.observing == star_simulator.observing
    with pytest.raises(ModelFileError, match="another emulator"):
        TrainingStarSimulator.from_arrays(arrays, {**about, "emulator": "0" * 64})
    with pytest.raises(ModelFileError, match="damaged"):
        TrainingStarSimulator.from_arrays(
            {k: v for k, v in arrays.items() if k != "calibration.pixel"}, about
        )


def test_a_grid_beyond_the_emulator_names_the_other_presets():
    with pytest.raises(ConfigError, match="--preset guiglion2020"):
        TrainingStarSimulator.require_grid(np.linspace(8300.0, 8500.0, 100), "air", PLAIN)
    TrainingStarSimulator.require_grid(WAVE, "air", PLAIN)


def test_vacuum_wavelengths_are_taken_for_what_they_are(star_simulator):
    kwargs = {
        "labels": star_simulator.labels,
        "observables": star_simulator.observables,
        "observing": PLAIN,
        "medium": "vacuum",
    }
    flux = star_simulator.theory(star_simulator.labels)
    ivar = np.full_like(flux, 1e4)
    moved = TrainingStarSimulator.fit(np.asarray(air_to_vacuum(WAVE)), flux, ivar, **kwargs)
    np.testing.assert_allclose(moved.wave_aa, WAVE, atol=1e-4)


def test_observing_in_two_steps_is_observing(star_simulator):
    emulator = Emulator.load()
    labels = emulator.clip(Population.load().complete(star_simulator.labels[:6]))
    flux, snr = emulator.flux(labels), np.full(6, 40.0)
    instrument = Spectrograph(emulator.wave_aa, WAVE, 20000.0, ObservingModel())
    whole = instrument.observe(flux, labels, np.random.default_rng(3), snr=snr)
    rng = np.random.default_rng(3)
    parts = instrument.degrade(instrument.disperse(flux, labels, rng).flux, snr, rng)
    np.testing.assert_array_equal(parts[0], whole.flux)
    np.testing.assert_array_equal(parts[1], whole.ivar)
    typical = [instrument.disperse(flux, labels) for _ in range(2)]
    np.testing.assert_array_equal(typical[0].flux, typical[1].flux)
    assert not typical[0].rv_kms.any()


def test_nuisance_labels_of_given_stars_scatter_as_in_the_population():
    population = Population.load()
    drawn = population.sample(6000, np.random.default_rng(14)).labels
    full = population.complete(drawn[:, :9], np.random.default_rng(15))
    np.testing.assert_array_equal(full[:, :9], drawn[:, :9])
    np.testing.assert_allclose(full[:, 9:].mean(axis=0), drawn[:, 9:].mean(axis=0), atol=0.02)
    np.testing.assert_allclose(full[:, 9:].std(axis=0), drawn[:, 9:].std(axis=0), rtol=0.1)
    typical = population.complete(drawn[:, :9])
    assert np.all(typical.std(axis=0)[10:] < 1e-12)
