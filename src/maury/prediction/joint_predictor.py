"""Labels of stars that several surveys saw, by a joint model: one answer from all their spectra.

What one survey saw alone is answered by its own model. Of stars that two or more saw, the joint
network takes all spectra at once; errors of such answers are calibrated for each set of surveys on
validation stars that the whole set saw (`maury.prediction.residual_calibration`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
import torch

from maury.errors import ModelFileError, TrainingError
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.columns import QUANTILES
from maury.labels.statistics import robust_sigma
from maury.model.directory import Affine, Model
from maury.model.engines.engine import BLOCK_ROWS, EnsembleOutput
from maury.model.inference import join_members
from maury.model.joint_model import JointModel
from maury.model.networks.default import DefaultConfig
from maury.model.networks.joint import JointNetwork
from maury.model.networks.published import network_config_of
from maury.model.output import Prediction, Unseen, has_spectrum
from maury.prediction.predictor import Predictor
from maury.prediction.residual_calibration import ResidualCalibration
from maury.spectra.batch import Batch
from maury.spectra.preparation import Inputs
from maury.survey.common_stars import CommonStars
from maury.survey.store import Survey

__all__ = ["JointLabels", "best_rows", "calibrate_sets"]

logger = logging.getLogger(__name__)

_CALIBRATION, _DIFFERENCE, _SCALING = "calibration", "difference", "scaling"
_WITHIN_ONE = 0.683
"""Share of a normal law within one standard deviation."""
_VALIDATION = "validation stars that all of these surveys saw, which trained no network"


class JointLabels:
    """Labels of stars that several surveys saw.

    Parameters
    ----------
    model : JointModel

    Attributes
    ----------
    calibrated : mapping of tuple of str to ResidualCalibration
        Sets of surveys whose errors are calibrated.

    Raises
    ------
    ModelFileError
        If the shared weights or a calibration are damaged.
    """

    def __init__(self, model: JointModel) -> None:
        self.model = model
        self._observables = model.models[model.names[0]].scaling.observables
        self._labels = label_scaling(model)
        self._networks = rebuilt_networks(model)
        self.calibrated = _calibrations(model)

    def sets(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the calibrated sets among some surveys, the largest first."""
        chosen = set(names)
        found = [one for one in self.calibrated if chosen.issuperset(one)]
        return sorted(found, key=lambda one: (-len(one), one))

    def difference_error(
        self, first: tuple[str, Float64Array], second: tuple[str, Float64Array]
    ) -> Float64Array:
        """Error (n_star, n_label) of the difference of the answers of two surveys to one star.

        f sqrt(e1^2 + e2^2 - 2 rho e1 e2), with the correlation rho of their errors over validation
        stars, and f such that 68.3 % of these lie within one error; NaN where too few saw both.

        Parameters
        ----------
        first, second : (str, (n_star, n_label) float64)
            Name of a survey, and the errors that its own model states.
        """
        names = [name for name in self.model.names if name in (first[0], second[0])]
        known = self.model.arrays.get(f"{_DIFFERENCE}/{'+'.join(names)}")
        if known is None or known.shape != (2, len(self.model.labels)):
            return np.full(first[1].shape, np.nan)
        rho, factor = known
        return np.asarray(factor * _of_difference(first[1], second[1], rho))

    def predict(self, inputs: Mapping[str, Inputs]) -> Prediction:
        """Predict labels and errors as the networks give them.

        Parameters
        ----------
        inputs : mapping of str to Inputs
            Of each survey that saw the stars, prepared; the same stars in the same rows.

        Returns
        -------
        Prediction
            Of the labels of all surveys of the model; NaN of those that none of these surveys
            has, and where a spectrum is missing.
        """
        usable = np.logical_and.reduce([has_spectrum(one) for one in inputs.values()])
        rows = np.flatnonzero(usable)
        n, n_label = len(usable), len(self.model.labels)
        mean = np.full((n, n_label), np.nan)
        sigma, covariance = mean.copy(), np.full((n, n_label, n_label), np.nan)
        for start in range(0, rows.size, BLOCK_ROWS):
            block = rows[start : start + BLOCK_ROWS]
            found = join_members(self._outputs(inputs, block), self._labels)
            mean[block], sigma[block] = found.mean, found.sigma
            assert found.covariance is not None, "the networks predict covariances"
            covariance[block] = found.covariance
        known = {label for name in inputs for label in self.model.models[name].label_names}
        absent = ~np.isin(self.model.label_names, sorted(known))
        mean[:, absent], sigma[:, absent] = np.nan, np.nan
        return Prediction(mean, sigma, covariance)

    def assess(self, inputs: Mapping[str, Inputs]) -> Prediction:
        """Predict labels with calibrated errors and quantiles; NaN errors of other sets."""
        found = self.predict(inputs)
        own = self.calibrated.get(tuple(n for n in self.model.names if n in inputs))
        if own is None:
            return replace(found, sigma=np.full(found.sigma.shape, np.nan), covariance=None)
        return own.calibrate(_joined(inputs), found)

    def _outputs(self, inputs: Mapping[str, Inputs], block: Int64Array) -> EnsembleOutput:
        observables = self._observables.forward(observables_of(inputs)[block])
        if self._networks[0].first.observables is None:
            observables = observables[:, :0]
        spectra = {
            name: (
                torch.from_numpy(np.asarray(one.flux[block], dtype=np.float32)),
                torch.from_numpy(np.asarray(one.ivar[block], dtype=np.float32)),
            )
            for name, one in inputs.items()
        }
        means, variances, covariances = [], [], []
        with torch.inference_mode():
            for network in self._networks:
                posterior = network(spectra, torch.from_numpy(observables))
                covariance = posterior.covariance()
                means.append(posterior.mean.double().numpy())
                covariances.append(covariance.double().numpy())
                variances.append(covariances[-1].diagonal(axis1=1, axis2=2))
        return EnsembleOutput(np.stack(means), np.stack(variances), np.stack(covariances))


