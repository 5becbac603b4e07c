"""Readers of published formats, on small files written here to the published descriptions."""

import gzip
from contextlib import ExitStack

import numpy as np
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.io import votable as vot
from astropy.table import Table
from hypothesis import given
from hypothesis import strategies as st

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
from maury.io.source_table import parse_array
from maury.spectra.spectra import arm_slices
from maury.survey.archives.ingest import ingest_recipe
from maury.survey.assembly.build_catalogues import open_catalogue
from maury.survey.assembly.build_file import CatalogueEntry
from maury.survey.assembly.flow import Flow
from maury.survey.readers import ingest_toml

RNG = np.random.default_rng(11)


def ingest(folder, text, name="out"):
    (folder / f"{name}.toml").write_text(text)
    return ingest_toml(folder / f"{name}.toml", folder / f"{name}.zarr")


# Gaia RVS. Data model: Gaia DR3 documentation, 20.12.1 rvs_mean_spectrum; structures as of the
# archive's DataLink page.

N_RVS = 2401
SOURCES = np.array([4295806720, 5853498713190525696, 38655544960], dtype=np.int64)
RVS_WAVE_NM = 846.0 + 0.01 * np.arange(N_RVS)
RVS_FLUX = (1 + RNG.normal(0, 0.02, (3, N_RVS))).astype("f4")
RVS_ERROR = RNG.uniform(0.01, 0.03, (3, N_RVS)).astype("f4")
RVS_FLUX[:, :3] = np.nan
RVS_ERROR[:, :3] = np.nan
TRANSITS = np.array([12, 30, 7])


def raw_table():
    return Table(
        {
            "source_id": SOURCES,
            "ra": [44.9, 217.4, 45.0],
            "dec": [0.1, -62.7, 0.2],
            "flux": RVS_FLUX,
            "flux_error": RVS_ERROR,
            "combined_transits": TRANSITS.astype("i2"),
        },
        units={"ra": "deg", "dec": "deg"},
    )


def one_source(k):
    columns = {
        "wavelength": RVS_WAVE_NM,
        "flux": RVS_FLUX[k].astype("f4"),
        "flux_error": RVS_ERROR[k],
    }
    return Table(columns, units={"wavelength": "nm"})


def gaia_csv(rows, *, header=()):
    def cell(values):
        return '"[' + ",".join("null" if np.isnan(v) else repr(float(v)) for v in values) + ']"'

    lines = [*header, "source_id,ra,dec,flux,flux_error,combined_transits"]
    for k in rows:
        t = raw_table()[k]
        lines.append(
            f"{t['source_id']},{t['ra']},{t['dec']},{cell(RVS_FLUX[k])},{cell(RVS_ERROR[k])},"
            f"{t['combined_transits']}"
        )
    return "\n".join(lines) + "\n"


ECSV_HEADER = (
    "# %ECSV 1.0",
    "# ---",
    "# delimiter: ','",
    "# datatype:",
    "# - {name: source_id, datatype: int64}",
    "# - {name: flux, datatype: string, subtype: 'float64[null]'}",
)


def write_fits_raw(folder):
    raw_table().write(folder / "RVS_RAW.fits")


def write_votable_raw(folder):
    raw_table().write(folder / "RVS_RAW.xml", format="votable")


def write_bulk(folder):
    for name, rows in (
        ("RvsMeanSpectrum_000000-003111.csv.gz", [0, 1]),
        ("RvsMeanSpectrum_003112-005263.csv.gz", [2]),
    ):
        with gzip.open(folder / name, "wt") as stream:
            stream.write(gaia_csv(rows, header=ECSV_HEADER))


def write_ecsv_raw(folder):
    (folder / "RVS_RAW.ecsv").write_text(gaia_csv([0, 1, 2], header=ECSV_HEADER))


def write_csv_raw(folder):
    (folder / "RVS_RAW.csv").write_text(gaia_csv([0, 1, 2]))


def write_individual(folder, suffix, **options):
    for k, source in enumerate(SOURCES):
        name = f"{k} RVS-Gaia DR3 {source}{suffix}"
        one_source(k).write(folder / name, **options)


def write_fits_individual(folder):
    write_individual(folder, ".fits")


def write_csv_individual(folder):
    write_individual(folder, ".csv", format="ascii.csv")


def votable_of(k):
    resource = vot.tree.Resource()
    table = vot.from_table(one_source(k)).get_first_table()
    return resource, table


def write_votable_combined(folder):
    file = vot.tree.VOTableFile()
    for k, source in enumerate(SOURCES):
        resource, table = votable_of(k)
        for name, value, kind in (
            ("source_id", int(source), "long"),
            ("combined_transits", int(TRANSITS[k]), "short"),
        ):
            table.params.append(vot.tree.Param(file, name=name, datatype=kind, value=value))
        resource.tables.append(table)
        file.resources.append(resource)
    file.to_xml(str(folder / "RVS_COMBINED.xml"))


def write_long(folder, name, **options):
    """One table with a row per wavelength, as DataLink serves it: each row names its source."""
    stacked = {
        name: np.concatenate([one_source(k)[name] for k in range(3)])
        for name in ("flux", "flux_error")
    }
    facts = raw_table()["source_id", "ra", "dec", "combined_transits"]
    of_source = {name: np.repeat(facts[name], N_RVS) for name in facts.colnames}
    wave = {"wavelength": np.tile(RVS_WAVE_NM, 3)}
    Table({**of_source, **wave, **stacked}).write(folder / name, **options)


def write_long_fits(folder):
    write_long(folder, "RVS_COMBINED.fits")


