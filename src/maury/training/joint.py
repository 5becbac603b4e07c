"""Train one model for several surveys, and add a survey to one.

Each survey has its theory, calibrated or learnt as for a model of its own, and its stage of the
network; body and output are shared (`maury.model.networks.joint`). Stars are simulated as one
survey sees them, and as several see them at once. A survey that is added later learns a stage of
its own, while all that was there stays as it is: no old spectrum is needed, and no old answer
changes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError, TrainingError
from maury.io.arrays import AnyArray, Int64Array
from maury.io.config_files import read_toml
from maury.io.files import discard, one_at_a_time, refuse_existing, work_folder, writing
from maury.labels.definitions import Label
from maury.model.directory import Affine, Model, Scaling
from maury.model.joint_model import SURVEY_NAME, JointModel, shared_name
from maury.model.networks.default import DefaultConfig
from maury.model.networks.joint import JointNetwork, once, output_rows
from maury.model.split import (
    PARTS,
    Split,
    held_out_fold,
    split_by_code,
    split_rows,
    with_known_parts,
)
from maury.prediction.joint_predictor import (
    calibrate_sets,
    label_scaling,
    rebuilt_networks,
    scaling_arrays,
)
from maury.simulation.joint_stars import JointStars
from maury.simulation.training_stars import TrainingStarSimulator
from maury.survey.common_stars import CommonStars
from maury.survey.store import Survey
from maury.training.ensemble import N_FOLD, assemble_model, member_jobs
from maury.training.joint_run import JointSettings, sets_of
from maury.training.labelled_stars import (
    LabelledStars,
    collect_stars,
    fingerprint,
    fit_star_simulator,
    relearning,
    scaling_of,
    simulated_settings,
    synthetic_of,
)
from maury.training.processes import MemberJob, Progress, Stage, WorkFolder, train_members
from maury.training.runs import Completion
from maury.training.settings import EnsembleConfig, resolve
from maury.training.simulated import LEARNT_STEPS, SimulatedTraining
from maury.training.source_model import source_training

__all__ = ["add_survey", "train_joint"]

logger = logging.getLogger(__name__)

STEPS_PER_SET = LEARNT_STEPS
"""Steps with each set of surveys, by default: as many as a model of one survey has whose theory is
learnt."""
_SURVEY_SECTION = "survey"


@dataclass(frozen=True, eq=False)
class _Member:
    """One survey on its way into a joint model."""

    name: str
    survey: Survey
    settings: EnsembleConfig
    stars: LabelledStars
    star: Int64Array
    theory: Mapping[str, Any]

    def training_star(self) -> Int64Array:
        """Return the number of the star of each training row."""
        rows = self.stars.parts["train"]
        return self.star[self.stars.sample.rows[self.stars.rows[rows]]]


@one_at_a_time("out")
def train_joint(
    surveys: Mapping[str, Survey | Path | str],
    out: Path | str,
    *,
    members: int | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    n_processes: int | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
) -> JointModel:
    """Train one model for several surveys on their labelled stars.

    Everything in the making lies in ``<out>.part``: a run that was killed goes on from there when
    it is started again, and ends with the same bits. Stars that two surveys have in common are
    known by position, photometry or identifier
    (`maury.spectra.star_identity.shared_stars`); they are on one side of the split in all surveys.

    Parameters
    ----------
    surveys : mapping of str to Survey or path-like
        Two or more surveys by name (lower case letters, digits, underscores), at least some of
        their spectra with labels. Labels are put on the scale of the first.
    out : path-like
        Directory of the joint model to write.
    members : int, optional
        Networks, in place of that of `config`.
    seed : int
        Seed of the split and of every network.
    config : mapping or path of a TOML file, optional
        Sections as of `maury.training.runs.train`, for all surveys; those of
        ``[survey.<name>.training]`` and so on for one survey. Steps are
        `STEPS_PER_SET` for each set of surveys by default.
    n_processes : int, optional
        Networks trained at a time, one thread each; as many as there are processors by default.
    progress : callable, optional
        Called with a `maury.training.processes.MemberEvent` after each epoch of each network.
    stage : callable
        Told what is done next.
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.

    Returns
    -------
    JointModel
        The model as written; each survey's own part is a `Model` that predicts by itself.

    Raises
    ------
    ConfigError
        If settings or names are wrong, or surveys do not go together.
    TrainingError
        If too few stars have labels and inputs, or a network fails.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings or data, is in the way.

    Examples
    --------
    >>> model = train_joint(
    ...     {"rave": "rave.zarr", "galah": "galah.zarr"}, "both.model"
    ... )  # doctest: +SKIP
    """
    path = Path(out)
    refuse_existing(path, overwrite=overwrite)
    if len(surveys) < 2:
        raise ConfigError(
            f"a joint model needs two surveys or more, got {len(surveys)}; train a model of one "
            "with 'maury train'"
        )
    opened = _opened(surveys)
    stage("looking for stars that the surveys have in common")
    common = CommonStars.of(opened)
    parts = division(common, _settings(config, opened)[next(iter(opened))], seed)
    found = [
        _prepared(name, common, settings, seed, parts[name], stage)
        for name, settings in _settings(config, opened, members).items()
    ]
    _check_observables(found)
    settings = JointSettings(
        labels=tuple(label.name for label in _labels(found)),
        training={one.name: _training(one, config, len(sets_of(list(opened)))) for one in found},
        sets=tuple(sets_of(list(opened))),
    )
    scaling = _common_scaling(found, settings.labels)
    folder = _work(path, found, settings, seed, overwrite)
    stage("fitting the theory of each survey to its labelled stars")
    _put_simulators(folder, found, settings, scaling, seed)
    jobs = _jobs(folder, found[0].settings, seed, settings)
    train_members(
        jobs,
        n_processes=min(n_processes or os.cpu_count() or 1, len(jobs)),
        progress=progress or (lambda event: None),
        stage=stage,
    )
    about = {
        "offsets": {name: one.to_dict() for name, one in common.offsets.items()},
        "lent_labels": dict(common.lent),
        "shared_stars": _shared_counts(common),
        "added": [],
    }
    networks = [_rebuilt(folder, found, settings, job.member) for job in jobs]
    models = _completed(folder, found, settings, scaling, jobs, networks, seed, stage)
    arrays: dict[str, AnyArray] = scaling_arrays(scaling.labels)
    for number, network in enumerate(networks):
        shared = network.shared_weights().items()
        arrays |= {shared_name(number, key): value.numpy() for key, value in shared}
    joint_model = JointModel(models, _labels(found), arrays, about)
    stage("calibrating errors of stars that several surveys saw")
    arrays |= calibrate_sets(joint_model, common)
    _write(joint_model, path, overwrite)
    discard(folder.path, path)
    return JointModel.open(path)


@one_at_a_time("out")
def add_survey(
    joint: JointModel | Path | str,
    name: str,
    survey: Survey | Path | str,
    out: Path | str,
    *,
    others: Mapping[str, Survey | Path | str] | None = None,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    n_processes: int | None = None,
    progress: Progress | None = None,
    stage: Stage = logger.info,
    overwrite: bool = False,
) -> JointModel:
    """Add a survey to a joint model, whose answers to its own surveys stay as they are.

    The new survey learns a stage of its own; body, output and all other stages are kept. Its stars
    are simulated as it sees them, and as the surveys that are there would see them too, by the
    theories that the model holds: no spectrum of theirs is needed.

    Parameters
    ----------
    joint : JointModel or path-like
        The model; it is not changed.
    name : str
        Of the new survey.
    survey : Survey or path-like
        The new survey, some of its spectra with labels, on the scale of those of the model. Labels
        that the model does not have are left out.
    out : path-like
        Directory of the joint model to write.
    others : mapping of str to Survey or path-like, optional
        Surveys of the model, by which errors of stars that they and the new one saw are calibrated;
        without them such stars are answered from one of their surveys.
    seed : int
        Of the split of stars that the model does not know, and of the networks.
    config, n_processes, progress, stage, overwrite
        Settings of the new survey, networks trained at a time, progress, what is told of each
        step, and whether `out` may be replaced, all of which `train_joint` explains. Steps are
        `STEPS_PER_SET` for each set of surveys that has the new one.

    Returns
    -------
    JointModel
        The model as written.

    Raises
    ------
    ConfigError
        If settings or the name are wrong, or the survey has none of the model's labels.
    TrainingError
        If too few stars have labels and inputs, or a network fails.
    OutputExists, ResumeMismatch
        If a model, or a partial one of other settings or data, is in the way.
    """
    path = Path(out)
    refuse_existing(path, overwrite=overwrite)
    source = joint if isinstance(joint, JointModel) else JointModel.open(joint)
    if name in source.names:
        raise ConfigError(f"{source.path} has a survey {name!r} already; choose another name")
    opened = _opened({name: survey, **(others or {})})
    if unknown := sorted(set(others or {}) - set(source.names)):
        raise ConfigError(
            f"{source.path} has no survey {unknown[0]!r} (known: {', '.join(source.names)})"
        )
    # The new survey's labels are moved by those of the surveys that are given, if any.
    common = CommonStars.of({n: opened[n] for n in (*source.names, name) if n in opened})
    found = _new_member(source, name, common, config, seed, stage)
    olds = {n: TrainingStarSimulator.of_model(model) for n, model in source.models.items()}
    sets = tuple(one for one in sets_of([*source.names, name]) if name in one)
    steps = _training(found, config, len(sets)).steps
    settings = JointSettings(
        labels=source.label_names,
        training={
            **{n: _recorded(model, steps) for n, model in source.models.items()},
            name: _training(found, config, len(sets)),
        },
        sets=sets,
    )
    scaling = Scaling(source.models[source.names[0]].scaling.observables, label_scaling(source))
    folder = _work(path, [found], settings, seed, overwrite)
    before = rebuilt_networks(source)
    stage("fitting the theory of the new survey to its labelled stars")
    _put_added(folder, found, olds, before, settings, scaling, seed)
    jobs = _jobs(folder, found.settings, seed, settings)
    train_members(
        jobs,
        n_processes=min(n_processes or os.cpu_count() or 1, len(jobs)),
        progress=progress or (lambda event: None),
        stage=stage,
    )
    n_pixel = {n: model.n_pixel for n, model in source.models.items()}
    networks = [_rebuilt(folder, [found], settings, job.member, n_pixel=n_pixel) for job in jobs]
    models = _completed(folder, [found], settings, scaling, jobs, networks, seed, stage)
    about = {**source.about, "added": [*source.about.get("added", []), name]}
    joint_model = JointModel({**source.models, **models}, source.labels, dict(source.arrays), about)
    if others:
        known = calibrate_sets(joint_model, common)
        joint_model = replace(joint_model, arrays={**known, **source.arrays})
    _write(joint_model, path, overwrite)
    discard(folder.path, path)
    return JointModel.open(path)


def _new_member(
    source: JointModel,
    name: str,
    common: CommonStars,
    config: Mapping[str, Any] | Path | str | None,
    seed: int,
    stage: Stage,
) -> _Member:
    """Prepare a survey that is to be added, with the labels and the members of the model."""
    survey = common.surveys[name]
    labels = [label for label in source.label_names if label in survey.label_names]
    if not labels:
        raise ConfigError(
            f"{survey.path} has none of the labels of {source.path} "
            f"({', '.join(source.label_names)}); ingest it with labels of common stars"
        )
    if left := [label for label in survey.label_names if label not in labels]:
        logger.warning(
            "%s of %s are no labels of the model, and are left out; train a joint model of all "
            "surveys to have them",
            ", ".join(left),
            name,
        )
    first = source.models[source.names[0]]
    given = _sections(config)
    given["network"] = {"preset": first.network["name"]} | {
        key: value for key, value in first.network.items() if key != "name"
    }
    given["ensemble"] = {**given.get("ensemble", {}), "labels": labels}
    settings = resolve(given, preset=None, members=source.n_member, split=None)
    if settings.preparation.observable_names != first.preparation.observable_names:
        raise ConfigError(
            "the observables must be those of the model, "
            f"{', '.join(first.preparation.observable_names) or 'none'}; give the [preparation] "
            "that it was trained with"
        )

    def divide(split: Split, rows: Int64Array) -> Split:
        records = [model.split for model in source.models.values()]
        return with_known_parts(split, records, survey.stars.take(rows))

    return _prepared(name, common, settings, seed, divide, stage)


def _recorded(model: Model, steps: int) -> SimulatedTraining:
    """Return the settings by which a survey's stars are simulated, for so many steps."""
    return SimulatedTraining.model_validate({**source_training(model), "steps": steps})


