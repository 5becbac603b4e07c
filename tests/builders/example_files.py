"""Files of the worked examples: simulated stars in the formats in which surveys publish.

Spectra come from the emulator and the observing model of maury itself. Labels are the simulated
truth with noise. Nothing here was observed.
"""

import numpy as np
from astropy.io import fits
from astropy.table import Table

from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.emulator import Emulator
from maury.simulation.observing import ObservingModel, Spectrograph
from maury.simulation.population import TRAINING, Population
from maury.simulation.surveys import LABEL_ERRORS
from maury.spectra.operators import vacuum_to_air
from maury.survey.archives import load


class SimulatedStars:
    """Simulated stars, and the spectra that an instrument would take of them."""

    def __init__(self, n, seed):
        self.rng = np.random.default_rng(seed)
        self.emulator = Emulator.load()
        self.stars = Population.load().sample(n, self.rng, selection=TRAINING)
        self.truth = self.emulator.clip(self.stars.labels)
        self.flux = self.emulator.flux(self.truth)
        self.gaia = 5_800_000_000_000_000_000 + self.rng.permutation(10 * n)[:n]
        self.tmass = np.array([f"2M{k:08d}-{k + 7:07d}" for k in range(n)])

    def observe(self, wave_air_aa, *, resolving_power, rows=slice(None), snr=60.0):
        """Flux and 1 sigma errors (n, n_pixel) at these wavelengths in air."""
        sky = ObservingModel(spike_fraction=0.0).at_power(resolving_power)
        power = self.emulator.spec.resolving_power
        taken = Spectrograph(self.emulator.wave_aa, wave_air_aa, power, sky).observe(
            self.flux[rows],
            self.truth[rows],
            self.rng,
            snr=np.full(self.truth[rows].shape[0], snr),
        )
        return taken.flux.astype(np.float64), 1 / np.sqrt(taken.ivar.astype(np.float64))

    def known(self, rows):
        """Columns of maury for some stars: noisy labels, photometry, astrometry."""
        stars, n = self.stars, len(rows)
        columns = {
            "ra": stars.ra_deg[rows],
            "dec": stars.dec_deg[rows],
            "parallax": stars.parallax_mas[rows],
            "parallax_error": stars.parallax_error_mas[rows],
            "snr": np.full(n, 120.0),
            "radial_velocity": self.rng.normal(0, 30, n),
        }
        for k, band in enumerate(BANDS):
            columns[band.column] = stars.magnitudes[rows, k]
            columns[f"{band.column}_error"] = stars.magnitude_errors[rows, k]
        for k, name in enumerate(LABEL_NAMES):
            noise = LABEL_ERRORS[name] * self.rng.normal(size=n)
            columns[name] = self.truth[rows, k] + noise
            columns[f"{name}_error"] = np.full(n, LABEL_ERRORS[name])
        return columns


def write_catalogue(path, recipe, columns, **raw):
    """Write a table with the column names of a survey recipe, marked as simulated."""
    found = load(recipe)
    table = Table({c.name: columns[n] for n, c in found.columns.items() if n in columns} | raw)
    table.meta["SIMULATE"] = True
    table.write(path, overwrite=True)


def write_apogee(path, sky, rows, *, seed=0):
    """An allStar file of DR17: of every tenth star a bad fit, of every twelfth a second row."""
    rows = np.asarray(rows)
    bad, second = np.arange(rows.size) % 10 == 9, np.arange(rows.size) % 12 == 11
    rows, twice = np.r_[rows, rows[second]], np.r_[np.zeros(rows.size, bool), second[second]]
    flags = np.where(np.r_[bad, bad[second]], 1 << 23, 0)
    motion = np.random.default_rng(seed).normal(0, 5, (2, rows.size))
    write_catalogue(
        path,
        "apogee-dr17",
        sky.known(rows),
        APOGEE_ID=sky.tmass[rows],
        APSTAR_ID=[f"apogee.apo25m.stars.{k}" for k in range(rows.size)],
        GAIAEDR3_SOURCE_ID=sky.gaia[rows],
        GAIAEDR3_PMRA=motion[0],
        GAIAEDR3_PMDEC=motion[1],
        ASPCAPFLAG=flags.astype(np.int64),
        EXTRATARG=np.where(twice, 1 << 4, 0).astype(np.int32),
        STARFLAG=np.zeros(rows.size, dtype=np.int64),
    )


def write_rave_apogee(folder, n=60, seed=1):
    """RAVE DR6 spectra and tables, and APOGEE labels of most of their stars."""
    sky = SimulatedStars(n, seed)
    star = np.r_[np.arange(n), np.arange(10)]
    wave = 8420.0 + 0.4 * np.arange(912)
    flux, sigma = sky.observe(wave, resolving_power=7500.0, rows=star)
    ids = [f"2010{1 + k % 12:02d}13_0823m14_{k:03d}" for k in range(star.size)]
    for k, obs_id in enumerate(ids):
        primary = fits.PrimaryHDU()
        primary.header["ROI"], primary.header["SIMULATE"] = obs_id, True
        image = fits.ImageHDU(flux[k].astype(np.float32), name="SPECTRUM")
        for card, value in (("CRVAL1", 8420.0), ("CDELT1", 0.4), ("CRPIX1", 1.0)):
            image.header[card] = value
        image.header["CUNIT1"] = "Angstrom"
        error = fits.ImageHDU((sigma[k] / flux[k]).astype(np.float32), name="ERROR")
        path = folder / "rave" / obs_id[:8] / f"RAVE_{obs_id}.fits"
        path.parent.mkdir(parents=True, exist_ok=True)
        fits.HDUList([primary, image, error]).writeto(path)
    place = sky.known(star) | {"snr": np.full(star.size, 60.0)}
    write_catalogue(
        folder / "dr6_sparv.fits",
        "rave-dr6",
        place,
        rave_obs_id=ids,
        hrv_error_sparv=np.where(np.arange(star.size) % 40 == 7, 9.0, 1.5),
        correlation_coeff_sparv=np.full(star.size, 60.0),
    )
    write_catalogue(folder / "dr6_obsdata.fits", "rave-dr6-obsdata", place, rave_obs_id=ids)
    write_photometry(folder, sky, np.arange(n))
    write_apogee(folder / "allStar-dr17-synspec_rev1.fits", sky, np.arange(50))


