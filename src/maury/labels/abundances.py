"""Conventions of abundances: ratios, solar scales, alpha elements, and conversion between them.

An abundance label is named ``<what>_<to>``: an element, ``m`` (all metals) or ``alpha``, relative
to ``h``, ``fe`` or ``m``; ``mg_fe`` is [Mg/Fe] = log10(N_Mg / N_Fe) of the star less that of the
Sun. Labels of other names (``teff``, ``logg``) pass as they are.

Every conversion is ``y = A x + b`` and ``C' = A C A^T``: ``b`` is the change of the solar scale,
``A`` the way from the given ratios to the wanted ones, which may differ from star to star with
the labels that it lacks.
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from maury.errors import ConfigError, suggestion
from maury.io.arrays import Float64Array, IndexArray
from maury.labels.solar import SCALES, solar_scale

RATIOS: tuple[str, ...] = ("x_h", "x_fe", "x_m")
"""What abundances may be relative to: hydrogen, iron, all metals."""

SALARIS_1993: tuple[float, float] = (0.638, 0.362)
"""Coefficients of [M/H] = [Fe/H] + log10(a 10^[alpha/Fe] + b): Salaris et al. (1993, ApJ 414, 580).

They belong to the solar mixture of that paper; others have slightly different ones.
"""

SALARIS_KEY = "1993ApJ...414..580S"
"""Their paper in the bibliography."""

SALARIS_WAY = "Salaris et al. (1993) from [Fe/H] and [alpha/Fe]"
"""How `Converted.how` calls it."""

METALS_FOLLOW = "fe"
"""Element by which [M/H] moves from one solar scale to another.

