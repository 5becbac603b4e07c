"""Which labels are measured, and which are inferred from what stars are usually like.

A network may give a label that its spectrum says nothing of, because photometry and the other
labels go with it among the training stars. The audit measures, on stars that took no part in
training, how the scatter of each label grows without one input or another, and what it is when
the spectrum is that of another star, alike in everything but this label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from maury.evaluation.audit_report import (
    ALL,
    CONTROL,
    LEAST_GAIN,
    NO_DISTANCE,
    PHOTOMETRY,
    SHUFFLED,
    SPECTRUM,
    AuditReport,
    Case,
    LabelAudit,
    Verdict,
    audit_metadata,
)
from maury.evaluation.sensitivity import (
    STAR_TYPES,
    Sensitivity,
    can_compare,
    compare_with_optimal,
    nearest_to,
    sees_photometry,
)
from maury.evaluation.validation import STARS, held_out_rows
from maury.io.arrays import Float64Array, Int64Array, StrArray
from maury.labels.definitions import LABEL_NAMES, Label
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork, flux_gradient
from maury.prediction.streaming import hide
from maury.prediction.uncertainty import UncertaintyModel
from maury.simulation.observing import ObservingModel
from maury.simulation.training_stars import known_conditions
from maury.spectra.preparation import Inputs, take
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey

__all__ = ["WITHOUT", "alike", "audit", "audit_metadata", "bootstrap_scatter"]

Answering = Callable[[Inputs], Float64Array]

WITHOUT: Mapping[str, tuple[str, ...]] = {
    SPECTRUM: ("photometry",),
    PHOTOMETRY: ("spectrum",),
    NO_DISTANCE: ("parallax",),
    "without A_V": ("a_v",),
    "without Gaia": ("G", "BP", "RP"),
    "without 2MASS": ("J", "H", "Ks"),
    "without WISE": ("W1", "W2"),
}
"""Cases, and the inputs that are missing in each (as of `maury.prediction.streaming.WITHOUT`)."""

_MOST_ROWS, _MOST_DONORS = 2000, 10_000
_SAME = 0.98
"""Correlation above which one label is another one in different words ([M/H] and [Fe/H] of a
sample): kept fixed, it would leave the audited label no freedom."""
_NEAREST, _SEARCHED = 5, 24


def audit(
    model: Model | Path | str,
    survey: Survey | Path | str,
    *,
    split: str = "test",
    seed: int = 0,
    n_shuffle: int = 4,
    n_bootstrap: int = 500,
    network: EnsembleNetwork | None = None,
    sample: LabelledSample | None = None,
) -> AuditReport:
    """Measure what each label of a model is made of.

    Parameters
    ----------
    model, survey
        The model and a survey with labels, or their paths.
    split : {"test", "unseen", "validation", "train"}
        Which stars, as of `maury.evaluation.validation.validate`; of many, evenly chosen ones are
        taken.
    seed : int
        Of shuffling and bootstrap.
    n_shuffle : int
        Other spectra that each star gets for each label.
    n_bootstrap : int
        Resamples of the stars.
    network : EnsembleNetwork, optional
        That of the model, where it is loaded already.
    sample : LabelledSample, optional
        The labelled rows of the survey, where they are prepared already.

    Returns
    -------
    AuditReport

    Raises
    ------
    ColumnError, ConfigError
        As of `maury.evaluation.validation.validate`.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    rows = held_out_rows(model, survey, split=split)
    # 2000 spectra fix a scatter to 2 %; more would only cost time. Evenly chosen: surveys are
    # sorted by field or date.
    rows = rows[:: -(-rows.size // _MOST_ROWS)]
    rng = np.random.default_rng(seed)
    pool = _pool(model, survey, trained=split == "train")
    network = network or EnsembleNetwork(model)
    sample = sample or LabelledSample.read(survey, model.preparation, np.union1d(rows, pool))
    truth, inputs = survey.labels(model.labels)[rows], sample.prepared(rows)
    answer = _answering(model, network)
    means = {ALL: answer(inputs)}
    for name, without in _cases(model, network).items():
        hiding = partial(hide, without=without, further=model.preparation.further_sources)
        means[name] = answer(sample.without(rows, hiding))
    residuals = {name: _finite_only(mean - truth) for name, mean in means.items()}
    # A case that no star can be in (a network that needs the spectrum) is left out, not failed.
    residuals = {name: one for name, one in residuals.items() if np.isfinite(one).any()}
    numbers = _star_numbers(survey.star_id)
    star = numbers[rows]
    swap = _Swap(
        answer,
        inputs,
        truth,
        star,
        pool=sample.prepared(pool),
        pool_truth=survey.labels(model.labels)[pool],
        pool_star=numbers[pool],
        # Likeness is judged in units of what the model can tell apart at all.
        unit=np.array([_spread(one) or np.nan for one in residuals[ALL].T]),
        given=np.flatnonzero(np.isfinite(truth).any(axis=0)),
    )
    labels = tuple(
        _audit_label(label, k, residuals, swap, rng, (n_shuffle, n_bootstrap))
        for k, label in enumerate(model.labels)
    )
    return AuditReport(
        labels=labels,
        sensitivities=tuple(
            _sensitivities(network, inputs, truth, conditions=known_conditions(survey, model))
        ),
        simulated=survey.simulated,
        n_row=int(rows.size),
        n_star=int(np.unique(star).size),
        stars=STARS[split],
        model="" if model.path is None else Path(model.path).name,
        survey=survey.path.name,
        warning="" if split == "train" else model.split.warning,
        note=_note(model, residuals),
    )


def _answering(model: Model, network: EnsembleNetwork) -> Answering:
    """Return what gives the labels of the catalogue to prepared stars."""
    uncertainty = UncertaintyModel.load(model, network)

    def answer(inputs: Inputs) -> Float64Array:
        mean = network.predict(inputs).mean
        return mean if uncertainty is None else uncertainty.calibration.means(mean)

    return answer


def _cases(model: Model, network: EnsembleNetwork) -> dict[str, tuple[str, ...]]:
    """Cases that change what the networks see, and that they can answer."""
    if not sees_photometry(model):
        return {}
    sources = set(model.preparation.source_names)
    changed = {"photometry", "spectrum"} | sources
    return {
        name: without
        for name, without in WITHOUT.items()
        if changed.intersection(without) and not network.needs.intersection(without)
    }


def _pool(model: Model, survey: Survey, *, trained: bool) -> Int64Array:
    """Rows whose spectra are given to other stars: they trained the networks, or none of them did.

    Networks know the spectra that they were trained on too well.
    """
    labels = survey.labels(model.labels)
    known = np.isfinite(labels[:, np.isfinite(labels).any(axis=0)]).all(axis=1)
    # Donors must be as strange to the networks as the stars whose spectra they replace.
    rows = np.flatnonzero(known & (model.split.contains("train", survey.stars) == trained))
    return rows[:: max(1, -(-rows.size // _MOST_DONORS))]


def _note(model: Model, residuals: Mapping[str, Float64Array]) -> str:
    if PHOTOMETRY in residuals:
        return ""
    if not sees_photometry(model):
        reason = "takes no photometry"
    else:
        reason = "gives no labels without a spectrum"
    return (
        f"the network '{model.network['name']}' {reason}: the gain is that of spectra of like "
        "stars over shuffled spectra"
    )


def _sensitivities(
    network: EnsembleNetwork,
    inputs: Inputs,
    truth: Float64Array,
    *,
    conditions: ObservingModel | None,
) -> Iterator[Sensitivity]:
    model = network.model
    # The best linear estimator needs theory for every label and pixel of the model.
    if conditions is None or not can_compare(model):
        return
    columns = [model.label_names.index(name) for name in LABEL_NAMES]
    # Without an S/N there is no bound to compare with.
    labels = np.where(inputs.snr[:, None] > 0, truth[:, columns], np.nan)
    for star in STAR_TYPES:
        rows = nearest_to(star, labels)
        seen = take(inputs, rows)
        gradient = flux_gradient(model, seen, members=network.members)[:, columns]
        answered = np.isfinite(gradient).all(axis=(1, 2))
        rows, gradient = rows[answered], gradient[answered]
        if rows.size:
            yield compare_with_optimal(
                star,
                gradient,
                labels[rows],
                inputs.snr[rows],
                model=model,
                observing=conditions,
                noise_correlation=inputs.noise_correlation,
            )


def _finite_only(values: Float64Array) -> Float64Array:
    return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True, eq=False)
class _Swap:
    """Predictions with the spectra of other stars, and photometry of one's own.

    Donors are positions in a pool of stars, whose inputs, labels and numbers it holds. `unit` is
    what a difference of each label is measured in; `given` are the labels that are known at all.
    """

    answer: Answering
    inputs: Inputs
    truth: Float64Array
    star: Int64Array
    pool: Inputs
    pool_truth: Float64Array
    pool_star: Int64Array
    unit: Float64Array
    given: Int64Array

    def donors(self, columns: Int64Array, n: int, rng: np.random.Generator) -> Int64Array:
        """Draw stars (n_row, n) that are alike in some labels; -1 where there is none."""
        return alike(
            self.truth[:, columns] / self.unit[columns],
            self.pool_truth[:, columns] / self.unit[columns],
            star=self.star,
            pool_star=self.pool_star,
            n=n,
            rng=rng,
        )

    def apart(self, donors: Int64Array) -> Float64Array:
        """Labels (n_row, n, n_label) of the donors minus those of the stars; NaN without one."""
        if len(self.pool) == 0:
            return np.full((*donors.shape, self.truth.shape[1]), np.nan)
        apart = self.pool_truth[donors] - self.truth[:, None]
        return np.where((donors < 0)[:, :, None], np.nan, apart)

    def predict(self, donors: Int64Array) -> Float64Array:
        """Labels (n_row, n_label) with the spectra of the stars `donors` (n_row,)."""
        if len(self.pool) == 0:
            return np.full(self.truth.shape, np.nan)
        flux, ivar = self.pool.flux[donors], self.pool.ivar[donors]
        mean = self.answer(replace(self.inputs, flux=flux, ivar=ivar))
        return np.where((donors < 0)[:, None], np.nan, mean)


def alike(
    place: Float64Array,
    pool: Float64Array,
    *,
    star: Int64Array,
    pool_star: Int64Array,
    n: int,
    rng: np.random.Generator,
) -> Int64Array:
    """Draw other stars among the five nearest, or so, of a pool.

    Parameters
    ----------
    place : (n_row, n_axis) float64
        Where stars are; NaN where unknown.
    pool : (n_pool, n_axis) float64
        Where the stars of the pool are, finite.
    star, pool_star : (n_row,) and (n_pool,) int64
        Numbers of the stars; no star is drawn for itself.
    n : int
        Draws per star, without repetition as far as there are enough.
    rng : numpy Generator

    Returns
    -------
    (n_row, n) int64
        Positions in `pool`; -1 where there is none.
    """
    out = np.full((len(place), n), -1)
    usable = np.flatnonzero(np.isfinite(place).all(axis=1))
    if len(pool) == 0 or usable.size == 0:
        return out
    n_near = min(_SEARCHED, len(pool))
    # More neighbours than needed are asked for, since those of the star itself are struck out.
    _, near = cKDTree(pool).query(place[usable], k=np.arange(1, n_near + 1))
    wanted = max(n, _NEAREST)
    for row, found in zip(usable, near, strict=True):
        others = found[pool_star[found] != star[row]][:wanted]
        if others.size:
            out[row] = np.resize(rng.permutation(others), n)
    return out


def _audit_label(
    label: Label,
    k: int,
    residuals: Mapping[str, Float64Array],
    swap: _Swap,
    rng: np.random.Generator,
    sizes: tuple[int, int],
) -> LabelAudit:
    n_shuffle, n_bootstrap = sizes
    # Donors alike in everything but this label. The control draws donors alike in this one, too:
    # what swapping costs by itself.
    others = np.array([j for j in swap.given if not _repeats(swap.truth, k, j)], dtype=np.int64)
    donors = {
        SHUFFLED: swap.donors(others, n_shuffle, rng),
        CONTROL: swap.donors(swap.given, n_shuffle, rng),
    }
    columns = {name: one[:, k, None] for name, one in residuals.items()}
    for name, rows in donors.items():
        answers = np.stack([swap.predict(one)[:, k] for one in rows.T], axis=1)
        columns[name] = _finite_only(answers - swap.truth[:, k, None])
    apart = swap.apart(donors[SHUFFLED])
    moved = columns[SHUFFLED] - columns[ALL]
    columns = {name: one for name, one in columns.items() if np.isfinite(one).any()}
    used = np.full(len(swap.truth), bool(columns))
    # All cases on the same spectra: else a case that answers for the easy stars would win.
    for one in columns.values():
        used &= np.isfinite(one).all(axis=1)
    columns = {name: one[used] for name, one in columns.items()}
    draws = bootstrap_scatter(list(columns.values()), swap.star[used], n=n_bootstrap, rng=rng)
    cases = _case_table(columns, draws)
    response, response_error = _response(
        moved[used], apart[used][:, :, [k, *others]], swap.star[used]
    )
    gain, gain_error, basis, verdict = _verdict(cases, draws)
    return LabelAudit(
        name=label.name,
        symbol=label.symbol,
        unit=label.unit,
        n=int(used.sum()),
        cases=cases,
        basis=basis,
        gain=gain,
        gain_error=gain_error,
        verdict=verdict,
        response=response,
        response_error=response_error,
        donor_spread=_spread(apart[:, :, k]),
        donor_mismatch=_root_mean_square(apart[:, :, others] / swap.unit[others]),
    )


def _case_table(columns: Mapping[str, Float64Array], draws: Float64Array) -> dict[str, Case]:
    return {
        name: Case(
            name,
            float(np.mean(one)) if one.size else np.nan,
            float(np.std(one)) if one.size else np.nan,
            float(np.std(draws[:, position])),
        )
        for position, (name, one) in enumerate(columns.items())
    }


def _spread(values: Float64Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.std()) if known.size else np.nan


def _root_mean_square(values: Float64Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if known.size else np.nan


def _response(moved: Float64Array, apart: Float64Array, star: Int64Array) -> tuple[float, float]:
    """Slope of what an estimate moves by on the first label of what the spectra differ by.

    Parameters
    ----------
    moved : (n_row, n_repeat) float64
        Estimate with another star's spectrum minus that with its own.
    apart : (n_row, n_repeat, n_axis) float64
        Labels of the other star minus one's own.
    star : (n_row,) int64
        All rows of a star have one error in common.

    Returns
    -------
    float, float
        Least squares, and its error, which the residuals of each star tell (sandwich estimator).
    """
    n_axis = apart.shape[2]
    if moved.size <= 2 * n_axis:
        return np.nan, np.nan
    # In units of their spread, kelvins and dex are equally well conditioned.
    size = np.maximum(apart.reshape(-1, n_axis).std(axis=0), np.finfo(float).tiny)
    design = np.concatenate([np.ones((*moved.shape, 1)), apart / size], axis=2)
    flat = design.reshape(-1, n_axis + 1)
    inverse = np.linalg.pinv(flat.T @ flat)
    slopes = inverse @ (flat.T @ moved.ravel())
    pulls = np.einsum("nri,nr->ni", design, moved - design @ slopes)
    _, number = np.unique(star, return_inverse=True)
    # Repeats of a star share their error, so that it is its sum that is independent (clustered
    # sandwich estimator; Liang & Zeger 1986, Biometrika 73, 13).
    by_star = np.zeros((int(number.max()) + 1, n_axis + 1))
    np.add.at(by_star, number, pulls)
    errors = np.sqrt(np.diagonal(inverse @ (by_star.T @ by_star) @ inverse))
    return float(slopes[1] / size[0]), float(errors[1] / size[0])


def _repeats(truth: Float64Array, k: int, other: int) -> bool:
    """Whether another label is label `k`, or says the same among these stars."""
    both = truth[:, [k, other]]
    x, y = both[np.isfinite(both).all(axis=1)].T
    if k == other:
        return True
    varied = x.size > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    return bool(varied and abs(np.corrcoef(x, y)[0, 1]) > _SAME)


def bootstrap_scatter(
    residuals: list[Float64Array], star: Int64Array, *, n: int, rng: np.random.Generator
) -> Float64Array:
    """Return standard deviations of residuals of resampled stars.

    Parameters
    ----------
    residuals : list of (n_row, n_repeat) float64
        Of each case, finite.
    star : (n_row,) int64
        Star of each row; all rows of a star are drawn together, and the same in all cases.
    n : int
        Resamples.
    rng : numpy Generator

    Returns
    -------
    (n, n_case) float64
        NaN without a row.
    """
    if len(star) == 0:
        return np.full((n, len(residuals)), np.nan)
    _, number = np.unique(star, return_inverse=True)
    n_star = int(number.max()) + 1
    weight = rng.multinomial(n_star, np.full(n_star, 1.0 / n_star), size=n)[:, number]
    size = weight.sum(axis=1)
    mean = np.stack([weight @ one.mean(axis=1) / size for one in residuals], axis=1)
    square = np.stack([weight @ (one**2).mean(axis=1) / size for one in residuals], axis=1)
    return np.asarray(np.sqrt(np.maximum(square - mean**2, 0.0)))


def _verdict(cases: Mapping[str, Case], draws: Float64Array) -> tuple[float, float, str, Verdict]:
    """Gain, its error, the case with which was compared, and the verdict."""
    basis = PHOTOMETRY if PHOTOMETRY in cases else SHUFFLED
    better = ALL if basis == PHOTOMETRY else CONTROL
    if not {better, basis} <= cases.keys() or not cases[basis].scatter > 0:
        return np.nan, np.nan, basis, "unknown"
    names = list(cases)
    gain = 1.0 - cases[better].scatter / cases[basis].scatter
    below = draws[:, names.index(basis)]
    # A draw of few stars may have one star only, whose scatter is 0.
    ratio = draws[:, names.index(better)] / np.where(below > 0, below, np.nan)
    verdict: Verdict = "measured" if gain >= LEAST_GAIN else "inferred"
    return gain, float(np.nanstd(ratio)), basis, verdict


def _star_numbers(star_id: StrArray) -> Int64Array:
    """Give each star a number; a row without an identifier is a star of its own."""
    _, number = np.unique(star_id, return_inverse=True)
    blank = np.asarray(star_id) == ""
    return np.where(blank, number.size + np.arange(number.size), number)
