"""DD-Payne: derivatives of network and shift, the guide of theory, the quality flag, fits."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.any_window import FIVE, made
from builders.method_samples import inputs_of, sample_of
from maury.errors import ConfigError, UnknownName
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.labels.statistics import robust_sigma
from maury.methods.dd_payne import DDPayne, DDPayneSettings, _Theory, gradient_correlation
from maury.methods.fitting.chain import PixelShift
from maury.methods.fitting.spectral_network import SpectralNetwork
from maury.simulation.observing import RAVE_WAVE_AA, TRAINING_CONDITIONS

NAMES = ("teff", "logg", "m_h", "mg_fe", "al_fe")
SNR = 150.0


def network(seed, n_label=3, hidden=8, n_pixel=30):
    rng = np.random.default_rng(seed)
    shapes = {
        "weight_0": (n_label, hidden),
        "bias_0": (hidden,),
        "weight_1": (hidden, hidden),
        "bias_1": (hidden,),
        "weight_2": (hidden, n_pixel),
        "bias_2": (n_pixel,),
    }
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return SpectralNetwork(np.zeros(n_label), np.array([2.0, 5.0, 1.0])[:n_label], **arrays)


@given(st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_derivatives_of_the_network(seed):
    net = network(seed)
    labels = np.random.default_rng(seed).uniform(0, 1, (2, 3))
    found = net.evaluate(labels).jacobian
    for k in range(3):
        step = np.zeros(3)
        step[k] = 0.02 * net.highest[k]
        ends = [net.evaluate(labels + s * step, jacobian=False).flux for s in (1, -1)]
        numeric = (ends[0] - ends[1]).astype(float) / (2 * step[k])
        np.testing.assert_allclose(found[:, k], numeric, atol=2e-2 * np.abs(found).max() + 1e-3)


@given(st.floats(-12, 12))
@settings(max_examples=20, deadline=None)
def test_a_shift_moves_lines_by_the_velocity(rv):
    wave = RAVE_WAVE_AA[:200]

    def line(at):
        return 1 - 0.5 * np.exp(-0.5 * ((wave - at) / 0.6) ** 2)

    rows = np.stack([line(8460.0), -0.1 * line(8460.0)])[None].astype(np.float32)
    shift = PixelShift(wave, 15.0)
    out, slope = shift.apply(rows, np.array([[rv]]), slopes=True)
    expected = line(8460.0 * (1 + rv / 299792.458))
    np.testing.assert_allclose(out[0, 0, 5:-5], expected[5:-5], atol=0.01)
    ends = [shift.apply(rows, np.array([[rv + s * 0.1]]), slopes=False)[0][0, 0] for s in (1, -1)]
    np.testing.assert_allclose(slope[0, 0], (ends[0] - ends[1]) / 0.2, atol=1e-4)
    assert shift.apply(rows, np.array([[rv]]), slopes=False)[1] is None


def test_correlation_of_derivatives():
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 3, 4, 50)).astype(np.float32)
    found = gradient_correlation(a, b)
    assert found[1, 2] == pytest.approx(np.corrcoef(a[1, 2], b[1, 2])[0, 1])
    np.testing.assert_allclose(gradient_correlation(a, 2 * a + 1), 1.0)
    assert np.all(gradient_correlation(a, np.zeros_like(a)) == 0)


def stars(n, seed):
    """Spectra of theory itself, of stars whose [Al/Fe] follows [Mg/Fe]."""
    rng = np.random.default_rng(seed)
    truth = np.column_stack(
        [
            rng.uniform(4300, 5600, n),
            rng.uniform(1.0, 4.5, n),
            rng.uniform(-1.0, 0.3, n),
            rng.uniform(-0.2, 0.4, n),
            np.zeros(n),
        ]
    )
    truth[:, 4] = truth[:, 3] + 0.02 * rng.standard_normal(n)
    flux = _Theory(RAVE_WAVE_AA, "air", NAMES, TRAINING_CONDITIONS).evaluate(truth).flux
    flux = flux + rng.standard_normal(flux.shape).astype(np.float32) / SNR
    return truth, flux, np.full(flux.shape, SNR**2, dtype=np.float32)


@pytest.fixture(scope="module")
def trained() -> dict[float, DDPayne]:
    sample = sample_of(*stars(300, 2), names=NAMES)
    quick = {"hidden": 40, "steps": 500, "guides": 200, "guide_size": 8, "batch_size": 48}
    return {
        penalty: DDPayne.train(
            sample,
            sample,
            settings=DDPayneSettings(penalty=penalty, learning_rate=5e-3, **quick),
            seed=0,
        )
        for penalty in (0.0, 3.0)
    }


def test_theory_keeps_labels_that_go_together_apart(trained):
    truth, _, _ = stars(50, 3)
    guided, plain = (np.median(trained[p].agreement(truth), axis=0) for p in (3.0, 0.0))
    assert guided[4] > 0.6
    assert guided[4] > plain[4] + 0.2


def test_labels_with_other_derivatives_than_theory_are_flagged(trained):
    _, flux, ivar = stars(60, 4)
    shares = {
        penalty: np.mean(
            (method.apply(inputs_of(flux, ivar)).flags & Flag.GRADIENT_UNLIKE.value) > 0
        )
        for penalty, method in trained.items()
    }
    assert shares[0.0] > 0.8
    assert shares[3.0] < 0.5 * shares[0.0]


def test_labels_are_recovered(trained):
    truth, flux, ivar = stars(100, 5)
    found = trained[3.0].apply(inputs_of(flux, ivar))
    assert found.label_names == NAMES
    for k in range(3):
        assert robust_sigma(found.labels[:, k] - truth[:, k]) < 0.5 * truth[:, k].std()


def test_quoted_errors_hold_on_spectra_of_the_network(trained):
    method = trained[3.0]
    truth, _, _ = stars(400, 8)
    rng = np.random.default_rng(9)
    clean = method.network.evaluate(truth, jacobian=False).flux
    ivar = np.full(clean.shape, SNR**2, dtype=np.float32)
    noise = np.sqrt(1 / SNR**2 + method.scatter**2) * rng.standard_normal(clean.shape)
    found = method.apply(inputs_of(clean + noise, ivar))
    z = (found.labels - truth) / found.sigma
    assert all(0.88 < robust_sigma(column) < 1.12 for column in z[:, :4].T)


def test_rows_without_pixels_are_nan(trained):
    _, flux, ivar = stars(3, 6)
    ivar[1] = 0.0
    found = trained[3.0].apply(inputs_of(flux, ivar))
    assert np.isnan(found.labels[1]).all()
    assert np.isfinite(found.labels[[0, 2]]).all()
    assert found.flags[1] == 0


def test_it_survives_saving(trained):
    method = trained[3.0]
    arrays, about = method.to_arrays()
    kept = {"settings": method.settings, "label_names": method.label_names}
    again = DDPayne.from_arrays(arrays, json.loads(json.dumps(about)), **kept)
    _, flux, ivar = stars(4, 7)
    seen = inputs_of(flux, ivar)
    np.testing.assert_array_equal(again.apply(seen).labels, method.apply(seen).labels)
    np.testing.assert_array_equal(again.apply(seen).flags, method.apply(seen).flags)


@pytest.mark.slow
def test_the_weight_of_a_label_is_its_own():
    """D_scale: a label of weight zero is as free as without theory, the others are not."""
    sample = sample_of(*stars(300, 2), names=NAMES)
    quick = {"hidden": 40, "steps": 400, "guides": 200, "guide_size": 8, "batch_size": 48}
    quick |= {"penalty": 3.0, "learning_rate": 5e-3, "warm": 0.0}
    free, held = (
        DDPayne.train(sample, sample, settings=DDPayneSettings(scales=scales, **quick), seed=0)
        for scales in ({"al_fe": 0.0}, {})
    )
    truth = stars(50, 3)[0]
    freed, all_held = (np.median(one.agreement(truth), axis=0) for one in (free, held))
    assert freed[4] < all_held[4] - 0.15
    assert abs(freed[0] - all_held[0]) < 0.1
    with pytest.raises(UnknownName, match="did you mean 'al_fe'"):
        DDPayne.train(
            sample, sample, settings=DDPayneSettings(scales={"al_f": 1.0}, **quick), seed=0
        )


def test_theory_that_guides_is_calibrated_where_stars_have_all_labels():
    """Lines a tenth stronger than theory's: slopes of calibrated theory are, too."""
    rng = np.random.default_rng(4)
    low = [4400, 1.2, -0.8, -0.8, 0.0, 0.0, 0.0, 0.0, 0.0]
    high = [5600, 4.4, 0.2, -0.8, 0.25, 0.25, 0.25, 0.25, 0.1]
    truth = rng.uniform(low, high, (200, 9))
    truth[:, 3] = truth[:, 2]
    plain = _Theory(RAVE_WAVE_AA, "air", LABEL_NAMES, TRAINING_CONDITIONS)
    flux = 1 - 1.1 * (1 - plain.evaluate(truth).flux)
    flux += rng.standard_normal(flux.shape).astype(np.float32) / SNR
    sample = sample_of(truth, flux, np.full(flux.shape, SNR**2), names=LABEL_NAMES)
    quick = {"hidden": 16, "steps": 20, "guides": 60, "guide_size": 8, "batch_size": 32}
    methods = [
        DDPayne.train(
            sample, sample, settings=DDPayneSettings(calibrate=calibrate, **quick), seed=0
        )
        for calibrate in (True, False)
    ]
    depth = [
        float(np.mean(1 - one._theory.evaluate(truth[:20]).flux) / np.mean(1 - flux[:20]))
        for one in methods
    ]
    assert depth[0] == pytest.approx(1.0, abs=0.02)
    assert depth[1] == pytest.approx(1 / 1.1, abs=0.02)
    arrays, about = methods[0].to_arrays()
    again = DDPayne.from_arrays(
        arrays, about, settings=methods[0].settings, label_names=methods[0].label_names
    )
    np.testing.assert_array_equal(again.agreement(truth[:5]), methods[0].agreement(truth[:5]))


