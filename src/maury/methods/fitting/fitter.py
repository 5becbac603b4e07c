"""One bounded fit for every forward model: Levenberg-Marquardt on many spectra at once.

Minimises (f - F(x))^T C^-1 (f - F(x)) + (x - m)^T P (x - m) over the labels x within their bounds.
C is the noise, correlated between neighbouring pixels if told so, with the variance of the model
itself; m and P are a Gaussian prior. The covariance is (J^T C^-1 J + P)^-1 at the minimum.

The damping is that of Marquardt (1963, SIAM J. Appl. Math. 11, 431). A label that a step would
carry over a bound is held there. Between two Jacobians, steps are taken with the former one (the
chord method), which costs a flux instead of a flux and all its derivatives; a fit always ends with
a Jacobian at its own place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import check_known
from maury.io.arrays import BoolArray, Float32Array, Float64Array, Int64Array, on_finite_rows
from maury.labels.flags import FLAG_DTYPE, Flag
from maury.methods.fitting.knowledge import Prior, Start
from maury.methods.fitting.noise import Whitening
from maury.methods.protocols import FitResult, ForwardModel
from maury.spectra.noise import noise_seen
from maury.spectra.preparation import Inputs

__all__ = ["Fitter", "Tie", "gain", "inverse", "solve"]

# Curvature below this is none: the pixels do not depend on the label.
_TINY = 1e-300


def solve(
    curvature: Float64Array, descent: Float64Array, held: BoolArray, damping: Float64Array
) -> Float64Array:
    """Solve the damped normal equations with some labels held, in units of their own errors."""
    diagonal = np.einsum("nii->ni", curvature)
    held = held | (diagonal <= _TINY)
    # Kelvins and dex differ by thousands: a unit diagonal conditions the matrix.
    unit = 1.0 / np.sqrt(np.where(held, 1.0, diagonal))
    both = unit[:, :, None] * unit[:, None, :]
    scaled = np.where(held[:, :, None] | held[:, None, :], 0.0, curvature * both)
    n_free = descent.shape[1]
    scaled[:, np.arange(n_free), np.arange(n_free)] = 1.0 + 1e-12 + damping
    right = np.where(held, 0.0, descent * unit)
    try:
        step = np.linalg.solve(scaled, right[:, :, None])[:, :, 0]
    # Two labels that move all pixels alike: the step of least length will do.
    except np.linalg.LinAlgError:
        step = (np.linalg.pinv(scaled, hermitian=True) @ right[:, :, None])[:, :, 0]
    return np.asarray(np.where(held, 0.0, step * unit))


def inverse(curvature: Float64Array, frozen: BoolArray) -> Float64Array:
    """Covariance (n_star, n_free, n_free); zero for frozen labels."""
    diagonal = np.einsum("nii->ni", curvature)
    loose = frozen | (diagonal <= _TINY)
    unit = 1.0 / np.sqrt(np.where(loose, 1.0, diagonal))
    both = unit[:, :, None] * unit[:, None, :]
    scaled = np.where(loose[:, :, None] | loose[:, None, :], 0.0, curvature * both)
    n_free = frozen.shape[1]
    scaled[:, np.arange(n_free), np.arange(n_free)] = 1.0
    inverse = np.linalg.pinv(scaled, hermitian=True) * both
    inverse = np.where(frozen[:, :, None] | frozen[:, None, :], 0.0, inverse)
    unknown = (diagonal <= _TINY) & ~frozen
    return np.where(unknown[:, :, None] | unknown[:, None, :], np.nan, inverse)


def gain(step: Float64Array, curvature: Float64Array, descent: Float64Array) -> Float64Array:
    """Return what a step gains in the objective where the model is its tangent."""
    bent = np.einsum("ni,nij,nj->n", step, curvature, step)
    return np.asarray(2 * np.einsum("ni,ni->n", step, descent) - bent)


_FIRST_DAMPING, _LEAST_DAMPING, _LARGEST_DAMPING = 1e-3, 1e-9, 1e8
# Float32 rounds a chi-square of 1000 pixels by some 3e-6; a few times that is no failure.
_ROUNDING = 1e-5
_PINNED = 1e2
"""Damping at which a label counts as standing at a kink: five bad steps in turn from the first
damping, after which a step is a hundredth of the undamped one."""
# Distance to a bound, in ranges of the label, that is rounding.
_EDGE = 1e-6


@dataclass(frozen=True)
class Tie:
    """A label that follows others: the sum of coefficients times labels, plus a constant."""

    coefficients: Mapping[str, float]
    constant: float = 0.0


class _Normal(NamedTuple):
    """Normal equations of some stars: curvature, descent, objective, and the whitened Jacobian."""

    curvature: Float64Array
    descent: Float64Array
    objective: Float64Array
    chi2: Float64Array
    slopes: Float32Array
    flux: Float32Array
    jacobian: Float32Array

    def rows(self, chosen: BoolArray) -> _Normal:
        """Return those of some stars."""
        arrays: tuple[Any, ...] = self
        return _Normal(*(array[chosen] for array in arrays))

    def replaced(self, where: BoolArray, new: _Normal) -> _Normal:
        """Return those of `new` for some stars, and these for the others."""
        pairs: Iterable[tuple[Any, Any]] = zip(self, new, strict=True)
        return _Normal(*(np.where(where.reshape(-1, *[1] * (a.ndim - 1)), b, a) for a, b in pairs))


@dataclass(frozen=True)
class Fitter:
    """Fits one forward model to many spectra.

    Attributes
    ----------
    model : ForwardModel
    tied : mapping of str to Tie
        Labels that follow others, which may not be tied themselves.
    window : (n_pixel,) float64 or None
        Weight of each pixel; 0 leaves it out.
    noise_correlation : tuple of float
        Correlation of the noise between pixels 1, 2, ... apart.
    max_steps : int
        Steps after which a star counts as not converged.
    reuse : int
        Steps taken with one Jacobian before the next is computed; 0 where Jacobians are cheap.
    tolerance : float
        A star is done when the next step would gain less than this in chi-square. That step is
        taken along the tangent, without computing the model again.
    block : int
        Stars fitted together; their derivatives lie in memory.
    """

    model: ForwardModel
    tied: Mapping[str, Tie] = field(default_factory=dict)
    window: Float64Array | None = None
    noise_correlation: tuple[float, ...] = ()
    max_steps: int = 30
    reuse: int = 0
    tolerance: float = 1e-2
    block: int = 64

    def __post_init__(self) -> None:
        for name, tie in self.tied.items():
            check_known("label", name, self.model.label_names)
            for other in tie.coefficients:
                check_known("label", other, self.free_names)

    @cached_property
    def free_names(self) -> tuple[str, ...]:
        """Labels that are not tied, in order."""
        return tuple(name for name in self.model.label_names if name not in self.tied)

    @cached_property
    def _free(self) -> Int64Array:
        names = self.model.label_names
        return np.array([names.index(name) for name in self.free_names], dtype=np.int64)

    @cached_property
    def _tying(self) -> tuple[Float64Array, Float64Array]:
        """All labels are matrix (n_label, n_free) times the free ones, plus a constant."""
        names = self.model.label_names
        matrix, constant = np.zeros((len(names), self._free.size)), np.zeros(len(names))
        matrix[self._free, np.arange(self._free.size)] = 1.0
        for name, tie in self.tied.items():
            row = names.index(name)
            constant[row] = tie.constant
            for other, coefficient in tie.coefficients.items():
                matrix[row, self.free_names.index(other)] = coefficient
        return matrix, constant

    @cached_property
    def _whiten(self) -> Whitening:
        return Whitening(tuple(self.noise_correlation))

    def fit(
        self,
        flux: Float32Array,
        ivar: Float32Array,
        start: ArrayLike,
        *,
        prior: Prior | None = None,
        frozen: ArrayLike = False,
    ) -> FitResult:
        """Fit spectra.

        Parameters
        ----------
        flux, ivar : (n_star, n_pixel) float32
            An `ivar` of 0 leaves a pixel out.
        start : (n_star, n_label) or (n_start, n_star, n_label) array_like
            Labels to start from, clipped to the bounds; the best of several fits is kept. A star
            whose start is not finite is not fitted.
        prior : Prior, optional
            Of the stars.
        frozen : (n_star, n_label) or (n_label,) bool array_like
            Labels that keep their (first) start.

        Returns
        -------
        FitResult
            NaN for a star without a usable pixel or start.
        """
        starts = np.asarray(start, dtype=np.float64)
        starts = starts[None] if starts.ndim == 2 else starts
        n, k = starts.shape[1:]
        held = np.broadcast_to(np.asarray(frozen, dtype=np.bool_), (n, k))
        known = prior if prior is not None else Prior.flat(n, k)
        parts = []
        for first in range(0, max(n, 1), self.block):
            rows = slice(first, first + self.block)
            problem = _Problem(self, flux[rows], ivar[rows], known.rows(rows), held[rows])
            found = [problem.solve(one[rows]) for one in starts]
            parts.append(_best(found))
        return FitResult.join([part.result for part in parts])

    def objective(
        self,
        flux: Float32Array,
        ivar: Float32Array,
        labels: Float64Array,
        *,
        prior: Prior | None = None,
    ) -> Float64Array:
        """Chi-square and prior (n_star,) at labels (n_star, n_label); NaN where one is not finite.

        Up to a constant of the prior, so that differences of one star tell.
        """
        n, k = labels.shape
        known = prior if prior is not None else Prior.flat(n, k)
        out = np.full(n, np.nan)
        for first in range(0, n, self.block):
            rows = slice(first, first + self.block)
            held = np.zeros((len(labels[rows]), k), dtype=np.bool_)
            problem = _Problem(self, flux[rows], ivar[rows], known.rows(rows), held)
            out[rows] = problem.objective(labels[rows])
        return out

    def seen_with(self, noise_correlation: tuple[float, ...]) -> Self:
        """Return the fitter of spectra with noise of this correlation; itself if it is its own."""
        noise = noise_seen(self.noise_correlation, noise_correlation)
        # The same object keeps what it has computed of its noise.
        return self if noise is self.noise_correlation else replace(self, noise_correlation=noise)

    def fit_from(self, known: Start, inputs: Inputs) -> FitResult:
        """Fit prepared spectra, with their own noise, from what is known of their labels."""
        return self.seen_with(inputs.noise_correlation).fit(
            inputs.flux, inputs.ivar, known.place, prior=known.prior, frozen=known.frozen
        )


class _Outcome(NamedTuple):
    result: FitResult
    objective: Float64Array


def _best(found: list[_Outcome]) -> _Outcome:
    """For each star, the outcome of the lowest objective."""
    best = found[0]
    for other in found[1:]:
        better = other.objective < best.objective
        best = _Outcome(
            _choose(better, other.result, best.result),
            np.where(better, other.objective, best.objective),
        )
    return best


def _choose(where: BoolArray, yes: FitResult, no: FitResult) -> FitResult:
    assert yes.flux is not None, "a fit has a best spectrum"
    assert no.flux is not None, "a fit has a best spectrum"
    return FitResult(
        yes.label_names,
        np.where(where[:, None], yes.labels, no.labels),
        np.where(where[:, None, None], yes.covariance, no.covariance),
        np.where(where, yes.chi2, no.chi2),
        np.where(where, yes.n_freedom, no.n_freedom),
        np.where(where, yes.flags, no.flags).astype(FLAG_DTYPE),
        np.where(where[:, None], yes.flux, no.flux),
    )


class _Problem:
    """Some stars of one fit; arrays of all of them, of which the unfinished are worked on."""

    def __init__(
        self,
        fitter: Fitter,
        flux: Float32Array,
        ivar: Float32Array,
        prior: Prior,
        frozen: BoolArray,
    ) -> None:
        self.fitter, self.model = fitter, fitter.model
        self.matrix, self.constant = fitter._tying
        self.free = fitter._free
        self.bounds = np.asarray(self.model.bounds)[self.free]
        self.frozen = frozen[:, self.free]
        self.ivar = np.where(np.isfinite(flux), ivar, np.float32(0))
        self.flux = np.where(self.ivar > 0, flux, np.float32(0))
        self.seen = np.asarray((self.ivar > 0).any(axis=1), dtype=np.bool_)
        # What a masked pixel holds is unknown, not zero: it leaves the correlation matrix.
        window = fitter.window
        self.whiten = fitter._whiten.of((self.ivar > 0) & (True if window is None else window > 0))
        # A prior of all labels becomes one of the free ones.
        across = prior.precision @ self.matrix
        self.precision = self.matrix.T @ across
        shifted = prior.pull - np.einsum("nij,j->ni", prior.precision, self.constant)
        self.pull = shifted @ self.matrix

    def solve(self, start: Float64Array) -> _Outcome:
        usable = self.seen & np.asarray(np.isfinite(start).all(axis=1), dtype=np.bool_)
        place = np.clip(start[:, self.free], *self.bounds.T)
        # A label known from elsewhere may lie beyond the bounds, and stays there.
        place = np.where(self.frozen, start[:, self.free], place)
        self._weigh(np.where(usable[:, None], self._labels(place), self._labels(self._middle())))
        state = _State(place, np.flatnonzero(usable), self)
        state.run()
        return self._outcome(state, usable)

    def _middle(self) -> Float64Array:
        return np.asarray(self.bounds.mean(axis=1)[None])

    def _labels(self, free: Float64Array) -> Float64Array:
        return on_finite_rows(lambda place: place @ self.matrix.T + self.constant, free)

    def _weigh(self, labels: Float64Array) -> None:
        """Weights of the pixels, with the model's own variance at the start."""
        # Weights stay as at the start: chi-squares of two places would not compare otherwise.
        own = np.broadcast_to(self.model.variance(labels), self.ivar.shape)
        with np.errstate(divide="ignore"):
            weight = np.sqrt(self.ivar / (1 + self.ivar * own))
        if self.fitter.window is not None:
            weight *= np.sqrt(self.fitter.window)
        self.weight = weight.astype(np.float32)

    def normal(self, free: Float64Array, rows: Int64Array) -> _Normal:
        """Return the normal equations at `free` labels of the stars `rows`."""
        flux, slopes = self.model.evaluate(self._labels(free))
        assert slopes is not None, "derivatives were asked for"
        if self.fitter.tied:
            slopes = np.einsum("nkp,kf->nfp", slopes, self.matrix.astype(np.float32))
        weight = self.weight[rows]
        # Residuals are one more row, so that one product gives curvature, descent and chi-square.
        stack = np.empty((len(rows), slopes.shape[1] + 1, flux.shape[1]), dtype=np.float32)
        np.multiply(slopes, weight[:, None], out=stack[:, :-1])
        np.multiply(self.flux[rows] - flux, weight, out=stack[:, -1])
        white = self.whiten.rows(rows)(stack)
        # Pixels are summed in float32, which halves the time; all that follows is in float64.
        gram = (white @ white.transpose(0, 2, 1)).astype(np.float64)
        chi2 = gram[:, -1, -1]
        descent, objective = self._with_prior(gram[:, :-1, -1], chi2, free, rows)
        curvature = gram[:, :-1, :-1] + self.precision[rows]
        return _Normal(curvature, descent, objective, chi2, white[:, :-1], flux, slopes)

    def residual(
        self, free: Float64Array, rows: Int64Array, slopes: Float32Array
    ) -> tuple[Float64Array, Float64Array]:
        """Return the descent by former `slopes`, and objective, from the flux alone."""
        flux, _ = self.model.evaluate(self._labels(free), jacobian=False)
        white = self.whiten.rows(rows)((self.flux[rows] - flux) * self.weight[rows])
        descent = (slopes @ white[:, :, None])[:, :, 0].astype(np.float64)
        chi2 = np.einsum("np,np->n", white, white).astype(np.float64)
        return self._with_prior(descent, chi2, free, rows)

    def objective(self, labels: Float64Array) -> Float64Array:
        """Return the objective (n_star,) at finite labels (n_star, n_label); NaN elsewhere."""
        usable = np.flatnonzero(self.seen & np.isfinite(labels).all(axis=1))
        out = np.full(len(labels), np.nan)
        if usable.size:
            filled = labels.copy()
            filled[~np.isfinite(labels).all(axis=1)] = labels[usable[0]]
            self._weigh(filled)
            free = labels[np.ix_(usable, self.free)]
            flux, _ = self.model.evaluate(labels[usable], jacobian=False)
            apart = (self.flux[usable] - flux) * self.weight[usable]
            white = self.whiten.rows(usable)(apart)
            chi2 = np.einsum("np,np->n", white, white).astype(np.float64)
            out[usable] = self._with_prior(np.zeros_like(free), chi2, free, usable)[1]
        return out

    def _with_prior(
        self,
        descent: Float64Array,
        chi2: Float64Array,
        free: Float64Array,
        rows: Int64Array,
    ) -> tuple[Float64Array, Float64Array]:
        drawn = np.einsum("nij,nj->ni", self.precision[rows], free)
        away = np.einsum("ni,ni->n", free, drawn - 2 * self.pull[rows])
        return descent + self.pull[rows] - drawn, chi2 + away

    def _outcome(self, state: _State, usable: BoolArray) -> _Outcome:
        labels = self._labels(state.place)
        labels[~usable] = np.nan
        covariance = on_finite_rows(
            lambda free: self.matrix @ free @ self.matrix.T, state.covariance
        )
        flags = np.zeros(len(labels), FLAG_DTYPE)
        edge = _EDGE * np.ptp(self.bounds, axis=1)
        near = (state.place <= self.bounds[:, 0] + edge) | (state.place >= self.bounds[:, 1] - edge)
        flags[(near & ~self.frozen).any(axis=1) & usable] |= Flag.AT_BOUND.value
        flags[~state.converged & usable] |= Flag.NOT_CONVERGED.value
        used = (self.weight > 0).sum(axis=1) - (~self.frozen).sum(axis=1)
        result = FitResult(
            self.model.label_names,
            labels,
            covariance,
            np.where(usable, state.chi2, np.nan),
            np.where(usable, np.maximum(used, 0), 0).astype(np.int64),
            flags,
            state.flux,
        )
        return _Outcome(result, np.where(usable, state.objective, np.inf))


