"""MATISSE: labels as projections of the spectrum on vectors learnt around its own labels.

Recio-Blanco, Bijaoui & de Laverny (2006, MNRAS 370, 141). A label is theta = sum_p B_p O_p, with
B = sum_i alpha_i S_i of training spectra S_i. alpha solves S S^T alpha = theta by Landweber's
iteration (1951, Am. J. Math. 73, 615), stopped early so that B does not amplify the noise of its
class of S/N; or by a ridge. At low S/N a tree of references may recognise spectra instead
(`maury.methods.degas`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field
from scipy.linalg import eigh

from maury.errors import check_known
from maury.io.arrays import AnyArray, BoolArray, Float32Array, Float64Array, IndexArray
from maury.labels.flags import FLAG_DTYPE, Flag, set_where
from maury.labels.statistics import MAD_TO_SIGMA
from maury.methods.degas import Degas
from maury.methods.fitting.completion import (
    Completed,
    SpectrumStatistics,
    gaps,
    guessed_variance,
)
from maury.methods.fitting.noise import weighted_variance
from maury.methods.fitting.stars import complete_stars, nodes_of
from maury.methods.fitting.survey_theory import SurveyTheory, TheoryKind, filled_stars
from maury.methods.protocols import (
    MOST_STARS,
    NO_EXTERNAL,
    External,
    FitResult,
    Method,
    MethodSettings,
    Sample,
)
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs, take

__all__ = ["Matisse", "MatisseSettings"]


_BLOCK = 128
"""Stars whose coefficients lie in memory together, 70 kB each for nine labels."""
# With fewer stars leaving one out says little of a ridge.
_LEAST_STARS = 30
# Chosen: what has not settled by then goes to and fro between two nodes.
_ROUNDS = 10
_ITERATIONS = tuple(2**k for k in range(25))
"""Numbers of Landweber's iterations that are tried: eigenvalues of spectra span some ten powers of
ten, and the smallest that matters takes as many iterations as the largest is larger."""
_PATIENCE = 4
"""Numbers in turn that are no better for any label, after which no further one is tried."""
_DRAWS = 3000
"""Noise-free training spectra, where they are of theory; chosen: as many as a survey's own."""
_NEAR = 0.35
"""Share of the difference of two stars by which such spectra lie about stars; as of
`maury.methods.fitting.trained_payne`."""
_THEORY_VELOCITY_KMS = 1.3
"""Scatter of the velocity of such spectra: that left in RAVE's."""
_RIDGES = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridges that are tried, in units of the noise variance of the training spectra."""
# Noise of a pixel that is good in no training spectrum: 1e-4 of the continuum.
_LEAST_VARIANCE = 1e-8


Solver = Literal["landweber", "ridge"]
_MOST_CLASSES = 100
"""Of S/N: vectors are kept for each."""


class MatisseSettings(MethodSettings):
    """Settings of MATISSE.

    Attributes
    ----------
    nodes : int
        Places among the training labels that have vectors of their own.
    neighbours : int
        Training stars nearest to a node that make its vectors.
    snr_classes : tuple of float
        S/N for which vectors are made; a spectrum takes those of the nearest.
    solver : {"landweber", "ridge"}
        How the vectors are kept from amplifying noise.
    spectra : {"observed", "theory"}
        Training spectra: the labelled ones of the survey, or noise-free ones of its theory
        (`maury.methods.fitting.survey_theory`), as in the paper.
    theory : {"auto", "emulator", "learnt"}
    synthetic : str
        Of that theory.
    degas_below : float
        S/N below which spectra are recognised by a tree instead; 0 for none.
    """

    nodes: int = Field(default=24, ge=1, le=1000)
    neighbours: int = Field(default=500, ge=_LEAST_STARS, le=MOST_STARS)
    snr_classes: tuple[float, ...] = Field(
        default=(20.0, 40.0, 80.0), min_length=1, max_length=_MOST_CLASSES
    )
    solver: Solver = "landweber"
    spectra: Literal["observed", "theory"] = "observed"
    theory: TheoryKind = "auto"
    synthetic: str = ""
    degas_below: float = Field(default=0.0, ge=0.0, le=1e6)


@dataclass(frozen=True, eq=False)
class Matisse(Method[MatisseSettings]):
    """MATISSE, trained; the first of the vectors are the global ones, the others those of nodes.

    Attributes
    ----------
    vectors : (1 + n_node, n_class, n_pixel, n_label) float32
        B, in the unit of each label.
    offset : (1 + n_node, n_class, n_label) float64
        Label of a spectrum on which all B give 0.
    floor : (1 + n_node, n_class, n_label) float64
        Scatter of left-out training stars beyond noise.
    nodes : (n_node, n_label) float64
    scale : (n_label,) float64
        Of distances to nodes; infinite for labels that do not count.
    snr_classes : (n_class,) float64
    noise_correlation : (n_lag,) float64
    spectra : SpectrumStatistics or None
        Of training spectra, for masked pixels; None in models that were trained before it was.
    degas : Degas or None
        Recognises spectra of low S/N; None where none are.
    degas_sigma : (n_class, n_label) float64 or None
        Scatter of the references that it recognises with the noise of each class.
    tells_convergence : bool
        Whether spectra that settle at no node are flagged; not in models of earlier versions.
    """

    # 2: masked pixels are missing, no residuals known to be zero.
    revision: ClassVar[int] = 2
    name: ClassVar[str] = "matisse"
    paper: ClassVar[str] = "Recio-Blanco et al. (2006, MNRAS 370, 141)"
    bibtex_key: ClassVar[str] = "2006MNRAS.370..141R"
    settings_class: ClassVar[type[MethodSettings]] = MatisseSettings

    vectors: Float32Array
    offset: Float64Array
    floor: Float64Array
    nodes: Float64Array
    scale: Float64Array
    snr_classes: Float64Array
    noise_correlation: Float64Array
    spectra: SpectrumStatistics | None = None
    degas: Degas | None = None
    degas_sigma: Float64Array | None = None
    tells_convergence: bool = True

    def __post_init__(self) -> None:
        shape, n_label = self.vectors.shape, len(self.label_names)
        if shape[-1] != n_label or shape[0] != 1 + len(self.nodes):
            raise ValueError(f"the vectors are {shape} for {n_label} labels")

    @classmethod
    def train(
        cls, training: Sample, validation: Sample, *, settings: MatisseSettings, seed: int
    ) -> Self:
        """Learn the vectors from stars of which all labels are known.

        Raises
        ------
        UnknownName
            If a label is not known.
        TrainingError
            If there are fewer than thirty such stars.
        """
        stars = complete_stars(filled_stars(training), settings.labels, least=_LEAST_STARS)
        if settings.spectra == "theory":
            stars = _of_theory(training, settings, seed)
        names, truth = stars.label_names, stars.truth
        place = nodes_of(truth, names, settings.nodes, seed=seed)
        classes = np.array(sorted(settings.snr_classes), dtype=np.float64)
        correlation = np.array(training.noise_correlation, dtype=np.float64)
        count = min(settings.neighbours, len(truth))
        groups = [np.arange(len(truth))]
        groups += [np.argsort(place.distance(truth, node))[:count] for node in place.centres]
        flux = stars.inputs.flux.astype(np.float64)
        ivar = stars.inputs.ivar.astype(np.float64)
        how = (classes, correlation, settings.solver)
        parts = [_project(flux[rows], ivar[rows], truth[rows], *how) for rows in groups]
        degas, sigma = _recogniser(stars, classes, seed) if settings.degas_below else (None, None)
        return cls(
            settings=settings,
            label_names=names,
            vectors=np.stack([part.vectors for part in parts]).astype(np.float32),
            offset=np.stack([part.offset for part in parts]),
            floor=np.stack([part.floor for part in parts]),
            nodes=place.centres,
            scale=place.scale,
            snr_classes=classes,
            noise_correlation=correlation,
            spectra=SpectrumStatistics.learn(
                stars.inputs.flux,
                stars.inputs.ivar,
                noise_correlation=tuple(training.noise_correlation),
            ),
            degas=degas,
            degas_sigma=sigma,
        )

    def regress(
        self, flux: Float32Array, snr: Float64Array
    ) -> tuple[Float64Array, IndexArray, IndexArray, BoolArray]:
        """Project spectra: globally, then at the nearest node until it stays the same.

        Parameters
        ----------
        flux : (n_star, n_pixel) float32
            Masked pixels hold what they probably are.
        snr : (n_star,) float64
            NaN where unknown: the middle class.

        Returns
        -------
        labels : (n_star, n_label) float64
        node, kind : (n_star,) int
            Which of `vectors` gave them.
        settled : (n_star,) bool
            Whether the node stayed the same.
        """
        logs = np.log(self.snr_classes)
        known = np.where(snr > 0, snr, self.snr_classes[len(logs) // 2])
        kind = np.argmin(np.abs(np.log(known)[:, None] - logs), axis=1)
        node = np.zeros(len(flux), dtype=np.intp)
        labels = self._labels(flux, node, kind)
        moving = np.arange(len(flux))
        for _ in range(_ROUNDS):
            near = 1 + self._nearest(labels[moving])
            changed = near != node[moving]
            moving, near = moving[changed], near[changed]
            if moving.size == 0:
                break
            node[moving] = near
            labels[moving] = self._labels(flux[moving], near, kind[moving])
        settled = np.ones(len(flux), dtype=np.bool_)
        settled[moving] = False
        return labels, node, kind, settled

    def _nearest(self, labels: Float64Array) -> IndexArray:
        scaled, centre = labels / self.scale, self.nodes / self.scale
        square = (centre**2).sum(axis=1) - 2.0 * scaled @ centre.T
        return np.asarray(np.argmin(square, axis=1))

    def _labels(self, flux: Float32Array, node: IndexArray, kind: IndexArray) -> Float64Array:
        out = np.empty((len(flux), len(self.label_names)))
        # Stars with the same vectors share one matrix product.
        for n, k, rows in _groups(node, kind):
            out[rows] = flux[rows] @ self.vectors[n, k] + self.offset[n, k]
        return out

    def apply(self, inputs: Inputs, *, external: Mapping[str, External] = NO_EXTERNAL) -> FitResult:
        """Project spectra; see `maury.methods.protocols.Method.apply`."""
        flux = inputs.flux.copy()
        gap = np.flatnonzero(gaps(inputs.ivar))
        if self.spectra is not None:
            found = self.spectra.complete(flux[gap], inputs.ivar[gap])
            flux[gap] = found.flux
        labels, node, kind, settled = self.regress(flux, inputs.snr)
        good = inputs.ivar > 0
        sigma = np.where(good, 1.0 / np.sqrt(np.where(good, inputs.ivar, 1.0)), 0.0)
        variance = np.empty_like(labels)
        lags = noise_seen(tuple(self.noise_correlation.tolist()), inputs.noise_correlation)
        for n, k, rows in _groups(node, kind):
            noise = weighted_variance(self.vectors[n, k], sigma[rows], correlation=lags)
            variance[rows] = noise + self.floor[n, k] ** 2
        if self.spectra is None:
            for n, k, rows in _groups(node[gap], kind[gap]):
                bad = ~good[gap[rows]]
                variance[gap[rows]] += guessed_variance(bad, self.vectors[n, k])
        else:
            groups = _groups(node[gap], kind[gap])
            variance[gap] = self._variance(found, sigma[gap], groups, lags)
        blank = ~good.any(axis=1)
        if self.degas is not None and self.degas_sigma is not None:
            noisy = np.flatnonzero(inputs.snr < self.settings.degas_below)
            labels[noisy] = self.degas.recognise(flux[noisy], inputs.ivar[noisy])
            variance[noisy] = self.degas_sigma[kind[noisy]] ** 2
            settled[noisy] = True
        labels[blank] = variance[blank] = np.nan
        flags = np.zeros(len(labels), FLAG_DTYPE)
        if self.tells_convergence:
            flags = set_where(flags, Flag.NOT_CONVERGED, ~settled & ~blank)
        return FitResult.without_fit(self.label_names, labels, sigma=np.sqrt(variance), flags=flags)

    @classmethod
    def not_stored(
        cls, arrays: Mapping[str, AnyArray], about: Mapping[str, Any], settings: MatisseSettings
    ) -> dict[str, Any]:
        """Return what earlier versions did not store; see `Method`."""
        del arrays, settings
        return {"tells_convergence": bool(about.get("tells_convergence", False))}

    def _variance(
        self,
        found: Completed,
        sigma: Float64Array,
        groups: list[tuple[int, int, IndexArray]],
        lags: tuple[float, ...],
    ) -> Float64Array:
        """Variance (n_star, n_label) of labels of completed spectra."""
        assert self.spectra is not None, "spectra were completed"
        out = np.empty((len(sigma), len(self.label_names)))
        for n, k, rows in groups:
            for start in range(0, rows.size, _BLOCK):
                some = rows[start : start + _BLOCK]
                seen = self.spectra.effective(found.rows(some), self.vectors[n, k])
                noise = weighted_variance(seen.coefficients, sigma[some], correlation=lags)
                out[some] = noise + seen.variance + self.floor[n, k] ** 2
        return out


def _of_theory(training: Sample, settings: MatisseSettings, seed: int) -> Sample:
    """Noise-free spectra about the training stars, as a sample."""
    theory = SurveyTheory.lay(
        training, wanted=settings.theory, synthetic=settings.synthetic, seed=seed
    )
    rng, truth = np.random.default_rng(seed), theory.truth
    one, two, three = truth[rng.integers(0, len(truth), (3, _DRAWS))]
    labels = np.clip(one + _NEAR * (two - three), *theory.bounds.T)
    whole = theory.drawn(labels, _THEORY_VELOCITY_KMS, rng)
    starts = range(0, _DRAWS, _BLOCK)
    blocks = [theory.model.evaluate(whole[k : k + _BLOCK], jacobian=False).flux for k in starts]
    wanted = settings.labels or tuple(n for n in theory.names if n in training.label_names)
    definitions = {label.name: label for label in training.labels}
    column = [theory.names.index(check_known("label", name, theory.names)) for name in wanted]
    flux = np.concatenate(blocks)
    rows = np.zeros(_DRAWS, dtype=np.int64)
    inputs = replace(
        take(training.inputs, rows), flux=flux, ivar=np.full_like(flux, 1.0 / _LEAST_VARIANCE)
    )
    return replace(
        training.rows(rows),
        labels=tuple(definitions[name] for name in wanted),
        truth=labels[:, column],
        truth_error=np.full((_DRAWS, len(column)), np.nan),
        inputs=inputs,
    )


def _recogniser(stars: Sample, classes: Float64Array, seed: int) -> tuple[Degas, Float64Array]:
    """Grow a tree, and measure what it errs by on its own references with the noise of a class."""
    degas = Degas.learn(stars.inputs.flux, stars.truth, seed=seed)
    rng, sigma = np.random.default_rng(seed), []
    for snr in classes:
        noise = np.sqrt(np.maximum(degas.flux, 0.05)) / snr
        noisy = degas.flux + (noise * rng.standard_normal(noise.shape)).astype(np.float32)
        found = degas.recognise(noisy, (1.0 / noise**2).astype(np.float32), itself=True)
        sigma.append(MAD_TO_SIGMA * np.median(np.abs(found - degas.labels), axis=0))
    return degas, np.array(sigma)


class _Projection(NamedTuple):
    """Vectors of one group of stars, for each class of S/N."""

    vectors: Float64Array
    offset: Float64Array
    floor: Float64Array


def _project(
    flux: Float64Array,
    ivar: Float64Array,
    truth: Float64Array,
    classes: Float64Array,
    correlation: Float64Array,
    solver: Solver,
) -> _Projection:
    """Vectors of one group of stars, for each class of S/N."""
    centre, mean = truth.mean(axis=0), flux.mean(axis=0)
    spread = np.where(truth.std(axis=0) > 0, truth.std(axis=0), 1.0)
    target, apart = (truth - centre) / spread, flux - mean
    # Noise of the training spectra is in them already: a class has more, or none besides.
    own = np.where(ivar > 0, 1.0 / np.where(ivar > 0, ivar, np.inf), 0.0)
    noise = np.maximum(own.sum(axis=0) / np.maximum((ivar > 0).sum(axis=0), 1), _LEAST_VARIANCE)
    factor = _best_ridge(apart / np.sqrt(noise), target)[0] if solver == "ridge" else 1.0
    vectors, offset, floor = [], [], []
    for snr in classes:
        extra = np.maximum(np.maximum(mean, 0.05) / snr**2 - noise, 0.0)
        variance = factor * noise + extra
        solve = _by_ridge if solver == "ridge" else _by_landweber
        vector, missing = solve(apart / np.sqrt(variance), target, extra / variance)
        vector = vector / np.sqrt(variance)[:, None] * spread
        through = weighted_variance(vector, np.sqrt(own), correlation=correlation.tolist())
        robust = (MAD_TO_SIGMA * np.median(np.abs(missing * spread), axis=0)) ** 2
        vectors.append(vector)
        offset.append(centre - mean @ vector)
        floor.append(np.sqrt(np.maximum(robust - np.median(through, axis=0), 0.0)))
    return _Projection(np.stack(vectors), np.stack(offset), np.stack(floor))


def _by_ridge(
    whitened: Float64Array, target: Float64Array, extra: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Vectors (n_pixel, n_label) of a ridge of one, and residuals of stars left out."""
    del extra
    n = len(whitened)
    value, left = _spectrum(whitened)
    alpha = left @ ((left.T @ target) / (value + n)[:, None])
    return whitened.T @ alpha, _left_out(left, target, value / (value + n))


