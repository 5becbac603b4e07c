"""Which theory a survey is simulated with: the emulator, or one learnt from its own stars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maury.errors import ConfigError
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.bound import covers
from maury.simulation.training_stars import ADVICE
from maury.spectra.operators import vacuum_to_air
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey

__all__ = ["TheoryChoice", "choose_theory"]


@dataclass(frozen=True)
class TheoryChoice:
    """A theory, and why it was taken.

    Attributes
    ----------
    name : {"emulator", "learnt"}
    reason : str
    """

    name: str
    reason: str


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

    The emulator knows what no sample of a few thousand stars can tell, but only some labels in one
    window; it is taken where it reaches.

    Parameters
    ----------
    wanted : {"auto", "emulator", "learnt"}
        As the settings have it.
    survey : Survey
    preparation : Preparation
        Steps to the pixels that networks see.
    names : sequence of str
        Labels to learn.
    synthetic : str, optional
        Path of synthetic spectra, with which a theory is learnt.
    power_known : bool
        Whether survey or settings state the resolving power, to which the emulator is broadened.

    Raises
    ------
    ConfigError
        If the emulator is wanted, and does not know the labels.
    """
    if not names:
        # That nothing is to be learnt is for others to say.
        return TheoryChoice("emulator", "there are no labels")
    missing = [name for name in LABEL_NAMES if name not in names]
    further = [name for name in names if name not in LABEL_NAMES]
    if synthetic is not None:
        return TheoryChoice("learnt", f"the settings give synthetic spectra, {synthetic}")
    if wanted == "learnt":
        return TheoryChoice("learnt", "the settings ask for it")
    if wanted == "emulator":
        if missing or further:
            raise ConfigError(
                f"the emulator simulates stars by the labels {', '.join(LABEL_NAMES)}, got "
                f'{", ".join(names)}; write theory = "learnt" in [training], or {ADVICE}'
            )
        return TheoryChoice("emulator", "the settings ask for it")
    if missing or further:
        told = f"needs {', '.join(missing)}" if missing else f"does not know {', '.join(further)}"
        return TheoryChoice("learnt", f"the emulator {told}")
    steps = preparation.model_copy(update={"observables": ()})
    nothing = steps.apply(survey.rows(np.zeros(0, dtype=np.int64)))
    wave = nothing.wave_aa if nothing.medium == "air" else vacuum_to_air(nothing.wave_aa)
    if not covers(wave):
        where = f"{wave[0]:.1f}-{wave[-1]:.1f} angstrom"
        return TheoryChoice("learnt", f"the emulator does not reach over {where}")
    if not power_known:
        return TheoryChoice(
            "learnt",
            "the survey does not say its resolving power, which the emulator needs; write "
            "'resolving_power = ...' at the top of the TOML file that it is ingested with",
        )
    return TheoryChoice("emulator", "it knows these labels and reaches over these pixels")