def observables_of(inputs: Mapping[str, Inputs]) -> Float32Array:
    """Observables (n, n_observable) of stars, each from the first survey that has it."""
    out: Float32Array | None = None
    for one in inputs.values():
        seen = np.asarray(one.observables, dtype=np.float32)
        out = seen if out is None else np.where(np.isnan(out), seen, out)
    assert out is not None, "there are surveys"
    return out


def _joined(inputs: Mapping[str, Inputs]) -> Inputs:
    """Return inputs with the S/N of all spectra together; nothing else of them is used."""
    first = next(iter(inputs.values()))
    squares = [np.nan_to_num(one.snr) ** 2 for one in inputs.values()]
    return replace(first, snr=np.sqrt(np.sum(squares, axis=0)))


def rebuilt_networks(model: JointModel) -> list[JointNetwork]:
    """Put the networks of a joint model together, from those of its surveys.

    Raises
    ------
    ModelFileError
        If weights are missing, or do not fit.
    """
    first = model.models[model.names[0]]
    config = network_config_of(first.network)
    if not isinstance(config, DefaultConfig):
        raise ModelFileError(f"{model.path}: its networks are not of the preset maury")
    kept = {name: one.kept for name, one in model.models.items()}
    return [
        JointNetwork.assemble(
            config,
            {name: one.weights(kept[name][number]) for name, one in model.models.items()},
            model.shared(number),
            n_observable=len(first.preparation.observable_names) if config.photometry else 0,
            n_label=len(model.labels),
        )
        for number in range(model.n_member)
    ]


def label_scaling(model: JointModel) -> Affine:
    """Return the scaling of the labels of all surveys.

    Raises
    ------
    ModelFileError
        If it is damaged.
    """
    arrays = model.group(_SCALING)
    shape = (len(model.labels),)
    try:
        found = Affine(**arrays)
    except TypeError as error:
        raise ModelFileError(f"{model.path}: the scaling of its labels is damaged") from error
    if any(values.shape != shape for values in arrays.values()) or not np.all(found.scale > 0):
        raise ModelFileError(f"{model.path}: the scaling of its labels is damaged")
    return found


def scaling_arrays(scaling: Affine) -> dict[str, AnyArray]:
    """Return the scaling of the labels of all surveys as arrays of a joint model."""
    return {f"{_SCALING}/{name}": values for name, values in vars(scaling).items()}


def _calibrations(model: JointModel) -> dict[tuple[str, ...], ResidualCalibration]:
    found = {}
    for size in range(2, len(model.names) + 1):
        for chosen in combinations(model.names, size):
            arrays = model.group(f"{_CALIBRATION}/{'+'.join(chosen)}")
            if not arrays:
                continue
            try:
                found[chosen] = ResidualCalibration.from_arrays(arrays, len(model.labels))
            except (KeyError, ValueError) as error:
                raise ModelFileError(
                    f"{model.path}: the calibration of {' and '.join(chosen)} is damaged: {error}"
                ) from error
    return found


def best_rows(
    star: Int64Array, usable: BoolArray, warned: BoolArray, snr: AnyArray
) -> tuple[Int64Array, Int64Array]:
    """Return each star of a survey and its best row: one that nothing warns of, then by S/N.

    Parameters
    ----------
    star : (n,) int64
        Number of the star of each row.
    usable, warned : (n,) bool
        Rows that can be taken, and those that a flag warns of.
    snr : (n,) float
        NaN where unknown.
    """
    rows = np.flatnonzero(usable)
    order = np.lexsort((rows, -np.nan_to_num(snr[rows]), warned[rows], star[rows]))
    known, first = np.unique(star[rows][order], return_index=True)
    return known, rows[order][first]


