import logging
import re
from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from maury.errors import (
    ColumnError,
    ConfigError,
    GridMismatch,
    IdentifierError,
    InputFileError,
    LengthMismatch,
    MauryError,
    WavelengthError,
)
from maury.spectra.operators import Resampler
from maury.survey.readers import ingest_toml
from maury.survey.readers.config import load_config

N_STAR, N_PIXEL = 5, 60
WAVE = 8500.0 + 0.5 * np.arange(N_PIXEL)
RNG = np.random.default_rng(3)
FLUX = (1 + RNG.normal(0, 0.02, (N_STAR, N_PIXEL))).astype("f4")
IVAR = RNG.uniform(1000, 3000, (N_STAR, N_PIXEL)).astype("f4")
IDS = np.array([f"star{k}" for k in range(N_STAR)])

LINEAR = '[wavelength]\nmedium = "air"\nstart = 8500.0\nstep = 0.5\n'


def ingest(folder: Path, text: str, **kwargs):
    (folder / "survey.toml").write_text(text)
    return ingest_toml(folder / "survey.toml", folder / "out.zarr", **kwargs)


def check_spectra(survey, *, ivar=True):
    spectra = survey.batch(0, N_STAR).spectra
    np.testing.assert_array_equal(spectra.flux, FLUX)
    np.testing.assert_allclose(survey.wave_aa, WAVE, rtol=0, atol=1e-6)
    if ivar:
        np.testing.assert_allclose(spectra.ivar, IVAR, rtol=2e-6)


def write_npz(folder, **more):
    np.savez(folder / "s.npz", flux=FLUX, ivar=IVAR, wave=WAVE, id=IDS, **more)


NPZ = '[spectra]\nfile = "s.npz"\nivar = "ivar"\nid = "id"\n' + LINEAR


# Formats of spectra


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("stated", [False, True])
def test_fits_image_with_hdus_of_error_and_grid(tmp_path, turned, stated):
    error = 1 / np.sqrt(IVAR)
    hdus = fits.HDUList(
        [
            fits.PrimaryHDU(FLUX.T if turned else FLUX),
            fits.ImageHDU(error.T if turned else error, name="ERR"),
            fits.ImageHDU(WAVE / 10, name="WAVE"),
        ]
    )
    hdus.writeto(tmp_path / "s.fits")
    way = f'orientation = "{"columns" if turned else "rows"}"\n' if stated else ""
    survey = ingest(
        tmp_path,
        f'[spectra]\nfile = "s.fits"\nerror = "ERR"\n{way}'
        '[wavelength]\nmedium = "vacuum"\nvalues = "WAVE"\nunit = "nm"\n',
    )
    check_spectra(survey)
    assert survey.medium == "vacuum"
    assert survey.id.tolist() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("axis", [1, 2])
def test_fits_image_with_wcs_and_noise_in_another_file(tmp_path, axis):
    flux, ivar = (FLUX, IVAR) if axis == 1 else (FLUX.T, IVAR.T)
    hdu = fits.ImageHDU(flux)
    hdu.header.update({f"CTYPE{axis}": "WAVE", f"CRVAL{axis}": 850.1, f"CDELT{axis}": 0.05})
    hdu.header.update({f"CRPIX{axis}": 3.0, f"CUNIT{axis}": "nm", "SIMULATE": True})
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / "s.fits")
    fits.PrimaryHDU(ivar).writeto(tmp_path / "ivar.fits")
    survey = ingest(
        tmp_path,
        '[spectra]\nfile = "s.fits"\nivar = { file = "ivar.fits" }\n[wavelength]\nmedium = "air"\n',
    )
    check_spectra(survey)
    assert survey.simulated


def table_of_spectra(**more):
    table = Table({"name": IDS, "f": FLUX, "iv": IVAR, "Teff": 5000.0 + np.arange(N_STAR), **more})
    table["f"].unit = ""
    return table


TABLE = (
    '[spectra]\nfile = "{file}"\nflux = "f"\nivar = "iv"\nid = "name"\n' + LINEAR + "[columns]\n"
    'teff = "Teff"\n'
)


@pytest.mark.parametrize("kind", [fits.ImageHDU, fits.CompImageHDU])
@pytest.mark.parametrize("suffix", ["fits", "fits.gz"])
def test_compressed_images(tmp_path, kind, suffix):
    hdu = kind(FLUX)
    fits.HDUList([fits.PrimaryHDU(), hdu]).writeto(tmp_path / f"s.{suffix}")
    text = f'[spectra]\nfile = "s.{suffix}"\norientation = "rows"\n' + LINEAR
    flux = ingest(tmp_path, text).batch(0, N_STAR).spectra.flux
    np.testing.assert_allclose(flux, FLUX, atol=0 if kind is fits.ImageHDU else 0.01)


@pytest.mark.parametrize("file", ["s.fits", "s.vot", "s.parquet"])
def test_tables_with_an_array_column(tmp_path, file):
    if file == "s.parquet":
        columns = {"name": IDS, "f": list(FLUX), "iv": list(IVAR)}
        columns["Teff"] = 5000.0 + np.arange(N_STAR)
        parquet.write_table(pa.table(columns), tmp_path / file, row_group_size=2)
    else:
        kind = {"s.fits": "fits", "s.vot": "votable"}[file]
        table_of_spectra().write(tmp_path / file, format=kind)
    survey = ingest(tmp_path, TABLE.format(file=file))
    check_spectra(survey)
    assert survey.id.tolist() == IDS.tolist()
    np.testing.assert_array_equal(survey.column("teff"), 5000.0 + np.arange(N_STAR))


