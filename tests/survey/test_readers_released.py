import json
import logging
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from maury.errors import (
    ColumnError,
    GridMismatch,
    IdentifierError,
    InputFileError,
    LengthMismatch,
    MauryError,
    OutputExists,
    WavelengthError,
)
from maury.labels.definitions import LABEL_NAMES
from maury.survey.readers import ingest_released
from maury.survey.store import SurveyWriter

N_STAR = 7
SNR = 50.0


def flux_of(n_star=N_STAR, seed=1):
    rng = np.random.default_rng(seed)
    return (1 + rng.normal(0, 1 / SNR, (n_star, 912))).astype("f4")


def write_release(folder: Path, n_star=N_STAR, *, flux=None, cards=(), ids=True):
    folder.mkdir(exist_ok=True)
    flux = flux_of(n_star) if flux is None else flux
    hdu = fits.PrimaryHDU(flux.T)
    for key, value in cards:
        hdu.header[key] = value
    hdu.writeto(folder / "few_spectra.fits", overwrite=True)
    rows = [f"   {1 + k / 8} ,  {10 + k / 4},9.5  , {8 + k / 4}, nan " for k in range(n_star)]
    text = "parallax,phot_g_mean_mag,phot_bp_mean_mag,Jmag_2MASS,av50\n" + "\n".join(rows)
    (folder / "few_parameters.csv").write_text(text + "\n")
    label_rows = [f"{k:03d},{5000 + k},4.5,-0.{k}" for k in range(n_star)]
    header = "RAVE_OBS_ID,Teff,logg,MH\n"
    if not ids:
        header, label_rows = header[12:], [row[4:] for row in label_rows]
    (folder / "few_labels.csv").write_text(header + "\n".join(label_rows) + "\n")
    return flux


@pytest.fixture
def release(tmp_path):
    write_release(tmp_path / "in")
    return tmp_path / "in"


def test_a_small_release_is_read_with_blanks_nan_and_leading_zeros(release, tmp_path):
    survey = ingest_released(release, tmp_path / "s.zarr")
    np.testing.assert_array_equal(survey.batch(0, N_STAR).spectra.flux, flux_of())
    np.testing.assert_allclose(survey.wave_aa, 8420.0 + 0.4 * np.arange(912), atol=1e-9)
    assert survey.medium == "air"
    assert not survey.simulated
    assert survey.id[3] == "003"
    assert survey.label_names == ("teff", "logg", "m_h")
    np.testing.assert_array_equal(survey.column("teff"), 5000.0 + np.arange(N_STAR))
    np.testing.assert_array_equal(survey.column("j_m"), 8 + np.arange(N_STAR) / 4)
    assert np.isnan(survey.column("a_v")).all()


def test_ivar_follows_from_estimated_snr(release, tmp_path):
    batch = ingest_released(release, tmp_path / "s.zarr").batch(0, N_STAR)
    snr = batch.column("snr")
    assert np.all(snr > 0)
    expected = snr[:, None] ** 2 / np.maximum(batch.spectra.flux, 0.05)
    np.testing.assert_allclose(batch.spectra.ivar, expected, rtol=1e-5)


def test_rows_without_flux_are_kept_as_bad(tmp_path):
    flux = flux_of()
    flux[1] = np.nan
    flux[4] = 0.0
    flux[5, 100] = np.nan
    write_release(tmp_path / "in", flux=flux)
    (tmp_path / "in" / "few_extra.csv").write_text("snr\n" + "40\n" * N_STAR)
    batch = ingest_released(tmp_path / "in", tmp_path / "s.zarr").batch(0, N_STAR)
    good = batch.spectra.good.sum(axis=1)
    np.testing.assert_array_equal(good, [912, 0, 912, 912, 0, 911, 912])


