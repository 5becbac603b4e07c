"""What all stars of a survey have in common, measured without labels."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.surveys import copy_survey
from maury.cli.app import app
from maury.errors import ModelFileError
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.prediction.band_zero_points import BandRelations
from maury.prediction.common_residuals import TERMS, CommonResiduals, taken_in
from maury.prediction.drift import drift
from maury.prediction.labellers import open_labeller
from maury.prediction.streaming import predict
from maury.prediction.survey_check import CommonChange, SurveyCheck
from maury.simulation.mismatch import TheoryMismatch
from maury.simulation.observing import RAVE_WAVE_AA, ObservingModel
from maury.simulation.population import Population
from maury.simulation.theory_calibration import TheoryCalibration
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.operators import SPEED_OF_LIGHT_KMS
from maury.survey.store import Survey

N, SNR = 160, 60.0


@pytest.fixture(scope="module")
def simulator():
    rng = np.random.default_rng(0)
    labels = Population.load().sample(2 * N, rng).labels[:, :9]
    calibration = TheoryCalibration.none(RAVE_WAVE_AA.size, labels)
    none, snr = np.zeros((2 * N, 0)), np.full(2 * N, SNR)
    return TrainingStarSimulator(RAVE_WAVE_AA, labels, none, snr, calibration, ObservingModel())


def observed(simulator, rows, change=lambda flux: flux, seed=1):
    """Spectra of some stars, changed alike, and labels with an error of their own."""
    rng = np.random.default_rng(seed)
    truth = simulator.labels[rows]
    flux = change(simulator.theory(truth))
    flux = flux + rng.normal(0, 1 / SNR, flux.shape)
    labels = truth + rng.normal(0, 0.1, truth.shape) * truth.std(axis=0)
    ivar = np.full(flux.shape, SNR**2, np.float32)
    return CommonResiduals.measure(simulator, flux.astype(np.float32), ivar, labels)


@pytest.fixture(scope="module")
def training(simulator):
    return observed(simulator, slice(0, N), seed=2)


def beside(found, training):
    value, error = found.beside(training)
    return dict(zip(TERMS, zip(value, error, strict=True), strict=True))


HERE = slice(N, 2 * N)


def test_stars_of_the_same_kind_have_nothing_in_common(simulator, training):
    found = observed(simulator, HERE)
    value, error = found.beside(training)
    assert (np.abs(value) < 4.5 * error).all()
    assert found.pattern_beside(training)[0] < 0.02
    assert found.noise == pytest.approx(training.noise, rel=0.03)


def moved(flux, kms):
    shifted = RAVE_WAVE_AA * (1 + kms / SPEED_OF_LIGHT_KMS)
    return np.array([np.interp(RAVE_WAVE_AA, shifted, one) for one in flux])


@pytest.mark.parametrize(
    ("name", "change", "right", "within"),
    [
        ("strength", lambda flux: 1 - 1.1 * (1 - flux), 0.1, 0.02),
        ("strength", lambda flux: (flux + 0.06) / 1.06, -0.057, 0.015),
        ("velocity", lambda flux: moved(flux, 3.0), 3.0, 0.5),
        (
            "cores",
            lambda flux: TheoryMismatch(ca_core=0.1).apply(
                flux, RAVE_WAVE_AA, np.random.default_rng(0)
            ),
            0.1,
            0.01,
        ),
        ("continuum 0", lambda flux: 1.01 * flux, 0.01, 0.002),
    ],
)
def test_each_change_is_measured_although_labels_are_free(
    simulator, training, name, change, right, within
):
    found = beside(observed(simulator, HERE, change), training)
    value, error = found[name]
    assert value == pytest.approx(right, abs=within)
    assert abs(value) > 5 * error


def test_a_broader_line_profile_is_measured(simulator, training):
    """A Gaussian of .3 angstrom besides: its variance is added."""
    kernel = np.exp(-0.5 * (0.4 * np.arange(-4, 5) / 0.3) ** 2)
    kernel /= kernel.sum()

    def broader(flux):
        pad = np.pad(flux, ((0, 0), (4, 4)), mode="edge")
        return np.array([np.convolve(one, kernel, "valid") for one in pad])

    variance = np.sum(kernel * (0.4 * np.arange(-4, 5)) ** 2)
    value, error = beside(observed(simulator, HERE, broader), training)["width"]
    assert value == pytest.approx(variance, rel=0.35)
    assert value > 5 * error


def test_lines_that_are_off_one_by_one_show_as_a_pattern(simulator, training):
    each = np.random.default_rng(3).normal(0, 0.15, RAVE_WAVE_AA.size)
    found = observed(simulator, HERE, lambda flux: 1 - (1 + each) * (1 - flux))
    size, error = found.pattern_beside(training)
    assert 0.08 < size < 0.2
    assert size > 5 * error


def test_what_was_measured_is_taken_into_the_theory(simulator, training):
    """Lines 10 % stronger, single ones 10 % rms off, cores and continuum, in one round."""
    each = np.random.default_rng(3).normal(0, 0.1, RAVE_WAVE_AA.size)

    def change(flux):
        cored = TheoryMismatch(ca_core=0.1).apply(flux, RAVE_WAVE_AA, np.random.default_rng(0))
        return 1.01 * (1 - (1.1 + each) * (1 - cored))

    found = observed(simulator, HERE, change)
    adapted = taken_in(simulator, found, training)
    truth = simulator.labels[HERE]
    before, after = (
        one.theory(truth) - change(simulator.theory(truth)) for one in (simulator, adapted)
    )
    assert np.sqrt(np.mean(after**2)) < 0.35 * np.sqrt(np.mean(before**2))


def test_broader_lines_lower_the_resolving_power_within_bounds(simulator, training):
    found = observed(simulator, HERE)
    sigma = RAVE_WAVE_AA.mean() / 7500 / 2.3548
    column = TERMS.index("width")
    for variance, power in ((0.1, 7500 * sigma / np.sqrt(sigma**2 + 0.1)), (-9.0, 15000.0)):
        change = training.change.copy()
        change[column] += variance
        wide = replace(found, change=change)
        adapted = taken_in(simulator, wide, training).observing
        assert adapted.resolving_power == pytest.approx(power, rel=1e-3)
        assert adapted.resolving_power_scatter == pytest.approx(400 * power / 7500, rel=1e-3)


def test_too_few_or_unusable_stars_leave_everything_unknown(simulator, training):
    flux = np.full((3, RAVE_WAVE_AA.size), np.nan, np.float32)
    found = CommonResiduals.measure(simulator, flux, np.ones_like(flux), simulator.labels[:3])
    assert found.n_star == 0
    assert np.isinf(found.beside(training)[1]).all()
    assert found.pattern_beside(training) == (0.0, np.inf)


def test_wild_stars_do_not_count(simulator, training):
    def some_wild(flux):
        flux = flux.copy()
        flux[:8] = 1.5 - flux[:8]
        return flux

    found = observed(simulator, HERE, some_wild)
    assert found.n_star == N - 8
    value, error = beside(found, training)["strength"]
    assert abs(value) < 4.5 * error


def test_arrays_give_the_same_again_and_damage_is_one_error(training):
    arrays = training.to_arrays()
    again = CommonResiduals.from_arrays(arrays)
    np.testing.assert_array_equal(again.pattern, training.pattern)
    assert again.noise == training.noise
    with pytest.raises(ModelFileError, match="common residuals are damaged"):
        CommonResiduals.from_arrays({**arrays, "change": np.zeros(3)})
    with pytest.raises(ModelFileError, match="damaged"):
        CommonResiduals.from_arrays({"change": arrays["change"]})


def photometry(n, seed):
    rng = np.random.default_rng(seed)
    labels = rng.normal([5000, 3.0, -0.2], [500, 0.8, 0.3], (n, 3))
    a_v = rng.uniform(0, 0.5, n)
    slope = np.linspace(1.0, -1.0, 5)
    colour = (labels[:, :1] - 5000) / 1000 * slope + a_v[:, None] * np.linspace(1, 0.1, 5)
    distance = rng.normal(0, 0.3, (n, 1))
    return labels, a_v, 2.0 + colour + distance + rng.normal(0, 0.02, (n, 5))


def test_a_band_that_is_off_is_found_by_name_and_distances_do_not_matter():
    relations = BandRelations.fit(*photometry(500, 0))
    labels, a_v, magnitudes = photometry(300, 1)
    magnitudes[:, 3] += 0.08
    magnitudes += 0.5
    magnitudes[:40, 0] = np.nan
    offset, error = relations.zero_points(labels, a_v, magnitudes)
    np.testing.assert_allclose(offset, [0, 0, 0, 0.08, 0], atol=0.012)
    assert (error < 0.005).all()
    again = BandRelations.from_arrays(relations.to_arrays())
    np.testing.assert_array_equal(again.zero_points(labels, a_v, magnitudes)[0], offset)
    assert BandRelations.from_arrays({}) is None
    with pytest.raises(ModelFileError, match="bands are damaged"):
        BandRelations.from_arrays({"bands.centre": np.zeros(4)})
    assert np.isnan(relations.zero_points(labels[:9], a_v[:9], magnitudes[:9])[0]).all()
    assert BandRelations.fit(labels[:9], a_v[:9], magnitudes[:9]) is None


def test_a_change_is_told_of_beyond_its_threshold_and_beyond_its_error():
    def change(value, error, grave=True):
        return CommonChange("strength", value, error, 0.03, grave, "lines", "so")

    assert change(0.04, 0.005).found
    assert not change(0.02, 0.001).found
    assert not change(0.04, 0.02).found
    assert SurveyCheck((change(0.04, 0.005),), 50).unlike
    assert not SurveyCheck((change(0.04, 0.005, grave=False),), 50).unlike
    assert SurveyCheck((change(0.04, 0.005),), 50).findings == ("lines (+- 0.005): so",)


@pytest.mark.slow
def test_a_survey_with_stronger_lines_is_told_of_and_one_like_the_training_sample_is_not(
    default_model, default_survey, tmp_path
):
    model = Model.open(default_model)
    labeller = open_labeller(model)
    assert drift(model, Survey.open(default_survey), labeller=labeller).common.findings == ()
    path = copy_survey(default_survey, tmp_path / "s.zarr", flux=lambda flux: 1.2 * flux - 0.2)
    found = drift(model, Survey.open(path), labeller=labeller)
    assert found.unlike
    assert any("all lines" in line and "stronger" in line for line in found.common.findings)
    done = CliRunner().invoke(app, ["drift", str(default_model), str(path)])
    assert "labels of all its stars are doubtful" in done.output
    assert "stronger" in found.summary
    catalogue = predict(model, path, tmp_path / "labels.fits")
    assert catalogue.table["warn"].all()
    assert (np.asarray(catalogue.table["flags"]) & Flag.SURVEY_UNLIKE.value != 0).all()
    clean = predict(model, default_survey, tmp_path / "clean.fits")
    assert not (np.asarray(clean.table["flags"]) & Flag.SURVEY_UNLIKE.value).any()
    # Without what knows the spectrum of a star nothing of it is said.
    assert drift(model, Survey.open(path)).common == SurveyCheck.none()