def calibrate_sets(
    model: JointModel, common: CommonStars, *, labels: JointLabels | None = None
) -> dict[str, AnyArray]:
    """Calibrate the errors of stars that a set of surveys saw, where enough validation stars are.

    Parameters
    ----------
    model : JointModel
        Trained; its arrays need no calibration.
    common : CommonStars
        The surveys that trained it, with their labels.
    labels : JointLabels, optional
        Of the model, where it is at hand.

    Returns
    -------
    dict of str to array
        Arrays of the joint model.
    """
    labels = labels or JointLabels(model)
    arrays: dict[str, AnyArray] = {}
    chosen = {
        name: _validation(model.models[name], common.surveys[name], common.star[name])
        for name in common.surveys
    }
    for size in range(2, len(common.surveys) + 1):
        for names in combinations(common.surveys, size):
            star = chosen[names[0]][0]
            for name in names[1:]:
                star = np.intersect1d(star, chosen[name][0])
            if not star.size:
                continue
            inputs = {
                name: model.models[name].preparation.apply(_batch(common, name, star, chosen[name]))
                for name in names
            }
            truth = np.full((star.size, len(model.labels)), np.nan)
            for name in names:
                theirs = _truth(model, common, name, star, chosen[name])
                truth = np.where(np.isnan(truth), theirs, truth)
            identifiers = np.array([str(number) for number in star])
            unseen = Unseen(
                _joined(inputs), labels.predict(inputs), truth, identifiers, _VALIDATION
            )
            try:
                found = ResidualCalibration.fit(unseen, model.label_names)
            except TrainingError as error:
                logger.warning("errors of %s together: %s", " and ".join(names), error)
                continue
            head = f"{_CALIBRATION}/{'+'.join(names)}"
            arrays |= {f"{head}/{name}": values for name, values in found.to_arrays().items()}
            if size == 2:
                alone = [
                    answers_alone(model, name, _batch(common, name, star, chosen[name]))
                    for name in names
                ]
                arrays[f"{_DIFFERENCE}/{'+'.join(names)}"] = _difference(alone, truth)
    return arrays


def _difference(alone: Sequence[Prediction], truth: Float64Array) -> Float64Array:
    """Correlation of the errors of two surveys, and factor of the error of their difference.

    They see the same magnitudes and know the same stars, so that their answers err alike.

    Returns
    -------
    (2, n_label) float64
        NaN of labels that one of them lacks.
    """
    scores = [(own.mean - truth) / own.sigma for own in alone]
    # From the scatter of sum and difference: no wild star makes or breaks a correlation
    # (Gnanadesikan & Kettenring 1972, Biometrics 28, 81).
    plus, minus = (
        np.array([robust_sigma(column) for column in both.T])
        for both in (scores[0] + scores[1], scores[0] - scores[1])
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        rho = (plus**2 - minus**2) / (plus**2 + minus**2)
        score = np.abs(alone[0].mean - alone[1].mean) / _of_difference(
            alone[0].sigma, alone[1].sigma, rho
        )
    factor = [
        np.quantile(one[np.isfinite(one)], _WITHIN_ONE) if np.isfinite(one).any() else np.nan
        for one in score.T
    ]
    return np.stack([rho, np.array(factor)])


def _of_difference(one: Float64Array, two: Float64Array, rho: Float64Array) -> Float64Array:
    return np.asarray(np.sqrt(np.maximum(one**2 + two**2 - 2.0 * rho * one * two, 0.0)))


def answers_alone(model: JointModel, name: str, batch: Batch) -> Prediction:
    """Labels and calibrated errors of one survey's own model, among the labels of all surveys.

    Parameters
    ----------
    model : JointModel
    name : str
        The survey.
    batch : Batch
        Rows of the survey.
    """
    own = model.models[name]
    found = Predictor(own).predict(batch)
    mean = np.full((len(batch), len(model.labels)), np.nan)
    sigma, quantiles = mean.copy(), np.full((len(QUANTILES), *mean.shape), np.nan)
    for label in own.labels:
        k = model.label_names.index(label.name)
        mean[:, k] = found[label.name]
        if own.errors_calibrated:
            sigma[:, k] = found[label.error_name]
            quantiles[:, :, k] = [found[f"{label.name}_{suffix}"] for suffix, _ in QUANTILES]
    return Prediction(mean, sigma, quantiles=quantiles)


_Chosen = tuple[Int64Array, Int64Array]


def _validation(model: Model, survey: Survey, star: Int64Array) -> _Chosen:
    """Stars that a survey keeps for calibration, and the best row of each."""
    rows = model.split.contains("validation", survey.star_id)
    snr = survey.column("snr") if "snr" in survey.column_names else np.zeros(len(survey))
    return best_rows(star, rows, np.zeros(len(survey), dtype=np.bool_), snr)


def _batch(common: CommonStars, name: str, star: Int64Array, chosen: _Chosen) -> Batch:
    """Best spectrum of each of some stars in a survey."""
    rows = chosen[1][np.searchsorted(chosen[0], star)]
    return common.surveys[name].rows(rows)


def _truth(
    model: JointModel, common: CommonStars, name: str, star: Int64Array, chosen: _Chosen
) -> AnyArray:
    """Labels (n_star, n_label) of all surveys that one of them knows; NaN of the others."""
    rows = chosen[1][np.searchsorted(chosen[0], star)]
    own = model.models[name].label_names
    out = np.full((star.size, len(model.labels)), np.nan)
    place = [model.label_names.index(label) for label in own]
    out[:, place] = common.surveys[name].labels(list(own))[rows]
    return out
