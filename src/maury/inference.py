"""The kept networks of a model, applied: mean, errors and covariance of their answers."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from maury.answers import Prediction as Prediction
from maury.answers import has_spectrum as has_spectrum
from maury.columns import BANDS
from maury.errors import ConfigError, ModelFileError
from maury.imputation import Imputer
from maury.model import Float64s, Model
from maury.networks import Answer, NetworkConfig, build, network_config, thinned
from maury.preparation import Inputs

_PREDICT_ROWS = 512
_BAND_NAMES = frozenset(band.name for band in BANDS)

Float32s = NDArray[np.float32]


def load_members(model: Model) -> list[nn.Module]:
    """Build the kept networks of a model, in evaluation mode.

    Raises
    ------
    ModelFileError
        If the architecture is not known, or the weights do not fit it.
    """
    config = _network_of(model)
    n_observable = len(model.preparation.observable_names) if config.photometry else 0
    networks = []
    for member in model.kept:
        weights = {name: torch.from_numpy(array) for name, array in model.weights(member).items()}
        try:
            with torch.random.fork_rng(devices=[]):
                network = build(config, model.n_pixel, n_observable, len(model.labels))
            network.load_state_dict(weights)
        except (ConfigError, RuntimeError) as error:
            raise ModelFileError(
                f"{model.path}: the weights do not fit the network '{config.name}': {error}"
            ) from error
        networks.append(network.eval())
    return networks


def _network_of(model: Model) -> NetworkConfig:
    options = {name: value for name, value in model.network.items() if name != "name"}
    try:
        return network_config(str(model.network["name"]), options)
    except ConfigError as error:
        raise ModelFileError(f"{model.path}: {error}; use a newer maury") from error


class EnsembleNetwork:
    """The kept networks of a model as one: mean and spread of their answers.

    Parameters
    ----------
    model : Model
        A saved model.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._config = _network_of(model)
        self._networks = load_members(model)
        self._imputer = _imputer_of(model)
        groups = model.preparation.observables
        bright = [bool(group.bands) for group in groups for _ in group.names]
        self._is_photometry = np.array(bright, dtype=np.bool_)

    @property
    def needs_spectrum(self) -> bool:
        """Whether a star without a spectrum is not answered."""
        return self._config.needs_spectrum

    @property
    def needs(self) -> set[str]:
        """Inputs without which no star is answered: ``spectrum``, ``photometry``, sources."""
        needed = {"spectrum"} if self._config.needs_spectrum else set()
        if self._config.photometry and not self._config.takes_missing:
            needed |= {"photometry", *self.model.preparation.source_names}
        return needed

    def predict(self, inputs: Inputs) -> Prediction:
        """Predict labels and errors.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.

        Returns
        -------
        Prediction
            Mean of the networks. The error is the standard deviation over the networks (n - 1),
            NaN with a single one; where networks predict variances or covariances, their mean is
            added to the variance over the networks (the law of total variance). A row that lacks
            what the networks need is NaN.
        """
        rows = np.flatnonzero(self._usable(inputs))
        starts = range(0, max(rows.size, 1), _PREDICT_ROWS)
        parts = [self._answer(inputs, rows[k : k + _PREDICT_ROWS]) for k in starts]
        n = len(inputs.flux)

        def whole(name: str) -> Any:
            pieces = [getattr(part, name) for part in parts]
            if any(piece is None for piece in pieces):
                return None
            joined = np.concatenate(pieces)
            out = np.full((n, *joined.shape[1:]), np.nan, dtype=joined.dtype)
            out[rows] = joined
            return out

        return Prediction(**{f.name: whole(f.name) for f in fields(Prediction)})

    def _usable(self, inputs: Inputs) -> NDArray[np.bool_]:
        spectrum = has_spectrum(inputs)
        if self._config.needs_spectrum:
            return spectrum & has_observables(inputs, self._config)
        seen = np.isfinite(inputs.observables[:, self._is_photometry]).any(axis=1)
        return np.asarray(spectrum | (seen & self._config.photometry), dtype=np.bool_)

    def _answer(self, inputs: Inputs, rows: NDArray[np.int64]) -> Prediction:
        """Answer of all networks to some usable rows."""
        observables = np.asarray(inputs.observables[rows], dtype=np.float32)
        if self._imputer is not None:
            observables = self._imputer.fill(observables)
        observables = self.model.scaling.observables.forward(observables)
        if not self._config.photometry:
            observables = observables[:, :0]
        # A constant spectrum is none, though its pixels have a weight.
        dark = ~has_spectrum(inputs)[rows, None]
        ivar = np.where(dark, np.float32(0), inputs.ivar[rows])
        flux = np.asarray(inputs.flux[rows], dtype=np.float32)
        tensors = [torch.from_numpy(array) for array in (flux, ivar, observables)]
        with torch.inference_mode():
            answers = [self._member(k, net, tensors) for k, net in enumerate(self._networks)]
        return self._join(answers)

    def _member(self, number: int, network: nn.Module, tensors: list[Tensor]) -> Answer:
        """Answer of one network; dropout passes are joined by the law of total variance."""
        n_passes = self._config.n_passes
        if not n_passes:
            return self._config.answer(network, *tensors)
        passes = []
        for index in range(n_passes):
            with thinned(network, number * 100_003 + index):
                passes.append(self._config.answer(network, *tensors))
        means = torch.stack([one.mean for one in passes]).double()
        variance = means.var(dim=0, correction=0)
        predicted = [one.variance for one in passes if one.variance is not None]
        if predicted:
            variance = variance + torch.stack(predicted).double().mean(dim=0)
        return Answer(means.mean(dim=0), variance)

    def _join(self, answers: list[Answer]) -> Prediction:
        scaling = self.model.scaling.labels
        means = np.stack([answer.mean.double().numpy() for answer in answers])
        variance = _mean_of([answer.variance for answer in answers])
        if len(answers) > 1:
            spread = means.var(axis=0, ddof=1)
            variance = spread if variance is None else variance + spread
        if variance is None:
            variance = np.full(means.shape[1:], math.nan)
        covariance = _mean_of([answer.covariance for answer in answers])
        if covariance is not None:
            if len(answers) > 1:
                apart = means - means.mean(axis=0)
                covariance += np.einsum("mni,mnj->nij", apart, apart) / (len(answers) - 1)
            covariance *= scaling.scale[:, None] * scaling.scale
        features = answers[0].features
        return Prediction(
            mean=scaling.inverse(means.mean(axis=0)),
            sigma=np.sqrt(variance) * scaling.scale,
            covariance=covariance,
            features=None if features is None else features.numpy(),
        )


def _imputer_of(model: Model) -> Imputer | None:
    """Regressions for a band that is missing, where the model carries its training stars."""
    if "sky" not in model.attachments or model.network.get("photometry") is False:
        return None
    names, depends = model.preparation.source_names, model.preparation.sources
    is_band = [name in _BAND_NAMES for name in names]
    return Imputer.fit(model.arrays("sky")["observables"], depends[is_band])


def _mean_of(tensors: Sequence[Tensor | None]) -> Float64s | None:
    """Mean of what the networks predict, in double precision; None if they do not."""
    known = [tensor.double().numpy() for tensor in tensors if tensor is not None]
    return np.mean(known, axis=0) if known else None


def has_observables(inputs: Inputs, network: NetworkConfig) -> NDArray[np.bool_]:
    """Return which stars (n_star,) have the observables that a network cannot do without."""
    if not network.photometry or network.takes_missing:
        return np.ones(len(inputs.flux), dtype=np.bool_)
    return np.asarray(np.isfinite(inputs.observables).all(axis=1), dtype=np.bool_)
