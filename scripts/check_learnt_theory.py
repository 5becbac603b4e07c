"""Ask, in a minute and without a network, how much a theory learnt from labelled stars tells.

    python scripts/check_learnt_theory.py SURVEY.zarr [--synthetic FILE] [--stars N] [--seed N]

A theory is learnt from three quarters of the training stars; the others and the validation stars
are fitted with it (maximum a posteriori: labels, with a prior by their observables, and modes).
Printed are the rms of each label, and chi-square per pixel at the true labels and at the nearest
spectrum of these. Where the emulator knows the labels and reaches over the pixels, it is calibrated
on the same stars and fitted with the same modes, and ratios to it are printed. No test star is
used, and none that lacks a label.
"""

import argparse

import numpy as np
from scipy.linalg import cho_solve_banded
from sklearn.ensemble import HistGradientBoostingRegressor

from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.synthetic_library import SyntheticLibrary
from maury.model.split import held_out_fold, split_rows
from maury.simulation.bound import correlation_factor
from maury.simulation.learnt_theory import LearntTheory, Synthetic
from maury.simulation.training_stars import TrainingStarSimulator
from maury.survey.store import Survey
from maury.training.settings import resolve

ROUNDS, BLOCK, STEP, FLOOR, SPIKE, CLIP = 4, 32, 0.05, 0.05, 6.0, 6.0


def slopes(flux, labels, scale, low, high):
    """Return derivatives (n_star, n_label, n_pixel) of a theory, within the range of its stars."""
    out = []
    for k, size in enumerate(scale):
        step = STEP * size * np.eye(len(scale))[k]
        upper, lower = (np.clip(labels + sign * step, low, high) for sign in (1, -1))
        width = np.maximum(upper[:, k] - lower[:, k], 1e-9)
        out.append((flux(upper).astype(float) - flux(lower)) / width[:, None])
    return np.stack(out, axis=1)


def fitted(flux, modes, stars, prior, theory, correlation):
    """Labels (n_star, n_label) of greatest posterior, from those that observables tell."""
    spectra, ivar, guess = stars
    good, n_label = ivar > 0, guess.shape[1]
    low, high = (x[:n_label] for x in (theory.lowest, theory.highest))
    factor = correlation_factor(correlation, spectra.shape[1])
    signal = np.sqrt(np.where(good, ivar, np.nan) * np.maximum(spectra, FLOOR))
    snr = np.nanmedian(signal, axis=1)[:, None]
    found, inverse = np.clip(guess, low, high), np.linalg.inv(prior)
    for _ in range(ROUNDS):
        for start in range(0, len(found), BLOCK):
            rows = slice(start, start + BLOCK)
            expected = flux(found[rows]).astype(float)
            sigma = np.sqrt(np.maximum(expected, FLOOR)) / snr[rows]
            residual = np.where(good[rows], spectra[rows] - expected, 0.0) / sigma
            used = good[rows] & (np.abs(residual) < SPIKE)
            own = slopes(flux, found[rows], theory.scale[:n_label], low, high)
            both = np.concatenate([own, np.repeat(modes[None], len(own), axis=0)], axis=1)
            both = np.where(used[:, None], both / sigma[:, None], 0.0)
            flat = cho_solve_banded((factor, True), both.reshape(-1, both.shape[2]).T)
            weighted = flat.T.reshape(both.shape)
            precision = np.eye(both.shape[1])
            precision[:n_label, :n_label] = inverse
            right = np.einsum("nkp,np->nk", weighted, np.where(used, residual, 0.0))
            right[:, :n_label] += (guess[rows] - found[rows]) @ inverse
            system = weighted @ both.transpose(0, 2, 1) + precision
            step = np.linalg.solve(system, right[..., None])[:, :n_label, 0]
            # A linear step beyond what the prior allows is no step.
            most = 2.0 * np.sqrt(np.diag(prior))
            found[rows] = np.clip(found[rows] + np.clip(step, -most, most), low, high)
    return found