def test_unknown_snr_is_estimated_only_where_the_file_does_not_say(release, tmp_path):
    (release / "few_extra.csv").write_text("snr\n33\n \n-9999\n" + "nan\n" * (N_STAR - 4) + "44\n")
    snr = ingest_released(release, tmp_path / "s.zarr").column("snr")
    assert snr[0] == 33
    assert snr[-1] == 44
    assert np.all(np.isfinite(snr[1:-1]))
    assert not np.any(np.isin(snr[1:-1], [33, 44, -9999]))


def test_without_identifiers_spectra_are_numbered(tmp_path):
    write_release(tmp_path / "in", ids=False)
    survey = ingest_released(tmp_path / "in", tmp_path / "s.zarr")
    assert survey.id.tolist() == [str(k) for k in range(N_STAR)]


def test_identifiers_in_another_order_join(release, tmp_path, caplog):
    reverse = [f"{k:03d},{20 + k}" for k in reversed(range(N_STAR))]
    (release / "few_extra.csv").write_text("RAVE_OBS_ID,snr\n" + "\n".join(reverse) + "\n")
    with caplog.at_level(logging.WARNING):
        survey = ingest_released(release, tmp_path / "s.zarr")
    np.testing.assert_array_equal(survey.column("snr"), 20.0 + np.arange(N_STAR))
    assert "joined by identifier" in caplog.text


def test_errors_and_positions_under_obvious_names(release, tmp_path):
    rows = "\n".join(f"{k},0.1,12{k},-{k},30" for k in range(N_STAR))
    (release / "few_extra.csv").write_text("e_Teff,parallax_error,RA,DEC,junk\n" + rows + "\n")
    survey = ingest_released(release, tmp_path / "s.zarr")
    np.testing.assert_array_equal(survey.column("teff_error"), np.arange(N_STAR))
    np.testing.assert_array_equal(survey.column("dec"), -np.arange(N_STAR))
    assert "junk" not in survey.column_names
    assert survey.label_names == ("teff", "logg", "m_h")


def test_negative_errors_and_stand_ins_are_missing(release, tmp_path):
    rows = "0.1,-999\n-1,12.5\n-9999,99.99\n" + "0.1,12\n" * (N_STAR - 3)
    (release / "few_extra.csv").write_text("parallax_error,wise1\n" + rows)
    survey = ingest_released(release, tmp_path / "s.zarr")
    np.testing.assert_array_equal(np.isnan(survey.column("parallax_error"))[:4], [0, 1, 1, 0])
    np.testing.assert_array_equal(np.isnan(survey.column("w1mpro"))[:4], [1, 0, 1, 0])


@pytest.mark.parametrize(
    ("cards", "first", "step"),
    [
        ([("CRVAL2", 8500.0), ("CDELT2", 0.3), ("CRPIX2", 1.0)], 8500.0, 0.3),
        ([("CRVAL2", 8500.0), ("CDELT2", 0.3), ("CRPIX2", 11.0)], 8497.0, 0.3),
        ([("WAVE0", 850.0), ("DWAVE", 0.03), ("WAVEUNIT", "nm")], 8500.0, 0.3),
        ([("CRVAL1", 1.0), ("CDELT1", 1.0)], 8420.0, 0.4),
    ],
)
def test_wavelength_cards_of_the_pixel_axis_are_respected(tmp_path, cards, first, step):
    write_release(tmp_path / "in", cards=[*cards, ("SIMULATE", True), ("WAVEMED", "vacuum")])
    survey = ingest_released(tmp_path / "in", tmp_path / "s.zarr")
    np.testing.assert_allclose(survey.wave_aa, first + step * np.arange(912), atol=1e-6)
    assert survey.simulated
    assert survey.medium == "vacuum"


def test_star_by_pixel_is_read_too(release, tmp_path):
    fits.PrimaryHDU(flux_of()).writeto(release / "few_spectra.fits", overwrite=True)
    survey = ingest_released(release, tmp_path / "s.zarr")
    np.testing.assert_array_equal(survey.batch(0, N_STAR).spectra.flux, flux_of())


