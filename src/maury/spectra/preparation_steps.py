"""Steps of preparation: one small frozen configuration each, which runs itself.

A spectral step takes and returns a `State`. Rows out = rows in, and a bad row gets a flag or NaN,
never an exception. To add one, write its class and list it in `SpectralStep`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from maury.errors import ColumnError, suggestion
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, IndexArray, Int64Array
from maury.io.config_files import at_most
from maury.labels.flags import Flag, set_where
from maury.spectra import operators as ops
from maury.spectra.batch import Batch
from maury.spectra.noise import RAVE_CORRELATION, filtered_noise, resampled_correlation
from maury.spectra.pixels import continuum_level
from maury.spectra.spectra import (
    Medium,
    Spectra,
    arm_slices,
    check_wavelengths,
    require_same_grid,
)


class Config(BaseModel):
    """Frozen; an unknown key is answered with the nearest known one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, values: Any) -> Any:
        unknown = [k for k in values if k not in cls.model_fields] if _is_mapping(values) else []
        if unknown:
            hints = ", ".join(f"{key!r}{suggestion(str(key), cls.model_fields)}" for key in unknown)
            raise ValueError(f"unknown key {hints} (known: {', '.join(cls.model_fields)})")
        return values


def _is_mapping(values: object) -> bool:
    return isinstance(values, Mapping)


class LinearGrid(Config):
    """Wavelengths start_aa + step_aa * k, k = 0 .. n_pixel - 1."""

    start_aa: Annotated[float, Field(gt=0)]
    step_aa: Annotated[float, Field(gt=0)]
    n_pixel: Annotated[int, Field(ge=2), at_most("grid_pixels")]

    def wavelengths(self) -> Float64Array:
        """Wavelengths in angstrom, (n_pixel,) float64."""
        return np.asarray(self.start_aa + self.step_aa * np.arange(self.n_pixel), np.float64)


class ListedGrid(Config):
    """Wavelengths given one by one, in angstrom, increasing."""

    wave_aa: Annotated[tuple[float, ...], Field(min_length=2), at_most("grid_pixels")]

    @model_validator(mode="after")
    def _increasing(self) -> Self:
        if self.wave_aa[0] <= 0 or not np.all(np.diff(self.wave_aa) > 0):
            raise ValueError("wave_aa must be positive and increase")
        return self

    def wavelengths(self) -> Float64Array:
        """Wavelengths in angstrom, (n_pixel,) float64."""
        return np.array(self.wave_aa)


def _kind_of_grid(value: object) -> str:
    listed = "wave_aa" in value if isinstance(value, Mapping) else isinstance(value, ListedGrid)
    return "listed" if listed else "linear"


Grid = Annotated[
    Annotated[LinearGrid, Tag("linear")] | Annotated[ListedGrid, Tag("listed")],
    Discriminator(_kind_of_grid),
]

RAVE_GRID = LinearGrid(start_aa=8420.0, step_aa=0.4, n_pixel=912)
"""The grid of RAVE DR6 spectra, in air."""


@dataclass(frozen=True)
class State:
    """What a spectral step sees and changes.

    Attributes
    ----------
    spectra : Spectra
        Spectra so far.
    flags : (n_star,) int64
        Flags so far.
    snr : (n_star,) float64
        S/N per pixel, given or estimated; NaN where unknown.
    batch : Batch
        The batch as it came, for its columns.
    assumed_correlation : tuple of float
        That of the noise of spectra that do not say it themselves.
    """

    spectra: Spectra
    flags: Int64Array
    snr: Float64Array
    batch: Batch
    assumed_correlation: tuple[float, ...] = RAVE_CORRELATION

    @property
    def noise_correlation(self) -> tuple[float, ...]:
        """Autocorrelation of the noise at lags of 1, 2, ... pixels of the spectra so far."""
        known = self.spectra.noise_correlation
        return self.assumed_correlation if known is None else known

    def on_grid(self, wave_aa: Float64Array, flux: AnyArray, ivar: AnyArray) -> State:
        """Return a copy resampled to another grid, the noise of which is more alike."""
        ratio = float(np.median(np.diff(wave_aa)) / np.median(np.diff(self.spectra.wave_aa)))
        correlation = resampled_correlation(self.noise_correlation, round(ratio, 4))
        moved = replace(
            self.spectra,
            wave_aa=wave_aa,
            flux=_float32(flux),
            ivar=_float32(ivar),
            noise_correlation=correlation,
        )
        return replace(self, spectra=moved)

    def with_pixels(self, flux: AnyArray, ivar: AnyArray) -> State:
        """Return a copy with other pixels on the same grid."""
        single = {"flux": _float32(flux), "ivar": _float32(ivar)}
        return replace(self, spectra=self.spectra.replace(**single))

    def flagged(self, flag: Flag, where: BoolArray) -> State:
        """Return a copy with a flag set in some rows."""
        return replace(self, flags=set_where(self.flags, flag, where))


