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
from maury.prediction.drift import Likeness
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
        Whether errors are calibrated, with quantiles and covariances.
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
        return MethodLabeller(method, Likeness.load(model))
    # torch takes seconds to import, which no method should pay for.
    from maury.model.inference import EnsembleNetwork
    from maury.prediction.uncertainty import UncertaintyModel

    if not isinstance(network, EnsembleNetwork):
        network = EnsembleNetwork(model, engine=engine)
    return UncertaintyModel.load(model, network) or PlainLabeller(network, Likeness.load(model))


@dataclass(frozen=True, eq=False)
class PlainLabeller(Labeller):
    """Networks without calibration: labels, the spread of the ensemble, unlike spectra flagged."""

    network: EnsembleNetwork
    likeness: Likeness | None

    def assess(
        self, inputs: Inputs, prediction: Prediction, star_id: StrArray | None = None
    ) -> Prediction:
        """Flag spectra unlike those of the training sample."""
        del star_id
        return replace(self.calibrate(inputs, prediction), flags=_unlike(self.likeness, inputs))


@dataclass(frozen=True, eq=False)
class MethodLabeller(Labeller):
    """A method: labels, errors, covariances and flags of its own fit, unlike spectra flagged."""

    network: MethodNetwork
    likeness: Likeness | None

    @property
    def revision(self) -> int:
        """Revision of the method."""
        return self.network.method.revision

    def predict(self, inputs: Inputs, batch: Batch | None = None) -> Prediction:
        """Fit, with the labels that the method takes from columns of the batch."""
        return self.network.predict(inputs, {} if batch is None else self.network.external(batch))

    def calibrate(self, inputs: Inputs, prediction: Prediction) -> Prediction:
        """Return the errors of the fit; where it has no forward model, chi-square is NaN."""
        unknown = np.full(len(inputs), np.nan)
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
        del star_id
        flags = _unlike(self.likeness, inputs)
        if prediction.flags is not None:
            flags = flags | prediction.flags
        return replace(self.calibrate(inputs, prediction), flags=flags)


def _unlike(likeness: Likeness | None, inputs: Inputs) -> Int64Array:
    flags = np.zeros(len(inputs), FLAG_DTYPE)
    if likeness is None:
        return flags
    return set_where(flags, Flag.SPECTRUM_UNLIKE, likeness.unlike(inputs))
