"""How good labels are: statistics of residuals, and of the errors quoted with them.

Everything is measured on the rows where truth and prediction are both known; the rows left out are
counted. Residuals are predicted minus true throughout.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch
from maury.io.arrays import Float64Array
from maury.labels.definitions import Label

MAD_TO_SIGMA = 1.482602218505602
"""Ratio of the standard deviation of a normal distribution to its median absolute deviation."""
NOMINAL_1SIGMA = 0.6826894921370859
"""Share of a normal distribution within one standard deviation, erf(1 / sqrt(2))."""
NOMINAL_2SIGMA = 0.9544997361036416
"""Within two, erf(sqrt(2))."""


@dataclass(frozen=True)
class LabelStatistics:
    """Residuals of one label, in the unit of the label. NaN means that it could not be measured.

    Attributes
    ----------
    name, symbol, unit : str
        The label.
    n : int
        Rows with truth and prediction.
    n_missing : int
        Rows left out because one of the two is missing.
    bias, bias_robust : float
        Mean and median residual.
    scatter, scatter_robust : float
        Standard deviation of the residuals about their mean (divided by n), and 1.4826 times their
        median absolute deviation.
    rms : float
        Root of the mean squared residual: rms^2 = bias^2 + scatter^2.
    slope : float
        Slope of the least-squares line of predicted against true. Below 1 where a model falls back
        to the mean of its training sample.
    correlation : float
        Pearson correlation of predicted and true.
    n_error : int
        Rows, of the `n`, that also have a quoted error above 0.
    coverage_1sigma, coverage_2sigma : float
        Fraction of rows whose residual is within 1 (2) quoted errors. Honest normal errors give
        0.683 (0.954).
    coverage_1sigma_error, coverage_2sigma_error : float
        Sampling error of the fraction: standard deviation of its Jeffreys posterior
        Beta(k + 1/2, n - k + 1/2), which is sqrt(p (1 - p) / n) for large n and never 0.
    z_scatter_robust : float
        1.4826 times the median absolute deviation of residual / error: 1 for honest errors, 2 if
        they are half as large as they should be.
    error_rank_correlation : float
        Spearman correlation of the absolute residual with the error: above 0 if the error says
        which stars are worse.
    """

    name: str
    symbol: str
    unit: str
    n: int
    n_missing: int
    bias: float
    bias_robust: float
    scatter: float
    scatter_robust: float
    rms: float
    slope: float
    correlation: float
    n_error: int = 0
    coverage_1sigma: float = np.nan
    coverage_1sigma_error: float = np.nan
    coverage_2sigma: float = np.nan
    coverage_2sigma_error: float = np.nan
    z_scatter_robust: float = np.nan
    error_rank_correlation: float = np.nan

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping; what could not be measured is None."""
        return {key: _finite(value) for key, value in asdict(self).items()}


def residual_statistics(
    truth: ArrayLike,
    predicted: ArrayLike,
    error: ArrayLike | None = None,
    *,
    labels: Sequence[Label],
) -> list[LabelStatistics]:
    """Measure the residuals of every label.

    Parameters
    ----------
    truth, predicted : (n_row, n_label) float
        True and predicted labels; NaN where missing.
    error : (n_row, n_label) float, optional
        Quoted 1 sigma errors; NaN where unknown.
    labels : sequence of Label
        Definitions, in the order of the second axis.

    Returns
    -------
    list of LabelStatistics
        One per label, in the same order.

    Raises
    ------
    LengthMismatch
        If the shapes differ from one another or from the number of labels.
    """
    true, given = (np.asarray(a, dtype=np.float64) for a in (truth, predicted))
    sigma = None if error is None else np.asarray(error, dtype=np.float64)
    for what, array in (("truth", true), ("predicted", given), ("error", sigma)):
        if array is not None and array.shape != (true.shape[0], len(labels)):
            raise LengthMismatch(
                f"{what} has shape {array.shape}, expected ({true.shape[0]}, {len(labels)}): "
                "give one column per label and one row per spectrum"
            )
    return [
        _one_label(label, true[:, k], given[:, k], None if sigma is None else sigma[:, k])
        for k, label in enumerate(labels)
    ]


