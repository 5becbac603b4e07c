"""Errors of any network or method, calibrated on residuals of stars that it did not learn from.

The default network is calibrated by `maury.prediction.calibration`, which simulates stars. What
cannot simulate is calibrated here, on labelled stars alone. The error of a label is

    sigma^2 = (slope^2 stated^2 + floor^2) exp(2 t c),

with the error that the method or the spread of the networks states, and terms t of S/N, Teff, log g
and [M/H]. Slope, floor and c maximise the likelihood of a t distribution, by which a few wild stars
rule nothing (Lange, Little & Taylor 1989, JASA 84, 881). Scores, residual over error, are those of
stars left out of that fit; they fix a last factor, so that 68.3 % lie within one error, and the
quantiles (`maury.prediction.conformal`). Labels are not moved.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Self

import numpy as np
from scipy.special import ndtri

from maury.errors import ModelFileError, TrainingError
from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int64Array
from maury.labels.columns import QUANTILES
from maury.labels.statistics import robust_scale
from maury.model.directory import RESIDUAL_CALIBRATION, Model
from maury.model.output import Prediction, Unseen
from maury.prediction.calibration import LABEL_PRIOR, LEAST_STARS, REGIME_PRIOR
from maury.prediction.conformal import conformal_quantiles
from maury.prediction.detectors import Limit
from maury.spectra.preparation import Inputs

__all__ = ["ResidualCalibration", "with_residual_calibration"]

logger = logging.getLogger(__name__)

_REGION = ("teff", "logg", "m_h")
_N_TERM = 6
"""S/N, Teff and its square, log g, [M/H] and its square."""
_REACH = 2.0
"""Robust standard deviations beyond which a term stays as it is: few stars are there to learn
from."""
_FREEDOM = 4.0
"""Degrees of freedom of the t distribution: residuals have more wild stars than a normal one
(`docs/explanation/calibration.md`); Lange et al. (1989) take 4 where it is not fitted."""
_T_WITHIN = 1.1416
"""Half-width that holds 68.3 % of a t distribution with 4 degrees of freedom."""
_FOLDS = 5
"""Parts of the stars, of which each is scored by the fit to the others; chosen."""
_LEVELS = (0.55, 0.683, 0.8)
"""Shares whose mean fixes the last factor: one level alone scatters half as much again."""
_BOUNDS = ((-6.0, 4.0), (-6.0, 4.0))
"""Of the logarithms of slope and floor, in units of the typical residual: wide, and finite."""


@dataclass(frozen=True, eq=False)
class ResidualCalibration:
    """How large errors are, learnt from residuals of stars that were not learnt from.

    Attributes
    ----------
    slope : (n_label,) float64
        Factor of the stated error; 0 for a label of which none is stated.
    floor : (n_label,) float64
        In the unit of each label; NaN for a label of which too few residuals are known.
    coefficients : (n_label, 6) float64
        Of the terms of S/N, Teff, log g and [M/H], on the logarithm of the error.
    columns : (3,) int64
        Columns of Teff, log g and [M/H] among the labels; -1 for none.
    centre, scale : (4,) float64
        By which ln(S/N), Teff, log g and [M/H] are scaled.
    tails : (n_label, 5) float64
        Quantiles of residual / error, those of `maury.labels.columns.QUANTILES`.
    chi2 : (2,) float64
        `maury.prediction.detectors.Limit` of the reduced chi-square of the method's own model;
        infinite where it has none.
    n_star : int
        Spectra that fixed it.
    """

    slope: Float64Array
    floor: Float64Array
    coefficients: Float64Array
    columns: Int64Array
    centre: Float64Array
    scale: Float64Array
    tails: Float64Array
    chi2: Float64Array
    n_star: int

    @classmethod
    def fit(cls, unseen: Unseen, label_names: Sequence[str]) -> Self:
        """Learn from predictions of stars whose labels are known.

        Parameters
        ----------
        unseen : Unseen
            Stars that were not learnt from. Test stars are not among them.
        label_names : sequence of str
            Names of the labels, in the order of the predictions.

        Raises
        ------
        TrainingError
            If no label has residuals of `LEAST_STARS` spectra.
        """
        mean, stated = unseen.prediction.mean, unseen.prediction.sigma
        residual = mean - unseen.truth
        known = np.isfinite(residual)
        if (known.sum(axis=0) < LEAST_STARS).all():
            raise TrainingError(
                f"{known.sum(axis=0).max(initial=0)} stars that were not learnt from have labels; "
                f"at least {LEAST_STARS} are needed: give more labelled stars, or hold out more, "
                "as by [split] train = 0.6, validation = 0.3, test = 0.1 in the settings"
            )
        names = list(label_names)
        columns = np.array([names.index(n) if n in names else -1 for n in _REGION], np.int64)
        about = _about(unseen.inputs.snr, mean, columns)
        centre, scale = robust_scale(about)
        terms = _terms((about - centre) / scale)
        fold = _folds(unseen.star_id)
        fits = [
            _LabelFit.make(residual[:, k], stated[:, k], terms, fold)
            for k in range(residual.shape[1])
        ]
        factor = _factors([fit.score for fit in fits])
        score = np.stack([fit.score for fit in fits], axis=1) / factor
        chi2 = unseen.prediction.chi2_reduced
        limit = Limit.none() if chi2 is None else Limit.fit(chi2, unseen.inputs.snr)
        return cls(
            slope=np.array([fit.slope for fit in fits]) * factor,
            floor=np.array([fit.floor for fit in fits]) * factor,
            coefficients=np.stack([fit.coefficients for fit in fits]),
            columns=columns,
            centre=centre,
            scale=scale,
            # Where few stars lie beyond an outer quantile, those of all labels tell how far it is.
            tails=conformal_quantiles(score, np.tile(score.reshape(-1, 1), score.shape[1])),
            chi2=np.array([limit.slope, limit.threshold]),
            n_star=len(residual),
        )

    @classmethod
    def load(cls, model: Model) -> Self | None:
        """Read from the model directory; None if the model has none.

        Raises
        ------
        ModelFileError
            If the attachment is damaged.
        """
        if RESIDUAL_CALIBRATION not in model.attachments:
            return None
        arrays = model.arrays(RESIDUAL_CALIBRATION)
        try:
            return cls.from_arrays(arrays, len(model.labels))
        except (KeyError, ValueError) as error:
            raise ModelFileError(
                f"{model.path}: the calibration of its errors is damaged: {error}"
            ) from error

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray], n_label: int) -> Self:
        """Read what `to_arrays` gave.

        Raises
        ------
        ValueError, KeyError
            If it is something else.
        """
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("slope", "floor"), (n_label,))
        shapes |= {"coefficients": (n_label, _N_TERM), "columns": (len(_REGION),)}
        shapes |= {"centre": (1 + len(_REGION),), "scale": (1 + len(_REGION),)}
        shapes |= {"tails": (n_label, len(QUANTILES)), "chi2": (2,)}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or arrays[name].dtype.kind not in "fi":
                raise ValueError(f"{name!r} must be numbers of shape {shape}")
        columns = arrays["columns"].astype(np.int64)
        if not np.all((columns >= -1) & (columns < n_label)):
            raise ValueError(f"columns must be -1 to {n_label - 1}")
        values = {name: arrays[name].astype(np.float64) for name in shapes if name != "columns"}
        return cls(**values, columns=columns, n_star=int(arrays["n_star"].item()))

    def to_arrays(self) -> dict[str, AnyArray]:
        """Plain arrays for the model directory."""
        return {f.name: np.atleast_1d(getattr(self, f.name)) for f in fields(self)}

    def errors(self, stated: Float64Array, snr: Float64Array, mean: Float64Array) -> Float64Array:
        """Calibrated 1 sigma errors (n_star, n_label).

        NaN where a label is, and where the method states an error of other stars, but not of this.

        Parameters
        ----------
        stated, mean : (n_star, n_label) float64
            Error as the method or the spread of the networks states it, and labels.
        snr : (n_star,) float64
        """
        about = _about(np.asarray(snr, np.float64), mean, self.columns)
        terms = _terms((about - self.centre) / self.scale)
        used = np.where(self.slope > 0, stated, 0.0)
        size = np.hypot(self.slope * used, self.floor) * np.exp(terms @ self.coefficients.T)
        return np.where(np.isfinite(mean) & np.isfinite(size), size, np.nan)

    def calibrate(self, inputs: Inputs, prediction: Prediction) -> Prediction:
        """Return a prediction with calibrated errors, covariances and quantiles."""
        mean = prediction.mean
        sigma = self.errors(prediction.sigma, inputs.snr, mean)
        covariance = prediction.covariance
        if covariance is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                factor = sigma / prediction.sigma
            covariance = covariance * factor[:, :, None] * factor[:, None, :]
        # A residual is predicted minus true: the lower quantile comes from the upper tail.
        quantiles = np.stack([mean - tail * sigma for tail in self.tails[:, ::-1].T])
        return replace(prediction, sigma=sigma, covariance=covariance, quantiles=quantiles)

    def poor(self, inputs: Inputs, chi2_reduced: Float64Array) -> BoolArray:
        """Return which stars (n_star,) the method's own model fits worse than its labelled ones."""
        return Limit(*self.chi2.tolist()).beyond(chi2_reduced, inputs.snr)


