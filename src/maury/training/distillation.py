"""Distil an ensemble into one small network, for quick looks and very large surveys.

The student learns the calibrated predictions of its teacher (Hinton, Vinyals & Dean 2015,
arXiv:1503.02531): labels, errors and correlations, on simulated stars and, where a survey is given,
on its spectra. It is saved as a model of the preset ``student``, and used as any other model.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maury.errors import ConfigError
from maury.io.arrays import Float32Array
from maury.io.config_files import settings_of
from maury.io.files import discard, one_at_a_time, refuse_existing, work_folder
from maury.io.workers import one_thread
from maury.model.directory import Member, Model
from maury.model.networks.published import build, parse_settings
from maury.model.networks.student import StudentConfig, StudentNetwork
from maury.model.split import HELD_OUT_FOLDS
from maury.prediction.calibration import LEAST_STARS, Calibration
from maury.prediction.self_check import with_self_check
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey
from maury.training.distillation_data import (
    BATCH_STARS,
    DistillationBatch,
    DistillationSet,
    TeacherModel,
    join,
)
from maury.training.distillation_student import DistilConfig, StudentTraining
from maury.training.member import epoch_seed, run_to_the_end
from maury.training.runs import Completion
from maury.version import __version__

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the work done and all work: batches of the distillation set, then passes over it."""

CHECKPOINT_SECONDS = 20.0
"""Least time between two checkpoints: what a kill costs at most; chosen."""
_SLOPE_STARS = 600
"""Stars whose derivatives span the start of the projection: many times its directions; chosen."""


