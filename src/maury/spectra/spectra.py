"""A frozen batch of spectra on one wavelength grid."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import GridMismatch, LengthMismatch, WavelengthError
from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from maury.spectra.noise import check_correlation, known_noise

Medium = Literal["air", "vacuum"]


def check_wavelengths(wave_aa: ArrayLike, *, name: str = "wavelengths") -> Float64Array:
    """Return wavelengths as a read-only float64 array, strictly increasing.

    Parameters
    ----------
    wave_aa : (n_pixel,) array_like
        Wavelengths in angstrom.
    name : str
        How the message calls them.

    Raises
    ------
    WavelengthError
        If they are not one-dimensional, fewer than two, not finite, not positive, unsorted, or
        overlapping (equal neighbours).
    """
    wave = np.array(wave_aa, dtype=np.float64)
    if wave.ndim != 1 or wave.size < 2:
        raise WavelengthError(f"{name}: expected one row of at least 2 values, got {wave.shape}")
    if not np.all(np.isfinite(wave)) or wave[0] <= 0:
        raise WavelengthError(f"{name}: every value must be finite and positive")
    step = np.diff(wave)
    if np.any(step <= 0):
        pixel = int(np.argmax(step <= 0))
        kind = "overlapping" if step[pixel] == 0 else "unsorted"
        raise WavelengthError(
            f"{name}: {kind} at pixel {pixel} ({wave[pixel]:.3f} then {wave[pixel + 1]:.3f} "
            "angstrom); sort the grid, and merge overlapping arms first"
        )
    wave.setflags(write=False)
    return wave


ARM_GAP = 4.0
"""How many times its neighbours a step must be to part two arms."""


def arm_slices(wave_aa: Float64Array, *, gap: float = ARM_GAP) -> tuple[slice, ...]:
    """Return the pixels of each arm of a grid: stretches between gaps, the whole if it has none.

    A gap is a step of more than `gap` times the steps beside it. On a store's grid a guard
    pixel without weight stands at either side of it, so that pixel edges midway between centres
    are right for every other pixel.

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
        Increasing wavelengths.
    gap : float
    """
    step = np.diff(wave_aa)
    if step.size < 3:
        return (slice(0, wave_aa.size),)
    beside = np.full(step.size, np.inf)
    # At the ends there is no step on one side: a gap there would be a single pixel.
    beside[1:-1] = np.maximum(step[:-2], step[2:])
    edges = [0, *(np.flatnonzero(step > gap * beside) + 1).tolist(), wave_aa.size]
    return tuple(slice(a, b) for a, b in pairwise(edges))


def describe_grid(wave_aa: Float64Array, medium: str) -> str:
    """Return a grid in words, for example ``912 pixels, 8420.0-8784.4 angstrom (air)``."""
    return f"{wave_aa.size} pixels, {wave_aa[0]:.1f}-{wave_aa[-1]:.1f} angstrom ({medium})"


@dataclass(frozen=True)
class Spectra:
    """Spectra of many stars on one wavelength grid.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Wavelengths in angstrom, increasing.
    flux : (n_star, n_pixel) float32
        Flux; continuum = 1 where it is normalised. May be NaN where `ivar` is 0.
    ivar : (n_star, n_pixel) float32
        Inverse variance of `flux`; 0 marks a bad pixel. Never negative, never NaN. Where the noise
        is not known it is 1 in usable pixels, and operators make of it the inverse variance that
        the noise would then have: relative to the unknown one.
    medium : {"air", "vacuum"}
        Medium in which the wavelengths are given.
    noise_known : (n_star,) bool
        Whether `ivar` is that of the noise. If not given, it is not known where ivar is 1 in every
        usable pixel, which is how files that must hold an ivar say so.
    noise_correlation : tuple of float, optional
        Autocorrelation of the noise at lags of 1, 2, ... pixels; None if it is not known.
    """

    wave_aa: Float64Array
    flux: Float32Array
    ivar: Float32Array
    medium: Medium = "air"
    noise_known: BoolArray = field(default_factory=lambda: np.zeros(0, np.bool_))
    noise_correlation: tuple[float, ...] | None = None

    @classmethod
    def from_arrays(
        cls,
        wave_aa: ArrayLike,
        flux: ArrayLike,
        ivar: ArrayLike | None = None,
        *,
        medium: Medium = "air",
        noise_known: ArrayLike | None = None,
        noise_correlation: Sequence[float] | None = None,
    ) -> Self:
        """Check arrays at the door and mark unusable pixels.

        A pixel whose flux or ivar is not finite, or whose ivar is not positive, gets ivar = 0.

        Parameters
        ----------
        wave_aa : (n_pixel,) array_like
            Wavelengths in angstrom; a grid that descends is turned round with its spectra.
        flux : (n_star, n_pixel) array_like
            One spectrum a row; a single spectrum may be given as (n_pixel,).
        ivar : (n_star, n_pixel) array_like, optional
            Inverse variance. If not given the noise is not known, and ivar is 1 in every finite
            pixel.
        medium : {"air", "vacuum"}
            Medium of the wavelengths.
        noise_known : (n_star,) bool array_like, optional
            Whether `ivar` is that of the noise. If not given, it is not known in spectra whose
            ivar is 1 in every usable pixel.
        noise_correlation : sequence of float, optional
            Autocorrelation of the noise at lags of 1, 2, ... pixels, if it is known.

        Raises
        ------
        CorrelationError
            If no noise has that correlation.
        WavelengthError
            If the grid is neither increasing nor decreasing, or not finite.
        GridMismatch
            If flux has another number of pixels than the grid.
        LengthMismatch
            If flux and ivar differ in shape.
        """
        given = np.asarray(wave_aa, dtype=np.float64)
        # The order of pixels carries no information: red to blue is turned round.
        falling = given.ndim == 1 and given.size > 1 and bool(np.all(np.diff(given) < 0))
        wave = check_wavelengths(given[::-1] if falling else given)
        values = np.atleast_2d(np.array(flux, dtype=np.float32))
        if values.ndim != 2 or values.shape[1] != wave.size:
            raise GridMismatch(
                f"flux must be (n_star, {wave.size}) for {wave.size} wavelengths, "
                f"got {np.shape(flux)}; is it transposed?"
            )
        # Relative to a noise that nobody knows.
        weight = (
            np.ones_like(values)
            if ivar is None
            else np.atleast_2d(np.array(ivar, dtype=np.float32))
        )
        if weight.shape != values.shape:
            raise LengthMismatch(f"flux is {values.shape}, ivar {weight.shape}: they must be equal")
        # One test for all: an ivar that is not positive says that a pixel is bad, whatever its
        # flux.
        bad = ~np.isfinite(values) | ~np.isfinite(weight) | ~(weight > 0)
        weight[bad] = 0.0
        if noise_known is None:
            known = known_noise(weight) & (ivar is not None)
        else:
            known = np.array(noise_known, dtype=np.bool_)
        if known.shape != (len(values),):
            raise LengthMismatch(f"noise_known must be ({len(values)},), got {known.shape}")
        correlation = None if noise_correlation is None else check_correlation(noise_correlation)
        if falling:
            values, weight = (np.ascontiguousarray(one[:, ::-1]) for one in (values, weight))
        return cls(wave, values, weight, medium, known, correlation)

    def __post_init__(self) -> None:
        shape = (self.flux.shape[0], self.wave_aa.size)
        assert self.flux.shape == self.ivar.shape == shape, "spectra of inconsistent shapes"
        assert self.flux.dtype == self.ivar.dtype == np.float32, "flux and ivar must be float32"
        if self.noise_known.size != len(self):
            # The container is frozen; this is the only moment at which a default can be made.
            object.__setattr__(self, "noise_known", known_noise(self.ivar))

    def __len__(self) -> int:
        return int(self.flux.shape[0])

    @property
    def n_pixel(self) -> int:
        """Number of pixels."""
        return int(self.wave_aa.size)

    @property
    def good(self) -> BoolArray:
        """Usable pixels, shape ``(n_star, n_pixel)``."""
        return self.ivar > 0

    def replace(
        self,
        *,
        flux: Float32Array | None = None,
        ivar: Float32Array | None = None,
    ) -> Self:
        """Return a copy with another flux or ivar of the same stars on the same grid."""
        return replace(
            self,
            flux=self.flux if flux is None else flux,
            ivar=self.ivar if ivar is None else ivar,
        )

    def take(self, rows: Int64Array | slice) -> Self:
        """Return some rows; those of a slice share memory with these."""
        return replace(
            self,
            flux=self.flux[rows],
            ivar=self.ivar[rows],
            noise_known=self.noise_known[rows],
        )


def require_same_grid(
    expected_aa: Float64Array,
    got: Spectra,
    *,
    medium: str = "air",
    tolerance_aa: float = 0.01,
    what: str = "model",
    advice: str = "give spectra on this grid, or use a model made for theirs",
) -> None:
    """Raise `GridMismatch` unless `got` stands on the expected grid.

    Parameters
    ----------
    expected_aa : (n_pixel,) float64
        Expected wavelengths in angstrom.
    got : Spectra
        Spectra to check.
    medium : str
        Expected medium.
    tolerance_aa : float
        Largest difference allowed, in angstrom.
    what : str
        Who expects it, for the message.
    advice : str
        What to do, for the message.
    """
    same = (
        got.medium == medium
        and got.n_pixel == expected_aa.size
        and bool(np.all(np.abs(got.wave_aa - expected_aa) <= tolerance_aa))
    )
    if not same:
        raise GridMismatch(
            f"{what} expects {describe_grid(expected_aa, medium)}, "
            f"got {describe_grid(got.wave_aa, got.medium)}; {advice}"
        )
