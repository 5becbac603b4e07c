"""Old formats: each becomes the present one by its steps, or one clear error."""

import json

import pytest

from maury.errors import ModelFileError, SurveyFileError
from maury.io.migrations import MODEL, SURVEY, Format
from maury.model.directory import Model
from maury.survey.store import Survey

CHAIN = Format(
    "made up",
    4,
    {
        2: lambda header: {**header, "colour": header.get("color", "")},
        3: lambda header: {name: v for name, v in header.items() if name != "color"},
    },
)


@pytest.mark.parametrize("version", [2, 3, 4])
def test_every_step_from_an_old_version_is_taken(version):
    header = {"format_version": version, "color": "red", "colour": "red"}
    kept = dict(header)
    found = CHAIN.upgrade(header, "f", ModelFileError)
    assert found["format_version"] == 4
    assert found["colour"] == "red"
    assert ("color" in found) == (version == 4)
    assert header == kept


@pytest.mark.parametrize(
    ("version", "message"),
    [
        (5, r"up to 4.*update maury"),
        (1, r"it reads 2 to 4"),
        (-1, "no format version but -1"),
        (None, "no format version but None"),
        ("4", "no format version but '4'"),
        (True, "no format version but True"),
    ],
)
def test_what_cannot_be_read_says_why(version, message):
    with pytest.raises(SurveyFileError, match=message):
        CHAIN.upgrade({"format_version": version}, "f", SurveyFileError)


def test_every_version_of_maurys_formats_can_be_read():
    for one in (MODEL, SURVEY):
        header = {"format": one.name, "format_version": 1}
        assert one.upgrade(header, "f", ModelFileError)["format_version"] == one.version


def test_a_model_and_a_survey_of_the_future_are_refused(tiny_model, tiny_survey, tmp_path):
    import shutil

    model = shutil.copytree(tiny_model, tmp_path / "model")
    head = json.loads((model / "model.json").read_text())
    assert head["format_version"] == MODEL.version
    (model / "model.json").write_text(json.dumps(head | {"format_version": 99}))
    with pytest.raises(ModelFileError, match=r"99.*update maury"):
        Model.open(model)
    survey = shutil.copytree(tiny_survey, tmp_path / "survey.zarr")
    for path in survey.rglob("zarr.json"):
        path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(SurveyFileError, match=r"99.*update maury|checksum|differs|manifest"):
        Survey.open(survey)
