"""Two dimensions out of many, for eyes: never for a decision."""

from __future__ import annotations

from enum import IntEnum

import numpy as np

from maury.errors import MissingExtra
from maury.io.arrays import Float64Array, FloatArray

LEAST_POINTS = 20
"""t-SNE of fewer points is an arrangement by chance."""
_PERPLEXITY = 30.0
"""Effective number of neighbours, the usual value (van der Maaten & Hinton 2008 find results alike
between 5 and 50)."""
_SEED = 0
"""A map is a picture, not a sample: the same points give the same map."""


class Kind(IntEnum):
    """What a point of a map stands for."""

    OBSERVED = 0
    UNLIKE = 1
    TRAINING = 2


def embed(points: FloatArray) -> Float64Array:
    """Place points in the plane by t-SNE, so that neighbours stay neighbours.

    Distances and densities in the plane mean nothing; who is whose neighbour does. The method is
    that of van der Maaten & Hinton (2008, JMLR 9, 2579), by openTSNE (Poličar et al. 2024, JSS
    109, 3).

    Parameters
    ----------
    points : (n, k) float
        Finite, at least `LEAST_POINTS` of them.

    Returns
    -------
    (n, 2) float64
        The same for the same points, on one machine.

    Raises
    ------
    ValueError
        If there are too few points.
    MissingExtra
        If openTSNE is not installed.
    """
    if len(points) < LEAST_POINTS:
        raise ValueError(f"a map needs at least {LEAST_POINTS} points, got {len(points)}")
    try:
        from openTSNE import TSNE
    except ImportError as error:
        raise MissingExtra(
            "the map needs openTSNE, which is not installed; pip install 'maury[map]'"
        ) from error
    # openTSNE searches three times as many neighbours as the perplexity, and needs that many
    # points.
    perplexity = min(_PERPLEXITY, (len(points) - 1) / 3.0)
    # One thread: sums of several threads end in another order, and so in another map.
    placed = TSNE(perplexity=perplexity, random_state=_SEED, n_jobs=1).fit(
        np.asarray(points, dtype=np.float64)
    )
    return np.array(placed, dtype=np.float64)
