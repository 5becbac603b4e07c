"""Simulated XP coefficients: of the published shape, size and noise, and called simulated."""

import zipfile

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from maury.cli.app import app
from maury.errors import ColumnError, ConfigError
from maury.labels.columns import part_names
from maury.simulation import xp_coefficients as xp
from maury.simulation.energy_distribution import WAVE_NM, energy_distribution
from maury.simulation.xp_noise import relevant_bases
from maury.spectra.observable_groups import XpCoefficients
from maury.survey.store import Survey, SurveyWriter

pytest.importorskip("dust_extinction")
PLANCK_NM_K = 1.438776877e7


def distribution(teff, logg=4.4, m_h=0.0, alpha_m=0.0):
    values = (np.array([float(value)]) for value in (teff, logg, m_h, alpha_m))
    return energy_distribution(*values)[0]


def at(flux, nm):
    return np.interp(nm, WAVE_NM, flux)


def test_the_sun_has_its_continuum_and_its_blanketing():
    # Solar flux at 1 au less the lines of the atmosphere (Gueymard 2004, Sol. Energy 76, 423, in
    # steps of some 20 nm): W / m2 / nm.
    known = {450: 2.05, 550: 1.87, 650: 1.56, 750: 1.26, 850: 0.98, 1000: 0.73}
    sun = distribution(5772, 4.438)
    scale = at(sun, 550) / known[550]
    for nm, value in known.items():
        assert at(sun, nm) / scale == pytest.approx(value, rel=0.12), nm
    assert at(sun, 380) / scale == pytest.approx(1.12, rel=0.35)


def test_labels_leave_their_marks():
    hot, cool = distribution(7000, 4.2), distribution(4500, 4.6)
    assert at(hot, 450) / at(hot, 800) > 2.5 * at(cool, 450) / at(cool, 800)
    # The Balmer jump is larger where the electrons are fewer: in giants of the same Teff.
    jump = [at(f, 375) / at(f, 354) for f in (distribution(7000, 2.5), distribution(7000, 4.5))]
    assert jump[0] > jump[1] > 1.1
    rich, poor = distribution(5000, 2.5, 0.3), distribution(5000, 2.5, -1.5)
    assert at(poor, 390) / at(poor, 700) > 1.3 * at(rich, 390) / at(rich, 700)
    # Magnesium b of dwarfs is strong, and grows with the alpha elements.
    depths = [
        1 - at(f, 517.5) / (0.5 * (at(f, 504) + at(f, 540)))
        for f in (distribution(4800, 4.6, 0, 0.3), distribution(4800, 4.6), distribution(4800, 2.0))
    ]
    assert depths[0] > depths[1] > depths[2]
    # The head of a band of TiO, of the coolest alone.
    steps = [at(f, 708) / at(f, 703) for f in (distribution(3700, 4.7), distribution(4600, 4.7))]
    assert steps[0] < 0.8
    assert steps[1] == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("name", ["bp", "rp"])
def test_the_basis_is_orthonormal(name):
    arm = xp.Arm.load(name)
    np.testing.assert_allclose(arm.transformation @ arm.transformation.T, np.eye(55), atol=1e-6)
    argument = np.linspace(-14, 14, 2001)
    functions = xp.hermite_functions(argument, 30)
    product = functions @ functions.T * (argument[1] - argument[0])
    np.testing.assert_allclose(product, np.eye(30), atol=1e-10)


@pytest.fixture
def published(shared, tmp_path):
    """Return coefficients of a published spectrum, and the same sampled in wavelength."""
    file = shared / "real" / "gaia" / "gaia_dl_fits.zip"
    if not file.is_file():
        pytest.skip("the public files are not beside the reference data")
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path)
    return [Table.read(next(tmp_path.glob(f"XP_{kind}*"))) for kind in ("CONTINUOUS", "SAMPLED")]


