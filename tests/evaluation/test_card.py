"""The card of a model: what it says, where it is, and that it changes nothing."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import maury
from builders.training_survey import write_survey
from maury.cli.app import app
from maury.errors import ConfigError, ModelFileError, OutputExists
from maury.evaluation.card import (
    JSON_FILE,
    TEXT_FILE,
    ModelCard,
    add_card,
    card_of,
    read_card,
    write_card,
)
from maury.evaluation.validation import validate
from maury.labels import references as bibliography
from maury.model.directory import Model
from maury.model.split import SplitRecord
from maury.survey.store import Survey

CONFIG = {"training": {"epochs": 2, "batch_size": 32}, "ensemble": {"members": 2, "labels": []}}


@pytest.fixture(scope="module")
def survey(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "small.zarr")


@pytest.fixture(scope="module")
def trained(tmp_path_factory, survey):
    path = tmp_path_factory.mktemp("model") / "new.model"
    return maury.train(survey, path, preset="starnet", config=CONFIG, seed=1, n_processes=1)


@pytest.fixture
def model(tmp_path, trained):
    shutil.copytree(trained.path, tmp_path / "copy.model")
    return Model.open(tmp_path / "copy.model")


def test_training_writes_a_card_with_figures_of_the_validation_stars(trained, survey):
    card = read_card(trained)
    assert card is not None
    (report,) = card.metrics
    exact = validate(trained, survey, split="validation", with_bounds=False).to_dict()
    assert report == exact
    assert "validation stars" in report["stars"]
    assert report["n_row"] == trained.split.n_rows["validation"]
    text = (trained.path / TEXT_FILE).read_text("utf-8")
    assert text == card.to_markdown()
    scatter = next(one["scatter"] for one in report["statistics"] if one["name"] == "teff")
    assert f"| {scatter:.3g} |" in text


def test_test_stars_are_not_measured_until_asked_for(trained):
    text = (trained.path / JSON_FILE).read_text("utf-8")
    assert "held-out test stars" not in text
    assert all("test" not in report["stars"] for report in read_card(trained).metrics)


def test_the_card_says_what_the_model_knows(trained, survey):
    card = read_card(trained)
    assert card.checksum == trained.checksum
    assert card.simulated is True
    assert card.method == "starnet"
    assert card.citation == "Fabbro et al. 2018, MNRAS 475, 2978"
    assert "2018MNRAS.475.2978F" in card.bibtex_keys
    assert set(card.bibtex_keys) <= set(bibliography.entries())
    assert card.licence == "MIT"
    assert card.versions["maury"] == maury.__version__
    assert card.data["name"] == "small.zarr"
    for part in ("train", "validation", "test"):
        rows = trained.split.n_rows[part]
        assert card.split[part]["rows"] == rows
        assert card.split[part]["sha256"] == trained.split.checksums[part]
        stars = survey.star_id[trained.split.contains(part, survey.star_id)]
        assert card.split[part]["stars"] == np.unique(stars).size
    teff = survey.column("teff")[trained.split.contains("train", survey.star_id)]
    (label,) = [one for one in card.labels if one["name"] == "teff"]
    assert (label["minimum"], label["maximum"]) == (teff.min(), teff.max())
    assert card.networks["trained"] == 2


def test_json_and_card_are_the_same_thing(trained):
    card = read_card(trained)
    assert ModelCard.from_json(card.to_json()) == card
    assert "NaN" not in card.to_json()


@pytest.mark.parametrize(
    "part", ["Labels", "Inputs", "Data", "Split", "Figures of merit", "Errors", "Limits"]
)
def test_the_text_has_every_section(trained, part):
    assert f"\n## {part}\n" in read_card(trained).to_markdown()


def test_text_marks_simulated_spectra(trained):
    text = read_card(trained).to_markdown()
    assert "SIMULATED" in text.splitlines()[0]
    assert "SIMULATED spectra: " in text


def test_nothing_in_a_card_breaks_out_of_its_table(trained):
    card = read_card(trained)
    evil = "a|b\n## Licence: none\n<script>"
    text = replace(card, name=evil, citation=evil, data={"name": evil}).to_markdown()
    assert "<script>" not in text
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    plain = [line for line in card.to_markdown().splitlines() if line.startswith("## ")]
    assert headings == plain


def test_a_card_changes_nothing_of_the_model(model):
    before = (model.checksum, (model.path / "model.json").read_bytes())
    (model.path / JSON_FILE).unlink()
    (model.path / TEXT_FILE).unlink()
    bare = Model.open(model.path)
    assert (bare.checksum, (bare.path / "model.json").read_bytes()) == before
    add_card(bare)
    assert Model.open(model.path).checksum == before[0]


def test_models_made_before_have_a_card_of_what_is_known(tiny_model):
    model = Model.open(tiny_model)
    assert read_card(model) is None
    card = card_of(tiny_model)
    assert card.metrics == []
    assert "None measured" in card.to_markdown()
    assert card.split["train"]["rows"] == model.split.n_rows["train"]


def test_figures_can_be_measured_later(tiny_model, tiny_survey):
    card = card_of(tiny_model, survey=tiny_survey)
    assert len(card.metrics) == 1
    assert card.metrics[0]["survey"] == Survey.open(tiny_survey).path.name


def test_reports_of_validate_are_added_and_replaced(model, survey, tmp_path):
    report = validate(model, survey)
    path = tmp_path / "report.json"
    path.write_text(report.to_json(), "utf-8")
    card = card_of(model, reports=[path])
    assert [one["stars"].split(",")[0] for one in card.metrics] == [
        "validation stars",
        "held-out test stars",
    ]
    write_card(card, model.path, overwrite=True)
    again = card_of(model, reports=[report.to_dict()], survey=survey)
    assert len(again.metrics) == 2
    assert "held-out test stars" in again.to_markdown()


def test_reports_of_other_models_are_refused(model, survey, tmp_path):
    content = validate(model, survey).to_dict()
    with pytest.raises(ConfigError, match="another model"):
        card_of(model, reports=[content | {"model_checksum": "0" * 64}])
    with pytest.raises(ConfigError, match="no report"):
        card_of(model, reports=[{"x": 1}])
    path = tmp_path / "report.json"
    for text in ("", "[]", "{", "[" * 100_000):
        path.write_text(text)
        with pytest.raises(ConfigError, match="report"):
            card_of(model, reports=[path])


def test_a_card_of_another_model_is_not_used(model, tiny_model, caplog):
    other = card_of(tiny_model)
    (model.path / JSON_FILE).write_text(other.to_json(), "utf-8")
    with caplog.at_level(logging.WARNING):
        assert read_card(model) is None
    assert "another model" in caplog.text
    assert card_of(model).checksum == model.checksum


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"card_version": 2}', "[" * 100_000])
def test_a_broken_card_is_a_warning_and_the_model_opens(model, content, caplog):
    (model.path / JSON_FILE).write_text(content, "utf-8")
    with caplog.at_level(logging.WARNING):
        assert read_card(Model.open(model.path)) is None
    assert "not used" in caplog.text


def test_cards_of_other_versions_are_refused(trained):
    content = json.loads(read_card(trained).to_json()) | {"card_version": 99}
    with pytest.raises(ModelFileError, match="version 99"):
        ModelCard.from_json(json.dumps(content))


def test_a_link_is_not_followed(model, tmp_path):
    (tmp_path / "elsewhere.json").write_text((model.path / JSON_FILE).read_text("utf-8"))
    (model.path / JSON_FILE).unlink()
    (model.path / JSON_FILE).symlink_to(tmp_path / "elsewhere.json")
    assert read_card(model) is None


def test_a_card_is_never_overwritten_silently(model, tmp_path):
    before = (model.path / TEXT_FILE).read_text("utf-8")
    with pytest.raises(OutputExists):
        write_card(card_of(model), model.path)
    assert (model.path / TEXT_FILE).read_text("utf-8") == before
    with pytest.raises(ModelFileError, match="no model directory"):
        write_card(card_of(model), tmp_path)


def test_a_model_whose_survey_cannot_be_measured_still_gets_a_card(model, tmp_path, caplog):
    unlabelled = write_survey(
        tmp_path / "bare.zarr", n=10, teff=np.full(10, np.nan), logg=np.full(10, np.nan)
    )
    (model.path / JSON_FILE).unlink()
    with caplog.at_level(logging.WARNING):
        card = add_card(model, lambda made: validate(made, unlabelled).to_dict())
    assert card.metrics == []
    assert "no figures" in caplog.text


@pytest.mark.slow
def test_methods_have_cards_too(tmp_path, tiny_survey):
    model = maury.train(tiny_survey, tmp_path / "cannon.model", method="cannon")
    card = read_card(model)
    assert card.networks == {"trained": 0, "kept": 0}
    assert len(card.metrics) == 1
    assert "2015ApJ...808...16N" in card.bibtex_keys
    assert "none: a method" in card.to_markdown()


def test_command(model, survey, tmp_path):
    run = CliRunner().invoke
    done = run(app, ["card", str(model.path)])
    assert done.exit_code == 0
    assert done.output == card_of(model).to_markdown()
    content = json.loads(run(app, ["card", str(model.path), "--json"]).output)
    assert content["checksum"] == model.checksum
    refused = run(app, ["card", str(model.path), "--write"])
    assert isinstance(refused.exception, OutputExists)
    (model.path / JSON_FILE).write_text("{}")
    command = ["card", str(model.path), "--survey", str(survey.path), "--write", "--overwrite"]
    assert run(app, command).exit_code == 0
    assert len(read_card(model).metrics) == 1


def test_a_card_of_absurd_size_is_not_read(model, monkeypatch, caplog):
    assert read_card(model) is not None
    monkeypatch.setattr("maury.evaluation.card.MAX_CARD_BYTES", 100)
    with caplog.at_level(logging.WARNING):
        assert read_card(model) is None
    assert "larger than 100 bytes" in caplog.text


def test_limits_follow_what_is_known_of_the_model(trained):
    limits = card_of(trained).limits
    assert any("SIMULATED" in one for one in limits)
    assert not any(one.startswith("Split:") for one in limits)
    split = SplitRecord.unknown("nobody knows the stars")
    other = replace(trained, simulated=False, split=split, path=None)
    limits = ModelCard.of(other).limits
    assert not any("SIMULATED" in one for one in limits)
    assert f"Split: {split.warning}." in limits


@pytest.mark.parametrize(
    ("audited", "inferred"),
    [
        ({"teff": {"verdict": "inferred"}, "logg": {"verdict": "measured"}}, True),
        ("nothing", False),
    ],
)
def test_verdicts_of_an_audit_are_among_the_limits(trained, audited, inferred):
    arrays = {"a": np.zeros(1)}
    other = trained.with_arrays("audit", arrays, metadata={"labels": audited})
    said = [one for one in ModelCard.of(other).limits if one.startswith("Inferred from photometry")]
    assert said == (
        [
            "Inferred from photometry or other labels rather than measured: teff. Of stars with "
            "other inputs 'maury audit' may say otherwise."
        ]
        if inferred
        else []
    )


def test_a_model_that_is_stopped_before_its_card_is_not_there(tmp_path, monkeypatch):
    """Else it would be without a card for ever: the same command would say that it exists."""
    write_survey(tmp_path / "survey.zarr", n=80)
    out = tmp_path / "cannon.model"

    def stopped(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("maury.evaluation.card.write_card", stopped)
        with pytest.raises(KeyboardInterrupt):
            maury.train(tmp_path / "survey.zarr", out, method="cannon")
    assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"survey.zarr"}
    maury.train(tmp_path / "survey.zarr", out, method="cannon")
    card = read_card(Model.open(out))
    assert card.name == "cannon.model"
    assert [one["model"] for one in card.metrics] == ["cannon.model"]
