"""SME: synthesis on the fly, and least squares.

Valenti & Piskunov (1996, A&AS 118, 595); PySME is of Wehrhahn, Piskunov & Ryabchikova (2023, A&A
671, A171). Line list and model atmospheres are the user's. Every derivative is a synthesis, so that
a star takes minutes, not milliseconds. Errors are those of the covariance, scaled by the reduced
chi-square where that is above one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError, ModelFileError, TrainingError
from maury.io.arrays import AnyArray, Float64Array
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import Prior
from maury.methods.fitting.starting import RidgeStart
from maury.methods.fitting.synthesis import PySmeSynthesiser, Synthesiser, SynthesiserModel
from maury.methods.fitting.theory import external_prior, finite_rows, in_air
from maury.methods.protocols import External, FitResult, Method, MethodSettings, Sample
from maury.spectra.preparation import Inputs

__all__ = ["Sme", "SmeSettings", "SynthesisMethod", "SynthesisSettings"]


_LEAST_STARS = 30
_MARGIN = 0.1


class SynthesisSettings(MethodSettings):
    """Settings of fits by synthesis on demand.

    Attributes
    ----------
    labels : tuple of str
        Labels that the synthesis takes and the training stars have.
    external : tuple of str
        Of these, what is taken from columns of the survey.
    max_steps : int
        Of `maury.methods.fitting.fitter.Fitter`.
    """

    labels: tuple[str, ...] = ("teff", "logg", "m_h")
    external: tuple[str, ...] = ()
    max_steps: int = Field(default=8, ge=1)


class SmeSettings(SynthesisSettings):
    """Settings of SME.

    Attributes
    ----------
    line_list : str
        Path of lines in the format of VALD, or of a table (`maury.methods.fitting.atmospheres`);
        without it nothing can be trained.
    atmosphere : str
        Grid of model atmospheres: a name that PySME knows, or the path of an NPZ file
        (`maury.methods.fitting.atmospheres`).
    resolving_power : float
    """

    line_list: str = ""
    atmosphere: str = "marcs2012.sav"
    resolving_power: float = Field(default=7500.0, gt=0.0)


@dataclass(frozen=True, eq=False)
class SynthesisMethod(Method):
    """Fits by synthesis on demand; a subclass says what synthesises.

    Attributes
    ----------
    wave_air_aa : (n_pixel,) float64
    bounds : (n_label, 2) float64
    start : RidgeStart
    noise_correlation : tuple of float
    source : str
        Checksum of what the synthesis reads; empty if it reads nothing.
    """

    settings_class: ClassVar[type[MethodSettings]] = SynthesisSettings
    needed: ClassVar[tuple[str, ...]] = ()
    """Labels without which nothing can be synthesised."""

    wave_air_aa: Float64Array
    bounds: Float64Array
    start: RidgeStart
    noise_correlation: tuple[float, ...]
    source: str

    def synthesiser(self) -> Synthesiser:
        """Return what synthesises."""
        raise NotImplementedError

    def checksum(self) -> str:
        """Return the checksum of what the synthesis reads."""
        return ""

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: MethodSettings, seed: int
    ) -> Self:
        """Learn bounds, and where to start; see `Method`."""
        del validation, seed
        assert isinstance(settings, SynthesisSettings), "settings are of the method's class"
        names = tuple(name for name in settings.labels if name in training.label_names)
        missing = [name for name in settings.labels if name not in names]
        if missing:
            raise ConfigError(f"the training stars have no {', '.join(missing)}")
        if needed := [name for name in cls.needed if name not in names]:
            raise ConfigError(
                f"the method {cls.name} cannot do without {', '.join(needed)}, got labels = "
                f"{list(names)}; add them to labels in [method]"
            )
        index = [training.label_names.index(name) for name in names]
        good = np.flatnonzero(finite_rows(training.truth[:, index]))
        if good.size < _LEAST_STARS:
            raise TrainingError(f"{good.size} stars have all of {', '.join(names)}; 30 are needed")
        truth = training.truth[good][:, index]
        start = RidgeStart.learn(names, training.inputs.flux[good], truth, noise=0.0)
        ends = np.array([truth.min(axis=0), truth.max(axis=0)]).T
        ends += _MARGIN * np.ptp(ends, axis=1, keepdims=True) * np.array([-1.0, 1.0])
        made = cls(settings, names, in_air(training), ends, start, training.noise_correlation, "")
        return replace(made, source=made.checksum())

    @cached_property
    def fitter(self) -> Fitter:
        """The fit of one spectrum."""
        assert isinstance(self.settings, SynthesisSettings), "settings are of the method's class"
        model = SynthesiserModel(
            self.synthesiser(), self.label_names, self.bounds, self.wave_air_aa
        )
        return Fitter(
            model,
            noise_correlation=self.noise_correlation,
            max_steps=self.settings.max_steps,
            reuse=2,
            tolerance=0.1,
        )

    @property
    def external_names(self) -> tuple[str, ...]:
        """Labels that the settings name."""
        assert isinstance(self.settings, SynthesisSettings), "settings are of the method's class"
        return self.settings.external

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] | None = None) -> FitResult:
        """Fit by synthesis; see `Method`."""
        if self.checksum() != self.source:
            raise ModelFileError(
                "what the synthesis reads has changed since the method was trained; train it again"
            )
        place = self.start.regress(inputs.flux, inputs.ivar)
        frozen = np.zeros(place.shape, dtype=np.bool_)
        prior = Prior.flat(*place.shape)
        for name, known in (external or {}).items():
            added, exact = external_prior(self.label_names, name, known)
            prior += added
            column = self.label_names.index(name)
            place[:, column] = np.where(np.isfinite(known.value), known.value, place[:, column])
            frozen[:, column] |= exact
        fitted = self.fitter.fit(inputs.flux, inputs.ivar, place, prior=prior, frozen=frozen)
        scale = np.maximum(np.nan_to_num(fitted.chi2_reduced, nan=1.0), 1.0)
        return replace(fitted, covariance=fitted.covariance * scale[:, None, None])

    def to_arrays(self) -> tuple[dict[str, AnyArray], dict[str, Any]]:
        """Return arrays and plain JSON; see `Method`."""
        arrays = self.start.to_arrays() | {"wave_aa": self.wave_air_aa, "bounds": self.bounds}
        about = {"noise_correlation": list(self.noise_correlation), "source": self.source}
        return arrays, about

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, AnyArray],
        about: Mapping[str, Any],
        *,
        settings: MethodSettings,
        label_names: tuple[str, ...],
    ) -> Self:
        """Read what `to_arrays` gave; see `Method`."""
        return cls(
            settings,
            label_names,
            arrays["wave_aa"],
            arrays["bounds"],
            RidgeStart.from_arrays(arrays, label_names),
            tuple(about["noise_correlation"]),
            str(about["source"]),
        )


@dataclass(frozen=True, eq=False)
class Sme(SynthesisMethod):
    """Synthesis with PySME, and least squares."""

    name: ClassVar[str] = "sme"
    paper: ClassVar[str] = "Valenti & Piskunov (1996, A&AS 118, 595); Wehrhahn et al. (2023)"
    bibtex_key: ClassVar[str] = "2023A&A...671A.171W"
    settings_class: ClassVar[type[MethodSettings]] = SmeSettings
    needed: ClassVar[tuple[str, ...]] = ("teff", "logg")

    def synthesiser(self) -> Synthesiser:
        """Return PySME with the line list and atmospheres of the settings."""
        assert isinstance(self.settings, SmeSettings), "settings are of the method's class"
        settings = self.settings
        return PySmeSynthesiser(
            Path(settings.line_list), settings.atmosphere, settings.resolving_power
        )

    def checksum(self) -> str:
        """Return the checksum of the line list.

        Raises
        ------
        ConfigError
            If there is none.
        """
        assert isinstance(self.settings, SmeSettings), "settings are of the method's class"
        path = Path(self.settings.line_list)
        if not self.settings.line_list or not path.is_file():
            raise ConfigError(
                "the method sme needs a line list in the format of VALD: give line_list = "
                f"'<path>' in [method], got {self.settings.line_list!r}"
            )
        return hashlib.sha256(path.read_bytes()).hexdigest()