def write_long_csv(folder):
    write_long(folder, "RVS_COMBINED.csv", format="ascii.csv")


RVS_TOML = '[spectra]\nreader = "gaia-rvs"\nfolder = "rvs"\n'


@pytest.mark.parametrize(
    "write",
    [
        write_fits_raw,
        write_votable_raw,
        write_bulk,
        write_ecsv_raw,
        write_csv_raw,
        write_fits_individual,
        write_csv_individual,
        write_votable_combined,
        write_long_fits,
        write_long_csv,
    ],
)
def test_rvs_in_every_structure(tmp_path, write):
    (tmp_path / "rvs").mkdir()
    write(tmp_path / "rvs")
    survey = ingest(tmp_path, RVS_TOML)
    assert survey.medium == "vacuum"
    np.testing.assert_allclose(survey.wave_aa, 10 * RVS_WAVE_NM, rtol=0, atol=1e-6)
    assert survey.id.tolist() == [str(source) for source in SOURCES]
    spectra = survey.batch(0, 3).spectra
    good = np.isfinite(RVS_FLUX)
    np.testing.assert_array_equal(spectra.flux[good], RVS_FLUX[good])
    np.testing.assert_allclose(
        spectra.ivar[good], 1 / RVS_ERROR[good].astype(float) ** 2, rtol=1e-6
    )
    assert np.all(spectra.ivar[~good] == 0)
    expected = np.percentile(RVS_FLUX[:, 3:] / RVS_ERROR[:, 3:], 75, axis=1)
    np.testing.assert_allclose(survey.column("snr"), expected, rtol=1e-5)


@pytest.mark.parametrize(
    "write",
    [
        write_fits_raw,
        write_votable_raw,
        write_bulk,
        write_csv_raw,
        write_long_fits,
        write_long_csv,
    ],
)
def test_rvs_columns_beside_the_spectra(tmp_path, write):
    (tmp_path / "rvs").mkdir()
    write(tmp_path / "rvs")
    survey = ingest(
        tmp_path,
        RVS_TOML + '[columns]\nra = "ra"\ntransits = "combined_transits"\n'
        '[[observable]]\nname = "transits"\ndescription = "Transits that were combined"\n',
    )
    np.testing.assert_allclose(survey.column("ra"), [44.9, 217.4, 45.0])
    np.testing.assert_array_equal(survey.column("transits"), TRANSITS)


def test_rvs_of_a_source_without_spectrum_is_a_bad_row(tmp_path):
    (tmp_path / "rvs").mkdir()
    text = gaia_csv([0, 1])
    lines = text.splitlines()
    lines.append("77,1.0,2.0,null,,3")
    (tmp_path / "rvs" / "a.csv").write_text("\n".join(lines))
    survey = ingest(tmp_path, RVS_TOML)
    assert len(survey) == 3
    assert np.all(survey.batch(2, 3).spectra.ivar == 0)
    assert np.isnan(survey.column("snr")[2])


def short_bulk(folder):
    (folder / "a.csv").write_text(gaia_csv([0, 1])[:-30_000])


def broken_gzip(folder):
    content = gzip.compress(gaia_csv([0]).encode())
    (folder / "a.csv.gz").write_bytes(content[: len(content) // 2])


def other_product(folder):
    Table({"source_id": SOURCES, "flux": RVS_FLUX[:, :343], "flux_error": RVS_FLUX[:, :343]}).write(
        folder / "xp.fits"
    )


def no_flux(folder):
    Table({"source_id": SOURCES}).write(folder / "a.fits")


def no_source(folder):
    one_source(0).write(folder / "spectrum.fits")


def twice(folder):
    for name in "ab":
        raw_table().write(folder / f"{name}.fits")


def words_for_arrays(folder):
    text = gaia_csv([0]).replace('"[', '"').replace(']"', '"')
    (folder / "a.csv").write_text(text)


def cut_samples(folder):
    table = Table({"source_id": np.repeat(SOURCES, N_RVS), "wavelength": np.tile(RVS_WAVE_NM, 3)})
    table["flux"] = RVS_FLUX.ravel()
    table[:-5].write(folder / "a.fits")


def no_table(folder):
    fits.PrimaryHDU(RVS_FLUX).writeto(folder / "a.fits")


def garbage(folder):
    (folder / "a.fits").write_bytes(b"no fits file at all" * 200)


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (short_bulk, InputFileError, "cut short"),
        (broken_gzip, InputFileError, "cut short, damaged"),
        (other_product, GridMismatch, "343"),
        (no_flux, ColumnError, "'flux'"),
        (no_source, IdentifierError, "source_id"),
        (twice, IdentifierError, "more than once"),
        (cut_samples, GridMismatch, "2396"),
        (no_table, InputFileError, "no table"),
        (garbage, InputFileError, "cannot be read"),
        (lambda folder: None, InputFileError, "no file"),
    ],
)
def test_damaged_rvs_files_are_one_clear_error(tmp_path, damage, error, words):
    (tmp_path / "rvs").mkdir()
    damage(tmp_path / "rvs")
    with pytest.raises(error, match=words):
        ingest(tmp_path, RVS_TOML)
    assert not list(tmp_path.glob("*.zarr*"))


# ESO Phase 3: ESO Science Data Products Standard, 1-D spectra; TUCD and TUTYP as it defines them.

N_ESO = 300
ESO_WAVE = 5340.0 + 0.05 * np.arange(N_ESO)
ESO_FLUX = (1 + RNG.normal(0, 0.02, (3, N_ESO))).astype("f4")
ESO_ERROR = RNG.uniform(0.01, 0.03, (3, N_ESO)).astype("f4")


