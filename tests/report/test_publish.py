"""Catalogues as they are published: VOTable, FITS, VOParquet, CDS, and the footprint."""

import importlib.util
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from astropy.io import ascii as ascii_io
from astropy.io import fits, votable
from astropy.io.votable.ucd import check_ucd
from astropy.table import Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from builders.catalogues import catalogue_rows, write_catalogue
from maury.cli.app import app
from maury.errors import ColumnError, ConfigError, MauryError, MissingExtra, OutputExists
from maury.labels.columns import Column
from maury.labels.definitions import LABELS
from maury.labels.flags import Flag
from maury.prediction.catalogue import SUFFIXES, Catalogue, CatalogueSpec, assemble, write_part
from maury.prediction.votable import NULLS
from maury.report.publish import cds
from maury.report.publish.cds import Heading
from maury.report.publish.convert import OUTPUTS, convert
from maury.report.publish.footprint import Footprint

needs_cds = pytest.mark.skipif(
    importlib.util.find_spec("cdspyreadme") is None, reason="cdspyreadme (maury[cds]) is absent"
)
needs_moc = pytest.mark.skipif(
    importlib.util.find_spec("mocpy") is None, reason="mocpy (maury[moc]) is absent"
)
MODEL = {"preset": "maury", "citation": "maury (CITATION.cff)", "checksum": "0" * 64}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("source") / "labels.parquet"
    write_catalogue(path, 60, model=MODEL)
    return path


