"""Errors that hold: the errors quoted by a network, corrected on stars unseen in its training.

The quoted error of each label is multiplied by a factor that varies smoothly with S/N, surface
gravity and metallicity. Labelled stars give its global scale: those unseen by all networks, and
out-of-fold predictions of the training stars, each by the network that held it out (cross-fitting;
Chernozhukov et al. 2018, EJ 21, C1). Re-observed as simulated spectra, which are many, the same
stars give its coefficients over these regimes. Both fits
match several quantiles of |residual| / error to those of a normal distribution at once (composite
quantile regression, Zou & Yuan 2008, AnnSt 36, 1108), so that a few wild stars rule nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from maury.errors import TrainingError, check_known
from maury.io.arrays import AnyArray, Float64Array, StrArray
from maury.labels.columns import QUANTILES
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import MAD_TO_SIGMA
from maury.model.output import Prediction
from maury.prediction.completeness import N_COMPLETENESS, N_FURTHER
from maury.prediction.conformal import (
    JOINT_LEVELS,
    NORMAL_QUANTILES,
    conformal_quantiles,
    mahalanobis2,
    widening,
)


def condition(
    mean: ArrayLike,
    covariance: ArrayLike,
    *,
    label: str = "logg",
    value: ArrayLike,
    error: ArrayLike = 0.0,
    names: Sequence[str] = LABEL_NAMES,
) -> tuple[Float64Array, Float64Array]:
    """Condition Gaussian labels on a measurement of one of them, such as an asteroseismic log g.

    With k = C h / (h^T C h + error^2), where h picks the label: mean + k (value - h^T mean), and
    (1 - k h^T) C (1 - k h^T)^T + error^2 k k^T, which stays symmetric and positive semi-definite.

    Parameters
    ----------
    mean : (n_star, n_label) array_like
        Labels.
    covariance : (n_star, n_label, n_label) array_like
        Their covariances.
    label : str
        Which label was measured.
    value : (n_star,) or scalar array_like
        Its measurement, in its unit, independent of what the labels were predicted from. NaN
        leaves a star as it is.
    error : (n_star,) or scalar array_like
        1 sigma error of `value`. 0 fixes the label; NaN leaves a star as it is.
    names : sequence of str
        Names of the labels, in the order of `mean`.

    Returns
    -------
    mean, covariance : (n_star, n_label) and (n_star, n_label, n_label) float64

    Raises
    ------
    UnknownName
        If `label` is not one of `names`.
    ValueError
        If shapes do not fit, or an error is negative.

    Examples
    --------
    >>> mean, covariance = [[4800.0, 2.0]], [[[10000.0, 15.0], [15.0, 0.09]]]
    >>> condition(mean, covariance, value=2.3, error=0.0, names=("teff", "logg"))[0]
    array([[4.85e+03, 2.30e+00]])
    """
    position = list(names).index(check_known("label", label, names))
    centre, spread = (np.array(a, dtype=np.float64) for a in (mean, covariance))
    n_star, n_label = len(centre), len(names)
    if centre.shape != (n_star, n_label) or spread.shape != (n_star, n_label, n_label):
        raise ValueError(
            f"{n_label} labels need mean (n_star, {n_label}) and covariance (n_star, {n_label}, "
            f"{n_label}), got {centre.shape} and {spread.shape}"
        )
    given, sigma = (
        np.broadcast_to(np.asarray(a, dtype=np.float64), (n_star,)) for a in (value, error)
    )
    if np.any(sigma < 0):
        raise ValueError(f"an error is not negative, got {np.nanmin(sigma)}")
    total = spread[:, position, position] + sigma**2
    rows = np.flatnonzero(np.isfinite(given) & np.isfinite(sigma) & (total > 0))
    gain = spread[rows, :, position] / total[rows, None]
    centre[rows] += gain * (given[rows] - centre[rows, position])[:, None]
    # The Joseph form of the Kalman update: C - k h^T C loses symmetry, and may turn negative, by
    # rounding where the measurement is much better than the prediction.
    keep = np.repeat(np.eye(n_label)[None], rows.size, axis=0)
    keep[:, :, position] -= gain
    noise = sigma[rows, None, None] ** 2 * gain[:, :, None] * gain[:, None, :]
    spread[rows] = keep @ spread[rows] @ keep.transpose(0, 2, 1) + noise
    return centre, spread


# Intervals narrower than 40 % say little of a width, and beyond 95 % few of a hundred stars are
# left: chosen, not measured.
LEVELS = (0.4, 0.55, 0.683, 0.8, 0.9, 0.954)
"""Central probabilities that are matched."""
LEAST_STARS = 30
"""Fewer fix a scale to no better than some 15 %: 1 / sqrt(2 n) is 13 %."""


def require_stars(n_star: int) -> None:
    """Refuse to calibrate errors on too few held-out stars.

    Raises
    ------
    TrainingError
        If there are fewer than `LEAST_STARS`; it says what to do.
    """
    if n_star < LEAST_STARS:
        raise TrainingError(
            f"errors cannot be calibrated on {n_star} held-out stars (of the validation part, and, "
            f"where networks hold out folds, of the training part); at least {LEAST_STARS} are "
            "needed: give more labelled stars, or hold out more, as by [split] train = 0.6, "
            "validation = 0.3, test = 0.1 in the settings"
        )


REGIME_PRIOR = 0.15
"""Standard deviation expected of each regime coefficient (of the logarithm of the factor)."""
COMPLETENESS_PRIOR = 0.5
"""The same of coefficients over what is there: errors with inputs missing may be off by half."""
LABEL_PRIOR = 0.04
"""Standard deviation expected between the labels' factors."""
_LARGEST_LOG_FACTOR = 2.0
"""Bound of the factor, e^2 either way, where the regime lies outside that of the calibration."""
_SMOOTHING = 0.02
"""Width in ln(ratio) over which the pinball loss is rounded, so that it has a gradient."""
_INNER = slice(1, 4)
"""Tails of the first models, which had no others."""
_N_TERM, _N_PLAIN = 10, 5
_KEYS = {"global_scale": "size", "regime_coefficients": "course", "deshrinkage": "stretch"}
"""Names of arrays in the attachment, where they differ from those of the fields."""
_FIELDS = {key: name for name, key in _KEYS.items()}


