"""Which labels are measured, and which pixels they listen to."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import blended_transform_factory

from maury.evaluation.audit_report import (
    ALL,
    CONTROL,
    LEAST_GAIN,
    PHOTOMETRY,
    SHUFFLED,
    SPECTRUM,
    AuditReport,
)
from maury.evaluation.sensitivity import LINES_OF, Sensitivity, lines_in
from maury.labels.definitions import Label
from maury.report.figures.style import (
    ACCENT,
    COLUMN_MM,
    INK,
    MISSING,
    NOTE_PT,
    OKABE_ITO,
    PAGE_MM,
    mark_simulated,
    new_figure,
    pretty,
    style,
    symbol_text,
)

_MARKS = {
    ALL: ("o", ACCENT),
    SPECTRUM: ("s", OKABE_ITO[0]),
    PHOTOMETRY: ("D", OKABE_ITO[4]),
    CONTROL: ("^", MISSING),
    SHUFFLED: ("v", INK),
}
# Millimetres of a label with its five marks, and of a sensitivity spectrum: chosen by eye.
_ROW_MM = 7.5
_PANEL_MM = 24.0  # the same choice, for a sensitivity spectrum
# Points of a panel at the width of a page, and of a letter: names of lines must not overlap.
_PANEL_PT, _LETTER_PT = 430.0, 0.62 * NOTE_PT
# Heights of two rows of names, as shares of a panel.
_NAME_ROWS = (0.98, 0.85)
_LINE_COLOUR = "#9ecae1"


def audit_figure(report: AuditReport) -> Figure:
    """Return the scatter of each label in each case, over that with which it is compared.

    Left of the grey band a label is measured, if its scatter with all inputs lies there.

    Parameters
    ----------
    report : AuditReport
    """
    with style():
        figure = new_figure(COLUMN_MM, 26.0 + _ROW_MM * len(report.labels))
        ax = figure.add_subplot()
        ax.axvline(1.0, color=MISSING, linewidth=0.6, zorder=0)
        # The band is the gain that does not yet count as a measurement.
        band = "too small a gain to call measured"
        ax.axvspan(1.0 - LEAST_GAIN, 1.0, color=MISSING, alpha=0.35, linewidth=0, label=band)
        for k, (name, look) in enumerate(_MARKS.items()):
            # Side by side, or a case would hide one that scatters as much.
            _draw_case(ax, report, name, look, shift=0.13 * (k - 0.5 * (len(_MARKS) - 1)))
        ax.set_yticks(range(len(report.labels)), [pretty(one.symbol) for one in report.labels])
        for label, tick in zip(report.labels, ax.get_yticklabels(), strict=True):
            tick.set_color(INK if label.verdict == "measured" else ACCENT)
        ax.tick_params(axis="y", which="minor", left=False, right=False)
        ax.set_ylim(len(report.labels) - 0.4, -0.6)
        bases = sorted({one.basis for one in report.labels})
        ax.set_xlabel(f"scatter / scatter with {' or '.join(bases)}")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        if report.simulated:
            mark_simulated(ax, place="above right")
    return figure


def _draw_case(
    ax: Axes, report: AuditReport, name: str, look: tuple[str, str], *, shift: float
) -> None:
    rows = [k for k, one in enumerate(report.labels) if {name, one.basis} <= one.cases.keys()]
    if not rows:
        return
    chosen = [report.labels[k] for k in rows]
    sizes = [one.cases[one.basis].scatter for one in chosen]
    ax.errorbar(
        [one.cases[name].scatter / size for one, size in zip(chosen, sizes, strict=True)],
        [row + shift for row in rows],
        xerr=[
            one.cases[name].scatter_error / size for one, size in zip(chosen, sizes, strict=True)
        ],
        fmt=look[0],
        color=look[1],
        markersize=3.5,
        elinewidth=0.7,
        label=name,
    )


def sensitivity_figure(sensitivity: Sensitivity, *, simulated: bool = False) -> Figure:
    """Return derivatives by flux, one panel per label: the model's, and the best linear ones.

    Parameters
    ----------
    sensitivity : Sensitivity
        At one type of star.
    simulated : bool
        Whether to mark the panels as simulated.
    """
    drawn = sensitivity.labels
    means = {
        f"{sensitivity.teff:.0f} K": sensitivity.teff,
        f"log g {sensitivity.logg:.2f}": sensitivity.logg,
        f"[Fe/H] {sensitivity.fe_h:.2f}": sensitivity.fe_h,
    }
    known = ", ".join(text for text, value in means.items() if np.isfinite(value))
    with style():
        figure = new_figure(PAGE_MM, 14.0 + _PANEL_MM * len(drawn))
        panels = figure.subplots(len(drawn), 1, sharex=True, squeeze=False)[:, 0]
        for k, (ax, label) in enumerate(zip(panels, drawn, strict=True)):
            _draw_label(ax, sensitivity, k, label)
            if simulated:
                mark_simulated(ax)
        figure.align_ylabels(list(panels))
        panels[-1].set_xlabel(rf"wavelength in {sensitivity.medium} [$\mathrm{{\AA}}$]")
        title = f"{sensitivity.star}: {sensitivity.n} stars, "
        title += (f"mean {known}, " if known else "") + f"S/N {sensitivity.snr:.0f}"
        figure.suptitle(title.replace(" -", " \N{MINUS SIGN}"))
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _named(
    lines: Sequence[tuple[float, str]], span_aa: float
) -> Iterator[tuple[float, str, float]]:
    """Yield the lines that have room for their name, with the height of its row."""
    ends = dict.fromkeys(_NAME_ROWS, -np.inf)
    for line, element in lines:
        half = 0.5 * _LETTER_PT * (len(element) + 1) / _PANEL_PT * span_aa
        for height, end in ends.items():
            if line - half > end:
                yield line, element, height
                ends[height] = line + half
                break


def _draw_label(ax: Axes, sensitivity: Sensitivity, k: int, label: Label) -> None:
    wave = sensitivity.wave_aa
    # Wavelength across, but a fixed height, whatever the derivatives are.
    at_top = blended_transform_factory(ax.transData, ax.transAxes)
    places = lines_in(sensitivity.medium)
    lines = sorted((line, one) for one in LINES_OF.get(label.name, ()) for line in places[one])
    inside = [(line, one) for line, one in lines if wave[0] <= line <= wave[-1]]
    for line, _ in inside:
        ax.axvline(line, color=_LINE_COLOUR, linewidth=0.8, zorder=0)
    for line, element, height in _named(inside, float(wave[-1] - wave[0])):
        name = ax.text(line, height, element, transform=at_top, ha="center", va="top")
        # The line itself runs through its name.
        name.set(fontsize=NOTE_PT, path_effects=[withStroke(linewidth=1.6, foreground="white")])
    ax.axhline(0.0, color=MISSING, linewidth=0.4, zorder=0.5)
    # Per percent of the continuum: what noise at S/N 100 does, in a unit that readers know.
    ax.plot(wave, 0.01 * sensitivity.network[k], color=ACCENT, linewidth=0.6, label="model")
    best = 0.01 * sensitivity.optimal[k]
    ax.plot(wave, best, color=INK, linewidth=0.6, label="best linear estimator")
    ax.set_xlim(wave[0], wave[-1])
    ax.margins(y=0.18)
    unit = label.unit if label.unit else ""
    ax.set_ylabel(f"{symbol_text(label)}\n{unit} per 1 %", fontsize=NOTE_PT)
    ax.text(
        0.01,
        0.05,
        f"correlation {sensitivity.correlation[k]:.2f}; response {sensitivity.response[k]:.2f}, "
        f"best {sensitivity.optimal_response[k]:.2f}",
        transform=ax.transAxes,
        fontsize=NOTE_PT,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )
