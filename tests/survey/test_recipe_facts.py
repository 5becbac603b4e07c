"""What recipes say of epochs, zero points, solar scales and cuts, and what becomes of it."""

from contextlib import ExitStack

import numpy as np
import pytest
from astropy.table import Table
from astropy.time import Time

from maury.errors import ColumnError, ConfigError
from maury.labels.abundances import Convention, convert
from maury.survey import archives
from maury.survey.archives.quantities import QUANTITIES, flux_excess_sigmas
from maury.survey.archives.recipe import EpochFacts
from maury.survey.assembly.build_catalogues import open_catalogue
from maury.survey.assembly.build_file import CatalogueEntry
from maury.survey.assembly.flow import Flow
from maury.survey.crossmatch import Positions
from maury.survey.crossmatch.matching import match_positions
from maury.survey.readers import ingest_toml


def opened(folder, recipe, columns, stack, **options):
    Table(columns).write(folder / f"{recipe}.fits", overwrite=True)
    entry = CatalogueEntry(recipe=recipe, file=folder / f"{recipe}.fits", **options)
    return open_catalogue(entry, Flow(), stack)


TWOMASS = {
    "designation": ["a", "b"],
    "ra": [10.0, 20.0],
    "dec": [-5.0, 5.0],
    "ph_qual": ["AAA", "AAA"],
    "cc_flg": ["000", "000"],
    "j_m": [9.0, 9.0],
}


@pytest.mark.parametrize("unit", ["jd", "mjd", "yr"])
def test_epochs_of_a_column_in_any_unit(unit):
    times = Time(["1998-03-02", "2000-11-30"], scale="utc")
    values = {"jd": times.jd, "mjd": times.mjd, "yr": times.jyear}[unit]
    found = EpochFacts(column="e", unit=unit).years(values)
    np.testing.assert_allclose(found, times.jyear, atol=1e-8)


def test_2mass_positions_are_of_their_own_date(tmp_path, caplog):
    jdate = np.array([2450967.9, 2451877.7])
    with ExitStack() as stack:
        found = opened(tmp_path, "2mass", {**TWOMASS, "jdate": jdate}, stack)
        np.testing.assert_allclose(found.positions(2000.0).epoch_yr, Time(jdate, format="jd").jyear)
    with ExitStack() as stack:
        found = opened(tmp_path, "2mass", TWOMASS, stack)
        np.testing.assert_allclose(found.positions(2016.0).epoch_yr, 1999.3)
    assert any("jdate" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("recipe", "epoch"),
    [("allwise", 2010.5589), ("apogee-dr16", 1999.3), ("apogee-dr17", 1999.3),
     ("rave-dr6-obsdata", 2000.0), ("gaia-dr3", 2016.0), ("galah-dr3", 2015.5)],
)  # fmt: skip
def test_epochs_of_recipes(recipe, epoch):
    assert archives.load(recipe).position.epoch == epoch


def test_a_fast_star_is_found_at_the_epoch_of_allwise(tmp_path):
    """Barnard's star moves by 10.4 arcsec a year; Gaia's epoch is 5.44 years later."""
    gaia = Positions(
        np.array([269.44850]), np.array([4.73942]), 2016.0,
        pmra_masyr=np.array([-801.6]), pmdec_masyr=np.array([10362.4]),
    )  # fmt: skip
    there = np.degrees(gaia.vectors(2010.5589))
    ra = np.degrees(np.arctan2(there[:, 1], there[:, 0])) % 360
    dec = np.degrees(np.arcsin(np.radians(there[:, 2])))
    columns = {
        "designation": ["x"], "ra": ra, "dec": dec, "w1mpro": [4.4], "w1sigmpro": [0.1],
        "w2mpro": [4.0], "w2sigmpro": [0.1], "cc_flags": ["0000"], "ext_flg": [0],
    }  # fmt: skip
    with ExitStack() as stack:
        found = opened(tmp_path, "allwise", columns, stack).positions(2000.0)
    assert match_positions(gaia, found, radius_arcsec=1.0).index.tolist() == [0]


def test_parallaxes_of_dr2_get_their_zero_point(tmp_path):
    for recipe, name in (("apogee-dr16", "GAIA_PARALLAX"), ("galah-dr3", "parallax_dr2")):
        assert archives.load(recipe).columns["parallax"].name == name
        assert archives.load(recipe).columns["parallax"].offset == 0.029
    np.savez(tmp_path / "s.npz", flux=np.ones((2, 50)), ivar=np.ones((2, 50)),
             wave=np.linspace(8500, 8520, 50))  # fmt: skip
    (tmp_path / "t.csv").write_text("p\n0.001\n-9999\n")
    (tmp_path / "s.toml").write_text(
        '[spectra]\nfile = "s.npz"\nivar = "ivar"\n[wavelength]\nmedium = "air"\nvalues = "wave"\n'
        '[[table]]\nfile = "t.csv"\n'
        '[columns]\nparallax = { name = "p", unit = "arcsec", offset = 0.029 }\n'
    )
    survey = ingest_toml(tmp_path / "s.toml", tmp_path / "o.zarr")
    np.testing.assert_allclose(survey.column("parallax"), [1.029, np.nan])


