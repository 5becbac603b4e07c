"""GAUGUIN: Gauss-Newton on a grid, then abundances line by line.

Bijaoui et al. (2012, Stat. Meth. 9, 55) and Guiglion et al. (2016, A&A 595, A18). The parameters
move by d theta = (J^T W J)^-1 J^T W (O - S) on a linearly interpolated grid. Then, with the
atmosphere fixed, each line of an element is compared with a family of spectra in the abundance:
a coarse minimum of chi-square, a one-dimensional Gauss-Newton fit with a local pseudo-continuum,
sigma^-2 = sum (dS/dA)^2 / sigma^2, and the mean over lines by these weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field

from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array
from maury.labels.columns import Column
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.methods.fitting.chain import Chain, Continuum
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.grid import Grid, Interpolation
from maury.methods.fitting.gridded import Foundation, GridMethod, GridSettings
from maury.methods.fitting.knowledge import Prior
from maury.methods.fitting.theory import finite_rows
from maury.methods.fitting.windows import (
    WINDOW_STARS,
    element_windows,
    elements_of,
    lines_of,
)
from maury.methods.protocols import NO_EXTERNAL, External, FitResult, MethodSettings, Sample
from maury.methods.storage import Arrays, read_fields, stored, write_fields
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs, take

__all__ = ["Family", "Gauguin", "GauguinSettings"]


_SIDE_PIXELS = 4
"""Pixels at each side of a line that hold its local continuum, at least: level and slope take as
many at the very least."""
_SIDE_WIDTHS = 3.0
"""The same in widths (FWHM) of lines, beyond which a straight line is no continuum; chosen."""
_MOST_LINES = 12
"""Lines of an element, those that tell most of it, as each takes a fit; chosen, not measured."""
_SEEN_SIGMA = 1.0
"""Lines of an element are seen where their strength S is more than so many of its errors. As S goes
as 10^A, an error of the abundance A is that of S over S ln 10."""
_LIMIT_SIGMA = 2.0
"""An upper limit lies so many errors above the best abundance: 97.7 %."""
# Coarser than the grid: abundances change lines smoothly with the atmosphere, and a family has one
# grid a line.
_CORE_STEPS = {"teff": 500.0, "logg": 0.9, "m_h": 0.5, "alpha_m": 0.3}
_ABUNDANCES = np.array([-0.6, -0.3, 0.0, 0.3, 0.6, 0.8])
# Stars fitted together: lines have few pixels, so that many fit into memory.
_BLOCK = 256


class GauguinSettings(GridSettings):
    """Settings of GAUGUIN.

    Attributes
    ----------
    interpolation : {"linear", "quadratic", "cubic"}
        Of the grid of parameters.
    pseudo_continuum : float
        Standard deviation of the local continuum of each line, of its level and of its slope over
        half of the line's pixels.
    """

    interpolation: Interpolation = "linear"
    pseudo_continuum: float = Field(default=0.004, ge=0.0, le=0.1)


@dataclass(frozen=True, eq=False)
class Family:
    """Spectra of one line, by the atmosphere and one abundance.

    Attributes
    ----------
    grid : Grid
        Axes of the core, then the abundance; pixels of the line and its sides.
    first : int
        Its first pixel in the spectrum.
    weight : (n_line_pixel,) float64
        Of its pixels; those at the sides count for the continuum.
    """

    grid: Grid = field(metadata=stored(""))
    first: int = field(metadata=stored(None))
    weight: Float64Array

    @property
    def pixels(self) -> slice:
        """Its pixels in the spectrum."""
        return slice(self.first, self.first + self.weight.size)

    def measure(
        self,
        flux: Float32Array,
        ivar: Float32Array,
        core: Float64Array,
        *,
        pseudo_continuum: float,
        noise_correlation: tuple[float, ...],
        slope: bool = True,
    ) -> tuple[FitResult, Float64Array]:
        """Fit the abundance of stars whose atmosphere is known.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float32
            Whole spectra, at rest and normalised.
        core : (n_star, n_core) float64
            Finite.
        pseudo_continuum, noise_correlation
            As of the method.
        slope : bool
            Whether the local continuum has a slope; none in models of earlier versions.

        Returns
        -------
        result : FitResult
            Its column after the core is the abundance.
        follows : (n_star, n_core) float64
            Derivatives of the abundance by the fixed atmosphere.
        """
        n, count = core.shape
        part, noise = flux[:, self.pixels], ivar[:, self.pixels]
        shapes = [np.ones(self.weight.size), np.linspace(-1.0, 1.0, self.weight.size)]
        shapes = shapes if slope else shapes[:1]
        level = (max(pseudo_continuum, 1e-6) * np.array(shapes)).astype(np.float32)
        chain = Chain(self.grid, (Continuum(level),), self.grid.wave, self.grid.own_variance)
        fitter = Fitter(
            chain,
            window=self.weight,
            noise_correlation=noise_correlation,
            tolerance=0.02,
            block=_BLOCK,
        )
        none = np.zeros((n, len(level)))
        place = np.column_stack([core, self._coarse(part, noise, core), none])
        frozen = np.arange(place.shape[1]) < count
        priors = dict.fromkeys(chain.label_names[count + 1 :], (0.0, 1.0))
        prior = Prior.of(chain.label_names, n, priors)
        result = fitter.fit(part, noise, place, prior=prior, frozen=frozen)
        slopes = chain.evaluate(np.clip(result.labels, *chain.bounds.T)).jacobian
        assert slopes is not None, "derivatives were asked for"
        weighted = slopes[:, count] * noise * self.weight.astype(np.float32)
        cross = np.einsum("nkp,np->nk", slopes, weighted).astype(np.float64)
        return result, -cross[:, :count] / np.maximum(cross[:, count, None], 1e-30)

    def _coarse(self, flux: Float32Array, ivar: Float32Array, core: Float64Array) -> Float64Array:
        """Abundance (n_star,) of least chi-square among the nodes."""
        nodes = self.grid.axes[-1]
        weight = ivar * self.weight.astype(np.float32)
        chi2 = np.empty((len(core), nodes.size))
        for k, abundance in enumerate(nodes):
            place = np.column_stack([core, np.full(len(core), abundance)])
            model = self.grid.evaluate(place, jacobian=False).flux
            chi2[:, k] = np.einsum("np,np->n", weight, (flux - model) ** 2)
        return np.asarray(nodes[chi2.argmin(axis=1)])


class _Abundance(NamedTuple):
    """An abundance of some stars.

    Attributes
    ----------
    value, variance : (n_star,) float64
        Mean over lines, and its variance with that of the atmosphere.
    own_sigma : (n_star,) float64
        Error by the noise alone.
    n_line : (n_star,) float64
        Lines with a good pixel.
    lowest : (n_star,) bool
        Whether all of them end at the lowest abundance.
    """

    value: Float64Array
    variance: Float64Array
    own_sigma: Float64Array
    n_line: Float64Array
    lowest: BoolArray


@dataclass(frozen=True, eq=False)
class Gauguin(GridMethod[GauguinSettings]):
    """Gauss-Newton on a grid; abundances line by line.

    Attributes
    ----------
    families : mapping of str to tuple of Family
        The lines of each element.
    tells_limits : bool
        Whether the local continuum has a slope, upper limits stand in columns of their own, and
        fits that do not settle on the linear grid are taken to a smooth one; not in models of
        earlier versions.
    """

    name: ClassVar[str] = "gauguin"
    paper: ClassVar[str] = "Bijaoui et al. (2012, Stat. Meth. 9, 55); Guiglion et al. (2016)"
    bibtex_key: ClassVar[str] = "2016A&A...595A..18G"
    settings_class: ClassVar[type[MethodSettings]] = GauguinSettings

    families: Mapping[str, tuple[Family, ...]] = field(metadata=stored(None))
    tells_limits: bool = True

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: GauguinSettings, seed: int
    ) -> Self:
        """Build the grid, find the lines, and build a family for each; see `Method`."""
        del validation
        base = Foundation.lay(training, settings, seed)
        names = base.label_names(training)
        families = _families(base, settings, names, seed)
        return cls(settings, names, base.core, base.pattern, base.theory.checksum, families)

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit the parameters, then each line; see `Method`."""
        fitted = self._settled(self.core.fit(inputs, external=external), inputs, external)
        out = self.whole(fitted)
        good = np.flatnonzero(finite_rows(fitted.labels))
        labels, covariance, flags = out.labels.copy(), out.covariance.copy(), out.flags.copy()
        core = fitted.labels[good, : len(self.core.grid.label_names)]
        assert fitted.flux is not None, "a fit has a best spectrum"
        plain = self.core.grid.evaluate(core, jacobian=False).flux
        # Velocity, continuum and patterns of the fit are taken off: families know none of them.
        flux = inputs.flux[good] - (fitted.flux[good] - plain)
        noise = noise_seen(self.core.noise_correlation, inputs.noise_correlation)
        further: dict[str, Float64Array] = {}
        for name, lines in self.families.items():
            column = out.label_names.index(name)
            found = self._combine(
                lines, (flux, inputs.ivar[good]), core, fitted.covariance[good], noise
            )
            labels[good, column] = found.value
            covariance[good, column] = covariance[good, :, column] = 0.0
            covariance[good, column, column] = found.variance
            if not self.tells_limits:
                flags[good[found.lowest]] |= Flag.UPPER_LIMIT.value
            else:
                unseen = found.lowest | (found.own_sigma > 1.0 / (_SEEN_SIGMA * np.log(10.0)))
                limit, count = np.full((2, len(out)), np.nan)
                above = found.value + _LIMIT_SIGMA * np.sqrt(found.variance)
                limit[good], count[good] = np.where(unseen, above, np.nan), found.n_line
                further |= {f"{name}_limit": limit, f"n_lines_{name}": count}
        out = replace(out, labels=labels, covariance=covariance, flags=flags.astype(FLAG_DTYPE))
        return replace(out.select(self.label_names), further=further)

    @property
    def further_columns(self) -> tuple[Column, ...]:
        """Upper limit and number of lines of each element."""
        if not self.tells_limits:
            return ()
        columns = []
        for name in self.families:
            text = f"Upper limit of {name} (2 sigma) where its lines are not seen"
            columns.append(Column(f"{name}_limit", "", "stat.max;phys.abund", text))
            text = f"Lines with a good pixel that {name} is the mean of"
            columns.append(Column(f"n_lines_{name}", "", "meta.number", text))
        return tuple(columns)

    def _settled(
        self, fitted: FitResult, inputs: Inputs, external: Mapping[str, External]
    ) -> FitResult:
        """Fit stars anew, on a smooth grid, that go to and fro at a kink of the linear one."""
        restless = np.flatnonzero((fitted.flags & Flag.NOT_CONVERGED.value) != 0)
        grid = self.core.grid
        if not self.tells_limits or grid.interpolation != "linear" or not restless.size:
            return fitted
        smooth = replace(self.core, grid=replace(grid, interpolation="quadratic"))
        known = {n: External(x.value[restless], x.error[restless]) for n, x in external.items()}
        again = smooth.fit(take(inputs, restless), external=known)
        return fitted.with_rows(restless, again)

    def _combine(
        self,
        lines: tuple[Family, ...],
        spectra: tuple[Float32Array, Float32Array],
        core: Float64Array,
        core_covariance: Float64Array,
        noise_correlation: tuple[float, ...],
    ) -> _Abundance:
        """Weighted mean over lines."""
        count = core.shape[1]
        total = np.zeros(len(core))
        mean = np.zeros(len(core))
        n_line = np.zeros(len(core))
        follows = np.zeros(core.shape)
        lowest = np.ones(len(core), dtype=np.bool_)
        for line in lines:
            result, slope = line.measure(
                *spectra,
                core,
                pseudo_continuum=self.settings.pseudo_continuum,
                noise_correlation=noise_correlation,
                slope=self.tells_limits,
            )
            variance = result.covariance[:, count, count]
            usable = np.isfinite(variance) & (variance > 0)
            weight = np.where(usable, 1.0 / np.where(usable, variance, 1.0), 0.0)
            value = np.where(usable, result.labels[:, count], 0.0)
            total += weight
            mean += weight * value
            n_line += usable
            follows += weight[:, None] * np.where(usable[:, None], slope, 0.0)
            lowest &= ~usable | (value <= line.grid.bounds[-1, 0] + 1e-3)
        known = total > 0
        total = np.where(known, total, np.nan)
        follows /= total[:, None]
        frozen = np.einsum("ni,nij,nj->n", follows, core_covariance[:, :count, :count], follows)
        own = 1.0 / total
        return _Abundance(mean / total, own + frozen, np.sqrt(own), n_line, lowest & known)

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays, about = super().to_arrays()
        about["lines"] = {name: [one.first for one in x] for name, x in self.families.items()}
        for name, lines in self.families.items():
            for k, line in enumerate(lines):
                key = f"line.{name}.{k}"
                arrays |= line.grid.axis_arrays(key) | write_fields(line, f"{key}.")[0]
        return arrays, about

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: GauguinSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""

        def family(name: str, number: int, first: int) -> Any:
            key = f"line.{name}.{number}"
            axes = (*about["axes"], name)
            n_pixel, n_own = arrays["grid.wave"].size, arrays[f"{key}.weight"].size
            if not 0 <= first <= n_pixel - n_own:
                raise ValueError(f"{n_own} pixels of a line from {first} on, of {n_pixel}")
            grid = Grid.not_stored(arrays, key, label_names=axes, interpolation="quadratic")
            given = {"grid": grid, "first": int(first)}
            return read_fields(Family, arrays, about, given, f"{key}.")

        families = {
            name: tuple(family(name, k, first) for k, first in enumerate(lines))
            for name, lines in about["lines"].items()
        }
        given = {"families": families, "tells_limits": bool(about.get("tells_limits", False))}
        return {**super().not_stored(arrays, about, settings), **given}


