"""Some spectra of a survey below each other: what `maury init` shows first."""

import numpy as np
from matplotlib.figure import Figure

from maury.report.figures.style import INK, MISSING, PAGE_MM, mark_simulated, new_figure, style
from maury.spectra.batch import Readable
from maury.spectra.spectra import describe_grid

_HEIGHT_MM = 30.0
"""Of one spectrum: line profiles of 900 pixels are told apart at this height."""


def first_look(survey: Readable, n: int = 5) -> Figure:
    """Draw spectra, evenly taken through a survey, with 1 sigma errors in grey.

    Parameters
    ----------
    survey : Readable
        A survey, or files that are read like one.
    n : int
        How many, at most.
    """
    rows = np.unique(np.linspace(0, len(survey) - 1, n).astype(int)).tolist()
    with style():
        figure = new_figure(PAGE_MM, 14.0 + _HEIGHT_MM * len(rows))
        axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
        for ax, row in zip(axes, rows, strict=True):
            batch = survey.batch(row, row + 1)
            spectra = batch.spectra
            good = spectra.ivar[0] > 0
            flux = np.where(good, spectra.flux[0], np.nan)
            error = np.where(good, 1.0 / np.sqrt(np.where(good, spectra.ivar[0], 1.0)), np.nan)
            ax.fill_between(
                spectra.wave_aa, flux - error, flux + error, color=MISSING, lw=0, label="1 sigma"
            )
            ax.plot(spectra.wave_aa, flux, color=INK, lw=0.6)
            snr = float(batch.columns["snr"][0])
            ax.set_ylabel("flux")
            ax.set_title(f"row {row}: {batch.columns['id'][0]}, S/N {snr:.0f}", loc="left")
            if not good.any():
                ax.text(0.5, 0.5, "no good pixel", transform=ax.transAxes, ha="center")
        axes[0].legend(loc="lower right", frameon=False)
        axes[-1].set_xlabel(f"wavelength [angstrom, {survey.medium}]")
        if survey.simulated:
            mark_simulated(axes[0], place="above right")
        figure.suptitle(f"{len(survey)} spectra, {describe_grid(survey.wave_aa, survey.medium)}")
    return figure
