"""Small survey stores for tests, changed at will."""

from pathlib import Path

import numpy as np

from maury.spectra.batch import Batch
from maury.spectra.spectra import Spectra
from maury.survey.store import Survey, SurveyWriter


def copy_survey(source: Path, target: Path, *, drop=(), rows=None, flux=None, ivar=None, **columns):
    """Write `source` again as `target`, with other values or without some columns."""
    survey = Survey.open(source)
    batch = survey.rows(np.arange(len(survey)) if rows is None else rows)
    values = {k: v.copy() for k, v in batch.columns.items() if k not in drop}
    values |= columns
    with SurveyWriter(
        target,
        n_star=len(batch),
        wave_aa=survey.wave_aa,
        medium=survey.medium,
        columns=[name for name in values if name not in ("id", "star_id")],
        simulated=survey.simulated,
        labels=survey.label_definitions,
        resolving_power=survey.resolving_power,
        noise_correlation=survey.noise_correlation,
        at_rest=survey.at_rest,
    ) as writer:
        writer.write(
            0,
            batch.spectra.flux if flux is None else flux(batch.spectra.flux.copy()),
            batch.spectra.ivar if ivar is None else ivar(batch.spectra.ivar.copy()),
            **values,
        )
    return target


def changed(batch, *, flux=None, ivar=None, without=(), **columns):
    """Return a batch with other spectra or columns, or without some columns."""
    spectra = Spectra.from_arrays(
        batch.spectra.wave_aa,
        batch.spectra.flux if flux is None else flux,
        batch.spectra.ivar if ivar is None else ivar,
        medium=batch.spectra.medium,
    )
    kept = {name: values for name, values in batch.columns.items() if name not in without}
    return Batch(spectra, kept | {name: np.asarray(v) for name, v in columns.items()})
