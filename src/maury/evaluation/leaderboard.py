"""A benchmark of the field: every method on several surveys and seeds, on one page.

Of each `maury.evaluation.ranking.Ranking`, one survey and one seed, a row tells what a user asks of
a method: how near its labels come to the least error that the spectra allow, whether its errors
hold, how often it is wrong without a word, and what it costs. A leaderboard is the mean of these
rows over the seeds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maury.evaluation.ranking import MethodPredictions, Ranking
from maury.io.arrays import BoolArray, Float64Array
from maury.io.files import writing
from maury.io.tables import write_ecsv
from maury.labels.definitions import Label
from maury.labels.statistics import robust_sigma

if TYPE_CHECKING:
    from astropy.table import Table

__all__ = ["Leaderboard", "LeaderboardEntry", "SurveyRuns"]

_SILENT_SIGMA = 3.0
"""Stated errors beyond which a label is wrong: one honest normal error in 370 lies there."""
_LEAST_SPREAD = 1e-9
"""Labels that scatter less than this have no slope."""


@dataclass(frozen=True, eq=False)
class SurveyRuns:
    """Rankings of one survey, one for each seed.

    Attributes
    ----------
    rankings : tuple of Ranking
        The first view of each has bounds for all kinds of inputs, or for none.
    """

    rankings: tuple[Ranking, ...]

    @property
    def name(self) -> str:
        """Name of the survey, without its ending."""
        return Path(self.rankings[0].survey).stem

    @property
    def labels(self) -> tuple[Label, ...]:
        """Labels that were compared."""
        return self.rankings[0].labels

    @property
    def not_run(self) -> dict[str, str]:
        """Methods that could not be trained with some seed, and why."""
        return {name: why for one in self.rankings for name, why in one.not_run.items()}


@dataclass(frozen=True)
class LeaderboardEntry:
    """One method on one survey: means over the seeds. NaN where something was not measured.

    Attributes
    ----------
    survey, method, inputs : str
    n_seed, n_spectrum : int
        Seeds, and test spectra of all of them.
    over_bound, over_bound_error : float
        Geometric mean over the labels of the robust scatter of residual over the Cramer-Rao bound,
        and its error from seed to seed (NaN with one seed).
    slope : float
        Median over labels of the slope of predicted against true: a scatter is also made small by
        drawing labels towards their mean.
    within, within_lowest, within_highest : float
        Share of residuals within one stated error: mean, lowest and highest over the labels.
    silent, silent_error : float
        Share of spectra with a label off by more than three stated errors, and no warning; its
        binomial error.
    unanswered, warned : float
        Share of labels without an answer, and of spectra with a warning.
    ms, train_s : float
        CPU milliseconds a spectrum, and CPU seconds of training.
    scatter : mapping of str to float
        Robust scatter of the residuals by label, in its unit.
    """

    survey: str
    method: str
    inputs: str
    n_seed: int
    n_spectrum: int
    over_bound: float
    over_bound_error: float
    slope: float
    within: float
    within_lowest: float
    within_highest: float
    silent: float
    silent_error: float
    unanswered: float
    warned: float
    ms: float
    train_s: float
    scatter: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping; what could not be measured is None."""
        plain = {k: _none(v) for k, v in asdict(self).items() if k != "scatter"}
        return plain | {"scatter": {k: _none(v) for k, v in self.scatter.items()}}


