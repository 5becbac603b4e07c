"""In which unit and medium wavelengths are: by what files say, by size, and by strong lines."""

import re
import warnings
from dataclasses import dataclass

import numpy as np

from maury.errors import WavelengthError
from maury.io.arrays import Float64Array
from maury.spectra.operators import SPEED_OF_LIGHT_KMS, air_to_vacuum
from maury.spectra.spectra import Medium
from maury.survey.guessing.document import Entry
from maury.survey.readers.grids import to_angstrom

LINES_AIR_AA = np.array(
    [
        *(3933.66, 3968.47, 4861.34, 5167.32, 5172.68, 5183.60),
        *(5889.95, 5895.92, 6562.80, 8498.02, 8542.09, 8662.14),
    ]
)
"""Ca II H and K, H beta, Mg b, Na D, H alpha and the Ca II triplet in air (NIST Atomic Spectra
Database): the strongest lines of stars from 4000 to 7000 K."""
_OPTICAL_AA = (2900.0, 12000.0)
"""Where most spectrographs on the ground work: tells angstrom from nanometres and micrometres."""
_LONGEST_AA = 55000.0
"""The red end of the M band."""
_MOST_LN = 12.0
"""Natural logarithm of three times that."""
_FARTHEST_KMS = 400.0
"""Beyond the velocities of nearly all stars of the Galaxy, and of air against vacuum."""
_STEP_KMS = 2.0
"""A tenth of what decides: finer steps change nothing; chosen."""
_AGREE_KMS = 25.0
"""A third of the 83 km/s between air and vacuum: nearer than this, the other one is far."""
_FEW = 10
"""Spectra below which the median may move with the stars themselves; chosen."""
_LEAST_DEPTH = 0.05
"""Depth of the median line, of the continuum, below which nothing was found; chosen."""


@dataclass(frozen=True)
class Told:
    """A unit: what `unit` and `log` of ``[wavelength]`` are, why, and whether that is doubtful."""

    unit: str | None
    log: bool
    why: str
    doubtful: bool = False

    def entries(self) -> list[Entry]:
        """Return the keys of ``[wavelength]``."""
        if self.unit is None and not self.log:
            return [Entry(why=self.why, doubtful=self.doubtful)]
        found = []
        if self.unit is not None:
            found.append(Entry("unit", self.unit, self.why, self.doubtful))
        if self.log:
            found.append(Entry("log", True, "" if found else self.why, self.doubtful))
        return found

    def angstrom(self, wave: Float64Array) -> Float64Array:
        """Return wavelengths in angstrom."""
        return to_angstrom(wave, self.unit, log=self.log)


def unit_of(wave: Float64Array, stated: str | None) -> Told:
    """Tell the unit of wavelengths (n_pixel,) by what the file states, else by their size."""
    wave = wave[np.isfinite(wave)]
    first, last = float(wave.min()), float(wave.max())
    span = f"wavelengths run from {first:.6g} to {last:.6g}"
    if stated:
        try:
            to_angstrom(wave[:1], stated)
            return Told(None, False, f"The file states the unit {stated!r}; {span}.")
        except WavelengthError:
            span += f" (the stated unit {stated!r} is no length)"
    low, high = _OPTICAL_AA
    if low <= first and last <= _LONGEST_AA:
        return Told("Angstrom", False, f"{span}: angstrom by their size.")
    if low / 10 <= first and last <= high / 10:
        return Told("nm", False, f"{span}: nanometres by their size.")
    if np.log10(low) <= first and last <= np.log10(high) and _uniform(wave):
        why = f"{span} in equal steps: log10 of angstrom by their size."
        return Told(None, True, why, doubtful=True)
    if low / 1e4 <= first and last <= _LONGEST_AA / 1e4:
        return Told("um", False, f"{span}: micrometres by their size.", doubtful=first > 2.0)
    if high / 10 <= last <= _LONGEST_AA / 10 and first >= low / 10:
        why = f"{span}: nanometres, unless they are angstrom of the ultraviolet."
        return Told("nm", False, why, doubtful=True)
    # exp of it: a bound on the exponent keeps nonsense from overflowing.
    if last < _MOST_LN and low <= np.exp(first) and np.exp(last) <= _LONGEST_AA:
        why = f"{span}: natural logarithms of angstrom? Write exp of them into the files."
        return Told("Angstrom", False, why, doubtful=True)
    why = f"{span}: in which unit? None fits well."
    return Told("Angstrom", False, why, doubtful=True)


def _uniform(wave: Float64Array) -> bool:
    steps = np.diff(wave)
    return bool(np.ptp(steps) < 0.01 * abs(float(np.median(steps))))


