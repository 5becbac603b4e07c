"""The labelled rows of a survey, read once and prepared once for all that a training does.

Training, calibration, drift, self-check, audit and card take their stars from one `LabelledSample`.
"""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import IdentifierError
from maury.io.arrays import AnyArray, BoolArray, Int64Array
from maury.io.tables import open_table
from maury.spectra.batch import Batch
from maury.spectra.preparation import Inputs, Preparation, join_inputs, take
from maury.spectra.spectra import Spectra
from maury.spectra.star_identity import plain_identifiers
from maury.survey.store import Survey

__all__ = ["LabelledSample", "labelled_rows", "listed_rows"]

_READ_ROWS = 2048
"""Rows prepared at a time: two chunks of a store, some 15 MB of spectra; chosen, not measured."""


@dataclass(frozen=True, eq=False)
class LabelledSample:
    """Some rows of a survey, prepared.

    Attributes
    ----------
    survey : Survey
        Labels, identifiers and other columns of all its rows.
    preparation : Preparation
    rows : (n,) int64
        Row numbers, increasing.
    inputs : Inputs
        Of these rows.
    """

    survey: Survey
    preparation: Preparation
    rows: Int64Array
    inputs: Inputs

    @classmethod
    def read(cls, survey: Survey, preparation: Preparation, rows: Int64Array) -> Self:
        """Read and prepare rows of a survey.

        Parameters
        ----------
        survey : Survey
        preparation : Preparation
        rows : (n,) int64
            Row numbers, increasing.

        Raises
        ------
        GridMismatch, ColumnError, SurveyFileError
            If the survey does not fit the preparation, or cannot be read.
        """
        parts = []
        for start in range(0, max(len(survey), 1), _READ_ROWS):
            chosen = rows[(rows >= start) & (rows < start + _READ_ROWS)]
            if chosen.size:
                batch = survey.batch(start, min(start + _READ_ROWS, len(survey)))
                parts.append(preparation.apply(batch[chosen - start]))
        return cls(survey, preparation, rows, join_inputs(parts or [_none(survey, preparation)]))

    def prepared(self, rows: Int64Array) -> Inputs:
        """Return some rows (n,) of the survey, by row number, prepared."""
        return take(self.inputs, self.positions(rows))

    def positions(self, rows: Int64Array) -> Int64Array:
        """Return where in `inputs` rows (n,) of the survey are."""
        found = np.searchsorted(self.rows, rows)
        assert np.array_equal(self.rows.take(found, mode="clip"), rows), "rows of the sample"
        return np.asarray(found, dtype=np.int64)

    def batch(self, rows: Int64Array) -> Batch:
        """Return the columns of some rows (n,) of the survey, with their prepared spectra."""
        inputs = self.prepared(rows)
        columns = {name: self.survey.column(name)[rows] for name in self.survey.column_names}
        spectra = Spectra(inputs.wave_aa, inputs.flux, inputs.ivar, inputs.medium)
        return Batch(spectra, MappingProxyType(columns))

    def without(self, rows: Int64Array, hide: Callable[[Batch], Batch]) -> Inputs:
        """Return some rows (n,) of the survey without a part of their inputs.

        Parameters
        ----------
        rows : (n,) int64
        hide : callable
            Takes columns, or the spectra, out of a batch of prepared spectra. No spectral step
            reads what it may take, so that observables alone are measured again.
        """
        measured_again = self.preparation.model_copy(update={"steps": ()})
        return measured_again.apply(hide(self.batch(rows)))


def labelled_rows(star_id: AnyArray, labelled: ArrayLike) -> Int64Array:
    """Return rows with labels, and other rows of the same stars.

    A spectrum without labels of a star that has some on another tells how spectra of one star
    scatter.

    Parameters
    ----------
    star_id : (n,) str
        Empty where unknown.
    labelled : (n,) bool
    """
    labelled = np.asarray(labelled, dtype=np.bool_)
    # As a split knows stars: one catalogue may write the same identifier in two ways.
    star_id = plain_identifiers(np.asarray(star_id))
    same = (star_id != "") & np.isin(star_id, star_id[labelled])
    return np.flatnonzero(labelled | same)


def listed_rows(survey: Survey, path: Path | str | None) -> BoolArray:
    """Return the rows (n_star,) of a survey whose stars a table lists by a spectrum of theirs.

    Parameters
    ----------
    survey : Survey
    path : path-like or None
        Table with the column ``id``, of any format that ingest reads; None lists nothing.

    Raises
    ------
    InputFileError, ColumnError
        If the file cannot be read, or has no such column.
    IdentifierError
        If it lists spectra that the survey has not.
    """
    if path is None:
        return np.zeros(len(survey), dtype=np.bool_)
    with ExitStack() as stack:
        wanted = open_table(Path(path), stack).texts("id")
    unknown = np.setdiff1d(wanted, survey.id)
    if unknown.size:
        raise IdentifierError(
            f"{path} lists {unknown.size} spectra that {survey.path} has not, such as "
            f"{str(unknown[0])!r}; give a list that was made of this survey"
        )
    listed = np.isin(survey.id, wanted)
    # A label belongs to the star, so that one bad spectrum of it casts doubt on all.
    star_id = plain_identifiers(survey.star_id)
    return np.asarray(listed | ((star_id != "") & np.isin(star_id, star_id[listed])))


def _none(survey: Survey, preparation: Preparation) -> Inputs:
    """Return inputs without a row, on the grid that the survey has when prepared."""
    return preparation.apply(survey.batch(0, 0))
