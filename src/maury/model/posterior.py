"""Draws from the posteriors of networks that are invertible, before any calibration."""

import numpy as np
import torch

from maury.errors import ConfigError
from maury.io.arrays import Float64Array
from maury.model.directory import Model
from maury.model.inference import has_observables, has_spectrum, load_members
from maury.model.networks.base import network_config_of
from maury.model.networks.invertible import InvertibleNetwork
from maury.spectra.preparation import Inputs

_ROWS = 64
"""Stars at a time: bounds the memory to some 100 MB at a thousand draws; chosen."""


def posterior_samples(model: Model, inputs: Inputs, n_draw: int, *, seed: int) -> Float64Array:
    """Draw labels from the posteriors of an ensemble of invertible networks.

    Parameters
    ----------
    model : Model
        Saved, of the preset ``candebat2024``.
    inputs : Inputs
        Prepared by the preparation of the model.
    n_draw : int
        Draws of each star, from the networks in turn.
    seed : int

    Returns
    -------
    (n_star, n_draw, n_label) float64
        In the units of the labels; NaN for a star without a prediction. They are those of the
        networks: `maury predict --samples` draws with calibrated errors.

    Raises
    ------
    ConfigError
        If the networks are not invertible.
    """
    members = load_members(model)
    config = network_config_of(model.network)
    if not all(isinstance(network, InvertibleNetwork) for network in members):
        raise ConfigError(
            f"{model.path}: networks of '{config.name}' have no posterior to draw from"
        )
    observables = model.scaling.observables.forward(inputs.observables)
    seen = torch.from_numpy(observables[:, : None if config.photometry else 0])
    usable = has_spectrum(inputs) & has_observables(inputs, config)
    out = np.full((len(inputs), n_draw, len(model.labels)), np.nan)
    rng = np.random.default_rng(seed)
    latent = torch.from_numpy(rng.standard_normal((n_draw, len(model.labels)), dtype=np.float32))
    rows = np.flatnonzero(usable)
    with torch.inference_mode():
        for start in range(0, rows.size, _ROWS):
            some = rows[start : start + _ROWS]
            flux = torch.from_numpy(np.ascontiguousarray(inputs.flux[some]))
            for number, network in enumerate(members):
                mine = slice(number, n_draw, len(members))
                scaled = network(flux, seen[some]).samples(latent[mine])
                flat = scaled.double().numpy().reshape(-1, len(model.labels))
                out[some, mine] = model.scaling.labels.inverse(flat).reshape(scaled.shape)
    return out