@pytest.mark.parametrize("kind", ["list", "fixed"])
def test_parquet_is_read_in_chunks_with_missing_spectra(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("maury.survey.readers.writing.CHUNK_STARS", 2)
    rows = [None if k == 3 else row.tolist() for k, row in enumerate(FLUX)]
    list_type = pa.list_(pa.float32(), N_PIXEL if kind == "fixed" else -1)
    table = pa.table({"flux": pa.array(rows, list_type), "ivar": list(IVAR)})
    parquet.write_table(table, tmp_path / "s.parquet")
    survey = ingest(tmp_path, '[spectra]\nfile = "s.parquet"\nivar = "ivar"\n' + LINEAR)
    spectra = survey.batch(0, N_STAR).spectra
    keep = [0, 1, 2, 4]
    np.testing.assert_array_equal(spectra.flux[keep], FLUX[keep])
    assert not spectra.good[3].any()
    assert spectra.good[keep].all()


def test_fits_table_of_variable_length_arrays_and_grid_per_star(tmp_path):
    columns = [
        fits.Column("flux", "PE()", array=np.array([*FLUX, None], dtype=object)[:-1]),
        fits.Column("wave", f"{N_PIXEL}D", array=np.tile(WAVE, (N_STAR, 1)) / 10, unit="nm"),
    ]
    fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "s.fits")
    survey = ingest(
        tmp_path,
        '[spectra]\nfile = "s.fits"\n[wavelength]\nmedium = "air"\nvalues = "wave"\n',
    )
    check_spectra(survey, ivar=False)


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("folder", [False, True])
def test_any_header_marks_spectra_as_simulated(tmp_path, place, folder):
    """A primary header without data, the table of the spectra, or another one."""
    hdus = fits.HDUList([fits.PrimaryHDU()])
    columns = {"flux": FLUX[0], "wave": WAVE} if folder else {"flux": FLUX}
    hdus.append(fits.table_to_hdu(Table(columns)))
    hdus.append(fits.ImageHDU(WAVE, name="GRID"))
    hdus[place].header["SIMULATE"] = True
    (tmp_path / "many").mkdir()
    hdus.writeto(tmp_path / "many" / "b.fits")
    hdus[place].header["SIMULATE"] = False
    # The first of a folder says nothing.
    hdus.writeto(tmp_path / "many" / "a.fits")
    where = 'folder = "many"\nformat = "fits-table"' if folder else 'file = "many/b.fits"'
    values = '"wave"' if folder else '{ hdu = "GRID" }'
    wavelength = f'[wavelength]\nmedium = "air"\nvalues = {values}\n'
    survey = ingest(tmp_path, f'[spectra]\n{where}\nflux = "flux"\n{wavelength}')
    assert survey.simulated


def test_npz_with_its_own_grid(tmp_path):
    write_npz(tmp_path)
    text = '[spectra]\nfile = "s.npz"\nivar = "ivar"\nid = "id"\n[wavelength]\nmedium = "air"\n'
    survey = ingest(tmp_path, text + 'values = "wave"\n')
    check_spectra(survey)
    assert survey.id.tolist() == IDS.tolist()


def test_npy_files_pixel_by_star(tmp_path):
    np.save(tmp_path / "s.npy", FLUX.T)
    np.save(tmp_path / "iv.npy", IVAR.T)
    np.save(tmp_path / "w.npy", np.log10(WAVE))
    survey = ingest(
        tmp_path,
        '[spectra]\nfile = "s.npy"\nivar = { file = "iv.npy" }\n'
        '[wavelength]\nmedium = "air"\nvalues = { file = "w.npy" }\nlog = true\n',
    )
    check_spectra(survey)


def test_logarithmic_grid_from_start_and_step(tmp_path):
    write_npz(tmp_path)
    text = '[spectra]\nfile = "s.npz"\norientation = "rows"\n[wavelength]\nmedium = "air"\n'
    survey = ingest(tmp_path, text + "start = 3.9\nstep = 1e-5\nlog = true\n")
    np.testing.assert_allclose(survey.wave_aa, 10 ** (3.9 + 1e-5 * np.arange(N_PIXEL)))


# One file per star


def image_star(path, flux, cards, error=None):
    hdus = fits.HDUList([fits.PrimaryHDU(flux)])
    hdus[0].header.update(cards)
    if error is not None:
        hdus.append(fits.ImageHDU(error, name="ERR"))
    hdus.writeto(path)


LINEAR_CARDS = {"CRVAL1": 8500.0, "CDELT1": 0.5, "CRPIX1": 1.0}


def test_folder_of_fits_images(tmp_path):
    (tmp_path / "in").mkdir()
    for k, name in enumerate(IDS):
        cards = {**LINEAR_CARDS, "OBJECT": f"HD {k}"}
        image_star(tmp_path / "in" / f"{name}.fits", FLUX[k], cards, 1 / np.sqrt(IVAR[k]))
    text = '[spectra]\nfolder = "in"\nerror = "ERR"\n{}[wavelength]\nmedium = "air"\n'
    survey = ingest(tmp_path, text.format(""))
    check_spectra(survey)
    assert survey.id.tolist() == IDS.tolist()
    again = ingest(tmp_path, text.format('id = "OBJECT"\n'), overwrite=True)
    assert again.id.tolist() == [f"HD {k}" for k in range(N_STAR)]


@pytest.mark.parametrize(
    ("cards", "expected"),
    [
        ({"CRVAL1": 3.9, "CDELT1": 1e-5, "CTYPE1": "LOG-LINEAR"}, "log10"),
        ({"CRVAL1": 3.9, "CDELT1": 1e-5, "DC-FLAG": 1}, "log10"),
        ({"CRVAL1": 3.9, "CDELT1": 1e-5}, "log10"),
        ({"COEFF0": 3.9, "COEFF1": 1e-5}, "log10"),
        ({"CRVAL1": 8500.0, "CD1_1": 0.085, "CTYPE1": "WAVE-LOG"}, "natural"),
    ],
)
def test_logarithmic_headers(tmp_path, cards, expected):
    (tmp_path / "in").mkdir()
    image_star(tmp_path / "in" / "a.fits", FLUX[0], cards)
    survey = ingest(tmp_path, '[spectra]\nfolder = "in"\n[wavelength]\nmedium = "vacuum"\n')
    k = np.arange(N_PIXEL)
    grid = 10 ** (3.9 + 1e-5 * k) if expected == "log10" else 8500 * np.exp(1e-5 * k)
    np.testing.assert_allclose(survey.wave_aa, grid, rtol=1e-12)


def test_folder_of_fits_tables(tmp_path):
    (tmp_path / "in").mkdir()
    for k, name in enumerate(IDS):
        table = Table({"lam": WAVE / 10 * u.nm, "f": FLUX[k], "iv": IVAR[k]})
        table.write(tmp_path / "in" / f"{name}.fits")
    text = '[spectra]\nfolder = "in"\npattern = "*.fits"\nflux = "f"\nivar = "iv"\n'
    check_spectra(ingest(tmp_path, text + '[wavelength]\nmedium = "air"\nvalues = "lam"\n'))


@pytest.mark.parametrize("separator", [" ", ","])
def test_folder_of_text_files(tmp_path, separator):
    (tmp_path / "in").mkdir()
    for k, name in enumerate(IDS):
        table = np.column_stack([WAVE, FLUX[k], 1 / np.sqrt(IVAR[k])])
        path = tmp_path / "in" / f"{name}.csv"
        np.savetxt(path, table, delimiter=separator, header="made", fmt="%.9g")
        path.write_text(f"wave{separator}flux{separator}error\n" + path.read_text())
    text = '[spectra]\nfolder = "in"\nerror = "error"\nformat = "ascii"\n'
    check_spectra(ingest(tmp_path, text + '[wavelength]\nmedium = "air"\n'))