def robust_sigma(values: ArrayLike) -> float:
    """Return 1.4826 times the median absolute deviation from the median; NaN values are left out.

    Parameters
    ----------
    values : (n,) float
        Any numbers; the result is NaN if none is finite.
    """
    data = np.asarray(values, dtype=np.float64)
    data = data[np.isfinite(data)]
    if data.size == 0:
        return float("nan")
    return float(MAD_TO_SIGMA * np.median(np.abs(data - np.median(data))))


def robust_scale(values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Median and half the 16-84 % range of each column, missing values left out.

    Parameters
    ----------
    values : (n_row, n_column) float64
        NaN where missing.

    Returns
    -------
    centre, scale : (n_column,) float64
        A column without spread has scale 1, one without values centre 0 as well.
    """
    # nanpercentile warns of columns without any value.
    present = np.isfinite(values).any(axis=0)
    safe = np.where(present, values, 0.0)
    if safe.size == 0:
        return np.zeros(values.shape[1]), np.ones(values.shape[1])
    low, centre, high = np.nanpercentile(safe, [16.0, 50.0, 84.0], axis=0)
    half = 0.5 * (high - low)
    return np.asarray(centre), np.where(half > 0, half, 1.0)


def _one_label(
    label: Label,
    truth: Float64Array,
    predicted: Float64Array,
    error: Float64Array | None,
) -> LabelStatistics:
    # Rows where one is missing are counted, not dropped silently: a model that answers few stars
    # must not look better for it.
    used = np.isfinite(truth) & np.isfinite(predicted)
    true, given = truth[used], predicted[used]
    residual = given - true
    n = int(residual.size)
    some = n > 0
    return LabelStatistics(
        name=label.name,
        symbol=label.symbol,
        unit=label.unit,
        n=n,
        n_missing=int(truth.size - n),
        bias=float(residual.mean()) if some else np.nan,
        bias_robust=float(np.median(residual)) if some else np.nan,
        scatter=float(residual.std()) if some else np.nan,
        scatter_robust=robust_sigma(residual),
        rms=float(np.sqrt(np.mean(residual**2))) if some else np.nan,
        slope=_slope(true, given),
        correlation=_correlation(true, given),
        **({} if error is None else _quoted_errors(residual, error[used])),
    )


def _quoted_errors(residual: Float64Array, error: Float64Array) -> dict[str, Any]:
    from scipy.stats import rankdata

    # An error of 0 is a missing one in many catalogues, and would make the ratio infinite.
    known = np.isfinite(error) & (error > 0)
    residual, error = residual[known], error[known]
    n = int(error.size)
    if n == 0:
        return {}
    z = residual / error
    out: dict[str, Any] = {
        "n_error": n,
        "z_scatter_robust": robust_sigma(z),
        "error_rank_correlation": _correlation(rankdata(np.abs(residual)), rankdata(error)),
    }
    for k in (1, 2):
        inside = int(np.count_nonzero(np.abs(z) <= k))
        out[f"coverage_{k}sigma"] = inside / n
        out[f"coverage_{k}sigma_error"] = _jeffreys_sigma(inside, n)
    return out


def _jeffreys_sigma(k: int, n: int) -> float:
    # Jeffreys' prior: the error of a share is not 0 where all stars are inside.
    a, b = k + 0.5, n - k + 0.5
    return float(np.sqrt(a * b / (n + 1.0) ** 2 / (n + 2.0)))


def _slope(x: Float64Array, y: Float64Array) -> float:
    if x.size < 2:
        return float("nan")
    dx = x - x.mean()
    power = dx @ dx
    return float(dx @ (y - y.mean()) / power) if power > 0 else float("nan")


def _correlation(x: Float64Array, y: Float64Array) -> float:
    # Equal values have no correlation; numpy would warn and divide by zero.
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    # A spread below the root of the smallest number has no variance to divide by.
    with np.errstate(divide="ignore", invalid="ignore"):
        return float(np.corrcoef(x, y)[0, 1])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
