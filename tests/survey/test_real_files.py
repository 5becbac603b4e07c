"""Public files as the surveys publish them, read by their recipes or a short description.

What is right was read off with astropy, independently of the readers; velocities are measured from
lines of known wavelength (air: Moore et al. 1966; vacuum: NIST).
"""

import zipfile
from contextlib import ExitStack

import numpy as np
import pytest
from astropy.io import fits
from scipy.optimize import curve_fit

from maury.errors import ColumnError
from maury.io.tables import open_table
from maury.spectra.preparation import Preparation
from maury.survey.archives import apply_cuts, load
from maury.survey.archives.ingest import ingest_recipe
from maury.survey.assembly.build_catalogues import open_catalogue
from maury.survey.assembly.build_file import CatalogueEntry
from maury.survey.assembly.flow import Flow
from maury.survey.readers import ingest_toml, open_toml

C_KMS = 299792.458
AIR = {
    "ccd1": (4859.741, 4861.323),
    "ccd3": (6546.239, 6562.797, 6643.630, 6717.681),
    "ccd4": (7748.269, 7780.556, 7832.196),
}
APOGEE = (15753.291, 15770.150, 16723.524, 16755.140)
CALCIUM = (8500.35, 8544.44, 8664.52)


@pytest.fixture
def real(shared):
    if not (shared / "real").is_dir():
        pytest.skip("the public files are not beside the reference data")
    return shared / "real"


def velocity_kms(wave, flux, line_aa, half_aa):
    """Velocity of a line by a Gaussian on a straight continuum."""
    near = (abs(wave - line_aa) < half_aa) & np.isfinite(flux) & (flux != 0)
    x, y = wave[near], np.asarray(flux[near], dtype=np.float64)

    def shape(x, level, slope, depth, centre, width):
        return level + slope * (x - line_aa) - depth * np.exp(-0.5 * ((x - centre) / width) ** 2)

    guess = [np.median(y), 0.0, np.median(y) - y.min(), x[y.argmin()], half_aa / 6]
    found, _ = curve_fit(shape, x, y, guess)
    return (found[3] / line_aa - 1.0) * C_KMS


def velocities(spectra, lines, half_aa, row=0):
    return [velocity_kms(spectra.wave_aa, spectra.flux[row], line, half_aa) for line in lines]


def at_rest(survey, steps=({"step": "rest_frame"},)):
    preparation = Preparation.from_json({"steps": list(steps), "observables": []})
    inputs = preparation.apply(survey.batch(0, len(survey)))
    assert not np.any(inputs.flags & (1 << 5)), "each has a velocity"
    return inputs


@pytest.mark.parametrize("arm", AIR)
def test_galah_is_read_at_rest(real, tmp_path, arm):
    survey = ingest_recipe("galah-dr3", real / "galah_dr3", tmp_path / "o.zarr", arm=arm)
    assert (survey.id.tolist(), survey.medium, survey.at_rest) == (["150427000801049"], "air", True)
    spectra = survey.batch(0, 1).spectra
    # Barycentric flux would be at -10 km/s: the lines scatter by 1 km/s.
    assert abs(np.mean(velocities(spectra, AIR[arm], 1.2))) < 2.5
    assert 0.8 < np.median(spectra.flux) < 1.05


def test_galah_as_its_file_has_it(real, tmp_path):
    path = real / "galah_dr3" / "1504270008010493.fits"
    (tmp_path / "s.toml").write_text(f'[spectra]\nreader = "galah-ccd3"\nfile = "{path}"\n')
    with fits.open(path) as hdus, open_toml(tmp_path / "s.toml") as files:
        spectra = files.batch(0, 1).spectra
        flux, relative = (np.asarray(hdus[k].data, dtype=np.float64) for k in (4, 1))
        np.testing.assert_allclose(files.wave_aa[0], 6476.808, atol=1e-3)
        np.testing.assert_allclose(np.diff(files.wave_aa), 0.063118, atol=1e-6)
        np.testing.assert_allclose(spectra.flux[0], flux, rtol=1e-6)
        np.testing.assert_allclose(spectra.ivar[0], (flux * relative) ** -2.0, rtol=1e-4)


