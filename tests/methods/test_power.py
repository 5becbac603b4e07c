"""Methods that fit theory see it at the resolving power, and with the noise, of the survey."""

import logging
from dataclasses import replace

import numpy as np
import pytest

from builders.method_samples import sample_of
from maury.errors import ConfigError
from maury.labels.definitions import LABEL_NAMES
from maury.labels.statistics import robust_sigma
from maury.methods.dd_payne import DDPayne
from maury.methods.registry import load_method, method_class, method_settings
from maury.methods.sme import Sme
from maury.methods.training import MethodConfig, collect, fit_method
from maury.prediction.self_check import SELF_CHECK, SelfCheck
from maury.prediction.streaming import predict, predict_rows
from maury.simulation.observing import TRAINING_CONDITIONS
from maury.simulation.surveys import Simulation, simulate_survey
from maury.survey.store import Survey
from maury.training.runs import train

POWER = 11_500.0
SMALL = {"axes": ["teff", "logg", "m_h"]}
OPTIONS = {"payne": {}, "ferre": SMALL, "gauguin": SMALL, "space": {}}


@pytest.fixture(scope="module")
def sharp_survey(tmp_path_factory):
    observing = TRAINING_CONDITIONS.at_power(POWER)
    path = tmp_path_factory.mktemp("sharp") / "sharp.zarr"
    return simulate_survey(path, n_star=300, seed=31, simulation=Simulation(observing=observing))


def few_of(survey, name, power=None):
    """Collect a survey for a method: 50 training stars, too few to calibrate, and the others."""
    config = MethodConfig.resolve(name, {"method": OPTIONS[name]})
    stars = collect(survey, LABEL_NAMES, preparation=config.preparation, split=config.split, seed=0)
    sample = replace(stars.sample, resolving_power=power or stars.sample.resolving_power)
    some, others = np.arange(50), np.arange(50, len(sample))
    parts = {"train": some, "validation": some, "test": others}
    return config, replace(stars, sample=sample, parts=parts)


def biases(survey, name, power=None):
    """Median errors of Teff, log g and [M/H], in their sampling errors."""
    config, stars = few_of(survey, name, power)
    test = stars.part("test")
    error = (fit_method(config, stars, seed=0).apply(test.inputs).labels - test.truth)[:, :3]
    # The median of n normal deviates scatters by sqrt(pi / 2 n).
    scatter = np.array([robust_sigma(column) for column in error.T])
    return np.median(error, axis=0) / (scatter * np.sqrt(np.pi / (2 * len(error))))


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_labels_are_unbiased_at_the_resolving_power_of_the_survey(sharp_survey, name):
    """Median errors of Teff at R = 11 500, of 250 simulated stars, theory at 7500 and at 11 500:

    payne -48 and -1 K, ferre -89 and 2 K, gauguin -92 and 4 K, space -131 and 4 K, each with a
    sampling error of 5 to 9 K.
    """
    assert np.abs(biases(sharp_survey, name)).max() < 3.5
    assert np.abs(biases(sharp_survey, name, 7500.0)).max() > 5.0


@pytest.mark.parametrize("name", [*OPTIONS, "payne-photometry", "gaufre"])
def test_theory_is_not_seen_at_an_unknown_or_too_high_resolving_power(sharp_survey, name):
    _, stars = few_of(sharp_survey, "payne")
    cls, part = method_class(name), stars.part("train")
    for power, message in ((None, r"resolving_power = .*TOML"), (28_000.0, "below the emulator")):
        unfit = replace(part, resolving_power=power)
        # They learn their theory from the stars then, unless they are told not to.
        options = {"theory": "emulator"}
        with pytest.raises(ConfigError, match=message):
            cls.train(unfit, unfit, settings=method_settings(name, options), seed=0)


