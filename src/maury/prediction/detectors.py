"""From scores to flags: thresholds that training stars give, and which of rival reasons is named.

Every threshold is a quantile of the training stars' own scores, so that a known and small share of
good stars is warned of.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.labels.flags import FLAG_DTYPE, Flag, set_where
from maury.prediction.causes import CAUSES, FREEDOM
from maury.prediction.evidence import CoverageScores

__all__ = ["DETECTORS", "FALSE_ALARM", "LEAST_STARS", "OFTENER", "Limit", "Thresholds", "named"]

# A quantile of 0.4 % above needs hundreds of stars; with a hundred it is the largest score of all:
# chosen, not measured.
LEAST_STARS = 100
"""Training stars below which nothing is learnt."""
# About the width of a pixel of RAVE: a training sample that is well at rest would put the quantile
# far below.
LEAST_SHIFT_KMS = 15.0
"""Radial velocity errors below this are never flagged."""
FALSE_ALARM = 0.0025
"""Share of training stars above the threshold of a detector: some dozen of them warn of a few
percent of good stars together."""
_TYPICAL_SNR = 50.0
"""S/N at which thresholds are stated."""
_SNR_RANGE = (5.0, 500.0)
"""Beyond these thresholds stay as they are at the ends, for few stars are there to learn from."""
# Their residuals resemble one another: without a leader one fault would set all three flags.
_RIVALS = ("rv_shift_kms", "sb2", "paschen")
_SNR_GROUPS, _TAIL = 6, 0.95
"""Groups of S/N, and their quantile, by which a threshold's slope is fitted."""

DETECTORS: dict[str, Flag] = {
    "label_distance": Flag.LABELS_UNLIKE,
    "feature_distance": Flag.SPECTRUM_UNLIKE,
    "chi2_reduced": Flag.RECONSTRUCTION_POOR,
    "rv_shift_kms": Flag.RADIAL_VELOCITY_WRONG,
    "emission": Flag.EMISSION,
    "paschen": Flag.HOT_STAR,
    "sb2": Flag.DOUBLE_LINED,
    "continuum": Flag.CONTINUUM_BAD,
    "disagreement": Flag.PHOTOMETRY_DISAGREES,
    "rotation": Flag.FAST_ROTATION,
    "zero_level": Flag.ZERO_LEVEL,
    "titanium_oxide": Flag.COOL_STAR,
    "fringes": Flag.CONTINUUM_BAD,
    "companion": Flag.BINARY_SUSPECTED,
    "observables": Flag.OBSERVABLES_UNLIKE,
}
"""Scores that have a threshold, and the flag that each sets."""

# Two views are in units of their errors already, and observables know no S/N.
_SNR_DEPENDENT = ("label_distance", "feature_distance", "chi2_reduced", "sb2", *CAUSES)
_LEAST_GAIN = 6.0
"""Drop in chi-square below which nothing is a cause: chance gives it in one star of seventy."""
OFTENER = {
    "companion": 1.6,
    "observables": 2.8,
    "paschen": 0.5,
    "titanium_oxide": 0.4,
    "fringes": 0.4,
}
"""Share of training stars above the threshold, over that of other detectors. Real samples have
binaries and wrong magnitudes (.6 % of RAVE's), whom a threshold beyond them all would hide; three
faults are plain to see. Set on validation stars, so that no more of them are warned of than were.
"""
_LOGARITHMS = ("disagreement", "companion")
"""Scores that have no natural zero, so that a ratio to their threshold would mean nothing."""


