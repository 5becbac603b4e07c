"""What a model was made from: losses of its members, labels of its samples."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator
from numpy.typing import ArrayLike

from maury.labels.definitions import Label
from maury.report.figures.style import (
    COLUMN_MM,
    MISSING,
    OKABE_ITO,
    PAGE_MM,
    axis_text,
    limits,
    mark_simulated,
    new_figure,
    style,
)

SAMPLE_COLOURS = {"training": OKABE_ITO[0], "test": OKABE_ITO[1], "observed": OKABE_ITO[3]}
# Bars of 2 mm on a column's width.
_BINS = 40


def losses(
    ax: Axes,
    by_member: Mapping[str, ArrayLike],
    *,
    kept: Mapping[str, bool],
    simulated: bool = False,
) -> Axes:
    """Draw training (thin) and validation (thick) loss of every member by epoch.

    Members that were not kept are grey.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    by_member : mapping of str to (n_epoch, 2) float
        Training and validation loss; NaN where there is none.
    kept : mapping of str to bool
        Which members take part in predictions.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    # Losses of log-likelihoods are negative, which no logarithmic axis shows.
    lowest = min((np.nanmin(np.asarray(one)) for one in by_member.values()), default=0.0)
    for number, (name, both) in enumerate(by_member.items()):
        table = np.asarray(both, np.float64)
        epoch = np.arange(1, len(table) + 1)
        colour = OKABE_ITO[number % len(OKABE_ITO)] if kept[name] else MISSING
        text = name if kept[name] else f"{name}, not kept"
        validated = bool(np.isfinite(table[:, 1]).any())
        ax.plot(epoch, table[:, 0], color=colour, linewidth=0.6, label=None if validated else text)
        if validated:
            ax.plot(epoch, table[:, 1], color=colour, linewidth=1.2, label=text)
    if lowest > 0:
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    # There is no epoch 2.5.
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set_ylabel("loss (scaled labels)")
    ax.legend(frameon=False, ncols=2 if len(by_member) > 4 else 1, loc="upper right")
    if simulated:
        mark_simulated(ax, place="lower left")
    return ax


def losses_figure(
    by_member: Mapping[str, ArrayLike], *, kept: Mapping[str, bool], simulated: bool = False
) -> Figure:
    """Return `losses` at one column's width."""
    with style():
        figure = new_figure(COLUMN_MM, 66.0)
        losses(figure.add_subplot(), by_member, kept=kept, simulated=simulated)
    return figure


def distribution(
    ax: Axes, samples: Mapping[str, ArrayLike], *, label: Label, simulated: bool = False
) -> Axes:
    """Draw the distributions of one label in some samples, each of area 1.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    samples : mapping of str to (n,) float
        Values by the name of the sample; NaN is left out.
    label : Label
        Definition.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    known = {name: np.asarray(one, np.float64) for name, one in samples.items()}
    known = {name: one[np.isfinite(one)] for name, one in known.items()}
    span = limits(*known.values(), fallback=label.range)
    for name, one in known.items():
        if one.size:
            ax.hist(
                one,
                bins=_BINS,
                range=span,
                # Area 1: the samples differ in size by a factor of a hundred.
                density=True,
                histtype="step",
                linewidth=1.0,
                color=SAMPLE_COLOURS.get(name, MISSING),
                label=f"{name} ({one.size})",
            )
    ax.set_xlim(*span)
    ax.set_ylim(0.0, 1.18 * ax.get_ylim()[1])
    ax.set_yticks([])
    ax.set_xlabel(axis_text(label))
    if simulated:
        mark_simulated(ax, place="upper right")
    return ax


def distributions_figure(
    samples: Mapping[str, ArrayLike], labels: Sequence[Label], *, simulated: bool = False
) -> Figure:
    """Return `distribution` of every label, three in a row.

    Parameters
    ----------
    samples : mapping of str to (n, n_label) float
        Labels of each sample.
    labels : sequence of Label
        Definitions, in the order of the second axis.
    simulated : bool
        Whether to mark every panel as simulated.
    """
    down = -(-len(labels) // 3)
    with style():
        figure = new_figure(PAGE_MM, 8.0 + 36.0 * down)
        panels = figure.subplots(down, 3, squeeze=False).ravel()
        for k, (ax, label) in enumerate(zip(panels, labels, strict=False)):
            columns = {name: np.asarray(one)[:, k] for name, one in samples.items()}
            distribution(ax, columns, label=label, simulated=simulated)
        for ax in panels[len(labels) :]:
            ax.set_visible(False)
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
        figure.supylabel("share of stars")
    return figure
