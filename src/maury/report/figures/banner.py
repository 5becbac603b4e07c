"""One wide figure that shows a catalogue at a glance."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from maury.errors import check_known
from maury.labels.definitions import LABELS, Label
from maury.labels.statistics import NOMINAL_1SIGMA, NOMINAL_2SIGMA, LabelStatistics
from maury.report.figures.stars import abundance, kiel
from maury.report.figures.style import (
    ACCENT,
    PAGE_MM,
    mark_simulated,
    new_figure,
    pretty,
    style,
)


def quoted_errors(
    ax: Axes, statistics: Sequence[LabelStatistics], *, simulated: bool = False
) -> None:
    """Draw, per label, the fraction of residuals within 1 and 2 quoted errors.

    The dashed lines are what honest normal errors give. Labels without errors have no point.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    statistics : sequence of LabelStatistics
        Measured on stars that took no part in training.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    rows = np.arange(len(statistics))
    series = (
        ("1", NOMINAL_1SIGMA, ACCENT, "o"),
        ("2", NOMINAL_2SIGMA, "#2166ac", "s"),
    )
    for k, nominal, colour, marker in series:
        # The goal is drawn, so that a reader need not know the numbers by heart.
        ax.vlines(nominal, -0.5, len(statistics) - 0.5, color=colour, linewidth=0.8, linestyle="--")
        ax.errorbar(
            [getattr(s, f"coverage_{k}sigma") for s in statistics],
            rows,
            xerr=[getattr(s, f"coverage_{k}sigma_error") for s in statistics],
            fmt=marker,
            markersize=3.0,
            color=colour,
            elinewidth=0.8,
            label=f"within {k}$\\sigma$",
        )
    ax.set_yticks(rows, [pretty(s.symbol) for s in statistics])
    ax.tick_params(axis="y", which="both", right=False)
    ax.tick_params(axis="y", which="minor", left=False)
    ax.set_xlim(0.0, 1.02)
    # Room for the legend above the first label.
    ax.set_ylim(len(statistics) + 0.5, -1.8)
    ax.set_xlabel("fraction of test stars")
    ax.legend(loc="upper left", ncols=2, frameon=False, handletextpad=0.1, columnspacing=0.8)
    if simulated:
        mark_simulated(ax, place="lower left")


def demo_banner(
    predicted: ArrayLike,
    statistics: Sequence[LabelStatistics],
    *,
    labels: Sequence[Label] = LABELS,
    simulated: bool = False,
) -> Figure:
    """Return a wide figure: Kiel diagram, [alpha/M] against [M/H], and the check of the errors.

    Parameters
    ----------
    predicted : (n_star, n_label) float
        Labels of the catalogue; ``teff``, ``logg``, ``m_h`` and ``alpha_m`` must be among them.
    statistics : sequence of LabelStatistics
        Of the held-out stars, one per label.
    labels : sequence of Label
        Definitions, in the order of the second axis of `predicted`.
    simulated : bool
        Whether to mark every panel as simulated.

    Raises
    ------
    UnknownName
        If one of the four labels is missing.
    """
    values = np.asarray(predicted, dtype=np.float64)
    position = [label.name for label in labels]
    columns = [
        position.index(check_known("label", name, position))
        for name in ("teff", "logg", "m_h", "alpha_m")
    ]
    teff, logg, m_h, alpha_m = (values[:, k] for k in columns)
    with style():
        figure = new_figure(PAGE_MM, 62.0)
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1.0, 1.0))
        kiel(left, teff, logg, m_h, label=labels[columns[2]], simulated=simulated)
        pair = (labels[columns[2]], labels[columns[3]])
        abundance(middle, m_h, alpha_m, labels=pair, simulated=simulated)
        # A third of a page is too narrow for the ticks of a column: their numbers would touch.
        middle.locator_params(axis="x", nbins=4)
        quoted_errors(right, statistics, simulated=simulated)
    return figure
