"""One model for two surveys, and a survey added to it."""

import json
import shutil

import numpy as np
import pytest
from typer.testing import CliRunner

from builders.training_survey import write_survey
from maury.cli.app import app
from maury.errors import ConfigError, ModelFileError, OutputExists, TrainingError
from maury.evaluation.joint_validation import validate_joint
from maury.model.directory import Model
from maury.model.joint_model import JointModel
from maury.model.split import held_out_fold
from maury.prediction import uncertainty
from maury.prediction.catalogue import Catalogue
from maury.prediction.joint_catalogue import predict_joint, predict_stars
from maury.prediction.joint_predictor import JointLabels, best_rows
from maury.prediction.streaming import predict_rows
from maury.simulation.training_stars import TrainingStarSimulator
from maury.survey.store import Survey
from maury.training.joint import add_survey, train_joint
from maury.training.processes import WorkFolder

# The model that all of these look at is trained for them.
pytestmark = pytest.mark.slow

CONFIG = {
    "training": {"steps": 240, "stars": 1000, "theory": "learnt"},
    "split": {"train": 0.7, "validation": 0.2, "test": 0.1},
}
N = 440
SMALL = 800
"""Simulated stars that the errors of a test's networks are calibrated on."""


def second(path, first, **changes):
    """Another survey of most of the stars, under other names, with other lines and more noise."""
    rng = np.random.default_rng(8)
    u, v = (first.column("teff") - 4000) / 3000, (first.column("logg") - 1) / 3
    pixel = np.arange(64)
    depth = np.exp(-0.5 * ((pixel - 12) / 2.5) ** 2) * (0.3 + 0.6 * v[:, None])
    depth += np.exp(-0.5 * ((pixel - 33) / 3.5) ** 2) * u[:, None] ** 2
    changes = {
        "id": [f"t{k}" for k in range(N)],
        "star_id": [f"other{k // 2}" for k in range(N)],
        "flux": 1 - 0.5 * depth + rng.normal(0, 0.02, (N, 64)),
        "ivar": np.full((N, 64), 2500.0),
        "snr": np.full(N, 50.0),
        **changes,
    }
    return write_survey(path, n=N, seed=2, **changes)


@pytest.fixture(scope="module")
def surveys(once):
    one = once("joint/one.zarr", lambda path: write_survey(path, n=N, seed=2))
    # The last forty spectra are of stars that the first survey did not see.
    parallax = Survey.open(one).column("parallax").copy()
    parallax[-40:] += 7.0
    two = once("joint/two.zarr", lambda path: second(path, Survey.open(one), parallax=parallax))
    return {"one": Survey.open(one), "two": Survey.open(two)}


