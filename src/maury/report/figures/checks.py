"""Whether errors hold, and whether independent measurements agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike
from scipy.special import ndtri

from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.labels.definitions import Label
from maury.labels.statistics import robust_sigma
from maury.report.figures.style import (
    ACCENT,
    COLUMN_MM,
    DIVERGING,
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
    symbol_text,
)

LEVELS = np.linspace(0.05, 0.99, 48)
"""Central probabilities at which coverage is measured."""
# A fraction of 20 stars is known to 0.1; smaller bins are left empty.
_LEAST = 20
# As many as show a trend of a typical test sample of some hundred stars.
_BINS = 8
# Of 90 strips, one in forty has a bin beyond four errors by chance (8 bins, normal).
_SURE = 4.0
_WIDE_RATIO = 5.0
"""Ratios beyond which their axis is logarithmic."""


def coverage_curve(z: ArrayLike, levels: ArrayLike = LEVELS) -> Float64Array:
    """Fraction of residuals within the error that a normal distribution gives each probability.

    Parameters
    ----------
    z : (n,) float
        Residual / error; NaN is left out.
    levels : (m,) float
        Central probabilities.

    Returns
    -------
    (m,) float64
        NaN without a star.
    """
    # Sorted once, every level is one search.
    size = np.abs(np.asarray(z, np.float64))
    size = np.sort(size[np.isfinite(size)])
    if size.size == 0:
        return np.full(np.shape(levels), np.nan)
    edge = ndtri(0.5 + 0.5 * np.asarray(levels, np.float64))
    return np.asarray(np.searchsorted(size, edge, side="right") / size.size)


def coverage_curves(
    ax: Axes, z: ArrayLike, *, labels: Sequence[Label], simulated: bool = False
) -> Axes:
    """Draw, for every label, the measured less the nominal coverage against the nominal one.

    The grey band holds 95 % of the curves' points if errors are normal and right.

    Parameters
    ----------
    ax : Axes
        Where to draw.
    z : (n, n_label) float
        Residual / error of stars that took no part in the calibration.
    labels : sequence of Label
        Definitions, in the order of the second axis.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    table = np.asarray(z, np.float64)
    n = max(int(np.isfinite(table).sum(axis=0).max(initial=0)), 1)
    # Binomial errors; of the label with most stars, so that the band is narrowest where it matters.
    band = 1.96 * np.sqrt(LEVELS * (1.0 - LEVELS) / n)
    text = f"95 % of right errors, n = {n}"
    ax.fill_between(LEVELS, -band, band, color=MISSING, alpha=0.35, linewidth=0, label=text)
    ax.axhline(0.0, color=INK, linewidth=0.6)
    dashes = ("-", "--")
    for k, label in enumerate(labels):
        ax.plot(
            LEVELS,
            coverage_curve(table[:, k]) - LEVELS,
            color=OKABE_ITO[k % len(OKABE_ITO)],
            linestyle=dashes[k // len(OKABE_ITO) % 2],
            label=symbol_text(label),
        )
    ax.set_xlim(0.0, 1.0)
    # Never finer than a tenth: a good calibration should look like one.
    largest = max(0.1, float(np.nanmax(np.abs(np.asarray(ax.get_ylim())))))
    ax.set_ylim(-largest, largest)
    ax.set_xlabel("nominal coverage")
    ax.set_ylabel("measured \N{MINUS SIGN} nominal")
    if simulated:
        mark_simulated(ax, place="lower left")
    return ax


def coverage_figure(z: ArrayLike, labels: Sequence[Label], *, simulated: bool = False) -> Figure:
    """Return `coverage_curves` at one column's width."""
    with style():
        figure = new_figure(COLUMN_MM, 78.0)
        ax = coverage_curves(figure.add_subplot(), z, labels=labels, simulated=simulated)
        handles, names = ax.get_legend_handles_labels()
        figure.legend(handles, names, loc="outside upper center", ncols=3, frameon=False)
    return figure


def z_figure(z: ArrayLike, labels: Sequence[Label], *, simulated: bool = False) -> Figure:
    """Return the distribution of residual / error of every label, over the normal one.

    Parameters
    ----------
    z : (n, n_label) float
    labels : sequence of Label
    simulated : bool
        Whether to mark every panel as simulated.
    """
    table, grid = np.asarray(z, np.float64), np.linspace(-5.0, 5.0, 201)
    down = -(-len(labels) // 3)
    with style():
        figure = new_figure(PAGE_MM, 8.0 + 34.0 * down)
        panels = figure.subplots(down, 3, sharex=True, sharey=True, squeeze=False).ravel()
        for k, (ax, label) in enumerate(zip(panels, labels, strict=False)):
            known = table[np.isfinite(table[:, k]), k]
            ax.hist(
                # Stars beyond the frame stand in its last bins, so that no outlier is hidden.
                np.clip(known, -4.99, 4.99),
                bins=np.linspace(-5, 5, 41),
                density=known.size > 0,
                color=OKABE_ITO[5],
                label="held-out stars",
            )
            normal = np.exp(-0.5 * grid**2) / np.sqrt(2 * np.pi)
            ax.plot(grid, normal, color=INK, linewidth=0.9, label="normal, of right errors")
            text = f"{symbol_text(label)}\nrobust width {robust_sigma(known):.2f}\nn = {known.size}"
            ax.text(0.03, 0.95, text, transform=ax.transAxes, va="top", fontsize=NOTE_PT)
            ax.set_xlim(-5, 5)
            if simulated:
                mark_simulated(ax, place="upper right")
        for ax in panels[len(labels) :]:
            ax.set_axis_off()
        figure.supxlabel("(predicted \N{MINUS SIGN} reference) / error")
        figure.supylabel("share of stars per unit")
        common_legend(figure)
    return figure


@dataclass(frozen=True)
class Regime:
    """Some stars, by name: low S/N, giants, ...; `rows` is a mask (n,)."""

    name: str
    rows: BoolArray


def regimes(
    snr: ArrayLike, logg: ArrayLike, metals: ArrayLike, *, symbol: str = "[M/H]"
) -> list[Regime]:
    """Divide stars by S/N, gravity and metallicity; each star is in one regime of each kind.

    Parameters
    ----------
    snr, logg, metals : (n,) float
        A star without one of them is in no regime of that kind.
    symbol : str
        What the metallicity is called.
    """
    s, g, m = (np.asarray(a, np.float64) for a in (snr, logg, metals))
    return [
        Regime("all", np.ones(s.shape, np.bool_)),
        Regime("S/N < 40", s < 40),
        Regime("S/N 40\N{EN DASH}60", (s >= 40) & (s < 60)),
        Regime("S/N \N{GREATER-THAN OR EQUAL TO} 60", s >= 60),
        Regime("giants", g < 3.5),
        Regime("dwarfs", g >= 3.5),
        Regime(f"{symbol} < \N{MINUS SIGN}0.5", m < -0.5),
        Regime(f"{symbol} \N{MINUS SIGN}0.5\N{EN DASH}0", (m >= -0.5) & (m < 0)),
        Regime(f"{symbol} \N{GREATER-THAN OR EQUAL TO} 0", m >= 0),
    ]


def regime_coverage(z: ArrayLike, parts: Sequence[Regime]) -> tuple[Float64Array, Int64Array]:
    """Fraction of residuals within one error, and stars, of each regime and label.

    Parameters
    ----------
    z : (n, n_label) float
    parts : sequence of Regime

    Returns
    -------
    coverage : (n_regime, n_label) float64
        NaN below 20 stars.
    count : (n_regime, n_label) int64
    """
    table = np.asarray(z, np.float64)
    count = np.array([np.isfinite(table[one.rows]).sum(axis=0) for one in parts])
    inside = np.array([(np.abs(table[one.rows]) <= 1.0).sum(axis=0) for one in parts])
    return np.where(count >= _LEAST, inside / np.maximum(count, 1), np.nan), count


def regime_figure(
    z: ArrayLike, parts: Sequence[Regime], labels: Sequence[Label], *, simulated: bool = False
) -> Figure:
    """Return a table in colours: coverage of one error, by regime and label.

    Parameters
    ----------
    z : (n, n_label) float
    parts : sequence of Regime
    labels : sequence of Label
    simulated : bool
        Whether to mark the axes as simulated.
    """
    share, count = regime_coverage(z, parts)
    with style():
        figure = new_figure(PAGE_MM, 16.0 + 7.0 * len(parts))
        ax = figure.add_subplot()
        rows = [f"{one.name} ({n})" for one, n in zip(parts, count.max(axis=1), strict=True)]
        _heat(ax, 100.0 * share, 68.3, span=25.0, digits=0, colours=DIVERGING.removesuffix("_r"))
        ax.set_xticks(range(len(labels)), [symbol_text(one) for one in labels])
        ax.set_yticks(range(len(parts)), rows)
        _bar(figure, ax, "% within one quoted error; 68 is right")
        if simulated:
            mark_simulated(ax, place="above right")
    return figure


def trend_bins(n: int) -> int:
    """Return the number of bins in which trends of `n` stars are drawn: three to eight."""
    return int(np.clip(n // _LEAST, 3, _BINS))


def trend_strips(residual: ArrayLike, against: ArrayLike, *, n_bin: int = _BINS) -> Float64Array:
    """Median residual in bins of equal number along other quantities, over the robust scatter.

    Parameters
    ----------
    residual : (n, n_label) float
    against : (n, n_quantity) float
    n_bin : int

    Returns
    -------
    (n_label, n_quantity, n_bin) float64
        NaN where fewer than 20 stars are in a bin.
    """
    left, right = np.asarray(residual, np.float64), np.asarray(against, np.float64)
    out = np.full((left.shape[1], right.shape[1], n_bin), np.nan)
    for i in range(left.shape[1]):
        for j in range(right.shape[1]):
            known = np.isfinite(left[:, i]) & np.isfinite(right[:, j])
            r, x = left[known, i], right[known, j]
            if r.size < _LEAST * n_bin:
                continue
            size = robust_sigma(r)
            # Equal numbers, not widths: the error of every cell is the same.
            bins = np.array_split(np.argsort(x, kind="stable"), n_bin)
            out[i, j] = [np.median(r[rows]) / max(size, 1e-12) for rows in bins]
    return out


def trend_noise(residual: ArrayLike, against: ArrayLike, *, n_bin: int = _BINS) -> Float64Array:
    """Return the standard error of each median of `trend_strips`, over the robust scatter.

    That of n normal residuals, 1.2533 / sqrt(n) (Kenney & Keeping 1951, section 8.8): a strip that
    stays within two of it may be noise.

    Parameters
    ----------
    residual : (n, n_label) float
    against : (n, n_quantity) float
    n_bin : int

    Returns
    -------
    (n_label, n_quantity) float64
        NaN where fewer than 20 stars are in a bin.
    """
    left, right = np.isfinite(np.asarray(residual)), np.isfinite(np.asarray(against))
    each = (left.astype(np.float64).T @ right.astype(np.float64)) / n_bin
    return np.where(each >= _LEAST, np.sqrt(0.5 * np.pi / np.maximum(each, 1.0)), np.nan)


def trends_figure(
    residual: ArrayLike,
    against: ArrayLike,
    *,
    labels: Sequence[Label],
    names: Sequence[str],
    simulated: bool = False,
) -> Figure:
    """Return median residuals of every label along S/N and every label, as strips of colour.

    The largest of a strip is written, if it is above `_SURE` of its standard errors; of the
    quantities, the medians of the lowest and the highest bin are.

    Parameters
    ----------
    residual : (n, n_label) float
        Predicted minus reference.
    against : (n, n_quantity) float
        What they are drawn against; bins of equal number run from low to high values.
    labels : sequence of Label
        Of the residuals.
    names : sequence of str
        Of the quantities.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    n_bin = trend_bins(len(np.asarray(residual)))
    strips = trend_strips(residual, against, n_bin=n_bin)
    noise = trend_noise(residual, against, n_bin=n_bin)
    n_label, n_quantity, _ = strips.shape
    ends = _ends(np.asarray(against, np.float64), n_bin)
    with style():
        figure = new_figure(PAGE_MM, 30.0 + 6.5 * n_label)
        ax = figure.add_subplot()
        _heat(ax, strips.reshape(n_label, -1), 0.0, span=1.5, digits=None)
        ax.set_yticks(range(n_label), [symbol_text(one) for one in labels])
        middle = np.arange(n_quantity) * n_bin + 0.5 * (n_bin - 1)
        texts = [f"{name}\n{low}\n{high}" for name, (low, high) in zip(names, ends, strict=True)]
        ax.set_xticks(middle, texts)
        for k in range(1, n_quantity):
            ax.axvline(k * n_bin - 0.5, color="white", linewidth=2.5)
        ax.set_ylabel("residual of")
        ax.set_xlabel(
            f"along: from the lowest (first number) to the highest (second) of {n_bin} bins of "
            "equal number"
        )
        _write_largest(ax, strips, noise)
        bar = _bar(figure, ax, "median residual / robust scatter")
        if np.isfinite(noise).any():
            level = 2.0 * float(np.nanmedian(noise))
            bar.axhspan(
                -level, level, facecolor="none", edgecolor=INK, hatch="//////", linewidth=0.5
            )
            text = f"hatched: noise of a median, 2$\\sigma$ = {level:.2f}"
            ax.set_title(text, loc="left", fontsize=NOTE_PT, pad=3)
        if simulated:
            mark_simulated(ax, place="above right")
    return figure


def _ends(against: Float64Array, n_bin: int) -> list[tuple[str, str]]:
    """Medians of the lowest and the highest of some bins of equal number, as text."""
    found = []
    for column in against.T:
        known = np.sort(column[np.isfinite(column)])
        n = max(known.size // n_bin, 1)
        low, high = (_value_text(one) for one in (known[:n], known[-n:]))
        found.append((low, high))
    return found


def _value_text(values: Float64Array) -> str:
    if not values.size:
        return "-"
    # Whole kelvins and S/N, hundredths of a dex.
    middle = float(np.median(values))
    return f"{middle:.{0 if abs(middle) >= 10 else 2}f}".replace("-", "\N{MINUS SIGN}")


def _write_largest(ax: Axes, strips: Float64Array, noise: Float64Array) -> None:
    n_bin = strips.shape[2]
    for (row, block), error in np.ndenumerate(noise):
        if not np.isfinite(error):
            continue
        strip = strips[row, block]
        k = int(np.argmax(np.abs(strip)))
        if abs(strip[k]) > _SURE * error:
            # Near its bin, but within its strip.
            place = block * n_bin + float(np.clip(k, 0.19 * n_bin, 0.81 * n_bin - 1))
            text = ax.text(place, row, f"{strip[k]:+.2f}".replace("-", "\N{MINUS SIGN}"))
            text.set(ha="center", va="center", fontsize=NOTE_PT, color=INK)
            text.set_path_effects([withStroke(linewidth=1.6, foreground="white")])


def _heat(
    ax: Axes,
    values: Float64Array,
    centre: float,
    *,
    span: float,
    digits: int | None,
    colours: str = DIVERGING,
) -> None:
    ax.imshow(
        np.ma.masked_invalid(values),
        cmap=colours,
        vmin=centre - span,
        vmax=centre + span,
        aspect="auto",
        interpolation="nearest",
    )
    ax.set_facecolor("#e8e8e8")
    ax.tick_params(which="both", length=0)
    ax.minorticks_off()
    if digits is None:
        return
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            # White text where the diverging map is dark.
            dark = abs(value - centre) > 0.6 * span
            ax.text(
                column,
                row,
                f"{value:.{digits}f}",
                ha="center",
                va="center",
                fontsize=NOTE_PT,
                color="white" if dark else INK,
            )


def _bar(figure: Figure, ax: Axes, text: str) -> Axes:
    bar = figure.colorbar(ax.images[0], ax=ax, pad=0.01, aspect=30, extend="both")
    bar.set_label(text)
    bar.ax.minorticks_off()
    return bar.ax


def relative_figure(
    sizes: Mapping[str, Float64Array],
    errors: Mapping[str, Float64Array],
    labels: Sequence[Label],
    *,
    basis: ArrayLike,
    text: str,
    simulated: bool = False,
) -> Figure:
    """Return one row per label with a mark for each case, relative to something.

    Parameters
    ----------
    sizes, errors : mapping of str to (n_label,) float
        Say, the scatter with and without an input, and its sampling error.
    labels : sequence of Label
    basis : (n_label,) float
        What they are divided by.
    text : str
        Of the axis.
    simulated : bool
        Whether to mark the axes as simulated.
    """
    unit = np.asarray(basis, np.float64)
    marks = ("o", "s", "D", "^", "v", "P", "X", "*")
    n_case, n_colour = len(sizes), len(OKABE_ITO)
    # Marks of one label side by side, whatever their number, and apart from the next label's.
    step = min(0.12, 0.8 / max(n_case, 1))
    legend_mm = 4.0 * -(-n_case // 2)
    with style():
        figure = new_figure(COLUMN_MM, 16.0 + legend_mm + max(6.5, 1.1 * n_case) * len(labels))
        ax = figure.add_subplot()
        ax.axvline(1.0, color=MISSING, linewidth=0.6, zorder=0)
        for k, (name, size) in enumerate(sizes.items()):
            ax.errorbar(
                size / unit,
                np.arange(len(labels)) + step * (k - 0.5 * (n_case - 1)),
                xerr=errors[name] / unit,
                # Colours come again after seven cases, but never with the same mark.
                fmt=marks[(k + 3 * (k // n_colour)) % len(marks)],
                color=OKABE_ITO[k % n_colour],
                markersize=3.5,
                elinewidth=0.7,
                label=name,
            )
        ax.set_yticks(range(len(labels)), [symbol_text(one) for one in labels])
        ax.tick_params(axis="y", which="minor", left=False, right=False)
        # The first label on top, as in tables.
        ax.set_ylim(len(labels) - 0.4, -0.6)
        if max(float(np.nanmax(size / unit)) for size in sizes.values()) > _WIDE_RATIO:
            _logarithmic(ax)
        ax.set_xlabel(text)
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        if simulated:
            mark_simulated(ax, place="above right")
    return figure


def _logarithmic(ax: Axes) -> None:
    ax.set_xscale("log")
    # Plain numbers: ratios of 0.5 to 20 read ill as powers of ten.
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))


def clusters_figure(
    cluster: ArrayLike,
    values: ArrayLike,
    errors: ArrayLike,
    *,
    labels: Sequence[Label],
    simulated: bool = False,
) -> Figure:
    """Return, per cluster, the members' labels, their mean, and whether errors explain the spread.

    Parameters
    ----------
    cluster : (n,) str
        Cluster of each star.
    values, errors : (n, n_label) float
        Labels that all members of a cluster should share.
    labels : sequence of Label
    simulated : bool
        Whether to mark every panel as simulated.
    """
    names, number = np.unique(np.asarray(cluster).astype(str), return_inverse=True)
    table, sigma = np.asarray(values, np.float64), np.asarray(errors, np.float64)
    with style():
        figure = new_figure(PAGE_MM, 22.0 + 7.0 * len(names))
        panels = figure.subplots(1, len(labels), sharey=True, squeeze=False)[0]
        for k, (ax, label) in enumerate(zip(panels, labels, strict=True)):
            x, e = table[:, k], sigma[:, k]
            ax.errorbar(x, number, xerr=e, fmt=".", color=MISSING, markersize=3, elinewidth=0.4)
            for row in range(len(names)):
                _cluster_mean(ax, x[number == row], e[number == row], row)
            ax.set_xlabel(axis_text(label))
            ax.margins(x=0.12)
            if simulated:
                mark_simulated(ax)
        panels[0].set_yticks(range(len(names)), names)
        panels[0].set_ylim(len(names) - 0.4, -0.7)
        panels[0].tick_params(axis="y", which="minor", left=False, right=False)
    return figure


def _cluster_mean(ax: Axes, x: Float64Array, e: Float64Array, row: int) -> None:
    known = np.isfinite(x) & np.isfinite(e)
    x, e = x[known], e[known]
    if x.size < 2:
        return
    # Clusters have few members: the divisor n - 1 matters.
    centre, spread = float(np.mean(x)), float(np.std(x, ddof=1))
    ax.plot([centre - spread, centre + spread], [row, row], color=ACCENT, linewidth=1.6)
    ax.plot(centre, row, "o", color=ACCENT, markersize=3.5)
    # 1 if errors explain the spread of stars that were born alike.
    ratio = spread / max(float(np.sqrt(np.mean(e**2))), 1e-12)
    ax.annotate(
        f"{ratio:.1f} errors",
        (centre, row),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=NOTE_PT,
    )
