"""From a labelled survey to a model whose labels can be trusted: train, calibrate, cover."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from maury.errors import ConfigError, MauryError, OutputError, check_known
from maury.evaluation.audit import audit
from maury.evaluation.audit_report import audit_metadata
from maury.evaluation.card import add_card
from maury.io.cluster import Cluster
from maury.methods.registry import METHODS
from maury.methods.training import train_method
from maury.model.directory import Model
from maury.model.networks.published import PRESETS
from maury.prediction.calibration import Calibration
from maury.prediction.drift import with_sample
from maury.prediction.self_check import with_self_check
from maury.prediction.uncertainty import complete
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.processes import Progress
from maury.training.settings import EnsembleConfig, resolve

logger = logging.getLogger(__name__)


def train(
    survey: Survey | Path | str,
    model: Path | str,
    *,
    preset: str | None = None,
    method: str | None = None,
    members: int | None = None,
    seed: int = 0,
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None = None,
    split: str | None = None,
    n_processes: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Model:
    """Train an ensemble, calibrate its errors, learn what it covers, and audit it.

    The arguments, the result and the errors are those of `maury.training.ensemble.train`. Models of
    the default preset get a calibration (`maury.prediction.calibration`), a coverage
    (`maury.prediction.coverage`) and an audit; others quote the spread of their networks. A card
    (`maury.evaluation.card`) is written beside every model, with its figures on the validation
    stars.

    Parameters
    ----------
    survey, model, preset, members, seed, config, split, n_processes, cluster, progress, overwrite
        As of `maury.training.ensemble.train`.
    method : str, optional
        A method of `maury.methods`, which has no members and learns in this process, or a preset.

    Examples
    --------
    >>> import maury
    >>> model = maury.train("survey.zarr", "my.model", seed=1)  # doctest: +SKIP
    """
    if method is not None and method not in PRESETS:
        if preset is not None:
            raise ConfigError(f"give a preset or a method, got {preset!r} and {method!r}")
        _check_method(method)
        survey = labelled = survey if isinstance(survey, Survey) else Survey.open(survey)
        trained = train_method(
            survey,
            model,
            method=method,
            seed=seed,
            config=_sections(config),
            split=split,
            overwrite=overwrite,
            complete=lambda model: equipped(model, labelled),
        )
        _describe(trained, survey)
        return trained
    preset = method or preset
    settings = resolve(config, preset=preset, members=members, split=split)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    trained = ensemble.train(
        survey,
        model,
        seed=seed,
        config=settings,
        n_processes=n_processes,
        cluster=cluster,
        progress=progress,
        overwrite=overwrite,
        complete=completion(survey),
    )
    _describe(trained, survey)
    return trained


def _describe(model: Model, survey: Survey) -> None:
    """Write the card of a model that is made, and stays whether it has a card or not."""
    try:
        add_card(model, survey)
    except OutputError as error:
        logger.warning("%s has no card, write it with 'maury card': %s", model.path, error)


def equipped(model: Model, survey: Survey) -> Model:
    """Return a trained model with self-check stars, and with the marks of its training sample."""
    return with_self_check(with_sample(model, survey), survey)


def _check_method(name: str) -> None:
    check_known("method", name, [*METHODS, *PRESETS])


def _sections(
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None,
) -> Mapping[str, Any] | Path | str | None:
    """Return settings of a method, which those of an ensemble are not."""
    if isinstance(config, EnsembleConfig):
        raise ConfigError("settings of an ensemble cannot train a method; give its own, or none")
    return config


def completion(survey: Survey, *, inherited: Calibration | None = None) -> Callable[[Model], Model]:
    """Return what makes a trained model whole: calibration, coverage, audit and `equipped`.

    Parameters
    ----------
    survey, inherited
        As of `maury.prediction.uncertainty.UncertaintyModel.fit`.
    """

    def finish(model: Model) -> Model:
        whole = complete(survey, model, inherited=inherited)
        whole = equipped(whole, survey)
        if "calibration" not in whole.attachments:
            return whole
        try:
            report = audit(whole, survey)
        except MauryError as error:
            logger.warning("%s is not audited: %s", model.path, error)
            return whole
        return whole.with_arrays("audit", report.to_arrays(), metadata=audit_metadata(report))

    return finish
