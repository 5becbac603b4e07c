"""Noise of a survey measured on its own spectra: what neighbouring pixels share, and its size.

What principal components leave of a spectrum is noise, which grows with its quoted errors, and a
misfit, which does not: lines and continua that the components do not hold. So over many spectra of
different signal-to-noise the covariance of pixels at a lag is a straight line in the quoted
variance; its slope is that of the noise, and the misfit stays in the intercept.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from scipy.linalg import eigh

from maury.errors import CorrelationError, SurveyFileError
from maury.io.arrays import Float32Array, Float64Array
from maury.labels.statistics import robust_sigma
from maury.spectra.noise import check_correlation, known_noise, nearest_correlation

__all__ = ["LEAST_SPECTRA", "MOST_SPECTRA", "NoiseMeasurement", "measure_noise"]

LEAST_SPECTRA = 100
"""With fewer, a half of them has fewer than five components, and its misfit hides the noise."""
MOST_SPECTRA = 1000
"""They tell the correlation to .002; more would only take time."""
_N_LAG = 3
"""Resampling and extraction reach no further: beyond, what is left of lines is all that is seen."""
_N_COMPONENT = 24
"""As many as tell spectra of the training sample apart (`maury.prediction.spectrum_likeness`)."""
_STARS_PER_COMPONENT = 10
"""Fewer, and components of one half would be noise, which adds to that of the other."""
_MOST_ERROR = 0.03
"""A correlation that is less certain is not told: .03 changes quoted bounds by some 3 percent."""
_LEAST_CORRELATION = 0.01
"""Lags that share less are cut off: it changes the noise of a sum of pixels by two percent."""
_N_ROUND = 10
"""Rounds of weights: the slope of the data sets at hand moves by less than a tenth of its error."""
_HUBER = 1.5
"""Residuals beyond so many scatters count less (Huber 1964): spectra with spikes or defects."""


@dataclass(frozen=True)
class NoiseMeasurement:
    """What the spectra of a survey say of their noise.

    Attributes
    ----------
    correlation : tuple of float
        Autocorrelation at lags of 1, 2, ... pixels; empty if neighbours share nothing.
    error : float
        Standard error of the first.
    scale : float
        Scatter of the noise over the quoted errors.
    n_spectra : int
        Spectra that it was measured on.
    """

    correlation: tuple[float, ...]
    error: float
    scale: float
    n_spectra: int

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> Self:
        """Read what `dataclasses.asdict` wrote.

        Raises
        ------
        SurveyFileError
            If it is damaged.
        """
        try:
            correlation = check_correlation(state["correlation"])
            error, scale = float(state["error"]), float(state["scale"])
            return cls(correlation, error, scale, int(state["n_spectra"]))
        except (KeyError, TypeError, ValueError, CorrelationError) as error:
            raise SurveyFileError(f"what was measured of the noise is damaged: {error}") from error


def measure_noise(flux: Float32Array, ivar: Float32Array) -> NoiseMeasurement | None:
    """Measure the noise of spectra on one grid.

    Parameters
    ----------
    flux, ivar : (n_spectra, n_pixel) float32
        In any unit, at any level; a pixel of ivar = 0 is bad. `MOST_SPECTRA` or fewer are meant.

    Returns
    -------
    NoiseMeasurement or None
        None where it cannot be told: fewer than `LEAST_SPECTRA` with errors, or all of them of one
        signal-to-noise, so that noise and misfit are one.
    """
    used = np.flatnonzero(known_noise(ivar) & ((ivar > 0).mean(axis=1) > 0.5))
    if used.size < LEAST_SPECTRA or flux.shape[1] <= 4 * _N_LAG:
        return None
    level, sigma = _scaled(flux[used], ivar[used])
    rest, bases = _rest(level)
    slopes, errors = _slopes(rest, sigma)
    if not (slopes[0] > 0 and errors[1:].max() < _MOST_ERROR * slopes[0]):
        return None
    found = _before_components(slopes, bases)
    correlation = nearest_correlation(np.round(found[1:] / found[0], 3), _LEAST_CORRELATION)
    error, scale = float(errors[1] / slopes[0]), float(np.sqrt(found[0]))
    return NoiseMeasurement(correlation, error, scale, int(used.size))


def _scaled(flux: Float32Array, ivar: Float32Array) -> tuple[Float64Array, Float64Array]:
    """Return spectra of median 1, and their errors, both over the typical error of each pixel.

    Bad pixels are NaN. So no noisy end of the range decides alone.
    """
    good = ivar > 0
    level = np.nanmedian(np.where(good, flux, np.nan), axis=1).astype(np.float64)[:, None]
    level[level == 0] = 1.0
    with np.errstate(divide="ignore"):
        sigma = np.where(good, ivar.astype(np.float64) ** -0.5, np.nan) / np.abs(level)
    # A pixel that no star has weighs nothing, whatever it is divided by.
    typical = np.nanmedian(np.where(good.any(axis=0), sigma, 1.0), axis=0)
    return np.where(good, flux / level, np.nan) / typical, sigma / typical


def _rest(spectra: Float64Array) -> tuple[Float64Array, list[Float64Array]]:
    """Return what the components of the other half leave of each spectrum, and both bases."""
    rest, bases = np.empty_like(spectra), []
    half = np.arange(len(spectra)) % 2 == 0
    for mine in (half, ~half):
        other = spectra[~mine]
        known = np.isfinite(other)
        mean = np.where(known, other, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        apart = np.nan_to_num(other - mean)
        n = min(_N_COMPONENT, len(apart) // _STARS_PER_COMPONENT)
        size = len(apart)
        value, axes = eigh(apart @ apart.T, subset_by_index=(size - n, size - 1))
        real = value > 1e-9 * max(float(value[-1]), 1e-30)
        basis = (apart.T @ axes[:, real] / np.sqrt(value[real])).T
        off = spectra[mine] - mean
        rest[mine] = off - np.nan_to_num(off) @ basis.T @ basis
        bases.append(basis)
    return rest, bases


def _slopes(rest: Float64Array, sigma: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Slopes of the covariance at lags of 0 to `_N_LAG` pixels in the quoted one, and errors."""
    slopes, errors = np.empty(_N_LAG + 1), np.empty(_N_LAG + 1)
    size = np.nanmean(sigma**2, axis=1)
    for lag in range(_N_LAG + 1):
        end = rest.shape[1] - lag
        covariance = np.nanmean(rest[:, :end] * rest[:, lag:], axis=1)
        quoted = np.nanmean(
            np.where(np.isfinite(rest[:, lag:]), sigma[:, :end] * sigma[:, lag:], np.nan), axis=1
        )
        slopes[lag], errors[lag] = _robust_slope(quoted, covariance, size)
    return slopes, errors


