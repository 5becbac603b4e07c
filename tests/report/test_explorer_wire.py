"""The explorer against clients that do it harm: slow ones, many, and those of other pages."""

import logging
import os
import socket
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from builders.catalogues import write_catalogue
from builders.clock import ANTI_HANG, Clock
from maury.report.explorer import Explorer, server, wire
from maury.report.explorer import answers as answers_module

N = 20


@pytest.fixture(scope="module")
def explorer(tmp_path_factory):
    catalogue = write_catalogue(tmp_path_factory.mktemp("wire") / "stars.parquet", N)
    with Explorer(catalogue, name="stars.parquet") as explorer:
        yield explorer


def request(explorer, line="GET /api/about HTTP/1.1", *headers, host="127.0.0.1", body=b""):
    lines = [line, f"Host: {host}", f"Cookie: maury-{explorer.port}={explorer.key}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def is_closed(one: socket.socket) -> bool:
    """Whether the server closes a connection without a word; bytes it has not read reset it."""
    try:
        return one.recv(10) == b""
    except ConnectionError:
        return True


def ask(explorer, data: bytes, timeout=ANTI_HANG) -> bytes:
    with socket.create_connection(("127.0.0.1", explorer.port), timeout=timeout) as one:
        one.sendall(data)
        one.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: one.recv(65536), b""))


def select(explorer, line: str, body: bytes) -> bytes:
    return ask(explorer, request(explorer, line, f"Content-Length: {len(body)}", body=body))


def answers(explorer) -> bool:
    return ask(explorer, request(explorer, "GET /api/about HTTP/1.1")).startswith(b"HTTP/1.1 200")


def test_only_loopback_listens(explorer):
    assert explorer._server.server_address[0] == "127.0.0.1"
    own = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in own - {"127.0.0.1"}:
        with pytest.raises(ConnectionRefusedError), socket.socket() as other:
            other.settimeout(2)
            other.connect((address, explorer.port))


def test_a_request_that_drips_is_given_up(explorer, monkeypatch):
    clock = Clock()
    with monkeypatch.context() as patch:
        patch.setattr(wire, "time", clock)
        with socket.create_connection(("127.0.0.1", explorer.port), timeout=ANTI_HANG) as one:
            one.sendall(b"GET /api/about HTTP/1.1\r\n")
            # The first look is at the start; the last bytes may find that it is closed already.
            with suppress(ConnectionError):
                for _ in range(int(wire.REQUEST_SECONDS)):
                    assert clock.looks.acquire(timeout=ANTI_HANG)
                    one.sendall(b"a")
            assert is_closed(one)
    assert answers(explorer)


def test_an_idle_connection_is_closed(explorer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(wire, "IDLE_SECONDS", 0.05)
        with socket.create_connection(("127.0.0.1", explorer.port), timeout=ANTI_HANG) as one:
            one.sendall(request(explorer))
            while not is_closed(one):
                pass
    assert answers(explorer)


def test_a_body_that_never_comes_is_given_up(explorer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(wire, "REQUEST_SECONDS", 0.05)
        with socket.create_connection(("127.0.0.1", explorer.port), timeout=ANTI_HANG) as one:
            one.sendall(request(explorer, "POST /api/download HTTP/1.1", "Content-Length: 3"))
            assert b"HTTP/1.1 200" not in b"".join(iter(lambda: one.recv(65536), b""))
    assert answers(explorer)


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", b"G", b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n"])
def test_any_number_of_silent_connections_leaves_room_for_the_owner(explorer, first):
    with socket.create_connection(("127.0.0.1", explorer.port), timeout=ANTI_HANG) as page:
        page.sendall(request(explorer))
        assert page.recv(12) == b"HTTP/1.1 200"
        silent = []
        for _ in range(2 * wire.MOST_CONNECTIONS + 6):
            silent.append(socket.create_connection(("127.0.0.1", explorer.port), ANTI_HANG))
            silent[-1].sendall(first)
        try:
            # A connection of the page's own, though it is idle, and a new one.
            page.sendall(request(explorer))
            got = b""
            while b"HTTP/1.1 200" not in got:
                got += page.recv(1 << 16)
            assert answers(explorer)
            assert explorer._server.n_held <= wire.MOST_CONNECTIONS
            assert is_closed(silent[0])
        finally:
            for one in silent:
                one.close()


