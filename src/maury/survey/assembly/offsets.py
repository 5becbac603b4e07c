"""Offsets between reference surveys, fitted on the stars that they share, and taken off.

For one label y of a star that two surveys have,

    y_second - y_first = c . phi(x) + noise,    variance = e_first^2 + e_second^2 + s^2,

with phi = 1, or 1 and the star's Teff, log g, [Fe/H] about their medians, and s the scatter that
the errors do not explain. Some stars are outliers (wrong matches, binaries, failed fits): their
differences have a wider Gaussian, and how likely a star is one of them follows from the data
(Hogg, Bovy & Lang 2010, arXiv 1008.4686, eq. 17), by expectation and maximisation.

The x of phi are weighted means of both surveys, weights 1 / e^2: the error of that mean does not
correlate with the difference, so that noise of Teff does not pass for a slope of Teff.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from maury.errors import ConfigError, TrainingError, check_known
from maury.io.arrays import BoolArray, Float64Array, StrArray
from maury.labels.statistics import robust_sigma

MIXTURE_KEY = "2010arXiv1008.4686H"
"""Paper of the fit, in the bibliography."""


@dataclass(frozen=True)
class OffsetFit:
    """How offsets between surveys are fitted. Numbers are chosen, not measured, if nothing is said.

    Attributes
    ----------
    fewest_stars : int
        Common stars for a constant: its error is then below a quarter of the scatter.
    stars_per_slope : int
        Common stars more for each slope.
    rounds : int
        Fits of all labels in turn: terms are means of both surveys, the second moved by the offsets
        of the round before.
    steps : int
        Of the mixture; it stops earlier where nothing changes by 1e-4.
    most_outliers : float
        Share above which outliers would be the sample, and the fit undetermined.
    wider : float
        Least width of the outliers over that of the others: narrower ones are the same stars.
    """

    fewest_stars: int = 20
    stars_per_slope: int = 10
    rounds: int = 4
    steps: int = 200
    most_outliers: float = 0.3
    wider: float = 3.0


FIT = OffsetFit()
FEWEST_STARS = FIT.fewest_stars
_UNITS: Mapping[str, float] = {"teff": 1000.0}
"""In which slopes are given, per label: dex else."""


@dataclass(frozen=True)
class ReferenceLabels:
    """Labels that one survey gives to stars.

    Attributes
    ----------
    survey : str
        Its name.
    names : tuple of str
        Labels.
    values, errors : (n_star, n_label) float64
        NaN where missing or unknown.
    """

    survey: str
    names: tuple[str, ...]
    values: Float64Array
    errors: Float64Array

    def __post_init__(self) -> None:
        shape = (np.shape(self.values)[0], len(self.names))
        if np.shape(self.values) != shape or np.shape(self.errors) != shape:
            raise ConfigError(
                f"labels of {self.survey}: values and errors must have one column for each of the "
                f"{len(self.names)} labels, got {np.shape(self.values)} and {np.shape(self.errors)}"
            )

    def column(self, name: str) -> tuple[Float64Array, Float64Array]:
        """Values and errors of a label, NaN if the survey does not have it."""
        if name not in self.names:
            missing = np.full(len(self.values), np.nan)
            return missing, missing
        k = self.names.index(name)
        return self.values[:, k], self.errors[:, k]


@dataclass(frozen=True)
class LabelOffset:
    """Offset of one label: second survey less first.

    Attributes
    ----------
    label : str
    terms : tuple of str
        Labels that the offset is linear in; empty if it is constant.
    pivots, units, spreads : (n_term,) float64
        ``phi = (x - pivot) / unit``; the spread of x over the common stars.
    coefficients : (1 + n_term,) float64
        Offset at the pivots, then slopes per unit.
    covariance : (1 + n_term, 1 + n_term) float64
        Of the coefficients.
    scatter, scatter_error : float
        Scatter beyond the errors.
    outliers : float
        Share of the common stars that are outliers.
    n_star : int
        Common stars that were used.
    """

    label: str
    terms: tuple[str, ...]
    pivots: Float64Array
    units: Float64Array
    spreads: Float64Array
    coefficients: Float64Array
    covariance: Float64Array
    scatter: float
    scatter_error: float
    outliers: float
    n_star: int

    @property
    def errors(self) -> Float64Array:
        """1 sigma errors of the coefficients, shape (1 + n_term,)."""
        return np.asarray(np.sqrt(np.diagonal(self.covariance)))

    def design(self, x: Float64Array) -> Float64Array:
        """Return phi, (n_star, 1 + n_term), of terms (n_star, n_term); 0 where one is missing."""
        scaled = (x - self.pivots) / self.units
        clean = np.where(np.isfinite(scaled), scaled, 0.0)
        return np.hstack([np.ones((len(x), 1)), clean])

    def at(self, x: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Offset and its variance, scatter included, for terms (n_star, n_term).

        A star that lacks a term has the offset of the median star, and the variance that its
        ignorance costs.
        """
        phi = self.design(x)
        slopes = self.coefficients[1:] * self.spreads / self.units
        ignorance = (~np.isfinite(x) * slopes**2).sum(axis=1)
        variance = np.einsum("ij,jk,ik->i", phi, self.covariance, phi)
        return phi @ self.coefficients, variance + self.scatter**2 + ignorance


