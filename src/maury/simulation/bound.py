"""The least error that a spectrum allows: the Cramer-Rao bound of each label of each star.

The information of a spectrum on its labels is F = J^T C^-1 J, where J are the emulator's
derivatives, broadened and sampled as the spectrograph does, and C the covariance of the noise
between pixels. Prior information is added to F, and the diagonal of the inverse is the least
variance of each label, all others being unknown. See Ting et al. (2017, ApJ 843, 32) for spectra.

Beside the emulator's labels, these nuisances are unknown: radial velocity, resolving power,
rotation, and a smooth error of the continuum, with the scatters of an `ObservingModel`.

[M/H] and [Fe/H] are one quantity for a spectrum: [Fe/H] is free, and [M/H] - [Fe/H] has the
scatter that it has among the stars of the population, at given Teff, log g, [Fe/H], [alpha/M].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.linalg import cho_solve_banded, cholesky_banded

from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.labels.definitions import LABEL_NAMES, LABELS
from maury.simulation.emulator import Emulator
from maury.simulation.observing import (
    RAVE_WAVE_AA,
    TRAINING_CONDITIONS,
    ObservingModel,
    Spectrograph,
)
from maury.simulation.population import Population
from maury.simulation.prior import TIED, population_prior
from maury.simulation.quantities import EMULATOR_LABELS
from maury.spectra.noise import RAVE_CORRELATION, check_correlation
from maury.spectra.pixels import FLUX_FLOOR

__all__ = [
    "SNR_EDGES",
    "LabelBound",
    "SnrBin",
    "compare_with_bound",
    "covers",
    "cramer_rao",
    "cramer_rao_covariance",
]

Prior = Literal["photometry"] | ArrayLike | None

SNR_EDGES = (0.0, 30.0, 45.0, 60.0, 80.0, np.inf)
"""Edges of the bins of S/N in which residuals are compared with the bound."""

_NAMES = tuple(EMULATOR_LABELS)
_N = len(_NAMES)
_N_SHORT = len(LABEL_NAMES)
_RANGES = {label.name: label.range[1] - label.range[0] for label in LABELS}
_SCALE = np.array([_RANGES.get(name, 0.5) for name in _NAMES])
_FREE = [i for i, name in enumerate(_NAMES) if name not in TIED]
_CONTINUUM_ORDERS = np.arange(1, 8)
_RV_STEP_KMS, _RELATIVE_STEP = 0.5, 0.05
# The emulator's derivatives of one star are sixteen spectra of its own long grid.
_BLOCK = 16


def cramer_rao(
    labels: ArrayLike,
    snr: ArrayLike,
    *,
    wave_aa: ArrayLike = RAVE_WAVE_AA,
    prior: Prior = None,
    observing: ObservingModel = TRAINING_CONDITIONS,
    noise_correlation: Sequence[float] = RAVE_CORRELATION,
    modes: ObservedModes | None = None,
    emulator: Emulator | None = None,
) -> Float64Array:
    """Least 1 sigma error of each label of each star, all other labels and nuisances unknown.

    Parameters
    ----------
    labels : (n_star, 9) or (n_star, 16) array_like
        The nine labels in the order of `maury.labels.definitions.LABELS`, or all of the emulator.
        With nine, microturbulence and abundance offsets are at their means in the population.
    snr : (n_star,) or scalar array_like
        S/N per pixel at the continuum; noise goes as the square root of the flux.
    wave_aa : (n_pixel,) array_like
        Pixels, angstrom in air, within the emulator's range.
    prior : None, "photometry", or (16, 16) or (n_star, 16, 16) array_like
        What is known besides the spectrum. None is the spectrum alone: Teff, log g, [Fe/H],
        [alpha/M] and the four [X/Fe] have Gaussian priors as wide as the whole range of the label
        (`maury.labels.definitions.LABELS`); [M/H] - [Fe/H], microturbulence and offsets scatter
        about their means at given Teff, log g, [Fe/H], [alpha/M] as in the population. "photometry"
        is the covariance of all labels in the population given eight absolute magnitudes and A_V.
        An array is a covariance of the emulator's labels.
    observing : ObservingModel
        Mean and scatter of resolving power, rotation, radial velocity and continuum.
    noise_correlation : sequence of float
        Correlation of the noise between pixels 1, 2, ... apart.
    modes : ObservedModes, optional
        Nuisances as measured at `wave_aa`, instead of the typical continuum.
    emulator : Emulator, optional
        The shipped one by default.

    Returns
    -------
    (n_star, n_label) float64
        In the order and units of `labels`; NaN for a star whose labels are not all finite, or
        whose S/N is not positive.

    Raises
    ------
    ValueError
        If shapes do not fit, pixels are beyond the emulator, or no noise correlates so.

    Examples
    --------
    >>> sun = [[5772, 4.44, 0, 0, 0, 0, 0, 0, 0]]
    >>> cramer_rao(sun, 50).shape
    (1, 9)
    """
    covariance = cramer_rao_covariance(
        labels,
        snr,
        wave_aa=wave_aa,
        prior=prior,
        observing=observing,
        noise_correlation=noise_correlation,
        modes=modes,
        emulator=emulator,
    )
    return _sigma(covariance)


def cramer_rao_covariance(
    labels: ArrayLike,
    snr: ArrayLike,
    *,
    wave_aa: ArrayLike = RAVE_WAVE_AA,
    prior: Prior = None,
    observing: ObservingModel = TRAINING_CONDITIONS,
    noise_correlation: Sequence[float] = RAVE_CORRELATION,
    modes: ObservedModes | None = None,
    emulator: Emulator | None = None,
) -> Float64Array:
    """Covariance (n_star, n_label, n_label) of which `cramer_rao` is the diagonal, which see."""
    values, n_given = _complete(labels)
    instrument = _Instrument.of(
        emulator or _shipped(), wave_aa, observing, noise_correlation, modes=modes
    )
    fisher = instrument.information(values, snr)
    return _covariance(fisher, _prior_precision(prior, values))[:, :n_given, :n_given]


def covers(wave_aa: ArrayLike) -> bool:
    """Say whether the shipped emulator has these pixels (n_pixel,), angstrom in air."""
    wave, emulated = np.asarray(wave_aa, dtype=np.float64), _shipped().wave_aa
    return bool(wave.size > 1 and wave[0] >= emulated[2] and wave[-1] <= emulated[-3])


@dataclass(frozen=True)
class SnrBin:
    """Residuals of one label over the bound, in a range of S/N. NaN where there is no star.

    Attributes
    ----------
    low, high : float
        Lowest S/N, and the S/N below which the stars are.
    n : int
        Spectra with residual and bound.
    scatter : float
        Standard deviation of the residuals.
    with_photometry, spectrum_alone : float
        Median bound with the photometric prior, and without, in the unit of the label.
    ratio_with_photometry, ratio_spectrum_alone : float
        `scatter` over the root of the mean squared bound.
    """

    low: float
    high: float
    n: int
    scatter: float
    with_photometry: float
    spectrum_alone: float
    ratio_with_photometry: float
    ratio_spectrum_alone: float


@dataclass(frozen=True)
class LabelBound:
    """Residuals of one label over its bound: of all spectra, and by S/N (`SNR_EDGES`)."""

    name: str
    overall: SnrBin
    bins: tuple[SnrBin, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping; what could not be measured, or has no end, is None."""
        overall, *bins = (
            {key: value if np.isfinite(value) else None for key, value in asdict(one).items()}
            for one in (self.overall, *self.bins)
        )
        return {"name": self.name, "overall": overall, "bins": bins}


