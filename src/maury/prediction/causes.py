"""Why a spectrum differs from the one computed for its labels: causes told apart by one fit.

Each cause has templates, from theory and from the reconstruction of the star itself. The residual
is fitted by those of one cause at a time, beside all that is usual: labels off by their errors, a
small velocity, and the modes in which residuals of training stars vary. The cause whose drop in
chi-square is the largest explains the residual best.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike

from maury.io.arrays import AnyArray, Float32Array, Float64Array, IndexArray
from maury.prediction.evidence import few_of_many, leading_axes
from maury.prediction.peculiar_spectra import CALCIUM_AA, PASCHEN_AA, line_profile
from maury.spectra.operators import SPEED_OF_LIGHT_KMS

__all__ = ["CAUSES", "CauseModel"]

CAUSES = ("rotation", "zero_level", "emission", "paschen", "titanium_oxide", "continuum", "fringes")
"""Names of the causes."""
_POSITIVE = frozenset(("rotation", "emission", "paschen", "titanium_oxide"))
"""Causes that have one sign: lines are not sharpened, no star absorbs in emission."""
FREEDOM = {"continuum": 10.0, "paschen": 10.0, "fringes": 6.0, "rotation": 2.0}
"""Drop in chi-square that a cause has for its freedom alone, taken off before causes are compared:
twice its further parameters, the choice of a period, 3 sigma of Paschen lines beside weak ones."""

_CALCIUM_SIGMA_AA, _PASCHEN_SIGMA_AA = 0.65, 5.0
"""Widths: of a chromospheric core at R = 7500, and of a Stark-broadened line."""
_TIO_HEADS_AA, _TIO_FALL_AA = (8432.0, 8442.0, 8452.0), 12.0
"""Band heads of TiO, from which bands fade to the red (Munari & Tomasella 1999, A&AS 137, 521);
how fast is chosen."""
_CONTINUUM_DEGREE = 5
"""Of the Legendre polynomials: higher ones follow the wings of the Ca II lines."""
_STEPS_KMS = (15.0, 42.0, 85.0)
"""Steps of second differences, which broaden lines: about one, three and six pixels of RAVE."""
_FRINGE_PERIODS_AA = (8.0, 40.0)
"""Range of the periods of fringes: shorter ones look like lines, longer ones like a continuum."""
_N_MODE = 14
"""Modes of the training residuals: chosen on validation stars among 8, 14, 16 and 24."""
_NOISE_MODE = 2.0
"""Variance that neighbouring pixels' correlation of .44 gives a smooth mode of noise alone."""
_LEAST_MODE = 0.05
"""Variance of a mode that noise explains, so that none is without a width; chosen."""
_CLIP = 4.0
"""In sigma: beyond, a pixel is a fault that may not become a usual mode."""
_USUAL_VELOCITY_KMS = 3.0
"""Velocity left after the shift to rest that is usual: twice that of the observing model."""
_LABEL_WEIGHT = 5.0
"""Inverse variance of labels' errors, in units of the labels' scatter over the sample: .45 of it,
as faults move labels by more than their errors. Chosen on validation stars among 1 to 1000."""
_RIDGE = 1e-6
"""Of a template's own strength: it keeps one that lies within the usual ones solvable."""


