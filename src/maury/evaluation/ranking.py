"""What a comparison of methods found: statistics by kind of star, agreement, losses, tables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.io.arrays import BoolArray, Float64Array
from maury.io.files import writing
from maury.io.tables import write_ecsv
from maury.labels.definitions import Label
from maury.labels.statistics import MAD_TO_SIGMA, LabelStatistics, residual_statistics, robust_sigma

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["CONSENSUS", "GIVEN", "Loss", "MethodPredictions", "Ranking", "RankingEntry", "View"]


CONSENSUS = "consensus"
GIVEN = "as given"
ALL = "all"
SPECTRUM = "spectrum"
_GIANT_LOGG = 3.5
"""Between the foot of the red giant branch and the subgiants: the usual border of dwarfs and
giants."""
_SNR_EDGES = (0.0, 40.0, 60.0, np.inf)
"""22, 37 and 41 % of the RAVE x APOGEE training spectra."""
_METAL_EDGES = (-np.inf, -0.5, 0.0, np.inf)
"""Metal-poor (9 % of the RAVE x APOGEE training spectra), below the Sun (58 %), and above it."""
_FEWEST = 20
"""With fewer stars the robust scatter is known to a quarter at best, and no difference is
significant."""
_BOOTSTRAP = 200
"""Resamples: the error of a difference is then known to 5 %, enough for a border at two of it."""
_SIGNIFICANT = 2.0
"""A loss by less would be listed for one label in twenty by chance alone."""
_OUTLIER = 5.0
"""Robust sigmas beyond which a residual is a failure: a normal distribution has one in two million
there."""


@dataclass(frozen=True, eq=False)
class MethodPredictions:
    """Predictions of one method for the test stars.

    Attributes
    ----------
    name : str
    inputs : str
        What it sees, in words.
    mean, sigma : (n_star, n_label) float64
        Labels and quoted errors; NaN where it gives none.
    warned : (n_star,) bool
    ms : float
        CPU milliseconds per spectrum, preparation included; NaN if not measured.
    train_s : float
        CPU seconds of training, mean over folds; NaN if it was trained elsewhere.
    """

    name: str
    inputs: str
    mean: Float64Array
    sigma: Float64Array
    warned: BoolArray
    ms: float = float("nan")
    train_s: float = float("nan")


@dataclass(frozen=True, eq=False)
class View:
    """One set of spectra of the test stars.

    Attributes
    ----------
    name : str
        `GIVEN`, or the simulated S/N.
    truth : (n_star, n_label) float64
    snr : (n_star,) float64
    predictions : tuple of MethodPredictions
    bounds : mapping of str to (n_star, n_label) float64
        Least errors that such spectra allow, for each kind of `MethodPredictions.inputs`;
        of simulated spectra only.
    """

    name: str
    truth: Float64Array
    snr: Float64Array
    predictions: tuple[MethodPredictions, ...]
    bounds: Mapping[str, Float64Array] = field(default_factory=dict)

    def of(self, name: str) -> MethodPredictions | None:
        """Return the predictions of a method, or None."""
        return next((one for one in self.predictions if one.name == name), None)


@dataclass(frozen=True)
class RankingEntry:
    """Residuals of one label by one method, of one kind of stars.

    Attributes
    ----------
    view, method, inputs, stars : str
    unanswered : float
        Share of stars without an answer.
    outliers : float
        Share of predictions farther off than five times the robust scatter.
    statistics : LabelStatistics
    """

    view: str
    method: str
    inputs: str
    stars: str
    unanswered: float
    outliers: float
    statistics: LabelStatistics

    def to_dict(self) -> dict[str, Any]:
        """Return a plain flat mapping; what could not be measured is None."""
        own = {k: v for k, v in asdict(self).items() if k != "statistics"}
        own["outliers"] = _none(self.outliers)
        return {**own, **self.statistics.to_dict()}


@dataclass(frozen=True)
class Loss:
    """Where one method is better than another, beyond the sampling error of their difference.

    Attributes
    ----------
    view, stars, label, unit : str
    n : int
        Stars that both answer.
    loser, winner : str
    scatter, better : float
        Robust scatter of the two.
    significance : float
        Difference over its standard deviation (paired bootstrap over stars).
    """

    view: str
    stars: str
    label: str
    unit: str
    n: int
    loser: str
    winner: str
    scatter: float
    better: float
    significance: float

    def __str__(self) -> str:
        digits = 0 if self.unit == "K" else 3
        return (
            f"{self.loser} loses to {self.winner} in {self.label} ({self.stars}, {self.view}): "
            f"{self.scatter:.{digits}f} against {self.better:.{digits}f} {self.unit}, "
            f"{self.significance:.1f} sigma, {self.n} spectra"
        )


@dataclass(frozen=True, eq=False)
class Ranking:
    """Result of a comparison.

    Attributes
    ----------
    labels : tuple of Label
    views : tuple of View
        The spectra as given, then simulated ones.
    not_run : mapping of str to str
        Methods that could not be trained, and why.
    survey : str
    simulated : bool
        Whether the spectra of the survey are simulated.
    folds, seed : int
    noted : mapping
        Further settings, plain JSON.
    """

    labels: tuple[Label, ...]
    views: tuple[View, ...]
    not_run: Mapping[str, str]
    survey: str
    simulated: bool
    folds: int
    seed: int
    noted: Mapping[str, Any] = field(default_factory=dict)

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods, in order."""
        return tuple(one.name for one in self.views[0].predictions)

    @property
    def title(self) -> str:
        """One line that says what was compared."""
        view = self.views[0]
        mark = "SIMULATED spectra: " if self.simulated else ""
        rule = f"{self.folds} folds" if self.folds > 1 else "one split"
        return f"{mark}{len(view.truth)} test spectra of {self.survey}, {rule} by star"

    def subsets(self, view: View) -> dict[str, BoolArray]:
        """Kinds of stars, by the S/N of the view and the true labels."""
        names = [label.name for label in self.labels]
        out = {ALL: np.ones(len(view.truth), dtype=np.bool_)}
        # Simulated views are of one S/N each; there is nothing to divide.
        if view.name == GIVEN:
            for low, high in pairwise(_SNR_EDGES):
                out[f"S/N {_range(low, high)}"] = (view.snr >= low) & (view.snr < high)
        if "logg" in names:
            logg = view.truth[:, names.index("logg")]
            out |= {"giants": logg < _GIANT_LOGG, "dwarfs": logg >= _GIANT_LOGG}
        metals = next((name for name in ("m_h", "fe_h") if name in names), None)
        if metals is not None:
            value = view.truth[:, names.index(metals)]
            symbol = self.labels[names.index(metals)].symbol
            for low, high in pairwise(_METAL_EDGES):
                out[f"{symbol} {_range(low, high)}"] = (value >= low) & (value < high)
        return out

    @cached_property
    def entries(self) -> tuple[RankingEntry, ...]:
        """Statistics of every label, method, kind of star and view."""
        return tuple(self._entries())

    def _entries(self) -> Iterator[RankingEntry]:
        for view in self.views:
            for stars, chosen in self.subsets(view).items():
                truth = view.truth[chosen]
                for one in view.predictions:
                    mean, sigma = one.mean[chosen], one.sigma[chosen]
                    found = residual_statistics(truth, mean, sigma, labels=self.labels)
                    for k, statistics in enumerate(found):
                        known = np.isfinite(truth[:, k])
                        # A method that is silent where it would fail must not look better for it:
                        # silence is counted.
                        silent = known & ~np.isfinite(mean[:, k])
                        yield RankingEntry(
                            view.name,
                            one.name,
                            one.inputs,
                            stars,
                            float(silent.sum() / max(known.sum(), 1)),
                            _outliers(mean[:, k] - truth[:, k]),
                            statistics,
                        )

    def of(
        self, method: str, label: str, *, view: str = GIVEN, stars: str = ALL
    ) -> RankingEntry | None:
        """Return the entry of one method in one label, or None."""
        return self._index.get((view, method, stars, label))

    @cached_property
    def _index(self) -> dict[tuple[str, str, str, str], RankingEntry]:
        # Tables and figures ask for thousands of entries one by one.
        return {(s.view, s.method, s.stars, s.statistics.name): s for s in self.entries}

    def agreement(self, label: str, *, view: str = GIVEN) -> Float64Array:
        """Robust scatter of the difference of each pair of methods, (n_method, n_method)."""
        chosen = next(one for one in self.views if one.name == view)
        k = [one.name for one in self.labels].index(label)
        values = [one.mean[:, k] for one in chosen.predictions]
        out = np.zeros((len(values), len(values)))
        for i, first in enumerate(values):
            for j, second in enumerate(values[:i]):
                out[i, j] = out[j, i] = robust_sigma(first - second)
        return out

    def losses(self, method: str) -> list[Loss]:
        """Say where another method with no more inputs is better; the best of them each time."""
        return list(self._losses(method))

    def _losses(self, method: str) -> Iterator[Loss]:
        for view in self.views:
            own = view.of(method)
            if own is None:
                continue
            # Photometry decides log g: a method of spectra alone has not lost to one that sees it.
            rivals = [
                one
                for one in view.predictions
                if one.name not in (method, CONSENSUS)
                and (one.inputs == SPECTRUM or own.inputs != SPECTRUM)
            ]
            for stars, chosen in self.subsets(view).items():
                for k, label in enumerate(self.labels):
                    found = [
                        loss
                        for rival in rivals
                        if (loss := _compare(view, own, rival, chosen, k, stars, label))
                    ]
                    if found:
                        yield min(found, key=lambda loss: loss.better)

    def to_table(self) -> Table:
        """Return all statistics, one row per view, method, kind of star and label."""
        from astropy.table import Table

        rows = [_flat(entry) for entry in self.entries]
        table = Table(rows=rows)
        table.meta = {"maury": self._about()}
        return table

    def _about(self) -> dict[str, Any]:
        return {
            "title": self.title,
            "simulated": self.simulated,
            "survey": self.survey,
            "folds": self.folds,
            "seed": self.seed,
            "not_run": dict(self.not_run),
            "speed": {
                one.name: {"inputs": one.inputs, "ms": _none(one.ms), "train_s": _none(one.train_s)}
                for one in self.views[0].predictions
            },
            **dict(self.noted),
        }

    def to_json(self) -> str:
        """All that was measured, as JSON text."""
        whole = {
            **self._about(),
            # The key of files written before the entries were called a ranking.
            "standings": [entry.to_dict() for entry in self.entries],
            "agreement": {
                label.name: [[_none(float(x)) for x in row] for row in self.agreement(label.name)]
                for label in self.labels
            },
            "scatter_over_bound": {
                view.name: {
                    name: [_none(ratio) for ratio in ratios]
                    for name, ratios in self.over_bound(view).items()
                }
                for view in self.views
                if view.bounds
            },
            "methods": list(self.methods),
            "losses": [
                asdict(loss)
                for name in self.methods
                if name.split("-")[0] == "maury"
                for loss in self.losses(name)
            ],
        }
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    def write(self, directory: Path | str, *, overwrite: bool = False) -> None:
        """Write ``comparison.json`` and ``comparison.ecsv`` into a directory."""
        folder = Path(directory)
        with writing(folder / "comparison.json", overwrite=overwrite) as partial:
            partial.write_text(self.to_json(), "utf-8")
        with writing(folder / "comparison.ecsv", overwrite=overwrite) as partial:
            write_ecsv(partial, self.to_table())

    def scatter_rows(self, *, view: str = GIVEN, stars: str = ALL) -> list[tuple[str, ...]]:
        """Robust scatter of each method in each label as text, the header first."""
        header = ("method", *(label.symbol for label in self.labels))
        rows = [header]
        for name in self.methods:
            cells = []
            for label in self.labels:
                found = self.of(name, label.name, view=view, stars=stars)
                value = np.nan if found is None else found.statistics.scatter_robust
                cells.append(_number(value, 0 if label.unit == "K" else 3))
            rows.append((name, *cells))
        return rows

    def over_bound(self, view: View) -> dict[str, list[float]]:
        """Scatter of each method over the Cramer-Rao bound, per label: of the ratios, robust."""
        return {
            one.name: [
                robust_sigma((one.mean - view.truth)[:, k] / view.bounds[one.inputs][:, k])
                for k in range(len(self.labels))
            ]
            for one in view.predictions
            if one.inputs in view.bounds
        }

    def bound_rows(self, view: View) -> list[tuple[str, ...]]:
        """Scatter over bound as text, after a header; without bounds the header alone."""
        header = ("method", *(label.symbol for label in self.labels))
        ratios = self.over_bound(view).items()
        return [header, *((name, *(_number(x, 2) for x in row)) for name, row in ratios)]

    def summary_rows(self, *, view: str = GIVEN) -> list[tuple[str, ...]]:
        """Return inputs, calibration, failures and cost of each method as text, after a header."""
        header = (
            "method",
            "inputs",
            "slope",
            "robust z",
            "in 1 sigma",
            "failed %",
            "out. %",
            "ms",
            "train s",
        )
        rows: list[tuple[str, ...]] = [header]
        chosen = next(one for one in self.views if one.name == view)
        for one in chosen.predictions:
            found = [self.of(one.name, label.name, view=view) for label in self.labels]
            given = [s for s in found if s is not None and s.statistics.n]
            rows.append(
                (
                    one.name,
                    one.inputs.replace("spectrum, ", "+ "),
                    _number(_middle([s.statistics.slope for s in given]), 2),
                    _number(_middle([s.statistics.z_scatter_robust for s in given]), 2),
                    _number(_middle([s.statistics.coverage_1sigma for s in given]), 2),
                    _number(100 * _middle([s.unanswered for s in given]), 1),
                    _number(100 * _middle([s.outliers for s in given]), 1),
                    _number(one.ms, 3 if one.ms < 1 else 1),
                    _number(one.train_s, 0),
                )
            )
        return rows


