"""Quantiles, joint regions and shares of errors that hold on held-out stars.

Split conformal prediction (Lei et al. 2018, JASA 113, 1094): the score of a new star is as likely
to fall between any two neighbours among n held-out scores, so that a quantile of probability p is
the score of rank (n + 1) p. Signed scores give each side its own quantile (Romano et al. 2019,
arXiv:1905.03222), so that a bias or a skewness of the residuals is in the intervals.
"""

import numpy as np
from scipy.special import ndtri

from maury.io.arrays import Float64Array
from maury.labels.columns import QUANTILES

TAIL_PROBABILITIES = tuple(percent / 100.0 for _, percent in QUANTILES)
JOINT_LEVELS = (0.683, 0.954)
"""Probabilities whose joint regions are stored: those of one and two sigma of a single label."""
_LEAST_BEYOND = 3.0
"""Held-out stars expected beyond an outer quantile for it to be taken from them: with fewer, one
wild star decides it (a quantile of rank 3 scatters by 1 / sqrt(3) of its probability)."""
MOST_WRONG = 0.05
"""Share of held-out stars that should lie beyond three errors in any label; chosen. Normal
residuals of eleven independent labels leave 2.9 %."""
_MOST_WIDENED = 1.04
"""Beyond it, more than 71 % of held-out stars lie within one error (1192 and 1830 out-of-fold
residuals of two simulated surveys, eleven and nine labels: 70.5 and 70.9 %)."""
_OUTER = (0, len(QUANTILES) - 1)
_LOW, _MIDDLE, _HIGH = 1, 2, 3
NORMAL_QUANTILES: Float64Array = ndtri(np.array(TAIL_PROBABILITIES))


def widening(score: Float64Array) -> float:
    """Factor on all errors by which no more than `MOST_WRONG` stars are far off, if it is small.

    Residuals have more wild stars than a normal distribution, and of many labels one is wild
    oftener than each. Nothing tells which star will be; so all errors are a little larger.

    Parameters
    ----------
    score : (n_star, n_label) float64
        Residual over calibrated error of held-out stars; NaN where unknown.
    """
    worst = np.abs(np.nan_to_num(score)).max(axis=1)
    worst = worst[np.isfinite(score).any(axis=1)]
    if worst.size == 0:
        return 1.0
    return float(np.clip(np.quantile(worst, 1.0 - MOST_WRONG) / 3.0, 1.0, _MOST_WIDENED))


def conformal_quantiles(score: Float64Array, simulated: Float64Array | None = None) -> Float64Array:
    """Quantiles of signed scores of held-out stars.

    Parameters
    ----------
    score : (n_star, n_label) float64
        Residual over calibrated error; NaN where unknown.
    simulated : (n_star, n_label) float64, optional
        Of simulated stars, which are many: where too few held-out stars lie beyond an outer
        quantile, its distance from the median is theirs, in units of each side's 1 sigma.

    Returns
    -------
    (n_label, 5) float64
        At `maury.labels.columns.QUANTILES`; those of a normal distribution, or of the simulated
        stars, for a label without held-out scores.
    """
    out = np.empty((score.shape[1], len(TAIL_PROBABILITIES)))
    for k, column in enumerate(score.T):
        shape = NORMAL_QUANTILES
        # Networks have wilder stars than a normal distribution, on simulated spectra as well.
        if simulated is not None:
            shape = _ranked(simulated[:, k], shape)
        known = column[np.isfinite(column)]
        out[k] = _ranked(known, shape)
        if (known.size + 1) * TAIL_PROBABILITIES[0] >= _LEAST_BEYOND:
            continue
        for outer, side in zip(_OUTER, (_LOW, _HIGH), strict=True):
            unit = shape[side] - shape[_MIDDLE]
            if known.size and unit != 0.0:
                # Each side by itself: one ratio for both would spread the skewness of one tail over
                # the other.
                ratio = (out[k, side] - out[k, _MIDDLE]) / unit
                out[k, outer] = out[k, _MIDDLE] + ratio * (shape[outer] - shape[_MIDDLE])
    return out


def _ranked(values: Float64Array, default: Float64Array) -> Float64Array:
    known = values[np.isfinite(values)]
    if not known.size:
        return default
    # The method "weibull" puts probability p at rank (n + 1) p.
    return np.asarray(np.quantile(known, TAIL_PROBABILITIES, method="weibull"))


def mahalanobis2(residual: Float64Array, covariance: Float64Array) -> Float64Array:
    """Squared Mahalanobis distance (n_star,) of residuals (n_star, n_label); NaN where unknown."""
    known = np.isfinite(residual).all(axis=1) & np.isfinite(covariance).all(axis=(1, 2))
    out = np.full(len(residual), np.nan)
    apart = residual[known]
    # Covariances of labels differ by ten orders of magnitude, in K^2 and dex^2.
    unit = np.sqrt(np.einsum("nii->ni", covariance[known]))
    scaled = covariance[known] / (unit[:, :, None] * unit[:, None, :])
    pull = np.linalg.solve(scaled, (apart / unit)[..., None])[..., 0]
    out[known] = (apart / unit * pull).sum(axis=1)
    return out


def joint_radii(distance2: Float64Array) -> Float64Array | None:
    """Squared radii (2,) of the joint regions of `JOINT_LEVELS`; None for too few stars.

    Parameters
    ----------
    distance2 : (n_star,) float64
        Squared Mahalanobis distances of held-out stars; NaN where unknown.
    """
    known = distance2[np.isfinite(distance2)]
    if (known.size + 1) * (1.0 - JOINT_LEVELS[-1]) < _LEAST_BEYOND:
        return None
    return np.asarray(np.quantile(known, JOINT_LEVELS, method="weibull"))
