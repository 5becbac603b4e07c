"""ATHOS: labels as linear functions of flux ratios, one after the other, without a continuum.

Hanke, Hansen, Koch & Grebel (2018, A&A 619, A134). Their ratios are for optical spectra; here they
are chosen anew, among many, for the band of the survey. Teff is linear in a ratio, [Fe/H] in a
ratio and Teff, log g in a ratio, Teff and [Fe/H], any other label in a ratio and all three; each
label is the median over its ratios. Its error is that of the flux, that of the coefficients, and
the scatter that training stars have beyond both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    FloatArray,
    IndexArray,
    Int64Array,
)
from maury.io.limits import Limits
from maury.labels.statistics import MAD_TO_SIGMA, robust_sigma
from maury.methods.fitting.completion import (
    Completed,
    SpectrumStatistics,
    gaps,
    guessed_variance,
)
from maury.methods.fitting.noise import weighted_variance
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.survey_theory import filled_stars
from maury.methods.fitting.theory import in_air
from maury.methods.protocols import (
    NO_EXTERNAL,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
)
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs

__all__ = ["Athos", "AthosSettings"]


# Windows start so many pixels apart; the narrowest default window is as wide, so that all are
# covered.
_STEP_PIXELS = 3
# Candidates of ratios in memory together: 4096 x 4000 stars x 8 bytes are 130 MB.
_CHUNK = 4096
_TINY = 1e-30
"""Replaces the noise of a label that no pixel moves."""
_BLOCK = 128
"""Stars whose coefficients lie in memory together, 70 kB each for nine labels."""
# Chosen: keeps 99.7 % of normal residuals and leaves out binaries and bad labels.
_CLIP_SIGMA = 3.0
# Rounds of clipping at most; chosen, not measured.
_CLIP_ROUNDS = 4
# Denominators are kept off zero; chosen, below the cores of strong lines.
_LEAST_FLUX = 0.02


_TELLURIC_AA = (
    (6276.0, 6318.0),
    (6866.0, 6960.0),
    (7164.0, 7340.0),
    (7590.0, 7710.0),
    (8128.0, 8352.0),
    (8940.0, 9850.0),
)
"""Bands of oxygen and water in air (Hinkle et al. 2003, BAAS 35, 1260) that absorb percents at any
site: no ratio stands there, as lines of the Earth move through the spectra of stars."""
_Range = tuple[float, float]
_MOST_RANGES = 1000
"""Ranges that a setting may name: more than there are bands in any window."""
_Width = Annotated[int, Field(ge=1, le=Limits.grid_pixels)]
_MOST_WIDTHS = 100
"""Each is tried beside each other one."""


class AthosSettings(MethodSettings):
    """Settings of ATHOS.

    Attributes
    ----------
    ratios : int
        Flux ratios per label.
    widths : tuple of int
        Widths in pixels of the windows that are tried.
    reach_aa : float
        Largest distance in angstrom of the two windows of a ratio, so that the continuum between
        them is nearly the same.
    tellurics : bool
        Whether windows may not lie in the telluric bands of oxygen and water.
    avoid : tuple of (float, float)
        Further ranges, angstrom in air, in which no window may lie.
    """

    ratios: int = Field(default=20, ge=1, le=500)
    widths: tuple[_Width, ...] = Field(default=(3, 7, 15), min_length=1, max_length=_MOST_WIDTHS)
    reach_aa: float = Field(default=30.0, gt=0.0, allow_inf_nan=False)
    tellurics: bool = True
    avoid: tuple[_Range, ...] = Field(default=(), max_length=_MOST_RANGES)


@dataclass(frozen=True, eq=False)
class Athos(Method[AthosSettings]):
    """ATHOS, trained.

    Attributes
    ----------
    order : (n_label,) int64
        Labels, in the order in which they are measured.
    windows : (n_label, n_ratio, 4) int64
        First pixel and pixel after the last, of the numerator and the denominator.
    weights : (n_label, n_ratio, 2 + n_label) float64
        Constant, factor of the ratio, factor of each label.
    systematic : (n_label,) float64
        Scatter of the training stars beyond the errors of flux and coefficients; in models of
        earlier versions beyond the scatter among ratios.
    spectra : SpectrumStatistics or None
        Of training spectra, for masked pixels; None in models that were trained before it was.
    coefficients : (n_label, n_ratio, 2 + n_label, 2 + n_label) float64 or None
        Covariance of the weights; None in models of earlier versions, whose error is the scatter
        among ratios.
    noise_correlation : tuple of float
        Of the training spectra.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "athos"
    paper: ClassVar[str] = "Hanke et al. (2018, A&A 619, A134)"
    bibtex_key: ClassVar[str] = "2018A&A...619A.134H"
    settings_class: ClassVar[type[MethodSettings]] = AthosSettings

    order: Int64Array
    windows: Int64Array
    weights: Float64Array
    systematic: Float64Array
    spectra: SpectrumStatistics | None = None
    coefficients: Float64Array | None = None
    noise_correlation: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.weights.shape != (*self.windows.shape[:2], 2 + len(self.label_names)):
            raise ValueError(f"weights are {self.weights.shape} for {len(self.label_names)} labels")
        # Its pixels are numbers of a file, and a spectrum is looked up by them.
        widths = np.diff(self.windows[..., :2]), np.diff(self.windows[..., 2:])
        end = Limits.grid_pixels if self.spectra is None else self.spectra.mean.size
        lowest, highest = self.windows.min(initial=0), self.windows.max(initial=0)
        if min(map(np.min, widths)) < 1 or lowest < 0 or highest > end:
            raise ValueError(f"windows reach from pixel {lowest} to {highest} of {end}")

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: AthosSettings, seed: int
    ) -> Self:
        """Choose ratios for each label, and fit their relations, on stars with all labels.

        Raises
        ------
        ConfigError
            If the spectra are shorter than any window.
        TrainingError
            If there is no such star.
        """
        stars = complete_stars(filled_stars(training), settings.labels)
        names, truth, flux = stars.label_names, stars.truth, stars.inputs.flux
        pixel_aa = float(np.median(np.diff(training.wave_aa)))
        bad = _avoided(in_air(training), settings)
        candidates = _candidates(bad, settings, settings.reach_aa / pixel_aa)
        order, given = _chain(names)
        chosen = _choose(flux, truth, candidates, given, settings.ratios)
        windows = candidates[chosen]
        weights = np.zeros((*chosen.shape, 2 + len(names)))
        coefficients = np.zeros((*weights.shape, weights.shape[2]))
        for label, uses in enumerate(given):
            ratio = _ratios(flux, windows[label])
            for k in range(ratio.shape[1]):
                found = _clipped_fit(ratio[:, k], truth, label, uses)
                weights[label, k], coefficients[label, k] = found
        trained = cls(
            settings=settings,
            label_names=names,
            order=np.array(order, dtype=np.int64),
            windows=windows,
            weights=weights,
            systematic=np.zeros(len(names)),
            spectra=SpectrumStatistics.learn(
                flux, stars.inputs.ivar, noise_correlation=tuple(training.noise_correlation)
            ),
            coefficients=coefficients,
            noise_correlation=tuple(training.noise_correlation),
        )
        answered = trained.apply(stars.inputs)
        beyond = [
            max(robust_sigma(miss) ** 2 - float(np.nanmedian(own)) ** 2, 0.0)
            for miss, own in zip((answered.labels - truth).T, answered.sigma.T, strict=True)
        ]
        return replace(trained, systematic=np.sqrt(np.array(beyond)))

    @property
    def errors_follow_noise(self) -> bool:
        """Whether errors are propagated from the flux; not in models of earlier versions."""
        return self.coefficients is not None

    def regress(self, flux: FloatArray) -> tuple[Float64Array, Float64Array]:
        """Labels of spectra, and their scatter among ratios.

        Parameters
        ----------
        flux : (n_star, n_pixel) float
            Any continuum.

        Returns
        -------
        labels, spread : (n_star, n_label) float64
            Median, and scaled median absolute deviation, over ratios.
        """
        sums = _sums(flux)
        labels = np.zeros((len(flux), len(self.label_names)))
        spread = np.zeros_like(labels)
        for label in self.order:
            ratio = _ratio_of(sums, self.windows[label])
            constant, slope = self.weights[label, :, 0], self.weights[label, :, 1]
            single = constant + ratio * slope + labels @ self.weights[label, :, 2:].T
            middle = np.median(single, axis=1)
            spread[:, label] = MAD_TO_SIGMA * np.median(np.abs(single - middle[:, None]), axis=1)
            labels[:, label] = middle
        return labels, spread

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Measure ratios; see `maury.methods.protocols.Method.apply`."""
        good = inputs.ivar > 0
        flux, gap = inputs.flux.copy(), np.flatnonzero(gaps(inputs.ivar))
        factor = np.ones((len(flux), len(self.label_names)))
        extra = np.zeros_like(factor)
        if self.spectra is None:
            extra[gap] = guessed_variance(~good[gap], self.gradient(np.ones(flux.shape[1])))
        else:
            found = self.spectra.complete(flux[gap], inputs.ivar[gap], scaled=True)
            flux[gap] = found.flux
            factor[gap], extra[gap] = self._growth(found, inputs.ivar[gap])
        labels, spread = self.regress(flux)
        if self.coefficients is None or self.spectra is None:
            sigma = np.sqrt(factor * (spread**2 + self.systematic**2) + extra)
        else:
            variance = factor * self._statistical(flux, labels, inputs) + extra
            sigma = np.sqrt(variance + self.systematic**2)
        blank = ~good.any(axis=1)
        labels[blank] = sigma[blank] = np.nan
        return FitResult.without_fit(self.label_names, labels, sigma=sigma)

    def _statistical(
        self, flux: Float32Array, labels: Float64Array, inputs: Inputs
    ) -> Float64Array:
        """Variance (n_star, n_label) by the errors of flux and of coefficients.

        That of the flux passes through the mean over ratios at the mean spectrum, and is that of
        the labels that a label takes, too. Masked pixels have the noise of the others here.
        """
        assert self.spectra is not None, "such models have statistics of spectra"
        assert self.coefficients is not None, "such models have a covariance of coefficients"
        good = inputs.ivar > 0
        noise = np.where(good, 1.0 / np.where(good, inputs.ivar, 1.0), 0.0)
        count = np.maximum(good.sum(axis=1, keepdims=True), 1)
        level = np.where(good, noise, noise.sum(axis=1, keepdims=True) / count)
        scale = np.maximum(np.median(flux / self.spectra.mean, axis=1), _LEAST_FLUX)[:, None]
        lags = noise_seen(self.noise_correlation, inputs.noise_correlation)
        gradient = self.gradient(self.spectra.mean)
        out = weighted_variance(gradient, np.sqrt(level) / scale, correlation=lags)
        sums = _sums(flux)
        for label in self.order:
            ratio = _ratio_of(sums, self.windows[label])
            # All ratios are fitted to the same stars, so that their errors do not average out.
            terms = np.empty((*ratio.shape, 2 + labels.shape[1]))
            terms[:, :, 0], terms[:, :, 1], terms[:, :, 2:] = 1.0, ratio, labels[:, None]
            single = np.einsum("nri,rij,nrj->nr", terms, self.coefficients[label], terms)
            out[:, label] += np.maximum(single, 0.0).mean(axis=1)
        return np.asarray(out)

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: AthosSettings
    ) -> dict[str, Any]:
        """Return what earlier versions did not store; see `Method`."""
        del arrays, settings
        return {"noise_correlation": tuple(about.get("noise_correlation", ()))}

    def _growth(self, found: Completed, ivar: Float32Array) -> tuple[Float64Array, Float64Array]:
        """By what masked pixels multiply the variance of labels, and what they add to it.

        Completed pixels follow the good ones, so that the scatter among ratios does not see that
        fewer pixels bear all the noise: how much more noise a label has is reckoned from its
        derivatives.
        """
        assert self.spectra is not None, "spectra were completed"
        gradient = self.gradient(self.spectra.mean)
        factor = np.empty((len(ivar), len(self.label_names)))
        extra = np.empty_like(factor)
        for start in range(0, len(ivar), _BLOCK):
            rows = np.arange(start, min(start + _BLOCK, len(ivar)))
            seen, good = self.spectra.effective(found.rows(rows), gradient), ivar[rows] > 0
            sigma = 1.0 / np.sqrt(np.where(good, ivar[rows], np.inf)) / found.scale[rows]
            level = np.sqrt(np.sum(sigma**2, axis=1) / np.maximum(good.sum(axis=1), 1))
            usual = np.where(good, sigma, level[:, None])
            now = weighted_variance(seen.coefficients, sigma, correlation=())
            whole = weighted_variance(gradient, usual, correlation=())
            factor[rows] = np.maximum(now / np.maximum(whole, _TINY), 1.0)
            extra[rows] = seen.variance
        return factor, extra

    def gradient(self, flux: FloatArray) -> Float64Array:
        """Return derivatives (n_pixel, n_label) of the labels at some spectrum (n_pixel,).

        Of the mean over ratios, which moves as their median does.
        """
        out = np.zeros((flux.size, len(self.label_names)))
        pixel = np.arange(flux.size)
        for label in self.order:
            slopes = self.weights[label, :, 1]
            for (first, stop, low, high), slope in zip(self.windows[label], slopes, strict=True):
                above, below = (pixel >= first) & (pixel < stop), (pixel >= low) & (pixel < high)
                top, bottom = above / (stop - first), below / (high - low)
                ratio = (top @ flux) / (bottom @ flux)
                out[:, label] += (top - ratio * bottom) / (bottom @ flux) * slope
            out[:, label] /= len(self.windows[label])
            out[:, label] += out @ self.weights[label, :, 2:].mean(axis=0)
        return out


def _chain(names: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """In which order labels are measured, and which of them each one takes."""
    metals = next((name for name in ("fe_h", "m_h") if name in names), None)
    first = [name for name in ("teff", metals, "logg") if name in names]
    known = [list(names).index(str(name)) for name in first]
    rest = [k for k in range(len(names)) if k not in known]
    given = [known] * len(names)
    for position, label in enumerate(known):
        given[label] = known[:position]
    return [*known, *rest], given


def _avoided(wave_aa: Float64Array, settings: AthosSettings) -> BoolArray:
    """Pixels (n_pixel,) in which no window may lie, of wavelengths in air."""
    ranges = (*(_TELLURIC_AA if settings.tellurics else ()), *settings.avoid)
    bad = np.zeros(wave_aa.size, dtype=np.bool_)
    for low, high in ranges:
        bad |= (wave_aa >= low) & (wave_aa <= high)
    return bad


def _candidates(bad: BoolArray, settings: AthosSettings, reach: float) -> Int64Array:
    """Pairs of windows that do not overlap and lie within `reach` pixels, (n_candidate, 4)."""
    n_pixel = bad.size
    counted = np.concatenate([[0], np.cumsum(bad)])
    starts = [
        (first, first + width)
        for width in sorted(settings.widths)
        for first in range(0, n_pixel - width + 1, _STEP_PIXELS)
        if counted[first + width] == counted[first]
    ]
    window = np.array(starts, dtype=np.int64).reshape(-1, 2)
    centre = window.mean(axis=1)
    pairs = []
    for k in range(len(window)):
        gap = centre - centre[k]
        apart = (window[:, 0] >= window[k, 1]) & (gap <= reach)
        other = np.flatnonzero(apart)
        pairs.append(np.concatenate([np.tile(window[k], (other.size, 1)), window[other]], axis=1))
    found = np.concatenate(pairs) if pairs else np.zeros((0, 4), dtype=np.int64)
    if len(found) == 0:
        raise ConfigError(
            f"no two windows of {settings.widths} pixels fit into {n_pixel} pixels, of which "
            f"{bad.sum()} are avoided, within {settings.reach_aa} angstrom; choose narrower "
            "windows or a longer reach, or avoid less (tellurics = false)"
        )
    return found


def _sums(flux: FloatArray) -> Float64Array:
    out = np.zeros((len(flux), flux.shape[1] + 1))
    np.cumsum(flux, axis=1, dtype=np.float64, out=out[:, 1:])
    return out


def _ratio_of(sums: Float64Array, windows: Int64Array) -> Float64Array:
    """Mean flux of the first window over that of the second, (n_star, n_ratio)."""
    above = (sums[:, windows[:, 1]] - sums[:, windows[:, 0]]) / (windows[:, 1] - windows[:, 0])
    below = (sums[:, windows[:, 3]] - sums[:, windows[:, 2]]) / (windows[:, 3] - windows[:, 2])
    return np.asarray(above / np.where(np.abs(below) < _LEAST_FLUX, _LEAST_FLUX, below))


def _ratios(flux: FloatArray, windows: Int64Array) -> Float64Array:
    return _ratio_of(_sums(flux), windows)


def _choose(
    flux: FloatArray,
    truth: Float64Array,
    candidates: Int64Array,
    given: Sequence[Sequence[int]],
    count: int,
) -> IndexArray:
    """Ratios of largest partial correlation with each label, none of them alike."""
    # Means of windows are differences of running sums, whatever their width.
    sums = _sums(flux)
    strength = np.concatenate(list(_strengths(sums, truth, candidates, given)), axis=1)
    middle = np.stack([candidates[:, :2].mean(axis=1), candidates[:, 2:].mean(axis=1)], axis=1)
    chosen = []
    for row in strength:
        picked: list[int] = []
        for candidate in np.argsort(-row):
            near = np.abs(middle[picked] - middle[candidate]).max(axis=1) if picked else np.inf
            if np.min(near) > _STEP_PIXELS:
                picked.append(int(candidate))
            if len(picked) == count:
                break
        chosen.append(picked)
    size = min(len(picked) for picked in chosen)
    return np.array([picked[:size] for picked in chosen], dtype=np.intp)


def _strengths(
    sums: Float64Array,
    truth: Float64Array,
    candidates: Int64Array,
    given: Sequence[Sequence[int]],
) -> Iterator[Float64Array]:
    """Squared partial correlation of each label with each ratio, in pieces (n_label, n_piece)."""
    scaled = (truth - truth.mean(axis=0)) / np.where(truth.std(axis=0) > 0, truth.std(axis=0), 1.0)
    bases = [np.linalg.qr(np.column_stack([np.ones(len(truth)), scaled[:, u]]))[0] for u in given]
    targets = []
    for label, basis in enumerate(bases):
        rest = scaled[:, label] - basis @ (basis.T @ scaled[:, label])
        targets.append(rest / max(float(np.linalg.norm(rest)), 1e-12))
    for start in range(0, len(candidates), _CHUNK):
        ratio = _ratio_of(sums, candidates[start : start + _CHUNK])
        ratio -= ratio.mean(axis=0)
        power = np.einsum("nr,nr->r", ratio, ratio)
        rows = []
        for target, basis in zip(targets, bases, strict=True):
            left = power - ((basis.T @ ratio) ** 2).sum(axis=0)
            along = (target @ ratio) ** 2
            rows.append(along / np.maximum(left, 1e-6 * power + 1e-12))
        yield np.stack(rows)


def _clipped_fit(
    ratio: Float64Array, truth: Float64Array, label: int, uses: Sequence[int]
) -> tuple[Float64Array, Float64Array]:
    """Least squares of a label by constant, ratio and other labels, outliers left out.

    Returns
    -------
    (2 + n_label,), (2 + n_label, 2 + n_label) float64
        Weights, zero for labels that are not used, and their covariance.
    """
    columns = np.column_stack([np.ones(len(truth)), ratio, truth[:, uses]])
    # Kelvins beside ratios near one: columns of one size keep the solution exact.
    size = np.maximum(np.abs(columns).max(axis=0), 1e-12)
    kept = np.ones(len(truth), dtype=np.bool_)
    solved = np.zeros(columns.shape[1])
    for _ in range(_CLIP_ROUNDS):
        solved = np.linalg.lstsq(columns[kept] / size, truth[kept, label], rcond=None)[0] / size
        miss = truth[:, label] - columns @ solved
        inside = np.abs(miss) <= _CLIP_SIGMA * max(robust_sigma(miss[kept]), 1e-12)
        if np.array_equal(inside, kept) or inside.sum() <= columns.shape[1]:
            break
        kept = inside
    place = np.concatenate([[0, 1], 2 + np.array(uses, dtype=np.intp)])
    out = np.zeros(2 + truth.shape[1])
    out[place] = solved
    scaled = columns[kept] / size
    miss = truth[kept, label] - columns[kept] @ solved
    freedom = max(int(kept.sum()) - place.size, 1)
    spread = np.linalg.pinv(scaled.T @ scaled) * float(miss @ miss) / freedom
    covariance = np.zeros((out.size, out.size))
    covariance[np.ix_(place, place)] = spread / np.outer(size, size)
    return out, covariance
