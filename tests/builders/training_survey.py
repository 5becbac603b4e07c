"""A small survey of made-up spectra whose labels can be learnt, for tests of training."""

import numpy as np

from maury.labels.columns import BANDS
from maury.survey.store import Survey, SurveyWriter

WAVE = 8420.0 + 0.4 * np.arange(64)
LABELS = ("teff", "logg")


def write_survey(path, n=240, seed=0, resolving_power=None, **changes):
    """Write a survey of `n` spectra of n / 2 stars; `changes` replace columns."""
    rng = np.random.default_rng(seed)
    star = np.arange(n) // 2
    u, v = rng.random((2, n // 2 + 1))[:, star]
    teff, logg = 4000 + 3000 * u, 1 + 3 * v
    depth = np.exp(-0.5 * ((np.arange(64) - 20) / 3.0) ** 2) * u[:, None]
    depth += np.exp(-0.5 * ((np.arange(64) - 45) / 4.0) ** 2) * v[:, None]
    flux = 1 - 0.6 * depth + rng.normal(0, 0.01, (n, 64))
    columns = {
        "id": [f"s{k}" for k in range(n)],
        "star_id": [f"star{k}" for k in star],
        "snr": np.full(n, 100.0),
        "teff": teff,
        "logg": logg,
        "parallax": 1.0 + u,
        "a_v": 0.1 + 0.2 * v,
    }
    columns |= {band.column: 8.0 + 2 * v + 0.1 * k for k, band in enumerate(BANDS)}
    columns |= changes
    with SurveyWriter(
        path,
        n_star=n,
        wave_aa=WAVE,
        medium="air",
        columns=[name for name in columns if name not in ("id", "star_id", "flux", "ivar")],
        simulated=True,
        resolving_power=resolving_power,
    ) as writer:
        writer.write(
            0,
            columns.pop("flux", flux),
            columns.pop("ivar", np.full_like(flux, 1e4)),
            **columns,
        )
    return Survey.open(path)