def by_observables(observables, labels, others):
    """Labels that observables tell of others, and the covariance of what they leave open."""

    def trees(rows, target, asked):
        model = HistGradientBoostingRegressor(max_iter=80, max_leaf_nodes=12, random_state=0)
        return model.fit(observables[rows], target[rows]).predict(asked)

    half = np.arange(len(labels)) % 2 == 0
    guess, left = np.empty((len(others), labels.shape[1])), np.empty(labels.shape)
    for k, target in enumerate(labels.T):
        guess[:, k] = trees(slice(None), target, others)
        for own in (half, ~half):
            left[own, k] = target[own] - trees(~own, target, observables[own])
    return guess, np.cov(left.T).reshape((labels.shape[1],) * 2)


def parts_of(survey, settings, seed, most):
    """Yield inputs and labels of the stars to learn from, and of those to ask."""
    labels = survey.labels(survey.label_names)
    whole = np.flatnonzero(np.isfinite(labels).all(axis=1))
    split = split_rows(survey.star_id[whole], config=settings.split, seed=seed)
    train, check = whole[split.train], whole[split.validation]
    fold = held_out_fold(survey.star_id[train], n_fold=4, seed=seed)
    others = np.sort(np.concatenate([train[fold == 0], check]))
    others = others[np.linspace(0, others.size - 1, min(most, others.size)).astype(int)]
    for rows in (train[fold != 0], others):
        inputs = settings.preparation.apply(survey.rows(rows))
        seen = (inputs.ivar > 0).any(axis=1)
        columns = inputs.observables[:, ~settings.preparation.observable_map.is_error]
        yield inputs, labels[rows], columns.astype(float), seen


def main():
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey")
    parser.add_argument("--synthetic")
    parser.add_argument("--stars", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    survey = Survey.open(arguments.survey)
    names = tuple(survey.label_names)
    settings = resolve(None, preset=None, members=None, split=None).seen_in(survey, theory="learnt")
    observing = settings.training.observing
    (inputs, truth, columns, seen), asked = parts_of(
        survey, settings, arguments.seed, arguments.stars
    )
    flux, ivar, truth, columns = (x[seen] for x in (inputs.flux, inputs.ivar, truth, columns))
    new, true, others = asked[0].flux[asked[3]], asked[1][asked[3]], asked[2][asked[3]]
    new_ivar = asked[0].ivar[asked[3]]
    synthetic = None
    if arguments.synthetic:
        power = observing.resolving_power
        library = SyntheticLibrary.read(
            arguments.synthetic, wave_aa=inputs.wave_aa, resolving_power=power
        )
        known, near = library.near(names, truth)
        synthetic = Synthetic(tuple(known), near.labels, near.flux)
    correlation = observing.correlation
    theory, _ = LearntTheory.fit(
        flux, ivar, labels=truth, names=names, noise_correlation=correlation, synthetic=synthetic
    )
    print(f"{'SIMULATED ' if survey.simulated else ''}{survey.path.name}: {len(flux)} stars learnt")
    print(f"from, {len(new)} asked; {len(theory.modes)} modes, {len(theory.powers)} terms")
    for title, model in (("labels", theory.typical(true)), ("nearest", None)):
        model = theory.seen(true, new, new_ivar) if model is None else model
        chi = np.clip((new - model) * np.sqrt(new_ivar), -CLIP, CLIP)[new_ivar > 0]
        print(f"chi-square per pixel, {title}: {np.mean(chi**2):.4f}")
    guess, prior = by_observables(columns, truth, others)
    kinds = {"learnt": theory.typical}
    if names == LABEL_NAMES:
        emulator = settings.seen_in(survey, theory="emulator").training.observing
        kinds["emulator"] = TrainingStarSimulator.fit(
            inputs.wave_aa,
            flux,
            ivar,
            labels=truth,
            observables=columns,
            observing=emulator,
            medium=inputs.medium,
        ).theory
    print(f"{'rms':12}" + "".join(f"{name:>9}" for name in names))
    rms = {}
    for kind, function in kinds.items():
        stars = (new, new_ivar, guess)
        found = fitted(function, theory.modes, stars, prior, theory, correlation)
        rms[kind] = np.sqrt(np.mean((found - true) ** 2, axis=0))
        print(f"{kind:12}" + "".join(f"{x:9.4g}" for x in rms[kind]))
    if "emulator" in rms:
        ratio = rms["learnt"] / rms["emulator"]
        print(f"{'ratio':12}" + "".join(f"{x:9.3f}" for x in ratio) + f"  mean {ratio.mean():.3f}")


if __name__ == "__main__":
    main()