def with_residual_calibration(model: Model, unseen: Unseen | None) -> Model:
    """Return a trained model with calibrated errors, if there are stars to calibrate them on.

    Parameters
    ----------
    model : Model
    unseen : Unseen or None
        Predictions of stars that it did not learn from; None if there are none.
    """
    if unseen is None:
        return model
    try:
        found = ResidualCalibration.fit(unseen, model.label_names)
    except TrainingError as error:
        logger.warning("%s: errors are not calibrated: %s", model.path, error)
        return model
    lacking = [n for n, x in zip(model.label_names, found.floor, strict=True) if np.isnan(x)]
    if lacking:
        logger.warning("too few stars tell the errors of %s, which are NaN", ", ".join(lacking))
    about = {"n_star": found.n_star, "stars": unseen.what}
    return model.with_arrays(RESIDUAL_CALIBRATION, found.to_arrays(), metadata=about)


@dataclass(frozen=True)
class _LabelFit:
    """Error model of one label, and the scores (n_star,) of stars left out of its fit."""

    slope: float
    floor: float
    coefficients: Float64Array
    score: Float64Array

    @classmethod
    def make(
        cls, residual: Float64Array, stated: Float64Array, terms: Float64Array, fold: Int64Array
    ) -> Self:
        nothing = np.full(residual.size, np.nan)
        some = np.isfinite(residual)
        told = np.isfinite(stated) & (stated > 0)
        # Of a label of which most stars have no stated error, the residuals alone tell.
        uses = bool(told[some].mean() > 0.5) if some.any() else False
        known = some & told if uses else some
        if known.sum() < LEAST_STARS:
            return cls(0.0, np.nan, np.zeros(_N_TERM), nothing)
        error = np.where(known, stated, 0.0) if uses else np.zeros(residual.size)
        score = nothing.copy()
        for part in range(_FOLDS):
            others, mine = known & (fold != part), known & (fold == part)
            if mine.any():
                # All stars, where they are of a few stars and nothing would be left.
                others = others if others.sum() >= LEAST_STARS / 2 else known
                found = _maximise(residual[others], error[others], terms[others])
                score[mine] = residual[mine] / _size(found, error[mine], terms[mine])
        slope, floor, coefficients = _maximise(residual[known], error[known], terms[known])
        return cls(slope, floor, coefficients, score)


