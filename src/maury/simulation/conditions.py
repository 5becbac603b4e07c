"""Conditions under which the stars of a survey are simulated, and its bounds computed."""

from __future__ import annotations

import logging

import numpy as np

from maury.errors import ConfigError
from maury.model.directory import Model
from maury.simulation.observing import TRAINING_CONDITIONS, ObservingModel
from maury.spectra.preparation import Preparation
from maury.survey.store import Survey

__all__ = ["known_conditions", "survey_conditions"]

logger = logging.getLogger(__name__)


def survey_conditions(
    observing: ObservingModel, survey: Survey, preparation: Preparation, *, theory: str = "emulator"
) -> ObservingModel:
    """Conditions under which stars of a survey are simulated: its resolving power and its noise.

    What `observing` states itself stays. The correlation of the noise is that of prepared pixels.

    Parameters
    ----------
    observing : ObservingModel
    survey : Survey
    preparation : Preparation
    theory : {"emulator", "learnt"}
        The emulator is broadened to the resolving power of the survey; a learnt theory has it.

    Raises
    ------
    ConfigError
        If the emulator is asked for, and neither states the resolving power.
    """
    stated = observing.model_fields_set
    if "resolving_power" not in stated:
        power = survey.resolving_power
        if power is None and theory == "emulator":
            raise ConfigError(
                f"{survey.path} does not say its resolving power, at which stars are simulated: "
                "write 'resolving_power = ...' at the top of the TOML file that it is ingested "
                "with, or in [training.observing] of the settings"
            )
        if power is not None:
            observing = observing.at_power(power)
    if stated & {"noise_side_weight", "noise_correlation"}:
        return observing
    # The steps alone, on no rows: what they make of the noise does not depend on the spectra.
    steps = preparation.model_copy(update={"observables": ()})
    nothing = survey.rows(np.zeros(0, dtype=np.int64))
    return observing.with_noise(steps.apply(nothing).noise_correlation)


def known_conditions(survey: Survey, model: Model) -> ObservingModel | None:
    """Conditions under which the spectra of a survey are seen, for bounds; None if unknown.

    Resolving power and noise of the stored pixels, as the survey says, else as the model does that
    was trained on such spectra.
    """
    power, noise = survey.resolving_power, survey.noise_correlation
    # A learnt theory needs no power, so that its conditions may not state the true one.
    if power is None and "emulator" in getattr(model.attachments.get("sky"), "metadata", {}):
        stated = model.attachments["sky"].metadata["observing"]
        power = ObservingModel.model_validate(stated).resolving_power
    if power is None:
        logger.warning(
            "%s does not say its resolving power, so that there is no bound of its errors; write "
            "'resolving_power = ...' at the top of the TOML file that it is ingested with",
            survey.path,
        )
        return None
    known = model.preparation.noise_correlation if noise is None else noise
    return TRAINING_CONDITIONS.at_power(power).with_noise(known)