def medium_of(
    stated: Medium | None, wave_aa: Float64Array | None, flux: Float64Array | None, names: str = ""
) -> Entry:
    """Return ``medium`` by what the file says, else by names, else by the strongest lines.

    Parameters
    ----------
    stated : {"air", "vacuum"} or None
        What the header says.
    wave_aa : (n_pixel,) float64 or None
        In angstrom.
    flux : (n, n_pixel) float64 or None
        A few spectra.
    names : str
        Names of files and columns, which may say ``vac`` or ``air``.
    """
    if stated is not None:
        return Entry("medium", stated, "The header of the file says so.")
    # Whole words: an airmass, or a pair, says nothing of the medium.
    words = set(re.split(r"[^a-z]+|(?<=wave)|(?<=lambda)", names.lower()))
    for word, medium in (("vac", "vacuum"), ("vacuum", "vacuum"), ("air", "air")):
        if word in words:
            return Entry("medium", medium, f"A name says '{word}' ({names}).", doubtful=True)
    if wave_aa is None or flux is None:
        why = (
            "Are the wavelengths in air or in vacuum (83 km/s apart)? No file says, and no line "
            "could be looked at; air stands here until you do."
        )
        return Entry("medium", "air", why, doubtful=True)
    velocity = line_velocity(wave_aa, flux)
    if velocity is None:
        why = (
            "Neither the file nor a strong line tells air from vacuum (83 km/s apart); "
            "air is usual in the optical, vacuum in the infrared and in space."
        )
        infrared = bool(np.median(wave_aa) > _OPTICAL_AA[1])
        return Entry("medium", "vacuum" if infrared else "air", why, doubtful=True)
    return _by_lines(wave_aa, velocity, len(flux))


def _by_lines(wave_aa: Float64Array, velocity: float, n: int) -> Entry:
    middle = np.array([float(np.median(wave_aa))])
    apart = float((air_to_vacuum(middle) / middle - 1.0)[0]) * SPEED_OF_LIGHT_KMS
    near: Medium = "air" if abs(velocity) < abs(velocity - apart) else "vacuum"
    off = min(abs(velocity), abs(velocity - apart))
    why = (
        f"The files do not say. The strong lines in the median of {n} spectra stand "
        f"{velocity:+.0f} km/s from their wavelengths in air and {velocity - apart:+.0f} km/s from "
        f"those in vacuum"
    )
    if off > _AGREE_KMS:
        return Entry("medium", near, f"{why}, which decides nothing.", doubtful=True)
    if n < _FEW:
        return Entry("medium", near, f"{why}; but few stars may move together.", doubtful=True)
    return Entry("medium", near, f"{why}.")


def line_velocity(wave_aa: Float64Array, flux: Float64Array) -> float | None:
    """Return the velocity (km/s) of the strongest lines against their wavelengths in air.

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
        Increasing, in angstrom.
    flux : (n, n_pixel) float64
        Spectra, of any scale; their median is looked at.

    Returns
    -------
    velocity : float or None
        None if no strong line lies within the spectra, or none is seen.
    """
    reach = 2.0 * _FARTHEST_KMS / SPEED_OF_LIGHT_KMS
    lines = LINES_AIR_AA[
        (LINES_AIR_AA * (1 - reach) > wave_aa[0]) & (LINES_AIR_AA * (1 + reach) < wave_aa[-1])
    ]
    if not lines.size:
        return None
    flux = flux[np.isfinite(flux).any(axis=1)]
    if not flux.size:
        return None
    scale = np.nanpercentile(flux, 90.0, axis=1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"), warnings.catch_warnings():
        # Pixels that no spectrum has are NaN, as they should be.
        warnings.simplefilter("ignore", RuntimeWarning)
        mean = np.nanmedian(np.where(scale > 0, flux / scale, np.nan), axis=0)
    known = np.isfinite(mean)
    if known.sum() < 2:
        return None
    velocities = np.arange(-_FARTHEST_KMS, _FARTHEST_KMS + 1.0, _STEP_KMS)
    places = lines[:, None] * (1.0 + velocities / SPEED_OF_LIGHT_KMS)
    at = np.interp(places, wave_aa[known], mean[known])
    # Each line against what stands around it, so that a tilted continuum moves nothing.
    depth = np.median(at, axis=1, keepdims=True) - at
    total = np.sum(depth, axis=0) / lines.size
    if total.max() < _LEAST_DEPTH:
        return None
    return _middle(velocities, total)


def _middle(velocities: Float64Array, depth: Float64Array) -> float:
    """Return the middle of the deepest line, which wide wings do not draw to one side."""
    best = int(depth.argmax())
    deep = depth > 0.5 * depth[best]
    left = right = best
    while left > 0 and deep[left - 1]:
        left -= 1
    while right < deep.size - 1 and deep[right + 1]:
        right += 1
    weights = depth[left : right + 1]
    return float(np.sum(weights * velocities[left : right + 1]) / np.sum(weights))
