import shutil
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import fsspec
import numpy as np
import pytest

from maury.errors import MissingExtra, SurveyFileError
from maury.io.addresses import Address, parse
from maury.prediction.streaming import predict
from maury.survey.store import Survey


@pytest.fixture
def in_memory(observed_survey):
    system = fsspec.filesystem("memory")
    system.put(str(observed_survey), "/bucket/observed.zarr", recursive=True)
    yield "memory://bucket/observed.zarr"
    system.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("s3://bucket/a.zarr", "s3://bucket/a.zarr"),
        (Path("s3://bucket/a.zarr"), "s3://bucket/a.zarr"),
        (Path("https://host:80/a.zarr"), "https://host:80/a.zarr"),
        ("file:///tmp/a.zarr", "file:///tmp/a.zarr"),
        (Path("file:///tmp/a.zarr"), "file:///tmp/a.zarr"),
    ],
)
def test_addresses_outlive_being_a_path(given, url):
    found = parse(given)
    assert isinstance(found, Address)
    assert str(found) == url
    assert found.name == "a.zarr"
    assert found.absolute() == found


@pytest.mark.parametrize("path", ["a.zarr", "/tmp/a.zarr", "./s3:a/b", "a/s3://b", "C:/a.zarr"])
def test_paths_stay_paths(path):
    found = parse(path)
    assert found == Path(path) or path == "C:/a.zarr"


def test_a_store_elsewhere_reads_like_one_here(in_memory, observed_survey):
    there, here = Survey.open(in_memory), Survey.open(observed_survey)
    assert repr(there).replace(in_memory, str(observed_survey)) == repr(here)
    for one, other in zip(there.batches(40), here.batches(40), strict=True):
        np.testing.assert_array_equal(one.spectra.flux, other.spectra.flux)
        np.testing.assert_array_equal(one.spectra.ivar, other.spectra.ivar)
        for name in here.column_names:
            np.testing.assert_array_equal(one.columns[name], other.columns[name])


def test_predicts_from_an_address(tmp_path, tiny_model, observed_survey):
    url = observed_survey.absolute().as_uri()
    there = predict(tiny_model, Path(url), tmp_path / "there.parquet").table
    here = predict(tiny_model, observed_survey, tmp_path / "here.parquet").table
    for name in here.colnames:
        np.testing.assert_array_equal(there[name], here[name])


def test_the_fingerprint_follows_the_store(in_memory, observed_survey):
    before = Survey.open(in_memory).fingerprint
    assert Survey.open(in_memory).fingerprint == before
    system = fsspec.filesystem("memory")
    system.put(str(observed_survey / "zarr.json"), "/bucket/observed.zarr/zarr.json")
    assert Survey.open(in_memory).fingerprint != before


@pytest.mark.slow
def test_a_web_server_serves_a_store(tmp_path, observed_survey):
    pytest.importorskip("aiohttp")
    shutil.copytree(observed_survey, tmp_path / "observed.zarr")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        there = Survey.open(f"http://127.0.0.1:{server.server_port}/observed.zarr")
        here = Survey.open(observed_survey)
        np.testing.assert_array_equal(there.batch(3, 9).spectra.flux, here.batch(3, 9).spectra.flux)
        assert there.id.tolist() == here.id.tolist()
    finally:
        server.shutdown()
        server.server_close()


def test_what_is_not_there_is_one_clear_error(tmp_path):
    with pytest.raises(SurveyFileError, match=r"memory://nothing has no zarr\.json"):
        Survey.open("memory://nothing")
    with pytest.raises(SurveyFileError, match="cannot reach nonsense://a"):
        Survey.open("nonsense://a")


def test_a_missing_package_is_named(monkeypatch):
    def url_to_fs(url):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr("fsspec.core.url_to_fs", url_to_fs)
    with pytest.raises(MissingExtra, match=r"Install s3fs .*maury\[cloud\]"):
        Survey.open("s3://bucket/a.zarr")
