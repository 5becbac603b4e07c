"""The kept networks of a model, applied: mean, errors and covariance of their outputs."""

import math
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import nn

from maury.errors import ConfigError, GridMismatch, ModelFileError
from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array
from maury.io.limits import current, exceeded
from maury.labels.columns import BANDS
from maury.model.directory import Affine, Model
from maury.model.engines.engine import BLOCK_ROWS, EnsembleOutput, make_engine
from maury.model.imputation import Imputer
from maury.model.networks.published import NetworkConfig, build, network_config_of
from maury.model.output import Prediction as Prediction
from maury.model.output import has_spectrum as has_spectrum
from maury.spectra.preparation import FurtherColumns, Inputs
from maury.spectra.spectra import describe_grid

_PREDICT_ROWS = 3 * BLOCK_ROWS
"""Stars whose outputs are joined together: enough to be quick, few enough for the cache; chosen."""
_LEAST_BANDS = 0.5
"""Least share of the bands of a model that a star without a spectrum must have to get labels."""
_BAND_NAMES = frozenset(band.name for band in BANDS)


def load_members(model: Model) -> list[nn.Module]:
    """Build the kept networks of a model, in evaluation mode.

    Raises
    ------
    ModelFileError
        If the architecture is not known, or the weights do not fit it.
    """
    config = _network_of(model)
    if config.n_passes * len(model.kept) > current().passes:
        passes = config.n_passes * len(model.kept)
        raise exceeded(str(model.path), f"asks for {passes} passes of dropout", "passes")
    n_observable = len(model.preparation.observable_names) if config.photometry else 0
    networks = []
    for member in model.kept:
        arrays = model.weights(member)
        # Copies, which torch places for its own instructions: other places round otherwise.
        weights = {name: torch.from_numpy(array).clone() for name, array in arrays.items()}
        try:
            # Shapes alone: memory is for weights that lie in the file, not for what settings say.
            with torch.device("meta"):
                network = build(config, model.n_pixel, n_observable, len(model.labels))
            network.load_state_dict(weights, assign=True)
        except (ConfigError, RuntimeError) as error:
            raise ModelFileError(
                f"{model.path}: the weights do not fit the network '{config.name}': {error}"
            ) from error
        networks.append(network.eval())
    return networks


def _network_of(model: Model) -> NetworkConfig:
    if model.is_method:
        raise ConfigError(
            f"{model.path} is the method '{model.network['name']}', which has no networks; "
            "give a model that was trained with a preset"
        )
    try:
        return network_config_of(model.network)
    except ConfigError as error:
        raise ModelFileError(f"{model.path}: {error}; use a newer maury") from error


