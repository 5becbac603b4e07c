"""Spectra of RAVE, APOGEE, SDSS-V, GALAH and LAMOST: files written to the published data models."""

import json
import logging

import numpy as np
import pytest
from astropy.io import fits

from maury.errors import (
    ColumnError,
    ConfigError,
    GridMismatch,
    IdentifierError,
    InputFileError,
    OutputExists,
    UnknownName,
    WavelengthError,
)
from maury.survey.archives.ingest import ingest_recipe, open_recipe

APOGEE = 10 ** (4.179 + 6e-6 * np.arange(8575))
BOSS = 10 ** (3.5523 + 1e-4 * np.arange(4648))


def spectrum(wave, seed, level=1.0):
    """A smooth continuum with lines and noise; and its 1 sigma errors."""
    rng = np.random.default_rng(seed)
    lines = 0.3 * np.exp(-0.5 * ((wave - wave.mean()) / 3.0) ** 2)
    flux = level * (1.0 - lines + 0.01 * rng.standard_normal(wave.size))
    return flux, level * rng.uniform(0.01, 0.02, wave.size)


def linear_cards(header, wave, unit="Angstrom"):
    header["CRVAL1"], header["CDELT1"], header["CRPIX1"] = wave[0], wave[1] - wave[0], 1.0
    header["CUNIT1"] = unit


def log_cards(header, start, step):
    header["CRVAL1"], header["CDELT1"], header["CRPIX1"] = start, step, 1
    header["CTYPE1"], header["DC-FLAG"] = "LOG-LINEAR", 1


def write_rave(folder, obs_id, seed, start=8420.0, n=912):
    """Steinmetz et al. 2020, AJ 160, 82: RAVE_<rave_obs_id>.fits, SPECTRUM, relative ERROR."""
    wave = start + 0.4 * np.arange(n)
    flux, sigma = spectrum(wave, seed)
    primary = fits.PrimaryHDU()
    primary.header["ROI"] = obs_id
    image = fits.ImageHDU(flux, name="SPECTRUM")
    linear_cards(image.header, wave)
    path = folder / obs_id[:8] / f"RAVE_{obs_id}.fits"
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList([primary, image, fits.ImageHDU(sigma / flux, name="ERROR")]).writeto(path)
    return flux, sigma


def test_rave_round_trip(tmp_path):
    want = [
        write_rave(tmp_path / "in", obs_id, seed)
        for seed, obs_id in enumerate(["20100313_0823m14_113", "20041202_1507m30_001"])
    ]
    survey = ingest_recipe("rave-dr6", tmp_path / "in", tmp_path / "out.zarr")
    assert survey.id.tolist() == ["20041202_1507m30_001", "20100313_0823m14_113"]
    assert (survey.medium, survey.resolving_power, survey.simulated) == ("air", 7500.0, False)
    np.testing.assert_allclose(survey.wave_aa, 8420.0 + 0.4 * np.arange(912))
    seen = survey.batch(0, 2).spectra
    for row, (flux, sigma) in zip([1, 0], want, strict=True):
        np.testing.assert_allclose(seen.flux[row], flux, rtol=1e-6)
        np.testing.assert_allclose(seen.ivar[row], sigma**-2.0, rtol=1e-5)
    assert survey.provenance["reader"] == "rave-dr6"
    assert survey.provenance["options"] == {"recipe": "rave-dr6"}


def test_rave_spectra_on_grids_of_their_own_are_resampled(tmp_path):
    write_rave(tmp_path / "in", "20100313_0823m14_113", 0)
    write_rave(tmp_path / "in", "20100313_0823m14_114", 1, start=8430.3, n=850)
    survey = ingest_recipe("rave-dr6", tmp_path / "in", tmp_path / "out.zarr")
    seen = survey.batch(0, 2).spectra
    good = seen.ivar[1] > 0
    inside = (survey.wave_aa > 8431) & (survey.wave_aa < 8430.3 + 0.4 * 848)
    assert good[inside].all()
    assert not good[(survey.wave_aa < 8430) | (survey.wave_aa > 8771)].any()
    assert abs(float(np.median(seen.flux[1][good])) - 1.0) < 0.02