@pytest.fixture(scope="module")
def joint(once, surveys):
    settings = {"members": 2, "seed": 1, "config": CONFIG, "n_processes": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(uncertainty, "N_SIMULATED", SMALL)
        path = once("joint/both.joint", lambda path: train_joint(surveys, path, **settings))
    return JointModel.open(path)


def test_it_holds_a_model_of_each_survey(joint, surveys):
    assert joint.names == ("one", "two")
    assert joint.label_names == ("teff", "logg")
    assert joint.simulated
    assert "SIMULATED" in repr(joint)
    assert joint.about["shared_stars"] == {"one two": 200}
    again = JointModel.open(joint.path)
    for name, survey in surveys.items():
        model = Model.open(joint.path / name)
        assert model.checksum == again.models[name].checksum
        assert model.errors_calibrated
        assert (joint.path / name / "card.md").is_file()
        rows = predict_rows(model, survey, np.arange(N))
        assert np.isfinite(rows["teff"]).all()


def test_a_star_is_on_one_side_in_all_surveys(joint, surveys):
    from maury.survey.common_stars import CommonStars

    common = CommonStars.of(surveys)
    part = {}
    for name in surveys:
        split = joint.models[name].split
        for one in ("train", "validation", "test"):
            rows = split.contains(one, surveys[name].star_id)
            part[name, one] = set(common.star[name][rows].tolist())
    for name in surveys:
        assert part[name, "train"]
        assert part[name, "test"]
        for other in surveys:
            assert not part[name, "train"] & part[other, "test"]
            assert not part[name, "train"] & part[other, "validation"]


def test_no_network_knows_a_star_that_it_holds_out(tmp_path, surveys, monkeypatch):
    seen = {}

    def stop(jobs, **_):
        seen["folder"] = WorkFolder(jobs[0].folder)
        raise KeyboardInterrupt

    monkeypatch.setattr("maury.training.joint.train_members", stop)
    with pytest.raises(KeyboardInterrupt):
        train_joint(surveys, tmp_path / "x.joint", members=2, seed=1, config=CONFIG)
    teff = surveys["one"].column("teff")
    names = {"one": surveys["one"].star_id, "two": surveys["two"].star_id}
    for member in (0, 1):
        held = set()
        for name in names:
            fold = held_out_fold(names[name], n_fold=8, seed=1)
            # Stars of the two surveys stand in the same rows, but for the last forty.
            held |= set(teff[:-40][fold[:-40] == member].tolist())
        assert held
        for name in names:
            simulator, _ = WorkFolder(seen["folder"].path / name).star_simulator(member)
            assert isinstance(simulator, TrainingStarSimulator)
            assert not held & set(simulator.labels[:, 0].tolist())


def test_stars_seen_twice_are_answered_once_with_smaller_errors(tmp_path, joint, surveys):
    out = tmp_path / "stars.fits"
    found = predict_joint(joint, surveys, out)
    catalogue = Catalogue.read(out)
    assert len(catalogue) == found.star.size == 240
    assert len(set(catalogue.table["id"])) == 240
    assert catalogue.simulated
    several = np.asarray(catalogue.table["n_spectra"]) == 2
    assert set(catalogue.table["surveys"][several]) == {"one+two"}
    assert np.isfinite(catalogue.table["teff_error"]).all()
    # A warning on one spectrum leaves the other to answer: not all stars have both.
    assert several.sum() > 100
    with pytest.raises(OutputExists):
        predict_joint(joint, surveys, out)


def test_together_nearer_to_the_truth(joint, surveys):
    labels = JointLabels(joint)
    assert list(labels.calibrated) == [("one", "two")]
    rows = np.arange(0, N - 40, 2)
    inputs = {
        name: joint.models[name].preparation.apply(surveys[name].rows(rows)) for name in surveys
    }
    truth = surveys["one"].labels(["teff", "logg"])[rows]
    together = labels.predict(inputs).mean - truth
    alone = labels.predict({"two": inputs["two"]}).mean - truth
    assert (together.std(axis=0) / alone.std(axis=0)).mean() < 0.95
    # A survey alone is what its own model says.
    own = predict_rows(joint.models["two"], surveys["two"], rows)
    found = labels.predict({"two": inputs["two"]}).mean
    scale = np.array([1000.0, 1.0])
    ours = np.stack([own["teff"], own["logg"]], axis=1)
    assert np.median(np.abs(found - ours) / scale) < 0.05


def test_rows_that_a_flag_warns_of_do_not_answer(tmp_path, joint, surveys):
    ivar = np.full((N, 64), 2500.0)
    ivar[:100] = 0.0
    two = second(tmp_path / "broken.zarr", surveys["one"], ivar=ivar)
    found = predict_stars(joint, {"one": surveys["one"], "two": two})
    first = (found.row["one"] >= 0) & (found.row["one"] < 100)
    assert first.sum() > 30
    assert (found.columns["surveys"][first] == "one").all()
    assert (found.columns["surveys"] == "one+two").sum() > 100


def test_the_best_row_of_a_star():
    star = np.array([3, 3, 3, 5, 9])
    usable = np.array([True, True, True, True, False])
    warned = np.array([True, False, False, True, False])
    known, rows = best_rows(star, usable, warned, np.array([90.0, 20.0, 30.0, np.nan, 5.0]))
    assert known.tolist() == [3, 5]
    assert rows.tolist() == [2, 3]


def test_figures_of_held_out_stars(joint, surveys):
    found = validate_joint(joint, surveys)
    by = {(f.label, f.answered_by, f.seen_by): f for f in found.figures}
    assert ("teff", "one+two", "one+two") in by
    assert ("logg", "two", "one+two") in by
    assert by["teff", "one", "all"].n_star >= by["teff", "one", "one+two"].n_star > 5
    assert set(found.differences["one - two"]) == {"teff", "logg"}
    assert 0.2 < found.differences["one - two"]["teff"] < 3.0
    assert json.loads(found.to_json())["simulated"] is True


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, joint, surveys, monkeypatch):
    monkeypatch.setattr(uncertainty, "N_SIMULATED", SMALL)
    path = tmp_path / "again.joint"

    def stop(event):
        if event.member == 1:
            raise KeyboardInterrupt

    settings = {"members": 2, "seed": 1, "config": CONFIG, "n_processes": 1}
    with pytest.raises(KeyboardInterrupt):
        train_joint(surveys, path, progress=stop, **settings)
    assert not path.exists()
    told = []
    again = train_joint(surveys, path, stage=told.append, **settings)
    expected = ["looking for", "theory of", "reading", "fitting", "training", "calibrating"]
    steps = [next((k for k, text in enumerate(told) if word in text), -1) for word in expected]
    assert steps == sorted(steps)
    assert min(steps) >= 0
    assert {k: v.tobytes() for k, v in again.arrays.items()} == {
        k: v.tobytes() for k, v in joint.arrays.items()
    }
    assert [m.checksum for m in again.models.values()] == [
        m.checksum for m in joint.models.values()
    ]
    assert not list(tmp_path.glob("*.part"))