@dataclass(frozen=True)
class Offsets:
    """Offsets of all labels of one survey against another.

    Attributes
    ----------
    first, second : str
        Names of the survey whose scale it is, and of the one that is moved.
    labels : tuple of LabelOffset
    correlation : (n_label, n_label) float64
        Of the residuals, each divided by its expected spread; NaN where too few stars tell.
    """

    first: str
    second: str
    labels: tuple[LabelOffset, ...]
    correlation: Float64Array

    def __getitem__(self, label: str) -> LabelOffset:
        """Return the offset of a label; raises `UnknownName` if none was fitted."""
        table = {offset.label: offset for offset in self.labels}
        return table[check_known("label with a fitted offset", label, table)]

    def apply(self, given: ReferenceLabels) -> ReferenceLabels:
        """Put labels of the second survey on the scale of the first.

        The offset of a star is that at its own, moved labels. The variance grows by that of the
        offset and by the scatter, all of which is laid at the second survey's door. Labels without
        a fitted offset are missing in the result.
        """
        x = {name: given.column(name)[0] for offset in self.labels for name in offset.terms}
        moved = dict(x)
        values, errors = np.full(given.values.shape, np.nan), np.full(given.values.shape, np.nan)
        # Offsets are at moved labels, which depend on the offsets: found by going round.
        for _ in range(FIT.rounds):
            for offset in self.labels:
                if offset.label in moved:
                    shift, _ = offset.at(_stack(moved, offset.terms, len(given.values)))
                    moved[offset.label] = x[offset.label] - shift
        for offset in self.labels:
            if offset.label not in given.names:
                continue
            k = given.names.index(offset.label)
            shift, variance = offset.at(_stack(moved, offset.terms, len(given.values)))
            values[:, k] = given.values[:, k] - shift
            errors[:, k] = np.sqrt(_known(given.errors[:, k]) ** 2 + variance)
        errors[~np.isfinite(values)] = np.nan
        return ReferenceLabels(given.survey, given.names, values, errors)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Return (label, offset, slopes, scatter, stars) in words, with a header."""
        out = [("label", f"{self.second} - {self.first}", "slopes", "scatter", "stars (outliers)")]
        for one in self.labels:
            slopes = ", ".join(
                f"{c:+.3g} +- {e:.2g} per {u:g} of {t}"
                for t, u, c, e in zip(
                    one.terms, one.units, one.coefficients[1:], one.errors[1:], strict=True
                )
            )
            out.append(
                (
                    one.label,
                    f"{one.coefficients[0]:+.4g} +- {one.errors[0]:.2g}",
                    slopes,
                    f"{one.scatter:.3g} +- {one.scatter_error:.2g}",
                    f"{one.n_star} ({100 * one.outliers:.1f} %)",
                )
            )
        return out

    def to_dict(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {
            "first": self.first,
            "second": self.second,
            "correlation": [[None if np.isnan(c) else c for c in r] for r in self.correlation],
            "labels": [
                {
                    key: value.tolist() if isinstance(value, np.ndarray) else value
                    for key, value in vars(offset).items()
                }
                for offset in self.labels
            ],
        }


def fit_offsets(
    first: ReferenceLabels,
    second: ReferenceLabels,
    *,
    terms: Sequence[str] = (),
    fewest: int = FEWEST_STARS,
) -> Offsets:
    """Fit the offset of every label that enough stars have in both surveys.

    Parameters
    ----------
    first, second : ReferenceLabels
        The same stars in the same order; NaN where a survey does not have one.
    terms : sequence of str
        Labels that the offsets are linear in, such as ``teff``, ``logg``, ``fe_h``; none for
        constant offsets.
    fewest : int
        Least number of common stars; each term needs ten more.

    Raises
    ------
    TrainingError
        If no label has enough common stars.
    ConfigError
        If a survey lacks a term, or the surveys differ in length.
    """
    if len(first.values) != len(second.values):
        raise ConfigError("both surveys must give the same stars in the same order")
    for survey in (first, second):
        for term in terms:
            check_known(f"label of {survey.survey} to fit offsets in", term, survey.names)
    need = fewest + FIT.stars_per_slope * len(terms)
    shared = [name for name in first.names if name in second.names]
    counts = {name: int(_common(first, second, name, terms).sum()) for name in shared}
    fitted = [name for name in shared if counts[name] >= need]
    if not fitted:
        raise TrainingError(
            f"{second.survey} cannot be tied to {first.survey}: {need} common stars are needed for "
            f"a label, and they have {counts or 'no label in common'}; take fewer terms, or use "
            "one survey alone"
        )
    offsets: dict[str, LabelOffset] = {}
    residuals: dict[str, Float64Array] = {}
    for _ in range(FIT.rounds if terms else 1):
        x = _means(first, second, terms, offsets)
        for name in fitted:
            offsets[name], residuals[name] = _fit_label(first, second, name, terms, x)
    correlation = _correlation([residuals[name] for name in fitted])
    return Offsets(first.survey, second.survey, tuple(offsets[n] for n in fitted), correlation)


@dataclass(frozen=True)
class Merged:
    """Labels of stars from several surveys, on the scale of the first.

    Attributes
    ----------
    labels : ReferenceLabels
        One row a star.
    survey : (n_star,) str
        Which survey the row comes from; empty where none has the star.
    """

    labels: ReferenceLabels
    survey: StrArray


def merge(surveys: Sequence[ReferenceLabels], offsets: Mapping[str, Offsets]) -> Merged:
    """Give every star the labels of the first survey that has it, on the scale of the first.

    Parameters
    ----------
    surveys : sequence of ReferenceLabels
        The same stars in the same order, NaN where a survey lacks one; the first sets the scale.
    offsets : mapping of str to Offsets
        By name of each further survey; one without is taken as it is.
    """
    names = tuple(dict.fromkeys(name for survey in surveys for name in survey.names))
    n_star = len(surveys[0].values)
    values, errors = np.full((2, n_star, len(names)), np.nan)
    # The width is stated, as numpy would cut every name to that of the empty text.
    origin = np.full(n_star, "", dtype=f"U{max(len(s.survey) for s in surveys)}")
    for survey in surveys:
        moved = offsets[survey.survey].apply(survey) if survey.survey in offsets else survey
        rows = (origin == "") & np.isfinite(moved.values).any(axis=1)
        index = [names.index(name) for name in survey.names]
        values[np.ix_(rows, index)] = moved.values[rows]
        errors[np.ix_(rows, index)] = moved.errors[rows]
        origin[rows] = survey.survey
    title = "+".join(survey.survey for survey in surveys)
    return Merged(ReferenceLabels(title, names, values, errors), origin)


def _stack(x: Mapping[str, Float64Array], terms: Sequence[str], n_star: int) -> Float64Array:
    return np.column_stack([x[name] for name in terms]) if terms else np.empty((n_star, 0))


def _known(errors: Float64Array) -> Float64Array:
    """Errors, 0 where unknown: the scatter then stands for them."""
    return np.where(np.isfinite(errors), errors, 0.0)


def _common(
    first: ReferenceLabels, second: ReferenceLabels, label: str, terms: Sequence[str]
) -> BoolArray:
    common = np.ones(len(first.values), dtype=np.bool_)
    for name in (label, *terms):
        for survey in (first, second):
            common &= np.isfinite(survey.column(name)[0])
    return common


def _means(
    first: ReferenceLabels,
    second: ReferenceLabels,
    terms: Sequence[str],
    offsets: Mapping[str, LabelOffset],
) -> Float64Array:
    """Weighted means of the terms over both surveys, the second's less its offset so far."""
    out = np.empty((len(first.values), len(terms)))
    for k, name in enumerate(terms):
        a, e = first.column(name)
        b, f = second.column(name)
        scatter = 0.0
        if name in offsets:
            x = _means(first, second, terms, {})
            b = b - offsets[name].at(x)[0]
            scatter = offsets[name].scatter
        variances = np.array([_known(e) ** 2, _known(f) ** 2 + scatter**2])
        # A survey that gives no errors would have all the weight: both then count alike.
        equal = (variances <= 0).any(axis=0)
        weights = np.where(equal, 1.0, 1.0 / np.where(variances > 0, variances, 1.0))
        out[:, k] = (weights[0] * a + weights[1] * b) / weights.sum(axis=0)
    return out


