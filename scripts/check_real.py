"""Labels of real Gaia RVS spectra of nearby stars beside those of the literature.

Usage: python scripts/check_real.py MODEL FOLDER

FOLDER holds RVS mean spectra as Gaia DR3 serves them, one star a file; those of `LITERATURE` are
set beside it. The spectra are smoothed to the resolving power that the model was trained at, and
brought to its pixels, of which those beyond RVS's range are missing. There is no photometry.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from scipy.ndimage import gaussian_filter1d

from maury.labels.flags import names
from maury.model.directory import Model
from maury.prediction.predictor import Predictor
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.batch import Batch
from maury.spectra.operators import vacuum_to_air
from maury.spectra.spectra import Spectra
from maury.survey.archives.ingest import ingest_recipe

LITERATURE = {
    # Teff, log g, [M/H]; a star without a value in the literature is shown as it is predicted.
    "Kepler-409": (5460.0, 4.50, 0.08),
    "KOI-001": (5850.0, 4.43, -0.15),
}
_POWER = 11500.0
_FWHM_PER_SIGMA = 2.3548


def on_grid_of(model: Model, spectra: Spectra, power: float) -> Spectra:
    """Smooth spectra to a lower resolving power and interpolate them to the pixels of a model."""
    wave = np.asarray(vacuum_to_air(spectra.wave_aa))
    step = float(np.median(np.diff(wave)))
    width = wave.mean() / _FWHM_PER_SIGMA * np.sqrt(max(power**-2.0 - _POWER**-2.0, 0.0)) / step
    flux, ivar = [], []
    for one, weight in zip(spectra.flux, spectra.ivar, strict=True):
        good = (weight > 0) & np.isfinite(one)
        filled = np.interp(wave, wave[good], one[good])
        flux.append(np.interp(model.wave_aa, wave, gaussian_filter1d(filled, width)))
        inside = (model.wave_aa > wave[good][0] + 1) & (model.wave_aa < wave[good][-1] - 1)
        # Smoothing averages 2 sqrt(pi) sigma pixels, and a coarser pixel no more of them.
        n_mean = max(2.0 * np.sqrt(np.pi) * width, 1.0)
        ivar.append(np.where(inside, np.median(weight[good]) * n_mean, 0.0))
    return Spectra.from_arrays(model.wave_aa, np.array(flux), np.array(ivar), medium="air")


def main() -> None:
    """Print a table, star by star."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    model = Model.open(given.model)
    power = TrainingStarSimulator.of_model(model).observing.resolving_power
    files = sorted(given.folder.glob("*.csv"))
    print("| star | | Teff | log g | [M/H] | chi2 | flags |\n|---|---|---|---|---|---|---|")
    for file in files:
        with TemporaryDirectory() as folder:
            survey = ingest_recipe("gaia-dr3-rvs", file, Path(folder) / "s.zarr")
            batch = survey.batch(0, 1)
        spectra = on_grid_of(model, batch.spectra, power)
        found = Predictor(model).predict(Batch(spectra, batch.columns, at_rest=True))
        labels = [
            f"{found[name][0]:{form}} +- {found[name + '_error'][0]:{form}}"
            for name, form in (("teff", ".0f"), ("logg", ".2f"), ("m_h", ".2f"))
        ]
        known = LITERATURE.get(file.stem)
        told = ["", "", ""] if known is None else [f"{x:g}" for x in known]
        flags = ", ".join(names(int(found["flags"][0])))
        print(f"| {file.stem} | literature | {' | '.join(told)} | | |")
        print(f"| | predicted | {' | '.join(labels)} | {found['chi2_reduced'][0]:.2f} | {flags} |")


if __name__ == "__main__":
    main()