def _put_added(
    folder: WorkFolder,
    found: _Member,
    olds: Mapping[str, TrainingStarSimulator],
    before: list[JointNetwork],
    settings: JointSettings,
    scaling: Scaling,
    seed: int,
) -> None:
    """Write what simulates the stars of a new survey, and the weights that stay as they are."""
    own_folder, rows = WorkFolder(folder.path / found.name), found.stars.parts["train"]
    synthetic = synthetic_of(found.stars, found.settings, seed)
    own_scaling = _subset(scaling, settings, found)
    if not own_folder.has_star_simulator():
        simulator = fit_star_simulator(found.stars, rows, found.settings, None, synthetic)
        own_folder.put_star_simulator(simulator, own_scaling)
    for n, old in olds.items():
        sub = WorkFolder(folder.path / n)
        sub.path.mkdir(exist_ok=True)
        if not sub.has_star_simulator():
            sub.put_star_simulator(old, scaling)
    for member, network in enumerate(before):
        if folder.has_joint_stars(member):
            continue
        known = _known_rows([found], member, seed)[found.name]
        if not own_folder.has_star_simulator(member):
            simulator = fit_star_simulator(found.stars, known, found.settings, None, synthetic)
            own_folder.put_star_simulator(simulator, own_scaling, member)
        simulators = {**olds, found.name: own_folder.star_simulator(member)[0]}
        star = {found.name: found.star[found.stars.sample.rows[found.stars.rows[known]]]}
        # Rows of the others are stars by themselves, which lend what the new survey does not tell.
        star |= {n: -1 - np.arange(len(old.labels)) for n, old in olds.items()}
        stars = JointStars.of(simulators, star, settings.labels, base=(found.name,))
        frozen = once(network.state_dict(), network.names[0])
        folder.put_start(member, {key: value.numpy() for key, value in frozen.items()})
        folder.put_joint_stars(stars, scaling, member)


