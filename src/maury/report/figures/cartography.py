"""The chemistry of the Galaxy by place: planes, gradients, maps, and two sequences."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from maury.io.arrays import Float64Array
from maury.labels.definitions import Label, select
from maury.report.cartography.bimodality import CLEAN, Bimodality
from maury.report.cartography.gradients import ALPHA_LINE, Gradient, mean_map
from maury.report.figures.naming import Named, label_of
from maury.report.figures.planes import Panel, plane_grid
from maury.report.figures.style import (
    ACCENT,
    COLOURS,
    COLUMN_MM,
    INK,
    MISSING,
    NOTE_PT,
    OKABE_ITO,
    PAGE_MM,
    axis_text,
    common_legend,
    mark_simulated,
    new_figure,
    style,
)
from maury.simulation.galaxy import R_SUN_KPC

_M_H, _ALPHA_M = select(["m_h", "alpha_m"])
_GROUP_LOOK = {"all": (INK, "o"), "low-alpha": (OKABE_ITO[0], "s"), "high-alpha": (ACCENT, "D")}
_DASH = "\N{EN DASH}"


def alpha_by_place(
    m_h: ArrayLike,
    alpha_m: ArrayLike,
    place: tuple[ArrayLike, ArrayLike],
    *,
    edges: tuple[Sequence[float], Sequence[float]],
    simulated: bool = False,
) -> Figure:
    """Return [alpha/M] against [M/H] in bins of R (across) and abs(Z) (highest on top).

    Parameters
    ----------
    m_h, alpha_m : (n,) float
    place : (R, abs(Z)), each (n,) float
        In kpc.
    edges : (edges of R, edges of abs(Z))
        In kpc, increasing.
    simulated : bool
        Whether to mark every panel as simulated.
    """
    x, y = np.asarray(m_h, np.float64), np.asarray(alpha_m, np.float64)
    radius, height = (np.asarray(one, np.float64) for one in place)
    r_edges, z_edges = (list(one) for one in edges)
    panels = []
    # The highest on top, as the Galaxy is usually drawn.
    for low_z, high_z in reversed(list(pairwise(z_edges))):
        for low_r, high_r in pairwise(r_edges):
            inside = (radius >= low_r) & (radius < high_r)
            inside &= (height >= low_z) & (height < high_z)
            title = f"R {low_r:g}{_DASH}{high_r:g}, |Z| {low_z:g}{_DASH}{high_z:g}"
            panels.append(Panel(title, x[inside], y[inside]))
    at = np.array([-1.5, 0.5])
    return plane_grid(
        panels,
        across=len(r_edges) - 1,
        line=(at, ALPHA_LINE[0] + ALPHA_LINE[1] * at),
        simulated=simulated,
    )


def gradient_panel(
    ax: Axes,
    groups: Mapping[str, Sequence[Gradient]],
    *,
    label: Label | str = _M_H,
    put_in: Mapping[str, float] | None = None,
    simulated: bool = False,
) -> Axes:
    """Draw slopes of some groups of stars, each bin's at its middle.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    groups : mapping of str to sequence of Gradient
        ``all``, ``low-alpha``, ``high-alpha``: slopes along one coordinate.
    label : Label
        What changes.
    put_in : mapping of str to float, optional
        Slopes that a simulation put in, drawn as dashed lines.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    first = next(iter(groups.values()))
    other = "|Z|" if first[0].along == "R" else "R"
    for edge in [first[0].low_kpc, *(one.high_kpc for one in first)]:
        ax.axvline(edge, color=MISSING, linewidth=0.5, linestyle=":", zorder=0)
    for number, (name, found) in enumerate(groups.items()):
        colour, marker = _GROUP_LOOK.get(name, (MISSING, "v"))
        shown = [one for one in found if np.isfinite(one.slope)]
        # Groups side by side within a bin, or their error bars would hide one another.
        place = [
            0.5 * (one.low_kpc + one.high_kpc) + 0.15 * (number - 1) * (one.high_kpc - one.low_kpc)
            for one in shown
        ]
        slope = [one.slope for one in shown]
        look: dict[str, Any] = {"color": colour, "fmt": marker, "markersize": 3.5}
        ax.errorbar(place, slope, yerr=[one.total_error for one in shown], elinewidth=0.5, **look)
        ax.errorbar(
            place, slope, yerr=[one.error for one in shown], elinewidth=1.4, label=name, **look
        )
    for name, value in (put_in or {}).items():
        colour = _GROUP_LOOK[name][0]
        text = f"put in, {name}"
        ax.axhline(value, color=colour, linestyle="--", linewidth=0.9, label=text)
    _frame(ax, [one for some in groups.values() for one in some], put_in)
    ax.axhline(0.0, color=MISSING, linewidth=0.5, zorder=0)
    ax.set_xlabel(f"{other} [kpc]")
    ax.set_ylabel(f"d{axis_text(label_of((), label, _M_H))} / d{first[0].along} [dex / kpc]")
    if simulated:
        mark_simulated(ax, place="lower right")
    return ax