def _by_landweber(
    whitened: Float64Array, target: Float64Array, extra: Float64Array
) -> tuple[Float64Array, Float64Array]:
    """Vectors (n_pixel, n_label) of an iteration stopped early, and residuals of stars left out.

    alpha <- alpha + beta (theta - S S^T alpha), beta the inverse of the largest eigenvalue: after n
    steps a component of eigenvalue v has reached 1 - (1 - beta v)^n of its solution. Of some n each
    label takes the one that leaves out stars best, with the noise that a class has beyond that of
    the training spectra.

    Parameters
    ----------
    whitened : (n_star, n_pixel) float64
    target : (n_star, n_label) float64
    extra : (n_pixel,) float64
        That noise, as a share of the variance by which spectra are whitened.
    """
    value, left = _spectrum(whitened)
    value = np.maximum(value, 1e-12 * value.max(initial=1e-300))
    along, rate = left.T @ target, np.minimum(value / value.max(initial=1e-300), 1.0 - 1e-12)
    best = np.full(target.shape[1], np.inf)
    vector = np.zeros((whitened.shape[1], target.shape[1]))
    missing, idle = target.copy(), 0
    for count in _ITERATIONS:
        reached = -np.expm1(count * np.log1p(-rate))
        tried = whitened.T @ (left @ ((reached / value)[:, None] * along))
        out = _left_out(left, target, reached)
        loss = np.mean(out**2, axis=0) + extra @ tried**2
        better = loss < best
        best = np.where(better, loss, best)
        vector, missing = np.where(better, tried, vector), np.where(better, out, missing)
        idle = 0 if better.any() else idle + 1
        if idle == _PATIENCE:
            break
    return vector, missing