@pytest.mark.parametrize("name", ["bp", "rp"])
def test_a_published_spectrum_has_its_published_coefficients(published, name):
    coefficients, sampled = published
    values = np.array(coefficients[f"{name}_coefficients"][0])
    arm = xp.Arm.load(name)
    wave, flux = (np.array(sampled[part], dtype=float).ravel() for part in ("wavelength", "flux"))
    energy = np.interp(WAVE_NM, wave, flux)
    found = arm.projection @ energy
    found *= (arm.basis.sum(axis=1) @ values) / (arm.basis.sum(axis=1) @ found)
    # Sampled in 2 nm and interpolated in 3 nm, cut at 336 and 1020 nm: not better than this.
    np.testing.assert_allclose(found[:20], values[:20], atol=0.004 * values[0])
    # The first coefficient tells the flux in the band: W / m2 / nm become electrons a second in a
    # pupil of .7278 m2.
    response = np.interp(wave, *arm.response)
    electrons = flux * response * wave * 1e-9 / (6.62607e-34 * 2.99792e8) * 0.7278
    total = (arm.basis.sum(axis=1) * xp._STEP) @ values
    assert total == pytest.approx(np.trapezoid(electrons, wave), rel=0.02)


@pytest.mark.parametrize(("name", "magnitude", "n"), [("bp", 14.287, 22), ("rp", 13.247, 12)])
def test_errors_and_truncation_are_those_of_a_published_spectrum(published, name, magnitude, n):
    coefficients, _ = published
    values, errors = (
        np.array(coefficients[f"{name}_coefficient{end}"][0], dtype=float)
        for end in ("s", "_errors")
    )
    assert relevant_bases(values[None], errors[None])[0] == n
    energy = np.tile(distribution(5500), (200, 1))
    found = xp.Arm.load(name).measure(energy, np.full(200, magnitude), np.random.default_rng(1))
    ratio = np.median(found.errors, axis=0)[:35] / errors[:35]
    # Of a star of other transits and background, single orders differ.
    assert np.quantile(abs(np.log(ratio)), 0.9) < 0.3
    assert abs(np.log(np.median(ratio))) < 0.12
    lower = np.tril_indices(55, -1)
    published = np.std(np.array(coefficients[f"{name}_coefficient_correlations"][0]))
    noise = np.std(np.corrcoef((found.values / found.errors).T)[lower])
    # 200 stars add .07 of their own.
    assert 0.7 * published < np.sqrt(noise**2 - 1 / 200) < 2.0 * published


def test_noise_is_as_large_as_its_errors_and_correlated_as_the_fit_makes_it():
    n, arm = 4000, xp.Arm.load("rp")
    energy = np.tile(distribution(5000), (n, 1))
    found = arm.measure(energy, np.full(n, 12.0), np.random.default_rng(2))
    z = (found.values - found.values.mean(axis=0)) / found.errors
    np.testing.assert_allclose(z.std(axis=0), 1.0, atol=5 / np.sqrt(2 * n))
    # A sum over all pixels is the flux, known better than coefficients alone would say.
    sums = (found.values * arm.basis.sum(axis=1)).sum(axis=1)
    alone = np.sqrt(((found.errors * arm.basis.sum(axis=1)) ** 2).sum(axis=1).mean())
    assert sums.std() < 0.9 * alone
    # Four times fainter, with noise of photons alone: twice as uncertain in parts of the flux.
    faint = arm.measure(energy[:300], np.full(300, 15.0), np.random.default_rng(2))
    fainter = arm.measure(energy[:300], np.full(300, 16.505), np.random.default_rng(2))
    share = np.median(fainter.errors[:, 0]) / np.median(faint.errors[:, 0]) * 4.0
    assert 1.9 < share < 3.0
    assert np.median(fainter.relevant) < np.median(faint.relevant)


def stars(n, **changes):
    rng = np.random.default_rng(4)
    columns = {
        "teff": 4500 + 2000 * rng.random(n),
        "logg": np.full(n, 4.4),
        "m_h": -rng.random(n),
        "a_v": np.full(n, 0.3),
        "phot_g_mean_mag": np.full(n, 11.8),
        "phot_bp_mean_mag": np.full(n, 12.2),
        "phot_rp_mean_mag": np.full(n, 11.3),
    }
    return columns | changes


