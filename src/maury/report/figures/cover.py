"""A map of training and observed stars."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.evaluation.embedding import Kind
from maury.io.arrays import Float64Array
from maury.report.figures.style import (
    COLUMN_MM,
    INK,
    MISSING,
    mark_simulated,
    new_figure,
    point_size,
    style,
)

_LOOKS = {
    Kind.OBSERVED: ("observed", MISSING),
    Kind.TRAINING: ("training", "#0072b2"),
    Kind.UNLIKE: ("observed, flagged as unlike", "#d55e00"),
}
"""In the order of drawing; colours of Okabe & Ito, which the colour-blind can tell apart."""


def coverage_map(
    place: ArrayLike,
    kind: ArrayLike,
    *,
    suggested: ArrayLike | None = None,
    simulated: bool = False,
) -> Figure:
    """Draw stars in a plane in which neighbours are alike (`maury.evaluation.embedding.embed`).

    Parameters
    ----------
    place : (n, 2) float
    kind : (n,) int
        Values of `maury.evaluation.embedding.Kind`.
    suggested : (n,) bool, optional
        Stars to draw a ring around.
    simulated : bool
        Whether to mark the axes as simulated.

    Raises
    ------
    LengthMismatch
        If the shapes do not belong together.
    """
    where, what = np.asarray(place, dtype=np.float64), np.asarray(kind)
    ringed = np.zeros(what.shape, np.bool_) if suggested is None else np.asarray(suggested)
    if where.shape != (what.size, 2) or ringed.shape != what.shape:
        raise LengthMismatch(
            f"places, kinds and suggestions of {where.shape}, {what.shape} and {ringed.shape} stars"
        )
    size = point_size(what.size)
    with style():
        figure = new_figure(COLUMN_MM, 98.0)
        ax = figure.add_subplot()
        for one, (text, colour) in _LOOKS.items():
            look = {"color": colour, "linewidths": 0}
            _draw(ax, where[what == one], text, 1.5 * size, look)
        ring = {"facecolors": "none", "edgecolors": INK, "linewidths": 0.5}
        _draw(ax, where[ringed], "suggested", 3.0 * size + 6.0, ring)
        # Only distances mean something in such a map, so that both axes must have one scale.
        ax.set_aspect("equal", "datalim")
        ax.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
        ax.set_xlabel("neighbours are alike; the axes have no meaning")
        figure.legend(loc="outside upper center", ncols=2, frameon=False, markerscale=1.5)
        if simulated:
            mark_simulated(ax)
    return figure


def _draw(ax: Axes, where: Float64Array, text: str, size: float, look: dict[str, Any]) -> None:
    if len(where):
        label = f"{text} ({len(where)})"
        ax.scatter(where[:, 0], where[:, 1], s=size, label=label, rasterized=True, **look)
