"""Whether the errors of a model hold on stars that are not as its training sample was.

Held-out stars are predicted again and again, changed in one thing at a time: pixels and inputs
lost, photometry worse than it is said to be, companions, reddening, light that is not the star's.
What counts is whether labels keep within their errors, and whether those that do not are warned of.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from itertools import combinations
from pathlib import Path
from typing import Any, Self

import numpy as np

from maury.errors import ColumnError, ConfigError, MissingExtra
from maury.evaluation.library import Library, star_names
from maury.evaluation.pool import Pool
from maury.evaluation.stress_lines import FURTHER_LINES, LINES, Line, Scene
from maury.evaluation.validation import STARS, held_out_rows
from maury.io.arrays import AnyArray, BoolArray, Float64Array
from maury.labels.columns import for_correlation
from maury.labels.flags import Flag, warn
from maury.model.directory import Model
from maury.prediction.conformal import mahalanobis2
from maury.prediction.streaming import Predictor
from maury.spectra.batch import Batch
from maury.spectra.observable_groups import column
from maury.survey.store import Survey

SHOWN = ("teff", "logg", "m_h", "alpha_m")
"""Labels whose shares a table shows, where the model has them."""
SILENT_SIGMA = 3.0
"""Quoted errors beyond which a label that nothing warns of is silently wrong: .3 % would be."""
MOST_SPECTRA = 2000
"""Spectra of each line, spread over the survey: a share of two thirds is then known to 1 %."""


@dataclass(frozen=True)
class Share:
    """A share of the spectra and its sampling error, stars being the unit; None if of none."""

    share: float | None
    error: float | None

    @classmethod
    def of(cls, share: float, error: float) -> Self:
        """Take NaN for none."""
        return cls(*(float(x) if np.isfinite(x) else None for x in (share, error)))

    def __str__(self) -> str:
        return "-" if self.share is None else f"{100 * self.share:.0f}"


@dataclass(frozen=True)
class LineResult:
    """What became of the stars of one line.

    Attributes
    ----------
    name : str
    n_row, n_star : int
        Spectra, and the stars that they are of.
    within, within_two, within_quantiles : dict of str to Share
        Of each label: of the spectra that have it, those within one and two quoted errors, and
        between the outer quantiles.
    within_unwarned : dict of str to Share
        The same within one error, of the spectra that nothing warns of.
    missing : dict of str to Share
        Spectra without the label.
    rms, bias : dict of str to (float or None)
        Of each label, in its unit; bias is the median residual.
    unlabelled : Share
        Spectra without at least one label.
    silent : Share
        Off by more than three quoted errors in any label, and not warned of.
    wrong : Share
        Off by that much, warned of or not.
    warned : Share
    joint : Share
        Within the joint region of 95.4 %, of the spectra that have all labels; None if the model
        has none.
    flags : dict of str to int
        Spectra that have each flag.
    """

    name: str
    n_row: int
    n_star: int
    within: dict[str, Share]
    within_two: dict[str, Share]
    within_quantiles: dict[str, Share]
    within_unwarned: dict[str, Share]
    missing: dict[str, Share]
    rms: dict[str, float | None]
    bias: dict[str, float | None]
    unlabelled: Share
    silent: Share
    wrong: Share
    warned: Share
    joint: Share
    flags: dict[str, int]


@dataclass(frozen=True)
class StressReport:
    """What became of the stars in each line.

    Attributes
    ----------
    lines : tuple of LineResult
    omitted : dict of str to str
        Lines that this survey cannot have, and why.
    labels : tuple of str
    stars, survey, model, model_checksum : str
        Which stars, in words; names of survey and model; which model it is.
    simulated : bool
        Whether the spectra are simulated; then these figures say nothing about real spectra.
    """

    lines: tuple[LineResult, ...]
    omitted: dict[str, str]
    labels: tuple[str, ...]
    stars: str
    survey: str
    model: str
    model_checksum: str
    simulated: bool

    def to_json(self) -> str:
        """Return strict JSON; what could not be measured is null."""
        return json.dumps(asdict(self), indent=1, allow_nan=False) + "\n"

    @property
    def title(self) -> str:
        """One line that says what was measured, with the mark of simulated spectra."""
        mark = "SIMULATED spectra: " if self.simulated else ""
        most = max((line.n_row, line.n_star) for line in self.lines) if self.lines else (0, 0)
        spectra = f"{most[0]} spectra of {most[1]} stars"
        return f"{mark}{spectra} ({self.stars}), one thing changed at a time"

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table as text, in percent: the header, then one row per line."""
        return table({"": json.loads(self.to_json())})


