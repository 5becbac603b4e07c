import json
import os
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import xarray as xr

from maury.errors import (
    ColumnError,
    ConfigError,
    IdentifierError,
    InputFileError,
    LengthMismatch,
    OutputBusy,
    OutputExists,
    ResumeMismatch,
    RowError,
    SurveyFileError,
    UnknownName,
    WavelengthError,
)
from maury.labels.columns import Column
from maury.labels.definitions import Label
from maury.survey.store import Survey, SurveyWriter

NO_ROWS: list[int] = []
WAVE = 8420.0 + 0.4 * np.arange(16)


def writer(path, n=10, **options):
    settings = {
        "n_star": n,
        "wave_aa": WAVE,
        "medium": "air",
        "columns": ["snr", "teff", "parallax"],
        "simulated": True,
        "chunk": 4,
    }
    return SurveyWriter(path, **{**settings, **options})


def fill(target, start, stop, rng):
    n = stop - start
    target.write(
        start,
        rng.normal(1.0, 0.01, (n, WAVE.size)),
        np.full((n, WAVE.size), 1e4),
        id=[f"star-é{i}" for i in range(start, stop)],
        star_id=[f"s{i // 2}" for i in range(start, stop)],
        snr=np.arange(start, stop, dtype=float),
    )


@pytest.fixture
def store(tmp_path, rng):
    path = tmp_path / "s.zarr"
    with writer(path) as target:
        fill(target, 0, 8, rng)
        fill(target, 8, 10, rng)
    return path


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def test_round_trip_and_lazy_reading(store):
    survey = Survey.open(store)
    assert (len(survey), survey.n_pixel, survey.medium, survey.simulated) == (10, 16, "air", True)
    np.testing.assert_array_equal(survey.wave_aa, WAVE)
    batches = list(survey.batches(3))
    assert [len(b) for b in batches] == [3, 3, 3, 1]
    assert np.concatenate([b.columns["id"] for b in batches]).tolist() == survey.id.tolist()
    assert survey.id[9] == "star-é9"
    assert np.isnan(survey.column("teff")).all()
    assert survey.label_names == ("teff",)
    np.testing.assert_array_equal(survey.column("snr"), np.arange(10.0))
    assert "SIMULATED" in repr(survey)


def test_rows_in_any_order_equal_batches(store):
    survey = Survey.open(store)
    whole = survey.batch(0, 10)
    index = [9, 0, 5, 5]
    some = survey.rows(index)
    np.testing.assert_array_equal(some.spectra.flux, whole.spectra.flux[index])
    assert some.columns["id"].tolist() == whole.columns["id"][index].tolist()


@pytest.mark.parametrize(
    "index", [[-1], [-10, 3], slice(-3, None), np.arange(10) % 4 == 1, 7, NO_ROWS]
)
def test_rows_are_addressed_as_in_numpy(store, index):
    survey = Survey.open(store)
    whole, some = survey.batch(0, 10), survey.rows(index)
    expected = np.atleast_1d(np.arange(10)[np.array(index, int) if index is NO_ROWS else index])
    np.testing.assert_array_equal(some.spectra.flux, whole.spectra.flux[expected])
    np.testing.assert_array_equal(some.spectra.ivar, whole.spectra.ivar[expected])
    assert some.column("id").tolist() == survey.id[expected].tolist()


@pytest.mark.parametrize("index", [[10], [-11], [True], [0.5], ["1"]])
def test_rows_that_do_not_exist_are_an_error(store, index):
    with pytest.raises(RowError, match=r"s\.zarr"):
        Survey.open(store).rows(index)


def test_batches_count_from_the_end(store):
    survey = Survey.open(store)
    last = survey.batch(-4, 10)
    np.testing.assert_array_equal(last.spectra.flux, survey.batch(6, 10).spectra.flux)
    assert last.column("id").tolist() == survey.id[6:].tolist()
    assert last.start == 6
    assert [b.start for b in survey.batches(2, start=-4, stop=-1)] == [6, 8]
    assert [len(b) for b in survey.batches(2, start=-4, stop=-1)] == [2, 1]


@pytest.mark.parametrize("bounds", [(-11, 10), (0, 11), (8, 6), (-2, 0)])
def test_a_batch_that_does_not_exist_is_an_error(store, bounds):
    with pytest.raises(RowError, match="which has 10 rows"):
        Survey.open(store).batch(*bounds)


def test_a_batch_has_rows(store):
    with pytest.raises(ConfigError, match="size = 0"):
        list(Survey.open(store).batches(0))