def _fit_label(
    first: ReferenceLabels,
    second: ReferenceLabels,
    label: str,
    terms: Sequence[str],
    x: Float64Array,
) -> tuple[LabelOffset, Float64Array]:
    """Fit one label; also return its scaled residuals, NaN for outliers and stars not common."""
    rows = np.flatnonzero(_common(first, second, label, terms))
    (a, e), (b, f) = first.column(label), second.column(label)
    difference = (b - a)[rows]
    variance = (_known(e) ** 2 + _known(f) ** 2)[rows]
    units = np.array([_UNITS.get(name, 1.0) for name in terms])
    # The constant is thus the offset of a typical star, and hardly correlates with the slopes.
    pivots = np.median(x[rows], axis=0)
    phi = np.hstack([np.ones((rows.size, 1)), (x[rows] - pivots) / units])
    fit = _mixture(difference, variance, phi)
    offset = LabelOffset(
        label,
        tuple(terms),
        pivots,
        units,
        np.std(x[rows], axis=0),
        fit.coefficients,
        fit.covariance,
        float(np.sqrt(fit.scatter2)),
        fit.scatter_error,
        float(1.0 - fit.inlier.mean()),
        int(rows.size),
    )
    residual = np.full(len(first.values), np.nan)
    total = np.maximum(variance + fit.scatter2, 1e-24)
    scaled = (difference - phi @ fit.coefficients) / np.sqrt(total)
    residual[rows] = np.where(fit.inlier > 0.5, scaled, np.nan)
    return offset, residual


