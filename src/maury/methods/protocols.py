"""What the methods share: forward model, regressor, result of a fit, and the method itself.

A method is trained on the labelled stars of a survey, and then gives labels to prepared spectra.
It either inverts a forward model with `maury.methods.fitting.fitter`, or is a regressor; a
regressor's answer can start a fit. Both give a `FitResult`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import (
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    Protocol,
    Self,
    TypeVar,
    runtime_checkable,
)

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BaseModel, ConfigDict, Field

from maury.errors import check_known
from maury.io.arrays import AnyArray, Float32Array, Float64Array, Int64Array, StrArray
from maury.io.limits import Limits
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.labels.flags import FLAG_DTYPE
from maury.methods.storage import Arrays, read_fields, stored, write_fields
from maury.spectra.noise import check_correlation
from maury.spectra.preparation import Inputs, take
from maury.spectra.spectra import Medium

_LEAST_POWER, _MOST_POWER = 10.0, 1e7
"""Of what a model was trained for: objective prisms have some 20, solar spectrographs 10^6. Kernels
are as wide as wavelength over it, so that a file could ask for any width by a small one."""
MOST_STEPS = 1_000
"""Of a fit, fifty times the default: stars that do not settle take as many as a file says."""
MOST_STARS = 1_000_000
"""Stars, or steps of training, that a setting may name: more than any labelled sample has."""

__all__ = [
    "MOST_STARS",
    "MOST_STEPS",
    "NO_EXTERNAL",
    "Evaluation",
    "External",
    "FitResult",
    "ForwardModel",
    "Method",
    "MethodSettings",
    "Regressor",
    "Sample",
    "UnseenStars",
]


class Evaluation(NamedTuple):
    """A forward model at some labels.

    Attributes
    ----------
    flux : (n_star, n_pixel) float32
    jacobian : (n_star, n_label, n_pixel) float32 or None
        Derivatives of the flux per unit of each label; None if they were not asked for.
    """

    flux: Float32Array
    jacobian: Float32Array | None


@runtime_checkable
class ForwardModel(Protocol):
    """From labels to spectra, with derivatives.

    Labels are physical: kelvin, dex, km/s. Nuisances of a fit, such as a radial velocity, are
    labels like the others.
    """

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the parameters, in order."""

    @property
    def bounds(self) -> Float64Array:
        """Lowest and highest value (n_label, 2) of each label."""

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives at finite `labels` (n_star, n_label) within the bounds."""

    def variance(self, labels: Float64Array) -> Float32Array:
        """Variance (n_star, n_pixel) or (n_pixel,) of the flux of the model itself."""


@runtime_checkable
class Regressor(Protocol):
    """From spectra to labels in one step."""

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels, in order."""

    def regress(self, flux: Float32Array, ivar: Float32Array) -> Float64Array:
        """Labels (n_star, n_label) of spectra (n_star, n_pixel); NaN where there is no answer."""