def assert_equal(left: Catalogue, right: Catalogue) -> None:
    assert left.table.colnames == right.table.colnames
    assert left.metadata == right.metadata
    for name in left.table.colnames:
        np.testing.assert_array_equal(left.table[name], right.table[name], err_msg=name)
        for what in ("unit", "description"):
            assert getattr(left.table[name], what) == getattr(right.table[name], what)
        assert left.table[name].meta["ucd"] == right.table[name].meta["ucd"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_format_converts_into_every_other_and_back(tmp_path, source, suffix):
    there = tmp_path / f"there{suffix}"
    assert convert(source, there) == 60
    assert_equal(Catalogue.read(there), Catalogue.read(source))
    convert(there, tmp_path / "back.parquet")
    assert_equal(Catalogue.read(tmp_path / "back.parquet"), Catalogue.read(source))
    assert {p.name for p in tmp_path.iterdir()} == {there.name, "back.parquet"}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_rows_are_selected_by_columns_and_flags(tmp_path, source, suffix):
    whole, out = Catalogue.read(source), tmp_path / f"some{suffix}"
    teff, warn = np.asarray(whole.table["teff"]), np.asarray(whole.table["warn"])
    middle = float(np.nanmedian(teff))
    n_row = convert(source, out, where=f"teff > {middle!r} & not warn")
    kept = (teff > middle) & ~warn
    found = Catalogue.read(out)
    assert n_row == len(found) == kept.sum() > 0
    assert found.table["id"].tolist() == np.asarray(whole.table["id"])[kept].tolist()
    assert found.simulated == whole.simulated
    assert "teff >" in found.metadata["selection"]["where"]
    assert found.metadata["selection"]["of"] == len(whole)
    assert found.table["teff"].unit == whole.table["teff"].unit


def test_a_selection_by_flag_or_of_nothing_is_a_catalogue_too(tmp_path, source):
    flag = Flag.LOW_SNR
    flags = np.asarray(Catalogue.read(source).table["flags"])
    out = tmp_path / "some.fits"
    assert convert(source, out, where=f"not {flag.name}") == ((flags & flag.value) == 0).sum()
    assert convert(source, tmp_path / "none.fits", where="teff < 0") == 0
    assert len(Catalogue.read(tmp_path / "none.fits")) == 0
    with pytest.raises(MauryError, match="is no column"):
        convert(source, tmp_path / "x.fits", where="tefff > 0")
    assert not (tmp_path / "x.fits").exists()


def test_nothing_is_overwritten_and_unknown_formats_are_named(tmp_path, source):
    out = tmp_path / "labels.fits"
    out.write_text("precious")
    with pytest.raises(OutputExists):
        convert(source, out)
    assert out.read_text() == "precious"
    with pytest.raises(ConfigError, match=r"\.parquet"):
        convert(source, tmp_path / "labels.doc")
    with pytest.raises(ConfigError, match="ReadMe"):
        convert(source, tmp_path / "other.fits", heading=Heading())
    assert ".cds" in OUTPUTS


def schema():
    etree = pytest.importorskip("lxml.etree", reason="lxml is absent: no validation by schema")
    path = Path(votable.__file__).parent / "data" / "VOTable.v1.4.xsd"
    return etree.XMLSchema(etree.parse(str(path))), etree


def test_votable_passes_validator_and_schema(tmp_path, source):
    out = tmp_path / "labels.vot"
    convert(source, out)
    assert "found no violations" in votable.validate(out, output=None)
    rules, etree = schema()
    assert rules.validate(etree.parse(str(out))), rules.error_log
    document = votable.parse(out, verify="exception")
    assert document.version == "1.4"
    table = document.get_first_table()
    assert table.nrows == len(table.array) == 60
    for field in table.fields:
        assert check_ucd(field.ucd, check_controlled_vocabulary=True), field.ucd
        assert field.description
    flags = next(field for field in table.fields if field.name == "flags")
    assert flags.values.null == NULLS["int64"]
    assert {i.name: i.value for i in document.resources[0].infos}["simulated"] == "true"
    assert "SIMULATED" in document.resources[0].description


def test_the_validator_finds_what_is_wrong(tmp_path, source):
    out = tmp_path / "labels.vot"
    convert(source, out)
    out.write_text(out.read_text("utf-8").replace('ucd="stat.snr"', 'ucd="no such ucd"'), "utf-8")
    assert "found no violations" not in votable.validate(out, output=None)
    _, etree = schema()
    out.write_text(out.read_text("utf-8").replace("<RESOURCE", "<SOURCE", 1), "utf-8")
    with pytest.raises(etree.XMLSyntaxError):
        etree.parse(str(out))


def test_astropy_reads_the_rows_of_a_votable_as_they_were(tmp_path, source):
    out = tmp_path / "labels.vot"
    convert(source, out)
    theirs = votable.parse_single_table(out).to_table(use_names_over_ids=True)
    ours = Catalogue.read(source).table
    for name in ours.colnames:
        values = theirs[name]
        if ours[name].dtype.kind == "f":
            values = np.ma.filled(values, np.nan)
        np.testing.assert_array_equal(np.asarray(values), ours[name], err_msg=name)


def test_votables_that_astropy_wrote_are_read_too(tmp_path, source):
    out = tmp_path / "labels.vot"
    convert(source, out)
    document = votable.parse(out)
    for form in ("tabledata", "binary2"):
        document.get_first_table().format = form
        document.to_xml(str(tmp_path / f"{form}.vot"))
        again = Catalogue.read(tmp_path / f"{form}.vot")
        np.testing.assert_array_equal(again.table["teff"], Catalogue.read(source).table["teff"])
        np.testing.assert_array_equal(again.table["id"], Catalogue.read(source).table["id"])


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\0"), max_size=12)


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    names=st.lists(TEXT, min_size=1, max_size=5),
    number=st.floats(allow_nan=True, width=64),
    bits=st.integers(-(2**63) + 1, 2**63 - 1),
    truth=st.booleans(),
    description=st.text(min_size=1, max_size=40),
)
def test_any_row_survives_votable_and_parquet(tmp_path, names, number, bits, truth, description):
    n = len(names)
    columns = (
        Column("id", "", "meta.id", "Name", "str"),
        Column("x", "km/s", "phys.veloc", description, "float64"),
        Column("flags", "", "meta.code.qual", "Bits", "int64"),
        Column("warn", "", "meta.code.qual", "Warned", "bool"),
    )
    spec = CatalogueSpec(columns, {"simulated": False, "note": description})
    rows = {
        "id": np.array(names, dtype=np.str_),
        "x": np.full(n, number),
        "flags": np.full(n, bits),
        "warn": np.full(n, truth),
    }
    part = tmp_path / "part.parquet"
    write_part(part, spec, rows)
    for suffix in (".vot", ".parquet"):
        out = tmp_path / f"c{suffix}"
        assemble([part, part], out, spec=spec, overwrite=True)
        found = Catalogue.read(out)
        assert found.metadata["note"] == description
        for name, values in rows.items():
            expected = np.concatenate([values, values])
            if name == "id":
                # numpy's fixed-width strings have no trailing zeros, and neither have ours.
                assert [str(v) for v in found.table[name]] == [str(v) for v in expected]
            else:
                np.testing.assert_array_equal(found.table[name], expected)


