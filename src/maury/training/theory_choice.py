"""Which theory a survey is simulated with: the emulator, or one learnt from its own stars."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maury.io.arrays import Float64Array
from maury.simulation.theory_choice import TheoryChoice, choose
from maury.spectra.operators import vacuum_to_air
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey

__all__ = ["TheoryChoice", "choose_theory"]


def choose_theory(
    wanted: str,
    survey: Survey,
    preparation: Preparation,
    names: Sequence[str],
    *,
    synthetic: str | None = None,
    power_known: bool = True,
) -> TheoryChoice:
    """Choose the theory to simulate the stars of a survey with.

    Parameters
    ----------
    wanted, names, synthetic, power_known
        As of `maury.simulation.theory_choice.choose`.
    survey : Survey
    preparation : Preparation
        Steps to the pixels that networks see.

    Raises
    ------
    ConfigError
        If the emulator is wanted, and does not know the labels.
    """

    def wave_air_aa() -> Float64Array:
        steps = preparation.model_copy(update={"observables": ()})
        nothing = steps.apply(survey.rows(np.zeros(0, dtype=np.int64)))
        wave = nothing.wave_aa
        return wave if nothing.medium == "air" else np.asarray(vacuum_to_air(wave))

    return choose(wanted, names, wave_air_aa, synthetic=synthetic, power_known=power_known)
