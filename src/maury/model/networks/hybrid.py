"""Published networks of single surveys: Gaia RVS with XP, and lithium in Gaia-ESO."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from maury.io.config_files import at_most
from maury.model.networks.base import Filters, Kernel, NetworkConfig, Units, linear, preset
from maury.model.networks.layers import (
    ChannelsLast,
    Convolution,
    PassDropout,
    initialise,
    positive,
    sequence,
)

N_XP = 110
"""Coefficients of the mean BP and RP spectra of Gaia DR3, 55 each (De Angeli et al. 2023, A&A 674,
A2, section 3)."""
_GAIA = ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag", "parallax")


class ThreeBranch(nn.Module):
    """A spectrum branch, a branch of magnitudes and parallax, one of XP, joined in a head."""

    def __init__(
        self,
        spectrum: nn.Module,
        photometry: nn.Module | None,
        xp: nn.Module | None,
        head: nn.Module,
        *,
        n_first: int,
    ) -> None:
        super().__init__()
        self.spectrum, self.photometry, self.xp, self.head = spectrum, photometry, xp, head
        self.n_first = n_first

    def forward(self, flux: Tensor, observables: Tensor) -> Tensor:
        """Return the head's output for flux (n, n_pixel) and observables (n, n_observable)."""
        features = [self.spectrum(flux.unsqueeze(1))]
        if self.photometry is not None:
            features.append(self.photometry(observables[:, : self.n_first]))
        if self.xp is not None:
            features.append(self.xp(observables[:, self.n_first :]))
        output: Tensor = self.head(torch.cat(features, dim=1))
        return output


class _Convolved(NetworkConfig):
    """Convolutions with LeakyReLU, dropout, and a dense layer, in Glorot's initial weights."""

    filters: Annotated[tuple[Filters, ...], Field(min_length=1), at_most("layers")] = (8, 4, 2)
    kernel: Kernel = 10
    negative_slope: float = Field(default=0.3, ge=0.0, lt=1.0)
    dropout: float = Field(default=0.2, ge=0.0, lt=1.0)
    spectrum_units: Units = 32
    photometry_units: Units = 27

    def _convolutions(self, n_pixel: int, pool: int = 1) -> nn.Module:
        layers: list[tuple[str, nn.Module]] = []
        n_channel, n = 1, n_pixel
        for index, n_filter in enumerate(self.filters, start=1):
            convolution = Convolution(n_channel, n_filter, self.kernel, dtype=torch.float32)
            layers += [(f"conv{index}", convolution), (f"act{index}", self._activation())]
            n_channel, n = n_filter, positive(n - self.kernel + 1)
        if pool > 1:
            layers.append(("pool", nn.MaxPool1d(pool)))
        return sequence(
            *layers,
            ("dropout", PassDropout(self.dropout)),
            ("flatten", ChannelsLast()),
            ("dense", linear(n_channel * positive(n // pool), self.spectrum_units)),
            ("act", self._activation()),
        )

    def _dense(self, n_in: int, n_out: int) -> nn.Module:
        return sequence(("dense", linear(n_in, n_out)), ("act", self._activation()))

    def _activation(self) -> nn.Module:
        return nn.LeakyReLU(self.negative_slope)


@preset
class Guiglion2024(_Convolved):
    """Hybrid network of Guiglion et al. (2024, A&A 682, A9): RVS, G BP RP, parallax, and XP.

    Three branches are joined. The inputs are those of the paper: RVS spectra of 8460-8700 angstrom,
    magnitudes, parallaxes, and XP coefficients. The sizes of its layers could not be verified:
    convolutions, activation, dropout, batch and rate are those of the authors' RAVE network
    (Guiglion et al. 2020, A&A 644, A168), on which it is built, and the dense layer of XP is as
    wide as that of the spectrum.

    Attributes
    ----------
    first : int
        Observables of the branch of magnitudes and parallax, the first of all; those that follow
        are XP coefficients.
    xp_units, head_units : int
        Units of the dense layer of XP, and of the one after the join.
    """

    name: ClassVar[str] = "guiglion2024"
    paper: ClassVar[str] = "Guiglion et al. 2024, A&A 682, A9"
    bibtex_key: ClassVar[str] = "2024A&A...682A...9G"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "learning_rate": 1e-3,
        "epochs": 1000,
        "patience": 40,
    }
    preparation_defaults: ClassVar[Mapping[str, Any]] = {
        "observables": [
            {"observable": "columns", "source": "gaia", "columns": list(_GAIA)},
            {"observable": "xp"},
        ],
    }

    first: Annotated[int, Field(ge=0), at_most("units")] = len(_GAIA)
    xp_units: Units = 32
    head_units: Units = 16

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        n_first = min(self.first, n_observable) if self.photometry else 0
        n_xp = n_observable - n_first if self.photometry else 0
        photometry = self._dense(n_first, self.photometry_units) if n_first else None
        xp = self._dense(n_xp, self.xp_units) if n_xp else None
        n_joined = self.spectrum_units
        n_joined += (self.photometry_units if n_first else 0) + (self.xp_units if n_xp else 0)
        head = sequence(
            ("hidden", linear(n_joined, self.head_units)),
            ("act", self._activation()),
            ("out", linear(self.head_units, n_label)),
        )
        spectrum = self._convolutions(n_pixel)
        network = ThreeBranch(spectrum, photometry, xp, head, n_first=n_first)
        return initialise(network, nn.init.xavier_uniform_)


@preset
class Nepal2023(_Convolved):
    """Network of Nepal et al. (2023, A&A 671, A61): lithium, Teff, log g, [Fe/H] of HR15N spectra.

    Verified in the authors' notebook are the inputs (GIRAFFE HR15N, 6450.5 angstrom on in steps of
    .05, less 6554.81-6570.81 around H alpha: 6861 pixels, no photometry), the labels, 7031 training
    stars, and what it is made of: convolutions, max-pooling, LeakyReLU, dropout, dense layers, and
    early stopping. The sizes of its layers could not be verified: they are those of the RAVE
    network of the same group (Guiglion et al. 2020, A&A 644, A168), with a pooling of two pixels.

    Attributes
    ----------
    pool : int
        Pixels of the max-pooling after the convolutions.
    head_units : int
        Units of the last hidden layer.
    """

    name: ClassVar[str] = "nepal2023"
    paper: ClassVar[str] = "Nepal et al. 2023, A&A 671, A61"
    bibtex_key: ClassVar[str] = "2023A&A...671A..61N"
    training_defaults: ClassVar[Mapping[str, Any]] = {
        "batch_size": 16,
        "learning_rate": 1e-3,
        "epochs": 1000,
        "patience": 40,
    }

    photometry: bool = False
    pool: Kernel = 2
    head_units: Units = 16

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network, see `build`."""
        photometry, n_joined = None, self.spectrum_units
        if self.photometry:
            photometry = self._dense(n_observable, self.photometry_units)
            n_joined += self.photometry_units
        head = sequence(
            ("hidden", linear(n_joined, self.head_units)),
            ("act", self._activation()),
            ("out", linear(self.head_units, n_label)),
        )
        spectrum = self._convolutions(n_pixel, self.pool)
        network = ThreeBranch(spectrum, photometry, None, head, n_first=n_observable)
        return initialise(network, nn.init.xavier_uniform_)
