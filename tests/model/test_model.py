import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from maury.errors import ModelFileError, OutputExists, UnknownName
from maury.labels.definitions import select
from maury.model.directory import Affine, Member, Model, Scaling
from maury.model.split import SplitRecord, split_stars
from maury.spectra.preparation import Preparation

WAVE = 8420.0 + 0.4 * np.arange(8)
STARS = [f"star {k}" for k in range(40)]


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return [
        {"a.weight": rng.normal(size=(3, 4)).astype("f4"), "a.bias": np.zeros(3, "f4")}
        for _ in range(2)
    ]


@pytest.fixture
def unsaved(weights):
    rng = np.random.default_rng(1)
    return Model(
        labels=select(["teff", "logg"]),
        network={"name": "guiglion2020", "kernel": 3},
        preparation=Preparation(),
        scaling=Scaling(
            Affine.measure(rng.normal(size=(20, 9))),
            Affine.measure(rng.normal(size=(20, 2)), rule="standard"),
        ),
        wave_aa=WAVE,
        medium="air",
        tensors={name: array.shape for name, array in weights[0].items()},
        members=(
            Member.numbered(0, seed=5, validation_loss=0.1, best_epoch=3, n_epochs=9),
            Member.numbered(1, seed=2**62, validation_loss=0.2, kept=False),
        ),
        split=SplitRecord.of(split_stars(STARS, fractions=(0.8, 0.1, 0.1), seed=0), STARS),
        simulated=True,
        seed=7,
        training={"dropped": {"no label": 3}},
        provenance={"citation": "someone 2020"},
    )


@pytest.fixture
def model(tmp_path, unsaved, weights):
    return unsaved.save(tmp_path / "m", weights=weights)


def edit(model, **changes):
    file = model.path / "model.json"
    document = json.loads(file.read_text())
    for dotted, value in changes.items():
        *path, last = dotted.split("__")
        target = document
        for key in path:
            target = target[int(key) if key.isdigit() else key]
        target[int(last) if last.isdigit() else last] = value
    file.write_text(json.dumps(document))


def test_round_trip(model, unsaved, weights):
    again = Model.open(model.path)
    for name in ("labels", "network", "preparation", "medium", "simulated", "seed", "citation"):
        assert getattr(again, name) == getattr(unsaved, name)
    assert dict(again.tensors) == dict(unsaved.tensors)
    assert again.split.to_json() == unsaved.split.to_json()
    np.testing.assert_array_equal(again.wave_aa, WAVE)
    for part in ("observables", "labels"):
        for name in ("minimum", "maximum", "offset", "scale"):
            expected = getattr(getattr(unsaved.scaling, part), name)
            np.testing.assert_array_equal(getattr(getattr(again.scaling, part), name), expected)
    assert [m.model_copy(update={"sha256": ""}) for m in again.members] == list(unsaved.members)
    assert again.kept == again.members[:1]
    for member, arrays_in in zip(again.members, weights, strict=True):
        for name, array in again.weights(member).items():
            np.testing.assert_array_equal(array, arrays_in[name])
    assert "SIMULATED" in repr(again)


def test_checksum_follows_every_weight(model, tmp_path, unsaved, weights):
    assert Model.open(model.path).checksum == model.checksum
    changed = [weights[0], {**weights[1], "a.bias": np.full(3, 1e-7, "f4")}]
    assert unsaved.save(tmp_path / "n", weights=changed).checksum != model.checksum


def test_saving_never_overwrites_silently(model, weights):
    with pytest.raises(OutputExists):
        model.save(model.path, weights=weights)
    model.save(model.path, weights=weights, overwrite=True)
    copy = model.save(model.path.with_name("copy"))
    assert copy.checksum == model.checksum
    assert sorted(os.listdir(model.path.parent)) == ["copy", "m"]


