"""What a label listens to: its derivative by the flux, beside that of the best linear estimator.

The best estimator has the weights (F + P)^-1 J^T C^-1 (`optimal_weights`): J are the derivatives
of the flux by the emulator, or by the theory that the model learnt from its stars, C the noise,
F = J^T C^-1 J, P the inverse covariance of what is known beforehand. A
network that reads a label from its own lines has derivatives like these.

Two figures say how alike they are. The correlation compares pixel by pixel. The response is
the product of the derivatives of a label by the flux with the theory's derivatives of the flux by
the same label: what the estimate gains if the spectrum changes by one unit of that label alone. It
is 1 without prior knowledge and 0 for a label that is inferred from others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_solve_banded

from maury.io.arrays import Float64Array, Int64Array
from maury.labels.definitions import LABEL_NAMES, LABELS, Label
from maury.labels.statistics import robust_scale
from maury.model.directory import Model
from maury.simulation.bound import (
    _N,
    _SCALE,
    Prior,
    _complete,
    _Instrument,
    _prior_precision,
    _shipped,
    covers,
)
from maury.simulation.learnt_bound import learnt_weights
from maury.simulation.observing import RAVE_WAVE_AA, TRAINING_CONDITIONS, ObservingModel
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.noise import RAVE_CORRELATION
from maury.spectra.operators import air_to_vacuum, vacuum_to_air
from maury.spectra.pixels import FLUX_FLOOR

LINES: Mapping[str, tuple[float, ...]] = {
    "Mg": (8473.69, 8710.18, 8712.69, 8717.83, 8736.02),
    "Al": (8772.87, 8773.90),
    "Si": (8443.97, 8501.54, 8556.78, 8595.96, 8648.47, 8728.01, 8742.45, 8752.01),
    "Ca II": (8498.02, 8542.09, 8662.14),
    "Ti": (8426.51, 8434.96, 8435.65, 8518.35, 8675.37, 8682.98, 8734.71),
    "Fe": (
        8439.57,
        8468.41,
        8514.07,
        8526.67,
        8582.26,
        8611.80,
        8621.60,
        8674.75,
        8688.62,
        8757.19,
        8763.97,
    ),
    "Ni": (8501.80, 8606.37, 8636.99, 8702.49, 8770.68),
}
"""Strong lines, angstrom in air (Heiter et al. 2021, A&A 645, A106)."""

LINES_OF: Mapping[str, tuple[str, ...]] = {
    "teff": ("Ca II", "Ti"),
    "logg": ("Ca II",),
    "m_h": ("Fe", "Ca II"),
    "fe_h": ("Fe",),
    "alpha_m": ("Ca II", "Ti"),
    "si_fe": ("Si",),
    "al_fe": ("Al",),
    "mg_fe": ("Mg",),
    "ni_fe": ("Ni",),
}
"""Lines that are marked for each label."""

STAR_TYPES: Mapping[str, tuple[float, float, float]] = {
    "Sun-like dwarf": (5772.0, 4.44, 0.0),
    "red clump giant": (4750.0, 2.45, -0.2),
    "metal-poor giant": (4700.0, 1.9, -1.0),
}
"""Teff (K), log g and [Fe/H] of typical stars."""

TYPICAL = "typical star"
"""Stars near the middle of the sample, where labels do not tell the types."""

_ALIKE = np.array([150.0, 0.3, 0.25])
"""Teff (K), log g and [Fe/H] over which line depths of the region change by a tenth or so: the unit
in which stars are alike. Chosen by eye."""
_MOST_STARS, _FURTHEST = 8, 3.0
"""A mean over eight stars brings the noise of a gradient down to a third; beyond
three units the lines are other ones."""


def lines_in(medium: str) -> dict[str, tuple[float, ...]]:
    """Return `LINES`, angstrom in a medium ("air" or "vacuum")."""
    if medium == "air":
        return dict(LINES)
    return {name: tuple(air_to_vacuum(lines).tolist()) for name, lines in LINES.items()}


@dataclass(frozen=True)
class Sensitivity:
    """Derivatives of labels by flux, means over a few stars of one type.

    Attributes
    ----------
    star : str
        The type, a key of `STAR_TYPES`.
    n : int
        Stars.
    teff, logg, fe_h, snr : float
        Their mean labels ([M/H] where [Fe/H] is none of them), NaN where unknown, and median S/N.
    labels : tuple of Label
        In the order of the first axis of what follows.
    wave_aa : (n_pixel,) float64
        As the model takes it.
    network, optimal : (n_label, n_pixel) float64
        Unit of the label per unit of flux: the model's derivatives, and the best linear weights.
    correlation : (n_label,) float64
        Of the two, over pixels.
    response, optimal_response : (n_label,) float64
        Gain of the estimate per unit of the label, all others fixed.
    medium : {"air", "vacuum"}
        Of `wave_aa`.
    """

    star: str
    n: int
    teff: float
    logg: float
    fe_h: float
    snr: float
    labels: tuple[Label, ...]
    wave_aa: Float64Array
    network: Float64Array
    optimal: Float64Array
    correlation: Float64Array
    response: Float64Array
    optimal_response: Float64Array
    medium: str

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)

    @property
    def slug(self) -> str:
        """Type of star as a part of a file name."""
        return self.star.lower().replace(" ", "-")

    def summary(self, position: int) -> str:
        """Return correlation and response of the label at a position, as text."""
        correlation, response, best = (
            f"{round(float(values[position]), 2) + 0.0:.2f}"
            for values in (self.correlation, self.response, self.optimal_response)
        )
        return f"{correlation}, {response} of {best}"

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping, without the spectra."""
        numbers = ("star", "n", "teff", "logg", "fe_h", "snr")
        per_label = ("correlation", "response", "optimal_response")
        return {name: getattr(self, name) for name in numbers} | {
            name: dict(zip(self.label_names, map(float, getattr(self, name)), strict=True))
            for name in per_label
        }


