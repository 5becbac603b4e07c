"""Speed of the batched operators against per-spectrum references, side by side in one run.

Made-up spectra of RAVE size; CPU time on one thread; repetitions interleaved; medians. Run as::

    python benchmarks/preparation.py
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
from numpy.polynomial import chebyshev
from spectres import spectres
from threadpoolctl import threadpool_limits

from maury.io.arrays import Float64Array
from maury.spectra.operators import Resampler, chebyshev_continuum, to_rest_frame

WAVE_IN_AA = 8415.0 + 0.375 * np.arange(1000)
WAVE_OUT_AA = 8420.0 + 0.4 * np.arange(912)


def made_up_spectra(n_star: int, seed: int) -> tuple[Float64Array, Float64Array]:
    """Return flux and errors (n_star, 1000): absorption lines, a curved continuum, noise."""
    rng = np.random.default_rng(seed)
    centre = rng.uniform(WAVE_IN_AA[0], WAVE_IN_AA[-1], 60)
    depth = rng.uniform(0, 0.5, (n_star, 60))
    profile = np.exp(-0.5 * ((WAVE_IN_AA - centre[:, None]) / 0.6) ** 2)
    tilt = 1.0 + rng.normal(0, 0.05, (n_star, 1)) * np.linspace(-1, 1, WAVE_IN_AA.size)
    flux = tilt * np.exp(-depth @ profile)
    error = np.sqrt(flux) / rng.uniform(20, 150, (n_star, 1))
    return flux + error * rng.normal(size=flux.shape), error


def chebyshev_loop(flux: Float64Array, ivar: Float64Array, degree: int = 4) -> Float64Array:
    """Clip and fit each spectrum by itself with numpy's `chebfit`."""
    x = np.linspace(-1.0, 1.0, flux.shape[1])
    fits = np.empty_like(flux)
    for row, (y, w) in enumerate(zip(flux, np.sqrt(ivar), strict=True)):
        keep = w > 0
        for step in range(11):
            fits[row] = chebyshev.chebval(x, chebyshev.chebfit(x[keep], y[keep], degree, w=w[keep]))
            residual = y - fits[row]
            sigma = np.sqrt(np.average(residual[keep] ** 2, weights=w[keep] ** 2))
            kept = keep & (residual > -1.25 * sigma) & (residual < 3.0 * sigma)
            if step == 10 or kept.sum() == keep.sum() or kept.sum() < 3 * (degree + 1):
                break
            keep = kept
    return fits


def cpu_seconds(function: Callable[[], object]) -> float:
    """Return the CPU seconds of one call."""
    start = time.process_time()
    function()
    return time.process_time() - start


def main() -> None:
    """Time the pairs and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stars", type=int, default=2000)
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    flux, error = made_up_spectra(options.stars, seed=1)
    ivar = error**-2
    flux32, ivar32 = flux.astype(np.float32), ivar.astype(np.float32)
    error32 = error.astype(np.float32)
    some = slice(0, max(options.stars // 10, 1))
    resampler = Resampler(WAVE_IN_AA, WAVE_OUT_AA)
    rv_kms = np.random.default_rng(2).normal(0, 50, options.stars)
    grids = {"wave_in_aa": WAVE_IN_AA, "wave_out_aa": WAVE_OUT_AA}
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "spectres, batch, float64": (
            lambda: spectres(WAVE_OUT_AA, WAVE_IN_AA, flux, error, verbose=False),
            options.stars,
        ),
        "Resampler, float64": (lambda: resampler(flux, ivar), options.stars),
        "spectres, batch, float32": (
            lambda: spectres(WAVE_OUT_AA, WAVE_IN_AA, flux32, error32, verbose=False),
            options.stars,
        ),
        "Resampler, float32": (lambda: resampler(flux32, ivar32), options.stars),
        "to_rest_frame, own RV each": (
            lambda: to_rest_frame(flux32, ivar32, rv_kms, **grids),
            options.stars,
        ),
        "chebfit loop": (lambda: chebyshev_loop(flux[some], ivar[some]), some.stop),
        "chebyshev_continuum": (lambda: chebyshev_continuum(flux, ivar), options.stars),
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    with threadpool_limits(limits=1):
        for _ in range(options.repetitions):
            for name, (call, n_star) in calls.items():
                times[name].append(1e6 * cpu_seconds(call) / n_star)
    median = {name: float(np.median(values)) for name, values in times.items()}
    for name, value in median.items():
        print(f"{name:28s} {value:9.2f} CPU microseconds per spectrum")
    for slow, fast in (
        ("spectres, batch, float64", "Resampler, float64"),
        ("spectres, batch, float32", "Resampler, float32"),
        ("chebfit loop", "chebyshev_continuum"),
    ):
        print(f"{fast} is {median[slow] / median[fast]:.1f} x faster than {slow}")


if __name__ == "__main__":
    main()
