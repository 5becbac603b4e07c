"""Move a trained model to a survey of another resolution, grid and noise.

A few hundred stars with reference labels suffice: the target model starts from the source model
(`maury.training.source_model`) and is fine-tuned on stars simulated as the new survey sees them.
Errors, coverage and audit report of the target model come from the new survey alone.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maury.errors import ConfigError
from maury.io.cluster import Cluster
from maury.io.config_files import settings_of
from maury.model.directory import Model
from maury.prediction.calibration import Calibration
from maury.simulation.emulator import Emulator
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.processes import Progress, Stage
from maury.training.runs import Completion
from maury.training.settings import EnsembleConfig
from maury.training.source_model import SourceModel, source_training

__all__ = ["TRAINING", "transfer"]

logger = logging.getLogger(__name__)

TRAINING: Mapping[str, Any] = {"steps": 3000, "learning_rate": 1e-3, "stars": 50_000}
"""What of the training differs from the source model's: it is a shorter one, in smaller steps."""
SPLIT: Mapping[str, Any] = {"train": 0.78, "validation": 0.12, "test": 0.10}
"""More validation stars than `maury train` keeps, as errors need 30 to be calibrated."""
_SECTIONS = ("training", "preparation", "split", "ensemble")


def transfer(
    model: Model | Path | str,
    survey: Survey | Path | str,
    out: Path | str,
    *,
    resolving_power: float | None = None,
    members: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    n_processes: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
) -> Model:
    """Fine-tune a trained model on the labelled stars of another survey.

    Everything in the making lies in ``<out>.part``: a run that was killed goes on from there when
    it is started again, and ends with the same bits. A star
    that the source model knows keeps the part it had there, so that no star that trained either
    model tests the target model. Labels may be missing, one by one or whole columns, as long as a
    star has Teff, log g, and [M/H] or [Fe/H].

    Parameters
    ----------
    model : Model or path-like
        The source model, of the preset ``maury``.
    survey : Survey or path-like
        The new survey, some of its stars with labels.
    out : path-like
        Model directory to write.
    resolving_power : float, optional
        Of the new survey; by default that of the settings, or what the survey says.
    members : int, optional
        Networks; as many as the source model keeps by default.
    seed : int
        Seed of the split and of every member.
    config : mapping or path of a TOML file, optional
        Sections ``[training]``, ``[preparation]``, ``[split]`` and ``[ensemble]`` as of
        `maury.training.settings.EnsembleConfig`. What is left out is as for the source model,
        but for `TRAINING`, `SPLIT`, and the resolving power with its scatter.
    n_processes : int, optional
        Members trained at a time, one thread each; as many as there are processors by default. The
        result does not depend on it.
    cluster : Cluster, optional
        Workers to train the members on (`maury.io.cluster.connect`), in place of processes here.
    progress : callable, optional
        Called with a `maury.training.processes.MemberEvent` (member, epoch, losses) after each
        epoch of each member.
    stage : callable
        Called with what begins, in words; logged by default.
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    Model
        The target model as written. ``provenance["transferred_from"]`` names the source model and
        its checksum.

    Raises
    ------
    ConfigError
        If settings are wrong, the source model cannot be moved, the survey has none of its labels,
        or the resolving power is not known or not below that of the emulator.
    GridMismatch
        If the wavelength ranges do not overlap.
    TrainingError
        If fewer than 20 labelled stars can train.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings or data, is in the way.

    Examples
    --------
    >>> target = transfer(
    ...     "rave.model", "rvs.zarr", "rvs.model", resolving_power=11500
    ... )  # doctest: +SKIP
    """
    source = SourceModel.of(model if isinstance(model, Model) else Model.open(model))
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    settings = _settings(source, survey, _sections(config), members, resolving_power)
    inherited = None
    if "calibration" in source.model.attachments:
        inherited = Calibration.from_arrays(source.model.arrays("calibration"))
    completion = Completion(inherited=inherited, stage=stage)
    return ensemble.train(
        survey,
        out,
        seed=seed,
        config=settings,
        n_processes=n_processes,
        cluster=cluster,
        progress=progress,
        stage=stage,
        overwrite=overwrite,
        complete=completion,
        finish=completion.describe,
        source=source,
    )