_Parameters = tuple[float, float, Float64Array]


def _size(found: _Parameters, error: Float64Array, terms: Float64Array) -> Float64Array:
    slope, floor, coefficients = found
    return np.asarray(np.hypot(slope * error, floor) * np.exp(terms @ coefficients))


def _maximise(residual: Float64Array, error: Float64Array, terms: Float64Array) -> _Parameters:
    """Slope, floor and coefficients of the greatest likelihood, with a Gaussian prior on the last.

    Errors never grow with S/N: a coefficient that says so would have learnt it from chance.
    """
    from scipy.optimize import minimize

    size = 1.4826 * float(np.median(np.abs(residual)))
    # Labels on a grid may be exact for most stars, and then have no median.
    size = size or float(np.abs(residual).mean()) or 1.0
    unit = float(np.median(error)) or 1.0
    square, stated = (residual / size * _T_WITHIN) ** 2 / _FREEDOM, (error / unit) ** 2

    def loss(x: Float64Array) -> tuple[float, Float64Array]:
        own, common = np.exp(2 * x[0]) * stated, np.exp(2 * x[1])
        total = own + common
        log_size = 0.5 * np.log(total) + terms @ x[2:]
        u = square * np.exp(-2 * log_size)
        value = log_size.sum() + 0.5 * (_FREEDOM + 1) * np.log1p(u).sum()
        slope = 1.0 - (_FREEDOM + 1) * u / (1.0 + u)
        gradient = np.array([slope @ (own / total), slope @ (common / total), *(slope @ terms)])
        gradient[2:] += x[2:] / REGIME_PRIOR**2
        return float(value + 0.5 * (x[2:] ** 2).sum() / REGIME_PRIOR**2), gradient

    uses = bool((error > 0).any())
    start = np.concatenate([[np.log(0.7), np.log(0.7)], np.zeros(_N_TERM)])
    falling = [(-2.0, 0.0), *[(-2.0, 2.0)] * (_N_TERM - 1)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[*_BOUNDS, *falling]).x
    slope = float(np.exp(found[0])) * size / unit if uses else 0.0
    return slope, float(np.exp(found[1])) * size, np.asarray(found[2:], dtype=np.float64)


