"""Folders in which a file is no spectrum or cannot be read, and files with several candidates."""

from contextlib import ExitStack

import numpy as np
import pytest
from astropy.io import fits
from typer.testing import CliRunner

from maury import Survey
from maury.cli.app import app
from maury.errors import InputFileError
from maury.survey.archives.ingest import ingest_recipe
from maury.survey.readers import ingest_toml, open_toml

WAVE = np.linspace(8500.0, 8540.0, 101)
TEXT = '[spectra]\nfolder = "in"\nerror = "e"\n[wavelength]\nmedium = "air"\n'


def flux(k):
    return 1.0 + 0.01 * k * np.sin(WAVE)


def write_texts(folder, n=4):
    (folder / "in").mkdir()
    for k in range(n):
        columns = np.column_stack([WAVE, flux(k), np.full(WAVE.size, 0.02)])
        np.savetxt(folder / "in" / f"s{k}.txt", columns)


def ingest(folder, text=TEXT, **options):
    (folder / "s.toml").write_text(text)
    return ingest_toml(folder / "s.toml", folder / "o.zarr", **options)


BROKEN = {
    "garbage": (b"\xff\xfe\x00\x01", "utf-8"),
    "cut short": (b"8500 1 0.02\n8501\n", "s2.txt"),
    "empty": (b"", "no rows"),
    "unsorted": (b"8500 1 1\n8502 1 1\n8501 1 1\n", "unsorted"),
    "another grid": (b"8500 1 1\n8501 1 1\n8502 1 1\n", "stands on"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_one_bad_file_stops_a_folder_unless_it_is_skipped(tmp_path, kind, caplog):
    content, words = BROKEN[kind]
    write_texts(tmp_path)
    (tmp_path / "in" / "s2.txt").write_bytes(content)
    with pytest.raises(Exception, match=r"s2\.txt"):
        ingest(tmp_path)
    survey = ingest(tmp_path, skip_bad=True)
    assert survey.id.tolist() == ["s0", "s1", "s2", "s3"]
    why = survey.column("unread")
    assert [bool(text) for text in why] == [False, False, True, False]
    assert words in why[2]
    seen = survey.batch(0, 4).spectra
    assert np.all(seen.ivar[2] == 0)
    np.testing.assert_allclose(seen.flux[3], flux(3), rtol=1e-6)
    assert np.isnan(survey.column("snr")[2])
    report = [r.message for r in caplog.records if "could not be read" in r.message]
    assert len(report) == 1
    assert "1 of 4 spectra" in report[0]
    assert "s2" in report[0]


def test_the_toml_file_or_the_command_line_asks_to_skip(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "in" / "s0.txt").write_bytes(b"")
    (tmp_path / "s.toml").write_text(TEXT)
    words = ["ingest", "toml", str(tmp_path / "s.toml"), str(tmp_path / "o.zarr")]
    assert CliRunner().invoke(app, words).exit_code == 1
    assert CliRunner().invoke(app, [*words, "--skip-bad"]).exit_code == 0
    one = Survey.open(tmp_path / "o.zarr")
    (tmp_path / "t.toml").write_text("skip_bad = true\n" + TEXT)
    other = ingest_toml(tmp_path / "t.toml", tmp_path / "p.zarr")
    assert one.column("unread").tolist() == other.column("unread").tolist()
    with open_toml(tmp_path / "t.toml") as files:
        assert files.batch(0, 4).columns["unread"].tolist() == other.column("unread").tolist()
        assert "unread" in files.column_names


def test_a_folder_of_bad_files_alone_is_an_error_all_the_same(tmp_path):
    write_texts(tmp_path, n=0)
    for name in ("a.txt", "b.txt"):
        (tmp_path / "in" / name).write_bytes(b"")
    with pytest.raises(InputFileError, match="none of the 2 files"):
        ingest(tmp_path, skip_bad=True)


def test_labels_of_a_skipped_spectrum_stay(tmp_path):
    write_texts(tmp_path)
    (tmp_path / "in" / "s1.txt").write_bytes(b"8500")
    (tmp_path / "labels.csv").write_text("id,teff\ns0,5000\ns1,5100\ns2,5200\ns3,5300\n")
    text = TEXT + '[[table]]\nfile = "labels.csv"\nid = "id"\n[columns]\nteff = "teff"\n'
    survey = ingest(tmp_path, text, skip_bad=True)
    assert survey.column("teff").tolist() == [5000, 5100, 5200, 5300]


RECIPE = (
    'name = "mine"\ntitle = "Mine"\nkind = "spectra"\ndescription = "-"\ncitation = []\n'
    'documentation = "https://example.org"\n[spectra]\nreader = "eso-phase3"\n'
)


def write_phase3(path, k, **extra):
    columns = [fits.Column("WAVE", f"{WAVE.size}D", "Angstrom", array=WAVE[None])]
    for name, (values, unit) in {"FLUX": (flux(k), None), **extra}.items():
        columns.append(fits.Column(name, f"{WAVE.size}D", unit, array=values[None]))
    table = fits.BinTableHDU.from_columns(columns)
    table.header["TUCD1"] = "em.wl;obs.atmos"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path)
    return path


def test_a_damaged_file_of_a_published_format_is_skipped(tmp_path, caplog):
    (tmp_path / "in").mkdir()
    for k in range(3):
        write_phase3(tmp_path / "in" / f"e{k}.fits", k)
    path = tmp_path / "in" / "e1.fits"
    path.write_bytes(path.read_bytes()[:3000])
    (tmp_path / "mine.toml").write_text(RECIPE)
    words = (tmp_path / "mine.toml", tmp_path / "in")
    with pytest.raises(InputFileError, match=r"e1\.fits"):
        ingest_recipe(*words, tmp_path / "o.zarr")
    survey = ingest_recipe(*words, tmp_path / "o.zarr", skip_bad=True)
    assert survey.id.tolist() == ["e0", "e1", "e2"]
    assert [bool(text) for text in survey.column("unread")] == [False, True, False]
    np.testing.assert_allclose(survey.batch(0, 3).spectra.flux[2], flux(2), rtol=1e-6)


def test_a_damaged_file_of_many_spectra_is_one_row(tmp_path):
    wave_nm, n = 846.0 + 0.01 * np.arange(2401), 2401
    (tmp_path / "in").mkdir()
    for k in range(3):
        rows = [f"{10**9 + k},{w:.2f},1.0,0.02" for w in wave_nm]
        text = "source_id,wavelength,flux,flux_error\n" + "\n".join(rows) + "\n"
        (tmp_path / "in" / f"g{k}.csv").write_text(text[:9] if k == 1 else text)
    survey = ingest_recipe("gaia-dr3-rvs", tmp_path / "in", tmp_path / "o.zarr", skip_bad=True)
    assert survey.id.tolist() == ["1000000000", "g1", "1000000002"]
    assert [bool(text) for text in survey.column("unread")] == [False, True, False]
    assert (survey.batch(0, 3).spectra.ivar > 0).sum(axis=1).tolist() == [n, 0, n]


def test_an_arm_that_cannot_be_read_is_bad_alone(tmp_path):
    for arm, shift in (("blue", 0.0), ("red", 200.0)):
        (tmp_path / arm).mkdir()
        for k in range(2):
            columns = np.column_stack([WAVE + shift, flux(k), np.full(WAVE.size, 0.02)])
            np.savetxt(tmp_path / arm / f"s{k}.txt", columns)
    (tmp_path / "red" / "s1.txt").write_bytes(b"")
    text = "skip_bad = true\n" + "".join(
        f'[[arm]]\nname = "{arm}"\n[arm.spectra]\nfolder = "{arm}"\nerror = "e"\n'
        '[arm.wavelength]\nmedium = "air"\n'
        for arm in ("blue", "red")
    )
    survey = ingest(tmp_path, text)
    good = (survey.batch(0, 2).spectra.ivar > 0).sum(axis=1)
    assert good.tolist() == [2 * WAVE.size, WAVE.size]
    assert "red" in survey.column("unread")[1]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("README.txt", "Spectra of three stars.\nWavelengths in air.\n"),
        ("README", "Observed on 2020-01-01, 3 exposures\n"),
        ("list.csv", "name,teff\ns0,5000\ns1,5100\n"),
        ("preview.png", "\x89PNG"),
        ("notes.md", "1 2 3\n"),
    ],
)
def test_what_is_no_spectrum_is_left_out_with_a_word(tmp_path, name, content, caplog):
    write_texts(tmp_path)
    (tmp_path / "in" / name).write_text(content)
    survey = ingest(tmp_path)
    assert survey.id.tolist() == ["s0", "s1", "s2", "s3"]
    assert any(name in r.message and "no spectra" in r.message for r in caplog.records)