def _robust_slope(x: Float64Array, y: Float64Array, size: Float64Array) -> tuple[float, float]:
    """Slope of a line whose scatter goes with `size`, and its error (White 1980)."""
    design = np.column_stack([np.ones(x.size), x])
    weight = size**-2
    for _ in range(_N_ROUND):
        part = design * weight[:, None]
        inverse = np.linalg.pinv(part.T @ design)
        off = y - design @ (inverse @ (part.T @ y))
        scatter = robust_sigma(off / size)
        weight = size**-2 * np.minimum(
            1.0, _HUBER * scatter / np.maximum(np.abs(off / size), 1e-30)
        )
    part = design * weight[:, None]
    inverse = np.linalg.pinv(part.T @ design)
    best = inverse @ (part.T @ y)
    spread = part * (y - design @ best)[:, None]
    covariance = inverse @ (spread.T @ spread) @ inverse
    return float(best[1]), float(np.sqrt(covariance[1, 1]))


def _before_components(slopes: Float64Array, bases: list[Float64Array]) -> Float64Array:
    """Covariance of the noise at each lag, of that of what components leave of it.

    A fit takes the part of the noise along the components, P = B^T B: of a covariance
    C = sum_l c_l S_l, S_l the matrix that is 1 where two pixels are l apart, it leaves
    (1 - P) C (1 - P), whose mean along a diagonal is linear in the c_l.
    """
    table = np.zeros((_N_LAG + 1, _N_LAG + 1))
    for basis in bases:
        n_pixel = basis.shape[1]
        for column in range(_N_LAG + 1):
            moved = _shifted(basis, column)
            both = (moved @ basis.T) @ basis
            for row in range(_N_LAG + 1):
                end = n_pixel - row
                one = np.sum(basis[:, :end] * moved[:, row:])
                other = np.sum(moved[:, :end] * basis[:, row:])
                taken = one + other - np.sum(basis[:, :end] * both[:, row:])
                table[row, column] += ((row == column) * end - taken) / (end * len(bases))
    return np.asarray(np.linalg.solve(table, slopes), dtype=np.float64)


def _shifted(basis: Float64Array, lag: int) -> Float64Array:
    """Return basis @ S_lag (n_component, n_pixel)."""
    if lag == 0:
        return basis
    out = np.zeros_like(basis)
    out[:, lag:] += basis[:, :-lag]
    out[:, :-lag] += basis[:, lag:]
    return out
