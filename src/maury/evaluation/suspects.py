"""Labelled stars whose labels a model cannot believe: wrong cross-matches, above all.

A network that learns from simulated stars does not learn a wrong label by heart, so that it tells
it from what the spectrum and the photometry show. Training stars are predicted by the network that
held them out, where there is one, all others by the ensemble.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ConfigError, TrainingError
from maury.evaluation.adviser import write_table
from maury.io.arrays import BoolArray, Float64Array, Int64Array, StrArray
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.labels.statistics import robust_scale
from maury.model.directory import Model
from maury.model.output import Prediction
from maury.model.split import HELD_OUT_FOLDS, PARTS, held_out_fold
from maury.prediction.conformal import mahalanobis2
from maury.prediction.labellers import open_labeller
from maury.spectra.preparation import Inputs, take
from maury.survey.labelled_sample import LabelledSample
from maury.survey.store import Survey

if TYPE_CHECKING:
    from astropy.table import Table

    from maury.prediction.uncertainty import UncertaintyModel

__all__ = ["Suspects", "find_suspects"]

N_SIGMA = 5.0
"""Errors from which a label is doubted: of normal errors one in two million stars is so far off."""
_ATMOSPHERE = ("teff", "logg", "m_h")
"""Labels that another star hardly shares."""
_TAIL = 1.2
"""Residuals of abundances have wilder tails, so that each must be as much further off alone: with
that 93 % of exchanged labels were found at .3 % false alarms, without it at .6 %."""
_AGREES = 3.0
"""Errors within which a half of the inputs agrees with the labels."""
_LEAST_STARS = 100
"""Stars whose scatter tells whether errors hold for them, to 7 %; fewer are taken at their word."""
_FAULTS = (
    Flag.RADIAL_VELOCITY_WRONG
    | Flag.EMISSION
    | Flag.DOUBLE_LINED
    | Flag.CONTINUUM_BAD
    | Flag.HOT_STAR
    | Flag.RECONSTRUCTION_POOR
    | Flag.SPECTRUM_UNLIKE
    | Flag.BAD_PIXELS
)
"""Flags of a spectrum that is itself at fault."""
_REASONS = {
    "match": "wrong cross-match: spectrum and photometry agree, and the labels are of another star",
    "value": "a wrong value: spectrum and photometry agree, and this label alone is off",
    "photometry": "photometry of another star: spectrum and labels agree",
    "spectrum": "spectrum of another star: photometry and labels agree",
    "fault": "the spectrum is at fault, see its flags",
    "three": "spectrum, photometry and labels all disagree",
    "unknown": "spectrum and labels disagree; without photometry nothing tells which is wrong",
}


@dataclass(frozen=True, eq=False)
class Suspects:
    """Labelled stars far off their predictions, the farthest first.

    Attributes
    ----------
    row : (n,) int64
        Row numbers in the survey.
    id, star_id : (n,) str
    part : (n,) str
        ``train``, ``validation`` or ``test`` of the model's split; empty for other stars.
    label : (n,) str
        The label that is furthest off.
    given, predicted, error : (n,) float64
        Its value in the survey, its prediction, and the 1 sigma error of that.
    off : (n,) float64
        Their difference in errors; positive where the survey's value is too large.
    n_sigma : (n,) float64
        How far the star is off in all, see `find_suspects`.
    flags : (n,) int64
        Bits of `maury.labels.flags.Flag`.
    reason : (n,) str
        What is the likeliest, in words.
    n_star : int
        Labelled rows that were looked at.
    simulated : bool
        Whether the spectra are simulated.
    """

    row: Int64Array
    id: StrArray
    star_id: StrArray
    part: StrArray
    label: StrArray
    given: Float64Array
    predicted: Float64Array
    error: Float64Array
    off: Float64Array
    n_sigma: Float64Array
    flags: Int64Array
    reason: StrArray
    n_star: int
    simulated: bool

    def __len__(self) -> int:
        return len(self.row)

    def table(self) -> Table:
        """Return one row per suspect, which ``maury train --leave-out`` reads."""
        from astropy.table import Table

        names = [name for name in self.__dataclass_fields__ if name not in ("n_star", "simulated")]
        columns: dict[str, Any] = {name: getattr(self, name) for name in names}
        columns["simulated"] = np.full(len(self), self.simulated)
        return Table(columns)

    def write(self, path: Path | str, *, overwrite: bool = False) -> Path:
        """Write the table as CSV, ECSV, Parquet or FITS, as the suffix says.

        Raises
        ------
        ConfigError
            If the suffix is none of these.
        OutputExists
            If `path` exists and `overwrite` is false.
        """
        return write_table(self.table(), path, overwrite=overwrite)


def find_suspects(
    model: Model | Path | str, survey: Survey | Path | str, *, n_sigma: float = N_SIGMA
) -> Suspects:
    """List the labelled stars of a survey whose labels lie far off their predictions.

    How far is the Mahalanobis distance of Teff, log g and [M/H], of which a wrong star has more
    than one wrong, or the number of errors of any other label, over 1.2. Where the errors are too
    small for a survey, as the scatter of all its stars in a label says, they are enlarged first.

    Parameters
    ----------
    model, survey
        A calibrated model of the preset ``maury``, and a survey with labels, or their paths.
    n_sigma : float
        From how far off a star is listed.

    Raises
    ------
    ConfigError
        If the model has no calibrated errors, or `n_sigma` is not positive.
    TrainingError
        If the survey has no labels of the model.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    if not n_sigma > 0:
        raise ConfigError(f"n_sigma must be above 0, got {n_sigma}; 5 is the default")
    truth = survey.labels(model.labels)
    rows = np.flatnonzero(np.isfinite(truth).any(axis=1))
    if rows.size == 0:
        raise TrainingError(f"{survey.path} has no labels of {model.path} to doubt")
    labeller = _calibrated(model)
    inputs = LabelledSample.read(survey, model.preparation, rows).inputs
    star_id = survey.star_id[rows]
    found = labeller.assess(inputs, labeller.predict(inputs), star_id)
    found, number = _out_of_fold(model, labeller, inputs, star_id, found)
    found = _widened(found, truth[rows], number)
    off = (truth[rows] - found.mean) / found.sigma
    # Where nothing was predicted, nothing is doubted.
    size = np.abs(np.where(np.isfinite(off), off, 0.0))
    worst = size.argmax(axis=1)
    largest = _doubt(model, found, truth[rows], size)
    listed = np.argsort(-largest, kind="stable")[: int((largest > n_sigma).sum())]
    column = worst[listed]
    assert found.flags is not None, "a calibrated model gives flags"
    flags = (found.flags | inputs.flags)[listed].astype(FLAG_DTYPE)
    chosen = take(inputs, listed)
    reasons = _reasons(labeller, chosen, truth[rows][listed], flags, size[listed])
    return Suspects(
        row=rows[listed],
        id=survey.id[rows][listed],
        star_id=star_id[listed],
        part=_parts(model, star_id[listed]),
        label=np.array(model.label_names)[column],
        given=truth[rows][listed, column],
        predicted=found.mean[listed, column],
        error=found.sigma[listed, column],
        off=off[listed, column],
        n_sigma=largest[listed],
        flags=flags,
        reason=reasons,
        n_star=rows.size,
        simulated=survey.simulated,
    )