def _spectrum(rows: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Eigenvalues and vectors of the products of stars, of the smaller of the two matrices."""
    n, p = rows.shape
    # Of stars or pixels, the smaller matrix has the same eigenvalues.
    if n <= p:
        value, vector = eigh(rows @ rows.T, check_finite=False)
        return np.maximum(value, 0.0), vector
    value, right = eigh(rows.T @ rows, check_finite=False)
    value = np.maximum(value, 0.0)
    kept = value > 1e-12 * value.max(initial=1e-300)
    return value[kept], rows @ right[:, kept] / np.sqrt(value[kept])


def _left_out(left: Float64Array, target: Float64Array, reached: Float64Array) -> Float64Array:
    """Residual of each star when it is left out: (y - H y) / (1 - diag H).

    Exact for a ridge, where `reached` (n,) is v / (v + ridge) of each eigenvalue.
    """
    fitted = left @ (reached[:, None] * (left.T @ target))
    # The mean is fitted too.
    lever = (left**2) @ reached + 1.0 / len(target)
    return np.asarray((target - fitted) / np.maximum(1.0 - lever, 1e-3)[:, None])


def _best_ridge(whitened: Float64Array, target: Float64Array) -> tuple[float, Float64Array]:
    # Eigenvectors serve all ridges and all stars left out, so that nothing is solved anew.
    value, left = _spectrum(whitened)
    losses = [
        np.mean(_left_out(left, target, value / (value + factor * len(target))) ** 2)
        for factor in _RIDGES
    ]
    return _RIDGES[int(np.argmin(losses))], np.array(losses)


def _groups(node: IndexArray, kind: IndexArray) -> list[tuple[int, int, IndexArray]]:
    """Stars that share their vectors."""
    width = int(kind.max(initial=0)) + 1
    code = node * width + kind
    order = np.argsort(code, kind="stable")
    edges = np.flatnonzero(np.diff(code[order])) + 1
    return [
        (int(node[rows[0]]), int(kind[rows[0]]), rows)
        for rows in np.split(order, edges)
        if rows.size
    ]