@dataclass(frozen=True, eq=False)
class CauseModel:
    """What is usual in residuals of training stars.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        In air.
    label_centre, label_scale : (n,) float64
        Of the labels whose errors are usual.
    response : (n_term, n_pixel) float32
        The reconstruction as a quadratic of the scaled labels: 1, each, products of each pair.
    modes : (n_mode, n_pixel) float32
        Of residuals, one standard deviation each.
    """

    wave_aa: Float64Array
    label_centre: Float64Array
    label_scale: Float64Array
    response: Float32Array
    modes: Float32Array

    @classmethod
    def fit(
        cls,
        residual: Float32Array,
        weight: Float32Array,
        *,
        reconstruction: ArrayLike,
        labels: Float64Array,
        wave_aa: Float64Array,
    ) -> Self:
        """Learn from training stars.

        Parameters
        ----------
        residual, weight : (n_star, n_pixel) float32
            Without bias; inverse variance with the model error, 0 for bad pixels.
        reconstruction : (n_star, n_pixel) float
        labels : (n_star, n) float64
            Those whose errors are usual; finite.
        wave_aa : (n_pixel,) float64
        """
        centre, scale = labels.mean(axis=0), np.maximum(labels.std(axis=0), 1e-12)
        terms = _terms((labels - centre) / scale)
        model = np.asarray(reconstruction, dtype=np.float64)
        response = np.linalg.lstsq(terms, model, rcond=None)[0]
        usual = np.sqrt(np.maximum(np.median(weight, axis=0), 1e-12))
        scaled = np.clip(residual * np.sqrt(weight), -_CLIP, _CLIP)
        if few_of_many(scaled.shape, _N_MODE):
            strength, axes = leading_axes(scaled / np.sqrt(len(scaled)), _N_MODE)
        else:
            strength, axes = np.linalg.eigh(scaled.T @ scaled / len(scaled))
        strength, axes = strength[::-1][:_N_MODE], axes[:, ::-1][:, :_N_MODE].T
        excess = np.maximum(strength - _NOISE_MODE, _LEAST_MODE)
        modes = axes * np.sqrt(excess)[:, None] / usual
        single = (array.astype(np.float32) for array in (response, modes))
        return cls(wave_aa, centre, scale, *single)

    def gains(
        self,
        residual: Float32Array,
        weight: Float32Array,
        *,
        model: Float32Array,
        labels: Float64Array,
    ) -> dict[str, Float64Array]:
        """Drop in chi-square (n_star,) by each cause alone, 0 if it has the wrong sign.

        NaN where no good pixel has any of it.

        Parameters
        ----------
        residual, weight : (n_star, n_pixel) float32
            As of `fit`.
        model : (n_star, n_pixel) float32
            Reconstruction, finite.
        labels : (n_star, n) float64
        """
        own = self._own_templates(model, labels)
        normal, right = self._normal(residual, weight, own)
        n_usual = self._n_usual
        inner = normal[:, :n_usual, :n_usual] + np.diag(self._prior)
        inverse = np.asarray(np.linalg.inv(inner), dtype=np.float64)
        usual = (inverse @ right[:, :n_usual, None])[..., 0]
        gains = {
            name: _gain(normal, right, rows, (inverse, usual), name in _POSITIVE)
            for name, rows in self._places.items()
        }
        n_own = 1 + self.label_centre.size
        fitted = (usual[:, None, :n_own].astype(np.float32) @ own[:, :n_own])[:, 0]
        fitted += usual[:, n_own:].astype(np.float32) @ self.modes
        gains["fringes"] = self._fringes(residual - fitted, weight)
        return gains

    @property
    def _counts(self) -> dict[str, int]:
        """Templates of each cause that is linear, in their order."""
        singles = {name: 1 for name in CAUSES if name not in ("continuum", "fringes")}
        return singles | {"rotation": 2, "continuum": _CONTINUUM_DEGREE + 1}

    @cached_property
    def _places(self) -> dict[str, IndexArray]:
        """Places of the templates of each cause that is linear, among all."""
        bounds = np.cumsum([self._n_usual, *self._counts.values()])
        places = {
            name: np.arange(first, last)
            for name, first, last in zip(self._counts, bounds[:-1], bounds[1:], strict=True)
        }
        # A hot star has weak lines besides: of a cool one its labels are.
        hot = np.concatenate([places["paschen"], places["zero_level"]])
        return places | {"paschen": hot}

    @property
    def _n_usual(self) -> int:
        return 1 + self.label_centre.size + len(self.modes)

    @cached_property
    def _prior(self) -> Float64Array:
        """Inverse variances (n_usual,) of the amplitudes of the usual templates."""
        velocity = (self._pixel_kms / _USUAL_VELOCITY_KMS) ** 2
        labels = np.full(self.label_centre.size, _LABEL_WEIGHT)
        return np.concatenate([[velocity], labels, np.ones(len(self.modes))])

    @cached_property
    def _pixel_kms(self) -> float:
        span = np.log(self.wave_aa[-1] / self.wave_aa[0])
        return float(SPEED_OF_LIGHT_KMS * span / (self.wave_aa.size - 1))

    @cached_property
    def _fixed(self) -> Float32Array:
        """Modes, then the templates of causes that are the same for all stars (n, n_pixel)."""
        wave, x = self.wave_aa, np.linspace(-1.0, 1.0, self.wave_aa.size)
        bands = np.zeros(wave.size)
        for head in _TIO_HEADS_AA:
            # Clipped, as the exponential of what lies far to the blue would overflow.
            bands -= np.where(wave > head, np.exp(-np.maximum(wave - head, 0.0) / _TIO_FALL_AA), 0)
        parts: list[AnyArray] = [
            self.modes,
            line_profile(wave, CALCIUM_AA, sigma_aa=_CALCIUM_SIGMA_AA),
            -line_profile(wave, PASCHEN_AA, sigma_aa=_PASCHEN_SIGMA_AA),
            bands,
            np.polynomial.legendre.legvander(x, _CONTINUUM_DEGREE).T,
        ]
        return np.vstack(parts).astype(np.float32)

    @cached_property
    def _fixed_products(self) -> Float32Array:
        first, second = np.triu_indices(len(self._fixed))
        return np.ascontiguousarray((self._fixed[first] * self._fixed[second]).T)

    def _own_templates(self, model: Float32Array, labels: Float64Array) -> Float32Array:
        """Velocity, labels, rotation (two) and zero level of each star, (n_star, n, n_pixel)."""
        n_label = self.label_centre.size
        own = np.empty((len(model), n_label + 4, model.shape[1]), dtype=np.float32)
        steps = [max(k, round(v / self._pixel_kms)) for k, v in enumerate(_STEPS_KMS, start=1)]
        edge = steps[-1]
        padded = np.pad(model, ((0, 0), (edge, edge)), mode="edge")
        left, right = ([self._moved(padded, edge, s * k) for k in steps] for s in (-1, 1))
        np.subtract(left[0], right[0], out=own[:, 0])
        own[:, 0] *= np.float32(0.5)
        slopes = _slopes((labels - self.label_centre) / self.label_scale)
        own[:, 1 : 1 + n_label] = slopes.astype(np.float32) @ self.response
        middle = left[1] + right[1] - np.float32(4.0) * model
        own[:, -3] = left[0] + right[0] + middle
        own[:, -2] = left[2] + right[2] + middle
        np.subtract(np.float32(1.0), model, out=own[:, -1])
        return own

    @staticmethod
    def _moved(padded: Float32Array, edge: int, step: int) -> Float32Array:
        return padded[:, edge + step : padded.shape[1] - edge + step]

    def _normal(
        self, residual: Float32Array, weight: Float32Array, own: Float32Array
    ) -> tuple[Float64Array, Float64Array]:
        """Return normal matrices (n_star, n, n) and right sides (n_star, n), the usual first."""
        fixed, n_own = self._fixed, own.shape[1]
        n = n_own + len(fixed)
        first, second = n_own + np.array(np.triu_indices(len(fixed)))
        normal, right = np.empty((len(own), n, n)), np.empty((len(own), n))
        products = weight @ self._fixed_products
        normal[:, first, second] = products
        normal[:, second, first] = products
        weighted = own * weight[:, None]
        normal[:, :n_own, n_own:] = weighted @ fixed.T
        normal[:, n_own:, :n_own] = normal[:, :n_own, n_own:].transpose(0, 2, 1)
        normal[:, :n_own, :n_own] = weighted @ own.transpose(0, 2, 1)
        right[:, :n_own] = (weighted @ residual[..., None])[..., 0]
        right[:, n_own:] = (weight * residual) @ fixed.T
        n_usual_own, n_mode = 1 + self.label_centre.size, len(self.modes)
        order = np.r_[:n_usual_own, n_own : n_own + n_mode, n_usual_own:n_own, n_own + n_mode : n]
        return normal[:, order[:, None], order], right[:, order]

    @cached_property
    def _waves(self) -> tuple[Float32Array, Float32Array]:
        """Cosines and sines (n_pixel, n_period) of the periods of fringes."""
        span = float(self.wave_aa[-1] - self.wave_aa[0])
        shortest, longest = _FRINGE_PERIODS_AA
        # Two frequencies per resolved one, between which no peak is lost.
        count = max(2, round(2.0 * span * (1.0 / shortest - 1.0 / longest)))
        phase = 2.0 * np.pi * np.outer(self.wave_aa, np.linspace(1 / longest, 1 / shortest, count))
        return np.cos(phase).astype(np.float32), np.sin(phase).astype(np.float32)

    def _fringes(self, residual: Float32Array, weight: Float32Array) -> Float64Array:
        """Largest power (n_star,) of a period, as a drop in chi-square."""
        pulled = residual * weight
        cosine, sine = (pulled @ wave for wave in self._waves)
        power = (np.square(cosine) + np.square(sine)).max(axis=1)
        total = np.maximum(weight.sum(axis=1), np.float32(1e-12))
        # A sine has half the power of a constant.
        return np.asarray(power / (0.5 * total), dtype=np.float64)