def test_fits_has_ucds_units_nulls_and_the_mark_of_simulated_spectra(tmp_path, source):
    out = tmp_path / "labels.fits"
    convert(source, out)
    with fits.open(out) as hdus:
        hdus.verify("exception")
        header, columns = hdus[1].header, hdus[1].columns
        assert hdus[0].header["SIMULATE"] is header["SIMULATE"] is True
        for number, column in enumerate(columns, start=1):
            assert check_ucd(header[f"TUCD{number}"], check_controlled_vocabulary=True)
            assert header[f"TCOMM{number}"]
            assert (f"TNULL{number}" in header) == (column.format == "K")
        assert columns["flags"].null == NULLS["int64"]
        assert columns["parallax"].unit == "mas"


def test_parquet_carries_a_votable_without_data(tmp_path, source):
    import pyarrow.parquet as pq

    about = pq.read_schema(source).metadata
    assert about[b"IVOA.VOTable-Parquet.version"] == b"1.0"
    content = about[b"IVOA.VOTable-Parquet.content"]
    rules, etree = schema()
    assert rules.validate(etree.fromstring(content)), rules.error_log
    table = votable.parse(io.BytesIO(content), verify="exception").get_first_table()
    assert [field.name for field in table.fields] == pq.read_schema(source).names
    assert len(table.array) == 0
    assert b"<DATA>" not in content


def test_parquet_is_read_by_astropy_with_units_and_by_pandas(source):
    import pandas as pd

    theirs = Table.read(source, format="parquet.votable")
    ours = Catalogue.read(source).table
    assert theirs["teff"].unit == "K"
    assert theirs["teff"].description == "Effective temperature"
    np.testing.assert_array_equal(np.ma.filled(theirs["teff"], np.nan), ours["teff"])
    frame = pd.read_parquet(source)
    np.testing.assert_array_equal(frame["ra"], ours["ra"])


def test_parquet_opens_in_lsdb(source):
    lsdb = pytest.importorskip("lsdb", reason="lsdb is absent: pip install lsdb to run this test")
    import pandas as pd

    frame = pd.read_parquet(source)
    found = lsdb.from_dataframe(frame, ra_column="ra", dec_column="dec").compute()
    assert sorted(found["id"]) == sorted(frame["id"])


@needs_cds
def test_cds_table_is_read_back_with_equal_values(tmp_path, source):
    out = tmp_path / "labels.cds"
    heading = Heading("Labels of stars", ("Newton I.", "Kepler J."), bibcode="2026A&A...000A...1N")
    assert convert(source, out, heading=heading) == 60
    assert {p.name for p in out.iterdir()} == {"ReadMe", "labels.dat"}
    theirs = ascii_io.read(str(out / "labels.dat"), format="cds", readme=str(out / "ReadMe"))
    ours = Catalogue.read(source).table
    assert len(theirs) == len(ours)
    renamed = {"ra": "RAdeg", "dec": "DEdeg", "teff_error": "e_teff", "parallax_error": "e_plx"}
    for name, new in renamed.items():
        assert name in ours.colnames
        assert new in theirs.colnames
    for column, name in zip(theirs.itercols(), ours.colnames, strict=True):
        values = ours[name]
        if values.dtype.kind == "f":
            decimals = cds.DECIMALS.get(str(values.unit or ""), cds.OTHER_DECIMALS)
            rounded = [float(f"{v:.{decimals}f}") for v in values]
            np.testing.assert_array_equal(np.ma.filled(column, np.nan), rounded, err_msg=name)
        elif values.dtype.kind == "U":
            escaped = [v.encode("unicode_escape").decode() for v in values]
            assert list(column) == escaped
        else:
            np.testing.assert_array_equal(column, np.asarray(values).astype(int))
    assert str(theirs["teff"].unit) == "K"
    assert str(theirs["m_h"].unit).startswith("dex(")


@needs_cds
def test_cds_table_is_that_of_cdspyreadme_to_the_byte(tmp_path, source):
    """Its writer takes a millisecond a row; ours has to give the same lines."""
    from astropy.table import MaskedColumn
    from cdspyreadme import CDSTablesMaker

    convert(source, tmp_path / "labels.cds")
    written = (tmp_path / "labels.cds" / "labels.dat").read_text("ascii")
    (rows,) = Catalogue.open(source).blocks()
    table, forms = Table(), {}
    for about in Catalogue.open(source).columns:
        column = cds._CdsColumn.of(about)
        column.see(rows[about.name])
        values, missing = column.values(rows[about.name])
        table[column.name] = MaskedColumn(values, mask=missing)
        if column.decimals is not None:
            forms[column.name] = f"F{column.width}.{column.decimals}"
    maker = CDSTablesMaker(outfolder=str(tmp_path))
    entry = maker.addTable(table, name="theirs.dat")
    for name, form in forms.items():
        entry.get_column(name).set_format(form)
    maker.writeCDSTables()
    theirs = (tmp_path / "theirs.dat").read_text("ascii")
    # cdspyreadme writes a NaN as such where it is not masked, and masks blank.
    assert written == theirs


