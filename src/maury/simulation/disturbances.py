"""What a real survey has and its labelled sample hardly shows: a wider set of training stars.

Photometry that is noisy, blended or of another reddening; errors that are told, or not; spectra
with scattered light, fringes, lines stronger or weaker than theory has them, active or quiet cores.
Each is met by a share of the simulated stars, so that a network learns what it cannot rely on, and
quotes a larger error where it sees one of them.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from maury.io.arrays import Float32Array, Float64Array, Int64Array
from maury.simulation.xp_noise import blur_xp
from maury.spectra.observable_groups import error_input
from maury.spectra.observable_map import ObservableMap

__all__ = ["Disturbances", "disturb_flux", "disturb_observables"]

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Size = Annotated[float, Field(ge=0.0, le=10.0)]

_LEAST_FLUX = np.float32(1e-3)
"""A power of the flux would be infinite at zero, to which emission and noise may lead."""
_LEAST_PARALLAX = 0.05
"""Least ratio of an observed to the true parallax: a smaller one counts as not usable."""
_MAG_PER_RELATIVE_ERROR = 5.0 / np.log(10.0)
_TELLING_SCATTER = 0.15
"""Scatter of the logarithm of told errors about true ones: pipelines quote no better; chosen."""


class Disturbances(BaseModel):
    """Shares of simulated stars with each disturbance, and its size.

    Shares and sizes are chosen so that each fault of ``docs/explanation/robustness.md`` is met, and
    so rarely that clean stars lose little.

    Attributes
    ----------
    magnitude_rms : float
        Noise of every band, of the absolute magnitude by the parallax, and of A_V, in all stars.
    told, told_noisy : float
        Share of stars whose errors are told, and of these, the share with more noise than that.
    outlier : float
        Share of the other stars with noise that is not told: of some bands, the parallax or A_V.
    noise_mag, noise_parallax, noise_a_v : (float, float)
        Range of the errors, log-uniform: mag, relative, mag.
    blurred, noise_xp : float and (float, float)
        Share of stars whose XP coefficients are noisier than those of their like, and told so, and
        range of that factor, log-uniform: 12 is 5 mag of a star that photons limit.
    reddened, reddening_mag : float
        Share of stars behind more or less dust than their like, and its scale.
    blended, blend_mag : float
        Share of stars with a blend in neighbouring bands, and the most that it adds.
    scattered, scattered_light : float
        Share of stars with a zero level that is wrong, and its scale; continuum = 1.
    fringed, fringe_rms : float
        Share of stars with fringes, and the largest rms.
    lines, line_rms : float
        Share of stars whose lines are stronger and weaker than theory has them, and largest rms.
    cores, core_factor : float
        Share of stars whose Ca II cores scatter more than measured, and up to which factor.
    rotating, rotation_kms : float and (float, float)
        Share of stars that rotate unlike their kind, and range of v sin i, log-uniform.
    paired : float
        Share of stars with an unresolved companion (`maury.simulation.companions`).
    moving, velocity_kms : float
        Share of stars whose velocity is off by more than usual, and its scale.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    magnitude_rms: Size = 0.007
    told: Share = 0.5
    told_noisy: Share = 0.6
    outlier: Share = 0.1
    noise_mag: tuple[float, float] = (0.01, 0.5)
    noise_parallax: tuple[float, float] = (0.01, 0.5)
    noise_a_v: tuple[float, float] = (0.02, 0.6)
    blurred: Share = 0.12
    noise_xp: tuple[float, float] = (1.0, 12.0)
    reddened: Share = 0.2
    reddening_mag: Size = 0.4
    blended: Share = 0.03
    blend_mag: Size = 0.4
    scattered: Share = 0.08
    scattered_light: Size = 0.05
    fringed: Share = 0.04
    fringe_rms: Size = 0.03
    lines: Share = 0.06
    line_rms: Size = 0.2
    cores: Share = 0.1
    core_factor: float = Field(default=4.0, ge=1.0, le=10.0)
    rotating: Share = 0.03
    rotation_kms: tuple[float, float] = (8.0, 80.0)
    paired: Share = 0.08
    moving: Share = 0.03
    velocity_kms: float = Field(default=5.0, ge=0.0, le=50.0)

    @classmethod
    def none(cls) -> Disturbances:
        """Stars as those of the labelled sample: with its small noise, and nothing else."""
        shares = (
            "told",
            "outlier",
            "blurred",
            "reddened",
            "blended",
            "scattered",
            "fringed",
            "lines",
        )
        none = dict.fromkeys((*shares, "cores", "rotating", "paired", "moving"), 0.0)
        return cls.model_validate(none)


