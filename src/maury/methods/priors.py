"""What is known of labels besides the spectrum: Gaussian priors in information form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maury.naming import check_known

__all__ = ["Prior"]

Float64Array = NDArray[np.float64]


@dataclass(frozen=True)
class Prior:
    """Gaussian priors of the labels of some stars; their sum is the joint prior.

    Attributes
    ----------
    precision : (n_star, n_label, n_label) float64
        Inverse covariance, of any rank; zero where nothing is known.
    pull : (n_star, n_label) float64
        `precision` times the mean.
    """

    precision: Float64Array
    pull: Float64Array

    @classmethod
    def flat(cls, n_star: int, n_label: int) -> Self:
        """Nothing is known."""
        return cls(np.zeros((n_star, n_label, n_label)), np.zeros((n_star, n_label)))

    @classmethod
    def of(
        cls,
        label_names: Sequence[str],
        n_star: int,
        known: Mapping[str, tuple[ArrayLike, ArrayLike]],
    ) -> Self:
        """Independent priors of some labels.

        Parameters
        ----------
        label_names : sequence of str
            All labels, in order.
        n_star : int
        known : mapping of str to (mean, sigma)
            Each (n_star,) or a number; nothing is known where either is not finite or sigma is
            not positive.

        Raises
        ------
        UnknownName
            If there is no such label.
        """
        out = cls.flat(n_star, len(label_names))
        for name, (mean, sigma) in known.items():
            k = list(label_names).index(check_known("label", name, label_names))
            mean, sigma = (
                np.broadcast_to(np.asarray(x, np.float64), n_star) for x in (mean, sigma)
            )
            usable = np.isfinite(mean) & np.isfinite(sigma) & (sigma > 0)
            weight = np.where(usable, 1.0 / np.where(usable, sigma, 1.0) ** 2, 0.0)
            out.precision[:, k, k] += weight
            out.pull[:, k] += weight * np.where(usable, mean, 0.0)
        return out

    @classmethod
    def joint(cls, mean: Float64Array, covariance: Float64Array) -> Self:
        """One prior of all labels: `mean` (n_star, n_label), `covariance` (..., n_label, n_label).

        A row that is not finite knows nothing.
        """
        n, k = mean.shape
        broad = np.broadcast_to(covariance, (n, k, k))
        finite = np.isfinite(np.column_stack([mean, broad.reshape(n, -1)]))
        good = np.asarray(finite.all(axis=1), dtype=np.bool_)
        precision = np.zeros((n, k, k))
        precision[good] = np.linalg.inv(broad[good])
        pull = np.einsum("nij,nj->ni", precision, np.where(good[:, None], mean, 0.0))
        return cls(precision, pull)

    @classmethod
    def relation(
        cls, coefficients: ArrayLike, value: ArrayLike, sigma: ArrayLike, *, n_star: int
    ) -> Self:
        """Prior of one linear combination of labels.

        Parameters
        ----------
        coefficients : (n_label,) or (n_star, n_label) array_like
        value, sigma : (n_star,) or scalar array_like
            Mean and standard deviation of the combination.
        n_star : int
        """
        row = np.asarray(coefficients, dtype=np.float64)
        row = np.broadcast_to(row, (n_star, row.shape[-1]))
        weight = np.broadcast_to(np.asarray(sigma, np.float64), n_star)[:, None] ** -2.0
        pull = weight * row * np.broadcast_to(np.asarray(value, np.float64), n_star)[:, None]
        return cls(weight[:, :, None] * row[:, :, None] * row[:, None, :], pull)

    def __add__(self, other: Prior) -> Prior:
        return Prior(self.precision + other.precision, self.pull + other.pull)

    def __len__(self) -> int:
        return len(self.pull)

    def rows(self, index: NDArray[np.int64] | slice) -> Prior:
        """Return the priors of some stars."""
        return Prior(self.precision[index], self.pull[index])
