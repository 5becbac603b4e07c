"""What of the coefficients of a polynomial in many pixels is signal, and what is noise.

Coefficients of orthogonal terms, fitted to a few thousand noisy spectra, each hold the noise of one
spectrum. What they are without it is estimated from what they have in common, in three steps:

1. Along the directions in which stars scatter most about the polynomial (continuum, broadening,
   elements that are no labels), coefficients are known worst: each of these is shrunk by itself.
2. Labels that shape all lines together change a spectrum in few ways, so that their coefficients
   are a matrix of low rank: its singular values are shrunk (Gavish & Donoho 2017, IEEE Trans. Inf.
   Theory 63, 2137, eq. 7).
3. The rest is large where lines are, and terms of one label share these places: its local power is
   a factor of the place times one of the term. How many places have which power is estimated from
   all of them, without assuming a form (Kiefer & Wolfowitz 1956, Ann. Math. Stat. 27, 887).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter1d

from maury.io.arrays import BoolArray, Float32Array, Float64Array, IndexArray
from maury.spectra.noise import noise_kernel

__all__ = ["Scatter", "noise_spectra", "principal_components", "shrunk"]

_SMOOTH_PIXELS = 1.3
"""Sigma of the smoothing of coefficients: below the line spread of any spectrograph, whose lines
are two pixels wide or more; what is sharper stays where it is significant."""
_WINDOW_PIXELS = 4.0
"""Sigma of the window over which a coefficient is compared with its noise: about one line. With 2.5
and 6 errors of coefficients were equal to one percent on a simulated survey."""
_NOISE_ROWS = 200
"""Spectra of noise that tell how much local power scatters, to some percent; chosen."""
_POWERS: Float64Array = np.r_[0.0, np.geomspace(0.02, 1e5, 45)]
"""Variance of a signal over that of the noise: of less, next to nothing is kept; spaced by 40 %."""
_TERM_FACTORS: Float64Array = np.r_[0.0, np.geomspace(0.01, 100.0, 30)]
"""Power of a term over that of the others of its group; spaced by 37 %."""
_ROUNDS, _STEPS = 4, 40
"""Rounds of factors of terms, and steps of expectation and maximisation in each: more changed the
errors of coefficients by less than a percent."""
_LEAST_ROWS = 3
"""Of a matrix with fewer rows, no rank is low."""


@dataclass(frozen=True, eq=False)
class Scatter:
    """How spectra scatter about a polynomial, beyond their noise and with it.

    Attributes
    ----------
    residual : (n_star, n_pixel) float32
        In units of the noise of each pixel.
    direction : (n_mode, n_pixel) float32
        Orthonormal directions in which they scatter more than noise does.
    variance : (n_mode,) float64
        Along these, noise included.
    """

    residual: Float32Array
    direction: Float32Array
    variance: Float64Array


def noise_spectra(
    shape: tuple[int, int], correlation: Sequence[float], *, seed: int = 0
) -> Float32Array:
    """Noise of unit variance (n_star, n_pixel), correlated from pixel to pixel."""
    kernel = noise_kernel(tuple(correlation)) if len(correlation) else np.ones(1)
    rng = np.random.default_rng(seed)
    white = rng.standard_normal((shape[0], shape[1] + kernel.size - 1), dtype=np.float32)
    noise = sum(
        np.float32(share) * white[:, lag : lag + shape[1]] for lag, share in enumerate(kernel)
    )
    return np.asarray(noise)


def principal_components(white: Float32Array, count: int) -> tuple[Float64Array, Float32Array]:
    """Largest variances (count,) of white residuals, and their directions (count, n_pixel)."""
    n_star, n_pixel = white.shape
    if n_star <= n_pixel:
        value, vector = np.linalg.eigh((white @ white.T).astype(np.float64))
        last = slice(-min(count, n_star), None)
        largest = value[last][::-1]
        rotated = vector[:, last][:, ::-1].T.astype(np.float32) @ white
        size = np.sqrt(np.maximum(largest, 1e-12))[:, None].astype(np.float32)
        return largest / n_star, np.asarray(rotated / size)
    value, vector = np.linalg.eigh((white.T @ white).astype(np.float64))
    last = slice(-min(count, n_pixel), None)
    return value[last][::-1] / n_star, np.asarray(vector[:, last][:, ::-1].T, dtype=np.float32)


def shrunk(
    signal: Float64Array,
    scatter: Scatter,
    *,
    groups: Sequence[IndexArray],
    together: BoolArray,
    correlation: Sequence[float],
) -> Float64Array:
    """Coefficients (n_term, n_pixel) without their noise.

    Parameters
    ----------
    signal : (n_term, n_pixel) float64
        Coefficients of orthonormal terms, in the units of `scatter`, whose spectra they are of.
    scatter : Scatter
        Of these spectra about the polynomial.
    groups : sequence of int arrays
        Numbers of the terms that share the places of their lines; each term is in one.
    together : (n_term,) bool
        Terms of labels that shape all lines together.
    correlation : sequence of float
        Autocorrelation of the noise at lags of 1, 2, ... pixels.
    """
    direction = scatter.direction.astype(np.float64)
    along = signal @ direction.T
    rest = signal - along @ direction
    single = scatter.residual @ scatter.direction.T
    residual = np.asarray(scatter.residual - single @ scatter.direction, dtype=np.float32)
    low: Float64Array = np.zeros_like(rest)
    if np.count_nonzero(together) >= _LEAST_ROWS:
        size = np.sqrt(np.maximum(np.mean(residual**2, axis=0, dtype=np.float64), 1e-12))
        low[together] = _of_low_rank(rest[together] / size, correlation) * size
    kept: Float64Array = low + _local(rest - low, residual, groups, correlation)
    if len(direction):
        power = along**2 / scatter.variance
        kept_share = [_shares(row[None], 1.0)[0] for row in power]
        kept += (along * np.array(kept_share)) @ direction
    return np.asarray(kept)


def _of_low_rank(signal: Float64Array, correlation: Sequence[float]) -> Float64Array:
    """Matrix of low rank (n, n_pixel) nearest to what a noisy one is without its noise."""
    left, value, right = np.linalg.svd(signal, full_matrices=False)
    noise = np.linalg.svd(noise_spectra(signal.shape, correlation), compute_uv=False)
    # Noise that pixels share is as white noise in fewer of them: its singular values tell in how
    # many, as their mean square and their largest differ by (1 + sqrt(rows / pixels))^2.
    unit = np.sqrt(np.mean(noise.astype(np.float64) ** 2))
    ratio = float(noise[0] / unit - 1.0)
    scaled = value / unit
    inside = np.maximum((scaled**2 - ratio**2 - 1.0) ** 2 - 4.0 * ratio**2, 0.0)
    size = np.where(scaled > 1.0 + ratio, np.sqrt(inside) / np.maximum(scaled, 1e-12), 0.0)
    return np.asarray((left * (size * unit)) @ right)


def _local(
    signal: Float64Array,
    residual: Float32Array,
    groups: Sequence[IndexArray],
    correlation: Sequence[float],
) -> Float64Array:
    """Coefficients (n_term, n_pixel), shrunk by their power over about a line.

    What is as broad as the line spread, and what is sharper, each by itself.
    """
    out = np.zeros_like(signal)
    noise = noise_spectra((_NOISE_ROWS, signal.shape[1]), correlation)
    smooth = [gaussian_filter1d(x, _SMOOTH_PIXELS, axis=1) for x in (signal, residual, noise)]
    sharp = [x - y for x, y in zip((signal, residual, noise), smooth, strict=True)]
    for part, scatter, pure in (smooth, sharp):
        variance = np.maximum(np.mean(scatter**2, axis=0, dtype=np.float64), 1e-12)
        power = gaussian_filter1d(part**2 / variance, _WINDOW_PIXELS, axis=1)
        flat = gaussian_filter1d(pure.astype(np.float64) ** 2, _WINDOW_PIXELS, axis=1)
        # A mean of so many squares of normal numbers scatters as much.
        freedom = 2.0 * flat.mean() ** 2 / max(float(flat.var()), 1e-12)
        for group in groups:
            out[group] += part[group] * _shares(power[group], freedom)
    return out


def _shares(power: Float64Array, freedom: float) -> Float64Array:
    """Share of signal (n_term, n_place) in local powers, which are 1 where all is noise.

    The variance at a place is 1 + (factor of the term) (power of the place); `freedom` squares of
    normal numbers make up each of the powers. The factors are those of greatest likelihood.
    """
    factor = np.ones(len(power))
    chance = np.full(_POWERS.size, 1.0 / _POWERS.size)
    last = _ROUNDS - 1 if len(power) > 1 else 0
    for turn in range(last + 1):
        likely = _likelihood(power, factor, freedom)
        for _ in range(_STEPS):
            chance = _posterior(likely, chance).mean(axis=0)
        place = _posterior(likely, chance)
        if turn < last:
            factor = _factors(power, place)
    variance = factor[:, None] * _POWERS
    return np.asarray((variance / (1.0 + variance)) @ place.T)


def _likelihood(power: Float64Array, factor: Float64Array, freedom: float) -> Float64Array:
    """Likelihood (n_place, n_power) of all terms at each place, the largest being 1."""
    log = np.zeros((power.shape[1], _POWERS.size))
    for own, size in zip(power, factor, strict=True):
        variance = 1.0 + size * _POWERS
        log -= 0.5 * freedom * (np.log(variance) + own[:, None] / variance)
    return np.asarray(np.exp(log - log.max(axis=1, keepdims=True)))


def _posterior(likely: Float64Array, chance: Float64Array) -> Float64Array:
    found = likely * chance
    return np.asarray(found / found.sum(axis=1, keepdims=True))


def _factors(power: Float64Array, place: Float64Array) -> Float64Array:
    """Factor of each term (n_term,) of greatest likelihood, given the powers of the places."""
    variance = 1.0 + _TERM_FACTORS[:, None] * _POWERS
    expected = np.log(variance) @ place.sum(axis=0)
    mean = (1.0 / variance) @ (place.T @ power.T)
    return np.asarray(_TERM_FACTORS[np.argmin(expected[:, None] + mean, axis=0)])
