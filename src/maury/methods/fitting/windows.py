"""Windows of pixels where one element has its lines and others do not, found from the emulator."""

from __future__ import annotations

import numpy as np

from maury.io.arrays import Float64Array
from maury.methods.protocols import ForwardModel

__all__ = ["ELEMENTS", "WINDOW_STARS", "element_windows", "lines_of"]


ELEMENTS: dict[str, str] = {
    "si_fe": "alpha_m",
    "al_fe": "m_h",
    "mg_fe": "alpha_m",
    "ni_fe": "m_h",
}
"""Abundances by windows, and the axis of a grid on which each is measured, as its lines follow it.

As in the pipeline of APOGEE (Garcia Perez et al. 2016, AJ 151, 144, section 5).
"""

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


def element_windows(model: ForwardModel, labels: Float64Array) -> dict[str, Float64Array]:
    """Weights (n_pixel,) between 0 and 1 of each of `ELEMENTS`.

    A pixel counts by the share that the element has of the squared derivatives by abundances, if
    that is more than half, and if the derivative is not small against the largest.

    Parameters
    ----------
    model : ForwardModel
        Whose labels are those of `maury.methods.fitting.theory.EmulatorSource`, offsets included.
    labels : (n_star, n_label) float64
        Typical stars.
    """
    slopes = model.evaluate(labels).jacobian
    assert slopes is not None, "derivatives were asked for"
    names = model.label_names
    size = {
        name: np.sqrt(np.mean(slopes[:, names.index(name)].astype(np.float64) ** 2, axis=0))
        for name in (*ELEMENTS, *_SCATTER)
    }
    own = sum(slopes[:, names.index(name)] for name in ELEMENTS)
    iron = np.sqrt(np.mean((slopes[:, names.index("fe_h")] - own).astype(np.float64) ** 2, axis=0))
    out = {}
    for name in ELEMENTS:
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