def _opened(surveys: Mapping[str, Survey | Path | str]) -> dict[str, Survey]:
    wrong = [name for name in surveys if not re.fullmatch(SURVEY_NAME, name)]
    if wrong:
        raise ConfigError(
            f"{wrong[0]!r} cannot name a survey; take lower case letters, digits and underscores, "
            "a letter first"
        )
    return {
        name: one if isinstance(one, Survey) else Survey.open(one) for name, one in surveys.items()
    }


def _sections(config: Mapping[str, Any] | Path | str | None) -> dict[str, Any]:
    if isinstance(config, Path | str):
        return dict(read_toml(config, what="settings"))
    return dict(config or {})


def _settings(
    config: Mapping[str, Any] | Path | str | None,
    surveys: Mapping[str, Survey],
    members: int | None = None,
) -> dict[str, EnsembleConfig]:
    """Return the settings of each survey: those for all, and its own over them."""
    given = _sections(config)
    own = given.pop(_SURVEY_SECTION, {})
    if not isinstance(own, Mapping) or (unknown := sorted(set(own) - set(surveys))):
        what = f"[survey.{unknown[0]}]" if isinstance(own, Mapping) else "[survey]"
        raise ConfigError(f"{what} is the section of no survey (known: {', '.join(surveys)})")
    out = {}
    for name in surveys:
        merged = {key: dict(section) for key, section in given.items()}
        for key, section in own.get(name, {}).items():
            if not isinstance(section, Mapping):
                raise ConfigError(f"[survey.{name}.{key}] must be a section, got {section!r}")
            merged[key] = {**merged.get(key, {}), **section}
        out[name] = resolve(merged, preset="maury", members=members, split=None)
    return out