def disturb_observables(
    observables: Float64Array,
    mapping: ObservableMap,
    disturbances: Disturbances,
    rng: np.random.Generator,
) -> Float64Array:
    """Return observables with noise, and with the errors that are told of it.

    Parameters
    ----------
    observables : (n_star, n_observable) float64
        NaN where missing.
    mapping : ObservableMap
        Of these observables.
    disturbances : Disturbances
    rng : numpy Generator

    Returns
    -------
    (n_star, n_observable) float64
    """
    n_star, n_source = len(observables), len(mapping.names)
    if n_source == 0:
        return observables.copy()
    error = np.full((n_star, n_source), disturbances.magnitude_rms)
    told = rng.random(n_star) < disturbances.told
    noisy = rng.random(n_star) < np.where(told, disturbances.told_noisy, disturbances.outlier)
    _set_errors(error, mapping, disturbances, noisy, told, rng)
    parallax = mapping.number("parallax")
    change = error * rng.standard_normal((n_star, n_source))
    if parallax is not None:
        # The parallax is what errs by a normal distribution, not the magnitude.
        ratio = 1.0 + error[:, parallax] / _MAG_PER_RELATIVE_ERROR * rng.standard_normal(n_star)
        ratio = np.where(ratio > _LEAST_PARALLAX, ratio, np.nan)
        change[:, parallax] = _MAG_PER_RELATIVE_ERROR * np.log(ratio)
        error[:, parallax] /= ratio
    _redden(change, observables, mapping, disturbances, rng)
    _blend(change, mapping, disturbances, rng)
    responses = mapping.responses
    out = observables + np.nan_to_num(change) @ responses
    gone = np.isnan(change) @ (responses != 0).astype(float) > 0
    out[gone] = np.nan
    a_v = mapping.number("a_v")
    if a_v is not None:
        # An extinction does not turn negative by noise: catalogues cut it.
        columns = np.flatnonzero(responses[a_v] == 1.0)
        out[:, columns] = np.maximum(out[:, columns], 0.0)
    quoted = error * np.exp(_TELLING_SCATTER * rng.standard_normal(error.shape))
    blur_xp(out, mapping, share=disturbances.blurred, factors=disturbances.noise_xp, rng=rng)
    return _tell(out, quoted, told, mapping)


def _set_errors(
    error: Float64Array,
    mapping: ObservableMap,
    disturbances: Disturbances,
    noisy: np.ndarray,
    told: np.ndarray,
    rng: np.random.Generator,
) -> None:
    """Draw larger errors into `error` for the stars that are `noisy`."""
    n_star, n_source = error.shape
    ranges = {"parallax": disturbances.noise_parallax, "a_v": disturbances.noise_a_v}
    low, high = np.log(
        np.array([ranges.get(name, disturbances.noise_mag) for name in mapping.names]).T
    )
    # All bands of a star go together as a faint star's do, each with a factor of its own.
    common = low + (high - low) * rng.random((n_star, 1))
    drawn = np.exp(common + 0.3 * rng.standard_normal(error.shape))
    apart = np.exp(low + (high - low) * rng.random(error.shape))
    bands = np.isin(np.arange(n_source), mapping.bands)
    drawn = np.where(bands, drawn, apart)
    parallax = mapping.number("parallax")
    if parallax is not None:
        drawn[:, parallax] *= _MAG_PER_RELATIVE_ERROR
    # Of bands, parallax and A_V one or two may be bad and the others good; noise that is not told
    # is that of one of them, or of some bands.
    which = np.full(n_source, -1)
    which[bands] = 0
    for kind, name in enumerate(("parallax", "a_v"), start=1):
        number = mapping.number(name)
        if number is not None:
            which[number] = kind
    bad = rng.random((n_star, 3)) < 0.5
    bad[~told] = rng.integers(0, 3, (n_star, 1))[~told] == np.arange(3)
    chosen = bad[:, np.maximum(which, 0)] & (which >= 0)
    some = rng.random((n_star, n_source)) < rng.random((n_star, 1)) + 0.2
    chosen &= some | ~bands
    chosen &= noisy[:, None]
    error[chosen] = np.maximum(error, drawn)[chosen]