def test_methods_with_theory_beside_spectra_refuse_it_too(tmp_path):
    truth = np.random.default_rng(0).uniform([4500, 1], [5500, 4], (40, 2))
    flux = np.ones((40, 60))
    sample = sample_of(truth, flux, flux * 1e4, names=("teff", "logg"), resolving_power=None)
    settings = method_settings("sme", {"labels": ["teff", "logg"]})
    with pytest.raises(ConfigError, match=r"resolving_power = .*TOML"):
        Sme.train(sample, sample, settings=settings, seed=0)
    settings = method_settings("dd-payne", {"labels": ["teff", "logg"], "theory": "emulator"})
    with pytest.raises(ConfigError, match=r"resolving_power = .*TOML"):
        DDPayne.train(sample, sample, settings=settings, seed=0)
    settings = method_settings("synspec", {"directory": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"resolving_power = .*TOML"):
        method_class("synspec").train(sample, sample, settings=settings, seed=0)


def test_sme_synthesises_at_the_resolving_power_of_the_survey_unless_it_is_stated(tmp_path):
    rng = np.random.default_rng(0)
    truth = rng.uniform([4500, 1], [5500, 4], (40, 2))
    flux = 1 + 0.01 * rng.standard_normal((40, 60))
    ivar = np.full(flux.shape, 1e4)
    sample = sample_of(truth, flux, ivar, names=("teff", "logg"), resolving_power=POWER)
    lines = tmp_path / "lines.vald"
    lines.write_text("none")
    for stated, power in ((0.0, POWER), (9000.0, 9000.0)):
        options = {"labels": ["teff", "logg"], "line_list": str(lines), "resolving_power": stated}
        method = Sme.train(sample, sample, settings=method_settings("sme", options), seed=0)
        assert method.synthesiser().resolving_power == power


def test_the_resolving_power_is_stored_and_earlier_files_read_as_7500(sharp_survey):
    config, stars = few_of(sharp_survey, "payne")
    method = fit_method(config, stars, seed=0)
    arrays, about = method.to_arrays()
    kept = {"settings": method.settings, "label_names": method.label_names}
    again = type(method).from_arrays(arrays, about, **kept)
    assert again.resolving_power == POWER
    some = stars.part("test").rows(np.arange(5)).inputs
    np.testing.assert_array_equal(again.apply(some).labels, method.apply(some).labels)
    del about["resolving_power"]
    earlier = type(method).from_arrays(arrays, about, **kept)
    assert earlier.resolving_power == 7500.0
    assert earlier.chain.operators[0].spectrograph.model == TRAINING_CONDITIONS
    # A method that learns from spectra alone does not know at which one it was trained.
    assert method_class("cannon").earlier_power is None


@pytest.mark.slow
def test_prediction_tells_of_another_resolving_power(
    tmp_path, default_survey, sharp_survey, caplog
):
    model = train(default_survey, tmp_path / "m", method="ferre", config={"method": SMALL})
    with caplog.at_level(logging.WARNING):
        predict_rows(model, Survey.open(default_survey), np.arange(3))
    assert "resolving power" not in caplog.text
    predict(model, sharp_survey, tmp_path / "c.parquet")
    (told,) = [one for one in caplog.messages if "resolving power" in one]
    assert "11500" in told
    assert "7500" in told


@pytest.mark.slow
def test_fits_take_the_noise_of_the_spectra_to_predict(tmp_path, default_survey):
    model = train(default_survey, tmp_path / "m", method="ferre", config={"method": SMALL})
    survey, method = Survey.open(default_survey), load_method(model)
    inputs = model.preparation.apply(survey.rows(np.arange(40)))
    # Rounding is no other noise: the same bits.
    rounded = replace(inputs, noise_correlation=(0.44, 0.05))
    np.testing.assert_array_equal(method.apply(rounded).labels, method.apply(inputs).labels)
    white = method.apply(replace(inputs, noise_correlation=()))
    of_white = replace(method, core=replace(method.core, noise_correlation=()))
    np.testing.assert_array_equal(of_white.apply(inputs).labels, method.apply(inputs).labels)
    alike = of_white.apply(replace(inputs, noise_correlation=()))
    np.testing.assert_array_equal(alike.sigma, white.sigma)
    # Smooth noise looks like lines: as many pixels of white noise know more of them.
    assert np.nanmedian(white.sigma[:, 0] / method.apply(inputs).sigma[:, 0]) < 0.95


@pytest.mark.slow
def test_a_method_that_cannot_follow_the_noise_says_so(
    tmp_path, default_survey, caplog, monkeypatch
):
    # As models of earlier versions, whose errors are the scatter among ratios.
    monkeypatch.setattr(method_class("athos"), "errors_follow_noise", False)
    labels = ["teff", "logg", "m_h"]
    model = train(
        default_survey, tmp_path / "m", method="athos", config={"method": {"labels": labels}}
    )
    survey = Survey.open(default_survey)
    assert model.preparation.noise_correlation == survey.noise_correlation
    observing = TRAINING_CONDITIONS.with_noise((0.2,))
    other = simulate_survey(
        tmp_path / "o.zarr", n_star=20, seed=1, simulation=Simulation(observing=observing)
    )
    with caplog.at_level(logging.WARNING):
        predict_rows(model, survey, np.arange(3))
        assert "correlation" not in caplog.text
        predict_rows(model, other, np.arange(3))
    assert "correlation (0.2)" in caplog.text
    assert "(0.44, 0.0544)" in caplog.text


@pytest.mark.slow
def test_the_self_check_is_made_with_the_noise_of_its_survey(tmp_path):
    observing = TRAINING_CONDITIONS.with_noise((-0.2,))
    survey = simulate_survey(
        tmp_path / "s.zarr", n_star=160, seed=2, simulation=Simulation(observing=observing)
    )
    labels = {"labels": ["teff", "logg", "m_h"]}
    for name in ("cannon", "matisse"):
        model = train(survey, tmp_path / name, method=name, config={"method": labels})
        stated = model.attachments[SELF_CHECK].metadata
        assert stated["noise_correlation"] == [-0.2]
        # Checks of earlier versions do not say it: it was the method's own.
        arrays, revision = model.arrays(SELF_CHECK), {"revision": stated["revision"]}
        earlier = model.with_arrays(SELF_CHECK, arrays, metadata=revision)
        assert SelfCheck.load(earlier).inputs.noise_correlation == (-0.2,)
        table = predict_rows(model, survey, np.arange(5))
        assert np.isfinite(table["teff"]).all()