def test_rave_without_its_extensions_is_one_error(tmp_path):
    path = tmp_path / "RAVE_20100313_0823m14_113.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(np.ones(10), name="SPECTRUM")]).writeto(path)
    with pytest.raises(WavelengthError, match="CRVAL1"):
        open_recipe("rave-dr6", path)
    path.unlink()
    image = fits.ImageHDU(np.ones(912), name="SPECTRUM")
    linear_cards(image.header, 8420.0 + 0.4 * np.arange(912))
    fits.HDUList([fits.PrimaryHDU(), image]).writeto(path)
    with pytest.raises(InputFileError, match="no HDU 'ERROR'"):
        open_recipe("rave-dr6", path)


def write_apstar(folder, star, seed, *, field="120+12", n_visit=3, rows=True):
    """apStar data model: HDU 1 flux, 2 error, 3 mask; combined spectra in the first two rows.

    https://data.sdss.org/datamodel/files/APOGEE_REDUX/APRED_VERS/stars/TELESCOPE/FIELD/apStar.html
    """
    flux, sigma = spectrum(APOGEE, seed, level=250.0)
    mask = np.zeros(APOGEE.size, np.int32)
    mask[100], mask[200], mask[300] = 1 << 0, 1 << 12, 1 << 9
    primary = fits.PrimaryHDU()
    primary.header.update({"OBJID": star, "TELESCOP": "apo25m", "FIELD": field})
    primary.header.update({"RA": 12.5, "DEC": -3.25, "NVISITS": n_visit})
    images = [primary]
    others = np.full((n_visit + 1, APOGEE.size), 7.0)
    for values in (flux, sigma, mask):
        both = np.vstack([values, others]) if rows else values
        image = fits.ImageHDU(both.astype(values.dtype))
        log_cards(image.header, 4.179, 6e-6)
        images.append(image)
    path = folder / field / f"apStar-dr17-{star}.fits"
    path.parent.mkdir(parents=True, exist_ok=True)
    fits.HDUList(images).writeto(path)
    return flux, sigma


@pytest.mark.parametrize("rows", [True, False])
def test_apstar_round_trip(tmp_path, rows):
    flux, sigma = write_apstar(tmp_path / "in", "2M00000002+7417074", 0, rows=rows)
    survey = ingest_recipe("apogee-dr17", tmp_path / "in", tmp_path / "out.zarr")
    assert survey.id.tolist() == survey.star_id.tolist() == ["2M00000002+7417074"]
    assert (survey.medium, survey.resolving_power) == ("vacuum", 22500.0)
    np.testing.assert_allclose(survey.wave_aa, APOGEE, rtol=1e-9)
    seen = survey.batch(0, 1).spectra
    np.testing.assert_allclose(seen.flux[0], flux, rtol=1e-6)
    bad = np.isin(np.arange(APOGEE.size), [100, 200])
    np.testing.assert_allclose(seen.ivar[0][~bad], sigma[~bad] ** -2.0, rtol=1e-5)
    assert (seen.ivar[0][bad] == 0).all()
    np.testing.assert_allclose([survey.column("ra")[0], survey.column("dec")[0]], [12.5, -3.25])


def test_a_star_in_two_apogee_fields_has_two_identifiers_and_one_star(tmp_path):
    for seed, field in enumerate(["120+12", "121+12"]):
        write_apstar(tmp_path / "in", "2M00000002+7417074", seed, field=field)
    survey = ingest_recipe("apogee-dr17", tmp_path / "in", tmp_path / "out.zarr")
    assert sorted(survey.id) == [
        "apo25m.120+12.2M00000002+7417074",
        "apo25m.121+12.2M00000002+7417074",
    ]
    assert set(survey.star_id) == {"2M00000002+7417074"}


def test_the_same_apogee_spectrum_twice_is_refused(tmp_path):
    for folder in ("a", "b"):
        write_apstar(tmp_path / "in" / folder, "2M00000002+7417074", 0)
    with pytest.raises(IdentifierError, match="more than once"):
        open_recipe("apogee-dr17", tmp_path / "in")


