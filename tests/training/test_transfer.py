"""Models moved to another survey: what is carried over, what is learnt anew, what is refused."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from maury.errors import (
    ConfigError,
    GridMismatch,
    ModelFileError,
    OutputExists,
    TrainingError,
)
from maury.labels.columns import BANDS
from maury.labels.definitions import LABEL_NAMES, LABELS
from maury.model.directory import Model
from maury.model.split import Split, SplitConfig, split_rows
from maury.prediction import uncertainty
from maury.prediction.streaming import predict_rows
from maury.simulation.emulator import Emulator
from maury.simulation.mismatch import REALISTIC_MISMATCH
from maury.simulation.observing import ObservingModel, Spectrograph
from maury.simulation.population import Population
from maury.simulation.surveys import Simulation, Simulator
from maury.simulation.theory_calibration import TheoryCalibration
from maury.simulation.training_stars import TrainingStarSimulator
from maury.spectra.star_identity import StarMarks
from maury.survey.store import Survey, SurveyWriter
from maury.training.simulated import SimulatedTraining, train_on_simulated_stars
from maury.training.source_model import SourceModel
from maury.training.transfer import transfer

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

WAVE = 8480.0 + 0.5 * np.arange(400)
POWER = 11_500.0
QUICK = {"training": {"steps": 20, "stars": 600}}
SEEN = ["snr", "parallax", "parallax_error", "a_v", *(b.column for b in BANDS)]


def observe(n=100, seed=5, wave=WAVE, mismatch=None):
    """Stars as a spectrograph of higher resolution sees them: flux, ivar, columns."""
    settings = {"theory_mismatch": mismatch} if mismatch else {}
    observing = ObservingModel(
        resolving_power=POWER, resolving_power_range=(11_000, 12_000), **settings
    )
    emulator = Emulator.load()
    simulator = Simulator(
        seed, Simulation(observing=observing), emulator=emulator, population=Population.load()
    )
    simulator.spectrograph = Spectrograph(
        emulator.wave_aa, wave, emulator.spec.resolving_power, observing
    )
    blocks = [simulator.block(k) for k in range(-(-n // 256))]
    flux, ivar = (np.concatenate([getattr(o, x) for o, _ in blocks])[:n] for x in ("flux", "ivar"))
    names = blocks[0][1]
    return flux, ivar, {k: np.concatenate([c[k] for _, c in blocks])[:n] for k in names}


def write(path, flux, ivar, columns, *, labels=LABEL_NAMES, wave=WAVE, definitions=LABELS, **more):
    """Write a survey with some of the labels."""
    names = [*SEEN, *labels]
    with SurveyWriter(
        path,
        n_star=len(flux),
        wave_aa=wave,
        medium="air",
        columns=names,
        labels=definitions,
        simulated=True,
        **more,
    ) as writer:
        writer.write(0, flux, ivar, **{k: columns[k] for k in ("id", "star_id", *names)})
    return Survey.open(path)


@pytest.fixture(scope="module")
def stars():
    return observe()


@pytest.fixture(scope="module")
def survey(tmp_path_factory, stars):
    return write(tmp_path_factory.mktemp("new") / "new.zarr", *stars)


@pytest.fixture(scope="module")
def target(tmp_path_factory, default_model, stars):
    """Moved on 100 stars, of which 10 lack [Al/Fe] and 5 lack Teff; [Ni/Fe] is not there."""
    folder = tmp_path_factory.mktemp("child")
    flux, ivar, columns = stars
    columns = {name: values.copy() for name, values in columns.items()}
    columns["al_fe"][:10] = np.nan
    columns["teff"][10:15] = np.nan
    survey = write(folder / "new.zarr", flux, ivar, columns, labels=LABEL_NAMES[:-1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", 500)
        transfer(default_model, survey, folder / "child", resolving_power=POWER, config=QUICK)
    return folder / "child"


def test_the_child_remembers_its_parent(target, default_model):
    model, source = Model.open(target), Model.open(default_model)
    origin = model.provenance["transferred_from"]
    assert origin["checksum"] == source.checksum
    assert origin["name"] == "default"
    assert origin["resolving_power"] == 7500.0
    assert model.simulated
    np.testing.assert_array_equal(model.wave_aa, WAVE)
    observing = model.attachments["sky"].metadata["observing"]
    assert observing["resolving_power"] == POWER
    assert observing["resolving_power_range"] == pytest.approx([6500 * 23 / 15, 8500 * 23 / 15])
    assert len(model.members) == len(source.kept)


def test_scalings_and_stars_are_carried_over_and_errors_inherited(target, default_model):
    model, source = Model.open(target), Model.open(default_model)
    assert model.scaling.labels.offset.tolist() == source.scaling.labels.offset.tolist()
    assert model.scaling.observables.scale.tolist() == source.scaling.observables.scale.tolist()
    old, new = source.arrays("sky")["labels"], model.arrays("sky")["labels"]
    np.testing.assert_array_equal(new, old)  # no star of the new survey has all labels
    assert 0 < model.split.n_rows["validation"] < 30
    for name in ("size", "course"):  # so few stars cannot calibrate errors
        np.testing.assert_array_equal(
            model.arrays("calibration")[name], source.arrays("calibration")[name]
        )
    assert "coverage" not in model.attachments or model.arrays("coverage")
    assert model.training["dropped"]["incomplete labels"] == 5


def test_the_child_answers_on_the_new_grid_with_errors(target, stars, survey):
    table = predict_rows(Model.open(target), survey, np.arange(100))
    for name in LABEL_NAMES:
        assert np.isfinite(table[name]).all()
        assert (table[f"{name}_error"] > 0).all()


def test_weights_begin_at_those_of_the_parent(default_model, survey):
    """Before any step the target model answers much as the source model does for the same stars."""
    source = SourceModel.of(Model.open(default_model))
    batch = survey.batch(0, 100)
    labels = survey.labels(LABEL_NAMES)
    inputs = source.model.preparation.apply(batch)
    observing = SimulatedTraining().observing.model_copy(
        update={"resolving_power": POWER, "resolving_power_range": (11_000.0, 12_000.0)}
    )
    star_simulator = TrainingStarSimulator.fit(
        inputs.wave_aa,
        inputs.flux,
        inputs.ivar,
        labels=labels,
        observables=inputs.observables.astype(float),
        observing=observing,
        source=source.star_simulator,
    )
    star_simulator = source.extend(star_simulator, whole=np.ones(100, dtype=bool))
    assert len(star_simulator.labels) == len(source.star_simulator.labels) + 100
    start = source.starts(star_simulator, 3, 0)
    assert np.array_equal(start[0]["out.weight"], start[2]["out.weight"])
    assert not np.array_equal(start[0]["out.weight"], start[1]["out.weight"])
    old = source.model.weights(source.model.kept[0])
    full = Emulator.load().clip(Population.load().complete(source.star_simulator.labels[:200]))
    seen = source.star_simulator.spectra(full, np.random.default_rng(1))
    new = star_simulator.spectra(full, np.random.default_rng(1))
    scale, centre = old["flux_scale"], old["flux_centre"]
    wanted = (seen - centre) / scale @ old["project.weight"].T + old["project.bias"]
    found = new @ start[0]["project.weight"].T
    off = found - found.mean(axis=0) - (wanted - wanted.mean(axis=0))
    explained = 1 - off.var(axis=0).sum() / wanted.var(axis=0).sum()
    assert explained > 0.9
    config = SimulatedTraining(steps=1, stars=200, learning_rate=1e-12, observing=observing)
    network = SourceModel.of(source.model).model.network
    from maury.model.networks.published import network_config

    settings = {k: v for k, v in network.items() if k != "name"}
    trained = train_on_simulated_stars(
        star_simulator,
        network_config("maury", settings),
        scaling=source.model.scaling,
        config=config,
        seed=1,
        start=start[0],
    )
    np.testing.assert_allclose(trained.weights["out.weight"], old["out.weight"], atol=1e-5)
    pixels = trained.weights["project.weight"] / trained.weights["flux_scale"]
    np.testing.assert_allclose(pixels, start[0]["project.weight"], rtol=1e-3, atol=1e-3)


def test_the_prior_of_the_theory_helps_where_stars_are_few(default_model):
    """What a survey of many stars knows of its spectra brings theory nearer to the next one."""
    labelled = observe(256, seed=1, mismatch=REALISTIC_MISMATCH)
    observing = ObservingModel(resolving_power=POWER, resolving_power_range=(11_000, 12_000))
    truth = np.column_stack([labelled[2][name] for name in LABEL_NAMES])
    none = np.zeros((256, 0))

    def fit(flux, ivar, labels, source=None):
        return TrainingStarSimulator.fit(
            WAVE,
            flux,
            ivar,
            labels=labels,
            observables=none[: len(labels)],
            observing=observing,
            source=source,
        )

    source = fit(*labelled[:2], truth)
    flux, ivar, columns = observe(256, seed=2, mismatch=REALISTIC_MISMATCH)
    labels = np.column_stack([columns[name] for name in LABEL_NAMES])
    few = slice(0, 30)
    alone = fit(flux[few], ivar[few], labels[few])
    moved = fit(flux[few], ivar[few], labels[few], source)
    many = slice(60, 256)
    rms = [
        np.sqrt(np.mean((star_simulator.theory(labels[many]) - flux[many]).mean(axis=0) ** 2))
        for star_simulator in (alone, moved)
    ]
    assert rms[1] < 0.9 * rms[0]


def test_a_calibration_moves_to_other_pixels_and_ends_where_it_does():
    wave = 8500 + 0.5 * np.arange(100)
    labels = np.random.default_rng(0).normal(size=(50, 9))
    blank = TheoryCalibration.none(100, labels)
    rows = np.sin(np.arange(len(blank.strength)) + wave[:, None] / 9).T
    moved = TheoryCalibration(
        blank.centre, blank.scale, rows, blank.pixel, blank.core_modes, blank.continuum_modes
    ).at(wave, np.array([8490.0, 8510.25, 8549.5, 8560.0]))
    assert moved.strength[:, 0].tolist() == [0.0] * 4
    assert moved.strength[:, 3].tolist() == [0.0] * 4
    np.testing.assert_allclose(moved.strength[:, 1], np.sin(np.arange(4) + 8510.25 / 9), atol=1e-3)
    np.testing.assert_array_equal(moved.strength[:, 2], rows[:, 99])


def test_missing_labels_are_filled_as_among_the_stars_of_the_parent(default_model):
    source = SourceModel.of(Model.open(default_model))
    truth = source.star_simulator.labels[::10].copy()
    rng = np.random.default_rng(3)
    truth += rng.normal(size=truth.shape) * [20, 0.02, 0, 0, 0, 0, 0, 0, 0]
    holes = truth.copy()
    holes[:, 3] = np.nan
    holes[::2, 7] = np.nan
    filled = source.fill(holes)
    known = np.isfinite(holes)
    np.testing.assert_array_equal(filled[known], holes[known])
    # [Fe/H] follows [M/H], and [Mg/Fe] follows [alpha/M], more closely than they scatter.
    for k, rows in ((3, slice(None)), (7, slice(0, None, 2))):
        off = filled[rows, k] - truth[rows, k]
        assert off.std() < 0.65 * truth[:, k].std()
    holes[1, 0] = np.nan
    holes[2, 2] = np.nan
    assert np.isnan(source.fill(holes)[[1, 2]]).all()
    assert np.isfinite(source.fill(holes)[3:]).all()


def test_stars_keep_the_part_they_had_in_the_parent(default_model, default_survey):
    model = Model.open(default_model)
    known = Survey.open(default_survey).star_id[:300]
    star_id = np.concatenate([known, [f"new{k}" for k in range(200)]])
    split = split_rows(star_id, config=SplitConfig(), seed=9)
    split = SourceModel.of(model).divide(split, StarMarks.named(star_id))
    parts = [split.train, split.validation, split.test]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(500))
    for name, rows in zip(("train", "validation", "test"), parts, strict=True):
        assert model.split.contains(name, star_id[rows[rows < 300]]).all()
        assert (rows >= 300).any(), "new stars are divided among all parts"
    assert isinstance(split, Split)


def test_a_killed_run_is_taken_up_and_the_seed_decides(tmp_path, default_model, survey):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", 200)
        options = {"resolving_power": POWER, "members": 1, "n_processes": 1}
        config = {"training": {"steps": 4, "stars": 100}}

        def stop(event):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            transfer(default_model, survey, tmp_path / "a", config=config, progress=stop, **options)
        assert (tmp_path / "a.part").is_dir()
        a = transfer(default_model, survey, tmp_path / "a", config=config, **options)
        b = transfer(default_model, survey, tmp_path / "b", config=config, **options)
    assert a.checksum == b.checksum
    assert not (tmp_path / "a.part").exists()
    with pytest.raises(OutputExists):
        transfer(default_model, survey, tmp_path / "a", config=config, **options)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"network": {"width": 8}}, "network is that of the source model"),
        ({"training": 3}, "section of keys"),
        ({"training": {"step": 3}}, "steps"),
        ({"split": {"rule": "published"}}, "whole stars"),
        ({"ensemble": {"labels": ["teff"]}}, "labels of its source model"),
        ({"preparation": {"observables": []}}, "observables must be those of the source model"),
        ({"training": {"observing": {"resolving_power": 30_000}}}, "below the emulator"),
    ],
)
def test_wrong_settings_are_refused(tmp_path, default_model, survey, config, words):
    power = None if "training" in config else POWER
    if power is None and config["training"] == {"step": 3}:
        power = POWER
    with pytest.raises(ConfigError, match=words):
        transfer(default_model, survey, tmp_path / "x", resolving_power=power, config=config)
    assert list(tmp_path.iterdir()) == []


def test_a_survey_that_does_not_fit_is_refused(tmp_path, default_model, stars):
    flux, ivar, columns = stars
    with pytest.raises(ConfigError, match="the new survey is not known"):
        transfer(default_model, write(tmp_path / "a.zarr", *stars), tmp_path / "x")
    with pytest.raises(ConfigError, match="below the emulator's, 20000, got 28000"):
        survey = write(tmp_path / "fine.zarr", *stars, resolving_power=28_000.0)
        transfer(default_model, survey, tmp_path / "x")
    few = [flux[:22], ivar[:22], {k: v[:22] for k, v in columns.items()}]
    with pytest.raises(TrainingError, match=r"at least 20 training stars .*, got 1"):
        survey = write(tmp_path / "few.zarr", *few)
        transfer(default_model, survey, tmp_path / "x", resolving_power=POWER)
    with pytest.raises(ConfigError, match="none of the labels"):
        survey = write(tmp_path / "no.zarr", *stars, labels=())
        transfer(default_model, survey, tmp_path / "x", resolving_power=POWER)
    kelvin = LABELS[0].model_copy(update={"unit": "eV"})
    with pytest.raises(ConfigError, match=r"different units: teff \(eV, K\)"):
        survey = write(tmp_path / "ev.zarr", *stars, definitions=(kelvin, *LABELS[1:]))
        transfer(default_model, survey, tmp_path / "x", resolving_power=POWER)
    wave = 8405.0 + 0.05 * np.arange(400)
    with pytest.raises(GridMismatch, match="must overlap by 10"):
        survey = write(tmp_path / "blue.zarr", *stars, wave=wave)
        transfer(default_model, survey, tmp_path / "x", resolving_power=POWER)
    assert not (tmp_path / "x").exists()


def test_models_that_cannot_be_moved_are_refused(tmp_path, tiny_model, survey):
    with pytest.raises(ConfigError, match="only models of the preset 'maury'"):
        transfer(tiny_model, survey, tmp_path / "x", resolving_power=POWER)
    with pytest.raises(ModelFileError):
        transfer(tmp_path / "none", survey, tmp_path / "x", resolving_power=POWER)


def test_command_line_and_a_child_as_parent(tmp_path, target, survey, monkeypatch):
    from maury.cli.app import app

    monkeypatch.setattr(uncertainty, "N_SIMULATED", 200)
    config = tmp_path / "short.toml"
    config.write_text("[training]\nsteps = 2\nstars = 100\n")
    out = tmp_path / "grandchild"
    arguments = ["transfer", str(target), str(survey.path), str(out)]
    arguments += ["--config", str(config), "--members", "1", "--processes", "1"]
    result = CliRunner().invoke(app, [*arguments, "--resolving-power", "11500"])
    assert result.exit_code == 0, result.output
    document = json.loads((out / "model.json").read_text())
    origin = document["provenance"]["transferred_from"]
    assert origin["name"] == "child"
    assert origin["transferred_from"]["name"] == "default"
    settings = document["training"]["settings"]["training"]
    assert settings["steps"] == 2
    assert settings["observing"]["resolving_power"] == 11500.0
