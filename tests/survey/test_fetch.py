"""Downloads from a local server that breaks off, stalls and lies."""

import hashlib
import json
import logging
import threading
from dataclasses import dataclass

import numpy as np
import pytest

from builders.clock import ANTI_HANG, Clock
from builders.web_server import Site, break_off, serving, status
from maury.errors import (
    ConfigError,
    FetchError,
    OutputBusy,
    OutputExists,
    UnknownName,
)
from maury.io.files import making
from maury.survey.fetch import MANIFEST, Downloader, Manners, Web, download, fetch, plan, readable

DATA = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
OTHER = np.random.default_rng(1).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
SHA = hashlib.sha256(DATA).hexdigest()


@dataclass(frozen=True)
class Entry:
    name: str
    url: str
    bytes: int | None = None
    sha256: str | None = None


@pytest.fixture
def site():
    with serving(Site(files={"/a.fits": DATA, "/b.fits": OTHER})) as site:
        yield site


@pytest.fixture
def web(site):
    waits = []
    with Web(Manners(connect_s=60.0, stall_s=60.0, attempts=3), sleep=waits.append) as web:
        object.__setattr__(web, "waits", waits)
        yield web


def entry(site, path="/a.fits", **known):
    return Entry(path[1:], site.url + path, **known)


def leftovers(folder):
    return sorted(p.name for p in folder.iterdir() if p.name not in ("a.fits", MANIFEST))


def test_a_file_arrives_whole_and_is_recorded(site, web, tmp_path):
    seen = []
    (path,) = fetch(
        [entry(site, bytes=len(DATA), sha256=SHA)], tmp_path / "new", web=web,
        progress=lambda *step: seen.append(step),
    )  # fmt: skip
    assert path.read_bytes() == DATA
    assert seen[-1] == ("a.fits", len(DATA), len(DATA))
    assert leftovers(path.parent) == []
    record = json.loads((path.parent / MANIFEST).read_text())["files"]["a.fits"]
    assert (record["sha256"], record["size"], record["published"]) == (SHA, len(DATA), True)
    agents = {headers["User-Agent"] for _, _, headers in site.requests}
    assert len(agents) == 1
    assert agents.pop().startswith("maury/")
    assert "https://" in site.requests[0][2]["User-Agent"]


def test_one_connection_serves_a_host(site, web, tmp_path):
    fetch([entry(site), entry(site, "/b.fits")], tmp_path, web=web)
    assert len(site.connections) == 1


def test_a_second_run_asks_for_nothing(site, web, tmp_path):
    fetch([entry(site)], tmp_path, web=web)
    n = len(site.requests)
    fetch([entry(site)], tmp_path, web=web)
    assert len(site.requests) == n


def test_a_broken_download_goes_on_where_it_stopped(site, web, tmp_path):
    site.plans["/a.fits"] = [break_off(100_000), break_off(50_000)]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    first, second, third = site.gets("/a.fits")
    assert "Range" not in first
    assert second["Range"] == "bytes=100000-"
    assert third["Range"] == "bytes=150000-"
    assert second["If-Range"].startswith('"')
    assert leftovers(tmp_path) == []