@pytest.mark.parametrize("kind", ["text", "image", "table", "rows"])
def test_a_grid_that_descends_is_turned(tmp_path, kind):
    falling, values, error = WAVE[::-1], flux(3)[::-1], np.linspace(0.01, 0.03, WAVE.size)[::-1]
    (tmp_path / "in").mkdir()
    text = TEXT
    if kind == "text":
        np.savetxt(tmp_path / "in" / "s.txt", np.column_stack([falling, values, error]))
    elif kind == "image":
        hdu = fits.PrimaryHDU(values)
        hdu.header.update({"CRVAL1": falling[0], "CDELT1": falling[1] - falling[0]})
        fits.HDUList([hdu, fits.ImageHDU(error, name="E")]).writeto(tmp_path / "in" / "s.fits")
        text = text.replace('error = "e"', 'error = "E"')
    elif kind == "table":
        named = (("wave", falling), ("flux", values), ("e", error))
        columns = [fits.Column(name, "D", array=one) for name, one in named]
        fits.BinTableHDU.from_columns(columns).writeto(tmp_path / "in" / "s.fits")
    else:
        np.savez(tmp_path / "s.npz", flux=values[None], e=error[None], wave=falling)
        text = (
            '[spectra]\nfile = "s.npz"\nerror = "e"\norientation = "rows"\n'
            '[wavelength]\nmedium = "air"\nvalues = "wave"\n'
        )
    survey = ingest(tmp_path, text)
    np.testing.assert_allclose(survey.wave_aa, WAVE, rtol=1e-9)
    seen = survey.batch(0, 1).spectra
    np.testing.assert_allclose(seen.flux[0], flux(3), rtol=1e-6)
    np.testing.assert_allclose(seen.ivar[0], error[::-1] ** -2.0, rtol=1e-5)


