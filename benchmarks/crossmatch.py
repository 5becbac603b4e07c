"""Cross-match of 420 165 simulated stars of epoch 2000 with 2 million of epoch 2016, truth known.

Two simulated skies: `disc`, the whole sky with stars crowding to the Galactic plane, and `crowded`,
a field in the plane with 100 000 stars per square degree. One left row in twenty has no partner.
The left catalogue has no proper motions. Each round runs maury and astropy one after the other on
the same arrays, from arrays to indices; medians over the rounds.

Usage: OMP_NUM_THREADS=1 python benchmarks/crossmatch.py [--rounds 5] [--left 420165]
       [--right 2000000] [--sky disc crowded] [--out FILE.json]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from maury.io.arrays import Float64Array, Int64Array

os.environ.setdefault("OMP_NUM_THREADS", "1")

import astropy
import numpy as np
import scipy
from astropy import units as u
from astropy.coordinates import SkyCoord, search_around_sky
from astropy.time import Time

from maury.survey.crossmatch import Positions, match_positions

RADIUS_ARCSEC = 2.0
EPOCHS = (2000.0, 2016.0)
ERROR_ARCSEC = 0.1
WITHOUT_PARTNER = 0.05
TOLERANCE_MAG = 0.5
LEAD_ARCSEC = 0.5


@dataclass(frozen=True)
class Case:
    """Two simulated catalogues, and which right row each left one is (-1: none)."""

    left: Positions
    right: Positions
    truth: Int64Array


def directions(sky: str, n: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Galactic longitude and latitude in degrees."""
    if sky == "disc":
        latitude = np.clip(rng.laplace(0.0, 8.0, n), -89.9, 89.9)
        return rng.uniform(0.0, 360.0, n), latitude
    length = n / 1e5 / 2.0
    return 30.0 + rng.uniform(0.0, length, n), rng.uniform(-1.0, 1.0, n)


def motions(n: int, rng: np.random.Generator) -> tuple[Float64Array, Float64Array]:
    """Proper motions in mas/yr: median 8 in each direction, one star in 500 with up to 4000."""
    speed = 12.0 * np.exp(rng.normal(0.0, 0.9, n))
    fast = rng.random(n) < 0.002
    speed = np.where(fast, 10.0 ** rng.uniform(2.0, 3.6, n), np.minimum(speed, 4000.0))
    angle = rng.uniform(0.0, 2.0 * np.pi, n)
    return speed * np.cos(angle), speed * np.sin(angle)


def simulate(sky: str, n_left: int, n_right: int, seed: int) -> Case:
    """Make the catalogues; the truth is propagated by astropy, not by maury."""
    rng = np.random.default_rng(seed)
    n_lonely = round(WITHOUT_PARTNER * n_left)
    lon, lat = directions(sky, n_right + n_lonely, rng)
    pmra, pmdec = motions(n_right + n_lonely, rng)
    magnitude = 20.0 - rng.exponential(1.5, n_right + n_lonely)
    now = SkyCoord(l=lon * u.deg, b=lat * u.deg, frame="galactic").icrs
    chosen = np.r_[
        rng.choice(n_right, n_left - n_lonely, replace=False),
        np.arange(n_right, n_right + n_lonely),
    ]
    rng.shuffle(chosen)
    then = propagated(now.ra.deg[chosen], now.dec.deg[chosen], pmra[chosen], pmdec[chosen])
    shift = rng.normal(0.0, ERROR_ARCSEC / 3600.0, (2, n_left))
    left = Positions(
        then.ra.deg + shift[0] / np.cos(then.dec.rad),
        then.dec.deg + shift[1],
        EPOCHS[0],
        magnitude=magnitude[chosen] + rng.normal(0.0, 0.1, n_left),
    )
    real = slice(0, n_right)
    right = Positions(
        now.ra.deg[real], now.dec.deg[real], EPOCHS[1], pmra[real], pmdec[real], magnitude[real]
    )
    return Case(left, right, np.where(chosen < n_right, chosen, -1))


