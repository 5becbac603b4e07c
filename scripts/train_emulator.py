"""Train the forward emulator on synthetic spectra, or check the shipped one.

    python scripts/train_emulator.py synthetic_spectra.npz --out emulator.safetensors
    python scripts/train_emulator.py synthetic_spectra.npz --check

The archive holds ``wavelength_aa`` (n_in,), ``flux_u16`` (n_star, n_in) with ``flux_scale``,
``labels`` (n_star, 16) and ``designed`` (n_star,): true where abundances vary independently. Both
commands print the accuracy on the held-out stars; ``--check`` fails if it misses the limits.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from scipy.interpolate import make_interp_spline

from maury.io.arrays import BoolArray, Float32Array, FloatArray, IndexArray
from maury.simulation.emulator import Emulator
from maury.simulation.emulator_file import Accuracy, EmulatorSpec
from maury.simulation.quantities import quantities

FIRST_AA, LAST_AA, N_PIXEL = 8404.0, 8800.0, 2048
RESOLVING_POWER, CHECKED_AT = 20000.0, 7500.0
RMS_LIMIT, P99_LIMIT = 0.002, 0.01
# RAVE's pixels: away from the ends, where broadening lacks neighbours.
CHECKED_WAVE_AA = 8420.0 + 0.4 * np.arange(912)
HOLDOUT_SEED, HOLDOUT_REAL, HOLDOUT_DESIGNED = 7, 335, 80
HOLDOUT_RULE = (
    f"numpy default_rng({HOLDOUT_SEED}): the first {HOLDOUT_REAL} of a permutation of the real "
    f"rows, then the first {HOLDOUT_DESIGNED} of a permutation of the designed rows"
)
PROVENANCE = (
    "Trained by scripts/train_emulator.py on LTE synthetic spectra (Turbospectrum; Gaia-ESO line "
    "list and CN; MARCS and STAGGER atmospheres, interpolated; no TiO). "
    "Held-out stars took no part."
)
CITATION = (
    "Synthesis: Plez (2012, ascl:1205.004); lines: Heiter et al. (2021, A&A 645, A106); "
    "atmospheres: Gustafsson et al. (2008, A&A 486, 951), Magic et al. (2013, A&A 557, A26); "
    "method: Ting et al. (2019, ApJ 879, 69)."
)


@dataclass(frozen=True)
class Recipe:
    """Settings of the training; the defaults made the shipped weights."""

    n_member: int = 4
    hidden: int = 192
    n_coefficient: int = 128
    epochs: int = 800
    batch: int = 64
    learning_rate: float = 3e-3
    weight_decay: float = 0.1
    designed_weight: float = 8.0
    seed: int = 1


@dataclass(frozen=True)
class Grid:
    """Synthetic spectra: flux (n_star, n_in), labels (n_star, 16), designed (n_star,)."""

    wave_aa: FloatArray
    flux: FloatArray
    labels: FloatArray
    designed: BoolArray

    @classmethod
    def read(cls, path: Path) -> "Grid":
        """Read the archive."""
        with np.load(path, allow_pickle=False) as archive:
            flux = archive["flux_u16"] * np.float64(archive["flux_scale"])
            # Stored as float32, whose rounding would be 0.02 km/s here and there.
            wave = np.round(archive["wavelength_aa"].astype(np.float64), 2)
            return cls(wave, flux, archive["labels"].astype(np.float64), archive["designed"])

    def holdout(self) -> tuple[IndexArray, IndexArray]:
        """Rows of the held-out real and designed stars, by `HOLDOUT_RULE`."""
        generator = np.random.default_rng(HOLDOUT_SEED)
        real = generator.permutation(np.flatnonzero(~self.designed))
        designed = generator.permutation(np.flatnonzero(self.designed))
        return real[:HOLDOUT_REAL], designed[:HOLDOUT_DESIGNED]

    def on(self, wave_aa: FloatArray) -> Float32Array:
        """Flux resampled by a quintic spline."""
        spline = make_interp_spline(self.wave_aa, self.flux.T, k=5)
        return spline(np.clip(wave_aa, self.wave_aa[0], self.wave_aa[-1])).T.astype(np.float32)


def broadening(wave_aa: FloatArray, out_aa: FloatArray) -> FloatArray:
    """Matrix (n_in, n_out) from `RESOLVING_POWER` on `wave_aa` to `CHECKED_AT` on `out_aa`."""
    width = np.sqrt(CHECKED_AT**-2 - RESOLVING_POWER**-2) / np.sqrt(8 * np.log(2))
    distance = np.log(wave_aa[:, None] / out_aa) / width
    kernel = np.exp(-0.5 * distance**2) * np.gradient(wave_aa)[:, None]
    return np.asarray(kernel / kernel.sum(axis=0))


def measure(emulator: Emulator, grid: Grid, rows: IndexArray) -> Accuracy:
    """Compare emulated and synthetic flux of `rows`, each broadened on its own grid."""
    truth = grid.flux[rows] @ broadening(grid.wave_aa, CHECKED_WAVE_AA)
    emulated = emulator.flux(grid.labels[rows]) @ broadening(emulator.wave_aa, CHECKED_WAVE_AA)
    difference = emulated - truth
    return Accuracy(
        n_star=len(rows),
        resolving_power=CHECKED_AT,
        rms=round(float(np.sqrt(np.mean(difference**2))), 6),
        p99=round(float(np.percentile(np.abs(difference), 99)), 6),
    )


def principal_basis(flux: FloatArray, weight: FloatArray, n: int) -> tuple[FloatArray, FloatArray]:
    """Weighted mean (n_pixel,) and the n leading orthonormal components (n, n_pixel)."""
    mean = np.average(flux, axis=0, weights=weight)
    centred = (flux - mean) * np.sqrt(weight)[:, None]
    _, vectors = np.linalg.eigh(centred.T @ centred)
    return mean, vectors[:, ::-1][:, :n].T


def train_member(
    inputs: torch.Tensor, targets: torch.Tensor, weight: torch.Tensor, recipe: Recipe, seed: int
) -> list[tuple[FloatArray, FloatArray]]:
    """Fit one perceptron; the basis is orthonormal, so that errors count as they do in flux."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    widths = [inputs.shape[1], recipe.hidden, recipe.hidden, recipe.hidden]
    layers = [torch.nn.Linear(a, b) for a, b in pairwise(widths)]
    layers.append(torch.nn.Linear(recipe.hidden, targets.shape[1]))
    parts = [part for layer in layers[:-1] for part in (layer, torch.nn.SiLU())]
    network = torch.nn.Sequential(*parts, layers[-1])
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
    )
    steps = -(-len(inputs) // recipe.batch) * recipe.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, recipe.learning_rate, total_steps=steps, pct_start=0.1
    )
    for _ in range(recipe.epochs):
        for rows in torch.randperm(len(inputs)).split(recipe.batch):
            error = (network(inputs[rows]) - targets[rows]).square().sum(1)
            loss = (weight[rows] * error).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    print(f"member with seed {seed}: {time.process_time():.0f} CPU s of its process", flush=True)
    return [(a.weight.detach().numpy().T, a.bias.detach().numpy()[None]) for a in layers]


