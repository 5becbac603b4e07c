import numpy as np
import pytest

from maury.simulation.emulator import Emulator
from maury.simulation.observing import ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.simulation.rest_frame import RestFrameTheory


@pytest.fixture(scope="module")
def emulator():
    return Emulator.load()


@pytest.mark.parametrize("power", [7500.0, 11500.0])
def test_rest_frame_theory_is_dispersed_theory(emulator, power):
    wave = 8420.0 + 0.4 * np.arange(912)
    model = ObservingModel(resolving_power=power)
    spectrograph = Spectrograph(emulator.wave_aa, wave, emulator.spec.resolving_power, model)
    population = Population.load()
    labels = population.sample(400, np.random.default_rng(1)).labels[:, :9].copy()
    labels[::2, 0] = np.linspace(3600.0, 7280.0, 200)
    full = emulator.clip(population.complete(labels))
    expected = spectrograph.disperse(emulator.flux(full), full).flux
    got = RestFrameTheory.prepare(emulator, spectrograph).flux(full)
    assert got.dtype == np.float32
    assert np.ptp(expected) > 0.5
    np.testing.assert_allclose(got, expected, atol=2e-4)


def test_unknown_labels_are_unknown_flux(emulator):
    wave = 8420.0 + 0.4 * np.arange(912)
    spectrograph = Spectrograph(
        emulator.wave_aa, wave, emulator.spec.resolving_power, ObservingModel()
    )
    labels = np.tile(emulator.bounds.mean(axis=1), (2, 1))
    labels[0, 3] = np.nan
    flux = RestFrameTheory.prepare(emulator, spectrograph).flux(labels)
    assert np.isnan(flux[0]).all()
    assert np.isfinite(flux[1]).all()
