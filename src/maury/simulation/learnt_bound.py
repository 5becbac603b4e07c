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

__all__ = ["compare_with_learnt_bound", "learnt_bound", "learnt_covariance", "learnt_weights"]

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
    factor = correlation_factor(noise_correlation, theory.coefficients.shape[1])
    precision = _precision(theory, prior)
    out = np.full((n_star, n_column, n_column), np.nan)
    good = np.flatnonzero(np.isfinite(columns).all(axis=1) & np.isfinite(snr) & (snr > 0))
    for start in range(0, good.size, _BLOCK):
        rows = good[start : start + _BLOCK]
        slopes, noise = _slopes_and_noise(theory, columns[rows], snr[rows])
        slopes /= noise
        information = slopes @ _weighted(factor, slopes).transpose(0, 2, 1)
        out[rows] = np.linalg.inv(information + precision)[:, :n_column, :n_column]
    return out


def learnt_weights(
    simulator: TrainingStarSimulator,
    labels: Float64Array,
    snr: Float64Array,
    *,
    photometry: bool,
    noise_correlation: Sequence[float],
) -> tuple[Float64Array, Float64Array]:
    """Weights of the best linear estimator of each label, and the slopes of the flux.

    As `maury.evaluation.sensitivity.optimal_weights`, by the learnt derivatives.

    Parameters
    ----------
    simulator : TrainingStarSimulator
        With a learnt theory, and the stars that it was learnt from.
    labels : (n_star, n_label) float64
        Finite.
    snr : (n_star,) float64
        S/N per pixel where the flux is 1.
    photometry : bool
        Whether labels are known beforehand as far as observables tell, or as the stars scatter.
    noise_correlation : sequence of float
        Correlation of the noise between pixels 1, 2, ... apart.

    Returns
    -------
    weights, slopes : (n_star, n_label, n_pixel) float64
        Unit of the label per unit of flux, and its inverse.
    """
    theory = _theory_of(simulator)
    factor = correlation_factor(noise_correlation, theory.coefficients.shape[1])
    slopes, noise = _slopes_and_noise(theory, _with_hidden(simulator, labels), snr)
    weighted = _weighted(factor, slopes / noise)
    information = (slopes / noise) @ weighted.transpose(0, 2, 1)
    total = information + _precision(theory, _prior(simulator, photometry=photometry))
    weights = np.asarray(np.linalg.solve(total, weighted / noise), dtype=np.float64)
    n_label = labels.shape[1]
    return weights[:, :n_label], slopes[:, :n_label]


def _precision(theory: LearntTheory, prior: Float64Array) -> Float64Array:
    """Inverse covariance of columns and modes beforehand; modes have unit scatter."""
    n_column = len(prior)
    precision = np.eye(n_column + len(theory.modes))
    precision[:n_column, :n_column] = np.linalg.inv(prior)
    return precision


def _slopes_and_noise(
    theory: LearntTheory, columns: Float64Array, snr: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Return slopes (n_star, n_column + n_mode, n_pixel) and noise (n_star, 1, n_pixel)."""
    flux = theory.flux(columns).astype(np.float64)
    n_column = columns.shape[1]
    slopes = np.empty((len(columns), n_column + len(theory.modes), flux.shape[1]))
    for k, size in enumerate(theory.scale):
        # One that leads out of the range of the stars is taken from within.
        ends = [columns.copy() for _ in range(2)]
        ends[0][:, k] += _STEP * size
        ends[1][:, k] -= _STEP * size
        upper, lower = (theory.clip(end) for end in ends)
        width = np.maximum(upper[:, k] - lower[:, k], 1e-9)
        difference = theory.flux(upper).astype(np.float64) - theory.flux(lower)
        slopes[:, k] = difference / width[:, None]
    slopes[:, n_column:] = theory.modes
    noise = np.sqrt(np.maximum(flux, FLUX_FLOOR)) / snr[:, None]
    return slopes, noise[:, None]


def _weighted(factor: Float64Array, whitened: Float64Array) -> Float64Array:
    """Slopes over the noise, times the inverse of its correlation between pixels."""
    flat = whitened.reshape(-1, whitened.shape[-1]).T
    found = cho_solve_banded((factor, True), flat, check_finite=False)
    return np.asarray(found.T.reshape(whitened.shape))


def _theory_of(simulator: TrainingStarSimulator) -> LearntTheory:
    assert simulator.learnt is not None, "the simulator has a learnt theory"
    return simulator.learnt


def _with_hidden(simulator: TrainingStarSimulator, labels: Float64Array) -> Float64Array:
    """Labels, and the hidden properties of a typical star."""
    hidden = np.median(simulator.hidden, axis=0) if simulator.hidden.size else np.zeros(0)
    return np.hstack([labels, np.repeat(hidden[None], len(labels), axis=0)])


def _prior(simulator: TrainingStarSimulator, *, photometry: bool) -> Float64Array:
    """Covariance (n_column, n_column) of what is known beforehand, with or without photometry."""
    sample = simulator.columns
    if photometry:
        return _scatter_given(sample, simulator.observables)
    return np.cov(sample.T).reshape((sample.shape[1],) * 2)


def learnt_bound(
    simulator: TrainingStarSimulator,
    labels: Float64Array,
    snr: Float64Array,
    *,
    photometry: bool,
    noise_correlation: Sequence[float],
) -> Float64Array:
    """Least 1 sigma error (n_star, n_label) of each label of each star, by the learnt derivatives.

    Parameters
    ----------
    simulator : TrainingStarSimulator
        With a learnt theory, and the stars that it was learnt from.
    labels : (n_star, n_label) float64
        A star without all of them has no bound.
    snr : (n_star,) float64
        S/N per pixel where the flux is 1.
    photometry : bool
        Whether labels are known beforehand as far as observables tell, or as the stars scatter.
    noise_correlation : sequence of float
        Correlation of the noise between pixels 1, 2, ... apart.
    """
    covariance = learnt_covariance(
        _theory_of(simulator),
        _with_hidden(simulator, labels),
        snr,
        prior=_prior(simulator, photometry=photometry),
        noise_correlation=noise_correlation,
    )
    sigma = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    return np.asarray(sigma[:, : labels.shape[1]])


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
    both = [
        learnt_bound(
            simulator, truth, snr, photometry=photometry, noise_correlation=noise_correlation
        )
        for photometry in (True, False)
    ]
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