def table_hdu(k=3, name="flux"):
    named = (("wave", WAVE), (name, flux(k)), ("e", np.full(WAVE.size, 0.02)))
    return fits.BinTableHDU.from_columns([fits.Column(n, "D", array=v) for n, v in named])


def test_a_picture_in_front_of_the_spectrum_is_passed_over(tmp_path):
    (tmp_path / "in").mkdir()
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.ones((8, 8))), table_hdu(1, "other"), table_hdu()]
    fits.HDUList(hdus).writeto(tmp_path / "in" / "s.fits")
    np.testing.assert_allclose(ingest(tmp_path).batch(0, 1).spectra.flux[0], flux(3), rtol=1e-6)
    text = TEXT.replace('error = "e"', 'error = "e"\nflux = "sky"')
    with pytest.raises(InputFileError, match="write 'hdu'"):
        ingest(tmp_path, text, overwrite=True)


def test_a_picture_in_front_of_a_table_of_many_spectra(tmp_path):
    rows = np.array([flux(k) for k in range(3)])
    columns = [fits.Column(n, f"{WAVE.size}D", array=v) for n, v in (("flux", rows),)]
    hdus = [fits.PrimaryHDU(), fits.ImageHDU(np.ones((8, 8))), table_hdu(1, "other")]
    hdus.append(fits.BinTableHDU.from_columns(columns))
    fits.HDUList(hdus).writeto(tmp_path / "s.fits")
    text = f'[spectra]\nfile = "s.fits"\n[wavelength]\nmedium = "air"\nstart = {WAVE[0]}\n'
    survey = ingest(tmp_path, text + f"step = {WAVE[1] - WAVE[0]}\n")
    np.testing.assert_allclose(survey.batch(0, 3).spectra.flux, rows, rtol=1e-6)


@pytest.mark.parametrize("compression", ["GZIP_2", "RICE_1"])
def test_tiles_compressed_by_fpack(tmp_path, compression):
    (tmp_path / "in").mkdir()
    counts = np.round(1000 * flux(3)).astype("i4")
    hdu = fits.CompImageHDU(counts, compression_type=compression)
    hdu.header.update({"CRVAL1": WAVE[0], "CDELT1": WAVE[1] - WAVE[0]})
    hdu.writeto(tmp_path / "in" / "star.fits.fz")
    survey = ingest(tmp_path, TEXT.replace('error = "e"\n', ""))
    assert survey.id.tolist() == ["star"]
    np.testing.assert_allclose(survey.batch(0, 1).spectra.flux[0], counts, rtol=1e-6)


