"""MATISSE: labels as projections of the spectrum on vectors learnt around its own labels.

Recio-Blanco, Bijaoui & de Laverny (2006, MNRAS 370, 141). A label is theta = sum_p B_p O_p, with
B = sum_i alpha_i S_i of training spectra S_i. alpha solves (S S^T + n sigma^2) alpha = theta: the
ridge, by class of S/N, stands for their early-stopped iteration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Self

import numpy as np
from pydantic import Field
from scipy.linalg import eigh

from maury.io.arrays import Float32Array, Float64Array, IndexArray
from maury.labels.statistics import MAD_TO_SIGMA
from maury.methods.fitting.completion import (
    Completed,
    SpectrumStatistics,
    gaps,
    guessed_variance,
)
from maury.methods.fitting.noise import weighted_variance
from maury.methods.fitting.stars import complete_stars, nodes_of
from maury.methods.protocols import (
    MOST_STARS,
    NO_EXTERNAL,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
)
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs

__all__ = ["Matisse", "MatisseSettings"]


_BLOCK = 128
"""Stars whose coefficients lie in memory together, 70 kB each for nine labels."""
# With fewer stars leaving one out says little of a ridge.
_LEAST_STARS = 30
# Chosen: what has not settled by then goes to and fro between two nodes.
_ROUNDS = 10
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridges that are tried, in units of the noise variance of the training spectra."""
# Noise of a pixel that is good in no training spectrum: 1e-4 of the continuum.
_LEAST_VARIANCE = 1e-8


_MOST_CLASSES = 100
"""Of S/N: vectors are kept for each."""


class MatisseSettings(MethodSettings):
    """Settings of MATISSE.

    Attributes
    ----------
    nodes : int
        Places among the training labels that have vectors of their own.
    neighbours : int
        Training stars nearest to a node that make its vectors.
    snr_classes : tuple of float
        S/N for which vectors are made; a spectrum takes those of the nearest.
    """

    nodes: int = Field(default=24, ge=1, le=1000)
    neighbours: int = Field(default=500, ge=_LEAST_STARS, le=MOST_STARS)
    snr_classes: tuple[float, ...] = Field(
        default=(20.0, 40.0, 80.0), min_length=1, max_length=_MOST_CLASSES
    )


