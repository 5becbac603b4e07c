"""GAUFRE: radial velocity, then labels by chi-square on a library or by equivalent widths.

Valentini et al. (2013, EPJ Web Conf. 43, 03006). The velocity is that of the highest
cross-correlation with the best of some templates. In the mode ``chi2`` a library is compared with
the spectrum; in the mode ``ew`` Teff and [M/H] then follow from the iron lines
(`maury.methods.iron`). There are no lines of ionised iron of use in this band, so that log g is
that of the library, or an external value, such as a seismic one, to which either mode keeps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from maury.errors import ConfigError
from maury.io.arrays import Float32Array, Float64Array
from maury.labels.flags import Flag, set_where
from maury.methods.fitting.gridded import Foundation, GridMethod, GridSettings
from maury.methods.fitting.theory import finite_rows
from maury.methods.iron import IronLines
from maury.methods.protocols import NO_EXTERNAL, External, FitResult, MethodSettings, Sample
from maury.spectra.noise import noise_seen
from maury.spectra.operators import SPEED_OF_LIGHT_KMS, to_rest_frame
from maury.spectra.preparation import Inputs

__all__ = ["Gaufre", "GaufreSettings", "cross_correlate"]


# Nodes, evenly through the grid: the best of them is close in depth of lines, and that is enough
# for a velocity.
_TEMPLATES = 24
# Under a pixel of RAVE, which the fit takes up without resampling.
_SMALL_KMS = 12.0
_LEAST_PART = 0.1
"""Part of a template below which what is seen of it is not scaled up further: noise would win."""
_EW_LABELS = ("teff", "logg", "m_h")


class GaufreSettings(GridSettings):
    """Settings of GAUFRE.

    Attributes
    ----------
    mode : {"chi2", "ew"}
        Library, or equivalent widths of iron lines after it.
    velocity_range_kms : float
        Largest velocity that is looked for; 0 takes spectra to be at rest. Velocities below
        12 km/s are left to the fit, as resampling would correlate the noise.
    """

    mode: Literal["chi2", "ew"] = "chi2"
    velocity_range_kms: float = Field(default=300.0, ge=0.0, le=1000.0)


def cross_correlate(
    wave_aa: Float64Array,
    flux: Float32Array,
    ivar: Float32Array,
    templates: Float32Array,
    *,
    range_kms: float,
) -> Float64Array:
    """Velocities (n_star,) in km/s of the highest normalised cross-correlation.

    Parameters
    ----------
    wave_aa : (n_pixel,) float64
    flux, ivar : (n_star, n_pixel) float32
        Normalised; pixels of an `ivar` of 0 are left out, and the correlation is normalised by
        the part of each template that the others see.
    templates : (n_template, n_pixel) float32
        At rest.
    range_kms : float
        Velocities tried, either way. The peak is refined by a parabola.
    """
    n_even = 2 * wave_aa.size
    even = np.geomspace(wave_aa[0], wave_aa[-1], n_even)
    step = SPEED_OF_LIGHT_KMS * np.log(even[1] / even[0])
    taper = np.clip(np.minimum(np.arange(n_even), np.arange(n_even)[::-1]) / (0.05 * n_even), 0, 1)

    def prepared(rows: Float32Array, seen: Float64Array) -> Float64Array:
        depth = np.stack([np.interp(even, wave_aa, 1.0 - row) for row in rows])
        mean = (depth * seen).sum(axis=1, keepdims=True) / np.maximum(seen.sum(axis=1), 1)[:, None]
        depth = (depth - mean) * taper * seen
        norm = np.sqrt(np.sum(depth**2, axis=1, keepdims=True))
        return np.asarray(depth / np.where(norm > 0, norm, 1.0))

    def transform(rows: Float64Array) -> NDArray[np.complex128]:
        return np.fft.rfft(rows, 2 * n_even, axis=-1)

    reach = max(2, int(np.ceil(range_kms / step)))
    lags = np.arange(-reach, reach + 1)
    # A point between two pixels counts if both are good.
    bad = np.stack([np.interp(even, wave_aa, row) for row in (ivar <= 0).astype(np.float64)])
    good = (bad == 0).astype(np.float64)
    models, velocity = prepared(templates, np.ones((1, n_even))), np.empty(len(flux))
    spectra, power = transform(models).conj(), transform(models**2).conj()
    whole = np.fft.irfft(transform(np.ones(n_even)) * power, 2 * n_even, axis=1)[:, lags]
    for number, one in enumerate(prepared(flux, good)):
        height = np.fft.irfft(transform(one) * spectra, 2 * n_even, axis=1)[:, lags]
        if not good[number].all():
            part = np.fft.irfft(transform(good[number]) * power, 2 * n_even, axis=1)[:, lags]
            height /= np.sqrt(np.clip(part / whole, _LEAST_PART, 1.0))
        best = height[height.max(axis=1).argmax()]
        peak = int(np.clip(best.argmax(), 1, lags.size - 2))
        before, top, after = best[peak - 1 : peak + 2]
        bend = before - 2 * top + after
        velocity[number] = step * (lags[peak] + (0.5 * (before - after) / bend if bend else 0.0))
    return velocity


@dataclass(frozen=True, eq=False)
class Gaufre(GridMethod[GaufreSettings]):
    """Cross-correlation, then a library or equivalent widths.

    Attributes
    ----------
    iron : IronLines or None
        For the mode ``ew``.
    """

    name: ClassVar[str] = "gaufre"
    paper: ClassVar[str] = "Valentini et al. (2013, EPJ Web Conf. 43, 03006)"
    bibtex_key: ClassVar[str] = "2013EPJWC..4303006V"
    settings_class: ClassVar[type[MethodSettings]] = GaufreSettings

    iron: IronLines | None

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: GaufreSettings, seed: int
    ) -> Self:
        """Build the library, and the curves of growth; see `Method`."""
        del validation
        if settings.mode == "ew" and not set(_EW_LABELS) <= set(settings.axes):
            raise ConfigError(f"the mode ew needs the axes {', '.join(_EW_LABELS)}")
        base = Foundation.lay(training, settings, seed)
        iron = None
        if settings.mode == "ew" and base.theory.learnt is not None:
            raise ConfigError(
                "the mode ew needs a theory with microturbulence, and "
                f'{base.theory.choice.reason}; take mode = "chi2"'
            )
        if settings.mode == "ew":
            bounds = dict(zip(base.core.grid.label_names, base.core.grid.bounds, strict=True))
            iron = IronLines.learn(base.theory, base.pattern, bounds)
        names = base.label_names(training)
        return cls(settings, names, base.core, base.pattern, base.theory.checksum, iron)

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Find the velocity, then fit; see `Method`."""
        rest = self.at_rest(inputs)
        fitted = self.core.fit(rest, external=external)
        out = self.whole(fitted)
        if self.iron is not None:
            out = self._balanced(rest, fitted, out)
        return out.select(self.label_names)

    def velocities(self, inputs: Inputs) -> Float64Array:
        """Return velocities (n_star,) in km/s by cross-correlation."""
        grid = self.core.grid
        chosen = np.linspace(0, len(grid.nodes) - 1, _TEMPLATES).astype(int)
        templates = grid.nodes[chosen]
        if grid.basis is not None:
            templates = templates @ grid.basis + grid.mean
        reach = self.settings.velocity_range_kms
        return cross_correlate(grid.wave, inputs.flux, inputs.ivar, templates, range_kms=reach)

    def at_rest(self, inputs: Inputs) -> Inputs:
        """Return spectra of which those that move are shifted to rest."""
        if self.settings.velocity_range_kms == 0.0 or not len(inputs):
            return inputs
        velocity = self.velocities(inputs)
        # Resampling correlates the noise, which the fit would not know of.
        moving = np.flatnonzero(np.abs(velocity) > _SMALL_KMS)
        if not moving.size:
            return inputs
        flux, ivar = inputs.flux.copy(), inputs.ivar.copy()
        wave = self.core.grid.wave
        flux[moving], ivar[moving] = to_rest_frame(
            flux[moving],
            ivar[moving],
            velocity[moving],
            wave_in_aa=wave,
            wave_out_aa=wave,
            noise_correlation=inputs.noise_correlation,
        )
        return replace(inputs, flux=flux, ivar=ivar)

    def _balanced(self, inputs: Inputs, fitted: FitResult, out: FitResult) -> FitResult:
        """Replace Teff and metallicity by those of the iron lines, and what follows them."""
        assert self.iron is not None, "only the mode ew has iron lines"
        good = np.flatnonzero(finite_rows(fitted.labels))
        axes = self.core.grid.label_names
        columns = np.array([axes.index(name) for name in _EW_LABELS])
        start = fitted.labels[np.ix_(good, columns)]
        assert fitted.flux is not None, "a fit has a best spectrum"
        plain = self.core.grid.evaluate(fitted.labels[good, : len(axes)], jacobian=False).flux
        flux = inputs.flux[good] - (fitted.flux[good] - plain)
        noise = noise_seen(self.core.noise_correlation, inputs.noise_correlation)
        found = self.iron.balance(flux, inputs.ivar[good], start, noise_correlation=noise)
        # Where too few lines are left, the labels stay those of the library.
        enough = found.enough
        rows = good[enough]
        unsure = np.isin(np.arange(len(out)), good[~(found.converged & enough)])
        moved = replace(fitted, labels=fitted.labels.copy(), covariance=fitted.covariance.copy())
        pair = np.array([axes.index("teff"), axes.index("m_h")])
        both = np.column_stack([found.teff, found.metals])
        moved.labels[np.ix_(rows, pair)] = both[enough]
        for column in pair:
            moved.covariance[rows, column] = moved.covariance[rows, :, column] = 0.0
        moved.covariance[np.ix_(rows, pair, pair)] = found.covariance[enough]
        flags = set_where(out.flags, Flag.NOT_CONVERGED, unsure)
        return replace(self.whole(moved), flags=flags)