@dataclass(frozen=True, eq=False)
class ObservedModes:
    """How much the spectra of one survey differ beyond labels and noise, as measured on them.

    Attributes
    ----------
    continuum : (n_mode, n_pixel) array
        Relative to the flux, one standard deviation each.
    added : (n_mode, n_pixel) array
        Added to the flux, likewise.
    """

    continuum: AnyArray
    added: AnyArray


def compare_with_bound(
    truth: ArrayLike,
    predicted: ArrayLike,
    snr: ArrayLike,
    *,
    wave_aa: ArrayLike = RAVE_WAVE_AA,
    noise_correlation: Sequence[float] = RAVE_CORRELATION,
    modes: ObservedModes | None = None,
    observing: ObservingModel = TRAINING_CONDITIONS,
) -> tuple[LabelBound, ...]:
    """Compare residuals with the bounds at the true labels, with and without photometry.

    Parameters
    ----------
    truth, predicted : (n_star, 9) array_like
        True and predicted labels in the order of `maury.labels.definitions.LABELS`; a star without
        all true labels has no bound.
    snr : (n_star,) array_like
        S/N per pixel at the continuum.
    wave_aa, noise_correlation
        As of `cramer_rao`.
    modes : ObservedModes, optional
        Nuisances as measured at `wave_aa`, instead of the typical continuum.
    observing : ObservingModel
        As of `cramer_rao`.

    Returns
    -------
    tuple of LabelBound
        One per label.
    """
    true, ratio = np.asarray(truth, dtype=np.float64), np.asarray(snr, dtype=np.float64)
    residual = np.asarray(predicted, dtype=np.float64) - true
    values, n_given = _complete(true)
    instrument = _Instrument.of(_shipped(), wave_aa, observing, noise_correlation, modes=modes)
    fisher = instrument.information(values, ratio)
    priors: tuple[Prior, Prior] = ("photometry", None)
    both = [_sigma(_covariance(fisher, _prior_precision(one, values))) for one in priors]
    out = []
    for k, name in enumerate(LABEL_NAMES[:n_given]):
        overall, *bins = (
            snr_bin(limits, residual[:, k], ratio, [sigma[:, k] for sigma in both])
            for limits in [(0.0, np.inf), *pairwise(SNR_EDGES)]
        )
        out.append(LabelBound(name, overall, tuple(bins)))
    return tuple(out)