@dataclass(frozen=True, eq=False)
class Matisse(Method[MatisseSettings]):
    """MATISSE, trained; the first of the vectors are the global ones, the others those of nodes.

    Attributes
    ----------
    vectors : (1 + n_node, n_class, n_pixel, n_label) float32
        B, in the unit of each label.
    offset : (1 + n_node, n_class, n_label) float64
        Label of a spectrum on which all B give 0.
    floor : (1 + n_node, n_class, n_label) float64
        Scatter of left-out training stars beyond noise.
    nodes : (n_node, n_label) float64
    scale : (n_label,) float64
        Of distances to nodes; infinite for labels that do not count.
    snr_classes : (n_class,) float64
    noise_correlation : (n_lag,) float64
    spectra : SpectrumStatistics or None
        Of training spectra, for masked pixels; None in models that were trained before it was.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "matisse"
    paper: ClassVar[str] = "Recio-Blanco et al. (2006, MNRAS 370, 141)"
    bibtex_key: ClassVar[str] = "2006MNRAS.370..141R"
    settings_class: ClassVar[type[MethodSettings]] = MatisseSettings

    vectors: Float32Array
    offset: Float64Array
    floor: Float64Array
    nodes: Float64Array
    scale: Float64Array
    snr_classes: Float64Array
    noise_correlation: Float64Array
    spectra: SpectrumStatistics | None = None

    def __post_init__(self) -> None:
        shape, n_label = self.vectors.shape, len(self.label_names)
        if shape[-1] != n_label or shape[0] != 1 + len(self.nodes):
            raise ValueError(f"the vectors are {shape} for {n_label} labels")

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: MatisseSettings, seed: int
    ) -> Self:
        """Learn the vectors from stars of which all labels are known.

        Raises
        ------
        UnknownName
            If a label is not known.
        TrainingError
            If there are fewer than thirty such stars.
        """
        stars = complete_stars(training, settings.labels, least=_LEAST_STARS)
        names, truth = stars.label_names, stars.truth
        place = nodes_of(truth, names, settings.nodes, seed=seed)
        classes = np.array(sorted(settings.snr_classes), dtype=np.float64)
        correlation = np.array(training.noise_correlation, dtype=np.float64)
        count = min(settings.neighbours, len(truth))
        groups = [np.arange(len(truth))]
        groups += [np.argsort(place.distance(truth, node))[:count] for node in place.centres]
        flux = stars.inputs.flux.astype(np.float64)
        ivar = stars.inputs.ivar.astype(np.float64)
        parts = [
            _project(flux[rows], ivar[rows], truth[rows], classes, correlation) for rows in groups
        ]
        return cls(
            settings=settings,
            label_names=names,
            vectors=np.stack([part.vectors for part in parts]).astype(np.float32),
            offset=np.stack([part.offset for part in parts]),
            floor=np.stack([part.floor for part in parts]),
            nodes=place.centres,
            scale=place.scale,
            snr_classes=classes,
            noise_correlation=correlation,
            spectra=SpectrumStatistics.learn(
                stars.inputs.flux,
                stars.inputs.ivar,
                noise_correlation=tuple(training.noise_correlation),
            ),
        )

    def regress(
        self, flux: Float32Array, snr: Float64Array
    ) -> tuple[Float64Array, IndexArray, IndexArray]:
        """Project spectra: globally, then at the nearest node until it stays the same.

        Parameters
        ----------
        flux : (n_star, n_pixel) float32
            Masked pixels hold what they probably are.
        snr : (n_star,) float64
            NaN where unknown: the middle class.

        Returns
        -------
        labels : (n_star, n_label) float64
        node, kind : (n_star,) int
            Which of `vectors` gave them.
        """
        logs = np.log(self.snr_classes)
        known = np.where(snr > 0, snr, self.snr_classes[len(logs) // 2])
        kind = np.argmin(np.abs(np.log(known)[:, None] - logs), axis=1)
        node = np.zeros(len(flux), dtype=np.intp)
        labels = self._labels(flux, node, kind)
        moving = np.arange(len(flux))
        for _ in range(_ROUNDS):
            near = 1 + self._nearest(labels[moving])
            changed = near != node[moving]
            moving, near = moving[changed], near[changed]
            if moving.size == 0:
                break
            node[moving] = near
            labels[moving] = self._labels(flux[moving], near, kind[moving])
        return labels, node, kind

    def _nearest(self, labels: Float64Array) -> IndexArray:
        scaled, centre = labels / self.scale, self.nodes / self.scale
        square = (centre**2).sum(axis=1) - 2.0 * scaled @ centre.T
        return np.asarray(np.argmin(square, axis=1))

    def _labels(self, flux: Float32Array, node: IndexArray, kind: IndexArray) -> Float64Array:
        out = np.empty((len(flux), len(self.label_names)))
        # Stars with the same vectors share one matrix product.
        for n, k, rows in _groups(node, kind):
            out[rows] = flux[rows] @ self.vectors[n, k] + self.offset[n, k]
        return out

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Project spectra; see `maury.methods.protocols.Method.apply`."""
        flux = inputs.flux.copy()
        gap = np.flatnonzero(gaps(inputs.ivar))
        if self.spectra is not None:
            found = self.spectra.complete(flux[gap], inputs.ivar[gap])
            flux[gap] = found.flux
        labels, node, kind = self.regress(flux, inputs.snr)
        good = inputs.ivar > 0
        sigma = np.where(good, 1.0 / np.sqrt(np.where(good, inputs.ivar, 1.0)), 0.0)
        variance = np.empty_like(labels)
        lags = noise_seen(tuple(self.noise_correlation.tolist()), inputs.noise_correlation)
        for n, k, rows in _groups(node, kind):
            noise = weighted_variance(self.vectors[n, k], sigma[rows], correlation=lags)
            variance[rows] = noise + self.floor[n, k] ** 2
        if self.spectra is None:
            for n, k, rows in _groups(node[gap], kind[gap]):
                bad = ~good[gap[rows]]
                variance[gap[rows]] += guessed_variance(bad, self.vectors[n, k])
        else:
            groups = _groups(node[gap], kind[gap])
            variance[gap] = self._variance(found, sigma[gap], groups, lags)
        blank = ~good.any(axis=1)
        labels[blank] = variance[blank] = np.nan
        return FitResult.without_fit(self.label_names, labels, sigma=np.sqrt(variance))

    def _variance(
        self,
        found: Completed,
        sigma: Float64Array,
        groups: list[tuple[int, int, IndexArray]],
        lags: tuple[float, ...],
    ) -> Float64Array:
        """Variance (n_star, n_label) of labels of completed spectra."""
        assert self.spectra is not None, "spectra were completed"
        out = np.empty((len(sigma), len(self.label_names)))
        for n, k, rows in groups:
            for start in range(0, rows.size, _BLOCK):
                some = rows[start : start + _BLOCK]
                seen = self.spectra.effective(found.rows(some), self.vectors[n, k])
                noise = weighted_variance(seen.coefficients, sigma[some], correlation=lags)
                out[some] = noise + seen.variance + self.floor[n, k] ** 2
        return out


