"""The default model as a whole: calibrated errors, quantiles, covariances, reasons."""

from types import MappingProxyType

import numpy as np
import pytest

from builders.surveys import copy_survey
from maury.errors import ColumnError, ConfigError, ModelFileError, ResumeMismatch
from maury.labels.columns import QUANTILES
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork
from maury.model.split import HELD_OUT_FOLDS, held_out_fold
from maury.prediction import uncertainty
from maury.prediction.predictor import catalogue_spec
from maury.prediction.streaming import Options, Predictor, plan, predict, predict_rows
from maury.prediction.uncertainty import UncertaintyModel
from maury.simulation.surveys import simulate_survey
from maury.spectra.batch import Batch
from maury.spectra.operators import shift_to_rest
from maury.survey.store import Survey
from maury.training import ensemble
from maury.training.runs import train


@pytest.fixture(scope="module")
def rows(default_model, default_survey):
    return predict_rows(default_model, default_survey, np.arange(500))


def z_of(rows, survey, model, part):
    chosen = model.split.contains(part, survey.star_id)
    truth = survey.labels(LABEL_NAMES)[chosen]
    mean = np.column_stack([rows[name] for name in LABEL_NAMES])[chosen]
    error = np.column_stack([rows[f"{name}_error"] for name in LABEL_NAMES])[chosen]
    return np.abs(mean - truth) / error


def test_calibrated_errors_hold_on_stars_kept_out(rows, default_model, default_survey):
    survey, model = Survey.open(default_survey), Model.open(default_model)
    z = z_of(rows, survey, model, "test")
    assert z.shape == (50, 9)
    # 450 residuals, correlated within a star: some 5 % of sampling error.
    assert np.mean(z < 1) == pytest.approx(0.683, abs=0.12)
    assert np.mean(z < 2) == pytest.approx(0.954, abs=0.06)


def test_quantiles_are_ordered_and_agree_with_errors(rows):
    for name in LABEL_NAMES:
        least, low, middle, high, most = (rows[f"{name}_{q}"] for q, _ in QUANTILES)
        assert np.all((least < low) & (low < middle) & (middle < high) & (high < most))
        width = 0.5 * (high - low) / rows[f"{name}_error"]
        assert 0.5 < np.median(width) < 2.0


def test_correlations_belong_to_a_covariance(rows):
    assert np.all(np.abs(rows["teff_logg_corr"]) <= 1)
    assert np.median(rows["m_h_fe_h_corr"]) > 0.5, "[M/H] and [Fe/H] err together"
    matrix = np.eye(9)[None].repeat(500, axis=0)
    for i, first in enumerate(LABEL_NAMES):
        for j, second in enumerate(LABEL_NAMES[i + 1 :], start=i + 1):
            matrix[:, i, j] = matrix[:, j, i] = rows[f"{first}_{second}_corr"]
    assert np.linalg.eigvalsh(matrix).min() > -1e-9


def test_most_stars_like_the_training_sample_pass(rows):
    strange = sum(flag.value for flag in Flag if flag >= Flag.SPECTRUM_UNLIKE and flag.warns)
    assert np.mean((rows["flags"] & strange) != 0) < 0.1
    assert np.median(rows["chi2_reduced"]) == pytest.approx(1.0, abs=0.3)
    assert np.isfinite(rows["worst_wavelength"]).all()


def test_a_wrong_radial_velocity_is_named(tmp_path, default_model, default_survey):
    survey = Survey.open(default_survey)

    def shift(flux):
        wave = shift_to_rest(survey.wave_aa, 120.0)
        return np.stack([np.interp(survey.wave_aa, wave, one) for one in flux[:40]])

    path = copy_survey(
        default_survey,
        tmp_path / "s.zarr",
        rows=np.arange(40),
        flux=lambda flux: shift(flux).astype("f4"),
    )
    flags = predict_rows(default_model, path, np.arange(40))["flags"]
    assert np.mean((flags & Flag.RADIAL_VELOCITY_WRONG.value) != 0) > 0.9


@pytest.mark.slow
def test_any_part_of_the_inputs_may_be_missing(default_model, default_survey):
    every = np.arange(100)
    whole = predict_rows(default_model, default_survey, every)
    for without in (["photometry"], ["spectrum"], ["parallax"], ["Ks"]):
        part = predict_rows(default_model, default_survey, every, without=without)
        assert np.isfinite(part["teff"]).all(), without
        assert np.isfinite(part["teff_error"]).all(), without
    blind = predict_rows(default_model, default_survey, every, without=["spectrum"])
    assert np.median(blind["m_h_error"] / whole["m_h_error"]) > 1
    assert np.isnan(blind["chi2_reduced"]).all()
    nothing = predict_rows(default_model, default_survey, every, without=["spectrum", "photometry"])
    assert np.isnan(nothing["teff"]).all()
    assert np.all((nothing["flags"] & Flag.INPUT_REQUIRED.value) != 0)


