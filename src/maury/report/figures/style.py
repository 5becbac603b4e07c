"""What all figures share: sizes, fonts, limits, density, the mark of simulated spectra, saving."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter

from maury.io.arrays import Float64Array
from maury.io.files import refuse_existing, writing
from maury.labels.definitions import Label

COLUMN_MM = 88.0
"""Width of one journal column."""
PAGE_MM = 180.0
"""Width of a journal page."""
# What journals ask of pixel images.
DPI = 300
COLOURS = "viridis"
INK = "#1a1a1a"
ACCENT = "#b2182b"
MISSING = "#b0b0b0"
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Colours that the colour-blind can tell apart (Okabe & Ito 2008)."""
DIVERGING = "RdBu_r"
SIMULATED = "SIMULATED"
NOTE_PT = 6.5
"""Smallest text of a figure, on paper: notes, marks, legends. Journals refuse less than 6 pt."""

Range = tuple[float, float]

_RC: dict[Any, Any] = {
    # At print size: these and `NOTE_PT` are all sizes that a figure has.
    "font.size": 7.0,
    "axes.labelsize": 8.0,
    "axes.titlesize": 8.0,
    "figure.labelsize": 8.0,
    "figure.titlesize": 8.0,
    "xtick.labelsize": 7.0,
    "ytick.labelsize": 7.0,
    "legend.fontsize": NOTE_PT,
    "axes.linewidth": 0.6,
    "axes.edgecolor": INK,
    "axes.labelpad": 2.5,
    "lines.linewidth": 1.0,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.minor.visible": True,
    "ytick.minor.visible": True,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.minor.width": 0.4,
    "ytick.minor.width": 0.4,
    "xtick.major.size": 3.0,
    "ytick.major.size": 3.0,
    "xtick.minor.size": 1.5,
    "ytick.minor.size": 1.5,
    "image.cmap": COLOURS,
    # A hyphen before a number reads as a dash.
    "axes.unicode_minus": True,
    "savefig.dpi": DPI,
    # TrueType, so that text in the PDF can be searched and edited; type 3 is refused by some
    # journals.
    "pdf.fonttype": 42,
}

_PRETTY = {"Teff": r"$T_\mathrm{eff}$", "log g": r"$\log\,g$", "[alpha/M]": r"[$\alpha$/M]"}


@contextmanager
def style() -> Iterator[None]:
    """Set fonts and lines for journal width while drawing; the settings before are restored."""
    with matplotlib.rc_context(_RC):
        yield


def new_figure(width_mm: float = COLUMN_MM, height_mm: float = 75.0) -> Figure:
    """Return an empty figure that pyplot does not know of.

    Parameters
    ----------
    width_mm, height_mm : float
        Size on paper in millimetres.
    """
    # Not by pyplot: its global list of figures would keep every one of a report in memory.
    return Figure(figsize=(width_mm / 25.4, height_mm / 25.4), dpi=DPI, layout="constrained")


def symbol_text(label: Label) -> str:
    """Return the symbol of a label as a figure shows it."""
    return pretty(label.symbol)


def pretty(symbol: str) -> str:
    """Return a symbol such as ``Teff`` as a figure shows it."""
    return _PRETTY.get(symbol, symbol)


def axis_text(label: Label) -> str:
    """Return the text of a label's axis: its symbol, and its unit in brackets."""
    return label.axis.replace(label.symbol, symbol_text(label), 1)


def unit_text(label: Label) -> str:
    """Return the unit of a label with a space before it."""
    return f" {label.unit}" if label.unit else ""


def number_text(value: float, label: Label) -> str:
    """Return a bias or a scatter with as many digits as its label deserves."""
    if not np.isfinite(value):
        return "unknown"
    span = label.range[1] - label.range[0]
    # Three or four digits of the label's range: whole kelvins, thousandths of a dex.
    digits = int(np.clip(np.floor(np.log10(5000.0 / span)), 0, 6))
    # Adding zero turns -0.0 into 0.0, which prints without a sign.
    rounded = round(value, digits) + 0.0
    return f"{rounded:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def mark_simulated(ax: Axes, *, place: str = "lower right") -> None:
    """Write SIMULATED into a corner of the axes.

    Parameters
    ----------
    ax : Axes
        Where to write.
    place : str
        ``"lower right"``, ``"upper left"`` and so on; ``"above right"`` is outside.
    """
    vertical, horizontal = place.split()
    height, aligned = _HEIGHTS[vertical]
    ax.text(
        0.03 if horizontal == "left" else 0.97,
        height,
        SIMULATED,
        transform=ax.transAxes,
        ha="left" if horizontal == "left" else "right",
        va=aligned,
        fontsize=NOTE_PT,
        color=ACCENT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
        zorder=20,
    )


_HEIGHTS = {"lower": (0.04, "bottom"), "upper": (0.96, "top"), "above": (1.02, "bottom")}


def limits(*values: ArrayLike, fallback: Range) -> Range:
    """Return limits that hold all values but outliers, with a margin.

    Outliers lie beyond the inner 99.8 % by more than 0.3 of its width.

    Parameters
    ----------
    *values : (n,) float
        Numbers that share the axis; NaN is left out.
    fallback : (float, float)
        Limits if there is nothing to show.
    """
    data = np.concatenate([np.ravel(np.asarray(v, dtype=np.float64)) for v in values])
    data = data[np.isfinite(data)]
    if data.size == 0:
        return fallback
    # Percentiles, as a failed fit lies a thousand times farther than all stars.
    low, high = np.percentile(data, (0.1, 99.9))
    reach = 0.3 * (high - low)
    low, high = max(data.min(), low - reach), min(data.max(), high + reach)
    # Enough that no point is cut by the frame.
    margin = 0.04 * (high - low)
    if margin <= 0:
        margin = 0.05 * (fallback[1] - fallback[0])
    return float(low - margin), float(high + margin)