@one_at_a_time("out")
def distil(
    model: Model | Path | str,
    out: Path | str,
    *,
    survey: Survey | Path | str | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Model:
    """Train one small network on the calibrated predictions of a model, and write it as a model.

    Everything in the making lies in ``<out>.part``. A run that was killed goes on from there,
    and ends with the same bits as one that was not.

    Parameters
    ----------
    model : Model or path-like
        The teacher, of the preset ``maury``.
    out : path-like
        Model directory to write.
    survey : Survey or path-like, optional
        Real spectra to learn from besides simulated ones; the teacher's test and validation stars
        are left out. If it holds at least 30 validation stars with labels, the student's errors
        are calibrated on them, and it is covered and audited as a trained model. Otherwise its
        errors are as it learnt them, and the coverage is that of the teacher.
    seed : int
        Seed of everything random.
    config : mapping or path of a TOML file, optional
        Sections ``[network]`` (`StudentConfig`) and ``[training]`` (`DistilConfig`).
    progress : callable, optional
        Called with (done, all).
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    Model
        The student as written.

    Raises
    ------
    ConfigError
        If settings are wrong, all of them listed, or no student can be distilled from the model.
    GridMismatch
        If the survey is not on the grid that the model's preparation takes.
    TrainingError
        If the loss is no longer finite.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings, is in the way.
    """
    out = Path(out)
    refuse_existing(out, overwrite=overwrite)
    network, training = _settings(config)
    teacher = TeacherModel(model if isinstance(model, Model) else Model.open(model))
    if survey is not None and not isinstance(survey, Survey):
        survey = Survey.open(survey)
    network = network.model_copy(update={"photometry": teacher.photometry})
    key = _fingerprint(teacher.model, survey, network, training, seed)
    holds = "a student of another teacher, survey or settings"
    work = work_folder(out, key, holds=holds, overwrite=overwrite)
    total = training.n_batch + training.passes
    tell = progress or (lambda done, total: None)
    # Other sums with more threads would give other bits, and the caller's random state is left as
    # it was.
    with one_thread(), torch.random.fork_rng(devices=[]):
        student = _blank(teacher, network, seed)
        folder = DistillationSet(work)
        for number in range(training.n_batch):
            if not folder.has(number):
                # Drawn from its number alone, so that a batch that is made again after a kill is
                # the same.
                rng = np.random.default_rng([seed, number])
                folder.put(number, _batch(teacher, student, survey, training, rng))
            tell(number + 1, total)
        slopes = _slopes(teacher, training, seed)
        run = run_to_the_end(
            lambda: StudentTraining(
                _blank(teacher, network, seed), folder.load(training.n_batch), slopes, training
            ),
            checkpoint=work / "checkpoint.safetensors",
            checkpoint_seconds=CHECKPOINT_SECONDS,
            on_epoch=lambda epoch, *_: tell(training.n_batch + epoch, total),
        )
    weights = {name: tensor.numpy() for name, tensor in run.trained_weights().items()}
    assembled = _assemble(teacher, network, training, weights, survey=survey, seed=seed)
    saved = assembled.save(work / "model", weights=[weights], overwrite=True)
    completion = Completion()
    whole = _complete(saved, teacher.model, _labelled(saved, survey), completion)
    result = whole.save(out, overwrite=overwrite, finish=completion.describe)
    discard(work, out)
    return result


def _settings(
    config: Mapping[str, Any] | Path | str | None,
) -> tuple[StudentConfig, DistilConfig]:
    sections = settings_of(config)
    network_options = dict(sections.pop("network", {}))
    training_options = dict(sections.pop("training", {}))
    network_options.pop("preset", None)
    problems = [f"there is no section [{name}] (known: network, training)" for name in sections]
    network = parse_settings(StudentConfig, network_options, "network", problems)
    training = parse_settings(DistilConfig, training_options, "training", problems)
    if network is None or training is None or problems:
        raise ConfigError("the settings are wrong:\n  " + "\n  ".join(problems))
    return network, training


def _blank(teacher: TeacherModel, config: StudentConfig, seed: int) -> StudentNetwork:
    model = teacher.model
    # Before the layers are built, as building them draws the initial weights.
    torch.manual_seed(epoch_seed(seed, 0))
    n_observable = len(model.preparation.observable_names) if teacher.photometry else 0
    student = build(config, model.n_pixel, n_observable, len(model.labels))
    assert isinstance(student, StudentNetwork)
    # The scaling of the teacher: its derivatives, at which the projections start, are by pixels
    # scaled so.
    for name, values in teacher.flux_scale().items():
        student.get_buffer(name).copy_(values)
    return student


def _batch(
    teacher: TeacherModel,
    student: StudentNetwork,
    survey: Survey | None,
    config: DistilConfig,
    rng: np.random.Generator,
) -> DistillationBatch:
    n_star = min(BATCH_STARS, config.stars)
    simulated = teacher.batch(teacher.simulated(n_star, rng), student)
    n_row = round(config.survey_share * n_star)
    if survey is None or n_row == 0:
        return simulated
    return join(simulated, teacher.batch(teacher.observed(survey, n_row, rng), student))


def _slopes(teacher: TeacherModel, config: DistilConfig, seed: int) -> Tensor:
    # The number after that of the last batch, so that no star of the set is drawn again.
    rng = np.random.default_rng([seed, config.n_batch])
    return teacher.slopes(teacher.simulated(min(_SLOPE_STARS, config.stars), rng))


def _assemble(
    teacher: TeacherModel,
    network: StudentConfig,
    training: DistilConfig,
    weights: Mapping[str, Float32Array],
    *,
    survey: Survey | None,
    seed: int,
) -> Model:
    """Return the student as a model, not saved and not calibrated yet."""
    model = teacher.model
    settings = {**dict(model.training.get("settings", {})), "training": training.model_dump()}
    # By way of its teacher a student knows all training stars.
    history = {name: value for name, value in model.training.items() if name != HELD_OUT_FOLDS}
    origin = {
        "checksum": model.checksum,
        "name": model.path.name if model.path else "",
        "preset": model.network["name"],
        "members": len(model.kept),
        "survey": survey.path.name if survey is not None else None,
    }
    versions = {"maury": __version__, "torch": torch.__version__, "numpy": np.__version__}
    student = replace(
        model,
        network={"name": network.name, **network.model_dump(mode="json")},
        tensors={name: array.shape for name, array in weights.items()},
        members=(
            Member.numbered(0, seed=seed, best_epoch=training.passes, n_epochs=training.passes),
        ),
        seed=seed,
        training={**history, "settings": settings},
        provenance={**model.provenance, **versions, "distilled_from": origin},
        # None of the teacher's is taken over unseen: `_complete` decides what still holds of a
        # student.
        attachments=MappingProxyType({}),
        path=None,
    )
    return student.with_arrays(
        "sky", model.arrays("sky"), metadata=model.attachments["sky"].metadata
    )


def _labelled(student: Model, survey: Survey | None) -> LabelledSample | None:
    """Prepare the rows of a survey with labels, and those of stars that the teacher knows."""
    if survey is None or not survey.label_names:
        return None
    wanted = np.isfinite(survey.labels(student.labels)).any(axis=1)
    # Coverage and audit need the stars of the split whether the survey repeats their labels or not.
    wanted |= student.split.is_known(survey.star_id)
    return LabelledSample.read(survey, student.preparation, np.flatnonzero(wanted))


def _complete(
    student: Model, teacher: Model, sample: LabelledSample | None, completion: Completion
) -> Model:
    """Calibrate, cover and audit the student on the survey; else take what the teacher has."""
    if sample is not None:
        held = student.split.contains("validation", sample.survey.star_id)
        known = set(student.label_names) <= set(sample.survey.column_names)
        completion.open(student, sample)
        if known and held.sum() >= LEAST_STARS:
            whole = completion(student, sample)
            if "calibration" in whole.attachments:
                return whole
    if "calibration" not in teacher.attachments:
        return with_self_check(student)
    calibration = Calibration.from_arrays(teacher.arrays("calibration"))
    # The student has learnt calibrated errors, so that no factor is left.
    rest = replace(
        calibration,
        global_scale=np.zeros_like(calibration.global_scale),
        regime_coefficients=np.zeros_like(calibration.regime_coefficients),
    )
    student = student.with_arrays("calibration", rest.to_arrays())
    if "coverage" in teacher.attachments:
        student = student.with_arrays("coverage", teacher.arrays("coverage"))
    return with_self_check(student)


def _fingerprint(
    teacher: Model,
    survey: Survey | None,
    network: StudentConfig,
    training: DistilConfig,
    seed: int,
) -> str:
    """Identity of all that determines the weights."""
    real = None
    if survey is not None:
        real = survey.fingerprint
    settings = (network.model_dump(mode="json"), training.model_dump(mode="json"))
    # The version of torch is part of it: kernels that round otherwise give other weights, and a
    # resumed run promises the same bits.
    identity = [teacher.checksum, real, settings, seed, torch.__version__]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()