def two_grids(folder):
    (folder / "in").mkdir()
    other = WAVE[5:50] + 0.13
    np.savetxt(folder / "in" / "a.txt", np.column_stack([WAVE, FLUX[0]]))
    np.savetxt(folder / "in" / "b.txt", np.column_stack([other, FLUX[1, 5:50]]))
    np.savetxt(folder / "in" / "c.txt", np.column_stack([WAVE + 0.002, FLUX[2]]))
    return other


FOLDER = '{}[spectra]\nfolder = "in"\n[wavelength]\nmedium = "air"\n'


def test_different_grids_need_resampling(tmp_path):
    two_grids(tmp_path)
    with pytest.raises(GridMismatch, match=r"b\.txt.*45 pixels.*resample"):
        ingest(tmp_path, FOLDER.format(""))
    resample = "resample = { start = 8505.0, step = 1.0, n = 15 }\n"
    assert len(ingest(tmp_path, FOLDER.format(resample))) == 3


def test_different_grids_are_resampled_on_demand(tmp_path):
    other = two_grids(tmp_path)
    text = FOLDER.format("resample = { start = 8505.0, step = 1.0, n = 15 }\n")
    survey = ingest(tmp_path, text)
    grid = 8505.0 + np.arange(15.0)
    np.testing.assert_array_equal(survey.wave_aa, grid)
    got = survey.batch(0, 3).spectra
    for row, wave, flux in [(0, WAVE, FLUX[0]), (1, other, FLUX[1, 5:50])]:
        expected, _ = Resampler(wave, grid)(flux[None].astype("f8"), np.ones((1, flux.size)))
        np.testing.assert_allclose(got.flux[row], expected[0], rtol=1e-6)
    assert got.good.all()


def test_grids_equal_within_tolerance_are_stacked(tmp_path):
    two_grids(tmp_path)
    (tmp_path / "in" / "b.txt").unlink()
    survey = ingest(tmp_path, FOLDER.format(""))
    np.testing.assert_allclose(survey.batch(0, 2).spectra.flux, FLUX[[0, 2]])


# Noise


def test_noise_from_given_snr_and_from_the_spectrum(tmp_path):
    rng = np.random.default_rng(0)
    flux = 3000 * (1 + rng.normal(0, 0.02, (3, 900)))
    np.savez(tmp_path / "s.npz", flux=flux)
    (tmp_path / "t.csv").write_text("snr\n50\nnan\n25\n")
    text = '[spectra]\nfile = "s.npz"\norientation = "rows"\n' + LINEAR
    survey = ingest(tmp_path, text + '[[table]]\nfile = "t.csv"\n[columns]\nsnr = "snr"\n')
    snr = survey.column("snr")
    assert snr[[0, 2]].tolist() == [50, 25]
    # Independent noise looks like some 1.4 times less of noise correlated between neighbours.
    assert 20 < snr[1] < 60
    sigma = 1 / np.sqrt(survey.batch(0, 3).spectra.ivar)
    np.testing.assert_allclose(np.median(sigma, axis=1), 3000 / snr, rtol=0.05)


def test_snr_is_measured_from_ivar(tmp_path):
    flux = np.ones((2, 500), dtype="f4")
    np.savez(tmp_path / "s.npz", flux=flux, ivar=np.array([[900.0], [1600.0]]) * flux)
    text = '[spectra]\nfile = "s.npz"\nivar = "ivar"\norientation = "rows"\n' + LINEAR
    np.testing.assert_allclose(ingest(tmp_path, text).column("snr"), [30, 40], rtol=1e-6)


def test_bad_noise_is_a_bad_pixel(tmp_path):
    error = np.full((2, 20), 0.1)
    error[0, :5] = [0, -1, np.nan, np.inf, 1e-30]
    np.savez(tmp_path / "s.npz", flux=np.ones((2, 20)), err=error)
    text = '[spectra]\nfile = "s.npz"\nerror = "err"\norientation = "rows"\n' + LINEAR
    good = ingest(tmp_path, text).batch(0, 2).spectra.good
    assert not good[0, :5].any()
    assert good[0, 5:].all()
    assert good[1].all()


# Tables


def label_table():
    """Labels in another order than the spectra, one star missing, one more."""
    return Table(
        {
            "ID": ["star4", "star2", "other", "star0", "star1"],
            "Teff_cal": [5004.0, 5002.0, 1.0, 5000.0, -9999.0],
            "plx": np.array([4.0, 2.0, 1.0, 0.5, 1.5]) * 1e-3 * u.arcsec,
            "mag": [10.0, 99.99, 11.0, 12.0, -9999.0],
            "count": MaskedColumn([1, 2, 3, 4, 5], mask=[0, 1, 0, 0, 0]),
        }
    )


@pytest.mark.parametrize(
    ("file", "kind"),
    [
        ("t.fits", "fits"),
        ("t.vot", "votable"),
        ("t.ecsv", "ascii.ecsv"),
        ("t.csv", "ascii.csv"),
        ("t.parquet", "parquet"),
    ],
)
def test_tables_join_by_identifier(tmp_path, caplog, file, kind):
    write_npz(tmp_path)
    table = label_table()
    if kind == "parquet":
        arrays = {n: table[n].tolist() for n in table.colnames}
        parquet.write_table(pa.table(arrays), tmp_path / file)
    else:
        table.write(tmp_path / file, format=kind)
    text = NPZ + f'[[table]]\nfile = "{file}"\nid = "ID"\n[columns]\nteff = "Teff_cal"\n'
    text += 'parallax = { name = "plx", unit = "arcsec" }\nj_m = "mag"\nsnr = "count"\n'
    with caplog.at_level(logging.WARNING):
        survey = ingest(tmp_path, text)
    assert "1 of 5 spectra are not in" in caplog.text
    nan = np.nan
    np.testing.assert_array_equal(survey.column("teff"), [5000, nan, 5002, nan, 5004])
    np.testing.assert_allclose(survey.column("parallax"), [0.5, 1.5, 2, nan, 4])
    np.testing.assert_array_equal(survey.column("j_m"), [12, nan, nan, nan, 10])
    assert survey.column("snr")[[0, 1, 4]].tolist() == [4, 5, 1]