def test_lamost_is_shifted_by_the_redshift_of_its_header(real, tmp_path):
    survey = ingest_recipe("lamost-lrs", real / "lamost_lrs", tmp_path / "o.zarr")
    assert (survey.medium, survey.at_rest) == ("vacuum", False)
    np.testing.assert_allclose(survey.column("radial_velocity"), [10.2, -27.2], atol=0.01)
    inputs = at_rest(survey)
    for row in range(2):
        before = velocities(survey.batch(0, 2).spectra, CALCIUM[1:], 14.0, row)
        after = velocities(inputs, CALCIUM[1:], 14.0, row)
        # A line of a spectrum of R = 1800 and S/N 130 is known to 9 km/s.
        assert abs(np.mean(after)) < 9.0
        shift = survey.column("radial_velocity")[row]
        # A twentieth of a pixel, which is 69 km/s.
        assert abs(np.mean(before) - np.mean(after) - shift) < 3.5


def test_rvs_spectra_are_at_rest(real, tmp_path):
    survey = ingest_recipe("gaia-dr3-rvs", real / "rvs", tmp_path / "o.zarr")
    names = ["4268620287278693120", "2131314401800665344", "2128215909315876352"]
    assert survey.id.tolist() == names
    assert (survey.n_pixel, survey.medium, survey.at_rest) == (2401, "vacuum", True)
    np.testing.assert_allclose(survey.wave_aa[[0, -1]], [8460.0, 8700.0])
    np.testing.assert_allclose(survey.column("ra"), [285.297683, 286.808527, 293.679207], atol=1e-6)
    np.testing.assert_allclose(survey.column("dec"), [2.481279, 49.316421, 46.852733], atol=1e-6)
    for row, tolerance in enumerate((1.0, 3.0, 1.0)):
        found = velocities(survey.batch(0, 3).spectra, CALCIUM, 2.5, row)
        assert abs(np.mean(found)) < tolerance


def test_a_visit_of_apogee_is_shifted_by_its_velocity_as_observed(real, tmp_path):
    survey = ingest_recipe("apogee-dr16", real / "apogee", tmp_path / "o.zarr", arm="apvisit")
    assert survey.star_id.tolist() == ["2M00242666+5341178"]
    assert (survey.medium, survey.at_rest, survey.resolving_power) == ("vacuum", False, 22500)
    assert survey.column("radial_velocity")[0] == pytest.approx(-67.472, abs=1e-3)
    assert abs(np.mean(velocities(at_rest(survey), APOGEE, 1.0))) < 1.0
    gaps = (survey.wave_aa > 15815) & (survey.wave_aa < 15850)
    assert np.all(survey.batch(0, 1).spectra.ivar[0][gaps] == 0)


@pytest.mark.slow
def test_a_spectrum_of_sdss(real, tmp_path, caplog):
    survey = ingest_recipe("sdss-spec", real / "sdss", tmp_path / "o.zarr")
    assert not caplog.records, "the data model says which table is the spectrum"
    assert survey.id.tolist() == ["spec-0266-51602-0031"]
    assert (survey.medium, survey.at_rest) == ("vacuum", False)
    assert survey.column("radial_velocity")[0] == pytest.approx(-3.6914502e-05 * C_KMS, abs=1e-3)
    assert survey.column("ra")[0] == pytest.approx(147.32107)
    text = (
        f'[spectra]\nfolder = "{real / "sdss"}"\nivar = "ivar"\nid = "SPEC_ID"\n'
        '[wavelength]\nmedium = "vacuum"\nvalues = "loglam"\nlog = true\n'
    )
    (tmp_path / "s.toml").write_text(text)
    own = ingest_toml(tmp_path / "s.toml", tmp_path / "p.zarr")
    with fits.open(real / "sdss" / "spec-0266-51602-0031.fits") as hdus:
        np.testing.assert_allclose(own.batch(0, 1).spectra.flux[0], hdus[1].data["flux"], rtol=1e-6)
    np.testing.assert_allclose(own.wave_aa[0], 10**3.5798, rtol=1e-6)