Surveys fit [M/H] to spectra of scaled-solar mixtures, where lines of iron dominate.
"""


_KNOWN = frozenset().union(*(scale.values for scale in SCALES.values()))
_NAME = re.compile(r"^([a-z]{1,2}|alpha)_(h|fe|m)$")


def parse(label: str) -> tuple[str, str] | None:
    """Return what is measured and relative to what, or None if the label is no abundance.

    Examples
    --------
    >>> parse("mg_fe"), parse("m_h"), parse("teff")
    (('mg', 'fe'), ('m', 'h'), None)
    """
    found = _NAME.match(label)
    # [Fe/Fe] is zero by definition, and no label.
    if found is None or found[1] == found[2]:
        return None
    return (found[1], found[2]) if found[1] in _KNOWN | {"m", "alpha"} else None


@dataclass(frozen=True)
class Convention:
    """What the abundances of a catalogue mean.

    Attributes
    ----------
    solar_scale : str or None
        Name of the scale; None if it is not known, and then cannot be changed.
    alpha : mapping of str to float
        Elements, lower case, and their weights in [alpha/H]; empty if not known.
    """

    solar_scale: str | None = None
    alpha: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.solar_scale is not None:
            solar_scale(self.solar_scale)
        for element, weight in self.alpha.items():
            if element not in _KNOWN:
                hint = suggestion(element, _KNOWN)
                raise ConfigError(f"alpha: {element!r} is no element known here{hint}")
            # Written so that a weight that is NaN is refused too.
            if not weight > 0:
                raise ConfigError(f"alpha: the weight of {element!r} must be positive")

    @classmethod
    def of(
        cls, solar_scale: str | None = None, alpha: Sequence[str] | Mapping[str, float] = ()
    ) -> "Convention":
        """Make one; elements without weights weigh the same."""
        weights = alpha if isinstance(alpha, Mapping) else dict.fromkeys(alpha, 1.0)
        return cls(solar_scale, {name.lower(): float(w) for name, w in weights.items()})

    @property
    def shares(self) -> dict[str, float]:
        """Weights of the alpha elements, with a sum of one."""
        total = sum(self.alpha.values())
        return {element: weight / total for element, weight in self.alpha.items()}


def scale_shift(label: str, source: Convention, target: Convention) -> float:
    """Return what to add to a label to move it from one solar scale to the other.

    [X/H] moves by log eps_X on the old scale less that on the new one, and [X/Y] by the difference
    of the two; [M/H] moves as iron (`METALS_FOLLOW`), [alpha/H] by the mean of its elements.

    Parameters
    ----------
    label : str
        For example ``mg_fe``; 0 for a label that is no abundance.
    source, target : Convention
        Where it comes from, and where it goes; a target of no scale changes nothing.

    Raises
    ------
    ConfigError
        If the source's scale (or its alpha elements) is not known, or an element not on a scale.
    """
    parts = parse(label)
    # Teff and log g do not depend on the mixture of the Sun.
    if parts is None or target.solar_scale is None or target.solar_scale == source.solar_scale:
        return 0.0
    if source.solar_scale is None:
        raise ConfigError(
            f"{label!r} is wanted on the solar scale {target.solar_scale!r}, but its own is not "
            "stated; state 'solar_scale' of the catalogue, or ask for no scale"
        )
    old, new = solar_scale(source.solar_scale), solar_scale(target.solar_scale)

    def shift(what: str) -> float:
        # log eps of hydrogen is 12 on every scale.
        if what == "h":
            return 0.0
        if what == "alpha":
            if not source.alpha:
                raise ConfigError(
                    f"{label!r} cannot be moved to {new.name!r}: the alpha elements of the "
                    "catalogue are not stated; state 'alpha'"
                )
            return sum(share * (old[e] - new[e]) for e, share in source.shares.items())
        element = METALS_FOLLOW if what == "m" else what
        return old[element] - new[element]

    return shift(parts[0]) - shift(parts[1])


@dataclass(frozen=True)
class Converted:
    """Labels after a conversion.

    Attributes
    ----------
    names : tuple of str
        The wanted labels, n_label of them.
    values : (n_star, n_label) float64
        NaN where not derivable.
    covariance : (n_star, n_label, n_label) float64
        NaN in rows and columns of labels without value or without error.
    how : mapping of str to str
        For each label, how most stars got it, in words.
    assumed : str
        What was assumed of correlations; empty if covariances were given.
    """

    names: tuple[str, ...]
    values: Float64Array
    covariance: Float64Array
    how: Mapping[str, str]
    assumed: str

    @property
    def errors(self) -> Float64Array:
        """1 sigma errors, shape ``(n_star, n_label)``."""
        return np.sqrt(np.diagonal(self.covariance, axis1=1, axis2=2))


def covariance_of(errors: ArrayLike, correlation: ArrayLike = 0.0) -> Float64Array:
    """Return covariances (n_star, n_label, n_label) from errors and assumed correlations.

    Parameters
    ----------
    errors : (n_star, n_label) array_like
        1 sigma errors.
    correlation : float or (n_label, n_label) array_like
        One number for every pair of labels, or a matrix.

    Raises
    ------
    ConfigError
        If the correlations are no correlation matrix.
    """
    sigma = np.asarray(errors, dtype=np.float64)
    matrix = np.asarray(correlation, dtype=np.float64)
    n_label = sigma.shape[1]
    if matrix.ndim == 0:
        matrix = np.full((n_label, n_label), float(matrix))
        np.fill_diagonal(matrix, 1.0)
    proper = matrix.shape == (n_label, n_label) and np.allclose(matrix, matrix.T)
    if not proper or not np.allclose(np.diagonal(matrix), 1.0):
        raise ConfigError("correlations must be one number, or a symmetric matrix with diagonal 1")
    # Matrices of rank one have eigenvalues of -1e-16 by rounding.
    if np.linalg.eigvalsh(matrix).min(initial=1.0) < -1e-9:
        raise ConfigError("the assumed correlations contradict each other (negative eigenvalue)")
    return np.asarray(sigma[:, :, None] * matrix * sigma[:, None, :])


def metallicity_from_alpha(
    fe_h: ArrayLike, alpha_fe: ArrayLike, coefficients: tuple[float, float] = SALARIS_1993
) -> Float64Array:
    """Return [M/H] from [Fe/H] and [alpha/Fe].

    [M/H] = [Fe/H] + log10(a 10^[alpha/Fe] + b), a = 0.638, b = 0.362 (Salaris et al. 1993,
    ApJ 414, 580).

    Parameters
    ----------
    fe_h, alpha_fe : (n_star,) array_like
        In dex.
    coefficients : (float, float)
        a and b.
    """
    a, b = coefficients
    enhancement = 10.0 ** np.asarray(alpha_fe, dtype=np.float64)
    return np.asarray(np.asarray(fe_h, dtype=np.float64) + np.log10(a * enhancement + b))


_Terms = dict[str, float]
_UNDERIVED = "not derivable"


def _route(start: str, end: str, edges: Mapping[str, tuple[str, str]]) -> _Terms | None:
    """Shortest signed sum of labels that gives [end/start]; None if there is none."""
    # Breadth first: the fewest labels add the fewest errors.
    queue: deque[tuple[str, _Terms]] = deque([(start, {})])
    seen = {start}
    while queue:
        node, terms = queue.popleft()
        if node == end:
            return terms
        for label, (what, to) in edges.items():
            for here, there, sign in ((to, what, 1.0), (what, to, -1.0)):
                if here == node and there not in seen:
                    seen.add(there)
                    queue.append((there, {**terms, label: sign}))
    return None


class _Deriver:
    """Derives wanted labels from a set of given ones."""

    def __init__(
        self, names: Sequence[str], source: Convention, target: Convention, salaris: bool
    ) -> None:
        self.names = list(names)
        self.salaris = salaris
        self.alpha = target.shares or source.shares
        edges = {name: parts for name in names if (parts := parse(name)) is not None}
        same = not target.alpha or not source.alpha or source.shares == target.shares
        # An alpha of other elements is another quantity.
        self.edges = {n: p for n, p in edges.items() if same or p[0] != "alpha"}

    def terms(self, label: str) -> _Terms | None:
        """Coefficients of the given labels, or None if `label` cannot be derived."""
        if label in self.names and (parse(label) is None or label in self.edges):
            return {label: 1.0}
        parts = parse(label)
        if parts is None:
            return None
        found = _route(parts[1], parts[0], self.edges)
        if found is None and parts[0] == "alpha":
            found = self._mean_of_alpha(parts[1])
        return found

    def _mean_of_alpha(self, to: str) -> _Terms | None:
        total: _Terms = {}
        for element, share in self.alpha.items():
            route = _route(to, element, self.edges)
            if route is None:
                return None
            for label, sign in route.items():
                total[label] = total.get(label, 0.0) + share * sign
        return total or None


def convert(
    values: ArrayLike,
    names: Sequence[str],
    wanted: Sequence[str],
    *,
    errors: ArrayLike | None = None,
    covariance: ArrayLike | None = None,
    correlation: ArrayLike = 0.0,
    source: Convention | None = None,
    target: Convention | None = None,
    salaris: bool = False,
) -> Converted:
    """Convert labels of many stars to other ratios, another solar scale, other alpha elements.

    A wanted label is taken as it is if it is given, else derived by the shortest sum of given
    ones ([Mg/M] = [Mg/Fe] + [Fe/H] - [M/H]); [alpha/.] from its elements, where it is not given or
    is of other elements. What a star lacks is gone round if another way exists.

    Parameters
    ----------
    values : (n_star, n_given) array_like
        Labels, NaN where missing.
    names : sequence of str
        Their names.
    wanted : sequence of str
        Names of the wanted labels.
    errors : (n_star, n_given) array_like, optional
        1 sigma errors, NaN where unknown.
    covariance : (n_star, n_given, n_given) array_like, optional
        Instead of errors.
    correlation : float or (n_given, n_given) array_like
        Correlations of the errors, assumed where only errors are given.
    source, target : Convention, optional
        Of the given labels, and of the wanted ones.
    salaris : bool
        Derive [M/H] from [Fe/H] and [alpha/Fe] (`metallicity_from_alpha`) where it is not given;
        its errors follow by the derivative 0.638 f / (0.638 f + 0.362), f = 10^[alpha/Fe].

    Raises
    ------
    ConfigError
        If scales are unknown, or both errors and covariances are given.
    """
    given = np.array(values, dtype=np.float64, ndmin=2)
    if errors is not None and covariance is not None:
        # Both would be two statements of the same errors, of which one would be ignored.
        raise ConfigError("give either errors or covariances, not both")
    source, target = source or Convention(), target or Convention()
    assumed = ""
    if covariance is not None:
        spread = np.array(covariance, dtype=np.float64)
    else:
        sigma = np.full(given.shape, np.nan) if errors is None else np.asarray(errors)
        spread = covariance_of(sigma, correlation)
        assumed = _assumption(errors is not None, correlation)
    # A label that cannot be moved is no error yet: it may not be needed for any that is wanted.
    shifts, unmoved = _shifts(names, source, target)
    given = given + shifts
    out = np.full((given.shape[0], len(wanted)), np.nan)
    jacobian = np.zeros((given.shape[0], len(wanted), len(names)))
    how: dict[str, dict[str, int]] = {name: {} for name in wanted}
    known = np.isfinite(given)
    # A way is found once for all stars that lack the same labels: there are few such patterns, and
    # many stars.
    for pattern in np.unique(known, axis=0):
        rows = np.flatnonzero((known == pattern).all(axis=1))
        deriver = _Deriver(
            [n for n, there in zip(names, pattern, strict=True) if there], source, target, salaris
        )
        for k, label in enumerate(wanted):
            text = _derive(deriver, label, names, rows, given, out[:, k], jacobian[:, k])
            how[label][text] = how[label].get(text, 0) + rows.size
    # Stars may come to a label by several ways; one is named, which most of them took.
    usual = {name: max(ways, key=ways.__getitem__) for name, ways in how.items() if ways}
    if unmoved and _UNDERIVED in usual.values():
        raise ConfigError(unmoved[0])
    return Converted(tuple(wanted), out, _propagate(jacobian, spread, out), usual, assumed)


def _assumption(with_errors: bool, correlation: ArrayLike) -> str:
    if not with_errors:
        return "no errors were given"
    if np.ndim(correlation) == 0:
        rho = float(np.asarray(correlation))
        return "errors taken as independent" if rho == 0 else f"errors taken as correlated {rho:g}"
    return "errors taken as correlated by a given matrix"


def _shifts(
    names: Sequence[str], source: Convention, target: Convention
) -> tuple[Float64Array, list[str]]:
    """Change of scale of every label; NaN, and a reason, where it cannot be known."""
    out, reasons = np.zeros(len(names)), []
    for k, name in enumerate(names):
        try:
            out[k] = scale_shift(name, source, target)
        except ConfigError as error:
            out[k] = np.nan
            reasons.append(str(error))
    return out, reasons


def _derive(
    deriver: _Deriver,
    label: str,
    names: Sequence[str],
    rows: IndexArray,
    given: Float64Array,
    out: Float64Array,
    jacobian: Float64Array,
) -> str:
    """Write one wanted label of some rows, and its derivatives; return in words how."""
    terms = deriver.terms(label)
    if terms is None and label == "m_h" and deriver.salaris:
        return _derive_salaris(deriver, names, rows, given, out, jacobian)
    if terms is None:
        return _UNDERIVED
    index = np.array([names.index(name) for name in terms], dtype=np.intp)
    weights = np.array(list(terms.values()))
    out[rows] = given[np.ix_(rows, index)] @ weights
    jacobian[np.ix_(rows, index)] = weights
    return _in_words(terms)


def _derive_salaris(
    deriver: _Deriver,
    names: Sequence[str],
    rows: IndexArray,
    given: Float64Array,
    out: Float64Array,
    jacobian: Float64Array,
) -> str:
    iron, alpha = deriver.terms("fe_h"), deriver.terms("alpha_fe")
    if iron is None or alpha is None:
        return _UNDERIVED
    vectors = []
    for terms in (iron, alpha):
        vector = np.zeros(len(names))
        vector[[names.index(name) for name in terms]] = list(terms.values())
        vectors.append(vector)
    # Labels outside the sum have weight 0, but 0 times NaN is NaN.
    clean = np.where(np.isfinite(given[rows]), given[rows], 0.0)
    fe_h, alpha_fe = clean @ vectors[0], clean @ vectors[1]
    out[rows] = metallicity_from_alpha(fe_h, alpha_fe)
    a, b = SALARIS_1993
    # d[M/H] / d[alpha/Fe]; that by [Fe/H] is one.
    slope = a * 10.0**alpha_fe / (a * 10.0**alpha_fe + b)
    jacobian[rows] = vectors[0] + slope[:, None] * vectors[1]
    return SALARIS_WAY


def _in_words(terms: _Terms) -> str:
    parts = []
    for name, weight in terms.items():
        # Shares of alpha elements add up with rounding errors.
        size = "" if abs(abs(weight) - 1.0) < 1e-12 else f"{abs(weight):.3g} "
        parts.append(f"{'-' if weight < 0 else '+'} {size}{name}")
    return " ".join(parts).removeprefix("+ ")


def _propagate(jacobian: Float64Array, spread: Float64Array, values: Float64Array) -> Float64Array:
    """C' = A C A^T, NaN where a label has no value or depends on one without error."""
    unknown = ~np.isfinite(np.diagonal(spread, axis1=1, axis2=2))
    # As zero here, for a label that is not used must not spoil the others; those that use it become
    # NaN below.
    clean = np.where(np.isfinite(spread), spread, 0.0)
    out = np.einsum("sij,sjk,slk->sil", jacobian, clean, jacobian, optimize=True)
    bad = ~np.isfinite(values) | ((jacobian != 0) & unknown[:, None, :]).any(axis=2)
    return np.where(bad[:, :, None] | bad[:, None, :], np.nan, out)