def write_phase3(
    path, k=0, *, ucd="em.wl;obs.atmos", unit="nm", extra=(), names=("WAVE", "FLUX", "ERR"), **cards
):
    primary = fits.PrimaryHDU()
    defaults = {
        "OBJECT": f"star{k}",
        "RA": 10.0 + k,
        "DEC": -5.0,
        "SNR": 50.0 + k,
        "SPEC_RES": 19200.0,
        "MJD-OBS": 56000.25,
        "SPECSYS": "BARYCENT",
        "PRODCATG": "SCIENCE.SPECTRUM",
        "CONTNORM": False,
    }
    for name, value in (defaults | cards).items():
        primary.header[name] = value
    wave = (ESO_WAVE * u.AA).to_value(unit)
    columns = [
        fits.Column(names[0], f"{N_ESO}D", unit, array=wave[None]),
        fits.Column(names[1], f"{N_ESO}E", array=ESO_FLUX[k][None]),
        fits.Column(names[2], f"{N_ESO}E", array=ESO_ERROR[k][None]),
        *(
            fits.Column(name, f"{N_ESO}{kind}", array=values[None])
            for name, kind, values, *_ in extra
        ),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="SPECTRUM")
    types = ["SpectralAxis.Value", "FluxAxis.Value", "FluxAxis.Accuracy.StatError"]
    for number, utype in enumerate(types, start=1):
        table.header[f"TUTYP{number}"] = f"Spectrum.Data.{utype}"
    for number, (*_, utype) in enumerate(extra, start=4):
        if utype:
            table.header[f"TUTYP{number}"] = utype
    if ucd:
        table.header["TUCD1"] = ucd
    fits.HDUList([primary, table]).writeto(path)


ESO_TOML = '[spectra]\nreader = "eso-phase3"\nfolder = "eso"\n'
ESO_COLUMNS = '[columns]\nra = "RA"\ndec = "DEC"\nsnr = "SNR"\nstar_id = "OBJECT"\n'


def folder_of(tmp_path):
    (tmp_path / "eso").mkdir()
    return tmp_path / "eso"


@pytest.mark.parametrize("unit", ["nm", "Angstrom"])
@pytest.mark.parametrize(("ucd", "medium"), [("em.wl;obs.atmos", "air"), ("em.wl", "vacuum")])
def test_phase3_spectra_round_trip(tmp_path, unit, ucd, medium):
    folder = folder_of(tmp_path)
    for k in range(3):
        write_phase3(folder / f"gir_{k}.fits", k, unit=unit, ucd=ucd)
    survey = ingest(tmp_path, ESO_TOML + ESO_COLUMNS)
    assert survey.medium == medium
    np.testing.assert_allclose(survey.wave_aa, ESO_WAVE, rtol=0, atol=1e-6)
    spectra = survey.batch(0, 3).spectra
    np.testing.assert_array_equal(spectra.flux, ESO_FLUX)
    np.testing.assert_allclose(spectra.ivar, 1 / ESO_ERROR.astype(float) ** 2, rtol=1e-6)
    assert survey.id.tolist() == ["gir_0", "gir_1", "gir_2"]
    assert survey.star_id.tolist() == ["star0", "star1", "star2"]
    np.testing.assert_array_equal(survey.column("ra"), [10.0, 11.0, 12.0])
    np.testing.assert_array_equal(survey.column("snr"), [50.0, 51.0, 52.0])


def test_phase3_quality_and_sky_subtraction(tmp_path):
    """The flux is that of its utype, not another array; pixels of bad quality have no weight."""
    bad = np.zeros(N_ESO, "i4")
    bad[[7, 90]] = 1
    extra = [
        ("FLUX_NOSS", "E", np.full(N_ESO, 9.0, "f4"), "Spectrum.Data.BackgroundModel.Value"),
        ("QUAL", "J", bad, "Spectrum.Data.FluxAxis.Accuracy.QualityStatus"),
    ]
    write_phase3(folder_of(tmp_path) / "a.fits", extra=extra)
    spectra = ingest(tmp_path, ESO_TOML).batch(0, 1).spectra
    good = bad == 0
    np.testing.assert_array_equal(spectra.flux[0, good], ESO_FLUX[0, good])
    np.testing.assert_array_equal(spectra.ivar[0] > 0, good)


def test_phase3_columns_by_name_where_utypes_are_absent(tmp_path):
    """As in 4MOST's spectra, whose error is ERR_FLUX."""
    folder = folder_of(tmp_path)
    write_phase3(folder / "a.fits", names=("WAVE", "FLUX", "ERR_FLUX"))
    with fits.open(folder / "a.fits") as hdus:
        for k in (1, 2, 3):
            del hdus[1].header[f"TUTYP{k}"]
        hdus.writeto(folder / "b.fits")
    (folder / "a.fits").unlink()
    spectra = ingest(tmp_path, ESO_TOML).batch(0, 1).spectra
    np.testing.assert_array_equal(spectra.flux[0], ESO_FLUX[0])
    np.testing.assert_allclose(spectra.ivar[0], 1 / ESO_ERROR[0].astype(float) ** 2, rtol=1e-6)


def test_phase3_without_errors_takes_the_noise_of_its_snr(tmp_path):
    """Some collections fill the column of errors with NaN: then S/N tells the noise."""
    folder = folder_of(tmp_path)
    write_phase3(folder / "a.fits", names=("WAVE", "FLUX", "ERR"))
    with fits.open(folder / "a.fits", mode="update") as hdus:
        hdus[1].data["ERR"][:] = np.nan
    survey = ingest(tmp_path, ESO_TOML + '[columns]\nsnr = "SNR"\n')
    ivar = survey.batch(0, 1).spectra.ivar
    np.testing.assert_allclose(ivar[0], 50.0**2 / ESO_FLUX[0], rtol=1e-5)


