"""The Cramer-Rao bound of labels whose theory was learnt from the labelled stars.

As `maury.simulation.bound`, with the derivatives of the learnt polynomial in place of the
emulator's, and its modes as nuisances of unit prior. Of labels that noise hides in the learning,
derivatives are too small, so that the bound of weak lines is somewhat too high.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.linalg import cho_solve_banded

from maury.io.arrays import Float64Array
from maury.simulation.bound import SNR_EDGES, LabelBound, correlation_factor, snr_bin
from maury.simulation.learnt_theory import LearntTheory
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.pixels import FLUX_FLOOR

__all__ = ["compare_with_learnt_bound", "learnt_covariance"]

_STEP = 0.05
"""Step of a derivative, in scatters of a label: a polynomial is smooth over far more."""
_BLOCK = 32
"""Stars at a time, whose derivatives are some hundred spectra each."""
_MOST_TERMS = 12
"""Principal components of the observables whose squares and products tell labels, too; chosen."""


def learnt_covariance(
    theory: LearntTheory,
    columns: Float64Array,
    snr: Float64Array,
    *,
    prior: Float64Array,
    noise_correlation: Sequence[float],
) -> Float64Array:
    """Least covariance (n_star, n_column, n_column) of labels and hidden properties.

    Parameters
    ----------
    theory : LearntTheory
    columns : (n_star, n_column) float64
        Labels and hidden properties of the stars; a star without one of them is NaN.
    snr : (n_star,) float64
        S/N per pixel at the continuum; noise goes as the square root of the flux.
    prior : (n_column, n_column) float64
        Covariance of what is known beforehand.
    noise_correlation : sequence of float
        Correlation of the noise between pixels 1, 2, ... apart.
    """
    n_star, n_column = columns.shape
    n_pixel = theory.coefficients.shape[1]
    factor = correlation_factor(noise_correlation, n_pixel)
    modes = theory.modes.astype(np.float64)
    precision = np.zeros((n_column + len(modes),) * 2)
    precision[:n_column, :n_column] = np.linalg.inv(prior)
    precision[range(n_column, len(precision)), range(n_column, len(precision))] = 1.0
    out = np.full((n_star, n_column, n_column), np.nan)
    good = np.flatnonzero(np.isfinite(columns).all(axis=1) & np.isfinite(snr) & (snr > 0))
    for start in range(0, good.size, _BLOCK):
        rows = good[start : start + _BLOCK]
        flux = theory.flux(columns[rows]).astype(np.float64)
        slopes = np.empty((rows.size, n_column + len(modes), n_pixel))
        for k, size in enumerate(theory.scale):
            # One that leads out of the range of the stars is taken from within.
            ends = [columns[rows].copy() for _ in range(2)]
            ends[0][:, k] += _STEP * size
            ends[1][:, k] -= _STEP * size
            upper, lower = (theory.clip(end) for end in ends)
            width = np.maximum(upper[:, k] - lower[:, k], 1e-9)
            difference = theory.flux(upper).astype(np.float64) - theory.flux(lower)
            slopes[:, k] = difference / width[:, None]
        slopes[:, n_column:] = modes
        slopes *= snr[rows, None, None] / np.sqrt(np.maximum(flux, FLUX_FLOOR))[:, None]
        flat = slopes.reshape(-1, n_pixel).T
        weighted = cho_solve_banded((factor, True), flat, check_finite=False).T
        information = slopes @ weighted.reshape(slopes.shape).transpose(0, 2, 1)
        out[rows] = np.linalg.inv(information + precision)[:, :n_column, :n_column]
    return out


def compare_with_learnt_bound(
    simulator: TrainingStarSimulator,
    truth: Float64Array,
    predicted: Float64Array,
    snr: Float64Array,
    *,
    noise_correlation: Sequence[float],
) -> tuple[LabelBound, ...]:
    """Compare residuals with the bounds at the true labels, with and without photometry.

    Without it, labels are known beforehand to scatter as those of the labelled stars do; with it,
    as these do about a quadratic in their observables.

    Parameters
    ----------
    simulator : TrainingStarSimulator
        With a learnt theory, and the stars that it was learnt from.
    truth, predicted : (n_star, n_label) float64
        A star without all true labels has no bound.
    snr : (n_star,) float64
    noise_correlation : sequence of float

    Returns
    -------
    tuple of LabelBound
        One per label.
    """
    theory = simulator.learnt
    assert theory is not None, "the simulator has a learnt theory"
    hidden = np.median(simulator.hidden, axis=0) if simulator.hidden.size else np.zeros(0)
    columns = np.hstack([truth, np.repeat(hidden[None], len(truth), axis=0)])
    sample = simulator.columns
    priors = (
        _scatter_given(sample, simulator.observables),
        np.cov(sample.T).reshape((sample.shape[1],) * 2),
    )
    both = []
    for prior in priors:
        covariance = learnt_covariance(
            theory, columns, snr, prior=prior, noise_correlation=noise_correlation
        )
        both.append(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))
    out = []
    for k, name in enumerate(simulator.names):
        overall, *bins = (
            snr_bin(limits, predicted[:, k] - truth[:, k], snr, [sigma[:, k] for sigma in both])
            for limits in [(0.0, np.inf), *pairwise(SNR_EDGES)]
        )
        out.append(LabelBound(name, overall, tuple(bins)))
    return tuple(out)


def _scatter_given(columns: Float64Array, observables: Float64Array) -> Float64Array:
    """Covariance (n_column, n_column) of what observables leave open, by a quadratic in them."""
    known = np.isfinite(observables).mean(axis=0) > 0.5
    values = observables[:, known]
    if not values.shape[1]:
        return np.cov(columns.T).reshape((columns.shape[1],) * 2)
    values = np.where(np.isfinite(values), values, np.nanmedian(values, axis=0))
    scale = values.std(axis=0)
    values = np.clip((values - values.mean(axis=0)) / np.where(scale > 0, scale, 1.0), -5, 5)
    axes = np.linalg.svd(values, full_matrices=False)[2][:_MOST_TERMS]
    score = values @ axes.T
    score /= np.maximum(score.std(axis=0), 1e-9)
    first, second = np.triu_indices(min(4, score.shape[1]))
    design = np.column_stack([np.ones(len(score)), score, score[:, first] * score[:, second]])
    normal = design.T @ design + np.eye(design.shape[1])
    rest = columns - design @ np.linalg.solve(normal, design.T @ columns)
    freedom = max(len(rest) - design.shape[1], 1)
    return np.asarray(rest.T @ rest / freedom).reshape((columns.shape[1],) * 2)
