"""Is a spectrum like those of the training sample: for networks and methods without a theory.

Two scores, as `maury.prediction.coverage` has them: the distance to the tenth nearest training
spectrum in whitened principal components, and the chi-square of what these leave, which faults put
where no training spectrum has anything. Thresholds follow the rule of the default network: upper
quantiles of the training stars' own scores, each scored without itself.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import numpy as np
from scipy.linalg import eigh

from maury.errors import ModelFileError
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, Int64Array
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.model.output import has_spectrum
from maury.model.split import star_numbers
from maury.prediction.detectors import LEAST_STARS, Limit
from maury.prediction.evidence import nearest, same_star
from maury.spectra.preparation import Inputs, take
from maury.survey.labelled_sample import LabelledSample

__all__ = ["LIKENESS", "SpectrumLikeness", "with_likeness"]

LIKENESS = "likeness"
"""Attachment of a model: by what its training spectra are known."""
MOST_STARS = 1500
"""Training stars used at most, evenly chosen: so many bound the time, which goes with their
square."""
_N_COMPONENT, _NEIGHBOUR = 24, 10
"""Components, and rank of the neighbour, as of the coverage of the default network."""


@dataclass(frozen=True, eq=False)
class SpectrumLikeness:
    """What training spectra look like.

    Attributes
    ----------
    centre : (n_pixel,) float64
        Their mean.
    basis : (n_component, n_pixel) float64
        Principal components, of unit length.
    strength : (n_component,) float64
        Standard deviation of the training spectra along each.
    reference : (n_star, n_component) float32
        Training spectra, in units of `strength`.
    star : (n_star,) int64
        Number of the star of each, 0 where unknown: no star is its own neighbour.
    distance, rest : (2,) float64
        `maury.prediction.detectors.Limit` of the distance to the tenth neighbour, and of the
        chi-square per pixel beyond the components.
    """

    centre: Float64Array
    basis: Float64Array
    strength: Float64Array
    reference: Float32Array
    star: Int64Array
    distance: Float64Array
    rest: Float64Array

    @classmethod
    def fit(cls, inputs: Inputs, star: Int64Array) -> Self | None:
        """Learn from training spectra; None if there are fewer than a hundred.

        Parameters
        ----------
        inputs : Inputs
            Prepared.
        star : (n_star,) int64
            Number of the star of each (`maury.model.split.star_numbers`).
        """
        rows = np.flatnonzero(has_spectrum(inputs))
        if rows.size < LEAST_STARS:
            return None
        rows = rows[np.linspace(0, rows.size - 1, min(rows.size, MOST_STARS)).astype(int)]
        inputs, star = take(inputs, rows), star[rows]
        blank = cls._learn(inputs, star)
        if not blank.strength.size:
            return None
        # A number of its own for each star that has none, so that none is its own neighbour.
        alone = np.where(star == 0, -1 - np.arange(star.size), star)
        own = same_star(alone, alone)
        scores = nearest(blank.reference.astype(np.float64), blank.reference, _NEIGHBOUR, own=own)
        distance = Limit.fit(scores, inputs.snr)
        # Components fit the noise of the spectra that they come from: each half is scored by those
        # of the other.
        rest = np.empty(len(star))
        for half in (alone % 2 == 0, alone % 2 == 1):
            if half.any() and not half.all():
                other = cls._learn(take(inputs, ~half), star[~half])
                rest[half] = other._scores(take(inputs, half))[1]
            else:
                rest[half] = blank._scores(take(inputs, half))[1]
        beyond = Limit.fit(rest, inputs.snr)
        limits = {"distance": distance.to_array(), "rest": beyond.to_array()}
        return cls(**{f.name: getattr(blank, f.name) for f in fields(cls)} | limits)

    @classmethod
    def _learn(cls, inputs: Inputs, star: Int64Array) -> Self:
        flux = inputs.flux.astype(np.float64)
        centre = flux.mean(axis=0)
        flux -= centre
        # The smaller of both products: eight thousand pixels would take a minute.
        wide = flux.shape[1] > flux.shape[0]
        product = flux @ flux.T if wide else flux.T @ flux
        n = min(_N_COMPONENT, len(flux) - 1, flux.shape[1])
        value, axes = eigh(product, subset_by_index=(len(product) - n, len(product) - 1))
        chosen = value > 1e-9 * max(float(value[-1]), 1e-30)
        length = np.sqrt(value[chosen])
        basis = (flux.T @ axes[:, chosen] / length).T if wide else axes[:, chosen].T
        strength = length / np.sqrt(max(len(flux) - 1, 1))
        reference = (flux @ basis.T / strength).astype(np.float32)
        none = Limit.none().to_array()
        return cls(centre, np.ascontiguousarray(basis), strength, reference, star, none, none)

    @classmethod
    def load(cls, model: Model) -> Self | None:
        """Read from the model directory; None if the model has none.

        Raises
        ------
        ModelFileError
            If the attachment is damaged.
        """
        if LIKENESS not in model.attachments:
            return None
        arrays = model.arrays(LIKENESS)
        try:
            made = cls(**{f.name: arrays[f.name] for f in fields(cls)})
            made._check(model.n_pixel)
        except (KeyError, ValueError) as error:
            raise ModelFileError(f"{model.path}: its likeness is damaged: {error}") from error
        return made

    def _check(self, n_pixel: int) -> None:
        n, k = len(self.reference), self.strength.size
        shapes = {"centre": (n_pixel,), "basis": (k, n_pixel), "strength": (k,)}
        shapes |= {"reference": (n, k), "star": (n,), "distance": (2,), "rest": (2,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype.kind not in "fi" or np.isnan(array).any():
                raise ValueError(f"{name!r} must be numbers of shape {shape}")

    def to_arrays(self) -> dict[str, AnyArray]:
        """Plain arrays for the model directory."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _scores(self, inputs: Inputs) -> tuple[Float64Array, Float64Array]:
        """Coefficients (n_star, n_component) in units of their strength, and chi-square beyond."""
        apart = inputs.flux.astype(np.float64) - self.centre
        coefficients = apart @ self.basis.T
        apart -= coefficients @ self.basis
        known = np.maximum((inputs.ivar > 0).sum(axis=1), 1)
        chi2 = np.einsum("np,np,np->n", apart, apart, inputs.ivar.astype(np.float64)) / known
        return coefficients / self.strength, chi2

    def unlike(self, inputs: Inputs, star: Int64Array | None = None) -> BoolArray:
        """Return which stars (n_star,) have a spectrum unlike those of the training sample.

        Parameters
        ----------
        inputs : Inputs
            Prepared.
        star : (n_star,) int64, optional
            Numbers of the stars: no training star is compared with itself.
        """
        out = np.zeros(len(inputs), dtype=np.bool_)
        rows = np.flatnonzero(has_spectrum(inputs))
        if not rows.size:
            return out
        some = take(inputs, rows)
        coefficients, rest = self._scores(some)
        own = None if star is None else same_star(star[rows], self.star)
        apart = nearest(coefficients, self.reference, _NEIGHBOUR, own=own)
        far = Limit(*self.distance.tolist()).beyond(apart, some.snr)
        out[rows] = far | Limit(*self.rest.tolist()).beyond(rest, some.snr)
        return out


def with_likeness(model: Model, sample: LabelledSample) -> Model:
    """Return a trained model that knows its training spectra, for `Model.save` to write."""
    star_id = sample.survey.star_id
    rows = np.flatnonzero(model.split.contains("train", star_id))
    rows = rows[np.isin(rows, sample.rows)]
    found = SpectrumLikeness.fit(sample.prepared(rows), star_numbers(star_id[rows]))
    if found is None:
        return model
    about = {"flag": str(Flag.SPECTRUM_UNLIKE.name), "n_star": len(found.reference)}
    return model.with_arrays(LIKENESS, found.to_arrays(), metadata=about)