def test_phase3_medium_may_be_stated_where_a_file_does_not_say_it(tmp_path):
    write_phase3(folder_of(tmp_path) / "a.fits", ucd="")
    with pytest.raises(ConfigError, match="air or in vacuum"):
        ingest(tmp_path, ESO_TOML)
    assert ingest(tmp_path, ESO_TOML + '[wavelength]\nmedium = "air"\n').medium == "air"


def test_phase3_medium_against_the_files(tmp_path):
    write_phase3(folder_of(tmp_path) / "a.fits")
    with pytest.raises(ConfigError, match="in air"):
        ingest(tmp_path, ESO_TOML + '[wavelength]\nmedium = "vacuum"\n')


def two_media(folder):
    write_phase3(folder / "a.fits")
    write_phase3(folder / "b.fits", ucd="em.wl")


def two_rows(folder):
    Table({"WAVE": ESO_WAVE, "FLUX": ESO_FLUX[0]}).write(folder / "a.fits")


def no_wave(folder):
    write_phase3(folder / "a.fits", names=("X", "FLUX", "ERR"))
    with fits.open(folder / "a.fits", mode="update") as hdus:
        del hdus[1].header["TUTYP1"]


def frequencies(folder):
    write_phase3(folder / "a.fits")
    with fits.open(folder / "a.fits", mode="update") as hdus:
        hdus[1].header["TUNIT1"] = "Hz"


def cut_short(folder):
    write_phase3(folder / "a.fits")
    content = (folder / "a.fits").read_bytes()
    (folder / "a.fits").write_bytes(content[:-2880])


def falling(folder):
    write_phase3(folder / "a.fits")
    with fits.open(folder / "a.fits", mode="update") as hdus:
        hdus[1].data["WAVE"][0, 5:7] = hdus[1].data["WAVE"][0, [6, 5]]


def other_grid(folder):
    write_phase3(folder / "a.fits")
    write_phase3(folder / "b.fits", 1)
    with fits.open(folder / "b.fits", mode="update") as hdus:
        hdus[1].data["WAVE"] = hdus[1].data["WAVE"] + 1.0


def unequal(folder):
    write_phase3(folder / "a.fits")
    with fits.open(folder / "a.fits") as hdus:
        primary, table = hdus[0].copy(), hdus[1]
        columns = [
            fits.Column("WAVE", "10D", "nm", array=[[*range(500, 510)]]),
            *table.columns[1:],
        ]
        fits.HDUList([primary, fits.BinTableHDU.from_columns(columns)]).writeto(
            folder / "a.fits", overwrite=True
        )


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [
        (two_media, WavelengthError, "different media"),
        (two_rows, InputFileError, "one row"),
        (no_wave, ColumnError, "wavelengths"),
        (frequencies, WavelengthError, "Hz"),
        (cut_short, InputFileError, "cut short"),
        (falling, WavelengthError, "unsorted"),
        (other_grid, GridMismatch, "resample"),
        (unequal, LengthMismatch, "equally many"),
    ],
)
def test_damaged_phase3_files_are_one_clear_error(tmp_path, damage, error, words):
    damage(folder_of(tmp_path))
    with pytest.raises(error, match=words):
        ingest(tmp_path, ESO_TOML + ('[wavelength]\nmedium = "air"\n' if damage is unequal else ""))
    assert not list(tmp_path.glob("*.zarr*"))


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        (ESO_TOML.replace("phase3", "phase2"), "eso-phase3"),
        (ESO_TOML + 'flux = "FLUX"\n', "leave out flux"),
        (ESO_TOML + '[wavelength]\nmedium = "air"\nstart = 1.0\nstep = 1.0\n', "leave out start"),
    ],
)
def test_wrong_settings_of_a_reader(tmp_path, toml, words):
    write_phase3(folder_of(tmp_path) / "a.fits")
    with pytest.raises(MauryError, match=words):
        ingest(tmp_path, toml)


# WEAVE level 1: images <ARM>_DATA, <ARM>_IVAR, ..., <ARM>_SENSFUNC and FIBTABLE, as the data
# products of the core processing system are described.

N_WEAVE, N_FIBRE = 120, 4
WEAVE_DATA = RNG.uniform(100, 200, (N_FIBRE, N_WEAVE)).astype("f4")
WEAVE_IVAR = np.full((N_FIBRE, N_WEAVE), 0.04, "f4")
SENS = (1e-17 * (1 + np.linspace(-0.2, 0.2, N_WEAVE)) * np.ones((N_FIBRE, 1))).astype("f4")
TARGUSE = ["T", "S", "T", "C"]


def write_weave(path, arm="RED", *, sens=SENS, use=TARGUSE, ctype="AWAV", start=5900.0):
    hdus = [fits.PrimaryHDU()]
    arrays = {
        "DATA": WEAVE_DATA,
        "IVAR": WEAVE_IVAR,
        "DATA_NOSS": WEAVE_DATA + 50,
        "IVAR_NOSS": WEAVE_IVAR,
        "SENSFUNC": sens,
    }
    for name, values in arrays.items():
        hdu = fits.ImageHDU(values, name=f"{arm}_{name}")
        hdu.header.update({"CRVAL1": start, "CD1_1": 0.25, "CRPIX1": 1.0, "CTYPE1": ctype})
        hdus.append(hdu)
    table = Table(
        {
            "CNAME": [f"WVE_{k}" for k in range(N_FIBRE)],
            "TARGRA": 10.0 + np.arange(N_FIBRE),
            "TARGUSE": use,
            "Nspec": np.arange(1, N_FIBRE + 1),
            "SNR": 20.0 + np.arange(N_FIBRE),
        }
    )
    hdus.append(fits.BinTableHDU(table, name="FIBTABLE"))
    fits.HDUList(hdus).writeto(path)


