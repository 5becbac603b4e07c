"""Where servers may lead: never from the internet into the network of whoever asks.

A server that is asked for a file answers with the address of another, and a name of the internet
may be resolved to any machine. So the address of every connection is looked at once it is there,
before anything is sent. What the user names may lie anywhere, such as on a mirror of an institute,
and that may lead within the same network.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from maury.errors import FetchError

_PORTS = {"http": 80, "https": 443}
"""Of addresses that name none (RFC 9110)."""
Place = tuple[str, int]


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet: no loopback, link-local or private one."""
    return ipaddress.ip_address(address).is_global


def place_of(url: str) -> Place:
    """Return host and port of an address."""
    parts = urlsplit(url)
    return (parts.hostname or "").lower(), parts.port or _PORTS.get(parts.scheme, 0)


@dataclass(eq=False)
class Guard:
    """Looks after the connections of one session.

    Attributes
    ----------
    reached : dict of (host, port) to bool
        Whether the servers that were asked are on the internet.
    lets_private : bool
        Whether the request under way may go to a server that is not.
    """

    reached: dict[Place, bool] = field(default_factory=dict)
    lets_private: bool = True

    def enter(self, url: str, origin: str) -> None:
        """Begin a request to `url`, to which asking `origin` has led; both are equal at first.

        Raises
        ------
        FetchError
            If it leads from the internet to a private address, or from HTTPS to HTTP.
        """
        place, first = place_of(url), place_of(origin)
        # A name that was resolved to the internet once may not be to this machine later.
        named = place == first and self.reached.get(place) is not True
        self.lets_private = named or self.reached.get(first) is False
        if urlsplit(origin).scheme == "https" and urlsplit(url).scheme != "https":
            raise _refused(origin, url, "which is not followed: it would not be encrypted")
        if not self.lets_private and (self.reached.get(place) is False or _is_private(place[0])):
            raise _refused(origin, url, "a private address, which is not followed")

    def connected(self, place: Place, address: str) -> None:
        """Look at the address that a connection was made to, before anything is sent."""
        public = is_public(address)
        # The first answer stands, so that another attempt is no way around.
        self.reached.setdefault(place, public)
        if not public and not self.lets_private:
            raise FetchError(
                f"{place[0]} is {address}, a private address, to which a server of the internet "
                "led; it is not asked: check the address, and correct it in the recipe"
            )


class GuardedAdapter(HTTPAdapter):
    """Connections that a guard looks at.

    Parameters
    ----------
    guard : Guard
    most_bytes : int, optional
        Of the body of an answer, which is then read at once; of any length by default.
    """

    def __init__(self, guard: Guard, *, most_bytes: int | None = None) -> None:
        self._guard, self._most = guard, most_bytes
        # Retries are ours: those of the library would begin a download anew in silence.
        super().__init__(pool_connections=1, pool_maxsize=1, max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools of connections, see `HTTPAdapter`."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {
            "http": _pool(HTTPConnectionPool, HTTPConnection, self._guard),
            "https": _pool(HTTPSConnectionPool, HTTPSConnection, self._guard),
        }

    def send(
        self, request: requests.PreparedRequest, *args: Any, **kwargs: Any
    ) -> requests.Response:
        """Send a request, see `HTTPAdapter`."""
        response = super().send(request, *args, **kwargs)
        if self._most is not None:
            body = response.raw.read(self._most + 1, decode_content=True)
            if len(body) > self._most:
                response.close()
                raise FetchError(f"{request.url} answers with more than {self._most} bytes")
            response._content = body
        return response


def _pool(pool: Any, connection: Any, guard: Guard) -> Any:
    """Return a class of pools whose connections `guard` looks at."""

    def new_connection(self: Any) -> Any:
        made = connection._new_conn(self)
        try:
            guard.connected((self.host.lower(), self.port), made.getpeername()[0])
        except BaseException:
            made.close()
            raise
        return made

    guarded = type("Guarded", (connection,), {"_new_conn": new_connection})
    return type("GuardedPool", (pool,), {"ConnectionCls": guarded})


def _is_private(host: str) -> bool:
    """Whether a name says by itself that it is no server of the internet."""
    try:
        return not is_public(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _refused(origin: str, url: str, why: str) -> FetchError:
    return FetchError(
        f"{origin} redirects to {url}, {why}; check the address, and correct it in the recipe"
    )
