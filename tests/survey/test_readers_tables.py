"""Tables, columns of arrays, and the common course of all readers."""

import struct
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from astropy.table import MaskedColumn, Table
from astropy.time import Time
from pyarrow import parquet

from maury.errors import ColumnError, GridMismatch, IdentifierError, InputFileError
from maury.io import limits
from maury.io.array_csv import ArrayCsv
from maury.io.parquet import ColumnSize, column_sizes
from maury.io.source_table import SourceTable
from maury.io.tables import open_table
from maury.survey.readers import ingest_toml

FLUX = np.arange(1.0, 41.0).reshape(5, 8)
LINEAR = '[wavelength]\nmedium = "air"\nstart = 8500.0\nstep = 0.5\n'


def ingest(folder, text, **options):
    (folder / "survey.toml").write_text(text)
    return ingest_toml(folder / "survey.toml", folder / "out.zarr", **options)


@pytest.fixture
def opened(tmp_path):
    """A function that writes columns to a file of this name and opens it."""
    with ExitStack() as stack:

        def write(columns, name="t.parquet"):
            if name.endswith(".parquet"):
                parquet.write_table(pa.table(columns), tmp_path / name)
            else:
                Table(columns).write(tmp_path / name)
            return open_table(tmp_path / name, stack)

        yield write


# Columns


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float64(), 2)])
def test_an_element_of_a_parquet_list(opened, kind):
    table = opened({"p": pa.array([[1.0, 2.0], None, [3.0, None]], kind)})
    np.testing.assert_array_equal(table.floats("p", index=0), [1, np.nan, 3])
    assert table.plain("p", index=1).tolist() == [2.0, None, None]
    with pytest.raises(ColumnError, match="'p' has no element 2 in each row"):
        table.floats("p", index=2)


@pytest.mark.parametrize("values", [[1.0, 2.0], ["a", "b"]])
def test_an_index_is_for_columns_of_arrays_alone(opened, values):
    with pytest.raises(ColumnError, match="one value a row; leave out 'index'"):
        opened({"p": values}).plain("p", index=0)


def test_an_index_beyond_the_array_of_a_fits_column(opened):
    table = opened({"p": FLUX, "q": np.arange(5.0)}, "t.fits")
    np.testing.assert_array_equal(table.floats("p", index=7), FLUX[:, 7])
    with pytest.raises(ColumnError, match=r"shape \(8,\) a row.*no element 8; correct 'index'"):
        table.floats("p", index=8)
    with pytest.raises(ColumnError, match=r"shape \(\) a row"):
        table.plain("q", index=0)


def test_truth_values_and_decimals_of_parquet_are_numbers(opened):
    from decimal import Decimal

    table = opened({"b": [True, None, False], "d": [Decimal("1.25"), None, Decimal("-3.50")]})
    np.testing.assert_array_equal(table.floats("b"), [1, np.nan, 0])
    np.testing.assert_array_equal(table.floats("d"), [1.25, np.nan, -3.5])
    assert table.plain("b").tolist() == [True, None, False]


def test_other_types_of_parquet_are_refused_by_name(opened):
    lists = {"l": [[1.0], [2.0]], "b": [b"a", b"b"], "d": pa.array([0, 1], pa.date32())}
    table = opened(lists)
    with pytest.raises(ColumnError, match="'l' must hold one number a row, got list"):
        table.floats("l")
    with pytest.raises(ColumnError, match="'d' must hold one number a row, got date32"):
        table.plain("d")
    for name in ("l", "b"):
        with pytest.raises(ColumnError, match=f"'{name}' must hold one text a row"):
            table.texts(name)


def test_identifiers_in_a_parquet_column_of_floats(opened):
    table = opened({"id": [7.0, None, 12.0], "x": [0.5, 1.0, 2.0]})
    assert table.texts("id").tolist() == ["7", "", "12"]
    with pytest.raises(IdentifierError, match=r"'x'.*lost digits"):
        table.texts("x")


def test_complex_and_logical_columns_are_refused_by_type(opened):
    table = opened({"c": np.array([1j, 2]), "b": np.array([True, False])}, "t.fits")
    for read in (table.floats, table.plain):
        with pytest.raises(ColumnError, match=r"'c' must hold numbers.*c16"):
            read("c")
    with pytest.raises(ColumnError, match="'b' must hold text or whole numbers, got bool"):
        table.texts("b")