WEAVE_TOML = '[spectra]\nreader = "weave-l1"\nfolder = "weave"\n'


def test_weave_fibres_on_targets(tmp_path):
    (tmp_path / "weave").mkdir()
    write_weave(tmp_path / "weave" / "single_1002.fit")
    write_weave(tmp_path / "weave" / "single_1004.fit")
    columns = '[columns]\nra = "TARGRA"\nstar_id = "CNAME"\nsnr = "SNR"\n'
    survey = ingest(tmp_path, WEAVE_TOML + columns)
    assert survey.medium == "air"
    np.testing.assert_allclose(survey.wave_aa, 5900.0 + 0.25 * np.arange(N_WEAVE))
    assert survey.id.tolist() == [f"single_{k}_{n}" for k in (1002, 1004) for n in (1, 3, 4)]
    assert survey.star_id.tolist() == ["WVE_0", "WVE_2", "WVE_3"] * 2
    np.testing.assert_array_equal(survey.column("snr"), [20.0, 22.0, 23.0] * 2)
    scale = SENS / np.median(SENS, axis=1, keepdims=True)
    spectra = survey.batch(0, 6).spectra
    rows = [0, 2, 3]
    np.testing.assert_allclose(spectra.flux[:3], (WEAVE_DATA * scale)[rows], rtol=1e-6)
    np.testing.assert_allclose(spectra.ivar[3:], (WEAVE_IVAR / scale**2)[rows], rtol=1e-6)


def test_weave_arms_by_reader(tmp_path):
    (tmp_path / "weave").mkdir()
    write_weave(tmp_path / "weave" / "stack_1.fit", "BLUE", start=4000.0)
    write_weave(tmp_path / "weave" / "stack_2.fit", "RED")
    with pytest.raises(WavelengthError, match="BLUE, RED"):
        ingest(tmp_path, WEAVE_TOML)
    for arm, start in (("blue", 4000.0), ("red", 5900.0)):
        survey = ingest(tmp_path, WEAVE_TOML.replace("weave-l1", f"weave-l1-{arm}"), name=arm)
        assert survey.wave_aa[0] == start


def test_weave_pixels_without_sensitivity_are_bad(tmp_path):
    (tmp_path / "weave").mkdir()
    sens = SENS.copy()
    sens[0, :5], sens[2] = 0.0, np.nan
    write_weave(tmp_path / "weave" / "a.fit", sens=sens)
    ivar = ingest(tmp_path, WEAVE_TOML).batch(0, 3).spectra.ivar
    np.testing.assert_array_equal(ivar[0] > 0, np.arange(N_WEAVE) >= 5)
    assert np.all(ivar[1] == 0)
    assert np.all(ivar[2] > 0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"use": ["S"] * 4}, InputFileError, "no fibre"),
        ({"arm": "NIR"}, InputFileError, "BLUE_DATA"),
        ({"ctype": "WAVE"}, ConfigError, "air or in vacuum"),
    ],
)
def test_damaged_weave_files_are_one_clear_error(tmp_path, change, error, words):
    (tmp_path / "weave").mkdir()
    write_weave(tmp_path / "weave" / "a.fit", **change)
    with pytest.raises(error, match=words):
        ingest(tmp_path, WEAVE_TOML)


def test_weave_tables_of_other_fibres_are_told(tmp_path):
    (tmp_path / "weave").mkdir()
    write_weave(tmp_path / "weave" / "a.fit")
    with fits.open(tmp_path / "weave" / "a.fit") as hdus:
        hdus["FIBTABLE"].data = hdus["FIBTABLE"].data[:3]
        hdus.writeto(tmp_path / "weave" / "a.fit", overwrite=True)
    with pytest.raises(LengthMismatch, match="3 rows"):
        ingest(tmp_path, WEAVE_TOML)


# 4MOST: as of ESO Phase 3, with WAVE, FLUX, ERR_FLUX, QUAL, FLUX_NOSS, ERR_FLUX_NOSS in the
# extension PHASE3SPECTRUM; the arms of the high-resolution spectrograph leave gaps.


def test_4most_high_resolution_spectrum_with_gaps(tmp_path):
    wave = np.concatenate([start + 0.05 * np.arange(100) for start in (3926.0, 5160.0, 6100.0)])
    flux, qual = np.linspace(1, 2, 300), np.zeros(300, "i4")
    qual[:4] = 1
    columns = [
        fits.Column("WAVE", "300D", "Angstrom", array=wave[None]),
        fits.Column("FLUX", "300E", array=flux[None]),
        fits.Column("ERR_FLUX", "300E", array=np.full((1, 300), 0.02)),
        fits.Column("QUAL", "300J", null=-1, array=qual[None]),
        fits.Column("FLUX_NOSS", "300E", array=np.full((1, 300), 9.0)),
        fits.Column("ERR_FLUX_NOSS", "300E", array=np.full((1, 300), 1.0)),
    ]
    table = fits.BinTableHDU.from_columns(columns, name="PHASE3SPECTRUM")
    table.header["TUCD1"] = "em.wl"
    primary = fits.PrimaryHDU()
    primary.header.update({"OBJECT": "x", "SPECSYS": "BARYCENT", "SPEC_RES": 20000.0})
    folder = folder_of(tmp_path)
    fits.HDUList([primary, table]).writeto(folder / "20300101_LJ1.fits")
    survey = ingest(tmp_path, ESO_TOML)
    arms = arm_slices(survey.wave_aa)
    assert [arm.stop - arm.start for arm in arms] == [101, 102, 101]
    spectra = survey.batch(0, 1).spectra
    good = spectra.ivar[0] > 0
    np.testing.assert_allclose(survey.wave_aa[good], wave[4:])
    np.testing.assert_allclose(spectra.flux[0, good], flux[4:], rtol=1e-6)
    np.testing.assert_allclose(spectra.ivar[0, good], 2500.0, rtol=1e-5)


