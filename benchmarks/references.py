"""Does a second reference survey help? Simulated stars, labels of two surveys, a plain method.

    python benchmarks/references.py

The first survey has few stars and small errors; the second many stars, larger errors, and offsets
that depend on Teff, log g and [Fe/H]. They share some stars. The same method learns from the first
alone, from both as they are, and from both with the offsets taken off; the simulated truth of other
stars tells which is best. Everything is simulated.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import maury
from maury.labels.definitions import LABEL_NAMES
from maury.prediction.streaming import predict_rows
from maury.simulation.surveys import LABEL_ERRORS
from maury.survey.assembly.offsets import ReferenceLabels, fit_offsets, merge
from maury.survey.store import Survey, SurveyWriter

SHOWN = ("teff", "logg", "fe_h", "mg_fe")
OFFSETS = {"teff": -60.0, "logg": 0.10, "m_h": 0.08, "fe_h": 0.08, "mg_fe": -0.04}
SLOPES = {"teff": ("teff", 40.0), "logg": ("logg", 0.04), "fe_h": ("fe_h", -0.08)}
SCATTER = {"teff": 40.0, "logg": 0.06, "m_h": 0.03, "fe_h": 0.03, "mg_fe": 0.03}


def references(survey, n_first, n_common, n_both, rng):
    """Labels of two surveys for the first `n_both` stars."""
    truth = np.column_stack([survey.column(f"true_{name}") for name in LABEL_NAMES])[:n_both]
    errors = np.array([LABEL_ERRORS[name] for name in LABEL_NAMES])
    middle, unit = np.median(truth, axis=0), np.array([1000.0] + [1.0] * 8)
    x = {name: (truth[:, k] - middle[k]) / unit[k] for k, name in enumerate(LABEL_NAMES)}
    offset = np.zeros_like(truth)
    for k, name in enumerate(LABEL_NAMES):
        offset[:, k] = OFFSETS.get(name, 0.0)
        if name in SLOPES:
            term, slope = SLOPES[name]
            offset[:, k] += slope * x[term]
    scatter = np.array([SCATTER.get(name, 0.0) for name in LABEL_NAMES])
    one = truth + errors * rng.normal(size=truth.shape)
    two = truth + offset + np.hypot(3 * errors, scatter) * rng.normal(size=truth.shape)
    one[n_first:] = np.nan
    two[: n_first - n_common] = np.nan
    first = ReferenceLabels("first", LABEL_NAMES, one, errors * np.ones_like(one))
    return first, ReferenceLabels("second", LABEL_NAMES, two, 3 * errors * np.ones_like(two))


def write(path, survey, rows, labels):
    """Write some stars with these labels."""
    batch = survey.rows(rows)
    columns = {k: v for k, v in batch.columns.items() if k not in LABEL_NAMES}
    columns |= {name: labels.values[:, k] for k, name in enumerate(LABEL_NAMES)}
    columns |= {f"{name}_error": labels.errors[:, k] for k, name in enumerate(LABEL_NAMES)}
    with SurveyWriter(
        path,
        n_star=len(batch),
        wave_aa=survey.wave_aa,
        medium=survey.medium,
        columns=[name for name in columns if name not in ("id", "star_id")],
        simulated=True,
        resolving_power=survey.resolving_power,
        noise_correlation=survey.noise_correlation,
    ) as writer:
        writer.write(0, batch.spectra.flux, batch.spectra.ivar, **columns)
    return path


def main() -> None:
    """Print robust scatter and bias against the simulated truth."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--first", type=int, default=150)
    parser.add_argument("--second", type=int, default=600)
    parser.add_argument("--common", type=int, default=80)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--method", default="cannon")
    asked = parser.parse_args()
    n_both = asked.first + asked.second - asked.common
    found: dict[str, list[np.ndarray]] = {}
    for seed in range(asked.runs):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            survey = maury.simulate_survey(
                folder / "all.zarr", n_star=n_both + asked.test, seed=seed
            )
            rng = np.random.default_rng(seed)
            first, second = references(survey, asked.first, asked.common, n_both, rng)
            offsets = fit_offsets(first, second, terms=("teff", "logg", "fe_h"))
            samples = {
                "first alone": (np.arange(asked.first), first),
                "both, as they are": (np.arange(n_both), merge([first, second], {}).labels),
                "both, offsets off": (
                    np.arange(n_both),
                    merge([first, second], {"second": offsets}).labels,
                ),
            }
            test = write(
                folder / "test.zarr",
                survey,
                np.arange(n_both, len(survey)),
                ReferenceLabels(
                    "none", LABEL_NAMES, np.full((asked.test, 9), np.nan), np.ones((asked.test, 9))
                ),
            )
            for title, (rows, labels) in samples.items():
                chosen = ReferenceLabels("x", LABEL_NAMES, labels.values[rows], labels.errors[rows])
                slug = title.split(",")[-1].strip().replace(" ", "-")
                store = write(folder / f"{slug}.zarr", survey, rows, chosen)
                model = maury.train(store, folder / f"{slug}.model", method=asked.method, seed=0)
                answer = predict_rows(model, test, np.arange(asked.test))
                residual = np.column_stack(
                    [answer[name] - Survey.open(test).column(f"true_{name}") for name in SHOWN]
                )
                middle = np.nanmedian(residual, axis=0)
                width = 1.4826 * np.nanmedian(np.abs(residual - middle), axis=0)
                found.setdefault(title, []).append(np.array([middle, width]))
    print(
        f"{asked.method}, {asked.runs} runs: {asked.first} + {asked.second} stars, "
        f"{asked.common} in common, {asked.test} test stars, all simulated"
    )
    print(f"{'':20}" + "".join(f"{name:>22}" for name in SHOWN))
    for title, values in found.items():
        bias, width = np.median(np.array(values), axis=0)
        cells = "".join(f"{b:+12.3f} ~ {w:7.3f}" for b, w in zip(bias, width, strict=True))
        print(f"{title:20}{cells}")


if __name__ == "__main__":
    main()
