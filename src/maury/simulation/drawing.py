"""Labels and observables of stars to simulate, drawn around the labelled ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import BaseModel, ConfigDict, Field
from scipy.spatial import cKDTree

from maury.io.arrays import Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_scale

__all__ = ["DEFAULT_DRAW", "DrawConfig", "draw_around"]

_STRUCTURAL = ("teff", "logg", "m_h", "fe_h")
"""They structure the atmosphere: no star varies in them alone."""
_WEIGHTS = {"teff": 1.5, "logg": 1.5, "m_h": 1.5, "fe_h": 0.0, "alpha_m": 0.7, "mg_fe": 0.5}
"""Weight of labels in the distance between stars; [Fe/H] counts as [M/H]. Chosen."""
_OTHER_WEIGHT = 0.3
"""Of any other label, as of one element among many; chosen."""
_HIDDEN_WEIGHT = 1.0
"""Of what labels do not tell of a spectrum (`maury.simulation.learnt_theory`), where that is so
much that it counts among the labels; chosen."""
_LARGEST_STEP = 0.8
"""Below 1, so that no lone star steps by a whole difference of two others: chosen, not measured."""


class DrawConfig(BaseModel):
    """How stars are drawn around the labelled ones.

    Attributes
    ----------
    neighbours : int
        Among which the differences are taken.
    step : float
        A drawn star is a labelled one plus `step` times the difference of two of its neighbours,
        labels and observables alike, so that their relation is kept.
    widen : float
        `step` grows with (distance to the neighbours) ** widen, up to 0.8, where that is above its
        median: lone stars would else be learnt by heart.
    tail : float
        Stars are chosen in proportion to (distance to the neighbours) ** tail: rare stars oftener.
    free_share, free_width : float
        Share of stars whose abundances, [alpha/M] and those after it, also vary independently of
        one another, and by how much in units of their scatter (times a lognormal factor): each is
        then learnt from its own lines, and stars unlike all labelled ones are met.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    neighbours: int = Field(default=24, ge=2)
    step: float = Field(default=0.2, ge=0.0, le=_LARGEST_STEP)
    widen: float = Field(default=1.0, ge=0.0, le=5.0)
    tail: float = Field(default=1.0, ge=0.0, le=5.0)
    free_share: float = Field(default=0.0, ge=0.0, le=1.0)
    free_width: float = Field(default=0.8, ge=0.0, le=5.0)


DEFAULT_DRAW = DrawConfig()


def draw_around(
    labels: Float64Array,
    observables: Float64Array,
    n_star: int,
    rng: np.random.Generator,
    *,
    config: DrawConfig = DEFAULT_DRAW,
    sparse: Sequence[int] = (),
    names: Sequence[str] = LABEL_NAMES,
) -> tuple[Float64Array, Float64Array]:
    """Draw labels and observables of simulated stars: a local, smoothed bootstrap.

    Parameters
    ----------
    labels : (n, n_label) float64
        Of labelled stars.
    observables : (n, n_observable) float64
        NaN where missing.
    n_star : int
    rng : numpy Generator
    config : DrawConfig
    sparse : sequence of int
        Numbers of observables that few stars may have. A star that has one, but whose chosen
        neighbours do not, is drawn as it is, so that the observable stays as frequent as it was.
    names : sequence of str
        Of the labels; by default those of `maury.labels.definitions.LABELS`. Columns beyond are
        hidden properties.

    Returns
    -------
    (n_star, n_label), (n_star, n_observable) float64
        Any other observable that any of the three stars lacks is missing, unless `step` is 0, which
        gives the labelled stars themselves. One that is never negative among the labelled stars
        stays so.
    """
    centre, scale = robust_scale(labels)
    # Stars with one wild label should not be alone in all others.
    place = np.clip((labels - centre) / scale, -8.0, 8.0) * _metric(names, labels.shape[1])
    count = min(config.neighbours, len(labels) - 1)
    distance, near = cKDTree(place).query(place, k=count + 1)
    # Distance to the last neighbour: the inverse of the local density.
    reach = distance[:, -1] / max(float(np.median(distance[:, -1])), 1e-12)
    chance = np.clip(reach, 0.3, 6.0) ** config.tail
    base = rng.choice(len(labels), size=n_star, p=chance / chance.sum())
    plus, minus = near[base, rng.integers(1, count + 1, (2, n_star))]
    step = config.step * np.maximum(reach[base, None], 1.0) ** config.widen
    step = np.minimum(step, _LARGEST_STEP)
    has = np.isfinite(observables[:, list(sparse)])
    # Missing in one of three stars is missing in their sum: a rare column would become rarer still.
    alone = (has[base] & ~(has[plus] & has[minus])).any(axis=1, keepdims=True) | (step == 0)
    drawn = [
        np.where(alone, x[base], x[base] + step * (x[plus] - x[minus]))
        for x in (labels, observables)
    ]
    free = np.flatnonzero(rng.random(n_star) < config.free_share)
    single = np.array([k for k, name in enumerate(names) if name not in _STRUCTURAL], np.int64)
    width = config.free_width * scale[single]
    # Some stars vary a little and some much, so that neither is the only case seen.
    strength = np.exp(0.5 * rng.standard_normal((free.size, 1)))
    drawn[0][np.ix_(free, single)] += (
        strength * width * rng.standard_normal((free.size, width.size))
    )
    # Extinctions and errors cannot become negative by a step.
    positive = ~(np.where(np.isfinite(observables), observables, 0.0) < 0).any(axis=0)
    return drawn[0], np.where(positive, np.maximum(drawn[1], 0.0), drawn[1])


def _metric(names: Sequence[str], n_column: int) -> Float64Array:
    """Weight of each column of the labels in the distance between stars."""
    weights = dict(_WEIGHTS)
    if "m_h" not in names:
        weights["fe_h"] = weights["m_h"]
    own = [weights.get(name, _OTHER_WEIGHT) for name in names]
    return np.array(own + [_HIDDEN_WEIGHT] * (n_column - len(own)))
