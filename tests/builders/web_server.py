"""A local web server that misbehaves as told."""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Site:
    """What the server has, and how it behaves.

    `plans` holds, per path, functions that are used up one per GET before the honest answer.
    """

    files: dict[str, bytes] = field(default_factory=dict)
    plans: dict[str, list[Callable[[Handler], None]]] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)
    ranges: bool = True
    etags: bool = True
    heads: bool = True
    lengths: bool = True
    requests: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    connections: set[tuple[str, int]] = field(default_factory=set)
    post: Callable[[Handler], None] | None = None
    url: str = ""

    def gets(self, path: str) -> list[dict[str, str]]:
        """Headers of the GET requests of a path."""
        return [
            headers for method, asked, headers in self.requests if (method, asked) == ("GET", path)
        ]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def log_message(self, *_: object) -> None:
        pass

    def _note(self) -> None:
        self.site.requests.append((self.command, self.path, dict(self.headers.items())))
        self.site.connections.add(self.client_address)

    def do_HEAD(self) -> None:
        self._note()
        if not self.site.heads:
            self.answer(405, b"", {"Content-Length": "0"})
        elif self.path in self.site.files:
            self.answer(200, b"", self.described(self.site.files[self.path]))
        else:
            self.answer(404, b"", {"Content-Length": "0"})

    def do_GET(self) -> None:
        self._note()
        plans = self.site.plans.get(self.path.partition("?")[0])
        if plans:
            plans.pop(0)(self)
        else:
            self.honest()

    def do_POST(self) -> None:
        self._note()
        assert self.site.post is not None
        self.site.post(self)

    do_DELETE = do_POST  # noqa: N815

    def described(self, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": self.site.kinds.get(self.path, "application/octet-stream")}
        if self.site.lengths:
            headers["Content-Length"] = str(len(body))
        if self.site.etags:
            headers["ETag"] = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        return headers

    def honest(self, most: int | None = None) -> None:
        """Answer as HTTP wants it; with `most`, break off after so many bytes of the body."""
        if self.path not in self.site.files:
            self.answer(404, b"no", {"Content-Length": "2"})
            return
        body = self.site.files[self.path]
        headers = self.described(body)
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, headers.get("ETag"))
        status = 200
        if wanted and self.site.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.answer(416, b"", {"Content-Length": "0"})
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
            headers["Content-Length"] = str(len(body))
        self.answer(status, body, headers, most)

    def answer(
        self, status: int, body: bytes, headers: dict[str, str], most: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers and "Transfer-Encoding" not in headers:
            self.close_connection = True
        self.end_headers()
        self.wfile.write(body if most is None else body[:most])
        if most is not None:
            self.cut()

    def cut(self) -> None:
        """Close the connection without a word."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def status(code: int, **headers: str) -> Callable[[Handler], None]:
    """Answer with this status only."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda handler: handler.answer(code, b"", {"Content-Length": "0", **named})


def break_off(after: int) -> Callable[[Handler], None]:
    """Send so many bytes of the body, then close."""
    return lambda handler: handler.honest(after)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of clients that went away."""


@contextmanager
def serving(site: Site, address: str = "127.0.0.1") -> Iterator[Site]:
    """Serve a site on a free port of this machine."""
    server = _Server((address, 0), type("SiteHandler", (Handler,), {"site": site}))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    site.url = f"http://{address}:{server.server_address[1]}"
    try:
        yield site
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