def test_elsewhere_it_is_guided_by_what_the_stars_teach():
    sample = made(FIVE, 300, 1)
    quick = {"hidden": 24, "steps": 60, "guides": 100}
    method = DDPayne.train(sample, sample, settings=DDPayneSettings(**quick), seed=0)
    assert method.learnt is not None
    arrays, about = method.to_arrays()
    kept = {"settings": method.settings, "label_names": method.label_names}
    again = DDPayne.from_arrays(arrays, json.loads(json.dumps(about)), **kept)
    np.testing.assert_array_equal(
        again.agreement(sample.truth[:5]), method.agreement(sample.truth[:5])
    )
    arrays["learnt.powers"] = arrays["learnt.powers"] + 1000
    with pytest.raises(ValueError, match="powers"):
        DDPayne.from_arrays(arrays, about, **kept)
    with pytest.raises(ConfigError, match="resolving_power"):
        DDPayne.train(sample, sample, settings=DDPayneSettings(theory="emulator", **quick), seed=0)


def test_theory_knows_its_labels_and_pixels():
    with pytest.raises(ConfigError, match="no label c_fe"):
        _Theory(RAVE_WAVE_AA, "air", ("teff", "c_fe"), TRAINING_CONDITIONS)
    with pytest.raises(ConfigError, match="lacks pixels"):
        _Theory(RAVE_WAVE_AA + 500.0, "air", NAMES, TRAINING_CONDITIONS)


def test_it_is_a_theory_for_others(trained):
    method = trained[3.0]
    theory = method.as_theory()
    truth = stars(40, 3)[0]
    columns, labels, flux = theory.drawn(NAMES[::-1], truth[:, ::-1], count=9, seed=1)
    assert columns == [0, 1, 2, 3, 4]
    expected = method.network.evaluate(labels[:, ::-1], jacobian=False).flux
    np.testing.assert_array_equal(flux, expected)
    assert theory.resolving_power == 7500.0
