"""The stages that `faults` breaks, each with small inputs that it makes once."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np


@dataclass
class Stage:
    """A stage: its output's name, and what makes it; `overwrite` once an older one may go."""

    output: str
    make: Callable[..., object]
    seed: int = 0
    replace: bool = False
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, out: Path) -> None:
        self.make(out, seed=self.seed, overwrite=self.replace)

    def change(self) -> None:
        """From now on make something else, in place of what is there."""
        self.seed, self.replace = 1, True


def without_card() -> None:
    """The card of a model is written once the model is made, and can be written again."""
    from maury.training import runs as learning

    learning.add_card = lambda *args, **options: None


def ingest(inputs: Path, plan: dict[str, Any]) -> Stage:
    from maury.survey import writer as store
    from maury.survey.readers import ingest_toml, pipeline

    inputs.mkdir()
    store.CHUNK_STARS = pipeline.CHUNK_STARS = 8
    store.COLUMN_CHUNK_STARS = 16
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        flux = rng.normal(1, 0.1, (30, 16)).astype(np.float32)
        ids = np.array([f"s{k}" for k in range(30)])
        np.savez(inputs / f"{seed}.npz", flux=flux, ivar=np.full_like(flux, 50), id=ids)
        (inputs / f"{seed}.toml").write_text(
            f'simulated = true\n[spectra]\nfile = "{seed}.npz"\nflux = "flux"\nivar = "ivar"\n'
            'id = "id"\n[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'
        )

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        ingest_toml(inputs / f"{seed}.toml", out, overwrite=overwrite)

    return Stage("survey.zarr", make)


def simulate(inputs: Path, plan: dict[str, Any]) -> Stage:
    from maury.simulation import surveys as module
    from maury.survey import writer as store

    module.BLOCK_STARS = module.CHUNK_STARS = store.CHUNK_STARS = 8
    store.COLUMN_CHUNK_STARS = 16

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        module.simulate_survey(out, n_star=20, seed=seed, overwrite=overwrite)

    return Stage("survey.zarr", make)


QUICK = {
    "network": {"preset": "guiglion2020", "kernel": 6, "filters": [4]},
    "training": {"epochs": 3, "batch_size": 64},
    "ensemble": {"members": 2},
}


def train(inputs: Path, plan: dict[str, Any]) -> Stage:
    from builders.training_survey import write_survey
    from maury.training import ensemble
    from maury.training.runs import train as learn

    inputs.mkdir()
    write_survey(inputs / "survey.zarr", n=80)
    without_card()
    ensemble.CHECKPOINT_SECONDS = 0.0
    config = plan.get("config", QUICK)

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        learn(
            inputs / "survey.zarr",
            out,
            config=config,
            seed=seed,
            n_processes=1,
            overwrite=overwrite,
        )

    return Stage("model", make)


def train_method(inputs: Path, plan: dict[str, Any]) -> Stage:
    from builders.training_survey import write_survey
    from maury.training.runs import train as learn

    without_card()
    inputs.mkdir()
    write_survey(inputs / "survey.zarr", n=80)

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        learn(inputs / "survey.zarr", out, method="cannon", seed=seed, overwrite=overwrite)

    return Stage("model", make)


def train_default(inputs: Path, plan: dict[str, Any]) -> Stage:
    from maury.prediction import uncertainty
    from maury.training import ensemble
    from maury.training.runs import train as learn

    without_card()
    ensemble.CHECKPOINT_SECONDS = 0.0
    uncertainty.N_SIMULATED = 1000
    config = {"training": {"steps": 20, "stars": 400}, "ensemble": {"members": 1}}

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        learn(plan["survey"], out, config=config, seed=seed, n_processes=1, overwrite=overwrite)

    return Stage("model", make)


def predict(inputs: Path, plan: dict[str, Any]) -> Stage:
    from builders.training_survey import write_survey
    from maury.prediction import predictor
    from maury.prediction import streaming as prediction

    inputs.mkdir()
    models = [Path(plan[name]) for name in ("model", "other") if name in plan]
    if not models:
        from maury.training.runs import train as learn

        survey = write_survey(inputs / "labelled.zarr", n=80)
        models = [
            learn(survey, inputs / f"{seed}", config=QUICK, seed=seed, n_processes=1).path
            for seed in (0, 1)
        ]
    observed = plan.get("survey") or write_survey(inputs / "observed.zarr", n=40, seed=3).path
    prediction.PART_STARS = predictor.BLOCK_STARS = prediction.BLOCK_STARS = 16

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        prediction.write_catalogue(models[seed], observed, out, overwrite=overwrite)

    return Stage(plan["output"], make)


def distil(inputs: Path, plan: dict[str, Any]) -> Stage:
    from maury.prediction import uncertainty
    from maury.training import distillation as module

    module.CHECKPOINT_SECONDS = 0.0
    uncertainty.N_SIMULATED = 1000
    config = {"training": {"stars": 300, "passes": 4, "batch_size": 100}}

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        module.distil(plan["model"], out, config=config, seed=seed, overwrite=overwrite)

    return Stage("student", make)


def report(inputs: Path, plan: dict[str, Any]) -> Stage:
    from maury.report.page import assemble as module

    module._SECTIONS = tuple(module._SECTIONS[k] for k in plan.get("sections", (9,)))

    def make(out: Path, *, seed: int, overwrite: bool) -> None:
        module.write_report(
            plan["model"],
            out,
            survey=plan.get("survey"),
            observed=plan.get("observed"),
            seed=seed,
            overwrite=overwrite,
        )

    return Stage("report", make)


STAGES: dict[str, Callable[[Path, dict[str, Any]], Stage]] = {
    "ingest": ingest,
    "simulate": simulate,
    "train": train,
    "train_method": train_method,
    "train_default": train_default,
    "predict": predict,
    "distil": distil,
    "report": report,
}