@dataclass(frozen=True, eq=False)
class Leaderboard:
    """Methods side by side on several surveys.

    Attributes
    ----------
    surveys : tuple of SurveyRuns
    settings : mapping of str to mapping
        Settings other than the defaults, by name of method.
    """

    surveys: tuple[SurveyRuns, ...]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @cached_property
    def entries(self) -> tuple[LeaderboardEntry, ...]:
        """One entry for each survey and method; the best methods first, within each survey."""
        return tuple(
            entry
            for runs in self.surveys
            for entry in sorted(_entries(runs), key=lambda one: _last(one.over_bound))
        )

    @property
    def methods(self) -> tuple[str, ...]:
        """Names of all methods, those that see spectra alone first, the best of each first."""
        place: dict[str, tuple[bool, list[float]]] = {}
        for one in self.entries:
            known = place.setdefault(one.method, (one.inputs != "spectrum", []))
            known[1].append(_last(one.over_bound))
        order = {name: (helped, np.mean(np.log(v))) for name, (helped, v) in place.items()}
        return tuple(sorted(order, key=lambda name: order[name]))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the splits and of the methods."""
        return tuple(one.seed for one in self.surveys[0].rankings)

    def of(self, survey: str, method: str) -> LeaderboardEntry | None:
        """Return the entry of one method on one survey, or None."""
        found = (one for one in self.entries if (one.survey, one.method) == (survey, method))
        return next(found, None)

    def to_table(self) -> Table:
        """Return all entries; the scatter of a label that a survey lacks is NaN."""
        from astropy.table import Table

        names = list(dict.fromkeys(n for runs in self.surveys for n in _names(runs)))
        rows = []
        for one in self.entries:
            plain = {k: v for k, v in asdict(one).items() if k != "scatter"}
            rows.append(plain | {f"scatter_{n}": one.scatter.get(n, np.nan) for n in names})
        table = Table(rows=rows)
        table.meta = {"maury": self._about()}
        return table

    def _about(self) -> dict[str, Any]:
        return {
            "seeds": list(self.seeds),
            "simulated": {runs.name: runs.rankings[0].simulated for runs in self.surveys},
            "not_run": {runs.name: runs.not_run for runs in self.surveys},
            "settings": json.loads(json.dumps(self.settings, default=str)),
        }

    def to_json(self) -> str:
        """All that was measured, as JSON text."""
        whole = {**self._about(), "entries": [one.to_dict() for one in self.entries]}
        return json.dumps(whole, indent=1, allow_nan=False) + "\n"

    def rows(self, survey: str) -> list[tuple[str, ...]]:
        """Return the table of one survey as text, after a header."""
        header = (
            "method",
            "inputs",
            "over bound",
            "slope",
            "in 1 error %",
            "labels",
            "silent %",
            "none %",
            "warned %",
            "ms",
            "train s",
        )
        chosen = [one for one in self.entries if one.survey == survey]
        return [header, *(_row(one) for one in chosen)]

    def scatter_rows(self, survey: str) -> list[tuple[str, ...]]:
        """Robust scatter of each label on one survey as text, after a header."""
        runs = next(one for one in self.surveys if one.name == survey)
        chosen = [one for one in self.entries if one.survey == survey]
        body = [
            (
                one.method,
                *(
                    _text(one.scatter[label.name], 0 if label.unit == "K" else 3)
                    for label in runs.labels
                ),
            )
            for one in chosen
        ]
        return [("method", *(label.symbol for label in runs.labels)), *body]

    def to_markdown(self) -> str:
        """One page: what was measured how, the figure, and two tables for each survey."""
        parts = ["# Leaderboard", _EXPLAINED, "![Leaderboard](leaderboard.png)"]
        for runs in self.surveys:
            parts += [f"## {runs.name}", _about_survey(runs), _markdown(self.rows(runs.name))]
            parts += ["Robust scatter of each label:", _markdown(self.scatter_rows(runs.name))]
            if runs.not_run:
                parts.append("Not in the table:")
                parts.append("\n".join(f"- `{n}`: {why}" for n, why in runs.not_run.items()))
        shown = {name: told for name, told in self.settings.items() if name in self.methods}
        parts += ["## Settings", _about_settings(shown)]
        return "\n\n".join(parts) + "\n"

    def write(self, directory: Path | str, *, overwrite: bool = False) -> None:
        """Write ``leaderboard.md``, ``leaderboard.json`` and ``leaderboard.ecsv``."""
        folder = Path(directory)
        for name, text in (("md", self.to_markdown()), ("json", self.to_json())):
            with writing(folder / f"leaderboard.{name}", overwrite=overwrite) as partial:
                partial.write_text(text, "utf-8")
        with writing(folder / "leaderboard.ecsv", overwrite=overwrite) as partial:
            write_ecsv(partial, self.to_table())


_EXPLAINED = """\
Every method learns from the same stars of a survey and answers the same others; means over the
seeds, of which each divides the stars anew. **Over bound**: geometric mean over the labels of the
robust scatter of residual over the Cramer-Rao bound of each star, given the spectrum, the scatter
of the labels among the training stars, and photometry where the method sees it; +- is the error
from seed to seed. Read it with **slope**, the median over labels of predicted against true: scatter
is also made small by drawing labels towards their mean. **In 1 error**: share of the residuals
within one stated error, 68.3 % is right; **labels**: the range of it. **Silent**: spectra with a
label off by more than three stated errors that are not warned of. **None**: labels without an
answer. **ms**, **train s**: CPU time of one thread, a spectrum and a training, preparation and
calibration of the errors included. Methods that see photometry too (`+ photometry`) are no rivals
of those that do not."""


def _entries(runs: SurveyRuns) -> Iterator[LeaderboardEntry]:
    names = dict.fromkeys(name for one in runs.rankings for name in one.methods)
    for name in names:
        found = [(one, one.views[0].of(name)) for one in runs.rankings]
        yield _entry(runs.name, [(one, own) for one, own in found if own is not None])


def _entry(survey: str, found: Sequence[tuple[Ranking, MethodPredictions]]) -> LeaderboardEntry:
    first = found[0][1]
    over = [_over_bound(ranking, own.name) for ranking, own in found]
    statistics = [
        [one.statistics for label in ranking.labels if (one := ranking.of(own.name, label.name))]
        for ranking, own in found
    ]
    within = np.array([[s.coverage_1sigma for s in one] for one in statistics]).mean(axis=0)
    scatter = np.array([[s.scatter_robust for s in one] for one in statistics]).mean(axis=0)
    wrong = np.concatenate([_silent(ranking, own) for ranking, own in found])
    silent = float(wrong.mean())
    some = np.isfinite(within).any()
    return LeaderboardEntry(
        survey=survey,
        method=first.name,
        inputs=first.inputs,
        n_seed=len(found),
        n_spectrum=wrong.size,
        over_bound=float(np.mean(over)),
        over_bound_error=_error_of_mean(over),
        slope=_mean([_median([s.slope for s in one]) for one in statistics]),
        within=_mean(within),
        within_lowest=float(np.nanmin(within)) if some else float("nan"),
        within_highest=float(np.nanmax(within)) if some else float("nan"),
        silent=silent,
        silent_error=float(np.sqrt(silent * (1.0 - silent) / wrong.size)),
        unanswered=_mean([_unanswered(ranking, own) for ranking, own in found]),
        warned=_mean([float(own.warned.mean()) for _, own in found]),
        ms=_mean([own.ms for _, own in found]),
        train_s=_mean([own.train_s for _, own in found]),
        scatter=dict(zip(_names_of(found[0][0]), map(float, scatter), strict=True)),
    )


def _over_bound(ranking: Ranking, method: str) -> float:
    """Geometric mean over the labels of scatter over bound; NaN without bounds."""
    view = ranking.views[0]
    own = view.of(method)
    if own is None or own.inputs not in view.bounds:
        return float("nan")
    ratio = (own.mean - view.truth) / view.bounds[own.inputs]
    found = np.array([robust_sigma(ratio[:, k]) for k in range(ratio.shape[1])])
    known = found[np.isfinite(found) & (found > _LEAST_SPREAD)]
    return float(np.exp(np.mean(np.log(known)))) if known.size else float("nan")


def _silent(ranking: Ranking, own: MethodPredictions) -> BoolArray:
    """Spectra (n,) off by more than three stated errors in some label, and not warned of."""
    residual = np.abs(own.mean - ranking.views[0].truth)
    # Where label, answer or error is missing nothing is claimed: such comparisons are false.
    with np.errstate(invalid="ignore"):
        off = (residual > _SILENT_SIGMA * own.sigma).any(axis=1)
    return np.asarray(off & ~own.warned)


def _unanswered(ranking: Ranking, own: MethodPredictions) -> float:
    known = np.isfinite(ranking.views[0].truth)
    return float(np.mean(~np.isfinite(own.mean[known]))) if known.any() else float("nan")


def _error_of_mean(values: Sequence[float]) -> float:
    if len(values) < 2:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(len(values)))


def _mean(values: Sequence[float] | Float64Array) -> float:
    known = np.asarray(values, dtype=np.float64)
    known = known[np.isfinite(known)]
    return float(known.mean()) if known.size else float("nan")


def _median(values: Sequence[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def _last(value: float) -> float:
    """Return what sorts methods: those without a bound come last."""
    return value if np.isfinite(value) else np.inf


def _none(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value


def _names(runs: SurveyRuns) -> tuple[str, ...]:
    return _names_of(runs.rankings[0])


def _names_of(ranking: Ranking) -> tuple[str, ...]:
    return tuple(label.name for label in ranking.labels)


def _row(one: LeaderboardEntry) -> tuple[str, ...]:
    ends = [_text(100 * end, 0) for end in (one.within_lowest, one.within_highest)]
    return (
        one.method,
        one.inputs.replace("spectrum, ", "+ "),
        _with_error(one.over_bound, one.over_bound_error, 2),
        _text(one.slope, 2),
        _text(100 * one.within, 1),
        "-".join(ends),
        _with_error(100 * one.silent, 100 * one.silent_error, 1),
        _text(100 * one.unanswered, 1),
        _text(100 * one.warned, 1),
        _text(one.ms, 2 if one.ms < 10 else 1),
        _text(one.train_s, 0),
    )


def _text(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if np.isfinite(value) else "-"


def _with_error(value: float, error: float, digits: int) -> str:
    if not np.isfinite(error):
        return _text(value, digits)
    return f"{_text(value, digits)} +- {_text(error, digits)}"


def _markdown(rows: Sequence[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]])


def _about_survey(runs: SurveyRuns) -> str:
    first = runs.rankings[0]
    kind = "**Simulated** spectra. " if first.simulated else ""
    sizes = ", ".join(str(len(one.views[0].truth)) for one in runs.rankings)
    seeds = ", ".join(str(one.seed) for one in runs.rankings)
    return f"{kind}Test spectra: {sizes} (seeds {seeds}); {len(runs.labels)} labels."


def _about_settings(settings: Mapping[str, Mapping[str, Any]]) -> str:
    if not settings:
        return "All methods have their default settings."
    lines = ["All others have their default settings.", ""]
    for name, sections in settings.items():
        told = [f"{key} = {value}" for part in sections.values() for key, value in part.items()]
        lines.append(f"- `{name}`: {', '.join(told)}")
    return "\n".join(lines)