def test_aspcapstar_round_trip(tmp_path):
    """aspcapStar: HDU 1 spectrum, 2 error, 3 best fit; zeros between the detectors.

    https://data.sdss.org/datamodel/files/APOGEE_ASPCAP/APRED_VERS/ASPCAP_VERS/TELESCOPE/FIELD/aspcapStar.html
    """
    flux, sigma = spectrum(APOGEE, 4)
    flux[:100] = 0.0
    images = [fits.PrimaryHDU()]
    for values in (flux, sigma, flux):
        images.append(fits.ImageHDU(values))
        log_cards(images[-1].header, 4.179, 6e-6)
    folder = tmp_path / "in"
    folder.mkdir()
    fits.HDUList(images).writeto(folder / "aspcapStar-dr17-2M17204146-2433149.fits")
    survey = ingest_recipe("apogee-dr17", folder, tmp_path / "out.zarr", arm="aspcapstar")
    assert survey.id.tolist() == ["2M17204146-2433149"]
    assert survey.provenance["options"] == {"recipe": "apogee-dr17", "arm": "aspcapstar"}
    seen = survey.batch(0, 1).spectra
    np.testing.assert_allclose(seen.flux[0][100:], flux[100:], rtol=1e-6)
    np.testing.assert_allclose(seen.ivar[0][100:], sigma[100:] ** -2.0, rtol=1e-5)
    assert (seen.ivar[0][:100] == 0).all()


def mwm_table(name, sdss_id, spectra, *, wave=None, header=()):
    """One HDU of a mwmStar file: a row of arrays per combined spectrum (Astra)."""
    n = spectra[0][0].size if spectra else 1
    columns = [
        fits.Column("sdss_id", "K", array=np.full(len(spectra), sdss_id)),
        fits.Column("snr", "E", array=[snr for _, _, snr in spectra]),
        fits.Column("telescope", "6A", array=np.full(len(spectra), "apo25m")),
        fits.Column("min_mjd", "J", array=np.full(len(spectra), 59804)),
        fits.Column("max_mjd", "J", array=np.full(len(spectra), 59866)),
        fits.Column("v_rad", "E", array=np.full(len(spectra), 17.5)),
        fits.Column("flux", f"{n}E", array=[flux for flux, _, _ in spectra]),
        fits.Column("ivar", f"{n}E", array=[sigma**-2.0 for _, sigma, _ in spectra]),
        fits.Column("pixel_flags", f"{n}K", array=np.zeros((len(spectra), n), np.int64)),
    ]
    if wave is not None:
        columns.append(fits.Column("wavelength", f"{n}D", array=[wave] * len(spectra)))
    table = fits.BinTableHDU.from_columns(columns, nrows=len(spectra), name=name)
    table.header.update(header)
    return table


def write_mwmstar(folder, sdss_id, apogee=(), boss=(), wave=True):
    primary = fits.PrimaryHDU()
    primary.header.update({"SDSS_ID": sdss_id, "RAV": 1.0, "RA": 150.25, "DEC": 2.5})
    grids = {"APOGEE": (APOGEE, 4.179, 6e-6), "BOSS": (BOSS, 3.5523, 1e-4)}
    hdus = [primary]
    for name, given in (
        ("BOSS/APO", boss),
        ("BOSS/LCO", ()),
        ("APOGEE/APO", apogee[:1]),
        ("APOGEE/LCO", apogee[1:]),
    ):
        grid, start, step = grids[name.split("/")[0]]
        cards = {"CRVAL": start, "CDELT": step, "NPIXELS": grid.size}
        hdus.append(
            mwm_table(name, sdss_id, list(given), wave=grid if wave else None, header=cards)
        )
    folder.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(folder / f"mwmStar-0.6.0-{sdss_id}.fits", checksum=True)


@pytest.mark.slow
@pytest.mark.parametrize("wave", [True, False])
def test_mwmstar_round_trip_of_both_instruments(tmp_path, wave):
    low, high = (*spectrum(APOGEE, 1), 50.0), (*spectrum(APOGEE, 2), 90.0)
    blue = (*spectrum(BOSS, 3, level=12.0), 30.0)
    write_mwmstar(tmp_path / "in", 7, apogee=[low, high], boss=[blue], wave=wave)
    write_mwmstar(tmp_path / "in", 8, apogee=[low], wave=wave)
    infrared = ingest_recipe("sdss-dr19", tmp_path / "in", tmp_path / "a.zarr")
    assert infrared.id.tolist() == ["7", "8"]
    assert infrared.resolving_power == 22500.0
    np.testing.assert_allclose(infrared.column("snr"), [90.0, 50.0])
    np.testing.assert_allclose(infrared.wave_aa, APOGEE, rtol=1e-9)
    seen = infrared.batch(0, 2).spectra
    np.testing.assert_allclose(seen.flux[0], high[0], rtol=1e-6)
    np.testing.assert_allclose(seen.ivar[1], low[1] ** -2.0, rtol=1e-5)
    optical = ingest_recipe("sdss-dr19", tmp_path / "in", tmp_path / "b.zarr", arm="boss")
    assert optical.resolving_power == 2000.0
    seen = optical.batch(0, 2).spectra
    np.testing.assert_allclose(seen.flux[0], blue[0], rtol=1e-6)
    assert (seen.ivar[1] == 0).all()