def test_a_column_of_times_is_not_supported(opened):
    table = opened({"t": Time([50000.0, 50001.0], format="mjd"), "x": [1.0, 2.0]}, "t.ecsv")
    assert table.floats("x").tolist() == [1, 2]
    with pytest.raises(ColumnError, match="column 't': Time is not supported"):
        table.floats("t")


def test_vectors_of_every_format_are_alike(opened):
    rows = [[0.5, 1.5], None, [2.5, None]]
    wanted = np.array([[0.5, 1.5], [np.nan, np.nan], [2.5, np.nan]])
    masked = MaskedColumn(np.nan_to_num(wanted), mask=np.isnan(wanted))
    text = ["[0.5,1.5]", "null", "(2.5,nan)"]
    tables = [
        opened({"v": rows}),
        opened({"v": text}, "t.csv"),
        SourceTable.of_arrays(Path("t"), {"v": masked}),
        SourceTable.of_arrays(Path("t"), {"v": np.array(text, dtype="S12")}),
    ]
    for table in tables:
        np.testing.assert_array_equal(table.vectors("v", 2), wanted)
    with pytest.raises(ColumnError, match="2 values in row 0, expected 3; correct 'size'"):
        tables[0].vectors("v", 3)


def test_a_table_of_another_suffix_or_with_too_long_a_name(tmp_path, monkeypatch):
    with ExitStack() as stack, pytest.raises(InputFileError, match=r"no suffix.*\.csv.*rename it"):
        open_table(tmp_path / "t.xyz", stack)
    (tmp_path / "t.csv").write_text("a_column_of_many_letters\n1\n")
    monkeypatch.setenv(limits.VARIABLE, "text_characters=10")
    with ExitStack() as stack, pytest.raises(InputFileError, match=r"name that is too long.*10"):
        open_table(tmp_path / "t.csv", stack)


# Columns of spectra


def spectra_file(folder, rows, name="s.parquet"):
    if name == "s.parquet":
        kind = pa.list_(pa.float64())
        parquet.write_table(pa.table({"flux": pa.array(rows, kind)}), folder / name)
    else:
        values = np.empty(len(rows), dtype=object)
        values[:] = [np.array([] if row is None else row) for row in rows]
        column = fits.Column("flux", "PD()", array=values)
        fits.BinTableHDU.from_columns([column]).writeto(folder / name)
    return f'[spectra]\nfile = "{name}"\n' + LINEAR


@pytest.mark.parametrize("name", ["s.parquet", "s.fits"])
def test_spectra_that_lack_from_somewhere_on_are_bad(tmp_path, monkeypatch, name):
    monkeypatch.setattr("maury.survey.readers.writing.CHUNK_STARS", 64)
    text = spectra_file(tmp_path, [*np.tile(FLUX, (13, 1))[:64].tolist(), *[None] * 6], name)
    survey = ingest(tmp_path, text)
    assert len(survey) == 70
    flux = survey.batch(0, 70).spectra.flux
    np.testing.assert_array_equal(flux[:64], np.tile(FLUX, (13, 1))[:64])
    assert np.isnan(flux[64:]).all()


@pytest.mark.parametrize("name", ["s.parquet", "s.fits"])
def test_spectra_that_are_shorter_from_somewhere_on(tmp_path, monkeypatch, name):
    monkeypatch.setattr("maury.survey.readers.writing.CHUNK_STARS", 64)
    text = spectra_file(tmp_path, [*np.tile(FLUX, (13, 1))[:64].tolist(), [1.0, 2.0]], name)
    with pytest.raises(GridMismatch, match="column 'flux' has spectra of 8, 2 pixels"):
        ingest(tmp_path, text)


def test_parquet_is_read_forward_whatever_its_batches(tmp_path, monkeypatch):
    monkeypatch.setattr("maury.survey.readers.planes._AT_ONCE", 16)
    monkeypatch.setattr("maury.survey.readers.writing.CHUNK_STARS", 3)
    survey = ingest(tmp_path, spectra_file(tmp_path, FLUX.tolist()))
    np.testing.assert_array_equal(survey.batch(0, 5).spectra.flux, FLUX)


