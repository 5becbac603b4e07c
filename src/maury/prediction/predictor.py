"""A model ready to predict: batches in, columns of the catalogue out."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from copy import copy
from itertools import combinations
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.errors import ConfigError, check_known
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.columns import (
    BANDS,
    CHI2,
    ERROR_PARTS,
    IN_CATALOGUE,
    QUANTILES,
    WORST_WAVELENGTH,
    for_correlation,
)
from maury.labels.definitions import Label
from maury.labels.flags import FLAG_DTYPE, Flag, set_where, warn
from maury.model.citations import keys_of_model
from maury.model.directory import RESIDUAL_CALIBRATION, Model
from maury.model.output import Prediction
from maury.prediction.catalogue import CatalogueSpec
from maury.prediction.conditions import training_power
from maury.prediction.conformal import JOINT_LEVELS
from maury.prediction.drift import never_had, unjudged, without_unexpected
from maury.prediction.labellers import open_labeller
from maury.prediction.matching import matched
from maury.prediction.self_check import require_self_check
from maury.spectra.absent import source_columns
from maury.spectra.batch import Batch, Readable
from maury.spectra.observable_groups import G_OF_XP
from maury.spectra.preparation import SOURCES, Inputs, take
from maury.version import __version__

if TYPE_CHECKING:
    from maury.methods.registry import MethodNetwork
    from maury.model.inference import EnsembleNetwork

WITHOUT = ("spectrum", "photometry", *SOURCES)
"""Inputs that a prediction may do without; ``photometry`` is all of them but the spectrum."""

_NOTHING: Mapping[str, Sequence[str]] = MappingProxyType({})
_ORIGIN = ("distilled_from",)
BLOCK_STARS = 576
"""Rows computed together, counted from the first of a batch (three blocks of `maury.model.engines`,
none of which is then filled up in vain); batches of whole blocks are equal
to the last bit, however long they are."""


class Predictor:
    """A model ready to predict: its preparation is replayed, its networks are loaded once.

    Parameters
    ----------
    model : Model or path-like
        The model.
    without : sequence of str
        Inputs of `WITHOUT`, or sources of further columns, that count as missing.
    given : str
        A label that the survey has from elsewhere, such as an asteroseismic ``logg``, with its
        error: it is taken into the others by their covariance
        (`maury.prediction.calibration.condition`).
    engine : {"auto", "torch", "compiled"}
        What computes the networks, see `maury.model.engines.engine.make_engine`.
    network : EnsembleNetwork or MethodNetwork, optional
        That of the model, where it has just been trained; it needs no self-check.

    Raises
    ------
    UnknownName
        If there is no such input or engine.
    MissingExtra
        If the engine is not installed.
    ConfigError
        If the networks need one of these inputs.
    SelfCheckFailed
        If the model does not give the labels here that it gave when it was made.
    """

    def __init__(
        self,
        model: Model | Path | str,
        *,
        without: Sequence[str] = (),
        given: str = "",
        engine: str = "auto",
        network: "EnsembleNetwork | MethodNetwork | None" = None,
    ) -> None:
        self.model = model if isinstance(model, Model) else Model.open(model)
        inputs = (*WITHOUT, *self.model.preparation.further_sources)
        self.without = tuple(check_known("input", name, inputs) for name in without)
        self.given = given and check_known("label", given, self.model.label_names)
        self.preparation = self.model.preparation
        self._never_had = never_had(self.model)
        self.labeller = open_labeller(self.model, engine=engine, network=network)
        # Networks that have just been trained are those that the self-check was made with.
        if network is None:
            require_self_check(self.model, self.labeller)
        if given and not self.labeller.calibrated:
            raise ConfigError(
                f"{self.model.path} has no calibrated covariances, into which an external {given} "
                "could be taken; use a model of the preset maury"
            )
        if needed := sorted(set(self.without) & self.labeller.network.needs):
            raise ConfigError(
                f"the network '{self.model.network['name']}' gives no labels without "
                f"{', '.join(needed)}; use a model of the preset maury"
            )

    def taking(self, survey: Readable, *, level: int = logging.WARNING) -> "Predictor":
        """Return one that brings the spectra of a survey to the grid of the model, if need be.

        Parameters
        ----------
        survey : Readable
        level : int
            Of the message that says what is done.

        Raises
        ------
        GridMismatch
            If they cannot be brought to it (`maury.prediction.matching.matched`).
        """
        other = copy(self)
        power = training_power(self.model, self.labeller)
        other.preparation = matched(self.model, survey, power, level=level)
        return other

    def predict(self, batch: Batch, inputs: Inputs | None = None) -> dict[str, AnyArray]:
        """Predict the labels of one batch.

        Parameters
        ----------
        batch : Batch
            Spectra on the grid that the model's preparation takes, and their columns.
        inputs : Inputs, optional
            The same rows, where they are prepared already; only their columns are then taken.

        Returns
        -------
        dict of str to (n_star,) array
            ``id``, each label and its 1 sigma error (NaN where it cannot be given; its name is
            ``<label>_formal_error`` where nothing has calibrated it), ``flags``, ``warn``,
            ``snr``, and the columns of `maury.labels.columns.IN_CATALOGUE`; with a calibrated
            model also the quantiles; with one that knows theory the correlations of errors, and
            the columns of `maury.labels.columns.COVERAGE`.
        """
        starts = range(0, max(len(batch), 1), BLOCK_STARS)
        cuts = [slice(start, start + BLOCK_STARS) for start in starts]
        blocks = [self._predict(batch[cut], inputs and take(inputs, cut)) for cut in cuts]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def _predict(self, batch: Batch, inputs: Inputs | None) -> dict[str, AnyArray]:
        inputs, bare = self.bare(batch, inputs)
        found = self.labeller.assess(inputs, bare, batch.columns.get("star_id"))
        if self.given:
            found = self._given(found, batch)
        # Ranges are those of the training labels, which no de-shrinkage has moved.
        flags = self._flags(batch, inputs.flags, inputs.observables, bare.mean)
        if found.flags is not None:
            flags = flags | found.flags
        rows: dict[str, AnyArray] = {"id": batch.column("id")} | _columns(
            self.model.labels, found, self.model.errors_calibrated
        )
        rows |= {"flags": flags, "warn": warn(flags), "snr": inputs.snr}
        return rows | {name: batch.get(name) for name in IN_CATALOGUE}

    def _given(self, found: Prediction, batch: Batch) -> Prediction:
        from maury.prediction.uncertainty import UncertaintyModel

        assert isinstance(self.labeller, UncertaintyModel), "only calibrated networks take a label"
        known = (batch.get(self.given), batch.get(f"{self.given}_error"))
        return self.labeller.given(found, self.given, *known)

    def bare(self, batch: Batch, inputs: Inputs | None = None) -> tuple[Inputs, Prediction]:
        """Prepare a batch, and predict it as networks or method do, before any calibration."""
        if inputs is None:
            further = self.model.preparation.further_sources
            inputs = self.preparation.apply(hide(batch, self.without, further=further))
        return inputs, self.labeller.predict(inputs, batch)

    def _flags(
        self,
        batch: Batch,
        flags: Int64Array,
        observables: Float32Array,
        mean: Float64Array,
    ) -> Int64Array:
        unanswered = np.asarray(np.isnan(mean).all(axis=1), dtype=np.bool_)
        if self.labeller.network.needs_spectrum:
            # A star without a spectrum has a flag that says so; a second one would blame other
            # inputs.
            unanswered &= (flags & Flag.NO_SPECTRUM.value) == 0
        scaling = self.model.scaling
        checks = (
            (Flag.INPUT_REQUIRED, unanswered),
            (Flag.OBSERVABLE_OUTSIDE, _outside(observables, scaling.observables)),
            (Flag.LABEL_OUTSIDE, _outside(mean, scaling.labels)),
            (Flag.TRAINING_STAR, self.model.split.took_part(batch.stars)),
        )
        further = self.model.preparation.further_sources
        seen, asked = hide(batch, self.without, further=further), self.preparation.source_names
        flags = without_unexpected(flags.astype(FLAG_DTYPE), seen, asked, self._never_had)
        for flag, where in checks:
            flags = set_where(flags, flag, where)
        return flags


def _columns(labels: Sequence[Label], found: Prediction, calibrated: bool) -> dict[str, AnyArray]:
    """Return the columns of labels, errors and whatever else a prediction holds."""
    rows: dict[str, AnyArray] = {}
    for position, label in enumerate(labels):
        rows[label.name] = found.mean[:, position]
        rows[label.error_name if calibrated else label.formal_error_name] = found.sigma[:, position]
        if found.own is not None:
            own, error = found.own[:, position], found.sigma[:, position]
            # Rounding may leave the own part above the whole error by one unit.
            common = np.sqrt(np.maximum(error**2 - own**2, 0.0))
            for (suffix, *_), part in zip(ERROR_PARTS, (own, common), strict=True):
                rows[f"{label.error_name}_{suffix}"] = part
        if found.quantiles is not None:
            for k, (suffix, _) in enumerate(QUANTILES):
                rows[f"{label.name}_{suffix}"] = found.quantiles[k, :, position]
    if found.covariance is not None:
        rows |= _correlations(labels, found.covariance)
    if found.chi2_reduced is not None and found.worst_wavelength_aa is not None:
        rows |= {CHI2.name: found.chi2_reduced, WORST_WAVELENGTH.name: found.worst_wavelength_aa}
    # A column of its own is no other one's.
    return {**found.further, **rows}


def _correlations(labels: Sequence[Label], covariance: Float64Array) -> dict[str, AnyArray]:
    """Return the columns of the correlations of errors; NaN where an error is zero or none."""
    with np.errstate(invalid="ignore"):
        sigma = np.sqrt(np.einsum("nii->ni", covariance))
    sigma = np.where(sigma > 0, sigma, np.nan)
    return {
        for_correlation(first, second).name: covariance[:, i, j] / (sigma[:, i] * sigma[:, j])
        for (i, first), (j, second) in combinations(enumerate(labels), 2)
    }


def _outside(values: AnyArray, scaling: Any) -> BoolArray:
    """Whether any value of a row lies outside the training range (with a rounding margin)."""
    # Observables are float32: the extreme training star must not lie outside by rounding.
    margin = 1e-5 * (scaling.maximum - scaling.minimum)
    below = values < scaling.minimum - margin
    above = values > scaling.maximum + margin
    outside: BoolArray = (below | above).any(axis=1)
    return outside


def hide(
    batch: Batch, without: Sequence[str], *, further: Mapping[str, Sequence[str]] = _NOTHING
) -> Batch:
    """Return a batch in which inputs are missing.

    Parameters
    ----------
    batch : Batch
        Rows of a survey.
    without : sequence of str
        Names of `WITHOUT` or of `further`.
    further : mapping of str to sequence of str
        Sources of further columns, and the columns.
    """
    sources = (*SOURCES, *further)
    hidden = _named(without, sources) & set(sources)
    names = {band.column if (band := _BANDS.get(name)) else name for name in hidden}
    names |= {column for source in hidden for column in further.get(source, ())}
    missing = np.full(len(batch), np.nan)
    columns = {name: missing if name in names else v for name, v in batch.columns.items()}
    if "phot_g_mean_mag" in names & set(batch.columns):
        columns.setdefault(G_OF_XP, batch.columns["phot_g_mean_mag"])
    spectra = batch.spectra
    if "spectrum" in without:
        spectra = spectra.replace(ivar=np.zeros_like(spectra.ivar))
    return Batch(spectra, MappingProxyType(columns), batch.start, batch.at_rest)


_BANDS = {band.name: band for band in BANDS}


def _named(without: Sequence[str], sources: Iterable[str]) -> set[str]:
    """Return what inputs that count as missing are: "photometry" is all sources."""
    return set(sources if "photometry" in without else without)


def _verdicts(model: Model, survey: Readable, without: Sequence[str]) -> dict[str, Any]:
    """Return the audit of a model as far as it holds for stars with the inputs of a survey.

    A label that photometry tells may be measured on stars with photometry alone.
    """
    known = dict(model.attachments["audit"].metadata)
    sources = source_columns(model.preparation)
    had = set(survey.column_names)
    lacking = {name for name, columns in sources.items() if not had & set(columns)}
    lacking |= _named(without, sources)
    earlier, labels = known.get("absent"), known.get("labels")
    lacking -= set(map(str, earlier)) if isinstance(earlier, list | tuple) else set()
    if lacking and isinstance(labels, Mapping):
        known["labels"] = {
            name: {**one, "verdict": "unknown"} if isinstance(one, Mapping) else one
            for name, one in labels.items()
        }
        known["note"] = (
            f"audited on stars with {', '.join(sorted(lacking))}, which these do not have; "
            "'maury audit MODEL SURVEY' says what is measured without"
        )
    return known


def catalogue_spec(
    model: Model,
    survey: Readable,
    *,
    without: Sequence[str] = (),
    correlations: bool = False,
    given: str = "",
    by_star: bool = False,
) -> CatalogueSpec:
    """Return the columns and the metadata of the catalogue of `survey` by `model`.

    Parameters
    ----------
    model : Model
    survey : Readable
    without : sequence of str
        Inputs that count as missing.
    correlations : bool
        Whether it has the correlations of errors.
    given : str
        Label known from elsewhere.
    by_star : bool
        Whether a row is a star, not a spectrum.
    """
    calibrated, simulates = model.errors_calibrated, "calibration" in model.attachments
    errors = "1 sigma spread of the ensemble; not calibrated, and known to be too small"
    if simulates:
        usual = "calibrated on labelled stars unseen by the networks that they evaluated"
        errors = f"1 sigma, {model.theory_only or usual}"
    elif calibrated:
        stars = model.attachments[RESIDUAL_CALIBRATION].metadata.get("stars", "labelled stars")
        errors = f"1 sigma, calibrated on residuals of {stars}"
    elif "sky" in model.attachments:
        errors = "1 sigma: predicted by the networks, with their spread; not calibrated"
    elif model.is_method:
        errors = "1 sigma as the method gives it; not calibrated"
    metadata = {
        "simulated": survey.simulated,
        "maury_version": __version__,
        "survey": {"name": survey.path.name, "provenance": survey.provenance},
        "model": {
            "checksum": model.checksum,
            "preset": model.network["name"],
            "members": len(model.kept),
            "trained_on_simulated_spectra": model.simulated,
            "citation": model.citation,
            "cites": list(keys_of_model(model)),
            "split": model.split.rule,
            **{name: model.provenance[name] for name in _ORIGIN if name in model.provenance},
        },
        "symbols": {label.name: label.symbol for label in model.labels},
        "errors": errors,
        "errors_calibrated": calibrated,
        "unjudged": list(unjudged(model)),
        "without": list(without),
        "external": [given] if given else [],
    }
    error_parts = False
    if simulates:
        known = model.arrays("calibration")
        error_parts = "own_coefficients" in known
        if "joint" in known:
            levels = (f"{100 * level:g} %" for level in JOINT_LEVELS)
            radii = dict(zip(levels, known["joint"].tolist(), strict=True))
            metadata["joint"] = {"labels": list(model.label_names), "mahalanobis2": radii}
        if "prior_mean" in known:
            metadata["prior"] = {
                "labels": list(model.label_names),
                "mean": known["prior_mean"].tolist(),
                "covariance": known["prior_covariance"].tolist(),
            }
    if "audit" in model.attachments:
        metadata["audit"] = _verdicts(model, survey, without)
    return CatalogueSpec.for_labels(
        model.labels,
        survey_columns=survey.column_names,
        metadata=metadata,
        quantiles=calibrated,
        correlations=(simulates or model.is_method) and correlations,
        coverage=simulates or model.is_method,
        further=model.further_columns,
        error_parts=error_parts,
        by_star=by_star,
        calibrated=calibrated,
        caution=model.theory_only,
    )
