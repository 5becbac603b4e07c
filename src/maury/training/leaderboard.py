"""Every method on several surveys and seeds: comparisons, and the bounds of their spectra."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError, MauryError
from maury.evaluation.leaderboard import Leaderboard, SurveyRuns
from maury.evaluation.ranking import SPECTRUM, Ranking
from maury.io.arrays import Float64Array, Int64Array
from maury.io.config_files import settings_of
from maury.io.files import writing
from maury.labels.definitions import LABEL_NAMES
from maury.simulation.bound import ObservedModes, Prior, cramer_rao
from maury.simulation.conditions import survey_conditions
from maury.simulation.learnt_bound import learnt_bound
from maury.simulation.missing_labels import fill_from_spectra
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.simulation.population import Population
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.preparation import Inputs, Preparation, take
from maury.survey.store import Survey
from maury.training.comparison import BOTH, Progress, compare, divided_rows
from maury.training.simulated_snr import fit_star_simulator
from maury.training.theory_choice import choose_theory

__all__ = ["bounds_as_given", "leaderboard"]

logger = logging.getLogger(__name__)
_LEAST_STARS = 100
"""Training stars below which no theory is learnt: eight for each of a dozen terms, as in training.
"""


def leaderboard(
    surveys: Sequence[Survey | Path | str],
    out: Path | str,
    *,
    methods: Sequence[str] = ("all",),
    seeds: Sequence[int] = (0, 1, 2),
    config: Mapping[str, Mapping[str, Any]] | Path | str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Leaderboard:
    """Compare methods on several surveys and seeds, and write one page.

    Each comparison lies in ``out/SURVEY-SEED`` (`maury.training.comparison.compare`), bounds beside
    it: a run that was killed, or is given more methods, seeds or surveys, goes on from there.

    Parameters
    ----------
    surveys : sequence of Survey or path-like
        Spectra with labels; their names without endings must differ.
    out : path-like
        Directory to write.
    methods : sequence of str
        As of `compare`.
    seeds : sequence of int
        Each divides the stars anew, and trains with it.
    config : mapping of str to mapping, or path of a TOML file, optional
        Settings by name of method, for all surveys.
    progress : callable, optional
        Called with what is being done (str), steps done and steps in all.
    overwrite : bool
        Discard what other comparisons left in `out`.

    Returns
    -------
    Leaderboard
        As written to ``leaderboard.md``, ``leaderboard.json`` and ``leaderboard.ecsv``.

    Raises
    ------
    ConfigError
        If two surveys have one name, no seed or survey is given, or no method could be run on one.
    UnknownName, ResumeMismatch
        As of `compare`.
    """
    opened = [one if isinstance(one, Survey) else Survey.open(one) for one in surveys]
    names = [_name(survey) for survey in opened]
    if not opened or not seeds:
        raise ConfigError("a leaderboard needs a survey and a seed at least")
    if len(set(names)) < len(names) or len(set(seeds)) < len(seeds):
        raise ConfigError(
            f"surveys and seeds of a leaderboard must differ, got {', '.join(names)} and "
            f"{', '.join(map(str, seeds))}; rename a store, or leave one out"
        )
    runs = []
    for survey in opened:
        rankings = []
        for seed in seeds:
            folder = Path(out) / f"{_name(survey)}-{seed}"
            found = compare(
                survey,
                folder,
                methods=methods,
                seed=seed,
                config=config,
                progress=_named(progress, folder.name),
                overwrite=overwrite,
            )
            rankings.append(_with_bounds(found, survey, folder))
        runs.append(SurveyRuns(tuple(rankings)))
    board = Leaderboard(tuple(runs), settings_of(config))
    board.write(out, overwrite=True)
    return board


def _name(survey: Survey) -> str:
    """Name of a survey, a store here or elsewhere, without its ending."""
    return Path(survey.path.name).stem


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda what, done, total: progress(f"{name}: {what}", done, total)


def _with_bounds(found: Ranking, survey: Survey, folder: Path) -> Ranking:
    """Return the ranking with the bounds of its spectra as they are, computed once."""
    file = folder / "answers" / "bounds.npz"
    if not file.exists():
        labelled, split = divided_rows(survey, found.seed)
        try:
            bounds = bounds_as_given(survey, labelled[split.train], labelled[split.test])
        except MauryError as error:
            logger.warning("%s: no bound of its labels: %s", survey.path.name, error)
            bounds = {}
        with writing(file, overwrite=True) as partial:
            np.savez(partial, allow_pickle=False, **bounds)
    with np.load(file) as stored:
        bounds = {name: stored[name] for name in stored.files}
    first, *others = found.views
    return replace(found, views=(replace(first, bounds=bounds), *others))


def bounds_as_given(
    survey: Survey, training: Int64Array, tested: Int64Array
) -> dict[str, Float64Array]:
    """Least errors that the spectra of a survey allow, as they are.

    By the theory that the default network would be trained with: the emulator, calibrated on the
    training stars, or the one learnt from them. Known beforehand is how labels scatter among the
    training stars, or what photometry tells of them.

    Parameters
    ----------
    survey : Survey
    training, tested : (n,) int64
        Rows of the survey.

    Returns
    -------
    dict of str to (n_tested, n_label) float64
        For `SPECTRUM` and `BOTH`, in the order of the survey's labels. NaN for a star that cannot
        be judged.

    Raises
    ------
    ConfigError
        If too few training stars have labels, or theory does not fit the survey.
    """
    names = survey.label_names
    preparation = Preparation().seen_in(survey.noise_correlation)
    power_known = survey.resolving_power is not None
    theory = choose_theory("auto", survey, preparation, names, power_known=power_known).name
    rows = np.concatenate([training, tested])
    inputs = preparation.apply(survey.rows(rows))
    if theory == "emulator":
        return _emulated_bounds(survey, training, tested, inputs)
    return _learnt_bounds(survey, rows, training.size, inputs)


def _emulated_bounds(
    survey: Survey, training: Int64Array, tested: Int64Array, inputs: Inputs
) -> dict[str, Float64Array]:
    simulator = fit_star_simulator(survey, training)
    nine = survey.labels(LABEL_NAMES)
    some = nine[training]
    some = some[np.isfinite(some).all(axis=1)]
    # Offsets and microturbulence are drawn, as they scatter among stars of such labels.
    sample = Population.load().complete(some, np.random.default_rng(0))
    calibration, observing = simulator.calibration, simulator.observing
    columns = [LABEL_NAMES.index(name) for name in survey.label_names]
    priors: dict[str, Prior] = {SPECTRUM: np.cov(sample.T), BOTH: "photometry"}
    return {
        kind: cramer_rao(
            nine[tested],
            inputs.snr[training.size :],
            wave_aa=simulator.wave_aa,
            prior=prior,
            observing=observing,
            noise_correlation=observing.correlation,
            modes=ObservedModes(calibration.continuum_modes, calibration.core_modes),
        )[:, columns]
        for kind, prior in priors.items()
    }


def _learnt_bounds(
    survey: Survey, rows: Int64Array, n_training: int, inputs: Inputs
) -> dict[str, Float64Array]:
    names = survey.label_names
    learning = np.arange(len(rows)) < n_training
    observables = inputs.observables.astype(np.float64)
    filled = fill_from_spectra(
        survey.labels(names)[rows], inputs.flux, inputs.ivar, observables, learning
    )
    whole = np.isfinite(filled).all(axis=1)
    learnt = np.flatnonzero(learning & whole & (inputs.ivar > 0).any(axis=1))
    if learnt.size < _LEAST_STARS:
        raise ConfigError(
            f"a theory of {len(names)} labels is learnt from {_LEAST_STARS} training stars at "
            f"least, got {learnt.size}; give more stars with labels"
        )
    preparation = Preparation().seen_in(survey.noise_correlation)
    observing = survey_conditions(TRAINING_CONDITIONS, survey, preparation, theory="learnt")
    own = take(inputs, learnt)
    simulator = TrainingStarSimulator.learn(
        own.wave_aa,
        own.flux,
        own.ivar,
        labels=filled[learnt],
        names=names,
        observables=observables[learnt],
        observing=observing,
        medium=own.medium,
    )
    return {
        kind: learnt_bound(
            simulator,
            filled[n_training:],
            np.asarray(inputs.snr[n_training:], dtype=np.float64),
            photometry=kind == BOTH,
            noise_correlation=observing.correlation,
        )
        for kind in (SPECTRUM, BOTH)
    }
