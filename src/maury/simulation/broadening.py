"""Broadening of spectra in Fourier space, and their interpolation to pixels."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import scipy.fft
import scipy.sparse
from numpy.typing import ArrayLike, NDArray
from scipy.special import j1

from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = ["broadened", "interpolation", "rotation_transfer", "transfer"]

_LIMB_DARKENING = 0.6
"""Of a linear law, usual for cool stars: chosen, not measured."""
_INTERPOLATION_POINTS = 6
"""Of Lagrange interpolation on a grid that oversamples the broadened flux."""


_GAP_STEPS = 4.0
"""Steps of a grid, as a multiple of the median, from which on there is a gap between arms."""
_LEAST_PIXELS = 4
"""Pixels below which a stretch is no spectrum but marks a gap; chosen."""
_PIECE_WIDTH = 0.08
"""Width of a piece in ln(lambda): over twice that of RAVE, v sin i is right to 4 % at its ends."""


def transfer(
    frequency: Float32Array, variance: Float64Array, rotation: Float64Array, rv: Float64Array
) -> NDArray[np.complex64]:
    """Fourier transform (n_star, n_frequency) of the broadening, at angular frequencies in s/km."""
    gauss = np.exp(np.float32(-0.5) * variance[:, None].astype(np.float32) * frequency**2)
    # The profiles are convolved, so that their transforms multiply.
    gauss *= rotation_transfer(frequency * rotation[:, None].astype(np.float32))
    phase = frequency * rv[:, None].astype(np.float32)
    out = np.empty(gauss.shape, dtype=np.complex64)
    # A shift by v is a phase; the two parts apart need no complex exponential.
    out.real = gauss * np.cos(phase)
    out.imag = -gauss * np.sin(phase)
    return out


def broadened(flux: AnyArray, rotation_kms: ArrayLike, wave_aa: Float64Array) -> Float32Array:
    """Broaden spectra (n_star, n_pixel) at their pixels by v sin i (n_star,).

    Pixels count as uniform in ln(lambda): over a window of 4 %, as RAVE's, v sin i is right to 2 %.
    Wider spectra, and arms with gaps between them, are taken piece by piece.
    """
    speed = np.asarray(rotation_kms, dtype=np.float32)[:, None]
    whole = np.asarray(flux)
    pieces = _pieces(wave_aa)
    if len(pieces) == 1:
        return _broadened(whole, speed, wave_aa)
    out = np.empty(whole.shape, dtype=np.float32)
    fastest = max(float(speed.max(initial=0.0)), 1.0)
    for first, last, low, high in pieces:
        step = SPEED_OF_LIGHT_KMS * np.log(wave_aa[last - 1] / wave_aa[first]) / (last - first - 1)
        # Lines of the next piece reach into this one, those of another arm do not.
        edge = int(np.ceil(fastest / step))
        start, stop = max(first - edge, low), min(last + edge, high)
        part = _broadened(whole[:, start:stop], speed, wave_aa[start:stop])
        out[:, first:last] = part[:, first - start : last - start]
    return out


def _pieces(wave_aa: Float64Array) -> list[tuple[int, int, int, int]]:
    """First and last pixel of each piece of a grid, and those of the arm that it is of."""
    log_wave = np.log(wave_aa)
    step = np.diff(log_wave)
    ends = [0, *(np.flatnonzero(step > _GAP_STEPS * np.median(step)) + 1), len(wave_aa)]
    found = []
    for low, high in pairwise(ends):
        if high - low < _LEAST_PIXELS:
            # A lone bad pixel marks the gap between two arms.
            found.append((low, high, max(low - _LEAST_PIXELS, 0), high + _LEAST_PIXELS))
            continue
        count = int(np.ceil((log_wave[high - 1] - log_wave[low]) / _PIECE_WIDTH))
        edges = np.linspace(low, high, max(count, 1) + 1).astype(int)
        found += [(a, b, low, high) for a, b in pairwise(edges)]
    return found


def _broadened(flux: AnyArray, speed: Float32Array, wave_aa: Float64Array) -> Float32Array:
    """Broaden spectra on a grid that counts as uniform in ln(lambda) by speeds (n_star, 1)."""
    n_pixel = np.shape(flux)[1]
    step = SPEED_OF_LIGHT_KMS * np.log(wave_aa[-1] / wave_aa[0]) / (n_pixel - 1)
    # Continued at both ends by as much as lines may reach, else the transform would join them.
    edge = int(np.ceil(max(float(speed.max(initial=0.0)), 1.0) / step))
    depth = np.pad(np.asarray(flux, np.float32) - 1, ((0, 0), (edge, edge)), mode="edge")
    size = scipy.fft.next_fast_len(depth.shape[1], real=True)
    frequency = (2.0 * np.pi * scipy.fft.rfftfreq(size, step)).astype(np.float32)
    transform = scipy.fft.rfft(depth, size, axis=1) * rotation_transfer(frequency * speed)
    out = scipy.fft.irfft(transform, size, axis=1)[:, edge : edge + n_pixel]
    return np.asarray(out + np.float32(1.0), dtype=np.float32)


def rotation_transfer(x: ArrayLike) -> AnyArray:
    """Fourier transform of Gray's rotation profile at x = angular frequency times v sin i.

    With limb darkening e: [2 (1 - e) J1(x) / x + 2 e (sin x - x cos x) / x^3] / (1 - e / 3).
    """
    values = np.asarray(x)
    # Below, the second term loses its digits; the series is exact to x^4 / 500.
    small = values < 0.3
    safe = np.where(small, 1.0, values)
    e = _LIMB_DARKENING
    disc = 2.0 * (1.0 - e) * j1(safe) / safe
    darkened = 2.0 * e * (np.sin(safe) - safe * np.cos(safe)) / safe**3
    second = ((1.0 - e) / 8.0 + e / 15.0) / (1.0 - e / 3.0)
    fourth = ((1.0 - e) / 192.0 + e / 420.0) / (1.0 - e / 3.0)
    series = 1.0 - second * values**2 + fourth * values**4
    full = (disc + darkened) / (1.0 - e / 3.0)
    return np.asarray(np.where(small, series, full), dtype=values.dtype)


def interpolation(wave_in_aa: Float64Array, wave_out_aa: Float64Array) -> Any:
    """Sparse Lagrange interpolation (n_out, n_in) through the six nearest input pixels.

    Parameters
    ----------
    wave_in_aa : (n_in,) float64
        Uniform in ln(lambda).
    wave_out_aa : (n_out,) float64
        Within it.
    """
    step = np.log(wave_in_aa[-1] / wave_in_aa[0]) / (wave_in_aa.size - 1)
    position = np.log(wave_out_aa / wave_in_aa[0]) / step
    half = _INTERPOLATION_POINTS // 2
    # Near the ends the stencil is moved inwards rather than cut.
    first = np.clip(
        np.floor(position).astype(int) - half + 1,
        0,
        wave_in_aa.size - _INTERPOLATION_POINTS,
    )
    offset = position - first
    weights = np.ones((position.size, _INTERPOLATION_POINTS))
    for i in range(_INTERPOLATION_POINTS):
        for j in set(range(_INTERPOLATION_POINTS)) - {i}:
            weights[:, i] *= (offset - j) / (i - j)
    index = first[:, None] + np.arange(_INTERPOLATION_POINTS)
    pointer = np.arange(0, index.size + 1, _INTERPOLATION_POINTS)
    shape = (position.size, wave_in_aa.size)
    data = (weights.ravel().astype(np.float32), index.ravel(), pointer)
    return scipy.sparse.csr_array(data, shape=shape)