class _Projection(NamedTuple):
    """Vectors of one group of stars, for each class of S/N."""

    vectors: Float64Array
    offset: Float64Array
    floor: Float64Array


def _project(
    flux: Float64Array,
    ivar: Float64Array,
    truth: Float64Array,
    classes: Float64Array,
    correlation: Float64Array,
) -> _Projection:
    """Ridge regression in the space of stars; the ridge that leaves out best is taken."""
    n = len(flux)
    centre, mean = truth.mean(axis=0), flux.mean(axis=0)
    spread = np.where(truth.std(axis=0) > 0, truth.std(axis=0), 1.0)
    target, apart = (truth - centre) / spread, flux - mean
    # Noise of the training spectra is in them already: the ridge adds what a class has beyond it.
    own = np.where(ivar > 0, 1.0 / np.where(ivar > 0, ivar, np.inf), 0.0)
    noise = np.maximum(own.sum(axis=0) / np.maximum((ivar > 0).sum(axis=0), 1), _LEAST_VARIANCE)
    factor, _ = _best_ridge(apart / np.sqrt(noise), target)
    vectors, offset, floor = [], [], []
    for snr in classes:
        variance = factor * noise + np.maximum(np.maximum(mean, 0.05) / snr**2 - noise, 0.0)
        whitened = apart / np.sqrt(variance)
        value, left = _spectrum(whitened)
        alpha = left @ ((left.T @ target) / (value + n)[:, None])
        vector = (whitened.T @ alpha) / np.sqrt(variance)[:, None] * spread
        missing = _left_out(value, left, target, float(n)) * spread
        through = weighted_variance(vector, np.sqrt(own), correlation=correlation.tolist())
        robust = (MAD_TO_SIGMA * np.median(np.abs(missing), axis=0)) ** 2
        vectors.append(vector)
        offset.append(centre - mean @ vector)
        floor.append(np.sqrt(np.maximum(robust - np.median(through, axis=0), 0.0)))
    return _Projection(np.stack(vectors), np.stack(offset), np.stack(floor))


def _spectrum(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Eigenvalues and vectors of the products of stars, of the smaller of the two matrices."""
    n, p = rows.shape
    # Of stars or pixels, the smaller matrix has the same eigenvalues.
    if n <= p:
        value, vector = eigh(rows @ rows.T, check_finite=False)
        return np.maximum(value, 0.0), vector
    value, right = eigh(rows.T @ rows, check_finite=False)
    value = np.maximum(value, 0.0)
    kept = value > 1e-12 * value.max(initial=1e-300)
    return value[kept], rows @ right[:, kept] / np.sqrt(value[kept])


def _left_out(
    value: Float64Array, left: Float64Array, target: Float64Array, ridge: float
) -> Float64Array:
    """Residual of each star when it is left out: (y - H y) / (1 - diag H)."""
    shrunk = value / (value + ridge)
    fitted = left @ (shrunk[:, None] * (left.T @ target))
    # The mean is fitted too.
    lever = (left**2) @ shrunk + 1.0 / len(target)
    return np.asarray((target - fitted) / np.maximum(1.0 - lever, 1e-3)[:, None])


def _best_ridge(whitened: Float64Array, target: Float64Array) -> tuple[float, Float64Array]:
    # Eigenvectors serve all ridges and all stars left out, so that nothing is solved anew.
    value, left = _spectrum(whitened)
    losses = [
        np.mean(_left_out(value, left, target, factor * len(target)) ** 2) for factor in _RIDGES
    ]
    return _RIDGES[int(np.argmin(losses))], np.array(losses)


def _groups(node: IndexArray, kind: IndexArray) -> list[tuple[int, int, IndexArray]]:
    """Stars that share their vectors."""
    width = int(kind.max(initial=0)) + 1
    code = node * width + kind
    order = np.argsort(code, kind="stable")
    edges = np.flatnonzero(np.diff(code[order])) + 1
    return [
        (int(node[rows[0]]), int(kind[rows[0]]), rows)
        for rows in np.split(order, edges)
        if rows.size
    ]
