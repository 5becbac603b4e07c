"""Files made to harm: each is one clear error, in little time and memory, and nothing else."""

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import h5py
import numcodecs
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from pyarrow import parquet

from builders import keras_networks
from builders.untrained_model import untrained
from maury.errors import (
    ConfigError,
    InputFileError,
    MauryError,
    ModelFileError,
    SurveyFileError,
    suggestion,
)
from maury.io import limits
from maury.io.config_files import parse_json, read_toml
from maury.io.limits import unpacked_bytes
from maury.io.tables import open_table
from maury.io.tensors import read_tensor_file
from maury.labels.definitions import load
from maury.methods.fitting.grid_files import read_ferre_grid, read_synspec_grid
from maury.model.directory import Model
from maury.model.keras import answer, read_here, read_keras
from maury.prediction.catalogue import Catalogue
from maury.report.page.material import read_table
from maury.survey.readers import open_toml
from maury.survey.store import Survey, SurveyWriter
from maury.training.comparison import COMPETITORS, _chosen
from maury.training.settings import EnsembleConfig

FLUX = np.ones((3, 8), "f4")
IDS = np.array(["a", "b", "c"])
GRID = '[wavelength]\nmedium = "air"\nstart = 8420.0\nstep = 0.4\n'


def ingest(folder: Path, spectra: str, more: str = ""):
    (folder / "survey.toml").write_text(f"[spectra]\n{spectra}\n{GRID}{more}")
    with open_toml(folder / "survey.toml") as survey:
        return survey.batch(0, min(len(survey), 3))


def table(path: Path, names=None):
    from contextlib import ExitStack

    with ExitStack() as stack:
        found = open_table(path, stack)
        return [found.texts(name) for name in names or found.names]


@pytest.fixture(autouse=True)
def _quick():
    """Nothing here may take long, whatever the file says: a minute of this process is endless."""
    began = time.process_time()
    yield
    assert time.process_time() - began < 60


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


# Packed files


def test_a_zip_bomb_as_npz(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "unfolded_bytes=10000000")
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 5)}
    )
    with (
        zipfile.ZipFile(tmp_path / "s.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("flux.npy", "w", force_zip64=True) as out,
    ):
        out.write(head.getvalue())
        for _ in range(20):
            out.write(bytes(2**20))
    assert (tmp_path / "s.npz").stat().st_size < 10**5
    with pytest.raises(InputFileError, match="unfolded_bytes"):
        ingest(tmp_path, 'file = "s.npz"\norientation = "rows"')


def test_a_gzip_bomb_as_fits(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "unfolded_bytes=1000000")
    header = fits.PrimaryHDU(np.zeros((1, 8), "f4")).header
    header["NAXIS2"] = 10**5
    with gzip.open(tmp_path / "s.fits.gz", "wb") as out:
        out.write(header.tostring().encode())
        out.write(bytes(32 * 10**5))
    with pytest.raises(InputFileError, match="unfolded_bytes"):
        ingest(tmp_path, 'file = "s.fits.gz"\norientation = "rows"')
    monkeypatch.setenv(limits.VARIABLE, "unfolded_bytes=1e8")
    assert ingest(tmp_path, 'file = "s.fits.gz"\norientation = "rows"').spectra.flux.shape == (3, 8)


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"BZh9", b"\xfd7zXZ\x00"])
@pytest.mark.parametrize("name", ["t.fits", "t.ecsv", "t.vot"])
def test_other_packings_are_named_not_unpacked(tmp_path, magic, name):
    (tmp_path / name).write_bytes(magic + bytes(3000))
    with pytest.raises(InputFileError, match="packed"):
        table(tmp_path / name)


def test_a_gzip_file_with_a_votable_in_its_name(tmp_path):
    head = b"\x1f\x8b\x08\x08\0\0\0\0\0\xff" + b"<VOTABLE\0"
    (tmp_path / "t.vot").write_bytes(head + gzip.compress(b"<VOTABLE/>")[10:])
    with pytest.raises(InputFileError, match="packed"):
        table(tmp_path / "t.vot")


