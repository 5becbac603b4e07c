"""Inputs are lost as often as set, and in the ways that surveys lose them."""

import numpy as np
import pytest

from maury.simulation.dropping import Dropping, drop_inputs, drop_pixels

NONE = Dropping(spectrum=0, observables=0, sources=0, all_but_one=0, subset=0, pixels=0)


def some(**changes):
    return NONE.model_copy(update=changes)


def test_inputs_are_dropped_as_often_as_set():
    rng = np.random.default_rng(0)
    sources = np.array([[1, 0, 0, 1], [0, 1, 0, 1], [0, 0, 1, 0]], dtype=bool)
    ivar = np.ones((40_000, 3), np.float32)
    observables = np.zeros((40_000, 4))
    dropping = some(spectrum=0.1, observables=0.2, sources=0.05)
    dark, seen = drop_inputs(ivar, observables, sources, dropping=dropping, rng=rng)
    blind, bare = (dark == 0).all(axis=1), np.isnan(seen).all(axis=1)
    assert blind.mean() == pytest.approx(0.1, abs=0.01)
    assert bare[~blind].mean() == pytest.approx(0.2 / 0.9, abs=0.01)
    assert bare[blind].mean() < 1e-3
    free = ~blind & ~bare
    lost = np.isnan(seen[free])
    assert lost[:, 2].mean() == pytest.approx(0.05, abs=0.01)
    np.testing.assert_array_equal(lost[:, 3], lost[:, 0] | lost[:, 1])
    single = some(all_but_one=1.0)
    _, seen = drop_inputs(ivar[:100], observables[:100], sources, dropping=single, rng=rng)
    assert set(np.isnan(seen[:, :3]).sum(axis=1)) == {2}
    assert (ivar == 1).all()
    assert np.isfinite(observables).all()


def test_any_subset_of_the_sources_is_met():
    rng = np.random.default_rng(1)
    ivar, observables = np.ones((4000, 3), np.float32), np.zeros((4000, 5))
    _, seen = drop_inputs(
        ivar, observables, np.eye(5, dtype=bool), dropping=some(subset=1), rng=rng
    )
    kept = np.isfinite(seen)
    assert len(np.unique(kept, axis=0)) == 32
    # A probability that is uniform itself makes each number of them equally likely.
    counts = np.bincount(kept.sum(axis=1), minlength=6) / 4000
    np.testing.assert_allclose(counts, 1 / 6, atol=0.03)


def test_whole_groups_are_lost_and_something_that_tells_is_left():
    rng = np.random.default_rng(5)
    # Two bands, a parallax and two groups of columns.
    groups = np.array([0, 0, 1, 2, 3])
    ivar, observables = np.ones((16_000, 3), np.float32), np.zeros((16_000, 5))
    dark, seen = drop_inputs(
        ivar,
        observables,
        np.eye(5, dtype=bool),
        dropping=some(groups=1.0),
        rng=rng,
        groups=groups,
    )
    kept = np.column_stack([(dark > 0).any(axis=1), np.isfinite(seen)])
    np.testing.assert_array_equal(kept[:, 1], kept[:, 2])
    cases, counts = np.unique(kept[:, [0, 1, 3, 4, 5]], axis=0, return_counts=True)
    # All 32 but nothing and the parallax alone.
    assert len(cases) == 30
    assert not (~cases[:, [0, 1, 3, 4]]).all(axis=1).any()
    assert counts.min() > 0.8 * 16_000 / 32
    # Without groups, as for a survey without further columns, nothing of the kind is drawn.
    again = [
        drop_inputs(ivar, observables, np.eye(5, dtype=bool), dropping=one, rng=rng)
        for one in (some(groups=1.0), some(groups=0.0))
    ]
    assert all(np.isfinite(values).all() for _, values in again)


def test_pixels_are_lost_as_gaps_ends_and_alone():
    lost = drop_pixels(6000, 900, 0.6, np.random.default_rng(2))
    share = lost.mean(axis=1)
    # Of those that lose pixels at random, one in a hundred is to lose less than one of 900.
    assert (share > 0).mean() == pytest.approx(0.6, abs=0.03)
    assert 0.5 < share.max() < 0.65
    edges = np.diff(lost[share > 0.05].astype(int), axis=1)
    runs = (edges == 1).sum(axis=1) + lost[share > 0.05][:, 0]
    assert (runs > 20).mean() == pytest.approx(1 / 3, abs=0.06)
    ends = lost[share > 0.05][runs <= 2]
    assert (ends[:, 0] | ends[:, -1]).mean() > 0.5


def test_nothing_is_lost_where_no_share_is():
    rng = np.random.default_rng(3)
    ivar, observables = np.ones((50, 7), np.float32), np.zeros((50, 2))
    dark, seen = drop_inputs(ivar, observables, np.eye(2, dtype=bool), dropping=NONE, rng=rng)
    assert (dark == 1).all()
    assert np.isfinite(seen).all()
