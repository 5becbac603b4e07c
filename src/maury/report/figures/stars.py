"""Where the stars lie: the Kiel diagram and the plane of two abundances."""

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from maury.io.arrays import BoolArray, Float64Array
from maury.labels.definitions import Label, select
from maury.report.figures.naming import Named, label_of
from maury.report.figures.style import (
    COLOURS,
    COLUMN_MM,
    INK,
    MISSING,
    NOTE_PT,
    Range,
    axis_text,
    count_text,
    density_scatter,
    limits,
    mark_simulated,
    new_figure,
    point_size,
    smooth_density,
    style,
)

DENSE = 20_000
"""Above this number of stars, cells of equal size are drawn instead of points."""
MOST_BARS = 100
"""Bars of more stars hide the stars; chosen by eye."""
_TEFF, _LOGG, _M_H, _ALPHA_M = select(["teff", "logg", "m_h", "alpha_m"])
# Shares of the stars within the contours: the whole, the bulk, the core.
_LEVELS = (0.95, 0.8, 0.5)


def kiel(
    ax: Axes,
    teff: ArrayLike,
    logg: ArrayLike,
    colour: ArrayLike,
    *,
    label: Named = None,
    errors: tuple[ArrayLike, ArrayLike] | None = None,
    simulated: bool = False,
) -> None:
    """Draw effective temperature (decreasing to the right) against log g (increasing downwards).

    Up to 20 000 stars are points. Of more, the median colour of each cell is drawn, with contours
    that hold half, 80 % and 95 % of the stars.

    Parameters
    ----------
    ax : Axes
        Where to draw; a colour bar is set beside it.
    teff, logg : (n,) float
        Effective temperature in K and log g in dex; stars without one are left out.
    colour : (n,) float
        Label that colours the stars; those without it are grey.
    label : Label, str or None
        What `colour` is; by default what it is called, as a column of a table is, else [M/H].
    errors : pair of (n,) float, optional
        1 sigma errors of `teff` and `logg`: bars, of up to `MOST_BARS` stars.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    coloured_by = label_of(colour, label, _M_H)
    x, y, c = (np.asarray(a, dtype=np.float64) for a in (teff, logg, colour))
    known = np.isfinite(x) & np.isfinite(y)
    x, y, c = x[known], y[known], c[known]
    bars = None
    if errors is not None and 0 < x.size <= MOST_BARS:
        sizes = (np.asarray(one, dtype=np.float64)[known] for one in errors)
        bars = [np.nan_to_num(np.maximum(one, 0.0)) for one in sizes]
    wide, tall = (0.0, 0.0) if bars is None else bars
    x_range = limits(np.r_[x - wide, x + wide], fallback=_TEFF.range)
    y_range = limits(np.r_[y - tall, y + tall], fallback=_LOGG.range)
    if bars is not None:
        look: dict[str, Any] = {"fmt": "none", "ecolor": MISSING, "elinewidth": 0.6, "zorder": 0.4}
        ax.errorbar(x, y, xerr=bars[0], yerr=bars[1], **look)
    coloured = np.isfinite(c)
    ax.scatter(
        x[~coloured],
        y[~coloured],
        s=point_size(x.size),
        # Grey, not left out: that a star has no label is a result, too.
        color=MISSING,
        linewidths=0,
        rasterized=True,
        zorder=0.5,
    )
    if coloured.any():
        _draw_coloured(
            ax, x[coloured], y[coloured], c[coloured], label=coloured_by, ranges=(x_range, y_range)
        )
    ax.set_xlim(x_range[1], x_range[0])
    ax.set_ylim(y_range[1], y_range[0])
    ax.set_xlabel(axis_text(_TEFF))
    ax.set_ylabel(axis_text(_LOGG))
    ax.set_title(count_text(x, y, (x_range, y_range)), fontsize=NOTE_PT, pad=3)
    if simulated:
        mark_simulated(ax, place="upper left")


def _draw_coloured(
    ax: Axes,
    x: Float64Array,
    y: Float64Array,
    c: Float64Array,
    *,
    label: Label,
    ranges: tuple[Range, Range],
) -> None:
    low, high = np.percentile(c, (2.0, 98.0))
    if not low < high:
        low, high = label.range
    shades: dict[str, Any] = {"cmap": COLOURS, "vmin": low, "vmax": high, "rasterized": True}
    mappable: Any
    if x.size > DENSE:
        inside = _inside(x, ranges[0]) & _inside(y, ranges[1])
        mappable = ax.hexbin(
            x[inside],
            y[inside],
            C=c[inside],
            # Median, since one cell holds stars of failed fits as well.
            reduce_C_function=np.median,
            gridsize=(64, 44),
            extent=(*ranges[0], *ranges[1]),
            linewidths=0.1,
            **shades,
        )
        _contours(ax, x, y, ranges)
    else:
        mappable = ax.scatter(x, y, c=c, s=point_size(x.size), linewidths=0, **shades)
    beyond = bool(np.any(c < low)), bool(np.any(c > high))
    # The bar's ends are pointed only where stars lie beyond them.
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}
    bar = ax.get_figure(root=True).colorbar(  # type: ignore[union-attr]
        mappable,
        ax=ax,
        pad=0.02,
        aspect=28,
        extend=extend.get(beyond, "neither"),
        extendfrac=0.03,
    )
    bar.ax.set_title(axis_text(label), fontsize=NOTE_PT, pad=3)
    bar.ax.minorticks_off()


def _contours(ax: Axes, x: Float64Array, y: Float64Array, ranges: tuple[Range, Range]) -> None:
    density, x_edge, y_edge = smooth_density(x, y, *ranges, bins=90)
    # The level that holds a share of the stars is found among the densest cells first.
    ordered = np.sort(density.ravel())[::-1]
    held = np.cumsum(ordered) / ordered.sum()
    # Few stars can give two shares one level, which matplotlib refuses.
    levels = np.unique([ordered[np.searchsorted(held, level)] for level in _LEVELS])
    ax.contour(
        0.5 * (x_edge[1:] + x_edge[:-1]),
        0.5 * (y_edge[1:] + y_edge[:-1]),
        density.T,
        levels=levels,
        colors=INK,
        linewidths=0.4,
    )


def _inside(values: Float64Array, edges: Range) -> BoolArray:
    return (values >= edges[0]) & (values <= edges[1])


def abundance(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    labels: tuple[Named, Named] = (None, None),
    simulated: bool = False,
) -> None:
    """Draw two abundances against one another, points coloured by their density.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    x, y : (n,) float
        Abundances in dex; stars without one of them are left out.
    labels : (Label, Label)
        What `x` and `y` are; by default what they are called, else [M/H] and [alpha/M].
    simulated : bool
        Whether to mark the axes as simulated.
    """
    first, second = label_of(x, labels[0], _M_H), label_of(y, labels[1], _ALPHA_M)
    across, up = (np.asarray(a, dtype=np.float64) for a in (x, y))
    known = np.isfinite(across) & np.isfinite(up)
    across, up = across[known], up[known]
    x_range = limits(across, fallback=first.range)
    y_range = limits(up, fallback=second.range)
    if across.size:
        density_scatter(ax, across, up, x_range=x_range, y_range=y_range)
    ax.set_xlim(*x_range)
    ax.set_ylim(*y_range)
    ax.locator_params(axis="x", nbins=6)
    ax.set_xlabel(axis_text(first))
    ax.set_ylabel(axis_text(second))
    ax.set_title(count_text(across, up, (x_range, y_range)), fontsize=NOTE_PT, pad=3)
    if simulated:
        mark_simulated(ax, place="lower left")


def kiel_figure(
    teff: ArrayLike,
    logg: ArrayLike,
    colour: ArrayLike,
    *,
    label: Named = None,
    errors: tuple[ArrayLike, ArrayLike] | None = None,
    simulated: bool = False,
) -> Figure:
    """Return a Kiel diagram of one column's width; see `kiel` for the arguments."""
    with style():
        figure = new_figure(COLUMN_MM, 72.0)
        ax = figure.add_subplot()
        kiel(ax, teff, logg, colour, label=label, errors=errors, simulated=simulated)
    return figure


def abundance_figure(
    x: ArrayLike,
    y: ArrayLike,
    *,
    labels: tuple[Named, Named] = (None, None),
    simulated: bool = False,
) -> Figure:
    """Return a plane of two abundances of one column's width; see `abundance`."""
    with style():
        figure = new_figure(COLUMN_MM, 66.0)
        abundance(figure.add_subplot(), x, y, labels=labels, simulated=simulated)
    return figure
