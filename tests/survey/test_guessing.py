"""A folder that nobody has described: what `init_survey` guesses, and what `check_toml` tells."""

import errno
import tomllib

import numpy as np
import pytest
from astropy.io import fits
from astropy.table import Table

from maury.errors import (
    ColumnError,
    ConfigError,
    IdentifierError,
    InputFileError,
    OutputError,
    OutputExists,
)
from maury.spectra.operators import air_to_vacuum
from maury.survey.guessing import init_survey
from maury.survey.guessing.document import Entry, comment, toml_value
from maury.survey.guessing.naming import column_of
from maury.survey.guessing.wavelengths import line_velocity, medium_of, unit_of
from maury.survey.readers import check_toml, ingest_toml

WAVE_AIR = np.arange(8480.0, 8680.0, 0.5)
N = 12


def flux(seed):
    """A spectrum with the Ca II triplet, at rest."""
    lines = (8498.02, 8542.09, 8662.14)
    depth = sum(0.5 * np.exp(-0.5 * ((WAVE_AIR - line) / 1.5) ** 2) for line in lines)
    return 1.0 - depth + np.random.default_rng(seed).normal(0, 0.01, WAVE_AIR.size)


@pytest.fixture
def folder(tmp_path):
    """Texts in nm and vacuum, a log that joins labels and Gaia by source_id."""
    wave_nm = air_to_vacuum(WAVE_AIR) / 10
    (tmp_path / "spectra").mkdir()
    for k in range(N):
        table = np.column_stack([wave_nm, flux(k), np.full(wave_nm.size, 0.01)])
        path = tmp_path / "spectra" / f"s{k:02d}.txt"
        np.savetxt(path, table, fmt="%.6f", header="wavelength flux sigma")
    gaia = [4611686018427380000 + 17 * (k // 2) for k in range(N)]
    log = [f"spectra/s{k:02d}.txt,{gaia[k]},300" for k in range(N)]
    (tmp_path / "log.csv").write_text("filename,gaia_id,exptime\n" + "\n".join(log))
    rows = [f"{g},{5000 + k},{-99.9 if k == 2 else 0.1 * k}" for k, g in enumerate(gaia[::2])]
    (tmp_path / "labels.csv").write_text("star,Teff,[Ti/Fe]\n" + "\n".join(rows))
    rows = [f"{g},{1.5 + k},12.5,9.99" for k, g in enumerate([7, *gaia[::2]])]
    (tmp_path / "gaia.csv").write_text(
        "source_id,parallax,phot_g_mean_mag,Jmag\n" + "\n".join(rows)
    )
    (tmp_path / "README.txt").write_text("Spectra of the second run.\n")
    return tmp_path


def test_texts_in_nm_and_vacuum_that_a_log_joins(folder):
    found = init_survey(folder)
    document = tomllib.loads(found.text)
    assert document["spectra"]["folder"] == "spectra"
    assert document["spectra"]["error"] == "sigma"
    assert document["wavelength"] == {"medium": "vacuum", "values": "wavelength", "unit": "nm"}
    through = {"table": "log.csv", "column": "gaia_id"}
    assert {one["file"]: one.get("through") for one in document["table"]} == {
        "log.csv": None,
        "labels.csv": through,
        "gaia.csv": through,
    }
    assert document["columns"]["ti_fe"] == {"name": "[Ti/Fe]", "missing": [-99.9]}
    # A magnitude of 9.99 is one of many.
    assert document["columns"]["j_m"] == "Jmag"
    assert document["columns"]["star_id"] == "gaia_id"
    assert [one["name"] for one in document["label"]] == ["ti_fe"]
    assert "README.txt" in found.text
    # Doubtful: nothing but resolution, rest frame and noise, which no file says.
    assert found.n_check == 2
    assert "# noise_correlation = [" in found.text

    survey = ingest_toml(folder / "survey.toml", folder / "out.zarr")
    assert survey.medium == "vacuum"
    np.testing.assert_allclose(survey.wave_aa, air_to_vacuum(WAVE_AIR), atol=1e-4)
    teff = 5000.0 + np.arange(N) // 2
    np.testing.assert_array_equal(survey.column("teff"), teff)
    np.testing.assert_allclose(survey.column("parallax"), 2.5 + np.arange(N) // 2)
    assert np.isnan(survey.column("ti_fe")).tolist() == [k // 2 == 2 for k in range(N)]
    assert len(set(survey.star_id)) == N // 2


def test_what_would_be_read_is_told_before(folder):
    init_survey(folder)
    found = check_toml(folder / "survey.toml")
    assert "12 spectra of 6 stars" in found.lines[0]
    assert "(vacuum)" in found.lines[1]
    rows = {row[0]: row[1:] for row in found.joins[1:]}
    assert rows["gaia.csv"] == ("source_id = gaia_id of log.csv", "7", "12 of 12", "6")
    assert rows["log.csv"][0] == "filename = identifier of the spectrum"
    values = {row[0]: row for row in found.values[1:]}
    assert values["ti_fe"][2:4] == ("10", "2")
    assert "gaia.csv: 1 rows are of no spectrum here, and are left out" in found.lines
    assert "log.csv: columns that [columns] does not map are left out: exptime" in found.lines
    assert not (folder / "out.zarr").exists()


def test_a_file_on_another_grid_is_told_before(folder):
    init_survey(folder)
    path = folder / "spectra" / "s05.txt"
    table = np.loadtxt(path)
    np.savetxt(path, table[:-10])
    found = check_toml(folder / "survey.toml")
    assert any("ingest would stop at row 5" in line for line in found.lines)


def test_nothing_is_overwritten(folder):
    (folder / "survey.toml").write_text("mine")
    with pytest.raises(OutputExists):
        init_survey(folder)
    assert (folder / "survey.toml").read_text() == "mine"
    assert init_survey(folder, overwrite=True).n_check == 2


def test_a_folder_without_spectra_says_what_it_holds(tmp_path):
    (tmp_path / "labels.csv").write_text("id,teff\na,5000\nb,5100\n")
    with pytest.raises(InputFileError, match=r"labels.csv \(a table\)"):
        init_survey(tmp_path)


def test_a_fits_table_with_wavelengths_in_another_hdu(tmp_path):
    columns = {
        "sobject_id": np.arange(N) + 1504270008010000,
        "sob_norm": np.stack([flux(k) for k in range(N)]),
        "uob_norm": np.full((N, WAVE_AIR.size), 0.01),
    }
    spectra = fits.table_to_hdu(Table(columns))
    spectra.name = "SPECTRA"
    wave = fits.table_to_hdu(Table({"wave": WAVE_AIR}))
    wave.name = "WAVE"
    fits.HDUList([fits.PrimaryHDU(), spectra, wave]).writeto(tmp_path / "spectra.fits")
    # No survey has a column of the error of the velocity.
    given = {"sobject_id": columns["sobject_id"][::-1], "logg": np.linspace(1, 5, N)}
    given |= {"rv": np.linspace(-9, 9, N), "rv_err": np.ones(N)}
    Table(given).write(tmp_path / "labels.csv")
    document = tomllib.loads(init_survey(tmp_path).text)
    assert {"logg", "radial_velocity"} <= set(document["columns"])
    assert "radial_velocity_error" not in document["columns"]
    assert document["spectra"]["flux"] == "sob_norm"
    assert document["spectra"]["error"] == "uob_norm"
    assert document["spectra"]["id"] == "sobject_id"
    assert document["wavelength"]["values"] == {"hdu": "WAVE", "name": "wave"}
    assert document["wavelength"]["medium"] == "air"
    survey = ingest_toml(tmp_path / "survey.toml", tmp_path / "out.zarr")
    np.testing.assert_allclose(survey.column("logg"), np.linspace(1, 5, N)[::-1])


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("TEFF", "teff"),
        ("e_logg", "logg_error"),
        ("[Mg/Fe]", "mg_fe"),
        ("TI_FE_ERR", "ti_fe_error"),
        ("Kmag_2MASS", "ks_m"),
        ("mass", None),
        ("e_RAJ2000", None),
    ],
)
def test_names_of_columns(name, column):
    assert column_of(name)[0] == column


@pytest.mark.parametrize(
    ("wave", "unit", "log", "doubtful"),
    [
        ((8400, 8800), "Angstrom", False, False),
        ((840, 880), "nm", False, False),
        ((0.84, 0.88), "um", False, False),
        ((3.57, 3.95), None, True, True),
        ((1510, 1690), "nm", False, True),
        ((100, 200), "Angstrom", False, True),
    ],
)
def test_units_by_size(wave, unit, log, doubtful):
    told = unit_of(np.linspace(*wave, 200), None)
    assert (told.unit, told.log, told.doubtful) == (unit, log, doubtful)


def test_a_few_spectra_or_none_leave_the_medium_to_be_checked():
    spectra = np.stack([flux(k) for k in range(N)])
    assert not medium_of(None, WAVE_AIR, spectra).doubtful
    assert medium_of(None, WAVE_AIR, spectra[:3]).doubtful
    assert medium_of(None, None, None).doubtful
    # Stars that move at 45 km/s are neither at rest in air nor in vacuum.
    moved = WAVE_AIR * (1 + 45 / 299792.458)
    assert abs(line_velocity(moved, spectra) - 45) < 3
    assert medium_of(None, moved, spectra).doubtful


def test_comments_and_texts_of_strangers_stay_what_they_are():
    assert comment("a\nflux = 1") == ["# a?flux = 1"]
    for text in ('a"b\\c', "a\nb", "x\x1b[2J"):
        assert tomllib.loads(f"a = {toml_value(text)}") == {"a": text}
    assert Entry("a", True, "why", doubtful=True).lines() == ["# check: why", "a = true"]


# Joins by way of another table


TEXT = """
[spectra]
folder = "spectra"
pattern = "*.txt"
error = "sigma"
[wavelength]
medium = "vacuum"
unit = "nm"
[[table]]
file = "log.csv"
id = "filename"
[[table]]
file = "gaia.csv"
id = "source_id"
through = { table = "log.csv", column = "COLUMN" }
[columns]
parallax = "parallax"
"""


def test_a_spectrum_that_the_log_lacks_is_missing(folder):
    log = (folder / "log.csv").read_text().splitlines()
    (folder / "log.csv").write_text("\n".join(log[:-3]))
    (folder / "s.toml").write_text(TEXT.replace("COLUMN", "gaia_id"))
    survey = ingest_toml(folder / "s.toml", folder / "out.zarr")
    assert np.isnan(survey.column("parallax")).tolist() == [False] * (N - 3) + [True] * 3


def test_a_table_joins_through_one_above_it_alone(folder):
    (folder / "s.toml").write_text(TEXT.replace('table = "log.csv"', 'table = "logs.csv"'))
    with pytest.raises(ConfigError, match=r"no table above it; did you mean 'log.csv'"):
        ingest_toml(folder / "s.toml", folder / "out.zarr")
    (folder / "s.toml").write_text(TEXT.replace('table = "log.csv"', 'table = "gaia.csv"'))
    with pytest.raises(ConfigError, match="no table above it"):
        ingest_toml(folder / "s.toml", folder / "out.zarr")


@pytest.mark.parametrize(
    ("column", "error", "text"),
    [
        ("gaia", ColumnError, "has no column 'gaia'"),
        ("exptime", IdentifierError, "none of the identifiers of column 'exptime'"),
    ],
)
def test_a_wrong_column_of_the_log_is_one_error(folder, column, error, text):
    (folder / "s.toml").write_text(TEXT.replace("COLUMN", column))
    with pytest.raises(error, match=text):
        ingest_toml(folder / "s.toml", folder / "out.zarr")


@pytest.mark.slow
def test_the_commands_write_a_figure_and_say_what_would_be_read(folder, capsys):
    from maury.cli.first import check, init

    init(folder)
    told = capsys.readouterr().out
    assert "12 spectra of 6 stars" in told
    assert "2 guesses to check" in told
    assert (folder / "survey.png").read_bytes().startswith(b"\x89PNG")
    check(folder / "survey.toml")
    assert "12 of 12" in capsys.readouterr().out
    with pytest.raises(OutputExists):
        init(folder)


@pytest.mark.slow
def test_a_folder_where_nobody_may_write_says_where_else(folder, monkeypatch):
    from maury.cli.first import init

    def refuse(path, *_):
        raise OSError(errno.EROFS, "read-only", str(path))

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    with pytest.raises(OutputError, match=r"survey\.toml cannot be written.*--out survey\.toml"):
        init(folder)
    with pytest.raises(OutputError) as caught:
        init(folder, folder / "other.toml")
    assert "--out" not in str(caught.value)


def test_what_the_file_says_of_the_resolving_power_is_so(folder):
    text = init_survey(folder).text
    assert "does not train" not in text
    assert "a theory that is learnt needs none" in " ".join(text.replace("#", " ").split())


# Files of published formats beside others


def write_visit(path, star):
    """Write a visit of APOGEE: three detectors, each from red to blue, no card of wavelengths."""
    rng = np.random.default_rng(1)
    edges = ((16480.0, 16950.0), (15860.0, 16430.0), (15140.0, 15800.0))
    wave = np.stack([np.linspace(high, low, 400) for low, high in edges])
    flux = (100 + rng.normal(0, 1, wave.shape)).astype(np.float32)
    primary = fits.PrimaryHDU()
    primary.header.update({"OBJID": star, "VRAD": -12.5, "SNR": 100.0, "RA": 6.1, "DEC": 53.7})
    arrays = (flux, np.ones_like(flux), np.zeros(wave.shape, np.int16), wave)
    fits.HDUList([primary, *(fits.ImageHDU(one) for one in arrays)]).writeto(path)


def test_one_file_of_a_survey_beside_a_table_of_its_catalogue(tmp_path):
    write_visit(tmp_path / "apVisit-r13-9518-57729-104.fits", "2M00242666+5341178")
    rows = {"APOGEE_ID": ["2M00000002+7417074", "2M00242666+5341178"], "TEFF": [4000.0, 4900.0]}
    Table(rows).write(tmp_path / "allStar.fits")
    found = init_survey(tmp_path)
    document = tomllib.loads(found.text)
    assert document["spectra"] == {"file": "apVisit-r13-9518-57729-104.fits", "reader": "apvisit"}
    # The reader knows grid and medium, the recipe all that no header says.
    assert "wavelength" not in document
    assert (document["at_rest"], document["resolving_power"]) == (False, 22500)
    assert document["columns"]["radial_velocity"] == {"name": "VRAD", "unit": "km/s"}
    assert document["table"][0]["through"] == {"table": "spectra", "column": "OBJID"}
    survey = ingest_toml(tmp_path / "survey.toml", tmp_path / "out.zarr")
    assert survey.medium == "vacuum"
    assert survey.column("teff").tolist() == [4900.0]
    assert survey.column("radial_velocity").tolist() == [-12.5]


def test_files_that_a_reader_cannot_take_apart_from_others_are_named(tmp_path):
    """Two visits beside files of a kind of its own that the reader's pattern matches as well."""
    for k in range(2):
        write_visit(tmp_path / f"apVisit-r13-9518-57729-10{k}.fits", f"2M0024266{k}+5341178")
    for k in range(3):
        rows = {"wave": WAVE_AIR, "flux": flux(k), "err": np.full(WAVE_AIR.size, 0.01)}
        Table(rows).write(tmp_path / f"apVisit-own-{k}.fits")
    found = init_survey(tmp_path)
    spectra = tomllib.loads(found.text)["spectra"]
    assert "reader" not in spectra
    assert spectra["pattern"] == "apVisit-own-*.fits"
    text = " ".join(found.text.replace("#", " ").split())
    assert "and 1 more of the format apvisit: put these into a folder of their own" in text
    assert len(ingest_toml(tmp_path / "survey.toml", tmp_path / "out.zarr")) == 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("folder", "at_rest", "power", "n_star"),
    [
        ("lamost_lrs", False, 1800, 2),
        ("rvs", True, 11500, 3),
        ("galah_dr3", None, 28000, 1),
        ("apogee", False, 22500, 1),
        ("sdss", False, 2000, 1),
        ("eso", False, None, 1),
    ],
)
def test_public_files_are_described_as_they_are(shared, tmp_path, folder, at_rest, power, n_star):
    place = shared / "real" / folder
    if not place.is_dir():
        pytest.skip("the public files are not beside the reference data")
    init_survey(place, tmp_path / "survey.toml")
    found = tomllib.loads((tmp_path / "survey.toml").read_text())
    assert (found.get("at_rest"), found.get("resolving_power")) == (at_rest, power)
    told = check_toml(tmp_path / "survey.toml")
    assert not any("would stop" in line for line in told.lines)
    survey = ingest_toml(tmp_path / "survey.toml", tmp_path / "out.zarr")
    assert len(survey) == n_star
    # GALAH's cameras are arms of one survey, on one grid.
    assert len(found.get("arm", ())) == (3 if folder == "galah_dr3" else 0)


def test_a_grid_that_no_file_gives_is_asked_for_and_not_made_up(tmp_path):
    columns = {"ID": [f"s{k}" for k in range(8)], "FLUX": np.ones((8, 300), dtype=np.float32)}
    Table(columns).write(tmp_path / "spectra.fits")
    found = init_survey(tmp_path)
    assert "start" not in tomllib.loads(found.text)["wavelength"]
    assert "What are they?" in found.text
    with pytest.raises(InputFileError, match="does not say its wavelengths"):
        check_toml(tmp_path / "survey.toml")


def test_identifiers_that_stand_twice_are_named(folder):
    with (folder / "labels.csv").open("a") as stream:
        stream.write("\n4611686018427380000,5100,0.1")
    text = " ".join(init_survey(folder).text.replace("#", " ").split())
    assert "twice in star (such as 4611686018427380000)" in text


@pytest.mark.parametrize(
    ("names", "doubtful_air"), [("AIRMASS flux", False), ("wave_air flux", True)]
)
def test_an_airmass_says_nothing_of_the_medium(names, doubtful_air):
    assert ("A name says" in medium_of(None, None, None, names).why) == doubtful_air


def test_natural_logarithms_are_seen():
    assert "natural logarithms" in unit_of(np.linspace(9.045, 9.059, 200), None).why


def test_an_archive_is_named_as_one(tmp_path):
    (tmp_path / "spectra.zip").write_bytes(b"PK")
    with pytest.raises(InputFileError, match=r"spectra\.zip \(an archive: unpack it"):
        init_survey(tmp_path)


def test_an_hdu_is_found_in_any_case_of_its_letters(tmp_path):
    from maury.io.opening import find_hdu

    error = fits.ImageHDU(np.ones(5))
    # As other programs write it: astropy itself turns names into capitals.
    error.header["EXTNAME"] = "input_sigma"
    hdus = [fits.PrimaryHDU(), error]
    assert find_hdu(hdus, "Input_Sigma", tmp_path, image=True) is error


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GaiaDR3", "dr3_source_id", "KIC", "TIC ID", "whatever"])
def test_tables_are_joined_by_values_whatever_their_names(folder, name):
    log = (folder / "log.csv").read_text()
    (folder / "log.csv").write_text(log.replace("gaia_id", name))
    document = tomllib.loads(init_survey(folder).text)
    through = {one["file"]: one.get("through") for one in document["table"]}
    assert through["labels.csv"] == through["gaia.csv"] == {"table": "log.csv", "column": name}


def test_short_numbers_join_no_tables_by_chance(folder):
    log = (folder / "log.csv").read_text().replace(",300", ",{}")
    (folder / "log.csv").write_text(log.format(*range(N)))
    (folder / "noise.csv").write_text("n,q\n" + "\n".join(f"{k},{k}" for k in range(N)))
    document = tomllib.loads(init_survey(folder).text)
    assert "noise.csv" not in {one["file"] for one in document["table"]}


def test_a_text_of_columns_is_a_table_and_a_readme_is_none(folder):
    rows = (folder / "labels.csv").read_text().replace(",", " ")
    (folder / "labels.csv").unlink()
    (folder / "labels.dat").write_text(f"# {rows}")
    found = init_survey(folder)
    files = [one["file"] for one in tomllib.loads(found.text)["table"]]
    assert "labels.dat" in files
    assert "README.txt" in found.text
    assert "README.txt" not in files
