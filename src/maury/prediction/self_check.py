"""Self-check: a few stars travel with a model, and must be predicted alike before it is used.

A wrong library, engine or processor gives plausible labels that are wrong. The attachment
``canary`` holds prepared inputs and the predictions of the model when it was made. Where the theory
of the model is at hand they are simulated, else they are validation stars, without identifiers.
Degenerate fits, whose labels rounding decides, are not taken.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from maury.errors import ModelFileError, SelfCheckFailed
from maury.io.arrays import AnyArray, BoolArray, Float64Array, IndexArray
from maury.model.directory import METHOD, Model
from maury.model.output import has_spectrum
from maury.prediction.labellers import Labeller, open_labeller
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.noise import RAVE_CORRELATION
from maury.spectra.preparation import Inputs, take
from maury.survey.labelled_sample import LabelledSample

if TYPE_CHECKING:
    from maury.methods.registry import MethodNetwork
    from maury.model.inference import EnsembleNetwork

__all__ = ["SELF_CHECK", "TOLERANCE", "SelfCheck", "with_self_check"]

logger = logging.getLogger(__name__)


SELF_CHECK = "canary"
"""Attachment of a model: its self-check stars."""
TOLERANCE = 0.02
"""Largest move of a label, and of its error, as a fraction of the quoted error."""
N_STAR, N_FITTED = 16, 4
"""Self-check stars of networks, and of methods, some of which take milliseconds for a star."""
_LEAST_ERROR = 1e-3
"""Least error that a move is measured by, as a fraction of the range of the training labels."""
_NUDGE = 1e-6
"""Relative change of the flux that no label may depend on: some ten times the float32 rounding."""
_STEADY = 0.25
"""Largest share of `TOLERANCE` by which it may move the labels of a self-check star."""
_SPARE = 2
"""Stars predicted for each self-check star of a method, for some may not be steady."""
_SLOW = frozenset({"sme", "synspec"})
"""Methods that synthesise spectra, which takes too long for a check."""
_SEED_KEY = 11
"""Key of the random numbers of these stars, which no other draw from the model's seed uses."""
_INPUTS = ("flux", "ivar", "observables", "observable_errors", "flags", "snr")