def test_those_that_are_being_answered_are_not_ended(explorer):
    """If all are, a new one is refused: so many at once bound the memory."""
    ours, theirs = socket.socketpair()
    held = {object(): wire.Standing.ANSWERED for _ in range(wire.MOST_CONNECTIONS)}
    some = BoundedServerOf(held)
    with ours, theirs:
        some.process_request(theirs, ("127.0.0.1", 1))
        assert is_closed(ours)
    assert some.n_held == wire.MOST_CONNECTIONS


class BoundedServerOf(wire.BoundedServer):
    """A server that holds these connections, and listens nowhere."""

    def __init__(self, held):
        super().__init__(("127.0.0.1", 0), wire.TimedHandler, bind_and_activate=False)
        self.server_close()
        self._held = held


def test_a_stranger_has_the_time_of_one_request(explorer, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(wire, "REQUEST_SECONDS", 0.05)
        with socket.create_connection(("127.0.0.1", explorer.port), timeout=ANTI_HANG) as one:
            assert is_closed(one)
    assert answers(explorer)


def test_the_key_is_handed_to_the_browser_by_a_private_file(tmp_path, monkeypatch):
    """What a browser is called with stands in the list of processes."""
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)

    def ready(running):
        found.append((running.key, running.opening_file.read_text(), running.link))
        for path in (running.opening_file, running.folder):
            assert path.stat().st_mode & 0o077 == 0
        running._server.shutdown()

    found = []
    write_catalogue(tmp_path / "stars.parquet", N)
    server.explore(tmp_path / "stars.parquet", ready=ready)
    [(key, text, link)] = found
    assert len(opened) == 1
    assert opened[0].startswith("file://")
    assert key not in opened[0]
    assert f'content="0;url={link}"' in text
    assert not Path(opened[0].removeprefix("file://")).exists()


@pytest.mark.parametrize(
    ("line", "headers", "status"),
    [
        ("GET /api/about HTTP/1.1", ["Host: evil.example"], b" 400 "),
        ("GET http://[ HTTP/1.1", [], b" 400 "),
        ("GET /api/about HTTP/1.1", ["Origin: http://["], b" 400 "),
        ("GET /api/about HTTP/1.1", ["Content-Length: 5"], b" 400 "),
        ("GET /api/about HTTP/1.1", ["Transfer-Encoding: chunked"], b" 411 "),
        ("POST /api/download HTTP/1.1", ["Content-Length: 3", "Content-Length: 9"], b" "),
        ("GET /api/about HTTP/1.1", [f"X-{k}: 1" for k in range(200)], b" 431 "),
        ("GET /api/about HTTP/1.1", ["X: " + "a" * 70_000], b" 431 "),
        ("GET /" + "a" * 70_000 + " HTTP/1.1", [], b" 414 "),
        ("TRACE /api/about HTTP/1.1", [], b" 405 "),
        ("CONNECT 127.0.0.1:80 HTTP/1.1", [], b" 405 "),
        ("GET /api/about HTTP/9.9", [], b" 505 "),
    ],
)
def test_odd_requests_are_refused(explorer, line, headers, status):
    answer = ask(explorer, request(explorer, line, *headers))
    first = answer.split(b"\r\n")[0]
    assert status in first
    assert b" 200 " not in first
    assert b" 500 " not in first
    assert b"Content-Security-Policy: default-src 'none'" in answer
    assert answers(explorer)


def test_no_page_without_headers(explorer):
    answer = ask(explorer, request(explorer, "GET /static/main.js"))
    assert b"ask by HTTP/1.1" in answer
    assert b"function" not in answer


