"""The labelled stars of a survey that can train, and what simulates stars like them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from maury.errors import TrainingError
from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array, StrArray
from maury.labels import definitions as labels_module
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.methods.fitting.synthetic_library import read_synthetic
from maury.model.directory import Affine, Scaling
from maury.model.inference import has_observables, has_spectrum
from maury.model.networks.base import ScalingRule
from maury.model.split import PARTS, Split, SplitRecord, kept_rows, split_rows
from maury.simulation.emulator import Emulator
from maury.simulation.learnt_theory import Synthetic
from maury.simulation.missing_labels import fill_from_spectra, fill_labels
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.observable_map import ObservableMap
from maury.spectra.operators import vacuum_to_air
from maury.spectra.preparation import Inputs, take
from maury.spectra.star_identity import StarMarks
from maury.survey.labelled_sample import LabelledSample, labelled_rows
from maury.survey.plausibility import tell_of_constants
from maury.survey.store import Survey
from maury.training.settings import EnsembleConfig
from maury.training.simulated import SimulatedTraining
from maury.training.source_model import LEAST_STARS, SourceModel

_LEAST_STARS = 30
"""Least training stars that calibrate theory; chosen, not measured."""
_LEAST_TO_LEARN = 100
"""Least training stars from which a theory is learnt: eight for each of a dozen terms."""
_FILL_KEY = 9
"""Key of the random numbers of missing labels, which no other draw from the seed uses."""


@dataclass(frozen=True)
class LabelledStars:
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


def collect_stars(
    survey: Survey,
    settings: EnsembleConfig,
    seed: int,
    source: SourceModel | None,
    left_out: BoolArray,
    *,
    divide: Callable[[Split, Int64Array], Split] | None = None,
) -> LabelledStars:
    """Prepare the labelled rows of a survey and divide them; rows that cannot train are counted.

    Parameters
    ----------
    survey : Survey
    settings : EnsembleConfig
    seed : int
        Of the split.
    source : SourceModel or None
        A model to start from, whose stars keep their part.
    left_out : (n_star,) bool
        Rows that are not learnt from.
    divide : callable, optional
        Takes the split and the numbers of the labelled rows, and returns the split that holds.

    Raises
    ------
    TrainingError
        If too few stars can train.
    """
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
    if divide is not None:
        split = divide(split, labelled)
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
        emulated = simulated_settings(settings).theory == "emulator"
        if emulated:
            TrainingStarSimulator.require_grid(
                inputs.wave_aa, inputs.medium, simulated_settings(settings).observing
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
    if settings.network.simulates and simulated_settings(settings).theory == "learnt":
        least = _LEAST_TO_LEARN
    if settings.network.simulates and parts["train"].size < least:
        raise TrainingError(
            f"the preset 'maury' needs at least {least} training stars for its theory "
            f"{simulated_settings(settings).theory!r}, got {parts['train'].size}; left out are "
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
        else scaling_of(observables, truth[parts["train"]], settings.network.scaling)
    )
    return LabelledStars(
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


def scaling_of(observables: Float64Array, truth: Float64Array, rule: ScalingRule) -> Scaling:
    """Measure the scaling of observables (n, n_observable) and labels (n, n_label) of stars."""
    return Scaling(Affine.measure(observables, rule=rule), Affine.measure(truth, rule=rule))


def _names(names: Sequence[str], settings: EnsembleConfig) -> tuple[str, ...]:
    """Labels to learn, in the order of the network's outputs."""
    if not settings.network.simulates or not names:
        return tuple(names)
    if simulated_settings(settings).theory == "learnt":
        return tuple(names)
    return LABEL_NAMES


def fit_star_simulator(
    stars: LabelledStars,
    rows: Int64Array,
    settings: EnsembleConfig,
    source: SourceModel | None,
    synthetic: Synthetic | None,
) -> TrainingStarSimulator:
    """Calibrate the emulator on some stars, or learn theory from them.

    Parameters
    ----------
    stars : LabelledStars
    rows : (n,) int64
        Numbers into `stars.rows`.
    settings : EnsembleConfig
    source : SourceModel or None
        A model to start from, whose theory is the prior.
    synthetic : Synthetic or None
        A theory of the user.
    """
    assert stars.simulated is not None, "such are the stars of a preset that simulates"
    inputs, labels = stars.inputs(rows), stars.truth[rows]
    observables = inputs.observables.astype(np.float64)
    if simulated_settings(settings).theory == "learnt":
        return TrainingStarSimulator.learn(
            inputs.wave_aa,
            inputs.flux,
            inputs.ivar,
            labels=stars.simulated[rows],
            names=[label.name for label in stars.labels],
            observables=observables if stars.takes_observables else observables[:, :0],
            observing=simulated_settings(settings).observing,
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
        observing=simulated_settings(settings).observing,
        mapping=_mapping(settings),
        medium=inputs.medium,
        source=source.star_simulator if source else None,
    )
    if source is None:
        return star_simulator
    return source.extend(star_simulator, whole=np.asarray(np.isfinite(labels).all(axis=1)))


def relearning(
    stars: LabelledStars,
    settings: EnsembleConfig,
    source: SourceModel | None,
    synthetic: Synthetic | None,
) -> Callable[[Int64Array], TrainingStarSimulator]:
    """Return what makes the theory anew from the training stars among some rows of the survey.

    Arguments as of `fit_star_simulator`.
    """

    def relearn(rows: Int64Array) -> TrainingStarSimulator:
        training = stars.parts["train"]
        known = training[np.isin(stars.sample.rows[stars.rows[training]], rows)]
        return fit_star_simulator(stars, known, settings, source, synthetic)

    return relearn


def synthetic_of(stars: LabelledStars, settings: EnsembleConfig, seed: int) -> Synthetic | None:
    """Read a theory of the user as the survey would see it."""
    training, inputs = simulated_settings(settings), stars.sample.inputs
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


def _test_marks(stars: LabelledStars) -> StarMarks:
    """Return what tells the test stars."""
    sample = stars.sample
    return sample.survey.stars.take(sample.rows[stars.rows[stars.parts["test"]]])


def _mapping(settings: EnsembleConfig) -> ObservableMap:
    takes = settings.network.photometry
    return settings.preparation.observable_map if takes else ObservableMap.empty()


def simulated_settings(settings: EnsembleConfig) -> SimulatedTraining:
    """Return the settings of the training, of a preset that simulates."""
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


def fingerprint(
    settings: EnsembleConfig,
    seed: int,
    stars: LabelledStars,
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
