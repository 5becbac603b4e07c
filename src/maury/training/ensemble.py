"""Many members: their seeds, their processes, the choice among them, and their joint prediction."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch

from maury.errors import TrainingError
from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array, StrArray
from maury.io.cluster import Cluster
from maury.io.files import discard, one_at_a_time, refuse_existing, work_folder
from maury.labels import definitions as labels_module
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.methods.fitting.synthetic_library import read_synthetic
from maury.model.directory import LOSSES, Affine, Member, Model, Scaling
from maury.model.inference import has_observables, has_spectrum
from maury.model.networks.base import NetworkConfig, ScalingRule
from maury.model.split import (
    HELD_OUT_FOLDS,
    PARTS,
    Split,
    SplitRecord,
    held_out_fold,
    kept_rows,
    split_rows,
)
from maury.simulation.emulator import Emulator
from maury.simulation.learnt_theory import Synthetic
from maury.simulation.missing_labels import fill_from_spectra, fill_labels
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.observable_map import ObservableMap
from maury.spectra.operators import vacuum_to_air
from maury.spectra.preparation import Inputs, take
from maury.spectra.star_identity import StarMarks
from maury.survey.labelled_sample import LabelledSample, labelled_rows, listed_rows
from maury.survey.plausibility import tell_of_constants
from maury.survey.store import Survey
from maury.training.processes import MemberJob, Progress, WorkFolder, train_members
from maury.training.settings import ChoiceConfig as ChoiceConfig
from maury.training.settings import EnsembleConfig as EnsembleConfig
from maury.training.settings import resolve
from maury.training.simulated import SimulatedTraining
from maury.training.source_model import LEAST_STARS, SourceModel
from maury.version import __version__

logger = logging.getLogger(__name__)
CHECKPOINT_SECONDS = 20.0
"""Least time between two checkpoints of a member."""
_LEAST_STARS = 30
"""Least training stars that calibrate theory; chosen, not measured."""
_LEAST_TO_LEARN = 100
"""Least training stars from which a theory is learnt: eight for each of a dozen terms."""
_FILL_KEY = 9
"""Key of the random numbers of missing labels, which no other draw from the seed uses."""
_N_FOLD = 8
"""Folds of which each member holds out one: seven eighths train it; chosen, not measured."""
_LEAST_SHARED = 80
"""Training stars below which no fold is held out: ten stars a fold; chosen."""


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
    overwrite: bool = False,
    complete: Callable[[Model, LabelledSample], Model] = lambda model, sample: model,
    finish: Callable[[Model, str], object] | None = None,
    source: SourceModel | None = None,
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
    overwrite : bool
        Replace an existing model, and discard a partial one of other settings.
    complete : callable
        Given the trained model before it gets its name, and the prepared labelled rows; what it
        returns is written.
    finish : callable, optional
        See `Model.save`.
    source : SourceModel, optional
        A model to start from (`maury.training.transfer`); for settings of the preset ``maury``
        only.

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
    left_out = listed_rows(survey, leave_out)
    stars = _collect(survey, settings, seed, source, left_out)
    synthetic = _synthetic(stars, settings, seed) if settings.network.simulates else None
    key = _fingerprint(settings, seed, stars, source, synthetic)
    holds = "a training of other settings or data"
    folder = WorkFolder(work_folder(path, key, holds=holds, overwrite=overwrite))
    if not settings.network.simulates:
        for part in ("train", "validation"):
            folder.put_sample(part, *stars.scaled(part))
    else:
        _put_star_simulators(folder, stars, settings, seed, source, synthetic)
    jobs = member_jobs(folder, settings, seed)
    n_processes = min(n_processes or os.cpu_count() or 1, len(jobs))
    train_members(
        jobs,
        n_processes=n_processes,
        progress=progress or (lambda event: None),
        cluster=cluster,
    )
    about: dict[str, Any] = {}
    if theory and source is None:
        # A learnt theory needs no resolving power: what the settings state may not be the survey's.
        about["theory"] = {**asdict(theory), "resolving_power": survey.resolving_power}
    trained = _assemble(folder, settings, stars, jobs, survey, seed, source, about)
    result = complete(trained, stars.sample).save(path, overwrite=overwrite, finish=finish)
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


@dataclass(frozen=True)
class _Stars:
    """Rows of a survey that can train, in its order, and how they were divided.

    `rows` are numbers into the prepared rows of `sample`, and `parts` numbers into `rows`;
    `simulated` are the labels that a star is simulated with, of which `truth` may lack some.
    """

    labels: tuple[labels_module.Label, ...]
    sample: LabelledSample
    rows: Int64Array
    star_id: StrArray
    truth: Float64Array
    simulated: Float64Array | None
    truth_error: Float64Array
    parts: Mapping[str, Int64Array]
    split: SplitRecord
    scaling: Scaling
    takes_observables: bool
    dropped: Mapping[str, int]

    def inputs(self, chosen: Int64Array) -> Inputs:
        """Return the inputs of the stars `chosen`."""
        return take(self.sample.inputs, self.rows[chosen])

    def scaled(self, part: str) -> tuple[Float32Array, Float32Array, Float32Array, Float32Array]:
        """Flux, observables, target and variance of a part, scaled."""
        rows = self.parts[part]
        inputs = self.inputs(rows)
        observables = self.scaling.observables.forward(inputs.observables.astype(np.float64))
        error = self.truth_error[rows] / self.scaling.labels.scale
        variance = np.where(np.isfinite(error), error, 0.0).astype(np.float32) ** 2
        return (
            inputs.flux,
            # Empty columns, not NaN: a network without photometry has no input for them.
            observables if self.takes_observables else observables[:, :0],
            self.scaling.labels.forward(self.truth[rows]),
            variance,
        )


def _collect(
    survey: Survey,
    settings: EnsembleConfig,
    seed: int,
    source: SourceModel | None,
    left_out: BoolArray,
) -> _Stars:
    """Prepare the labelled rows of a survey and divide them; rows that cannot train are counted."""
    if source is not None:
        source.check_labels(survey)
        names, labels = source.model.label_names, source.model.labels
    else:
        names = _names(settings.ensemble.labels or survey.label_names, settings)
        labels = labels_module.select(names, survey.label_definitions)
    truth, limits = survey.labels(labels), survey.upper_limits(labels)
    tell_of_constants(truth, names, what=str(survey.path))
    labelled = np.flatnonzero(np.isfinite(truth).any(axis=1))
    if not names or labelled.size == 0:
        raise TrainingError(
            f"{survey.path} has no labels to learn ({', '.join(names) or 'none'} given); "
            "ingest it with labels, or name others in [ensemble] labels"
        )
    star_id = survey.star_id[labelled]
    # Before unusable rows are dropped, so that every preset has the same held-out stars.
    split = split_rows(star_id, config=settings.split, seed=seed)
    if source is not None:
        split = source.divide(split, survey.stars.take(labelled))
    dropped = {"no label": int(len(survey) - labelled.size)}
    settings.preparation.require_columns(survey.column_names, what=str(survey.path))
    has_label = np.isfinite(truth).any(axis=1)
    sample = LabelledSample.read(
        survey, settings.preparation, labelled_rows(survey.star_id, has_label)
    )
    inputs, places = sample.inputs, sample.positions(labelled)
    usable = _usable(take(inputs, places), settings, dropped)
    usable &= kept_rows(split, left_out[labelled], dropped)
    if settings.network.simulates:
        emulated = _simulated(settings).theory == "emulator"
        if emulated:
            TrainingStarSimulator.require_grid(
                inputs.wave_aa, inputs.medium, _simulated(settings).observing
            )
        if source is not None:
            source.check_grid(inputs.wave_aa, inputs.medium)
        # Only stars of which all labels are known, or can be drawn, can be simulated.
        training = labelled[split.train]
        if source:
            filled = source.fill(truth)
        elif emulated:
            filled = _drawn(truth, training, seed)
            filled = np.where(filled > limits, limits, filled)
        else:
            filled = _estimated(truth, limits, inputs, places, labelled, split)
        whole = np.isfinite(filled[labelled]).all(axis=1)
        dropped["incomplete labels"] = int((usable & ~whole).sum())
        usable &= whole
    number = np.cumsum(usable) - 1
    parts = {part: number[rows[usable[rows]]] for part, rows in _by_part(split).items()}
    # A target model takes over what it cannot learn, be it a label or the size of errors.
    needed = ("train", "validation") if source is None else ()
    for part in needed:
        if parts[part].size == 0:
            raise TrainingError(
                f"no {part} star can be used: of {len(survey)} rows, left out are "
                f"{_counts(dropped)}; give more stars with labels and inputs"
            )
    kept = labelled[usable]
    simulated = filled[kept] if settings.network.simulates else None
    truth = truth[kept]
    for part in needed:
        # Missing labels are left out of the loss, so that an output without any value would stay
        # random.
        _require_values(names, truth[parts[part]], part)
    least = _LEAST_STARS if source is None else LEAST_STARS
    if settings.network.simulates and _simulated(settings).theory == "learnt":
        least = _LEAST_TO_LEARN
    if settings.network.simulates and parts["train"].size < least:
        raise TrainingError(
            f"the preset 'maury' needs at least {least} training stars for its theory "
            f"{_simulated(settings).theory!r}, got {parts['train'].size}; left out are "
            f"{_counts(dropped)}"
        )
    observables = inputs.observables[places[usable][parts["train"]]].astype(np.float64)
    # Errors are near 0 as they are, and are drawn in training, whatever the survey tells of them.
    observables[:, settings.preparation.observable_map.is_error] = np.nan
    # Measured on training stars alone: held-out stars shape nothing. Start weights of a source
    # model fit its own scaling only.
    scaling = (
        source.model.scaling
        if source
        else _scaling(observables, truth[parts["train"]], settings.network.scaling)
    )
    return _Stars(
        labels=labels,
        sample=sample,
        rows=places[usable],
        star_id=survey.star_id[kept],
        truth=truth,
        simulated=simulated,
        truth_error=survey.label_errors(labels)[kept],
        parts=parts,
        split=SplitRecord.of(
            split,
            survey.stars.take(labelled),
            usable=usable,
            validation_use="calibration" if settings.network.simulates else "choice",
        ),
        scaling=scaling,
        takes_observables=settings.network.photometry,
        dropped=dropped,
    )


def _drawn(truth: Float64Array, training: Int64Array, seed: int) -> Float64Array:
    """Labels with missing ones drawn from the whole training stars, if these are enough."""
    reference = truth[training][np.isfinite(truth[training]).all(axis=1)]
    if len(reference) < _LEAST_STARS:
        return truth
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_FILL_KEY,)))
    return fill_labels(truth, reference, rng)


def _estimated(
    truth: Float64Array,
    limits: Float64Array,
    inputs: Inputs,
    places: Int64Array,
    labelled: Int64Array,
    split: Split,
) -> Float64Array:
    """Labels with missing ones estimated from spectra, for a theory that is learnt."""
    training = np.zeros(labelled.size, dtype=np.bool_)
    training[split.train] = True
    own = take(inputs, places)
    filled = truth.copy()
    filled[labelled] = fill_from_spectra(
        truth[labelled],
        own.flux,
        own.ivar,
        own.observables.astype(np.float64),
        training,
        limits[labelled],
    )
    return filled


def _by_part(split: Split) -> dict[str, Int64Array]:
    return {part: split.part(part) for part in PARTS}


def _scaling(observables: Float64Array, truth: Float64Array, rule: ScalingRule) -> Scaling:
    return Scaling(Affine.measure(observables, rule=rule), Affine.measure(truth, rule=rule))


def _names(names: Sequence[str], settings: EnsembleConfig) -> tuple[str, ...]:
    """Labels to learn, in the order of the network's outputs."""
    if not settings.network.simulates or not names:
        return tuple(names)
    if _simulated(settings).theory == "learnt":
        return tuple(names)
    return LABEL_NAMES