# Code in data


def test_pickles_are_never_loaded(tmp_path):
    trap = np.array([Trap(tmp_path / "sprung")], dtype=object)
    np.save(tmp_path / "s.npy", trap, allow_pickle=True)
    np.savez(tmp_path / "s.npz", flux=trap)
    (tmp_path / "p.npy").write_bytes(pickle.dumps(Trap(tmp_path / "sprung")))
    for name in ("s.npy", "s.npz", "p.npy"):
        with pytest.raises(InputFileError):
            ingest(tmp_path, f'file = "{name}"\norientation = "rows"')
    assert not (tmp_path / "sprung").exists()


def test_a_python_type_in_parquet_is_not_made(tmp_path):
    field = pa.field(
        "id",
        pa.string(),
        metadata={
            b"ARROW:extension:name": b"arrow.py_extension_type",
            b"ARROW:extension:metadata": pickle.dumps(Trap(tmp_path / "sprung")),
        },
    )
    made = pa.table([pa.array(["a"])], schema=pa.schema([field]))
    parquet.write_table(made, tmp_path / "t.parquet")
    assert table(tmp_path / "t.parquet")[0].tolist() == ["a"]
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "tag", ["!!python/object/apply:os.system ['touch sprung']", "!!python/name:os.system"]
)
def test_yaml_of_ecsv_makes_no_objects(tmp_path, tag, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.ecsv").write_text(
        f"# %ECSV 1.0\n# ---\n# datatype:\n# - {{name: id, datatype: string}}\n# meta: {tag}\n"
        "# schema: astropy-2.0\nid\na\n"
    )
    with pytest.raises(InputFileError):
        table(tmp_path / "t.ecsv")
    assert not (tmp_path / "sprung").exists()


def test_yaml_of_ecsv_may_not_refer_to_itself(tmp_path):
    (tmp_path / "t.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# datatype:\n# - {name: id, datatype: string}\n"
        "# meta:\n#   a: &a [x, x]\n#   b: [*a, *a]\nid\na\n"
    )
    with pytest.raises(InputFileError, match="anchors"):
        table(tmp_path / "t.ecsv")
    (tmp_path / "t.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# datatype:\n"
        "# - {name: id, datatype: string, description: 'S&N *and* more & more'}\nid\na\n"
    )
    assert table(tmp_path / "t.ecsv")[0].tolist() == ["a"]


# FITS


def header_of(**cards) -> bytes:
    header = fits.PrimaryHDU(FLUX).header
    text = header.tostring()
    for key, value in cards.items():
        old = f"{key:<8}="
        place = text.find(old)
        card = f"{key:<8}= {value:>20}".ljust(80)
        text = text[:place] + card + text[place + 80 :] if place >= 0 else card + text
    return text.encode().ljust(2880)


@pytest.mark.parametrize(
    "cards",
    [
        {"NAXIS": 999},
        {"NAXIS": -1},
        {"NAXIS1": -8},
        {"NAXIS1": 10**18},
        {"NAXIS2": 2**63},
        {"BITPIX": 10**9},
        {"BITPIX": 17},
    ],
)
def test_fits_axes_that_no_data_have(tmp_path, cards):
    (tmp_path / "s.fits").write_bytes(header_of(**cards) + bytes(2880))
    with pytest.raises(InputFileError):
        ingest(tmp_path, 'file = "s.fits"\norientation = "rows"')


def test_a_fits_table_that_points_backwards(tmp_path):
    hdu = fits.BinTableHDU.from_columns([fits.Column("id", "2A", array=IDS)])
    hdu.writeto(tmp_path / "t.fits")
    data = (tmp_path / "t.fits").read_bytes()
    place = data.index(b"PCOUNT")
    card = b"PCOUNT  =                -5766".ljust(80)
    (tmp_path / "t.fits").write_bytes(data[:place] + card + data[place + 80 :])
    with pytest.raises(InputFileError, match="no data can have"):
        table(tmp_path / "t.fits")


