"""How good a model is on stars that took no part in making it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ColumnError, ConfigError, check_known
from maury.io.arrays import AnyArray, Float64Array, Int64Array, StrArray
from maury.labels.columns import stated_error
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import (
    NOMINAL_1SIGMA,
    NOMINAL_2SIGMA,
    LabelStatistics,
    residual_statistics,
)
from maury.model.directory import Model
from maury.prediction.streaming import predict_rows
from maury.simulation.bound import LabelBound, ObservedModes, compare_with_bound, covers
from maury.simulation.conditions import known_conditions
from maury.simulation.learnt_bound import compare_with_learnt_bound
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.operators import vacuum_to_air
from maury.survey.store import Survey

STARS = {
    "test": "held-out test stars",
    "validation": "validation stars, which chose the networks or calibrate their errors",
    "train": "training stars",
    "unseen": "stars that took no part in training, choice or calibration",
}
"""Which stars can be measured, in words."""
HEADER = (
    "label",
    "unit",
    "n",
    "bias",
    "median",
    "sigma",
    "robust sigma",
    "rms",
    "slope",
    "corr.",
    "in 1 sigma",
    "in 2 sigma",
    "robust z",
    "rank corr.",
    "sigma / bound",
    "as observed",
)
"""Names of the columns of `ValidationReport.rows`."""
_MOST_BOUNDS = 1000
"""A bound takes a millisecond a star; the ratio of scatters is known to some 3 % from a
thousand."""


@dataclass(frozen=True)
class ValidationReport:
    """Statistics of a model on stars whose labels are known.

    Attributes
    ----------
    statistics : tuple of LabelStatistics
        One per label of the model.
    simulated : bool
        Whether the spectra are simulated; then these figures say nothing about real spectra.
    n_row, n_star : int
        Spectra measured, and the stars that they are of.
    n_warn : int
        Spectra with a warning flag; they are measured like the others.
    stars : str
        Which stars, in words.
    model, model_checksum, survey : str
        Names of the model and the survey; which model it is.
    warning : str
        Why the stars are not an independent test; empty if they are.
    bounds : tuple of LabelBound
        Residuals over the least that such spectra allow (`maury.simulation.bound`); empty unless
        the model has the nine labels of `maury.labels.definitions.LABELS`, and the emulator the
        survey's pixels.
    bounds_as_observed : tuple of LabelBound
        The same with the scatter of the continuum, its level included, and of the Ca II cores as
        the model measured them on its training stars; empty unless it did.
    with_photometry : bool
        Whether the model sees photometry, so that "sigma / bound" is over the bound with it.
    """

    statistics: tuple[LabelStatistics, ...]
    simulated: bool
    n_row: int
    n_star: int
    n_warn: int
    stars: str
    model: str = ""
    survey: str = ""
    warning: str = ""
    bounds: tuple[LabelBound, ...] = ()
    bounds_as_observed: tuple[LabelBound, ...] = ()
    with_photometry: bool = True
    model_checksum: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return a plain mapping; what could not be measured is None."""
        measured = ("statistics", "bounds", "bounds_as_observed")
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in measured}
        return plain | {name: [one.to_dict() for one in getattr(self, name)] for name in measured}

    def to_json(self) -> str:
        """Return strict JSON; what could not be measured is null."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    @property
    def title(self) -> str:
        """One line that says what was measured, with the mark of simulated spectra."""
        mark = "SIMULATED spectra: " if self.simulated else ""
        warned = f", {self.n_warn} spectra with a warning flag" if self.n_warn else ""
        caution = f"; {self.warning}" if self.warning else ""
        stars = f"{self.n_row} spectra of {self.n_star} stars"
        return f"{mark}{stars} ({self.stars}{warned}){caution}"

    def rows(self) -> list[tuple[str, ...]]:
        """Return a table as text: the header, then one row per label."""
        both = [self._ratios(bounds) for bounds in (self.bounds, self.bounds_as_observed)]
        rows = [
            _table_row(one, [ratios.get(one.name, np.nan) for ratios in both])
            for one in self.statistics
        ]
        return [HEADER, *rows]

    def plot(self, ax: Any = None) -> Any:
        """Draw which share of the residuals lies within one and two quoted errors; return the axes.

        Dashed: what right, normal errors give. Beside each label stands its robust scatter.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default new axes of pyplot.
        """
        n_label = len(self.statistics)
        if ax is None:
            from matplotlib import pyplot

            size = (5.0, 1.4 + 0.28 * n_label)
            ax = pyplot.figure(figsize=size, layout="constrained").subplots()
        rows = np.arange(n_label)
        for number, nominal, colour, marker in (
            (1, NOMINAL_1SIGMA, "#d55e00", "o"),
            (2, NOMINAL_2SIGMA, "#0072b2", "s"),
        ):
            ax.axvline(nominal, color=colour, lw=0.8, ls="--")
            share, error = (
                [getattr(one, f"coverage_{number}sigma{end}") for one in self.statistics]
                for end in ("", "_error")
            )
            text = f"within {number} quoted error{'s' * (number > 1)}"
            ax.errorbar(share, rows, xerr=error, fmt=marker, color=colour, ms=4, label=text)
        names = [f"{one.symbol}  {one.scatter_robust:.2g} {one.unit}" for one in self.statistics]
        ax.set_yticks(rows, names)
        # Room below the labels for the legend.
        ax.set(xlim=(0.0, 1.02), ylim=(n_label + 1.1, -0.6), xlabel="share of spectra")
        ax.legend(frameon=False, loc="lower left")
        mark = "SIMULATED, " if self.simulated else ""
        ax.set_title(f"{mark}{self.n_row} spectra, {self.stars}", loc="left", fontsize="medium")
        return ax

    def _ratios(self, bounds: tuple[LabelBound, ...]) -> dict[str, float]:
        name = "ratio_with_photometry" if self.with_photometry else "ratio_spectrum_alone"
        return {one.name: getattr(one.overall, name) for one in bounds}


def validate(
    model: Model | Path | str,
    survey: Survey | Path | str | None = None,
    *,
    split: str = "test",
    with_bounds: bool = True,
) -> ValidationReport:
    """Predict stars whose labels are known, and compare.

    Parameters
    ----------
    model, survey
        The model and a survey with labels, or their paths; by default the survey that the model was
        trained on, if it lies beside the model.
    split : {"test", "unseen", "validation", "train"}
        Which stars: those that the model's split held out, those that it knows nothing of, those
        that chose its networks or calibrate their errors, or those that trained them. A star that
        trained the networks is never counted among the first three, whatever the rule of the split.
    with_bounds : bool
        Whether to compute the least scatter that such spectra allow, which takes seconds.

    Returns
    -------
    ValidationReport
        Statistics per label over all chosen spectra, flagged or not.

    Raises
    ------
    ColumnError
        If the survey has no values of any label of the model.
    ConfigError
        If the survey has no such stars, or none is given and none lies there.
    """
    model = model if isinstance(model, Model) else Model.open(model)
    survey = _trained_on(model) if survey is None else survey
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    # Before anything is computed: the choice of rows may refuse, predictions may take minutes.
    rows = held_out_rows(model, survey, split=split)
    table = predict_rows(model, survey, rows)
    return compare_rows(model, survey, rows, table, split=split, with_bounds=with_bounds)


def _trained_on(model: Model) -> Path:
    """Find the survey of a model's training by its name, beside the model."""
    about = model.provenance.get("survey")
    name = about.get("name") if isinstance(about, Mapping) else None
    if model.path is not None and isinstance(name, str) and name and name == Path(name).name:
        beside = model.path.parent / name
        if beside.is_dir():
            return beside
    raise ConfigError(
        f"the survey that the model was trained on ({name or 'unknown'}) does not lie beside it; "
        "give a survey with labels"
    )