@pytest.mark.parametrize(
    "host", ["rebound.example", "127.0.0.1.nip.example", "[::ffff:7f00:1]", ""]
)
def test_names_that_were_resolved_to_this_machine_get_nothing(explorer, host):
    for path in ("/", "/?key=" + explorer.key, "/static/main.js", "/api/about"):
        answer = ask(explorer, request(explorer, f"GET {path} HTTP/1.1", host=host))
        assert answer.startswith(b"HTTP/1.1 403")
        assert explorer.key.encode() not in answer


def test_the_key_is_in_no_log(explorer, caplog, monkeypatch):
    def fail(*args):
        raise RuntimeError("a fault")

    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr(answers_module.Answers, "_column", fail)
    paths = [f"/?key={explorer.key}", f"/api/about?key={explorer.key}", f"/x?key={explorer.key}"]
    paths += [
        f"//{explorer.address[7:]}?key={explorer.key}",
        "/api/column/teff",
        f"/?x#{explorer.key}",
    ]
    for path in paths:
        ask(explorer, request(explorer, f"GET {path} HTTP/1.1"))
    ask(explorer, request(explorer, f"BREW /?key={explorer.key} HTTP/1.1"))
    assert "a request failed" in caplog.text
    assert "GET" in caplog.text
    assert explorer.key not in caplog.text


def test_no_address_writes_to_the_disk(explorer, monkeypatch):
    home = Path.cwd()

    def state():
        return {
            p: p.stat().st_mtime_ns for p in (home, explorer.folder, *explorer.folder.iterdir())
        }

    chosen = np.packbits(np.arange(N) < 3, bitorder="little").tobytes()
    assert os.stat(explorer.folder).st_mode & 0o077 == 0
    names = sorted(os.listdir(explorer.folder))
    paths = [
        "/",
        "/api/about",
        "/api/column/teff",
        "/api/star/3",
        "/api/find?id=x",
        "/static/main.js",
    ]
    before = state()
    for path in paths:
        ask(explorer, request(explorer, f"GET {path} HTTP/1.1"))
    assert state() == before
    for kind in answers_module.FORMATS:
        line = f"POST /api/download?format={kind}&path=/tmp/x&name=../../x HTTP/1.1"
        answer = ask(
            explorer, request(explorer, line, f"Content-Length: {len(chosen)}", body=chosen)
        )
        assert answer.startswith(b"HTTP/1.1 200")
    assert sorted(os.listdir(explorer.folder)) == names
    for method in ("PUT", "DELETE", "PATCH"):
        answer = ask(explorer, request(explorer, f"{method} /api/download HTTP/1.1"))
        assert answer.startswith(b"HTTP/1.1 405")


def test_tables_for_other_programs_do_not_fill_the_disk(explorer, monkeypatch):
    monkeypatch.setattr(answers_module.samp, "hub_runs", lambda: True)
    monkeypatch.setattr(answers_module.samp, "send_table", lambda path, name: ["a program"])
    chosen = np.packbits(np.arange(N) < 3, bitorder="little").tobytes()
    for _ in range(answers_module._MOST_SENT + 3):
        answer = select(explorer, "POST /api/samp HTTP/1.1", chosen)
        assert b"a program" in answer
    assert len(list(explorer.folder.glob("selection-*.fits"))) == answers_module._MOST_SENT


def test_so_many_downloads_at_once(explorer, monkeypatch):
    monkeypatch.setattr(answers_module, "_WRITER_SECONDS", 0.1)
    writers = explorer.answers.writers
    for _ in range(answers_module._MOST_WRITERS):
        assert writers.acquire(timeout=ANTI_HANG)
    try:
        chosen = bytes((N + 7) // 8)
        line = "POST /api/download HTTP/1.1"
        answer = ask(
            explorer, request(explorer, line, f"Content-Length: {len(chosen)}", body=chosen)
        )
        assert answer.startswith(b"HTTP/1.1 503")
    finally:
        for _ in range(answers_module._MOST_WRITERS):
            writers.release()
