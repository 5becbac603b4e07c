"""Training stars with a fault of a known kind, for coverage to learn what it looks like.

The change of the noise-free spectrum is added to the observed one, so that noise, gaps and all
that theory does not know stay as they are. Such stars are simulated in part.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maury.io.arrays import Float32Array, Float64Array, Int64Array
from maury.simulation.broadening import broadened
from maury.simulation.companions import BandLayout, add_companions
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.preparation import Inputs, take

__all__ = ["rotating", "with_companions"]

_ROTATION_KMS = (15.0, 120.0)
"""Range of v sin i: below, lines are as broad as without; above, they are hardly seen."""
_LEAST_RATIO = 0.1
"""Light of a companion over that of its star: fainter ones are seen in nothing."""


def rotating(
    star_simulator: TrainingStarSimulator,
    inputs: Inputs,
    labels: Float64Array,
    rng: np.random.Generator,
) -> Inputs:
    """Return the same stars rotating fast: v sin i uniform in its logarithm.

    Parameters
    ----------
    star_simulator : TrainingStarSimulator
    inputs : Inputs
    labels : (n_star, n_label) float64
        True labels; a star without all of them stays as it is.
    rng : numpy Generator
    """
    clean = _clean(star_simulator, inputs, labels)
    low, high = np.log(_ROTATION_KMS)
    speed = np.exp(rng.uniform(low, high, len(clean)))
    return replace(inputs, flux=inputs.flux + (broadened(clean, speed, inputs.wave_aa) - clean))


def with_companions(
    star_simulator: TrainingStarSimulator,
    inputs: Inputs,
    labels: Float64Array,
    rng: np.random.Generator,
) -> tuple[Inputs, Int64Array]:
    """Return those stars that find a companion among the others, with its light, unresolved.

    Arguments as of `rotating`. With them come their rows (n,) among the stars given.
    """
    known = np.asarray(np.isfinite(labels).all(axis=1))
    clean = _clean(star_simulator, inputs, labels)
    pairs = add_companions(
        clean,
        np.where(known[:, None], labels, np.nan),
        inputs.observables.astype(np.float64),
        wave_aa=inputs.wave_aa,
        layout=BandLayout.of(star_simulator.mapping),
        chosen=np.flatnonzero(known),
        rng=rng,
        ratio=(_LEAST_RATIO, 1.0),
        names=star_simulator.names,
    )
    chosen = np.zeros(len(labels), dtype=np.bool_)
    chosen[pairs.primary] = True
    # Pairs come in the order of the rows, so that a mask keeps it.
    own = take(inputs, chosen)
    flux = own.flux + (pairs.flux - clean[chosen])
    mixed = replace(own, flux=flux, observables=pairs.observables.astype(np.float32))
    return mixed, np.flatnonzero(chosen)


def _clean(
    star_simulator: TrainingStarSimulator, inputs: Inputs, labels: Float64Array
) -> Float32Array:
    theory = star_simulator.seen(labels, inputs.flux, inputs.ivar)
    return np.where(np.isfinite(theory), theory, np.float32(1.0))
