"""Confidence limits of fitted labels: where chi-square has risen by one."""

from __future__ import annotations

import numpy as np

from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import Prior
from maury.methods.protocols import FitResult

__all__ = ["confidence_limits"]

_TRIALS = 2
"""Moves per limit: the first by the covariance, the second by the rise that it met."""
_REACH = (0.2, 5.0)
"""Shortest and longest move, in errors by the covariance: what a parabola through one point beyond
says is not worth more. Chosen, not measured."""


def confidence_limits(
    fitter: Fitter,
    flux: Float32Array,
    ivar: Float32Array,
    found: FitResult,
    *,
    prior: Prior,
    free: BoolArray,
    count: int,
) -> Float64Array:
    """Lower and upper limits (n_star, count, 2) of the first `count` labels, at delta chi2 = 1.

    Each label is moved along the valley of chi-square, all others following as the covariance has
    it, which is the profile of chi-square where the valley is straight (Avni 1976, ApJ 210, 642).
    NaN where a label was not fitted or has no error.

    Parameters
    ----------
    fitter : Fitter
    flux, ivar : (n_star, n_pixel) float32
    found : FitResult
        Best fit, of all labels of the model.
    prior : Prior
        With which it was found.
    free : (n_star, n_label) bool
        Labels that were fitted.
    count : int
    """
    bounds = np.asarray(fitter.model.bounds)
    best = fitter.objective(flux, ivar, found.labels, prior=prior)
    out = np.full((len(found), count, 2), np.nan)
    for k in range(count):
        sigma = np.sqrt(np.maximum(found.covariance[:, k, k], 0.0))
        known = free[:, k] & np.isfinite(best) & (sigma > 0)
        valley = found.covariance[known, k] / sigma[known, None]
        rows = np.flatnonzero(known)
        for side, sign in enumerate((-1.0, 1.0)):
            size = np.ones(rows.size)
            for _ in range(_TRIALS):
                place = found.labels[rows] + sign * size[:, None] * valley
                # A bound is passed by no label, and the limit lies at most there.
                place = np.clip(place, *bounds.T)
                rise = (
                    fitter.objective(flux[rows], ivar[rows], place, prior=prior.rows(rows))
                    - best[rows]
                )
                # Of a parabola through the best fit and this place.
                factor = 1.0 / np.sqrt(np.maximum(rise, _REACH[1] ** -2.0))
                size = np.clip(size * factor, *_REACH)
            limit = found.labels[rows, k] + sign * size * sigma[rows]
            out[rows, k, side] = np.clip(limit, *bounds[k])
    return out
