"""Are there two sequences? A mixture of two normal distributions, with the errors taken out.

The fit is extreme deconvolution in one dimension (Bovy, Hogg & Roweis 2011, AnApS 5, 1657, section
3): each star scatters about one of the components by that component's width and by its own error.
Two figures judge it. The difference of the Bayesian information criteria says whether the second
component is needed; it grows with the number of stars, and one skewed peak may need two. Whether
they are apart is said by

    D = sqrt(2) |mean_1 - mean_2| / sqrt(width_1^2 + width_2^2)

(Ashman, Bird & Zepf 1994, AJ 108, 2348, equation 4): above 2 the two are cleanly separated.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.io.arrays import Float64Array

CLEAN = 2.0
"""Ashman's D above which two components are cleanly separated."""
# Five parameters of two normals need some ten stars each; chosen, not measured.
LEAST_STARS = 50
# Expectation maximisation ends when the mean log likelihood rises by less; overlapping components
# take long.
_ITERATIONS, _TOLERANCE = 500, 1e-6
# So many tell widths to 0.5 %; more would only take longer.
_MOST_STARS = 20_000


@dataclass(frozen=True)
class Bimodality:
    """Two components, the lower first. NaN where too few stars are given.

    Attributes
    ----------
    n : int
        Stars that were fitted.
    mean, width, share : (2,) float64
        Of the components, without the errors; the shares add up to 1.
    ashman_d, ashman_d_error : float
        Separation, and its bootstrap error.
    delta_bic : float
        Bayesian information criterion of one component minus that of two.
    """

    n: int
    mean: Float64Array
    width: Float64Array
    share: Float64Array
    ashman_d: float
    ashman_d_error: float
    delta_bic: float

    @property
    def clean(self) -> bool:
        """Whether there are two, and they are cleanly separated."""
        return bool(self.delta_bic > 10.0 and self.ashman_d > CLEAN)

    def density(self, x: ArrayLike, *, error: float = 0.0) -> Float64Array:
        """Density (2, ...) of each component at `x`, widened by an error."""
        at = np.asarray(x, np.float64)[None]
        shape = (2, *(1,) * (at.ndim - 1))
        mean, share = self.mean.reshape(shape), self.share.reshape(shape)
        variance = (self.width**2 + error**2).reshape(shape)
        normal = np.exp(-0.5 * (at - mean) ** 2 / variance) / np.sqrt(2 * np.pi * variance)
        return np.asarray(share * normal)


def bimodality(
    values: ArrayLike,
    errors: ArrayLike,
    *,
    rng: np.random.Generator,
    n_bootstrap: int = 20,
) -> Bimodality:
    """Fit one and two components.

    Labels of a network are no measurements: they are drawn towards the mean of their kind, and
    scatter less than truth and errors together. Give them errors of 0, or the errors are taken out
    twice.

    Parameters
    ----------
    values, errors : (n,) array_like
        Stars without one of them are left out; of more than 20 000, evenly chosen ones are fitted.
    rng : numpy Generator
        Of the bootstrap.
    n_bootstrap : int
        Resamples for the error of D.

    Raises
    ------
    LengthMismatch
        If the shapes differ.
    """
    x, e = np.asarray(values, np.float64), np.asarray(errors, np.float64)
    if x.shape != e.shape or x.ndim != 1:
        raise LengthMismatch(f"values and errors of {x.shape} and {e.shape} stars")
    known = np.isfinite(x) & np.isfinite(e) & (e >= 0)
    x, e = x[known], e[known]
    step = -(-max(x.size, 1) // _MOST_STARS)
    x, e = x[::step], e[::step]
    if x.size < LEAST_STARS:
        nothing = np.full(2, np.nan)
        return Bimodality(int(x.size), nothing, nothing, nothing, np.nan, np.nan, np.nan)
    # A start with the two apart, the upper with fewer stars, as in the solar neighbourhood: from
    # equal means the two would never part.
    low, high = np.percentile(x, (15.0, 90.0))
    spread = max(0.4 * float(np.std(x)), 1e-4)
    _, one = _fit(x, e, (np.array([x.mean()]), np.array([x.std()]), np.ones(1)))
    two, likelihood = _fit(x, e, (np.array([low, high]), np.full(2, spread), np.array([0.7, 0.3])))
    resampled = [
        ashman_d(*_fit(x[rows], e[rows], two)[0][:2])
        for rows in rng.integers(0, x.size, (n_bootstrap, x.size))
    ]
    order = np.argsort(two[0])
    mean, width, share = (part[order] for part in two)
    return Bimodality(
        n=int(x.size),
        mean=mean,
        width=width,
        share=share,
        ashman_d=ashman_d(mean, width),
        ashman_d_error=float(np.std(resampled)) if n_bootstrap > 1 else np.nan,
        # Three parameters more: mean, width and share.
        delta_bic=float(2.0 * (likelihood - one) - 3.0 * np.log(x.size)),
    )


def ashman_d(mean: ArrayLike, width: ArrayLike) -> float:
    """Separation of two components (2,) in units of their widths; Ashman et al. (1994), eq. 4."""
    (first, second), widths = np.asarray(mean, np.float64), np.asarray(width, np.float64)
    return float(np.sqrt(2.0) * abs(first - second) / np.sqrt((widths**2).sum()))


Components = tuple[Float64Array, Float64Array, Float64Array]


def _fit(x: Float64Array, e: Float64Array, start: Components) -> tuple[Components, float]:
    """Maximise the likelihood by expectation maximisation; return components and its log."""
    mean, width, share = start
    # A component that shrinks onto one star has infinite likelihood; the floor forbids it.
    floor = 0.02 * max(float(np.std(x)), 1e-9)
    before = -np.inf
    likelihood = before
    for _ in range(_ITERATIONS):
        variance = width[:, None] ** 2 + e**2
        apart = x - mean[:, None]
        log_density = -0.5 * (apart**2 / variance + np.log(2 * np.pi * variance))
        log_density = log_density + np.log(share)[:, None]
        total = np.logaddexp.reduce(log_density, axis=0)
        likelihood = float(total.sum())
        weight = np.exp(log_density - total)
        size = np.maximum(weight.sum(axis=1), 1e-9)
        # A star's expected true value is drawn to the component by the share of the width in the
        # whole.
        gain = width[:, None] ** 2 / variance
        expected = mean[:, None] + gain * apart
        left = width[:, None] ** 2 * (1.0 - gain)
        mean = (weight * expected).sum(axis=1) / size
        square = (weight * ((expected - mean[:, None]) ** 2 + left)).sum(axis=1) / size
        width, share = np.maximum(np.sqrt(square), floor), size / x.size
        if likelihood - before < _TOLERANCE * x.size:
            break
        before = likelihood
    return (mean, width, share), likelihood
