"""What is there of a star's inputs, and stars that lose a part of it."""

from dataclasses import replace

import numpy as np
import pytest

from maury.model.networks.default import DefaultConfig
from maury.prediction.completeness import N_COMPLETENESS, N_FURTHER, completeness, degraded
from maury.spectra.observable_map import ObservableMap
from maury.spectra.preparation import Inputs, Preparation

MAP = Preparation.from_json(DefaultConfig.preparation_defaults).observable_map
LOST, SQUARE, LONE, TILT, DARK, BANDS, NO_BAND, NO_PARALLAX, NO_A_V = range(9)
ERRORS = slice(9, 12)


def whole(n=5):
    observables = np.zeros((n, MAP.depends.shape[1]), np.float32)
    observables[:, MAP.is_error] = np.nan
    flux = np.ones((n, 100), np.float32)
    flags, snr = np.zeros(n, np.int32), np.full(n, 50.0)
    wave = 8420.0 + 0.4 * np.arange(100)
    return Inputs(flux, flux, observables, 0 * observables, flags, snr, wave, "air")


def without(inputs, *names):
    gone = np.isin(MAP.names, names).astype(float) @ MAP.depends > 0
    return replace(inputs, observables=np.where(gone, np.nan, inputs.observables))


def test_a_whole_star_lacks_nothing():
    np.testing.assert_array_equal(completeness(whole(), MAP), np.zeros((5, N_COMPLETENESS)))


def test_pixels_that_are_lost_are_counted_by_share_and_place():
    ivar = np.ones((3, 100), np.float32)
    ivar[0, :20] = ivar[1, 1:41:2] = ivar[2] = 0
    found = completeness(replace(whole(3), ivar=ivar), MAP)
    np.testing.assert_allclose(found[:, LOST], [0.2, 0.2, 0.0])
    np.testing.assert_allclose(found[:, SQUARE], [0.04, 0.04, 0.0])
    np.testing.assert_allclose(found[:, LONE], [0.0, 0.2, 0.0])
    np.testing.assert_allclose(found[:, TILT], [0.4, 0.4, 0.0])
    np.testing.assert_array_equal(found[:, DARK], [0, 0, 1])


def test_bands_parallax_and_extinction_are_counted():
    found = completeness(without(whole(1), "J", "parallax"), MAP)[0]
    assert found[BANDS] == pytest.approx(1 / 8)
    assert (found[NO_BAND], found[NO_PARALLAX], found[NO_A_V]) == (0, 1, 0)
    nothing = completeness(without(whole(1), *MAP.names), MAP)[0]
    assert (nothing[BANDS], nothing[NO_BAND], nothing[NO_PARALLAX], nothing[NO_A_V]) == (1, 1, 1, 1)


def test_errors_count_where_they_are_told_and_large():
    inputs = whole(1)
    inputs.observables[:, MAP.error_columns[MAP.names.index("G")]] = 0.8
    inputs.observables[:, MAP.error_columns[MAP.names.index("parallax")]] = -0.5
    found = completeness(inputs, MAP)[0, ERRORS]
    np.testing.assert_allclose(found, [0.8 / 8, 0.0, 0.0], rtol=1e-6)


def test_a_network_without_photometry_has_no_bands():
    found = completeness(whole(2), ObservableMap.empty())
    np.testing.assert_array_equal(found, np.zeros((2, N_COMPLETENESS)))


def with_columns():
    own = {"observable": "columns", "source": "own", "columns": ["one", "two"]}
    other = {"observable": "columns", "source": "other", "columns": ["three"]}
    defaults = DefaultConfig.preparation_defaults["observables"]
    return Preparation.from_json({"observables": [*defaults, own, other]}).observable_map


def test_further_columns_are_counted_by_group():
    mapping = with_columns()
    inputs = whole(4)
    columns = np.zeros((4, 3), np.float32)
    columns[1, 0] = columns[2, :2] = columns[3] = np.nan
    inputs = replace(inputs, observables=np.hstack([inputs.observables, columns]))
    found = completeness(inputs, mapping)
    assert found.shape == (4, N_COMPLETENESS + N_FURTHER)
    # One of two columns is a group that is there.
    np.testing.assert_array_equal(found[:, N_COMPLETENESS], [0, 0, 0.5, 1])
    np.testing.assert_array_equal(found[:, N_COMPLETENESS + 1 :], 0)
    dark = completeness(replace(inputs, ivar=0 * inputs.ivar), mapping)
    np.testing.assert_array_equal(dark[:, N_COMPLETENESS + 1], [0, 0, 0.5, 1])


def test_noise_of_xp_counts_where_it_is_told_and_large():
    xp = {"observable": "xp", "noise": True}
    mapping = Preparation.from_json({"observables": [{"observable": "a_v"}, xp]}).observable_map
    inputs = whole(4)
    observables = np.zeros((4, mapping.depends.shape[1]), np.float32)
    observables[:, -1] = [0.7, -0.3, np.nan, 0.7]
    ivar = inputs.ivar.copy()
    ivar[3] = 0
    found = completeness(replace(inputs, ivar=ivar, observables=observables), mapping)
    np.testing.assert_allclose(found[:, -3], [0.7, 0, 0, 0.7], rtol=1e-6)
    np.testing.assert_allclose(found[:, -2], [0, 0, 0, 0.7], rtol=1e-6)


def test_stars_lose_whole_groups_of_further_columns():
    mapping = with_columns()
    assert mapping.groups is not None
    kinds = dict(zip(mapping.names, mapping.groups.tolist(), strict=True))
    assert kinds["G"] == kinds["W2"] == kinds["a_v"] == 0
    assert (kinds["parallax"], kinds["own"], kinds["other"]) == (1, 2, 3)
    assert MAP.groups is None
    inputs = whole(3000)
    columns = np.zeros((3000, 3), np.float32)
    inputs = replace(inputs, observables=np.hstack([inputs.observables, columns]))
    found = completeness(degraded(inputs, mapping, np.random.default_rng(0)), mapping)
    dark, none, away = found[:, DARK] > 0, found[:, NO_BAND] > 0, found[:, N_COMPLETENESS] > 0
    # Any of them may be all that is left of a star, in some percent of the stars.
    for case in (dark & none & ~away, dark & ~none & away, ~dark & none & away):
        assert case.mean() > 0.015


def test_degraded_stars_lose_inputs_and_are_told_of_noise():
    inputs = whole(3000)
    less = degraded(inputs, MAP, np.random.default_rng(0))
    found = completeness(less, MAP)
    assert found[:, DARK].mean() == pytest.approx(0.25, abs=0.03)
    assert (found[:, LOST] > 0).mean() == pytest.approx(0.6 * 0.75, abs=0.04)
    assert (found[:, BANDS] > 0).mean() > 0.3
    assert (found[:, ERRORS] > 0).any(axis=1).mean() > 0.15
    # What was there stays the caller's.
    np.testing.assert_array_equal(inputs.ivar, 1)
    np.testing.assert_array_equal(less.flux, inputs.flux)
