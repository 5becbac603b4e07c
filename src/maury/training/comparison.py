"""Every method on the same stars: trained on the same folds, tested where none has been trained.

Each method is trained as `maury train` would train it, on folds that divide no star, and answers
the test stars of each fold. Test stars steer nothing: what the consensus needs to know of the
methods' errors is learnt from the validation stars of the same fold.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maury.errors import ConfigError, MauryError, ResumeMismatch, check_known
from maury.evaluation.consensus import Combination
from maury.evaluation.ranking import CONSENSUS, GIVEN, MethodPredictions, Ranking, View
from maury.io.arrays import AnyArray, Float64Array, Int64Array
from maury.io.config_files import settings_of
from maury.io.files import one_at_a_time, remove, writing
from maury.labels import definitions as labels_module
from maury.labels.columns import stated_error
from maury.methods.registry import METHODS
from maury.model.directory import Model
from maury.model.networks.published import PRESETS
from maury.model.split import Split, SplitConfig, split_rows
from maury.prediction.predictor import Predictor
from maury.simulation.bound import ObservedModes, cramer_rao
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.batch import Batch
from maury.spectra.operators import vacuum_to_air
from maury.survey.store import Survey
from maury.training.runs import train
from maury.training.simulated_snr import fit_star_simulator, resimulate

__all__ = ["BOTH", "COMPETITORS", "Competitor", "compare", "divided_rows", "pairs_of"]

logger = logging.getLogger(__name__)
Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""
BOTH = "spectrum, photometry"
"""Inputs of an entry that sees photometry, too."""
_TAUGHT = ("student",)
"""Presets that learn from another model, not from labelled stars."""
_WARM_UP = 8
"""Stars predicted before the clock starts, so that loading and compiling are not timed."""
_ROWS = 2048
"""Rows predicted at a time: bounds the memory; chosen, not measured."""


@dataclass(frozen=True)
class Competitor:
    """One entry of a comparison.

    Attributes
    ----------
    name : str
    method : str
        A method or a preset of `maury train`.
    inputs : str
        What it sees, in words.
    without : tuple of str
        Inputs that it goes without, as of `maury predict --without`.
    config : mapping
        Settings besides those of the split.
    """

    name: str
    method: str
    inputs: str = "spectrum"
    without: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)

    def with_config(self, config: Mapping[str, Any]) -> Competitor:
        """Return the competitor with other settings; each section replaces that of before."""
        return Competitor(
            self.name, self.method, self.inputs, self.without, {**self.config, **config}
        )

    @property
    def model(self) -> str:
        """Identity of the model, which competitors may share."""
        settings = json.dumps(self.config, sort_keys=True, default=str)
        # Settings are part of the name of a model: another configuration of a method must not find
        # the weights of the first.
        digest = hashlib.sha256(settings.encode()).hexdigest()[:8]
        return f"{self.method}-{digest}" if self.config else self.method


def _competitors() -> dict[str, Competitor]:
    methods = {
        name: Competitor(name, name, BOTH if name.endswith("-photometry") else "spectrum")
        for name in METHODS
    }
    networks = {
        name: Competitor(name, name, BOTH if PRESETS[name]().photometry else "spectrum")
        for name in PRESETS
        if name not in _TAUGHT
    }
    alone = Competitor("maury-spectrum", "maury", "spectrum", ("photometry",))
    return {**methods, **networks, alone.name: alone}


COMPETITORS: Mapping[str, Competitor] = _competitors()
"""All that can be compared; ``maury`` is the default model, with and without photometry."""


@one_at_a_time("out")
def compare(
    survey: Survey | Path | str,
    out: Path | str,
    *,
    methods: Sequence[str] = ("all",),
    folds: int = 1,
    seed: int = 0,
    snr: Sequence[float] = (),
    reuse: Mapping[str, Path | str] | None = None,
    config: Mapping[str, Mapping[str, Any]] | Path | str | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> Ranking:
    """Train, test and compare methods on the labelled stars of a survey.

    Models and answers are kept in `out`: a run that was killed, or that is given more methods,
    goes on from there. A method that cannot be trained is named with the reason, and left out.

    Parameters
    ----------
    survey : Survey or path-like
        Spectra with labels.
    out : path-like
        Directory to write.
    methods : sequence of str
        Names of `COMPETITORS`, or ``all``.
    folds : int
        Every star is tested in one of so many folds; 1 tests the test stars of `maury train`
        with the same seed.
    seed : int
        Of the folds and the methods.
    snr : sequence of float
        S/N at which the test stars are simulated anew besides.
    reuse : mapping of str to path, optional
        Trained models by name of their method or preset, with one fold only. No test star may
        have taken part in them.
    config : mapping of str to mapping, or path of a TOML file, optional
        Settings by name of competitor, as `maury train --config` takes them.
    progress : callable, optional
        Called with what is being done (str), steps done and steps in all.
    overwrite : bool
        Discard what another comparison left in `out`.

    Returns
    -------
    Ranking
        As written to ``comparison.json`` and ``comparison.ecsv``.

    Raises
    ------
    UnknownName
        If there is no such method.
    ConfigError
        If settings are wrong, a test star took part in a reused model, or no method could be run.
    ResumeMismatch
        If `out` holds a comparison of other stars, folds or seed.
    """
    survey = survey if isinstance(survey, Survey) else Survey.open(survey)
    chosen = _chosen(methods, config)
    run = _Run(survey, Path(out), folds, seed, tuple(snr), dict(reuse or {}), progress)
    run.open(overwrite=overwrite)
    not_run: dict[str, str] = {}
    for number, one in enumerate(chosen):
        run.tell(one.name, number, len(chosen))
        try:
            run.answer(one)
        except (MauryError, ImportError) as error:
            # A model that the user gave by hand is never left out without a word.
            if isinstance(error, ResumeMismatch) or one.model in run.reuse:
                raise
            logger.warning("%s is not compared: %s", one.name, error)
            not_run[one.name] = str(error)
    run.tell("consensus", len(chosen), len(chosen))
    done = [one for one in chosen if one.name not in not_run]
    if not done:
        raise ConfigError(
            "no method could be run: " + "; ".join(f"{n}: {e}" for n, e in not_run.items())
        )
    result = run.ranking(done, not_run)
    result.write(run.out, overwrite=True)
    return result


def divided_rows(
    survey: Survey, seed: int, rule: Mapping[str, Any] | None = None
) -> tuple[Int64Array, Split]:
    """Return the labelled rows (n,) of a survey, and how a comparison divides them.

    Raises
    ------
    ConfigError
        If the survey has no labels.
    """
    names = survey.label_names
    labelled = np.flatnonzero(np.isfinite(survey.labels(names)).any(axis=1))
    if not names or labelled.size == 0:
        raise ConfigError(f"{survey.path} has no labels to compare with")
    config = SplitConfig.model_validate(rule or {})
    return labelled, split_rows(survey.star_id[labelled], config=config, seed=seed)


def pairs_of(texts: Iterable[str]) -> dict[str, str]:
    """Read ``METHOD=MODEL`` pairs.

    Raises
    ------
    ConfigError
        If a text is not such a pair.
    """
    pairs = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not path:
            raise ConfigError(f"a reused model is given as METHOD=MODEL, got {text!r}")
        pairs[name] = path
    return pairs


def _chosen(
    methods: Sequence[str], config: Mapping[str, Mapping[str, Any]] | Path | str | None
) -> list[Competitor]:
    names = list(COMPETITORS) if "all" in methods else list(dict.fromkeys(methods))
    given = settings_of(config)
    for name in [*names, *given]:
        check_known("method", name, COMPETITORS)
    chosen = [COMPETITORS[name].with_config(given.get(name, {})) for name in names]
    for one in chosen:
        if "split" in one.config:
            raise ConfigError(f"settings of {one.name}: a comparison makes the split itself")
    return chosen


@dataclass(frozen=True, eq=False)
class _Run:
    """One comparison and its directory."""

    survey: Survey
    out: Path
    folds: int
    seed: int
    snr: tuple[float, ...]
    reuse: Mapping[str, Path | str]
    progress: Progress | None
    _star_simulators: dict[int, TrainingStarSimulator] = field(default_factory=dict)

    def tell(self, what: str, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(what, done, total)

    def open(self, *, overwrite: bool) -> None:
        # One model can have left out the test stars of one fold only.
        if self.reuse and self.folds > 1:
            raise ConfigError("trained models can be reused with one fold only")
        stamp = self.out / "run.json"
        identity = [self.survey.fingerprint, self.folds, self.seed]
        key = hashlib.sha256(json.dumps(identity).encode()).hexdigest()
        if self.out.exists() and any(self.out.iterdir()):
            found = json.loads(stamp.read_text("utf-8")).get("key") if stamp.is_file() else None
            if found == key:
                return
            if not overwrite:
                raise ResumeMismatch(
                    f"{self.out} holds something else than a comparison of this survey with "
                    f"{self.folds} folds and seed {self.seed}; choose another directory, or pass "
                    "--overwrite to discard it"
                )
            remove(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        with writing(stamp, overwrite=True) as partial:
            partial.write_text(json.dumps({"key": key}), "utf-8")

    def split(self, fold: int) -> tuple[Int64Array, Split]:
        """Return the labelled rows, and how they are divided."""
        return divided_rows(self.survey, self.seed, self._rule(fold))

    def _rule(self, fold: int) -> dict[str, Any]:
        return {"folds": self.folds, "fold": fold} if self.folds > 1 else {}

    def rows(self, fold: int, part: str) -> Int64Array:
        labelled, split = self.split(fold)
        return labelled[split.part(part)]

    def answer(self, one: Competitor) -> None:
        """Train, and answer every fold and view, as far as that has not been done."""
        for fold in range(self.folds):
            wanted = [
                (part, view)
                # The validation stars are answered too: from their residuals the consensus learns
                # its weights, never from test stars.
                for part, view in [("validation", GIVEN), *(("test", v) for v in self._views())]
                if not self._file(one, fold, part, view).exists()
            ]
            if not wanted:
                continue
            model = self._model(one, fold)
            predictor = Predictor(model, without=one.without)
            for part, view in wanted:
                batch, _ = self.batch(fold, part, view)
                found = _ask(predictor, batch, self.survey.label_names)
                with writing(self._file(one, fold, part, view), overwrite=True) as partial:
                    np.savez(partial, allow_pickle=False, **found)

    def _views(self) -> list[str]:
        return [GIVEN, *(f"S/N {value:g}" for value in self.snr)]

    def _file(self, one: Competitor, fold: int, part: str, view: str) -> Path:
        place = view.replace("/", "").replace(" ", "-")
        identity = f"{one.model}--{one.name}"
        return self.out / "answers" / f"{identity}--{fold}-{part}-{place}.npz"

    def _model(self, one: Competitor, fold: int) -> Model:
        if one.model in self.reuse:
            model = Model.open(self.reuse[one.model])
            # Stars that stopped or chose a network early flatter it as training stars do.
            met = model.split.is_known(self.survey.star_id[self.rows(fold, "test")])
            if met.any():
                raise ConfigError(
                    f"{self.reuse[one.model]} has met {int(met.sum())} of the test spectra; reuse "
                    "a model trained on the same survey with the same seed, or leave it to be "
                    "trained"
                )
            return model
        path = self.out / "models" / one.model / str(fold)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            # CPU time and not wall time: it does not depend on how many processors train, or on
            # what else runs.
            begin = _cpu_seconds()
            rule = self._rule(fold)
            config = {**one.config, **({"split": rule} if rule else {})}
            model = train(
                self.survey, path, method=one.method, seed=self.seed, config=config or None
            )
            cost = self.out / "models" / one.model / f"{fold}.seconds"
            cost.write_text(f"{_cpu_seconds() - begin:.3f}\n", "utf-8")
            return model
        return Model.open(path)

    def _train_seconds(self, one: Competitor) -> float:
        files = sorted((self.out / "models" / one.model).glob("*.seconds"))
        found = [float(file.read_text("utf-8")) for file in files]
        return float(np.mean(found)) if found else float("nan")

    def batch(self, fold: int, part: str, view: str) -> tuple[Batch, Float64Array]:
        """Return spectra of some stars, and their true labels."""
        rows = self.rows(fold, part)
        batch = self.survey.rows(rows)
        names = list(self.survey.label_names)
        if view == GIVEN:
            return batch, self.survey.labels(names)[rows]
        resimulated, nine = self._resimulated(batch, fold, view)
        return resimulated, nine[:, [labels_module.LABEL_NAMES.index(name) for name in names]]

    def _resimulated(self, batch: Batch, fold: int, view: str) -> tuple[Batch, Float64Array]:
        if fold not in self._star_simulators:
            self._star_simulators[fold] = fit_star_simulator(self.survey, self.rows(fold, "train"))
        snr = next(value for value in self.snr if f"S/N {value:g}" == view)
        # Of seed, fold and S/N alone: every method is asked about the same noise, whenever it joins
        # the comparison.
        rng = np.random.default_rng([self.seed, fold, int(1000 * snr)])
        return resimulate(batch, self._star_simulators[fold], snr, rng=rng)

    def _bounds(self, fold: int, view: str) -> dict[str, Float64Array]:
        """Least errors of the test stars' simulated spectra, without and with photometry."""
        rows = self.rows(fold, "test")
        resimulated, nine = self._resimulated(self.survey.rows(rows), fold, view)
        simulator = self._star_simulators[fold]
        calibration, observing = simulator.calibration, simulator.observing
        wave_aa, medium = resimulated.spectra.wave_aa, resimulated.spectra.medium
        bound = partial(
            cramer_rao,
            nine,
            resimulated.column("snr"),
            # The emulator, of which the bound takes its derivatives, is in air.
            wave_aa=wave_aa if medium == "air" else vacuum_to_air(wave_aa),
            modes=ObservedModes(calibration.continuum_modes, calibration.core_modes),
            observing=observing,
            noise_correlation=observing.correlation,
        )
        columns = [labels_module.LABEL_NAMES.index(name) for name in self.survey.label_names]
        return {"spectrum": bound()[:, columns], BOTH: bound(prior="photometry")[:, columns]}

    def ranking(self, done: Sequence[Competitor], not_run: Mapping[str, str]) -> Ranking:
        names = self.survey.label_names
        views = [self._view(done, view) for view in self._views()]
        return Ranking(
            labels=labels_module.select(names, self.survey.label_definitions),
            views=tuple(views),
            not_run=dict(not_run),
            survey=self.survey.path.name,
            simulated=self.survey.simulated,
            folds=self.folds,
            seed=self.seed,
            noted={
                "restaged": "test spectra at a stated S/N are simulated by the calibrated emulator",
                "reused": sorted(self.reuse),
            },
        )

    def _view(self, done: Sequence[Competitor], view: str) -> View:
        truth, snr, parts = [], [], []
        for fold in range(self.folds):
            batch, known = self.batch(fold, "test", view)
            truth.append(known)
            snr.append(np.asarray(batch.column("snr"), dtype=np.float64))
            parts.append([self._load(one, fold, "test", view) for one in done])
        answers = [
            _joined(one, [part[k] for part in parts], self._train_seconds(one))
            for k, one in enumerate(done)
        ]
        if len(done) > 1:
            answers.append(self._consensus(done, parts))
        bounds = {}
        if view != GIVEN:
            folds = [self._bounds(fold, view) for fold in range(self.folds)]
            bounds = {kind: np.concatenate([one[kind] for one in folds]) for kind in folds[0]}
        return View(view, np.concatenate(truth), np.concatenate(snr), tuple(answers), bounds)

    def _load(self, one: Competitor, fold: int, part: str, view: str) -> dict[str, AnyArray]:
        with np.load(self._file(one, fold, part, view)) as file:
            return {name: file[name] for name in file.files}

    def _consensus(
        self, done: Sequence[Competitor], parts: Sequence[Sequence[Mapping[str, AnyArray]]]
    ) -> MethodPredictions:
        means, sigmas, warned = [], [], []
        for fold, part in enumerate(parts):
            _, truth = self.batch(fold, "validation", GIVEN)
            known = [self._load(one, fold, "validation", GIVEN) for one in done]
            mean, sigma = np.full((2, len(part[0]["mean"]), truth.shape[1]), np.nan)
            for k in range(truth.shape[1]):
                learnt = Combination.learn(
                    _stack(known, "mean", k) - truth[:, k : k + 1], _stack(known, "sigma", k)
                )
                if learnt is not None:
                    mean[:, k], sigma[:, k] = learnt.combine(
                        _stack(part, "mean", k), _stack(part, "sigma", k)
                    )
            means.append(mean)
            sigmas.append(sigma)
            # Warned of only where all methods are: one without a warning can carry the answer.
            warned.append(np.all([one["warned"] for one in part], axis=0))
        inputs = BOTH if any(one.inputs == BOTH for one in done) else "spectrum"
        return MethodPredictions(
            CONSENSUS,
            inputs,
            np.concatenate(means),
            np.concatenate(sigmas),
            np.concatenate(warned),
        )