@pytest.mark.parametrize(
    ("column", "words"),
    [
        ([1.0, 2.0], "one list of numbers a row, got double"),
        ([["a"], ["b"]], "lists of numbers, got list<.*string"),
    ],
)
def test_a_parquet_column_that_holds_no_spectra(tmp_path, column, words):
    parquet.write_table(pa.table({"flux": column}), tmp_path / "s.parquet")
    with pytest.raises(ColumnError, match=words):
        ingest(tmp_path, '[spectra]\nfile = "s.parquet"\n' + LINEAR)


def test_a_fits_column_of_texts_of_any_length_holds_no_spectra(tmp_path):
    column = fits.Column("flux", "PA()", array=np.array(["abc", "de"], dtype=object))
    fits.BinTableHDU.from_columns([column]).writeto(tmp_path / "s.fits")
    with pytest.raises(ColumnError, match="arrays of numbers, not objects"):
        ingest(tmp_path, '[spectra]\nfile = "s.fits"\n' + LINEAR)


@pytest.mark.parametrize(
    ("name", "limit", "words"),
    [
        ("s.parquet", "pixels=7", "rows of 8 values"),
        ("s.fits", "chunk_bytes=50", "rows of 8 values"),
        ("s.npy", "pixels=7", "spectra of 8 pixels"),
        ("s.npy", "rows=4", "promises 5 spectra; it is damaged, or transposed"),
    ],
)
def test_absurd_spectra_are_refused(tmp_path, monkeypatch, name, limit, words):
    text = f'[spectra]\nfile = "{name}"\norientation = "rows"\n' + LINEAR
    if name == "s.npy":
        np.save(tmp_path / name, FLUX)
    else:
        spectra_file(tmp_path, FLUX.tolist(), name)
    monkeypatch.setenv(limits.VARIABLE, limit)
    with pytest.raises(InputFileError, match=words):
        ingest(tmp_path, text)
    monkeypatch.delenv(limits.VARIABLE)
    assert len(ingest(tmp_path, text)) == 5


# Footers of Parquet files: Thrift's compact protocol, written by hand


def number(value):
    value, out = (value << 1) ^ (value >> 63), b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def fields(*given):
    """A structure of fields (number, type, bytes)."""
    out, last = b"", 0
    for place, kind, content in given:
        out, last = out + bytes([(place - last) << 4 | kind]) + content, place
    return out + b"\0"


def listed(kind, *items):
    return bytes([len(items) << 4 | kind]) + b"".join(items)


def footer_of(n_value, n_byte, *more):
    meta = fields(
        (3, 9, listed(8, b"\x04flux")),
        (5, 6, number(n_value)),
        (6, 6, number(n_byte)),
        # Bytes packed, and where the values begin, which every file states.
        (7, 6, number(abs(n_byte))),
        (9, 6, number(4)),
    )
    chunk = fields((3, 12, meta))
    group = fields((1, 9, listed(12, chunk)))
    return fields(*more, (4, 9, listed(12, group, group)))


def with_footer(path, footer):
    path.write_bytes(b"PAR1" + footer + struct.pack("<I", len(footer)) + b"PAR1")
    return path


def test_a_footer_says_how_much_a_column_holds(tmp_path):
    real = (2, 7, struct.pack("<d", 1.5))
    path = with_footer(tmp_path / "t.parquet", footer_of(300, 5000, real))
    assert column_sizes(path) == {"flux": ColumnSize(600, 10_000)}


@pytest.mark.parametrize(
    ("footer", "words"),
    [
        (footer_of(-1, 10), "a negative size"),
        (footer_of(10, -1), "a negative size"),
        (b"\x1c" * 30 + b"\0" * 30, "too deep"),
        (b"\x19\xf5\xff\xff\x03" + b"\0" * 8, "a list that is longer than the footer"),
        (b"\x18\x50abc\0", "a text that is longer than the footer"),
        (b"\x16" + b"\xff" * 12 + b"\0", "a number that does not end"),
        (b"\x1b\0\0", "a field of type 11"),
    ],
)
def test_a_damaged_footer_is_one_clear_error(tmp_path, footer, words):
    path = with_footer(tmp_path / "t.parquet", footer)
    with pytest.raises(InputFileError, match=f"damaged footer.*{words}"):
        column_sizes(path)


