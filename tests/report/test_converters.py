"""Surveys, spectra and catalogues as objects of other packages."""

import importlib.util
import sys

import numpy as np
import pytest
from astropy import units

from builders.catalogues import write_catalogue
from builders.training_survey import WAVE, write_survey
from maury.errors import ConfigError, MissingExtra
from maury.report.publish.converters import to_specutils, to_table, to_xarray
from maury.spectra.spectra import Spectra

needs_specutils = pytest.mark.skipif(
    importlib.util.find_spec("specutils") is None, reason="specutils is absent"
)


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    n = 12
    flux = np.random.default_rng(1).normal(1, 0.1, (n, WAVE.size)).astype(np.float32)
    ivar = np.full_like(flux, 400.0)
    ivar[3, 10:14] = 0.0
    parallax = np.full(n, 2.0)
    parallax[5] = np.nan
    path = tmp_path_factory.mktemp("survey") / "s.zarr"
    return write_survey(path, n=n, flux=flux, ivar=ivar, parallax=parallax)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "c.parquet", 20)


def test_a_survey_as_a_table(survey):
    table = to_table(survey)
    assert len(table) == 12
    assert table.colnames[0] == "id"
    assert set(table.colnames) == set(survey.column_names)
    assert table["teff"].unit == units.K
    assert table["parallax"].unit == units.mas
    assert table["parallax"].meta["ucd"] == "pos.parallax.trig"
    assert table.meta["simulated"] is True
    np.testing.assert_array_equal(table["parallax"], survey.column("parallax"))


def test_spectra_as_a_table(survey):
    batch = survey.batch(2, 5)
    table = to_table(batch)
    np.testing.assert_array_equal(table["flux"], batch.spectra.flux)
    np.testing.assert_array_equal(table.meta["wave_aa"], WAVE)
    assert table["id"].tolist() == ["s2", "s3", "s4"]
    assert to_table(batch.spectra).colnames == ["flux", "ivar"]


def test_a_catalogue_as_a_table_is_a_copy(catalogue):
    table = to_table(catalogue)
    table["teff"][0] = 1.0
    assert catalogue.table["teff"][0] != 1.0
    assert table.meta["simulated"] is True
    assert table["teff"].unit == units.K


def test_a_survey_as_a_dataset_stays_on_disk(survey):
    dataset = to_xarray(survey)
    assert dict(dataset.sizes) == {"star": 12, "pixel": WAVE.size}
    np.testing.assert_array_equal(dataset["flux"][3], survey.batch(3, 4).spectra.flux[0])
    dataset["flux"] = dataset["flux"] * 0
    assert survey.batch(3, 4).spectra.flux.any()


def test_spectra_and_catalogues_as_datasets(survey, catalogue):
    dataset = to_xarray(survey.batch(0, 4))
    assert dict(dataset.sizes) == {"star": 4, "pixel": WAVE.size}
    np.testing.assert_array_equal(dataset["wave"], WAVE)
    assert dataset["teff"].attrs["units"] == "K"
    labels = to_xarray(catalogue)
    assert labels.attrs["simulated"] is True
    assert labels["teff"].dims == ("star",)
    np.testing.assert_array_equal(labels["teff"], catalogue.table["teff"])
    assert labels["teff"].attrs["description"] == "Effective temperature"


@needs_specutils
def test_a_survey_as_spectra(survey):
    found = to_specutils(survey)
    assert len(found) == 12
    one = found[3]
    batch = survey.rows([3])
    np.testing.assert_array_equal(one.flux.value, batch.spectra.flux[0])
    assert one.flux.unit == units.dimensionless_unscaled
    np.testing.assert_allclose(one.spectral_axis.to_value(units.AA), WAVE, rtol=1e-12)
    np.testing.assert_array_equal(one.mask, batch.spectra.ivar[0] == 0)
    np.testing.assert_array_equal(one.uncertainty.array, batch.spectra.ivar[0])
    assert one.uncertainty.uncertainty_type == "ivar"
    assert one.meta["simulated"] is True
    assert one.meta["medium"] == "air"
    assert one.meta["id"] == "s3"
    assert one.meta["teff"] == survey.column("teff")[3]
    assert np.isnan(found[5].meta["parallax"])


@needs_specutils
def test_chosen_rows_in_their_order(survey):
    for source in (survey, survey.batch(0, 12)):
        found = to_specutils(source, [7, 2])
        assert [one.meta["id"] for one in found] == ["s7", "s2"]
    (bare,) = to_specutils(Spectra.from_arrays(WAVE, np.ones(WAVE.size), medium="vacuum"))
    assert bare.meta == {"medium": "vacuum"}


@needs_specutils
def test_specutils_computes_with_them(survey):
    from specutils.manipulation import extract_region
    from specutils.spectra import SpectralRegion

    (one,) = to_specutils(survey, [0])
    cut = extract_region(one, SpectralRegion(8425 * units.AA, 8435 * units.AA))
    inside = (WAVE >= 8425) & (WAVE <= 8435)
    np.testing.assert_array_equal(cut.flux.value, survey.batch(0, 1).spectra.flux[0, inside])


@needs_specutils
def test_wrong_rows_and_too_many(survey, monkeypatch):
    for rows in ([12], [-13], [[1, 2]], [True, False]):
        with pytest.raises(ConfigError, match="of the spectra"):
            to_specutils(survey, rows)
    monkeypatch.setattr("maury.report.publish.converters.SPECUTILS_LIMIT", 3)
    with pytest.raises(ConfigError, match="too many"):
        to_specutils(survey)


def test_without_specutils(survey, monkeypatch):
    monkeypatch.setitem(sys.modules, "specutils", None)
    with pytest.raises(MissingExtra, match=r"maury\[specutils\]"):
        to_specutils(survey)


def test_unknown_columns_come_last(survey):
    from maury.report.publish.converters import _described, _ordered

    assert _ordered(["zzz", "teff", "id"]) == ["id", "teff", "zzz"]
    from astropy.table import Table

    table = _described(Table({"zzz": [1.0]}), ())
    assert table["zzz"].unit is None
