"""Polite requests: who asks is said, one connection per host, waits that servers ask for."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit

import requests
from urllib3.exceptions import HTTPError

from maury.errors import FetchError
from maury.survey.fetch.guard import Guard, GuardedAdapter
from maury.version import __version__

logger = logging.getLogger(__name__)

CONTACT = "https://maury.readthedocs.io"
BUSY = (429, 500, 502, 503, 504)
"""Answers that ask to come again."""
_MOST_REDIRECTS = 5
"""More are a circle; archives need one or two."""
_REDIRECTS = (301, 302, 303, 307, 308)
"""Followed here, not by the library, so that each address can be checked."""


class Interrupted(Exception):
    """The server broke off, stalled or was busy: worth another attempt."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class Refused(FetchError):
    """The server has an answer, and it is no."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Manners:
    """How patiently servers are asked.

    Attributes
    ----------
    connect_s, stall_s : float
        Longest wait for a connection, and for the next bytes.
    least_rate : float
        Bytes per second, over `stall_s`, below which a download counts as stalled.
    attempts : int
        Attempts in a row without progress.
    first_wait_s, longest_wait_s : float
        Wait after the first failure, doubled after each; longest wait a server may ask for.
    """

    connect_s: float = 30.0
    stall_s: float = 60.0
    least_rate: float = 100.0
    attempts: int = 6
    first_wait_s: float = 1.0
    longest_wait_s: float = 300.0


@dataclass(frozen=True, eq=False)
class Web:
    """A session of requests; also a context manager, which closes it.

    Attributes
    ----------
    manners : Manners
    sleep : callable
        Waits for seconds.
    session : requests.Session
    guard : Guard
        Says where servers may lead.
    """

    manners: Manners = Manners()
    sleep: Callable[[float], None] = time.sleep
    session: requests.Session = field(default_factory=requests.Session)
    guard: Guard = field(default_factory=Guard)

    def __post_init__(self) -> None:
        """Say who asks."""
        adapter = GuardedAdapter(self.guard)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        self.session.headers["User-Agent"] = f"maury/{__version__} (+{CONTACT})"
        # A file is what its bytes are: a server that packs it on the way would change its length.
        self.session.headers["Accept-Encoding"] = "identity"

    def __enter__(self) -> Web:
        return self

    def __exit__(self, *_: object) -> None:
        self.session.close()

    @contextmanager
    def ask(
        self,
        url: str,
        *,
        method: str = "GET",
        headers: Mapping[str, str] | None = None,
        told_by: str | None = None,
    ) -> Iterator[requests.Response]:
        """Yield the answer to one request, its body not read.

        Parameters
        ----------
        url, method : str
        headers : mapping, optional
        told_by : str, optional
            Address of the server that named this one, if it was not the user: it counts as
            redirected.

        Raises
        ------
        Interrupted
            If the server cannot be reached, breaks off or is busy.
        FetchError
            If it redirects to anything but HTTP, or into the private network, or refuses.
        """
        with self._answer(url, method, dict(headers or {}), told_by or url) as response:
            if method == "HEAD":
                # An answer that was read to its end leaves the connection open for the next.
                response.raw.read()
            self._check(response)
            yield response

    def _answer(
        self, url: str, method: str, headers: dict[str, str], origin: str
    ) -> requests.Response:
        try:
            return self._follow(url, method, headers, origin)
        # A certificate that is wrong now is wrong in a minute: no second attempt.
        except requests.exceptions.SSLError as error:
            raise FetchError(
                f"{url}: the server cannot be trusted ({error}); check the address and the clock "
                "of this machine"
            ) from error
        except (requests.ConnectionError, requests.Timeout) as error:
            raise Interrupted(f"{type(error).__name__}: {error}") from error
        except (requests.RequestException, HTTPError, ValueError) as error:
            raise FetchError(f"{url} cannot be asked: {error}; check the address") from error

    def _follow(
        self, url: str, method: str, headers: dict[str, str], origin: str
    ) -> requests.Response:
        """Follow redirects by hand, as each must lead to HTTP, and HTTPS never to less."""
        start = url
        for _ in range(_MOST_REDIRECTS + 1):
            self.guard.enter(url, origin)
            response = self.session.request(
                method,
                url,
                headers=headers,
                stream=True,
                allow_redirects=False,
                timeout=(self.manners.connect_s, self.manners.stall_s),
            )
            target = response.headers.get("Location")
            if response.status_code not in _REDIRECTS or target is None:
                return response
            response.close()
            old, url = url, urljoin(url, target)
            scheme = urlsplit(url).scheme
            if scheme not in ("http", "https") or (
                scheme == "http" and urlsplit(old).scheme == "https"
            ):
                raise FetchError(
                    f"{start} redirects to {url}, which is not followed; "
                    "check the address, and correct it in the recipe"
                )
        raise FetchError(f"{start} redirects more than {_MOST_REDIRECTS} times; check the address")

    def _check(self, response: requests.Response) -> None:
        status = response.status_code
        if status in BUSY:
            raise Interrupted(
                f"the server answers {status} {response.reason}",
                _retry_after(response.headers.get("Retry-After")),
            )
        if status >= 400 and status != 416:
            raise Refused(
                f"{response.url}: the server answers {status} {response.reason}; check whether "
                "the file has moved",
                status,
            )

    def wait(self, attempt: int, reason: Interrupted, what: str) -> None:
        """Wait before another attempt.

        Raises
        ------
        FetchError
            If there were enough of them, or the server asks for too long a wait.
        """
        if attempt >= self.manners.attempts:
            raise FetchError(
                f"{what}: given up after {attempt} attempts without progress ({reason}); "
                "run the same command again later, it goes on where this one stopped"
            )
        own = self.manners.first_wait_s * 2.0 ** (attempt - 1)
        asked = max(own, reason.wait_s or 0.0)
        if reason.wait_s is not None and asked > self.manners.longest_wait_s:
            raise FetchError(
                f"{what}: the server asks to wait {asked:.0f} s ({reason}); run the same command "
                "again then"
            )
        logger.info("%s: %s; again in %.0f s", what, reason, asked)
        self.sleep(min(asked, self.manners.longest_wait_s))


def _retry_after(value: str | None) -> float | None:
    """Seconds that a server asks to wait, given as such or as a date."""
    if value is None:
        return None
    if value.isascii() and value.isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return None
