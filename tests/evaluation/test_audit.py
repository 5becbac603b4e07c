"""The audit: what is compared is comparable, and what cannot be known is called inferred."""

import json
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.surveys import copy_survey
from builders.training_survey import write_survey
from maury.cli import app as cli
from maury.errors import MauryError
from maury.evaluation.audit import WITHOUT, _verdict, audit
from maury.evaluation.audit_report import (
    ALL,
    CONTROL,
    LEAST_GAIN,
    PHOTOMETRY,
    SHUFFLED,
    SPECTRUM,
    Case,
    audit_metadata,
    differences,
    metadata_grounds,
)
from maury.evaluation.sensitivity import LINES, LINES_OF, STAR_TYPES, nearest_to, optimal_weights
from maury.evaluation.swaps import alike, bootstrap_scatter, response
from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES, select
from maury.model.directory import Model
from maury.model.inference import EnsembleNetwork, flux_gradient
from maury.prediction.predictor import catalogue_spec
from maury.prediction.streaming import WITHOUT as INPUTS
from maury.report import figures
from maury.report.figures.style import SIMULATED
from maury.simulation.bound import cramer_rao_covariance
from maury.simulation.emulator import Emulator
from maury.simulation.observing import RAVE_WAVE_AA, TRAINING_CONDITIONS, Spectrograph
from maury.simulation.population import Population
from maury.survey.store import Survey
from maury.training.ensemble import train

GIANT = np.array([4750.0, 2.45, -0.2, -0.2, 0.08, 0.08, 0.1, 0.1, 0.02])
SUN = np.array([5772.0, 4.44, 0, 0, 0, 0, 0, 0, 0])


@pytest.fixture(scope="module")
def published(tiny_model, tiny_survey):
    return audit(tiny_model, tiny_survey, n_bootstrap=50)


@pytest.fixture(scope="module")
def default(default_model, default_survey):
    return audit(default_model, default_survey, n_bootstrap=50)


@pytest.fixture(scope="module")
def half_blind(tmp_path_factory):
    """A model of teff, which the spectrum tells, and of logg, which only photometry tells."""
    folder = tmp_path_factory.mktemp("blind")
    n = 400
    rng = np.random.default_rng(0)
    teff, logg = 4000 + 3000 * rng.random(n), 1 + 3 * rng.random(n)
    wave = np.arange(64)
    depth = np.exp(-0.5 * ((wave - 20) / 3.0) ** 2) * ((teff - 4000) / 3000)[:, None]
    flux = 1 - 0.6 * depth + rng.normal(0, 0.01, (n, 64))
    survey = write_survey(
        folder / "s.zarr",
        n=n,
        flux=flux,
        teff=teff,
        logg=logg,
        star_id=[f"star{k}" for k in range(n)],
        parallax=np.full(n, 1.0),
        a_v=np.full(n, 0.1) + 0.01 * rng.random(n),
        **{
            name: 8 + logg + 0.02 * rng.normal(size=n)
            for name in ("phot_g_mean_mag", "phot_bp_mean_mag", "phot_rp_mean_mag")
        },
        **{
            name: 8 + logg + 0.02 * rng.normal(size=n)
            for name in ("j_m", "h_m", "ks_m", "w1mpro", "w2mpro")
        },
    )
    config = {
        "preparation": {
            "steps": [],
            "observables": [{"observable": "absolute_magnitudes"}, {"observable": "a_v"}],
        },
        "network": {"filters": [4], "kernel": 6, "dropout": 0.0},
        "training": {"batch_size": 16, "learning_rate": 5e-3, "epochs": 30},
        "split": {"train": 0.5, "validation": 0.2, "test": 0.3},
        "ensemble": {"members": 1, "labels": ["teff", "logg"]},
    }
    train(survey, folder / "m", preset="guiglion2020", config=config, seed=1)
    return audit(folder / "m", survey, n_bootstrap=50)