def optimal_weights(
    labels: ArrayLike,
    snr: ArrayLike,
    *,
    wave_aa: ArrayLike = RAVE_WAVE_AA,
    prior: Prior = None,
    noise_correlation: Sequence[float] = RAVE_CORRELATION,
    observing: ObservingModel = TRAINING_CONDITIONS,
) -> tuple[Float64Array, Float64Array]:
    """Weights of the best linear estimator of each label, and the slopes of the flux.

    Parameters
    ----------
    labels : (n_star, 9) array_like
        In the order of `maury.labels.definitions.LABELS`, finite.
    snr : float or (n_star,) array_like
        S/N per pixel where the flux is 1.
    wave_aa : (n_pixel,) array_like
        Centres of the pixels, in air.
    prior : None, "photometry", or (16, 16) or (n_star, 16, 16) array_like
        What is known besides the spectrum: nothing, the labels of the population given photometry,
        or a covariance of the emulator's labels.
    noise_correlation : sequence of float
        Correlation of the noise of a pixel with that of the next one, the one after, and so on.
    observing : ObservingModel
        Resolving power, rotation and their scatter.

    Returns
    -------
    weights : (n_star, 9, n_pixel) float64
        Unit of the label per unit of flux; all other labels and nuisances are unknown, as far as
        the prior leaves them so.
    slopes : (n_star, 9, n_pixel) float64
        Derivative of the flux by each label, per unit of the label.
    """
    values, n_given = _complete(labels)
    instrument = _Instrument.of(_shipped(), wave_aa, observing, noise_correlation)
    total = instrument.information(values, snr)
    # Information adds up: noise and prior are independent (Tegmark, Taylor & Heavens 1997).
    total[:, :_N, :_N] += _prior_precision(prior, values)
    flux, slopes = instrument.derivatives(values)
    ratio = np.broadcast_to(np.asarray(snr, dtype=np.float64), len(values))[:, None]
    # Photon noise goes as the root of the flux; the floor keeps line cores from infinite weight.
    noise = np.sqrt(np.maximum(flux, FLUX_FLOOR)) / ratio
    whitened = (slopes / noise[:, None]).reshape(-1, flux.shape[1])
    weighted = cho_solve_banded((instrument.factor, True), whitened.T, check_finite=False).T
    weights = np.linalg.solve(total, weighted.reshape(slopes.shape) / noise[:, None])
    scale = _SCALE[:n_given, None]
    return weights[:, :n_given] * scale, slopes[:, :n_given] / scale


