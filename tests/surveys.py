"""Small survey stores for tests, changed at will."""

from pathlib import Path

import numpy as np

from maury.survey import Survey, SurveyWriter


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
    ) as writer:
        writer.write(
            0,
            batch.spectra.flux if flux is None else flux(batch.spectra.flux.copy()),
            batch.spectra.ivar if ivar is None else ivar(batch.spectra.ivar.copy()),
            **values,
        )
    return target
