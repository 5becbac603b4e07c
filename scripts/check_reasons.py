"""Measure whether the reasons that a model gives for its warnings are right.

    python scripts/check_reasons.py SURVEY.zarr MODEL [MODEL ...] [--part validation|test]

Held-out stars get one cause each. Prints, per cause: the share warned of; of those, the share that
has the right reason, and the share that has each reason; all in percent.
"""

import argparse
import zlib
from collections import Counter
from functools import cache, partial
from pathlib import Path

import numpy as np

from maury.evaluation import perturbations as change
from maury.evaluation.library import Library
from maury.evaluation.stress_lines import LINES, Change, Scene, of_light
from maury.evaluation.validation import STARS, held_out_rows
from maury.labels.flags import Flag, warn
from maury.model.directory import Model
from maury.prediction.streaming import Predictor
from maury.survey.store import Survey

KNOWN = {line.name: line.change for line in LINES}
REASONS = {
    "velocity": Flag.RADIAL_VELOCITY_WRONG,
    "emission": Flag.EMISSION,
    "second lines": Flag.DOUBLE_LINED,
    "binary": Flag.BINARY_SUSPECTED,
    "rotation": Flag.FAST_ROTATION,
    "zero level": Flag.ZERO_LEVEL,
    "continuum": Flag.CONTINUUM_BAD,
    "hot": Flag.HOT_STAR,
    "cool": Flag.COOL_STAR,
    "observables": Flag.OBSERVABLES_UNLIKE,
    "disagree": Flag.PHOTOMETRY_DISAGREES,
    "unlike": Flag.SPECTRUM_UNLIKE | Flag.LABELS_UNLIKE | Flag.OBSERVABLE_OUTSIDE,
    "poor fit": Flag.RECONSTRUCTION_POOR,
}
TWO = Flag.BINARY_SUSPECTED | Flag.DOUBLE_LINED
PHOTOMETRY = Flag.OBSERVABLES_UNLIKE | Flag.PHOTOMETRY_DISAGREES | Flag.OBSERVABLE_OUTSIDE


def shifted(low_kms: float, high_kms: float) -> Change:
    """Shift the lines by a velocity of either sign."""
    return of_light(
        lambda wave, clean, batch, scene: change.broadened(
            wave, clean, rv_kms=scene.signs(batch) * scene.uniform(batch, low_kms, high_kms)
        )
    )


def core(low_aa: float, high_aa: float) -> Change:
    """Add emission in the Ca II cores, of equivalent widths that add up to this."""
    return of_light(
        lambda wave, clean, batch, scene: change.emission(
            wave, clean, scene.uniform(batch, low_aa, high_aa)
        )
    )


def level(low: float, high: float) -> Change:
    """Add light (or take it off, if negative), then normalise anew."""
    return of_light(
        lambda wave, clean, batch, scene: (
            (clean + (z := scene.uniform(batch, low, high)[:, None])) / (1.0 + z)
        )
    )


def rotating(low_kms: float, high_kms: float) -> Change:
    """Broaden lines by rotation."""
    return of_light(
        lambda wave, clean, batch, scene: change.broadened(
            wave, clean, rotation_kms=scene.uniform(batch, low_kms, high_kms)
        )
    )


def tilted(low: float, high: float) -> Change:
    """Bend the continuum by Legendre polynomials of this rms."""
    return of_light(
        lambda wave, clean, batch, scene: change.tilted(
            clean, scene.rng, scene.uniform(batch, low, high)
        )
    )


CAUSES: dict[str, tuple[Change | str, Flag]] = {
    "nothing": ("nothing", Flag(0)),
    "RV wrong by 15-50 km/s": (shifted(15.0, 50.0), Flag.RADIAL_VELOCITY_WRONG),
    "RV wrong by 50-300 km/s": (shifted(50.0, 300.0), Flag.RADIAL_VELOCITY_WRONG),
    "Ca II emission, 0.2-0.4 angstrom": (core(0.2, 0.4), Flag.EMISSION),
    "Ca II emission, 0.4-1.5 angstrom": (core(0.4, 1.5), Flag.EMISSION),
    "double lines, 60-200 km/s": ("double lines, light ratio 0.5-1", Flag.DOUBLE_LINED),
    "binary, ratio .1-.5, 0-10 km/s": ("unresolved binary, 0-10 km/s", TWO),
    "binary, ratio .1-.5, 10-25 km/s": ("unresolved binary, 10-25 km/s", TWO),
    "binary, ratio .1-.5, 25-40 km/s": ("unresolved binary, 25-40 km/s", TWO),
    "rotation, 30-60 km/s": (rotating(30.0, 60.0), Flag.FAST_ROTATION),
    "rotation, 60-120 km/s": (rotating(60.0, 120.0), Flag.FAST_ROTATION),
    "scattered light, 6-12 %": (level(0.06, 0.12), Flag.ZERO_LEVEL),
    "scattered light, 12-25 %": (level(0.12, 0.25), Flag.ZERO_LEVEL),
    "zero level too high by 6-12 %": (level(-0.12, -0.06), Flag.ZERO_LEVEL),
    "continuum off by 1-2 %": (tilted(0.01, 0.02), Flag.CONTINUUM_BAD),
    "continuum off by 2-8 %": (tilted(0.02, 0.08), Flag.CONTINUUM_BAD),
    "fringes 2 %": ("fringes 2 %", Flag.CONTINUUM_BAD),
    "A_V larger by 1 mag, told": ("A_V larger by 1 mag, told", PHOTOMETRY),
    "A_V larger by .5 mag, not told": ("A_V larger by .5 mag, not told", PHOTOMETRY),
    "J to W2 blended by .2 mag": ("J to W2 blended by .2 mag", PHOTOMETRY),
    "photometry of another star": ("photometry of another star", PHOTOMETRY),
}
"""What is done to the stars, by name or as a line of `check_trust.py`, and the right reasons."""


def show(model: Model, survey: Survey, part: str) -> None:
    """Print the table of one model."""
    batch = survey.rows(held_out_rows(model, survey, split=part))
    predictor, library = Predictor(model), cache(partial(Library.of, survey))
    print(f"\n{model.path.name if model.path else ''}: {len(batch)} spectra ({STARS[part]})")
    print("| cause | warned | right reason | " + " | ".join(REASONS) + " |")
    print("|" + "---|" * (3 + len(REASONS)))
    for name, (how, right) in CAUSES.items():
        scene = Scene(library, np.random.default_rng(zlib.crc32(name.encode())))
        changed = (KNOWN[how] if isinstance(how, str) else how)(batch, scene)
        flags = predictor.predict(changed)["flags"]
        flags = flags[warn(flags)]
        count = Counter({key: int(np.sum((flags & flag) != 0)) for key, flag in REASONS.items()})
        found = "" if not right else f"{np.sum((flags & right) != 0) / max(len(flags), 1):.0%}"
        cells = (f"{count[key] / max(len(flags), 1):.0%}" for key in REASONS)
        print(f"| {name} | {len(flags) / len(batch):.0%} | {found} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("survey", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--part", choices=("validation", "test"), default="test")
    arguments = parser.parse_args()
    survey = Survey.open(arguments.survey)
    print("SIMULATED spectra" if survey.simulated else "", survey.path.name)
    for path in arguments.models:
        show(Model.open(path), survey, arguments.part)


if __name__ == "__main__":
    main()
