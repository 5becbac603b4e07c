"""Choices among labelled stars: those with all labels, and places spread among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from maury.errors import TrainingError, check_known
from maury.io.arrays import Float64Array, IndexArray
from maury.labels.statistics import robust_scale
from maury.methods.protocols import Sample

__all__ = ["Places", "complete_stars", "nodes_of", "spread_stars"]


_ATMOSPHERE = ("teff", "logg", "m_h")
# Lloyd's rounds at most; where nodes lie exactly does not matter.
_ROUNDS = 30
# Outliers are drawn in to so many scatters, so that no node is spent on one star.
_REACH = 4.0


def complete_stars(sample: Sample, wanted: Sequence[str] = (), *, least: int = 1) -> Sample:
    """Return the stars of which all wanted labels are known, and these labels alone.

    Parameters
    ----------
    sample : Sample
    wanted : sequence of str
        Names of labels, in the order of the result; all of the sample if empty.
    least : int
        Fewest stars that will do; with 0 the result may be empty, as it is where the sample lacks
        a wanted label.

    Returns
    -------
    Sample
        Finite labels, and spectra of at least one good pixel.

    Raises
    ------
    UnknownName
        If a label is not known.
    TrainingError
        If there are too few such stars.
    """
    known = sample.label_names
    names = tuple(wanted or known)
    if least == 0 and not set(names) <= set(known):
        return sample.rows(np.zeros(len(sample), dtype=np.bool_))
    index = [known.index(check_known("label", name, known)) for name in names]
    chosen = replace(
        sample,
        labels=tuple(sample.labels[k] for k in index),
        truth=sample.truth[:, index],
        truth_error=sample.truth_error[:, index],
    )
    complete = np.isfinite(chosen.truth).all(axis=1) & (sample.inputs.ivar > 0).any(axis=1)
    if np.count_nonzero(complete) < least:
        raise TrainingError(
            f"at least {least} stars with a spectrum and all of the labels {', '.join(names)} are "
            f"needed, got {np.count_nonzero(complete)} of {len(sample)}; name fewer labels, or "
            "give more stars"
        )
    return chosen.rows(np.flatnonzero(complete))


@dataclass(frozen=True, eq=False)
class Places:
    """Places among labels.

    Attributes
    ----------
    centres : (n_node, n_label) float64
    scale : (n_label,) float64
        Infinite for labels that do not count in distances.
    """

    centres: Float64Array
    scale: Float64Array

    def distance(self, labels: Float64Array, centre: Float64Array) -> Float64Array:
        """Squared scaled distance (n_star,) of `labels` (n_star, n_label) from `centre`."""
        return np.asarray((((labels - centre) / self.scale) ** 2).sum(axis=1))


def nodes_of(labels: Float64Array, names: Sequence[str], count: int, *, seed: int) -> Places:
    """Cluster stars by Teff, log g and [M/H], or by all labels where these are not given.

    Parameters
    ----------
    labels : (n_star, n_label) float64
    names : sequence of str
    count : int
        Clusters at most (k-means, empty ones left out).
    seed : int
        Of the first centres.
    """
    counts = np.array([name in _ATMOSPHERE for name in names])
    counts |= not counts.any()
    centre, scale = robust_scale(labels)
    # An infinite scale takes a label out of the distance.
    metric = np.where(counts, scale, np.inf)
    place = np.clip((labels - centre) / metric, -_REACH, _REACH)
    rng = np.random.default_rng(seed)
    nodes = place[rng.choice(len(place), min(count, len(place)), replace=False)]
    for _ in range(_ROUNDS):
        square = (nodes**2).sum(axis=1) - 2.0 * place @ nodes.T
        member = np.argmin(square, axis=1)
        size = np.bincount(member, minlength=len(nodes))
        total = np.stack([np.bincount(member, column, len(nodes)) for column in place.T], axis=1)
        moved = total[size > 0] / size[size > 0, None]
        if moved.shape == nodes.shape and np.allclose(moved, nodes):
            break
        nodes = moved
    square = (nodes**2).sum(axis=1) - 2.0 * place @ nodes.T
    member = np.argmin(square, axis=1)
    groups = [member == k for k in range(len(nodes)) if (member == k).any()]
    return Places(np.stack([labels[group].mean(axis=0) for group in groups]), metric)


def spread_stars(scaled: Float64Array, count: int) -> IndexArray:
    """Rows (at most `count`) of `scaled` (n_star, n_label) far from one another.

    The most central first, then always the one farthest from those chosen.
    """
    chosen = [int(np.argmin((scaled**2).sum(axis=1)))]
    nearest = np.full(len(scaled), np.inf)
    while len(chosen) < min(count, len(scaled)):
        nearest = np.minimum(nearest, ((scaled - scaled[chosen[-1]]) ** 2).sum(axis=1))
        chosen.append(int(np.argmax(nearest)))
    return np.array(chosen, dtype=np.intp)