def _frame(ax: Axes, found: Sequence[Gradient], put_in: Mapping[str, float] | None) -> None:
    """Show every slope and the put-in ones, but not the whole of a hopeless error."""
    edges = list((put_in or {}).values())
    for one in found:
        if np.isfinite(one.slope):
            # Longer error bars are cut by the frame: they tell only that the slope is not known.
            reach = min(one.total_error, 0.08)
            edges += [one.slope - reach, one.slope + reach]
    if edges:
        margin = 0.12 * (max(edges) - min(edges)) + 1e-3
        ax.set_ylim(min(edges) - margin, max(edges) + margin)


def gradients_figure(
    radial: Mapping[str, Sequence[Gradient]],
    vertical: Mapping[str, Sequence[Gradient]],
    *,
    label: Label | str = _M_H,
    put_in: tuple[Mapping[str, float], Mapping[str, float]] | None = None,
    simulated: bool = False,
) -> Figure:
    """Return radial slopes in bins of abs(Z), and vertical slopes in bins of R."""
    with style():
        figure = new_figure(PAGE_MM, 72.0)
        panels = figure.subplots(1, 2)
        for k, (ax, groups) in enumerate(zip(panels, (radial, vertical), strict=True)):
            given = None if put_in is None else put_in[k]
            gradient_panel(ax, groups, label=label, put_in=given, simulated=simulated)
        handles, names = panels[0].get_legend_handles_labels()
        order = sorted(range(len(names)), key=lambda k: names[k].startswith("put in"))
        chosen = [handles[k] for k in order], [names[k] for k in order]
        figure.legend(*chosen, loc="outside upper center", ncols=5, frameon=False)
    return figure


def maps_figure(
    xyz_kpc: ArrayLike,
    radius_kpc: ArrayLike,
    values: Sequence[ArrayLike],
    *,
    labels: Sequence[Label],
    simulated: bool = False,
) -> Figure:
    """Return maps of mean labels: face-on (x, y) on the left, edge-on (R, Z) on the right.

    Parameters
    ----------
    xyz_kpc : (n, 3) float
        Galactocentric places; the Sun is at x = -8.122 kpc.
    radius_kpc : (n,) float
    values : sequence of (n,) float
        One row of maps for each.
    labels : sequence of Label
        Their definitions.
    simulated : bool
        Whether to mark every panel as simulated.
    """
    place, radius = np.asarray(xyz_kpc, np.float64), np.asarray(radius_kpc, np.float64)
    with style():
        figure = new_figure(PAGE_MM, 6.0 + 72.0 * len(labels))
        panels = figure.subplots(len(labels), 2, squeeze=False)
        for row, label in enumerate(labels):
            value = np.asarray(values[row], np.float64)
            known = value[np.isfinite(value)]
            # Means of cells vary less than stars do: the inner range of stars is the range of a
            # map.
            span = np.percentile(known, (10.0, 90.0)) if known.size else np.array(label.range)
            for ax, across, up in (
                (panels[row, 0], place[:, 0], place[:, 1]),
                (panels[row, 1], radius, place[:, 2]),
            ):
                mesh = _map(ax, across, up, value, span)
                if simulated:
                    mark_simulated(ax)
            bar = figure.colorbar(mesh, ax=list(panels[row]), pad=0.01, aspect=30, extend="both")
            bar.set_label(f"mean {axis_text(label)}")
            bar.ax.minorticks_off()
            _name_axes(panels[row])
    return figure


def _map(
    ax: Axes,
    across: Float64Array,
    up: Float64Array,
    value: Float64Array,
    span: Float64Array,
) -> Any:
    known = np.isfinite(across) & np.isfinite(up) & np.isfinite(value)
    if known.any():
        # A few stars at wrong distances would shrink all others to a dot.
        inner = [np.percentile(one[known], (0.5, 99.5)) for one in (across, up)]
        reach = [one + np.array([-0.05, 0.05]) for one in inner]
    else:
        reach = [np.array([-10.0, -6.0]), np.array([-2.0, 2.0])]
    # Fifteen stars a cell: a mean known to a quarter of the spread.
    cells = int(np.clip(np.sqrt(max(known.sum(), 1) / 15.0), 12, 60))
    edges = [np.linspace(one[0], one[1], cells + 1) for one in reach]
    mean, count = mean_map(across, up, value, edges=(edges[0], edges[1]))
    drawn = int(count[np.isfinite(mean)].sum())
    text = f"n = {drawn}; {int(known.sum()) - drawn} in emptier cells or beyond"
    ax.set_title(text, fontsize=NOTE_PT, pad=3)
    return ax.pcolormesh(
        edges[0],
        edges[1],
        np.ma.masked_invalid(mean).T,
        cmap=COLOURS,
        vmin=span[0],
        vmax=span[1],
        rasterized=True,
    )