@needs_cds
def test_readme_tells_what_it_should_within_80_columns(tmp_path, source):
    out = tmp_path / "labels.cds"
    convert(source, out, heading=Heading("A title", ("Newton I.", "Kepler J.")))
    text = (out / "ReadMe").read_text("ascii")
    assert max(map(len, text.splitlines())) <= 80
    for words in ("A title", "Newton I., Kepler J.", "SIMULATED", "TRAINING_STAR", "Byte-by-byte"):
        assert words in text
    width = len((out / "labels.dat").read_text("ascii").splitlines()[0])
    assert f" {width} " in text
    assert set(map(len, (out / "labels.dat").read_text("ascii").splitlines())) == {width}


@needs_cds
def test_texts_like_nan_are_no_missing_numbers(tmp_path):
    rows = catalogue_rows(3)
    rows["id"] = np.array(["nan", "banana", "n\\0n"])
    rows["teff"][:] = np.nan
    write_catalogue(tmp_path / "c.parquet", rows=rows)
    convert(tmp_path / "c.parquet", tmp_path / "c.cds")
    lines = (tmp_path / "c.cds" / "labels.dat").read_text("ascii").splitlines()
    assert [line.split()[0] for line in lines] == ["nan", "banana", r"n\\0n"]
    assert "nan" not in "".join(line[10:] for line in lines)
    readme = str(tmp_path / "c.cds" / "ReadMe")
    table = ascii_io.read(str(tmp_path / "c.cds" / "labels.dat"), format="cds", readme=readme)
    assert table["teff"].mask.all()


@needs_cds
def test_the_cds_takes_no_empty_table(tmp_path):
    write_catalogue(tmp_path / "c.parquet", rows=catalogue_rows(0))
    with pytest.raises(ConfigError, match="no rows"):
        convert(tmp_path / "c.parquet", tmp_path / "c.cds")
    assert not (tmp_path / "c.cds").exists()


def test_missing_extras_are_named(tmp_path, source, monkeypatch):
    monkeypatch.setitem(sys.modules, "cdspyreadme", None)
    with pytest.raises(MissingExtra, match=r"maury\[cds\]"):
        convert(source, tmp_path / "c.cds")
    monkeypatch.setitem(sys.modules, "mocpy", None)
    with pytest.raises(MissingExtra, match=r"maury\[moc\]"):
        Footprint.of(source)