@dataclass(frozen=True)
class _Fit:
    coefficients: Float64Array
    covariance: Float64Array
    scatter2: float
    scatter_error: float
    inlier: Float64Array


def _mixture(y: Float64Array, variance: Float64Array, phi: Float64Array) -> _Fit:
    """Linear model with scatter, and outliers about it in a wider Gaussian."""
    middle = np.median(y)
    width2 = robust_sigma(y) ** 2
    # Copies of one value differ by nothing at all.
    width2 = max(width2, 1e-6 * float(np.median(variance)), 1e-24)
    beta: Float64Array = np.zeros(phi.shape[1])
    beta[0] = middle
    scatter2 = max(width2 - float(np.median(variance)), 0.0)
    # Where the iteration starts; chosen, not measured: both are fitted.
    share, wide2 = 0.05, 25.0 * width2
    inlier: Float64Array = np.ones(y.size)
    for _ in range(FIT.steps):
        narrow, wide = np.maximum(variance + scatter2, 1e-12 * width2), variance + wide2
        residual2 = (y - phi @ beta) ** 2
        # Hogg et al. (2010), eq. 17, in logarithms: of far outliers both densities underflow to 0.
        log_in = np.log(1 - share) - 0.5 * (residual2 / narrow + np.log(narrow))
        log_out = np.log(share) - 0.5 * (residual2 / wide + np.log(wide))
        inlier = np.asarray(np.exp(log_in - np.logaddexp(log_in, log_out)))
        weight = inlier / narrow + (1 - inlier) / wide
        old = (*beta, scatter2)
        normal = phi.T @ (weight[:, None] * phi)
        # No plain inverse: a term that is alike in all stars makes the matrix singular.
        beta = np.asarray(np.linalg.pinv(normal) @ (phi.T @ (weight * y)))
        residual2 = (y - phi @ beta) ** 2
        scatter2 = _scatter2(residual2, variance, inlier, phi.shape[1])
        share = float(np.clip(np.mean(1 - inlier), 1e-4, FIT.most_outliers))
        floor = FIT.wider**2 * (scatter2 + float(np.median(variance)))
        wide2 = max(float(np.average(residual2, weights=1 - inlier + 1e-12)), floor)
        if np.allclose(old, (*beta, scatter2), rtol=1e-4, atol=1e-4 * np.sqrt(width2)):
            break
    total = np.maximum(variance + scatter2, 1e-12 * width2)
    covariance = np.asarray(np.linalg.pinv(phi.T @ ((inlier / total)[:, None] * phi)))
    # Fisher information of the variance of a Gaussian: half the sum of 1 / variance^2.
    information = float(np.sum(inlier / total**2)) / 2.0
    error2 = 1.0 / np.sqrt(information)
    scatter = np.sqrt(scatter2)
    # Near zero the scatter is known to the square root of what its square is known to.
    scatter_error = float(min(error2 / (2 * scatter) if scatter > 0 else np.inf, np.sqrt(error2)))
    return _Fit(beta, covariance, scatter2, scatter_error, inlier)


