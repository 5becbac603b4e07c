"""Queries of a small TAP service of our own, and the commands that download."""

import io
import re
from importlib import resources

import numpy as np
import pytest
from astropy.table import Table
from typer.testing import CliRunner

from builders.web_server import Site, break_off, serving
from maury.cli.app import app
from maury.errors import ConfigError, FetchError, OutputExists
from maury.survey.archives import load
from maury.survey.archives.recipe import QueryFacts
from maury.survey.fetch import MANIFEST, Manners, Web
from maury.survey.fetch.queries import run_query

pytest.importorskip("pyvo", reason="queries need pyvo")

ADQL = "SELECT source_id, ra FROM gaiadr3.gaia_source"


def votable(status="OK") -> bytes:
    stream = io.BytesIO()
    Table({"source_id": np.array([4295806720, 34361129088]), "ra": [44.99, 45.0]}).write(
        stream, format="votable"
    )
    info = f'<INFO name="QUERY_STATUS" value="{status}">said</INFO>'
    return re.sub(rb"(<RESOURCE[^>]*>)", rb"\1" + info.encode(), stream.getvalue(), count=1)


class Tap:
    """A TAP service (asynchronous jobs of UWS 1.1) with one job at a time."""

    def __init__(self, site: Site, status: str = "OK", ends: str = "COMPLETED") -> None:
        self.site, self.ends = site, ends
        self.phases = ["EXECUTING", ends]
        self.phase: str | None = None
        self.bodies: list[bytes] = []
        self.created = self.deleted = 0
        site.post = self.post
        site.files["/tap/async/7/results/result"] = votable(status)

    def post(self, handler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        if handler.command == "DELETE":
            self.deleted += 1
            self.phase = None
            handler.answer(200, b"", {"Content-Length": "0"})
            return
        self.bodies.append(body)
        if handler.path == "/tap/async":
            self.created += 1
            self.phase = "PENDING"
        elif handler.path.endswith("/phase"):
            self.phase = self.phases[0]
        self.tell()
        handler.answer(303, b"", {"Location": "/tap/async/7", "Content-Length": "0"})

    def tell(self) -> None:
        """Let every GET of the job move it on by one phase."""
        self.site.plans["/tap/async/7"] = [self.summary] * 50

    def summary(self, handler) -> None:
        if self.phase is None:
            handler.answer(404, b"", {"Content-Length": "0"})
            return
        result = '<uws:result id="result" xlink:href="/tap/async/7/results/result"/>'
        message = "<uws:message>no such table</uws:message>"
        error = f'<uws:errorSummary type="fatal">{message}</uws:errorSummary>'
        body = f"""<?xml version="1.0"?><uws:job version="1.1"
            xmlns:uws="http://www.ivoa.net/xml/UWS/v1.0" xmlns:xlink="http://www.w3.org/1999/xlink">
            <uws:jobId>7</uws:jobId><uws:phase>{self.phase}</uws:phase>
            {error if self.phase == "ERROR" else ""}
            <uws:results>{result if self.phase == "COMPLETED" else ""}</uws:results>
            </uws:job>""".encode()
        handler.answer(200, body, {"Content-Type": "text/xml", "Content-Length": str(len(body))})
        if self.phase == "EXECUTING":
            self.phase = self.ends


@pytest.fixture
def site():
    with serving(Site()) as site:
        yield site


@pytest.fixture
def web():
    waits = []
    with Web(Manners(connect_s=60.0, stall_s=60.0, attempts=2), sleep=waits.append) as web:
        yield web


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("maury.survey.fetch.queries._FIRST_PAUSE_S", 0.01)


def question(site) -> QueryFacts:
    return QueryFacts(name="gaia.vot", service=site.url + "/tap", adql=ADQL)


def test_an_answer_arrives_once(site, web, tmp_path):
    tap, told = Tap(site), []
    path = run_query(question(site), tmp_path, web=web, told=told.append)
    assert Table.read(path, format="votable")["source_id"][1] == 34361129088
    assert (tap.created, tap.deleted) == (1, 1)
    assert b"gaia_source" in tap.bodies[0]
    assert told[-1].endswith(": completed")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["gaia.vot", MANIFEST]
    assert run_query(question(site), tmp_path, web=web) == path
    assert tap.created == 1
    other = QueryFacts(name="gaia.vot", service=site.url + "/tap", adql="SELECT 1")
    with pytest.raises(OutputExists, match="not the answer"):
        run_query(other, tmp_path, web=web)


def test_a_table_of_the_users_travels_with_the_query(site, web, tmp_path):
    tap = Tap(site)
    run_query(
        question(site), tmp_path, web=web, uploads={"stars": {"source_id": np.array([2**62 + 1])}}
    )
    assert b"stars" in tap.bodies[0]
    assert b"VOTABLE" in tap.bodies[0]


def test_an_interrupted_download_finds_its_job_again(site, web, tmp_path):
    tap = Tap(site)
    site.plans["/tap/async/7/results/result"] = [break_off(100)] + [break_off(0)] * 2
    with pytest.raises(FetchError, match="given up"):
        run_query(question(site), tmp_path, web=web)
    assert (tap.created, tap.deleted) == (1, 0)
    run_query(question(site), tmp_path, web=web)
    assert (tap.created, tap.deleted) == (1, 1)
    assert site.gets("/tap/async/7/results/result")[-1]["Range"] == "bytes=100-"


def test_a_job_that_the_service_forgot_is_asked_again(site, web, tmp_path):
    tap = Tap(site)
    site.plans["/tap/async/7/results/result"] = [break_off(0)] * 2
    with pytest.raises(FetchError, match="given up"):
        run_query(question(site), tmp_path, web=web)
    tap.phase = None
    run_query(question(site), tmp_path, web=web)
    assert tap.created == 2


def test_a_query_that_fails_says_why(site, web, tmp_path):
    tap = Tap(site, ends="ERROR")
    with pytest.raises(FetchError, match=r"ended as ERROR.*no such table"):
        run_query(question(site), tmp_path, web=web)
    assert tap.deleted == 1
    assert not (tmp_path / "gaia.vot").exists()


@pytest.mark.parametrize(("status", "message"), [("OVERFLOW", "short"), ("ERROR", "error")])
def test_an_answer_cut_short_is_refused(site, web, tmp_path, status, message):
    Tap(site, status)
    with pytest.raises(FetchError, match=message):
        run_query(question(site), tmp_path, web=web)
    assert not (tmp_path / "gaia.vot").exists()


def test_an_answer_of_another_kind_is_refused(site, web, tmp_path):
    Tap(site)
    site.files["/tap/async/7/results/result"] = b"a,b\n1,2\n"
    with pytest.raises(FetchError, match="no VOTable"):
        run_query(question(site), tmp_path, web=web)
    with pytest.raises(ConfigError, match=r"\.vot"):
        run_query(QueryFacts.model_construct(name="gaia.csv"), tmp_path, web=web)


RECIPE = """
name = "mine"
title = "A survey"
kind = "catalogue"
description = "Of a test."
citation = []
documentation = "https://example.org/"
acknowledgement = "Thank them."

[[file]]
name = "a.csv"
url = "{url}/a.csv"

[query]
name = "gaia.vot"
service = "{url}/tap"
adql = "SELECT * FROM t JOIN TAP_UPLOAD.stars USING (source_id)"
upload = {{ table = "stars", columns = ["source_id"] }}

[id]
column = "id"

[columns]
teff = "teff"
"""


@pytest.fixture
def recipe(site, tmp_path):
    site.files["/a.csv"] = b"id,teff\n1,5000\n"
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(url=site.url))
    return path


