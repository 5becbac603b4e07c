"""Catalogues that nobody expects: shown as far as they can be, or one clear error."""

import gzip
import json
import logging

import numpy as np
import pytest
from astropy.table import MaskedColumn, Table

from maury.errors import ColumnError, OutputError
from maury.labels.flags import Flag
from maury.prediction.catalogue import Catalogue
from maury.report.explorer import Explorer
from maury.report.explorer.content import Content
from maury.report.explorer.exporting import FORMATS, write_rows
from maury.report.explorer.plain import plain

HOSTILE = "a\x1b[31m\u202e\x00b"
LISTS = np.ones((3, 2))
OBJECTS = np.array([[1], [1, 2], None], dtype=object)
TEXTS = ["1", "x", "3"]
PLACE = {"ra": [1.0, 2.0, 3.0], "dec": [1.0, 2.0, 3.0], "parallax": [1.0, 2.0, 3.0]}


def made(metadata=(), **columns) -> Catalogue:
    table = Table({"id": ["a", "b", "c"], "teff": [5e3, 5.1e3, 5.2e3], "logg": [1.0, 2.0, 3.0]})
    table["teff_error"] = [1.0, 1.0, 1.0]
    for name, values in columns.items():
        table[name] = values
    return Catalogue(table, {"simulated": True, **dict(metadata)})


@pytest.mark.parametrize(
    ("columns", "metadata"),
    [
        *(({"x": values}, {}) for values in (LISTS, OBJECTS, TEXTS, np.array([1j, 2, 3]))),
        ({"x": np.array([1, 2, 3], dtype=np.longdouble)}, {}),
        ({"x": np.array(["2020-01-01"] * 3, dtype="M8[D]")}, {}),
        ({"x": np.array([b"\xff\x1b", b"", b"a"])}, {}),
        ({"x": [1e308, -1e308, np.nan]}, {}),
        ({"x": np.array([2**64 - 1, 0, 1], dtype=np.uint64)}, {}),
        ({"teff": LISTS}, {}),
        ({"teff": TEXTS}, {}),
        ({"id": LISTS, "star_id": OBJECTS}, {}),
        ({"id": [HOSTILE, "b", "c"]}, {}),
        ({"snr": LISTS, "star_id": [1, 2, 3]}, {}),
        *(({**PLACE, name: v}, {}) for name in PLACE for v in (TEXTS, LISTS, OBJECTS)),
        *(({**PLACE, "parallax_error": v}, {}) for v in (TEXTS, LISTS)),
        ({"ra": [np.inf, 1e300, -5], "dec": [100.0, np.inf, -500]}, {}),
        ({}, {"model": 5, "errors": HOSTILE, "simulated": "x"}),
        ({}, {"flags": [1]}),
        ({}, {"flags": {"A": {"bit": "x"}}}),
    ],
)
def test_odd_columns_are_shown_or_left_out(tmp_path, columns, metadata, caplog):
    with Explorer(made(metadata, **columns), name=HOSTILE) as explorer:
        about = json.loads(explorer.answers.about.body)
        for shown in about["columns"]:
            explorer.content.packed(shown["name"])
            assert np.isfinite([shown[end] for end in ("low", "high", "dark", "bright")]).all()
        explorer.content.packed("flags")
        json.dumps(explorer.answers.stars.labels(0), allow_nan=False)
        catalogue = explorer.content.catalogue
        for suffix, _ in FORMATS.values():
            write_rows(catalogue, np.array([True, False, True]), tmp_path / f"some{suffix}")
            assert len(Catalogue.read(tmp_path / f"some{suffix}")) == 2
    left = {name for name in columns if name not in catalogue.names}
    assert bool(left) == ("are not shown" in caplog.text)
    assert all(name in caplog.text for name in left)


@pytest.mark.parametrize(
    "flags",
    [TEXTS, LISTS, OBJECTS, [1.0, np.inf, 2.0], [0.5, 1.0, 2.0], [1.0, 1e300, 2.0], [1j, 2, 3]],
)
def test_flags_that_are_no_bit_mask_are_one_error(tmp_path, flags):
    with pytest.raises(ColumnError, match="must be one whole number a row, a bit mask"):
        Content(made(flags=np.array(flags)), name="stars.fits", folder=tmp_path)


@pytest.mark.parametrize(
    "flags",
    [
        np.array([8, 2**61 + 1, 2**62]),
        np.array([8, 2**61 + 1, 2**63], dtype=np.uint64),
        np.array([8, 2**52 + 1, np.nan]),
        MaskedColumn([8, 1, 4], mask=[0, 0, 1]),
        np.array([8, 1, 0], dtype=np.uint8),
    ],
)
def test_flags_beyond_the_known_bits_are_those_that_are_known(tmp_path, flags):
    content = Content(made(flags=flags), name="stars.fits", folder=tmp_path)
    planes = np.frombuffer(gzip.decompress(content.packed("flags").read_bytes()), np.uint8)
    low, high = (half.reshape(4, 3).T.copy().view("<i4")[:, 0] for half in np.split(planes, 2))
    assert (low.tolist(), high.tolist()) == ([8, 1, 0], [0, 0, 0])
    counts = {one["name"]: one["count"] for one in content.about()["flags"]}
    assert (counts["LOW_SNR"], counts["NO_SPECTRUM"]) == (1, 1)
    assert sum(counts.values()) == 2
    assert Flag.LOW_SNR.value == 8


def test_masked_values_are_missing():
    masked = MaskedColumn([5e3, 6e3, 7e3], mask=[True, False, False])
    table = plain(made(teff=masked, k=MaskedColumn([1, 2, 3], mask=[0, 1, 0])), "x").table()
    assert np.isnan(table["teff"][0])
    assert np.isnan(table["k"]).tolist() == [False, True, False]
    names = plain(made(id=MaskedColumn(["a", "b", "c"], mask=[0, 1, 0])), "x").table()["id"]
    assert names.tolist() == ["a", "", "c"]


def test_identifiers_of_19_digits_are_saved_whole(tmp_path):
    ids = np.array([4_295_806_720_000_000_001, 5, 6])
    content = Content(made(source_id=ids), name="x", folder=tmp_path)
    for suffix, _ in FORMATS.values():
        write_rows(content.catalogue, np.array([True, False, False]), tmp_path / f"some{suffix}")
        assert int(Catalogue.read(tmp_path / f"some{suffix}").table["source_id"][0]) == ids[0]


def test_what_a_format_cannot_hold_is_one_error(tmp_path):
    catalogue = plain(made(**{HOSTILE: [1.0, 2.0, 3.0]}), "x")
    with pytest.raises(OutputError, match=r"cannot be written as \.fits: .*another format"):
        write_rows(catalogue, np.array([True, False, False]), tmp_path / "some.fits")


def test_names_of_strangers_are_told_to_the_log(caplog):
    caplog.set_level(logging.WARNING)
    plain(made(x=LISTS), "stars.fits")
    assert caplog.messages == ["stars.fits: columns that are no numbers or texts are not shown: x"]
