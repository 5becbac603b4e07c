import json
import sys
import warnings
from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table

from builders.catalogues import catalogue_rows, write_many
from builders.memory import growth_mb
from maury.errors import ColumnError, ConfigError, InputFileError, OutputExists
from maury.labels.definitions import LABELS
from maury.labels.flags import Flag, warn
from maury.prediction.catalogue import (
    SUFFIXES,
    Catalogue,
    CatalogueSpec,
    assemble,
    write_part,
    write_stored,
)

METADATA = {"simulated": True, "model": {"preset": "guiglion2020", "note": "quote ' é \" " * 9}}
SPEC = CatalogueSpec.for_labels(
    LABELS,
    survey_columns=["ra", "dec", "star_id", "teff"],
    metadata=METADATA,
    quantiles=True,
    coverage=True,
)


def make_rows(start, n, rng, *, identifier="star-{}"):
    rows = {}
    for column in SPEC.columns:
        if column.kind == "str":
            rows[column.name] = np.array([identifier.format(start + i) for i in range(n)])
        elif column.kind == "int64":
            # Beyond 32 bits, which catalogues of the first versions had.
            rows[column.name] = rng.integers(0, 2**40, n)
        elif column.kind == "bool":
            rows[column.name] = rng.random(n) > 0.5
        else:
            rows[column.name] = rng.normal(size=n)
    rows["teff"][0] = np.nan
    return rows


@pytest.fixture
def parts(tmp_path):
    rng = np.random.default_rng(3)
    pieces = [make_rows(0, 5, rng, identifier="a{}"), make_rows(5, 4, rng, identifier="longer-{}")]
    paths = [tmp_path / f"part-{i}.parquet" for i in range(2)]
    for path, rows in zip(paths, pieces, strict=True):
        write_part(path, SPEC, rows)
    whole = {name: np.concatenate([p[name] for p in pieces]) for name in pieces[0]}
    return paths, whole


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip(tmp_path, parts, suffix):
    paths, whole = parts
    out = tmp_path / f"labels{suffix}"
    assemble(paths, out, spec=SPEC)
    catalogue = Catalogue.read(out)
    assert catalogue.simulated
    assert catalogue.metadata["model"] == METADATA["model"]
    assert catalogue.table.colnames == [column.name for column in SPEC.columns]
    for column in SPEC.columns:
        np.testing.assert_array_equal(catalogue.table[column.name], whole[column.name])
        assert str(catalogue.table[column.name].unit or "") == column.unit.replace("/s", " / s")
        assert catalogue.table[column.name].meta["ucd"] == column.ucd
        assert catalogue.table[column.name].description == column.description
    assert catalogue.metadata["flags"]["LOW_SNR"]["text"] == Flag.LOW_SNR.text


def test_columns_stand_in_the_promised_order():
    names = [column.name for column in SPEC.columns]
    quantiles = ["teff_q02", "teff_q16", "teff_q50", "teff_q84", "teff_q98"]
    assert names[:8] == ["id", "teff", "teff_error", *quantiles]
    last = ["flags", "warn", "chi2_reduced", "worst_wavelength", "snr", "star_id", "ra", "dec"]
    assert names[-8:] == last
    plain = CatalogueSpec.for_labels(LABELS, survey_columns=[], metadata={})
    assert [column.name for column in plain.columns][:4] == ["id", "teff", "teff_error", "logg"]
    assert [column.name for column in plain.columns][-3:] == ["flags", "warn", "snr"]


def test_fits_is_read_by_others(tmp_path, parts):
    out = tmp_path / "labels.fits"
    assemble(parts[0], out, spec=SPEC)
    with fits.open(out) as hdus:
        hdus.verify("exception")
        assert hdus[0].header["SIMULATE"] is True
        assert any("LOW_SNR" in str(line) for line in hdus[0].header["COMMENT"])
        assert out.stat().st_size % 2880 == 0
        assert hdus[1].columns["teff"].unit == "K"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = Table.read(out)
    assert len(table) == 9
    assert table["worst_wavelength"].unit == units.Angstrom
    assert table["m_h"].unit is None
    header = fits.getheader(out, 1)
    number = table.colnames.index("m_h") + 1
    assert header[f"TCOMM{number}"].endswith("(dex)")


