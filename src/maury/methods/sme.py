"""SME: synthesis on the fly, and least squares.

Valenti & Piskunov (1996, A&AS 118, 595); PySME is of Wehrhahn, Piskunov & Ryabchikova (2023, A&A
671, A171). Line list and model atmospheres are the user's. Every derivative is a synthesis, so that
a star takes minutes, not milliseconds. Velocity and continuum are fitted with the labels, and if
asked for microturbulence, macroturbulence and rotation. Errors are those of the covariance, scaled
by the reduced chi-square where that is above one; beside them stand those that the pixels have
among themselves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field

from maury.errors import ConfigError, ModelFileError
from maury.io.arrays import AnyArray, Float64Array
from maury.labels.columns import Column
from maury.methods.fitting.chain import Chain, Continuum, Shift
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
from maury.methods.fitting.theory import (
    in_air,
    known_power,
    nuisance_sigmas,
    smooth_patterns,
)
from maury.methods.protocols import (
    MOST_STEPS,
    NO_EXTERNAL,
    External,
    FitResult,
    ForwardModel,
    Method,
    MethodSettings,
    Sample,
    UnseenStars,
)
from maury.methods.storage import stored
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.spectra.preparation import Inputs

__all__ = ["Sme", "SmeSettings"]


# Fewer stars do not hold the ridge regression that starts the fits.
_LEAST_STARS = 30
# Share of the range of the training labels by which fits may go beyond.
_MARGIN = 0.1


_FREE: Mapping[str, tuple[float, float, float, float]] = {
    "vmic": (1.2, 0.5, 0.3, 4.0),
    "vmac": (3.0, 2.0, 0.0, 15.0),
    "vsini": (3.0, 5.0, 0.0, 100.0),
}
"""Mean, sigma and bounds, km/s, of what is fitted beside the labels: as of late-type stars, whose
values scatter so (Valenti & Fischer 2005, ApJS 159, 141, sections 4 and 5)."""
_LEAST_SLOPE = 1e-3
"""Of the largest derivative, below which a pixel says nothing of a label."""
_SIDES = (0.1587, 0.8413)
"""Shares of a normal distribution below minus and plus one sigma."""
_MOST_SEGMENTS = 1000
"""Ranges that a setting may name: more than a spectrum has lines to choose."""


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
    nuisances : bool
        Whether a velocity and a smooth continuum are fitted with the labels.
    rv_error_kms : float
        Standard deviation of the velocity left in the spectra.
    free : tuple of str
        Of ``vmic``, ``vmac`` and ``vsini``: fitted besides, within priors, where they are no
        labels. Each takes one more synthesis for each set of derivatives.
    segments : tuple of (float, float)
        Ranges, angstrom in air, that are fitted; all pixels if there are none.
    empirical : bool
        Whether the scatter of what pixels say of a label is given, too, for one more set of
        derivatives.
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
    nuisances: bool = True
    rv_error_kms: float = Field(default=1.3, gt=0.0, le=10.0)
    free: tuple[Literal["vmic", "vmac", "vsini"], ...] = ()
    segments: tuple[tuple[float, float], ...] = Field(default=(), max_length=_MOST_SEGMENTS)
    empirical: bool = True
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
    fits_more : bool
        Whether nuisances, free parameters and segments of the settings count, and pixels give an
        error of their own; not in models of earlier versions.
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
    fits_more: bool = True

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
    def _free(self) -> tuple[str, ...]:
        """Parameters of the synthesis that are fitted beside the labels."""
        free = self.settings.free if self.fits_more else ()
        return tuple(name for name in free if name not in self.label_names)

    @cached_property
    def model(self) -> ForwardModel:
        """The synthesis, shifted, times a smooth continuum."""
        ends = np.array([_FREE[name][2:] for name in self._free]).reshape(-1, 2)
        source = SynthesiserModel(
            self.synthesiser(),
            (*self.label_names, *self._free),
            np.concatenate([self.bounds, ends]),
            self.wave_air_aa,
        )
        if not (self.fits_more and self.settings.nuisances):
            return source
        wave = self.wave_air_aa
        smooth = smooth_patterns(wave, TRAINING_CONDITIONS.continuum_rms)
        none = np.zeros(wave.size, dtype=np.float32)
        return Chain(source, (Shift(wave), Continuum(smooth)), wave, none)

    @cached_property
    def window(self) -> Float64Array | None:
        """Weight (n_pixel,) of each pixel: 1 within the segments; None is all pixels.

        Raises
        ------
        ConfigError
            If no pixel lies in a segment.
        """
        if not (self.fits_more and self.settings.segments):
            return None
        wave, inside = self.wave_air_aa, np.zeros(self.wave_air_aa.size, dtype=np.bool_)
        for low, high in self.settings.segments:
            inside |= (wave >= low) & (wave <= high)
        if not inside.any():
            raise ConfigError(
                f"no pixel of {wave[0]:.1f}-{wave[-1]:.1f} angstrom lies in the segments "
                f"{self.settings.segments}; name ranges within"
            )
        return inside.astype(np.float64)

    @cached_property
    def fitter(self) -> Fitter:
        """The fit of one spectrum."""
        return Fitter(
            self.model,
            window=self.window,
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
        names, n, count = self.model.label_names, len(inputs), len(self.label_names)
        place = np.zeros((n, len(names)))
        place[:, :count] = self.start.regress(inputs.flux, inputs.ivar)
        place[:, count : count + len(self._free)] = [_FREE[name][0] for name in self._free]
        further = names[count + len(self._free) :]
        priors: dict[str, tuple[float, float]] = {k: _FREE[k][:2] for k in self._free}
        priors |= nuisance_sigmas(further, self.settings.rv_error_kms)
        none = np.zeros(place.shape, dtype=np.bool_)
        known = with_external(Start(place, Prior.of(names, n, priors), none), names, external)
        fitted = self.fitter.fit_from(known, inputs)
        # Errors of line data are not known, and show in chi-square alone.
        scale = np.maximum(np.nan_to_num(fitted.chi2_reduced, nan=1.0), 1.0)
        scaled = replace(fitted, covariance=fitted.covariance * scale[:, None, None])
        out = scaled.select(self.label_names)
        if not self.further_columns:
            return out
        own = self._by_pixels(inputs, fitted)
        columns = zip(self.further_columns, own.T, strict=True)
        return replace(out, further={column.name: values for column, values in columns})

    @property
    def further_columns(self) -> tuple[Column, ...]:
        """The error of each label that pixels have among themselves."""
        if not (self.fits_more and self.settings.empirical):
            return ()
        return tuple(
            Column(
                f"{name}_pixel_error",
                "K" if name == "teff" else "",
                "stat.error",
                f"Half of the central 68 % of what single pixels say of {name}",
            )
            for name in self.label_names
        )

    def _by_pixels(self, inputs: Inputs, fitted: FitResult) -> Float64Array:
        """Half of the central 68 % (n_star, n_label) of residual over derivative, by pixel.

        Each pixel has the weight of its derivative (Piskunov & Valenti 2017, A&A 597, A16, section
        4). It knows of errors of the line data, which noise does not, and does not fall with the
        number of pixels: an upper bound.
        """
        out = np.full((len(fitted), len(self.label_names)), np.nan)
        good = np.flatnonzero(np.isfinite(fitted.labels).all(axis=1))
        if not good.size:
            return out
        flux, slopes = self.model.evaluate(fitted.labels[good])
        assert slopes is not None, "derivatives were asked for"
        used = inputs.ivar[good] > 0
        used &= True if self.window is None else self.window > 0
        for row, star in enumerate(good):
            for k in range(out.shape[1]):
                slope = slopes[row, k].astype(np.float64)
                tells = used[row] & (np.abs(slope) > _LEAST_SLOPE * np.abs(slope).max())
                if tells.any():
                    said = (inputs.flux[star] - flux[row])[tells] / slope[tells]
                    order = np.argsort(said)
                    share = np.cumsum(np.abs(slope[tells][order]))
                    low, high = np.interp(_SIDES, share / share[-1], said[order])
                    out[star, k] = 0.5 * (high - low)
        return out

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: SmeSettings
    ) -> dict[str, Any]:
        """Return what follows from other fields; see `Method`."""
        del arrays
        more = bool(about.get("fits_more", False))
        return {"start": {"label_names": settings.labels}, "fits_more": more}

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
