"""Files of the worked examples: simulated stars in the formats in which surveys publish.

Spectra come from the emulator and the observing model of maury itself. Labels are the simulated
truth with noise. Nothing here was observed.
"""

import numpy as np
from astropy.io import fits
from astropy.table import Table

from maury.columns import BANDS
from maury.emulator import Emulator
from maury.labels import LABEL_NAMES
from maury.observing import ObservingModel, Spectrograph
from maury.operators import vacuum_to_air
from maury.population import TRAINING, Population
from maury.simulate import LABEL_ERRORS
from maury.surveys import load


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


def write_rave_apogee(folder, n=130, seed=1):
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
    write_apogee(folder / "allStar-dr17-synspec_rev1.fits", sky, np.arange(110))


def rvs_grid_in_air():
    """The 2401 wavelengths of RVS mean spectra, in air."""
    return vacuum_to_air(8460.0 + 0.1 * np.arange(2401))