class EnsembleNetwork:
    """The kept networks of a model as one: mean and spread of their outputs.

    Parameters
    ----------
    model : Model
        A saved model.
    engine : {"auto", "torch", "compiled"}
        What computes the networks, see `maury.model.engines.engine.make_engine`.

    Attributes
    ----------
    members : list of Module
        The kept networks, in evaluation mode.

    Raises
    ------
    ModelFileError
        If the architecture is not known, or the weights do not fit it.
    UnknownName, MissingExtra
        If there is no such engine, or it is not installed.
    """

    def __init__(self, model: Model, *, engine: str = "auto") -> None:
        self.model = model
        self._config = _network_of(model)
        n_observable = len(model.preparation.observable_names)
        self.members = load_members(model)
        self._engine = make_engine(
            engine,
            self._config,
            self.members,
            n_pixel=model.n_pixel,
            n_observable=n_observable if self._config.photometry else 0,
        )
        self._imputer = _imputer_of(model)
        groups = model.preparation.observables
        enough = [
            isinstance(group, FurtherColumns) and group.suffices
            for group in groups
            for _ in group.names
        ]
        self._suffices = np.array(enough, dtype=np.bool_)
        mapping = model.preparation.observable_map
        self._of_band = mapping.responses[mapping.bands] != 0

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

    def predict(self, inputs: Inputs, *, only: int | None = None) -> Prediction:
        """Predict labels and errors.

        Parameters
        ----------
        inputs : Inputs
            Prepared by the preparation of the model.
        only : int, optional
            Number of one network among the kept ones, to be applied alone.

        Returns
        -------
        Prediction
            Mean of the networks. The error is the standard deviation over the networks (n - 1),
            NaN with a single one; where networks predict variances or covariances, their mean is
            added to the variance over the networks (the law of total variance). A row that lacks
            what the networks need is NaN.

        Raises
        ------
        GridMismatch
            If the spectra have another number of pixels than the model takes.
        """
        if inputs.flux.shape[1] != self.model.n_pixel:
            raise GridMismatch(
                f"the prepared spectra have {inputs.flux.shape[1]} pixels "
                f"({describe_grid(inputs.wave_aa, inputs.medium)}) and {self.model.path} takes "
                f"{self.model.n_pixel} ({describe_grid(self.model.wave_aa, self.model.medium)}); "
                "give a survey on the grid of the model, as this command converts none ('maury "
                "predict' does, where it can)"
            )
        spectrum = has_spectrum(inputs)
        rows = np.flatnonzero(self._usable(inputs, spectrum))
        # One empty block where no star is usable: the shapes of the outputs come from the networks.
        starts = range(0, max(rows.size, 1), _PREDICT_ROWS)
        parts = [self._answer(inputs, spectrum, rows[k : k + _PREDICT_ROWS], only) for k in starts]
        n = len(inputs.flux)

        def whole(name: str) -> Any:
            pieces = [getattr(part, name) for part in parts]
            # All blocks lack a part or none does, for the networks decide that.
            if any(piece is None for piece in pieces):
                return None
            joined = np.concatenate(pieces)
            out = np.full((n, *joined.shape[1:]), np.nan, dtype=joined.dtype)
            out[rows] = joined
            return out

        # Columns of its own has a method alone.
        names = [f.name for f in fields(Prediction) if f.name != "further"]
        return Prediction(**{name: whole(name) for name in names})

    def photometry_share(self, observables: Float32Array) -> Float64Array:
        """Share (n_star,) of the bands of which stars have a magnitude or colour.

        Further columns that suffice stand for all of them.
        """
        there = np.isfinite(observables).astype(np.float32)
        seen = there @ self._of_band.T.astype(np.float32) > 0
        share = seen.sum(axis=1) / max(len(self._of_band), 1)
        return np.where(there[:, self._suffices].any(axis=1), 1.0, share)

    def _usable(self, inputs: Inputs, spectrum: BoolArray) -> BoolArray:
        if self._config.needs_spectrum:
            return spectrum & has_observables(inputs, self._config)
        # An extinction alone says nothing of a star, and few bands so little that errors do not
        # hold: of three of eight bands 40 to 60 % of labels lay within one. Networks that did not
        # meet such stars answer as before.
        share = self.photometry_share(inputs.observables)
        met = bool(getattr(self._config, "blocks", 0))
        seen = share >= _LEAST_BANDS if met else share > 0
        return np.asarray(spectrum | (seen & self._config.photometry), dtype=np.bool_)

    def _answer(
        self,
        inputs: Inputs,
        spectrum: BoolArray,
        rows: Int64Array,
        only: int | None,
    ) -> Prediction:
        """Output of all networks, or of one, for some usable rows."""
        observables = np.asarray(inputs.observables[rows], dtype=np.float32)
        if self._imputer is not None:
            observables = self._filled(self._imputer, observables)
        observables = self.model.scaling.observables.forward(observables)
        if not self._config.photometry:
            observables = observables[:, :0]
        # A constant spectrum is none, though its pixels have a weight.
        dark = ~spectrum[rows, None]
        ivar = np.where(dark, np.float32(0), inputs.ivar[rows])
        flux = np.asarray(inputs.flux[rows], dtype=np.float32)
        outputs = self._engine.predict(flux, ivar, observables)
        chosen = outputs if only is None else outputs.member(only)
        return join_members(chosen, self.model.scaling.labels)

    def _filled(self, imputer: Imputer, observables: Float32Array) -> Float32Array:
        """Fill in bands; further columns neither tell a band nor are told by any."""
        further = self.model.preparation.is_further
        if not further.any():
            return imputer.fill(observables)
        out = observables.copy()
        out[:, ~further] = imputer.fill(np.ascontiguousarray(observables[:, ~further]))
        return out


