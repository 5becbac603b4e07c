"""Footers of Parquet files, read before the library asks for sizes, and rows in blocks."""

import re
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from builders.memory import growth_mb
from maury.errors import InputFileError
from maury.io.parquet import check_pages, read_blocks
from maury.io.tables import open_table

DAMAGE = """
import sys
from contextlib import ExitStack
from pathlib import Path
import pyarrow as pa
from pyarrow import parquet
from maury.errors import MauryError
from maury.io.tables import open_table

path = Path(sys.argv[1])
rows = [[1.0, 2.0], None, [3.0]]
parquet.write_table(pa.table({"flux": pa.array(rows), "id": ["a", "b", "c"]}), path,
                    store_schema=False, write_statistics=False)
whole = path.read_bytes()
length = int.from_bytes(whole[-8:-4], "little")
start = len(whole) - 8 - length
refused = 0
for bit in range(8 * length):
    content = bytearray(whole)
    content[start + bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)
    try:
        with ExitStack() as stack:
            table = open_table(path, stack)
            table.vectors("flux", 2)
            table.texts("id")
    except MauryError:
        refused += 1
print(refused, 8 * length)
"""


@pytest.mark.slow
def test_no_damaged_footer_ends_the_process(tmp_path):
    command = [sys.executable, "-c", DAMAGE, str(tmp_path / "t.parquet")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, n = map(int, done.stdout.split())
    assert n / 3 < refused < n


@pytest.mark.parametrize("group_rows", [3, 10, 40, 100])
@pytest.mark.parametrize("start", [0, 7, 40, 99, 100])
def test_blocks_are_the_rows_in_order_whatever_the_row_groups(tmp_path, group_rows, start):
    path = tmp_path / "t.parquet"
    parquet.write_table(pa.table({"n": np.arange(100)}), path, row_group_size=group_rows)
    blocks = [block["n"].to_pylist() for block in read_blocks(path, ["n"], 16, start)]
    assert [n for block in blocks for n in block] == list(range(start, 100))
    assert all(1 <= len(block) <= 16 for block in blocks)
    # Row groups of a few rows are read together, so that no more blocks than needed are made.
    assert len(blocks) <= 2 * (100 - start) / 16 + 3


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process stands in /proc")
def test_memory_of_reading_does_not_grow_with_the_row_groups(tmp_path):
    noise = np.random.default_rng(1).random((12, 4096))
    code = "for _ in read_blocks(Path(sys.argv[3]), [str(k) for k in range(12)], 4096): pass"
    imports = "import pyarrow.parquet\nfrom maury.io.parquet import read_blocks"
    grown = []
    for n_group in (4, 44):
        table = pa.table({str(k): np.tile(noise[k], n_group) for k in range(12)})
        path = tmp_path / f"{n_group}.parquet"
        parquet.write_table(table, path, row_group_size=4096)
        grown.append(growth_mb(imports, code, path))
    assert grown[1] < grown[0] + 16, grown


@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("packing", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("dictionary", [True, False])
def test_pages_of_sound_files_are_let_through(tmp_path, version, packing, dictionary):
    path, rng = tmp_path / "t.parquet", np.random.default_rng(1)
    table = pa.table(
        {
            "n": rng.integers(0, 9, 5000),
            "x": rng.random(5000),
            "text": [None if k % 3 else "é" * (k % 90) for k in range(5000)],
            "flux": [[1.0] * (k % 4) for k in range(5000)],
            "none": pa.nulls(5000),
            "long": ["x" * 4000] * 5000,
        }
    )
    parquet.write_table(
        table,
        path,
        row_group_size=700,
        data_page_size=1000,
        data_page_version=version,
        compression=packing,
        use_dictionary=dictionary,
        write_page_checksum=True,
    )
    check_pages(path, table.column_names)
    assert parquet.read_table(path).equals(table), "a sound file it is"
    parquet.write_table(table[:0], path)
    check_pages(path, table.column_names)


def varint(value):
    """A signed number as Thrift's compact protocol has it."""
    value = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def forge_page(path, field, value):
    """Write 1000 numbers in one page, whose header then gives another number for a field."""
    parquet.write_table(
        pa.table({"n": np.arange(1000.0)}),
        path,
        use_dictionary=False,
        write_statistics=False,
        compression="none",
    )
    raw = path.read_bytes()
    size = re.match(rb"PAR1\x15\x00\x15(..)\x15(..)\x2c\x15(..)", raw, re.DOTALL)
    assert size is not None
    assert size.groups() == (varint(8007), varint(8007), varint(1000))
    # The footer says where the page ends: bytes more of its header are taken from its values.
    more = len(varint(value)) - 2
    given = {"unpacked": 8007, "packed": 8007 - more, "values": 1000, field: value}
    head = b"".join(b"\x15" + varint(given[name]) for name in ("unpacked", "packed"))
    forged = raw[:6] + head + b"\x2c\x15" + varint(given["values"]) + raw[size.end() :]
    end = forged.index(np.arange(1000.0).tobytes()[-80:])
    path.write_bytes(forged[:end] + forged[end + more :])
    assert path.stat().st_size == len(raw)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("unpacked", 2**31 - 1, "unfolded_bytes"),
        ("unpacked", -5, "a size that its column does not have"),
        ("packed", 2**30, "a size that its column does not have"),
        ("packed", -(2**30), "a size that its column does not have"),
        ("values", 2**31 - 1, "values where its column has 1000"),
        ("values", -1, "values where its column has 1000"),
    ],
)
def test_sizes_in_the_header_of_a_page_are_not_believed(tmp_path, field, value, said):
    path = tmp_path / "t.parquet"
    forge_page(path, field, value)
    with pytest.raises(InputFileError, match=said):
        list(read_blocks(path, ["n"], 100))
    with ExitStack() as stack, pytest.raises(InputFileError, match=said):
        open_table(path, stack).floats("n")
