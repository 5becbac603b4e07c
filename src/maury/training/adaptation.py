"""Take into the theory of a model what all stars of a survey have in common, and train it again.

No labels are needed: strengths, widths and cores of lines, the continuum, single lines and zero
points of bands are measured on the whole survey (`maury.prediction.survey_check`). The stars that
are simulated stay those of the model, with their labels, and are seen as the survey sees them.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError
from maury.evaluation.card import add_card
from maury.io.arrays import Float64Array
from maury.io.cluster import Cluster
from maury.io.config_files import settings_of
from maury.io.files import discard, one_at_a_time, refuse_existing, work_folder
from maury.model.directory import LOSSES, Member, Model
from maury.model.inference import EnsembleNetwork
from maury.model.split import HELD_OUT_FOLDS
from maury.prediction.common_residuals import CommonResiduals, taken_in
from maury.prediction.drift import spread_inputs, with_sample_of
from maury.prediction.labellers import open_labeller
from maury.prediction.self_check import with_self_check
from maury.prediction.survey_check import (
    COMMON,
    LEAST_STARS,
    ZERO_POINT,
    SurveyCheck,
    check_survey,
    measure,
    with_measured,
)
from maury.prediction.uncertainty import UncertaintyModel, simulated_residuals
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.batch import Readable
from maury.spectra.preparation import Inputs
from maury.survey.opening import open_survey
from maury.training.ensemble import member_jobs
from maury.training.processes import MemberJob, Progress, Stage, WorkFolder, train_members
from maury.training.settings import EnsembleConfig
from maury.training.source_model import SourceModel, source_training
from maury.training.transfer import TRAINING

__all__ = ["adapt"]

logger = logging.getLogger(__name__)

N_STAR = 2000
"""Stars of the survey that are looked at: they fix single lines to some .5 % of their depth."""
_LARGEST = 0.3
"""Change of line strength above which theory is not that of such stars at all; chosen."""
_ROUNDS = 3
"""Fits, each beside the theory of the one before: changes of 10 % are then known to .2 %."""
_N_SIMULATED = 6000
"""Simulated stars that tell by how much errors grow: to 1 % in each label."""
_NOT_ADAPTED = ("velocity", "noise")
"""What is told of but belongs to the survey: its velocities, and the noise that it quotes."""


@dataclass(frozen=True, eq=False)
class _Adapted:
    """A star simulator as a survey sees its stars, and what was found in that."""

    simulator: TrainingStarSimulator
    check: SurveyCheck
    inputs: Inputs

    def record(self, source: Model, survey: Readable) -> dict[str, Any]:
        """Return what the model remembers of it, as plain JSON."""
        return {
            "from": source.checksum,
            "survey": survey.path.name,
            "stars": self.check.n_star,
            "found": [str(change) for change in self.check.changes if change.found],
        }


@one_at_a_time("out")
def adapt(
    model: Model | Path | str,
    survey: Readable | Path | str,
    out: Path | str,
    *,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    n_processes: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
) -> Model:
    """Adapt a model to a survey without labels.

    Everything in the making lies in ``<out>.part``: a run that was killed goes on from there.

    Parameters
    ----------
    model : Model or path-like
        Of the preset ``maury``, calibrated.
    survey : Survey or path-like
        Or the TOML file of one; no labels are read.
    out : path-like
        Model directory to write.
    seed : int
        Of every member.
    config : mapping or path of a TOML file, optional
        Section ``[training]``, of which what is left out is as of `maury.training.transfer`.
    n_processes : int, optional
        Members trained at a time, one thread each; as many as there are processors by default.
    cluster : Cluster, optional
        Workers to train the members on, in place of processes here.
    progress : callable, optional
        Called with a `maury.training.processes.MemberEvent` after each epoch of each member.
    stage : callable
        Told what is done next.
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    Model
        ``provenance["adapted"]`` says to which survey, and what was taken in.

    Raises
    ------
    ConfigError
        If the model cannot be adapted, the survey has too few stars, nothing in it differs that can
        be taken in, or its lines differ by more than 30 %.
    GridMismatch
        If the spectra are not on the grid that the model's preparation takes.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings or data, is in the way.

    Examples
    --------
    >>> adapted = maury.adapt("rave.model", "observed.zarr", "adapted.model")  # doctest: +SKIP
    """
    path = Path(out)
    refuse_existing(path, overwrite=overwrite)
    source = SourceModel.of(model if isinstance(model, Model) else Model.open(model))
    survey = open_survey(survey) if isinstance(survey, Path | str) else survey
    settings = _settings(source, config)
    stage("measuring what the stars of the survey have in common")
    found = _adapted(source, survey)
    key = f"{source.model.checksum} {survey.fingerprint} {seed} {settings.to_json()}"
    holds = "an adaptation of another model or survey"
    folder = WorkFolder(work_folder(path, key, holds=holds, overwrite=overwrite))
    n_members = settings.ensemble.members
    if not folder.has_star_simulator():
        for number, start in enumerate(source.starts(found.simulator, n_members, seed)):
            folder.put_start(number, start)
        folder.put_star_simulator(found.simulator, source.model.scaling)
    jobs = member_jobs(folder, settings, seed)
    train_members(
        jobs,
        n_processes=n_processes or n_members,
        progress=progress or (lambda event: None),
        stage=stage,
        cluster=cluster,
    )
    trained = _assemble(folder, source, found, jobs, settings, survey, seed)
    stage("calibrating errors, and measuring what later surveys are compared with")
    result = _complete(trained, source, found, seed).save(path, overwrite=overwrite)
    add_card(result, None)
    discard(folder.path, path)
    return result


def _settings(source: SourceModel, config: Mapping[str, Any] | Path | str | None) -> EnsembleConfig:
    """Return the source model's settings, with those of a short training and those given."""
    model, given = source.model, settings_of(config)
    if unknown := set(given) - {"training"}:
        raise ConfigError(
            f"an adaptation takes the section [training] alone, got {', '.join(sorted(unknown))}; "
            "all else is as of the source model"
        )
    network = dict(model.network)
    return EnsembleConfig.model_validate(
        {
            "network": {"preset": network.pop("name"), **network},
            "training": {**source_training(model), **TRAINING, **given.get("training", {})},
            "preparation": model.preparation.to_json(),
            "ensemble": {"percentile": 100.0, "members": len(model.kept)},
        }
    )


