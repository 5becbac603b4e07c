"""Whether a survey to predict was observed as the survey that a model was trained on."""

from __future__ import annotations

import logging

from maury.methods.registry import MethodNetwork
from maury.model.directory import Model
from maury.prediction.labellers import Labeller
from maury.simulation.observing import ObservingModel
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.batch import Readable
from maury.spectra.noise import same_correlation

__all__ = ["tell_of_conditions", "training_power"]

logger = logging.getLogger(__name__)

POWER_MARGIN = 0.01
"""Relative difference that is told of: a fifth of the scatter between fibres (400 of 7500), which
training knows; chosen, not measured."""


def training_power(model: Model, labeller: Labeller) -> float | None:
    """Return the resolving power that a model was trained at; None if it is not known."""
    network = labeller.network
    if isinstance(network, MethodNetwork):
        return network.method.resolving_power
    if "sky" not in model.attachments:
        return None
    if TrainingStarSimulator.learnt_by(model):
        known = model.training.get("theory", {}).get("resolving_power")
        return None if known is None else float(known)
    stated = model.attachments["sky"].metadata["observing"]
    return ObservingModel.model_validate(stated).resolving_power


def tell_of_conditions(model: Model, labeller: Labeller, survey: Readable) -> None:
    """Warn of a survey whose recorded resolving power or noise a model cannot allow for.

    A method whose fit knows the noise takes its correlation from the prepared spectra, so that only
    one whose errors were learnt at that of the training spectra is warned of.
    """
    own, power = training_power(model, labeller), survey.resolving_power
    # Spectra of a higher one are broadened (`maury.prediction.matching`).
    if own is not None and power is not None and power < own / (1.0 + POWER_MARGIN):
        logger.warning(
            "%s has the resolving power %g, and the model was trained at %g: lines are of another "
            "width than those that it knows, and labels will be wrong; train a model on a survey "
            "of that resolving power, or transfer it",
            survey.path,
            power,
            own,
        )
    network, noise = labeller.network, survey.noise_correlation
    if (
        noise is None
        or not isinstance(network, MethodNetwork)
        or network.method.errors_follow_noise
    ):
        return
    learnt = model.preparation.noise_correlation
    if not same_correlation(noise, learnt):
        logger.warning(
            "the noise of %s has the correlation %s, and that of the spectra that the method %s "
            "was trained on %s: its errors are those of the latter",
            survey.path,
            _short(noise),
            network.method.name,
            _short(learnt),
        )


def _short(correlation: tuple[float, ...]) -> str:
    return "(" + ", ".join(f"{value:.3g}" for value in correlation) + ")"
