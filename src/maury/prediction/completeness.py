"""What is there of a star's inputs, as numbers on which calibrated errors depend."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from maury.io.arrays import BoolArray, Float64Array
from maury.simulation.disturbances import Disturbances, disturb_observables
from maury.simulation.dropping import Dropping, drop_inputs
from maury.spectra.observable_map import ObservableMap
from maury.spectra.preparation import Inputs

__all__ = ["N_COMPLETENESS", "N_FURTHER", "completeness", "degraded"]

N_COMPLETENESS = 18
"""Columns of `completeness`."""
N_FURTHER = 10
"""More of them where there are further columns."""
_DROPPING = Dropping(
    spectrum=0.25,
    observables=0.1,
    sources=0.04,
    all_but_one=0.0,
    subset=0.4,
    groups=0.6,
    pixels=0.6,
)
"""More is dropped than in training, so that each loss is met by hundreds of labelled stars."""
_TOLD = Disturbances.none().model_copy(update={"told": 0.5, "told_noisy": 0.8, "blurred": 0.4})
"""Errors that are told, mostly large ones; what nobody tells of no calibration can know."""


def completeness(inputs: Inputs, mapping: ObservableMap) -> Float64Array:
    """Measure what stars lack, and how uncertain the rest is; 0 for one that lacks nothing.

    Parameters
    ----------
    inputs : Inputs
        Prepared spectra and observables.
    mapping : ObservableMap
        Of these observables; an empty one where a network takes none.

    Returns
    -------
    (n_star, 18) float64
        Share of the pixels lost, its square, the share of lone lost pixels, more lost at the blue
        than at the red end; no spectrum; share of the bands lost, none left, no parallax, no A_V;
        errors of bands, parallax and A_V in decades, where told; of stars without a spectrum, no
        parallax, bands lost, its square, no A_V, bands lost without A_V, and without parallax.
        Where there are further columns, (n_star, 28): share of their groups lost; the same of stars
        without a spectrum, without any band, without both, without parallax, and without that and
        a spectrum; neither spectrum nor any band; noise of XP coefficients in decades, where told,
        and that of stars without a spectrum, and without any band besides.
    """
    bad = inputs.ivar <= 0
    dark: BoolArray = np.all(bad, axis=1)
    # Without a spectrum, its pixels are not lost besides.
    lost: BoolArray = bad > dark[:, None]
    share = lost.mean(axis=1)
    lone = (lost[:, 1:-1] & ~lost[:, :-2] & ~lost[:, 2:]).sum(axis=1) / lost.shape[1]
    half = lost.shape[1] // 2
    tilt = lost[:, :half].mean(axis=1) - lost[:, half:].mean(axis=1)
    bands, parallax, a_v, errors = _photometry(inputs, mapping)
    pixels = (share, share**2, lone, tilt, dark)
    observables = (bands, bands >= 1.0, parallax, a_v, *errors.T)
    alone = (parallax, bands, bands**2, a_v, bands * a_v, bands * parallax)
    both = [dark * one for one in alone]
    columns = [*pixels, *observables, *both]
    if mapping.further.any():
        gone, none = _further_lost(inputs, mapping), bands >= 1.0
        where = (1.0, dark, none, none * dark, parallax, parallax * dark)
        blurred = _blurred(inputs, mapping)
        columns += [*(gone * one for one in where), none * dark]
        columns += [blurred, blurred * dark, blurred * dark * none]
    return np.column_stack(columns).astype(np.float64)


def _further_lost(inputs: Inputs, mapping: ObservableMap) -> Float64Array:
    """Share (n_star,) of the groups of further columns of which there is no value."""
    own = mapping.depends & mapping.further
    there = np.isfinite(inputs.observables).astype(np.float32) @ own.T.astype(np.float32) > 0
    return np.asarray(1.0 - there[:, own.any(axis=1)].mean(axis=1))


def _photometry(
    inputs: Inputs, mapping: ObservableMap
) -> tuple[Float64Array, Float64Array, Float64Array, Float64Array]:
    """Share of bands lost; whether parallax and A_V are; errors (n_star, 3) told of the three."""
    n_star = len(inputs.flux)
    errors, missing = np.zeros((n_star, 3)), np.zeros((n_star, 3))
    kinds = [mapping.bands.tolist(), *([k] for k in map(mapping.number, ("parallax", "a_v")))]
    for place, sources in enumerate(kinds):
        known = [k for k in sources if k is not None]
        if not known:
            continue
        told = []
        for source in known:
            columns = mapping.responses[source] != 0
            gone = ~np.isfinite(inputs.observables[:, columns]).any(axis=1)
            missing[:, place] += gone / len(known)
            column = mapping.error_columns[source]
            if column >= 0:
                # Better than usual, or not told: 0, as are most of the stars that calibrate.
                told.append(np.maximum(np.nan_to_num(inputs.observables[:, column]), 0.0))
        if told:
            errors[:, place] = np.mean(told, axis=0)
    return missing[:, 0], missing[:, 1], missing[:, 2], errors


def _blurred(inputs: Inputs, mapping: ObservableMap) -> Float64Array:
    """Decades (n_star,) by which XP coefficients are noisier than usual, where that is told."""
    told = [column for column in mapping.error_columns if column >= 0 and mapping.further[column]]
    noise = np.maximum(np.nan_to_num(inputs.observables[:, told]), 0.0)
    return np.asarray(noise.sum(axis=1), dtype=np.float64)


def degraded(inputs: Inputs, mapping: ObservableMap, rng: np.random.Generator) -> Inputs:
    """Return stars with a part of their inputs lost, or noisier and told so, drawn at random.

    Parameters
    ----------
    inputs : Inputs
        Prepared spectra and observables of real or simulated stars.
    mapping : ObservableMap
    rng : numpy Generator
    """
    observables = inputs.observables.astype(np.float64)
    if mapping.names:
        observables = disturb_observables(observables, mapping, _TOLD, rng)
    ivar, observables = drop_inputs(
        inputs.ivar,
        observables,
        mapping.depends,
        dropping=_DROPPING,
        rng=rng,
        groups=mapping.groups,
    )
    return replace(inputs, ivar=ivar, observables=observables.astype(np.float32))
