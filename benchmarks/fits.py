"""CPU time per spectrum of the fits of forward models, on spectra simulated from the models.

Run with one thread: ``OMP_NUM_THREADS=1 python benchmarks/fits.py``. Medians of several runs.
"""

import time

import numpy as np

from maury.labels.definitions import LABEL_NAMES
from maury.methods.fitting.fitter import Fitter
from maury.methods.fitting.grid import Grid
from maury.methods.fitting.gridded import axes_around
from maury.methods.fitting.knowledge import Prior
from maury.methods.fitting.theory import (
    at_rest,
    draw_nuisances,
    learn_start,
    nuisance_sigmas,
    observed_chain,
    typical_labels,
)
from maury.simulation.observing import RAVE_WAVE_AA

N_STAR, REPEATS, SNR, RV_KMS = 512, 5, 60.0, 1.3
NONE = np.zeros(RAVE_WAVE_AA.size, dtype=np.float32)
CORRELATION = (0.44, 0.05)
CORE = (0, 1, 2)


def observed(clean: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return simulated spectra with white noise."""
    ivar = (SNR**2 / np.maximum(clean, 0.05)).astype(np.float32)
    return (clean + rng.normal(size=clean.shape) / np.sqrt(ivar)).astype(np.float32), ivar


def timed(call) -> tuple[float, object]:
    """Return the CPU time per spectrum in ms, and the result."""
    times = []
    for _ in range(REPEATS):
        begin = time.process_time()
        found = call()
        times.append(time.process_time() - begin)
    return 1e3 * float(np.median(times)) / N_STAR, found


def grid_fit() -> None:
    """Time fits of three labels on grids."""
    theory = observed_chain(RAVE_WAVE_AA, None, NONE, nuisances=False)
    rng = np.random.default_rng(1)
    truth = typical_labels(N_STAR, 2)

    def synthesise(core: np.ndarray) -> np.ndarray:
        nine = np.zeros((len(core), 9))
        nine[:, CORE] = core
        nine[:, 3] = core[:, 2]
        return at_rest(theory, nine)

    axes = axes_around(("teff", "logg", "m_h"), theory.bounds[list(CORE)])
    for interpolation, components in (("linear", 0), ("linear", 80), ("cubic", 80)):
        grid = Grid.build(
            axes, synthesise, RAVE_WAVE_AA, interpolation=interpolation, components=components
        )
        flux, ivar = observed(grid.evaluate(truth[:, CORE], jacobian=False).flux, rng)
        for correlation in ((), CORRELATION):
            fitter = Fitter(grid, noise_correlation=correlation, tolerance=0.05, block=256)
            cost, found = timed(lambda: fitter.fit(flux, ivar, grid.nearest(flux, ivar)))  # noqa: B023
            kind = "correlated" if correlation else "white"
            done = np.mean(found.flags == 0)
            print(f"grid K=3 {interpolation:6} {components:3d} {kind:10} {cost:.3f} ms, {done:.3f}")


def payne_fit() -> None:
    """Time fits of nine labels and nuisances with the emulator."""
    for nuisances in (False, True):
        chain = observed_chain(RAVE_WAVE_AA, None, NONE, nuisances=nuisances)
        rng = np.random.default_rng(3)
        truth = np.clip(typical_labels(N_STAR, 4), *chain.bounds[:9].T)
        start = learn_start(chain, typical_labels(2000, 5), RV_KMS, 0)
        labels = draw_nuisances(chain, truth, RV_KMS, rng)
        flux, ivar = observed(chain.evaluate(labels, jacobian=False).flux, rng)
        names = chain.label_names
        prior = Prior.of(names, N_STAR, nuisance_sigmas(names, RV_KMS))
        wide = dict.fromkeys(LABEL_NAMES[4:], (0.0, 0.5))
        prior += Prior.of(names, N_STAR, wide)
        tie = np.zeros(len(names))
        tie[2], tie[3] = 1.0, -1.0
        prior += Prior.relation(tie, 0.0, 0.03, n_star=N_STAR)
        fitter = Fitter(chain, max_steps=20, reuse=3, tolerance=0.1)

        def run():
            place = np.zeros(labels.shape)  # noqa: B023
            place[:, :9] = start.regress(flux, ivar)  # noqa: B023
            return fitter.fit(flux, ivar, place, prior=prior)  # noqa: B023

        cost, found = timed(run)
        done = np.mean((found.flags & (1 << 25)) == 0)
        print(f"payne K=9, {len(names) - 9:2d} nuisances: {cost:.2f} ms, {done:.3f} converged")


if __name__ == "__main__":
    grid_fit()
    payne_fit()
