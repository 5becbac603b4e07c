"""Spectra of other stars in place of a star's own, and what estimates make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial import cKDTree

from maury.io.arrays import Float64Array, Int64Array
from maury.spectra.preparation import Inputs

Output = Callable[[Inputs], Float64Array]


_SAME = 0.98
"""Correlation above which one label is another one in different words ([M/H] and [Fe/H] of a
sample): kept fixed, it would leave the audited label no freedom."""


_NEAREST, _SEARCHED = 5, 24


def finite_only(values: Float64Array) -> Float64Array:
    """Return values with NaN for whatever is not finite."""
    return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True, eq=False)
class Swap:
    """Predictions with the spectra of other stars, and photometry of one's own.

    Donors are positions in a pool of stars, whose inputs, labels and numbers it holds. `unit` is
    what a difference of each label is measured in; `given` are the labels that are known at all.
    """

    output: Output
    inputs: Inputs
    truth: Float64Array
    star: Int64Array
    pool: Inputs
    pool_truth: Float64Array
    pool_star: Int64Array
    unit: Float64Array
    given: Int64Array

    def donors(self, columns: Int64Array, n: int, rng: np.random.Generator) -> Int64Array:
        """Draw stars (n_row, n) that are alike in some labels; -1 where there is none."""
        return alike(
            self.truth[:, columns] / self.unit[columns],
            self.pool_truth[:, columns] / self.unit[columns],
            star=self.star,
            pool_star=self.pool_star,
            n=n,
            rng=rng,
        )

    def apart(self, donors: Int64Array) -> Float64Array:
        """Labels (n_row, n, n_label) of the donors minus those of the stars; NaN without one."""
        if len(self.pool) == 0:
            return np.full((*donors.shape, self.truth.shape[1]), np.nan)
        apart = self.pool_truth[donors] - self.truth[:, None]
        return np.where((donors < 0)[:, :, None], np.nan, apart)

    def residuals(self, donors: Int64Array, k: int) -> Float64Array:
        """Residuals (n_row, n) of label `k` with the spectra of the stars `donors` (n_row, n)."""
        means = np.stack([self.predict(one)[:, k] for one in donors.T], axis=1)
        return finite_only(means - self.truth[:, k, None])

    def predict(self, donors: Int64Array) -> Float64Array:
        """Labels (n_row, n_label) with the spectra of the stars `donors` (n_row,)."""
        if len(self.pool) == 0:
            return np.full(self.truth.shape, np.nan)
        flux, ivar = self.pool.flux[donors], self.pool.ivar[donors]
        mean = self.output(replace(self.inputs, flux=flux, ivar=ivar))
        return np.where((donors < 0)[:, None], np.nan, mean)


def alike(
    place: Float64Array,
    pool: Float64Array,
    *,
    star: Int64Array,
    pool_star: Int64Array,
    n: int,
    rng: np.random.Generator,
) -> Int64Array:
    """Draw other stars among the five nearest, or so, of a pool.

    Parameters
    ----------
    place : (n_row, n_axis) float64
        Where stars are; NaN where unknown.
    pool : (n_pool, n_axis) float64
        Where the stars of the pool are, finite.
    star, pool_star : (n_row,) and (n_pool,) int64
        Numbers of the stars; no star is drawn for itself.
    n : int
        Draws per star, without repetition as far as there are enough.
    rng : numpy Generator

    Returns
    -------
    (n_row, n) int64
        Positions in `pool`; -1 where there is none.
    """
    out = np.full((len(place), n), -1)
    usable = np.flatnonzero(np.isfinite(place).all(axis=1))
    if len(pool) == 0 or usable.size == 0:
        return out
    n_near = min(_SEARCHED, len(pool))
    if pool.shape[1] == 0:
        # In no label at all every star is alike.
        near = rng.integers(0, len(pool), (usable.size, n_near))
    else:
        # More than needed are asked for, since those of the star itself are struck out.
        _, near = cKDTree(pool).query(place[usable], k=np.arange(1, n_near + 1))
    wanted = max(n, _NEAREST)
    for row, found in zip(usable, near, strict=True):
        others = found[pool_star[found] != star[row]][:wanted]
        if others.size:
            out[row] = np.resize(rng.permutation(others), n)
    return out


def spread(values: Float64Array) -> float:
    """Return the standard deviation of the finite values; NaN if there are none."""
    known = values[np.isfinite(values)]
    return float(known.std()) if known.size else np.nan


def response(moved: Float64Array, apart: Float64Array, star: Int64Array) -> tuple[float, float]:
    """Slope of what an estimate moves by on the first label of what the spectra differ by.

    Parameters
    ----------
    moved : (n_row, n_repeat) float64
        Estimate with another star's spectrum minus that with its own.
    apart : (n_row, n_repeat, n_axis) float64
        Labels of the other star minus one's own.
    star : (n_row,) int64
        All rows of a star have one error in common.

    Returns
    -------
    float, float
        Least squares, and its error, which the residuals of each star tell (sandwich estimator).
    """
    n_axis = apart.shape[2]
    if moved.size <= 2 * n_axis:
        return np.nan, np.nan
    # In units of their spread, kelvins and dex are equally well conditioned.
    size = np.maximum(apart.reshape(-1, n_axis).std(axis=0), np.finfo(float).tiny)
    design = np.concatenate([np.ones((*moved.shape, 1)), apart / size], axis=2)
    flat = design.reshape(-1, n_axis + 1)
    inverse = np.linalg.pinv(flat.T @ flat)
    slopes = inverse @ (flat.T @ moved.ravel())
    pulls = np.einsum("nri,nr->ni", design, moved - design @ slopes)
    _, number = np.unique(star, return_inverse=True)
    # Repeats of a star share their error, so that it is its sum that is independent (clustered
    # sandwich estimator; Liang & Zeger 1986, Biometrika 73, 13).
    by_star = np.zeros((int(number.max()) + 1, n_axis + 1))
    np.add.at(by_star, number, pulls)
    errors = np.sqrt(np.diagonal(inverse @ (by_star.T @ by_star) @ inverse))
    return float(slopes[1] / size[0]), float(errors[1] / size[0])


def repeats(truth: Float64Array, k: int, other: int) -> bool:
    """Whether another label is label `k`, or says the same among these stars."""
    both = truth[:, [k, other]]
    x, y = both[np.isfinite(both).all(axis=1)].T
    if k == other:
        return True
    varied = x.size > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    return bool(varied and abs(np.corrcoef(x, y)[0, 1]) > _SAME)


def bootstrap_scatter(
    residuals: list[Float64Array], star: Int64Array, *, n: int, rng: np.random.Generator
) -> Float64Array:
    """Return standard deviations of residuals of resampled stars.

    Parameters
    ----------
    residuals : list of (n_row, n_repeat) float64
        Of each case, finite.
    star : (n_row,) int64
        Star of each row; all rows of a star are drawn together, and the same in all cases.
    n : int
        Resamples.
    rng : numpy Generator

    Returns
    -------
    (n, n_case) float64
        NaN without a row.
    """
    if len(star) == 0:
        return np.full((n, len(residuals)), np.nan)
    _, number = np.unique(star, return_inverse=True)
    n_star = int(number.max()) + 1
    weight = rng.multinomial(n_star, np.full(n_star, 1.0 / n_star), size=n)[:, number]
    size = weight.sum(axis=1)
    mean = np.stack([weight @ one.mean(axis=1) / size for one in residuals], axis=1)
    square = np.stack([weight @ (one**2).mean(axis=1) / size for one in residuals], axis=1)
    return np.asarray(np.sqrt(np.maximum(square - mean**2, 0.0)))