def write_galah(folder, sobject_id, camera, seed, *, release, normalised=True, step=0.0640):
    """GALAH DR3 and DR4: extensions as https://www.galah-survey.org/dr3/the_spectra/ has them."""
    wave = 6478.4 + step * np.arange(4096)
    flux, sigma = spectrum(wave, seed)
    raw = 5000.0 * flux
    primary = fits.PrimaryHDU(raw)
    linear_cards(primary.header, wave)
    if release == 3:
        parts = [("input_sigma", sigma / flux), ("no_sky_subspectrum", raw), ("no_sky_sigma", raw)]
        parts += [("normalised_spectrum", flux)] if normalised else []
    else:
        parts = [("normalized", flux), ("relative_error", sigma / flux), ("sky", raw)]
    hdus = [primary]
    for name, values in parts:
        hdus.append(fits.ImageHDU(values, name=name))
        linear_cards(hdus[-1].header, wave)
    folder.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(folder / f"{sobject_id}{camera}.fits")
    return wave, flux, sigma


@pytest.mark.parametrize("release", [3, 4])
def test_galah_round_trip(tmp_path, release):
    ids = ["170418003701205", "170418003701206"]
    wave, flux, sigma = write_galah(tmp_path / "in", ids[0], 3, 0, release=release)
    write_galah(tmp_path / "in", ids[1], 3, 1, release=release, step=0.0641)
    write_galah(tmp_path / "in", ids[0], 2, 2, release=release)
    survey = ingest_recipe(f"galah-dr{release}", tmp_path / "in", tmp_path / "o.zarr", arm="ccd3")
    assert survey.id.tolist() == ids
    assert (survey.medium, survey.resolving_power, survey.n_pixel) == ("air", 28000.0, 3960)
    seen = survey.batch(0, 2).spectra
    # Flux is conserved over ten angstrom, whatever the grids.
    inside = (survey.wave_aa > 6500) & (survey.wave_aa < 6510)
    given = (wave > 6500) & (wave < 6510)
    assert abs(seen.flux[0][inside].mean() - flux[given].mean()) < 1e-3
    ratio = np.median(seen.ivar[0][inside]) / np.median(sigma[given] ** -2.0)
    assert 0.9 < ratio < 3.0


def test_galah_spectrum_without_normalisation_is_kept_all_bad(tmp_path):
    write_galah(tmp_path / "in", "170418003701205", 3, 0, release=3, normalised=False)
    write_galah(tmp_path / "in", "170418003701206", 3, 1, release=3)
    survey = ingest_recipe("galah-dr3", tmp_path / "in", tmp_path / "o.zarr", arm="ccd3")
    good = (survey.batch(0, 2).spectra.ivar > 0).any(axis=1)
    assert good.tolist() == [False, True]


def test_galah_files_of_another_camera_or_name(tmp_path):
    write_galah(tmp_path / "in", "170418003701205", 3, 0, release=3)
    with pytest.raises(InputFileError, match="has no file"):
        open_recipe("galah-dr3", tmp_path / "in", arm="ccd1")
    (tmp_path / "in" / "1704180037012053.fits").rename(tmp_path / "in" / "star3.fits")
    with pytest.raises(InputFileError, match=r"<sobject_id>3\.fits"):
        open_recipe("galah-dr3", tmp_path / "in" / "star3.fits", arm="ccd3")