# Recipes


def catalogue(folder, recipe, columns, *, suffix=".fits", **options):
    """Open a catalogue as `maury build` does, cut it, and return it."""
    path = folder / f"catalogue{suffix}"
    if suffix == ".fits":
        Table(columns).write(path)
    else:
        Table(columns).write(path, format="ascii.csv")
    entry = CatalogueEntry(recipe=recipe, file=path, **options)
    with ExitStack() as stack:
        found = open_catalogue(entry, Flow(), stack)
        values = {name: found.values(name) for name in found.column_names}
        return found.identifiers("id").tolist(), values


GAIA = {
    "source_id": SOURCES,
    "ra": [1.0, 2.0, 3.0],
    "dec": [-1.0, 0.0, 1.0],
    "pmra": [1.0, 1.0, 1.0],
    "pmdec": [1.0, 1.0, 1.0],
    "parallax": [2.0, np.nan, 0.5],
    "parallax_error": [0.1, np.nan, 0.3],
    "parallax_over_error": [20.0, np.nan, 1.7],
    "phot_g_mean_mag": [11.0, 12.0, 13.0],
    "phot_bp_mean_mag": [11.5, np.nan, 13.5],
    "phot_rp_mean_mag": [10.5, 11.5, 12.5],
    "ruwe": [1.0, 1.6, 1.1],
    "duplicated_source": [False, False, True],
    "non_single_star": [0, 0, 2],
    "ebpminrp_gspphot": [0.1, np.nan, 0.2],
}


@pytest.mark.parametrize("suffix", [".fits", ".csv"])
def test_gaia_source(tmp_path, suffix):
    ids, values = catalogue(tmp_path, "gaia-dr3", GAIA, suffix=suffix)
    assert ids == [str(SOURCES[0]), str(SOURCES[2])]
    np.testing.assert_array_equal(values["parallax"], [2.0, 0.5])
    np.testing.assert_array_equal(values["ebpminrp_gspphot"], [0.1, 0.2])
    np.testing.assert_array_equal(values["ruwe"], [1.0, 1.1])


@pytest.mark.parametrize("suffix", [".fits", ".csv"])
@pytest.mark.parametrize(
    ("also", "without", "kept"),
    [(("duplicated",), (), [0]), (("parallax",), ("ruwe",), [0]), ((), ("ruwe",), [0, 1, 2])],
)
def test_cuts_of_gaia_source(tmp_path, suffix, also, without, kept):
    ids, _ = catalogue(tmp_path, "gaia-dr3", GAIA, suffix=suffix, also=also, without=without)
    assert ids == [str(SOURCES[k]) for k in kept]


@pytest.mark.parametrize("suffix", [".fits", ".csv"])
def test_2mass_quality_flags(tmp_path, suffix):
    columns = {
        "designation": ["a", "b", "c"],
        "ra": [1.0, 2.0, 3.0],
        "dec": [1.0, 2.0, 3.0],
        "j_m": [9.0, 10.0, 11.0],
        "j_msigcom": [0.02, 0.03, 0.04],
        "k_m": [8.0, 9.0, 10.0],
        "ph_qual": ["AAA", "AAU", "AAA"],
        "cc_flg": ["000", "000", "0c0"],
    }
    ids, values = catalogue(tmp_path, "2mass", columns, suffix=suffix)
    assert ids == ["a"]
    assert (values["j_m"][0], values["j_m_error"][0], values["ks_m"][0]) == (9.0, 0.02, 8.0)


def test_codes_of_zeros_alone_are_text_in_csv(tmp_path):
    columns = {
        "designation": ["a", "b"],
        "ra": [1.0, 2.0],
        "dec": [1.0, 2.0],
        "w1mpro": [9.0, 10.0],
        "w1sigmpro": [0.02, 0.03],
        "w2sigmpro": [0.02, 0.03],
        "cc_flags": ["0000", "0000"],
        "ext_flg": [0, 5],
    }
    ids, values = catalogue(tmp_path, "allwise", columns, suffix=".csv")
    assert ids == ["a"]
    assert values["w1mpro"].tolist() == [9.0]


def test_allwise_upper_limits_and_artefacts(tmp_path):
    columns = {
        "designation": ["a", "b", "c", "d"],
        "ra": np.arange(4.0),
        "dec": np.arange(4.0),
        "w1mpro": 9.0 + np.arange(4),
        "w1sigmpro": [0.02, np.nan, 0.03, 0.03],
        "w2mpro": 9.0 + np.arange(4),
        "w2sigmpro": [0.02, 0.02, 0.03, 0.03],
        "cc_flags": ["0000", "0000", "D000", "0000"],
        "ext_flg": [0, 0, 0, 1],
    }
    ids, values = catalogue(tmp_path, "allwise", columns)
    assert ids == ["a"]
    assert values["w2mpro_error"].tolist() == [0.02]


