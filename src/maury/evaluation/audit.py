"""Which labels are measured, and which are inferred from what stars are usually like.

A network may give a label that its spectrum says nothing of, because photometry and the other
labels go with it among the training stars. The audit measures, on stars that took no part in
training, how the scatter of each label grows without one input or another, and what it is when
the spectrum is that of another star, alike in everything but this label.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from pydantic import ValidationError

from maury.errors import ModelFileError
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
    differences,
)
from maury.evaluation.sensitivity import (
    STAR_TYPES,
    TYPICAL,
    Sensitivity,
    best_estimator,
    compare_with_optimal,
    nearest_to,
    sees_photometry,
    star_types,
)
from maury.evaluation.swaps import (
    Output,
    Swap,
    bootstrap_scatter,
    finite_only,
    repeats,
    response,
    spread,
)
from maury.evaluation.validation import STARS, held_out_rows
from maury.io.arrays import BoolArray, Float64Array, Int64Array, StrArray
from maury.labels.definitions import Label
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork, flux_gradient
from maury.prediction.streaming import hide
from maury.prediction.uncertainty import UncertaintyModel
from maury.simulation.conditions import known_conditions
from maury.simulation.observing import ObservingModel
from maury.simulation.surveys import Simulation, simulate_survey
from maury.spectra.absent import absent_sources
from maury.spectra.preparation import Inputs, take
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey

__all__ = ["WITHOUT", "audit", "audit_metadata"]


WITHOUT: Mapping[str, tuple[str, ...]] = {
    SPECTRUM: ("photometry",),
    PHOTOMETRY: ("spectrum",),
    NO_DISTANCE: ("parallax",),
    "without A_V": ("a_v",),
    "without Gaia": ("G", "BP", "RP"),
    "without 2MASS": ("J", "H", "Ks"),
    "without WISE": ("W1", "W2"),
}
"""Cases, and the inputs that are hidden in each, as ``maury predict --without`` names them."""

_MOST_ROWS, _MOST_DONORS = 2000, 10_000
_LEAST_ALONE = 0.9
"""Share of stars that must have a group of further columns for it to be looked at alone: scatters
are compared on stars that have all cases; chosen."""
_NO_LABELS = (
    "{} has no labels: the stars are simulated on its pixels, as those that trained the model, and "
    "have the inputs that its stars have"
)


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
        Which stars: those that the model's split held out, those that it knows nothing of, those
        that chose its networks or calibrate their errors, or those that trained them. Of many,
        evenly chosen ones are taken.
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

    Notes
    -----
    A model that theory alone trained (`maury train --theory-only`) is audited on a survey without
    labels, too: on simulated stars as it was trained on, of another seed, on the pixels of the
    survey and with the inputs that its stars have. The report is marked as of simulated spectra.

    Returns
    -------
    AuditReport

    Raises
    ------
    ColumnError
        If the survey has no values of any label of the model, and not theory alone trained it.
    ConfigError
        If the survey has no such stars.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    absent = absent_sources(model.preparation, survey.column_names, survey.column)
    sizes = (n_shuffle, n_bootstrap)
    if model.theory_only and not np.isfinite(survey.labels(model.labels)).any():
        with TemporaryDirectory(prefix="maury-") as folder:
            stars = _simulated(model, survey, Path(folder) / "simulated.zarr", seed)
            found = _audit(model, stars, "unseen", seed, sizes, network, None, absent)
        return replace(
            found,
            survey=survey.path.name,
            stars="simulated stars of another seed",
            remarks=(_NO_LABELS.format(survey.path.name), *found.remarks),
        )
    return _audit(model, survey, split, seed, sizes, network, sample, absent)


def _simulated(model: Model, survey: Survey, path: Path, seed: int) -> Survey:
    """Simulate stars like those that trained a model, on the pixels of a survey."""
    about = model.provenance.get("survey")
    known = about if isinstance(about, Mapping) else {}
    try:
        simulation = Simulation.model_validate(known.get("simulation"))
    except ValidationError as error:
        raise ModelFileError(
            f"{model.path} does not say how its stars were simulated; train it again"
        ) from error
    # With the seed of the training they would be the stars that trained it.
    own = seed + 1 if known.get("seed") == seed else seed
    return simulate_survey(path, n_star=_MOST_ROWS, seed=own, simulation=simulation, like=survey)


def _audit(
    model: Model,
    survey: Survey,
    split: str,
    seed: int,
    sizes: tuple[int, int],
    network: EnsembleNetwork | None,
    sample: LabelledSample | None,
    absent: tuple[str, ...],
) -> AuditReport:
    """Audit on the labelled stars of a survey, with `absent` sources counted as missing."""
    rows = held_out_rows(model, survey, split=split)
    # 2000 spectra fix a scatter to 2 %; more would only cost time. Evenly chosen: surveys are
    # sorted by field or date.
    rows = rows[:: -(-rows.size // _MOST_ROWS)]
    rng = np.random.default_rng(seed)
    pool = _pool(model, survey, trained=split == "train")
    network = network or EnsembleNetwork(model)
    sample = sample or LabelledSample.read(survey, model.preparation, np.union1d(rows, pool))
    seen = _Seen(model, sample, absent)
    truth, inputs = survey.labels(model.labels)[rows], seen.without(rows)
    output = _output_of(model, network)
    residuals = _residuals(output, network, seen, rows, truth)
    numbers = _star_numbers(survey.star_id)
    star = numbers[rows]
    swap = Swap(
        output,
        inputs,
        truth,
        star,
        pool=seen.without(pool),
        pool_truth=survey.labels(model.labels)[pool],
        pool_star=numbers[pool],
        # Likeness is judged in units of what the model can tell apart at all.
        unit=np.array([spread(one) or np.nan for one in residuals[ALL].T]),
        given=np.flatnonzero(np.isfinite(truth).any(axis=0)),
    )
    labels = tuple(
        _audit_label(label, k, residuals, swap, rng, sizes) for k, label in enumerate(model.labels)
    )
    sensitivities = tuple(
        _sensitivities(network, inputs, truth, conditions=known_conditions(survey, model))
    )
    report = AuditReport(
        labels=labels,
        sensitivities=sensitivities,
        simulated=survey.simulated,
        n_row=int(rows.size),
        n_star=int(np.unique(star).size),
        stars=STARS[split],
        model="" if model.path is None else Path(model.path).name,
        survey=survey.path.name,
        warning="" if split == "train" else model.split.warning,
        note=_note(model, residuals, seen),
        inputs=("spectrum", *seen.present),
        absent=seen.absent,
    )
    return replace(report, remarks=tuple(_remarks(model, report)))


@dataclass(frozen=True)
class _Seen:
    """Prepared stars as a model sees them, of a survey that lacks some of its sources."""

    model: Model
    sample: LabelledSample
    absent: tuple[str, ...]

    @property
    def present(self) -> tuple[str, ...]:
        """Sources that the model takes, and the survey has."""
        if not sees_photometry(self.model):
            return ()
        names = self.model.preparation.source_names
        return tuple(name for name in names if name not in self.absent)

    def without(self, rows: Int64Array, hidden: tuple[str, ...] = ()) -> Inputs:
        """Return some rows of the survey, without what it lacks and what is hidden besides."""
        every = (*hidden, *self.absent)
        if not every:
            return self.sample.prepared(rows)
        further = self.model.preparation.further_sources
        return self.sample.without(rows, partial(hide, without=every, further=further))


def _remarks(model: Model, report: AuditReport) -> Iterator[str]:
    """Sentences about what the report lacks, and where an earlier one says otherwise."""
    if report.sensitivities:
        told = {one.star for one in report.sensitivities}
        lacking = [name for name in STAR_TYPES if name not in told] if TYPICAL not in told else []
        if lacking:
            yield f"no star of the sample is most like a {' or a '.join(lacking)}"
    if "audit" in model.attachments:
        yield from differences(report, model.attachments["audit"].metadata)


def _output_of(model: Model, network: EnsembleNetwork) -> Output:
    """Return what gives the labels of the catalogue to prepared stars."""
    uncertainty = UncertaintyModel.load(model, network)

    def output(inputs: Inputs) -> Float64Array:
        mean = network.predict(inputs).mean
        return mean if uncertainty is None else uncertainty.calibration.means(mean)

    return output


def _residuals(
    output: Output,
    network: EnsembleNetwork,
    seen: _Seen,
    rows: Int64Array,
    truth: Float64Array,
) -> dict[str, Float64Array]:
    """Residuals (n_row, n_label) in each case that the networks can do, by its name."""
    means = {ALL: output(seen.without(rows))}
    for name, without in _cases(network, seen).items():
        means[name] = output(seen.without(rows, without))
    residuals = {name: finite_only(mean - truth) for name, mean in means.items()}
    # A case that no star can be in (a network that needs the spectrum) is left out, not failed.
    further = network.model.preparation.further_sources
    least = {f"{source} alone": _LEAST_ALONE for source in further}
    answered = {name: np.isfinite(one).any(axis=1).mean() for name, one in residuals.items()}
    return {
        name: one
        for name, one in residuals.items()
        if answered[name] > 0 and answered[name] >= least.get(name, 0.0)
    }


def _cases(network: EnsembleNetwork, seen: _Seen) -> dict[str, tuple[str, ...]]:
    """Cases that change what the networks see, and that they can answer."""
    if not seen.present:
        return {}
    preparation = network.model.preparation
    present = set(seen.present)
    changed = {"photometry", "spectrum"} | present
    further = [source for source in preparation.further_sources if source in present]
    cases = dict(WITHOUT) | {f"without {source}": (source,) for source in further}
    for group in preparation.further:
        if group.suffices and group.source in present:
            others = sorted(present - {group.source})
            cases[f"{group.source} alone"] = ("spectrum", *others)
    return {
        name: without
        for name, without in cases.items()
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


def _note(model: Model, residuals: Mapping[str, Float64Array], seen: _Seen) -> str:
    if PHOTOMETRY in residuals:
        return ""
    who = f"the network '{model.network['name']}'"
    if not sees_photometry(model):
        reason = f"{who} takes no photometry"
    elif not seen.present:
        reason = "the stars have no photometry"
    else:
        reason = f"{who} gives no labels without a spectrum"
    return f"{reason}: the gain is that of spectra of like stars over shuffled spectra"


def _sensitivities(
    network: EnsembleNetwork,
    inputs: Inputs,
    truth: Float64Array,
    *,
    conditions: ObservingModel | None,
) -> Iterator[Sensitivity]:
    model = network.model
    best = best_estimator(model, conditions, noise_correlation=inputs.noise_correlation)
    if best is None:
        return
    columns = [model.label_names.index(name) for name in best.label_names]
    # Without an S/N there is no bound to compare with.
    labels = np.where(inputs.snr[:, None] > 0, truth[:, columns], np.nan)
    for star in star_types(best.label_names):
        rows = nearest_to(star, labels, best.label_names)
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
                wave_aa=model.wave_aa,
                medium=model.medium,
                estimator=best,
            )


def _audit_label(
    label: Label,
    k: int,
    residuals: Mapping[str, Float64Array],
    swap: Swap,
    rng: np.random.Generator,
    sizes: tuple[int, int],
) -> LabelAudit:
    n_shuffle, n_bootstrap = sizes
    # Donors alike in everything but this label. The control draws donors alike in this one, too:
    # what swapping costs by itself.
    others = np.array([j for j in swap.given if not repeats(swap.truth, k, j)], dtype=np.int64)
    donors = {
        SHUFFLED: swap.donors(others, n_shuffle, rng),
        CONTROL: swap.donors(swap.given, n_shuffle, rng),
    }
    columns = {name: one[:, k, None] for name, one in residuals.items()}
    columns |= {name: swap.residuals(rows, k) for name, rows in donors.items()}
    apart = swap.apart(donors[SHUFFLED])
    moved = columns[SHUFFLED] - columns[ALL]
    columns, used = _in_common(columns, len(swap.truth))
    draws = bootstrap_scatter(list(columns.values()), swap.star[used], n=n_bootstrap, rng=rng)
    cases = _case_table(columns, draws)
    slope, slope_error = response(moved[used], apart[used][:, :, [k, *others]], swap.star[used])
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
        response=slope,
        response_error=slope_error,
        donor_spread=spread(apart[:, :, k]),
        donor_mismatch=_root_mean_square(apart[:, :, others] / swap.unit[others]),
    )


def _in_common(
    columns: Mapping[str, Float64Array], n_row: int
) -> tuple[dict[str, Float64Array], BoolArray]:
    """Residuals of the cases that have any, of the rows that all of these have; and these rows."""
    some = {name: one for name, one in columns.items() if np.isfinite(one).any()}
    used = np.full(n_row, bool(some))
    # All cases on the same spectra: else a case that answers for the easy stars would win.
    for one in some.values():
        used &= np.isfinite(one).all(axis=1)
    return {name: one[used] for name, one in some.items()}, used


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


def _root_mean_square(values: Float64Array) -> float:
    known = values[np.isfinite(values)]
    return float(np.sqrt(np.mean(known**2))) if known.size else np.nan


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
    error = float(np.nanstd(ratio))
    verdict: Verdict = "measured" if gain >= LEAST_GAIN else "inferred"
    unequal = basis == SHUFFLED and cases[CONTROL].scatter > _UNLIKE * cases[ALL].scatter
    hidden = unequal and verdict == "inferred" and gain + 2.0 * error >= LEAST_GAIN
    by_chance = error > _UNSURE and abs(gain - LEAST_GAIN) < error
    if hidden or by_chance:
        verdict = "unknown"
    return gain, error, basis, verdict


_UNSURE = 0.5 * LEAST_GAIN
"""A gain that is less sure than half of the least one, and within its error of that, is either by
chance: it is so of some thirty stars. Chosen."""
_UNLIKE = 1.5
"""Spectra of like stars that raise the scatter by more are of stars that are not alike: what they
add covers what the label adds, and a gain that is small by it tells nothing. Chosen."""


def _star_numbers(star_id: StrArray) -> Int64Array:
    """Give each star a number; a row without an identifier is a star of its own."""
    _, number = np.unique(star_id, return_inverse=True)
    blank = np.asarray(star_id) == ""
    return np.where(blank, number.size + np.arange(number.size), number)