def test_units_of_the_file_are_converted(tmp_path):
    write_npz(tmp_path)
    label_table().write(tmp_path / "t.fits")
    text = NPZ + '[[table]]\nfile = "t.fits"\nid = "ID"\n[columns]\nparallax = "plx"\n'
    np.testing.assert_allclose(
        ingest(tmp_path, text).column("parallax"), [0.5, 1.5, 2, np.nan, 4], rtol=1e-12
    )


def test_several_tables_row_by_row_and_own_missing_values(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "a.csv").write_text("x,y\n" + "".join(f"{k},0\n" for k in range(N_STAR)))
    (tmp_path / "b.tsv").write_text("x\tz\n" + "".join(f"{9 - k}\t-5\n" for k in range(N_STAR)))
    text = (
        "missing = [0]\n" + NPZ + '[[table]]\nfile = "a.csv"\n[[table]]\nfile = "b.tsv"\n'
        'name = "second"\n[columns]\nteff = { name = "x", table = "second", missing = 7 }\n'
        'logg = { name = "x", table = "a.csv", missing = [] }\nm_h = "y"\nfe_h = "z"\n'
    )
    survey = ingest(tmp_path, text)
    np.testing.assert_array_equal(survey.column("teff"), [9, 8, np.nan, 6, 5])
    np.testing.assert_array_equal(survey.column("logg"), np.arange(N_STAR))
    assert np.isnan(survey.column("m_h")).all()
    assert np.all(survey.column("fe_h") == -5)


def test_identifiers_and_stars_from_a_table_in_order(tmp_path):
    write_npz(tmp_path)
    rows = "".join(f"{1000 + k},{'' if k == 4 else k // 2}\n" for k in range(N_STAR))
    (tmp_path / "a.csv").write_text("obs,star\n" + rows)
    text = (
        NPZ.replace('id = "id"', 'orientation = "rows"') + '[[table]]\nfile = "a.csv"\n[columns]\n'
    )
    survey = ingest(tmp_path, text + 'id = "obs"\nstar_id = "star"\n')
    assert survey.id.tolist() == ["1000", "1001", "1002", "1003", "1004"]
    assert survey.star_id.tolist() == ["0", "0", "1", "1", "1004"]


def test_stars_are_found_by_equal_photometry(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "a.csv").write_text("p,g,j\n1,9,8\n2,9,8\n1,9,8\n1,9,\n1,9,\n")
    text = NPZ + '[[table]]\nfile = "a.csv"\n[columns]\nparallax = "p"\n'
    survey = ingest(tmp_path, text + 'phot_g_mean_mag = "g"\nj_m = "j"\n')
    assert survey.star_id.tolist() == ["star0", "star1", "star0", "star3", "star4"]


CA = (
    '[[label]]\nname = "ca_fe"\nsymbol = "[Ca/Fe]"\nunit = "dex"\n'
    'description = "Calcium"\nrange = [-0.4, 0.6]\n'
)


def test_upper_limits_are_no_values_of_a_label(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "a.csv").write_text("ca,lim\n0.1,0\n0.2,1\n,1\n0.4,\n0.5,2\n")
    text = NPZ + '[[table]]\nfile = "a.csv"\n[columns]\nca_fe = "ca"\n'
    survey = ingest(tmp_path, text + 'ca_fe_upper_limit = "lim"\n' + CA)
    nan = np.nan
    np.testing.assert_allclose(survey.labels(["ca_fe"])[:, 0], [0.1, nan, nan, 0.4, nan])
    np.testing.assert_allclose(survey.upper_limits(["ca_fe"])[:, 0], [nan, 0.2, nan, nan, 0.5])
    assert survey.label_names == ("ca_fe",)


def test_further_labels_mark_and_provenance(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "a.csv").write_text("ca\n0.1\n0.2\n0.3\n0.4\n0.5\n")
    text = "simulated = true\n" + NPZ + '[[table]]\nfile = "a.csv"\n'
    survey = ingest(tmp_path, text + '[columns]\nca_fe = "ca"\n' + CA)
    assert survey.simulated
    assert survey.label_names == ("ca_fe",)
    assert survey.label_definitions[-1].description == "Calcium"
    assert [f["name"] for f in survey.provenance["files"]] == ["s.npz", "a.csv"]
    assert survey.provenance["options"]["spectra"]["file"] == "s.npz"


def test_paths_are_relative_to_the_configuration(tmp_path, monkeypatch):
    write_npz(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (tmp_path / "c.toml").write_text(NPZ)
    check_spectra(ingest_toml("../c.toml", "out.zarr"))


def test_examples_in_the_documentation_are_valid(tmp_path):
    document = Path(__file__).parents[2] / "docs" / "guides" / "ingest.md"
    examples = re.findall(r"```toml\n(.*?)```", document.read_text("utf-8"), re.DOTALL)
    whole = [
        example for example in examples if "[spectra]" in example and "[wavelength]" in example
    ]
    assert len(whole) >= 2, "the rest are parts of configurations, each beside its explanation"
    for example in whole:
        (tmp_path / "c.toml").write_text(example)
        config, _ = load_config(tmp_path / "c.toml")
        assert config.wavelength.medium in ("air", "vacuum")


# Wrong configurations


def test_every_fault_of_a_configuration_is_told_at_once(tmp_path):
    text = (
        'simulatd = true\n[spectra]\nfil = "s.npz"\nfile = "s.npz"\n'
        "[wavelength]\nstart = 8500.0\nstepp = 0.5\n"
        '[columns]\nteff = { name = "T", unt = "K" }\nparalax = "p"\n' + CA.replace("dex", "dex\\")
    )
    with pytest.raises(ConfigError, match="cannot read"):
        ingest(tmp_path, text)
    text = text.replace("dex\\", "dex").replace("range", "rang")
    with pytest.raises(ConfigError) as caught:
        ingest(tmp_path, text)
    message = str(caught.value)
    for words in [
        "simulatd: unknown key; did you mean 'simulated'?",
        "spectra.fil: unknown key; did you mean 'file'?",
        "wavelength.medium: must be given",
        "wavelength.stepp: unknown key; did you mean 'step'?",
        "columns.teff.unt: unknown key; did you mean 'unit'?",
        "columns.paralax: unknown column; did you mean 'parallax'?",
        "label 1, rang",
    ]:
        assert words in message


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"air"', '"water"', "medium.*'air' or 'vacuum'"),
        ('file = "s.npz"', "", "either 'file' or 'folder'"),
        ('file = "s.npz"', 'file = "s.npz"\nfolder = "in"', "either 'file' or 'folder'"),
        ('ivar = "ivar"', 'ivar = "ivar"\nerror = "e"', "either 'ivar' or 'error'"),
        ("step = 0.5", "", "'start' and 'step' go together"),
        ("step = 0.5", "step = -0.5", "positive"),
        ("step = 0.5", "step = 0.5\nvalues = 2", "either 'start' and 'step', or 'values'"),
        ("step = 0.5", 'step = 0.5\n[columns]\nteff = {name = "T", table = "x"}', "called 'x'"),
        ("step = 0.5", "step = 0.5\nlabel = 3\n", "label"),
    ],
)
def test_wrong_settings(tmp_path, old, new, words):
    assert old in NPZ
    with pytest.raises(ConfigError, match=words):
        ingest(tmp_path, NPZ.replace(old, new))


def test_all_missing_files_are_named(tmp_path):
    with pytest.raises(InputFileError, match=r"s\.npz.*t\.csv"):
        ingest(tmp_path, NPZ + '[[table]]\nfile = "t.csv"\n')


# Wrong files


def join_text(columns='teff = "T"', table_id="ID", file="t.csv"):
    key = f'id = "{table_id}"\n' if table_id else ""
    return NPZ + f'[[table]]\nfile = "{file}"\n{key}[columns]\n{columns}\n'


def rows(*lines):
    return "\n".join(lines) + "\n"


ONE_EACH = [f"star{k},{k}" for k in range(N_STAR)]


@pytest.mark.parametrize(
    ("csv", "text", "error", "words"),
    [
        (rows("ID,T", *ONE_EACH, "star1,4"), join_text(), IdentifierError, "'star1'"),
        (rows("ID,T", "a,1"), join_text(), IdentifierError, "none of the identifiers"),
        (rows("ID,T", *ONE_EACH), join_text('teff = "Tef"'), ColumnError, "no table has.*'Tef'"),
        (rows("ID,T", *ONE_EACH), join_text(table_id="IDD"), ColumnError, "did you mean 'ID'"),
        (rows("ID,T", "star0,hot"), join_text(), ColumnError, "'T' must hold numbers.*hot"),
        (rows("ID,T", "star0,1"), join_text(table_id=None), LengthMismatch, "5 spectra.*1 rows"),
        (rows("ID,T", "star0,1", "star1"), join_text(), InputFileError, "t.csv"),
        (rows("ID,T"), join_text(), InputFileError, "no rows"),
        (rows("ID,T,T", "star0,1,2"), join_text(), ColumnError, "more than one column"),
        (
            rows("ID,T", *ONE_EACH),
            join_text('teff = { name = "T", unit = "mag" }'),
            ColumnError,
            "unit 'mag' cannot be converted to K",
        ),
        (
            rows("ID,T", *ONE_EACH),
            join_text('teff = { name = "T", unit = "Kelvinn" }'),
            ColumnError,
            "'Kelvinn'",
        ),
        (
            rows("ID,T", *ONE_EACH),
            join_text('id = "ID"'),
            IdentifierError,
            "itself is joined by id",
        ),
        (
            rows("ID,T", *ONE_EACH),
            join_text().replace('id = "id"', 'orientation = "rows"'),
            IdentifierError,
            "have none",
        ),
    ],
)
def test_each_fault_of_a_table_is_one_clear_error(tmp_path, csv, text, error, words):
    write_npz(tmp_path)
    (tmp_path / "t.csv").write_text(csv)
    with pytest.raises(error, match=words):
        ingest(tmp_path, text)
    assert not (tmp_path / "out.zarr").exists()


def test_a_column_in_two_tables_must_be_told_apart(tmp_path):
    write_npz(tmp_path)
    for name in ("t.csv", "v.csv"):
        (tmp_path / name).write_text(rows("ID,T", *ONE_EACH))
    text = join_text().replace("[columns]", '[[table]]\nfile = "v.csv"\nid = "ID"\n[columns]')
    with pytest.raises(ColumnError, match=r"t\.csv and v\.csv"):
        ingest(tmp_path, text)


def test_identifiers_as_floating_point_numbers_are_refused_once_inexact(tmp_path):
    np.savez(tmp_path / "s.npz", flux=FLUX, ivar=IVAR)
    table = Table({"ID": 1e18 + np.arange(N_STAR), "ok": np.arange(N_STAR, dtype=float)})
    table.write(tmp_path / "t.fits")
    text = (
        NPZ.replace('id = "id"', 'orientation = "rows"')
        + '[[table]]\nfile = "t.fits"\n[columns]\nid = '
    )
    with pytest.raises(IdentifierError, match="lost digits"):
        ingest(tmp_path, text + '"ID"\n')
    assert ingest(tmp_path, text + '"ok"\n').id.tolist() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("arrays", "error", "words"),
    [
        ({"ivar": IVAR[:3]}, LengthMismatch, "its noise 3"),
        ({"id": IDS[:3]}, LengthMismatch, "3 identifiers"),
        ({"id": np.array(["a"] * N_STAR)}, IdentifierError, "'a'"),
        ({"flux": FLUX[:0], "ivar": IVAR[:0]}, InputFileError, "no spectra"),
        ({"flux": np.array([FLUX, None], dtype=object)}, InputFileError, "cannot be read"),
        ({"flux": FLUX.astype("U8")}, InputFileError, "must hold numbers"),
        ({"flux": FLUX[None]}, InputFileError, "one or two axes"),
        ({"fluxes": FLUX, "flux": None}, InputFileError, "did you mean 'fluxes'"),
        ({"id": np.array([None] * N_STAR)}, InputFileError, "cannot be read"),
    ],
)
def test_each_fault_of_arrays_is_one_clear_error(tmp_path, arrays, error, words):
    content = {"flux": FLUX, "ivar": IVAR, "id": IDS, **arrays}
    np.savez(tmp_path / "s.npz", **{k: v for k, v in content.items() if v is not None})
    text = NPZ.replace('id = "id"', 'id = "id"\norientation = "rows"')
    with pytest.raises(error, match=words):
        ingest(tmp_path, text)


