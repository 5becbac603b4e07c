"""Many members: their seeds, their processes, the choice among them, and their joint prediction."""

import logging
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors
import torch

from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.io.cluster import Cluster
from maury.io.files import discard, one_at_a_time, refuse_existing, work_folder
from maury.model.directory import LOSSES, Member, Model
from maury.model.networks.base import NetworkConfig
from maury.model.split import (
    HELD_OUT_FOLDS,
    Split,
    held_out_fold,
)
from maury.prediction.uncertainty import Relearn
from maury.simulation.learnt_theory import Synthetic
from maury.spectra.absent import absent_sources
from maury.survey.labelled_sample import LabelledSample, listed_rows
from maury.survey.store import Survey
from maury.training.labelled_stars import (
    LabelledStars,
    collect_stars,
    fingerprint,
    fit_star_simulator,
    relearning,
    synthetic_of,
)
from maury.training.processes import MemberJob, Progress, Stage, WorkFolder, train_members
from maury.training.settings import ChoiceConfig as ChoiceConfig
from maury.training.settings import EnsembleConfig as EnsembleConfig
from maury.training.settings import resolve
from maury.training.source_model import SourceModel
from maury.version import __version__

logger = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 20.0
"""Least time between two checkpoints of a member."""
N_FOLD = 8
"""Folds of which each member holds out one: seven eighths train it; chosen, not measured."""
_LEAST_SHARED = 80
"""Training stars below which no fold is held out: ten stars a fold; chosen."""


class Completing(Protocol):
    """What makes a trained model whole."""

    def __call__(
        self, model: Model, sample: LabelledSample, *, relearn: Relearn | None = None
    ) -> Model:
        """Return the model with calibration, coverage and what else it needs."""


@one_at_a_time("model")
def train(
    survey: Survey | Path | str,
    model: Path | str,
    *,
    preset: str | None = None,
    members: int | None = None,
    seed: int = 0,
    config: EnsembleConfig | Mapping[str, Any] | Path | str | None = None,
    leave_out: Path | str | None = None,
    split: str | None = None,
    n_processes: int | None = None,
    cluster: Cluster | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
    complete: Completing | None = None,
    finish: Callable[[Model, str], object] | None = None,
    source: SourceModel | None = None,
    divide: Callable[[Split, Int64Array], Split] | None = None,
) -> Model:
    """Train an ensemble on the labelled spectra of a survey and write its model directory.

    Everything in the making lies in ``<model>.part``. A run that was killed goes on from there,
    and ends with the same bits as one that was not.

    Parameters
    ----------
    survey : Survey or path-like
        Spectra, at least some of them with labels.
    model : path-like
        Model directory to write.
    preset : str, optional
        Architecture, in place of that of `config`; ``maury`` by default.
    members : int, optional
        Number of networks, in place of that of `config`.
    seed : int
        Seed of the split and of every member.
    config : EnsembleConfig, mapping or path of a TOML file, optional
        All other settings.
    leave_out : path-like, optional
        Table of the spectra whose stars are not learnt from (`listed_rows`).
    split : {"star", "published"}, optional
        Rule of the split, in place of that of `config`.
    n_processes : int, optional
        Members trained at a time, one thread each; as many as there are processors by default.
    cluster : Cluster, optional
        Workers to train the members on (`maury.io.cluster.connect`), in place of processes here.
    progress : callable, optional
        Called with a `maury.training.processes.MemberEvent` after each epoch of each member.
    stage : callable
        Called with what begins, in words; the theory that was chosen, and why, among them.
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.
    complete : callable
        Given the trained model before it gets its name, the prepared labelled rows, and, by the
        name `relearn`, what makes its theory anew (`maury.prediction.uncertainty.Relearn`); what it
        returns is written.
    finish : callable, optional
        See `Model.save`.
    source : SourceModel, optional
        A model to start from (`maury.training.transfer`); for settings of the preset ``maury``
        only.
    divide : callable, optional
        Takes the split and the numbers of the labelled rows, and returns the split that holds
        (`maury.training.joint.division`).

    Returns
    -------
    Model
        The model as written.

    Raises
    ------
    ConfigError
        If settings are wrong; all of them are listed. If the preset ``maury`` cannot simulate such
        a survey, or its resolving power is stated neither by it nor by the settings.
    TrainingError
        If too few stars have labels and inputs, or a member fails.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings or data, is in the way.
    """
    path = Path(model)
    refuse_existing(path, overwrite=overwrite)
    settings = resolve(config, preset=preset, members=members, split=split)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    theory = None
    if settings.network.simulates and source is None:
        theory = settings.theory_of(survey)
    # A target model goes on with the theory of its source, the emulator.
    settings = settings.seen_in(survey, theory=theory.name if theory else "emulator")
    if theory is not None:
        stage(f"theory of the simulated stars: {theory.name}, as {theory.reason}")
    if lacking := absent_sources(settings.preparation, survey.column_names, survey.column):
        stage(f"no star of the survey has {', '.join(lacking)}: the networks learn without")
    stage("reading and preparing the labelled stars")
    left_out = listed_rows(survey, leave_out)
    stars = collect_stars(survey, settings, seed, source, left_out, divide=divide)
    synthetic = synthetic_of(stars, settings, seed) if settings.network.simulates else None
    key = fingerprint(settings, seed, stars, source, synthetic)
    holds = "a training of other settings or data"
    folder = WorkFolder(work_folder(path, key, holds=holds, overwrite=overwrite))
    if not settings.network.simulates:
        for part in ("train", "validation"):
            folder.put_sample(part, *stars.scaled(part))
    else:
        stage("fitting the theory to the labelled stars")
        _put_star_simulators(folder, stars, settings, seed, source, synthetic)
    jobs = member_jobs(folder, settings, seed)
    n_processes = min(n_processes or os.cpu_count() or 1, len(jobs))
    train_members(
        jobs,
        n_processes=n_processes,
        progress=progress or (lambda event: None),
        stage=stage,
        cluster=cluster,
    )
    about: dict[str, Any] = {}
    if theory and source is None:
        # A learnt theory needs no resolving power: what the settings state may not be the survey's.
        about["theory"] = {**asdict(theory), "resolving_power": survey.resolving_power}
    trained = assemble_model(folder, settings, stars, jobs, survey, seed, source, about)
    relearn = None
    if settings.network.simulates and source is None:
        relearn = relearning(stars, settings, source, synthetic)
    completed = complete(trained, stars.sample, relearn=relearn) if complete else trained
    result = completed.save(path, overwrite=overwrite, finish=finish)
    discard(folder.path, path)
    return result