def test_an_absurd_footer_is_not_read(tmp_path, monkeypatch):
    path = with_footer(tmp_path / "t.parquet", footer_of(300, 5000))
    monkeypatch.setenv(limits.VARIABLE, "head_bytes=1")
    with pytest.raises(InputFileError, match=r"footer of \d+ bytes, sixteen times.*head_bytes"):
        column_sizes(path)


# Text with arrays in its cells


def test_arrays_in_text_are_read_forward_and_back(tmp_path):
    rows = "".join(f'{k},"[{k},{k + 0.5}]",\n' for k in range(6))
    (tmp_path / "t.csv").write_text("id,flux,error\n" + rows)
    text = ArrayCsv(tmp_path / "t.csv", ("flux", "error"))
    wanted = np.arange(6)[:, None] + [0.0, 0.5]
    for start, stop in ((0, 2), (2, 3), (4, 6), (1, 3)):
        np.testing.assert_array_equal(text.rows("flux", start, stop), wanted[start:stop])
    assert (text.length("flux"), text.length("error")) == (2, 0)
    assert text.table.texts("id").tolist() == [*"012345"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "no header line; it is empty or damaged"),
        ("# %ECSV 1.0\n", "no header line"),
        ("a,b\n1,2\n1,2,3\n", "row 2 has 3 cells, the header 2"),
        ("a,b\n1," + "x" * 2**24 + "\n", "a line has 16777216 characters or more"),
    ],
)
def test_damaged_text_with_arrays_is_one_clear_error(tmp_path, content, words):
    (tmp_path / "t.csv").write_text(content)
    with pytest.raises(InputFileError, match=words):
        ArrayCsv(tmp_path / "t.csv", ())


# The common course


def test_large_files_are_recorded_without_their_sum(tmp_path, monkeypatch):
    monkeypatch.setattr("maury.survey.readers.pipeline._LARGEST_HASHED", 100)
    np.save(tmp_path / "s.npy", FLUX)
    (tmp_path / "t.csv").write_text("T\n" + "5000\n" * 5)
    text = '[spectra]\nfile = "s.npy"\norientation = "rows"\n' + LINEAR
    survey = ingest(tmp_path, text + '[[table]]\nfile = "t.csv"\n[columns]\nteff = "T"\n')
    spectra, labels = survey.provenance["files"]
    assert sorted(spectra) == ["bytes", "name"]
    assert sorted(labels) == ["bytes", "name", "sha256"]


class Here:
    """In place of a cluster: tasks run in this process, the last one first."""

    def __init__(self):
        self.paths, self.asked = [], []

    def require_paths(self, paths):
        self.paths += map(str, paths)

    def results(self, function, tasks):
        self.asked.append([(task.start, task.stop) for task in tasks])
        for k in reversed(range(len(tasks))):
            yield k, function(tasks[k], lambda _: None)


@pytest.mark.two_threads
def test_workers_write_what_one_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("maury.survey.readers.writing.CHUNK_STARS", 2)
    np.savez(tmp_path / "s.npz", flux=FLUX, id=[*"abcde"])
    text = '[spectra]\nfile = "s.npz"\nid = "id"\n' + LINEAR
    alone = ingest(tmp_path, text).batch(0, 5)
    cluster, told = Here(), []
    survey = ingest(
        tmp_path, text, cluster=cluster, overwrite=True, progress=lambda *step: told.append(step)
    )
    shared = survey.batch(0, 5)
    np.testing.assert_array_equal(shared.spectra.flux, alone.spectra.flux)
    np.testing.assert_array_equal(shared.spectra.ivar, alone.spectra.ivar)
    np.testing.assert_array_equal(survey.column("snr"), alone.column("snr"))
    assert survey.id.tolist() == [*"abcde"]
    assert cluster.asked == [[(0, 5)]]
    assert told[0] == told[-1] == (5, 5)
    assert any(path.endswith("survey.toml") for path in cluster.paths)
    quiet = Here()
    again = ingest(tmp_path, text, cluster=quiet, overwrite=True)
    np.testing.assert_array_equal(again.batch(0, 5).spectra.flux, alone.spectra.flux)
    assert quiet.asked == cluster.asked