def test_another_run_goes_on_too(site, web, tmp_path):
    site.plans["/a.fits"] = [break_off(70_000)] + [break_off(0)] * 3
    with pytest.raises(FetchError, match="given up after 3 attempts"):
        fetch([entry(site)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()
    (todo,) = plan([entry(site)], tmp_path, web=web).files
    assert (todo.state, todo.kept, todo.to_come) == ("partial", 70_000, 230_000)
    fetch([entry(site)], tmp_path, web=web)
    assert (tmp_path / "a.fits").read_bytes() == DATA
    assert site.gets("/a.fits")[-1]["Range"] == "bytes=70000-"


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_a_file_that_changed_is_never_spliced(site, web, tmp_path, honours_if_range):
    def swap(handler):
        handler.honest(120_000)
        site.files["/a.fits"] = OTHER

    def careless(handler):
        del handler.headers["If-Range"]
        handler.honest()

    site.plans["/a.fits"] = [swap] if honours_if_range else [swap, careless]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == OTHER


def test_without_a_validator_nothing_is_gone_on_with(site, web, tmp_path):
    site.etags = False
    site.plans["/a.fits"] = [break_off(120_000)]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    assert all("Range" not in headers for headers in site.gets("/a.fits"))


def test_a_server_without_ranges_starts_again(site, web, tmp_path):
    site.ranges = False
    site.plans["/a.fits"] = [break_off(200_000)]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    assert [("Range" in headers) for headers in site.gets("/a.fits")] == [False, True]


def test_a_server_without_ranges_that_breaks_off_is_given_up(site, web, tmp_path):
    site.ranges = False
    site.plans["/a.fits"] = [break_off(200_000)] * 50
    with pytest.raises(FetchError, match="given up"):
        fetch([entry(site)], tmp_path, web=web)
    assert len(site.gets("/a.fits")) <= 4


def test_a_stall_is_noticed(site, tmp_path):
    over, broke_off = threading.Event(), []

    def stall(handler):
        handler.answer(200, DATA[:10_000], handler.described(DATA))
        if not over.wait(ANTI_HANG):
            broke_off.append(True)

    def between(seconds):
        """Be patient, and the server honest, once a stall came after the 10 000 bytes."""
        if [p.stat().st_size for p in tmp_path.glob(".a.fits.part")] == [10_000]:
            site.plans.clear()
            object.__setattr__(web, "manners", Manners())

    site.plans["/a.fits"] = [stall] * 50
    with Web(Manners(stall_s=0.2, attempts=50), sleep=between) as web:
        (path,) = fetch([entry(site)], tmp_path, web=web)
    over.set()
    assert broke_off == []
    assert path.read_bytes() == DATA
    assert site.gets("/a.fits")[-1]["Range"] == "bytes=10000-"


def test_a_drip_counts_as_a_stall(site, web, tmp_path, monkeypatch):
    clock, sent = Clock(), []
    monkeypatch.setattr(download, "time", clock)

    def drip(handler):
        handler.answer(200, DATA[:1000], handler.described(DATA))
        while not web.waits and clock.looks.acquire(timeout=ANTI_HANG):
            handler.wfile.write(b"x")
            sent.append(clock.now)

    site.plans["/a.fits"] = [drip]
    with pytest.raises(FetchError, match="SHA-256"):
        fetch([entry(site, sha256=SHA)], tmp_path, web=web)
    assert len(web.waits) == 1
    assert web.manners.stall_s <= len(sent) <= 2 * web.manners.stall_s + 2
    assert leftovers(tmp_path) == []


def test_a_length_that_is_too_long_is_refused(site, web, tmp_path):
    def lie(handler):
        headers = handler.described(DATA) | {"Content-Length": str(len(DATA) + 5)}
        handler.answer(200, DATA, headers)
        handler.cut()

    site.plans["/a.fits"] = [lie] * 9
    site.ranges = False
    with pytest.raises(FetchError, match="300000 bytes read, 5 more expected"):
        fetch([entry(site)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()


def test_a_length_other_than_published_is_refused(site, web, tmp_path):
    with pytest.raises(FetchError, match="300000 bytes, not the published 299999"):
        fetch([entry(site, bytes=299_999)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()
    assert not (tmp_path / ".a.fits.part").exists()


def test_a_body_shorter_than_published_without_a_length_is_refused(site, web, tmp_path):
    site.lengths = False
    site.plans["/a.fits"] = [break_off(1000)] * 3
    (path,) = fetch([entry(site, bytes=len(DATA))], tmp_path, web=web)
    assert path.read_bytes() == DATA


def test_a_broken_chunk_is_no_end(site, web, tmp_path):
    def chunked(handler):
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/fits"}
        body = b"%x\r\n%s\r\n" % (1000, DATA[:1000]) + b"%x\r\n%s" % (1000, DATA[1000:1500])
        handler.answer(200, body, headers)
        handler.cut()

    def whole(handler):
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/fits"}
        handler.answer(200, b"%x\r\n%s\r\n0\r\n\r\n" % (len(DATA), DATA), headers)

    site.plans["/a.fits"] = [chunked, whole]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA


def test_a_wrong_checksum_is_discarded(site, web, tmp_path):
    with pytest.raises(FetchError, match="not the published 0000"):
        fetch([entry(site, sha256="0" * 64)], tmp_path, web=web)
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "a.fits").exists()


@pytest.mark.parametrize("kind", ["text/html; charset=utf-8", "application/octet-stream"])
def test_a_web_page_is_no_data(site, web, tmp_path, kind):
    site.files["/a.fits"] = b"\n <!DOCTYPE html><html>please log in</html>"
    site.kinds["/a.fits"] = kind
    with pytest.raises(FetchError, match="web page"):
        fetch([entry(site)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()


def test_a_page_on_the_way_costs_nothing_of_what_is_kept(site, web, tmp_path):
    def log_in(handler):
        page = b"<html>log in again</html>"
        headers = {"Content-Type": "text/html", "Content-Length": str(len(page))}
        handler.answer(200, page, headers)

    site.plans["/a.fits"] = [break_off(90_000), log_in]
    with pytest.raises(FetchError, match="web page"):
        fetch([entry(site)], tmp_path, web=web)
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    assert site.gets("/a.fits")[-1]["Range"] == "bytes=90000-"


def test_a_page_in_pieces_is_found_and_forgotten(site, web, tmp_path):
    def piecemeal(handler):
        page = b"<html>" + b"x" * 1000
        handler.answer(200, page[:3], {"Content-Length": str(len(page))})
        handler.wfile.flush()
        assert began.wait(ANTI_HANG)
        handler.wfile.write(page[3:])

    site.plans["/a.fits"] = [piecemeal]
    began = threading.Event()
    with pytest.raises(FetchError, match="web page"):
        fetch([entry(site)], tmp_path, web=web, progress=lambda *bytes_of: began.set())
    assert leftovers(tmp_path) == []


def test_a_busy_server_is_waited_for(site, web, tmp_path):
    site.plans["/a.fits"] = [status(429, Retry_After="7"), status(503)]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    assert web.waits == [7.0, 2.0]


def test_too_long_a_wait_is_left_to_the_user(site, web, tmp_path):
    site.plans["/a.fits"] = [status(503, Retry_After="Thu, 01 Jan 2099 00:00:00 GMT")]
    with pytest.raises(FetchError, match="asks to wait"):
        fetch([entry(site)], tmp_path, web=web)
    assert web.waits == []


def test_what_is_refused_is_not_asked_again(site, web, tmp_path):
    with pytest.raises(FetchError, match="404"):
        fetch([entry(site, "/gone.fits")], tmp_path, web=web)
    assert len(site.requests) == 1


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a", "//[bad"])
def test_redirects_lead_to_http_only(site, web, tmp_path, target):
    site.plans["/a.fits"] = [status(302, Location=target)]
    with pytest.raises(FetchError):
        fetch([entry(site)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()


def test_redirects_are_followed_but_not_forever(site, web, tmp_path):
    site.plans["/a.fits"] = [status(302, Location="/b.fits")]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == OTHER
    site.plans["/b.fits"] = [status(302, Location="/b.fits")] * 20
    with pytest.raises(FetchError, match="more than 5 times"):
        fetch([entry(site, "/b.fits")], tmp_path, web=web)


@pytest.mark.parametrize("name", ["../a.fits", "/a", "a/b", "..", ".hidden", "", "a\nb", "C:\\x"])
def test_names_never_lead_out_of_the_folder(site, web, tmp_path, name):
    with pytest.raises(ConfigError, match="no name"):
        fetch([Entry(name, site.url + "/a.fits")], tmp_path / "in", web=web)
    assert not (tmp_path / "a.fits").exists()


def test_a_link_in_place_of_the_unfinished_file_is_not_written_through(site, web, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / ".a.fits.part").symlink_to(victim)
    fetch([entry(site)], folder, web=web)
    assert victim.read_bytes() == b"mine"
    assert (folder / "a.fits").read_bytes() == DATA


def test_nothing_of_the_users_is_replaced_unasked(site, web, tmp_path):
    path = tmp_path / "a.fits"
    path.write_bytes(b"mine")
    for known in ({}, {"sha256": SHA}, {"bytes": len(DATA)}):
        with pytest.raises(OutputExists, match="overwrite"):
            fetch([entry(site, **known)], tmp_path, web=web)
    assert path.read_bytes() == b"mine"
    fetch([entry(site)], tmp_path, web=web, overwrite=True)
    assert path.read_bytes() == DATA


def test_a_file_changed_on_disk_is_noticed(site, web, tmp_path):
    fetch([entry(site)], tmp_path, web=web)
    (tmp_path / "a.fits").write_bytes(OTHER)
    with pytest.raises(OutputExists, match="changed since it was downloaded"):
        fetch([entry(site)], tmp_path, web=web)


def test_a_new_version_on_the_server_is_not_taken_unasked(site, web, tmp_path):
    fetch([entry(site)], tmp_path, web=web)
    (tmp_path / "a.fits").unlink()
    site.files["/a.fits"] = OTHER
    with pytest.raises(FetchError, match="not what it was"):
        fetch([entry(site)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()
    n = len(site.gets("/a.fits"))
    fetch([entry(site)], tmp_path, web=web, overwrite=True)
    assert (tmp_path / "a.fits").read_bytes() == OTHER
    assert len(site.gets("/a.fits")) == n


def test_sizes_are_told_before_and_can_be_declined(site, web, tmp_path):
    shown = []
    sources = [entry(site), entry(site, "/b.fits")]
    got = fetch(sources, tmp_path, web=web, confirm=lambda p: bool(shown.append(p)))
    assert got == ()
    assert site.gets("/a.fits") == []
    assert shown[0].to_come == 600_000
    assert "600 kB" in str(shown[0])
    site.heads = False
    blind = plan(sources, tmp_path, only=["b.fits"], web=web)
    assert (blind.n_unknown, blind.to_come, len(blind.files)) == (1, 0, 1)
    with pytest.raises(UnknownName, match=r"did you mean 'a\.fits'"):
        plan(sources, tmp_path, only=["a.fit"], web=web)


def test_a_full_disk_is_known_before(site, web, tmp_path, monkeypatch):
    class Usage:
        free = 1000

    monkeypatch.setattr("maury.survey.fetch.plans.shutil.disk_usage", lambda _: Usage)
    with pytest.raises(FetchError, match="free"):
        fetch([entry(site)], tmp_path, web=web)
    assert site.gets("/a.fits") == []


def test_two_runs_do_not_share_a_folder(site, web, tmp_path):
    with making(tmp_path / "in"), pytest.raises(OutputBusy):
        fetch([entry(site)], tmp_path / "in", web=web)


def test_a_server_that_cannot_be_reached(tmp_path, web, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(FetchError, match="given up after 3"):
        fetch([Entry("a", "http://127.0.0.1:9/a")], tmp_path, web=web)
    assert web.waits == [1.0, 2.0]
    for url in ("nonsense", "http://", "file:///etc/passwd", "http://[bad/"):
        with pytest.raises(FetchError):
            fetch([Entry("a", url)], tmp_path, web=web)


def test_a_damaged_manifest_says_so(site, web, tmp_path):
    (tmp_path / MANIFEST).write_text("[]")
    with pytest.raises(FetchError, match="damaged"):
        fetch([entry(site)], tmp_path, web=web)


def test_a_part_of_another_address_is_not_gone_on_with(site, web, tmp_path):
    site.plans["/a.fits"] = [break_off(1000)] + [break_off(0)] * 3
    with pytest.raises(FetchError):
        fetch([entry(site)], tmp_path, web=web)
    assert Downloader(web, tmp_path).kept(entry(site)) > 0
    (path,) = fetch([Entry("a.fits", site.url + "/b.fits")], tmp_path, web=web)
    assert path.read_bytes() == OTHER


def part(start, stop, total, body):
    """Answer that this is a part of the file, whatever was asked for."""
    headers = {"Content-Range": f"bytes {start}-{stop}/{total}", "Content-Length": str(len(body))}
    return lambda handler: handler.answer(206, body, headers)


@pytest.mark.parametrize(
    "wrong",
    [
        part(5_000, 299_999, 300_000, DATA[5_000:]),
        part(10_000, 19_999, 300_000, DATA[10_000:20_000]),
        part(10_000, 399_999, 400_000, DATA[10_000:]),
        status(206, Content_Range="rows 1-2"),
        status(416),
    ],
)
def test_another_part_than_was_asked_for_is_not_joined(site, web, tmp_path, wrong):
    site.plans["/a.fits"] = [break_off(10_000), wrong]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    asked = [headers.get("Range") for headers in site.gets("/a.fits")]
    assert asked == [None, "bytes=10000-", None]


def test_a_rest_of_unknown_length_is_gone_on_with(site, web, tmp_path):
    site.plans["/a.fits"] = [break_off(10_000), part(10_000, 299_999, "*", DATA[10_000:])]
    (path,) = fetch([entry(site)], tmp_path, web=web)
    assert path.read_bytes() == DATA
    assert len(site.gets("/a.fits")) == 2


def test_a_server_that_never_gives_the_rest_is_given_up(site, web, tmp_path):
    site.plans["/a.fits"] = [break_off(10_000)] + [status(416)] * 9
    with pytest.raises(FetchError, match="fewer bytes than it gave before, again and again"):
        fetch([entry(site)], tmp_path, web=web)
    assert len(site.gets("/a.fits")) == 4


def test_an_answer_without_a_file_is_said(site, web, tmp_path):
    site.plans["/a.fits"] = [status(204)]
    with pytest.raises(FetchError, match="the server answers 204 No Content, not the file"):
        fetch([entry(site)], tmp_path, web=web)
    assert leftovers(tmp_path) == []


def test_a_file_that_is_sent_packed_is_refused(site, web, tmp_path):
    def packed(handler):
        handler.answer(200, DATA, {**handler.described(DATA), "Content-Encoding": "br"})

    site.plans["/a.fits"] = [packed]
    with pytest.raises(FetchError, match=r"sent packed \(br\), which was not asked for"):
        fetch([entry(site)], tmp_path, web=web)
    assert not (tmp_path / "a.fits").exists()


def test_a_body_longer_than_published_is_refused(site, web, tmp_path):
    site.lengths = False
    with pytest.raises(FetchError, match="gives more than the 10 bytes it announced"):
        fetch([entry(site, bytes=10)], tmp_path, web=web)
    assert leftovers(tmp_path) == []


def test_an_empty_file_is_no_file_unless_it_is_published_so(site, web, tmp_path):
    site.files["/a.fits"] = b""
    with pytest.raises(FetchError, match=r"given up after 3 attempts.*sends an empty file"):
        fetch([entry(site)], tmp_path, web=web)
    (path,) = fetch([entry(site, bytes=0)], tmp_path, web=web)
    assert path.read_bytes() == b""


def test_a_downloader_alone_says_what_it_received(site, web, tmp_path):
    received = Downloader(web, tmp_path).download(entry(site))
    assert (received.size, received.sha256, received.remote.size) == (300_000, SHA, 300_000)
    assert (tmp_path / "a.fits").read_bytes() == DATA
    assert not (tmp_path / MANIFEST).exists()


def test_a_file_of_the_users_own_is_recorded_if_the_server_has_as_many_bytes(site, web, tmp_path):
    (tmp_path / "a.fits").write_bytes(DATA)
    todo = plan([entry(site)], tmp_path, web=web)
    assert str(todo) == f"all 1 files are in {tmp_path}"
    fetch([entry(site)], tmp_path, web=web)
    assert site.gets("/a.fits") == []
    record = json.loads((tmp_path / MANIFEST).read_text())["files"]["a.fits"]
    assert (record["sha256"], record["size"], record["published"]) == (SHA, 300_000, False)


def test_what_is_in_the_place_of_a_file_is_said(site, web, tmp_path):
    (tmp_path / "a.fits").mkdir()
    with pytest.raises(OutputExists, match=r"a\.fits is no file; move it away"):
        plan([entry(site)], tmp_path, web=web)
    (tmp_path / "a.fits").rmdir()
    fetch([entry(site)], tmp_path, web=web)
    (tmp_path / "a.fits").write_bytes(DATA[:100])
    with pytest.raises(OutputExists, match="has 100 bytes; when it was downloaded it had 300000"):
        plan([entry(site)], tmp_path, web=web)


def test_a_manifest_of_another_format_says_so(site, web, tmp_path):
    (tmp_path / MANIFEST).write_text('{"format": 99, "files": {}}')
    with pytest.raises(FetchError, match=r"damaged \(format 99 is not known\); remove it"):
        plan([entry(site)], tmp_path, web=web)


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (3.97e9, "3.97 GB"), (2.5e12, "2.5 TB")],
)
def test_sizes_are_in_words(size, words):
    assert readable(size) == words