def _sections(config: Mapping[str, Any] | Path | str | None) -> dict[str, dict[str, Any]]:
    given = settings_of(config)
    problems = [
        f"there is no section [{name}] (known: {', '.join(_SECTIONS)}); "
        "the network is that of the source model"
        for name in given
        if name not in _SECTIONS
    ]
    problems += [
        f"[{name}] must be a section of keys, got {section!r}"
        for name, section in given.items()
        if not isinstance(section, Mapping)
    ]
    if problems:
        raise ConfigError("the settings are wrong:\n  " + "\n  ".join(problems))
    return {name: dict(given.get(name, {})) for name in _SECTIONS}


def _settings(
    source: SourceModel,
    survey: Survey,
    sections: dict[str, dict[str, Any]],
    members: int | None,
    resolving_power: float | None,
) -> EnsembleConfig:
    """Return the source model's settings, replaced by those of a transfer and those given."""
    model, given = source.model, sections["training"]
    observing = dict(given.pop("observing", {}))
    stated = resolving_power or observing.get("resolving_power")
    power = _resolving_power(stated or survey.resolving_power)
    own = source.star_simulator.observing.model_dump(mode="json")
    ratio = power / source.star_simulator.observing.resolving_power
    # Scatter and range are taken to be relative, so that they go with the resolving power.
    own["resolving_power_scatter"] *= ratio
    own["resolving_power_range"] = [ratio * limit for limit in own["resolving_power_range"]]
    preparation = model.preparation.to_json()
    if survey.noise_correlation is not None:
        # The noise is that of the new survey, which training reads from it.
        for known in (own, preparation):
            for key in ("noise_side_weight", "noise_correlation"):
                known.pop(key, None)
    own |= {**observing, "resolving_power": power}
    training = {**source_training(model), **TRAINING, **given, "observing": own}
    preparation |= sections["preparation"]
    choice = {"members": len(model.kept), **sections["ensemble"]}
    if members is not None:
        choice["members"] = members
    network = dict(model.network)
    settings = EnsembleConfig.model_validate(
        {
            "network": {"preset": network.pop("name"), **network},
            "training": training,
            "preparation": preparation,
            "split": {**SPLIT, **sections["split"]},
            # Nothing ranks these members, as no validation star steers them; all are kept.
            "ensemble": {"percentile": 100.0, **choice},
        }
    )
    _check(source, settings)
    return settings


def _resolving_power(value: Any) -> float:
    limit = Emulator.load().spec.resolving_power
    if value is None:
        raise ConfigError(
            "the resolving power of the new survey is not known; give it by --resolving-power, as "
            "resolving_power in [training.observing], or when the survey is ingested"
        )
    if not isinstance(value, int | float) or not 0 < value < limit:
        raise ConfigError(
            f"the resolving power must be below the emulator's, {limit:.0f}, got {value!r}; "
            "smooth spectra of higher resolution before they are ingested"
        )
    return float(value)


def _check(source: SourceModel, settings: EnsembleConfig) -> None:
    expected, got = source.model.preparation.observable_names, settings.preparation
    if got.observable_names != expected:
        raise ConfigError(
            f"the observables must be those of the source model, {', '.join(expected)}, got "
            f"{', '.join(got.observable_names) or 'none'}; leave them out of [preparation], and "
            "let those that the survey lacks be missing"
        )
    # Row by row a star could train the source model and test the target model.
    if settings.split.rule != "star":
        raise ConfigError("a transfer divides whole stars; leave out rule in [split]")
    labels = set(settings.ensemble.labels)
    if labels and labels != set(source.model.label_names):
        raise ConfigError(
            "a target model predicts the labels of its source model; leave out labels in "
            "[ensemble]. Labels that the survey lacks may be missing"
        )