def propagated(
    ra: Float64Array, dec: Float64Array, pmra: Float64Array, pmdec: Float64Array
) -> SkyCoord:
    """Positions of epoch 2016 at epoch 2000, by astropy."""
    stars = SkyCoord(
        ra=ra * u.deg,
        dec=dec * u.deg,
        pm_ra_cosdec=pmra * u.mas / u.yr,
        pm_dec=pmdec * u.mas / u.yr,
        obstime=Time(EPOCHS[1], format="jyear"),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return stars.apply_space_motion(new_obstime=Time(EPOCHS[0], format="jyear"))


Clock = Callable[[str, Callable[[], Any]], Any]


def stopwatch(times: dict[str, list[tuple[float, float]]]) -> Clock:
    """Return a function that runs another and keeps its wall and CPU time under a name."""

    def run(name: str, work: Callable[[], Any]) -> Any:
        wall, cpu = time.perf_counter(), time.process_time()
        result = work()
        times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        return result

    return run


def by_astropy(case: Case, clock: Clock) -> Int64Array:
    """Match by astropy, both ways; the nearest within the radius is returned."""
    left, right = case.left, case.right
    then = clock(
        "astropy: apply_space_motion",
        lambda: propagated(
            right.ra_deg,
            right.dec_deg,
            np.asarray(right.pmra_masyr),
            np.asarray(right.pmdec_masyr),
        ),
    )
    ra, dec = then.ra.deg, then.dec.deg

    def nearest() -> Any:
        a = SkyCoord(left.ra_deg * u.deg, left.dec_deg * u.deg)
        return a.match_to_catalog_sky(SkyCoord(ra * u.deg, dec * u.deg))

    def around() -> Any:
        a = SkyCoord(left.ra_deg * u.deg, left.dec_deg * u.deg)
        return search_around_sky(a, SkyCoord(ra * u.deg, dec * u.deg), RADIUS_ARCSEC * u.arcsec)

    index, distance, _ = clock("astropy: match_to_catalog_sky", nearest)
    clock("astropy: search_around_sky", around)
    return np.where(distance.arcsec <= RADIUS_ARCSEC, index, -1)


def score(index: Int64Array, truth: Int64Array) -> dict[str, float]:
    """Share of partners that are found, and share of the matched that are wrong."""
    has = truth >= 0
    matched = index >= 0
    return {
        "completeness": float(np.mean(index[has] == truth[has])),
        "contamination": float(np.mean(index[matched] != truth[matched])),
        "matched": int(matched.sum()),
    }


def measure(case: Case, rounds: int) -> dict[str, Any]:
    """Time both in turn, and score what they found."""
    times: dict[str, list[tuple[float, float]]] = defaultdict(list)
    clock = stopwatch(times)
    for _ in range(rounds):
        found = clock("maury: match_positions", lambda: match_positions(case.left, case.right))
        peer = by_astropy(case, clock)
    left, right = case.left, case.right
    led = match_positions(left, right, lead_arcsec=LEAD_ARCSEC)
    unmoved = Positions(case.right.ra_deg, case.right.dec_deg, EPOCHS[1])
    alike = match_positions(case.left, case.right, magnitude_tolerance=TOLERANCE_MAG)
    scores = {
        "maury": score(found.index, case.truth),
        "maury, certain only": score(np.where(found.certain, found.index, -1), case.truth),
        "maury, certain, with a lead": score(np.where(led.certain, led.index, -1), case.truth),
        "maury, magnitudes": score(alike.index, case.truth),
        "astropy": score(peer, case.truth),
        "without proper motions": score(match_positions(case.left, unmoved).index, case.truth),
    }
    seconds = {
        name: {"wall_s": median(w for w, _ in one), "cpu_s": median(c for _, c in one)}
        for name, one in times.items()
    }
    report = found.report()
    partner = right.take(case.truth[case.truth >= 0])
    chords = left.take(case.truth >= 0).vectors() - partner.vectors(EPOCHS[0])
    within = np.linalg.norm(chords, axis=1) <= np.radians(RADIUS_ARCSEC / 3600.0)
    return {
        "scores": scores,
        "seconds": seconds,
        "same": float(np.mean(found.index == peer)),
        "within": float(np.mean(within)),
        "flags": report.counts,
    }


def show(sky: str, result: dict[str, Any]) -> None:
    """Print one sky."""
    print(f"\n{sky} sky, simulated")
    for name, one in result["scores"].items():
        print(
            f"  {name:30s} completeness {one['completeness']:9.4%}  "
            f"contamination {one['contamination']:9.4%}  matched {one['matched']}"
        )
    for name, one in result["seconds"].items():
        print(f"  {name:30s} wall {one['wall_s']:7.2f} s  CPU {one['cpu_s']:7.2f} s")
    print(f"  partners within the radius: {result['within']:.5%}")
    print(f"  rows where maury and astropy agree: {result['same']:.5%}; flags {result['flags']}")


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--left", type=int, default=420_165)
    parser.add_argument("--right", type=int, default=2_000_000)
    parser.add_argument("--sky", nargs="+", default=["disc", "crowded"])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    print(
        f"{options.left} stars with {options.right}, radius {RADIUS_ARCSEC} arcsec, "
        f"{options.rounds} rounds; numpy {np.__version__}, scipy {scipy.__version__}, "
        f"astropy {astropy.__version__}, {platform.machine()}"
    )
    results = {}
    for sky in options.sky:
        case = simulate(sky, options.left, options.right, options.seed)
        results[sky] = measure(case, options.rounds)
        show(sky, results[sky])
    if options.out:
        options.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
