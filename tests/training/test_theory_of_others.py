"""A trained Payne as the theory of the default network: from a file, and from a model of ours."""

import numpy as np
import pytest

from builders.training_survey import WAVE, write_survey
from maury.errors import ConfigError
from maury.methods.training import train_method
from maury.simulation.training_stars import TrainingStarSimulator
from maury.training.ensemble import train

CONFIG = {
    "network": {"stem": 8, "width": 8, "depth": 1, "blocks": 1},
    "training": {"steps": 2, "stars": 300, "batch_size": 16, "theory": "learnt"},
}
LINES = np.exp(-0.5 * ((np.arange(64) - [[20], [45]]) / [[3.0], [4.0]]) ** 2)


def true_flux(labels):
    """As the survey is written, without its noise."""
    u, v = (labels[:, 0] - 4000) / 3000, (labels[:, 1] - 1) / 3
    return 1 - 0.6 * (np.outer(u, LINES[0]) + np.outer(v, LINES[1]))


@pytest.fixture
def payne_file(tmp_path):
    """The truth as a network: labels scaled to -.5 to .5, plus 1, are where it is linear."""
    np.savez(
        tmp_path / "net.npz",
        w_array_0=np.eye(2),
        b_array_0=np.ones(2),
        w_array_1=np.eye(2),
        b_array_1=np.zeros(2),
        w_array_2=-0.6 * LINES.T,
        b_array_2=1 + 0.3 * LINES.sum(axis=0),
        x_min=np.array([4000.0, 1.0]),
        x_max=np.array([7000.0, 4.0]),
    )
    np.savez(tmp_path / "wave.npz", wavelength=WAVE)
    text = 'network = "net.npz"\nwavelength = "wave.npz"\nlabels = ["Teff", "log g"]\n'
    (tmp_path / "payne.toml").write_text(text, "utf-8")
    return tmp_path / "payne.toml"


def with_theory(path):
    return {**CONFIG, "training": {**CONFIG["training"], "synthetic": str(path)}}


@pytest.mark.slow
def test_a_network_of_the_payne_is_where_the_theory_begins(tmp_path, payne_file):
    good = write_survey(tmp_path / "good.zarr", n=160)
    truth = true_flux(good.labels(("teff", "logg")))
    flux = truth + np.random.default_rng(3).normal(0, 0.05, truth.shape)
    ivar = np.full_like(flux, 0.05**-2)
    survey = write_survey(tmp_path / "s.zarr", n=160, flux=flux, ivar=ivar)
    labels = np.random.default_rng(2).uniform([4300, 1.3], [6700, 3.7], (50, 2))
    error = {}
    for title, config in (("alone", CONFIG), ("with", with_theory(payne_file))):
        model = train(survey, tmp_path / title, members=1, config=config, seed=1, n_processes=1)
        found = TrainingStarSimulator.of_model(model).theory(labels)
        apart = found - true_flux(labels)
        # Of what labels do: the mean spectrum is always that of the labelled stars.
        error[title] = np.std(apart - apart.mean(axis=0))
    assert error["with"] < 0.9 * error["alone"], error


def test_a_model_of_ours_is_one_too_unless_it_has_met_the_test_stars(tmp_path):
    survey = write_survey(tmp_path / "s.zarr", n=160, resolving_power=7500)
    quick = {"steps": 20, "hidden": 8, "guides": 40, "guide_size": 8, "labels": ["teff", "logg"]}
    path = tmp_path / "dd"
    train_method(survey, path, method="dd-payne", seed=1, config={"method": quick})
    config = with_theory(path)
    model = train(survey, tmp_path / "m", members=1, config=config, seed=1, n_processes=1)
    assert "dd" in model.training["theory"]["reason"]
    with pytest.raises(ConfigError, match=r"has learnt from \d+ of \d+ test stars"):
        train(survey, tmp_path / "n", members=1, config=config, seed=2, n_processes=1)


@pytest.mark.slow
def test_a_model_without_spectra_is_refused(tmp_path):
    survey = write_survey(tmp_path / "s.zarr", n=160)
    train_method(survey, tmp_path / "c", method="matisse", seed=1)
    with pytest.raises(ConfigError, match="a model of matisse, which gives no spectra"):
        train(survey, tmp_path / "m", members=1, config=with_theory(tmp_path / "c"), seed=1)