def _factors(scores: Sequence[Float64Array]) -> Float64Array:
    """Factor (n_label,) of the errors by which shares of the scores are those of a normal law.

    Logarithms are drawn towards their median where few stars fix them, as those of
    `maury.prediction.calibration`: what is left of them after the fit is alike in all labels.
    """
    normal = np.log(ndtri(0.5 + 0.5 * np.array(_LEVELS)))
    found, weight = np.zeros(len(scores)), np.zeros(len(scores))
    for k, score in enumerate(scores):
        size = np.abs(score[np.isfinite(score)])
        if size.size:
            # The method "weibull" puts a share p at rank (n + 1) p, as conformal prediction does.
            ranked = np.quantile(size, _LEVELS, method="weibull")
            found[k] = np.mean(np.log(np.maximum(ranked, 1e-6)) - normal)
            # A scale is known to 1 / sqrt(2 n).
            weight[k] = LABEL_PRIOR**2 / (LABEL_PRIOR**2 + 0.5 / size.size)
    centre = float(np.median(found[weight > 0])) if (weight > 0).any() else 0.0
    return np.asarray(np.exp(centre + weight * (found - centre)))


def _about(snr: Float64Array, mean: Float64Array, columns: Int64Array) -> Float64Array:
    """Return ln(S/N), Teff, log g and [M/H], (n_star, 4); NaN where unknown."""
    nothing = np.full(len(mean), np.nan)
    depth = np.log(np.where(np.asarray(snr) > 0, snr, np.nan))
    return np.column_stack([depth, *(mean[:, k] if k >= 0 else nothing for k in columns)])


def _terms(scaled: Float64Array) -> Float64Array:
    """Terms (n_star, 6) of scaled quantities (n_star, 4); what is unknown counts as typical."""
    depth, teff, logg, m_h = np.clip(np.nan_to_num(scaled, nan=0.0), -_REACH, _REACH).T
    # Less one, so that a square is about 0 for a typical sample and not a second constant.
    return np.column_stack([depth, teff, teff**2 - 1.0, logg, m_h, m_h**2 - 1.0])


def _folds(star_id: AnyArray) -> Int64Array:
    """Fold of each spectrum (n,); those of one star are in one, unnamed ones are stars."""
    _, number = np.unique(star_id, return_inverse=True)
    number = np.where(np.asarray(star_id) == "", np.arange(len(star_id)), number.reshape(-1))
    return np.asarray(number % _FOLDS, dtype=np.int64)