@dataclass(frozen=True)
class Regime:
    """What the factor depends on, one value per star, NaN where unknown.

    Attributes
    ----------
    snr, logg, m_h : (n_star,) float64
        S/N per pixel; predicted surface gravity and metallicity.
    completeness : (n_star, 18 or 28) float64
        What is there of their inputs (`maury.prediction.completeness.completeness`); 0 throughout
        for stars that lack nothing.
    """

    snr: Float64Array
    logg: Float64Array
    m_h: Float64Array
    completeness: Float64Array = field(default_factory=lambda: np.zeros((0, N_COMPLETENESS)))

    def __post_init__(self) -> None:
        if not self.completeness.size:
            object.__setattr__(self, "completeness", np.zeros((len(self.snr), N_COMPLETENESS)))

    def design(self) -> Float64Array:
        """Terms of the logarithm of the factor, ``(n_star, 10)``; unknown counts as typical."""
        # Clipped, so that a factor fitted at the S/N of the survey is not extrapolated as a
        # parabola.
        depth = np.log(np.clip(np.nan_to_num(self.snr, nan=50.0), 5.0, 200.0) / 50.0)
        # A step from giants to dwarfs, which differ in their lines, and not a slope that runs on at
        # either end.
        dwarf = np.tanh((np.nan_to_num(self.logg, nan=3.5) - 3.5) / 0.4)
        poor = np.clip(-np.nan_to_num(self.m_h, nan=-0.2) - 0.2, -0.5, 1.5)
        plain = [np.ones(depth.size), depth, depth**2, dwarf, poor]
        both = [dwarf * poor, depth * dwarf, depth * poor, depth * dwarf * poor, poor**2]
        return np.column_stack([*plain, *both])


Evaluated = tuple[Float64Array, Float64Array, Regime]
"""Residuals and quoted errors, (n_star, n_label) each, of some stars, and their regime."""


