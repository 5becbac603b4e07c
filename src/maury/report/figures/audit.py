"""Which labels are measured, and which pixels they listen to."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
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
from maury.evaluation.sensitivity import LINES, LINES_OF, Sensitivity
from maury.labels.definitions import Label
from maury.report.figures.style import (
    ACCENT,
    COLUMN_MM,
    INK,
    MISSING,
    PAGE_MM,
    mark_simulated,
    new_figure,
    style,
    symbol_text,
)

_MARKS = {
    ALL: ("o", ACCENT),
    SPECTRUM: ("s", "#2166ac"),
    PHOTOMETRY: ("D", "#e08214"),
    CONTROL: ("^", MISSING),
    SHUFFLED: ("v", "#5e3c99"),
}
# Millimetres of a label with its five marks, and of a sensitivity spectrum: chosen by eye.
_ROW_MM = 7.5
_PANEL_MM = 24.0  # the same choice, for a sensitivity spectrum
# Names of lines that are nearer to each other would overlap at the width of a page.
_TEXT_AA = 5.0
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
        ax.axvspan(1.0 - LEAST_GAIN, 1.0, color=MISSING, alpha=0.35, linewidth=0)
        for name, (marker, colour) in _MARKS.items():
            _draw_case(ax, report, name, marker, colour)
        ax.set_yticks(range(len(report.labels)), [one.symbol for one in report.labels])
        for label, tick in zip(report.labels, ax.get_yticklabels(), strict=True):
            tick.set_color(INK if label.verdict == "measured" else ACCENT)
        ax.tick_params(axis="y", which="minor", left=False, right=False)
        ax.set_ylim(len(report.labels) - 0.4, -0.6)
        bases = sorted({one.basis for one in report.labels})
        ax.set_xlabel(f"scatter / scatter with {' or '.join(bases)}")
        figure.legend(loc="outside upper center", ncols=2, frameon=False)
        if report.simulated:
            mark_simulated(ax, place="lower left")
    return figure


def _draw_case(ax: Axes, report: AuditReport, name: str, marker: str, colour: str) -> None:
    rows = [k for k, one in enumerate(report.labels) if {name, one.basis} <= one.cases.keys()]
    if not rows:
        return
    chosen = [report.labels[k] for k in rows]
    sizes = [one.cases[one.basis].scatter for one in chosen]
    ax.errorbar(
        [one.cases[name].scatter / size for one, size in zip(chosen, sizes, strict=True)],
        rows,
        xerr=[
            one.cases[name].scatter_error / size for one, size in zip(chosen, sizes, strict=True)
        ],
        fmt=marker,
        color=colour,
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
        panels[-1].set_xlabel(r"wavelength [$\mathrm{\AA}$]")
        figure.suptitle(
            f"{sensitivity.star}: {sensitivity.n} stars, "
            + (f"mean {known}, " if known else "")
            + f"S/N {sensitivity.snr:.0f}",
            fontsize=8.0,
        )
        handles, names = panels[0].get_legend_handles_labels()
        figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _draw_label(ax: Axes, sensitivity: Sensitivity, k: int, label: Label) -> None:
    wave = sensitivity.wave_aa
    # Wavelength across, but a fixed height, whatever the derivatives are.
    at_top = blended_transform_factory(ax.transData, ax.transAxes)
    for element in LINES_OF.get(label.name, ()):
        named = -np.inf
        for line in LINES[element]:
            ax.axvline(line, color=_LINE_COLOUR, linewidth=0.8, zorder=0)
            if line - named > _TEXT_AA:
                ax.text(line, 0.97, element, transform=at_top, fontsize=4.5, ha="center", va="top")
                named = line
    ax.axhline(0.0, color=MISSING, linewidth=0.4, zorder=0.5)
    # Per percent of the continuum: what noise at S/N 100 does, in a unit that readers know.
    ax.plot(wave, 0.01 * sensitivity.network[k], color=ACCENT, linewidth=0.6, label="model")
    best = 0.01 * sensitivity.optimal[k]
    ax.plot(wave, best, color=INK, linewidth=0.6, label="best linear estimator")
    ax.set_xlim(wave[0], wave[-1])
    ax.margins(y=0.18)
    unit = label.unit if label.unit else ""
    ax.set_ylabel(f"{symbol_text(label)}\n{unit} per 1 %", fontsize=6.5)
    ax.text(
        0.01,
        0.05,
        f"correlation {sensitivity.correlation[k]:.2f}; response {sensitivity.response[k]:.2f}, "
        f"best {sensitivity.optimal_response[k]:.2f}",
        transform=ax.transAxes,
        fontsize=5.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8},
    )