@pytest.mark.parametrize(
    ("wave", "error", "words"),
    [
        (WAVE[[1, 0, *range(2, N_PIXEL)]], WavelengthError, "unsorted"),
        (np.where(np.arange(N_PIXEL) == 7, WAVE - 0.5, WAVE), WavelengthError, "overlapping"),
        (np.where(np.arange(N_PIXEL) == 7, np.nan, WAVE), WavelengthError, "finite"),
        (WAVE[:50], WavelengthError, "50 wavelengths for 60 pixels"),
    ],
)
def test_wrong_wavelengths(tmp_path, wave, error, words):
    np.savez(tmp_path / "s.npz", flux=FLUX, wave=wave)
    text = '[spectra]\nfile = "s.npz"\norientation = "rows"\n'
    with pytest.raises(error, match=words):
        ingest(tmp_path, text + '[wavelength]\nmedium = "air"\nvalues = "wave"\n')


def test_unknown_orientation_and_unknown_grid(tmp_path):
    np.savez(tmp_path / "s.npz", flux=FLUX)
    fits.PrimaryHDU(FLUX).writeto(tmp_path / "s.fits")
    with pytest.raises(GridMismatch, match="orientation"):
        ingest(tmp_path, '[spectra]\nfile = "s.npz"\n' + LINEAR)
    text = '[spectra]\nfile = "s.fits"\norientation = "rows"\n[wavelength]\nmedium = "air"\n'
    with pytest.raises(WavelengthError, match="'start' and 'step'"):
        ingest(tmp_path, text)
    with pytest.raises(WavelengthError, match="no unit of length"):
        ingest(tmp_path, text + 'start = 850\nstep = 0.1\nunit = "K"\n')


def test_number_of_pixels_tells_the_orientation(tmp_path):
    np.savez(tmp_path / "s.npz", flux=FLUX.T)
    check_spectra(ingest(tmp_path, '[spectra]\nfile = "s.npz"\n' + LINEAR + "n = 60\n"), ivar=False)


def test_spectra_of_different_length_in_a_column(tmp_path):
    table = pa.table({"flux": [[1.0, 2.0, 3.0], [1.0, 2.0]]})
    parquet.write_table(table, tmp_path / "s.parquet")
    with pytest.raises(GridMismatch, match="2, 3 pixels"):
        ingest(tmp_path, '[spectra]\nfile = "s.parquet"\n' + LINEAR)


@pytest.mark.parametrize("column", ["Teff", "name"])
def test_a_column_without_arrays_holds_no_spectra(tmp_path, column):
    table_of_spectra().write(tmp_path / "s.fits")
    with pytest.raises(ColumnError, match="array of numbers"):
        ingest(tmp_path, f'[spectra]\nfile = "s.fits"\nflux = "{column}"\n' + LINEAR)


VOTABLE = """<?xml version="1.0"?>{}
<VOTABLE version="1.4"><RESOURCE><TABLE>
<FIELD name="ID" datatype="char" arraysize="*"/><FIELD name="T" datatype="double"/>
<DATA>{}</DATA></TABLE></RESOURCE></VOTABLE>"""
VOTABLE_ROWS = "<TABLEDATA><TR><TD>star0</TD><TD>5000</TD></TR></TABLEDATA>"


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (
            VOTABLE.format('<!DOCTYPE x [<!ENTITY a "b"><!ENTITY c "&a;&a;">]>', VOTABLE_ROWS),
            "entities",
        ),
        (
            VOTABLE.format("", '<BINARY><STREAM encoding="base64" href="file:///x"/></BINARY>'),
            "another address",
        ),
        ("<html/>", "no VOTable"),
        (VOTABLE.format("", VOTABLE_ROWS)[:-80], "t.vot"),
        ("", "t.vot"),
    ],
)
def test_hostile_votables(tmp_path, document, words):
    write_npz(tmp_path)
    (tmp_path / "t.vot").write_text(document)
    with pytest.raises(InputFileError, match=words):
        ingest(tmp_path, join_text(file="t.vot"))


def test_a_plain_votable_passes_the_guard(tmp_path):
    write_npz(tmp_path)
    (tmp_path / "t.vot").write_text(VOTABLE.format("<!-- <!ENTITY a> -->", VOTABLE_ROWS))
    assert ingest(tmp_path, join_text(file="t.vot")).column("teff")[0] == 5000


def test_pickles_are_never_loaded(tmp_path):
    ran = tmp_path / "ran"

    class Evil:
        def __reduce__(self):
            return (Path.touch, (ran,))

    np.save(tmp_path / "s.npy", np.array([Evil()], dtype=object), allow_pickle=True)
    (tmp_path / "p.npz").write_bytes((tmp_path / "s.npy").read_bytes())
    for name in ("s.npy", "p.npz"):
        with pytest.raises(InputFileError):
            ingest(tmp_path, f'[spectra]\nfile = "{name}"\norientation = "rows"\n' + LINEAR)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("b.fits", b"SIMPLE  =", "b.fits"),
        ("b.txt", b"8500 1\n8501\n", "b.txt"),
        ("b.txt", b"8500 1 3\n8501 1 3\n", "3 columns, expected 2"),
        ("b.txt", b"", "no rows"),
        ("b.txt", b"\xff\xfe\x00", "b.txt"),
        ("b.txt", b"8501 1\n8500 1\n8502 1\n", "b.txt: unsorted"),
    ],
)
def test_a_bad_file_in_a_folder_is_named(tmp_path, name, content, words):
    (tmp_path / "in").mkdir()
    np.savetxt(tmp_path / "in" / "a.txt", np.column_stack([WAVE, FLUX[0]]))
    (tmp_path / "in" / name).write_bytes(content)
    with pytest.raises(InputFileError, match=words):
        ingest(tmp_path, FOLDER.format(""))


def test_a_folder_without_files_and_equal_stems(tmp_path):
    (tmp_path / "in").mkdir()
    with pytest.raises(InputFileError, match="no file"):
        ingest(tmp_path, FOLDER.format(""))
    for name in ("a.txt", "a.dat"):
        np.savetxt(tmp_path / "in" / name, np.column_stack([WAVE, FLUX[0]]))
    with pytest.raises(IdentifierError, match="'a'"):
        ingest(tmp_path, FOLDER.format(""))


@pytest.fixture(scope="module")
def valid_files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    table_of_spectra().write(folder / "s.fits")
    table_of_spectra().write(folder / "s.vot", format="votable")
    columns = {"name": IDS, "f": list(FLUX), "iv": list(IVAR), "Teff": np.arange(5.0)}
    parquet.write_table(pa.table(columns), folder / "s.parquet")
    return folder