@pytest.mark.slow
def test_what_only_photometry_tells_is_inferred(half_blind) -> None:
    teff, logg = half_blind.labels
    assert (teff.verdict, logg.verdict) == ("measured", "inferred")
    assert teff.basis == logg.basis == SHUFFLED
    assert teff.response == pytest.approx(1, abs=0.1)
    assert logg.response == pytest.approx(0, abs=0.05)
    assert teff.cases[SHUFFLED].scatter > 3 * teff.cases[CONTROL].scatter
    assert logg.cases[SHUFFLED].scatter == pytest.approx(logg.cases[ALL].scatter, rel=0.3)
    assert teff.cases[SHUFFLED].scatter == pytest.approx(teff.donor_spread, rel=0.2)
    assert half_blind.sensitivities == (), "the emulator does not have these labels"


def test_spectra_are_exchanged_within_cells_of_the_other_labels() -> None:
    rng = np.random.default_rng(1)
    cell = rng.integers(0, 12, 600)
    own = rng.normal(size=600)
    other = 10.0 * np.stack([cell % 4, cell // 4], axis=1) + rng.normal(0, 0.1, (600, 2))
    star = np.arange(600) // 2
    drawn = alike(other[:300], other, star=star[:300], pool_star=star, n=4, rng=rng)
    assert np.all(cell[drawn] == cell[:300, None])
    assert np.all(star[drawn] != star[:300, None])
    assert abs(np.corrcoef(own[drawn].mean(axis=1), own[:300])[0, 1]) < 0.2
    distance = np.linalg.norm(other[:300, None] - other, axis=2)
    distance[star[:300, None] == star] = np.inf
    nearest = np.sort(distance, axis=1)[:, 4, None]
    assert np.all(np.take_along_axis(distance, drawn, axis=1) <= nearest)
    assert all(len(set(row)) == 4 for row in drawn.tolist())


def test_a_star_without_others_gets_no_spectrum() -> None:
    place = np.array([[0.0], [np.nan], [1.0]])
    rng = np.random.default_rng(0)
    star = np.array([0, 1, 2])
    drawn = alike(place, place[[0, 2]], star=star, pool_star=star[[0, 2]], n=2, rng=rng)
    assert drawn.tolist() == [[1, 1], [-1, -1], [0, 0]]
    nobody = alike(place, place[:0], star=star, pool_star=star[:0], n=2, rng=rng)
    assert np.all(nobody == -1)


def test_bootstrap_error_is_the_scatter_of_scatters_and_counts_stars() -> None:
    rng = np.random.default_rng(3)
    residual = rng.normal(size=(400, 1))
    single = bootstrap_scatter([residual], np.arange(400), n=2000, rng=rng)
    assert single.std() == pytest.approx(1 / np.sqrt(800), rel=0.2)
    copies = np.repeat(residual, 4, axis=0)
    grouped = bootstrap_scatter([copies], np.repeat(np.arange(400), 4), n=2000, rng=rng)
    assert grouped.std() == pytest.approx(single.std(), rel=0.15)
    both = bootstrap_scatter([residual, 2 * residual], np.arange(400), n=50, rng=rng)
    assert both[:, 1] == pytest.approx(2 * both[:, 0]), "the same stars are drawn in all cases"


def test_response_is_found_with_its_error() -> None:
    rng = np.random.default_rng(4)
    star = np.repeat(np.arange(150), 2)
    apart = rng.normal(size=(300, 4, 3)) * [300, 0.1, 0.05]
    truth = np.array([0.6, 200.0, -100.0])
    found = []
    for _ in range(60):
        common = rng.normal(0, 40, 150)[star, None]
        moved = apart @ truth + common * (apart[:, :, 0] / 300) + rng.normal(0, 30, (300, 4))
        found.append(response(moved, apart, star))
    slopes, errors = np.array(found).T
    assert slopes.mean() == pytest.approx(0.6, abs=4 * slopes.std() / np.sqrt(60))
    assert errors.mean() == pytest.approx(slopes.std(), rel=0.3)


def test_derivatives_are_those_of_finite_differences(default_model, default_survey) -> None:
    model, survey = Model.open(default_model), Survey.open(default_survey)
    inputs = model.preparation.apply(survey.rows([3, 40]))
    gradient = flux_gradient(model, inputs)
    assert gradient.shape == (2, 9, 912)
    network = EnsembleNetwork(model)
    rng = np.random.default_rng(5)
    for _ in range(3):
        direction = rng.normal(size=912).astype(np.float32)
        ends = [
            network.predict(replace(inputs, flux=inputs.flux + step * direction)).mean
            for step in (0.003, -0.003)
        ]
        expected = (ends[0] - ends[1]) / 0.006
        scale = model.scaling.labels.scale
        assert gradient @ direction / scale == pytest.approx(expected / scale, rel=0.02, abs=5e-3)


def test_stars_without_an_answer_have_no_derivative(tiny_model, tiny_survey) -> None:
    model, survey = Model.open(tiny_model), Survey.open(tiny_survey)
    inputs = model.preparation.apply(survey.rows([0, 1]))
    blind = inputs.observables.copy()
    blind[0] = np.nan
    gradient = flux_gradient(model, replace(inputs, observables=blind))
    assert np.isnan(gradient[0]).all()
    assert np.isfinite(gradient[1]).all()


@pytest.mark.parametrize("prior", [None, "photometry"])
def test_best_weights_reach_the_bound(prior) -> None:
    """Of an estimator B with prior precision P: B J = 1 - Sigma P, and B C B^T <= Sigma."""
    labels, snr = np.array([SUN, GIANT]), np.array([60.0, 40.0])
    weights, slopes = optimal_weights(labels, snr, prior=prior)
    covariance = cramer_rao_covariance(labels, snr, prior=prior)
    gain = np.einsum("nip,njp->nij", weights, slopes)
    assert np.all(np.diagonal(gain, axis1=1, axis2=2) < 1.02)
    better = cramer_rao_covariance(labels, snr * 1.01, prior=prior)
    by_snr = np.diagonal(better, axis1=1, axis2=2) / np.diagonal(covariance, axis1=1, axis2=2)
    # Noise of the estimate, by the derivative of the least variance: d Sigma / d ln snr^2.
    flux_noise = -(by_snr - 1) / (2 * np.log(1.01)) * np.diagonal(covariance, axis1=1, axis2=2)
    response = _noise_of(weights, labels, snr)
    assert response == pytest.approx(flux_noise, rel=0.03)


def _noise_of(weights, labels, snr):
    """Diagonal of B C B^T, with the noise correlation and the square-root law written out."""
    values = Population.load().complete(labels)
    emulator = Emulator.load()
    spectrograph = Spectrograph(
        emulator.wave_aa, RAVE_WAVE_AA, emulator.spec.resolving_power, TRAINING_CONDITIONS
    )
    flux = spectrograph.disperse(emulator.flux(values), values).flux.astype(float)
    scaled = weights * (np.sqrt(flux) / snr[:, None])[:, None]
    total = (scaled**2).sum(axis=2)
    for lag, correlation in ((1, 0.44), (2, 0.05)):
        total += 2 * correlation * (scaled[:, :, lag:] * scaled[:, :, :-lag]).sum(axis=2)
    return total


def test_marked_lines_are_where_the_emulator_has_them() -> None:
    """Away from the Ca II wings, the flux falls with the element at each of its lines."""
    _, slopes = optimal_weights(np.array([SUN, GIANT]), 50.0)
    wave = 8420.0 + 0.4 * np.arange(912)
    for label, element in (("mg_fe", "Mg"), ("al_fe", "Al"), ("si_fe", "Si"), ("ni_fe", "Ni")):
        fall = -slopes[:, LABEL_NAMES.index(label)].mean(axis=0)
        for line in LINES[element]:
            near = np.abs(wave - line) < 1.0
            around = np.abs(wave - line) < 5.0
            assert fall[near].max() > 3 * np.median(fall[around]), (element, line)
            assert fall[near].max() > 0.04 * fall.max(), (element, line)
    assert set(LINES_OF) == set(LABEL_NAMES)
    assert {name for names in LINES_OF.values() for name in names} == set(LINES)


def test_typical_stars() -> None:
    labels = np.array([SUN, GIANT, SUN * 1.002, SUN * np.nan])
    assert nearest_to("Sun-like dwarf", labels).tolist() == [0, 2]
    assert nearest_to("red clump giant", labels).tolist() == [1]
    assert nearest_to("metal-poor giant", labels[:1]).size == 0


def test_a_star_is_of_one_type_only() -> None:
    """A sample of Sun-like dwarfs alone has no red clump of its coolest stars."""
    rng = np.random.default_rng(0)
    dwarfs = SUN + rng.normal(size=(50, 9)) * [300, 0.3, 0.2, 0.2, 0, 0, 0, 0, 0]
    shifted = np.where(np.arange(50)[:, None] < 8, [-300, -0.9, 0, 0, 0, 0, 0, 0, 0], 0) + dwarfs
    found = {name: set(nearest_to(name, shifted).tolist()) for name in STAR_TYPES}
    assert len(found["Sun-like dwarf"]) == 8
    assert not found["Sun-like dwarf"] & found["red clump giant"]
    assert not found["red clump giant"] & found["metal-poor giant"]


def test_inputs_that_are_missing_are_known_to_predictions() -> None:
    assert {name for without in WITHOUT.values() for name in without} <= set(INPUTS)


@pytest.mark.slow
def test_the_published_network_cannot_do_without(published) -> None:
    assert "gives no labels without a spectrum" in published.note
    for one in published.labels:
        assert set(one.cases) == {ALL, SHUFFLED, CONTROL}
        assert one.basis == SHUFFLED
    assert published.magnitude_rows()[1:] == []


@pytest.mark.slow
def test_every_case_of_the_default_network(default) -> None:
    assert default.note == ""
    assert default.simulated
    for one in default.labels:
        assert {ALL, SHUFFLED, CONTROL, *WITHOUT} == set(one.cases)
        assert one.basis == PHOTOMETRY
        full, alone = one.cases[ALL], one.cases[PHOTOMETRY]
        assert one.gain == pytest.approx(1 - full.scatter / alone.scatter)
        sure = one.gain_error <= 0.05 or abs(one.gain - LEAST_GAIN) >= one.gain_error
        known = "measured" if one.gain >= LEAST_GAIN else "inferred"
        assert one.verdict == (known if sure else "unknown")
        assert one.n <= default.n_row
        assert 0 < full.scatter_error < full.scatter
    assert len(default.magnitude_rows()) == len(default.rows()) == len(default.swap_rows()) == 10
    assert [one.star for one in default.sensitivities] == list(STAR_TYPES)[
        : len(default.sensitivities)
    ]


@pytest.mark.slow
def test_the_report_says_on_which_inputs_it_stands(
    default, default_model, default_survey, tmp_path
):
    model = Model.open(default_model)
    assert default.inputs == ("spectrum", *model.preparation.source_names)
    assert default.absent == ()
    assert default.grounds.endswith(f"compared with {PHOTOMETRY}")
    survey = Survey.open(default_survey)
    none = np.full(len(survey), np.nan)
    infrared = dict.fromkeys(("j_m", "h_m", "ks_m"), none)
    less = audit(
        model, copy_survey(default_survey, tmp_path / "l.zarr", **infrared), n_bootstrap=20
    )
    assert less.absent == ("J", "H", "Ks")
    assert "none of J, H, Ks" in less.grounds
    # A case without what is not there anyway would be that of all inputs again.
    assert all("without 2MASS" not in one.cases for one in less.labels)
    blind = dict.fromkeys(("parallax", "a_v"), none) | {
        band.column: none for band in BANDS if band.name in model.preparation.source_names
    }
    bare = audit(model, copy_survey(default_survey, tmp_path / "b.zarr", **blind), n_bootstrap=20)
    assert bare.inputs == ("spectrum",)
    assert bare.note.startswith("the stars have no photometry")
    assert {one.basis for one in bare.labels} == {SHUFFLED}


@pytest.mark.slow
def test_verdicts_that_differ_from_the_card_are_told_with_the_reason(default) -> None:
    said = audit_metadata(default)
    assert differences(default, said) == ()
    said["labels"]["logg"]["verdict"] = "unlike any"
    (told,) = differences(default, said)
    assert "log g unlike any" in told
    assert metadata_grounds(said) == default.grounds
    assert default.grounds in told
    assert differences(default, {"labels": 3}) == ()


@pytest.mark.slow
def test_scatters_are_those_of_predictions(default, default_model, default_survey) -> None:
    from maury.evaluation.validation import held_out_rows
    from maury.prediction.streaming import predict_rows

    survey = Survey.open(default_survey)
    rows = held_out_rows(Model.open(default_model), survey)
    for name in (ALL, SPECTRUM, PHOTOMETRY):
        table = predict_rows(default_model, survey, rows, without=WITHOUT.get(name, ()))
        for one in default.labels:
            residual = table[one.name] - survey.labels([one.name])[rows, 0]
            assert one.cases[name].scatter == pytest.approx(residual.std(), rel=1e-5)


@pytest.mark.slow
def test_a_label_that_is_not_known_says_nothing_and_hides_nothing(
    tiny_model, tiny_survey, tmp_path, published
) -> None:
    nickel = np.full(len(Survey.open(tiny_survey)), np.nan)
    survey = copy_survey(tiny_survey, tmp_path / "s.zarr", ni_fe=nickel)
    report = audit(tiny_model, survey, n_bootstrap=50)
    *known, unknown = report.labels
    assert (unknown.n, unknown.verdict, unknown.cases) == (0, "unknown", {})
    assert json.loads(report.to_json())["labels"][-1]["gain"] is None
    for one, before in zip(known, published.labels, strict=False):
        assert one.cases[ALL].scatter == pytest.approx(before.cases[ALL].scatter)
        assert one.verdict in ("measured", "inferred")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report(published, tiny_model, tiny_survey) -> None:
    again = audit(tiny_model, tiny_survey, n_bootstrap=50)
    assert again.to_json() == published.to_json()


@pytest.mark.slow
def test_what_a_catalogue_says(default) -> None:
    said = json.loads(json.dumps(audit_metadata(default), allow_nan=False))
    assert list(said["labels"]) == list(LABEL_NAMES)
    verdicts = {one["verdict"] for one in said["labels"].values()}
    assert verdicts <= {"measured", "inferred", "unknown"}
    assert "10 %" in said["rule"]
    assert said["simulated"] is True


@pytest.mark.parametrize(
    ("whole", "spread", "verdict"),
    [
        (0.088, 0.06, "unknown"),
        (0.100, 0.12, "unknown"),
        (0.088, 0.01, "measured"),
        (0.096, 0.01, "inferred"),
        (0.060, 0.06, "measured"),
    ],
)
def test_a_gain_that_chance_may_give_is_no_verdict(whole, spread, verdict) -> None:
    sizes = {ALL: whole, PHOTOMETRY: 0.100}
    cases = {name: Case(name, 0.0, size, 0.01) for name, size in sizes.items()}
    rng = np.random.default_rng(3)
    draws = np.array([*sizes.values()]) * (1.0 + spread * rng.standard_normal((400, 2)))
    assert _verdict(cases, draws)[3] == verdict


@pytest.mark.slow
def test_a_catalogue_of_stars_with_other_inputs_claims_no_verdict(
    default, default_model, default_survey, tmp_path
) -> None:
    arrays, said = default.to_arrays(), audit_metadata(default)
    model = Model.open(default_model).with_arrays("audit", arrays, metadata=said)
    survey = Survey.open(default_survey)
    assert catalogue_spec(model, survey).metadata["audit"] == said
    bare = catalogue_spec(model, survey, without=("photometry",)).metadata["audit"]
    assert {one["verdict"] for one in bare["labels"].values()} == {"unknown"}
    assert "parallax" in bare["note"]
    assert "maury audit" in bare["note"]
    assert said["labels"]["teff"]["verdict"] != "unknown"


@pytest.mark.slow
def test_spectra_can_lie_in_the_model_directory(default, default_model, tmp_path) -> None:
    model = Model.open(default_model)
    arrays, said = default.to_arrays(), audit_metadata(default)
    saved = model.with_arrays("audit", arrays, metadata=said).save(tmp_path / "m")
    read = saved.arrays("audit")
    assert read["gain"] == pytest.approx([one.gain for one in default.labels])
    assert len(read) == 1 + 2 * len(default.sensitivities)
    assert saved.attachments["audit"].metadata == said


@pytest.mark.slow
def test_figures_show_the_audit(default, published) -> None:
    for report in (default, published):
        figure = figures.audit_figure(report)
        figure.draw_without_rendering()
        (ax,) = figure.axes
        names = [figures.symbol_text(one) for one in select([r.name for r in report.labels])]
        assert [t.get_text() for t in ax.get_yticklabels()] == names
        assert SIMULATED in [t.get_text() for t in ax.texts]
    one = default.sensitivities[0]
    figure = figures.sensitivity_figure(one, simulated=True)
    figure.draw_without_rendering()
    assert len(figure.axes) == 9
    drawn = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert drawn["model"] == pytest.approx(0.01 * one.network[0])
    assert "Mg" in [t.get_text() for t in figure.axes[LABEL_NAMES.index("mg_fe")].texts]


@pytest.mark.slow
def test_the_command(default_model, default_survey, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("maury.evaluation.audit.star_types", lambda names: ("red clump giant",))
    arguments = ["audit", default_model, default_survey]
    out = ["--json", tmp_path / "a.json", "--figure", tmp_path / "a.png"]
    result = CliRunner().invoke(cli.app, list(map(str, arguments + out)), env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "SIMULATED" in result.output
    assert all(len(line) <= 80 for line in result.output.splitlines())
    report = json.loads((tmp_path / "a.json").read_text())
    assert [one["name"] for one in report["labels"]] == list(LABEL_NAMES)
    drawn = {path.name for path in tmp_path.glob("*.png")}
    assert drawn == {"a.png", "a-red-clump-giant.png"}


@pytest.mark.parametrize("command", ["audit", "coverage", "drift", "suspects"])
def test_a_survey_on_another_grid_is_refused_in_words(tmp_path, default_model, command):
    other = write_survey(tmp_path / "other.zarr", n=60)
    found = CliRunner().invoke(cli.app, [command, str(default_model), str(other.path)])
    assert found.exit_code != 0
    assert found.exception is None or isinstance(found.exception, (SystemExit, MauryError)), (
        found.exception
    )


@pytest.mark.parametrize(
    ("control", "spread", "verdict"),
    [
        (0.107, 0.03, "unknown"),
        (0.107, 0.004, "inferred"),
        (0.050, 0.03, "measured"),
        (0.112, 0.002, "inferred"),
    ],
)
def test_stars_that_are_not_alike_call_no_label_inferred(control, spread, verdict) -> None:
    """A star's own spectrum leaves .041; those of stars alike in other labels, some .11."""
    sizes = {ALL: 0.041, CONTROL: control, SHUFFLED: 0.115}
    cases = {name: Case(name, 0.0, size, 0.01) for name, size in sizes.items()}
    rng = np.random.default_rng(3)
    draws = np.array([*sizes.values()]) * (1.0 + spread * rng.standard_normal((400, 3)))
    gain, error, basis, found = _verdict(cases, draws)
    assert (basis, found) == (SHUFFLED, verdict)
    assert gain == pytest.approx(1.0 - control / 0.115)
    assert error == pytest.approx(control / 0.115 * spread * np.sqrt(2.0), rel=0.15)
