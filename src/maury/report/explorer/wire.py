"""Connections that may be held up on purpose: each has its time, and there are so many at most."""

import io
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import BoundedSemaphore
from typing import Any

IDLE_SECONDS = 60.0
"""How long a connection may wait for its next request."""
REQUEST_SECONDS = 20.0
"""How long a request may take to arrive whole, once it has begun."""
# A browser opens six to a host; so many leave room for ten pages, and bound the threads.
MOST_CONNECTIONS = 64


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
        self._reader.allow(IDLE_SECONDS)
        try:
            self._buffer.peek(1)
        except TimeoutError:
            self.close_connection = True
            return
        self._reader.allow(REQUEST_SECONDS)
        super().handle_one_request()

    def answer_in(self, seconds: float | None) -> None:
        """Give each part of the answer so much time to be taken."""
        self.connection.settimeout(seconds)


class BoundedServer(ThreadingHTTPServer):
    """A server that closes connections beyond so many at once."""

    request_queue_size = MOST_CONNECTIONS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._free = BoundedSemaphore(MOST_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, see `socketserver.ThreadingMixIn`."""
        # Refused, not queued: a queue of held connections would lock the owner out.
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, see `socketserver.ThreadingMixIn`."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()