def _families(
    base: Foundation, settings: GauguinSettings, names: tuple[str, ...], seed: int
) -> dict[str, tuple[Family, ...]]:
    """Find the lines of each element among labels, and synthesise their families."""
    theory, rng = base.theory, np.random.default_rng(seed)
    chosen = theory.truth[rng.choice(len(theory.truth), WINDOW_STARS)]
    typical = theory.drawn(chosen, settings.rv_error_kms, rng)
    elements = [n for n in elements_of(theory.names, base.core.grid.label_names) if n in names]
    windows = element_windows(theory.model, typical, elements)
    slopes = theory.model.evaluate(typical).jacobian
    assert slopes is not None, "derivatives were asked for"
    axes = base.nodes_between(_CORE_STEPS)
    families = {}
    for name, window in windows.items():
        power = np.mean(slopes[:, theory.names.index(name)].astype(np.float64) ** 2, axis=0)
        # The best lines, in the order of wavelength.
        lines = sorted(lines_of(window), key=lambda line: -(window * power)[line].sum())
        best = sorted(lines[:_MOST_LINES], key=lambda line: line.start)
        families[name] = tuple(_lines(base, axes, name, window, best))
    return families


def _lines(
    base: Foundation,
    axes: Mapping[str, Float64Array],
    name: str,
    window: Float64Array,
    lines: list[slice],
) -> list[Family]:
    wave, column = base.theory.wave, base.theory.names.index(name)
    side = _SIDE_PIXELS
    if base.theory.resolving_power is not None:
        width = np.median(wave) / base.theory.resolving_power / np.median(np.diff(wave))
        side = max(side, round(_SIDE_WIDTHS * float(width)))
    parts = [slice(max(one.start - side, 0), min(one.stop + side, wave.size)) for one in lines]
    used = np.concatenate([np.arange(wave.size)[part] for part in parts])

    def synthesise(places: Float64Array) -> Float32Array:
        labels = base.pattern.complete(places[:, :-1])
        labels[:, column] = places[:, -1]
        return base.theory.at_rest(labels)[:, used]

    abundances = np.unique(np.clip(_ABUNDANCES, *base.theory.bounds[column]))
    whole = Grid.build(
        {**axes, name: abundances},
        synthesise,
        wave[used],
        interpolation="quadratic",
    )
    ends = np.cumsum([part.stop - part.start for part in parts])
    return [
        _family(base, whole, part, slice(int(end) - (part.stop - part.start), int(end)), window)
        for part, end in zip(parts, ends, strict=True)
    ]


def _family(
    base: Foundation, whole: Grid, part: slice, columns: slice, window: Float64Array
) -> Family:
    """Cut the family of one line out of a grid of all lines of its element."""
    grid = replace(
        whole,
        nodes=np.ascontiguousarray(whole.nodes[:, columns]),
        mean=whole.mean[columns],
        wave=whole.wave[columns],
        own_variance=base.core.grid.own_variance[part],
    )
    # Pixels at the sides have no weight of the element, and hold the local continuum.
    return Family(grid, part.start, np.where(window[part] > 0, window[part], 1.0))
