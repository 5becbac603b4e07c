"""What the simulated population knows of labels: their scatter given photometry, or given a few.

Both are taken from stars drawn once, with a fixed seed, from `maury.simulation.population`, as
local covariances around some of them (anchors). They serve as Gaussian priors of a bound or a fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import combinations_with_replacement

import numpy as np
from scipy.spatial import cKDTree

from maury.io.arrays import Float64Array, IndexArray
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.population import ALL_NAMES, Population, Stars
from maury.spectra.observables import absolute_magnitude

__all__ = ["CORE", "TIED", "PopulationPrior", "population_prior"]


CORE: tuple[str, ...] = ("teff", "logg", "fe_h", "alpha_m")
"""Labels that place a star in the population."""
TIED: tuple[str, ...] = ("m_h", *ALL_NAMES[len(LABEL_NAMES) :])
"""Labels with a mean and a scatter given the core; of [M/H], that is [M/H] - [Fe/H]."""

_CORE = [ALL_NAMES.index(name) for name in CORE]
_TIED = [ALL_NAMES.index(name) for name in TIED]
_FE_H = ALL_NAMES.index("fe_h")
_CORE_SCALE = np.array([150.0, 0.3, 0.2, 0.08])
_N_DRAWN, _N_ANCHOR, _N_NEIGHBOUR, _N_MEAN = 24_000, 1500, 200, 8
_SEED = 20200
"""Any: the prior is made anew in each process and must be the same in all."""
_RIDGE = 0.1
"""In units of one star, against hundreds of neighbours."""


@dataclass(frozen=True, eq=False)
class PopulationPrior:
    """How the sixteen labels scatter in the population, at some of its stars.

    Labels are in the order of `maury.simulation.population.ALL_NAMES`, which is that of the
    emulator.

    Attributes
    ----------
    core : (n_anchor, 4) float64
        `CORE` of the anchors.
    scatter : (n_anchor, 16, 16) float64
        Covariance of the labels given photometry.
    slope : (n_anchor, 8, 4) float64
        Derivative of the mean of `TIED` by the core.
    rest : (n_anchor, 8, 8) float64
        Covariance about that mean.
    """

    core: Float64Array
    scatter: Float64Array
    slope: Float64Array
    rest: Float64Array
    _tree: cKDTree

    def given_photometry(self, labels: Float64Array) -> Float64Array:
        """Covariance (n_star, 16, 16) of the labels given eight absolute magnitudes and A_V.

        Parameters
        ----------
        labels : (n_star, n_label)
            Finite; only the core is used, to find stars alike.
        """
        return np.asarray(self.scatter[self._near(labels[:, _CORE])].mean(axis=1))

    def ties(self, labels: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Relations between labels that hold in the population.

        Parameters
        ----------
        labels : (n_star, n_label)
            Finite; only the core is used.

        Returns
        -------
        relation : (n_star, 8, 16) float64
            Its product with labels is `TIED` less its mean at their core, plus a constant.
        covariance : (n_star, 8, 8) float64
            Of that product.
        """
        near = self._near(labels[:, _CORE])
        relation = np.zeros((len(labels), len(_TIED), len(ALL_NAMES)))
        relation[:, :, _CORE] = -self.slope[near].mean(axis=1)
        relation[:, 0, _FE_H] -= 1.0
        relation[:, np.arange(len(_TIED)), _TIED] = 1.0
        return relation, np.asarray(self.rest[near].mean(axis=1))

    def _near(self, core: Float64Array) -> IndexArray:
        return np.asarray(self._tree.query(core / _CORE_SCALE, k=_N_MEAN)[1])


@cache
def population_prior() -> PopulationPrior:
    """Return the prior of the population that ships with the package (made once, in a second)."""
    stars = Population.load().sample(_N_DRAWN, np.random.default_rng(_SEED))
    core = stars.labels[:, _CORE]
    anchors = core[:_N_ANCHOR]
    _, near = cKDTree(core / _CORE_SCALE).query(anchors / _CORE_SCALE, k=_N_NEIGHBOUR)
    tied = stars.labels[:, _TIED]
    # [M/H] follows [Fe/H] one to one; only what it differs by is learnt.
    tied[:, 0] -= stars.labels[:, _FE_H]
    slope, rest = _local_planes((core[near] - anchors[:, None]) / _CORE_SCALE, tied[near])
    return PopulationPrior(
        core=anchors,
        scatter=_scatter_given_photometry(stars),
        slope=slope / _CORE_SCALE,
        rest=rest,
        _tree=cKDTree(anchors / _CORE_SCALE),
    )


def _local_planes(step: Float64Array, values: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Least-squares planes of `values` (n, k, m) on `step` (n, k, d): slope, covariance."""
    design = np.concatenate([np.ones((*step.shape[:2], 1)), step], axis=2)
    transposed = design.transpose(0, 2, 1)
    # The ridge matters only where neighbours do not fill all directions.
    normal = transposed @ design + _RIDGE * np.eye(design.shape[2])
    solution = np.linalg.solve(normal, transposed @ values)
    residual = values - design @ solution
    # Unbiased: each plane takes a degree of freedom per coefficient.
    covariance = residual.transpose(0, 2, 1) @ residual / (step.shape[1] - design.shape[2])
    return solution[:, 1:].transpose(0, 2, 1), covariance


def _scatter_given_photometry(stars: Stars) -> Float64Array:
    """Covariance of the labels (n_anchor, 16, 16) given absolute magnitudes and A_V.

    A cubic polynomial predicts the labels from photometry; the covariance is that of its residuals
    among stars of like prediction.
    """
    parallax = stars.parallax_mas[:, None]
    observed = np.column_stack([absolute_magnitude(stars.magnitudes, parallax), stars.a_v])
    design = _cubic(observed)
    # Colours are nearly dependent, and their cubes more so.
    normal = design.T @ design + 1e-6 * len(design) * np.eye(design.shape[1])
    predicted = design @ np.linalg.solve(normal, design.T @ stars.labels)
    residual = stars.labels - predicted
    place = predicted[:, _CORE] / _CORE_SCALE
    _, near = cKDTree(place).query(place[:_N_ANCHOR], k=_N_NEIGHBOUR)
    local = residual[near]
    # The bias of the polynomial there is no scatter of the labels.
    local -= local.mean(axis=1, keepdims=True)
    return np.asarray(local.transpose(0, 2, 1) @ local / (_N_NEIGHBOUR - 1))


def _cubic(observed: Float64Array) -> Float64Array:
    """Monomials of degree 0 to 3 of the whitened columns, kept within 3.5 sigma."""
    centred = observed - observed.mean(axis=0)
    _, size, axes = np.linalg.svd(centred, full_matrices=False)
    # A cubic runs away in the tails, where hardly a star holds it.
    white = np.clip(centred @ axes.T / (size / np.sqrt(len(centred))), -3.5, 3.5)
    columns = [np.ones(len(white))]
    for degree in (1, 2, 3):
        columns += [
            white[:, chosen].prod(axis=1)
            for chosen in combinations_with_replacement(range(white.shape[1]), degree)
        ]
    return np.column_stack(columns)