def _training(
    one: _Member, config: Mapping[str, Any] | Path | str | None, n_set: int
) -> SimulatedTraining:
    """Return the training of a survey, with as many steps as there are sets to meet."""
    training = simulated_settings(one.settings)
    given = _sections(config).get("training", {})
    if "steps" in given:
        return training.model_copy(update={"steps": int(given["steps"])})
    return training.model_copy(update={"steps": STEPS_PER_SET * n_set})


def division(
    common: CommonStars, settings: EnsembleConfig, seed: int
) -> dict[str, Callable[[Split, Int64Array], Split]]:
    """Divide the labelled stars of all surveys together; a star has one part in all of them.

    Parameters
    ----------
    common : CommonStars
    settings : EnsembleConfig
        Of which the split is taken.
    seed : int

    Returns
    -------
    dict of str to callable
        For each survey what `maury.training.labelled_stars.collect_stars` takes as `divide`.

    Raises
    ------
    ConfigError
        If rows are to be divided, not stars.
    TrainingError
        If no star has labels.
    """
    if settings.split.rule != "star":
        raise ConfigError("a joint model divides whole stars; leave out rule in [split]")
    labelled = {
        name: np.isfinite(survey.labels()).any(axis=1) for name, survey in common.surveys.items()
    }
    if not any(rows.any() for rows in labelled.values()):
        raise TrainingError(
            f"none of the surveys {', '.join(common.surveys)} has labels to learn; ingest one of "
            "them with labels"
        )
    known = np.unique(np.concatenate([common.star[n][labelled[n]] for n in common.surveys]))
    whole = split_rows([f"{k:012d}" for k in known], config=settings.split, seed=seed)
    part = np.full(int(known.max(initial=0)) + 1, -1)
    for code, name in enumerate(PARTS):
        part[known[whole.part(name)]] = code

    def of(name: str) -> Callable[[Split, Int64Array], Split]:
        def divide(split: Split, rows: Int64Array) -> Split:
            code = part[common.star[name][rows]]
            return split_by_code(split, code)

        return divide

    return {name: of(name) for name in common.surveys}


