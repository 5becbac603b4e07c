"""A network, a method, a reader and a theory: copy what you need, and make it yours."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from torch import Tensor, nn

from maury.io.arrays import Float32Array, Float64Array
from maury.methods import Method, MethodSettings
from maury.methods.fitting.synthetic_library import SyntheticLibrary
from maury.methods.protocols import NO_EXTERNAL, External, FitResult, Sample
from maury.model.networks.base import NetworkConfig, linear
from maury.spectra.preparation import Inputs
from maury.survey.readers.grids import header_grid
from maury.survey.readers.star_files import StarFormat, StarSpectrum, by_card, line


class LineNetwork(nn.Module):
    """One dense layer from the spectrum to the labels."""

    def __init__(self, n_pixel: int, n_label: int) -> None:
        super().__init__()
        self.layer = linear(n_pixel, n_label)

    def forward(self, flux: Tensor, observables: Tensor) -> Tensor:
        """Scaled labels (n, n_label) of flux (n, n_pixel); no observable is used."""
        return self.layer(flux - 1.0)


class Line(NetworkConfig):
    """A linear model, by gradient descent. Its fields are the options of `[network]`."""

    name: ClassVar[str] = "line"
    paper: ClassVar[str] = "the paper to cite"
    bibtex_key: ClassVar[str] = "its key at ADS"
    training_defaults: ClassVar[dict[str, Any]] = {"epochs": 20}

    photometry: bool = False

    def assemble(self, n_pixel: int, n_observable: int, n_label: int) -> nn.Module:
        """Build the network."""
        return LineNetwork(n_pixel, n_label)

    def loss(self, output: Tensor, target: Tensor, target_variance: Tensor) -> Tensor:
        """Mean absolute error of the labels that are there: NaN means missing."""
        present = target.isfinite()
        return (output - target)[present].abs().sum() / present.sum().clamp(min=1)


class NearestSettings(MethodSettings):
    """Options of `[method]`."""

    neighbours: int = 5


@dataclass(frozen=True, eq=False)
class Nearest(Method[NearestSettings]):
    """Mean labels of the training stars with the most similar spectra. Its arrays are the model."""

    name: ClassVar[str] = "nearest"
    paper: ClassVar[str] = "the paper to cite"
    bibtex_key: ClassVar[str] = "its key at ADS"
    settings_class: ClassVar[type[MethodSettings]] = NearestSettings

    flux: Float32Array
    truth: Float64Array

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: NearestSettings, seed: int
    ) -> Self:
        """Keep the stars of which all labels are known."""
        whole = np.isfinite(training.truth).all(axis=1)
        return cls(
            settings=settings,
            label_names=training.label_names,
            flux=training.inputs.flux[whole],
            truth=training.truth[whole],
        )

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Labels and their scatter, in the units of the labels."""
        square = (inputs.flux**2).sum(axis=1)[:, None] + (self.flux**2).sum(axis=1)
        order = np.argsort(square - 2.0 * inputs.flux @ self.flux.T, axis=1)
        near = self.truth[order[:, : self.settings.neighbours]]
        return FitResult.without_fit(
            self.label_names, near.mean(axis=1), sigma=near.std(axis=1, ddof=1)
        )


def _read(hdus: Any, path: Path) -> StarSpectrum:
    flux = line(hdus[0], path)
    wave = header_grid(hdus[0].header, 1, flux.size)
    assert wave is not None, "the files of this format have CRVAL1 and CDELT1"
    ivar = np.full(flux.size, float(hdus[0].header["SNR"]) ** 2)
    return StarSpectrum(wave, flux, ivar, {}, "air")


open_plain = StarFormat(_read, "air", identify=by_card("OBJECT"))
"""Files of one spectrum each, in the primary image, with the S/N in a card."""


def two_lines(wave_aa: Float64Array, resolving_power: float | None) -> SyntheticLibrary:
    """Spectra of two lines, as deep as temperature and gravity make them.

    Pixels and resolving power are those of the survey; None is an unknown power.
    """
    teff, logg = np.meshgrid(np.linspace(3500, 7500, 21), np.linspace(0.0, 5.0, 21))
    labels = np.column_stack([teff.ravel(), logg.ravel()])
    width = np.hypot(1.0, wave_aa.mean() / (resolving_power or np.inf) / 2.355)
    depths = (labels[:, 0] - 3500) / 8000, labels[:, 1] / 10
    flux = np.ones((len(labels), wave_aa.size))
    for place, depth in zip((0.3, 0.7), depths, strict=True):
        centre = wave_aa[0] + place * (wave_aa[-1] - wave_aa[0])
        flux -= depth[:, None] * np.exp(-0.5 * ((wave_aa - centre) / width) ** 2)
    return SyntheticLibrary(("teff", "logg"), labels, flux.astype(np.float32))