def _put_star_simulators(
    folder: WorkFolder,
    stars: _Stars,
    settings: EnsembleConfig,
    seed: int,
    source: SourceModel | None,
    synthetic: Synthetic | None,
) -> None:
    """Write what simulates the stars: of all training stars, and of those that a member knows."""
    rows = stars.parts["train"]
    n_members, n_fold = settings.ensemble.members, _n_fold(stars, source)
    if not folder.has_star_simulator():
        star_simulator = _fit_star_simulator(stars, rows, settings, source, synthetic)
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
            own = _fit_star_simulator(stars, known, settings, source, synthetic)
            folder.put_star_simulator(own, stars.scaling, member)


def _n_fold(stars: _Stars, source: SourceModel | None) -> int:
    """Folds of the training stars of which each member holds out one; 0 if it trains on all.

    A target model has too few stars to hold out any; those without a name cannot be told
    from each other.
    """
    rows = stars.parts["train"]
    enough = rows.size >= _LEAST_SHARED and bool((stars.star_id[rows] != "").all())
    return _N_FOLD if enough and source is None else 0


def _fit_star_simulator(
    stars: _Stars,
    rows: Int64Array,
    settings: EnsembleConfig,
    source: SourceModel | None,
    synthetic: Synthetic | None,
) -> TrainingStarSimulator:
    assert stars.simulated is not None, "such are the stars of a preset that simulates"
    inputs, labels = stars.inputs(rows), stars.truth[rows]
    observables = inputs.observables.astype(np.float64)
    if _simulated(settings).theory == "learnt":
        return TrainingStarSimulator.learn(
            inputs.wave_aa,
            inputs.flux,
            inputs.ivar,
            labels=stars.simulated[rows],
            names=[label.name for label in stars.labels],
            observables=observables if stars.takes_observables else observables[:, :0],
            observing=_simulated(settings).observing,
            mapping=_mapping(settings),
            medium=inputs.medium,
            synthetic=synthetic,
        )
    star_simulator = TrainingStarSimulator.fit(
        inputs.wave_aa,
        inputs.flux,
        inputs.ivar,
        labels=stars.simulated[rows],
        observables=observables if stars.takes_observables else observables[:, :0],
        observing=_simulated(settings).observing,
        mapping=_mapping(settings),
        medium=inputs.medium,
        source=source.star_simulator if source else None,
    )
    if source is None:
        return star_simulator
    return source.extend(star_simulator, whole=np.asarray(np.isfinite(labels).all(axis=1)))


