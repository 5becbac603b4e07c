"""Grids of panels that share their axes: Kiel diagrams and planes of two abundances."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from numpy.typing import ArrayLike

from maury.io.arrays import Float64Array
from maury.labels.definitions import Label, select
from maury.report.figures.naming import Named, label_of
from maury.report.figures.stars import DENSE
from maury.report.figures.style import (
    COLOURS,
    INK,
    MISSING,
    NOTE_PT,
    PAGE_MM,
    Range,
    axis_text,
    count_text,
    limits,
    mark_simulated,
    new_figure,
    point_size,
    style,
)

_TEFF, _LOGG, _M_H, _ALPHA_M = select(["teff", "logg", "m_h", "alpha_m"])
_CROWD = 4
"""Stars in a cell from which on it is drawn as a density."""


@dataclass(frozen=True)
class Panel:
    """Stars of one panel: a title, and (n,) values across, up and, of a Kiel diagram, colour."""

    title: str
    x: ArrayLike
    y: ArrayLike
    colour: ArrayLike | None = None

    def known(self) -> tuple[Float64Array, Float64Array]:
        """Values of the stars that have both."""
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        good = np.isfinite(x) & np.isfinite(y)
        return x[good], y[good]

    def coloured(self) -> "Panel":
        """Return the stars that have the label which colours them, too."""
        x, y = (np.asarray(one, np.float64) for one in (self.x, self.y))
        colour = np.full(x.shape, np.nan if self.colour is None else self.colour, np.float64)
        good = np.isfinite(x) & np.isfinite(y) & np.isfinite(colour)
        return Panel(self.title, x[good], y[good], colour[good])


def density_plane(
    ax: Axes,
    x: ArrayLike,
    y: ArrayLike,
    *,
    ranges: tuple[Range, Range],
    bins: int = 70,
) -> Any:
    """Draw cells that hold at least four stars by the logarithm of their number, others as points.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    x, y : (n,) float
        Stars without one of them are left out.
    ranges : ((float, float), (float, float))
        Limits of both axes.
    bins : int
        Cells along each axis.

    Returns
    -------
    mesh or None
        For a colour bar of the number; None if no cell is crowded.
    """
    across, up = Panel("", x, y).known()
    count, x_edge, y_edge = np.histogram2d(across, up, bins=bins, range=ranges)
    column = np.clip(np.searchsorted(x_edge, across, "right") - 1, 0, bins - 1)
    row = np.clip(np.searchsorted(y_edge, up, "right") - 1, 0, bins - 1)
    # Outliers stay visible as points; a density alone would drop the stars that matter most.
    lone = count[column, row] < _CROWD
    ax.scatter(
        across[lone],
        up[lone],
        s=min(point_size(across.size), 4.0),
        color=INK,
        alpha=0.6,
        linewidths=0,
        rasterized=True,
    )
    mesh = None
    if not lone.all():
        shade = np.ma.masked_less(count, _CROWD)
        # At least a factor of two, or the colour bar would have no width.
        norm = LogNorm(_CROWD, max(2.0 * _CROWD, float(count.max())))
        mesh = ax.pcolormesh(x_edge, y_edge, shade.T, cmap=COLOURS, norm=norm, rasterized=True)
    ax.set_xlim(*ranges[0])
    ax.set_ylim(*ranges[1])
    return mesh


def kiel_panel(ax: Axes, panel: Panel, *, ranges: tuple[Range, Range], colour_range: Range) -> Any:
    """Draw a Kiel diagram without a colour bar of its own; return what a colour bar takes."""
    shown = panel.coloured()
    x, y, c = (np.asarray(a, np.float64) for a in (shown.x, shown.y, shown.colour))
    shades: dict[str, Any] = {"cmap": COLOURS, "vmin": colour_range[0], "vmax": colour_range[1]}
    if x.size > DENSE:
        inside = (x > ranges[0][0]) & (x < ranges[0][1]) & (y > ranges[1][0]) & (y < ranges[1][1])
        drawn: Any = ax.hexbin(
            x[inside],
            y[inside],
            C=c[inside],
            reduce_C_function=np.mean,
            gridsize=(60, 42),
            extent=(*ranges[0], *ranges[1]),
            linewidths=0.1,
            rasterized=True,
            **shades,
        )
    else:
        size = point_size(x.size) * 0.7
        drawn = ax.scatter(x, y, c=c, s=size, linewidths=0, rasterized=True, **shades)
    # Hot stars on the left and dwarfs at the bottom, as in every Kiel diagram.
    ax.set_xlim(ranges[0][1], ranges[0][0])
    ax.set_ylim(ranges[1][1], ranges[1][0])
    return drawn


def kiel_grid(
    panels: Sequence[Panel], *, across: int, label: Named = None, simulated: bool = False
) -> Figure:
    """Return Kiel diagrams with common axes and one colour bar.

    Parameters
    ----------
    panels : sequence of Panel
        Teff in K, log g in dex, and the label that colours them.
    across : int
        Panels in a row.
    label : Label, str or None
        What the colour is; by default what the first panel's is called, else [M/H].
    simulated : bool
        Whether to mark every panel as simulated.
    """
    ranges = (
        limits(*(one.x for one in panels), fallback=_TEFF.range),
        limits(*(one.y for one in panels), fallback=_LOGG.range),
    )
    colours = [np.asarray(one.colour, np.float64) for one in panels if one.colour is not None]
    known = np.concatenate([one[np.isfinite(one)] for one in colours]) if colours else np.empty(0)
    shown = label_of(
        next((one.colour for one in panels if one.colour is not None), ()), label, _M_H
    )
    # Colours for the middle 96 %: a few metal-poor stars would leave one colour for the disc.
    low, high = np.percentile(known, (2.0, 98.0)) if known.size else shown.range
    if not low < high:
        low, high = shown.range
    with style():
        figure, axes = _grid(len(panels), across, 46.0)
        for ax, panel in zip(axes, panels, strict=False):
            drawn = kiel_panel(ax, panel, ranges=ranges, colour_range=(low, high))
            _caption(ax, panel.coloured(), simulated, "upper left")
        _outer_labels(figure, axes, (axis_text(_TEFF), axis_text(_LOGG)))
        bar = figure.colorbar(drawn, ax=list(axes), pad=0.01, aspect=40, extend="both")
        bar.set_label(axis_text(shown))
        bar.ax.minorticks_off()
    return figure


def plane_grid(
    panels: Sequence[Panel],
    *,
    across: int,
    labels: tuple[Named, Named] = (None, None),
    line: tuple[ArrayLike, ArrayLike] | None = None,
    simulated: bool = False,
) -> Figure:
    """Return planes of two abundances with common axes: density and points.

    Parameters
    ----------
    panels : sequence of Panel
    across : int
        Panels in a row.
    labels : (Label, Label)
        What stands across and up; by default what the first panel's are called, else [M/H] and
        [alpha/M].
    line : (x, y), optional
        A line to draw in every panel.
    simulated : bool
        Whether to mark every panel as simulated.
    """
    first, second = (panels[0].x, panels[0].y) if panels else ((), ())
    pair = label_of(first, labels[0], _M_H), label_of(second, labels[1], _ALPHA_M)
    ranges = (
        limits(*(one.x for one in panels), fallback=pair[0].range),
        limits(*(one.y for one in panels), fallback=pair[1].range),
    )
    with style():
        figure, axes = _grid(len(panels), across, 42.0)
        _fill(figure, axes, panels, ranges=ranges, line=line, simulated=simulated)
        _outer_labels(figure, axes, (axis_text(pair[0]), axis_text(pair[1])))
    return figure


def elements_figure(
    x: Sequence[ArrayLike],
    y: Sequence[ArrayLike],
    *,
    labels: Sequence[tuple[Label, Label]],
    simulated: bool = False,
) -> Figure:
    """Return planes of two abundances with axes of their own: density and points.

    Parameters
    ----------
    x, y : sequences of (n,) float
        One pair for each plane.
    labels : sequence of (Label, Label)
        Definitions across and up of each.
    simulated : bool
        Whether to mark every panel as simulated.
    """
    with style():
        figure, axes = _grid(len(labels), min(3, len(labels)), 50.0, share=False)
        meshes = []
        for ax, across, up, pair in zip(axes, x, y, labels, strict=True):
            ranges = (limits(across, fallback=pair[0].range), limits(up, fallback=pair[1].range))
            meshes.append(density_plane(ax, across, up, ranges=ranges))
            ax.locator_params(axis="x", nbins=5)
            ax.set_xlabel(axis_text(pair[0]))
            ax.set_ylabel(axis_text(pair[1]))
            _caption(ax, Panel("", across, up), simulated, "lower left")
        _common_bar(figure, meshes, axes)
    return figure


def _fill(
    figure: Figure,
    axes: Sequence[Axes],
    panels: Sequence[Panel],
    *,
    ranges: tuple[Range, Range],
    line: tuple[ArrayLike, ArrayLike] | None,
    simulated: bool,
) -> None:
    meshes = []
    for ax, panel in zip(axes, panels, strict=False):
        meshes.append(density_plane(ax, panel.x, panel.y, ranges=ranges, bins=50))
        if line is not None:
            ax.plot(*line, color="#d55e00", linewidth=0.8, linestyle="--")
        _caption(ax, panel, simulated, "lower left")
    _common_bar(figure, meshes, axes)


def _common_bar(figure: Figure, meshes: Sequence[Any], axes: Sequence[Axes]) -> None:
    """Give all panels one scale, and draw its bar."""
    drawn = [one for one in meshes if one is not None]
    if not drawn:
        return
    # One scale, or equal colours would mean different numbers in neighbouring panels.
    top = max(float(one.get_clim()[1]) for one in drawn)
    for one in drawn:
        one.set_clim(_CROWD, top)
    bar = figure.colorbar(drawn[0], ax=list(axes), pad=0.01, aspect=40)
    bar.set_label("stars per cell")
    # Counts, not powers of ten, and more than one of them on a short bar.
    bar.ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.ax.yaxis.set_minor_formatter(NullFormatter())


def _grid(
    n: int, across: int, height_mm: float, *, share: bool = True
) -> tuple[Figure, list[Axes]]:
    down = -(-n // across)
    figure = new_figure(PAGE_MM, 8.0 + height_mm * down)
    panels = figure.subplots(down, across, sharex=share, sharey=share, squeeze=False).ravel()
    for ax in panels[n:]:
        ax.set_axis_off()
    return figure, list(panels[:n])


def _caption(ax: Axes, panel: Panel, simulated: bool, place: str) -> None:
    text = count_text(panel.x, panel.y, (ax.get_xlim(), ax.get_ylim()))
    ax.set_title(f"{panel.title}; {text}" if panel.title else text, fontsize=NOTE_PT, pad=3)
    if len(panel.known()[0]) == 0:
        # On white: a line that is drawn in every panel would strike it out.
        look: dict[str, Any] = {"ha": "center", "color": MISSING, "backgroundcolor": "white"}
        ax.text(0.5, 0.5, "no stars", transform=ax.transAxes, **look)
    if simulated:
        mark_simulated(ax, place=place)


def _outer_labels(figure: Figure, axes: Sequence[Axes], texts: tuple[str, str]) -> None:
    figure.supxlabel(texts[0])
    figure.supylabel(texts[1])
    for ax in axes:
        ax.label_outer()