def run(*words, **kwargs):
    return CliRunner().invoke(app, ["fetch", *map(str, words)], **kwargs)


def test_the_command_says_sizes_and_downloads(site, recipe, tmp_path):
    out = tmp_path / "out"
    dry = run(recipe, "--to", out, "--dry-run")
    assert dry.exit_code == 0, dry.output
    assert "15 B" in dry.output
    assert "TAP_UPLOAD.stars" in dry.output
    assert not out.exists()
    done = run(recipe, "--to", out, "--file", "a.csv")
    assert done.exit_code == 0, done.output
    assert "Thank them." in done.output
    assert (out / "a.csv").read_bytes() == site.files["/a.csv"]


def test_the_command_asks_above_a_size(site, recipe, tmp_path):
    words = (recipe, "--to", tmp_path / "out", "--file", "a.csv", "--ask-above", "0")
    assert run(*words, input="n\n").exit_code == 0
    assert not (tmp_path / "out" / "a.csv").exists()
    alone = run(*words)
    assert isinstance(alone.exception, ConfigError)
    assert "--yes" in str(alone.exception)
    assert run(*words, "--yes").exit_code == 0
    assert (tmp_path / "out" / "a.csv").exists()


def test_the_command_asks_an_archive(site, recipe, tmp_path):
    tap = Tap(site)
    stars = tmp_path / "stars.csv"
    stars.write_text("source_id\n4611686018427387905\n")
    words = (recipe, "--to", tmp_path / "out", "--file", "gaia.vot")
    assert isinstance(run(*words).exception, ConfigError)
    done = run(*words, "--upload", stars)
    assert done.exit_code == 0, done.output
    assert len(Table.read(tmp_path / "out" / "gaia.vot", format="votable")) == 2
    assert b'datatype="long"' in tap.bodies[0]


def test_the_query_of_gaia_gives_all_that_its_recipe_uses():
    recipe = load("gaia-dr3")
    asked = set(re.findall(r"g\.(\w+)", recipe.query.adql))
    text = (resources.files("maury.survey.archives") / "recipes" / "gaia-dr3.toml").read_text(
        "utf-8"
    )
    used = {recipe.position.ra, recipe.position.pmra, *re.findall(r'^column = "(\w+)"', text, re.M)}
    used |= set(re.findall(r'{ name = "(\w+)"', text))
    assert len(used) > 15
    assert used <= asked
