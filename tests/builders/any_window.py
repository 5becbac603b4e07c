"""Labelled spectra of lines in a window that no theory of ours reaches, of any labels."""

from dataclasses import replace

import numpy as np

from builders.method_samples import inputs_of, lines
from maury.labels.definitions import Label
from maury.methods.protocols import Sample

TWO = ("teff", "logg")
FIVE = ("teff", "logg", "m_h", "alpha_m", "mg_fe")
OTHERS = ("o_fe", "al_fe", "si_fe", "ca_fe", "ti_fe", "cr_fe", "ni_fe", "ba_fe")
FOURTEEN = (*FIVE[:4], "fe_h", "mg_fe", *OTHERS)
SIZE = {"teff": (5000.0, 800.0), "logg": (3.0, 1.0), "m_h": (-0.3, 0.5), "fe_h": (-0.3, 0.5)}
N_PIXEL = 320


def definition(name):
    kelvin = name == "teff"
    return Label(
        name=name,
        symbol=name,
        unit="K" if kelvin else "dex",
        description=name,
        range=(3000.0, 8000.0) if kelvin else (-3.0, 6.0),
    )


def made(names, n, seed, *, snr=80.0):
    """Spectra of lines whose depths follow the labels, at 6500 angstrom."""
    rng = np.random.default_rng(seed)
    scaled = rng.uniform(-1, 1, (n, len(names)))
    centre, scale = np.array([SIZE.get(name, (0.0, 0.3)) for name in names]).T
    clean = lines(scaled, N_PIXEL)
    flux = clean + rng.standard_normal(clean.shape) / snr
    inputs = inputs_of(flux, np.full(flux.shape, snr**2))
    return Sample(
        labels=tuple(definition(name) for name in names),
        truth=scaled * scale + centre,
        truth_error=np.full(scaled.shape, np.nan),
        inputs=replace(inputs, wave_aa=6500.0 + 0.1 * np.arange(N_PIXEL)),
        star_id=np.array([f"{seed}-{k}" for k in range(n)]),
        simulated=True,
    )