def stack(
    members: list[list[tuple[FloatArray, FloatArray]]], unit: float
) -> dict[str, Float32Array]:
    """Gather the members' layers into the emulator's tensors; targets were in units of `unit`."""
    tensors = {}
    for k, name in enumerate(("0", "1", "2", "out")):
        factor = unit if name == "out" else 1.0
        tensors[f"weight_{name}"] = np.stack([m[k][0] * factor for m in members]).astype("f4")
        tensors[f"bias_{name}"] = np.stack([m[k][1] * factor for m in members]).astype("f4")
    return tensors


def describe(grid: Grid, **changes: object) -> EmulatorSpec:
    """Make the description that travels with the weights."""
    bounds = np.stack([grid.labels.min(axis=0), grid.labels.max(axis=0)], axis=1)
    return EmulatorSpec(
        label_bounds=tuple((float(low), float(high)) for low, high in bounds),
        first_wave_aa=FIRST_AA,
        last_wave_aa=LAST_AA,
        n_pixel=N_PIXEL,
        resolving_power=RESOLVING_POWER,
        holdout_rule=HOLDOUT_RULE,
        provenance=PROVENANCE,
        citation=CITATION,
        licence="MIT, as the rest of maury",
        **changes,
    )


def train(grid: Grid, recipe: Recipe, *, processes: int = 1) -> Emulator:
    """Train all members on the stars that are not held out, then measure on those that are."""
    real, designed = grid.holdout()
    held = np.concatenate([real, designed])
    rows = np.setdiff1d(np.arange(len(grid.labels)), held)
    spec = describe(grid)
    flux = grid.on(spec.wave_aa)
    weight = np.where(grid.designed[rows], recipe.designed_weight, 1.0)
    mean, basis = principal_basis(flux[rows], weight, recipe.n_coefficient)
    inputs = quantities(grid.labels[rows])
    centre, scale = inputs.mean(axis=0), inputs.std(axis=0)
    targets = (flux[rows] - mean) @ basis.T
    unit = float(targets.std())
    standard = torch.tensor((inputs - centre) / scale, dtype=torch.float32)
    fit = partial(
        train_member,
        standard,
        torch.tensor(targets / unit, dtype=torch.float32),
        torch.tensor(weight, dtype=torch.float32),
        recipe,
    )
    seeds = range(recipe.seed, recipe.seed + recipe.n_member)
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        members = list(pool.map(fit, seeds))
    tensors = {
        "centre": centre,
        "scale": scale,
        "basis": basis.astype(np.float32),
        "mean": mean.astype(np.float32),
        "error": np.zeros(N_PIXEL, dtype=np.float32),
        "holdout_rows": held.astype(np.int32),
        **stack(members, unit),
    }
    emulator = Emulator.build(spec, tensors)
    variance = [
        np.mean((emulator.flux(grid.labels[group]) - flux[group]) ** 2, axis=0)
        for group in (real, designed)
    ]
    tensors["error"] = np.sqrt(np.mean(variance, axis=0)).astype(np.float32)
    accuracy = {
        "real": measure(emulator, grid, real),
        "designed": measure(emulator, grid, designed),
    }
    return Emulator.build(describe(grid, accuracy=accuracy), tensors)


