"""What is changed in each line of the table of `maury.evaluation.stress`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def of_light(changed: Light) -> Change:
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


def _pairs(low_kms: float, high_kms: float, light: tuple[float, float] = (0.1, 0.5)) -> Change:
    return lambda batch, scene: scene.library.paired(
        batch, scene.rng, light=light, speed_kms=(low_kms, high_kms)
    )


def _noisy_bands(rms: float, told: bool, bands: Sequence[str] = INFRARED) -> Change:
    return lambda batch, scene: change.noisier_bands(batch, scene.rng, bands, rms=rms, told=told)


def _noisy_parallax(relative: float, told: bool) -> Change:
    return lambda batch, scene: change.noisier_parallax(
        batch, scene.rng, relative=relative, told=told
    )


def _low_snr(low: float, high: float) -> Change:
    return lambda batch, scene: change.at_snr(
        batch,
        scene.rng,
        scene.clean(batch),
        snr=scene.uniform(batch, low, high),
        correlation=scene.library.correlation,
    )


def _broader(factor: float) -> Change:
    """Lower the resolving power by a factor."""

    def changed(wave: Float64Array, clean: Float32Array, batch: Batch, scene: Scene) -> AnyArray:
        power = scene.library.resolving_power
        if power is None:
            raise ColumnError("the survey does not say its resolving power")
        sigma = change.resolution_sigma_kms(power, factor)
        return change.broadened(wave, clean, sigma_kms=sigma)

    return of_light(changed)


def _strengths(rms: float) -> Change:
    return of_light(
        lambda wave, clean, batch, scene: change.line_strengths(wave, clean, scene.rng, rms)
    )


def _stronger(factor: float) -> Change:
    return of_light(lambda wave, clean, batch, scene: 1.0 - factor * (1.0 - clean))


def _scattered(share: float) -> Change:
    return of_light(lambda wave, clean, batch, scene: change.scattered(clean, share))


def _fringes(amplitude: float) -> Change:
    return of_light(
        lambda wave, clean, batch, scene: change.fringes(wave, clean, scene.rng, amplitude)
    )


def _blend(shift_mag: float, bands: Sequence[str] = INFRARED) -> Change:
    return lambda batch, scene: change.shifted_bands(batch, dict.fromkeys(bands, shift_mag))


def _ends(blue: float, red: float) -> Change:
    return lambda batch, scene: change.without_ends(batch, blue, red)


def _red(a_v: float, told: bool) -> Change:
    return lambda batch, scene: change.reddened(batch, a_v, told=told)


def _need(wave: Float64Array, what: str, low_aa: float, high_aa: float) -> None:
    """Refuse a change of pixels that the spectra do not have, as nothing would be changed."""
    if not wave[0] < low_aa < high_aa < wave[-1]:
        raise ColumnError(f"the spectra do not reach over {what}")


def _emission(low_aa: float, high_aa: float) -> Change:
    """Emission of such equivalent widths in the Ca II triplet."""

    def changed(wave: Float64Array, clean: Float32Array, batch: Batch, scene: Scene) -> AnyArray:
        _need(wave, "the Ca II triplet", CALCIUM_AA[0], CALCIUM_AA[-1])
        return change.emission(wave, clean, scene.uniform(batch, low_aa, high_aa))

    return of_light(changed)


def _range(low_aa: float, high_aa: float) -> Change:
    """Keep the pixels of another survey."""

    def changed(batch: Batch, scene: Scene) -> Batch:
        _need(batch.spectra.wave_aa, f"{low_aa:.0f}-{high_aa:.0f} angstrom", low_aa, high_aa)
        return change.without_all_but(batch, low_aa, high_aa)

    return changed


def _cores(low: float, high: float) -> Change:
    """Deepen the cores of the Ca II triplet by as much of the continuum; negative fills them."""

    def changed(wave: Float64Array, clean: Float32Array, batch: Batch, scene: Scene) -> AnyArray:
        _need(wave, "the Ca II triplet", CALCIUM_AA[0], CALCIUM_AA[-1])
        return change.calcium_cores(wave, clean, scene.uniform(batch, low, high))

    return of_light(changed)


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
    return of_light(
        lambda wave, clean, batch, scene: change.broadened(
            wave, clean, rv_kms=scene.signs(batch) * scene.uniform(batch, low_kms, high_kms)
        )
    )


def _rotating(speed_kms: float) -> Change:
    return of_light(
        lambda wave, clean, batch, scene: change.broadened(wave, clean, rotation_kms=speed_kms)
    )


def _random(share: float) -> Change:
    return lambda batch, scene: change.without_random(batch, scene.rng, share)


FAULTS = {
    "radial velocity wrong by 50-300 km/s": _shifted(50.0, 300.0),
    "Ca II emission of 0.4-1.5 A": _emission(0.4, 1.5),
    "double lines, light ratio 0.5-1": _double,
    "continuum off by 2-8 %": of_light(
        lambda wave, clean, batch, scene: change.tilted(
            clean, scene.rng, scene.uniform(batch, 0.02, 0.08)
        )
    ),
    "photometry of another star": lambda batch, scene: change.swapped_photometry(batch, scene.rng),
}
"""Gross faults, which have to be warned of."""

_PIXELS: dict[str, Change] = {
    "blue 9.4 % of the pixels missing": _ends(0.094, 0.0),
    "20 % missing at both ends": _ends(0.2, 0.2),
    "range of Gaia RVS, 8460-8700 A": _range(8460.0, 8700.0),
    "20 % of the pixels missing at random": _random(0.2),
    "40 % of the pixels missing at random": _random(0.4),
    "60 % of the pixels missing at random": _random(0.6),
    # 40 and 52 of RAVE's 912 pixels.
    "two gaps of 4.4 % of the pixels": _gaps(2, 0.044),
    "one gap of 5.7 % of the pixels": _gaps(1, 0.057),
    "blue half missing": _ends(0.5, 0.0),
    "red half missing": _ends(0.0, 0.5),
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
    "J to W2 noisier by .05 mag, not told": _noisy_bands(0.05, False),
    "J to W2 noisier by .05 mag, told": _noisy_bands(0.05, True),
    "parallax error 20 %, not told": _noisy_parallax(0.2, False),
    "parallax error 20 %, told": _noisy_parallax(0.2, True),
    "A_V larger by 1 mag, told": _red(1.0, True),
    "A_V larger by .5 mag, not told": _red(0.5, False),
    "J to W2 blended by .2 mag": _blend(-0.2),
}
_SPECTRA: dict[str, Change] = {
    "unresolved binary, 0-10 km/s": _pairs(0.0, 10.0),
    "unresolved binary, 10-25 km/s": _pairs(10.0, 25.0),
    "unresolved binary, 25-40 km/s": _pairs(25.0, 40.0),
    "lines 15 % rms off, each by itself": _strengths(0.15),
    "all lines 10 % stronger": _stronger(1.1),
    "scattered light 6 %": _scattered(0.06),
    "fringes 2 %": _fringes(0.02),
    "rotation of 30 km/s": _rotating(30.0),
    "rotation of 60 km/s": _rotating(60.0),
    "velocities off by 3 km/s": _shifted(3.0, 3.0),
    "S/N 10-20": _low_snr(10.0, 20.0),
    "S/N overstated twice": lambda b, s: change.overstated_snr(b, 2.0),
    "resolving power 10 % lower": _broader(0.9),
    "Ca II cores deeper by .05-.14": _cores(0.05, 0.14),
    "Ca II cores filled by .05-.14": _cores(-0.14, -0.05),
}
_FURTHER: dict[str, Change] = {
    "5 % missing at both ends": _ends(0.05, 0.05),
    "30 % missing at the red end": _ends(0.0, 0.3),
    "10 % of the pixels missing at random": _random(0.1),
    "30 % of the pixels missing at random": _random(0.3),
    "50 % of the pixels missing at random": _random(0.5),
    "five gaps of 3 % of the pixels": _gaps(5, 0.03),
    "one gap of 12 % of the pixels": _gaps(1, 0.12),
    "one gap of 30 % of the pixels": _gaps(1, 0.3),
    "J, H, Ks and parallax alone": _with_only("J", "H", "Ks", "parallax"),
    "G - Ks and A_V alone": _with_only("G", "Ks", "a_v"),
    "W1 - W2 alone": _with_only("W1", "W2"),
    "parallax alone": _with_only("parallax"),
    "no parallax, no A_V": _without("parallax", "a_v"),
    "half of the inputs missing at random": lambda b, s: change.without_some(b, s.rng, 0.5),
    "photometry alone, half of it missing": lambda b, s: change.without_some(
        hide(b, ["spectrum"]), s.rng, 0.5
    ),
    "J to W2 noisier by .02 mag, not told": _noisy_bands(0.02, False),
    "all bands noisier by .1 mag, not told": _noisy_bands(0.1, False, ALL_BANDS),
    "all bands noisier by .1 mag, told": _noisy_bands(0.1, True, ALL_BANDS),
    "parallax error 10 %, not told": _noisy_parallax(0.1, False),
    "parallax error 10 %, told": _noisy_parallax(0.1, True),
    "parallax error 30 %, told": _noisy_parallax(0.3, True),
    "A_V larger by .5 mag, told": _red(0.5, True),
    "A_V larger by 2 mag, told": _red(2.0, True),
    "A_V larger by .2 mag, not told": _red(0.2, False),
    "J, H, Ks blended by .1 mag": _blend(-0.1, ("J", "H", "Ks")),
    "W1, W2 blended by .4 mag": _blend(-0.4, ("W1", "W2")),
    "one band .3 mag off": lambda b, s: change.one_band_off(b, s.rng, -0.3),
    "unresolved binary, light ratio .02-.1": _pairs(0.0, 10.0, (0.02, 0.1)),
    "unresolved binary, light ratio .5-1": _pairs(0.0, 10.0, (0.5, 1.0)),
    "unresolved binary, 40-60 km/s": _pairs(40.0, 60.0),
    "lines 8 % rms off, each by itself": _strengths(0.08),
    "all lines 5 % stronger": _stronger(1.05),
    "all lines 10 % weaker": _stronger(0.9),
    "scattered light 3 %": _scattered(0.03),
    "scattered light 12 %": _scattered(0.12),
    "fringes 1 %": _fringes(0.01),
    "fringes 4 %": _fringes(0.04),
    "rotation of 15 km/s": _rotating(15.0),
    "rotation of 45 km/s": _rotating(45.0),
    "velocities off by 6 km/s": _shifted(6.0, 6.0),
    "velocities off by 12 km/s": _shifted(12.0, 12.0),
    "S/N 20-30": _low_snr(20.0, 30.0),
    "S/N overstated by half": lambda b, s: change.overstated_snr(b, 1.5),
    "S/N understated twice": lambda b, s: change.overstated_snr(b, 0.5),
    "resolving power 20 % lower": _broader(0.8),
    "Ca II cores deeper by .02-.05": _cores(0.02, 0.05),
    "Ca II cores filled by .02-.05": _cores(-0.05, -0.02),
}
"""Other strengths of the same kinds, and other sets of inputs."""
LINES: tuple[Line, ...] = tuple(
    Line(name, how)
    for name, how in {
        "nothing": lambda batch, scene: batch,
        **_PIXELS,
        **_INPUTS,
        **_PHOTOMETRY,
        **_SPECTRA,
        **FAULTS,
    }.items()
)
FURTHER_LINES: tuple[Line, ...] = tuple(Line(name, how) for name, how in _FURTHER.items())
"""Cases that steered nothing while the table was improved: whether it holds between them too."""