def _adapted(source: SourceModel, survey: Readable) -> _Adapted:
    """Measure a survey and take what was found into the star simulator."""
    model = source.model
    labeller = open_labeller(model).with_theory
    if labeller is None or COMMON not in model.attachments:
        raise ConfigError(
            f"{model.path} does not know what the residuals of its training stars have in common; "
            "train it again with this version of maury"
        )
    inputs = spread_inputs(model, survey, N_STAR)
    check = check_survey(labeller, inputs)
    _refuse(check, model, survey)
    labels = labeller.predict(inputs).mean
    training = CommonResiduals.from_arrays(model.arrays(COMMON))
    simulator = source.star_simulator
    for _ in range(_ROUNDS):
        here = CommonResiduals.measure(simulator, inputs.flux, inputs.ivar, labels)
        simulator = taken_in(simulator, here, training)
    observables = _shifted(simulator.observables, model, check)
    snr = inputs.snr[np.isfinite(inputs.snr) & (inputs.snr > 0)]
    simulator = replace(simulator, observables=observables, snr=snr)
    return _Adapted(simulator, check, inputs)


def _refuse(check: SurveyCheck, model: Model, survey: Readable) -> None:
    """Refuse what cannot be known, and say what is left as it is."""
    if check.n_star < LEAST_STARS:
        raise ConfigError(
            f"an adaptation measures what the spectra of at least {LEAST_STARS} stars have in "
            f"common, got {check.n_star} of the {len(survey)} of {survey.path} with a spectrum and "
            "labels that allow it; give more stars, or predict them with the model as it is and "
            "heed their flags"
        )
    found = [change for change in check.changes if change.found]
    for change in found:
        if change.name in _NOT_ADAPTED:
            logger.warning("%s: %s; this is not taken in", survey.path, change)
    taken = [change for change in found if change.name not in _NOT_ADAPTED]
    if not taken:
        raise ConfigError(
            f"nothing that the stars of {survey.path} have in common differs from the training "
            f"stars of {model.path} beyond what it knows; predict them with it"
        )
    wild = [change for change in taken if change.grave and abs(change.value) > _LARGEST]
    if wild:
        raise ConfigError(
            f"{survey.path} has {wild[0].words}, more than theory can be adapted by; check how its "
            "spectra were normalised, or train a model on labels of its own"
        )


