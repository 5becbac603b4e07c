"""CSV files as spreadsheets and archives write them."""

import gzip
import os
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest

from maury.errors import InputFileError
from maury.io.tables import open_table


@pytest.fixture
def opened(tmp_path):
    with ExitStack() as stack:

        def write(content, name="t.csv"):
            content = content if isinstance(content, bytes) else content.encode()
            packed = gzip.compress(content) if name.endswith(".gz") else content
            (tmp_path / name).write_bytes(packed)
            return open_table(tmp_path / name, stack)

        yield write


@pytest.mark.parametrize("mark", [";", "\t", "|", ","])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_the_mark_between_cells_is_that_of_the_header(opened, mark, ends):
    rows = [("id", "teff", "logg"), ("007", "5000.5", ""), ("8", "4000", "4.5")]
    table = opened(ends.join(map(mark.join, rows)) + ends)
    assert table.names == ("id", "teff", "logg")
    assert table.texts("id").tolist() == ["007", "8"]
    np.testing.assert_array_equal(table.floats("teff"), [5000.5, 4000.0])
    np.testing.assert_array_equal(table.floats("logg"), [np.nan, 4.5])


@pytest.mark.parametrize("head", ["id,teff", "id,teff,", "# comment\nid,teff", "# c\nid,teff,"])
def test_a_comma_at_the_end_of_each_row(opened, head):
    table = opened(head + "\na,1,\nb,2,\n")
    assert [name for name in table.names if name] == ["id", "teff"]
    np.testing.assert_array_equal(table.floats("teff"), [1.0, 2.0])


@pytest.mark.parametrize("head", ["id,teff", "id,teff,"])
def test_values_without_a_name_are_told(opened, head):
    with pytest.raises(InputFileError, match="column 3 has values and no name in the header"):
        opened(head + "\na,1,\nb,2,9\n")


def test_rows_with_more_cells_still_are_an_error(opened):
    with pytest.raises(InputFileError, match="Expected 2 columns, got 4"):
        opened("id,teff\na,1,2,3\n")


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
@pytest.mark.parametrize("comment", ["", "# observé\n"])
def test_texts_in_latin_1_are_read_with_a_word(opened, caplog, name, comment):
    text = f"{comment}id,temp é,n\nEtoile à,1,2\n"
    for content in (text.encode("latin-1"), text.encode(), b"\xef\xbb\xbf" + text.encode()):
        caplog.clear()
        table = opened(content, name)
        assert table.names == ("id", "temp é", "n")
        assert table.texts("id").tolist() == ["Etoile à"]
        assert ("is read as Latin-1" in caplog.text) == (content == text.encode("latin-1"))


def test_utf_16_is_told(opened):
    with pytest.raises(InputFileError, match="UTF-16; save it in UTF-8"):
        opened("id,teff\na,1\n".encode("utf-16"))


@pytest.mark.parametrize("name", ["t.fits.fz", "t.fit.gz"])
def test_packed_fits_by_its_suffix(tmp_path, name):
    from astropy.io import fits

    table = fits.BinTableHDU.from_columns([fits.Column("teff", "D", array=[5000.0])])
    table.writeto(tmp_path / "t.fits")
    content = (tmp_path / "t.fits").read_bytes()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with ExitStack() as stack:
        assert open_table(tmp_path / name, stack).floats("teff").tolist() == [5000.0]


def test_ecsv_is_utf8_in_a_locale_of_ascii(tmp_path):
    code = (
        "import sys; from contextlib import ExitStack; from pathlib import Path\n"
        "from astropy.table import Table; from maury.io.tables import open_table, write_ecsv\n"
        "path = Path(sys.argv[1])\n"
        "write_ecsv(path, Table({'who': ['Gr\\xfcn \\u2013 1']}))\n"
        "with ExitStack() as stack: print(ascii(str(open_table(path, stack).texts('who')[0])))\n"
    )
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "t.ecsv")],
        env={**os.environ, **plain},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == r"'Gr\xfcn \u2013 1'", done.stderr[-1000:]
    assert "Gr\xfcn \u2013 1" in (tmp_path / "t.ecsv").read_text("utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "id teff name\n007 5000.5 'a b'\n008  -  c\n",
        "# made by hand\n# id teff name\n007   5000.5 'a b'\n\n008  - c\n",
        "id, teff, name\n007, 5000.5, a b\n008, -, c\n",
        "id\tteff\tname\n007\t5000.5\ta b\n008\t-\tc\n",
    ],
)
def test_texts_of_columns_have_names_and_keep_leading_zeros(opened, text):
    table = opened(text.replace("'", '"'), "t.dat")
    assert table.names == ("id", "teff", "name")
    assert table.texts("id").tolist() == ["007", "008"]
    assert table.texts("name").tolist() == ["a b", "c"]
    assert table.texts("teff").tolist() == ["5000.5", "-"]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("007 5000.5\n008 5100.0\n", "no line of names above its 2 columns"),
        ("id teff\n007 5000.5 3\n", "row 1 has 3 cells, of 2 columns"),
        ("id teff\n", "has no rows"),
    ],
)
def test_a_text_that_is_no_table_is_one_error(opened, text, error):
    with pytest.raises(InputFileError, match=error):
        opened(text, "t.txt")
