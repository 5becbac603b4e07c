"""Predicted against true labels, with the residuals below."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.io.arrays import Float64Array
from maury.labels.definitions import Label
from maury.labels.statistics import LabelStatistics, residual_statistics
from maury.report.figures.style import (
    ACCENT,
    COLUMN_MM,
    INK,
    NOTE_PT,
    PAGE_MM,
    axis_text,
    common_legend,
    density_scatter,
    limits,
    mark_simulated,
    new_figure,
    number_text,
    style,
    unit_text,
)

_MINUS = "\N{MINUS SIGN}"
# Robust scatters that the frame shows: 7e-6 of a normal distribution lie beyond, drawn at the rim.
_FRAME_SIGMA = 4.5


def one_to_one(
    ax: Axes,
    truth: ArrayLike,
    predicted: ArrayLike,
    *,
    label: Label,
    error: ArrayLike | None = None,
    simulated: bool = False,
) -> Axes:
    """Draw predicted against true, and the residuals in a panel below.

    Number of spectra, bias, scatter and robust scatter are printed; with errors also the fraction
    of residuals within one quoted error. The residual panel shows the running median (solid), the
    running 16th and 84th percentiles (thin), and with errors the running median error (dashed).
    Residuals beyond the frame stand at its edge as triangles.

    Parameters
    ----------
    ax : Axes
        Where to draw, in a grid of subplots; the residual panel takes its lower part.
    truth, predicted : (n,) float
        True and predicted label; rows without one of them are left out.
    label : Label
        Definition.
    error : (n,) float, optional
        Quoted 1 sigma errors.
    simulated : bool
        Whether to mark the axes as simulated.

    Returns
    -------
    Axes
        The residual panel.
    """
    true, given = (np.asarray(a, dtype=np.float64) for a in (truth, predicted))
    sigma = None if error is None else np.asarray(error, dtype=np.float64)
    columns = [None if a is None else a[:, None] for a in (true, given, sigma)]
    (measured,) = residual_statistics(true[:, None], given[:, None], columns[2], labels=[label])
    known = np.isfinite(true) & np.isfinite(given)
    true, given = true[known], given[known]
    span = limits(true, given, fallback=label.range)
    below = _split_panel(ax)
    if true.size:
        density_scatter(ax, true, given, x_range=span, y_range=span)
    ax.plot(span, span, color=INK, linewidth=0.7)
    ax.set_xlim(*span)
    ax.set_ylim(*span)
    ax.tick_params(labelbottom=False)
    ax.set_ylabel(f"predicted {axis_text(label)}")
    ax.set_title(_summary(measured, label), loc="left", fontsize=NOTE_PT, linespacing=1.3, pad=3.0)
    _residual_panel(below, true, given - true, None if sigma is None else sigma[known], measured)
    below.set_xlabel(f"{'true' if simulated else 'reference'} {axis_text(label)}")
    below.set_ylabel(f"pred. {_MINUS} {'true' if simulated else 'ref.'}", fontsize=NOTE_PT)
    if simulated:
        mark_simulated(ax)
    return below


def _split_panel(ax: Axes) -> Axes:
    spec = ax.get_subplotspec()
    figure = ax.get_figure(root=True)
    if spec is None or figure is None:
        raise ValueError("one_to_one needs axes of a subplot grid, as Figure.add_subplot makes")
    grid = spec.subgridspec(2, 1, height_ratios=(2.2, 1.0), hspace=0.02)
    ax.set_subplotspec(grid[0])
    return figure.add_subplot(grid[1], sharex=ax)


def _summary(measured: LabelStatistics, label: Label) -> str:
    bias, scatter, robust = (
        number_text(value, label)
        for value in (measured.bias, measured.scatter, measured.scatter_robust)
    )
    unit = unit_text(label)
    lines = [f"n = {measured.n}", f"bias {bias}{unit}"]
    if measured.n_error:
        lines[0] += f", {100 * measured.coverage_1sigma:.0f} % within 1 quoted $\\sigma$"
    else:
        lines = [", ".join(lines)]
    return "\n".join([*lines, f"$\\sigma$ {scatter}{unit}, robust {robust}{unit}"])


def _residual_panel(
    ax: Axes,
    true: Float64Array,
    residual: Float64Array,
    error: Float64Array | None,
    measured: LabelStatistics,
) -> None:
    # With a tail, or a bias, the robust scatter alone would push most of the stars to the edge.
    sizes = (measured.scatter_robust, 0.3 * measured.scatter, abs(measured.bias_robust))
    frame = _FRAME_SIGMA * float(np.nanmax((*sizes, 1e-12))) if residual.size else 1.0
    beyond = np.abs(residual) > frame
    if np.any(~beyond):
        density_scatter(
            ax,
            true[~beyond],
            residual[~beyond],
            x_range=limits(true, fallback=(0.0, 1.0)),
            y_range=(-frame, frame),
        )
    for side, marker, text in ((1.0, "^", "beyond the frame, above"), (-1.0, "v", "below")):
        there = beyond & (np.sign(residual) == side)
        # Just inside, so that the mark is whole.
        edge = np.full(int(there.sum()), side * 0.94 * frame)
        look: dict[str, Any] = {"s": 5.0, "color": ACCENT, "linewidths": 0}
        ax.scatter(true[there], edge, marker=marker, label=text if there.any() else None, **look)
    ax.axhline(0.0, color=INK, linewidth=0.7)
    _running_lines(ax, true, residual, error)
    ax.set_ylim(-frame, frame)
    ax.locator_params(axis="y", nbins=4)


def _running_lines(
    ax: Axes,
    true: Float64Array,
    residual: Float64Array,
    error: Float64Array | None,
) -> None:
    # Forty stars fix a median to a fifth of the scatter; fewer would draw a wiggle.
    n_bin = min(12, true.size // 40)
    if n_bin < 3:
        return
    bins = np.array_split(np.argsort(true, kind="stable"), n_bin)
    centre = [np.median(true[rows]) for rows in bins]
    lower, middle, upper = np.array([np.percentile(residual[b], (16, 50, 84)) for b in bins]).T
    ax.plot(centre, middle, color=ACCENT, linewidth=1.2, label="running median")
    for edge, text in ((lower, "16th and 84th percentile"), (upper, None)):
        ax.plot(centre, edge, color=ACCENT, linewidth=0.6, label=text)
    if error is not None and np.isfinite(error).any():
        quoted = [_median(error[rows]) for rows in bins]
        look: dict[str, Any] = {"color": INK, "linewidth": 0.8, "linestyle": "--"}
        for sign, text in ((1.0, "median quoted error"), (-1.0, None)):
            ax.plot(centre, sign * np.array(quoted), label=text, **look)


def _median(values: Float64Array) -> float:
    values = values[np.isfinite(values)]
    return float(np.median(values)) if values.size else np.nan


def residual_figure(
    truth: ArrayLike,
    predicted: ArrayLike,
    labels: Sequence[Label],
    *,
    error: ArrayLike | None = None,
    simulated: bool = False,
) -> Figure:
    """Return `one_to_one` of every label, in a grid of at most three columns.

    Parameters
    ----------
    truth, predicted : (n_row, n_label) float
        True and predicted labels; NaN where missing.
    labels : sequence of Label
        Definitions, in the order of the second axis.
    error : (n_row, n_label) float, optional
        Quoted 1 sigma errors.
    simulated : bool
        Whether to mark every panel as simulated.

    Raises
    ------
    LengthMismatch
        If the shapes differ from one another or from the number of labels.
    """
    true, given = np.asarray(truth, np.float64), np.asarray(predicted, np.float64)
    sigma = None if error is None else np.asarray(error, np.float64)
    shapes = [a.shape for a in (true, given, sigma) if a is not None]
    if any(shape != (len(true), len(labels)) for shape in shapes):
        raise LengthMismatch(f"expected one column for each of {len(labels)} labels, got {shapes}")
    # Four panels are a square; more than three in a row are too small at page width.
    across = {1: 1, 2: 2, 4: 2}.get(len(labels), 3)
    down = -(-len(labels) // across)
    width = COLUMN_MM if across == 1 else PAGE_MM
    with style():
        figure = new_figure(width, down * 1.3 * width / across)
        grid = figure.add_gridspec(down, across)
        for k, label in enumerate(labels):
            ax = figure.add_subplot(grid[divmod(k, across)])
            below = one_to_one(
                ax,
                true[:, k],
                given[:, k],
                label=label,
                error=None if sigma is None else sigma[:, k],
                simulated=simulated,
            )
            figure.align_ylabels([ax, below])
        common_legend(figure)
    return figure


def snr_figure(
    snr: ArrayLike,
    residual: ArrayLike,
    error: ArrayLike,
    labels: Sequence[Label],
    *,
    simulated: bool = False,
) -> Figure:
    """Return residuals of every label against S/N, three in a row.

    Parameters
    ----------
    snr : (n,) float
        S/N per pixel.
    residual, error : (n, n_label) float
        Predicted minus reference, and quoted errors.
    labels : sequence of Label
        Definitions, in the order of the second axis.
    simulated : bool
        Whether to mark every panel as simulated.
    """
    depth, rest, sigma = (np.asarray(a, np.float64) for a in (snr, residual, error))
    down = -(-len(labels) // 3)
    with style():
        figure = new_figure(PAGE_MM, 8.0 + 38.0 * down)
        panels = figure.subplots(down, 3, sharex=True, squeeze=False).ravel()
        for k, (ax, label) in enumerate(zip(panels, labels, strict=False)):
            known = np.isfinite(depth) & np.isfinite(rest[:, k])
            x, y, e = depth[known], rest[known, k], sigma[known, k]
            # Zero in place of the truth: only differences are drawn against S/N.
            (measured,) = residual_statistics(
                np.zeros((x.size, 1)), y[:, None], e[:, None], labels=[label]
            )
            _residual_panel(ax, x, y, e, measured)
            ax.set_ylabel(f"\N{GREEK CAPITAL LETTER DELTA} {axis_text(label)}")
            ax.set_title(f"n = {x.size}", fontsize=NOTE_PT, pad=3)
            if simulated:
                mark_simulated(ax)
        for ax in panels[len(labels) :]:
            ax.set_axis_off()
        figure.supxlabel("S/N per pixel")
        common_legend(figure)
    return figure