def lamost_table(name, wave, flux, sigma, mask, *, log=False, rows=False):
    grid = np.log10(wave) if log else wave
    parts = {
        "FLUX": flux,
        "IVAR": sigma**-2.0,
        "LOGLAM" if log else "WAVELENGTH": grid,
        "PIXMASK" if log else "ANDMASK": mask,
    }
    if rows:
        columns = [fits.Column(key, "D", array=values) for key, values in parts.items()]
    else:
        columns = [
            fits.Column(key, f"{wave.size}D", array=[values]) for key, values in parts.items()
        ]
    return fits.BinTableHDU.from_columns(columns, name=name)


def write_lrs(folder, obsid, seed, *, layout, third="wavelength"):
    """LAMOST LRS: table COADD (DR7 and later), or an image of five rows (before)."""
    wave = 10 ** (3.5682 + 1e-4 * np.arange(3909))
    flux, sigma = spectrum(wave, seed, level=800.0)
    mask = np.zeros(wave.size)
    mask[500] = 1
    primary = fits.PrimaryHDU()
    hdus = [primary]
    if layout == "table":
        hdus.append(lamost_table("COADD", wave, flux, sigma, mask))
    else:
        rows = wave if third == "wavelength" else flux - 800.0
        primary.data = np.vstack([flux, sigma**-2.0, rows, mask, mask + 1])
        primary.header.update({"COEFF0": 3.5682, "COEFF1": 1e-4})
    primary.header.update({"OBSID": obsid, "RA": 331.1, "DEC": -1.6})
    folder.mkdir(parents=True, exist_ok=True)
    fits.HDUList(hdus).writeto(folder / f"spec-55862-B6212_sp01-{seed:03d}.fits")
    return flux, sigma


@pytest.mark.parametrize(
    ("layout", "third"), [("table", ""), ("image", "wavelength"), ("image", "continuum")]
)
def test_lamost_low_resolution_round_trip(tmp_path, layout, third):
    flux, sigma = write_lrs(tmp_path / "in", 101001, 1, layout=layout, third=third)
    survey = ingest_recipe("lamost-lrs", tmp_path / "in", tmp_path / "out.zarr")
    assert survey.id.tolist() == ["101001"]
    assert (survey.medium, survey.resolving_power) == ("vacuum", 1800.0)
    np.testing.assert_allclose(np.log10(survey.wave_aa[[0, -1]]), [3.5682, 3.959], atol=1e-9)
    seen = survey.batch(0, 1).spectra
    np.testing.assert_allclose(seen.flux[0], flux, rtol=1e-6)
    assert seen.ivar[0][500] == 0
    np.testing.assert_allclose(seen.ivar[0][501:], sigma[501:] ** -2.0, rtol=1e-5)
    np.testing.assert_allclose(survey.column("ra"), [331.1])


@pytest.mark.parametrize(("log", "rows"), [(True, True), (True, False), (False, False)])
def test_lamost_medium_resolution_round_trip(tmp_path, log, rows, caplog):
    waves = {
        "B": 10 ** (3.6946 + 1e-5 * np.arange(3376)),
        "R": 10 ** (3.7994 + 1e-5 * np.arange(3312)),
    }
    folder = tmp_path / "in"
    folder.mkdir()
    want = {}
    for seed, arms in enumerate(["BR", "B"]):
        primary = fits.PrimaryHDU()
        primary.header["OBSID"] = 5000 + seed
        hdus = [primary]
        for arm in arms:
            flux, sigma = want[seed, arm] = spectrum(waves[arm], seed)
            mask = np.zeros(flux.size)
            hdus.append(
                lamost_table(f"COADD_{arm}", waves[arm], flux, sigma, mask, log=log, rows=rows)
            )
            hdus.append(lamost_table(f"{arm}-84420185", waves[arm], flux * 0, sigma, mask, log=log))
        fits.HDUList(hdus).writeto(folder / f"med-58149-HIP{seed}.fits")
    with caplog.at_level(logging.WARNING):
        blue = ingest_recipe("lamost-mrs", folder, tmp_path / "b.zarr")
    assert "no 'RA'" in caplog.text
    red = ingest_recipe("lamost-mrs", folder, tmp_path / "r.zarr", arm="red")
    assert blue.id.tolist() == ["5000", "5001"]
    np.testing.assert_allclose(blue.batch(0, 2).spectra.flux[1], want[1, "B"][0], rtol=1e-6)
    seen = red.batch(0, 2).spectra
    np.testing.assert_allclose(seen.ivar[0], want[0, "R"][1] ** -2.0, rtol=1e-5)
    assert (seen.ivar[1] == 0).all()