@dataclass(frozen=True)
class FitResult:
    """Labels of some spectra, in physical units; NaN where there is no answer.

    Attributes
    ----------
    label_names : tuple of str
    labels : (n_star, n_label) float64
        K, dex, km/s.
    covariance : (n_star, n_label, n_label) float64
        In the products of these units. NaN where unknown; a frozen label has zeros.
    chi2 : (n_star,) float64
        Chi-square of the spectrum against its best fit; NaN for a method without one.
    n_freedom : (n_star,) int64
        Pixels used less parameters fitted; 0 where there is no chi-square.
    flags : (n_star,) int64
        Bits of `maury.labels.flags.Flag` that the method adds to those of the preparation.
    flux : (n_star, n_pixel) float32 or None
        Best-fit spectrum; None for a method without one.
    further : mapping of str to (n_star,) float64
        Columns of its own (`Method.further_columns`); NaN where unknown.
    """

    label_names: tuple[str, ...]
    labels: Float64Array
    covariance: Float64Array
    chi2: Float64Array
    n_freedom: Int64Array
    flags: Int64Array
    flux: Float32Array | None = None
    further: Mapping[str, Float64Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, k = self.labels.shape
        assert k == len(self.label_names), "one column per label"
        assert self.covariance.shape == (n, k, k), "one covariance per star"
        assert len(self.chi2) == len(self.n_freedom) == len(self.flags) == n, "one value per star"

    @classmethod
    def without_fit(
        cls,
        label_names: Sequence[str],
        labels: ArrayLike,
        *,
        covariance: ArrayLike | None = None,
        sigma: ArrayLike | None = None,
        flags: ArrayLike | None = None,
    ) -> Self:
        """Make the result of a regressor, which has no chi-square.

        Parameters
        ----------
        label_names : sequence of str
        labels : (n_star, n_label) array_like
        covariance : (n_star, n_label, n_label) array_like, optional
        sigma : (n_star, n_label) array_like, optional
            1 sigma errors in place of `covariance`, which is then diagonal; NaN if neither is
            given.
        flags : (n_star,) int array_like, optional
        """
        values = np.asarray(labels, dtype=np.float64)
        n, k = values.shape
        if covariance is None:
            covariance = np.full((n, k, k), np.nan) if sigma is None else np.zeros((n, k, k))
            if sigma is not None:
                covariance[:, range(k), range(k)] = np.asarray(sigma) ** 2
        return cls(
            tuple(label_names),
            values,
            np.asarray(covariance, dtype=np.float64),
            np.full(n, np.nan),
            np.zeros(n, dtype=np.int64),
            np.zeros(n, FLAG_DTYPE) if flags is None else np.asarray(flags, FLAG_DTYPE),
        )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sigma(self) -> Float64Array:
        """1 sigma errors (n_star, n_label)."""
        return np.asarray(np.sqrt(np.einsum("nii->ni", self.covariance)))

    @property
    def chi2_reduced(self) -> Float64Array:
        """Chi-square over degrees of freedom (n_star,); NaN where there are none."""
        # With as many parameters as pixels nothing is left to judge a fit by.
        freedom = np.where(self.n_freedom > 0, self.n_freedom, np.nan)
        return np.asarray(self.chi2 / freedom)

    def select(self, names: Sequence[str]) -> Self:
        """Return the result with only these labels, in this order.

        Raises
        ------
        UnknownName
            If the result has no such label.
        """
        index = [self.label_names.index(check_known("label", n, self.label_names)) for n in names]
        return replace(
            self,
            label_names=tuple(names),
            labels=self.labels[:, index],
            # In two steps: numpy pairs two lists of indices up, and would give a diagonal.
            covariance=self.covariance[:, index][:, :, index],
        )

    def with_rows(self, rows: Int64Array, other: FitResult) -> Self:
        """Return the result with other values of some stars, of the same labels and columns."""
        assert self.label_names == other.label_names, "results have the same labels"
        put: dict[str, Any] = {}
        for name in ("labels", "covariance", "chi2", "n_freedom", "flags"):
            put[name] = getattr(self, name).copy()
            put[name][rows] = getattr(other, name)
        if self.flux is not None and other.flux is not None:
            put["flux"] = self.flux.copy()
            put["flux"][rows] = other.flux
        return replace(self, **put)

    @classmethod
    def join(cls, parts: Sequence[FitResult]) -> Self:
        """Concatenate results of the same labels; at least one."""
        first = parts[0]
        columns = ("labels", "covariance", "chi2", "n_freedom", "flags")
        joined: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts]) for name in columns
        }
        fluxes = [part.flux for part in parts if part.flux is not None]
        # Spectra of some parts alone would no longer stand in the rows of their labels.
        flux = np.concatenate(fluxes) if len(fluxes) == len(parts) else None
        further = {n: np.concatenate([part.further[n] for part in parts]) for n in first.further}
        return cls(first.label_names, **joined, flux=flux, further=further)