def _float32(values: AnyArray) -> Float32Array:
    return np.asarray(values, dtype=np.float32)


@lru_cache(maxsize=8)
def _resampler(
    wave_in: bytes, wave_out: bytes, min_coverage: float, correlation: tuple[float, ...]
) -> ops.Resampler:
    grids = (np.frombuffer(wave_in), np.frombuffer(wave_out))
    return ops.Resampler(*grids, min_coverage=min_coverage, noise_correlation=correlation)


@lru_cache(maxsize=8)
def _broadening(
    wave: bytes, resolving_power: float, to: float, correlation: tuple[float, ...]
) -> tuple[Any, float, tuple[float, ...]]:
    """Return the matrix of `Broaden`, and what `filtered_noise` says of it.

    That of the pixel in the middle: a Gaussian of constant lambda / FWHM hardly changes over a
    window.
    """
    matrix = ops.broadening(np.frombuffer(wave), resolving_power, to)
    kernel = np.trim_zeros(matrix[matrix.shape[0] // 2].toarray()[0])
    return (matrix, *filtered_noise(kernel, correlation))


Coverage = Annotated[float, Field(gt=0, le=1)]


class CheckGrid(Config):
    """Require spectra on this grid; raises `GridMismatch` otherwise."""

    step: Literal["check_grid"] = "check_grid"
    grid: Grid = RAVE_GRID
    medium: Medium = "air"
    tolerance_aa: Annotated[float, Field(gt=0)] = 0.01

    def run(self, state: State) -> State:
        """Return the state as it is, or raise."""
        require_same_grid(
            self.grid.wavelengths(),
            state.spectra,
            medium=self.medium,
            tolerance_aa=self.tolerance_aa,
            what="model",
        )
        return state


class ToMedium(Config):
    """Give the wavelengths in air or in vacuum; the pixels stay as they are."""

    step: Literal["medium"] = "medium"
    to: Medium

    def run(self, state: State) -> State:
        """Return the state with converted wavelengths."""
        spectra = state.spectra
        if spectra.medium == self.to:
            return state
        convert = ops.air_to_vacuum if self.to == "vacuum" else ops.vacuum_to_air
        # The conversion keeps the order of wavelengths that are any; others are told here.
        wave = check_wavelengths(convert(spectra.wave_aa))
        return replace(state, spectra=replace(spectra, wave_aa=wave, medium=self.to))


class Resample(Config):
    """Resample onto another grid, conserving flux (`maury.spectra.operators.Resampler`)."""

    step: Literal["resample"] = "resample"
    grid: Grid
    min_coverage: Coverage = 0.5

    def run(self, state: State) -> State:
        """Return the state on the new grid."""
        spectra, wave = state.spectra, check_wavelengths(self.grid.wavelengths())
        if np.array_equal(wave, spectra.wave_aa):
            return state
        # Bytes can be hashed, so that one sparse matrix serves all batches.
        grids = (spectra.wave_aa.tobytes(), wave.tobytes())
        resampler = _resampler(*grids, self.min_coverage, state.noise_correlation)
        return state.on_grid(wave, *resampler(spectra.flux, spectra.ivar))


class Broaden(Config):
    """Lower the resolving power by a Gaussian (`maury.spectra.operators.broadening`)."""

    step: Literal["broaden"] = "broaden"
    resolving_power: Annotated[float, Field(gt=0)]
    to: Annotated[float, Field(gt=0)]
    min_coverage: Coverage = 0.5

    @model_validator(mode="after")
    def _lower(self) -> Self:
        if not self.to < self.resolving_power:
            raise ValueError(
                f"a resolving power of {self.resolving_power:g} is not lowered to {self.to:g}"
            )
        return self

    def run(self, state: State) -> State:
        """Return the state at the lower resolving power."""
        spectra = state.spectra
        wave, good = spectra.wave_aa.tobytes(), spectra.good.astype(np.float32)
        matrix, more, correlation = _broadening(
            wave, self.resolving_power, self.to, state.noise_correlation
        )
        covered = (matrix @ good.T).T
        usable = covered >= self.min_coverage
        share = np.where(usable, covered, 1.0)
        variance = np.where(good > 0, 1.0 / np.where(good > 0, spectra.ivar, 1.0), 0.0)
        flux = (matrix @ (spectra.flux * good).T).T / share
        spread = more * (matrix.power(2) @ variance.T).T / share**2
        ivar = np.where(usable & (spread > 0), 1.0 / np.where(spread > 0, spread, 1.0), 0.0)
        moved = replace(
            spectra,
            flux=_float32(np.where(usable, flux, 0.0)),
            ivar=_float32(ivar),
            noise_correlation=correlation,
        )
        return replace(state, spectra=moved)


class RestFrame(Config):
    """Shift each spectrum to rest by the column ``radial_velocity``, onto `grid` or its own grid.

    A survey that says that it is at rest is not shifted; one that says that it is not, and has no
    such column, is refused. Without either word, a survey without the column counts as at rest. A
    row without a velocity is resampled but not shifted, and `Flag.NO_RADIAL_VELOCITY` warns.
    """

    step: Literal["rest_frame"] = "rest_frame"
    grid: Grid | None = None
    min_coverage: Coverage = 0.5

    def run(self, state: State) -> State:
        """Return the state at rest.

        Raises
        ------
        ColumnError
            If the survey is not at rest, and has no velocities.
        """
        spectra, batch = state.spectra, state.batch
        moving = "radial_velocity" in batch.columns
        if batch.at_rest is False and not moving:
            raise ColumnError(
                "the step rest_frame needs the column 'radial_velocity': the survey says that its "
                "spectra are not at rest; map their velocity in [columns] of the ingest, or take "
                'it from a catalogue in a build (take = ["radial_velocity"])'
            )
        if moving and not batch.at_rest:
            rv_kms = np.asarray(batch.column("radial_velocity"), dtype=np.float64)
        elif self.grid is None:
            return state
        else:
            rv_kms = np.zeros(len(spectra))
        # Also a velocity beyond that of light, which is a sentinel.
        unknown = ~np.isfinite(ops.doppler_factor(rv_kms))
        grid = spectra.wave_aa if self.grid is None else self.grid.wavelengths()
        wave = check_wavelengths(grid)
        flux, ivar = ops.to_rest_frame(
            spectra.flux,
            spectra.ivar,
            np.where(unknown, 0.0, rv_kms),
            wave_in_aa=spectra.wave_aa,
            wave_out_aa=wave,
            min_coverage=self.min_coverage,
            noise_correlation=state.noise_correlation,
        )
        return state.on_grid(wave, flux, ivar).flagged(Flag.NO_RADIAL_VELOCITY, unknown)


class Noise(Config):
    """Set ivar from the S/N: sigma = sqrt(flux) / (S/N) where the continuum is 1.

    The S/N is the column ``snr`` or, where missing, estimated: that of the spectra as they came.
    What earlier steps did to it, by other pixels or by averaging, is kept, so that the step may
    stand anywhere. A spectrum far from continuum = 1 is taken relative to its 90th percentile.

    With `only_if_unknown` the step touches only spectra that came without noise
    (`maury.spectra.spectra.Spectra.noise_known`).
    """

    step: Literal["noise"] = "noise"
    only_if_unknown: bool = True

    def run(self, state: State) -> State:
        """Return the state with ivar set."""
        spectra = state.spectra
        chosen = np.isfinite(state.snr) & (state.snr > 0)
        if self.only_if_unknown:
            chosen &= ~spectra.noise_known
        rows = np.flatnonzero(chosen)
        if rows.size == 0:
            return state
        part = spectra.take(rows)
        level = continuum_level(part.flux, part.ivar)[:, None].astype(np.float32)
        modelled = ops.ivar_from_snr(part.flux / level, state.snr[rows]) / level**2
        # An unknown noise was 1 when it came: what it is now is what the steps made of it.
        gain = np.where(
            part.noise_known[:, None], part.good * _snr_gain(state, rows)[:, None], part.ivar
        )
        ivar, known = spectra.ivar.copy(), spectra.noise_known.copy()
        ivar[rows], known[rows] = modelled * gain, True
        done = state.with_pixels(spectra.flux, ivar)
        return replace(done, spectra=replace(done.spectra, noise_known=known))


def _snr_gain(state: State, rows: IndexArray) -> Float64Array:
    """By how much the squared S/N per pixel of some rows has grown since they came, (n,)."""
    came, now = (_typical_snr(one.take(rows)) for one in (state.batch.spectra, state.spectra))
    return np.where((came > 0) & (now > 0), now / np.where(came > 0, came, 1.0), 1.0) ** 2


def _typical_snr(spectra: Spectra) -> Float64Array:
    """Median flux over noise of the good pixels, (n_star,); 0 where there is none."""
    good = spectra.good
    ratio = np.where(good, spectra.flux * np.sqrt(spectra.ivar), np.nan).astype(np.float64)
    out = np.zeros(len(spectra))
    some = np.flatnonzero(good.any(axis=1))
    out[some] = np.nanmedian(ratio[some], axis=1)
    return out


class MaskCosmics(Config):
    """Mark cosmic rays as bad pixels (`maury.spectra.operators.mask_cosmics`).

    Spectra of unknown noise are left alone: put the step ``noise`` before.
    """

    step: Literal["mask_cosmics"] = "mask_cosmics"
    n_sigma: Annotated[float, Field(gt=0)] = 6.0
    sharpness: Annotated[float, Field(ge=0, le=1)] = 0.75
    grow: Annotated[int, Field(ge=0, le=100)] = 1

    def run(self, state: State) -> State:
        """Return the state with spikes marked."""
        spectra = state.spectra
        options = self.model_dump(exclude={"step"})
        spike = ops.mask_cosmics(spectra.flux, spectra.ivar, **options)
        spike &= spectra.noise_known[:, None]
        marked = state.with_pixels(spectra.flux, np.where(spike, 0.0, spectra.ivar))
        return marked.flagged(Flag.SPIKES, np.any(spike, axis=1))


class _Continuum(Config):
    def run(self, state: State) -> State:
        """Return the state normalised, each arm by itself."""
        spectra = state.spectra
        options = self.model_dump(exclude={"step"})
        # A polynomial through the gap between arms would bend both.
        arms = arm_slices(spectra.wave_aa)
        parts = [
            ops.normalise_continuum(spectra.flux[:, arm], spectra.ivar[:, arm], **options)
            for arm in arms
        ]
        flux, ivar = (np.hstack([part[k] for part in parts]) for k in (0, 1))
        # Unknown noise is relative to the continuum, whatever that is.
        ivar = np.where(spectra.noise_known[:, None], ivar, spectra.ivar * (ivar > 0))
        # A row that had no pixel before did not fail here.
        failed = np.asarray(spectra.good.any(axis=1) & ~(ivar > 0).any(axis=1))
        return state.with_pixels(flux, ivar).flagged(Flag.CONTINUUM_FAILED, failed)


class ChebyshevContinuum(_Continuum):
    """Divide by a clipped polynomial (`maury.spectra.operators.chebyshev_continuum`)."""

    step: Literal["continuum"] = "continuum"
    method: Literal["chebyshev"] = "chebyshev"
    degree: Annotated[int, Field(ge=0, le=30)] = 4
    low: Annotated[float, Field(gt=0)] = 1.25
    high: Annotated[float, Field(gt=0)] = 3.0
    iterations: Annotated[int, Field(ge=0, le=100)] = 10


class RunningQuantileContinuum(_Continuum):
    """Divide by a running quantile (`maury.spectra.continuum.running_quantile_continuum`)."""

    step: Literal["continuum"] = "continuum"
    method: Literal["running_quantile"] = "running_quantile"
    quantile: Annotated[float, Field(gt=0, lt=1)] = 0.9
    window: Annotated[int, Field(ge=3), at_most("grid_pixels")] = 101


class NoContinuum(_Continuum):
    """Leave spectra that are normalised already."""

    step: Literal["continuum"] = "continuum"
    method: Literal["none"] = "none"


SpectralStep = Annotated[
    CheckGrid
    | ToMedium
    | Resample
    | Broaden
    | RestFrame
    | Noise
    | MaskCosmics
    | Annotated[
        ChebyshevContinuum | RunningQuantileContinuum | NoContinuum, Field(discriminator="method")
    ],
    Field(discriminator="step"),
]