def test_fits_pointers_into_nowhere_and_everywhere(tmp_path):
    column = fits.Column("flux", "PE()", array=np.array([*FLUX, None], dtype=object)[:-1])
    fits.BinTableHDU.from_columns([column]).writeto(tmp_path / "s.fits")
    data = bytearray((tmp_path / "s.fits").read_bytes())
    descriptors = data.index(struct.pack(">ii", 8, 0))
    for length, place in ((2**31 - 1, 0), (-1, 0), (8, -(2**31)), (8, 2**31 - 1)):
        data[descriptors : descriptors + 8] = struct.pack(">ii", length, place)
        (tmp_path / "s.fits").write_bytes(data)
        try:
            found = ingest(tmp_path, 'file = "s.fits"').spectra
        except MauryError as error:
            said = str(error)
        else:
            said = "" if found.good[0].any() else "no flux"
        assert said


def test_a_fits_header_without_end_and_too_many_hdus(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "head_bytes=100000 hdus=20")
    header = header_of().replace(b"END".ljust(80), b" " * 80)
    (tmp_path / "t.fits").write_bytes(header + b" " * 2880 * 100)
    with pytest.raises(InputFileError, match="without END"):
        table(tmp_path / "t.fits")
    hdus = [fits.PrimaryHDU(), *(fits.ImageHDU() for _ in range(30))]
    fits.HDUList(hdus).writeto(tmp_path / "u.fits")
    with pytest.raises(InputFileError, match="more than 20 HDUs"):
        table(tmp_path / "u.fits")


def test_rows_of_no_bytes(tmp_path):
    hdu = fits.BinTableHDU.from_columns([fits.Column("id", "0A", array=["", ""])])
    hdu.header["NAXIS2"] = 10**17
    (tmp_path / "t.fits").write_bytes(
        fits.PrimaryHDU().header.tostring().encode() + hdu.header.tostring().encode()
    )
    with pytest.raises(InputFileError, match="rows"):
        table(tmp_path / "t.fits")


# VOTable

VOTABLE = (
    '<?xml version="1.0"?>{prolog}<VOTABLE version="1.3"><RESOURCE><TABLE>{field}<DATA>{data}'
    "</DATA></TABLE></RESOURCE></VOTABLE>"
)
FIELD = '<FIELD name="id" datatype="char" arraysize="*"/>'
ROWS = "<TABLEDATA><TR><TD>{0}</TD></TR></TABLEDATA>"
BOMB = (
    "<!DOCTYPE VOTABLE [<!ENTITY a 'lol'>"
    + "".join(
        f"<!ENTITY {b} '{f'&{a};' * 10}'>" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
    )
    + "]>"
)
EXTERNAL = '<!DOCTYPE VOTABLE [<!ENTITY i SYSTEM "file:///etc/hostname">]>'


@pytest.mark.parametrize(
    "doctype", [BOMB, EXTERNAL, '<!DOCTYPE VOTABLE SYSTEM "http://127.0.0.1/x">']
)
@pytest.mark.parametrize("before", ["", "<?x <VOTABLE ?>" + " " * 70000, "<!-- <VOTABLE> -->"])
@pytest.mark.parametrize("read", [table, read_table, Catalogue.read])
def test_entities_are_refused_wherever_they_stand(tmp_path, doctype, before, read):
    text = VOTABLE.format(prolog=before + doctype, field=FIELD, data=ROWS.format("&i;"))
    (tmp_path / "t.vot").write_text(text)
    with pytest.raises(InputFileError, match=r"entities|no VOTABLE"):
        read(tmp_path / "t.vot")