def _synthetic(stars: _Stars, settings: EnsembleConfig, seed: int) -> Synthetic | None:
    """Read a theory of the user as the survey would see it."""
    training, inputs = _simulated(settings), stars.sample.inputs
    if training.synthetic is None:
        return None
    # Only a power that the survey or the settings state: the default is that of RAVE.
    stated = "resolving_power" in training.observing.model_fields_set
    power = training.observing.resolving_power if stated else None
    wave = inputs.wave_aa if inputs.medium == "air" else vacuum_to_air(inputs.wave_aa)
    assert stars.simulated is not None, "such are the stars of a preset that simulates"
    return read_synthetic(
        training.synthetic,
        [label.name for label in stars.labels],
        stars.simulated[stars.parts["train"]],
        wave_aa=np.asarray(wave),
        resolving_power=power,
        seed=seed,
        check=lambda theory: theory.refuse_known(_test_marks(stars), training.synthetic),
    )


def _test_marks(stars: _Stars) -> StarMarks:
    """Return what tells the test stars."""
    sample = stars.sample
    return sample.survey.stars.take(sample.rows[stars.rows[stars.parts["test"]]])


def _mapping(settings: EnsembleConfig) -> ObservableMap:
    takes = settings.network.photometry
    return settings.preparation.observable_map if takes else ObservableMap.empty()