def test_scaled_integers_are_read_as_flux(release, tmp_path):
    hdu = fits.PrimaryHDU(flux_of().T.astype("f8"))
    hdu.scale("int16", bscale=1e-4, bzero=1.0)
    hdu.writeto(release / "few_spectra.fits", overwrite=True)
    survey = ingest_released(release, tmp_path / "s.zarr")
    np.testing.assert_allclose(survey.batch(0, N_STAR).spectra.flux, flux_of(), atol=6e-5)


def test_provenance_and_progress(release, tmp_path):
    calls = []
    survey = ingest_released(
        release, tmp_path / "s.zarr", progress=lambda done, total: calls.append((done, total))
    )
    assert calls == [(N_STAR, N_STAR)]
    record = json.loads(json.dumps(survey.provenance))
    assert [f["name"] for f in record["files"]] == [
        "few_spectra.fits",
        "few_parameters.csv",
        "few_labels.csv",
    ]
    assert all(len(f["sha256"]) == 64 for f in record["files"])


def test_an_existing_store_is_replaced_only_on_demand(release, tmp_path):
    ingest_released(release, tmp_path / "s.zarr")
    with pytest.raises(OutputExists):
        ingest_released(release, tmp_path / "s.zarr")
    ingest_released(release, tmp_path / "s.zarr", overwrite=True)


def test_an_interrupted_ingest_resumes(release, tmp_path, monkeypatch):
    monkeypatch.setattr("maury.survey.readers.writing.CHUNK_STARS", 3)
    calls, started = [], []

    def stop_after_first(done, _total):
        calls.append(done)
        if len(calls) == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest_released(release, tmp_path / "s.zarr", progress=stop_after_first)
    write = SurveyWriter.write
    monkeypatch.setattr(
        SurveyWriter,
        "write",
        lambda self, start, *args, **kw: (started.append(start), write(self, start, *args, **kw)),
    )
    survey = ingest_released(release, tmp_path / "s.zarr")
    assert started == [3, 6]
    np.testing.assert_array_equal(survey.batch(0, N_STAR).spectra.flux, flux_of())
    assert survey.id.tolist() == [f"{k:03d}" for k in range(N_STAR)]


def _second_spectra(folder):
    (folder / "more_spectra.fits").write_bytes((folder / "few_spectra.fits").read_bytes())


def _short_labels(folder):
    (folder / "few_labels.csv").write_text("RAVE_OBS_ID,Teff\na,5000\n")


def _twice(folder):
    (folder / "few_labels.csv").write_text("RAVE_OBS_ID,Teff\n" + "a,5000\n" * N_STAR)


def _others(folder):
    rows = "".join(f"x{k},30\n" for k in range(N_STAR))
    (folder / "few_extra.csv").write_text("RAVE_OBS_ID,snr\n" + rows)


def _no_known_column(folder):
    (folder / "few_labels.csv").write_text("A,B\n" + "1,2\n" * N_STAR)


def _text_for_number(folder):
    (folder / "few_labels.csv").write_text("Teff\n" + "hot\n" * N_STAR)


def _column_again(folder):
    (folder / "few_extra.csv").write_text("TEFF\n" + "5000\n" * N_STAR)


def _column_twice(folder):
    (folder / "few_labels.csv").write_text("Teff,Teff\n" + "5000,1\n" * N_STAR)


def _ragged(folder):
    (folder / "few_labels.csv").write_text("Teff,logg\n" + "5000,1\n" * (N_STAR - 1) + "5000\n")


def _empty(folder):
    (folder / "few_labels.csv").write_text("")


def _no_rows(folder):
    (folder / "few_labels.csv").write_text("Teff\n")


def _truncated(folder):
    path = folder / "few_spectra.fits"
    path.write_bytes(path.read_bytes()[:9000])


def _absurd(folder):
    path = folder / "few_spectra.fits"
    head = path.read_bytes()
    n = "7".rjust(20).encode()
    assert n in head
    path.write_bytes(head.replace(b"NAXIS1  = " + n, b"NAXIS1  = " + b"9" * 15 + b"     ", 1))


def _not_fits(folder):
    (folder / "few_spectra.fits").write_text("hello")