def snr_bin(
    limits: tuple[float, float], residual: Float64Array, snr: Float64Array, both: list[Float64Array]
) -> SnrBin:
    used = (snr >= limits[0]) & (snr < limits[1]) & np.isfinite(residual) & np.isfinite(both[0])
    n = int(used.sum())
    if n == 0:
        return SnrBin(*limits, 0, *[float("nan")] * 5)
    scatter = float(residual[used].std())
    medians = [float(np.median(sigma[used])) for sigma in both]
    ratios = [scatter / float(np.sqrt(np.mean(sigma[used] ** 2))) for sigma in both]
    return SnrBin(*limits, n, scatter, *medians, *ratios)


@cache
def _shipped() -> Emulator:
    return Emulator.load()


def _complete(labels: ArrayLike) -> tuple[Float64Array, int]:
    """All sixteen labels, and how many were given."""
    values = np.asarray(labels, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] not in (_N_SHORT, _N):
        raise ValueError(
            f"labels must be (n_star, {_N_SHORT}) or (n_star, {_N}), got {values.shape}; "
            f"give {', '.join(LABEL_NAMES)}, or all labels of the emulator"
        )
    if values.shape[1] == _N:
        return values, _N
    full = np.full((len(values), _N), np.nan)
    known = np.isfinite(values).all(axis=1)
    if known.any():
        full[known] = Population.load().complete(values[known])
    return full, _N_SHORT


def _prior_precision(prior: Prior, values: Float64Array) -> Float64Array:
    """Inverse prior covariance (n_star, 16, 16) of the labels in units of `_SCALE`."""
    out = np.full((len(values), _N, _N), np.nan)
    good = np.isfinite(values).all(axis=1)
    if isinstance(prior, str) and prior != "photometry":
        raise ValueError(f"prior must be None, 'photometry' or a covariance, got {prior!r}")
    if prior is not None and not isinstance(prior, str):
        covariance = np.asarray(prior, dtype=np.float64)
        if covariance.shape not in ((_N, _N), out.shape):
            raise ValueError(
                f"a prior covariance must be ({_N}, {_N}) or {out.shape}, got {covariance.shape}"
            )
        out[:] = np.linalg.inv(covariance / np.outer(_SCALE, _SCALE))
    elif good.any() and prior is None:
        relation, scatter = population_prior().ties(values[good])
        relation *= _SCALE
        ties = relation.transpose(0, 2, 1) @ np.linalg.solve(scatter, relation)
        ties[:, _FREE, _FREE] += 1.0
        out[good] = ties
    elif good.any():
        scatter = population_prior().given_photometry(values[good])
        out[good] = np.linalg.inv(scatter / np.outer(_SCALE, _SCALE))
    return out