def compare_rows(
    model: Model,
    survey: Survey,
    rows: Int64Array,
    table: dict[str, AnyArray],
    *,
    split: str,
    with_bounds: bool,
) -> ValidationReport:
    """Compare the labels of some rows with what was predicted for them.

    Parameters
    ----------
    model, survey
    rows : (n,) int64
        Rows that `held_out_rows` gave for `split`.
    table : dict of str to (n,) array
        What `maury.prediction.predictor.Predictor.predict` gave for these rows.
    split : str
        Which stars these are.
    with_bounds : bool
        Whether to compute the least scatter that such spectra allow.
    """
    names = [label.name for label in model.labels]
    truth = survey.labels(model.labels)[rows]
    predicted = np.stack([table[name] for name in names], axis=1)
    error = np.stack([stated_error(table, name) for name in names], axis=1)
    bounds, as_observed = _bounds(model, survey, truth, table) if with_bounds else ((), ())
    return ValidationReport(
        statistics=tuple(residual_statistics(truth, predicted, error, labels=model.labels)),
        simulated=survey.simulated,
        n_row=int(rows.size),
        n_star=_count_stars(survey.star_id[rows]),
        n_warn=int(table["warn"].sum()),
        stars=STARS[split],
        model="" if model.path is None else Path(model.path).name,
        survey=survey.path.name,
        warning="" if split == "train" else model.split.warning,
        bounds=bounds,
        bounds_as_observed=as_observed,
        with_photometry=not bounds or bool(model.preparation.observables),
        model_checksum=model.checksum,
    )