def write_photometry(folder, sky, rows):
    """Gaia DR3, 2MASS, AllWISE and StarHorse of some stars; one in thirty has a high RUWE."""
    known, n = sky.known(rows), len(rows)
    motion = np.random.default_rng(5).normal(0, 20, (2, n))
    moved = known | {
        "ra": known["ra"] + 16 * motion[0] / 3.6e6 / np.cos(np.radians(known["dec"])),
        "dec": known["dec"] + 16 * motion[1] / 3.6e6,
        "ruwe": np.where(np.arange(n) % 30 == 3, 2.0, 1.0),
    }
    write_catalogue(
        folder / "gaia_source.fits",
        "gaia-dr3",
        moved,
        source_id=sky.gaia[rows],
        pmra=motion[0],
        pmdec=motion[1],
    )
    write_catalogue(
        folder / "twomass.fits",
        "2mass",
        known,
        designation=[f"{k:08d}+{k:07d}" for k in range(n)],
        ph_qual=["AAA"] * n,
        cc_flg=["000"] * n,
    )
    write_catalogue(
        folder / "allwise.fits",
        "allwise",
        known,
        designation=[f"J{k:06d}.00+{k:06d}.0" for k in range(n)],
        cc_flags=["0000"] * n,
        ext_flg=np.zeros(n, dtype=np.int16),
    )
    write_catalogue(
        folder / "starhorse.fits",
        "starhorse-edr3",
        known | {"a_v": sky.stars.a_v[rows]},
        source_id=sky.gaia[rows],
        sh_outflag=["0000"] * n,
        fidelity=np.ones(n),
    )


def write_rvs_apogee(folder, n=130, seed=2):
    """RVS mean spectra as DataLink serves them (RAW), and APOGEE labels of most of their stars."""
    sky = SimulatedStars(n, seed)
    in_air = vacuum_to_air(8460.0 + 0.1 * np.arange(2401))
    flux, sigma = sky.observe(in_air, resolving_power=11500.0)
    table = Table(
        {
            "source_id": sky.gaia,
            "ra": sky.stars.ra_deg,
            "dec": sky.stars.dec_deg,
            "flux": flux.astype(np.float32),
            "flux_error": sigma.astype(np.float32),
        }
    )
    (folder / "rvs").mkdir()
    table.write(folder / "rvs" / "RVS_RAW.fits")
    write_apogee(folder / "allStar-dr17-synspec_rev1.fits", sky, np.arange(110))


def write_4most_gaia_eso(folder, n=130, seed=3):
    """Spectra in the format of 4MOST, and Gaia-ESO parameters of most of their stars.

    R = 18 000 and 8500-8700 A: the resolving power of 4MOST's high-resolution spectrograph, in the
    range of the emulator, which that spectrograph does not reach.
    """
    sky = SimulatedStars(n, seed)
    wave = 8500.0 + 0.08 * np.arange(2501)
    flux, sigma = sky.observe(vacuum_to_air(wave), resolving_power=18000.0)
    (folder / "4most").mkdir()
    for k in range(n):
        primary = fits.PrimaryHDU()
        cards = {
            "OBJECT": f"star{k}",
            "RA": sky.stars.ra_deg[k],
            "DEC": sky.stars.dec_deg[k],
            "SNR": 60.0,
            "SPEC_RES": 18000.0,
            "PRODCATG": "SCIENCE.SPECTRUM",
            "SPECSYS": "BARYCENT",
            "CONTNORM": True,
            "SIMULATE": True,
        }
        for name, value in cards.items():
            primary.header[name] = value
        arrays = {"WAVE": ("D", wave), "FLUX": ("E", flux[k]), "ERR_FLUX": ("E", sigma[k])}
        arrays["QUAL"] = ("J", np.zeros(wave.size, dtype=np.int32))
        units = {"WAVE": "Angstrom"}
        spectrum = fits.BinTableHDU.from_columns(
            [
                fits.Column(name, f"{wave.size}{kind}", units.get(name), array=values[None])
                for name, (kind, values) in arrays.items()
            ],
            name="SPECTRUM",
        )
        ends = ("SpectralAxis.Value", "FluxAxis.Value", "FluxAxis.Accuracy.StatError")
        for number, end in enumerate((*ends, "FluxAxis.Accuracy.QualityStatus"), start=1):
            spectrum.header[f"TUTYP{number}"] = f"Spectrum.Data.{end}"
        spectrum.header["TUCD1"] = "em.wl"
        fits.HDUList([primary, spectrum]).writeto(folder / "4most" / f"HRS_{k:06d}.fits")
    rows = np.arange(110)
    columns = sky.known(rows)
    columns["teff"][::11] = np.nan
    write_catalogue(
        folder / "gaia_eso_dr5.fits",
        "gaia-eso",
        columns,
        CNAME=[f"{k:08d}-{k:07d}" for k in rows],
    )
