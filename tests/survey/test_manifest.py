"""Damage to stores, models and unfinished work: told on opening, or when it is read."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from builders.faulty_stages import QUICK
from builders.training_survey import write_survey
from maury.errors import (
    InputFileError,
    MauryError,
    ModelFileError,
    OutputError,
    SurveyFileError,
)
from maury.model.directory import Model
from maury.prediction import streaming as prediction
from maury.prediction.catalogue import Catalogue, is_whole
from maury.prediction.streaming import finish, plan, predict_part
from maury.survey.manifest import _group, check_manifest
from maury.survey.store import Survey
from maury.training.distillation_data import DistillationBatch, DistillationSet
from maury.training.ensemble import train
from maury.training.member import read_tensors, write_tensors


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return write_survey(tmp_path_factory.mktemp("survey") / "s.zarr", n=60).path


@pytest.fixture(scope="module")
def model(tmp_path_factory, store):
    path = tmp_path_factory.mktemp("model") / "m"
    return train(store, path, config=QUICK, n_processes=1).path


def flip(file: Path, at: int) -> None:
    data = bytearray(file.read_bytes())
    data[at] ^= 1 << (at % 8)
    file.write_bytes(data)


def everything(path) -> str:
    """Read all of a store; return the error, if any."""
    try:
        survey = Survey.open(path)
        survey.batch(0, len(survey))
        survey.rows(np.arange(len(survey)))
    except MauryError as error:
        return str(error)
    return ""


def test_every_flipped_bit_of_a_store_is_noticed(store, tmp_path, rng):
    files = sorted(p.relative_to(store) for p in store.rglob("*") if p.is_file())
    for number in range(60):
        file = files[number % len(files)]
        copy = shutil.copytree(store, tmp_path / str(number))
        flip(copy / file, int(rng.integers((copy / file).stat().st_size)))
        said = everything(copy)
        assert said, file
        assert str(number) in said
        shutil.rmtree(copy)
    assert everything(store) == ""


@pytest.fixture
def rng():
    return np.random.default_rng(5)


@pytest.mark.parametrize("how", ["torn", "empty", "missing"])
@pytest.mark.parametrize("file", ["flux/c/0/0", "teff/c/0", "id/c/0", "wave/c/0"])
def test_a_torn_chunk_is_noticed_on_opening(store, tmp_path, file, how):
    copy = shutil.copytree(store, tmp_path / "s.zarr")
    data = (copy / file).read_bytes()
    if how == "missing":
        (copy / file).unlink()
    else:
        (copy / file).write_bytes(data[: len(data) // 2] if how == "torn" else b"")
    with pytest.raises(SurveyFileError, match=rf"{file} .*were written; copy it from a backup"):
        Survey.open(copy)


def test_a_damaged_chunk_names_its_rows_and_the_others_are_read(tmp_path):
    survey = write_survey(tmp_path / "s.zarr", n=2100)
    flip(survey.path / "flux" / "c" / "1" / "0", 40)
    survey = Survey.open(survey.path)
    assert len(survey.batch(0, 2048)) == 2048
    with pytest.raises(SurveyFileError, match=r"rows 2048 to 2099 of 'flux'.*flux/c/1/0 is damag"):
        survey.batch(2000, 2100)


def test_changed_metadata_are_noticed(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "s.zarr")
    head = copy / "zarr.json"
    head.write_text(head.read_text().replace('"simulated": true', '"simulated": false'))
    with pytest.raises(SurveyFileError, match=r"zarr.json has changed.*on purpose, remove"):
        Survey.open(copy)
    shutil.rmtree(copy / "manifest")
    assert not Survey.open(copy).simulated


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "{}", '{"attributes": {"maury": {"format": "x"}}}', "[" * 100_000]
)
def test_a_damaged_manifest_is_one_error(store, tmp_path, content):
    copy = shutil.copytree(store, tmp_path / "s.zarr")
    (copy / "manifest" / "zarr.json").write_text(content)
    with pytest.raises(SurveyFileError, match="manifest"):
        Survey.open(copy)


def test_a_manifest_reads_nothing_outside_its_store(store, tmp_path):
    copy = shutil.copytree(store, tmp_path / "s.zarr")
    head = copy / "manifest" / "zarr.json"
    document = json.loads(head.read_text())
    content = document["attributes"]["maury"]
    content["metadata"]["../zarr.json"] = "00"
    head.write_text(json.dumps(_group(content)))
    with pytest.raises(SurveyFileError, match="names"):
        check_manifest(copy)


def test_stores_without_checksums_still_open(store, tmp_path):
    """A store as version 0.1 wrote it: no manifest, no CRC32C."""
    plain = xr.open_zarr(str(store), consolidated=False).load()
    for variable in plain.variables.values():
        variable.encoding = {}
    plain.to_zarr(str(tmp_path / "old.zarr"), consolidated=False, zarr_format=3)
    old, new = Survey.open(tmp_path / "old.zarr"), Survey.open(store)
    np.testing.assert_array_equal(old.batch(0, 60).spectra.flux, new.batch(0, 60).spectra.flux)
    assert old.fingerprint != new.fingerprint


def opening(path) -> str:
    """Open a model; return the error, if any."""
    try:
        Model.open(path)
    except ModelFileError as error:
        return str(error)
    return ""


def test_every_flipped_bit_of_a_model_is_noticed(model, tmp_path, rng):
    files = sorted(p.relative_to(model) for p in model.rglob("*") if p.is_file())
    assert "SHA256SUMS" in {file.name for file in files}
    checked = 0
    for number in range(60):
        file = files[number % len(files)]
        copy = shutil.copytree(model, tmp_path / str(number))
        flip(copy / file, int(rng.integers((copy / file).stat().st_size)))
        # A sum of another file than model.json stands in model.json as well.
        said = opening(copy)
        assert str(copy) in said or file.name == "SHA256SUMS", file
        checked += bool(said)
        shutil.rmtree(copy)
    assert checked > 40


def test_a_changed_number_in_model_json_is_noticed(model, tmp_path):
    copy = shutil.copytree(model, tmp_path / "m")
    document = json.loads((copy / "model.json").read_text())
    document["scaling"]["labels"]["offset"][0] += 50.0
    (copy / "model.json").write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match=r"checksum.*on purpose, remove"):
        Model.open(copy)
    (copy / "SHA256SUMS").unlink()
    assert Model.open(copy).scaling.labels.offset[0] > 3000


def test_the_checksums_are_those_of_sha256sum(model):
    import hashlib

    for line in (model / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((model / name).read_bytes()).hexdigest() == digest


@pytest.mark.parametrize("how", ["torn", "empty", "flipped", "other"])
def test_a_damaged_part_of_a_catalogue_is_made_again(model, store, tmp_path, monkeypatch, how):
    monkeypatch.setattr(prediction, "PART_STARS", 20)
    planned = plan(model, store, tmp_path / "labels.parquet")
    for part in planned.parts:
        predict_part(part)
    file = Path(planned.parts[1].path)
    data = file.read_bytes()
    if how == "flipped":
        flip(file, 300)
    elif how == "other":
        shutil.copy(planned.parts[0].path, file)
        file.write_bytes(data[:-8])
    else:
        file.write_bytes(data[: len(data) // 2] if how == "torn" else b"")
    assert not is_whole(file, 20)
    again = plan(model, store, tmp_path / "labels.parquet")
    assert [part.start for part in again.missing] == [20]
    predict_part(again.missing[0])
    assert file.read_bytes() == data
    assert finish(again).n_star == 60


def test_a_flipped_bit_of_a_parquet_catalogue_is_noticed(model, store, tmp_path):
    prediction.write_catalogue(model, store, tmp_path / "labels.parquet")
    flip(tmp_path / "labels.parquet", 200)
    with pytest.raises(InputFileError, match="cannot read the catalogue"):
        Catalogue.read(tmp_path / "labels.parquet")


def test_damaged_tensors_of_unfinished_work_are_noticed(tmp_path):
    import torch

    file = tmp_path / "a.safetensors"
    write_tensors(file, {"b": torch.arange(9.0), "a": torch.ones(2)}, {"epoch": 3})
    tensors, state = read_tensors(file)
    assert state == {"epoch": 3}
    assert tensors["b"].tolist() == list(range(9))
    flip(file, file.stat().st_size - 3)
    with pytest.raises(ValueError, match="checksum"):
        read_tensors(file)


def test_a_damaged_sheet_is_told_and_made_again(tmp_path):
    import torch

    folder = DistillationSet(tmp_path)
    batch = DistillationBatch(torch.ones(4, 3).half(), *(torch.rand(4, 2) for _ in range(4)))
    folder.put(0, batch)
    torch.testing.assert_close(folder.load(1).mean, batch.mean)
    flip(folder._file(0, "mean"), 140)
    with pytest.raises(OutputError, match=r"batch 0.*makes the batch again"):
        folder.load(1)
    assert not folder.has(0)