def test_starhorse(tmp_path):
    columns = {
        "source_id": SOURCES,
        "av50": [0.3, 0.4, -9999.0],
        "dist50": [1.0, 2.0, 3.0],
        "sh_outflag": ["0000", "1000", "0000"],
        "fidelity": [1.0, 1.0, 0.1],
    }
    ids, values = catalogue(tmp_path, "starhorse-edr3", columns)
    assert ids == [str(SOURCES[0]), str(SOURCES[2])]
    np.testing.assert_array_equal(values["a_v"], [0.3, np.nan])
    np.testing.assert_array_equal(values["starhorse_distance"], [1.0, 3.0])


def xp_columns():
    rng = np.random.default_rng(3)
    return {
        "source_id": SOURCES,
        **{
            f"{band}_{what}": rng.normal(size=(3, 55))
            for band in ("bp", "rp")
            for what in ("coefficients", "coefficient_errors")
        },
    }


@pytest.mark.parametrize("suffix", [".fits", ".csv.gz"])
def test_xp_coefficients(tmp_path, suffix):
    columns = xp_columns()
    columns["bp_coefficient_errors"] = np.abs(columns["bp_coefficient_errors"])
    path = tmp_path / f"xp{suffix}"
    if suffix == ".fits":
        Table(columns).write(path)
    else:
        lines = [*ECSV_HEADER, ",".join(columns)]
        for k in range(3):
            cells = [str(SOURCES[k])]
            for name in list(columns)[1:]:
                text = ",".join(repr(float(v)) for v in columns[name][k])
                cells.append("null" if (name, k) == ("rp_coefficients", 1) else f'"[{text}]"')
            lines.append(",".join(cells))
        path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with ExitStack() as stack:
        found = open_catalogue(CatalogueEntry(recipe="gaia-dr3-xp", file=path), Flow(), stack)
        assert len(found.column_names) == 220
        assert found.identifiers("gaia_dr3").tolist() == [str(source) for source in SOURCES]
        for k in (0, 17, 54):
            np.testing.assert_array_equal(
                found.values(f"bp_{k:02d}"), columns["bp_coefficients"][:, k]
            )
            expected = columns["rp_coefficients"][:, k].copy()
            expected[1] = expected[1] if suffix == ".fits" else np.nan
            np.testing.assert_array_equal(found.values(f"rp_{k:02d}"), expected)
        np.testing.assert_array_equal(
            found.values("bp_03_error"), columns["bp_coefficient_errors"][:, 3]
        )


def test_gaia_eso_catalogue(tmp_path):
    columns = {
        "CNAME": ["a", "b"],
        "RA": [1.0, 2.0],
        "DECLINATION": [3.0, 4.0],
        "TEFF": [5000.0, np.nan],
        "E_TEFF": [50.0, np.nan],
        "LOGG": [2.5, 3.0],
        "E_LOGG": [0.1, 0.1],
        "FEH": [-0.2, 0.0],
        "E_FEH": [0.05, 0.05],
    }
    Table(columns).write(tmp_path / "ges.fits")
    entry = CatalogueEntry(recipe="gaia-eso", file=tmp_path / "ges.fits")
    with ExitStack() as stack:
        found = open_catalogue(entry, Flow(), stack)
        values, errors = found.labels(["teff", "logg", "fe_h"])
    np.testing.assert_array_equal(values, [[5000.0, 2.5, -0.2]])
    np.testing.assert_array_equal(errors, [[50.0, 0.1, 0.05]])


def test_recipe_of_rvs_spectra(tmp_path):
    write_bulk(tmp_path)
    survey = ingest_recipe("gaia-dr3-rvs", tmp_path, tmp_path / "out.zarr")
    assert survey.resolving_power == 11_500
    assert survey.medium == "vacuum"
    np.testing.assert_allclose(survey.column("ra"), [44.9, 217.4, 45.0])
    good = np.isfinite(RVS_FLUX)
    np.testing.assert_array_equal(survey.batch(0, 3).spectra.flux[good], RVS_FLUX[good])


@pytest.mark.parametrize("recipe", ["gaia-eso", "4most-l1"])
def test_recipes_of_phase3_spectra(tmp_path, recipe):
    folder = folder_of(tmp_path)
    for k in range(2):
        write_phase3(folder / f"{k}.fits", k)
    survey = ingest_recipe(recipe, folder, tmp_path / "out.zarr")
    assert survey.medium == "air"
    assert survey.star_id.tolist() == ["star0", "star1"]
    np.testing.assert_array_equal(survey.column("snr"), [50.0, 51.0])


def test_recipe_of_weave_arms(tmp_path):
    (tmp_path / "weave").mkdir()
    write_weave(tmp_path / "weave" / "stack_1.fit", "BLUE", start=4000.0)
    write_weave(tmp_path / "weave" / "stack_2.fit", "RED")
    for arm, start in (("blue", 4000.0), ("red", 5900.0)):
        out = tmp_path / f"{arm}.zarr"
        survey = ingest_recipe("weave-l1", tmp_path / "weave", out, arm=arm)
        assert survey.wave_aa[0] == start
        assert survey.star_id.tolist() == ["WVE_0", "WVE_2", "WVE_3"]


@given(
    st.lists(st.one_of(st.none(), st.floats(width=64)), max_size=30), st.sampled_from(["[]", "()"])
)
def test_arrays_in_text_are_read_to_the_last_bit(values, brackets):
    written = ["null" if v is None else repr(v) for v in values]
    text = f" {brackets[0]}{', '.join(written)}{brackets[1]} "
    expected = np.array([np.nan if v is None else v for v in values], dtype=np.float64)
    np.testing.assert_array_equal(parse_array(text, "cell"), expected)