def _prepared(
    name: str,
    common: CommonStars,
    settings: EnsembleConfig,
    seed: int,
    divide: Callable[[Split, Int64Array], Split],
    stage: Stage,
) -> _Member:
    survey = common.surveys[name]
    theory = settings.theory_of(survey)
    stage(f"{name}: theory of the simulated stars: {theory.name}, as {theory.reason}")
    stage(f"{name}: reading and preparing the labelled stars")
    settings = settings.seen_in(survey, theory=theory.name)
    nothing = np.zeros(len(survey), dtype=np.bool_)
    try:
        stars = collect_stars(survey, settings, seed, None, nothing, divide=divide)
    except (ConfigError, TrainingError) as error:
        raise type(error)(f"{name}: {error}") from error
    about = {**asdict(theory), "resolving_power": survey.resolving_power}
    return _Member(name, survey, settings, stars, common.star[name], about)


def _check_observables(found: list[_Member]) -> None:
    first = found[0].settings.preparation.observable_names
    for one in found[1:]:
        if (names := one.settings.preparation.observable_names) != first:
            raise ConfigError(
                f"{one.name} has the observables {', '.join(names) or 'none'}, and {found[0].name} "
                f"{', '.join(first) or 'none'}; a joint model takes the same of all, and lets "
                "those be missing that a survey lacks: put [preparation] where all surveys "
                "take it from"
            )