class _State:
    """Where the fits of some stars stand; it changes from step to step."""

    def __init__(self, place: Float64Array, active: Int64Array, problem: _Problem) -> None:
        n, n_free = place.shape
        self.place, self.active, self.problem = place.copy(), active, problem
        self.objective = np.full(n, np.inf)
        self.chi2 = np.full(n, np.nan)
        self.damping = np.full((n, n_free), _FIRST_DAMPING)
        self.converged = np.zeros(n, dtype=np.bool_)
        self.covariance = np.full((n, n_free, n_free), np.nan)
        self.flux = np.full(problem.flux.shape, np.nan, dtype=np.float32)

    def run(self) -> None:
        """Step until every star has converged, or has had its steps."""
        if not self.active.size:
            return
        fitter = self.problem.fitter
        normal = self.problem.normal(self.place[self.active], self.active)
        for number in range(fitter.max_steps + 1):
            remaining = self._finish(normal, last=number == fitter.max_steps)
            if not remaining.any():
                return
            if not remaining.all():
                normal = normal.rows(remaining)
            normal = self._chord(normal) if fitter.reuse else self._advance(normal)

    def _finish(self, normal: _Normal, *, last: bool) -> BoolArray:
        """End the stars that gain no more, by one step along the tangent; return the others.

        A label that was damped time and again stands at a kink of the model, such as a node of a
        linear grid: its derivative changes sign there, so that no step would be small. It stays,
        and the others decide.
        """
        curvature, descent, damping = normal.curvature, normal.descent, self.damping[self.active]
        pinned = damping >= _PINNED
        # Undamped, as damping would make any step look small.
        step = self._step(curvature, descent, np.zeros_like(damping), pinned)
        done = gain(step, curvature, descent) < self.problem.fitter.tolerance
        if pinned.any():
            damped = self._step(curvature, descent, damping)
            done &= gain(damped, curvature, descent) < self.problem.fitter.tolerance
        self.converged[self.active[done]] = True
        ending = done | last
        if ending.any():
            self._end(normal.rows(ending), np.where(done[:, None], step, 0.0)[ending], ending)
        self.active = self.active[~ending]
        return ~ending

    def _end(self, normal: _Normal, step: Float64Array, ending: BoolArray) -> None:
        rows, problem = self.active[ending], self.problem
        place, precision = self.place[rows], problem.precision[rows]
        self.objective[rows] = normal.objective - gain(step, normal.curvature, normal.descent)
        by_prior = problem.pull[rows] - np.einsum("nij,nj->ni", precision, place)
        self.chi2[rows] = normal.chi2 - gain(
            step, normal.curvature - precision, normal.descent - by_prior
        )
        moved = step.astype(np.float32)[:, None] @ normal.jacobian
        self.flux[rows] = normal.flux + moved[:, 0]
        self.covariance[rows] = inverse(normal.curvature, problem.frozen[rows])
        self.place[rows] = place + step

    def _advance(self, normal: _Normal) -> _Normal:
        """Take one step, where it is for the better."""
        place = self.place[self.active]
        step = self._step(normal.curvature, normal.descent, self.damping[self.active])
        new = self.problem.normal(place + step, self.active)
        better = new.objective <= normal.objective + _ROUNDING * np.abs(normal.chi2)
        self.place[self.active] = np.where(better[:, None], place + step, place)
        self._damp(better, normal.descent * new.descent < 0)
        return new if better.all() else normal.replaced(better, new)

    def _chord(self, normal: _Normal) -> _Normal:
        """Take several steps with one Jacobian, each where it is for the better."""
        problem, curvature = self.problem, normal.curvature
        descent, objective = normal.descent, normal.objective
        slack = _ROUNDING * np.abs(normal.chi2)
        for _ in range(problem.fitter.reuse):
            place = self.place[self.active]
            step = self._step(curvature, descent, self.damping[self.active])
            found = problem.residual(place + step, self.active, normal.slopes)
            better = found[1] <= objective + slack
            self.place[self.active] = np.where(better[:, None], place + step, place)
            # Derivatives of a former place say little of which label went too far.
            self._damp(better, np.zeros_like(descent, dtype=np.bool_))
            descent = np.where(better[:, None], found[0], descent)
            objective = np.where(better, found[1], objective)
        return problem.normal(self.place[self.active], self.active)

    def _damp(self, better: BoolArray, turned: BoolArray) -> None:
        """Damp less after a good step; after a bad one more, the labels that went too far."""
        old = self.damping[self.active]
        far = turned | ~turned.any(axis=1, keepdims=True)
        good = np.where(turned, old * 10.0, old * 0.1)
        new = np.where(better[:, None], good, np.where(far, old * 10.0, old))
        self.damping[self.active] = np.clip(new, _LEAST_DAMPING, _LARGEST_DAMPING)

    def _step(
        self,
        curvature: Float64Array,
        descent: Float64Array,
        damping: Float64Array,
        pinned: BoolArray | None = None,
    ) -> Float64Array:
        """Damped step within the bounds, with labels held that would leave them."""
        low, high = self.problem.bounds.T
        place, frozen = self.place[self.active], self.problem.frozen[self.active]
        frozen = frozen if pinned is None else frozen | pinned
        held = frozen | (place <= low) & (descent < 0) | (place >= high) & (descent > 0)
        step = solve(curvature, descent, held, damping)
        beyond = ((place + step < low) | (place + step > high)) & ~held
        if beyond.any():
            edge = np.where(beyond, np.clip(place + step, low, high) - place, 0.0)
            rest = descent - np.einsum("nij,nj->ni", curvature, edge)
            step = edge + solve(curvature, rest, held | beyond, damping)
            step = np.where(held, 0.0, np.clip(place + step, low, high) - place)
        return step
