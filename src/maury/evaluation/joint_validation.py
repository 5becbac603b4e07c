"""How well a joint model does on held-out stars: each survey alone, and those that several saw."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from maury.errors import TrainingError
from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.labels.statistics import robust_sigma
from maury.model.joint_model import JointModel
from maury.model.output import Prediction
from maury.prediction.joint_predictor import JointLabels, answers_alone, best_rows
from maury.survey.common_stars import CommonStars
from maury.survey.store import Survey

__all__ = ["JointValidation", "LabelFigures", "validate_joint"]


@dataclass(frozen=True)
class LabelFigures:
    """Figures of one label of stars that a set of surveys saw.

    Attributes
    ----------
    label : str
    answered_by : str
        Surveys whose spectra give the label, with ``+`` between.
    seen_by : str
        Stars: those that all of these surveys saw; ``all`` are those of the survey that answers.
    n_star : int
    rms, bias, scatter : float
        Of the residuals; scatter is robust. In the unit of the label.
    error : float
        Median stated error.
    within, outer : float
        Shares within one error, and between the outer quantiles (2.3 and 97.7 %).
    """

    label: str
    answered_by: str
    seen_by: str
    n_star: int
    rms: float
    bias: float
    scatter: float
    error: float
    within: float
    outer: float


@dataclass(frozen=True)
class JointValidation:
    """Figures of held-out stars.

    Attributes
    ----------
    figures : tuple of LabelFigures
        Of the stars that a set of surveys saw: answered by each, and by all together.
    differences : mapping of str to mapping of str to float
        Robust scatter of the difference of two surveys' answers over its error, for each pair and
        label.
    simulated : bool
        Whether any spectra are simulated.
    """

    figures: tuple[LabelFigures, ...]
    differences: Mapping[str, Mapping[str, float]]
    simulated: bool

    def tables(self) -> dict[str, list[tuple[str, ...]]]:
        """Return a table in words, with a header, for each group of stars, by who saw them."""
        header = ("label", "answered by", "stars", "rms", "error", "in 1 sigma", "q02-q98")
        out: dict[str, list[tuple[str, ...]]] = {}
        for one in self.figures:
            seen = one.answered_by if one.seen_by == "all" else one.seen_by
            which = f"all stars of {seen}" if one.seen_by == "all" else f"stars seen by {seen}"
            out.setdefault(which, [header]).append(
                (
                    one.label,
                    one.answered_by,
                    str(one.n_star),
                    f"{one.rms:.3g}",
                    f"{one.error:.3g}",
                    f"{100 * one.within:.0f} %",
                    f"{100 * one.outer:.0f} %",
                )
            )
        return {
            which: [header, *sorted(rows, key=lambda row: self._order(row[0]))]
            for which, (header, *rows) in out.items()
        }

    def _order(self, label: str) -> int:
        return [one.label for one in self.figures].index(label)

    def to_json(self) -> str:
        """Return all figures as JSON; what is unknown is null."""
        figures = [
            {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in one.items()}
            for one in map(asdict, self.figures)
        ]
        pairs = {pair: dict(found) for pair, found in self.differences.items()}
        document = {"simulated": self.simulated, "figures": figures, "differences": pairs}
        return json.dumps(document, indent=1, allow_nan=False)


def validate_joint(
    model: JointModel | Path | str,
    surveys: Mapping[str, Survey | Path | str],
    *,
    part: str = "test",
) -> JointValidation:
    """Compare the answers to held-out stars with their labels.

    For each set of surveys that saw a star: what each of them says alone, and what they say
    together.

    Parameters
    ----------
    model : JointModel or path-like
    surveys : mapping of str to Survey or path-like
        With labels; by their names in the model.
    part : {"test", "validation", "train"}
        Which stars.

    Raises
    ------
    TrainingError
        If the surveys have no labelled star of this part.
    """
    model = model if isinstance(model, JointModel) else JointModel.open(model)
    opened = {
        name: one if isinstance(one, Survey) else Survey.open(one) for name, one in surveys.items()
    }
    common = CommonStars.of({name: opened[name] for name in model.names if name in opened})
    chosen = {
        name: model.models[name].split.contains(part, survey.star_id)
        for name, survey in common.surveys.items()
    }
    if not any(rows.any() for rows in chosen.values()):
        raise TrainingError(f"none of the surveys has {part} stars of {model.path}")
    labels = JointLabels(model)
    best = {name: _best(common, name, rows) for name, rows in chosen.items()}
    alone = {
        name: answers_alone(model, name, common.surveys[name].rows(best[name][1]))
        for name in common.surveys
    }
    truth = {name: _truth(model, common.surveys[name], best[name][1]) for name in common.surveys}
    figures: list[LabelFigures] = []
    for name in common.surveys:
        figures += _figures(model, name, "all", alone[name], truth[name])
    differences: dict[str, dict[str, float]] = {}
    for several in labels.sets(list(common.surveys)):
        place, known = _common_places(several, best, truth)
        if not len(known):
            continue
        seen_by = "+".join(several)
        own = {name: alone[name].rows(place[name]) for name in several}
        inputs = {
            name: model.models[name].preparation.apply(
                common.surveys[name].rows(best[name][1][place[name]])
            )
            for name in several
        }
        for name in several:
            figures += _figures(model, name, seen_by, own[name], known)
        figures += _figures(model, seen_by, seen_by, labels.assess(inputs), known)
        if len(several) == 2:
            differences[" - ".join(several)] = _differences(labels, several, own)
    simulated = any(survey.simulated for survey in opened.values())
    return JointValidation(tuple(figures), differences, simulated)


def _best(common: CommonStars, name: str, rows: BoolArray) -> tuple[Int64Array, Int64Array]:
    """Stars of a part, and the best spectrum of each in a survey."""
    survey = common.surveys[name]
    snr = survey.column("snr") if "snr" in survey.column_names else np.zeros(len(survey))
    return best_rows(common.star[name], rows, np.zeros(len(survey), dtype=np.bool_), snr)


def _truth(model: JointModel, survey: Survey, rows: Int64Array) -> Float64Array:
    """Labels (n_star, n_label) of all surveys, those that this one lacks being missing."""
    out = np.full((rows.size, len(model.labels)), np.nan)
    for k, label in enumerate(model.labels):
        if label.name in survey.label_names:
            out[:, k] = survey.labels([label.name])[rows, 0]
    return out


def _common_places(
    several: tuple[str, ...],
    best: Mapping[str, tuple[Int64Array, Int64Array]],
    truth: Mapping[str, Float64Array],
) -> tuple[dict[str, Int64Array], Float64Array]:
    """Places of the stars that all of these surveys have, and their labels."""
    star = best[several[0]][0]
    for name in several[1:]:
        star = np.intersect1d(star, best[name][0])
    place = {name: np.searchsorted(best[name][0], star) for name in several}
    known = np.full((star.size, truth[several[0]].shape[1]), np.nan)
    for name in several:
        known = np.where(np.isnan(known), truth[name][place[name]], known)
    return place, known


def _figures(
    model: JointModel, answered_by: str, seen_by: str, found: Prediction, truth: Float64Array
) -> list[LabelFigures]:
    out = []
    for k, label in enumerate(model.labels):
        residual, error = found.mean[:, k] - truth[:, k], found.sigma[:, k]
        good = np.isfinite(residual) & np.isfinite(error)
        if not good.any():
            continue
        residual, error = residual[good], error[good]
        outer = np.nan
        if found.quantiles is not None:
            low, high = found.quantiles[0, good, k], found.quantiles[-1, good, k]
            outer = float(((truth[good, k] >= low) & (truth[good, k] <= high)).mean())
        out.append(
            LabelFigures(
                label=label.name,
                answered_by=answered_by,
                seen_by=seen_by,
                n_star=int(good.sum()),
                rms=float(np.sqrt(np.mean(residual**2))),
                bias=float(np.mean(residual)),
                scatter=robust_sigma(residual),
                error=float(np.median(error)),
                within=float((np.abs(residual) < error).mean()),
                outer=outer,
            )
        )
    return out


def _differences(
    labels: JointLabels, pair: tuple[str, ...], own: Mapping[str, Prediction]
) -> dict[str, float]:
    """Robust scatter of the difference of two answers over its error, label by label."""
    one, two = (own[name] for name in pair)
    error = labels.difference_error((pair[0], one.sigma), (pair[1], two.sigma))
    with np.errstate(invalid="ignore", divide="ignore"):
        score = (one.mean - two.mean) / error
    return {
        label.name: robust_sigma(score[:, k])
        for k, label in enumerate(labels.model.labels)
        if np.isfinite(score[:, k]).any()
    }
