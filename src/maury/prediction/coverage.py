"""Coverage: is a star like those that the model learnt from, and if not, why not.

`CoverageModel.fit` learns on training stars what is normal: neighbours among labels and among
features, how well spectra computed from the labels fit, and what the tests of
`maury.prediction.peculiar_spectra` give. Every threshold is a quantile of the training stars' own
scores, each star scored without itself, so that a known and small share of good stars is warned of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from operator import attrgetter
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import LengthMismatch, ModelFileError, TrainingError
from maury.io.arrays import (
    AnyArray,
    BoolArray,
    Float32Array,
    Float64Array,
    IndexArray,
    Int64Array,
    on_finite_rows,
)
from maury.labels.statistics import robust_scale
from maury.prediction import companion_test
from maury.prediction import peculiar_spectra as anomaly
from maury.prediction.causes import CAUSES, CauseModel
from maury.prediction.companion_test import CompanionTest
from maury.prediction.detectors import (
    DETECTORS,
    LEAST_SHIFT_KMS,
    LEAST_STARS,
    Thresholds,
    named,
)
from maury.prediction.evidence import (
    CoverageScores,
    Evidence,
    TwoViews,
    nearest,
    robust_whitening,
    same_star,
    whitening,
)
from maury.prediction.observable_space import ObservableSpace
from maury.prediction.peculiar_spectra import CALCIUM_AA, PASCHEN_AA, VelocityTest
from maury.simulation.companions import shifted

__all__ = ["CoverageModel", "CoverageScores", "Evidence", "TwoViews"]


MOST_STARS = 4096
"""Training stars used at most, evenly chosen: so many bound the size and the cost of a model."""
_VIEW_LABELS = ("teff", "logg", "m_h")
_NEIGHBOUR, _PRIOR_NEIGHBOUR = 10, 30
"""Rank of the neighbour that distances are measured to, so that a few odd training stars do not
make a place known; and that of the density of the prior, which asks for less noise."""
# Full weight would count the prior, which shaped both views, as if its density were exact.
_PRIOR_WEIGHT = 0.5
_FEATURE_DIMENSIONS = 24
"""Principal components in which spectra are compared: chosen, not measured."""
_CONTINUUM_DEGREE = 5
"""Of the Legendre polynomials of the residual: higher ones follow the wings of the Ca II lines."""
_CALCIUM_SIGMA_AA, _PASCHEN_SIGMA_AA = 0.65, 5.0
"""Widths of the filters: of a chromospheric core at R = 7500, and of a Stark-broadened line."""
_LARGEST_FLOOR = 0.1
"""Upper end of the search for the model error of a pixel, in units of the continuum."""
_HALF_CHI2_MEDIAN = 0.454936423119572
"""Median of chi-square with one degree of freedom."""
_FOLDS = 5
"""Of the training stars, by which the thresholds of causes are found; chosen."""
_BLOCK = 256
"""Stars whose templates are in memory together, so that they stay in the processor's cache."""
_SIGN_OF_SB2 = 5.0
"""Brings the root of `sb2`, .3 at its threshold, to the order of the other signs; chosen."""