def _wrong_pixels(folder):
    fits.PrimaryHDU(np.ones((900, N_STAR))).writeto(folder / "few_spectra.fits", overwrite=True)


def _no_image(folder):
    fits.PrimaryHDU().writeto(folder / "few_spectra.fits", overwrite=True)


def _backwards(folder):
    write_release(folder, cards=[("CRVAL2", 8500.0), ("CDELT2", -0.3)])


def _odd_medium(folder):
    write_release(folder, cards=[("WAVEMED", "water")])


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (_second_spectra, InputFileError, "few_spectra.fits, more_spectra.fits"),
        (lambda f: (f / "few_parameters.csv").unlink(), InputFileError, "_parameters.csv"),
        (_short_labels, LengthMismatch, "few_spectra.fits holds 7 spectra.*few_labels.csv 1 rows"),
        (_twice, IdentifierError, "'a'"),
        (_others, IdentifierError, "few_extra.csv lacks 7 identifiers"),
        (_no_known_column, ColumnError, "no known column"),
        (_text_for_number, ColumnError, "'Teff'.*hot"),
        (_column_again, ColumnError, "teff again"),
        (_column_twice, ColumnError, "more than one column"),
        (_ragged, InputFileError, "few_labels.csv"),
        (_empty, InputFileError, "few_labels.csv"),
        (_no_rows, InputFileError, "no rows"),
        (_truncated, InputFileError, "few_spectra.fits.*cut short"),
        (_absurd, MauryError, "few_spectra.fits"),
        (_not_fits, InputFileError, "few_spectra.fits"),
        (_wrong_pixels, GridMismatch, "912 pixels"),
        (_no_image, GridMismatch, "912 pixels"),
        (_backwards, WavelengthError, "unsorted"),
        (_odd_medium, WavelengthError, "water"),
    ],
)
def test_each_fault_is_one_clear_error(release, tmp_path, spoil, error, words):
    spoil(release)
    with pytest.raises(error, match=words):
        ingest_released(release, tmp_path / "s.zarr")
    assert not (tmp_path / "s.zarr").exists()


def test_a_file_is_no_directory(release, tmp_path):
    with pytest.raises(InputFileError, match="no directory"):
        ingest_released(release / "few_spectra.fits", tmp_path / "s.zarr")


@pytest.fixture(scope="module")
def rave_like(shared, tmp_path_factory):
    source = shared / "data" / "rave_like"
    return source, ingest_released(source, tmp_path_factory.mktemp("rave") / "s.zarr")


def test_rave_like_whole(rave_like):
    source, survey = rave_like
    assert len(survey) == 3669
    assert np.unique(survey.star_id).size == 3352
    assert survey.simulated
    assert survey.label_names == LABEL_NAMES
    extra = np.genfromtxt(source / "training_sample_extra.csv", delimiter=",", names=True)
    np.testing.assert_array_equal(survey.column("snr"), extra["snr"])
    labels = np.loadtxt(
        source / "training_sample_labels.csv", delimiter=",", skiprows=1, usecols=range(1, 10)
    )
    np.testing.assert_array_equal(survey.labels(), labels)
    with fits.open(source / "training_sample_spectra.fits") as hdus:
        flux = hdus[0].data[:, 3000:3010].T
        np.testing.assert_array_equal(survey.batch(3000, 3010).spectra.flux, flux)


def test_rave_like_stars_have_equal_labels(rave_like):
    _, survey = rave_like
    _, first, member = np.unique(survey.star_id, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(survey.labels(), survey.labels()[first[member]])


def test_rave_like_snr_is_estimated_within_a_tenth(rave_like, tmp_path):
    source, survey = rave_like
    folder = tmp_path / "in"
    folder.mkdir()
    for path in source.iterdir():
        if not path.name.endswith("_extra.csv"):
            (folder / path.name).symlink_to(path)
    estimated = ingest_released(folder, tmp_path / "s.zarr").column("snr")
    assert 0.9 < np.median(estimated / survey.column("snr")) < 1.1