def _calibrated(model: Model) -> UncertaintyModel:
    # Imports torch, which a model without calibration need not wait for.
    from maury.prediction.uncertainty import UncertaintyModel

    labeller = None if model.is_method else open_labeller(model)
    if not isinstance(labeller, UncertaintyModel):
        raise ConfigError(
            f"{model.path} has no calibrated errors to measure a doubt in; "
            "use a model of the preset maury"
        )
    return labeller


def _out_of_fold(
    model: Model,
    labeller: UncertaintyModel,
    inputs: Inputs,
    star_id: StrArray,
    found: Prediction,
) -> tuple[Prediction, Int64Array]:
    """Replace the prediction of each training star by that of the network that held it out.

    Beside it the number of that network, (n_star,), -1 for the ensemble.
    """
    number = np.full(len(star_id), -1)
    n_fold = model.training.get(HELD_OUT_FOLDS, 0)
    if n_fold:
        fold = held_out_fold(star_id, n_fold=n_fold, seed=model.seed or 0)
        training = model.split.contains("train", star_id)
        number = np.where(training & (fold < len(model.kept)), fold, -1)
    assert found.covariance is not None, "a calibrated model gives covariances"
    mean, sigma, covariance = found.mean.copy(), found.sigma.copy(), found.covariance.copy()
    for member in np.unique(number[number >= 0]):
        held_out = number == member
        own = take(inputs, held_out)
        single = labeller.calibrate(own, labeller.network.predict(own, only=int(member)))
        mean[held_out], sigma[held_out] = single.mean, single.sigma
        covariance[held_out] = single.covariance
    return replace(found, mean=mean, sigma=sigma, covariance=covariance), number


