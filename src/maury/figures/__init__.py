"""Figures at journal column width: functions of data to axes, and of axes to whole figures.

Nothing here touches pyplot or its global state, and no drawing function writes a file; `save` does.
Figures of simulated spectra bear the mark SIMULATED inside the axes. All names but those
of the style are resolved when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from maury.figures.style import COLUMN_MM as COLUMN_MM
from maury.figures.style import PAGE_MM as PAGE_MM
from maury.figures.style import axis_text as axis_text
from maury.figures.style import new_figure as new_figure
from maury.figures.style import number_text as number_text
from maury.figures.style import save as save
from maury.figures.style import style as style
from maury.figures.style import symbol_text as symbol_text

_HOME = {
    "Panel": "planes",
    "Regime": "checks",
    "abundance": "stars",
    "abundance_figure": "stars",
    "agreement_figure": "comparison",
    "alpha_by_place": "cartography",
    "audit_figure": "audit",
    "bimodality_figure": "cartography",
    "bimodality_panel": "cartography",
    "calibration_figure": "comparison",
    "clusters_figure": "checks",
    "coverage_curves": "checks",
    "coverage_figure": "checks",
    "coverage_map": "cover",
    "demo_banner": "banner",
    "density_plane": "planes",
    "distribution": "training",
    "distributions_figure": "training",
    "elements_figure": "planes",
    "gradient_panel": "cartography",
    "gradients_figure": "cartography",
    "kiel": "stars",
    "kiel_figure": "stars",
    "kiel_grid": "planes",
    "kinds_figure": "comparison",
    "losses": "training",
    "losses_figure": "training",
    "maps_figure": "cartography",
    "one_to_one": "residuals",
    "plane_grid": "planes",
    "quoted_errors": "banner",
    "regime_figure": "checks",
    "relative_figure": "checks",
    "residual_figure": "residuals",
    "scatter_figure": "comparison",
    "sensitivity_figure": "audit",
    "snr_figure": "residuals",
    "speed_figure": "comparison",
    "trends_figure": "checks",
    "z_figure": "checks",
}

_STYLE = (
    "COLUMN_MM",
    "PAGE_MM",
    "axis_text",
    "new_figure",
    "number_text",
    "save",
    "style",
    "symbol_text",
)

__all__ = sorted([*_HOME, *_STYLE])

if TYPE_CHECKING:
    from maury.figures.audit import audit_figure as audit_figure
    from maury.figures.audit import sensitivity_figure as sensitivity_figure
    from maury.figures.banner import demo_banner as demo_banner
    from maury.figures.banner import quoted_errors as quoted_errors
    from maury.figures.cartography import alpha_by_place as alpha_by_place
    from maury.figures.cartography import bimodality_figure as bimodality_figure
    from maury.figures.cartography import bimodality_panel as bimodality_panel
    from maury.figures.cartography import gradient_panel as gradient_panel
    from maury.figures.cartography import gradients_figure as gradients_figure
    from maury.figures.cartography import maps_figure as maps_figure
    from maury.figures.checks import Regime as Regime
    from maury.figures.checks import clusters_figure as clusters_figure
    from maury.figures.checks import coverage_curves as coverage_curves
    from maury.figures.checks import coverage_figure as coverage_figure
    from maury.figures.checks import regime_figure as regime_figure
    from maury.figures.checks import relative_figure as relative_figure
    from maury.figures.checks import trends_figure as trends_figure
    from maury.figures.checks import z_figure as z_figure
    from maury.figures.comparison import agreement_figure as agreement_figure
    from maury.figures.comparison import calibration_figure as calibration_figure
    from maury.figures.comparison import kinds_figure as kinds_figure
    from maury.figures.comparison import scatter_figure as scatter_figure
    from maury.figures.comparison import speed_figure as speed_figure
    from maury.figures.cover import coverage_map as coverage_map
    from maury.figures.planes import Panel as Panel
    from maury.figures.planes import density_plane as density_plane
    from maury.figures.planes import elements_figure as elements_figure
    from maury.figures.planes import kiel_grid as kiel_grid
    from maury.figures.planes import plane_grid as plane_grid
    from maury.figures.residuals import one_to_one as one_to_one
    from maury.figures.residuals import residual_figure as residual_figure
    from maury.figures.residuals import snr_figure as snr_figure
    from maury.figures.stars import abundance as abundance
    from maury.figures.stars import abundance_figure as abundance_figure
    from maury.figures.stars import kiel as kiel
    from maury.figures.stars import kiel_figure as kiel_figure
    from maury.figures.training import distribution as distribution
    from maury.figures.training import distributions_figure as distributions_figure
    from maury.figures.training import losses as losses
    from maury.figures.training import losses_figure as losses_figure


def __getattr__(name: str) -> object:
    if name in _HOME:
        value = getattr(import_module(f"maury.figures.{_HOME[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'maury.figures' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
