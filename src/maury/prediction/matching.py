"""Spectra on another grid than that of a model, brought to it, or refused.

Medium, resolving power and pixels are converted where nothing is made up by it: lines are
broadened, never sharpened, and pixels averaged, never invented. What lies beyond the spectra is
missing.
"""

from __future__ import annotations

import logging

import numpy as np

from maury.errors import GridMismatch
from maury.io.arrays import Float64Array
from maury.model.directory import Model
from maury.prediction.conditions import POWER_MARGIN
from maury.spectra.batch import Readable
from maury.spectra.operators import air_to_vacuum, bin_edges, vacuum_to_air
from maury.spectra.preparation import Preparation
from maury.spectra.preparation_steps import Broaden, ListedGrid, Resample, SpectralStep, ToMedium
from maury.spectra.spectra import Medium, Spectra, describe_grid, require_same_grid

__all__ = ["matched"]

logger = logging.getLogger(__name__)

_WIDEST_PIXEL = 1.2
"""Width of a pixel over that of the model's, above which its pixels would be made of fewer ones;
a fifth is what two surveys of one spectrograph may differ by. Chosen."""
_ADVICE = (
    "move the model to such spectra with 'maury transfer', or train one on them with 'maury train'"
)
"""What to do about spectra that cannot be brought to the grid of a model."""
_LEAST_COVERED = 0.4
"""Share of the model's pixels that spectra must reach: training takes 60 % away at most."""


def matched(
    model: Model, survey: Readable, power: float | None, *, level: int = logging.WARNING
) -> Preparation:
    """Return the preparation of a model, after what brings the spectra of a survey to its grid.

    Parameters
    ----------
    model : Model
    survey : Readable
        Its wavelengths, medium and resolving power.
    power : float or None
        Resolving power that the model was trained at; None if it is not known.
    level : int
        Of the message that says what is done.

    Raises
    ------
    GridMismatch
        If the spectra cannot be brought to the grid of the model, with the reason.
    """
    preparation = model.preparation
    # Without reading any: each part of a survey asks again.
    spectra = _empty(survey.wave_aa, survey.medium)
    try:
        _require(model, preparation, spectra)
    except GridMismatch as error:
        steps = _steps(model, survey, spectra, power, error, level)
    else:
        steps = _sharper(survey, power, level)
    if not steps:
        return preparation
    matching = preparation.model_copy(update={"steps": (*steps, *preparation.steps)})
    _require(model, matching, spectra)
    return matching


def _sharper(survey: Readable, power: float | None, level: int) -> list[SpectralStep]:
    """Return what broadens spectra of a higher resolving power; none where it is not known."""
    theirs = survey.resolving_power
    if theirs is None or power is None or theirs <= power * (1.0 + POWER_MARGIN):
        return []
    logger.log(
        level,
        "%s: spectra are broadened from a resolving power of %g to %g, that of the model",
        survey.path,
        theirs,
        power,
    )
    return [Broaden(resolving_power=theirs, to=power)]


def _require(model: Model, preparation: Preparation, spectra: Spectra) -> None:
    """Fail before the first batch, not in the middle of a survey."""
    wave_aa, medium = preparation.prepared_grid(spectra)
    got = _empty(wave_aa, medium)
    require_same_grid(model.wave_aa, got, medium=model.medium, advice=_ADVICE)


def _empty(wave_aa: Float64Array, medium: Medium) -> Spectra:
    none = np.zeros((0, wave_aa.size), dtype=np.float32)
    return Spectra(wave_aa, none, none, medium)


def _steps(
    model: Model,
    survey: Readable,
    spectra: Spectra,
    power: float | None,
    error: GridMismatch,
    level: int,
) -> list[SpectralStep]:
    own = _empty(model.wave_aa, model.medium)
    try:
        _require(model, model.preparation, own)
    except GridMismatch:
        # Its chain begins on a grid that only it knows.
        raise error from None
    wave, medium = spectra.wave_aa, model.medium
    steps: list[SpectralStep] = []
    told = []
    if spectra.medium != medium:
        wave = vacuum_to_air(wave) if medium == "air" else air_to_vacuum(wave)
        steps.append(ToMedium(to=medium))
        told.append(f"given in {medium}")
    covered = _covered(model.wave_aa, wave)
    if covered < _LEAST_COVERED:
        raise GridMismatch(
            f"spectra reach {100 * covered:.0f} % of its pixels, of which {_LEAST_COVERED:.0%} are "
            f"needed: {error}"
        ) from None
    _refuse_wide_pixels(model.wave_aa, wave, error)
    theirs = survey.resolving_power
    if theirs is not None and power is not None:
        if theirs < power / (1.0 + POWER_MARGIN):
            raise GridMismatch(
                f"their resolving power of {theirs:g} is lower than the {power:g} that the model "
                f"was trained at, and lines cannot be made sharper: {error}"
            ) from None
        steps += _sharper(survey, power, level)
    else:
        told.append("taken to have the resolving power of the model, as one of them is not known")
    steps.append(Resample(grid=ListedGrid(wave_aa=tuple(model.wave_aa.tolist()))))
    told.append("averaged over its pixels")
    logger.log(
        level,
        "%s has %s, and the model %s: spectra are %s; %.0f %% of its pixels are covered",
        survey.path,
        describe_grid(spectra.wave_aa, spectra.medium),
        describe_grid(model.wave_aa, medium),
        ", ".join(told),
        100 * covered,
    )
    return steps


def _covered(pixels: Float64Array, wave: Float64Array) -> float:
    """Share of pixels that lie within spectra, gaps between arms left out."""
    edges = bin_edges(wave)
    place = np.searchsorted(edges, pixels)
    within = (place > 0) & (place < edges.size)
    nearest = np.clip(place - 1, 0, wave.size - 1)
    # A pixel at a gap has an edge in the middle of it: what it is wide is not what it is wide of.
    typical = np.median(np.diff(wave) / wave[1:]) * wave
    return float(np.mean(within & (np.abs(pixels - wave[nearest]) <= typical[nearest])))


def _refuse_wide_pixels(pixels: Float64Array, wave: Float64Array, error: GridMismatch) -> None:
    """Refuse spectra sampled more coarsely than the model's."""
    theirs, ours = (float(np.median(np.diff(one) / one[1:])) for one in (wave, pixels))
    if theirs > _WIDEST_PIXEL * ours:
        raise GridMismatch(
            f"their pixels are {theirs / ours:.1f} times as wide, and what lies between them "
            f"cannot be made up: {error}"
        ) from None
