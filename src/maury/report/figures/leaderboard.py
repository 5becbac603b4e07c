"""The figure of a leaderboard: accuracy, honesty and cost of every method on every survey."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from maury.evaluation.leaderboard import Leaderboard, LeaderboardEntry
from maury.labels.statistics import NOMINAL_1SIGMA
from maury.report.figures.style import (
    COLUMN_MM,
    INK,
    MISSING,
    OKABE_ITO,
    mark_simulated,
    new_figure,
    style,
)

__all__ = ["leaderboard_figure"]

# Height of a line of text at the size of the figures.
_ROW_MM = 3.3
# Axis, its label and the legend, of both rows of panels.
_AROUND_MM = 34.0
# Surveys are told by shape, too: a print in grey must do.
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Of a row, between the marks of two surveys.
_APART = 0.3


class _Panel(NamedTuple):
    """One quantity: its axis, what it is, its ends, what is right, and another on the same axis."""

    title: str
    value: Callable[[LeaderboardEntry], tuple[float, float, float]]
    logarithmic: bool
    right: float | None
    other: Callable[[LeaderboardEntry], float] = lambda entry: float("nan")


def _spread(value: float, error: float) -> tuple[float, float, float]:
    return value, value - error, value + error


_PANELS = (
    _Panel("scatter / bound", lambda e: _spread(e.over_bound, e.over_bound_error), True, 1.0),
    _Panel(
        "within one error, %",
        lambda e: (100 * e.within, 100 * e.within_lowest, 100 * e.within_highest),
        False,
        100 * NOMINAL_1SIGMA,
    ),
    _Panel("silent, %", lambda e: _spread(100 * e.silent, 100 * e.silent_error), False, None),
    _Panel(
        "CPU: ms a star, s (open)",
        lambda e: _spread(e.ms, 0.0),
        True,
        None,
        lambda e: e.train_s,
    ),
)


def leaderboard_figure(found: Leaderboard) -> Figure:
    """Scatter over the bound, shares within one error and silently wrong, and cost of all methods.

    A row is a method, a mark a survey. Bars: error from seed to seed of the scatter, range of the
    labels of the share, binomial error of what is silently wrong. Vertical lines: what is right.
    Open marks: CPU seconds of training.

    Parameters
    ----------
    found : Leaderboard
    """
    names = found.methods
    with style():
        figure = new_figure(COLUMN_MM, _AROUND_MM + 2 * _ROW_MM * (len(names) + 1))
        grid = figure.subplots(2, 2, sharey=True)
        for ax, panel in zip(grid.flat, _PANELS, strict=True):
            _draw(ax, found, panel)
        for ax in grid[:, 0]:
            ax.set_yticks(range(len(names)), names)
        if len(found.surveys) > 1:
            handles = grid[0, 0].get_legend_handles_labels()
            figure.legend(*handles, loc="outside upper center", ncols=len(found.surveys))
        if any(runs.rankings[0].simulated for runs in found.surveys):
            mark_simulated(grid[0, 0], place="above right")
    return figure


def _draw(ax: Axes, found: Leaderboard, panel: _Panel) -> None:
    names = found.methods
    n_alone = sum(_sees_spectra_alone(found, name) for name in names)
    if 0 < n_alone < len(names):
        # Below are methods that see photometry, which are no rivals of those above.
        ax.axhline(n_alone - 0.5, color=MISSING, linewidth=0.6, linestyle=":")
    if panel.right is not None:
        ax.axvline(panel.right, color=INK, linewidth=0.6)
    for number, runs in enumerate(found.surveys):
        shift = _APART * (number - 0.5 * (len(found.surveys) - 1))
        colour, marker = OKABE_ITO[number % len(OKABE_ITO)], _MARKERS[number % len(_MARKERS)]
        for row, name in enumerate(names):
            entry = found.of(runs.name, name)
            if entry is None:
                continue
            value, low, high = panel.value(entry)
            place = row + shift
            ax.plot([low, high], [place] * 2, color=colour, linewidth=0.7)
            ax.plot(value, place, marker, color=colour, markersize=2.6)
            other = panel.other(entry)
            ax.plot(other, place, marker, color=colour, markersize=2.6, markerfacecolor="none")
        ax.plot([], [], marker, color=colour, markersize=3.5, label=runs.name)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.tick_params(axis="y", which="minor", left=False, right=False)
    ax.grid(axis="y", color="#e5e5e5", linewidth=0.4)
    ax.set_axisbelow(True)
    if panel.logarithmic:
        _logarithmic(ax)
    elif panel.right is None:
        ax.set_xlim(left=0.0)
    ax.set_xlabel(panel.title)


def _logarithmic(ax: Axes) -> None:
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    # Over more than two decades there is room for powers of ten alone.
    subs = (1.0,) if high > 100.0 * low else (1.0, 1.5, 2.0, 3.0, 5.0)
    ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    ax.xaxis.set_major_formatter(matplotlib.ticker.FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _sees_spectra_alone(found: Leaderboard, name: str) -> bool:
    return all(one.inputs == "spectrum" for one in found.entries if one.method == name)
