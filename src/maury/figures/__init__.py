"""Figures at journal column width: functions of data to axes, and of axes to whole figures.

Nothing here touches pyplot or its global state, and no drawing function writes a file; `save` does.
Figures of simulated spectra bear the mark SIMULATED inside the axes.
"""

from maury.figures.audit import audit_figure, sensitivity_figure
from maury.figures.banner import demo_banner, quoted_errors
from maury.figures.cover import coverage_map
from maury.figures.residuals import one_to_one, residual_figure
from maury.figures.stars import abundance, abundance_figure, kiel, kiel_figure
from maury.figures.style import COLUMN_MM, PAGE_MM, axis_text, new_figure, save, style

__all__ = [
    "COLUMN_MM",
    "PAGE_MM",
    "abundance",
    "abundance_figure",
    "audit_figure",
    "axis_text",
    "coverage_map",
    "demo_banner",
    "kiel",
    "kiel_figure",
    "new_figure",
    "one_to_one",
    "quoted_errors",
    "residual_figure",
    "save",
    "sensitivity_figure",
    "style",
]