def test_coefficients_follow_magnitudes_and_missing_ones_are_nan():
    columns = stars(3, phot_bp_mean_mag=np.array([12.2, 9.7, np.nan]))
    columns["logg"] = np.array([4.4, 4.4, 4.4])
    found = xp.measure_xp(columns, np.random.default_rng(1))
    arm = xp.Arm.load("bp")
    values = np.stack([found[part] for part in part_names("bp", 55)], axis=1)
    flux = values @ arm.basis.sum(axis=1) * xp._STEP
    expected = 10 ** (-0.4 * (columns["phot_bp_mean_mag"] - xp.ZERO_POINTS_MAG["bp"]))
    np.testing.assert_allclose(flux, expected, rtol=0.005)
    assert np.isnan(found["bp_n_relevant_bases"][2])
    assert np.isfinite(found["rp_00"]).all()
    none = xp.measure_xp(stars(2, teff=np.full(2, np.nan)), np.random.default_rng(1))
    assert np.isnan([none["bp_00"], none["rp_54_error"]]).all()


def write(path, columns, *, simulated=False):
    n = len(columns["teff"])
    wave = 8500.0 + np.arange(30)
    ids = {"id": [f"s{k}" for k in range(n)], "star_id": [f"star{k // 2}" for k in range(n)]}
    with SurveyWriter(
        path, n_star=n, wave_aa=wave, medium="air", columns=list(columns), simulated=simulated
    ) as writer:
        flux = np.random.default_rng(0).random((n, 30))
        writer.write(0, flux, np.ones((n, 30)), **ids, **columns)
    return Survey.open(path)


@pytest.mark.slow
def test_a_survey_with_them_is_simulated_and_else_as_it_was(tmp_path):
    columns = {name: np.repeat(values, 2) for name, values in stars(20).items()}
    survey = write(tmp_path / "s.zarr", columns)
    assert not survey.simulated
    found = CliRunner().invoke(
        app, ["simulate-xp", str(survey.path), str(tmp_path / "x.zarr"), "--seed", "3"]
    )
    assert found.exit_code == 0, found.output
    assert "SIMULATED" in found.output
    made = Survey.open(tmp_path / "x.zarr")
    assert made.simulated
    assert made.provenance["xp_coefficients"]["simulated_spectra"] is False
    for name in survey.column_names:
        np.testing.assert_array_equal(made.column(name), survey.column(name))
    before, after = survey.batch(0, 40), made.batch(0, 40)
    np.testing.assert_array_equal(before.spectra.flux, after.spectra.flux)
    # Two spectra of one star have one set of coefficients.
    np.testing.assert_array_equal(made.column("bp_07")[::2], made.column("bp_07")[1::2])
    assert len(set(made.column("bp_07"))) == 20
    values, errors = XpCoefficients(noise=True).measure(after)
    assert values.shape == (40, 111)
    assert np.isfinite(values).all()
    # Over the flux in G the first coefficients are a few percent, as of published spectra.
    # The unit is the noise of a star of G = 12; these have 11.8.
    assert np.all(np.abs(values[:, 110]) < 0.3)
    assert np.all((values[:, [0, 55]] > 0.03) & (values[:, [0, 55]] < 0.12))
    cut = part_names("rp", 55)[int(made.column("rp_n_relevant_bases")[0])]
    assert np.isnan(errors[0, 55 + int(cut[-2:])])
    again = xp.add_simulated_xp(survey, tmp_path / "y.zarr", seed=3)
    np.testing.assert_array_equal(again.column("rp_11"), made.column("rp_11"))


@pytest.mark.slow
def test_what_cannot_be_simulated_is_an_error(tmp_path):
    columns = stars(4)
    survey = write(tmp_path / "s.zarr", columns)
    made = xp.add_simulated_xp(survey, tmp_path / "x.zarr")
    with pytest.raises(ConfigError, match="has XP coefficients already"):
        xp.add_simulated_xp(made, tmp_path / "y.zarr")
    del columns["phot_rp_mean_mag"]
    bare = write(tmp_path / "b.zarr", columns)
    with pytest.raises(ColumnError, match=r"no phot_rp_mean_mag.*ingest"):
        xp.add_simulated_xp(bare, tmp_path / "y.zarr")