def test_lamost_tables_of_other_columns_are_refused(tmp_path):
    table = fits.BinTableHDU.from_columns([fits.Column("FLUX", "3D", array=[[1.0, 2.0, 3.0]])])
    table.name = "COADD"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "spec.fits")
    with pytest.raises(ColumnError, match="IVAR"):
        open_recipe("lamost-lrs", tmp_path / "spec.fits")
    table.name = "B-84420185"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(tmp_path / "med.fits")
    with pytest.raises(InputFileError, match="COADD_B"):
        open_recipe("lamost-mrs", tmp_path / "med.fits")


def test_a_file_cut_short_is_one_error(tmp_path):
    write_apstar(tmp_path, "2M00000002+7417074", 0)
    (path,) = tmp_path.rglob("*.fits")
    path.write_bytes(path.read_bytes()[:-20000])
    with pytest.raises(InputFileError, match=r"apStar-dr17-2M00000002\+7417074.fits"):
        open_recipe("apogee-dr17", tmp_path)


def test_what_is_asked_for_must_exist(tmp_path):
    write_rave(tmp_path / "in", "20100313_0823m14_113", 0)
    with pytest.raises(UnknownName, match="did you mean 'rave-dr6'"):
        ingest_recipe("rave-dr-6", tmp_path / "in", tmp_path / "out.zarr")
    with pytest.raises(ConfigError, match="has no arms"):
        ingest_recipe("rave-dr6", tmp_path / "in", tmp_path / "out.zarr", arm="blue")
    with pytest.raises(UnknownName, match="did you mean 'ccd3'"):
        ingest_recipe("galah-dr3", tmp_path / "in", tmp_path / "out.zarr", arm="cdd3")
    with pytest.raises(ConfigError, match="a catalogue, not spectra"):
        ingest_recipe("rave-dr6-madera", tmp_path / "in", tmp_path / "out.zarr")
    with pytest.raises(InputFileError, match="not found"):
        ingest_recipe("rave-dr6", tmp_path / "nowhere", tmp_path / "out.zarr")
    ingest_recipe("rave-dr6", tmp_path / "in", tmp_path / "out.zarr")
    with pytest.raises(OutputExists):
        ingest_recipe("rave-dr6", tmp_path / "in", tmp_path / "out.zarr")


def test_spectra_of_two_grids_without_a_common_one(tmp_path):
    write_apstar(tmp_path / "in", "2M00000002+7417074", 0)
    images = [fits.PrimaryHDU()]
    for values in spectrum(APOGEE[:8000], 0):
        images.append(fits.ImageHDU(values))
        log_cards(images[-1].header, 4.179, 6e-6)
    images.append(fits.ImageHDU(np.zeros(8000, np.int32)))
    fits.HDUList(images).writeto(tmp_path / "in" / "apStar-dr17-2M00000003+7417074.fits")
    with pytest.raises(GridMismatch):
        ingest_recipe("apogee-dr17", tmp_path / "in", tmp_path / "out.zarr")


def test_a_user_recipe_reads_a_published_format(tmp_path):
    write_rave(tmp_path / "in", "20100313_0823m14_113", 0)
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        """
        name = "mine"
        title = "Mine"
        kind = "spectra"
        description = "RAVE on a coarse grid"
        citation = []
        documentation = "https://example.org"
        [spectra]
        reader = "rave-dr6"
        medium = "air"
        grid = { start = 8450.0, step = 1.0, n = 300 }
        """,
        "utf-8",
    )
    survey = ingest_recipe(recipe, tmp_path / "in", tmp_path / "out.zarr")
    assert (survey.n_pixel, survey.resolving_power) == (300, None)


def _normalised(spectra):
    (found,) = [one for one in spectra if one.flux.unit == "" and one.flux.value.max() < 2]
    return found