@pytest.mark.parametrize("prefix", ["", "v:", "é:"])
@pytest.mark.parametrize("read", [table, read_table, Catalogue.read])
def test_data_elsewhere_are_never_fetched(tmp_path, prefix, read, monkeypatch):
    def ask(*args, **kwargs):
        pytest.fail("a file made the package ask another place")

    monkeypatch.setattr("urllib.request.urlopen", ask)
    stream = f'<BINARY><{prefix}STREAM encoding="base64" href="http://127.0.0.1:9/x"/></BINARY>'
    text = VOTABLE.format(prolog="", field=FIELD, data=stream)
    (tmp_path / "t.vot").write_text(text, encoding="utf-8")
    with pytest.raises(InputFileError, match="another address"):
        read(tmp_path / "t.vot")


def test_a_votable_in_utf_16_is_refused(tmp_path):
    text = VOTABLE.format(prolog="", field=FIELD, data=ROWS.format("a"))
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "t.vot").write_bytes(text.encode(encoding))
        with pytest.raises(InputFileError, match="no XML"):
            table(tmp_path / "t.vot")


@pytest.mark.parametrize("size", ["999999999999", "100000x100000", "9" * 17])
def test_fields_of_absurd_sizes(tmp_path, size):
    field = f'<FIELD name="f" datatype="double" arraysize="{size}"/>'
    (tmp_path / "t.vot").write_text(VOTABLE.format(prolog="", field=field, data=ROWS.format("1")))
    with pytest.raises(InputFileError, match="values"):
        table(tmp_path / "t.vot")


def test_a_declared_number_of_rows_is_not_believed(tmp_path):
    text = VOTABLE.format(prolog="", field=FIELD, data=ROWS.format("a"))
    (tmp_path / "t.vot").write_text(text.replace("<TABLE>", '<TABLE nrows="99999999999">'))
    with pytest.raises(InputFileError, match="rows"):
        table(tmp_path / "t.vot")
    (tmp_path / "t.vot").write_text(text.replace("<TABLE>", '<TABLE nrows="1">'))
    assert table(tmp_path / "t.vot")[0].tolist() == ["a"]


# Text tables and names


def test_ten_million_columns(tmp_path):
    (tmp_path / "t.csv").write_text(",".join("a" for _ in range(10**7)) + "\n1\n")
    with pytest.raises(InputFileError, match="head_bytes"):
        table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_text(",".join(f"c{k}" for k in range(10**5)) + "\n1\n")
    with pytest.raises(InputFileError, match="100000 columns"):
        table(tmp_path / "t.csv")


def test_many_columns_of_parquet_and_votable(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "columns=100")
    parquet.write_table(pa.table({f"c{k}": [1] for k in range(101)}), tmp_path / "t.parquet")
    fields = "".join(f'<FIELD name="f{k}" datatype="int"/>' for k in range(101))
    (tmp_path / "t.vot").write_text(VOTABLE.format(prolog="", field=fields, data=ROWS.format(1)))
    for name in ("t.parquet", "t.vot"):
        with pytest.raises(InputFileError, match="columns"):
            table(tmp_path / name)


@pytest.mark.parametrize("name", ["é α 星", "a\tb", "\x1b[31mred", "x" * 300, "a'b\"c", "."])
def test_odd_names_of_columns_are_names(tmp_path, name):
    parquet.write_table(pa.table({name: ["1", "2"]}), tmp_path / "t.parquet")
    assert table(tmp_path / "t.parquet", [name])[0].tolist() == ["1", "2"]


@pytest.mark.parametrize("text", ["id,id\n1,2\n", "\n", "", "id\n", '"' * 5, "a,b\n1\n1,2,3\n"])
def test_empty_doubled_and_ragged_tables(tmp_path, text):
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputFileError):
        table(tmp_path / "t.csv")


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_one_enormous_field(tmp_path, name):
    texts = ["a"] * 2000 + ["x" * 500_000]
    if name == "t.csv":
        (tmp_path / name).write_text("id\n" + "\n".join(texts) + "\n")
    else:
        parquet.write_table(pa.table({"id": texts}), tmp_path / name)
    with pytest.raises(InputFileError, match="text_characters"):
        table(tmp_path / name)