def _shifted(observables: Float64Array, model: Model, check: SurveyCheck) -> Float64Array:
    """Observables of the simulated stars with the zero points of the survey's bands."""
    offset = {
        change.name.removeprefix(ZERO_POINT): change.value
        for change in check.changes
        if change.found and change.name.startswith(ZERO_POINT)
    }
    names = model.preparation.observable_names[: observables.shape[1]]
    moved = np.zeros(len(names))
    for k, name in enumerate(names):
        first, _, second = name.removeprefix("M_").partition("-")
        moved[k] = offset.get(first, 0.0) - offset.get(second, 0.0)
    return observables + moved


def _assemble(
    folder: WorkFolder,
    source: SourceModel,
    found: _Adapted,
    jobs: list[MemberJob],
    settings: EnsembleConfig,
    survey: Readable,
    seed: int,
) -> Model:
    """Put the trained members in the place of the source model's, in the work folder."""
    results = [folder.result(job.member) for job in jobs]
    members = tuple(
        Member.numbered(job.member, seed=job.seed, best_epoch=r.best_epoch, n_epochs=r.n_epochs)
        for job, r in zip(jobs, results, strict=True)
    )
    old, recorded = source.model, settings.to_json()
    # No member holds out a fold: all know the stars that they are simulated from.
    training = {k: v for k, v in old.training.items() if k != HELD_OUT_FOLDS}
    training["settings"] = {name: recorded[name] for name in ("training", "split", "ensemble")}
    model = replace(
        old,
        members=members,
        seed=seed,
        simulated=old.simulated or survey.simulated,
        training=training,
        provenance=dict(old.provenance) | {"adapted": found.record(old, survey)},
        attachments={},
        path=None,
    )
    arrays, about = found.simulator.to_arrays()
    losses = {f"member_{job.member:03d}": folder.losses(job.member) for job in jobs}
    model = model.with_arrays("sky", arrays, metadata=about).with_arrays(LOSSES, losses)
    weights = [{name: t.numpy() for name, t in result.weights.items()} for result in results]
    return model.save(folder.path / "model", weights=weights, overwrite=True)


def _complete(model: Model, source: SourceModel, found: _Adapted, seed: int) -> Model:
    """Return the trained model with calibration, coverage, and what surveys are compared with."""
    network, before = EnsembleNetwork(model), open_labeller(source.model).with_theory
    assert before is not None, "the source model is calibrated"
    after = UncertaintyModel(network, found.simulator, before.calibration, before.coverage)
    pair = [simulated_residuals(one, _N_SIMULATED, seed=seed) for one in (before, after)]
    coverage = before.coverage and before.coverage.seen_as(
        lambda labels: found.simulator.theory(labels) - source.star_simulator.theory(labels)
    )
    after = replace(after, calibration=before.calibration.widened(*pair), coverage=coverage)
    whole = with_sample_of(after.attach(model), found.inputs)
    whole = with_measured(whole, measure(after, found.inputs))
    return with_self_check(whole, network=network)