@dataclass(frozen=True)
class Limit:
    """Threshold of one score at S/N 50, and how it changes with S/N.

    Attributes
    ----------
    slope, threshold : float
        d ln(threshold) / d ln(S/N), and the threshold; infinite where nothing is beyond it.
    """

    slope: float
    threshold: float

    @classmethod
    def none(cls) -> Limit:
        """Return the limit that nothing is beyond."""
        return cls(0.0, np.inf)

    @classmethod
    def fit(cls, score: Float64Array, snr: Float64Array) -> Limit:
        """Take the upper quantile `FALSE_ALARM` of scores (n_star,) of training stars.

        NaN is left out; with fewer than `LEAST_STARS` nothing is beyond the limit.
        """
        found = np.isfinite(score)
        if found.sum() < LEAST_STARS:
            return cls.none()
        ratio = _snr_ratio(np.asarray(snr, np.float64))
        slope = _tail_slope(ratio, score)
        normal = score[found] / ratio[found] ** slope
        # The method "higher" leaves no more than the stated share of training stars above.
        return cls(slope, float(np.quantile(normal, 1.0 - FALSE_ALARM, method="higher")))

    def beyond(self, score: Float64Array, snr: Float64Array) -> BoolArray:
        """Which scores (n_star,) are beyond; NaN, a score that could not be measured, is not."""
        trend = _snr_ratio(np.asarray(snr, np.float64)) ** self.slope
        return np.asarray(score > self.threshold * trend, dtype=np.bool_)

    def to_array(self) -> Float64Array:
        """Return slope and threshold, (2,)."""
        return np.array([self.slope, self.threshold])


@dataclass(frozen=True, eq=False)
class Thresholds:
    """Threshold of each detector at S/N 50, and how it changes with S/N.

    Attributes
    ----------
    slope, threshold : (n_detector,) float64
        d ln(threshold) / d ln(S/N), and the threshold.
    """

    slope: Float64Array
    threshold: Float64Array

    @classmethod
    def fit(cls, scores: CoverageScores, false_alarm: float) -> Thresholds:
        """Take the upper quantiles of the training stars' scores."""
        slope, threshold = np.zeros(len(DETECTORS)), np.full(len(DETECTORS), np.inf)
        ratio = _snr_ratio(scores.snr)
        for k, name in enumerate(DETECTORS):
            value = _one_sided(scores, name)
            found = np.isfinite(value)
            if not found.any():
                continue
            if name in _SNR_DEPENDENT:
                slope[k] = _tail_slope(ratio, value)
            normal = value[found] / ratio[found] ** slope[k]
            share = false_alarm * OFTENER.get(name, 1.0)
            # The method "higher" leaves no more than the stated share of training stars above.
            threshold[k] = np.quantile(normal, 1.0 - share, method="higher")
            if name in CAUSES:
                threshold[k] = max(threshold[k], _LEAST_GAIN)
        shift = list(DETECTORS).index("rv_shift_kms")
        threshold[shift] = max(threshold[shift], LEAST_SHIFT_KMS)
        return cls(slope, threshold)

    def limits(self, snr: Float64Array) -> dict[str, Float64Array]:
        """Threshold (n_star,) of each detector at the S/N of each star."""
        trend = _snr_ratio(snr)[:, None] ** self.slope
        return dict(zip(DETECTORS, (self.threshold * trend).T, strict=True))

    def excess(self, scores: CoverageScores) -> dict[str, Float64Array]:
        """Scores over their thresholds at the S/N of each star, by name: above 1 is flagged.

        Logarithms, `disagreement` and `companion`, are shifted instead: 1 at their thresholds.
        """
        values = {name: _one_sided(scores, name) for name in DETECTORS}
        return {
            name: 1.0 + values[name] - limit if name in _LOGARITHMS else values[name] / limit
            for name, limit in self.limits(scores.snr).items()
        }


