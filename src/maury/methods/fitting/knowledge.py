"""What a labelled sample teaches a fit about labels: their ranges, relations, and photometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial import cKDTree

from maury.errors import check_known
from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.labels.definitions import LABELS
from maury.labels.statistics import robust_scale, robust_sigma
from maury.methods.fitting.polynomials import bounded_terms
from maury.methods.protocols import External

__all__ = ["PRIORS", "LabelKnowledge", "Prior", "PriorKind", "Start", "with_external"]


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

    def rows(self, index: Int64Array | slice) -> Prior:
        """Return the priors of some stars."""
        return Prior(self.precision[index], self.pull[index])


# An error below this is none: the label is exact.
_EXACT = 1e-9


class Start(NamedTuple):
    """Where fits of some stars start, and what is known of them.

    Attributes
    ----------
    place : (n_star, n_label) float64
        Labels to start from.
    prior : Prior
    frozen : (n_star, n_label) bool
        Labels that keep their place.
    """

    place: Float64Array
    prior: Prior
    frozen: BoolArray


def with_external(start: Start, names: Sequence[str], external: Mapping[str, External]) -> Start:
    """Take in labels known from elsewhere: as a prior, or exactly where they have no error.

    Parameters
    ----------
    start : Start
    names : sequence of str
        All labels, in order.
    external : mapping of str to External
        Some of them.
    """
    place, prior, frozen = start.place.copy(), start.prior, start.frozen.copy()
    for name, known in external.items():
        error = np.where(np.isfinite(known.error), known.error, 0.0)
        exact = np.isfinite(known.value) & (error <= _EXACT)
        sigma = np.where(exact, np.nan, error)
        prior = prior + Prior.of(names, len(known.value), {name: (known.value, sigma)})
        column = list(names).index(name)
        there = np.isfinite(known.value)
        place[:, column] = np.where(there, known.value, place[:, column])
        frozen[:, column] |= exact
    return Start(place, prior, frozen)


PriorKind = Literal["wide", "sample", "photometry"]
PRIORS: tuple[str, ...] = ("wide", "sample", "photometry")
# Least scatter about the relation, dex: keeps the prior finite where both are one column.
_LEAST_SIGMA = 0.005
# Training stars alike whose errors make a covariance: 9 x 9 needs several times ten.
_NEIGHBOURS = 100
# Relative to the number of stars, against collinear observables.
_RIDGE = 1e-3
# Scaled observables are kept within so many scatters, where training stars hold the polynomial.
_CLIP = 3.5
# In standard deviations: as the ranges of our labels are to the scatter of RAVE's stars.
_OWN_RANGE = 6.0
_WIDTH = {label.name: label.range[1] - label.range[0] for label in LABELS}
_MIDDLE = {label.name: 0.5 * (label.range[0] + label.range[1]) for label in LABELS}


@dataclass(frozen=True, eq=False)
class LabelKnowledge:
    """Priors of labels, learnt from labelled stars.

    ``wide`` is a Gaussian as wide as the whole range of each label, and the relation of [M/H] to
    [Fe/H] and [alpha/M], which one spectrum cannot tell apart. ``sample`` is the mean and
    covariance of the labels of the training stars. ``photometry`` predicts the labels from the
    observables by a quadratic polynomial, with the covariance of its errors among training stars
    alike; where an observable is missing, it is ``wide``.

    Attributes
    ----------
    mean, covariance : (n_label,), (n_label, n_label) float64
        Of the labels of training stars.
    relation : (3,) float64
        [M/H] - [Fe/H] = a + b [Fe/H] + c [alpha/M].
    relation_sigma : (1,) float64
        Scatter about it.
    centre, scale : (n_observable,) float64
        Of the observables.
    polynomial : (n_term, n_label) float64
        Labels from terms of the scaled observables; no term if there is no photometry.
    predicted, error : (n_star, n_label) float64
        Of training stars.
    """

    mean: Float64Array
    covariance: Float64Array
    relation: Float64Array
    relation_sigma: Float64Array
    centre: Float64Array
    scale: Float64Array
    polynomial: Float64Array
    predicted: Float64Array
    error: Float64Array

    @classmethod
    def learn(cls, names: tuple[str, ...], truth: Float64Array, observables: Float64Array) -> Self:
        """Learn from labels (n_star, n_label) and observables (n_star, n_observable).

        Stars that lack a label are left out, and those that lack an observable teach nothing of
        photometry.
        """
        whole = np.isfinite(truth).all(axis=1)
        labels, seen = truth[whole], observables[whole]
        relation, sigma = _metals(names, labels)
        n_label = labels.shape[1]
        both = np.isfinite(seen).all(axis=1) & (seen.shape[1] > 0)
        centre = scale = np.zeros(0)
        polynomial = np.zeros((0, n_label))
        predicted = error = np.zeros((0, n_label))
        if both.sum() > 4 * _NEIGHBOURS:
            centre, scale = robust_scale(seen[both])
            scale = np.where(scale > 0, scale, 1.0)
            terms = bounded_terms((seen[both] - centre) / scale, _CLIP)
            normal = terms.T @ terms + _RIDGE * both.sum() * np.eye(terms.shape[1])
            polynomial = np.linalg.solve(normal, terms.T @ labels[both])
            predicted = terms @ polynomial
            error = labels[both] - predicted
        spread = np.cov(labels.T) + np.diag(np.full(n_label, 1e-12))
        return cls(
            labels.mean(axis=0),
            spread,
            relation,
            sigma,
            centre,
            scale,
            polynomial,
            predicted,
            error,
        )

    def prior(
        self, kind: PriorKind, names: tuple[str, ...], n_star: int, observables: Float64Array
    ) -> Prior:
        """Return the prior of the labels `names` of some stars.

        Parameters
        ----------
        kind : {"wide", "sample", "photometry"}
        names : tuple of str
            In the order in which they were learnt.
        n_star : int
        observables : (n_star, n_observable) float64
        """
        if kind == "sample":
            return Prior.joint(np.tile(self.mean, (n_star, 1)), self.covariance)
        # Labels of a user's own have no range of ours: six scatters of the stars are as wide.
        spread = _OWN_RANGE * np.sqrt(np.diagonal(self.covariance))
        known = {
            name: (_MIDDLE.get(name, mean), _WIDTH.get(name, width))
            for name, mean, width in zip(names, self.mean, spread, strict=True)
        }
        wide = Prior.of(names, n_star, known)
        if {"m_h", "fe_h"} <= set(names):
            row = np.zeros(len(names))
            row[names.index("m_h")] = 1.0
            row[names.index("fe_h")] = -1.0 - self.relation[1]
            if "alpha_m" in names:
                row[names.index("alpha_m")] = -self.relation[2]
            sigma = self.relation_sigma[0]
            wide += Prior.relation(row, self.relation[0], sigma, n_star=n_star)
        if kind == "photometry" and len(self.predicted):
            return wide + self._from_photometry(observables)
        return wide

    def _from_photometry(self, observables: Float64Array) -> Prior:
        known = np.isfinite(observables).all(axis=1)
        mean = np.full((len(observables), self.predicted.shape[1]), np.nan)
        covariance = np.full((*mean.shape, mean.shape[1]), np.nan)
        if known.any():
            scaled = (observables[known] - self.centre) / self.scale
            mean[known] = bounded_terms(scaled, _CLIP) @ self.polynomial
            spread = self.predicted.std(axis=0)
            _, near = cKDTree(self.predicted / spread).query(mean[known] / spread, k=_NEIGHBOURS)
            local = self.error[near]
            # Among stars alike the polynomial may be off in the mean, too.
            mean[known] += local.mean(axis=1)
            local = local - local.mean(axis=1, keepdims=True)
            covariance[known] = local.transpose(0, 2, 1) @ local / (_NEIGHBOURS - 1)
        return Prior.joint(mean, covariance)


def _metals(names: tuple[str, ...], labels: Float64Array) -> tuple[Float64Array, Float64Array]:
    if not {"m_h", "fe_h"} <= set(names):
        return np.zeros(3), np.array([1.0])
    iron = labels[:, names.index("fe_h")]
    excess = labels[:, names.index("m_h")] - iron
    alpha = labels[:, names.index("alpha_m")] if "alpha_m" in names else np.zeros(len(iron))
    design = np.column_stack([np.ones(len(iron)), iron, alpha])
    solution = np.linalg.lstsq(design, excess, rcond=None)[0]
    scatter = robust_sigma(excess - design @ solution)
    return np.asarray(solution, dtype=np.float64), np.array([max(scatter, _LEAST_SIGMA)])