def test_a_parquet_column_of_equal_values_is_not_unfolded(tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "unfolded_bytes=1000000")
    parquet.write_table(
        pa.table({"id": pa.array(np.zeros(10**6, np.int64))}), tmp_path / "t.parquet"
    )
    assert (tmp_path / "t.parquet").stat().st_size < 10**5
    with pytest.raises(InputFileError, match="unfolded_bytes"):
        table(tmp_path / "t.parquet")


def test_suggestions_do_not_take_long():
    names = [f"{'x' * 5000}{k}" for k in range(3000)]
    assert suggestion("x" * 5000, names) == ""
    assert suggestion("tefff", [*names[:100], "teff"]) == "; did you mean 'teff'?"


def test_errors_cannot_steer_a_terminal(tmp_path):
    parquet.write_table(pa.table({"\x1b]0;owned\x07\u202e": ["1"]}), tmp_path / "t.parquet")
    np.savez(tmp_path / "s.npz", flux=FLUX)
    (tmp_path / "c.toml").write_text(
        f'[spectra]\nfile = "s.npz"\norientation = "rows"\n{GRID}'
        '[[table]]\nfile = "t.parquet"\nid = "id"\n'
    )
    command = [sys.executable, "-m", "maury", "ingest", "toml", "c.toml", "out.zarr"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert not set("\x1b\x07\u202e") & set(done.stderr + done.stdout)


# Folders, links, pipes


def test_patterns_and_links_stay_in_their_folder(tmp_path, monkeypatch):
    (tmp_path / "in").mkdir()
    (tmp_path / "out.txt").write_text("8420 1\n8420.4 1\n")
    for pattern in ("../*", "/etc/*", "a/../../*", "**/../..", ""):
        with pytest.raises(InputFileError):
            ingest(tmp_path, f'folder = "in"\npattern = "{pattern}"')
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "out.txt")
    with pytest.raises(InputFileError, match="a link out of its folder"):
        ingest(tmp_path, 'folder = "in"')
    monkeypatch.setenv(limits.VARIABLE, "outside_links=1")
    assert ingest(tmp_path, 'folder = "in"').spectra.flux.shape == (1, 2)


@pytest.mark.parametrize("name", ["s.npz", "s.fits", "s.parquet", "t.csv", "t.ecsv", "t.vot"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputFileError, match="no regular file"):
        ingest(tmp_path, f'file = "{name}"') if name[0] == "s" else table(tmp_path / name)


# Configurations


READERS = [
    open_toml,
    EnsembleConfig.read,
    load,
    lambda path: _chosen(sorted(COMPETITORS)[:1], path),
    lambda path: read_toml(path, what="settings"),
]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 3000 + "]" * 3000,
        "a = " + "{a=" * 1000 + "1" + "}" * 1000,
        ".".join("a" * 100_000) + " = 1",
        "[" + ".".join("a" * 500) + "]",
        "a = 1\n" * 100_000,
        "a = " + "9" * 100_000,
        "\0",
        "\ud800",
    ],
    ids=["lists", "tables", "dots", "deep", "large", "number", "nul", "surrogate"],
)
def test_tricky_toml(tmp_path, read, text):
    (tmp_path / "c.toml").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ConfigError):
        read(tmp_path / "c.toml")


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_no_configuration(tmp_path, read):
    os.mkfifo(tmp_path / "c.toml")
    with pytest.raises(ConfigError, match="no regular file"):
        read(tmp_path / "c.toml")


@pytest.mark.parametrize("text", ["NaN", "[1, Infinity]", "-Infinity", "9" * 5000, "[" * 10**5])
def test_json_is_json(text):
    with pytest.raises(ValueError, match=r"JSON|deep|digits|64 bits"):
        parse_json(text)


def test_json_of_too_many_values(monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "json_items=100")
    with pytest.raises(ValueError, match="more than 100 values"):
        parse_json("[" + "[]," * 100 + "1]")
    assert parse_json("[" + "1," * 50 + "1]") == [1] * 51