def stress(
    model: Model | Path | str,
    survey: Survey | Path | str,
    *,
    split: str = "test",
    only: Sequence[str] = (),
    further: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> StressReport:
    """Predict stars whose labels are known, changed in one thing at a time, and compare.

    Parameters
    ----------
    model, survey
        The model and a survey with labels, or their paths.
    split : {"test", "unseen", "validation", "train"}
        Which stars, as of `maury.evaluation.validation.held_out_rows`.
    only : sequence of str
        Names of lines, or parts of names; all lines if it is empty.
    further : bool
        Take the lines of other strengths and other sets of inputs, after the unchanged stars.
    progress : callable, optional
        Called with (lines done, lines in all).

    Raises
    ------
    ColumnError
        If the survey has no values of any label of the model.
    ConfigError
        If the survey has no such stars, or there is no such line.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    chosen = _chosen((LINES[0], *FURTHER_LINES) if further else LINES, only)
    rows = held_out_rows(model, survey, split=split)
    batch = survey.rows(rows[:: -(-rows.size // MOST_SPECTRA)])
    predictor, library = Predictor(model), cache(partial(Library.of, survey))
    results, omitted = [], {}
    for number, line in enumerate(chosen):
        # Of the line alone, so that the others change nothing of it.
        rng = np.random.default_rng(zlib.crc32(line.name.encode()))
        try:
            changed = line.change(batch, Scene(library, rng))
        except (ColumnError, ConfigError, MissingExtra) as error:
            omitted[line.name] = str(error)
        else:
            results.append(measure(line.name, predictor, changed))
        if progress is not None:
            progress(number + 1, len(chosen))
    return StressReport(
        lines=tuple(results),
        omitted=omitted,
        labels=model.label_names,
        stars=STARS[split],
        survey=survey.path.name,
        model="" if model.path is None else Path(model.path).name,
        model_checksum=model.checksum,
        simulated=survey.simulated,
    )


def _chosen(lines: Sequence[Line], only: Sequence[str]) -> list[Line]:
    """Lines of these names, or with such parts in their names where no line has that name."""
    names = {line.name for line in lines}

    def meant(part: str, name: str) -> bool:
        return part == name or (part not in names and part in name)

    chosen = [line for line in lines if not only or any(meant(part, line.name) for part in only)]
    if not chosen:
        raise ConfigError(
            f"no line is named {', '.join(only)}; there are: {'; '.join(sorted(names))}"
        )
    return chosen


def measure(name: str, predictor: Predictor, batch: Batch) -> LineResult:
    """Predict some stars, whose labels are columns of theirs, and compare."""
    labels = predictor.model.label_names
    found = predictor.predict(batch)
    truth = np.column_stack([column(batch, label) for label in labels])
    pool = Pool.of(found, truth, labels=labels, star=star_names(batch))
    known, given = np.isfinite(truth), np.isfinite(pool.residual)
    warned = warn(found["flags"])
    wrong = np.any(np.abs(pool.residual) > SILENT_SIGMA * pool.error, axis=1)

    def one(where: BoolArray) -> Share:
        share, error = pool.share(where[:, None])
        return Share.of(share[0], error[0])

    def each(where: BoolArray, among: BoolArray) -> dict[str, Share]:
        found = zip(labels, *pool.share(where, among), strict=True)
        return {label: Share.of(share, error) for label, share, error in found}

    def number(label: str, of: Callable[[Float64Array], Any]) -> float | None:
        values = pool.residual[:, labels.index(label)]
        values = values[np.isfinite(values)]
        return float(of(values)) if values.size else None

    return LineResult(
        name=name,
        n_row=len(batch),
        n_star=int(np.unique(pool.star).size),
        within=each(pool.inside(1.0), given),
        within_two=each(pool.inside(2.0), given),
        within_quantiles=each(pool.held, given),
        within_unwarned=each(pool.inside(1.0), given & ~warned[:, None]),
        missing=each(~given, known),
        rms={label: number(label, lambda x: np.sqrt(np.mean(x**2))) for label in labels},
        bias={label: number(label, np.median) for label in labels},
        unlabelled=one(np.any(known & ~given, axis=1)),
        silent=one(wrong & ~warned),
        wrong=one(wrong),
        warned=one(warned),
        joint=_joint(predictor.model, found, pool),
        flags={str(flag.name): n for flag in Flag if (n := int(np.sum(found["flags"] & flag > 0)))},
    )


def _joint(model: Model, found: Mapping[str, AnyArray], pool: Pool) -> Share:
    """Share of the spectra within the joint region of 95.4 %."""
    radii = model.arrays("calibration").get("joint") if "calibration" in model.attachments else None
    pairs = [
        (for_correlation(first, second).name, i, j)
        for (i, first), (j, second) in combinations(enumerate(model.labels), 2)
    ]
    if radii is None or any(name not in found for name, *_ in pairs):
        return Share(None, None)
    covariance = pool.error[:, :, None] * pool.error[:, None, :]
    for name, i, j in pairs:
        covariance[:, i, j] *= found[name]
        covariance[:, j, i] *= found[name]
    distance2 = mahalanobis2(pool.residual, covariance)
    known = np.isfinite(distance2)[:, None]
    share, error = pool.share(distance2[:, None] < radii[-1], known)
    return Share.of(share[0], error[0])


def table(reports: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """Set reports side by side: a header, then one row of text per line, in percent.

    Parameters
    ----------
    reports : mapping of str to mapping
        A name for each, such as ``before`` and ``after``, and what `StressReport.to_json` holds.

    Returns
    -------
    list of tuple of str
        Lines in the order of the first report that has them; ``-`` where there is no figure.
    """
    first = next(iter(reports.values()))
    labels = [label for label in SHOWN if label in first["labels"]] or list(first["labels"])
    heads = (f"within: {' '.join(labels)}", *_SHARES)
    by_name = {
        name: {line["name"]: line for line in report["lines"]} for name, report in reports.items()
    }
    lines = dict.fromkeys(line for known in by_name.values() for line in known)
    header = ("changed", *(f"{head} {name}".strip() for head in heads for name in reports))
    rows = [
        (
            line,
            *(_cell(known.get(line), head, labels) for head in heads for known in by_name.values()),
        )
        for line in lines
    ]
    return [header, *rows]


def reasons(report: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return which warnings each line raised: a header, then one row of text per line, in percent.

    Parameters
    ----------
    report : mapping
        What `StressReport.to_json` holds.

    Returns
    -------
    list of tuple of str
        A column for each flag that warns anywhere; a spectrum may have several flags, or none
        (``none``); empty where no spectrum has the flag.
    """
    lines = report["lines"]
    raised = {name for line in lines for name in line["flags"]}
    flags = [str(flag.name) for flag in Flag if flag.warns and flag.name in raised]
    rows = [
        (
            line["name"],
            f"{100 * (1.0 - line['warned']['share']):.0f}",
            *(
                f"{100 * line['flags'][name] / line['n_row']:.0f}" if name in line["flags"] else ""
                for name in flags
            ),
        )
        for line in lines
    ]
    return [("changed", "none", *flags), *rows]


_SHARES = ("unlabelled", "silent", "warned")


def _cell(line: Mapping[str, Any] | None, head: str, labels: Sequence[str]) -> str:
    if line is None:
        return "-"
    if head in _SHARES:
        share = Share(**line[head])
        if share.share is None or share.error is None:
            return "-"
        return f"{100 * share.share:.1f} +- {100 * share.error:.1f}"
    return " ".join(str(Share(**line["within"][label])) for label in labels)