def test_labels_by_name(store):
    survey = Survey.open(store)
    assert survey.labels(["teff"]).shape == survey.labels("teff").shape == (10, 1)
    assert np.isnan(survey.labels(["logg"])).all()
    for read in (survey.labels, survey.label_errors):
        for wrong in ("Teff", "TEFF", "tef"):
            with pytest.raises(UnknownName, match=f"label '{wrong}'; did you mean 'teff'"):
                read([wrong])
    own = Label(name="mass", symbol="M", unit="Msun", description="Mass", range=(0.1, 9.0))
    assert np.isnan(survey.labels([own])).all()
    with pytest.raises(ColumnError, match="did you mean 'snr'"):
        survey.column("SNR")


def test_a_text_that_is_too_long_is_neither_written_nor_read(tmp_path, monkeypatch):
    long = ["x" * 5000, *"abcdefghi"]
    flux = np.ones((10, WAVE.size))
    with (
        pytest.raises(IdentifierError, match="5000 characters, more than the 4096"),
        writer(tmp_path / "s") as target,
    ):
        target.write(0, flux, flux, id=long, star_id=list("abcdefghij"))
    monkeypatch.setenv("MAURY_LIMITS", "text_characters=10000")
    with writer(tmp_path / "s") as target:
        target.write(0, flux, flux, id=long, star_id=list("abcdefghij"))
    assert Survey.open(tmp_path / "s").id[0] == long[0]
    monkeypatch.delenv("MAURY_LIMITS")
    survey = Survey.open(tmp_path / "s")
    for read in (lambda: survey.id, lambda: survey.batch(0, 2), lambda: survey.rows([3])):
        with pytest.raises(InputFileError, match="5000 characters, more than the 4096"):
            read()
    assert survey.texts("id", 1, 3) == ["a", "b"]