@pytest.mark.parametrize(
    "text", ["columns", "colums=3", "columns=-1", "columns=nan", "columns=1e999"]
)
def test_wrong_limits_are_said(monkeypatch, text):
    monkeypatch.setenv(limits.VARIABLE, text)
    with pytest.raises(ConfigError, match="MAURY_LIMITS"):
        limits.current()


# Models


@pytest.fixture
def model(tmp_path):
    model = untrained(tmp_path, ["teff"])
    (model.path / "SHA256SUMS").unlink()
    return model.path


def edit(path: Path, change) -> None:
    document = json.loads((path / "model.json").read_text())
    change(document)
    (path / "model.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "name",
    ["../../x.safetensors", "/etc/passwd", "members/../../000.safetensors", "members/000.pkl", ""],
)
def test_a_member_elsewhere(model, name):
    edit(model, lambda d: d["members"][0].update(file=name))
    with pytest.raises(ModelFileError):
        Model.open(model)


@pytest.mark.parametrize("name", ["../x", "a/b", "/etc/passwd", "a\0b", "A"])
def test_an_attachment_elsewhere(model, name):
    edit(model, lambda d: d["attachments"].update({name: {"metadata": {}, "sha256": "0" * 64}}))
    with pytest.raises(ModelFileError):
        Model.open(model)


def test_shapes_that_take_long_to_multiply(model):
    edit(model, lambda d: d["tensors"].update({"x": [2**31] * 200_000}))
    with pytest.raises(ModelFileError):
        Model.open(model)


@pytest.mark.parametrize("part", ["model.json", "members", "members/000.safetensors"])
def test_links_in_a_model(model, part):
    (model / part).rename(model.with_name("elsewhere"))
    (model / part).symlink_to(model.with_name("elsewhere"))
    with pytest.raises(ModelFileError, match="link"):
        Model.open(model)


def tensors(path: Path, header, body=b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


F32 = {"dtype": "F32", "shape": [2]}


@pytest.mark.parametrize(
    ("header", "body"),
    [
        ({"a": {**F32, "data_offsets": [0, 8]}, "b": {**F32, "data_offsets": [4, 12]}}, bytes(12)),
        ({"a": {**F32, "data_offsets": [0, 8]}, "b": {**F32, "data_offsets": [0, 8]}}, bytes(8)),
        ({"a": {**F32, "data_offsets": [0, "8"]}}, bytes(8)),
        ({"a": {**F32, "data_offsets": [0, None]}}, bytes(8)),
        ({"a": {**F32, "data_offsets": [8, 0]}}, b""),
        ({"a": {**F32, "data_offsets": [-8, 0]}}, b""),
        ({"a": {**F32, "shape": [2**62, 4], "data_offsets": [0, 8]}}, bytes(8)),
        ({"a": {**F32, "shape": [-2], "data_offsets": [0, 8]}}, bytes(8)),
        ({"a": {**F32, "dtype": "F8_E4M3", "data_offsets": [0, 8]}}, bytes(8)),
        ({"a": []}, bytes(8)),
        (b"{" * 5000, b""),
        (b"null", b""),
        (b'{"a": NaN}', b""),
    ],
)
def test_tricky_tensor_files(tmp_path, header, body):
    import hashlib

    path = tensors(tmp_path / "t.safetensors", header, body)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ModelFileError):
        read_tensor_file(path, sha256=digest)


def test_an_enormous_header(tmp_path):
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ModelFileError):
        read_tensor_file(tmp_path / "t.safetensors", sha256="0" * 64)


# Stores


@pytest.fixture
def store(tmp_path):
    import shutil

    with SurveyWriter(
        tmp_path / "s.zarr",
        n_star=3,
        wave_aa=8420.0 + 0.4 * np.arange(8),
        medium="air",
        simulated=True,
    ) as writer:
        writer.write(0, FLUX, FLUX, id=IDS, star_id=IDS)
    shutil.rmtree(tmp_path / "s.zarr" / "manifest", ignore_errors=True)
    return tmp_path / "s.zarr"


