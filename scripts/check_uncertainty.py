"""Measure whether the labels of trained models can be trusted, on stars that they kept out.

    python scripts/check_uncertainty.py SURVEY.zarr MODEL [MODEL ...] [--baseline MODEL ...]

Prints, with the held-out stars of all models pooled: residual scatter, over that of baseline
models trained on the same stars; coverage of the quoted errors, overall and in cells of S/N,
giant or dwarf, and [M/H] (with simulated spectra of the held-out stars added until each cell has
1000); what one missing band costs; and how well each injected fault is told from the clean stars.
"""

import argparse
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from maury.errors import ColumnError
from maury.evaluation.library import Library
from maury.evaluation.pool import Pool
from maury.evaluation.stress_lines import FAULTS, Scene
from maury.evaluation.validation import held_out_rows
from maury.io.arrays import BoolArray, Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import WARNING_MASK
from maury.labels.statistics import robust_sigma
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.prediction.streaming import Predictor, predict_rows
from maury.prediction.uncertainty import REOBSERVED, UncertaintyModel, simulated_stars
from maury.spectra.batch import Batch
from maury.survey.store import Survey

CELL_STARS = 1000
GROUP_SPECTRA = 4000
"""Simulated of the held-out stars of each group, by each model."""
DETECTOR = {
    "radial velocity wrong by 50-300 km/s": "rv_shift_kms",
    "Ca II emission of 0.4-1.5 A": "emission",
    "double lines, light ratio 0.5-1": "sb2",
    "continuum off by 2-8 %": "continuum",
    "photometry of another star": "disagreement",
}


def cells(pool: Pool) -> Int64Array:
    """Return the number of each star's cell: 3 of S/N x 4 groups."""
    return np.asarray(4 * np.digitize(pool.snr, [40.0, 70.0]) + group(pool.truth))


def group(truth: Float64Array) -> Int64Array:
    """Return the number of each star's group: giant or dwarf x [M/H] above or below -0.4."""
    return np.asarray(2 * (truth[:, 1] > 3.5) + (truth[:, 2] < -0.4), dtype=np.int64)


def held_out(model: Model, survey: Survey) -> Pool:
    """Pool of the held-out stars of one model."""
    rows = held_out_rows(model, survey)
    table = predict_rows(model, survey, rows)
    truth = survey.labels(LABEL_NAMES)[rows]
    return Pool.of(table, truth, labels=LABEL_NAMES, star=survey.star_id[rows])


def simulated(model: Model, survey: Survey, seed: int) -> Pool:
    """Pool of simulated spectra of the held-out stars of one model, as many of each group.

    They have the labels and observables of these stars, which the model has not met, and noise,
    velocity, broadening and other abundances of their own.
    """
    network = EnsembleNetwork(model)
    uncertainty = UncertaintyModel.load(model, network)
    assert uncertainty is not None, "the model has no calibration"
    rows = held_out_rows(model, survey)
    known, star = survey.labels(LABEL_NAMES)[rows], survey.star_id[rows]
    observables = model.preparation.apply(survey.rows(rows)).observables
    parts = []
    for number in range(4):
        own = group(known) == number
        if own.sum() < 2:
            continue
        draw = np.random.SeedSequence(1000 + seed, spawn_key=(number,))
        seen = observables[own, : uncertainty.star_simulator.observables.shape[1]]
        star_simulator = uncertainty.star_simulator.of(known[own], seen.astype(np.float64))
        inputs, truth = simulated_stars(
            model, star_simulator, GROUP_SPECTRA, seed=draw, draw=REOBSERVED
        )
        answer = network.predict(inputs)
        found = uncertainty.assess(inputs, answer)
        nearest = np.abs(truth[:, None, :3] - known[own][:, :3]).sum(axis=2).argmin(axis=1)
        held = (found.quantiles[0] < truth) & (truth < found.quantiles[-1])
        parts.append(
            Pool(found.mean - truth, found.sigma, held, truth, inputs.snr, star[own][nearest])
        )
    return Pool.join(parts)