PHASE3 = (
    '[spectra]\nreader = "eso-phase3"\nfolder = "in"\n'
    '[columns]\nsnr = { name = "SNR", optional = true }\n'
)


@pytest.mark.parametrize("by", ["ucd", "unit", "namespace", "main"])
def test_of_two_fluxes_of_phase3_the_calibrated_one_is_read(tmp_path, by):
    """Columns in counts come first in the file, as in spectra of UVES."""
    (tmp_path / "in").mkdir()
    counts, unit = np.full(WAVE.size, 700.0), "adu" if by == "unit" else None
    other = "spec:" if by in ("unit", "main") else "eso:"
    uncalibrated = ";stat.uncalib" if by == "ucd" else ""
    flux_ucd, value, error = "phot.flux.density", "FluxAxis.Value", "FluxAxis.Accuracy.StatError"
    columns = (
        ("WAVE", WAVE, "Angstrom", "spec:Data.SpectralAxis.Value", "em.wl;obs.atmos"),
        ("FLUX_REDUCED", counts, unit, f"{other}Data.{value}", flux_ucd + uncalibrated),
        ("ERR_REDUCED", counts / 10, unit, f"{other}Data.{error}", ""),
        ("FLUX", flux(3), None, f"spec:Data.{value}", flux_ucd + ";meta.main" * (by == "main")),
        ("ERR", np.full(WAVE.size, 0.02), None, f"spec:Data.{error}", "meta.main"),
    )
    table = fits.BinTableHDU.from_columns(
        [fits.Column(name, f"{WAVE.size}D", u, array=v[None]) for name, v, u, _, _ in columns]
    )
    for number, (*_, utype, ucd) in enumerate(columns, start=1):
        table.header[f"TUTYP{number}"], table.header[f"TUCD{number}"] = utype, ucd
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "in" / "e.fits")
    seen = ingest(tmp_path, PHASE3).batch(0, 1).spectra
    np.testing.assert_allclose(seen.flux[0], flux(3), rtol=1e-6)
    np.testing.assert_allclose(seen.ivar[0], 0.02**-2.0, rtol=1e-5)


def test_an_error_in_another_unit_is_not_that_of_the_flux(tmp_path):
    (tmp_path / "in").mkdir()
    path = write_phase3(tmp_path / "in" / "e.fits", 3, ERR=(np.full(WAVE.size, 30.0), "adu"))
    with fits.open(path, mode="update") as hdus:
        hdus[1].header["TUNIT2"] = "erg/s/cm2/Angstrom"
        hdus[0].header["SNR"] = 40.0
    survey = ingest(tmp_path, PHASE3)
    noise = survey.batch(0, 1).spectra.ivar[0] ** -0.5
    np.testing.assert_allclose(noise, np.sqrt(flux(3)) / 40.0, rtol=0.02)


@pytest.mark.parametrize("cut", [0, 700])
def test_galah_errors_are_aligned_at_the_red_end(tmp_path, cut):
    n, start, step = 4096, 7584.5, 0.0735
    wave = start + step * np.arange(n)
    relative = np.linspace(0.01, 0.05, n)
    normalised = (0.9 + 0.1 * np.sin(wave / 3))[cut:]
    hdus = [fits.PrimaryHDU(5000 * np.ones(n)), fits.ImageHDU(relative, name="input_sigma")]
    hdus += [fits.ImageHDU(np.ones(n), name=name) for name in ("no_sky", "no_sky_sigma")]
    hdus.append(fits.ImageHDU(normalised))
    for hdu in hdus:
        hdu.header.update({"CRVAL1": start, "CDELT1": step, "CRPIX1": 1.0, "CUNIT1": "Angstrom"})
    # The normalised spectrum has a card of its own, and counts its first pixel from 0.
    hdus[-1].header.update({"CRVAL1": wave[cut], "CRPIX1": 0.0})
    (tmp_path / "in").mkdir()
    fits.HDUList(hdus).writeto(tmp_path / "in" / "1504270008010494.fits")
    text = '[spectra]\nreader = "galah-ccd4"\nfolder = "in"\n'
    survey = ingest(tmp_path, text)
    np.testing.assert_allclose(survey.wave_aa, wave[cut:], rtol=1e-9)
    seen = survey.batch(0, 1).spectra
    sigma = relative[cut:] * normalised
    np.testing.assert_allclose(seen.flux[0], normalised, rtol=1e-6)
    np.testing.assert_allclose(seen.ivar[0], sigma**-2.0, rtol=1e-5)


