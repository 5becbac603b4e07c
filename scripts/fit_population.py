"""Fit the population that ships with maury to the RAVE x APOGEE training sample.

Usage: python scripts/fit_population.py REFERENCE [--figures DIRECTORY]

REFERENCE holds ``rave_like/`` (labels and parameters as released by Guiglion et al. 2020) and
``synthesis/synthetic_spectra.npz`` (nuisance labels). Prints the held-out likelihood by number of
components, and two-sample measures of real against simulated stars.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import save_file
from scipy.stats import ks_2samp
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import KFold, cross_val_predict

from maury.simulation import catalogues
from maury.simulation import population as pop
from maury.simulation.mixtures import Warp

OUTPUT = Path(__file__).parents[1] / "src/maury/simulation/data/population.safetensors"
COMPONENTS = (6, 8, 12, 16, 20, 24, 32)
REGULARISATION = 1e-4
TAIL_SHARES = (0.0, 0.5, 1.0)


def read_stars(reference: Path) -> dict[str, np.ndarray]:
    """Real stars, one row each: labels (n, 16), magnitudes (n, 8), parallax (n,), A_V (n,)."""
    labels = pd.read_csv(reference / "rave_like/training_sample_labels.csv")
    table = pd.read_csv(reference / "rave_like/training_sample_parameters.csv")
    table.columns = table.columns.str.strip()
    first = ~table.iloc[:, :9].duplicated().to_numpy()
    archive = np.load(reference / "synthesis/synthetic_spectra.npz", allow_pickle=False)
    row = {name: k for k, name in enumerate(archive["rave_obs_id"]) if name}
    nuisance = archive["labels"][[row[name] for name in labels.RAVE_OBS_ID[first]], 9:]
    values = table[first].to_numpy(float)
    return {
        "labels": np.column_stack([labels[first].iloc[:, 1:].to_numpy(float), nuisance]),
        "parallax": values[:, 0],
        "magnitudes": values[:, 1:9],
        "a_v": values[:, 9],
    }


def robust_polynomial(features: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Ridge regression with Cauchy weights: coefficients (n_feature, n_column)."""
    columns = []
    for y in values.T:
        weight = np.ones(y.size)
        for _ in range(10):
            normal = (features * weight[:, None]).T @ features
            ridge = 1e-4 * np.eye(len(normal)) * weight.sum()
            ridge[0, 0] = 0.0
            solution = np.linalg.solve(normal + ridge, (features * weight[:, None]).T @ y)
            residual = y - features @ solution
            sigma = 1.4826 * np.median(np.abs(residual))
            weight = 1.0 / (1.0 + (residual / (2.0 * sigma)) ** 2)
        columns.append(solution)
    return np.column_stack(columns)