@dataclass(frozen=True, eq=False)
class SelfCheck:
    """Self-check stars of one model.

    Attributes
    ----------
    inputs : Inputs
        Prepared.
    mean, sigma : (n_star, n_label) float64
        Predicted by the networks or the method, before calibration.
    label, error : (n_star, n_label) float64
        What a catalogue holds: calibrated, where the model is.
    revision : int
        Of the method that gave them (`Method.revision`); 1 for networks.
    """

    inputs: Inputs
    mean: Float64Array
    sigma: Float64Array
    label: Float64Array
    error: Float64Array
    revision: int = 1

    @classmethod
    def record(cls, inputs: Inputs, labeller: Labeller) -> Self:
        """Record the predictions of some prepared stars."""
        bare = labeller.predict(inputs)
        found = labeller.calibrate(inputs, bare)
        return cls(inputs, bare.mean, bare.sigma, found.mean, found.sigma, labeller.revision)

    @classmethod
    def load(cls, model: Model) -> Self | None:
        """Read from a model directory; None if the model is of a version without self-check stars.

        Raises
        ------
        ModelFileError
            If the attachment is damaged.
        """
        if SELF_CHECK not in model.attachments:
            return None
        arrays = model.arrays(SELF_CHECK)
        try:
            per_star: dict[str, Any] = {name: arrays[name] for name in _INPUTS}
            per_star["noise_correlation"] = _noise_of(model)
            inputs = Inputs(**per_star, wave_aa=model.wave_aa, medium=model.medium)
            mean, sigma, label, quoted = answers = [
                np.asarray(arrays[n], np.float64) for n in ("mean", "sigma", "label", "error")
            ]
            shape = (len(inputs), len(model.labels))
            if any(one.shape != shape for one in answers):
                raise ValueError(f"its answers are not of the shape {shape}")
            if any(len(per_star[name]) != shape[0] for name in _INPUTS):
                raise ValueError("its inputs differ in length")
            # Models of before methods had revisions are of the first.
            revision = model.attachments[SELF_CHECK].metadata.get("revision", 1)
            if not isinstance(revision, int):
                raise TypeError("the revision of its method is no whole number")
        except (KeyError, ValueError, TypeError) as error:
            raise ModelFileError(f"{model.path}: the self-check is damaged: {error}") from error
        return cls(inputs, mean, sigma, label, quoted, revision)

    def to_arrays(self) -> dict[str, AnyArray]:
        """Return the arrays of the attachment."""
        per_star = {name: np.asarray(getattr(self.inputs, name)) for name in _INPUTS}
        answers = {"mean": self.mean, "sigma": self.sigma, "label": self.label, "error": self.error}
        return {**per_star, **answers}

    def moved(self, now: SelfCheck, model: Model) -> Float64Array:
        """Return how far labels (n_label,) moved at most, in quoted errors; infinite if lost."""
        return np.asarray(self._moves(now, model).max(axis=0, initial=0.0))

    def steady(self, nudged: SelfCheck, model: Model) -> BoolArray:
        """Return which stars (n_star,) answer alike when their flux is nudged by its rounding."""
        worst = self._moves(nudged, model).max(axis=1, initial=0.0)
        return np.asarray(worst <= _STEADY * TOLERANCE, dtype=np.bool_)

    def rows(self, chosen: IndexArray) -> SelfCheck:
        """Return some of the stars."""
        answers = (self.mean, self.sigma, self.label, self.error)
        mean, sigma, label, error = (array[chosen] for array in answers)
        return SelfCheck(take(self.inputs, chosen), mean, sigma, label, error, self.revision)

    def _moves(self, now: SelfCheck, model: Model) -> Float64Array:
        """How far each label of each star moved, (n_star, n_label)."""
        span = model.scaling.labels.maximum - model.scaling.labels.minimum
        least = _LEAST_ERROR * np.where(np.isfinite(span) & (span > 0), span, 1.0)
        worst = np.zeros(self.mean.shape)
        for before, error, after in (
            (self.mean, self.sigma, now.mean),
            (self.sigma, self.sigma, now.sigma),
            (self.label, self.error, now.label),
            (self.error, self.error, now.error),
        ):
            known, unit = np.isfinite(before), np.fmax(error, least)
            with np.errstate(invalid="ignore"):
                move = np.where(known, np.abs(after - before) / unit, 0.0)
            # A label that was lost, or gained, is no small move: NaN would pass every comparison.
            move[known != np.isfinite(after)] = np.inf
            worst = np.maximum(worst, move)
        return worst

    def require(self, model: Model, labeller: Labeller) -> None:
        """Predict all stars again and compare.

        Raises
        ------
        SelfCheckFailed
            If a label, or an error, moved by more than `TOLERANCE` of the quoted error.
        """
        moved = self.moved(SelfCheck.record(self.inputs, labeller), model)
        worst = int(np.argmax(moved))
        if moved[worst] <= TOLERANCE:
            logger.info("self-check stars moved by %.2g of their errors at most", moved[worst])
            return
        if self.revision != labeller.revision:
            logger.warning(
                "%s was made by revision %d of %s and is used by revision %d, which mended a fault:"
                " %s of a self-check star moved by %.2g quoted errors; train it again to check it",
                *(model.path, self.revision, model.network["name"], labeller.revision),
                *(model.label_names[worst], moved[worst]),
            )
            return
        made_with = ", ".join(
            f"{name} {model.provenance[name]}"
            for name in ("maury", "torch", "numpy")
            if name in model.provenance
        )
        how = "is lost" if np.isinf(moved[worst]) else f"moved by {moved[worst]:.2g}"
        raise SelfCheckFailed(
            f"{model.path} does not give here the labels that it gave when it was made: for one of "
            f"its {len(self.inputs)} self-check stars {model.label_names[worst]} {how} (in quoted "
            f"errors; at most {TOLERANCE:g} is expected), so that a catalogue would be wrong; try "
            f"another engine (--engine torch), the versions that it was made with ({made_with}), "
            "or another machine"
        )