@dataclass(frozen=True)
class Sample:
    """Labelled spectra of a survey that a method learns from, as its preparation gives them.

    Attributes
    ----------
    labels : tuple of Label
        Definitions, in the order of `truth`.
    truth, truth_error : (n_star, n_label) float64
        Labels and their 1 sigma errors; NaN where missing.
    inputs : Inputs
        Prepared spectra: ``flux``, ``ivar`` (n_star, n_pixel), ``observables``, ``snr``.
    star_id : (n_star,) str
    noise_correlation : tuple of float
        Correlation of the noise between pixels 1, 2, ... apart.
    resolving_power : float or None
        Typical lambda / FWHM of the spectra; None if it is not known.
    simulated : bool
        Whether the spectra are simulated.
    """

    labels: tuple[Label, ...]
    truth: Float64Array
    truth_error: Float64Array
    inputs: Inputs
    star_id: StrArray
    noise_correlation: tuple[float, ...] = ()
    resolving_power: float | None = None
    simulated: bool = False

    def __len__(self) -> int:
        return len(self.truth)

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.inputs.wave_aa

    @property
    def medium(self) -> Medium:
        """Medium of these wavelengths."""
        return self.inputs.medium

    def rows(self, index: AnyArray) -> Self:
        """Return some stars, by number or by mask."""
        return replace(
            self,
            truth=self.truth[index],
            truth_error=self.truth_error[index],
            inputs=take(self.inputs, index),
            star_id=self.star_id[index],
        )


class MethodSettings(BaseModel):
    """Settings of a method; every field is used, unknown keys are refused.

    Attributes
    ----------
    labels : tuple of str
        Labels to give; empty means all that the survey has values of and the method can give.
    """

    # A mistyped key would otherwise be ignored, and the default trained without a word.
    model_config = ConfigDict(frozen=True, extra="forbid")

    labels: tuple[str, ...] = Field(default=(), max_length=Limits.labels)


@dataclass(frozen=True)
class External:
    """A label known from elsewhere.

    Attributes
    ----------
    value, error : (n_star,) float64
        Value and its 1 sigma error; NaN where unknown. A value without an error, or with error 0,
        is exact.
    """

    value: Float64Array
    error: Float64Array


# Read-only, as all calls share it as their default.
NO_EXTERNAL: Mapping[str, External] = MappingProxyType({})
UnseenStars = Literal["folds", "all", "validation"]
"""Whose residuals calibrate the errors of a method; see `Method.unseen`."""
SettingsT = TypeVar("SettingsT", bound=MethodSettings)