def named(
    scores: CoverageScores, thresholds: Thresholds, *, hottest_kelvin: float, by_filters: bool
) -> Int64Array:
    """Return the flags (n_star,) that the scores set.

    A wrong velocity, a second set of lines and the causes of `maury.prediction.causes` resemble
    one another: only the one that explains the residual best is flagged.

    Parameters
    ----------
    scores : CoverageScores
    thresholds : Thresholds
    hottest_kelvin : float
        Teff above which a star is flagged as hot.
    by_filters : bool
        Whether scores of causes are those of the filters of earlier versions.
    """
    # A score that could not be measured accuses no star.
    excess = {k: np.nan_to_num(v, nan=-np.inf) for k, v in thresholds.excess(scores).items()}
    over = {name: value > 1.0 for name, value in excess.items()}
    if by_filters:
        _one_rival(excess, over)
    else:
        _one_cause(scores, excess, over)
    over["paschen"] |= scores.teff > hottest_kelvin
    mask = np.zeros(len(scores.snr), dtype=FLAG_DTYPE)
    for name, flag in DETECTORS.items():
        mask = set_where(mask, flag, over[name])
    return mask


def _one_cause(
    scores: CoverageScores, excess: dict[str, Float64Array], over: dict[str, BoolArray]
) -> None:
    """Leave over of all causes of a residual the one that explains it best."""
    # Their further parameters alone gain something.
    gain = np.stack(
        [
            np.where(over[name], getattr(scores, name) - FREEDOM.get(name, 0.0), -np.inf)
            for name in CAUSES
        ]
    )
    best, hot = gain.max(axis=0), gain[CAUSES.index("paschen")]
    # Broad Paschen lines seem shifted, too; other gains beside a shift are those of lines that are
    # out of place.
    moved = over["rv_shift_kms"] & (excess["rv_shift_kms"] >= excess["sb2"])
    moved &= scores.shifted_lines >= hot
    rival = np.where(over["rv_shift_kms"], hot, best)
    double = over["sb2"] & ~moved & (scores.second_lines > rival)
    # One broad line is fitted well by two narrow ones side by side, and not the reverse.
    turning = double & (scores.broadened >= scores.sb2)
    double &= ~turning
    alone = ~(moved | double | turning)
    over["rv_shift_kms"], over["sb2"] = moved, double
    for number, name in enumerate(CAUSES):
        over[name] &= alone & (gain[number] == best)
    over["rotation"] |= turning
    others = [over[name] for name in CAUSES if name != "rotation"]
    # Wrong magnitudes mimic a companion; a companion moves stars along their surface.
    over["companion"] &= ~(moved | double | over["observables"] | np.any(others, axis=0))
    # It was learnt which broad lines are those of one star.
    over["rotation"] &= ~over["companion"]


def _one_rival(excess: dict[str, Float64Array], over: dict[str, BoolArray]) -> None:
    """Decide among the filters of earlier versions: emission only where no rival leads."""
    leader = np.maximum.reduce([excess[name] for name in _RIVALS])
    # A filled-in core is fitted well by two shifted templates with a gap between them.
    over["sb2"] &= excess["sb2"] > excess["emission"]
    for name in _RIVALS:
        over[name] &= excess[name] >= leader
        over["emission"] &= ~over[name]


def _one_sided(scores: CoverageScores, name: str) -> Float64Array:
    value: Float64Array = getattr(scores, name)
    return np.abs(value) if name == "rv_shift_kms" else value


def _snr_ratio(snr: Float64Array) -> Float64Array:
    ratio = np.clip(np.where(np.isfinite(snr), snr, _TYPICAL_SNR), *_SNR_RANGE) / _TYPICAL_SNR
    return np.asarray(ratio)


def _tail_slope(ratio: Float64Array, value: Float64Array) -> float:
    """Slope with ln(S/N) of the logarithm of the upper tail, by equal groups of S/N."""
    used = np.isfinite(value) & (value > 0)
    if used.sum() < LEAST_STARS or np.ptp(ratio[used]) == 0:
        return 0.0
    order = np.argsort(ratio[used])
    groups = np.array_split(order, _SNR_GROUPS)
    x = np.array([np.log(ratio[used][group]).mean() for group in groups])
    # The tail and not the median: a threshold lies there, and tails need not change with S/N as
    # medians do.
    y = np.log([np.quantile(value[used][group], _TAIL) for group in groups])
    x -= x.mean()
    return float(x @ y / (x @ x))
