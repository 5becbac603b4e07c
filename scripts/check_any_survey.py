"""Compare a model with simple regressions on the held-out stars of any survey.

    python scripts/check_any_survey.py SURVEY.zarr MODEL [MODEL ...] [--seed N]

A ridge regression on 150 principal components of the spectra and the observables, and boosted trees
on 40 and the observables, are trained on the training and validation stars of the first model, and
all are asked for its test stars. Printed are the rms of each label, the ratio to the better of the
two with its sampling error (bootstrap over stars), that of each further model to the first, shares
within one quoted error and between the 2.3 and 97.7 % quantiles, and the shares of stars off by
more than three quoted errors in any label and not warned of, and warned of. The ridge constant is
chosen on the validation stars.
"""

import argparse

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from maury.model.directory import Model
from maury.prediction.predictor import Predictor
from maury.survey.store import Survey

RIDGES = (0.1, 1.0, 10.0, 100.0)
N_BOOTSTRAP = 500


def regressions(survey, model, seed):
    """Rms predictions of ridge and trees for the test stars: two arrays (n_test, n_label)."""
    part = {p: model.split.contains(p, survey.star_id) for p in ("train", "validation", "test")}
    batch = survey.rows(np.arange(len(survey)))
    inputs = model.preparation.apply(batch)
    good = inputs.ivar > 0
    known = part["train"]
    mean = np.where(good[known], inputs.flux[known], 0).sum(axis=0) / good[known].sum(axis=0)
    flux = np.where(good, inputs.flux - mean, 0.0)
    basis = np.linalg.svd(flux[known], full_matrices=False)[2][:150]
    score = flux @ basis.T
    observables = inputs.observables[:, ~model.preparation.observable_map.is_error]
    observables = observables.astype(np.float64)
    middle = np.nanmedian(observables[known], axis=0)
    filled = np.where(np.isfinite(observables), observables, middle)
    columns = np.hstack([score, filled])
    columns = (columns - columns[known].mean(axis=0)) / columns[known].std(axis=0)
    design = np.column_stack([np.ones(len(columns)), columns])
    truth, test = survey.labels(model.labels), part["test"]
    out = np.full((2, int(test.sum()), truth.shape[1]), np.nan)
    for k in range(truth.shape[1]):
        there = np.isfinite(truth[:, k])

        def solved(rows, ridge, k=k):
            penalty = np.r_[0.0, np.full(design.shape[1] - 1, ridge)]
            normal = design[rows].T @ design[rows] + np.diag(penalty)
            return np.linalg.solve(normal, design[rows].T @ truth[rows, k])

        check = part["validation"] & there
        tried = [design[check] @ solved(known & there, r) - truth[check, k] for r in RIDGES]
        best = RIDGES[int(np.argmin([np.mean(one**2) for one in tried]))]
        rows = (known | part["validation"]) & there
        out[0, :, k] = design[test] @ solved(rows, best)
        trees = HistGradientBoostingRegressor(max_iter=300, learning_rate=0.05, random_state=seed)
        few = np.hstack([score[:, :40], observables])
        out[1, :, k] = trees.fit(few[rows], truth[rows, k]).predict(few[test])
    return out, truth[test], np.flatnonzero(test)


def rms(residual):
    """Root mean square over stars (n_label,), missing ones left out."""
    return np.sqrt(np.nanmean(residual**2, axis=0))


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    survey, first = Survey.open(arguments.survey), Model.open(arguments.models[0])
    (ridge, trees), truth, rows = regressions(survey, first, arguments.seed)
    names = first.label_names
    kind = "SIMULATED " if survey.simulated else ""
    print(f"{kind}{survey.path.name}: {rows.size} held-out stars")
    print(f"{'rms':24}" + "".join(f"{name:>9}" for name in names))
    for title, one in (("ridge", ridge), ("boosted trees", trees)):
        print(f"{title:24}" + "".join(f"{x:9.4g}" for x in rms(one - truth)))
    rng = np.random.default_rng(arguments.seed)
    draws = rng.integers(0, rows.size, (N_BOOTSTRAP, rows.size))
    batch, before = survey.rows(rows), None
    for path in arguments.models:
        model = Model.open(path)
        found = Predictor(model).predict(batch)
        mean = np.stack([found[name] for name in names], axis=1)
        residual, error = mean - truth, np.stack([found[f"{n}_error"] for n in names], axis=1)
        rivals = np.minimum(rms(ridge - truth), rms(trees - truth))
        use_ridge = rms(ridge - truth) <= rms(trees - truth)
        other = np.where(use_ridge, ridge, trees) - truth
        ratio = np.array([rms(residual[d]) / rms(other[d]) for d in draws])
        print(f"{path:24}" + "".join(f"{x:9.4g}" for x in rms(residual)))
        print(f"{'  over the better':24}" + "".join(f"{x:9.3f}" for x in rms(residual) / rivals))
        print(f"{'  +-':24}" + "".join(f"{x:9.3f}" for x in ratio.std(axis=0)))
        ok = np.isfinite(residual)
        if before is None:
            before = residual
        else:
            drawn = np.array([rms(residual[d]) / rms(before[d]) for d in draws])
            over = rms(residual) / rms(before)
            print(f"{'  over the first model':24}" + "".join(f"{x:9.3f}" for x in over))
            print(f"{'  +-':24}" + "".join(f"{x:9.3f}" for x in drawn.std(axis=0)))
            print(f"  mean {over.mean():.3f} +- {drawn.mean(axis=1).std():.3f}")
        inside = 100 * np.sum((np.abs(residual) < error) & ok, axis=0) / ok.sum(axis=0)
        print(f"{'  within one error, %':24}" + "".join(f"{x:9.1f}" for x in inside))
        if f"{names[0]}_q02" in found:
            low = np.stack([found[f"{n}_q02"] for n in names], axis=1)
            high = np.stack([found[f"{n}_q98"] for n in names], axis=1)
            within = 100 * np.sum((truth > low) & (truth < high), axis=0) / ok.sum(axis=0)
            print(f"{'  q02 to q98, %':24}" + "".join(f"{x:9.1f}" for x in within))
        off = (np.abs(residual) > 3 * error).any(axis=1)
        warned = np.asarray(found["warn"])
        means = (rms(residual) / rivals).mean(), ratio.mean(axis=1).std()
        print(
            f"  mean ratio {means[0]:.3f} +- {means[1]:.3f}; silently wrong "
            f"{100 * np.mean(off & ~warned):.1f} %, warned of {100 * np.mean(warned):.1f} %"
        )


if __name__ == "__main__":
    main()