# eq=False: fields are arrays, whose `==` is an array and no truth value.
@dataclass(frozen=True, eq=False)
class Method(ABC, Generic[SettingsT]):
    """A way from spectra to labels, trained on a survey, saved as arrays and plain JSON.

    A subclass is a frozen dataclass, registered in `maury.methods.registry`, and generic in its
    settings. It names its paper, and neither keeps nor needs anything of the survey but its
    fields, which `maury.methods.storage` writes and reads.

    Attributes
    ----------
    name, paper, bibtex_key, licence : str
        What it is, and where it was published.
    preparation_defaults : mapping
        Section ``preparation`` of the settings: spectra alone unless a method says otherwise.
    settings_class : type of MethodSettings
    known_labels : tuple of str or None
        Labels that it can give; None if it learns any.
    revision : int
        Raised when a mended fault moves the labels that a fitted method gives: a model of an
        earlier revision predicts as the method does now, and its self-check says so.
    settings : MethodSettings
        With which it was trained.
    label_names : tuple of str
        Labels that it gives, in order.
    resolving_power : float or None
        Of the spectra that it was trained on; None if it is not known.
    earlier_power : float or None
        That of methods in files written before they held it.
    follows_noise : bool
        Whether its errors are those of the noise correlation of the spectra to predict, and not of
        that of the training spectra.
    unseen : {"folds", "all", "validation"}
        Of which labelled stars the residuals calibrate its errors: of all, by refits without each
        of five folds, where it learns from labels quickly; of all as they are, where theory gives
        labels; of the validation stars, where it learns slowly.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    bibtex_key: ClassVar[str]
    licence: ClassVar[str] = "MIT"
    preparation_defaults: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {"steps": ({"step": "noise"}, {"step": "mask_cosmics"}), "observables": ()}
    )
    settings_class: ClassVar[type[MethodSettings]] = MethodSettings
    known_labels: ClassVar[tuple[str, ...] | None] = None
    revision: ClassVar[int] = 1
    earlier_power: ClassVar[float | None] = None
    follows_noise: ClassVar[bool] = True
    unseen: ClassVar[UnseenStars] = "folds"

    settings: SettingsT = field(metadata=stored(None))
    label_names: tuple[str, ...] = field(metadata=stored(None))
    resolving_power: float | None = field(default=None, kw_only=True)

    @classmethod
    @abstractmethod
    def train(cls, training: Sample, validation: Sample, *, settings: SettingsT, seed: int) -> Self:
        """Learn from labelled spectra.

        Parameters
        ----------
        training, validation : Sample
            Stars to learn from, and others to choose or calibrate by.
        settings : MethodSettings
            Of the class `settings_class`.
        seed : int
            Of everything random.

        Raises
        ------
        ConfigError
            If the method cannot give a label that `settings` names.
        TrainingError
            If there are too few stars.
        """

    @abstractmethod
    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Give labels to prepared spectra.

        Parameters
        ----------
        inputs : Inputs
            Rows out = rows in; a row without a good pixel is NaN.
        external : mapping of str to External
            Labels known from elsewhere, such as a seismic log g; only those that the property
            `external_names` lists.

        Returns
        -------
        FitResult
            Of `label_names`, in that order.
        """

    @property
    def errors_follow_noise(self) -> bool:
        """Whether errors of this very method follow the noise: `follows_noise`, as a rule."""
        return self.follows_noise

    @property
    def further_columns(self) -> tuple[Column, ...]:
        """Columns of numbers that `FitResult.further` gives, beside labels and errors."""
        return ()

    @property
    def calibrated_by(self) -> UnseenStars:
        """Whose residuals calibrate the errors of this very method: `unseen`, as a rule."""
        return self.unseen

    @property
    def most_unseen(self) -> int | None:
        """Labelled stars that calibrate its errors at most, as a fit takes long; None for all."""
        return None

    def to_arrays(self) -> tuple[Arrays, dict[str, Any]]:
        """Return arrays (at least one) and plain JSON from which `from_arrays` makes an equal one.

        `settings` and `label_names` are not among them.
        """
        return write_fields(self)

    @classmethod
    def from_arrays(
        cls,
        arrays: Mapping[str, AnyArray],
        about: Mapping[str, Any],
        *,
        settings: SettingsT,
        label_names: tuple[str, ...],
    ) -> Self:
        """Read what `to_arrays` gave.

        Raises
        ------
        KeyError, ValueError, TypeError
            If something is missing or damaged.
        """
        power = about.get("resolving_power", cls.earlier_power)
        if power is not None and not _LEAST_POWER <= power <= _MOST_POWER:
            raise ValueError(f"a resolving power of {power}")
        check_correlation(about.get("noise_correlation", ()))
        given = {"resolving_power": power, **cls.not_stored(arrays, about, settings)}
        given |= {"settings": settings, "label_names": label_names}
        made: Self = read_fields(cls, arrays, about, given)
        return made

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: SettingsT
    ) -> dict[str, Any]:
        """Return fields that follow from others, as `maury.methods.storage.read_fields` takes."""
        del arrays, about, settings
        return {}

    @property
    def external_names(self) -> tuple[str, ...]:
        """Labels that are taken from columns of the survey where it has them."""
        return tuple(getattr(self.settings, "external", ()))
