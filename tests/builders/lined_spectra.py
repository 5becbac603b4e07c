"""Made-up spectra on any grid, whose lines follow labels: for networks of other surveys."""

import numpy as np

from maury.labels.columns import Column, part_names
from maury.labels.definitions import LABELS, Label
from maury.survey.store import Survey, SurveyWriter

KNOWN = {label.name: label for label in LABELS}
RVS = 8460.0 + 0.3 * np.arange(801)
"""Gaia RVS, 8460-8700 angstrom, three pixels a resolution element."""
HR15N = (6450.0 + 0.05 * np.arange(7201))[10:7191]
HR15N = HR15N[(HR15N <= 6554.81) | (HR15N >= 6570.81)]
"""GIRAFFE HR15N as in the notebook of Nepal et al. (2023): less H alpha, 6861 pixels."""
COARSE_HR15N = HR15N[::10]
HR10_HR21 = np.concatenate([np.arange(5339.0, 5619.0, 0.5), np.arange(8484.0, 9001.0, 0.5)])
"""GIRAFFE HR10 and HR21, at a tenth of their pixels."""
UVES = 4800.0 + 0.5 * np.arange(600)
"""A part of FLAMES-UVES, coarse."""


def lithium() -> Label:
    """A(Li), which the package does not define."""
    return Label(
        name="a_li",
        symbol="A(Li)",
        unit="dex",
        ucd="phys.abund",
        description="Abundance of lithium, log N(Li)/N(H) + 12",
        range=(-1.0, 4.0),
    )


def line_places(wave, n_label, per_label=5, seed=3):
    """Numbers of the pixels (n_label, per_label) in which each label has its lines."""
    rng = np.random.default_rng(seed)
    inside = np.arange(40, len(wave) - 40)
    return np.sort(rng.choice(inside, (n_label, per_label), replace=False), axis=1)


def write_lined_survey(path, wave, names, n=240, *, seed=0, xp=False, **changes):
    """Write a survey of `n` stars; a label's lines deepen with it, XP follows the first two."""
    rng = np.random.default_rng(seed)
    labels = [lithium() if name == "a_li" else KNOWN[name] for name in names]
    unit = rng.random((n, len(labels)))
    # Broad enough for a convolution to see, narrow enough for lines to stay apart.
    pixel = np.arange(len(wave))
    depth = np.zeros((n, len(wave)))
    for k, places in enumerate(line_places(wave, len(labels))):
        shape = np.exp(-0.5 * ((pixel - places[:, None]) / 3.0) ** 2).sum(axis=0)
        depth += (0.1 + 0.6 * unit[:, k : k + 1]) * shape
    flux = np.exp(-depth) + rng.normal(0, 0.01, depth.shape)
    columns = {"id": [f"s{k}" for k in range(n)], "star_id": [f"star{k}" for k in range(n)]}
    columns |= {"snr": np.full(n, 100.0)}
    for k, label in enumerate(labels):
        low, high = label.range
        columns[label.name] = low + (high - low) * unit[:, k]
    if xp:
        columns |= xp_columns(unit, rng)
    columns |= changes
    text = ("id", "star_id")
    with SurveyWriter(
        path,
        n_star=n,
        wave_aa=wave,
        medium="air",
        columns=[
            Column(name, "", "", "Simulated") if name[:3] in ("bp_", "rp_") else name
            for name in columns
            if name not in text
        ],
        simulated=True,
        labels=labels,
    ) as writer:
        writer.write(0, flux, np.full_like(flux, 1e4), **columns)
    return Survey.open(path)


def xp_columns(unit, rng):
    """Magnitudes, parallax and XP coefficients of stars, in the units of Gaia; simulated."""
    n = len(unit)
    g = 10.0 + 3.0 * rng.random(n)
    flux = 10.0 ** (-0.4 * (g - 25.6873668671))
    colour = 0.6 + 1.2 * (1 - unit[:, 0])
    columns = {
        "phot_g_mean_mag": g,
        "phot_bp_mean_mag": g + 0.4 * colour,
        "phot_rp_mean_mag": g - 0.6 * colour,
        "parallax": 0.5 + 2.0 * rng.random(n),
    }
    for name, tilt in (("bp", -1.0), ("rp", 1.0)):
        for k, part in enumerate(part_names(name, 55)):
            fall = np.exp(-k / 8.0)
            shape = fall * np.cos(0.7 * k + tilt * colour + 0.3 * unit[:, 1])
            error = 1e-4 * flux
            columns[part] = flux * shape + rng.normal(0, 1, n) * error
            columns[f"{part}_error"] = error
    return columns
