"""What is changed in each line of the table of `maury.evaluation.stress`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from maury.errors import ColumnError
from maury.evaluation import perturbations as change
from maury.evaluation.library import Library
from maury.evaluation.perturbations import INFRARED
from maury.io.arrays import AnyArray, Float32Array, Float64Array
from maury.prediction.predictor import hide
from maury.simulation.mismatch import CALCIUM_AA
from maury.spectra.batch import Batch
from maury.spectra.observable_groups import ALL_BANDS
from maury.spectra.operators import vacuum_to_air


@dataclass(frozen=True)
class Scene:
    """What a line may know besides the stars: spectra of others, and a random generator."""

    make_library: Callable[[], Library]
    rng: np.random.Generator

    @property
    def library(self) -> Library:
        """Made only where it is needed: not every survey can have one."""
        return self.make_library()

    def clean(self, batch: Batch) -> Float32Array:
        """Clean spectra (n_star, n_pixel) of the stars, continuum = 1."""
        return self.library.clean(batch)

    def uniform(self, batch: Batch, low: float, high: float) -> Float64Array:
        """Draw a number (n_star,) for each star."""
        return self.rng.uniform(low, high, len(batch))

    def signs(self, batch: Batch) -> Float64Array:
        """Draw -1 or 1 (n_star,) for each star."""
        return self.rng.choice([-1.0, 1.0], len(batch))


Change = Callable[[Batch, Scene], Batch]
Light = Callable[[Float64Array, Float32Array, Batch, Scene], AnyArray]
"""Of wavelengths in air, clean spectra, stars and scene: the spectra (n_star, n_pixel) changed."""


@dataclass(frozen=True)
class Line:
    """A line of the table: its name, and how the stars are changed."""

    name: str
    change: Change


def _without(*names: str) -> Change:
    """Hide some inputs, as of `maury.prediction.predictor.WITHOUT`."""
    return lambda batch, scene: hide(batch, names)


def _with_only(*names: str) -> Change:
    """Hide all inputs but some."""
    everything = ("spectrum", *ALL_BANDS, "parallax", "a_v")
    return _without(*(name for name in everything if name not in names))


def _light(changed: Light) -> Change:
    """Change the light of the stars, not the noise."""

    def changed_batch(batch: Batch, scene: Scene) -> Batch:
        clean, wave = scene.clean(batch), batch.spectra.wave_aa
        air = wave if batch.spectra.medium == "air" else vacuum_to_air(wave)
        after = changed(air, clean, batch, scene)
        return change.changed_light(batch, clean, after)

    return changed_batch


def _gaps(number: int, share: float) -> Change:
    """Lose runs of pixels, each a share of all."""

    def lost(batch: Batch, scene: Scene) -> Batch:
        pixels = round(share * batch.spectra.n_pixel)
        return change.without_gaps(batch, scene.rng, number, pixels)

    return lost


def _pairs(low_kms: float, high_kms: float) -> Change:
    return lambda batch, scene: scene.library.paired(
        batch, scene.rng, light=(0.1, 0.5), speed_kms=(low_kms, high_kms)
    )


def _noisy_bands(told: bool) -> Change:
    return lambda batch, scene: change.noisier_bands(
        batch, scene.rng, INFRARED, rms=0.05, told=told
    )


def _noisy_parallax(told: bool) -> Change:
    return lambda batch, scene: change.noisier_parallax(batch, scene.rng, relative=0.2, told=told)


def _low_snr(batch: Batch, scene: Scene) -> Batch:
    return change.at_snr(
        batch,
        scene.rng,
        scene.clean(batch),
        snr=scene.uniform(batch, 10.0, 20.0),
        correlation=scene.library.correlation,
    )


def _broader(wave: Float64Array, clean: Float32Array, batch: Batch, scene: Scene) -> AnyArray:
    power = scene.library.resolving_power
    if power is None:
        raise ColumnError("the survey does not say its resolving power")
    sigma = change.resolution_sigma_kms(power, 0.9)
    return change.broadened(wave, clean, sigma_kms=sigma)


def _cores(sign: float) -> Change:
    """Deepen the cores of the Ca II triplet, or fill them."""

    def changed(wave: Float64Array, clean: Float32Array, batch: Batch, scene: Scene) -> AnyArray:
        if not wave[0] < CALCIUM_AA[0] < CALCIUM_AA[-1] < wave[-1]:
            raise ColumnError("the spectra do not reach over the Ca II triplet")
        return change.calcium_cores(wave, clean, sign * scene.uniform(batch, 0.05, 0.14))

    return _light(changed)


def _double(batch: Batch, scene: Scene) -> Batch:
    """Add the spectrum of another star of any kind, far off in velocity."""
    clean = scene.clean(batch)
    partner = scene.rng.permutation(len(batch))
    speed = scene.signs(batch) * scene.uniform(batch, 60.0, 200.0)
    second = change.broadened(batch.spectra.wave_aa, clean[partner], rv_kms=speed)
    return change.blended(
        batch,
        scene.rng,
        clean,
        second,
        light=scene.uniform(batch, 0.5, 1.0),
        correlation=scene.library.correlation,
    )


def _shifted(low_kms: float, high_kms: float) -> Change:
    return _light(
        lambda wave, clean, batch, scene: change.broadened(
            wave, clean, rv_kms=scene.signs(batch) * scene.uniform(batch, low_kms, high_kms)
        )
    )


def _rotating(speed_kms: float) -> Change:
    return _light(
        lambda wave, clean, batch, scene: change.broadened(wave, clean, rotation_kms=speed_kms)
    )


def _random(share: float) -> Change:
    return lambda batch, scene: change.without_random(batch, scene.rng, share)


FAULTS = {
    "radial velocity wrong by 50-300 km/s": _shifted(50.0, 300.0),
    "Ca II emission of 0.4-1.5 A": _light(
        lambda wave, clean, batch, scene: change.emission(
            wave, clean, scene.uniform(batch, 0.4, 1.5)
        )
    ),
    "double lines, light ratio 0.5-1": _double,
    "continuum off by 2-8 %": _light(
        lambda wave, clean, batch, scene: change.tilted(
            clean, scene.rng, scene.uniform(batch, 0.02, 0.08)
        )
    ),
    "photometry of another star": lambda batch, scene: change.swapped_photometry(batch, scene.rng),
}
"""Gross faults, which have to be warned of."""

_PIXELS: dict[str, Change] = {
    "blue 9.4 % of the pixels missing": lambda b, s: change.without_ends(b, 0.094, 0.0),
    "20 % missing at both ends": lambda b, s: change.without_ends(b, 0.2, 0.2),
    "range of Gaia RVS, 8460-8700 A": lambda b, s: change.without_all_but(b, 8460.0, 8700.0),
    "20 % of the pixels missing at random": _random(0.2),
    "40 % of the pixels missing at random": _random(0.4),
    "60 % of the pixels missing at random": _random(0.6),
    # 40 and 52 of RAVE's 912 pixels.
    "two gaps of 4.4 % of the pixels": _gaps(2, 0.044),
    "one gap of 5.7 % of the pixels": _gaps(1, 0.057),
    "blue half missing": lambda b, s: change.without_ends(b, 0.5, 0.0),
    "red half missing": lambda b, s: change.without_ends(b, 0.0, 0.5),
}
_INPUTS: dict[str, Change] = {
    "photometry alone": _without("spectrum"),
    "photometry alone, no parallax": _without("spectrum", "parallax"),
    "G, BP, RP and parallax alone": _with_only("G", "BP", "RP", "parallax"),
    "BP - RP alone": _with_only("BP", "RP"),
    "J - Ks alone": _with_only("J", "Ks"),
    "spectrum and BP - RP": _with_only("spectrum", "BP", "RP"),
    "spectrum and J - Ks": _with_only("spectrum", "J", "Ks"),
    "no parallax": _without("parallax"),
    "no photometry": _without("photometry"),
    "no A_V": _without("a_v"),
    **{f"no {name}": _without(name) for name in ALL_BANDS},
}
_PHOTOMETRY: dict[str, Change] = {
    "J to W2 noisier by .05 mag, not told": _noisy_bands(False),
    "J to W2 noisier by .05 mag, told": _noisy_bands(True),
    "parallax error 20 %, not told": _noisy_parallax(False),
    "parallax error 20 %, told": _noisy_parallax(True),
    "A_V larger by 1 mag, told": lambda b, s: change.reddened(b, 1.0, told=True),
    "A_V larger by .5 mag, not told": lambda b, s: change.reddened(b, 0.5, told=False),
    "J to W2 blended by .2 mag": lambda b, s: change.shifted_bands(
        b, dict.fromkeys(INFRARED, -0.2)
    ),
}
_LIGHT: dict[str, Change] = {
    "unresolved binary, 0-10 km/s": _pairs(0.0, 10.0),
    "unresolved binary, 10-25 km/s": _pairs(10.0, 25.0),
    "unresolved binary, 25-40 km/s": _pairs(25.0, 40.0),
    "lines 15 % rms off, each by itself": _light(
        lambda wave, clean, batch, scene: change.line_strengths(wave, clean, scene.rng, 0.15)
    ),
    "all lines 10 % stronger": _light(lambda w, clean, b, s: 1.0 - 1.1 * (1.0 - clean)),
    "scattered light 6 %": _light(lambda w, clean, b, s: change.scattered(clean, 0.06)),
    "fringes 2 %": _light(lambda wave, clean, b, s: change.fringes(wave, clean, s.rng, 0.02)),
    "rotation of 30 km/s": _rotating(30.0),
    "rotation of 60 km/s": _rotating(60.0),
    "velocities off by 3 km/s": _shifted(3.0, 3.0),
    "S/N 10-20": _low_snr,
    "S/N overstated twice": lambda b, s: change.overstated_snr(b, 2.0),
    "resolving power 10 % lower": _light(_broader),
    "Ca II cores deeper by .05-.14": _cores(1.0),
    "Ca II cores filled by .05-.14": _cores(-1.0),
}
LINES: tuple[Line, ...] = tuple(
    Line(name, how)
    for name, how in {
        "nothing": lambda batch, scene: batch,
        **_PIXELS,
        **_INPUTS,
        **_PHOTOMETRY,
        **_LIGHT,
        **FAULTS,
    }.items()
)
