"""Compare how well the published networks read simulated and RAVE-like reference spectra.

Usage: python scripts/check_realism.py REFERENCE [--networks 10] [--realistic]

The ten networks of Guiglion et al. (2020) were trained on real RAVE spectra. Their scatter about
the true labels (bias removed; standard deviation, and half the 16-84 % range) on stars simulated by
maury is compared with that on REFERENCE/rave_like, star counts and S/N being the same. The exit
status is 1 if any label differs by more than 25 %.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from astropy.io import fits

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from builders import keras_oracle
from maury.labels.definitions import LABELS
from maury.simulation.emulator import Emulator
from maury.simulation.mismatch import REALISTIC_MISMATCH
from maury.simulation.observing import (
    RAVE_WAVE_AA,
    TRAINING_CONDITIONS,
    ObservingModel,
    Spectrograph,
)
from maury.simulation.population import Population

TOLERANCE = 0.25


def scatter(residual: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard deviation and the robust scatter of residuals (n, 9)."""
    low, high = np.percentile(residual, [15.865, 84.135], axis=0)
    return residual.std(axis=0), 0.5 * (high - low)


def mean_prediction(
    paths: list[Path],
    flux: np.ndarray,
    magnitudes: np.ndarray,
    parallax: np.ndarray,
    a_v: np.ndarray,
) -> np.ndarray:
    """Mean labels (n, 9) of the networks."""
    absolute = keras_oracle.absolute_magnitudes(magnitudes, parallax)
    return keras_oracle.predict(paths, flux, absolute, a_v).mean(axis=0)


def reference_residuals(reference: Path, paths: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Residuals (n, 9) of the networks on the reference spectra, and their S/N (n,)."""
    directory = reference / "rave_like"
    flux = fits.getdata(directory / "training_sample_spectra.fits").T.astype(np.float32)
    table = pd.read_csv(directory / "training_sample_parameters.csv").to_numpy(float)
    truth = pd.read_csv(directory / "training_sample_labels.csv").iloc[:, 1:].to_numpy(float)
    snr = pd.read_csv(directory / "training_sample_extra.csv").snr.to_numpy(float)
    predicted = mean_prediction(paths, flux, table[:, 1:9], table[:, 0], table[:, 9])
    return predicted - truth, snr


def simulated_residuals(
    paths: list[Path], snr: np.ndarray, model: ObservingModel, *, seed: int = 1
) -> np.ndarray:
    """Residuals (n, 9) of the networks on simulated stars of the given S/N (n,)."""
    rng = np.random.default_rng(seed)
    emulator = Emulator.load()
    stars = Population.load().sample(snr.size, rng)
    labels = emulator.clip(stars.labels)
    spectrograph = Spectrograph(
        emulator.wave_aa, RAVE_WAVE_AA, emulator.spec.resolving_power, model
    )
    flux = spectrograph.observe(emulator.flux(labels), labels, rng, snr=rng.permutation(snr)).flux
    predicted = mean_prediction(paths, flux, stars.magnitudes, stars.parallax_mas, stars.a_v)
    return predicted - labels[:, :9]


def main() -> int:
    """Print the table; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--networks", type=int, default=10)
    parser.add_argument("--realistic", action="store_true", help="with a theory mismatch")
    arguments = parser.parse_args()
    paths = sorted((arguments.reference / "published_networks").glob("*.h5"))[: arguments.networks]
    reference, snr = reference_residuals(arguments.reference, paths)
    mismatch = {"theory_mismatch": REALISTIC_MISMATCH} if arguments.realistic else {}
    simulated = simulated_residuals(paths, snr, TRAINING_CONDITIONS.model_copy(update=mismatch))
    (std, robust), (std_ref, robust_ref) = scatter(simulated), scatter(reference)
    print(f"{len(paths)} networks, {snr.size} stars of S/N {np.median(snr):.0f} (median)")
    print(
        f"{'':12s}{'bias':>9s}{'std':>9s}{'of ref.':>9s}{'ratio':>7s}"
        f"{'robust':>9s}{'of ref.':>9s}{'ratio':>7s}"
    )
    for k, label in enumerate(LABELS):
        print(
            f"{label.symbol:12s}{simulated[:, k].mean():9.3f}{std[k]:9.3f}{std_ref[k]:9.3f}"
            f"{std[k] / std_ref[k]:7.2f}{robust[k]:9.3f}{robust_ref[k]:9.3f}"
            f"{robust[k] / robust_ref[k]:7.2f}"
        )
    ratios = np.concatenate([std / std_ref, robust / robust_ref])
    passed = bool(np.all(np.abs(ratios - 1.0) <= TOLERANCE))
    print("within 25 %" if passed else "NOT within 25 %")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