def member_jobs(folder: WorkFolder, settings: EnsembleConfig, seed: int) -> list[MemberJob]:
    """Return what trains each member of an ensemble from what lies in a work folder."""
    seeds = [
        # Spawned, not counted: seeds of neighbouring numbers would share members between runs. The
        # shift keeps them within a signed integer.
        int(stream.generate_state(1, np.uint64)[0] >> 1)
        for stream in np.random.SeedSequence(seed).spawn(settings.ensemble.members)
    ]
    return [
        MemberJob(
            folder=folder.path,
            member=number,
            seed=member_seed,
            preset=settings.network.name,
            network=settings.network.model_dump(mode="json"),
            training=settings.training,
            checkpoint_seconds=CHECKPOINT_SECONDS,
        )
        for number, member_seed in enumerate(seeds)
    ]


def _put_star_simulators(
    folder: WorkFolder,
    stars: LabelledStars,
    settings: EnsembleConfig,
    seed: int,
    source: SourceModel | None,
    synthetic: Synthetic | None,
) -> None:
    """Write what simulates the stars: of all training stars, and of those that a member knows."""
    rows = stars.parts["train"]
    n_members, n_fold = settings.ensemble.members, _n_fold(stars, source)
    if not folder.has_star_simulator():
        star_simulator = fit_star_simulator(stars, rows, settings, source, synthetic)
        if source is not None:
            # Starts are written before the simulator, whose presence says that both are there.
            for number, start in enumerate(source.starts(star_simulator, n_members, seed)):
                folder.put_start(number, start)
        folder.put_star_simulator(star_simulator, stars.scaling)
    if not n_fold:
        return
    fold = held_out_fold(stars.star_id[rows], n_fold=n_fold, seed=seed)
    for member in range(n_members):
        if not folder.has_star_simulator(member):
            # The theory of a member is calibrated without its fold as well, else it would know the
            # spectra that it holds out.
            known = rows[fold != member % n_fold]
            own = fit_star_simulator(stars, known, settings, source, synthetic)
            folder.put_star_simulator(own, stars.scaling, member)


