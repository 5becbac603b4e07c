"""Operators and the emulator as a source: every derivative against differences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_scale
from maury.methods.fitting.chain import (
    Broadening,
    Calibrated,
    Chain,
    Continuum,
    Modes,
    Shift,
)
from maury.methods.fitting.pixel_width import PixelWidth
from maury.methods.fitting.residuals import residual_modes, residual_variance
from maury.methods.fitting.theory import (
    OFFSETS,
    EmulatorSource,
    draw_nuisances,
    observed_chain,
    shipped_emulator,
    typical_labels,
)
from maury.methods.protocols import ForwardModel
from maury.simulation.observing import RAVE_WAVE_AA, TRAINING_CONDITIONS, Spectrograph
from maury.simulation.theory_calibration import TheoryCalibration

WAVE = RAVE_WAVE_AA[200:500]
STEPS = {
    "teff": 2.0,
    "rv_kms": 0.3,
    "ln_resolving_power": 0.02,
    "ln_rotation": 0.05,
} | {f"{name}_{k}": 0.1 for name in ("core", "continuum", "residual") for k in range(1, 9)}


def made_calibration(seed=5):
    rng = np.random.default_rng(seed)
    centre, scale = robust_scale(typical_labels(500, 1))
    return TheoryCalibration(
        centre,
        scale,
        0.05 * rng.normal(size=(4, WAVE.size)),
        0.003 * rng.normal(size=(16, WAVE.size)),
        0.01 * rng.normal(size=(2, WAVE.size)).astype(np.float32),
        0.01 * rng.normal(size=(3, WAVE.size)).astype(np.float32),
    )


NONE = np.zeros(WAVE.size, dtype=np.float32)
CHAINS = {
    "theory": observed_chain(WAVE, None, NONE),
    "calibrated": observed_chain(WAVE, made_calibration(), NONE),
    "bare": observed_chain(WAVE, made_calibration(), NONE, nuisances=False),
}


def differences(model, labels):
    """Worst relative difference of each derivative from central differences."""
    jacobian = model.evaluate(labels).jacobian
    out = {}
    for k, name in enumerate(model.label_names):
        step = np.zeros(labels.shape[1])
        step[k] = STEPS.get(name, 0.005)
        ends = [
            model.evaluate(labels + sign * step, jacobian=False).flux.astype(float)
            for sign in (1, -1)
        ]
        numeric = (ends[0] - ends[1]) / (2 * step[k])
        out[name] = np.abs(numeric - jacobian[:, k]).max() / np.abs(numeric).max()
    return out


@pytest.mark.parametrize("name", CHAINS)
@given(seed=st.integers(0, 2**31))
@settings(max_examples=5, deadline=None)
def test_derivatives_of_chains(name, seed):
    model = CHAINS[name]
    rng = np.random.default_rng(seed)
    nine = typical_labels(3, seed)
    # Typical rotation sets in at 6000 K with a kink.
    nine[:, 0] = np.clip(nine[:, 0], 4100, 5950)
    labels = draw_nuisances(model, nine, 1.3, rng)
    worst = differences(model, labels)
    assert max(worst.values()) < 0.02, worst


def test_chains_are_forward_models_with_finite_bounds():
    for model in CHAINS.values():
        assert isinstance(model, ForwardModel)
        assert np.isfinite(model.bounds).all()
        assert (model.bounds[:, 0] < model.bounds[:, 1]).all()


def test_the_chain_is_what_the_spectrograph_observes():
    emulator = shipped_emulator()
    spectrograph = Spectrograph(
        emulator.wave_aa, WAVE, emulator.spec.resolving_power, TRAINING_CONDITIONS
    )
    nine = typical_labels(4, 2)
    source = EmulatorSource()
    full = source.complete(nine)
    model = Chain(source, (Broadening(spectrograph),), WAVE, NONE)
    labels = np.column_stack([nine, np.zeros((4, 3))])
    expected = spectrograph.disperse(emulator.flux(full), full).flux
    assert model.evaluate(labels).flux == pytest.approx(expected, abs=1e-5)
    labels[:, -3] = 7.0
    rotation, macroturbulence = spectrograph.typical_broadening(nine[:, 0])
    moved = spectrograph.broaden(
        emulator.flux(full),
        resolving_power=TRAINING_CONDITIONS.resolving_power,
        rotation_kms=rotation,
        macroturbulence_kms=macroturbulence,
        rv_kms=7.0,
    )
    assert model.evaluate(labels).flux == pytest.approx(moved, abs=1e-5)


def test_calibration_is_that_of_the_star_simulator():
    calibration = made_calibration()
    nine = np.tile(calibration.centre, (2, 1))
    theory = np.random.default_rng(1).uniform(0.4, 1, (2, 1, WAVE.size)).astype(np.float32)
    seen, _ = Calibrated(calibration, LABEL_NAMES).apply(theory, nine, slopes=False)
    assert seen[:, 0] == pytest.approx(calibration.apply(theory[:, 0], nine), abs=1e-6)


def test_far_labels_move_a_smooth_calibration_no_more():
    calibration = made_calibration()
    far = calibration.centre + 6 * calibration.scale
    slopes = calibration.change_slopes(far[None])
    assert all(np.abs(part * calibration.scale[:, None]).max() < 1e-3 for part in slopes)


def test_offsets_are_relative_to_what_is_typical():
    source = EmulatorSource(("off_ca",))
    nine = typical_labels(3, 4)
    zero, more = (source.complete(np.column_stack([nine, np.full(3, x)])) for x in (0.0, 0.1))
    assert (more - zero).sum(axis=1) == pytest.approx(0.1)
    assert source.label_names == (*LABEL_NAMES, "off_ca")
    assert set(OFFSETS) > {"off_vmic", "off_cr"}


@given(velocity=st.floats(-5, 5))
@settings(max_examples=20, deadline=None)
def test_small_shifts_move_lines(velocity):
    centre, width = WAVE.mean(), 1.2

    def line(wave):
        return 1 - 0.5 * np.exp(-0.5 * ((wave - centre) / width) ** 2)

    shift = Shift(WAVE)
    rows = line(WAVE)[None, None].astype(np.float32)
    seen, slope = shift.apply(rows, np.array([[velocity]]), slopes=True)
    expected = line(WAVE / (1 + velocity / 299792.458))
    assert seen[0, 0] == pytest.approx(expected, abs=6e-4)
    ends = [
        shift.apply(rows, np.array([[velocity + d]]), slopes=False)[0].astype(float)
        for d in (0.5, -0.5)
    ]
    assert slope[0, 0] == pytest.approx((ends[0] - ends[1])[0, 0], abs=1e-5)


def test_modes_add_and_continuum_multiplies():
    rows = np.full((1, 2, 4), 0.5, dtype=np.float32)
    patterns = np.ones((1, 4), dtype=np.float32)
    added, by_mode = Modes(patterns, "x").apply(rows, np.array([[0.1]]), slopes=True)
    assert added[0, :, 0].tolist() == pytest.approx([0.6, 0.5])
    assert by_mode[0, 0, 0] == 1.0
    times, by_level = Continuum(patterns).apply(rows, np.array([[0.1]]), slopes=True)
    assert times[0, :, 0].tolist() == pytest.approx([0.55, 0.55])
    assert by_level[0, 0, 0] == 0.5


def test_patterns_of_residuals_are_found_and_noise_is_not():
    rng = np.random.default_rng(3)
    n, pixels = 1200, 200
    pattern = 0.02 * np.sin(np.linspace(0, 9, pixels))
    noise = 0.02 * rng.normal(size=(n, pixels))
    ivar = np.full((n, pixels), 2500, dtype=np.float32)
    zero = np.zeros((n, pixels), dtype=np.float32)
    hidden = (noise + rng.normal(size=(n, 1)) * pattern).astype(np.float32)
    found = residual_modes(hidden, ivar, zero, count=4)
    assert len(found) == 1
    assert abs(np.corrcoef(found[0], pattern)[0, 1]) > 0.97
    assert np.linalg.norm(found[0]) == pytest.approx(np.linalg.norm(pattern), rel=0.1)
    assert len(residual_modes(noise.astype(np.float32), ivar, zero, count=4)) == 0


def test_variance_beyond_noise_is_measured():
    rng = np.random.default_rng(4)
    ivar = np.full((2000, 50), 2500, dtype=np.float32)
    flux = rng.normal(0, np.hypot(0.02, 0.01), ivar.shape).astype(np.float32)
    found = residual_variance(flux, ivar, np.zeros_like(flux))
    assert found.mean() == pytest.approx(0.01**2, rel=0.15)


@pytest.mark.parametrize("ln_width", [-0.15, 0.0, 0.2])
def test_widths_of_two_terms_broaden_lines_and_keep_their_area(ln_width):
    """Gaussian lines as wide as the resolving power, against the same with another width."""
    power = 7500.0
    centres = np.array([8515.0, 8530.3, 8541.9, 8575.0])

    def lines(factor):
        sigma = centres / power / 2.3548 * factor
        apart = (WAVE - centres[:, None]) / sigma[:, None]
        return 1 - (0.3 / factor * np.exp(-0.5 * apart**2)).sum(axis=0)

    width = PixelWidth(WAVE, power, 0.25, terms=2)
    rows = np.repeat(lines(1.0)[None, None], 2, axis=1).astype(np.float32)
    values = np.array([[ln_width]])
    out, slope = width.apply(rows, values, slopes=True)
    change = max(np.abs(lines(np.exp(ln_width)) - lines(1.0)).max(), 1e-3)
    assert out[0, 0] == pytest.approx(lines(np.exp(ln_width)), abs=0.25 * change)
    assert out[0, 1] == pytest.approx(out[0, 0]), "derivatives are broadened alike"
    ends = [width.apply(rows, values + step, slopes=False)[0][0, 0] for step in (0.01, -0.01)]
    assert slope[0, 0] == pytest.approx((ends[0] - ends[1]) / 0.02, abs=2e-3)