def join_members(outputs: EnsembleOutput, scaling: Affine) -> Prediction:
    """Return mean, errors and covariance of the members' outputs, in the unit of each label.

    Parameters
    ----------
    outputs : EnsembleOutput
        Scaled.
    scaling : Affine
        Of the labels.
    """
    means = outputs.mean
    variance = None if outputs.variance is None else outputs.variance.mean(axis=0)
    if len(means) > 1:
        # n - 1: of four members, dividing by n would make the spread 13 % too small.
        spread = means.var(axis=0, ddof=1)
        variance = spread if variance is None else variance + spread
    if variance is None:
        variance = np.full(means.shape[1:], math.nan)
    covariance = None if outputs.covariance is None else outputs.covariance.mean(axis=0)
    if covariance is not None:
        if len(means) > 1:
            apart = (means - means.mean(axis=0)).transpose(1, 2, 0)
            covariance += apart @ apart.transpose(0, 2, 1) / (len(means) - 1)
        # Scaled labels become physical ones by a diagonal matrix S, covariances by S C S.
        covariance *= scaling.scale[:, None] * scaling.scale
    return Prediction(
        mean=scaling.inverse(means.mean(axis=0)),
        sigma=np.sqrt(variance) * scaling.scale,
        covariance=covariance,
        features=outputs.features,
    )


def _imputer_of(model: Model) -> Imputer | None:
    """Regressions for a band that is missing, where the model carries its training stars.

    Only for models of before: networks that met every subset of the bands lose nothing without it.
    """
    later = bool(model.network.get("blocks", 0))
    if later or "sky" not in model.attachments or model.network.get("photometry") is False:
        return None
    names, depends = model.preparation.source_names, model.preparation.sources
    is_band = [name in _BAND_NAMES for name in names]
    observables, depends = model.arrays("sky")["observables"], depends[is_band]
    further = model.preparation.is_further
    if further.any():
        # A quadratic regression on a hundred columns more would have thousands of terms.
        observables, depends = observables[:, ~further], depends[:, ~further]
    return Imputer.fit(observables, depends)


def has_observables(inputs: Inputs, network: NetworkConfig) -> BoolArray:
    """Return which stars (n_star,) have the observables that a network cannot do without."""
    if not network.photometry or network.takes_missing:
        return np.ones(len(inputs.flux), dtype=np.bool_)
    return np.asarray(np.isfinite(inputs.observables).all(axis=1), dtype=np.bool_)


def flux_gradient(
    model: Model, inputs: Inputs, *, members: Sequence[nn.Module] | None = None
) -> Float64Array:
    """Differentiate the mean of the kept networks by the flux that they take.

    Parameters
    ----------
    model : Model
        A saved model.
    inputs : Inputs
        Prepared by the preparation of the model.
    members : sequence of Module, optional
        Its networks, where they are loaded already.

    Returns
    -------
    (n_star, n_label, n_pixel) float64
        Unit of each label per unit of flux, dropout being off, a missing band not being filled
        in; NaN for a star without a prediction.
    """
    config = network_config_of(model.network)
    observables = model.scaling.observables.forward(inputs.observables)
    if not config.photometry:
        observables = observables[:, :0]
    networks = load_members(model) if members is None else members
    # An engine may have moved the networks to a GPU.
    device = next(networks[0].parameters()).device
    ivar = torch.from_numpy(inputs.ivar).to(device)
    seen = torch.from_numpy(observables).to(device)
    # A copy, for torch shares the memory of arrays.
    flux = torch.from_numpy(inputs.flux.copy()).to(device).requires_grad_()
    shape = (len(inputs), len(model.labels), inputs.flux.shape[1])
    total = np.zeros(shape)
    for network in networks:
        mean = config.predict(network, flux, ivar, seen).mean
        for position in range(shape[1]):
            # No star sees another one, so that the gradient of the sum holds that of each.
            (slope,) = torch.autograd.grad(mean[:, position].sum(), flux, retain_graph=True)
            total[:, position] += slope.double().cpu().numpy()
        total[~torch.isfinite(mean).all(dim=1).cpu().numpy()] = np.nan
    scale = model.scaling.labels.scale[:, None]
    return np.asarray(total * scale / len(networks))
