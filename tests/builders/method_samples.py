"""Labelled spectra made by a known rule, for tests of methods."""

import numpy as np

from maury.labels import definitions as labels_module
from maury.labels.flags import FLAG_DTYPE
from maury.methods.protocols import Sample
from maury.spectra.preparation import Inputs

NAMES = ("teff", "logg", "m_h")
CENTRE = np.array([5000.0, 3.0, -0.3])
SCALE = np.array([800.0, 1.0, 0.5])


def inputs_of(flux, ivar, snr=None, noise_correlation=()):
    """Prepared spectra on pixels of 0.4 angstrom, of white noise unless it is given."""
    n, n_pixel = flux.shape
    none = np.zeros((n, 0), dtype=np.float32)
    return Inputs(
        flux=flux.astype(np.float32),
        ivar=ivar.astype(np.float32),
        observables=none,
        observable_errors=none,
        flags=np.zeros(n, FLAG_DTYPE),
        snr=np.sqrt(np.median(ivar, axis=1)) if snr is None else snr,
        wave_aa=8420.0 + 0.4 * np.arange(n_pixel),
        medium="air",
        noise_correlation=noise_correlation,
    )


def sample_of(truth, flux, ivar, *, names=NAMES, noise_correlation=(), resolving_power=7500.0):
    return Sample(
        labels=labels_module.select(names),
        truth=truth,
        truth_error=np.full(truth.shape, np.nan),
        inputs=inputs_of(flux, ivar, noise_correlation=noise_correlation),
        star_id=np.array([f"s{k}" for k in range(len(truth))]),
        noise_correlation=noise_correlation,
        resolving_power=resolving_power,
        simulated=True,
    )


def draw_labels(n, rng, names=NAMES):
    """Scaled labels within -1 to 1, and physical ones."""
    scaled = rng.uniform(-1, 1, (n, len(names)))
    return scaled, scaled * SCALE[: len(names)] + CENTRE[: len(names)]


def lines(scaled, n_pixel=120):
    """Absorption lines whose depths follow the labels, nearly linearly, for any number of them."""
    pixel = np.arange(n_pixel)
    depth = np.zeros((len(scaled), n_pixel))
    for k in range(scaled.shape[1] * 2):
        centre = 8 + (n_pixel - 16) * (k + 0.5) / (2 * scaled.shape[1])
        profile = np.exp(-0.5 * ((pixel - centre) / 2.0) ** 2)
        main, other = scaled[:, k % scaled.shape[1]], scaled[:, (k + 1) % scaled.shape[1]]
        depth += (0.3 + 0.1 * main + 0.03 * (k % 3) * other)[:, None] * profile
    return 1.0 - depth
