"""Tests of residuals: does a spectrum fit the one computed for its labels, and if not, how.

Pure functions of (n_star, n_pixel) arrays, and `VelocityTest`, which correlates. What is normal is
learnt elsewhere (`maury.prediction.coverage`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike
from scipy.linalg import cholesky_banded, solve_banded, solveh_banded

from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, IndexArray
from maury.simulation.broadening import rotation_transfer
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = [
    "CALCIUM_AA",
    "PASCHEN_AA",
    "VelocityTest",
    "chi_square",
    "continuum_terms",
    "line_profile",
    "matched_filter",
    "worst_pixel",
]

CALCIUM_AA = (8498.02, 8542.09, 8662.14)
"""Air wavelengths of the Ca II triplet."""
PASCHEN_AA = (8467.25, 8598.39, 8750.47)
"""Air wavelengths of the Paschen lines 17, 14 and 12, which no Ca II line blends."""


_TAPER = 0.04
"""Part of the spectrum at each end over which it fades, so that cut lines do not correlate."""
_ROTATIONS_KMS = (20.0, 35.0, 55.0, 80.0, 120.0, 180.0)
"""V sin i of the broadenings tried, each some 1.5 times the last: chosen."""
_BLOCK = 1024
"""Spectra correlated together, which bounds the memory."""
_WHITENED_PIXELS = 48
"""Pixels of a block of the whitening matrix, beyond whose band its elements are left out."""
_NEGLIGIBLE = 1e-9
"""Elements below this count as 0: less than the rounding of float32."""


def chi_square(
    scaled: ArrayLike, good: ArrayLike, *, noise_correlation: Sequence[float]
) -> Float64Array:
    """Return chi-square per pixel, r^T C^-1 r / n, of residuals whose noise is correlated.

    Parameters
    ----------
    scaled : (n_star, n_pixel) float
        Residual over its standard deviation.
    good : (n_star, n_pixel) bool
        Pixels that count. The others are left out of C, too.
    noise_correlation : sequence of float
        Correlation of pixels 1, 2, ... apart.

    Returns
    -------
    (n_star,) float64
        NaN where no pixel is good.
    """
    used = np.asarray(good, dtype=bool)
    residual = np.where(used, scaled, 0.0).astype(np.float32)
    correlation = tuple(float(value) for value in noise_correlation)
    whole = used.all(axis=1)
    total = np.empty(len(used))
    # Spectra without gaps share one C, which is factorised once; gaps make it each star's own.
    total[whole] = _whole_chi_square(residual[whole], correlation)
    total[~whole] = _cut_chi_square(residual[~whole], used[~whole], correlation)
    count = used.sum(axis=1)
    return np.asarray(np.where(count > 0, total / np.maximum(count, 1), np.nan))


def _whole_chi_square(residual: Float32Array, correlation: tuple[float, ...]) -> Float64Array:
    """Sum of squares (n_star,) of the whitened residual r U^-1, where C = U^T U."""
    total = np.zeros(len(residual))
    for pixels, whitener in _whiteners(residual.shape[1], correlation):
        white = residual[:, pixels] @ whitener
        total += np.einsum("np,np->n", white, white)
    return total


@lru_cache(maxsize=4)
def _whiteners(
    n_pixel: int, correlation: tuple[float, ...]
) -> tuple[tuple[slice, Float32Array], ...]:
    """U^-1 in blocks: the pixels that go in, and the matrix (n_in, n_out).

    Its elements fall off geometrically from the diagonal; the negligible ones are left out.
    """
    root = cholesky_banded(_bands(n_pixel, correlation))
    inverse = solve_banded((0, len(root) - 1), root, np.eye(n_pixel))
    reach = int((np.arange(n_pixel) - np.argmax(np.abs(inverse) > _NEGLIGIBLE, axis=0)).max())
    blocks = []
    for start in range(0, n_pixel, _WHITENED_PIXELS):
        pixels = slice(max(0, start - reach), min(start + _WHITENED_PIXELS, n_pixel))
        block = inverse[pixels, start : pixels.stop]
        blocks.append((pixels, np.ascontiguousarray(block, dtype=np.float32)))
    return tuple(blocks)


def _cut_chi_square(
    residual: Float32Array, used: BoolArray, correlation: tuple[float, ...]
) -> Float64Array:
    """Sum r^T C^-1 r (n_star,), with the pixels not used cut from each star's own C.

    All stars make one banded system, in which the last pixel of one and the first of the next are
    independent.
    """
    if not len(residual):
        return np.zeros(0)
    bands = np.tile(_bands(residual.shape[1], correlation), len(residual))
    joined, right = used.ravel(), residual.ravel().astype(np.float64)
    for lag in range(1, len(bands)):
        # A pixel that is cut keeps its diagonal of 1, and with a residual of 0 adds nothing.
        bands[len(bands) - 1 - lag, lag:] *= joined[lag:] & joined[:-lag]
    solved = solveh_banded(bands, right, overwrite_ab=True, check_finite=False)
    return np.asarray((right * solved).reshape(residual.shape).sum(axis=1))


def _bands(n_pixel: int, correlation: Sequence[float]) -> Float64Array:
    """Upper bands of the Toeplitz correlation matrix, as LAPACK stores them."""
    lags = np.r_[1.0, np.asarray(correlation, dtype=np.float64)][:n_pixel]
    bands = np.zeros((lags.size, n_pixel))
    for lag, value in enumerate(lags):
        bands[lags.size - 1 - lag, lag:] = value
    return bands


def worst_pixel(scaled: ArrayLike, good: ArrayLike) -> IndexArray:
    """Return the middle pixel (n_star,) of the three that stand out most from zero together.

    A line that is wrong is wrong in several pixels; a single noisy one should not win.
    Arguments as of `chi_square`.
    """
    residual = np.where(good, scaled, 0.0).astype(np.float32)
    total = residual.copy()
    total[:, 1:] += residual[:, :-1]
    total[:, :-1] += residual[:, 1:]
    worst: IndexArray = np.argmax(np.abs(total, out=total), axis=1)
    return worst


def line_profile(
    wave_aa: Float64Array, lines_aa: Sequence[float], *, sigma_aa: float
) -> Float64Array:
    """Return Gaussians of height 1 at lines (n_pixel,); zero where the grid holds none of them."""
    distance = (wave_aa - np.array(lines_aa)[:, None]) / sigma_aa
    inside = (np.array(lines_aa) > wave_aa[0]) & (np.array(lines_aa) < wave_aa[-1])
    # Ten sigma off counts as far: beyond, the exponential would underflow.
    profile = (np.exp(-0.5 * np.minimum(distance**2, 100.0)) * inside[:, None]).sum(axis=0)
    return np.asarray(np.where(profile > 1e-3, profile, 0.0))


def matched_filter(residual: AnyArray, weight: AnyArray, profile: Float64Array) -> Float64Array:
    """Return the height of `profile` in the residual over its formal error, (n_star,).

    Parameters
    ----------
    residual, weight : (n_star, n_pixel) float32 or float64
        Residual flux, and inverse variance, 0 for bad pixels.
    profile : (n_pixel,) float64

    Returns
    -------
    (n_star,) float64
        NaN where no good pixel lies in the profile.
    """
    information = weight @ (profile**2).astype(weight.dtype)
    found = (weight * residual) @ profile.astype(weight.dtype)
    safe = np.where(information > 0, information, np.nan)
    return np.asarray(found / np.sqrt(safe), dtype=np.float64)


def continuum_terms(residual: AnyArray, weight: AnyArray, *, degree: int) -> Float64Array:
    """Fit Legendre polynomials up to `degree` over the pixels, (n_star, degree + 1).

    Arguments as of `matched_filter`. NaN where too few pixels are good.
    """
    n_pixel = residual.shape[1]
    basis = np.polynomial.legendre.legvander(np.linspace(-1.0, 1.0, n_pixel), degree)
    first, second = np.triu_indices(degree + 1)
    basis = basis.astype(weight.dtype)
    products = weight @ (basis[:, first] * basis[:, second])
    normal = np.empty((len(residual), degree + 1, degree + 1))
    normal[:, first, second] = products
    normal[:, second, first] = products
    # Four pixels a term: with hardly more pixels than terms a polynomial follows the noise.
    enough = (weight > 0).sum(axis=1) > 4 * (degree + 1)
    normal[~enough] = np.eye(degree + 1)
    # A millionth of the weight keeps a spectrum with a wide gap solvable.
    normal += 1e-6 * normal[:, :1, :1] * np.eye(degree + 1)
    right = (weight * residual) @ basis
    terms = np.linalg.solve(normal, right[..., None])[..., 0]
    return np.asarray(np.where(enough[:, None], terms, np.nan))


@dataclass(frozen=True)
class VelocityTest:
    """Cross-correlation of spectra with templates, on a grid uniform in ln(lambda).

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
        Wavelengths of the spectra.
    reach_kms, pair_reach_kms : float
        Largest shift searched, for one set of lines and for each of two.
    least_separation_kms : float
        Of two sets of lines; nearer ones cannot be told from one broad set.
    """

    wave_aa: Float64Array
    reach_kms: float = 500.0
    pair_reach_kms: float = 260.0
    least_separation_kms: float = 45.0

    @cached_property
    def step_kms(self) -> float:
        """Velocity of one step of the correlation."""
        span = np.log(self.wave_aa[-1] / self.wave_aa[0])
        return float(SPEED_OF_LIGHT_KMS * span / (self.wave_aa.size - 1))

    @cached_property
    def _resampling(self) -> list[tuple[slice, int, Float32Array]]:
        """Linear interpolation to the logarithmic grid.

        In runs of pixels that have the same offset to their left neighbour on the old grid: the
        run, its first left neighbour, and the weight of the right one.
        """
        n_pixel = self.wave_aa.size
        # A velocity shifts ln(lambda) by the same step everywhere, so that one correlation serves
        # all lines.
        target = np.geomspace(self.wave_aa[0], self.wave_aa[-1], n_pixel)
        position = np.interp(target, self.wave_aa, np.arange(n_pixel))
        left = np.clip(np.floor(position).astype(int), 0, n_pixel - 2)
        part = (position - left).astype(np.float32)
        bounds = [0, *(np.flatnonzero(np.diff(left) != 1) + 1), n_pixel]
        return [
            (slice(start, stop), int(left[start]), part[start:stop])
            for start, stop in pairwise(bounds)
        ]

    @cached_property
    def _taper(self) -> Float32Array:
        n_pixel = self.wave_aa.size
        edge = np.minimum(np.arange(n_pixel), np.arange(n_pixel)[::-1]) / (_TAPER * n_pixel)
        return np.asarray(np.minimum(edge, 1.0), dtype=np.float32)

    def measure(self, flux: Float32Array, template: Float32Array) -> tuple[Float64Array, ...]:
        """Shift of each spectrum against its template, and gain of a second set of lines.

        The gain is that of the best pair of shifted templates over the best single one, in the
        manner of TODCOR (Zucker & Mazeh 1994, ApJ 420, 806), with one template for both stars:
        the drop in squared residual over the residual that is left.

        Parameters
        ----------
        flux, template : (n_star, n_pixel) float32
            Continuum near 1, finite.

        Returns
        -------
        shift_kms, gain : (n_star,) float64
            Positive shifts are away from the observer. NaN for a template without lines.
        """
        blocks = [
            self._measure(flux[start : start + _BLOCK], template[start : start + _BLOCK])
            for start in range(0, max(len(flux), 1), _BLOCK)
        ]
        return tuple(np.concatenate(part) for part in zip(*blocks, strict=True))

    def broadened(self, flux: Float32Array, template: Float32Array) -> Float64Array:
        """Gain (n_star,) by rotation, where `measure` gives that by a second set of lines.

        Arguments as of `measure`; the best of a few rotational broadenings of the template.
        """
        reach = min(int(self.pair_reach_kms / self.step_kms), self.wave_aa.size // 4)
        size = scipy.fft.next_fast_len(self.wave_aa.size + 2 * reach, real=True)
        depth, model = (self._depth(x, size) for x in (flux, template))
        seen, known = (scipy.fft.rfft(x, axis=1) for x in (depth, model))
        frequency = 2.0 * np.pi * scipy.fft.rfftfreq(size, self.step_kms)
        explained = []
        for speed in (0.0, *_ROTATIONS_KMS):
            blurred = known * rotation_transfer(frequency * speed)
            cross = scipy.fft.irfft(seen * blurred.conj(), size, axis=1)
            cross = np.hstack([cross[:, : reach + 1], cross[:, -reach:]])
            power = scipy.fft.irfft(np.square(np.abs(blurred)), size, axis=1)[:, 0]
            height = np.clip(cross.max(axis=1), 0.0, None)
            explained.append(np.square(height) / np.maximum(power, 1e-12))
        one, best = explained[0], np.max(explained, axis=0)
        total = np.einsum("np,np->n", depth, depth).astype(np.float64)
        left = np.maximum(total - best, 1e-6 * total + 1e-12)
        return np.asarray((best - one) / left, dtype=np.float64)

    def _measure(self, flux: Float32Array, template: Float32Array) -> tuple[Float64Array, ...]:
        reach = min(int(self.reach_kms / self.step_kms), self.wave_aa.size // 4)
        pair = min(int(self.pair_reach_kms / self.step_kms), reach)
        # Padded by the reach on both sides, else the correlation would wrap around the ends.
        size = scipy.fft.next_fast_len(self.wave_aa.size + 2 * reach, real=True)
        depth, model = (self._depth(x, size) for x in (flux, template))
        seen, known = (scipy.fft.rfft(x, axis=1) for x in (depth, model))
        product = np.multiply(seen, known.conj(), out=seen).view(np.float32)
        cross = product @ _inverse_transform(size, -reach, reach)
        strength = np.square(known.view(np.float32), out=known.view(np.float32))
        auto = strength @ _inverse_transform(size, 0, 2 * pair, squared=True)
        power = np.where(auto[:, 0] > 0, auto[:, 0], np.float32(np.nan))
        # The added 0 makes the shift NaN where the template has no lines to correlate with.
        shift = self.step_kms * (_peak(cross) - reach) + 0.0 * power
        cross = cross[:, reach - pair : reach + pair + 1] / np.sqrt(power)[:, None]
        one = np.square(np.clip(cross.max(axis=1), 0.0, None))
        least = int(np.ceil(self.least_separation_kms / self.step_kms))
        two = _best_pair(cross.T, (auto / power[:, None]).T, least)
        total = np.einsum("np,np->n", depth, depth).astype(np.float64)
        # A template that fits to the rounding would otherwise divide by 0.
        left = np.maximum(total - np.maximum(one, two), 1e-6 * total + 1e-12)
        return shift.astype(np.float64), np.maximum(two - one, 0.0) / left

    def _depth(self, flux: Float32Array, size: int) -> Float32Array:
        """Tapered depth below the mean on the logarithmic grid (n, size), filled up with zeros."""
        filled = np.zeros((len(flux), size), dtype=np.float32)
        depth = filled[:, : self.wave_aa.size]
        source = np.float32(1.0) - flux
        for run, first, part in self._resampling:
            last = first + part.size
            np.multiply(source[:, first:last], np.float32(1.0) - part, out=depth[:, run])
            depth[:, run] += source[:, first + 1 : last + 1] * part
        depth -= depth.mean(axis=1, keepdims=True)
        depth *= self._taper
        return filled


@lru_cache(maxsize=8)
def _inverse_transform(size: int, first: int, last: int, *, squared: bool = False) -> Float32Array:
    """Inverse real Fourier transform of length `size` at lags `first` to `last`, as a matrix.

    From (real, imaginary) parts in turn; or, if `squared`, from their squares, both of which count
    as real. So few lags are wanted that this is cheaper than a whole transform.
    """
    frequency = np.arange(size // 2 + 1)
    angle = 2.0 * np.pi / size * frequency[:, None] * np.arange(first, last + 1)
    # A real transform leaves out the negative frequencies: all but the first and the Nyquist one
    # count twice.
    weight = np.where((frequency == 0) | (2 * frequency == size), 1.0, 2.0)[:, None] / size
    real = weight * np.cos(angle)
    imaginary = real if squared else -weight * np.sin(angle)
    return np.stack([real, imaginary], axis=1).reshape(-1, angle.shape[1]).astype(np.float32)


def _peak(cross: Float32Array) -> Float64Array:
    """Position (n_star,) of the maximum, between the samples by a parabola."""
    row = np.arange(len(cross))
    top = np.argmax(cross, axis=1)
    # At the ends of the search no parabola can be drawn: the sample itself is taken.
    middle = np.clip(top, 1, cross.shape[1] - 2)
    left, centre, right = (cross[row, middle + k] for k in (-1, 0, 1))
    bend = left - 2.0 * centre + right
    step = np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, 1.0), 0.0)
    return np.asarray(np.where(top == middle, middle + np.clip(step, -0.5, 0.5), top))


def _best_pair(cross: Float32Array, auto: Float32Array, least: int) -> Float32Array:
    """Largest squared projection (n_star,) on two shifted templates of positive strength.

    Both arguments are (n_lag, n_star), for speed.
    """
    cross, auto = np.ascontiguousarray(cross), np.ascontiguousarray(auto)
    best = np.zeros(cross.shape[1], dtype=np.float32)
    for apart in range(least, len(cross)):
        like = auto[apart]
        first, second = cross[:-apart], cross[apart:]
        a, b = first - like * second, second - like * first
        explained = a * first
        explained += b * second
        # A second set of lines in emission is no second star.
        explained *= np.minimum(a, b) > 0
        np.maximum(best, explained.max(axis=0) / (np.float32(1.0) - np.square(like)), out=best)
    return best
