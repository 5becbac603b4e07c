"""Simulated surveys: marked, reproducible, resumable, independent of how the work is cut."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from maury.errors import ConfigError, OutputExists, ResumeMismatch
from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES
from maury.simulation import surveys as sim
from maury.simulation.emulator import Emulator
from maury.simulation.emulator_file import EmulatorSpec
from maury.simulation.mismatch import REALISTIC_MISMATCH
from maury.simulation.observing import TRAINING_CONDITIONS, ObservingModel
from maury.simulation.population import Population
from maury.simulation.quantities import DISSOCIATION, QUANTITIES
from maury.survey.store import Survey

BOUNDS = [
    (3600.0, 7300.0),
    (0.2, 5.0),
    (-2.0, 0.5),
    (-2.0, 0.6),
    *[(-0.7, 0.8)] * 5,
    (0.5, 2.8),
    *[(-0.5, 0.5)] * 6,
]


@pytest.fixture(scope="module")
def emulator():
    """Return an emulator of one line, a little deeper in cooler stars."""
    n_pixel, hidden = 2048, 4
    n_input = len(QUANTITIES) + len(DISSOCIATION)
    wave = np.geomspace(8404.0, 8800.0, n_pixel)
    line = np.exp(-0.5 * ((wave - 8600.0) / 0.5) ** 2)
    spec = EmulatorSpec(
        label_bounds=tuple(BOUNDS),
        first_wave_aa=8404.0,
        last_wave_aa=8800.0,
        n_pixel=n_pixel,
        resolving_power=20000.0,
    )
    rng = np.random.default_rng(0)
    shapes = {"weight_0": (1, n_input, hidden), "weight_1": (1, hidden, hidden)}
    shapes |= {"weight_2": (1, hidden, hidden), "weight_out": (1, hidden, 1)}
    shapes |= {f"bias_{k}": (1, 1, hidden) for k in range(3)} | {"bias_out": (1, 1, 1)}
    tensors = {k: rng.normal(0, 0.3, s).astype(np.float32) for k, s in shapes.items()}
    return Emulator.build(
        spec,
        tensors
        | {
            "centre": np.zeros(n_input),
            "scale": np.ones(n_input),
            "basis": (0.05 * line[None]).astype(np.float32),
            "mean": (1.0 - 0.4 * line).astype(np.float32),
            "error": np.full(n_pixel, 1e-3, np.float32),
            "holdout_rows": np.zeros(1, np.int32),
        },
    )


@pytest.fixture
def make(tmp_path, emulator):
    def _make(name, **options):
        settings = {"n_star": 40, "seed": 7, "emulator": emulator} | options
        return sim.simulate_survey(tmp_path / name, **settings)

    return _make


@pytest.fixture(scope="module")
def labelled(tmp_path_factory, emulator):
    path = tmp_path_factory.mktemp("simulate") / "labelled.zarr"
    return sim.simulate_survey(path, n_star=300, seed=7, emulator=emulator)


def contents(survey):
    return {name: survey.dataset[name].values for name in survey.dataset.variables}


def assert_same(a, b, rows=slice(None)):
    first, second = contents(a), contents(b)
    assert set(first) == set(second)
    for name, values in first.items():
        part = second[name] if name == "wave" else second[name][rows]
        np.testing.assert_array_equal(values, part, err_msg=name)


def test_a_labelled_survey_is_marked_simulated_and_complete(labelled):
    survey = labelled
    assert isinstance(survey, Survey)
    assert survey.simulated
    assert "SIMULATED" in repr(survey)
    assert survey.provenance["seed"] == 7
    np.testing.assert_allclose(survey.wave_aa, 8420.0 + 0.4 * np.arange(912))
    names = {"ra", "dec", "snr", "parallax", "parallax_error", "a_v", "a_v_error"}
    names |= {name for band in BANDS for name in (band.column, f"{band.column}_error")}
    assert names <= set(survey.column_names)
    for name in set(survey.column_names) - {"id", "star_id"}:
        assert np.all(np.isfinite(survey.column(name))), name
    assert len(set(survey.column("star_id"))) == 300


def test_labels_equal_the_truth_and_have_errors(labelled):
    survey = labelled
    for name in LABEL_NAMES:
        np.testing.assert_array_equal(survey.column(name), survey.column(f"true_{name}"))
        assert np.all(survey.column(f"{name}_error") > 0)


@pytest.mark.slow
def test_label_noise_has_the_quoted_size(make):
    survey = make("n.zarr", n_star=1024, simulation=sim.Simulation(label_noise=True))
    for name in LABEL_NAMES:
        error = survey.column(f"{name}_error")
        pull = (survey.column(name) - survey.column(f"true_{name}")) / error
        assert np.std(pull) == pytest.approx(1.0, abs=4 / np.sqrt(2 * 1024))
        assert np.median(error) == pytest.approx(sim.LABEL_ERRORS[name], rel=0.05)


def test_an_observed_survey_has_truth_but_no_labels(make):
    survey = make("o.zarr", observed=True, n_star=600)
    assert not set(LABEL_NAMES) & set(survey.column_names)
    assert np.all(np.isfinite(survey.column("true_teff")))
    assert np.median(survey.column("snr")) == pytest.approx(40.0, rel=0.06)


def test_observed_and_labelled_surveys_of_one_seed_share_no_star(make, labelled):
    observed = make("o.zarr", observed=True, n_star=300)
    assert not set(labelled.column("star_id")) & set(observed.column("star_id"))
    assert not np.any(labelled.column("true_teff") == observed.column("true_teff"))


@pytest.mark.slow
def test_the_same_seed_gives_the_same_survey_and_another_does_not(make, labelled):
    again, other = make("b.zarr", n_star=300), make("c.zarr", seed=8, n_star=300)
    assert_same(labelled, again)
    assert not np.any(labelled.column("true_teff") == other.column("true_teff"))


@pytest.mark.slow
def test_a_longer_survey_begins_with_the_shorter_one(make, labelled):
    assert_same(labelled, make("b.zarr", n_star=600), rows=slice(300))


@pytest.mark.slow
@pytest.mark.two_threads
def test_a_star_does_not_depend_on_how_the_work_is_cut(make, monkeypatch, labelled):
    monkeypatch.setattr(sim, "CHUNK_STARS", sim.BLOCK_STARS)
    assert_same(labelled, make("b.zarr", n_star=300))


def test_blocks_may_be_made_in_any_order(emulator):
    simulator = sim.Simulator(
        3, sim.LABELLED_SURVEY, emulator=emulator, population=Population.load()
    )
    late, _ = simulator.block(2)
    simulator.block(0)
    again, _ = simulator.block(2)
    np.testing.assert_array_equal(late.flux, again.flux)


@pytest.mark.slow
@pytest.mark.two_threads
def test_a_killed_run_is_resumed_with_the_same_bytes(make, monkeypatch, tmp_path, labelled):
    monkeypatch.setattr(sim, "CHUNK_STARS", sim.BLOCK_STARS)

    def kill(done, total):
        if done >= sim.BLOCK_STARS:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("killed.zarr", n_star=300, progress=kill)
    assert not (tmp_path / "killed.zarr").exists()
    steps = []
    resumed = make("killed.zarr", n_star=300, progress=lambda done, total: steps.append(done))
    assert steps == [300]
    assert_same(resumed, labelled)


def test_a_partial_run_with_other_settings_is_not_continued(make, monkeypatch):
    monkeypatch.setattr(sim, "CHUNK_STARS", sim.BLOCK_STARS)

    def kill(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make("a.zarr", n_star=300, progress=kill)
    with pytest.raises(ResumeMismatch):
        make("a.zarr", n_star=300, seed=8)


@pytest.mark.slow
def test_settings_are_kept_in_the_provenance(make):
    simulation = sim.Simulation(observing=ObservingModel(theory_mismatch=REALISTIC_MISMATCH))
    survey = make("m.zarr", simulation=simulation)
    kept = sim.Simulation.model_validate(survey.provenance["simulation"])
    assert kept == simulation


@pytest.mark.slow
def test_an_existing_store_is_not_overwritten_silently(make):
    make("a.zarr")
    with pytest.raises(OutputExists):
        make("a.zarr")
    assert len(make("a.zarr", n_star=5, overwrite=True)) == 5


@pytest.mark.parametrize("options", [{"n_star": 0}, {"seed": -1}])
def test_impossible_requests_are_refused(make, options):
    with pytest.raises(ConfigError, match="at least 1"):
        make("a.zarr", **options)


@pytest.mark.slow
def test_published_networks_find_simulated_stars_as_hard_as_the_reference(shared):
    pytest.importorskip("pandas")
    path = Path(__file__).parents[2] / "scripts/check_realism.py"
    spec = importlib.util.spec_from_file_location("check_realism", path)
    realism = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(realism)
    paths = sorted((shared / "data/published_networks").glob("*.h5"))[:3]
    reference, snr = realism.reference_residuals(shared / "data", paths)
    assert snr.size > 3000
    simulated = realism.simulated_residuals(paths, snr, TRAINING_CONDITIONS)
    pairs = zip(realism.scatter(simulated), realism.scatter(reference), strict=True)
    for ours, theirs in pairs:
        np.testing.assert_allclose(ours / theirs, 1.0, atol=0.25)
