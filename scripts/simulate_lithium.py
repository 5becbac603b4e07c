"""Give simulated spectra around 6708 angstrom a SIMULATED line of lithium, as HR15N sees it.

    python scripts/simulate_lithium.py SURVEY.zarr OUT.zarr [--seed N]

SURVEY has spectra of R = 28 000 from 6478 to 6737 angstrom with Teff, log g, [Fe/H] and [M/H], such
as GALAH-like ones, which are made without lithium. A(Li) of each star is drawn from a distribution
with the features of real ones (depletion in cool dwarfs, dilution in giants, the dip, a few rich
giants); its doublet is that of `maury.simulation.lithium`. Spectra are then broadened to R = 19 200
and written on the pixels of HR15N, 6480 to 6735 angstrom in steps of .05, less H alpha, with the
labels A(Li), Teff, log g and [Fe/H].
"""

import argparse

import numpy as np

from maury.labels.definitions import LABELS, Label
from maury.simulation.lithium import lithium_line
from maury.spectra.preparation import ListedGrid, Preparation, Resample
from maury.spectra.preparation_steps import Broaden
from maury.survey.store import Survey
from maury.survey.writer import SurveyWriter

HR15N_AA = 6480.0 + 0.05 * np.arange(5101)
HR15N_AA = HR15N_AA[(HR15N_AA < 6554.81) | (HR15N_AA > 6570.81)]
LINE_AA = np.arange(6705.5, 6710.2, 0.02)
POWER, HR15N_POWER = 28_000.0, 19_200.0
BLOCK = 128
A_LI = Label(
    name="a_li",
    symbol="A(Li)",
    unit="dex",
    ucd="phys.abund",
    description="Abundance of lithium, log N(Li)/N(H) + 12, SIMULATED",
    range=(-0.5, 4.0),
)


def drawn_lithium(teff, logg, rng):
    """Draw A(Li) (n_star,)."""
    n = teff.size
    depleted = 2.6 - 2.0 / (1.0 + np.exp((teff - 5500.0) / 200.0))
    dwarf = depleted + np.where(teff > 5900, 0.3, 0.6) * rng.standard_normal(n)
    dip = (teff > 6300) & (rng.random(n) < 0.25)
    dwarf = np.where(dip, dwarf - 1.0, dwarf)
    giant = 0.3 + 0.7 * (teff - 4200.0) / 800.0 + 0.4 * rng.standard_normal(n)
    rich = rng.random(n) < 0.02
    giant = np.where(rich, 2.3 + 0.6 * rng.standard_normal(n), giant)
    return np.clip(np.where(logg > 3.5, dwarf, giant), -0.5, 4.0)


def seen_line(wave, teff, logg, m_h, a_li):
    """Flux over continuum (n_star, n_pixel) of the doublet at the resolving power of the survey."""
    sharp = lithium_line(LINE_AA, teff_k=teff, logg=logg, m_h=m_h, a_li=a_li)
    sigma = LINE_AA.mean() / POWER / 2.3548
    kernel = np.exp(-0.5 * ((LINE_AA[:, None] - LINE_AA) / sigma) ** 2)
    kernel /= kernel.sum(axis=1, keepdims=True)
    broad = 1.0 - (1.0 - sharp) @ kernel.T
    return np.stack([np.interp(wave, LINE_AA, one, left=1.0, right=1.0) for one in broad])


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    survey, rng = Survey.open(arguments.survey), np.random.default_rng(arguments.seed)
    teff, logg, fe_h, m_h = survey.labels(["teff", "logg", "fe_h", "m_h"]).T
    a_li = drawn_lithium(teff, logg, rng)
    broaden = Broaden(resolving_power=POWER, to=HR15N_POWER)
    grid = Resample(grid=ListedGrid(wave_aa=tuple(HR15N_AA)))
    preparation = Preparation(steps=(broaden, grid), observables=())
    known = {label.name: label for label in LABELS}
    columns = {"a_li": a_li, "teff": teff, "logg": logg, "fe_h": fe_h}
    columns |= {"snr": survey.column("snr")}
    correlation = preparation.apply(survey.batch(0, 1)).noise_correlation
    with SurveyWriter(
        arguments.out,
        n_star=survey.n_star,
        wave_aa=HR15N_AA,
        medium="air",
        columns=list(columns),
        simulated=True,
        labels=[A_LI, *(known[name] for name in ("teff", "logg", "fe_h"))],
        provenance={
            "origin": "simulated by maury: a lithium line on simulated spectra",
            "of": survey.provenance,
            "seed": arguments.seed,
        },
        resolving_power=HR15N_POWER,
        noise_correlation=correlation,
        at_rest=True,
    ) as writer:
        for batch in survey.batches(BLOCK):
            rows = slice(batch.start, batch.start + len(batch))
            line = seen_line(survey.wave_aa, teff[rows], logg[rows], m_h[rows], a_li[rows])
            spectra = batch.spectra.replace(flux=(batch.spectra.flux * line).astype(np.float32))
            seen = preparation.apply(type(batch)(spectra, batch.columns, batch.start))
            ids = {"id": survey.id[rows], "star_id": survey.star_id[rows]}
            own = {name: values[rows] for name, values in columns.items()}
            writer.write(batch.start, seen.flux, seen.ivar, **ids, **own)
    print(Survey.open(arguments.out))


if __name__ == "__main__":
    main()