def _doubt(
    model: Model, found: Prediction, truth: Float64Array, size: Float64Array
) -> Float64Array:
    """How far each star (n_star,) is off, see `find_suspects`; 0 where nothing is known."""
    own = [model.label_names.index(name) for name in _ATMOSPHERE if name in model.label_names]
    apart = np.where(size[:, own] > 0, truth[:, own] - found.mean[:, own], 0.0)
    assert found.covariance is not None, "a calibrated model gives covariances"
    distance2 = mahalanobis2(apart, found.covariance[:, own][:, :, own])
    distance = np.sqrt(np.nan_to_num(distance2))
    others = np.delete(size, own, axis=1).max(axis=1, initial=0.0)
    single = size[:, own].max(axis=1, initial=0.0)
    return np.asarray(np.maximum(np.maximum(distance, single), others / _TAIL))


def _widened(found: Prediction, truth: Float64Array, number: Int64Array) -> Prediction:
    """Return it with errors as large as the stars of each network scatter, if that is more."""
    wider = np.ones_like(found.sigma)
    for member in np.unique(number):
        of_it = number == member
        off = (truth[of_it] - found.mean[of_it]) / found.sigma[of_it]
        enough = np.isfinite(off).sum(axis=0) >= _LEAST_STARS
        # Robust: the stars that are looked for do not widen the errors that they are measured in.
        _, scatter = robust_scale(off)
        wider[of_it] = np.where(enough, np.maximum(scatter, 1.0), 1.0)
    assert found.covariance is not None, "a calibrated model gives covariances"
    covariance = found.covariance * wider[:, :, None] * wider[:, None, :]
    return replace(found, sigma=found.sigma * wider, covariance=covariance)


def _reasons(
    labeller: UncertaintyModel,
    inputs: Inputs,
    truth: Float64Array,
    flags: Int64Array,
    size: Float64Array,
) -> StrArray:
    """Likeliest reason of each suspect, from what each half of its inputs says by itself."""
    if len(inputs) == 0:
        return np.zeros(0, dtype=np.str_)
    nothing = np.full_like(inputs.observables, np.nan)
    by_spectrum = _agrees(labeller, replace(inputs, observables=nothing), truth)
    dark = replace(inputs, ivar=np.zeros_like(inputs.ivar))
    by_photometry = _agrees(labeller, dark, truth)
    bare = ~np.isfinite(inputs.observables).any(axis=1)
    apart = (flags & Flag.PHOTOMETRY_DISAGREES.value) != 0
    cases = {
        "unknown": bare,
        "fault": ((flags & _FAULTS.value) != 0) & by_photometry,
        "photometry": apart & by_spectrum,
        "spectrum": apart & by_photometry,
        "three": apart,
        "value": (size > _AGREES).sum(axis=1) == 1,
    }
    keys = np.select(list(cases.values()), list(cases), default="match")
    return np.array([_REASONS[key] for key in keys.tolist()])


def _agrees(labeller: UncertaintyModel, inputs: Inputs, truth: Float64Array) -> BoolArray:
    """Whether all labels known lie within `_AGREES` errors of what these inputs predict."""
    found = labeller.calibrate(inputs, labeller.predict(inputs))
    off = np.abs(truth - found.mean) / found.sigma
    known = np.isfinite(off)
    return np.asarray(known.any(axis=1) & ~(known & (off > _AGREES)).any(axis=1), dtype=np.bool_)


def _parts(model: Model, star_id: StrArray) -> StrArray:
    part = np.zeros(len(star_id), dtype="<U10")
    for name in PARTS:
        part[model.split.contains(name, star_id)] = name
    return part
