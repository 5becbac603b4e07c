"""External knowledge of one label, taken into the others by their covariance."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maury.labels import LABEL_NAMES
from maury.naming import check_known

Float64s = NDArray[np.float64]


def condition(
    mean: ArrayLike,
    covariance: ArrayLike,
    *,
    label: str = "logg",
    value: ArrayLike,
    error: ArrayLike = 0.0,
    names: Sequence[str] = LABEL_NAMES,
) -> tuple[Float64s, Float64s]:
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
    keep = np.repeat(np.eye(n_label)[None], rows.size, axis=0)
    keep[:, :, position] -= gain
    noise = sigma[rows, None, None] ** 2 * gain[:, :, None] * gain[:, None, :]
    spread[rows] = keep @ spread[rows] @ keep.transpose(0, 2, 1) + noise
    return centre, spread