def filled(pool: Pool, spare: Pool) -> list[Pool]:
    """Return the stars of each of the 12 cells, with spare ones added up to `CELL_STARS`."""
    spare = spare.rows(np.random.default_rng(0).permutation(len(spare.snr)))
    mine, theirs = cells(pool), cells(spare)
    found = []
    for cell in range(12):
        real, extra = pool.rows(mine == cell), spare.rows(theirs == cell)
        need = max(CELL_STARS - len(real.snr), 0)
        found.append(Pool.join([real, extra.rows(np.arange(len(extra.snr)) < need)]))
    return found


def show_scatter(pool: Pool, baseline: Pool | None) -> None:
    """Print scatter and coverage over all stars."""
    print("(rank corr.: of |residual| and error; then what perfect errors of this size would give)")
    head = "label       rms  slope  ratio   1 sigma %  2 sigma %  q02-q98 %  robust z    rank corr."
    rng = np.random.default_rng(0)
    perfect = np.abs(rng.standard_normal((200, len(pool.snr))))
    number = pool.numbers()
    n_star = int(number.max()) + 1
    weights = rng.multinomial(n_star, np.full(n_star, 1 / n_star), 200)
    draws = [np.repeat(np.arange(number.size), w[number]) for w in weights]
    print(head)
    shares = [pool.share(w) for w in (pool.inside(1.0), pool.inside(2.0), pool.held)]
    for k, name in enumerate(LABEL_NAMES):
        r, e, t = pool.residual[:, k], pool.error[:, k], pool.truth[:, k]
        rms = np.sqrt(np.mean(r**2))
        ratio = np.nan
        if baseline is not None:
            ratio = rms / np.sqrt(np.nanmean(baseline.residual[:, k] ** 2))
        slope = np.polyfit(t, t + r, 1)[0]
        rank = float(spearmanr(np.abs(r), e).statistic)
        best = float(np.mean([spearmanr(draw * e, e).statistic for draw in perfect]))
        z = r / e
        spread = np.std([robust_sigma(z[draw]) for draw in draws])
        print(
            f"{name:8s} {rms:8.4f}  {slope:.2f}   {ratio:.3f}  "
            + "".join(f"{100 * held[k]:5.1f}+-{100 * error[k]:.1f}  " for held, error in shares)
            + f" {robust_sigma(z):.2f}+-{spread:.2f}   {rank:.2f} {best:.2f}"
        )


def show_cells(pool: Pool, filled: list[Pool]) -> None:
    """Print the coverage of each cell."""
    print(f"\n1 sigma coverage (%) per cell; simulated spectra fill each up to {CELL_STARS};")
    print("below, its sampling error (each star one draw)")
    print("S/N      kind   [M/H]    n held out  " + " ".join(f"{n:>8s}" for n in LABEL_NAMES))
    kinds, within, explained = ("giant", "dwarf"), 0, 0
    n_held_out = np.bincount(cells(pool), minlength=len(filled))
    for cell, both in enumerate(filled):
        depth, dwarf, poor = ("< 40", "40-70", "> 70")[cell // 4], cell // 2 % 2, cell % 2
        cover, error = both.share(both.inside(1.0))
        print(
            f"{depth:6s}  {kinds[dwarf]:6s} {'< -0.4' if poor else '>= -0.4':8s} "
            f"{n_held_out[cell]:5d}/{len(both.snr):5d}  "
            + " ".join(f"{100 * c:8.1f}" for c in cover)
        )
        n_star = f"{np.unique(both.star).size} stars"
        print(f"{n_star:>36s}  " + " ".join(f"{100 * c:8.1f}" for c in error))
        within += int((np.abs(cover - 0.683) < 0.05).sum())
        explained += int((np.abs(cover - 0.683) < 0.05 + error).sum())
    print(
        f"within 5 points: {within} of {9 * len(filled)}; "
        f"within 5 points and a sampling error: {explained}"
    )


def show_missing(models: list[Model], survey: Survey) -> None:
    """Print what missing inputs cost."""
    print("\nrms with inputs missing, over that with all of them (held-out stars pooled);")
    print("below, the sampling error of the ratio (bootstrap)")
    print("without      " + " ".join(f"{n:>8s}" for n in LABEL_NAMES))
    cases = (
        "G",
        "BP",
        "RP",
        "J",
        "H",
        "Ks",
        "W1",
        "W2",
        "a_v",
        "parallax",
        "photometry",
        "spectrum",
    )
    whole = _squares(models, survey, ())
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(whole), len(whole)) for _ in range(200)]
    for case in cases:
        less = _squares(models, survey, (case,))
        spread = np.std([_ratio(less[draw], whole[draw]) for draw in draws], axis=0)
        print(f"{case:12s} " + " ".join(f"{r:8.3f}" for r in _ratio(less, whole)))
        print(f"{'':12s} " + " ".join(f"{r:8.3f}" for r in spread))


