"""How many wrong cross-matches `maury suspects` finds, and how many good stars it doubts.

Usage: python scripts/check_suspects.py MODEL SURVEY [--share 0.02] [--seed 0]

Labels of some stars of SURVEY are exchanged among them, in a copy of the store. MODEL, which may
be trained on such a copy (--keep writes one), lists its suspects.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from builders.surveys import copy_survey
from maury.evaluation.suspects import find_suspects
from maury.survey.store import Survey

TWIN = {"teff": 150.0, "logg": 0.25, "m_h": 0.1}
"""Stars as alike as this nothing could tell apart."""


def exchanged(source: Path, target: Path, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Write a copy with exchanged labels; return the rows of these, and which are of twins."""
    survey = Survey.open(source)
    star, first = np.unique(survey.star_id, return_index=True)
    chosen = np.random.default_rng(seed).choice(star.size, round(share * star.size), replace=False)
    donor = dict(zip(star[chosen], first[np.roll(chosen, 1)], strict=True))
    rows = np.flatnonzero(np.isin(survey.star_id, star[chosen]))
    given = np.array([donor[name] for name in survey.star_id[rows]])
    columns = {}
    for name in survey.label_names:
        for column in {name, f"{name}_error"} & set(survey.column_names):
            columns[column] = survey.column(column).copy()
            columns[column][rows] = survey.column(column)[given]
    copy_survey(source, target, **columns)
    apart = [abs(columns[n][rows] - survey.column(n)[rows]) < most for n, most in TWIN.items()]
    return rows, np.all(apart, axis=0)


def main() -> None:
    """Print shares at several thresholds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("survey", type=Path)
    parser.add_argument("--share", type=float, default=0.02)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="write the copy here, and list nothing")
    given = parser.parse_args()
    if given.keep:
        exchanged(given.survey, given.keep, given.share, given.seed)
        return
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "exchanged.zarr"
        rows, twin = exchanged(given.survey, copy, given.share, given.seed)
        found = find_suspects(given.model, copy, n_sigma=3.0)
    far = np.zeros(found.n_star)
    far[found.row] = found.n_sigma
    wrong = np.isin(np.arange(found.n_star), rows)
    print(f"{rows.size} spectra with labels of another star, {twin.sum()} of them of a twin")
    for threshold in (4.0, 5.0, 6.0):
        over = far > threshold
        print(
            f"{threshold:g}: found {over[rows].mean():.3f}, without twins "
            f"{over[rows[~twin]].mean():.3f}, false alarms {over[~wrong].mean():.4f}"
        )
    listed = found.n_sigma > 5.0
    right = np.char.startswith(found.reason[listed & wrong[found.row]], "wrong cross-match")
    print(f"of those found at 5, {right.mean():.2f} have the reason 'wrong cross-match'")


if __name__ == "__main__":
    main()
