"""Labels of prepared stars by one protocol, whatever kind of model gives them.

`open_labeller` reads a model and returns its `Labeller`: calibrated networks
(`maury.prediction.uncertainty.UncertaintyModel`), other networks, or a method.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maury.io.arrays import Int64Array, StrArray
from maury.labels.flags import FLAG_DTYPE, Flag, set_where
from maury.methods.registry import MethodNetwork
from maury.model.directory import Model
from maury.model.output import Prediction
from maury.model.split import star_numbers
from maury.prediction.drift import Likeness
from maury.prediction.residual_calibration import ResidualCalibration
from maury.prediction.spectrum_likeness import SpectrumLikeness
from maury.spectra.batch import Batch
from maury.spectra.preparation import Inputs

if TYPE_CHECKING:
    from maury.model.inference import EnsembleNetwork
    from maury.prediction.uncertainty import UncertaintyModel

__all__ = ["Labeller", "open_labeller"]


class Labeller(ABC):
    """Predicts labels with errors and flags.

    Attributes
    ----------
    network : EnsembleNetwork or MethodNetwork
        What gives the bare labels.
    calibrated : bool
        Whether errors are calibrated with covariances, into which other labels can be taken.
    """

    network: EnsembleNetwork | MethodNetwork
    calibrated: ClassVar[bool] = False

    @property
    def revision(self) -> int:
        """Revision of what gives the labels (`Method.revision`); networks are their weights."""
        return 1

    def predict(self, inputs: Inputs, batch: Batch | None = None) -> Prediction:
        """Predict labels and errors as the networks or the method give them.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.
        batch : Batch, optional
            The rows that were prepared, of which a method takes labels known from elsewhere.
        """
        del batch
        return self.network.predict(inputs)

    def calibrate(self, inputs: Inputs, prediction: Prediction) -> Prediction:
        """Return a prediction of `predict` with the errors of a catalogue, and no flags."""
        del inputs
        # A covariance that nothing has calibrated stays out of the catalogue.
        return Prediction(prediction.mean, prediction.sigma)

    @property
    def with_theory(self) -> UncertaintyModel | None:
        """Itself, if it knows the spectrum that labels should have; else None."""
        return None

    @abstractmethod
    def assess(
        self, inputs: Inputs, prediction: Prediction, star_id: StrArray | None = None
    ) -> Prediction:
        """Return a prediction of `predict` with the errors and the flags of a catalogue.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.
        prediction : Prediction
            As `predict` gave it.
        star_id : (n_star,) str, optional
            Star of each spectrum, so that no training star is compared with itself.
        """


def open_labeller(
    model: Model,
    *,
    engine: str = "auto",
    network: EnsembleNetwork | MethodNetwork | None = None,
) -> Labeller:
    """Read what labels stars for a model; a method needs no torch.

    Parameters
    ----------
    model : Model
        A saved model.
    engine : {"auto", "torch", "compiled"}
        What computes the networks (`maury.model.engines.engine.make_engine`).
    network : EnsembleNetwork or MethodNetwork, optional
        That of the model, where it is loaded already.

    Raises
    ------
    ModelFileError
        If networks, method or an attachment are damaged.
    UnknownName, MissingExtra
        If there is no such engine, or it is not installed.
    """
    if model.is_method:
        method = network if isinstance(network, MethodNetwork) else MethodNetwork(model)
        return MethodLabeller(method, *_learnt(model))
    # torch takes seconds to import, which no method should pay for.
    from maury.model.inference import EnsembleNetwork
    from maury.prediction.uncertainty import UncertaintyModel

    if not isinstance(network, EnsembleNetwork):
        network = EnsembleNetwork(model, engine=engine)
    return UncertaintyModel.load(model, network) or PlainLabeller(network, *_learnt(model))


@dataclass(frozen=True, eq=False)
class PlainLabeller(Labeller):
    """Networks without theory: labels and errors, unlike spectra flagged.

    Attributes
    ----------
    network : EnsembleNetwork
    likeness : Likeness or None
        Tells spectra that are far from all training spectra.
    spectra : SpectrumLikeness or None
        Tells those that are unlike them; None in older models.
    errors : ResidualCalibration or None
        None in older models, and where too few stars tell: errors are then the spread of the
        ensemble.
    """

    network: EnsembleNetwork
    likeness: Likeness | None
    spectra: SpectrumLikeness | None = None
    errors: ResidualCalibration | None = None

    def calibrate(self, inputs: Inputs, prediction: Prediction) -> Prediction:
        """Return calibrated errors and quantiles, or the spread of the ensemble."""
        # A covariance that nothing has calibrated stays out of the catalogue.
        bare = Prediction(prediction.mean, prediction.sigma)
        return bare if self.errors is None else self.errors.calibrate(inputs, bare)

    def assess(
        self, inputs: Inputs, prediction: Prediction, star_id: StrArray | None = None
    ) -> Prediction:
        """Flag spectra unlike those of the training sample."""
        flags = _unlike(self.likeness, self.spectra, inputs, star_id)
        return replace(self.calibrate(inputs, prediction), flags=flags)


@dataclass(frozen=True, eq=False)
class MethodLabeller(Labeller):
    """A method: labels, errors, covariances and flags of its own fit, unlike spectra flagged.

    Attributes
    ----------
    network : MethodNetwork
    likeness, spectra, errors
        As of `PlainLabeller`; without `errors` those of the fit are given.
    """

    network: MethodNetwork
    likeness: Likeness | None
    spectra: SpectrumLikeness | None = None
    errors: ResidualCalibration | None = None

    @property
    def revision(self) -> int:
        """Revision of the method."""
        return self.network.method.revision

    def predict(self, inputs: Inputs, batch: Batch | None = None) -> Prediction:
        """Fit, with the labels that the method takes from columns of the batch."""
        return self.network.predict(inputs, {} if batch is None else self.network.external(batch))

    def calibrate(self, inputs: Inputs, prediction: Prediction) -> Prediction:
        """Return calibrated errors, or those of the fit; without a model chi-square is NaN."""
        unknown = np.full(len(inputs), np.nan)
        if self.errors is not None:
            prediction = self.errors.calibrate(inputs, prediction)
        chi2, worst = prediction.chi2_reduced, prediction.worst_wavelength_aa
        return replace(
            prediction,
            flags=None,
            chi2_reduced=unknown if chi2 is None else chi2,
            worst_wavelength_aa=unknown if worst is None else worst,
        )

    def assess(
        self, inputs: Inputs, prediction: Prediction, star_id: StrArray | None = None
    ) -> Prediction:
        """Add the flags of the fit, and of spectra unlike those of the training sample."""
        flags = _unlike(self.likeness, self.spectra, inputs, star_id)
        if prediction.flags is not None:
            flags = flags | prediction.flags
        if self.errors is not None and prediction.chi2_reduced is not None:
            poor = self.errors.poor(inputs, prediction.chi2_reduced)
            flags = set_where(flags, Flag.RECONSTRUCTION_POOR, poor)
        return replace(self.calibrate(inputs, prediction), flags=flags)


def _learnt(
    model: Model,
) -> tuple[Likeness | None, SpectrumLikeness | None, ResidualCalibration | None]:
    """Read what a model without theory has learnt of its training stars."""
    return Likeness.load(model), SpectrumLikeness.load(model), ResidualCalibration.load(model)


def _unlike(
    likeness: Likeness | None,
    spectra: SpectrumLikeness | None,
    inputs: Inputs,
    star_id: StrArray | None,
) -> Int64Array:
    flags = np.zeros(len(inputs), FLAG_DTYPE)
    if likeness is not None:
        flags = set_where(flags, Flag.SPECTRUM_UNLIKE, likeness.unlike(inputs))
    if spectra is not None:
        star = None if star_id is None else star_numbers(star_id)
        flags = set_where(flags, Flag.SPECTRUM_UNLIKE, spectra.unlike(inputs, star))
    return flags
