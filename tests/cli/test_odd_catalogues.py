"""`maury info` and `maury convert` on catalogues whose metadata or columns maury did not write."""

import json
from importlib.util import find_spec

import pyarrow as pa
import pytest
from pyarrow import parquet
from typer.testing import CliRunner

from builders.catalogues import write_catalogue
from maury.cli.app import app
from maury.prediction.catalogue import Catalogue
from maury.report.publish.convert import convert

runner = CliRunner()
_STATED = {"bit": 1, "warns": True, "text": "t"}


def with_metadata(path, metadata, **columns):
    """Write a catalogue as Parquet whose metadata, and some columns, are replaced."""
    write_catalogue(path, 5)
    table = parquet.read_table(path)
    about = {**json.loads(table.schema.metadata[b"maury"]), **metadata}
    for name, values in columns.items():
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    written = {b"maury": json.dumps(about).encode()}
    parquet.write_table(table.replace_schema_metadata(written), path)
    return path


@pytest.mark.parametrize(
    "flags",
    [
        [1],
        "x",
        None,
        {"A": 1},
        {"A": {"bit": 1}},
        {"A": {**_STATED, "bit": "x"}},
        {"A": {**_STATED, "bit": 0.5}},
        {"A": {**_STATED, "bit": -1}},
        {"A": {**_STATED, "bit": 10**12}},
        {"A": {**_STATED, "text": [1]}},
        {"A": {**_STATED, "warns": 3}},
    ],
)
def test_flags_that_metadata_do_not_state_are_not_used_for_them(tmp_path, flags, caplog):
    path = with_metadata(tmp_path / "c.parquet", {"flags": flags})
    assert runner.invoke(app, ["info", str(path)]).exit_code == 0
    assert "c.parquet: its metadata do not state" in caplog.text
    for suffix in (".fits", ".cds") if find_spec("cdspyreadme") else (".fits",):
        assert convert(path, tmp_path / f"out{suffix}") == 5
    assert "flags" not in Catalogue.open(tmp_path / "out.fits").metadata


def test_texts_of_flags_cannot_end_a_header_of_fits(tmp_path):
    flags = {"A\nB": {**_STATED, "text": "é\0\nEND\x1b[2J" + "x" * 500}}
    path = with_metadata(tmp_path / "c.parquet", {"flags": flags})
    convert(path, tmp_path / "out.fits")
    found = Catalogue.open(tmp_path / "out.fits")
    assert found.metadata["flags"] == flags
    assert len(found) == 5


@pytest.mark.parametrize("name", ["flags", "warn", "teff"])
def test_info_leaves_out_columns_of_another_kind(tmp_path, name):
    for number, values in enumerate((["a"] * 5, [[1.0, 2.0]] * 5)):
        path = with_metadata(tmp_path / f"{number}.parquet", {}, **{name: values})
        done = runner.invoke(app, ["info", str(path)])
        assert done.exit_code == 0, done.output
        assert "logg" in done.output