def test_a_survey_that_is_added_changes_no_other(tmp_path, joint, surveys, monkeypatch):
    monkeypatch.setattr(uncertainty, "N_SIMULATED", SMALL)
    one = surveys["one"]
    third = second(
        tmp_path / "three.zarr",
        one,
        id=[f"v{k}" for k in range(N)],
        star_id=[f"third{k // 2}" for k in range(N)],
        flux=1.5 - surveys["two"].batch(0, N).spectra.flux[:, ::-1] / 2,
        ivar=np.full((N, 64), 4e3),
    )
    grown = add_survey(
        joint,
        "three",
        third,
        tmp_path / "grown.joint",
        others={"one": one},
        seed=4,
        config=CONFIG,
        n_processes=1,
    )
    assert grown.names == ("one", "two", "three")
    assert grown.about["added"] == ["three"]
    for name in ("one", "two"):
        assert grown.models[name].checksum == joint.models[name].checksum
    before, after = JointLabels(joint), JointLabels(grown)
    assert ("one", "three") in after.calibrated
    assert ("one", "two") in after.calibrated
    rows = np.arange(0, N - 40, 4)
    inputs = {
        name: grown.models[name].preparation.apply(one_survey.rows(rows))
        for name, one_survey in {**surveys, "three": third}.items()
    }
    both = {name: inputs[name] for name in ("one", "two")}
    assert np.array_equal(before.predict(both).mean, after.predict(both).mean)
    # Stars of the first model's test part stay test stars of the new survey.
    tested = grown.models["one"].split.contains("test", one.star_id)
    assert not (grown.models["three"].split.contains("train", third.star_id) & tested).any()
    truth = one.labels(["teff", "logg"])[rows]
    together = after.predict({"one": inputs["one"], "three": inputs["three"]}).mean
    assert np.isfinite(together).all()
    assert np.corrcoef(together[:, 0], truth[:, 0])[0, 1] > 0.5


def test_a_joint_model_is_no_model_of_one_survey(joint):
    with pytest.raises(ModelFileError, match=r"joint model of several surveys.*one, two"):
        Model.open(joint.path)
    with pytest.raises(ModelFileError, match="not a joint model"):
        JointModel.open(joint.path / "one")


@pytest.mark.parametrize("damage", ["header", "swapped", "tensors"])
def test_damage_is_found(tmp_path, joint, damage):
    path = tmp_path / "copy.joint"
    shutil.copytree(joint.path, path)
    if damage == "header":
        text = (path / "joint.json").read_text().replace('"two"', '"../two"')
        (path / "joint.json").write_text(text)
    elif damage == "tensors":
        data = bytearray((path / "joint.safetensors").read_bytes())
        data[-1] ^= 1
        (path / "joint.safetensors").write_bytes(data)
    else:
        shutil.rmtree(path / "two")
        shutil.copytree(path / "one", path / "two")
    with pytest.raises(ModelFileError):
        JointModel.open(path)


def test_wrong_settings_are_told(tmp_path, surveys):
    out = tmp_path / "x.joint"
    with pytest.raises(ConfigError, match="two surveys or more"):
        train_joint({"one": surveys["one"]}, out)
    with pytest.raises(ConfigError, match="cannot name a survey"):
        train_joint({"One.": surveys["one"], "two": surveys["two"]}, out)
    with pytest.raises(ConfigError, match=r"\[survey.three\] is the section of no survey"):
        train_joint(surveys, out, config={"survey": {"three": {}}})
    with pytest.raises(ConfigError, match="whole stars"):
        train_joint(surveys, out, config={"split": {"rule": "published"}})
    with pytest.raises(ConfigError, match="takes the same of all"):
        own = {"preparation": {"observables": []}}
        train_joint(surveys, out, config={**CONFIG, "survey": {"two": own}})
    bare = {
        name: survey.with_columns(dict.fromkeys(survey.label_names, np.full(N, np.nan)))
        for name, survey in surveys.items()
    }
    with pytest.raises(TrainingError, match="none of the surveys one, two has labels"):
        train_joint(bare, out)
    assert not out.exists()


def test_the_command_line(tmp_path, joint, surveys):
    run = CliRunner().invoke
    given = [f"{name}={survey.path}" for name, survey in surveys.items()]
    told = run(app, ["info", str(joint.path)])
    assert "JointModel" in told.output
    assert "two:" in told.output
    found = run(app, ["joint", "validate", str(joint.path), *given])
    assert found.exit_code == 0, found.output
    assert "SIMULATED" in found.output
    assert "one+two" in found.output
    out = tmp_path / "stars.parquet"
    found = run(app, ["joint", "predict", str(joint.path), *given, "--out", str(out)])
    assert found.exit_code == 0, found.output
    assert "240 stars" in found.output
    assert len(Catalogue.read(out)) == 240
    wrong = run(
        app, ["joint", "predict", str(joint.path), "one", "--out", str(tmp_path / "y.fits")]
    )
    assert wrong.exit_code != 0


def test_arrays_are_those_of_the_reference(joint):
    kinds = {name.partition("/")[0] for name in joint.arrays}
    assert kinds == {"shared", "scaling", "calibration", "difference"}
    assert {"bias", "out.weight"} <= set(joint.shared(0))
