"""Footers of Parquet files, read before the library asks for sizes, and rows in blocks."""

import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from builders.memory import growth_mb
from maury.io.parquet import read_blocks

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