def change(store: Path, name: str, **entries) -> None:
    file = store / name / "zarr.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_shapes_and_chunks_that_no_survey_has(store):
    change(store, "id", shape=[10**15])
    change(store, "star_id", shape=[10**15])
    change(store, "flux", shape=[10**15, 8])
    change(store, "ivar", shape=[10**15, 8])
    with pytest.raises(SurveyFileError, match="shape"):
        Survey.open(store)


@pytest.mark.parametrize(
    "entries",
    [
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [10**9, 10**9]}}},
        {"chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [0, 0]}}},
        {"codecs": [{"name": "pickle"}]},
        {"codecs": [{"name": "bytes"}, {"name": "numcodecs.pickle", "configuration": {}}]},
        {"data_type": "object"},
        {"shape": [-1, 8]},
        {"shape": "x"},
        {"node_type": "group"},
    ],
)
def test_tricky_array_metadata(store, entries):
    change(store, "flux", **entries)
    with pytest.raises(SurveyFileError):
        Survey.open(store).batch(0, 3)


@pytest.mark.parametrize("name", ["flux", "wave"])
def test_a_chunk_that_unfolds_without_end(store, name, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, "chunk_bytes=1000000")
    file = next(path for path in (store / name / "c").rglob("*") if path.is_file())
    if name == "wave":
        file = store / name / "c" / "0"
    codecs = json.loads((store / name / "zarr.json").read_text())["codecs"]
    change(store, name, codecs=[codec for codec in codecs if codec["name"] != "crc32c"])
    file.write_bytes(numcodecs.zstd.compress(bytes(2_000_000), 1))
    with pytest.raises(SurveyFileError, match="unfolds to 2000000 bytes"):
        Survey.open(store).batch(0, 3)
    change(store, name, codecs=[*codecs[:1], {"name": "gzip", "configuration": {"level": 1}}])
    with pytest.raises(SurveyFileError, match="packed by"):
        Survey.open(store).batch(0, 3)


@pytest.mark.parametrize(
    "part", ["zarr.json", "flux", "flux/zarr.json", "flux/c", "flux/c/0", "flux/c/0/0", "id/c/0"]
)
def test_links_in_a_store(store, part):
    (store / part).rename(store.with_name("elsewhere"))
    (store / part).symlink_to(store.with_name("elsewhere"))
    with pytest.raises(SurveyFileError, match="link"):
        Survey.open(store).batch(0, 3)
    other = store.with_name("whole")
    (store / part).unlink()
    store.with_name("elsewhere").rename(store / part)
    other.symlink_to(store)
    assert len(Survey.open(other).batch(0, 3)) == 3


@pytest.mark.parametrize("n_byte", [0, 1, 255, 256, 300, 65791, 65792, 10**6])
def test_frames_tell_their_size(tmp_path, n_byte):
    (tmp_path / "f").write_bytes(numcodecs.zstd.compress(bytes(n_byte)))
    assert unpacked_bytes(tmp_path / "f") == n_byte
    (tmp_path / "g").write_bytes(bytes(40))
    assert unpacked_bytes(tmp_path / "g") is None


# HDF5


def keras_file(path: Path, make) -> Path:
    keras_networks.write(path)
    with h5py.File(path, "r+") as file:
        make(file)
    return path


KERNEL = "model_weights/c0/c0/kernel:0"


def _external(file):
    del file[KERNEL]
    file[KERNEL] = h5py.ExternalLink("/etc/hostname", "/x")


def _soft(file):
    del file[KERNEL]
    file[KERNEL] = h5py.SoftLink("/model_weights/c1/c1/kernel:0")


def _virtual(file):
    del file[KERNEL]
    layout = h5py.VirtualLayout((10, 1, 8), "f4")
    layout[:] = h5py.VirtualSource("/etc/hostname", "x", (10, 1, 8))
    file.create_virtual_dataset(KERNEL, layout)


