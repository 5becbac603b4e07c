"""Connections that may be held up on purpose: each has its time, and there are so many at most."""

import io
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock
from typing import Any

IDLE_SECONDS = 60.0
"""How long a connection that has shown the key may wait for its next request."""
REQUEST_SECONDS = 20.0
"""How long a request may take to arrive whole, once it has begun; one of a stranger, once the
connection is there."""
# A browser opens six to a host; so many leave room for ten pages, and bound the threads.
MOST_CONNECTIONS = 64


class Standing(Enum):
    """What a connection has shown, and whether it may be ended to make room for another."""

    STRANGER = "has not shown the key"
    WAITING = "has shown it, and asks nothing now"
    ANSWERED = "has shown it, and is being answered"


class TimedReader(io.RawIOBase):
    """Reads a socket until a time is up, however slowly bytes come."""

    def __init__(self, connection: Any) -> None:
        super().__init__()
        self._connection = connection
        self._end = 0.0

    def allow(self, seconds: float) -> None:
        """Give so much time from now on."""
        self._end = time.monotonic() + seconds

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what is there, or wait for it.

        Raises
        ------
        TimeoutError
            If the time is up.
        """
        # A deadline for the whole, not a time-out for each byte: one byte a second would hold it
        # forever.
        left = self._end - time.monotonic()
        if left <= 0:
            raise TimeoutError("the request takes too long to arrive")
        self._connection.settimeout(left)
        return int(self._connection.recv_into(buffer))


class TimedHandler(BaseHTTPRequestHandler):
    """A handler whose requests must arrive in time."""

    server: "BoundedServer"

    def setup(self) -> None:
        """Take the connection, see `socketserver.StreamRequestHandler`."""
        super().setup()
        # Python's reader knows no deadline, so that it is replaced by one that does.
        self.rfile.close()
        self._reader = TimedReader(self.connection)
        self._buffer = io.BufferedReader(self._reader, 1 << 16)
        self.rfile = self._buffer

    def handle_one_request(self) -> None:
        """Wait for a request, then for the whole of it, see `BaseHTTPRequestHandler`."""
        known = self.server.standing(self.connection) is not Standing.STRANGER
        self._reader.allow(IDLE_SECONDS if known else REQUEST_SECONDS)
        try:
            self._buffer.peek(1)
        except (TimeoutError, ConnectionError):
            self.close_connection = True
            return
        if known:
            self._reader.allow(REQUEST_SECONDS)
        super().handle_one_request()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Answer meanwhile a request that has shown the key."""
        self.server.stand(self.connection, Standing.ANSWERED)
        try:
            yield
        finally:
            self.server.stand(self.connection, Standing.WAITING)

    def answer_in(self, seconds: float | None) -> None:
        """Give each part of the answer so much time to be taken."""
        self.connection.settimeout(seconds)


class BoundedServer(ThreadingHTTPServer):
    """A server that holds so many connections at once.

    Whoever may connect can open any number of them and be silent, and the port tells nobody whose
    they are. So a new one is always let in, in place of the oldest that has not shown the key, or
    else has nothing to ask.
    """

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[Any, Standing] = {}
        self._lock = Lock()

    @property
    def n_held(self) -> int:
        """Number of connections that are held."""
        return len(self._held)

    def standing(self, connection: Any) -> Standing:
        """Return what a connection has shown."""
        return self._held.get(connection, Standing.STRANGER)

    def stand(self, connection: Any, standing: Standing) -> None:
        """Note what a connection has shown, unless it was ended meanwhile."""
        with self._lock:
            # Put last: the first is the one that has been idle for longest.
            if self._held.pop(connection, None) is not None:
                self._held[connection] = standing

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, see `socketserver.ThreadingMixIn`."""
        with self._lock:
            let_in = len(self._held) < MOST_CONNECTIONS or self._make_room()
            if let_in:
                self._held[request] = Standing.STRANGER
        if let_in:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def _make_room(self) -> bool:
        for standing in (Standing.STRANGER, Standing.WAITING):
            for connection, now in self._held.items():
                if now is standing:
                    del self._held[connection]
                    # Its thread reads the end of the connection, and closes it.
                    with suppress(OSError):
                        connection.shutdown(socket.SHUT_RDWR)
                    return True
        return False

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, see `socketserver.ThreadingMixIn`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            with self._lock:
                self._held.pop(request, None)