@dataclass(frozen=True)
class BestEstimator:
    """The best linear estimator of some labels of a model.

    Attributes
    ----------
    labels : tuple of Label
        That the theory knows.
    weights : callable
        From labels (n_star, n_label) and S/N (n_star,) to weights and slopes, as
        `optimal_weights` gives them.
    """

    labels: tuple[Label, ...]
    weights: Callable[[Float64Array, Float64Array], tuple[Float64Array, Float64Array]]

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labels."""
        return tuple(label.name for label in self.labels)


def best_estimator(
    model: Model,
    observing: ObservingModel | None,
    *,
    noise_correlation: Sequence[float] = RAVE_CORRELATION,
    simulator: TrainingStarSimulator | None = None,
) -> BestEstimator | None:
    """Return the best linear estimator by the theory of a model; None where none reaches.

    Parameters
    ----------
    model : Model
        Its wavelengths, noise and inputs; with photometry the best estimator has it too.
    observing : ObservingModel or None
        Conditions under which the spectra are seen; the emulator needs them.
    noise_correlation : sequence of float
        Autocorrelation of the noise at lags of 1, 2, ... prepared pixels.
    simulator : TrainingStarSimulator, optional
        Of the model, where it is read already.
    """
    photometry = sees_photometry(model)
    if TrainingStarSimulator.learnt_by(model):
        simulator = simulator or TrainingStarSimulator.of_model(model)
        weights = partial(
            learnt_weights, simulator, photometry=photometry, noise_correlation=noise_correlation
        )
        return BestEstimator(model.labels, weights)
    if observing is None or not can_compare(model):
        return None
    of_emulator = partial(
        optimal_weights,
        wave_aa=air_wavelengths(model),
        prior="photometry" if photometry else None,
        noise_correlation=noise_correlation,
        observing=observing,
    )
    return BestEstimator(LABELS, of_emulator)


def star_types(label_names: Sequence[str]) -> tuple[str, ...]:
    """Types of stars that labels of these names tell, keys of `STAR_TYPES`; else `TYPICAL`."""
    return (TYPICAL,) if None in _places(label_names) else tuple(STAR_TYPES)


def _places(label_names: Sequence[str]) -> list[int | None]:
    """Columns of Teff, log g, and [Fe/H] or [M/H]; None for one that is none of the labels."""
    names = list(label_names)
    iron = "fe_h" if "fe_h" in names else "m_h"
    return [names.index(name) if name in names else None for name in ("teff", "logg", iron)]


def nearest_to(
    star: str, labels: Float64Array, label_names: Sequence[str] = LABEL_NAMES
) -> Int64Array:
    """Return the rows of the stars most like a type: at most eight, none if all are far.

    A star that is more like another type is left out: types that a sample lacks would otherwise
    have the stars of those that it has.

    Parameters
    ----------
    star : str
        One of `star_types`.
    labels : (n_star, n_label) float64
        Stars with NaN are left out.
    label_names : sequence of str
        Their names.
    """
    if star == TYPICAL:
        centre, scale = robust_scale(labels)
        offset = (labels - centre) / np.where(scale > 0, scale, 1.0)
        distance = np.sqrt(np.sum(offset**2, axis=1))
    else:
        columns = [k for k in _places(label_names) if k is not None]
        apart = (labels[:, None, columns] - np.array(list(STAR_TYPES.values()))) / _ALIKE
        every = np.sqrt(np.sum(apart**2, axis=2))
        number = list(STAR_TYPES).index(star)
        distance = np.where(every.argmin(axis=1) == number, every[:, number], np.inf)
    # NaN would sort last too, but would not be caught by the limit on distance.
    distance = np.where(np.isfinite(labels).all(axis=1), distance, np.inf)
    order = np.argsort(distance, kind="stable")[:_MOST_STARS]
    return order[distance[order] < _FURTHEST]


def compare_with_optimal(
    star: str,
    gradient: Float64Array,
    labels: Float64Array,
    snr: Float64Array,
    *,
    wave_aa: Float64Array,
    medium: str,
    estimator: BestEstimator,
) -> Sensitivity:
    """Set a model's derivatives at some stars beside the best linear weights.

    Parameters
    ----------
    star : str
        What to call these stars.
    gradient : (n_star, n_label, n_pixel) float64
        Derivatives of the labels of the estimator by the flux.
    labels : (n_star, n_label) float64
        True labels, finite.
    snr : (n_star,) float64
        S/N per pixel.
    wave_aa : (n_pixel,) float64
        As the model takes it.
    medium : {"air", "vacuum"}
        Of these wavelengths.
    estimator : BestEstimator
        Of the model.
    """
    weights, slopes = estimator.weights(labels, snr)
    means = [
        np.nan if k is None else float(labels[:, k].mean()) for k in _places(estimator.label_names)
    ]
    mean, best = gradient.mean(axis=0), weights.mean(axis=0)
    return Sensitivity(
        star=star,
        n=len(labels),
        **dict(zip(("teff", "logg", "fe_h"), means, strict=True)),
        snr=float(np.median(snr)),
        labels=estimator.labels,
        wave_aa=wave_aa,
        network=mean,
        optimal=best,
        correlation=np.array([_correlation(a, b) for a, b in zip(mean, best, strict=True)]),
        # Star by star before the mean: the product of means would mix lines of one star with
        # another's.
        response=np.einsum("nlp,nlp->l", gradient, slopes) / len(labels),
        optimal_response=np.einsum("nlp,nlp->l", weights, slopes) / len(labels),
        medium=medium,
    )


def can_compare(model: Model) -> bool:
    """Say whether the emulator knows the labels and the pixels of a model."""
    return set(LABEL_NAMES) <= set(model.label_names) and covers(air_wavelengths(model))


def air_wavelengths(model: Model) -> Float64Array:
    """Return the pixels (n_pixel,) of a model in angstrom in air."""
    return model.wave_aa if model.medium == "air" else vacuum_to_air(model.wave_aa)


def sees_photometry(model: Model) -> bool:
    """Say whether the networks of a model take observables."""
    return bool(model.network.get("photometry", True)) and bool(model.preparation.observables)


def _correlation(x: Float64Array, y: Float64Array) -> float:
    # A label that follows from photometry alone has no derivative by the flux at all.
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])
