"""Residuals of some stars with their quoted errors, and shares of them with sampling errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np

from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int64Array, StrArray
from maury.labels.columns import QUANTILES, stated_error

_LOWEST, _HIGHEST = QUANTILES[0][0], QUANTILES[-1][0]


@dataclass(frozen=True)
class Pool:
    """What was predicted for some spectra, against the truth.

    Attributes
    ----------
    residual, error, truth : (n, n_label) float64
        Predicted minus true, the quoted 1 sigma error, and the true label.
    held : (n, n_label) bool
        Whether the truth lies between the outer quantiles.
    snr : (n,) float64
    star : (n,) str
        Names of the stars: the spectra of one star count as one draw.
    """

    residual: Float64Array
    error: Float64Array
    held: BoolArray
    truth: Float64Array
    snr: Float64Array
    star: StrArray

    @classmethod
    def of(
        cls,
        table: Mapping[str, AnyArray],
        truth: Float64Array,
        *,
        labels: Sequence[str],
        star: StrArray,
    ) -> Self:
        """Compare the columns of a catalogue with the true labels (n, n_label) of its rows."""

        def columns(suffix: str) -> Float64Array:
            return np.column_stack([table[f"{name}{suffix}"] for name in labels])

        mean = columns("")
        held = np.zeros(mean.shape, dtype=np.bool_)
        if f"{labels[0]}_{_LOWEST}" in table:
            held = (columns(f"_{_LOWEST}") < truth) & (truth < columns(f"_{_HIGHEST}"))
        error = np.column_stack([stated_error(table, name) for name in labels])
        return cls(mean - truth, error, held, truth, table["snr"], star)

    @classmethod
    def join(cls, pools: Sequence[Self]) -> Self:
        """Return all stars of some pools."""
        return cls(*(np.concatenate([getattr(p, f.name) for p in pools]) for f in fields(cls)))

    def rows(self, chosen: BoolArray | Int64Array) -> Self:
        """Return some of the stars."""
        return type(self)(*(getattr(self, f.name)[chosen] for f in fields(self)))

    def inside(self, sigma: float) -> BoolArray:
        """Which residuals (n, n_label) are within so many errors; a missing one is not."""
        return np.asarray(np.abs(self.residual) < sigma * self.error)

    def numbers(self) -> Int64Array:
        """Return the number of each spectrum's star, from 0."""
        return np.asarray(np.unique(self.star, return_inverse=True)[1])

    def share(
        self, where: BoolArray, among: BoolArray | None = None
    ) -> tuple[Float64Array, Float64Array]:
        """Return the share of the spectra in each column of `where`, and its sampling error.

        The spectra of one star count as one draw.

        Parameters
        ----------
        where : (n, n_column) bool
        among : (n, n_column) bool, optional
            Spectra that are counted in each column; all if it is not given.

        Returns
        -------
        share, error : (n_column,) float64
            NaN where none is counted.
        """
        counted = np.ones(where.shape, dtype=np.bool_) if among is None else among
        n_counted = counted.sum(axis=0)
        size = np.where(n_counted > 0, n_counted, np.nan)
        share = (where & counted).sum(axis=0) / size
        number = self.numbers()
        excess = np.zeros((number.max(initial=0) + 1, where.shape[1]))
        np.add.at(excess, number, counted * (where - np.nan_to_num(share)))
        return share, np.sqrt((excess**2).sum(axis=0)) / size