@pytest.mark.parametrize("text", ["[1,2", "1,2", "[1,x]", "[1,,2]x", "[1 2]", "[1,2,]3", "{1}"])
def test_texts_that_are_no_arrays_are_refused(text):
    with pytest.raises(ColumnError, match="cell"):
        parse_array(text, "cell")


def rvs_of(folder, table, name="a.fits"):
    (folder / "rvs").mkdir()
    table.write(folder / "rvs" / name)
    return RVS_TOML


def test_rvs_without_errors_takes_its_noise_from_the_spectrum(tmp_path):
    table = raw_table()
    table.remove_column("flux_error")
    survey = ingest(tmp_path, rvs_of(tmp_path, table))
    snr, spectra = survey.column("snr"), survey.batch(0, 3).spectra
    assert np.all((snr > 25) & (snr < 100))
    np.testing.assert_array_equal(spectra.good, np.isfinite(RVS_FLUX))


@pytest.mark.parametrize("name", ["a.fits", "a.csv"])
def test_rvs_files_without_rows_are_told(tmp_path, name):
    if name == "a.csv":
        (tmp_path / "rvs").mkdir()
        (tmp_path / "rvs" / name).write_text("source_id,flux,flux_error\n")
    else:
        rvs_of(tmp_path, raw_table()[:0])
    with pytest.raises(InputFileError, match=f"{name} has no rows; give a file with at least one"):
        ingest(tmp_path, RVS_TOML)


def test_rvs_sources_on_different_wavelengths_are_told(tmp_path):
    wave = np.tile(RVS_WAVE_NM, 3)
    wave[N_RVS : 2 * N_RVS] += 0.5
    columns = {"source_id": np.repeat(SOURCES, N_RVS), "wavelength": wave, "flux": RVS_FLUX.ravel()}
    with pytest.raises(GridMismatch, match="sources stand on different wavelengths"):
        ingest(tmp_path, rvs_of(tmp_path, Table(columns)))


def test_rvs_facts_of_a_votable_keep_their_types(tmp_path):
    (tmp_path / "rvs").mkdir()
    file = vot.tree.VOTableFile()
    resource, table = votable_of(0)
    for name, kind, value in (
        ("source_id", "long", int(SOURCES[0])),
        ("name", "char", "HD 1"),
        ("ra", "double", 44.9),
        ("snr", "float", 61.5),
    ):
        size = {"arraysize": "*"} if kind == "char" else {}
        table.params.append(vot.tree.Param(file, name=name, datatype=kind, value=value, **size))
    resource.tables.append(table)
    file.resources.append(resource)
    file.to_xml(str(tmp_path / "rvs" / "RVS.xml"))
    columns = '[columns]\nra = "ra"\nsnr = "snr"\nstar_id = "name"\n'
    survey = ingest(tmp_path, RVS_TOML + columns)
    assert survey.id.tolist() == [str(SOURCES[0])]
    assert survey.star_id.tolist() == ["HD 1"]
    assert (survey.column("ra")[0], survey.column("snr")[0]) == (44.9, 61.5)


def change_weave(folder, change):
    """A WEAVE file of which `change` alters the HDUs."""
    (folder / "weave").mkdir()
    write_weave(folder / "weave" / "a.fit")
    with fits.open(folder / "weave" / "a.fit") as hdus:
        change(hdus)
        hdus.writeto(folder / "weave" / "b.fit")
    (folder / "weave" / "a.fit").unlink()


def test_weave_without_uses_and_sensitivities(tmp_path):
    def change(hdus):
        del hdus["RED_SENSFUNC"]
        table = Table(hdus["FIBTABLE"].data)
        table.remove_columns(["TARGUSE", "Nspec"])
        hdus["FIBTABLE"].data = fits.BinTableHDU(table).data

    change_weave(tmp_path, change)
    survey = ingest(tmp_path, WEAVE_TOML)
    assert survey.id.tolist() == ["b_1", "b_2", "b_3", "b_4"]
    spectra = survey.batch(0, 4).spectra
    np.testing.assert_array_equal(spectra.flux, WEAVE_DATA)
    np.testing.assert_array_equal(spectra.ivar, WEAVE_IVAR)


def test_one_weave_fibre_as_a_line(tmp_path):
    def change(hdus):
        for name in ("DATA", "IVAR", "SENSFUNC"):
            hdus[f"RED_{name}"].data = hdus[f"RED_{name}"].data[2]
        hdus["FIBTABLE"].data = hdus["FIBTABLE"].data[2:3]

    change_weave(tmp_path, change)
    survey = ingest(tmp_path, WEAVE_TOML)
    assert survey.id.tolist() == ["b_3"]
    wanted = WEAVE_DATA[2] * SENS[2] / np.median(SENS[2])
    np.testing.assert_allclose(survey.batch(0, 1).spectra.flux[0], wanted, rtol=1e-6)


def weave_cube(hdus):
    hdus["RED_DATA"].data = np.ones((2, 3, 4))


def weave_without_cards(hdus):
    for name in ("CRVAL1", "CD1_1"):
        del hdus["RED_DATA"].header[name]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (weave_cube, InputFileError, r"shape \(2, 3, 4\); cubes are not read"),
        (weave_without_cards, WavelengthError, "no wavelength cards"),
    ],
)
def test_weave_images_that_are_no_spectra_of_fibres(tmp_path, change, error, words):
    change_weave(tmp_path, change)
    with pytest.raises(error, match=words):
        ingest(tmp_path, WEAVE_TOML)