def _scatter2(
    residual2: Float64Array, variance: Float64Array, inlier: Float64Array, n_coefficient: int
) -> float:
    """Most likely variance beyond the errors, freed of the bias by the fitted coefficients."""
    from scipy.optimize import brentq

    n_free = float(inlier.sum())
    residual2 = residual2 * n_free / max(n_free - n_coefficient, 1.0)

    # The derivative of the log likelihood but for a factor; its root is the maximum.
    def slope(scatter2: float) -> float:
        total = variance + scatter2
        return float(np.sum(inlier * (residual2 - total) / total**2))

    top = float(residual2.max(initial=0.0))
    if top <= 0:
        return 0.0
    low = 0.0 if np.all(variance > 0) else 1e-12 * top
    return float(brentq(slope, low, top)) if slope(low) > 0 else 0.0


def _correlation(residuals: Sequence[Float64Array]) -> Float64Array:
    n_label = len(residuals)
    out = np.eye(n_label)
    for i in range(n_label):
        for j in range(i):
            both = np.isfinite(residuals[i]) & np.isfinite(residuals[j])
            known = both.sum() >= FEWEST_STARS
            value = np.mean(residuals[i][both] * residuals[j][both]) if known else np.nan
            out[i, j] = out[j, i] = np.clip(value, -1.0, 1.0)
    return out