def _ratio(less: Float64Array, whole: Float64Array) -> Float64Array:
    return np.asarray(np.sqrt(np.nanmean(less, axis=0) / np.nanmean(whole, axis=0)))


def _squares(models: list[Model], survey: Survey, without: tuple[str, ...]) -> Float64Array:
    """Squared residuals of the held-out stars of all models, (n, 9)."""
    squares = []
    for model in models:
        rows = held_out_rows(model, survey)
        table = predict_rows(model, survey, rows, without=without)
        mean = np.column_stack([table[n] for n in LABEL_NAMES])
        squares.append((mean - survey.labels(LABEL_NAMES)[rows]) ** 2)
    return np.concatenate(squares)


def show_faults(models: list[Model], survey: Survey) -> None:
    """Print how well injected faults are told from clean stars, by their own detector."""
    print("\ninjected faults in held-out stars: area under the ROC, and share warned of")
    warned, scores = {}, {}
    for number, model in enumerate(models):
        rng = np.random.default_rng(number)
        rows = held_out_rows(model, survey)
        batch, predictor = survey.rows(rows[survey.column("parallax")[rows] > 0]), Predictor(model)
        scene = Scene(partial(Library.of, survey), rng)
        stars = {}
        for name, change in FAULTS.items():
            # A window without the lines that a fault is about.
            with suppress(ColumnError):
                stars[name] = change(batch, scene)
        for name, changed in {"clean stars": batch, **stars}.items():
            excess, warn = scored(predictor, changed)
            warned.setdefault(name, []).append(warn)
            scores.setdefault(name, []).append(excess)
    for name, parts in warned.items():
        share = 100 * np.concatenate(parts).mean()
        roc = ""
        if detector := DETECTOR.get(name):
            good, bad = (
                np.concatenate([part[detector] for part in scores[which]])
                for which in ("clean stars", name)
            )
            roc = f"{area(good, bad):.3f}"
        print(f"{name:38s} {roc:6s} {share:5.1f} %")


def scored(predictor: Predictor, batch: Batch) -> tuple[dict[str, Float64Array], BoolArray]:
    """Return how far each score of each star is over its threshold, and whether it is warned of."""
    assert isinstance(predictor.labeller, UncertaintyModel), "the model has no coverage"
    excess = predictor.labeller.excess(*predictor.bare(batch))
    flags = predictor.predict(batch)["flags"]
    return excess, (flags & WARNING_MASK) != 0


def area(good: Float64Array, bad: Float64Array) -> float:
    """Area under the ROC: chance that a faulty star scores above a clean one."""
    ranks = np.argsort(np.argsort(np.r_[good, bad], kind="stable"), kind="stable") + 1
    above = ranks[good.size :].sum() - bad.size * (bad.size + 1) / 2
    return float(above / (good.size * bad.size))


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--baseline", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    survey = Survey.open(arguments.survey)
    models = [Model.open(path) for path in arguments.models]
    print(f"{'SIMULATED spectra: ' if survey.simulated else ''}{survey.path.name}")
    pool = Pool.join([held_out(model, survey) for model in models])
    baseline = [held_out(Model.open(path), survey) for path in arguments.baseline]
    print(f"\n{len(pool.snr)} held-out spectra of all models pooled")
    show_scatter(pool, Pool.join(baseline) if baseline else None)
    spare = Pool.join([simulated(model, survey, k) for k, model in enumerate(models)])
    full = filled(pool, spare)
    print(f"\nthe same with simulated spectra of them added, {CELL_STARS} in each cell below")
    show_scatter(Pool.join(full), None)
    show_cells(pool, full)
    show_missing(models, survey)
    show_faults(models, survey)
    return 0


if __name__ == "__main__":
    sys.exit(main())