def _name_axes(panels: Sequence[Axes]) -> None:
    left, right = panels
    left.set_xlabel("x [kpc]")
    left.set_ylabel("y [kpc]")
    left.set_aspect("equal", "datalim")
    look: dict[str, Any] = {"color": ACCENT, "markersize": 6, "markeredgecolor": "white"}
    left.plot(-R_SUN_KPC, 0.0, "*", **look)
    right.set_xlabel("R [kpc]")
    right.set_ylabel("Z [kpc]")
    right.plot(R_SUN_KPC, 0.0, "*", **look)


def bimodality_panel(
    ax: Axes,
    values: ArrayLike,
    found: Bimodality,
    *,
    label: Named = None,
    error: float = 0.0,
    title: str = "",
    simulated: bool = False,
) -> Axes:
    """Draw the distribution of a label with the two components, widened by an error.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    values : (n,) float
        As they were fitted.
    found : Bimodality
    label : Label, str or None
        What they are; by default what they are called, else [alpha/M].
    error : float
        Typical error, if errors were taken out.
    title : str
        Which stars.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    x = np.asarray(values, np.float64)
    x = x[np.isfinite(x)]
    span = label_of(values, label, _ALPHA_M).range
    low, high = np.percentile(x, (0.5, 99.5)) if x.size else span
    if not low < high:
        low, high = span
    grid = np.linspace(low, high, 200)
    ax.hist(
        x,
        # Six stars a bin on the average, within what a panel can show.
        bins=int(np.clip(x.size // 6, 10, 50)),
        range=(low, high),
        density=x.size > 0,
        color=OKABE_ITO[5],
        alpha=0.7,
        label="stars",
    )
    if np.isfinite(found.ashman_d):
        both = found.density(grid, error=error)
        for one, name in zip(both, ("each of two components", None), strict=True):
            ax.plot(grid, one, color=ACCENT, linewidth=0.8, linestyle="--", label=name)
        ax.plot(grid, both.sum(axis=0), color=INK, linewidth=1.0, label="their sum")
        text = f"D = {found.ashman_d:.2f} $\\pm$ {found.ashman_d_error:.2f}"
        text += f"\n$\\Delta$BIC = {found.delta_bic:.0f}\nhigh: {100 * found.share[1]:.0f} %"
        ax.text(0.97, 0.95, text, transform=ax.transAxes, ha="right", va="top", fontsize=NOTE_PT)
    ax.set_title(f"{title}; n = {x.size}" if title else f"n = {x.size}", fontsize=NOTE_PT, pad=3)
    ax.set_xlim(low, high)
    # Room for the text above the peak.
    ax.set_ylim(0.0, 1.3 * ax.get_ylim()[1])
    ax.set_yticks([])
    ax.locator_params(axis="x", nbins=5)
    if simulated:
        mark_simulated(ax, place="upper left")
    return ax


def bimodality_figure(
    parts: Sequence[tuple[str, ArrayLike, Bimodality]],
    *,
    label: Named = None,
    simulated: bool = False,
) -> Figure:
    """Return `bimodality_panel` of stars in some bins of metallicity, three in a row.

    Parameters
    ----------
    parts : sequence of (title, values, Bimodality)
    label : Label, str or None
        What is bimodal; by default what the values are called, else [alpha/M].
    simulated : bool
        Whether to mark every panel as simulated.
    """
    down = -(-len(parts) // 3)
    with style():
        figure = new_figure(PAGE_MM if len(parts) > 1 else COLUMN_MM, 10.0 + 42.0 * down)
        panels = figure.subplots(down, min(3, len(parts)), squeeze=False).ravel()
        for ax, (title, values, found) in zip(panels, parts, strict=False):
            bimodality_panel(ax, values, found, label=label, title=title, simulated=simulated)
        for ax in panels[len(parts) :]:
            ax.set_axis_off()
        first = parts[0][1] if parts else ()
        figure.supxlabel(axis_text(label_of(first, label, _ALPHA_M)))
        figure.supylabel("share of stars")
        common_legend(figure)
    return figure


def separation_text(found: Bimodality) -> str:
    """Say in words whether two sequences are apart."""
    if not np.isfinite(found.ashman_d):
        return "too few stars"
    # "Very strong" evidence begins at 10 (Kass & Raftery 1995, JASA 90, 773).
    if found.delta_bic <= 10.0:
        return "one component is enough"
    return "two, cleanly separated" if found.ashman_d > CLEAN else "two that overlap"
