"""Several surveys with stars in common: which rows are of one star, and labels on one scale.

Where two surveys label the same stars, the offset between their labels is fitted and taken off the
later one's (`maury.survey.assembly.offsets`). A star that only one of them labels lends its labels
to its spectra in the others.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

import numpy as np

from maury.errors import ConfigError, TrainingError
from maury.io.arrays import AnyArray, Float64Array, Int64Array
from maury.spectra.star_identity import shared_stars
from maury.survey.assembly.offsets import Offsets, ReferenceLabels, fit_offsets
from maury.survey.store import Survey

__all__ = ["CommonStars"]

logger = logging.getLogger(__name__)

_EQUAL = 1e-6
"""Relative difference of labels below which two surveys have them from one table, so that there is
no offset to fit: float32 keeps 1e-7."""


@dataclass(frozen=True, eq=False)
class CommonStars:
    """Surveys whose stars are known by one number, with labels on the scale of the first.

    Attributes
    ----------
    surveys : mapping of str to Survey
        With labels on one scale, and those that a star has in another survey.
    star : mapping of str to (n_row,) int64
        Number of the star of each row.
    offsets : mapping of str to Offsets
        Of each survey whose labels were moved.
    lent : mapping of str to int
        Spectra of each survey that took a label from another one.
    """

    surveys: Mapping[str, Survey]
    star: Mapping[str, Int64Array]
    offsets: Mapping[str, Offsets]
    lent: Mapping[str, int]

    @classmethod
    def of(cls, surveys: Mapping[str, Survey]) -> Self:
        """Find the stars that surveys have in common, and put their labels on one scale.

        Parameters
        ----------
        surveys : mapping of str to Survey
            The first sets the scale.

        Raises
        ------
        ConfigError
            If a label has another unit in two surveys.
        """
        _check_units(surveys)
        numbers = shared_stars([survey.stars for survey in surveys.values()])
        star = dict(zip(surveys, numbers, strict=True))
        n_star = 1 + max((int(one.max(initial=-1)) for one in numbers), default=-1)
        scale: ReferenceLabels | None = None
        tables: dict[str, ReferenceLabels] = {}
        offsets: dict[str, Offsets] = {}
        for name, survey in surveys.items():
            own = _by_star(name, survey, star[name], n_star)
            if scale is not None and (found := _offsets(scale, own)) is not None:
                offsets[name] = found
                own = _moved(own, found)
            tables[name] = own
            scale = own if scale is None else _joined(scale, own)
        assert scale is not None, "there are surveys"
        lent, shown = {}, {}
        for name, survey in surveys.items():
            columns, lent[name] = _columns(survey, star[name], tables[name], scale)
            shown[name] = survey.with_columns(columns)
        return cls(shown, star, offsets, lent)

    def shared(self, first: str, second: str) -> Int64Array:
        """Numbers of the stars that two surveys saw."""
        return np.intersect1d(self.star[first], self.star[second])


def _check_units(surveys: Mapping[str, Survey]) -> None:
    units: dict[str, tuple[str, str]] = {}
    for name, survey in surveys.items():
        for label in survey.label_definitions:
            other, unit = units.setdefault(label.name, (name, label.unit))
            if unit != label.unit:
                raise ConfigError(
                    f"{label.name} is in {unit or 'no unit'} in {other} and in "
                    f"{label.unit or 'no unit'} in {name}; ingest both with the same unit"
                )


def _by_star(name: str, survey: Survey, star: Int64Array, n_star: int) -> ReferenceLabels:
    """Mean labels of each star (n_star,) in a survey; NaN of stars that it does not have."""
    names = survey.label_names
    values = _mean_by_star(survey.labels(list(names)), star, n_star)
    errors = _mean_by_star(survey.label_errors(list(names)), star, n_star)
    return ReferenceLabels(name, names, values, errors)


def _mean_by_star(table: Float64Array, star: Int64Array, n_star: int) -> Float64Array:
    out = np.full((n_star, table.shape[1]), np.nan)
    for k, column in enumerate(table.T):
        known = np.isfinite(column)
        count = np.bincount(star[known], minlength=n_star)
        total = np.bincount(star[known], column[known], minlength=n_star)
        np.divide(total, count, out=out[:, k], where=count > 0)
    return out


def _offsets(scale: ReferenceLabels, own: ReferenceLabels) -> Offsets | None:
    """Offsets of a survey's labels, or None where none can be fitted or there are none."""
    shared = [n for n in own.names if n in scale.names]
    differ = False
    for name in shared:
        one, two = scale.column(name)[0], own.column(name)[0]
        both = np.isfinite(one) & np.isfinite(two)
        apart = np.abs(one - two)[both] > _EQUAL * np.maximum(1.0, np.abs(one[both]))
        differ = differ or bool(apart.any())
    if not differ:
        return None
    try:
        found = fit_offsets(scale, own)
    except TrainingError as error:
        logger.warning("labels of %s are taken as they are: %s", own.survey, error)
        return None
    for line in found.rows():
        logger.info("%s", "  ".join(line))
    return found


def _moved(own: ReferenceLabels, offsets: Offsets) -> ReferenceLabels:
    """Labels with the fitted offsets taken off; those without one stay."""
    moved = offsets.apply(own)
    fitted = np.isin(own.names, [offset.label for offset in offsets.labels])
    return ReferenceLabels(
        own.survey,
        own.names,
        np.where(fitted, moved.values, own.values),
        np.where(fitted, moved.errors, own.errors),
    )


def _joined(scale: ReferenceLabels, own: ReferenceLabels) -> ReferenceLabels:
    """Labels of both, those of the first survey that has a star and label."""
    names = tuple(dict.fromkeys((*scale.names, *own.names)))
    values, errors = [], []
    for name in names:
        (one, one_error), (two, two_error) = scale.column(name), own.column(name)
        has = np.isfinite(one)
        values.append(np.where(has, one, two))
        errors.append(np.where(has, one_error, two_error))
    shape = (len(names), len(scale.values))
    # Surveys without labels have none to stack.
    columns = (np.reshape(one, shape).T for one in (values, errors))
    return ReferenceLabels(scale.survey, names, *columns)


def _columns(
    survey: Survey, star: Int64Array, own: ReferenceLabels, scale: ReferenceLabels
) -> tuple[dict[str, AnyArray], int]:
    """Columns of labels and errors of a survey, and the spectra that took one from another."""
    stored = survey.labels(list(own.names))
    limited = np.isfinite(survey.upper_limits(list(own.names)))
    # What a label was moved by is that of its star: repeats keep their differences.
    shift = own.values - _mean_by_star(stored, star, len(own.values))
    columns: dict[str, AnyArray] = {}
    took = np.zeros(len(star), dtype=np.bool_)
    for k, name in enumerate(own.names):
        mine = stored[:, k] + np.nan_to_num(shift[star, k])
        theirs, error = scale.column(name)
        takes = np.isnan(mine) & np.isfinite(theirs[star]) & ~limited[:, k]
        if not takes.any() and not np.nan_to_num(shift[:, k]).any():
            continue
        took |= takes
        raw = np.asarray(survey.column(name), dtype=np.float64)
        columns[name] = np.where(takes, theirs[star], np.where(limited[:, k], raw, mine))
        # An error of the survey's own stays, but where its label was moved or is another's.
        own_error = own.errors[star, k]
        columns[f"{name}_error"] = np.where(takes, error[star], own_error)
    return columns, int(took.sum())
