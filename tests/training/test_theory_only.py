"""A model from theory alone: what its stars are like, and what it says of its errors."""

from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from maury.cli.app import app
from maury.errors import ColumnError, ConfigError
from maury.evaluation import audit as audit_module
from maury.evaluation.card import read_card
from maury.prediction import uncertainty
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.report.page.assemble import write_report
from maury.simulation.mismatch import TheoryMismatch
from maury.simulation.surveys import simulate_survey, simulation_like
from maury.spectra.operators import air_to_vacuum
from maury.survey.store import Survey
from maury.survey.writer import SurveyWriter
from maury.training import theory_only
from maury.training.theory_only import train_on_theory

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

WAVE = np.asarray(air_to_vacuum(8470.0 + 0.5 * np.arange(400)))
QUICK = {"training": {"steps": 20, "stars": 300}, "ensemble": {"members": 2}}


def write_unlabelled(path, wave=WAVE, resolving_power=9000.0, n=40):
    """Write spectra of another instrument, in vacuum, without labels and without photometry."""
    rng = np.random.default_rng(3)
    with SurveyWriter(
        path, n_star=n, wave_aa=wave, medium="vacuum", columns=["snr"], simulated=False,
        resolving_power=resolving_power, noise_correlation=(0.2,),
    ) as writer:  # fmt: skip
        flux = 1.0 + rng.normal(0.0, 0.02, (n, wave.size))
        names = [f"o{k}" for k in range(n)]
        writer.write(0, flux, np.full_like(flux, 2500.0), id=names, star_id=names,
                     snr=rng.uniform(30.0, 80.0, n))  # fmt: skip
    return Survey.open(path)


def test_each_star_differs_in_its_own_way_and_as_much_as_it_is_told():
    wave = np.exp(np.linspace(np.log(8404.0), np.log(8800.0), 3000))
    flux = np.full((400, wave.size), 0.5, dtype=np.float32)
    own = TheoryMismatch(line_strength=0.1, alike=False)
    changed = own.apply(flux, wave, np.random.default_rng(1))
    exponent = np.log(changed) / np.log(0.5) - 1.0
    assert np.sqrt(np.mean(exponent**2)) == pytest.approx(0.1, rel=1e-3)
    # No change is common to the stars: means over 400 of them are a twentieth of each.
    assert np.sqrt(np.mean(exponent.mean(axis=0) ** 2)) == pytest.approx(0.005, rel=0.3)
    alike = own.model_copy(update={"alike": True}).apply(flux, wave, np.random.default_rng(1))
    np.testing.assert_array_equal(alike[0], alike[-1])


