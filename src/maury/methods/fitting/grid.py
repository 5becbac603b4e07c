"""A regular grid of spectra as a forward model: interpolated along each axis, compressed or not.

Interpolation is linear, or by quadratic or cubic Bezier curves whose control points follow from
the slopes between neighbouring nodes (Auer 2003, ASP Conf. Ser. 288, 3; Meszaros et al. 2012, AJ
144, 120, section 2.3; for equal steps the cubic is that of Catmull and Rom). All are linear in the
node values, so that a spectrum and its derivatives are small products of weights and nodes; with
principal components the nodes are coefficients instead of pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, Self

import numpy as np

from maury.io.arrays import AnyArray, Float32Array, Float64Array, Int64Array
from maury.methods.protocols import Evaluation
from maury.methods.storage import Arrays, stored

__all__ = ["MOST_AXES", "Grid", "Interpolation"]

Interpolation = Literal["linear", "quadratic", "cubic"]

# Spectra synthesised together, which keeps memory small while a grid is built.
_BUILD_BLOCK = 256
# Spectra of which components are computed: six times the pixels of RAVE, every k-th node.
_COMPONENT_SPECTRA = 6000


MOST_AXES = 8
"""Four nodes of each are read for a star: 65 536 spectra. APOGEE's grids have seven."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Spectra at all combinations of node values.

    Attributes
    ----------
    label_names : tuple of str
        Of the axes.
    axes : tuple of (n_node,) float64
        Increasing node values, at least two per axis.
    nodes : (n_all_nodes, n_component) float32
        Pixels of each spectrum, or coefficients; the last axis varies fastest.
    basis : (n_component, n_pixel) float32 or None
        Principal components; None if `nodes` are pixels.
    mean : (n_pixel,) float32
        Added to the components; zero without them.
    wave : (n_pixel,) float64
    own_variance : (n_pixel,) float32
        Variance of the flux of the model.
    interpolation : {"linear", "quadratic", "cubic"}
    """

    label_names: tuple[str, ...] = field(metadata=stored(None))
    axes: tuple[Float64Array, ...] = field(metadata=stored(None))
    nodes: Float32Array
    basis: Float32Array | None
    mean: Float32Array
    wave: Float64Array
    own_variance: Float32Array
    interpolation: Interpolation = field(default="linear", metadata=stored(None))

    def __post_init__(self) -> None:
        shape = tuple(axis.size for axis in self.axes)
        if len(shape) > MOST_AXES:
            raise ValueError(f"a grid of {len(shape)} labels, where {MOST_AXES} are interpolated")
        if len(shape) != len(self.label_names) or min(shape, default=0) < 2:
            raise ValueError(f"a grid needs two nodes or more per label, got {shape}")
        if any((np.diff(axis) <= 0).any() for axis in self.axes):
            raise ValueError("the nodes of each axis must increase")
        if len(self.nodes) != np.prod(shape):
            raise ValueError(f"{len(self.nodes)} spectra do not fill a grid of {shape}")

    @classmethod
    def build(
        cls,
        axes: Mapping[str, Float64Array],
        synthesise: Callable[[Float64Array], Float32Array],
        wave: Float64Array,
        *,
        interpolation: Interpolation = "linear",
        components: int = 0,
    ) -> Self:
        """Synthesise a spectrum at every node.

        Parameters
        ----------
        axes : mapping of str to (n_node,) float64
            Node values by label.
        synthesise : callable
            Spectra (n, n_pixel) of labels (n, n_axis).
        wave : (n_pixel,) float64
        interpolation : {"linear", "quadratic", "cubic"}
        components : int
            Principal components to keep; 0 keeps pixels.
        """
        places = np.stack(np.meshgrid(*axes.values(), indexing="ij"), axis=-1)
        labels = places.reshape(-1, len(axes))
        starts = range(0, len(labels), _BUILD_BLOCK)
        flux = np.concatenate([synthesise(labels[k : k + _BUILD_BLOCK]) for k in starts])
        plain = cls(
            tuple(axes),
            tuple(np.asarray(axis, dtype=np.float64) for axis in axes.values()),
            flux.astype(np.float32),
            None,
            np.zeros(wave.size, dtype=np.float32),
            wave,
            np.zeros(wave.size, dtype=np.float32),
            interpolation,
        )
        return plain.compressed(components) if components else plain

    def compressed(self, components: int, *, like: Float32Array | None = None) -> Self:
        """Return the grid as principal components, at most as many as there are pixels.

        The error that remains is part of `own_variance`.

        Parameters
        ----------
        components : int
        like : (n, n_pixel) float32, optional
            Spectra of which the components are; those of the nodes by default.
        """
        assert self.basis is None, "the grid is compressed already"
        # Neighbouring nodes are alike: components of a part serve the whole grid.
        some = self.nodes[:: max(1, len(self.nodes) // _COMPONENT_SPECTRA)]
        some = some if like is None else like
        mean = some.mean(axis=0)
        _, _, axes = np.linalg.svd(some - mean, full_matrices=False)
        basis = np.ascontiguousarray(axes[:components], dtype=np.float32)
        nodes = (self.nodes - mean) @ basis.T
        lost = np.mean((some - mean - ((some - mean) @ basis.T) @ basis) ** 2, axis=0)
        own = self.own_variance + lost.astype(np.float32)
        return replace(self, nodes=nodes, basis=basis, mean=mean, own_variance=own)

    @cached_property
    def bounds(self) -> Float64Array:
        """First and last node (n_label, 2) of each axis."""
        return np.array([axis[[0, -1]] for axis in self.axes])

    @property
    def wave_aa(self) -> Float64Array:
        """Wavelengths (n_pixel,) in angstrom."""
        return self.wave

    def evaluate(self, labels: Float64Array, *, jacobian: bool = True) -> Evaluation:
        """Flux and derivatives; see `maury.methods.protocols.ForwardModel`."""
        index, weight = self._corners(labels, slopes=jacobian)
        rows = weight @ self.nodes[index]
        if self.basis is not None:
            rows = rows @ self.basis
            rows[:, 0] += self.mean
        return Evaluation(rows[:, 0], rows[:, 1:] if jacobian else None)

    def variance(self, labels: Float64Array) -> Float32Array:
        """Variance (n_pixel,) of the model's flux."""
        del labels
        return self.own_variance

    def nearest(self, flux: Float32Array, ivar: Float32Array, *, most: int = 3000) -> Float64Array:
        """Labels (n_star, n_label) of the node of least chi-square, among at most `most` nodes."""
        step = -(-len(self.nodes) // most)
        # A step that divides an axis would leave out some of its values altogether.
        while step > 1 and any(np.gcd(step, axis.size) > 1 for axis in self.axes):
            step += 1
        chosen = np.arange(0, len(self.nodes), step)
        spectra = self.nodes[chosen]
        if self.basis is not None:
            spectra = spectra @ self.basis + self.mean
        score = (flux * ivar) @ spectra.T - np.float32(0.5) * (ivar @ (spectra**2).T)
        best = chosen[score.argmax(axis=1)]
        places = np.unravel_index(best, [axis.size for axis in self.axes])
        return np.column_stack([axis[k] for axis, k in zip(self.axes, places, strict=True)])

    def _corners(self, labels: Float64Array, *, slopes: bool) -> tuple[Int64Array, Float32Array]:
        """Nodes (n_star, n_corner) around labels, and weights (n_star, 1 + n_label, n_corner)."""
        n, k = labels.shape
        count = 1 + k if slopes else 1
        index = np.zeros((n, 1), dtype=np.int64)
        weight = np.ones((n, count, 1))
        for axis, nodes in enumerate(self.axes):
            places, plain, slope = _weights(nodes, labels[:, axis], self.interpolation)
            # Not -1, which is ambiguous where there is no star.
            width = index.shape[1] * places.shape[1]
            index = (index[:, :, None] * nodes.size + places[:, None]).reshape(n, width)
            factor = np.repeat(plain[:, None], count, axis=1)
            if slopes:
                factor[:, 1 + axis] = slope
            weight = (weight[:, :, :, None] * factor[:, :, None]).reshape(n, count, width)
        return index, weight.astype(np.float32)

    def axis_arrays(self, prefix: str) -> Arrays:
        """Node values by name, which `not_stored` reads; all else is stored as fields."""
        return {
            f"{prefix}.axis_{name}": axis
            for name, axis in zip(self.label_names, self.axes, strict=True)
        }

    @staticmethod
    def not_stored(
        arrays: Mapping[str, AnyArray],
        prefix: str,
        *,
        label_names: Sequence[str],
        interpolation: Interpolation,
    ) -> dict[str, Any]:
        """Return fields that are not stored as such, for `maury.methods.storage.read_fields`."""
        axes = tuple(arrays[f"{prefix}.axis_{name}"] for name in label_names)
        return {"label_names": tuple(label_names), "axes": axes, "interpolation": interpolation}


def _weights(
    nodes: Float64Array, values: Float64Array, interpolation: Interpolation
) -> tuple[Int64Array, Float64Array, Float64Array]:
    """Nodes (n, width) that a value depends on, weights, and derivatives of the weights."""
    left = np.clip(np.searchsorted(nodes, values, side="right") - 1, 0, nodes.size - 2)
    step = nodes[left + 1] - nodes[left]
    t = (values - nodes[left]) / step
    if interpolation == "linear":
        ones = np.ones_like(t)
        places = left[:, None] + np.arange(2)
        return places, np.stack([1 - t, t], 1), np.stack([-ones, ones], 1) / step[:, None]
    places = np.clip(left[:, None] + np.arange(-1, 3), 0, nodes.size - 1)
    first, last = _end_slopes(nodes, left)
    left_end, right_end = np.broadcast_to(_LEFT, first.shape), np.broadcast_to(_RIGHT, last.shape)
    ends = np.stack([left_end, right_end, first, last], axis=1)
    curve = _quadratic if interpolation == "quadratic" else _cubic
    weight, slope = (np.einsum("nc,ncw->nw", part, ends) for part in curve(t))
    return places, weight, slope / step[:, None]


_LEFT = np.array([0.0, 1.0, 0.0, 0.0])
_RIGHT = np.array([0.0, 0.0, 1.0, 0.0])


def _end_slopes(nodes: Float64Array, left: Int64Array) -> tuple[Float64Array, Float64Array]:
    """Slopes per interval at both its ends, as weights (n, 4) of the nodes around it."""
    step = nodes[left + 1] - nodes[left]
    inner = np.array([0.0, -1.0, 1.0, 0.0])
    before = step / (nodes[left + 1] - nodes[np.maximum(left - 1, 0)])
    after = step / (nodes[np.minimum(left + 2, nodes.size - 1)] - nodes[left])
    first = np.where((left > 0)[:, None], before[:, None] * np.array([-1.0, 0.0, 1.0, 0.0]), inner)
    last = np.where(
        (left + 2 < nodes.size)[:, None], after[:, None] * np.array([0.0, -1.0, 0.0, 1.0]), inner
    )
    return first, last


def _quadratic(t: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Quadratic Bezier curve through both ends: what each end value and slope contribute.

    Its control point is the mean of those that the two slopes ask for.
    """
    u = t * (1 - t)
    du = 1 - 2 * t
    value = np.stack([(1 - t) ** 2 + u, t**2 + u, 0.5 * u, -0.5 * u], axis=1)
    slope = np.stack([-2 * (1 - t) + du, 2 * t + du, 0.5 * du, -0.5 * du], axis=1)
    return value, slope


def _cubic(t: Float64Array) -> tuple[Float64Array, Float64Array]:
    """Cubic Bezier curve through both ends with the slopes there, in the form of Hermite."""
    value = np.stack(
        [(1 + 2 * t) * (1 - t) ** 2, t**2 * (3 - 2 * t), t * (1 - t) ** 2, -(t**2) * (1 - t)],
        axis=1,
    )
    slope = np.stack(
        [-6 * t * (1 - t), 6 * t * (1 - t), (1 - t) * (1 - 3 * t), t * (3 * t - 2)], axis=1
    )
    return value, slope