def require_self_check(model: Model, labeller: Labeller) -> None:
    """Check a model before it predicts, if it has self-check stars (`SelfCheck.require`)."""
    check = SelfCheck.load(model)
    if check is None:
        logger.info("%s has no self-check stars, so that its labels are not checked", model.path)
        return
    check.require(model, labeller)


def with_self_check(
    model: Model,
    sample: LabelledSample | None = None,
    *,
    network: EnsembleNetwork | MethodNetwork | None = None,
) -> Model:
    """Return a trained model with self-check stars, for `Model.save` to write.

    Parameters
    ----------
    model : Model
        Networks saved; or a method, saved or not.
    sample : LabelledSample, optional
        Labelled rows of the survey that trained it, for models that cannot simulate.
    network : EnsembleNetwork or MethodNetwork, optional
        That of the model, where it is loaded already.
    """
    if str(model.network["name"]) in _SLOW:
        return model
    labeller = open_labeller(model, network=network)
    inputs = _simulated(model) if "sky" in model.attachments else _observed(model, sample)
    if inputs is None or not len(inputs):
        logger.info("%s gets no self-check stars: there are none to take", model.path)
        return model
    found = SelfCheck.record(inputs, labeller)
    # The seed is fixed: which stars are steady belongs to the model, not to the day.
    noise = np.random.default_rng(0).standard_normal(inputs.flux.shape)
    nudged = replace(inputs, flux=(inputs.flux * (1.0 + _NUDGE * noise)).astype(np.float32))
    steady = np.flatnonzero(found.steady(SelfCheck.record(nudged, labeller), model))
    if not steady.size:
        logger.warning(
            "%s gets no self-check stars: the rounding of the flux alone moves its labels",
            model.path,
        )
        return model
    wanted = N_FITTED if model.is_method else N_STAR
    arrays = found.rows(steady[:wanted]).to_arrays()
    about = {"revision": found.revision, "noise_correlation": list(inputs.noise_correlation)}
    return model.with_arrays(SELF_CHECK, arrays, metadata=about)


def _noise_of(model: Model) -> tuple[float, ...]:
    """Return the noise correlation of the self-check stars."""
    known: dict[str, Any] = dict(model.attachments[SELF_CHECK].metadata)
    if "noise_correlation" not in known and model.is_method:
        # Methods of earlier versions fitted all spectra with the noise of those of the training.
        known = {**model.arrays(METHOD), **model.attachments[METHOD].metadata}
    return tuple(map(float, known.get("noise_correlation", RAVE_CORRELATION)))


def _simulated(model: Model) -> Inputs:
    from maury.prediction.uncertainty import simulated_stars

    star_simulator = TrainingStarSimulator.of_model(model)
    seed = int(np.random.SeedSequence(model.seed or 0, spawn_key=(_SEED_KEY,)).generate_state(1)[0])
    inputs, _ = simulated_stars(model, star_simulator, N_STAR, seed=seed)
    return inputs


def _observed(model: Model, sample: LabelledSample | None) -> Inputs | None:
    """Return validation stars that have a spectrum, in the order of the survey."""
    if sample is None:
        return None
    rows = np.flatnonzero(model.split.contains("validation", sample.survey.star_id))
    wanted = _SPARE * N_FITTED if model.is_method else N_STAR
    inputs = sample.prepared(rows[: 4 * wanted])
    return take(inputs, np.flatnonzero(has_spectrum(inputs))[:wanted])
