"""How the labels of an ensemble change with the flux of each pixel, by differentiation."""

import numpy as np
import torch
from numpy.typing import NDArray

from maury.inference import load_members
from maury.model import Model
from maury.networks import network_config
from maury.preparation import Inputs


def flux_gradient(model: Model, inputs: Inputs) -> NDArray[np.float64]:
    """Differentiate the mean of the kept networks by the flux that they take.

    Parameters
    ----------
    model : Model
        A saved model.
    inputs : Inputs
        Prepared by the preparation of the model.

    Returns
    -------
    (n_star, n_label, n_pixel) float64
        Unit of each label per unit of flux, dropout being off, a missing band not being filled
        in; NaN for a star without an answer.
    """
    options = {name: value for name, value in model.network.items() if name != "name"}
    config = network_config(str(model.network["name"]), options)
    observables = model.scaling.observables.forward(inputs.observables)
    if not config.photometry:
        observables = observables[:, :0]
    ivar, seen = torch.from_numpy(inputs.ivar), torch.from_numpy(observables)
    flux = torch.from_numpy(inputs.flux.copy()).requires_grad_()
    networks = load_members(model)
    shape = (len(inputs), len(model.labels), inputs.flux.shape[1])
    total = np.zeros(shape)
    for network in networks:
        mean = config.answer(network, flux, ivar, seen).mean
        for position in range(shape[1]):
            (slope,) = torch.autograd.grad(mean[:, position].sum(), flux, retain_graph=True)
            total[:, position] += slope.double().numpy()
        total[~torch.isfinite(mean).all(dim=1).numpy()] = np.nan
    scale = model.scaling.labels.scale[:, None]
    return np.asarray(total * scale / len(networks))
