import json
import os
import pickle

import numpy as np
import pytest
import xarray as xr

from maury.errors import (
    ColumnError,
    IdentifierError,
    LengthMismatch,
    OutputBusy,
    OutputExists,
    ResumeMismatch,
    SurveyFileError,
    WavelengthError,
)
from maury.labels.columns import Column
from maury.survey.store import Survey, SurveyWriter

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


def test_opens_with_plain_xarray(store):
    data = xr.open_zarr(store, consolidated=False)
    assert dict(data.sizes) == {"star": 10, "pixel": 16}
    assert data["flux"].dtype == data["ivar"].dtype == np.float32
    assert data["parallax"].attrs["units"] == "mas"
    assert json.loads((store / "zarr.json").read_text())["zarr_format"] == 3


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
