"""A catalogue of the stars of several surveys: one row a star, whichever surveys saw it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from maury.errors import ConfigError
from maury.io.arrays import AnyArray, BoolArray, Float64Array, Int64Array
from maury.io.files import refuse_existing
from maury.labels.columns import N_SPECTRA, QUANTILES, Column
from maury.labels.flags import FLAG_DTYPE, warn
from maury.model.joint_model import JointModel
from maury.prediction.catalogue import CatalogueSpec, assemble, check_suffix, write_part
from maury.prediction.joint_predictor import JointLabels, best_rows
from maury.prediction.predictor import Predictor
from maury.spectra.star_identity import shared_stars
from maury.survey.store import CHUNK_STARS, Survey
from maury.version import __version__

__all__ = ["SURVEYS", "JointRows", "predict_joint", "predict_stars"]

logger = logging.getLogger(__name__)

SURVEYS = Column("surveys", "", "meta.dataset", "Surveys whose spectra give the labels", "str")
_STAR = Column(
    "id", "", "meta.id;meta.main", "Star, as the first survey that saw it names it", "str"
)
_BLOCK = 1024
"""Stars of several surveys answered at a time: 5000 pixels of them are 20 MB; chosen."""

Progress = Callable[[int, int], None]
"""Called with rows done and rows in all."""


@dataclass(frozen=True, eq=False)
class JointRows:
    """One row a star.

    Attributes
    ----------
    columns : mapping of str to (n_star,) array
        ``id``, ``surveys``, ``n_spectra``, labels with errors and quantiles, ``flags``, ``warn``,
        ``snr``.
    star : (n_star,) int64
        Number of the star.
    row : mapping of str to (n_star,) int64
        Row of each survey that gives the answer, -1 where it has no part in it.
    """

    columns: Mapping[str, AnyArray]
    star: Int64Array
    row: Mapping[str, Int64Array]


def predict_joint(
    model: JointModel | Path | str,
    surveys: Mapping[str, Survey | Path | str],
    out: Path | str,
    *,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> JointRows:
    """Predict the stars of several surveys and write one catalogue, a row a star.

    A star is answered from the best spectrum that each survey has of it: one that no flag warns of,
    then that of the highest S/N. Surveys of whose best spectrum a flag warns take no part, unless
    all do. What remains is answered at once, if errors of that set of surveys are calibrated; else
    by the largest calibrated set in it, or by the one survey with the smallest errors.

    Parameters
    ----------
    model : JointModel or path-like
    surveys : mapping of str to Survey or path-like
        One or more of those of the model, by their names in it.
    out : path-like
        Catalogue to write, in the format that its suffix names.
    overwrite : bool
        Replace what is there.
    progress : callable, optional
        Called with the rows of all surveys that are done, and how many there are.

    Returns
    -------
    JointRows

    Raises
    ------
    ConfigError
        If there is no survey of the model, or the suffix names no format.
    OutputExists
        If `out` exists and `overwrite` is false.
    """
    path = Path(out)
    check_suffix(path)
    refuse_existing(path, overwrite=overwrite)
    model = model if isinstance(model, JointModel) else JointModel.open(model)
    opened = {
        name: one if isinstance(one, Survey) else Survey.open(one) for name, one in surveys.items()
    }
    rows = predict_stars(model, opened, progress=progress)
    spec = _spec(model, opened)
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        part = Path(folder) / "stars.parquet"
        write_part(part, spec, rows.columns)
        assemble([part], path, spec=spec, overwrite=overwrite)
    return rows


def predict_stars(
    model: JointModel,
    surveys: Mapping[str, Survey],
    *,
    labels: JointLabels | None = None,
    progress: Progress | None = None,
) -> JointRows:
    """Predict the stars of several surveys, see `predict_joint`.

    Parameters
    ----------
    model : JointModel
    surveys : mapping of str to Survey
    labels : JointLabels, optional
        Of the model, where it is at hand.
    progress : callable, optional
    """
    if unknown := sorted(set(surveys) - set(model.names)):
        raise ConfigError(
            f"{model.path} has no survey {unknown[0]!r} (known: {', '.join(model.names)}); name "
            "each survey as it was named in training"
        )
    if not surveys:
        raise ConfigError(f"give one or more of the surveys {', '.join(model.names)}")
    names = [name for name in model.names if name in surveys]
    labels = labels or JointLabels(model)
    numbers = shared_stars([surveys[name].stars for name in names])
    star_of = dict(zip(names, numbers, strict=True))
    alone, done, total = {}, 0, sum(len(surveys[name]) for name in names)
    for name in names:
        told = None if progress is None else partial(_tell, progress, done, total)
        alone[name] = _alone(model, name, surveys[name], told)
        done += len(surveys[name])
    best = {}
    for name in names:
        usable = alone[name].pop("usable").astype(np.bool_)
        best[name] = best_rows(
            star_of[name], usable, alone[name]["warn"].astype(np.bool_), alone[name]["snr"]
        )
    seen = np.unique(np.concatenate([best[name][0] for name in names]))
    row = {name: _placed(seen, *best[name]) for name in names}
    taking = _taking(row, alone, names)
    sets = labels.sets(names)
    used = _sets_used(taking, alone, row, names, sets, model)
    columns = _empty(model, seen.size)
    final = {name: np.full(seen.size, -1, dtype=np.int64) for name in names}
    for name in names:
        single = used == names.index(name)
        _copy(columns, alone[name], row[name][single], np.flatnonzero(single))
        final[name][single] = row[name][single]
    for number, several in enumerate(sets):
        stars = np.flatnonzero(used == len(names) + number)
        for start in range(0, stars.size, _BLOCK):
            block = stars[start : start + _BLOCK]
            _together(columns, labels, surveys, alone, row, several, block)
        for name in several:
            final[name][stars] = row[name][stars]
    columns |= _about(surveys, row, final, alone, names)
    return JointRows(columns, seen, final)


def _alone(
    model: JointModel,
    name: str,
    survey: Survey,
    progress: Callable[[int], None] | None,
) -> dict[str, AnyArray]:
    """Columns of the answers of one survey's own model; ``usable`` where it has any."""
    predictor = Predictor(model.models[name]).taking(survey)
    own = model.models[name]
    wanted = ["flags", "warn", "snr"]
    for label in own.labels:
        error = label.error_name if own.errors_calibrated else label.formal_error_name
        wanted += [label.name, error, *(f"{label.name}_{suffix}" for suffix, _ in QUANTILES)]
    parts: list[dict[str, AnyArray]] = []
    for batch in survey.batches(CHUNK_STARS):
        found = predictor.predict(batch)
        parts.append({key: found[key] for key in wanted if key in found})
        if progress is not None:
            progress(batch.start + len(batch))
    whole = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    answered = np.any([np.isfinite(whole[label.name]) for label in own.labels], axis=0)
    return whole | {"usable": answered}