@pytest.mark.slow
def test_the_catalogue_has_it_all_and_says_so(tmp_path, default_model, default_survey):
    catalogue = predict(default_model, default_survey, tmp_path / "c.fits", correlations=True)
    names = catalogue.table.colnames
    quantiles = {f"teff_{suffix}" for suffix, _ in QUANTILES}
    assert {"teff_error_own", "teff_error_common"} <= set(names)
    assert {*quantiles, "chi2_reduced", "al_fe_mg_fe_corr"} <= set(names)
    assert "calibrated" in catalogue.metadata["errors"]
    verdicts = {one["verdict"] for one in catalogue.metadata["audit"]["labels"].values()}
    assert verdicts <= {"measured", "inferred", "unknown"}
    assert set(catalogue.metadata["audit"]["labels"]) == set(LABEL_NAMES)
    plain = predict(default_model, default_survey, tmp_path / "p.parquet")
    assert "al_fe_mg_fe_corr" not in plain.table.colnames


def test_errors_are_split_into_what_is_common_to_a_star_and_what_is_not(rows):
    for name in LABEL_NAMES:
        own, common = rows[f"{name}_error_own"], rows[f"{name}_error_common"]
        np.testing.assert_allclose(np.hypot(own, common), rows[f"{name}_error"], rtol=1e-9)
        assert 0.02 < np.median(own / rows[f"{name}_error"]) < 1


def test_spectra_of_a_star_scatter_by_their_own_errors(default_model, default_survey):
    """Simulated stars of the model, each observed eight times at one S/N."""
    model = Model.open(default_model)
    labeller = UncertaintyModel.load(model, EnsembleNetwork(model))
    rng = np.random.default_rng(77)
    pool = labeller.star_simulator.pool(60, rng, draw=uncertainty.REOBSERVED)
    row = np.repeat(np.arange(60), 8)
    snr = np.repeat(rng.uniform(40, 80, 60), 8)
    flux, ivar, observables, _ = pool.observe(row, rng, snr=snr)
    inputs = uncertainty._as_inputs(model, flux, ivar, observables[row * 8])
    found = labeller.calibrate(inputs, labeller.predict(inputs))
    apart = found.mean.reshape(60, 8, 9)
    scatter = np.sqrt(apart.var(axis=1, ddof=1).mean(axis=0))
    own = np.sqrt((found.own.reshape(60, 8, 9) ** 2).mean(axis=(0, 1)))
    assert np.median(own / scatter) == pytest.approx(1.0, abs=0.25)
    assert np.all(np.median(found.own / found.sigma, axis=0) < 1)


@pytest.mark.slow
def test_a_catalogue_by_star_has_a_row_for_each_star(tmp_path, default_model, default_survey):
    chosen = np.r_[np.arange(60), np.arange(20), np.arange(10)]
    names = np.array([f"spectrum {k}" for k in range(90)])
    path = copy_survey(default_survey, tmp_path / "s.zarr", rows=chosen, id=names)
    catalogue = predict(default_model, path, tmp_path / "c.fits", by_star=True, correlations=True)
    assert len(catalogue) == 60
    assert catalogue.metadata["by_star"] == {"spectra": 90}
    assert np.asarray(catalogue.table["n_spectra"]).tolist() == [3] * 10 + [2] * 10 + [1] * 40
    assert list(catalogue.table["star_id"]) == list(Survey.open(path).star_id[:60])
    single = predict(default_model, path, tmp_path / "p.parquet").table
    assert len(single) == 90
    own = np.asarray(catalogue.table["teff_error_own"])[:10]
    np.testing.assert_allclose(own, np.asarray(single["teff_error_own"])[:10] / np.sqrt(3))
    np.testing.assert_allclose(catalogue.table["teff"][:10], single["teff"][:10])


def test_a_catalogue_by_star_needs_stars_and_shared_errors(tmp_path, tiny_model, default_survey):
    with pytest.raises(ConfigError, match="share"):
        predict(tiny_model, default_survey, tmp_path / "c.fits", by_star=True)


def test_models_without_calibration_promise_nothing(tmp_path, tiny_model, observed_survey):
    catalogue = predict(tiny_model, observed_survey, tmp_path / "c.fits")
    assert "teff_q16" not in catalogue.table.colnames
    assert "not calibrated" in catalogue.metadata["errors"]