def _stored_elsewhere(file):
    del file[KERNEL]
    file.create_dataset(KERNEL, (10, 1, 8), "f4", external=[("/etc/hostname", 0, 320)])


def _large_chunk(file):
    del file[KERNEL]
    chunks = (1000, 100, 800)
    data = file.create_dataset(
        KERNEL, (10, 1, 8), "f4", maxshape=(None,) * 3, chunks=chunks, compression="gzip"
    )
    data[:] = 1


def _deep_graph(file):
    del file.attrs["model_config"]
    file.attrs["model_config"] = '{"config":' + "[" * 60_000


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [_external, _soft, _virtual, _stored_elsewhere, _large_chunk, _deep_graph]
)
def test_hdf5_that_leads_elsewhere_or_is_too_large(tmp_path, make):
    path = keras_file(tmp_path / "n.h5", make)
    with pytest.raises(InputFileError):
        read_here(path)


def test_a_library_that_dies_is_one_error(tmp_path, monkeypatch):
    path = keras_file(tmp_path / "n.h5", lambda file: None)
    monkeypatch.setattr("maury.model.keras._CHILD", "import os; os.abort()")
    with pytest.raises(InputFileError, match="fail or hang"):
        read_keras(path)
    monkeypatch.setattr("maury.model.keras._CHILD", "while True: pass")
    monkeypatch.setattr("maury.model.keras._SECONDS", 0.5)
    with pytest.raises(InputFileError, match="fail or hang"):
        read_keras(path)
    assert callable(answer)


# Grids


def test_an_index_stays_in_its_folder(tmp_path):
    (tmp_path / "g").mkdir()
    (tmp_path / "out.txt").write_text("8418 1\n8425 1\n")
    wave = 8420.0 + 0.4 * np.arange(6)
    for name in ("../out.txt", str(tmp_path / "out.txt"), "", "a\0b", "a.txt"):
        (tmp_path / "g" / "index.csv").write_text(f"file,teff\n{name},4000\n")
        if name == "a.txt":
            (tmp_path / "g" / "a.txt").symlink_to(tmp_path / "out.txt")
        with pytest.raises(InputFileError, match=r"not in (that|its) folder"):
            read_synspec_grid(tmp_path / "g", wave_aa=wave)


@pytest.mark.parametrize(
    "line", ["N_P = 1e18 2", "N_P = inf 1", "N_P = -2 -2", "WAVE = 1", "LOGW = x", "NPCA ="]
)
def test_tricky_ferre_headers(tmp_path, line):
    rows = "1 1 1 1 1 1 1 1\n" * 4
    (tmp_path / "f").write_text(
        "&SYNTH\n N_P = 2 2\n LLIMITS = 4000 1\n STEPS = 1000 2\n WAVE = 8419 0.5\n"
        f" {line}\n/\n{rows}"
    )
    with pytest.raises(InputFileError):
        read_ferre_grid(tmp_path / "f", wave_aa=8420.0 + 0.4 * np.arange(6))


# Memory


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks Linux for the memory")
def test_a_bomb_takes_little_memory(tmp_path):
    """The limits as they are, in a process of its own."""
    zeros = pa.table({"id": np.zeros(10**6, np.int64)})
    with parquet.ParquetWriter(tmp_path / "t.parquet", zeros.schema) as writer:
        for _ in range(100):
            writer.write_table(zeros)
    code = (
        "import re, sys\nfrom contextlib import ExitStack\nfrom pathlib import Path\n"
        "from maury.errors import InputFileError\nfrom maury.io.tables import open_table\n"
        "try:\n    with ExitStack() as stack:\n"
        "        open_table(Path(sys.argv[1]), stack).texts('id')\n"
        "except InputFileError as error:\n    print('refused')\n"
        "status = Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.parquet")],
        capture_output=True,
        text=True,
        check=True,
    )
    word, peak = done.stdout.split()
    assert word == "refused"
    assert int(peak) < 1000
