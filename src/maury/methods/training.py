"""From a labelled survey to a model directory that holds a method in place of networks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from maury.errors import ConfigError, TrainingError, suggestion
from maury.io.arrays import BoolArray, Int64Array
from maury.io.config_files import settings_of, validated
from maury.io.files import one_at_a_time, refuse_existing
from maury.labels import definitions as labels_module
from maury.methods.protocols import FitResult, Method, MethodSettings, Sample
from maury.methods.registry import as_prediction, method_class, method_settings
from maury.model.directory import FURTHER_COLUMNS, METHOD, Affine, Model, Scaling
from maury.model.output import Unseen, has_spectrum
from maury.model.split import (
    PARTS,
    Split,
    SplitConfig,
    SplitRecord,
    held_out_fold,
    kept_rows,
    split_rows,
)
from maury.spectra.preparation import Preparation, join_inputs, take
from maury.survey.labelled_sample import LabelledSample, labelled_rows, listed_rows
from maury.survey.plausibility import tell_of_constants
from maury.survey.store import Survey
from maury.version import __version__

__all__ = [
    "Collected",
    "MethodConfig",
    "collect",
    "fit_method",
    "train_method",
    "unseen_stars",
]

logger = logging.getLogger(__name__)

N_FOLD = 5
"""Folds of the training stars, each answered by a method trained on the others: four fifths of the
stars leave residuals a few percent too large at most, and five refits take little time."""
MOST_UNSEEN = 2000
"""Training stars that are fitted for the calibration alone: they fix a scale to 1.6 %, and some
fits take 10 ms."""
Complete = Callable[[Model, LabelledSample, Callable[[], Unseen | None]], Model]
"""What follows a training; see `train_method`."""
_SECTIONS = ("method", "preparation", "split")


@dataclass(frozen=True)
class MethodConfig:
    """All settings with which a method is trained.

    Attributes
    ----------
    name : str
        Of the method.
    method : MethodSettings
        Section ``[method]``.
    preparation : Preparation
        Steps from the survey to what the method takes; the method's own by default.
    split : SplitConfig
        Training, validation and test stars.
    """

    name: str
    method: MethodSettings
    preparation: Preparation
    split: SplitConfig

    @classmethod
    def resolve(
        cls,
        name: str,
        config: Mapping[str, Any] | Path | str | None = None,
        *,
        split: str | None = None,
    ) -> MethodConfig:
        """Read settings from a TOML file or a mapping of sections.

        Raises
        ------
        UnknownName
            If there is no such method.
        ConfigError
            If the file cannot be read, or a section, key or value is wrong.
        """
        found = method_class(name)
        given = settings_of(config)
        for section in given:
            if section not in _SECTIONS:
                hint = suggestion(section, _SECTIONS)
                raise ConfigError(
                    f"there is no section [{section}]{hint} (known: {', '.join(_SECTIONS)})"
                )
        options = dict(_plain(given.get("method", {})))
        # Settings name their method, so that they cannot be given to another one by mistake.
        if options.pop("name", name) != name:
            raise ConfigError(f"the settings are not those of the method {name}")
        preparation = {**found.preparation_defaults, **_plain(given.get("preparation", {}))}
        rules = dict(_plain(given.get("split", {})))
        if split is not None:
            rules["rule"] = split
        problems: list[str] = []
        divided = validated(rules, SplitConfig, problems)
        if divided is None:
            raise ConfigError("the section [split] is wrong: " + "; ".join(problems))
        return cls(
            name, method_settings(name, options), Preparation.from_json(preparation), divided
        )


def _plain(section: Any) -> Mapping[str, Any]:
    if isinstance(section, BaseModel):
        return section.model_dump(mode="json")
    if not isinstance(section, Mapping):
        raise ConfigError(f"a section must be keys and values, got {section!r}")
    return section


@dataclass(frozen=True)
class Collected:
    """Labelled spectra of a survey, prepared and divided.

    Attributes
    ----------
    labelled : LabelledSample
        All labelled rows, usable or not, prepared.
    sample : Sample
        All usable labelled rows, in the order of the survey.
    rows : (n,) int64
        Their row numbers.
    parts : mapping of str to (n_part,) int64
        ``train``, ``validation``, ``test``: numbers into `sample`.
    split : SplitRecord
    dropped : mapping of str to int
        Rows that were left out, by reason.
    """

    labelled: LabelledSample
    sample: Sample
    rows: Int64Array
    parts: Mapping[str, Int64Array]
    split: SplitRecord
    dropped: Mapping[str, int]

    def part(self, name: str) -> Sample:
        """Return the stars of one part."""
        return self.sample.rows(self.parts[name])


def collect(
    survey: Survey,
    names: Sequence[str],
    *,
    preparation: Preparation,
    split: SplitConfig,
    seed: int,
    left_out: BoolArray | None = None,
) -> Collected:
    """Prepare the labelled rows of a survey and divide them, as for networks of the same seed.

    Parameters
    ----------
    survey : Survey
    names : sequence of str
        Labels to learn.
    preparation, split
        Settings.
    seed : int
        Of the split.
    left_out : (n_star,) bool, optional
        Rows of the survey that are not learnt from.

    Raises
    ------
    TrainingError
        If no row has a label, or no training or validation star can be used.
    """
    definitions = labels_module.select(names, survey.label_definitions)
    has_label = _has_label(survey, names)
    labelled = np.flatnonzero(has_label)
    star_id = survey.star_id[labelled]
    # Before unusable rows are dropped, so that every method of a survey has the same test stars.
    divided = split_rows(star_id, config=split, seed=seed)
    rows = labelled_rows(survey.star_id, has_label)
    whole = LabelledSample.read(survey, preparation, rows)
    inputs = whole.prepared(labelled)
    values = survey.labels(names)[labelled]
    tell_of_constants(values, names, what=str(survey.path))
    usable = has_spectrum(inputs) & np.isfinite(values).any(axis=1)
    dropped = {"no label": len(survey) - labelled.size, "not usable": int((~usable).sum())}
    if left_out is not None:
        usable &= kept_rows(divided, left_out[labelled], dropped)
    kept = np.flatnonzero(usable)
    sample = Sample(
        labels=definitions,
        truth=values[kept],
        truth_error=survey.label_errors(names)[labelled][kept],
        inputs=take(inputs, kept),
        star_id=star_id[kept],
        noise_correlation=inputs.noise_correlation,
        resolving_power=survey.resolving_power,
        simulated=survey.simulated,
    )
    return Collected(
        whole,
        sample,
        labelled[kept],
        _parts(divided, usable, survey),
        SplitRecord.of(divided, survey.stars.take(labelled), usable=usable),
        dropped,
    )


def _has_label(survey: Survey, names: Sequence[str]) -> BoolArray:
    """Which rows (n_star,) have any label; raise if there is nothing to learn."""
    # Of all labels, not only those wanted: the split is then the same, whatever is learnt.
    found = np.isfinite(survey.labels(survey.label_names)).any(axis=1)
    if not names or not found.any():
        raise TrainingError(
            f"{survey.path} has no labels to learn ({', '.join(names) or 'none'} asked for); "
            "ingest it with labels"
        )
    return np.asarray(found, dtype=np.bool_)


def _parts(divided: Split, usable: BoolArray, survey: Survey) -> dict[str, Int64Array]:
    # Parts are drawn before unusable rows go: this is where each row is among the usable ones.
    number = np.cumsum(usable) - 1
    parts = {name: divided.part(name) for name in PARTS}
    parts = {name: number[rows[usable[rows]]] for name, rows in parts.items()}
    # A test part without a star is no error here, as nothing is learnt from it.
    for name in ("train", "validation"):
        if parts[name].size == 0:
            raise TrainingError(
                f"no {name} star of {survey.path} can be used; give more stars with labels"
            )
    return parts


@one_at_a_time("model")
def train_method(
    survey: Survey | Path | str,
    model: Path | str,
    *,
    method: str,
    seed: int = 0,
    config: Mapping[str, Any] | Path | str | None = None,
    leave_out: Path | str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    complete: Complete = lambda model, sample, unseen: model,
    finish: Callable[[Model, str], object] | None = None,
) -> Model:
    """Train a method on the labelled spectra of a survey and write its model directory.

    Parameters
    ----------
    survey : Survey or path-like
        Spectra, at least some of them with labels.
    model : path-like
        Model directory to write.
    method : str
        One of `maury.methods.registry.METHODS`.
    seed : int
        Of the split and of the method.
    config : mapping or path of a TOML file, optional
        Sections ``method``, ``preparation``, ``split``.
    leave_out : path-like, optional
        Table of the spectra whose stars are not learnt from (`listed_rows`).
    split : {"star", "published"}, optional
        Rule of the split, in place of that of `config`.
    overwrite : bool
        Replace an existing model.
    complete : callable
        Given the trained model before it is written, the prepared labelled rows, and what predicts
        stars that were not learnt from (`unseen_stars`); what it returns is written.
    finish : callable, optional
        See `Model.save`.

    Returns
    -------
    Model
        The model as written.

    Raises
    ------
    ConfigError
        If settings are wrong.
    TrainingError
        If too few stars have labels and spectra.
    OutputExists
        If `model` exists and `overwrite` is false.
    """
    path = Path(model)
    # Before training, which may take long and would be in vain.
    refuse_existing(path, overwrite=overwrite)
    settings = MethodConfig.resolve(method, config, split=split)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    seen = settings.preparation.seen_in(survey.noise_correlation)
    settings = replace(settings, preparation=seen)
    names = _names(method_class(method), settings.method, survey)
    stars = collect(
        survey,
        names,
        preparation=settings.preparation,
        split=settings.split,
        seed=seed,
        left_out=listed_rows(survey, leave_out),
    )
    trained = fit_method(settings, stars, seed=seed)
    model_here = as_model(trained, settings, stars, survey, seed)
    unseen = partial(unseen_stars, trained, settings, stars, seed=seed)
    whole = complete(model_here, stars.labelled, unseen)
    return whole.save(path, overwrite=overwrite, finish=finish)


def _names(found: type[Method[Any]], settings: MethodSettings, survey: Survey) -> tuple[str, ...]:
    known = found.known_labels
    if known is not None:
        unknown = [name for name in settings.labels if name not in known]
        if unknown:
            raise ConfigError(
                f"{found.name} cannot give {', '.join(unknown)}; it knows {', '.join(known)}"
            )
    names = settings.labels or survey.label_names
    return tuple(name for name in names if known is None or name in known)


def fit_method(settings: MethodConfig, stars: Collected, *, seed: int) -> Method[Any]:
    """Train the method of `settings` on the training and validation stars of `stars`.

    The labels that it gives may be fewer than those of the sample.
    """
    found = method_class(settings.name)
    training, validation = stars.part("train"), stars.part("validation")
    trained = found.train(training, validation, settings=settings.method, seed=seed)
    return replace(trained, resolving_power=training.resolving_power)


def unseen_stars(
    trained: Method[Any], settings: MethodConfig, stars: Collected, *, seed: int
) -> Unseen | None:
    """Predict labelled stars by a method that did not learn from them; test stars are not among.

    Validation stars choose nothing in a method. Training stars are answered by the method trained
    without their fold (cross-fitting; Chernozhukov et al. 2018, EJ 21, C1), or, where labels come
    from theory, as they are (`Method.unseen`).

    Parameters
    ----------
    trained : Method
        Of all training stars.
    settings : MethodConfig
        By which it was trained.
    stars : Collected
    seed : int
        Of the method, and of the folds.

    Returns
    -------
    Unseen or None
        At most `MOST_UNSEEN` training stars, and of a method whose fits take long as many stars as
        it says; None if these are none, if fits take labels from elsewhere, or if the validation
        stars are the test stars.
    """
    kind, most = trained.calibrated_by, trained.most_unseen
    if most == 0:
        logger.warning(
            "errors are those of the fit, in columns <label>_formal_error: give calibration_stars "
            "= 100 in [method] to calibrate them, which fits that many labelled stars"
        )
        return None
    # The published split tests on its validation rows, which hence may calibrate nothing.
    tested = settings.split.rule == "published"
    # A fit that is given a label is another fit, and may know more than its residuals here say.
    if trained.external_names or (kind == "validation" and tested):
        return None
    parts = [] if tested else [(trained, stars.part("validation"))]
    training = stars.part("train")
    what = "validation stars"
    if kind != "validation":
        step = 1 if kind == "folds" else -(-len(training) // MOST_UNSEEN)
        parts += (
            _folded(trained, settings, stars, seed)
            if kind == "folds"
            else [(trained, training.rows(np.arange(0, len(training), step)))]
        )
        what = "training and validation stars"
        if kind == "folds":
            what += ", each by a method trained without its fold"
    if most is not None:
        parts = _thinned(parts, most)
    return _joined(parts, trained.label_names, what)


def _thinned(
    parts: Sequence[tuple[Method[Any], Sample]], most: int
) -> list[tuple[Method[Any], Sample]]:
    """Every so many stars of each part, `most` in all."""
    step = max(1.0, sum(len(sample) for _, sample in parts) / most)
    return [
        (method, sample.rows(np.arange(0, len(sample), step).astype(np.int64)))
        for method, sample in parts
    ]


def _folded(
    trained: Method[Any], settings: MethodConfig, stars: Collected, seed: int
) -> list[tuple[Method[Any], Sample]]:
    """Training stars by fold, and the method trained on the other folds; none if too few."""
    training, validation = stars.part("train"), stars.part("validation")
    # Unnamed spectra are stars of their own.
    number = np.arange(len(training)).astype(str)
    names = np.where(training.star_id == "", number, training.star_id)
    fold = held_out_fold(names, n_fold=N_FOLD, seed=seed)
    found = []
    for part in range(N_FOLD):
        mine = np.flatnonzero(fold == part)
        try:
            other = type(trained).train(
                training.rows(fold != part), validation, settings=settings.method, seed=seed
            )
        except TrainingError as error:
            logger.warning("errors are calibrated on validation stars alone: %s", error)
            return []
        if mine.size:
            again = replace(other, resolving_power=training.resolving_power)
            found.append((again, training.rows(mine)))
    return found


def _joined(
    parts: Sequence[tuple[Method[Any], Sample]], names: Sequence[str], what: str
) -> Unseen | None:
    """Apply each method to its stars, and put predictions of these labels into one."""
    answered = []
    for method, sample in parts:
        result = method.apply(sample.inputs)
        if set(names) <= set(result.label_names):
            answered.append((sample, result.select(names)))
    if not answered:
        return None
    inputs = join_inputs([sample.inputs for sample, _ in answered])
    known = answered[0][0].label_names
    truth = np.concatenate([sample.truth for sample, _ in answered])
    return Unseen(
        inputs=inputs,
        prediction=as_prediction(FitResult.join([result for _, result in answered]), inputs),
        truth=truth[:, [known.index(name) for name in names]],
        star_id=np.concatenate([sample.star_id for sample, _ in answered]),
        what=what,
    )


def as_model(
    trained: Method[Any], settings: MethodConfig, stars: Collected, survey: Survey, seed: int
) -> Model:
    """Put a trained method into a model, which is not saved yet."""
    sample = stars.part("train")
    # A method may give fewer labels than were asked for, and in an order of its own.
    index = [sample.label_names.index(name) for name in trained.label_names]
    truth = sample.truth[:, index]
    arrays, about = trained.to_arrays()
    model = Model(
        labels=tuple(sample.labels[k] for k in index),
        network={"name": settings.name, **settings.method.model_dump(mode="json")},
        preparation=settings.preparation,
        scaling=Scaling(Affine.measure(sample.inputs.observables), Affine.measure(truth)),
        wave_aa=sample.wave_aa,
        medium=sample.medium,
        # Those are of networks; the arrays of a method are an attachment of the model.
        tensors={},
        members=(),
        split=stars.split,
        simulated=survey.simulated,
        seed=seed,
        training={
            "settings": {"split": settings.split.model_dump(mode="json")},
            "dropped": dict(stars.dropped),
        },
        provenance={
            "maury": __version__,
            "numpy": np.__version__,
            "licence": trained.licence,
            "citation": trained.paper,
            "bibtex_key": trained.bibtex_key,
            "survey": {"name": survey.path.name, **dict(survey.provenance)},
        },
    )
    columns = [asdict(column) for column in trained.further_columns]
    more = {FURTHER_COLUMNS: columns} if columns else {}
    return model.with_arrays(METHOD, arrays, metadata={**about, **more})
