"""Figures of a comparison of methods: scatter, calibration, kinds of star, speed, agreement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maury.evaluation.ranking import CONSENSUS, GIVEN, Ranking
from maury.labels.definitions import Label
from maury.labels.statistics import NOMINAL_1SIGMA
from maury.report.figures.style import (
    ACCENT,
    COLUMN_MM,
    INK,
    MISSING,
    NOTE_PT,
    PAGE_MM,
    axis_text,
    mark_simulated,
    new_figure,
    style,
    symbol_text,
)

__all__ = [
    "agreement_figure",
    "calibration_figure",
    "kinds_figure",
    "scatter_figure",
    "speed_figure",
]


def draw(found: Ranking, directory: Path | str) -> list[Path]:
    """Draw all figures of a comparison into a directory, as PNG and PDF; former ones are replaced.

    Returns
    -------
    list of Path
        The PNG files.
    """
    from maury.report import figures

    drawn = {
        "scatter": figures.scatter_figure(found),
        "calibration": figures.calibration_figure(found),
        "kinds": figures.kinds_figure(found),
        "speed": figures.speed_figure(found),
        "agreement": figures.agreement_figure(found),
    }
    folder = Path(directory)
    return [figures.save(f, folder / name, overwrite=True)[0] for name, f in drawn.items()]


_MARKERS = ("o", "v", "^", "s", "D")
# Height of a line of text at the size of the figures.
_ROW_MM = 3.4
_DEFAULT = "maury"
_KINDS = ("teff", "logg", "m_h", "alpha_m")
# Grey band: errors within a tenth of the scatter hold as well as samples can tell.
_BLIND_GRID = 0.9, 1.1


def scatter_figure(found: Ranking) -> Figure:
    """Robust scatter of every method in every label; one marker per view.

    Parameters
    ----------
    found : Ranking
        Result of `maury.training.comparison.compare`.
    """
    n_column = min(3, len(found.labels))
    n_row = -(-len(found.labels) // n_column)
    with style():
        height = n_row * (14 + _ROW_MM * len(found.methods))
        figure = new_figure(PAGE_MM, height)
        grid = figure.subplots(n_row, n_column, squeeze=False, sharey=True)
        for number, ax in enumerate(grid.flat):
            if number < len(found.labels):
                _scatter_panel(ax, found, found.labels[number])
            else:
                ax.set_axis_off()
        if len(found.views) > 1:
            figure.legend(
                *grid.flat[0].get_legend_handles_labels(), loc="outside upper center", ncols=5
            )
        if found.simulated:
            mark_simulated(grid.flat[0])
    return figure


def _scatter_panel(ax: Axes, found: Ranking, label: Label) -> None:
    place = np.arange(len(found.methods))
    colours = [_colour(name) for name in found.methods]
    for number, view in enumerate(found.views):
        values = _column(found, label.name, "scatter_robust", view=view.name)
        marker = _MARKERS[number % len(_MARKERS)]
        face = colours if number == 0 else "none"
        ax.scatter(
            values, place, marker=marker, s=11, facecolors=face, edgecolors=colours, linewidths=0.7
        )
        ax.scatter([], [], marker=marker, s=11, color=INK, label=view.name)
    _method_axis(ax, found.methods)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
    ax.set_xlabel(f"robust scatter {axis_text(label)}")
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.4)
    ax.set_axisbelow(True)


def calibration_figure(found: Ranking) -> Figure:
    """How honest the quoted errors are: robust sigma of z, and the share within one error.

    A bar spans the labels, a point is their median; the shaded range is 0.9 to 1.1.

    Parameters
    ----------
    found : Ranking
    """
    with style():
        figure = new_figure(PAGE_MM, 16 + _ROW_MM * len(found.methods))
        left, right = figure.subplots(1, 2, sharey=True)
        left.axvspan(*_BLIND_GRID, color="#eeeeee", linewidth=0)
        left.axvline(1.0, color=INK, linewidth=0.6)
        right.axvline(NOMINAL_1SIGMA, color=INK, linewidth=0.6)
        for ax, name in ((left, "z_scatter_robust"), (right, "coverage_1sigma")):
            table = np.array([_column(found, label.name, name) for label in found.labels])
            for place, method in enumerate(found.methods):
                values = table[:, place][np.isfinite(table[:, place])]
                if values.size:
                    colour = _colour(method)
                    ax.plot([values.min(), values.max()], [place] * 2, color=colour, linewidth=0.8)
                    ax.plot(np.median(values), place, "o", color=colour, markersize=3)
            _method_axis(ax, found.methods)
        left.set_xscale("log")
        left.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
        left.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
        left.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        left.set_xlabel(r"robust $\sigma$ of residual / quoted error")
        right.set_xlabel(r"share within one quoted $\sigma$")
        right.set_xlim(0, 1)
        if found.simulated:
            mark_simulated(right)
    return figure


def kinds_figure(found: Ranking, labels: Sequence[str] = _KINDS) -> Figure:
    """Robust scatter by S/N, giants and dwarfs, and metallicity.

    Parameters
    ----------
    found : Ranking
    labels : sequence of str
        At most four; those that were not compared are left out.
    """
    known = [label for label in found.labels if label.name in labels][:4]
    known = known or list(found.labels[:4])
    kinds = [name for name in found.subsets(found.views[0]) if name != "all"]
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.95, len(found.methods)))
    with style():
        figure = new_figure(PAGE_MM, 20 + 55 * -(-len(known) // 2))
        grid = figure.subplots(-(-len(known) // 2), min(2, len(known)), squeeze=False, sharex=True)
        for ax, label in zip(grid.flat, known, strict=False):
            for number, method in enumerate(found.methods):
                values = [_value(found, method, label.name, "scatter_robust", k) for k in kinds]
                special = method in (CONSENSUS, _DEFAULT)
                ax.plot(
                    values,
                    marker=_MARKERS[number % len(_MARKERS)],
                    markersize=3,
                    linewidth=1.3 if special else 0.5,
                    color=_colour(method) if special else colours[number],
                    label=method,
                )
            ax.set_yscale("log")
            ax.yaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
            ax.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
            ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1.0, 2.0, 5.0)))
            ax.set_xticks(range(len(kinds)), kinds, rotation=35, ha="right")
            ax.tick_params(axis="x", which="minor", bottom=False, top=False)
            ax.set_ylabel(f"robust scatter {axis_text(label)}")
        figure.legend(
            *grid.flat[0].get_legend_handles_labels(), loc="outside right upper", fontsize=NOTE_PT
        )
        if found.simulated:
            mark_simulated(grid.flat[0], place="upper right")
    return figure


def speed_figure(found: Ranking) -> Figure:
    """Scatter over that of the best method, median over labels, against CPU time per spectrum.

    Parameters
    ----------
    found : Ranking
    """
    table = np.array([_column(found, label.name, "scatter_robust") for label in found.labels])
    with np.errstate(invalid="ignore"):
        relative = table / np.nanmin(table, axis=1, keepdims=True)
    middle = [_middle(column) for column in relative.T]
    with style():
        figure = new_figure(COLUMN_MM, 75)
        ax = figure.subplots()
        order = np.argsort(middle)
        for place, k in enumerate(order):
            one, y = found.views[0].predictions[k], middle[k]
            if np.isfinite(one.ms) and np.isfinite(y):
                ax.plot(one.ms, y, "o", color=_colour(one.name), markersize=3.5)
                ax.annotate(
                    one.name,
                    (one.ms, y),
                    xytext=(3, 2 if place % 2 else -6),
                    textcoords="offset points",
                    fontsize=NOTE_PT,
                )
        if (best := dict(zip(found.methods, middle, strict=True)).get(CONSENSUS)) is not None:
            ax.axhline(best, color=MISSING, linewidth=0.8, linestyle="--")
            ax.annotate(
                CONSENSUS,
                (0.98, best),
                xycoords=("axes fraction", "data"),
                ha="right",
                va="bottom",
                fontsize=NOTE_PT,
            )
        ax.set_xscale("log")
        ax.margins(x=0.2)
        ax.set_xlabel("CPU milliseconds per spectrum, one thread")
        ax.set_ylabel("robust scatter / that of the best")
        if found.simulated:
            mark_simulated(ax, place="upper left")
    return figure


def agreement_figure(found: Ranking, labels: Sequence[str] = ("teff", "logg", "m_h")) -> Figure:
    """Robust scatter of the difference of each pair of methods.

    Parameters
    ----------
    found : Ranking
    labels : sequence of str
        One panel each; those that were not compared are left out.
    """
    known = [label for label in found.labels if label.name in labels] or list(found.labels[:1])
    n = len(found.methods)
    with style():
        figure = new_figure(PAGE_MM, 30 + 2.6 * n)
        grid = figure.subplots(1, len(known), squeeze=False, sharey=True)
        for ax, label in zip(grid[0], known, strict=True):
            values = found.agreement(label.name)
            off = np.where(np.eye(n, dtype=bool), np.nan, values)
            top = np.nanpercentile(off, 90) if np.isfinite(off).any() else 1.0
            image = ax.imshow(off, cmap="viridis", vmin=0.0, vmax=top)
            ax.set_xticks(range(n), found.methods, rotation=90, fontsize=NOTE_PT)
            ax.set_yticks(range(n), found.methods, fontsize=NOTE_PT)
            ax.tick_params(which="minor", left=False, right=False, top=False, bottom=False)
            ax.tick_params(which="major", length=0)
            ax.set_title(symbol_text(label))
            figure.colorbar(
                image,
                ax=ax,
                orientation="horizontal",
                shrink=0.85,
                extend="max",
                label=f"scatter of difference {axis_text(label)}",
            )
        if found.simulated:
            mark_simulated(grid[0, 0], place="upper right")
    return figure


def _method_axis(ax: Axes, methods: Sequence[str]) -> None:
    ax.set_yticks(range(len(methods)), methods)
    ax.tick_params(axis="y", which="minor", left=False, right=False)
    ax.set_ylim(len(methods) - 0.4, -0.6)


def _column(found: Ranking, label: str, name: str, *, view: str = GIVEN) -> list[float]:
    return [_value(found, method, label, name, "all", view) for method in found.methods]


def _value(
    found: Ranking, method: str, label: str, name: str, stars: str, view: str = GIVEN
) -> float:
    entry = found.of(method, label, view=view, stars=stars)
    if entry is None:
        return float("nan")
    return float(getattr(entry.statistics, name))


def _middle(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _colour(method: str) -> str:
    if method.split("-")[0] == _DEFAULT:
        return ACCENT
    return "#2166ac" if method == CONSENSUS else INK
