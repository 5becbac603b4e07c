"""Published networks that predict a variance beside each label."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from maury.io.config_files import at_most
from maury.model.networks.base import (
    Filters,
    ScalingRule,
    Units,
    linear,
    preset,
)
from maury.model.networks.layers import (
    Centre,
    PassDropout,
    TwoBranch,
    gaussian_loss,
    he_normal,
    initialise,
    log_variance_moments,
    positive,
    sequence,
)
from maury.model.networks.pooled import Pooled, narrow

_LEAST_VARIANCE = 1e-3
"""Added to the variance by the authors' Gaussian layer (StarNet, `GaussianLayer`)."""
_LARGEST_NORM = 0.5
"""Of the weights of each auxiliary unit (astroNN, `ApogeeBCNNCensored`, `maxnorm`)."""
_WIDE = (8, 4)
"""Times that the layers of carbon and nitrogen are wider, whose molecules are in many pixels."""

PixelRange = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=1)]]


@preset
class Bialek2020(Pooled):
    """StarNet of Bialek et al. (2020, MNRAS 498, 3817, arXiv:1911.02602): mean and variance.

    A deep ensemble (Lakshminarayanan et al. 2017, NeurIPS 30): networks from other initial weights,
    each of which predicts a Gaussian and is trained by its likelihood, joined by the law of total
    variance. Layers, initial weights, variance (softplus + .001), rate, batch, the cut of gradients
    at norm 1 and the halving of the rate on a plateau are those of the authors' code
    (`StarNet2017DeepEnsemble`).
    """

    name: ClassVar[str] = "bialek2020"
    paper: ClassVar[str] = "Bialek et al. 2020, MNRAS 498, 3817"
    bibtex_key: ClassVar[str] = "2020MNRAS.498.3817B"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 32,
        "learning_rate": 7e-4,
        "epochs": 60,
        "patience": 12,
        "least_gain": 1e-4,
        "plateau": 3,
        "plateau_gain": 1e-4,
        "least_rate": 2e-5,
        "gradient_norm": 1.0,
    }
    # A deep ensemble is all of its networks.
    ensemble_defaults: ClassVar[Mapping[str, Any]] = {"percentile": 100.0}
    scaling: ClassVar[ScalingRule] = "standard"

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        spectrum = sequence(*self.spectrum_layers(n_pixel, 0.0))
        photometry, n_feature = self.observable_layers(n_observable)
        hidden, out = linear(n_feature, self.units[1]), linear(self.units[1], 2 * n_label)
        head = sequence(("hidden", hidden), ("act", nn.ReLU()), ("out", out))
        network = initialise(
            TwoBranch(spectrum, photometry, head),
            he_normal,
        )
        if not out.weight.is_meta:
            nn.init.xavier_normal_(out.weight)
        return network

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Gaussian negative log-likelihood, .5 [log V + (y - yhat)^2 / V], of labels present.

        Bialek et al. (2020), section 2; errors of labels, of which synthetic spectra have none,
        are added to V.
        """
        return gaussian_loss(*_softplus_moments(output), target, target_variance)

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and predicted variance, each (n, n_label), in scaled units."""
        return _softplus_moments(output)


def _softplus_moments(output: Tensor) -> tuple[Tensor, Tensor]:
    mean, raw = output.chunk(2, dim=1)
    return mean, functional.softplus(raw) + _LEAST_VARIANCE