def _covariance(fisher: Float64Array, precision: Float64Array) -> Float64Array:
    """Posterior covariance (n_star, 16, 16) of the labels, in their units."""
    total = fisher.copy()
    total[:, :_N, :_N] += precision
    out = np.full(precision.shape, np.nan)
    good = np.isfinite(total).all(axis=(1, 2))
    out[good] = np.linalg.inv(total[good])[:, :_N, :_N] * np.outer(_SCALE, _SCALE)
    return out


def _sigma(covariance: Float64Array) -> Float64Array:
    return np.asarray(np.sqrt(np.diagonal(covariance, axis1=1, axis2=2)))


@dataclass(frozen=True, eq=False)
class _Instrument:
    """What turns the emulator's derivatives into information.

    Parameters of a star are the sixteen labels in units of `_SCALE`, then the nuisances in units
    of their prior standard deviations: radial velocity, ln resolving power, ln rotation, and
    coefficients of the continuum and of what is added.
    """

    emulator: Emulator
    spectrograph: Spectrograph
    factor: Float64Array
    continuum: Float64Array
    added: Float64Array

    @classmethod
    def of(
        cls,
        emulator: Emulator,
        wave_aa: ArrayLike,
        observing: ObservingModel,
        noise_correlation: Sequence[float],
        *,
        modes: ObservedModes | None = None,
    ) -> _Instrument:
        wave = np.asarray(wave_aa, dtype=np.float64)
        if modes is None:
            # Without modes measured by a model the continuum is that of the observing model.
            modes = ObservedModes(
                observing.continuum_rms * _continuum_basis(wave), np.zeros((0, wave.size))
            )
        return cls(
            emulator,
            Spectrograph(emulator.wave_aa, wave, emulator.spec.resolving_power, observing),
            correlation_factor(noise_correlation, wave.size),
            modes.continuum.astype(np.float64),
            modes.added.astype(np.float64),
        )

    def information(self, labels: Float64Array, snr: ArrayLike) -> Float64Array:
        """Return J^T C^-1 J, to which the unit priors of the nuisances are added.

        Parameters
        ----------
        labels : (n_star, 16)
        snr : (n_star,)

        Returns
        -------
        (n_star, n_parameter, n_parameter) float64
            NaN for a star whose labels or S/N cannot be used.
        """
        ratio = np.broadcast_to(np.asarray(snr, dtype=np.float64), labels.shape[:1])
        good = np.isfinite(labels).all(axis=1) & (labels[:, 0] > 0)
        used = np.flatnonzero(good & np.isfinite(ratio) & (ratio > 0))
        n_parameter = _N + 3 + len(self.continuum) + len(self.added)
        out = np.full((len(labels), n_parameter, n_parameter), np.nan)
        for start in range(0, used.size, _BLOCK):
            rows = used[start : start + _BLOCK]
            flux, slopes = self.derivatives(labels[rows])
            # In units of the noise, so that what is left of C is its correlation.
            slopes *= ratio[rows, None, None] / np.sqrt(np.maximum(flux, FLUX_FLOOR))[:, None]
            columns = slopes.reshape(-1, flux.shape[1]).T
            weighted = cho_solve_banded((self.factor, True), columns, check_finite=False).T
            out[rows] = slopes @ weighted.reshape(slopes.shape).transpose(0, 2, 1)
        nuisance = np.arange(_N, n_parameter)
        # Slopes are per standard deviation of a nuisance, whose prior is thus one.
        out[:, nuisance, nuisance] += 1.0
        return out

    def derivatives(self, labels: Float64Array) -> tuple[Float64Array, Float64Array]:
        """Observed flux (n_star, n_pixel), and its derivatives (n_star, n_parameter, n_pixel)."""
        source = self.emulator.flux(labels)
        typical = self.spectrograph.disperse(source, labels)
        broadening = (typical.rotation_kms[:, None], typical.macroturbulence_kms[:, None])
        jacobian = self.emulator.jacobian(labels).transpose(0, 2, 1)
        # Per range of each label: kelvin and dex in one matrix would cost digits.
        jacobian = jacobian * _SCALE.astype(np.float32)[:, None]
        # Flux and derivatives go together: broadening is linear, and keeps a constant.
        seen = self._broaden(np.concatenate([source[:, None], jacobian], axis=1), broadening)
        flux, by_label = seen[:, 0], seen[:, 1:]
        by_nuisance = self._width_slopes(source, broadening)
        continuum = flux[:, None] * self.continuum
        added = np.broadcast_to(self.added, (len(flux), *self.added.shape))
        return flux, np.concatenate([by_label, by_nuisance, continuum, added], axis=1)

    def _width_slopes(
        self, source: Float32Array, broadening: tuple[Float64Array, Float64Array]
    ) -> Float64Array:
        """Differentiate by velocity, resolving power and rotation: (n_star, 3, n_pixel)."""
        observing = self.spectrograph.model
        ends = [
            self._broaden(
                np.repeat(source[:, None], 3, axis=1),
                broadening,
                rv_kms=np.array([sign * _RV_STEP_KMS, 0.0, 0.0]),
                power_factor=1.0 + sign * np.array([0.0, _RELATIVE_STEP, 0.0]),
                rotation_factor=1.0 + sign * np.array([0.0, 0.0, _RELATIVE_STEP]),
            )
            for sign in (1.0, -1.0)
        ]
        relative = observing.resolving_power_scatter / observing.resolving_power
        sigma = (observing.rv_error_kms, relative, observing.rotation_scatter)
        steps = (_RV_STEP_KMS, _RELATIVE_STEP, _RELATIVE_STEP)
        # Central differences: the error of first order cancels.
        per_step = np.array(sigma) / np.array(steps)
        return np.asarray(0.5 * (ends[0] - ends[1]) * per_step[:, None])

    def _broaden(
        self,
        rows: Float32Array,
        broadening: tuple[Float64Array, Float64Array],
        *,
        rv_kms: ArrayLike = 0.0,
        power_factor: ArrayLike = 1.0,
        rotation_factor: ArrayLike = 1.0,
    ) -> Float64Array:
        """Observe rows (n_star, n, n_in), with changes (n,) of each row: (n_star, n, n_pixel)."""
        shape = rows.shape[:2]
        rotation, macroturbulence = broadening
        power = self.spectrograph.model.resolving_power * np.asarray(power_factor)
        power, rotation, macroturbulence, rv = (
            np.broadcast_to(value, shape).ravel()
            for value in (power, rotation * np.asarray(rotation_factor), macroturbulence, rv_kms)
        )
        seen = self.spectrograph.broaden(
            rows.reshape(-1, rows.shape[2]),
            resolving_power=power,
            rotation_kms=rotation,
            macroturbulence_kms=macroturbulence,
            rv_kms=rv,
        )
        return seen.reshape(*shape, -1).astype(np.float64)


def _continuum_basis(wave_aa: Float64Array) -> Float64Array:
    """Legendre polynomials (7, n_pixel), falling as order^-1/2; mean squares add up to 1."""
    x = 2.0 * (wave_aa - wave_aa[0]) / (wave_aa[-1] - wave_aa[0]) - 1.0
    basis = np.polynomial.legendre.legvander(x, _CONTINUUM_ORDERS[-1])[:, _CONTINUUM_ORDERS].T
    basis /= np.sqrt(np.mean(basis**2, axis=1, keepdims=True))
    weight = np.sqrt(1.0 / _CONTINUUM_ORDERS / np.sum(1.0 / _CONTINUUM_ORDERS))
    return np.asarray(weight[:, None] * basis)


def correlation_factor(correlation: Sequence[float], n_pixel: int) -> Float64Array:
    """Banded lower Cholesky factor of the correlation matrix of the noise of `n_pixel` pixels."""
    bands = np.zeros((1 + min(len(correlation), n_pixel - 1), n_pixel))
    bands[0] = 1.0
    for lag, value in enumerate(check_correlation(correlation), start=1):
        bands[lag : lag + 1, : n_pixel - lag] = value
    return np.asarray(cholesky_banded(bands, lower=True))
