"""DEGAS: labels of the training spectra that a spectrum is like, found by a tree of projections.

Bijaoui et al. (2012, Stat. Meth. 9, 55), and Kordopatis et al. (2013, AJ 146, 134) for RAVE: at low
S/N a spectrum is recognised among reference spectra, where a projection would amplify the noise.
Each node of an oblique binary tree projects the spectrum on the difference of the means of its two
halves; labels are the mean of those of the references of the leaves, weighted by likelihood.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from scipy.special import log_ndtr

from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array

__all__ = ["Degas"]

_LEAF = 16
"""Reference spectra of a leaf at most; chosen: fewer leave its mean to single stars."""
_ROUNDS = 5
"""Of two-means within a node; where the halves part exactly does not matter."""
_MOST_REFERENCES = 1500
"""Reference spectra at most: 4096 pixels of each are 25 MB in a model."""
_BLOCK = 256
"""Spectra compared with all references at a time."""


@dataclass(frozen=True, eq=False)
class Degas:
    """A tree over reference spectra.

    Attributes
    ----------
    flux : (n, n_pixel) float32
        Reference spectra.
    labels : (n, n_label) float64
    directions : (n_node, n_pixel) float32
        Projections of the nodes, of unit length.
    thresholds : (n_node,) float64
        Projection that parts the two halves.
    paths : (n_leaf, n_node) int64
        Side, -1 or 1, of each node on the way to a leaf; 0 for other nodes.
    leaf : (n,) int64
        Of each reference.
    """

    flux: Float32Array
    labels: Float64Array
    directions: Float32Array
    thresholds: Float64Array
    paths: Int64Array
    leaf: Int64Array

    def __post_init__(self) -> None:
        n, n_node = len(self.flux), len(self.directions)
        shapes = (len(self.labels), len(self.leaf), len(self.thresholds), self.paths.shape[1])
        if shapes != (n, n, n_node, n_node) or not (self.leaf < len(self.paths)).all():
            raise ValueError(f"a tree of {n} spectra and {n_node} nodes does not hold together")

    @classmethod
    def learn(cls, flux: Float32Array, labels: Float64Array, *, seed: int) -> Self:
        """Grow the tree over spectra (n, n_pixel) of labels (n, n_label)."""
        rng = np.random.default_rng(seed)
        some = rng.permutation(len(flux))[:_MOST_REFERENCES]
        flux, labels = flux[some], labels[some]
        directions: list[Float32Array] = []
        thresholds: list[float] = []
        ways: list[dict[int, int]] = []
        leaf = np.zeros(len(flux), dtype=np.int64)
        waiting: list[tuple[Int64Array, dict[int, int]]] = [(np.arange(len(flux)), {})]
        while waiting:
            rows, way = waiting.pop()
            halves = _halves(flux[rows]) if rows.size > _LEAF else None
            if halves is None:
                leaf[rows] = len(ways)
                ways.append(way)
                continue
            direction, threshold, upper = halves
            node = len(directions)
            directions.append(direction)
            thresholds.append(threshold)
            waiting += [(rows[~upper], way | {node: -1}), (rows[upper], way | {node: 1})]
        paths = np.zeros((len(ways), len(directions)), dtype=np.int64)
        for number, way in enumerate(ways):
            for node, side in way.items():
                paths[number, node] = side
        along = np.array(directions, dtype=np.float32).reshape(len(directions), flux.shape[1])
        return cls(flux, labels, along, np.array(thresholds, dtype=np.float64), paths, leaf)

    @cached_property
    def _squares(self) -> Float32Array:
        return np.asarray(self.flux**2)

    def recognise(
        self, flux: Float32Array, ivar: Float32Array, *, itself: bool = False
    ) -> Float64Array:
        """Labels (n_star, n_label) of spectra.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float32
            Masked pixels, of `ivar` 0, hold what they probably are.
        itself : bool
            Whether the spectra are the references with more noise, of which each then may not be
            recognised as itself.
        """
        out = np.empty((len(flux), self.labels.shape[1]))
        for start in range(0, len(flux), _BLOCK):
            rows = slice(start, start + _BLOCK)
            weight = self._weights(flux[rows], ivar[rows])
            if itself:
                own = np.arange(start, start + len(weight))
                weight[np.arange(len(weight)), own] = -np.inf
            weight -= weight.max(axis=1, keepdims=True)
            share = np.exp(weight)
            out[rows] = share @ self.labels / share.sum(axis=1, keepdims=True)
        return out

    def _weights(self, flux: Float32Array, ivar: Float32Array) -> Float64Array:
        """Logarithm of the weight (n_star, n) of each reference."""
        good = ivar > 0
        variance = np.where(good, 1.0 / np.where(good, ivar, 1.0), 0.0)
        noise = np.sqrt(np.maximum(variance @ (self.directions.T**2), 1e-30))
        # A spectrum that noise may have taken across a threshold is followed on both sides of it.
        above = (flux @ self.directions.T - self.thresholds) / noise
        ways = np.zeros((len(flux), len(self.paths)))
        for side in (-1, 1):
            ways += np.asarray(log_ndtr(side * above)) @ (self.paths == side).T.astype(np.float64)
        weighted = flux * ivar
        chi2 = (weighted * flux).sum(axis=1)[:, None] - 2.0 * weighted @ self.flux.T
        chi2 = (chi2 + ivar @ self._squares.T).astype(np.float64)
        # Between references, which are few, no spectrum fits as well as its noise allows.
        least = chi2.min(axis=1, keepdims=True)
        scale = np.maximum(least / np.maximum(good.sum(axis=1), 1)[:, None], 1.0)
        return np.asarray(ways[:, self.leaf] - 0.5 * (chi2 - least) / scale)


def _halves(flux: Float32Array) -> tuple[Float32Array, float, BoolArray] | None:
    """Direction (n_pixel,), threshold, and which spectra (n,) lie above it; None if alike."""
    apart = flux - flux.mean(axis=0)
    _, vector = np.linalg.eigh((apart @ apart.T).astype(np.float64))
    along = vector[:, -1]
    upper = np.asarray(along > np.median(along), dtype=np.bool_)
    direction, middle = apart[0], 0.0
    for _ in range(_ROUNDS):
        if upper.all() or not upper.any():
            return None
        high, low = apart[upper].mean(axis=0), apart[~upper].mean(axis=0)
        direction = high - low
        middle = float(0.5 * (high + low) @ direction)
        upper = np.asarray(apart @ direction > middle, dtype=np.bool_)
    length = float(np.linalg.norm(direction))
    if length == 0.0 or upper.all() or not upper.any():
        return None
    threshold = (middle + float(flux.mean(axis=0) @ direction)) / length
    return (direction / length).astype(np.float32), threshold, upper