def count_text(x: ArrayLike, y: ArrayLike, ranges: tuple[Range, Range]) -> str:
    """Return the number of stars drawn within a frame, and of those that it leaves out.

    Parameters
    ----------
    x, y : (n,) float
        Stars without one of them are not drawn, and not counted.
    ranges : ((float, float), (float, float))
        Limits of both axes.
    """
    across, up = np.asarray(x, np.float64), np.asarray(y, np.float64)
    known = np.isfinite(across) & np.isfinite(up)
    inside = (across >= min(ranges[0])) & (across <= max(ranges[0]))
    inside &= (up >= min(ranges[1])) & (up <= max(ranges[1]))
    drawn, beyond = int(inside.sum()), int((known & ~inside).sum())
    return f"n = {drawn}" + (f", {beyond} beyond" if beyond else "")


def common_legend(figure: Figure) -> None:
    """Name lines and marks once, above all panels: any of these may lack one."""
    named: dict[str, Any] = {}
    for ax in figure.axes:
        handles, names = ax.get_legend_handles_labels()
        named |= dict(zip(names, handles, strict=True))
    if named:
        ncols = 5 if figure.get_figwidth() > COLUMN_MM / 25.4 else 2
        look: dict[str, Any] = {"frameon": False, "ncols": ncols}
        figure.legend(named.values(), named.keys(), loc="outside upper center", **look)


def smooth_density(
    x: Float64Array, y: Float64Array, x_range: Range, y_range: Range, *, bins: int
) -> tuple[Float64Array, Float64Array, Float64Array]:
    """Return a smoothed 2-D histogram, shape (bins, bins), and the edges along `x` and `y`."""
    count, x_edge, y_edge = np.histogram2d(x, y, bins=bins, range=(x_range, y_range))
    # 1.2 cells: shot noise of single cells is gone, ridges of a Kiel diagram are not.
    return gaussian_filter(count, 1.2), x_edge, y_edge


def density_scatter(
    ax: Axes, x: Float64Array, y: Float64Array, *, x_range: Range, y_range: Range
) -> PathCollection:
    """Draw points coloured by how crowded their surroundings are, the most crowded on top.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    x, y : (n,) float
        Finite coordinates.
    x_range, y_range : (float, float)
        Region in which the density is measured.
    """
    # One star a cell on the average, within what the eye can tell apart.
    bins = int(np.clip(np.sqrt(x.size), 12, 120))
    density, x_edge, y_edge = smooth_density(x, y, x_range, y_range, bins=bins)
    column = np.clip(np.searchsorted(x_edge, x) - 1, 0, bins - 1)
    row = np.clip(np.searchsorted(y_edge, y) - 1, 0, bins - 1)
    # Logarithm: densities of a survey span three decades.
    crowd = np.log10(1.0 + density[column, row])
    # Crowded ones last, or the outskirts of a clump would hide its middle.
    order = np.argsort(crowd, kind="stable")
    return ax.scatter(
        x[order],
        y[order],
        c=crowd[order],
        s=point_size(x.size),
        cmap=COLOURS,
        linewidths=0,
        rasterized=True,
    )


def point_size(n: int) -> float:
    """Return an area, in points squared, that suits the number of stars."""
    # Constant ink: 4000 points squared are a tenth of a panel.
    return float(np.clip(4000.0 / max(n, 1), 0.6, 7.0))


@contextmanager
def _laid_out(figure: Figure) -> Iterator[None]:
    """Lay a figure out once, as to do so costs more than to draw it."""
    engine = figure.get_layout_engine()
    if engine is not None and figure.axes:
        engine.execute(figure)
    # Not "none": that stands for an engine, for which each file is drawn twice.
    with matplotlib.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)
    try:
        yield
    finally:
        figure.set_layout_engine(engine)


def save(figure: Figure, path: Path | str, *, overwrite: bool = False) -> tuple[Path, Path]:
    """Write a figure as PNG and as PDF; neither appears half written.

    Parameters
    ----------
    figure : Figure
        Any figure.
    path : path-like
        Where to; an ending ``.png`` or ``.pdf`` is dropped.
    overwrite : bool
        Replace existing files.

    Returns
    -------
    (Path, Path)
        The PNG and the PDF.

    Raises
    ------
    OutputExists
        If one of them exists and `overwrite` is false; then neither is written.
    """
    path = Path(path)
    stem = path.stem if path.suffix.lower() in (".png", ".pdf") else path.name
    png, pdf = path.with_name(f"{stem}.png"), path.with_name(f"{stem}.pdf")
    for target in (png, pdf):
        refuse_existing(target, overwrite=overwrite)
    with style(), _laid_out(figure):
        for target, metadata in ((png, {"Software": None}), (pdf, {"CreationDate": None})):
            # By way of memory: matplotlib, stopped by a full disk, fails once more as it tidies up.
            drawn = BytesIO()
            kind = target.suffix.removeprefix(".")
            figure.savefig(drawn, dpi=DPI, format=kind, metadata=metadata)
            with writing(target, overwrite=overwrite) as partial:
                partial.write_bytes(drawn.getvalue())
    return png, pdf
