"""Windows of pixels where one element has its lines and others do not, found from theory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maury.io.arrays import Float64Array
from maury.methods.protocols import ForwardModel

__all__ = ["WINDOW_STARS", "element_windows", "elements_of", "lines_of"]


_ALPHA = ("o_fe", "ne_fe", "mg_fe", "si_fe", "s_fe", "ca_fe", "ti_fe")
"""Elements that follow [alpha/M], as of the grids of APOGEE (Garcia Perez et al. 2016, table 3)."""


def elements_of(names: Sequence[str], axes: Sequence[str]) -> dict[str, str]:
    """Abundances by windows, and the axis of a grid on which each is measured.

    The axis is the one that lines of the element follow, as in the pipeline of APOGEE (Garcia Perez
    et al. 2016, AJ 151, 144, section 5). Abundances that are axes, or follow none, are left out.

    Parameters
    ----------
    names : sequence of str
        Labels; abundances are those that end in ``_fe``.
    axes : sequence of str
        Labels of the grid.
    """
    out = {}
    for name in names:
        if not name.endswith("_fe") or name in axes:
            continue
        wanted = ("alpha_m", "m_h", "fe_h") if name in _ALPHA else ("m_h", "fe_h")
        axis = next((axis for axis in wanted if axis in axes), None)
        if axis is not None:
            out[name] = axis
    return out


# Scatter, dex, of other abundances among stars, against 0.1 of those measured; chosen after the
# population of the simulator.
_SCATTER = {
    "off_c": 0.1,
    "off_n": 0.1,
    "off_ca": 0.08,
    "off_ti": 0.08,
    "off_o": 0.1,
    "off_cr": 0.08,
}
WINDOW_STARS = 60
"""Typical stars at which windows are found; chosen: derivatives are averaged over them."""
# An element rules a pixel if more than half of the squared derivatives are its own.
_SHARE = 0.5
# Weaker pixels, against the strongest, add noise of the continuum only.
_LEAST = 0.08
# Pixels of one line are not split by so many without weight.
_GAP = 2


def element_windows(
    model: ForwardModel, labels: Float64Array, elements: Sequence[str]
) -> dict[str, Float64Array]:
    """Weights (n_pixel,) between 0 and 1 of each of `elements`.

    A pixel counts by the share that the element has of the squared derivatives by abundances, if
    that is more than half, and if the derivative is not small against the largest.

    Parameters
    ----------
    model : ForwardModel
        Of labels, and of the offsets of `maury.methods.fitting.theory.EmulatorSource` if there are.
    labels : (n_star, n_label) float64
        Typical stars.
    elements : sequence of str
        Labels that end in ``_fe``.
    """
    slopes = model.evaluate(labels).jacobian
    assert slopes is not None, "derivatives were asked for"
    names = model.label_names
    own = [name for name in names if name.endswith("_fe")]
    size = {
        name: np.sqrt(np.mean(slopes[:, names.index(name)].astype(np.float64) ** 2, axis=0))
        for name in (*own, *_SCATTER)
        if name in names
    }
    # At fixed [X/Fe] all elements follow iron; metals are iron where iron is no label.
    given = next((name for name in ("fe_h", "m_h") if name in names), None)
    with_iron = np.zeros(slopes[:, 0].shape) if given is None else slopes[:, names.index(given)]
    alone = with_iron - sum(slopes[:, names.index(name)] for name in own)
    iron = np.sqrt(np.mean(alone.astype(np.float64) ** 2, axis=0))
    out = {}
    for name in elements:
        others = (0.5 * iron) ** 2
        for other, value in size.items():
            if other != name:
                others = others + (value * _SCATTER.get(other, 0.1) / 0.1) ** 2
        share = size[name] ** 2 / np.maximum(size[name] ** 2 + others, 1e-20)
        kept = (share > _SHARE) & (size[name] > _LEAST * size[name].max())
        if not kept.any():
            kept = share >= np.sort(share)[-5]
        out[name] = np.where(kept, share, 0.0)
    return out


def lines_of(window: Float64Array) -> list[slice]:
    """Return runs of pixels with weight, those a few pixels apart joined."""
    used = np.flatnonzero(window > 0)
    ends = np.flatnonzero(np.diff(used) > _GAP)
    starts = np.concatenate([[0], ends + 1])
    stops = np.concatenate([ends, [used.size - 1]])
    return [slice(int(used[i]), int(used[j]) + 1) for i, j in zip(starts, stops, strict=True)]
