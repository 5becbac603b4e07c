"""SME: synthesis on the fly, and least squares.

Valenti & Piskunov (1996, A&AS 118, 595); PySME is of Wehrhahn, Piskunov & Ryabchikova (2023, A&A
671, A171). Line list and model atmospheres are the user's. Every derivative is a synthesis, so that
a star takes minutes, not milliseconds. Errors are those of the covariance, scaled by the reduced
chi-square where that is above one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError, ModelFileError
from maury.io.arrays import AnyArray, Float64Array
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.knowledge import Prior, Start, with_external
from maury.methods.fitting.stars import complete_stars
from maury.methods.fitting.starting import RidgeStart
from maury.methods.fitting.synthesis import (
    PySmeSynthesiser,
    Synthesiser,
    SynthesiserModel,
    composition,
)
from maury.methods.fitting.theory import in_air, known_power
from maury.methods.protocols import (
    MOST_STEPS,
    NO_EXTERNAL,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
    UnseenStars,
)
from maury.methods.storage import stored
from maury.spectra.preparation import Inputs

__all__ = ["Sme", "SmeSettings"]


# Fewer stars do not hold the ridge regression that starts the fits.
_LEAST_STARS = 30
# Share of the range of the training labels by which fits may go beyond.
_MARGIN = 0.1


class SmeSettings(MethodSettings):
    """Settings of SME.

    Attributes
    ----------
    labels : tuple of str
        Labels that the synthesis takes and the training stars have.
    external : tuple of str
        Of these, what is taken from columns of the survey.
    max_steps : int
        Of `maury.methods.fitting.fitter.Fitter`.
    line_list : str
        Path of lines in the format of VALD, or of a table (`maury.methods.fitting.atmospheres`);
        without it nothing can be trained.
    atmosphere : str
        Grid of model atmospheres: a name that PySME knows, or the path of an NPZ file
        (`maury.methods.fitting.atmospheres`).
    resolving_power : float
        At which spectra are synthesised; 0 takes that of the training survey.
    calibration_stars : int
        Labelled stars that are fitted when it is trained, to calibrate errors; thirty are needed,
        and a hundred fix them to a tenth. 0 leaves errors as the fit states them.
    """

    labels: tuple[str, ...] = ("teff", "logg", "m_h")
    external: tuple[str, ...] = ()
    max_steps: int = Field(default=8, ge=1, le=MOST_STEPS)
    line_list: str = ""
    atmosphere: str = "marcs2012.sav"
    resolving_power: float = Field(default=0.0, ge=0.0)
    calibration_stars: int = Field(default=0, ge=0, le=100_000)


@dataclass(frozen=True, eq=False)
class Sme(Method[SmeSettings]):
    """Synthesis with PySME, and least squares.

    Attributes
    ----------
    wave_air_aa : (n_pixel,) float64
    bounds : (n_label, 2) float64
    start : RidgeStart
    noise_correlation : tuple of float
    source : str
        Checksum of the line list.
    """

    name: ClassVar[str] = "sme"
    paper: ClassVar[str] = "Valenti & Piskunov (1996, A&AS 118, 595); Wehrhahn et al. (2023)"
    bibtex_key: ClassVar[str] = "2023A&A...671A.171W"
    settings_class: ClassVar[type[MethodSettings]] = SmeSettings
    needed: ClassVar[tuple[str, ...]] = ("teff", "logg")
    """Labels without which nothing can be synthesised."""
    unseen: ClassVar[UnseenStars] = "all"

    wave_air_aa: Float64Array = field(metadata=stored("wave_aa"))
    bounds: Float64Array
    start: RidgeStart
    noise_correlation: tuple[float, ...]
    source: str

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: SmeSettings, seed: int
    ) -> Self:
        """Learn bounds, and where to start; see `Method`."""
        del validation, seed
        names = settings.labels
        missing = [name for name in names if name not in training.label_names]
        if missing:
            raise ConfigError(f"the training stars have no {', '.join(missing)}")
        if needed := [name for name in cls.needed if name not in names]:
            raise ConfigError(
                f"the method {cls.name} cannot do without {', '.join(needed)}, got labels = "
                f"{list(names)}; add them to labels in [method]"
            )
        composition(dict.fromkeys(names, 0.0))
        power = training.resolving_power if settings.resolving_power else known_power(training)
        stars = complete_stars(training, names, least=_LEAST_STARS)
        start = RidgeStart.learn(names, stars.inputs.flux, stars.truth, noise=0.0)
        ends = np.array([stars.truth.min(axis=0), stars.truth.max(axis=0)]).T
        ends += _MARGIN * np.ptp(ends, axis=1, keepdims=True) * np.array([-1.0, 1.0])
        made = cls(
            settings,
            names,
            in_air(training),
            ends,
            start,
            training.noise_correlation,
            "",
            resolving_power=power,
        )
        return replace(made, source=made.checksum())

    @property
    def most_unseen(self) -> int | None:
        """As many as the settings say; see `Method`."""
        return self.settings.calibration_stars

    @cached_property
    def fitter(self) -> Fitter:
        """The fit of one spectrum."""
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

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Fit by synthesis; see `Method`."""
        if self.checksum() != self.source:
            raise ModelFileError(
                "what the synthesis reads has changed since the method was trained; train it again"
            )
        place = self.start.regress(inputs.flux, inputs.ivar)
        free = np.zeros(place.shape, dtype=np.bool_)
        known = Start(place, Prior.flat(*place.shape), free)
        fitted = self.fitter.fit_from(with_external(known, self.label_names, external), inputs)
        # Errors of line data are not known, and show in chi-square alone.
        scale = np.maximum(np.nan_to_num(fitted.chi2_reduced, nan=1.0), 1.0)
        return replace(fitted, covariance=fitted.covariance * scale[:, None, None])

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: SmeSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        del arrays, about
        return {"start": {"label_names": settings.labels}}

    def synthesiser(self) -> Synthesiser:
        """Return PySME with the line list and atmospheres of the settings."""
        settings = self.settings
        power = settings.resolving_power or self.resolving_power
        assert power is not None, "training refuses an unknown resolving power"
        return PySmeSynthesiser(Path(settings.line_list), settings.atmosphere, power)

    def checksum(self) -> str:
        """Return the checksum of the line list.

        Raises
        ------
        ConfigError
            If there is none.
        """
        path = Path(self.settings.line_list)
        if not self.settings.line_list or not path.is_file():
            raise ConfigError(
                "the method sme needs a line list in the format of VALD: give line_list = "
                f"'<path>' in [method], got {self.settings.line_list!r}"
            )
        return hashlib.sha256(path.read_bytes()).hexdigest()
