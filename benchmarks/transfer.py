"""A model moved to another survey beside one trained there from scratch, for fewer and fewer stars.

    OMP_NUM_THREADS=1 python benchmarks/transfer.py FOLDER [--stars 3700 1000 300] [--seeds 0]

Everything is SIMULATED. The parent learns from a RAVE-like survey, the child from one like that of
the Gaia RVS. The stars differ from the emulator's theory by
`maury.simulation.mismatch.REALISTIC_MISMATCH`,
in both surveys alike, or, with --other-mismatch, in another way in each. Both sides have the same
members, the same parts of the same stars, and are tested on the same stars, which neither has met.
Finished models and figures are kept in FOLDER and used again.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES, LABELS
from maury.model.directory import Model
from maury.prediction.streaming import predict_rows
from maury.simulation.emulator import Emulator
from maury.simulation.mismatch import REALISTIC_MISMATCH, TheoryMismatch
from maury.simulation.observing import ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.simulation.surveys import BLOCK_STARS, Simulation, Simulator
from maury.spectra.operators import vacuum_to_air
from maury.survey.store import Survey, SurveyWriter
from maury.training.runs import train
from maury.training.transfer import transfer

RVS_WAVE_AA = 8460.0 + 0.25 * np.arange(961)
RESOLVING_POWER = 11_500.0
RAVE_WAVE_AA = 8420.0 + 0.4 * np.arange(912)
N_PARENT, N_TEST, MEMBERS = 3700, 2000, 2
SPLIT = {"train": 0.80, "validation": 0.19, "test": 0.01}
INSTRUMENT = {
    "resolving_power": RESOLVING_POWER,
    "resolving_power_scatter": 300.0,
    "resolving_power_range": (10_500.0, 12_500.0),
}
SAW = {"resolving_power_scatter": 450.0, "continuum_rms": 0.0, "spike_fraction": 0.05}


def simulate(path: Path, n_star: int, seed: int, *, rvs: bool, mismatch: TheoryMismatch) -> Survey:
    """Simulate labelled stars as the RVS (vacuum) or RAVE (air) would see them."""
    if path.exists():
        return Survey.open(path)
    instrument: dict[str, Any] = INSTRUMENT if rvs else {}
    observing = ObservingModel(theory_mismatch=mismatch, **instrument)
    emulator = Emulator.load()
    wave = RVS_WAVE_AA if rvs else RAVE_WAVE_AA
    simulator = Simulator(
        seed, Simulation(observing=observing), emulator=emulator, population=Population.load()
    )
    simulator.spectrograph = Spectrograph(
        emulator.wave_aa,
        vacuum_to_air(wave) if rvs else wave,
        emulator.spec.resolving_power,
        observing,
    )
    with SurveyWriter(
        path,
        n_star=n_star,
        wave_aa=wave,
        medium="vacuum" if rvs else "air",
        columns=simulator.column_names,
        simulated=True,
        resolving_power=observing.resolving_power,
    ) as writer:
        for start in range(0, n_star, BLOCK_STARS):
            n = min(BLOCK_STARS, n_star - start)
            seen, columns = simulator.block(start // BLOCK_STARS)
            columns = {name: values[:n] for name, values in columns.items()}
            writer.write(start, seen.flux[:n], seen.ivar[:n], **columns)
    return Survey.open(path)


def first(survey: Survey, n_star: int, path: Path) -> Survey:
    """Copy the first stars of a survey."""
    if path.exists():
        return Survey.open(path)
    batch = survey.batch(0, n_star)
    bands = [name for b in BANDS for name in (b.column, f"{b.column}_error")]
    names = ["snr", "parallax", "parallax_error", "a_v", "a_v_error", *bands]
    names += [name for label in LABELS for name in (label.name, label.error_name)]
    columns = {name: batch.columns[name] for name in ("id", "star_id", *names)}
    with SurveyWriter(
        path,
        n_star=n_star,
        wave_aa=survey.wave_aa,
        medium=survey.medium,
        columns=names,
        simulated=True,
        resolving_power=survey.resolving_power,
    ) as writer:
        writer.write(0, batch.spectra.flux, batch.spectra.ivar, **columns)
    return Survey.open(path)


def residuals(model: Model, test: Survey) -> dict[str, list[float]]:
    """Rms residual of each label, and the share of residuals within the quoted error."""
    table = predict_rows(model, test, np.arange(len(test)))
    truth = test.labels(LABEL_NAMES)
    off = np.column_stack([table[name] for name in LABEL_NAMES]) - truth
    error = np.column_stack([table[f"{name}_error"] for name in LABEL_NAMES])
    within = np.where(np.isfinite(error), np.abs(off) < error, np.nan).mean(axis=0)
    return {"rms": np.sqrt(np.mean(off**2, axis=0)).tolist(), "within": within.tolist()}


def measured(path: Path, test: Survey, make: Any) -> dict[str, Any]:
    """Make a model unless it is there; its figures, and the CPU seconds it took."""
    notes = path.with_name(f"{path.name}.json")
    if not notes.exists():
        begin = time.process_time()
        model = make(path)
        seconds = time.process_time() - begin
        notes.write_text(json.dumps({"cpu_s": seconds, **residuals(model, test)}), "utf-8")
    found: dict[str, Any] = json.loads(notes.read_text("utf-8"))
    return found


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--stars", type=int, nargs="+", default=[3700, 1000, 300, 100, 50])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--parent-steps", type=int, default=5000)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--only", choices=["scratch", "transfer"])
    parser.add_argument("--other-mismatch", action="store_true")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    parent_mismatch = (
        REALISTIC_MISMATCH.model_copy(update={"seed": 1})
        if arguments.other_mismatch
        else REALISTIC_MISMATCH
    )
    kind = "-other" if arguments.other_mismatch else ""
    rave = simulate(folder / f"rave{kind}.zarr", N_PARENT, 1, rvs=False, mismatch=parent_mismatch)
    test = simulate(folder / "test.zarr", N_TEST, 3, rvs=True, mismatch=REALISTIC_MISMATCH)
    common: dict[str, Any] = {"split": SPLIT, "ensemble": {"members": MEMBERS}}

    def parent(path: Path) -> Model:
        training = {"steps": arguments.parent_steps, "stars": 50_000}
        settings = {**common, "training": training}
        return train(rave, path, config=settings, seed=7, n_processes=1)

    path = folder / f"parent{kind}-{arguments.parent_steps}"
    if not path.exists():
        begin = time.process_time()
        parent(path)
        print(f"parent: {time.process_time() - begin:.0f} s", flush=True)
    for seed in arguments.seeds:
        survey = simulate(
            folder / f"rvs-{seed}.zarr", 3700, 100 + seed, rvs=True, mismatch=REALISTIC_MISMATCH
        )
        for n_star in arguments.stars:
            part = first(survey, n_star, folder / f"rvs-{seed}-{n_star}.zarr")
            training = {"steps": arguments.steps, "stars": 30_000}

            def scratch(to: Path, part=part, training=training, seed=seed) -> Model:
                seen = {**SAW, **INSTRUMENT}
                settings = {**common, "training": {**training, "observing": seen}}
                return train(part, to, config=settings, seed=seed, n_processes=1)

            def moved(to: Path, part=part, training=training, seed=seed) -> Model:
                mine = {**training, "learning_rate": arguments.rate, "observing": INSTRUMENT}
                settings = {**common, "training": mine}
                return transfer(path, part, to, config=settings, seed=seed, n_processes=1)

            makers = {"scratch": scratch, "transfer": moved}
            for name, make in makers.items():
                if arguments.only not in (None, name):
                    continue
                tag = f"{seed}-{n_star}-{arguments.steps}"
                tag += f"-{arguments.rate:g}{kind}" if name == "transfer" else ""
                found = measured(folder / f"{name}-{tag}", test, make)
                row = " ".join(f"{x:8.4f}" for x in found["rms"])
                inside = " ".join(f"{100 * x:3.0f}" for x in found["within"])
                print(
                    f"seed {seed} {n_star:5d} {name:8s} {found['cpu_s']:5.0f} s {row} | {inside}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