def _compare(
    view: View,
    own: MethodPredictions,
    rival: MethodPredictions,
    chosen: BoolArray,
    k: int,
    stars: str,
    label: Label,
) -> Loss | None:
    truth = view.truth[chosen, k]
    first, second = own.mean[chosen, k] - truth, rival.mean[chosen, k] - truth
    both = np.isfinite(first) & np.isfinite(second)
    first, second = first[both], second[both]
    if first.size < _FEWEST:
        return None
    scatter, better = robust_sigma(first), robust_sigma(second)
    # Not `better >= scatter`, which a NaN would pass.
    if not better < scatter:
        return None
    # Paired: both methods err together on a bad spectrum, and the same stars are drawn for both.
    drawn = np.random.default_rng(0).integers(0, first.size, (_BOOTSTRAP, first.size))
    spread = float(np.std(_robust(first[drawn]) - _robust(second[drawn])))
    significance = (scatter - better) / max(spread, 1e-12)
    if significance < _SIGNIFICANT:
        return None
    return Loss(
        view.name,
        stars,
        label.symbol,
        label.unit,
        int(first.size),
        own.name,
        rival.name,
        scatter,
        better,
        float(significance),
    )


def _robust(rows: Float64Array) -> Float64Array:
    middle = np.median(rows, axis=1, keepdims=True)
    return np.asarray(MAD_TO_SIGMA * np.median(np.abs(rows - middle), axis=1))


def _outliers(residual: Float64Array) -> float:
    known = residual[np.isfinite(residual)]
    if known.size == 0:
        return float("nan")
    return float(np.mean(np.abs(known - np.median(known)) > _OUTLIER * robust_sigma(known)))


def _range(low: float, high: float) -> str:
    if not np.isfinite(high):
        return f">= {low:g}"
    positive = low == 0.0 and high > 1.0
    return f"< {high:g}" if positive or not np.isfinite(low) else f"{low:g} to {high:g}"


def _flat(entry: RankingEntry) -> dict[str, Any]:
    return {key: float("nan") if value is None else value for key, value in entry.to_dict().items()}


def _none(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _middle(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"
