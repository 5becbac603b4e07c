"""What a model says of every star of a survey, and which of them are not worth a label."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

import numpy as np

from maury.errors import ConfigError
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    Int64Array,
    StrArray,
)
from maury.labels.flags import Flag
from maury.labels.flags import warn as warned
from maury.model.directory import Model
from maury.prediction.coverage import CoverageModel
from maury.prediction.streaming import Predictor, Progress
from maury.survey.store import Survey

USELESS = (
    Flag.NO_SPECTRUM,
    Flag.BAD_PIXELS,
    Flag.LOW_SNR,
    Flag.NO_RADIAL_VELOCITY,
    Flag.CONTINUUM_FAILED,
    Flag.INPUT_REQUIRED,
    Flag.RADIAL_VELOCITY_WRONG,
    Flag.EMISSION,
    Flag.DOUBLE_LINED,
    Flag.CONTINUUM_BAD,
    Flag.PHOTOMETRY_DISAGREES,
)
"""Flags of stars that are never suggested: their labels would teach faults of the data, or kinds of
stars that the labels do not describe."""


_LABELLED = "already labelled, or known to the model"


_TWICE = "another spectrum of the same star is better"


_BATCH = 512
"""Spectra predicted at a time: some ten MB of pixels, so that a census of any survey needs no more
memory than one of a small one."""


@dataclass(frozen=True, eq=False)
class Census:
    """What a model says of every star of a survey.

    Attributes
    ----------
    id, star_id : (n_star,) str
    place : (n_star, n_label) float64
        Predicted labels, scaled as those of the training stars; NaN where there are none.
    error : (n_star, n_label) float64
        Calibrated errors, scaled alike.
    snr : (n_star,) float64
    flags : (n_star,) int64
        Bits of `maury.labels.flags.Flag`.
    labelled : (n_star,) bool
        Stars that have all labels already, or that the model's split knows.
    training : (n_reference, n_label) float32
        `place` of the training stars.
    simulated : bool
        Whether the spectra are simulated.
    """

    id: StrArray
    star_id: StrArray
    place: Float64Array
    error: Float64Array
    snr: Float64Array
    flags: Int64Array
    labelled: BoolArray
    training: Float32Array
    simulated: bool

    @classmethod
    def take(
        cls,
        model: Model | Path | str,
        survey: Survey | Path | str,
        *,
        progress: Progress | None = None,
    ) -> Census:
        """Predict every star of a survey.

        Parameters
        ----------
        model, survey
            The model and the survey, or their paths.
        progress : callable, optional
            Called with (rows done, rows in all).

        Raises
        ------
        ConfigError
            If the model has not learnt what its training sample covers.
        GridMismatch
            If the spectra are not on the grid that the model's preparation takes.
        """
        model = model if isinstance(model, Model) else Model.open(model)
        survey = survey if isinstance(survey, Survey) else Survey.open(survey)
        coverage = _coverage(model)
        predictor = Predictor(model)
        rows = _predict(predictor, survey, progress)
        mean = np.stack([rows[label.name] for label in model.labels], axis=1)
        error = np.stack([rows[label.error_name] for label in model.labels], axis=1)
        # A star with some labels only is worth observing for the others: it counts as labelled with
        # all.
        whole = np.isfinite(survey.labels(model.labels)).all(axis=1)
        star_id = survey.star_id
        # Repeats of a labelled star bring nothing new; rows without an identifier are stars of
        # their own.
        known = whole | np.isin(star_id, star_id[whole & (star_id != "")])
        return cls(
            id=rows["id"],
            star_id=star_id,
            place=(mean - coverage.label_centre) / coverage.label_scale,
            error=error / coverage.label_scale,
            snr=rows["snr"],
            flags=rows["flags"],
            labelled=known | model.split.is_known(survey.stars),
            training=coverage.reference_labels,
            simulated=survey.simulated,
        )

    def __len__(self) -> int:
        return len(self.id)

    def rows(self, chosen: AnyArray) -> Census:
        """Return the census of some stars, by mask or row numbers."""
        own = ("id", "star_id", "place", "error", "snr", "flags", "labelled")
        return replace(self, **{name: getattr(self, name)[chosen] for name in own})

    def shares(self) -> dict[str, float]:
        """Share of stars with each flag that occurs, by its name, largest first."""
        found = {str(flag.name): float(np.mean((self.flags & flag) != 0)) for flag in Flag}
        ranked = sorted(found.items(), key=lambda item: -item[1])
        return {name: share for name, share in ranked if share > 0}

    @property
    def warned(self) -> float:
        """Share of stars with any warning flag."""
        return float(warned(self.flags).mean())

    def useless(self) -> dict[str, BoolArray]:
        """Stars (n_star,) that are never suggested, by reason; each star has at most one."""
        reasons: dict[str, BoolArray] = {_LABELLED: self.labelled}
        reasons |= {flag.text: np.asarray((self.flags & flag) != 0) for flag in USELESS}
        predicted = np.isfinite(self.place + self.error).all(axis=1)
        reasons["no predicted labels"] = np.asarray(~predicted, dtype=np.bool_)
        left: BoolArray = np.ones(len(self), dtype=np.bool_)
        found: dict[str, BoolArray] = {}
        for reason, there in reasons.items():
            found[reason] = there & left
            left &= ~there
        # Last, since which spectrum of a star is best depends on which of them are of use at all.
        found[_TWICE] = left & ~_best_spectra(self.star_id, self.snr, left)
        return {reason: there for reason, there in found.items() if there.any()}


def _best_spectra(star_id: StrArray, snr: Float64Array, left: BoolArray) -> BoolArray:
    """Whether each row is, of the rows `left` of its star, the one with the highest S/N."""
    rows = np.flatnonzero(left)
    # Stable, so that of equal S/N the first row of the survey is taken, on any machine.
    ranked = rows[np.argsort(-np.nan_to_num(snr[rows], nan=-1.0), kind="stable")]
    _, first = np.unique(star_id[ranked], return_index=True)
    best = np.zeros(len(star_id), dtype=np.bool_)
    best[ranked[first]] = True
    return np.asarray(best | (star_id == ""))


def _predict(
    predictor: Predictor, survey: Survey, progress: Progress | None
) -> dict[str, AnyArray]:
    """Labels, errors, and what else a census needs of the catalogue of the whole survey."""
    pairs = ((label.name, label.error_name) for label in predictor.model.labels)
    needed = ("id", "snr", "flags", *chain.from_iterable(pairs))
    parts: list[dict[str, AnyArray]] = []
    for start in range(0, max(len(survey), 1), _BATCH):
        batch = survey.batch(start, min(start + _BATCH, len(survey)))
        rows = predictor.predict(batch)
        parts.append({name: rows[name] for name in needed})
        if progress is not None:
            progress(start + len(batch), len(survey))
    return {name: np.concatenate([part[name] for part in parts]) for name in needed}


def _coverage(model: Model) -> CoverageModel:
    if "coverage" not in model.attachments:
        raise ConfigError(
            f"{model.path} has not learnt what its training sample covers; train a model of the "
            "preset maury, on enough stars"
        )
    return CoverageModel.from_arrays(model.arrays("coverage"))