@pytest.mark.parametrize("file", ["s.fits", "s.vot", "s.parquet"])
@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_read_or_refused_but_never_crash(valid_files, file, data):
    folder = valid_files
    original = (folder / file).read_bytes()
    damaged = bytearray(original)
    places = st.integers(0, min(len(original), 12000) - 1)
    for place, byte in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=6)):
        damaged[place] = byte
    length = data.draw(st.one_of(st.just(len(damaged)), places))
    (folder / f"damaged_{file}").write_bytes(bytes(damaged[:length]))
    with suppress(MauryError):
        ingest(folder, TABLE.format(file=f"damaged_{file}"), overwrite=True)


# Where arrays stand


def spectra_table(folder, name="s.fits", *more):
    """A FITS file with a table of spectra, and further HDUs."""
    table = fits.BinTableHDU(Table({"flux": FLUX, "ivar": IVAR}))
    fits.HDUList([fits.PrimaryHDU(), table, *more]).writeto(folder / name)


@pytest.mark.parametrize(
    "values",
    [
        "2",
        '"wave"\nunit = "nm"',
        '{ hdu = "GRID" }',
        '{ hdu = 3, name = "lam" }\nunit = "nm"',
        '{ hdu = 3 }\nunit = "nm"',
        '{ file = "g.fits", name = "lam" }\nunit = "nm"',
        '{ file = "w.npy" }',
        '{ file = "w.npz", name = "w" }',
        '{ file = "w.npz" }',
    ],
)
def test_the_grid_of_a_fits_table_may_stand_elsewhere(tmp_path, values):
    grid = fits.ImageHDU(WAVE, name="GRID")
    column = fits.BinTableHDU(Table({"lam": WAVE / 10}))
    spectra_table(tmp_path, "s.fits", grid, column)
    Table({"lam": WAVE / 10}).write(tmp_path / "g.fits")
    np.save(tmp_path / "w.npy", WAVE)
    np.savez(tmp_path / "w.npz", w=WAVE, wave=WAVE)
    if values.startswith('"wave"'):
        table = Table({"flux": FLUX, "ivar": IVAR, "wave": np.tile(WAVE / 10, (N_STAR, 1))})
        table.write(tmp_path / "s.fits", overwrite=True)
    text = '[spectra]\nfile = "s.fits"\nivar = "ivar"\n[wavelength]\nmedium = "air"\n'
    check_spectra(ingest(tmp_path, text + f"values = {values}\n"))


def test_a_table_that_is_named_as_a_grid_must_have_one_column(tmp_path):
    several = fits.BinTableHDU(Table({"lam": WAVE / 10, "flag": WAVE}), name="GRID")
    spectra_table(tmp_path, "s.fits", several)
    text = '[spectra]\nfile = "s.fits"\nivar = "ivar"\n[wavelength]\nmedium = "air"\n'
    with pytest.raises(InputFileError, match=r"columns lam, flag; say which by .*name ="):
        ingest(tmp_path, text + 'values = { hdu = "GRID" }\n')


@pytest.mark.parametrize("hdu", ["1", '"flux"', "2"])
def test_the_hdu_of_the_spectra_may_be_stated(tmp_path, hdu):
    table = fits.BinTableHDU(Table({"flux": 2 * FLUX}), name="TAB")
    images = [fits.ImageHDU(FLUX, name="FLUX"), table, fits.ImageHDU(9 * FLUX)]
    fits.HDUList([fits.PrimaryHDU(), *images]).writeto(tmp_path / "s.fits")
    text = f'[spectra]\nfile = "s.fits"\nhdu = {hdu}\n'
    if hdu != "2":
        text += 'orientation = "rows"\n'
    flux = ingest(tmp_path, text + LINEAR).batch(0, N_STAR).spectra.flux
    np.testing.assert_array_equal(flux, 2 * FLUX if hdu == "2" else FLUX)


def test_a_grid_for_each_spectrum_in_columns_of_an_array(tmp_path):
    waves = WAVE + np.repeat([0.0, 0.0, 0.2, 0.2, 0.0], N_PIXEL).reshape(N_STAR, N_PIXEL)
    np.savez(tmp_path / "s.npz", flux=FLUX.T, wave=waves.T)
    text = 'resample = { start = 8505.0, step = 1.0, n = 15 }\n[spectra]\nfile = "s.npz"\n'
    text += 'orientation = "columns"\n[wavelength]\nmedium = "air"\nvalues = "wave"\n'
    got = ingest(tmp_path, text).batch(0, N_STAR).spectra.flux
    for row in range(N_STAR):
        flux = FLUX[row][None].astype("f8")
        wanted, _ = Resampler(waves[row], 8505.0 + np.arange(15.0))(flux, np.ones((1, N_PIXEL)))
        np.testing.assert_allclose(got[row], wanted[0], rtol=1e-6)


def test_one_spectrum_alone_in_an_array(tmp_path):
    np.savez(tmp_path / "s.npz", flux=FLUX[0], ivar=IVAR[0])
    survey = ingest(tmp_path, '[spectra]\nfile = "s.npz"\nivar = "ivar"\n' + LINEAR)
    spectra = survey.batch(0, 1).spectra
    assert len(survey) == 1
    np.testing.assert_array_equal(spectra.flux, FLUX[:1])
    np.testing.assert_allclose(spectra.ivar, IVAR[:1], rtol=1e-6)


def test_noise_of_an_image_in_a_numpy_file(tmp_path):
    fits.PrimaryHDU(FLUX).writeto(tmp_path / "s.fits")
    np.save(tmp_path / "e.npy", 1 / np.sqrt(IVAR))
    text = '[spectra]\nfile = "s.fits"\norientation = "rows"\nerror = { file = "e.npy" }\n'
    check_spectra(ingest(tmp_path, text + LINEAR))


@pytest.mark.parametrize(
    ("file", "more", "error", "words"),
    [
        ("s.npy", 'ivar = "ivar"', InputFileError, "holds one array; give the 'file' of the other"),
        ("s.npy", 'id = "id"', ColumnError, "no array 'id' of identifiers"),
        ("s.npz", 'id = "ivar"', ColumnError, "'ivar' must be one row of text or whole numbers"),
        ("s.npz", 'id = "wave"', ColumnError, "'wave' must be one row of text or whole numbers"),
        ("s.npz", 'id = "long"', InputFileError, "has texts of 20000 bytes"),
        ("t.fits", 'ivar = "TAB"', ColumnError, "column 'a' must hold numbers"),
        ("t.fits", 'ivar = "IV"', InputFileError, "did you mean 'IVR'"),
        ("o.fits", 'format = "fits-image"', InputFileError, "one spectrum; give the 'folder'"),
        ("s.txt", 'format = "ascii"', InputFileError, "one star each; give their 'folder'"),
        ("s.csv", "", InputFileError, "not from a text table"),
    ],
)
def test_arrays_that_are_not_where_they_should_be(tmp_path, file, more, error, words):
    np.save(tmp_path / "s.npy", FLUX)
    write_npz(tmp_path, long=np.array(["x" * 5000] * N_STAR))
    hdus = [fits.PrimaryHDU(FLUX), fits.BinTableHDU(Table({"a": IDS}), name="TAB")]
    fits.HDUList([*hdus, fits.ImageHDU(IVAR, name="IVR")]).writeto(tmp_path / "t.fits")
    fits.PrimaryHDU(FLUX[0]).writeto(tmp_path / "o.fits")
    (tmp_path / "s.txt").write_text("8500 1\n")
    (tmp_path / "s.csv").write_text("flux\n1\n")
    text = f'[spectra]\nfile = "{file}"\norientation = "rows"\n{more}\n'
    with pytest.raises(error, match=words):
        ingest(tmp_path, text + LINEAR)