@pytest.mark.filterwarnings("error")
def test_astropy_reads_fits_with_descriptions_and_without_a_warning(tmp_path, parts):
    assemble(parts[0], tmp_path / "labels.fits", spec=SPEC)
    table = Table.read(tmp_path / "labels.fits")
    assert {name: table[name].description for name in table.colnames} == {
        column.name: column.description for column in SPEC.columns
    }
    assert all(table[column.name].description for column in SPEC.columns)
    assert str(table["teff"].unit) == "K"


def test_the_header_of_a_fits_table_is_astropys(tmp_path, parts):
    out = tmp_path / "labels.fits"
    assemble(parts[0], out, spec=SPEC)
    with fits.open(out) as hdus:
        found, data = hdus[1].header, hdus[1].columns
        columns = [fits.Column(c.name, c.format, unit=c.unit, null=c.null) for c in data]
        assert {c.null for c in columns} == {None, -(2**63)}
        expected = fits.BinTableHDU.from_columns(columns, nrows=9, name="LABELS").header
    # Those that astropy does not write by itself.
    added = ("TCOMM", "TUCD", "SIMULATE", "COMMENT")
    cards = [card for card in found.cards if not card.keyword.startswith(added)]
    assert [str(card) for card in cards] == [str(card) for card in expected.cards]


def test_non_ascii_identifiers_survive_in_fits(tmp_path):
    rows = make_rows(0, 3, np.random.default_rng(1), identifier="ζ-Pup-{}")
    write_part(tmp_path / "p.parquet", SPEC, rows)
    assemble([tmp_path / "p.parquet"], tmp_path / "c.fits", spec=SPEC)
    assert Catalogue.read(tmp_path / "c.fits").table["id"].tolist() == rows["id"].tolist()


def test_votable_is_valid(tmp_path, parts):
    out = tmp_path / "labels.vot"
    assemble(parts[0], out, spec=SPEC)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        document = parse(out, verify="exception")
        assert Table.read(out)["worst_wavelength"].unit == units.Angstrom
    fields = {field.name: field for field in document.get_first_table().fields}
    assert fields["teff"].unit.to_string() == "K"
    assert fields["m_h"].description.endswith("(dex)")


def test_ecsv_is_text_with_units(tmp_path, parts):
    out = tmp_path / "labels.ecsv"
    assemble(parts[0], out, spec=SPEC)
    assert "unit: K" in out.read_text()
    assert Table.read(out)["teff"].unit == "K"


def test_parquet_fields_carry_their_meaning(tmp_path, parts):
    import pyarrow.parquet as pq

    out = tmp_path / "labels.parquet"
    assemble(parts[0], out, spec=SPEC)
    schema = pq.read_schema(out)
    assert schema.field("teff").metadata[b"ucd"] == b"phys.temperature.effective"
    assert json.loads(schema.metadata[b"maury"])["simulated"] is True


def test_never_overwrites_silently_and_knows_its_formats(tmp_path, parts):
    out = tmp_path / "labels.fits"
    out.write_text("precious")
    with pytest.raises(OutputExists):
        assemble(parts[0], out, spec=SPEC)
    assert out.read_text() == "precious"
    assemble(parts[0], out, spec=SPEC, overwrite=True)
    assert len(Catalogue.read(out)) == 9
    with pytest.raises(ConfigError, match=r"\.fits, \.parquet"):
        assemble(parts[0], tmp_path / "labels.hdf5", spec=SPEC)
    assert not list(tmp_path.glob(".labels*"))


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\x80\x04junk", b"SIMPLE  =   T"])
def test_broken_files_are_one_clear_error(tmp_path, suffix, content):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(InputFileError, match="broken"):
        Catalogue.read(path)


def test_tables_of_others_are_refused(tmp_path):
    table = Table({"a": [1.0]})
    for suffix, form in ((".fits", "fits"), (".vot", "votable"), (".ecsv", "ascii.ecsv")):
        path = tmp_path / f"other{suffix}"
        table.write(path, format=form)
        with pytest.raises(InputFileError, match="not a catalogue written by maury"):
            Catalogue.read(path)


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".vot", ".ecsv"])
def test_flags_of_32_bits_as_earlier_versions_wrote_them_are_read(tmp_path, suffix):
    columns = tuple(replace(c, kind="int32") if c.name == "flags" else c for c in SPEC.columns)
    rows = make_rows(0, 5, np.random.default_rng(1))
    flags = np.array([0, 1, 2**18, 2**30, 2**20 | 1], np.int32)
    rows["flags"] = flags
    write_part(tmp_path / "part.parquet", CatalogueSpec(columns, SPEC.metadata), rows)
    out = tmp_path / f"old{suffix}"
    assemble([tmp_path / "part.parquet"], out, spec=CatalogueSpec(columns, SPEC.metadata))
    found = Catalogue.read(out).table["flags"]
    np.testing.assert_array_equal(found, flags)
    assert found.dtype.kind == "i"
    assert found.dtype.itemsize == 8
    assert found.description == "Quality flags, a bit mask"
    assert not warn(np.asarray(found) & Flag.SPIKES).any()
    assert (np.asarray(found) & Flag.BINARY_SUSPECTED == 0).all()


