"""Wavelength grids: from FITS headers, from a start and a step; and spectra put on one grid."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import GridMismatch, WavelengthError
from maury.io.arrays import AnyArray, Float32Array, Float64Array, IndexArray
from maury.io.limits import current, exceeded
from maury.io.units import to_unit
from maury.spectra.operators import Resampler
from maury.spectra.spectra import Medium, arm_slices, check_wavelengths, describe_grid

_TOLERANCE_AA = 0.01
"""Headers round wavelengths to so much; at 8500 angstrom it is .35 km/s."""
_TOLERANCE_PIXEL = 0.05
"""Of fine grids, where a hundredth of an angstrom is a shift that lines show; chosen."""
_LARGEST_LOG10 = 10.0
"""log10 of any wavelength in angstrom is smaller, and no spectrum begins at 10 angstrom."""


def linear_grid(start: float, step: float, n: int, *, log: bool = False) -> Float64Array:
    """Return ``start + step k`` for k = 0 to n - 1, or ten to that power if `log`."""
    grid = start + step * np.arange(n, dtype=np.float64)
    # A wrong header may ask for 10^6000: infinite wavelengths are refused later, by name.
    with np.errstate(over="ignore"):
        return np.asarray(10.0**grid if log else grid)


def angstrom_per(unit: str | None) -> float:
    """Return how many angstrom a unit of length is; no unit means angstrom.

    Raises
    ------
    WavelengthError
        If it is no unit of length.
    """
    if not unit:
        return 1.0
    try:
        zero, one = to_unit([0.0, 1.0], unit, "Angstrom")
        if zero != 0.0:
            raise ValueError("a logarithm has no factor")
        return float(one)
    except ValueError as error:
        raise WavelengthError(
            f"wavelength unit {unit!r} is no unit of length; write one such as 'Angstrom' or 'nm'"
        ) from error


def to_angstrom(values: ArrayLike, unit: str | None, *, log: bool | None = None) -> Float64Array:
    """Return wavelengths, or log10 of them if `log`, in angstrom."""
    wave = np.asarray(values, dtype=np.float64)
    with np.errstate(over="ignore"):
        return np.asarray((10.0**wave if log else wave) * angstrom_per(unit))


def ascending(wave_aa: AnyArray, *arrays: Any) -> tuple[Any, ...]:
    """Return a grid and what stands on it (last axis), turned round if the grid descends.

    The order of pixels carries no information: echelle orders and infrared detectors are often
    stored from red to blue. None stays None.
    """
    if wave_aa.size < 2 or not wave_aa[0] > wave_aa[-1]:
        return (wave_aa, *arrays)
    return tuple(None if one is None else one[..., ::-1] for one in (wave_aa, *arrays))


def header_grid(
    header: Mapping[str, Any],
    axis: int,
    n: int,
    *,
    unit: str | None = None,
    log: bool | None = None,
) -> Float64Array | None:
    """Return the wavelengths that a FITS header gives to one axis, in angstrom.

    Understood are ``WAVE0``/``DWAVE``, ``COEFF0``/``COEFF1`` (log10), and ``CRVAL``, ``CRPIX`` (1
    if absent), ``CDELT`` or ``CD``; as log10 if ``DC-FLAG = 1``, if ``CTYPE`` says LOG, or if the
    numbers can be nothing else; as natural logarithm if ``CTYPE = WAVE-LOG`` or ``AWAV-LOG``
    (Greisen et al. 2006, A&A 446, 747, eq. 5).

    Parameters
    ----------
    header : mapping
        FITS header.
    axis : int
        FITS number of the axis, from 1.
    n : int
        Number of pixels.
    unit : str, optional
        Unit in place of the header's.
    log : bool, optional
        Whether the cards are log10 of the wavelength, in place of the header's word.

    Returns
    -------
    wave_aa : (n,) float64, or None if the header does not say.
    """
    unit = unit or str(header.get(f"CUNIT{axis}", header.get("WAVEUNIT", ""))).strip() or None
    # WAVE0 and COEFF0 can mean nothing but wavelengths, so that they come before CRVAL.
    if "WAVE0" in header and "DWAVE" in header:
        grid = linear_grid(float(header["WAVE0"]), float(header["DWAVE"]), n, log=bool(log))
        return grid * angstrom_per(unit)
    if "COEFF0" in header and "COEFF1" in header:
        return linear_grid(float(header["COEFF0"]), float(header["COEFF1"]), n, log=True)
    step = header.get(f"CDELT{axis}", header.get(f"CD{axis}_{axis}"))
    if f"CRVAL{axis}" not in header or step is None:
        return None
    value, step = float(header[f"CRVAL{axis}"]), float(step)
    kind = str(header.get(f"CTYPE{axis}", "")).upper()
    # FITS counts pixels from 1, and CRPIX may lie outside of the array.
    offset = step * (np.arange(n) + 1.0 - float(header.get(f"CRPIX{axis}", 1.0)))
    if log is None and kind.startswith(("WAVE-LOG", "AWAV-LOG")):
        return np.asarray(value * np.exp(offset / value)) * angstrom_per(unit)
    if log is None:
        # IRAF writes DC-FLAG; others write log10 of the wavelength with no word of it.
        marked = header.get("DC-FLAG") == 1 or "LOG" in kind
        log = marked or (unit is None and 0 < value < _LARGEST_LOG10)
    return linear_grid(value + offset[0], step, n, log=log) * angstrom_per(unit)


_MEDIA: Mapping[str, Medium] = MappingProxyType({"air": "air", "vac": "vacuum"})
_SAYS_MEDIUM = ("VACUUM", "AIRORVAC", "WAVEMED", "WAVETYPE")
# A logical card of FITS is T or F; files write numbers and texts in its place.
_YES, _NO = frozenset({"true", "t", "1", "yes"}), frozenset({"false", "f", "0", "no"})


def header_medium(header: Mapping[str, Any], axis: int = 1) -> Medium | None:
    """Return whether a header says that its wavelengths are in air or in vacuum.

    Understood are ``CTYPE = AWAV`` (Greisen et al. 2006, A&A 446, 747) and the cards ``VACUUM``
    (SDSS, LAMOST; true or false), ``AIRORVAC`` (DESI, IRAF), ``WAVEMED`` and ``WAVETYPE``.
    ``CTYPE = WAVE`` says nothing: by the standard it means vacuum, and files write it for air as
    well.
    """
    if str(header.get(f"CTYPE{axis}", "")).strip().upper().startswith("AWAV"):
        return "air"
    for name in _SAYS_MEDIUM:
        if name in header:
            said = str(header[name]).strip().lower()
            if name == "VACUUM" and said in _YES | _NO:
                return "vacuum" if said in _YES else "air"
            return next((m for word, m in _MEDIA.items() if said.startswith(word)), None)
    return None


def require_medium(found: Medium | None, stated: Medium | None, path: Path) -> None:
    """Refuse a file that says another medium than the one it is read in.

    Raises
    ------
    WavelengthError
        If so; air and vacuum differ by 83 km/s.
    """
    if found is not None and stated is not None and found != stated:
        raise WavelengthError(
            f"{path}: its header says that wavelengths are in {found}, they would be read as in "
            f'{stated}, 83 km/s apart; write medium = "{found}", or correct the header'
        )


def same_grid(one: Float64Array, other: Float64Array) -> bool:
    """Whether two grids are equal within a hundredth of an angstrom and a twentieth of a pixel."""
    if one.size != other.size:
        return False
    # Fine grids bind by their pixel, coarse ones by what headers round to.
    tolerance = min(_TOLERANCE_AA, _TOLERANCE_PIXEL * float(np.abs(np.diff(one)).min(initial=1.0)))
    return bool(np.all(np.abs(one - other) <= tolerance))


class Gridder:
    """Puts spectra on one grid: as they are if they stand on it, else resampled if that is asked.

    Parameters
    ----------
    wave_aa : (n_pixel,) array_like
        The grid.
    resample : bool
        Whether spectra on other grids are resampled (or refused).
    medium : {"air", "vacuum"}
        For messages.
    layout : Layout, optional
        Which pixels of it are kept.
    noise_correlation : sequence of float
        Autocorrelation of the noise at lags of 1, 2, ... pixels before; empty if not known.
    flux_scale : float
        What fluxes are multiplied by before they are put on the grid.

    Attributes
    ----------
    wave_aa : (n_kept,) float64
        What spectra have in the end.
    resamples : bool
    noise_correlation : tuple of float
    flux_scale : float
    """

    def __init__(
        self,
        wave_aa: ArrayLike,
        *,
        resample: bool,
        medium: Medium,
        layout: "Layout | None" = None,
        noise_correlation: Sequence[float] = (),
        flux_scale: float = 1.0,
    ) -> None:
        self._base_aa = check_wavelengths(wave_aa)
        if self._base_aa.size > current().grid_pixels:
            raise exceeded("the survey", f"has {self._base_aa.size} pixels", "grid_pixels")
        self._layout = layout
        self.wave_aa = self._base_aa if layout is None else check_wavelengths(layout.wave_aa)
        self.resamples = resample
        self.noise_correlation = tuple(noise_correlation)
        self.flux_scale = flux_scale
        self._medium = medium
        self._last: tuple[Float64Array, Resampler] | None = None

    def place(
        self,
        wave_aa: Float64Array,
        spectra: tuple[Float32Array, Float32Array],
        *,
        what: str,
    ) -> tuple[AnyArray, AnyArray]:
        """Return flux and ivar on the grid.

        Parameters
        ----------
        wave_aa : (n_in,) float64
            Wavelengths of the spectra.
        spectra : pair of (n_star, n_in) float32
            Flux and ivar.
        what : str
            Whose spectra, for the message.

        Raises
        ------
        WavelengthError
            If the wavelengths are not increasing and finite.
        GridMismatch
            If they are another grid and resampling was not asked for.
        """
        flux, ivar = self._on_base(wave_aa, spectra, what)
        return (flux, ivar) if self._layout is None else self._layout.lay(flux, ivar)

    def _on_base(
        self,
        wave_aa: Float64Array,
        spectra: tuple[Float32Array, Float32Array],
        what: str,
    ) -> tuple[AnyArray, AnyArray]:
        if same_grid(self._base_aa, wave_aa):
            return spectra
        wave_aa = check_wavelengths(wave_aa, name=f"wavelengths of {what}")
        if not self.resamples:
            raise GridMismatch(
                f"{what} stands on {describe_grid(wave_aa, self._medium)}, the first spectrum on "
                f"{describe_grid(self._base_aa, self._medium)}; ask for a common grid by "
                "'resample = { start = ..., step = ..., n = ... }'"
            )
        # Spectra of a survey often share a few grids: the weights of the last one are kept.
        if self._last is None or not np.array_equal(self._last[0], wave_aa):
            self._last = (
                wave_aa,
                Resampler(wave_aa, self._base_aa, noise_correlation=self.noise_correlation),
            )
        flux, ivar = self._last[1](*spectra)
        # A resampled pixel without coverage has no flux, and must not look like one of zero.
        return np.where(ivar > 0, flux, np.nan), ivar


@dataclass(frozen=True, eq=False)
class Layout:
    """Pixels that are kept of a grid, and guards beside its gaps.

    Attributes
    ----------
    wave_aa : (n_kept,) float64
        Their wavelengths, guards among them.
    take : (n_kept,) int
        Numbers of the pixels; -1 for a guard, which never has a weight.
    """

    wave_aa: Float64Array
    take: IndexArray

    @classmethod
    def of(
        cls, wave_aa: Float64Array, windows: Sequence[tuple[float, float]], *, what: str
    ) -> "Layout | None":
        """Return the layout of a grid cut to windows (angstrom), or None if all of it is kept.

        Raises
        ------
        WavelengthError
            If a window holds fewer than two pixels, or two are too near each other.
        """
        pixels = np.arange(wave_aa.size)
        parts = [pixels]
        if windows:
            parts = [pixels[(wave_aa >= low) & (wave_aa <= high)] for low, high in windows]
        for part, window in zip(parts, windows, strict=False):
            if part.size < 2:
                raise WavelengthError(
                    f"{what}: the window {window[0]} to {window[1]} angstrom holds {part.size} "
                    f"pixels of {describe_grid(wave_aa, 'as given')}; correct it"
                )
        # A window may span a gap of the grid, which needs guards of its own.
        parts = [part[piece] for part in parts for piece in _natural(wave_aa[part])]
        if len(parts) == 1 and parts[0].size == wave_aa.size:
            return None
        wave, take = join_grids([wave_aa[part] for part in parts], what=what)
        place = np.concatenate(parts)
        return cls(wave, np.where(take >= 0, place[np.maximum(take, 0)], -1))

    def lay(self, flux: AnyArray, ivar: AnyArray) -> tuple[AnyArray, AnyArray]:
        """Return flux and ivar (n_star, n_kept) of those of the whole grid."""
        # A guard keeps pixel edges midway between centres right on both sides of a gap.
        guard = self.take < 0
        return (
            np.where(guard, np.float32(np.nan), flux[:, self.take]),
            np.where(guard, np.float32(0), ivar[:, self.take]),
        )


_NATURAL_GAP = 8.0
"""Steps without a pixel that part a grid by itself: more than a gap must have, so that a missing
pixel or two are none; chosen, not measured."""
_LEAST_GAP = 6.5
"""Steps between arms: guards leave 4.5 of them, which `arm_slices` still sees as a gap."""


def _natural(wave_aa: Float64Array) -> tuple[slice, ...]:
    """Return the stretches between gaps that a grid has by itself."""
    return arm_slices(wave_aa, gap=_NATURAL_GAP)


def join_grids(grids: Sequence[Float64Array], *, what: str) -> tuple[Float64Array, IndexArray]:
    """Join grids of arms into one, with a guard pixel at either side of each gap.

    Parameters
    ----------
    grids : sequence of (n_i,) float64
        In order of wavelength.
    what : str
        For messages.

    Returns
    -------
    wave_aa : (n_pixel,) float64
    take : (n_pixel,) int
        Numbers of the pixels, counted through all grids; -1 for a guard.

    Raises
    ------
    WavelengthError
        If two grids overlap, or there is no room for guards between them.
    """
    waves, takes, first = [grids[0]], [np.arange(grids[0].size)], grids[0].size
    for before, after in pairwise(grids):
        left, right = before[-1] - before[-2], after[1] - after[0]
        room, needed = after[0] - before[-1], _LEAST_GAP * max(left, right)
        if room < needed:
            raise WavelengthError(
                f"{what}: one arm ends at {before[-1]:.3f} angstrom, the next begins at "
                f"{after[0]:.3f}; leave at least {needed:.3f} between them by 'window' or 'windows'"
            )
        waves += [np.array([before[-1] + left, after[0] - right]), after]
        takes += [np.array([-1, -1]), first + np.arange(after.size)]
        first += after.size
    return np.concatenate(waves), np.concatenate(takes).astype(np.intp)