def _redden(
    change: Float64Array,
    observables: Float64Array,
    mapping: ObservableMap,
    disturbances: Disturbances,
    rng: np.random.Generator,
) -> None:
    """Add more or less dust to `change`, of all bands and A_V by the law."""
    n_star = len(change)
    rows = np.flatnonzero(rng.random(n_star) < disturbances.reddened)
    more = disturbances.reddening_mag * rng.standard_exponential(rows.size)
    more *= np.where(rng.random(rows.size) < 0.7, 1.0, -0.5)
    a_v = mapping.number("a_v")
    if a_v is None:
        more = np.abs(more)
    else:
        own = observables[rows][:, mapping.responses[a_v] == 1.0]
        known = np.nan_to_num(own[:, 0] if own.shape[1] else np.zeros(rows.size))
        more = np.maximum(more, -known)
    change[rows] += more[:, None] * mapping.extinction


def _blend(
    change: Float64Array,
    mapping: ObservableMap,
    disturbances: Disturbances,
    rng: np.random.Generator,
) -> None:
    """Brighten neighbouring bands in `change`, as a star within the beam of one survey does."""
    bands = mapping.bands
    rows = np.flatnonzero(rng.random(len(change)) < disturbances.blended)
    if bands.size == 0 or rows.size == 0:
        return
    first = rng.integers(0, bands.size, rows.size)
    last = np.where(rng.random(rows.size) < 0.5, bands.size, rng.integers(first, bands.size) + 1)
    place = np.arange(bands.size)
    within = (place >= first[:, None]) & (place < last[:, None])
    brighter = disturbances.blend_mag * rng.random((rows.size, 1))
    change[np.ix_(rows, bands)] -= within * brighter


def _tell(
    observables: Float64Array, error: Float64Array, told: np.ndarray, mapping: ObservableMap
) -> Float64Array:
    """Put errors into their columns, and NaN where they are not told or there is no value."""
    for source, column in enumerate(mapping.error_columns):
        if column < 0 or mapping.further[column]:
            continue
        values = error_input(error[:, source])
        there = np.isfinite(observables[:, mapping.responses[source] != 0]).any(axis=1)
        observables[:, column] = np.where(told & there, values, np.nan)
    return observables


def disturb_flux(
    flux: Float32Array, wave_aa: Float64Array, disturbances: Disturbances, rng: np.random.Generator
) -> Float32Array:
    """Return noise-free flux (n_star, n_pixel) with lines, zero level and fringes disturbed."""
    out = flux.copy()
    n_star = len(flux)

    def chosen(share: float) -> Int64Array:
        return np.flatnonzero(rng.random(n_star) < share)

    rows = chosen(disturbances.lines)
    if rows.size:
        exponent = np.float32(1.0) + _line_field(rows.size, wave_aa, disturbances.line_rms, rng)
        out[rows] = np.maximum(out[rows], _LEAST_FLUX) ** exponent
    rows = chosen(disturbances.scattered)
    if rows.size:
        level = disturbances.scattered_light * rng.standard_exponential((rows.size, 1))
        # Over-subtracted as well, by less: what is subtracted is fitted, and rarely too large.
        level *= np.where(rng.random((rows.size, 1)) < 0.75, 1.0, -0.5)
        level = np.clip(level, -0.2, 0.4).astype(np.float32)
        out[rows] = (out[rows] + level) / (np.float32(1.0) + level)
    rows = chosen(disturbances.fringed)
    if rows.size:
        rms, phase, period = rng.random((3, rows.size, 1), dtype=np.float32)
        wave = (wave_aa - wave_aa[0]).astype(np.float32)
        wavenumber = np.float32(2.0 * np.pi) / (8.0 + 32.0 * period)
        # A sine has rms 1 / sqrt(2).
        size = np.float32(disturbances.fringe_rms * np.sqrt(2.0)) * rms
        out[rows] *= 1.0 + size * np.sin(wave * wavenumber + np.float32(2.0 * np.pi) * phase)
    return out


def _line_field(
    n_star: int, wave_aa: Float64Array, largest_rms: float, rng: np.random.Generator
) -> Float32Array:
    """Relative change (n_star, n_pixel) of line strength, smooth over one scale for all of them."""
    # From single lines to a tenth of the window, log-uniform.
    step = wave_aa[1] - wave_aa[0]
    pixels = float(np.exp(rng.uniform(np.log(3.0 / step), np.log(40.0 / step))))
    n_knot = int(wave_aa.size / pixels) + 3
    place = np.arange(wave_aa.size) / pixels + rng.random()
    left = place.astype(np.int64)
    weight = (place - left).astype(np.float32)
    knots = rng.standard_normal((n_star, n_knot), dtype=np.float32)
    knots *= (largest_rms * rng.random((n_star, 1))).astype(np.float32)
    return np.asarray(knots[:, left] * (1 - weight) + knots[:, left + 1] * weight)
