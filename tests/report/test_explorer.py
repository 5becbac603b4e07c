"""The explorer's server, through HTTP and without a browser."""

import gzip
import http.client
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from astropy import units
from astropy.coordinates import Galactocentric, SkyCoord
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from builders.catalogues import QUANTILE_ENDS, catalogue_rows, write_catalogue, write_many
from builders.memory import growth_mb
from builders.surveys import copy_survey
from builders.training_survey import write_survey
from maury.errors import ConfigError
from maury.labels.columns import QUANTILES
from maury.labels.definitions import LABEL_NAMES
from maury.labels.flags import Flag
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.prediction.streaming import predict
from maury.report.cartography.places import galactic, galactocentric, median_distance_kpc
from maury.report.explorer import Explorer
from maury.report.explorer.content import Content
from maury.report.explorer.exporting import FORMATS, selected_rows
from maury.report.explorer.stars import Stars, TrainingStars
from maury.simulation.observing import ObservingModel
from maury.simulation.training_stars import TrainingStarSimulator
from maury.survey.store import Survey, SurveyWriter

N = 60


class Client:
    """Asks an explorer as its own page would."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.cookie = f"maury-{explorer.port}={explorer.key}"

    def ask(self, method, path, *, body=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.explorer.port, timeout=60)
        headers = {"Cookie": self.cookie} | {k.replace("_", "-"): v for k, v in headers.items()}
        headers = {name: value for name, value in headers.items() if value is not None}
        try:
            connection.request(method, path, body=body, headers=headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def get(self, path):
        status, headers, body = self.ask("GET", path)
        assert status == 200, body
        if headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        return body

    def json(self, path):
        return json.loads(self.get(path))

    def column(self, name):
        body = np.frombuffer(self.get(f"/api/column/{name}"), np.uint8)
        if name != "flags":
            return np.ascontiguousarray(body.reshape(4, -1).T).reshape(-1).view("<f4")
        low, high = body.reshape(2, 4, -1)
        return np.ascontiguousarray(np.vstack([low, high]).T).reshape(-1).view("<i8")

    def raw(self, data: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.explorer.port), timeout=60) as one:
            one.sendall(data)
            one.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: one.recv(65536), b""))


def bits(rows, n=N) -> bytes:
    chosen = np.zeros(n, np.uint8)
    chosen[list(rows)] = 1
    return np.packbits(chosen, bitorder="little").tobytes()


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory) -> Catalogue:
    return write_catalogue(tmp_path_factory.mktemp("catalogue") / "stars.fits", N)


@pytest.fixture(scope="module")
def client(catalogue):
    with Explorer(catalogue, name="stars.fits") as explorer:
        yield Client(explorer)


@pytest.fixture(scope="module")
def learnt(tmp_path_factory, tiny_survey, tiny_model):
    """An explorer with the survey and the model that made its catalogue."""
    path = tmp_path_factory.mktemp("learnt") / "labels.parquet"
    predict(tiny_model, tiny_survey, path)
    with Explorer(path, survey=tiny_survey, model=tiny_model) as explorer:
        yield Client(explorer)


def test_columns_arrive_bit_for_bit(client, catalogue) -> None:
    about = client.json("/api/about")
    table = catalogue.table
    assert about["rows"] == N
    assert about["simulated"] is True
    sent = {column["name"]: column for column in about["columns"]}
    for name in (*LABEL_NAMES, "snr", "parallax", "teff_error", "chi2_reduced"):
        assert sent[name]["unit"] == str(table[name].unit or "")
        np.testing.assert_array_equal(client.column(name), np.asarray(table[name]).astype("f4"))
    np.testing.assert_array_equal(client.column("flags"), table["flags"])
    assert "teff_q16" not in sent
    longitude, latitude = galactic(table["ra"], table["dec"])
    np.testing.assert_array_equal(client.column("glon"), longitude.astype("f4"))
    np.testing.assert_array_equal(client.column("glat"), latitude.astype("f4"))


def test_flags_are_counted_and_explained(client, catalogue) -> None:
    told = {flag["name"]: flag for flag in client.json("/api/about")["flags"]}
    assert set(told) == {str(flag.name) for flag in Flag}
    for flag in Flag:
        expected = sum(bool(int(mask) & flag.value) for mask in catalogue.table["flags"])
        assert told[str(flag.name)]["count"] == expected
        assert told[str(flag.name)]["text"] == flag.text
        assert 1 << told[str(flag.name)]["bit"] == flag.value


def test_places_are_those_of_astropy() -> None:
    rng = np.random.default_rng(3)
    ra, dec, distance = rng.uniform(0, 360, 40), rng.uniform(-90, 90, 40), rng.uniform(0.1, 6, 40)
    stars = SkyCoord(ra * units.deg, dec * units.deg, distance * units.kpc)
    frame = Galactocentric(galcen_distance=8.122 * units.kpc, z_sun=20.8 * units.pc)
    there = stars.transform_to(frame).cartesian.xyz.to_value(units.kpc)
    radius, height = galactocentric(ra, dec, median_distance_kpc(ra, dec, 1 / distance))
    np.testing.assert_allclose(radius, np.hypot(there[0], there[1]), rtol=1e-9)
    np.testing.assert_allclose(height, there[2], atol=1e-9)
    known = median_distance_kpc(ra, dec, 1 / distance, error_mas=np.full(40, 1e-4))
    precise = galactocentric(ra, dec, known)
    np.testing.assert_allclose(precise[0], radius, rtol=5e-3)
    longitude, latitude = galactic([0.0, np.nan, 10.0, 20.0], [0.0, 5.0, 95.0, -90.0])
    np.testing.assert_array_equal(np.isnan(longitude), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(latitude), [False, True, True, False])
    assert np.isnan(median_distance_kpc([1.0] * 3, [2.0] * 3, [-1.0, 0.0, np.nan])).all()


@settings(max_examples=12, deadline=None)
@given(chosen=st.sets(st.integers(0, N - 1)), kind=st.sampled_from(sorted(FORMATS)))
def test_a_download_is_the_selection(client, catalogue, tmp_path_factory, chosen, kind) -> None:
    status, headers, body = client.ask("POST", f"/api/download?format={kind}", body=bits(chosen))
    assert status == 200
    rows = sorted(chosen)
    name = re.search(r'filename="([^"]+)"', headers["Content-Disposition"])[1]
    assert name == f"stars-{len(rows)}{FORMATS[kind][0]}"
    path = tmp_path_factory.mktemp("got") / name
    path.write_bytes(body)
    got = Catalogue.read(path)
    assert got.table.colnames == catalogue.table.colnames
    for column in got.table.colnames:
        expected = catalogue.table[column][rows]
        np.testing.assert_array_equal(np.asarray(got.table[column]), np.asarray(expected))
        assert str(got.table[column].unit) == str(expected.unit)
        assert got.table[column].description == expected.description
        assert got.table[column].meta["ucd"] == expected.meta["ucd"]
    assert got.metadata == {**catalogue.metadata, "selection": {"rows": len(rows), "of": N}}
    assert got.simulated


def test_an_expression_is_answered_with_the_rows_that_pass(client, catalogue) -> None:
    text = "m_h+%3C+-0.2+%26+snr+%3E+30+%7C+glat+%3E+60"
    table = catalogue.table
    m_h, snr = (np.asarray(table[name]) for name in ("m_h", "snr"))
    latitude = galactic(table["ra"], table["dec"])[1]
    expected = (m_h < -0.2) & (snr > 30) | (latitude > 60)
    got = selected_rows(client.get(f"/api/where?text={text}"), N)
    np.testing.assert_array_equal(got, expected)
    assert 0 < got.sum() < N
    warned = selected_rows(client.get("/api/where?text=warn"), N)
    np.testing.assert_array_equal(warned, np.asarray(table["warn"]))


def test_symbols_of_own_labels_are_shown(tmp_path) -> None:
    rows = catalogue_rows(9)
    rows = {name: rows[name] for name in ("id", "snr", "teff", "teff_error")}
    table = Catalogue(Table(rows), {"symbols": {"teff": "T", "snr": 3}})
    content = Content(table, name="own", folder=tmp_path, symbols={"snr": "depth"})
    assert {n: c.symbol for n, c in content.columns.items()} == {
        "snr": "depth",
        "teff": "T",
        "teff_error": "error of T",
    }


def test_colours_and_magnitudes_are_those_of_the_catalogue_or_the_survey(
    tmp_path, tiny_survey
) -> None:
    survey = Survey.open(tiny_survey)
    n = len(survey)
    names = ("id", "ra", "dec", "parallax", "parallax_error")
    table = Table({name: survey.column(name) for name in names})
    content = Content(Catalogue(table, {}), name="x", folder=tmp_path, survey=survey)
    apparent = survey.column("phot_g_mean_mag")
    colour = survey.column("phot_bp_mean_mag") - survey.column("phot_rp_mean_mag")
    values = next(content._values(["colour_index", "absolute_magnitude"]))
    np.testing.assert_allclose(values["colour_index"], colour)
    near = (survey.column("parallax") > 20 * survey.column("parallax_error")) & (
        survey.column("parallax_error") > 0
    )
    direct = apparent + 5 * np.log10(survey.column("parallax") / 100)
    assert near.sum() > 5
    np.testing.assert_allclose(values["absolute_magnitude"][near], direct[near], atol=0.05)
    assert content.own.names == list(names)
    # Of a survey of other rows, nothing is taken.
    other = Content(Catalogue(table[: n - 1], {}), name="x", folder=tmp_path, survey=survey)
    assert other.panels()["cmd"] is None
    table["j_m"], table["ks_m"] = np.full(n, 10.0), np.full(n, 9.5)
    own = Content(Catalogue(table, {}), name="x", folder=tmp_path, survey=survey)
    assert own.columns["colour_index"].symbol == "J\N{MINUS SIGN}Ks"
    assert own.columns["colour_index"].dark == pytest.approx(0.5, abs=0.6)


def test_slow_parts_of_the_start_are_told(tmp_path, catalogue) -> None:
    told: list[str] = []
    with Explorer(catalogue, stage=told.append):
        assert told == ["reading the catalogue", "packing the columns of the first view"]


@pytest.mark.parametrize("place", [(np.nan, 1.0), (10.0, 95.0), (400.0, 0.0)])
def test_a_star_without_a_place_has_no_links(tmp_path, place) -> None:
    table = Table({"id": ["a"], "ra": [place[0]], "dec": [place[1]]})
    content = Content(Catalogue(table, {}), name="x", folder=tmp_path)
    assert Stars(content).labels(0)["links"] == []


@given(st.integers(0, 70), st.data())
def test_bits_are_rows(n, data) -> None:
    chosen = data.draw(st.sets(st.integers(0, n - 1))) if n else set()
    assert np.flatnonzero(selected_rows(bits(chosen, n), n)).tolist() == sorted(chosen)


BODY = bits([1, 2])
REFUSED = [
    ("GET", "/api/star/60", {}, 404),
    ("GET", "/api/star/-1", {}, 400),
    ("GET", "/api/star/1e3", {}, 400),
    ("GET", "/api/star/0x1", {}, 400),
    ("GET", "/api/star/", {}, 400),
    ("GET", "/api/star/" + "9" * 12, {}, 404),
    ("GET", "/api/star/" + "9" * 500, {}, 400),
    ("GET", "/api/star/%D9%A3", {}, 400),
    ("GET", "/api/star/1/2", {}, 404),
    ("GET", "/api/spectrum/1", {}, 404),
    ("GET", "/api/sensitivity/1", {}, 404),
    ("GET", "/api/column/nothing", {}, 404),
    ("GET", "/api/column/id", {}, 404),
    ("GET", "/api/column/..%2f..%2fetc", {}, 404),
    ("GET", "/api/find", {}, 400),
    ("GET", "/api/find?id=nobody", {}, 404),
    ("GET", "/api/where", {}, 400),
    ("GET", "/api/where?text=snr", {}, 422),
    ("GET", "/api/where?text=%3Cb%3E%0A", {}, 422),
    ("GET", "/api/where?text=" + "1%2B" * 400, {}, 422),
    ("GET", "/api/where?text=snr>1", {"Cookie": None}, 403),
    ("GET", "/api/nothing", {}, 404),
    ("GET", "/static/../server.py", {}, 404),
    ("GET", "/static/%2e%2e/server.py", {}, 404),
    ("GET", "/static/nothing.js", {}, 404),
    ("GET", "/" + "a" * 3000, {}, 414),
    ("GET", "/api/about", {"Host": "evil.example"}, 403),
    ("GET", "/api/about", {"Host": "127.0.0.1.evil.example:80"}, 403),
    ("GET", "/api/about", {"Host": "localhost.:80"}, 403),
    ("GET", "/api/about", {"Host": ""}, 403),
    ("GET", "/api/about", {"Cookie": None}, 403),
    ("GET", "/", {"Cookie": None}, 403),
    ("GET", "/static/main.js", {"Cookie": None}, 403),
    ("GET", "/api/about", {"Cookie": "maury-1=guess; a=b"}, 403),
    ("GET", "/?key=guess", {"Cookie": None}, 403),
    ("GET", "/api/about?key=guess", {"Cookie": None}, 403),
    ("GET", "/api/about", {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "cors"}, 403),
    ("GET", "/api/about", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, 403),
    ("POST", "/api/download", {"Origin": "http://127.0.0.1:1"}, 403),
    ("POST", "/api/samp", {"Origin": "null"}, 403),
    ("POST", "/api/samp", {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "navigate"}, 403),
    ("POST", "/api/download", {"Cookie": None}, 403),
    ("POST", "/api/about", {}, 404),
    ("POST", "/api/download?format=exe", {}, 400),
    ("POST", "/api/download", {"Content-Length": "0"}, 400),
    ("POST", "/api/download", {"Content-Length": "99999999999999"}, 400),
    ("POST", "/api/download", {"Content-Length": "-8"}, 411),
    ("POST", "/api/download", {"Content-Length": "8, 8"}, 411),
    ("PUT", "/api/download", {}, 405),
    ("DELETE", "/api/star/1", {}, 405),
    ("PATCH", "/", {}, 405),
    ("OPTIONS", "/api/about", {}, 405),
]


@pytest.mark.parametrize(("method", "path", "headers", "expected"), REFUSED)
def test_bad_requests_get_one_line(client, method, path, headers, expected) -> None:
    body = BODY if method == "POST" else None
    status, told, answer = client.ask(method, path, body=body, **headers)
    assert status == expected
    text = json.loads(answer)["error"]
    assert text
    assert "\n" not in text
    assert "Traceback" not in text
    assert client.explorer.key not in text
    assert "default-src 'none'" in told["Content-Security-Policy"]
    assert client.json("/api/about")["rows"] == N


@pytest.mark.parametrize("body", [b"", b"\0", bytes(7), bytes(9), bytes(5000), b"\xff" * 8])
def test_a_selection_of_another_catalogue_is_refused(client, body) -> None:
    status, _, answer = client.ask("POST", "/api/download", body=body)
    assert status == 400
    assert "Traceback" not in answer.decode()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n",
        b"GET /" + b"a" * 70000 + b" HTTP/1.1\r\n\r\n",
        b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_what_is_no_request_is_answered_in_one_line(client, data) -> None:
    answer = client.raw(data)
    assert b"Traceback" not in answer
    assert re.search(rb'\{"error": "[^"\n]+"\}\Z', answer)


def test_a_body_that_ends_early_or_is_chunked_is_refused(client) -> None:
    head = f"POST /api/download HTTP/1.1\r\nHost: localhost\r\nCookie: {client.cookie}\r\n".encode()
    assert b" 400 " in client.raw(head + b"Content-Length: 8\r\n\r\nabc")
    chunked = client.raw(
        head + b"Transfer-Encoding: chunked\r\n\r\n8\r\n" + BODY + b"\r\n0\r\n\r\n"
    )
    assert chunked.count(b"HTTP/1.1") == 1
    assert b" 411 " in chunked


def test_only_loopback_is_served(client) -> None:
    assert client.explorer.address.startswith("http://127.0.0.1:")
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.2", client.explorer.port), timeout=5).close()
    for host in ("localhost:9", "127.0.0.1", "[::1]:8000"):
        assert client.ask("GET", "/api/about", Host=host)[0] == 200


def test_the_link_gives_a_cookie_and_leaves_the_address(client) -> None:
    path = client.explorer.link.removeprefix(client.explorer.address.rstrip("/"))
    status, headers, body = client.ask("GET", path, Cookie=None)
    assert (status, headers["Location"], body) == (303, "/", b"")
    assert client.cookie in headers["Set-Cookie"]
    assert "HttpOnly" in headers["Set-Cookie"]
    assert "SameSite=Lax" in headers["Set-Cookie"]
    page = client.get("/").decode()
    assert "<main" in page
    assert client.explorer.key not in page
    head = client.ask("HEAD", "/")
    assert (head[0], head[2]) == (200, b"")
    assert int(head[1]["Content-Length"]) == len(page.encode())


def test_keys_are_new_each_time_and_never_logged(catalogue, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    with Explorer(catalogue) as one, Explorer(catalogue) as other:
        assert one.key != other.key
        assert len(one.key) >= 32
        for path in (f"/?key={one.key}", "/?key=guess", "/api/about", "/nothing"):
            Client(one).ask("GET", path)
        assert one.key not in caplog.text
        assert "'/api/about'" in caplog.text


def test_the_page_asks_for_nothing_outside() -> None:
    folder = resources.files("maury.report.explorer") / "static"
    names = {item.name for item in folder.iterdir()}
    for item in folder.iterdir():
        text = item.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|\beval\b|innerHTML|document\.write", text), item
        for used in re.findall(r'(?:from|src=|href=) ?"(?:\./|/static/)([^"]+)"', text):
            assert used in names


def test_a_star_is_told_whole(client, catalogue) -> None:
    table = catalogue.table
    row = int(np.flatnonzero(np.isfinite(table["teff"]))[4])
    star = client.json(f"/api/star/{row}")
    assert star["id"] == table["id"][row]
    for label in star["labels"]:
        name = label["name"]
        assert label["value"] == table[name][row]
        assert label["error"] == table[f"{name}_error"][row]
        assert label["quantiles"] == [table[f"{name}_{q}"][row] for q, _ in QUANTILES]
        assert label["percents"] == [2.3, 16, 50, 84, 97.7]
    told = {column["name"]: column["value"] for column in star["columns"]}
    assert told["ra"] == table["ra"][row]
    assert told["star_id"] == table["star_id"][row]
    for text in (table["id"][row], table["star_id"][row]):
        quoted = "".join(f"%{byte:02x}" for byte in str(text).encode())
        assert client.json(f"/api/find?id={quoted}") == {"row": row}
    lost = client.json("/api/star/7")
    assert [flag["name"] for flag in lost["flags"]][:1] == ["NO_SPECTRUM"]
    assert lost["flags"][0]["text"] == Flag.NO_SPECTRUM.text
    assert all(label["value"] is None for label in lost["labels"])


def test_the_nearest_training_stars_are_the_nearest(client, catalogue) -> None:
    table = catalogue.table
    trained = (np.asarray(table["flags"]) & Flag.TRAINING_STAR.value) != 0
    row = int(np.flatnonzero(~trained & np.isfinite(table["teff"]))[0])
    near = client.json(f"/api/star/{row}")["neighbours"]
    assert near["origin"] == "predicted labels"
    labels = np.column_stack([np.asarray(table[name]) for name in LABEL_NAMES])
    low, high = np.nanpercentile(labels[trained], [16, 84], axis=0)
    offset = (labels - labels[row]) / (0.5 * (high - low))
    distance = np.sqrt((offset**2).mean(axis=1))
    known = trained & np.isfinite(distance)
    expected = np.flatnonzero(known)[np.argsort(distance[known])][:8]
    assert [star["row"] for star in near["stars"]] == expected.tolist()
    np.testing.assert_allclose(
        [star["distance"] for star in near["stars"]], distance[expected], atol=6e-4
    )


def test_a_spectrum_comes_with_fit_and_sensitivity(learnt, tiny_survey, tiny_model) -> None:
    survey = Survey.open(tiny_survey)
    batch = survey.batch(5, 6)
    got = learnt.json("/api/spectrum/5")
    np.testing.assert_allclose(got["wave"], survey.wave_aa, rtol=1e-7)
    np.testing.assert_allclose(got["flux"], batch.spectra.flux[0], rtol=6e-5)
    assert got["simulated"] is True
    assert got["origin"] == "emulator at the predicted labels, not calibrated"
    fit, flux = np.array(got["fit"]), np.array(got["flux"])
    assert np.corrcoef(fit, flux)[0, 1] > 0.5
    found = learnt.json("/api/sensitivity/5")
    model = Model.open(tiny_model)
    for name in model.label_names:
        assert len(found["network"][name]) == model.n_pixel
        assert len(found["optimal"][name]) == model.n_pixel
        np.testing.assert_allclose(
            np.corrcoef(found["network"][name], found["optimal"][name])[0, 1],
            found["correlation"][name],
            atol=1e-3,
        )
    near = learnt.json("/api/star/5")["neighbours"]
    assert near["origin"] == "reference labels"
    ids = survey.id[model.split.contains("train", survey.star_id)].tolist()
    assert {star["id"] for star in near["stars"]} <= set(ids)
    assert str(survey.id[5]) not in {star["id"] for star in near["stars"]}


def test_the_fit_of_a_calibrated_model_is_its_theory(tiny_survey, tiny_model, learnt) -> None:
    survey, model = Survey.open(tiny_survey), Model.open(tiny_model)
    spectra = survey.batch(0, len(survey)).spectra
    star_simulator = TrainingStarSimulator.fit(
        survey.wave_aa,
        spectra.flux,
        spectra.ivar,
        labels=survey.labels(),
        observables=np.zeros((len(survey), 1)),
        observing=ObservingModel(),
    )
    arrays, about = star_simulator.to_arrays()
    calibrated = model.with_arrays("sky", arrays, metadata=about)
    stored = learnt.explorer.content.catalogue
    catalogue = Catalogue(stored.table(), stored.metadata)
    labels = np.array([[catalogue.table[name][3] for name in LABEL_NAMES]])
    with Explorer(catalogue, survey=survey, model=calibrated) as explorer:
        got = Client(explorer).json("/api/spectrum/3")
    assert got["origin"] == "emulator at the predicted labels, calibrated"
    np.testing.assert_allclose(got["fit"], star_simulator.theory(labels)[0], rtol=6e-5)
    assert got["fit"] != learnt.json("/api/spectrum/3")["fit"]


def test_a_star_that_the_survey_lacks_is_said_to(catalogue, tiny_survey) -> None:
    with Explorer(catalogue, survey=tiny_survey) as explorer:
        status, _, body = Client(explorer).ask("GET", "/api/spectrum/2")
    assert status == 404
    assert "is not in the survey" in json.loads(body)["error"]


@pytest.mark.parametrize(
    ("dropped", "panels"),
    [
        (("logg", "logg_error"), {"plane", "sky", "map"}),
        (("parallax", "parallax_error"), {"kiel", "plane", "sky"}),
        (("parallax_error",), {"kiel", "plane", "sky", "map"}),
        (("ra",), {"kiel", "plane"}),
        (("m_h", "alpha_m", "fe_h", "flags", "warn", "snr", "id"), {"kiel", "plane", "sky", "map"}),
        (tuple(n for n in catalogue_rows(1) if n not in ("id", "flags")), set()),
        (tuple(n for n in catalogue_rows(1) if n not in ("id", "snr")), set()),
    ],
)
def test_panels_follow_the_columns(tmp_path, dropped, panels) -> None:
    gone = {f"{n}{s}" for n in dropped for s in ("", *QUANTILE_ENDS)}
    rows = {name: values for name, values in catalogue_rows(20).items() if name not in gone}
    with Explorer(write_catalogue(tmp_path / "some.parquet", rows=rows)) as explorer:
        client = Client(explorer)
        about = client.json("/api/about")
        # Of any column there is a histogram.
        wanted = panels | ({"histogram"} if about["columns"] else set())
        assert {name for name, axes in about["panels"].items() if axes} == wanted
        for axes in filter(None, about["panels"].values()):
            for name in axes:
                assert client.column(name).size == 20
        assert client.json("/api/star/3")["row"] == 3
        assert client.column("flags").size == 20


@pytest.mark.parametrize("suffix", [".fits", ".parquet", ".vot", ".ecsv"])
def test_an_empty_catalogue_is_shown(tmp_path, suffix) -> None:
    write_catalogue(tmp_path / f"empty{suffix}", 0)
    with Explorer(tmp_path / f"empty{suffix}") as explorer:
        client = Client(explorer)
        about = client.json("/api/about")
        assert (about["rows"], about["name"]) == (0, f"empty{suffix}")
        for axes in filter(None, about["panels"].values()):
            assert [client.column(name).size for name in axes] == [0, 0]
        assert client.ask("GET", "/api/star/0")[0] == 404
        assert client.ask("POST", "/api/download", body=b"")[0] == 200


def test_rows_of_nan_are_shown(tmp_path) -> None:
    rows = catalogue_rows(12)
    for values in rows.values():
        if values.dtype.kind == "f":
            values[:] = np.nan
    with Explorer(write_catalogue(tmp_path / "nan.fits", rows=rows)) as explorer:
        client = Client(explorer)
        assert np.isnan(client.column("teff")).all()
        star = client.json("/api/star/0")
    assert star["neighbours"]["stars"] == []
    assert all(label["value"] is None for label in star["labels"])


@pytest.fixture
def no_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMP_HUB", f"std-lockurl:{(tmp_path / 'hub').as_uri()}")
    return tmp_path / "hub"


def test_without_a_hub_nothing_is_sent(client, no_hub) -> None:
    assert client.json("/api/samp") == {"hub": False}
    status, _, body = client.ask("POST", "/api/samp", body=BODY)
    assert status == 422
    assert "start TOPCAT" in json.loads(body)["error"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_program_at_the_hub_gets_the_selection(client, catalogue, no_hub, monkeypatch) -> None:
    samp = pytest.importorskip("pyvo.samp", reason="SAMP needs the extra maury[samp]")
    monkeypatch.setattr(samp.conf, "use_internet", False)
    hub = samp.SAMPHubServer(web_profile=False, lockfile=str(no_hub), addr="127.0.0.1")
    hub.start()
    try:
        status, _, body = client.ask("POST", "/api/samp", body=bits([4, 9]))
        assert (status, "no program" in body.decode()) == (422, True)
        table = samp.SAMPIntegratedClient(name="a table program")
        table.connect()
        got = []

        def load(private_key, sender, message_id, mtype, params, extra):
            got.append(params)
            table.ereply(message_id, samp.SAMP_STATUS_OK, result={})

        table.bind_receive_call("table.load.fits", load)
        assert client.json("/api/samp") == {"hub": True}
        status, _, body = client.ask("POST", "/api/samp", body=bits([4, 9]))
        assert (status, json.loads(body)) == (200, {"sent": ["a table program"]})
        # The answer is of a table that has been loaded, so that none gets lost on its way.
        assert len(got) == 1
        table.disconnect()
    finally:
        hub.stop()
    path = Path(got[0]["url"].removeprefix("file://"))
    assert path.stat().st_mode & 0o077 == 0 or path.parent.stat().st_mode & 0o077 == 0
    sent = Catalogue.read(path)
    assert sent.table["id"].tolist() == catalogue.table["id"][[4, 9]].tolist()


def test_a_port_that_is_taken_is_said_to_be(catalogue, client) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen on port .* choose another --port"):
        Explorer(catalogue, port=client.explorer.port)


@pytest.mark.slow
def test_the_command_ends_by_interrupt(tmp_path) -> None:
    write_catalogue(tmp_path / "stars.ecsv", 5)
    command = [sys.executable, "-m", "maury", "explore", "stars.ecsv", "--no-browser"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        line = process.stdout.readline()
        assert re.match(
            r"5 SIMULATED rows of stars\.ecsv at http://127\.0\.0\.1:\d+/\?key=\S+$", line
        )
        assert process.stdout.readline() == "Ctrl-C ends it\n"
        os.kill(process.pid, signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
        out, err = process.stdout.read(), process.stderr.read()
    assert (process.returncode, out, err) == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["none.fits"], ["stars.ecsv", "--survey", "none.zarr"]])
def test_what_cannot_be_read_is_one_line(tmp_path, arguments) -> None:
    write_catalogue(tmp_path / "stars.ecsv", 5)
    command = [sys.executable, "-m", "maury", "explore", *arguments, "--no-browser"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def stars_of(path, survey=None, *, model=None, n=20, names=LABEL_NAMES):
    """Details of a made-up catalogue of the first spectra of a survey."""
    rows = catalogue_rows(n)
    gone = {f"{a}{b}" for a in set(LABEL_NAMES) - {*names} for b in ("", "_error", *QUANTILE_ENDS)}
    rows = {name: values for name, values in rows.items() if name not in gone}
    if survey is not None:
        rows["id"] = survey.id[:n]
    content = Content(write_catalogue(path / "some.fits", rows=rows), name="some", folder=path)
    return Stars(content, survey=survey, model=model)


def test_the_nearest_of_given_labels_leave_out_whom_is_said(tmp_path) -> None:
    labels = np.array([[5000.0], [5100.0], [5300.0], [np.nan]])
    training = TrainingStars(("teff",), labels, np.array([*"abcd"]), "made up")
    order, distance = training.nearest(np.array([5090.0]))
    assert order.tolist() == [1, 0, 2]
    assert np.all(np.diff(distance) > 0)
    assert training.nearest(np.array([5090.0]), without="b")[0].tolist() == [0, 2]
    assert training.nearest(np.array([np.nan]))[0].size == 0


def test_a_spectrum_without_a_model_is_shown_as_it_stands(tmp_path, tiny_survey) -> None:
    survey = Survey.open(tiny_survey)
    stars = stars_of(tmp_path, survey)
    got = stars.spectrum(4)
    flux = survey.batch(4, 5).spectra.flux[0]
    np.testing.assert_allclose(got["flux"], flux, rtol=6e-5)
    assert got["origin"] == "emulator at the predicted labels, not calibrated"
    assert stars.has == {"spectra": True, "model": False}
    lost = stars.spectrum(7)
    assert (lost["fit"], lost["origin"]) == (None, "no curve: theory needs all 9 labels")


def test_the_emulator_is_shown_at_the_resolving_power_of_the_survey(tmp_path, tiny_survey) -> None:
    survey = Survey.open(tiny_survey)
    spectra = survey.batch(0, len(survey)).spectra
    for name, power in (("sharp", 11_500.0), ("same", 7500.0), ("unknown", None)):
        (tmp_path / name).mkdir()
        with SurveyWriter(
            tmp_path / name / "survey.zarr",
            n_star=len(survey),
            wave_aa=survey.wave_aa,
            medium=survey.medium,
            columns=["snr"],
            simulated=True,
            resolving_power=power,
        ) as writer:
            columns = {key: survey.column(key) for key in ("id", "star_id", "snr")}
            writer.write(0, spectra.flux, spectra.ivar, **columns)
    fits = {}
    for name in ("sharp", "same", "unknown"):
        folder = tmp_path / name
        got = stars_of(folder, Survey.open(folder / "survey.zarr")).spectrum(4)
        fits[name], origin = got["fit"], got["origin"]
    assert (fits["unknown"], origin) == (
        None,
        "no curve: the survey does not say its resolving power",
    )
    # Lines are deeper where they are narrower.
    depth = {name: 1 - np.array(fits[name]) for name in ("sharp", "same")}
    assert depth["sharp"].max() > depth["same"].max() + 0.01
    assert depth["sharp"].sum() == pytest.approx(depth["same"].sum(), rel=0.01)


@pytest.mark.parametrize("start", [5000.0, 8420.0])
def test_the_fit_reaches_as_far_as_the_emulator(tmp_path, monkeypatch, start) -> None:
    monkeypatch.setattr("builders.training_survey.WAVE", start + 0.4 * np.arange(64))
    survey = write_survey(tmp_path / "far.zarr", n=40, resolving_power=7500.0)
    got = stars_of(tmp_path, survey).spectrum(3)
    assert len(got["flux"]) == 64
    assert (got["fit"] is None) == (start == 5000.0)
    assert ("does not reach over these wavelengths" in got["origin"]) == (start == 5000.0)


def test_sensitivities_are_worked_out_once_and_not_kept_forever(
    tmp_path, tiny_survey, tiny_model
) -> None:
    stars = stars_of(tmp_path, Survey.open(tiny_survey), model=Model.open(tiny_model))
    first = stars.sensitivity(2)
    assert stars.sensitivity(2) is first
    assert set(first["optimal"]) == set(LABEL_NAMES)
    lost = stars.sensitivity(7)
    assert (lost["optimal"], lost["correlation"]) == ({}, {})
    assert set(lost["network"]) == set(LABEL_NAMES)
    stars._sensitivities |= {row: {} for row in range(1000, 1065)}
    stars.sensitivity(3)
    assert list(stars._sensitivities) == [3]


@pytest.mark.slow
def test_training_stars_are_those_whose_labels_are_known_best(
    tmp_path, tiny_survey, tiny_model, observed_survey
) -> None:
    model, survey = Model.open(tiny_model), Survey.open(tiny_survey)
    unlabelled = Survey.open(observed_survey)
    others = copy_survey(
        tiny_survey, tmp_path / "others.zarr", rows=np.arange(30),
        id=np.array([f"elsewhere {k}" for k in range(30)]), ra=np.arange(30.0),
        star_id=np.array([f"nobody {k}" for k in range(30)]),
        parallax=1.01 * survey.column("parallax")[:30],
    )  # fmt: skip
    origins = {}
    for name, one in (("same", survey), ("bare", unlabelled), ("others", Survey.open(others))):
        (tmp_path / name).mkdir()
        found = stars_of(tmp_path / name, one, model=model).labels(1)["neighbours"]
        origins[name] = found["origin"]
    assert origins == {
        "same": "reference labels",
        "bare": "predicted labels",
        "others": "predicted labels",
    }


def test_training_stars_of_a_calibration_have_labels_and_no_names(
    tmp_path, tiny_survey, tiny_model
) -> None:
    survey, model = Survey.open(tiny_survey), Model.open(tiny_model)
    spectra = survey.batch(0, 80).spectra
    star_simulator = TrainingStarSimulator.fit(
        survey.wave_aa,
        spectra.flux,
        spectra.ivar,
        labels=survey.labels()[:80],
        observables=np.zeros((80, 1)),
        observing=ObservingModel(),
    )
    arrays, about = star_simulator.to_arrays()
    stars = stars_of(tmp_path, model=model.with_arrays("sky", arrays, metadata=about))
    near = stars.labels(1)["neighbours"]
    assert near["origin"] == "reference labels"
    assert len(near["stars"]) == 8
    assert {star["id"] for star in near["stars"]} == {""}
    assert {star["row"] for star in near["stars"]} == {None}


def test_columns_of_texts_are_shown_and_lists_are_left_out(tmp_path) -> None:
    found = write_catalogue(tmp_path / "stars.fits", 5)
    table = found.table.copy()
    table["xp"] = np.arange(15.0).reshape(5, 3)
    table["note"] = np.array([b"dwarf", b"giant", b"", b"\xff", b"x"])
    stars = Stars(Content(Catalogue(table, found.metadata), name="stars", folder=tmp_path))
    told = [{c["name"]: c["value"] for c in stars.labels(k)["columns"]} for k in (1, 3)]
    assert "xp" not in told[0]
    assert (told[0]["note"], told[1]["note"]) == ("giant", "\\xff")


@pytest.mark.slow
@pytest.mark.parametrize("sample", [2**13, 2**13 + 2**15 - 2**11])
def test_a_catalogue_of_many_blocks_is_counted_packed_and_found_whole(
    tmp_path, monkeypatch, sample
):
    """Against numpy over all rows: ranges of a sample apart, nothing is estimated.

    The pieces of the larger sample end in other blocks than those in which they begin.
    """
    monkeypatch.setattr("maury.report.explorer.content.PACKED_ROWS", 2**14)
    monkeypatch.setattr("maury.report.explorer.content._SAMPLE", sample)
    part, n_part = 10_000, 4
    names = ("id", "teff", "teff_error", "flags", "ra", "dec", "snr")
    path = write_many(tmp_path / "many.parquet", n_part, names=names, part=part)
    rows = catalogue_rows(part)
    with Explorer(path) as explorer:
        client, n = Client(explorer), n_part * part
        about = client.json("/api/about")
        assert about["rows"] == n
        for told in about["flags"]:
            mask = int(Flag[told["name"]].value)
            assert told["count"] == n_part * np.count_nonzero(rows["flags"].astype(np.int64) & mask)
        sent, step = client.get("/api/column/teff"), about["packed_rows"]
        got = [
            np.frombuffer(sent[4 * k : 4 * min(k + step, n)], np.uint8).reshape(4, -1).T
            for k in range(0, n, step)
        ]
        teff = np.ascontiguousarray(np.concatenate(got)).reshape(-1).view("<f4")
        np.testing.assert_array_equal(teff, np.tile(rows["teff"], n_part).astype("f4"))
        shown = next(one for one in about["columns"] if one["name"] == "snr")
        low, high = np.nanquantile(rows["snr"], [0.0005, 0.9995])
        assert shown["low"] == pytest.approx(low, rel=0.2)
        assert shown["high"] == pytest.approx(high, rel=0.2)
        for row in (3, 2 * part + 5, n - 1):
            assert client.json(f"/api/star/{row}")["id"] == rows["id"][row % part]
        quoted = "".join(f"%{byte:02x}" for byte in rows["id"][17].encode())
        assert client.json(f"/api/find?id={quoted}") == {"row": 17}
        chosen = [1, part + 1, n - 2]
        status, _, body = client.ask("POST", "/api/download?format=fits", body=bits(chosen, n))
    assert status == 200
    (tmp_path / "got.fits").write_bytes(body)
    got = Catalogue.read(tmp_path / "got.fits").table
    assert got["id"].tolist() == [rows["id"][k % part] for k in chosen]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process stands in /proc")
def test_memory_of_the_explorer_does_not_grow_with_the_rows(tmp_path) -> None:
    imports = "import pyarrow.parquet, pyarrow.compute, numpy, astropy.coordinates\n"
    imports += "import maury.report.explorer.content as content\ncontent._SAMPLE = 2**13\n"
    imports += "from maury.report.explorer import Explorer\nimport torch"
    code = (
        "with Explorer(sys.argv[3]) as one: one.answers.stars.labels(9), one.content.packed('snr')"
    )
    names = ("id", "teff", "teff_error", "logg", "logg_error", "flags", "ra", "dec", "snr")
    # Training stars are held, as many as a model has; here they would grow with the rows.
    rows = {**catalogue_rows(16384), "flags": np.zeros(16384, np.int32)}
    grown = []
    for n_part in (5, 45):
        path = write_many(tmp_path / f"c{n_part}.parquet", n_part, names=names, rows=rows)
        grown.append(growth_mb(imports, code, path))
    # 655 000 rows more are 47 MB for each copy of their nine columns, and a block varies by 6.
    assert grown[1] < grown[0] + 24, grown