def _labels(found: list[_Member]) -> tuple[Label, ...]:
    known: dict[str, Label] = {}
    for one in found:
        for label in one.stars.labels:
            known.setdefault(label.name, label)
    return tuple(known.values())


def _common_scaling(found: list[_Member], labels: tuple[str, ...]) -> Scaling:
    """Scaling of the training stars of all surveys together."""
    truth, observables = [], []
    for one in found:
        rows = one.stars.parts["train"]
        seen = one.stars.inputs(rows).observables.astype(np.float64)
        seen[:, one.settings.preparation.observable_map.is_error] = np.nan
        own = np.full((rows.size, len(labels)), np.nan)
        own[:, [labels.index(label.name) for label in one.stars.labels]] = one.stars.truth[rows]
        truth.append(own)
        observables.append(seen)
    rule = found[0].settings.network.scaling
    return scaling_of(np.concatenate(observables), np.concatenate(truth), rule)


def _work(
    path: Path, found: list[_Member], settings: JointSettings, seed: int, overwrite: bool
) -> WorkFolder:
    digest = hashlib.sha256(settings.model_dump_json().encode())
    for one in found:
        synthetic = synthetic_of(one.stars, one.settings, seed)
        digest.update(fingerprint(one.settings, seed, one.stars, None, synthetic).encode())
        digest.update(one.training_star().tobytes())
    holds = "a training of other settings or data"
    folder = WorkFolder(work_folder(path, digest.hexdigest(), holds=holds, overwrite=overwrite))
    for one in found:
        (folder.path / one.name).mkdir(exist_ok=True)
    return folder


def _known_rows(found: list[_Member], member: int, seed: int) -> dict[str, Int64Array]:
    """Training rows of each survey that a network may know.

    It holds out a fold of each survey, as a network of one survey does; a star that two surveys
    name differently is held out where either says so, so that no network knows the star.
    """
    held = []
    for one in found:
        names = one.stars.star_id[one.stars.parts["train"]]
        fold = held_out_fold(names, n_fold=N_FOLD, seed=seed)
        held.append(one.training_star()[fold == member % N_FOLD])
    gone = np.unique(np.concatenate(held))
    return {
        one.name: one.stars.parts["train"][~np.isin(one.training_star(), gone)] for one in found
    }


def _put_simulators(
    folder: WorkFolder,
    found: list[_Member],
    settings: JointSettings,
    scaling: Scaling,
    seed: int,
) -> None:
    """Write what simulates the stars of each survey, of all of them and of each network."""
    synthetic = {one.name: synthetic_of(one.stars, one.settings, seed) for one in found}
    for one in found:
        own, rows = WorkFolder(folder.path / one.name), one.stars.parts["train"]
        if not own.has_star_simulator():
            simulator = fit_star_simulator(one.stars, rows, one.settings, None, synthetic[one.name])
            own.put_star_simulator(simulator, _subset(scaling, settings, one))
    for member in range(found[0].settings.ensemble.members):
        if folder.has_joint_stars(member):
            continue
        known = _known_rows(found, member, seed)
        simulators: dict[str, TrainingStarSimulator] = {}
        star: dict[str, Int64Array] = {}
        for one in found:
            own, rows = WorkFolder(folder.path / one.name), known[one.name]
            if not own.has_star_simulator(member):
                simulator = fit_star_simulator(
                    one.stars, rows, one.settings, None, synthetic[one.name]
                )
                own.put_star_simulator(simulator, _subset(scaling, settings, one), member)
            simulators[one.name] = own.star_simulator(member)[0]
            star[one.name] = one.star[one.stars.sample.rows[one.stars.rows[rows]]]
        stars = JointStars.of(simulators, star, settings.labels)
        folder.put_joint_stars(stars, scaling, member)


