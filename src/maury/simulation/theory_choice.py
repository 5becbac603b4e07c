"""Which theory simulates or fits the spectra of a survey: the emulator, or one learnt from it.

One protocol for the default network and for the methods that fit theory.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maury.errors import ConfigError
from maury.io.arrays import Float64Array
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.bound import covers
from maury.simulation.training_stars import ADVICE

__all__ = ["TheoryChoice", "choose"]


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


def choose(
    wanted: str,
    names: Sequence[str],
    wave_air_aa: Callable[[], Float64Array],
    *,
    synthetic: str | None = None,
    power_known: bool = True,
) -> TheoryChoice:
    """Choose a theory by the labels to learn and the pixels to reach over.

    The emulator knows what no sample of a few thousand stars can tell, but only some labels in one
    window; it is taken where it reaches.

    Parameters
    ----------
    wanted : {"auto", "emulator", "learnt"}
        As the settings have it.
    names : sequence of str
        Labels to learn.
    wave_air_aa : callable
        Gives the wavelengths (n_pixel,) in angstrom in air; asked only if they decide.
    synthetic : str, optional
        Path of synthetic spectra, with which a theory is learnt.
    power_known : bool
        Whether survey or settings state the resolving power, to which the emulator is broadened.

    Raises
    ------
    ConfigError
        If the emulator is wanted, and does not know the labels.
    """
    missing = [name for name in LABEL_NAMES if name not in names]
    further = [name for name in names if name not in LABEL_NAMES]
    if not names:
        # That nothing is to be learnt is for others to say.
        return TheoryChoice("emulator", "there are no labels")
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
    wave = wave_air_aa()
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