def test_a_number_of_pixels_that_the_spectra_do_not_have(tmp_path):
    write_npz(tmp_path)
    text = '[spectra]\nfile = "s.npz"\norientation = "rows"\n' + LINEAR
    with pytest.raises(GridMismatch, match=r"60 pixels, \[wavelength\] says n = 50"):
        ingest(tmp_path, text + "n = 50\n")
    check_spectra(ingest(tmp_path, text + "n = 60\n"), ivar=False)


# Where the parts of a file of one star stand


def star_file(folder, *hdus, name="a.fits", cards=(("STAR", "Vega"),)):
    (folder / "in").mkdir(exist_ok=True)
    for key, value in cards:
        hdus[-1].header[key] = value
    fits.HDUList(list(hdus)).writeto(folder / "in" / name)


ONE_STAR = '[spectra]\nfolder = "in"\n{}\n[wavelength]\nmedium = "air"\n{}\n'


@pytest.mark.parametrize("grid", ["values = 2", 'values = "LAM"', "start = 8500.0\nstep = 0.5"])
def test_the_parts_of_a_file_of_one_star(tmp_path, grid):
    images = [fits.ImageHDU(9 * FLUX[0]), fits.ImageHDU(WAVE, name="LAM")]
    images += [fits.ImageHDU(FLUX[0], name="SCI"), fits.ImageHDU(IVAR[0][None], name="IV")]
    star_file(tmp_path, fits.PrimaryHDU(), *images)
    survey = ingest(tmp_path, ONE_STAR.format('hdu = "SCI"\nid = "STAR"\nivar = "IV"', grid))
    spectra = survey.batch(0, 1).spectra
    assert survey.id.tolist() == ["Vega"]
    np.testing.assert_array_equal(spectra.flux[0], FLUX[0])
    np.testing.assert_allclose(spectra.ivar[0], IVAR[0], rtol=1e-6)
    np.testing.assert_allclose(survey.wave_aa, WAVE)


@pytest.mark.parametrize(
    ("more", "grid", "error", "words"),
    [
        ('id = "NAME"', "start = 8500.0\nstep = 0.5", InputFileError, "no header card 'NAME'"),
        ("", "", WavelengthError, "no wavelength cards.*'values', in"),
        ("", "values = 1", LengthMismatch, "59 wavelengths, but 60 values of flux"),
        ("", "values = 2", InputFileError, "HDU 'TAB' is no image; name one, or a column"),
        ('ivar = "TAB"', "start = 8500.0\nstep = 0.5", InputFileError, "'TAB' is no image"),
        ("error = 1", "start = 8500.0\nstep = 0.5", LengthMismatch, "60 wavelengths, but 59 val"),
        ("hdu = 7", "start = 8500.0\nstep = 0.5", InputFileError, "no HDU 7"),
        ("", "start = 8500.0\nstep = 0.5\nunit = 'K'", WavelengthError, "no unit of length"),
    ],
)
def test_each_fault_of_a_file_of_one_star_is_one_clear_error(tmp_path, more, grid, error, words):
    others = [fits.ImageHDU(WAVE[:-1]), fits.BinTableHDU(Table({"a": IDS}), name="TAB")]
    star_file(tmp_path, fits.PrimaryHDU(FLUX[0]), *others)
    with pytest.raises(error, match=words):
        ingest(tmp_path, ONE_STAR.format(more, grid))


def test_a_file_in_place_of_a_folder_and_absurd_text(tmp_path, monkeypatch):
    (tmp_path / "in").write_text("8500 1\n")
    with pytest.raises(InputFileError, match="is no directory; correct 'folder'"):
        ingest(tmp_path, FOLDER.format(""))
    (tmp_path / "in").unlink()
    (tmp_path / "in").mkdir()
    np.savetxt(tmp_path / "in" / "a.txt", np.column_stack([WAVE, FLUX[0]]))
    monkeypatch.setenv("MAURY_LIMITS", "pixels=60")
    with pytest.raises(InputFileError, match=r"a\.txt has \d+ bytes of text.*pixels"):
        ingest(tmp_path, FOLDER.format(""))


def test_visits_at_one_position_are_one_star(shared, tmp_path):
    survey = ingest_toml(
        shared / "cases" / "repeats_without_photometry" / "case.toml", tmp_path / "s.zarr"
    )
    ra = survey.column("ra")
    assert (len(survey), len(set(ra)), len(set(survey.star_id))) == (80, 40, 40)
    assert all(len(set(survey.star_id[ra == one])) == 1 for one in set(ra))
    assert set(survey.column("star_id_from")) == {"position"}


def test_equal_labels_without_a_way_to_tell_stars_are_said(tmp_path, caplog):
    np.savez(tmp_path / "s.npz", flux=np.ones((4, 30)), wave=np.arange(8420.0, 8450.0))
    labels = "teff,logg\n5000,2\n5000,2\n6000,4\n5000,4\n"
    (tmp_path / "l.csv").write_text(labels)
    (tmp_path / "c.toml").write_text(
        '[spectra]\nfile = "s.npz"\n[wavelength]\nmedium = "air"\nvalues = "wave"\n'
        '[[table]]\nfile = "l.csv"\n[columns]\nteff = "teff"\nlogg = "logg"\n'
    )
    survey = ingest_toml(tmp_path / "c.toml", tmp_path / "s.zarr")
    assert "2 spectra have labels that are equal to those of others" in caplog.text
    assert survey.star_id.tolist() == [f"s.npz:{k}" for k in range(4)]
    assert survey.id.tolist() == ["0", "1", "2", "3"]
    assert set(survey.column("star_id_from")) == {"spectrum"}