def _subset(scaling: Scaling, settings: JointSettings, one: _Member) -> Scaling:
    """Scaling of one survey's own labels."""
    place = [settings.labels.index(label.name) for label in one.stars.labels]
    labels = Affine(**{name: values[place] for name, values in vars(scaling.labels).items()})
    return Scaling(scaling.observables, labels)


def _jobs(
    folder: WorkFolder, settings: EnsembleConfig, seed: int, joint: JointSettings
) -> list[MemberJob]:
    training = next(iter(joint.training.values()))
    return [
        job.model_copy(update={"joint": joint, "training": training})
        for job in member_jobs(folder, settings, seed)
    ]


def _shared_counts(common: CommonStars) -> dict[str, int]:
    """Stars that each pair of surveys has in common."""
    pairs = combinations(common.surveys, 2)
    return {f"{a} {b}": int(common.shared(a, b).size) for a, b in pairs}


def _completed(
    folder: WorkFolder,
    found: list[_Member],
    settings: JointSettings,
    scaling: Scaling,
    jobs: list[MemberJob],
    networks: list[JointNetwork],
    seed: int,
    stage: Stage,
) -> dict[str, Model]:
    """Make a model of each survey's stage: calibrated, covered and audited like any other."""
    models = {}
    for one in found:
        sub = WorkFolder(folder.path / one.name)
        done = sub.path / "done"
        if not (done / "model.json").is_file():
            own = [label.name for label in one.stars.labels]
            for job, network in zip(jobs, networks, strict=True):
                rows = output_rows(settings.labels, own, network.first.rank)
                result = replace(folder.result(job.member), weights=network.alone(one.name, rows))
                sub.put_result(job.member, result)
            stars = replace(one.stars, scaling=_subset(scaling, settings, one))
            trained = assemble_model(
                sub, one.settings, stars, jobs, one.survey, seed, None, {"theory": one.theory}
            )
            stage(f"{one.name}: its own model")
            completion = Completion(stage=stage)
            synthetic = synthetic_of(stars, one.settings, seed)
            relearn = relearning(stars, one.settings, None, synthetic)
            whole = completion(trained, stars.sample, relearn=relearn)
            whole.save(done, overwrite=True, finish=completion.describe)
        models[one.name] = Model.open(done)
    return models


def _write(model: JointModel, path: Path, overwrite: bool) -> None:
    """Write a joint model whose models lie elsewhere, which are copied as they are."""
    with writing(path, overwrite=overwrite) as partial:
        partial.mkdir(parents=True)
        for name, one in model.models.items():
            assert one.path is not None, "a model of a survey is saved"
            shutil.copytree(one.path, partial / name)
        model.write(partial)


def _rebuilt(
    folder: WorkFolder,
    found: list[_Member],
    settings: JointSettings,
    member: int,
    *,
    n_pixel: Mapping[str, int] | None = None,
) -> JointNetwork:
    """Build the network of a member as it was trained, with the surveys of `n_pixel` before."""
    network = found[0].settings.network
    assert isinstance(network, DefaultConfig), "the preset maury"
    sizes = {one.name: one.stars.sample.inputs.wave_aa.size for one in found}
    simulator, _ = WorkFolder(folder.path / found[0].name).star_simulator()
    n_observable = simulator.observables.shape[1]
    joint = JointNetwork(network, {**(n_pixel or {}), **sizes}, n_observable, len(settings.labels))
    return joint.take_all(folder.result(member).weights).eval()
