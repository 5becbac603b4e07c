"""The page's server: loopback only, read only, one key per run.

Whoever has the link has the key: it is set as a cookie by the first request, and asked for ever
after. The name that a request calls the server by must be a loopback name, so that no web page can
have its own name resolved to this machine and read the answers. Requests ask, and change nothing:
the two that are sent by POST carry a selection, which is too long for an address.
"""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from http import HTTPStatus
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread
from types import TracebackType
from typing import Any, Self
from urllib.parse import SplitResult, parse_qs, urlsplit

from maury.errors import ConfigError, MauryError
from maury.model.directory import Model
from maury.prediction.catalogue import Catalogue
from maury.report.explorer.answers import Answer, Answers, Refusal
from maury.report.explorer.stars import NotKnown
from maury.report.explorer.wire import BoundedServer, TimedHandler
from maury.survey.store import Survey

logger = logging.getLogger(__name__)

ADDRESS = "127.0.0.1"
_NAMES = frozenset({"127.0.0.1", "localhost", "[::1]"})
# Longer than any address of the page, which names at most one column or star.
_LONGEST_TARGET = 2048
_OPENING = """<!doctype html>
<meta charset="utf-8"><title>maury</title><meta name="referrer" content="no-referrer">
<meta http-equiv="refresh" content="0;url={link}"><a href="{link}">maury</a>
"""
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Explorer:
    """A running explorer of one catalogue.

    Parameters
    ----------
    catalogue : Catalogue or path-like
        What to show.
    name : str, optional
        What to call it; the name of its file by default.
    survey : Survey or path-like, optional
        Where its spectra are.
    model : Model or path-like, optional
        What predicted its labels.
    port : int
        Port on 127.0.0.1; 0 takes a free one.
    stage : callable
        Told what is done next, which takes a while of a large catalogue.

    Raises
    ------
    ConfigError
        If the port is taken or not allowed.
    InputFileError, SurveyFileError, ModelFileError
        If a file cannot be read.

    Examples
    --------
    >>> with Explorer("labels.fits", survey="rave.zarr") as explorer:  # doctest: +SKIP
    ...     print(explorer.link)
    """

    def __init__(
        self,
        catalogue: Catalogue | Path | str,
        *,
        name: str | None = None,
        survey: Survey | Path | str | None = None,
        model: Model | Path | str | None = None,
        port: int = 0,
        stage: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._sent = TemporaryDirectory(prefix="maury-explore-")
        with ExitStack() as stack:
            stack.enter_context(self._sent)
            self.answers = Answers.open(
                catalogue,
                name=name,
                survey=survey,
                model=model,
                folder=self.folder,
                stage=stage,
            )
            self.content = self.answers.content
            # 192 bits: another user of this machine can connect, but not guess.
            self.key = secrets.token_urlsafe(24)
            self._server = _listen(port, self)
            stack.callback(self._server.server_close)
            self.opening_file = self.folder / "open.html"
            """Private, leads a browser to the link, as arguments of programs are seen by all."""
            number = os.open(self.opening_file, os.O_CREAT | os.O_WRONLY, 0o600)
            with os.fdopen(number, "w") as file:
                file.write(_OPENING.format(link=self.link))
            stack.pop_all()
        self._thread = Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def address(self) -> str:
        """Address of the page, without the key."""
        return f"http://{ADDRESS}:{self.port}/"

    @property
    def link(self) -> str:
        """Address that opens the page: it holds the key, so show it to its user only."""
        return f"{self.address}?key={self.key}"

    @property
    def folder(self) -> Path:
        """Private directory of the files that other programs were asked to read."""
        return Path(self._sent.name)

    def wait(self) -> None:
        """Return when the server is closed."""
        self._thread.join()

    def close(self) -> None:
        """Stop listening and remove temporary files."""
        self._server.shutdown()
        self._server.server_close()
        self._sent.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def explore(
    catalogue: Path | str,
    *,
    survey: Path | str | None = None,
    model: Path | str | None = None,
    port: int = 0,
    browser: bool = True,
    ready: Callable[[Explorer], None] | None = None,
    stage: Callable[[str], None] = lambda text: None,
) -> None:
    """Show a catalogue in the browser until interrupted.

    Parameters
    ----------
    catalogue : Catalogue or path-like
    survey : path-like, optional
        Survey whose spectra are shown.
    model : path-like, optional
        Model whose fit and sensitivity are shown.
    port : int
        Port of this machine to listen on; 0 takes any free one.
    browser : bool
        Open the page in the user's browser.
    ready : callable, optional
        Called with the explorer when it listens.
    stage : callable
        Told what is done next until then.
    """
    explorer = Explorer(catalogue, survey=survey, model=model, port=port, stage=stage)
    # Whoever is told that it listens may interrupt at once, before it is waited for.
    with explorer, suppress(KeyboardInterrupt):
        if ready is not None:
            ready(explorer)
        if browser:
            import webbrowser

            webbrowser.open(explorer.opening_file.as_uri())
        explorer.wait()


class _Server(BoundedServer):
    daemon_threads = True
    allow_reuse_address = True
    explorer: Explorer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a connection that the browser broke off."""
        logger.debug("a connection ended early", exc_info=True)


def _listen(port: int, explorer: Explorer) -> _Server:
    try:
        server = _Server((ADDRESS, port), _Handler)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"cannot listen on port {port} of {ADDRESS}: {error}; choose another --port"
        ) from error
    server.explorer = explorer
    return server


class _Handler(TimedHandler):
    protocol_version = "HTTP/1.1"
    server_version = "maury"
    sys_version = ""
    timeout = 60
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    server: _Server

    def do_GET(self) -> None:  # noqa: N802
        self._answer(self._get)

    def do_HEAD(self) -> None:  # noqa: N802
        self._answer(self._get)

    def do_POST(self) -> None:  # noqa: N802
        self._answer(self._post)

    def _answer(self, handle: Callable[[str, dict[str, str]], None]) -> None:
        try:
            path, query = self._checked()
            with self.answering():
                handle(path, query)
        except Refusal as refusal:
            self._refuse(refusal.status, refusal.text)
        except NotKnown as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except MauryError as error:
            self._refuse(HTTPStatus.UNPROCESSABLE_ENTITY, str(error))
        # The browser went away; there is nobody left to tell.
        except (ConnectionError, TimeoutError):
            self.close_connection = True
        # The page lives on, and the reason stands in the terminal of whom it concerns.
        except Exception:
            logger.exception("a request failed")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; see its terminal")

    def _checked(self) -> tuple[str, dict[str, str]]:
        """Return path and query of a request that may be answered."""
        if self.request_version == "HTTP/0.9":
            # Its answers have no headers, and so no content security policy.
            self.request_version = "HTTP/1.1"
            raise Refusal(HTTPStatus.BAD_REQUEST, "ask by HTTP/1.1")
        # Proxies and servers disagree on which of two counts: so-called request smuggling.
        if len(self.headers.get_all("Host", [])) > 1:
            raise Refusal(HTTPStatus.BAD_REQUEST, "a request names one host")
        if "Transfer-Encoding" in self.headers:
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "a body is sent with its length")
        if self.command != "POST" and self.headers.get("Content-Length", "0").strip() != "0":
            raise Refusal(HTTPStatus.BAD_REQUEST, f"{self.command} takes no body")
        name = re.sub(r":\d{1,5}\Z", "", self.headers.get("Host", "").strip().lower())
        # Against DNS rebinding: the name of a stranger's page may point to 127.0.0.1.
        if name not in _NAMES:
            raise Refusal(HTTPStatus.FORBIDDEN, "this server answers to loopback names only")
        if self.headers.get("Sec-Fetch-Site", "none") in ("cross-site", "same-site") and (
            self.headers.get("Sec-Fetch-Mode") != "navigate" or self.command == "POST"
        ):
            raise Refusal(HTTPStatus.FORBIDDEN, "other pages may not ask this server")
        # Browsers without Sec-Fetch headers still send the origin of a POST.
        origin = self.headers.get("Origin")
        if origin is not None and _split(origin).netloc != self.headers.get("Host", "").strip():
            raise Refusal(HTTPStatus.FORBIDDEN, "other pages may not ask this server")
        if len(self.path) > _LONGEST_TARGET:
            raise Refusal(HTTPStatus.REQUEST_URI_TOO_LONG, "the address is too long")
        target = _split(self.path)
        query = {name: values[-1] for name, values in parse_qs(target.query).items()}
        # The link itself brings the key; everything after it needs the cookie.
        if target.path != "/" or "key" not in query:
            self._require_cookie()
        elif not hmac.compare_digest(
            query["key"].encode("utf-8", "replace"), self.server.explorer.key.encode()
        ):
            raise Refusal(HTTPStatus.FORBIDDEN, "open the link that maury explore printed")
        return target.path, query

    def _require_cookie(self) -> None:
        wanted = f"{self._cookie_name}={self.server.explorer.key}".encode()
        given = [part.strip() for part in self.headers.get("Cookie", "").split(";")]
        # In constant time, so that answers do not tell how much of a guess was right.
        if not any(hmac.compare_digest(part.encode("utf-8", "replace"), wanted) for part in given):
            raise Refusal(HTTPStatus.FORBIDDEN, "open the link that maury explore printed")

    @property
    def _cookie_name(self) -> str:
        """Name with the port: cookies of one host are common to all its ports."""
        return f"maury-{self.server.explorer.port}"

    def _get(self, path: str, query: dict[str, str]) -> None:
        explorer = self.server.explorer
        if path == "/" and "key" in query:
            # Lax, not Strict: the first request comes from wherever the link was clicked.
            cookie = f"{self._cookie_name}={explorer.key}; Path=/; HttpOnly; SameSite=Lax"
            aside = {"Location": "/", "Set-Cookie": cookie}
            self._send(b"", "text/plain", HTTPStatus.SEE_OTHER, aside)
        else:
            self._tell(explorer.answers.get(path, query))

    def _post(self, path: str, query: dict[str, str]) -> None:
        self._tell(self.server.explorer.answers.post(path, query, self._body))

    def _tell(self, answer: Answer) -> None:
        try:
            if isinstance(answer.body, bytes):
                self._send(answer.body, answer.kind, extra=answer.headers)
                return
            with answer.body.open("rb") as file:
                self._head(
                    HTTPStatus.OK, answer.kind, os.fstat(file.fileno()).st_size, answer.headers
                )
                if self.command != "HEAD":
                    shutil.copyfileobj(file, self.wfile)
                self.wfile.flush()
        finally:
            answer.done()

    def _body(self, length: int) -> bytes:
        text = self.headers.get("Content-Length", "")
        if not re.fullmatch(r"[0-9]{1,18}", text, re.ASCII):
            raise Refusal(HTTPStatus.LENGTH_REQUIRED, "a selection needs a Content-Length")
        if int(text) != length:
            raise ValueError(f"a selection of this catalogue has {length} bytes, got {int(text)}")
        body = self.rfile.read(length)
        if len(body) != length:
            raise ValueError(f"a selection of this catalogue has {length} bytes, got {len(body)}")
        return body

    def _refuse(self, status: HTTPStatus, text: str) -> None:
        # What is left of a refused request's body would be taken for the next request.
        self.close_connection = True
        body = json.dumps({"error": text}).encode()
        with suppress(OSError):
            self._send(body, "application/json", status, {"Connection": "close"})

    def _send(
        self,
        body: bytes,
        kind: str,
        status: HTTPStatus = HTTPStatus.OK,
        extra: Mapping[str, str] | None = None,
    ) -> None:
        self._head(status, kind, len(body), extra or {})
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()

    def _head(self, status: HTTPStatus, kind: str, length: int, extra: Mapping[str, str]) -> None:
        self.answer_in(self.timeout)
        self.send_response(status)
        headers = {"Content-Type": kind, "Content-Length": str(length), **_HEADERS, **extra}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer a request that the parser refuses with one line, like all others."""
        status = HTTPStatus(code)
        if status is HTTPStatus.NOT_IMPLEMENTED:
            status, message = HTTPStatus.METHOD_NOT_ALLOWED, "only GET, HEAD and POST are answered"
        if not hasattr(self, "command") or self.command is None:
            self.command = ""
        # To what the parser takes for the oldest version it would answer without headers.
        self.request_version = "HTTP/1.1"
        self._refuse(status, message or status.phrase)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log the path alone: the query may hold the key."""
        path = getattr(self, "path", "").partition("?")[0].partition("#")[0]
        logger.info("%s %.200r %s", getattr(self, "command", ""), path, int(code))

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the parser's remarks out of the terminal: they quote requests whole."""


def _split(address: str) -> SplitResult:
    try:
        return urlsplit(address)
    except ValueError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "that is no address") from error