def test_uves_of_eso_is_read_calibrated_and_not_at_rest(real, tmp_path, caplog):
    survey = ingest_recipe("gaia-eso", real / "eso", tmp_path / "o.zarr")
    assert (survey.medium, survey.at_rest) == ("air", False)
    spectra = survey.batch(0, 1).spectra
    with fits.open(real / "eso" / "uves_delEri_cut.fits") as hdus:
        row = hdus[1].data
        np.testing.assert_allclose(spectra.flux[0], row["FLUX"][0], rtol=1e-6)
        np.testing.assert_allclose(spectra.ivar[0], row["ERR"][0].astype("f8") ** -2.0, rtol=1e-5)
        assert hdus[0].header["SPEC_RES"] == 74450
    # The card says TOPOCENT, and so do the lines: the star recedes at -6.3 km/s from the
    # barycentre, from which the telescope moved at 7.2 km/s.
    assert any("TOPOCENT" in record.message for record in caplog.records)
    lines = (6546.239, 6593.870, 6643.630, 6677.987)
    assert np.mean(velocities(spectra, lines, 0.5)) == pytest.approx(-6.3 + 7.2, abs=1.0)
    with pytest.raises(ColumnError, match="radial_velocity"):
        at_rest(survey)


def test_duplicates_leave_the_catalogue_of_apogee(real):
    with ExitStack() as stack:
        table = open_table(real / "apogee" / "apogee_sgr.fits", stack)
        cuts = [cut for cut in load("apogee-dr16").cut if cut.name == "duplicate"]
        assert apply_cuts(cuts, table).keep.sum() == 313


def opened(recipe, path):
    with ExitStack() as stack:
        entry = CatalogueEntry(recipe=recipe, file=str(path), match={"by": "id", "spectra": "id"})
        catalogue = open_catalogue(entry, Flow(), stack)
        names = ("ra", "dec", "parallax") if recipe == "gaia-dr3" else ("bp_00", "rp_54")
        if recipe == "gaia-dr3-xp":
            names += ("bp_n_relevant_bases", "rp_n_relevant_bases")
        return {name: catalogue.values(name) for name in names}


def test_gaia_source_as_the_archive_serves_it(real):
    found = opened("gaia-dr3", real / "gaia" / "gaia_val.vot")
    from astropy.io.votable import parse_single_table

    table = parse_single_table(str(real / "gaia" / "gaia_val.vot")).to_table()
    kept = np.asarray(table["ruwe"] < 1.4)
    for name in found:
        np.testing.assert_allclose(found[name], np.ma.filled(table[name], np.nan)[kept])


@pytest.mark.parametrize("kind", ["csv", "fits"])
def test_coefficients_of_xp_spectra_as_datalink_serves_them(real, tmp_path, kind):
    with zipfile.ZipFile(real / "gaia" / f"gaia_dl_{kind}.zip") as archive:
        name = next(n for n in archive.namelist() if n.startswith("XP_CONTINUOUS"))
        archive.extract(name, tmp_path)
    found = opened("gaia-dr3-xp", tmp_path / name)
    if kind == "fits":
        with fits.open(tmp_path / name) as hdus:
            row = hdus[1].data
            assert found["bp_00"][0] == row["bp_coefficients"][0][0]
            assert found["rp_54"][0] == row["rp_coefficients"][0][54]
    else:
        assert np.isfinite([found["bp_00"][0], found["rp_54"][0]]).all()
    # Read off with astropy.
    assert (found["bp_n_relevant_bases"][0], found["rp_n_relevant_bases"][0]) == (22, 12)