@pytest.mark.slow
def test_networks_for_spectra_alone_have_uncertainties_too(tmp_path, default_survey, monkeypatch):
    from maury.training.runs import train

    monkeypatch.setattr(uncertainty, "N_SIMULATED", 600)
    config = {
        "network": {"preset": "maury", "photometry": False},
        "training": {"steps": 20, "stars": 600},
        "ensemble": {"members": 2},
    }
    model = train(default_survey, tmp_path / "m", config=config, seed=5)
    assert {"calibration", "coverage"} <= set(model.attachments)
    rows = predict_rows(model, default_survey, np.arange(30))
    assert np.isfinite(rows["teff"]).all()
    assert np.all((rows["flags"] & Flag.PHOTOMETRY_DISAGREES.value) == 0)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_calibration(default_model, default_survey, monkeypatch):
    monkeypatch.setattr(uncertainty, "N_SIMULATED", 1000)
    model = Model.open(default_model)
    again = UncertaintyModel.fit(model, Survey.open(default_survey))
    for name, array in again.calibration.to_arrays().items():
        np.testing.assert_array_equal(array, model.arrays("calibration")[name])


def test_damaged_attachments_are_one_clear_error(tmp_path, default_model):
    model = Model.open(default_model)
    arrays = model.arrays("calibration") | {"size": np.zeros(3)}
    broken = model.with_arrays("calibration", arrays).save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="calibration is damaged"):
        Predictor(broken)


def test_a_label_known_from_elsewhere_informs_the_others(default_model, default_survey):
    survey = Survey.open(default_survey)
    batch = survey.batch(0, 200)
    truth = batch.column("logg").copy()
    truth[:20] = np.nan
    known = {"logg": truth, "logg_error": np.full(200, 0.01)}
    batch = Batch(batch.spectra, MappingProxyType({**batch.columns, **known}), batch.start)
    plain = Predictor(default_model).predict(batch)
    given = Predictor(default_model, given="logg").predict(batch)
    for name in LABEL_NAMES:
        assert np.array_equal(given[name][:20], plain[name][:20])
        assert np.all(given[f"{name}_error"] <= plain[f"{name}_error"] * (1 + 1e-9))
        assert np.all(given[f"{name}_q16"] < given[f"{name}_q84"])
    assert np.abs(given["logg"] - truth)[20:].max() < 0.03
    assert given["logg_error"][20:].max() < 0.0101
    assert (given["teff_error"] / plain["teff_error"])[20:].mean() < 0.99


def test_a_survey_without_the_external_label_is_refused(tmp_path, default_model, observed_survey):
    with pytest.raises(ColumnError, match="no column logg and no logg_error"):
        predict(default_model, observed_survey, tmp_path / "a.fits", given="logg")


def test_an_external_label_needs_a_covariance(tiny_model):
    with pytest.raises(ConfigError, match="no calibrated covariances"):
        Predictor(tiny_model, given="logg")


def test_a_run_with_another_external_label_is_not_taken_up(tmp_path, default_model, default_survey):
    out = tmp_path / "a.fits"
    plan(default_model, default_survey, out)
    with pytest.raises(ResumeMismatch, match="partial catalogue"):
        plan(default_model, default_survey, out, options=Options(given="logg"))


def test_the_catalogue_tells_the_moments_of_the_prior(default_model, default_survey):
    """Those of the labelled stars, but for the rare ones that are drawn oftener."""
    model, survey = Model.open(default_model), Survey.open(default_survey)
    prior = catalogue_spec(model, survey).metadata["prior"]
    assert prior["labels"] == list(model.label_names)
    stars = model.split.contains("train", survey.star_id)
    labels = survey.labels(model.labels)[stars]
    apart = (prior["mean"] - labels.mean(axis=0)) / labels.std(axis=0)
    assert np.abs(apart).max() < 1.0
    wider = np.sqrt(np.diag(prior["covariance"])) / labels.std(axis=0)
    assert 0.8 < wider.min() < wider.max() < 2.0


@pytest.mark.slow
def test_each_network_holds_out_an_eighth_of_the_stars(tmp_path, default_survey, monkeypatch):
    """The stars that are simulated for it are drawn around the others; the rest evaluate it."""
    monkeypatch.setattr(uncertainty, "N_SIMULATED", 400)
    settings = {"training": {"steps": 2, "stars": 200}, "ensemble": {"members": 2}}
    star_simulators = {}
    real = ensemble.WorkFolder.put_star_simulator

    def watch(folder, star_simulator, scaling, member=None):
        star_simulators[member] = star_simulator
        real(folder, star_simulator, scaling, member)

    monkeypatch.setattr(ensemble.WorkFolder, "put_star_simulator", watch)
    model = ensemble.train(default_survey, tmp_path / "m", config=settings, n_processes=1)
    survey = Survey.open(default_survey)
    stars = survey.star_id[model.split.contains("train", survey.star_id)]
    fold = held_out_fold(stars, n_fold=model.training[HELD_OUT_FOLDS], seed=model.seed)
    assert model.training[HELD_OUT_FOLDS] == 8
    assert len(star_simulators[None].labels) == stars.size
    for member in range(2):
        assert len(star_simulators[member].labels) == np.sum(fold != member)
    fitted = UncertaintyModel.fit(model, survey)
    n_validation = model.split.contains("validation", survey.star_id).sum()
    assert fitted.calibration.n_real == n_validation + np.sum(fold < 2)


