"""Footers of Parquet files, read before the library asks for the sizes of columns."""

import subprocess
import sys

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