def fit_warp(residual: np.ndarray) -> Warp:
    """Return the asinh warp of greatest normal likelihood, column by column."""
    centre = np.median(residual, axis=0)
    scale = 1.4826 * np.median(np.abs(residual - centre), axis=0)
    tails = []
    for u in ((residual - centre) / scale).T:
        score = []
        trials = (1e-3, 0.1, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
        for tail in trials:
            warped = np.arcsinh(tail * u) / tail
            jacobian = -0.5 * np.log1p((tail * u) ** 2).sum()
            score.append(jacobian - u.size * np.log(warped.std()))
        tails.append(trials[int(np.argmax(score))])
    return Warp(centre, scale, np.array(tails))


def conditional_score(mixture: GaussianMixture, values: np.ndarray, n_given: int) -> float:
    """Mean log density of the drawn columns given the first `n_given`."""
    joint = mixture.score(values)
    if n_given == 0:
        return joint
    part = GaussianMixture(mixture.n_components)
    part.weights_, part.means_ = mixture.weights_, mixture.means_[:, :n_given]
    part.covariances_ = mixture.covariances_[:, :n_given, :n_given]
    part.precisions_cholesky_ = np.array(
        [np.linalg.inv(np.linalg.cholesky(c)).T for c in part.covariances_]
    )
    return joint - part.score(values[:, :n_given])


def fitted_mixture(rows: np.ndarray, k: int) -> GaussianMixture:
    """Fit a mixture of `k` components to standardised rows."""
    return GaussianMixture(k, reg_covar=REGULARISATION, random_state=0, max_iter=200, n_init=2).fit(
        rows
    )


def held_out_scores(name: str, values: np.ndarray, n_given: int) -> dict[int, float]:
    """Return the held-out conditional log density per star, by number of components."""
    scale = values.std(axis=0)
    standard = (values - values.mean(axis=0)) / scale
    folds = list(KFold(4, shuffle=True, random_state=1).split(standard))
    scores = {
        k: float(
            np.mean(
                [
                    conditional_score(fitted_mixture(standard[a], k), standard[b], n_given)
                    for a, b in folds
                ]
            )
            - np.log(scale[n_given:]).sum()
        )
        for k in COMPONENTS
    }
    print(f"{name}: held-out log density", {k: round(s, 3) for k, s in scores.items()})
    return scores


def mixture_tensors(name: str, values: np.ndarray, k: int) -> dict[str, np.ndarray]:
    """Fit a mixture of `k` components to all stars; its tensors."""
    centre, scale = values.mean(axis=0), values.std(axis=0)
    mixture = fitted_mixture((values - centre) / scale, k)
    print(f"{name}: {k} components")
    part = {
        "weights": mixture.weights_,
        "means": mixture.means_,
        "covariances": mixture.covariances_,
        "centre": centre,
        "scale": scale,
    }
    return {f"{name}.{key}": array for key, array in part.items()}


def fit_residuals(name: str, given: np.ndarray, raw: np.ndarray) -> dict[str, np.ndarray]:
    """Fit warp and mixture of residuals given other columns, both by held-out likelihood."""
    full = fit_warp(raw)
    best: tuple[float, int, pop.Warp] | None = None
    for share in TAIL_SHARES:
        warp = pop.Warp(full.centre, full.scale, np.maximum(share * full.tail, 1e-3))
        slope = warp.scale * np.sqrt(1.0 + (warp.tail * (raw - warp.centre) / warp.scale) ** 2)
        jacobian = -np.log(slope).sum(axis=1).mean()
        values = np.column_stack([given, warp.warp(raw)])
        for k, score in held_out_scores(f"{name}, {share} warp", values, given.shape[1]).items():
            if best is None or score + jacobian > best[0]:
                best = (score + jacobian, k, warp)
    assert best is not None
    _, k, warp = best
    print(f"{name}: tails {warp.tail}")
    limits = {f"{name}.limits": np.array([raw.min(axis=0), raw.max(axis=0)])}
    values = np.column_stack([given, warp.warp(raw)])
    return mixture_tensors(name, values, k) | warp_tensors(name, warp) | limits


def split_columns(stars: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the columns that the chain of mixtures draws."""
    teff, logg, m_h, fe_h, alpha, si, al, mg, ni = stars["labels"][:, :9].T
    log_parallax = np.log10(stars["parallax"])
    absolute_ks = stars["magnitudes"][:, 5] + 5.0 * (log_parallax - 2.0)
    latent = pop.latent_from_a_v(stars["a_v"])
    zero = stars["a_v"] <= 0
    low = latent[~zero & (latent < 1.0)]
    rate = low.size / zero.sum()
    latent[zero] = -np.random.default_rng(0).exponential(1.0 / rate, zero.sum())
    return {
        "core": np.column_stack([5040.0 / teff, logg, m_h, alpha]),
        "distance": np.column_stack([log_parallax, latent]),
        "absolute_ks": absolute_ks[:, None],
        "colours": catalogues.colours_from_magnitudes(stars["magnitudes"]),
        "abundances": np.column_stack([fe_h - m_h, si - alpha, al - alpha, mg - alpha, ni]),
    }


def warp_tensors(name: str, warp: pop.Warp) -> dict[str, np.ndarray]:
    """Return a warp's parameters under the names that `Population` reads."""
    return {f"{name}.warp_{key}": getattr(warp, key) for key in ("centre", "scale", "tail")}


def fit(stars: dict[str, np.ndarray], designed_bounds: np.ndarray) -> dict[str, np.ndarray]:
    """All tensors of the population."""
    part = split_columns(stars)
    core = part["core"]
    limits = np.array([core.min(axis=0), core.max(axis=0)])
    tensors = {
        "core_limits": limits,
        "core_bounds": core_bounds(designed_bounds),
        "label_bounds": designed_bounds,
    }
    features = pop.core_features(core, limits)
    photometry = pop.photometry_features(features, stars["a_v"])
    scores = held_out_scores("core", core, 0)
    tensors |= mixture_tensors("core", core, max(scores, key=lambda k: scores[k]))
    extinction = part["distance"]
    scores = held_out_scores("extinction", np.column_stack([core, extinction]), 4)
    best = max(scores, key=lambda k: scores[k])
    tensors |= mixture_tensors("extinction", np.column_stack([core, extinction]), best)
    tensors["extinction.limits"] = np.array([extinction.min(axis=0), extinction.max(axis=0)])
    residual = {}
    for name, base in (
        ("absolute_ks", photometry),
        ("colours", photometry),
        ("abundances", features),
    ):
        tensors[f"{name}.polynomial"] = robust_polynomial(base, part[name])
        residual[name] = part[name] - base @ tensors[f"{name}.polynomial"]
    given = np.column_stack([core, extinction])
    tensors |= fit_residuals("absolute_ks", given, residual["absolute_ks"])
    given = np.column_stack([core, extinction[:, 1], residual["absolute_ks"]])
    tensors |= fit_residuals("colours", given, residual["colours"])
    tensors |= fit_residuals("abundances", core, residual["abundances"])
    vmic = robust_polynomial(features, stars["labels"][:, 9:10])
    offsets = stars["labels"][:, 10:]
    return tensors | {
        "vmic.polynomial": vmic,
        "vmic.sigma": np.std(stars["labels"][:, 9] - (features @ vmic)[:, 0]),
        "offsets.mean": offsets.mean(axis=0),
        "offsets.sigma": offsets.std(axis=0),
    }


def core_bounds(bounds: np.ndarray) -> np.ndarray:
    """Bounds of the core columns from those of the labels."""
    low, high = bounds
    return np.array(
        [[5040.0 / high[0], low[1], low[2], low[4]], [5040.0 / low[0], high[1], high[2], high[4]]]
    )


def features_for_test(stars: dict[str, np.ndarray]) -> np.ndarray:
    """Labels, vmic, colours, M_Ks, parallax and A_V, in contrasts that a classifier can use."""
    part = split_columns(stars)
    return np.column_stack(
        [
            part["core"],
            part["abundances"],
            stars["labels"][:, 9],
            np.log10(stars["parallax"]),
            stars["a_v"],
            part["absolute_ks"],
            part["colours"],
        ]
    )


def compare(real: dict[str, np.ndarray], simulated: dict[str, np.ndarray]) -> None:
    """Print marginal KS statistics, the largest difference of rank correlations, and C2ST AUCs."""
    a, b = features_for_test(real), features_for_test(simulated)
    names = [*pop.CORE, *pop.ABUNDANCES, "vmic", "log_parallax", "a_v", "M_Ks", *pop.COLOURS]
    statistics = {n: ks_2samp(x, y).statistic for n, x, y in zip(names, a.T, b.T, strict=True)}
    print("KS statistic:", {n: round(float(s), 3) for n, s in statistics.items()})
    ranks = [pd.DataFrame(x).corr("spearman").to_numpy() for x in (a, b)]
    difference = np.abs(ranks[0] - ranks[1])
    worst = np.unravel_index(difference.argmax(), difference.shape)
    print(
        f"largest rank-correlation difference {difference.max():.3f} "
        f"({names[worst[0]]}, {names[worst[1]]}); median {np.median(difference):.3f}"
    )
    for title, stop in (("core", 4), ("labels", 10), ("all", len(names))):
        print(f"classifier two-sample AUC, {title}: {two_sample_auc(a[:, :stop], b[:, :stop]):.3f}")


def two_sample_auc(a: np.ndarray, b: np.ndarray) -> float:
    """Cross-validated AUC of gradient-boosted trees: 0.5 where the samples are alike."""
    values, truth = np.concatenate([a, b]), np.repeat([0, 1], [len(a), len(b)])
    score = cross_val_predict(
        HistGradientBoostingClassifier(max_iter=150, random_state=0),
        values,
        truth,
        cv=KFold(5, shuffle=True, random_state=0),
        method="predict_proba",
    )
    return float(roc_auc_score(truth, score[:, 1]))


def as_dict(stars: pop.Stars) -> dict[str, np.ndarray]:
    """Return simulated stars in the form of `read_stars`."""
    return {
        "labels": stars.labels,
        "parallax": stars.parallax_mas,
        "magnitudes": stars.magnitudes,
        "a_v": stars.a_v,
    }


def draw(samples: dict[str, dict[str, np.ndarray]], directory: Path) -> None:
    """Draw Kiel, alpha, colour-magnitude and extinction diagrams, one column per sample."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        5,
        len(samples),
        figsize=(6 * len(samples), 26),
        sharex="row",
        sharey="row",
        layout="constrained",
    )
    style = {"s": 3, "alpha": 0.6, "cmap": "viridis"}
    for axis, (name, s) in zip(axes.T, samples.items(), strict=True):
        teff, logg, m_h, fe_h, alpha, _, al_fe, mg_fe, _ = s["labels"][:, :9].T
        part = split_columns(s)
        absolute_g = s["magnitudes"][:, 0] + 5.0 * (np.log10(np.abs(s["parallax"])) - 2.0)
        axis[0].scatter(teff, logg, c=m_h, vmin=-1.2, vmax=0.4, **style)
        axis[0].set(title=name, xlabel="Teff [K]", ylabel="log g", xlim=(7500, 3500), ylim=(5.2, 0))
        axis[1].scatter(m_h, alpha, c=logg, **style)
        axis[1].set(xlabel="[M/H]", ylabel="[alpha/M]", xlim=(-2.1, 0.6), ylim=(-0.2, 0.5))
        axis[2].scatter(part["colours"][:, 1], absolute_g, c=teff, **style)
        axis[2].set(xlabel="BP-RP", ylabel="M_G", xlim=(0.2, 3.2), ylim=(11, -4))
        axis[3].scatter(fe_h, mg_fe, c=al_fe, vmin=-0.3, vmax=0.4, **style)
        axis[3].set(xlabel="[Fe/H]", ylabel="[Mg/Fe]", xlim=(-2.1, 0.6), ylim=(-0.4, 0.6))
        axis[4].scatter(
            s["magnitudes"][:, 0], np.log10(np.abs(s["parallax"])), c=s["a_v"], vmax=1.0, **style
        )
        axis[4].set(xlabel="G", ylabel="log parallax")
    figure.savefig(directory / "population.png", dpi=70)


def main() -> None:
    """Fit, write, compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path)
    parser.add_argument("--figures", type=Path)
    arguments = parser.parse_args()
    real = read_stars(arguments.reference)
    archive = np.load(arguments.reference / "synthesis/synthetic_spectra.npz", allow_pickle=False)
    bounds = np.array([archive["labels"].min(axis=0), archive["labels"].max(axis=0)], float)
    tensors = {k: np.ascontiguousarray(v, np.float32) for k, v in fit(real, bounds).items()}
    metadata = {
        "citation": "Guiglion et al. 2020, A&A 644, A168",
        "n_star": str(len(real["a_v"])),
        "core": ", ".join(pop.CORE),
        "colours": ", ".join(pop.COLOURS),
        "abundances": ", ".join(pop.ABUNDANCES),
        "labels": ", ".join(pop.ALL_NAMES),
    }
    OUTPUT.parent.mkdir(exist_ok=True)
    save_file(tensors, OUTPUT, metadata)
    print(f"{OUTPUT.name}: {OUTPUT.stat().st_size} bytes")
    rng = np.random.default_rng(5)
    population = pop.Population(tensors, metadata)
    simulated = as_dict(population.sample(len(real["a_v"]), rng))
    compare(real, simulated)
    if arguments.figures:
        arguments.figures.mkdir(parents=True, exist_ok=True)
        observed = as_dict(population.sample(len(real["a_v"]), rng, selection=pop.OBSERVED))
        draw(
            {"real": real, "simulated": simulated, "simulated, observed": observed},
            arguments.figures,
        )


if __name__ == "__main__":
    main()