@dataclass(frozen=True)
class HeldOutResiduals:
    """Residuals of labelled stars, each by the one network of an ensemble that held it out.

    Attributes
    ----------
    residual, error : (n_star, n_label) float64
        Predicted minus true, NaN where unknown, and quoted 1 sigma error, of that network alone.
    regime : Regime
        Of these stars.
    reobserved : (residual, error, Regime)
        The same for simulated spectra of these stars, each by the network that held it out.
    control : (residual, error, Regime)
        The same of single networks for the simulated stars that the ensemble predicts: they tell
        by how much the errors of single networks hold better or worse than those of the ensemble.
    """

    residual: Float64Array
    error: Float64Array
    regime: Regime
    reobserved: Evaluated
    control: Evaluated

    def excess(self, simulated: Evaluated, coefficients: Float64Array) -> Float64Array:
        """Logarithm (n_label,) of how much more a single network errs, in its quoted errors.

        Parameters
        ----------
        simulated : (residual, error, Regime)
            Of the ensemble, for the stars of `control`.
        coefficients : (n_label, 10) float64
            Of `Regime.design`.
        """
        # The same stars both times, so that what these stars are like drops out of the difference.
        single = _global_scales(self.control, coefficients)
        return single - _global_scales(simulated, coefficients)


@dataclass(frozen=True)
class Calibration:
    """Factors, floors and quantiles of the errors of each label.

    Attributes
    ----------
    global_scale : (n_label,) float64
        Logarithm of the factor from labelled stars.
    regime_coefficients : (n_label, 10) float64
        Coefficients of `Regime.design` from simulated stars.
    floor : (n_label,) float64
        Least error, in the unit of the label: scatter of repeated observations.
    tails : (n_label, 5) float64
        Quantiles of residual / error, those of `maury.labels.columns.QUANTILES`.
    centre, deshrinkage : (n_label,) float64
        By how much labels are moved away from the centre, in older models.
    n_real, n_simulated : int
        Stars that fixed it.
    own_coefficients : (n_label, 10) float64 or None
        Of `Regime.design`: logarithm of the share of the error that is the spectrum's own, and
        not common to all spectra of a star; None for models of before.
    joint : (2,) float64 or None
        Squared Mahalanobis radii of the joint regions of `maury.prediction.conformal.JOINT_LEVELS`;
        None where too few held-out stars tell.
    completeness_coefficients : (n_label, 18 to 28) float64 or None
        Of `Regime.completeness`, on the logarithm of the factor; None in older models.
    prior_mean, prior_covariance : (n_label,), (n_label, n_label) float64 or None
        Moments of the labels of the stars that the networks were trained on, towards which the
        means of posteriors are shrunk; None in older models.
    """

    global_scale: Float64Array
    regime_coefficients: Float64Array
    floor: Float64Array
    tails: Float64Array
    centre: Float64Array
    deshrinkage: Float64Array
    n_real: int
    n_simulated: int
    own_coefficients: Float64Array | None = None
    joint: Float64Array | None = None
    completeness_coefficients: Float64Array | None = None
    prior_mean: Float64Array | None = None
    prior_covariance: Float64Array | None = None

    @classmethod
    def none(cls, n_label: int) -> Self:
        """Return a calibration that leaves the errors as they are."""
        tails = np.tile(NORMAL_QUANTILES, (n_label, 1))
        zero = np.zeros(n_label)
        return cls(zero, np.zeros((n_label, _N_TERM)), zero, tails, zero, np.ones(n_label), 0, 0)

    @classmethod
    def fit(
        cls,
        residual: ArrayLike,
        error: ArrayLike,
        regime: Regime,
        *,
        simulated: Evaluated | None = None,
        held_out: HeldOutResiduals | None = None,
        floor: ArrayLike | None = None,
    ) -> Self:
        """Fit to stars whose labels are known.

        Parameters
        ----------
        residual, error : (n_star, n_label) array_like
            Predicted minus true (NaN where unknown), and the quoted 1 sigma error, of labelled
            stars that neither trained nor chose the networks.
        regime : Regime
            Of these stars.
        simulated : (residual, error, Regime), optional
            The same of simulated spectra, best of these stars: networks err less for stars that
            are simulated from their training sample.
        held_out : HeldOutResiduals, optional
            Training stars that single networks held out; they need simulated ones.
        floor : (n_label,) array_like, optional
            Least error of each label.

        Raises
        ------
        TrainingError
            If fewer than 30 labelled stars are given, held-out ones of single networks among them.
        ValueError
            If held-out stars come without simulated ones.
        """
        residual, error = np.asarray(residual, np.float64), np.asarray(error, np.float64)
        n_star, n_label = residual.shape
        require_stars(n_star + (0 if held_out is None else len(held_out.residual)))
        start = cls.none(n_label)
        # Simulated spectra of stars that trained the networks would have errors that are too small.
        reobserved = simulated if held_out is None else held_out.reobserved
        coefficients = start.regime_coefficients
        if reobserved is not None:
            columns = zip(*_columns(*reobserved[:2]), strict=True)
            coefficients = np.stack([_fit_coefficients(r, e, reobserved[2]) for r, e in columns])
        ratios = _log_ratios(residual, error, regime, coefficients)
        n_real, n_simulated = n_star, 0 if reobserved is None else len(np.asarray(reobserved[0]))
        if held_out is not None:
            if simulated is None:
                raise ValueError(
                    "held-out stars of single networks need simulated ones as their control"
                )
            alone = _log_ratios(held_out.residual, held_out.error, held_out.regime, coefficients)
            # A single network errs more than the mean of several; unless that is taken off,
            # catalogues of the ensemble would have errors that are too large.
            apart = held_out.excess(simulated, coefficients)
            pairs = zip(ratios, alone, apart, strict=True)
            ratios = [np.concatenate([ours, one - shift]) for ours, one, shift in pairs]
            n_real += len(held_out.residual)
        global_scale = _fit_global_scales(ratios)
        least = start.floor if floor is None else np.asarray(floor, np.float64)
        found = cls(
            global_scale,
            coefficients,
            least,
            start.tails,
            start.centre,
            start.deshrinkage,
            n_real,
            n_simulated,
        )
        scores = [_scores(found, residual, error, regime)]
        if held_out is not None:
            # Errors of single networks, brought to those of the ensemble.
            single = np.exp(apart) * held_out.error
            scores.append(_scores(found, held_out.residual, single, held_out.regime))
        score = np.concatenate(scores)
        wider = widening(score)
        drawn = None if reobserved is None else _scores(found, *reobserved) / wider
        return replace(
            found,
            global_scale=global_scale + np.log(wider),
            tails=conformal_quantiles(score / wider, drawn),
        )

    def widened(self, before: Evaluated, after: Evaluated) -> Self:
        """Return it for other networks, whose simulated residuals tell by how much they err more.

        Parameters
        ----------
        before, after : (residual, error, Regime)
            Of the networks that it was fitted to, and of the others, for the same simulated stars
            as either sees them. Errors never become smaller.
        """
        coefficients = self.regime_coefficients
        more = _global_scales(after, coefficients) - _global_scales(before, coefficients)
        return replace(self, global_scale=self.global_scale + np.maximum(more, 0.0))

    def means(self, mean: ArrayLike) -> Float64Array:
        """Labels ``(n_star, n_label)``: posterior means, but in older models de-shrunk."""
        return deshrunk(mean, self.centre, self.deshrinkage)

    def factor(self, regime: Regime) -> Float64Array:
        """Factor of each error, shape ``(n_star, n_label)``."""
        logarithm = regime.design() @ self.regime_coefficients.T + self.global_scale
        if self.completeness_coefficients is not None:
            # Models of before do not know of further columns, nor do stars that lack nothing.
            known = min(regime.completeness.shape[1], self.completeness_coefficients.shape[1])
            coefficients = self.completeness_coefficients[:, :known]
            logarithm = logarithm + regime.completeness[:, :known] @ coefficients.T
        limit = _LARGEST_LOG_FACTOR
        return np.asarray(np.exp(np.clip(logarithm, -limit, limit)))

    def errors(self, error: ArrayLike, regime: Regime) -> Float64Array:
        """Calibrated 1 sigma errors from quoted ones, both ``(n_star, n_label)``; NaN stays NaN."""
        return np.maximum(np.asarray(error, np.float64) * self.factor(regime), self.floor)

    def own_errors(self, calibrated: ArrayLike, regime: Regime) -> Float64Array | None:
        """Part of the calibrated errors (n_star, n_label) that each spectrum has by itself.

        The rest, sqrt(error^2 - own^2), is common to all spectra of a star: averaging does not
        lessen it. None for a calibration without this knowledge.
        """
        if self.own_coefficients is None:
            return None
        error = np.asarray(calibrated, np.float64)
        # No part is larger than the whole, whatever a regression says at the edge of its regimes.
        share = np.exp(np.minimum(regime.design() @ self.own_coefficients.T, 0.0))
        # Repeated observations scatter by no less than the floor.
        return np.minimum(np.maximum(error * share, self.floor), error)

    def excess_of(self, held_out: HeldOutResiduals, simulated: Evaluated) -> Float64Array:
        """Factor (n_label,) by which single networks err more than the ensemble."""
        return np.exp(held_out.excess(simulated, self.regime_coefficients))

    def distance2(
        self,
        prediction: Prediction,
        truth: Float64Array,
        regime: Regime,
        *,
        more: ArrayLike = 1.0,
    ) -> Float64Array:
        """Squared Mahalanobis distance (n_star,) of held-out stars from their predictions.

        Parameters
        ----------
        prediction : Prediction
            Bare, with covariances.
        truth : (n_star, n_label) float64
        regime : Regime
        more : (n_label,) float64
            Factor on the errors, as `excess_of` gives it for single networks.
        """
        assert prediction.covariance is not None, "networks that are calibrated predict one"
        # Only the sizes of the errors are calibrated; the correlations stay those of the networks.
        sigma = self.errors(prediction.sigma * np.asarray(more, np.float64), regime)
        factor = sigma / prediction.sigma
        covariance = prediction.covariance * factor[:, :, None] * factor[:, None, :]
        return mahalanobis2(self.means(prediction.mean) - truth, covariance)

    def with_completeness(
        self, residual: Float64Array, error: Float64Array, regime: Regime
    ) -> Self:
        """Return it with coefficients over what is there of a star's inputs.

        Parameters
        ----------
        residual, error : (n_star, n_label) float64
            Of labelled stars with a part of their inputs taken away, errors as of the ensemble.
        regime : Regime
            Of these stars.
        """
        calibrated = error * self.factor(regime)
        rows = []
        for one, quoted in zip(*_columns(residual, calibrated), strict=True):
            ratio, known = _log_ratio(one, quoted)
            design = regime.completeness[known]
            precision = np.full(design.shape[1], COMPLETENESS_PRIOR**-2)
            rows.append(_quantile_regression(ratio[known], design, precision, 0.0 * precision))
        return replace(self, completeness_coefficients=np.stack(rows))

    def with_repeats(
        self, difference: Float64Array, calibrated: Float64Array, regime: Regime
    ) -> Self:
        """Return it with the share of errors that spectra of one star do not have in common.

        Parameters
        ----------
        difference : (n_pair, n_label) float64
            Of the labels of two spectra of one star, over sqrt(2).
        calibrated : (n_pair, n_label) float64
            Calibrated errors.
        regime : Regime
            Of these pairs.
        """
        columns = zip(difference.T, calibrated.T, strict=True)
        # The difference of two spectra over sqrt(2) is as wide as the own error of one, as what
        # they have in common cancels.
        own = np.stack([_fit_coefficients(r, e, regime) for r, e in columns])
        return replace(self, own_coefficients=own)

    def quantiles(self, mean: ArrayLike, calibrated: ArrayLike) -> Float64Array:
        """Quantiles, ``(5, n_star, n_label)``, of labels with calibrated errors.

        They are those of `maury.labels.columns.QUANTILES`. A residual is predicted minus true, so
        the lower quantile comes from the upper tail.
        """
        mean, calibrated = np.asarray(mean, np.float64), np.asarray(calibrated, np.float64)
        tails = self.tails[:, ::-1].T
        return np.stack([mean - tail * calibrated for tail in tails])

    def to_arrays(self) -> dict[str, AnyArray]:
        """Plain arrays for the model directory."""
        return {
            _KEYS.get(f.name, f.name): np.atleast_1d(value)
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> Self:
        """Read what `to_arrays` gave.

        Raises
        ------
        KeyError
            If an array is missing.
        ValueError
            If shapes or values are impossible.
        """
        n_label, coefficients = arrays["size"].size, arrays["course"]
        if coefficients.ndim == 2 and coefficients.shape[1] == _N_PLAIN:
            # Of the first models, without products of terms.
            arrays = {**arrays, "course": np.pad(coefficients, ((0, 0), (0, _N_TERM - _N_PLAIN)))}
        if arrays["tails"].shape == (n_label, 3):
            tails = cls.none(n_label).tails
            tails[:, _INNER] = arrays["tails"]
            arrays = {**arrays, "tails": tails}
        shapes: dict[str, tuple[int, ...]] = {"size": (n_label,), "floor": (n_label,)}
        shapes |= {"course": (n_label, _N_TERM), "tails": (n_label, len(QUANTILES))}
        shapes |= {"centre": (n_label,), "stretch": (n_label,)}
        later = {"own_coefficients": (n_label, _N_TERM), "joint": (len(JOINT_LEVELS),)}
        there = arrays.get("completeness_coefficients", np.zeros((n_label, 0)))
        # What was not known of further columns when a model was made has no coefficient.
        more = min(max(there.shape[-1] - N_COMPLETENESS, 0), N_FURTHER)
        later |= {"completeness_coefficients": (n_label, N_COMPLETENESS + more)}
        later |= {"prior_mean": (n_label,)}
        later |= {"prior_covariance": (n_label, n_label)}
        shapes |= {name: shape for name, shape in later.items() if name in arrays}
        for name, shape in shapes.items():
            if arrays[name].shape != shape or not np.isfinite(arrays[name]).all():
                raise ValueError(f"calibration: {name!r} must be finite, of shape {shape}")
        return cls(
            **{_FIELDS.get(name, name): arrays[name].astype(np.float64) for name in shapes},
            n_real=int(arrays["n_real"].item()),
            n_simulated=int(arrays["n_simulated"].item()),
        )


def deshrunk(mean: ArrayLike, centre: Float64Array, deshrinkage: Float64Array) -> Float64Array:
    """Labels ``(n_star, n_label)``, moved away from the centre by a factor, as in older models."""
    return np.asarray(centre + deshrinkage * (np.asarray(mean) - centre))


def repeat_scatter(
    values: ArrayLike, star_id: Sequence[str] | StrArray, *, least_pairs: int = 20
) -> Float64Array:
    """Scatter of each label between spectra of one star, shape ``(n_label,)``.

    1.4826 x the median |difference| of consecutive spectra of a star, over the square root of 2;
    0 where fewer than `least_pairs` pairs are known.

    Parameters
    ----------
    values : (n_row, n_label) array_like
        Predicted labels.
    star_id : (n_row,) str
        Star of each row.
    """
    values, stars = np.asarray(values, np.float64), np.asarray(star_id)
    order = np.argsort(stars, kind="stable")
    # Consecutive pairs alone, so that a star with a hundred spectra does not count by its 4950
    # pairs.
    same = np.flatnonzero((stars[order][1:] == stars[order][:-1]) & (stars[order][1:] != ""))
    pairs = np.abs(values[order[same + 1]] - values[order[same]])
    known = np.isfinite(pairs)
    enough = known.sum(axis=0) >= least_pairs
    scatter = np.zeros(values.shape[1])
    for position in np.flatnonzero(enough):
        scatter[position] = np.median(pairs[known[:, position], position]) / np.sqrt(2.0)
    return MAD_TO_SIGMA * scatter


def _columns(residual: ArrayLike, error: ArrayLike) -> tuple[Float64Array, Float64Array]:
    return np.asarray(residual, np.float64).T, np.asarray(error, np.float64).T


def _log_ratio(residual: Float64Array, error: Float64Array) -> tuple[Float64Array, Any]:
    """Logarithm of |residual| / error, and where it is known."""
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.abs(residual) / error
    known = np.isfinite(ratio) & (error > 0)
    # A residual of exactly 0, as of labels on a grid, has no logarithm; far below the lowest level
    # matched any value does.
    return np.log(np.maximum(ratio, 1e-6, where=known, out=np.ones_like(ratio))), known


def _fit_coefficients(residual: Float64Array, error: Float64Array, regime: Regime) -> Float64Array:
    ratio, known = _log_ratio(residual, error)
    design = regime.design()[known]
    # The constant is left free: the global scale of real stars takes its place, and a prior would
    # draw the other coefficients to make up for it.
    precision = np.r_[0.0, np.full(design.shape[1] - 1, REGIME_PRIOR**-2)]
    return _quantile_regression(ratio[known], design, precision, np.zeros(design.shape[1]))


def _log_ratios(
    residual: ArrayLike, error: ArrayLike, regime: Regime, coefficients: Float64Array
) -> list[Float64Array]:
    """Logarithm of |residual| / error over its factor by regime, where known, of each label."""
    known = np.exp(regime.design() @ coefficients.T) * np.asarray(error, np.float64)
    pairs = [_log_ratio(r, e) for r, e in zip(*_columns(residual, known), strict=True)]
    return [ratio[finite] for ratio, finite in pairs]


def _global_scales(evaluated: Evaluated, coefficients: Float64Array) -> Float64Array:
    return np.array([_global_scale(ratio) for ratio in _log_ratios(*evaluated, coefficients)])


def _fit_global_scales(ratios: Sequence[Float64Array]) -> Float64Array:
    """Logarithm of one factor per label, drawn towards their median by `LABEL_PRIOR`."""
    # Labels lean on each other where few stars fix a scale: a hundred fix it to some 7 %, and
    # factors are expected to differ by 4 %.
    centre = float(np.median([_global_scale(ratio) for ratio in ratios]))
    return np.array([_global_scale(ratio, LABEL_PRIOR**-2, centre) for ratio in ratios])


def _global_scale(ratio: Float64Array, precision: float = 0.0, centre: float = 0.0) -> float:
    if ratio.size == 0:
        return centre
    one = np.ones((ratio.size, 1))
    fit = _quantile_regression(ratio, one, np.array([precision]), np.array([centre]))
    return float(fit[0])


def _quantile_regression(
    ratio: Float64Array, design: Float64Array, precision: Float64Array, centre: Float64Array
) -> Float64Array:
    """Coefficients b for which design @ b + log(normal quantile) matches the quantiles of ratio.

    The sum of smoothed pinball losses, in the unit of a log-likelihood (each star counts once),
    and a Gaussian prior on b.
    """
    # Here: a catalogue is made without, and it takes .2 s to import.
    from scipy.optimize import minimize

    levels = np.array(LEVELS)
    offsets = np.log(ndtri(0.5 + 0.5 * levels))
    # Curvature of the expected loss relative to the information of a normal sample of this size,
    # 2 per star: the prior is then weighed as against a likelihood.
    density = 2.0 * np.exp(offsets) * np.exp(-0.5 * np.exp(2 * offsets)) / np.sqrt(2 * np.pi)
    unit = 2.0 / density.sum()

    def loss(b: Float64Array) -> tuple[float, Float64Array]:
        rest = ratio[:, None] - (design @ b)[:, None] - offsets
        # A softplus is the integral of a logistic step, so that the loss has the gradient that
        # L-BFGS needs; the plain pinball loss has a kink at every star.
        soft = np.logaddexp(0.0, -rest / _SMOOTHING)
        value = (levels * rest + _SMOOTHING * soft).sum()
        slope = levels - 1.0 / (1.0 + np.exp(np.clip(rest / _SMOOTHING, -500, 500)))
        shift = b - centre
        gradient = -unit * (slope.sum(axis=1) @ design) + precision * shift
        return float(unit * value + 0.5 * (precision * shift**2).sum()), gradient

    found = minimize(loss, centre, jac=True, method="L-BFGS-B", options={"maxiter": 500})
    return np.asarray(found.x, dtype=np.float64)


def _scores(
    calibration: Calibration, residual: ArrayLike, error: ArrayLike, regime: Regime
) -> Float64Array:
    """Residual over calibrated error, (n_star, n_label); NaN where unknown."""
    calibrated = calibration.errors(error, regime)
    known = np.where(calibrated > 0, calibrated, np.nan)
    return np.asarray(residual, np.float64) / known