def test_other_readers_see_the_same_in_the_same_files(tmp_path):
    """Specutils, which reads these formats by code of its own, agrees pixel by pixel."""
    pytest.importorskip("specutils")
    from specutils import Spectrum, SpectrumList

    write_apstar(tmp_path / "a", "2M00000002+7417074", 0)
    write_mwmstar(tmp_path / "m", 7, apogee=[(*spectrum(APOGEE, 1), 50.0)])
    write_galah(tmp_path / "g", "170418003701205", 3, 0, release=3)
    (apstar,) = (tmp_path / "a").rglob("*.fits")
    mwmstar = tmp_path / "m" / "mwmStar-0.6.0-7.fits"
    galah = tmp_path / "g" / "1704180037012053.fits"
    pairs = [
        ("apogee-dr17", None, apstar, Spectrum.read(apstar, format="APOGEE apStar")),
        ("sdss-dr19", None, mwmstar, Spectrum.read(mwmstar, format="SDSS-V mwm", hdu=3)),
        ("galah-dr3", "ccd3", galah, _normalised(SpectrumList.read(galah, format="GALAH"))),
    ]
    for recipe, arm, path, other in pairs:
        with open_recipe(recipe, path, arm=arm) as files:
            (piece,) = files.source.pieces(0, 1)
        np.testing.assert_allclose(other.spectral_axis.to_value("Angstrom"), piece.wave_aa)
        np.testing.assert_allclose(np.ravel(other.flux.value), piece.flux[0], rtol=1e-6)


def test_workers_open_the_same_again(tmp_path):
    from maury.survey.archives.ingest import _open_again

    write_galah(tmp_path / "in", "170418003701205", 3, 0, release=4)
    with open_recipe("galah-dr4", tmp_path / "in", arm="ccd3") as files:
        opened = _open_again(json.dumps(["galah-dr4", str(tmp_path / "in"), "ccd3", False]))
        np.testing.assert_array_equal(opened.gridder.wave_aa, files.gridder.wave_aa)
        (one,), (other,) = (list(s.pieces(0, 1)) for s in (opened.source, files.source))
        np.testing.assert_array_equal(one.flux, other.flux)


def write_aspcapstar(folder, *, n_image=2, cards="images", **primary):
    flux, sigma = spectrum(APOGEE, 4)
    images = [fits.PrimaryHDU(), *(fits.ImageHDU(v) for v in (flux, sigma, flux)[:n_image])]
    images[0].header.update(primary)
    if cards != "nowhere":
        log_cards(images[0 if cards == "primary" else 1].header, 4.179, 6e-6)
    folder.mkdir()
    fits.HDUList(images).writeto(folder / "aspcapStar-dr17-2M17204146-2433149.fits")
    return flux


def test_aspcapstar_that_says_its_star_and_its_grid_in_the_primary_header(tmp_path):
    flux = write_aspcapstar(tmp_path / "in", cards="primary", OBJID="VESTA")
    survey = ingest_recipe("apogee-dr17", tmp_path / "in", tmp_path / "o.zarr", arm="aspcapstar")
    assert survey.id.tolist() == ["VESTA"]
    np.testing.assert_allclose(survey.wave_aa, APOGEE, rtol=1e-9)
    np.testing.assert_allclose(survey.batch(0, 1).spectra.flux[0], flux, rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_image": 1}, InputFileError, "has 2 HDUs; an aspcapStar file has flux and error"),
        ({"cards": "nowhere"}, WavelengthError, "no wavelength cards"),
    ],
)
def test_aspcapstar_files_that_lack_something(tmp_path, options, error, words):
    write_aspcapstar(tmp_path / "in", **options)
    with pytest.raises(error, match=words):
        ingest_recipe("apogee-dr17", tmp_path / "in", tmp_path / "o.zarr", arm="aspcapstar")


def test_mwmstar_files_of_another_layout(tmp_path):
    path = tmp_path / "mwmStar-0.6.0-7.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(APOGEE, name="FLUX")]).writeto(path)
    with pytest.raises(InputFileError, match=r"no HDU such as APOGEE/APO \(it has .*FLUX"):
        open_recipe("sdss-dr19", path)
    table = fits.BinTableHDU.from_columns([fits.Column("flux", "3E", array=[[1.0, 2.0, 3.0]])])
    table.name = "APOGEE/APO"
    fits.HDUList([fits.PrimaryHDU(), table]).writeto(path, overwrite=True)
    with pytest.raises(ColumnError, match="APOGEE/APO lacks the columns ivar"):
        ingest_recipe("sdss-dr19", path, tmp_path / "o.zarr")