def test_a_failed_save_leaves_nothing(tmp_path, unsaved, weights):
    broken = replace(unsaved, provenance={"x": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        broken.save(tmp_path / "m", weights=weights)
    assert os.listdir(tmp_path) == []


def zipped():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps({"a": 1}))
    return buffer.getvalue()


def safetensors_of(header, data=b""):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


IMPOSTORS = {
    "empty": b"",
    "pickle": pickle.dumps({"a.weight": np.zeros((3, 4))}, protocol=4),
    "zip": zipped(),
    "huge header": struct.pack("<Q", 2**60) + b"{}" * 40,
    "nested header": struct.pack("<Q", 40) + b"[" * 40,
    "no tensors": safetensors_of({}),
    "list header": safetensors_of([1, 2]),
    "other dtype": safetensors_of(
        {"a.weight": {"dtype": "F64", "shape": [3, 4], "data_offsets": [0, 96]}}, bytes(96)
    ),
    "huge shape": safetensors_of(
        {"a.weight": {"dtype": "F32", "shape": [2**40, 4], "data_offsets": [0, 48]}}, bytes(48)
    ),
}


@pytest.mark.parametrize("kind", sorted(IMPOSTORS))
def test_impostors_are_refused(model, kind):
    (model.path / "members/001.safetensors").write_bytes(IMPOSTORS[kind])
    with pytest.raises(ModelFileError, match=r"001\.safetensors"):
        Model.open(model.path)


@pytest.mark.parametrize("length", [4, 12, 100, -1])
def test_truncated_files_are_refused(model, length):
    file = model.path / "members/000.safetensors"
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelFileError):
        Model.open(model.path)
    head = model.path / "model.json"
    head.write_bytes(head.read_bytes()[: length - 2])
    with pytest.raises(ModelFileError, match="not JSON"):
        Model.open(model.path)


def test_a_changed_weight_is_noticed(model):
    file = model.path / "members/000.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelFileError, match="SHA-256"):
        Model.open(model.path)


def test_weights_that_are_not_finite_are_refused(tmp_path, unsaved, weights):
    weights[1]["a.bias"][2] = np.nan
    with pytest.raises(ModelFileError, match="not finite"):
        unsaved.save(tmp_path / "m", weights=weights)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": "other"}, "not the head"),
        ({"format_version": 2}, "format version 2"),
        ({"surprise": 1}, "surprise"),
        ({"members__0__file": "../../etc/passwd"}, "members.0.file"),
        ({"members__0__file": "members/000.safetensors\n"}, "members.0.file"),
        ({"members__0__file": "/members/000.safetensors"}, "members.0.file"),
        ({"members__0__file": "members/001.safetensors"}, "same file"),
        ({"members__0__kept": False}, "no member is kept"),
        ({"members__0__sha256": "0" * 64}, "SHA-256"),
        ({"members": []}, "members"),
        ({"tensors__a.bias": [4]}, r"a\.bias"),
        ({"tensors__a.bias": [2**30, 2**30]}, "bytes"),
        ({"tensors__a.bias": [-1]}, r"tensors\.a\.bias"),
        ({"scaling__labels__scale": [1.0, 0.0]}, "scale"),
        ({"scaling__labels__scale": [1.0]}, "1 values of scale for 2 labels"),
        ({"scaling__observables__offset": []}, "0 values of offset"),
        ({"labels__0__unit": 3}, "unit"),
        ({"labels__1__name": "teff"}, "twice"),
        ({"preparation": {"stepz": []}}, "stepz"),
        ({"wave_aa": [2.0, 1.0]}, "unsorted"),
        ({"split__star_hashes__test": "00"}, "16 digits"),
        ({"split": {}}, "star_hashes"),
        ({"network": {}}, "no name"),
        ({"simulated": "yes"}, "simulated"),
        ({"seed": -1}, "seed"),
    ],
)
def test_a_changed_head_is_refused(model, changes, said):
    edit(model, **changes)
    with pytest.raises(ModelFileError, match=said):
        Model.open(model.path)


@pytest.mark.parametrize("text", ["[" * 200_000, "NaN", '{"format": "maury model"', "\xff", "[]"])
def test_garbage_as_head(model, text):
    (model.path / "model.json").write_text(text, "latin-1")
    with pytest.raises(ModelFileError):
        Model.open(model.path)


@pytest.mark.parametrize("part", ["members/000.safetensors", "members", "model.json"])
def test_links_inside_are_refused(model, tmp_path, part):
    moved = tmp_path / "elsewhere"
    os.replace(model.path / part, moved)
    (model.path / part).symlink_to(moved)
    with pytest.raises(ModelFileError, match="link"):
        Model.open(model.path)


def test_no_model_at_all(tmp_path):
    with pytest.raises(ModelFileError, match="not a model directory"):
        Model.open(tmp_path / "nothing")
    with pytest.raises(ModelFileError, match=r"no model\.json"):
        Model.open(tmp_path)


tables = arrays(
    np.float64,
    st.tuples(st.integers(2, 8), st.integers(1, 4)),
    elements=st.floats(-1e4, 1e4).map(lambda value: round(value, 3)),
)


@given(tables, st.sampled_from(["min-max", "standard"]))
def test_scaling_inverts(table, rule):
    affine = Affine.measure(table, rule=rule)
    back = affine.inverse(affine.forward(table))
    span = np.ptp(table, axis=0) + 1e-3
    assert np.all(np.abs(back - table) <= 2e-5 * span)
    if rule == "min-max":
        scaled = affine.forward(table)
        assert scaled.min() >= 0
        assert scaled.max() <= 1