def test_stars_on_the_pixels_of_another_survey(tmp_path):
    like = write_unlabelled(tmp_path / "own.zarr")
    stars = simulate_survey(tmp_path / "stars.zarr", n_star=5, seed=2, like=like)
    np.testing.assert_array_equal(stars.wave_aa, like.wave_aa)
    assert stars.medium == "vacuum"
    usual = simulate_survey(tmp_path / "rave.zarr", n_star=5, seed=2)
    # The same stars: Ca II 8542 is where it is in air, and as deep but for the pixels.
    for survey, line in ((stars, float(air_to_vacuum(8542.09))), (usual, 8542.09)):
        flux = survey.batch(0, 5).spectra.flux
        deepest = survey.wave_aa[np.argmin(flux[:, np.abs(survey.wave_aa - line) < 3.0], axis=1)
                                 + np.searchsorted(survey.wave_aa, line - 3.0)]  # fmt: skip
        assert np.abs(np.median(deepest) - line) < 0.5
    np.testing.assert_array_equal(stars.column("true_teff"), usual.column("true_teff"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("theory")
    survey = write_unlabelled(folder / "own.zarr")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", 600)
        patch.setattr(theory_only, "_N_STAR", 500)
        model = train_on_theory(survey, folder / "model", config=QUICK, seed=1, n_processes=1)
    return survey, model


def test_the_card_the_columns_and_the_metadata_say_what_the_errors_are_worth(trained, tmp_path):
    survey, model = trained
    assert model.simulated
    assert model.errors_calibrated
    told = "calibrated on SIMULATED stars alone, whose lines differ from theory by 10% (rms)"
    assert any(told in limit for limit in read_card(model).limits)
    catalogue = predict(model, survey, tmp_path / "labels.fits")
    assert len(catalogue) == len(survey)
    assert told in catalogue.metadata["errors"]
    stored = Catalogue.read(tmp_path / "labels.fits").table
    assert told in stored["teff_error"].description
    assert "SIMULATED" not in (stored["teff"].description or "")
    assert np.isfinite(stored["teff_error"]).all()
    # Without photometry, which the audited stars had, no label is called measured.
    verdicts = {one["verdict"] for one in catalogue.metadata["audit"]["labels"].values()}
    assert model.attachments["audit"].metadata["absent"] == []
    assert verdicts == {"unknown"}
    page = write_report(model, tmp_path / "report", observed=tmp_path / "labels.fits").page
    assert told in page.read_text("utf-8")


def test_the_stars_are_those_of_the_survey(trained):
    survey, model = trained
    about = model.provenance["survey"]["simulation"]["observing"]
    assert about["resolving_power"] == 9000.0
    assert about["noise_correlation"] == [0.2]
    assert about["snr_median"] == pytest.approx(np.median(survey.column("snr")))
    assert about["theory_mismatch"]["alike"] is False
    assert about["continuum_level"] == theory_only.CONTINUUM_LEVEL
    assert model.provenance["theory_only"]["survey"] == "own.zarr"


def test_it_is_audited_without_labels_on_the_inputs_of_the_survey(trained, monkeypatch):
    survey, model = trained
    monkeypatch.setattr(audit_module, "_MOST_ROWS", 200)
    report = audit_module.audit(model, survey, n_bootstrap=20)
    assert report.simulated
    assert report.n_star == 200
    assert report.inputs == ("spectrum",)
    assert set(report.absent) == set(model.preparation.source_names)
    assert report.remarks[0].startswith("own.zarr has no labels: the stars are simulated")
    assert {one.verdict for one in report.labels} <= {"measured", "inferred", "unknown"}
    with pytest.raises(ColumnError, match=r"maury card .*") as found:
        audit_module.audit(replace(model, provenance={}), survey)
    assert f"maury simulate OUT.zarr --like {survey.path}" in str(found.value)


def test_stars_to_audit_any_model_on_are_simulated_like_a_survey(tmp_path):
    like = write_unlabelled(tmp_path / "own.zarr")
    out = str(tmp_path / "s.zarr")
    given = ["simulate", out, "--stars", "30", "--like", str(like.path)]
    result = CliRunner().invoke(app, given)
    assert result.exit_code == 0, result.output
    stars = Survey.open(out)
    np.testing.assert_array_equal(stars.wave_aa, like.wave_aa)
    assert stars.resolving_power == 9000.0
    assert np.median(stars.column("snr")) == pytest.approx(np.median(like.column("snr")), rel=0.2)
    assert np.isfinite(stars.column("teff")).all()
    far = write_unlabelled(tmp_path / "far.zarr", wave=6500.0 + 0.5 * np.arange(200))
    with pytest.raises(ConfigError, match="8404-8800 angstrom"):
        simulation_like(far)
    vague = write_unlabelled(tmp_path / "vague.zarr", resolving_power=None)
    with pytest.raises(ConfigError, match="does not say its resolving power"):
        simulation_like(vague)


def test_what_theory_cannot_do_is_one_error(tmp_path):
    far = write_unlabelled(tmp_path / "far.zarr", wave=6500.0 + 0.5 * np.arange(200))
    with pytest.raises(ConfigError, match=r"8404-8800 angstrom.*6498\.\d-6597"):
        train_on_theory(far, tmp_path / "m")
    vague = write_unlabelled(tmp_path / "vague.zarr", resolving_power=None)
    with pytest.raises(ConfigError, match="does not say its resolving power"):
        train_on_theory(vague, tmp_path / "m")
    with pytest.raises(ConfigError, match="'starnet' learns from labelled spectra"):
        train_on_theory(vague, tmp_path / "m", config={"network": {"preset": "starnet"}})