def held_out_rows(model: Model, survey: Survey, *, split: str = "test") -> Int64Array:
    """Return the rows that `validate` measures: of such stars, with a label of the model.

    Parameters
    ----------
    model : Model
        Its split says which stars are which.
    survey : Survey
        Any survey with labels.
    split : {"test", "unseen", "validation", "train"}
        Which stars: those that the model's split held out, those that it knows nothing of, those
        that chose its networks or calibrate their errors, or those that trained them.

    Returns
    -------
    (n,) int64
        Row numbers, increasing.

    Raises
    ------
    ColumnError
        If the survey has no values of any label of the model.
    ConfigError
        If the survey has no such stars.
    """
    check_known("choice of stars", split, STARS)
    names = [label.name for label in model.labels]
    # One label suffices: statistics are taken label by label.
    labelled = np.isfinite(survey.labels(model.labels)).any(axis=1)
    if not labelled.any():
        raise ColumnError(
            f"{survey.path} has no values of {', '.join(names)}, with which to compare; "
            "give a survey with labels, or simulated stars on its pixels ('maury simulate OUT.zarr "
            f"--like {survey.path}'), and ask for --stars unseen; what was measured of the model "
            f"when it was trained, 'maury card {model.path}' prints"
        )
    record, star = model.split, survey.stars
    if split == "unseen":
        # By star, not by row: another spectrum of a training star is as well known as the first.
        chosen = ~star.whole(record.is_known(star))
    else:
        chosen = record.contains(split, star)
        if split != "train":
            # The published split puts spectra of one star on both sides; they are no test of
            # anything.
            chosen &= ~star.whole(record.contains("train", star))
    rows = np.flatnonzero(chosen & labelled)
    if rows.size == 0:
        raise ConfigError(
            f"none of the {int(labelled.sum())} labelled spectra of {survey.path} is of "
            f"{STARS[split]}; give the survey that the model was trained on, or take the stars "
            "that it knows nothing of (--stars unseen, in Python split='unseen')"
        )
    return rows


def _bounds(
    model: Model, survey: Survey, truth: Float64Array, table: dict[str, AnyArray]
) -> tuple[tuple[LabelBound, ...], tuple[LabelBound, ...]]:
    """Compare residuals with their bounds, if these can be computed; of some stars of many."""
    names = [label.name for label in model.labels]
    if TrainingStarSimulator.learnt_by(model):
        return _learnt_bounds(model, truth, table), ()
    # The emulator's line list is in air.
    wave_aa = survey.wave_aa if survey.medium == "air" else vacuum_to_air(survey.wave_aa)
    if not set(LABEL_NAMES) <= set(names) or not covers(wave_aa):
        return (), ()
    conditions = known_conditions(survey, model)
    if conditions is None:
        return (), ()
    chosen = slice(None, None, -(-len(truth) // _MOST_BOUNDS))

    def compare(modes: ObservedModes | None) -> tuple[LabelBound, ...]:
        return compare_with_bound(
            truth[chosen, [names.index(name) for name in LABEL_NAMES]],
            np.stack([table[name][chosen] for name in LABEL_NAMES], axis=1),
            table["snr"][chosen],
            wave_aa=wave_aa,
            noise_correlation=conditions.correlation,
            modes=modes,
            observing=conditions,
        )

    modes = _observed_modes(model, wave_aa)
    return compare(None), () if modes is None else compare(modes)


def _learnt_bounds(
    model: Model, truth: Float64Array, table: dict[str, AnyArray]
) -> tuple[LabelBound, ...]:
    """Bounds by the theory that a model learnt from its stars."""
    chosen = slice(None, None, -(-len(truth) // _MOST_BOUNDS))
    predicted = np.stack([table[label.name] for label in model.labels], axis=1)
    return compare_with_learnt_bound(
        TrainingStarSimulator.of_model(model),
        truth[chosen],
        predicted[chosen].astype(np.float64),
        np.asarray(table["snr"], dtype=np.float64)[chosen],
        noise_correlation=model.preparation.noise_correlation,
    )


def _observed_modes(model: Model, wave_aa: Float64Array) -> ObservedModes | None:
    """Return what the model measured of its survey, if it did, and at these pixels."""
    if "sky" not in model.attachments:
        return None
    arrays = model.arrays("sky")
    # Modes are per pixel, and mean nothing on another grid.
    if not np.array_equal(arrays["wave_aa"], wave_aa):
        return None
    return ObservedModes(arrays["calibration.continuum_modes"], arrays["calibration.core_modes"])


def _count_stars(star_id: StrArray) -> int:
    """Count stars; a row without an identifier is a star of its own, as in a split."""
    blank = int(np.count_nonzero(star_id == ""))
    return int(np.unique(star_id).size) + max(0, blank - 1)


def _table_row(s: LabelStatistics, over_bound: Sequence[float]) -> tuple[str, ...]:
    digits = 1 if s.unit == "K" else 3

    def number(value: float, places: int = 2) -> str:
        return f"{value:.{places}f}" if np.isfinite(value) else "-"

    def fraction(value: float, error: float) -> str:
        return f"{value:.2f} +- {error:.2f}" if np.isfinite(value) else "-"

    sizes = (s.bias, s.bias_robust, s.scatter, s.scatter_robust, s.rms)
    return (
        s.symbol,
        s.unit,
        str(s.n),
        *(number(value, digits) for value in sizes),
        number(s.slope),
        number(s.correlation),
        fraction(s.coverage_1sigma, s.coverage_1sigma_error),
        fraction(s.coverage_2sigma, s.coverage_2sigma_error),
        number(s.z_scatter_robust),
        number(s.error_rank_correlation),
        *(number(ratio) for ratio in over_bound),
    )