def _tell(progress: Progress, before: int, total: int, rows: int) -> None:
    progress(before + rows, total)


def _placed(seen: Int64Array, known: Int64Array, rows: Int64Array) -> Int64Array:
    """Row of each star that was seen; -1 where the survey has none."""
    out = np.full(seen.size, -1, dtype=np.int64)
    out[np.searchsorted(seen, known)] = rows
    return out


def _taking(
    row: Mapping[str, Int64Array], alone: Mapping[str, Mapping[str, AnyArray]], names: list[str]
) -> BoolArray:
    """Which surveys (n_star, n_survey) take part: those without a warning, or all."""
    has = np.stack([row[name] >= 0 for name in names], axis=1)
    warned = np.stack([alone[name]["warn"][row[name]] & (row[name] >= 0) for name in names], axis=1)
    good = has & ~warned
    return np.where(good.any(axis=1, keepdims=True), good, has)


def _sets_used(
    taking: BoolArray,
    alone: Mapping[str, Mapping[str, AnyArray]],
    row: Mapping[str, Int64Array],
    names: list[str],
    sets: list[tuple[str, ...]],
    model: JointModel,
) -> Int64Array:
    """Return what answers each star: the number of a survey, or of a set after all surveys."""
    errors = np.stack([_relative_error(alone[n], row[n], n, model) for n in names], axis=1)
    # A survey that takes no part, or states no error, is never the best.
    errors = np.where(taking, np.nan_to_num(errors, nan=1e30), np.inf)
    used: Int64Array = np.argmin(errors, axis=1).astype(np.int64)
    for number in reversed(range(len(sets))):
        whole = taking[:, [names.index(name) for name in sets[number]]].all(axis=1)
        used[whole] = len(names) + number
    return used


