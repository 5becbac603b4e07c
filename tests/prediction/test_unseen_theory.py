"""Thresholds come from reconstructions that know none of the noise of the star."""

from types import SimpleNamespace

import numpy as np
import pytest

from builders.any_window import FIVE, made
from maury.prediction.uncertainty import _Labelled, _Theories
from maury.simulation.observing import ObservingModel
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.preparation import take

N_TRAINING, N_NEW = 120, 200


@pytest.fixture(scope="module")
def stars():
    return made(FIVE, N_TRAINING + N_NEW, seed=4, snr=50.0)


def theory(stars, rows):
    inputs = take(stars.inputs, rows)
    return TrainingStarSimulator.learn(
        inputs.wave_aa,
        inputs.flux,
        inputs.ivar,
        labels=stars.truth[rows],
        names=FIVE,
        observables=np.zeros((len(rows), 0)),
        observing=ObservingModel(resolving_power=20_000, noise_correlation=()),
    )


def chi2(seen, inputs):
    return np.median(((inputs.flux - seen) ** 2 * inputs.ivar).mean(axis=1))


@pytest.fixture(scope="module")
def labelled(stars):
    training = np.arange(len(stars.truth)) < N_TRAINING
    rows = np.arange(len(stars.truth))
    return _Labelled(stars.star_id, stars.truth, None, stars.inputs, training, rows)


def test_training_stars_are_reconstructed_as_badly_as_new_ones(stars, labelled):
    known, new = np.arange(N_TRAINING), np.arange(N_TRAINING, N_TRAINING + N_NEW)
    whole = theory(stars, known)
    theories = _Theories.of(
        SimpleNamespace(seed=1), whole, labelled, lambda rows: theory(stars, rows)
    )
    inputs, others = take(stars.inputs, known), take(stars.inputs, new)
    own = chi2(whole.seen(stars.truth[known], inputs.flux, inputs.ivar), inputs)
    unseen = chi2(theories.seen(stars.truth[known], inputs, known), inputs)
    truth = chi2(whole.seen(stars.truth[new], others.flux, others.ivar), others)
    assert own < 0.95 * truth, "else the theory would not know the noise of its stars"
    assert unseen == pytest.approx(truth, rel=0.05)


def test_no_theory_is_learnt_again_where_it_knows_no_noise(stars, labelled, monkeypatch):
    whole = theory(stars, np.arange(N_TRAINING))
    model = SimpleNamespace(seed=1)
    assert _Theories.of(model, whole, labelled, None).parts == []
    monkeypatch.setattr("maury.prediction.uncertainty._MOST_RELEARNT", N_TRAINING - 1)
    assert _Theories.of(model, whole, labelled, lambda rows: 1 / 0).parts == []


def test_no_star_is_in_the_theory_that_reconstructs_it(stars, labelled):
    asked = []
    found = _Theories.of(
        SimpleNamespace(seed=1),
        theory(stars, np.arange(N_TRAINING)),
        labelled,
        lambda rows: asked.append(rows) or SimpleNamespace(rows=rows),
    )
    for number, rows in enumerate(asked):
        assert not np.isin(np.flatnonzero(found.fold == number), rows).any()
        assert (rows < N_TRAINING).all(), "training stars alone"
    assert sum(N_TRAINING - len(rows) for rows in asked) == N_TRAINING