def report(accuracy: dict[str, Accuracy]) -> bool:
    """Print the accuracy; true if all of it is within the limits."""
    for name, got in accuracy.items():
        print(
            f"{name:9s} {got.n_star:4d} held-out stars, R = {got.resolving_power:.0f}: "
            f"rms {got.rms:.5f} (limit {RMS_LIMIT}), 99 % below {got.p99:.5f} (limit {P99_LIMIT})"
        )
    return all(got.rms <= RMS_LIMIT and got.p99 <= P99_LIMIT for got in accuracy.values())


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path, help="synthetic_spectra.npz")
    parser.add_argument("--out", type=Path, help="train, and write the weights here")
    parser.add_argument("--check", action="store_true", help="measure existing weights")
    parser.add_argument("--weights", type=Path, help="weights to check (default: the shipped ones)")
    parser.add_argument("--processes", type=int, default=1, help="members trained side by side")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    grid = Grid.read(arguments.data)
    if arguments.check:
        emulator = Emulator.load(arguments.weights)
        real, designed = grid.holdout()
        if not np.array_equal(emulator.tensors.holdout_rows, np.concatenate([real, designed])):
            print("these weights were trained with another hold-out")
            return 1
        accuracy = {"real": real, "designed": designed}
        return not report({name: measure(emulator, grid, r) for name, r in accuracy.items()})
    if arguments.out is None:
        parser.error("give --out to train, or --check")
    emulator = train(grid, Recipe(), processes=arguments.processes)
    emulator.save(arguments.out, overwrite=True)
    report(emulator.spec.accuracy)
    return 0


if __name__ == "__main__":
    sys.exit(main())