def _relative_error(
    columns: Mapping[str, AnyArray], row: Int64Array, name: str, model: JointModel
) -> Float64Array:
    """Mean error of each star in units of the labels' scatter; NaN where none is stated."""
    own = model.models[name]
    stated = [
        columns[label.error_name if own.errors_calibrated else label.formal_error_name][row]
        / own.scaling.labels.scale[k]
        for k, label in enumerate(own.labels)
    ]
    return np.asarray(np.mean(stated, axis=0))


def _empty(model: JointModel, n: int) -> dict[str, AnyArray]:
    columns: dict[str, AnyArray] = {}
    for label in model.labels:
        for name in (label.name, label.error_name, *_quantile_names(label.name)):
            columns[name] = np.full(n, np.nan)
    return columns | {"snr": np.full(n, np.nan)}


def _quantile_names(label: str) -> list[str]:
    return [f"{label}_{suffix}" for suffix, _ in QUANTILES]


def _copy(
    columns: dict[str, AnyArray],
    source: Mapping[str, AnyArray],
    row: Int64Array,
    place: Int64Array,
) -> None:
    """Take the answers of one survey; errors that nothing calibrated stay out."""
    for name, values in source.items():
        if name in columns:
            columns[name][place] = values[row]


def _together(
    columns: dict[str, AnyArray],
    labels: JointLabels,
    surveys: Mapping[str, Survey],
    alone: Mapping[str, Mapping[str, AnyArray]],
    row: Mapping[str, Int64Array],
    several: tuple[str, ...],
    block: Int64Array,
) -> None:
    """Answer stars that several surveys saw."""
    model = labels.model
    inputs = {
        name: model.models[name].preparation.apply(surveys[name].rows(row[name][block]))
        for name in several
    }
    found = labels.assess(inputs)
    for k, label in enumerate(model.labels):
        columns[label.name][block] = found.mean[:, k]
        columns[label.error_name][block] = found.sigma[:, k]
        if found.quantiles is not None:
            for q, name in enumerate(_quantile_names(label.name)):
                columns[name][block] = found.quantiles[q, :, k]
    squares = [np.nan_to_num(alone[name]["snr"][row[name][block]]) ** 2 for name in several]
    columns["snr"][block] = np.sqrt(np.sum(squares, axis=0))


def _about(
    surveys: Mapping[str, Survey],
    row: Mapping[str, Int64Array],
    final: Mapping[str, Int64Array],
    alone: Mapping[str, Mapping[str, AnyArray]],
    names: list[str],
) -> dict[str, AnyArray]:
    """Columns that say which star it is and what answered it."""
    n = len(final[names[0]])
    identifier = np.full(n, "", dtype=object)
    for name in names:
        survey, has = surveys[name], (row[name] >= 0) & (identifier == "")
        star, own = survey.star_id[row[name][has]], survey.id[row[name][has]]
        identifier[has] = np.where(star == "", own, star)
    taken = np.stack([final[name] >= 0 for name in names], axis=1)
    said = ["+".join(name for name, t in zip(names, line, strict=True) if t) for line in taken]
    flags = np.zeros(n, FLAG_DTYPE)
    for name in names:
        has = final[name] >= 0
        flags[has] |= alone[name]["flags"][final[name][has]].astype(FLAG_DTYPE)
    return {
        "id": identifier.astype(np.str_),
        SURVEYS.name: np.array(said),
        N_SPECTRA.name: taken.sum(axis=1).astype(np.float64),
        "flags": flags,
        "warn": warn(flags),
    }


def _spec(model: JointModel, surveys: Mapping[str, Survey]) -> CatalogueSpec:
    metadata: dict[str, Any] = {
        "simulated": any(survey.simulated for survey in surveys.values()),
        "maury_version": __version__,
        "surveys": {
            name: {"name": survey.path.name, "provenance": survey.provenance}
            for name, survey in surveys.items()
        },
        "model": {
            "surveys": {name: one.checksum for name, one in model.models.items()},
            "members": model.n_member,
            "trained_on_simulated_spectra": model.simulated,
        },
        "symbols": {label.name: label.symbol for label in model.labels},
        "errors": "1 sigma, calibrated on labelled stars that trained no network",
        "errors_calibrated": True,
        "offsets": model.about.get("offsets", {}),
    }
    spec = CatalogueSpec.for_labels(
        model.labels, survey_columns=(), metadata=metadata, quantiles=True, by_star=True
    )
    first, *rest = spec.columns
    return replace(spec, columns=(_STAR if first.name == "id" else first, SURVEYS, *rest))