@pytest.mark.slow
def test_workers_read_a_recipe_and_skip_what_is_bad(tmp_path):
    """Processes of this machine open the recipe again, from what the task says in plain text."""
    from maury.io.cluster import connect

    (tmp_path / "in").mkdir()
    for k in range(3):
        write_phase3(tmp_path / "in" / f"e{k}.fits", k)
    path = tmp_path / "in" / "e1.fits"
    path.write_bytes(path.read_bytes()[:3000])
    (tmp_path / "mine.toml").write_text(RECIPE)
    with connect("local", workers=1) as cluster:
        survey = ingest_recipe(
            str(tmp_path / "mine.toml"),
            tmp_path / "in",
            tmp_path / "o.zarr",
            skip_bad=True,
            cluster=cluster,
        )
    assert [bool(text) for text in survey.column("unread")] == [False, True, False]
    np.testing.assert_allclose(survey.batch(0, 3).spectra.flux[2], flux(2), rtol=1e-6)


@pytest.mark.parametrize("kind", ["fits", "vot"])
def test_of_several_tables_the_one_that_is_read_is_told(tmp_path, caplog, kind):
    from astropy.io import votable
    from astropy.table import Table

    from maury.io.tables import open_table

    tables = [Table({"a": [1.0, 2.0]}), Table({"b": [3.0]})]
    if kind == "fits":
        hdus = [fits.PrimaryHDU(), *(fits.BinTableHDU(table) for table in tables)]
        fits.HDUList(hdus).writeto(tmp_path / "t.fits")
    else:
        whole = votable.tree.VOTableFile()
        whole.resources.append(votable.tree.Resource())
        for table in tables:
            part = votable.from_table(table).get_first_table()
            whole.resources[0].tables.append(part)
        whole.to_xml(str(tmp_path / "t.vot"))
    with ExitStack() as stack:
        assert open_table(tmp_path / f"t.{kind}", stack).names == ("a",)
    assert sum("2 tables" in record.message for record in caplog.records) == 1


def test_a_build_skips_bad_files_too(tmp_path, caplog):
    from maury.survey.assembly.building import build_survey

    write_texts(tmp_path)
    (tmp_path / "in" / "s2.txt").write_bytes(b"")
    (tmp_path / "s.toml").write_text(TEXT)
    rows = "".join(f"s{k},{5000 + k},{1 + k},2\n" for k in range(4))
    (tmp_path / "labels.csv").write_text(f"name,T,ra,dec\n{rows}")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\ntitle = "Mine"\nkind = "catalogue"\ndescription = "-"\ncitation = []\n'
        'documentation = "https://example.org"\n[id]\ncolumn = "name"\n'
        '[columns]\nteff = { name = "T", unit = "K" }\n'
    )
    build = (
        'title = "t"\n[spectra]\ningest = "s.toml"\nskip_bad = true\n[[catalogue]]\n'
        'recipe = "mine.toml"\nfile = "labels.csv"\nmatch = { by = "id", spectra = "id" }\n'
        '[labels]\nnames = ["teff"]\n'
    )
    (tmp_path / "b.toml").write_text(build)
    survey = build_survey(tmp_path / "b.toml", tmp_path / "o.zarr").survey
    assert [bool(text) for text in survey.column("unread")] == [False, False, True, False]
    assert survey.column("teff").tolist() == [5000, 5001, 5002, 5003]
    assert sum("could not be read" in record.message for record in caplog.records) == 1
    (tmp_path / "b.toml").write_text(build.replace("skip_bad = true\n", ""))
    with pytest.raises(InputFileError, match=r"s2\.txt"):
        build_survey(tmp_path / "b.toml", tmp_path / "p.zarr")