def _n_fold(stars: LabelledStars, source: SourceModel | None) -> int:
    """Folds of the training stars of which each member holds out one; 0 if it trains on all.

    A target model has too few stars to hold out any; those without a name cannot be told
    from each other.
    """
    rows = stars.parts["train"]
    enough = rows.size >= _LEAST_SHARED and bool((stars.star_id[rows] != "").all())
    return N_FOLD if enough and source is None else 0


def choose(losses: Float64Array, choice: ChoiceConfig) -> BoolArray:
    """Which members are kept.

    Guiglion et al. (2020): those whose loss is at or below the 80th percentile. At least
    `choice.keep_at_least` of the best are kept, as far as there are so many.

    Parameters
    ----------
    losses : (n_member,) float64
        Validation loss of each member; where one is NaN, there is nothing to choose by and all
        are kept.
    choice : ChoiceConfig
        Percentile and least number.
    """
    if np.isnan(losses).any():
        return np.ones(losses.size, dtype=np.bool_)
    kept = losses <= np.percentile(losses, choice.percentile)
    # A percentile of two or three losses may keep a single one, whose spread would be 0.
    kept[np.argsort(losses, kind="stable")[: choice.keep_at_least]] = True
    return np.asarray(kept, dtype=np.bool_)


def assemble_model(
    folder: WorkFolder,
    settings: EnsembleConfig,
    stars: LabelledStars,
    jobs: list[MemberJob],
    survey: Survey,
    seed: int,
    source: SourceModel | None,
    about: Mapping[str, Any],
) -> Model:
    """Put the trained members together, as a model in the work folder."""
    results = [folder.result(job.member) for job in jobs]
    losses = [math.nan if r.validation_loss is None else r.validation_loss for r in results]
    kept = choose(np.array(losses), settings.ensemble)
    members = tuple(
        Member.numbered(
            job.member,
            seed=job.seed,
            validation_loss=result.validation_loss,
            best_epoch=result.best_epoch,
            n_epochs=result.n_epochs,
            kept=bool(keep),
        )
        for job, result, keep in zip(jobs, results, kept, strict=True)
    )
    weights = [{name: t.numpy() for name, t in result.weights.items()} for result in results]
    recorded = settings.to_json()
    # Recorded, as the calibration must know later which stars each member has not seen.
    folds = _n_fold(stars, source) if settings.network.simulates else 0
    origin = {"transferred_from": source.record()} if source else {}
    model = Model(
        labels=stars.labels,
        network={"name": settings.network.name, **settings.network.model_dump(mode="json")},
        preparation=settings.preparation,
        scaling=stars.scaling,
        wave_aa=stars.sample.inputs.wave_aa,
        medium=stars.sample.inputs.medium,
        tensors={name: array.shape for name, array in weights[0].items()},
        members=members,
        split=stars.split,
        simulated=survey.simulated or bool(source and source.model.simulated),
        seed=seed,
        training={
            "settings": {name: recorded[name] for name in ("training", "split", "ensemble")},
            "dropped": dict(stars.dropped),
            **about,
        }
        | ({HELD_OUT_FOLDS: folds} if folds else {}),
        provenance=_provenance(settings.network, survey) | origin,
    )
    if settings.network.simulates:
        # That of all training stars, whatever each member held out: it serves the model from now
        # on.
        arrays, about = folder.star_simulator()[0].to_arrays()
        model = model.with_arrays("sky", arrays, metadata=about)
    recorded_losses = {f"member_{job.member:03d}": folder.losses(job.member) for job in jobs}
    model = model.with_arrays(LOSSES, recorded_losses)
    return model.save(folder.path / "model", weights=weights, overwrite=True)


def _provenance(network: NetworkConfig, survey: Survey) -> dict[str, Any]:
    return {
        "maury": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "safetensors": safetensors.__version__,
        "licence": network.licence,
        "citation": network.paper,
        "bibtex_key": network.bibtex_key,
        "survey": {"name": survey.path.name, **dict(survey.provenance)},
    }