FEW = ("id", "teff", "teff_error", "flags", "warn", "snr")
PART = 16384


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A catalogue of three parts and more, in all formats, and its rows."""
    folder = tmp_path_factory.mktemp("long")
    first = write_many(folder / "long.parquet", 3, names=FEW)
    for suffix in set(SUFFIXES) - {".parquet"}:
        write_stored(Catalogue.open(first), folder / f"long{suffix}")
    return folder, catalogue_rows(PART)


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_blocks_are_the_rows_in_order_from_any_row_on(long, suffix):
    catalogue = Catalogue.open(long[0] / f"long{suffix}")
    assert len(catalogue) == 3 * PART
    for start in (0, 5, PART, PART + 7, 3 * PART - 1):
        blocks = list(catalogue.blocks(["teff", "id"], start=start))
        # Blocks of text are so many bytes.
        assert max(map(len, blocks)) <= PART + (suffix == ".ecsv") * PART
        assert blocks[0].column_names == ["teff", "id"]
        for name in ("teff", "id"):
            found = [value for block in blocks for value in block[name].to_pylist()]
            assert len(found) == 3 * PART - start
            wanted = long[1][name].tolist()
            assert str(found[:9]) == str(
                [wanted[(start + k) % PART] for k in range(len(found[:9]))]
            )
            assert str(found[-1]) == str(wanted[-1])
    np.testing.assert_array_equal(catalogue.column("snr"), np.tile(long[1]["snr"], 3))
    with pytest.raises(ColumnError, match="has no column 'tef'"):
        next(catalogue.blocks(["tef"]))


def test_chosen_rows_are_a_catalogue(long, tmp_path):
    catalogue = Catalogue.open(long[0] / "long.fits")
    chosen = np.random.default_rng(1).random(len(catalogue)) < 0.3
    write_stored(catalogue.only(chosen), tmp_path / "some.parquet")
    expected = np.tile(long[1]["teff"], 3)[chosen]
    np.testing.assert_array_equal(Catalogue.read(tmp_path / "some.parquet").table["teff"], expected)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process stands in /proc")
@pytest.mark.parametrize("suffix", [*SUFFIXES, ".cds"])
@pytest.mark.parametrize("way", ["to", "from"])
def test_memory_of_convert_does_not_grow_with_the_rows(tmp_path, suffix, way):
    if (way, suffix) == ("from", ".cds"):
        pytest.skip("nothing reads it")
    if suffix == ".cds":
        pytest.importorskip("cdspyreadme")
    grown = []
    for n_part in (3, 15):
        first = write_many(tmp_path / f"first{n_part}.parquet", n_part, names=FEW)
        source, out = first, tmp_path / f"c{n_part}{suffix}"
        if way == "from":
            write_stored(Catalogue.open(first), out, overwrite=True)
            source, out = out, tmp_path / f"back{n_part}.fits"
        imports = "import astropy.io.votable, astropy.table, pyarrow.parquet, pyarrow.csv\n"
        imports += "import pyarrow.compute\nfrom maury.report.publish.convert import convert"
        if suffix == ".cds":
            imports += "\nimport cdspyreadme"
        grown.append(growth_mb(imports, "convert(sys.argv[3], sys.argv[4])", source, out))
    # Of five times the rows, held whole, at least four times as much. What is read ahead is
    # bounded, but not all at work at the smaller size: 22, 44, 63 MB of 3, 15, 60 parts of ECSV.
    assert grown[1] < 1.5 * grown[0] + 16, grown


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process stands in /proc")
def test_info_of_a_catalogue_holds_a_column_at_a_time(tmp_path):
    code = "show(Catalogue.open(sys.argv[3]))"
    imports = "import pyarrow.parquet, pyarrow.compute, numpy\nimport maury.survey.summary\n"
    imports += "from maury.prediction.catalogue import Catalogue\n"
    imports += "from maury.cli.model import _show_catalogue as show"
    grown = []
    for n_part in (2, 12):
        path = write_many(tmp_path / f"c{n_part}.parquet", n_part)
        grown.append(growth_mb(imports, code, path))
    # 160 000 rows more are 9 MB for a column with what its quantiles take, and 91 for all.
    assert grown[1] < grown[0] + 20, grown


def test_ecsv_is_what_astropy_writes_and_reads(tmp_path):
    rng = np.random.default_rng(2)
    pieces = [*"ab", " ", '"', "'", "\t", "#", ",", "\\", "é", "nan", "-", "1e5", "\u2028"]
    texts = ["".join(rng.choice(pieces, rng.integers(0, 6))).strip() for _ in range(500)]
    numbers = rng.normal(size=500) * 10.0 ** rng.integers(-300, 300, 500)
    numbers[:5] = np.nan, np.inf, -np.inf, 1e16, -0.0
    table = Table({"id": texts, "teff": numbers, "flags": np.arange(500), "warn": numbers > 0})
    table.meta = {"maury": {"simulated": True}}
    for name in table.colnames:
        table[name].description, table[name].meta["ucd"] = f"what {name} is", ""
    table.write(tmp_path / "theirs.ecsv", format="ascii.ecsv")
    write_stored(Catalogue(table, table.meta["maury"]).stored(), tmp_path / "ours.ecsv")
    assert (tmp_path / "ours.ecsv").read_bytes() == (tmp_path / "theirs.ecsv").read_bytes()
    again = Catalogue.read(tmp_path / "ours.ecsv").table
    for name in table.colnames:
        np.testing.assert_array_equal(again[name], table[name])


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".ecsv", ".parquet"])
def test_whole_numbers_of_eight_bytes_and_lists_of_others(tmp_path, suffix):
    table = Table({"id": ["a", "b"], "source_id": np.array([2**60 + 1, -5])})
    write_stored(Catalogue(table, {}).stored(), tmp_path / f"c{suffix}")
    assert Catalogue.read(tmp_path / f"c{suffix}").table["source_id"].tolist() == [2**60 + 1, -5]
    table["xp"] = np.arange(6.0).reshape(2, 3)
    stored = Catalogue(table, {}).stored()
    assert [block["xp"].to_pylist() for block in stored.blocks(["xp"])] == [[[0, 1, 2], [3, 4, 5]]]
    np.testing.assert_array_equal(stored.table()["xp"], table["xp"])
    with pytest.raises(
        InputFileError, match=r"'xp' holds lists or the like; .* take the column out"
    ):
        write_stored(stored, tmp_path / f"more{suffix}")


def test_vectors_that_others_added_to_fits_are_read(tmp_path, parts):
    assemble(parts[0], tmp_path / "c.fits", spec=SPEC)
    with fits.open(tmp_path / "c.fits") as hdus:
        added = fits.Column("xp", "3E", array=np.arange(27.0).reshape(9, 3))
        unsigned = fits.Column("n", "I", bzero=32768, array=np.arange(9, dtype=np.uint16) + 40000)
        columns = hdus[1].columns + fits.ColDefs([added, unsigned])
        both = fits.HDUList([hdus[0], fits.BinTableHDU.from_columns(columns)])
        both.writeto(tmp_path / "more.fits")
    table = Catalogue.read(tmp_path / "more.fits").table
    np.testing.assert_array_equal(table["xp"], np.arange(27.0).reshape(9, 3))
    assert table["n"].tolist() == list(range(40000, 40009))
    assert table["id"].tolist() == [
        *(f"a{k}" for k in range(5)),
        *(f"longer-{k}" for k in range(5, 9)),
    ]


@pytest.mark.parametrize("suffix", [".fits", ".vot", ".parquet"])
def test_a_catalogue_that_lacks_rows_is_said_to(tmp_path, long, suffix):
    content = (long[0] / f"long{suffix}").read_bytes()
    tail = {".vot": -400}.get(suffix, len(content))
    middle = len(content) // 2 // 4 * 4
    # A piece out of the middle, so that head and end are those of a whole file.
    (tmp_path / f"cut{suffix}").write_bytes(
        content[:middle] + content[middle + 4096 : tail] + content[tail:]
    )
    with pytest.raises(InputFileError, match="cut"):
        Catalogue.read(tmp_path / f"cut{suffix}")