def cap(ra, dec, radius_deg, n, rng):
    """Positions spread evenly over a cap, by rotation of one about the pole."""
    z = rng.uniform(np.cos(np.radians(radius_deg)), 1, n)
    phi = rng.uniform(0, 2 * np.pi, n)
    r = np.sqrt(1 - z**2)
    point = np.stack([r * np.cos(phi), r * np.sin(phi), z])
    tilt, turn = np.radians(90 - dec), np.radians(ra)
    about_y = np.array(
        [[np.cos(tilt), 0, np.sin(tilt)], [0, 1, 0], [-np.sin(tilt), 0, np.cos(tilt)]]
    )
    about_z = np.array(
        [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    )
    x, y, z = about_z @ about_y @ point
    return np.degrees(np.arctan2(y, x)) % 360, np.degrees(np.arcsin(np.clip(z, -1, 1)))


@needs_moc
@pytest.mark.parametrize(("ra", "dec"), [(0.0, 0.0), (120.0, -45.0), (10.0, 89.0), (359.0, -90.0)])
def test_the_footprint_of_a_cap_is_the_cap(ra, dec):
    lon, lat = cap(ra, dec, 8.0, 20_000, np.random.default_rng(3))
    found = Footprint.of_positions(lon, lat, resolution_deg=0.5)
    assert found.order == 7
    exact = 2 * np.pi * (1 - np.cos(np.radians(8.0))) * np.degrees(1) ** 2
    # The edge adds about half a cell all around.
    edge = 2 * np.pi * 8.0 * found.resolution_deg
    assert exact * 0.97 < found.area_deg2 < exact + edge
    inside = found.moc.contains_lonlat(*(np.atleast_1d(v) for v in lonlat(ra, dec)))
    assert inside.all()
    far = lonlat((ra + 180) % 360, -dec)
    assert not found.moc.contains_lonlat(*(np.atleast_1d(v) for v in far)).any()


def lonlat(ra, dec):
    from astropy import units

    return ra * units.deg, dec * units.deg


@needs_moc
def test_density_sets_the_order():
    rng = np.random.default_rng(4)
    few = Footprint.of_positions(*cap(50, 20, 8.0, 200, rng))
    many = Footprint.of_positions(*cap(50, 20, 8.0, 20_000, rng))
    assert few.order < many.order
    exact = 2 * np.pi * (1 - np.cos(np.radians(8.0))) * np.degrees(1) ** 2
    for found in (few, many):
        cells = found.moc.sky_fraction * 12 * 4**found.order
        assert found.n_row / cells >= 10
        assert found.area_deg2 > 0.95 * exact


@needs_moc
def test_maps_are_written_and_read_back(tmp_path, source):
    from mocpy import MOC

    found = Footprint.of(source, order=5)
    assert found.simulated
    for suffix, form in ((".fits", "fits"), (".json", "json")):
        path = tmp_path / f"map{suffix}"
        found.write(path)
        assert MOC.load(str(path), format=form) == found.moc
        with pytest.raises(OutputExists):
            found.write(path)
    assert fits.getheader(tmp_path / "map.fits", 1)["SIMULATE"] is True
    cells = json.loads((tmp_path / "map.json").read_text())
    assert sum(len(v) for v in cells.values()) > 0
    with pytest.raises(ConfigError, match=r"\.json"):
        found.write(tmp_path / "map.png")


@needs_moc
def test_rows_without_a_position_are_counted(tmp_path):
    found = Footprint.of_positions([10.0, np.nan, 20.0, 30.0], [0.0, 0.0, np.nan, 91.0], order=4)
    assert (found.n_row, found.n_left_out) == (1, 3)
    with pytest.raises(ColumnError, match="none of the 2"):
        Footprint.of_positions([np.nan] * 2, [0.0] * 2)
    rows = catalogue_rows(5)
    del rows["ra"]
    with pytest.raises(ColumnError, match="'ra'"):
        Footprint.of(write_catalogue(tmp_path / "c.parquet", rows=rows))


@needs_moc
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"order": 5, "resolution_deg": 1.0}, "not both"),
        ({"order": 13}, "0 to 12"),
        ({"order": -1}, "0 to 12"),
        ({"resolution_deg": 0.0}, "at least"),
        ({"resolution_deg": float("nan")}, "at least"),
    ],
)
def test_wrong_resolutions(given, message):
    with pytest.raises(ConfigError, match=message):
        Footprint.of_positions([1.0], [1.0], **given)


@needs_moc
def test_resolution_is_the_largest_side_of_a_cell():
    for wanted in (60.0, 2.0, 1.0, 0.1):
        found = Footprint.of_positions([1.0], [1.0], resolution_deg=wanted)
        assert found.resolution_deg <= wanted
        assert found.order == 0 or 2 * found.resolution_deg > wanted


@needs_cds
@needs_moc
def test_commands(tmp_path, source):
    run = CliRunner().invoke
    out = tmp_path / "labels.cds"
    command = ["convert", str(source), str(out), "--title", "My stars", "--author", "Newton I."]
    assert "60 rows" in run(app, command).output
    assert "My stars" in (out / "ReadMe").read_text()
    assert "60 rows" in run(app, ["convert", str(source), str(tmp_path / "c.vot")]).output
    done = run(app, ["footprint", str(source), str(tmp_path / "m.json"), "--resolution", "2"])
    assert "square degrees" in done.output
    assert "SIMULATED" in done.output


def test_columns_of_a_catalogue_are_those_it_was_written_with(source):
    spec = CatalogueSpec.for_labels(
        LABELS,
        survey_columns=["star_id", "ra", "dec", "parallax", "parallax_error"],
        metadata={},
        quantiles=True,
        coverage=True,
    )
    assert Catalogue.open(source).columns == Catalogue.read(source).stored().columns == spec.columns


@pytest.mark.skipif(shutil.which("xmllint") is None, reason="xmllint is not installed")
def test_votable_passes_xmllint(tmp_path, source):
    convert(source, tmp_path / "c.vot")
    path = Path(votable.__file__).parent / "data" / "VOTable.v1.4.xsd"
    command = ["xmllint", "--noout", "--schema", str(path), str(tmp_path / "c.vot")]
    assert subprocess.run(command, check=False, capture_output=True).returncode == 0
