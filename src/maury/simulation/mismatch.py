"""How real stars differ from the theory behind the emulator: for simulations that are realistic."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.fft
from pydantic import BaseModel, ConfigDict, Field

from maury.io.arrays import Float32Array, Float64Array

__all__ = ["CALCIUM_AA", "REALISTIC_MISMATCH", "TheoryMismatch"]

CALCIUM_AA = (8498.02, 8542.09, 8662.14)
"""Air wavelengths of the Ca II triplet."""
_LEAST_FLUX = 1e-3
"""A power of the flux would be infinite at zero, where the emulator may undershoot."""
FWHM_PER_SIGMA = 2.0 * np.sqrt(2.0 * np.log(2.0))


class TheoryMismatch(BaseModel):
    """How real stars differ from the theory behind the emulator: alike in all stars but for Ca II.

    The default is no difference. `REALISTIC_MISMATCH` holds differences of a realistic size.

    Attributes
    ----------
    line_strength : float
        Rms over wavelength of the relative change e(lambda) of line strength: flux ** (1 + e).
    scale_aa : float
        Full width at half maximum of the kernel that makes e smooth, angstrom.
    ca_core : float
        Mean relative deepening of the cores of the Ca II triplet.
    ca_core_scatter : float
        Star-to-star standard deviation of that deepening.
    ca_core_width_aa : float
        Gaussian sigma of a core, angstrom.
    seed : int
        Seed of e(lambda).
    alike : bool
        Whether e is the same in all stars, as theory errs. Otherwise each star has its own, so that
        a sample shows how far a theory may err that nobody has compared with the sky.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    line_strength: float = Field(default=0.0, ge=0.0, le=0.5)
    scale_aa: float = Field(default=25.0, gt=0.0)
    ca_core: float = Field(default=0.0, ge=-0.5, le=0.5)
    ca_core_scatter: float = Field(default=0.0, ge=0.0, le=0.5)
    ca_core_width_aa: float = Field(default=0.8, gt=0.0)
    seed: int = Field(default=0, ge=0)
    alike: bool = True

    @property
    def absent(self) -> bool:
        """Whether stars are as the theory."""
        return self.line_strength == 0.0 and self.ca_core == 0.0 and self.ca_core_scatter == 0.0

    def apply(
        self, flux: Float32Array, wave_aa: Float64Array, rng: np.random.Generator
    ) -> Float32Array:
        """Change emulated flux (n_star, n) on its wavelengths (n,) in air; cores star by star."""
        depth = self.ca_core + self.ca_core_scatter * np.asarray(rng.standard_normal(len(flux)))
        power, core = _curves(self, wave_aa.tobytes())
        if not self.alike:
            power = _exponent(self, wave_aa, rng.standard_normal(flux.shape))
        changed = np.maximum(flux, np.float32(_LEAST_FLUX)) ** power
        return np.asarray(changed * (1.0 - depth[:, None] * core), dtype=np.float32)


@lru_cache(maxsize=4)
def _curves(mismatch: TheoryMismatch, wave_aa: bytes) -> tuple[Float32Array, Float32Array]:
    """Exponent of the flux, and profile of the Ca II cores, both (n,)."""
    wave = np.frombuffer(wave_aa, dtype=np.float64)
    # The same in every spectrum: theory errs alike for all stars.
    white = np.random.default_rng(mismatch.seed).standard_normal(wave.size)
    distance = (wave - np.array(CALCIUM_AA)[:, None]) / mismatch.ca_core_width_aa
    core = np.exp(-0.5 * distance**2).sum(axis=0)
    return _exponent(mismatch, wave, white), core.astype(np.float32)


def _exponent(mismatch: TheoryMismatch, wave: Float64Array, white: Float64Array) -> Float32Array:
    """Exponents (..., n) of the flux from white noise (..., n)."""
    centre = wave - wave.mean()
    kernel = np.exp(-0.5 * (FWHM_PER_SIGMA * centre / mismatch.scale_aa) ** 2)
    # Smoothed in Fourier space; that the ends meet does not matter for a random curve.
    smooth = scipy.fft.irfft(
        scipy.fft.rfft(white) * scipy.fft.rfft(np.fft.ifftshift(kernel)), wave.size
    )
    rms = np.sqrt(np.mean(smooth**2, axis=-1, keepdims=True))
    power: Float32Array = (1.0 + mismatch.line_strength * smooth / rms).astype(np.float32)
    return power


REALISTIC_MISMATCH = TheoryMismatch(line_strength=0.08, ca_core=0.1, ca_core_scatter=0.05)