@pytest.fixture
def reobserved_stars(monkeypatch):
    """Labels of the parents of all simulated stars that are asked for, and of these stars."""
    monkeypatch.setattr(uncertainty, "N_SIMULATED", 400)
    seen = []
    real = uncertainty.simulated_stars

    def watch(model, star_simulator, n_star, **settings):
        inputs, truth = real(model, star_simulator, n_star, **settings)
        seen.append((star_simulator.labels, truth))
        return inputs, truth

    monkeypatch.setattr(uncertainty, "simulated_stars", watch)
    return seen


@pytest.mark.slow
def test_errors_are_calibrated_on_unseen_stars_reobserved(
    default_model, default_survey, reobserved_stars
):
    """Of the validation stars, and, for each network, of those that it held out."""
    model, survey = Model.open(default_model), Survey.open(default_survey)
    UncertaintyModel.fit(model, survey)
    labels, star = survey.labels(LABEL_NAMES), survey.star_id
    training = model.split.contains("train", star)
    share = held_out_fold(star, n_fold=model.training[HELD_OUT_FOLDS], seed=model.seed)
    unseen = (
        model.split.contains("validation", star),
        training & (share == 0),
        training & (share == 1),
    )
    assert len(reobserved_stars) == 3
    for (parents, truth), rows in zip(reobserved_stars, unseen, strict=True):
        np.testing.assert_array_equal(parents, labels[rows])
        # The emulator clips a label at its bounds.
        far = np.abs(truth[:, None] - labels[rows]).max(axis=2).min(axis=1)
        assert np.median(far) < 1e-9


@pytest.mark.slow
def test_few_unseen_stars_are_joined_by_the_training_sample(
    default_model, default_survey, reobserved_stars, monkeypatch
):
    monkeypatch.setattr(uncertainty, "LEAST_PARENTS", 10_000)
    model, survey = Model.open(default_model), Survey.open(default_survey)
    UncertaintyModel.fit(model, survey)
    n_training = model.split.contains("train", survey.star_id).sum()
    assert {len(parents) for parents, _ in reobserved_stars} == {n_training}


def test_few_stars_hold_out_none(tmp_path, tiny_survey, monkeypatch):
    monkeypatch.setattr(ensemble, "_LEAST_SHARED", 1000)
    settings = {"training": {"steps": 2, "stars": 200}, "ensemble": {"members": 1}}
    model = ensemble.train(tiny_survey, tmp_path / "m", config=settings)
    assert HELD_OUT_FOLDS not in model.training


@pytest.mark.slow
def test_a_hundred_labelled_stars_are_enough_for_calibrated_errors(tmp_path, monkeypatch):
    """Eight validate, and those that single networks held out do the rest."""
    monkeypatch.setattr(uncertainty, "N_SIMULATED", 400)
    survey = simulate_survey(tmp_path / "s.zarr", n_star=100, seed=3)
    settings = {"training": {"steps": 4, "stars": 200}, "ensemble": {"members": 4}}
    model = train(survey, tmp_path / "m", config=settings, seed=1)
    star = survey.star_id
    validation = model.split.contains("validation", star).sum()
    training = model.split.contains("train", star)
    fold = held_out_fold(star, n_fold=model.training[HELD_OUT_FOLDS], seed=1)
    unseen = (training & (fold < len(model.kept))).sum()
    assert validation < 30 < validation + unseen
    found = UncertaintyModel.load(model, EnsembleNetwork(model))
    assert found is not None
    assert found.calibration.n_real == validation + unseen


def test_one_network_can_be_asked_alone(default_model, default_survey):
    model = Model.open(default_model)
    network = EnsembleNetwork(model)
    inputs = model.preparation.apply(Survey.open(default_survey).batch(0, 20))
    both = network.predict(inputs)
    alone = [network.predict(inputs, only=k) for k in range(2)]
    np.testing.assert_allclose(0.5 * (alone[0].mean + alone[1].mean), both.mean, rtol=1e-6)
    spread = 0.5 * (alone[0].mean - alone[1].mean) ** 2
    variance = 0.5 * (alone[0].sigma ** 2 + alone[1].sigma ** 2) + spread
    np.testing.assert_allclose(np.sqrt(variance), both.sigma, rtol=1e-6)
