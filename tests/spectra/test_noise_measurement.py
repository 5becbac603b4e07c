"""Noise is measured on spectra whose lines and continua differ from star to star."""

import numpy as np
import pytest

from maury.errors import SurveyFileError
from maury.spectra.noise import noise_kernel
from maury.spectra.noise_measurement import NoiseMeasurement, measure_noise
from maury.survey.readers import ingest_released
from maury.survey.store import Survey, SurveyWriter

N_PIXEL = 500
WAVE = 8420.0 + 0.4 * np.arange(N_PIXEL)


def observed(correlation, *, n=400, scale=1.0, snr=(20, 120), seed=0, level=1.0):
    """Spectra of lines that saturate, tilted continua, spikes and lost ends; and their ivar."""
    rng = np.random.default_rng(seed)
    lines = sum(
        np.exp(-0.5 * ((WAVE - at) / 0.5) ** 2) for at in np.linspace(8430, 8610, 40)
    ) * rng.uniform(0.1, 0.9, N_PIXEL)
    strength = rng.lognormal(0.0, 0.4, (n, 1))
    clean = np.exp(-strength * lines) * (
        1 + 0.03 * rng.normal(size=(n, 1)) * np.linspace(-1, 1, N_PIXEL)
    )
    sigma = np.broadcast_to(1 / rng.uniform(*snr, (n, 1)), clean.shape)
    kernel = noise_kernel(correlation)
    white = rng.normal(size=(n, N_PIXEL + kernel.size - 1))
    noise = np.stack([np.convolve(row, kernel, mode="valid") for row in white])
    flux = clean + scale * sigma * noise
    flux[rng.integers(0, n, n // 30), rng.integers(0, N_PIXEL, n // 30)] += 1.0
    ivar = sigma**-2
    ivar[: n // 10, :40] = 0.0
    levels = level * rng.uniform(0.5, 2.0, (n, 1))
    return (flux * levels).astype(np.float32), (ivar / levels**2).astype(np.float32)


@pytest.mark.parametrize("scale", [1.0, 1.6])
@pytest.mark.parametrize("correlation", [(), (0.29, 0.02), (0.44, 0.05), (-0.2,), (0.6, 0.2)])
def test_it_is_the_noise_that_was_added(correlation, scale):
    found = measure_noise(*observed(correlation, scale=scale, level=3e-14))
    got = np.pad(found.correlation, (0, 3 - len(found.correlation)))
    np.testing.assert_allclose(got, np.pad(correlation, (0, 3 - len(correlation))), atol=0.03)
    assert found.scale == pytest.approx(scale, rel=0.05)
    assert found.n_spectra == 400


def test_what_lines_add_does_not_count():
    # Of S/N 1000 to 3000 the spectra are all misfit: nothing is better than its correlation.
    found = measure_noise(*observed((), snr=(1000, 3000)))
    assert found is None or np.abs(np.pad(found.correlation, (0, 1))).max() < 0.1


def test_no_measurement_without_what_it_needs():
    flux, ivar = observed((0.3,))
    assert measure_noise(flux[:90], ivar[:90]) is None
    assert measure_noise(flux, np.ones_like(ivar)) is None
    assert measure_noise(flux, np.zeros_like(ivar)) is None
    same = observed((0.3,), snr=(50, 50))
    assert measure_noise(*same) is None


def test_the_rave_like_sample_shares_what_its_description_says(shared, tmp_path):
    survey = ingest_released(shared / "data" / "rave_like", tmp_path / "rave.zarr")
    found = survey.noise_measured
    np.testing.assert_allclose(found.correlation[:2], (0.44, 0.05), atol=0.015)
    assert found.scale == pytest.approx(1.0, abs=0.03)


def written(path, flux, ivar, **options):
    n = len(flux)
    with SurveyWriter(
        path, n_star=n, wave_aa=WAVE, medium="air", simulated=True, **options
    ) as writer:
        names = np.array([f"s{k}" for k in range(n)])
        writer.write(0, flux, ivar, id=names, star_id=names)
    return Survey.open(path)


def test_a_survey_measures_what_nobody_states(tmp_path, caplog):
    flux, ivar = observed((0.29, 0.02), scale=1.6)
    survey = written(tmp_path / "a.zarr", flux, ivar)
    assert survey.noise_correlation == survey.noise_measured.correlation
    assert survey.noise_correlation[0] == pytest.approx(0.29, abs=0.02)
    assert "1.6" in caplog.text
    assert "times their quoted errors" in caplog.text
    stated = written(tmp_path / "b.zarr", flux, ivar, noise_correlation=())
    assert (stated.noise_correlation, stated.noise_measured) == ((), None)
    few = written(tmp_path / "c.zarr", flux[:50], ivar[:50])
    assert (few.noise_correlation, few.noise_measured) == (None, None)


def test_chunks_all_over_a_survey_are_asked(tmp_path):
    low, high = observed((0.29,), snr=(20, 60)), observed((0.29,), snr=(100, 150), seed=1)
    flux, ivar = (np.concatenate(pair) for pair in zip(low, high, strict=True))
    survey = written(tmp_path / "a.zarr", flux, ivar, chunk=100)
    assert survey.noise_measured.n_spectra > 700


@pytest.mark.parametrize(
    "state", [{}, {"correlation": [0.9], "error": 0.1, "scale": 1, "n_spectra": 9}, {"scale": "x"}]
)
def test_damage_is_told(state):
    with pytest.raises(SurveyFileError, match="damaged"):
        NoiseMeasurement.from_dict(state)