@pytest.mark.parametrize("recipe", ["apogee-dr16", "apogee-dr17", "galah-dr3", "galah-dr4"])
def test_surveys_with_zero_points_of_their_own_are_on_no_solar_scale(recipe):
    source = archives.load(recipe).abundances.convention
    assert source.solar_scale is None
    with pytest.raises(ConfigError, match="not stated"):
        convert(np.zeros((1, 1)), ["fe_h"], ["fe_h"], source=source,
                target=Convention.of("asplund2021"))  # fmt: skip


def test_madera_that_did_not_converge_is_cut(tmp_path):
    flags = np.arange(5)
    columns = {
        "rave_obs_id": [f"o{k}" for k in flags], "algo_conv_madera": flags,
        "teff_cal_madera": np.full(5, 5000.0), "logg_cal_madera": np.full(5, 4.0),
    }  # fmt: skip
    with ExitStack() as stack:
        found = opened(tmp_path, "rave-dr6-madera", columns, stack)
        assert found.rows.tolist() == [0, 2, 3, 4]
        strict = opened(tmp_path, "rave-dr6-madera", columns, stack, also=["convergence-strict"])
        assert strict.rows.tolist() == [0]


def test_flags_and_velocity_of_gaia_eso(tmp_path):
    columns = {
        "CNAME": ["a", "b", "c"], "RA": [1.0, 2.0, 3.0], "DECLINATION": [0.0, 0.0, 0.0],
        "TEFF": [5000.0] * 3, "LOGG": [4.0] * 3, "FEH": [0.0] * 3, "VRAD": [12.5, -3.0, 0.1],
        "TECH": ["", "10050-13-00-01-A", ""], "PECULI": ["", "", "2005-11-00-01-A"],
    }  # fmt: skip
    with ExitStack() as stack:
        found = opened(tmp_path, "gaia-eso", columns, stack)
        np.testing.assert_array_equal(found.values("radial_velocity"), columns["VRAD"])
        assert len(found) == 3
        for also, kept in ((["technical"], [0, 2]), (["technical", "peculiar"], [0])):
            cut = opened(tmp_path, "gaia-eso", columns, stack, also=also)
            assert cut.rows.tolist() == kept


def test_the_flux_excess_of_normal_stars_is_zero_at_any_colour():
    """Table 2 and eq. 18 of Riello et al. (2021), evaluated by hand."""
    colour = np.array([0.2, 1.0, 4.5])
    normal = np.array([1.1624055, 1.216844, 1.6899885])
    g = np.full(3, 15.0)
    found = flux_excess_sigmas(normal, g, colour, np.zeros(3))
    np.testing.assert_allclose(found, 0.0, atol=0.01)
    sigma = 0.0059898 + 8.817481e-12 * 15.0**7.618399
    found = flux_excess_sigmas(normal + 5 * sigma, g, colour, np.zeros(3))
    np.testing.assert_allclose(found, 5.0, atol=0.01)


def test_a_cut_on_the_flux_excess(tmp_path):
    n = 4
    columns = {
        "source_id": np.arange(1, n + 1), "ra": np.zeros(n), "dec": np.zeros(n),
        "pmra": np.zeros(n), "pmdec": np.zeros(n), "ruwe": np.ones(n), "parallax": np.ones(n),
        "phot_g_mean_mag": np.full(n, 15.0), "phot_bp_mean_mag": np.full(n, 15.5),
        "phot_rp_mean_mag": [14.5, 14.5, np.nan, 14.5],
        "phot_bp_rp_excess_factor": [1.2168, 1.5, 1.2168, 1.0],
    }  # fmt: skip
    with ExitStack() as stack:
        found = opened(tmp_path, "gaia-dr3", columns, stack, also=["flux-excess"])
        assert found.rows.tolist() == [0]
        del columns["phot_bp_rp_excess_factor"]
        assert len(opened(tmp_path, "gaia-dr3", columns, stack)) == n
        with pytest.raises(ColumnError, match="phot_bp_rp_excess_factor"):
            opened(tmp_path, "gaia-dr3", columns, stack, also=["flux-excess"])


def test_a_quantity_that_is_not_known_is_suggested():
    from maury.survey.archives.cuts import Condition

    assert QUANTITIES["gaia_flux_excess_sigmas"].columns[0] == "phot_bp_rp_excess_factor"
    with pytest.raises(ValueError, match="did you mean 'gaia_flux_excess_sigmas'"):
        Condition(quantity="gaia_flux_excess_sigma", below=3)
    with pytest.raises(ValueError, match="a 'column' or a 'quantity'"):
        Condition(quantity="gaia_flux_excess_sigmas", column="X", below=3)