def test_scaling_with_missing_and_constant_values():
    table = np.array([[1.0, np.nan, 5.0], [3.0, np.nan, 5.0], [np.nan, np.nan, 5.0]])
    affine = Affine.measure(table)
    np.testing.assert_array_equal(affine.minimum, [1.0, np.nan, 5.0])
    np.testing.assert_array_equal(affine.scale, [2.0, 1.0, 1.0])
    np.testing.assert_array_equal(affine.forward(table)[0], np.float32([0.0, np.nan, 0.0]))
    standard = Affine.measure(table, rule="standard")
    np.testing.assert_allclose(standard.offset[[0, 2]], [2.0, 5.0])
    np.testing.assert_allclose(standard.scale[[0, 2]], [1.0, 1.0])


@pytest.fixture
def attached(model):
    kept = {"mask": np.array([True, False]), "values": np.array([[1.5, np.nan]]), "n": np.arange(3)}
    more = model.with_arrays("sky", kept, metadata={"version": 2, "names": ["a", "b"]})
    return more.save(model.path.with_name("attached"))


def test_attachments_keep_type_shape_and_metadata(attached, model):
    again = Model.open(attached.path)
    arrays_out = again.arrays("sky")
    assert {name: a.dtype.kind for name, a in arrays_out.items()} == {
        "mask": "b",
        "values": "f",
        "n": "i",
    }
    np.testing.assert_array_equal(arrays_out["values"], [[1.5, np.nan]])
    assert again.attachments["sky"].metadata == {"version": 2, "names": ["a", "b"]}
    assert again.checksum == attached.checksum != model.checksum
    assert dict(Model.open(model.path).attachments) == {}


def test_attachments_may_be_added_one_by_one_and_in_place(attached):
    more = attached.with_arrays("extra", {"x": np.ones(2)})
    np.testing.assert_array_equal(more.arrays("extra")["x"], [1, 1])
    saved = more.save(attached.path, overwrite=True)
    assert sorted(saved.attachments) == ["extra", "sky"]
    assert saved.attachments["sky"].sha256 == attached.attachments["sky"].sha256
    replaced = saved.with_arrays("extra", {"x": np.zeros(2)}).save(saved.path, overwrite=True)
    np.testing.assert_array_equal(Model.open(replaced.path).arrays("extra")["x"], [0, 0])


def test_unknown_attachment_and_impossible_names(attached):
    with pytest.raises(UnknownName, match="did you mean 'sky'"):
        attached.arrays("sy")
    for name in ("../evil", "A", "", "x" * 40, "a/b"):
        with pytest.raises(ValueError, match="pattern"):
            attached.with_arrays(name, {"x": np.ones(1)})


@pytest.mark.parametrize("kind", sorted(set(IMPOSTORS) - {"huge shape"}))
def test_impostors_among_attachments_are_refused(attached, kind):
    (attached.path / "attachments/sky.safetensors").write_bytes(IMPOSTORS[kind])
    with pytest.raises(ModelFileError, match=r"sky\.safetensors"):
        Model.open(attached.path)


def test_a_damaged_missing_or_linked_attachment_is_refused(attached, tmp_path):
    file = attached.path / "attachments/sky.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ModelFileError, match="SHA-256"):
        Model.open(attached.path)
    file.unlink()
    with pytest.raises(ModelFileError, match="missing"):
        Model.open(attached.path)
    data[-1] ^= 1
    (tmp_path / "elsewhere").write_bytes(data)
    file.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="link"):
        Model.open(attached.path)


def test_a_linked_directory_of_attachments_is_refused(attached, tmp_path):
    folder = attached.path / "attachments"
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ModelFileError, match="link"):
        Model.open(attached.path)


@pytest.mark.parametrize("name", ["../members/000", "SKY", "a/b"])
def test_a_hostile_name_in_the_document_is_refused(attached, name):
    file = attached.path / "model.json"
    document = json.loads(file.read_text())
    document["attachments"][name] = document["attachments"].pop("sky")
    file.write_text(json.dumps(document))
    with pytest.raises(ModelFileError, match="attachments"):
        Model.open(attached.path)


def test_robust_scaling_takes_no_notice_of_a_wild_value():
    table = np.append(np.linspace(0.0, 100.0, 101), [1e9, np.nan])[:, None]
    affine = Affine.measure(table, rule="robust")
    assert affine.offset[0] == pytest.approx(50.5, abs=0.6)
    assert affine.scale[0] == pytest.approx(34, abs=1)
    assert affine.maximum[0] == 1e9
