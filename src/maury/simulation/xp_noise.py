"""Noise of XP coefficients of simulated training stars: that of fainter stars, and told so."""

from __future__ import annotations

import numpy as np

from maury.io.arrays import Float64Array
from maury.spectra.observable_groups import XP_SIZE, xp_error
from maury.spectra.observable_map import ObservableMap

__all__ = ["blur_xp", "relevant_bases"]

# Up to which errors of published spectra are alike.
_FLAT_ORDERS = 25
_ERROR_SHAPE = np.concatenate(
    [np.ones(_FLAT_ORDERS), np.linspace(1.0, 0.1, XP_SIZE - _FLAT_ORDERS)]
)
"""Errors by order over those of the first orders, as of published spectra within a third: alike up
to about order 25, and falling from there."""
_MEDIAN_SHAPE = float(np.median(_ERROR_SHAPE))


def relevant_bases(values: Float64Array, errors: Float64Array) -> Float64Array:
    """Coefficients (n_star,) before those that together are compatible with noise.

    The fewest such that the root mean square of all further ones over their errors, whose standard
    deviation is 1 / sqrt(2 m) for m of them, is within two of these of 1 (De Angeli et al. 2023,
    A&A 674, A2, section 3.4). NaN where there are none.
    """
    size = values.shape[1]
    # From the last one backwards: the mean square of all from one on.
    left = np.arange(size, 0, -1)
    square = np.cumsum(((values / errors) ** 2)[:, ::-1], axis=1)[:, ::-1] / left
    noise = np.sqrt(square) < 1.0 + 2.0 / np.sqrt(2.0 * left)
    first = np.where(noise.any(axis=1), noise.argmax(axis=1), size).astype(np.float64)
    return np.where(np.isfinite(values).all(axis=1), first, np.nan)


def blur_xp(
    observables: Float64Array,
    mapping: ObservableMap,
    *,
    share: float,
    factors: tuple[float, float],
    rng: np.random.Generator,
) -> None:
    """Add noise to XP coefficients, and to the noise that is told, in `observables`.

    Half of the stars so changed are truncated (`relevant_bases`), as the archive would do it.

    Parameters
    ----------
    observables : (n_star, n_observable) float64
        Changed.
    mapping : ObservableMap
    share : float
        Of stars.
    factors : (float, float)
        Range of the errors over what they were, log-uniform.
    rng : numpy Generator
    """
    for source, column in enumerate(mapping.error_columns):
        of_source = mapping.depends[source] & mapping.further
        places = np.flatnonzero(of_source & (np.arange(of_source.size) != column))
        if column < 0 or places.size % XP_SIZE or not of_source.any():
            continue
        known = np.isfinite(observables[:, column])
        # Noise of unknown size is left at that.
        rows = np.flatnonzero((rng.random(len(observables)) < share) & known)
        least, most = np.log(factors)
        factor = np.exp(rng.uniform(least, most, rows.size))
        told = observables[rows, column] + np.log10(factor)
        error = xp_error(told)[:, None] * _ERROR_SHAPE / _MEDIAN_SHAPE
        more = error * np.sqrt(1.0 - factor**-2)[:, None]
        truncated = rng.random(rows.size) < 0.5
        for arm in places.reshape(-1, XP_SIZE):
            values = observables[np.ix_(rows, arm)] + more * rng.standard_normal(more.shape)
            beyond = np.arange(XP_SIZE) >= relevant_bases(values, error)[:, None]
            values[beyond & truncated[:, None]] = 0.0
            observables[np.ix_(rows, arm)] = values
        observables[rows, column] = told