@dataclass(frozen=True, eq=False)
class CoverageModel:
    """What is normal among the training stars, as plain arrays.

    Make one with `CoverageModel.fit`, or with `from_arrays` from what `to_arrays` gave.

    Attributes
    ----------
    wave_aa : (n_pixel,) float64
        Air wavelengths of the prepared spectra, angstrom.
    noise_correlation : (n_lag,) float64
        Correlation of the noise of pixels 1, 2, ... apart.
    bias, floor : (n_pixel,) float64
        Median residual, and standard deviation of the model error.
    label_columns : (3,) int64
        Columns of Teff, log g and [M/H], which the views are compared in; -1 for none.
    label_centre, label_scale : (n_label,) float64
    reference_labels : (n_reference, n_label) float32
        Scaled labels of training stars.
    feature_centre : (n_feature,) float64
    feature_basis : (n_feature, n_dimension) float64
        Whitening projection.
    reference_features : (n_reference, n_dimension) float32
    own_features : (1,) int64
        1 if features come from outside, 0 if they are the flux.
    continuum_centre, continuum_root : (6,), (6, 6) float64
        Of the Legendre coefficients; the root whitens them.
    filter_scale : (2, 2) float64
        Median and robust standard deviation of the filters for emission and Paschen lines.
    snr_slope, threshold : (n_detector,) float64
        Per detector: d ln(score) / d ln(S/N), and the threshold at S/N 50.
    teff_limit_kelvin : (1,) float64
        Highest Teff among the training stars.
    reference_star : (n_reference,) int64
        Number of the star of each reference, 0 where unknown: no star is its own neighbour.
    causes : CauseModel or None
        None in models of earlier versions, which have a filter for each cause.
    space : ObservableSpace or None
    companion : CompanionTest or None
        None without observables, or without examples to learn from.
    """

    wave_aa: Float64Array
    noise_correlation: Float64Array
    bias: Float64Array
    floor: Float64Array
    label_columns: Int64Array
    label_centre: Float64Array
    label_scale: Float64Array
    reference_labels: Float32Array
    feature_centre: Float64Array
    feature_basis: Float64Array
    reference_features: Float32Array
    own_features: Int64Array
    continuum_centre: Float64Array
    continuum_root: Float64Array
    filter_scale: Float64Array
    snr_slope: Float64Array = field(default_factory=lambda: np.zeros(len(DETECTORS)))
    threshold: Float64Array = field(default_factory=lambda: np.full(len(DETECTORS), np.inf))
    teff_limit_kelvin: Float64Array = field(default_factory=lambda: np.full(1, np.inf))
    reference_star: Int64Array = field(default_factory=lambda: np.zeros(0, np.int64))
    causes: CauseModel | None = None
    space: ObservableSpace | None = None
    companion: CompanionTest | None = None

    @classmethod
    def fit(
        cls,
        evidence: Evidence,
        *,
        wave_aa: ArrayLike,
        label_names: Sequence[str],
        noise_correlation: Sequence[float] = (0.44, 0.05),
        false_alarm: float = 0.0025,
        rotating: Evidence | None = None,
        double: Evidence | None = None,
    ) -> Self:
        """Learn from training stars.

        Parameters
        ----------
        evidence : Evidence
            Of the training stars, predicted like any other star. Rows without a spectrum or
            labels are left out.
        wave_aa : (n_pixel,) array_like
            Air wavelengths, increasing.
        label_names : sequence of str
            Columns of the labels; ``teff``, ``logg`` and ``m_h`` have a meaning here.
        noise_correlation : sequence of float
            As in `maury.spectra.preparation.Preparation`.
        false_alarm : float
            Share of training stars above the threshold, per detector. There are fifteen, and of
            seven causes only the first counts.
        rotating, double : Evidence, optional
            Training stars with broader lines, and with an unresolved companion, predicted like any
            other star: examples to learn from what two stars look like.

        Raises
        ------
        TrainingError
            If fewer than `LEAST_STARS` stars have a spectrum and labels.
        """
        usable = np.flatnonzero(evidence.complete())
        if usable.size < LEAST_STARS:
            raise TrainingError(
                f"coverage needs {LEAST_STARS} training stars with spectrum and labels, got "
                f"{usable.size}; label more stars"
            )
        if usable.size > MOST_STARS:
            # Evenly and not at random, so that the same survey gives the same model.
            usable = usable[np.linspace(0, usable.size - 1, MOST_STARS).astype(int)]
        known = evidence.rows(usable)
        wave = np.asarray(wave_aa, dtype=np.float64)
        blank = cls._learn(known, wave, label_names, noise_correlation)
        if rotating is not None and double is not None:
            blank = blank._with(companion=blank._companions(known, rotating, double))
        # Scored as a star among the others: with itself among its neighbours each would look nearer
        # than new stars do.
        scores = replace(blank._scored(known, left_out=True), **blank._unseen_causes(known))
        limits = Thresholds.fit(scores, false_alarm)
        limit = _largest(blank._teff(evidence.labels))
        return blank._with(
            snr_slope=limits.slope, threshold=limits.threshold, teff_limit_kelvin=limit
        )

    @classmethod
    def _learn(
        cls,
        known: Evidence,
        wave_aa: Float64Array,
        label_names: Sequence[str],
        noise_correlation: Sequence[float],
    ) -> Self:
        labels = np.asarray(known.labels, dtype=np.float64)
        centre, scale = robust_scale(labels)
        features = known.compared
        middle, basis = whitening(features, _FEATURE_DIMENSIONS)
        bias, floor = _model_error(known)
        columns = [list(label_names).index(n) if n in label_names else -1 for n in _VIEW_LABELS]
        draft = cls(
            wave_aa=wave_aa,
            noise_correlation=np.asarray(noise_correlation, dtype=np.float64),
            bias=bias,
            floor=floor,
            label_columns=np.array(columns, dtype=np.int64),
            label_centre=centre,
            label_scale=scale,
            reference_labels=((labels - centre) / scale).astype(np.float32),
            feature_centre=middle,
            feature_basis=basis,
            reference_features=((features - middle) @ basis).astype(np.float32),
            own_features=np.array([known.features is not None], dtype=np.int64),
            reference_star=known.stars,
            continuum_centre=np.zeros(_CONTINUUM_DEGREE + 1),
            continuum_root=np.eye(_CONTINUUM_DEGREE + 1),
            filter_scale=np.array([[0.0, 1.0], [0.0, 1.0]]),
        )
        residual, weight, _ = draft._residual(known)
        terms = anomaly.continuum_terms(residual, weight, degree=_CONTINUUM_DEGREE)
        middle_terms, root = robust_whitening(terms)
        filters = np.column_stack(draft._filters(residual, weight))
        scales = np.column_stack(robust_scale(filters))
        draft = draft._with(continuum_centre=middle_terms, continuum_root=root, filter_scale=scales)
        causes = draft._usual(known)
        space = None if known.observables is None else ObservableSpace.fit(known.observables)
        return draft._with(causes=causes, space=space)

    def _usual(self, known: Evidence) -> CauseModel:
        """Learn what is usual in residuals of some stars."""
        residual, weight, _ = self._residual(known)
        return CauseModel.fit(
            residual,
            weight,
            reconstruction=known.reconstruction,
            labels=self._compared(np.asarray(known.labels, dtype=np.float64)),
            wave_aa=self.wave_aa,
        )

    def _unseen_causes(self, known: Evidence) -> dict[str, Float64Array]:
        """Score each fold of the stars beside what is usual in the others."""
        # Modes fit the noise of the stars that they come from, in a small sample all too well.
        found = {name: np.empty(len(known)) for name in CAUSES}
        for fold in range(_FOLDS):
            mine = np.arange(len(known)) % _FOLDS == fold
            other = self._with(causes=self._usual(known.rows(~mine)))
            rows = known.rows(mine)
            residual, weight, _ = self._residual(rows)
            labels = np.asarray(rows.labels, dtype=np.float64)
            for name, value in other._causes(rows, residual, weight, labels).items():
                found[name][mine] = value
        return found

    def _compared(self, labels: Float64Array) -> Float64Array:
        """Return Teff, log g and [M/H], those that there are."""
        return labels[:, self.label_columns[self.label_columns >= 0]]

    def _with(self, **changes: Any) -> Self:
        return replace(self, **changes)

    def to_arrays(self) -> dict[str, AnyArray]:
        """Return all that was learnt, as numeric arrays by name."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in _PARTS}
        for name in _PARTS:
            part = getattr(self, name)
            if part is not None:
                own |= {f"{name}.{f.name}": getattr(part, f.name) for f in fields(part)}
        return own

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, AnyArray]) -> Self:
        """Restore a model.

        Raises
        ------
        ModelFileError
            If an array is missing, unknown, of another shape, or not finite.
        """
        if "reference_star" not in arrays and "reference_labels" in arrays:
            # Of the first models, which did not know their stars.
            unknown = np.zeros(len(arrays["reference_labels"]), dtype=np.int64)
            arrays = {**arrays, "reference_star": unknown}
        for name in ("threshold", "snr_slope"):
            # Detectors were added at the end; what earlier models lack is never over it.
            blank = np.full(len(DETECTORS), np.inf if name == "threshold" else 0.0)
            if name in arrays and "causes.modes" not in arrays:
                old = np.asarray(arrays[name])[: blank.size]
                arrays = {**arrays, name: np.concatenate([old, blank[old.size :]])}
        parts = {name for name in _PARTS if any(key.startswith(f"{name}.") for key in arrays)}
        names = {item.name for item in fields(cls)} - set(_PARTS)
        names |= {f"{name}.{f.name}" for name in parts for f in fields(_PARTS[name])}
        if names != set(arrays):
            wrong = ", ".join(sorted(names.symmetric_difference(arrays)))
            raise ModelFileError(f"coverage arrays missing or unknown: {wrong}")
        given = {name: np.asarray(value) for name, value in arrays.items()}
        whole: dict[str, Any] = {k: v for k, v in given.items() if "." not in k}
        for name in parts:
            own = {f.name: given[f"{name}.{f.name}"] for f in fields(_PARTS[name])}
            whole[name] = _PARTS[name](**own)
        made = cls(**whole)
        problem = made._problem()
        if problem:
            raise ModelFileError(f"the coverage arrays are inconsistent: {problem}")
        return made

    def _problem(self) -> str | None:
        n_pixel, n_label = self.wave_aa.size, self.label_centre.size
        n_feature, n_dimension = self.feature_centre.size, self.reference_features.shape[-1]
        n_term, n_detector = _CONTINUUM_DEGREE + 1, len(DETECTORS)
        shapes: dict[str, tuple[int, ...]] = {
            "wave_aa": (n_pixel,),
            "bias": (n_pixel,),
            "floor": (n_pixel,),
            "noise_correlation": (self.noise_correlation.size,),
            "label_columns": (len(_VIEW_LABELS),),
            "label_centre": (n_label,),
            "label_scale": (n_label,),
            "reference_labels": (len(self.reference_features), n_label),
            "feature_centre": (n_feature,),
            "feature_basis": (n_feature, n_dimension),
            "reference_features": (len(self.reference_features), n_dimension),
            "reference_star": (len(self.reference_features),),
            "own_features": (1,),
            "continuum_centre": (n_term,),
            "continuum_root": (n_term, n_term),
            "filter_scale": (2, 2),
            "snr_slope": (n_detector,),
            "threshold": (n_detector,),
            "teff_limit_kelvin": (1,),
        }
        shapes |= self._part_shapes()
        for name, shape in shapes.items():
            array = attrgetter(name)(self)
            if array.shape != shape or array.dtype.kind not in "fi":
                return f"{name} is {array.dtype} {array.shape}, expected numbers {shape}"
            if np.isnan(array).any():
                return f"{name} has NaN"
        if not np.all((self.label_columns >= -1) & (self.label_columns < n_label)):
            return f"label_columns must be -1 to {n_label - 1}"
        return None

    def _part_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        if self.causes is not None:
            n_label = int((self.label_columns >= 0).sum())
            n_term = 1 + n_label + n_label * (n_label + 1) // 2
            shapes |= {
                "causes.wave_aa": self.wave_aa.shape,
                "causes.label_centre": (n_label,),
                "causes.label_scale": (n_label,),
                "causes.response": (n_term, self.wave_aa.size),
                "causes.modes": (len(self.causes.modes), self.wave_aa.size),
            }
        if self.space is not None:
            shapes |= self.space.shapes("space")
        if self.companion is not None:
            n_term = len(self.companion.coefficients)
            names = ("centre", "scale", "coefficients")
            shapes |= {f"companion.{name}": (n_term,) for name in names}
        return shapes

    def seen_as(self, change: Callable[[Float64Array], Float32Array]) -> Self:
        """Return it with the spectra of its references as another survey sees them.

        Parameters
        ----------
        change : callable
            From labels (n_reference, n_label) to what their spectra change by, (n_reference,
            n_pixel).
        """
        labels = self.reference_labels * self.label_scale + self.label_centre
        moved = change(labels) @ self.feature_basis
        return self._with(reference_features=(self.reference_features + moved).astype(np.float32))

    def score(self, evidence: Evidence) -> CoverageScores:
        """Score stars; rows are independent of one another.

        Raises
        ------
        LengthMismatch
            If pixels, labels or features are not as many as the model learnt from, or if it
            needs features and there are none.
        """
        self._check(evidence)
        return self._scored(evidence, left_out=False)

    def _check(self, evidence: Evidence) -> None:
        wanted = {
            "pixels": (np.shape(evidence.flux)[1], self.wave_aa.size),
            "labels": (np.shape(evidence.labels)[1], self.label_centre.size),
            "features": (evidence.compared.shape[1], self.feature_centre.size),
            "sets of features": (int(evidence.features is not None), int(self.own_features[0])),
        }
        for what, (got, expected) in wanted.items():
            if got != expected:
                raise LengthMismatch(f"coverage was learnt with {expected} {what}, got {got}")

    def _scored(self, evidence: Evidence, *, left_out: bool) -> CoverageScores:
        labels = np.asarray(evidence.labels, dtype=np.float64)
        scaled = (labels - self.label_centre) / self.label_scale
        projected = on_finite_rows(
            lambda features: (features - self.feature_centre) @ self.feature_basis,
            evidence.compared,
        )
        residual, weight, usable = self._residual(evidence)
        deviation = residual * np.sqrt(weight)
        # Rows without a usable pixel have a residual of 0 throughout, which would look like a
        # perfect fit.
        some = usable.any(axis=1)
        shift, gain = self._velocities(evidence, usable)
        causes = self._causes(evidence, residual, weight, labels)
        total = np.einsum("np,np->n", deviation, deviation).astype(np.float64)
        signs = self._signs(evidence, causes["rotation"], gain)
        own = self._own(evidence, left_out=left_out)
        worst = self.wave_aa[anomaly.worst_pixel(deviation, usable)]
        return CoverageScores(
            label_distance=nearest(scaled, self.reference_labels, _NEIGHBOUR, own=own),
            feature_distance=np.where(
                some,
                nearest(projected, self.reference_features, _NEIGHBOUR, own=own),
                np.nan,
            ),
            chi2_reduced=anomaly.chi_square(
                deviation, usable, noise_correlation=self.noise_correlation.tolist()
            ),
            worst_wavelength_aa=np.where(some, worst, np.nan),
            rv_shift_kms=np.where(some, shift, np.nan),
            sb2=np.where(some, gain, np.nan),
            second_lines=total * gain / (1.0 + gain),
            shifted_lines=self._shifted(evidence, weight, shift, total),
            broadened=self._broadened(evidence, usable, gain),
            companion=self._companion_score(evidence, signs),
            observables=self._off(evidence)[0],
            **{name: np.where(some, value, np.nan) for name, value in causes.items()},
            disagreement=self._disagreement(evidence.views, len(labels), own),
            snr=np.asarray(evidence.snr, dtype=np.float64),
            teff=self._teff(labels),
        )

    def _causes(
        self, evidence: Evidence, residual: Float32Array, weight: Float32Array, labels: Float64Array
    ) -> dict[str, Float64Array]:
        """Score of each cause (n_star,); of models of earlier versions, of three filters alone."""
        if self.causes is None:
            return self._filtered(residual, weight)
        model = _template(evidence)
        known = self._compared(labels)
        known = np.where(np.isfinite(known), known, self.causes.label_centre)
        blocks = [
            self.causes.gains(residual[rows], weight[rows], model=model[rows], labels=known[rows])
            for rows in _blocks(len(labels))
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in CAUSES}

    def _filtered(self, residual: Float32Array, weight: Float32Array) -> dict[str, Float64Array]:
        terms = anomaly.continuum_terms(residual, weight, degree=_CONTINUUM_DEGREE)
        whitened = on_finite_rows(
            lambda known: (known - self.continuum_centre) @ self.continuum_root, terms
        )
        (e_mid, e_scale), (p_mid, p_scale) = self.filter_scale
        emission, paschen = self._filters(residual, weight)
        found = {
            "emission": (emission - e_mid) / e_scale,
            "paschen": (paschen - p_mid) / p_scale,
            "continuum": np.square(whitened).sum(axis=1),
        }
        nothing = np.full(len(residual), np.nan)
        return {name: found.get(name, nothing) for name in CAUSES}

    def _off(self, evidence: Evidence) -> tuple[Float64Array, Float64Array]:
        if self.space is None or evidence.observables is None:
            return np.full(len(evidence), np.nan), np.zeros((len(evidence), 0))
        return self.space.off(evidence.observables)

    def _signs(
        self, evidence: Evidence, rotation: Float64Array, sb2: Float64Array
    ) -> Float64Array | None:
        """Return signs of two stars (n_star, n_sign): views that differ, colours, line widths."""
        views, columns = evidence.views, self.label_columns
        if views is None or (columns < 0).any() or self.space is None:
            return None
        variance = [
            np.einsum("nii->ni", np.asarray(x, dtype=np.float64))[:, columns]
            for x in (views.spectrum_covariance, views.photometry_covariance)
        ]
        apart = np.asarray(views.photometry, np.float64) - np.asarray(views.spectrum, np.float64)
        # A tenth of the sample's scatter, so that views that claim to be exact do not shout.
        least = np.square(0.1 * self.label_scale[columns])
        apart = apart[:, columns] / np.sqrt(variance[0] + variance[1] + least)
        widths = [np.sqrt(np.maximum(rotation, 0.0)), np.sqrt(np.maximum(sb2, 0.0)) * _SIGN_OF_SB2]
        return np.column_stack([apart, self._off(evidence)[1], *widths])

    def _companion_terms(self, evidence: Evidence, signs: Float64Array) -> Float64Array:
        views, columns = evidence.views, self.label_columns
        assert views is not None, "there are no signs without views"
        own = (np.asarray(views.spectrum, np.float64) - self.label_centre) / self.label_scale
        return companion_test.terms(own[:, columns], signs)

    def _companion_score(self, evidence: Evidence, signs: Float64Array | None) -> Float64Array:
        if self.companion is None or signs is None:
            return np.full(len(evidence), np.nan)
        score = self.companion.score(self._companion_terms(evidence, signs))
        # Learnt of whole stars: without the parallax, say, nobody knows of too much light.
        whole = np.isfinite(np.asarray(evidence.observables)).all(axis=1)
        return np.where(whole, score, np.nan)

    def _companions(
        self, single: Evidence, rotating: Evidence, double: Evidence
    ) -> CompanionTest | None:
        terms = []
        for evidence in (single, rotating, double):
            residual, weight, usable = self._residual(evidence)
            labels = np.asarray(evidence.labels, dtype=np.float64)
            rotation = self._causes(evidence, residual, weight, labels)["rotation"]
            signs = self._signs(evidence, rotation, self._velocities(evidence, usable)[1])
            if signs is None:
                return None
            terms.append(self._companion_terms(evidence, signs))
        return CompanionTest.fit(np.vstack(terms[:2]), terms[2])

    def _shifted(
        self, evidence: Evidence, weight: Float32Array, shift: Float64Array, total: Float64Array
    ) -> Float64Array:
        """Drop in chi-square `total` by the shift of those that are shifted; of others it is 0."""
        found = np.zeros(len(shift))
        rows = np.flatnonzero(np.abs(shift) > LEAST_SHIFT_KMS)
        if rows.size:
            model = shifted(_template(evidence)[rows], shift[rows], self.wave_aa)
            flux = np.asarray(evidence.flux, dtype=np.float32)[rows]
            left = np.where(weight[rows] > 0, flux - self.bias.astype(np.float32) - model, 0.0)
            found[rows] = total[rows] - np.einsum("np,np->n", weight[rows], np.square(left))
        return found

    def _broadened(self, evidence: Evidence, usable: BoolArray, gain: Float64Array) -> Float64Array:
        """Gain by rotation of the stars whose gain by second lines is high; of others it is 0."""
        found = np.zeros(len(gain))
        limit = self._thresholds.limits(np.asarray(evidence.snr, dtype=np.float64))["sb2"]
        rows = np.flatnonzero(gain > limit)
        if rows.size:
            chosen, template = evidence.rows(rows), _template(evidence)[rows]
            flux = np.asarray(chosen.flux, dtype=np.float32) - self.bias.astype(np.float32)
            flux = np.where(usable[rows], flux, template)
            found[rows] = self._velocity_test.broadened(flux, template)
        return found

    def _own(self, evidence: Evidence, *, left_out: bool) -> tuple[IndexArray, IndexArray]:
        """Pairs of stars and references that are one star; left out, row k is reference k."""
        stars, reference = evidence.stars, self.reference_star
        if left_out:
            # A number of its own for each star that has none, in both places.
            alone = -1 - np.arange(len(stars))
            stars = reference = np.where(stars == 0, alone, stars)
        return same_star(stars, reference)

    def _teff(self, labels: ArrayLike) -> Float64Array:
        values, column = np.asarray(labels, dtype=np.float64), self.label_columns[0]
        return values[:, column] if column >= 0 else np.full(len(values), np.nan)

    def _residual(self, evidence: Evidence) -> tuple[Float32Array, Float32Array, BoolArray]:
        """Residual less bias, its inverse variance with model error, and usable pixels."""
        flux, ivar, model = (
            np.asarray(x, dtype=np.float32)
            for x in (evidence.flux, evidence.ivar, evidence.reconstruction)
        )
        residual = flux - model
        residual -= self.bias.astype(np.float32)
        usable = (ivar > 0) & np.isfinite(ivar) & np.isfinite(residual)
        with np.errstate(divide="ignore", over="ignore"):
            weight = np.reciprocal(ivar)
            weight += np.square(self.floor).astype(np.float32)
            np.reciprocal(weight, out=weight)
        if not usable.all():
            residual[~usable] = 0.0
            weight[~usable] = 0.0
        return residual, weight, usable

    @cached_property
    def _profiles(self) -> tuple[Float64Array, Float64Array]:
        return (
            anomaly.line_profile(self.wave_aa, CALCIUM_AA, sigma_aa=_CALCIUM_SIGMA_AA),
            -anomaly.line_profile(self.wave_aa, PASCHEN_AA, sigma_aa=_PASCHEN_SIGMA_AA),
        )

    def _filters(
        self, residual: Float32Array, weight: Float32Array
    ) -> tuple[Float64Array, Float64Array]:
        calcium, paschen = self._profiles
        return (
            anomaly.matched_filter(residual, weight, calcium),
            anomaly.matched_filter(residual, weight, paschen),
        )

    @cached_property
    def _velocity_test(self) -> VelocityTest:
        return VelocityTest(self.wave_aa)

    def _velocities(
        self, evidence: Evidence, usable: BoolArray
    ) -> tuple[Float64Array, Float64Array]:
        template = _template(evidence)
        flux = np.asarray(evidence.flux, dtype=np.float32) - self.bias.astype(np.float32)
        shift, gain = self._velocity_test.measure(np.where(usable, flux, template), template)
        return shift, gain

    def _disagreement(
        self, views: TwoViews | None, n_star: int, own: tuple[IndexArray, IndexArray]
    ) -> Float64Array:
        """Odds (n_star,) against one star behind both views.

        The evidence of one star is the integral of p1 p2 / prior over the labels, with p1 and p2
        normal: about N(d; 0, C1 + C2) over the prior where the two meet. The prior's density is
        that of the training stars, from the distance to the thirtieth.
        """
        columns = self.label_columns[self.label_columns >= 0]
        if views is None or columns.size == 0:
            return np.full(n_star, np.nan)
        scale = self.label_scale[columns]
        spectrum, photometry = (
            (np.asarray(x, dtype=np.float64) - self.label_centre)[:, columns] / scale
            for x in (views.spectrum, views.photometry)
        )
        narrow, wide = (
            np.asarray(x, dtype=np.float64)[:, columns[:, None], columns] / np.outer(scale, scale)
            for x in (views.spectrum_covariance, views.photometry_covariance)
        )
        # The term of 1e-9 keeps a covariance of rank one, as of labels that move together,
        # solvable.
        difference, total = spectrum - photometry, narrow + wide + 1e-9 * np.eye(columns.size)
        known = np.isfinite(difference).all(axis=1) & np.isfinite(total).all(axis=(1, 2))
        odds = np.full(n_star, np.nan)
        difference, total = difference[known], total[known]
        pull = np.linalg.solve(total, difference[..., None])
        # Where the product of both normal densities peaks: their mean, weighted by inverse
        # covariances.
        between = spectrum[known] - (narrow[known] @ pull)[..., 0]
        place = np.cumsum(known) - 1
        chosen = np.take(known, own[0])
        pairs = (place[own[0][chosen]], own[1][chosen])
        reach = nearest(between, self.reference_labels[:, columns], _PRIOR_NEIGHBOUR, own=pairs)
        # The density of neighbours goes with 1 / reach^k, so that -2 ln(prior) is 2 k ln(reach) but
        # for a constant.
        prior = 2.0 * _PRIOR_WEIGHT * columns.size * np.log(np.maximum(reach, 1e-6))
        distance = (difference * pull[..., 0]).sum(axis=1)
        odds[known] = distance + np.linalg.slogdet(total)[1] - prior
        return odds

    def flags(self, scores: CoverageScores) -> Int64Array:
        """Return the flags (n_star,) that the scores set, as of `maury.prediction.detectors`."""
        hottest, by_filters = float(self.teff_limit_kelvin[0]), self.causes is None
        return named(scores, self._thresholds, hottest_kelvin=hottest, by_filters=by_filters)

    def excess(self, scores: CoverageScores) -> dict[str, Float64Array]:
        """Scores over their thresholds, by detector, as of `Thresholds.excess`."""
        return self._thresholds.excess(scores)

    @property
    def _thresholds(self) -> Thresholds:
        return Thresholds(self.snr_slope, self.threshold)


_PARTS: dict[str, type[CauseModel | ObservableSpace | CompanionTest]] = {
    "causes": CauseModel,
    "space": ObservableSpace,
    "companion": CompanionTest,
}
"""What a model may have besides its own arrays, and earlier versions have not."""


def _blocks(n_star: int) -> list[slice]:
    return [slice(start, start + _BLOCK) for start in range(0, max(n_star, 1), _BLOCK)]


def _template(evidence: Evidence) -> Float32Array:
    """Reconstruction (n_star, n_pixel), 1 where it is unknown."""
    template = np.asarray(evidence.reconstruction, dtype=np.float32)
    return np.where(np.isfinite(template), template, np.float32(1.0))


def _largest(values: Float64Array) -> Float64Array:
    """Largest of the finite values (1,); infinite if there is none."""
    finite = values[np.isfinite(values)]
    return np.array([finite.max() if finite.size else np.inf])


def _model_error(known: Evidence) -> tuple[Float64Array, Float64Array]:
    """Median residual and standard deviation of the model error (n_pixel,).

    The latter is what brings the median squared deviation to that of a normal distribution.
    """
    residual, variance, usable = known.residual()
    residual = np.where(usable, residual, np.nan)
    empty = ~usable.any(axis=0)
    residual[:, empty] = 0.0
    bias = np.nanmedian(residual, axis=0)
    # Medians, as a maximum of the likelihood would take the few peculiar stars for errors of
    # theory.
    squared = np.square(residual - bias)
    low, high = np.zeros_like(bias), np.full_like(bias, _LARGEST_FLOOR)
    # 14 halvings of 0.1 leave 6e-6, far below the noise of any pixel.
    for _ in range(14):
        middle = 0.5 * (low + high)
        short = np.nanmedian(squared / (variance + middle**2), axis=0) > _HALF_CHI2_MEDIAN
        low, high = np.where(short, middle, low), np.where(short, high, middle)
    return bias, np.where(empty, 0.0, 0.5 * (low + high))
