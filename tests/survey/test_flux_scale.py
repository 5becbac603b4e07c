"""Fluxes in physical units, whose inverse variances single precision cannot hold."""

import numpy as np
import pytest
from astropy.io import fits

from maury.survey.readers import ingest_toml

WAVE = 8480.0 + 0.4 * np.arange(60)
STATED = '[wavelength]\nmedium = "air"\nstart = 8480.0\nstep = 0.4\n'


def spectra(n=6, seed=1):
    rng = np.random.default_rng(seed)
    level = rng.uniform(0.3, 3.0, (n, 1))
    return level * rng.normal(1.0, 0.02, (n, WAVE.size)), np.full((n, WAVE.size), 0.02) * level


def ingested(folder, scale, noise):
    flux, error = (part * scale for part in spectra())
    error[2, 5:9] = 0.0
    known = np.where(error > 0, error, 1.0)
    values = {"error": error, "ivar": np.where(error > 0, known**-2.0, 0.0)}
    given = {} if noise is None else {noise: values[noise]}
    np.savez(folder / "s.npz", id=[f"s{k}" for k in range(6)], flux=flux, **given)
    text = '[spectra]\nfile = "s.npz"\nid = "id"\n' + (f'{noise} = "{noise}"\n' if noise else "")
    (folder / "s.toml").write_text(text + STATED)
    return ingest_toml(folder / "s.toml", folder / "o.zarr", overwrite=True)


@pytest.mark.parametrize("noise", ["error", "ivar", None])
@pytest.mark.parametrize("exponent", [-18, -28, -40, 25])
def test_any_unit_of_flux_gives_the_same_spectra(tmp_path, noise, exponent):
    plain = ingested(tmp_path, 1.0, noise)
    assert "flux_scale" not in plain.provenance["options"]
    wanted, snr = plain.batch(0, 6).spectra, plain.column("snr")
    survey = ingested(tmp_path, 10.0**exponent, noise)
    found = survey.batch(0, 6).spectra
    assert survey.provenance["options"]["flux_scale"] == [pytest.approx(10.0**-exponent, rel=1e-12)]
    # Both were rounded to single precision.
    np.testing.assert_allclose(found.flux, wanted.flux, rtol=3e-7)
    np.testing.assert_allclose(found.ivar, wanted.ivar, rtol=1e-3 if noise is None else 1e-6)
    assert (found.ivar > 0).sum() == 6 * WAVE.size - 4 * (noise is not None)
    np.testing.assert_allclose(survey.column("snr"), snr, rtol=1e-3)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e-10])
def test_fluxes_that_single_precision_holds_are_stored_as_they_are(tmp_path, scale):
    survey = ingested(tmp_path, scale, "error")
    flux = (spectra()[0] * scale).astype(np.float32)
    np.testing.assert_array_equal(survey.batch(0, 6).spectra.flux, flux)


def test_one_file_a_star(tmp_path):
    flux, error = (part * 1e-18 for part in spectra())
    (tmp_path / "files").mkdir()
    for k in range(6):
        columns = [
            fits.Column(name, "D", array=values)
            for name, values in (("wave", WAVE), ("flux", flux[k]), ("err", error[k]))
        ]
        fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "files" / f"s{k}.fits")
    text = '[spectra]\nfolder = "files"\nerror = "err"\n[wavelength]\nmedium = "air"\n'
    (tmp_path / "s.toml").write_text(text)
    found = ingest_toml(tmp_path / "s.toml", tmp_path / "o.zarr").batch(0, 6).spectra
    np.testing.assert_allclose(found.flux, flux * 1e18, rtol=3e-7)
    np.testing.assert_allclose(found.ivar, (error * 1e18) ** -2.0, rtol=1e-6)
