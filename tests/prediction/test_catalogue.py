import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from astropy import units
from astropy.io import fits
from astropy.io.votable import parse
from astropy.table import Table

from maury.errors import ConfigError, InputFileError, OutputExists
from maury.labels.definitions import LABELS
from maury.labels.flags import Flag, warn
from maury.prediction.catalogue import SUFFIXES, Catalogue, CatalogueSpec, assemble, write_part

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