def _terms(scaled: Float64Array) -> Float64Array:
    """1, each label, and products of each pair (n_star, n_term)."""
    first, second = np.triu_indices(scaled.shape[1])
    one = np.ones((len(scaled), 1))
    return np.hstack([one, scaled, scaled[:, first] * scaled[:, second]])


def _slopes(scaled: Float64Array) -> Float64Array:
    """Differentiate `_terms` by each label (n_star, n_label, n_term)."""
    n_star, n = scaled.shape
    first, second = np.triu_indices(n)
    out = np.zeros((n_star, n, 1 + n + first.size))
    for k in range(n):
        out[:, k, 1 + k] = 1.0
        out[:, k, 1 + n :] = (first == k) * scaled[:, second] + (second == k) * scaled[:, first]
    return out


def _gain(
    normal: Float64Array,
    right: Float64Array,
    rows: IndexArray,
    usual: tuple[Float64Array, Float64Array],
    positive: bool,
) -> Float64Array:
    """Drop in chi-square by some templates beside the usual ones, which come first."""
    inverse, amplitude = usual
    n_usual = inverse.shape[1]
    mixed, own = normal[:, rows, :n_usual], normal[:, rows[:, None], rows]
    count = own.shape[1]
    strength = np.einsum("nii->ni", own)
    left = own - mixed @ inverse @ mixed.transpose(0, 2, 1)
    left += (_RIDGE * strength + 1e-12)[:, :, None] * np.eye(count)
    pull = right[:, rows] - (mixed @ amplitude[..., None])[..., 0]
    found = np.linalg.solve(left, pull[..., None])[..., 0]
    gain = (found * pull).sum(axis=1)
    if positive:
        # Of rotation, which has two, the sum; of a hot star its Paschen lines.
        total = found.sum(axis=1) if rows[-1] == rows[0] + count - 1 else found[:, 0]
        gain = np.where(total > 0, gain, 0.0)
    return np.where(strength[:, 0] > 0, gain, np.nan)