def _stack(parts: Sequence[Mapping[str, AnyArray]], name: str, label: int) -> Float64Array:
    return np.stack([part[name][:, label] for part in parts], axis=1)


def _joined(
    one: Competitor, parts: Sequence[Mapping[str, Any]], train_s: float
) -> MethodPredictions:
    joined = {
        name: np.concatenate([p[name] for p in parts]) for name in ("mean", "sigma", "warned")
    }
    seconds = sum(float(part["seconds"]) for part in parts)
    return MethodPredictions(
        one.name, one.inputs, **joined, ms=1e3 * seconds / len(joined["mean"]), train_s=train_s
    )


def _ask(predictor: Predictor, batch: Batch, names: Sequence[str]) -> dict[str, AnyArray]:
    """Answer a batch, and time it once everything is loaded."""
    predictor.predict(batch[:_WARM_UP])
    begin = time.process_time()
    tables = [predictor.predict(part) for part in _pieces(batch)]
    seconds = time.process_time() - begin
    known = set(predictor.model.label_names)
    missing = np.full(len(batch), np.nan)
    table = {name: np.concatenate([one[name] for one in tables]) for name in tables[0]}
    return {
        "mean": np.stack([table.get(name, missing) for name in names], axis=1),
        "sigma": np.stack(
            [stated_error(table, name) if name in known else missing for name in names], axis=1
        ),
        "warned": np.asarray(table["warn"], dtype=np.bool_),
        "seconds": np.array(seconds),
    }


def _pieces(batch: Batch) -> Iterator[Batch]:
    for start in range(0, max(len(batch), 1), _ROWS):
        yield batch[start : start + _ROWS]


def _cpu_seconds() -> float:
    """CPU seconds of this process and of those that it has waited for."""
    spent = os.times()
    # Members train in processes of their own, whose time counts once they have been waited for.
    return spent.user + spent.system + spent.children_user + spent.children_system