class _Element(nn.Module):
    """One element: dense layers over its windows, joined with what the whole spectrum says."""

    pixels: Tensor

    def __init__(self, pixels: Tensor, units: tuple[int, int], n_full: int, dropout: float) -> None:
        super().__init__()
        # Not with the weights: the settings of the network say them.
        self.register_buffer("pixels", pixels, persistent=False)
        self.layers = sequence(
            ("dense1", linear(len(pixels), units[0])),
            ("act1", nn.ReLU()),
            ("dropout1", PassDropout(dropout)),
            ("dense2", linear(units[0], units[1])),
            ("act2", nn.ReLU()),
            ("dropout2", PassDropout(dropout)),
        )
        self.out = linear(units[1] + n_full, 2)

    def forward(self, flux: Tensor, full: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log variance, (n, 1) each, of flux (n, n_pixel) and full (n, n_full)."""
        seen = self.layers(flux[:, self.pixels])
        mean, log_variance = self.out(torch.cat([seen, full], dim=1)).chunk(2, dim=1)
        return mean, log_variance


class Censored(nn.Module):
    """Labels of the whole spectrum, and of each element's windows beside them."""

    def __init__(
        self,
        whole: nn.Module,
        out: nn.Module,
        auxiliary: nn.Linear | None,
        elements: nn.ModuleList,
    ) -> None:
        super().__init__()
        self.whole, self.out, self.auxiliary, self.elements = whole, out, auxiliary, elements

    def forward(self, flux: Tensor, observables: Tensor) -> Tensor:
        """Return means and log variances, (n, 2 n_label)."""
        features = self.whole(flux, observables)
        mean, log_variance = self.out(features).chunk(2, dim=1)
        if self.auxiliary is None:
            return torch.cat([mean, log_variance], dim=1)
        norm = self.auxiliary.weight.norm(dim=1, keepdim=True).clamp(min=1e-12)
        weight = self.auxiliary.weight * (_LARGEST_NORM / norm).clamp(max=1.0)
        few = functional.linear(features, weight, self.auxiliary.bias)
        # No element may bend Teff, log g or [Fe/H] to its own ends.
        full = torch.cat([few, mean.detach()], dim=1)
        centred = self.whole.get_submodule("spectrum.centre")(flux.unsqueeze(1)).squeeze(1)
        parts = [element(centred, full) for element in self.elements]
        means = torch.cat([mean, *(part[0] for part in parts)], dim=1)
        return torch.cat([means, log_variance, *(part[1] for part in parts)], dim=1)


@preset
class Leung2019(Pooled):
    """Censored network of Leung & Bovy (2019, MNRAS 483, 3255): elements see their windows alone.

    Teff, log g and [Fe/H] come from the whole spectrum, as in `astronn`; each further label from
    the pixels of its own lines, from those three, and from two units that may know little else. So
    an abundance is measured, and not guessed from others that go with it. As in the authors' code
    (`ApogeeBCNNCensored`). Labels are in the order of ``[ensemble] labels``.

    Attributes
    ----------
    full : int
        First labels that come from the whole spectrum: Teff, log g and [Fe/H].
    windows : tuple of tuples of (start, stop)
        Pixels of each of the other labels, stop excluded (`pixel_windows` makes them of
        wavelengths); without any, each of them sees all pixels.
    wide : tuple of int
        Those of the other labels, by number from 0, whose layers are wider: carbon and nitrogen.
    element_units : (int, int)
        Units of the two dense layers of an element; `auxiliary` are the units that all share.
    mc_passes : int
        Thinned networks (dropout masks) that are averaged at prediction.
    """

    name: ClassVar[str] = "leung2019"
    paper: ClassVar[str] = "Leung & Bovy 2019, MNRAS 483, 3255"
    bibtex_key: ClassVar[str] = "2019MNRAS.483.3255L"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 64,
        "learning_rate": 5e-4,
        "epochs": 50,
        "patience": 20,
        "plateau": 2,
        "least_rate": 1e-8,
        "l2": 5e-9,
    }
    scaling: ClassVar[ScalingRule] = "standard"

    filters: tuple[Filters, Filters] = (2, 4)
    units: tuple[Units, Units] = (192, 96)
    dropout: float = Field(default=0.3, ge=0.0, lt=1.0)
    full: Annotated[int, Field(ge=1), at_most("labels")] = 3
    windows: Annotated[tuple[tuple[PixelRange, ...], ...], at_most("labels")] = ()
    wide: Annotated[tuple[Annotated[int, Field(ge=0)], ...], at_most("labels")] = ()
    element_units: tuple[Units, Units] = (32, 16)
    auxiliary: Units = 2
    mc_passes: Annotated[int, Field(ge=0), at_most("passes")] = 100

    @model_validator(mode="after")
    def _increasing(self) -> "Leung2019":
        for windows in self.windows:
            if not windows or any(stop <= start for start, stop in windows):
                raise ValueError("each label needs windows (start, stop) of pixels, start < stop")
        return self

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        n_full = min(self.full, n_label)
        n_element = n_label - n_full
        if self.windows and len(self.windows) != n_element:
            raise ValueError(f"{len(self.windows)} labels have windows, and {n_element} need them")
        spectrum = sequence(
            ("centre", Centre(n_pixel)), *self.spectrum_layers(n_pixel, self.dropout)
        )
        photometry, n_feature = self.observable_layers(n_observable)
        hidden = sequence(("hidden", linear(n_feature, self.units[1])), ("act", nn.ReLU()))
        elements = nn.ModuleList(self._element(k, n_pixel, n_full) for k in range(n_element))
        network = Censored(
            TwoBranch(spectrum, photometry, hidden),
            linear(self.units[1], 2 * n_full),
            linear(self.units[1], self.auxiliary) if n_element else None,
            elements,
        )
        # The width of the authors' initial weights.
        return initialise(network, narrow)

    def _element(self, number: int, n_pixel: int, n_full: int) -> _Element:
        windows = self.windows[number] if self.windows else ((0, n_pixel),)
        chosen = [np.arange(start, min(stop, n_pixel)) for start, stop in windows]
        pixels = np.unique(np.concatenate(chosen))
        positive(pixels.size)
        times = _WIDE if number in self.wide else (1, 1)
        units = (self.element_units[0] * times[0], self.element_units[1] * times[1])
        n_shared = n_full + self.auxiliary
        return _Element(torch.from_numpy(pixels), units, n_shared, self.dropout)

    def settle(self, network: nn.Module, flux: Tensor) -> None:
        """Centre spectra on the mean training spectrum."""
        for layer in network.modules():
            if isinstance(layer, Centre):
                layer.mean.copy_(flux.mean(dim=0))

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Gaussian negative log-likelihood of predicted log variances, of labels present."""
        return gaussian_loss(*log_variance_moments(output), target, target_variance)

    def moments(self, output: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mean and predicted variance, each (n, n_label), in scaled units."""
        return log_variance_moments(output)

    @property
    def n_passes(self) -> int:
        """Number of thinned networks averaged at prediction."""
        return self.mc_passes


def pixel_windows(
    wave_aa: ArrayLike, windows_aa: list[list[tuple[float, float]]]
) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Pixels of windows in wavelength, as `Leung2019.windows` takes them.

    Parameters
    ----------
    wave_aa : (n_pixel,) array_like
        Increasing wavelengths of the pixels that the network takes.
    windows_aa : list of list of (float, float)
        For each label after the first ones its windows, in angstrom, both ends included.

    Raises
    ------
    ValueError
        If a window holds no pixel.
    """
    wave = np.asarray(wave_aa, np.float64)
    found = []
    for windows in windows_aa:
        ends = [np.searchsorted(wave, [low, np.nextafter(high, np.inf)]) for low, high in windows]
        for (low, high), (start, stop) in zip(windows, ends, strict=True):
            if stop <= start:
                raise ValueError(f"no pixel lies between {low} and {high} angstrom")
        found.append(tuple((int(start), int(stop)) for start, stop in ends))
    return tuple(found)
