"""Posterior of fitted labels by Markov chains, where a covariance at the best fit is not enough."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maury.io.arrays import BoolArray, Float32Array, Float64Array
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import Prior
from maury.methods.protocols import FitResult

__all__ = ["sampled"]

_SCALE = 2.38
"""Steps of this over the root of the number of labels, times the covariance, are the best of a
normal posterior (Roberts, Gelman & Gilks 1997, Ann. Appl. Prob. 7, 110)."""
_BURN_IN = 0.2
"""Share of the steps that is left out, as chains start at the best fit; chosen."""
_SEED = 8129
"""Any number: the same spectra then have the same errors."""


def sampled(
    fitter: Fitter,
    flux: Float32Array,
    ivar: Float32Array,
    found: FitResult,
    *,
    prior: Prior,
    frozen: BoolArray,
    steps: int,
) -> FitResult:
    """Return the fit with the covariance of a Markov chain about it (Metropolis et al. 1953).

    Steps are drawn from the covariance of the fit, all stars at once; none leaves the bounds. Stars
    whose covariance is unknown keep it.

    Parameters
    ----------
    fitter : Fitter
    flux, ivar : (n_star, n_pixel) float32
    found : FitResult
        Best fit, of all labels of the model.
    prior : Prior
    frozen : (n_star, n_label) bool
        Labels that stay.
    steps : int
        Steps of each chain.
    """
    rng = np.random.default_rng(_SEED)
    covariance = np.where(frozen[:, :, None] | frozen[:, None, :], 0.0, found.covariance)
    usable = np.isfinite(covariance).all(axis=(1, 2)) & np.isfinite(found.labels).all(axis=1)
    rows = np.flatnonzero(usable & (~frozen).any(axis=1))
    if not rows.size:
        return found
    root = _root(covariance[rows])
    count = (~frozen[rows]).sum(axis=1)
    root *= (_SCALE / np.sqrt(count))[:, None, None]
    low, high = np.asarray(fitter.model.bounds).T
    place, known = found.labels[rows].copy(), prior.rows(rows)
    inside = flux[rows], ivar[rows]
    value = fitter.objective(*inside, place, prior=known)
    kept, first = [], int(_BURN_IN * steps)
    for number in range(steps):
        move = (root @ rng.standard_normal((*place.shape, 1)))[:, :, 0]
        tried = place + move
        within = ((tried >= low) & (tried <= high) | frozen[rows]).all(axis=1)
        there = fitter.objective(*inside, np.clip(tried, low, high), prior=known)
        ratio = -0.5 * (there - value)
        taken = within & (np.log(rng.random(len(rows))) < ratio)
        place = np.where(taken[:, None], tried, place)
        value = np.where(taken, there, value)
        if number >= first:
            kept.append(place)
    chain = np.array(kept)
    apart = chain - chain.mean(axis=0)
    out = found.covariance.copy()
    out[rows] = np.einsum("sni,snj->nij", apart, apart) / max(len(kept) - 1, 1)
    return replace(found, covariance=out)


def _root(covariance: Float64Array) -> Float64Array:
    """Matrices (n_star, n, n) whose product with their transpose is the covariance."""
    value, vector = np.linalg.eigh(covariance)
    return np.asarray(vector * np.sqrt(np.maximum(value, 0.0))[:, None])