@pytest.mark.skipif(sys.platform != "linux", reason="names of open files stand in /proc")
def test_each_file_is_settled_once(tmp_path, rng, monkeypatch):
    synced: list[str] = []
    fsync = os.fsync

    def counting(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        fsync(number)

    monkeypatch.setattr("maury.survey.writer.COLUMN_CHUNK_STARS", 4)
    with writer(tmp_path / "s", n=64) as target:
        monkeypatch.setattr(os, "fsync", counting)
        for start in range(0, 64, 4):
            fill(target, start, start + 4, rng)
    chunks = [name for name in synced if re.search(r"/flux/c/\d+/0$", name)]
    assert len(chunks) == len(set(chunks)) == 16, "every chunk once, though settled 16 times"
    assert len(Survey.open(tmp_path / "s")) == 64


@pytest.mark.parametrize(
    ("row", "name", "said"), [(13, "one 1", "stand more"), (9, "", "no ident")]
)
def test_identifiers_of_all_chunks_are_compared(tmp_path, rng, monkeypatch, row, name, said):
    monkeypatch.setattr("maury.survey.writer.COLUMN_CHUNK_STARS", 4)
    ids = [f"one {k}" for k in range(16)]
    ids[row] = name
    with (
        pytest.raises(IdentifierError, match=f"1 (rows have|identifiers) ?{said}"),
        writer(tmp_path / "s", n=16) as target,
    ):
        for k in range(0, 16, 4):
            flux = rng.normal(1.0, 0.01, (4, WAVE.size))
            target.write(k, flux, flux, id=ids[k : k + 4], star_id=ids[k : k + 4])
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("start", [-2, 9])
def test_rows_beyond_the_declared_are_not_written(tmp_path, rng, start):
    with pytest.raises(LengthMismatch, match="beyond the 10 declared"), writer(tmp_path / "s") as w:
        fill(w, start, start + 2, rng)
    assert not (tmp_path / "s").exists()


def test_opens_with_plain_xarray(store):
    data = xr.open_zarr(store, consolidated=False)
    assert dict(data.sizes) == {"star": 10, "pixel": 16}
    assert data["flux"].dtype == data["ivar"].dtype == np.float32
    assert data["parallax"].attrs["units"] == "mas"
    assert json.loads((store / "zarr.json").read_text())["zarr_format"] == 3


def test_arrays_that_do_not_agree_are_damage(store):
    head = store / "snr" / "zarr.json"
    content = json.loads(head.read_text("utf-8"))
    content["shape"] = [content["shape"][0] + 1]
    head.write_text(json.dumps(content), "utf-8")
    shutil.rmtree(store / "manifest")
    with pytest.raises(SurveyFileError, match="'star', where others have"):
        Survey.open(store)


def test_nothing_under_the_final_name_until_complete(tmp_path, rng):
    path = tmp_path / "s.zarr"
    with pytest.raises(LengthMismatch, match="8 rows written of 10"), writer(path) as target:
        fill(target, 0, 8, rng)
    assert not path.exists()


def test_resumes_after_the_last_written_row(tmp_path, rng):
    path = tmp_path / "s.zarr"
    first = writer(path, resume_key="a")
    fill(first, 0, 8, rng)
    with pytest.raises(OutputBusy, match=f"process {os.getpid()}"):
        writer(path, resume_key="a")
    del first  # As if its process had died.
    with pytest.raises(ResumeMismatch, match="other settings"):
        writer(path, resume_key="b")
    with writer(path, resume_key="a") as again:
        assert again.done == 8
        fill(again, 8, 10, rng)
    assert len(Survey.open(path)) == 10
    assert not again.partial.exists()


def test_a_failed_write_leaves_nothing(tmp_path, rng):
    path = tmp_path / "s.zarr"
    with pytest.raises(RuntimeError), writer(path) as target:
        fill(target, 0, 8, rng)
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_never_overwrites_silently(store, rng):
    before = Survey.open(store).batch(0, 10).spectra.flux
    with pytest.raises(OutputExists, match="--overwrite"):
        writer(store)
    with writer(store, overwrite=True) as target:
        fill(target, 0, 10, rng)
    assert not np.array_equal(Survey.open(store).batch(0, 10).spectra.flux, before)
    assert [p.name for p in store.parent.iterdir()] == ["s.zarr"]


def test_duplicate_and_empty_ids(tmp_path):
    flux = np.ones((2, WAVE.size))
    with pytest.raises(IdentifierError, match=r"'a'.*2 times"), writer(tmp_path / "a", 2) as target:
        target.write(0, flux, flux, id=["a", "a"], star_id=["a", "a"])
    with (
        pytest.raises(IdentifierError, match="1 rows have no"),
        writer(tmp_path / "b", 2) as target,
    ):
        target.write(0, flux, flux, id=["a", ""], star_id=["a", "b"])


def test_wrong_columns_lengths_and_grids(tmp_path):
    flux = np.ones((2, WAVE.size))
    with pytest.raises(ColumnError, match="'tef'"):
        writer(tmp_path / "a", columns=["tef"])
    with pytest.raises(WavelengthError, match="unsorted"):
        writer(tmp_path / "a", wave_aa=WAVE[::-1])
    with pytest.raises(WavelengthError, match="overlapping"):
        writer(tmp_path / "a", wave_aa=np.repeat(WAVE, 2))
    with pytest.raises(LengthMismatch, match="'snr' has 3"), writer(tmp_path / "a", 2) as target:
        target.write(0, flux, flux, snr=[1, 2, 3])
    with pytest.raises(LengthMismatch, match="beyond"), writer(tmp_path / "b", 1) as target:
        target.write(0, flux, flux)


def test_own_columns(tmp_path):
    own = Column("rotation", "km/s", "phys.veloc.rotat", "Projected rotation")
    with writer(tmp_path / "a", 1, columns=[own]) as target:
        target.write(0, np.ones((1, 16)), np.ones((1, 16)), id=["a"], star_id=["a"], rotation=[3.0])
    survey = Survey.open(tmp_path / "a")
    assert survey.column("rotation") == [3.0]
    with pytest.raises(ColumnError, match="no column 'teff'"):
        survey.column("teff")


def test_unusable_pixels_have_no_weight(tmp_path):
    flux = np.ones((1, 16))
    ivar = np.ones((1, 16))
    flux[0, 0], ivar[0, 1], ivar[0, 2], ivar[0, 3] = np.nan, -1.0, np.inf, np.nan
    with writer(tmp_path / "a", 1) as target:
        target.write(0, flux, ivar, id=["a"], star_id=["a"])
    spectra = Survey.open(tmp_path / "a").batch(0, 1).spectra
    assert spectra.good[0].tolist() == [False] * 4 + [True] * 12


@pytest.mark.parametrize("damage", ["missing", "not zarr", "pickle", "other zarr", "newer", "torn"])
def test_damaged_stores(store, damage):
    header = store / "zarr.json"
    content = json.loads(header.read_text())
    if damage == "missing":
        header.unlink()
    elif damage == "not zarr":
        header.write_text("{")
    elif damage == "pickle":
        header.write_bytes(pickle.dumps(content))
    elif damage == "other zarr":
        content["attributes"] = {}
        header.write_text(json.dumps(content))
    elif damage == "newer":
        content["attributes"]["maury"]["format_version"] = 99
        header.write_text(json.dumps(content))
    else:
        chunk = store / "flux" / "c" / "0" / "0"
        chunk.write_bytes(chunk.read_bytes()[:50])
    with pytest.raises(SurveyFileError):
        Survey.open(store).batch(0, 10)