def _simulated(settings: EnsembleConfig) -> SimulatedTraining:
    assert isinstance(settings.training, SimulatedTraining), "such are the settings of the preset"
    return settings.training


def _usable(inputs: Inputs, settings: EnsembleConfig, dropped: dict[str, int]) -> BoolArray:
    """Which stars the network can take; the others are counted in `dropped`."""
    blank = ~has_spectrum(inputs)
    lacking = ~blank & ~has_observables(inputs, settings.network)
    # Simulated stars have the noise of labelled ones, which must hence be known.
    unknown = ~(blank | lacking) & ((inputs.flags & Flag.NOISE_UNKNOWN.value) != 0)
    # Published networks take the flux alone, and can train without knowing its noise.
    unknown &= settings.network.simulates
    dropped |= {
        "no usable pixel": int(blank.sum()),
        "missing observable": int(lacking.sum()),
        "of unknown noise (put the step 'noise' into [preparation] steps)": int(unknown.sum()),
    }
    return np.asarray(~(blank | lacking | unknown), dtype=np.bool_)


def _require_values(names: Sequence[str], truth: Float64Array, part: str) -> None:
    empty = [n for n, k in zip(names, np.isfinite(truth).sum(axis=0), strict=True) if k == 0]
    if empty:
        raise TrainingError(
            f"no {part} star has a value of {', '.join(empty)}; "
            "leave these out by naming the others in [ensemble] labels"
        )


def _counts(dropped: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {reason}" for reason, count in dropped.items() if count) or "none"


def _fingerprint(
    settings: EnsembleConfig,
    seed: int,
    stars: _Stars,
    source: SourceModel | None,
    synthetic: Synthetic | None,
) -> str:
    """Identity of all that determines the weights of a member."""
    identity = settings.to_json()
    if source is not None:
        identity["parent"] = source.model.checksum
    # More members may be added to a run: each depends on its own seed, not on how many there are.
    del identity["ensemble"]
    digest = hashlib.sha256(json.dumps([identity, seed, torch.__version__]).encode())
    if settings.network.simulates:
        # Another theory simulates other stars from the same settings.
        digest.update(Emulator.load().spec.checksum.encode())
        if synthetic is not None:
            digest.update(np.ascontiguousarray(synthetic.flux).tobytes())
        arrays = [*stars.scaled("train"), stars.inputs(stars.parts["train"]).ivar]
    else:
        arrays = [*stars.scaled("train"), *stars.scaled("validation")]
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


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


def _assemble(
    folder: WorkFolder,
    settings: EnsembleConfig,
    stars: _Stars,
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
